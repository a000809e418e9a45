"""Scan that checks that variants are sorted, and that ``region_index`` describes them."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import TASK_BYTES
from plans.core.scan_reader import ScanReader
from plans.maintenance.findings import Finding, TaskFindings, finding_at
from plans.variants.sortedness import task_rows
from vczstore.vcz import arrays, pipeline
from vczstore.vcz.model import VARIANTS, Vcz

INDEX_COLUMNS = ("chunk", "contig", "start", "end", "max end", "records")
"""The columns of ``region_index``, which has one row for each contig in each chunk of variants."""


@dataclass(frozen=True)
class Order:
    """
    Scan that checks the sort order of variants, their contig numbers, and ``region_index``.

    Attributes
    ----------
    contig, position, length, index
        ``variant_contig``, ``variant_position``, ``variant_length`` and ``region_index``; the last two may be None.
    n_contigs
        Length of ``contig_id``; None if the store lacks it.
    chunk
        Variants per chunk as counted by the index; the chunks of an array may be multiples of it.
    """

    contig: AnyArray
    position: AnyArray
    length: AnyArray | None
    index: AnyArray | None
    n_contigs: int | None
    chunk: int

    @classmethod
    def scans(cls, vcz: Vcz) -> list[ScanReader]:
        """Return one scan over all variants; an empty list if their contig or position array is unsuitable."""
        candidates = {name: vcz.arrays.get(f"variant_{name}") for name in ("contig", "position", "length")}
        contig, position, length = (
            a if a is not None and a.shape == (vcz.n_variants,) and a.dtype.kind in "iu" else None
            for a in candidates.values()
        )
        if contig is None or position is None or arrays.is_flexible(position):
            return []
        index, contigs = vcz.arrays.get("region_index"), vcz.arrays.get("contig_id")
        if index is not None and (index.ndim != 2 or index.shape[1] != len(INDEX_COLUMNS)):
            index = None
        chunk = vcz.chunk_lengths[VARIANTS]
        order = cls(contig, position, length, index, None if contigs is None else contigs.shape[0], chunk)
        rows = task_rows(arrays.outer_chunks(position)[0], chunk)
        per_task = rows * max(1, min(TASK_BYTES // (rows * 24), math.ceil(vcz.n_variants / rows / 4)))
        per_task = min(per_task, vcz.n_variants)
        mem = 100 * per_task  # ten columns of integers
        for array in (contig, position, length):
            if array is not None:
                n_chunks = math.ceil(per_task / arrays.outer_chunks(array)[0]) + 1
                mem += arrays.decode_mem(array, min(n_chunks, pipeline.READS_AT_ONCE))
        if index is not None:
            mem += 2 * arrays.decode_mem(index, math.prod(arrays.grid_of(index)))
        return [ScanReader(order.look, vcz.n_variants, per_task, mem)]

    def look(self, rows: slice) -> TaskFindings | None:
        """Compare rows with each other, the row before them, and the index; None if they cannot be decoded."""
        start = max(0, rows.start - 1)
        try:
            contig, position = (arrays.read(a, (slice(start, rows.stop),)) for a in (self.contig, self.position))
            length = None if self.length is None else arrays.read(self.length, (rows,)).astype("i8")
            index = None if self.index is None else arrays.read(self.index, (slice(None), slice(None))).astype("i8")
        except Exception:
            return None  # the scan of chunks reports chunks that cannot be decoded
        contig, position = contig.astype("i8"), position.astype("i8")
        seen = TaskFindings("variant_position")
        new = np.flatnonzero(contig[1:] != contig[:-1]) + 1
        # with more starts than contigs, some contig is not contiguous
        limit = len(contig) if self.n_contigs is None else self.n_contigs + 1
        seen.contigs = [(start + int(i), int(contig[i])) for i in ([0] * (rows.start == 0) + new.tolist())[:limit]]
        decreases = (contig[1:] == contig[:-1]) & (position[1:] < position[:-1])
        if decreases.any():
            i = int(np.argmax(decreases)) + 1
            what = f"variant {start + i} at {position[i]} comes after {position[i - 1]} of the same contig"
            seen.errors.append(finding_at(self.position, [start + i], what))
        if self.n_contigs is not None and ((contig < 0) | (contig >= self.n_contigs)).any():
            i = int(np.argmax((contig < 0) | (contig >= self.n_contigs)))
            what = f"variant {start + i} is on contig {contig[i]}, there are {self.n_contigs}"
            seen.errors.append(finding_at(self.contig, [start + i], what))
        if index is not None:
            skipped = rows.start - start
            seen.errors += self._index(rows, contig[skipped:], position[skipped:], length, index)
        return seen

    def _index(
        self, rows: slice, contig: np.ndarray, position: np.ndarray, length: np.ndarray | None, index: np.ndarray
    ) -> Iterator[Finding]:
        """Yield an error per chunk with wrong index rows; from row 0 on, also one for rows of chunks out of range."""
        chunk = self.chunk
        last = math.ceil(self.position.shape[0] / chunk)
        beyond = (index[:, 0] < 0) | (index[:, 0] >= last)
        way_out = "; re-create it with vcf2zarr create-index"
        if rows.start == 0 and beyond.any():
            yield Finding("region_index", None, f"has a row of chunk {index[beyond][0, 0]}, there are {last}{way_out}")
        for i in range(rows.start // chunk, math.ceil(rows.stop / chunk)):
            part = slice(i * chunk - rows.start, min((i + 1) * chunk, rows.stop) - rows.start)
            ends = None if length is None else position[part] + length[part] - 1
            expected, actual = _index_rows(i, contig[part], position[part], ends), index[index[:, 0] == i]
            if ends is None:
                expected, actual = (
                    np.delete(table, INDEX_COLUMNS.index("max end"), axis=1) for table in (expected, actual)
                )
            # a 32-bit index saturates
            expected, actual = (np.minimum(table, np.iinfo("i4").max) for table in (expected, actual))
            if not np.array_equal(expected, actual):
                yield Finding("region_index", None, f"does not say which variants are in chunk {i}{way_out}")


def _index_rows(i: int, contig: np.ndarray, position: np.ndarray, ends: np.ndarray | None) -> np.ndarray:
    """Return the expected rows of the index for chunk `i` of variants."""
    first = np.flatnonzero(np.append(True, contig[1:] != contig[:-1]))
    after = np.append(first[1:], len(contig))
    longest = position[first] if ends is None else np.maximum.reduceat(ends, first)
    columns = [np.full(len(first), i), contig[first], position[first], position[after - 1], longest, after - first]
    return np.stack(columns, axis=1)


def contig_errors(reports: Iterable[TaskFindings]) -> Iterator[Finding]:
    """Yield an error for the first contig whose variants are not contiguous."""
    begun: set[int] = set()
    for row, contig in sorted(begin for report in reports for begin in report.contigs):
        if contig in begun:
            yield Finding("variant_contig", None, f"contig {contig} begins again at variant {row}; sort the variants")
            return
        begun.add(contig)
