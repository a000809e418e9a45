"""Writes through xarray and cubed-xarray: arrays are opened, selected, joined and blanked by xarray, computed by Cubed.

An implementation for users of xarray, and an independent check of the plans of this package.
It decodes every chunk, and re-chunks through storage where chunk boundaries are not aligned.
"""

from collections.abc import Sequence
from typing import Any, cast

import cubed
import numpy as np
import xarray as xr
from zarr.abc.store import Store as ZarrStore
from zarr.types import AnyArray

from plans.core import cubed_backend, sinks
from plans.core.chunk_grid import Columns
from plans.core.memory import Memory
from plans.core.rewrite_columns import ColumnReader
from plans.core.views import View
from vczstore.errors import MemoryLimitError
from vczstore.vcz import arrays
from vczstore.vcz.floats import recast
from vczstore.vcz.model import SAMPLES, dimensions


class Opened:
    """Stores opened by xarray. Each is opened once for all of its arrays, since opening reads all metadata."""

    def __init__(self) -> None:
        self._stores: list[tuple[ZarrStore, xr.backends.ZarrStore]] = []

    def variable(
        self, array: AnyArray | View, memory: Memory, samples: slice | np.ndarray | None = None
    ) -> xr.DataArray:
        """
        One array as an ``xarray.DataArray`` of a Cubed array, without masking, scaling or CF decoding.

        Parameters
        ----------
        array
            The array. A stored array is opened again by its store and path, and has the stored shape.
        memory
            Memory limits of a task.
        samples
            A slice or positions of samples; all by default.
        """
        if isinstance(array, View) or arrays.has_own_nan(array):
            reader = ColumnReader(cast("AnyArray", array), Columns.of(cast("AnyArray", array)))
            blocks = cubed_backend.read(reader, memory.spec(), extra_mem=reader.decode_mem())
            values = xr.DataArray(blocks, dims=dimensions(cast("AnyArray", array)))
            return values if samples is None else values.isel({SAMPLES: samples})
        with arrays.own_pipeline():
            stored = self._opened(array.store)
            others = set(stored.array_keys()) - {array.path}
            values = xr.open_dataset(
                stored, chunks=None, cache=False, decode_cf=False, create_default_indexes=False, drop_variables=others
            )[array.path]
        if samples is not None:
            values = values.isel({SAMPLES: samples})
        return values.chunk(chunked_array_type="cubed", from_array_kwargs={"spec": memory.spec()})

    def _opened(self, store: ZarrStore) -> xr.backends.ZarrStore:
        for other, opened in self._stores:
            if other is store:
                return opened
        opened = xr.backends.ZarrStore.open_group(store, mode="r", consolidated=False)
        self._stores.append((store, opened))
        return opened


def concat(parts: Sequence[xr.DataArray], dtype: np.dtype) -> xr.DataArray:
    """Concatenate arrays along the samples axis, in one dtype; fixed-width strings (U) become ``StringDType``."""
    dtype = np.dtypes.StringDType() if dtype.kind == "U" else dtype
    parts = [_cast(part, dtype) if part.dtype != dtype else part for part in parts]
    return parts[0] if len(parts) == 1 else xr.concat(parts, dim=SAMPLES, coords="minimal", compat="override")


def _cast(part: xr.DataArray, dtype: np.dtype) -> xr.DataArray:
    if part.dtype.kind != "f":
        return part.astype(dtype)
    return xr.apply_ufunc(recast, part, kwargs={"dtype": dtype}, dask="parallelized", output_dtypes=[dtype])


def take(values: xr.DataArray, samples: np.ndarray) -> xr.DataArray:
    """Select samples by position, in the given order."""
    if np.array_equal(samples, np.arange(values.sizes[SAMPLES])):
        return values  # a no-op, which keeps the chunks
    return values.isel({SAMPLES: samples})


def blank(values: xr.DataArray, removed: np.ndarray, missing: Any) -> xr.DataArray:
    """Replace the values of removed samples, given by a boolean mask, by the missing value."""
    mask = xr.DataArray(removed, dims=[SAMPLES])
    return xr.apply_ufunc(
        _choose, values, mask, kwargs={"missing": missing}, dask="parallelized", output_dtypes=[values.dtype]
    )


def _choose(values: np.ndarray, removed: np.ndarray, *, missing: Any) -> np.ndarray:
    chosen = values.copy()
    chosen[np.broadcast_to(removed, values.shape)] = missing
    return chosen


def write(values: xr.DataArray, target: AnyArray, columns: Columns) -> list[cubed.Array]:
    """Cubed arrays that write an array to some columns of a target. Raises a `MemoryLimitError` if rechunking fails."""
    data = values.data
    if data.chunks != columns.blocks:
        try:
            data = data.rechunk(columns.block_shape)
        except ValueError as error:  # Cubed's message does not name the array
            raise MemoryLimitError(f"{target.path}: {error}; give it more with --allowed-mem") from error
    return [cubed_backend.write(data, sinks.DecodedSink(target, columns))]
