"""The union of the variants of several sources: the genome cut into ranges, and the records of each range."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import MIN_TASKS, TASK_BYTES
from plans.core.compatibility import SITE_FIELDS, blank_absent
from plans.core.memory import SLACK, Memory, memory_error
from plans.core.scan_reader import ScanReader
from plans.variants.allele_numbers import padded
from plans.variants.reference_blocks import LEN, Spans, Unseen, first_block, read_alleles, without_unseen
from plans.variants.sortedness import Runs
from plans.variants.union_sites import Merged, merge_sites, union_table
from vczstore.vcz import arrays, pipeline
from vczstore.vcz.extents import ABSENT_ALLELES, END, LENGTH, NONE, SVLEN, Extents, by_alt, longest
from vczstore.vcz.missing import INT_FILL, INT_MISSING, STR_MISSING, TEXT, missing_value, same
from vczstore.vcz.model import Vcz

OPERATION = "create"

CONTIG, POSITION, ALLELE = SITE_FIELDS

EXTENT = "extent"

ID, ID_MASK, FILTER = "variant_id", "variant_id_mask", "variant_filter"

SEGMENT_ROWS = 100
"""Smallest number of variants of a segment, whose place on the genome the driver keeps."""

SEGMENTS = 1_000_000
"""Approximate limit of the number of segments of all sources together."""

CONTIG_SHIFT = 40
"""A place on the genome is one integer: the position in the low CONTIG_SHIFT bits, and the contig's number above."""


def source_sites(sources: Sequence[Vcz], *, is_gvcf: bool = False, info: Sequence[str] = ()) -> list["SourceSites"]:
    """Return the site arrays of each source, and its arrays named in `info`."""
    _, numbers = union_table([s.table("contig_id").tolist() for s in sources])
    return [SourceSites.of(s, n, is_gvcf=is_gvcf, info=info) for s, n in zip(sources, numbers, strict=True)]


class Piece(NamedTuple):
    """
    Neighbouring records of a source.

    Attributes
    ----------
    source
        Number of the source.
    rows
        Rows of the records in the source.
    kept
        Selects the variants among these, without reference blocks.
    block
        Row of the first reference block, if the source is not used as a gVCF; None if there is none.
    """

    source: int
    rows: slice
    kept: np.ndarray | slice = slice(None)
    block: int | None = None

    @property
    def variants(self) -> np.ndarray:
        """Rows of the variants in the source."""
        return np.arange(self.rows.start, self.rows.stop)[self.kept]


@dataclass(frozen=True)
class SourceSites:
    """
    The site arrays of a source, by name, and the number of each of its contigs in the union's table; sent to workers.

    The records of a gVCF include reference blocks, which are not variants.
    """

    arrays: Mapping[str, AnyArray]
    contigs: np.ndarray
    is_gvcf: bool = False

    @classmethod
    def of(
        cls, vcz: Vcz, contigs: Sequence[int] | np.ndarray, *, is_gvcf: bool, info: Sequence[str] = ()
    ) -> "SourceSites":
        """Return the site arrays of a VCZ, and its arrays named in `info`."""
        names = (*SITE_FIELDS, LENGTH, END, SVLEN, ID, ID_MASK, LEN, *info)
        return cls(
            {name: vcz.arrays[name] for name in names if name in vcz.arrays}, np.asarray(contigs, dtype="i8"), is_gvcf
        )

    @property
    def n_variants(self) -> int:
        """Number of records."""
        return int(self.arrays[POSITION].shape[0])

    def read(self, name: str, rows: slice) -> np.ndarray:
        """Read some rows of an array; strings have one dtype, however they are stored."""
        return arrays.read_normalised(self.arrays[name], (rows,))

    def places(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Read the contigs of some records, numbered as in the union's table, and their positions."""
        contig, position = (self.read(name, rows).astype("i8") for name in (CONTIG, POSITION))
        return self.contigs[contig], position

    @property
    def row_bytes(self) -> int:
        """Approximate memory for merging one variant, in bytes: each allele as a string, in a list, as two numbers."""
        width = self.arrays[ALLELE].shape[1]
        by_sample = 32 * self.arrays[LEN].shape[1] if LEN in self.arrays else 0
        return 300 + 160 * int(width) + (128 if ID in self.arrays else 0) + by_sample

    def decode_mem(self, n_rows: int) -> int:
        """Return the memory for decoding some rows of the largest array, in bytes, in addition to the rows."""
        needed = []
        for array in self.arrays.values():
            chunk, *others = arrays.outer_chunks(array)
            whole = math.prod(arrays.grid(array.shape[1:], others))
            n_chunks = min(whole * (math.ceil(n_rows / chunk) + 1), pipeline.READS_AT_ONCE)
            needed.append(arrays.decode_mem(array, n_chunks))
        return max(needed)

    @property
    def extents(self) -> Extents:
        """Extents of symbolic alleles."""
        return Extents.of(self.arrays)

    def lengths(self, rows: slice) -> np.ndarray:
        """Read the lengths of some records on the reference."""
        if LENGTH in self.arrays:
            return self.extents.lengths(rows)
        refs = np.strings.str_len(self.read(ALLELE, rows)[:, 0].astype("T")).astype("i8")
        return np.asarray(np.maximum(refs, self.extents.lengths(rows)))

    def variants(self, source: int, rows: slice) -> tuple[Piece, np.ndarray, np.ndarray]:
        """
        Find the records that are variants; `source` is the number of this source.

        Returns
        -------
        piece : Piece
            The records, and which of them are variants.
        alleles : numpy.ndarray of str
            Alleles of the variants, without the unseen allele of a gVCF.
        extents : numpy.ndarray of int64
            Extents of the variants; see `vczstore.vcz.extents`.
        """
        alleles = read_alleles(self.arrays[ALLELE], rows)
        texts = set(alleles[:, 1:].ravel().tolist())
        extents = self.extents.look(alleles, rows, texts)
        unseen = Unseen.of(alleles, texts)
        if not self.is_gvcf:
            block = first_block(alleles, unseen, Spans.of(self.arrays), rows)
            return Piece(source, rows, block=block), alleles.astype("T"), extents
        kept = ~unseen.is_alone
        seen = without_unseen(alleles[kept], unseen.is_unseen[kept])
        return Piece(source, rows, kept), seen.astype("T"), extents[kept]

    def segments(self, runs: Runs) -> np.ndarray:
        """
        Convert the runs of the source to segments of the union's genome.

        Returns
        -------
        numpy.ndarray of int64
            Four columns: the first and the last place of a segment, its first row and the one after its last; sorted by
            place.
        """
        contig = self.contigs[runs.contig] << CONTIG_SHIFT
        segments = np.stack([contig + runs.first, contig + runs.last, runs.start, runs.stop], axis=1)
        return np.asarray(segments[np.argsort(segments[:, 0], kind="stable")])


def cut_genome(segments: Sequence[np.ndarray], row_bytes: Sequence[int], room: int) -> np.ndarray:
    """
    Cut the genome where segments begin, into ranges that need limited memory.

    Parameters
    ----------
    segments
        The segments of each source; see `SourceSites.segments`.
    row_bytes
        Memory for a variant of each source.
    room
        Memory for a range, in bytes. It is exceeded if a range cannot be cut, since no segment begins within.

    Returns
    -------
    numpy.ndarray of int64
        The places where ranges begin, and one after the last range. Each position is in one range only.
    """
    rows = np.concatenate(segments)
    size = np.concatenate([(s[:, 3] - s[:, 2]) * b for s, b in zip(segments, row_bytes, strict=True)])
    begins = np.append(np.unique(rows[:, 0]), np.iinfo("i8").max)

    def before(places: np.ndarray) -> np.ndarray:
        """Return, for each beginning, the bytes of the segments whose place is before it."""
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
    Return the rows of a source that may lie in each range: those of the segments that overlap it.

    Returns
    -------
    numpy.ndarray of int64
        Three columns: the number of the range, the first row and the one after the last; sorted by range.
    """
    first, last, start, stop = segments.T
    begin = np.searchsorted(last, edges[:-1])
    end = np.searchsorted(first, edges[1:])
    jumps = np.flatnonzero(stop[:-1] != start[1:]) + 1  # contigs in another order than the union's
    after_begin, before_end = np.searchsorted(jumps, begin, side="right"), np.searchsorted(jumps, end)
    overlapping = np.flatnonzero(begin < end)
    has_jumps = before_end[overlapping] > after_begin[overlapping]
    i = overlapping[~has_jumps]
    pieces = [np.stack([i, start[begin[i]], stop[end[i] - 1]], axis=1)]
    for i in overlapping[has_jumps].tolist():
        cuts = [begin[i], *jumps[after_begin[i] : before_end[i]], end[i]]
        pieces.append(np.array([(i, start[p], stop[q - 1]) for p, q in pairwise(cuts) if p < q]))
    rows = np.concatenate(pieces)
    return rows[np.argsort(rows[:, 0], kind="stable")]


@dataclass(frozen=True)
class Union:
    """
    The variants of all sources, merged range by range. It is sent to workers.

    Attributes
    ----------
    sites
        The site arrays of each source.
    edges
        The places where ranges begin, and one after the last range.
    pieces
        For each source, the rows that may lie in each range; see `rows_between`.
    any_alt
        Whether records are joined that share no ALT; see `plans.variants.join_records.join`.
    has_store
        Whether the first source is an existing store, rather than one of the sources of a new one.
    """

    sites: Sequence[SourceSites]
    edges: np.ndarray
    pieces: Sequence[np.ndarray]
    any_alt: bool = False
    has_store: bool = False

    @classmethod
    def of(
        cls,
        sites: Sequence[SourceSites],
        segments: Sequence[np.ndarray],
        write_mem: int,
        memory: Memory,
        *,
        operation: str = OPERATION,
        n_ranges: int = MIN_TASKS,
        any_alt: bool = False,
        has_store: bool = False,
    ) -> "Union":
        """
        Cut the genome into ranges that fit into a task's memory.

        Parameters
        ----------
        sites, segments
            The site arrays and the segments of each source; see `SourceSites.segments`.
        write_mem
            Memory that a task needs at least for writing merged records, in bytes.
        memory
            Memory limits of a task.
        operation
            Name of the operation, for the message.
        n_ranges
            Approximate minimum number of ranges; there are fewer if these would be shorter than two chunks of sources.
        any_alt, has_store
            As in the attributes.

        Raises
        ------
        MemoryLimitError
            If there is a range that does not fit, and cannot be cut.
        """
        free = memory.allowed - memory.reserved - SLACK
        limit = min(free // 2, free - write_mem)
        row_bytes = [s.row_bytes for s in sites]
        total = sum(s.n_variants * b for s, b in zip(sites, row_bytes, strict=True))
        # two ranges share a chunk of each source at their edge, so small ranges would read chunks many times
        lengths = [min(s.n_variants, arrays.outer_chunks(s.arrays[ALLELE])[0]) for s in sites]
        chunks = sum(n * b for n, b in zip(lengths, row_bytes, strict=True))
        room = min(max(2 * chunks, min(TASK_BYTES, total // n_ranges)), limit)
        n_edges = len(np.unique(np.concatenate([s[:, 0] for s in segments]))) + 1
        while True:
            edges = cut_genome(segments, row_bytes, room)
            union = cls(sites, edges, [rows_between(s, edges) for s in segments], any_alt, has_store)
            if union.merge_mem <= limit:
                return union
            if len(edges) >= n_edges or room < min(row_bytes):  # it cannot be cut further
                if union.merge_mem + write_mem > free:
                    needed = memory.reserved + SLACK + union.merge_mem + write_mem
                    raise memory_error(operation, needed, memory.allowed)
                return union
            room //= 2

    @property
    def n_ranges(self) -> int:
        return max(0, len(self.edges) - 1)

    @property
    def merge_mem(self) -> int:
        """Largest memory for reading and merging a range, in bytes."""
        loads, decoding = np.zeros(self.n_ranges), 0
        for sites, pieces in zip(self.sites, self.pieces, strict=True):
            number, start, stop = pieces.T
            loads += np.bincount(number, (stop - start) * sites.row_bytes, self.n_ranges)
            decoding = max(decoding, sites.decode_mem(int((stop - start).max(initial=0))))
        return int(loads.max(initial=0)) + decoding

    def rows(self, i: int) -> Iterator[tuple[int, slice, np.ndarray, np.ndarray]]:
        """Yield the exact rows in a range: the number of the source, its rows, and their contigs and positions."""
        for source, (sites, pieces) in enumerate(zip(self.sites, self.pieces, strict=True)):
            first, last = np.searchsorted(pieces[:, 0], (i, i + 1))
            for _, start, stop in pieces[first:last].tolist():
                contig, position = sites.places(slice(start, stop))
                a, b = np.searchsorted((contig << CONTIG_SHIFT) + position, self.edges[i : i + 2]).tolist()
                yield source, slice(start + a, start + b), contig[a:b], position[a:b]

    def merge(self, i: int) -> tuple[list[Piece], dict[str, np.ndarray], Merged]:
        """
        Merge a range.

        Returns
        -------
        pieces : list of Piece
            The records of each source.
        values : dict of numpy.ndarray
            `SITE_FIELDS` and `EXTENT` of the records that are variants, with contigs numbered as in the union's table.
        merged : Merged
            The mapping of these variants to records of the union.
        """
        pieces = []
        width = max(s.arrays[ALLELE].shape[1] for s in self.sites)
        values: dict[str, list[np.ndarray]] = {name: [] for name in (*SITE_FIELDS, EXTENT)}
        for source, rows, contig, position in self.rows(i):
            sites = self.sites[source]
            piece, theirs, extents = sites.variants(source, rows)
            pieces.append(piece)
            values[CONTIG].append(contig[piece.kept])
            values[POSITION].append(position[piece.kept])
            values[ALLELE].append(padded(theirs, width))
            values[EXTENT].append(extents)
        joined = {name: np.concatenate(parts) for name, parts in values.items()}
        source_of = np.repeat([p.source for p in pieces], [len(part) for part in values[ALLELE]])
        contig, position, alleles, extents = (joined[name] for name in (*SITE_FIELDS, EXTENT))
        store = 0 if self.has_store else None
        merged = merge_sites(contig, position, alleles, source_of, extents, any_alt=self.any_alt, store=store)
        return pieces, joined, merged

    def records(self, i: int, names: Sequence[str], n_alleles: int) -> dict[str, np.ndarray]:
        """
        Return the values of some arrays for the records of a range, with `n_alleles` columns of alleles.

        SVLEN has a value for each ALT.
        """
        pieces, values, merged = self.merge(i)
        fields = {name: values[name][merged.first] for name in SITE_FIELDS}
        # cuts off empty columns of <NON_REF>
        fields[ALLELE] = padded(blank_absent(fields[ALLELE])[:, :n_alleles], n_alleles)
        for row, alleles in merged.joined.items():
            fields[ALLELE][row] = [*alleles, *[""] * (n_alleles - len(alleles))]
        fields |= self._lengths(pieces, values, merged, names)
        if SVLEN in names:
            fields[SVLEN] = self._sizes(pieces, values, merged, fields[ALLELE])
        if ID in names:
            ids = np.concatenate([self._ids(self.sites[p.source], p.rows)[p.kept] for p in pieces])
            fields[ID] = np.full(len(merged.first), STR_MISSING, dtype="T")
            fields[ID_MASK] = np.ones(len(merged.first), dtype=bool)
            which, at = merged.first_where(ids != STR_MISSING)
            fields[ID][which], fields[ID_MASK][which] = ids[at], False
            others = np.flatnonzero((ids != STR_MISSING) & (ids != fields[ID][merged.record]))
            for record, text in zip(merged.record[others].tolist(), ids[others].tolist(), strict=True):
                fields[ID][record] = _both_ids(fields[ID][record], text)
        info = set(names) - {*fields, ID, ID_MASK}
        return fields | {name: self._info(name, pieces, merged) for name in sorted(info)}

    def _info(self, name: str, pieces: Sequence[Piece], merged: Merged) -> np.ndarray:
        """Return an INFO field of one value: that of the first source that has the record and a value for it."""
        like = max((s.arrays[name] for s in self.sites if name in s.arrays), key=lambda array: array.dtype.itemsize)
        dtype = np.dtypes.StringDType() if like.dtype.kind in TEXT else like.dtype
        theirs, is_present = list[np.ndarray](), list[np.ndarray]()
        for piece in pieces:
            n, array = len(piece.variants), self.sites[piece.source].arrays.get(name)
            if array is None:
                theirs.append(np.zeros(n, dtype=dtype))
                is_present.append(np.zeros(n, dtype=bool))
                continue
            values = self.sites[piece.source].read(name, piece.rows)[piece.kept]
            # texts are read as strings, also from arrays of bytes
            missing = STR_MISSING if array.dtype.kind in TEXT else missing_value(name, array)
            is_present.append(~same(values, missing))
            theirs.append(values.astype(dtype))
        which, at = merged.first_where(np.concatenate([np.zeros(0, dtype=bool), *is_present]))
        missing = STR_MISSING if like.dtype.kind in TEXT else missing_value(name, like)
        result = np.full(len(merged.first), missing, dtype=dtype)
        result[which] = np.concatenate([np.zeros(0, dtype=dtype), *theirs])[at]
        return result

    def _lengths(
        self, pieces: Sequence[Piece], values: Mapping[str, np.ndarray], merged: Merged, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Return `LENGTH`, and END if named, by name; of joined records, symbolic ones have precedence."""
        is_symbolic = values[EXTENT] != NONE
        length = np.concatenate([self.sites[p.source].lengths(p.rows)[p.kept] for p in pieces])
        if any(sites.is_gvcf for sites in self.sites):  # where the unseen allele may make a record longer
            counts = [len(p.variants) for p in pieces]
            is_plain = np.repeat([self.sites[p.source].is_gvcf for p in pieces], counts) & ~is_symbolic
            length = np.where(is_plain, np.strings.str_len(values[ALLELE][:, 0]), length)
        n = len(merged.first)
        symbolic, _ = merged.first_where(is_symbolic)
        of_symbolic = np.zeros(n, dtype=bool)
        of_symbolic[symbolic] = True
        longest = np.zeros(n, dtype="i8")
        np.maximum.at(longest, merged.record, np.where(of_symbolic[merged.record] & ~is_symbolic, 0, length))
        is_joined = of_symbolic | np.isin(np.arange(n), list(merged.joined))
        fields = {LENGTH: np.where(is_joined, longest, length[merged.first])}
        if END in names:
            theirs = np.concatenate([self.sites[p.source].extents.ends(p.rows)[p.kept] for p in pieces])
            fields[END] = np.full(n, INT_MISSING, dtype="i8")
            which, at = merged.first_where(is_symbolic & (theirs != INT_MISSING))
            fields[END][which] = theirs[at]
            # of records without symbolic ALTs too, consistent with the length
            last = np.full(n, INT_MISSING, dtype="i8")
            np.maximum.at(last, merged.record, theirs)
            fields[END][~of_symbolic] = np.where(is_joined, last, theirs[merged.first])[~of_symbolic]
        return fields

    def _sizes(
        self, pieces: Sequence[Piece], values: Mapping[str, np.ndarray], merged: Merged, alleles: np.ndarray
    ) -> np.ndarray:
        """Return the SVLEN of each ALT of the records with these alleles: that of the first source that has any."""
        result = np.full((len(alleles), alleles.shape[1] - 1), INT_FILL, dtype="i8")
        result[:, :1] = INT_MISSING
        vectors = [self.sites[p.source].extents.vectors(p.rows)[p.kept] for p in pieces]
        width = max((v.shape[1] for v in vectors), default=1)
        theirs = np.concatenate([np.empty((0, width), "i8"), *(padded(v, width, INT_FILL) for v in vectors)])
        which, at = merged.first_where((values[EXTENT] != NONE) & (longest(theirs) != 0))
        for record, i in zip(which.tolist(), at.tolist(), strict=True):
            ours, alts = (_present(texts) for texts in (alleles[record, 1:], values[ALLELE][i, 1:]))
            sizes = dict(zip(_labels(alts), by_alt(alts, theirs[i].tolist()), strict=True))
            result[record, : len(ours)] = [sizes.get(label, INT_MISSING) for label in _labels(ours)]
        return result

    @staticmethod
    def _ids(sites: SourceSites, rows: slice) -> np.ndarray:
        """Read the IDs of some variants, `STR_MISSING` where there is none."""
        if ID not in sites.arrays:
            return np.full(rows.stop - rows.start, STR_MISSING, dtype="T")
        ids = sites.read(ID, rows).astype("T")
        ids[ids == ""] = STR_MISSING
        if ID_MASK in sites.arrays:
            ids[sites.read(ID_MASK, rows).astype(bool)] = STR_MISSING
        return ids


def _present(alts: np.ndarray) -> list[str]:
    return [alt for alt in alts.tolist() if alt not in ABSENT_ALLELES]


def _labels(alts: Sequence[str]) -> list[tuple[str, int]]:
    """Label ALTs, regardless of case, with the number of the same ones before each."""
    upper = [alt.upper() for alt in alts]
    return [(alt, upper[:i].count(alt)) for i, alt in enumerate(upper)]


def _both_ids(first: str, second: str) -> str:
    """
    Join the IDs of a record of two sources, without repeats (VCF 4.5, section 1.6.1: they are unique).

    >>> _both_ids("rs1;rs2", "rs3;rs2")
    'rs1;rs2;rs3'
    """
    return ";".join(dict.fromkeys([*first.split(";"), *second.split(";")]))


class Counted(NamedTuple):
    """
    Counts of one range.

    Attributes
    ----------
    number
        Number of the range.
    records
        Number of records of the union.
    most_alleles
        Largest number of alleles of a joined record; of any record, if sources are gVCFs.
    blocks
        Sources that are not used as gVCFs but have reference blocks: number of the source, and row of its first one.
    """

    number: int
    records: int
    most_alleles: int
    blocks: Sequence[tuple[int, int]]


def counting(union: Union) -> ScanReader:
    """Return the scan that counts the records of each range, as `Counted`."""
    return ScanReader(partial(_count, union), union.n_ranges, 1, union.merge_mem)


def _count(union: Union, ranges: slice) -> Counted:
    """Merge the range `ranges.start`, and count its records, and the alleles of the record that has most."""
    pieces, values, merged = union.merge(ranges.start)
    blocks = [(p.source, p.block) for p in pieces if p.block is not None]
    most = merged.most_alleles
    if any(sites.is_gvcf for sites in union.sites):
        places = np.flatnonzero((blank_absent(values[ALLELE]) != "").any(axis=0))
        most = max(most, 1 + int(places.max(initial=0)))
    return Counted(ranges.start, len(merged.first), most, blocks)
