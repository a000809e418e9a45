"""Views: arrays whose values are computed lazily, when they are read, from a stored array."""

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
    """
    A lazily computed array, with the part of a Zarr array's interface that the package uses.

    Values, dtype, path and store come from `source`; the other metadata are those of `like`, an array of the store.
    """

    source: AnyArray
    like: AnyArray

    shards = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.like.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.source.dtype

    @property
    def widths(self) -> tuple[Width, ...]:
        """The chunk widths to read by: those of the source along the samples, else those of `like`."""
        axis, theirs = samples_axis(self.like), arrays.widths(self.source)
        return tuple(theirs[i] if i == axis else width for i, width in enumerate(arrays.widths(self.like)))

    @property
    def path(self) -> str:
        return str(self.source.path)

    @property
    def store(self) -> ZarrStore:
        return self.source.store

    @property
    def metadata(self) -> Any:
        return self.like.metadata

    @property
    def attrs(self) -> Any:
        return self.like.attrs

    @property
    def fill_value(self) -> Any:
        return self.like.fill_value

    @property
    def compressors(self) -> Any:
        return self.like.compressors

    @property
    def oindex(self) -> "View":
        """The view itself; only the samples axis can be selected by positions."""
        return self

    @abstractmethod
    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Read a region."""

    def in_store(self, store: ZarrStore) -> AnyArray:
        """The same view, with the source read from another store."""
        return cast("AnyArray", replace(self, source=in_store(self.source, store)))

    def extra_mem(self, block: tuple[int, ...]) -> int:
        """Bytes needed to compute a block, in addition to the block and the chunks of the source."""
        return extra_mem(self.source, block)

    def n_copied(self, columns: "Columns") -> int:
        """The number of chunks of some columns that are copied verbatim."""
        return columns.n_chunks


def in_store(array: "AnyArray | View", store: ZarrStore) -> AnyArray:
    """The same array or view, read from another store."""
    return array.in_store(store) if isinstance(array, View) else arrays.planned(array, store=store)


def extra_mem(array: "AnyArray | View", block: tuple[int, ...]) -> int:
    """Bytes needed to compute a block of a view, see `View.extra_mem`; 0 for a stored array."""
    return array.extra_mem(block) if isinstance(array, View) else 0


@dataclass(frozen=True)
class Padded(View):
    """An array of the store, padded with fill values to longer dimensions."""

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        return read_padded(self.source, region)


def read_padded(array: AnyArray, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
    """Read a region of an array, with fill values beyond its shape."""
    inside = tuple(
        slice(min(r.start, n), min(r.stop, n)) if isinstance(r, slice) else r
        for r, n in zip(region, array.shape, strict=True)
    )
    values = np.asarray(array.oindex[inside])
    wanted = [len(r) if isinstance(r, np.ndarray) else r.stop - r.start for r in region]
    result = np.full(wanted, fill_value(array.path, array), dtype=values.dtype)
    result[tuple(slice(0, n) for n in values.shape)] = values
    if wanted[-1] and array.shape[-1] == 0 and isinstance(region[-1], slice) and region[-1].start == 0:
        result[..., 0] = missing_value(array.path, array)  # a vector of length 0 becomes missing
    return result


def like_source(target: AnyArray, source: "AnyArray | View", shape: tuple[int, ...]) -> AnyArray:
    """An array of a store with another shape and, if its grid is flexible, the source's chunk columns."""
    axis = samples_axis(target)
    if axis is None or not arrays.is_flexible(target):
        return arrays.planned(target, shape=shape)
    none = tuple(0 if i == axis else n for i, n in enumerate(shape))
    lengths = arrays.cuts(cast("AnyArray", source))[axis].lengths
    return arrays.with_columns(arrays.planned(target, shape=none), axis, lengths)
