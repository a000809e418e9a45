"""Assumptions about zarr's experimental rectilinear chunk grid: these tests fail if zarr changes it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import icechunk
import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.core.metadata.v3 import RectilinearChunkGridMetadata

from vczstore.vcz import arrays, conversion, metadata, rectilinear
from vczstore.vcz.zarr_objects import write_json


def _array(widths: tuple[int, ...], n: int = 5) -> zarr.Array:
    regular = conversion.new("x", shape=(n, 0), dtype="i4", chunks=(2, 9), dimension_names=("variants", "samples"))
    return arrays.with_columns(regular, 1, widths, if_empty=9)


def _values(n: int) -> np.ndarray:
    return np.arange(5 * n, dtype="i4").reshape(5, n) + 1


@pytest.fixture
def without_flag() -> None:
    with zarr.config.set({rectilinear.FLAG: False}):
        yield


def test_the_metadata_list_every_width() -> None:
    """Chunk widths are run-length encoded; a chunk that extends beyond the axis is listed with its full width."""
    grid = metadata.documents(_array((4, 4, 4, 1, 2)).metadata)["zarr.json"]["chunk_grid"]
    assert grid == {
        "name": "rectilinear",
        "configuration": {"kind": "inline", "chunk_shapes": [[[2, 3]], [[4, 3], 1, 2]]},
    }
    empty = metadata.documents(_array(()).metadata)["zarr.json"]
    assert empty["shape"] == [5, 0]
    assert empty["chunk_grid"]["configuration"]["chunk_shapes"] == [[[2, 3]], [9]]


def test_widths_round_trip() -> None:
    for widths in ((4, 4, 4, 1, 2), (3,), (3, 3), (3, 5)):
        document = metadata.documents(_array(widths).metadata)["zarr.json"]
        array = arrays.from_metadata(metadata.parsed(document), zarr.storage.MemoryStore(), "x")
        assert isinstance(array.metadata.chunk_grid, RectilinearChunkGridMetadata)
        assert array.read_chunk_sizes == ((2, 2, 1), widths)
        assert [cut.lengths for cut in arrays.cuts(array)] == [(2, 2, 1), widths]
        assert arrays.outer_chunks(array) == (2, max(widths))


def test_widths_of_arrays_with_another_shape() -> None:
    array = _array((4, 1, 2))
    assert arrays.planned(array, shape=(5, 5)).read_chunk_sizes == ((2, 2, 1), (4, 1))
    assert arrays.planned(array, shape=(5, 0)).shape == (5, 0)
    assert arrays.planned(array, shape=(7, 9)).read_chunk_sizes == ((2, 2, 2, 1), (4, 1, 2, 2))
    assert not arrays.cuts(arrays.planned(array, shape=(5, 6)))[1].is_even


@pytest.mark.usefixtures("without_flag")
def test_zarr_refuses_without_its_flag(tmp_path: Path) -> None:
    """vczstore sets the flag when it parses the metadata of such an array."""
    zarr.create_group(tmp_path)
    document = metadata.documents(_array((4, 1)).metadata)["zarr.json"]
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "zarr.json").write_text(json.dumps(document))
    zarr.config.set({rectilinear.FLAG: False})
    with pytest.raises(ValueError, match="Rectilinear chunk grids are experimental"):
        zarr.open_array(tmp_path / "x")
    assert metadata.parsed(document).shape == (5, 5)
    assert zarr.open_array(tmp_path / "x").shape == (5, 5)


@pytest.mark.slow
def test_the_flag_can_be_set_in_the_environment() -> None:
    """With the variable that the guide and zarr's error message name."""
    program = f"import zarr; assert zarr.config.get({rectilinear.FLAG!r}) is True"
    environment = {**os.environ, "ZARR_ARRAY__RECTILINEAR_CHUNKS": "True"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["format3", "icechunk"])
def test_chunks_have_the_widths_in_the_metadata(kind: str) -> None:
    """zarr, xarray and Dask read the values and the widths, after columns are added and removed."""
    repository = icechunk.Repository.create(icechunk.in_memory_storage())
    session = repository.writable_session("main")
    store = session.store if kind == "icechunk" else zarr.storage.MemoryStore()
    zarr.create_group(store)
    for widths in ((4,), (4, 1, 2), (4, 1, 2, 9), (1, 2)):
        array = arrays.planned(_array(widths), store=store)
        write_json(store, "x/zarr.json", metadata.documents(array.metadata)["zarr.json"])
        array[...] = _values(sum(widths))
        if kind == "icechunk":
            session.commit("test")
            session = repository.writable_session("main")
            store = session.store
        reopened = zarr.open_array(store, path="x", mode="r")
        np.testing.assert_array_equal(reopened[...], _values(sum(widths)))
        data = xr.open_zarr(store, consolidated=False, chunks={})["x"]
        assert data.chunks == ((2, 2, 1), widths)
        np.testing.assert_array_equal(data.compute(), _values(sum(widths)))
    if kind == "icechunk":
        reader = repository.readonly_session("main")
        assert asyncio.run(_coordinates(reader)) == {(i, j) for i in range(3) for j in range(2)}


async def _coordinates(session: icechunk.Session) -> set[tuple[int, ...]]:
    return {tuple(at) async for at in session.chunk_coordinates("/x")}
