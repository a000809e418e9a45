"""Chunk columns of an array that are re-encoded: their readers, and their counts."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import Blocks, Columns
from plans.core.memory import Memory
from plans.core.views import extra_mem
from vczstore.vcz import arrays, pipeline

if TYPE_CHECKING:
    import cubed
    from zarr.abc.store import Store as ZarrStore

    from plans.core.cubed_backend import Reader

    class ValueReader(Reader, Protocol):
        """A reader of decoded values."""

        def decode_mem(self) -> int:
            """Bytes needed to read a block, in addition to the block itself."""


@dataclass(frozen=True)
class Reencoded(ABC):
    """
    A `plans.core.model.Write` of chunk columns whose values come from a reader.

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

    is_shared: ClassVar[bool] = False
    """Whether each task is sent only its share of the reader, a `plans.core.cubed_backend.SharedReader`."""

    @abstractmethod
    def reader(self, store: "ZarrStore") -> "ValueReader":
        """The reader of the values; `store` is the one that is written, which it may read."""

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
        return self.reader(self.target.store).decode_mem()

    def fit(self, operation: str, memory: Memory, prefer: Sequence[int] | None = None) -> Self:
        """The same write with as many chunks per task as memory allows; unchanged if there are no chunks."""
        if not self.columns.n_chunks:
            return self

        def reading(block: tuple[int, ...]) -> int:
            return replace(self, columns=replace(self.columns, block=block)).reading_mem()

        block = memory.fit(operation, self.columns.grid, arrays.chunk_bytes(self.target), reading, prefer=prefer)
        return replace(self, columns=replace(self.columns, block=block))

    def by_cubed(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """Read and write all blocks."""
        from plans.core import cubed_backend, sinks

        sink = sinks.DecodedSink(arrays.planned(self.target, store=store), self.columns)
        extra = self.reading_mem()
        return [cubed_backend.put(self.reader(store), sink, memory.spec(), extra_mem=extra, shared=self.is_shared)]

    def by_zarr(self, store: "ZarrStore") -> None:
        """Read and write block by block."""
        target, reader = arrays.planned(self.target, store=store), self.reader(store)
        for index in np.ndindex(self.columns.block_grid):
            values = reader.block(index)
            for here, there in self.columns.regions(index):
                target[there] = values[here]


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
        """Bytes needed to read a block: the chunks that zarr decodes concurrently, what a view needs, and a copy."""
        shape, n_chunks = self.columns.block_shape, min(math.prod(self.columns.block), pipeline.READS_AT_ONCE)
        decoding = arrays.decode_mem(self.array, n_chunks) + extra_mem(self.array, shape)
        return decoding + math.prod(shape) * arrays.element_bytes(self.array)
