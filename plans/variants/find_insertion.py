"""Find an insertion: survey which variants of sources a store lacks, and where in the store they belong.

The driver keeps one report for each range of the genome, and the rows of ``region_index``.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations
from typing import Any, NamedTuple, cast
from uuid import uuid4

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import MIN_TASKS
from plans.core.memory import Memory
from plans.core.model import Survey
from plans.core.scan_reader import ScanReader
from plans.variants.harmonise_rules import Rules
from plans.variants.inserted_variants import (
    InsertedIndex,
    InsertedPositions,
    InsertedVariants,
    MergedRange,
)
from plans.variants.match_index import Index
from plans.variants.region_index import REGION_INDEX, IndexRows, region_index
from plans.variants.sites import Sites
from plans.variants.sortedness import Runs
from plans.variants.union_of_sources import SourceSites, Union
from vczstore.errors import IncompatibleError
from vczstore.vcz import arrays
from vczstore.vcz.extents import LENGTH
from vczstore.vcz.model import VARIANTS, Vcz


class RefMismatch(NamedTuple):
    """
    Two variants at one position whose REFs cannot be of one reference genome.

    Attributes
    ----------
    contig, position
        Contig number and position.
    refs
        The two REFs.
    holders
        The VCZ that has each: 0 for the store, 1 for the first source, and so on.
    """

    contig: int
    position: int
    refs: tuple[str, str]
    holders: tuple[int, int]


def _mismatch(records: MergedRange) -> RefMismatch | None:
    """Return the first two variants at one position whose REFs contradict each other, one inserted; None if none."""
    same = (np.diff(records.contig) == 0) & (np.diff(records.position) == 0)
    if not same.any():
        return None
    starts = np.flatnonzero(np.r_[True, ~same])
    stops = np.append(starts[1:], len(records.contig))
    is_candidate = (stops - starts > 1) & (np.minimum.reduceat(records.old, starts) < 0)
    for start, stop in zip(starts[is_candidate].tolist(), stops[is_candidate].tolist(), strict=True):
        for i, j in combinations(range(start, stop), 2):
            a, b = records.alleles[i, 0], records.alleles[j, 0]
            if min(records.old[i], records.old[j]) < 0 and not are_compatible(a, b):
                holders = (_holder(records, i), _holder(records, j))
                return RefMismatch(int(records.contig[i]), int(records.position[i]), (a, b), holders)
    return None


def _holder(records: MergedRange, row: int) -> int:
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


def _describe(mismatch: RefMismatch, vczs: Sequence[Vcz], contigs: Sequence[str]) -> str:
    """Describe a mismatch in an error message."""
    (a, b), (first, second) = mismatch.refs, (vczs[i].label for i in mismatch.holders)
    return (
        f"at {contigs[mismatch.contig]}:{mismatch.position} the REF is {b[:40]} in {second}, and {a[:40]} in {first}: "
        "they are not of one reference genome; check them with bcftools norm --check-ref, leave new variants out with "
        "--new-variants drop, or have both with --on-ref-mismatch keep"
    )


class RangeReport(NamedTuple):
    """
    Result of counting one range.

    Attributes
    ----------
    number
        Number of the range.
    n_variants, n_inserted
        Number of variants after the insertion, and how many of these are inserted.
    first_inserted
        Index within the range of the first inserted variant; None if there is none.
    most_alleles
        Largest number of alleles of an inserted variant.
    mismatch
        The first two variants at one position whose REFs contradict each other, at least one inserted; None if none.
    runs : list of tuple of int
        Neighbouring variants of one contig: contig number, number of variants, first and last position.
    """

    number: int
    n_variants: int
    n_inserted: int
    first_inserted: int | None
    most_alleles: int
    mismatch: "RefMismatch | None"
    runs: list[tuple[int, int, int, int]]


def _count(records: InsertedVariants, ranges: slice) -> RangeReport:
    """Merge the range `ranges.start` of a store and its sources, and count its variants."""
    merged = records.merge(ranges.start)
    is_new = merged.old < 0
    starts = np.flatnonzero(np.diff(merged.contig, prepend=-1))
    stops = np.append(starts[1:], len(merged.contig))[: len(starts)].astype("i8")  # none if all are blocks
    runs = [
        (int(merged.contig[a]), int(b - a), int(merged.position[a]), int(merged.position[b - 1]))
        for a, b in zip(starts, stops, strict=True)
    ]
    first = int(np.argmax(is_new)) if is_new.any() else None
    most = int(merged.n_alleles[is_new].max(initial=0))
    return RangeReport(ranges.start, len(merged.old), int(is_new.sum()), first, most, _mismatch(merged), runs)


def _regions(records: InsertedVariants, chunk: int, rows: slice) -> np.ndarray:
    """Return the rows of ``region_index`` for a chunk of `chunk` variants after the insertion."""
    parts = [(part, np.arange(here.start, here.stop)) for part, here in records.parts(rows)]
    contig, position = (
        np.concatenate([getattr(part, name)[at] for part, at in parts]) for name in ("contig", "position")
    )
    length = np.concatenate([records.site_values(LENGTH, part, at) for part, at in parts])
    return region_index(contig, position, length, start=rows.start, chunk=chunk)


@dataclass(frozen=True)
class Insertion:
    """
    The insertion of variants into a store, as far as the driver needs it.

    Attributes
    ----------
    records
        The merged variants of the store and the sources.
    contigs
        Names of the store's contigs, and then of those on which only sources have variants.
    reports
        One for each range.
    sources
        The sources, before harmonising.
    chunk
        Number of variants in a chunk, which ``region_index`` is based on.
    n_records
        Number of records of the sources that match no variant of the store.
    regions
        Rows of ``region_index`` from the first chunk that changes; see `plans.variants.region_index.region_index`. None
        if the store has no ``region_index``.
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
        return sum(report.n_inserted for report in self.reports)

    @cached_property
    def most_alleles(self) -> int:
        """Largest number of alleles of an inserted variant."""
        return max((report.most_alleles for report in self.reports), default=0)

    @cached_property
    def first(self) -> int:
        """Row of the first inserted variant, from which on all rows change; the number of variants if there is none."""
        starts = self.records.stops
        rows = (int(starts[r.number]) + r.first_inserted for r in self.reports if r.first_inserted is not None)
        return min(rows, default=self.records.n_variants)

    @property
    def runs(self) -> np.ndarray:
        """The runs of the store after the insertion, in the form of `plans.variants.sites.Sites.runs`."""
        runs = []
        for report in self.reports:
            start = int(self.records.stops[report.number])
            for contig, n, first, last in report.runs:
                runs.append((contig, start, start + n, first, last))
                start += n
        return np.array(runs, dtype="i8").reshape(-1, 5)

    @property
    def first_changed_chunk(self) -> int:
        """First row of the first chunk of ``region_index`` that changes."""
        return self.first // self.chunk * self.chunk


def _ranked(runs: Runs, n_contigs: int) -> np.ndarray:
    """
    Return the contig numbers in the order of the store's variants, which thus keep their order.

    It is the order of the contig table, unless the store's variants are in another one.
    """
    seen = list(dict.fromkeys(runs.contig.tolist()))
    if seen == sorted(seen):
        return np.arange(n_contigs)
    return np.array([*seen, *(i for i in range(n_contigs) if i not in set(seen))], dtype="i8")


def _sites(
    vczs: Sequence[Vcz], contigs: Sequence[str], by_rank: np.ndarray, are_gvcfs: Sequence[bool]
) -> list[SourceSites]:
    """Return the site arrays of a store and its sources, with contigs numbered by rank."""
    ranks = {contigs[number]: rank for rank, number in enumerate(by_rank.tolist())}
    sites = []
    for vcz, is_gvcf in zip(vczs, are_gvcfs, strict=True):
        # contigs without a rank have no variants, but may have blocks
        numbers = [ranks.get(name, len(ranks) + i) for i, name in enumerate(vcz.table("contig_id").tolist())]
        sites.append(SourceSites.of(vcz, numbers, is_gvcf=is_gvcf))
    return sites


def find_insertion(
    operation: str,
    vcz: Vcz,
    sources: Sequence[Vcz],
    runs: Sequence[Runs],
    index: Index,
    memory: Memory,
    rules: Rules,
    n_records: int,
) -> Generator[Survey, list[list[Any]], tuple[Insertion, InsertedIndex]]:
    """
    Find the variants that sources have and a store lacks, and where in the store they belong.

    The caller runs each survey, and sends back its results: a list for each scan. `runs` are those of the store and of
    each source, `index` that of the store before the insertion, and `n_records` the number of records of the sources
    that match no variant of the store.

    Returns
    -------
    insertion : Insertion
    index : InsertedIndex
        The index of the store after the insertion.

    Raises
    ------
    IncompatibleError
        If the REFs of two variants cannot be of one reference genome.
    """
    contigs = contig_table(vcz, sources, runs[1:], index.sources)
    by_rank = _ranked(runs[0], len(contigs))
    are_gvcfs = [site.blocks is not None for site in (index.store, *index.sources)]
    sites = _sites([vcz, *sources], contigs, by_rank, are_gvcfs)
    segments = [s.segments(r) for s, r in zip(sites, runs, strict=True)]
    n_units = math.ceil(sum(s.n_variants for s in sites) / index.unit)
    union = Union.of(
        *(sites, segments, 0, memory),
        operation=operation,
        n_ranges=max(MIN_TASKS, n_units),
        any_alt=rules.allow_new_alleles,
        has_store=True,
    )
    records = InsertedVariants(uuid4().hex, union, by_rank, np.zeros(union.n_ranges + 1, dtype="i8"))
    scan = ScanReader(partial(_count, records), union.n_ranges, 1, union.merge_mem)
    (items,) = yield Survey(operation, (scan,), memory)
    reports = sorted(RangeReport(*item) for item in items)
    mismatch = next((report.mismatch for report in reports if report.mismatch is not None), None)
    if mismatch is not None and rules.on_ref_mismatch == "refuse":
        raise IncompatibleError(f"{operation}: {_describe(RefMismatch(*mismatch), [vcz, *sources], contigs)}")
    stops = np.concatenate([[0], np.cumsum([report.n_variants for report in reports], dtype="i8")])
    records = replace(records, stops=stops)
    insertion = Insertion(
        records, tuple(contigs), tuple(reports), tuple(sources), vcz.chunk_lengths[VARIANTS], n_records
    )
    if REGION_INDEX in vcz.arrays:
        first, look = insertion.first_changed_chunk, partial(_regions, records, insertion.chunk)
        scan = ScanReader(look, records.n_variants - first, insertion.chunk, records.reading_mem, first)
        (regions,) = yield Survey(operation, (scan,), memory)
        insertion = replace(insertion, regions=IndexRows.joined(regions))
    theirs = zip(sources, runs[1:], index.sources, strict=True)
    like = arrays.planned(index.store.position, shape=(records.n_variants,))
    position = cast("AnyArray", InsertedPositions(index.store.position, like, records))
    ours = replace(index.store, runs=insertion.runs, position=position)
    return insertion, InsertedIndex(
        token=records.token,
        store=ours,
        sources=tuple(Sites.of(source, runs_of, contigs, site.blocks) for source, runs_of, site in theirs),
        n_variants=records.n_variants,
        unit=index.unit,
        allow_new_alleles=True,
        records=records,
        chosen=tuple(range(len(sources))),
    )


def contig_table(vcz: Vcz, sources: Sequence[Vcz], runs: Sequence[Runs], sites: Sequence[Sites]) -> list[str]:
    """Return the names of the store's contigs, and then of those on which only sources have variants."""
    names = dict.fromkeys(vcz.table("contig_id").tolist())
    for source, mine, site in zip(sources, runs, sites, strict=True):
        theirs = source.table("contig_id").tolist()
        seen = mine.contig if site.blocks is None else mine.contig[site.blocks.runs[:, 1] > 0]
        names |= dict.fromkeys(theirs[i] for i in np.unique(seen).tolist())
    return list(names)
