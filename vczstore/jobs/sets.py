"""Run jobs on sets of stores: each part is compiled as a job of its own, and all parts become visible together."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations

from plans.core.ledger import slow_digest
from vczstore.errors import IncompatibleError, with_words
from vczstore.execution.conversions import Conversions
from vczstore.execution.operations import EXPORTS, IN_COMMIT, NAMES, Operation
from vczstore.execution.options import MAX_RETRIES
from vczstore.execution.progress import Progress, showing
from vczstore.execution.results import Found, Result, SetResult
from vczstore.execution.retry import retried
from vczstore.execution.sets import entrance
from vczstore.execution.sets.checking import Checking, Compiled
from vczstore.execution.sets.completion import complete, tag_states
from vczstore.execution.sets.members import (
    PLACES,
    Samples,
    StoreSet,
    in_part,
    refuse_within,
    require_part,
    taking_for_parts,
)
from vczstore.execution.sets.writing import write
from vczstore.execution.workers import Workers
from vczstore.jobs.afterwards import Done, afterwards, within
from vczstore.jobs.compile import CompiledJob, branches_of, compile_job, options_of, retention
from vczstore.jobs.model import Job
from vczstore.jobs.notify import Outcome
from vczstore.jobs.results import JobResult, SetJobResult
from vczstore.stores.base import Store
from vczstore.stores.locations import canonical
from vczstore.stores.lock import HeldLock
from vczstore.stores.object_store import plain_errors
from vczstore.stores.resolve import refuse_read_only
from vczstore.stores.sets import Record, Template, require_parts


@dataclass(frozen=True)
class CompiledSet:
    """
    A job compiled against all stores of a set.

    Attributes
    ----------
    store
        The label of the set.
    parts
        The compiled job of each part, by name.
    """

    store: str
    parts: Mapping[str, CompiledJob]

    @property
    def summary(self) -> str:
        """The summary of each part's job, for messages."""
        return "; ".join(f"{name}: {compiled.summary}" for name, compiled in self.parts.items())


def compile_set(job: Job) -> CompiledSet:
    """
    Compile a job against all stores of a set. Nothing is written.

    Raises
    ------
    StaleError
        If another operation was interrupted before it was applied to all parts.
    VczstoreError
        If a step cannot be compiled, or the parts would end up with different samples.
    """
    running = _Running(job, None)
    with (
        running.taking_for_parts(),
        Conversions(job.work_dir) as conversions,
        Workers(running.group.options) as workers,
    ):
        running.group.refuse_pending()
        compiling = partial(running.compile, conversions, workers)
        running.check(Checking(running.group, compiling, workers, dry_run=True), lookup=False)
    return CompiledSet(running.group.label, running.compiled)


def run_set(job: Job, outcome: Outcome, *, wait: bool, progress: Progress | bool | None) -> SetJobResult:
    """
    Run what no earlier run of a job has applied, on all stores of a set.

    Parameters
    ----------
    job
        The parsed job file, whose store has ``{part}`` in its name.
    outcome
        The state of the run, updated for its report and notification.
    wait, progress
        As in `vczstore.jobs.run.run_job`.
    """
    with showing(progress) as shown:
        running = _Running(job, shown)
        with running.taking_for_parts():
            return _run_set(running, outcome, wait, shown)


def _run_set(running: "_Running", outcome: Outcome, wait: bool, progress: Progress | None) -> SetJobResult:
    group, outcome.compiled = running.group, running.compiled
    for place in group.places.values():
        refuse_read_only("run", place)
    stores = group.open()
    with group.locked(stores, wait=wait) as locks, Conversions(running.job.work_dir, progress) as conversions:
        record, completed = group.record.read(), tuple[str, ...]()
        if record is not None:
            group.require_parts_of(record)
            if record.id != group.id:
                group.refuse_pending(locked=True)
            if record.is_staged:
                completed, record = tuple(complete(group, record, stores)), None

        attempt = partial(running.attempt, stores, locks, conversions, record)
        first_result, n = retried(attempt, MAX_RETRIES, nullcontext)
        result = outcome.result = replace(first_result, completed=completed, retries=n)

        def give_tags(last_commit: Found | None) -> None:
            nonlocal result
            result = outcome.result = result.with_tags(*running.tag(result.parts, last_commit))

        for done in running.afterwards(result, locks, give_tags):
            result = outcome.result = result.with_done(done)
    return result


class _Running:
    """
    A job on a set that is being run or planned.

    Attributes
    ----------
    job, branch
        The job of the set, and its branch; None for main.
    jobs, compiled
        The job of each part, and its compiled job, by name of the part.
    tags_wait
        Whether an operation after the commit precedes the tags, so that they are created after it.
    group
        The set of stores.
    """

    def __init__(self, job: Job, progress: Progress | None) -> None:
        self.job, self.jobs, self.branch = job, _jobs_of(job), job.branch
        self.tags_wait = any(IN_COMMIT < step.operation.phase < NAMES for step in job.steps)
        options = options_of(job).but(progress=progress, branch=None)  # `compile_job` selects each part's branch
        canonical_steps = [step.with_places(lambda _, place: canonical(place)) for step in job.steps]
        steps = [[step.operation.called, step.model_dump(mode="json")] for step in canonical_steps]
        self.group = StoreSet(
            Template(job.store.url, job.store.storage_options),
            {name: part_job.store.url for name, part_job in self.jobs.items()},
            options,
            "run",
            slow_digest(json.dumps(["run", steps, job.branch], sort_keys=True, default=str)),
        )
        self.compiled: dict[str, CompiledJob] = {}

    def taking_for_parts(self) -> AbstractContextManager[None]:
        """Return the context `vczstore.execution.sets.members.taking_for_parts`, unless the job lists its parts."""
        places = () if self.job.parts else self.group.places.values()
        return taking_for_parts(self.group.label, places, "parts: in a job")

    def compile(self, conversions: Conversions, workers: Workers, name: str) -> Compiled:
        """Compile the job of a part."""
        job = compile_job(self.jobs[name], conversions, workers)
        self.compiled[name] = job
        message, metadata = job.history
        before, after = job.samples
        applied = job.applied_in if job.tags and not job.plans else None
        return Compiled(
            job.plans, job.base, message, metadata, before, after, tags=job.tags, applied=applied, journal=job.journal
        )

    def attempt(
        self,
        stores: Mapping[str, Store],
        locks: Mapping[str, HeldLock],
        conversions: Conversions,
        pending: Record | None,
    ) -> SetJobResult:
        """Compile, check and write all parts; `pending` is the record of an interrupted run, on plain Zarr."""
        self.compiled.clear()
        with Workers(self.group.options) as workers:
            compiling = partial(self.compile, conversions, workers)
            new = partial(
                Checking, self.group, compiling, workers, stores, locks, pending=pending, tags_wait=self.tags_wait
            )
            self.check(checked := new())
            if self._begin_branches():
                self.check(checked := new())
            if self.branch is not None:
                checked.stores = {name: self.compiled[name].store for name in stores}
            results = write(checked)
        for compiled in self.compiled.values():
            compiled.journal.delete()
        tags = tuple(checked.tags)
        parts = {name: JobResult.of(job, results.get(name, ()), tags) for name, job in self.compiled.items()}
        return SetJobResult("done" if results or tags else "nothing to do", self.group.label, parts)

    def check(self, checked: Checking, *, lookup: bool = True) -> None:
        """Compile and check all parts; the error for incompatible parts names a source that one of them lacks."""
        try:
            checked.check(lookup=lookup)
        except IncompatibleError as error:
            if (lacking := _lacking(self.compiled)) is None:
                raise
            raise with_words(error, f"; {lacking}") from error

    def _begin_branches(self) -> bool:
        """Prepare the job's branch in the parts that were compiled against main; return whether there are any."""
        if self.branch is None or not any(job.plans or job.tags or job.after for job in self.compiled.values()):
            return False
        new = [name for name, job in self.compiled.items() if job.store.branch != self.branch]
        for name in new:
            branches_of(self.jobs[name]).prepare(self.branch)
        return bool(new)

    def afterwards(
        self, result: SetJobResult, locks: Mapping[str, HeldLock], give_tags: Callable[[Found | None], None]
    ) -> Iterator[Done]:
        """Run the operations after the commits, each on all parts before the next one; see `afterwards`."""
        options = options_of(self.job).but(progress=self.group.options.progress, parts=tuple(self.jobs))

        def do(operation: Operation) -> Found:
            group = StoreSet.of(operation, within(operation, options))
            found: Found = entrance.perform(operation, replace(group, id=self.group.id, held=locks))
            return found

        is_changed = any(part.results for part in result.parts.values())
        committed = "what the steps of the job do is done in all parts" if is_changed or result.completed else ""
        return afterwards(self._operations(), do, give_tags, self.branch, committed)

    def _operations(self) -> list[Operation]:
        """Return the operations after the commits that any part has to run (see `CompiledJob.after`), for the set."""
        job = self.job
        steps = [step.build(job.store.url) for step in job.steps if step.operation.phase not in (IN_COMMIT, NAMES)]
        wanted = {operation.called for compiled in self.compiled.values() for operation in compiled.after}
        is_known = len(self.compiled) == len(self.jobs)  # otherwise an interrupted run has completed some parts
        return [operation for operation in (*steps, *retention(job)) if operation.called in wanted or not is_known]

    def tag(self, parts: Mapping[str, JobResult], last: Found | None) -> Sequence[str]:
        """
        Create the deferred tags in all parts, and return their names.

        `last` is the result of the last operation with a commit of its own. Groups of one repository are tagged on one
        common snapshot.
        """
        if not self.tags_wait:
            return ()
        last_results: Mapping[str, Result] = last.parts if isinstance(last, SetResult) else {}
        stores = {name: compiled.store for name, compiled in self.compiled.items()}
        tags = dict.fromkeys(tag for compiled in self.compiled.values() for tag in compiled.tags)
        states = {name: (str(part.snapshot), part.job.samples[1]) for name, part in parts.items()}
        for name, result in last_results.items():
            states[name] = (str(result.snapshot), Samples.of(result.plan.after))
        if tags and len(parts) > len({store.place for store in stores.values()}):
            results = [*last_results.values(), *(result for part in parts.values() for result in part.results)]
            at = [result.snapshot for result in results]
            if last is None:  # otherwise `last` is newer than the commits of earlier runs
                at += [compiled.applied_in for compiled in self.compiled.values()]
            snapshot = next((s for s in at if s is not None), next(iter(stores.values())).head)
            states = {name: (str(snapshot), samples) for name, (_, samples) in states.items()}
        with plain_errors(self.group.label):
            tag_states(self.group, stores, states, [*tags])
        return [*tags]


def _jobs_of(job: Job) -> dict[str, Job]:
    """Return the job of each part of a set, by the name of the part."""
    template = Template(job.store.url, job.store.storage_options)
    with plain_errors(job.store.url):
        parts = job.parts or template.find()
    require_parts("run", template, parts)
    for step in job.steps:
        for _, kind, texts in step.places():
            if kind in PLACES:
                require_part(step.operation.called, texts, job.store.url)
                if step.operation.phase == EXPORTS:
                    refuse_within(step.operation.called, texts, template)

    def of(part: str) -> Job:
        store = job.store.model_copy(update={"url": template.of(part)})
        steps = tuple(step.with_places(lambda _, place: in_part(place, part)) for step in job.steps)
        return job.model_copy(update={"store": store, "steps": steps, "of_set": job.store.url})

    return {part: of(part) for part in parts}


def _lacking(compiled: Mapping[str, CompiledJob]) -> str | None:
    """Describe a source that one part of a set has and another lacks; None if there is none."""
    for (ours, job), (theirs, other) in permutations(compiled.items(), 2):
        for our_sources, their_sources in zip(job.found, other.found, strict=False):
            present = {*their_sources.found}
            if len(our_sources.found) <= len(present):
                continue
            for source in our_sources.found:
                counterparts = source.replace(ours, theirs), theirs.join(source.rsplit(ours, 1))
                if present.isdisjoint(counterparts):
                    return f"there is {source} for {ours}, and no {counterparts[1]} for {theirs}"
    return None
