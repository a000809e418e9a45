"""Tasks that look at ranges of rows, and send what they have found to the driver."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cubed
import numpy as np

from plans.core.chunk_grid import MIN_TASKS, TASK_BYTES, TASK_CHUNKS, Blocks
from plans.core.cubed_backend import BlockSink, move, put
from plans.core.memory import Memory
from plans.core.task_report import current_report


class FoundSink(BlockSink):
    """Takes what scans have found to the driver, in the tasks' reports: lists of it, each with the number of a scan."""

    def __init__(self, n_tasks: int) -> None:
        super().__init__((n_tasks,), np.dtype(object), (1,))

    def __setitem__(self, key: tuple[slice, ...], values: np.ndarray) -> None:
        """Keep what one task has found."""
        current_report.get().found.extend(pair for pairs in values for pair in pairs)


class Range(NamedTuple):
    """A range of rows that a scan looks at, and what it takes, in bytes."""

    tag: int
    look: Callable[[slice], Any]
    rows: slice
    mem: int


@dataclass(frozen=True)
class ScanReader:
    """
    Looks at one range of rows after the other, each in a task; what is found there is an object, or None.

    Attributes
    ----------
    look
        Looks at a range.
    n_rows, rows_per_task
        How many rows there are, and how many are looked at together.
    tag
        Tells what is found from what other scans find.
    mem
        What it takes to look at a range, in bytes.
    """

    look: Callable[[slice], Any]
    n_rows: int
    rows_per_task: int
    tag: int = 0
    mem: int = 0

    @property
    def dtype(self) -> np.dtype:
        """An element is a list of what was found."""
        return np.dtype(object)

    @property
    def blocks(self) -> Blocks:
        """One element for each task."""
        return ((1,) * math.ceil(self.n_rows / self.rows_per_task),)

    def range(self, number: int) -> Range:
        """What one task looks at."""
        start = number * self.rows_per_task
        return Range(self.tag, self.look, slice(start, min(self.n_rows, start + self.rows_per_task)), self.mem)

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Look at the rows of one task."""
        return _found([self.range(index[0])])


@dataclass(frozen=True)
class _Together:
    """Ranges of many scans, some in each task."""

    tasks: Sequence[Sequence[Range]]

    dtype = np.dtype(object)

    @property
    def blocks(self) -> Blocks:
        """One element for each task."""
        return ((1,) * len(self.tasks),)

    def share(self, index: tuple[int, ...]) -> "_Together":
        """What one task looks at."""
        return _Together([self.tasks[index[0]]])

    def block(self, _: tuple[int, ...]) -> np.ndarray:
        """Look at all of a task's share."""
        return _found(self.tasks[0])


def _found(ranges: Iterable[Range]) -> np.ndarray:
    values = np.empty(1, dtype=object)
    found = ((r.tag, r.look(r.rows)) for r in ranges)
    values[0] = [(tag, value) for tag, value in found if value is not None]
    return values


def scan(reader: ScanReader, spec: cubed.Spec) -> cubed.Array:
    """A scan as a Cubed array, with a task for each range."""
    return put(reader, FoundSink(len(reader.blocks[0])), spec, extra_mem=reader.mem)


def survey(scans: Sequence[ScanReader], memory: Memory) -> list[cubed.Array]:
    """
    Scans as one Cubed array, so that a plan does not grow with them; none if there is nothing to look at.

    Ranges that take little are looked at together in one task.
    """
    scans = [one for one in scans if one.n_rows]
    if len(scans) < 2:
        return [scan(one, memory.spec()) for one in scans]
    ranges = [one.range(i) for one in scans for i in range(len(one.blocks[0]))]
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
    mem = max(one.mem for one in scans)
    return [move(_Together(tasks), FoundSink(len(tasks)), memory.spec(), extra_mem=mem, shared=True)]
