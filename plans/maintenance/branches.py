"""Results of listing, creating, deleting and publishing branches of a store."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from plans.core.model import in_words
from vczstore.execution.results import Unnamed


@dataclass(frozen=True)
class Branched(Unnamed):
    """
    The branches of a store, or the branch that was created or deleted.

    Attributes
    ----------
    branches
        The tip snapshot of each branch by name; only the created branch if one was created.
    created, deleted
        Name of the branch that was created or deleted, else None.
    lost
        Number of snapshots that were reachable from the deleted branch only.
    """

    branches: Mapping[str, str]
    created: str | None = None
    deleted: str | None = None
    lost: int = 0

    @property
    def is_all(self) -> bool:
        """Whether the branches were only listed."""
        return self.created is None and self.deleted is None

    def as_dict(self) -> dict[str, Any]:
        if self.deleted is not None:
            return {"deleted": self.deleted, "unpublished": self.lost}
        if self.created is not None:
            return {"created": self.created, "snapshot": self.branches[self.created]}
        return dict(self.branches)

    def lines(self) -> list[str]:
        if self.deleted is not None:
            lost = f", and {in_words({'snapshots': self.lost})} not published" if self.lost else ""
            return [f"deleted branch {self.deleted}{lost}"]
        if self.created is not None:
            return [f"branch {self.created} begins at {self.branches[self.created]}"]
        return [f"{name}\t{snapshot}" for name, snapshot in self.branches.items()]


@dataclass(frozen=True)
class Published:
    """
    The result of publishing a branch: moving ``main`` forward to it.

    Attributes
    ----------
    store, branch
        Label of the store, and name of the branch.
    before, snapshot
        Snapshots of ``main`` before and after.
    published
        Number of snapshots by which ``main`` moved forward.
    """

    store: str
    branch: str
    before: str
    snapshot: str
    published: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        head = f"publish {self.store}:"
        if not self.published:
            return [f"{head} nothing to do, the branch {self.branch} has nothing that main lacks"]
        n = f"{self.published:,} snapshot{'s' * (self.published > 1)}"
        return [f"{head} main has {n} of the branch {self.branch} now, snapshot {self.snapshot}"]
