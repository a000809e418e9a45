"""Zarr arrays: derive planned arrays without I/O, describe their chunk grids, and read and write their values."""

import copy
import json
import math
import os
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.core.array import AsyncArray
from zarr.dtype import VariableLengthUTF8
from zarr.storage import LocalStore, MemoryStore, StorePath
from zarr.types import AnyArray

from vczstore.vcz import rectilinear
from vczstore.vcz.cuts import Cuts, Width
from vczstore.vcz.floats import is_nan, to_hex
from vczstore.vcz.metadata import ArrayV2Metadata, ArrayV3Metadata, metadata_key, parsed
from vczstore.vcz.pipeline import Pipeline, naming
from vczstore.vcz.strings import as_text
from vczstore.vcz.zarr_objects import NO_METADATA, Document, RegularLocalStore, place, read_file, read_json


def planned(array: AnyArray, *, store: Store | None = None, shape: tuple[int, ...] | None = None) -> AnyArray:
    """
    Return a handle to an array in another store or with another shape (by default its own), without I/O.

    Chunks can be written to it before the stored metadata have this shape: their keys are equal.
    """
    store, metadata = store or array.store, array.metadata
    if shape is not None and shape != array.shape:
        metadata = _resized(array, shape) if is_flexible(array) else metadata.update_shape(shape)
    elif isinstance(array, zarr.Array) and isinstance(array.async_array.codec_pipeline, Pipeline):
        return _moved(array, StorePath(store, array.path))
    return from_metadata(metadata, store, array.path)


def _moved(array: AnyArray, place: StorePath) -> AnyArray:
    """Return the same array at another store path, reusing its codecs: rebuilding them is slow for 1000s of sources."""
    moved = copy.copy(array.async_array)
    object.__setattr__(moved, "store_path", place)
    return zarr.Array(moved)


def _resized(array: AnyArray, shape: tuple[int, ...]) -> ArrayV3Metadata:
    """The metadata of a flexible array with another shape; growth beyond chunks of several widths adds one chunk."""
    axes = zip(shape, rectilinear.widths_of(array.metadata), strict=True)
    widths = [width if isinstance(width, int) else _fit_widths(width, n) for n, width in axes]
    return rectilinear.with_widths(array.metadata, shape, widths)


def _fit_widths(widths: tuple[int, ...], length: int) -> tuple[int, ...]:
    """The chunk widths of an axis of another length: trailing chunks dropped, or one chunk appended."""
    if length > sum(widths):
        return (*widths, length - sum(widths))
    return widths[: max(1, Cuts(length, widths).n)]


def with_columns(array: AnyArray, axis: int, lengths: Sequence[int], *, if_empty: int = 1) -> AnyArray:
    """
    Return the planned array with a flexible grid, and chunks of given widths along one axis.

    It is of format 3 without shards. The sum of the widths, `lengths`, becomes the length of the axis. If there are
    none, `if_empty` is the chunk width in the metadata, since a grid needs one.
    """
    shape, old = list(array.shape), list(widths(array))
    shape[axis], old[axis] = sum(lengths), tuple(lengths) or if_empty
    return from_metadata(rectilinear.with_widths(array.metadata, shape, old), array.store, array.path)


def with_widths(array: AnyArray, widths: Sequence[Width]) -> AnyArray:
    """Return the planned array with a flexible grid, and chunks of these widths along each axis."""
    return from_metadata(rectilinear.with_widths(array.metadata, array.shape, widths), array.store, array.path)


def with_regular_grid(array: AnyArray, chunks: Sequence[int]) -> AnyArray:
    """Return the planned array with a regular grid of this chunk shape."""
    return from_metadata(rectilinear.with_regular(array.metadata, array.shape, chunks), array.store, array.path)


_CONFIGURING = threading.Lock()
"""Guards zarr's configuration, which is shared by all threads: concurrent `set` blocks would restore stale values."""


@contextmanager
def own_pipeline() -> Iterator[None]:
    """Context in which zarr opens arrays with vczstore's `Pipeline`; one thread at a time."""
    with _CONFIGURING, zarr.config.set({"codec_pipeline.path": f"{Pipeline.__module__}.{Pipeline.__name__}"}):
        yield


def from_metadata(metadata: Any, store: Store, path: str) -> AnyArray:
    """
    Return an array handle from metadata, without I/O.

    Chunks that hold only the fill value are not written (and deleted if present), which is zarr's default, regardless
    of the global configuration. They are written if the fill value is NaN, since zarr does not distinguish NaNs by
    payload and VCF Zarr does; or null, since zarr-python 2 then reads an absent chunk as uninitialised memory.
    """
    keep = metadata.fill_value is None or is_nan(metadata.fill_value)
    with own_pipeline():
        return zarr.Array(
            AsyncArray(metadata=metadata, store_path=StorePath(store, path), config={"write_empty_chunks": keep})
        )


def as_documented(array: AnyArray, copies: Document | None = None) -> AnyArray:
    """
    Return an opened array with the exact bits of a NaN fill value, which zarr loses when it parses a document.

    `copies` are consolidated metadata of format 3, by path, to use in place of the array's own document.
    """
    if isinstance(array.metadata, ArrayV2Metadata) or not is_nan(array.metadata.fill_value):
        return planned(array)
    key = metadata_key(array.path, 3)
    document = read_json(array.store, key) if copies is None else copies.get(array.path)
    return from_metadata(array.metadata if document is None else parsed(document), array.store, array.path)


def has_own_nan(array: AnyArray) -> bool:
    """Whether the fill value is a NaN other than NumPy's, whose payload other programs lose on opening the array."""
    return is_nan(array.fill_value) and to_hex(array.fill_value) is not None


def with_dimensions(array: AnyArray, names: Sequence[str | None]) -> AnyArray:
    """Return the planned array with other dimension names."""
    if isinstance(array.metadata, ArrayV2Metadata):
        attributes = {**array.metadata.attributes, "_ARRAY_DIMENSIONS": list(names)}
        return from_metadata(replace(array.metadata, attributes=attributes), array.store, array.path)
    return from_metadata(replace(array.metadata, dimension_names=tuple(names)), array.store, array.path)


def is_flexible(array: AnyArray) -> bool:
    """Whether the chunks along an axis may differ in width; see `rectilinear`."""
    view_widths = getattr(array, "widths", ())  # an attribute of views, which are computed when they are read
    return rectilinear.is_rectilinear(array.metadata) or any(isinstance(width, tuple) for width in view_widths)


def widths(array: AnyArray) -> tuple[Width, ...]:
    """The widths of stored objects (shards if the array has them, else chunks) along each axis."""
    if (view_widths := getattr(array, "widths", None)) is not None:  # a view, as in `is_flexible`
        return cast("tuple[Width, ...]", view_widths)
    return rectilinear.widths_of(array.metadata) if is_flexible(array) else tuple(array.shards or array.chunks)


def cuts(array: AnyArray) -> tuple[Cuts, ...]:
    """The `Cuts` of each axis into stored objects: shards if the array has them, else chunks."""
    return tuple(Cuts(n, width) for n, width in zip(array.shape, widths(array), strict=True))


def outer_chunks(array: AnyArray) -> tuple[int, ...]:
    """The shape of a stored object, a shard or a chunk; the maximum along each axis if widths differ."""
    return tuple(cut.widest for cut in cuts(array))


def inner_chunks(array: AnyArray) -> tuple[int, ...]:
    """The shape of a chunk (the inner chunk of a shard); the maximum along each axis if widths differ."""
    return outer_chunks(array) if is_flexible(array) else tuple(array.chunks)


def grid(shape: Sequence[int], chunks: Sequence[Width]) -> tuple[int, ...]:
    """
    The number of chunks along each axis.

    >>> grid((10, 5), (4, 5))
    (3, 1)
    """
    return tuple(Cuts(n, c).n for n, c in zip(shape, chunks, strict=True))


def grid_of(array: AnyArray) -> tuple[int, ...]:
    """The number of chunks (shards if the array has them) along each axis of an array."""
    return tuple(cut.n for cut in cuts(array))


def element_bytes(array: AnyArray) -> int:
    """The decoded size of an element, in bytes. A string is assumed to take 64: 16 inline, the rest on the heap."""
    return 64 if array.dtype.kind in "OT" else int(array.dtype.itemsize)


def chunk_bytes(array: AnyArray) -> int:
    """
    The decoded size of a chunk, in bytes.

    A chunk that extends beyond its array is decoded whole; strings in the padding take the size of an empty one.
    """
    chunks = outer_chunks(array)
    inside = math.prod(min(c, n) for c, n in zip(chunks, array.shape, strict=True))
    empty = _EMPTY_STRING if array.dtype.kind in "OT" else int(array.dtype.itemsize)
    return inside * element_bytes(array) + (math.prod(chunks) - inside) * empty


_EMPTY_STRING = 16
"""Bytes per element of NumPy's variable-length string dtype, without the text on the heap."""


def decode_mem(array: AnyArray, n_chunks: int) -> int:
    """The memory to decode `n_chunks` chunks of an array (at most all) concurrently, in bytes, encoded and decoded."""
    return 2 * min(n_chunks, math.prod(grid_of(array))) * chunk_bytes(array)


def read(array: AnyArray, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
    """
    Decode a region of an array; positions, rather than a slice, select along their own axis only.

    Raises
    ------
    DamagedChunkError
        If a chunk cannot be decoded.
    """
    with naming(f"{array.path} in {place(array.store)}"):
        return _values(array, region)


def _values(array: AnyArray, region: tuple[Any, ...]) -> np.ndarray:
    if any(isinstance(of_axis, np.ndarray) for of_axis in region):
        return np.asarray(array.oindex[region])
    return np.asarray(_now(array.async_array.getitem(region)) if _is_here(array) else array[region])


def assign(array: AnyArray, region: tuple[slice, ...], values: np.ndarray) -> None:
    """Encode values and write them to a region of an array."""
    if _is_here(array):
        _now(array.async_array.setitem(region, values))
    else:
        array[region] = values


def _is_here(array: AnyArray) -> bool:
    """Whether chunks of an array are read and written synchronously: its store is local or in memory."""
    return (
        isinstance(array, zarr.Array)
        and isinstance(array.store, LocalStore | MemoryStore)
        and getattr(array.async_array.codec_pipeline, "sync_transform", None) is not None
    )


def _now[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, without an event loop, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    raise AssertionError("zarr waits for something")


class _ObjectStrings(VariableLengthUTF8):
    """zarr's variable-length strings as Python ``str`` objects, which is what their codec decodes to."""

    def to_native_dtype(self) -> Any:
        """The object dtype, rather than NumPy's variable-length strings."""
        return np.dtype(object)


def read_strings(array: AnyArray, region: tuple[slice, ...] = ()) -> np.ndarray:
    """
    Decode a region of an array of strings (by default all of it) to an object array of ``str``; see `as_text`.

    Errors of codecs propagate. NumPy's variable-length strings, zarr's default, take three times as long.
    """
    metadata = copy.copy(array.metadata)
    kind = "data_type" if isinstance(metadata, ArrayV3Metadata) else "dtype"
    is_text = isinstance(getattr(metadata, kind), VariableLengthUTF8)
    if is_text:
        object.__setattr__(metadata, kind, _ObjectStrings())
        array = from_metadata(metadata, array.store, array.path)
    values = _values(array, region or (slice(None),) * array.ndim)
    return values.astype(object, copy=False) if is_text else as_text(values)


def read_normalised(array: AnyArray, region: tuple[slice, ...]) -> np.ndarray:
    """
    Decode a region of an array of any dtype; strings stored as bytes or objects become ``str``, so that arrays compare.

    Raises
    ------
    DamagedChunkError
        If a chunk cannot be decoded, or bytes are not UTF-8.
    """
    with naming(f"{array.path} in {place(array.store)}"):
        values = _values(array, region)
        return as_text(values) if values.dtype.kind in "SO" else values


def members_of_folder(store: Store, zarr_format: int) -> dict[str, AnyArray] | None:
    """
    The arrays of the root group of a store in a local folder, by name, in sorted order.

    zarr's own walk over a group takes a millisecond per member, which adds up in an append of a thousand sources. None
    if the store is not a plain local folder (a user's subclass may read files differently) or if a member is not an
    array that can be read; the caller then falls back to zarr's walk.
    """
    if not isinstance(store, LocalStore) or type(store) not in (LocalStore, RegularLocalStore):
        return None
    key, attributes = ("zarr.json", None) if zarr_format == 3 else (".zarray", ".zattrs")
    members = dict[str, AnyArray]()
    try:
        for name in sorted(entry.name for entry in os.scandir(store.root) if entry.is_dir()):
            folder = os.path.join(store.root, name)
            document, zattrs = read_file(folder, key), read_file(folder, attributes) if attributes else None
            if document is None:
                return None
            members[name] = _at(_parsed(zarr_format, document, zattrs or b"{}"), store, name)
    except (OSError, *NO_METADATA):
        return None
    return members


@lru_cache(maxsize=4096)
def _parsed(zarr_format: int, document: bytes, attributes: bytes) -> AnyArray:
    """Parse an array's metadata, cached because all sources of a batch often have the same documents byte for byte."""
    fields = json.loads(document)
    metadata = (
        parsed(fields)
        if zarr_format == 3
        else ArrayV2Metadata.from_dict({**fields, "attributes": json.loads(attributes)})
    )
    return from_metadata(metadata, MemoryStore(), "")


def _at(template: AnyArray, store: Store, path: str) -> AnyArray:
    """Return an array with the same metadata at another path, without parsing its codecs again."""
    metadata, array = copy.copy(template.metadata), _moved(template, StorePath(store, path))
    object.__setattr__(metadata, "attributes", dict(metadata.attributes))
    object.__setattr__(array.async_array, "metadata", metadata)
    return array
