"""Sites: the variants of a VCZ, looked up by contig and position."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from zarr.types import AnyArray

from plans.core.compatibility import blank_absent
from plans.variants.reference_blocks import Blocks, Spans, Unseen, first_block, read_alleles, ref_lengths
from plans.variants.sortedness import Runs
from plans.variants.unit_cache import UnitCache
from vczstore.vcz import arrays
from vczstore.vcz.extents import Extents
from vczstore.vcz.model import Vcz


class Records(NamedTuple):
    """
    Some variants of a source.

    Attributes
    ----------
    rows, positions, extents : numpy.ndarray of int64
        Rows in the source, positions, and extents; see `vczstore.vcz.extents`.
    alleles : numpy.ndarray of object, variants by alleles
        Alleles as Python strings; the unseen allele (``<NON_REF>`` or ``<*>``) of a gVCF is replaced by ``""``.
    unseen : numpy.ndarray of int64
        Index of the unseen allele, -1 if there is none, or the source is not used as a gVCF.
    """

    rows: np.ndarray
    positions: np.ndarray
    alleles: np.ndarray
    extents: np.ndarray
    unseen: np.ndarray

    def first_block(self, spans: Spans) -> int | None:
        """Return the row of the first reference block, None if there is none. All rows must be consecutive."""
        start = int(self.rows[0]) if len(self.rows) else 0
        return first_block(self.alleles, Unseen.of(self.alleles), spans, slice(start, start + len(self.rows)))

    @classmethod
    def none(cls, n_alleles: int) -> "Records":
        """Return no records, of a gVCF with `n_alleles` columns of alleles."""
        nothing = np.empty(0, dtype="i8")
        return cls(nothing, nothing, np.empty((0, n_alleles), dtype=object), nothing, nothing)


class GvcfRecords(NamedTuple):
    """
    Consecutive records of a gVCF, without the alleles of its blocks.

    Attributes
    ----------
    rows, begins : numpy.ndarray of int64
        Rows in the source, and start positions.
    refs, lengths, by_end, extents : numpy.ndarray of int64
        Length of REF, length on the reference, the same by INFO's END alone, and extent of symbolic alleles; see
        `Spans` and `vczstore.vcz.extents`.
    n_alleles, unseen : numpy.ndarray of int64
        Number of alleles, including the unseen one, and index of the unseen allele; -1 if there is none.
    is_variant : numpy.ndarray of bool
        Whether the record is a variant, and not a block.
    alleles : numpy.ndarray of object, variants by alleles
        Alleles of those records that are variants, as in `Records`.
    """

    rows: np.ndarray
    begins: np.ndarray
    refs: np.ndarray
    lengths: np.ndarray
    by_end: np.ndarray
    extents: np.ndarray
    n_alleles: np.ndarray
    unseen: np.ndarray
    is_variant: np.ndarray
    alleles: np.ndarray

    @property
    def nbytes(self) -> int:
        """Approximate size in bytes."""
        return sum(column.nbytes for column in self) + 64 * self.alleles.size

    def cut(self, start: int, stop: int) -> "GvcfRecords":
        """Return the records between two rows of the source."""
        low, high = (min(max(0, row - int(self.rows[0])), len(self.rows)) for row in (start, stop))
        if (low, high) == (0, len(self.rows)):
            return self
        first, last = (int(np.count_nonzero(self.is_variant[:i])) for i in (low, high))
        return GvcfRecords._make([*(column[low:high] for column in self[:-1]), self.alleles[first:last]])

    def variants(self, positions: np.ndarray | None = None) -> Records:
        """Return the records that are variants, all or those at some positions."""
        begins, alleles, at = self.begins[self.is_variant], self.alleles, np.flatnonzero(self.is_variant)
        if positions is not None:
            chosen = np.isin(begins, positions)
            begins, alleles, at = begins[chosen], alleles[chosen], at[chosen]
        return Records(self.rows[at], begins, alleles, self.extents[at], self.unseen[at])


@dataclass(frozen=True)
class Sites:
    """
    The variants of a VCZ, looked up by contig and position.

    Attributes
    ----------
    runs : numpy.ndarray of int64
        The columns are the fields of `Runs`; contigs are numbered as in the store, and negative if it lacks them.
    extents, spans
        Extents of symbolic alleles; spans of the records, which distinguish reference blocks from variants.
    blocks
        Reference blocks of the gVCF; None if the VCZ is not used as a gVCF.
    """

    contig: AnyArray
    position: AnyArray
    allele: AnyArray
    runs: np.ndarray
    extents: Extents
    spans: Spans
    blocks: Blocks | None = None

    @classmethod
    def of(cls, vcz: Vcz, runs: Runs, contigs: Sequence[str], blocks: Blocks | None = None) -> "Sites":
        """Return the sites of a VCZ; `contigs` are those of the store."""
        ours = {name: i for i, name in enumerate(contigs)}
        numbers = np.array([ours.get(name, -1 - i) for i, name in enumerate(vcz.table("contig_id").tolist())], "i8")
        table = np.stack(runs._replace(contig=numbers[runs.contig]), axis=1)
        contig, position, allele = (vcz.arrays[f"variant_{name}"] for name in ("contig", "position", "allele"))
        return cls(contig, position, allele, table, Extents.of(vcz.arrays), Spans.of(vcz.arrays), blocks)

    def contigs_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the contig number of each of some rows."""
        return np.asarray(self.runs[np.searchsorted(self.runs[:, 2], rows, "right"), 0])

    def of_contig(self, contig: int) -> np.ndarray:
        """Return the runs of one contig."""
        return np.asarray(self.runs[self.runs[:, 0] == contig])

    def runs_within(self, start: int, stop: int) -> slice:
        """Return the indices of the runs that overlap a range of rows."""
        return slice(
            int(np.searchsorted(self.runs[:, 2], start, "right")), int(np.searchsorted(self.runs[:, 1], stop, "left"))
        )

    def rows_between(self, contig: int, first: int, last: int) -> tuple[int, int]:
        """Return start and stop of the rows of a contig with positions from `first` to `last`, both included."""
        return self.row_of(contig, first, "left"), self.row_of(contig, last, "right")

    def row_of(self, contig: int, position: int, side: Literal["left", "right"]) -> int:
        """Return the row of a position on a contig, as `numpy.searchsorted` among its positions; 0 if it has none."""
        runs = self.of_contig(contig)
        if not len(runs):
            return 0
        # the first run that has a position at or beyond `position`
        k = int(np.searchsorted(runs[:, 4], position, side))
        if k == len(runs):
            return int(runs[-1, 2])
        start, stop = int(runs[k, 1]), int(runs[k, 2])
        if position < runs[k, 3] or (side == "left" and position == runs[k, 3]):
            return start
        if self.blocks is None:
            values = arrays.read(self.position, (slice(start, stop),))
        else:
            values = self.gvcf_records(start, stop).begins
        return start + int(np.searchsorted(values, position, side))

    def alleles(self, start: int, stop: int) -> np.ndarray:
        """Read the alleles of some rows, as Python strings."""
        return read_alleles(self.allele, slice(start, stop))

    def records_at(self, contig: int, positions: np.ndarray) -> Records:
        """
        Read the variants of a contig that may match variants of a store at some positions, which are sorted.

        Those of a gVCF are read run by run, and only those at these positions, since most of its records are blocks.
        """
        c, d = self.rows_between(contig, int(positions[0]), int(positions[-1]))
        if self.blocks is None:
            alleles = self.alleles(c, d)
            return Records(
                np.arange(c, d),
                arrays.read(self.position, (slice(c, d),)).astype("i8"),
                alleles,
                self.extents.look(alleles, slice(c, d)),
                np.full(d - c, -1),
            )
        parts = [Records.none(self.allele.shape[1])]
        parts += [self.gvcf_records(a, b).variants(positions) for a, b in self._runs_with_variants(c, d)]
        return Records(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def gvcf_records(self, start: int, stop: int) -> GvcfRecords:
        """Return a range of at least one row of a gVCF. Rows are read run by run, and recent runs are cached."""
        assert self.blocks is not None
        token = self.blocks.token
        runs = self.runs[self.runs_within(start, stop), 1:3].tolist()
        parts = [_cache.get((token, a), partial(self._read, slice(a, b))).cut(start, stop) for a, b in runs]
        return parts[0] if len(parts) == 1 else GvcfRecords(*map(np.concatenate, zip(*parts, strict=True)))

    def _read(self, rows: slice) -> GvcfRecords:
        """Read some records of a gVCF."""
        alleles, begins = self.alleles(rows.start, rows.stop), self.spans.positions(rows)
        unseen, by_end = Unseen.of(alleles), self.spans.lengths_by_end(rows, begins)
        is_variant, refs = ~unseen.is_alone, ref_lengths(alleles)
        return GvcfRecords(
            rows=np.arange(rows.start, rows.stop),
            begins=begins,
            refs=refs,
            lengths=np.maximum(refs, self.spans.lengths(rows, by_end)),
            by_end=by_end,
            extents=self.extents.look(alleles, rows),
            n_alleles=(blank_absent(alleles) != "").sum(axis=1),
            unseen=unseen.places,
            is_variant=is_variant,
            alleles=np.where(unseen.is_unseen, "", alleles)[is_variant],
        )

    def _runs_with_variants(
        self, start: int, stop: int, matched: np.ndarray | None = None
    ) -> Iterator[tuple[int, int]]:
        """Yield the runs of a gVCF with variants, cut to a range of rows, except those whose variants all matched."""
        assert self.blocks is not None
        here = self.runs_within(start, stop)
        begins, ends, n = self.runs[here, 1], self.runs[here, 2], self.blocks.runs[here, 1]
        if matched is not None:
            is_whole = (begins >= start) & (ends <= stop)
            n = np.where(is_whole, n - np.searchsorted(matched, ends) + np.searchsorted(matched, begins), n)
        for i in np.flatnonzero(n > 0).tolist():
            yield max(int(begins[i]), start), min(int(ends[i]), stop)

    def unmatched(self, start: int, stop: int, matched: np.ndarray) -> tuple[int, int | None]:
        """Count the variants in a range of rows that are not in `matched`, which is sorted; return also the first."""
        if self.blocks is None:
            here = matched[np.searchsorted(matched, start) : np.searchsorted(matched, stop)]
            n = max(0, stop - start - len(here))
            gaps = np.flatnonzero(here != start + np.arange(len(here)))
            return n, start + int(gaps[0] if len(gaps) else len(here)) if n else None
        n, first = 0, None
        for a, b in self._runs_with_variants(start, stop, matched):
            left = np.setdiff1d(self.gvcf_records(a, b).variants().rows, matched)
            n += len(left)
            first = int(left[0]) if first is None and len(left) else first
        return n, first

    def on_other_contigs(self, contigs: Collection[int]) -> tuple[int, int | None]:
        """Count the variants on contigs other than those of a store, and return the row of the first one, or None."""
        first, n = self.runs[:, 1], self.runs[:, 2] - self.runs[:, 1]
        if self.blocks is not None:
            _, n, first, _ = self.blocks.runs.T
        is_other = ~np.isin(self.runs[:, 0], list(contigs)) & (n > 0)
        return int(n[is_other].sum()), min(first[is_other].tolist(), default=None)

    def first_block(self, start: int, stop: int) -> int | None:
        """Return the first row in a range that is a reference block; None if there is none."""
        step = arrays.outer_chunks(self.allele)[0]
        edges = sorted({start, *range((start // step + 1) * step, stop, step), max(start, stop)})
        for a, b in pairwise(edges):
            alleles = self.alleles(a, b)
            block = first_block(alleles, Unseen.of(alleles), self.spans, slice(a, b))
            if block is not None:
                return block
        return None


_cache: UnitCache[GvcfRecords] = UnitCache()
