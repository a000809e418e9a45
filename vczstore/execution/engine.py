"""The one entrance to all operations: open, lock, compile, check, write, commit, and retry after a conflict.

The only place where plans and executors meet.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import executors
from plans.core.model import Compiling, Plan, Survey
from vczstore.errors import (
    IncompatibleError,
    Interrupted,
    OptionError,
    StorageError,
    VczstoreError,
)
from vczstore.execution.checkpoint import Journal
from vczstore.execution.operations import Edit, Operation
from vczstore.execution.options import Options
from vczstore.execution.results import Result, Run, together
from vczstore.execution.retry import retried
from vczstore.execution.workers import Workers
from vczstore.stores.base import Check, Location, Store, Transaction
from vczstore.stores.locations import parse
from vczstore.stores.object_store import plain_errors
from vczstore.stores.resolve import refuse_read_only

if TYPE_CHECKING:
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
    if operation.writes:
        refuse_read_only(operation.called, operation.store)
    if isinstance(operation, Edit):
        return _edit(operation, options, dry_run=dry_run)
    with plain_errors(operation.store):
        return operation.perform(options, dry_run=dry_run)


def plan(operation: Edit, options: Options) -> Plan:
    """
    Compile an operation without running it; what it depends on is looked up in the data, in tasks.

    Raises
    ------
    OptionError
        If something follows it in the same commit, which one plan does not hold.
    VczstoreError
        If anything does not fit.
    """
    if operation.writes:
        refuse_read_only(operation.called, operation.store)
    if operation.then is not None:
        raise OptionError(f"{operation.called}: recompute goes with running the operation, not with its plan")
    compiling = _open(operation, options, None, dry_run=False)
    with Workers(options) as workers:
        return compile_plan(operation, compiling, workers, Run(""))


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
    with plain_errors(compiled.store.label), compiled.store.writer_lock() as lock:
        return run_plan(compiled, options, before_commit=lock.check)


def _edit(operation: Edit, options: Options, *, dry_run: bool) -> Result:
    """Lock, run, and run again after a concurrent commit."""
    with plain_errors(operation.store):
        operation.check(options)
        written = None if dry_run else operation.written(options)
    if written is None:
        return _attempt(operation, options, None, None, dry_run=dry_run)
    # of several who have lost a race none goes on losing to the others
    lock = written.exclusive_lock() if operation.is_exclusive else written.writer_lock()
    again = nullcontext if operation.is_exclusive else written.retry_lock
    with plain_errors(operation.store), lock as held:
        attempt = partial(_attempt, operation, options, written, held.check, dry_run=dry_run)
        result, n = retried(attempt, options.max_retries, again)
        return operation.afterwards(replace(result, retries=n), options, held)


def _attempt(operation: Edit, options: Options, written: Store | None, check: Check | None, *, dry_run: bool) -> Result:
    """Open, compile, run and commit."""
    compiling = _open(operation, options, written, dry_run=dry_run)
    surveys = Run("")
    with Workers(options) as workers:
        plans = [compile_plan(operation, compiling, workers, surveys)]
        if operation.then is not None:
            with plain_errors(operation.store):
                after = replace(compiling, opened=plans[0].after)
                plans.append(compile_plan(operation.then, after, workers, surveys))
        results = run_plans(plans, *_history(plans), options, workers=workers, dry_run=dry_run, before_commit=check)
    return together(results).with_surveys(surveys)


def _open(operation: Edit, options: Options, written: Store | None, *, dry_run: bool) -> Compiling:
    """Open what an operation is compiled against."""
    refuse_same_place(operation.called, operation.store, getattr(operation, "sources", ()))
    with plain_errors(operation.store), planning(operation.called):
        return operation.open(options, written, dry_run=dry_run)


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
    workers.check_store(name, store)
    with plain_errors(store.label), _telling(store, lambda: (name, "nothing was written")), surveys.timed():
        stages, answer = operation.compile(compiling), None
        while True:
            try:
                survey = next(stages) if answer is None else stages.send(answer)
            except StopIteration as end:
                compiled: Plan = end.value
                return compiled
            if n == 0:
                workers.check_location(name, store)
            n += 1
            answer = _look_up(survey, f"survey {n}", workers, surveys)


def run_plan(plan: Plan, options: Options = Options(), *, before_commit: Check | None = None) -> Result:
    """
    Run one plan; see `run_plans`.

    Parameters
    ----------
    plan
        What was compiled.
    options
        What runs its tasks.
    before_commit
        As in `run_plans`.
    """
    (result,) = run_plans([plan], *_history([plan]), options, before_commit=before_commit)
    return result


def _history(plans: Sequence[Plan]) -> tuple[str, dict[str, Any]]:
    """What the history says of plans."""
    message = "; ".join(f"{one.operation}: {one.summary}" for one in plans)
    steps = [{"operation": one.operation, **one.counts} for one in plans]
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
    operation, store = plans[0].operation, plans[0].store
    with nullcontext(workers) if workers is not None else Workers(options) as found:
        if options.impl != "zarr":
            found.check_store(operation, store)
        return _run_plans(
            plans,
            message,
            metadata,
            None if options.impl == "zarr" else found,
            through_xarray=options.impl == "xarray",
            dry_run=dry_run,
            before_commit=before_commit,
            journal=journal,
        )


def _run_plans(
    plans: Sequence[Plan],
    message: str,
    metadata: Mapping[str, Any],
    workers: Workers | None,
    *,
    through_xarray: bool,
    dry_run: bool,
    before_commit: Check | None,
    journal: Journal | None = None,
) -> list[Result]:
    store, journal = plans[0].store, journal or Journal(None, {})
    plan, snapshot, visible = plans[0], None, 0
    transaction: Transaction | None = None
    runs = [Run(f" {i}/{len(plans)}" if len(plans) > 1 else "") for i in range(1, len(plans) + 1)]
    steps = _steps(plans, runs)

    def state() -> tuple[str, str]:
        is_done = visible == len(plans) or (transaction is not None and transaction.is_done)
        return plan.operation, "it was done already" if is_done else _state(plan, visible)

    with _telling(store, state):
        if workers is not None:
            workers.check_location(plan.operation, store)
        for plan, run in zip(plans, runs, strict=True):
            if workers is None or through_xarray:  # these copy no chunk encoded
                plan.require_lossless()
            with run.timed():
                _check(plan, workers, run)
        if not dry_run and all(plan.is_empty for plan in plans):
            snapshot = plans[0].base if store.history.is_kept else None
        elif not dry_run:
            plan = plans[0]
            store.settle()
            transaction = store.transaction(plan.base)
            if workers is not None:
                workers.check_writes(plan.operation, store)
            journal.resume(transaction)
            if any(one.is_first for one in steps[1 : journal.restored + 1]):
                # what it was going to read is not what the run that was stopped has left
                journal.delete()
                transaction, journal = store.transaction(plan.base), Journal(None, {})
            for number, one in enumerate(steps):
                plan, run = one.plan, one.run
                with run.timed():
                    _write_step(
                        one, number, transaction, workers, journal, through_xarray=through_xarray, check=before_commit
                    )
                visible += transaction.shows_steps and not one.is_first
            if before_commit is not None:
                before_commit()
            snapshot = transaction.commit(message, {"vczstore": {**metadata, "version": version("vczstore")}})
        if workers is not None:
            workers.close()  # here, so that of an interrupt meanwhile it is said that all is done
    return [
        Result(
            operation=plan.operation,
            store=store.label,
            committed=not dry_run,
            snapshot=snapshot,
            counts=plan.counts,
            seconds=run.seconds,
            plan=plan,
            timeline=run.timeline,
            resumed_chunks=run.resumed_chunks,
            **cast("dict[str, Any]", {} if workers is None else run.totals),
        )
        for plan, run in zip(plans, _summed(steps, runs), strict=True)
    ]


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
        result += [_Step(one, Run(run.which), i, True) for one in first] + [_Step(last, run, i, False)]
    return result


def _summed(steps: Sequence[_Step], runs: Sequence[Run]) -> list[Run]:
    """What the runs of each plan add up to, those of the plans that run before it included."""
    for step in steps:
        if step.is_first:
            runs[step.of].include(step.run)
    return list(runs)


def _write_step(
    step: _Step,
    number: int,
    transaction: Transaction,
    workers: Workers | None,
    journal: Journal,
    *,
    through_xarray: bool,
    check: Check | None,
) -> None:
    """Write what a plan says: in a transaction of its own where a store on plain Zarr is replaced first."""
    plan, place = step.plan, step.plan.store
    write = partial(_write, workers=workers, run=step.run, journal=journal, through_xarray=through_xarray, check=check)
    if not step.is_first:
        write(plan, number, transaction)
    else:
        with place.first_step(transaction, check) as own:
            write(plan.from_store(own.found()) if number else plan, number, own)


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
        with _telling(store, lambda: (survey.operation, "nothing was written")):
            workers.check_location(survey.operation, store)
            return _look_up(survey, "checking", workers, Run(""))


def _look_up(survey: Survey, what: str, workers: Workers, run: Run) -> list[list[Any]]:
    found: list[list[Any]] = [[] for _ in survey.scans]

    def on_report(report: "TaskReport") -> None:
        for tag, value in report.found:
            found[tag].append(value)

    workers.execute(what, survey.cubed_plan(), run, on_report)
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
def _telling(store: Store, state: Callable[[], tuple[str, str]]) -> Iterator[None]:
    """Turn what goes wrong into one line; `state` says in which operation, and what state the store is in."""
    try:
        yield
    except VczstoreError:
        raise
    except executors.ExecutorOptionError as error:
        operation, left = state()
        raise OptionError(f"{operation}: {error}; {left}") from error
    except KeyboardInterrupt as error:
        operation, left = state()
        raise Interrupted(f"{operation}: interrupted; {left}") from error
    except Exception as error:
        operation, left = state()
        reason = executors.first_line(error)
        raise StorageError(f"{operation}: {store.label}: {reason}; {left}") from error


def _check(plan: Plan, workers: Workers | None, run: Run) -> None:
    """Raise the error of the first check that finds something."""
    found: list[tuple[int, Any]] = []
    if workers is None:
        found = [(i, first) for i, check in enumerate(plan.checks) for first in check.by_zarr()]
    else:
        workers.execute("checking", plan.cubed_checks(), run, lambda report: found.extend(report.found))
    if found:
        i, first = min(found)
        raise plan.checks[i].error(first)


def _write(
    plan: Plan,
    step: int,
    transaction: Transaction,
    workers: Workers | None,
    run: Run,
    journal: Journal,
    *,
    through_xarray: bool,
    check: Check | None,
) -> None:
    """
    Write all chunks of one plan, and its edits, or what is missing of them.

    `check` may still refuse before the edits, which on plain Zarr make the chunks visible.

    Raises
    ------
    StorageError
        If the tasks have written more or fewer chunks than planned: nothing may be committed then.
    """
    planned = plan.encoded_chunks + plan.decoded_chunks
    if step < journal.restored:
        run.resumed_chunks = planned
        return
    found: list[Any] = []

    def on_report(report: "TaskReport") -> None:
        found.extend(value for _, value in report.found)
        if report.store is not None:
            transaction.collect(report.store)
        if plan.conclude is None:  # what tasks have found is not kept
            journal.record(report.task, report.chunks)

    edits = ((), ()) if step == journal.restored else (plan.preparations, plan.edits)
    with transaction.step(*edits, check) as store:
        if workers is None:
            for write in plan.writes:
                write.by_zarr(store)
            return
        journal.begin(step)
        run.resumed_chunks = journal.chunks
        writes = plan.cubed_writes(store, through_xarray=through_xarray)
        try:
            workers.execute("writing", writes, run, on_report, done=journal.done)
        finally:
            journal.save()
        if run.totals["chunks"] + run.resumed_chunks != planned:
            journal.delete()
            raise StorageError(
                f"{plan.operation}: tasks report {run.totals['chunks'] + run.resumed_chunks:,} chunks written, "
                f"{planned:,} were planned; {_state(plan)}"
            )
    if plan.conclude is not None:
        with transaction.step((), plan.conclude(found)):
            pass  # the edits are all there is to it


def _state(plan: Plan, visible: int = 0) -> str:
    """What state the store is in when a plan did not end well, after so many plans that are visible."""
    return plan.store.after_failure(plan.if_stopped, visible)
