"""Run an operation on one store: open, lock, compile, check, write, commit, and retry after a conflict.

`vczstore.execution.sets.entrance` calls it, and runs operations on sets of stores.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import executors
from plans.core.ledger import quick_digest, slow_digest
from plans.core.model import Compiling, Plan, Survey
from vczstore.errors import (
    IncompatibleError,
    Interrupted,
    OptionError,
    StaleError,
    StorageError,
    VczstoreError,
    with_words,
)
from vczstore.execution import checkpoint
from vczstore.execution.checkpoint import Journal
from vczstore.execution.conversions import Conversions
from vczstore.execution.naming import (
    DONE,
    LOOK,
    NOTHING_WRITTEN,
    UNKNOWN,
    Aborted,
    Standing,
    is_named,
    when_begun,
)
from vczstore.execution.operations import Edit, Operation
from vczstore.execution.options import Options
from vczstore.execution.progress import showing
from vczstore.execution.results import Result, Run, together
from vczstore.execution.retry import retried
from vczstore.execution.workers import Stages, Tasks, Workers
from vczstore.stores.base import UNCHANGED, Check, Location, Store, Transaction
from vczstore.stores.edits import SetHeader, SetItems
from vczstore.stores.locations import parse
from vczstore.stores.object_store import is_of_storage, plain_errors, reason
from vczstore.stores.resolve import refuse_read_only
from vczstore.stores.sets import is_template
from vczstore.vcf.files import is_vcf
from vczstore.vcz.model import SAMPLE_ID, SAMPLES, VARIANTS, Vcz, dimensions

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

    from plans.core.task_report import TaskReport


def run(operation: Operation, options: Options, standing: Standing, *, dry_run: bool = False) -> Any:
    """
    Run an operation on a store, as in `vczstore.execution.sets.entrance.run`.

    `standing` is kept up to date with the state in which an interrupt would leave the store.
    """
    refuse_branch(operation, options)
    if operation.writes:
        refuse_read_only(operation.called, operation.store)
    with plain_errors(operation.store):
        if isinstance(operation, Edit):
            with Conversions(options.work_dir, options.progress) as conversions:
                return _edit(operation, options.but(conversions=conversions), standing, dry_run=dry_run)
        standing.state = when_begun(operation, dry_run=dry_run)
        return operation.perform(options, dry_run=dry_run)


@contextmanager
def progress_display(options: Options, of: str = "") -> Iterator[Options]:
    """Attach a progress display for the operation `of` to the options, for the duration of the context."""
    with showing(options.progress, options.log_file, of) as progress:
        yield options.but(progress=progress, log_file=None)


def plan(operation: Operation, options: Options) -> Plan:
    """
    Compile an operation without running it. Surveys of the data that the plan depends on do run, as tasks.

    VCF sources are converted; the converted VCZs are kept until the process ends.

    Raises
    ------
    OptionError
        If the store is a set, or the operation has no plan, or has a follow-up that a single plan cannot hold.
    VczstoreError
        If the operation is invalid.
    """
    if is_template(operation.store):
        raise OptionError(
            f"{operation.called}: {operation.store} is a set of stores, and each has a plan of its own; name one part, "
            "or do a dry run"
        )
    refuse_branch(operation, options)
    if operation.writes:
        refuse_read_only(operation.called, operation.store)
    if not isinstance(operation, Edit):
        raise OptionError(f"{operation.called}: this operation has no plan; run it")
    if operation.beyond_plan is not None:
        raise OptionError(
            f"{operation.called}: {operation.beyond_plan} goes with running the operation, not with its plan"
        )
    with progress_display(options) as opts, Workers(opts) as workers:
        compiling = open_operation(operation, opts, None)
        return compile_plan(operation, compiling, workers, Run(""))


def refuse_branch(operation: Operation, options: Options) -> None:
    """Raise an `OptionError` if the options name a branch, and the operation takes none."""
    if options.branch is not None and "branch" not in operation.uses:
        raise OptionError(f"{operation.called}: takes no branch, found --branch {options.branch}; leave it out")


def run_compiled(compiled: Plan, options: Options) -> Result:
    """
    Run a plan that was compiled by `plan`.

    Raises
    ------
    StaleError
        If the store has changed since the plan was compiled.
    BusyError
        If the store is on plain Zarr, and another process is writing to it.
    """
    if options.no_lock:
        compiled = replace(compiled, store=replace(compiled.store, no_lock=True))
    with progress_display(options) as opts, plain_errors(compiled.store.label), compiled.store.writer_lock() as lock:
        return run_plan(compiled, opts, before_commit=lock.check)


def _edit(operation: Edit, options: Options, standing: Standing, *, dry_run: bool) -> Result:
    """Lock the store, run the operation and its follow-up, and retry the operation after a concurrent commit."""
    operation.check(options)
    written = None if dry_run else operation.store_to_lock(options)
    if written is not None and any(map(is_vcf, getattr(operation, "sources", ()))):
        # convert before taking the lock, so that others do not wait for it; the conversions are cached
        open_operation(operation, options, None)
    if written is None:
        return _attempt(operation, options, None, None, standing, dry_run=dry_run)
    # after losing a race, hold the retry lock so that writers cannot starve one another
    lock = written.exclusive_lock() if operation.is_exclusive else written.writer_lock()
    retry_lock = nullcontext if operation.is_exclusive else written.retry_lock
    with lock as held:
        attempt = partial(_attempt, operation, options, written, held.check, standing, dry_run=dry_run)
        result, n = retried(attempt, options.max_retries, retry_lock)
        return operation.afterwards(replace(result, retries=n), options, held)


def _attempt(
    operation: Edit,
    options: Options,
    written: Store | None,
    check: Check | None,
    standing: Standing,
    *,
    dry_run: bool,
) -> Result:
    """Open the store and its sources, compile, run and commit."""
    compiling = open_operation(operation, options, written)
    surveys = Run("")
    with Workers(options) as workers:
        plans = compile_all(operation, compiling, workers, surveys)
        journal = None if written is None else _journal(operation, options, compiling, plans)
        results = run_plans(
            plans,
            *history_of(plans),
            options,
            workers=workers,
            dry_run=dry_run,
            before_commit=check,
            journal=journal,
            surveys=surveys,
        )
        standing.state = NOTHING_WRITTEN if dry_run else DONE
    return together(results)


def _journal(operation: Edit, options: Options, compiling: Compiling, plans: Sequence[Plan]) -> Journal | None:
    """Return the journal from which an interrupted run resumes; None if resuming is off or not worthwhile."""
    store, (plan, *_) = operation.store, plans
    is_kept = "resume" in operation.uses and not options.no_resume and compiling.store.atomic and not plan.first_steps
    if not (is_kept and isinstance(store, str | os.PathLike) and writes_much(plans)):
        return None
    states = [(source.identity, source.stamp) for source in compiling.sources]
    identity = json.dumps([operation.called, operation.fingerprint, states], sort_keys=True, default=str)
    about = {
        "base": plan.base,
        "versions": [version(name) for name in ("vczstore", "cubed", "icechunk", "zarr")],
        "impl": options.impl,
        "allowed_mem": options.memory.allowed,
    }
    digest = slow_digest if operation.names_samples else quick_digest
    return Journal.in_cache(os.fspath(store), options.branch, digest(identity), about)


def writes_much(plans: Sequence[Plan]) -> bool:
    """Whether plans write enough chunks or bytes to be worth a journal."""
    n_chunks = sum(plan.encoded_chunks + plan.decoded_chunks for plan in plans)
    return n_chunks >= checkpoint.MIN_CHUNKS or sum(plan.bytes_written for plan in plans) >= checkpoint.MIN_BYTES


def open_operation(operation: Edit, options: Options, written: Store | None) -> Compiling:
    """Open the store and the sources that an operation is compiled against."""
    if operation.writes:
        refuse_same_place(operation.called, operation.store, getattr(operation, "sources", ()))
    with plain_errors(operation.store), planning(operation.called):
        return operation.open(options, written)


def compile_all(operation: Edit, compiling: Compiling, workers: Workers, surveys: Run) -> list[Plan]:
    """Compile an operation, and the one that follows it in the same commit (`Edit.then`), if any."""
    plans = [compile_plan(operation, compiling, workers, surveys)]
    if operation.then is not None:
        plans.append(compile_plan(operation.then, replace(compiling, opened=plans[0].after), workers, surveys))
    return plans


def compile_plan(operation: Edit, compiling: Compiling, workers: Workers, surveys: Run) -> Plan:
    """
    Compile an operation, and run the surveys of the data that its plan depends on.

    Parameters
    ----------
    operation, compiling
        The operation, and the store and sources that it is compiled against.
    workers
        Run the surveys. The executor is not started if there are none.
    surveys
        Accumulates the time and the tasks of the surveys.
    """
    name, store, n = operation.called, compiling.store, 0
    if compiling.impl != "zarr":
        workers.check_store(name, store)
    with reporting(store.label, lambda: Aborted(name, NOTHING_WRITTEN)), surveys.timed():
        stages, answer = operation.compile(compiling), None
        if isinstance(stages, Plan):
            return stages
        while True:
            try:
                survey = next(stages) if answer is None else stages.send(answer)
            except StopIteration as end:
                compiled: Plan = end.value
                return compiled
            if n == 0:
                workers.check_store(name, store)
                workers.check_location(name, store)
            n += 1
            answer = _scan(survey, f"survey {n}", workers, surveys)


def run_plan(
    plan: Plan, options: Options = Options(), *, dry_run: bool = False, before_commit: Check | None = None
) -> Result:
    """Run one plan; see `run_plans`."""
    (result,) = run_plans([plan], *history_of([plan]), options, dry_run=dry_run, before_commit=before_commit)
    return result


def history_of(plans: Sequence[Plan]) -> tuple[str, dict[str, Any]]:
    """Return the commit message and metadata that record plans in the history."""
    message = "; ".join(f"{plan.operation}: {plan.summary}" for plan in plans)
    steps = [{"operation": plan.operation, **plan.counts, **plan.remembered} for plan in plans]
    return message, steps[0] if len(steps) == 1 else {"operation": plans[0].operation, "steps": steps}


def run_plans(
    plans: Sequence[Plan],
    message: str,
    metadata: Mapping[str, Any],
    options: Options = Options(),
    *,
    workers: Workers | None = None,
    dry_run: bool = False,
    before_commit: Check | None = None,
    journal: Journal | None = None,
    surveys: Run | None = None,
) -> list[Result]:
    """
    Run plans for one store, each compiled against the result of the previous one: all checks first, then all writes.

    Parameters
    ----------
    plans
        The plans; at least one.
    message, metadata
        Commit message and metadata for the history.
    options
        Select the executor and the implementation.
    workers
        Workers created from these options; new ones by default.
    dry_run
        Stop after the checks.
    before_commit
        Called when everything is written, and on plain Zarr before each step becomes visible; may raise to refuse.
    journal
        Records progress, and restores that of an interrupted run; it is deleted when it is of no more use.
    surveys
        Time and tasks of the surveys that the plans depend on, which are included in the first result.

    Returns
    -------
    list of Result
        One for each plan.

    Raises
    ------
    VczstoreError
        If a check fails, the store has changed, or storage fails. Nothing is committed then; on plain Zarr, readers
        see the plans that had finished.
    Interrupted
        On a keyboard interrupt.
    """
    journal = journal or Journal()
    with nullcontext(workers) if workers is not None else Workers(options) as active:
        execution = Execution(plans, active, options.impl, before_commit, journal)
        execution.runs[0].include(surveys or Run(""))
        with reporting(execution.store.label, execution.if_aborted):
            try:
                active.run(execution.checks())
                snapshot = None if dry_run else execution.write(message, metadata)
            except StaleError:
                journal.delete()
                raise
            # within the context, so that an interrupt here is reported as "done already"
            active.close()
            journal.delete()
            return execution.results(snapshot, committed=not dry_run)


@dataclass
class Execution:
    """
    The execution of plans: their checks, then their writes.

    Attributes
    ----------
    plans
        The plans, all for one store.
    workers
        Run the tasks.
    impl
        One of `vczstore.choices.IMPLS`; ``"zarr"`` writes in this process, without tasks.
    before_commit, journal
        As in `run_plans`.
    visible
        The number of plans whose writes are visible before the commit; 0 unless `Transaction.shows_steps`.
    transaction
        The transaction of the writes; None before they begin.
    replacement
        The last first step that has a transaction of its own: its index in `steps`, and that transaction.
    store, current
        The store, and the plan being checked or written.
    runs, steps
        The `Run` of each plan, and the steps of all plans in order. Steps in `Plan.first_steps` have a `Run` of their
        own, the last step of a plan has that of the plan.
    """

    plans: Sequence[Plan]
    workers: Workers
    impl: str
    before_commit: Check | None
    journal: Journal = field(default_factory=Journal)
    visible: int = 0
    transaction: Transaction | None = None
    replacement: tuple[int, Transaction] | None = None
    runs: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = len(self.plans)
        self.store, self.current = self.plans[0].store, self.plans[0]
        if self.has_tasks:
            self.workers.check_store(self.current.operation, self.store)
        else:
            self.journal = Journal()  # it would record tasks
        self.runs = self.runs or [Run(f" {i}/{n}" if n > 1 else "") for i in range(1, n + 1)]
        self.steps = list[_Step]()
        for i, (plan, run) in enumerate(zip(self.plans, self.runs, strict=True)):
            *first, last = plan.steps
            self.steps += [_Step(step, Run(run.which, run.part), i, is_first=True) for step in first]
            self.steps.append(_Step(last, run, i, is_first=False))

    @property
    def has_tasks(self) -> bool:
        """Whether tasks do the writing, rather than zarr-python in this process."""
        return self.impl != "zarr"

    def on(self, store: Store) -> "Execution":
        """Return the execution of the same plans on another branch of their store; it shares the `runs`."""
        return replace(self, plans=[plan.on(store) for plan in self.plans])

    def if_aborted(self) -> Aborted:
        """Return the state in which the store is left if the current operation is aborted now."""
        is_done = self.visible == len(self.plans) or (self.transaction is not None and self.transaction.is_done)
        if is_done is None:
            return Aborted(self.current.operation, UNKNOWN, LOOK)
        current = self.current
        if self.replacement is not None and self.replacement[1].is_done:
            step, *rest = self.steps[self.replacement[0] :]
            is_done = is_done or all(other.plan.is_empty for other in rest)
            current = self.plans[step.plan_index] if current is step.plan else current
        return Aborted(current.operation, DONE) if is_done else _if_aborted(current, self.visible)

    def checks(self) -> Stages:
        """
        Yield the checking tasks, to be run by `Workers.run`; nothing is checked before that.

        Raises
        ------
        VczstoreError
            While the stages run: the error of the first check with a violation.
        """
        if self.has_tasks:
            self.workers.check_location(self.current.operation, self.store)
        for plan, run in zip(self.plans, self.runs, strict=True):
            self.current = plan
            if self.impl != "cubed":  # the other implementations re-encode every chunk
                plan.require_lossless()
            if self.impl == "xarray":
                plan.require_regular()
            with run.timed():
                yield from self._check(plan, run)

    def _check(self, plan: Plan, run: Run) -> Stages:
        """Yield the checking tasks of one plan."""
        violations: list[tuple[int, Any]] = []
        if not self.has_tasks:
            readers = ((i, reader) for i, check in enumerate(plan.checks) for reader in check.readers(plan.memory))
            violations = [(i, violation) for i, reader in readers for violation in reader.findings()]
        elif (checks := plan.cubed_checks()) is not None:
            yield Tasks("checking", checks, run, lambda report: violations.extend(report.found))
        if violations:
            i, first = min(violations)
            raise plan.checks[i].error(first)

    def write(self, message: str, metadata: Mapping[str, Any]) -> str | None:
        """Write all plans in one transaction, commit it, and return the snapshot ID, if there are snapshots."""
        if self.is_empty:
            return self.plans[0].base if self.store.history.is_kept else None
        transaction = self.begin()
        self.workers.run(self.writes(transaction))
        return self.commit(transaction, message, metadata)

    def commit(self, transaction: Transaction, message: str, metadata: Mapping[str, Any]) -> str | None:
        """
        Commit the transaction unless the lock is lost; return the snapshot ID, if there are snapshots.

        The version of vczstore is added to the metadata.
        """
        if self.before_commit is not None:
            self.before_commit()
        return transaction.commit(message, {"vczstore": {**metadata, "version": version("vczstore")}})

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return all(plan.is_empty for plan in self.plans)

    @property
    def n_chunks(self) -> int:
        """The number of chunks that are written."""
        return sum(plan.encoded_chunks + plan.decoded_chunks for plan in self.plans)

    def reported(self, stages: Stages) -> Stages:
        """Yield the stages unchanged, and convert their errors with `reporting`."""
        with reporting(self.store.label, self.if_aborted):
            yield from stages

    def writes(self, transaction: Transaction) -> Stages:
        """
        Yield the tasks that write all plans in a transaction that has begun, to be run by `Workers.run`.

        A first step that replaces a store on plain Zarr has a transaction of its own.
        """
        self.transaction = transaction
        for number, step in enumerate(self.steps):
            self.current = plan = step.plan
            with step.run.timed():
                if not step.is_first:
                    yield from self._write(plan, number, step.run, transaction)
                    self.visible += transaction.shows_steps
                    continue
                with plan.store.first_step(transaction, self.before_commit) as own:
                    self.replacement = None if own is transaction else (number, own)
                    plan = plan.from_store(own.view()) if number else plan
                    yield from self._write(plan, number, step.run, own)

    def begin(self) -> Transaction:
        """Begin a transaction, and restore into it the writes of an interrupted run."""
        self.current = self.plans[0]
        self.store.settle()
        transaction = self.store.transaction(self.current.base)
        if self.has_tasks:
            self.workers.check_writes(self.current.operation, self.store)
        self.journal.resume(transaction)
        if any(step.is_first for step in self.steps[1 : self.journal.restored + 1]):
            # the restored state is not what this first step has to read, so start over
            self.journal.delete()
            transaction, self.journal = self.store.transaction(self.current.base), Journal()
        return transaction

    def _write(self, plan: Plan, step: int, run: Run, transaction: Transaction) -> Stages:
        """
        Yield the tasks that write the pending chunks of one plan, and apply its preparations and edits around them.

        On plain Zarr the lock is checked before the edits, which make the chunks visible.
        """
        journal = self.journal
        if step < journal.restored:
            run.resumed_chunks = plan.encoded_chunks + plan.decoded_chunks
            return
        ids: Plan | None = None
        if journal.is_private:
            plan, ids = _without_ids(plan)
        findings: list[Any] = []
        edits = ((), ()) if step == journal.restored else (plan.preparations, plan.edits)
        with transaction.step(*edits, self.before_commit) as store:
            if self.has_tasks:
                yield from self._write_chunks(plan, store, step, run, transaction, findings)
            else:
                for write in plan.writes:
                    write.by_zarr(store)
            if plan.copied_from is not None:
                plan.copied_from.require_unchanged(plan.operation)
        if ids is not None:
            journal.close()
            with transaction.step((), ids.edits) as store:
                for write in ids.writes:
                    write.by_zarr(store)
            run.totals["chunks"] += ids.encoded_chunks + ids.decoded_chunks
        if plan.conclude is not None and self.has_tasks:
            with transaction.step((), plan.conclude(findings)):
                pass  # a step of edits alone

    def _write_chunks(
        self, plan: Plan, store: "ZarrStore", step: int, run: Run, transaction: Transaction, findings: list[Any]
    ) -> Stages:
        """
        Yield the tasks that write the pending chunks of one plan; append the findings that they report to `findings`.

        Raises
        ------
        StorageError
            If the tasks have written more or fewer chunks than planned: nothing may be committed then.
        """
        from plans.core.cubed_backend import tasks_of, without_tasks

        journal, planned = self.journal, plan.encoded_chunks + plan.decoded_chunks

        def on_report(report: "TaskReport") -> None:
            findings.extend(value for _, value in report.found)
            if report.store is not None:
                transaction.collect(report.store)
            if plan.conclude is None:  # the journal does not keep findings, so such tasks run again
                journal.record(report.task, report.chunks)

        writes = plan.cubed_writes(store, through_xarray=self.impl == "xarray")
        journal.begin(step, tasks_of(writes))
        run.resumed_chunks = journal.chunks
        try:
            if writes is not None and (pending := without_tasks(writes, journal.done)) is not None:
                yield Tasks("writing", pending, run, on_report, n_done=writes.num_tasks - pending.num_tasks)
        finally:
            journal.save()
        if (written := run.totals["chunks"] + run.resumed_chunks) != planned:
            journal.delete()
            raise StorageError(
                f"{plan.operation}: tasks report {written:,} chunks written, {planned:,} were planned; "
                f"{_if_aborted(plan).words}"
            )

    def results(self, snapshot: str | None, *, committed: bool) -> list[Result]:
        """Return the result of each plan, with the runs of its first steps; call this once."""
        for step in self.steps:
            if step.is_first:
                self.runs[step.plan_index].include(step.run)
        return [
            Result(
                operation=plan.operation,
                store=self.store.label,
                committed=committed,
                snapshot=snapshot,
                counts=plan.counts,
                seconds=run.seconds,
                plan=plan,
                timeline=run.timeline,
                resumed_chunks=run.resumed_chunks,
                **cast("dict[str, Any]", run.totals if self.has_tasks else {}),
            )
            for plan, run in zip(self.plans, self.runs, strict=True)
        ]


class _Step(NamedTuple):
    """One of `Plan.steps` with its own `Run`, the index of that plan, and whether it is in `Plan.first_steps`."""

    plan: Plan
    run: Run
    plan_index: int
    is_first: bool


def run_survey(survey: Survey, store: Store, options: Options) -> list[list[Any]]:
    """
    Run a survey of a store on the executor that the options select; nothing is written.

    Returns
    -------
    list of list
        The findings of each of `Survey.scans`; those of one scan are in arbitrary order.

    Raises
    ------
    VczstoreError
        If tasks cannot run.
    """
    with Workers(options) as workers:
        workers.check_store(survey.operation, store)
        with reporting(store.label, lambda: Aborted(survey.operation, NOTHING_WRITTEN)):
            workers.check_location(survey.operation, store)
            return _scan(survey, "checking", workers, Run(""))


def check_reachable(operation: str, store: Store, options: Options) -> None:
    """
    Check that tasks can reach a store that they read in addition to the store of the operation.

    Raises
    ------
    OptionError
        If they cannot: an unreachable chunk would read as absent, that is, as the fill value.
    """
    if options.executor in executors.IN_PROCESS:
        return
    with Workers(options) as workers:
        workers.check_store(operation, store)
        workers.check_location(operation, store)


def _scan(survey: Survey, what: str, workers: Workers, run: Run) -> list[list[Any]]:
    findings: list[list[Any]] = [[] for _ in survey.scans]

    def on_report(report: "TaskReport") -> None:
        for tag, value in report.found:
            findings[tag].append(value)

    if (plan := survey.cubed_plan()) is not None:
        workers.execute(Tasks(what, plan, run, on_report))
    return findings


def refuse_same_place(operation: str, location: Location, sources: Sequence[Location]) -> None:
    """Raise an `IncompatibleError` if the store at `location` is one of the sources, by another path as well."""
    for source in sources:
        if _same_place(location, source):
            raise IncompatibleError(f"{operation}: {source} is the store {location} itself; name another source")


def _same_place(a: Location, b: Location) -> bool:
    if not (isinstance(a, str | os.PathLike) and isinstance(b, str | os.PathLike)):
        return a is b
    first, second = parse(a), parse(b)
    if first.path is None or second.path is None:
        return first == second
    return first.path.exists() and second.path.exists() and first.path.samefile(second.path)


@contextmanager
def planning(operation: str) -> Iterator[None]:
    """Convert a keyboard interrupt within the context to an `Interrupted` that says that nothing was written."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(f"{operation}: interrupted; nothing was written") from error


@contextmanager
def reporting(label: str, if_aborted: Callable[[], Aborted]) -> Iterator[None]:
    """Add the operation and the store's state to errors of storage and executors, and to interrupts."""
    try:
        yield
    except StorageError as error:
        if is_named(error):
            raise
        aborted = if_aborted()
        raise with_words(error, f"; {aborted.words}", before=f"{aborted.operation}: ") from error
    except VczstoreError:
        raise
    except executors.ExecutorOptionError as error:
        aborted = if_aborted()
        raise OptionError(f"{aborted.operation}: {error}; {aborted.words}") from error
    except KeyboardInterrupt as error:
        aborted = if_aborted()
        raise Interrupted(f"{aborted.operation}: interrupted; {aborted.words}") from error
    except Exception as error:
        aborted, is_storage = if_aborted(), is_of_storage(error)
        if is_storage and not aborted.way_out:
            aborted = aborted._replace(way_out="run it again when that is mended")
        why = reason(error) if is_storage and not isinstance(error, OSError) else executors.first_line(error)
        raise StorageError(f"{aborted.operation}: {label}: {why}; {aborted.words}") from error


def _without_ids(plan: Plan) -> tuple[Plan, Plan]:
    """
    Split a plan in two: arrays that may hold names of samples, such as `sample_id`, and edits of items come second.

    The second part is written after a private journal was last saved, so that the journal never holds sample IDs.
    """

    def part(*, ids: bool) -> Plan:
        writes = tuple(write for write in plan.writes if _may_hold_names(plan.after, write.name) == ids)
        return replace(
            plan,
            writes=writes,
            edits=tuple(edit for edit in plan.edits if isinstance(edit, SetItems | SetHeader) == ids),
        )

    return part(ids=False), part(ids=True)


def _may_hold_names(vcz: Vcz, name: str) -> bool:
    """Whether an array may hold names of samples: one with a value per sample, or with no numbers and no variants."""
    array = {**vcz.arrays, **vcz.inner}.get(name)
    if array is None:
        return name == SAMPLE_ID
    has_numbers, names = array.dtype.kind in "biufcmM", dimensions(array)
    return names == (SAMPLES,) or (SAMPLES in names and VARIANTS not in names and not has_numbers)


def _if_aborted(plan: Plan, visible: int = 0) -> Aborted:
    """Return the state in which an aborted plan leaves the store, if readers see `visible` earlier plans."""
    if plan.store.atomic:
        return Aborted(plan.operation, UNCHANGED)
    before = f"the {visible} steps before it are done; " if visible > 1 else "the step before it is done; " * visible
    return Aborted(plan.operation, f"{before}{plan.if_stopped}", plan.way_out)
