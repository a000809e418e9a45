"""Chunks as they lie in a store, encoded: read, checked, written, linked, and those outside of the grid."""

import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
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
    assign(chunk, region, values)
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
    if (tell := _frame_length_of(array)) is None:
        return
    for at, value in zip(coords, values, strict=True):
        if value is not None and (said := tell(memoryview(value.as_buffer_like()))) not in (None, len(value)):
            where = f"{chunk_key(array, at)} in {place(array.store)}"
            raise DamagedChunkError(f"chunk {where} is cut off: it has {len(value):,} bytes of {said:,}")


def frame_length(array: AnyArray, value: Buffer) -> int | None:
    """How long an encoded chunk says it is; None if its encoding does not tell."""
    tell = _frame_length_of(array)
    return None if tell is None else tell(memoryview(value.as_buffer_like()))


def _frame_length_of(array: AnyArray) -> Callable[[memoryview], int | None] | None:
    compressor = "" if array.shards or not array.compressors else type(array.compressors[-1]).__name__
    return next((f for name, f in _FRAME_LENGTHS.items() if name in compressor), None)


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
    return tuple(cut.span(int(i)) for i, cut in zip(coords, cuts(array), strict=True))


def count_outside(array: AnyArray) -> int:
    """How many chunks of an array are stored that lie outside its grid, where no reader looks. It is a listing."""

    async def count() -> int:
        return len([None async for _ in _outside(array)])

    return wait_for(count())


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

    return wait_for(clear())


async def _outside(array: AnyArray) -> AsyncIterator[str]:
    cells = grid_of(array)
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


def link_chunks(source: AnyArray, target: AnyArray, coords: Iterable[tuple[Sequence[int], Sequence[int]]]) -> None:
    """
    Let chunks of an array in a folder be chunks of one in another folder too; those that are absent stay so.

    `coords` are where a chunk is in the one, and in the other.
    """
    here, there = (cast(LocalStore, array.store).root for array in (source, target))
    for of, to in coords:
        old, new = os.path.join(here, chunk_key(source, of)), os.path.join(there, chunk_key(target, to))
        try:
            link_file(old, new)
        except FileNotFoundError:
            if os.path.lexists(old):  # it is the folder that is missing
                os.makedirs(os.path.dirname(new), exist_ok=True)
                link_file(old, new)
