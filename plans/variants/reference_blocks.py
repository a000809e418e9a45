"""Reference blocks: records of a gVCF that say of a range of positions that nothing but the reference was seen there.

Their only ALT is ``<NON_REF>`` or ``<*>``, which stands for any allele that was not seen (VCF 4.5, section 5.5). How
far one reaches is told by INFO's END, by ``variant_length``, or sample by sample by FORMAT's LEN. Blocks are no
variants, and that ALT is no allele: neither comes to a store.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import numpy as np
from zarr.types import AnyArray

from plans.core.compatibility import NOTHING
from plans.core.memory import Memory
from plans.variants.sortedness import site, unit_rows
from vczstore.errors import IncompatibleError
from vczstore.vcz import arrays, pipeline
from vczstore.vcz.extents import END, LENGTH, POSITION, UNSEEN, Extents
from vczstore.vcz.missing import INT_MISSING
from vczstore.vcz.model import Vcz

if TYPE_CHECKING:
    from plans.core.scan_tasks import ScanReader

CONTIG, ALLELE = "variant_contig", "variant_allele"
GENOTYPE, QUALITY = "call_genotype", "call_GQ"
SLAB_CALLS = 2**14
"""About how many calls of records are looked at at once."""
LEN = "call_LEN"
"""How far a block reaches in one sample, counted from its position (VCF 4.5, section 1.6.2)."""


# ---- one record -----------------------------------------------------------------------------


class Unseen(NamedTuple):
    """
    Where the alleles of some records stand for what was not seen.

    Attributes
    ----------
    is_unseen : numpy.ndarray of bool, records by alleles
        Which alleles do.
    is_alone : numpy.ndarray of bool
        In which records there is no other ALT.
    """

    is_unseen: np.ndarray
    is_alone: np.ndarray

    @classmethod
    def of(cls, alleles: np.ndarray, texts: Collection[str] | None = None) -> "Unseen | None":
        """Look at the alleles of some records, REF first; None if all were seen. `texts` are all ALTs, if known."""
        alts = alleles[:, 1:]
        texts = set(alts.ravel().tolist() if texts is None else texts)
        unseen = [text for text in texts if text.upper() in UNSEEN]
        if not unseen:
            return None
        is_unseen = np.zeros(alleles.shape, dtype=bool)
        is_none = np.zeros(alts.shape, dtype=bool)
        for text in unseen:
            is_unseen[:, 1:] |= alts == text
        for text in texts.intersection(NOTHING):
            is_none |= alts == text
        return cls(is_unseen, is_unseen.any(axis=1) & (is_unseen[:, 1:] | is_none).all(axis=1))


def without_unseen(alleles: np.ndarray, is_unseen: np.ndarray) -> np.ndarray:
    """
    Alleles without those that stand for what was not seen; the others move up.

    >>> alleles = np.array([["A", "<*>", "C"], ["A", "C", "<*>"], ["A", "T", ""]], dtype=object)
    >>> without_unseen(alleles, Unseen.of(alleles).is_unseen).tolist()
    [['A', 'C', ''], ['A', 'C', ''], ['A', 'T', '']]
    """
    order = np.argsort(is_unseen, axis=1, kind="stable")
    kept = np.where(is_unseen, "", alleles).astype(alleles.dtype)
    return np.take_along_axis(kept, order, axis=1)


@dataclass(frozen=True)
class Spans:
    """
    How far the records of a VCZ reach.

    Attributes
    ----------
    fields
        The arrays that tell it, by name, of those that there are.
    """

    fields: Mapping[str, AnyArray]

    @classmethod
    def of(cls, members: Mapping[str, AnyArray]) -> "Spans":
        """From the arrays of a VCZ."""
        return cls({name: members[name] for name in (POSITION, LENGTH, END, LEN) if name in members})

    def positions(self, rows: slice) -> np.ndarray:
        """Where some records begin."""
        return arrays.read(self.fields[POSITION], (rows,)).astype("i8")

    def lengths(self, rows: slice, by_end: np.ndarray) -> np.ndarray:
        """What records take up of the reference in all samples, 0 or less if nothing says it."""
        return np.asarray(np.maximum(Extents(self.fields).lengths(rows), by_end)) if LENGTH in self.fields else by_end

    def lengths_by_end(self, rows: slice, begins: np.ndarray) -> np.ndarray:
        """The same as far as INFO's END says it; `begins` are the positions."""
        if END not in self.fields:
            return np.zeros(rows.stop - rows.start, dtype="i8")
        return np.asarray(Extents(self.fields).ends(rows) - begins + 1)

    def lengths_by_sample(self, rows: slice, samples: slice | np.ndarray = slice(None)) -> np.ndarray | None:
        """What LEN says, records by samples; below 1 where it says nothing. None if there is no such field."""
        if LEN not in self.fields:
            return None
        return read_calls(self.fields[LEN], rows, samples).astype("i8")

    def is_longer(self, refs: np.ndarray, rows: slice) -> np.ndarray:
        """Which records reach beyond their REF, in any sample; `refs` are its lengths."""
        longer = self.lengths(rows, self.lengths_by_end(rows, self.positions(rows))) > refs
        by_sample = self.lengths_by_sample(rows)
        return longer if by_sample is None else longer | (by_sample.max(axis=1, initial=0) > refs)

    def first_backwards(
        self, is_alone: np.ndarray, rows: slice, begins: np.ndarray, by_end: np.ndarray, by_sample: np.ndarray | None
    ) -> int | None:
        """The first record without another ALT that ends before it begins, by its lengths."""
        backwards = np.zeros(len(is_alone), dtype=bool)
        if END in self.fields:
            backwards |= (begins + by_end - 1 > INT_MISSING) & (by_end < 1)
        if by_sample is not None:
            backwards |= (by_sample == 0).any(axis=1)
        return first_where(is_alone & backwards, rows.start)


def read_calls(array: AnyArray, rows: slice, samples: slice | np.ndarray) -> np.ndarray:
    """The values of some records and samples."""
    read: Any = arrays.read if isinstance(samples, slice) else arrays.read_at
    return np.asarray(read(array, (rows, samples, *(slice(None),) * (array.ndim - 2))))


def first_block(alleles: np.ndarray, unseen: Unseen | None, spans: Spans, rows: slice) -> int | None:
    """The first of some records that is a reference block beyond doubt: it reaches beyond its REF."""
    if unseen is None or not unseen.is_alone.any():
        return None
    return first_where(unseen.is_alone & spans.is_longer(ref_lengths(alleles), rows), rows.start)


def ref_lengths(alleles: np.ndarray) -> np.ndarray:
    """How long the REF of each record is."""
    return np.fromiter(map(len, alleles[:, 0].tolist()), "i8", len(alleles))


def n_alleles(alleles: np.ndarray) -> np.ndarray:
    """How many alleles each record has, those that stand for others included."""
    return np.asarray((~np.logical_or.reduce([alleles == text for text in NOTHING])).sum(axis=1))


def first_where(chosen: np.ndarray, start: int) -> int | None:
    """The first row that is chosen, counted from `start`; None if there is none."""
    return start + int(np.argmax(chosen)) if chosen.any() else None


def refusal(operation: str, source: Vcz, row: int) -> IncompatibleError:
    """What to tell a user whose source has a reference block, and who has not said so."""
    return IncompatibleError(
        f"{operation}: variant {row} of {source.label}, {site(source, row)}, is a reference block, as gVCFs have them, "
        "and not a variant; say --gvcf, so that it tells the genotypes of the variants that lie in it"
    )


# ---- all records ----------------------------------------------------------------------------


class SeenBlocks(NamedTuple):
    """
    What a task has seen of some rows of a gVCF.

    Attributes
    ----------
    runs : numpy.ndarray of int64
        A row for each run: its first row, how many records are variants, the first of them or -1, and the last position
        that one of its records reaches.
    has_unseen
        Whether an ALT stands for what was not seen.
    backwards
        The first block that ends before it begins.
    """

    runs: np.ndarray
    has_unseen: bool
    backwards: int | None


@dataclass(frozen=True)
class FindBlocks:
    """
    The reference blocks of a gVCF, counted in tasks run by run; see `plans.variants.sortedness.FindRuns`.

    Attributes
    ----------
    operation
        For messages.
    vcz
        Where to look.
    step
        As in `FindRuns`.
    """

    operation: str
    vcz: Vcz
    step: int

    def look(self, rows: slice) -> SeenBlocks:
        """Look at some rows."""
        spans = Spans.of(self.vcz.arrays)
        contig = arrays.read(self.vcz.arrays[CONTIG], (rows,)).astype("i8")
        with pipeline.naming(f"{ALLELE} in {self.vcz.label}"):
            alleles = arrays.read_strings(self.vcz.arrays[ALLELE], (rows, slice(None)))
        unseen = Unseen.of(alleles)
        is_alone = np.zeros(len(alleles), dtype=bool) if unseen is None else unseen.is_alone
        begins = spans.positions(rows)
        by_end = spans.lengths_by_end(rows, begins)
        length = np.maximum(ref_lengths(alleles), spans.lengths(rows, by_end))
        by_sample = spans.lengths_by_sample(rows)
        if by_sample is not None:
            length = np.maximum(length, by_sample.max(axis=1, initial=0))
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
        backwards = spans.first_backwards(is_alone, rows, begins, by_end, by_sample)
        return SeenBlocks(table, unseen is not None, backwards)

    def by_cubed(self, memory: Memory, tag: int) -> "list[ScanReader]":
        """Look in tasks, over whole chunks."""
        from plans.core import scan_tasks

        if not self.vcz.n_variants:
            return []
        look = replace(self, vcz=self.vcz.only((CONTIG, ALLELE, POSITION, LENGTH, END, LEN))).look
        rows = unit_rows(self.vcz)
        read = [a for n, a in self.vcz.arrays.items() if n in (CONTIG, ALLELE, POSITION, LENGTH, END, LEN)]
        mem = 3 * sum(arrays.decode_mem(a, 2) for a in read)
        return [scan_tasks.ScanReader(look, self.vcz.n_variants, rows, tag, mem)]

    def joined(self, found: Sequence[Any]) -> np.ndarray:
        """
        What was seen of all runs, in order.

        Returns
        -------
        numpy.ndarray of int64
            As `SeenBlocks.runs`.

        Raises
        ------
        IncompatibleError
            If nothing makes the source a gVCF, or a block ends before it begins.
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
        """Where a block ends, for people."""
        if END not in self.vcz.arrays:
            return ""
        return f", at {int(Extents.of(self.vcz.arrays).ends(slice(row, row + 1))[0])}"


# ---- calls ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blocks:
    """
    What is known of the reference blocks of a gVCF.

    Attributes
    ----------
    runs
        As `SeenBlocks.runs`, for each run of its records.
    genotype, quality
        The genotypes, and GQ; None if it has none.
    min_gq
        Calls of blocks with a lower GQ are missing; None if all count.
    step
        How many records a run has at most.
    token
        Names the gVCF in the memory of a process.
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
        Of a source whose blocks have been found.

        Raises
        ------
        IncompatibleError
            If a lowest GQ is asked for, and the source has none.
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
        """How many records are read together, of so many samples: whole runs."""
        return self.step * max(1, SLAB_CALLS // (self.step * max(1, n_samples)))

    @property
    def n_variants(self) -> int:
        """How many records are variants."""
        return int(self.runs[:, 1].sum())

    def is_called(self, rows: slice, samples: slice | np.ndarray) -> np.ndarray:
        """Where samples have a call, records by samples; by 1 if all have."""
        if self.genotype is None:
            return np.ones((rows.stop - rows.start, 1), dtype=bool)
        calls = np.moveaxis(read_calls(self.genotype, rows, samples), -1, 0)
        return np.asarray(np.logical_or.reduce([alleles >= 0 for alleles in calls]))  # faster than along a short axis

    def is_good(self, rows: slice, samples: slice | np.ndarray) -> np.ndarray:
        """Where calls have the GQ that is asked for, as `is_called`."""
        if self.min_gq is None or self.quality is None:
            return np.ones((rows.stop - rows.start, 1), dtype=bool)
        values = read_calls(self.quality, rows, samples)
        return np.asarray(values.reshape(*values.shape[:2], -1)[:, :, 0] >= self.min_gq)
