"""
Scan bytes for compressed frames, and decode them: frames are detected by magic number at any offset.

This suffices for Icechunk's metadata files: each is a header of 39 bytes and one Zstandard frame (Icechunk
specification, "File Layout"), in which small chunks are inlined verbatim.

Frame lengths are parsed from their headers here: numcodecs has no function for it, and Zstandard's own rejects a
truncated frame, whose intended length an error message needs.
"""

import zlib
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain

import numpy as np
from numcodecs import blosc, zstd

ICECHUNK = "ICE🧊CHUNK".encode()
ZSTD = b"\x28\xb5\x2f\xfd"
GZIP = b"\x1f\x8b\x08"
DEPTH = 3
"""The maximum nesting of frames; a chunk inlined in an Icechunk manifest is a frame in a frame."""


def contents(data: bytes) -> Iterator[bytes]:
    """
    Yield the bytes themselves, and the decoded content of every Zstandard, gzip and Blosc frame in them, recursively.

    Frames that cannot be decoded are skipped. Blosc has no magic number: its frames are detected if they are the whole
    of the bytes, and in Icechunk's metadata, where a frame is preceded by its length.

    >>> list(contents(zlib.compress(b"S0001", wbits=31)))[1:]
    [b'S0001']
    """
    return _contents(data, 0, data.startswith(ICECHUNK))


def _contents(data: bytes, depth: int, is_metadata: bool) -> Iterator[bytes]:
    yield data
    if depth < DEPTH:
        for frame in chain(_zstd(data), _gzip(data), _blosc(data, is_metadata)):
            yield from _contents(frame, depth + 1, is_metadata and depth == 0)


def _zstd(data: bytes) -> Iterator[bytes]:
    at = data.find(ZSTD)
    while at >= 0:
        length = zstd_length(memoryview(data)[at:])
        decoded = None
        if length <= len(data) - at:
            with suppress(RuntimeError, ValueError, MemoryError):
                decoded = zstd.decompress(data[at : at + length])
        if decoded is not None:
            yield bytes(decoded)
        at = data.find(ZSTD, at + (length if decoded is not None else 1))


def _gzip(data: bytes) -> Iterator[bytes]:
    at = data.find(GZIP)
    while at >= 0:
        decoder = zlib.decompressobj(wbits=31)
        step = 1
        try:
            decoded = decoder.decompress(data[at:])
            if decoder.eof:
                step = len(data) - at - len(decoder.unused_data)
                yield decoded
        except zlib.error:
            pass
        at = data.find(GZIP, at + step)


def _blosc(data: bytes, is_metadata: bool) -> Iterator[bytes]:
    starts = [0] if _blosc_length_at(data, 0) == len(data) else []
    if is_metadata:
        words = np.frombuffer(data, "<u4", len(data) // 4)
        # a vector is preceded by its length, which for a frame equals the last of the four words of its header
        starts += [4 * int(i) + 4 for i in np.flatnonzero((words[:-4] == words[4:]) & (words[:-4] >= 16))]
    for start in starts:
        length = _blosc_length_at(data, start)
        if 16 <= length <= len(data) - start:
            try:
                yield bytes(blosc.decompress(data[start : start + length]))
            except (RuntimeError, ValueError, MemoryError):
                continue


def blosc_length(value: bytes | memoryview) -> int:
    """The length of a frame, from the last 4 of the 16 bytes of c-blosc's header; 16 if the header is cut off."""
    return int.from_bytes(value[12:16], "little") if len(value) >= 16 else 16


def zstd_length(value: memoryview) -> int:
    """The length of a frame from its headers (RFC 8878, 3.1.1); a lower bound if one of them is cut off."""
    if len(value) < 5:
        return 5
    descriptor = value[4]
    is_single = bool(descriptor & 0x20)
    content_size = (int(is_single), 2, 4, 8)[descriptor >> 6]
    end = 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3] + content_size
    is_last = False
    while not is_last:
        header = int.from_bytes(value[end : end + 3], "little")
        end += 3
        if end > len(value):
            return end
        is_last, is_repeated = bool(header & 1), header >> 1 & 3 == 1
        end += 1 if is_repeated else header >> 3
    return end + (4 if descriptor & 4 else 0)


def _blosc_length_at(data: bytes, start: int) -> int:
    """The length of the Blosc frame that begins at `start`; 0 if none does."""
    if len(data) - start < 16 or data[start] != 2 or data[start + 3] == 0:
        return 0
    size, block = (int.from_bytes(data[start + i : start + i + 4], "little") for i in (4, 8))
    length = blosc_length(data[start : start + 16])
    return length if block <= size < 2**31 - 16 and length <= size + 16 else 0
