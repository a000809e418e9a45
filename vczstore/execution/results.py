"""Results of operations: counts, time, memory, and the timeline of tasks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, cast

from plans.core.model import AFTERWARDS, Plan, in_words
from vczstore.reports.page import table
from vczstore.sizes import human_size

if TYPE_CHECKING:
    from plans.core.task_report import TaskReport


class Found(Protocol):
    """The outcome of an operation, as text and as JSON. Optional attributes: `ok`, `unchanged` and `is_all`."""

    def as_dict(self) -> Any:
        """The outcome as JSON-serialisable values."""

    def lines(self) -> Iterable[str]:
        """The lines that the command prints."""


class AsDict:
    """Mixin for outcomes that are dataclasses, all of whose fields are JSON-serialisable."""

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(cast("Any", self))


class Shown:
    """Mixin for outcomes whose printing is all that the command does, so that failing to print them is an error."""

    is_all: ClassVar[bool] = True


class Unnamed:
    """Mixin for outcomes that are printed without the name of the store."""


@dataclass(frozen=True)
class FoundInParts:
    """
    The outcome of an operation on a set of stores.

    Attributes
    ----------
    operation, store
        Names of the operation and of the set.
    parts
        The outcomes, by name of the part.
    errors
        Errors that concern the set as a whole.
    notes
        Remarks that concern the set as a whole.
    is_same
        Whether the outcomes of all parts are the same, so that one is printed, and nothing else.
    """

    operation: str
    store: str
    parts: Mapping[str, Found]
    errors: Sequence[str] = ()
    notes: Sequence[str] = ()
    is_same: bool = False

    @property
    def ok(self) -> bool:
        """Whether there is no error in the set or in any part."""
        return not self.errors and all(getattr(part, "ok", True) for part in self.parts.values())

    @property
    def unchanged(self) -> bool:
        """Whether there was nothing to do in any part."""
        return all(getattr(part, "unchanged", False) for part in self.parts.values())

    @property
    def is_all(self) -> bool:
        """Whether the output is the only purpose of the operation: it has changed nothing in any part."""
        return all(getattr(part, "is_all", False) for part in self.parts.values())

    def as_dict(self) -> dict[str, Any]:
        """Everything but `is_same`, for JSON; `notes` only if there are any."""
        parts = {name: part.as_dict() for name, part in self.parts.items()}
        notes = {"notes": [*self.notes]} if self.notes else {}
        return {"operation": self.operation, "store": self.store, "errors": [*self.errors], **notes, "parts": parts}

    def lines(self) -> Iterator[str]:
        """The lines that the command prints."""
        if self.is_same:
            yield from next(iter(self.parts.values())).lines()
            return
        yield f"{self.operation} {self.store}: {in_words({'parts': len(self.parts)})}"
        yield from (f"  {note}" for note in self.notes)
        yield from (f"  error {error}" for error in self.errors)
        for name, part in self.parts.items():
            is_unnamed = isinstance(part, Unnamed)
            yield from [f"{name}:"] * is_unnamed
            yield from (f"  {line}" if is_unnamed else line for line in part.lines())


class TaskTime(NamedTuple):
    """Start and end of a task, in seconds since the epoch, and the peak memory of its process so far, in bytes."""

    what: str
    start: float
    end: float
    peak_mem: int


@dataclass(frozen=True)
class Result:
    """
    The result of an operation that edits a store.

    Attributes
    ----------
    operation, store
        Names of the operation and of the store.
    committed
        False after a dry run.
    snapshot
        ID of the new snapshot; None on plain Zarr and after a dry run.
    counts
        Numbers of changes, by descriptions such as "samples added".
    seconds
        Time for surveys, checks and writes.
    plan
        The plan that was run.
    tasks
        Number of tasks that ran, checks included. This, `chunks`, the bytes and `peak_mem` are None with
        ``impl="zarr"``, which has no tasks.
    chunks, encoded_bytes, decoded_bytes
        Chunks written or cleared, bytes copied without re-encoding, and bytes encoded (counted before encoding).
    peak_mem
        Maximum of the peak memory of the tasks' processes, in bytes.
    timeline
        When each task ran; empty with ``impl="zarr"``.
    purged
        Outcome of the purge that followed; None without one.
    retries
        Number of retries after concurrent commits.
    resumed_chunks
        Chunks that an interrupted run had written, not included in `chunks`.
    """

    operation: str
    store: str
    committed: bool
    snapshot: str | None
    counts: Mapping[str, int]
    seconds: float
    plan: Plan = field(repr=False, compare=False)
    tasks: int | None = None
    chunks: int | None = None
    encoded_bytes: int | None = None
    decoded_bytes: int | None = None
    peak_mem: int | None = None
    timeline: Sequence[TaskTime] = field(default=(), repr=False, compare=False)
    purged: Found | None = None
    retries: int = 0
    resumed_chunks: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Everything but the plan and the timeline, for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("plan", "timeline", "purged")}
        purged = {} if self.purged is None else {"purged": self.purged.as_dict()}
        notes = {"notes": self.notes} if self.notes else {}
        dry = {} if self.committed else {"plan": self._would_do()}
        return {**values, "counts": dict(self.counts), **notes, **purged, **dry}

    def with_purge(self, purged: Found) -> "Result":
        """Return a copy with the outcome of a purge, and the ID of its snapshot, if any, in place of the commit's."""
        return replace(self, snapshot=getattr(purged, "snapshot", None), purged=purged)

    @property
    def is_all(self) -> bool:
        """Whether the output is the only purpose of the operation: after a dry run."""
        return not self.committed

    @property
    def unchanged(self) -> bool:
        """Whether there was nothing to commit."""
        return self.committed and self.snapshot is not None and self.snapshot == self.plan.base

    def _would_do(self) -> dict[str, Any]:
        """Describe the plan of a dry run, for JSON."""
        plan = self.plan
        return {
            "chunks_encoded": plan.encoded_chunks,
            "chunks_decoded": plan.decoded_chunks,
            "chunks_of_store": plan.chunks_of_store,
            "bytes_read_at_most": plan.bytes_read,
            "bytes_written_at_most": plan.bytes_written,
            "tasks": plan.tasks,
            "projected_mem": plan.projected_mem,
            "notes": dict(plan.notes),
        }

    def lines(self) -> list[str]:
        """The lines that the command prints: the outcome, or the plan of a dry run."""
        head, plan = f"{self.operation} {self.store}: {self.summary}", self.plan
        if self.committed:
            snapshot = f", snapshot {self.snapshot}" if self.snapshot else ""
            retried = f", retried {self.retries} times after concurrent commits" if self.retries else ""
            notes = [f"  {what:<7} {text}" for what, text in self.notes.items()]
            purged = [] if self.purged is None else self.purged.lines()
            resumed = f", {self.resumed_chunks:,} chunks by a run that was stopped" if self.resumed_chunks else ""
            return [f"{head} in {self.seconds:.2f} s{snapshot}{retried}{resumed}", *notes, *purged]
        encoded = f"{plan.decoded_chunks:,} encoded{_of_store(plan)}"
        return [
            f"{head} (dry run, nothing was written)",
            *(f"  {what:<7} {text}" for what, text in plan.notes.items()),
            f"  chunks  {plan.encoded_chunks:,} copied as they are, {encoded}",
            f"  reads   at most {human_size(plan.bytes_read)} (decoded)",
            f"  writes  at most {human_size(plan.bytes_written)} (decoded)",
            f"  tasks   {plan.tasks:,}, the largest is projected to need {human_size(plan.projected_mem)}",
        ]

    def _repr_html_(self) -> str:
        """Table for notebooks."""
        done = {} if self.committed else {"dry run": "nothing was written"}
        snapshot = {"snapshot": self.snapshot} if self.snapshot else {}
        rows = {**self.counts, **done, "seconds": f"{self.seconds:.2f}", **snapshot, **self.notes}
        return table(f"{self.operation} {self.store}", rows)

    @property
    def summary(self) -> str:
        """The counts in words, such as "2 sources, 1 sample added"."""
        return in_words(self.counts)

    @property
    def notes(self) -> dict[str, str]:
        """The note on the state of the store after the operation, if the plan has one."""
        return {what: text for what, text in self.plan.notes.items() if what == AFTERWARDS}


@dataclass(frozen=True)
class SetResult:
    """
    The result of an operation that edits a set of stores.

    Attributes
    ----------
    operation, store
        Names of the operation and of the set.
    committed
        False after a dry run.
    parts
        Results by name of the part, without the parts that an earlier run had already edited.
    completed
        The parts in which an interrupted run of the same operation was completed; None if there was no such run.
    retries
        Number of retries after concurrent commits.
    purged
        Outcomes of the purge, by name of the part, if an earlier run was interrupted before it.
    notes
        Follow-up work that the set needs.
    """

    operation: str
    store: str
    committed: bool
    parts: Mapping[str, Result]
    completed: tuple[str, ...] | None = None
    retries: int = 0
    purged: Mapping[str, Found] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def is_all(self) -> bool:
        """Whether the output is the only purpose of the operation: after a dry run."""
        return not self.committed

    @property
    def unchanged(self) -> bool:
        """Whether there was nothing to commit in any part, and nothing to complete."""
        return self.committed and not self.completed and all(part.unchanged for part in self.parts.values())

    @property
    def seconds(self) -> float:
        """Time for checks and writes, summed over the parts."""
        return sum(part.seconds for part in self.parts.values())

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON-serialisable values."""
        return {
            "operation": self.operation,
            "store": self.store,
            "committed": self.committed,
            "completed": None if self.completed is None else list(self.completed),
            "retries": self.retries,
            **({"purged": {name: purge.as_dict() for name, purge in self.purged.items()}} if self.purged else {}),
            **({"notes": [*self.notes]} if self.notes else {}),
            "parts": {name: part.as_dict() for name, part in self.parts.items()},
        }

    def lines(self) -> Iterator[str]:
        """The lines that the command prints."""
        if self.completed is not None:
            parts = ", ".join(self.completed) or "no part lacked it"
            yield f"{self.operation} {self.store}: completed what was stopped: {parts}"
            for purge in self.purged.values():
                yield from purge.lines()
        else:
            for part in self.parts.values():
                yield from part.lines()
            dry = " (dry run, nothing was written)" * (not self.committed)
            yield f"{self.operation} {self.store}: {in_words({'parts': len(self.parts)})} in {self.seconds:.2f} s{dry}"
        yield from (f"  note    {note}" for note in self.notes)


def _of_store(plan: Plan) -> str:
    """Describe how many of the chunks to encode hold existing data of the store; empty if none do."""
    if not plan.chunks_of_store:
        return ""
    re_encoded = plan.counts.get("chunks re-encoded", 0)
    parts = {"re-encoded": re_encoded, "rewritten": plan.chunks_of_store - re_encoded}
    numbers = " and ".join(f"{n:,} {what}" for what, n in parts.items() if n)
    return f", of which {numbers} hold what is in the store"


def together(results: Sequence[Result]) -> Result:
    """Combine the results of several plans of one commit, under the operation of the first."""
    first, *others = results

    def total(name: str) -> int | None:
        values = [getattr(result, name) for result in results]
        return None if None in values else sum(values)

    totals: dict[str, Any] = {name: total(name) for name in ("tasks", "chunks", "encoded_bytes", "decoded_bytes")}
    return replace(
        first,
        counts={**first.counts, **{what: n for other in others for what, n in other.counts.items()}},
        seconds=sum(result.seconds for result in results),
        **totals,
        peak_mem=max((r.peak_mem for r in results if r.peak_mem is not None), default=None),
        timeline=[task for result in results for task in result.timeline],
    )


@dataclass
class Run:
    """
    Totals over the tasks of one plan.

    Attributes
    ----------
    which, part
        For the progress display: such as " 1/2" if there are several plans, and the name of the part of a set.
    seconds
        Time for checks and writes; see `timed` and `Workers.run`.
    totals
        Numbers of tasks, chunks and bytes, and the maximum of peak memory, by the names of `Result`'s attributes.
    timeline, resumed_chunks
        As in `Result`.
    """

    which: str
    part: str = ""
    seconds: float = 0.0
    totals: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("tasks", "chunks", "encoded_bytes", "decoded_bytes", "peak_mem"), 0)
    )
    timeline: list[TaskTime] = field(default_factory=list)
    resumed_chunks: int = 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time that is spent within the context, unless it raises."""
        started = perf_counter()
        yield
        self.seconds += perf_counter() - started

    def include(self, other: "Run") -> None:
        """Add the totals of another run, and insert its timeline before this one's."""
        peak_mem = max(self.totals["peak_mem"], other.totals["peak_mem"])
        self.totals = {name: n + other.totals[name] for name, n in self.totals.items()} | {"peak_mem": peak_mem}
        self.timeline = [*other.timeline, *self.timeline]
        self.seconds += other.seconds
        self.resumed_chunks += other.resumed_chunks

    def add(self, what: str, report: "TaskReport") -> None:
        """Count one task of the phase `what`, such as "writing"."""
        self.totals["tasks"] += 1
        for name in ("chunks", "encoded_bytes", "decoded_bytes"):
            self.totals[name] += getattr(report, name)
        self.totals["peak_mem"] = max(self.totals["peak_mem"], report.peak_mem)
        self.timeline.append(TaskTime(what, report.start, report.end, report.peak_mem))
