"""Matching: which variant of a source is which of the store's, and which of its alleles is which.

A variant is its contig (by name), position, REF, and the set of its ALTs; letters count regardless of case. Where an
ALT is symbolic, its length belongs to it; see `vczstore.vcz.extents`. Of a store and a source that have the same
contig, position and REF, in this order:

1. variants with the same ALTs are the same; of several, the first of one is the first of the other, and so on;
2. a variant of the source whose ALTs are among those of one variant of the store is that one;
3. if new alleles are allowed: one that shares an ALT with one variant of the store, or of which either has no ALT,
   is that one, and its other ALTs come in; and then one for which there is no other choice. A record that repeats an
   ALT brings none: it is a variant of the store only where the store repeats it, too.

A variant of the source that could be several of the store's is none of them: nothing is guessed. Another REF is
another variant.

Both sides are sorted, so what belongs to a range of the store's variants lies together in the source; see
`plans.variants.sortedness`.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
from zarr.types import AnyArray

from plans.core.compatibility import NOTHING
from plans.variants.reference_blocks import Blocks, Spans, Unseen, first_block
from plans.variants.sortedness import Runs
from vczstore.vcz import arrays, pipeline, zarr_objects
from vczstore.vcz.extents import NONE, UNSEEN, Extents, may_match
from vczstore.vcz.model import Vcz

KEPT_BYTES = 8 * 2**20
"""How much a process remembers of the latest matches: every array of a plan, and every column of it, asks for them."""


# ---- rules ----------------------------------------------------------------------------------


def match(
    positions: np.ndarray,
    alleles: np.ndarray,
    source_positions: np.ndarray,
    source_alleles: np.ndarray,
    *,
    allow_new_alleles: bool = False,
    extents: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """
    Match the variants of a source to those of a store, on one contig.

    Parameters
    ----------
    positions, source_positions : numpy.ndarray of int64
        Sorted.
    alleles, source_alleles : numpy.ndarray of int64, variants by alleles
        A number for each different allele, the same on both sides, REF first; negative where there is none.
    allow_new_alleles
        Whether the third rule holds.
    extents
        How long the variants of the store and of the source are; see `vczstore.vcz.extents`. None if none is symbolic.

    Returns
    -------
    numpy.ndarray of int64
        For each variant of the store, that of the source, or -1.

    Examples
    --------
    A C,T is the C,T of the store; C alone belongs to the next.

    >>> store = np.array([[0, 1, 2], [0, 1, -1]])
    >>> source = np.array([[0, 1, -1], [0, 2, 1]])
    >>> match(np.array([7, 7]), store, np.array([7, 7]), source)
    array([1, 0])
    """
    result = np.full(len(positions), -1, dtype="i8")
    first = np.searchsorted(positions, source_positions, "left")
    counts = np.searchsorted(positions, source_positions, "right") - first
    theirs = np.repeat(np.arange(len(source_positions)), counts)
    if not len(theirs):
        return result
    ours = np.repeat(first, counts) + np.arange(len(theirs)) - np.repeat(np.cumsum(counts) - counts, counts)
    same_ref = alleles[ours, 0] == source_alleles[theirs, 0]
    ours, theirs = ours[same_ref], theirs[same_ref]

    a, b = alleles[ours, 1:], source_alleles[theirs, 1:]
    shared = ((b[:, :, np.newaxis] == a[:, np.newaxis, :]) & (b >= 0)[:, :, np.newaxis]).any(axis=2).sum(axis=1)
    n, m = (a >= 0).sum(axis=1), (b >= 0).sum(axis=1)
    if extents is not None:
        may = may_match(extents[0][ours], extents[1][theirs], shared, m == 0)
        ours, theirs, shared, n, m = ours[may], theirs[may], shared[may], n[may], m[may]

    exact = (shared == m) & (m == n)
    i, j = ours[exact], theirs[exact]
    paired = _rank(i, j) == _rank(j, i)
    result[i[paired]] = j[paired]

    levels = [shared == m]
    if allow_new_alleles:
        # an allele that a record repeats is no new one: the store would have two of it from then on
        repeats = ((source_alleles >= REPEATED).any(axis=1))[theirs]
        levels += [~repeats & ((shared > 0) | (n == 0) | (m == 0)), ~repeats]
    for level in levels:
        is_free = np.ones(len(source_positions), dtype=bool)
        is_free[result[result >= 0]] = False
        free = level & (result[ours] < 0) & is_free[theirs]
        i, j = ours[free], theirs[free]
        alone = (np.bincount(i, minlength=len(positions))[i] == 1) & (
            np.bincount(j, minlength=len(source_positions))[j] == 1
        )
        result[i[alone]] = j[alone]
    return result


def _rank(of: np.ndarray, among: np.ndarray) -> np.ndarray:
    """For each pair, the rank of `of` among those paired with the same `among`."""
    order = np.lexsort((of, among))
    starts = np.r_[True, np.diff(among[order]) != 0] if len(order) else np.empty(0, dtype=bool)
    here = np.arange(len(order))
    rank = np.empty(len(order), dtype="i8")
    rank[order] = here - np.maximum.accumulate(np.where(starts, here, 0))
    return rank


# ---- where variants are ---------------------------------------------------------------------


class Records(NamedTuple):
    """
    Some variants of a source.

    Attributes
    ----------
    rows, positions, extents : numpy.ndarray of int64
        Their rows in the source, where they begin, and how long they are; see `vczstore.vcz.extents`.
    alleles : numpy.ndarray of object, variants by alleles
        As Python's strings, ``""`` in the place of those that stand for what was not seen.
    unseen : numpy.ndarray of int64
        Of a gVCF, which allele does; -1 if none. None of another source.
    """

    rows: np.ndarray
    positions: np.ndarray
    alleles: np.ndarray
    extents: np.ndarray
    unseen: np.ndarray | None

    def first_block(self, spans: Spans) -> int | None:
        """The first that is a reference block; None if none is. They are neighbours in the source."""
        start = int(self.rows[0]) if len(self.rows) else 0
        return first_block(self.alleles, Unseen.of(self.alleles), spans, slice(start, start + len(self.rows)))

    @classmethod
    def none(cls, n_alleles: int) -> "Records":
        """No variants of a gVCF."""
        nothing = np.empty(0, dtype="i8")
        return cls(nothing, nothing, np.empty((0, n_alleles), dtype=object), nothing, nothing)


@dataclass(frozen=True)
class Sites:
    """
    The variants of a VCZ, found by contig and position.

    Attributes
    ----------
    contig, position, allele
        The arrays.
    runs
        Where they are, runs by what `Runs` has, contigs as the store numbers them; those that it has not are negative.
    extents
        How long they are.
    spans
        How far they reach, which tells reference blocks from variants.
    blocks
        What is known of the reference blocks of a gVCF; None if it is none.
    """

    contig: AnyArray
    position: AnyArray
    allele: AnyArray
    runs: np.ndarray
    extents: Extents
    spans: Spans
    blocks: Blocks | None = None

    @classmethod
    def of(cls, vcz: Vcz, runs: Runs, numbers: np.ndarray, blocks: Blocks | None = None) -> "Sites":
        """`numbers` are those of the store, for each contig of the VCZ."""
        table = np.stack(runs._replace(contig=numbers[runs.contig]), axis=1)
        contig, position, allele = (vcz.arrays[f"variant_{name}"] for name in ("contig", "position", "allele"))
        return cls(contig, position, allele, table, Extents.of(vcz.arrays), Spans.of(vcz.arrays), blocks)

    def contigs_of(self, rows: np.ndarray) -> np.ndarray:
        """The contigs of some rows."""
        return np.asarray(self.runs[np.searchsorted(self.runs[:, 2], rows, "right"), 0])

    def of_contig(self, contig: int) -> np.ndarray:
        """The runs of one contig."""
        return np.asarray(self.runs[self.runs[:, 0] == contig])

    def rows_between(self, contig: int, first: int, last: int) -> tuple[int, int]:
        """The rows of a contig whose positions are from `first` to `last`, both included."""
        return self.row_of(contig, first, "left"), self.row_of(contig, last, "right")

    def row_of(self, contig: int, position: int, side: Literal["left", "right"]) -> int:
        """As `numpy.searchsorted` among the positions of a contig: the row of the store or source."""
        runs = self.of_contig(contig)
        if not len(runs):
            return 0
        # the first run that has something at or beyond
        k = int(np.searchsorted(runs[:, 4], position, side))
        if k == len(runs):
            return int(runs[-1, 2])
        start, stop = int(runs[k, 1]), int(runs[k, 2])
        if position < runs[k, 3] or (side == "left" and position == runs[k, 3]):
            return start
        values = arrays.read(self.position, (slice(start, stop),))
        return start + int(np.searchsorted(values, position, side))

    def alleles(self, start: int, stop: int) -> np.ndarray:
        """The alleles of some rows, as Python's strings."""
        with pipeline.naming(f"{self.allele.path} in {zarr_objects.place(self.allele.store)}"):
            return arrays.read_strings(self.allele, (slice(start, stop), slice(None)))

    def records_at(self, contig: int, positions: np.ndarray) -> Records:
        """
        The variants of a contig that may match some of a store; `positions` are theirs.

        Those of a gVCF are read run by run: at these positions only, since most of its records are blocks.
        """
        c, d = self.rows_between(contig, int(positions[0]), int(positions[-1]))
        if self.blocks is None:
            alleles = self.alleles(c, d)
            return Records(
                np.arange(c, d),
                arrays.read(self.position, (slice(c, d),)).astype("i8"),
                alleles,
                self.extents.look(alleles, slice(c, d)),
                None,
            )
        parts = [Records.none(self.allele.shape[1])]
        for a, b in self._runs_with_variants(c, d):
            begins = arrays.read(self.position, (slice(a, b),)).astype("i8")
            if np.isin(begins, positions).any():
                parts.append(self._variants(slice(a, b), begins, positions))
        return Records(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _variants(self, rows: slice, begins: np.ndarray, positions: np.ndarray | None = None) -> Records:
        """Those of some records of a gVCF that are no blocks, at some positions or at all."""
        alleles = self.alleles(rows.start, rows.stop)
        extents = self.extents.look(alleles, rows)
        unseen = Unseen.of(alleles)
        is_unseen = np.zeros(alleles.shape, dtype=bool) if unseen is None else unseen.is_unseen
        kept = np.ones(len(alleles), dtype=bool) if unseen is None else ~unseen.is_alone
        kept &= True if positions is None else np.isin(begins, positions)
        place = np.where(is_unseen.any(axis=1), is_unseen.argmax(axis=1), -1)
        seen = np.where(is_unseen, "", alleles)
        return Records(rows.start + np.flatnonzero(kept), begins[kept], seen[kept], extents[kept], place[kept])

    def _runs_with_variants(self, start: int, stop: int, known: np.ndarray | None = None) -> Iterator[tuple[int, int]]:
        """The parts of some rows of a gVCF, run by run, that have variants; without runs whose variants are `known`."""
        assert self.blocks is not None
        low = int(np.searchsorted(self.runs[:, 2], start, "right"))
        high = int(np.searchsorted(self.runs[:, 1], stop, "left"))
        begins, ends, n = self.runs[low:high, 1], self.runs[low:high, 2], self.blocks.runs[low:high, 1]
        if known is not None:
            is_whole = (begins >= start) & (ends <= stop)
            n = np.where(is_whole, n - np.searchsorted(known, ends) + np.searchsorted(known, begins), n)
        for i in np.flatnonzero(n > 0).tolist():
            yield max(int(begins[i]), start), min(int(ends[i]), stop)

    def unmatched(self, start: int, stop: int, matched: np.ndarray) -> tuple[int, int | None]:
        """How many variants of a gVCF among some rows are not matched, and the first of them."""
        matched = np.sort(matched)
        n, first = 0, None
        for a, b in self._runs_with_variants(start, stop, matched):
            begins = arrays.read(self.position, (slice(a, b),)).astype("i8")
            left = np.setdiff1d(self._variants(slice(a, b), begins).rows, matched)
            n += len(left)
            first = int(left[0]) if first is None and len(left) else first
        return n, first

    def strangers(self, known: Collection[int]) -> tuple[int, int | None]:
        """How many variants lie on contigs that a store does not have, and the first of them."""
        strange = ~np.isin(self.runs[:, 0], list(known))
        if self.blocks is None:
            runs = self.runs[strange]
            return int((runs[:, 2] - runs[:, 1]).sum()), min(runs[:, 1].tolist(), default=None)
        runs = self.blocks.runs[strange & (self.blocks.runs[:, 1] > 0)]
        return int(runs[:, 1].sum()), min(runs[:, 2].tolist(), default=None)

    def first_block(self, start: int, stop: int) -> int | None:
        """The first of some rows that is a reference block; None if none is."""
        step = arrays.outer_chunks(self.allele)[0]
        edges = sorted({start, *range((start // step + 1) * step, stop, step), max(start, stop)})
        for a, b in pairwise(edges):
            alleles = self.alleles(a, b)
            block = first_block(alleles, Unseen.of(alleles), self.spans, slice(a, b))
            if block is not None:
                return block
        return None


# ---- what belongs together ------------------------------------------------------------------


ABSENT, UNMATCHED = -1, -2
"""In the place of a row: the source has nothing at the position, or something else."""


@dataclass(frozen=True)
class Matches:
    """
    What one source has for some variants of a store.

    Attributes
    ----------
    rows : numpy.ndarray of int64
        The row of the source; `ABSENT`, or `UNMATCHED` where a record of the source has the position, but is no variant
        of the store.
    alleles : numpy.ndarray of int32, variants by alleles of the source
        For each allele of the source the number of it in the store; -1 where there is none.
    n_alleles : numpy.ndarray of int32
        How many alleles the variant has in the source.
    unseen : numpy.ndarray of int32
        Of a gVCF, which allele of the source stands for those that were not seen; -1 if none does. None of others.
    """

    rows: np.ndarray
    alleles: np.ndarray
    n_alleles: np.ndarray
    unseen: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """What it takes to keep them."""
        return self.rows.nbytes + self.alleles.nbytes + self.n_alleles.nbytes

    def cut(self, rows: slice) -> "Matches":
        """Of some of the variants."""
        unseen = None if self.unseen is None else self.unseen[rows]
        return Matches(self.rows[rows], self.alleles[rows], self.n_alleles[rows], unseen)

    @property
    def changed(self) -> np.ndarray:
        """For which variants an allele of the source has another number in the store, or none."""
        return self.reordered if self.unseen is None else self.reordered | (self.unseen >= 0)

    @property
    def reordered(self) -> np.ndarray:
        """For which variants an allele of the source has another number in the store."""
        here = np.arange(self.alleles.shape[1])
        return np.asarray(((self.alleles != here) & (self.alleles >= 0)).any(axis=1))


class Report(NamedTuple):
    """
    What does not come in, of one source and some variants of a store.

    Attributes
    ----------
    matched, unmatched
        Variants that match, and variants of the source that belong here and match nothing.
    first_unmatched
        The first of these; None if there are none.
    block
        The first reference block of a source that is not said to have any.
    """

    matched: int
    unmatched: int = 0
    first_unmatched: int | None = None
    block: int | None = None


@dataclass(frozen=True)
class Unit:
    """
    A range of the store's variants, and what all sources have for them.

    Attributes
    ----------
    start, stop
        The rows of the store.
    alleles : numpy.ndarray of object, variants by alleles
        As they will be: those of the store, and then new ones, source by source. ``""`` where there is none. None if
        none come in, and all are the store's.
    n_before, n_alleles : numpy.ndarray of int32
        How many alleles each variant has, and will have.
    sources
        What each source has.
    reports
        For each source.
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
        """What it takes to keep it, about."""
        alleles = 0 if self.alleles is None else 64 * self.alleles.size
        return alleles + self.n_before.nbytes + self.n_alleles.nbytes + sum(m.nbytes for m in self.sources)


@dataclass(frozen=True, eq=False)
class Index:
    """
    The matches of sources with a store, looked up unit by unit.

    Attributes
    ----------
    token
        Names this index in the memory of a process.
    store, sources
        Their variants.
    n_variants, unit
        The store's variants, and how many make a unit.
    allow_new_alleles
        Whether alleles may come in.
    is_surveyed
        Whether all units have been looked up, so that reports are no longer needed.
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
        """What it takes to look a unit up beside what is counted for its variants."""
        return 0

    def of_source(self, number: int) -> Self:
        """Of one of the sources: if no alleles come in, what it has does not depend on the others."""
        return replace(self, token=f"{self.token}.{number}", sources=(self.sources[number],))

    def units(self, rows: slice) -> Iterator[tuple[Unit, slice]]:
        """The units of a range of rows, and which of their variants lie in it."""
        for number in range(rows.start // self.unit, -(-rows.stop // self.unit)):
            unit = self.look_up(number)
            yield unit, slice(max(rows.start, unit.start) - unit.start, min(rows.stop, unit.stop) - unit.start)

    def look_up(self, number: int) -> Unit:
        """One unit; the latest are remembered."""
        rows = slice(number * self.unit, min(self.n_variants, (number + 1) * self.unit))
        return _latest.get((self.token, number), lambda: self._match(rows.start, rows.stop))

    def _match(self, start: int, stop: int) -> Unit:
        runs = self.store.runs
        mine = np.flatnonzero((runs[:, 1] >= start) & (runs[:, 2] <= stop))
        parts = [self._match_run(int(k)) for k in mine]
        sources = [
            Matches(
                np.concatenate([p.sources[s].rows for p in parts]),
                np.concatenate([p.sources[s].alleles for p in parts]).astype("i4"),
                np.concatenate([p.sources[s].n_alleles for p in parts]).astype("i4"),
                _joined([p.sources[s].unseen for p in parts]),
            )
            for s in range(len(self.sources))
        ]
        n_before, n_alleles = (
            np.concatenate([getattr(p, name) for p in parts]).astype("i4") for name in ("n_before", "n_alleles")
        )
        alleles = [p.alleles for p in parts if p.alleles is not None]
        width = max(a.shape[1] for a in alleles)
        return Unit(
            start,
            stop,
            np.concatenate([widened(a, width) for a in alleles]) if (n_alleles != n_before).any() else None,
            n_before,
            n_alleles,
            tuple(sources),
            tuple(_added([p.reports[s] for p in parts]) for s in range(len(self.sources))),
        )

    def _match_run(self, k: int) -> Unit:
        """One run; variants of its neighbours at the same position take part, and are left out again."""
        contig, start, stop, first, last = (int(x) for x in self.store.runs[k])
        a, b = self.store.rows_between(contig, first, last)
        positions = arrays.read(self.store.position, (slice(a, b),)).astype("i8")
        alleles = self.store.alleles(a, b)
        numbers = Numbers()
        ours = numbers.of(alleles)
        n_before = (ours >= 0).sum(axis=1)
        our_extents = self.store.extents.look(alleles, slice(a, b))
        here = slice(start - a, stop - a)
        found, reports = [], []
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
            alleles, ours, mapped = with_new(alleles, ours, records.alleles, ids, at)
            found.append(_matches(positions, records, ids, at, mapped, here))
            is_matched = np.zeros(len(records.rows), dtype=bool)
            is_matched[at[at >= 0]] = True
            n_matched = int((found[-1].rows >= 0).sum())
            report = Report(n_matched)
            if not self.is_surveyed:
                report = self._report(source, k, records, is_matched, report)
            if source.blocks is None and report.block is None and any(text in numbers for text in UNSEEN):
                report = report._replace(block=records.first_block(source.spans))
            reports.append(report)
        return Unit(
            start,
            stop,
            alleles[here],
            n_before[here],
            (ours >= 0).sum(axis=1)[here],
            tuple(found),
            tuple(reports),
        )

    def _report(self, source: Sites, k: int, records: Records, is_matched: np.ndarray, report: Report) -> Report:
        """
        Count what matches nothing.

        A variant of the source belongs to the last run that begins at or before it, to the first of a contig if none
        does.
        """
        contig, _, _, first, _ = (int(x) for x in self.store.runs[k])
        runs, theirs = self.store.of_contig(contig), source.of_contig(contig)
        if not len(theirs):
            return report
        is_first = self.store.runs[k, 1] == runs[0, 1]
        after = runs[runs[:, 1] > self.store.runs[k, 1]]
        begin = int(theirs[0, 1]) if is_first else source.row_of(contig, first, "left")
        end = source.row_of(contig, int(after[0, 3]), "left") if len(after) else int(theirs[-1, 2])
        if source.blocks is not None:
            n, first_unmatched = source.unmatched(begin, end, records.rows[is_matched])
            return report._replace(unmatched=n, first_unmatched=first_unmatched)
        c = int(records.rows[0]) if len(is_matched) else source.row_of(contig, first, "left")
        inside = ~is_matched[max(0, begin - c) : max(0, end - c)]
        before, beyond = max(0, min(end, c) - begin), max(0, end - max(begin, c + len(is_matched)))
        n_unmatched = before + int(inside.sum()) + beyond
        if not n_unmatched:
            return report
        # the alleles of these were not read by the matching
        blocks = source.first_block(begin, begin + before), source.first_block(end - beyond, end)
        block = next((row for row in blocks if row is not None), None)
        if before:
            return report._replace(unmatched=n_unmatched, first_unmatched=begin, block=block)
        offset = int(np.argmax(inside)) if inside.any() else max(0, c + len(is_matched) - max(begin, c))
        return report._replace(unmatched=n_unmatched, first_unmatched=max(begin, c) + offset, block=block)


def _matches(
    positions: np.ndarray, records: Records, ids: np.ndarray, at: np.ndarray, mapped: np.ndarray, here: slice
) -> Matches:
    """What a source has for some variants, `at` being what `match` has found."""
    rows = np.where(_has_unmatched(positions, records.positions, at), UNMATCHED, ABSENT)
    n_alleles, is_there = np.zeros(len(at), dtype="i8"), at >= 0
    rows[is_there] = records.rows[at[is_there]]
    n_alleles[is_there] = (ids[at[is_there]] >= 0).sum(axis=1)
    if records.unseen is None:
        return Matches(rows[here], mapped[here], n_alleles[here])
    unseen = np.full(len(at), -1, dtype="i4")
    unseen[is_there] = records.unseen[at[is_there]]
    return Matches(rows[here], mapped[here], (n_alleles + (unseen >= 0))[here], unseen[here])


def _has_unmatched(positions: np.ndarray, source_positions: np.ndarray, at: np.ndarray) -> np.ndarray:
    """At which positions of the store's variants a source has a record that is none of them."""
    is_unmatched = np.ones(len(source_positions), dtype=bool)
    is_unmatched[at[at >= 0]] = False
    return np.isin(positions, source_positions[is_unmatched])


class Sized(Protocol):
    """Something of which it is known what it takes to keep it."""

    @property
    def nbytes(self) -> int:
        """In bytes."""


class Latest[T: Sized]:
    """The latest units of a process, as many as `KEPT_BYTES` hold. What several threads want at once is made once."""

    def __init__(self) -> None:
        self._units: OrderedDict[Hashable, T] = OrderedDict()
        self._nbytes = 0
        self._made: dict[Hashable, Future[T]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """A unit that is there, or is made now."""
        with self._lock:
            if key in self._units:
                self._units.move_to_end(key)
                return self._units[key]
            is_ours = key not in self._made
            future = self._made.setdefault(key, Future())
        if not is_ours:
            return future.result()
        try:
            unit = make()
            self._keep(key, unit)
            future.set_result(unit)
        except BaseException as error:
            future.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._made[key]
        return unit

    def _keep(self, key: Hashable, unit: T) -> None:
        with self._lock:
            self._units[key] = unit
            self._nbytes += unit.nbytes
            while self._nbytes > KEPT_BYTES and len(self._units) > 1:
                self._nbytes -= self._units.popitem(last=False)[1].nbytes


_latest: Latest[Unit] = Latest()


def _added(reports: Sequence[Report]) -> Report:
    def first(rows: Iterable[int | None]) -> int | None:
        return min((row for row in rows if row is not None), default=None)

    return Report(
        sum(r.matched for r in reports),
        sum(r.unmatched for r in reports),
        first(r.first_unmatched for r in reports),
        first(r.block for r in reports),
    )


class Numbers(dict[str, int]):
    """A number for each different allele, upper and lower case being equal; -1 where there is none."""

    def __missing__(self, allele: str) -> int:
        upper = allele.upper()
        self[allele] = -1 if allele in NOTHING else len(self) if upper == allele else self[upper]
        return self[allele]

    def of(self, alleles: np.ndarray) -> np.ndarray:
        """Of many."""
        numbers = np.fromiter(map(self.__getitem__, alleles.ravel().tolist()), "i8", alleles.size)
        return told_apart(numbers.reshape(alleles.shape))


REPEATED = 2**32
"""Between the numbers of an allele that a record has several times."""


def told_apart(numbers: np.ndarray) -> np.ndarray:
    """
    The numbers of alleles, in which one that a record repeats has another number each time.

    VCF allows no repeated allele, yet there are files with some, and what belongs to each has to stay with it.

    >>> told_apart(np.array([[0, 1, 2], [0, 1, 1], [3, -1, -1]])).tolist()
    [[0, 1, 2], [0, 1, 4294967297], [3, -1, -1]]
    """
    in_order = np.sort(numbers, axis=1)
    repeats = (np.diff(in_order, axis=1) == 0) & (in_order[:, 1:] >= 0)
    result = numbers
    for row in np.flatnonzero(repeats.any(axis=1)):
        result = numbers.copy() if result is numbers else result
        seen: Counter[int] = Counter()
        for column, number in enumerate(numbers[row].tolist()):
            if number >= 0:
                result[row, column] += seen[number] * REPEATED
                seen[number] += 1
    return result


def _joined(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if known else None


def widened(alleles: np.ndarray, width: int) -> np.ndarray:
    """Alleles with room for more of them."""
    return np.pad(alleles, ((0, 0), (0, width - alleles.shape[1])), constant_values="")


def with_new(
    alleles: np.ndarray, ours: np.ndarray, theirs: np.ndarray, ids: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The alleles of the store with those that a source adds, and the number there of each of the source's."""
    mapped = np.full((len(at), ids.shape[1]), -1, dtype="i8")
    present = np.flatnonzero(at >= 0)
    if not len(present):
        return alleles, ours, mapped
    wanted = ids[at[present]]
    same = wanted[:, :, np.newaxis] == ours[present][:, np.newaxis, :]
    mapped[present] = np.where(wanted < 0, -1, np.where(same.any(axis=2), same.argmax(axis=2), -2))
    for row in present[(mapped[present] == -2).any(axis=1)]:  # few: alleles that were new
        n = int((ours[row] >= 0).sum())
        for column in np.flatnonzero(mapped[row] == -2):
            if n == ours.shape[1]:
                alleles = widened(alleles, n + 1)
                ours = np.pad(ours, ((0, 0), (0, 1)), constant_values=-1)
            alleles[row, n], ours[row, n] = theirs[at[row], column], ids[at[row], column]
            mapped[row, column] = n
            n += 1
    return alleles, ours, mapped
