"""What each task tells the driver: what it has written, found and used."""

import re
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zarr.abc.store import Store as ZarrStore

type Task = tuple[str, tuple[int, ...]]
"""A task: what its operation is called, and its coordinates."""


@dataclass
class TaskReport:
    """
    What one task has done. It travels from worker to driver, so it stays small.

    Attributes
    ----------
    chunks
        How many chunks (shards, where there are shards) were written, or cleared.
    encoded_bytes, decoded_bytes
        How much was written as it was, and how much was re-encoded.
    found
        What a scan has found.
    store
        The store that was written to.
    task
        Which task it was: its operation as `tasks_of` calls it, and its coordinates. None if it has no name.
    plan
        Of which plan, where several are executed together.
    peak_mem
        The most memory that the task's process had used when the task ended, in bytes.
    start, end
        When it ran, in seconds since the epoch by the worker's clock.
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
    The most memory that this process has used, in bytes.

    Linux's own high-water mark where there is one: what ``getrusage`` says begins at the peak of the process
    that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if match:
            return int(match[1]) * 1024
    from cubed.utils import peak_measured_mem

    return int(peak_measured_mem())


def report_written(store: ZarrStore, n_chunks: int, decoded_bytes: int) -> None:
    """Let the present task report what it has written by itself, not through a view."""
    report = current_report.get()
    report.chunks += n_chunks
    report.decoded_bytes += decoded_bytes
    report.store = store
