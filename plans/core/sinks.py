"""Sinks to which tasks write: encoded chunks verbatim, or decoded blocks."""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import cubed
import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import Blocks, Columns
from plans.core.cubed_backend import BlockSink, put
from plans.core.regroup import Regrouped
from plans.core.task_report import report_written
from vczstore.vcz import arrays, encoded_chunks, zarr_objects

type EncodedChunks = list[tuple[tuple[int, ...], zarr_objects.Encoded]]
"""Encoded chunks of a target, with their coordinates; None deletes the chunk."""


@dataclass(frozen=True)
class ColumnCopy:
    """Chunk columns of an array to copy verbatim to columns of a target; both have the same grid and blocks."""

    source: AnyArray
    source_columns: Columns
    columns: Columns

    @property
    def n_blocks(self) -> int:
        return math.prod(self.columns.block_grid)

    def _coords(self, columns: Columns, number: int) -> list[tuple[int, ...]]:
        index = tuple(int(i) for i in np.unravel_index(number, columns.block_grid))
        return [at for _, at in columns.coords(columns.cells(index))]

    def share(self, number: int) -> "ColumnCopy":
        """The part that a task needs to copy one block."""
        source: AnyArray | Regrouped = self.source
        if not isinstance(source, Regrouped):
            return self
        return replace(self, source=cast("AnyArray", source.share(self._coords(self.columns, number))))

    def chunks(self, number: int) -> EncodedChunks:
        """Read the encoded chunks of one block."""
        coords = self._coords(self.source_columns, number)
        encoded = encoded_chunks.get_encoded(self.source, coords)
        encoded_chunks.check_frames(self.source, coords, encoded)
        return list(zip(self._coords(self.columns, number), encoded, strict=True))


@dataclass(frozen=True)
class _EncodedTask:
    """The copies that one task makes: several of one block each, or block `number` of a single one."""

    copies: tuple[ColumnCopy, ...]
    number: int = 0

    def block(self, _: tuple[int, ...]) -> np.ndarray:
        """Read all chunks, as one list."""
        values = np.empty(1, dtype=object)
        values[0] = [chunk for copy in self.copies for chunk in copy.chunks(self.number)]
        return values


@dataclass(frozen=True)
class EncodedReader:
    """
    Reader of the encoded chunks that are copied to one target, as one list for each task.

    Attributes
    ----------
    copies
        The copies to make. A task makes one block of a copy, or several copies of one block each.
    max_chunks
        The maximal number of chunks in a task of several copies.
    """

    copies: tuple[ColumnCopy, ...]
    max_chunks: int

    dtype = np.dtype(object)

    @cached_property
    def _groups(self) -> tuple[list[int], list[tuple[ColumnCopy, ...]]]:
        """The first task of each group of copies, and the groups: one copy, or several of one block each."""
        starts: list[int] = []
        groups: list[list[ColumnCopy]] = []
        n_tasks = n_chunks = 0
        for copy in self.copies:
            is_one_block = copy.n_blocks == 1
            if groups and is_one_block and n_chunks + copy.columns.n_chunks <= self.max_chunks:
                groups[-1].append(copy)
                n_chunks += copy.columns.n_chunks
            else:
                starts.append(n_tasks)
                groups.append([copy])
                n_tasks += copy.n_blocks
                n_chunks = copy.columns.n_chunks if is_one_block else self.max_chunks  # several blocks fill a group
        return starts, [tuple(group) for group in groups]

    @property
    def blocks(self) -> Blocks:
        """One element for each task."""
        starts, groups = self._groups
        return ((1,) * (starts[-1] + groups[-1][0].n_blocks),)

    def share(self, index: tuple[int, ...]) -> _EncodedTask:
        starts, groups = self._groups
        group = bisect_right(starts, index[0]) - 1
        number = index[0] - starts[group]
        return _EncodedTask(tuple(copy.share(number) for copy in groups[group]), number)

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        return self.share(index).block(index)


class EncodedSink(BlockSink):
    """Sink of lists of encoded chunks."""

    def __init__(self, array: AnyArray, reader: EncodedReader) -> None:
        super().__init__((len(reader.blocks[0]),), np.dtype(object), (1,))
        self.array, self.path = array, array.path
        # identifies the sink in names of operations; a digest, so that the columns are not sent to workers
        columns = repr([copy.columns for copy in reader.copies]).encode()
        self.columns = hashlib.blake2b(columns, digest_size=8).hexdigest()

    def __setitem__(self, key: tuple[slice, ...], values: np.ndarray) -> None:
        chunks: EncodedChunks = [chunk for of_task in values for chunk in of_task]
        encoded_chunks.set_encoded(self.array, chunks)
        encoded_bytes = sum(len(value) for _, value in chunks if value is not None)
        report_written(self.array.store, len(chunks), encoded_bytes=encoded_bytes)


def copy_encoded(
    copies: Sequence[ColumnCopy],
    target: AnyArray,
    spec: cubed.Spec,
    *,
    max_chunks: int = 1,
    extra_mem: int = 0,
    shared: bool = False,
) -> cubed.Array:
    """
    Return a Cubed array that makes copies, at least one and none of them empty, when it is computed.

    `extra_mem` are the bytes needed to compute a chunk of a view. If `shared`, and always if there are several copies,
    each task is sent only its share of the reader.
    """
    reader = EncodedReader(tuple(copies), max_chunks)
    sizes = (max(max_chunks, math.prod(c.columns.block)) * c.columns.chunk_bytes(target) for c in copies)
    # chunks are in memory encoded, once read and once to be written; they are hardly larger than decoded
    extra = 2 * max(sizes) + extra_mem
    return put(reader, EncodedSink(target, reader), spec, extra_mem=extra, shared=shared or len(copies) > 1)


def regroup(source: Regrouped, columns: Columns, target: AnyArray, spec: cubed.Spec) -> cubed.Array:
    """Return a Cubed array that assembles the objects of some columns from chunks when computed."""
    copy, extra = ColumnCopy(cast("AnyArray", source), columns, columns), source.read_mem(columns)
    return copy_encoded([copy], target, spec, extra_mem=extra, shared=len(source.origins) > 1)


class DecodedSink(BlockSink):
    """Sink of decoded values, columns side by side."""

    def __init__(self, array: AnyArray, columns: Columns) -> None:
        super().__init__(tuple(map(sum, columns.blocks)), array.dtype, columns.block_shape)
        self.array, self.path = array, array.path
        self.columns = columns

    def __setitem__(self, key: tuple[slice, ...], values: np.ndarray) -> None:
        cells = self.columns.cells_of(key)
        for here, there in self.columns.runs(cells):
            arrays.assign(self.array, there, values[here])
        report_written(self.array.store, math.prod(len(r) for r in cells), decoded_bytes=values.nbytes)
