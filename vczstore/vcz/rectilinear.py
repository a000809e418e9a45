"""
Zarr's rectilinear chunk grid, in which chunks along an axis may differ in width.

It is an extension of format 3, behind a feature flag in zarr-python; vczstore uses it for the samples axis alone. This
is the only module that uses zarr's implementation of it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import zarr
from zarr.core.metadata import ArrayMetadata, ArrayV3Metadata
from zarr.core.metadata.v3 import RectilinearChunkGridMetadata, RegularChunkGridMetadata

from vczstore.vcz.cuts import Width

NAME = "rectilinear"
"""The name of the chunk grid in metadata documents."""

FLAG = "array.rectilinear_chunks"
"""zarr's feature flag, off by default. It does not affect how arrays with a regular grid are read or written."""


def enable() -> None:
    """Enable rectilinear grids in zarr for this process, as importing Cubed does."""
    if not zarr.config.get(FLAG):
        zarr.config.set({FLAG: True})


def is_rectilinear(metadata: ArrayMetadata) -> bool:
    """Whether an array has a rectilinear grid."""
    return isinstance(metadata, ArrayV3Metadata) and isinstance(metadata.chunk_grid, RectilinearChunkGridMetadata)


def widths_of(metadata: Any) -> tuple[Width, ...]:
    """The chunk widths of a rectilinear grid along each axis; one number if all chunks of an axis have that width."""
    return tuple(_width(edges) for edges in metadata.chunk_grid.chunk_shapes)


@lru_cache(maxsize=128)
def _width(edges: int | tuple[int, ...]) -> Width:
    """One width if all are the same. Cached: it is called for each source of a batch, for thousands of columns."""
    return edges if isinstance(edges, int) or len(set(edges)) > 1 else edges[0]


def with_widths(metadata: Any, shape: Sequence[int], widths: Sequence[Width]) -> ArrayV3Metadata:
    """
    Return metadata with another shape, and a rectilinear grid.

    Every chunk width is listed: Icechunk does not accept a single number for all chunks of an axis.
    """
    edges = tuple(
        (width,) * max(1, -(-n // width)) if isinstance(width, int) else width
        for n, width in zip(shape, widths, strict=True)
    )
    grid = RectilinearChunkGridMetadata(chunk_shapes=edges)
    return cast("ArrayV3Metadata", replace(metadata, shape=tuple(shape), chunk_grid=grid))


def with_regular(metadata: Any, shape: Sequence[int], chunks: Sequence[int]) -> ArrayV3Metadata:
    """Return metadata with another shape, and a regular grid."""
    grid = RegularChunkGridMetadata(chunk_shape=tuple(chunks))
    return cast("ArrayV3Metadata", replace(metadata, shape=tuple(shape), chunk_grid=grid))
