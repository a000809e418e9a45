"""Widening: changes to existing arrays of a store when new alleles are added."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from zarr.abc.store import Store as ZarrStore
from zarr.types import AnyArray

from plans.core.chunk_grid import Blocks, Columns
from plans.core.memory import Memory
from plans.core.rewrite_columns import ColumnReader, Reencoded
from plans.core.views import Padded, View, extra_mem, in_store, read_padded
from plans.schema.fitting import Fitted
from plans.variants.allele_numbers import padded
from plans.variants.dropped_fields import Dropped
from plans.variants.field_numbers import GENOTYPE, number_of, numbers_of
from plans.variants.findings import Findings
from plans.variants.match_index import Index, Unit
from plans.variants.vectors import DIPLOID, Field, beyond, lacking, lengths, trimmed
from vczstore.vcz import arrays, pipeline, strings
from vczstore.vcz.missing import STR_FILL, STR_MISSING, fill_value, masked_by, missing_value, same
from vczstore.vcz.model import VARIANTS, Vcz, dimensions, listing, samples_axis

if TYPE_CHECKING:
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
    Compile the writes to existing data: extended axes, and vectors that must be extended for new alleles.

    Samples are appended after `old` ones: the ragged last chunk column is left to the append. All columns are written
    if `old` is None.

    ``variant_allele`` is written last: after an interruption, the next run relies on it to find the vectors that still
    have to be extended.
    """
    result: list[Write] = []
    by_allele = [name for name, array in vcz.arrays.items() if follows_alleles(name, array)]
    for name, array in vcz.arrays.items():
        if name in by_allele and findings is not None:
            continue
        view = completed(name, vcz, array, wider.get(name, array), findings)
        if isinstance(view, View):
            rows: tuple[int, ...] = ()
            if isinstance(view, Completed) and findings is not None:
                rows = changed_rows(findings, view.shape[0], arrays.outer_chunks(view.like)[0])
            result += rewrites(operation, name, view, array.shape, rows, old, memory)
    if findings is None:
        return tuple(result)
    for name in sorted(by_allele, key=ALLELE.__eq__):
        alleles = WriteAlleles.of(vcz.arrays[name], wider.get(name, vcz.arrays[name]), findings)
        result += [alleles] if alleles.decoded_chunks else []
    return tuple(result)


def follows_alleles(name: str, array: AnyArray) -> bool:
    """Whether an array is ``variant_allele`` or one of its masks."""
    is_mask = array.dtype.kind == "b" and dimensions(array) == (VARIANTS, "alleles")
    return name == ALLELE or (masked_by(name) == ALLELE and is_mask)


def rewritten(writes: "Sequence[Write]") -> str:
    """Describe the cost of `widenings` for the user."""
    n_chunks, n_bytes = (sum(getattr(w, count) for w in writes) for count in ("decoded_chunks", "bytes_written"))
    return f"{n_chunks:,} chunks ({n_bytes:,} bytes) of {listing(sorted({w.name for w in writes}), limit=50)}"


def completed(name: str, vcz: Vcz, before: AnyArray, after: AnyArray, findings: Findings | None) -> "AnyArray | View":
    """
    Return an array of the store as it will be once new alleles are added, if there can be any: itself, or a view.

    It is read from `before`, a view if rows are inserted; `after` has extended axes.
    """
    number = "" if findings is None else vector_number(name, vcz, findings)
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


def vector_number(name: str, vcz: Vcz, findings: Findings) -> str:
    """Return the Number (``R``, ``A`` or ``G``) of an array whose vectors must be extended; else ``""``."""
    array = vcz.arrays[name]
    if not findings.new_alleles or name == ALLELE or array.ndim < 2 or dimensions(array)[0] != VARIANTS:
        return ""
    if same(np.array([missing_value(name, array)], array.dtype), fill_value(name, array)).all():
        return ""  # missing and fill cannot be distinguished
    numbers = findings.numbers if samples_axis(array) is not None else numbers_of(vcz, "INFO")
    return number_of(name.removesuffix("_fill"), array, numbers)


@dataclass(frozen=True)
class Rewritten(Reencoded):
    """Rewrite of a whole array, with longer axes or in a wider dtype."""

    before: AnyArray

    @classmethod
    def of(cls, operation: str, before: AnyArray, after: AnyArray, memory: Memory) -> "Rewritten":
        """Compile the rewrite from `before` to `after`, with as many chunks per task as memory allows."""
        return cls(after.path, after, Columns.of(after), before).fit(operation, memory)

    def reading_from(self, store: ZarrStore) -> "Rewritten":
        """Return the same write, reading from another store."""
        return replace(self, before=arrays.planned(self.before, store=store))

    def reader(self, store: ZarrStore) -> ColumnReader:
        """Return the reader of the old values, padded with fill."""
        return ColumnReader(cast("AnyArray", Fitted(self.before, self.target, self.name)), self.columns)


@dataclass(frozen=True)
class WriteView(Reencoded):
    """Write of chunk columns of an array, with the values of a view."""

    view: View

    def reader(self, store: ZarrStore) -> ColumnReader:
        """Return the reader of the view, which by default reads from the store that is written."""
        return ColumnReader(self.view.in_store(store), self.columns)


def rewrites(
    operation: str,
    name: str,
    view: View,
    before: Sequence[int],
    rows: Iterable[int],
    old: int | None,
    memory: Memory,
) -> list[WriteView]:
    """
    Compile the writes of an array whose axes are extended, or some of whose rows change: one for each, if any.

    Chunks that an array gains when an axis is extended are written, because absent chunks read as 0 in most stores,
    which is a real value.

    Parameters
    ----------
    operation, name
        Name of the operation, for error messages; name of the array.
    view
        The array as it will be.
    before
        The old shape.
    rows
        The chunks along the first axis that change within the old shape.
    old
        Number of existing samples, whose whole chunk columns are written; None to write all columns.
    memory
        Memory limits of a task.
    """
    like, chunks, shape = view.like, arrays.outer_chunks(view.like), _whole_columns(view, old)
    parts = []
    for i, (n, m) in enumerate(zip(before, view.shape, strict=True)):
        if i != samples_axis(like) and n < m:
            parts.append(Columns.of(like, i, range(n // chunks[i], math.ceil(m / chunks[i])), shape=shape))
            shape[i] = n // chunks[i] * chunks[i]
    parts.append(Columns.of(like, 0, [row for row in rows if row * chunks[0] < shape[0]], shape=shape))
    return [WriteView(name, like, columns, view).fit(operation, memory) for columns in parts if columns.n_chunks]


def write_missing(operation: str, view: Dropped, after: AnyArray, old: int | None, memory: Memory) -> WriteView:
    """Compile the write of an array that is added to a store, for `old` samples as in `rewrites`; it may be empty."""
    columns = Columns.of(after, shape=_whole_columns(view, old))
    return WriteView(after.path, after, columns, view).fit(operation, memory)


def _whole_columns(view: View, old: int | None) -> list[int]:
    """Return the shape without the ragged last chunk column of `old` samples, which is left to the append."""
    shape, axis = list(view.shape), samples_axis(view.like)
    if axis is not None and old is not None:
        shape[axis] = arrays.cuts(view.like)[axis].border(old)
    return shape


def changed_rows(findings: Findings, n_variants: int, chunk: int) -> tuple[int, ...]:
    """Return the numbers of the chunks of variants that get new alleles."""
    unit = findings.index.unit
    ranges = ((n * unit // chunk, -(-min((n + 1) * unit, n_variants) // chunk)) for n in findings.changed_units)
    return tuple(sorted({row for first, after in ranges for row in range(first, after)}))


@dataclass(frozen=True)
class Completed(View):
    """
    View of an array of the store whose vectors are extended for new alleles, with missing values.

    A short vector would be ambiguous: three likelihoods of a diploid call with two alleles look like those of a haploid
    call with three (VCF 4.5, section 1.6.2).

    Attributes
    ----------
    source, like
        The existing array, and the array as it will be.
    name
        Name of the array.
    number
        Number of the field: ``R``, ``A`` or ``G``.
    index
        Index with the old and new number of alleles of each variant.
    data
        The array whose values show where a vector ends: the array itself, or the one that it is the ``*_fill`` of.
    calls
        ``call_genotype`` if the length of a vector depends on the ploidy of the call, else None.
    ploidy
        The maximum ploidy, which INFO fields have.
    is_by_call
        Whether each vector has the ploidy of its call.
    """

    name: str
    number: str
    index: Index
    data: AnyArray
    calls: AnyArray | None
    ploidy: int
    is_by_call: bool

    def in_store(self, store: ZarrStore) -> AnyArray:
        """Return the same view, reading from another store."""
        source, data = (in_store(array, store) for array in (self.source, self.data))
        calls = None if self.calls is None else in_store(self.calls, store)
        return cast("AnyArray", replace(self, source=source, data=data, calls=calls))

    def extra_mem(self, block: tuple[int, ...]) -> int:
        """Return the memory in addition to the block: whole vectors of one unit, their analysis, and genotypes."""
        others = math.prod(block[1:-1])
        n_vectors = min(self.index.unit, block[0]) * others
        size = max(arrays.element_bytes(a) for a in (self.source, self.data))
        inputs = [self.data] if self.calls is None else [self.data, self.calls]
        decoding = sum(arrays.decode_mem(a, pipeline.READS_AT_ONCE) for a in inputs)
        alleles = 8 * arrays.decode_mem(self.index.store.allele, 1)
        inner = sum(extra_mem(a, block) for a in (self.source, *inputs))
        return n_vectors * (self.shape[-1] * (4 * size + 8) + 10 * self.ploidy + 64) + decoding + alleles + inner

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Read a region, padded with fill beyond the array, and extend the vectors of variants with new alleles."""
        values = read_padded(self.source, region)
        rows, *others, last = region
        assert isinstance(rows, slice)
        for unit, here in self.index.units(rows):
            needed = self._longest(unit.n_alleles[here])
            growing = np.flatnonzero((unit.n_alleles > unit.n_before)[here] | (needed > self.source.shape[-1]))
            if len(growing):
                at = unit.start + here.start + growing
                vectors = self._complete(at, others, unit.n_before[here][growing], unit.n_alleles[here][growing])
                if self.data.path != self.source.path:
                    vectors = same(vectors, fill_value(self.data.path, self.data))
                values[at - rows.start] = vectors[..., last]
        return values

    def _longest(self, n_alleles: np.ndarray) -> np.ndarray:
        """Return the length of vectors at the maximum ploidy, for each variant."""
        return lengths(self.number, n_alleles, np.full(len(n_alleles), self.ploidy))

    def _complete(self, rows: np.ndarray, others: Sequence[Any], before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """
        Return the extended vectors of the variants `rows`.

        The operation is idempotent, since a task may run twice, and so may an append.
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
                chosen = before == n
                result = field.look(ended[chosen], n, None if calls is None else calls[chosen])
                ploidy[chosen] = np.where(result.is_wrong, -1, result.ploidy)
        needed = lengths(self.number, after, ploidy)
        lacks, ends = lacking(vectors, needed, missing, fill), beyond(vectors, needed, missing, fill)
        # values beyond the old axis are lacking even if the allele is not new, as after an interrupted run
        lacks[before == after, ..., : self.source.shape[-1]] = False
        ends[before == after] = False
        vectors[lacks], vectors[ends] = missing, fill
        return vectors


@dataclass(frozen=True)
class AllelesReader:
    """Reader of ``variant_allele`` as it will be, or of one of its masks, for some chunks of variants."""

    index: Index
    columns: Columns
    dtype: np.dtype
    name: str

    @property
    def blocks(self) -> Blocks:
        return self.columns.blocks

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        values = np.full([lengths[i] for lengths, i in zip(self.blocks, index, strict=True)], "", dtype=object)
        for here, there in self.columns.regions(index):
            rows = np.concatenate([self._alleles(unit, at) for unit, at in self.index.units(there[0])])
            values[here] = rows[:, there[1]]
        if self.name == ALLELE:
            return strings.as_stored(values, self.dtype)
        is_fill = values == STR_FILL
        return np.asarray(is_fill if self.name.endswith("_fill") else is_fill | (values == STR_MISSING), dtype=bool)

    def decode_mem(self) -> int:
        """Return the memory to read a block: alleles of the store and all sources, as Python strings."""
        reading = sum(8 * arrays.decode_mem(s.allele, 1) for s in (self.index.store, *self.index.sources))
        return reading + self.index.reading_mem

    def _alleles(self, unit: Unit, rows: slice) -> np.ndarray:
        if unit.alleles is not None:
            return self._padded(unit.alleles[rows])
        return self._padded(self.index.store.alleles(unit.start + rows.start, unit.start + rows.stop))

    def _padded(self, alleles: np.ndarray) -> np.ndarray:
        width = self.columns.array_shape[1]
        return padded(alleles[:, :width], width)


def _is_fill(array: AnyArray) -> bool:
    """Whether absent chunks read as fill, meaning that there is no allele."""
    return array.fill_value is None or bool(array.fill_value == fill_value(array.path, array))


@dataclass(frozen=True)
class WriteAlleles(Reencoded):
    """Write of new alleles to ``variant_allele``, after the existing ones, or of their values in one of its masks."""

    findings: Findings

    @classmethod
    def of(cls, before: AnyArray | None, after: AnyArray, findings: Findings) -> "WriteAlleles":
        """Compile the write for chunks of variants with new alleles, or for all chunks if the array is new."""
        chunks = arrays.outer_chunks(after)
        rows = changed_rows(findings, after.shape[0], chunks[0])
        if before is None or (after.shape != before.shape and not _is_fill(after)):
            rows = tuple(range(arrays.grid(after.shape, chunks)[0]))
        n_wide = arrays.grid(after.shape, chunks)[1]
        columns = Columns(after.shape, chunks, 0, rows, (1, n_wide))
        return cls(after.path, after, columns, findings.for_tasks)

    def reader(self, store: ZarrStore) -> AllelesReader:
        return AllelesReader(self.findings.index, self.columns, self.target.dtype, self.name)
