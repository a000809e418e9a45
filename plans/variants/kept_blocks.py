"""
Reference blocks that a store keeps for its samples: calls at variants that are added later are derived from them.

They are in two root arrays with the ``samples`` dimension. So they are appended, blanked, dropped and copied like any
other field of samples, and verify-removal scans them:

``sample_reference_blocks`` (samples, blocks, `FIELDS`)
    The records of each sample's gVCF, including variants, in the order of its rows; padded with -2.
``sample_reference_blocks_runs`` (samples, runs, `RUN_FIELDS`)
    Runs of these records: neighbours on one contig. The contig is identified by a hash of its name, since the contig of
    a block need not be in the store yet.

A sample without records gets no calls from them.
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
from vczstore.vcz.missing import INT_FILL, INT_MISSING, fill_value, mask_of, masked_by, missing_value
from vczstore.vcz.model import Vcz

BLOCKS = "sample_reference_blocks"
RUNS = "sample_reference_blocks_runs"

FIELDS = ("start", "end", "variant_end", "genotype", "GQ", "DP")
"""
Fields of a record: the first and the last position that it reaches in the sample, the last position of its own alleles
(-1 if it is a block), the genotype as returned by `encode_genotypes`, GQ and DP.
"""
START, STOP, VARIANT_STOP, GENOTYPE, QUALITY, DEPTH = range(len(FIELDS))

RUN_FIELDS = ("first_row", "after_last_row", "contig", "start", "end")
"""Fields of a run: its rows, its contig, the position of its first record, and the last position it reaches."""
FIRST_ROW, AFTER_ROW, CONTIG, RUN_START, RUN_STOP = range(len(RUN_FIELDS))

FIELD_OF = {"call_genotype": GENOTYPE, "call_genotype_phased": GENOTYPE, "call_GQ": QUALITY, "call_DP": DEPTH}
"""The arrays of calls that are derived from blocks, with the field of `FIELDS` that has their values."""


def field_of(name: str) -> int | None:
    """Return the field of blocks for an array of calls, or for a mask of it; None if there is none."""
    return FIELD_OF.get(masked_by(name))


_OF_CALLS = slice(GENOTYPE, len(FIELDS))
"""The fields that calls are derived from."""

_LOOKUP_BYTES = 150
"""Most memory for looking up one sample at one position: three copies of `KeptCoverage`, and indices."""

NOTHING, BLOCK, SPANNED, _AT = range(4)
"""What covers a position in a sample: nothing, a block, a record that makes the call missing, or a variant there."""


def contig_number(name: str) -> int:
    """
    Return a hash that identifies a contig independently of contig tables.

    >>> contig_number("chr1") == contig_number("chr2"), contig_number("chr1") >= 0
    (False, True)
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


# ---- genotypes ------------------------------------------------------------------------------


MAX_KEPT_PLOIDY = 14
"""Most alleles that fit into a genotype's code, at two bits each."""
_ALLELES = np.array([INT_FILL, INT_MISSING, 0, INT_MISSING], dtype="i1")
"""Decoded alleles by their two bits: fill, missing, reference, and any other allele, which is decoded as missing."""
_CALLED = 0x0AAAAAAA
_PHASED, _LOW, _LEFT_OUT = 1 << 28, 1 << 29, 1 << 30
"""Flags of a genotype: phased, GQ below the limit, and from a source that has variants which the store left out."""


def encode_genotypes(calls: np.ndarray, is_phased: np.ndarray, is_good: np.ndarray, *, are_all_in: bool) -> np.ndarray:
    """
    Encode each genotype, calls by alleles, as an int32.

    It has flags for whether the call is phased, whether its GQ is high enough (`is_good`), and whether all variants of
    the source are in the store (`are_all_in`).

    >>> no, yes = np.zeros(3, dtype=bool), np.ones(3, dtype=bool)
    >>> encode_genotypes(np.array([[0, 0], [0, -2], [-1, 1]]), no, yes, are_all_in=True).tolist()
    [10, 2, 13]
    """
    bits = np.clip(calls, INT_FILL, 1).astype("i4") - INT_FILL  # index in `_ALLELES`
    codes = np.full(calls.shape[:-1], 0 if are_all_in else _LEFT_OUT, dtype="i4")
    for i in range(calls.shape[-1]):
        codes |= bits[..., i] << 2 * i
    codes[is_phased] |= _PHASED
    codes[~is_good] |= _LOW
    return codes


def mark_left_out(records: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """
    Flag records, samples by records by fields, as from a source with variants that the store left out.

    They are padded with `INT_FILL`; `fields` are the indices in `FIELDS` of their last axis.
    """
    codes = records[..., fields == GENOTYPE]
    marked = records.copy()
    marked[..., fields == GENOTYPE] = np.where(codes >= 0, codes | _LEFT_OUT, codes)
    return marked


def decode_genotypes(codes: np.ndarray, ploidy: int) -> np.ndarray:
    """
    Decode genotypes as calls of a block, in which alleles other than the reference are missing.

    >>> decode_genotypes(np.array([10, 2, 13]), 2).tolist()
    [[0, 0], [0, -2], [-1, -1]]
    """
    return np.asarray(_ALLELES[(codes[..., np.newaxis] >> 2 * np.arange(min(ploidy, MAX_KEPT_PLOIDY))) & 3])


def is_phased(codes: np.ndarray) -> np.ndarray:
    """Whether each encoded genotype is phased."""
    return np.asarray(codes & _PHASED != 0)


# ---- coverage of positions ------------------------------------------------------------------


class KeptCoverage(NamedTuple):
    """
    The kept records that determine the calls of some samples at some positions.

    Attributes
    ----------
    kinds : numpy.ndarray of int8, positions by samples
        `NOTHING`, `BLOCK`, `SPANNED` or `_AT`.
    values : numpy.ndarray of int32, positions by samples by fields
        Genotype, GQ and DP of the record, if there is one.
    places : numpy.ndarray of int64, positions by samples
        Sort key of the record, which increases with its start; -1 if there is none. `KeptBlocks.look` drops them.
    """

    kinds: np.ndarray
    values: np.ndarray
    places: np.ndarray

    @classmethod
    def nothing(cls, n_positions: int, n_samples: int) -> "KeptCoverage":
        """Return the coverage of positions that no record reaches."""
        shape = n_positions, n_samples
        n_fields = len(FIELDS[_OF_CALLS])
        return cls(
            np.full(shape, NOTHING, "i1"), np.full((*shape, n_fields), INT_MISSING, "i4"), np.full(shape, -1, "i8")
        )

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self)

    def of_blocks(self, field: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the indices of positions and samples that are covered by blocks, and the values of a field there."""
        variants, samples = np.nonzero(self.kinds == BLOCK)
        return variants, samples, self.values[variants, samples, field - _OF_CALLS.start]

    def put(self, positions: slice, later: "KeptCoverage") -> None:
        """Replace the coverage of some positions in place where `later` has a record that sorts no earlier."""
        new = (later.kinds != NOTHING) & (later.places >= self.places[positions])
        for mine, theirs in zip(self, later, strict=True):
            mine[positions][new] = theirs[new]


@dataclass(frozen=True)
class KeptBlocks:
    """
    The reference blocks that a VCZ keeps.

    Attributes
    ----------
    blocks, runs
        The arrays `BLOCKS` and `RUNS`.
    token
        Cache key within a process.
    contigs : numpy.ndarray of int64
        The `contig_number` of each contig, in the numbering of the variants.
    min_gq
        Calls of blocks with a lower GQ are missing; None if there is no limit.
    """

    blocks: AnyArray
    runs: AnyArray
    token: str
    contigs: np.ndarray
    min_gq: int | None

    @classmethod
    def of(cls, vcz: Vcz, token: str, contigs: Sequence[str], min_gq: int | None) -> "KeptBlocks | None":
        """Return the blocks of a VCZ, None if it keeps none; `contigs` are the names that number variants' contigs."""
        if BLOCKS not in vcz.arrays or RUNS not in vcz.arrays:
            return None
        numbers = np.array([contig_number(name) for name in contigs], dtype="i8")
        return cls(vcz.arrays[BLOCKS], vcz.arrays[RUNS], token, numbers, min_gq)

    def look(self, contigs: np.ndarray, positions: np.ndarray, samples: np.ndarray) -> KeptCoverage:
        """
        Return the coverage of some variants, sorted within contigs, and samples, given by their indices in the VCZ.

        Recent results are cached, since each field needs the same.
        """
        key = (self.token, contigs.tobytes(), positions.tobytes(), samples.tobytes())
        return _cache.get(key, lambda: self._find(contigs, positions, samples))

    def _find(self, contigs: np.ndarray, positions: np.ndarray, samples: np.ndarray) -> KeptCoverage:
        result = KeptCoverage.nothing(len(positions), len(samples))
        columns = arrays.cuts(self.blocks)[0].of(samples)
        for contig in np.unique(contigs).tolist():
            on_contig = np.flatnonzero(contigs == contig)
            for column in np.unique(columns).tolist():
                in_column = np.flatnonzero(columns == column)
                part = self._look(self.contigs[contig], positions[on_contig], samples[in_column])
                for whole, values in zip(result, part, strict=True):
                    whole[np.ix_(on_contig, in_column)] = values
        result.kinds[result.kinds == _AT] = NOTHING  # the record is another variant of the store
        return result._replace(places=result.places[:0])  # no longer needed

    def _look(self, contig: int, positions: np.ndarray, samples: np.ndarray) -> KeptCoverage:
        """Return the coverage on one contig, of samples of one chunk column; chunks are read one after the other."""
        result = KeptCoverage.nothing(len(positions), len(samples))
        first = int(samples.min())
        within = slice(first, int(samples.max()) + 1)
        runs = arrays.read(self.runs, (within, slice(0, self.runs.shape[1]), slice(0, len(RUN_FIELDS))))
        runs = runs[samples - first]
        low = np.searchsorted(positions, runs[..., RUN_START], "left")
        high = np.searchsorted(positions, runs[..., RUN_STOP], "right")
        reaches = (runs[..., CONTIG] == contig) & (low < high)
        starts, stops = runs[..., FIRST_ROW], runs[..., AFTER_ROW]
        for rows in self._windows(starts[reaches], stops[reaches]):
            here = reaches & (starts < rows.stop) & (stops > rows.start)
            is_mine = rows_of_runs(here, starts - rows.start, stops - rows.start, rows.stop - rows.start)
            reached = slice(int(low[here].min()), int(high[here].max()))
            records = self._read(within, samples - first, rows, is_mine, positions[reached])
            if len(records.keys):
                result.put(reached, records.last_at(positions[reached], len(samples), self.min_gq))
        return result

    def _windows(self, starts: np.ndarray, stops: np.ndarray) -> Iterator[slice]:
        """Yield the row ranges of the chunks that contain rows of some runs."""
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
        """Read the records of `is_mine` (samples by rows) that reach a position; `samples` are indices in `within`."""

        def plane(number: int) -> np.ndarray:
            values = arrays.read(self.blocks, (within, rows, slice(number, number + 1)))[..., 0]
            return values if len(values) == len(samples) else values[samples]

        starts, ends = plane(START), plane(STOP)
        following = np.append(positions, np.iinfo("i8").max)[np.searchsorted(positions, starts)]
        sample, row = np.nonzero(is_mine & (following <= ends))
        others = (plane(number)[sample, row] for number in range(VARIANT_STOP, len(FIELDS)))
        return _KeptRecords.of(sample, starts[sample, row], ends[sample, row], *others)

    def reading_mem(self, n_variants: int, n_samples: int) -> int:
        """Memory for looking up some samples, in bytes: chunks, the records in them, and the coverage."""
        width, height, _ = arrays.outer_chunks(self.blocks)
        width = min(width, n_samples)
        runs = arrays.decode_mem(self.runs, math.ceil(self.runs.shape[1] / arrays.outer_chunks(self.runs)[1]))
        tables = 12 * 8 * width * self.runs.shape[1]
        coverage = _LOOKUP_BYTES * n_samples * n_variants
        coverage += KEPT_BYTES
        return arrays.decode_mem(self.blocks, len(FIELDS)) + 20 * 8 * width * height + runs + tables + coverage


def rows_of_runs(here: np.ndarray, starts: np.ndarray, stops: np.ndarray, n_rows: int) -> np.ndarray:
    """
    Return which rows lie in runs, samples by rows; `here` selects the runs, samples by runs.

    >>> rows_of_runs(np.array([[True, False]]), np.array([[1, 3]]), np.array([[3, 4]]), 4).astype(int).tolist()
    [[0, 1, 1, 0]]
    """
    changes = np.zeros((len(here), n_rows + 1), dtype="i4")
    sample, _ = np.nonzero(here)
    np.add.at(changes, (sample, np.clip(starts[here], 0, n_rows)), 1)
    np.add.at(changes, (sample, np.clip(stops[here], 0, n_rows)), -1)
    return np.asarray(np.cumsum(changes, axis=1)[:, :-1] > 0)


_BITS = 33
"""Number of low bits of a key, for the position, and for whether the record is a variant."""


class _KeptRecords(NamedTuple):
    """
    Records of some samples on one contig, sorted by sample and start, variants after blocks.

    Attributes
    ----------
    keys : numpy.ndarray of int64
        Sort key: the sample, the start of the record, and whether it is a variant.
    highest : numpy.ndarray of int64
        The sample, and the last position that any of its records up to this one reaches.
    ends, variant_ends, codes, quality, depth : numpy.ndarray of int32
        The other fields of `FIELDS`.
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
        """Sort records if needed, since some have the same start; `others` are the fields after ``start``."""
        ends, variant_ends, *_ = others
        base = sample << _BITS
        keys = base + (starts.astype("i8") << 1) + (variant_ends >= starts)
        reached = base + ends
        if (keys[1:] < keys[:-1]).any():
            order = np.argsort(keys, kind="stable")
            keys, reached, others = keys[order], reached[order], tuple(column[order] for column in others)
        return cls(keys, np.maximum.accumulate(reached), *others)

    def last_at(self, positions: np.ndarray, n_samples: int, min_gq: int | None) -> KeptCoverage:
        """Find, for each position and sample, the last record that reaches the position and has a call."""
        coverage = KeptCoverage.nothing(len(positions), n_samples)
        which, sample = (a.ravel() for a in np.indices(coverage.kinds.shape))
        base = sample << _BITS
        at = np.searchsorted(self.keys, base + 2 * positions[which] + 1, "right") - 1
        while len(at):
            # `highest` is the furthest end of this record and all before it
            pending = (at >= 0) & (self.highest[at] >= base + positions[which])
            which, sample, base, at = which[pending], sample[pending], base[pending], at[pending]
            reaches = self.ends[at] >= positions[which]
            is_found = reaches & (self.codes[at] & _CALLED != 0)
            coverage.kinds[which[reaches & ~is_found], sample[reaches & ~is_found]] = SPANNED
            i, j, k = which[is_found], sample[is_found], at[is_found]
            places = self.keys[k] - base[is_found]
            coverage.kinds[i, j] = self._kinds(k, places >> 1, positions[i], min_gq)
            coverage.values[i, j] = np.stack([self.codes[k], self.quality[k], self.depth[k]], axis=1)
            coverage.places[i, j] = places
            which, sample, base, at = which[~is_found], sample[~is_found], base[~is_found], at[~is_found] - 1
        return coverage

    def _kinds(self, k: np.ndarray, starts: np.ndarray, positions: np.ndarray, min_gq: int | None) -> np.ndarray:
        """Return how each of some records, which begin at `starts`, covers a position."""
        is_good = self.codes[k] & _LOW == 0
        if min_gq is not None:
            is_good &= self.quality[k] >= min_gq
        is_variant = self.variant_ends[k] >= positions
        is_at = is_variant & (starts == positions) & (self.codes[k] & _LEFT_OUT == 0)
        return np.where(is_good & ~is_variant, BLOCK, np.where(is_at, _AT, SPANNED))


_cache: UnitCache[KeptCoverage] = UnitCache()


# ---- calls of one array ---------------------------------------------------------------------


LOOKED_UP = 2**17
"""Maximum number of calls that are looked up in blocks together, except that one variant is the minimum."""


@dataclass(frozen=True)
class KeptCalls:
    """
    Calls of one array that are derived from the `field` of kept blocks of a VCZ.

    The array is planned, with the samples of the VCZ.
    """

    blocks: KeptBlocks
    name: str
    like: AnyArray
    field: int

    @classmethod
    def of(cls, blocks: KeptBlocks | None, name: str, like: AnyArray) -> "KeptCalls | None":
        """Return the calls of an array; None if there are no blocks, or they have no such field."""
        field = field_of(name)
        return None if blocks is None or field is None else cls(blocks, name, like, field)

    def put(
        self,
        values: np.ndarray,
        missing: np.ndarray,
        rows: np.ndarray,
        contigs: np.ndarray,
        positions: np.ndarray,
        samples: np.ndarray,
    ) -> None:
        """
        Fill in the calls of blocks, and missing calls where other records span a variant.

        `values` are the calls so far, variants by samples by the axes of a call, which are changed in place; `missing`
        has one call of each variant. `samples` are indices in the VCZ, `rows` those of the variants in the store.
        """
        for batch_variants, batch_samples in self._batches(rows, samples):
            coverage = self.blocks.look(contigs[batch_variants], positions[batch_variants], samples[batch_samples])
            variants, calls = np.nonzero(coverage.kinds == SPANNED)
            values[batch_variants[variants], batch_samples[calls]] = missing[batch_variants[variants], 0]
            variants, calls, chosen = coverage.of_blocks(self.field)
            values[batch_variants[variants], batch_samples[calls]] = self._values(chosen)

    def _batches(self, rows: np.ndarray, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield variants and samples to look up together: by chunks, so that all fields share cached results."""
        chunks, columns = rows // arrays.outer_chunks(self.like)[0], arrays.cuts(self.like)[1].of(samples)
        for column in np.unique(columns).tolist():
            in_column = np.flatnonzero(columns == column)
            step = _n_at_once(len(in_column))
            for chunk in np.unique(chunks).tolist():
                in_chunk = np.flatnonzero(chunks == chunk)
                for start in range(0, len(in_chunk), step):
                    yield in_chunk[start : start + step], in_column

    def _values(self, chosen: np.ndarray) -> np.ndarray:
        """Return the values of calls, given the field of the block of each call."""
        trailing = self.like.shape[2:]
        values = np.full((len(chosen), int(np.prod(trailing))), INT_FILL, dtype="i8")
        of_call = decode_genotypes(chosen, values.shape[1]) if self.field == GENOTYPE else chosen[:, np.newaxis]
        values[:, : of_call.shape[1]] = of_call
        if self.name.endswith("_phased"):
            values = is_phased(chosen)
        return self._as_stored(values).reshape(len(chosen), *trailing)

    def _as_stored(self, values: np.ndarray) -> np.ndarray:
        """Convert values of blocks to the dtype of the array, or to a mask if the array is one."""
        base = masked_by(self.name)
        if base != self.name:
            return mask_of(self.name, base, self.blocks.blocks, values)
        result = values.astype(self.like.dtype)
        if result.dtype.kind == "f":
            result[values == INT_MISSING] = missing_value(self.name, self.like)
            result[values == INT_FILL] = fill_value(self.name, self.like)
        elif (result != values).any():
            raise ValueError(f"values such as {values[result != values][0]} do not fit into {result.dtype}")
        return result

    def reading_mem(self, n_variants: int, n_samples: int) -> int:
        """Memory for looking up some calls, in bytes."""
        return self.blocks.reading_mem(min(n_variants, _n_at_once(n_samples)), n_samples)


def _n_at_once(n_samples: int) -> int:
    """Return the number of variants whose calls of `n_samples` samples are looked up together."""
    return max(1, LOOKED_UP // max(1, n_samples))
