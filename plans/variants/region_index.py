"""
The ``region_index`` of a VCZ: the contigs and the ranges of positions that each chunk of variants covers.

It has a row for each contig in each chunk of variants, as bio2zarr writes it.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from zarr.types import AnyArray

from plans.core.memory import Memory
from plans.core.scan_reader import ScanReader
from plans.core.select_rows import Rows, read_rows
from vczstore.stores.edits import WriteArray
from vczstore.vcz import arrays, conversion
from vczstore.vcz.model import Vcz, dimensions

REGION_INDEX = "region_index"
FIELDS = ("variant_contig", "variant_position", "variant_length")
"""The arrays that ``region_index`` is computed from, and that determine which variants overlap a region."""

_ROWS_PER_TASK = 2**19

_ROW_BYTES = 100
"""Memory to index one variant."""


def region_index(contig: np.ndarray, position: np.ndarray, length: np.ndarray, *, start: int, chunk: int) -> np.ndarray:
    """
    Return the rows of ``region_index`` for consecutive variants: one for each contig in each chunk of variants.

    The first variant is in row `start`, which begins a chunk; `chunk` is the number of variants in a chunk.

    Returns
    -------
    numpy.ndarray of int64
        Six columns: the chunk, the contig, the first and the last position, the largest end (the last base of a
        variant), the number of variants.

    Examples
    --------
    >>> ones = np.ones(3, dtype="i8")
    >>> region_index(np.array([0, 0, 1]), np.array([5, 9, 4]), 2 * ones, start=4, chunk=2)
    array([[ 2,  0,  5,  9, 10,  2],
           [ 3,  1,  4,  4,  5,  1]])
    """
    if not len(contig):
        return np.empty((0, 6), dtype="i8")
    contig, position = contig.astype("i8"), position.astype("i8")
    chunks = (start + np.arange(len(contig))) // chunk
    starts = np.flatnonzero(np.diff(chunks, prepend=-1).astype(bool) | np.diff(contig, prepend=-1).astype(bool))
    counts = np.diff(np.append(starts, len(contig)))
    ends = np.maximum.reduceat(position + length - 1, starts)
    return np.stack(
        [chunks[starts], contig[starts], position[starts], position[starts + counts - 1], ends, counts], axis=1
    )


def other_regions(array: AnyArray, values: np.ndarray) -> WriteArray:
    """Return the edit that replaces the rows of ``region_index``, widened up to int32; larger values are clipped."""
    values = values[:, : array.shape[1]]
    dtype = np.promote_types(array.dtype, np.min_scalar_type(-int(values.max(initial=1)) - 1))
    dtype = min(dtype, np.promote_types(array.dtype, "i4"), key=lambda candidate: candidate.itemsize)
    values = np.minimum(values, np.iinfo(dtype).max).astype(dtype)
    if dtype == array.dtype:
        return WriteArray(arrays.planned(array, shape=values.shape), values)
    names = dimensions(array)
    return WriteArray(conversion.reformed(array, dtype=dtype, shape=values.shape, dimension_names=names), values)


@dataclass(frozen=True)
class IndexRows:
    """Computes the rows of ``region_index`` for the variants in `rows`, with `chunk` variants in a chunk."""

    fields: tuple[AnyArray, ...]
    rows: Rows
    chunk: int

    @classmethod
    def of(cls, vcz: Vcz, rows: Rows, chunk: int) -> "IndexRows":
        """Return the scan of a VCZ, for the variants in `rows`."""
        return cls(tuple(vcz.arrays[name] for name in FIELDS), rows, chunk)

    def look(self, kept: slice) -> np.ndarray:
        """Return the rows of ``region_index`` for the part `kept` of `rows`, which consists of whole chunks."""
        positions = self.rows.positions(kept)
        contig, position, length = (read_rows(a, 0, positions) for a in self.fields)
        return region_index(contig, position, length.astype("i8"), start=kept.start, chunk=self.chunk)

    def readers(self, memory: Memory) -> list[ScanReader]:
        """Scan with tasks of some chunks, so that rows are mostly read once; a task is sent only its own runs."""
        stored = max(arrays.outer_chunks(array)[0] for array in self.fields)
        decoding = sum(arrays.decode_mem(array, 2) for array in self.fields)
        room = (memory.free - decoding) // _ROW_BYTES
        per_task = self.chunk * max(1, min(math.ceil(max(stored, _ROWS_PER_TASK) / self.chunk), room // self.chunk))
        mem = decoding + _ROW_BYTES * min(per_task, self.rows.n)
        readers = []
        for start in range(0, self.rows.n, per_task):
            kept = slice(start, min(self.rows.n, start + per_task))
            part = replace(self, rows=self.rows.within(kept))
            n = kept.stop - kept.start
            readers.append(ScanReader(part.look, n, n, mem, first=start))
        return readers

    @staticmethod
    def joined(found: "list[np.ndarray]") -> np.ndarray:
        """Concatenate the rows of all tasks, in order of chunks."""
        rows = np.concatenate([np.empty((0, 6), dtype="i8"), *found])
        return rows[np.argsort(rows[:, 0], kind="stable")]
