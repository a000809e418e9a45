"""Order: where on the genome the variants of a VCZ are, and whether they are sorted.

Tasks scan for runs of variants. The driver holds one row for each run; tasks read everything else where they need it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from plans.core.chunk_grid import MIN_TASKS
from plans.core.memory import Memory
from plans.core.scan_reader import ScanReader
from vczstore.errors import DamagedStoreError, IncompatibleError
from vczstore.vcz import arrays, pipeline
from vczstore.vcz.extents import ABSENT_ALLELES, Extents
from vczstore.vcz.model import VARIANTS, Vcz

RUN_ROWS = 2**18
"""Approximate limit of the number of variants that a task scans for runs."""
LONG_ROWS = 2**16
"""Chunks of more rows are processed in parts: one chunk of a site array may span many chunks of the calls."""
SCAN_BYTES = 64
"""Memory for the contig and position of one variant, decoded, and for all that is computed from them."""


class Runs(NamedTuple):
    """
    Runs of neighbouring variants of one contig, in order; all fields are arrays of int64.

    They are the contig's number in the VCZ, the first row and the one after the last, the first and the last position.
    """

    contig: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    first: np.ndarray
    last: np.ndarray


_NONE = Runs(*[np.empty(0, dtype="i8")] * 5)


class Seen(NamedTuple):
    """Result of scanning some rows: the runs, the first row that is on no contig, and the first unsorted row."""

    runs: Runs
    outside: int | None
    unsorted: int | None


@dataclass(frozen=True)
class FindRuns:
    """Finds the runs of a VCZ in tasks: they begin where the contig changes, and at multiples of `step` rows."""

    operation: str
    vcz: Vcz
    step: int

    def look(self, rows: slice) -> Seen:
        """Find the runs in some rows."""
        contig, position = (
            arrays.read(self.vcz.arrays[f"variant_{name}"], (rows,)).astype("i8") for name in ("contig", "position")
        )
        outside = (contig < 0) | (contig >= self.vcz.n_contigs) | (position < 0)
        if outside.any():
            return Seen(_NONE, int(rows.start + np.argmax(outside)), None)
        is_new: np.ndarray = np.r_[True, contig[1:] != contig[:-1]]
        is_decreasing: np.ndarray = np.r_[False, position[1:] < position[:-1]] & ~is_new
        starts = np.flatnonzero(is_new | (np.arange(rows.start, rows.stop) % self.step == 0))
        stops = np.append(starts[1:], len(position))
        runs = Runs(contig[starts], rows.start + starts, rows.start + stops, position[starts], position[stops - 1])
        return Seen(runs, None, int(rows.start + np.argmax(is_decreasing)) if is_decreasing.any() else None)

    def readers(self, memory: Memory) -> list[ScanReader]:
        """Scan with tasks of whole chunks."""
        if not self.vcz.n_variants:
            return []
        names = ("variant_contig", "variant_position", "contig_id")
        look = replace(self, vcz=self.vcz.only(names)).look  # the rest is not sent along
        chunk = unit_rows(self.vcz)
        room = min(RUN_ROWS, (memory.allowed - memory.reserved) // 2 // SCAN_BYTES)
        n_chunks = math.ceil(self.vcz.n_variants / chunk)
        rows = chunk * max(1, min(room // chunk, math.ceil(n_chunks / MIN_TASKS)))
        read = min(rows, self.vcz.n_variants)
        places = [self.vcz.arrays[f"variant_{name}"] for name in ("contig", "position")]
        decoding = max(
            arrays.decode_mem(a, min(math.ceil(read / arrays.outer_chunks(a)[0]) + 1, pipeline.READS_AT_ONCE))
            for a in places
        )
        return [ScanReader(look, self.vcz.n_variants, rows, read * SCAN_BYTES + decoding)]

    def joined(self, found: Sequence[Any]) -> Runs:
        """
        Combine the results of all tasks: return all runs, in order.

        Raises
        ------
        DamagedStoreError
            If a variant has an invalid contig or position.
        IncompatibleError
            If variants are not sorted: a position after a larger one, or a contig in two pieces.
        """
        seen = [Seen(*item) for item in found]
        if outside := [s.outside for s in seen if s.outside is not None]:
            row = min(outside)
            contig, position = (int(self._at(f"variant_{name}", row)) for name in ("contig", "position"))
            raise DamagedStoreError(
                f"{self.operation}: variant {row} of {self.vcz.label} has the variant_contig {contig} and the "
                f"variant_position {position}, which is nowhere on the {self.vcz.n_contigs} contigs "
                "of its contig_id; re-create it with vcf2zarr"
            )
        columns = [np.concatenate(column) for column in zip(_NONE, *(s.runs for s in seen), strict=True)]
        order = np.argsort(columns[1], kind="stable")
        runs = Runs(*(column[order] for column in columns))
        is_new = np.diff(runs.contig, prepend=-1) != 0
        decreasing = runs.start[1:][~is_new[1:] & (runs.first[1:] < runs.last[:-1])]
        repeated = np.ones(int(is_new.sum()), dtype=bool)
        repeated[np.unique(runs.contig[is_new], return_index=True)[1]] = False
        unsorted = [*decreasing, *runs.start[is_new][repeated], *(s.unsorted for s in seen if s.unsorted is not None)]
        if unsorted:
            row = int(min(unsorted))
            raise IncompatibleError(
                f"{self.operation}: variant {row} of {self.vcz.label}, {site(self.vcz, row)}, comes after "
                f"{site(self.vcz, row - 1)}: variants have to be sorted by position, each contig in one piece; sort "
                "the VCF with bcftools sort, and convert it again"
            )
        return runs

    def _at(self, name: str, row: int) -> Any:
        return arrays.read(self.vcz.arrays[name], (slice(row, row + 1),))[0]


def unit_rows(vcz: Vcz) -> int:
    """Return the number of variants in a unit: a chunk of ``variant_position``, or a part of a very long one."""
    return task_rows(arrays.outer_chunks(vcz.arrays["variant_position"])[0], vcz.chunk_lengths[VARIANTS])


def task_rows(chunk: int, shortest: int) -> int:
    """Return `chunk`, or if it exceeds `LONG_ROWS`, and `shortest` divides it, a multiple of `shortest` near that."""
    return chunk if chunk <= LONG_ROWS or chunk % shortest else shortest * max(1, LONG_ROWS // shortest)


def site(vcz: Vcz, row: int) -> str:
    """Describe a variant in a message, such as ``chr1:1000 A/C,T``."""
    contig, position, alleles = (
        arrays.read_normalised(vcz.arrays[f"variant_{name}"], (slice(row, row + 1),)).ravel()
        for name in ("contig", "position", "allele")
    )
    names = vcz.table("contig_id") if vcz.has_table("contig_id") else np.empty(0)
    long = Extents.of(vcz.arrays).describe(alleles, row)
    number, present = int(contig[0]), [str(a) for a in alleles if a not in ABSENT_ALLELES]
    name = names[number] if 0 <= number < len(names) else number
    return f"{name}:{position[0]} {','.join(present[:1])[:40]}/{','.join(present[1:])[:60] or '.'}{long}"
