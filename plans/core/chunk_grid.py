"""Chunk columns: which chunks an operation touches, and how many of them one task takes. Integers in, integers out."""

import itertools
import math
from collections.abc import Iterator, Sequence
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
"""About how many decoded bytes one task moves: enough to make its own cost vanish."""
TASK_CHUNKS = 1000
"""At most so many chunks in a task, however small they are."""
MIN_TASKS = 8
"""Rather smaller tasks than fewer of them: workers should all have something to do."""


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
        The shape of its chunks (of its shards, if it has shards); the width of each, along an axis where they differ.
    axis
        The axis that is cut into columns; None to take the array whole.
    columns
        The chunk columns, increasing. Not used without an axis.
    block
        How many chunks along each axis make a block. One task takes one block.

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

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @cached_property
    def _there(self) -> tuple[Cuts, ...]:
        """How the array is cut."""
        return tuple(Cuts(n, width) for n, width in zip(self.array_shape, self.chunks, strict=True))

    @cached_property
    def _here(self) -> tuple[Cuts, ...]:
        """How the columns are cut, side by side."""
        return tuple(self._chosen(cut) if i == self.axis else cut for i, cut in enumerate(self._there))

    def _chosen(self, cut: Cuts) -> Cuts:
        if not self.columns:
            return Cuts(0, 1)
        if isinstance(cut.width, int):  # the last of them alone may be cut short
            last = self.columns[-1]
            return Cuts(cut.width * (len(self.columns) - 1) + cut.stop(last) - cut.start(last), cut.width)
        columns = np.array(self.columns)
        lengths = tuple((cut.stop(columns) - cut.start(columns)).tolist())
        return Cuts(sum(lengths), lengths)

    @property
    def grid(self) -> tuple[int, ...]:
        """How many chunks there are along each axis."""
        return tuple(cut.n for cut in self._here)

    @property
    def n_chunks(self) -> int:
        """How many chunks there are."""
        return math.prod(self.grid)

    @property
    def shape(self) -> tuple[int, ...]:
        """How many elements there are along each axis, columns side by side."""
        return tuple(cut.length for cut in self._here)

    @property
    def grid_blocks(self) -> Blocks:
        """The blocks, in chunks."""
        return tuple(_cut(n, b) for n, b in zip(self.grid, self.block, strict=True))

    @cached_property
    def block_shape(self) -> tuple[int, ...]:
        """The elements of a block that is not cut short by an edge; of the longest, where chunks differ in width."""
        return tuple(_longest_block(cut, b) for cut, b in zip(self._here, self.block, strict=True))

    def chunk_bytes(self, array: AnyArray) -> int:
        """The decoded size of a chunk of the array, in bytes; of the longest of these, where chunks differ in width."""
        if not arrays.is_flexible(array):
            return arrays.chunk_bytes(array)
        longest = (_longest_block(cut, 1) for cut in self._here)
        return math.prod(longest) * arrays.element_bytes(array)

    @property
    def blocks(self) -> Blocks:
        """
        The blocks, in elements, as Cubed counts them.

        Cubed has no blocks of several lengths. Where chunks differ in width all count as long as the longest, and
        `block_lengths` says how long one is.
        """
        sides = zip(self._here, self.block, self.block_shape, strict=True)
        return tuple(
            _cut(cut.length, b * cut.width) if isinstance(cut.width, int) else (longest,) * math.ceil(cut.n / b)
            for cut, b, longest in sides
        )

    def block_lengths(self, index: Sequence[int]) -> tuple[int, ...]:
        """The elements of one block."""
        return tuple(map(_length, self._here, self.cells(index)))

    def cells(self, index: Sequence[int]) -> list[range]:
        """The part of the grid that a block takes."""
        return [range(i * b, min(n, (i + 1) * b)) for i, b, n in zip(index, self.block, self.grid, strict=True)]

    def cells_of(self, region: Region) -> list[range]:
        """The part of the grid that a block takes, which Cubed says where it has."""
        return self.cells([r.start // max(1, n) for r, n in zip(region, self.block_shape, strict=True)])

    def coords(self, cells: Sequence[range]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """For each chunk of a part of the grid: where it is in the part, and its coordinates in the array."""
        for where in itertools.product(*(range(len(r)) for r in cells)):
            at = [r[i] for r, i in zip(cells, where, strict=True)]
            if self.axis is not None:
                at[self.axis] = self.columns[at[self.axis]]
            yield where, tuple(at)

    def regions(self, index: Sequence[int]) -> Iterator[tuple[Region, Region]]:
        """Runs of neighbouring columns of a block: their region in the block, and in the array."""
        return self.runs(self.cells(index))

    def runs(self, cells: Sequence[range]) -> Iterator[tuple[Region, Region]]:
        """Runs of neighbouring columns of a part of the grid: their region in the part, and in the array."""
        here = [slice(0, _length(cut, r)) for cut, r in zip(self._here, cells, strict=True)]
        starts = [cut.start(r.start) for cut, r in zip(self._here, cells, strict=True)]
        there = [slice(start, start + s.stop) for start, s in zip(starts, here, strict=True)]
        if self.axis is None:
            yield tuple(here), tuple(there)
            return
        cut, at = self._there[self.axis], 0
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
        cut = self._there[self.axis]
        return np.concatenate([np.arange(cut.start(c), cut.stop(c)) for c in self.columns])


def _length(cut: Cuts, cells: range) -> int:
    """How long a run of chunks is."""
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
    How many chunks along each axis one task takes.

    Parameters
    ----------
    grid
        The number of chunks along each axis.
    chunk_bytes
        The decoded size of a chunk.
    room
        The decoded bytes that a task has memory for.
    prefer
        Chunks along each axis that should stay together as far as memory allows, for instance because one chunk
        of a source covers them all.
    least
        The decoded bytes that make a task worth beginning; with fewer in all, one task takes everything.

    Examples
    --------
    Chunks of 2 MB, one chunk column of 1,000: 33 in a task, as far as `TASK_BYTES` go.

    >>> block_of((1000, 1, 1), 2_000_000, 2_000_000_000)
    (33, 1, 1)

    Memory for three of them:

    >>> block_of((1000, 1, 1), 2_000_000, 6_000_000)
    (3, 1, 1)

    Tasks that take long to begin:

    >>> block_of((1000, 1, 1), 2_000_000, 2_000_000_000, least=800_000_000)
    (400, 1, 1)
    """
    fits = max(1, room // max(1, chunk_bytes))
    block = [1] * len(grid)
    if prefer is not None:
        for axis, (p, n) in enumerate(zip(prefer, grid, strict=True)):
            block[axis] = max(1, min(p, n, fits // math.prod(block)))
    shared = min(TASK_BYTES // max(1, chunk_bytes), math.prod(grid) // MIN_TASKS)
    wanted = min(fits, TASK_CHUNKS, max(shared, least // max(1, chunk_bytes)))
    for axis, n in enumerate(grid):
        factor = max(1, wanted // math.prod(block))
        block[axis] = max(1, min(n, block[axis] * factor))
    return tuple(block)


@dataclass(frozen=True)
class Copied:
    """Chunk columns of a source that are, chunk for chunk, columns of the store."""

    source: int
    source_columns: tuple[int, ...]
    columns: tuple[int, ...]


def whole_columns(of: np.ndarray, to: np.ndarray, theirs: Cuts, ours: Cuts) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """
    Find the chunk columns that a source and a store have in common, sample for sample: these can be copied encoded.

    Parameters
    ----------
    of, to
        The positions of samples in the source, and in the store, where they go; the latter increase.
    theirs, ours
        How the samples of the source are cut, and those of the store when all is done.

    Returns
    -------
    source_columns, columns : tuple of int
        Side by side, the latter increasing.

    Examples
    --------
    5 samples go to positions 6 to 10, in chunks of 2. The last column ends where the source ends::

        source         0 1 | 2 3 | 4
        store    ... | 6 7 | 8 9 | 10

    >>> whole_columns(np.arange(5), np.arange(6, 11), Cuts(5, 2), Cuts(11, 2))
    ((0, 1, 2), (3, 4, 5))

    One position further, none falls on a boundary.

    >>> whole_columns(np.arange(5), np.arange(7, 12), Cuts(5, 2), Cuts(12, 2))
    ((), ())

    Where columns have widths of their own, they may begin anywhere. The last one of the source is encoded as wide as
    the others, so that it is no column of width 1.

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
    found = theirs.of(begins)
    lengths = ours.stop(columns) - ours.start(columns)
    is_whole &= (theirs.start(found) == begins) & (counts == lengths)
    is_whole &= (theirs.stop(found) - begins == lengths) & (theirs.encoded(found) == ours.encoded(columns))
    return tuple(found[is_whole].tolist()), tuple(columns[is_whole].tolist())


def chunk_regions(array: AnyArray, within: dict[int, range]) -> Iterator[tuple[slice, ...]]:
    """The regions of an array's chunks, cut to a range along some axes; one that is empty yields nothing."""
    cuts = arrays.cuts(array)
    ranges = [within.get(i, range(n)) for i, n in enumerate(array.shape)]
    return itertools.product(*(cut.spans(r.start, r.stop) for cut, r in zip(cuts, ranges, strict=True)))
