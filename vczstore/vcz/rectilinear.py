"""
Zarr's rectilinear chunk grid, in which each chunk along an axis has a width of its own.

It is an extension of format 3 that zarr-python has behind a flag, and vczstore uses it for the samples axis alone. No
other module touches what zarr has for it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import zarr
from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata
from zarr.core.metadata.v3 import RectilinearChunkGridMetadata, RegularChunkGridMetadata

from vczstore.vcz.cuts import Width

NAME = "rectilinear"
"""What documents call it."""

FLAG = "array.rectilinear_chunks"
"""zarr's flag, which is off by default. It has nothing to do with what a regular array reads as, or is written like."""


def enable() -> None:
    """Let zarr read and write documents of such arrays, in this process, as Cubed does when it is imported."""
    if not zarr.config.get(FLAG):
        zarr.config.set({FLAG: True})


def is_rectilinear(metadata: ArrayV2Metadata | ArrayV3Metadata) -> bool:
    """Whether an array has a rectilinear grid."""
    return isinstance(metadata, ArrayV3Metadata) and isinstance(metadata.chunk_grid, RectilinearChunkGridMetadata)


def is_regular(metadata: ArrayV2Metadata | ArrayV3Metadata) -> bool:
    """Whether an array has a regular grid, as all of format 2 have."""
    return isinstance(metadata, ArrayV2Metadata) or isinstance(metadata.chunk_grid, RegularChunkGridMetadata)


def widths_of(metadata: Any) -> tuple[Width, ...]:
    """How wide the chunks of a rectilinear grid are, along each axis; one number where all have one width."""
    return tuple(_width(edges) for edges in metadata.chunk_grid.chunk_shapes)


@lru_cache(maxsize=128)
def _width(edges: int | tuple[int, ...]) -> Width:
    """One width if all are the same. It is asked for each source of a batch, of a store with thousands of columns."""
    return edges if isinstance(edges, int) or len(set(edges)) > 1 else edges[0]


def with_widths(metadata: Any, shape: Sequence[int], widths: Sequence[Width]) -> ArrayV3Metadata:
    """
    Metadata with another shape, and a rectilinear grid.

    Every width is written down: Icechunk takes no number that stands for all chunks of an axis.
    """
    edges = tuple(
        (width,) * max(1, -(-n // width)) if isinstance(width, int) else width
        for n, width in zip(shape, widths, strict=True)
    )
    grid = RectilinearChunkGridMetadata(chunk_shapes=edges)
    return cast("ArrayV3Metadata", replace(metadata, shape=tuple(shape), chunk_grid=grid))


def with_regular(metadata: Any, shape: Sequence[int], chunks: Sequence[int]) -> ArrayV3Metadata:
    """Metadata with another shape, and a regular grid."""
    grid = RegularChunkGridMetadata(chunk_shape=tuple(chunks))
    return cast("ArrayV3Metadata", replace(metadata, shape=tuple(shape), chunk_grid=grid))
