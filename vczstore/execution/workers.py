"""Run tasks with Cubed on an executor, and check that its workers reach the same store as the driver."""

import secrets
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import executors
from vczstore.errors import OptionError, UnsuitableError
from vczstore.execution.options import Options, executor_errors
from vczstore.execution.progress import Display
from vczstore.execution.results import Run
from vczstore.stores.base import Store
from vczstore.stores.locations import local_path
from vczstore.stores.plain import is_same_everywhere, put
from vczstore.vcz.model import SAMPLE_ID
from vczstore.vcz.zarr_objects import NONCE, names

if TYPE_CHECKING:
    from cubed.core.plan import FinalizedPlan
    from cubed.runtime.types import DagExecutor
    from zarr.abc.store import Store as ZarrStore

    from plans.core.task_report import TaskReport

_KEYS = ("zarr.json", ".zgroup", ".zattrs", f"{SAMPLE_ID}/zarr.json", f"{SAMPLE_ID}/.zarray")
"""Keys that are read to compare stores; every store has some of them."""


def _pickled(operation: str, label: str, zarr_store: "ZarrStore") -> bytes:
    from plans.core import reach

    try:
        return reach.pickled(zarr_store)
    except Exception as error:  # a user's store class may raise any exception when it is pickled
        raise UnsuitableError(
            f"{operation}: {label} cannot be sent to other processes ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); use the executor threads, or name it by a path or URL"
        ) from error


class Tasks(NamedTuple):
    """
    Tasks that are ready to run.

    Attributes
    ----------
    what
        The phase, for the progress display.
    plan
        The Cubed plan of the tasks.
    run
        Accumulates the counts of the tasks.
    on_report
        Called in the driver with the report of each task that has ended.
    n_done
        The number of further tasks that an interrupted run has already done.
    """

    what: str
    plan: "FinalizedPlan"
    run: Run
    on_report: Callable[["TaskReport"], None]
    n_done: int = 0


type Stages = Generator[Tasks]
"""Yields tasks to run, the next ones when the previous ones have ended; errors of tasks are thrown into it."""


class Workers(AbstractContextManager["Workers"]):
    """
    Context in which tasks run on an executor. It is created on first use; leaving the context ends its workers.

    Parameters
    ----------
    options
        Select the executor, the number of workers and the progress display.
    """

    def __init__(self, options: Options) -> None:
        n_workers = {} if options.max_workers is None else {"max_workers": options.max_workers}
        self.name = options.executor
        self.progress = options.progress if callable(options.progress) else None
        self.options = {**options.executor_options, **n_workers}

    @cached_property
    def executor(self) -> "DagExecutor":
        """The executor, created on first use."""
        with executor_errors():
            return executors.create(self.name, **self.options)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End idle workers, if the executor keeps any."""
        if "executor" in self.__dict__ and hasattr(self.executor, "close"):
            self.executor.close()

    def check_store(self, operation: str, store: Store) -> None:
        """Raise an `OptionError` for a store in memory that tasks cannot reach; the executor is not created."""
        if self.name not in executors.IN_PROCESS and not store.pickles:
            raise OptionError(
                f"{operation}: {store.label} is in this process's memory, which other processes cannot reach; "
                "use the executor threads"
            )

    def check_location(self, operation: str, store: Store) -> None:
        """Raise an `OptionError` or `UnsuitableError` for a store that the workers cannot reach."""
        label = store.label
        if getattr(self.executor, "remote", False) and local_path(label) is not None:
            # a store that was passed as an object has no URL
            where = "is not named by a URL" if label.startswith("<") else "is on this machine"
            raise OptionError(
                f"{operation}: {label} {where}, so that the workers of {self.executor.name} may not find it; "
                "use the URL of an object store, or the executor processes"
            )
        if store.zarr_store is not None:
            self.check_reads(operation, label, store.zarr_store)

    def check_reads(self, operation: str, label: str, zarr_store: "ZarrStore") -> None:
        """Raise an `UnsuitableError` if a task does not read the same from a store or source as the driver does."""
        if self.name in executors.IN_PROCESS or is_same_everywhere(zarr_store):
            return
        from plans.core import reach

        self._compare(operation, label, _pickled(operation, label, zarr_store), reach.read(zarr_store, _KEYS), _KEYS)

    def check_writes(self, operation: str, store: Store) -> None:
        """Raise an `UnsuitableError` if tasks get a copy of the store: they must see a value written after pickling."""
        if self.name in executors.IN_PROCESS or store.zarr_store is None or is_same_everywhere(store.zarr_store):
            return
        key, value = f"{SAMPLE_ID}/{NONCE}{secrets.token_hex(8)}", secrets.token_bytes(16)
        sent, writable = _pickled(operation, store.label, store.zarr_store), store.zarr_store.with_read_only(False)
        for name in names(writable, SAMPLE_ID):  # those of killed runs: the lock is held, so that no other run has any
            if name.startswith(NONCE):
                put(writable, f"{SAMPLE_ID}/{name}", None)
        put(writable, key, value)
        try:
            self._compare(operation, store.label, sent, [value], (key,))
        finally:
            put(writable, key, None)

    def _compare(
        self, operation: str, label: str, sent: bytes, expected: list[bytes | None], keys: tuple[str, ...]
    ) -> None:
        from plans.core import cubed_backend as chunks
        from plans.core import reach

        values: list[Any] = []
        probe = reach.probe_plan(sent, keys)
        assert probe is not None
        chunks.execute([(probe, lambda report: values.extend(value for _, value in report.found))], self.executor)
        if values != [expected]:
            why = f" ({values[0].splitlines()[0]})" if values and isinstance(values[0], str) else ""
            raise UnsuitableError(
                f"{operation}: {label}: the tasks of the executor {self.name} reach another store or a copy, not this "
                f"one{why}; nothing was written; use the executor threads, or name it by a path or URL"
            )

    def run(self, *all_stages: Stages) -> None:
        """
        Run stages of tasks. If there are several generators, their current stages share one queue.

        The time for which a shared queue runs is divided among the `Run` objects in proportion to their tasks. Time
        spent on preparing the stages of others is not counted.

        Raises
        ------
        Exception
            The first error. The error of a task is thrown into the generator that it belongs to; the others are closed.
        """
        with ExitStack() as closing:
            for stages in all_stages:
                closing.callback(stages.close)
            ready = [_Ready(stages, tasks) for stages in all_stages if (tasks := next(stages, None)) is not None]
            while ready:
                began = perf_counter()
                try:
                    self.execute(*(stage.tasks for stage in ready))
                except BaseException as error:
                    if (failed := _failed(ready, error)) is not None:
                        failed.stages.throw(error)
                    raise
                seconds, n = perf_counter() - began, sum(stage.tasks.plan.num_tasks for stage in ready)
                ready = [after for stage in ready if (after := stage.next(seconds * stage.tasks.plan.num_tasks / n))]

    def execute(self, *todo: Tasks) -> None:
        """Run tasks in one queue, report progress, and add their reports to `Tasks.run`."""
        if not todo:
            return
        from plans.core import cubed_backend as chunks

        n_done = sum(tasks.n_done for tasks in todo)
        total = n_done + sum(tasks.plan.num_tasks for tasks in todo)
        parts = f" {len(todo):,} parts" if len(todo) > 1 else f" {todo[0].run.part}".rstrip()
        which = {tasks.run.which for tasks in todo}
        phase = f"{todo[0].what}{parts}{which.pop() if len(which) == 1 else ''}"
        display = self.progress if isinstance(self.progress, Display) else None
        if display is not None:
            display(phase, n_done, total)

        def on_task(tasks: Tasks, report: "TaskReport") -> None:
            nonlocal n_done
            n_done += 1
            tasks.on_report(report)
            tasks.run.add(tasks.what, report)
            if display is not None:
                display.n_bytes += report.encoded_bytes + report.decoded_bytes
            if self.progress is not None:
                self.progress(phase, n_done, total)

        chunks.execute([(tasks.plan, partial(on_task, tasks)) for tasks in todo], self.executor)


@dataclass
class _Ready:
    """A generator of stages, its next tasks, and the `perf_counter` at which they became ready."""

    stages: Stages
    tasks: Tasks
    since: float = field(default_factory=perf_counter)

    def next(self, seconds: float) -> "_Ready | None":
        """Count `seconds` for this stage in place of the time since it was ready; return the next stage, if any."""
        self.tasks.run.seconds += seconds - (perf_counter() - self.since)
        tasks = next(self.stages, None)
        return None if tasks is None else _Ready(self.stages, tasks)


def _failed(ready: Sequence[_Ready], error: BaseException) -> _Ready | None:
    """Return the stage whose task raised an error; None if it is not known."""
    from plans.core.cubed_backend import plan_of

    if len(ready) == 1:
        return ready[0]
    return None if (number := plan_of(error)) is None else ready[number]
