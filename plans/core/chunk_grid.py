"""Chunk columns: the chunks that an operation touches, and the number of chunks per task. Integers in, integers out."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from zarr.types import AnyArray

from vczstore.vcz import arrays
from vczstore.vcz.cuts import Cuts, Width

type Blocks = tuple[tuple[int, ...], ...]
"""The length of each block along each axis, as in ``cubed.Array.chunks``."""
type Region = tuple[slice, ...]

TASK_BYTES = 64 * 2**20
"""Decoded bytes per task to aim for: large enough that the overhead of a task is negligible."""
TASK_CHUNKS = 1000
"""Maximal number of chunks per task, however small they are."""
MIN_TASKS = 8
"""Tasks are made smaller before there are fewer than this many, to keep all workers busy."""


@dataclass(frozen=True)
class Columns:
    """
    Some chunk columns of an array, side by side, cut into blocks of whole chunks.

    With an array of 10 samples in chunks of 4, columns 0 and 2 are samples 0 to 3 and 8 to 9. Side by side
    they make an axis of 6::

        array     0 1 2 3 | 4 5 6 7 | 8 9
        columns      0         1       2
        here      0 1 2 3 |           4 5

    Attributes
    ----------
    array_shape
        The shape of the array, in elements.
    chunks
        The shape of its chunks (or shards); along an axis where they differ in width, a tuple of all widths.
    axis
        The axis that is cut into columns; None to take the whole array.
    columns
        The indices of the chunk columns, increasing. Not used without an axis.
    block
        The number of chunks in a block along each axis. One task takes one block.

    Examples
    --------
    >>> c = Columns((10,), (4,), axis=0, columns=(0, 2), block=(2,))
    >>> c.grid, c.shape, c.blocks
    ((2,), (6,), ((6,),))
    >>> list(c.regions((0,)))
    [((slice(0, 4, None),), (slice(0, 4, None),)), ((slice(4, 6, None),), (slice(8, 10, None),))]
    """

    array_shape: tuple[int, ...]
    chunks: tuple[Width, ...]
    axis: int | None
    columns: tuple[int, ...]
    block: tuple[int, ...]

    @classmethod
    def of(
        cls,
        array: AnyArray,
        axis: int | None = None,
        columns: Iterable[int] = (),
        *,
        shape: Sequence[int] | None = None,
    ) -> "Columns":
        """Chunk columns of an array, or of its part of some `shape`, in blocks of one chunk; by default all chunks."""
        shape = array.shape if shape is None else shape
        return cls(tuple(shape), arrays.widths(array), axis, tuple(columns), (1,) * array.ndim)

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @cached_property
    def _array_cuts(self) -> tuple[Cuts, ...]:
        """The chunks of the array along each axis."""
        return tuple(Cuts(n, width) for n, width in zip(self.array_shape, self.chunks, strict=True))

    @cached_property
    def _cuts(self) -> tuple[Cuts, ...]:
        """The chunks of the columns, side by side, along each axis."""
        return tuple(self._chosen(cut) if i == self.axis else cut for i, cut in enumerate(self._array_cuts))

    def _chosen(self, cut: Cuts) -> Cuts:
        if not self.columns:
            return Cuts(0, 1)
        if isinstance(cut.width, int):  # only the last column may be shorter
            last = self.columns[-1]
            return Cuts(cut.width * (len(self.columns) - 1) + cut.stop(last) - cut.start(last), cut.width)
        columns = np.array(self.columns)
        lengths = tuple((cut.stop(columns) - cut.start(columns)).tolist())
        return Cuts(sum(lengths), lengths)

    @property
    def grid(self) -> tuple[int, ...]:
        """The number of chunks along each axis."""
        return tuple(cut.n for cut in self._cuts)

    @property
    def n_chunks(self) -> int:
        """The total number of chunks."""
        return math.prod(self.grid)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in elements, columns side by side."""
        return tuple(cut.length for cut in self._cuts)

    @property
    def block_grid(self) -> tuple[int, ...]:
        """The number of blocks along each axis."""
        return tuple(math.ceil(n / b) for n, b in zip(self.grid, self.block, strict=True))

    @cached_property
    def block_shape(self) -> tuple[int, ...]:
        """The shape of a full block, in elements; the longest one, where chunks differ in width."""
        return tuple(_longest_block(cut, b) for cut, b in zip(self._cuts, self.block, strict=True))

    def chunk_bytes(self, array: AnyArray) -> int:
        """The decoded size of a chunk, in bytes; of the longest one, where chunks differ in width."""
        if not arrays.is_flexible(array):
            return arrays.chunk_bytes(array)
        longest = (_longest_block(cut, 1) for cut in self._cuts)
        return math.prod(longest) * arrays.element_bytes(array)

    @property
    def blocks(self) -> Blocks:
        """
        The lengths of blocks along each axis, in elements, for Cubed.

        Cubed's blocks have one length. Where chunks differ in width, all blocks have the length of the longest one, and
        `block_lengths` returns the actual length.
        """
        sides = zip(self._cuts, self.block, self.block_shape, strict=True)
        return tuple(
            _cut(cut.length, b * cut.width) if isinstance(cut.width, int) else (longest,) * math.ceil(cut.n / b)
            for cut, b, longest in sides
        )

    def block_lengths(self, index: Sequence[int]) -> tuple[int, ...]:
        """The actual shape of a block, in elements."""
        return tuple(map(_length, self._cuts, self.cells(index)))

    def cells(self, index: Sequence[int]) -> list[range]:
        """The range of the grid of a block, by its index."""
        return [range(i * b, min(n, (i + 1) * b)) for i, b, n in zip(index, self.block, self.grid, strict=True)]

    def cells_of(self, region: Region) -> list[range]:
        """The range of the grid of a block, by its region in Cubed's coordinates."""
        return self.cells([r.start // max(1, n) for r, n in zip(region, self.block_shape, strict=True)])

    def coords(self, cells: Sequence[range]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """For each chunk in a range of the grid: its coordinates within the range, and in the array."""
        for where in itertools.product(*(range(len(r)) for r in cells)):
            at = [r[i] for r, i in zip(cells, where, strict=True)]
            if self.axis is not None:
                at[self.axis] = self.columns[at[self.axis]]
            yield where, tuple(at)

    def regions(self, index: Sequence[int]) -> Iterator[tuple[Region, Region]]:
        """Runs of adjacent columns of a block: their region in the block, and in the array."""
        return self.runs(self.cells(index))

    def runs(self, cells: Sequence[range]) -> Iterator[tuple[Region, Region]]:
        """Runs of adjacent columns in a range of the grid: their region within the range, and in the array."""
        here = [slice(0, _length(cut, r)) for cut, r in zip(self._cuts, cells, strict=True)]
        starts = [cut.start(r.start) for cut, r in zip(self._cuts, cells, strict=True)]
        there = [slice(start, start + s.stop) for start, s in zip(starts, here, strict=True)]
        if self.axis is None:
            yield tuple(here), tuple(there)
            return
        cut, at = self._array_cuts[self.axis], 0
        columns = [self.columns[i] for i in cells[self.axis]]
        for _, run in itertools.groupby(enumerate(columns), key=lambda pair: pair[1] - pair[0]):
            members = [column for _, column in run]
            first, last = cut.start(members[0]), cut.stop(members[-1])
            here[self.axis] = slice(at, at + last - first)
            there[self.axis] = slice(first, last)
            yield tuple(here), tuple(there)
            at += last - first

    def positions(self) -> np.ndarray:
        """For each element along the columns' axis, its position in the array."""
        assert self.axis is not None
        cut = self._array_cuts[self.axis]
        return np.concatenate([np.arange(cut.start(c), cut.stop(c)) for c in self.columns])


def _length(cut: Cuts, cells: range) -> int:
    """The length of a run of chunks, in elements."""
    return int(cut.stop(cells.stop - 1) - cut.start(cells.start)) if cells else 0


def _longest_block(cut: Cuts, block: int) -> int:
    if isinstance(cut.width, int):
        return min(block * cut.width, max(cut.length, 1))
    return max(_length(cut, range(i, min(cut.n, i + block))) for i in range(0, cut.n, block))


def _cut(n: int, size: int) -> tuple[int, ...]:
    return tuple(min(size, n - i) for i in range(0, n, size))


def block_of(
    grid: Sequence[int], chunk_bytes: int, room: int, *, prefer: Sequence[int] | None = None, least: int = 0
) -> tuple[int, ...]:
    """
    The number of chunks along each axis per task.

    Parameters
    ----------
    grid
        The number of chunks along each axis.
    chunk_bytes
        The decoded size of a chunk.
    room
        The decoded bytes that a task has memory for.
    prefer
        Numbers of chunks along each axis to keep in one task if memory allows, for instance because one chunk of a
        source covers them all.
    least
        Decoded bytes per task to aim for where starting a task is expensive.

    Examples
    --------
    Chunks of 2 MB, one chunk column of 1,000: 33 per task, limited by `TASK_BYTES`.

    >>> block_of((1000, 1, 1), 2_000_000, 2_000_000_000)
    (33, 1, 1)

    Memory for three of them:

    >>> block_of((1000, 1, 1), 2_000_000, 6_000_000)
    (3, 1, 1)

    Tasks that are expensive to start:

    >>> block_of((1000, 1, 1), 2_000_000, 2_000_000_000, least=800_000_000)
    (400, 1, 1)
    """
    fits = max(1, room // max(1, chunk_bytes))
    block = [1] * len(grid)
    if prefer is not None:
        for axis, (p, n) in enumerate(zip(prefer, grid, strict=True)):
            block[axis] = max(1, min(p, n, fits // math.prod(block)))
    n_balanced = min(TASK_BYTES // max(1, chunk_bytes), math.prod(grid) // MIN_TASKS)
    wanted = min(fits, TASK_CHUNKS, max(n_balanced, least // max(1, chunk_bytes)))
    for axis, n in enumerate(grid):
        factor = max(1, wanted // math.prod(block))
        block[axis] = max(1, min(n, block[axis] * factor))
    return tuple(block)


@dataclass(frozen=True)
class Copied:
    """Chunk columns of the source with index `source` that are copied verbatim to chunk columns of the store."""

    source: int
    source_columns: tuple[int, ...]
    columns: tuple[int, ...]


def whole_columns(of: np.ndarray, to: np.ndarray, theirs: Cuts, ours: Cuts) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """
    Find the chunk columns of a source that match chunk columns of a store, sample for sample, to copy them encoded.

    Parameters
    ----------
    of, to
        The positions of samples in the source, and their positions in the store; the latter increase.
    theirs, ours
        The chunks along the samples of the source, and of the store after the operation.

    Returns
    -------
    source_columns, columns : tuple of int
        Corresponding columns; the latter increase.

    Examples
    --------
    5 samples go to positions 6 to 10, in chunks of 2. The last column ends where the source ends::

        source         0 1 | 2 3 | 4
        store    ... | 6 7 | 8 9 | 10

    >>> whole_columns(np.arange(5), np.arange(6, 11), Cuts(5, 2), Cuts(11, 2))
    ((0, 1, 2), (3, 4, 5))

    Shifted by one position, no column is aligned.

    >>> whole_columns(np.arange(5), np.arange(7, 12), Cuts(5, 2), Cuts(12, 2))
    ((), ())

    Columns of a flexible grid may begin anywhere. The last column of the source is encoded with a width of 2, so it
    does not match a column of width 1.

    >>> whole_columns(np.arange(5), np.arange(7, 12), Cuts(5, 2), Cuts(12, (4, 3, 2, 2, 1)))
    ((0, 1), (2, 3))
    """
    columns, first, counts = np.unique(ours.of(to), return_index=True, return_counts=True)
    if not len(columns):
        return (), ()
    shifts = of - to
    lowest, highest = np.minimum.reduceat(shifts, first), np.maximum.reduceat(shifts, first)
    begins = ours.start(columns) + lowest
    is_whole = (lowest == highest) & (begins >= 0) & (begins < theirs.length)
    begins = np.where(is_whole, begins, 0)
    source_columns = theirs.of(begins)
    lengths, encoded = ours.stop(columns) - ours.start(columns), theirs.encoded(source_columns)
    is_whole &= (theirs.start(source_columns) == begins) & (counts == lengths)
    is_whole &= (theirs.stop(source_columns) - begins == lengths) & (encoded == ours.encoded(columns))
    return tuple(source_columns[is_whole].tolist()), tuple(columns[is_whole].tolist())


def chunk_regions(array: AnyArray, within: dict[int, range]) -> Iterator[tuple[slice, ...]]:
    """The regions of an array's chunks, cropped to ranges along some axes; no regions if a range is empty."""
    cuts = arrays.cuts(array)
    ranges = [within.get(i, range(n)) for i, n in enumerate(array.shape)]
    return itertools.product(*(cut.spans(r.start, r.stop) for cut, r in zip(cuts, ranges, strict=True)))
