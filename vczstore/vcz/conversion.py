"""Plan new arrays, and arrays derived from others: in another format, of another dtype, with more axes."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import numcodecs
import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec
from zarr.dtype import VariableLengthUTF8, parse_dtype
from zarr.storage import MemoryStore
from zarr.types import AnyArray

from vczstore.vcz.arrays import from_metadata, inner_chunks, is_flexible, outer_chunks, widths, with_regular_grid
from vczstore.vcz.floats import is_nan, recast, to_hex
from vczstore.vcz.metadata import (
    DEFAULT_KEYS,
    ArrayMetadata,
    ArrayV2Metadata,
    UnsupportedCodecError,
    as_format_3,
    documents,
    parsed,
)
from vczstore.vcz.model import dimensions
from vczstore.vcz.rectilinear import with_widths
from vczstore.vcz.zarr_objects import Document


def new(
    path: str,
    *,
    shape: tuple[int, ...],
    dtype: Any,
    chunks: tuple[int, ...],
    dimension_names: Sequence[str],
    zarr_format: int = 3,
    fill_value: Any = None,
    attributes: Document | None = None,
    clevel: int = 7,
) -> AnyArray:
    """
    Plan an array at `path`, without I/O, compressed with Blosc's zstd and byte shuffle as by VCF converters.

    The `clevel` is Blosc's level. Absent chunks read as `fill_value`; None is zarr's default for the dtype.
    """
    compressor: Any = BloscCodec(cname="zstd", clevel=clevel, shuffle="shuffle")
    if zarr_format == 2:
        compressor = numcodecs.Blosc(cname="zstd", clevel=clevel, shuffle=numcodecs.Blosc.SHUFFLE)
    metadata = _created(
        zarr_format,
        dimension_names,
        attributes or {},
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        compressors=compressor,
        fill_value=fill_value,
    )
    return from_metadata(metadata, MemoryStore(), path)


def _created(
    zarr_format: int, dimension_names: Sequence[str | None], attributes: Document, **options: Any
) -> ArrayMetadata:
    """The metadata of a new array as zarr makes them; in format 2 dimension names are an attribute."""
    if zarr_format == 2:
        attributes = {**attributes, "_ARRAY_DIMENSIONS": list(dimension_names)}
    else:
        options["dimension_names"] = list(dimension_names)
    created = zarr.create_array(MemoryStore(), zarr_format=cast(Any, zarr_format), attributes=attributes, **options)
    return created.metadata


def new_like(
    array: AnyArray,
    path: str,
    dtype: np.dtype,
    others: Sequence[int],
    *,
    dimension_names: Sequence[str],
    attributes: Document,
) -> AnyArray:
    """
    Plan an array with the store, format, first axis and compression of another, which has one axis and a regular grid.

    `others` are the lengths of the axes after the first; each is one chunk.
    """
    metadata = _created(
        array.metadata.zarr_format,
        dimension_names,
        attributes,
        shape=(array.shape[0], *others),
        dtype=dtype,
        chunks=(array.chunks[0], *(max(1, n) for n in others)),
        shards=None if array.shards is None else (array.shards[0], *(max(1, n) for n in others)),
        compressors=array.compressors or None,
    )
    return from_metadata(metadata, array.store, path)


def in_format(
    array: AnyArray,
    zarr_format: int,
    *,
    lengths: Mapping[str, int] = {},
    chunks: Mapping[str, int] | None = None,
    store: Store | None = None,
    path: str | None = None,
) -> AnyArray:
    """
    Plan an array for an array's values in `zarr_format`, at another place, or with other lengths of dimensions.

    The encoding is kept if the format is the same or format 3 can express it; otherwise it is zarr's default. `chunks`
    are other lengths of chunks by dimension: shards then hold as many chunks as before. If `chunks` is passed at all,
    the grid is regular.
    """
    names = dimensions(array)
    shape = tuple(lengths.get(str(d), n) for d, n in zip(names, array.shape, strict=True))
    inner = None
    if chunks is not None:
        inner = tuple(chunks.get(str(d), n) for d, n in zip(names, inner_chunks(array), strict=True))
    metadata = _metadata_in_format(array, zarr_format, shape, names, inner)
    return from_metadata(metadata, array.store if store is None else store, array.path if path is None else path)


def _metadata_in_format(
    array: AnyArray,
    zarr_format: int,
    shape: tuple[int, ...],
    dimension_names: Sequence[str | None],
    chunks: tuple[int, ...] | None,
) -> ArrayMetadata:
    if is_flexible(array):
        if chunks is None and zarr_format == 3:
            return with_widths(array.metadata, shape, widths(array))  # lists every width, as Icechunk requires
        array = with_regular_grid(array, outer_chunks(array))
    metadata = array.metadata.update_shape(shape)
    if chunks is not None and chunks != array.chunks:
        metadata = _rechunked(metadata, array.chunks, chunks)
    if metadata.zarr_format == zarr_format:
        return metadata
    if isinstance(metadata, ArrayV2Metadata):
        with suppress(UnsupportedCodecError):
            return as_format_3(metadata, dimension_names=dimension_names)
    attributes = {k: v for k, v in array.attrs.items() if k != "_ARRAY_DIMENSIONS"}
    return _created(
        zarr_format,
        dimension_names,
        attributes,
        shape=shape,
        dtype=array.dtype,
        chunks=chunks or array.chunks,
        fill_value=float("nan") if zarr_format == 2 and is_nan(array.fill_value) else array.fill_value,
    )


def _rechunked(metadata: ArrayMetadata, old: tuple[int, ...], new: tuple[int, ...]) -> ArrayMetadata:
    if isinstance(metadata, ArrayV2Metadata):
        return ArrayV2Metadata.from_dict(
            {**documents(metadata)[".zarray"], "chunks": list(new), "attributes": metadata.attributes}
        )
    document = documents(metadata)["zarr.json"]
    outer = document["chunk_grid"]["configuration"]["chunk_shape"]
    document["chunk_grid"]["configuration"]["chunk_shape"] = [
        o // a * b for o, a, b in zip(outer, old, new, strict=True)
    ]
    for codec in document["codecs"]:
        if codec["name"] == "sharding_indexed":
            codec["configuration"]["chunk_shape"] = list(new)
    return parsed(document)


def with_default_keys(array: AnyArray) -> AnyArray:
    """Return the planned array; in format 3 with the default chunk keys, the only ones that Icechunk accepts."""
    metadata = array.metadata
    if isinstance(metadata, ArrayV2Metadata) or metadata.chunk_key_encoding == DEFAULT_KEYS:
        return array
    return from_metadata(replace(metadata, chunk_key_encoding=DEFAULT_KEYS), array.store, array.path)


def recompressed(array: AnyArray, compressor: str, level: int) -> AnyArray:
    """
    Return the planned array with another Blosc compressor, given its ``cname`` and ``clevel``.

    The filters and codecs before the compressor are kept, and so is the shuffle of an existing Blosc compressor.
    """
    bits = array.dtype.kind not in "OTSU" and array.dtype.itemsize == 1
    if isinstance(array.metadata, ArrayV2Metadata):
        document = documents(array.metadata)[".zarray"]
        shuffle = (document["compressor"] or {}).get("shuffle", numcodecs.Blosc.BITSHUFFLE if bits else 1)
        document["compressor"] = numcodecs.Blosc(compressor, level, shuffle).get_config()
        metadata = ArrayV2Metadata.from_dict({**document, "attributes": array.metadata.attributes})
        return from_metadata(metadata, array.store, array.path)
    document = documents(array.metadata)["zarr.json"]
    codecs = document["codecs"]
    inner = codecs[0]["configuration"]["codecs"] if array.shards else codecs
    n_kept = len(inner) - len(array.compressors)
    (old,) = [codec["configuration"] for codec in inner[n_kept:] if codec["name"] == "blosc"] or [{}]
    size = old.get("typesize") or (1 if array.dtype.kind in "OT" else array.dtype.itemsize)
    shuffle = old.get("shuffle") or ("bitshuffle" if bits else "shuffle")
    codec = BloscCodec(cname=cast(Any, compressor), clevel=level, shuffle=cast(Any, shuffle), typesize=size)
    inner[n_kept:] = [codec.to_dict()]
    return from_metadata(parsed(document), array.store, array.path)


def without_shards(array: AnyArray) -> AnyArray:
    """Return the planned array without shards: each chunk is a stored object."""
    if not array.shards:
        return array
    document = documents(array.metadata)["zarr.json"]
    (shards,) = (codec for codec in document["codecs"] if codec["name"] == "sharding_indexed")
    document["chunk_grid"]["configuration"]["chunk_shape"] = list(array.chunks)
    return from_metadata(parsed({**document, "codecs": shards["configuration"]["codecs"]}), array.store, array.path)


def with_shards(array: AnyArray, shape: Sequence[int]) -> AnyArray:
    """Return the planned array (format 3, regular grid) with shards of this shape; without, if each held one chunk."""
    array = without_shards(array)
    if tuple(shape) == tuple(array.chunks):
        return array
    document = documents(array.metadata)["zarr.json"]
    document["chunk_grid"]["configuration"]["chunk_shape"] = list(shape)
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    shards = {"chunk_shape": list(array.chunks), "codecs": document["codecs"], "index_codecs": index}
    codec = {"name": "sharding_indexed", "configuration": {**shards, "index_location": "end"}}
    return from_metadata(parsed({**document, "codecs": [codec]}), array.store, array.path)


def reformed(
    array: AnyArray,
    *,
    dtype: np.dtype,
    shape: tuple[int, ...] | None = None,
    dimension_names: Sequence[str | None] | None = None,
) -> AnyArray:
    """
    Return the planned array with another dtype and with axes appended; attributes and compression are kept.

    Parameters
    ----------
    array
        The array as stored.
    dtype
        A wider dtype of the same kind, or variable-length strings in place of fixed-width strings.
    shape, dimension_names
        Shape and axis names of the result, by default the same; its first axes are those of `array`. A new axis is one
        chunk.

    Raises
    ------
    UnsupportedCodecError
        If a filter or codec depends on the dtype.
    """
    shape = array.shape if shape is None else shape
    dimension_names = dimensions(array) if dimension_names is None else dimension_names
    if is_flexible(array):
        regular = with_regular_grid(array, outer_chunks(array))
        result_array = reformed(regular, dtype=dtype, shape=shape, dimension_names=dimension_names)
        new_widths = (*widths(array), *outer_chunks(result_array)[array.ndim :])
        return from_metadata(with_widths(result_array.metadata, shape, new_widths), array.store, array.path)
    metadata = array.metadata
    document = documents(metadata)
    data_type = cast(Any, parse_dtype(dtype, zarr_format=metadata.zarr_format))
    fill_value = _fill_in(metadata.fill_value, dtype)
    if fill_value is not None:
        exact = to_hex(fill_value) if metadata.zarr_format == 3 and is_nan(fill_value) else None
        fill_value = exact or data_type.to_json_scalar(fill_value, zarr_format=metadata.zarr_format)
    new_axes = [max(1, n) for n in shape[array.ndim :]]
    result: ArrayMetadata
    if isinstance(metadata, ArrayV2Metadata):
        filters = [f["id"] for f in document[".zarray"]["filters"] or ()]
        if filters not in ([], ["vlen-utf8"]):
            raise UnsupportedCodecError(f"filters {filters}")
        zarray = {**document[".zarray"], "shape": list(shape), "chunks": [*metadata.chunks, *new_axes]}
        zarray |= {"dtype": data_type.to_json(zarr_format=2)["name"], "fill_value": fill_value}
        zarray["filters"] = [{"id": "vlen-utf8"}] if isinstance(data_type, VariableLengthUTF8) else None
        attributes = {**metadata.attributes, "_ARRAY_DIMENSIONS": list(dimension_names)}
        result = ArrayV2Metadata.from_dict({**zarray, "attributes": attributes})
    else:
        zarr_json = {**document["zarr.json"], "shape": list(shape), "dimension_names": list(dimension_names)}
        zarr_json |= {"data_type": data_type.to_json(zarr_format=3), "fill_value": fill_value}
        _append_chunk_axes(zarr_json["chunk_grid"]["configuration"], new_axes)
        zarr_json["codecs"] = _codecs_for(zarr_json["codecs"], dtype, new_axes)
        result = parsed(zarr_json)
    return from_metadata(result, array.store, array.path)


def _fill_in(value: Any, dtype: np.dtype) -> Any:
    """Convert a fill value to another dtype; null stays null."""
    if value is None:
        return None
    if dtype.kind in "TO":
        return value.decode() if isinstance(value, bytes) else str(value or "")
    return recast(np.asarray(value), dtype)[()] if dtype.kind == "f" else dtype.type(value)


def _append_chunk_axes(configuration: Document, new_axes: Sequence[int]) -> None:
    configuration["chunk_shape"] = [*configuration["chunk_shape"], *new_axes]


def _codecs_for(codecs: Sequence[Document], dtype: np.dtype, new_axes: Sequence[int]) -> list[Document]:
    """Adapt format 3 codecs to another dtype and to appended axes."""
    result = []
    for codec in copy.deepcopy(list(codecs)):
        configuration = codec.get("configuration", {})
        match codec["name"]:
            case "bytes" | "vlen-utf8" if dtype.kind in "TO":
                result.append({"name": "vlen-utf8"})
                continue
            case "bytes":
                codec["configuration"] = {"endian": configuration.get("endian", "little")}
            case "blosc":
                configuration["typesize"] = 1 if dtype.kind in "TO" else dtype.itemsize
            case "sharding_indexed":
                _append_chunk_axes(configuration, new_axes)
                configuration["codecs"] = _codecs_for(configuration["codecs"], dtype, new_axes)
            case "transpose":
                order = configuration["order"]
                configuration["order"] = [*order, *range(len(order), len(order) + len(new_axes))]
            case "vlen-utf8" | "zstd" | "gzip" | "crc32c":
                pass
            case name:
                raise UnsupportedCodecError(f"codec {name}")
        result.append(codec)
    return result
