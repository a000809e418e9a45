"""Stores as written by vczstore 0.1.0, imitated with zarr-python alone: they are recognised and repaired."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

import vczstore
from tests.support import cohort
from tests.support.command_line import printed
from tests.support.covering import in_turn
from tests.support.ways import WRITTEN, Way

ARRAYS = {
    name: values
    for name, values in cohort.make_arrays(7, cohort.ids(0, 5)).items()
    if name == "sample_id" or not name.startswith(("sample_", "dosage", "local_"))
}
"""``call_*`` fields only, the ones that version 0.1.0 supports; five samples in chunks of three."""
BATCH = {**cohort.make_arrays(7, cohort.ids(10, 4), seed=1)}
BATCH = {name: BATCH[name] for name in ARRAYS}


def array_of(group: zarr.Group, name: str) -> zarr.Array:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array


def calls(group: zarr.Group) -> list[str]:
    return [name for name, _ in group.arrays() if name.startswith("call_")]


def created(group: zarr.Group) -> None:
    """Imitate `create`: ``sample_id`` has an empty ID for each source sample, but ``call_*`` have no samples."""
    array_of(group, "sample_id")[...] = ""
    for name in calls(group):
        array = array_of(group, name)
        array.resize((array.shape[0], 0, *array.shape[2:]))


def appended(group: zarr.Group) -> None:
    """Imitate `create` and `append`: the empty IDs have calls with the fill value, in missing chunks."""
    created(group)
    n, more = 5, len(BATCH["sample_id"])
    ids = array_of(group, "sample_id")
    ids.resize((n + more,))
    ids[n:] = BATCH["sample_id"]
    for name in calls(group):
        array = array_of(group, name)
        array.resize((array.shape[0], n + more, *array.shape[2:]))
        array[:, n:] = BATCH[name]


def removed(group: zarr.Group) -> None:
    """Imitate `remove`: only ``call_*`` are set to missing, and masks to False."""
    array_of(group, "sample_id")[2] = ""
    for name in calls(group):
        array = array_of(group, name)
        missing = {"i": -1, "f": cohort.MISSING, "b": False}.get(array.dtype.kind, ".")
        array[:, 2] = missing


def make(folder: Path, kind: str, change: Callable[[zarr.Group], None]) -> Path:
    """Write a store and apply a change; return its path."""
    if kind != "icechunk":
        cohort.write_vcz(folder / "store.vcz", ARRAYS, zarr_format=2 if kind == "format2" else 3)
        change(zarr.open_group(folder / "store.vcz", mode="r+"))
        return folder / "store.vcz"
    import icechunk

    cohort.write_icechunk(folder / "store.icechunk", ARRAYS)
    storage = icechunk.local_filesystem_storage(str(folder / "store.icechunk"))
    session = icechunk.Repository.open(storage).writable_session("main")
    change(zarr.open_group(session.store, mode="r+"))
    session.commit("as version 0.1.0 leaves it")
    return folder / "store.icechunk"


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.slow
def test_a_created_store_is_recognised_and_repaired(tmp_path: Path, kind: str) -> None:
    store, way = make(tmp_path, kind, created), Way(kind, "cubed")
    cohort.write_vcz(tmp_path / "batch.vcz", BATCH)
    before = cohort.digest(store)
    for arguments in (("append", store, tmp_path / "batch.vcz"), ("compact", store)):
        text = printed(*arguments, status=1)
        assert text.endswith(f"its last IDs are empty, as vczstore 0.1.0 leaves them: vczstore repair {store}\n")
        assert len(text.splitlines()) == 1
    assert not vczstore.verify(store).ok
    assert "5 deleted" in printed("repair", store, "--dry-run")
    assert cohort.digest(store) == before

    assert "empty IDs of samples for which no array has values: 5 deleted" in printed("repair", store)
    assert vczstore.verify(store).errors == []
    assert "nothing to repair" in printed("repair", store)
    vczstore.append(store, tmp_path / "batch.vcz")
    expected = {n: (BATCH if "samples" in cohort.DIMENSIONS[n] else ARRAYS)[n] for n in ARRAYS}
    cohort.assert_same(way.read(store), expected)


@in_turn(kind=WRITTEN, change={"appended": appended, "removed": removed})
@pytest.mark.slow
def test_calls_of_samples_without_an_id_are_made_missing(
    tmp_path: Path, kind: str, change: Callable[[zarr.Group], None]
) -> None:
    store, way = make(tmp_path, kind, change), Way(kind, "cubed")
    gone = [2] if change is removed else list(range(5))
    before = way.read(store)
    assert not vczstore.verify(store).ok
    assert any("not missing, in call_" in reason for reason in vczstore.verify_removal(store, ["S9999"]).reasons)

    assert "values of samples that have no ID any more, in call_" in printed("repair", store)
    assert vczstore.verify(store).errors == []
    repaired = way.read(store)
    kept = [i for i in range(len(repaired["sample_id"])) if i not in gone]
    for name in ARRAYS:
        if name.startswith("call_"):
            missing = {"i": -1, "f": cohort.MISSING, "b": name.endswith("_mask")}.get(repaired[name].dtype.kind, ".")
            expected = before[name].copy()
            expected[:, gone] = missing
            cohort.assert_same({name: repaired[name]}, {name: expected})
    if kind == "icechunk":
        vczstore.purge(store)
    assert vczstore.verify_removal(store, ["S9999"]).reasons == ()
    vczstore.compact(store)
    after = way.read(store)
    for name in ("call_genotype", "call_DP", "call_FT"):
        np.testing.assert_array_equal(after[name], before[name][:, kept])


@pytest.mark.slow
def test_sample_fields_of_removed_samples_are_made_missing(tmp_path: Path) -> None:
    """Version 0.1.0 erases ``call_*`` only, and leaves personal data in ``sample_*``."""
    cohort.write_vcz(tmp_path / "store.vcz", cohort.make_arrays(7, cohort.ids(0, 5)))
    removed(zarr.open_group(tmp_path / "store.vcz", mode="r+"))
    assert "sample_pca, sample_sex: made missing" in printed("repair", tmp_path / "store.vcz")
    repaired = cohort.read_vcz(tmp_path / "store.vcz")
    assert repaired["sample_sex"][2] == -1
    assert (repaired["sample_pca"][2].view("u4") == 0x7F800001).all()
    assert vczstore.verify_removal(tmp_path / "store.vcz", ["S9999"]).erased


def test_sample_fields_copied_from_the_source_are_deleted(tmp_path: Path) -> None:
    """`create` in version 0.1.0 also copies ``sample_*`` from a single source."""
    store = tmp_path / "store.vcz"
    arrays = {**ARRAYS, "sample_sex": np.array([1, 2, 1, 2, 1], "i1")}
    cohort.write_vcz(store, arrays)
    created(zarr.open_group(store, mode="r+"))
    printed("repair", store)
    assert cohort.read_vcz(store)["sample_sex"].shape == (0,)
    assert "chunks deleted" in printed("gc", store)
    assert "sample_sex/c/0" not in cohort.digest(store)
    assert vczstore.verify(store).ok


def test_a_store_with_ids_without_values_is_not_repaired(tmp_path: Path) -> None:
    store = make(tmp_path, "format3", created)
    array_of(zarr.open_group(store, mode="r+"), "sample_id")[1] = "S0001"
    before = cohort.digest(store)
    assert "that repair does not fix" in printed("repair", store, status=1)
    assert cohort.digest(store) == before
