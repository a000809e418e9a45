"""zarr's pipeline of codecs as vczstore runs it, and what is raised when a chunk cannot be decoded."""

import asyncio
import os
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import parent_process
from typing import Any, Self

from numcodecs.vlen import VLenUTF8
from zarr.abc.buffer import Buffer, NDBuffer
from zarr.abc.codec import Codec
from zarr.codecs import VLenUTF8Codec
from zarr.codecs._v2 import V2Codec
from zarr.core.array_spec import ArraySpec
from zarr.core.codec_pipeline import FusedCodecPipeline
from zarr.registry import register_pipeline

from vczstore.errors import first_line

READS_AT_ONCE = 10
"""How many chunks zarr decodes at once for one selection: its ``async.concurrency``, as it comes."""

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
    a thread that is never ended, and Python waits for it forever.
    """
    can_be_interrupted = threading.current_thread() is threading.main_thread() and parent_process() is None
    return 1 if can_be_interrupted else min(READS_AT_ONCE, os.cpu_count() or 1)


def _in_event_loop() -> bool:
    with suppress(RuntimeError):
        return bool(asyncio.get_running_loop())
    return False
