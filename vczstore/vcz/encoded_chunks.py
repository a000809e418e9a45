"""Encoded chunks: read, check, write and link them, and delete those outside the chunk grid."""

import os
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import cast

import numpy as np
from zarr.abc.buffer import Buffer
from zarr.abc.store import Store
from zarr.storage import LocalStore, MemoryStore
from zarr.types import AnyArray

from vczstore.vcz.arrays import assign, cuts, grid_of, planned
from vczstore.vcz.frames import blosc_length, zstd_length
from vczstore.vcz.pipeline import DamagedChunkError
from vczstore.vcz.zarr_objects import get_many, link_file, place, set_many, wait_for


def chunk_key(array: AnyArray, coords: Sequence[int]) -> str:
    """The key of a chunk (a shard if the array has them) in the array's store."""
    name = array.metadata.encode_chunk_key(tuple(int(c) for c in coords))
    return f"{array.path}/{name}" if array.path else name


def get_encoded(array: AnyArray, coords: Sequence[Sequence[int]]) -> list[Buffer | None]:
    """Read the stored bytes of chunks, None for absent chunks; a view encodes its own."""
    if (get := getattr(array, "get_encoded", None)) is not None:
        return cast("list[Buffer | None]", get(coords))
    return get_many(array.store, [chunk_key(array, c) for c in coords])


def encode(array: AnyArray, coords: Sequence[int], region: tuple[slice, ...], values: np.ndarray) -> Buffer | None:
    """Encode one chunk with these values; None if zarr would not store it, as it holds only the fill value."""
    chunk = planned(array, store=MemoryStore())
    assign(chunk, region, values)
    return get_many(chunk.store, [chunk_key(chunk, coords)])[0]


def check_frames(array: AnyArray, coords: Sequence[Sequence[int]], values: Sequence[Buffer | None]) -> None:
    """
    Check that encoded chunks are not truncated, which copying without decoding would not notice.

    The lengths of Blosc and Zstandard frames are in their headers; other encodings are not checked.

    Raises
    ------
    DamagedChunkError
        Naming the first chunk whose length differs from its header.
    """
    for at, value in zip(coords, values, strict=True):
        if value is not None and (length := frame_length(array, value)) not in (None, len(value)):
            where = f"{chunk_key(array, at)} in {place(array.store)}"
            raise DamagedChunkError(f"chunk {where} is cut off: it has {len(value):,} bytes of {length:,}")


def frame_length(array: AnyArray, value: Buffer) -> int | None:
    """The length of an encoded chunk by its header; None if the encoding has no length in its header."""
    compressor = "" if array.shards or not array.compressors else type(array.compressors[-1]).__name__
    length_of = next((f for name, f in _FRAME_LENGTHS.items() if name in compressor), None)
    return None if length_of is None else length_of(memoryview(value.as_buffer_like()))


class ChunkDecoder:
    """Decodes chunks from their encoded bytes, with the array's own codecs."""

    def __init__(self, array: AnyArray) -> None:
        self._objects: dict[str, Buffer] = {}
        self._array = planned(array, store=MemoryStore(self._objects))

    def decode(self, coords: Sequence[int], value: Buffer) -> np.ndarray:
        """Decode one chunk (a shard if the array has them), clipped to the array. Codec errors propagate."""
        self._objects.clear()
        self._objects[chunk_key(self._array, coords)] = value
        return np.asarray(self._array[chunk_region(self._array, coords)])


def chunk_region(array: AnyArray, coords: Sequence[int]) -> tuple[slice, ...]:
    """The region of a chunk (a shard if the array has them), clipped to the array."""
    return tuple(cut.span(int(i)) for i, cut in zip(coords, cuts(array), strict=True))


def count_outside(array: AnyArray) -> int:
    """Count the stored chunks outside an array's grid, which readers ignore, in a listing of the array's objects."""

    async def count() -> int:
        return len([None async for _ in _outside(array)])

    return wait_for(count())


def clear_outside(array: AnyArray, store: Store, *, dry_run: bool) -> tuple[int, int]:
    """
    Delete the chunks of an array that lie outside its grid, in the writable `store`; with `dry_run`, only count them.

    Unlike `count_outside`, this takes requests for each of these chunks.

    Returns
    -------
    n, size : int
        The number of these chunks, and their total size in bytes.
    """

    async def clear() -> tuple[int, int]:
        n = size = 0
        async for key in _outside(array):
            n, size = n + 1, size + await store.getsize(key)
            if not dry_run:
                await store.delete(key)
        return n, size

    return wait_for(clear())


async def _outside(array: AnyArray) -> AsyncIterator[str]:
    """Yield the keys of the stored chunks outside an array's grid."""
    cells = grid_of(array)
    async for key in array.store.list_prefix(f"{array.path}/"):
        coords = coords_of(array, key)
        if coords is not None and any(i >= m for i, m in zip(coords, cells, strict=True)):
            yield key


def coords_of(array: AnyArray, key: str) -> tuple[int, ...] | None:
    """The coordinates of the chunk that a key belongs to; None if it is not the key of a chunk."""
    match = re.fullmatch(r"(?:c[/.])?(\d+(?:[/.]\d+)*)", key.removeprefix(f"{array.path}/"))
    coords = tuple(int(i) for i in re.split("[/.]", match[1])) if match else ()
    return coords if len(coords) == array.ndim and chunk_key(array, coords) == key else None


_FRAME_LENGTHS = {"Blosc": blosc_length, "Zstd": zstd_length}
"""Functions that read a frame's length from its header, by a part of the codec's class name in either format."""


def set_encoded(array: AnyArray, chunks: Iterable[tuple[Sequence[int], Buffer | None]]) -> None:
    """Write encoded chunks verbatim, and delete those that are None."""
    set_many(array.store, [(chunk_key(array, c), value) for c, value in chunks])


def link_chunks(source: AnyArray, target: AnyArray, coords: Iterable[tuple[Sequence[int], Sequence[int]]]) -> None:
    """
    Hard-link chunks of a source array into a target array, both in local folders; absent chunks are skipped.

    `coords` are pairs of a chunk's coordinates in the source and in the target.
    """
    source_root, target_root = (cast(LocalStore, array.store).root for array in (source, target))
    for at, to in coords:
        old, new = os.path.join(source_root, chunk_key(source, at)), os.path.join(target_root, chunk_key(target, to))
        try:
            link_file(old, new)
        except FileNotFoundError:
            if os.path.lexists(old):  # then the target's folder is missing
                os.makedirs(os.path.dirname(new), exist_ok=True)
                link_file(old, new)
