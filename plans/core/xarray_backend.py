"""Arrays by way of xarray and cubed-xarray: opened, selected, joined and blanked by xarray, computed by Cubed.

An implementation for those who work in xarray, and a witness that the plans of this package say what they mean.
It decodes every chunk, and re-chunks through storage where chunks do not fall together.
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
    """Stores that xarray has opened: each once, however many of its arrays are read, since that reads all metadata."""

    def __init__(self) -> None:
        self._stores: list[tuple[ZarrStore, xr.backends.ZarrStore]] = []

    def variable(
        self, array: AnyArray | View, memory: Memory, samples: slice | np.ndarray | None = None
    ) -> xr.DataArray:
        """
        One array of a store as an ``xarray.DataArray`` of a Cubed array, raw: nothing is masked, scaled or decoded.

        Parameters
        ----------
        array
            Which; of one that is stored its name and store are used, its shape is not.
        memory
            What a task may use.
        samples
            A range of samples, or some positions; all by default.
        """
        if isinstance(array, View) or arrays.has_own_nan(array):
            columns = Columns(array.shape, arrays.widths(cast("AnyArray", array)), None, (), (1,) * array.ndim)
            reader = ColumnReader(cast("AnyArray", array), columns)
            made = cubed_backend.read(reader, memory.spec(), extra_mem=reader.decode_mem())
            values = xr.DataArray(made, dims=dimensions(cast("AnyArray", array)))
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
        for known, opened in self._stores:
            if known is store:
                return opened
        opened = xr.backends.ZarrStore.open_group(store, mode="r", consolidated=False)
        self._stores.append((store, opened))
        return opened


def concat(parts: Sequence[xr.DataArray], dtype: np.dtype) -> xr.DataArray:
    """Arrays side by side on the samples axis, in one dtype; U strings, whose width xarray forgets, in T."""
    dtype = np.dtypes.StringDType() if dtype.kind == "U" else dtype
    parts = [_cast(part, dtype) if part.dtype != dtype else part for part in parts]
    return parts[0] if len(parts) == 1 else xr.concat(parts, dim=SAMPLES, coords="minimal", compat="override")


def _cast(part: xr.DataArray, dtype: np.dtype) -> xr.DataArray:
    if part.dtype.kind != "f":
        return part.astype(dtype)
    return xr.apply_ufunc(recast, part, kwargs={"dtype": dtype}, dask="parallelized", output_dtypes=[dtype])


def select(values: xr.DataArray, columns: Columns) -> xr.DataArray:
    """The samples of some chunk columns."""
    return take(values, columns.positions())


def take(values: xr.DataArray, samples: np.ndarray) -> xr.DataArray:
    """The samples at some positions, in their order."""
    if np.array_equal(samples, np.arange(values.sizes[SAMPLES])):
        return values  # nothing to select: no operation, and the chunks stay as they are
    return values.isel({SAMPLES: samples})


def blank(values: xr.DataArray, removed: np.ndarray, missing: Any) -> xr.DataArray:
    """The missing value where a sample is removed, and the old one elsewhere."""
    mask = xr.DataArray(removed, dims=[SAMPLES])
    return xr.apply_ufunc(
        _choose, values, mask, kwargs={"missing": missing}, dask="parallelized", output_dtypes=[values.dtype]
    )


def _choose(values: np.ndarray, removed: np.ndarray, *, missing: Any) -> np.ndarray:
    chosen = values.copy()
    chosen[np.broadcast_to(removed, values.shape)] = missing
    return chosen


def write(values: xr.DataArray, target: AnyArray, columns: Columns) -> list[cubed.Array]:
    """What writes an array to some chunk columns of a target."""
    data = values.data
    if data.chunks != columns.blocks:
        try:
            data = data.rechunk(columns.block_shape)
        except ValueError as error:  # Cubed's, which names no operation
            raise MemoryLimitError(f"{target.path}: {error}; give it more with --allowed-mem") from error
    return [cubed_backend.write(data, sinks.DecodedSink(target, columns))]
