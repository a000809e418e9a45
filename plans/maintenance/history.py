"""The history, tags and branches of a store."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plans.core.model import in_words
from vczstore.execution.results import AsDict, Shown, Unnamed
from vczstore.stores.base import PAST, RESTORED, History, Location, Store
from vczstore.vcz.model import Vcz

if TYPE_CHECKING:
    from vczstore.execution.options import Options


def history_of(location: Location, options: "Options", operation: str = "tag") -> History:
    """
    Return the history of a store.

    Raises
    ------
    TagError
        If the store is on plain Zarr, which has no history.
    """
    history = options.open(location).history
    history.require(operation)
    return history


def open_at(operation: str, store: Store, at: str | None) -> Vcz:
    """
    Read the metadata of the present state of a store, or of a tag, branch or snapshot.

    Raises
    ------
    TagError
        If there is no such state, or the store is on plain Zarr, which has only the present one.
    """
    if at is not None:
        store.history.require(operation)
    return store.open(at)


@dataclass(frozen=True)
class Tagged(Unnamed):
    """
    The tags of a store, or the tag that was created or deleted.

    Attributes
    ----------
    tags
        The snapshot of each tag, by name.
    tag, snapshot
        Name of the tag that was created, and its snapshot; else None.
    deleted
        Name of the tag that was deleted, else None.
    """

    tags: Mapping[str, str] = field(default_factory=dict)
    tag: str | None = None
    snapshot: str | None = None
    deleted: str | None = None

    @property
    def is_all(self) -> bool:
        """Whether the tags were only listed."""
        return self.tag is None and self.deleted is None

    def as_dict(self) -> dict[str, Any]:
        if self.deleted is not None:
            return {"deleted": self.deleted}
        return dict(self.tags) if self.tag is None else {"tag": self.tag, "snapshot": self.snapshot}

    def lines(self) -> list[str]:
        if self.deleted is not None:
            return [f"deleted tag {self.deleted}"]
        if self.tag is not None:
            return [f"tagged {self.snapshot} as {self.tag}"]
        return [f"{name}\t{snapshot}" for name, snapshot in self.tags.items()]


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
class Published(AsDict):
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

    def lines(self) -> list[str]:
        head = f"publish {self.store}:"
        if not self.published:
            return [f"{head} nothing to do, the branch {self.branch} has nothing that main lacks"]
        n = f"{self.published:,} snapshot{'s' * (self.published > 1)}"
        return [f"{head} main has {n} of the branch {self.branch} now, snapshot {self.snapshot}"]


def past_commits(history: History) -> Iterator[dict[str, Any]]:
    """Yield a description of each snapshot of a history, newest first, and then of the purged ones on record."""
    names: dict[str, list[str]] = {}
    for name, snapshot in history.tags().items():
        names.setdefault(snapshot, []).append(name)
    seen, past = set[str](), list[dict[str, Any]]()
    for entry in history.snapshots():
        record = dict(entry.metadata.get("vczstore", {}))
        past = past or record.pop(PAST, [])
        record.pop(PAST, None)
        seen.add(entry.id)
        yield _describe(entry.id, entry.time, entry.message, record, names.get(entry.id, []))
    for commit in past:
        if commit["snapshot"] not in seen:
            record = {key: value for key, value in commit.items() if key not in ("snapshot", "time")}
            yield _describe(commit["snapshot"], commit["time"], f"(purged) {_message(record)}", record, [])


def _message(record: Mapping[str, Any]) -> str:
    """Compose a commit message from the operations and counts in the record of a commit."""
    steps = record.get("steps") or [record]
    numbers = [({k: n for k, n in s.items() if isinstance(n, int)}, s.get("operation", "a commit")) for s in steps]
    return "; ".join(f"{operation}: {in_words(counts)}" if counts else operation for counts, operation in numbers)


def _describe(snapshot: str, time: str, message: str, record: dict[str, Any], tags: list[str]) -> dict[str, Any]:
    """Return the JSON-serialisable description of one commit; keys are popped from `record`."""
    versions = {"vczstore": record.pop("version"), **dict(sorted(record.pop("versions", {}).items()))} if record else {}
    operation, job, steps = record.pop("operation", None), record.pop("job", None), record.pop("steps", None)
    for key in ("same", RESTORED):  # snapshot IDs, not counts
        record.pop(key, None)
    return {
        "snapshot": snapshot,
        "time": time,
        "message": message,
        "operation": operation,
        "steps": steps if steps is not None else [{"operation": operation, **record}] if operation else [],
        "job": job,
        "versions": versions,
        "tags": tags,
    }


@dataclass(frozen=True)
class PastCommits(Shown, Unnamed):
    """
    The history of a repository, as an iterator that reads lazily.

    Attributes
    ----------
    entries
        The descriptions that `past_commits` yields.
    """

    entries: Iterator[dict[str, Any]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.entries

    def __next__(self) -> dict[str, Any]:
        return next(self.entries)

    def as_dict(self) -> list[dict[str, Any]]:
        """Return the list of all entries, JSON-serialisable."""
        return list(self)

    def lines(self) -> Iterator[str]:
        for entry in self:
            tags = "".join(f" ({name})" for name in entry["tags"])
            yield f"{entry['snapshot']}{tags}  {entry['time']}  {entry['message']}"
            job = [f"job {entry['job']}"] if entry["job"] else []
            if details := [*job, *(f"{name} {number}" for name, number in entry["versions"].items())]:
                yield f"  {', '.join(details)}"
