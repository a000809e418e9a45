"""Chunk columns: which chunks an operation touches, and how many of them one task takes. Integers in, integers out."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vczstore.arrays import grid

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
        The shape of its chunks (of its shards, if it has shards).
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
    chunks: tuple[int, ...]
    axis: int | None
    columns: tuple[int, ...]
    block: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """How many chunks there are along each axis."""
        whole = grid(self.array_shape, self.chunks)
        return tuple(len(self.columns) if i == self.axis else n for i, n in enumerate(whole))

    @property
    def n_chunks(self) -> int:
        """How many chunks there are."""
        return math.prod(self.grid)

    @property
    def shape(self) -> tuple[int, ...]:
        """How many elements there are along each axis, columns side by side."""
        shape = list(self.array_shape)
        if self.axis is not None:
            shape[self.axis] = sum(self._width(c) for c in self.columns[-1:]) + self.chunks[self.axis] * (
                len(self.columns) - 1
            )
        return tuple(shape)

    def _width(self, column: int) -> int:
        assert self.axis is not None
        return min(self.chunks[self.axis], self.array_shape[self.axis] - column * self.chunks[self.axis])

    @property
    def grid_blocks(self) -> Blocks:
        """The blocks, in chunks."""
        return tuple(_cut(n, b) for n, b in zip(self.grid, self.block, strict=True))

    @property
    def block_shape(self) -> tuple[int, ...]:
        """The elements of a block that is not cut short by an edge."""
        return tuple(min(b * c, max(n, 1)) for b, c, n in zip(self.block, self.chunks, self.shape, strict=True))

    @property
    def blocks(self) -> Blocks:
        """The blocks, in elements."""
        return tuple(_cut(n, b * c) for n, b, c in zip(self.shape, self.block, self.chunks, strict=True))

    def cells(self, index: Sequence[int]) -> list[range]:
        """The part of the grid that a block takes."""
        return [range(i * b, min(n, (i + 1) * b)) for i, b, n in zip(index, self.block, self.grid, strict=True)]

    def cells_of(self, region: Region) -> list[range]:
        """The part of the grid that a region takes, columns side by side. It begins and ends with a chunk."""
        return [range(r.start // c, math.ceil(r.stop / c)) for r, c in zip(region, self.chunks, strict=True)]

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
        here = [slice(0, self._length(i, r)) for i, r in enumerate(cells)]
        there = [slice(r.start * c, r.start * c + s.stop) for r, c, s in zip(cells, self.chunks, here, strict=True)]
        if self.axis is None:
            yield tuple(here), tuple(there)
            return
        chunk, at = self.chunks[self.axis], 0
        columns = [self.columns[i] for i in cells[self.axis]]
        for _, run in itertools.groupby(enumerate(columns), key=lambda pair: pair[1] - pair[0]):
            members = [column for _, column in run]
            width = chunk * (len(members) - 1) + self._width(members[-1])
            here[self.axis] = slice(at, at + width)
            there[self.axis] = slice(members[0] * chunk, members[0] * chunk + width)
            yield tuple(here), tuple(there)
            at += width

    def positions(self) -> np.ndarray:
        """For each element along the columns' axis, its position in the array."""
        assert self.axis is not None
        chunk = self.chunks[self.axis]
        return np.concatenate([np.arange(c * chunk, c * chunk + self._width(c)) for c in self.columns])

    def _length(self, axis: int, cells: range) -> int:
        return min(cells.stop * self.chunks[axis], self.shape[axis]) - cells.start * self.chunks[axis]


def _cut(n: int, size: int) -> tuple[int, ...]:
    return tuple(min(size, n - i) for i in range(0, n, size))


def block_of(
    grid: Sequence[int], chunk_bytes: int, room: int, *, prefer: Sequence[int] | None = None
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
        Chunks along each axis that should stay together where memory allows, for instance because one chunk
        of a source covers them all.

    Examples
    --------
    Chunks of 2 MB, one chunk column of 1,000: 33 in a task, as far as `TASK_BYTES` go.

    >>> block_of((1000, 1, 1), 2_000_000, 2_000_000_000)
    (33, 1, 1)

    Memory for three of them:

    >>> block_of((1000, 1, 1), 2_000_000, 6_000_000)
    (3, 1, 1)
    """
    fits = max(1, room // max(1, chunk_bytes))
    block = [1] * len(grid)
    if prefer is not None:
        together = [min(p, n) for p, n in zip(prefer, grid, strict=True)]
        if math.prod(together) <= fits:
            block = together
    wanted = min(fits, TASK_CHUNKS, TASK_BYTES // max(1, chunk_bytes), math.prod(grid) // MIN_TASKS)
    for axis, n in enumerate(grid):
        factor = max(1, wanted // math.prod(block))
        block[axis] = min(n, block[axis] * factor)
    return tuple(max(1, b) for b in block)


@dataclass(frozen=True)
class Copied:
    """Chunk columns of a source that are, chunk for chunk, columns of the store."""

    source: int
    source_columns: tuple[int, ...]
    columns: tuple[int, ...]


def split_columns(
    old: int, incoming: Sequence[int], width: int, same: Sequence[bool]
) -> tuple[list[Copied], tuple[int, ...]]:
    """
    Decide which chunk columns of an append can be copied encoded, and which have to be decoded and cut anew.

    Parameters
    ----------
    old
        The store's number of samples.
    incoming
        The number of samples of each source, in the order in which they are appended.
    width
        The store's sample chunk size.
    same
        For each source, whether its chunks have the shape and encoding of the store's.

    Returns
    -------
    copied : list of Copied
        Per source, the columns to copy.
    decoded : tuple of int
        The other columns that hold new samples, increasing. Columns before the store's last are never among
        them, nor is the last if it is full.

    Examples
    --------
    6 samples in chunks of 4, then 2 and 5 more. The first source fills the ragged column; the second begins
    on a boundary, and brings its own ragged column along::

        store     0 1 2 3 | 4 5 . .
        sources               0 1 | 0 1 2 3 | 4
        columns      0         1       2      3

    >>> split_columns(6, [2, 5], 4, [True, True])
    ([Copied(source=1, source_columns=(0, 1), columns=(2, 3))], (1,))
    """
    total = old + sum(incoming)
    copied: list[Copied] = []
    taken: set[int] = set()
    start = old
    for i, (n, is_same) in enumerate(zip(incoming, same, strict=True)):
        stop = start + n
        if is_same and start % width == 0 and n:
            # a column that the source leaves ragged can be copied only if nothing comes after it
            whole = n // width if stop < total else math.ceil(n / width)
            first = start // width
            if whole:
                copied.append(Copied(i, tuple(range(whole)), tuple(range(first, first + whole))))
                taken.update(range(first, first + whole))
        start = stop
    decoded = tuple(c for c in range(old // width, math.ceil(total / width)) if c not in taken) if total > old else ()
    return copied, decoded
