"""Calls of reference blocks: which block of a gVCF, if any, gives the call of a sample at a variant of a store.

Candidates are the records that begin at or before the position of the variant, reach it, and have a call for the
sample. The last one counts; among records with the same start, variants come after blocks. If it is a block, the call
is that of the block. If it is a variant that begins earlier, such as a deletion, the call is missing: all that is known
of the position is that it is not plain reference.

Records are read slab by slab, a slab being some neighbouring runs of the source. Only slabs that reach a variant are
read, so a block that begins a million records earlier costs no more than any other.
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
"""What covers a position: nothing, a block, a variant that begins before it (or no good call), a variant there."""


class Covering(NamedTuple):
    """
    The blocks that give the calls of some samples at some variants.

    Attributes
    ----------
    rows : numpy.ndarray of int64, variants by samples
        Row of the block in the source; `UNMATCHED` where the call is missing because a variant spans the position, or
        the block has no call or a low GQ; `ABSENT` where no block covers the position.
    used : numpy.ndarray of int64
        The rows of these blocks, sorted.
    n_alleles, unseen : numpy.ndarray of int64
        Number of alleles of each block in `used`, and the index of its unseen allele (``<NON_REF>`` or ``<*>``).
    """

    rows: np.ndarray
    used: np.ndarray
    n_alleles: np.ndarray
    unseen: np.ndarray

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self)


def covering(
    index: Index, number: int, rows: slice, is_matched: np.ndarray, samples: slice | np.ndarray, n_samples: int
) -> Covering:
    """
    Find the blocks that give the calls of `n_samples` samples of a gVCF, the source with this number, at some variants.

    `rows` are the variants' rows of the store; `is_matched` is whether the gVCF has a matching record, for each of
    them. Recent results are cached.
    """
    sample_key = (samples.start, samples.stop) if isinstance(samples, slice) else samples.tobytes()
    key = (index.token, number, rows.start, rows.stop, sample_key)
    return _cache.get(key, lambda: _covering(index, index.sources[number], rows, is_matched, samples, n_samples))


def _covering(
    index: Index, source: Sites, rows: slice, is_matched: np.ndarray, samples: slice | np.ndarray, n_samples: int
) -> Covering:
    assert source.blocks is not None
    block_rows = np.full((rows.stop - rows.start, n_samples), ABSENT, dtype="i8")
    kinds, order = np.zeros(block_rows.shape, dtype="i1"), np.full(block_rows.shape, -1, dtype="i8")
    tables = []
    positions = arrays.read(index.store.position, (rows,)).astype("i8")
    for contig, a, b in _pieces(index.store, rows):
        here = positions[a:b]
        for first, last, low, high in _slabs_that_reach(source, contig, here, source.blocks.slab_rows(n_samples)):
            records = BlockRecords.read(source, source.blocks, slice(first, last), samples)
            last_records = [np.broadcast_to(part, (high - low, n_samples)) for part in records.last_at(here[low:high])]
            theirs, kind, place = last_records
            reached = slice(a + low, a + high)
            new = (kind != _NOTHING) & (place >= order[reached])  # a position may be reached by two slabs
            for target, part in zip((block_rows, kinds, order), last_records, strict=True):
                target[reached][new] = part[new]
            used = np.unique(theirs[new & (kind == _BLOCK)])
            tables.append(np.stack([used, records.n_alleles[used - first], records.unseen[used - first]], axis=1))
    block_rows[kinds == _AT] = ABSENT
    block_rows[kinds == _SPANNED] = UNMATCHED
    # where the source has a matching record and no block gives the call, keep the call of that record
    block_rows[is_matched[:, np.newaxis] & (block_rows == UNMATCHED)] = ABSENT
    table = np.concatenate([np.empty((0, 3), dtype="i8"), *tables])
    return Covering(block_rows, *table[np.argsort(table[:, 0])].T)


def used_blocks(index: Index, number: int, unit: Unit, n_samples: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the blocks that give calls at the variants of a unit, slab by slab: their rows, and numbers of alleles."""
    source = index.sources[number]
    assert source.blocks is not None
    rows, is_matched = slice(unit.start, unit.stop), unit.sources[number].rows >= 0
    width = max(1, SLAB_CALLS // max(1, unit.stop - unit.start))
    for start in range(0, n_samples, width):
        samples = slice(start, min(n_samples, start + width))
        covered = covering(index, number, rows, is_matched, samples, samples.stop - samples.start)
        slabs = covered.used // source.blocks.slab_rows(n_samples)
        for slab in np.unique(slabs).tolist():
            yield covered.used[slabs == slab], covered.n_alleles[slabs == slab]


_cache: UnitCache[Covering] = UnitCache()


def _pieces(store: Sites, rows: slice) -> Iterator[tuple[int, int, int]]:
    """Split a range of rows by contig: yield the contig, and start and stop relative to the range."""
    for contig, start, stop, *_ in store.runs[store.runs_within(rows.start, rows.stop)].tolist():
        yield contig, max(start, rows.start) - rows.start, min(stop, rows.stop) - rows.start


def _slabs_that_reach(
    source: Sites, contig: int, positions: np.ndarray, slab_rows: int
) -> Iterator[tuple[int, int, int, int]]:
    """Yield the slabs that reach some positions: first row and row after the last, start and stop in `positions`."""
    assert source.blocks is not None
    is_here = source.runs[:, 0] == contig
    runs, reach = source.runs[is_here], source.blocks.runs[is_here, 3]
    low = np.searchsorted(positions, runs[:, 3], "left")
    high = np.searchsorted(positions, reach, "right")
    reaching = np.flatnonzero(low < high)
    cuts = np.flatnonzero(np.diff(runs[reaching, 1] // slab_rows)) + 1
    for slab in np.split(reaching, cuts):
        if len(slab):
            yield int(runs[slab[0], 1]), int(runs[slab[-1], 2]), int(low[slab].min()), int(high[slab].max())


@dataclass(frozen=True)
class BlockRecords:
    """
    Records of a gVCF, sorted by start position, blocks before variants.

    Attributes
    ----------
    rows, begins
        Rows in the source, and start positions.
    ends : records by samples, or by 1
        Last position that the record reaches in the sample.
    own_ends
        Last position that the alleles of the record span, if it is a variant.
    is_called, is_good : records by samples, or by 1
        Whether the sample has a call, and whether its GQ is at least `Blocks.min_gq`.
    n_alleles, unseen
        Number of alleles, and index of the unseen allele. These two are not sorted: they are in the source's order.
    is_variant
        Whether the record has an ALT other than the unseen allele.
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
        """Read and sort some rows of the source."""
        records = source.gvcf_records(rows.start, rows.stop)
        is_variant, begins = records.is_variant, records.begins
        own = np.where(records.extents == NONE, records.refs, records.lengths)
        reach = np.where(is_variant, own, records.lengths)[:, np.newaxis]
        by_sample = source.spans.lengths_by_sample(rows, samples)
        if by_sample is not None:
            # samples without LEN fall back to REF and END: variant_length is that of the longest sample
            otherwise = np.where(is_variant, own, np.maximum(records.refs, records.by_end))
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
            n_alleles=records.n_alleles,
            unseen=records.unseen,
            is_variant=is_variant[order],
        )

    def last_at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Find, for each position and sample, the last record that reaches the position and has a call of the sample.

        Returns
        -------
        rows, kinds, places : numpy.ndarray, positions by samples
            Row of the source (`ABSENT` if none), what covers the position, and a sort key of the record (-1 if none).
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
            # `highest` is the furthest end of this record and all before it
            pending = (at >= 0) & (highest[at] >= positions[which])
            which, sample, at = which[pending], sample[pending], at[pending]
            reaches = ends[at, sample] >= positions[which]
            is_found = reaches & is_called[at, sample]
            # where all records that reach the position lack a call, the call is missing, not absent
            kinds[which[reaches & ~is_found], sample[reaches & ~is_found]] = _SPANNED
            i, j, k = which[is_found], sample[is_found], at[is_found]
            is_variant = self.is_variant[k] & (self.own_ends[k] >= positions[i])
            kind = np.where(is_variant, np.where(self.begins[k] == positions[i], _AT, _SPANNED), _BLOCK)
            kinds[i, j] = np.where((kind == _BLOCK) & ~is_good[k, j], _SPANNED, kind)
            rows[i, j], places[i, j] = self.rows[k], 2 * self.begins[k] + self.is_variant[k]
            which, sample, at = which[~is_found], sample[~is_found], at[~is_found] - 1
        return rows, kinds, places
