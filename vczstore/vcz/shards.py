"""
Split shards of Zarr's sharding codec into their encoded chunks, and assemble shards from them, without decoding.

The layout of a shard is known to this module alone: chunks in any order, and an index of their offsets and lengths. The
index is encoded as an ordinary array, so that nothing private of zarr is used.
"""

from collections.abc import Sequence

import numpy as np
from zarr.abc.buffer import Buffer
from zarr.buffer import default_buffer_prototype
from zarr.storage import MemoryStore
from zarr.types import AnyArray

from vczstore.vcz.arrays import from_metadata, inner_chunks, outer_chunks
from vczstore.vcz.conversion import without_shards
from vczstore.vcz.encoded_chunks import ChunkDecoder, encode
from vczstore.vcz.metadata import documents, parsed, same_encoding
from vczstore.vcz.zarr_objects import Document

_ABSENT = 2**64 - 1
"""The offset and length, in the index, of an absent chunk."""


def chunk_counts(array: AnyArray) -> tuple[int, ...]:
    """The number of chunks per stored object along each axis; 1 without shards."""
    return tuple(outer // inner for outer, inner in zip(outer_chunks(array), inner_chunks(array), strict=True))


class Sharding:
    """
    The layout of chunks in an array's stored objects; without shards, each chunk is an object.

    `chunks` is the planned array without shards, `counts` the number of chunks per stored object along each axis.
    """

    def __init__(self, array: AnyArray) -> None:
        self.chunks = without_shards(array)
        self.counts = chunk_counts(array)
        self._index: AnyArray | None = None
        self._is_index_first = False
        if array.shards:
            config = documents(array.metadata)["zarr.json"]["codecs"][0]["configuration"]
            self._index = _index_array(self.counts, config["index_codecs"])
            self._is_index_first = config.get("index_location", "end") == "start"

    def take_out(self, value: Buffer) -> list[Buffer | None]:
        """
        Split a stored object into its encoded chunks, in the order of their coordinates; None for absent ones.

        Raises
        ------
        ValueError
            If the object is shorter than its index requires, or the index is corrupt.
        """
        if self._index is None:
            return [value]
        size = len(self._encoded(np.ones(self._index.shape, "u8")))
        if len(value) < size:
            raise ValueError(f"{len(value):,} bytes, with an index of {size:,}")
        index = value[:size] if self._is_index_first else value[len(value) - size :]
        where = ChunkDecoder(self._index).decode((0,) * self._index.ndim, index)
        return [_piece(value, *pair) for pair in where.reshape(-1, 2).tolist()]

    def put_together(self, chunks: Sequence[Buffer | None]) -> Buffer | None:
        """Assemble a stored object from encoded chunks, in the order of their coordinates; None if all are absent."""
        if self._index is None or all(chunk is None for chunk in chunks):
            return chunks[0]
        lengths = np.array([0 if chunk is None else len(chunk) for chunk in chunks], "u8")
        where = np.stack([np.cumsum(lengths) - lengths, lengths], axis=1)
        if self._is_index_first:
            where[:, 0] += len(self._encoded(np.ones(self._index.shape, "u8")))
        where[[chunk is None for chunk in chunks]] = _ABSENT
        values = [chunk.as_buffer_like() for chunk in chunks if chunk is not None]
        index = self._encoded(where.reshape(self._index.shape)).as_buffer_like()
        ordered = [index, *values] if self._is_index_first else [*values, index]
        return default_buffer_prototype().buffer.from_bytes(b"".join(ordered))

    def _encoded(self, index: np.ndarray) -> Buffer:
        assert self._index is not None
        region = tuple(slice(0, n) for n in index.shape)
        value = encode(self._index, (0,) * index.ndim, region, index)
        assert value is not None
        return value


def _index_array(counts: tuple[int, ...], codecs: Sequence[Document]) -> AnyArray:
    """The index of a shard as an array: the offset and the length of each chunk."""
    shape = [*counts, 2]
    document: Document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "uint64",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": list(codecs),
        "attributes": {},
    }
    return from_metadata(parsed(document), MemoryStore(), "")


def _piece(value: Buffer, start: int, length: int) -> Buffer | None:
    if start == length == _ABSENT:
        return None
    if start + length > len(value):
        raise ValueError(f"{len(value):,} bytes, with a chunk from {start:,} to {start + length:,}")
    return value[start : start + length]


def same_chunks(a: AnyArray, b: AnyArray) -> bool:
    """Whether chunks, in shards or not, can be copied verbatim between two arrays, if they have the same shape."""
    if bool(a.shards) == bool(b.shards) and same_encoding(a, b):
        return True
    return _has_only_shards(a) and _has_only_shards(b) and same_encoding(without_shards(a), without_shards(b))


def _has_only_shards(array: AnyArray) -> bool:
    """Whether sharding is the array's only codec, or it has no shards: nothing encodes the shards further."""
    return not array.shards or len(documents(array.metadata)["zarr.json"]["codecs"]) == 1
