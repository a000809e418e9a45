"""Calls of reference blocks: which block tells the call of a sample at a variant of a store, if one does.

Of the records of a gVCF that begin at or before a variant's position and reach it, and in which the sample has a call,
the last one counts; of several that begin at one place, what is a variant comes last. If it is a block, the call is
that of the block. If it is a variant that begins before, such as a deletion, nothing is known of the position but that
it is no plain reference: the call is missing.

The records are looked at slab by slab, a slab being some neighbouring runs of the source, and only where one reaches a
variant, so that a block that begins a million records before costs no more than another.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from plans.variants.match_index import ABSENT, UNMATCHED, Index, Unit
from plans.variants.reference_blocks import SLAB_CALLS, Blocks
from plans.variants.sites import Sites
from plans.variants.unit_cache import UnitCache
from vczstore.vcz import arrays
from vczstore.vcz.extents import NONE

_NOTHING, _BLOCK, _SPANNED, _AT = range(4)
"""What covers a position: nothing, a block, a variant that begins before it, a variant that begins there."""


class Covering(NamedTuple):
    """
    The blocks that tell the calls of some samples at some variants.

    Attributes
    ----------
    rows : numpy.ndarray of int64, variants by samples
        The record of the source; `UNMATCHED` where the call is missing because of a variant that spans the position, or
        of a block of low quality; `ABSENT` where no block tells anything.
    used : numpy.ndarray of int64
        The records, in order.
    n_alleles, unseen : numpy.ndarray of int64
        How many alleles each of these has, and which one stands for those that were not seen.
    """

    rows: np.ndarray
    used: np.ndarray
    n_alleles: np.ndarray
    unseen: np.ndarray

    @property
    def nbytes(self) -> int:
        """What it takes to keep it."""
        return sum(array.nbytes for array in self)


def covering(
    index: Index, number: int, rows: slice, is_matched: np.ndarray, samples: slice | np.ndarray, n_samples: int
) -> Covering:
    """
    Find the blocks that tell the calls at some variants; the latest are remembered.

    Parameters
    ----------
    index, number
        The variants of a store, and which of the sources is the gVCF.
    rows
        Which variants of the store.
    is_matched
        Which of these the source has a record of.
    samples, n_samples
        Which samples of the source, and how many they are.
    """
    who = (samples.start, samples.stop) if isinstance(samples, slice) else samples.tobytes()
    key = (index.token, number, rows.start, rows.stop, who)
    return _cache.get(key, lambda: _covering(index, index.sources[number], rows, is_matched, samples, n_samples))


def _covering(
    index: Index, source: Sites, rows: slice, is_matched: np.ndarray, samples: slice | np.ndarray, n_samples: int
) -> Covering:
    assert source.blocks is not None
    found = np.full((rows.stop - rows.start, n_samples), ABSENT, dtype="i8")
    kinds, order = np.zeros(found.shape, dtype="i1"), np.full(found.shape, -1, dtype="i8")
    of_rows = []
    positions = arrays.read(index.store.position, (rows,)).astype("i8")
    for contig, a, b in _pieces(index.store, rows):
        here = positions[a:b]
        for first, last, low, high in _slabs_that_reach(source, contig, here, source.blocks.slab_rows(n_samples)):
            records = BlockRecords.read(source, source.blocks, slice(first, last), samples)
            told = [np.broadcast_to(part, (high - low, n_samples)) for part in records.last_at(here[low:high])]
            theirs, kind, place = told
            these = slice(a + low, a + high)
            new = (kind != _NOTHING) & (place >= order[these])  # a position may be in two slabs
            for known, part in zip((found, kinds, order), told, strict=True):
                known[these][new] = part[new]
            used = np.unique(theirs[new & (kind == _BLOCK)])
            of_rows.append(np.stack([used, records.n_alleles[used - first], records.unseen[used - first]], axis=1))
    found[kinds == _AT] = ABSENT
    found[kinds == _SPANNED] = UNMATCHED
    # what a record says of a sample without a call stays, where no block says more
    found[is_matched[:, np.newaxis] & (found == UNMATCHED)] = ABSENT
    table = np.concatenate([np.empty((0, 3), dtype="i8"), *of_rows])
    return Covering(found, *table[np.argsort(table[:, 0])].T)


def used_blocks(index: Index, number: int, unit: Unit, n_samples: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The blocks that tell calls at the variants of a unit, slab by slab: their rows, and how many alleles each has."""
    source = index.sources[number]
    assert source.blocks is not None
    rows, is_matched = slice(unit.start, unit.stop), unit.sources[number].rows >= 0
    width = max(1, SLAB_CALLS // max(1, unit.stop - unit.start))
    for start in range(0, n_samples, width):
        samples = slice(start, min(n_samples, start + width))
        found = covering(index, number, rows, is_matched, samples, samples.stop - samples.start)
        slabs = found.used // source.blocks.slab_rows(n_samples)
        for slab in np.unique(slabs).tolist():
            yield found.used[slabs == slab], found.n_alleles[slabs == slab]


_cache: UnitCache[Covering] = UnitCache()


def _pieces(store: Sites, rows: slice) -> Iterator[tuple[int, int, int]]:
    """The contigs of some variants, and which of them lie there."""
    first = int(np.searchsorted(store.runs[:, 2], rows.start, "right"))
    last = int(np.searchsorted(store.runs[:, 1], rows.stop, "left"))
    for contig, start, stop, *_ in store.runs[first:last].tolist():
        yield contig, max(start, rows.start) - rows.start, min(stop, rows.stop) - rows.start


def _slabs_that_reach(
    source: Sites, contig: int, positions: np.ndarray, slab_rows: int
) -> Iterator[tuple[int, int, int, int]]:
    """The slabs of a source that reach some positions: the rows of each, and which positions these are."""
    assert source.blocks is not None
    is_here = source.runs[:, 0] == contig
    runs, reach = source.runs[is_here], source.blocks.runs[is_here, 3]
    low = np.searchsorted(positions, runs[:, 3], "left")
    high = np.searchsorted(positions, reach, "right")
    reaching = np.flatnonzero(low < high)
    cuts = np.flatnonzero(np.diff(runs[reaching, 1] // slab_rows)) + 1
    for some in np.split(reaching, cuts):
        if len(some):
            yield int(runs[some[0], 1]), int(runs[some[-1], 2]), int(low[some].min()), int(high[some].max())


@dataclass(frozen=True)
class BlockRecords:
    """
    Records of a gVCF, in order of where they begin, blocks before variants.

    Attributes
    ----------
    rows
        Their rows in the source.
    begins
        Where they begin.
    ends, own_ends : records by samples, or by 1
        The last position that they reach, and that those reach which are variants.
    is_called, is_good : records by samples, or by 1
        Where samples have a call, and one of the quality that is asked for.
    n_alleles, unseen
        How many alleles they have, and which one stands for those that were not seen; in the order of rows.
    is_variant
        Which have another ALT.
    """

    rows: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    own_ends: np.ndarray
    is_called: np.ndarray
    is_good: np.ndarray
    n_alleles: np.ndarray
    unseen: np.ndarray
    is_variant: np.ndarray

    @classmethod
    def read(cls, source: Sites, blocks: Blocks, rows: slice, samples: slice | np.ndarray) -> "BlockRecords":
        """Read some rows of the source."""
        found = source.gvcf_records(rows.start, rows.stop)
        is_variant, begins = found.is_variant, found.begins
        own = np.where(found.extents == NONE, found.refs, found.lengths)
        reach = np.where(is_variant, own, found.lengths)[:, np.newaxis]
        by_sample = source.spans.lengths_by_sample(rows, samples)
        if by_sample is not None:
            # the length of a record is that of its longest sample
            otherwise = np.where(is_variant, own, np.maximum(found.refs, found.by_end))
            reach = np.where(by_sample > 0, by_sample, otherwise[:, np.newaxis])
            reach = np.maximum(reach, np.where(is_variant, own, 1)[:, np.newaxis])
        is_called = blocks.is_called(rows, samples)
        order = np.lexsort((is_variant, begins))
        return cls(
            rows=rows.start + order,
            begins=begins[order],
            ends=(begins[:, np.newaxis] + reach - 1)[order],
            own_ends=(begins + own - 1)[order],
            is_called=is_called[order],
            is_good=blocks.is_good(rows, samples)[order],
            n_alleles=found.n_alleles,
            unseen=found.unseen,
            is_variant=is_variant[order],
        )

    def last_at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Find the last record that reaches each position, and in which each sample has a call.

        Returns
        -------
        rows, kinds, places : numpy.ndarray, positions by samples
            Which row of the source it is, what it is there, and a number that is greater for what comes later.
        """
        n_samples = max(self.ends.shape[1], self.is_called.shape[1], self.is_good.shape[1])
        ends, is_called, is_good = (
            np.broadcast_to(a, (len(a), n_samples)) for a in (self.ends, self.is_called, self.is_good)
        )
        highest = np.maximum.accumulate(self.ends.max(axis=1))
        rows = np.full((len(positions), n_samples), ABSENT, dtype="i8")
        kinds, places = np.zeros(rows.shape, dtype="i1"), np.full(rows.shape, -1, dtype="i8")
        which, sample = (a.ravel() for a in np.indices(rows.shape))
        at = np.searchsorted(self.begins, positions, "right")[which] - 1
        while len(at):
            # nothing before it reaches further than `highest`
            left = (at >= 0) & (highest[at] >= positions[which])
            which, sample, at = which[left], sample[left], at[left]
            reaches = ends[at, sample] >= positions[which]
            is_it = reaches & is_called[at, sample]
            # without a call in any record that reaches it, the call is missing, and not what absent ones are
            kinds[which[reaches & ~is_it], sample[reaches & ~is_it]] = _SPANNED
            i, j, k = which[is_it], sample[is_it], at[is_it]
            is_variant = self.is_variant[k] & (self.own_ends[k] >= positions[i])
            kind = np.where(is_variant, np.where(self.begins[k] == positions[i], _AT, _SPANNED), _BLOCK)
            kinds[i, j] = np.where((kind == _BLOCK) & ~is_good[k, j], _SPANNED, kind)
            rows[i, j], places[i, j] = self.rows[k], 2 * self.begins[k] + self.is_variant[k]
            which, sample, at = which[~is_it], sample[~is_it], at[~is_it] - 1
        return rows, kinds, places
