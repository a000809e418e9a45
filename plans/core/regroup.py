"""
Chunks that are copied verbatim into other objects: into shards, into other shards, or out of shards.

An object of an array with shards holds several chunks. When such an object is written, a chunk that exists already,
within a shard or not, is not decoded; only the remaining chunks of the object are encoded.
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
    The source of chunks.

    Attributes
    ----------
    array
        The array that holds the chunks.
    axis
        The axis along which only some chunk columns are taken; None to take all chunks, at the same coordinates.
    columns, to
        The chunk columns taken, and their columns in the target; the latter increase.
    """

    array: AnyArray
    axis: int | None = None
    columns: tuple[int, ...] = ()
    to: tuple[int, ...] = ()

    def within(self, at: Sequence[Cell], counts: Cell) -> "Origin | None":
        """The part that goes into the objects `at`, of `counts` chunks each; None if there is none."""
        if self.axis is None:
            return self
        objects = {cell[self.axis] for cell in at}
        pairs = [(of, to) for of, to in zip(self.columns, self.to, strict=True) if to // counts[self.axis] in objects]
        columns, to = zip(*pairs, strict=True) if pairs else ((), ())
        return replace(self, columns=columns, to=to) if pairs else None

    def overlapped(self, target: Columns, counts: Cell) -> int | np.ndarray:
        """Upper bound on the objects that a block of target objects is assembled from: for all blocks, or for each."""
        ours = chunk_counts(self.array)
        others = prod(
            _overlapped(block * n, m, cells)
            for i, (block, n, m, cells) in enumerate(
                zip(target.block, counts, ours, arrays.grid_of(self.array), strict=True)
            )
            if i != self.axis
        )
        if self.axis is None:
            return others
        of, to = np.array(self.columns, "i8") // ours[self.axis], np.array(self.to, "i8") // counts[self.axis]
        blocks = np.searchsorted(target.columns, to) // target.block[self.axis]
        pairs = np.unique(np.stack([blocks, of]), axis=1)
        return others * np.bincount(pairs[0], minlength=target.block_grid[self.axis])


def _overlapped(n: int, per_object: int, n_objects: int) -> int:
    """Upper bound on the objects that hold `n` consecutive chunks, the first of which has an index divisible by `n`."""
    most = n // per_object if n % per_object == 0 else 1 if per_object % n == 0 else n // per_object + 2
    return min(most, n_objects)


class Values(Protocol):
    """Values of chunk columns, side by side. Along the other axes a block is as long as an object of the target."""

    @property
    def columns(self) -> Columns:
        """The chunk columns."""

    def share(self, index: tuple[int, ...], *others: tuple[int, ...]) -> "Values":
        """The part that the blocks at some indices need."""

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Read a block."""

    def decode_mem(self) -> int:
        """Bytes needed to read a block."""


@dataclass(frozen=True)
class Regrouped:
    """
    An array whose objects are assembled from existing chunks. If two origins have the same chunk, the later one wins.

    Attributes
    ----------
    target
        The array after the operation.
    origins
        Sources of the chunks.
    reencoded
        Values of the chunk columns that have to be encoded; None if there are none.
    """

    target: AnyArray
    origins: tuple[Origin, ...]
    reencoded: Values | None = None

    shards = None
    compressors: tuple[Any, ...] = ()  # chunks are checked when they are read

    def get_encoded(self, coords: Sequence[Sequence[int]]) -> list[Buffer | None]:
        """The encoded objects at some coordinates; None for an object without chunks."""
        ours = Sharding(self.target)
        members = [
            list(product(*(range(i * n, (i + 1) * n) for i, n in zip(at, ours.counts, strict=True)))) for at in coords
        ]
        chunks: dict[Cell, Buffer | None] = {}
        for origin in self.origins:
            chunks |= _read(origin, [cell for cells in members for cell in cells])
        if self.reencoded is not None:
            for at in coords:
                chunks |= _encode(self.reencoded, ours, at)
        return [ours.put_together([chunks.get(cell) for cell in cells]) for cells in members]

    def share(self, coords: Sequence[Cell]) -> "Regrouped":
        """The part that the objects at some coordinates need."""
        counts, values = chunk_counts(self.target), self.reencoded
        origins = (origin.within(coords, counts) for origin in self.origins)
        blocks = [] if values is None else [index for at in coords for index in _blocks(values, counts, at)]
        reencoded = values.share(*blocks) if values is not None and blocks else None
        return replace(self, origins=tuple(origin for origin in origins if origin is not None), reencoded=reencoded)

    def read_mem(self, columns: Columns) -> int:
        """Bytes needed for the objects that a block is assembled from; encoded ones are hardly larger than decoded."""
        counts = chunk_counts(self.target)
        needed = sum(arrays.chunk_bytes(o.array) * np.asarray(o.overlapped(columns, counts)) for o in self.origins)
        encoding = 0
        if (values := self.reencoded) is not None:
            block_bytes = prod(values.columns.block_shape) * arrays.element_bytes(self.target)
            encoding = values.decode_mem() + 2 * block_bytes
        return int(np.max(needed, initial=0)) + encoding


def _read(origin: Origin, cells: Sequence[Cell]) -> dict[Cell, Buffer | None]:
    """The encoded chunks of an origin by their coordinates in the target; absent ones are None or left out."""
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
    result: dict[Cell, Buffer | None] = {}
    objects = list(wanted)
    for outer, value in zip(objects, encoded_chunks.get_encoded(array, objects), strict=True):
        if value is None:
            continue
        with naming(f"{array.path} in {place(array.store)}"):
            chunks = theirs.take_out(value)
        chosen = [chunks[i] for _, i in wanted[outer]]
        encoded_chunks.check_frames(theirs.chunks, [outer] * len(chosen), chosen)
        result |= zip((cell for cell, _ in wanted[outer]), chosen, strict=True)
    return result


def _blocks(values: Values, counts: Cell, at: Sequence[int]) -> list[Cell]:
    """The indices of the blocks of values in the object `at`, of `counts` chunks."""
    axis = values.columns.axis
    assert axis is not None
    ends = (at[axis] * counts[axis], (at[axis] + 1) * counts[axis])
    columns = range(*np.searchsorted(values.columns.columns, ends).tolist())
    return [(*at[:axis], column, *at[axis + 1 :]) for column in columns]


def _encode(values: Values, sharding: Sharding, at: Sequence[int]) -> dict[Cell, Buffer | None]:
    """Encode the chunks of `values` in the object `at`."""
    report, chunks = current_report.get(), sharding.chunks
    result: dict[Cell, Buffer | None] = {}
    for index in _blocks(values, sharding.counts, at):
        block = values.block(index)
        report.decoded_bytes += block.nbytes
        (first, *_), cells = values.columns.regions(index), values.columns.cells(index)
        for _, cell in values.columns.coords(cells):
            region = encoded_chunks.chunk_region(chunks, cell)
            here = tuple(slice(r.start - f.start, r.stop - f.start) for r, f in zip(region, first[1], strict=True))
            value = encoded_chunks.encode(chunks, cell, region, block[here])
            report.encoded_bytes -= 0 if value is None else len(value)  # the sink counts the whole object as copied
            result[cell] = value
    return result


def can_regroup(source: AnyArray, target: AnyArray, axis: int | None = None) -> bool:
    """Whether chunks of an array can be copied verbatim into other objects of a target; widths along `axis` aside."""
    if not (source.shards or target.shards) or not isinstance(source, zarr.Array):  # views have no stored chunks
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
    Find the columns of objects that can be assembled, at least in part, from existing chunks.

    Parameters
    ----------
    target, axis
        The array after the operation, and its samples axis.
    parts
        Arrays, the positions of their samples, and the positions of these samples in the target. If two parts write
        the same position, the later one wins.
    columns
        The columns of objects that are written.

    Returns
    -------
    regrouped : tuple of int
        The `columns` that can be assembled from chunks.
    origins : tuple of Copied
        The chunk columns that are copied, of the parts and of the target.
    reencoded : tuple of int
        The remaining chunk columns of these objects.
    """
    if not len(columns) or not (target.shards or any(array.shards for array, _, _ in parts)):
        return (), (), ()
    ours = _chunk_cut(target, axis)
    owner, theirs = np.full(ours.n, _REENCODED), np.zeros(ours.n, "i8")
    for i, (array, of, to) in enumerate(parts):
        owner[np.unique(ours.of(to))] = _REENCODED
        if can_regroup(array, target, axis):
            of_part, of_target = whole_columns(of, to, _chunk_cut(array, axis), ours)
            owner[list(of_target)], theirs[list(of_target)] = i, of_part
    objects = np.arange(ours.n) // chunk_counts(target)[axis]
    regrouped = np.intersect1d(columns, objects[owner >= 0])
    owner[~np.isin(objects, regrouped)] = _NONE
    origins = [(i, np.flatnonzero(owner == i)) for i in range(len(parts))]
    copied = (Copied(i, tuple(theirs[to].tolist()), tuple(to.tolist())) for i, to in origins if len(to))
    return tuple(regrouped.tolist()), tuple(copied), tuple(np.flatnonzero(owner == _REENCODED).tolist())


_REENCODED, _NONE = -1, -2
"""Sentinels in place of the index of a part: chunks that are encoded, and chunks of objects that are not regrouped."""


def _chunk_cut(array: AnyArray, axis: int) -> Cuts:
    """The chunks along an axis, or those within shards if the array has shards."""
    return arrays.cuts(array)[axis] if not array.shards else Cuts(array.shape[axis], array.chunks[axis])
