"""Overhead of tasks: scheduling, and merging the Icechunk forks that they write to."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype

import executors
from plans.core import cubed_backend, scan_tasks
from plans.core.memory import Memory
from tests.benchmarks.worker import peak_rss
from vczstore.stores.icechunk import IcechunkStore
from vczstore.vcz import zarr_objects

WORKERS = 2
N_TASKS, TASK_SECONDS = 2_000, 0.005
N_FORKS, TIMES = 10_000, 10
"""Number of distinct forks, and how often each is collected: a retried task returns its fork again."""


@dataclass(frozen=True)
class Sleeper:
    """A reader whose blocks sleep for `TASK_SECONDS` without using CPU, so that only scheduling adds to the time."""

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(object)

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        return ((1,) * N_TASKS,)

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        sleep(TASK_SECONDS)
        values = np.empty(1, dtype=object)
        values[0] = []
        return values


def scheduling(name: str) -> float:
    """Seconds that `N_TASKS` tasks take on an executor with running workers: the second of two runs."""
    engine = executors.create(name, max_workers=WORKERS)
    for _ in range(2):
        view = scan_tasks.FoundSink(N_TASKS)
        plan = cubed_backend.compile_plan(
            [cubed_backend.write(cubed_backend.read(Sleeper(), Memory().spec()), view)], "tasks"
        )
        assert plan is not None
        started = perf_counter()
        cubed_backend.execute([(plan, lambda _: None)], engine)
        seconds = perf_counter() - started
    engine.close()
    return seconds


def merging(folder: Path) -> tuple[float, float]:
    """Seconds to merge all forks, and the peak memory in bytes; measured in a separate process."""
    command = [sys.executable, "-m", "tests.benchmarks.tasks", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def _merge(folder: Path) -> tuple[float, float]:
    icechunk_store = IcechunkStore.create(str(folder), {}, 1)
    session = icechunk_store.repository.writable_session("main")
    zarr.create_array(session.store, name="x", shape=(N_FORKS,), chunks=(1,), dtype="i8", compressors=None)
    value = default_buffer_prototype().buffer.from_bytes((1).to_bytes(8, "little"))
    transaction = icechunk_store.transaction(session.commit("an array"))
    with transaction.step((), ()) as store:
        fork = pickle.dumps(store)
        seconds = 0.0
        for returned in _forks(fork, value):
            started = perf_counter()
            for _ in range(TIMES):
                transaction.collect(pickle.loads(returned))
            seconds += perf_counter() - started
    transaction.commit("merged", {})
    values = zarr.open_array(icechunk_store.repository.readonly_session("main").store, path="x")[...]
    assert values.tolist() == [1] * N_FORKS
    return seconds, float(peak_rss())


def _forks(fork: bytes, value: object) -> Iterator[bytes]:
    """Pickled forks as returned by tasks, each of which has written one chunk."""
    for i in range(N_FORKS):
        store = pickle.loads(fork)
        zarr_objects.set_many(store, [(f"x/c/{i}", value)])
        yield pickle.dumps(store)


if __name__ == "__main__":
    print(json.dumps(_merge(Path(sys.argv[1]))))
