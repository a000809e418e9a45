"""What a task may use, and how much of the work it takes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from plans.core.chunk_grid import block_of
from vczstore.errors import MemoryLimitError

DEFAULT_ALLOWED = 2_000_000_000
DEFAULT_RESERVED = 300_000_000
"""What Python, zarr, cubed and icechunk take before a task has read a byte; see tests/plans/core/test_memory.py."""

WORKING_COPIES = 4
"""How often Cubed counts the block that a task reads and writes: both sides, each with a copy in storage."""

SLACK = 1000
"""Bytes for the block numbers that Cubed counts beside the blocks."""


@dataclass(frozen=True)
class Memory:
    """
    The memory of one worker, in bytes, a folder for intermediate data, and how long a task should be.

    Attributes
    ----------
    allowed
        What one task may use, `reserved` included.
    reserved
        What the process needs before a task has begun.
    work_dir
        Where Cubed keeps intermediate arrays. Only operations that re-chunk through storage have any.
    task_bytes
        Decoded bytes that make a task worth beginning: it has as many as there are, and as memory allows. 0 where
        beginning costs nothing, so that all workers have something to do.
    """

    allowed: int = DEFAULT_ALLOWED
    reserved: int = DEFAULT_RESERVED
    work_dir: str | None = None
    task_bytes: int = 0

    @property
    def free(self) -> int:
        """What a task's own data may take."""
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
        Find how many chunks along each axis one task takes, so that it stays within what is allowed.

        Parameters
        ----------
        operation
            For the message.
        grid, chunk_bytes, prefer
            As in `block_of`.
        decoding
            What producing a block takes beside the block itself, in bytes.

        Raises
        ------
        MemoryLimitError
            If a single chunk is too much.
        """
        room = self.free // WORKING_COPIES
        while True:
            block = block_of(grid, chunk_bytes, room, prefer=prefer, least=self.task_bytes)
            needed = WORKING_COPIES * math.prod(block) * chunk_bytes + decoding(block)
            if needed <= self.free:
                return block
            if math.prod(block) == 1:
                raise MemoryLimitError(memory_message(operation, self.reserved + needed + SLACK, self.allowed))
            room = math.prod(block) * chunk_bytes * self.free // needed  # less than this block

    def worth(self, n: int, n_bytes: int, needed: Callable[[int], int]) -> int:
        """
        Find how many of some equal things are worth beginning a task for, as far as memory allows; 1 at least.

        Parameters
        ----------
        n, n_bytes
            How many things there are, and the decoded bytes of one.
        needed
            What it takes to look at so many in a task, in bytes.
        """
        count = min(n, self.task_bytes // max(1, n_bytes))
        while count > 1 and needed(count) > self.free:
            count = count * self.free // needed(count)
        return max(1, count)

    def spec(self) -> Any:
        """The same in Cubed's words, a ``cubed.Spec``."""
        import cubed

        return cubed.Spec(self.work_dir, allowed_mem=self.allowed, reserved_mem=self.reserved)


def memory_message(operation: str, needed: int, allowed: int) -> str:
    """What to tell a user whose tasks are not allowed enough memory."""
    megabytes = math.ceil(needed / 1e6)
    return (
        f"{operation}: a task needs {megabytes}MB of memory, and {math.floor(allowed / 1e6)}MB are allowed; "
        f"give it --allowed-mem {megabytes}MB"
    )
