"""`restore`: a repository returns to an earlier state in a new commit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vczstore
from tests.support import cohort
from tests.support.command_line import fails
from tests.support.covering import in_turn
from tests.support.refusals import complain
from tests.support.small_stores import edit, head, put, read, repository_of, unchanged
from tests.support.ways import Way
from vczstore.errors import SampleError, TagError
from vczstore.jobs.run import run_job

OLD = cohort.some_arrays(10, cohort.ids(0, 7))
NEW = cohort.some_arrays(10, cohort.ids(7, 4), seed=1)
RECALLED = cohort.some_arrays(10, cohort.ids(2, 2), seed=2)
WIDER = {**RECALLED, "call_DP": RECALLED["call_DP"].astype("i4") + 100_000}


def batch(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    cohort.write_vcz(path, arrays)
    return path


def append(store: Path) -> None:
    vczstore.append(store, batch(store.with_name("batch.vcz"), NEW))


def append_and_remove(store: Path) -> None:
    append(store)
    vczstore.remove(store, cohort.ids(7, 4))
    vczstore.compact(store)


def update(store: Path) -> None:
    vczstore.update(store, batch(store.with_name("recalled.vcz"), RECALLED))


def widen(store: Path) -> None:
    vczstore.update(store, batch(store.with_name("wider.vcz"), WIDER))


def regrid(store: Path) -> None:
    append(store)
    vczstore.regrid(store, sample_grid="flexible")


def other_fields(store: Path) -> None:
    def change(group: object) -> None:
        del group["call_AD"]  # type: ignore[attr-defined]
        put("dosage", np.zeros((10, 7), "f4"))(group)  # type: ignore[arg-type]

    edit(store, change)


CHANGES = {change.__name__: change for change in (append, append_and_remove, update, widen, regrid, other_fields)}


@pytest.mark.slow
@in_turn(kind=("icechunk", "icechunk_flexible"), change=CHANGES)
def test_the_earlier_state_is_restored(kind: str, change: Callable[[Path], None], tmp_path: Path) -> None:
    way = Way(kind, "cubed")
    store = way.make(tmp_path, OLD)
    vczstore.tag(store, "v1")
    change(store)
    before = head(store)
    result = vczstore.restore(store, "v1")
    cohort.assert_same(way.read(store), OLD)
    assert vczstore.verify(store).ok
    assert vczstore.verify(store).outside == {}
    assert result.decoded_bytes == 0
    repository = repository_of(store)
    assert [snapshot.id for snapshot in repository.ancestry(branch="main")][:2] == [result.snapshot, before]
    assert vczstore.diff(store, at="v1").is_same
    vczstore.restore(store, before)
    assert vczstore.diff(store, at=before).is_same


@pytest.mark.slow
def test_only_changed_chunks_are_copied(tmp_path: Path) -> None:
    store = Way("icechunk", "cubed").make(tmp_path, OLD)
    vczstore.tag(store, "v1")
    update(store)
    n = vczstore.restore(store, "v1", dry_run=True).plan.encoded_chunks
    columns, rows = 2, 3  # two samples, on both sides of a chunk boundary
    assert n == columns + columns * rows * 5
    before = head(store)
    assert vczstore.restore(store, "main").plan.encoded_chunks == 0
    assert head(store) == before
    restored = vczstore.restore(store, "v1").snapshot
    assert vczstore.restore(store, "v1").plan.encoded_chunks == 0  # the log of its commit lists all copied chunks
    assert head(store) == restored
    edit(store, put("variant_AC", np.zeros_like(OLD["variant_AC"])))
    assert vczstore.restore(store, "v1").plan.encoded_chunks <= rows
    cohort.assert_same(read(store), OLD)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["icechunk", "icechunk_flexible"])
def test_columns_that_were_renumbered(kind: str, tmp_path: Path) -> None:
    """The first columns are dropped with all of their samples, and the remaining columns get other widths."""
    way = Way(kind, "cubed")
    old = cohort.make_arrays(6, cohort.ids(0, 9), fields=("sample_sex", "call_FT"))
    store = way.make(tmp_path, old, samples_chunk=2)
    vczstore.remove(store, cohort.ids(0, 4))
    removed = cohort.expected_remove(old, cohort.ids(0, 4))
    vczstore.tag(store, "removed")
    vczstore.compact(store)
    compacted = cohort.expected_compact(removed)
    vczstore.tag(store, "compacted")
    vczstore.regrid(store, sample_grid="regular", samples_chunk=1)
    for state, expected in ((None, compacted), ("compacted", compacted), ("removed", removed)):
        if state is not None:
            vczstore.restore(store, state)
        cohort.assert_same(way.read(store), expected)
        assert vczstore.verify(store).ok
        assert vczstore.verify(store).outside == {}


@pytest.mark.slow
def test_withdrawn_samples_are_not_restored(tmp_path: Path) -> None:
    store = Way("icechunk", "cubed").make(tmp_path, OLD)
    vczstore.tag(store, "v1")
    vczstore.remove(store, "S0001")
    vczstore.tag(store, "v2")
    update(store)
    with unchanged(store):
        message = complain(SampleError, ("^restore: v1 .* has 1 sample ",), lambda: vczstore.restore(store, "v1"))
    assert "S0001" not in message
    vczstore.restore(store, "v2")
    cohort.assert_same(read(store), cohort.expected_remove(OLD, ["S0001"]))


@pytest.mark.slow
def test_a_job_is_applied_again(tmp_path: Path) -> None:
    """After a restore, a job appends the batches that the store lacks."""
    store = Way("icechunk", "cubed").make(tmp_path, OLD)
    vczstore.tag(store, "v1")
    batch(tmp_path / "batch.vcz", NEW)
    (tmp_path / "job.yaml").write_text(f"store: {store}\nsteps:\n  - append: batch.vcz\n")
    run_job(tmp_path / "job.yaml")
    expected = read(store)
    vczstore.restore(store, "v1")
    cohort.assert_same(read(store), OLD)
    run_job(tmp_path / "job.yaml")
    cohort.assert_same(read(store), expected)


@pytest.mark.slow
def test_removed_samples_stay_known(tmp_path: Path) -> None:
    store = Way("icechunk", "cubed").make(tmp_path, OLD)
    vczstore.tag(store, "v1")
    append(store)
    vczstore.remove(store, "S0008")
    vczstore.restore(store, "v1")
    complain(SampleError, ("removed",), lambda: vczstore.append(store, tmp_path / "batch.vcz"))


@pytest.mark.slow
@pytest.mark.parametrize(("removed_on", "restored"), [("dev", "main"), ("main", "dev")])
def test_samples_removed_on_another_branch_stay_known(removed_on: str, restored: str, tmp_path: Path) -> None:
    store = Way("icechunk", "zarr").make(tmp_path, OLD)
    vczstore.branch(store, "dev")
    vczstore.remove(store, "S0001", branch=removed_on, impl="zarr")
    vczstore.restore(store, removed_on, branch=restored)
    source = batch(tmp_path / "back.vcz", cohort.select(OLD, ["S0001"]))
    complain(SampleError, ("removed",), lambda: vczstore.append(store, source, branch=restored))


@pytest.mark.slow
def test_hashes_of_different_keys_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Way("icechunk", "zarr").make(tmp_path, OLD)
    vczstore.branch(store, "dev")
    for branch, key in (("main", "a" * 32), ("dev", "b" * 32)):
        monkeypatch.setenv("VCZSTORE_WITHDRAWAL_KEY", key)
        vczstore.remove(store, "S0001", branch=branch, impl="zarr")
    with unchanged(store):
        complain(SampleError, ("^restore: .*different keys", "export"), lambda: vczstore.restore(store, "dev"))


def test_refusals(tmp_path: Path) -> None:
    plain = Way("format3", "cubed").make(tmp_path, OLD)
    (tmp_path / "other").mkdir()
    store = Way("icechunk", "cubed").make(tmp_path / "other", OLD)
    with unchanged(plain, store):
        words = ("^restore: .*plain Zarr", "copy-store-to-icechunk")
        complain(TagError, words, lambda: vczstore.restore(plain, "v1"))
        assert "no tag, branch or snapshot 'v1'" in fails("restore", store, "v1")
