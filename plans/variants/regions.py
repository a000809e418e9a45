"""Regions: which variants overlap them, as selected by ``-r`` and ``-R`` of bcftools."""

import gzip
import io
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from zarr.types import AnyArray

from plans.core.memory import Memory
from plans.core.scan_reader import ScanReader
from plans.variants.region_index import FIELDS, REGION_INDEX
from vczstore.errors import OptionError, UnsuitableError
from vczstore.vcz import arrays
from vczstore.vcz.model import VARIANTS, Vcz, listing

MAX_BYTES = 2**24
"""Largest size of a file of regions, uncompressed, in bytes: a million regions, which are all held in memory."""

_NO_END = np.iinfo("i8").max
_ROWS_PER_TASK = 2**20


class Region(NamedTuple):
    """A region; positions are 1-based, and the end is included."""

    contig: str
    start: int = 1
    end: int = _NO_END


def parse_region(operation: str, text: str, contigs: Sequence[str]) -> Region:
    """
    Parse a region as bcftools does: ``CONTIG``, ``CONTIG:POSITION``, ``CONTIG:START-`` or ``CONTIG:START-END``.

    Any of `contigs`, which may have colons, is a whole contig. An end before the start raises an `OptionError`.

    >>> parse_region("export", "chr1:5-", ["chr1"])
    Region(contig='chr1', start=5, end=9223372036854775807)
    >>> parse_region("export", "HLA:01", ["HLA:01"]).start, parse_region("export", "chr1:0-9", ["chr1"]).start
    (1, 1)
    """
    if text in contigs:
        return Region(text)
    match = re.fullmatch("(.+):([0-9]+)(-([0-9]*))?", text, re.DOTALL)
    if match is None:
        return Region(text)
    start = max(1, _position(match[2]))
    end = _position(match[4]) if match[4] else _NO_END
    region = Region(match[1], start, start if match[3] is None else end)
    if region.end < start:
        raise OptionError(f"{operation}: the region {text} ends before it begins; name its start first")
    return region


def _position(text: str) -> int:
    """Parse a position; one that exceeds int64 is clipped."""
    digits = text.lstrip("0")
    return int(digits or 0) if len(digits) < len(str(_NO_END)) else _NO_END


def read_regions_file(operation: str, path: Path) -> list[Region]:
    """
    Read a file of regions: contig, start and end in tab-separated columns; without an end, a single position.

    Positions are 1-based, and ends are included. In a file whose name ends in .bed they are 0-based, ends are excluded
    and required, and lines for genome browsers are skipped. A file whose name ends in .gz is decompressed.

    Raises
    ------
    OptionError
        If the file cannot be read, is larger than `MAX_BYTES`, has an invalid line, or has no region.
    """
    is_bed = path.name.lower().removesuffix(".gz").endswith(".bed")
    result = []
    for number, line in enumerate(_lines(operation, path), 1):
        text = line.rstrip(" \t\r\n")
        if not text or text.startswith("#") or (is_bed and re.match(r"(track|browser)( |$)", text)):
            continue
        contig, *ends = text.split("\t")[:3]
        if not ends or (is_bed and len(ends) < 2) or not all(re.fullmatch("[0-9]+", end) for end in ends):
            raise OptionError(
                f"{operation}: line {number:,} of {path} is no region; give contig, start and end, separated by tabs"
            )
        start, end = max(1, _position(ends[0]) + is_bed), _position(ends[-1])
        if end < start:
            raise OptionError(f"{operation}: line {number:,} of {path} ends before it begins; name the start first")
        result.append(Region(sys.intern(contig), start, end))
    if not result:
        raise OptionError(f"{operation}: {path} has no region; give contig, start and end in a line, separated by tabs")
    return result


def _lines(operation: str, path: Path) -> Iterator[str]:
    """Yield the lines of a file of regions, which are separated by line feeds only."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise OptionError(
                f"{operation}: {path} is larger than {MAX_BYTES:,} bytes; merge its regions, and leave out what is "
                "behind the third column"
            )
        yield from io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline="\n")
    except UnicodeDecodeError as error:
        raise OptionError(f"{operation}: {path} is no UTF-8 text; give a region in a line") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"{operation}: {path} cannot be read ({reason}); name a file of regions") from error


def require_contigs(operation: str, vcz: Vcz, regions: Sequence[Region], named_by: str) -> None:
    """Raise an `OptionError` if a region is on a contig that a VCZ does not have."""
    contigs = {*vcz.table("contig_id").tolist()}
    for region in regions:
        if region.contig not in contigs:
            raise OptionError(
                f"{operation}: {vcz.label} has no contig {listing([region.contig])}, which {named_by} names; it has "
                f"{listing(sorted(contigs))}"
            )


@dataclass(frozen=True)
class Overlap:
    """
    Regions by the number of the contig, merged where they overlap or adjoin, with 0-based starts and excluded ends.

    Examples
    --------
    >>> overlap = Overlap.of([Region("b", 5, 9), Region("b", 8, 12), Region("b", 20, 20)], ["a", "b"])
    >>> overlap.starts, overlap.ends
    ({1: array([ 4, 19])}, {1: array([12, 20])})
    >>> overlap.has(np.array([0, 1, 1, 1]), np.array([5, 1, 2, 13]), np.array([1, 4, 3, 7])).tolist()
    [False, False, False, False]
    >>> overlap.has(np.array([1, 1, 1]), np.array([1, 12, 13]), np.array([5, 1, 8])).tolist()
    [True, True, True]
    """

    starts: dict[int, np.ndarray]
    ends: dict[int, np.ndarray]

    @classmethod
    def of(cls, regions: Sequence[Region], contigs: Sequence[str]) -> "Overlap":
        """Merge regions, whose contigs must be in `contigs`."""
        numbers = {name: i for i, name in reversed([*enumerate(contigs)])}
        by_contig: dict[int, list[tuple[int, int]]] = {}
        for region in regions:
            by_contig.setdefault(numbers[region.contig], []).append((max(0, region.start - 1), region.end))
        starts, ends = {}, {}
        for contig, pairs in by_contig.items():
            start, end = np.array(sorted(pairs), dtype="i8").T
            reach = np.maximum.accumulate(end)
            begins = np.flatnonzero(np.append(True, start[1:] > reach[:-1]))
            starts[contig], ends[contig] = start[begins], reach[np.append(begins[1:] - 1, len(reach) - 1)]
        return cls(starts, ends)

    def has(self, contig: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
        """Whether each variant overlaps any of the regions."""
        result = np.zeros(len(contig), dtype=bool)
        start = position.astype("i8") - 1
        stop = start + np.maximum(length.astype("i8"), 1)
        for number in np.unique(contig).tolist():
            if number in self.starts:
                on_contig = contig == number
                first = np.searchsorted(self.ends[number], start[on_contig], side="right")  # the first to end after it
                begins = np.append(self.starts[number], _NO_END)
                result[on_contig] = begins[first] < stop[on_contig]
        return result


@dataclass(frozen=True)
class FindRows:
    """Finds the rows of variants that overlap regions, in the `chunks` of `width` variants that may have them."""

    fields: tuple[AnyArray, ...]
    overlap: Overlap
    chunks: np.ndarray | range
    width: int

    @classmethod
    def of(cls, operation: str, vcz: Vcz, overlap: Overlap) -> "FindRows":
        """
        Return the scan of the chunks that ``region_index`` selects, or of all chunks if there is none.

        Raises
        ------
        UnsuitableError
            If the VCZ lacks one of `FIELDS`, such as ``variant_length``.
        """
        if (missing := next((name for name in FIELDS if name not in vcz.arrays), None)) is not None:
            raise UnsuitableError(
                f"{operation}: {vcz.label} has no {missing}, which says which variants overlap regions; leave the "
                "regions out, or convert its VCF with a newer bio2zarr"
            )
        width = vcz.chunk_lengths[VARIANTS]
        chunks: np.ndarray | range = range(-(-vcz.n_variants // width))
        if REGION_INDEX in vcz.arrays and vcz.arrays[REGION_INDEX].shape[1:] == (6,):
            index = arrays.read(vcz.arrays[REGION_INDEX], (slice(None), slice(None))).astype("i8")
            is_candidate = overlap.has(index[:, 1], index[:, 2], index[:, 4] - index[:, 2] + 1)
            chunks = np.unique(index[is_candidate, 0])
        return cls(tuple(vcz.arrays[name] for name in FIELDS), overlap, chunks, width)

    def look(self, numbers: slice) -> np.ndarray | None:
        """Return the runs of overlapping rows in `chunks[numbers]`, runs by start and stop; None if there are none."""
        ids = np.asarray(self.chunks[numbers])
        bounds = [0, *(np.flatnonzero(np.diff(ids) != 1) + 1).tolist(), len(ids)]
        parts = []
        for first, last in pairwise(bounds):
            start = int(ids[first]) * self.width
            stop = min(self.fields[0].shape[0], (int(ids[last - 1]) + 1) * self.width)
            values = (arrays.read(array, (slice(start, stop),)) for array in self.fields)
            edges = np.diff(self.overlap.has(*values).astype("i1"), prepend=0, append=0)
            parts.append(start + np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1))
        runs = np.concatenate(parts)
        return runs if len(runs) else None

    def readers(self, memory: Memory) -> list[ScanReader]:
        """Scan with tasks of some chunks each, so that stored chunks are mostly read once."""
        stored = max(arrays.outer_chunks(array)[0] for array in self.fields)
        per_task = max(1, max(stored, min(_ROWS_PER_TASK, self.fields[0].shape[0] // 8)) // self.width)
        mem = sum(arrays.decode_mem(array, 2) for array in self.fields)
        return [ScanReader(self.look, len(self.chunks), per_task, mem + 100 * per_task * self.width)]
