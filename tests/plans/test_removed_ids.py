"""Every reader, on every backend, sees an empty ID for a removed sample, so that one filter skips it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import vczstore
from tests.support import cohort
from tests.support.small_stores import unchanged

FIELDS = ("sample_id", "contig_id", "variant_contig", "variant_position", "variant_allele", "call_genotype")
OLD = {name: values for name, values in cohort.make_arrays(4, cohort.ids(0, 7)).items() if name in FIELDS}
GONE = ["S0000", "S0001", "S0002", "S0005"]
"""All samples of the first chunk, and one of the second."""
LEFT = ["S0003", "S0004", "S0006"]
LAYOUTS: dict[str, dict[str, Any]] = {
    "format2": {"zarr_format": 2},
    "format2-consolidated": {"zarr_format": 2, "consolidated": True},
    "format3": {},
    "icechunk": {},
}


def make(folder: Path, layout: str) -> Path:
    write = cohort.write_icechunk if layout == "icechunk" else cohort.write_vcz
    write(folder / "store.vcz", OLD, **LAYOUTS[layout])
    return folder / "store.vcz"


def check_as_xarray_has_it(store: Path, layout: str) -> None:
    """Assert that the filter from the guide selects the calls of the remaining samples only."""
    place = cohort.icechunk_store(store) if layout == "icechunk" else store
    for consolidated in {False, "consolidated" in layout}:
        opened = xr.open_zarr(place, consolidated=consolidated)
        samples = opened["sample_id"].values
        assert samples.tolist() == [name if name in LEFT else "" for name in OLD["sample_id"]]
        # the fill value of genotypes is 0 here, which xarray would mask in format 2
        as_stored = xr.open_zarr(place, consolidated=consolidated, mask_and_scale=False)
        calls = as_stored["call_genotype"].isel(samples=samples != "").values
        np.testing.assert_array_equal(calls, cohort.select(OLD, LEFT)["call_genotype"])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_xarray_shows_an_empty_id(layout: str, tmp_path: Path) -> None:
    store = make(tmp_path, layout)
    vczstore.remove(store, GONE[:1], impl="zarr")
    vczstore.remove(store, GONE[1:], impl="zarr")
    check_as_xarray_has_it(store, layout)
    if "format2" in layout:  # zarr-python 2 returns uninitialised values for absent chunks without a fill value
        assert {path.name for path in store.glob("sample_id/[0-9]*")} == {"0", "1", "2"}


@pytest.mark.parametrize("layout", ["format2", "format2-consolidated"])
def test_repair_of_a_store_that_shows_nan(layout: str, tmp_path: Path) -> None:
    store = make(tmp_path, layout)
    vczstore.remove(store, GONE, impl="zarr")
    names = ["sample_id/.zarray", *([".zmetadata"] if "consolidated" in layout else [])]
    for name in names:  # as left by older versions, whose `remove` kept the fill value
        document = json.loads((store / name).read_text())
        array = document["metadata"]["sample_id/.zarray"] if name == ".zmetadata" else document
        array["fill_value"] = ""
        (store / name).write_text(json.dumps(document))
    (store / "sample_id" / "0").unlink()
    assert zarr.open_array(store / "sample_id", mode="r")[:3].tolist() == [""] * 3
    assert not isinstance(xr.open_zarr(store, consolidated=False)["sample_id"].values[0], str)
    with unchanged(store):
        dry = vczstore.repair(store, quick=True, dry_run=True)
    (repaired,) = vczstore.repair(store, quick=True).done
    assert (repaired,) == dry.done
    assert "nan" in repaired
    check_as_xarray_has_it(store, layout)
    assert not vczstore.repair(store, quick=True).done
