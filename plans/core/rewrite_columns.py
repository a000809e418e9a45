"""Chunk columns of an array that are re-encoded: their counts, and their reader."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import Blocks, Columns
from plans.core.memory import Memory
from vczstore.vcz import arrays, pipeline


@dataclass(frozen=True)
class Reencoded:
    """
    The counts of a `plans.core.model.Write` that reads and writes the same chunk columns.

    Attributes
    ----------
    name
        The name of the array.
    target
        The array after the operation.
    columns
        The chunk columns that are written.
    """

    name: str
    target: AnyArray
    columns: Columns

    @property
    def arrays(self) -> tuple[AnyArray]:
        return (self.target,)

    @property
    def encoded_chunks(self) -> int:
        return 0

    @property
    def decoded_chunks(self) -> int:
        return self.columns.n_chunks

    @property
    def chunks_read(self) -> int:
        """Upper bound: as many as are written."""
        return self.columns.n_chunks

    @property
    def bytes_read(self) -> int:
        """Upper bound: the columns, decoded."""
        return math.prod(self.columns.shape) * arrays.element_bytes(self.target)

    @property
    def bytes_written(self) -> int:
        return self.bytes_read

    def reading_mem(self) -> int:
        """Bytes needed to read a block, in addition to the block itself."""
        raise NotImplementedError

    def fit(self, operation: str, memory: Memory, prefer: Sequence[int] | None = None) -> Self:
        """The same write with as many chunks per task as memory allows; unchanged if there are no chunks."""
        if not self.columns.n_chunks:
            return self

        def reading(block: tuple[int, ...]) -> int:
            return replace(self, columns=replace(self.columns, block=block)).reading_mem()

        block = memory.fit(operation, self.columns.grid, arrays.chunk_bytes(self.target), reading, prefer=prefer)
        return replace(self, columns=replace(self.columns, block=block))


@dataclass(frozen=True)
class ColumnReader:
    """Reader of the values of some chunk columns, side by side."""

    array: AnyArray
    columns: Columns

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def blocks(self) -> Blocks:
        return self.columns.blocks

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Read one block, run by run."""
        regions = list(self.columns.regions(index))
        if len(regions) == 1:
            return arrays.read(self.array, regions[0][1])
        values = np.empty(self.columns.block_lengths(index), dtype=self.dtype)
        for here, there in regions:
            values[here] = arrays.read(self.array, there)
        return values

    def decode_mem(self) -> int:
        """Bytes needed to read a block: the chunks that zarr decodes concurrently, and a copy of the block."""
        n_chunks = min(math.prod(self.columns.block), pipeline.READS_AT_ONCE)
        return arrays.decode_mem(self.array, n_chunks) + math.prod(self.columns.block_shape) * arrays.element_bytes(
            self.array
        )
