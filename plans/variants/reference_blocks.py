"""Reference blocks: records of a gVCF that state, for a range of positions, that only the reference was seen there.

Their only ALT is the unseen allele, ``<NON_REF>`` or ``<*>``, which stands for any allele that was not seen (VCF 4.5,
section 5.5). The end of a block is given by INFO's END, by ``variant_length``, or for each sample by FORMAT's LEN.
Blocks are not variants, and the unseen allele is not an allele: neither is added to a store.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
from zarr.types import AnyArray

from plans.core.memory import Memory
from plans.core.scan_reader import ScanReader
from plans.variants.sortedness import site, unit_rows
from vczstore.errors import IncompatibleError
from vczstore.vcz import arrays, pipeline, zarr_objects
from vczstore.vcz.extents import ABSENT_ALLELES, END, LENGTH, POSITION, UNSEEN, Extents, is_any_of
from vczstore.vcz.missing import INT_MISSING
from vczstore.vcz.model import Vcz

CONTIG, ALLELE = "variant_contig", "variant_allele"
GENOTYPE, QUALITY = "call_genotype", "call_GQ"
SLAB_CALLS = 2**14
"""Approximate number of calls (records times samples) that are read together."""
LEN = "call_LEN"
"""Length of a block in one sample, from its position on (VCF 4.5, section 1.6.2)."""


# ---- one record -----------------------------------------------------------------------------


class Unseen(NamedTuple):
    """
    The unseen alleles of some records.

    Attributes
    ----------
    is_unseen : numpy.ndarray of bool, records by alleles
        Whether the allele is ``<NON_REF>`` or ``<*>``.
    is_alone : numpy.ndarray of bool
        Whether that is the only ALT of the record.
    """

    is_unseen: np.ndarray
    is_alone: np.ndarray

    @classmethod
    def of(cls, alleles: np.ndarray, texts: Collection[str] | None = None) -> "Unseen":
        """Find the unseen alleles of some records; `texts` are all ALTs, if they are known."""
        alts = alleles[:, 1:]
        texts = set(alts.ravel().tolist() if texts is None else texts)
        is_unseen = np.zeros(alleles.shape, dtype=bool)
        is_unseen[:, 1:] = is_any_of(alts, (text for text in texts if text.upper() in UNSEEN))
        is_alone = is_unseen.any(axis=1)
        if is_alone.any():
            is_alone &= (is_unseen[:, 1:] | is_any_of(alts, texts.intersection(ABSENT_ALLELES))).all(axis=1)
        return cls(is_unseen, is_alone)

    @property
    def places(self) -> np.ndarray:
        """Index of the unseen allele of each record, -1 if there is none."""
        return np.where(self.is_unseen.any(axis=1), self.is_unseen.argmax(axis=1), -1)


def without_unseen(alleles: np.ndarray, is_unseen: np.ndarray) -> np.ndarray:
    """
    Remove unseen alleles; the others move up.

    >>> alleles = np.array([["A", "<*>", "C"], ["A", "C", "<*>"], ["A", "T", ""]], dtype=object)
    >>> without_unseen(alleles, Unseen.of(alleles).is_unseen).tolist()
    [['A', 'C', ''], ['A', 'C', ''], ['A', 'T', '']]
    """
    order = np.argsort(is_unseen, axis=1, kind="stable")
    kept = np.where(is_unseen, "", alleles).astype(alleles.dtype)
    return np.take_along_axis(kept, order, axis=1)


@dataclass(frozen=True)
class Spans:
    """The spans of the records of a VCZ on the reference; `fields` are the arrays that determine them, by name."""

    fields: Mapping[str, AnyArray]

    @classmethod
    def of(cls, members: Mapping[str, AnyArray]) -> "Spans":
        """Pick the arrays of a VCZ that determine the spans."""
        return cls({name: members[name] for name in (POSITION, LENGTH, END, LEN) if name in members})

    def positions(self, rows: slice) -> np.ndarray:
        """Read the start positions of some records."""
        return arrays.read(self.fields[POSITION], (rows,)).astype("i8")

    def lengths(self, rows: slice, by_end: np.ndarray) -> np.ndarray:
        """Read the lengths of records on the reference, by ``variant_length`` and `by_end`; below 1 if unknown."""
        return np.asarray(np.maximum(Extents(self.fields).lengths(rows), by_end)) if LENGTH in self.fields else by_end

    def lengths_by_end(self, rows: slice, begins: np.ndarray) -> np.ndarray:
        """Read the lengths by INFO's END alone, below 1 where it has no value; `begins` are the start positions."""
        if END not in self.fields:
            return np.zeros(rows.stop - rows.start, dtype="i8")
        return np.asarray(Extents(self.fields).ends(rows) - begins + 1)

    def lengths_by_sample(self, rows: slice, samples: slice | np.ndarray = slice(None)) -> np.ndarray | None:
        """Read LEN, records by samples; below 1 where it has no value. None if there is no such field."""
        if LEN not in self.fields:
            return None
        return read_calls(self.fields[LEN], rows, samples).astype("i8")

    def is_longer(self, refs: np.ndarray, rows: slice) -> np.ndarray:
        """Whether each record reaches beyond its REF, in any sample; `refs` are the lengths of REF."""
        longer = self.lengths(rows, self.lengths_by_end(rows, self.positions(rows))) > refs
        by_sample = self.lengths_by_sample(rows)
        return longer if by_sample is None else longer | (by_sample.max(axis=1, initial=0) > refs)


def read_calls(array: AnyArray, rows: slice, samples: slice | np.ndarray) -> np.ndarray:
    """Read the values of some records and samples."""
    return arrays.read(array, (rows, samples, *(slice(None),) * (array.ndim - 2)))


def read_alleles(array: AnyArray, rows: slice) -> np.ndarray:
    """Read the alleles of some records, as Python strings."""
    with pipeline.naming(f"{array.path} in {zarr_objects.place(array.store)}"):
        return arrays.read_strings(array, (rows, slice(None)))


def first_block(alleles: np.ndarray, unseen: Unseen, spans: Spans, rows: slice) -> int | None:
    """Return the row of the first record that is certainly a block, as it reaches beyond its REF; None if none is."""
    if not unseen.is_alone.any():
        return None
    return first_where(unseen.is_alone & spans.is_longer(ref_lengths(alleles), rows), rows.start)


def ref_lengths(alleles: np.ndarray) -> np.ndarray:
    """Return the length of the REF of each record."""
    return np.fromiter(map(len, alleles[:, 0].tolist()), "i8", len(alleles))


def first_where(chosen: np.ndarray, start: int) -> int | None:
    """Return the first row that is chosen, counted from `start`; None if there is none."""
    return start + int(np.argmax(chosen)) if chosen.any() else None


def refusal(
    operation: str,
    source: Vcz,
    row: int,
    way_out: str = "use --gvcf, so that it gives the genotypes of the variants in it",
) -> IncompatibleError:
    """Return the error for a source that has a reference block, without the option ``--gvcf``."""
    return IncompatibleError(
        f"{operation}: variant {row} of {source.label}, {site(source, row)}, is a reference block, as gVCFs have them, "
        f"and not a variant; {way_out}"
    )


# ---- all records ----------------------------------------------------------------------------


class SeenBlocks(NamedTuple):
    """
    The reference blocks in some rows of a gVCF, as counted by a task.

    Attributes
    ----------
    runs : numpy.ndarray of int64
        Four columns: first row of the run, number of its variants, row of its first variant (the largest int64 if there
        is none), and last position that any of its records reaches.
    has_unseen
        Whether there is an unseen allele.
    backwards
        Row of the first block that ends before it begins; None if there is none.
    first
        Row of the first block that reaches beyond its REF; None if there is none.
    """

    runs: np.ndarray
    has_unseen: bool
    backwards: int | None
    first: int | None


@dataclass(frozen=True)
class FindBlocks:
    """Counts the reference blocks of a gVCF in tasks, run by run, like `plans.variants.sortedness.FindRuns`."""

    operation: str
    vcz: Vcz
    step: int

    def look(self, rows: slice) -> SeenBlocks:
        spans = Spans.of(self.vcz.arrays)
        contig = arrays.read(self.vcz.arrays[CONTIG], (rows,)).astype("i8")
        with pipeline.naming(f"{ALLELE} in {self.vcz.label}"):
            alleles = arrays.read_strings(self.vcz.arrays[ALLELE], (rows, slice(None)))
        is_unseen, is_alone = Unseen.of(alleles)
        begins = spans.positions(rows)
        by_end = spans.lengths_by_end(rows, begins)
        refs = ref_lengths(alleles)
        length = np.maximum(refs, spans.lengths(rows, by_end))
        is_backwards = np.zeros(len(alleles), dtype=bool)
        if END in spans.fields:
            is_backwards |= (begins + by_end - 1 > INT_MISSING) & (by_end < 1)
        by_sample = spans.lengths_by_sample(rows)
        if by_sample is not None:
            length = np.maximum(length, by_sample.max(axis=1, initial=0))
            is_backwards |= (by_sample == 0).any(axis=1)
        reach = begins + length - 1
        numbers = np.arange(rows.start, rows.stop)
        starts = np.flatnonzero(np.r_[True, contig[1:] != contig[:-1]] | (numbers % self.step == 0))
        first = np.where(is_alone, np.iinfo("i8").max, numbers)
        table = np.stack(
            [
                numbers[starts],
                np.add.reduceat(~is_alone, starts, dtype="i8"),
                np.minimum.reduceat(first, starts),
                np.maximum.reduceat(reach, starts),
            ],
            axis=1,
        )
        backwards = first_where(is_alone & is_backwards, rows.start)
        longer = first_where(is_alone & (length > refs), rows.start)
        return SeenBlocks(table, bool(is_unseen.any()), backwards, longer)

    def readers(self, memory: Memory) -> list[ScanReader]:
        """Scan with tasks of whole chunks."""
        look = replace(self, vcz=self.vcz.only((CONTIG, ALLELE, POSITION, LENGTH, END, LEN))).look
        rows = unit_rows(self.vcz)
        read = [a for n, a in self.vcz.arrays.items() if n in (CONTIG, ALLELE, POSITION, LENGTH, END, LEN)]
        mem = 3 * sum(arrays.decode_mem(a, 2) for a in read)
        if LEN in self.vcz.arrays:  # read for all samples, and converted to int64
            mem += 3 * min(rows, self.vcz.n_variants) * self.vcz.arrays[LEN].shape[1] * 8
        return [ScanReader(look, self.vcz.n_variants, rows, mem)]

    def joined(self, found: Sequence[Any]) -> np.ndarray:
        """
        Combine the results of all tasks.

        Returns
        -------
        numpy.ndarray of int64
            As `SeenBlocks.runs`, sorted by row.

        Raises
        ------
        IncompatibleError
            If the source has no unseen allele, and so is not a gVCF, or a block ends before it begins.
        """
        seen = [SeenBlocks(*item) for item in found]
        if self.vcz.n_variants and not any(s.has_unseen for s in seen):
            raise IncompatibleError(
                f"{self.operation}: {self.vcz.label} has neither <NON_REF> nor <*> among the alleles of its "
                f"{self.vcz.n_variants:,} variants, so it is no gVCF; leave out --gvcf, or make it with reference "
                "blocks"
            )
        backwards = [s.backwards for s in seen if s.backwards is not None]
        if backwards:
            row = min(backwards)
            raise IncompatibleError(
                f"{self.operation}: variant {row} of {self.vcz.label}, {site(self.vcz, row)}, is a reference block, "
                f"and ends before it begins{self._end(row)}; re-create the gVCF"
            )
        table = np.concatenate([np.empty((0, 4), dtype="i8"), *(s.runs for s in seen)])
        return np.asarray(table[np.argsort(table[:, 0], kind="stable")])

    def _end(self, row: int) -> str:
        """Describe where a block ends by END, for a message; empty if there is no END."""
        if END not in self.vcz.arrays:
            return ""
        return f", at {int(Extents.of(self.vcz.arrays).ends(slice(row, row + 1))[0])}"


# ---- calls ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blocks:
    """
    The reference blocks of a gVCF.

    Attributes
    ----------
    runs
        As `SeenBlocks.runs`, for all runs of its records.
    genotype, quality
        The arrays of genotypes and of GQ; None if it has none.
    min_gq
        Calls of blocks with a lower GQ are missing; None if there is no limit.
    step
        Largest number of records of a run.
    token
        Cache key of the gVCF within a process.
    """

    runs: np.ndarray
    genotype: AnyArray | None
    quality: AnyArray | None
    min_gq: int | None
    step: int
    token: str

    @classmethod
    def of(cls, operation: str, source: Vcz, runs: np.ndarray, min_gq: int | None) -> "Blocks":
        """
        Return the blocks of a source, given `SeenBlocks.runs` of all of it.

        Raises
        ------
        IncompatibleError
            If there is a limit of GQ, and the source has no GQ.
        """
        quality = source.samples_arrays.get(QUALITY)
        if min_gq is not None and quality is None:
            raise IncompatibleError(
                f"{operation}: {source.label} has no {QUALITY}, so none of its reference blocks has the GQ of {min_gq} "
                "that --min-gq asks for; leave it out"
            )
        genotype = source.samples_arrays.get(GENOTYPE)
        return cls(runs, genotype, quality, min_gq, unit_rows(source), uuid4().hex)

    def slab_rows(self, n_samples: int) -> int:
        """Return the number of records of `n_samples` samples that are read together: a multiple of `step`."""
        return self.step * max(1, SLAB_CALLS // (self.step * max(1, n_samples)))

    @property
    def n_variants(self) -> int:
        """Number of records that are variants."""
        return int(self.runs[:, 1].sum())

    def is_called(self, rows: slice, samples: slice | np.ndarray) -> np.ndarray:
        """Whether samples have a call, records by samples; records by 1, all True, if there are no genotypes."""
        if self.genotype is None:
            return np.ones((rows.stop - rows.start, 1), dtype=bool)
        calls = np.moveaxis(read_calls(self.genotype, rows, samples), -1, 0)
        return np.asarray(np.logical_or.reduce([alleles >= 0 for alleles in calls]))  # faster than along a short axis

    def is_good(self, rows: slice, samples: slice | np.ndarray) -> np.ndarray:
        """Whether GQ is at least `min_gq`, records by samples; records by 1, all True, if there is no limit."""
        if self.min_gq is None or self.quality is None:
            return np.ones((rows.stop - rows.start, 1), dtype=bool)
        values = read_calls(self.quality, rows, samples)
        return np.asarray(values.reshape(*values.shape[:2], -1)[:, :, 0] >= self.min_gq)
