"""Create: a store without samples, over the union of the variants of all sources.

The variants of the sources are sorted, so the genome can be cut into ranges of positions that are merged independently.
This takes three rounds of tasks:

1. check the order of each source, and sample its position every `SEGMENT_ROWS` variants or more; the driver then cuts
   the genome into ranges whose variants, of all sources together, fit into the memory of a task;
2. count the records of the union in each range; the driver then knows which ranges make up each chunk of the store;
3. write whole chunks.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.storage import MemoryStore
from zarr.types import AnyArray

from plans.core.chunk_grid import MIN_TASKS
from plans.core.compatibility import SITE_FIELDS, check_builds
from plans.core.memory import SLACK, Memory
from plans.core.model import START_OVER, Plan, Survey
from plans.core.scan_reader import ScanReader
from plans.variants.reference_blocks import FindBlocks, refusal
from plans.variants.region_index import region_index
from plans.variants.sortedness import FindRuns
from plans.variants.union_of_sources import (
    ALLELE,
    CONTIG,
    FILTER,
    ID,
    ID_MASK,
    OPERATION,
    POSITION,
    SEGMENT_ROWS,
    SEGMENTS,
    Counted,
    SourceSites,
    Union,
    counting,
    source_sites,
)
from plans.variants.union_sites import union_table
from vczstore.choices import DEFAULT_SAMPLES_CHUNK, FLEXIBLE, REGULAR
from vczstore.errors import IncompatibleError, OptionError, UnsuitableError, VczstoreError
from vczstore.execution.operations import Stages
from vczstore.stores.base import Store
from vczstore.stores.edits import MetadataEdit, WriteArray, WriteDocuments
from vczstore.vcz import arrays, conversion, vcf_headers
from vczstore.vcz.extents import END, LENGTH, SVLEN, one_size
from vczstore.vcz.missing import TEXT
from vczstore.vcz.model import BATCH, SAMPLE_ID, SAMPLES, VARIANTS, Vcz, dimensions, listing

if TYPE_CHECKING:
    import cubed
    from zarr.abc.store import Store as ZarrStore

    from plans.core.xarray_backend import Opened

ONLY_CUBED = "create: there is one implementation, cubed; leave impl out"


def compile_create(
    store: Store,
    sources: Sequence[Vcz],
    memory: Memory,
    *,
    variants_chunk: int | None = None,
    samples_chunk: int | None = None,
    gvcf: bool = False,
    sample_grid: str = REGULAR,
    info: Sequence[str] = (),
    provenance: bool = False,
) -> Stages:
    """
    Compile a store over the union of the variants of some sources, in stages.

    Parameters
    ----------
    store
        The destination.
    sources
        VCZs; where they disagree, the first one has precedence.
    memory
        Memory limits of a task.
    variants_chunk, samples_chunk
        The chunk lengths of the store; None for those of `chunk_lengths`.
    gvcf
        Whether the sources are gVCFs, whose reference blocks are not variants.
    sample_grid
        One of `vczstore.choices.SAMPLE_GRIDS`.
    info
        INFO fields of one value per variant to include.
    provenance
        Whether the store records by which append each sample was added.

    Raises
    ------
    VczstoreError
        If sources are incompatible with each other, or are not sorted.
    """
    # 1. from metadata: the arrays of the store
    if not sources:
        raise VczstoreError(f"{OPERATION}: no sources given; name the VCZs whose variants come in")
    for source in sources:
        source.require_whole(OPERATION, edited=False)
    attributes, tables = _attributes(sources), _tables(sources)
    lengths = chunk_lengths(sources)
    info_arrays, chunk = _info_arrays(sources, info), variants_chunk or lengths[VARIANTS]
    sites = source_sites(sources, is_gvcf=gvcf, info=list(info_arrays))
    targets = _targets(sources, len(tables["contig_id"]), chunk, _widest(sources), info_arrays)

    # 2. from positions: the order of each source, and the ranges
    step = max(SEGMENT_ROWS, math.ceil(sum(s.n_variants for s in sources) / SEGMENTS))
    scans = [FindRuns(OPERATION, source, step) for source in sources]
    blocks = [FindBlocks(OPERATION, source, step) for source in sources if gvcf]
    results = yield Survey(OPERATION, (*scans, *blocks), memory)
    segments = [s.segments(scan.joined(runs)) for s, scan, runs in zip(sites, scans, results, strict=False)]
    for scan_blocks, found in zip(blocks, results[len(scans) :], strict=True):
        scan_blocks.joined(found)  # raises an error if the source is not a gVCF
    union = Union.of(sites, segments, _block_mem(targets, chunk), memory)

    # 3. from alleles: the number of records in each range
    (counted,) = yield Survey(OPERATION, (counting(union),), memory)
    counts, n_alleles = _counted(sources, [Counted(*item) for item in counted])
    if not gvcf:
        n_alleles = max(n_alleles, _widest(sources))
    stops = np.concatenate([[0], np.cumsum(counts)])

    # 4. the store; the document of the root group is written last, since readers find no store without it
    n_variants = int(stops[-1])
    targets = _targets(sources, len(tables["contig_id"]), chunk, n_alleles, info_arrays)
    targets = {name: arrays.planned(a, shape=(n_variants, *a.shape[1:])) for name, a in targets.items()}
    write = WriteSites.of(union, stops, targets, chunk, memory)
    filters = _new(FILTER, (n_variants, len(tables["filter_id"])), "bool", (VARIANTS, "filters"), chunk)
    # the first append creates the calls with the chunks of these arrays
    width = samples_chunk or lengths[SAMPLES]
    kinds = {**({BATCH: "i4"} if provenance else {}), SAMPLE_ID: "string"}
    by_sample = [_new(name, (0,), dtype, (SAMPLES,), width) for name, dtype in kinds.items()]
    if sample_grid == FLEXIBLE:
        by_sample = [arrays.with_columns(array, 0, (), if_empty=width) for array in by_sample]
    small = [_filled(name, values) for name, values in tables.items()]
    members = {a.path: a for a in (*targets.values(), filters, *by_sample, *(edit.array for edit in small))}
    root = {"zarr_format": 3, "node_type": "group", "attributes": attributes}

    def conclude(index_rows: Sequence[np.ndarray]) -> list[MetadataEdit]:
        rows = np.concatenate([np.empty((0, 6), dtype="i8"), *index_rows])
        dtype = targets[POSITION].dtype
        index = np.minimum(rows[np.lexsort((rows[:, 1], rows[:, 0]))], np.iinfo(dtype).max)  # ends may be too large
        return [
            _filled("region_index", index.astype(dtype)),
            *map(WriteDocuments.of, by_sample),
            WriteDocuments({"zarr.json": root}),
        ]

    # the filters of all variants are False, which is the fill value, so no chunks are written
    documents = [WriteDocuments.of(a) for a in (*targets.values(), filters)]
    return Plan(
        operation=OPERATION,
        store=store,
        base="",
        checks=(),
        writes=(write,) if n_variants else (),
        preparations=(*documents, *small),
        edits=(),
        conclude=conclude,
        memory=memory,
        after=Vcz(store.label, MemoryStore(), dict(sorted(members.items())), attributes, 3, None, np.empty(0, "O")),
        if_stopped="nothing there reads as a store",
        way_out=START_OVER,
        counts={"sources": len(sources), "variants": n_variants},
    )


def _counted(sources: Sequence[Vcz], ranges: Sequence[Counted]) -> tuple[np.ndarray, int]:
    """The number of records in each range, and the maximal number of alleles. Raise an error for reference blocks."""
    blocks = sorted(block for r in ranges for block in r.blocks)
    if blocks:
        source, row = blocks[0]
        raise refusal(OPERATION, sources[source], row)
    counts = np.array([r.records for r in sorted(ranges)], dtype="i8")
    return counts, max((r.most_alleles for r in ranges), default=1)


def _widest(sources: Sequence[Vcz]) -> int:
    """The length of the longest alleles dimension of the sources."""
    return max(s.arrays[ALLELE].shape[1] for s in sources)


def left_out_note(sources: Sequence[Vcz], created: Vcz) -> str:
    """A note that lists the variant fields of the sources that a store created from them lacks; empty if none."""
    vcf_names = {"variant_quality": "QUAL", FILTER: "FILTER"}
    fields = dict.fromkeys(
        vcf_names.get(name) or f"INFO/{name.removeprefix('variant_')}"
        for source in sources
        for name, array in source.arrays.items()
        if name.startswith("variant_") and VARIANTS in dimensions(array) and not name.endswith("_mask")
        if name == FILTER or name not in created.arrays
    )
    of_vcfs = ["INFO of VCFs"] if any(source.file is not None for source in sources) else []
    left_out = sorted(fields, key=lambda name: (name.startswith("INFO/"), name != "QUAL")) + of_vcfs
    return f"left out: {listing(left_out, 20)}; to keep them, use init" if left_out else ""


# ---- from metadata --------------------------------------------------------------------------


def _attributes(sources: Sequence[Vcz]) -> dict[str, Any]:
    """
    The attributes of the root group.

    The VCF header has the lines that all sources share, in the order of the first, without lines that may name samples.
    """
    versions = [str(v) for s in sources if (v := s.attributes.get("vcf_zarr_version")) is not None]
    attributes: dict[str, Any] = {"vcf_zarr_version": versions[0]} if versions else {}
    for source in sources:
        version = source.attributes.get("vcf_zarr_version", versions[0] if versions else None)
        if versions and str(version) != versions[0]:
            raise IncompatibleError(
                f"{OPERATION}: {source.label} has vcf_zarr_version {listing([version])}, others have "
                f"{listing(versions[:1])}; "
                "convert all sources with one version"
            )
    programs = [s.attributes.get("source") for s in sources]
    if programs[0] is not None and all(text == programs[0] for text in programs):
        attributes["source"] = programs[0]
    if all(vcf_headers.LINES in s.attributes for s in sources):
        first, *others = [vcf_headers.without_samples(s.attributes)[vcf_headers.LINES] for s in sources]
        common = set(map(json.dumps, first)).intersection(*(map(json.dumps, lines) for lines in others))
        attributes[vcf_headers.LINES] = [line for line in first if json.dumps(line) in common]
    return attributes


def _tables(sources: Sequence[Vcz]) -> dict[str, np.ndarray]:
    """The lookup tables of variants: the contigs and filters of all sources."""
    for source in sources:
        for name in (*SITE_FIELDS, "contig_id"):
            if not source.has_table(name):
                raise IncompatibleError(
                    f"{OPERATION}: {source.label} has no {name}, so its variants cannot be merged; "
                    "re-create it with vcf2zarr"
                )
    contigs, _ = union_table([s.table("contig_id").tolist() for s in sources])
    tables = {"contig_id": np.array(contigs, dtype="T")}
    lengths = check_builds(OPERATION, sources)
    if contigs and all(contig in lengths for contig in contigs):
        tables["contig_length"] = np.array([lengths[contig] for contig in contigs], dtype="i8")
    filters: dict[str, str] = {}
    for source in sources:
        if source.has_table("filter_id"):
            ids = source.table("filter_id")
            has_text = "filter_description" in source.arrays
            texts = source.table("filter_description") if has_text else [""] * len(ids)
            for name, text in zip(ids, texts, strict=True):
                filters[name] = filters.get(name) or text
    filters = filters or {"PASS": "All filters passed"}
    tables["filter_id"] = np.array(list(filters), dtype="T")
    tables["filter_description"] = np.array(list(filters.values()), dtype="T")
    return tables


DEFAULT_CHUNKS = {VARIANTS: 1_000, SAMPLES: DEFAULT_SAMPLES_CHUNK}
"""
The number of variants is bio2zarr's. Its 10,000 samples would be too many: unlike its chunks, these may be longer than
the axis, and a chunk of strings with Number=R would take 2 GB of a task's memory however few samples there are.
"""


def chunk_lengths(sources: Sequence[Vcz]) -> dict[str, int]:
    """
    The default chunk lengths of a store over some sources: the longest of theirs.

    Chunks that cover a whole axis are ignored, since converters make no chunk longer than the axis. If there are no
    others, the lengths are `DEFAULT_CHUNKS`.
    """
    result = {}
    for axis, default in DEFAULT_CHUNKS.items():
        sizes = [(s.n_samples if axis == SAMPLES else s.n_variants, s.chunk_lengths[axis]) for s in sources]
        result[axis] = max((chunk for n, chunk in sizes if 0 < chunk < n), default=default)
    return result


def _info_arrays(sources: Sequence[Vcz], fields: Sequence[str]) -> dict[str, AnyArray]:
    """
    The templates of the arrays of INFO fields, by name: the array of the source with the widest dtype.

    Raises
    ------
    UnsuitableError
        If no source has a field.
    IncompatibleError
        If a field has several values per variant, or values of different kinds in different sources.
    """
    result: dict[str, AnyArray] = {}
    for field in fields:
        name = f"variant_{field}"
        by_label = {s.label: s.arrays[name] for s in sources if name in s.arrays}
        if not by_label or not field:
            raise UnsuitableError(f"{OPERATION}: no source has the INFO field {field}; leave it out of --info")
        for label, array in by_label.items():
            if (names := dimensions(array)) != (VARIANTS,):
                raise IncompatibleError(
                    f"{OPERATION}: INFO/{field} of {label} has dimensions {names}, and --info takes fields of one "
                    "value, since sources order alleles each in their own way; leave it out, AC, AN and AF are made "
                    "by vczstore recompute"
                )
        like = max(by_label.values(), key=lambda array: array.dtype.itemsize)
        for label, array in by_label.items():
            kinds = ["T" if a.dtype.kind in TEXT else a.dtype.kind for a in (array, like)]
            if kinds[0] != kinds[1]:
                raise IncompatibleError(
                    f"{OPERATION}: INFO/{field} of {label} has dtype {array.dtype}, of another source {like.dtype}; "
                    "convert both with one Type in the header, or leave it out of --info"
                )
        result[name] = like
    return {name: array for name, array in result.items() if name not in (END, SVLEN)}


def _targets(
    sources: Sequence[Vcz], n_contigs: int, chunk: int, n_alleles: int, info: Mapping[str, AnyArray]
) -> dict[str, AnyArray]:
    """The new arrays that tasks write, with 0 variants."""

    def widest(*names: str) -> np.dtype:
        dtype = np.result_type("i4", *(s.arrays[name].dtype for s in sources for name in names if name in s.arrays))
        return dtype if dtype.kind == "i" else np.dtype("i8")

    new = {
        CONTIG: _new(CONTIG, (0,), np.min_scalar_type(-n_contigs - 1), (VARIANTS,), chunk),
        POSITION: _new(POSITION, (0,), widest(POSITION), (VARIANTS,), chunk),
        ALLELE: _new(ALLELE, (0, n_alleles), "string", (VARIANTS, "alleles"), chunk),
        LENGTH: _new(LENGTH, (0,), widest(LENGTH, END, POSITION), (VARIANTS,), chunk),
    }
    for name in (END, SVLEN):  # part of the identity of symbolic ALTs
        templates = [s.arrays[name] for s in sources if name in s.arrays]
        if name == SVLEN and n_alleles > 1 and any(array.ndim > 1 for array in templates):
            new[name] = _new(name, (0, n_alleles - 1), widest(name), (VARIANTS, "alt_alleles"), chunk)
        elif templates:
            new[name] = _new(name, (0,), widest(name), (VARIANTS,), chunk)
    if any(ID in s.arrays for s in sources):
        new[ID] = _new(ID, (0,), "string", (VARIANTS,), chunk)
        new[ID_MASK] = _new(ID_MASK, (0,), "bool", (VARIANTS,), chunk)
    for name, like in info.items():
        attributes = {key: like.attrs[key] for key in ("description",) if key in like.attrs}
        dtype = "string" if like.dtype.kind in TEXT else like.dtype.newbyteorder("=")
        new[name] = conversion.new(
            name, shape=(0,), dtype=dtype, chunks=(chunk,), dimension_names=(VARIANTS,), attributes=attributes
        )
    return new


def _row_bytes(targets: Mapping[str, AnyArray]) -> int:
    """The decoded bytes of a variant."""
    return sum(math.prod(a.shape[1:]) * arrays.element_bytes(a) for a in targets.values())


def _block_mem(targets: Mapping[str, AnyArray], n_rows: int) -> int:
    """Bytes needed to write `n_rows` variants: as parts, concatenated, and encoded."""
    return 3 * n_rows * _row_bytes(targets)


def _new(name: str, shape: tuple[int, ...], dtype: Any, names: Sequence[str], chunk: int) -> AnyArray:
    """A new array, divided into chunks along its first axis only."""
    return conversion.new(name, shape=shape, dtype=dtype, chunks=(chunk, *shape[1:]), dimension_names=names)


def _filled(name: str, values: np.ndarray) -> WriteArray:
    """The edit that writes a small array, as one chunk."""
    names = {
        "contig_id": ("contigs",),
        "contig_length": ("contigs",),
        "filter_id": ("filters",),
        "filter_description": ("filters",),
        "region_index": ("region_index_values", "region_index_fields"),
    }[name]
    dtype = "string" if values.dtype.kind == "T" else values.dtype
    return WriteArray(_new(name, values.shape, dtype, names, max(1, len(values))), values)


# ---- writing --------------------------------------------------------------------------------


@dataclass(frozen=True)
class WriteSites:
    """
    Write the arrays of the variants of a store.

    Attributes
    ----------
    union
        The variants.
    stops
        For each range, the number of records before it, and finally the total.
    targets
        The arrays by name; all have the same chunks along the variants axis.
    chunk
        The number of variants per chunk.
    block
        The number of chunk rows per task.
    """

    union: Union
    stops: np.ndarray
    targets: Mapping[str, AnyArray]
    chunk: int
    block: int

    name = VARIANTS
    encoded_chunks = 0
    """Every chunk is new."""

    @classmethod
    def of(
        cls, union: Union, stops: np.ndarray, targets: Mapping[str, AnyArray], chunk: int, memory: Memory
    ) -> "WriteSites":
        """Choose the number of chunk rows per task: those of several ranges, so that few ranges are merged twice."""
        free = memory.allowed - memory.reserved - SLACK - union.merge_mem
        n_chunks = math.ceil(int(stops[-1]) / chunk)
        wanted = math.ceil(n_chunks / max(1, min(MIN_TASKS, union.n_ranges), union.n_ranges // 4))
        return cls(union, stops, targets, chunk, max(1, min(wanted, free // _block_mem(targets, chunk))))

    @property
    def n_variants(self) -> int:
        return int(self.stops[-1])

    @property
    def n_blocks(self) -> int:
        """Number of tasks."""
        return math.ceil(self.n_variants / self.chunk / self.block)

    @property
    def arrays(self) -> tuple[AnyArray, ...]:
        return tuple(self.targets.values())

    @property
    def decoded_chunks(self) -> int:
        return len(self.targets) * math.ceil(self.n_variants / self.chunk)

    def _ranges(self, block: int) -> range:
        """The ranges that have records in a block."""
        rows = self.block * self.chunk
        first = int(np.searchsorted(self.stops, block * rows, side="right")) - 1
        return range(first, int(np.searchsorted(self.stops, min(self.n_variants, (block + 1) * rows))))

    def _pieces(self) -> list[tuple[SourceSites, int, int]]:
        """The source and the range of rows of each read; rows that several tasks read are repeated."""
        times = np.zeros(self.union.n_ranges, dtype="i8")
        for block in range(self.n_blocks):
            ranges = self._ranges(block)
            times[ranges.start : ranges.stop] += 1
        return [
            (sites, start, stop)
            for sites, pieces in zip(self.union.sites, self.union.pieces, strict=True)
            for number, start, stop in pieces.tolist()
            for _ in range(times[number])
        ]

    @property
    def chunks_read(self) -> int:
        """Upper bound; chunks that several tasks read are counted repeatedly."""
        return sum(
            math.ceil(stop / chunk) - start // chunk
            for sites, start, stop in self._pieces()
            for chunk in (arrays.outer_chunks(a)[0] for a in sites.arrays.values())
        )

    @property
    def bytes_read(self) -> int:
        """The variants of the sources, decoded; those that several tasks read are counted repeatedly."""
        return sum(
            (stop - start) * math.prod(a.shape[1:]) * arrays.element_bytes(a)
            for sites, start, stop in self._pieces()
            for a in sites.arrays.values()
        )

    @property
    def bytes_written(self) -> int:
        return self.n_variants * _row_bytes(self.targets)

    def put(self, blocks: slice, *, store: "ZarrStore") -> np.ndarray:
        """Write one block, and return its rows of ``region_index``."""
        from plans.core import task_report

        start = blocks.start * self.block * self.chunk
        stop = min(self.n_variants, start + self.block * self.chunk)
        parts = []
        for i in self._ranges(blocks.start):
            here = slice(max(0, start - int(self.stops[i])), stop - int(self.stops[i]))
            records = self.union.records(i, tuple(self.targets), self.targets[ALLELE].shape[1])
            parts.append({name: values[here] for name, values in records.items()})
        values = {name: np.concatenate([part[name] for part in parts]) for name in self.targets}
        if SVLEN in values and self.targets[SVLEN].ndim == 1:
            values[SVLEN] = one_size(values[SVLEN])
        for name, array in self.targets.items():
            arrays.planned(array, store=store)[start:stop] = values[name].astype(array.dtype, copy=False)
        n_chunks = len(self.targets) * math.ceil((stop - start) / self.chunk)
        task_report.report_written(store, n_chunks, (stop - start) * _row_bytes(self.targets))
        return region_index(values[CONTIG], values[POSITION], values[LENGTH], start=start, chunk=self.chunk)

    def by_cubed(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """Write in tasks, one for each block."""
        from plans.core import scan_tasks

        mem = self.union.merge_mem + _block_mem(self.targets, self.block * self.chunk)
        put = partial(self.put, store=store)
        return [scan_tasks.scan(ScanReader(put, self.n_blocks, 1, mem=mem), memory.spec())]

    read = ()

    def by_xarray(self, store: "ZarrStore", memory: Memory, opened: "Opened") -> "list[cubed.Array]":
        """Raise an `OptionError`: there is no implementation."""
        raise OptionError(ONLY_CUBED)

    def by_zarr(self, store: "ZarrStore") -> None:
        """Raise an `OptionError`: there is no implementation."""
        raise OptionError(ONLY_CUBED)
