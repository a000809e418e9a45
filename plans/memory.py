"""What a task may use."""

from dataclasses import dataclass
from typing import Any

DEFAULT_ALLOWED = 2_000_000_000
DEFAULT_RESERVED = 300_000_000
"""What Python, zarr, cubed and icechunk take before a task has read a byte; measured in tests/test_memory.py."""

WORKING_COPIES = 4
"""How often Cubed counts the block that a task reads and writes: both sides, each with a copy in storage."""


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
    """

    allowed: int = DEFAULT_ALLOWED
    reserved: int = DEFAULT_RESERVED
    work_dir: str | None = None

    @property
    def room(self) -> int:
        """The bytes of a block that one task can work on, if decoding it takes as much as Cubed counts for it."""
        return max(1, (self.allowed - self.reserved) // (2 * WORKING_COPIES))

    def holds(self, block: int, decoding: int) -> bool:
        """Whether a task can work on a block of so many bytes, if producing it takes so many beside."""
        return WORKING_COPIES * block + decoding <= self.allowed - self.reserved

    def spec(self) -> Any:
        """The same in Cubed's words, a ``cubed.Spec``."""
        import cubed

        return cubed.Spec(self.work_dir, allowed_mem=self.allowed, reserved_mem=self.reserved)
