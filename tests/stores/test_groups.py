"""Groups inside a store are copied with it; consolidated metadata in groups around it never become stale."""

from __future__ import annotations

import os
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import vczstore
from tests.support import cohort
from tests.support.extra_arrays import make, put, refused
from tests.support.permissions import permit, without_root
from vczstore.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
FORMATS = pytest.mark.parametrize("zarr_format", [2, 3])


def consolidate(place: Path, zarr_format: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(zarr.storage.LocalStore(place), zarr_format=zarr_format)  # type: ignore[arg-type]


def with_groups(folder: Path, zarr_format: int) -> Path:
    """Write a store with groups that hold no samples: nested, empty, with attributes, with a scalar array."""
    store = make(folder, zarr_format=zarr_format)
    root = zarr.open_group(store, mode="r+")
    root.create_group("annotations", attributes={"by": "vep"}).create_group("genes", attributes={"build": 38})
    root.create_group("empty")
    put(store / "annotations", "score", np.arange(7.0), ("variants",), zarr_format)
    put(store / "annotations" / "genes", "name", np.array([b"BRCA1", b"TP53"]).view("S5"), ("genes",), zarr_format)
    put(store / "annotations", "version", np.array(110), None if zarr_format == 2 else (), zarr_format)
    return store


def below(place: object) -> dict[str, object]:
    """Attributes of all groups, and values of all arrays in groups, by path."""
    group = zarr.open_group(place, mode="r", use_consolidated=False)  # type: ignore[arg-type]
    nodes = [node for node in group.members(max_depth=None) if "/" in node[0] or isinstance(node[1], zarr.Group)]
    return {
        path: np.asarray(node[...]).tolist() if isinstance(node, zarr.Array) else dict(node.attrs)
        for path, node in nodes
    }


@FORMATS
@pytest.mark.parametrize("impl", ["cubed", "zarr"])
@pytest.mark.slow
def test_copies_include_groups(tmp_path: Path, zarr_format: int, impl: str) -> None:
    store = with_groups(tmp_path / "store.vcz", zarr_format)
    consolidate(store, zarr_format)
    assert vczstore.verify(store).errors == []
    expected = below(store)
    assert expected["annotations/genes"] == {"build": 38}
    assert len(expected) == 6

    vczstore.remove(store, ["S0001"])
    vczstore.compact(store, output=tmp_path / "copy.vcz", impl=impl)
    assert below(tmp_path / "copy.vcz") == expected
    assert vczstore.verify(tmp_path / "copy.vcz").errors == []
    consolidated = zarr.open_group(tmp_path / "copy.vcz", mode="r", use_consolidated=True)
    assert np.asarray(consolidated["annotations/score"][...]).tolist() == expected["annotations/score"]  # type: ignore[index]

    vczstore.copy_store_to_icechunk(store, tmp_path / "store.icechunk", impl=impl)
    assert below(cohort.icechunk_store(tmp_path / "store.icechunk")) == expected
    assert vczstore.verify(tmp_path / "store.icechunk").errors == []
    vczstore.compact(store)
    vczstore.compact(tmp_path / "store.icechunk")
    assert below(store) == below(cohort.icechunk_store(tmp_path / "store.icechunk")) == expected


@FORMATS
@pytest.mark.slow
def test_an_array_of_samples_in_a_group_is_refused(tmp_path: Path, zarr_format: int) -> None:
    store, batch = with_groups(tmp_path / "store.vcz", zarr_format), make(tmp_path / "batch.vcz", start=10)
    put(store / "annotations" / "genes", "burden", np.arange(10).reshape(5, 2), ("samples", "genes"), zarr_format)
    name = "annotations/genes/burden"
    refused(store, name, "remove", str(store), "S0001")
    refused(store, name, "append", str(store), str(batch))
    refused(store, name, "compact", str(store))
    refused(store, name, "compact", str(store), "--output", str(tmp_path / "out.vcz"))
    refused(batch, name, "append", str(batch), str(store))
    assert [d.array for d in vczstore.verify(store).errors] == [name]
    verdict = vczstore.verify_removal(store, ["S9999"])
    assert not verdict.erased
    assert name in verdict.reasons[0]
    vczstore.copy_store_to_icechunk(store, tmp_path / "store.icechunk")
    assert below(cohort.icechunk_store(tmp_path / "store.icechunk")) == below(store)


def within(folder: Path, zarr_format: int, path: str = "cohorts/one.vcz") -> tuple[Path, Path]:
    """Write a store in a nested group; return the top group, which has consolidated metadata, and the store."""
    root = zarr.create_group(folder / "all", zarr_format=zarr_format)  # type: ignore[arg-type]
    root.create_group("cohorts")
    store = make(folder / "all" / path, zarr_format=zarr_format)
    put(store, "call_DP", np.ones((7, 5), "i2"), ("variants", "samples"), zarr_format)
    consolidate(folder / "all", zarr_format)
    return folder / "all", store


def ids_seen_from(parent: Path, n: int) -> list[str]:
    """Sample IDs in the group's consolidated metadata; assert that calls have `n` samples."""
    group = zarr.open_group(parent, mode="r", use_consolidated=True)
    calls, ids = group["cohorts/one.vcz/call_DP"], group["cohorts/one.vcz/sample_id"]
    assert isinstance(calls, zarr.Array)
    assert isinstance(ids, zarr.Array)
    assert calls.shape == (7, n)
    return [str(sample) for sample in np.asarray(ids[...])]


@pytest.mark.parametrize("backend", [None, "obstore", "fsspec"])
@FORMATS
@pytest.mark.slow
def test_consolidated_metadata_of_a_parent_are_updated(tmp_path: Path, zarr_format: int, backend: str | None) -> None:
    parent, store = within(tmp_path, zarr_format)
    batch = make(tmp_path / "batch.vcz", start=10)
    put(batch, "call_DP", np.ones((7, 5), "i2"), ("variants", "samples"), 3)
    assert vczstore.verify(store).errors == []
    vczstore.append(store, batch, backend_storage=backend)
    assert ids_seen_from(parent, 10) == [*cohort.ids(0, 5), *cohort.ids(10, 5)]
    vczstore.remove(store, ["S0001"], backend_storage=backend)
    assert ids_seen_from(parent, 10) == ["S0000", "", *cohort.ids(2, 3), *cohort.ids(10, 5)]
    vczstore.compact(store)
    assert ids_seen_from(parent, 9) == ["S0000", *cohort.ids(2, 3), *cohort.ids(10, 5)]
    assert vczstore.verify(store).errors == []


@pytest.mark.slow
@FORMATS
def test_stores_in_one_group_take_turns(tmp_path: Path, zarr_format: int) -> None:
    """One store's update of the consolidated metadata is not overwritten by another that read them earlier."""
    import fcntl

    parent, store = within(tmp_path, zarr_format)
    batch = make(tmp_path / "batch.vcz", start=10)
    put(batch, "call_DP", np.ones((7, 5), "i2"), ("variants", "samples"), 3)
    other = os.open(parent, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)  # like a process that updates the consolidated metadata for its own store
    with ThreadPoolExecutor() as pool:
        appended = pool.submit(vczstore.append, store, batch)
        while zarr.open_array(store / "sample_id", mode="r").shape != (10,):
            assert not appended.done()
        assert len(ids_seen_from(parent, 5)) == 5
        os.close(other)
        assert appended.result().committed
    assert len(ids_seen_from(parent, 10)) == 10


@FORMATS
@pytest.mark.slow
def test_stale_consolidated_metadata_of_a_parent_are_repaired(tmp_path: Path, zarr_format: int) -> None:
    parent, store = within(tmp_path, zarr_format)
    key = "zarr.json" if zarr_format == 3 else ".zmetadata"
    before = (parent / key).read_bytes()
    batch = make(tmp_path / "batch.vcz", start=10)
    put(batch, "call_DP", np.ones((7, 5), "i2"), ("variants", "samples"), 3)
    vczstore.append(store, batch)
    (parent / key).write_bytes(before)
    (damage,) = vczstore.verify(store, quick=True).errors
    assert str(parent) in damage.what
    assert vczstore.repair(store, dry_run=True).ok
    assert (parent / key).read_bytes() == before
    assert vczstore.repair(store).ok
    assert len(ids_seen_from(parent, 10)) == 10
    assert CliRunner().invoke(main, ["repair", str(store)]).output.endswith("nothing to repair\n")


def test_read_only_consolidated_metadata_of_a_parent_are_refused() -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        parent, store = within(Path(name), 3)
        permit(Path(name), 0o777, 0o666)
        (parent / "zarr.json").chmod(0o444)
        before = cohort.digest(parent)
        with without_root():
            done = CliRunner().invoke(main, ["remove", str(store), "S0001"])
        assert done.exit_code == 1
        assert "has a copy of its metadata that is not writable" in done.output
        assert len(done.output.splitlines()) == 1
        assert cohort.digest(parent) == before
        (parent / "zarr.json").chmod(0o666)
        with without_root():
            vczstore.remove(store, ["S0001"])
        assert ids_seen_from(parent, 5) == ["S0000", "", "S0002", "S0003", "S0004"]


@FORMATS
def test_chunks_outside_the_grid_of_an_array_in_a_group(tmp_path: Path, zarr_format: int) -> None:
    store = make(tmp_path / "store.vcz", zarr_format=zarr_format)
    zarr.open_group(store, mode="r+").create_group("scores")
    put(store / "scores", "score", np.ones(7, "f4"), ("variants",), zarr_format)
    chunk = store / "scores" / "score" / ("c/9" if zarr_format == 3 else "9")
    chunk.write_bytes(b"of an array that was longer")
    assert vczstore.gc(store, dry_run=True).counts["chunks deleted"] == 1
    assert chunk.exists()
    assert vczstore.gc(store).counts["chunks deleted"] == 1
    assert not chunk.exists()


def test_chunks_outside_the_grid_are_counted_by_a_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` sends no request for each of them: there may be many, and another process may delete them meanwhile."""
    store = make(tmp_path / "store.vcz", zarr_format=3)
    (store / "variant_position" / "c" / "9").write_bytes(b"of an interrupted append")
    monkeypatch.setattr(zarr.storage.LocalStore, "getsize", None)
    assert vczstore.verify(store, executor="threads").outside == {"variant_position": 1}
