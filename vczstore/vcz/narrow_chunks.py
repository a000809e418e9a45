"""
Chunks of which a small part has values and the rest is fill, encoded without an array as large as the chunk.

A Blosc frame is a header, a table of where its blocks begin, and the blocks, each compressed on its own (c-blosc,
README_CHUNK_FORMAT.rst). So some rows of a chunk are encoded at a time, by the array's own codecs, and the blocks of
their frames are joined to one frame. It decodes to the same values as one that is encoded whole.
"""

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

MIN_BYTES = 4 * 2**20
"""Smaller chunks are encoded whole: they take no time."""

PART = 4
"""At most one in so many elements has a value."""

PIECE = 512 * 1024
"""About how many decoded bytes are encoded at a time, which is what c-blosc makes of a block at high levels."""

_HEADER = struct.Struct("<BBBBIII")
"""Versions of the format and of the compressor, flags, size of an element, decoded bytes, those of a block, all."""
_OFFSET = 4
_COPIED, _UNSPLIT = 0x2, 0x10
"""Flags: nothing is compressed; and blocks are not split into one stream for each byte of an element."""
_MAX = 2**31 - 17


def is_narrow(shape: Sequence[int], itemsize: int, selection: Sequence[Any]) -> bool:
    """Whether the elements that are selected of a chunk are few, in a chunk that is large enough for it to matter."""
    size = math.prod(shape)
    if len(selection) != len(shape) or not MIN_BYTES <= size * itemsize <= _MAX:
        return False
    sides = [s.indices(n) if isinstance(s, slice) else (0, 0, 0) for s, n in zip(selection, shape, strict=True)]
    return all(step == 1 for *_, step in sides) and size >= PART * math.prod(stop - start for start, stop, _ in sides)


def encode(
    encode_rows: Callable[[np.ndarray], bytes],
    shape: tuple[int, ...],
    fill: Any,
    selection: tuple[slice, ...],
    values: np.ndarray,
) -> bytes:
    """
    Encode a chunk that has some values, and fill.

    Parameters
    ----------
    encode_rows
        Makes one Blosc frame of rows, of the elements in their order.
    shape, fill
        Of the chunk.
    selection, values
        What it has, and where; see `is_narrow`.

    Raises
    ------
    UnjoinableError
        If the blocks of this chunk cannot be joined; it has to be encoded whole.
    """
    row_bytes = math.prod(shape[1:]) * values.dtype.itemsize
    rows = min(shape[0], max(1, PIECE // row_bytes))
    *_, block, _ = _HEADER.unpack_from(encode_rows(np.zeros((rows, *shape[1:]), values.dtype)))
    most = max(1, min(rows, block // row_bytes))  # a block each
    rows = max((n for n in range(most // 2 + 1, most + 1) if shape[0] % n == 0), default=most)
    return join(_frames(encode_rows, shape, fill, selection, values, rows))


class UnjoinableError(ValueError):
    """Frames whose blocks cannot be those of one frame."""


def _frames(
    encode_rows: Callable[[np.ndarray], bytes],
    shape: tuple[int, ...],
    fill: Any,
    selection: tuple[slice, ...],
    values: np.ndarray,
    rows: int,
) -> Iterator[bytes]:
    """The frames of so many rows of a chunk after the other; rows that are alike are encoded once."""
    first, *others = selection
    start, stop, _ = first.indices(shape[0])
    piece = np.full((rows, *shape[1:]), fill, dtype=values.dtype)
    known = dict[tuple[int, bytes], bytes]()
    for row in range(0, shape[0], rows):
        n = min(rows, shape[0] - row)
        part = np.full((n, *values.shape[1:]), fill, dtype=values.dtype)
        here, end = max(start, row), min(stop, row + n)
        if here < end:
            part[here - row : end - row] = values[here - start : end - start]
        key = n, part.tobytes()
        if key not in known:
            piece[(slice(0, n), *others)] = part
            known[key] = encode_rows(piece[:n])
        yield known[key]


def join(frames: Iterable[bytes]) -> bytes:
    """
    The frame of what some Blosc frames hold, one after the other; all but the last are equally long, decoded.

    Raises
    ------
    UnjoinableError
        If the blocks of one cannot be blocks of the others.

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
    """Check that a frame that comes after others has blocks as long as those of the first, or one, the last of all."""
    *head, size, block = frame
    _, _, flags, element, first_size, first_block = first
    is_alike = tuple(head) == first[:4] and not flags & _COPIED and is_aligned
    if (size, block) == (first_size, first_block):
        is_alike &= first_size % first_block == 0
    else:  # the last block is never split into streams where it is shorter than the others
        is_alike &= (
            size < first_size
            and block in (first_block, size)
            and bool(flags & _UNSPLIT or element == 1 or block == first_block)
        )
    if not is_alike:
        raise UnjoinableError
