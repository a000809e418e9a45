"""Copies of whole arrays into another store: chunks are copied verbatim, re-encoded, or hard-linked."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import MIN_TASKS, Columns, chunk_regions
from plans.core.memory import Memory
from plans.core.regroup import Origin, Regrouped, can_regroup
from plans.core.rewrite_columns import ColumnReader, Reencoded
from plans.core.scan_reader import ScanReader
from vczstore.vcz import arrays, conversion, pipeline
from vczstore.vcz.encoded_chunks import link_chunks
from vczstore.vcz.metadata import same_encoding
from vczstore.vcz.model import samples_axis

if TYPE_CHECKING:
    import cubed
    from zarr.abc.store import Store as ZarrStore

    from plans.core.xarray_backend import Opened


@dataclass(frozen=True)
class CopyArray(Reencoded):
    """
    Copy one array as a whole, verbatim if its encoding allows.

    Attributes
    ----------
    source
        The array that is copied.
    """

    source: AnyArray

    @classmethod
    def of(cls, operation: str, name: str, source: AnyArray, zarr_format: int, memory: Memory) -> "CopyArray":
        """Compile the copy of an array into a Zarr format."""
        target = conversion.in_format(source, zarr_format, path=name)
        return cls(name, target, Columns.of(target), source).fit(operation, memory)

    @classmethod
    def first_chunks(cls, operation: str, array: AnyArray, grid: tuple[int, ...], memory: Memory) -> "CopyArray":
        """Compile the verbatim copy of the first chunks of an array, `grid` of them along each axis."""
        sides = zip(arrays.cuts(array), grid, array.shape, strict=True)
        shape = tuple(n if k == cut.n else int(cut.start(k)) for cut, k, n in sides)
        part = arrays.planned(array, shape=shape)
        return cls(array.path, part, Columns.of(part), part).fit(operation, memory)

    @property
    def read(self) -> tuple[AnyArray]:
        return (self.source,)

    def reader(self, store: "ZarrStore") -> ColumnReader:
        return ColumnReader(self.source, self.columns)

    @property
    def is_encoded(self) -> bool:
        """Whether chunks are copied verbatim."""
        return same_encoding(self.source, self.target)

    @property
    def encoded_chunks(self) -> int:
        return self.columns.n_chunks if self.is_encoded else 0

    @property
    def decoded_chunks(self) -> int:
        return 0 if self.is_encoded else self.columns.n_chunks

    def by_cubed(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """Copy the chunks verbatim, or decode and encode them."""
        from plans.core import sinks

        if not self.is_encoded:
            return super().by_cubed(store, memory)
        copy = sinks.ColumnCopy(self.source, self.columns, self.columns)
        return [sinks.copy_encoded([copy], arrays.planned(self.target, store=store), memory.spec())]

    def by_xarray(self, store: "ZarrStore", memory: Memory, opened: "Opened") -> "list[cubed.Array]":
        from plans.core import xarray_backend

        target = arrays.planned(self.target, store=store)
        return xarray_backend.write(opened.variable(self.source, memory), target, self.columns)

    def by_zarr(self, store: "ZarrStore") -> None:
        target = arrays.planned(self.target, store=store)
        for region in chunk_regions(target, {}):
            target[region] = arrays.read(self.source, region)


@dataclass(frozen=True)
class _OtherChunks(ColumnReader):
    """Reader of an array whose chunks are not aligned with the columns."""

    def decode_mem(self) -> int:
        """Bytes needed to read a block: all chunks that overlap it, as far as zarr reads them concurrently."""
        sides = zip(self.columns.block_shape, arrays.outer_chunks(self.array), self.array.shape, strict=True)
        n_chunks = math.prod(min(math.ceil(b / c) + 1, math.ceil(n / c)) for b, c, n in sides)
        values = math.prod(self.columns.block_shape) * arrays.element_bytes(self.array)
        return arrays.decode_mem(self.array, min(n_chunks, pipeline.READS_AT_ONCE)) + values


@dataclass(frozen=True)
class Recode(CopyArray):
    """Rewrite an array as a whole with other chunks, codecs or shards. Chunks are copied verbatim into other shards."""

    @property
    def is_encoded(self) -> bool:
        """Whether chunks are copied verbatim into other shards."""
        return can_regroup(self.source, self.target)

    @classmethod
    def to(cls, operation: str, source: AnyArray, target: AnyArray, memory: Memory) -> "Recode":
        """Choose the chunks of the target per task: as many as a chunk of the source covers, if memory allows."""
        sides = zip(arrays.outer_chunks(source), arrays.outer_chunks(target), strict=True)
        prefer = [math.ceil(theirs / ours) for theirs, ours in sides]
        return cls(target.path, target, Columns.of(target), source).fit(operation, memory, prefer)

    def reading_mem(self) -> int:
        return self.regrouped.read_mem(self.columns) if self.is_encoded else super().reading_mem()

    @property
    def regrouped(self) -> Regrouped:
        """The same chunks in other shards."""
        return Regrouped(self.target, (Origin(self.source),))

    def by_cubed(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """Copy the chunks verbatim into other shards, or decode and encode them."""
        from plans.core import sinks

        if not self.is_encoded:
            return Reencoded.by_cubed(self, store, memory)
        return [sinks.regroup(self.regrouped, self.columns, arrays.planned(self.target, store=store), memory.spec())]

    def reader(self, store: "ZarrStore") -> ColumnReader:
        return _OtherChunks(self.source, self.columns)

    def reading_from(self, store: "ZarrStore") -> "Recode":
        """The same write, with the source read from another store."""
        return replace(self, source=arrays.planned(self.source, store=store))


LINKS_PER_TASK = (1_000, 10_000)
"""Minimum and maximum per task; a hard link takes some microseconds."""


@dataclass(frozen=True)
class LinkChunks:
    """
    Hard-link chunks of an array into the store that replaces the current one.

    Attributes
    ----------
    name, array
        The array.
    grid
        The number of chunks to link along each axis, starting at the first one.
    columns
        Old and new indices of the chunk columns along the samples; None to link all in place.
    """

    name: str
    array: AnyArray
    grid: tuple[int, ...]
    columns: tuple[tuple[int, int], ...] | None = None

    arrays = ()
    """No arrays: linked chunks are never re-encoded."""
    decoded_chunks = chunks_read = bytes_read = bytes_written = 0

    @classmethod
    def of(cls, array: AnyArray, columns: tuple[tuple[int, int], ...] | None = None) -> "LinkChunks":
        """Link all chunks of an array, or only some columns along its samples."""
        grid = arrays.grid_of(array)
        if columns is not None:
            grid = tuple(len(columns) if i == samples_axis(array) else n for i, n in enumerate(grid))
        return cls(array.path, array, grid, columns)

    @property
    def encoded_chunks(self) -> int:
        """Number of chunks, including those that are not stored."""
        return math.prod(self.grid)

    def by_cubed(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """Link some thousand chunks per task."""
        from plans.core import scan_tasks

        fewest, most = LINKS_PER_TASK
        per_task = min(most, max(fewest, math.ceil(self.encoded_chunks / MIN_TASKS)))
        reader = ScanReader(partial(self.link, store), self.encoded_chunks, per_task)
        return [scan_tasks.scan(reader, memory.spec())]

    def by_zarr(self, store: "ZarrStore") -> None:
        self._link(store, slice(0, self.encoded_chunks))

    def link(self, store: "ZarrStore", numbers: slice) -> None:
        """Link a range of chunks in a task, by their flat indices in the grid."""
        from plans.core import task_report

        self._link(store, numbers)
        task_report.report_written(store, numbers.stop - numbers.start)

    def _link(self, store: "ZarrStore", numbers: slice) -> None:
        coords = (tuple(map(int, np.unravel_index(n, self.grid))) for n in range(numbers.start, numbers.stop))
        link_chunks(self.array, arrays.planned(self.array, store=store), map(self._ends, coords))

    def _ends(self, at: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The old and the new coordinates of a chunk."""
        if self.columns is None:
            return at, at
        axis = samples_axis(self.array) or 0
        of, to = self.columns[at[axis]]
        return (*at[:axis], of, *at[axis + 1 :]), (*at[:axis], to, *at[axis + 1 :])
