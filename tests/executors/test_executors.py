"""Executors: retries, failures that stop a plan, workers that die, and a bounded queue of tasks."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import networkx as nx
import psutil
import pytest
from cubed.runtime.types import CubedPipeline

import executors
import vczstore
from executors import local
from executors.local import GRACE, QUEUED_PER_WORKER, ROUNDS_PER_WORKER, ThreadsExecutor, WorkerDiedError
from tests.support import cohort
from tests.support.paths import ROOT
from tests.support.tasks import Ends, dag_of, run_tasks
from vczstore.errors import StorageError


@pytest.mark.parametrize("name", executors.LOCAL)
@pytest.mark.slow
def test_every_task_runs_once(name: str) -> None:
    def task(coords: list[int], *, config: None) -> int:
        return coords[0]

    assert sorted(run_tasks(name, task, 50)) == list(range(50))


@pytest.mark.slow
def test_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    """Worker processes do not run the script again, and still get the functions that it defines."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            from cubed.runtime.types import CubedPipeline
            import networkx as nx
            import executors

            print("begun")

            def double(number):
                return 2 * number

            def task(coords, *, config):
                return double(coords[0])

            dag = nx.MultiDiGraph()
            dag.add_node("op", pipeline=CubedPipeline(task, "op", [[i] for i in range(4)], None))
            engine = executors.create("processes", max_workers=2)
            engine.execute_dag(dag)
            engine.close()
            print("done")
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "begun\ndone\n", "")


def test_independent_operations_are_interleaved() -> None:
    ran: list[str] = []

    def task(coords: list[int], *, config: None, name: str) -> None:
        ran.append(f"{name}{coords[0]}")

    dag = nx.MultiDiGraph()
    for name, n in (("a", 4), ("b", 2), ("c", 1)):
        dag.add_node(name, pipeline=CubedPipeline(partial(task, name=name), name, [[i] for i in range(n)], None))
    executors.create("single-threaded").execute_dag(dag)
    assert ran == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def _dag_of_three(task: Any, n: int) -> nx.MultiDiGraph:
    """Three independent operations."""
    dag = nx.MultiDiGraph()
    for name in ("a", "b", "c"):
        dag.add_node(name, pipeline=CubedPipeline(partial(task, name=name), name, [[i] for i in range(n)], None))
    return dag


@pytest.mark.slow
def test_tasks_over_the_same_rows_share_a_process(tmp_path: Path) -> None:
    """Tasks reuse what the process has read. A failed task is retried, without those that ran before it."""

    def task(coords: list[int], *, config: None, name: str) -> tuple[str, int, int]:
        attempts = tmp_path / f"{name}{coords[0]}"
        with attempts.open("a") as file:
            file.write("x")
        if attempts.name == "b3" and attempts.stat().st_size < 3:
            raise OSError("the network is away")
        return name, coords[0], os.getpid()

    engine, ends = executors.create("processes", max_workers=2), Ends()
    n = 2 * ROUNDS_PER_WORKER
    try:
        engine.execute_dag(_dag_of_three(task, n), callbacks=[ends])
    finally:
        engine.close()
    assert sorted(result[:2] for result in ends.results) == [(name, i) for name in "abc" for i in range(n)]
    for i in set(range(n)) - {3}:
        assert len({pid for _, number, pid in ends.results if number == i}) == 1
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert {name for name, size in sizes.items() if size > 1} == {"b3"}
    assert sizes["b3"] == 3


@pytest.mark.slow
def test_a_failure_stops_tasks_that_share_a_process(tmp_path: Path) -> None:
    def task(coords: list[int], *, config: None, name: str) -> None:
        (tmp_path / f"{name}{coords[0]}").touch()
        if name == "b" and coords[0] == 1:
            raise ValueError("task b1")

    engine = executors.create("processes", max_workers=2, retries=0)
    try:
        with pytest.raises(ValueError, match="task b1"):
            engine.execute_dag(_dag_of_three(task, 100))
    finally:
        engine.close()
    assert (tmp_path / "a1").exists()
    assert not (tmp_path / "c1").exists()
    assert len(list(tmp_path.iterdir())) < 60


@pytest.mark.parametrize("name", executors.LOCAL)
@pytest.mark.slow
def test_a_task_that_fails_is_tried_again(name: str, tmp_path: Path) -> None:
    def task(coords: list[int], *, config: None) -> int:
        attempts = tmp_path / str(coords[0])
        with attempts.open("a") as file:
            file.write("x")
        if coords[0] == 3 and attempts.stat().st_size < 3:
            raise OSError("the network is away")
        return coords[0]

    assert sorted(run_tasks(name, task, 6, retries=2)) == list(range(6))
    assert [(tmp_path / str(i)).stat().st_size for i in range(6)] == [1, 1, 1, 3, 1, 1]


@pytest.mark.parametrize("name", executors.LOCAL)
@pytest.mark.slow
def test_after_a_failure_no_task_starts(name: str, tmp_path: Path) -> None:
    """When the error reaches the caller, no task is running, and no queued task ever starts."""

    def task(coords: list[int], *, config: None) -> None:
        (tmp_path / str(coords[0])).touch()
        time.sleep(0.05)
        if coords[0] == 2:
            raise ValueError("task 2")

    with pytest.raises(ValueError, match="task 2"):
        run_tasks(name, task, 200, retries=0, max_workers=2)
    started = len(list(tmp_path.iterdir()))
    assert started < 20
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) == started


@pytest.mark.slow
def test_a_killed_worker_is_one_error_and_no_hang(tmp_path: Path) -> None:
    def task(coords: list[int], *, config: None) -> None:
        if coords[0] == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    started, before = time.monotonic(), psutil.Process().children()
    with pytest.raises(WorkerDiedError, match="a worker process was killed"):
        run_tasks("processes", task, 100, max_workers=2)
    assert time.monotonic() - started < 30
    new_children = [child for child in psutil.Process().children() if child not in before]
    assert not [child for child in new_children if "vczstore" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_a_worker_that_was_killed_between_two_plans() -> None:
    """The pool refuses the first task that is submitted, before any is running."""

    def task(coords: list[int], *, config: None) -> int:
        return os.getpid()

    engine = executors.create("processes", max_workers=1)
    engine.execute_dag(dag_of(task, 1))
    (worker,) = engine._pool._processes.values()
    worker.kill()
    deadline = time.monotonic() + 30
    while not engine._pool._broken and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(WorkerDiedError, match="a worker process was killed"):
        engine.execute_dag(dag_of(task, 1))


@pytest.mark.slow
def test_a_worker_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when an idle worker is killed while it holds the lock of the queue: the others never exit."""

    def task(coords: list[int], *, config: None) -> int:
        return os.getpid()

    monkeypatch.setattr(local, "GRACE", 0.3)
    engine = executors.create("processes", max_workers=2)
    engine.execute_dag(dag_of(task, 4))
    workers = [psutil.Process(pid) for pid in engine._pool._processes]
    workers[0].suspend()
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < 20
    assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_workers_end_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import os, time
        from pathlib import Path
        from tests.executors.test_executors import run_tasks

        def task(coords, *, config):
            (Path({str(tmp_path)!r}) / str(os.getpid())).touch()
            time.sleep(60)

        if __name__ == "__main__":
            run_tasks("processes", task, 4, max_workers=2)
        """
    )
    file = tmp_path / "driver.py"
    file.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, file], env=environment)
    workers: list[int] = []
    deadline = time.monotonic() + 60
    while len(workers) < 2 and time.monotonic() < deadline:
        workers = [int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()]
        time.sleep(0.1)
    assert len(workers) == 2
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs([psutil.Process(w) for w in workers if psutil.pid_exists(w)], timeout=GRACE + 5)
    assert not alive


def test_few_tasks_wait_in_the_pool() -> None:
    """The number of queued futures is bounded, however many tasks there are."""
    waiting: list[int] = []

    class Counting(ThreadPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            future = super().submit(fn, *args, **kwargs)
            waiting.append(self._work_queue.qsize())
            return future

    class Engine(ThreadsExecutor):
        def pool(self) -> Counting:
            return Counting(self.max_workers)

    def task(coords: list[int], *, config: None) -> None:
        pass

    engine = Engine(max_workers=2)
    engine.execute_dag(dag_of(task, 500))
    engine.close()
    assert len(waiting) == 500
    assert max(waiting) <= 2 * QUEUED_PER_WORKER


def test_importing_executors_imports_no_engine() -> None:
    code = "import sys, executors; print([m for m in ('cubed', 'numpy', 'zarr', 'icechunk') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_executor() -> None:
    with pytest.raises(executors.ExecutorOptionError, match="no executor 'thread'; choose one of single-threaded"):
        executors.create("thread")


@pytest.mark.slow
def test_processes_without_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers without a writable /dev/shm: the error contains the system's message."""
    import _multiprocessing

    class Semaphore(_multiprocessing.SemLock):
        def __new__(cls, *_: Any) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    cohort.write_vcz(tmp_path / "store", cohort.make_arrays(10, cohort.ids(0, 3)))
    cohort.write_vcz(tmp_path / "batch", cohort.make_arrays(10, cohort.ids(3, 2)))
    before = cohort.digest(tmp_path / "store")
    monkeypatch.setattr(_multiprocessing, "SemLock", Semaphore)
    with pytest.raises(StorageError, match=r"cannot start \(Read-only file system\).* use the executor threads"):
        vczstore.append(tmp_path / "store", tmp_path / "batch", executor="processes")
    assert cohort.digest(tmp_path / "store") == before
