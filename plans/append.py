"""Append: the samples of one or more sources become the last samples of a store.

The store's sample axis is a row of chunks of one width. Columns of a source that fall on that grid, and whose
encoding is the store's, are copied as they are. The others, the store's ragged last column among them, are decoded,
joined, cut on the store's grid and encoded. Nothing else is read or written, so the cost is that of the batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from zarr.types import AnyArray

from plans import Memory, Plan
from plans.columns import Blocks, Columns, Copied, split_columns
from plans.compatible import check_metadata, check_samples, data_checks
from vczstore import arrays
from vczstore.errors import VczstoreError
from vczstore.stores import Store
from vczstore.stores.edits import Consolidate, SetShape, WriteDocuments
from vczstore.vcz import SAMPLE_ID, Vcz, dimensions, samples_axis

if TYPE_CHECKING:
    import cubed
    from zarr.abc.store import Store as ZarrStore


def compile_append(place: Store, store: Vcz, sources: Sequence[Vcz], memory: Memory) -> Plan:
    """
    Compile the append of sources to a store.

    Parameters
    ----------
    place, store
        The store: where it is, and the state that it will be in.
    sources
        What comes in, in this order. All have the store's variants.
    memory
        What a task may use.

    Raises
    ------
    VczstoreError
        If anything that metadata and sample IDs tell does not fit.
    """
    operation = "append"
    if not sources:
        raise VczstoreError(f"{operation}: no sources given; name the VCZs whose samples come in")
    incoming = [source.n_samples for source in sources]
    old, new = store.n_samples, store.n_samples + sum(incoming)

    # 1. everything is whole, and fits
    if _waits_for_consolidation(store, sources):
        return complete_append(place, store, memory)
    store.require_whole(operation, interrupted_at=None if store.snapshot else new)
    for source in sources:
        source.require_whole(operation)
    check_samples(operation, store, sources)
    base = store.state
    store, created = _with_new_arrays(store, sources[0])
    for source in sources:
        check_metadata(operation, store, source)

    # 2. what happens to each array
    # (a stopped append may have left arrays longer than sample_id says)
    before, after = store.resized(old), store.resized(new)
    writes = tuple(
        AppendArray.of(name, before[name], after[name], [s.samples_arrays[name] for s in sources], old, memory)
        for name in after
    )

    # 3. what makes it visible: sample_id, which alone says how many samples there are, last
    shapes = [SetShape(name, store.zarr_format, array.shape) for name, array in after.items()]
    return Plan(
        operation=operation,
        store=place,
        base=base,
        checks=tuple(check for source in sources for check in data_checks(operation, store, source)),
        writes=writes,
        preparations=tuple(WriteDocuments.of(store.arrays[name]) for name in created),
        edits=(*shapes, Consolidate(tuple(after), store.zarr_format)),
        memory=memory,
        after=store.planned(after, np.concatenate([store.sample_ids, *(s.sample_ids for s in sources)])),
        counts={"sources": len(sources), "samples added": new - old},
    )


def _waits_for_consolidation(store: Vcz, sources: Sequence[Vcz]) -> bool:
    """Whether an append of these sources was stopped just before its last edit."""
    if store.planned_ids is not None:
        return False
    incoming = [sample for source in sources for sample in source.sample_ids]
    is_there = 0 < len(incoming) <= store.n_samples and list(store.sample_ids[-len(incoming) :]) == incoming
    return is_there and Consolidate(tuple(store.samples_arrays), store.zarr_format).is_due(store.store)


def complete_append(place: Store, store: Vcz, memory: Memory) -> Plan:
    """Compile what remains of an append that was stopped when its samples were visible already."""
    edits = (Consolidate(tuple(store.samples_arrays), store.zarr_format),)
    counts = {"samples added": 0, "stopped append completed": 1}
    return Plan(
        operation="append",
        store=place,
        base=store.state,
        checks=(),
        writes=(),
        edits=edits,
        memory=memory,
        after=store,
        counts=counts,
    )


def _with_new_arrays(store: Vcz, source: Vcz) -> tuple[Vcz, list[str]]:
    """A store without samples takes over the fields that its first source has, and it has not."""
    if store.n_samples:
        return store, []
    missing = set(source.samples_arrays) - set(store.samples_arrays)
    if set(store.samples_arrays) == {SAMPLE_ID}:
        missing.add(SAMPLE_ID)  # made for no samples, so its chunks are of no use
    added = {name: _empty_like(source.samples_arrays[name], store, name) for name in missing}
    return replace(store, arrays=dict(sorted({**store.arrays, **added}.items()))), sorted(missing)


def _empty_like(array: AnyArray, store: Vcz, name: str) -> AnyArray:
    """An array of the store's format without samples, encoded as one of a source where the formats allow."""
    axis = samples_axis(array)
    shape = tuple(0 if i == axis else n for i, n in enumerate(array.shape))
    metadata = arrays.in_format(array, store.zarr_format, shape=shape, dimension_names=dimensions(array))
    return arrays.from_metadata(metadata, store.store, name)


@dataclass(frozen=True)
class AppendArray:
    """
    The append of samples to one array.

    Attributes
    ----------
    name
        Of the array.
    before, target
        The array as it is, and as it will be.
    parts
        The arrays of the sources.
    old
        How many samples are there.
    axis
        The samples axis.
    copied, decoded
        Which chunk columns are copied as they are, and which are encoded anew; see `split_columns`.
    block
        How many chunks along each axis one task takes.
    """

    name: str
    before: AnyArray
    target: AnyArray
    parts: tuple[AnyArray, ...]
    old: int
    axis: int
    copied: tuple[Copied, ...]
    decoded: tuple[int, ...]
    block: tuple[int, ...]

    @classmethod
    def of(
        cls,
        name: str,
        before: AnyArray,
        target: AnyArray,
        parts: Sequence[AnyArray],
        old: int,
        memory: Memory,
    ) -> "AppendArray":
        """Decide how the columns of one array are written."""
        axis = samples_axis(before)
        assert axis is not None
        chunks = arrays.outer_chunks(target)
        same = [arrays.outer_chunks(p) == chunks and arrays.same_encoding(p, target) for p in parts]
        copied, decoded = split_columns(old, [p.shape[axis] for p in parts], chunks[axis], same)
        grid = list(arrays.grid(target.shape, chunks))
        grid[axis] = max([len(decoded), *(len(c.columns) for c in copied)], default=0)
        widest = [max(arrays.outer_chunks(p)[i] for p in parts) for i in range(target.ndim)]
        prefer = [math.ceil(w / c) for w, c in zip(widest, chunks, strict=True)]
        chunk_bytes = math.prod(chunks) * arrays.element_bytes(target)

        def decoding(block: tuple[int, ...]) -> int:
            columns = Columns(target.shape, chunks, axis, decoded, block)
            return Joined((before, *parts), columns, target.dtype).decode_mem() if decoded else 0

        block = memory.fit("append", grid, chunk_bytes, decoding, prefer=prefer)
        return cls(name, before, target, tuple(parts), old, axis, tuple(copied), decoded, block)

    def _columns(self, columns: tuple[int, ...], array: AnyArray | None = None) -> Columns:
        array = self.target if array is None else array
        return Columns(array.shape, arrays.outer_chunks(array), self.axis, columns, self.block)

    @property
    def encoded_chunks(self) -> int:
        """How many chunks are copied as they are."""
        return sum(self._columns(c.columns).n_chunks for c in self.copied)

    @property
    def decoded_chunks(self) -> int:
        """How many chunks are encoded anew."""
        return self._columns(self.decoded).n_chunks

    @property
    def chunks_read(self) -> int:
        """The chunks of the sources, and of the store's ragged column."""
        ragged = self.old % arrays.outer_chunks(self.target)[self.axis] > 0
        rows = [n for i, n in enumerate(arrays.grid(self.target.shape, arrays.outer_chunks(self.target))) if i != self.axis]
        return ragged * math.prod(rows) + sum(math.prod(arrays.grid(p.shape, arrays.outer_chunks(p))) for p in self.parts)

    @property
    def bytes_read(self) -> int:
        """At most the sources, and the store's ragged column."""
        ragged = self.old % arrays.outer_chunks(self.target)[self.axis]
        column = math.prod(n for i, n in enumerate(self.target.shape) if i != self.axis)
        samples = ragged + sum(p.shape[self.axis] for p in self.parts)
        return column * samples * arrays.element_bytes(self.target)

    @property
    def bytes_written(self) -> int:
        """At most the columns that hold new samples."""
        return self.bytes_read

    def by_cubed(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """Copy columns as they are where possible; decode, join and encode the others."""
        from plans import chunks

        spec = memory.spec()
        target = arrays.planned(self.target, store=store)
        result = []
        for copied in self.copied:
            source = self.parts[copied.source]
            columns = self._columns(copied.columns)
            if columns.n_chunks:
                source_columns = self._columns(copied.source_columns, source)
                result.append(chunks.copy_encoded(source, source_columns, target, columns, spec))
        columns = self._columns(self.decoded)
        if columns.n_chunks:
            joined = Joined((arrays.planned(self.before, store=store), *self.parts), columns, target.dtype)
            values = chunks.read(joined, spec, extra_mem=joined.decode_mem())
            result.append(chunks.write(values, chunks.DecodedView(target, columns)))
        return result

    def by_xarray(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """Let xarray join the ragged column and the sources."""
        from plans import through_xarray

        every = tuple(sorted({*self.decoded, *(c for copied in self.copied for c in copied.columns)}))
        if not every:
            return []
        start = every[0] * arrays.outer_chunks(self.target)[self.axis]
        parts = [through_xarray.variable(part, memory) for part in self.parts]
        if start < self.old:
            before = arrays.planned(self.before, store=store)
            parts.insert(0, through_xarray.variable(before, memory, slice(start, self.old)))
        joined = through_xarray.concat(parts, self.target.dtype)
        return through_xarray.write(joined, arrays.planned(self.target, store=store), self._columns(every))

    def by_zarr(self, store: "ZarrStore") -> None:
        """Assign the samples of each source, chunk by chunk of the store."""
        target = arrays.planned(self.target, store=store)
        start = self.old
        for part in self.parts:
            stop = start + part.shape[self.axis]
            for region in chunk_regions(target, {self.axis: range(start, stop)}):
                inside = list(region)
                inside[self.axis] = slice(region[self.axis].start - start, region[self.axis].stop - start)
                values = arrays.read(part, tuple(inside))
                with arrays.naming(self.name):
                    target[region] = values
            start = stop


@dataclass(frozen=True)
class Joined:
    """The old array and its sources side by side on the samples axis, cut into the blocks of some columns."""

    parts: tuple[AnyArray, ...]
    columns: Columns
    dtype: np.dtype

    @property
    def blocks(self) -> Blocks:
        """In elements."""
        return self.columns.blocks

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Read each part's share of a block."""
        axis = self.columns.axis
        assert axis is not None
        values = np.empty([lengths[i] for lengths, i in zip(self.blocks, index, strict=True)], dtype=self.dtype)
        for here, there in self.columns.regions(index):
            start = 0
            for part in self.parts:
                stop = start + part.shape[axis]
                first, last = max(start, there[axis].start), min(stop, there[axis].stop)
                if first < last:
                    shift = here[axis].start - there[axis].start
                    to, of = list(here), list(there)
                    to[axis], of[axis] = (
                        slice(first + shift, last + shift),
                        slice(first - start, last - start),
                    )
                    values[tuple(to)] = arrays.read(part, tuple(of))
                start = stop
        return values

    def decode_mem(self) -> int:
        """What it takes to read a block: the chunks of the parts that overlap it, as far as zarr reads them at once."""
        needed = 0
        for part in self.parts:
            lengths = zip(self.columns.block_shape, arrays.outer_chunks(part), part.shape, strict=True)
            overlapped = math.prod(min(math.ceil(b / c) + 1, math.ceil(n / c)) for b, c, n in lengths)
            needed = max(needed, arrays.decode_mem(part, min(overlapped, arrays.READS_AT_ONCE)))
        return needed + math.prod(self.columns.block_shape) * arrays.element_bytes(self.parts[0])


def chunk_regions(array: AnyArray, within: dict[int, range]) -> Iterator[tuple[slice, ...]]:
    """The regions of an array's chunks, cut to a range along some axes; one that is empty yields nothing."""
    chunks = arrays.outer_chunks(array)
    ranges = [within.get(i, range(n)) for i, n in enumerate(array.shape)]
    cells = [range(r.start // c, math.ceil(r.stop / c)) for r, c in zip(ranges, chunks, strict=True)]
    for cell in np.ndindex(*(len(c) for c in cells)):
        at = [c[i] for c, i in zip(cells, cell, strict=True)]
        yield tuple(
            slice(max(r.start, i * c), min(r.stop, (i + 1) * c)) for i, r, c in zip(at, ranges, chunks, strict=True)
        )
