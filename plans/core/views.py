"""Arrays that are made when they are read: what lies in a store, as an operation needs it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from zarr.abc.store import Store as ZarrStore
from zarr.types import AnyArray

from vczstore.vcz import arrays
from vczstore.vcz.cuts import Width
from vczstore.vcz.missing import fill_value, missing_value
from vczstore.vcz.model import samples_axis

if TYPE_CHECKING:
    from plans.core.chunk_grid import Columns


@dataclass(frozen=True)
class View(ABC):
    """An array that is made when it is read. It has what `plans.core.gather_samples` and
    `vczstore.vcz.arrays` ask of a Zarr array.
    """

    source: AnyArray
    like: AnyArray

    shards = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array as it is read."""
        return tuple(self.like.shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """As the source's."""
        return self.source.dtype

    @property
    def widths(self) -> tuple[Width, ...]:
        """What is best read together: of the source along the samples, else of the store."""
        axis, theirs = samples_axis(self.like), arrays.widths(self.source)
        return tuple(theirs[i] if i == axis else width for i, width in enumerate(arrays.widths(self.like)))

    @property
    def path(self) -> str:
        """Of the source."""
        return str(self.source.path)

    @property
    def store(self) -> ZarrStore:
        """Of the source."""
        return self.source.store

    @property
    def metadata(self) -> Any:
        """Of the array as the store has it."""
        return self.like.metadata

    @property
    def attrs(self) -> Any:
        """Of the array as the store has it."""
        return self.like.attrs

    @property
    def fill_value(self) -> Any:
        """Of the array as the store has it."""
        return self.like.fill_value

    @property
    def compressors(self) -> Any:
        """Of the array as the store has it."""
        return self.like.compressors

    @property
    def oindex(self) -> "View":
        """Positions may be selected along the samples axis."""
        return self

    @abstractmethod
    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Read a region."""

    def in_store(self, store: ZarrStore) -> AnyArray:
        """The same, read elsewhere."""
        return cast("AnyArray", replace(self, source=in_store(self.source, store)))

    def extra_mem(self, block: tuple[int, ...]) -> int:
        """What it takes to make a block, in bytes, beside the block and the chunks it is made of."""
        return extra_mem(self.source, block)

    def n_copied(self, columns: "Columns") -> int:
        """How many chunks of some columns are copied as they are."""
        return columns.n_chunks


def in_store(array: "AnyArray | View", store: ZarrStore) -> AnyArray:
    """An array, read elsewhere; a view says itself what of it that is."""
    return array.in_store(store) if isinstance(array, View) else arrays.planned(array, store=store)


def extra_mem(array: "AnyArray | View", block: tuple[int, ...]) -> int:
    """What it takes to make a block of an array that is made when it is read; 0 of one that is stored."""
    return array.extra_mem(block) if isinstance(array, View) else 0


@dataclass(frozen=True)
class Padded(View):
    """An array of the store with dimensions that have become longer; what they gain is filled."""

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Read a region, and fill what lies beyond."""
        return read_padded(self.source, region)


def read_padded(array: AnyArray, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
    """Read a region of an array, and fill what lies beyond its shape."""
    inside = tuple(
        slice(min(r.start, n), min(r.stop, n)) if isinstance(r, slice) else r
        for r, n in zip(region, array.shape, strict=True)
    )
    values = np.asarray(array.oindex[inside])
    wanted = [len(r) if isinstance(r, np.ndarray) else r.stop - r.start for r in region]
    result = np.full(wanted, fill_value(array.path, array), dtype=values.dtype)
    result[tuple(slice(0, n) for n in values.shape)] = values
    if wanted[-1] and array.shape[-1] == 0 and isinstance(region[-1], slice) and region[-1].start == 0:
        result[..., 0] = missing_value(array.path, array)  # a vector that had room for nothing
    return result


def like_source(target: AnyArray, source: "AnyArray | View", shape: tuple[int, ...]) -> AnyArray:
    """An array of a store with another shape, and with the samples of a source cut as they are there."""
    axis = samples_axis(target)
    if axis is None or not arrays.is_flexible(target):
        return arrays.planned(target, shape=shape)
    none = tuple(0 if i == axis else n for i, n in enumerate(shape))
    lengths = arrays.cuts(cast("AnyArray", source))[axis].lengths
    return arrays.with_columns(arrays.planned(target, shape=none), axis, lengths)
