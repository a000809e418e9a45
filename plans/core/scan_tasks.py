"""Tasks that scan ranges of rows, and report their findings to the driver."""

from collections.abc import Sequence
from dataclasses import dataclass

import cubed
import numpy as np

from plans.core.chunk_grid import MIN_TASKS, TASK_BYTES, TASK_CHUNKS, Blocks
from plans.core.cubed_backend import BlockSink, put
from plans.core.memory import Memory
from plans.core.scan_reader import Range, ScanReader, scanned
from plans.core.task_report import current_report


class FoundSink(BlockSink):
    """Sink that adds findings to the tasks' reports, as pairs of the scan's tag and the finding."""

    def __init__(self, n_tasks: int) -> None:
        super().__init__((n_tasks,), np.dtype(object), (1,))

    def __setitem__(self, key: tuple[slice, ...], values: np.ndarray) -> None:
        current_report.get().found.extend(pair for pairs in values for pair in pairs)


@dataclass(frozen=True)
class _Together:
    """Ranges of several scans, grouped into tasks."""

    tasks: Sequence[Sequence[Range]]

    dtype = np.dtype(object)

    @property
    def blocks(self) -> Blocks:
        """One element for each task."""
        return ((1,) * len(self.tasks),)

    def share(self, index: tuple[int, ...]) -> "_Together":
        return _Together([self.tasks[index[0]]])

    def block(self, _: tuple[int, ...]) -> np.ndarray:
        return scanned(self.tasks[0])


def scan(reader: ScanReader, spec: cubed.Spec) -> cubed.Array:
    """A Cubed array that scans, with one task for each range."""
    return put(reader, FoundSink(len(reader.blocks[0])), spec, extra_mem=reader.mem)


def survey(scans: Sequence[ScanReader], memory: Memory) -> list[cubed.Array]:
    """
    All scans as one Cubed array, so that the plan does not grow with their number; empty if there are no rows to scan.

    Small ranges are scanned together in one task.
    """
    scans = [reader for reader in scans if reader.n_rows]
    if len(scans) < 2:
        return [scan(reader, memory.spec()) for reader in scans]
    ranges = [reader.range(i) for reader in scans for i in range(len(reader.blocks[0]))]
    most, room = min(TASK_CHUNKS, len(ranges) // MIN_TASKS), max(TASK_BYTES, memory.task_bytes)
    tasks: list[list[Range]] = []
    taken = 0
    for r in ranges:
        if tasks and len(tasks[-1]) < most and taken + r.mem <= room:
            tasks[-1].append(r)
            taken += r.mem
        else:
            tasks.append([r])
            taken = r.mem
    mem = max(reader.mem for reader in scans)
    return [put(_Together(tasks), FoundSink(len(tasks)), memory.spec(), extra_mem=mem, shared=True)]
