"""Provable withdrawal: `purge` deletes what snapshots, tags and branches keep; `verify-removal` reads every object."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import icechunk
import numpy as np
import obstore
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import Blosc, GZip, Zstd

import vczstore
from plans.maintenance.verify_removal import _Look, _Needles
from tests.support import cohort, forks, s3
from tests.support.command_line import run
from tests.support.locks import job_lock
from vczstore.errors import (
    BusyError,
    ConflictError,
    DamagedStoreError,
    NotAStoreError,
    OptionError,
    SampleError,
    StaleError,
    StorageError,
    TagError,
    VczstoreError,
)
from vczstore.stores.icechunk import IcechunkStore
from vczstore.stores.icechunk_history import IcechunkHistory
from vczstore.stores.listing import Objects
from vczstore.vcz.frames import contents

FIELDS = (
    *("sample_id", "contig_id", "variant_contig", "variant_position", "variant_allele"),
    *("sample_sex", "call_genotype_mask", "call_DP", "call_GL", "call_FT"),
)
N_VARIANTS = 300
"""The number of variants: large enough that chunks are objects, not inlined in manifests."""


def some_arrays(samples: list[str], seed: int = 0) -> dict[str, np.ndarray]:
    arrays = cohort.make_arrays(N_VARIANTS, samples, seed=seed)
    return {name: arrays[name] for name in FIELDS}


OLD = some_arrays(cohort.ids(0, 7))
GONE = ["S0001", "S0004"]
LEFT = cohort.expected_remove(OLD, GONE)


def write(place: Path, arrays: dict[str, np.ndarray], **layout: Any) -> Path:
    cohort.write_vcz(place, arrays, variants_chunk=N_VARIANTS, **layout)
    return place


@dataclass
class Place:
    """A repository, with methods to read it without vczstore."""

    url: str
    options: dict[str, Any]
    storage: Callable[[], icechunk.Storage]

    @property
    def repository(self) -> icechunk.Repository:
        """Open the repository again, so that nothing is cached."""
        return icechunk.Repository.open(self.storage())

    def read(self, **at: str) -> dict[str, np.ndarray]:
        session = self.repository.readonly_session(**(at or {"branch": "main"}))
        return cohort.read_vcz(session.store)

    def verify(self, samples: list[str] | None = None, **options: Any) -> Any:
        return vczstore.verify_removal(self.url, samples or GONE, **self.options, **options)


@pytest.fixture
def local(tmp_path: Path) -> Place:
    path = tmp_path / "store"
    vczstore.copy_store_to_icechunk(write(tmp_path / "plain.vcz", OLD), path, impl="zarr")
    return Place(str(path), {}, lambda: icechunk.local_filesystem_storage(str(path)))


@pytest.fixture
def bucket(s3_server: s3.S3Server, tmp_path: Path) -> Place:
    url = s3_server.url(f"withdrawal-{uuid4().hex}")
    options = {"storage_options": s3_server.options}
    place = f"{url}/cohort/store"
    vczstore.copy_store_to_icechunk(write(tmp_path / "plain.vcz", OLD), place, impl="zarr", **options)
    return Place(place, options, lambda: s3_server.storage(place))


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Place:
    """The fixture of the given name; each test of Icechunk's behaviour uses one of the two."""
    return request.getfixturevalue(request.param)


# ---- purge ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("place", ["bucket"], indirect=True)
def test_a_removed_sample_can_be_read_until_the_purge(place: Place) -> None:
    old = str(place.repository.lookup_branch("main"))
    vczstore.remove(place.url, GONE, impl="zarr", **place.options)
    cohort.assert_same(place.read(snapshot_id=old), OLD)
    report = place.verify()
    assert not report.erased
    assert any(old in reason and "1 snapshot has the samples" in reason for reason in report.reasons)

    result = vczstore.purge(place.url, **place.options)
    assert result.counts["chunks deleted"] > 0
    assert result.snapshot == place.repository.lookup_branch("main")
    with pytest.raises(icechunk.SnapshotNotFoundError):
        place.repository.readonly_session(snapshot_id=old)
    cohort.assert_same(place.read(), LEFT)
    messages = [info.message for info in place.repository.ancestry(branch="main")]
    assert [message.partition(":")[0] for message in messages] == ["purge", "purge", "Repository initialized"]
    report = place.verify()
    assert (report.erased, report.reasons) == (True, ())
    assert report.figures["values of removed samples"] == 2 * (1 + N_VARIANTS * (2 + 1 + 3 + 1))


@pytest.mark.slow
def test_a_tag_or_branch_that_keeps_old_snapshots_is_refused_or_deleted(local: Place) -> None:
    path = Path(local.url)
    vczstore.tag(path, "release-1")
    repository = local.repository
    repository.create_branch("dev", repository.lookup_branch("main"))
    vczstore.remove(path, GONE, impl="zarr")
    vczstore.tag(path, "release-2")
    before = cohort.digest(path)
    with pytest.raises(TagError, match="kept by the tag release-1, the branch dev; nothing was done, delete them"):
        vczstore.purge(path)
    assert "--tags delete" in run("purge", path, status=1).stderr
    assert cohort.digest(path) == before
    assert not local.verify().erased

    result = run("purge", path, "--tags", "delete")
    assert "deleted release-1, which kept an older snapshot" in result.stdout
    assert "deleted dev, which" in result.stdout
    assert (local.repository.list_tags(), local.repository.list_branches()) == ({"release-2"}, {"main"})
    assert local.verify().erased
    # a tag of the current state is no reason to refuse, now or in later purges
    again = json.loads(run("purge", path, "--json").stdout)
    assert again["deleted"] == []
    cohort.assert_same(local.read(tag="release-2"), LEFT)
    vczstore.append(path, write(path.with_name("batch.vcz"), some_arrays(["S0100"])), impl="zarr")
    with pytest.raises(TagError, match="kept by the tag release-2; nothing was done"):
        vczstore.purge(path)


@pytest.mark.slow
def test_remove_and_purge_in_one_command(local: Place) -> None:
    path = Path(local.url)
    vczstore.tag(path, "release-1")
    head = local.repository.lookup_branch("main")
    for dry in ([], ["--dry-run"]):
        assert "kept by the tag release-1" in run("remove", path, *GONE, "--purge", *dry, status=1).stderr
    assert local.repository.lookup_branch("main") == head
    delete = ["--purge", "--tags", "delete"]
    assert "dry run" in run("remove", path, *GONE, *delete, "--dry-run").stdout
    assert local.repository.lookup_branch("main") == head
    document = json.loads(run("remove", path, *GONE, *delete, "--json").stdout)
    assert document["purged"]["deleted"] == ["release-1"]
    assert document["snapshot"] == document["purged"]["snapshot"] == local.repository.lookup_branch("main")
    assert local.verify().erased
    assert "chunks deleted" in run("remove", path, "S0000", "--purge").stdout
    with pytest.raises(OptionError, match="tags is 'keep'; choose one of refuse, delete, recreate"):
        vczstore.purge(path, tags="keep")  # type: ignore[arg-type]


@pytest.mark.slow
def test_plain_zarr_has_no_history_to_purge(tmp_path: Path) -> None:
    path = write(tmp_path / "store.vcz", OLD)
    before = cohort.digest(path)
    assert "nothing to do; plain Zarr keeps no history" in run("purge", path).stdout
    assert vczstore.purge(path).snapshot is None
    assert cohort.digest(path) == before
    assert "nothing to do" in run("remove", path, *GONE, "--purge").stdout
    assert vczstore.verify_removal(path, GONE).erased
    assert "nothing to do" not in run("remove", path, "S0000").stdout


@pytest.mark.slow
@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_a_transaction_begun_before_a_purge_is_not_committed(place: Place, tmp_path: Path) -> None:
    """Its chunks have been deleted: if they were committed, the store could not be read."""
    batch = write(tmp_path / "batch.vcz", some_arrays(["S0100"], seed=1))
    plan = vczstore.plan("append", place.url, batch, **place.options)
    transaction = plan.store.transaction(plan.base)
    with transaction.step(plan.preparations, plan.edits) as store:
        for item in plan.writes:
            item.by_zarr(store)
        vczstore.purge(place.url, **place.options)
    with pytest.raises(StaleError, match="nothing was committed, run it again") as raised:
        transaction.commit("append", {})
    assert raised.value.exit_status == 4
    cohort.assert_same(place.read(), OLD)
    vczstore.append(place.url, batch, impl="zarr", **place.options)
    cohort.assert_same(place.read(), cohort.expected_append(OLD, some_arrays(["S0100"], seed=1)))


@pytest.mark.slow
def test_a_transaction_begun_before_foreign_garbage_collection_is_not_committed(local: Place, tmp_path: Path) -> None:
    """In this case the branch has not moved, so the operations log of the repository is checked."""
    batch = write(tmp_path / "batch.vcz", some_arrays(["S0100"], seed=1))
    plan = vczstore.plan("append", local.url, batch)
    transaction = plan.store.transaction(plan.base)
    with transaction.step(plan.preparations, plan.edits) as store:
        for item in plan.writes:
            item.by_zarr(store)
        vczstore.tag(local.url, "meanwhile")
    assert local.repository.garbage_collect(_later()).chunks_deleted > 0
    with pytest.raises(StaleError, match=r"garbage was collected while this ran.*nothing was committed, run it again"):
        transaction.commit("append", {})
    cohort.assert_same(local.read(), OLD)


def _later() -> Any:
    from datetime import UTC, datetime, timedelta

    return datetime.now(UTC) + timedelta(days=1)


@pytest.mark.slow
def test_an_interrupted_purge_blocks_writers_until_it_is_complete(
    local: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vczstore.remove(local.url, GONE, impl="zarr")
    vczstore.tag(local.url, "present")
    batch = write(tmp_path / "batch.vcz", some_arrays(["S0100"], seed=1))
    for error, expected, text in (
        (KeyboardInterrupt(), KeyboardInterrupt, "interrupted; some of the history may be deleted, run it again"),
        (icechunk.StorageError("disk on fire"), StorageError, "disk on fire; the purge is not complete, run it again"),
    ):
        with monkeypatch.context() as patch:

            def fail(*_: Any, error: BaseException = error, **__: Any) -> None:
                raise error

            patch.setattr(icechunk.Repository, "garbage_collect", fail)
            with pytest.raises(expected, match=text):
                vczstore.purge(local.url)
    cohort.assert_same(local.read(), LEFT)
    with pytest.raises(BusyError, match=r"is being swept by purge, or a purge of it was stopped; .* vczstore purge"):
        vczstore.append(local.url, batch, impl="zarr")
    vczstore.purge(local.url)
    assert local.verify().erased
    assert local.repository.list_tags() == {"present"}
    vczstore.append(local.url, batch, impl="zarr")


@pytest.mark.slow
def test_a_failed_purge_after_a_removal_reports_the_removal(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = icechunk.Repository.writable_session

    def and_commit(repository: icechunk.Repository, *args: Any) -> Any:
        session = begin(repository, *args)
        if sum(1 for _ in repository.ancestry(branch="main")) == 3:  # the samples have been removed already
            begin(repository, "main").commit("of another tool", allow_empty=True)
        return session

    monkeypatch.setattr(icechunk.Repository, "writable_session", and_commit)
    with pytest.raises(
        StaleError, match=r"the samples are removed, but not yet .* nothing was deleted, run it again: "
    ):
        vczstore.remove(local.url, GONE, impl="zarr", purge=True)
    monkeypatch.undo()
    cohort.assert_same(local.read(), LEFT)
    vczstore.purge(local.url)
    assert local.verify().erased


@pytest.mark.slow
@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_no_purge_while_a_job_runs(place: Place) -> None:
    before = place.repository.lookup_branch("main")
    with (
        job_lock(place.url, place.options.get("storage_options", {}), wait=False),
        pytest.raises(BusyError, match="is busy"),
    ):
        vczstore.purge(place.url, **place.options)
    assert place.repository.lookup_branch("main") == before


@pytest.mark.slow
def test_a_commit_during_a_purge_is_reported(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tools ignore the lock and the mark of the purge."""
    collect = icechunk.Repository.garbage_collect

    def and_commit(repository: icechunk.Repository, *args: Any, **kwargs: Any) -> Any:
        summary = collect(repository, *args, **kwargs)
        repository.writable_session("main").commit("of another tool", allow_empty=True)
        return summary

    monkeypatch.setattr(icechunk.Repository, "garbage_collect", and_commit)
    with pytest.raises(StaleError, match="there was a commit while it ran; the purge is not complete, run it again"):
        vczstore.purge(local.url)


# ---- tags that are recreated ----------------------------------------------------------------


def without(arrays: dict[str, np.ndarray], samples: list[str]) -> dict[str, np.ndarray]:
    return cohort.expected_remove(arrays, samples)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["bucket"], indirect=True)
def test_tags_are_recreated_without_removed_samples(place: Place, tmp_path: Path) -> None:
    """Each recreated tag names its state without the removed samples; other tags are kept."""
    more = some_arrays(["S0100", "S0101"], seed=1)
    vczstore.tag(place.url, "release-1", **place.options)
    vczstore.append(place.url, write(tmp_path / "more.vcz", more), impl="zarr", **place.options)
    vczstore.tag(place.url, "release-2", **place.options)
    vczstore.remove(place.url, "S0100", impl="zarr", **place.options)
    # this state has no removed samples, although its history has some
    vczstore.remove(place.url, [*GONE, "S0101"], impl="zarr", **place.options)
    vczstore.tag(place.url, "clean", **place.options)
    again = some_arrays(["S0200"], seed=2)
    vczstore.append(place.url, write(tmp_path / "again.vcz", again), impl="zarr", **place.options)
    now = place.read()

    result = vczstore.purge(place.url, tags="recreate", **place.options)
    assert result.recreated == {"release-1": "release-1.1", "release-2": "release-2.1"}
    assert result.deleted == ()
    assert place.repository.list_tags() == {"release-1.1", "release-2.1", "clean"}
    assert place.repository.list_branches() == {"main"}
    cohort.assert_same(place.read(tag="release-1.1"), LEFT)
    both = cohort.expected_append(OLD, more)
    cohort.assert_same(place.read(tag="release-2.1"), without(both, [*GONE, "S0100", "S0101"]))
    cohort.assert_same(place.read(tag="clean"), without(both, [*GONE, "S0100", "S0101"]))
    cohort.assert_same(place.read(), now)
    assert place.verify([*GONE, "S0100", "S0101"]).erased
    history = "".join(
        f"{info.message}{info.metadata}"
        for tag in place.repository.list_tags()
        for info in place.repository.ancestry(tag=tag)
    )
    assert "release-1" not in history
    assert not [sample for sample in (*GONE, "S0100", "S0101") if sample in history]


@pytest.mark.slow
def test_tags_are_recreated_twice_by_the_command_line(local: Place) -> None:
    path = Path(local.url)
    vczstore.tag(path, "release-1")
    dry = run("remove", path, "S0001", "--purge", "--tags", "recreate", "--dry-run")
    assert "dry run" in dry.stdout
    assert local.repository.list_tags() == {"release-1"}
    done = run("remove", path, "S0001", "--purge", "--tags", "recreate")
    assert "release-1 is release-1.1 now, without what was removed since" in done.stdout
    done = json.loads(run("remove", path, "S0004", "--purge", "--tags", "recreate", "--json").stdout)
    assert done["purged"]["recreated"] == {"release-1.1": "release-1.2"}
    cohort.assert_same(local.read(tag="release-1.2"), LEFT)
    assert local.verify().erased


@pytest.mark.slow
def test_branches_are_not_recreated(local: Place) -> None:
    vczstore.tag(local.url, "release-1")
    local.repository.create_branch("dev", local.repository.lookup_branch("main"))
    vczstore.remove(local.url, GONE, impl="zarr")
    before = cohort.digest(Path(local.url))
    with pytest.raises(TagError, match="older snapshots are kept by the branch dev; nothing was done"):
        vczstore.purge(local.url, tags="recreate")
    assert cohort.digest(Path(local.url)) == before


STOPPED = """
import os, signal, sys
import icechunk
import vczstore
url, where = sys.argv[1:]
place = icechunk.Session if where == "commit" else icechunk.Repository
ours = getattr(place, where)

def and_die(*args, **kwargs):
    ours(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(place, where, and_die)
vczstore.purge(url, tags="recreate")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "recreated"),
    [
        ("commit", {"release-1": "release-1.1", "release-2": "release-2.1"}),
        ("create_tag", {"release-1": "release-1.1", "release-2": "release-2.1"}),
        ("delete_tag", {"release-2": "release-2.1"}),
        ("expire_snapshots", {}),
    ],
)
def test_a_recreation_that_was_killed_is_completed(local: Place, where: str, recreated: dict[str, str]) -> None:
    """Readers of the current state are not affected; no branch and no duplicate of a tag is left."""
    vczstore.tag(local.url, "release-1")
    vczstore.tag(local.url, "release-2")
    vczstore.remove(local.url, GONE, impl="zarr")
    process = subprocess.run([forks.program("python"), "-c", STOPPED, local.url, where], check=False, timeout=120)
    assert process.returncode == -signal.SIGKILL
    cohort.assert_same(local.read(), LEFT)
    assert vczstore.purge(local.url, tags="recreate").recreated == recreated
    assert local.repository.list_branches() == {"main"}
    assert local.repository.list_tags() == {"release-1.1", "release-2.1"}
    for name in local.repository.list_tags():
        cohort.assert_same(local.read(tag=name), LEFT)
    assert local.verify().erased


@pytest.mark.slow
@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_samples_removed_while_tags_are_rewritten_are_not_kept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the purge would succeed with a tag that contains a removed sample."""
    vczstore.tag(place.url, "release-1", **place.options)
    vczstore.remove(place.url, GONE[0], impl="zarr", **place.options)
    rename_tag = IcechunkHistory.rename_tag

    def and_remove(*args: Any) -> str:
        name = rename_tag(*args)
        vczstore.remove(place.url, GONE[1], impl="zarr", **place.options)
        return name

    monkeypatch.setattr(IcechunkHistory, "rename_tag", and_remove)
    with pytest.raises(StaleError, match=r"is not complete, run it again: vczstore purge \S+ --tags recreate"):
        vczstore.purge(place.url, tags="recreate", **place.options)
    monkeypatch.undo()
    if place.options:
        for name, value in s3.CREDENTIALS.items():
            monkeypatch.setenv(name, value)
    assert vczstore.purge(place.url, tags="recreate", **place.options).recreated == {"release-1.1": "release-1.2"}
    cohort.assert_same(place.read(tag="release-1.2"), LEFT)
    assert place.verify().erased


@pytest.mark.slow
def test_an_unreadable_tag_is_reported_before_any_is_rewritten(local: Place) -> None:
    vczstore.tag(local.url, "a")
    first = [info.id for info in local.repository.ancestry(branch="main")][-1]
    local.repository.create_tag("z", snapshot_id=first)  # the empty repository
    vczstore.remove(local.url, GONE, impl="zarr")
    before = cohort.digest(Path(local.url))
    with pytest.raises(NotAStoreError, match=r"the tag z names cannot be looked at: .* vczstore tag \S+ z -d"):
        vczstore.purge(local.url, tags="recreate")
    assert cohort.digest(Path(local.url)) == before
    vczstore.delete_tag(local.url, "z")
    assert vczstore.purge(local.url, tags="recreate").recreated == {"a": "a.1"}


@pytest.mark.slow
def test_a_recreation_that_fails_leaves_no_branch(local: Place) -> None:
    vczstore.tag(local.url, "v1.1")
    vczstore.remove(local.url, GONE, impl="zarr")
    with pytest.raises(VczstoreError, match=r"the tag v1.1 could not be rewritten: .* run it again: vczstore purge"):
        vczstore.purge(local.url, tags="recreate", allowed_mem="300001kB")
    assert (local.repository.list_tags(), local.repository.list_branches()) == ({"v1.1"}, {"main"})
    # a version number chosen by the user is part of the name: v1.2 may be needed for another release
    assert vczstore.purge(local.url, tags="recreate").recreated == {"v1.1": "v1.1.1"}


@pytest.mark.slow
def test_info_fields_of_recreated_tags_are_stale(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain.vcz", tmp_path / "store"
    cohort.write_vcz(plain, cohort.make_arrays(10, cohort.ids(0, 7)))
    vczstore.copy_store_to_icechunk(plain, path, impl="zarr")
    vczstore.recompute(path, "AC", impl="zarr")
    vczstore.tag(path, "release-1")
    vczstore.remove(path, GONE, impl="zarr", recompute=["AC"])
    vczstore.purge(path, tags="recreate")
    assert vczstore.info(path).stale == []
    assert vczstore.info(path, at="release-1.1").stale == ["AC"]


# ---- gc -------------------------------------------------------------------------------------

WRITE_AND_DIE = """
import os, signal, sys
import vczstore
plan = vczstore.plan("append", *sys.argv[1:])
transaction = plan.store.transaction(plan.base)
with transaction.step(plan.preparations, plan.edits) as store:
    for item in plan.writes:
        item.by_zarr(store)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def files(folder: str) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()}


@pytest.mark.slow
def test_gc_deletes_the_leftovers_of_a_killed_writer(local: Place, tmp_path: Path) -> None:
    batch = write(tmp_path / "batch.vcz", some_arrays(["S0100"], seed=1))
    vczstore.tag(local.url, "release-1")
    vczstore.remove(local.url, GONE, impl="zarr")
    before, snapshot = files(local.url), local.repository.lookup_branch("main")
    process = subprocess.run([forks.program("python"), "-c", WRITE_AND_DIE, local.url, batch], check=False, timeout=120)
    assert process.returncode == -signal.SIGKILL
    orphans = {name: size for name, size in files(local.url).items() if name not in before}
    chunks = [name for name in orphans if name.startswith("chunks/")]
    assert len(chunks) > 2
    counted = json.loads(run("gc", local.url, "--dry-run", "--json").stdout)
    assert (counted["committed"], counted["counts"]["chunks deleted"]) == (False, len(chunks))
    assert files(local.url) == {**before, **orphans}
    stdout = run("gc", local.url).stdout
    # snapshots are deleted, too: each session that is sent to tasks has one
    assert f" {len(chunks):,} chunks deleted" in stdout
    after = files(local.url)
    assert not orphans.keys() & after.keys()
    assert {name for name in before if name.startswith("chunks/")} <= after.keys()
    # everything that was readable is still readable
    cohort.assert_same(local.read(), LEFT)
    cohort.assert_same(local.read(tag="release-1"), OLD)
    cohort.assert_same(local.read(snapshot_id=snapshot), LEFT)
    assert vczstore.verify(local.url).ok
    assert json.loads(run("gc", local.url, "--json").stdout)["counts"]["chunks deleted"] == 0
    vczstore.append(local.url, batch, impl="zarr")
    # release-2 names the current state, so it keeps no older snapshot
    vczstore.remove(local.url, "S0100", impl="zarr")
    vczstore.tag(local.url, "release-2")
    vczstore.gc(local.url)
    with pytest.raises(TagError, match="kept by the tag release-1; nothing"):
        vczstore.purge(local.url)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["bucket"], indirect=True)
def test_an_append_begun_before_gc_is_planned_again(place: Place, tmp_path: Path) -> None:
    """Its chunks have been deleted, so none of them is committed."""
    new = some_arrays(["S0100"], seed=1)
    batch = write(tmp_path / "batch.vcz", new)
    swept: list[Any] = []

    def progress(what: str, n: int, total: int) -> None:
        if what == "writing" and n == total and not swept:
            swept.append(vczstore.gc(place.url, **place.options))

    with pytest.raises(ConflictError):  # the command exits with status 4
        vczstore.append(place.url, batch, progress=progress, max_retries=0, **place.options)
    cohort.assert_same(place.read(), OLD)
    assert vczstore.verify(place.url, **place.options).ok
    swept.clear()
    result = vczstore.append(place.url, batch, progress=progress, **place.options)
    assert swept[0].counts["chunks deleted"] > 0
    assert result.retries == 1
    cohort.assert_same(place.read(), cohort.expected_append(OLD, new))
    assert vczstore.verify(place.url, **place.options).ok


@pytest.mark.slow
@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_no_gc_while_a_job_runs(place: Place) -> None:
    before = place.repository.lookup_branch("main")
    with (
        job_lock(place.url, place.options.get("storage_options", {}), wait=False),
        pytest.raises(BusyError, match="is busy"),
    ):
        vczstore.gc(place.url, **place.options)
    assert place.repository.lookup_branch("main") == before


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.slow
def test_gc_on_plain_zarr_deletes_the_leftovers_of_an_interrupted_append(tmp_path: Path, zarr_format: int) -> None:
    """Whole chunks are deleted; leftover values in chunks of old samples are overwritten by the next append."""
    old, new = some_arrays(cohort.ids(0, 6)), some_arrays(["S0100", "S0101", "S0102", "S0103"], seed=1)
    store = write(tmp_path / "store.vcz", old, zarr_format=zarr_format)
    batch = write(tmp_path / "batch.vcz", new, zarr_format=zarr_format)

    def stop(what: str, n: int, total: int) -> None:
        if (what, n) == ("writing", total):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vczstore.append(store, batch, progress=stop)
    outside = vczstore.verify(store).outside
    assert outside
    assert not vczstore.verify_removal(store, ["S0100"]).erased
    dry = vczstore.gc(store, dry_run=True)
    assert dry.counts["chunks deleted"] == sum(outside.values())
    assert vczstore.gc(store).counts == dry.counts
    cohort.assert_same(cohort.read_vcz(store), old)
    assert vczstore.verify(store).outside == {}
    assert vczstore.verify_removal(store, ["S0100"]).erased
    vczstore.append(store, batch)
    cohort.assert_same(cohort.read_vcz(store), cohort.expected_append(old, new))


@pytest.mark.slow
def test_an_interrupted_job_completes_after_gc(tmp_path: Path) -> None:
    """The ledger contains the pending batches, which the job writes again."""
    old, new = some_arrays(cohort.ids(0, 6)), some_arrays(["S0100", "S0101", "S0102", "S0103"], seed=1)
    store = write(tmp_path / "store.vcz", old)
    write(tmp_path / "inbox" / "batch.vcz", new)
    job = tmp_path / "job.yaml"
    job.write_text(f"store: {store}\nsteps:\n  - append: {tmp_path}/inbox/*.vcz\n")

    def stop(what: str, n: int, total: int) -> None:
        if what.endswith("writing") and n == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vczstore.run_job(job, progress=stop)
    assert zarr.open_group(store, mode="r").attrs["vczstore_ledger"]["pending"]
    assert vczstore.gc(store).counts["chunks deleted"] > 0
    vczstore.run_job(job)
    cohort.assert_same(cohort.read_vcz(store), cohort.expected_append(old, new))
    assert "pending" not in zarr.open_group(store, mode="r").attrs["vczstore_ledger"]


@pytest.mark.slow
def test_plain_zarr_allows_one_writer_at_a_time(tmp_path: Path) -> None:
    """Otherwise two appends would write to the same positions, and gc would treat chunks of an append as garbage."""
    store, batch = write(tmp_path / "store.vcz", OLD), write(tmp_path / "batch.vcz", some_arrays(["S0100"], seed=1))
    others: list[Callable[[], object]] = [
        lambda: vczstore.append(store, batch),
        lambda: vczstore.update(store, write(tmp_path / "update.vcz", some_arrays(["S0002"], seed=2))),
        lambda: vczstore.remove(store, "S0001"),
        lambda: vczstore.recompute(store, "AC"),
        lambda: vczstore.gc(store),
        lambda: vczstore.run(plan),
    ]
    plan = vczstore.plan("remove", store, "S0001")
    refused: list[str] = []

    def progress(what: str, n: int, total: int) -> None:
        while others and what == "writing":
            with pytest.raises(
                BusyError, match=r"is busy: process \d+ on .* run this again when that is over"
            ) as error:
                others.pop()()
            refused.append(str(error.value))
            vczstore.append(store, tmp_path / "more.vcz", dry_run=True)  # reading needs no lock

    write(tmp_path / "more.vcz", some_arrays(["S0101"], seed=3))
    vczstore.append(store, batch, progress=progress)
    assert len(refused) == 6
    cohort.assert_same(cohort.read_vcz(store), cohort.expected_append(OLD, some_arrays(["S0100"], seed=1)))


# ---- verify-removal -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_report_contains_the_digest_and_no_id(local: Place, tmp_path: Path) -> None:
    vczstore.remove(local.url, GONE, impl="zarr", purge=True)
    (tmp_path / "ids.txt").write_text("S0001\n\n  S0004\n")
    result = run("verify-removal", local.url, "-S", tmp_path / "ids.txt", "--report", tmp_path / "r", "--json")
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert json.loads(result.stdout) == report
    assert report["verdict"] == "erased"
    files = sorted(p.relative_to(local.url).as_posix() for p in Path(local.url).rglob("*") if p.is_file())
    lines = []
    for name in files:
        data = (Path(local.url) / name).read_bytes()
        lines.append(f"{name}\t{len(data)}\t{hashlib.sha256(data).hexdigest()}\n")
    assert report["sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert report["figures"]["objects read"] == len(files)
    page = (tmp_path / "r" / "report.html").read_text()
    assert "✓ erased" in page
    assert report["sha256"] in page
    # the sample is still there, because nothing was removed
    run("verify-removal", tmp_path / "plain.vcz", "-S", "-", "--report", tmp_path / "r", status=1, stdin="S0001\n")
    page, text = (tmp_path / "r" / "report.html").read_text(), (tmp_path / "r" / "report.json").read_text()
    assert "✕ not erased" in page
    assert json.loads(text)["verdict"] == "not erased"
    assert not [sample for sample in GONE if sample in page + text + result.output]


@pytest.mark.slow
def test_uncommitted_chunks_are_found(local: Place) -> None:
    """Nothing refers to them, so readers of snapshots would not notice them."""
    vczstore.remove(local.url, GONE, impl="zarr", purge=True)
    assert local.verify().erased
    session = local.repository.writable_session("main")
    zarr.open_group(session.store, mode="r+")["call_DP"][:] = OLD["call_DP"]
    report = local.verify()
    assert report.reasons == (f"there are unreferenced objects: 3 chunks; vczstore purge {local.url}",)
    assert vczstore.purge(local.url).counts["chunks deleted"] == 3
    assert local.verify().erased


@pytest.mark.slow
def test_ids_in_unreferenced_objects_are_found(local: Place) -> None:
    """The old sample IDs are inlined in a manifest: a compressed frame within a frame."""
    (manifest,) = [
        p
        for p in (Path(local.url) / "manifests").iterdir()
        if any(b"S0001" in text for text in contents(p.read_bytes()))
    ]
    kept = manifest.read_bytes()
    assert b"S0001" not in kept
    vczstore.remove(local.url, GONE, impl="zarr", purge=True)
    assert not manifest.exists()
    manifest.write_bytes(kept)
    report = local.verify()
    assert report.reasons[0] == f"1 object holds an ID: manifests/{manifest.name}"
    assert "unreferenced objects: 1 manifest" in report.reasons[1]


@pytest.mark.parametrize(
    "layout",
    [
        {"zarr_format": 2, "compressors": Blosc()},
        {"zarr_format": 2, "compressors": GZip()},
        {"compressors": zarr.codecs.BloscCodec()},
        {"compressors": zarr.codecs.ZstdCodec()},
        {"compressors": None},
        {"shards": (1, 2)},
    ],
    ids=lambda layout: "-".join(str(type(v).__name__ if k == "compressors" else v) for k, v in layout.items()),
)
@pytest.mark.slow
def test_every_encoding(tmp_path: Path, layout: dict[str, Any]) -> None:
    path = write(tmp_path / "store.vcz", OLD, **layout)
    (kept,) = [p for p in (path / "sample_id").rglob("*0") if p.is_file()]
    chunk = kept.read_bytes()
    report = vczstore.verify_removal(path, "S0001")
    assert report.reasons[0] == f"1 object holds an ID: {kept.relative_to(path)}"
    vczstore.remove(path, GONE, impl="zarr")
    assert vczstore.verify_removal(path, GONE).erased
    (path / "a-copy-of-it").write_bytes(chunk)
    report = vczstore.verify_removal(path, GONE)
    assert report.reasons == ("1 object holds an ID: a-copy-of-it",)
    assert "1 object belongs to no array; their bytes were searched" in report.not_checked


def test_every_kind_of_leftover_is_a_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "S0004.vcz", OLD)
    vczstore.remove(path, GONE, impl="zarr")
    group = zarr.open_group(path, mode="r+")
    group["call_FT"][5, 0] = "as S0001"
    group["call_GL"][7, 4, 1] = np.nan
    group["call_DP"][0:2, 1] = 0
    group.attrs["note"] = "without S0004"
    (path / "call_DP" / "c" / "0" / "9").write_bytes(b"x")
    (path / "of-S0001").write_bytes(b"")
    report = vczstore.verify_removal(path, GONE)
    assert report.reasons == (
        "2 objects hold an ID: call_FT/c/0/0, zarr.json",
        "an ID is part of the keys of 1 object",
        "an ID is in the strings of 1 array: call_FT",
        "removed samples have 3 values that are not missing, in call_DP, call_GL; vczstore repair (a name that holds "
        "an ID) makes them missing, where there is such a value",
        "1 chunk lies outside the shapes of the arrays, as a stopped append leaves them; run it again to complete it, "
        "or delete them",
    )
    assert report.store == "(a name that holds an ID)"


@pytest.mark.slow
def test_short_ids_and_parts_of_others_raise_no_false_alarm(tmp_path: Path) -> None:
    samples = ["1", "12", "NA12", "NA123", "xNA12", "chr1"]
    path = write(tmp_path / "store.vcz", some_arrays(samples))
    report = vczstore.verify_removal(path, ["1"])
    assert report.reasons == (f"1 ID is in sample_id now; vczstore remove {path}",)
    vczstore.remove(path, ["1", "NA12"], impl="zarr")
    report = vczstore.verify_removal(path, ["1", "NA12"])
    assert report.erased
    assert "1 ID of fewer than 4 bytes: looked for as whole sample IDs" in report.not_checked[0]
    # "NA12" within the remaining IDs "NA123" and "xNA12" is explained by them; here it is not
    (path / "note").write_text("NA12, NA123")
    assert vczstore.verify_removal(path, ["1", "NA12"]).reasons == ("1 object holds an ID: note",)
    # it may be a sample ID, so its location is reported
    vczstore.remove(path, "chr1", impl="zarr")
    (reason,) = vczstore.verify_removal(path, "chr1").reasons[:1]
    assert reason == "1 object holds an ID: contig_id/c/0"


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    ids=st.frozensets(st.text("abé", min_size=4, max_size=6), min_size=1, max_size=4),
    others=st.lists(st.text("abé", min_size=4, max_size=9), max_size=4),
    data=st.text("abé ", max_size=60),
)
def test_needles_are_found_where_no_other_id_explains_them(ids: frozenset[str], others: list[str], data: str) -> None:
    explained = [other for other in others if other not in ids]

    def is_explained(at: int, end: int) -> bool:
        return any(
            data.startswith(other, start) and start <= at and end <= start + len(other)
            for other in explained
            for start in range(len(data))
        )

    # of several matches at one position, the longest counts
    longest = {at: max((len(i) for i in ids if data.startswith(i, at)), default=0) for at in range(len(data))}
    expected = sum(n > 0 and not is_explained(at, at + n) for at, n in longest.items())
    assert _Needles(ids, others).count(data.encode()) == expected
    assert _Needles(ids, others).count(data.encode("utf-32-le")) == expected


@settings(max_examples=40, deadline=None)
@given(payload=st.binary(min_size=1, max_size=200), before=st.binary(max_size=20), after=st.binary(max_size=20))
def test_frames_are_found_wherever_they_lie(payload: bytes, before: bytes, after: bytes) -> None:
    for frame in (bytes(Zstd().encode(payload)), zlib.compress(payload, wbits=31)):
        assert payload in list(contents(before + frame + after))
        assert payload in list(contents(zlib.compress(before + frame + after, wbits=31)))
        assert list(contents(frame[:-1]))[:1] == [frame[:-1]]
    frame = bytes(Blosc(cname="lz4").encode(payload))
    assert payload in list(contents(frame))
    vector = len(frame).to_bytes(4, "little") + frame
    metadata = b"\0" * (4 * len(before)) + vector + after
    file = "ICE🧊CHUNK".encode() + bytes(27) + bytes(Zstd().encode(metadata))
    assert payload in list(contents(file))


@pytest.mark.slow
def test_old_versions_of_objects_are_detected(bucket: Place, s3_server: s3.S3Server) -> None:
    name = bucket.url.removeprefix("s3://").partition("/")[0]
    vczstore.remove(bucket.url, GONE, impl="zarr", **bucket.options)
    client = boto3.client("s3", endpoint_url=s3_server.endpoint, region_name="us-east-1")
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    vczstore.purge(bucket.url, **bucket.options)
    (reason,) = bucket.verify().reasons
    assert reason.startswith("the bucket keeps old versions of objects")
    # old versions can indeed be read
    assert client.list_object_versions(Bucket=name)["DeleteMarkers"]
    client.close()


@pytest.mark.slow
def test_a_store_that_changes_while_it_is_read(tmp_path: Path, s3_server: s3.S3Server) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert [tuple(item) for item in Objects.at(tmp_path, {}).read({"a": 3})] == [("a", b"abc", None)]
    url = s3_server.url(f"withdrawal-{uuid4().hex}")
    store = s3_server.objects(url)
    obstore.put(store, "a", b"abc")
    for objects in (Objects.at(tmp_path, {}), Objects.at(url, s3_server.options)):
        for sizes in ({"a": 2}, {"b": 3}):
            with pytest.raises(StaleError, match="was changed while it was read"):
                list(objects.read(sizes))


@pytest.mark.slow
def test_refusals_of_verify_removal(tmp_path: Path, local: Place) -> None:
    with pytest.raises(SampleError, match="verify-removal: no samples named"):
        vczstore.verify_removal(local.url, ["", ""])
    with pytest.raises(OptionError, match="a path or URL, not a LocalStore"):
        vczstore.verify_removal(zarr.storage.LocalStore(tmp_path / "plain.vcz"), GONE)  # type: ignore[arg-type]
    with pytest.raises(NotAStoreError, match="no such file"):
        vczstore.verify_removal(tmp_path / "nothing", GONE)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"report: .* cannot be made"):
        vczstore.verify_removal(local.url, GONE, report=tmp_path / "file")
    (tmp_path / "latin").write_bytes(b"\xe9\n")
    assert "no UTF-8 text" in run("verify-removal", local.url, "-S", tmp_path / "latin", status=2).stderr
    run("verify-removal", local.url, status=2)
    (tmp_path / "plain.vcz" / "call_FT" / "c" / "0" / "1").write_bytes(b"nonsense")
    with pytest.raises(DamagedStoreError, match=r"verify-removal: a chunk of call_FT in .* cannot be decoded"):
        vczstore.verify_removal(tmp_path / "plain.vcz", GONE)


@pytest.mark.slow
def test_a_snapshot_that_cannot_be_read_is_no_proof(local: Place) -> None:
    (manifest,) = [
        p
        for p in (Path(local.url) / "manifests").iterdir()
        if any(b"S0001" in text for text in contents(p.read_bytes()))
    ]
    vczstore.remove(local.url, GONE, impl="zarr")
    manifest.unlink()
    with pytest.raises(StorageError, match="not found"):
        local.verify()


@pytest.mark.parametrize(("kind", "versions"), [("gs", 3), ("az", 0), ("memory", 0)])
def test_object_stores_that_do_not_report_old_versions(kind: str, versions: int) -> None:
    look = _Look(frozenset(GONE), _Needles(frozenset(GONE), []))
    look.at_versions(kind, versions)
    assert look.reasons == []
    assert look.not_checked[0].startswith("old versions of objects, and objects deleted softly")


@pytest.mark.parametrize("kind", ["s3", "gs", "az"])
def test_uploads_that_were_never_completed_are_not_checked(kind: str) -> None:
    look = _Look(frozenset(GONE), _Needles(frozenset(GONE), []))
    look.at_versions(kind, 0)
    assert "uploads in parts that were begun and never completed" in [
        reason.partition(":")[0] for reason in look.not_checked
    ]


@pytest.mark.slow
def test_an_open_repository_can_be_purged(local: Place) -> None:
    vczstore.remove(local.url, GONE, impl="zarr")
    assert vczstore.purge(local.repository).snapshot
    assert local.verify().erased
    memory = IcechunkStore.in_memory("memory")
    assert vczstore.purge(memory.repository).counts["chunks deleted"] == 0
