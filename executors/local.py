"""Executors on this machine: one thread, several threads, several processes.

They replace those of Cubed, which run queued tasks after one has failed, cannot retry in processes, and leave worker
processes behind when the driver is killed. They keep Cubed's contract: tasks of one generation of the plan may run
concurrently, and the callbacks are called for every task that has ended.

This module and `executors.lithops` are the only ones that use Cubed's private interfaces of executors.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import batched, chain, count, islice, repeat
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any

import cloudpickle
import networkx as nx
from cubed.runtime.pipeline import visit_node_generations
from cubed.runtime.types import Callback, CubedPipeline, DagExecutor
from cubed.runtime.utils import (
    execute_with_stats,
    handle_callbacks,
    handle_operation_end_callbacks,
    handle_operation_start_callbacks,
)

type Task = Callable[[], tuple[Any, dict[str, Any]]]
type Round = Sequence[tuple[str, Task]]
"""Tasks that read the same data, each with the name of its operation."""

QUEUED_PER_WORKER = 2
"""Tasks, or groups of them, in flight per worker, including queued ones: few, so that little is queued on a failure."""

ROUNDS_PER_WORKER = 3
"""Minimum number of rounds per worker for running each round in one worker; with fewer, workers would be idle."""

TASKS_TOGETHER = 16
"""Maximum number of tasks that a worker is sent together; their results are returned together, too."""

GRACE = 5.0
"""Seconds for the processes to finish their tasks after the plan has failed or was interrupted."""


class WorkerDiedError(RuntimeError):
    """A worker process ended before its task did."""


class GenerationExecutor(DagExecutor):
    """Run the tasks of one generation of a plan after those of another. The first error ends the plan."""

    def execute_dag(
        self,
        dag: nx.MultiDiGraph,
        callbacks: Sequence[Callback] | None = None,
        **_: Any,
    ) -> None:
        """Run all tasks; the class describes the errors."""
        self.begin(dag)
        try:
            for generation in visit_node_generations(dag):
                for name, _node in generation:
                    handle_operation_start_callbacks(callbacks, name)
                self.run_generation(generation, callbacks)
                for name, _node in generation:
                    handle_operation_end_callbacks(callbacks, name)
        except BaseException:
            self.abort()
            raise

    def begin(self, dag: nx.MultiDiGraph) -> None:
        """Start the workers, unless they are running, or refuse the plan."""
        raise NotImplementedError

    def run_generation(self, generation: Any, callbacks: Sequence[Callback] | None) -> None:
        """Run tasks concurrently; the generation has the names of their operations, and the nodes of the plan."""
        raise NotImplementedError

    def abort(self) -> None:
        """End the workers after an error."""
        raise NotImplementedError


class LocalExecutor(GenerationExecutor):
    """
    Run tasks in a pool. Subclasses define the pool, and how tasks are sent to it.

    Running a plan raises the error of the first task that has exhausted its `retries`. No further tasks are started,
    and running ones end or are killed before it is raised, so nothing is written afterwards; see `stop`. If a worker
    process was killed, a `WorkerDiedError` is raised, without a retry.
    """

    def __init__(self, *, max_workers: int | None = None, retries: int = 2) -> None:
        super().__init__(max_workers=max_workers, retries=retries)
        self.max_workers = max_workers or os.cpu_count() or 1
        self.retries = retries
        self._pool: Executor | None = None

    def pool(self) -> Executor:
        """Return a pool of started workers."""
        raise TypeError(f"{type(self).__name__} has no pool")

    def tasks(self, pipeline: CubedPipeline) -> Iterator[Task]:
        """Yield the callables to submit to the pool, one per task of an operation."""
        for coords in pipeline.mappable:
            yield partial(execute_with_stats, pipeline.function, coords, config=pipeline.config)

    def in_groups(self, rounds: Iterator[Round]) -> Iterator[Round]:
        """Split rounds into the groups of tasks that are submitted together: here, single tasks."""
        return ([task] for tasks in rounds for task in tasks)

    def begin(self, dag: nx.MultiDiGraph) -> None:
        self._pool = self._pool or self.pool()

    def run_generation(self, generation: Any, callbacks: Sequence[Callback] | None) -> None:
        plans: dict[Any, list[Any]] = {}
        for name, node in generation:
            tasks = zip(repeat(name), self.tasks(node["pipeline"]))
            n_tasks = getattr(node.get("primitive_op"), "num_tasks", 1)
            plans.setdefault(node.get("plan"), []).append((n_tasks, tasks))
        # plans that are executed together share no data, so their rounds come one plan after the other
        groups = (self.in_groups(_rounds(operations)) for operations in plans.values())
        assert self._pool is not None
        try:
            self._run(self._pool, chain.from_iterable(groups), callbacks)
        except BrokenProcessPool as error:  # of a running task, or of one that was submitted later
            raise WorkerDiedError(
                "a worker process was killed, perhaps because it ran out of memory; "
                "give it less to do at once with --max-workers or --allowed-mem"
            ) from error

    def abort(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            self.stop(pool)

    def close(self) -> None:
        """End the workers, which stay alive between plans."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None

    def stop(self, pool: Executor) -> None:
        """Shut the pool down early: wait for running tasks, and cancel queued ones."""
        pool.shutdown(wait=True, cancel_futures=True)

    def _run(
        self,
        pool: Executor,
        todo: Iterator[Round],
        callbacks: Sequence[Callback] | None,
    ) -> None:
        running: dict[Future[Any], tuple[Round, int, float]] = {}

        def submit(tasks: Round, attempt: int) -> None:
            calls = [task for _, task in tasks]
            running[pool.submit(calls[0] if len(calls) == 1 else _Group(calls))] = (tasks, attempt, time.time())

        while True:
            n_free = self.max_workers * QUEUED_PER_WORKER - len(running)
            for tasks in islice(todo, n_free):
                submit(tasks, 0)
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                tasks, attempt, created = running.pop(future)
                error, results = future.exception(), []
                if error is None:
                    results, error = future.result() if len(tasks) > 1 else ([future.result()], None)
                for (name, _), (result, stats) in zip(tasks, results, strict=False):
                    handle_callbacks(callbacks, result, {**stats, "name": name, "task_create_tstamp": created})
                rest, attempt = tasks[len(results) :], 0 if results else attempt
                if error is None:
                    continue
                if attempt >= self.retries or not isinstance(error, Exception) or isinstance(error, BrokenProcessPool):
                    raise error
                submit(rest, attempt + 1)


def _rounds[T](operations: Sequence[tuple[int, Iterator[T]]]) -> Iterator[list[T]]:
    """
    Yield rounds of one task of the largest operation and a proportional number of the others, so that all end together.

    Thus tasks of different arrays over the same rows run at about the same time and share cached data, and tasks that
    compute run alongside tasks that copy.

    Parameters
    ----------
    operations
        The number of tasks of each operation, and the tasks.

    Examples
    --------
    >>> ["".join(tasks) for tasks in _rounds([(2, iter("aA")), (4, iter("bcde"))])]
    ['ab', 'c', 'Ad', 'e']
    """
    most = max((n for n, _ in operations), default=0)
    for i in count():
        parts = ((tasks, -(-(i + 1) * n // most) + (-i * n // most)) for n, tasks in operations)
        selected = [task for tasks, n in parts for task in islice(tasks, n)]
        if selected:
            yield selected
        elif i >= most:
            return


class _Group:
    """Run several tasks one after the other in one worker, up to the first that fails: return results and error."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks

    def __call__(self) -> tuple[list[tuple[Any, dict[str, Any]]], Exception | None]:
        done: list[tuple[Any, dict[str, Any]]] = []
        for task in self.tasks:
            if done and _is_stopping is not None and _is_stopping.value:
                break  # the driver ignores the results
            try:
                done.append(task())
            except Exception as error:
                return done, error
        return done, None


class _NoPool(Executor):
    """A pool that runs each task on submission, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class SingleThreadedExecutor(LocalExecutor):
    """Run one task after the other in this thread: the reference for the others."""

    name = "single-threaded"

    def __init__(self, *, retries: int = 2) -> None:
        super().__init__(max_workers=1, retries=retries)

    def pool(self) -> Executor:
        return _NoPool()


class ThreadsExecutor(LocalExecutor):
    """Run tasks in several threads of this process."""

    name = "threads"

    def pool(self) -> Executor:
        return ThreadPoolExecutor(self.max_workers, thread_name_prefix="vczstore")


class ProcessesExecutor(LocalExecutor):
    """
    Run tasks in several spawned processes, which end whenever the driver does.

    If there are enough tasks, those of several arrays over the same rows run in one process and share cached data.
    """

    name = "processes"

    def pool(self) -> Executor:
        """Return a pool of started processes, with SIGINT blocked from the beginning: the driver handles interrupts."""
        context = _WorkerContext()
        try:
            # without a lock, which a killed worker would never release
            self._is_stopping = context.RawValue(ctypes.c_bool, False)
            pool = ProcessPoolExecutor(
                self.max_workers,
                mp_context=context,
                initializer=_begin_worker,
                initargs=(os.getpid(), self._is_stopping),
            )
        except OSError as error:
            raise RuntimeError(
                f"the executor processes cannot start ({error.strerror or error}): it takes semaphores, which need a "
                "/dev/shm that can be written to; mount one, or use the executor threads"
            ) from error
        # start it first, since that unblocks the signal in the calling thread
        resource_tracker.ensure_running()
        try:
            with _deferred_signals():
                before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    for _ in range(self.max_workers):  # the pool starts one process per submission
                        pool.submit(int)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except BaseException:
            self.stop(pool)
            raise
        return pool

    def tasks(self, pipeline: CubedPipeline) -> Iterator[Task]:
        """Pickle the operation once; each task unpickles a copy, so that its writes are separate."""
        operation = cloudpickle.dumps((pipeline.function, pipeline.config))
        for coords in pipeline.mappable:
            yield PickledTask(operation, coords)

    def in_groups(self, rounds: Iterator[Round]) -> Iterator[Round]:
        """Group the tasks of each round, if there are enough rounds for all workers; else submit single tasks."""
        first = list(islice(rounds, self.max_workers * ROUNDS_PER_WORKER))
        if len(first) < self.max_workers * ROUNDS_PER_WORKER:
            return super().in_groups(iter(first))
        return (group for tasks in chain(first, rounds) for group in batched(tasks, TASKS_TOGETHER))

    def close(self) -> None:
        """End the workers with `stop`: if one was killed while waiting for work, the others would wait forever."""
        if self._pool is not None:
            self.stop(self._pool)
            self._pool = None

    def stop(self, pool: Executor) -> None:
        """Shut the pool down early: running tasks have `GRACE` seconds to finish, then their processes are killed."""
        assert isinstance(pool, ProcessPoolExecutor)
        self._is_stopping.value = True
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + GRACE
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """
    Handle signals to this process after the block, if their handlers are Python functions.

    A handler that raises while a process is being spawned would leave it with incomplete start-up data, and it would
    print a traceback. A blocked signal does not prevent that: Python's handlers run in the main thread, whichever
    thread receives the signal.
    """
    received: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda number, _: received.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for deferred in received:
        signal.raise_signal(deferred)


_STARTING = threading.Lock()
"""Held while a process is started, since that temporarily replaces the ``__main__`` module."""


class _WorkerProcess(SpawnProcess):
    """
    A process that does not import the driver's script, which would run again if it has no ``__main__`` guard.

    Workers do not need it: functions and classes of a script are pickled by value.
    """

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _STARTING:
            script = sys.modules["__main__"]
            sys.modules["__main__"] = ModuleType("__main__")
            try:
                return SpawnProcess._Popen(process_obj)
            finally:
                sys.modules["__main__"] = script


class _WorkerContext(SpawnContext):
    """A context that starts `_WorkerProcess`."""

    Process = _WorkerProcess


class PickledTask:
    """A task that runs in another process, or in a container; it has a pickle of its operation."""

    def __init__(self, operation: bytes, coords: Any) -> None:
        self.operation, self.coords = operation, coords

    def __call__(self) -> Any:
        function, config = cloudpickle.loads(self.operation)
        return execute_with_stats(function, self.coords, config=config)


_is_stopping: Any = None
"""In a worker: a shared boolean, True once the driver needs no further tasks; None elsewhere."""


def _begin_worker(driver: int, is_stopping: Any) -> None:
    """Initialise a worker: exit when the driver has ended."""
    global _is_stopping  # noqa: PLW0603
    _is_stopping = is_stopping

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
