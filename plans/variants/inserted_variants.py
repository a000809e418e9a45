"""Inserted variants: the variants of a store merged with those that only its sources have, range by range.

The union of a store and its sources is that of `plans.variants.union_of_sources`, with the store as the first source,
so records are joined as ``create`` joins them. Records of the store keep their order, and are not joined with each
other. There is no list of inserted variants: each task merges the ranges that it writes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from plans.core.compatibility import blank_absent
from plans.core.views import View
from plans.variants.allele_numbers import Numbers, with_new_alleles
from plans.variants.match_index import Index, Matches, Report, Unit
from plans.variants.reference_blocks import Unseen
from plans.variants.union_of_sources import ALLELE, CONTIG, ID, POSITION, Piece, Union
from plans.variants.unit_cache import KEPT_BYTES, UnitCache
from vczstore.vcz.extents import END, LENGTH, SVLEN


@dataclass(frozen=True)
class MergedRange(Unit):
    """
    The variants of one range: those of the store, and inserted ones, which have as many alleles before as after.

    Rows are those of the store after the insertion.

    Attributes
    ----------
    contig, position : numpy.ndarray of int64
        Contig, numbered as after the insertion, and position.
    old : numpy.ndarray of int64
        Row in the store before the insertion; -1 if the variant is inserted.
    """

    alleles: np.ndarray
    contig: np.ndarray
    position: np.ndarray
    old: np.ndarray

    @property
    def nbytes(self) -> int:
        """Approximate size in bytes."""
        return super().nbytes + 24 * len(self.old)


@dataclass(frozen=True, eq=False)
class InsertedVariants:
    """
    The merged variants of a store and its sources. It is sent to workers.

    Attributes
    ----------
    token
        Cache key within a process.
    union
        The union of the store, which comes first, and the sources; its contigs are ordered by rank.
    by_rank
        For each rank, the contig's number in the store after the insertion.
    stops
        Number of variants before each range, and in total.
    """

    token: str
    union: Union
    by_rank: np.ndarray
    stops: np.ndarray

    @property
    def n_variants(self) -> int:
        """Number of variants after the insertion."""
        return int(self.stops[-1])

    def parts(self, rows: slice) -> Iterator[tuple[MergedRange, slice]]:
        """Yield the ranges that overlap some rows after the insertion, and which variants of each are in these rows."""
        first = int(np.searchsorted(self.stops, rows.start, side="right")) - 1
        for i in range(first, int(np.searchsorted(self.stops, rows.stop))):
            start, stop = int(self.stops[i]), int(self.stops[i + 1])
            if start < stop and start < rows.stop:
                yield self.look_up(i), slice(max(rows.start, start) - start, min(rows.stop, stop) - start)

    def look_up(self, i: int) -> MergedRange:
        """Return the variants of one range. Recent ranges are cached."""
        return _cache.get((self.token, i), lambda: self.merge(i))

    def merge(self, i: int) -> MergedRange:
        """Merge a range, and match each of its variants with rows of the store and of the sources."""
        pieces, values, merged = self.union.merge(i)
        first, n = merged.first, len(merged.first)
        n_store = sum(len(piece.variants) for piece in pieces if piece.source == 0)
        own = values[ALLELE][first]  # the store's missing alleles stay verbatim
        alleles = np.where((first < n_store)[:, np.newaxis], own, blank_absent(own)).astype(object)
        numbers = Numbers()
        ours = numbers.of(alleles)
        matches = [Matches.none(n) for _ in self.union.sites]
        stop = 0
        for piece in pieces:
            rows = piece.variants
            record = merged.record[stop : stop + len(rows)]
            theirs, unseen = self._alleles(piece, values[ALLELE][stop : stop + len(rows)])
            stop += len(rows)
            ids = numbers.of(theirs)
            at = np.full(n, -1, dtype="i8")
            at[record] = np.arange(len(rows))
            alleles, ours, mapped = with_new_alleles(alleles, ours, theirs, ids, at)
            mine = matches[piece.source].widened(ids.shape[1])
            mine.rows[record], mine.alleles[record] = rows, mapped[record]
            mine.n_alleles[record], mine.unseen[record] = (ids >= 0).sum(axis=1) + (unseen >= 0), unseen
            matches[piece.source] = mine
        store, *sources = matches
        n_alleles = (ours >= 0).sum(axis=1).astype("i4")
        n_before = np.where(store.rows >= 0, store.n_alleles, n_alleles)
        start = int(self.stops[i])
        return MergedRange(
            start,
            start + n,
            alleles,
            n_before,
            n_alleles,
            tuple(sources),
            tuple(map(Report.of, sources)),
            self.by_rank[values[CONTIG][first]],
            values[POSITION][first],
            store.rows,
        )

    def _alleles(self, piece: Piece, alleles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Return the alleles of a piece at their indices in the source, and the index of the unseen allele of each record.

        The unseen allele of a gVCF (``<NON_REF>`` or ``<*>``) is replaced by ``""``; its index is -1 if the record has
        none. `alleles` are the merged ones, which lack the unseen allele.
        """
        sites = self.union.sites[piece.source]
        if not sites.is_gvcf:
            return alleles.astype(object), np.full(len(alleles), -1)
        own = sites.read(ALLELE, piece.rows)[piece.kept].astype(object)
        unseen = Unseen.of(own)
        return np.where(unseen.is_unseen, "", own), unseen.places

    def site_values(self, name: str, part: MergedRange, rows: np.ndarray) -> np.ndarray:
        """Return the values of a site field, such as ``variant_length``, for some variants of a range."""
        number = int(np.searchsorted(self.stops, part.start, side="right")) - 1
        records = self.union.records(number, (name,), part.alleles.shape[1])
        return np.asarray(records[name][rows])

    @property
    def reading_mem(self) -> int:
        """Memory for looking up a range, in bytes: for merging it, the cache, and the matches of each source."""
        longest = int(np.diff(self.stops).max(initial=0))
        return self.union.merge_mem + KEPT_BYTES + 24 * longest * len(self.union.sites)


SITE_VALUES = (LENGTH, END, SVLEN, ID)
"""Site fields whose values are merged from all sources that have the record."""


_cache: UnitCache[MergedRange] = UnitCache()


@dataclass(frozen=True, eq=False, kw_only=True)
class InsertedIndex(Index):
    """
    The matches of sources with a store into which their variants are inserted.

    Attributes
    ----------
    records
        The merged variants.
    chosen
        Numbers of the sources whose matches units have.
    """

    records: InsertedVariants
    chosen: tuple[int, ...]

    @property
    def reading_mem(self) -> int:
        """Memory for looking up the ranges of a unit, in bytes."""
        return self.records.reading_mem

    def rows_of_store(self, unit: Unit) -> np.ndarray:
        return np.concatenate([part.old[here] for part, here in self.records.parts(slice(unit.start, unit.stop))])

    def of_source(self, number: int) -> Self:
        """Restrict the matches to one of the sources; the variants are still those of all."""
        return replace(
            self, token=f"{self.token}.{number}", sources=(self.sources[number],), chosen=(self.chosen[number],)
        )

    def _match(self, start: int, stop: int) -> Unit:
        return Unit.concatenated([p.cut(here, self.chosen) for p, here in self.records.parts(slice(start, stop))])


@dataclass(frozen=True)
class InsertedPositions(View):
    """The positions of the variants of a store after the insertion."""

    records: InsertedVariants

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        rows = region[0]
        assert isinstance(rows, slice)
        parts = [part.position[here] for part, here in self.records.parts(rows)]
        return np.concatenate([np.empty(0, dtype="i8"), *parts])
