"""Specifics of Icechunk: atomic commits, history, two writers, and a cost per commit in proportion to the batch."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path

import icechunk
import numpy as np
import pytest
import zarr

import vczstore
from plans.core.model import Plan
from tests.support import cohort
from tests.support.small_stores import repository_of
from vczstore.errors import StaleError, StorageError
from vczstore.stores.icechunk import IcechunkStore


@pytest.fixture
def store(tmp_path: Path) -> Path:
    cohort.write_icechunk(tmp_path / "store", cohort.some_arrays(10, cohort.ids(0, 7)))
    return tmp_path / "store"


def _batch(folder: Path, first: int, n: int) -> Path:
    cohort.write_vcz(folder / f"batch-{first}.vcz", cohort.some_arrays(10, cohort.ids(first, n), seed=first))
    return folder / f"batch-{first}.vcz"


@pytest.mark.slow
def test_several_sources_are_one_commit(store: Path, tmp_path: Path) -> None:
    result = vczstore.append(store, _batch(tmp_path, 7, 3), _batch(tmp_path, 10, 4), _batch(tmp_path, 14, 1))
    history = list(repository_of(store).ancestry(branch="main"))
    assert [s.message for s in history] == [
        "append: 3 sources, 8 samples added",
        "copy-store-to-icechunk: 13 arrays, 7 samples, 10 variants",
        "Repository initialized",
    ]
    assert history[0].id == result.snapshot
    metadata = history[0].metadata["vczstore"]
    assert {k: metadata[k] for k in ("operation", "sources", "samples added")} == {
        "operation": "append",
        "sources": 3,
        "samples added": 8,
    }


@pytest.mark.slow
def test_the_past_stays_readable(store: Path, tmp_path: Path) -> None:
    vczstore.tag(store, "before")
    vczstore.append(store, _batch(tmp_path, 7, 3))
    vczstore.remove(store, "S0008")
    then, now = vczstore.info(store, at="before"), vczstore.info(store)
    assert (then.samples, then.removed_samples) == (7, 0)
    assert (now.samples, now.removed_samples) == (9, 1)
    before = cohort.read_vcz(repository_of(store).readonly_session(tag="before").store)
    cohort.assert_same(before, cohort.some_arrays(10, cohort.ids(0, 7)))


@pytest.mark.slow
def test_the_second_of_two_writers_commits_nothing(store: Path, tmp_path: Path) -> None:
    target = IcechunkStore.at_url(str(store), {})
    plan = vczstore.plan("append", store, _batch(tmp_path, 7, 3))
    transaction = target.transaction(plan.base)
    with transaction.step(plan.preparations, plan.edits):
        vczstore.remove(store, "S0001")
        head = target.head
    with pytest.raises(StaleError, match="was changed by another writer while this ran; nothing was committed"):
        transaction.commit("append", {})
    assert target.head == head
    expected = cohort.expected_remove(cohort.some_arrays(10, cohort.ids(0, 7)), ["S0001"])
    cohort.assert_same(cohort.read_vcz(cohort.icechunk_store(store)), expected)


@dataclass(frozen=True)
class _Overstated:
    """A write that promises one chunk more than its tasks write."""

    write: object

    def __getattr__(self, name: str) -> object:
        return getattr(self.write, name)

    @property
    def decoded_chunks(self) -> int:
        return self.write.decoded_chunks + 1  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_commit_with_lost_chunks_is_refused(store: Path, tmp_path: Path) -> None:
    plan: Plan = vczstore.plan("append", store, _batch(tmp_path, 7, 3))
    plan = replace(plan, writes=(_Overstated(plan.writes[0]), *plan.writes[1:]))  # type: ignore[arg-type]
    head = repository_of(store).lookup_branch("main")
    with pytest.raises(StorageError, match=r"tasks report \d+ chunks written, \d+ were planned; nothing was committed"):
        vczstore.run(plan)
    assert repository_of(store).lookup_branch("main") == head


@pytest.mark.slow
def test_the_cost_of_a_commit_depends_on_the_batch_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of new manifests does not grow with the number of existing chunk columns."""
    monkeypatch.setattr("plans.compilers.copy.MANIFEST_CHUNKS", 100)

    def added(columns: int) -> int:
        folder = tmp_path / str(columns)
        folder.mkdir()
        arrays = cohort.some_arrays(40, cohort.ids(0, 4 * columns))
        few = ("sample_id", "contig_id", "filter_id", "variant_contig", "variant_position", "variant_allele", "call_DP")
        subset = {name: arrays[name] for name in few}
        cohort.write_vcz(folder / "plain.vcz", subset, variants_chunk=4, samples_chunk=4)
        vczstore.copy_store_to_icechunk(folder / "plain.vcz", folder / "store")
        batch = cohort.some_arrays(40, cohort.ids(10_000, 4), seed=1)
        cohort.write_vcz(folder / "batch.vcz", {n: batch[n] for n in few}, variants_chunk=4, samples_chunk=4)
        before = set(cohort.digest(folder / "store"))
        vczstore.append(folder / "store", folder / "batch.vcz")
        new = set(cohort.digest(folder / "store")) - before
        return sum((folder / "store" / f).stat().st_size for f in new if "manifests" in f)

    # 10 chunks per column and 100 per manifest: one manifest for every 10 columns
    few, many = added(40), added(80)
    assert 0 < many <= 1.1 * few


@pytest.mark.slow
def test_copy_keeps_values_attributes_and_absent_chunks(tmp_path: Path) -> None:
    arrays = cohort.some_arrays(10, cohort.ids(0, 7))
    arrays["call_DP"][:4, :3] = 0
    for zarr_format in (2, 3):
        plain, copy = tmp_path / f"plain-{zarr_format}.vcz", tmp_path / f"copy-{zarr_format}"
        cohort.write_vcz(plain, arrays, zarr_format=zarr_format, skip_empty=True)
        zarr.open_group(plain, mode="r+")["call_DP"].attrs["description"] = "Read depth"
        result = vczstore.copy_store_to_icechunk(plain, copy)
        assert result.plan.decoded_chunks == 0
        root = zarr.open_group(cohort.icechunk_store(copy), mode="r")
        cohort.assert_same(cohort.read_vcz(cohort.icechunk_store(copy)), arrays)
        assert dict(root.attrs) == {"vcf_zarr_version": "0.4", "source": "tests"}
        assert dict(root["call_DP"].attrs) == {"description": "Read depth"}
        assert root["call_DP"].metadata.dimension_names == ("variants", "samples")
        assert root["call_DP"].nchunks_initialized == 8


@pytest.mark.slow
def test_overwriting_a_repository_keeps_its_history(store: Path, tmp_path: Path) -> None:
    other = cohort.some_arrays(6, cohort.ids(50, 3))
    del other["call_GL"]
    cohort.write_vcz(tmp_path / "other.vcz", other)
    vczstore.tag(store, "before")
    vczstore.copy_store_to_icechunk(tmp_path / "other.vcz", store, overwrite=True)
    cohort.assert_same(cohort.read_vcz(cohort.icechunk_store(store)), other)
    before = cohort.read_vcz(repository_of(store).readonly_session(tag="before").store)
    np.testing.assert_array_equal(before["sample_id"].astype(object), np.array(cohort.ids(0, 7), dtype=object))


@pytest.mark.slow
def test_no_task_calls_str_or_repr_of_an_icechunk_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It deadlocks while another thread writes through the session; zarr-python calls it before tasks begin."""

    def describe(store: icechunk.IcechunkStore) -> str:
        assert store.read_only or threading.current_thread() is threading.main_thread()
        return "a store"

    old, new = cohort.some_arrays(10, cohort.ids(0, 7)), cohort.some_arrays(10, cohort.ids(7, 4), seed=1)
    cohort.write_icechunk(tmp_path / "store", old)
    cohort.write_icechunk(tmp_path / "batch", new)
    with monkeypatch.context() as patch:
        patch.setattr(icechunk.IcechunkStore, "__str__", describe)
        patch.setattr(icechunk.IcechunkStore, "__repr__", describe)
        vczstore.append(tmp_path / "store", tmp_path / "batch")
        vczstore.remove(tmp_path / "store", "S0003")
        vczstore.update(tmp_path / "store", tmp_path / "batch")
        vczstore.compact(tmp_path / "store")
        assert not vczstore.verify(tmp_path / "store").errors
    expected = cohort.select(cohort.expected_append(old, new), [s for s in cohort.ids(0, 11) if s != "S0003"])
    cohort.assert_same(cohort.read_vcz(cohort.icechunk_store(tmp_path / "store")), expected)
