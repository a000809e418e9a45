"""Samples of several arrays, gathered into chunk columns of one.

Append and update change an array in the same way: they write some of its chunk columns, whose samples come from sources
and, where a column is only partly replaced, from the array itself. They differ in the destinations of the samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import Blocks, Columns, Copied, Region, whole_columns
from plans.core.memory import Memory
from plans.core.regroup import Origin, Regrouped, regrouped_columns
from plans.core.views import View, extra_mem, in_store
from vczstore.vcz import arrays, metadata, pipeline
from vczstore.vcz.cuts import Cuts
from vczstore.vcz.floats import recast
from vczstore.vcz.model import samples_axis
from vczstore.vcz.shards import chunk_counts

if TYPE_CHECKING:
    import cubed
    from zarr.abc.store import Store as ZarrStore

    from plans.core.xarray_backend import Opened


MAX_UNSHARED = 2
"""Up to this many parts are sent to all tasks: one of the store, and one of a source."""


@dataclass(frozen=True)
class Part:
    """
    Some samples of an array, and their destinations.

    Attributes
    ----------
    array
        The array.
    of, to
        The positions of the samples in the array, and in the target; the latter increase. Consecutive positions are
        stored as a slice, since parts are sent to tasks.
    """

    array: AnyArray
    of: slice | np.ndarray
    to: slice | np.ndarray

    @classmethod
    def make(cls, array: AnyArray, of: np.ndarray, to: np.ndarray) -> "Part":
        """A part from positions in any order."""
        order = np.argsort(to, kind="stable")
        return cls(array, _as_slice(of[order]), _as_slice(to[order]))

    @property
    def moves(self) -> tuple[np.ndarray, np.ndarray]:
        """The positions in the array, and in the target, as integer arrays."""
        return _as_positions(self.of), _as_positions(self.to)

    @property
    def ends(self) -> tuple[int, int]:
        """The first and the last position in the target; (0, -1) if there are no samples."""
        if isinstance(self.to, slice):
            return self.to.start, self.to.stop - 1
        return (int(self.to[0]), int(self.to[-1])) if len(self.to) else (0, -1)

    def within(self, there: slice) -> tuple[np.ndarray, np.ndarray]:
        """Like `moves`, for the samples whose destinations are in a range of the target."""
        of, to = self.moves
        first, last = np.searchsorted(to, (there.start, there.stop))
        return of[first:last], to[first:last]

    def put(self, values: np.ndarray, axis: int, here: Region, there: Region) -> None:
        """
        Copy samples to a region of the block `values`, which is `there` in the target and `here` in the block.

        The chunk columns of the array are read one after the other.
        """
        of, to = self.within(there[axis])
        to = to + here[axis].start - there[axis].start
        columns = arrays.cuts(self.array)[axis].of(of)
        for column in np.unique(columns):
            in_column = columns == column
            first, last = int(of[in_column].min()), int(of[in_column].max())
            slab = arrays.read(self.array, (*there[:axis], slice(first, last + 1), *there[axis + 1 :]))
            chosen = slab[(*[slice(None)] * axis, _as_slice(of[in_column] - first))]
            values[(*here[:axis], _as_slice(to[in_column]), *here[axis + 1 :])] = _in_dtype(chosen, values.dtype)

    def put_mem(self, axis: int, block: tuple[int, ...]) -> int:
        """Bytes that `put` needs for a block: the chunks of one column, the slab read from them, and its samples."""
        chunks, size = arrays.outer_chunks(self.array), arrays.element_bytes(self.array)
        if not len(self.moves[0]):
            return 0
        widths = zip(block, chunks, self.array.shape, strict=True)
        overlapped = [min(math.ceil(b / c) + 1, math.ceil(n / c)) for b, c, n in widths]
        overlapped[axis] = 1
        in_order = isinstance(self.of, slice)
        width = min(chunks[axis], self.array.shape[axis], *([block[axis]] if in_order else []))
        rows = math.prod(b for i, b in enumerate(block) if i != axis) * size
        chosen = 0 if in_order else rows * min(width, block[axis])
        n_chunks = min(math.prod(overlapped), pipeline.READS_AT_ONCE)
        return arrays.decode_mem(self.array, n_chunks) + rows * width + chosen + extra_mem(self.array, block)


def _in_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values to assign to an array of a dtype. NumPy casts on assignment; only floats need `recast`."""
    return recast(values, dtype) if values.dtype.kind == "f" else values


def _as_slice(positions: np.ndarray) -> slice | np.ndarray:
    if len(positions) and (np.diff(positions) == 1).all():
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return positions


def _as_positions(positions: slice | np.ndarray) -> np.ndarray:
    return np.arange(positions.start, positions.stop) if isinstance(positions, slice) else positions


@dataclass(frozen=True)
class Joined:
    """Reader of parts joined into blocks of some columns. If two parts write the same position, the later one wins."""

    parts: tuple[Part, ...]
    columns: Columns
    dtype: np.dtype

    @property
    def blocks(self) -> Blocks:
        return self.columns.blocks

    def share(self, index: tuple[int, ...], *others: tuple[int, ...]) -> "Joined":
        """The reader with only the parts that some blocks need."""
        axis = self.columns.axis
        assert axis is not None
        ranges = [there[axis] for block in (index, *others) for _, there in self.columns.regions(block)]
        return replace(self, parts=self._within(ranges))

    def _within(self, ranges: Sequence[slice]) -> tuple[Part, ...]:
        """The parts whose extent, from the first to the last destination, overlaps some ranges of the target."""
        first, last = self._ends
        has = np.zeros(len(self.parts), dtype=bool)
        for there in ranges:
            has |= (first < there.stop) & (last >= there.start)
        return tuple(self.parts[i] for i in np.flatnonzero(has))

    @cached_property
    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The first destinations of all parts, and the last ones."""
        ends = [part.ends for part in self.parts]
        first, last = np.array(ends, dtype="i8").T
        return first, last

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Read a block, part by part."""
        assert self.columns.axis is not None
        values = np.empty(self.columns.block_lengths(index), dtype=self.dtype)
        for here, there in self.columns.regions(index):
            for part in self._within([there[self.columns.axis]]):
                part.put(values, self.columns.axis, here, there)
        return values

    def decode_mem(self) -> int:
        """Bytes needed to read a block; parts are read one after the other."""
        assert self.columns.axis is not None
        return max(part.put_mem(self.columns.axis, self.columns.block_shape) for part in self.parts)


@dataclass(frozen=True)
class PutSamples:
    """
    Write samples of sources into one array.

    Attributes
    ----------
    name
        The name of the array.
    target
        The array after the operation.
    kept
        The samples of the array that stay, in columns that are re-encoded.
    parts
        The incoming samples of each source.
    axis
        The samples axis.
    copied, decoded
        The chunk columns that are copied verbatim, and those that are re-encoded.
    block
        The number of chunks along each axis per task.
    max_chunks
        The maximal number of chunks that one task copies from several sources.
    regrouped
        The columns of objects that are assembled from chunks copied verbatim, where the target or a part has shards.
    origins
        The chunk columns from which `regrouped` is assembled, by the index of the part: 0 for `kept`.
    reencoded
        The chunk columns of `regrouped` that are re-encoded.
    is_copy
        Whether `kept` is read from the original array, not from the store that is written.
    """

    name: str
    target: AnyArray
    kept: Part
    parts: tuple[Part, ...]
    axis: int
    copied: tuple[Copied, ...]
    decoded: tuple[int, ...]
    block: tuple[int, ...]
    max_chunks: int = 1
    regrouped: tuple[int, ...] = ()
    origins: tuple[Copied, ...] = ()
    reencoded: tuple[int, ...] = ()
    is_copy: bool = False

    @classmethod
    def of(
        cls,
        operation: str,
        before: AnyArray,
        target: AnyArray,
        parts: Sequence[Part],
        memory: Memory,
        *,
        every: bool = False,
    ) -> Self:
        """
        Decide how the columns of one array are written; `before` and `target` are the array before and after.

        Columns without incoming samples are written only with `every`, for arrays whose old values change as well.
        """
        axis = samples_axis(before)
        assert axis is not None
        chunks = arrays.outer_chunks(target)
        cut = arrays.cuts(target)[axis]
        copied = []
        for i, part in enumerate(parts):
            if has_same_chunks(part.array, target, axis):
                theirs, ours = whole_columns(*part.moves, arrays.cuts(part.array)[axis], cut)
                copied += [Copied(i, theirs, ours)] if ours else []
        incoming = np.concatenate([np.empty(0, "i8"), *(part.moves[1] for part in parts)])
        touched, counts = np.unique(cut.of(incoming), return_counts=True)
        if every:
            n_columns = len(list(cut.spans()))
            touched, counts = np.arange(n_columns), np.bincount(cut.of(incoming), minlength=n_columns)
        is_decoded = ~np.isin(touched, [c for item in copied for c in item.columns])
        decoded = touched[is_decoded]

        # columns that are replaced completely are not read
        is_kept = is_decoded & (counts < cut.stop(touched) - cut.start(touched))
        ranges = (np.arange(cut.start(column), cut.stop(column)) for column in touched[is_kept].tolist())
        kept = np.concatenate([np.empty(0, "i8"), *ranges])
        kept = kept[kept < before.shape[axis]]
        of_store = Part.make(before, kept, kept)
        moves = [(part.array, *part.moves) for part in (of_store, *parts)]
        regrouped, origins, reencoded = regrouped_columns(target, axis, moves, decoded)
        put = cls(
            name=target.path,
            target=target,
            kept=of_store,
            parts=tuple(parts),
            axis=axis,
            copied=tuple(copied),
            decoded=tuple(decoded[~np.isin(decoded, regrouped)].tolist()),
            block=(1,) * target.ndim,
            regrouped=regrouped,
            origins=origins,
            reencoded=reencoded,
        )

        # the number of chunks per task
        grid = list(arrays.grid_of(target))
        grid[axis] = max([len(put.decoded), len(regrouped), *(len(c.columns) for c in copied)], default=0)
        widest = [max([1, *(arrays.outer_chunks(p.array)[i] for p in parts)]) for i in range(target.ndim)]
        prefer = [math.ceil(w / c) for w, c in zip(widest, chunks, strict=True)]
        prefer[axis] = max([_spread(part, axis, decoded, cut) for part in parts], default=1)
        chunk_bytes = put._every.chunk_bytes(target)
        # a task takes as many narrow chunks of a flexible grid as are as large as a wide one
        memory = replace(memory, task_bytes=max(memory.task_bytes, arrays.chunk_bytes(target)))

        def decoding(block: tuple[int, ...]) -> int:
            trial = replace(put, block=block)
            joining = trial._joined(before.store).decode_mem() if put.decoded else 0
            return max(joining, trial._regrouped(before.store).read_mem(trial._columns(regrouped)))

        block = memory.fit(operation, grid, chunk_bytes, decoding, prefer=prefer)
        n_copied = sum(put._columns(c.columns).n_chunks for c in copied)
        (max_chunks,) = memory.fit(operation, (n_copied,), chunk_bytes, lambda _: 0) if n_copied else (1,)
        return replace(put, block=block, max_chunks=max_chunks)

    def _columns(self, columns: tuple[int, ...], array: AnyArray | None = None) -> Columns:
        array = self.target if array is None else array
        return Columns(array.shape, arrays.widths(array), self.axis, columns, self.block)

    @property
    def _every(self) -> Columns:
        """All columns that are written."""
        copied = (c for copied in self.copied for c in copied.columns)
        return self._columns(tuple(sorted({*self.decoded, *self.regrouped, *copied})))

    def _all_parts(self, store: "ZarrStore") -> tuple[Part, ...]:
        """`kept`, read from the store that is written unless `is_copy`, and `parts`."""
        if self.is_copy:
            return (self.kept, *self.parts)
        return (replace(self.kept, array=in_store(self.kept.array, store)), *self.parts)

    def _joined(self, store: "ZarrStore") -> Joined:
        return Joined(self._all_parts(store), self._columns(self.decoded), self.target.dtype)

    def _regrouped(self, store: "ZarrStore") -> Regrouped:
        parts = self._all_parts(store)
        origins = (Origin(parts[o.source].array, self.axis, o.source_columns, o.columns) for o in self.origins)
        values = None
        if self.reencoded:
            counts = [n if i != self.axis else 1 for i, n in enumerate(chunk_counts(self.target))]
            columns = Columns(self.target.shape, self.target.chunks, self.axis, self.reencoded, tuple(counts))
            values = Joined(parts, columns, self.target.dtype)
        return Regrouped(self.target, tuple(origins), values)

    @property
    def _partly_reencoded(self) -> tuple[int, ...]:
        """The columns of objects in which some chunks are re-encoded."""
        if not self.reencoded:
            return ()
        return tuple(np.unique(np.array(self.reencoded) // chunk_counts(self.target)[self.axis]).tolist())

    @property
    def arrays(self) -> tuple[AnyArray]:
        return (self.target,)

    @property
    def read(self) -> tuple[AnyArray, ...]:
        return tuple(part.array for part in self.parts)

    @property
    def encoded_chunks(self) -> int:
        """Number of chunks copied verbatim; a shard of such chunks counts as one."""
        regrouped = tuple(sorted({*self.regrouped} - {*self._partly_reencoded}))
        return sum(self._n_copied(c) for c in self.copied) + self._columns(regrouped).n_chunks

    def _n_copied(self, copied: Copied) -> int:
        array: AnyArray | View = self.parts[copied.source].array
        columns = self._columns(copied.columns)
        return array.n_copied(columns) if isinstance(array, View) else columns.n_chunks

    @property
    def decoded_chunks(self) -> int:
        """Number of chunks re-encoded; a shard counts as one, even if it is re-encoded only in part."""
        of_views = sum(self._columns(c.columns).n_chunks - self._n_copied(c) for c in self.copied)
        return self._columns(self.decoded).n_chunks + self._columns(self._partly_reencoded).n_chunks + of_views

    @property
    def chunks_read(self) -> int:
        """Upper bound: the chunks of the columns that hold incoming and kept samples."""
        return sum(self._chunks_of(part) for part in (self.kept, *self.parts))

    def _chunks_of(self, part: Part) -> int:
        grid = list(arrays.grid_of(part.array))
        grid[self.axis] = len(np.unique(arrays.cuts(part.array)[self.axis].of(part.moves[0])))
        return math.prod(grid)

    def _bytes(self, n_samples: int) -> int:
        others = math.prod(n for i, n in enumerate(self.target.shape) if i != self.axis)
        return others * n_samples * arrays.element_bytes(self.target)

    @property
    def bytes_read(self) -> int:
        """Upper bound: the incoming and the kept samples, decoded."""
        return self._bytes(sum(len(part.moves[0]) for part in (self.kept, *self.parts)))

    @property
    def bytes_written(self) -> int:
        """Upper bound: all columns that are written, decoded."""
        return self._bytes(self._every.shape[self.axis]) if self._every.columns else 0

    def by_cubed(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """Copy columns verbatim where possible; decode, join and encode the others."""
        from plans.core import cubed_backend as chunks
        from plans.core import sinks

        spec = memory.spec()
        target = arrays.planned(self.target, store=store)
        result = []
        sources = [(self.parts[c.source].array, c) for c in self.copied if self._columns(c.columns).n_chunks]
        if sources:
            copies = [
                sinks.ColumnCopy(a, self._columns(c.source_columns, a), self._columns(c.columns)) for a, c in sources
            ]
            extra = max(extra_mem(array, arrays.outer_chunks(target)) for array, _ in sources)
            result.append(sinks.copy_encoded(copies, target, spec, max_chunks=self.max_chunks, extra_mem=extra))
        if self._columns(self.regrouped).n_chunks:
            result.append(sinks.regroup(self._regrouped(store), self._columns(self.regrouped), target, spec))
        joined = self._joined(store)
        if joined.columns.n_chunks:
            view = sinks.DecodedSink(target, joined.columns)
            result.append(
                chunks.put(joined, view, spec, extra_mem=joined.decode_mem(), shared=len(joined.parts) > MAX_UNSHARED)
            )
        return result

    def by_xarray(self, store: "ZarrStore", memory: Memory, opened: "Opened") -> "list[cubed.Array]":
        """Select the samples of each part, join and order them with xarray."""
        from plans.core import xarray_backend

        columns = self._every
        parts = [part for part in self._all_parts(store) if len(part.moves[0])]
        joined = xarray_backend.concat(
            [opened.variable(part.array, memory, part.of) for part in parts], self.target.dtype
        )
        destinations = np.concatenate([part.moves[1] for part in parts])
        where = np.empty(self.target.shape[self.axis], dtype="i8")
        where[destinations] = np.arange(len(destinations))  # for duplicates, the last one wins
        ordered = xarray_backend.take(joined, where[columns.positions()])
        return xarray_backend.write(ordered, arrays.planned(self.target, store=store), columns)

    def by_zarr(self, store: "ZarrStore") -> None:
        """Select the samples of each part with zarr-python, chunk by chunk of the target."""
        target = arrays.planned(self.target, store=store)
        every = replace(self._every, block=(1,) * target.ndim)
        joined = Joined(self._all_parts(store), every, target.dtype)
        for index in np.ndindex(*every.grid):
            ((_, region),) = every.regions(index)
            values = np.empty([s.stop - s.start for s in region], dtype=target.dtype)
            before, after = region[: self.axis], region[self.axis + 1 :]
            for part in joined.share(index).parts:
                of, to = part.within(region[self.axis])
                if len(of):
                    here = (*[slice(None)] * self.axis, to - region[self.axis].start)
                    values[here] = _in_dtype(arrays.read(part.array, (*before, of, *after)), values.dtype)
            with pipeline.naming(self.name):
                target[region] = values


def has_same_chunks(array: AnyArray, target: AnyArray, axis: int) -> bool:
    """Whether chunks of two arrays have the same encoding, and the same shape except along the samples axis."""
    theirs, ours = arrays.widths(array), arrays.widths(target)
    is_same = (*theirs[:axis], *theirs[axis + 1 :]) == (*ours[:axis], *ours[axis + 1 :])
    return is_same and metadata.same_encoding(array, target)


def _spread(part: Part, axis: int, columns: np.ndarray, cut: Cuts) -> int:
    """The largest number of consecutive re-encoded columns over which a chunk column of a part is spread."""
    of, to = part.moves
    if len(of) == 1:
        return 1
    is_here = np.isin(cut.of(to), columns)
    theirs = arrays.cuts(part.array)[axis].of(of[is_here])
    if not len(theirs):
        return 1
    ours = np.searchsorted(columns, cut.of(to[is_here]))
    order = np.argsort(theirs, kind="stable")
    starts = np.unique(theirs[order], return_index=True)[1]
    lowest, highest = (f.reduceat(ours[order], starts) for f in (np.minimum, np.maximum))
    return int((highest - lowest).max()) + 1
