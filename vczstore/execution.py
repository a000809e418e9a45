"""Running plans: check, begin a transaction, write, commit. The only place where plans and executors meet."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import executors
from plans import Plan
from vczstore.errors import MissingDependencyError, OptionError, StorageError, VczstoreError
from vczstore.stores import Transaction, local_path

if TYPE_CHECKING:
    from cubed.core.plan import FinalizedPlan
    from cubed.runtime.types import DagExecutor

    from plans.chunks import TaskReport
    from vczstore.purging import Purged

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
        Chunks written or cleared, bytes copied as they were, and bytes encoded anew (counted before encoding).
    peak_mem
        The most memory that the process of a task has used, in bytes.
    timeline
        When each task ran.
    purged
        What a purge that followed has done; None without one.
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

    def as_dict(self) -> dict[str, Any]:
        """Everything but the plan and the timeline, for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("plan", "timeline", "purged")}
        purged = {} if self.purged is None else {"purged": self.purged.as_dict()}
        return {**values, "counts": dict(self.counts), **purged}


def run_plan(plan: Plan, **options: Any) -> Result:
    """Run one plan; see `run_plans`."""
    metadata = {"operation": plan.operation, **plan.counts}
    (result,) = run_plans([plan], f"{plan.operation}: {plan.summary}", metadata, **options)
    return result


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
        Called when everything is written, and may still refuse.

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
    if executor not in executors.IN_PROCESS and impl != "zarr" and not store.pickles:
        raise OptionError(
            f"{plans[0].operation}: {store.label} is in this process's memory, which other processes cannot reach; "
            "use the executor threads"
        )
    given = {} if max_workers is None else {"max_workers": max_workers}
    engine = None if impl == "zarr" else _Engine(executor, {**(executor_options or {}), **given}, progress)
    plan, snapshot, visible = plans[0], None, 0
    runs = [_Run(f" {i}/{len(plans)}" if len(plans) > 1 else "") for i in range(1, len(plans) + 1)]
    try:
        if engine is not None:
            engine.check_place(plans[0])
        for plan, run in zip(plans, runs, strict=True):
            with run.timed():
                _check(plan, engine, run)
        if not dry_run:
            plan = plans[0]
            transaction = store.transaction(plan.base)
            for plan, run in zip(plans, runs, strict=True):
                with run.timed():
                    _write(plan, transaction, engine, run, through_xarray=impl == "xarray")
                visible += not store.atomic
            if before_commit is not None:
                before_commit()
            snapshot = transaction.commit(message, {"vczstore": {**metadata, "version": version("vczstore")}})
    except VczstoreError:
        raise
    except executors.ExecutorOptionError as error:
        raise OptionError(f"{plan.operation}: {error}; {_state(plan, visible)}") from error
    except KeyboardInterrupt as error:
        raise Interrupted(f"{plan.operation}: interrupted; {_state(plan, visible)}") from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StorageError(f"{plan.operation}: {store.label}: {reason}; {_state(plan, visible)}") from error
    finally:
        if engine is not None:
            engine.close()
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
            **cast("dict[str, Any]", {} if engine is None else run.totals),
        )
        for plan, run in zip(plans, runs, strict=True)
    ]


@dataclass
class _Run:
    """What the tasks of one plan add up to; `which` tells it from others in the progress that is shown."""

    which: str
    seconds: float = 0.0
    totals: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("tasks", "chunks", "encoded_bytes", "decoded_bytes", "peak_mem"), 0)
    )
    timeline: list[TaskTime] = field(default_factory=list)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time that passes within."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started

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


def _write(plan: Plan, transaction: Transaction, engine: "_Engine | None", run: _Run, *, through_xarray: bool) -> None:
    """
    Write all chunks of one plan, and its edits.

    Raises
    ------
    StorageError
        If the tasks have written more or fewer chunks than planned: nothing may be committed then.
    """

    def on_report(report: "TaskReport") -> None:
        if report.store is not None:
            transaction.collect(report.store)

    with transaction.step(plan.preparations, plan.edits) as store:
        if engine is None:
            for write in plan.writes:
                write.by_zarr(store)
            return
        engine.execute("writing", plan.cubed_writes(store, through_xarray=through_xarray), run, on_report)
        planned = plan.encoded_chunks + plan.decoded_chunks
        if run.totals["chunks"] != planned:
            raise StorageError(
                f"{plan.operation}: tasks report {run.totals['chunks']:,} chunks written, {planned:,} were planned; "
                f"{_state(plan)}"
            )


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
    try:
        return executors.create(name, **options)
    except executors.ExecutorOptionError as error:
        raise OptionError(str(error)) from error
    except executors.MissingEngineError as error:
        raise MissingDependencyError(str(error)) from error


def close_executor(executor: "DagExecutor") -> None:
    """End workers that wait for more."""
    if hasattr(executor, "close"):
        executor.close()


class _Engine:
    """Cubed on an executor."""

    def __init__(self, executor: str, options: Mapping[str, Any], progress: Progress | None) -> None:
        self.executor = create_executor(executor, options)
        self.progress = progress

    def close(self) -> None:
        """End workers that wait for more."""
        close_executor(self.executor)

    def check_place(self, plan: Plan) -> None:
        """Refuse a store that the workers do not find: what they wrote would be lost without a word."""
        label = plan.store.label
        if getattr(self.executor, "remote", False) and local_path(label) is not None:
            # an object that was handed in has no URL to tell by
            where = "is not named by a URL" if label.startswith("<") else "is on this machine"
            raise OptionError(
                f"{plan.operation}: {label} {where}, so that the workers of {self.executor.name} may not find it; "
                "use the URL of an object store, or the executor processes"
            )

    def execute(
        self, what: str, plan: "FinalizedPlan | None", run: _Run, on_report: Callable[["TaskReport"], None]
    ) -> None:
        """Run one Cubed plan, if there is anything to do."""
        if plan is None:
            return
        from plans import chunks

        before = run.totals["tasks"]

        def on_task(report: "TaskReport") -> None:
            on_report(report)
            run.add(what, report)
            if self.progress is not None:
                self.progress(f"{what}{run.which}", run.totals["tasks"] - before, plan.num_tasks)

        chunks.execute(plan, self.executor, on_task)


def _state(plan: Plan, visible: int = 0) -> str:
    """What state the store is in when a plan did not end well, after so many plans that are visible."""
    if plan.store.atomic:
        return "nothing was committed, the store is as it was"
    before = f"the {visible} steps before it are done; " if visible > 1 else "the step before it is done; " * visible
    if plan.operation in ("remove", "update"):
        done = "be missing" if plan.operation == "remove" else "be new"
        return f"{before}some values of the samples may {done} already; run the same command again to complete it"
    return f"{before}readers see the old samples; run the same command again to complete it"
