"""The one entrance to all operations: open, lock, compile, check, write, commit, and retry after a conflict.

The only place where plans and executors meet.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import executors
from plans.core.ledger import slow_digest
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
    Left,
    Standing,
    is_named,
    naming,
    title,
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


def run(operation: Operation, options: Options, *, dry_run: bool = False) -> Any:
    """
    Run an operation.

    Parameters
    ----------
    operation
        The operation with its arguments.
    options
        How it finds its stores and runs.
    dry_run
        Check everything, write nothing.

    Returns
    -------
    Result
        Of an `Edit`; what any other operation has found.

    Raises
    ------
    VczstoreError
        If anything does not fit, or storage fails. Nothing has been committed then.
    Interrupted
        On a keyboard interrupt; the message says what state the store is in.
    """
    with naming(operation.called) as standing:
        refuse_branch(operation, options)
        if operation.writes:
            refuse_read_only(operation.called, operation.store)
        with shown(options, title(operation)) as opts:
            if isinstance(operation, Edit):
                with Conversions(opts.work_dir, opts.progress) as conversions:
                    return _edit(operation, opts.but(conversions=conversions), standing, dry_run=dry_run)
            standing.state = when_begun(operation, dry_run=dry_run)
            with plain_errors(operation.store):
                return operation.perform(opts, dry_run=dry_run)


@contextmanager
def shown(options: Options, of: str = "") -> Iterator[Options]:
    """The options with what is told of progress, and of which operation."""
    with showing(options.progress, options.log_file, of) as progress:
        yield options.but(progress=progress, log_file=None)


def plan(operation: Operation, options: Options) -> Plan:
    """
    Compile an operation without running it; what it depends on is looked up in the data, in tasks.

    VCFs are converted, too; what comes of that is there until the process ends.

    Raises
    ------
    OptionError
        If something follows it in the same commit, which one plan does not hold.
    VczstoreError
        If anything does not fit.
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
    with shown(options) as opts, Workers(opts) as workers:
        compiling = open_operation(operation, opts, None, dry_run=False)
        return compile_plan(operation, compiling, workers, Run(""))


def refuse_branch(operation: Operation, options: Options) -> None:
    """Raise an `OptionError` for a branch where an operation works on a new store, or on all branches."""
    if options.branch is not None and "branch" not in operation.uses:
        raise OptionError(f"{operation.called}: takes no branch, found --branch {options.branch}; leave it out")


def run_compiled(compiled: Plan, options: Options) -> Result:
    """
    Run a plan that was compiled before.

    Raises
    ------
    StaleError
        If the store has changed since the plan was compiled.
    BusyError
        If another process writes to a store on plain Zarr.
    """
    if options.no_lock:
        compiled = replace(compiled, store=compiled.store.unlocked())
    with shown(options) as opts, plain_errors(compiled.store.label), compiled.store.writer_lock() as lock:
        return run_plan(compiled, opts, before_commit=lock.check)


def _edit(operation: Edit, options: Options, standing: Standing, *, dry_run: bool) -> Result:
    """Lock, run, and run again after a concurrent commit."""
    with plain_errors(operation.store):
        operation.check(options)
        written = None if dry_run else operation.store_to_lock(options)
    if written is not None and any(map(is_vcf, getattr(operation, "sources", ()))):
        # converted before others have to wait; what is found here is found again
        open_operation(operation, options, None, dry_run=True)
    if written is None:
        return _attempt(operation, options, None, None, standing, dry_run=dry_run)
    # of several who have lost a race none goes on losing to the others
    lock = written.exclusive_lock() if operation.is_exclusive else written.writer_lock()
    again = nullcontext if operation.is_exclusive else written.retry_lock
    with plain_errors(operation.store), lock as held:
        attempt = partial(_attempt, operation, options, written, held.check, standing, dry_run=dry_run)
        result, n = retried(attempt, options.max_retries, again)
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
    """Open, compile, run and commit."""
    compiling = open_operation(operation, options, written, dry_run=dry_run)
    surveys = Run("")
    with Workers(options) as workers:
        plans = compile_all(operation, compiling, workers, surveys)
        journal = Journal(None, {}) if written is None else _journal(operation, options, compiling, plans)
        running = partial(run_plans, workers=workers, dry_run=dry_run, before_commit=check, journal=journal)
        try:
            results = running(plans, *history_of(plans), options)
            standing.state = NOTHING_WRITTEN if dry_run else DONE
        except StaleError:
            journal.delete()
            raise
    journal.delete()
    return together(results).with_surveys(surveys)


def _journal(operation: Edit, options: Options, compiling: Compiling, plans: Sequence[Plan]) -> Journal:
    """Where a run that is stopped leaves what it has written: for long ones that write to a store on Icechunk."""
    store, (plan, *_) = operation.store, plans
    is_kept = "resume" in operation.uses and not options.no_resume and compiling.store.atomic and not plan.first
    if not (is_kept and isinstance(store, str | os.PathLike) and writes_much(plans)):
        return Journal(None, {})
    states = [(source.identity, source.stamp) for source in compiling.sources]
    said = json.dumps([operation.called, operation.fingerprint, states], sort_keys=True, default=str)
    about = {
        "base": plan.base,
        "versions": [version(name) for name in ("vczstore", "cubed", "icechunk", "zarr")],
        "impl": options.impl,
        "allowed_mem": options.memory.allowed,
    }
    return Journal.in_cache(os.fspath(store), options.branch, slow_digest(said), about)


def writes_much(plans: Sequence[Plan]) -> bool:
    """Whether plans write so much that it is worth a journal."""
    n_chunks = sum(plan.encoded_chunks + plan.decoded_chunks for plan in plans)
    return n_chunks >= checkpoint.MIN_CHUNKS or sum(plan.bytes_written for plan in plans) >= checkpoint.MIN_BYTES


def open_operation(operation: Edit, options: Options, written: Store | None, *, dry_run: bool) -> Compiling:
    """Open what an operation is compiled against."""
    if operation.writes:
        refuse_same_place(operation.called, operation.store, getattr(operation, "sources", ()))
    with plain_errors(operation.store), planning(operation.called):
        return operation.open(options, written, dry_run=dry_run)


def compile_all(operation: Edit, compiling: Compiling, workers: Workers, surveys: Run) -> list[Plan]:
    """Compile an operation, and what follows it in the same commit; as `compile_plan`."""
    plans = [compile_plan(operation, compiling, workers, surveys)]
    if operation.then is not None:
        with plain_errors(operation.store):
            plans.append(compile_plan(operation.then, replace(compiling, opened=plans[0].after), workers, surveys))
    return plans


def compile_plan(operation: Edit, compiling: Compiling, workers: Workers, surveys: Run) -> Plan:
    """
    Compile an operation, and look up in the data what its plan depends on.

    Parameters
    ----------
    operation, compiling
        What is compiled, against what.
    workers
        What looks things up. Where nothing is looked up, nothing is started.
    surveys
        Where their tasks are counted.
    """
    name, store, n = operation.called, compiling.store, 0
    if compiling.impl != "zarr":
        workers.check_store(name, store)
    with plain_errors(store.label), telling(store.label, lambda: Left(name, NOTHING_WRITTEN)), surveys.timed():
        stages, answer = operation.compile(compiling), None
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
            answer = _look_up(survey, f"survey {n}", workers, surveys)


def run_plan(
    plan: Plan, options: Options = Options(), *, dry_run: bool = False, before_commit: Check | None = None
) -> Result:
    """
    Run one plan; see `run_plans`.

    Parameters
    ----------
    plan
        What was compiled.
    options
        What runs its tasks.
    dry_run, before_commit
        As in `run_plans`.
    """
    (result,) = run_plans([plan], *history_of([plan]), options, dry_run=dry_run, before_commit=before_commit)
    return result


def history_of(plans: Sequence[Plan]) -> tuple[str, dict[str, Any]]:
    """What the history says of plans."""
    message = "; ".join(f"{one.operation}: {one.summary}" for one in plans)
    steps = [{"operation": one.operation, **one.counts, **one.remembered} for one in plans]
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
) -> list[Result]:
    """
    Run plans for one store, each compiled against what the one before it leaves: all checks first, then all writes.

    Parameters
    ----------
    plans
        What to do; at least one.
    message, metadata
        For the history.
    options
        What runs them.
    workers
        That of these options, where there is one already.
    dry_run
        Stop after the checks.
    before_commit
        Called when everything is written, and on plain Zarr before each step becomes visible; it may still refuse.
    journal
        What a run that was stopped has written, and where this one leaves the same.

    Returns
    -------
    list of Result
        One for each plan.

    Raises
    ------
    VczstoreError
        If a check finds something, the store has changed, or storage fails. Nothing is committed then; on plain
        Zarr, readers see what the plans that were finished have done.
    Interrupted
        On a keyboard interrupt.
    """
    store = plans[0].store
    with nullcontext(workers) if workers is not None else Workers(options) as found:
        execution = Execution.of(plans, options, found, before_commit, journal)
        with telling(store.label, execution.left):
            found.run(execution.checks())
            snapshot = None if dry_run else execution.write(message, metadata)
            found.close()  # here, so that of an interrupt meanwhile it is said that all is done
            return execution.results(snapshot, committed=not dry_run)


@dataclass
class Execution:
    """
    Plans that are checked and written.

    Attributes
    ----------
    plans
        The plans, all for one store.
    workers
        What runs their tasks.
    impl
        Whether they have tasks at all, and whether xarray reads and joins arrays.
    before_commit, journal
        As in `run_plans`.
    current, visible
        The plan that is being checked or written, and how many of those before it readers see.
    transaction
        What they are written in, once that has begun.
    """

    plans: Sequence[Plan]
    workers: Workers
    impl: str
    before_commit: Check | None
    journal: Journal
    visible: int = 0
    transaction: Transaction | None = None

    def __post_init__(self) -> None:
        n = len(self.plans)
        self.store, self.current = self.plans[0].store, self.plans[0]
        self.runs = [Run(f" {i}/{n}" if n > 1 else "") for i in range(1, n + 1)]
        self.steps = _steps(self.plans, self.runs)

    @classmethod
    def of(
        cls,
        plans: Sequence[Plan],
        options: Options,
        workers: Workers,
        before_commit: Check | None = None,
        journal: Journal | None = None,
    ) -> "Execution":
        """Plans that run as some options say."""
        if options.impl != "zarr":
            workers.check_store(plans[0].operation, plans[0].store)
        else:
            journal = None  # it keeps what tasks have written
        return cls(plans, workers, options.impl, before_commit, journal or Journal(None, {}))

    @property
    def has_tasks(self) -> bool:
        """Whether tasks write, and not zarr-python in this process."""
        return self.impl != "zarr"

    def on(self, store: Store) -> "Execution":
        """The same plans, which add to the same results, on another branch of their store."""
        moved = replace(self, plans=[plan.on(store) for plan in self.plans])
        moved.runs = self.runs
        moved.steps = _steps(moved.plans, moved.runs)
        return moved

    def left(self) -> Left:
        """What state the operation that is under way leaves the store in if it ends here."""
        is_done = self.visible == len(self.plans) or (self.transaction is not None and self.transaction.is_done)
        if is_done is None:
            return Left(self.current.operation, UNKNOWN, LOOK)
        return Left(self.current.operation, DONE) if is_done else _left(self.current, self.visible)

    def checks(self) -> Stages:
        """
        Tasks that check, to be run by `Workers.run`; nothing is checked before that.

        Raises
        ------
        VczstoreError
            When they are run: that of the first check that finds something.
        """
        if self.has_tasks:
            self.workers.check_location(self.current.operation, self.store)
        for plan, run in zip(self.plans, self.runs, strict=True):
            self.current = plan
            if self.impl != "cubed":  # the others copy no chunk encoded
                plan.require_lossless()
            if self.impl == "xarray":
                plan.require_regular()
            with run.timed():
                yield from self._check(plan, run)

    def _check(self, plan: Plan, run: Run) -> Stages:
        """As `checks`, of one plan."""
        found: list[tuple[int, Any]] = []
        if not self.has_tasks:
            found = [(i, first) for i, check in enumerate(plan.checks) for first in check.by_zarr()]
        elif (checks := plan.cubed_checks()) is not None:
            yield Tasks("checking", checks, run, lambda report: found.extend(report.found))
        if found:
            i, first = min(found)
            raise plan.checks[i].error(first)

    def write(self, message: str, metadata: Mapping[str, Any]) -> str | None:
        """Write all plans in one transaction, and commit it; returns the snapshot."""
        if self.is_empty:
            return self.plans[0].base if self.store.history.is_kept else None
        transaction = self.begin()
        self.workers.run(self.writes(transaction))
        return self.commit(transaction, message, metadata)

    def commit(self, transaction: Transaction, message: str, metadata: Mapping[str, Any]) -> str | None:
        """Commit what was written, unless the lock is lost; returns the snapshot."""
        if self.before_commit is not None:
            self.before_commit()
        return commit(transaction, message, metadata)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return all(plan.is_empty for plan in self.plans)

    @property
    def n_chunks(self) -> int:
        """How many chunks are written."""
        return sum(plan.encoded_chunks + plan.decoded_chunks for plan in self.plans)

    def told(self, stages: Stages) -> Stages:
        """The same stages, which turn what goes wrong into one line."""
        with telling(self.store.label, self.left):
            yield from stages

    def writes(self, transaction: Transaction) -> Stages:
        """Tasks that write all plans in a transaction that has begun, to be run by `Workers.run`."""
        self.transaction = transaction
        for number, step in enumerate(self.steps):
            self.current = step.plan
            with step.run.timed():
                yield from self._write_step(step, number, transaction)
            self.visible += transaction.shows_steps and not step.is_first

    def begin(self) -> Transaction:
        """Begin a transaction, with what a run that was stopped has written."""
        self.current = self.plans[0]
        self.store.settle()
        transaction = self.store.transaction(self.current.base)
        if self.has_tasks:
            self.workers.check_writes(self.current.operation, self.store)
        self.journal.resume(transaction)
        if any(step.is_first for step in self.steps[1 : self.journal.restored + 1]):
            # what it was going to read is not what the run that was stopped has left
            self.journal.delete()
            transaction, self.journal = self.store.transaction(self.current.base), Journal(None, {})
        return transaction

    def _write_step(self, step: "_Step", number: int, transaction: Transaction) -> Stages:
        """Tasks that write a plan: in a transaction of its own where a store on plain Zarr is replaced first."""
        if not step.is_first:
            yield from self._write(step.plan, number, step.run, transaction)
            return
        with step.plan.store.first_step(transaction, self.before_commit) as own:
            yield from self._write(step.plan.from_store(own.view()) if number else step.plan, number, step.run, own)

    def _write(self, plan: Plan, step: int, run: Run, transaction: Transaction) -> Stages:
        """
        Tasks that write all chunks of one plan, or what is missing of them; its edits are made in between.

        On plain Zarr the lock is checked before the edits, which make the chunks visible.
        """
        journal = self.journal
        if step < journal.restored:
            run.resumed_chunks = plan.encoded_chunks + plan.decoded_chunks
            return
        ids: Plan | None = None
        if journal.is_private:
            plan, ids = _without_ids(plan)
        found: list[Any] = []
        edits = ((), ()) if step == journal.restored else (plan.preparations, plan.edits)
        with transaction.step(*edits, self.before_commit) as store:
            if self.has_tasks:
                yield from self._write_chunks(plan, store, step, run, transaction, found)
            else:
                for write in plan.writes:
                    write.by_zarr(store)
            plan.require_unchanged()
        if ids is not None:
            journal.close()
            with transaction.step((), ids.edits) as store:
                for write in ids.writes:
                    write.by_zarr(store)
            run.totals["chunks"] += ids.encoded_chunks + ids.decoded_chunks
        if plan.conclude is not None and self.has_tasks:
            with transaction.step((), plan.conclude(found)):
                pass  # the edits are all there is to it

    def _write_chunks(
        self, plan: Plan, store: "ZarrStore", step: int, run: Run, transaction: Transaction, found: list[Any]
    ) -> Stages:
        """
        Tasks that write the chunks of one plan, or what is missing of them; what they have found goes to `found`.

        Raises
        ------
        StorageError
            When they have run, if they have written more or fewer chunks than planned: nothing may be committed then.
        """
        from plans.core.cubed_backend import tasks_of, without

        journal, planned = self.journal, plan.encoded_chunks + plan.decoded_chunks

        def on_report(report: "TaskReport") -> None:
            found.extend(value for _, value in report.found)
            if report.store is not None:
                transaction.collect(report.store)
            if plan.conclude is None:  # what tasks have found is not kept
                journal.record(report.task, report.chunks)

        writes = plan.cubed_writes(store, through_xarray=self.impl == "xarray")
        journal.begin(step, tasks_of(writes))
        run.resumed_chunks = journal.chunks
        try:
            if writes is not None and (left := without(writes, journal.done)) is not None:
                yield Tasks("writing", left, run, on_report, n_done=writes.num_tasks - left.num_tasks)
        finally:
            journal.save()
        if (written := run.totals["chunks"] + run.resumed_chunks) != planned:
            journal.delete()
            raise StorageError(
                f"{plan.operation}: tasks report {written:,} chunks written, {planned:,} were planned; "
                f"{_left(plan).words}"
            )

    def results(self, snapshot: str | None, *, committed: bool) -> list[Result]:
        """What was done, for each plan."""
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
            for plan, run in zip(self.plans, _summed(self.steps, self.runs), strict=True)
        ]


def commit(transaction: Transaction, message: str, metadata: Mapping[str, Any]) -> str | None:
    """Commit what was written, with what the history says of it."""
    return transaction.commit(message, {"vczstore": {**metadata, "version": version("vczstore")}})


class _Step(NamedTuple):
    """A plan to run; and whether another one of the same operation comes after it."""

    plan: Plan
    run: Run
    of: int
    is_first: bool


def _steps(plans: Sequence[Plan], runs: Sequence[Run]) -> list[_Step]:
    """Plans, and before each of them those that run first: these count by themselves."""
    result = []
    for i, (plan, run) in enumerate(zip(plans, runs, strict=True)):
        *first, last = plan.steps
        result += [_Step(one, Run(run.which, run.part), i, True) for one in first] + [_Step(last, run, i, False)]
    return result


def _summed(steps: Sequence[_Step], runs: Sequence[Run]) -> list[Run]:
    """What the runs of each plan add up to, those of the plans that run before it included."""
    for step in steps:
        if step.is_first:
            runs[step.of].include(step.run)
    return list(runs)


def run_survey(survey: Survey, store: Store, options: Options) -> list[list[Any]]:
    """
    Look something up in a store, and write nothing.

    Parameters
    ----------
    survey, store
        What to look up, and where.
    options
        What runs the tasks.

    Returns
    -------
    list of list
        What each scan has found, in any order.

    Raises
    ------
    VczstoreError
        If tasks cannot run.
    """
    with Workers(options) as workers:
        workers.check_store(survey.operation, store)
        with telling(store.label, lambda: Left(survey.operation, NOTHING_WRITTEN)):
            workers.check_location(survey.operation, store)
            return _look_up(survey, "checking", workers, Run(""))


def check_reachable(operation: str, store: Store, options: Options) -> None:
    """
    Check that tasks find a store which they read beside the one that is written or surveyed.

    Raises
    ------
    OptionError
        If they do not: absent chunks stand for the fill value, so that what they do not find would read as that.
    """
    if options.executor in executors.IN_PROCESS:
        return
    with Workers(options) as workers:
        workers.check_store(operation, store)
        workers.check_location(operation, store)


def _look_up(survey: Survey, what: str, workers: Workers, run: Run) -> list[list[Any]]:
    found: list[list[Any]] = [[] for _ in survey.scans]

    def on_report(report: "TaskReport") -> None:
        for tag, value in report.found:
            found[tag].append(value)

    if (plan := survey.cubed_plan()) is not None:
        workers.execute(Tasks(what, plan, run, on_report))
    return found


def refuse_same_place(operation: str, location: Location, sources: Sequence[Location]) -> None:
    """Raise an `IncompatibleError` if a store is among the sources that come into it."""
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
    """Say of an interrupt within that nothing was written."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(f"{operation}: interrupted; nothing was written") from error


@contextmanager
def telling(label: str, left: Callable[[], Left]) -> Iterator[None]:
    """Turn what goes wrong with a store, or a set, into one line, which says what is left of it."""
    try:
        yield
    except StorageError as error:
        if is_named(error):
            raise
        now = left()
        raise with_words(error, f"; {now.words}", before=f"{now.operation}: ") from error
    except VczstoreError:
        raise
    except executors.ExecutorOptionError as error:
        now = left()
        raise OptionError(f"{now.operation}: {error}; {now.words}") from error
    except KeyboardInterrupt as error:
        now = left()
        raise Interrupted(f"{now.operation}: interrupted; {now.words}") from error
    except Exception as error:
        now, is_storage = left(), is_of_storage(error)
        if is_storage and not now.way_out:
            now = now._replace(way_out="run it again when that is mended")
        said = reason(error) if is_storage and not isinstance(error, OSError) else executors.first_line(error)
        raise StorageError(f"{now.operation}: {label}: {said}; {now.words}") from error


def _without_ids(plan: Plan) -> tuple[Plan, Plan]:
    """A plan without what it writes of sample IDs and of what else samples have without variants, and this alone.

    The latter is written after a private journal was last saved.
    """

    def part(*, ids: bool) -> Plan:
        writes = tuple(write for write in plan.writes if _has_samples_alone(plan.after, write.name) == ids)
        return replace(
            plan,
            writes=writes,
            edits=tuple(edit for edit in plan.edits if isinstance(edit, SetItems | SetHeader) == ids),
        )

    return part(ids=False), part(ids=True)


def _has_samples_alone(vcz: Vcz, name: str) -> bool:
    """Whether an array has samples and no variants."""
    array = {**vcz.arrays, **vcz.inner}.get(name)
    names = () if array is None else dimensions(array)
    return name == SAMPLE_ID or (SAMPLES in names and VARIANTS not in names)


def _left(plan: Plan, visible: int = 0) -> Left:
    """What state the store is in when a plan did not end well, after so many plans that are visible."""
    state = plan.store.after_failure(plan.if_stopped, visible)
    return Left(plan.operation, state, "" if state == UNCHANGED else plan.way_out)
