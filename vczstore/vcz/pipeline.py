"""zarr's pipeline of codecs as vczstore runs it, and what is raised when a chunk cannot be decoded."""

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
        """Take zarr's codecs; those of strings and of Blosc look at what a chunk claims first."""
        return super().from_codecs(map(_doubting, codecs), batch_size=batch_size)

    async def read(self, batch_info: Any, out: Any, drop_axes: tuple[int, ...] = ()) -> Any:
        """Read chunks."""
        if _in_event_loop():
            return await super().read(batch_info, out, drop_axes)
        return self.read_sync(batch_info, out, drop_axes, max_workers=_threads())

    async def write(self, batch_info: Any, value: Any, drop_axes: tuple[int, ...] = ()) -> None:
        """Write chunks."""
        if not _in_event_loop():
            self.write_sync(batch_info, value, drop_axes)
            return
        others, narrow = self._without_narrow(batch_info, drop_axes)
        slots = asyncio.Semaphore(READS_AT_ONCE)

        async def write_narrow(item: Any) -> Any:
            async with slots:
                is_done, encoded = await asyncio.to_thread(self._encode_narrow, item, value)
                if is_done:
                    await (item[0].delete() if encoded is None else item[0].set(encoded))
                return None if is_done else item

        async with asyncio.TaskGroup() as group:
            written = [group.create_task(write_narrow(item)) for item in narrow]
        left = [task.result() for task in written]
        await super().write([*others, *(item for item in left if item is not None)], value, drop_axes)

    def write_sync(self, batch_info: Any, value: Any, drop_axes: tuple[int, ...] = (), max_workers: int = 1) -> None:
        """Write chunks."""
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
        """The chunks that are encoded whole, and those that need not be."""
        batch = list(batch_info)
        if drop_axes or not _makes_blosc(self.sync_transform):
            return batch, []
        narrow = [whole and _is_narrow(spec, at) for _, spec, at, _, whole in batch]
        return list(compress(batch, map(not_, narrow))), list(compress(batch, narrow))

    def _encode_narrow(self, item: Any, value: Any) -> tuple[bool, Buffer | None]:
        """Whether a chunk could be encoded so, and its bytes."""
        _, spec, selection, of, _ = item
        transform = self.sync_transform
        if transform is None or not value.shape:  # one value for all
            return False, None
        if chunk_is_empty(value[of], spec):
            return True, None

        def encode(rows: np.ndarray) -> bytes:
            buffer = spec.prototype.nd_buffer.from_numpy_array(rows)
            encoded = transform.encode_chunk(buffer, replace(spec, shape=rows.shape))
            assert encoded is not None
            return encoded.to_bytes()

        values = value[of].as_numpy_array().astype(spec.dtype.to_native_dtype(), copy=False)
        try:
            frame = narrow_chunks.encode(encode, spec.shape, fill_value_or_default(spec), selection, values)
        except narrow_chunks.UnjoinableError:
            return False, None
        return True, spec.prototype.buffer.from_bytes(frame)


def _is_narrow(spec: ArraySpec, selection: Any) -> bool:
    """Whether few elements of a chunk have a value."""
    dtype = spec.dtype.to_native_dtype()
    return spec.order == "C" and not dtype.hasobject and narrow_chunks.is_narrow(spec.shape, dtype.itemsize, selection)


def _makes_blosc(transform: ChunkTransform | None) -> bool:
    """Whether codecs make one Blosc frame of a chunk's elements in their order."""
    match transform.codecs if transform is not None else ():
        case (BytesCodec(), BloscCodec()):
            return True
        case (V2Codec(compressor=Blosc()) as codec,):
            return not codec.filters
    return False


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


class _BloscOfFormat3(BloscCodec):
    """zarr's Blosc codec."""

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        _check_length(chunk_bytes.as_array_like())
        return super()._decode_sync(chunk_bytes, chunk_spec)


class _BloscOfNumcodecs(zarr.codecs.numcodecs.Blosc, codec_name="blosc"):
    """numcodecs' Blosc codec in format 3."""

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        _check_length(chunk_data.as_array_like())
        return super()._decode_sync(chunk_data, chunk_spec)


class _BloscOfFormat2(Blosc):
    """numcodecs' Blosc compressor."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a chunk that is as long as it says."""
        _check_length(buf)
        return super().decode(buf, out)


def _doubting(codec: Codec) -> Codec:
    match codec:
        case VLenUTF8Codec():
            return _StringsOfFormat3()
        case BloscCodec():
            return _BloscOfFormat3.from_dict(codec.to_dict())
        case zarr.codecs.numcodecs.Blosc():
            return _BloscOfNumcodecs.from_dict(codec.to_dict())
        case ShardingCodec():
            return replace(codec, codecs=tuple(map(_doubting, codec.codecs)))
        case V2Codec():
            filters = codec.filters and tuple(map(_doubting_of_format_2, codec.filters))
            return replace(codec, filters=filters, compressor=_doubting_of_format_2(codec.compressor))
        case _:
            return codec


def _doubting_of_format_2(codec: Any) -> Any:
    match codec:
        case VLenUTF8():
            return _StringsOfFormat2()
        case Blosc():
            return _BloscOfFormat2.from_config({k: v for k, v in codec.get_config().items() if k != "id"})
        case _:
            return codec


def _check_length(chunk: Any) -> None:
    """
    Refuse a Blosc frame that is cut off.

    numcodecs does not look at how much there is: it reads on in memory, and returns what happens to be there.
    """
    encoded = memoryview(chunk).cast("B")
    if len(encoded) != (length := blosc_length(encoded)):
        raise ValueError(f"it is cut off: it has {len(encoded):,} bytes of {length:,}")


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
