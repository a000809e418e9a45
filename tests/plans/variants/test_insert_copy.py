"""Insertion of variants into a copy: ``append --output`` gives the same result as in place; the store is unchanged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vczstore
from tests.support import cohort, sites
from tests.support.clouds import Cloud
from tests.support.command_line import fails
from tests.support.refusals import complain
from tests.support.sites import Site
from tests.support.small_stores import unchanged
from tests.support.ways import Way
from vczstore.errors import OptionError, SampleError, UnsuitableError

INSERT: dict[str, Any] = {"harmonise": True, "new_variants": "insert"}
ROWS = {"some new": (2, 5, 6, 11, 99), "none new": (5, 9), "all new": (1, 2, 4)}

dimensions = cohort.more_arrays(sites.DIMENSIONS)


def _sites_with(*positions: int) -> list[Site]:
    return [Site("chr1", position, ("A", "C")) for position in positions]


def make(folder: Path, kind: str, old: int, rows: str) -> tuple[Path, Path]:
    """Return a store in chunks of 2 x 3, and a batch of four samples with a wider dtype of DP."""
    first = sites.make(_sites_with(3, 5, 7, 9, 11), cohort.ids(0, old), 1)
    second = sites.make(_sites_with(*ROWS[rows]), cohort.ids(10, 4), 2)
    second["call_DP"] = second["call_DP"].astype("i4") + (70_000 if rows == "all new" else 0)
    store = Way(kind, "cubed").make(folder, first, variants_chunk=2, samples_chunk=3)
    cohort.write_vcz(folder / "batch", second, variants_chunk=4, samples_chunk=2)
    return store, folder / "batch"


@pytest.mark.parametrize(
    ("kind", "old", "rows", "options"),
    [
        ("format2", 4, "some new", {}),
        ("format3", 6, "some new", {}),
        ("icechunk", 4, "some new", {}),
        ("format3", 0, "some new", {}),
        ("format3", 4, "none new", {}),
        ("format2", 3, "all new", {"impl": "zarr"}),
    ],
)
@pytest.mark.slow
def test_a_copy_equals_an_insertion_in_place(
    tmp_path: Path, kind: str, old: int, rows: str, options: dict[str, Any]
) -> None:
    store, batch = make(tmp_path, kind, old, rows)
    with unchanged(store):
        result = vczstore.append(store, batch, **INSERT, output=tmp_path / "out.vcz", **options)
    assert result.committed
    vczstore.append(store, batch, **INSERT)
    copied = cohort.read_vcz(tmp_path / "out.vcz")
    cohort.assert_same(copied, Way(kind, "cubed").read(store))
    assert len(copied["sample_id"]) == old + 4
    assert vczstore.verify(tmp_path / "out.vcz").errors == []


@pytest.mark.slow
def test_a_dry_run_and_refusals(tmp_path: Path) -> None:
    store, batch = make(tmp_path, "format3", 4, "some new")
    out = tmp_path / "out.vcz"
    with unchanged(store):
        assert not vczstore.append(store, batch, **INSERT, output=out, dry_run=True).committed
        assert not out.exists()
        words = ("^append: --output needs", "--new-variants insert")
        complain(OptionError, words, lambda: vczstore.append(store, batch, output=out))
        words = ("--output does not go with --require-direct-copy",)
        complain(
            OptionError, words, lambda: vczstore.append(store, batch, **INSERT, output=out, require_direct_copy=True)
        )
        words = ("--output does not go with --recompute",)
        complain(OptionError, words, lambda: vczstore.append(store, batch, **INSERT, output=out, recompute=["AC"]))
        shutil.copytree(batch, out)
        complain(
            UnsuitableError, ("^append: .*out.vcz exists",), lambda: vczstore.append(store, batch, **INSERT, output=out)
        )
        command = ("append", store, batch, "--harmonise", "--new-variants", "insert")
        line = fails(*command, "--output", tmp_path / "x.icechunk", status=2)
        assert "ends in .icechunk" in line
    assert sorted(cohort.read_vcz(out)["sample_id"]) == cohort.ids(10, 4)


@pytest.mark.slow
def test_a_copy_remembers_removed_samples(tmp_path: Path) -> None:
    """In the copy, returning samples no longer count as removed; the others do, by the same key, which is copied."""
    store, batch = make(tmp_path, "format3", 4, "some new")
    vczstore.remove(store, cohort.ids(1, 1))
    cohort.write_vcz(tmp_path / "again", sites.make(_sites_with(2, 5), cohort.ids(1, 1), 3))
    with unchanged(store):
        out = tmp_path / "out.vcz"
        again = (store, tmp_path / "again")
        words = ("1 of the incoming samples",)
        complain(SampleError, words, lambda: vczstore.append(*again, **INSERT, output=out))
        vczstore.append(store, batch, **INSERT, output=out)
        complain(SampleError, words, lambda: vczstore.append(out, tmp_path / "again", **INSERT))
        back = tmp_path / "back.vcz"
        vczstore.append(*again, **INSERT, output=back, allow_returning=True)
    assert list(cohort.read_vcz(back)["sample_id"]) == ["S0000", "", "S0002", "S0003", "S0001"]
    vczstore.remove(back, cohort.ids(1, 1))
    assert vczstore.verify(back).errors == []


@pytest.mark.slow
def test_in_an_object_store(s3_cloud: Cloud, tmp_path: Path) -> None:
    """Nothing can be inserted in place there, only into a copy."""
    first = sites.make(_sites_with(3, 5, 7, 9, 11), cohort.ids(0, 4), 1)
    store = s3_cloud.put("store", first, variants_chunk=2, samples_chunk=3)
    batch = s3_cloud.put("batch", sites.make(_sites_with(6, 9), cohort.ids(10, 3), 2))
    before, options = set(s3_cloud.listing()), {**INSERT, "storage_options": s3_cloud.options}
    complain(UnsuitableError, ("--output",), lambda: vczstore.append(store, batch, **options))
    assert {key for key, _ in set(s3_cloud.listing()) ^ before} == {"store/sample_id/.vczstore-job.lock"}
    vczstore.append(store, batch, **options, output=f"{s3_cloud.url}/out")
    local = tmp_path / "local"
    cohort.write_vcz(local, first, variants_chunk=2, samples_chunk=3)
    vczstore.append(local, batch, **options, output=f"{s3_cloud.url}/from-here")
    cohort.assert_same(s3_cloud.read("from-here", "format3"), s3_cloud.read("out", "format3"))
    assert before <= set(s3_cloud.listing())
    contents = s3_cloud.read("out", "format3")
    assert sites.sites_of(contents) == _sites_with(3, 5, 6, 7, 9, 11)
    np.testing.assert_array_equal(np.delete(contents["call_PL"][:, :4], 2, axis=0), first["call_PL"])
