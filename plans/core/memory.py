"""Memory limits of tasks, and the amount of work per task that they allow."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plans.core.chunk_grid import block_of
from vczstore.errors import MemoryLimitError

DEFAULT_ALLOWED = 2_000_000_000
DEFAULT_RESERVED = 300_000_000
"""Memory of Python, zarr, cubed and icechunk before a task reads anything; see tests/plans/core/test_memory.py."""

WORKING_COPIES = 4
"""Copies of a task's block that Cubed projects: its input and its output, each in memory and encoded."""

SLACK = 1000
"""Bytes that Cubed projects for block IDs, in addition to the blocks."""


@dataclass(frozen=True)
class Memory:
    """
    The memory of one worker, in bytes, a folder for intermediate data, and the minimum size of a task.

    Attributes
    ----------
    allowed
        Memory that one task may use, including `reserved`.
    reserved
        Memory of the process before a task starts.
    work_dir
        Folder for Cubed's intermediate arrays. Only operations that re-chunk through storage have any.
    task_bytes
        Decoded bytes per task to aim for, as far as memory allows, where starting a task is expensive. 0 where it is
        cheap, so that the work is spread over all workers.
    """

    allowed: int = DEFAULT_ALLOWED
    reserved: int = DEFAULT_RESERVED
    work_dir: str | None = None
    task_bytes: int = 0

    @property
    def free(self) -> int:
        """Memory available for the data of a task."""
        return self.allowed - self.reserved - SLACK

    def fit(
        self,
        operation: str,
        grid: Sequence[int],
        chunk_bytes: int,
        decoding: Callable[[tuple[int, ...]], int],
        *,
        prefer: Sequence[int] | None = None,
    ) -> tuple[int, ...]:
        """
        Find the number of chunks along each axis per task that fits into the allowed memory.

        Parameters
        ----------
        operation
            Name for the message.
        grid, chunk_bytes, prefer
            As in `block_of`.
        decoding
            Returns the bytes needed to produce a block of a given shape in chunks, in addition to the block itself.

        Raises
        ------
        MemoryLimitError
            If a single chunk does not fit.
        """
        room = self.free // WORKING_COPIES
        while True:
            block = block_of(grid, chunk_bytes, room, prefer=prefer, least=self.task_bytes)
            needed = WORKING_COPIES * math.prod(block) * chunk_bytes + decoding(block)
            if needed <= self.free:
                return block
            if math.prod(block) == 1:
                raise memory_error(operation, self.reserved + needed + SLACK, self.allowed)
            room = math.prod(block) * chunk_bytes * self.free // needed  # smaller than this block

    def spec(self) -> Any:
        """The limits of memory and `work_dir` as a ``cubed.Spec``."""
        import cubed

        return cubed.Spec(self.work_dir, allowed_mem=self.allowed, reserved_mem=self.reserved)


def compile_each[W](
    operation: str, compilers: Mapping[str, Callable[[], W]], memory: Memory, instead: str = ""
) -> dict[str, W]:
    """
    Compile the write of each array, by its name; `instead` as in `memory_error`.

    Raises
    ------
    MemoryLimitError
        If writes do not fit; for the one that needs most, so that all fit into the memory that the message names.
    """
    writes: dict[str, W] = {}
    needed: dict[str, int] = {}
    for name, compiler in compilers.items():
        try:
            writes[name] = compiler()
        except MemoryLimitError as error:
            needed[name] = error.needed
    if needed:
        largest = max(needed, key=needed.__getitem__)
        raise memory_error(operation, needed[largest], memory.allowed, largest, instead)
    return writes


def memory_error(operation: str, needed: int, allowed: int, array: str = "", instead: str = "") -> MemoryLimitError:
    """
    Return the error for tasks that need more memory than is allowed, both in bytes.

    The message names the array, if any, and ends with `instead`, what the user can do other than allow more memory.
    """
    megabytes = math.ceil(needed / 1e6)
    error = MemoryLimitError(
        f"{operation}: a task needs {megabytes}MB of memory{array and f' for {array}'}, and "
        f"{math.floor(allowed / 1e6)}MB are allowed; give it --allowed-mem {megabytes}MB{instead and f', or {instead}'}"
    )
    error.needed = needed
    return error
