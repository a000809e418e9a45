"""What a task may use."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from plans.columns import TASK_BYTES, block_of
from vczstore.errors import MemoryLimitError

DEFAULT_ALLOWED = 2_000_000_000
DEFAULT_RESERVED = 300_000_000
"""What Python, zarr, cubed and icechunk take before a task has read a byte; measured in tests/test_memory.py."""

WORKING_COPIES = 4
"""How often Cubed counts the block that a task reads and writes: both sides, each with a copy in storage."""

SLACK = 1000
"""Bytes for the block numbers that Cubed counts beside the blocks."""


@dataclass(frozen=True)
class Memory:
    """
    The memory of one worker, in bytes, and a folder for intermediate data.

    Attributes
    ----------
    allowed
        What one task may use, `reserved` included.
    reserved
        What the process needs before a task has begun.
    work_dir
        Where Cubed keeps intermediate arrays. Only operations that re-chunk through storage have any.
    task_bytes
        About how many decoded bytes one task should move: the more, the more it costs to start one.
    """

    allowed: int = DEFAULT_ALLOWED
    reserved: int = DEFAULT_RESERVED
    work_dir: str | None = None
    task_bytes: int = TASK_BYTES

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
        free = self.allowed - self.reserved - SLACK
        room = free // WORKING_COPIES
        while True:
            block = block_of(grid, chunk_bytes, room, prefer=prefer, task_bytes=self.task_bytes)
            needed = WORKING_COPIES * math.prod(block) * chunk_bytes + decoding(block)
            if needed <= free:
                return block
            if math.prod(block) == 1:
                raise MemoryLimitError(memory_message(operation, self.reserved + needed + SLACK, self.allowed))
            room //= 2

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
