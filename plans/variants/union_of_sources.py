"""The union of the variants of several sources: the genome cut into ranges, and the records of each range."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import MIN_TASKS, TASK_BYTES
from plans.core.compatibility import SITE_FIELDS, without_nothing
from plans.core.memory import SLACK, Memory, memory_message
from plans.variants.reference_blocks import LEN, Spans, Unseen, first_block, without_unseen
from plans.variants.sortedness import Runs
from plans.variants.union_sites import Merged, merge_sites, union_table
from vczstore.errors import MemoryLimitError
from vczstore.vcz import arrays, pipeline, zarr_objects
from vczstore.vcz.extents import END, LENGTH, NONE, SVLEN, Extents
from vczstore.vcz.missing import INT_MISSING, STR_MISSING, TEXT, missing_value, same
from vczstore.vcz.model import Vcz

if TYPE_CHECKING:
    from plans.core.scan_tasks import ScanReader

OPERATION = "create"

CONTIG, POSITION, ALLELE = SITE_FIELDS

EXTENT = "extent"

ID, ID_MASK, FILTER = "variant_id", "variant_id_mask", "variant_filter"

SEGMENT_ROWS = 100
"""After so many variants the driver looks up again where on the genome a source is."""

SEGMENTS = 1_000_000
"""About as many such places the driver keeps at most, of all sources together."""

CONTIG_SHIFT = 40
"""A place on the genome is one integer: the contig's number above so many bits for the position."""


def source_sites(sources: Sequence[Vcz], *, is_gvcf: bool = False, info: Sequence[str] = ()) -> list["SourceSites"]:
    _, numbers = union_table([s.table("contig_id").tolist() for s in sources])
    names = (*SITE_FIELDS, LENGTH, END, SVLEN, ID, ID_MASK, LEN, *info)
    return [
        SourceSites({n: s.arrays[n] for n in names if n in s.arrays}, contigs, is_gvcf)
        for s, contigs in zip(sources, numbers, strict=True)
    ]


class Piece(NamedTuple):
    """
    Neighbouring records of a source.

    Attributes
    ----------
    source
        The number of the source.
    rows
        Its records.
    kept
        Which of these are variants, and not reference blocks.
    block
        The first that is a reference block, although the source is not said to be a gVCF.
    """

    source: int
    rows: slice
    kept: np.ndarray | slice = slice(None)
    block: int | None = None

    @property
    def variants(self) -> np.ndarray:
        """The rows of those that are variants."""
        return np.arange(self.rows.start, self.rows.stop)[self.kept]


@dataclass(frozen=True)
class SourceSites:
    """
    What a source says of its variants. It is sent to workers.

    Attributes
    ----------
    arrays
        By name.
    contigs
        For each contig of the source, its number in the union's table.
    is_gvcf
        Whether there are reference blocks among its records, which are no variants.
    """

    arrays: Mapping[str, AnyArray]
    contigs: np.ndarray
    is_gvcf: bool = False

    @property
    def n_variants(self) -> int:
        """How many variants there are."""
        return int(self.arrays[POSITION].shape[0])

    def read(self, name: str, rows: slice) -> np.ndarray:
        """Some rows of an array; strings in one form, for any dtype that they are stored as."""
        return arrays.read_normalised(self.arrays[name], (rows,))

    def places(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Where variants are on the genome: their contigs by the numbers in the union's table, and their positions."""
        contig, position = (self.read(name, rows).astype("i8") for name in (CONTIG, POSITION))
        return self.contigs[contig], position

    @property
    def row_bytes(self) -> int:
        """About what it takes to merge one variant: each allele as a string, in a list and as two numbers."""
        width = self.arrays[ALLELE].shape[1]
        by_sample = 32 * self.arrays[LEN].shape[1] if LEN in self.arrays else 0
        return 300 + 160 * int(width) + (128 if ID in self.arrays else 0) + by_sample

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

    def variants(self, source: int, rows: slice) -> tuple[Piece, np.ndarray, np.ndarray]:
        """
        Find the records that are variants.

        Parameters
        ----------
        source
            The number of this source.
        rows
            Where to look.

        Returns
        -------
        piece : Piece
            Which of them are.
        alleles : numpy.ndarray of str
            Theirs, without those that stand for what was not seen.
        extents : numpy.ndarray of int64
            How long they are.
        """
        alleles = self._alleles(rows)
        texts = set(alleles[:, 1:].ravel().tolist())
        extents = self.extents.look(alleles, rows, texts)
        unseen, piece = Unseen.of(alleles, texts), Piece(source, rows)
        if unseen is None:
            return piece, alleles.astype("T"), extents
        if not self.is_gvcf:
            block = first_block(alleles, unseen, Spans.of(self.arrays), rows)
            return piece._replace(block=block), alleles, extents
        kept = ~unseen.is_alone
        seen = without_unseen(alleles[kept], unseen.is_unseen[kept])
        return piece._replace(kept=kept), seen.astype("T"), extents[kept]

    def _alleles(self, rows: slice) -> np.ndarray:
        """As Python's strings those of a gVCF, few of which are of variants; else as NumPy's."""
        if not self.is_gvcf:
            return self.read(ALLELE, rows).astype("T")
        with pipeline.naming(f"{ALLELE} in {zarr_objects.place(self.arrays[ALLELE].store)}"):
            return arrays.read_strings(self.arrays[ALLELE], (rows, slice(None)))

    def segments(self, runs: Runs) -> np.ndarray:
        """
        The runs of the source on the union's genome.

        Returns
        -------
        numpy.ndarray of int64
            Of four columns: the first and the last place of a segment, its first row and the one after its last; in
            the order of places.
        """
        contig = self.contigs[runs.contig] << CONTIG_SHIFT
        segments = np.stack([contig + runs.first, contig + runs.last, runs.start, runs.stop], axis=1)
        return np.asarray(segments[np.argsort(segments[:, 0], kind="stable")])


def cut_genome(segments: Sequence[np.ndarray], row_bytes: Sequence[int], room: int) -> np.ndarray:
    """
    Cut the genome where segments begin, so that what is between two cuts takes no more than so many bytes.

    Parameters
    ----------
    segments
        Of each source; see `SourceSites.segments`.
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
    any_alt
        Whether records are joined that share no ALT; see `plans.variants.join_records.join`.
    """

    sites: Sequence[SourceSites]
    edges: np.ndarray
    pieces: Sequence[np.ndarray]
    any_alt: bool = False

    @classmethod
    def of(
        cls,
        sites: Sequence[SourceSites],
        segments: Sequence[np.ndarray],
        beside: int,
        memory: Memory,
        *,
        operation: str = OPERATION,
        n_ranges: int = MIN_TASKS,
    ) -> "Union":
        """
        Cut the genome into ranges that fit into a task's memory.

        Parameters
        ----------
        sites, segments
            The sources, and what is known of their order; see `SourceSites.segments`.
        beside
            What a task needs at least to write what it has merged, in bytes.
        memory
            What a task may use.
        operation
            For the message.
        n_ranges
            There are about so many at least, if a range is no less than a chunk of each source then.

        Raises
        ------
        MemoryLimitError
            If there is a range that does not fit, and nowhere to cut it.
        """
        free = memory.allowed - memory.reserved - SLACK
        limit = min(free // 2, free - beside)
        row_bytes = [s.row_bytes for s in sites]
        total = sum(s.n_variants * b for s, b in zip(sites, row_bytes, strict=True))
        # some chunks of each source, or else they are read again and again: two ranges share one of each at their edge
        lengths = [min(s.n_variants, arrays.outer_chunks(s.arrays[ALLELE])[0]) for s in sites]
        chunks = sum(n * b for n, b in zip(lengths, row_bytes, strict=True))
        room = min(max(2 * chunks, min(TASK_BYTES, total // n_ranges)), limit)
        while True:
            edges = cut_genome(segments, row_bytes, room)
            union = cls(sites, edges, [rows_between(s, edges) for s in segments])
            if union.merge_mem <= limit:
                return union
            if room < min(row_bytes):
                if union.merge_mem + beside > free:
                    needed = memory.reserved + SLACK + union.merge_mem + beside
                    raise MemoryLimitError(memory_message(operation, needed, memory.allowed))
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

    def rows(self, i: int) -> Iterator[tuple[int, slice, np.ndarray, np.ndarray]]:
        """The rows in a range, exactly: the number of a source, which of its rows, and where these are."""
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
            Of which source, and which records.
        values : dict of numpy.ndarray
            What `SITE_FIELDS` have in these records, contigs by their numbers in the union's table; and their extents.
        merged : Merged
            Which of the records are the same.
        """
        pieces = []
        width = max(s.arrays[ALLELE].shape[1] for s in self.sites)
        values: dict[str, list[np.ndarray]] = {name: [] for name in (*SITE_FIELDS, EXTENT)}
        for source, where, contig, position in self.rows(i):
            sites = self.sites[source]
            piece, found, extents = sites.variants(source, where)
            alleles = np.full((len(found), width), "", dtype="T")
            alleles[:, : found.shape[1]] = found
            pieces.append(piece)
            values[CONTIG].append(contig[piece.kept])
            values[POSITION].append(position[piece.kept])
            values[ALLELE].append(alleles)
            values[EXTENT].append(extents)
        joined = {name: np.concatenate(found) for name, found in values.items()}
        source_of = np.repeat([p.source for p in pieces], [len(found) for found in values[ALLELE]])
        contig, position, alleles, extents = (joined[name] for name in (*SITE_FIELDS, EXTENT))
        merged = merge_sites(contig, position, alleles, source_of, extents, any_alt=self.any_alt)
        return pieces, joined, merged

    def records(self, i: int, names: Sequence[str], n_alleles: int) -> dict[str, np.ndarray]:
        """The records of the union in a range: what each of these arrays has of them, of so many alleles."""
        pieces, values, merged = self.merge(i)
        found = {name: values[name][merged.first] for name in SITE_FIELDS}
        found[ALLELE] = without_nothing(found[ALLELE])[:, :n_alleles]  # what is cut off are places of <NON_REF>
        found[ALLELE] = np.pad(found[ALLELE], ((0, 0), (0, n_alleles - found[ALLELE].shape[1])), constant_values="")
        for row, alleles in merged.joined.items():
            found[ALLELE][row] = [*alleles, *[""] * (n_alleles - len(alleles))]
        found |= self._lengths(pieces, values, merged, names)
        if ID in names:
            ids = [self._ids(self.sites[p.source], p.rows)[p.kept] for p in pieces]
            said = np.concatenate(ids)
            found[ID] = np.full(len(merged.first), STR_MISSING, dtype="T")
            found[ID_MASK] = np.ones(len(merged.first), dtype=bool)
            which, at = merged.first_where(said != STR_MISSING)
            found[ID][which], found[ID_MASK][which] = said[at], False
            others = np.flatnonzero((said != STR_MISSING) & (said != found[ID][merged.record]))
            for record, text in zip(merged.record[others].tolist(), said[others].tolist(), strict=True):
                found[ID][record] = _both_ids(found[ID][record], text)
        info = set(names) - {*found, ID, ID_MASK}
        return found | {name: self._info(name, pieces, merged) for name in sorted(info)}

    def _info(self, name: str, pieces: Sequence[Piece], merged: Merged) -> np.ndarray:
        """An INFO field of one value: that of the first source that has the record and a value of it."""
        like = max((s.arrays[name] for s in self.sites if name in s.arrays), key=lambda array: array.dtype.itemsize)
        dtype = np.dtypes.StringDType() if like.dtype.kind in TEXT else like.dtype
        said, is_said = list[np.ndarray](), list[np.ndarray]()
        for piece in pieces:
            n, array = len(piece.variants), self.sites[piece.source].arrays.get(name)
            if array is None:
                said.append(np.zeros(n, dtype=dtype))
                is_said.append(np.zeros(n, dtype=bool))
                continue
            values = self.sites[piece.source].read(name, piece.rows)[piece.kept]
            is_said.append(~same(values, missing_value(name, array)))
            said.append(values.astype(dtype))
        which, at = merged.first_where(np.concatenate([np.zeros(0, dtype=bool), *is_said]))
        found = np.full(len(merged.first), missing_value(name, like), dtype=dtype)
        found[which] = np.concatenate([np.zeros(0, dtype=dtype), *said])[at]
        return found

    def _lengths(
        self, pieces: Sequence[Piece], values: Mapping[str, np.ndarray], merged: Merged, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """How long records are: where ALTs are symbolic as long as these are, without others joined with them."""
        is_symbolic = values[EXTENT] != NONE
        length = np.concatenate([self.sites[p.source].lengths(p.rows)[p.kept] for p in pieces])
        if any(sites.is_gvcf for sites in self.sites):  # where what was not seen may make a record longer
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
        found = {LENGTH: np.where(is_joined, longest, length[merged.first])}
        for name, missing in ((END, INT_MISSING), (SVLEN, 0)):
            if name in names:
                extents = [(self.sites[p.source].extents, p) for p in pieces]
                said = np.concatenate([(e.ends if name == END else e.sizes)(p.rows)[p.kept] for e, p in extents])
                found[name] = np.full(n, INT_MISSING, dtype="i8")
                which, at = merged.first_where(is_symbolic & (said != missing))
                found[name][which] = said[at]
                if name == END:  # of records without an ALT too, in accord with the length
                    last = np.full(n, INT_MISSING, dtype="i8")
                    np.maximum.at(last, merged.record, said)
                    found[END][~of_symbolic] = np.where(is_joined, last, said[merged.first])[~of_symbolic]
        return found

    @staticmethod
    def _ids(sites: SourceSites, rows: slice) -> np.ndarray:
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


class Counted(NamedTuple):
    """
    What a task has counted in a range.

    Attributes
    ----------
    number
        Of the range.
    records
        How many records the union has there.
    most_alleles
        How many alleles one that has been joined has at most; of sources that are gVCFs, any.
    blocks
        The first reference block of each source that is not said to be a gVCF: the number of the source, and the row.
    """

    number: int
    records: int
    most_alleles: int
    blocks: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class CountRecords:
    """Count the records of the union in each range, and the alleles of the one that has most."""

    union: Union

    def look(self, ranges: slice) -> Counted:
        """Merge one range."""
        pieces, values, merged = self.union.merge(ranges.start)
        blocks = [(p.source, p.block) for p in pieces if p.block is not None]
        most = merged.most_alleles
        if any(sites.is_gvcf for sites in self.union.sites):
            places = np.flatnonzero((without_nothing(values[ALLELE]) != "").any(axis=0))
            most = max(most, 1 + int(places.max(initial=0)))
        return Counted(ranges.start, len(merged.first), most, blocks)

    def by_cubed(self, memory: Memory, tag: int) -> "list[ScanReader]":
        """A task for each range."""
        from plans.core import scan_tasks

        if not self.union.n_ranges:
            return []
        return [scan_tasks.ScanReader(self.look, self.union.n_ranges, 1, tag, self.union.merge_mem)]
