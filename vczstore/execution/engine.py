"""Running plans: check, begin a transaction, write, commit. The only place where plans and executors meet."""

import random
import secrets
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import partial
from importlib.metadata import version
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import executors
from plans.core.model import AFTERWARDS, Plan, Survey, in_words
from vczstore.errors import (
    ConflictError,
    MissingDependencyError,
    OptionError,
    StorageError,
    UnsuitableError,
    VczstoreError,
    missing_extra,
)
from vczstore.execution.checkpoint import Journal
from vczstore.stores.base import Store, Transaction
from vczstore.stores.folder_swap import ReplacedStore, settle_before
from vczstore.stores.locations import local_path
from vczstore.stores.plain import PlainStore, is_same_everywhere, put
from vczstore.vcz.arrays import NONCE, names
from vczstore.vcz.model import SAMPLE_ID, Vcz

if TYPE_CHECKING:
    from cubed.core.plan import FinalizedPlan
    from cubed.runtime.types import DagExecutor
    from zarr.abc.store import Store as ZarrStore

    from plans.core.cubed_backend import TaskReport
    from plans.maintenance.purge import Purged

WORTH_A_SECOND = 800_000_000
"""Decoded bytes that are worth a second of beginning a task: to re-encode them takes ten, to copy them two."""

REPLANS = 3
"""How often an operation is retried after a concurrent commit, by default."""

PAUSE = 0.5
"""Up to how many seconds pass before a retry, more each time: others may be retrying too."""

type Progress = Callable[[str, int, int], None]
"""Told what is being done, how many tasks of it have ended, and how many there are."""


class Interrupted(KeyboardInterrupt):
    """The user has stopped an operation. The message says what state the store is in."""


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
    replans
        How often it was planned again after a concurrent commit.
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
    purged: "Purged | None" = None
    replans: int = 0
    resumed_chunks: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Everything but the plan and the timeline, for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("plan", "timeline", "purged")}
        purged = {} if self.purged is None else {"purged": self.purged.as_dict()}
        notes = {"notes": self.notes} if self.notes else {}
        return {**values, "counts": dict(self.counts), **notes, **purged}

    @property
    def summary(self) -> str:
        """What was done in words, such as "2 sources, 1 sample added"."""
        return in_words(self.counts)

    @property
    def notes(self) -> dict[str, str]:
        """What people are told of the store as it is now, beside the numbers."""
        return {what: text for what, text in self.plan.notes.items() if what == AFTERWARDS}


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


def replanned[T](
    attempt: Callable[[], T], replans: int, turn: Callable[[], AbstractContextManager[Any]]
) -> tuple[T, int]:
    """
    Plan and run; where another writer has changed the store meanwhile, do it again from what the store is now.

    Nothing is rebased onto the other's commit: what was planned against another state may be wrong in this one.

    Parameters
    ----------
    attempt
        Opens the store, plans and runs.
    replans
        How often it is done again.
    turn
        What is held while it is done again, so that several who have lost do not go on losing to each other.

    Returns
    -------
    result
        Of the attempt that succeeded.
    int
        How often it was done again.

    Raises
    ------
    ConflictError
        If the last attempt has lost, too.
    """
    for n in count():
        try:
            with turn() if n else nullcontext():
                return attempt(), n
        except ConflictError as error:
            if n == replans:
                raise ConflictError(f"{error} (retried {n} times)" if n else str(error)) from error
        time.sleep(random.uniform(0, PAUSE * 2**n))
    raise AssertionError("unreachable")


def run_plan(plan: Plan, **options: Any) -> Result:
    """Run one plan; see `run_plans`."""
    (result,) = run_plans([plan], *_history(plan), **options)
    return result


def _history(plan: Plan) -> tuple[str, dict[str, Any]]:
    """What the history says of one plan."""
    return f"{plan.operation}: {plan.summary}", {"operation": plan.operation, **plan.counts}


def run_plans(
    plans: Sequence[Plan],
    message: str,
    metadata: Mapping[str, Any],
    *,
    impl: str = "cubed",
    executor: str = "threads",
    executor_options: Mapping[str, Any] | None = None,
    max_workers: int | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
    before_commit: Callable[[], None] | None = None,
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
    impl, executor, max_workers, progress
        As in `vczstore.api.Options`.
    executor_options
        Of this executor.
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
    with _engine(plans[0].operation, store, impl, executor, executor_options, max_workers, progress) as engine:
        return _run_plans(
            plans,
            message,
            metadata,
            engine,
            through_xarray=impl == "xarray",
            dry_run=dry_run,
            before_commit=before_commit,
            journal=journal,
        )


def _run_plans(
    plans: Sequence[Plan],
    message: str,
    metadata: Mapping[str, Any],
    engine: "_Engine | None",
    *,
    through_xarray: bool,
    dry_run: bool,
    before_commit: Callable[[], None] | None,
    journal: Journal | None = None,
) -> list[Result]:
    store, journal = plans[0].store, journal or Journal(None, {})
    plan, snapshot, visible = plans[0], None, 0
    transaction: Transaction | None = None
    runs = [_Run(f" {i}/{len(plans)}" if len(plans) > 1 else "") for i in range(1, len(plans) + 1)]
    steps = _steps(plans, runs)

    def state() -> tuple[str, str]:
        is_done = visible == len(plans) or (transaction is not None and transaction.is_done)
        return plan.operation, "it was done already" if is_done else _state(plan, visible)

    with _telling(store, state):
        if engine is not None:
            engine.check_place(plan.operation, store)
        for plan, run in zip(plans, runs, strict=True):
            if engine is None or through_xarray:  # these copy no chunk encoded
                plan.require_lossless()
            with run.timed():
                _check(plan, engine, run)
        if not dry_run and all(plan.is_empty for plan in plans):
            snapshot = plans[0].base if store.backend == "icechunk" else None
        elif not dry_run:
            plan = plans[0]
            _settle(store)
            transaction = store.transaction(plan.base)
            if engine is not None:
                engine.check_writes(plan.operation, store)
            journal.resume(transaction)
            if any(one.is_first for one in steps[1 : journal.restored + 1]):
                # what it was going to read is not what the run that was stopped has left
                journal.delete()
                transaction, journal = store.transaction(plan.base), Journal(None, {})
            for number, one in enumerate(steps):
                plan, run = one.plan, one.run
                with run.timed():
                    _write_step(
                        one, number, transaction, engine, journal, through_xarray=through_xarray, check=before_commit
                    )
                visible += not (store.atomic or one.is_first)
            if before_commit is not None:
                before_commit()
            snapshot = transaction.commit(message, {"vczstore": {**metadata, "version": version("vczstore")}})
        if engine is not None:
            engine.close()  # here, so that of an interrupt meanwhile it is said that all is done
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
            **cast("dict[str, Any]", {} if engine is None else run.totals),
        )
        for plan, run in zip(plans, _summed(steps, runs), strict=True)
    ]


class _Step(NamedTuple):
    """A plan to run; and whether another one of the same operation comes after it."""

    plan: Plan
    run: "_Run"
    of: int
    is_first: bool


def _steps(plans: Sequence[Plan], runs: Sequence["_Run"]) -> list[_Step]:
    """Plans, and before each of them those that run first: these count by themselves."""
    result = []
    for i, (plan, run) in enumerate(zip(plans, runs, strict=True)):
        *first, last = plan.steps
        result += [_Step(one, _Run(run.which), i, True) for one in first] + [_Step(last, run, i, False)]
    return result


def _summed(steps: Sequence[_Step], runs: Sequence["_Run"]) -> list["_Run"]:
    """What the runs of each plan add up to, those of the plans that run before it included."""
    for step in steps:
        if step.is_first:
            runs[step.of].include(step.run)
    return list(runs)


def _write_step(
    step: _Step,
    number: int,
    transaction: Transaction,
    engine: "_Engine | None",
    journal: Journal,
    *,
    through_xarray: bool,
    check: Callable[[], None] | None,
) -> None:
    """Write what a plan says: in a transaction of its own where a store on plain Zarr is replaced first."""
    plan, place = step.plan, step.plan.store
    write = partial(_write, engine=engine, run=step.run, journal=journal, through_xarray=through_xarray, check=check)
    if not step.is_first:
        write(plan, number, transaction)
    elif isinstance(place, ReplacedStore):
        with place.settled():
            own = place.transaction(place.open().state)
            write(plan, number, own)
            if check is not None:
                check()
            own.commit("", {})
    else:
        write(plan.from_store(transaction.found()) if number else plan, number, transaction)


def run_stages(
    stages: Generator[Survey, list[list[Any]], Plan],
    operation: str,
    store: Store,
    *,
    impl: str = "cubed",
    executor: str = "threads",
    executor_options: Mapping[str, Any] | None = None,
    max_workers: int | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
    before_commit: Callable[[], None] | None = None,
) -> Result:
    """
    Run a plan that is compiled in stages, with surveys of the data in between.

    Parameters
    ----------
    stages
        What yields surveys, is sent what they have found, and returns the plan.
    operation, store
        What is being planned, and for which store.
    impl, executor, executor_options, max_workers, progress, dry_run, before_commit
        As in `run_plans`; surveys are Cubed's in any case.

    Returns
    -------
    Result
        With the tasks of the surveys.
    """
    with _engine(operation, store, "cubed", executor, executor_options, max_workers, progress) as engine:
        assert engine is not None
        run = _Run("")
        plan = _compile(stages, operation, store, engine, run)
        (result,) = _run_plans(
            [plan],
            *_history(plan),
            None if impl == "zarr" else engine,
            through_xarray=impl == "xarray",
            dry_run=dry_run,
            before_commit=before_commit,
        )
    if impl == "zarr":
        return result
    return replace(
        result,
        seconds=result.seconds + run.seconds,
        tasks=(result.tasks or 0) + run.totals["tasks"],
        peak_mem=max(result.peak_mem or 0, run.totals["peak_mem"]),
        timeline=[*run.timeline, *result.timeline],
    )


def compile_stages(
    stages: Generator[Survey, list[list[Any]], Plan],
    operation: str,
    store: Store,
    *,
    executor: str = "threads",
    executor_options: Mapping[str, Any] | None = None,
    max_workers: int | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Compile a plan in stages without running it; see `run_stages`. Where nothing is looked up, nothing is started."""
    with _telling(store, lambda: (operation, "nothing was written")):
        try:
            survey = next(stages)
        except StopIteration as end:
            plan: Plan = end.value
            return plan
    with _engine(operation, store, "cubed", executor, executor_options, max_workers, progress) as engine:
        assert engine is not None
        return _compile(stages, operation, store, engine, _Run(""), survey)


def run_survey(
    survey: Survey,
    store: Store,
    *,
    executor: str = "threads",
    executor_options: Mapping[str, Any] | None = None,
    max_workers: int | None = None,
    progress: Progress | None = None,
) -> list[list[Any]]:
    """
    Look something up in a store, and write nothing.

    Parameters
    ----------
    survey, store
        What to look up, and where.
    executor, executor_options, max_workers, progress
        As in `run_plans`.

    Returns
    -------
    list of list
        What each scan has found, in any order.

    Raises
    ------
    VczstoreError
        If tasks cannot run.
    """
    with _engine(survey.operation, store, "cubed", executor, executor_options, max_workers, progress) as engine:
        assert engine is not None
        with _telling(store, lambda: (survey.operation, "nothing was written")):
            engine.check_place(survey.operation, store)
            return _look_up(survey, "checking", engine, _Run(""))


def _look_up(survey: Survey, what: str, engine: "_Engine", run: "_Run") -> list[list[Any]]:
    found: list[list[Any]] = [[] for _ in survey.scans]

    def on_report(report: "TaskReport") -> None:
        for tag, value in report.found:
            found[tag].append(value)

    engine.execute(what, survey.cubed_plan(), run, on_report)
    return found


def _compile(
    stages: Generator[Survey, list[list[Any]], Plan],
    operation: str,
    store: Store,
    engine: "_Engine",
    run: "_Run",
    survey: Survey | None = None,
) -> Plan:
    """Answer one survey after the other, of which the first may be at hand."""
    answer: list[list[Any]] | None = None
    n_surveys = 0
    with _telling(store, lambda: (operation, "nothing was written")), run.timed():
        engine.check_place(operation, store)
        while True:
            try:
                if survey is None or answer is not None:
                    survey = next(stages) if answer is None else stages.send(answer)
            except StopIteration as end:
                plan: Plan = end.value
                return plan
            n_surveys += 1
            answer = _look_up(survey, f"survey {n_surveys}", engine, run)


@contextmanager
def _engine(
    operation: str,
    store: Store,
    impl: str,
    executor: str,
    options: Mapping[str, Any] | None,
    max_workers: int | None,
    progress: Progress | None,
) -> "Iterator[_Engine | None]":
    """What runs Cubed plans on a store, None if zarr-python alone does without; its workers end with it."""
    if impl == "zarr":
        yield None
        return
    if executor not in executors.IN_PROCESS and not store.pickles:
        raise OptionError(
            f"{operation}: {store.label} is in this process's memory, which other processes cannot reach; "
            "use the executor threads"
        )
    given = {} if max_workers is None else {"max_workers": max_workers}
    engine = _Engine(executor, {**(options or {}), **given}, progress)
    try:
        yield engine
    finally:
        engine.close()


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


@dataclass
class _Run:
    """What the tasks of one plan add up to; `which` tells it from others in the progress that is shown."""

    which: str
    seconds: float = 0.0
    totals: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("tasks", "chunks", "encoded_bytes", "decoded_bytes", "peak_mem"), 0)
    )
    timeline: list[TaskTime] = field(default_factory=list)
    resumed_chunks: int = 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time that passes within."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started

    def include(self, other: "_Run") -> None:
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


def _check(plan: Plan, engine: "_Engine | None", run: _Run) -> None:
    """Raise the error of the first check that finds something."""
    found: list[tuple[int, Any]] = []
    if engine is None:
        found = [(i, first) for i, check in enumerate(plan.checks) for first in check.by_zarr()]
    else:
        engine.execute("checking", plan.cubed_checks(), run, lambda report: found.extend(report.found))
    if found:
        i, first = min(found)
        raise plan.checks[i].error(first)


def _write(
    plan: Plan,
    step: int,
    transaction: Transaction,
    engine: "_Engine | None",
    run: _Run,
    journal: Journal,
    *,
    through_xarray: bool,
    check: Callable[[], None] | None,
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
    with transaction.step(*edits) as store:
        if engine is None:
            for write in plan.writes:
                write.by_zarr(store)
            _before_edits(plan, check)
            return
        journal.begin(step)
        run.resumed_chunks = journal.chunks
        writes = plan.cubed_writes(store, through_xarray=through_xarray)
        try:
            engine.execute("writing", writes, run, on_report, done=journal.done)
        finally:
            journal.save()
        if run.totals["chunks"] + run.resumed_chunks != planned:
            journal.delete()
            raise StorageError(
                f"{plan.operation}: tasks report {run.totals['chunks'] + run.resumed_chunks:,} chunks written, "
                f"{planned:,} were planned; {_state(plan)}"
            )
        _before_edits(plan, check)
    if plan.conclude is not None:
        with transaction.step((), plan.conclude(found)):
            pass  # the edits are all there is to it


def _settle(store: Store) -> None:
    """Let nothing of a replacement that was stopped stay beside a store."""
    if isinstance(store, PlainStore) and not store.atomic:
        settle_before(store)


def _before_edits(plan: Plan, check: Callable[[], None] | None) -> None:
    if check is not None and not plan.store.atomic:
        check()


def create_executor(name: str, options: Mapping[str, Any]) -> "DagExecutor":
    """
    Make an executor.

    Raises
    ------
    OptionError
        If there is no such executor, or no such option.
    MissingDependencyError
        If its library is not installed.
    """
    with _plain_errors():
        return executors.create(name, **options)


def task_bytes(executor: str, options: Mapping[str, Any]) -> int:
    """
    How many decoded bytes make a task worth beginning on an executor, as in `plans.core.memory.Memory`; nothing is
    started.

    Raises
    ------
    OptionError
        If the options of the executor cannot be read.
    MissingDependencyError
        If its library is not installed, and is needed to read them.
    """
    with _plain_errors():
        return round(executors.start_seconds(executor, **options) * WORTH_A_SECOND)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors of executors, in words of ours."""
    try:
        yield
    except executors.ExecutorOptionError as error:
        raise OptionError(str(error)) from error
    except executors.MissingEngineError as error:
        raise (missing_extra(error, error.extra) if error.extra else MissingDependencyError(str(error))) from error


_KNOWN = ("zarr.json", ".zgroup", ".zattrs", f"{SAMPLE_ID}/zarr.json", f"{SAMPLE_ID}/.zarray")
"""What tells one store from another, and every store has some of."""


def _pickled(operation: str, label: str, zarr_store: "ZarrStore") -> bytes:
    from plans.core import reach

    try:
        return reach.pickled(zarr_store)
    except Exception as error:  # whatever a store of the user's raises there
        raise UnsuitableError(
            f"{operation}: {label} cannot be sent to other processes ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); use the executor threads, or name it by a path or URL"
        ) from error


def refuse_unreachable(
    sources: Sequence[Vcz], executor: str, executor_options: Mapping[str, Any] | None, max_workers: int | None
) -> None:
    """Raise an `OptionError` for sources that the tasks of an executor do not read as the driver does."""
    doubtful = [source for source in sources if not is_same_everywhere(source.store)]
    if executor in executors.IN_PROCESS or not doubtful:
        return
    given = {} if max_workers is None else {"max_workers": max_workers}
    engine = _Engine(executor, {**(executor_options or {}), **given}, None)
    try:
        for source in doubtful:
            engine.check_reads("sources", source.label, source.store)
    finally:
        engine.close()


def close_executor(executor: "DagExecutor") -> None:
    """End workers that wait for more."""
    if hasattr(executor, "close"):
        executor.close()


class _Engine:
    """Cubed on an executor."""

    def __init__(self, executor: str, options: Mapping[str, Any], progress: Progress | None) -> None:
        self.name = executor
        self.executor = create_executor(executor, options)
        self.progress = progress

    def close(self) -> None:
        """End workers that wait for more."""
        close_executor(self.executor)

    def check_place(self, operation: str, store: Store) -> None:
        """Refuse a store that the workers do not find: what they wrote would be silently lost."""
        label = store.label
        if getattr(self.executor, "remote", False) and local_path(label) is not None:
            # an object that was handed in has no URL to tell by
            where = "is not named by a URL" if label.startswith("<") else "is on this machine"
            raise OptionError(
                f"{operation}: {label} {where}, so that the workers of {self.executor.name} may not find it; "
                "use the URL of an object store, or the executor processes"
            )
        if isinstance(store, PlainStore):
            self.check_reads(operation, label, store.zarr_store)

    def check_reads(self, operation: str, label: str, zarr_store: "ZarrStore") -> None:
        """Refuse a store, or a source, of which a first task does not read what the driver does."""
        if self.name in executors.IN_PROCESS or is_same_everywhere(zarr_store):
            return
        from plans.core import reach

        self._compare(operation, label, _pickled(operation, label, zarr_store), reach.read(zarr_store, _KNOWN), _KNOWN)

    def check_writes(self, operation: str, store: Store) -> None:
        """Refuse a store of which tasks have a copy: what is written once it is pickled a first task has to see."""
        if (
            self.name in executors.IN_PROCESS
            or not isinstance(store, PlainStore)
            or is_same_everywhere(store.zarr_store)
        ):
            return
        key, value = f"{SAMPLE_ID}/{NONCE}{secrets.token_hex(8)}", secrets.token_bytes(16)
        sent, there = _pickled(operation, store.label, store.zarr_store), store.zarr_store.with_read_only(False)
        for name in names(there, SAMPLE_ID):  # the lock of the store is held, so no other run needs them
            if name.startswith(NONCE):
                put(there, f"{SAMPLE_ID}/{name}", None)
        try:
            put(there, key, value)
            self._compare(operation, store.label, sent, [value], (key,))
        finally:
            put(there, key, None)

    def _compare(
        self, operation: str, label: str, sent: bytes, expected: list[bytes | None], keys: tuple[str, ...]
    ) -> None:
        from plans.core import cubed_backend as chunks
        from plans.core import reach

        found: list[Any] = []
        looking = reach.looking(sent, keys)
        assert looking is not None
        chunks.execute(looking, self.executor, lambda report: found.extend(value for _, value in report.found))
        if found != [expected]:
            why = f" ({found[0].splitlines()[0]})" if found and isinstance(found[0], str) else ""
            raise UnsuitableError(
                f"{operation}: {label}: the tasks of the executor {self.name} reach another store or a copy, not this "
                f"one{why}; nothing was written; use the executor threads, or name it by a path or URL"
            )

    def execute(
        self,
        what: str,
        plan: "FinalizedPlan | None",
        run: _Run,
        on_report: Callable[["TaskReport"], None],
        *,
        done: Mapping[str, Collection[tuple[int, ...]]] | None = None,
    ) -> None:
        """Run one Cubed plan, if there is anything to do, without the tasks that are done."""
        if plan is None:
            return
        from plans.core import cubed_backend as chunks

        left = chunks.without(plan, done) if done else plan
        if left is None:
            return
        before, n_done = run.totals["tasks"], plan.num_tasks - left.num_tasks

        def on_task(report: "TaskReport") -> None:
            on_report(report)
            run.add(what, report)
            if self.progress is not None:
                self.progress(f"{what}{run.which}", n_done + run.totals["tasks"] - before, plan.num_tasks)

        chunks.execute(left, self.executor, on_task)


def _state(plan: Plan, visible: int = 0) -> str:
    """What state the store is in when a plan did not end well, after so many plans that are visible."""
    if plan.store.atomic:
        return "nothing was committed, the store is as it was"
    before = f"the {visible} steps before it are done; " if visible > 1 else "the step before it is done; " * visible
    return f"{before}{plan.if_stopped}"
