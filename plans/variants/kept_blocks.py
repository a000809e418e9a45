"""
Reference blocks that a store keeps of its samples: calls at variants that come later are derived from them.

Two arrays of the root have them, which have the ``samples`` dimension as any field of samples has. So samples are
appended, blanked, dropped and copied there as in any such field, and verify-removal scans them:

``sample_reference_blocks`` (samples, blocks, `FIELDS`)
    The records of each sample's gVCF, variants too, in the order of its rows; -2 beyond them.
``sample_reference_blocks_runs`` (samples, runs, `RUN_FIELDS`)
    Which of these lie where: neighbours of one contig. A contig is told by a digest of its name, since that of a block
    need not be in the store yet.

A sample without rows is one of which nothing is known.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from zarr.types import AnyArray

from plans.variants.unit_cache import KEPT_BYTES, UnitCache
from vczstore.vcz import arrays
from vczstore.vcz.missing import INT_FILL, INT_MISSING, masked_by
from vczstore.vcz.model import Vcz

BLOCKS = "sample_reference_blocks"
RUNS = "sample_reference_blocks_runs"

FIELDS = ("start", "end", "variant_end", "genotype", "GQ", "DP")
"""
What there is of a record: the first and the last position that it reaches in the sample, the last that its own alleles
reach if it is a variant, the genotype as `encode_genotypes` has it, GQ and DP.
"""
START, STOP, VARIANT_STOP, GENOTYPE, QUALITY, DEPTH = range(len(FIELDS))

RUN_FIELDS = ("first_row", "after_last_row", "contig", "start", "end")
"""What there is of a run: its rows, its contig, where its first record begins, and the last position it reaches."""
FIRST_ROW, AFTER_ROW, CONTIG, RUN_START, RUN_STOP = range(len(RUN_FIELDS))

FIELD_OF = {"call_genotype": GENOTYPE, "call_genotype_phased": GENOTYPE, "call_GQ": QUALITY, "call_DP": DEPTH}
"""The arrays of calls that blocks tell."""


def field_of(name: str) -> int | None:
    """The field that tells the values of an array of calls, or a mask of it; None if none does."""
    return FIELD_OF.get(masked_by(name))


_OF_CALLS = slice(GENOTYPE, len(FIELDS))
"""The fields that tell them."""

_KNOWN_BYTES = 150
"""What it takes to look up one sample at one position, at most: three copies of `Known`, and indices."""

NOTHING, BLOCK, SPANNED, _AT = range(4)
"""What is known of a sample at a position: nothing, a block, a call that is missing, or a variant there."""


def contig_number(name: str) -> int:
    """
    The number that stands for a contig, independent of contig tables.

    >>> contig_number("chr1") == contig_number("chr2"), contig_number("chr1") >= 0
    (False, True)
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


# ---- genotypes ------------------------------------------------------------------------------


MAX_KEPT_PLOIDY = 14
"""So many alleles a genotype has at most, of two bits each."""
_ALLELES = np.array([INT_FILL, INT_MISSING, 0, INT_MISSING], dtype="i1")
"""What an allele is in a block, by its two bits: none, missing, the reference, or another, of which it says nothing."""
_CALLED = 0x0AAAAAAA
_PHASED, _LOW, _LEFT_OUT = 1 << 28, 1 << 29, 1 << 30
"""Of a genotype that is phased, of one whose GQ was lower than asked for, and of a source that had other variants."""


def encode_genotypes(calls: np.ndarray, is_phased: np.ndarray, is_good: np.ndarray, *, are_all_in: bool) -> np.ndarray:
    """
    Genotypes as a number each.

    Parameters
    ----------
    calls : numpy.ndarray of int, calls by alleles
        The genotypes.
    is_phased, is_good : numpy.ndarray of bool
        Which are phased, and which have the quality that is asked for.
    are_all_in
        Whether all variants of the source are in the store.

    Examples
    --------
    >>> no, yes = np.zeros(3, dtype=bool), np.ones(3, dtype=bool)
    >>> encode_genotypes(np.array([[0, 0], [0, -2], [-1, 1]]), no, yes, are_all_in=True).tolist()
    [10, 2, 13]
    """
    bits = np.clip(calls, INT_FILL, 1).astype("i4") - INT_FILL  # the place in `_ALLELES`
    codes = np.full(calls.shape[:-1], 0 if are_all_in else _LEFT_OUT, dtype="i4")
    for i in range(calls.shape[-1]):
        codes |= bits[..., i] << 2 * i
    codes[is_phased] |= _PHASED
    codes[~is_good] |= _LOW
    return codes


def mark_left_out(records: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """
    Records of a source that had other variants than the store.

    Parameters
    ----------
    records : numpy.ndarray of int, samples by records by fields
        What the source keeps; `INT_FILL` where there is no record.
    fields : numpy.ndarray of int
        Which of `FIELDS` these are.
    """
    codes = records[..., fields == GENOTYPE]
    marked = records.copy()
    marked[..., fields == GENOTYPE] = np.where(codes >= 0, codes | _LEFT_OUT, codes)
    return marked


def decode_genotypes(codes: np.ndarray, ploidy: int) -> np.ndarray:
    """
    What genotypes are in a block: an allele that is not the reference is missing.

    >>> decode_genotypes(np.array([10, 2, 13]), 2).tolist()
    [[0, 0], [0, -2], [-1, -1]]
    """
    return np.asarray(_ALLELES[(codes[..., np.newaxis] >> 2 * np.arange(min(ploidy, MAX_KEPT_PLOIDY))) & 3])


def is_phased(codes: np.ndarray) -> np.ndarray:
    """Which genotypes are phased."""
    return np.asarray(codes & _PHASED != 0)


# ---- what is known of samples ---------------------------------------------------------------


class Known(NamedTuple):
    """
    What blocks tell of some samples at some positions.

    Attributes
    ----------
    kinds : numpy.ndarray of int8, positions by samples
        `NOTHING`, `BLOCK`, `SPANNED` or `_AT`.
    values : numpy.ndarray of int32, positions by samples by fields
        Of the block, where there is one: genotype, GQ and DP.
    places : numpy.ndarray of int64, positions by samples
        A number that is greater for the record that begins later; -1 if no record tells the call.
    """

    kinds: np.ndarray
    values: np.ndarray
    places: np.ndarray

    @classmethod
    def nothing(cls, n_positions: int, n_samples: int) -> "Known":
        """Nothing of any."""
        shape = n_positions, n_samples
        n_fields = len(FIELDS[_OF_CALLS])
        return cls(
            np.full(shape, NOTHING, "i1"), np.full((*shape, n_fields), INT_MISSING, "i4"), np.full(shape, -1, "i8")
        )

    @property
    def nbytes(self) -> int:
        """What it takes to keep it."""
        return sum(array.nbytes for array in self)

    def of_blocks(self, field: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The variants and samples whose calls are those of blocks, and one of the fields there."""
        variants, samples = np.nonzero(self.kinds == BLOCK)
        return variants, samples, self.values[variants, samples, field - _OF_CALLS.start]

    def put(self, positions: slice, later: "Known") -> None:
        """Let records that come later tell what they reach."""
        new = (later.kinds != NOTHING) & (later.places >= self.places[positions])
        for mine, theirs in zip(self, later, strict=True):
            mine[positions][new] = theirs[new]


@dataclass(frozen=True)
class KeptBlocks:
    """
    The blocks that a VCZ keeps.

    Attributes
    ----------
    blocks, runs
        The arrays.
    token
        Names them in the memory of a process.
    contigs : numpy.ndarray of int64
        For each contig, as variants are numbered, its `contig_number`.
    min_gq
        Calls of blocks with a lower GQ are missing; None if all count.
    """

    blocks: AnyArray
    runs: AnyArray
    token: str
    contigs: np.ndarray
    min_gq: int | None

    @classmethod
    def of(cls, vcz: Vcz, token: str, contigs: Sequence[str], min_gq: int | None) -> "KeptBlocks | None":
        """Those of a VCZ; None if it keeps none. `contigs` are those that the variants are on."""
        if BLOCKS not in vcz.arrays or RUNS not in vcz.arrays:
            return None
        numbers = np.array([contig_number(name) for name in contigs], dtype="i8")
        return cls(vcz.arrays[BLOCKS], vcz.arrays[RUNS], token, numbers, min_gq)

    def look(self, contigs: np.ndarray, positions: np.ndarray, samples: np.ndarray) -> Known:
        """
        What is known of some samples at some variants; the latest are remembered, since each field asks for the same.

        Parameters
        ----------
        contigs, positions : numpy.ndarray of int64
            Where the variants are; sorted within contigs.
        samples : numpy.ndarray of int64
            The positions of the samples in the VCZ.
        """
        key = (self.token, contigs.tobytes(), positions.tobytes(), samples.tobytes())
        return _cache.get(key, lambda: self._find(contigs, positions, samples))

    def _find(self, contigs: np.ndarray, positions: np.ndarray, samples: np.ndarray) -> Known:
        result = Known.nothing(len(positions), len(samples))
        columns = arrays.cuts(self.blocks)[0].of(samples)
        for contig in np.unique(contigs).tolist():
            at = np.flatnonzero(contigs == contig)
            for column in np.unique(columns).tolist():
                who = np.flatnonzero(columns == column)
                found = self._look(self.contigs[contig], positions[at], samples[who])
                for mine, theirs in zip(result, found, strict=True):
                    mine[np.ix_(at, who)] = theirs
        result.kinds[result.kinds == _AT] = NOTHING  # whose record is another variant of the store
        return result._replace(places=result.places[:0])  # which are not needed any more

    def _look(self, contig: int, positions: np.ndarray, samples: np.ndarray) -> Known:
        """The same on one contig, of samples of one chunk column: one row of chunks after the other."""
        result = Known.nothing(len(positions), len(samples))
        first = int(samples.min())
        within = slice(first, int(samples.max()) + 1)
        runs = arrays.read(self.runs, (within, slice(0, self.runs.shape[1]), slice(0, len(RUN_FIELDS))))
        runs = runs[samples - first]
        low = np.searchsorted(positions, runs[..., RUN_START], "left")
        high = np.searchsorted(positions, runs[..., RUN_STOP], "right")
        is_due = (runs[..., CONTIG] == contig) & (low < high)
        starts, stops = runs[..., FIRST_ROW], runs[..., AFTER_ROW]
        for rows in self._windows(starts[is_due], stops[is_due]):
            here = is_due & (starts < rows.stop) & (stops > rows.start)
            is_mine = rows_of_runs(here, starts - rows.start, stops - rows.start, rows.stop - rows.start)
            reached = slice(int(low[here].min()), int(high[here].max()))
            records = self._read(within, samples - first, rows, is_mine, positions[reached])
            if len(records.keys):
                result.put(reached, records.last_at(positions[reached], len(samples), self.min_gq))
        return result

    def _windows(self, starts: np.ndarray, stops: np.ndarray) -> Iterator[slice]:
        """The rows of chunks that have some rows."""
        height = arrays.outer_chunks(self.blocks)[1]
        n = self.blocks.shape[1]
        changes = np.zeros(math.ceil(n / height) + 1, dtype="i8")
        np.add.at(changes, starts // height, 1)
        np.add.at(changes, (stops - 1) // height + 1, -1)
        for i in np.flatnonzero(np.cumsum(changes) > 0).tolist():
            yield slice(i * height, min((i + 1) * height, n))

    def _read(
        self, within: slice, samples: np.ndarray, rows: slice, is_mine: np.ndarray, positions: np.ndarray
    ) -> "_KeptRecords":
        """The records that are marked, samples by rows, of some of the samples in a range, and reach a position."""

        def plane(number: int) -> np.ndarray:
            values = arrays.read(self.blocks, (within, rows, slice(number, number + 1)))[..., 0]
            return values if len(values) == len(samples) else values[samples]

        starts, ends = plane(START), plane(STOP)
        following = np.append(positions, np.iinfo("i8").max)[np.searchsorted(positions, starts)]
        sample, row = np.nonzero(is_mine & (following <= ends))
        others = (plane(number)[sample, row] for number in range(VARIANT_STOP, len(FIELDS)))
        return _KeptRecords.of(sample, starts[sample, row], ends[sample, row], *others)

    def reading_mem(self, n_variants: int, n_samples: int) -> int:
        """What it takes to look some samples up: chunks, the records that they hold, and what is known of them."""
        width, height, _ = arrays.outer_chunks(self.blocks)
        width = min(width, n_samples)
        runs = arrays.decode_mem(self.runs, math.ceil(self.runs.shape[1] / arrays.outer_chunks(self.runs)[1]))
        tables = 12 * 8 * width * self.runs.shape[1]
        known = _KNOWN_BYTES * n_samples * n_variants
        known += KEPT_BYTES
        return arrays.decode_mem(self.blocks, len(FIELDS)) + 20 * 8 * width * height + runs + tables + known


def rows_of_runs(here: np.ndarray, starts: np.ndarray, stops: np.ndarray, n_rows: int) -> np.ndarray:
    """
    Samples by rows: which lie in the runs that count, samples by runs.

    >>> rows_of_runs(np.array([[True, False]]), np.array([[1, 3]]), np.array([[3, 4]]), 4).astype(int).tolist()
    [[0, 1, 1, 0]]
    """
    changes = np.zeros((len(here), n_rows + 1), dtype="i4")
    sample, _ = np.nonzero(here)
    np.add.at(changes, (sample, np.clip(starts[here], 0, n_rows)), 1)
    np.add.at(changes, (sample, np.clip(stops[here], 0, n_rows)), -1)
    return np.asarray(np.cumsum(changes, axis=1)[:, :-1] > 0)


_BITS = 33
"""So many of a key are left to a position, and to whether a record is a variant."""


class _KeptRecords(NamedTuple):
    """
    Records of some samples on one contig, one sample after the other, in order of where they begin.

    Attributes
    ----------
    keys : numpy.ndarray of int64
        The sample, where the record begins, and whether it is a variant: of records that begin together these count.
    highest : numpy.ndarray of int64
        The sample, and the last position that any record of it up to this one reaches.
    ends, variant_ends, codes, quality, depth : numpy.ndarray of int32
        As `FIELDS` have them.
    """

    keys: np.ndarray
    highest: np.ndarray
    ends: np.ndarray
    variant_ends: np.ndarray
    codes: np.ndarray
    quality: np.ndarray
    depth: np.ndarray

    @classmethod
    def of(cls, sample: np.ndarray, starts: np.ndarray, *others: np.ndarray) -> "_KeptRecords":
        """Put them in order, where they are not: some begin together. `others` are the other fields."""
        ends, variant_ends, *_ = others
        base = sample << _BITS
        keys = base + (starts.astype("i8") << 1) + (variant_ends >= starts)
        reached = base + ends
        if (keys[1:] < keys[:-1]).any():
            order = np.argsort(keys, kind="stable")
            keys, reached, others = keys[order], reached[order], tuple(column[order] for column in others)
        return cls(keys, np.maximum.accumulate(reached), *others)

    def last_at(self, positions: np.ndarray, n_samples: int, min_gq: int | None) -> Known:
        """The last record of each sample that reaches each position, and in which it has a call."""
        found = Known.nothing(len(positions), n_samples)
        which, sample = (a.ravel() for a in np.indices(found.kinds.shape))
        base = sample << _BITS
        at = np.searchsorted(self.keys, base + 2 * positions[which] + 1, "right") - 1
        while len(at):
            # nothing of the sample before it reaches further than `highest`
            left = (at >= 0) & (self.highest[at] >= base + positions[which])
            which, sample, base, at = which[left], sample[left], base[left], at[left]
            reaches = self.ends[at] >= positions[which]
            is_it = reaches & (self.codes[at] & _CALLED != 0)
            found.kinds[which[reaches & ~is_it], sample[reaches & ~is_it]] = SPANNED
            i, j, k = which[is_it], sample[is_it], at[is_it]
            places = self.keys[k] - base[is_it]
            found.kinds[i, j] = self._kinds(k, places >> 1, positions[i], min_gq)
            found.values[i, j] = np.stack([self.codes[k], self.quality[k], self.depth[k]], axis=1)
            found.places[i, j] = places
            which, sample, base, at = which[~is_it], sample[~is_it], base[~is_it], at[~is_it] - 1
        return found

    def _kinds(self, k: np.ndarray, starts: np.ndarray, positions: np.ndarray, min_gq: int | None) -> np.ndarray:
        """What some records are at a position each, `starts` being where they begin."""
        is_good = self.codes[k] & _LOW == 0
        if min_gq is not None:
            is_good &= self.quality[k] >= min_gq
        is_variant = self.variant_ends[k] >= positions
        is_at = is_variant & (starts == positions) & (self.codes[k] & _LEFT_OUT == 0)
        return np.where(is_good & ~is_variant, BLOCK, np.where(is_at, _AT, SPANNED))


_cache: UnitCache[Known] = UnitCache()
