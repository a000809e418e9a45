"""
Encode chunks that are mostly fill without allocating an array as large as the chunk.

A Blosc frame is a header, a table of block offsets, and the blocks, each compressed on its own (c-blosc,
README_CHUNK_FORMAT.rst). So some rows of a chunk are encoded at a time, by the array's own codecs, and the blocks of
their frames are concatenated into one frame. It decodes to the same values as a chunk encoded whole.
"""

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

MIN_BYTES = 4 * 2**20
"""The minimum decoded size; smaller chunks are encoded whole, which is fast."""

PART = 4
"""At most one in PART elements of a narrow chunk has a value."""

PIECE = 512 * 1024
"""The approximate number of decoded bytes to encode at a time: the block size of c-blosc at high levels."""

_HEADER = struct.Struct("<BBBBIII")
"""Format version, compressor version, flags, element size, decoded bytes, bytes per block, encoded bytes."""
_OFFSET = 4
"""The size of an entry of the table of block offsets, in bytes."""
_COPIED, _UNSPLIT = 0x2, 0x10
"""Flags: the data are not compressed; blocks are not split into one stream per byte of an element."""
_MAX = 2**31 - 17
"""The maximum size of a Blosc frame, decoded or encoded, in bytes."""


def is_narrow(shape: Sequence[int], itemsize: int, selection: Sequence[Any]) -> bool:
    """Whether a chunk is large, and the selection a contiguous block of at most one in `PART` of its elements."""
    size = math.prod(shape)
    if len(selection) != len(shape) or not MIN_BYTES <= size * itemsize <= _MAX:
        return False
    ranges = [s.indices(n) if isinstance(s, slice) else (0, 0, 0) for s, n in zip(selection, shape, strict=True)]
    return all(step == 1 for *_, step in ranges) and size >= PART * math.prod(stop - start for start, stop, _ in ranges)


def encode(
    encode_rows: Callable[[np.ndarray], bytes],
    shape: tuple[int, ...],
    fill: Any,
    selection: tuple[slice, ...],
    values: np.ndarray,
) -> bytes:
    """
    Encode a chunk that has values in a selection, and fill elsewhere.

    Parameters
    ----------
    encode_rows
        Encodes rows of the chunk as one Blosc frame.
    shape, fill
        The shape of the chunk, and its fill value.
    selection, values
        The region that has values (see `is_narrow`), and the values.

    Raises
    ------
    UnjoinableError
        If the blocks of this chunk cannot be joined; then it has to be encoded whole.
    """
    row_bytes = math.prod(shape[1:]) * values.dtype.itemsize
    rows = min(shape[0], max(1, PIECE // row_bytes))
    *_, block, _ = _HEADER.unpack_from(encode_rows(np.zeros((rows, *shape[1:]), values.dtype)))
    limit = max(1, min(rows, block // row_bytes))  # so that each frame is one block
    rows = max((n for n in range(limit // 2 + 1, limit + 1) if shape[0] % n == 0), default=limit)
    return join(_frames(encode_rows, shape, fill, selection, values, rows))


class UnjoinableError(ValueError):
    """Blosc frames whose blocks cannot be joined into one frame."""


def _frames(
    encode_rows: Callable[[np.ndarray], bytes],
    shape: tuple[int, ...],
    fill: Any,
    selection: tuple[slice, ...],
    values: np.ndarray,
    rows: int,
) -> Iterator[bytes]:
    """Yield the frames of consecutive groups of `rows` rows of a chunk; identical groups are encoded once."""
    first, *others = selection
    start, stop, _ = first.indices(shape[0])
    piece = np.full((rows, *shape[1:]), fill, dtype=values.dtype)
    encoded = dict[tuple[int, bytes], bytes]()
    for row in range(0, shape[0], rows):
        n = min(rows, shape[0] - row)
        part = np.full((n, *values.shape[1:]), fill, dtype=values.dtype)
        here, end = max(start, row), min(stop, row + n)
        if here < end:
            part[here - row : end - row] = values[here - start : end - start]
        key = n, part.tobytes()
        if key not in encoded:
            piece[(slice(0, n), *others)] = part
            encoded[key] = encode_rows(piece[:n])
        yield encoded[key]


def join(frames: Iterable[bytes]) -> bytes:
    """
    Concatenate Blosc frames into one without decoding them; all but the last have the same decoded size.

    Raises
    ------
    UnjoinableError
        If their headers are incompatible, or the result would be too large.

    Examples
    --------
    >>> from numcodecs import Blosc
    >>> codec = Blosc("zstd")
    >>> codec.decode(join([codec.encode(b"a" * 1000), codec.encode(b"b" * 1000), codec.encode(b"c" * 500)])).count(b"b")
    1000
    """
    bodies, starts, decoded, length = list[bytes](), list[np.ndarray](), 0, 0
    first: tuple[int, ...] = ()
    for frame in frames:
        *head, size, block, _ = _HEADER.unpack_from(frame)
        first = first or (*head, size, block)
        n = -(-size // block)
        begins = _HEADER.size + n * _OFFSET
        _require_joinable((*head, size, block), first, is_aligned=decoded % first[4] == 0)
        starts.append(np.frombuffer(frame, "<u4", n, _HEADER.size).astype("i8") + length - begins)
        bodies.append(frame[begins:])
        decoded, length = decoded + size, length + len(frame) - begins
    offsets = np.concatenate(starts)
    begins = _HEADER.size + len(offsets) * _OFFSET
    if decoded > _MAX or begins + length > _MAX:
        raise UnjoinableError
    header = _HEADER.pack(*first[:4], decoded, first[5], begins + length)
    return b"".join([header, (offsets + begins).astype("<u4").tobytes(), *bodies])


def _require_joinable(frame: tuple[int, ...], first: tuple[int, ...], *, is_aligned: bool) -> None:
    """Check that a frame is like the first one, or is a shorter last one, and follows only frames of the same size."""
    *head, size, block = frame
    _, _, flags, element, first_size, first_block = first
    is_alike = tuple(head) == first[:4] and not flags & _COPIED and is_aligned
    if (size, block) == (first_size, first_block):
        is_alike &= first_size % first_block == 0
    else:  # c-blosc never splits a shorter last block into streams
        is_alike &= (
            size < first_size
            and block in (first_block, size)
            and bool(flags & _UNSPLIT or element == 1 or block == first_block)
        )
    if not is_alike:
        raise UnjoinableError
