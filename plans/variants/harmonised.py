"""Harmonise: the arrays of a source, expressed over the variants and alleles of a store.

No intermediate copy is stored. `Harmonised` is a view of an array of a source that is read like any other array: its
rows are looked up in the `Index`, and per-allele values are re-ordered. Chunks in which nothing changes are copied
verbatim.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import Columns
from plans.core.views import View, like_source
from plans.variants.block_calls import Covering, covering
from plans.variants.dropped_fields import Dropped
from plans.variants.field_numbers import ALLELE_NUMBERS, GENOTYPE, field_of, kind_of
from plans.variants.findings import Findings
from plans.variants.kept_blocks import KeptBlocks, KeptCalls
from plans.variants.match_index import ABSENT, UNMATCHED, Matches, UnitReport
from plans.variants.misfits import VECTOR_BYTES, read_bytes
from plans.variants.reference_blocks import LEN, Blocks, read_calls
from plans.variants.unit_cache import KEPT_BYTES
from vczstore.vcz import arrays, encoded_chunks, metadata, zarr_objects
from vczstore.vcz.missing import fill_value, mask_of, masked_by, missing_value, sentinels
from vczstore.vcz.model import SAMPLES, Vcz, dimensions, samples_axis


def absent_calls(
    name: str, array: AnyArray, like: AnyArray, is_reference: np.ndarray, is_haploid: np.ndarray
) -> np.ndarray:
    """
    Return calls for variants that samples have no record of: variants by 1 by the axes of a call.

    `array` is the source's array, whose missing and fill values are used, and `like` the planned array of the store.
    For each variant, genotypes may be reference instead of missing, and haploid.
    """
    missing, fill = sentinels(name, array)
    dtype = np.promote_types(array.dtype, like.dtype) if name in ALLELE_NUMBERS else array.dtype
    values = np.full((len(is_reference), 1, *like.shape[2:]), missing, dtype=dtype)
    if not len(values):
        return values
    if dimensions(like)[-1] == "ploidy" and masked_by(name) == GENOTYPE:
        values[is_reference] = 0  # in a mask, False
        values[is_haploid, :, 1:] = fill
    elif values.ndim > 2:
        values.reshape(len(values), 1, -1)[:, :, 1:] = fill
    return values


class _Calls:
    """
    Calls of some samples of a source: `cached_rows` are read once from each array, other rows are read on demand.

    If cached rows are used more than once (`is_read_again`), callers get copies, which they may change.
    """

    def __init__(self, samples: slice | np.ndarray, cached_rows: slice, *, is_read_again: bool) -> None:
        self._samples, self._cached_rows, self._is_read_again = samples, cached_rows, is_read_again
        self._cache: dict[int, np.ndarray] = {}

    def has(self, rows: np.ndarray) -> np.ndarray:
        """Whether each of some rows is among the cached rows."""
        return np.asarray((rows >= self._cached_rows.start) & (rows < self._cached_rows.stop))

    def of_rows(self, rows: np.ndarray, array: AnyArray) -> np.ndarray:
        """Return some rows of all samples."""
        slab, first = self._slab(rows, array)
        is_all = len(rows) == len(slab) and (np.diff(rows) == 1).all()
        return slab if is_all and not self._is_read_again else slab[rows - first]

    def of_samples(self, rows: np.ndarray, samples: np.ndarray, array: AnyArray) -> np.ndarray:
        """Return one sample at each of some rows: rows by 1 by the axes of a call."""
        slab, first = self._slab(rows, array)
        return np.asarray(slab[rows - first, samples][:, np.newaxis])

    def _slab(self, rows: np.ndarray, array: AnyArray) -> tuple[np.ndarray, int]:
        """Return a slab of an array that contains some rows, and the first row of the slab."""
        if not self.has(rows).all():
            first = int(rows.min())
            return read_calls(array, slice(first, int(rows.max()) + 1), self._samples), first
        if id(array) not in self._cache:
            self._cache[id(array)] = read_calls(array, self._cached_rows, self._samples)
        return self._cache[id(array)], self._cached_rows.start


@dataclass(frozen=True)
class Harmonised(View):
    """
    An array of a source, over the variants and alleles of a store.

    Attributes
    ----------
    source, like
        The source's array, and its metadata in the store, with the source's samples.
    name, number
        Name of the array, and number of the source among those of the findings.
    findings
        The findings for tasks, without the reports, which only the driver needs.
    copied
        Runs of units whose chunks are copied from the source: the first, the one after the last, and the offset of
        their chunks in the source. It is sent to every task, and a store can have a million units.
    span
        Largest number of rows of the source that a unit spans.
    genotype
        The source's genotypes, for the ploidy of each call; None unless the field is per genotype and there are any.
    data
        The values that a mask is derived from where vectors are re-ordered: the mask alone does not distinguish missing
        from fill, nor give the number of alleles of a vector. None if the array is not such a mask.
    kept
        Calls from the source's kept blocks, for variants that it lacks; None if there are none of this field.
    """

    name: str
    number: int
    findings: Findings
    copied: tuple[tuple[int, int, int], ...]
    span: int
    genotype: AnyArray | None
    data: "Harmonised | None" = None
    kept: KeptCalls | None = None

    @classmethod
    def of(
        cls,
        name: str,
        source: Vcz,
        target: AnyArray,
        number: int,
        findings: Findings,
        data: "Harmonised | None" = None,
    ) -> "Harmonised":
        """Return the view of an array of a source; `target` is the planned array of the store."""
        array = source.samples_arrays[name]
        axis = samples_axis(array)
        shape = tuple(array.shape[i] if i == axis else n for i, n in enumerate(target.shape))
        like = like_source(target, array, shape)
        by_genotype = kind_of(name, array, findings.numbers) == "G"
        genotype = source.samples_arrays.get(GENOTYPE) if by_genotype and data is None else None
        genotype = None if isinstance(genotype, Dropped) else genotype  # the source has none
        reports = findings.by_source.get(number, [])
        for_task, at = findings.of_source(number)
        blocks = KeptBlocks.of(source, f"{findings.index.token}.{number}", findings.contigs, None)
        # the blocks of a gVCF are read from the gVCF itself
        kept = None if findings.rules.gvcf else KeptCalls.of(blocks, name, like)
        view = cls(array, like, name, at, for_task, (), max((r.span for r in reports), default=0), genotype, data, kept)
        return replace(view, copied=view._copied(reports))

    @property
    def kind(self) -> str:
        """How the values depend on alleles; see `kind_of`."""
        return kind_of(self.name, self.like, self.findings.numbers) if self.data is None else self.data.kind

    @property
    def dtype(self) -> np.dtype:
        """The source's dtype; promoted to hold the store's where values are allele indices, or from kept blocks."""
        is_wider = self.kind == "GT" or self.kept is not None
        return np.promote_types(self.source.dtype, self.like.dtype) if is_wider else self.source.dtype

    @property
    def _blocks(self) -> Blocks | None:
        """The reference blocks, if the source is a gVCF, whose blocks give calls."""
        return self.findings.index.sources[self.number].blocks

    def _copied(self, reports: Sequence[UnitReport]) -> tuple[tuple[int, int, int], ...]:
        mine, theirs = arrays.widths(self.like), arrays.widths(self.source)
        rows = self.findings.index.unit
        # chunks along samples, axis 1, are compared where they are written
        if not mine[0] == theirs[0] == rows or mine[2:] != theirs[2:] or self.like.shape[2:] != self.source.shape[2:]:
            return ()
        if isinstance(cast("AnyArray | View", self.source), View) or not metadata.same_encoding(self.source, self.like):
            return ()
        runs: list[tuple[int, int, int]] = []
        by_allele = bool(self.kind)
        for report in sorted(reports):
            if report.shift is None or report.shift % rows or (by_allele and not report.same_alleles):
                continue
            start, shift = report.number * rows, report.shift // rows
            # the last chunk may be shorter on one side
            if min(rows, self.like.shape[0] - start) != min(rows, self.source.shape[0] - start - report.shift):
                continue
            if runs and runs[-1][1:] == (report.number, shift):
                runs[-1] = (runs[-1][0], report.number + 1, shift)
            else:
                runs.append((report.number, report.number + 1, shift))
        return tuple(runs)

    def n_copied(self, columns: Columns) -> int:
        """Return the number of chunks of some columns that are copied verbatim."""
        n_units = sum(stop - start for start, stop, _ in self.copied)
        return n_units * columns.n_chunks // max(1, columns.grid[0])

    def _copy_of(self, unit: int) -> int | None:
        """Return the row of chunks of the source that a unit is copied from; None if it is re-encoded."""
        at = bisect_right(self.copied, unit, key=lambda run: run[0]) - 1
        if at < 0 or unit >= self.copied[at][1]:
            return None
        return unit + self.copied[at][2]

    def get_encoded(self, coords: Sequence[Sequence[int]]) -> list[zarr_objects.Encoded]:
        """Return chunks encoded for the store: copied from the source, or re-encoded."""
        copies = [self._copy_of(c[0]) for c in coords]
        theirs = [(unit, *c[1:]) for unit, c in zip(copies, coords, strict=True) if unit is not None]
        copied = encoded_chunks.get_encoded(self.source, theirs)
        encoded_chunks.check_frames(self.source, theirs, copied)
        rest = iter(copied)
        return [self._encode(c) if unit is None else next(rest) for unit, c in zip(copies, coords, strict=True)]

    def _encode(self, coords: Sequence[int]) -> zarr_objects.Encoded:
        region = encoded_chunks.chunk_region(self.like, coords)
        return encoded_chunks.encode(self.like, coords, region, arrays.read(cast("AnyArray", self), region))

    def extra_mem(self, block: tuple[int, ...]) -> int:
        """Memory for reading a block, in bytes, in addition to the block and the source's chunks."""
        size = arrays.element_bytes(cast("AnyArray", self))
        n_samples = min(self.shape[1], max(arrays.outer_chunks(self.source)[1], block[1]))
        read = n_samples * (read_bytes(self.source, self.span) + read_bytes(self.genotype, self.span))
        # of one unit at a time: several copies of its values, and the lengths of its vectors
        unit = min(self.shape[0], self.findings.index.unit)
        values = math.prod(self.source.shape[2:]) * (5 * unit + min(self.shape[0], block[0])) * size
        lengths = VECTOR_BYTES * unit if self.kind in ("R", "A", "G") else 0
        data = 0 if self.data is None else self.data.extra_mem(block)
        lookup = self.findings.index.reading_mem
        lookup += 0 if self.kept is None else self.kept.reading_mem(unit, n_samples)
        return data + lookup + read + n_samples * (values + lengths) + self._covering_mem(n_samples)

    def _covering_mem(self, n_samples: int) -> int:
        """Memory for finding and reading the reference blocks of some samples, in bytes."""
        source = self.findings.index.sources[self.number]
        if source.blocks is None:
            return 0
        span = source.blocks.slab_rows(n_samples)
        calls = [self.source, source.blocks.genotype, source.blocks.quality, source.spans.fields.get(LEN)]
        read = n_samples * sum(read_bytes(array, span) for array in calls)
        sites = [source.allele, source.position, *source.spans.fields.values(), *source.extents.fields.values()]
        decoding = sum(read_bytes(a, span) for a in sites if SAMPLES not in dimensions(a))
        return read + VECTOR_BYTES * n_samples * (self.findings.index.unit + span) + 4 * decoding + 2 * KEPT_BYTES

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Read a region: gather the rows, and re-order per-allele values."""
        if self.data is not None:
            return mask_of(self.name, self.data.name, self.data.source, self.data[region])
        rows, samples, *rest = region
        assert isinstance(rows, slice)
        parts = [
            self._unit(unit.sources[self.number].cut(here), unit.n_alleles[here], unit.start + here.start, samples)
            for unit, here in self.findings.index.units(rows)
        ]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return values[(slice(None), slice(None), *rest)]

    def _unit(self, mine: Matches, n_alleles: np.ndarray, start: int, samples: slice | np.ndarray) -> np.ndarray:
        """Return the values of variants from row `start` on, which have the matches `mine` and `n_alleles` alleles."""
        present = np.flatnonzero(mine.rows >= 0)
        n_samples = len(samples) if isinstance(samples, np.ndarray) else len(range(*samples.indices(self.shape[1])))
        covered = None
        if self._blocks is not None:
            rows = slice(start, start + len(mine.rows))
            covered = covering(self.findings.index, self.number, rows, mine.rows >= 0, samples, n_samples)
        calls = _Calls(samples, self._rows_to_cache(mine.rows[present], covered), is_read_again=covered is not None)
        if len(present):
            slab = self._in_order(partial(calls.of_rows, mine.rows[present]), mine.cut(present), n_alleles[present])
        if len(present) == len(mine.rows):
            result = slab
        else:
            result = np.empty((len(mine.rows), n_samples, *self.like.shape[2:]), dtype=self.dtype)
            if len(present):
                result[present] = slab
            absent = np.flatnonzero(mine.rows < 0)
            result[absent] = self._absent(start + absent, mine.rows[absent] == UNMATCHED)
            result = self._with_kept(result, start, np.flatnonzero(mine.rows == ABSENT), samples)
        return result if covered is None else self._with_blocks(result, covered, n_alleles, start, calls)

    def _rows_to_cache(self, present: np.ndarray, covered: Covering | None) -> slice:
        """Return the rows of the source to read together: those of matched variants, and blocks nearby."""
        if not len(present):
            return slice(0, 0)
        low, high = int(present.min()), int(present.max()) + 1
        if self._blocks is not None and covered is not None and len(covered.used):
            # within what `extra_mem` accounts for
            room = self._blocks.slab_rows(covered.rows.shape[1])
            near = covered.used[(covered.used >= low - room // 2) & (covered.used < high + room // 2)]
            low, high = min([low, *near[:1].tolist()]), max([high, *(near[-1:] + 1).tolist()])
        return slice(low, high)

    def _with_kept(self, values: np.ndarray, start: int, absent: np.ndarray, samples: slice | np.ndarray) -> np.ndarray:
        """Fill in the calls of kept blocks at variants that the source lacks; see `_unit`."""
        if self.kept is None or not len(absent):
            return values
        rows, store = start + absent, self.findings.index.store
        calls, missing = values[absent], self._absent(rows, np.ones(len(rows), dtype=bool))
        first, positions = int(absent[0]), arrays.read(store.position, (slice(int(rows[0]), int(rows[-1]) + 1),))
        where = store.contigs_of(rows), positions[absent - first].astype("i8")
        self.kept.put(calls, missing, rows, *where, np.arange(self.shape[1])[samples])
        values[absent] = calls
        return values

    def _with_blocks(
        self, values: np.ndarray, covered: Covering, n_alleles: np.ndarray, start: int, calls: "_Calls"
    ) -> np.ndarray:
        """Fill in the calls of reference blocks, and missing calls where there is no good one; see `_unit`."""
        assert self._blocks is not None
        variants, samples = np.nonzero(covered.rows == UNMATCHED)
        values[variants, samples] = self._absent(start + variants, np.ones(len(variants), dtype=bool))[:, 0]
        variants, samples = np.nonzero(covered.rows >= 0)
        chosen = covered.rows[variants, samples]
        slabs = chosen // self._blocks.slab_rows(values.shape[1])
        slabs[calls.has(chosen)] = -1
        for slab in np.unique(slabs).tolist():
            here = np.flatnonzero(slabs == slab)
            which = np.searchsorted(covered.used, chosen[here])
            n_theirs = covered.n_alleles[which]
            numbers = np.full((len(here), int(n_theirs.max(initial=1))), -1)
            numbers[:, 0] = 0  # REF is the store's, and the store's other alleles are unseen
            blocks = Matches(chosen[here], numbers, n_theirs, covered.unseen[which])
            rows_of = partial(calls.of_samples, chosen[here], samples[here])
            called = self._in_order(rows_of, blocks, n_alleles[variants[here]], are_blocks=True)[:, 0]
            if self.kind == "GT":  # records with ALTs are blocks, too, if a sample has a length (LEN) beyond their REF
                called = np.where(called > 0, missing_value(self.name, self.source), called)
            values[variants[here], samples[here]] = called
        return values

    def _absent(self, rows: np.ndarray, is_unmatched: np.ndarray) -> np.ndarray:
        """
        Return the calls of variants that the source lacks: rows by 1 by the axes of a call.

        Where the source has an unmatched record at the position, its samples may carry an allele of the store's
        variant, so genotypes are missing even if those of absent variants are reference.
        """
        contigs = self.findings.index.store.contigs_of(rows)
        haploid = self.findings.rules.haploid(self.findings.contigs)
        is_reference = ~is_unmatched & (self.findings.rules.absent == "reference")
        return absent_calls(self.name, self.source, self.like, is_reference, np.isin(contigs, haploid))

    def _in_order(
        self, rows_of: Callable[[AnyArray], np.ndarray], mine: Matches, n_ours: np.ndarray, *, are_blocks: bool = False
    ) -> np.ndarray:
        """
        Return the calls of matched variants, re-ordered where alleles have other indices or the store has more.

        `rows_of` reads the rows of `mine` from an array; `n_ours` is the number of alleles of each in the store. The
        values of a block's ALTs are those of no allele of the store, even if it has no unseen allele.
        """
        slab = rows_of(self.source)
        result = self._lengthened(slab)
        if self.kind == "GT":
            result = result.astype(self.dtype, copy=False)
            rows = np.flatnonzero(mine.changed)
            numbers, values = mine.alleles[rows], result[rows]
            per_row = (-1, *[1] * (values.ndim - 1))
            # invalid allele indices stay, so that the error remains visible; so do missing and fill
            shifts = np.where(numbers >= 0, numbers - np.arange(numbers.shape[1]), 0).astype(values.dtype)
            for allele in np.flatnonzero(shifts.any(axis=0)):
                result[rows] += (values == allele) * shifts[:, allele].reshape(per_row)
            if (mine.unseen >= 0).any():  # <NON_REF> stands for any allele
                is_unseen = (values == mine.unseen[rows].reshape(per_row)) & (values > 0)
                result[rows] = np.where(is_unseen, missing_value(self.name, self.source), result[rows])
        elif self.kind and len(changed := np.flatnonzero(mine.changed | (mine.n_alleles != n_ours) | are_blocks)):
            result = result.copy() if result is slab else result
            genotype = None if self.genotype is None else rows_of(self.genotype)[changed]
            theirs, field = mine.cut(changed), field_of(self.name, self.source, self.kind)
            result[changed] = field.reorder(
                slab[changed],
                theirs.alleles,
                (theirs.n_alleles, n_ours[changed]),
                theirs.unseen,
                self.like.shape[-1],
                genotype,
            )
        return result

    def _lengthened(self, slab: np.ndarray) -> np.ndarray:
        """Cut or pad the last axes, beyond samples, to the store's lengths; padding is fill."""
        trailing = self.like.shape[2:]
        if slab.shape[2:] == trailing:
            return slab
        result = np.full((*slab.shape[:2], *trailing), fill_value(self.name, self.source), dtype=slab.dtype)
        both = tuple(slice(0, min(a, b)) for a, b in zip(slab.shape[2:], trailing, strict=True))
        result[(slice(None), slice(None), *both)] = slab[(slice(None), slice(None), *both)]
        return result
