"""Metadata documents of arrays in formats 2 and 3: parse, serialise and compare them, and convert 2 to 3."""

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from zarr.buffer import default_buffer_prototype
from zarr.core.chunk_key_encodings import DefaultChunkKeyEncoding
from zarr.core.metadata import ArrayMetadata, ArrayV2Metadata, ArrayV3Metadata
from zarr.errors import UnstableSpecificationWarning
from zarr.types import AnyArray

from vczstore.vcz import rectilinear
from vczstore.vcz.floats import from_hex, is_nan, to_hex
from vczstore.vcz.zarr_objects import Document

__all__ = ["ArrayMetadata", "ArrayV2Metadata", "ArrayV3Metadata"]  # for modules that use nothing private of zarr

DEFAULT_KEYS = DefaultChunkKeyEncoding(separator="/")
"""The default encoding of chunk keys in format 3."""

_BLOSC_SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")


class UnsupportedCodecError(ValueError):
    """A codec or filter has no counterpart for the requested format or dtype that decodes the same bytes."""


def metadata_key(path: str, zarr_format: int) -> str:
    """The key of the document that holds an array's shape."""
    return f"{path}/{'zarr.json' if zarr_format == 3 else '.zarray'}"


def documents(metadata: ArrayMetadata) -> dict[str, Document]:
    """Serialise an array's metadata: the documents to store, by name."""
    if rectilinear.is_rectilinear(metadata):
        rectilinear.enable()
    with warnings.catch_warnings():
        # the dtype is that of an existing array, so warnings are of no use
        warnings.simplefilter("ignore", UnstableSpecificationWarning)
        buffers = metadata.to_buffer_dict(default_buffer_prototype())
    result: dict[str, Document] = {name: json.loads(value.to_bytes()) for name, value in buffers.items()}
    if isinstance(metadata, ArrayV3Metadata) and is_nan(metadata.fill_value):
        # zarr writes any NaN as "NaN", without its payload
        result["zarr.json"]["fill_value"] = to_hex(metadata.fill_value) or "NaN"
    return result


def parsed(document: Document) -> ArrayV3Metadata:
    """Parse a format 3 document, with the exact bits of the fill value; the inverse of `documents`."""
    if dict(document.get("chunk_grid") or {}).get("name") == rectilinear.NAME:
        rectilinear.enable()
    metadata = ArrayV3Metadata.from_dict(document)
    text = document.get("fill_value")
    if isinstance(text, str) and text.startswith("0x") and is_nan(metadata.fill_value):
        exact = from_hex(text, metadata.data_type.to_native_dtype())
        object.__setattr__(metadata, "fill_value", exact)
    return metadata


def encoding(metadata: ArrayMetadata) -> Document:
    """
    The part of the metadata that determines a chunk's bytes: all but grid, shape, names, attributes and chunk keys.

    Format 2 is converted to format 3, so that encodings of both formats can be compared.
    """
    if isinstance(metadata, ArrayV2Metadata):
        metadata = as_format_3(metadata)
    document = documents(metadata)["zarr.json"]
    for key in ("shape", "chunk_grid", "attributes", "dimension_names", "chunk_key_encoding", "storage_transformers"):
        document.pop(key, None)
    return document


_LOSSLESS = frozenset(
    (
        *("blosc", "bz2", "gzip", "lz4", "lzma", "pcodec", "zlib", "zstd"),
        *("base64", "bitshuffle", "bytes", "shuffle", "transpose", "sharding_indexed"),
        *("adler32", "crc32", "crc32c", "fletcher32", "jenkins_lookup3"),
        *("json2", "msgpack2", "pickle", "vlen-array", "vlen-bytes", "vlen-utf8"),
    )
)
"""Names of the lossless codecs of both formats, without numcodecs' prefix in format 3."""


def lossy_codec(array: AnyArray) -> str | None:
    """
    The name of an array's first codec that may be lossy, None if all are known to be lossless.

    Examples
    --------
    >>> import zarr
    >>> from numcodecs import FixedScaleOffset, Shuffle
    >>> def array(*filters):
    ...     options = {"dtype": "f4", "chunks": (1,), "zarr_format": 2, "filters": filters}
    ...     return zarr.create_array({}, shape=(1,), **options)
    >>> lossy_codec(array(Shuffle(4))), lossy_codec(array(FixedScaleOffset(0, 10, "f4", "u1")))
    (None, 'fixedscaleoffset')
    """
    named = documents(array.metadata)
    if (document := named.get(".zarray")) is not None:
        codecs = [(c["id"], c) for c in (*(document["filters"] or ()), document["compressor"]) if c]
    else:
        codecs = list(_flat(named["zarr.json"]["codecs"]))
    return next((name for name, config in codecs if not _is_lossless(name, config, array.dtype)), None)


def _flat(codecs: Iterable[Document]) -> Iterator[tuple[str, Document]]:
    """Yield the names and configurations of format 3 codecs, including those within shards."""
    for codec in codecs:
        config = codec.get("configuration", {})
        yield codec["name"].removeprefix("numcodecs."), config
        for inner in ("codecs", "index_codecs"):
            yield from _flat(config.get(inner, ()) if codec["name"] == "sharding_indexed" else ())


def _is_lossless(name: str, config: Document, dtype: np.dtype) -> bool:
    match name:
        case "packbits":
            return dtype.kind == "b"
        case "delta":  # integers wrap around in both directions
            kinds = {np.dtype(config[key]) for key in ("dtype", "astype") if config.get(key) is not None}
            return dtype.kind in "iu" and kinds <= {dtype}
        case _:
            return name in _LOSSLESS


def blosc(array: AnyArray) -> Document | None:
    """The numcodecs configuration of an array whose codecs are bytes and Blosc alone; None if it has others."""
    try:
        codecs = encoding(array.metadata)["codecs"]
    except UnsupportedCodecError:
        return None
    if [codec["name"] for codec in codecs] != ["bytes", "blosc"]:
        return None
    config = codecs[1]["configuration"]
    shuffle = _BLOSC_SHUFFLES.index(config["shuffle"])
    return {"id": "blosc", **{key: config[key] for key in ("cname", "clevel", "blocksize")}, "shuffle": shuffle}


def same_encoding(a: AnyArray, b: AnyArray) -> bool:
    """Whether chunks of one array can be copied verbatim to the other, provided that they have the same shape."""
    if _is_same(a.metadata, b.metadata):
        return True
    try:
        return encoding(a.metadata) == encoding(b.metadata)
    except UnsupportedCodecError:
        return a.metadata.zarr_format == b.metadata.zarr_format == 2 and _v2_encoding(a) == _v2_encoding(b)


def _is_same(a: ArrayMetadata, b: ArrayMetadata) -> bool:
    """Whether two format 3 arrays trivially share an encoding: ten times faster than comparing documents."""
    if not isinstance(a, ArrayV3Metadata) or not isinstance(b, ArrayV3Metadata):
        return False
    same = (getattr(a, key) == getattr(b, key) for key in ("data_type", "codecs", "fill_value"))
    return all(same) and type(a.fill_value) is type(b.fill_value)


def _v2_encoding(array: AnyArray) -> Document:
    document = documents(array.metadata)[".zarray"]
    for key in ("shape", "chunks", "dimension_separator"):
        document.pop(key, None)
    return document


def as_format_3(metadata: ArrayV2Metadata, *, dimension_names: Sequence[str | None] | None = None) -> ArrayV3Metadata:
    """
    Convert format 2 metadata to format 3 metadata that decode the same chunks, unchanged.

    Parameters
    ----------
    metadata
        Of a C-ordered, little-endian array, with VLenUTF8 as its only filter, if any.
    dimension_names
        The name of each axis, or None for no names.

    Raises
    ------
    UnsupportedCodecError
        For an order, byte order, filter or compressor that format 3 cannot express.
    """
    document = documents(metadata)[".zarray"]
    native = metadata.dtype.to_native_dtype()
    filters = [f["id"] for f in document["filters"] or ()]
    if document["order"] != "C" and metadata.ndim > 1:
        raise UnsupportedCodecError("order F")
    if native.byteorder == ">":
        raise UnsupportedCodecError("big-endian")
    if filters == ["vlen-utf8"]:
        data_type: Any = "string"
        codecs: list[Document] = [{"name": "vlen-utf8"}]
    elif not filters:
        data_type = metadata.dtype.to_json(zarr_format=3)
        multi_byte = native.itemsize > 1
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}} if multi_byte else {"name": "bytes"}]
    else:
        raise UnsupportedCodecError(f"filters {filters}")
    if document["compressor"]:
        codecs.append(_compressor_of_format_3(document["compressor"], native))
    fill_value = metadata.fill_value if metadata.fill_value is not None else metadata.dtype.default_scalar()
    try:
        return ArrayV3Metadata.from_dict(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": list(metadata.shape),
                "data_type": data_type,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(metadata.chunks)}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "fill_value": metadata.dtype.to_json_scalar(fill_value, zarr_format=3),
                "codecs": codecs,
                "attributes": {k: v for k, v in metadata.attributes.items() if k != "_ARRAY_DIMENSIONS"},
                "dimension_names": None if dimension_names is None else list(dimension_names),
            }
        )
    except (TypeError, ValueError) as error:  # numcodecs accepts codec parameters that format 3 rejects
        raise UnsupportedCodecError(str(error)) from error


def _compressor_of_format_3(config: Document, native: np.dtype) -> Document:
    match config["id"]:
        case "blosc" if config["shuffle"] in (0, 1, 2):
            return {
                "name": "blosc",
                "configuration": {
                    # a frame's header has its shuffle and typesize: these matter to writers only
                    "typesize": 1 if native.kind in "OT" else native.itemsize,
                    "cname": config["cname"],
                    "clevel": config["clevel"],
                    "shuffle": _BLOSC_SHUFFLES[config["shuffle"]],
                    "blocksize": config.get("blocksize", 0),
                },
            }
        case "zstd":
            configuration = {"level": config["level"], "checksum": config.get("checksum", False)}
            return {"name": "zstd", "configuration": configuration}
        case "gzip":
            return {"name": "gzip", "configuration": {"level": config["level"]}}
    raise UnsupportedCodecError(f"compressor {config['id']}")
