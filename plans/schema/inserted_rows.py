"""Views of the arrays of a store with rows inserted for new variants: old rows unchanged, new rows computed."""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
from zarr.abc.store import Store as ZarrStore
from zarr.types import AnyArray

from plans.core.views import View
from plans.schema.fitting import Fitted
from plans.variants.harmonised import absent_calls
from plans.variants.inserted_variants import SITE_VALUES, InsertedVariants, MergedRange
from plans.variants.kept_blocks import KeptCalls
from plans.variants.match_index import Matches
from plans.variants.vectors import Field
from vczstore.vcz import arrays, pipeline, strings
from vczstore.vcz.extents import one_size
from vczstore.vcz.floats import recast
from vczstore.vcz.missing import TEXT, fill_value, mask_of, missing_value, same


@dataclass(frozen=True)
class Inserted(View):
    """
    View of an array of a store with rows for the inserted variants.

    Attributes
    ----------
    source, like
        The existing array, with the final dtype and trailing axes; and the array as it will be.
    name
        Name of the array.
    records
        The variants of the store after the insertion.
    """

    name: str
    records: InsertedVariants

    def in_store(self, store: ZarrStore) -> AnyArray:
        """Return self: the old rows can only be read from the state before the insertion."""
        return cast("AnyArray", self)

    def extra_mem(self, block: tuple[int, ...]) -> int:
        """Return the memory to look up variants, plus a copy of the old rows that are read together."""
        size = arrays.element_bytes(cast("AnyArray", self))
        slab = (min(block[0], self._slab_rows), *block[1:])
        return self.records.reading_mem + math.prod(slab) * size

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Read a region: existing rows, with new rows between them."""
        rows = region[0]
        assert isinstance(rows, slice)
        trailing = list(region[1:]) + [slice(None)] * (self.ndim - len(region))
        others = [
            slice(*r.indices(n)) if isinstance(r, slice) else r for r, n in zip(trailing, self.shape[1:], strict=True)
        ]
        parts = [(part, np.arange(here.start, here.stop)) for part, here in self.records.parts(rows)]
        old = np.concatenate([np.empty(0, "i8"), *(part.old[at] for part, at in parts)])
        shape = [len(r) if isinstance(r, np.ndarray) else r.stop - r.start for r in (rows, *others)]
        values = np.empty(shape, dtype=self.dtype)
        self._put_old(values, old, others)
        begin = 0
        for part, at in parts:
            new = np.flatnonzero(part.old[at] < 0)
            if len(new):
                values[begin + new] = self._new(part, at[new], others)
            begin += len(at)
        return values

    def _put_old(self, values: np.ndarray, old: np.ndarray, others: Sequence[Any]) -> None:
        """Copy existing rows to their positions in `values`, in runs that end where a variant is inserted."""
        kept = np.flatnonzero(old >= 0)
        if not len(kept):
            return
        first = int(old[kept[0]])  # kept rows are contiguous in the store: insertion preserves their order
        for a, b in self._slabs(first, first + len(kept)):
            slab, to = arrays.read(self.source, (slice(a, b), *others)), kept[a - first : b - first]
            starts = np.flatnonzero(np.diff(to, prepend=-2) != 1).tolist()
            for start, stop in pairwise([*starts, b - a]):
                values[to[start] : to[start] + stop - start] = slab[start:stop]

    def _slabs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Return the ranges of rows that are read together: as many chunks as Zarr reads concurrently."""
        step = self._slab_rows
        return pairwise([start, *range((start // step + 1) * step, stop, step), stop])

    @property
    def _slab_rows(self) -> int:
        return arrays.outer_chunks(self.source)[0] * pipeline.READS_AT_ONCE

    @abstractmethod
    def _new(self, part: MergedRange, rows: np.ndarray, others: Sequence[Any]) -> np.ndarray:
        """Compute the values of new rows, given by their offsets in `part`, within a region of the other axes."""


@dataclass(frozen=True)
class InsertedCalls(Inserted):
    """
    View of an array of calls, in which existing samples have no calls at inserted variants.

    Attributes
    ----------
    is_reference
        Whether existing samples are homozygous reference there rather than missing.
    haploid
        Contigs on which genotypes have one allele.
    removed
        Positions of removed samples, which are missing in any case.
    kept
        Calls derived from reference blocks that the store keeps; None if it keeps none for this array.
    """

    is_reference: bool
    haploid: tuple[int, ...]
    removed: np.ndarray
    kept: KeptCalls | None = None

    def extra_mem(self, block: tuple[int, ...]) -> int:
        """Return the memory to look up variants, plus that to look up kept reference blocks."""
        of_kept = 0 if self.kept is None else self.kept.reading_mem(block[0], block[1])
        return super().extra_mem(block) + of_kept

    def _new(self, part: MergedRange, rows: np.ndarray, others: Sequence[Any]) -> np.ndarray:
        samples, is_haploid = np.arange(self.shape[1])[others[0]], np.isin(part.contig[rows], self.haploid)
        is_missing = np.zeros(len(rows), dtype=bool)
        missing = absent_calls(self.name, self.like, self.like, is_missing, is_haploid)
        values = absent_calls(self.name, self.like, self.like, is_missing | self.is_reference, is_haploid)
        if self.is_reference and len(self.removed):
            is_removed = np.isin(samples, self.removed).reshape(1, -1, *(1,) * (values.ndim - 2))
            values = np.where(is_removed, missing, values)
        if self.kept is not None:
            values = np.broadcast_to(values, (len(rows), len(samples), *values.shape[2:])).copy()
            self.kept.put(values, missing, part.start + rows, part.contig[rows], part.position[rows], samples)
        return values[(slice(None), slice(None), *others[1:])]


@dataclass(frozen=True)
class Unmoved(Fitted):
    """View of an array without variants axis in a wider dtype, read from the state before the change."""

    def in_store(self, store: ZarrStore) -> AnyArray:
        """Return self: the array is read while it is rewritten."""
        return cast("AnyArray", self)


@dataclass(frozen=True)
class SourceField:
    """
    A per-variant field of a source, read with the dtype and axes of the store's array.

    Attributes
    ----------
    array
        The array of the source.
    field
        How to reorder vectors per allele or genotype; None for any other field.
    columns
        For ``variant_filter``, the index in the store of each filter of the source; None for any other field.
    """

    array: AnyArray
    field: Field | None
    columns: np.ndarray | None

    def read(self, matches: Matches, n_alleles: np.ndarray, empty: np.ndarray) -> np.ndarray:
        """
        Read the values of some variants, all of which the source has.

        Parameters
        ----------
        matches
            The rows and alleles of the variants in the source.
        n_alleles
            Number of alleles of each variant in the store.
        empty
            Default values of the variants, which are kept where the source has no value.
        """
        low, high = int(matches.rows.min()), int(matches.rows.max()) + 1
        region = (slice(low, high), *(slice(0, n) for n in self.array.shape[1:]))
        values = arrays.read_normalised(self.array, region)[matches.rows - low]
        result = empty.copy()
        if self.columns is not None:
            result[:, self.columns] = values
            return result
        if self.field is None:
            inside = tuple(slice(0, min(a, b)) for a, b in zip(values.shape, result.shape, strict=True))
            result[inside] = _cast(values, result.dtype)[inside]
            return result
        width = result.shape[-1]
        own = _lengthened(_cast(values[:, np.newaxis], result.dtype), width, self.field.fill)
        n_both = (matches.n_alleles, n_alleles)
        return self.field.reorder(own, matches.alleles, n_both, matches.unseen, width)[:, 0]


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind in TEXT:
        return strings.as_stored(strings.as_text(values), dtype)
    if values.dtype.kind == "f":
        return recast(values, dtype)
    result = values.astype(dtype, copy=False)
    if (result != values).any():
        raise ValueError(f"values such as {values[result != values][0]} do not fit into {dtype}")
    return result


def _lengthened(values: np.ndarray, width: int, fill: Any) -> np.ndarray:
    n_padding = width - values.shape[-1]
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, max(0, n_padding))], constant_values=fill)


@dataclass(frozen=True)
class InsertedSites(Inserted):
    """
    View of a per-variant field: inserted variants have the value of the first source in which it is not missing.

    FILTER is missing where it is ``.``: no filter of ``variant_filter`` is set, PASS included.

    Attributes
    ----------
    fields
        The field in each source; None if a source lacks it, or the store cannot take it.
    masked
        For a mask, the view of the array that it masks; else None.
    """

    fields: tuple[SourceField | None, ...]
    masked: "InsertedSites | None" = None

    def extra_mem(self, block: tuple[int, ...]) -> int:
        """Return the memory to look up variants, plus that to read the field of one source."""
        sources = [field.array for field in self.fields if field is not None]
        return super().extra_mem(block) + max((arrays.decode_mem(array, 3) for array in sources), default=0)

    def _new(self, part: MergedRange, rows: np.ndarray, others: Sequence[Any]) -> np.ndarray:
        return self._values(part, rows)[(slice(None), *others)]

    def _values(self, part: MergedRange, rows: np.ndarray) -> np.ndarray:
        """Return the values of new rows over all trailing axes."""
        if self.masked is not None:
            values = self.masked._values(part, rows)
            return mask_of(self.name, self.masked.name, self.masked.like, values)
        match self.name:
            case "variant_contig":
                return np.asarray(part.contig[rows].astype(self.dtype))
            case "variant_position":
                return np.asarray(part.position[rows].astype(self.dtype))
            case name if name in SITE_VALUES:
                result = np.full((len(rows), *self.shape[1:]), fill_value(name, self.like), dtype=self.dtype)
                values = self.records.site_values(name, part, rows)
                if values.ndim > len(self.shape):
                    values = one_size(values)
                values = values.reshape(len(rows), -1)[:, : math.prod(self.shape[1:])]
                result.reshape(len(rows), -1)[:, : values.shape[1]] = _cast(values, self.dtype)
                return result
            case _:
                return self._first(part, rows)

    def _first(self, part: MergedRange, rows: np.ndarray) -> np.ndarray:
        """Return the values of the first source in which they are not missing."""
        missing = missing_value(self.name, self.like)
        result = np.full((len(rows), *self.shape[1:]), missing, dtype=self.dtype)
        result.reshape(len(rows), -1)[:, 1:] = fill_value(self.name, self.like)
        is_pending = np.ones(len(rows), dtype=bool)
        for source, field in zip(part.sources, self.fields, strict=True):
            at = np.flatnonzero(is_pending & (source.rows[rows] >= 0))
            if field is None or not len(at):
                continue
            values = field.read(source.cut(rows[at]), part.n_alleles[rows[at]], result[at])
            is_present = self._is_present(values)
            result[at[is_present]] = values[is_present]
            is_pending[at[is_present]] = False
        return result

    def _is_present(self, values: np.ndarray) -> np.ndarray:
        """Return the mask of variants whose values are not all missing; a flag is missing where it is False."""
        flat = values.reshape(len(values), -1)
        is_missing = same(flat, missing_value(self.name, self.like)) | same(flat, fill_value(self.name, self.like))
        return np.asarray(~is_missing.all(axis=1))
