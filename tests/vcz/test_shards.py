"""Shards are split into chunks and assembled as by zarr-python, the oracle, with the index at either end."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from vczstore.vcz.encoded_chunks import get_encoded
from vczstore.vcz.shards import Sharding, same_chunks


def _array(**options: Any) -> zarr.Array[Any]:
    layout = {"shape": (10, 7), "chunks": (2, 3), "dtype": "i4", "fill_value": 0, "compressors": ZstdCodec(), **options}
    array = zarr.create_array(zarr.storage.MemoryStore(), **layout)
    array[...] = np.arange(1, 71).reshape(10, 7)
    array[2:4, :6] = 0  # two chunks that hold only the fill value, which are not stored
    return array


def _sharded(location: str) -> zarr.Array[Any]:
    codec = ShardingCodec(chunk_shape=(2, 3), codecs=(BytesCodec(), ZstdCodec()), index_location=location)
    return _array(chunks=(4, 6), serializer=codec, compressors=None)


@pytest.mark.parametrize("location", ["start", "end"])
def test_shards_round_trip_through_zarr(location: str) -> None:
    sharded, plain = _sharded(location), _array()
    assert same_chunks(sharded, plain)
    sharding, values = Sharding(sharded), sharded[...]
    assert sharding.counts == (2, 2)
    expected = {at: value for at in np.ndindex(5, 3) if (value := get_encoded(plain, [at])[0]) is not None}
    actual = {}
    for row, column in np.ndindex(3, 2):
        (shard,) = get_encoded(sharded, [(row, column)])
        chunks = sharding.take_out(shard)
        cells = product(range(2 * row, 2 * row + 2), range(2 * column, 2 * column + 2))
        actual |= {at: chunk for at, chunk in zip(cells, chunks, strict=True) if chunk is not None}
        sharded.store._store_dict[f"c/{row}/{column}"] = sharding.put_together(chunks)
    assert {at: chunk.to_bytes() for at, chunk in actual.items()} == {at: c.to_bytes() for at, c in expected.items()}
    np.testing.assert_array_equal(sharded[...], values)
    assert sharding.put_together([None] * 4) is None


@pytest.mark.parametrize("location", ["start", "end"])
def test_a_damaged_shard_is_refused(location: str) -> None:
    sharded = _sharded(location)
    (shard,) = get_encoded(sharded, [(0, 0)])
    content = shard.to_bytes()
    at = 3 if location == "start" else -9
    changed = bytearray(content)
    changed[at] ^= 1
    for damaged in (content[:-10], content[:5], bytes(changed)):
        with pytest.raises(ValueError, match=r"checksum|bytes"):
            Sharding(sharded).take_out(type(shard).from_bytes(damaged))


@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec")
def test_chunks_with_another_encoding_are_not_the_same() -> None:
    for other in (_array(compressors=ZstdCodec(level=7)), _array(fill_value=1), _array(dtype="i8")):
        assert not same_chunks(_sharded("end"), other)
    codec = ShardingCodec(chunk_shape=(2, 3), codecs=(BytesCodec(), ZstdCodec()))
    assert not same_chunks(_array(chunks=(4, 6), serializer=codec, compressors=Crc32cCodec()), _array())
