"""vczstore's codec pipeline for zarr, and the error for chunks that cannot be decoded."""

import asyncio
import os
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import compress
from multiprocessing import parent_process
from operator import not_
from typing import Any, Self

import numpy as np
import zarr.codecs.numcodecs
from numcodecs.blosc import Blosc
from numcodecs.vlen import VLenUTF8
from zarr.abc.buffer import Buffer, NDBuffer
from zarr.abc.codec import Codec
from zarr.codecs import BloscCodec, BytesCodec, ShardingCodec, VLenUTF8Codec
from zarr.codecs._v2 import V2Codec
from zarr.core.array_spec import ArraySpec
from zarr.core.chunk_utils import ChunkTransform, chunk_is_empty, fill_value_or_default
from zarr.core.codec_pipeline import FusedCodecPipeline
from zarr.registry import register_pipeline

from vczstore.errors import first_line
from vczstore.vcz import narrow_chunks
from vczstore.vcz.frames import blosc_length

READS_AT_ONCE = 10
"""The number of chunks that zarr decodes concurrently for one selection: the default of its ``async.concurrency``."""

DECODING_ERRORS = (RuntimeError, ValueError, TypeError, EOFError, zlib.error)
"""Exceptions that codecs raise for corrupt input."""


class DamagedChunkError(ValueError):
    """A chunk is corrupt: it cannot be decoded, or is truncated."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """
    Name the array that is read (`what`) in decoding errors, which zarr and its codecs do not.

    Raises
    ------
    DamagedChunkError
        In place of a codec's exception.
    """
    try:
        yield
    except DamagedChunkError:
        raise
    except DECODING_ERRORS as error:
        raise DamagedChunkError(f"a chunk of {what} cannot be decoded ({first_line(error)})") from error


class Pipeline(FusedCodecPipeline):
    """
    zarr's synchronous pipeline, which takes a fifth less time than the default one in tasks of some ten chunks.

    Outside an event loop it reads and writes in the calling thread: the detour through zarr's event loop and another
    thread takes four times as long as reading a chunk of positions.
    """

    @classmethod
    def from_codecs(cls, codecs: Iterable[Codec], *, batch_size: int | None = None) -> Self:
        """Build the pipeline with variants of the string and Blosc codecs that validate a chunk's header first."""
        return super().from_codecs(map(_validating, codecs), batch_size=batch_size)

    async def read(self, batch_info: Any, out: Any, drop_axes: tuple[int, ...] = ()) -> Any:
        """Read chunks, synchronously outside an event loop."""
        if _in_event_loop():
            return await super().read(batch_info, out, drop_axes)
        return self.read_sync(batch_info, out, drop_axes, max_workers=_threads())

    async def write(self, batch_info: Any, value: Any, drop_axes: tuple[int, ...] = ()) -> None:
        """Write chunks, synchronously outside an event loop; narrow chunks are encoded in threads."""
        if not _in_event_loop():
            self.write_sync(batch_info, value, drop_axes)
            return
        others, narrow = self._without_narrow(batch_info, drop_axes)
        slots = asyncio.Semaphore(READS_AT_ONCE)

        async def write_narrow(item: Any) -> Any:  # returns the item if it has to be encoded whole
            async with slots:
                is_done, encoded = await asyncio.to_thread(self._encode_narrow, item, value)
                if is_done:
                    await (item[0].delete() if encoded is None else item[0].set(encoded))
                return None if is_done else item

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(write_narrow(item)) for item in narrow]
        results = [task.result() for task in tasks]
        await super().write([*others, *(item for item in results if item is not None)], value, drop_axes)

    def write_sync(self, batch_info: Any, value: Any, drop_axes: tuple[int, ...] = (), max_workers: int = 1) -> None:
        """Write chunks in the calling thread."""
        others, narrow = self._without_narrow(batch_info, drop_axes)
        for item in narrow:
            is_done, encoded = self._encode_narrow(item, value)
            if not is_done:
                others.append(item)
            elif encoded is None:
                item[0].delete_sync()
            else:
                item[0].set_sync(encoded)
        super().write_sync(others, value, drop_axes, max_workers)

    def _without_narrow(self, batch_info: Any, drop_axes: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
        """Split a batch into chunks to encode whole, and narrow ones (see `narrow_chunks`)."""
        batch = list(batch_info)
        if drop_axes or not _makes_blosc(self.sync_transform):
            return batch, []
        narrow = [whole and _is_narrow(spec, at) for _, spec, at, _, whole in batch]
        return list(compress(batch, map(not_, narrow))), list(compress(batch, narrow))

    def _encode_narrow(self, item: Any, value: Any) -> tuple[bool, Buffer | None]:
        """Whether the chunk was encoded as a narrow one, and its bytes, None if it holds only the fill value."""
        _, spec, selection, out_selection, _ = item
        transform = self.sync_transform
        if transform is None or not value.shape:  # `value` is a scalar for all elements
            return False, None
        if chunk_is_empty(value[out_selection], spec):
            return True, None

        def encode(rows: np.ndarray) -> bytes:
            buffer = spec.prototype.nd_buffer.from_numpy_array(rows)
            encoded = transform.encode_chunk(buffer, replace(spec, shape=rows.shape))
            assert encoded is not None
            return encoded.to_bytes()

        values = value[out_selection].as_numpy_array().astype(spec.dtype.to_native_dtype(), copy=False)
        try:
            frame = narrow_chunks.encode(encode, spec.shape, fill_value_or_default(spec), selection, values)
        except narrow_chunks.UnjoinableError:
            return False, None
        return True, spec.prototype.buffer.from_bytes(frame)


def _is_narrow(spec: ArraySpec, selection: Any) -> bool:
    """Whether `narrow_chunks` can encode a chunk of which only `selection` has values."""
    dtype = spec.dtype.to_native_dtype()
    return spec.order == "C" and not dtype.hasobject and narrow_chunks.is_narrow(spec.shape, dtype.itemsize, selection)


def _makes_blosc(transform: ChunkTransform | None) -> bool:
    """Whether codecs encode a chunk's elements, in C order, as one Blosc frame."""
    match transform.codecs if transform is not None else ():
        case (BytesCodec(), BloscCodec()):
            return True
        case (V2Codec(compressor=Blosc()) as codec,):
            return not codec.filters
    return False


register_pipeline(Pipeline)


class _StringsOfFormat3(VLenUTF8Codec):
    """zarr's codec for strings, which checks the string count first."""

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        _check_count(chunk_bytes.as_array_like())
        return super()._decode_sync(chunk_bytes, chunk_spec)


class _StringsOfFormat2(VLenUTF8):
    """numcodecs' filter for strings, which checks the string count first."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a chunk after checking its string count."""
        _check_count(buf)
        return super().decode(buf, out)


class _BloscOfFormat3(BloscCodec):
    """zarr's Blosc codec, which checks the frame length first."""

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        _check_length(chunk_bytes.as_array_like())
        return super()._decode_sync(chunk_bytes, chunk_spec)


class _BloscOfNumcodecs(zarr.codecs.numcodecs.Blosc, codec_name="blosc"):
    """numcodecs' Blosc codec in format 3, which checks the frame length first."""

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        _check_length(chunk_data.as_array_like())
        return super()._decode_sync(chunk_data, chunk_spec)


class _BloscOfFormat2(Blosc):
    """numcodecs' Blosc compressor, which checks the frame length first."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a chunk after checking its frame length."""
        _check_length(buf)
        return super().decode(buf, out)


def _validating(codec: Codec) -> Codec:
    """The variant of a codec that validates headers before it decodes, or the codec itself if there is none."""
    match codec:
        case VLenUTF8Codec():
            return _StringsOfFormat3()
        case BloscCodec():
            return _BloscOfFormat3.from_dict(codec.to_dict())
        case zarr.codecs.numcodecs.Blosc():
            return _BloscOfNumcodecs.from_dict(codec.to_dict())
        case ShardingCodec():
            return replace(codec, codecs=tuple(map(_validating, codec.codecs)))
        case V2Codec():
            filters = codec.filters and tuple(map(_validating_format_2, codec.filters))
            return replace(codec, filters=filters, compressor=_validating_format_2(codec.compressor))
        case _:
            return codec


def _validating_format_2(codec: Any) -> Any:
    match codec:
        case VLenUTF8():
            return _StringsOfFormat2()
        case Blosc():
            return _BloscOfFormat2.from_config({k: v for k, v in codec.get_config().items() if k != "id"})
        case _:
            return codec


def _check_length(chunk: Any) -> None:
    """
    Refuse a truncated Blosc frame.

    numcodecs does not check the length of its input: it reads beyond the buffer, and returns arbitrary memory.
    """
    encoded = memoryview(chunk).cast("B")
    if len(encoded) != (length := blosc_length(encoded)):
        raise ValueError(f"it is cut off: it has {len(encoded):,} bytes of {length:,}")


def _check_count(chunk: Any) -> None:
    """
    Refuse a chunk whose header claims more strings than fit in its bytes.

    numcodecs allocates as many as the first four bytes say, up to 32 GB. Each string takes at least four bytes.
    """
    encoded = memoryview(chunk).cast("B")
    count = int.from_bytes(encoded[:4], "little")
    if 4 + 4 * count > len(encoded):
        raise ValueError(f"{count:,} strings in {len(encoded):,} bytes")


def _threads() -> int:
    """
    The number of threads that read the chunks of a selection: 1 in the main thread of the main process.

    There interrupts arrive, and zarr's thread pool is not used: an interrupt while the pool starts a thread leaves a
    thread that never ends, for which Python waits forever at exit.
    """
    can_be_interrupted = threading.current_thread() is threading.main_thread() and parent_process() is None
    return 1 if can_be_interrupted else min(READS_AT_ONCE, os.cpu_count() or 1)


def _in_event_loop() -> bool:
    with suppress(RuntimeError):
        return bool(asyncio.get_running_loop())
    return False
