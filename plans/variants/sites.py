"""The variants of a VCZ, found by contig and position."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from zarr.types import AnyArray

from plans.variants.reference_blocks import Blocks, Spans, Unseen, first_block
from plans.variants.sortedness import Runs
from vczstore.vcz import arrays, pipeline, zarr_objects
from vczstore.vcz.extents import Extents
from vczstore.vcz.model import Vcz


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
