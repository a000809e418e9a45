"""Parts: samples of several arrays, put together into chunk columns of one.

Append and update do the same to an array: they write some of its chunk columns, whose samples come from sources and,
where a column is not replaced whole, from the array itself. They differ in where the samples go.
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


FEW = 2
"""So many parts are sent to all tasks: what a store has, and what one source brings."""


@dataclass(frozen=True)
class Part:
    """
    Some samples of an array, and where they go.

    Attributes
    ----------
    array
        Where they are.
    of, to
        Their positions in the array, and in the target; the latter increase. Slices where they follow one another,
        since a part travels to every task.
    """

    array: AnyArray
    of: slice | np.ndarray
    to: slice | np.ndarray

    @classmethod
    def make(cls, array: AnyArray, of: np.ndarray, to: np.ndarray) -> "Part":
        """The samples at some positions, in any order."""
        order = np.argsort(to, kind="stable")
        return cls(array, _as_slice(of[order]), _as_slice(to[order]))

    @property
    def moves(self) -> tuple[np.ndarray, np.ndarray]:
        """The positions in the array, and in the target."""
        return _as_positions(self.of), _as_positions(self.to)

    @property
    def ends(self) -> tuple[int, int]:
        """Where the first and the last sample go; the last before the first if there are none."""
        if isinstance(self.to, slice):
            return self.to.start, self.to.stop - 1
        return (int(self.to[0]), int(self.to[-1])) if len(self.to) else (0, -1)

    def within(self, there: slice) -> tuple[np.ndarray, np.ndarray]:
        """The same, of the samples that go to a range of the target."""
        of, to = self.moves
        first, last = np.searchsorted(to, (there.start, there.stop))
        return of[first:last], to[first:last]

    def put(self, values: np.ndarray, axis: int, here: Region, there: Region) -> None:
        """
        Put the samples that go to a region of the target into a block, one chunk column after the other.

        Parameters
        ----------
        values
            The block.
        axis
            The samples axis.
        here, there
            The region in the block, and in the target.
        """
        of, to = self.within(there[axis])
        to = to + here[axis].start - there[axis].start
        columns = arrays.cuts(self.array)[axis].of(of)
        for column in np.unique(columns):
            mine = columns == column
            first, last = int(of[mine].min()), int(of[mine].max())
            slab = arrays.read(self.array, (*there[:axis], slice(first, last + 1), *there[axis + 1 :]))
            chosen = slab[(*[slice(None)] * axis, _as_slice(of[mine] - first))]
            values[(*here[:axis], _as_slice(to[mine]), *here[axis + 1 :])] = _in_dtype(chosen, values.dtype)

    def put_mem(self, axis: int, block: tuple[int, ...]) -> int:
        """What `put` takes for a block of this shape: the chunks of one column, what is read of them, and chosen."""
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
    """Values that are assigned to an array of a dtype: NumPy casts them then, but for what floats mean."""
    return recast(values, dtype) if values.dtype.kind == "f" else values


def _as_slice(positions: np.ndarray) -> slice | np.ndarray:
    if len(positions) and (np.diff(positions) == 1).all():
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return positions


def _as_positions(positions: slice | np.ndarray) -> np.ndarray:
    return np.arange(positions.start, positions.stop) if isinstance(positions, slice) else positions


@dataclass(frozen=True)
class Joined:
    """Parts put together into the blocks of some columns; of two that go to one place the later wins."""

    parts: tuple[Part, ...]
    columns: Columns
    dtype: np.dtype

    @property
    def blocks(self) -> Blocks:
        """In elements."""
        return self.columns.blocks

    def share(self, index: tuple[int, ...], *others: tuple[int, ...]) -> "Joined":
        """Without the parts that have nothing in some blocks."""
        axis = self.columns.axis
        assert axis is not None
        ranges = [there[axis] for one in (index, *others) for _, there in self.columns.regions(one)]
        return replace(self, parts=self._within(ranges))

    def _within(self, ranges: Sequence[slice]) -> tuple[Part, ...]:
        """The parts that have something in some ranges of the target, as far as their first and last sample tell."""
        first, last = self._ends
        has = np.zeros(len(self.parts), dtype=bool)
        for there in ranges:
            has |= (first < there.stop) & (last >= there.start)
        return tuple(self.parts[i] for i in np.flatnonzero(has))

    @cached_property
    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the first and the last sample of each part go."""
        ends = [part.ends for part in self.parts]
        first, last = np.array(ends, dtype="i8").T
        return first, last

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Read each part's share of a block."""
        assert self.columns.axis is not None
        values = np.empty(self.columns.block_lengths(index), dtype=self.dtype)
        for here, there in self.columns.regions(index):
            for part in self._within([there[self.columns.axis]]):
                part.put(values, self.columns.axis, here, there)
        return values

    def decode_mem(self) -> int:
        """What it takes to read a block: the parts take their turns."""
        assert self.columns.axis is not None
        return max(part.put_mem(self.columns.axis, self.columns.block_shape) for part in self.parts)


@dataclass(frozen=True)
class PutSamples:
    """
    Samples of sources come into one array.

    Attributes
    ----------
    name
        Of the array.
    target
        The array as it will be.
    kept
        What stays of the array in columns that are re-encoded.
    parts
        What comes in, from each source.
    axis
        The samples axis.
    copied, decoded
        Which chunk columns are copied as they are, and which are re-encoded.
    block
        How many chunks along each axis one task takes.
    together
        How many chunks one task copies at most, of several sources.
    regrouped
        Which columns of shards are put together of chunks as they are, or of chunks that were in shards.
    origins
        The columns of these chunks, by the number of the part: 0 for what is kept.
    made
        The columns of chunks of `regrouped` that are re-encoded.
    is_copy
        Whether what is kept is read from the array as it is, and not from where it is written.
    """

    name: str
    target: AnyArray
    kept: Part
    parts: tuple[Part, ...]
    axis: int
    copied: tuple[Copied, ...]
    decoded: tuple[int, ...]
    block: tuple[int, ...]
    together: int = 1
    regrouped: tuple[int, ...] = ()
    origins: tuple[Copied, ...] = ()
    made: tuple[int, ...] = ()
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
        Decide how the columns of one array are written, `before` and `target` being as it is and as it will be.

        Those to which no sample comes are written only if `every` one is: where what is kept changes, too.
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

        # a column whose samples are all replaced is not read
        is_kept = is_decoded & (counts < cut.stop(touched) - cut.start(touched))
        ranges = (np.arange(cut.start(column), cut.stop(column)) for column in touched[is_kept].tolist())
        kept = np.concatenate([np.empty(0, "i8"), *ranges])
        kept = kept[kept < before.shape[axis]]
        of_store = Part.make(before, kept, kept)
        moves = [(part.array, *part.moves) for part in (of_store, *parts)]
        regrouped, origins, made = regrouped_columns(target, axis, moves, decoded)
        alone = cls(
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
            made=made,
        )

        # and how many of their chunks one task takes
        grid = list(arrays.grid_of(target))
        grid[axis] = max([len(alone.decoded), len(regrouped), *(len(c.columns) for c in copied)], default=0)
        widest = [max([1, *(arrays.outer_chunks(p.array)[i] for p in parts)]) for i in range(target.ndim)]
        prefer = [math.ceil(w / c) for w, c in zip(widest, chunks, strict=True)]
        prefer[axis] = max([_spread(part, axis, decoded, cut) for part in parts], default=1)
        chunk_bytes = alone._every.chunk_bytes(target)
        # narrow chunks of a flexible grid: as many as weigh what a wide one does
        memory = replace(memory, task_bytes=max(memory.task_bytes, arrays.chunk_bytes(target)))

        def decoding(block: tuple[int, ...]) -> int:
            found = replace(alone, block=block)
            joining = found._joined(before.store).decode_mem() if alone.decoded else 0
            return max(joining, found._regrouped(before.store).read_mem(found._columns(regrouped)))

        block = memory.fit(operation, grid, chunk_bytes, decoding, prefer=prefer)
        n_copied = sum(alone._columns(c.columns).n_chunks for c in copied)
        (together,) = memory.fit(operation, (n_copied,), chunk_bytes, lambda _: 0) if n_copied else (1,)
        return replace(alone, block=block, together=together)

    def _columns(self, columns: tuple[int, ...], array: AnyArray | None = None) -> Columns:
        array = self.target if array is None else array
        return Columns(array.shape, arrays.widths(array), self.axis, columns, self.block)

    @property
    def _every(self) -> Columns:
        """All columns that are written."""
        copied = (c for copied in self.copied for c in copied.columns)
        return self._columns(tuple(sorted({*self.decoded, *self.regrouped, *copied})))

    def _all_parts(self, store: "ZarrStore") -> tuple[Part, ...]:
        """What stays, read where it is written unless that is a copy, and what comes in."""
        if self.is_copy:
            return (self.kept, *self.parts)
        return (replace(self.kept, array=in_store(self.kept.array, store)), *self.parts)

    def _joined(self, store: "ZarrStore") -> Joined:
        return Joined(self._all_parts(store), self._columns(self.decoded), self.target.dtype)

    def _regrouped(self, store: "ZarrStore") -> Regrouped:
        parts = self._all_parts(store)
        origins = (Origin(parts[o.source].array, self.axis, o.source_columns, o.columns) for o in self.origins)
        made = None
        if self.made:
            counts = [n if i != self.axis else 1 for i, n in enumerate(chunk_counts(self.target))]
            columns = Columns(self.target.shape, self.target.chunks, self.axis, self.made, tuple(counts))
            made = Joined(parts, columns, self.target.dtype)
        return Regrouped(self.target, tuple(origins), made)

    @property
    def _with_made(self) -> tuple[int, ...]:
        """The columns of shards in which some chunks are re-encoded."""
        if not self.made:
            return ()
        return tuple(np.unique(np.array(self.made) // chunk_counts(self.target)[self.axis]).tolist())

    @property
    def arrays(self) -> tuple[AnyArray]:
        """The target."""
        return (self.target,)

    @property
    def read(self) -> tuple[AnyArray, ...]:
        """What the samples come from."""
        return tuple(part.array for part in self.parts)

    @property
    def encoded_chunks(self) -> int:
        """How many chunks are copied as they are; a shard of such chunks counts as one."""
        regrouped = tuple(sorted({*self.regrouped} - {*self._with_made}))
        return sum(self._n_copied(c) for c in self.copied) + self._columns(regrouped).n_chunks

    def _n_copied(self, copied: Copied) -> int:
        array: AnyArray | View = self.parts[copied.source].array
        columns = self._columns(copied.columns)
        return array.n_copied(columns) if isinstance(array, View) else columns.n_chunks

    @property
    def decoded_chunks(self) -> int:
        """How many chunks are re-encoded; a shard counts as one, even if it is only in part."""
        made = sum(self._columns(c.columns).n_chunks - self._n_copied(c) for c in self.copied)
        return self._columns(self.decoded).n_chunks + self._columns(self._with_made).n_chunks + made

    @property
    def chunks_read(self) -> int:
        """At most the chunks of the columns that hold what comes in, and what stays beside it."""
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
        """At most what comes in, and what stays beside it."""
        return self._bytes(sum(len(part.moves[0]) for part in (self.kept, *self.parts)))

    @property
    def bytes_written(self) -> int:
        """At most the columns that what comes in goes to."""
        return self._bytes(self._every.shape[self.axis]) if self._every.columns else 0

    def by_cubed(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """Copy columns as they are where possible; decode, join and encode the others."""
        from plans.core import cubed_backend as chunks
        from plans.core import sinks

        spec = memory.spec()
        target = arrays.planned(self.target, store=store)
        result = []
        sources = [(self.parts[c.source].array, c.source_columns, self._columns(c.columns)) for c in self.copied]
        pieces = [
            sinks.Piece(source, self._columns(theirs, source), ours)
            for source, theirs, ours in sources
            if ours.n_chunks
        ]
        if pieces:
            extra = max(extra_mem(piece.source, arrays.outer_chunks(target)) for piece in pieces)
            result.append(sinks.copy_encoded(pieces, target, spec, together=self.together, extra_mem=extra))
        if self._columns(self.regrouped).n_chunks:
            result.append(sinks.regroup(self._regrouped(store), self._columns(self.regrouped), target, spec))
        joined = self._joined(store)
        if joined.columns.n_chunks:
            view = sinks.DecodedSink(target, joined.columns)
            result.append(
                chunks.move(joined, view, spec, extra_mem=joined.decode_mem(), shared=len(joined.parts) > FEW)
            )
        return result

    def by_xarray(self, store: "ZarrStore", memory: Memory, opened: "Opened") -> "list[cubed.Array]":
        """Let xarray select the samples of each part, join them, and put them in order."""
        from plans.core import xarray_backend

        columns = self._every
        if not columns.n_chunks:
            return []
        parts = [part for part in self._all_parts(store) if len(part.moves[0])]
        joined = xarray_backend.concat(
            [opened.variable(part.array, memory, part.of) for part in parts], self.target.dtype
        )
        destinations = np.concatenate([part.moves[1] for part in parts])
        where = np.empty(self.target.shape[self.axis], dtype="i8")
        where[destinations] = np.arange(len(destinations))  # the last one stays
        ordered = xarray_backend.take(joined, where[columns.positions()])
        return xarray_backend.write(ordered, arrays.planned(self.target, store=store), columns)

    def by_zarr(self, store: "ZarrStore") -> None:
        """Let zarr-python select the samples of each part, chunk by chunk of the target."""
        target = arrays.planned(self.target, store=store)
        every = replace(self._every, block=(1,) * target.ndim)
        for index in np.ndindex(*every.grid):
            ((_, region),) = every.regions(index)
            values = np.empty([s.stop - s.start for s in region], dtype=target.dtype)
            before, after = region[: self.axis], region[self.axis + 1 :]
            for part in self._all_parts(store):
                of, to = part.within(region[self.axis])
                if len(of):
                    here = (*[slice(None)] * self.axis, to - region[self.axis].start)
                    values[here] = _in_dtype(arrays.read_at(part.array, (*before, of, *after)), values.dtype)
            with pipeline.naming(self.name):
                target[region] = values


def has_same_chunks(array: AnyArray, target: AnyArray, axis: int) -> bool:
    """Whether chunks of two arrays have the same encoding, and the same shape but for their samples."""
    theirs, ours = arrays.widths(array), arrays.widths(target)
    is_same = (*theirs[:axis], *theirs[axis + 1 :]) == (*ours[:axis], *ours[axis + 1 :])
    return is_same and metadata.same_encoding(array, target)


def _spread(part: Part, axis: int, columns: np.ndarray, cut: Cuts) -> int:
    """Over how many neighbouring columns, of those re-encoded, the samples of one chunk column of a part go."""
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
