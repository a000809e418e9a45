"""Selected rows of arrays: the variants that are kept, as runs of rows, and the chunks that are written with them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import Blocks, Columns
from plans.core.memory import Memory
from plans.core.rewrite_columns import Reencoded
from vczstore.vcz import arrays, pipeline
from vczstore.vcz.model import VARIANTS, dimensions, samples_axis

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore


@dataclass(frozen=True)
class Rows:
    """
    Rows of an array that are kept, in order, as runs of consecutive rows, so that memory depends on the number of runs.

    Attributes
    ----------
    starts
        The first row of each run.
    before
        The number of rows kept before each run, and the total.

    Examples
    --------
    >>> rows = Rows.of(np.array([[2, 5], [5, 6], [9, 11]]))
    >>> rows.n, rows.starts.tolist(), list(rows.pieces(slice(3, 6)))
    (6, [2, 9], [(slice(0, 1, None), slice(5, 6, None)), (slice(1, 3, None), slice(9, 11, None))])
    """

    starts: np.ndarray
    before: np.ndarray

    @classmethod
    def of(cls, runs: np.ndarray) -> "Rows":
        """Merge adjacent runs, given as half-open ranges in order, without overlaps."""
        begins = np.flatnonzero(np.append(True, runs[1:, 0] != runs[:-1, 1])) if len(runs) else np.empty(0, dtype="i8")
        lengths = np.add.reduceat(runs[:, 1] - runs[:, 0], begins) if len(runs) else begins
        return cls(runs[begins, 0], np.append(0, np.cumsum(lengths)))

    @property
    def n(self) -> int:
        """Number of rows kept."""
        return int(self.before[-1])

    def within(self, kept: slice) -> "Rows":
        """The runs that overlap a range of the kept rows; only these are sent to a task."""
        first = max(0, int(np.searchsorted(self.before, kept.start, side="right")) - 1)
        last = int(np.searchsorted(self.before, kept.stop))
        return Rows(self.starts[first:last], self.before[first : last + 1])

    def pieces(self, kept: slice) -> Iterator[tuple[slice, slice]]:
        """For a range of the kept rows, each run as a slice of the range and a slice of the array."""
        runs = self.within(kept)
        for start, before, after in zip(runs.starts, runs.before, runs.before[1:], strict=False):
            first, last = max(before, kept.start), min(after, kept.stop)
            at = int(start + first - before)
            yield slice(int(first - kept.start), int(last - kept.start)), slice(at, at + int(last - first))

    def positions(self, kept: slice) -> np.ndarray:
        """The array rows of a range of the kept rows."""
        pieces = [np.arange(there.start, there.stop) for _, there in self.pieces(kept)]
        return np.concatenate([np.empty(0, dtype="i8"), *pieces])


def read_rows(array: AnyArray, axis: int, positions: np.ndarray, others: tuple[slice, ...] = ()) -> np.ndarray:
    """Read rows of an array, one chunk along `axis` after the other; `others` are the slices along the other axes."""
    others = others or tuple(slice(0, n) for i, n in enumerate(array.shape) if i != axis)
    lengths = [s.stop - s.start for s in others]
    values = np.empty((*lengths[:axis], len(positions), *lengths[axis:]), dtype=array.dtype)
    chunks = arrays.cuts(array)[axis].of(positions)
    bounds = [*np.flatnonzero(np.diff(chunks, prepend=-1)).tolist(), len(positions)]
    for first, last in pairwise(bounds):
        rows = positions[first:last]
        slab = arrays.read(array, (*others[:axis], slice(int(rows[0]), int(rows[-1]) + 1), *others[axis:]))
        values[(*[slice(None)] * axis, slice(first, last))] = np.take(slab, rows - rows[0], axis=axis)
    return values


@dataclass(frozen=True)
class _Selected:
    """Reader of an array with selected rows and samples of another."""

    source: AnyArray
    rows: Rows
    samples: np.ndarray | None
    columns: Columns

    @property
    def dtype(self) -> np.dtype:
        return self.source.dtype

    @property
    def blocks(self) -> Blocks:
        return self.columns.blocks

    @cached_property
    def axes(self) -> tuple[int, int | None]:
        """The variants axis and the samples axis of the source; the latter None if it has none."""
        return dimensions(self.source).index(VARIANTS), samples_axis(self.source)

    def share(self, index: tuple[int, ...]) -> "_Selected":
        """The reader with only the runs of rows of one block."""
        ((_, there),) = self.columns.regions(index)
        return replace(self, rows=self.rows.within(there[self.axes[0]]))

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Read a block, one chunk column of the source's samples after the other."""
        ((_, there),) = self.columns.regions(index)
        axis, along = self.axes
        positions = self.rows.positions(there[axis])
        others = {i: s for i, s in enumerate(there) if i != axis}
        if along is None or self.samples is None:
            return read_rows(self.source, axis, positions, tuple(others.values()))
        chosen = self.samples[there[along]]
        values = np.empty([s.stop - s.start for s in there], dtype=self.dtype)
        columns = arrays.cuts(self.source)[along].of(chosen)
        for column in np.unique(columns):
            to = np.flatnonzero(columns == column)
            first, last = int(chosen[to].min()), int(chosen[to].max())
            others[along] = slice(first, last + 1)
            slab = read_rows(self.source, axis, positions, tuple(others.values()))
            here: list[slice | np.ndarray] = [*[slice(None)] * along, to]
            values[tuple(here)] = np.take(slab, chosen[to] - first, axis=along)
        return values

    def decode_mem(self) -> int:
        """Bytes needed to read a block: decoded chunks, the slab read from them, and the rows selected from it."""
        axis, along = self.axes
        chunks, shape = arrays.outer_chunks(self.source), list(self.columns.block_shape)
        if along is not None:
            shape[along] = min(self.source.shape[along], max(shape[along], chunks[along]))
        sides = [math.ceil(n / c) + 1 for i, (n, c) in enumerate(zip(shape, chunks, strict=True)) if i != axis]
        n_chunks = min(math.prod(sides), pipeline.READS_AT_ONCE)
        rows = math.prod(n for i, n in enumerate(shape) if i != axis) * arrays.element_bytes(self.source)
        return arrays.decode_mem(self.source, n_chunks) + rows * 2 * (shape[axis] + chunks[axis])


@dataclass(frozen=True)
class SelectRows(Reencoded):
    """
    Write an array with selected rows and samples of another.

    Attributes
    ----------
    source
        The other array.
    rows
        The rows that are kept.
    samples
        The positions of the samples; None if the array has no samples axis.
    """

    source: AnyArray
    rows: Rows
    samples: np.ndarray | None

    @classmethod
    def of(
        cls, operation: str, source: AnyArray, target: AnyArray, rows: Rows, samples: np.ndarray, memory: Memory
    ) -> "SelectRows":
        """Choose the chunks of the target per task: as many as a chunk of the source covers, if memory allows."""
        chosen = None if samples_axis(source) is None else samples
        write = cls(target.path, target, Columns.of(target), source, rows, chosen)
        sides = zip(arrays.outer_chunks(source), arrays.outer_chunks(target), strict=True)
        return write.fit(operation, memory, [math.ceil(theirs / ours) for theirs, ours in sides])

    is_shared = True
    """Each task is sent only the runs of its own rows."""

    def reader(self, store: "ZarrStore") -> _Selected:
        return _Selected(self.source, self.rows, self.samples, self.columns)
