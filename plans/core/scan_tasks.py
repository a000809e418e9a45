"""Tasks that scan ranges of rows, and report their findings to the driver."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cubed
import numpy as np

from plans.core.chunk_grid import MIN_TASKS, TASK_BYTES, TASK_CHUNKS, Blocks
from plans.core.cubed_backend import BlockSink, put
from plans.core.memory import Memory
from plans.core.task_report import current_report


class FoundSink(BlockSink):
    """Sink that adds findings to the tasks' reports, as pairs of the scan's tag and the finding."""

    def __init__(self, n_tasks: int) -> None:
        super().__init__((n_tasks,), np.dtype(object), (1,))

    def __setitem__(self, key: tuple[slice, ...], values: np.ndarray) -> None:
        current_report.get().found.extend(pair for pairs in values for pair in pairs)


class Range(NamedTuple):
    """A range of rows to scan with `look` for the scan `tag`, and the memory needed for it, in bytes."""

    tag: int
    look: Callable[[slice], Any]
    rows: slice
    mem: int


@dataclass(frozen=True)
class ScanReader:
    """
    Scans ranges of rows, each in one task.

    Attributes
    ----------
    look
        Scans a range of rows, and returns a finding or None.
    n_rows, rows_per_task
        The number of rows in total, and per range.
    tag
        Identifies the scan in reports.
    mem
        Memory needed to scan a range, in bytes.
    """

    look: Callable[[slice], Any]
    n_rows: int
    rows_per_task: int
    tag: int = 0
    mem: int = 0

    dtype = np.dtype(object)

    @property
    def blocks(self) -> Blocks:
        """One element for each task."""
        return ((1,) * math.ceil(self.n_rows / self.rows_per_task),)

    def range(self, number: int) -> Range:
        start = number * self.rows_per_task
        return Range(self.tag, self.look, slice(start, min(self.n_rows, start + self.rows_per_task)), self.mem)

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        return _found([self.range(index[0])])

    def findings(self) -> Iterator[Any]:
        """Scan all ranges in this process, one after the other."""
        for number in range(len(self.blocks[0])):
            yield from (finding for _, finding in self.block((number,))[0])


@dataclass(frozen=True)
class _Together:
    """Ranges of several scans, grouped into tasks."""

    tasks: Sequence[Sequence[Range]]

    dtype = np.dtype(object)

    @property
    def blocks(self) -> Blocks:
        """One element for each task."""
        return ((1,) * len(self.tasks),)

    def share(self, index: tuple[int, ...]) -> "_Together":
        return _Together([self.tasks[index[0]]])

    def block(self, _: tuple[int, ...]) -> np.ndarray:
        return _found(self.tasks[0])


def _found(ranges: Iterable[Range]) -> np.ndarray:
    values = np.empty(1, dtype=object)
    found = ((r.tag, r.look(r.rows)) for r in ranges)
    values[0] = [(tag, value) for tag, value in found if value is not None]
    return values


def scan(reader: ScanReader, spec: cubed.Spec) -> cubed.Array:
    """A Cubed array that scans, with one task for each range."""
    return put(reader, FoundSink(len(reader.blocks[0])), spec, extra_mem=reader.mem)


def survey(scans: Sequence[ScanReader], memory: Memory) -> list[cubed.Array]:
    """
    All scans as one Cubed array, so that the plan does not grow with their number; empty if there are no rows to scan.

    Small ranges are scanned together in one task.
    """
    scans = [reader for reader in scans if reader.n_rows]
    if len(scans) < 2:
        return [scan(reader, memory.spec()) for reader in scans]
    ranges = [reader.range(i) for reader in scans for i in range(len(reader.blocks[0]))]
    most, room = min(TASK_CHUNKS, len(ranges) // MIN_TASKS), max(TASK_BYTES, memory.task_bytes)
    tasks: list[list[Range]] = []
    taken = 0
    for r in ranges:
        if tasks and len(tasks[-1]) < most and taken + r.mem <= room:
            tasks[-1].append(r)
            taken += r.mem
        else:
            tasks.append([r])
            taken = r.mem
    mem = max(reader.mem for reader in scans)
    return [put(_Together(tasks), FoundSink(len(tasks)), memory.spec(), extra_mem=mem, shared=True)]
