"""Widening: what changes in a store itself when alleles come in that it has not seen."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from zarr.abc.store import Store as ZarrStore
from zarr.types import AnyArray

from plans.core.chunk_grid import Blocks, Columns
from plans.core.memory import Memory
from plans.core.rewrite_columns import ColumnReader, Reencoded
from plans.core.views import Padded, View, extra_mem, in_store, read_padded
from plans.schema.fitting import Fitted
from plans.variants.dropped_fields import Dropped
from plans.variants.field_numbers import GENOTYPE, number_of, numbers_of
from plans.variants.findings import Findings
from plans.variants.in_order import DIPLOID, Field
from plans.variants.match_index import Index, Unit
from plans.variants.vectors import beyond, lacking, lengths, trimmed
from vczstore.vcz import arrays, pipeline, strings
from vczstore.vcz.missing import STR_FILL, STR_MISSING, fill_value, masked_by, missing_value, same
from vczstore.vcz.model import VARIANTS, Vcz, dimensions, listing, samples_axis

if TYPE_CHECKING:
    import cubed

    from plans.core.cubed_backend import Reader
    from plans.core.model import Write

ALLELE = "variant_allele"


def widenings(
    operation: str,
    vcz: Vcz,
    wider: Mapping[str, AnyArray],
    old: int | None,
    findings: Findings | None,
    memory: Memory,
) -> "tuple[Write, ...]":
    """
    What is written of what is in the store already: arrays that become longer, and vectors that end before new alleles.

    Samples come behind `old` ones, whose ragged last column is left to them; all columns are written if it is None.

    ``variant_allele`` comes last. Nothing else tells a run that follows one that was stopped which vectors are to be
    completed.
    """
    result: list[Write] = []
    by_allele = [name for name, array in vcz.arrays.items() if follows_alleles(name, array)]
    for name, array in vcz.arrays.items():
        if name in by_allele and findings is not None:
            continue
        view = completed(name, vcz, array, wider.get(name, array), findings)
        if isinstance(view, View):
            writes: list[Write] = [Widen.of(operation, name, view, old, memory)] if name in wider else []
            if isinstance(view, Completed):
                assert findings is not None
                writes.append(Complete.of(operation, name, view, old, findings, memory))
            result += [write for write in writes if write.decoded_chunks]
    if findings is None:
        return tuple(result)
    for name in sorted(by_allele, key=ALLELE.__eq__):
        alleles = WriteAlleles.of(vcz.arrays[name], wider.get(name, vcz.arrays[name]), findings)
        result += [alleles] if alleles.decoded_chunks else []
    return tuple(result)


def follows_alleles(name: str, array: AnyArray) -> bool:
    """Whether it is ``variant_allele``, or says of its values which are missing and fill."""
    is_mask = array.dtype.kind == "b" and dimensions(array) == (VARIANTS, "alleles")
    return name == ALLELE or (masked_by(name) == ALLELE and is_mask)


def rewritten(writes: "Sequence[Write]") -> str:
    """What `widenings` cost, for people."""
    n_chunks, n_bytes = (sum(getattr(w, what) for w in writes) for what in ("decoded_chunks", "bytes_written"))
    return f"{n_chunks:,} chunks ({n_bytes:,} bytes) of {listing(sorted({w.name for w in writes}), limit=50)}"


def completed(name: str, vcz: Vcz, before: AnyArray, after: AnyArray, findings: Findings | None) -> "AnyArray | View":
    """
    What an array of the store has, as it is going to be beside new alleles.

    Parameters
    ----------
    name, vcz
        The array.
    before
        The same with the samples that count.
    after
        The same with dimensions that have become longer.
    findings
        What alleles come in; None if none can.
    """
    number = "" if findings is None else goes_by(name, vcz, findings)
    if findings is None or not number:
        return before if after.shape == before.shape else Padded(before, after)
    data = vcz.arrays.get(name.removesuffix("_fill"), before)
    is_by_call = number == "G" and samples_axis(before) is not None
    calls = vcz.arrays.get(GENOTYPE)
    return Completed(
        source=before,
        like=after,
        name=name,
        number=number,
        index=findings.index,
        data=data if data.shape == vcz.arrays[name].shape else before,
        calls=calls if is_by_call else None,
        ploidy=DIPLOID if calls is None else calls.shape[-1],
        is_by_call=is_by_call,
    )


def goes_by(name: str, vcz: Vcz, findings: Findings) -> str:
    """What the vectors of an array go by, if any have to be completed: ``R``, ``A`` or ``G``."""
    array = vcz.arrays[name]
    if not findings.new_alleles or name == ALLELE or array.ndim < 2 or dimensions(array)[0] != VARIANTS:
        return ""
    if same(np.array([missing_value(name, array)], array.dtype), fill_value(name, array)).all():
        return ""  # nothing tells missing from fill
    numbers = findings.numbers if samples_axis(array) is not None else numbers_of(vcz, "INFO")
    return number_of(name.removesuffix("_fill"), array, numbers)


@dataclass(frozen=True)
class _WidenedArray(Reencoded, ABC):
    """Chunk columns that a reader makes."""

    @abstractmethod
    def reader(self, store: ZarrStore) -> "Reader":
        """What the columns are made of."""

    @abstractmethod
    def reading_mem(self) -> int:
        """What it takes to read a block."""

    def by_cubed(self, store: ZarrStore, memory: Memory) -> "list[cubed.Array]":
        """Read, and write."""
        from plans.core import cubed_backend as chunks
        from plans.core import sinks

        view = sinks.DecodedSink(arrays.planned(self.target, store=store), self.columns)
        return [chunks.put(self.reader(store), view, memory.spec(), extra_mem=self.reading_mem())]

    def by_zarr(self, store: ZarrStore) -> None:
        """Block by block."""
        target, reader = arrays.planned(self.target, store=store), self.reader(store)
        for index in np.ndindex(*(len(b) for b in self.columns.blocks)):
            values = reader.block(index)
            for here, there in self.columns.regions(index):
                target[there] = values[here]


@dataclass(frozen=True)
class Rewritten(_WidenedArray):
    """All of an array becomes another one, with dimensions that have become longer, or in a wider dtype."""

    before: AnyArray

    @classmethod
    def of(cls, operation: str, before: AnyArray, after: AnyArray, memory: Memory) -> "Rewritten":
        """`after` is what it becomes: in another store, or in the same once the old chunks are not needed."""
        widths = arrays.widths(after)

        def cut(block: tuple[int, ...]) -> "Rewritten":
            return cls(after.path, after, Columns(after.shape, widths, None, (), block), before)

        chunk_bytes = arrays.chunk_bytes(after)
        return cut(memory.fit(operation, arrays.grid_of(after), chunk_bytes, lambda block: cut(block).reading_mem()))

    def reading_from(self, store: ZarrStore) -> "Rewritten":
        """The same, read elsewhere."""
        return replace(self, before=arrays.planned(self.before, store=store))

    def reader(self, store: ZarrStore) -> ColumnReader:
        """The values, filled up."""
        return ColumnReader(cast("AnyArray", Fitted(self.before, self.target, self.name)), self.columns)

    def reading_mem(self) -> int:
        """What it takes to read a block."""
        return self.reader(self.before.store).decode_mem()


@dataclass(frozen=True)
class _Viewed(_WidenedArray):
    """Chunk columns of an array that get what a view of it has."""

    view: View

    def reader(self, store: ZarrStore) -> ColumnReader:
        """The values, read where they are written."""
        return ColumnReader(self.view.in_store(store), self.columns)

    def reading_mem(self) -> int:
        """What it takes to read a block."""
        reader = ColumnReader(cast("AnyArray", self.view), self.columns)
        return reader.decode_mem() + self.view.extra_mem(self.columns.block_shape)

    @classmethod
    def fitting(cls, operation: str, name: str, view: View, columns: Columns, memory: Memory) -> Self:
        """With as many chunks in a task as memory allows."""
        one = cls(name, view.like, columns, view)
        if not columns.n_chunks:
            return one

        def reading(block: tuple[int, ...]) -> int:
            return replace(one, columns=replace(columns, block=block)).reading_mem()

        chunk_bytes = arrays.chunk_bytes(view.like)
        block = memory.fit(operation, columns.grid, chunk_bytes, reading)
        return replace(one, columns=replace(columns, block=block))


def _whole_columns(view: View, old: int | None) -> list[int]:
    """The shape of what `old` samples have in chunks of their own: the ragged last column belongs to the append."""
    shape, axis = list(view.shape), samples_axis(view.like)
    if axis is not None and old is not None:
        shape[axis] = arrays.cuts(view.like)[axis].border(old)
    return shape


def _longer(view: View) -> int | None:
    """Which axis becomes longer."""
    return next((i for i, (n, m) in enumerate(zip(view.source.shape, view.shape, strict=True)) if n < m), None)


class Widen(_Viewed):
    """
    A dimension of an array that goes by alleles becomes longer.

    Chunks that lie in the old part alone stay as they are. New ones are written, because what an absent chunk reads as
    is 0 in most stores, and that is a value. Samples that come in are written by their append.
    """

    @classmethod
    def of(cls, operation: str, name: str, view: View, old: int | None, memory: Memory) -> "Widen":
        """Of `old` samples, or of all."""
        axis, chunks = _longer(view), arrays.outer_chunks(view.like)
        assert axis is not None
        first = view.source.shape[axis] // chunks[axis]
        new = tuple(range(first, -(-view.shape[axis] // chunks[axis])))
        columns = Columns(tuple(_whole_columns(view, old)), arrays.widths(view.like), axis, new, (1,) * len(chunks))
        return cls.fitting(operation, name, view, columns, memory)


class Complete(_Viewed):
    """
    Vectors that end before new alleles get missing values for them, in the chunks of variants that have any.

    A short one could be taken for another: three likelihoods of a diploid call with two alleles are those of a haploid
    one with three (VCF 4.5, section 1.6.2).
    """

    @classmethod
    def of(
        cls, operation: str, name: str, view: "Completed", old: int | None, findings: Findings, memory: Memory
    ) -> Self:
        """Of `old` samples; what `Widen` writes is left out."""
        axis, chunks, shape = _longer(view), arrays.outer_chunks(view.like), _whole_columns(view, old)
        if axis is not None:
            shape[axis] = view.source.shape[axis] // chunks[axis] * chunks[axis]
        rows = changed_rows(findings, shape[0], chunks[0])
        columns = Columns(tuple(shape), arrays.widths(view.like), 0, rows, (1,) * len(chunks))
        return cls.fitting(operation, name, view, columns, memory)


class RewriteRows(_Viewed):
    """The rows of an array from one on, and what is beyond the old length of an axis that becomes longer."""

    @classmethod
    def all_of(
        cls,
        operation: str,
        name: str,
        view: View,
        before: Sequence[int],
        first: int,
        old: int | None,
        memory: Memory,
    ) -> list[Self]:
        """
        Find the chunks that are written, in two parts where an axis becomes longer.

        Parameters
        ----------
        operation, name
            For messages; of the array.
        view
            The array as it will be.
        before
            The shape that it has.
        first
            The first row that changes, of which a chunk begins.
        old
            The number of samples that have whole columns to be written; None if the array has no samples.
        memory
            What a task may use.
        """
        chunks, shape, axis = arrays.outer_chunks(view.like), _whole_columns(view, old), samples_axis(view.like)
        one, widths = (1,) * len(chunks), arrays.widths(view.like)
        longer = [i for i in range(1, len(shape)) if i != axis and before[i] < shape[i]]
        parts = []
        for i in longer:
            kept = before[i] // chunks[i]
            new = tuple(range(kept, arrays.grid(shape, widths)[i]))
            parts.append(Columns(tuple(shape), widths, i, new, one))
            shape[i] = kept * chunks[i]
        rows = tuple(range(first // chunks[0], arrays.grid(shape, widths)[0]))
        parts.append(Columns(tuple(shape), widths, 0, rows, one))
        return [cls.fitting(operation, name, view, columns, memory) for columns in parts if columns.n_chunks]


def changed_rows(findings: Findings, n_variants: int, chunk: int) -> tuple[int, ...]:
    """The chunks of variants to which alleles come."""
    unit = findings.index.unit
    ranges = ((n * unit // chunk, -(-min((n + 1) * unit, n_variants) // chunk)) for n in findings.changed_units)
    return tuple(sorted({row for first, after in ranges for row in range(first, after)}))


@dataclass(frozen=True)
class Completed(View):
    """
    An array of the store whose vectors have a place for each of the alleles that there will be.

    Attributes
    ----------
    source, like
        The array as it is, and as it will be.
    name
        Of the array.
    number
        What its vectors go by: ``R``, ``A`` or ``G``.
    index
        How many alleles each variant has, and will have.
    data
        The values that tell where a vector ends: those of the array, or those that it is a ``*_fill`` of.
    calls
        The genotypes whose ploidy the length of a vector goes by, if it does.
    ploidy
        The highest, which is that of INFO.
    is_by_call
        Whether the ploidy is that of each call.
    """

    name: str
    number: str
    index: Index
    data: AnyArray
    calls: AnyArray | None
    ploidy: int
    is_by_call: bool

    def in_store(self, store: ZarrStore) -> AnyArray:
        """The same, read elsewhere."""
        source, data = (in_store(array, store) for array in (self.source, self.data))
        calls = None if self.calls is None else in_store(self.calls, store)
        return cast("AnyArray", replace(self, source=source, data=data, calls=calls))

    def extra_mem(self, block: tuple[int, ...]) -> int:
        """What it takes beside the block: the whole vectors of one unit, what is told of them, and their genotypes."""
        others = math.prod(block[1:-1])
        n_vectors = min(self.index.unit, block[0]) * others
        size = max(arrays.element_bytes(a) for a in (self.source, self.data))
        read = [self.data] if self.calls is None else [self.data, self.calls]
        decoding = sum(arrays.decode_mem(a, pipeline.READS_AT_ONCE) for a in read)
        alleles = 8 * arrays.decode_mem(self.index.store.allele, 1)
        inner = sum(extra_mem(a, block) for a in (self.source, *read))
        return n_vectors * (self.shape[-1] * (4 * size + 8) + 10 * self.ploidy + 64) + decoding + alleles + inner

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Read a region, fill what lies beyond, and complete the vectors of some variants."""
        values = read_padded(self.source, region)
        rows, *others, last = region
        assert isinstance(rows, slice)
        for unit, here in self.index.units(rows):
            wanted = self._longest(unit.n_alleles[here])
            grown = np.flatnonzero((unit.n_alleles > unit.n_before)[here] | (wanted > self.source.shape[-1]))
            if len(grown):
                at = unit.start + here.start + grown
                vectors = self._complete(at, others, unit.n_before[here][grown], unit.n_alleles[here][grown])
                if self.data.path != self.source.path:
                    vectors = same(vectors, fill_value(self.data.path, self.data))
                values[at - rows.start] = vectors[..., last]
        return values

    def _longest(self, n_alleles: np.ndarray) -> np.ndarray:
        """How long vectors of variants can be."""
        return lengths(self.number, n_alleles, np.full(len(n_alleles), self.ploidy))

    def _complete(self, rows: np.ndarray, others: Sequence[Any], before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """
        The vectors of some variants, `rows`, as they will be.

        Those that are complete already stay as they are, since a task may run twice, and so may an append.
        """
        low, high = int(rows.min()), int(rows.max()) + 1
        region = (slice(low, high), *others, slice(0, self.shape[-1]))
        vectors: np.ndarray = read_padded(self.data, region)[rows - low]
        missing, fill = (of(self.data.path, self.data) for of in (missing_value, fill_value))
        ploidy = np.full(vectors.shape[:-1], self.ploidy)
        if self.is_by_call:
            of_calls = (slice(low, high), others[0], slice(None))
            calls = None if self.calls is None else np.asarray(self.calls.oindex[of_calls])[rows - low]
            field, ended = Field(self.number, missing, fill), trimmed(vectors, missing, fill)
            for n in np.unique(before).tolist():
                mine = before == n
                found = field.look(ended[mine], n, None if calls is None else calls[mine])
                ploidy[mine] = np.where(found.is_wrong, -1, found.ploidy)
        wanted = lengths(self.number, after, ploidy)
        lacks, ends = lacking(vectors, wanted, missing, fill), beyond(vectors, wanted, missing, fill)
        # what a shorter array had no room for is lacking even if the allele is there, as after a run that was stopped
        lacks[before == after, ..., : self.source.shape[-1]] = False
        ends[before == after] = False
        vectors[lacks], vectors[ends] = missing, fill
        return vectors


@dataclass(frozen=True)
class WriteMissing(_WidenedArray):
    """An array comes to a store that has samples, which are missing in it: their whole chunk columns."""

    view: Dropped

    @classmethod
    def of(
        cls, operation: str, view: Dropped, after: AnyArray, old: int | None, memory: Memory
    ) -> "WriteMissing | None":
        """The `view` is what `old` samples have, or all; None if there is no whole column of theirs."""
        widths, shape = arrays.widths(after), tuple(_whole_columns(view, old))

        def cut(block: tuple[int, ...]) -> "WriteMissing":
            return cls(after.path, after, Columns(shape, widths, None, (), block), view)

        if not cut((1,) * len(widths)).columns.n_chunks:
            return None
        chunk_bytes = math.prod(arrays.outer_chunks(after)) * arrays.element_bytes(after)
        block = memory.fit(operation, arrays.grid(shape, widths), chunk_bytes, lambda block: cut(block).reading_mem())
        return cut(block)

    def reader(self, store: ZarrStore) -> ColumnReader:
        """The missing values."""
        return ColumnReader(cast("AnyArray", self.view), self.columns)

    def reading_mem(self) -> int:
        """What it takes to make a block."""
        return self.reader(self.target.store).decode_mem()


@dataclass(frozen=True)
class AllelesReader:
    """The alleles of some chunks of variants, as they will be, or what a mask has for them."""

    index: Index
    columns: Columns
    dtype: np.dtype
    name: str

    @property
    def blocks(self) -> Blocks:
        """In elements."""
        return self.columns.blocks

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Look the variants of one block up."""
        values = np.full([lengths[i] for lengths, i in zip(self.blocks, index, strict=True)], "", dtype=object)
        for here, there in self.columns.regions(index):
            rows = np.concatenate([self._alleles(unit, at) for unit, at in self.index.units(there[0])])
            values[here] = rows[:, there[1]]
        if self.name == ALLELE:
            return strings.as_stored(values, self.dtype)
        is_fill = values == STR_FILL
        return np.asarray(is_fill if self.name.endswith("_fill") else is_fill | (values == STR_MISSING), dtype=bool)

    def _alleles(self, unit: Unit, rows: slice) -> np.ndarray:
        if unit.alleles is not None:
            return self._padded(unit.alleles[rows])
        return self._padded(self.index.store.alleles(unit.start + rows.start, unit.start + rows.stop))

    def _padded(self, alleles: np.ndarray) -> np.ndarray:
        width = self.columns.array_shape[1]
        more = width - alleles.shape[1]
        return np.pad(alleles, ((0, 0), (0, max(0, more))), constant_values="")[:, :width]


def _is_fill(array: AnyArray) -> bool:
    """Whether what an absent chunk reads as means that there is no allele."""
    return array.fill_value is None or bool(array.fill_value == fill_value(array.path, array))


@dataclass(frozen=True)
class WriteAlleles(_WidenedArray):
    """New alleles come to ``variant_allele``, after those that are there, or to a mask of it."""

    findings: Findings

    @classmethod
    def of(cls, before: AnyArray | None, after: AnyArray, findings: Findings) -> "WriteAlleles":
        """Find the chunks of variants that have new alleles; all of them, where there was no array before."""
        chunks = arrays.outer_chunks(after)
        rows = changed_rows(findings, after.shape[0], chunks[0])
        if before is None or (after.shape != before.shape and not _is_fill(after)):
            rows = tuple(range(arrays.grid(after.shape, chunks)[0]))
        n_wide = arrays.grid(after.shape, chunks)[1]
        columns = Columns(after.shape, chunks, 0, rows, (1, n_wide))
        return cls(after.path, after, columns, findings.for_tasks)

    def reader(self, store: ZarrStore) -> AllelesReader:
        """The alleles as they will be."""
        return AllelesReader(self.findings.index, self.columns, self.target.dtype, self.name)

    def reading_mem(self) -> int:
        """What it takes to read a block: alleles of all sides, as Python's strings."""
        index = self.findings.index
        reading = sum(8 * arrays.decode_mem(s.allele, 1) for s in (index.store, *index.sources))
        return reading + index.reading_mem
