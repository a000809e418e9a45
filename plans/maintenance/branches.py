"""What was done to the branches of a store."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from plans.core.model import in_words
from vczstore.execution.results import Unnamed


@dataclass(frozen=True)
class Branched(Unnamed):
    """
    The branches of a store, or what was done to one.

    Attributes
    ----------
    branches
        The last snapshot of each branch, or of the one that was made.
    created, deleted
        The branch that was made or deleted.
    lost
        How many snapshots only the deleted branch had.
    """

    branches: Mapping[str, str]
    created: str | None = None
    deleted: str | None = None
    lost: int = 0

    @property
    def is_all(self) -> bool:
        """Whether nothing was done but to list the branches."""
        return self.created is None and self.deleted is None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        if self.deleted is not None:
            return {"deleted": self.deleted, "unpublished": self.lost}
        if self.created is not None:
            return {"created": self.created, "snapshot": self.branches[self.created]}
        return dict(self.branches)

    def lines(self) -> list[str]:
        """What the command prints."""
        if self.deleted is not None:
            lost = f", and {in_words({'snapshots': self.lost})} not published" if self.lost else ""
            return [f"deleted branch {self.deleted}{lost}"]
        if self.created is not None:
            return [f"branch {self.created} begins at {self.branches[self.created]}"]
        return [f"{name}\t{snapshot}" for name, snapshot in self.branches.items()]


@dataclass(frozen=True)
class Published:
    """
    What was published.

    Attributes
    ----------
    store, branch
        Which store, and which branch of it.
    before, snapshot
        Where main was, and is now.
    published
        How many snapshots are new to readers.
    """

    store: str
    branch: str
    before: str
    snapshot: str
    published: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What the command prints."""
        head = f"publish {self.store}:"
        if not self.published:
            return [f"{head} nothing to do, the branch {self.branch} has nothing that main lacks"]
        n = f"{self.published:,} snapshot{'s' * (self.published > 1)}"
        return [f"{head} main has {n} of the branch {self.branch} now, snapshot {self.snapshot}"]
