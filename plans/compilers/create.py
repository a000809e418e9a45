"""Create: a store without samples, over the variants of all sources together.

The sources' variants are in order, so that the genome can be cut into ranges of positions, and each range be merged by
itself. This takes three rounds of tasks:

1. look at the order of each source, and where it is on the genome every `SEGMENT_ROWS` variants; the driver cuts the
   genome into ranges whose variants, of all sources together, fit into a task's memory;
2. count the records of the union in each range; so the driver knows which ranges each chunk of the store is made of;
3. write the chunks, whole.
"""

import math
from collections.abc import Generator, Mapping, Sequence
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
    CountRecords,
    SourceSites,
    Union,
    source_sites,
)
from plans.variants.union_sites import union_table
from vczstore.choices import DEFAULT_SAMPLES_CHUNK, FLEXIBLE, REGULAR
from vczstore.errors import IncompatibleError, OptionError, UnsuitableError, VczstoreError
from vczstore.stores.base import Store
from vczstore.stores.edits import Edit, WriteArray, WriteDocuments
from vczstore.vcz import arrays, conversion, vcf_headers
from vczstore.vcz.extents import END, LENGTH, SVLEN
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
) -> Generator[Survey, list[list[Any]], Plan]:
    """
    Compile a store over the union of the variants of some sources, in stages.

    Parameters
    ----------
    store
        Where the store will be.
    sources
        VCZs; what they disagree on is as the first of them has it.
    memory
        What a task may use.
    variants_chunk, samples_chunk
        The store's chunk lengths; see `chunk_lengths` for what they are otherwise.
    gvcf
        Whether the sources are gVCFs, whose reference blocks are no variants.
    sample_grid
        One of `vczstore.choices.SAMPLE_GRIDS`.
    info
        INFO fields that come in, of one value each.
    provenance
        Whether the store keeps by which append each sample comes in.

    Yields
    ------
    Survey
        What has to be looked up in the data. What was found is to be sent back: a list for each of its scans.

    Raises
    ------
    VczstoreError
        If sources do not fit together, or are not sorted.
    """
    # 1. from metadata: what is in the store
    if not sources:
        raise VczstoreError(f"{OPERATION}: no sources given; name the VCZs whose variants come in")
    for source in sources:
        source.require_whole(OPERATION, edited=False)
    attributes, tables = _attributes(sources), _tables(sources)
    lengths = chunk_lengths(sources)
    taken, chunk = _info_arrays(sources, info), variants_chunk or lengths[VARIANTS]
    sites = source_sites(sources, is_gvcf=gvcf, info=list(taken))
    targets = _targets(sources, len(tables["contig_id"]), chunk, _widest(sources), taken)

    # 2. from positions: the order of each source, and with it the ranges
    step = max(SEGMENT_ROWS, math.ceil(sum(s.n_variants for s in sources) / SEGMENTS))
    scans = [FindRuns(OPERATION, source, step) for source in sources]
    blocks = [FindBlocks(OPERATION, source, step) for source in sources if gvcf]
    places = yield Survey(OPERATION, (*scans, *blocks), memory)
    segments = [s.segments(scan.joined(found)) for s, scan, found in zip(sites, scans, places, strict=False)]
    for finding, found in zip(blocks, places[len(scans) :], strict=True):
        finding.joined(found)  # which refuses what is no gVCF
    union = Union.of(sites, segments, _block_mem(targets, chunk), memory)

    # 3. from alleles: how many records there are in each range
    (counted,) = yield Survey(OPERATION, (CountRecords(union),), memory)
    counts, n_alleles = _counted(sources, [Counted(*item) for item in counted])
    if not gvcf:
        n_alleles = max(n_alleles, _widest(sources))
    stops = np.concatenate([[0], np.cumsum(counts)])

    # 4. the store: its root's document last, without which there is nothing for a reader
    n_variants = int(stops[-1])
    targets = _targets(sources, len(tables["contig_id"]), chunk, n_alleles, taken)
    targets = {name: arrays.planned(a, shape=(n_variants, *a.shape[1:])) for name, a in targets.items()}
    write = WriteSites.of(union, stops, targets, chunk, memory)
    filters = _new(FILTER, (n_variants, len(tables["filter_id"])), "bool", (VARIANTS, "filters"), chunk)
    # the first append cuts the calls as these are cut
    width = samples_chunk or lengths[SAMPLES]
    kinds = {**({BATCH: "i4"} if provenance else {}), SAMPLE_ID: "string"}
    by_sample = [_new(name, (0,), dtype, (SAMPLES,), width) for name, dtype in kinds.items()]
    if sample_grid == FLEXIBLE:
        by_sample = [arrays.with_columns(array, 0, (), if_empty=width) for array in by_sample]
    small = [_filled(name, values) for name, values in tables.items()]
    members = {a.path: a for a in (*targets.values(), filters, *by_sample, *(edit.array for edit in small))}
    root = {"zarr_format": 3, "node_type": "group", "attributes": attributes}

    def conclude(found: Sequence[np.ndarray]) -> list[Edit]:
        rows = np.concatenate([np.empty((0, 6), dtype="i8"), *found])
        dtype = targets[POSITION].dtype
        index = np.minimum(rows[np.lexsort((rows[:, 1], rows[:, 0]))], np.iinfo(dtype).max)  # an end may lie beyond
        return [
            _filled("region_index", index.astype(dtype)),
            *map(WriteDocuments.of, by_sample),
            WriteDocuments({"zarr.json": root}),
        ]

    # no variant is said to have passed a filter, or not to have: chunks of nothing but False are left out
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


def _counted(sources: Sequence[Vcz], found: Sequence[Counted]) -> tuple[np.ndarray, int]:
    """How many records there are in each range, and alleles at most; no source may have reference blocks."""
    blocks = sorted(block for c in found for block in c.blocks)
    if blocks:
        source, row = blocks[0]
        raise refusal(OPERATION, sources[source], row)
    counts = np.array([c.records for c in sorted(found)], dtype="i8")
    return counts, max((c.most_alleles for c in found), default=1)


def _widest(sources: Sequence[Vcz]) -> int:
    """How many alleles the variants of sources have room for."""
    return max(s.arrays[ALLELE].shape[1] for s in sources)


def left_out_note(sources: Sequence[Vcz], made: Vcz) -> str:
    """What to tell of the fields of variants that sources have, and a store that is made of them does not."""
    named = {"variant_quality": "QUAL", FILTER: "FILTER"}
    found = dict.fromkeys(
        named.get(name) or f"INFO/{name.removeprefix('variant_')}"
        for source in sources
        for name, array in source.arrays.items()
        if name.startswith("variant_") and VARIANTS in dimensions(array) and not name.endswith("_mask")
        if name == FILTER or name not in made.arrays
    )
    of_vcfs = ["INFO of VCFs"] if any(source.file is not None for source in sources) else []
    left = sorted(found, key=lambda name: (name.startswith("INFO/"), name != "QUAL")) + of_vcfs
    return f"left out: {listing(left, 20)}; init takes a batch whole" if left else ""


# ---- what metadata tell ---------------------------------------------------------------------


def _attributes(sources: Sequence[Vcz]) -> dict[str, Any]:
    """
    Those of the root that say what is in the store.

    Of the VCFs' own header what all of them say, in the order of the first, but for lines that may name samples.
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
    said = [s.attributes.get("source") for s in sources]
    if said[0] is not None and all(text == said[0] for text in said):
        attributes["source"] = said[0]
    if all(vcf_headers.LINES in s.attributes for s in sources):
        first, *others = [vcf_headers.without_samples(s.attributes)[vcf_headers.LINES] for s in sources]
        attributes[vcf_headers.LINES] = [line for line in first if all(line in lines for lines in others)]
    return attributes


def _tables(sources: Sequence[Vcz]) -> dict[str, np.ndarray]:
    """What variants refer to by number: the contigs and filters of all sources."""
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
Variants as in bio2zarr. Its 10,000 samples would be too many here: unlike its chunks, these may be longer than the
axis, and one of strings of Number=R takes 2 GB of a task's memory then, however few samples there are.
"""


def chunk_lengths(sources: Sequence[Vcz]) -> dict[str, int]:
    """
    The chunk lengths of a store over some sources: the longest of theirs, in any order of the sources.

    One that holds a whole axis tells nothing: converters make no chunk longer than the axis. Where no other is there,
    it is `DEFAULT_CHUNKS`.
    """
    result = {}
    for axis, default in DEFAULT_CHUNKS.items():
        sizes = [(s.n_samples if axis == SAMPLES else s.n_variants, s.chunk_lengths[axis]) for s in sources]
        result[axis] = max((chunk for n, chunk in sizes if 0 < chunk < n), default=default)
    return result


def _info_arrays(sources: Sequence[Vcz], fields: Sequence[str]) -> dict[str, AnyArray]:
    """
    The arrays that INFO fields are made like, by name: of each the widest one.

    Raises
    ------
    UnsuitableError
        If no source has a field.
    IncompatibleError
        If one has more than one value of a variant, or sources have values of other kinds.
    """
    result: dict[str, AnyArray] = {}
    for field in fields:
        name = f"variant_{field}"
        found = {s.label: s.arrays[name] for s in sources if name in s.arrays}
        if not found or not field:
            raise UnsuitableError(f"{OPERATION}: no source has the INFO field {field}; leave it out of --info")
        for label, array in found.items():
            if (names := dimensions(array)) != (VARIANTS,):
                raise IncompatibleError(
                    f"{OPERATION}: INFO/{field} of {label} has dimensions {names}, and --info takes fields of one "
                    "value, since sources order alleles each in their own way; leave it out, AC, AN and AF are made "
                    "by vczstore recompute"
                )
        like = max(found.values(), key=lambda array: array.dtype.itemsize)
        for label, array in found.items():
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
    """The new arrays that tasks write to, without variants as yet."""

    def widest(*names: str) -> np.dtype:
        found = np.result_type("i4", *(s.arrays[name].dtype for s in sources for name in names if name in s.arrays))
        return found if found.kind == "i" else np.dtype("i8")

    new = {
        CONTIG: _new(CONTIG, (0,), np.min_scalar_type(-n_contigs - 1), (VARIANTS,), chunk),
        POSITION: _new(POSITION, (0,), widest(POSITION), (VARIANTS,), chunk),
        ALLELE: _new(ALLELE, (0, n_alleles), "string", (VARIANTS, "alleles"), chunk),
        LENGTH: _new(LENGTH, (0,), widest(LENGTH, END, POSITION), (VARIANTS,), chunk),
    }
    for name in (END, SVLEN):  # of symbolic ALTs: what they are
        if any(name in s.arrays for s in sources):
            new[name] = _new(name, (0,), widest(name), (VARIANTS,), chunk)
    if any(ID in s.arrays for s in sources):
        new[ID] = _new(ID, (0,), "string", (VARIANTS,), chunk)
        new[ID_MASK] = _new(ID_MASK, (0,), "bool", (VARIANTS,), chunk)
    for name, like in info.items():
        told = {key: like.attrs[key] for key in ("description",) if key in like.attrs}
        dtype = "string" if like.dtype.kind in TEXT else like.dtype.newbyteorder("=")
        new[name] = conversion.new(
            name, shape=(0,), dtype=dtype, chunks=(chunk,), dimension_names=(VARIANTS,), attributes=told
        )
    return new


def _row_bytes(targets: Mapping[str, AnyArray]) -> int:
    """What a variant takes, decoded."""
    return sum(math.prod(a.shape[1:]) * arrays.element_bytes(a) for a in targets.values())


def _block_mem(targets: Mapping[str, AnyArray], n_rows: int) -> int:
    """What it takes to write some variants: as they are put together, joined, and encoded."""
    return 3 * n_rows * _row_bytes(targets)


def _new(name: str, shape: tuple[int, ...], dtype: Any, names: Sequence[str], chunk: int) -> AnyArray:
    """An array that is not there yet, cut into chunks along its first axis."""
    return conversion.new(name, shape=shape, dtype=dtype, chunks=(chunk, *shape[1:]), dimension_names=names)


def _filled(name: str, values: np.ndarray) -> WriteArray:
    """A small array, in one chunk."""
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
    The arrays of the store's variants.

    Attributes
    ----------
    union
        Their variants.
    stops
        For each range, how many records are before it; and how many there are.
    targets
        By name; all are cut into the same chunks along the variants axis.
    chunk
        How many variants a chunk has.
    block
        How many chunks one task writes.
    """

    union: Union
    stops: np.ndarray
    targets: Mapping[str, AnyArray]
    chunk: int
    block: int
    name: str = VARIANTS

    @classmethod
    def of(
        cls, union: Union, stops: np.ndarray, targets: Mapping[str, AnyArray], chunk: int, memory: Memory
    ) -> "WriteSites":
        """Find how many chunks one task writes: those of some ranges, so that few of them are merged twice."""
        free = memory.allowed - memory.reserved - SLACK - union.merge_mem
        n_chunks = math.ceil(int(stops[-1]) / chunk)
        wanted = math.ceil(n_chunks / max(1, min(MIN_TASKS, union.n_ranges), union.n_ranges // 4))
        return cls(union, stops, targets, chunk, max(1, min(wanted, free // _block_mem(targets, chunk))))

    @property
    def n_variants(self) -> int:
        """How many records there are."""
        return int(self.stops[-1])

    @property
    def n_blocks(self) -> int:
        """How many tasks there are."""
        return math.ceil(self.n_variants / self.chunk / self.block)

    @property
    def arrays(self) -> tuple[AnyArray, ...]:
        """The targets."""
        return tuple(self.targets.values())

    @property
    def encoded_chunks(self) -> int:
        """None: every chunk is new."""
        return 0

    @property
    def decoded_chunks(self) -> int:
        """All chunks."""
        return len(self.targets) * math.ceil(self.n_variants / self.chunk)

    def _ranges(self, block: int) -> range:
        """The ranges that have records in a block."""
        rows = self.block * self.chunk
        first = int(np.searchsorted(self.stops, block * rows, side="right")) - 1
        return range(first, int(np.searchsorted(self.stops, min(self.n_variants, (block + 1) * rows))))

    def _pieces(self) -> list[tuple[SourceSites, int, int]]:
        """What of which source is read, block by block."""
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
        """At most so many chunks, those that several tasks read as often."""
        return sum(
            math.ceil(stop / chunk) - start // chunk
            for sites, start, stop in self._pieces()
            for chunk in (arrays.outer_chunks(a)[0] for a in sites.arrays.values())
        )

    @property
    def bytes_read(self) -> int:
        """The sources' variants, those that several tasks read as often."""
        return sum(
            (stop - start) * math.prod(a.shape[1:]) * arrays.element_bytes(a)
            for sites, start, stop in self._pieces()
            for a in sites.arrays.values()
        )

    @property
    def bytes_written(self) -> int:
        """The arrays, decoded."""
        return self.n_variants * _row_bytes(self.targets)

    def put(self, blocks: slice, *, store: "ZarrStore") -> np.ndarray:
        """Write one block; returns its rows of the region index."""
        from plans.core import task_report

        start = blocks.start * self.block * self.chunk
        stop = min(self.n_variants, start + self.block * self.chunk)
        parts = []
        for i in self._ranges(blocks.start):
            here = slice(max(0, start - int(self.stops[i])), stop - int(self.stops[i]))
            records = self.union.records(i, tuple(self.targets), self.targets[ALLELE].shape[1])
            parts.append({name: values[here] for name, values in records.items()})
        values = {name: np.concatenate([part[name] for part in parts]) for name in self.targets}
        for name, array in self.targets.items():
            arrays.planned(array, store=store)[start:stop] = values[name].astype(array.dtype, copy=False)
        n_chunks = len(self.targets) * math.ceil((stop - start) / self.chunk)
        task_report.report_written(store, n_chunks, (stop - start) * _row_bytes(self.targets))
        return region_index(values[CONTIG], values[POSITION], values[LENGTH], start=start, chunk=self.chunk)

    def by_cubed(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """A task for each block."""
        from plans.core import scan_tasks

        mem = self.union.merge_mem + _block_mem(self.targets, self.block * self.chunk)
        put = partial(self.put, store=store)
        return [scan_tasks.scan(scan_tasks.ScanReader(put, self.n_blocks, 1, mem=mem), memory.spec())]

    @property
    def read(self) -> list[AnyArray]:
        """The arrays of the sources' variants."""
        return [array for sites, *_ in self._pieces() for array in sites.arrays.values()]

    def by_xarray(self, store: "ZarrStore", memory: Memory, opened: "Opened") -> "list[cubed.Array]":
        """Not by xarray."""
        raise OptionError(ONLY_CUBED)

    def by_zarr(self, store: "ZarrStore") -> None:
        """Not without tasks."""
        raise OptionError(ONLY_CUBED)
