"""Fill values that are NaNs of VCF Zarr: the values of absent chunks are preserved bit for bit.

zarr-python does not distinguish NaNs, so these tests read the metadata documents and the stored chunks.
"""

from __future__ import annotations

import asyncio
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype

import vczstore
from tests.support import cohort
from tests.support.extra_arrays import make, put
from tests.support.small_stores import repository_of
from tests.support.ways import IMPLS, WRITTEN

BITS = {2: (0x7C01, 0x7C02), 4: (0x7F800001, 0x7F800002), 8: (0x7FF0000000000001, 0x7FF0000000000002)}
"""Bit patterns of missing and fill by the width of a float in bytes (VCF Zarr 0.4, "Missing and fill values")."""


def hexadecimal(width: int, which: int = 0) -> str:
    """The NaN for missing (0) or fill (1) as a fill value in Zarr format 3 metadata."""
    return f"0x{BITS[width][which]:0{2 * width}x}"


def with_absent(store: Path, width: int, which: int = 0) -> Path:
    """Add ``call_DS``: 1 for the first three samples, absent chunks for the rest, and a VCF Zarr NaN as fill value."""
    group = zarr.open_group(store)
    n = group["sample_id"].shape[0]  # type: ignore[union-attr]
    dims = {"dimension_names": ["variants", "samples"]}
    array = group.create_array("call_DS", shape=(7, n), dtype=f"f{width}", chunks=(4, 3), **dims)  # type: ignore[arg-type]
    array[:, :3] = 1
    document = json.loads((store / "call_DS/zarr.json").read_text())
    document["fill_value"] = hexadecimal(width, which)
    (store / "call_DS/zarr.json").write_text(json.dumps(document))
    return store


def document_of(store: Path, name: str = "call_DS") -> dict[str, Any]:
    """The metadata document of an array, verbatim, in a store of any kind."""
    if (store / name / "zarr.json").exists():
        return json.loads((store / name / "zarr.json").read_text())  # type: ignore[no-any-return]
    session = repository_of(store).readonly_session("main")
    content = asyncio.run(session.store.get(f"{name}/zarr.json", default_buffer_prototype()))
    assert content is not None
    return json.loads(content.to_bytes())  # type: ignore[no-any-return]


def bits(store: Path, name: str = "call_DS") -> np.ndarray:
    """Bit patterns of all values of an array; every chunk must be stored."""
    location = store if (store / name).exists() else cohort.icechunk_store(store)
    array = zarr.open_group(location, mode="r", use_consolidated=False)[name]
    assert isinstance(array, zarr.Array)
    assert array.nchunks_initialized == array.nchunks
    values = np.asarray(array[...])
    return values.view(f"u{values.dtype.itemsize}")


def ones(width: int) -> int:
    """Bit pattern of 1."""
    return int(np.array(1, f"f{width}").view(f"u{width}"))


@pytest.mark.parametrize("width", BITS)
def test_a_copy_to_icechunk_keeps_the_fill_value(tmp_path: Path, width: int) -> None:
    source = with_absent(make(tmp_path / "a.vcz"), width, 1)
    vczstore.copy_store_to_icechunk(source, tmp_path / "a.icechunk")
    assert document_of(tmp_path / "a.icechunk")["fill_value"] == hexadecimal(width, 1)


@pytest.mark.parametrize(("width", "impl"), [(2, "cubed"), (8, "cubed"), *product([4], IMPLS)])
@pytest.mark.slow
def test_absent_chunks_are_joined_with_their_fill_values(tmp_path: Path, width: int, impl: str) -> None:
    """The last chunk column of both is absent, and the store's is partial: values are decoded, joined and written."""
    store = with_absent(make(tmp_path / "a.vcz"), width)
    batch = with_absent(make(tmp_path / "b.vcz", start=10), width, 1)
    vczstore.append(store, batch, impl=impl)
    assert document_of(store)["fill_value"] == hexadecimal(width)
    missing, fill, one = *BITS[width], ones(width)
    assert bits(store).tolist() == [[one] * 3 + [missing] * 2 + [one] * 3 + [fill] * 2] * 7
    assert vczstore.verify(store).errors == []

    before = bits(store)
    vczstore.compact(store, tmp_path / "copy.vcz", impl=impl)
    assert document_of(tmp_path / "copy.vcz")["fill_value"] == hexadecimal(width)
    np.testing.assert_array_equal(bits(tmp_path / "copy.vcz"), before)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "kind"), [*product([4], WRITTEN), (2, "format3"), (8, "format3")])
def test_absent_chunks_are_written_if_the_fill_values_differ(tmp_path: Path, width: int, kind: str) -> None:
    """The chunk grids are aligned, and the fill values differ. Format 2 metadata can express a single NaN only."""
    store = make(tmp_path / "a.vcz", n=3, zarr_format=2 if kind == "format2" else 3)
    if kind == "format2":
        put(store, "call_DS", np.ones((7, 3), f"f{width}"), ("variants", "samples"), 2)
    else:
        with_absent(store, width)
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(store, store := tmp_path / "a.icechunk")
    vczstore.append(store, with_absent(make(tmp_path / "b.vcz", start=10), width, 1))
    assert bits(store).tolist() == [[ones(width)] * 6 + [BITS[width][1]] * 2] * 7


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITTEN)
def test_a_first_append_keeps_values_in_every_format(tmp_path: Path, kind: str) -> None:
    store, source = tmp_path / "store", with_absent(make(tmp_path / "a.vcz"), 4)
    if kind == "format2":
        vczstore.create(tmp_path / "empty", source)
        empty = cohort.read_vcz(tmp_path / "empty")
        group = zarr.create_group(store, zarr_format=2, attributes=dict(zarr.open_group(tmp_path / "empty").attrs))
        for name, values in empty.items():
            dims = zarr.open_array(tmp_path / "empty" / name).metadata.dimension_names
            array = group.create_array(
                name,
                shape=values.shape,
                dtype="string" if values.dtype.kind == "T" else values.dtype,
                chunks=tuple(max(1, n) for n in values.shape),
                attributes={"_ARRAY_DIMENSIONS": list(dims)},
            )
            if values.size:
                array[...] = values
    else:
        vczstore.create(store, source, backend_storage="icechunk" if kind == "icechunk" else None)
    vczstore.append(store, source)
    if kind != "format2":
        assert document_of(store)["fill_value"] == hexadecimal(4)
        store_bits = zarr.open_group(
            cohort.icechunk_store(store) if kind == "icechunk" else store, mode="r", use_consolidated=False
        )["call_DS"][:, :3]
        assert (np.asarray(store_bits) == 1).all()
    else:
        assert bits(store).tolist() == [[ones(4)] * 3 + [BITS[4][0]] * 2] * 7


@pytest.mark.parametrize(("narrow", "wide"), [(2, 4), (4, 8)])
@pytest.mark.parametrize("kind", ["format3", "icechunk"])
@pytest.mark.slow
def test_a_wider_float_gets_the_fill_value_of_its_width(tmp_path: Path, narrow: int, wide: int, kind: str) -> None:
    store = with_absent(make(tmp_path / "a.vcz"), narrow, 1)
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(store, store := tmp_path / "a.icechunk")
    vczstore.append(store, with_absent(make(tmp_path / "b.vcz", start=10), wide, 0))
    assert document_of(store)["fill_value"] == hexadecimal(wide, 1)
    missing, fill, one = *BITS[wide], ones(wide)
    assert bits(store).tolist() == [[one] * 3 + [fill] * 2 + [one] * 3 + [missing] * 2] * 7


def test_consolidated_metadata_with_the_fill_value_are_valid(tmp_path: Path) -> None:
    store = with_absent(make(tmp_path / "a.vcz"), 4)
    root = json.loads((store / "zarr.json").read_text())
    members = {p.parent.name: json.loads(p.read_text()) for p in store.glob("*/zarr.json")}
    root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": members}
    (store / "zarr.json").write_text(json.dumps(root))
    assert vczstore.verify(store, quick=True).errors == []
    members["call_DS"]["fill_value"] = "NaN"
    (store / "zarr.json").write_text(json.dumps(root))
    assert [d.array for d in vczstore.verify(store, quick=True).errors] == ["call_DS"]
