"""Chunks with few samples: encoded in pieces, they decode to the same values as a chunk encoded whole."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import icechunk
import numcodecs
import numpy as np
import pytest
import zarr
from numcodecs import Blosc
from zarr.codecs import BloscCodec, ZstdCodec
from zarr.storage import MemoryStore

from vczstore.vcz import arrays, narrow_chunks
from vczstore.vcz.pipeline import Pipeline

ROWS, WIDTH = 1_100, 4_096
CNAMES = ("zstd", "lz4", "blosclz", "zlib")


def values_of(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, shape).astype(dtype)


def check(store: Any, values: np.ndarray, monkeypatch: pytest.MonkeyPatch, rows: int = ROWS, **options: Any) -> int:
    """Write `values` after a full chunk column, and return the number of chunks encoded in pieces."""
    frames, encode = list[bytes](), narrow_chunks.encode

    def counted(*args: Any) -> bytes:
        frame = encode(*args)
        frames.append(frame)
        return frame  # not frames[-1], which may be another thread's

    monkeypatch.setattr(narrow_chunks, "encode", counted)
    shape = (len(values), WIDTH + values.shape[1], *values.shape[2:])
    chunks = (rows, WIDTH, *values.shape[2:])
    stored = zarr.create_array(store, name="a", shape=shape, chunks=chunks, dtype=values.dtype, fill_value=1, **options)
    array = arrays.planned(stored)
    array[:, WIDTH:] = values
    np.testing.assert_array_equal(zarr.open_array(store, path="a", mode="r")[:, WIDTH:], values)
    assert (stored[:, :WIDTH] == 1).all()
    stored.resize((shape[0], 2 * WIDTH, *shape[2:]))  # the padding beyond the samples is the fill value
    assert (zarr.open_array(store, path="a", mode="r")[:, shape[1] :] == 1).all()
    return len(frames)


@pytest.mark.parametrize(
    ("cname", "clevel", "shuffle", "dtype"),
    [*product(CNAMES, (1, 7), ("shuffle",), ("i1", "<i4", ">i2")), ("zstd", 5, "bitshuffle", "i1")],
)
def test_blosc(cname: str, clevel: int, shuffle: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = BloscCodec(cname=cname, clevel=clevel, shuffle=shuffle)
    values = values_of(dtype, (2 * ROWS - 300, 2))
    assert check(MemoryStore(), values, monkeypatch, zarr_format=3, compressors=[codec]) == 2


@pytest.mark.parametrize("shuffle", [-1, 0, 1, 2])
def test_format_2(shuffle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Blosc("zstd", 7, shuffle)
    values = values_of("<i2", (ROWS, 2, 2))
    assert check(MemoryStore(), values, monkeypatch, rows=1_103, zarr_format=2, compressors=[codec]) == 1


def test_icechunk(monkeypatch: pytest.MonkeyPatch) -> None:
    store = icechunk.Repository.create(icechunk.in_memory_storage()).writable_session("main").store
    assert check(store, values_of("i1", (ROWS + 1, 2)), monkeypatch, zarr_format=3, compressors=[BloscCodec()]) == 2


def test_other_codecs_and_wide_values_are_encoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    values = values_of("i1", (ROWS, 2))
    assert check(MemoryStore(), values, monkeypatch, zarr_format=3, compressors=[ZstdCodec()]) == 0
    delta = {"filters": [numcodecs.Delta("i1")], "compressors": [Blosc()]}
    assert check(MemoryStore(), values, monkeypatch, zarr_format=2, **delta) == 0
    wide = values_of("i1", (ROWS, WIDTH // 2))
    assert check(MemoryStore(), wide, monkeypatch, zarr_format=3, compressors=[BloscCodec()]) == 0


def test_chunks_of_only_fill_values_are_not_stored() -> None:
    store = MemoryStore()
    array = zarr.create_array(store, name="a", shape=(ROWS, 1), chunks=(ROWS, WIDTH), dtype="i1", fill_value=1)
    before = set(store._store_dict)
    arrays.planned(array)[:] = np.zeros((ROWS, 1), "i1")
    assert set(store._store_dict) > before
    arrays.planned(array)[:] = np.ones((ROWS, 1), "i1")
    assert set(store._store_dict) == before


def test_threads_leave_the_configuration_of_zarr_alone() -> None:
    """Arrays get vczstore's codec pipeline without a change to zarr's global configuration."""
    metadata = zarr.create_array(MemoryStore(), shape=(2,), dtype="i1").metadata
    before, interval = zarr.config.get("codec_pipeline.path"), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            opened = list(pool.map(lambda i: arrays.from_metadata(metadata, MemoryStore(), str(i)), range(2_000)))
    finally:
        sys.setswitchinterval(interval)
    assert {type(array.async_array.codec_pipeline) for array in opened} == {Pipeline}
    assert zarr.config.get("codec_pipeline.path") == before


def test_blocks_that_cannot_be_joined() -> None:
    noise = np.random.default_rng(0).bytes(1_000)  # incompressible: Blosc stores it as a plain copy
    zstd, zlib = Blosc("zstd").encode(bytes(1_000)), Blosc("zlib").encode(bytes(1_000))
    for frames in ([Blosc().encode(noise)], [zstd, zlib], [zstd, Blosc("zstd").encode(bytes(2_000))]):
        with pytest.raises(narrow_chunks.UnjoinableError):
            narrow_chunks.join(frames)
