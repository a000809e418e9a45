"""Reports of tasks to the driver: chunks written, findings of scans, and resources used."""

import re
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zarr.abc.store import Store as ZarrStore

type Task = tuple[str, tuple[int, ...]]
"""A task: the name of its Cubed operation, and its coordinates."""


@dataclass
class TaskReport:
    """
    The report of one task. It is sent from worker to driver, so it stays small.

    Attributes
    ----------
    chunks
        Number of chunks (shards, if the array has shards) written or cleared.
    encoded_bytes, decoded_bytes
        Bytes written verbatim, and decoded bytes that were re-encoded.
    found
        Findings of a scan.
    store
        The store that was written to.
    task
        The name of the task's operation, as in `tasks_of`, and its coordinates. None if the operation has no name.
    plan
        Index of the task's plan, if several are executed together.
    peak_mem
        Peak memory of the worker process at the end of the task, in bytes.
    start, end
        Start and end time, in seconds since the epoch by the worker's clock.
    """

    chunks: int = 0
    encoded_bytes: int = 0
    decoded_bytes: int = 0
    found: list[Any] = field(default_factory=list)
    store: ZarrStore | None = None
    task: Task | None = None
    plan: int = 0
    peak_mem: int = 0
    start: float = field(default_factory=time.time)
    end: float = 0.0


current_report: ContextVar[TaskReport] = ContextVar("vczstore_task_report")


def peak_mem() -> int:
    """
    The peak memory of this process, in bytes.

    On Linux this is ``VmHWM``: ``ru_maxrss`` of ``getrusage`` starts at the peak of the parent process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if match:
            return int(match[1]) * 1024
    from cubed.utils import peak_measured_mem

    return int(peak_measured_mem())


def report_written(store: ZarrStore, n_chunks: int, decoded_bytes: int = 0, *, encoded_bytes: int = 0) -> None:
    """Add chunks that the current task has written to its report."""
    report = current_report.get()
    report.chunks += n_chunks
    report.encoded_bytes += encoded_bytes
    report.decoded_bytes += decoded_bytes
    report.store = store
