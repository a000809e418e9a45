"""Readers of scans: ranges of rows that tasks scan one by one. Cubed is not imported, so that scans can be declared."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from plans.core.chunk_grid import Blocks
from plans.core.memory import Memory


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
    mem
        Memory needed to scan a range, in bytes.
    first
        The first row.
    tag
        Identifies the scan in reports.
    """

    look: Callable[[slice], Any]
    n_rows: int
    rows_per_task: int
    mem: int = 0
    first: int = 0
    tag: int = 0

    dtype = np.dtype(object)

    @property
    def blocks(self) -> Blocks:
        """One element for each task."""
        return ((1,) * math.ceil(self.n_rows / self.rows_per_task),)

    def range(self, number: int) -> Range:
        start = number * self.rows_per_task
        stop = min(self.n_rows, start + self.rows_per_task)
        return Range(self.tag, self.look, slice(self.first + start, self.first + stop), self.mem)

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        return scanned([self.range(index[0])])

    def readers(self, memory: Memory) -> "list[ScanReader]":
        """The reader itself: it is a scan with a single reader."""
        return [self]

    def findings(self) -> Iterator[Any]:
        """Scan all ranges in this process, one after the other."""
        for number in range(len(self.blocks[0])):
            yield from (finding for _, finding in self.block((number,))[0])


def scanned(ranges: Iterable[Range]) -> np.ndarray:
    """Scan ranges; the findings are one list of tags and values, without None, as the only element of an array."""
    values = np.empty(1, dtype=object)
    found = ((r.tag, r.look(r.rows)) for r in ranges)
    values[0] = [(tag, value) for tag, value in found if value is not None]
    return values
