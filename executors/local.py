"""Executors on this machine: one thread, several threads, several processes.

They are our own because Cubed's go on with queued tasks after one has failed, cannot retry in processes, and leave
worker processes behind when the driver is killed. What they keep is Cubed's contract: tasks of one generation of the
plan may run at once, and every task that has ended is told to the callbacks.

This module and `executors.lithops` are the only ones that touch Cubed's private interfaces of executors.
"""

import os
import signal
import sys
import threading
import time
from collections import deque
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
from itertools import chain, islice, repeat
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

QUEUED_PER_WORKER = 2
"""Tasks handed to the pool before a worker is free: few, so that a failure leaves nothing queued."""

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

    def tasks(self, name: str, pipeline: CubedPipeline) -> Iterator[Callable[..., Any]]:
        """What the pool is given, for each task of an operation."""
        for coords in pipeline.mappable:
            yield _LocalTask(pipeline, coords)

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
                    plans.setdefault(node.get("plan"), []).append(zip(repeat(name), self.tasks(name, node["pipeline"])))
                self._run(pool, chain.from_iterable(map(_in_turn, plans.values())), callbacks)
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
        todo: Iterator[tuple[str, Callable[..., Any]]],
        callbacks: Sequence[Callback] | None,
    ) -> None:
        running: dict[Future[Any], tuple[str, Callable[..., Any], int, float]] = {}

        def submit(name: str, task: Callable[..., Any], attempt: int) -> None:
            running[pool.submit(task)] = (name, task, attempt, time.time())

        while True:
            room = self.max_workers * QUEUED_PER_WORKER - len(running)
            for name, task in islice(todo, room):
                submit(name, task, 0)
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                name, task, attempt, created = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise WorkerDiedError(
                        "a worker process was killed, perhaps because it ran out of memory; "
                        "give it less to do at once with --max-workers or --allowed-mem"
                    ) from error
                if error is not None and attempt < self.retries and isinstance(error, Exception):
                    submit(name, task, attempt + 1)
                elif error is not None:
                    raise error
                else:
                    result, stats = future.result()
                    handle_callbacks(callbacks, result, {**stats, "name": name, "task_create_tstamp": created})


def _in_turn[T](iterators: Sequence[Iterator[T]]) -> Iterator[T]:
    """
    One item of each, again and again.

    Tasks of different arrays over the same rows run at about the same time so, and find in memory what they share; and
    those that compute run beside those that copy. Of plans that are executed together, one goes after the other: they
    share nothing.
    """
    waiting = deque(iterators)
    while waiting:
        iterator = waiting.popleft()
        for item in islice(iterator, 1):
            waiting.append(iterator)
            yield item


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
    """Several processes, spawned. They end with their driver, by any cause."""

    @property
    def name(self) -> str:
        """As in ``--executor``."""
        return "processes"

    def pool(self) -> Executor:
        """Start the processes. An interrupt is the driver's business, from their first moment on."""
        try:
            pool = ProcessPoolExecutor(
                self.max_workers, mp_context=_WorkerContext(), initializer=_begin_worker, initargs=(os.getpid(),)
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

    def tasks(self, name: str, pipeline: CubedPipeline) -> Iterator[Callable[..., Any]]:
        """The operation is pickled once; a task unpickles its own, so that what it writes is its own too."""
        operation = cloudpickle.dumps((pipeline.function, pipeline.config))
        for coords in pipeline.mappable:
            yield PickledTask(operation, coords)

    def close(self) -> None:
        """End the workers. One that was killed while it waited for work has left the others waiting for ever."""
        if self._pool is not None:
            self.stop(self._pool)
            self._pool = None

    def stop(self, pool: Executor) -> None:
        """End early: running tasks have a few seconds to finish what they are writing."""
        assert isinstance(pool, ProcessPoolExecutor)
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


def _begin_worker(driver: int) -> None:
    """In each worker: end when the driver has."""

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
