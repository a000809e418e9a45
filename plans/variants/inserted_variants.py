"""Inserted variants: a store with the variants that sources have and it lacks, looked up range by range.

The union of a store and its sources is that of `plans.variants.union_of_sources`, with the store as the first source,
so records are joined as ``create`` joins them. No record of the store moves relative to another one, and none is joined
with another one of the store. What is inserted where is never listed: tasks merge the range that they write.
"""

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast
from uuid import uuid4

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import MIN_TASKS
from plans.core.compatibility import SITE_FIELDS, without_nothing
from plans.core.memory import Memory
from plans.core.model import Survey
from plans.core.views import View
from plans.variants.match import KEPT_BYTES, Index, Latest, Matches, Numbers, Report, Sites, Unit, with_new
from plans.variants.reference_blocks import LEN, Unseen
from plans.variants.sortedness import Runs
from plans.variants.union_of_sources import ALLELE, CONTIG, ID, ID_MASK, POSITION, Piece, SourceSites, Union
from plans.variants.union_sites import region_index
from vczstore.errors import IncompatibleError
from vczstore.vcz import arrays
from vczstore.vcz.extents import END, LENGTH, SVLEN
from vczstore.vcz.model import VARIANTS, Vcz

if TYPE_CHECKING:
    from plans.core.scan_tasks import ScanReader


REGION_INDEX = "region_index"


def contig_table(vcz: Vcz, sources: Sequence[Vcz], runs: Sequence[Runs]) -> list[str]:
    """The contigs of a store, and then those on which only sources have variants."""
    names = dict.fromkeys(vcz.table("contig_id").tolist())
    for source, mine in zip(sources, runs, strict=True):
        theirs = source.table("contig_id").tolist()
        names |= dict.fromkeys(theirs[i] for i in np.unique(mine.contig).tolist())
    return list(names)


@dataclass(frozen=True)
class Records:
    """
    The variants of one range, those of the store and those that are inserted.

    Attributes
    ----------
    start
        The number of the first of them in the store as it will be.
    contig, position : numpy.ndarray of int64
        Where they are; contigs as the store will number them.
    old : numpy.ndarray of int64
        The row in the store as it is; -1 of those that are inserted.
    alleles : numpy.ndarray of object, variants by alleles
        As they will be: those of the store, and then new ones, source by source. ``""`` where there is none.
    n_before, n_alleles : numpy.ndarray of int32
        How many alleles each has in the store, and will have; the same of those that are inserted.
    sources
        What each source has.
    """

    start: int
    contig: np.ndarray
    position: np.ndarray
    old: np.ndarray
    alleles: np.ndarray
    n_before: np.ndarray
    n_alleles: np.ndarray
    sources: tuple[Matches, ...]

    @property
    def nbytes(self) -> int:
        """What it takes to keep them, about."""
        return 32 * len(self.old) + 64 * self.alleles.size + sum(m.nbytes for m in self.sources)


@dataclass(frozen=True, eq=False)
class InsertedVariants:
    """
    The variants of a store and its sources together. It is sent to workers.

    Attributes
    ----------
    token
        Names them in the memory of a process.
    union
        Of the store, which comes first, and the sources; it orders contigs by rank.
    by_rank
        For each rank of a contig, its number in the store's table as it will be.
    stops
        How many variants are before each range; and how many there are.
    """

    token: str
    union: Union
    by_rank: np.ndarray
    stops: np.ndarray

    @property
    def n_variants(self) -> int:
        """How many there will be."""
        return int(self.stops[-1])

    def parts(self, rows: slice) -> Iterator[tuple[Records, slice]]:
        """The ranges of some rows of the store as it will be, and which of their variants lie in it."""
        first = int(np.searchsorted(self.stops, rows.start, side="right")) - 1
        for i in range(first, int(np.searchsorted(self.stops, rows.stop))):
            start, stop = int(self.stops[i]), int(self.stops[i + 1])
            if start < stop and start < rows.stop:
                yield self.look_up(i), slice(max(rows.start, start) - start, min(rows.stop, stop) - start)

    def look_up(self, i: int) -> Records:
        """The variants of one range; the latest are remembered."""
        return _latest.get((self.token, i), lambda: self.merge(i))

    def merge(self, i: int) -> Records:
        """Merge a range, and tell for each record which row of the store and of each source it is."""
        pieces, values, merged = self.union.merge(i)
        first, n = merged.first, len(merged.first)
        alleles = without_nothing(values[ALLELE])[first].astype(object)
        numbers = Numbers()
        ours = numbers.of(alleles)
        found = [_Found.none(n, sites.is_gvcf) for sites in self.union.sites]
        stop = 0
        for piece in pieces:
            rows = piece.variants
            record = merged.record[stop : stop + len(rows)]
            theirs, unseen = self._alleles(piece, values[ALLELE][stop : stop + len(rows)])
            stop += len(rows)
            ids = numbers.of(theirs)
            at = np.full(n, -1, dtype="i8")
            at[record] = np.arange(len(rows))
            alleles, ours, mapped = with_new(alleles, ours, theirs, ids, at)
            found[piece.source] = found[piece.source].joined(at, rows, mapped, ids, unseen)
        store, *sources = found
        n_alleles = (ours >= 0).sum(axis=1).astype("i4")
        return Records(
            int(self.stops[i]),
            self.by_rank[values[CONTIG][first]],
            values[POSITION][first],
            store.rows,
            alleles,
            np.where(store.rows >= 0, store.n_alleles, n_alleles),
            n_alleles,
            tuple(sources),
        )

    def _alleles(self, piece: Piece, alleles: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """
        The alleles of some records of a source, as it has them, and which one stands for those that were not seen.

        `alleles` are the same without it, the others having moved up.
        """
        sites = self.union.sites[piece.source]
        if not sites.is_gvcf:
            return alleles.astype(object), None
        own = sites.read(ALLELE, piece.rows)[piece.kept].astype(object)
        unseen = Unseen.of(own)
        if unseen is None:
            return own, np.full(len(own), -1)
        place = np.where(unseen.is_unseen.any(axis=1), unseen.is_unseen.argmax(axis=1), -1)
        return np.where(unseen.is_unseen, "", own), place

    def site_values(self, name: str, part: Records, rows: np.ndarray) -> np.ndarray:
        """What a field of a site, such as ``variant_length``, has for some variants of a range."""
        number = int(np.searchsorted(self.stops, part.start, side="right")) - 1
        found = self.union.records(number, (name,), part.alleles.shape[1])
        return np.asarray(found[name][rows])

    @property
    def reading_mem(self) -> int:
        """What it takes to look up a range."""
        return self.union.merge_mem + KEPT_BYTES


class _Found(Matches):
    """What one side has for the variants of a range, put together piece by piece; -1 in the place of a row if none."""

    @classmethod
    def none(cls, n: int, is_gvcf: bool) -> Self:
        """Nothing, for so many variants."""
        none = np.full(n, -1, dtype="i4")
        return cls(none.astype("i8"), none[:, np.newaxis], np.zeros(n, dtype="i4"), none if is_gvcf else None)

    def joined(
        self, at: np.ndarray, rows: np.ndarray, mapped: np.ndarray, ids: np.ndarray, unseen: np.ndarray | None
    ) -> Self:
        """With some records: `at` is which of them each variant is, -1 if none."""
        is_there, which = at >= 0, at[at >= 0]
        width = max(self.alleles.shape[1], mapped.shape[1])
        own, alleles = (_wide(a, width) for a in (self.alleles, mapped))
        result_rows, n_alleles = self.rows.copy(), self.n_alleles.copy()
        result_rows[is_there], n_alleles[is_there] = rows[which], (ids[which] >= 0).sum(axis=1)
        places = None
        if unseen is not None and self.unseen is not None:
            places = self.unseen.copy()
            places[is_there] = unseen[which]
            n_alleles[is_there] += unseen[which] >= 0
        return type(self)(result_rows, np.where(is_there[:, np.newaxis], alleles, own).astype("i4"), n_alleles, places)


SITE_VALUES = (LENGTH, END, SVLEN, ID)
"""Fields of a site that are merged from all sources that have it."""


def _wide(numbers: np.ndarray, width: int) -> np.ndarray:
    return np.pad(numbers, ((0, 0), (0, width - numbers.shape[1])), constant_values=-1)


_latest: Latest[Records] = Latest()


@dataclass(frozen=True, eq=False, kw_only=True)
class InsertedIndex(Index):
    """
    The matches of sources with a store into which their variants are inserted.

    Attributes
    ----------
    records
        The variants.
    chosen
        Which of the sources are told of.
    """

    records: InsertedVariants
    chosen: tuple[int, ...]

    def of_source(self, number: int) -> Self:
        """Of one of the sources; the others say what the variants are."""
        return replace(
            self, token=f"{self.token}.{number}", sources=(self.sources[number],), chosen=(self.chosen[number],)
        )

    def _match(self, start: int, stop: int) -> Unit:
        parts = [(part, here) for part, here in self.records.parts(slice(start, stop))]
        width = max(part.alleles.shape[1] for part, _ in parts)
        alleles = [
            np.pad(p.alleles[h], ((0, 0), (0, width - p.alleles.shape[1])), constant_values="") for p, h in parts
        ]
        sources = []
        for s in self.chosen:
            mine = [part.sources[s].cut(here) for part, here in parts]
            columns = max(m.alleles.shape[1] for m in mine)
            sources.append(
                Matches(
                    np.concatenate([m.rows for m in mine]),
                    np.concatenate([_wide(m.alleles, columns) for m in mine]),
                    np.concatenate([m.n_alleles for m in mine]),
                    None if mine[0].unseen is None else np.concatenate([cast("np.ndarray", m.unseen) for m in mine]),
                )
            )
        return Unit(
            start,
            stop,
            np.concatenate(alleles),
            np.concatenate([part.n_before[here] for part, here in parts]),
            np.concatenate([part.n_alleles[here] for part, here in parts]),
            tuple(sources),
            tuple(Report(int((m.rows >= 0).sum())) for m in sources),
        )


@dataclass(frozen=True)
class InsertedPositions(View):
    """Where the variants of a store are, with those that are inserted."""

    records: InsertedVariants

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Look some rows up."""
        rows = region[0]
        assert isinstance(rows, slice)
        parts = [part.position[here] for part, here in self.records.parts(rows)]
        return np.concatenate([np.empty(0, dtype="i8"), *parts])


class RefMismatch(NamedTuple):
    """
    Two variants at one position that cannot be of one reference genome.

    Attributes
    ----------
    contig, position
        Where they are.
    refs
        What each of them says of the reference.
    holders
        Who has it: 0 for the store, and then the sources.
    """

    contig: int
    position: int
    refs: tuple[str, str]
    holders: tuple[int, int]


def _mismatch(records: Records) -> RefMismatch | None:
    """The first two variants of a range of which one is inserted, and whose REFs contradict each other."""
    same = (np.diff(records.contig) == 0) & (np.diff(records.position) == 0)
    refs = records.alleles[:, 0]
    for i in np.flatnonzero(same).tolist():  # few: several variants at one position
        others = [j for j in range(i, -1, -1) if same[j:i].all() and not are_compatible(refs[j], refs[i + 1])]
        for j in others:
            if records.old[j] < 0 or records.old[i + 1] < 0:
                holders = (_holder(records, j), _holder(records, i + 1))
                return RefMismatch(int(records.contig[i]), int(records.position[i]), (refs[j], refs[i + 1]), holders)
    return None


def _holder(records: Records, row: int) -> int:
    if records.old[row] >= 0:
        return 0
    return 1 + next(i for i, source in enumerate(records.sources) if source.rows[row] >= 0)


def are_compatible(a: str, b: str) -> bool:
    """
    Whether two REFs that begin at one position may be of one reference genome; N is any base.

    >>> are_compatible("A", "ACG"), are_compatible("AC", "aN"), are_compatible("AC", "AG")
    (True, True, False)
    """
    return all(x == y or "N" in (x, y) for x, y in zip(a.upper(), b.upper(), strict=False))


def _told(mismatch: RefMismatch, vczs: Sequence[Vcz], contigs: Sequence[str]) -> str:
    """What contradicts what, for people."""
    (a, b), (one, other) = mismatch.refs, (vczs[i].label for i in mismatch.holders)
    return (
        f"at {contigs[mismatch.contig]}:{mismatch.position} the REF is {b[:40]} in {other}, and {a[:40]} in {one}: "
        "they are not of one reference genome; check them with bcftools norm --check-ref, leave new variants out with "
        "--new-variants drop, or have both with --on-ref-mismatch keep"
    )


class RangeReport(NamedTuple):
    """
    What the driver knows of a range.

    Attributes
    ----------
    number
        Of the range.
    n_variants, n_inserted
        How many variants there will be, and how many of these are inserted.
    first_inserted
        Which of them is the first of these; None if there is none.
    most_alleles
        How many alleles one of these has at most.
    mismatch
        The first two variants of which one is inserted, and whose REFs contradict each other; None if none do.
    runs : list of tuple of int
        Neighbouring variants of one contig: its number, how many they are, the first and the last position.
    """

    number: int
    n_variants: int
    n_inserted: int
    first_inserted: int | None
    most_alleles: int
    mismatch: "RefMismatch | None"
    runs: list[tuple[int, int, int, int]]


@dataclass(frozen=True)
class CountInserted:
    """Counts the variants that are inserted in each range of the union of a store and its sources."""

    inserted: InsertedVariants

    def look(self, ranges: slice) -> RangeReport:
        """Merge one range."""
        found = self.inserted.merge(ranges.start)
        is_new = found.old < 0
        starts = np.flatnonzero(np.diff(found.contig, prepend=-1))
        stops = np.append(starts[1:], len(found.contig)).astype("i8")
        runs = [
            (int(found.contig[a]), int(b - a), int(found.position[a]), int(found.position[b - 1]))
            for a, b in zip(starts, stops, strict=True)
        ]
        first = int(np.argmax(is_new)) if is_new.any() else None
        most = int(found.n_alleles[is_new].max(initial=0))
        return RangeReport(ranges.start, len(found.old), int(is_new.sum()), first, most, _mismatch(found), runs)

    def by_cubed(self, memory: Memory, tag: int) -> "list[ScanReader]":
        """A task for each range."""
        from plans.core import scan_tasks

        union = self.inserted.union
        if not union.n_ranges:
            return []
        return [scan_tasks.ScanReader(self.look, union.n_ranges, 1, tag, union.merge_mem)]


@dataclass(frozen=True)
class FindRegions:
    """Makes the rows of ``region_index`` for chunks of variants, from the first that changes on."""

    inserted: InsertedVariants
    start: int
    chunk: int

    def look(self, chunks: slice) -> np.ndarray:
        """The rows of one chunk."""
        start = self.start + chunks.start * self.chunk
        rows = slice(start, min(self.inserted.n_variants, start + self.chunk))
        parts = [(part, np.arange(here.start, here.stop)) for part, here in self.inserted.parts(rows)]
        contig, position = (
            np.concatenate([getattr(part, name)[at] for part, at in parts]) for name in ("contig", "position")
        )
        length = np.concatenate([self.inserted.site_values(LENGTH, part, at) for part, at in parts])
        return region_index(contig, position, length, start=start, chunk=self.chunk)

    def by_cubed(self, memory: Memory, tag: int) -> "list[ScanReader]":
        """A task for each chunk."""
        from plans.core import scan_tasks

        n_chunks = math.ceil((self.inserted.n_variants - self.start) / self.chunk)
        return [scan_tasks.ScanReader(self.look, n_chunks, 1, tag, self.inserted.reading_mem)]


@dataclass(frozen=True)
class Insertion:
    """
    What the driver knows of the variants that are inserted into a store.

    Attributes
    ----------
    records
        The variants.
    contigs
        The store's contigs, and those that only sources have.
    reports
        Of each range.
    sources
        The sources, as they are.
    chunk
        How many variants a chunk has by which ``region_index`` counts.
    n_records
        How many records of the sources they are.
    regions
        Rows of ``region_index`` from the first chunk on that changes; see `plans.variants.union_sites.region_index`.
        None if the store has none.
    """

    records: InsertedVariants
    contigs: tuple[str, ...]
    reports: tuple[RangeReport, ...]
    sources: tuple[Vcz, ...]
    chunk: int
    n_records: int
    regions: np.ndarray | None = None

    @cached_property
    def n_inserted(self) -> int:
        """How many variants come in."""
        return sum(report.n_inserted for report in self.reports)

    @cached_property
    def most_alleles(self) -> int:
        """How many alleles one of them has at most."""
        return max((report.most_alleles for report in self.reports), default=0)

    @cached_property
    def first(self) -> int:
        """The row of the first of them; it and all after it get other values."""
        starts = self.records.stops
        return min(int(starts[r.number]) + r.first_inserted for r in self.reports if r.first_inserted is not None)

    @property
    def runs(self) -> np.ndarray:
        """The runs of the store as it will be, as `plans.variants.match.Sites` has them."""
        found = []
        for report in self.reports:
            start = int(self.records.stops[report.number])
            for contig, n, first, last in report.runs:
                found.append((contig, start, start + n, first, last))
                start += n
        return np.array(found, dtype="i8").reshape(-1, 5)

    @property
    def first_changed_chunk(self) -> int:
        """The first row of the chunk by which ``region_index`` counts in which anything changes."""
        return self.first // self.chunk * self.chunk


def _ranked(runs: Runs, n_contigs: int) -> np.ndarray:
    """
    The order of contigs in which no variant of a store moves: numbers of contigs, by rank.

    It is that of the table, unless the store's variants are in another one.
    """
    seen = list(dict.fromkeys(runs.contig.tolist()))
    if seen == sorted(seen):
        return np.arange(n_contigs)
    return np.array([*seen, *(i for i in range(n_contigs) if i not in set(seen))], dtype="i8")


def _sites(
    vczs: Sequence[Vcz], contigs: Sequence[str], by_rank: np.ndarray, are_gvcfs: Sequence[bool]
) -> list[SourceSites]:
    """The variants of a store and its sources, their contigs by rank."""
    ranks: Mapping[str, int] = {contigs[number]: rank for rank, number in enumerate(by_rank.tolist())}
    names = (*SITE_FIELDS, *SITE_VALUES, ID_MASK, LEN)
    return [
        SourceSites(
            {name: vcz.arrays[name] for name in names if name in vcz.arrays},
            # on contigs that are not in the table there are no variants
            np.array([ranks.get(contig, 0) for contig in vcz.table("contig_id").tolist()], dtype="i8"),
            is_gvcf,
        )
        for vcz, is_gvcf in zip(vczs, are_gvcfs, strict=True)
    ]


def find_insertion(
    operation: str,
    vcz: Vcz,
    sources: Sequence[Vcz],
    runs: Sequence[Runs],
    index: Index,
    memory: Memory,
    *,
    n_records: int,
    any_alt: bool,
    on_ref_mismatch: str,
) -> Generator[Survey, list[list[Any]], tuple[Insertion, InsertedIndex]]:
    """
    Find the variants that sources have and a store lacks, and where they go.

    Parameters
    ----------
    operation
        For messages.
    vcz, sources
        The store and its sources.
    runs
        Theirs.
    index
        Of the store as it is.
    memory
        What a task may use.
    n_records
        How many records of the sources match nothing in it.
    any_alt
        As in `plans.variants.join_records.join`.
    on_ref_mismatch
        What to do about new variants whose REF contradicts another: one of `vczstore.choices.REF_MISMATCHES`.

    Yields
    ------
    Survey
        What has to be looked up in the data. What was found is to be sent back: a list for each of its scans.

    Raises
    ------
    IncompatibleError
        If two of them cannot be of one reference genome.
    """
    contigs = contig_table(vcz, sources, runs[1:])
    by_rank = _ranked(runs[0], len(contigs))
    sites = _sites(
        [vcz, *sources], contigs, by_rank, [site.blocks is not None for site in (index.store, *index.sources)]
    )
    segments = [s.segments(r) for s, r in zip(sites, runs, strict=True)]
    n_units = math.ceil(sum(s.n_variants for s in sites) / index.unit)
    union = Union.of(sites, segments, 0, memory, operation=operation, n_ranges=max(MIN_TASKS, n_units))
    union = replace(union, any_alt=any_alt)
    records = InsertedVariants(uuid4().hex, union, by_rank, np.zeros(union.n_ranges + 1, dtype="i8"))
    (found,) = yield Survey(operation, (CountInserted(records),), memory)
    reports = sorted(RangeReport(*item) for item in found)
    mismatch = next((report.mismatch for report in reports if report.mismatch is not None), None)
    if mismatch is not None and on_ref_mismatch == "refuse":
        raise IncompatibleError(f"{operation}: {_told(RefMismatch(*mismatch), [vcz, *sources], contigs)}")
    stops = np.concatenate([[0], np.cumsum([report.n_variants for report in reports], dtype="i8")])
    records = replace(records, stops=stops)
    insertion = Insertion(
        records, tuple(contigs), tuple(reports), tuple(sources), vcz.chunk_lengths[VARIANTS], n_records
    )
    if REGION_INDEX in vcz.arrays:
        scan = FindRegions(records, insertion.first_changed_chunk, insertion.chunk)
        (regions,) = yield Survey(operation, (scan,), memory)
        insertion = replace(insertion, regions=np.concatenate(sorted(regions, key=lambda rows: int(rows[0, 0]))))
    numbers = {name: i for i, name in enumerate(contigs)}
    theirs = []
    for source, mine, one in zip(sources, runs[1:], index.sources, strict=True):
        names = source.table("contig_id").tolist()
        theirs.append(
            Sites.of(source, mine, np.array([numbers.get(name, -1) for name in names], dtype="i8"), one.blocks)
        )
    like = arrays.planned(index.store.position, shape=(records.n_variants,))
    position = cast("AnyArray", InsertedPositions(index.store.position, like, records))
    ours = replace(index.store, runs=insertion.runs, position=position)
    return insertion, InsertedIndex(
        token=records.token,
        store=ours,
        sources=tuple(theirs),
        n_variants=records.n_variants,
        unit=index.unit,
        allow_new_alleles=True,
        records=records,
        chosen=tuple(range(len(sources))),
    )
