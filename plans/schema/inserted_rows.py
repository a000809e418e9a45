"""Arrays of a store with rows for the variants that are inserted: old rows as they are, and the values of new ones."""

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
from plans.variants.in_order import Field
from plans.variants.inserted_variants import SITE_VALUES, InsertedVariants, MergedRange
from plans.variants.kept_calls import KeptCalls
from plans.variants.match_index import Matches
from plans.variants.union_of_sources import FILTER
from vczstore.vcz import arrays, pipeline, strings
from vczstore.vcz.floats import recast
from vczstore.vcz.missing import TEXT, fill_value, mask_of, missing_value, same


@dataclass(frozen=True)
class Inserted(View):
    """
    An array of a store with rows for the variants that are inserted.

    Attributes
    ----------
    source, like
        The array as it is, in the dtype and with the axes that it will have; and as it will be.
    name
        Of the array.
    records
        Which variants there will be.
    """

    name: str
    records: InsertedVariants

    def in_store(self, store: ZarrStore) -> AnyArray:
        """The same: while it is written, only the state before tells what its rows were."""
        return cast("AnyArray", self)

    def extra_mem(self, block: tuple[int, ...]) -> int:
        """What it takes to look the variants up, and a copy of the old rows that are read together."""
        size = arrays.element_bytes(cast("AnyArray", self))
        slab = (min(block[0], self._slab_rows), *block[1:])
        return self.records.reading_mem + math.prod(slab) * size

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Read a region: the rows that the store has, and new ones between them."""
        rows = region[0]
        assert isinstance(rows, slice)
        given = list(region[1:]) + [slice(None)] * (self.ndim - len(region))
        others = [
            slice(*r.indices(n)) if isinstance(r, slice) else r for r, n in zip(given, self.shape[1:], strict=True)
        ]
        parts = [(part, np.arange(here.start, here.stop)) for part, here in self.records.parts(rows)]
        old = np.concatenate([np.empty(0, "i8"), *(part.old[at] for part, at in parts)])
        wanted = [len(r) if isinstance(r, np.ndarray) else r.stop - r.start for r in (rows, *others)]
        values = np.empty(wanted, dtype=self.dtype)
        self._put_old(values, old, others)
        begin = 0
        for part, at in parts:
            new = np.flatnonzero(part.old[at] < 0)
            if len(new):
                values[begin + new] = self._new(part, at[new], others)
            begin += len(at)
        return values

    def _put_old(self, values: np.ndarray, old: np.ndarray, others: Sequence[Any]) -> None:
        """Put the rows that a store has where they go, run by run: one ends where a variant is inserted."""
        kept = np.flatnonzero(old >= 0)
        if not len(kept):
            return
        read: Any = arrays.read_at if any(isinstance(r, np.ndarray) for r in others) else arrays.read
        first = int(old[kept[0]])  # one after the other: no row of a store moves before another
        for a, b in self._slabs(first, first + len(kept)):
            slab, to = read(self.source, (slice(a, b), *others)), kept[a - first : b - first]
            starts = np.flatnonzero(np.diff(to, prepend=-2) != 1).tolist()
            for start, stop in pairwise([*starts, b - a]):
                values[to[start] : to[start] + stop - start] = slab[start:stop]

    def _slabs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Rows of a store that are read together: as many chunks as zarr reads at once."""
        step = self._slab_rows
        return pairwise([start, *range((start // step + 1) * step, stop, step), stop])

    @property
    def _slab_rows(self) -> int:
        return arrays.outer_chunks(self.source)[0] * pipeline.READS_AT_ONCE

    @abstractmethod
    def _new(self, part: MergedRange, rows: np.ndarray, others: Sequence[Any]) -> np.ndarray:
        """The values of new rows, given by their numbers in a range, within a region of the other axes."""


@dataclass(frozen=True)
class InsertedCalls(Inserted):
    """
    Calls: samples of a store have none of the variants that are inserted.

    Attributes
    ----------
    is_reference
        Whether they have the reference there.
    haploid
        The contigs where genotypes have one allele.
    removed
        The positions of samples that were removed, which are missing even where others are not.
    kept
        What the reference blocks that the store keeps tell of them; None if nothing.
    """

    is_reference: bool
    haploid: tuple[int, ...]
    removed: np.ndarray
    kept: KeptCalls | None = None

    def extra_mem(self, block: tuple[int, ...]) -> int:
        """What it takes to look the variants up, and the blocks of samples."""
        looking = 0 if self.kept is None else self.kept.reading_mem(block[0], block[1])
        return super().extra_mem(block) + looking

    def _new(self, part: MergedRange, rows: np.ndarray, others: Sequence[Any]) -> np.ndarray:
        samples, is_haploid = np.arange(self.shape[1])[others[0]], np.isin(part.contig[rows], self.haploid)
        is_missing = np.zeros(len(rows), dtype=bool)
        missing = absent_calls(self.name, self.like, self.like, is_missing, is_haploid)
        values = absent_calls(self.name, self.like, self.like, is_missing | self.is_reference, is_haploid)
        if self.is_reference and len(self.removed):
            where = np.isin(samples, self.removed).reshape(1, -1, *(1,) * (values.ndim - 2))
            values = np.where(where, missing, values)
        if self.kept is not None:
            values = np.broadcast_to(values, (len(rows), len(samples), *values.shape[2:])).copy()
            self.kept.put(values, missing, part.start + rows, part.contig[rows], part.position[rows], samples)
        return values[(slice(None), slice(None), *others[1:])]


@dataclass(frozen=True)
class Unmoved(Fitted):
    """An array without a variants axis in a dtype that has become wider, read as the store was before."""

    def in_store(self, store: ZarrStore) -> AnyArray:
        """The same: it is read while it is written."""
        return cast("AnyArray", self)


@dataclass(frozen=True)
class SourceField:
    """
    What a source has of a field of variants, in the dtype and with the axes of the store's.

    Attributes
    ----------
    array
        The source's.
    field
        What its vectors go by; None if by nothing.
    columns
        For each filter of the source, its number in the store; None of any other field.
    """

    array: AnyArray
    field: Field | None
    columns: np.ndarray | None

    def read(self, mine: Matches, n_alleles: np.ndarray, empty: np.ndarray) -> np.ndarray:
        """
        The values of some variants, all of which the source has.

        Parameters
        ----------
        mine
            Which they are in the source.
        n_alleles
            How many alleles they have in the store.
        empty
            What they have if the source says nothing.
        """
        low, high = int(mine.rows.min()), int(mine.rows.max()) + 1
        region = (slice(low, high), *(slice(0, n) for n in self.array.shape[1:]))
        values = arrays.read_normalised(self.array, region)[mine.rows - low]
        result = empty.copy()
        if self.columns is not None:
            result[:, self.columns] = values
            return result
        if self.field is None:
            inside = tuple(slice(0, min(a, b)) for a, b in zip(values.shape, result.shape, strict=True))
            result[inside] = _cast(values, result.dtype)[inside]
            return result
        for i in range(len(values)):  # those that are inserted are few
            width, n = result.shape[-1], int(mine.n_alleles[i])
            own = _lengthened(_cast(values[i : i + 1, np.newaxis], result.dtype), width, self.field.fill)
            numbers = mine.alleles[i, :n].tolist()
            unseen = -1 if mine.unseen is None else int(mine.unseen[i])
            result[i] = self.field.put_in_order(own, n, int(n_alleles[i]), numbers, width, None, unseen)[0, 0]
        return result


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
    more = width - values.shape[-1]
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, max(0, more))], constant_values=fill)


@dataclass(frozen=True)
class InsertedSites(Inserted):
    """
    Fields of variants: those that are inserted have what the first source says that says anything.

    Attributes
    ----------
    fields
        What each source has; None where it has nothing that the store could take.
    masked
        What a mask says it of; None of any other array.
    """

    fields: tuple[SourceField | None, ...]
    masked: "InsertedSites | None" = None

    def extra_mem(self, block: tuple[int, ...]) -> int:
        """What it takes to look the variants up, and to read what a source has of them."""
        read = [field.array for field in self.fields if field is not None]
        return super().extra_mem(block) + max((arrays.decode_mem(array, 3) for array in read), default=0)

    def _new(self, part: MergedRange, rows: np.ndarray, others: Sequence[Any]) -> np.ndarray:
        return self._values(part, rows)[(slice(None), *others)]

    def _values(self, part: MergedRange, rows: np.ndarray) -> np.ndarray:
        """All that variants have."""
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
                result.reshape(len(rows), -1)[:, 0] = _cast(self.records.site_values(name, part, rows), self.dtype)
                return result
            case _:
                return self._first(part, rows)

    def _first(self, part: MergedRange, rows: np.ndarray) -> np.ndarray:
        """What the first source has that has anything."""
        missing = missing_value(self.name, self.like)
        result = np.full((len(rows), *self.shape[1:]), missing, dtype=self.dtype)
        if self.name != FILTER:
            result.reshape(len(rows), -1)[:, 1:] = fill_value(self.name, self.like)
        is_due = np.ones(len(rows), dtype=bool)
        for source, field in zip(part.sources, self.fields, strict=True):
            at = np.flatnonzero(is_due & (source.rows[rows] >= 0))
            if field is None or not len(at):
                continue
            chosen = rows[at]
            unseen = None if source.unseen is None else source.unseen[chosen]
            mine = Matches(source.rows[chosen], source.alleles[chosen], source.n_alleles[chosen], unseen)
            values = field.read(mine, part.n_alleles[rows[at]], result[at])
            is_said = self._is_said(values)
            result[at[is_said]] = values[is_said]
            is_due[at[is_said]] = False
        return result

    def _is_said(self, values: np.ndarray) -> np.ndarray:
        """Which of some values are not missing; filters that are not applied are said, too."""
        if self.name == FILTER:
            return np.ones(len(values), dtype=bool)
        flat = values.reshape(len(values), -1)
        is_missing = same(flat, missing_value(self.name, self.like)) | same(flat, fill_value(self.name, self.like))
        return np.asarray(~is_missing.all(axis=1))
