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
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.storage import MemoryStore
from zarr.types import AnyArray

from plans.core.chunk_grid import MIN_TASKS, TASK_BYTES
from plans.core.compatibility import SITE_FIELDS, check_builds, without_nothing
from plans.core.memory import SLACK, Memory, memory_message
from plans.core.model import Plan, Survey
from plans.variants.sortedness import FindRuns, Runs
from plans.variants.union_sites import Merged, merge_sites, region_index, union_table
from vczstore.errors import IncompatibleError, MemoryLimitError, OptionError, VczstoreError
from vczstore.stores.base import Store
from vczstore.stores.edits import Edit, WriteArray, WriteDocuments
from vczstore.vcz import arrays, conversion, pipeline
from vczstore.vcz.extents import END, LENGTH, NONE, SVLEN, Extents
from vczstore.vcz.missing import INT_MISSING, STR_MISSING
from vczstore.vcz.model import SAMPLE_ID, SAMPLES, VARIANTS, Vcz, listing

if TYPE_CHECKING:
    import cubed
    from zarr.abc.store import Store as ZarrStore

    from plans.core.scan_tasks import ScanReader
    from plans.core.xarray_backend import Opened

OPERATION = "create"
ONLY_CUBED = "create: there is one implementation, cubed; leave impl out"
CONTIG, POSITION, ALLELE = SITE_FIELDS
EXTENT = "extent"
ID, ID_MASK, FILTER = "variant_id", "variant_id_mask", "variant_filter"

SEGMENT_ROWS = 1000
"""After so many variants the driver looks up again where on the genome a source is."""
SEGMENTS = 1_000_000
"""About as many such places the driver keeps at most, of all sources together."""
_CONTIG_SHIFT = 40
"""A place on the genome is one integer: the contig's number above so many bits for the position."""


def compile_create(
    place: Store,
    sources: Sequence[Vcz],
    memory: Memory,
    *,
    variants_chunk: int | None = None,
    samples_chunk: int | None = None,
) -> Generator[Survey, list[list[Any]], Plan]:
    """
    Compile a store over the union of the variants of some sources, in stages.

    Parameters
    ----------
    place
        Where the store will be.
    sources
        VCZs; what they disagree on is as the first of them has it.
    memory
        What a task may use.
    variants_chunk, samples_chunk
        The store's chunk lengths; see `chunk_lengths` for what they are otherwise.

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
    sites, chunk = _sites(sources), variants_chunk or lengths[VARIANTS]
    targets = _targets(sources, len(tables["contig_id"]), chunk)

    # 2. from positions: the order of each source, and with it the ranges
    step = max(SEGMENT_ROWS, math.ceil(sum(s.n_variants for s in sources) / SEGMENTS))
    scans = [FindRuns(OPERATION, source, step) for source in sources]
    places = yield Survey(OPERATION, tuple(scans), memory)
    segments = [s.segments(scan.joined(found)) for s, scan, found in zip(sites, scans, places, strict=True)]
    union = Union.of(sites, segments, _block_mem(targets, chunk), memory)

    # 3. from alleles: how many records there are in each range
    (counted,) = yield Survey(OPERATION, (CountRecords(union),), memory)
    counts = np.zeros(union.n_ranges, dtype="i8")
    for i, n, _ in counted:
        counts[i] = n
    n_alleles = max((n for _, _, n in counted), default=0)
    stops = np.concatenate([[0], np.cumsum(counts)])

    # 4. the store: its root's document last, without which there is nothing for a reader
    n_variants = int(stops[-1])
    targets = _targets(sources, len(tables["contig_id"]), chunk, n_alleles)
    targets = {name: arrays.planned(a, shape=(n_variants, *a.shape[1:])) for name, a in targets.items()}
    write = WriteSites.of(union, stops, targets, chunk, memory)
    filters = _new(FILTER, (n_variants, len(tables["filter_id"])), "bool", (VARIANTS, "filters"), chunk)
    # the first append cuts the calls as these are cut
    sample_id = _new(SAMPLE_ID, (0,), "string", (SAMPLES,), samples_chunk or lengths[SAMPLES])
    small = [_filled(name, values) for name, values in tables.items()]
    members = {a.path: a for a in (*targets.values(), filters, sample_id, *(edit.array for edit in small))}
    root = {"zarr_format": 3, "node_type": "group", "attributes": attributes}

    def conclude(found: Sequence[np.ndarray]) -> list[Edit]:
        rows = np.concatenate([np.empty((0, 6), dtype="i8"), *found])
        dtype = targets[POSITION].dtype
        index = np.minimum(rows[np.lexsort((rows[:, 1], rows[:, 0]))], np.iinfo(dtype).max)  # an end may lie beyond
        return [
            _filled("region_index", index.astype(dtype)),
            WriteDocuments.of(sample_id),
            WriteDocuments({"zarr.json": root}),
        ]

    # no variant is said to have passed a filter, or not to have: chunks of nothing but False are left out
    documents = [WriteDocuments.of(a) for a in (*targets.values(), filters)]
    return Plan(
        operation=OPERATION,
        store=place,
        base="",
        checks=(),
        writes=(write,) if n_variants else (),
        preparations=(*documents, *small),
        edits=(),
        conclude=conclude,
        memory=memory,
        after=Vcz(place.label, MemoryStore(), dict(sorted(members.items())), attributes, 3, None, np.empty(0, "O")),
        if_stopped="nothing there reads as a store; delete what is there, and run the same command again",
        counts={"sources": len(sources), "variants": n_variants},
    )


# ---- what metadata tell ---------------------------------------------------------------------


def _attributes(sources: Sequence[Vcz]) -> dict[str, Any]:
    """
    Those of the root that say what is in the store.

    Of the VCFs' own header what all of them say, in the order of the first, but for lines on samples and on the
    commands that made them, which may name samples.
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
    headers = [[list(line) for line in s.attributes.get("vcf_meta_information", [])] for s in sources]
    words = ("sample", "pedigree", "command")
    if all("vcf_meta_information" in s.attributes for s in sources):
        attributes["vcf_meta_information"] = [
            line
            for line in headers[0]
            if all(line in others for others in headers[1:]) and not any(word in line[0].lower() for word in words)
        ]
    return attributes


def _tables(sources: Sequence[Vcz]) -> dict[str, np.ndarray]:
    """What variants refer to by number: the contigs and filters of all sources."""
    for source in sources:
        for name in (*SITE_FIELDS, "contig_id"):
            if not source.tells(name):
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
        if source.tells("filter_id"):
            ids = source.table("filter_id")
            has_text = "filter_description" in source.arrays
            texts = source.table("filter_description") if has_text else [""] * len(ids)
            for name, text in zip(ids, texts, strict=True):
                filters[name] = filters.get(name) or text
    filters = filters or {"PASS": "All filters passed"}
    tables["filter_id"] = np.array(list(filters), dtype="T")
    tables["filter_description"] = np.array(list(filters.values()), dtype="T")
    return tables


DEFAULT_CHUNKS = {VARIANTS: 1_000, SAMPLES: 1_000}
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


def _targets(sources: Sequence[Vcz], n_contigs: int, chunk: int, n_alleles: int = 0) -> dict[str, AnyArray]:
    """The new arrays that tasks write to, without variants as yet; of so many alleles, or as many as a source has."""

    def widest(*names: str) -> np.dtype:
        found = np.result_type("i4", *(s.arrays[name].dtype for s in sources for name in names if name in s.arrays))
        return found if found.kind == "i" else np.dtype("i8")

    n_alleles = max(n_alleles, *(s.arrays[ALLELE].shape[1] for s in sources))
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


# ---- sources --------------------------------------------------------------------------------


def _sites(sources: Sequence[Vcz]) -> list["Sites"]:
    _, numbers = union_table([s.table("contig_id").tolist() for s in sources])
    names = (*SITE_FIELDS, LENGTH, END, SVLEN, ID, ID_MASK)
    return [
        Sites({n: s.arrays[n] for n in names if n in s.arrays}, contigs)
        for s, contigs in zip(sources, numbers, strict=True)
    ]


@dataclass(frozen=True)
class Sites:
    """
    What a source says of its variants. It is sent to workers.

    Attributes
    ----------
    arrays
        By name.
    contigs
        For each contig of the source, its number in the union's table.
    """

    arrays: Mapping[str, AnyArray]
    contigs: np.ndarray

    @property
    def n_variants(self) -> int:
        """How many variants there are."""
        return int(self.arrays[POSITION].shape[0])

    def read(self, name: str, rows: slice) -> np.ndarray:
        """Some rows of an array; strings in one form, whatever they are stored as."""
        return arrays.read_normalised(self.arrays[name], (rows,))

    def places(self, rows: slice) -> np.ndarray:
        """Where variants are on the genome, contig and position as one integer."""
        contig, position = (self.read(name, rows).astype("i8") for name in (CONTIG, POSITION))
        return np.asarray((self.contigs[contig] << _CONTIG_SHIFT) + position)

    @property
    def row_bytes(self) -> int:
        """About what it takes to merge one variant: each allele as a string, in a list and as two numbers."""
        width = self.arrays[ALLELE].shape[1]
        return 300 + 160 * int(width) + (128 if ID in self.arrays else 0)

    def decode_mem(self, n_rows: int) -> int:
        """What decoding some rows takes, of the largest array, beside themselves."""
        found = []
        for array in self.arrays.values():
            chunk, *others = arrays.outer_chunks(array)
            whole = math.prod(arrays.grid(array.shape[1:], others))
            n_chunks = min(whole * (math.ceil(n_rows / chunk) + 1), pipeline.READS_AT_ONCE)
            found.append(arrays.decode_mem(array, n_chunks))
        return max(found)

    @property
    def extents(self) -> Extents:
        """How long variants are."""
        return Extents.of(self.arrays)

    def lengths(self, rows: slice) -> np.ndarray:
        """What variants take up of the reference."""
        if LENGTH in self.arrays:
            return self.extents.lengths(rows)
        refs = np.strings.str_len(self.read(ALLELE, rows)[:, 0].astype("T")).astype("i8")
        return np.asarray(np.maximum(refs, self.extents.lengths(rows)))

    def segments(self, runs: Runs) -> np.ndarray:
        """
        The runs of the source on the union's genome.

        Returns
        -------
        numpy.ndarray of int64
            Of four columns: the first and the last place of a segment, its first row and the one after its last; in
            the order of places.
        """
        contig = self.contigs[runs.contig] << _CONTIG_SHIFT
        segments = np.stack([contig + runs.first, contig + runs.last, runs.start, runs.stop], axis=1)
        return np.asarray(segments[np.argsort(segments[:, 0], kind="stable")])


# ---- ranges ---------------------------------------------------------------------------------


def cut_genome(segments: Sequence[np.ndarray], row_bytes: Sequence[int], room: int) -> np.ndarray:
    """
    Cut the genome where segments begin, so that what is between two cuts takes no more than so many bytes.

    Parameters
    ----------
    segments
        Of each source; see `Sites.segments`.
    row_bytes
        What a variant of each source takes.
    room
        In bytes. What is between two neighbouring beginnings of segments may take more: there is nowhere to cut it.

    Returns
    -------
    numpy.ndarray of int64
        The places where ranges begin, and one after them all. A position is in one range only.
    """
    rows = np.concatenate(segments)
    size = np.concatenate([(s[:, 3] - s[:, 2]) * b for s, b in zip(segments, row_bytes, strict=True)])
    begins = np.append(np.unique(rows[:, 0]), np.iinfo("i8").max)

    def before(places: np.ndarray) -> np.ndarray:
        """The bytes of the segments for which a place is before the beginning of each range."""
        order = np.argsort(places)
        total = np.concatenate([[0], np.cumsum(size[order])])
        return total[np.searchsorted(places[order], begins)]

    begun, ended = before(rows[:, 0]), before(rows[:, 1])
    edges = [0]
    while edges[-1] < len(begins) - 1:
        last = int(np.searchsorted(begun, ended[edges[-1]] + room, side="right")) - 1
        edges.append(max(edges[-1] + 1, last))
    return begins[edges] if len(rows) else np.empty(0, dtype="i8")


def rows_between(segments: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """
    Which rows of a source may lie between two edges: of the segments that reach into there.

    Returns
    -------
    numpy.ndarray of int64
        Of three columns: the number of the range, the first row and the one after the last; in order of ranges.
    """
    first, last, start, stop = segments.T
    begin = np.searchsorted(last, edges[:-1])
    end = np.searchsorted(first, edges[1:])
    jumps = np.flatnonzero(stop[:-1] != start[1:]) + 1  # contigs in another order than the union's
    pieces = []
    for i, (a, b) in enumerate(zip(begin.tolist(), end.tolist(), strict=True)):
        cuts = [a, *jumps[np.searchsorted(jumps, a, side="right") : np.searchsorted(jumps, b)].tolist(), b]
        pieces += [(i, start[p], stop[q - 1]) for p, q in pairwise(cuts) if p < q]
    return np.array(pieces, dtype="i8").reshape(-1, 3)


@dataclass(frozen=True)
class Union:
    """
    The variants of all sources, merged range by range. It is sent to workers.

    Attributes
    ----------
    sites
        The sources.
    edges
        The places where ranges begin, and one after them all.
    pieces
        For each source, which rows may lie in which range; see `rows_between`.
    """

    sites: Sequence[Sites]
    edges: np.ndarray
    pieces: Sequence[np.ndarray]

    @classmethod
    def of(cls, sites: Sequence[Sites], segments: Sequence[np.ndarray], beside: int, memory: Memory) -> "Union":
        """
        Cut the genome into ranges that fit into a task's memory.

        Parameters
        ----------
        sites, segments
            The sources, and what is known of their order; see `Sites.segments`.
        beside
            What a task needs at least to write what it has merged, in bytes.
        memory
            What a task may use.

        Raises
        ------
        MemoryLimitError
            If there is a range that does not fit, and nowhere to cut it.
        """
        free = memory.allowed - memory.reserved - SLACK
        limit = min(free // 2, free - beside)
        row_bytes = [s.row_bytes for s in sites]
        total = sum(s.n_variants * b for s, b in zip(sites, row_bytes, strict=True))
        # a chunk of each source at least, or else chunks are read again and again
        lengths = [min(s.n_variants, arrays.outer_chunks(s.arrays[ALLELE])[0]) for s in sites]
        chunks = sum(n * b for n, b in zip(lengths, row_bytes, strict=True))
        room = min(max(chunks, min(TASK_BYTES, total // MIN_TASKS)), limit)
        while True:
            edges = cut_genome(segments, row_bytes, room)
            union = cls(sites, edges, [rows_between(s, edges) for s in segments])
            if union.merge_mem <= limit:
                return union
            if room < min(row_bytes):
                if union.merge_mem + beside > free:
                    needed = memory.reserved + SLACK + union.merge_mem + beside
                    raise MemoryLimitError(memory_message(OPERATION, needed, memory.allowed))
                return union
            room //= 2

    @property
    def n_ranges(self) -> int:
        """How many ranges there are."""
        return max(0, len(self.edges) - 1)

    @property
    def merge_mem(self) -> int:
        """What merging a range takes at most, reading it included."""
        loads, decoding = np.zeros(self.n_ranges), 0
        for sites, pieces in zip(self.sites, self.pieces, strict=True):
            number, start, stop = pieces.T
            loads += np.bincount(number, (stop - start) * sites.row_bytes, self.n_ranges)
            decoding = max(decoding, sites.decode_mem(int((stop - start).max(initial=0))))
        return int(loads.max(initial=0)) + decoding

    def rows(self, i: int) -> list[tuple[int, slice]]:
        """The rows in a range, exactly: the number of a source, and which of its rows."""
        found = []
        for source, (sites, pieces) in enumerate(zip(self.sites, self.pieces, strict=True)):
            first, last = np.searchsorted(pieces[:, 0], (i, i + 1))
            for _, start, stop in pieces[first:last].tolist():
                places = sites.places(slice(start, stop))
                a, b = np.searchsorted(places, self.edges[i : i + 2])
                found.append((source, slice(start + int(a), start + int(b))))
        return found

    def merge(self, i: int) -> tuple[list[tuple[int, slice]], dict[str, np.ndarray], Merged]:
        """
        Merge a range.

        Returns
        -------
        rows : list of tuple of int and slice
            Of which source, and which.
        values : dict of numpy.ndarray
            What `SITE_FIELDS` have in these rows, contigs by their numbers in the union's table; and their extents.
        merged : Merged
            Which of the rows are the same.
        """
        rows = self.rows(i)
        width = max(s.arrays[ALLELE].shape[1] for s in self.sites)
        values: dict[str, list[np.ndarray]] = {name: [] for name in (*SITE_FIELDS, EXTENT)}
        for source, where in rows:
            sites = self.sites[source]
            values[CONTIG].append(sites.contigs[sites.read(CONTIG, where)])
            values[POSITION].append(sites.read(POSITION, where).astype("i8"))
            alleles = np.full((where.stop - where.start, width), "", dtype="T")
            alleles[:, : sites.arrays[ALLELE].shape[1]] = sites.read(ALLELE, where).astype("T")
            values[ALLELE].append(alleles)
            values[EXTENT].append(sites.extents.look(alleles, where))
        joined = {name: np.concatenate(found) for name, found in values.items()}
        source_of = np.repeat([source for source, _ in rows], [r.stop - r.start for _, r in rows])
        return rows, joined, merge_sites(joined[CONTIG], joined[POSITION], joined[ALLELE], source_of, joined[EXTENT])

    def records(self, i: int, names: Sequence[str], n_alleles: int) -> dict[str, np.ndarray]:
        """The records of the union in a range: what each of these arrays has of them, of so many alleles."""
        rows, values, merged = self.merge(i)
        found = {name: values[name][merged.first] for name in SITE_FIELDS}
        found[ALLELE] = without_nothing(found[ALLELE])
        found[ALLELE] = np.pad(found[ALLELE], ((0, 0), (0, n_alleles - found[ALLELE].shape[1])), constant_values="")
        for row, alleles in merged.joined.items():
            found[ALLELE][row] = [*alleles, *[""] * (n_alleles - len(alleles))]
        found |= self._lengths(rows, values[EXTENT] != NONE, merged, names)
        if ID in names:
            ids = [self._ids(self.sites[source], where) for source, where in rows]
            said = np.concatenate(ids)
            found[ID] = np.full(len(merged.first), STR_MISSING, dtype="T")
            found[ID_MASK] = np.ones(len(merged.first), dtype=bool)
            which, at = merged.first_where(said != STR_MISSING)
            found[ID][which], found[ID_MASK][which] = said[at], False
            others = np.flatnonzero((said != STR_MISSING) & (said != found[ID][merged.record]))
            for record, text in zip(merged.record[others].tolist(), said[others].tolist(), strict=True):
                found[ID][record] = _both_ids(found[ID][record], text)
        return found

    def _lengths(
        self, rows: Sequence[tuple[int, slice]], is_symbolic: np.ndarray, merged: Merged, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """How long records are: where ALTs are symbolic as long as these are, whatever has been joined with them."""
        length = np.concatenate([self.sites[source].lengths(where) for source, where in rows])
        n = len(merged.first)
        symbolic, _ = merged.first_where(is_symbolic)
        of_symbolic = np.zeros(n, dtype=bool)
        of_symbolic[symbolic] = True
        longest = np.zeros(n, dtype="i8")
        np.maximum.at(longest, merged.record, np.where(of_symbolic[merged.record] & ~is_symbolic, 0, length))
        is_joined = of_symbolic | np.isin(np.arange(n), list(merged.joined))
        found = {LENGTH: np.where(is_joined, longest, length[merged.first])}
        for name, missing in ((END, INT_MISSING), (SVLEN, 0)):
            if name in names:
                extents = [(self.sites[source].extents, where) for source, where in rows]
                said = np.concatenate([e.ends(w) if name == END else e.sizes(w) for e, w in extents])
                found[name] = np.full(n, INT_MISSING, dtype="i8")
                which, at = merged.first_where(is_symbolic & (said != missing))
                found[name][which] = said[at]
                if name == END:  # of reference blocks too, in accord with the length
                    last = np.full(n, INT_MISSING, dtype="i8")
                    np.maximum.at(last, merged.record, said)
                    found[END][~of_symbolic] = np.where(is_joined, last, said[merged.first])[~of_symbolic]
        return found

    @staticmethod
    def _ids(sites: Sites, rows: slice) -> np.ndarray:
        """The identifiers of some variants, missing where there is none."""
        if ID not in sites.arrays:
            return np.full(rows.stop - rows.start, STR_MISSING, dtype="T")
        ids = sites.read(ID, rows).astype("T")
        ids[ids == ""] = STR_MISSING
        if ID_MASK in sites.arrays:
            ids[sites.read(ID_MASK, rows).astype(bool)] = STR_MISSING
        return ids


def _both_ids(first: str, second: str) -> str:
    """
    All identifiers of a record that two sources have, each once (VCF 4.5, section 1.6.1: they are unique).

    >>> _both_ids("rs1;rs2", "rs3;rs2")
    'rs1;rs2;rs3'
    """
    return ";".join(dict.fromkeys([*first.split(";"), *second.split(";")]))


@dataclass(frozen=True)
class CountRecords:
    """Count the records of the union in each range, and the alleles of the one that has most."""

    union: Union

    def look(self, ranges: slice) -> tuple[int, int, int]:
        """Merge one range."""
        _, _, merged = self.union.merge(ranges.start)
        return ranges.start, len(merged.first), merged.most_alleles

    def by_cubed(self, memory: Memory, tag: int) -> "list[ScanReader]":
        """A task for each range."""
        from plans.core import scan_tasks

        if not self.union.n_ranges:
            return []
        return [scan_tasks.ScanReader(self.look, self.union.n_ranges, 1, tag, self.union.merge_mem)]


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

    def _pieces(self) -> list[tuple[Sites, int, int]]:
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

    def by_xarray(self, store: "ZarrStore", memory: Memory, opened: "Opened") -> "list[cubed.Array]":
        """Not by xarray."""
        raise OptionError(ONLY_CUBED)

    def by_zarr(self, store: "ZarrStore") -> None:
        """Not without tasks."""
        raise OptionError(ONLY_CUBED)
