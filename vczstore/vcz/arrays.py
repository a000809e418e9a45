"""Zarr arrays as vczstore sees them: as they are and as they will be, how large their chunks are, and their values."""

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
    The array as it will be: in another store, with another shape, without touching storage.

    Parameters
    ----------
    array
        An array as it lies in its store.
    store
        The store of the result, the array's own by default.
    shape
        The shape of the result, the array's own by default.

    Returns
    -------
    AnyArray
        Chunks written to it land where they belong once the stored shape has followed.
    """
    metadata = array.metadata
    if (shape is None or shape == array.shape) and isinstance(array, zarr.Array) and _is_ours(array):
        return _moved(array, StorePath(store or array.store, array.path))
    if shape is not None and shape != array.shape:
        metadata = metadata.update_shape(shape) if not is_flexible(array) else _resized(array, shape)
    return from_metadata(metadata, store or array.store, array.path)


def _is_ours(array: AnyArray) -> bool:
    """Whether an array comes from `from_metadata`."""
    return isinstance(array.async_array.codec_pipeline, Pipeline)


def _moved(array: AnyArray, place: StorePath) -> AnyArray:
    """The same array elsewhere. zarr would make its codecs again, which counts where there are thousands of sources."""
    moved = copy.copy(array.async_array)
    object.__setattr__(moved, "store_path", place)
    return zarr.Array(moved)


def _resized(array: AnyArray, shape: tuple[int, ...]) -> ArrayV3Metadata:
    """The metadata of a flexible array with another shape; what is beyond chunks of several widths is one more."""
    sides = zip(shape, rectilinear.widths_of(array.metadata), strict=True)
    widths = [width if isinstance(width, int) else _cut_off(width, n) for n, width in sides]
    return rectilinear.with_widths(array.metadata, shape, widths)


def _cut_off(widths: tuple[int, ...], length: int) -> tuple[int, ...]:
    if length > sum(widths):
        return (*widths, length - sum(widths))
    return widths[: max(1, Cuts(length, widths).n)]


def with_columns(array: AnyArray, axis: int, lengths: Sequence[int], *, otherwise: int = 1) -> AnyArray:
    """
    The array as it will be with a flexible grid, with chunks of these widths along one axis.

    Parameters
    ----------
    array
        An array of format 3 without shards.
    axis, lengths
        Which axis, and its chunks. What they hold together is how long it becomes.
    otherwise
        How wide the one chunk is that a grid has where there are none.
    """
    shape, old = list(array.shape), list(widths(array))
    shape[axis], old[axis] = sum(lengths), tuple(lengths) or otherwise
    return from_metadata(rectilinear.with_widths(array.metadata, shape, old), array.store, array.path)


def with_widths(array: AnyArray, widths: Sequence[Width]) -> AnyArray:
    """The array as it will be with a flexible grid, with chunks of these widths along its axes."""
    return from_metadata(rectilinear.with_widths(array.metadata, array.shape, widths), array.store, array.path)


def with_regular_grid(array: AnyArray, chunks: Sequence[int]) -> AnyArray:
    """The array as it will be with a regular grid."""
    return from_metadata(rectilinear.with_regular(array.metadata, array.shape, chunks), array.store, array.path)


_CONFIGURING = threading.Lock()
"""zarr's configuration is one for all threads: two that set it at once would leave what the other has set."""


@contextmanager
def own_pipeline() -> Iterator[None]:
    """Let zarr open arrays with vczstore's own pipeline of codecs."""
    with _CONFIGURING, zarr.config.set({"codec_pipeline.path": f"{Pipeline.__module__}.{Pipeline.__name__}"}):
        yield


def from_metadata(metadata: Any, store: Store, path: str) -> AnyArray:
    """
    An array of which only the metadata need exist.

    Chunks of nothing but the fill value are left out (and deleted where they were), as zarr does by default,
    with any global configuration. Two fill values are kept from that: NaN, because zarr takes one NaN
    for another and VCF Zarr tells them apart by their payload; and null, because zarr-python 2 reads an absent
    chunk as uninitialised memory then.
    """
    keep = metadata.fill_value is None or is_nan(metadata.fill_value)
    with own_pipeline():
        return zarr.Array(
            AsyncArray(metadata=metadata, store_path=StorePath(store, path), config={"write_empty_chunks": keep})
        )


def as_documented(array: AnyArray, copies: Document | None = None) -> AnyArray:
    """
    An array as zarr opens it, with the bits of its fill value: what absent chunks read as.

    Parameters
    ----------
    array
        An array that is stored.
    copies
        Consolidated metadata of format 3, by path, if these are what counts.
    """
    if isinstance(array.metadata, ArrayV2Metadata) or not is_nan(array.metadata.fill_value):
        return planned(array)
    key = metadata_key(array.path, 3)
    document = read_json(array.store, key) if copies is None else copies.get(array.path)
    return from_metadata(array.metadata if document is None else parsed(document), array.store, array.path)


def has_own_nan(array: AnyArray) -> bool:
    """Whether absent chunks read as another NaN than NumPy's, which no other program that opens the array keeps."""
    return is_nan(array.fill_value) and to_hex(array.fill_value) is not None


def with_dimensions(array: AnyArray, names: Sequence[str | None]) -> AnyArray:
    """An array with other names for its axes; nothing is written."""
    if isinstance(array.metadata, ArrayV2Metadata):
        attributes = {**array.metadata.attributes, "_ARRAY_DIMENSIONS": list(names)}
        return from_metadata(replace(array.metadata, attributes=attributes), array.store, array.path)
    return from_metadata(replace(array.metadata, dimension_names=tuple(names)), array.store, array.path)


def is_flexible(array: AnyArray) -> bool:
    """Whether chunks may have widths of their own, as `rectilinear` has it."""
    found = getattr(array, "widths", ())  # of an array that is made when it is read
    return rectilinear.is_rectilinear(array.metadata) or any(isinstance(width, tuple) for width in found)


def widths(array: AnyArray) -> tuple[Width, ...]:
    """How wide what one stored object holds is along each axis: a shard where the array has shards, else a chunk."""
    if (found := getattr(array, "widths", None)) is not None:  # of an array that is made when it is read
        return cast("tuple[Width, ...]", found)
    return rectilinear.widths_of(array.metadata) if is_flexible(array) else tuple(array.shards or array.chunks)


def cuts(array: AnyArray) -> tuple[Cuts, ...]:
    """How each axis is cut into what one stored object holds."""
    return tuple(Cuts(n, width) for n, width in zip(array.shape, widths(array), strict=True))


def outer_chunks(array: AnyArray) -> tuple[int, ...]:
    """The shape of what one stored object holds, a shard or a chunk; of the largest, where they have several shapes."""
    return tuple(
        w if isinstance(w, int) else Cuts(n, w).widest for n, w in zip(array.shape, widths(array), strict=True)
    )


def inner_chunks(array: AnyArray) -> tuple[int, ...]:
    """The shape of a chunk, within a shard where there are shards; of the largest, where they have several shapes."""
    return outer_chunks(array) if is_flexible(array) else tuple(array.chunks)


def grid(shape: Sequence[int], chunks: Sequence[Width]) -> tuple[int, ...]:
    """
    The number of chunks along each axis.

    >>> grid((10, 5), (4, 5))
    (3, 1)
    """
    return tuple(Cuts(n, c).n for n, c in zip(shape, chunks, strict=True))


def grid_of(array: AnyArray) -> tuple[int, ...]:
    """The number of chunks (of shards, where there are any) along each axis of an array."""
    return grid(array.shape, widths(array))


def element_bytes(array: AnyArray) -> int:
    """The decoded size of an element, in bytes. A string counts 64: 16, and what does not fit in there."""
    return 64 if array.dtype.kind in "OT" else int(array.dtype.itemsize)


def chunk_bytes(array: AnyArray) -> int:
    """
    The decoded size of a chunk, in bytes.

    zarr decodes all of one that reaches beyond its array. There is nothing in there: a string takes what NumPy keeps of
    an empty one.
    """
    chunks = outer_chunks(array)
    inside = math.prod(min(c, n) for c, n in zip(chunks, array.shape, strict=True))
    empty = _EMPTY_STRING if array.dtype.kind in "OT" else int(array.dtype.itemsize)
    return inside * element_bytes(array) + (math.prod(chunks) - inside) * empty


_EMPTY_STRING = 16
"""What NumPy keeps of each string, in bytes."""


def decode_mem(array: AnyArray, n_chunks: int) -> int:
    """What it takes to decode so many chunks of an array at once, or all, encoded and decoded, in bytes."""
    return 2 * min(n_chunks, math.prod(grid_of(array))) * chunk_bytes(array)


def read(array: AnyArray, region: tuple[slice, ...]) -> np.ndarray:
    """
    Decode a region of an array.

    Raises
    ------
    DamagedChunkError
        If a chunk cannot be decoded.
    """
    with naming(f"{array.path} in {place(array.store)}"):
        return _values(array, region)


def _values(array: AnyArray, region: tuple[slice, ...]) -> np.ndarray:
    return np.asarray(_now(array.async_array.getitem(region)) if _is_here(array) else array[region])


def assign(array: AnyArray, region: tuple[slice, ...], values: np.ndarray) -> None:
    """Encode and write a region of an array."""
    if _is_here(array):
        _now(array.async_array.setitem(region, values))
    else:
        array[region] = values


def read_at(array: AnyArray, selection: tuple[slice | np.ndarray, ...]) -> np.ndarray:
    """
    Decode the elements at some positions along some axes, by zarr-python's own orthogonal selection.

    Raises
    ------
    DamagedChunkError
        If a chunk cannot be decoded.
    """
    with naming(f"{array.path} in {place(array.store)}"):
        return np.asarray(array.oindex[selection])


def _is_here(array: AnyArray) -> bool:
    """Whether chunks of an array can be had without waiting."""
    return (
        isinstance(array, zarr.Array)
        and isinstance(array.store, LocalStore | MemoryStore)
        and getattr(array.async_array.codec_pipeline, "sync_transform", None) is not None
    )


def _now[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    raise AssertionError("zarr waits for something")


class _ObjectStrings(VariableLengthUTF8):
    """zarr's variable-length strings as Python's ``str``, which is what their codec makes anyway."""

    def to_native_dtype(self) -> Any:
        """Objects, not NumPy's own strings."""
        return np.dtype(object)


def read_strings(array: AnyArray, region: tuple[slice, ...] = ()) -> np.ndarray:
    """
    Decode a region of an array of strings as objects, all of it by default; see `as_text`.

    Through NumPy's own string dtype, which zarr decodes to, it would take three times as long.
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
    Decode a region of an array of any kind; strings that are stored as bytes become text, so that arrays compare.

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
    The arrays at the top of a store that is a folder, by name, in the order of names.

    Zarr's walk over a group costs a millisecond a member, which counts where an append has a thousand sources. None
    where the store is no folder, or anything in it is not an array that can be read: the way of zarr tells what it is.
    A subclass of a user's may read files in its own way, and is left to zarr, too.
    """
    if not isinstance(store, LocalStore) or type(store) not in (LocalStore, RegularLocalStore):
        return None
    key, attributes = ("zarr.json", None) if zarr_format == 3 else (".zarray", ".zattrs")
    found = dict[str, AnyArray]()
    try:
        for name in sorted(entry.name for entry in os.scandir(store.root) if entry.is_dir()):
            folder = os.path.join(store.root, name)
            document, more = read_file(folder, key), read_file(folder, attributes) if attributes else None
            if document is None:
                return None
            found[name] = _at(_parsed(zarr_format, document, more or b"{}"), store, name)
    except (OSError, *NO_METADATA):
        return None
    return found


@lru_cache(maxsize=4096)
def _parsed(zarr_format: int, document: bytes, attributes: bytes) -> AnyArray:
    """An array by its metadata, which are often the same, byte for byte, in all sources of a batch."""
    fields = json.loads(document)
    metadata = (
        parsed(fields)
        if zarr_format == 3
        else ArrayV2Metadata.from_dict({**fields, "attributes": json.loads(attributes)})
    )
    return from_metadata(metadata, MemoryStore(), "")


def _at(alike: AnyArray, store: Store, path: str) -> AnyArray:
    """An array of the same metadata elsewhere. zarr would parse its codecs again."""
    metadata, array = copy.copy(alike.metadata), _moved(alike, StorePath(store, path))
    object.__setattr__(metadata, "attributes", dict(metadata.attributes))
    object.__setattr__(array.async_array, "metadata", metadata)
    return array
