"""
Shards: chunks that lie in one object, by Zarr's sharding codec, are taken out of it and put together as they are.

No other module knows how they lie there: one after the other, in any order, with an index of where each begins and how
long it is. Nothing private of zarr is used, which encodes the index as it does any array.
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
"""Both numbers in the index of a chunk that is left out."""


def chunk_counts(array: AnyArray) -> tuple[int, ...]:
    """How many chunks an object of an array holds along each axis: one, without shards."""
    return tuple(outer // inner for outer, inner in zip(outer_chunks(array), inner_chunks(array), strict=True))


class Sharding:
    """
    How the chunks of an array lie in its objects; of one without shards, each is an object of its own.

    Attributes
    ----------
    chunks
        The array as it would be without shards.
    counts
        As `chunk_counts` has them.
    """

    def __init__(self, array: AnyArray) -> None:
        self.chunks = without_shards(array)
        self.counts = chunk_counts(array)
        self._index: AnyArray | None = None
        self._is_index_first = False
        if array.shards:
            said = documents(array.metadata)["zarr.json"]["codecs"][0]["configuration"]
            self._index = _index_array(self.counts, said["index_codecs"])
            self._is_index_first = said.get("index_location", "end") == "start"

    def take_out(self, value: Buffer) -> list[Buffer | None]:
        """
        The chunks of an object in the order of their coordinates, None for those that are left out.

        Raises
        ------
        ValueError
            If the object is not as long as its index says, or the index is damaged.
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
        """An object of chunks in the order of their coordinates; None if all of them are left out."""
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
    """The index of a shard: for each chunk where it begins, and how long it is."""
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
    """Whether a chunk of one array, in a shard or not, is, byte for byte, a chunk of the other if of the same shape."""
    if bool(a.shards) == bool(b.shards) and same_encoding(a, b):
        return True
    return _has_only_shards(a) and _has_only_shards(b) and same_encoding(without_shards(a), without_shards(b))


def _has_only_shards(array: AnyArray) -> bool:
    """Whether shards, if there are any, are not encoded further."""
    return not array.shards or len(documents(array.metadata)["zarr.json"]["codecs"]) == 1
