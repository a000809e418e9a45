"""Branches: changes are visible on the branch only, until it is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
import zarr

import vczstore
from plans.core.model import Plan
from tests.support import cohort
from tests.support.command_line import run
from tests.support.small_stores import repository_of
from vczstore.errors import BusyError, ConflictError, OptionError, StaleError, TagError, UnsuitableError
from vczstore.execution import engine, operations
from vczstore.execution.options import Options
from vczstore.stores.resolve import open_store

FIELDS = ("call_genotype",)
OLD = cohort.make_arrays(6, cohort.ids(0, 3), fields=FIELDS)
NEW = cohort.make_arrays(6, cohort.ids(3, 2), fields=FIELDS)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    cohort.write_icechunk(tmp_path / "store", OLD)
    cohort.write_vcz(tmp_path / "batch.vcz", NEW)
    return tmp_path / "store"


def one_object(*arguments: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run(*arguments, "--json").stdout)
    return document


def samples(repo: Path, branch: str = "main") -> list[str]:
    """The sample IDs on a branch, as Icechunk and zarr read them."""
    repository = repository_of(repo)
    ids = zarr.open_group(repository.readonly_session(branch).store, mode="r")["sample_id"]
    return [str(sample) for sample in np.asarray(ids)]


@pytest.mark.slow
def test_append_on_a_branch_inspect_and_publish_it(repo: Path, tmp_path: Path) -> None:
    before = one_object("info", repo)
    head = before["snapshot"]
    assert run("branch", repo, "night").stdout == f"branch night begins at {head}\n"
    run("append", repo, tmp_path / "batch.vcz", "--branch", "night")
    assert one_object("info", repo) | {"stored_bytes": 0} == before | {"stored_bytes": 0}
    assert samples(repo) == cohort.ids(0, 3)
    assert samples(repo, "night") == cohort.ids(0, 5)
    on_branch = one_object("info", repo, "--branch", "night")
    assert (on_branch["samples"], on_branch["branch"]) == (5, "night")
    assert one_object("branch", repo) == {"main": head, "night": on_branch["snapshot"]}
    assert len(list(vczstore.log(repo, branch="night"))) == len(list(vczstore.log(repo))) + 1
    assert vczstore.tag(repo, "candidate", branch="night") == on_branch["snapshot"]
    assert vczstore.verify(repo, branch="night").snapshot == on_branch["snapshot"]
    stdout = run("publish", repo, "night").stdout
    assert stdout.endswith(f"main has 1 snapshot of the branch night now, snapshot {on_branch['snapshot']}\n")
    assert samples(repo) == cohort.ids(0, 5)
    assert "nothing to do" in run("publish", repo, "night").stdout
    vczstore.delete_tag(repo, "candidate")
    assert vczstore.branch(repo, "night", delete=True).lost == 0


@pytest.mark.slow
def test_a_branch_that_has_diverged_from_main_is_not_published(repo: Path, tmp_path: Path) -> None:
    """Samples removed from main would come back. Neither branch moves, and the error names both snapshots."""
    vczstore.branch(repo, "night")
    vczstore.append(repo, tmp_path / "batch.vcz", branch="night")
    vczstore.remove(repo, "S0001")
    tips = vczstore.branch(repo).branches
    with pytest.raises(StaleError, match=f"main is at {tips['main']}, night at {tips['night']}; nothing was published"):
        vczstore.publish(repo, "night")
    assert vczstore.branch(repo).branches == tips
    for tags in ("refuse", "recreate"):
        with pytest.raises(TagError, match=r"older snapshots are kept by the branch night; nothing was done"):
            vczstore.purge(repo, tags=tags)
    assert vczstore.branch(repo).branches == tips
    assert not vczstore.verify_removal(repo, ["S0001"]).erased
    assert vczstore.branch(repo, "night", delete=True).lost == 1
    vczstore.purge(repo)
    assert vczstore.verify_removal(repo, ["S0001"]).erased


def test_a_branch_at_the_head_of_main_keeps_samples_removed_later(repo: Path) -> None:
    """The branch holds no older data, so a purge is allowed; but it would keep samples that are removed afterwards."""
    vczstore.branch(repo, "idle")
    vczstore.purge(repo)
    with pytest.raises(TagError, match="the branch idle"):
        vczstore.remove(repo, "S0001", purge=True)
    assert samples(repo) == cohort.ids(0, 3)


@pytest.mark.parametrize("sweep", ["gc", "purge"])
def test_a_branch_can_be_published_after_main_was_swept(repo: Path, tmp_path: Path, sweep: str) -> None:
    vczstore.branch(repo, "night")
    if sweep == "purge":
        vczstore.purge(repo)
        vczstore.append(repo, tmp_path / "batch.vcz", branch="night")
    else:
        vczstore.append(repo, tmp_path / "batch.vcz", branch="night")
        vczstore.gc(repo)
    assert vczstore.publish(repo, "night").published == 1
    cohort.assert_same(cohort.read_vcz(cohort.icechunk_store(repo)), cohort.expected_append(OLD, NEW))
    assert vczstore.verify(repo).ok


def sweep_once(repo: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run gc once, right before a commit on the branch, as may happen where no file lock serialises commits."""
    commit, swept = icechunk.Session.commit, list[str]()

    def commit_late(session: icechunk.Session, *args: Any, **kwargs: Any) -> str:
        if not swept and session.branch == "night":
            swept.append("night")
            vczstore.gc(repo, no_lock=True)
        return commit(session, *args, **kwargs)

    monkeypatch.setattr(icechunk.Session, "commit", commit_late)
    return swept


def test_a_commit_whose_chunks_were_swept_is_undone(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gc deletes the chunks of a pending commit: the branch is reset, and the operation is retried."""
    start = vczstore.branch(repo, "night").branches["night"]
    plan = vczstore.plan("append", repo, tmp_path / "batch.vcz", branch="night")
    assert isinstance(plan, Plan)
    sweep_once(repo, monkeypatch)
    with pytest.raises(ConflictError, match="garbage was collected while this ran"):
        engine.run_compiled(plan, Options(no_lock=True))
    assert vczstore.branch(repo).branches["night"] == start
    monkeypatch.undo()
    swept = sweep_once(repo, monkeypatch)
    done = vczstore.append(repo, tmp_path / "batch.vcz", branch="night", no_lock=True)
    assert (swept, done.retries) == (["night"], 1)
    assert vczstore.verify(repo, branch="night").ok
    assert samples(repo, "night") == cohort.ids(0, 5)


def test_a_branch_is_not_written_to_while_main_is_swept(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vczstore.branch(repo, "night")
    count = icechunk.Repository.garbage_collect

    def fail(self: icechunk.Repository, *arguments: Any, dry_run: bool, **options: Any) -> Any:
        return count(self, *arguments, dry_run=True, **options) if dry_run else 1 / 0

    monkeypatch.setattr(icechunk.Repository, "garbage_collect", fail)
    with pytest.raises(ZeroDivisionError):
        vczstore.gc(repo)
    monkeypatch.undo()
    for write in (
        lambda: vczstore.append(repo, tmp_path / "batch.vcz", branch="night"),
        lambda: vczstore.publish(repo, "night"),
    ):
        with pytest.raises(BusyError, match="being swept by gc"):
            write()
    vczstore.gc(repo)
    vczstore.append(repo, tmp_path / "batch.vcz", branch="night")
    assert samples(repo, "night") == cohort.ids(0, 5)


def test_gc_without_garbage_commits_nothing(repo: Path) -> None:
    """But an interrupted collection is completed, even if nothing is left to delete."""
    assert vczstore.gc(repo).snapshot is not None
    before = repository_of(repo).lookup_branch("main")
    done = vczstore.gc(repo)
    assert (done.committed, done.snapshot, done.unchanged) == (True, None, True)
    repository = repository_of(repo)
    assert repository.lookup_branch("main") == before
    session = repository.writable_session("main")
    session.commit("gc: begun", metadata={"vczstore": {"operation": "gc begun"}}, allow_empty=True)
    assert vczstore.gc(repo).snapshot is not None
    assert vczstore.gc(repo).snapshot is None


def test_branch_options_that_are_refused(repo: Path, tmp_path: Path) -> None:
    batch = tmp_path / "batch.vcz"
    before = cohort.digest(tmp_path)
    for location in (batch, zarr.storage.LocalStore(batch)):
        with pytest.raises(UnsuitableError, match=r"--branch night: .* is plain Zarr, which has no branches"):
            vczstore.info(location, branch="night")
    for name in ("append", "compact"):
        with pytest.raises(UnsuitableError, match="plain Zarr, which has no branches"):
            vczstore.run(name, batch, *[repo] * (name == "append"), branch="night")
    for operation in (vczstore.branch, vczstore.publish):
        with pytest.raises(TagError, match=r"plain Zarr, which has no branches; vczstore copy-store-to-icechunk"):
            operation(batch, "night")
    with pytest.raises(TagError, match="has no branch 'night'; make it with: vczstore branch"):
        vczstore.append(repo, batch, branch="night")
    for name, more in {"purge": (), "gc": (), "create": (batch,), "branch": (), "verify-removal": (["S1"],)}.items():
        with pytest.raises(OptionError, match=f"{name}: takes no branch, found --branch night"):
            vczstore.run(name, repo, *more, branch="night")
    for arguments, words in {
        ("main",): "already",
        ("a/b",): "no name for a branch",
        ("x", "none"): "has no tag, branch or snapshot 'none'",
    }.items():
        with pytest.raises(TagError, match=words):
            vczstore.branch(repo, arguments[0], at=(*arguments, None)[1])
    with pytest.raises(TagError, match="main is the branch that readers see"):
        vczstore.branch(repo, "main", delete=True)
    session = repository_of(repo).readonly_session("main")
    with pytest.raises(UnsuitableError, match="session sees one branch"):
        open_store(session.store, branch="main")
    assert cohort.digest(tmp_path) == before


def test_names_of_internal_branches_are_reserved(repo: Path) -> None:
    repository = repository_of(repo)
    repository.create_branch("vczstore-set-PART-0", repository.lookup_branch("main"))
    assert list(vczstore.branch(repo).branches) == ["main"]
    for call in (vczstore.branch, vczstore.publish):
        with pytest.raises(TagError, match="begins with vczstore-"):
            call(repo, "vczstore-set-PART-0")
    for tags in ("refuse", "delete", "recreate"):
        with pytest.raises(StaleError, match=r"a set called PART .*vczstore repair"):
            vczstore.purge(repo, tags=tags)


def test_no_branch_or_tag_is_made_while_a_purge_is_incomplete(repo: Path) -> None:
    repository = repository_of(repo)
    session = repository.writable_session("main")
    session.commit("purge: begun", metadata={"vczstore": {"operation": "purge begun"}}, allow_empty=True)
    for call in (vczstore.branch, vczstore.tag):
        with pytest.raises(BusyError, match="vczstore purge"):
            call(repo, "r1")
    vczstore.purge(repo)
    assert vczstore.tag(repo, "r1")
    confirmation = operations.find("remove")(store=repo, samples=("S0001",), purge=True, tags="delete").to_confirm
    assert confirmation is not None
    assert confirmation.perform(Options(), dry_run=True).names == ("r1",)
