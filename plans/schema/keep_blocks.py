"""Keep blocks: the reference blocks of a gVCF as arrays of its samples, as `plans.variants.kept_blocks` has them."""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import numpy as np
from zarr.types import AnyArray

from plans.core.memory import Memory
from plans.core.model import Survey
from plans.core.views import like_source
from plans.schema.fitting import ComputedView
from plans.schema.layout import Fields, Layout, base_of, field_of, named
from plans.variants.block_calls import BlockRecords
from plans.variants.findings import Findings
from plans.variants.harmonise_rules import Rules
from plans.variants.kept_blocks import (
    BLOCKS,
    FIELDS,
    MAX_KEPT_PLOIDY,
    RUN_FIELDS,
    RUNS,
    contig_number,
    encode_genotypes,
    mark_left_out,
)
from plans.variants.kept_blocks import (
    DEPTH as DP,
)
from plans.variants.kept_blocks import (
    QUALITY as GQ,
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

if TYPE_CHECKING:
    from plans.core.scan_tasks import ScanReader

QUALITY, DEPTH = "call_GQ", "call_DP"
CELLS = 2**18
"""About how many records a chunk has of all its samples."""
MIN_ROWS, MAX_ROWS = 64, 2**13
"""How many records of a sample it has."""
RUNS_CHUNK = 64
"""How many runs."""
CLEVEL = 3
"""How hard they are compressed: 7, as fields are, takes ten times as long for 5 % fewer bytes."""
_HIGHEST = int(np.iinfo("i4").max)


def with_blocks(
    operation: str, vcz: Vcz, sources: Sequence[Vcz], findings: Findings | None, fields: Fields
) -> tuple[list[Vcz], Fields]:
    """
    Give gVCFs the arrays of their blocks, for a store that keeps them.

    Parameters
    ----------
    operation
        For messages.
    vcz
        The store. One that keeps the blocks of some samples keeps those of all that come with any.
    sources, findings
        What comes in, and how it is harmonised; None if it is not.
    fields
        What is done about fields that the store or a source lacks.

    Returns
    -------
    sources, fields
        The same, with these arrays. Those that a source keeps itself tell that some of its variants are left out.

    Raises
    ------
    IncompatibleError
        If a source has blocks that cannot be kept.
    """
    if findings is None or named(BLOCKS, fields.drop):
        return list(sources), fields
    if not findings.rules.gvcf:
        return [_with_left_out(vcz, source, i, findings) for i, source in enumerate(sources)], fields
    if not findings.rules.keep_blocks and BLOCKS not in vcz.arrays:
        return list(sources), fields
    known = [vcz.arrays[name].shape[1] if name in vcz.arrays else 0 for name in (BLOCKS, RUNS)]
    longest = (
        max(known[0], *(source.n_variants for source in sources)),
        max(known[1], *(len(site.runs) for site in findings.index.sources)),
    )
    made = [_with_blocks(operation, vcz, s, i, findings, fields, longest) for i, s in enumerate(sources)]
    return made, replace(fields, add=(*fields.add, BLOCKS, RUNS))


def without_lengths(sources: Sequence[Vcz], rules: Rules) -> list[Vcz]:
    """Sources without the lengths of reference blocks (VCF 4.5's LEN), which say nothing of variants."""
    if not rules.gvcf:
        return list(sources)
    return [replace(s, arrays={n: a for n, a in s.arrays.items() if base_of(n) != LEN}) for s in sources]


def _with_left_out(vcz: Vcz, source: Vcz, number: int, findings: Findings) -> Vcz:
    """A source that may keep blocks itself, marked as one that has other variants if some of its own are left out."""
    kept, (n_left_out, _) = source.arrays.get(BLOCKS), findings.first_unmatched(number)
    if kept is None or not n_left_out:
        return source
    like = like_source(vcz.arrays.get(BLOCKS, kept), kept, kept.shape)
    marked = cast("AnyArray", LeftOut(kept, like, BLOCKS))
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
    """One source with these arrays, `longest` being how many records and runs any has."""
    site, (n_left_out, _) = findings.index.sources[number], findings.first_unmatched(number)
    calls = {name: array for name, array in source.samples_arrays.items() if not named(name, fields.drop)}
    _check(operation, source, site, calls)
    table, n_samples = _runs(source, site, findings.contigs), int(source.arrays[SAMPLE_ID].shape[0])
    blocks = _like(vcz, source, BLOCKS, "i4", (n_samples, longest[0], len(FIELDS)))
    runs = _like(vcz, source, RUNS, "i8", (n_samples, longest[1], len(RUN_FIELDS)))
    of_calls = tuple(calls.get(name) for name in ("call_genotype_phased", QUALITY, DEPTH))
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
        Naming what cannot.
    """
    for name in (QUALITY, DEPTH):
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
    """The runs of a source, as `RUN_FIELDS` have them."""
    assert site.blocks is not None
    names = source.table("contig_id").tolist()
    known = {
        number: contig_number(contigs[number] if number >= 0 else names[-1 - number])
        for number in np.unique(site.runs[:, 0]).tolist()
    }
    numbers = [known[number] for number in site.runs[:, 0].tolist()]
    first, stop, start, reach = site.runs[:, 1], site.runs[:, 2], site.runs[:, 3], site.blocks.runs[:, 3]
    return np.stack([first, stop, np.array(numbers, dtype="i8"), start, reach], axis=1)


def _like(vcz: Vcz, source: Vcz, name: str, dtype: str, shape: tuple[int, ...]) -> AnyArray:
    """An array of a source as the store has it, or will: whole chunks, so that it rarely becomes longer."""
    array = vcz.arrays.get(name)
    if array is None:
        width = vcz.chunk_lengths[SAMPLES]
        height = RUNS_CHUNK if name == RUNS else _height(width)
        what = "reference_blocks" if name == BLOCKS else "reference_blocks_runs"
        array = conversion.new(
            name,
            shape=(0, 0, shape[2]),
            dtype=dtype,
            chunks=(width, height, 1 if name == BLOCKS else shape[2]),
            dimension_names=(SAMPLES, what, f"{what}_fields"),
            zarr_format=vcz.zarr_format,
            fill_value=INT_FILL,
            attributes={"fields": list(FIELDS if name == BLOCKS else RUN_FIELDS)},
            clevel=CLEVEL,
        )
    height = arrays.outer_chunks(array)[1]
    shape = (shape[0], -(-max(1, shape[1]) // height) * height, shape[2])
    return like_source(array, source.arrays[SAMPLE_ID], shape)


def _height(width: int) -> int:
    """How many records a chunk has of a sample, with so many samples: a power of two."""
    return min(MAX_ROWS, max(MIN_ROWS, 1 << int(math.log2(max(1, CELLS / width)))))


# ---- what they tell -------------------------------------------------------------------------


def look_up_highest(
    operation: str, vcz: Vcz, keepers: Sequence[Vcz], memory: Memory
) -> Generator[Survey, list[list[Any]], dict[str, int]]:
    """
    Look up the highest values of kept blocks that may become calls of a store.

    Parameters
    ----------
    operation, vcz, memory
        For messages; the store; what a task may use.
    keepers
        The VCZs whose blocks tell calls.

    Returns
    -------
    dict
        By the names of arrays; nothing of those that have room for all.
    """
    narrow = [n for n in (QUALITY, DEPTH) if n in vcz.arrays and not np.can_cast("i4", vcz.arrays[n].dtype)]
    scans = [HighestKept(one.arrays[BLOCKS], one.n_samples) for one in keepers if BLOCKS in one.arrays]
    if not narrow or not scans:
        return {}
    found = yield Survey(operation, tuple(scans), memory)
    highest = np.array([values for items in found for values in items]).reshape(-1, 2).max(axis=0, initial=-1)
    return {name: n for name, n in zip((QUALITY, DEPTH), highest.tolist(), strict=True) if name in narrow}


def with_room(layout: Layout, highest: Mapping[str, int]) -> Layout:
    """A layout whose integers hold the highest values of blocks."""
    forms = dict(layout.forms)
    for name, n in highest.items():
        if name in forms:
            forms[name] = replace(forms[name], dtype=room_for(forms[name].dtype, n))
    return replace(layout, forms=forms)


def room_for(dtype: np.dtype, highest: int) -> np.dtype:
    """
    The dtype of integers that holds a value, too; of other values it is the same.

    >>> room_for(np.dtype("i1"), 300), room_for(np.dtype("i2"), -1), room_for(np.dtype("f4"), 300)
    (dtype('int16'), dtype('int16'), dtype('float32'))
    """
    return np.promote_types(dtype, np.min_scalar_type(-1 - max(0, highest))) if dtype.kind in "iu" else dtype


@dataclass(frozen=True)
class HighestKept:
    """The highest GQ and DP of kept blocks, looked up in tasks for some samples each."""

    blocks: AnyArray
    n_samples: int

    def look(self, samples: slice) -> tuple[int, int]:
        """Those of some samples, one chunk after the other."""
        quality, depth = (
            max(
                int(arrays.read(self.blocks, (samples, rows, slice(field, field + 1))).max(initial=-1))
                for rows in arrays.cuts(self.blocks)[1].spans()
            )
            for field in (GQ, DP)
        )
        return quality, depth

    def by_cubed(self, memory: Memory, tag: int) -> "list[ScanReader]":
        """A task for each chunk of samples."""
        from plans.core import scan_tasks

        if not self.n_samples or not self.blocks.shape[1]:
            return []
        mem = 2 * arrays.decode_mem(self.blocks, 2)
        return [scan_tasks.ScanReader(self.look, self.n_samples, arrays.outer_chunks(self.blocks)[0], tag, mem)]


# ---- arrays ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class LeftOut(ComputedView):
    """Blocks that another store keeps, some of whose variants are left out."""

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Read a region, and mark its genotypes."""
        if all(isinstance(r, slice) for r in region):
            values = arrays.read(self.source, cast("tuple[slice, ...]", region))
        else:
            values = arrays.read_at(self.source, region)
        return mark_left_out(values, np.arange(self.shape[-1])[region[2]])


@dataclass(frozen=True)
class _SourceView(ComputedView):
    """An array of a gVCF that it has not stored."""

    @property
    def widths(self) -> tuple[Width, ...]:
        """The store's, but all fields are made together."""
        return (*arrays.widths(self.like)[:2], self.shape[2])


@dataclass(frozen=True)
class SourceRuns(_SourceView):
    """
    The runs of a gVCF, which are those of each of its samples.

    Attributes
    ----------
    table : numpy.ndarray of int64
        Runs by `RUN_FIELDS`.
    """

    table: np.ndarray

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Some of them, for some samples."""
        samples, rows, fields = region
        table = np.full(self.shape[1:], INT_FILL, dtype=self.dtype)
        table[: len(self.table)] = self.table
        values = table[rows, fields]
        return np.broadcast_to(values, (len(np.arange(self.shape[0])[samples]), *values.shape)).copy()


@dataclass(frozen=True)
class SourceBlocks(_SourceView):
    """
    The records of a gVCF, sample by sample.

    Attributes
    ----------
    token
        Names the source in the memory of a process.
    site
        The source.
    n_rows
        How many records there are.
    are_all_in
        Whether all its variants are in the store.
    phased, quality, depth
        Which genotypes are phased, GQ and DP; None if it has none.
    """

    token: str
    site: Sites
    n_rows: int
    are_all_in: bool
    phased: AnyArray | None
    quality: AnyArray | None
    depth: AnyArray | None

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Some fields of some records of some samples."""
        samples, rows, fields = region
        assert isinstance(rows, slice)
        start, stop, _ = rows.indices(self.shape[1])
        inside = slice(min(start, self.n_rows), min(stop, self.n_rows))
        who = np.arange(self.shape[0])[samples]
        result = np.full((len(who), stop - start, len(FIELDS)), INT_FILL, dtype=self.dtype)
        if inside.start < inside.stop and len(who):
            key = (self.token, inside.start, inside.stop, who.tobytes())
            result[:, : inside.stop - inside.start] = _cache.get(key, lambda: self._records(inside, samples))
        return result[..., fields]

    def _records(self, rows: slice, samples: slice | np.ndarray) -> np.ndarray:
        """All fields of some records, samples by records by fields."""
        blocks = self.site.blocks
        assert blocks is not None
        found = BlockRecords.read(self.site, blocks, rows, samples)
        order = np.argsort(found.rows)
        n_samples = len(np.arange(self.shape[0])[samples])
        shape = rows.stop - rows.start, n_samples
        variant_ends = np.where(found.is_variant, found.own_ends, INT_MISSING)[order, np.newaxis]
        is_good = np.broadcast_to(found.is_good[order], shape)
        alleles = (
            np.ones((*shape, 1), dtype="i1")  # called, with unknown alleles
            if blocks.genotype is None
            else read_calls(blocks.genotype, rows, samples)
        )
        is_phased = np.zeros(shape, dtype=bool) if self.phased is None else read_calls(self.phased, rows, samples)
        planes = [
            found.begins[order, np.newaxis],
            np.minimum(found.ends[order], _HIGHEST),
            np.minimum(variant_ends, _HIGHEST),
            encode_genotypes(alleles, is_phased, is_good, are_all_in=self.are_all_in),
            *(_first_values(array, rows, samples) for array in (self.quality, self.depth)),
        ]
        result = np.empty((len(FIELDS), n_samples, shape[0]), dtype="i4")
        for mine, plane in zip(result, planes, strict=True):
            mine[...] = np.broadcast_to(plane, shape).T
        return np.moveaxis(result, 0, -1)

    def extra_mem(self, block: tuple[int, ...]) -> int:
        """What it takes to make some records: what they are read from, and all their fields."""
        blocks, n_samples, span = self.site.blocks, block[0], min(block[1], self.n_rows)
        assert blocks is not None
        calls = [blocks.genotype, blocks.genotype, blocks.quality, self.phased, self.quality, self.depth]
        calls += [self.site.spans.fields.get("call_LEN")]
        read = n_samples * sum(read_bytes(array, span) for array in calls)
        sites = [self.site.allele, self.site.position, *self.site.spans.fields.values()]
        sites += list(self.site.extents.fields.values())
        decoding = sum(read_bytes(array, span) for array in sites if array.ndim == 1 or array is self.site.allele)
        made = (VECTOR_BYTES + 3 * 4 * len(FIELDS)) * n_samples * span
        return read + made + 4 * decoding + 2 * KEPT_BYTES


_cache: UnitCache[np.ndarray] = UnitCache()


def _first_values(array: AnyArray | None, rows: slice, samples: slice | np.ndarray) -> np.ndarray:
    """The first value of each call, records by samples; missing where there is no such field."""
    if array is None:
        return np.full((1, 1), INT_MISSING)
    values = read_calls(array, rows, samples)
    return values.reshape(*values.shape[:2], -1)[:, :, 0]
