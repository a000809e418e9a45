"""The history and the tags of a store."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from plans.core.model import in_words
from vczstore.execution.results import Unnamed
from vczstore.stores.base import PAST, RESTORED, History, Location, Store
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
class Tagged(Unnamed):
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
    seen, past = set[str](), list[dict[str, Any]]()
    for entry in history.snapshots():
        said = dict(entry.metadata.get("vczstore", {}))
        past = past or said.pop(PAST, [])
        said.pop(PAST, None)
        seen.add(entry.id)
        yield _describe(entry.id, entry.time, entry.message, said, names.get(entry.id, []))
    for one in past:
        if one["snapshot"] not in seen:
            said = {key: value for key, value in one.items() if key not in ("snapshot", "time")}
            yield _describe(one["snapshot"], one["time"], f"(purged) {_message(said)}", said, [])


def _message(said: Mapping[str, Any]) -> str:
    """What was done, in words, from what is told of it in numbers."""
    steps = said.get("steps") or [said]
    numbers = [({k: n for k, n in s.items() if isinstance(n, int)}, s.get("operation", "a commit")) for s in steps]
    return "; ".join(f"{operation}: {in_words(counts)}" if counts else operation for counts, operation in numbers)


def _describe(snapshot: str, time: str, message: str, said: dict[str, Any], tags: list[str]) -> dict[str, Any]:
    """What is told of one commit."""
    versions = {"vczstore": said.pop("version"), **dict(sorted(said.pop("versions", {}).items()))} if said else {}
    operation, job, steps = said.pop("operation", None), said.pop("job", None), said.pop("steps", None)
    for key in ("same", RESTORED):  # snapshots, which are no numbers
        said.pop(key, None)
    return {
        "snapshot": snapshot,
        "time": time,
        "message": message,
        "operation": operation,
        "steps": steps if steps is not None else [{"operation": operation, **said}] if operation else [],
        "job": job,
        "versions": versions,
        "tags": tags,
    }


@dataclass(frozen=True)
class PastCommits(Unnamed):
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
