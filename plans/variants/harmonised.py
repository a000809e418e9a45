"""Harmonise: what a source has, expressed over the variants and alleles of a store.

Nothing is stored in between. `Harmonised` is an array of a source as the store would have it, and an append reads it
as any other: rows are found through the `Index`, and values that go by allele are put in order. Chunks in which
nothing changes are copied as they are.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import Columns
from plans.core.views import View, like_source
from plans.variants.block_calls import Covering, covering
from plans.variants.dropped_fields import Dropped
from plans.variants.field_numbers import ALLELE_NUMBERS, GENOTYPE, field_of, kind_of
from plans.variants.find_matches import UnitReport
from plans.variants.findings import Findings
from plans.variants.in_order import Field
from plans.variants.kept_blocks import KeptBlocks
from plans.variants.kept_calls import KeptCalls
from plans.variants.match_index import ABSENT, UNMATCHED, Matches
from plans.variants.misfits import VECTOR_BYTES, read_bytes
from plans.variants.reference_blocks import LEN, read_calls
from plans.variants.unit_cache import KEPT_BYTES
from vczstore.vcz import arrays, encoded_chunks, metadata, zarr_objects
from vczstore.vcz.missing import fill_value, mask_of, masked_by, missing_value
from vczstore.vcz.model import SAMPLES, Vcz, dimensions, samples_axis


def absent_calls(
    name: str, array: AnyArray, like: AnyArray, is_reference: np.ndarray, is_haploid: np.ndarray
) -> np.ndarray:
    """
    The calls of some variants that samples have no record of.

    Parameters
    ----------
    name, array
        What array they are for, and whose missing values.
    like
        The array as the store will have it, variants by samples by what a call has.
    is_reference, is_haploid
        Of which variants genotypes are the reference, and of which they have one allele.

    Returns
    -------
    numpy.ndarray
        The variants by 1 by what a call has.
    """
    missing, fill = missing_value(name, array), fill_value(name, array)
    dtype = np.promote_types(array.dtype, like.dtype) if name in ALLELE_NUMBERS else array.dtype
    values = np.full((len(is_reference), 1, *like.shape[2:]), missing, dtype=dtype)
    if not len(values):
        return values
    if dimensions(like)[-1] == "ploidy" and masked_by(name) == GENOTYPE:
        values[is_reference] = 0  # which is False, too
        values[is_haploid, :, 1:] = fill
    elif values.ndim > 2:
        values.reshape(len(values), 1, -1)[:, :, 1:] = fill
    return values


class _Calls:
    """
    The calls of some samples of a source: some of its rows are read once, of each array, others when they are wanted.

    Parameters
    ----------
    samples
        Which samples.
    together
        The rows that are read once.
    is_read_again
        Whether they are wanted more than once, so that callers get copies, which they may change.
    """

    def __init__(self, samples: slice | np.ndarray, together: slice, *, is_read_again: bool) -> None:
        self._samples, self._together, self._is_read_again = samples, together, is_read_again
        self._read: dict[int, np.ndarray] = {}

    def has(self, rows: np.ndarray) -> np.ndarray:
        """Which rows are among those that are read once."""
        return np.asarray((rows >= self._together.start) & (rows < self._together.stop))

    def of_rows(self, rows: np.ndarray, array: AnyArray) -> np.ndarray:
        """All samples at some rows."""
        slab, first = self._slab(rows, array)
        is_all = len(rows) == len(slab) and (np.diff(rows) == 1).all()
        return slab if is_all and not self._is_read_again else slab[rows - first]

    def of_samples(self, rows: np.ndarray, samples: np.ndarray, array: AnyArray) -> np.ndarray:
        """One sample at each of some rows: rows by 1 by what a call has."""
        slab, first = self._slab(rows, array)
        return np.asarray(slab[rows - first, samples][:, np.newaxis])

    def _slab(self, rows: np.ndarray, array: AnyArray) -> tuple[np.ndarray, int]:
        """Rows of an array of which these are some, and the first of them."""
        if not self.has(rows).all():
            first = int(rows.min())
            return read_calls(array, slice(first, int(rows.max()) + 1), self._samples), first
        if id(array) not in self._read:
            self._read[id(array)] = read_calls(array, self._together, self._samples)
        return self._read[id(array)], self._together.start


@dataclass(frozen=True)
class Harmonised(View):
    """
    An array of a source, over the variants and alleles of a store.

    Attributes
    ----------
    source
        The array as it is.
    like
        Its metadata as the store has them, with the source's samples.
    name
        Of the array.
    number
        Of the source, among those of the findings.
    findings
        What goes where, without the reports, which are the driver's.
    copied
        Runs of units whose chunks are those of the source: the first, the one after the last, and how much further
        down in the source they are, in chunks. It goes to every task, and a store can have a million units.
    span
        How many rows of the source a unit takes at most.
    genotype
        The source's genotypes, which tell the ploidy of each call; None if it has none.
    data
        What a mask is made of, where values are put in order: the mask alone does not say what is missing and what is
        fill, nor of how many alleles a vector is.
    kept
        What the blocks that the source keeps tell of variants that it lacks; None if nothing.
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
        """`target` is the array of the store as it will be."""
        array = source.samples_arrays[name]
        axis = samples_axis(array)
        shape = tuple(array.shape[i] if i == axis else n for i, n in enumerate(target.shape))
        like = like_source(target, array, shape)
        by_genotype = kind_of(name, array, findings.numbers) == "G"
        genotype = source.samples_arrays.get(GENOTYPE) if by_genotype and data is None else None
        genotype = None if isinstance(genotype, Dropped) else genotype  # which the source does not have
        reports = findings.by_source.get(number, [])
        sent, at = findings.of_source(number)
        blocks = KeptBlocks.of(source, f"{findings.index.token}.{number}", findings.contigs, None)
        # those of a gVCF are not stored yet, and what they tell is found in the gVCF itself
        kept = None if findings.rules.gvcf else KeptCalls.of(blocks, name, like)
        view = cls(array, like, name, at, sent, (), max((r.span for r in reports), default=0), genotype, data, kept)
        return replace(view, copied=view._copied(reports))

    @property
    def kind(self) -> str:
        """What goes by allele: ``GT`` the values, ``R``, ``A`` or ``G`` the last axis, ``""`` nothing."""
        return kind_of(self.name, self.like, self.findings.numbers) if self.data is None else self.data.kind

    @property
    def dtype(self) -> np.dtype:
        """As the source's; where values number alleles, or are those of kept blocks, one that has room for more."""
        is_wider = self.kind == "GT" or self.kept is not None
        return np.promote_types(self.source.dtype, self.like.dtype) if is_wider else self.source.dtype

    @property
    def has_blocks(self) -> bool:
        """Whether the source is a gVCF, whose reference blocks tell calls."""
        return self.findings.index.sources[self.number].blocks is not None

    def _copied(self, reports: Sequence[UnitReport]) -> tuple[tuple[int, int, int], ...]:
        mine, theirs = arrays.widths(self.like), arrays.widths(self.source)
        rows = self.findings.index.unit
        # which columns of samples are the same is told where they are put
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
        """How many chunks of some columns are copied as they are."""
        n_units = sum(stop - start for start, stop, _ in self.copied)
        return n_units * columns.n_chunks // max(1, columns.grid[0])

    def _copy_of(self, unit: int) -> int | None:
        """Which chunk of the source a unit's chunk is, if it is one."""
        at = bisect_right(self.copied, unit, key=lambda run: run[0]) - 1
        if at < 0 or unit >= self.copied[at][1]:
            return None
        return unit + self.copied[at][2]

    def get_encoded(self, coords: Sequence[Sequence[int]]) -> list[zarr_objects.Encoded]:
        """Chunks as the store will have them: those of the source, or re-created."""
        copies = [self._copy_of(c[0]) for c in coords]
        theirs = [(unit, *c[1:]) for unit, c in zip(copies, coords, strict=True) if unit is not None]
        found = encoded_chunks.get_encoded(self.source, theirs)
        encoded_chunks.check_frames(self.source, theirs, found)
        rest = iter(found)
        return [self._encode(c) if unit is None else next(rest) for unit, c in zip(copies, coords, strict=True)]

    def _encode(self, coords: Sequence[int]) -> zarr_objects.Encoded:
        region = encoded_chunks.chunk_region(self.like, coords)
        return encoded_chunks.encode(self.like, coords, region, arrays.read(cast("AnyArray", self), region))

    def extra_mem(self, block: tuple[int, ...]) -> int:
        """What it takes to make a block beside the block and the chunks it is made of."""
        size = arrays.element_bytes(cast("AnyArray", self))
        n_samples = min(self.shape[1], max(arrays.outer_chunks(self.source)[1], block[1]))
        read = n_samples * (read_bytes(self.source, self.span) + read_bytes(self.genotype, self.span))
        # one unit after the other: its values, some times over, and how many they are
        unit = min(self.shape[0], self.findings.index.unit)
        made = math.prod(self.source.shape[2:]) * (5 * unit + min(self.shape[0], block[0])) * size
        counted = VECTOR_BYTES * unit if self.kind in ("R", "A", "G") else 0
        data = 0 if self.data is None else self.data.extra_mem(block)
        looking = self.findings.index.reading_mem
        looking += 0 if self.kept is None else self.kept.reading_mem(unit, n_samples)
        return data + looking + read + n_samples * (made + counted) + self._covering_mem(n_samples)

    def _covering_mem(self, n_samples: int) -> int:
        """What it takes to find the blocks of some samples, and to read them: run by run of the source."""
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
        """Read a region: find the rows, and put in order what goes by allele."""
        if self.data is not None:
            return mask_of(self.name, self.data.name, self.data.source, self.data[region])
        rows, samples, *rest = region
        assert isinstance(rows, slice)
        parts = [self._unit(mine, n, at, samples) for mine, n, at in self._units(rows)]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return values[(slice(None), slice(None), *rest)]

    def _units(self, rows: slice) -> Any:
        for unit, here in self.findings.index.units(rows):
            yield unit.sources[self.number].cut(here), unit.n_alleles[here], unit.start + here.start

    def _unit(self, mine: Matches, n_alleles: np.ndarray, start: int, samples: slice | np.ndarray) -> np.ndarray:
        """All of some variants: `mine` are their matches, `n_alleles` their alleles, from row `start` on."""
        present = np.flatnonzero(mine.rows >= 0)
        n_samples = len(samples) if isinstance(samples, np.ndarray) else len(range(*samples.indices(self.shape[1])))
        covered = self._covering(mine, start, samples, n_samples) if self.has_blocks else None
        calls = _Calls(samples, self._together(mine.rows[present], covered), is_read_again=covered is not None)
        if len(present):
            slab = self._in_order(partial(calls.of_rows, mine.rows[present]), mine, n_alleles, present)
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

    def _covering(self, mine: Matches, start: int, samples: slice | np.ndarray, n_samples: int) -> Covering:
        rows = slice(start, start + len(mine.rows))
        return covering(self.findings.index, self.number, rows, mine.rows >= 0, samples, n_samples)

    def _slab_rows(self, n_samples: int) -> int:
        blocks = self.findings.index.sources[self.number].blocks
        assert blocks is not None
        return blocks.slab_rows(n_samples)

    def _together(self, present: np.ndarray, covered: Covering | None) -> slice:
        """The rows of the source that are read at once: those that are present, and near ones of blocks."""
        if not len(present):
            return slice(0, 0)
        low, high = int(present.min()), int(present.max()) + 1
        if covered is not None and len(covered.used):
            # no more than `extra_mem` has counted
            room = self._slab_rows(covered.rows.shape[1])
            near = covered.used[(covered.used >= low - room // 2) & (covered.used < high + room // 2)]
            low, high = min([low, *near[:1].tolist()]), max([high, *(near[-1:] + 1).tolist()])
        return slice(low, high)

    def _with_kept(self, values: np.ndarray, start: int, absent: np.ndarray, samples: slice | np.ndarray) -> np.ndarray:
        """The same values, those of blocks that the source keeps where it lacks a variant; see `_unit`."""
        if self.kept is None or not len(absent):
            return values
        rows, store = start + absent, self.findings.index.store
        told, missing = values[absent], self._absent(rows, np.ones(len(rows), dtype=bool))
        first, positions = int(absent[0]), arrays.read(store.position, (slice(int(rows[0]), int(rows[-1]) + 1),))
        where = store.contigs_of(rows), positions[absent - first].astype("i8")
        self.kept.put(told, missing, rows, *where, np.arange(self.shape[1])[samples])
        values[absent] = told
        return values

    def _with_blocks(
        self, values: np.ndarray, found: Covering, n_alleles: np.ndarray, start: int, calls: "_Calls"
    ) -> np.ndarray:
        """The same values, those of blocks where a sample's call is that of one; see `_unit`."""
        variants, samples = np.nonzero(found.rows == UNMATCHED)
        values[variants, samples] = self._absent(start + variants, np.ones(len(variants), dtype=bool))[:, 0]
        variants, samples = np.nonzero(found.rows >= 0)
        chosen = found.rows[variants, samples]
        slabs = chosen // self._slab_rows(values.shape[1])
        slabs[calls.has(chosen)] = -1
        for slab in np.unique(slabs).tolist():
            here = np.flatnonzero(slabs == slab)
            which = np.searchsorted(found.used, chosen[here])
            told = found.n_alleles[which], n_alleles[variants[here]], found.unseen[which]
            rows_of = partial(calls.of_samples, chosen[here], samples[here])
            values[variants[here], samples[here]] = self._of_blocks(rows_of, *told)[:, 0]
        return values

    def _of_blocks(
        self, rows_of: Callable[[AnyArray], np.ndarray], n_theirs: np.ndarray, n_ours: np.ndarray, unseen: np.ndarray
    ) -> np.ndarray:
        """Values of blocks, calls by 1: REF is the store's, and its other alleles were not seen."""
        slab = rows_of(self.source)
        maps = np.full((len(slab), int(n_theirs.max(initial=1))), -1, dtype="i8")
        maps[:, 0] = 0
        if self.kind != "GT":
            return self._by_allele(rows_of, slab, (maps, n_theirs, n_ours, unseen), np.ones(len(slab), dtype=bool))
        slab = self._lengthened(slab).astype(self.dtype, copy=False)
        return np.asarray(np.where(slab > 0, missing_value(self.name, self.source), slab))

    def _absent(self, rows: np.ndarray, is_unmatched: np.ndarray) -> np.ndarray:
        """
        The values of variants that the source lacks: rows by 1 by what a call has.

        Where it has a record there that matches none of the store's, its samples may well carry an allele of them:
        their genotypes are missing, also where absent ones are not.
        """
        contigs = self.findings.index.store.contigs_of(rows)
        haploid = self.findings.rules.haploid(self.findings.contigs)
        is_reference = ~is_unmatched & (self.findings.rules.absent == "reference")
        return absent_calls(self.name, self.source, self.like, is_reference, np.isin(contigs, haploid))

    def _in_order(
        self, rows_of: Callable[[AnyArray], np.ndarray], mine: Matches, n_alleles: np.ndarray, present: np.ndarray
    ) -> np.ndarray:
        """Put in order what goes by allele, where an allele has another number or the store has others."""
        slab = rows_of(self.source)
        maps, n_theirs, n_ours = mine.alleles[present], mine.n_alleles[present], n_alleles[present]
        other = mine.changed[present]
        unseen = np.full(len(present), -1) if mine.unseen is None else mine.unseen[present]
        if self.kind == "GT":
            slab = self._lengthened(slab).astype(self.dtype, copy=False)
            rows = np.flatnonzero(other)
            # an allele that the source does not have is an error, and stays visible; so do missing and fill
            shifts = np.where(maps >= 0, maps - np.arange(maps.shape[1]), 0)[rows].astype(slab.dtype)
            values = slab[rows]
            for allele in np.flatnonzero(shifts.any(axis=0)):
                slab[rows] += (values == allele) * shifts[:, allele].reshape(-1, *[1] * (slab.ndim - 1))
            if mine.unseen is not None:  # <NON_REF> stands for any allele
                is_unseen = (values == unseen[rows].reshape(-1, *[1] * (slab.ndim - 1))) & (values > 0)
                slab[rows] = np.where(is_unseen, missing_value(self.name, self.source), slab[rows])
            return slab
        return self._by_allele(rows_of, slab, (maps, n_theirs, n_ours, unseen), other | (n_theirs != n_ours))

    def _by_allele(
        self,
        rows_of: Callable[[AnyArray], np.ndarray],
        slab: np.ndarray,
        alleles: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
        is_changed: np.ndarray,
    ) -> np.ndarray:
        """
        Put vectors in the order of the store's alleles.

        Parameters
        ----------
        rows_of
            Reads the same rows of an array.
        slab
            The values.
        alleles
            For each row: what number each of its alleles has in the store, how many it has, how many the store has, and
            which of them stands for what was not seen.
        is_changed
            Which rows are not as they are.
        """
        result, changed = self._lengthened(slab), np.flatnonzero(is_changed)
        if not self.kind or not len(changed):
            return result
        result = result.copy() if result is slab else result
        genotype = None if self.genotype is None else rows_of(self.genotype)
        maps, *others = alleles
        patterns = np.concatenate([*(a[changed, None] for a in others), maps[changed]], axis=1)
        unique, which = np.unique(patterns, axis=0, return_inverse=True)
        field, width = self._field, self.like.shape[-1]
        for number, (n, m, unseen, *numbers) in enumerate(unique.tolist()):
            rows = changed[which.ravel() == number]
            own = None if genotype is None else genotype[rows]
            result[rows] = field.put_in_order(slab[rows], n, m, numbers, width, own, unseen)
        return result

    @property
    def _field(self) -> Field:
        return field_of(self.name, self.source, self.kind)

    def _lengthened(self, slab: np.ndarray) -> np.ndarray:
        """With the last axes as long as the store's; what is cut off is fill."""
        trailing = self.like.shape[2:]
        if slab.shape[2:] == trailing:
            return slab
        result = np.full((*slab.shape[:2], *trailing), fill_value(self.name, self.source), dtype=slab.dtype)
        both = tuple(slice(0, min(a, b)) for a, b in zip(slab.shape[2:], trailing, strict=True))
        result[(slice(None), slice(None), *both)] = slab[(slice(None), slice(None), *both)]
        return result
