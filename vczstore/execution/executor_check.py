"""Check that an executor works: run a few tasks that report the versions and the memory of their machine."""

import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import executors
from plans.core.scan_reader import ScanReader
from vczstore.errors import OptionError, StorageError, VczstoreError
from vczstore.execution.options import Options
from vczstore.execution.workers import Workers
from vczstore.sizes import human_size

PACKAGES = ("vczstore", "cubed", "icechunk", "zarr", "numpy", "cloudpickle")
MATTERS = ("Python", "cubed", "icechunk", "zarr")
"""Versions that have to match in worker and driver, which exchange plans and session forks as pickles."""
N_TASKS = 4


@dataclass(frozen=True)
class Checked:
    """
    Findings of the check of an executor.

    Attributes
    ----------
    executor
        Its name.
    first_seconds
        Seconds from the start until the first task had ended.
    task_seconds
        Mean seconds per task from the end of the first task to the end of the last.
    peak_mem, total_mem
        In bytes: the peak memory of a worker's process, which is the amount to reserve for Python; and the memory limit
        of the worker if it has one, else the memory of its machine.
    driver, worker
        The versions of Python and packages; None for a package that is not installed.
    differ
        Names of Python and packages whose versions differ.
    """

    executor: str
    first_seconds: float
    task_seconds: float
    peak_mem: int
    total_mem: int | None
    driver: Mapping[str, str | None]
    worker: Mapping[str, str | None]
    differ: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the versions in `MATTERS` match; the patch version of Python may differ."""
        return not any(_matters(name, self.driver[name], self.worker[name]) for name in self.differ)

    def as_dict(self) -> dict[str, Any]:
        """All findings, for JSON."""
        return {"ok": self.ok, **asdict(self), "differ": list(self.differ)}

    def lines(self) -> list[str]:
        """The lines that the command prints."""
        total = "" if self.total_mem is None else f" of {human_size(self.total_mem)}"
        rows = [
            f"{self.executor}: {'ok' if self.ok else 'its versions do not fit'}",
            f"  first task  {self.first_seconds:.2f} s, then {self.task_seconds:.2f} s a task",
            f"  memory      {human_size(self.peak_mem)}{total}",
        ]
        for name, here in self.driver.items():
            other = f", here {here or 'missing'}" if name in self.differ else ""
            rows.append(f"  {name:<11} {self.worker.get(name) or 'missing'}{other}")
        return rows


def check(executor: str, **options: Any) -> Checked:
    """
    Run a few tasks on an executor.

    Parameters
    ----------
    executor
        Name of the executor, or path of an executor file.
    options
        As in `vczstore.execution.options.Options`.

    Raises
    ------
    VczstoreError
        If the tasks do not run.
    """
    from plans.core import cubed_backend, scan_tasks, task_report

    opts = Options(executor=executor, **options)
    ends: list[float] = []
    workers: list[dict[str, Any]] = []

    def on_report(report: task_report.TaskReport) -> None:
        ends.append(time.perf_counter())
        workers.extend(worker for _, worker in report.found)

    reader = ScanReader(_inspect, N_TASKS, 1)
    plan = cubed_backend.compile_plan([scan_tasks.scan(reader, opts.memory.spec())], "executor check")
    assert plan is not None
    started = time.perf_counter()
    try:
        with Workers(opts) as active:
            cubed_backend.execute([(plan, on_report)], active.executor)
    except VczstoreError:
        raise
    except executors.ExecutorOptionError as error:
        raise OptionError(f"executor check: {error}") from error
    except Exception as error:
        reason = executors.first_line(error)
        raise StorageError(
            f"executor check: tasks do not run on {opts.executor}: {reason}; "
            "see that its workers have the Python and the packages that are here"
        ) from error
    if len(workers) != N_TASKS:
        raise StorageError(f"executor check: {len(workers)} of {N_TASKS} tasks have reported; the executor loses some")
    driver, worker = versions(), workers[0]["versions"]
    return Checked(
        executor=opts.executor,
        first_seconds=ends[0] - started,
        task_seconds=(ends[-1] - ends[0]) / (N_TASKS - 1),
        peak_mem=max(w["peak_mem"] for w in workers),
        total_mem=workers[0]["total_mem"],
        driver=driver,
        worker=worker,
        differ=tuple(name for name in driver if driver[name] != worker.get(name)),
    )


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of `PACKAGES` in this process; None for a package that is not installed."""
    installed: dict[str, str | None] = {"Python": platform.python_version()}
    for package in PACKAGES:
        installed[package] = None
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def _inspect(_: slice) -> dict[str, Any]:
    """Return the versions and the memory of this worker."""
    import icechunk  # noqa: F401  # every task imports it, so it counts towards peak_mem

    from plans.core.task_report import peak_mem

    return {"versions": versions(), "peak_mem": peak_mem(), "total_mem": _total_mem()}


def _total_mem() -> int | None:
    """Return the memory limit of this function or container, else the memory of the machine, in bytes."""
    if size := os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE"):
        return int(size) * 2**20
    totals = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            totals.append(int(Path(limit).read_text()))
    return min(totals)


def _matters(name: str, driver: str | None, worker: str | None) -> bool:
    """Whether differing versions in driver and worker are an error."""
    if name == "Python" and driver and worker:
        return driver.split(".")[:2] != worker.split(".")[:2]
    return name in MATTERS
