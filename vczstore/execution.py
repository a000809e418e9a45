"""Running a plan: check, begin a transaction, write, commit. The only place where plans and executors meet."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import executors
from plans import Plan
from vczstore.errors import OptionError, StorageError, VczstoreError
from vczstore.stores import Transaction

if TYPE_CHECKING:
    from cubed.core.plan import FinalizedPlan

    from plans.chunks import TaskReport

type Progress = Callable[[str, int, int], None]
"""Told what is being done, how many tasks of it have ended, and how many there are."""


class Interrupted(KeyboardInterrupt):
    """The user has stopped an operation. The message says what state the store is in."""


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

    def as_dict(self) -> dict[str, Any]:
        """Everything but the plan, for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "plan"}
        return {**values, "counts": dict(self.counts)}


def run_plan(
    plan: Plan,
    *,
    impl: str = "cubed",
    executor: str = "threads",
    max_workers: int | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Result:
    """
    Run a plan: its checks, then its writes in one transaction.

    Parameters
    ----------
    plan
        What to do.
    impl, executor, max_workers, progress
        As in `vczstore.api.Options`.
    dry_run
        Stop after the checks.

    Raises
    ------
    VczstoreError
        If a check finds something, the store has changed, or storage fails. Readers see the old samples then.
    Interrupted
        On a keyboard interrupt.
    """
    started = time.perf_counter()
    if executor == "processes" and impl != "zarr" and not plan.store.pickles:
        raise OptionError(
            f"{plan.operation}: {plan.store.label} is in this process's memory, which other processes cannot reach; "
            "use the executor threads"
        )
    engine = None if impl == "zarr" else _Engine(executor, max_workers, progress)
    snapshot = None
    try:
        _check(plan, engine)
        if not dry_run:
            with plan.store.transaction(plan.base, plan.preparations, plan.edits) as transaction:
                _write(plan, transaction, engine, through_xarray=impl == "xarray")
                snapshot = transaction.commit(f"{plan.operation}: {plan.summary}", _metadata(plan))
    except VczstoreError:
        raise
    except KeyboardInterrupt as error:
        raise Interrupted(f"{plan.operation}: interrupted; {_state(plan)}") from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StorageError(f"{plan.operation}: {plan.store.label}: {reason}; {_state(plan)}") from error
    finally:
        if engine is not None:
            engine.close()
    return Result(
        operation=plan.operation,
        store=plan.store.label,
        committed=not dry_run,
        snapshot=snapshot,
        counts=plan.counts,
        seconds=time.perf_counter() - started,
        plan=plan,
        **({} if engine is None else engine.totals),
    )


def _check(plan: Plan, engine: "_Engine | None") -> None:
    """Raise the error of the first check that finds something."""
    found: list[tuple[int, Any]] = []
    if engine is None:
        found = [(i, first) for i, check in enumerate(plan.checks) for first in check.by_zarr()]
    else:
        engine.execute("checking", plan.cubed_checks(), lambda report: found.extend(report.found))
    if found:
        i, first = min(found)
        raise plan.checks[i].error(first)


def _write(plan: Plan, transaction: Transaction, engine: "_Engine | None", *, through_xarray: bool) -> None:
    """
    Write all chunks.

    Raises
    ------
    StorageError
        If the tasks have written more or fewer chunks than planned: nothing may be committed then.
    """
    if engine is None:
        for write in plan.writes:
            write.by_zarr(transaction.store)
        return

    def on_report(report: "TaskReport") -> None:
        if report.store is not None:
            transaction.collect(report.store)

    engine.execute("writing", plan.cubed_writes(transaction.store, through_xarray=through_xarray), on_report)
    planned = plan.encoded_chunks + plan.decoded_chunks
    if engine.totals["chunks"] != planned:
        raise StorageError(
            f"{plan.operation}: tasks report {engine.totals['chunks']:,} chunks written, {planned:,} were planned; "
            f"{_state(plan)}"
        )


class _Engine:
    """Cubed on an executor, and what the reports of its tasks add up to."""

    def __init__(self, executor: str, max_workers: int | None, progress: Progress | None) -> None:
        self.executor = executors.create(executor, max_workers=max_workers)
        self.progress = progress
        self.totals = dict.fromkeys(("tasks", "chunks", "encoded_bytes", "decoded_bytes", "peak_mem"), 0)

    def close(self) -> None:
        """End workers that wait for more."""
        if hasattr(self.executor, "close"):
            self.executor.close()

    def execute(self, what: str, plan: "FinalizedPlan | None", on_report: Callable[["TaskReport"], None]) -> None:
        """Run one Cubed plan, if there is anything to do."""
        if plan is None:
            return
        from plans import chunks

        totals, before = self.totals, self.totals["tasks"]

        def on_task(report: "TaskReport") -> None:
            on_report(report)
            totals["tasks"] += 1
            for name in ("chunks", "encoded_bytes", "decoded_bytes"):
                totals[name] += getattr(report, name)
            totals["peak_mem"] = max(totals["peak_mem"], report.peak_mem)
            if self.progress is not None:
                self.progress(what, totals["tasks"] - before, plan.num_tasks)

        chunks.execute(plan, self.executor, on_task)


def _metadata(plan: Plan) -> dict[str, Any]:
    """For the history: what was done, in numbers, by which version."""
    return {"vczstore": {"operation": plan.operation, **plan.counts, "version": version("vczstore")}}


def _state(plan: Plan) -> str:
    if plan.store.atomic:
        return "nothing was committed, the store is as it was"
    if plan.operation == "remove":
        return "some values of the samples may be missing already; run the same command again to complete it"
    return "readers see the old samples; run the same command again to complete it"
