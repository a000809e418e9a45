"""The history and the tags of a store."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from vczstore.stores.base import History, Location, Store
from vczstore.vcz.model import Vcz

if TYPE_CHECKING:
    from vczstore.execution.options import Options


def history_of(location: Location, options: "Options", operation: str = "tag") -> History:
    """
    Open the history of a store.

    Raises
    ------
    TagError
        If it is on plain Zarr, which has none.
    """
    history = options.open(location).history
    history.require(operation)
    return history


def open_at(operation: str, store: Store, at: str | None) -> Vcz:
    """
    Read the metadata of a store, now or at a tag, branch or snapshot.

    Raises
    ------
    TagError
        If there is no such state, or it is on plain Zarr, which keeps none but the present one.
    """
    if at is not None:
        store.history.require(operation)
    return store.open(at)


@dataclass(frozen=True)
class Tagged:
    """
    The tags of a store, or what was done to one.

    Attributes
    ----------
    tags
        The snapshot of each tag, by name.
    tag, snapshot
        The tag that was made, and what it names.
    deleted
        The tag that was deleted.
    """

    tags: Mapping[str, str] = field(default_factory=dict)
    tag: str | None = None
    snapshot: str | None = None
    deleted: str | None = None

    @property
    def is_all(self) -> bool:
        """Whether nothing was done but to list the tags."""
        return self.tag is None and self.deleted is None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the tags, or what was done."""
        if self.deleted is not None:
            return {"deleted": self.deleted}
        return dict(self.tags) if self.tag is None else {"tag": self.tag, "snapshot": self.snapshot}

    def lines(self) -> list[str]:
        """What the command prints."""
        if self.deleted is not None:
            return [f"deleted tag {self.deleted}"]
        if self.tag is not None:
            return [f"tagged {self.snapshot} as {self.tag}"]
        return [f"{name}\t{snapshot}" for name, snapshot in self.tags.items()]


def past_commits(history: History) -> Iterator[dict[str, Any]]:
    """Yield what is told of each snapshot of a history, newest first."""
    names: dict[str, list[str]] = {}
    for name, snapshot in history.tags().items():
        names.setdefault(snapshot, []).append(name)
    for entry in history.snapshots():
        said = dict(entry.metadata.get("vczstore", {}))
        versions = {"vczstore": said.pop("version"), **dict(sorted(said.pop("versions", {}).items()))} if said else {}
        operation, job, steps = said.pop("operation", None), said.pop("job", None), said.pop("steps", None)
        said.pop("same", None)  # snapshots, which are no numbers
        yield {
            "snapshot": entry.id,
            "time": entry.time,
            "message": entry.message,
            "operation": operation,
            "steps": steps if steps is not None else [{"operation": operation, **said}] if operation else [],
            "job": job,
            "versions": versions,
            "tags": names.get(entry.id, []),
        }


@dataclass(frozen=True)
class PastCommits:
    """
    The history of a repository; an iterator, which reads as far as it is looked at.

    Attributes
    ----------
    entries
        What `past_commits` yields.
    """

    entries: Iterator[dict[str, Any]]
    is_all: ClassVar[bool] = True
    """What is printed is all that is done."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.entries

    def __next__(self) -> dict[str, Any]:
        return next(self.entries)

    def as_dict(self) -> list[dict[str, Any]]:
        """For JSON: a list of all entries."""
        return list(self)

    def lines(self) -> Iterator[str]:
        """What the command prints."""
        for entry in self:
            tags = "".join(f" ({name})" for name in entry["tags"])
            yield f"{entry['snapshot']}{tags}  {entry['time']}  {entry['message']}"
            job = [f"job {entry['job']}"] if entry["job"] else []
            if made := [*job, *(f"{name} {number}" for name, number in entry["versions"].items())]:
                yield f"  {', '.join(made)}"
