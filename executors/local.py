"""Executors on this machine: one thread, several threads, several processes.

They are our own because Cubed's go on with queued tasks after one has failed, cannot retry in processes, and leave
worker processes behind when the driver is killed. What they keep is Cubed's contract: tasks of one generation of the
plan may run at once, and every task that has ended is told to the callbacks.

This module and `executors.lithops` are the only ones that touch Cubed's private interfaces of executors.
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
"""Tasks that share what they read, each with the name of its operation."""

QUEUED_PER_WORKER = 2
"""Tasks handed to the pool before a worker is free: few, so that a failure leaves nothing queued."""

ROUNDS_PER_WORKER = 3
"""With fewer rounds of tasks, one after the other in a worker, too many workers would have none at the end."""

TASKS_TOGETHER = 16
"""Most tasks that a worker is handed at once: what it has done is known when all of them end."""

GRACE = 5.0
"""Seconds that a process has to finish its task once the plan has failed or was interrupted."""


class WorkerDiedError(RuntimeError):
    """A worker process ended before its task did."""


class LocalExecutor(DagExecutor):
    """Runs tasks through a pool; what a subclass adds is the pool, and how a task gets to it."""

    def __init__(self, *, max_workers: int | None = None, retries: int = 2) -> None:
        super().__init__(max_workers=max_workers, retries=retries)
        self.max_workers = max_workers or os.cpu_count() or 1
        self.retries = retries
        self._pool: Executor | None = None

    def pool(self) -> Executor:
        """Start the workers."""
        raise TypeError(f"{type(self).__name__} has no pool")

    def tasks(self, name: str, pipeline: CubedPipeline) -> Iterator[Task]:
        """What the pool is given, for each task of an operation."""
        for coords in pipeline.mappable:
            yield _LocalTask(pipeline, coords)

    def in_groups(self, rounds: Iterator[Round]) -> Iterator[Round]:
        """What the pool is given at once: single tasks."""
        return ([task] for some in rounds for task in some)

    def execute_dag(
        self,
        dag: nx.MultiDiGraph,
        callbacks: Sequence[Callback] | None = None,
        **_: Any,
    ) -> None:
        """
        Run all tasks.

        Raises
        ------
        Exception
            Of the first task that failed once more than `retries` times. Tasks that run are waited for, no other
            is begun, so nothing is written after this returns.
        """
        pool = self._pool = self._pool or self.pool()
        try:
            for generation in visit_node_generations(dag):
                names = [name for name, _ in generation]
                for name in names:
                    handle_operation_start_callbacks(callbacks, name)
                plans: dict[Any, list[Any]] = {}
                for name, node in generation:
                    tasks = zip(repeat(name), self.tasks(name, node["pipeline"]))
                    n_tasks = getattr(node.get("primitive_op"), "num_tasks", 1)
                    plans.setdefault(node.get("plan"), []).append((n_tasks, tasks))
                groups = (self.in_groups(_rounds(operations)) for operations in plans.values())
                self._run(pool, chain.from_iterable(groups), callbacks)
                for name in names:
                    handle_operation_end_callbacks(callbacks, name)
        except BaseException:
            self._pool = None
            self.stop(pool)
            raise

    def close(self) -> None:
        """End the workers, which wait for further plans until then."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None

    def stop(self, pool: Executor) -> None:
        """End early: running tasks are waited for, others never begin."""
        pool.shutdown(wait=True, cancel_futures=True)

    def _run(
        self,
        pool: Executor,
        todo: Iterator[Round],
        callbacks: Sequence[Callback] | None,
    ) -> None:
        running: dict[Future[Any], tuple[Round, int, float]] = {}

        def submit(tasks: Round, attempt: int) -> None:
            only = [task for _, task in tasks]
            running[pool.submit(only[0] if len(only) == 1 else _Group(only))] = (tasks, attempt, time.time())

        while True:
            room = self.max_workers * QUEUED_PER_WORKER - len(running)
            for tasks in islice(todo, room):
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
                if isinstance(error, BrokenProcessPool):
                    raise WorkerDiedError(
                        "a worker process was killed, perhaps because it ran out of memory; "
                        "give it less to do at once with --max-workers or --allowed-mem"
                    ) from error
                if error is not None and attempt < self.retries and isinstance(error, Exception):
                    submit(rest, attempt + 1)
                elif error is not None:
                    raise error


def _rounds[T](operations: Sequence[tuple[int, Iterator[T]]]) -> Iterator[list[T]]:
    """
    One task of the operation that has most, and as large a part of the others, again and again: all end together.

    Tasks of different arrays over the same rows run at about the same time so, and find in memory what they share; and
    those that compute run beside those that copy. Of plans that are executed together, one goes after the other: they
    share nothing.

    Parameters
    ----------
    operations
        How many tasks each has, and these.

    Examples
    --------
    >>> ["".join(tasks) for tasks in _rounds([(2, iter("aA")), (4, iter("bcde"))])]
    ['ab', 'c', 'Ad', 'e']
    """
    most = max((n for n, _ in operations), default=0)
    for i in count():
        parts = ((tasks, -(-(i + 1) * n // most) + (-i * n // most)) for n, tasks in operations)
        some = [task for tasks, n in parts for task in islice(tasks, n)]
        if some:
            yield some
        elif i >= most:
            return


class _Group:
    """Some tasks, one after the other, in one worker, up to the first that fails."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks

    def __call__(self) -> tuple[list[tuple[Any, dict[str, Any]]], Exception | None]:
        done: list[tuple[Any, dict[str, Any]]] = []
        for task in self.tasks:
            if done and _is_stopping is not None and _is_stopping.value:
                break  # what is returned is not wanted any more
            try:
                done.append(task())
            except Exception as error:
                return done, error
        return done, None


class _LocalTask:
    """One task, run where it is called."""

    def __init__(self, pipeline: CubedPipeline, coords: Any) -> None:
        self.pipeline, self.coords = pipeline, coords

    def __call__(self) -> Any:
        return execute_with_stats(self.pipeline.function, self.coords, config=self.pipeline.config)


class _NoPool(Executor):
    """Runs what is submitted at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class SingleThreadedExecutor(LocalExecutor):
    """One task after the other, in this thread: the reference for the others."""

    def __init__(self, *, retries: int = 2) -> None:
        super().__init__(max_workers=1, retries=retries)

    @property
    def name(self) -> str:
        """As in ``--executor``."""
        return "single-threaded"

    def pool(self) -> Executor:
        """No workers at all."""
        return _NoPool()


class ThreadsExecutor(LocalExecutor):
    """Several threads of this process."""

    @property
    def name(self) -> str:
        """As in ``--executor``."""
        return "threads"

    def pool(self) -> Executor:
        """Start the threads."""
        return ThreadPoolExecutor(self.max_workers, thread_name_prefix="vczstore")


class ProcessesExecutor(LocalExecutor):
    """
    Several processes, spawned. They end with their driver, by any cause.

    What tasks of several arrays have in common is in the memory of one process, so these go to one.
    """

    @property
    def name(self) -> str:
        """As in ``--executor``."""
        return "processes"

    def pool(self) -> Executor:
        """Start the processes. An interrupt is the driver's business, from their first moment on."""
        context = _WorkerContext()
        try:
            # without a lock, which a worker that is killed would keep
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
        # started first, because it unblocks the signal in the thread that starts it
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(self.max_workers):  # the pool starts one process for each
                pool.submit(int)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pool

    def tasks(self, name: str, pipeline: CubedPipeline) -> Iterator[Task]:
        """The operation is pickled once; a task unpickles its own, so that what it writes is its own too."""
        operation = cloudpickle.dumps((pipeline.function, pipeline.config))
        for coords in pipeline.mappable:
            yield PickledTask(operation, coords)

    def in_groups(self, rounds: Iterator[Round]) -> Iterator[Round]:
        """Tasks over the same rows together, if there are enough rows for all workers."""
        first = list(islice(rounds, self.max_workers * ROUNDS_PER_WORKER))
        if len(first) < self.max_workers * ROUNDS_PER_WORKER:
            return super().in_groups(iter(first))
        return (group for some in chain(first, rounds) for group in batched(some, TASKS_TOGETHER))

    def close(self) -> None:
        """End the workers. One that was killed while it waited for work has left the others waiting for ever."""
        if self._pool is not None:
            self.stop(self._pool)
            self._pool = None

    def stop(self, pool: Executor) -> None:
        """End early: running tasks have a few seconds to finish what they are writing."""
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


_STARTING = threading.Lock()
"""Held while a process is started: of two threads, each would take the other's stand-in for the script."""


class _WorkerProcess(SpawnProcess):
    """
    A process that does not import its driver's script again, which would run all of it without a ``__main__`` guard.

    Nothing in a worker needs it: what a script defines is pickled by value.
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
    """Starts such processes."""

    Process = _WorkerProcess


class PickledTask:
    """One task, run in another process."""

    def __init__(self, operation: bytes, coords: Any) -> None:
        self.operation, self.coords = operation, coords

    def __call__(self) -> Any:
        function, config = cloudpickle.loads(self.operation)
        return execute_with_stats(function, self.coords, config=config)


_is_stopping: Any = None
"""In a worker: whether the driver wants no further tasks."""


def _begin_worker(driver: int, is_stopping: Any) -> None:
    """In each worker: end when the driver has."""
    global _is_stopping  # noqa: PLW0603
    _is_stopping = is_stopping

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
