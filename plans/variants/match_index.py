"""The index of matches: for each unit of a store's variants, the rows of sources, and the new indices of alleles."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np

from plans.core.memory import Memory
from plans.core.scan_reader import ScanReader
from plans.variants.allele_numbers import Numbers, padded, with_new_alleles
from plans.variants.match import match
from plans.variants.sites import Records, Sites
from plans.variants.unit_cache import UnitCache
from vczstore.vcz import arrays
from vczstore.vcz.extents import NONE, UNSEEN

ABSENT, UNMATCHED = -1, -2
"""Instead of a row: the source has no record at the position, or one that matches no variant of the store."""


@dataclass(frozen=True)
class Matches:
    """
    The matches of one source with some variants of a store.

    Attributes
    ----------
    rows : numpy.ndarray of int64
        Row of the source; `ABSENT`, or `UNMATCHED` where the source has a record at the position, but it is no variant
        of the store.
    alleles : numpy.ndarray of int32, variants by alleles of the source
        The store's index of each allele of the source; -1 where there is no allele, or the unseen one.
    n_alleles : numpy.ndarray of int32
        Number of alleles in the source, including the unseen one; 0 without a match.
    unseen : numpy.ndarray of int32
        The source's index of the unseen allele of a gVCF (``<NON_REF>`` or ``<*>``), -1 if there is none.
    """

    rows: np.ndarray
    alleles: np.ndarray
    n_alleles: np.ndarray
    unseen: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.alleles.nbytes + self.n_alleles.nbytes + self.unseen.nbytes

    @classmethod
    def none(cls, n: int) -> "Matches":
        """Return no matches, for `n` variants."""
        none = np.full(n, -1, dtype="i4")
        return cls(none.astype("i8"), none[:, np.newaxis], np.zeros(n, dtype="i4"), none.copy())

    def widened(self, n_alleles: int) -> "Matches":
        """Return the matches with room for at least `n_alleles` alleles of the source."""
        width = max(self.alleles.shape[1], n_alleles)
        return replace(self, alleles=padded(self.alleles, width, -1))

    @classmethod
    def concatenated(cls, parts: "Sequence[Matches]") -> "Matches":
        """Return the matches of one source with successive variants."""
        width = max(part.alleles.shape[1] for part in parts)
        return Matches(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([padded(part.alleles, width, -1) for part in parts]).astype("i4"),
            np.concatenate([part.n_alleles for part in parts]).astype("i4"),
            np.concatenate([part.unseen for part in parts]).astype("i4"),
        )

    def cut(self, rows: slice | np.ndarray) -> "Matches":
        """Return the matches of some of the variants, a slice or indices."""
        return Matches(self.rows[rows], self.alleles[rows], self.n_alleles[rows], self.unseen[rows])

    @property
    def changed(self) -> np.ndarray:
        """Whether each variant has an allele in the source that has another index in the store, or is unseen."""
        return self.reordered | (self.unseen >= 0)

    @property
    def reordered(self) -> np.ndarray:
        """Whether each variant has an allele in the source that has another index in the store."""
        here = np.arange(self.alleles.shape[1])
        return np.asarray(((self.alleles != here) & (self.alleles >= 0)).any(axis=1))


class Report(NamedTuple):
    """
    Counts of matches of one source with some variants of a store.

    Attributes
    ----------
    matched, unmatched
        Number of variants that match, and of variants of the source in this range that match nothing.
    first_unmatched
        Row of the first one that matches nothing; None if there is none.
    block
        Row of the first reference block, if the source is not used as a gVCF; None if there is none.
    """

    matched: int
    unmatched: int = 0
    first_unmatched: int | None = None
    block: int | None = None

    @classmethod
    def of(cls, matches: Matches) -> "Report":
        """Count the variants that match."""
        return cls(int((matches.rows >= 0).sum()))


@dataclass(frozen=True)
class Unit:
    """
    A range of the store's variants, and the matches of all sources.

    Attributes
    ----------
    start, stop
        The rows of the store.
    alleles : numpy.ndarray of object, variants by alleles
        Alleles of the store, and then new ones, source by source; ``""`` is padding. May be None if none are new.
    n_before, n_alleles : numpy.ndarray of int32
        Number of alleles of each variant without and with new ones.
    sources
        The matches of each source.
    reports
        The report of each source.
    """

    start: int
    stop: int
    alleles: np.ndarray | None
    n_before: np.ndarray
    n_alleles: np.ndarray
    sources: tuple[Matches, ...]
    reports: tuple["Report", ...]

    @property
    def nbytes(self) -> int:
        """Approximate size in bytes."""
        alleles = 0 if self.alleles is None else 64 * self.alleles.size
        return alleles + self.n_before.nbytes + self.n_alleles.nbytes + sum(m.nbytes for m in self.sources)

    def cut(self, here: slice, chosen: Sequence[int]) -> "Unit":
        """Return the matches of some of the variants with some of the sources."""
        sources = tuple(self.sources[s].cut(here) for s in chosen)
        alleles = None if self.alleles is None else self.alleles[here]
        return Unit(
            self.start + here.start,
            self.start + here.stop,
            alleles,
            self.n_before[here],
            self.n_alleles[here],
            sources,
            tuple(map(Report.of, sources)),
        )

    @classmethod
    def concatenated(cls, parts: "Sequence[Unit]") -> "Unit":
        """Return the matches of successive variants, all of whose alleles are known."""
        alleles = [part.alleles for part in parts if part.alleles is not None]
        width = max(a.shape[1] for a in alleles)
        n_before, n_alleles = (
            np.concatenate([getattr(part, name) for part in parts]).astype("i4") for name in ("n_before", "n_alleles")
        )
        return Unit(
            parts[0].start,
            parts[-1].stop,
            np.concatenate([padded(a, width) for a in alleles]),
            n_before,
            n_alleles,
            tuple(map(Matches.concatenated, zip(*(part.sources for part in parts), strict=True))),
            tuple(map(_added, zip(*(part.reports for part in parts), strict=True))),
        )


@dataclass(frozen=True, eq=False)
class Index:
    """
    The matches of sources with a store, computed unit by unit.

    Attributes
    ----------
    token
        Cache key within a process.
    store, sources
        The variants of each.
    n_variants, unit
        Number of variants of the store, and of a unit.
    allow_new_alleles
        Whether alleles may be added.
    is_surveyed
        Whether all units have been surveyed, so that reports are no longer needed.
    """

    token: str
    store: Sites
    sources: tuple[Sites, ...]
    n_variants: int
    unit: int
    allow_new_alleles: bool
    is_surveyed: bool = False

    @property
    def reading_mem(self) -> int:
        """Memory for looking up a unit, in bytes, in addition to what callers count per variant."""
        return 0

    def rows_of_store(self, unit: Unit) -> np.ndarray:
        """Return the row of each variant of a unit in the store as it is; negative if the variant is inserted."""
        return np.arange(unit.start, unit.stop)

    def of_source(self, number: int) -> Self:
        """Restrict the index to one source, whose matches do not depend on the others if no alleles are added."""
        return replace(self, token=f"{self.token}.{number}", sources=(self.sources[number],))

    def units(self, rows: slice) -> Iterator[tuple[Unit, slice]]:
        """Yield the units that overlap a range of rows, and which variants of each are in it."""
        for number in range(rows.start // self.unit, -(-rows.stop // self.unit)):
            unit = self.look_up(number)
            yield unit, slice(max(rows.start, unit.start) - unit.start, min(rows.stop, unit.stop) - unit.start)

    def look_up(self, number: int) -> Unit:
        """Return one unit. Recent units are cached."""
        rows = slice(number * self.unit, min(self.n_variants, (number + 1) * self.unit))
        return _cache.get((self.token, number), lambda: self._match(rows.start, rows.stop))

    def _match(self, start: int, stop: int) -> Unit:
        runs = self.store.runs
        run_numbers = np.flatnonzero((runs[:, 1] >= start) & (runs[:, 2] <= stop))
        unit = Unit.concatenated([self._match_run(int(k)) for k in run_numbers])
        return unit if (unit.n_alleles != unit.n_before).any() else replace(unit, alleles=None)

    def _match_run(self, k: int) -> Unit:
        """Match one run. Variants of neighbouring runs at the same positions take part, and are then cut off."""
        contig, start, stop, first, last = (int(x) for x in self.store.runs[k])
        a, b = self.store.rows_between(contig, first, last)
        positions = arrays.read(self.store.position, (slice(a, b),)).astype("i8")
        alleles = self.store.alleles(a, b)
        numbers = Numbers()
        ours = numbers.of(alleles)
        n_before = (ours >= 0).sum(axis=1)
        our_extents = self.store.extents.look(alleles, slice(a, b))
        here = slice(start - a, stop - a)
        matches, reports = [], []
        for source in self.sources:
            records = source.records_at(contig, positions)
            ids = numbers.of(records.alleles)
            extents = (our_extents, records.extents)
            at = match(
                positions,
                ours,
                records.positions,
                ids,
                allow_new_alleles=self.allow_new_alleles,
                extents=extents if any((e != NONE).any() for e in extents) else None,
            )
            alleles, ours, mapped = with_new_alleles(alleles, ours, records.alleles, ids, at)
            matches.append(_matches(positions, records, ids, at, mapped, here))
            report = Report.of(matches[-1])
            if not self.is_surveyed:
                report = self._report(source, k, records, np.sort(records.rows[at[at >= 0]]), report)
            if source.blocks is None and report.block is None and any(text in numbers for text in UNSEEN):
                report = report._replace(block=records.first_block(source.spans))
            reports.append(report)
        return Unit(
            start,
            stop,
            alleles[here],
            n_before[here],
            (ours >= 0).sum(axis=1)[here],
            tuple(matches),
            tuple(reports),
        )

    def _report(self, source: Sites, k: int, records: Records, matched: np.ndarray, report: Report) -> Report:
        """
        Return the report, with the variants of a source that match nothing, and its first reference block among them.

        A variant of the source belongs to the last run that begins at or before it, or else to the first run of the
        contig.
        """
        contig, _, _, first, _ = (int(x) for x in self.store.runs[k])
        runs, theirs = self.store.of_contig(contig), source.of_contig(contig)
        if not len(theirs):
            return report
        is_first = self.store.runs[k, 1] == runs[0, 1]
        after = runs[runs[:, 1] > self.store.runs[k, 1]]
        begin = int(theirs[0, 1]) if is_first else source.row_of(contig, first, "left")
        end = source.row_of(contig, int(after[0, 3]), "left") if len(after) else int(theirs[-1, 2])
        n, first_unmatched = source.unmatched(begin, end, matched)
        report = report._replace(unmatched=n, first_unmatched=first_unmatched)
        if not n or source.blocks is not None:
            return report
        # matching has not read the alleles of the rows before and after the records
        start = int(records.rows[0]) if len(records.rows) else begin
        others = (begin, min(end, start)), (max(begin, start + len(records.rows)), end)
        blocks = (source.first_block(*rows) for rows in others)
        return report._replace(block=next((row for row in blocks if row is not None), None))


def _matches(
    positions: np.ndarray, records: Records, ids: np.ndarray, at: np.ndarray, mapped: np.ndarray, here: slice
) -> Matches:
    """Return the matches of a source with some variants, given the result `at` of `match`."""
    is_unmatched = np.ones(len(records.rows), dtype=bool)
    is_unmatched[at[at >= 0]] = False
    rows = np.where(np.isin(positions, records.positions[is_unmatched]), UNMATCHED, ABSENT)
    n_alleles, is_matched = np.zeros(len(at), dtype="i8"), at >= 0
    rows[is_matched] = records.rows[at[is_matched]]
    n_alleles[is_matched] = (ids[at[is_matched]] >= 0).sum(axis=1)
    unseen = np.full(len(at), -1, dtype="i4")
    unseen[is_matched] = records.unseen[at[is_matched]]
    return Matches(rows[here], mapped[here], (n_alleles + (unseen >= 0))[here], unseen[here])


_cache: UnitCache[Unit] = UnitCache()


def _added(reports: Sequence[Report]) -> Report:
    def first(rows: Iterable[int | None]) -> int | None:
        return min((row for row in rows if row is not None), default=None)

    return Report(
        sum(r.matched for r in reports),
        sum(r.unmatched for r in reports),
        first(r.first_unmatched for r in reports),
        first(r.block for r in reports),
    )


# ---- the survey of matches ------------------------------------------------------------------


class UnitReport(NamedTuple):
    """
    Summary of the matches of one source in one unit.

    Attributes
    ----------
    number, source
        Number of the unit, and of the source.
    matched, unmatched, first_unmatched, block
        As in `Report`.
    reordered, new_alleles
        Number of variants whose allele indices change, and of alleles that are added (by all sources, in the report of
        the first one).
    shift
        Row in the source minus row in the store; None unless the source has all variants in consecutive rows.
    same_alleles
        Whether all variants have the same alleles in both, in the same order.
    fewer
        Whether a matched variant has fewer alleles in the source than in the store.
    span
        Number of rows of the source from the first to the last match.
    most_alleles, most_where_new
        Largest number of alleles of any variant after all sources, and of one that gains alleles (0 if none does).
    """

    number: int
    source: int
    matched: int
    unmatched: int
    first_unmatched: int | None
    block: int | None
    reordered: int
    new_alleles: int
    shift: int | None
    same_alleles: bool
    fewer: bool
    span: int
    most_alleles: int
    most_where_new: int


@dataclass(frozen=True)
class FindMatches:
    """Matches every unit once, in `mem` bytes per task, and reports to the driver the numbers that it needs to plan."""

    operation: str
    index: Index
    mem: int

    def look(self, rows: slice) -> list[UnitReport]:
        """Return the reports of some rows, which are whole units."""
        return [self._report(unit, s) for unit, _ in self.index.units(rows) for s in range(len(self.index.sources))]

    def _report(self, unit: Unit, s: int) -> UnitReport:
        mine = unit.sources[s]
        present = mine.rows[mine.rows >= 0]
        shift: int | None = None
        is_all = self.index.sources[s].blocks is None and len(present) == len(mine.rows)
        if is_all and (np.diff(mine.rows) == 1).all():
            shift = int(mine.rows[0]) - unit.start
        new = int((unit.n_alleles - unit.n_before).sum()) if s == 0 else 0  # of all sources together
        same = not mine.changed.any() and bool((mine.n_alleles == unit.n_alleles).all())
        return UnitReport(
            number=unit.start // self.index.unit,
            source=s,
            **unit.reports[s]._asdict(),
            reordered=int(mine.reordered.sum()),
            new_alleles=new,
            shift=shift,
            same_alleles=same,
            fewer=bool((mine.n_alleles < unit.n_alleles)[mine.rows >= 0].any()),
            span=int(present.max() - present.min()) + 1 if len(present) else 0,
            most_alleles=int(unit.n_alleles.max(initial=0)),
            most_where_new=int(unit.n_alleles[unit.n_alleles > unit.n_before].max(initial=0)),
        )

    @property
    def rows_per_task(self) -> int:
        """Number of rows per task: at most 100 whole units, and few enough for 16 tasks if there are 16 units."""
        n_units = -(-self.index.n_variants // self.index.unit)
        return self.index.unit * max(1, min(n_units // 16, 100))

    def readers(self, memory: Memory) -> list[ScanReader]:
        """Scan with tasks of whole units."""
        return [ScanReader(self.look, self.index.n_variants, self.rows_per_task, self.mem)]
