"""What an operation has done: counts, time, memory, and when each task ran."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from plans.core.model import AFTERWARDS, Plan, in_words
from vczstore.reports.notebook import table
from vczstore.sizes import human_size

if TYPE_CHECKING:
    from plans.core.task_report import TaskReport


class Found(Protocol):
    """What an operation has done or found, for people and programs."""

    def as_dict(self) -> Any:
        """Everything, for JSON."""

    def lines(self) -> Iterable[str]:
        """What the command prints."""


class Unnamed:
    """What is printed without the name of the store."""


@dataclass(frozen=True)
class FoundInParts:
    """
    What an operation has done or found in each part of a set of stores.

    Attributes
    ----------
    operation, store
        What was done, and what the set is called.
    parts
        What was done or found, by the name of the part.
    errors
        What is wrong with the set as a whole.
    notes
        What was done to the set as a whole.
    is_same
        Whether the same was found in all parts, so that it is printed once, with nothing else.
    """

    operation: str
    store: str
    parts: Mapping[str, Found]
    errors: Sequence[str] = ()
    notes: Sequence[str] = ()
    is_same: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.errors and all(getattr(one, "ok", True) for one in self.parts.values())

    @property
    def unchanged(self) -> bool:
        """Whether there was nothing to do in any part."""
        return all(getattr(one, "unchanged", False) for one in self.parts.values())

    @property
    def is_all(self) -> bool:
        """Whether nothing was done but to look."""
        return all(getattr(one, "is_all", False) for one in self.parts.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        parts = {name: one.as_dict() for name, one in self.parts.items()}
        return {"operation": self.operation, "store": self.store, "errors": [*self.errors], "parts": parts}

    def lines(self) -> Iterator[str]:
        """What the command prints."""
        if self.is_same:
            yield from next(iter(self.parts.values())).lines()
            return
        yield f"{self.operation} {self.store}: {in_words({'parts': len(self.parts)})}"
        yield from (f"  {note}" for note in self.notes)
        yield from (f"  error {error}" for error in self.errors)
        for name, one in self.parts.items():
            is_unnamed = isinstance(one, Unnamed)
            yield from [f"{name}:"] * is_unnamed
            yield from (f"  {line}" if is_unnamed else line for line in one.lines())


class TaskTime(NamedTuple):
    """When a task ran, in seconds since the epoch, and the most memory that its process had used by then, in bytes."""

    what: str
    start: float
    end: float
    peak_mem: int


@dataclass(frozen=True)
class Result:
    """
    What an operation has done.

    Attributes
    ----------
    operation, store
        What was done, and to which store.
    committed
        False after a dry run.
    snapshot
        The new snapshot, None on plain Zarr and after a dry run.
    counts
        What was done, in numbers.
    seconds
        What running took, checks included.
    plan
        What was run.
    tasks
        How many tasks ran, checks included. This and what follows is None with ``impl="zarr"``, which has no
        tasks.
    chunks, encoded_bytes, decoded_bytes
        Chunks written or cleared, bytes copied without re-encoding, and bytes encoded (counted before encoding).
    peak_mem
        The most memory that the process of a task has used, in bytes.
    timeline
        When each task ran.
    purged
        What the purge that followed has done; None without one.
    retries
        How often it was retried after a concurrent commit.
    resumed_chunks
        Chunks that an interrupted run has written, beside `chunks`.
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
        """The same with the purge that followed, and the snapshot that it has left."""
        return replace(self, snapshot=getattr(purged, "snapshot", None), purged=purged)

    @property
    def is_all(self) -> bool:
        """Whether nothing was done, after a dry run, but to tell of it."""
        return not self.committed

    @property
    def unchanged(self) -> bool:
        """Whether there was nothing to commit."""
        return self.committed and self.snapshot is not None and self.snapshot == self.plan.base

    def _would_do(self) -> dict[str, Any]:
        """What a dry run tells of the plan."""
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
        """What the command prints: what was done, or what a dry run has found."""
        head, plan = f"{self.operation} {self.store}: {self.summary}", self.plan
        if self.committed:
            snapshot = f", snapshot {self.snapshot}" if self.snapshot else ""
            again = f", retried {self.retries} times after concurrent commits" if self.retries else ""
            notes = [f"  {what:<7} {text}" for what, text in self.notes.items()]
            purged = [] if self.purged is None else self.purged.lines()
            before = f", {self.resumed_chunks:,} chunks by a run that was stopped" if self.resumed_chunks else ""
            return [f"{head} in {self.seconds:.2f} s{snapshot}{again}{before}", *notes, *purged]
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
        """What a notebook shows."""
        done = {} if self.committed else {"dry run": "nothing was written"}
        snapshot = {"snapshot": self.snapshot} if self.snapshot else {}
        rows = {**self.counts, **done, "seconds": f"{self.seconds:.2f}", **snapshot, **self.notes}
        return table(f"{self.operation} {self.store}", rows)

    def with_surveys(self, surveys: "Run") -> "Result":
        """The same with the tasks that looked up what the plan depends on; ``impl="zarr"`` counts no tasks."""
        if self.tasks is None:
            return replace(self, seconds=self.seconds + surveys.seconds)
        return replace(
            self,
            seconds=self.seconds + surveys.seconds,
            tasks=self.tasks + surveys.totals["tasks"],
            peak_mem=max(self.peak_mem or 0, surveys.totals["peak_mem"]),
            timeline=[*surveys.timeline, *self.timeline],
        )

    @property
    def summary(self) -> str:
        """What was done in words, such as "2 sources, 1 sample added"."""
        return in_words(self.counts)

    @property
    def notes(self) -> dict[str, str]:
        """What people are told of the store as it is now, beside the numbers."""
        return {what: text for what, text in self.plan.notes.items() if what == AFTERWARDS}


@dataclass(frozen=True)
class SetResult:
    """
    What an operation has done to a set of stores.

    Attributes
    ----------
    operation, store
        What was done, and what the set is called.
    committed
        False after a dry run.
    parts
        What was done to each part, by its name; parts that had it already are left out.
    completed
        The parts that lacked what an earlier run of the same operation had done to the others.
    retries
        How often it was retried after a concurrent commit.
    purged
        What the purge has done to each part, where an earlier run was stopped before it.
    notes
        What is left to do to the set.
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
        """Whether nothing was done, after a dry run, but to tell of it."""
        return not self.committed

    @property
    def unchanged(self) -> bool:
        """Whether there was nothing to commit in any part, and nothing to complete."""
        return self.committed and not self.completed and all(one.unchanged for one in self.parts.values())

    @property
    def seconds(self) -> float:
        """What running took, checks included."""
        return sum(one.seconds for one in self.parts.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "operation": self.operation,
            "store": self.store,
            "committed": self.committed,
            "completed": None if self.completed is None else list(self.completed),
            "retries": self.retries,
            **({"purged": {name: one.as_dict() for name, one in self.purged.items()}} if self.purged else {}),
            **({"notes": [*self.notes]} if self.notes else {}),
            "parts": {name: one.as_dict() for name, one in self.parts.items()},
        }

    def lines(self) -> Iterator[str]:
        """What the command prints."""
        yield from self._done()
        yield from (f"  note    {note}" for note in self.notes)

    def _done(self) -> Iterator[str]:
        if self.completed is not None:
            parts = ", ".join(self.completed) or "no part lacked it"
            yield f"{self.operation} {self.store}: completed what was stopped: {parts}"
            for found in self.purged.values():
                yield from found.lines()
            return
        for one in self.parts.values():
            yield from one.lines()
        dry = " (dry run, nothing was written)" * (not self.committed)
        yield f"{self.operation} {self.store}: {in_words({'parts': len(self.parts)})} in {self.seconds:.2f} s{dry}"


def _of_store(plan: Plan) -> str:
    """Which chunks hold what is in the store already: those that the counts and the notes tell of."""
    if not plan.chunks_of_store:
        return ""
    re_encoded = plan.counts.get("chunks re-encoded", 0)
    parts = {"re-encoded": re_encoded, "rewritten": plan.chunks_of_store - re_encoded}
    told = " and ".join(f"{n:,} {what}" for what, n in parts.items() if n)
    return f", of which {told} hold what is in the store"


def together(results: Sequence[Result]) -> Result:
    """What several plans of one commit have done, as the first one's operation."""
    first, *others = results

    def total(name: str) -> int | None:
        found = [getattr(result, name) for result in results]
        return None if None in found else sum(found)

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
    What the tasks of one plan add up to.

    Attributes
    ----------
    which, part
        Which of several plans it is, and of which part of a set, in the progress that is shown.
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
        """Add the time that passes within."""
        started = perf_counter()
        yield
        self.seconds += perf_counter() - started

    def include(self, other: "Run") -> None:
        """Add what another run adds up to."""
        peak_mem = max(self.totals["peak_mem"], other.totals["peak_mem"])
        self.totals = {name: n + other.totals[name] for name, n in self.totals.items()} | {"peak_mem": peak_mem}
        self.timeline = [*other.timeline, *self.timeline]
        self.seconds += other.seconds
        self.resumed_chunks += other.resumed_chunks

    def add(self, what: str, report: "TaskReport") -> None:
        """Count one task, of checking or writing."""
        self.totals["tasks"] += 1
        for name in ("chunks", "encoded_bytes", "decoded_bytes"):
            self.totals[name] += getattr(report, name)
        self.totals["peak_mem"] = max(self.totals["peak_mem"], report.peak_mem)
        self.timeline.append(TaskTime(what, report.start, report.end, report.peak_mem))
