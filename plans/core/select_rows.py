"""Some rows of arrays: the variants that are kept, as runs of rows, and the chunks that they are put together into."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import Blocks, Columns, chunk_regions
from plans.core.memory import Memory
from plans.core.rewrite_columns import Reencoded
from vczstore.vcz import arrays, pipeline
from vczstore.vcz.model import VARIANTS, dimensions, samples_axis

if TYPE_CHECKING:
    import cubed
    from zarr.abc.store import Store as ZarrStore


@dataclass(frozen=True)
class Rows:
    """
    Rows of an array that are kept, in their order, as runs: what is kept of 10^9 rows may be that many, the runs few.

    Attributes
    ----------
    starts
        The first row of each run.
    before
        How many rows are kept before each run, and how many in all.

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
        """Put together runs, first and last row but one, which are in order and do not overlap."""
        begins = np.flatnonzero(np.append(True, runs[1:, 0] != runs[:-1, 1])) if len(runs) else np.empty(0, dtype="i8")
        lengths = np.add.reduceat(runs[:, 1] - runs[:, 0], begins) if len(runs) else begins
        return cls(runs[begins, 0], np.append(0, np.cumsum(lengths)))

    @property
    def n(self) -> int:
        """How many rows are kept."""
        return int(self.before[-1])

    def within(self, kept: slice) -> "Rows":
        """Those that a range of what is kept takes: what a task is sent."""
        first = max(0, int(np.searchsorted(self.before, kept.start, side="right")) - 1)
        last = int(np.searchsorted(self.before, kept.stop))
        return Rows(self.starts[first:last], self.before[first : last + 1])

    def pieces(self, kept: slice) -> Iterator[tuple[slice, slice]]:
        """The runs of a range of what is kept: their rows in the range, and in the array."""
        found = self.within(kept)
        for start, before, after in zip(found.starts, found.before, found.before[1:], strict=False):
            first, last = max(before, kept.start), min(after, kept.stop)
            at = int(start + first - before)
            yield slice(int(first - kept.start), int(last - kept.start)), slice(at, at + int(last - first))

    def positions(self, kept: slice) -> np.ndarray:
        """The rows of a range of what is kept, one by one."""
        pieces = [np.arange(there.start, there.stop) for _, there in self.pieces(kept)]
        return np.concatenate([np.empty(0, dtype="i8"), *pieces])


def read_rows(array: AnyArray, axis: int, positions: np.ndarray, others: tuple[slice, ...] = ()) -> np.ndarray:
    """
    Read rows of an array, one chunk of rows after the other.

    Parameters
    ----------
    array, axis
        The array, and which of its axes rows are.
    positions
        The rows, in order.
    others
        What is read along the other axes; all by default.
    """
    others = others or tuple(slice(0, n) for i, n in enumerate(array.shape) if i != axis)
    lengths = [one.stop - one.start for one in others]
    values = np.empty((*lengths[:axis], len(positions), *lengths[axis:]), dtype=array.dtype)
    chunks = arrays.cuts(array)[axis].of(positions)
    bounds = [*np.flatnonzero(np.diff(chunks, prepend=-1)).tolist(), len(positions)]
    for first, last in pairwise(bounds):
        mine = positions[first:last]
        slab = arrays.read(array, (*others[:axis], slice(int(mine[0]), int(mine[-1]) + 1), *others[axis:]))
        values[(*[slice(None)] * axis, slice(first, last))] = np.take(slab, mine - mine[0], axis=axis)
    return values


@dataclass(frozen=True)
class _Selected:
    """Blocks of an array that has some rows, and some samples, of another."""

    source: AnyArray
    rows: Rows
    samples: np.ndarray | None
    columns: Columns

    @property
    def dtype(self) -> np.dtype:
        """As in the source."""
        return self.source.dtype

    @property
    def blocks(self) -> Blocks:
        """In elements."""
        return self.columns.blocks

    @cached_property
    def axes(self) -> tuple[int, int | None]:
        """That of the variants, and of the samples."""
        return dimensions(self.source).index(VARIANTS), samples_axis(self.source)

    def share(self, index: tuple[int, ...]) -> "_Selected":
        """With the rows of a block alone."""
        ((_, there),) = self.columns.regions(index)
        return replace(self, rows=self.rows.within(there[self.axes[0]]))

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Read one block."""
        ((_, there),) = self.columns.regions(index)
        return self.read(there)

    def read(self, there: tuple[slice, ...]) -> np.ndarray:
        """Read a region of the target, one chunk column of the source's samples after the other."""
        axis, along = self.axes
        positions = self.rows.positions(there[axis])

        def others(samples: slice | None) -> tuple[slice, ...]:
            cut = [samples if i == along and samples is not None else one for i, one in enumerate(there)]
            return tuple(one for i, one in enumerate(cut) if i != axis)

        if along is None or self.samples is None:
            return read_rows(self.source, axis, positions, others(None))
        chosen = self.samples[there[along]]
        values = np.empty([one.stop - one.start for one in there], dtype=self.dtype)
        columns = arrays.cuts(self.source)[along].of(chosen)
        for column in np.unique(columns):
            to = np.flatnonzero(columns == column)
            first, last = int(chosen[to].min()), int(chosen[to].max())
            slab = read_rows(self.source, axis, positions, others(slice(first, last + 1)))
            here: list[slice | np.ndarray] = [*[slice(None)] * along, to]
            values[tuple(here)] = np.take(slab, chosen[to] - first, axis=along)
        return values

    def decode_mem(self) -> int:
        """What it takes to read a block: chunks of some rows, what is read of them, and rows of whole columns."""
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
    One array has some rows, and some samples, of another.

    Attributes
    ----------
    source
        The other.
    rows
        The rows.
    samples
        The positions of the samples, None if the array has none.
    """

    source: AnyArray
    rows: Rows
    samples: np.ndarray | None

    @classmethod
    def of(
        cls, operation: str, source: AnyArray, target: AnyArray, rows: Rows, samples: np.ndarray, memory: Memory
    ) -> "SelectRows":
        """Decide how many chunks of the target a task takes: those of which a chunk of the source has samples."""
        widths, axis = arrays.widths(target), samples_axis(source)
        chosen = None if axis is None else samples

        def cut(block: tuple[int, ...]) -> SelectRows:
            return cls(target.path, target, Columns(target.shape, widths, None, (), block), source, rows, chosen)

        theirs, ours = arrays.outer_chunks(source), arrays.outer_chunks(target)
        prefer = [math.ceil(t / o) for t, o in zip(theirs, ours, strict=True)]
        grid, chunk_bytes = arrays.grid_of(target), arrays.chunk_bytes(target)
        block = memory.fit(operation, grid, chunk_bytes, lambda b: cut(b).reader().decode_mem(), prefer=prefer)
        return cut(block)

    def reader(self) -> _Selected:
        """The values."""
        return _Selected(self.source, self.rows, self.samples, self.columns)

    def by_cubed(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """Each task is sent the runs of its own rows."""
        from plans.core import cubed_backend as chunks
        from plans.core import sinks

        if not self.columns.n_chunks:
            return []
        sink = sinks.DecodedSink(arrays.planned(self.target, store=store), self.columns)
        reader = self.reader()
        return [chunks.move(reader, sink, memory.spec(), extra_mem=reader.decode_mem(), shared=True)]

    def by_zarr(self, store: "ZarrStore") -> None:
        """Chunk by chunk of the target."""
        target, reader = arrays.planned(self.target, store=store), self.reader()
        for region in chunk_regions(target, {}):
            target[region] = reader.read(region)
