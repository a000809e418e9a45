"""Kept reference blocks of gVCF sources, as views in the layout of `plans.variants.kept_blocks`."""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast
from uuid import uuid4

import numpy as np
from zarr.types import AnyArray

from plans.core.memory import Memory
from plans.core.model import Survey
from plans.core.scan_reader import ScanReader
from plans.core.views import like_source
from plans.schema.fitting import ComputedView
from plans.schema.layout import Fields, Layout, base_of, field_of, named
from plans.variants.block_calls import BlockRecords
from plans.variants.findings import Findings
from plans.variants.harmonise_rules import Rules
from plans.variants.kept_blocks import (
    BLOCKS,
    DEPTH,
    FIELDS,
    MAX_KEPT_PLOIDY,
    QUALITY,
    RUN_FIELDS,
    RUNS,
    contig_number,
    encode_genotypes,
    mark_left_out,
)
from plans.variants.misfits import VECTOR_BYTES, read_bytes
from plans.variants.reference_blocks import LEN, read_calls
from plans.variants.sites import Sites
from plans.variants.unit_cache import KEPT_BYTES, UnitCache
from vczstore.errors import IncompatibleError
from vczstore.vcz import arrays, conversion
from vczstore.vcz.cuts import Width
from vczstore.vcz.missing import INT_FILL, INT_MISSING
from vczstore.vcz.model import SAMPLE_ID, SAMPLES, Vcz

CALL_GQ, CALL_DP = "call_GQ", "call_DP"
CELLS = 2**18
"""Approximate number of records in a chunk: samples times rows."""
MIN_ROWS, MAX_ROWS = 64, 2**13
"""Limits of the number of rows in a chunk."""
RUNS_CHUNK = 64
"""Number of runs in a chunk."""
CLEVEL = 3
"""Compression level: 7, the level of other fields, takes ten times as long and saves 5 % of the bytes."""
_HIGHEST = int(np.iinfo("i4").max)


def with_blocks(
    operation: str, vcz: Vcz, sources: Sequence[Vcz], findings: Findings | None, fields: Fields
) -> tuple[list[Vcz], Fields]:
    """
    Add arrays of reference blocks to gVCF sources, for a store that keeps them.

    Parameters
    ----------
    operation
        Name of the operation, for error messages.
    vcz
        The store. If it has kept blocks, it keeps those of all sources that have any.
    sources, findings
        The sources, and how they are harmonised; the latter None if they are not.
    fields
        Fields to drop or add where the store or a source lacks them.

    Returns
    -------
    sources, fields
        The sources with these arrays, and `fields` with them added. If a source has kept blocks of its own and some of
        its variants are left out, its blocks are marked.

    Raises
    ------
    IncompatibleError
        If the blocks of a source cannot be kept.
    """
    if findings is None or named(BLOCKS, fields.drop):
        return list(sources), fields
    if not findings.rules.gvcf:
        return [_with_left_out(vcz, source, i, findings) for i, source in enumerate(sources)], fields
    if not findings.rules.keep_blocks and BLOCKS not in vcz.arrays:
        return list(sources), fields
    lengths = [vcz.arrays[name].shape[1] if name in vcz.arrays else 0 for name in (BLOCKS, RUNS)]
    longest = (
        max(lengths[0], *(source.n_variants for source in sources)),
        max(lengths[1], *(len(site.runs) for site in findings.index.sources)),
    )
    result = [_with_blocks(operation, vcz, s, i, findings, fields, longest) for i, s in enumerate(sources)]
    return result, replace(fields, add=(*fields.add, BLOCKS, RUNS))


def without_lengths(sources: Sequence[Vcz], rules: Rules) -> list[Vcz]:
    """Return gVCF sources without the lengths of reference blocks (LEN in VCF 4.5), which do not describe variants."""
    if not rules.gvcf:
        return list(sources)
    return [replace(s, arrays={n: a for n, a in s.arrays.items() if base_of(n) != LEN}) for s in sources]


def _with_left_out(vcz: Vcz, source: Vcz, number: int, findings: Findings) -> Vcz:
    """Return a source whose own kept blocks, if any, are marked if some of its variants are left out."""
    kept, (n_left_out, _) = source.arrays.get(BLOCKS), findings.first_unmatched(number)
    if kept is None or not n_left_out:
        return source
    like = like_source(vcz.arrays.get(BLOCKS, kept), kept, kept.shape)
    marked = cast("AnyArray", MarkedBlocks(kept, like, BLOCKS))
    return replace(source, arrays={**source.arrays, BLOCKS: marked})


def _with_blocks(
    operation: str,
    vcz: Vcz,
    source: Vcz,
    number: int,
    findings: Findings,
    fields: Fields,
    longest: tuple[int, int],
) -> Vcz:
    """Return a gVCF source with these arrays; `longest` are the maximum numbers of records and of runs per sample."""
    site, (n_left_out, _) = findings.index.sources[number], findings.first_unmatched(number)
    calls = {name: array for name, array in source.samples_arrays.items() if not named(name, fields.drop)}
    _check(operation, source, site, calls)
    table, n_samples = _runs(source, site, findings.contigs), int(source.arrays[SAMPLE_ID].shape[0])
    blocks = _like(vcz, source, BLOCKS, "i4", (n_samples, longest[0], len(FIELDS)))
    runs = _like(vcz, source, RUNS, "i8", (n_samples, longest[1], len(RUN_FIELDS)))
    of_calls = tuple(calls.get(name) for name in ("call_genotype_phased", CALL_GQ, CALL_DP))
    views = {
        BLOCKS: SourceBlocks(blocks, blocks, BLOCKS, uuid4().hex, site, source.n_variants, not n_left_out, *of_calls),
        RUNS: SourceRuns(runs, runs, RUNS, table),
    }
    return replace(source, arrays={**source.arrays, **cast("dict[str, AnyArray]", views)})


def _check(operation: str, source: Vcz, site: Sites, calls: Mapping[str, AnyArray]) -> None:
    """
    Check that the records of a source can be kept.

    Raises
    ------
    IncompatibleError
        If a dtype, the ploidy or a position exceeds what blocks can store.
    """
    for name in (CALL_GQ, CALL_DP):
        if name in calls and not np.can_cast(calls[name].dtype, "i4"):
            raise IncompatibleError(
                f"{operation}: {name} of {source.label} has dtype {calls[name].dtype}, and kept reference blocks have "
                f"integers of 32 bits; store it as int32, or leave it out with --drop-field {field_of(name)}"
            )
    genotype, last = calls.get("call_genotype"), int(site.runs[:, 4].max(initial=0))
    if genotype is not None and genotype.shape[-1] > MAX_KEPT_PLOIDY:
        raise IncompatibleError(
            f"{operation}: call_genotype of {source.label} has ploidy {genotype.shape[-1]}, and reference blocks are "
            f"kept of genotypes of up to {MAX_KEPT_PLOIDY} alleles; leave out --keep-blocks"
        )
    if last > _HIGHEST:
        raise IncompatibleError(
            f"{operation}: {source.label} has a record at position {last:,}, and reference blocks are kept of "
            f"positions up to {_HIGHEST:,}; leave out --keep-blocks"
        )


def _runs(source: Vcz, site: Sites, contigs: Sequence[str]) -> np.ndarray:
    """Return the runs of a source as a table with columns `RUN_FIELDS`."""
    assert site.blocks is not None
    names = source.table("contig_id").tolist()
    digests = {
        number: contig_number(contigs[number] if number >= 0 else names[-1 - number])
        for number in np.unique(site.runs[:, 0]).tolist()
    }
    numbers = [digests[number] for number in site.runs[:, 0].tolist()]
    first, stop, start, reach = site.runs[:, 1], site.runs[:, 2], site.runs[:, 3], site.blocks.runs[:, 3]
    return np.stack([first, stop, np.array(numbers, dtype="i8"), start, reach], axis=1)


def _like(vcz: Vcz, source: Vcz, name: str, dtype: str, shape: tuple[int, ...]) -> AnyArray:
    """Return the metadata of an array of a source, as in the store; rows are rounded up to whole chunks."""
    array = vcz.arrays.get(name)
    if array is None:
        width = vcz.chunk_lengths[SAMPLES]
        height = RUNS_CHUNK if name == RUNS else _height(width)
        dimension = "reference_blocks" if name == BLOCKS else "reference_blocks_runs"
        array = conversion.new(
            name,
            shape=(0, 0, shape[2]),
            dtype=dtype,
            chunks=(width, height, 1 if name == BLOCKS else shape[2]),
            dimension_names=(SAMPLES, dimension, f"{dimension}_fields"),
            zarr_format=vcz.zarr_format,
            fill_value=INT_FILL,
            attributes={"fields": list(FIELDS if name == BLOCKS else RUN_FIELDS)},
            clevel=CLEVEL,
        )
    height = arrays.outer_chunks(array)[1]
    shape = (shape[0], -(-max(1, shape[1]) // height) * height, shape[2])
    return like_source(array, source.arrays[SAMPLE_ID], shape)


def _height(width: int) -> int:
    """Return the number of rows in a chunk of `width` samples: a power of two."""
    return min(MAX_ROWS, max(MIN_ROWS, 1 << int(math.log2(max(1, CELLS / width)))))


# ---- values of blocks -----------------------------------------------------------------------


def look_up_highest(
    operation: str, vcz: Vcz, keepers: Sequence[Vcz], memory: Memory
) -> Generator[Survey, list[list[Any]], dict[str, int]]:
    """
    Survey the highest GQ and DP of the blocks kept by some VCZs, which may become calls of a store.

    Returns
    -------
    dict
        The highest value by name of the array; arrays that can hold any value of a block are left out.
    """
    narrow = [n for n in (CALL_GQ, CALL_DP) if n in vcz.arrays and not np.can_cast("i4", vcz.arrays[n].dtype)]
    scans = [HighestKept(keeper.arrays[BLOCKS], keeper.n_samples) for keeper in keepers if BLOCKS in keeper.arrays]
    if not narrow or not scans:
        return {}
    results = yield Survey(operation, tuple(scans), memory)
    highest = np.array([values for items in results for values in items]).reshape(-1, 2).max(axis=0, initial=-1)
    return {name: n for name, n in zip((CALL_GQ, CALL_DP), highest.tolist(), strict=True) if name in narrow}


def with_room(layout: Layout, highest: Mapping[str, int]) -> Layout:
    """Return a layout whose integer dtypes can hold the highest values of kept blocks."""
    forms = dict(layout.forms)
    for name, n in highest.items():
        if name in forms:
            forms[name] = replace(forms[name], dtype=room_for(forms[name].dtype, n))
    return replace(layout, forms=forms)


def room_for(dtype: np.dtype, highest: int) -> np.dtype:
    """
    Return the integer dtype that can also hold a value; dtypes of other kinds are returned unchanged.

    >>> room_for(np.dtype("i1"), 300), room_for(np.dtype("i2"), -1), room_for(np.dtype("f4"), 300)
    (dtype('int16'), dtype('int16'), dtype('float32'))
    """
    return np.promote_types(dtype, np.min_scalar_type(-1 - max(0, highest))) if dtype.kind in "iu" else dtype


@dataclass(frozen=True)
class HighestKept:
    """Scan that finds the highest GQ and DP of kept blocks."""

    blocks: AnyArray
    n_samples: int

    def look(self, samples: slice) -> tuple[int, int]:
        """Return the highest GQ and DP of some samples, reading chunk by chunk."""
        quality, depth = (
            max(
                int(arrays.read(self.blocks, (samples, rows, slice(field, field + 1))).max(initial=-1))
                for rows in arrays.cuts(self.blocks)[1].spans()
            )
            for field in (QUALITY, DEPTH)
        )
        return quality, depth

    def readers(self, memory: Memory) -> list[ScanReader]:
        """Scan with one task per chunk of samples."""
        n = self.n_samples if self.blocks.shape[1] else 0
        return [ScanReader(self.look, n, arrays.outer_chunks(self.blocks)[0], 2 * arrays.decode_mem(self.blocks, 2))]


# ---- arrays ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class MarkedBlocks(ComputedView):
    """View of the kept blocks of a source, marked as coming from a source whose variants are not all in the store."""

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Read a region, and set the mark in its genotype codes."""
        return mark_left_out(arrays.read(self.source, region), np.arange(self.shape[-1])[region[2]])


@dataclass(frozen=True)
class _SourceView(ComputedView):
    """View of an array that is computed from the records of a gVCF."""

    @property
    def widths(self) -> tuple[Width, ...]:
        """Chunk widths of the store's array, except that all fields are computed together."""
        return (*arrays.widths(self.like)[:2], self.shape[2])


@dataclass(frozen=True)
class SourceRuns(_SourceView):
    """
    View of the runs of a gVCF, which are the same for all of its samples.

    Attributes
    ----------
    table : numpy.ndarray of int64
        Runs, with columns `RUN_FIELDS`.
    """

    table: np.ndarray

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Read some fields of some runs, for some samples."""
        samples, rows, fields = region
        table = np.full(self.shape[1:], INT_FILL, dtype=self.dtype)
        table[: len(self.table)] = self.table
        values = table[rows, fields]
        return np.broadcast_to(values, (len(np.arange(self.shape[0])[samples]), *values.shape)).copy()


@dataclass(frozen=True)
class SourceBlocks(_SourceView):
    """
    View of the records of a gVCF, sample by sample.

    Attributes
    ----------
    token
        Cache key of the source.
    site
        The records of the source.
    n_rows
        Number of records.
    are_all_in
        Whether all variants of the source are in the store.
    phased, quality, depth
        ``call_genotype_phased``, ``call_GQ`` and ``call_DP`` of the source; None if it lacks them.
    """

    token: str
    site: Sites
    n_rows: int
    are_all_in: bool
    phased: AnyArray | None
    quality: AnyArray | None
    depth: AnyArray | None

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Read some fields of some records, for some samples."""
        samples, rows, fields = region
        assert isinstance(rows, slice)
        start, stop, _ = rows.indices(self.shape[1])
        inside = slice(min(start, self.n_rows), min(stop, self.n_rows))
        positions = np.arange(self.shape[0])[samples]
        result = np.full((len(positions), stop - start, len(FIELDS)), INT_FILL, dtype=self.dtype)
        if inside.start < inside.stop and len(positions):
            key = (self.token, inside.start, inside.stop, positions.tobytes())
            result[:, : inside.stop - inside.start] = _cache.get(key, lambda: self._records(inside, samples))
        return result[..., fields]

    def _records(self, rows: slice, samples: slice | np.ndarray) -> np.ndarray:
        """Return all fields of some records; shape samples x records x fields."""
        blocks = self.site.blocks
        assert blocks is not None
        records = BlockRecords.read(self.site, blocks, rows, samples)
        order = np.argsort(records.rows)
        n_samples = len(np.arange(self.shape[0])[samples])
        shape = rows.stop - rows.start, n_samples
        variant_ends = np.where(records.is_variant, records.own_ends, INT_MISSING)[order, np.newaxis]
        is_good = np.broadcast_to(records.is_good[order], shape)
        alleles = (
            np.ones((*shape, 1), dtype="i1")  # called, with unknown alleles
            if blocks.genotype is None
            else read_calls(blocks.genotype, rows, samples)
        )
        is_phased = np.zeros(shape, dtype=bool) if self.phased is None else read_calls(self.phased, rows, samples)
        planes = [
            records.begins[order, np.newaxis],
            np.minimum(records.ends[order], _HIGHEST),
            np.minimum(variant_ends, _HIGHEST),
            encode_genotypes(alleles, is_phased, is_good, are_all_in=self.are_all_in),
            *(_first_values(array, rows, samples) for array in (self.quality, self.depth)),
        ]
        result = np.empty((len(FIELDS), n_samples, shape[0]), dtype="i4")
        for target, plane in zip(result, planes, strict=True):
            target[...] = np.broadcast_to(plane, shape).T
        return np.moveaxis(result, 0, -1)

    def extra_mem(self, block: tuple[int, ...]) -> int:
        """Return the memory to compute some records: the calls and sites that are read, and all fields."""
        blocks, n_samples, span = self.site.blocks, block[0], min(block[1], self.n_rows)
        assert blocks is not None
        calls = [blocks.genotype, blocks.genotype, blocks.quality, self.phased, self.quality, self.depth]
        calls += [self.site.spans.fields.get("call_LEN")]
        of_calls = n_samples * sum(read_bytes(array, span) for array in calls)
        sites = [self.site.allele, self.site.position, *self.site.spans.fields.values()]
        sites += list(self.site.extents.fields.values())
        decoding = sum(read_bytes(array, span) for array in sites if array.ndim == 1 or array is self.site.allele)
        of_records = (VECTOR_BYTES + 3 * 4 * len(FIELDS)) * n_samples * span
        return of_calls + of_records + 4 * decoding + 2 * KEPT_BYTES


_cache: UnitCache[np.ndarray] = UnitCache()


def _first_values(array: AnyArray | None, rows: slice, samples: slice | np.ndarray) -> np.ndarray:
    """Return the first value of each call, records x samples; missing, of shape 1 x 1, if there is no such field."""
    if array is None:
        return np.full((1, 1), INT_MISSING)
    values = read_calls(array, rows, samples)
    return values.reshape(*values.shape[:2], -1)[:, :, 0]
