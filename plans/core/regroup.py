"""
Chunks that come to lie in other objects: in shards, in other shards, or in none. They are copied as they are.

The objects of an array with shards hold several chunks. What is, whole, a chunk that lies somewhere already, in a shard
or not, is not decoded when such an object is written; the other chunks of the object are encoded beside it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any, Protocol

import numpy as np
import zarr
from zarr.abc.buffer import Buffer
from zarr.types import AnyArray

from plans.core.chunk_grid import Columns, Copied, whole_columns
from plans.core.task_report import current_report
from vczstore.vcz import arrays, encoded_chunks
from vczstore.vcz.cuts import Cuts
from vczstore.vcz.pipeline import naming
from vczstore.vcz.shards import Sharding, chunk_counts, same_chunks
from vczstore.vcz.zarr_objects import place

type Cell = tuple[int, ...]
"""The coordinates of a chunk or an object."""


@dataclass(frozen=True)
class Origin:
    """
    Where chunks lie.

    Attributes
    ----------
    array
        The array that has them.
    axis
        The axis along which only some columns of chunks are taken; None if all are, to the same coordinates.
    columns, to
        These columns, and those that they become; the latter increase.
    """

    array: AnyArray
    axis: int | None = None
    columns: tuple[int, ...] = ()
    to: tuple[int, ...] = ()

    def within(self, at: Sequence[Cell], counts: Cell) -> "Origin | None":
        """What of it comes to objects at some coordinates, which hold so many chunks; None if nothing does."""
        if self.axis is None:
            return self
        objects = {cell[self.axis] for cell in at}
        pairs = [(of, to) for of, to in zip(self.columns, self.to, strict=True) if to // counts[self.axis] in objects]
        columns, to = zip(*pairs, strict=True) if pairs else ((), ())
        return replace(self, columns=columns, to=to) if pairs else None

    def overlapped(self, target: Columns, counts: Cell) -> int | np.ndarray:
        """Of how many objects a block of objects of a target is put together: one number, or one for each block."""
        mine = chunk_counts(self.array)
        others = prod(
            _overlapped(block * n, m, cells)
            for i, (block, n, m, cells) in enumerate(
                zip(target.block, counts, mine, arrays.grid_of(self.array), strict=True)
            )
            if i != self.axis
        )
        if self.axis is None:
            return others
        of, to = np.array(self.columns, "i8") // mine[self.axis], np.array(self.to, "i8") // counts[self.axis]
        blocks = np.searchsorted(target.columns, to) // target.block[self.axis]
        found = np.unique(np.stack([blocks, of]), axis=1)
        return others * np.bincount(found[0], minlength=len(target.grid_blocks[self.axis]))


def _overlapped(n: int, per_object: int, n_objects: int) -> int:
    """In how many objects as many neighbouring chunks lie at most, which begin at a multiple of their number."""
    most = n // per_object if n % per_object == 0 else 1 if per_object % n == 0 else n // per_object + 2
    return min(most, n_objects)


class Values(Protocol):
    """The values of columns of chunks, side by side: those of one object along the other axes make a block."""

    @property
    def columns(self) -> Columns:
        """Which ones."""

    def share(self, index: tuple[int, ...], *others: tuple[int, ...]) -> "Values":
        """What some blocks need."""

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Read a block."""

    def decode_mem(self) -> int:
        """What it takes to read one, in bytes."""


@dataclass(frozen=True)
class Regrouped:
    """
    An array whose objects are put together of chunks that lie elsewhere; of two that have one, the later counts.

    Attributes
    ----------
    target
        The array as it will be.
    origins
        Where the chunks lie.
    made
        The values of the columns of chunks that lie nowhere as they are, and are encoded; None if there are none.
    """

    target: AnyArray
    origins: tuple[Origin, ...]
    made: Values | None = None

    shards = None
    compressors: tuple[Any, ...] = ()  # chunks are checked when they are taken out

    def get_encoded(self, coords: Sequence[Sequence[int]]) -> list[Buffer | None]:
        """The objects at some coordinates, None for those without a chunk."""
        ours = Sharding(self.target)
        members = [
            list(product(*(range(i * n, (i + 1) * n) for i, n in zip(at, ours.counts, strict=True)))) for at in coords
        ]
        found: dict[Cell, Buffer | None] = {}
        for origin in self.origins:
            found |= _read(origin, [cell for cells in members for cell in cells])
        if self.made is not None:
            for at in coords:
                found |= _make(self.made, ours, at)
        return [ours.put_together([found.get(cell) for cell in cells]) for cells in members]

    def share(self, coords: Sequence[Cell]) -> "Regrouped":
        """Without what the objects at some coordinates have nothing of."""
        counts = chunk_counts(self.target)
        some = (origin.within(coords, counts) for origin in self.origins)
        blocks = [] if self.made is None else [index for at in coords for index in _blocks(self.made, counts, at)]
        made = self.made.share(*blocks) if self.made is not None and blocks else None
        return replace(self, origins=tuple(origin for origin in some if origin is not None), made=made)

    def read_mem(self, columns: Columns) -> int:
        """What the objects take that a block is put together of, in bytes; hardly ever more than decoded."""
        counts = chunk_counts(self.target)
        needed = sum(arrays.chunk_bytes(o.array) * np.asarray(o.overlapped(columns, counts)) for o in self.origins)
        making = 0 if self.made is None else self.made.decode_mem() + 2 * _block_bytes(self.made, self.target)
        return int(np.max(needed, initial=0)) + making


def _read(origin: Origin, cells: Sequence[Cell]) -> dict[Cell, Buffer | None]:
    """The chunks of an origin that come to some coordinates."""
    array, theirs = origin.array, Sharding(origin.array)
    columns = dict(zip(origin.to, origin.columns, strict=True))
    grid = arrays.grid_of(array)
    wanted: dict[Cell, list[tuple[Cell, int]]] = defaultdict(list)
    for cell in cells:
        at = cell
        if origin.axis is not None:
            if (column := columns.get(cell[origin.axis])) is None:
                continue
            at = (*cell[: origin.axis], column, *cell[origin.axis + 1 :])
        outer = tuple(i // n for i, n in zip(at, theirs.counts, strict=True))
        if all(i < n for i, n in zip(outer, grid, strict=True)):
            inner = [i % n for i, n in zip(at, theirs.counts, strict=True)]
            wanted[outer].append((cell, int(np.ravel_multi_index(inner, theirs.counts))))
    found: dict[Cell, Buffer | None] = {}
    objects = list(wanted)
    for outer, value in zip(objects, encoded_chunks.get_encoded(array, objects), strict=True):
        if value is None:
            continue
        with naming(f"{array.path} in {place(array.store)}"):
            chunks = theirs.take_out(value)
        mine = [chunks[i] for _, i in wanted[outer]]
        encoded_chunks.check_frames(theirs.chunks, [outer] * len(mine), mine)
        found |= zip((cell for cell, _ in wanted[outer]), mine, strict=True)
    return found


def _block_bytes(values: Values, target: AnyArray) -> int:
    return prod(values.columns.block_shape) * arrays.element_bytes(target)


def _blocks(values: Values, counts: Cell, at: Sequence[int]) -> list[Cell]:
    """The blocks of values that an object at some coordinates has, of so many chunks."""
    axis = values.columns.axis
    assert axis is not None
    ends = (at[axis] * counts[axis], (at[axis] + 1) * counts[axis])
    columns = range(*np.searchsorted(values.columns.columns, ends).tolist())
    return [(*at[:axis], column, *at[axis + 1 :]) for column in columns]


def _make(values: Values, sharding: Sharding, at: Sequence[int]) -> dict[Cell, Buffer | None]:
    """The chunks of one object that are encoded."""
    report, chunks = current_report.get(), sharding.chunks
    found: dict[Cell, Buffer | None] = {}
    for index in _blocks(values, sharding.counts, at):
        block = values.block(index)
        report.decoded_bytes += block.nbytes
        (first, *_), cells = values.columns.regions(index), values.columns.cells(index)
        for _, cell in values.columns.coords(cells):
            region = encoded_chunks.chunk_region(chunks, cell)
            here = tuple(slice(r.start - f.start, r.stop - f.start) for r, f in zip(region, first[1], strict=True))
            value = encoded_chunks.encode(chunks, cell, region, block[here])
            report.encoded_bytes -= 0 if value is None else len(value)  # it is written with what is copied
            found[cell] = value
    return found


def can_regroup(source: AnyArray, target: AnyArray, axis: int | None = None) -> bool:
    """Whether chunks of an array are chunks of a target as they are, in other objects; widths along an axis aside."""
    if not (source.shards or target.shards) or not isinstance(source, zarr.Array):  # what is made when it is read
        return False
    sides = zip(arrays.inner_chunks(source), arrays.inner_chunks(target), strict=True)
    return all(a == b for i, (a, b) in enumerate(sides) if i != axis) and same_chunks(source, target)


def regrouped_columns(
    target: AnyArray,
    axis: int,
    parts: Sequence[tuple[AnyArray, np.ndarray, np.ndarray]],
    columns: np.ndarray,
) -> tuple[tuple[int, ...], tuple[Copied, ...], tuple[int, ...]]:
    """
    Find the columns of objects that can be put together of chunks that lie elsewhere, at least in part.

    Parameters
    ----------
    target, axis
        The array as it will be, and its samples axis.
    parts
        What it is made of: arrays, the positions of their samples, and where these go. Of two that go to one place the
        later wins.
    columns
        The columns of objects that are written.

    Returns
    -------
    found : tuple of int
        The columns, of these, that can.
    origins : tuple of Copied
        Columns of chunks, of the parts and of the target, that they are put together of.
    made : tuple of int
        The columns of chunks, of these objects, that lie nowhere as they are.
    """
    if not len(columns) or not (target.shards or any(array.shards for array, _, _ in parts)):
        return (), (), ()
    ours = _chunk_cut(target, axis)
    owner, theirs = np.full(ours.n, _MADE), np.zeros(ours.n, "i8")
    for i, (array, of, to) in enumerate(parts):
        owner[np.unique(ours.of(to))] = _MADE
        if can_regroup(array, target, axis):
            whole, mine = whole_columns(of, to, _chunk_cut(array, axis), ours)
            owner[list(mine)], theirs[list(mine)] = i, whole
    objects = np.arange(ours.n) // chunk_counts(target)[axis]
    found = np.intersect1d(columns, objects[owner >= 0])
    owner[~np.isin(objects, found)] = _NONE
    origins = [(i, np.flatnonzero(owner == i)) for i in range(len(parts))]
    copied = (Copied(i, tuple(theirs[to].tolist()), tuple(to.tolist())) for i, to in origins if len(to))
    return tuple(found.tolist()), tuple(copied), tuple(np.flatnonzero(owner == _MADE).tolist())


_MADE, _NONE = -1, -2
"""In place of the number of a part: chunks that are encoded, and chunks that are not written in this way."""


def _chunk_cut(array: AnyArray, axis: int) -> Cuts:
    """How an axis is cut into chunks, those within shards."""
    return arrays.cuts(array)[axis] if not array.shards else Cuts(array.shape[axis], array.chunks[axis])
