"""Compiling and checking all parts of a set before anything is written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from plans.core.model import Plan
from vczstore.errors import ConflictError, SampleError, TagError
from vczstore.execution.checkpoint import Journal
from vczstore.execution.engine import Execution, telling
from vczstore.execution.naming import Left
from vczstore.execution.results import Run
from vczstore.execution.sets.members import Samples, StoreSet
from vczstore.execution.workers import Stages, Workers
from vczstore.stores.base import Check, Store
from vczstore.stores.sets import PartRecord, Record

HELD = 4_000_000
"""How many sample IDs the plans of all parts may hold at once; with more, each is compiled again when it is written."""

SOURCES = "give each part a source with the same samples in the same order"
"""The way out where sources do not have the same samples."""

CHUNKS_AT_ONCE = 500_000
"""Of no more chunks than these the references are in memory at once, which takes some 100 bytes each."""


@dataclass(frozen=True)
class Compiled:
    """
    What is going to be done to one part.

    Attributes
    ----------
    plans
        What to do; nothing where it is done already.
    base
        The state of the part that they were compiled against.
    message, metadata
        For the history.
    before, after
        Its samples.
    sources
        Those of what comes in.
    surveys
        What it took to look things up.
    tags
        What its new state is going to be called.
    applied
        The snapshot that an earlier run has left which was stopped before its tags; None where there is none.
    journal
        Where a run that is stopped leaves what it has written; None to keep none.
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
    journal: Journal | None = None

    @property
    def summary(self) -> str:
        """What is done, in words."""
        return "; ".join(plan.summary for plan in self.plans)


@dataclass(frozen=True)
class Work:
    """
    One part that is worked on.

    Attributes
    ----------
    store
        The store, which is locked; None of one that is made.
    compile
        Compiles what is done to it.
    check
        Raises an error if its lock is lost.
    """

    store: Store | None
    compile: Callable[[], Compiled]
    check: Check | None


@dataclass
class Checking:
    """
    All parts of a set, compiled and checked.

    Attributes
    ----------
    group, works
        The set, and what is done to its parts.
    workers
        What runs the tasks of all of them.
    pending
        The record of a run of the same operation that was stopped, on stores without snapshots.
    is_seen_early
        Whether readers of plain Zarr may notice what is written before it is all there.
    purge
        What a purge that follows does with tags; empty without one.
    dry_run
        Whether nothing is going to be written.
    tags_wait
        Whether tags are made by what follows, and here only checked.
    again
        The parts that are compiled again when they are written, since all plans at once would be too large.
    compiled, executions
        What was checked of each part; no plan where there is nothing to do.
    n_chunks
        How many chunks are written in each part.
    """

    group: StoreSet
    works: Mapping[str, Work]
    workers: Workers
    pending: Record | None = None
    is_seen_early: bool = True
    purge: str = ""
    dry_run: bool = False
    tags_wait: bool = False
    again: set[str] = field(default_factory=set)
    compiled: dict[str, Compiled] = field(default_factory=dict)
    executions: dict[str, Execution] = field(default_factory=dict)
    n_chunks: dict[str, int] = field(default_factory=dict)

    def check(self, *, lookup: bool = True) -> None:
        """Compile all parts, and check what their plans have to check in the data; nothing is written."""
        for name, work in self.works.items():
            if self._is_done(name):
                continue
            try:
                compiled = work.compile()
            except SampleError:
                if not self._has_samples(name, work):
                    raise
                continue
            self.compiled[name], execution = compiled, self._execution(name, compiled)
            if execution is None:
                continue
            self.n_chunks[name] = execution.n_chunks
            if self.dry_run or compiled.after.n * len(self.works) <= HELD:
                self.executions[name] = execution
                continue
            if lookup:
                self.run([execution.told(execution.checks())])
            self.compiled[name] = replace(compiled, plans=(), surveys=Run(""))
            self.again.add(name)
        if lookup:
            self.run([one.told(one.checks()) for one in self.executions.values()])
        self._agree()
        for name, compiled in self.compiled.items():
            self._check_tags(name, compiled)

    def run(self, stages: Sequence[Stages]) -> None:
        """Run tasks of some parts in one queue; what goes wrong is told of the part that it is about, or of the set."""
        with telling(self.group.label, lambda: Left(self.group.called, "nothing was committed")):
            self.workers.run(*stages)

    @property
    def tags(self) -> list[str]:
        """The tags that all parts get as soon as all is visible."""
        return [] if self.tags_wait else self.all_tags

    @property
    def all_tags(self) -> list[str]:
        """The tags that all parts get, now or later."""
        return list(dict.fromkeys(tag for one in self.compiled.values() for tag in one.tags))

    def _check_tags(self, name: str, compiled: Compiled) -> None:
        """Make sure that all tags can be made in a part, or are there and name what they would name."""
        store = self.works[name].store
        if store is None:
            return
        for tag in self.all_tags:
            there = store.history.tags().get(tag)
            if there is None:
                store.history.refuse_tag(tag)
            elif there != compiled.base or name in self.executions or name in self.again:
                raise TagError(
                    f"tag: {tag!r} exists already in {store.label}, on snapshot {there}, and not in all parts; choose "
                    "another name"
                )

    def _is_done(self, name: str) -> bool:
        return self.pending is not None and self.pending.parts[name].is_done

    def _has_samples(self, name: str, work: Work) -> bool:
        """Whether a run that was stopped has done a part, and could not note it."""
        part = None if self.pending is None else self.pending.parts[name]
        if part is None or work.store is None or part.before == part.after:
            return False
        return Samples.of(work.store.open()).digest == part.after

    def _execution(self, name: str, compiled: Compiled) -> Execution | None:
        if not compiled.plans:
            return None
        store = self.works[name].store
        journal = None if store is None or store.group else compiled.journal  # groups are written in one transaction
        execution = Execution.of(compiled.plans, self.group.options, self.workers, self.works[name].check, journal)
        for run in (*execution.runs, *(step.run for step in execution.steps)):
            run.part = name
        return execution

    def _agree(self) -> None:
        """Check that all parts have the same samples, before and after, and all that comes into them."""
        found = self.compiled
        if self.pending is None and len(found) > 1:
            self.group.agree({name: one.before for name, one in found.items()}, f"the parts of {self.group.label}")
            numbers = {len(one.sources) for one in found.values()}
            for i in range(min(numbers)) if len(numbers) == 1 else ():
                sources = {name: one.sources[i] for name, one in found.items()}
                self.group.agree(sources, f"the {_nth(i)} sources", SOURCES)
        after = {name: one.after for name, one in found.items()}
        if self.pending is not None:
            others = self.pending.parts.items()
            after |= {name: Samples(-1, part.after) for name, part in others if name not in after}
        if len({one.digest for one in after.values()}) > 1:
            self.group.agree(after, "the parts would", SOURCES)

    def batches(self) -> Iterator[list[str]]:
        """The parts that are written together: as many as fit into memory."""
        batch, chunks, samples = list[str](), 0, 0
        for name, compiled in self.compiled.items():
            chunks, samples = chunks + self.n_chunks.get(name, 0), samples + compiled.after.n
            if batch and (chunks > CHUNKS_AT_ONCE or samples > HELD):
                yield batch
                batch, chunks, samples = [], self.n_chunks.get(name, 0), compiled.after.n
            batch.append(name)
        yield batch

    def ready(self, name: str) -> tuple[Compiled, Execution | None]:
        """A part that is checked; compiled again if its plan was too large to be kept."""
        compiled = self.compiled[name]
        if name not in self.again:
            return compiled, self.executions.get(name)
        again = self.works[name].compile()
        if (again.base, again.after) != (compiled.base, compiled.after):
            raise ConflictError(f"{self.group.called}: {self.group.label}: {name} has changed since it was checked")
        return again, self._execution(name, again)

    def record(self, snapshots: Mapping[str, str | None]) -> Record:
        """What is about to become visible, for whoever comes after a run that is killed."""
        parts = {
            name: PartRecord(one.base, snapshots.get(name), one.before.digest, one.after.digest)
            for name, one in self.compiled.items()
        }
        known = {} if self.pending is None else self.pending.parts
        ordered = {name: parts.get(name) or replace(known[name], is_done=True) for name in self.works}
        summary = next((one.summary for one in self.compiled.values() if one.summary), "")
        branch = next((work.store.branch for work in self.works.values() if work.store is not None), None) or ""
        hidden = not self.is_seen_early
        return Record(self.group.id, self.group.called, summary, ordered, tuple(self.tags), branch, hidden, self.purge)


def _nth(i: int) -> str:
    return ("first", "second", "third")[i] if i < 3 else f"{i + 1}th"
