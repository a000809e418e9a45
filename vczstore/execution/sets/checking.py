"""Compile and check all parts of a set before anything is written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from plans.core.model import Plan
from vczstore.errors import ConflictError, SampleError, TagError
from vczstore.execution.checkpoint import Journal
from vczstore.execution.engine import Execution, reporting
from vczstore.execution.naming import Aborted
from vczstore.execution.results import Run
from vczstore.execution.sets.members import Samples, StoreSet
from vczstore.execution.workers import Stages, Workers
from vczstore.stores.base import Store
from vczstore.stores.lock import HeldLock
from vczstore.stores.sets import PartRecord, Record

HELD = 4_000_000
"""Sample IDs that all plans together may hold in memory; with more, each part is compiled again when it is written."""

SOURCES = "give each part a source with the same samples in the same order"
"""The remedy, for messages, if sources do not have the same samples."""

CHUNKS_AT_ONCE = 500_000
"""Maximum number of chunk references in memory, of some 100 bytes each."""


@dataclass(frozen=True)
class Compiled:
    """
    The compiled plans of one part.

    Attributes
    ----------
    plans
        The plans; empty if the part is done already.
    base
        The state of the part that they were compiled against.
    message, metadata
        Commit message and metadata for the history.
    before, after
        The samples of the part before and after.
    sources
        The samples of each source.
    surveys
        Time and tasks of the surveys that the plans depend on.
    tags
        Tags for the new state.
    applied
        The commit of an earlier run that was interrupted before tagging; None if there is none.
    journal
        Journal from which an interrupted run resumes.
    """

    plans: Sequence[Plan]
    base: str
    message: str
    metadata: Mapping[str, Any]
    before: Samples
    after: Samples
    sources: Sequence[Samples] = ()
    surveys: Run = field(default_factory=lambda: Run(""))
    tags: Sequence[str] = ()
    applied: str | None = None
    journal: Journal = field(default_factory=Journal)

    @property
    def summary(self) -> str:
        """The counts of all plans in words."""
        return "; ".join(plan.summary for plan in self.plans)


@dataclass
class Checking:
    """
    All parts of a set, compiled and checked.

    Attributes
    ----------
    group
        The set.
    compile
        Compiles the plans of the part of a name.
    workers
        Run the tasks of all parts.
    stores, locks
        The stores that exist, and the locks that are held, by part.
    pending
        The record of an interrupted run of the same operation, on stores without snapshots; None if there is none.
    is_seen_early
        Whether readers of plain Zarr may see some writes before the operation is complete.
    purge
        As `Record.purge`.
    dry_run
        Whether to write nothing.
    tags_wait
        Whether tags are only checked here, and made later by the caller.
    recompiled
        The parts that are compiled again when they are written, since all plans together take too much memory.
    compiled, executions
        The plans and the execution of each part. Parts with nothing to do, or in `recompiled`, have no execution.
    n_chunks
        Number of chunks to write in each part.
    """

    group: StoreSet
    compile: Callable[[str], Compiled]
    workers: Workers
    stores: Mapping[str, Store] = field(default_factory=dict)
    locks: Mapping[str, HeldLock] = field(default_factory=dict)
    pending: Record | None = None
    is_seen_early: bool = True
    purge: str = ""
    dry_run: bool = False
    tags_wait: bool = False
    recompiled: set[str] = field(default_factory=set)
    compiled: dict[str, Compiled] = field(default_factory=dict)
    executions: dict[str, Execution] = field(default_factory=dict)
    n_chunks: dict[str, int] = field(default_factory=dict)

    def check(self, *, lookup: bool = True) -> None:
        """
        Compile all parts, and check that they have equal samples and can be tagged; nothing is written.

        Unless `lookup` is false, run the checking tasks of the plans as well.
        """
        for name in self.group.places:
            if self.pending is not None and self.pending.parts[name].is_done:
                continue
            try:
                compiled = self.compile(name)
            except SampleError:
                if not self._has_samples(name):
                    raise
                continue
            self.compiled[name], execution = compiled, self._execution(name, compiled)
            if execution is None:
                continue
            self.n_chunks[name] = execution.n_chunks
            if self.dry_run or compiled.after.n * len(self.group.places) <= HELD:
                self.executions[name] = execution
                continue
            if lookup:
                self.run([execution.reported(execution.checks())])
            self.compiled[name] = replace(compiled, plans=())
            self.recompiled.add(name)
        if lookup:
            self.run([execution.reported(execution.checks()) for execution in self.executions.values()])
        self._agree()
        for name, compiled in self.compiled.items():
            self._check_tags(name, compiled)

    def run(self, stages: Sequence[Stages]) -> None:
        """Run the tasks of several parts in one queue. Errors that no part has reported are reported for the set."""
        with reporting(self.group.label, lambda: Aborted(self.group.called, "nothing was committed")):
            self.workers.run(*stages)

    @property
    def tags(self) -> list[str]:
        """The tags to create once all parts are visible; empty if they are made later."""
        return [] if self.tags_wait else self.all_tags

    @property
    def all_tags(self) -> list[str]:
        """The tags of all parts, whether created here or later."""
        return list(dict.fromkeys(tag for compiled in self.compiled.values() for tag in compiled.tags))

    def _check_tags(self, name: str, compiled: Compiled) -> None:
        """Raise a `TagError` unless each tag can be created in a part, or names its current snapshot already."""
        if (store := self.stores.get(name)) is None:
            return
        for tag in self.all_tags:
            tagged = store.history.tags().get(tag)
            if tagged is None:
                store.history.refuse_tag(tag)
            elif tagged != compiled.base or name in self.executions or name in self.recompiled:
                raise TagError(
                    f"tag: {tag!r} exists already in {store.label}, on snapshot {tagged}, and not in all parts; choose "
                    "another name"
                )

    def _has_samples(self, name: str) -> bool:
        """Whether an interrupted run has written a part, judged by its samples, without marking it as done."""
        part, store = None if self.pending is None else self.pending.parts[name], self.stores.get(name)
        if part is None or store is None or part.before == part.after:
            return False
        return Samples.of(store.open()).digest == part.after

    def _execution(self, name: str, compiled: Compiled) -> Execution | None:
        if not compiled.plans:
            return None
        store, lock = self.stores.get(name), self.locks.get(name)
        # groups of a repository are written in one transaction
        journal = Journal() if store is None or store.group else compiled.journal
        check = None if lock is None else lock.check
        execution = Execution(compiled.plans, self.workers, self.group.options.impl, check, journal)
        execution.runs[0].include(compiled.surveys)
        for run in (*execution.runs, *(step.run for step in execution.steps)):
            run.part = name
        return execution

    def _agree(self) -> None:
        """Check that all parts have the same samples in the same order, before and after, and so do their sources."""
        parts = self.compiled
        if self.pending is None and len(parts) > 1:
            self.group.agree({name: part.before for name, part in parts.items()}, f"the parts of {self.group.label}")
            numbers = {len(part.sources) for part in parts.values()}
            for i in range(min(numbers)) if len(numbers) == 1 else ():
                sources = {name: part.sources[i] for name, part in parts.items()}
                self.group.agree(sources, f"the {_nth(i)} sources", SOURCES)
        after = {name: part.after for name, part in parts.items()}
        if self.pending is not None:
            others = self.pending.parts.items()
            after |= {name: Samples(-1, part.after) for name, part in others if name not in after}
        if len({samples.digest for samples in after.values()}) > 1:
            self.group.agree(after, "the parts would", SOURCES)

    def batches(self) -> Iterator[list[str]]:
        """Yield the parts in batches that are written together: as many as fit into memory."""
        batch, chunks, samples = list[str](), 0, 0
        for name, compiled in self.compiled.items():
            chunks, samples = chunks + self.n_chunks.get(name, 0), samples + compiled.after.n
            if batch and (chunks > CHUNKS_AT_ONCE or samples > HELD):
                yield batch
                batch, chunks, samples = [], self.n_chunks.get(name, 0), compiled.after.n
            batch.append(name)
        yield batch

    def ready(self, name: str) -> tuple[Compiled, Execution | None]:
        """Return the plans and the execution of a checked part, compiled again if they were too large to keep."""
        compiled = self.compiled[name]
        if name not in self.recompiled:
            return compiled, self.executions.get(name)
        fresh = self.compile(name)
        if (fresh.base, fresh.after) != (compiled.base, compiled.after):
            raise ConflictError(f"{self.group.called}: {self.group.label}: {name} has changed since it was checked")
        return fresh, self._execution(name, fresh)

    def record(self, snapshots: Mapping[str, str | None]) -> Record:
        """Return the record of the pending changes, from the ID of the snapshot to publish in each part."""
        parts = {
            name: PartRecord(part.base, snapshots.get(name), part.before.digest, part.after.digest)
            for name, part in self.compiled.items()
        }
        done = {} if self.pending is None else self.pending.parts
        ordered = {name: parts.get(name) or replace(done[name], is_done=True) for name in self.group.places}
        summary = next((part.summary for part in self.compiled.values() if part.summary), "")
        branch = next((store.branch for store in self.stores.values()), None) or ""
        hidden = not self.is_seen_early
        return Record(self.group.id, self.group.called, summary, ordered, tuple(self.tags), branch, hidden, self.purge)


def _nth(i: int) -> str:
    return ("first", "second", "third")[i] if i < 3 else f"{i + 1}th"
