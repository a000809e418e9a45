"""What runs tasks: Cubed on an executor, whose workers have to reach the store that the driver sees."""

import secrets
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import executors
from vczstore.errors import OptionError, UnsuitableError
from vczstore.execution.executor import create_executor
from vczstore.execution.options import Options
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

_KNOWN = ("zarr.json", ".zgroup", ".zattrs", f"{SAMPLE_ID}/zarr.json", f"{SAMPLE_ID}/.zarray")
"""What tells one store from another, and every store has some of."""


def _pickled(operation: str, label: str, zarr_store: "ZarrStore") -> bytes:
    from plans.core import reach

    try:
        return reach.pickled(zarr_store)
    except Exception as error:  # a store of the user's may raise any exception there
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
        What they do, for the progress that is shown.
    plan
        Cubed's plan of them.
    run
        Where they are counted.
    on_report
        Called in the driver with the report of each that has ended.
    n_done
        How many beside them a run that was stopped has done.
    """

    what: str
    plan: "FinalizedPlan"
    run: Run
    on_report: Callable[["TaskReport"], None]
    n_done: int = 0


type Stages = Generator[Tasks]
"""Tasks in stages: each is prepared when those of the one before it have ended. An error of a task is raised within."""


class Workers:
    """
    Cubed on an executor, which is created when there is a first task, and whose workers end with the context.

    Parameters
    ----------
    options
        Which executor, with how many workers; and who is told of progress.
    """

    def __init__(self, options: Options) -> None:
        given = {} if options.max_workers is None else {"max_workers": options.max_workers}
        self.name = options.executor
        self.progress = options.progress if callable(options.progress) else None
        self.options = {**options.executor_options, **given}

    @cached_property
    def executor(self) -> "DagExecutor":
        """The executor."""
        return create_executor(self.name, self.options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End workers that wait for more."""
        if "executor" in self.__dict__ and hasattr(self.executor, "close"):
            self.executor.close()

    def check_store(self, operation: str, store: Store) -> None:
        """Refuse a store in memory that other processes cannot reach; nothing is started for that."""
        if self.name not in executors.IN_PROCESS and not store.pickles:
            raise OptionError(
                f"{operation}: {store.label} is in this process's memory, which other processes cannot reach; "
                "use the executor threads"
            )

    def check_location(self, operation: str, store: Store) -> None:
        """Refuse a store that the workers do not find: what they wrote would be silently lost."""
        label = store.label
        if getattr(self.executor, "remote", False) and local_path(label) is not None:
            # an object that was handed in has no URL to tell by
            where = "is not named by a URL" if label.startswith("<") else "is on this machine"
            raise OptionError(
                f"{operation}: {label} {where}, so that the workers of {self.executor.name} may not find it; "
                "use the URL of an object store, or the executor processes"
            )
        if store.zarr_store is not None:
            self.check_reads(operation, label, store.zarr_store)

    def check_reads(self, operation: str, label: str, zarr_store: "ZarrStore") -> None:
        """Refuse a store, or a source, of which a first task does not read what the driver does."""
        if self.name in executors.IN_PROCESS or is_same_everywhere(zarr_store):
            return
        from plans.core import reach

        self._compare(operation, label, _pickled(operation, label, zarr_store), reach.read(zarr_store, _KNOWN), _KNOWN)

    def check_writes(self, operation: str, store: Store) -> None:
        """Refuse a store of which tasks have a copy: what is written once it is pickled a first task has to see."""
        if self.name in executors.IN_PROCESS or store.zarr_store is None or is_same_everywhere(store.zarr_store):
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
        chunks.execute([(looking, lambda report: found.extend(value for _, value in report.found))], self.executor)
        if found != [expected]:
            why = f" ({found[0].splitlines()[0]})" if found and isinstance(found[0], str) else ""
            raise UnsuitableError(
                f"{operation}: {label}: the tasks of the executor {self.name} reach another store or a copy, not this "
                f"one{why}; nothing was written; use the executor threads, or name it by a path or URL"
            )

    def run(self, *all_stages: Stages) -> None:
        """
        Run tasks in stages; of several, those that are at the same stage are in one queue.

        The time of each `Run` that counts within its stages leaves out what is done for others meanwhile. What they run
        together counts by their shares of the tasks.

        Raises
        ------
        Exception
            Of the first that fails; an error of a task is raised in the stages that it belongs to. All others are
            closed.
        """
        with ExitStack() as closing:
            for stages in all_stages:
                closing.callback(stages.close)
            ready = [_Ready(stages, tasks) for stages in all_stages if (tasks := next(stages, None)) is not None]
            while ready:
                began = perf_counter()
                try:
                    self.execute(*(one.tasks for one in ready))
                except BaseException as error:
                    if (failed := _failed(ready, error)) is not None:
                        failed.stages.throw(error)
                    raise
                seconds, n = perf_counter() - began, sum(one.tasks.plan.num_tasks for one in ready)
                ready = [after for one in ready if (after := one.next(seconds * one.tasks.plan.num_tasks / n))]

    def execute(self, *todo: Tasks) -> None:
        """Run tasks, all in one queue."""
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
    """The next tasks of some stages, and since when they wait."""

    stages: Stages
    tasks: Tasks
    since: float = field(default_factory=perf_counter)

    def next(self, seconds: float) -> "_Ready | None":
        """What comes after, if anything; what passed since they were ready counts as so many seconds."""
        self.tasks.run.seconds += seconds - (perf_counter() - self.since)
        tasks = next(self.stages, None)
        return None if tasks is None else _Ready(self.stages, tasks)


def _failed(ready: Sequence[_Ready], error: BaseException) -> _Ready | None:
    """Whose error it is; None if it is that of no task."""
    from plans.core.cubed_backend import plan_of

    if len(ready) == 1:
        return ready[0]
    return None if (number := plan_of(error)) is None else ready[number]
