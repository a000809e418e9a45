"""Zarr arrays as vczstore sees them: planned shapes, encoded chunks, format 2 read as format 3.

This is the only module that touches zarr-python's private interfaces.
"""

import asyncio
import copy
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import threading
import uuid
import warnings
import zlib
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, Protocol, Self, cast, runtime_checkable

import numpy as np
import zarr
from numcodecs.vlen import VLenUTF8
from zarr.abc.codec import Codec
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, VLenUTF8Codec
from zarr.codecs._v2 import V2Codec
from zarr.core.array import AsyncArray
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer, default_buffer_prototype
from zarr.core.codec_pipeline import FusedCodecPipeline
from zarr.core.dtype import VariableLengthUTF8
from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata
from zarr.core.metadata.v3 import RegularChunkGridMetadata
from zarr.core.sync import sync
from zarr.dtype import parse_dtype
from zarr.errors import UnstableSpecificationWarning
from zarr.registry import register_pipeline
from zarr.storage import LocalStore, MemoryStore, ObjectStore, StorePath, ZipStore
from zarr.types import AnyArray

from vczstore.errors import first_line
from vczstore.vcz.floats import from_hex, recast, to_hex
from vczstore.vcz.frames import blosc_length, zstd_length

type Document = dict[str, Any]
type Encoded = Buffer | None
"""The bytes of a chunk, None for one that is absent."""
"""A metadata document: a ``zarr.json``, or a ``.zarray`` as stored."""

CONCURRENCY = 32
"""How many requests one task keeps in flight on a store that answers asynchronously."""

READS_AT_ONCE = 10
"""How many chunks zarr decodes at once for one selection: its ``async.concurrency``, as it comes."""

_BLOSC_SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")


NONCE = ".vczstore-nonce-"
"""The name of an object by which tasks show that they reach a store begins like this; killed runs leave one."""
LOCK = ".vczstore-job.lock"
COMMIT_LOCK = ".vczstore-commit.lock"
"""The files or objects in a store that are no part of it: whoever writes to it, or commits to it, holds them."""


NO_METADATA = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What zarr and json raise when a document is none; the last where it is too deep."""


class UnsupportedCodecError(ValueError):
    """A format 2 codec has no counterpart in format 3 that decodes the same bytes."""


# ---- arrays ---------------------------------------------------------------------------------


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
    if shape is not None and shape != array.shape:
        metadata = metadata.update_shape(shape)
    return from_metadata(metadata, store or array.store, array.path)


def from_metadata(metadata: Any, store: Store, path: str) -> AnyArray:
    """
    An array of which only the metadata need exist.

    Chunks of nothing but the fill value are left out (and deleted where they were), as zarr does by default,
    whatever its global configuration says. Two fill values are kept from that: NaN, because zarr takes one NaN
    for another and VCF Zarr tells them apart by their payload; and null, because zarr-python 2 reads an absent
    chunk as uninitialised memory then.
    """
    keep = metadata.fill_value is None or _is_nan(metadata.fill_value)
    with zarr.config.set({"codec_pipeline.path": f"{__name__}.{Pipeline.__name__}"}):
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
    if isinstance(array.metadata, ArrayV2Metadata) or not _is_nan(array.metadata.fill_value):
        return planned(array)
    key = metadata_key(array.path, 3)
    document = read_json(array.store, key) if copies is None else copies.get(array.path)
    return from_metadata(array.metadata if document is None else parsed(document), array.store, array.path)


def has_own_nan(array: AnyArray) -> bool:
    """Whether absent chunks read as another NaN than NumPy's, which whatever else opens the array does not keep."""
    return _is_nan(array.fill_value) and to_hex(array.fill_value) is not None


def with_dimensions(array: AnyArray, names: Sequence[str | None]) -> AnyArray:
    """An array with other names for its axes; nothing is written."""
    if isinstance(array.metadata, ArrayV2Metadata):
        attributes = {**array.metadata.attributes, "_ARRAY_DIMENSIONS": list(names)}
        return from_metadata(replace(array.metadata, attributes=attributes), array.store, array.path)
    return from_metadata(replace(array.metadata, dimension_names=tuple(names)), array.store, array.path)


def new(
    path: str,
    *,
    shape: tuple[int, ...],
    dtype: Any,
    chunks: tuple[int, ...],
    dimension_names: Sequence[str],
) -> AnyArray:
    """An array of format 3 of which nothing exists yet, compressed as VCF converters do."""
    created = zarr.create_array(
        MemoryStore(),
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        compressors=BloscCodec(cname="zstd", clevel=7, shuffle="shuffle"),
        dimension_names=dimension_names,
    )
    return from_metadata(created.metadata, MemoryStore(), path)


def outer_chunks(array: AnyArray) -> tuple[int, ...]:
    """The shape of what one stored object holds: a shard where the array has shards, else a chunk."""
    return tuple(array.shards or array.chunks)


def grid(shape: Sequence[int], chunks: Sequence[int]) -> tuple[int, ...]:
    """
    The number of chunks along each axis.

    >>> grid((10, 5), (4, 5))
    (3, 1)
    """
    return tuple(math.ceil(n / c) for n, c in zip(shape, chunks, strict=True))


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
    return 2 * min(n_chunks, math.prod(grid(array.shape, outer_chunks(array)))) * chunk_bytes(array)


def has_regular_grid(array: AnyArray) -> bool:
    """Whether all chunks of the array have one shape, as the VCF Zarr specification presumes."""
    metadata = array.metadata
    return isinstance(metadata, ArrayV2Metadata) or isinstance(metadata.chunk_grid, RegularChunkGridMetadata)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


DECODING_ERRORS = (RuntimeError, ValueError, TypeError, EOFError, zlib.error)
"""What codecs raise."""


class DamagedChunkError(ValueError):
    """The bytes of a chunk cannot be those that were written."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """
    Let what fails within say what it was about: zarr and its codecs do not.

    Raises
    ------
    DamagedChunkError
        In place of an error of a codec.
    """
    try:
        yield
    except DamagedChunkError:
        raise
    except DECODING_ERRORS as error:
        raise DamagedChunkError(f"a chunk of {what} cannot be decoded ({first_line(error)})") from error


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


class Pipeline(FusedCodecPipeline):
    """
    zarr's synchronous pipeline. In tasks of some ten chunks it takes a fifth less time than the default one.

    Outside of an event loop it reads and writes in the thread that asks for it. The way through zarr's event loop and
    another thread takes four times as long as to read a chunk of positions.
    """

    @classmethod
    def from_codecs(cls, codecs: Iterable[Codec], *, batch_size: int | None = None) -> Self:
        """Take zarr's codecs, those of strings with a look at what a chunk claims."""
        return super().from_codecs(map(_doubting, codecs), batch_size=batch_size)

    async def read(self, batch_info: Any, out: Any, drop_axes: tuple[int, ...] = ()) -> Any:
        """Read chunks."""
        if _in_event_loop():
            return await super().read(batch_info, out, drop_axes)
        return self.read_sync(batch_info, out, drop_axes, max_workers=_threads())

    async def write(self, batch_info: Any, value: Any, drop_axes: tuple[int, ...] = ()) -> None:
        """Write chunks."""
        if _in_event_loop():
            return await super().write(batch_info, value, drop_axes)
        return self.write_sync(batch_info, value, drop_axes)


register_pipeline(Pipeline)


class _StringsOfFormat3(VLenUTF8Codec):
    """zarr's codec of strings."""

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        _check_count(chunk_bytes.as_array_like())
        return super()._decode_sync(chunk_bytes, chunk_spec)


class _StringsOfFormat2(VLenUTF8):
    """numcodecs' filter of strings."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a chunk that can hold as many strings as it says."""
        _check_count(buf)
        return super().decode(buf, out)


def _doubting(codec: Codec) -> Codec:
    if type(codec) is VLenUTF8Codec:
        return _StringsOfFormat3()
    if isinstance(codec, V2Codec) and codec.filters:
        filters = tuple(_StringsOfFormat2() if type(one) is VLenUTF8 else one for one in codec.filters)
        return replace(codec, filters=filters)
    return codec


def _check_count(chunk: Any) -> None:
    """
    Refuse a chunk of more strings than there is room for.

    numcodecs makes room for as many as the first four bytes say, which can be 32 GB. Each has four bytes of its own.
    """
    encoded = memoryview(chunk).cast("B")
    count = int.from_bytes(encoded[:4], "little")
    if 4 + 4 * count > len(encoded):
        raise ValueError(f"{count:,} strings in {len(encoded):,} bytes")


def _threads() -> int:
    """
    How many threads read the chunks of a selection.

    Where interrupts arrive, zarr's pool of threads is left alone: one that comes while the pool starts a thread leaves
    a thread that nobody ends, and Python waits for it for ever.
    """
    can_be_interrupted = threading.current_thread() is threading.main_thread() and parent_process() is None
    return 1 if can_be_interrupted else min(READS_AT_ONCE, os.cpu_count() or 1)


def _in_event_loop() -> bool:
    with suppress(RuntimeError):
        return bool(asyncio.get_running_loop())
    return False


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


def as_text(values: np.ndarray) -> np.ndarray:
    """
    Strings in the one form in which they are compared, Python's ``str``, whatever they are stored as.

    Bytes, of fixed or variable length, are UTF-8, as VCF is (VCF 4.3 and later, 1.1); integers are their digits.

    Raises
    ------
    UnicodeDecodeError
        If bytes are not UTF-8.

    Examples
    --------
    >>> as_text(np.array([b"A1", b"A2"])).tolist(), as_text(np.array([7, 12])).tolist()
    (['A1', 'A2'], ['7', '12'])
    """
    match values.dtype.kind:
        case "S":
            return np.strings.decode(values, "utf-8").astype(object)
        case "O":
            texts = [v.decode() if isinstance(v, bytes) else str(v) for v in values.ravel().tolist()]
            return np.array(texts, dtype=object).reshape(values.shape)
        case "T" | "U":
            return values.astype(object)
        case _:
            return values.astype("T").astype(object)


def as_stored(texts: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """
    The reverse of `as_text`: strings as an array of some dtype takes them.

    Raises
    ------
    ValueError
        If a string is longer than the dtype's fixed width, or no integer where integers are stored.

    Examples
    --------
    >>> as_stored(np.array(["A1", "A2"], dtype=object), np.dtype("S4"))
    array([b'A1', b'A2'], dtype='|S4')
    """
    encoded = [t.encode() for t in texts.ravel().tolist()] if dtype.kind in "SO" else texts
    if dtype.kind == "O":
        return np.array([*encoded, None], dtype=object)[:-1].reshape(texts.shape)
    values = np.array(encoded, dtype="S") if dtype.kind == "S" else texts.astype("T")
    if dtype.kind in "SU" and values.size and (longest := int(np.strings.str_len(values).max())) > width(dtype):
        raise ValueError(f"a string of length {longest} does not fit into {dtype}, which takes {width(dtype)}")
    return values.reshape(texts.shape).astype(dtype)


def width(dtype: np.dtype) -> int:
    """How many characters (of bytes: how many bytes) a string of fixed width takes."""
    return dtype.itemsize // (4 if dtype.kind == "U" else 1)


def place(store: Store) -> str:
    """
    How messages call a Zarr store: its path or URL, or else its kind.

    Icechunk is not asked: its text waits for whoever writes through the session, and lets no other thread run while it
    does, so that the write never ends.
    """
    if type(store).__module__.partition(".")[0] == "icechunk":
        return f"<{type(store).__name__}>"
    text = str(store)
    return text.removeprefix("file://") if "://" in text else f"<{type(store).__name__}>"


# ---- encoded chunks -------------------------------------------------------------------------


def chunk_key(array: AnyArray, coords: Sequence[int]) -> str:
    """The key of a chunk (of a shard, where there are shards) in the array's store."""
    name = array.metadata.encode_chunk_key(tuple(int(c) for c in coords))
    return f"{array.path}/{name}" if array.path else name


def get_encoded(array: AnyArray, coords: Sequence[Sequence[int]]) -> list[Buffer | None]:
    """The bytes of chunks as they lie in the store, None for those that are absent; a view makes its own."""
    if (made := getattr(array, "get_encoded", None)) is not None:
        return cast("list[Buffer | None]", made(coords))
    return get_many(array.store, [chunk_key(array, c) for c in coords])


def encode(array: AnyArray, coords: Sequence[int], region: tuple[slice, ...], values: np.ndarray) -> Buffer | None:
    """The bytes of one chunk that has these values, None if it is left out."""
    chunk = planned(array, store=MemoryStore())
    if _is_here(chunk):
        _now(chunk.async_array.setitem(region, values))
    else:
        chunk[region] = values
    return get_many(chunk.store, [chunk_key(chunk, coords)])[0]


def check_frames(array: AnyArray, coords: Sequence[Sequence[int]], values: Sequence[Buffer | None]) -> None:
    """
    Check that encoded chunks are as long as they say: what is copied without decoding may be cut off as well.

    Blosc and Zstandard frames tell their size; other encodings are taken as they are.

    Raises
    ------
    DamagedChunkError
        Naming the first chunk that is not.
    """
    for at, value in zip(coords, values, strict=True):
        if value is not None and (said := frame_length(array, value)) not in (None, len(value)):
            where = f"{chunk_key(array, at)} in {place(array.store)}"
            raise DamagedChunkError(f"chunk {where} is cut off: it has {len(value):,} bytes of {said:,}")


def frame_length(array: AnyArray, value: Buffer) -> int | None:
    """How long an encoded chunk says it is; None if its encoding does not tell."""
    compressor = "" if array.shards or not array.compressors else type(array.compressors[-1]).__name__
    tell = next((f for name, f in _FRAME_LENGTHS.items() if name in compressor), None)
    return None if tell is None else tell(memoryview(value.as_buffer_like()))


class ChunkDecoder:
    """Decodes chunks whose bytes are at hand, as zarr does with those that it reads itself."""

    def __init__(self, array: AnyArray) -> None:
        self._objects: dict[str, Buffer] = {}
        self._array = planned(array, store=MemoryStore(self._objects))

    def decode(self, coords: Sequence[int], value: Buffer) -> np.ndarray:
        """The values of one chunk (of one shard), as far as they lie within the array. Fails as its codecs do."""
        self._objects.clear()
        self._objects[chunk_key(self._array, coords)] = value
        return np.asarray(self._array[chunk_region(self._array, coords)])


def chunk_region(array: AnyArray, coords: Sequence[int]) -> tuple[slice, ...]:
    """Where in an array a chunk is, as far as it lies within."""
    sides = zip(coords, outer_chunks(array), array.shape, strict=True)
    return tuple(slice(int(i) * c, min(n, (int(i) + 1) * c)) for i, c, n in sides)


def count_outside(array: AnyArray) -> int:
    """How many chunks of an array are stored that lie outside its grid, where no reader looks. It is a listing."""

    async def count() -> int:
        return len([None async for _ in _outside(array)])

    return sync(count())


def clear_outside(array: AnyArray, store: Store, *, dry_run: bool) -> tuple[int, int]:
    """
    Delete the chunks of an array that lie outside its grid, or only count them.

    Parameters
    ----------
    array
        The array as it is.
    store
        The array's store, to write to.
    dry_run
        Count, and delete nothing.

    Returns
    -------
    n, size : int
        How many there are, and their bytes.
    """

    async def clear() -> tuple[int, int]:
        n = size = 0
        async for key in _outside(array):
            n, size = n + 1, size + await store.getsize(key)
            if not dry_run:
                await store.delete(key)
        return n, size

    return sync(clear())


async def _outside(array: AnyArray) -> AsyncIterator[str]:
    cells = grid(array.shape, outer_chunks(array))
    async for key in array.store.list_prefix(f"{array.path}/"):
        coords = _coords(array, key)
        if coords is not None and any(i >= m for i, m in zip(coords, cells, strict=True)):
            yield key


def _coords(array: AnyArray, key: str) -> tuple[int, ...] | None:
    """Which chunk of an array a key is that of, None if of none."""
    match = re.fullmatch(r"(?:c[/.])?(\d+(?:[/.]\d+)*)", key.removeprefix(f"{array.path}/"))
    coords = tuple(int(i) for i in re.split("[/.]", match[1])) if match else ()
    return coords if len(coords) == array.ndim and chunk_key(array, coords) == key else None


_FRAME_LENGTHS = {"Blosc": blosc_length, "Zstd": zstd_length}
"""By what the names of codec classes contain, in both formats."""


def set_encoded(array: AnyArray, chunks: Iterable[tuple[Sequence[int], Buffer | None]]) -> None:
    """Write chunks as they are, and delete those that are None."""
    set_many(array.store, [(chunk_key(array, c), value) for c, value in chunks])


def link_chunks(source: AnyArray, target: AnyArray, coords: Iterable[Sequence[int]]) -> None:
    """Let chunks of an array in a folder be chunks of one in another folder too; those that are absent stay so."""
    here, there = (cast(LocalStore, array.store).root for array in (source, target))
    for at in coords:
        old, new = (os.path.join(root, chunk_key(source, at)) for root in (here, there))
        try:
            link_file(old, new)
        except FileNotFoundError:
            if os.path.lexists(old):  # it is the folder that is missing
                os.makedirs(os.path.dirname(new), exist_ok=True)
                link_file(old, new)


def link_file(source: str, target: str) -> None:
    """Give a file a second name, or where that is not allowed a copy. One that is there already is left alone."""
    try:
        os.link(source, target)
    except FileExistsError:
        return  # by an earlier attempt of the same task
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        half = f"{target}.{uuid.uuid4().hex}.partial"
        try:
            shutil.copy2(source, half, follow_symlinks=False)
            os.replace(half, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(half)
            raise


_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EMLINK, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP)
"""Why there may be no hard link: file systems without any, too many of one file, or a file of another user."""


def wait_for[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that runs in zarr's event loop."""
    return sync(coroutine)


def get_many(store: Store, keys: Sequence[str]) -> list[Buffer | None]:
    """Read several objects, at most `CONCURRENCY` at a time."""
    prototype = default_buffer_prototype()
    if isinstance(store, LocalStore | MemoryStore):  # no event loop in between: twice as fast on a disk
        return [store.get_sync(key, prototype=prototype) for key in keys]

    async def get(key: str, slots: asyncio.Semaphore) -> Buffer | None:
        async with slots:
            return await store.get(key, prototype)

    async def get_all() -> list[Buffer | None]:
        slots = asyncio.Semaphore(CONCURRENCY)
        return await asyncio.gather(*(get(key, slots) for key in keys))

    return sync(get_all())


def set_many(store: Store, items: Sequence[tuple[str, Buffer | None]]) -> None:
    """Write several objects, at most `CONCURRENCY` at a time; delete those that are None."""
    if isinstance(store, LocalStore | MemoryStore):
        for key, value in items:
            if value is None:
                store.delete_sync(key)
            else:
                store.set_sync(key, value)
        return

    async def put(key: str, value: Buffer | None, slots: asyncio.Semaphore) -> None:
        async with slots:
            if value is None:
                with suppress(FileNotFoundError):  # fsspec minds, other stores do not
                    await store.delete(key)
            else:
                await store.set(key, value)

    async def put_all() -> None:
        slots = asyncio.Semaphore(CONCURRENCY)
        await asyncio.gather(*(put(key, value, slots) for key, value in items))

    sync(put_all())


_DOCUMENTS = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")


class RegularLocalStore(LocalStore):
    """A folder in which only regular files are read: a pipe would never end to be waited for, a device to be read."""

    def get_sync(self, key: str, **options: Any) -> Buffer | None:
        """Read a file."""
        self._require_file(key)
        return super().get_sync(key, **options)

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Buffer | None:
        """Read a file; a document of metadata without another thread, which takes longer than to read it."""
        if byte_range is None and key.rpartition("/")[2] in _DOCUMENTS:
            return self.get_sync(key, prototype=prototype)
        self._require_file(key)
        return await super().get(key, prototype, byte_range)

    def _require_file(self, key: str) -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            _require_file(os.path.join(self.root, key), key)


def _require_file(path: str, key: str) -> None:
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(f"{key} is a pipe or a device, where there should be a file")


def stored_bytes(store: Store) -> int | None:
    """The size of all objects of a store in this machine's folders or memory; None elsewhere, where it is a listing."""
    return sync(store.getsize_prefix("")) if isinstance(store, LocalStore | MemoryStore) else None


@runtime_checkable
class Listed(Protocol):
    """A store that says itself what lies in it."""

    def entries(self) -> Iterator[tuple[str, object, object]]:
        """The key and size of every object, and what tells its states apart."""


def reading(store: Store) -> Store:
    """The same store for reading alone; zip files have no such view."""
    return store if store.read_only or isinstance(store, ZipStore) else store.with_read_only(True)


def fingerprint(store: Store) -> str:
    """
    What changes when any object of a store does. No object is read, but in memory.

    It is a digest of keys, sizes and, where storage tells them, times of change or entity tags. The lock is left out.
    """
    digest = hashlib.blake2b(digest_size=16)
    for entry in sorted(_entries(store)):
        if not is_lock(entry[0]):
            digest.update(repr(entry).encode())
    return digest.hexdigest()


def is_lock(key: str) -> bool:
    """Whether an object is a lock or a nonce, at the top of a store or one folder below: no part of the store."""
    name = key.rpartition("/")[2]
    return key.count("/") <= 1 and (name in (LOCK, COMMIT_LOCK) or name.startswith(NONCE))


def _files(root: Path) -> Iterator[tuple[str, object, object]]:
    """The files below a folder but the locks: one that another writer holds comes and goes."""
    for folder, _, files in os.walk(root):
        for file in files:
            path = Path(folder, file)
            key = path.relative_to(root).as_posix()
            if not is_lock(key):
                found = path.stat()
                yield key, found.st_size, found.st_mtime_ns


def _entries(store: Store) -> Iterator[tuple[str, object, object]]:
    match store:
        case Listed():
            yield from store.entries()
        case ZipStore(path=Path() as path):
            found = path.stat()
            yield "", found.st_size, found.st_mtime_ns
        case LocalStore():
            yield from _files(store.root)
        case ObjectStore():
            for batch in store.store.list():
                for entry in batch:
                    yield entry["path"], entry["size"], entry["e_tag"] or str(entry["last_modified"])
        case _:

            async def keys() -> list[str]:
                return [key async for key in store.list()]

            for key in sync(keys()):
                if isinstance(store, MemoryStore):
                    (value,) = get_many(store, [key])
                    yield key, None if value is None else hashlib.blake2b(value.to_bytes()).hexdigest(), None
                else:
                    yield key, sync(store.getsize(key)), None


def names(store: Store, folder: str = "") -> set[str]:
    """What lies at the top of a store, or of a folder in it, whatever it is."""

    async def collect() -> set[str]:
        return {name async for name in store.list_dir(folder)}

    return sync(collect())


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
            document, more = _small_file(folder, key), _small_file(folder, attributes) if attributes else None
            if document is None:
                return None
            found[name] = _at(_parsed(zarr_format, document, more or b"{}"), store, name)
    except (OSError, *NO_METADATA):
        return None
    return found


def _small_file(folder: str, name: str) -> bytes | None:
    """What a regular file holds, None if it does not exist."""
    path = os.path.join(folder, name)
    with suppress(FileNotFoundError):
        _require_file(path, name)
        with open(path, "rb") as file:
            return file.read()
    return None


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
    metadata, array = copy.copy(alike.metadata), copy.copy(alike.async_array)
    object.__setattr__(metadata, "attributes", dict(metadata.attributes))
    object.__setattr__(array, "metadata", metadata)
    object.__setattr__(array, "store_path", StorePath(store, path))
    return zarr.Array(array)


def claim(store: Store, key: str) -> bool:
    """Create an object, unless it exists: of several who do so at once, one gets it."""
    mine = default_buffer_prototype().buffer.from_bytes(uuid.uuid4().hex.encode())
    sync(store.set_if_not_exists(key, mine))
    (found,) = get_many(store, [key])
    return found is not None and found.to_bytes() == mine.to_bytes()


def clear(store: Store, path: str = "") -> None:
    """Delete all objects of a store, or those below a path."""
    sync(store.delete_dir(path) if path else store.clear())


# ---- metadata documents ---------------------------------------------------------------------


def read_json(store: Store, key: str) -> Document | None:
    """A metadata document, None where there is none."""
    (value,) = get_many(store, [key])
    return None if value is None else json.loads(value.to_bytes())


def write_json(store: Store, key: str, document: Document) -> None:
    """Write a metadata document."""
    value = default_buffer_prototype().buffer.from_bytes(json.dumps(document, indent=2).encode())
    set_many(store, [(key, value)])


def metadata_key(path: str, zarr_format: int) -> str:
    """The key of the document that holds an array's shape."""
    return f"{path}/{'zarr.json' if zarr_format == 3 else '.zarray'}"


def documents(metadata: ArrayV2Metadata | ArrayV3Metadata) -> dict[str, Document]:
    """The documents that a new array needs, by name."""
    with warnings.catch_warnings():
        # an array keeps the dtype that it has: to warn of it each time helps no user
        warnings.simplefilter("ignore", UnstableSpecificationWarning)
        buffers = metadata.to_buffer_dict(default_buffer_prototype())
    result: dict[str, Document] = {name: json.loads(value.to_bytes()) for name, value in buffers.items()}
    if isinstance(metadata, ArrayV3Metadata) and _is_nan(metadata.fill_value):
        # zarr writes any NaN as the one of NumPy
        result["zarr.json"]["fill_value"] = to_hex(metadata.fill_value) or "NaN"
    return result


def parsed(document: Document) -> ArrayV3Metadata:
    """Format 3 metadata by their document, the bits of the fill value included; the reverse of `documents`."""
    metadata = ArrayV3Metadata.from_dict(document)
    text = document.get("fill_value")
    if isinstance(text, str) and text.startswith("0x") and _is_nan(metadata.fill_value):
        exact = from_hex(text, metadata.data_type.to_native_dtype())
        object.__setattr__(metadata, "fill_value", exact)
    return metadata


def encoding(metadata: ArrayV2Metadata | ArrayV3Metadata) -> Document:
    """
    What decides over the bytes of a chunk: all metadata but shape, names, attributes and chunk keys.

    Format 2 is put in the terms of format 3, so that encodings of both formats can be compared.
    """
    if isinstance(metadata, ArrayV2Metadata):
        metadata = as_format_3(metadata)
    document = documents(metadata)["zarr.json"]
    for key in ("shape", "attributes", "dimension_names", "chunk_key_encoding", "storage_transformers"):
        document.pop(key, None)
    return document


_LOSSLESS = frozenset(
    (
        *("blosc", "bz2", "gzip", "lz4", "lzma", "pcodec", "zlib", "zstd"),
        *("base64", "bitshuffle", "bytes", "shuffle", "transpose", "sharding_indexed"),
        *("adler32", "crc32", "crc32c", "fletcher32", "jenkins_lookup3"),
        *("json2", "msgpack2", "pickle", "vlen-array", "vlen-bytes", "vlen-utf8"),
    )
)
"""Codecs that decode to what was encoded, by their names in both formats, without numcodecs' prefix in format 3."""


def lossy_codec(array: AnyArray) -> str | None:
    """
    The first codec of an array that may change what is written, None if all are known to be lossless.

    Examples
    --------
    >>> def array(*filters):
    ...     options = {"dtype": "f4", "chunks": (1,), "zarr_format": 2, "filters": filters}
    ...     return zarr.create_array(MemoryStore(), shape=(1,), **options)
    >>> from numcodecs import FixedScaleOffset, Shuffle
    >>> lossy_codec(array(Shuffle(4))), lossy_codec(array(FixedScaleOffset(0, 10, "f4", "u1")))
    (None, 'fixedscaleoffset')
    """
    named = documents(array.metadata)
    if (document := named.get(".zarray")) is not None:
        codecs = [(c["id"], c) for c in (*(document["filters"] or ()), document["compressor"]) if c]
    else:
        codecs = list(_flat(named["zarr.json"]["codecs"]))
    return next((name for name, config in codecs if not _is_lossless(name, config, array.dtype)), None)


def _flat(codecs: Iterable[Document]) -> Iterator[tuple[str, Document]]:
    """The codecs of format 3 with their configurations, those within shards too."""
    for codec in codecs:
        config = codec.get("configuration", {})
        yield codec["name"].removeprefix("numcodecs."), config
        for inner in ("codecs", "index_codecs"):
            yield from _flat(config.get(inner, ()) if codec["name"] == "sharding_indexed" else ())


def _is_lossless(name: str, config: Document, dtype: np.dtype) -> bool:
    match name:
        case "packbits":
            return dtype.kind == "b"
        case "delta":  # integers wrap around, and back
            kinds = {np.dtype(config[key]) for key in ("dtype", "astype") if config.get(key) is not None}
            return dtype.kind in "iu" and kinds <= {dtype}
        case _:
            return name in _LOSSLESS


def same_encoding(a: AnyArray, b: AnyArray) -> bool:
    """Whether a chunk of one array is, byte for byte, a chunk of the other."""
    if _is_same(a.metadata, b.metadata):
        return True
    try:
        return encoding(a.metadata) == encoding(b.metadata)
    except UnsupportedCodecError:
        return a.metadata.zarr_format == b.metadata.zarr_format == 2 and _v2_encoding(a) == _v2_encoding(b)


def _is_same(a: ArrayV2Metadata | ArrayV3Metadata, b: ArrayV2Metadata | ArrayV3Metadata) -> bool:
    """Whether two of format 3 are, as those of many sources are: documents take ten times as long to compare."""
    if not isinstance(a, ArrayV3Metadata) or not isinstance(b, ArrayV3Metadata):
        return False
    same = (getattr(a, key) == getattr(b, key) for key in ("data_type", "chunk_grid", "codecs", "fill_value"))
    return all(same) and type(a.fill_value) is type(b.fill_value)


def _v2_encoding(array: AnyArray) -> Document:
    document = documents(array.metadata)[".zarray"]
    for key in ("shape", "dimension_separator"):
        document.pop(key, None)
    return document


def as_format_3(metadata: ArrayV2Metadata, *, dimension_names: Sequence[str | None] | None = None) -> ArrayV3Metadata:
    """
    The format 3 metadata that decode the chunks of a format 2 array as they are.

    Parameters
    ----------
    metadata
        Of a C-ordered, little-endian array, with VLenUTF8 as its only filter, if any.
    dimension_names
        One for each axis.

    Raises
    ------
    UnsupportedCodecError
        For an order, byte order, filter or compressor that format 3 cannot express.
    """
    document = documents(metadata)[".zarray"]
    native = metadata.dtype.to_native_dtype()
    filters = [f["id"] for f in document["filters"] or ()]
    if document["order"] != "C" and metadata.ndim > 1:
        raise UnsupportedCodecError("order F")
    if native.byteorder == ">":
        raise UnsupportedCodecError("big-endian")
    if filters == ["vlen-utf8"]:
        data_type: Any = "string"
        codecs: list[Document] = [{"name": "vlen-utf8"}]
    elif not filters:
        data_type = metadata.dtype.to_json(zarr_format=3)
        multi_byte = native.itemsize > 1
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}} if multi_byte else {"name": "bytes"}]
    else:
        raise UnsupportedCodecError(f"filters {filters}")
    if document["compressor"]:
        codecs.append(_compressor_of_format_3(document["compressor"], native))
    fill_value = metadata.fill_value if metadata.fill_value is not None else metadata.dtype.default_scalar()
    try:
        return ArrayV3Metadata.from_dict(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": list(metadata.shape),
                "data_type": data_type,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(metadata.chunks)}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "fill_value": metadata.dtype.to_json_scalar(fill_value, zarr_format=3),
                "codecs": codecs,
                "attributes": {k: v for k, v in metadata.attributes.items() if k != "_ARRAY_DIMENSIONS"},
                "dimension_names": None if dimension_names is None else list(dimension_names),
            }
        )
    except (TypeError, ValueError) as error:  # numcodecs takes parameters of codecs that format 3 refuses
        raise UnsupportedCodecError(str(error)) from error


def _compressor_of_format_3(config: Document, native: np.dtype) -> Document:
    match config["id"]:
        case "blosc" if config["shuffle"] in (0, 1, 2):
            return {
                "name": "blosc",
                "configuration": {
                    # a frame says itself how it was shuffled: typesize matters to writers only
                    "typesize": 1 if native.kind in "OT" else native.itemsize,
                    "cname": config["cname"],
                    "clevel": config["clevel"],
                    "shuffle": _BLOSC_SHUFFLES[config["shuffle"]],
                    "blocksize": config.get("blocksize", 0),
                },
            }
        case "zstd":
            configuration = {"level": config["level"], "checksum": config.get("checksum", False)}
            return {"name": "zstd", "configuration": configuration}
        case "gzip":
            return {"name": "gzip", "configuration": {"level": config["level"]}}
    raise UnsupportedCodecError(f"compressor {config['id']}")


def new_like(
    array: AnyArray,
    path: str,
    dtype: np.dtype,
    others: Sequence[int],
    *,
    dimension_names: Sequence[str],
    attributes: Document,
) -> AnyArray:
    """
    An array that is to be: of the format, first axis and compression of another.

    Parameters
    ----------
    array
        The other, which has one axis.
    path, dtype
        The new array's name and dtype.
    others
        The lengths of the axes that it has beside the first; each is one chunk.
    dimension_names, attributes
        For its metadata.
    """
    options: Document = {"dimension_names": list(dimension_names)}
    if array.metadata.zarr_format == 2:
        attributes = {**attributes, "_ARRAY_DIMENSIONS": list(dimension_names)}
        options = {}
    created = zarr.create_array(
        MemoryStore(),
        shape=(array.shape[0], *others),
        dtype=dtype,
        chunks=(array.chunks[0], *(max(1, n) for n in others)),
        shards=None if array.shards is None else (array.shards[0], *(max(1, n) for n in others)),
        compressors=cast(Any, array.compressors or None),
        zarr_format=cast(Any, array.metadata.zarr_format),
        attributes=attributes,
        **options,
    )
    return from_metadata(created.metadata, array.store, path)


def in_format(
    array: AnyArray,
    zarr_format: int,
    *,
    shape: tuple[int, ...],
    dimension_names: Sequence[str | None],
    chunks: tuple[int, ...] | None = None,
) -> ArrayV2Metadata | ArrayV3Metadata:
    """
    Metadata for the values of an array in a format that may be another, and with another shape.

    The encoding stays the same if the format is the same, or format 3 can express it; else it is zarr's default. With
    other `chunks`, shards hold as many of them as before.
    """
    metadata = array.metadata.update_shape(shape)
    if chunks is not None and chunks != array.chunks:
        metadata = _rechunked(metadata, array.chunks, chunks)
    if metadata.zarr_format == zarr_format:
        return metadata
    if isinstance(metadata, ArrayV2Metadata):
        with suppress(UnsupportedCodecError):
            return as_format_3(metadata, dimension_names=dimension_names)
    attributes = {k: v for k, v in array.attrs.items() if k != "_ARRAY_DIMENSIONS"}
    options: Document = {"dimension_names": list(dimension_names)}
    if zarr_format == 2:
        attributes["_ARRAY_DIMENSIONS"] = list(dimension_names)
        options = {}
    created = zarr.create_array(
        MemoryStore(),
        shape=shape,
        dtype=array.dtype,
        chunks=chunks or array.chunks,
        fill_value=float("nan") if zarr_format == 2 and _is_nan(array.fill_value) else array.fill_value,
        zarr_format=cast(Any, zarr_format),
        attributes=attributes,
        **options,
    )
    return created.metadata


def _rechunked(
    metadata: ArrayV2Metadata | ArrayV3Metadata, old: tuple[int, ...], new: tuple[int, ...]
) -> ArrayV2Metadata | ArrayV3Metadata:
    if isinstance(metadata, ArrayV2Metadata):
        return ArrayV2Metadata.from_dict(
            {**documents(metadata)[".zarray"], "chunks": list(new), "attributes": metadata.attributes}
        )
    document = documents(metadata)["zarr.json"]
    outer = document["chunk_grid"]["configuration"]["chunk_shape"]
    document["chunk_grid"]["configuration"]["chunk_shape"] = [
        o // a * b for o, a, b in zip(outer, old, new, strict=True)
    ]
    for codec in document["codecs"]:
        if codec["name"] == "sharding_indexed":
            codec["configuration"]["chunk_shape"] = list(new)
    return parsed(document)


def reformed(
    array: AnyArray, *, dtype: np.dtype, shape: tuple[int, ...], dimension_names: Sequence[str | None]
) -> AnyArray:
    """
    The array with values of another dtype, and with axes added after its last; attributes and compression stay.

    Parameters
    ----------
    array
        The array as it is.
    dtype
        A wider dtype of the same kind, or variable-length strings in place of those of fixed width.
    shape, dimension_names
        Of the result. An axis that is new is one chunk.

    Raises
    ------
    UnsupportedCodecError
        If a filter or codec depends on the dtype.
    """
    metadata = array.metadata
    document = documents(metadata)
    data_type = cast(Any, parse_dtype(dtype, zarr_format=metadata.zarr_format))
    fill_value = _fill_in(metadata.fill_value, dtype)
    if fill_value is not None:
        exact = to_hex(fill_value) if metadata.zarr_format == 3 and _is_nan(fill_value) else None
        fill_value = exact or data_type.to_json_scalar(fill_value, zarr_format=metadata.zarr_format)
    new_axes = [max(1, n) for n in shape[array.ndim :]]
    result: ArrayV2Metadata | ArrayV3Metadata
    if isinstance(metadata, ArrayV2Metadata):
        filters = [f["id"] for f in document[".zarray"]["filters"] or ()]
        if filters not in ([], ["vlen-utf8"]):
            raise UnsupportedCodecError(f"filters {filters}")
        said = {**document[".zarray"], "shape": list(shape), "chunks": [*metadata.chunks, *new_axes]}
        said |= {"dtype": data_type.to_json(zarr_format=2)["name"], "fill_value": fill_value}
        said["filters"] = [{"id": "vlen-utf8"}] if isinstance(data_type, VariableLengthUTF8) else None
        attributes = {**metadata.attributes, "_ARRAY_DIMENSIONS": list(dimension_names)}
        result = ArrayV2Metadata.from_dict({**said, "attributes": attributes})
    else:
        said = {**document["zarr.json"], "shape": list(shape), "dimension_names": list(dimension_names)}
        said |= {"data_type": data_type.to_json(zarr_format=3), "fill_value": fill_value}
        _lengthen(said["chunk_grid"]["configuration"], new_axes)
        said["codecs"] = _codecs_for(said["codecs"], dtype, new_axes)
        result = parsed(said)
    return from_metadata(result, array.store, array.path)


def _fill_in(value: Any, dtype: np.dtype) -> Any:
    """A fill value in another dtype; null stays null."""
    if value is None:
        return None
    if dtype.kind in "TO":
        return value.decode() if isinstance(value, bytes) else str(value or "")
    return recast(np.asarray(value), dtype)[()] if dtype.kind == "f" else dtype.type(value)


def _lengthen(configuration: Document, new_axes: Sequence[int]) -> None:
    configuration["chunk_shape"] = [*configuration["chunk_shape"], *new_axes]


def _codecs_for(codecs: Sequence[Document], dtype: np.dtype, new_axes: Sequence[int]) -> list[Document]:
    """The codecs of format 3 for another dtype and more axes."""
    result = []
    for codec in copy.deepcopy(list(codecs)):
        configuration = codec.get("configuration", {})
        match codec["name"]:
            case "bytes" | "vlen-utf8" if dtype.kind in "TO":
                result.append({"name": "vlen-utf8"})
                continue
            case "bytes":
                codec["configuration"] = {"endian": configuration.get("endian", "little")}
            case "blosc":
                configuration["typesize"] = 1 if dtype.kind in "TO" else dtype.itemsize
            case "sharding_indexed":
                _lengthen(configuration, new_axes)
                configuration["codecs"] = _codecs_for(configuration["codecs"], dtype, new_axes)
            case "transpose":
                order = configuration["order"]
                configuration["order"] = [*order, *range(len(order), len(order) + len(new_axes))]
            case "vlen-utf8" | "zstd" | "gzip" | "crc32c":
                pass
            case name:
                raise UnsupportedCodecError(f"codec {name}")
        result.append(codec)
    return result
