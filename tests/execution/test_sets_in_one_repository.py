"""Sets of groups in one Icechunk repository: a single commit changes all parts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import obstore
import pytest
import zarr

import vczstore
from tests.support import cohort
from tests.support.clouds import Cloud
from tests.support.refusals import complain
from tests.support.small_stores import repository_of
from tests.system.survival.sets import PARTS, arrays_of, before
from vczstore.errors import ConflictError, IncompatibleError, StorageError, TagError
from vczstore.execution.sets import checking
from vczstore.jobs.results import SetJobResult
from vczstore.stores.icechunk import IcechunkTransaction
from vczstore.stores.icechunk_history import IcechunkHistory

pytestmark = pytest.mark.slow

STORE = "all.icechunk#{part}"
FIRST = {part: before(part) for part in PARTS}
APPENDED = {part: cohort.expected_append(before(part), arrays_of(part, cohort.ids(4, 3))) for part in PARTS}
REMOVED = {part: cohort.expected_remove(APPENDED[part], ["S0001"]) for part in PARTS}

SHARDED = (cohort.ids(11, 2), ["S0009", "S0011"])
"""IDs of the appended and of the updated samples."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a repository of two groups, and batches for them."""
    monkeypatch.chdir(tmp_path)
    for part in PARTS:
        cohort.write_vcz(Path("plain", part), before(part))
        cohort.write_vcz(Path("in", f"{part}.vcz"), arrays_of(part, cohort.ids(4, 3)))
    vczstore.copy_store_to_icechunk("plain/{part}", STORE)
    return tmp_path


def append(**options: Any) -> Any:
    return vczstore.append(STORE, "in/{part}.vcz", **{"impl": "zarr", **options})


def assert_holds(repository: icechunk.Repository, expected: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Assert that all groups have these arrays, read with zarr alone."""
    store = repository.readonly_session("main").store
    assert repository.list_branches() == {"main"}
    for part, arrays in expected.items():
        group = zarr.open_group(store, path=part, mode="r", use_consolidated=False)
        assert {name: np.asarray(group[name]).tolist() for name in arrays} == {n: a.tolist() for n, a in arrays.items()}


def commits(repository: icechunk.Repository) -> list[str]:
    return [info.message for info in repository.ancestry(branch="main")]


@pytest.mark.parametrize(("impl", "held"), [("zarr", checking.HELD), ("cubed", checking.HELD), ("xarray", 0)])
def test_an_edit_is_one_commit(folder: Path, impl: str, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "HELD", held)
    repository = repository_of(Path("all.icechunk"))
    assert_holds(repository, FIRST)
    n, was = len(commits(repository)), cohort.digest(Path("all.icechunk"))
    assert list(append(impl=impl, dry_run=True).parts) == [*PARTS]
    assert cohort.digest(Path("all.icechunk")) == was
    done = append(impl=impl)
    assert {part: result.counts["samples added"] for part, result in done.parts.items()} == dict.fromkeys(PARTS, 3)
    assert {result.snapshot for result in done.parts.values()} == {repository.lookup_branch("main")}
    assert_holds(repository, APPENDED)
    assert vczstore.remove(STORE, "S0001", impl=impl).retries == 0
    assert_holds(repository, REMOVED)
    assert commits(repository)[1] == "append: 1 source, 3 samples added (in chr1, chr2)"
    assert len(commits(repository)) == n + 2
    vczstore.compact(STORE, impl="zarr")
    assert_holds(repository, {part: cohort.expected_compact(REMOVED[part]) for part in PARTS})
    assert vczstore.verify(STORE).ok
    assert vczstore.info(STORE).errors == []


@pytest.mark.parametrize("impl", ["zarr", "cubed"])
def test_groups_with_shards(tmp_path: Path, impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partial updates of shards are read and written within the right group, so that no value is lost."""
    monkeypatch.chdir(tmp_path)
    arrays = {
        part: cohort.make_arrays(5, cohort.ids(0, 11), seed=i, fields=["call_DP"]) for i, part in enumerate(PARTS)
    }
    new, other = ({p: cohort.make_arrays(5, ids, seed=9, fields=["call_DP"]) for p in PARTS} for ids in SHARDED)
    for part in PARTS:
        cohort.write_vcz(Path("plain", part), arrays[part], shards=(1, 2))
        cohort.write_vcz(Path("in", f"{part}.vcz"), new[part], shards=(1, 2))
        cohort.write_vcz(Path("other", f"{part}.vcz"), other[part])
    vczstore.copy_store_to_icechunk("plain/{part}", STORE, impl=impl)
    repository = repository_of(Path("all.icechunk"))
    assert zarr.open_group(repository.readonly_session("main").store, mode="r")["chr1/call_DP"].shards == (4, 6)
    assert_holds(repository, arrays)
    append(impl=impl)
    expected = {part: cohort.expected_append(arrays[part], new[part]) for part in PARTS}
    assert_holds(repository, expected)
    vczstore.update(STORE, "other/{part}.vcz", impl=impl)
    expected = {part: cohort.expected_update(expected[part], other[part]) for part in PARTS}
    assert_holds(repository, expected)
    vczstore.remove(STORE, ["S0001", "S0010"], impl=impl)
    expected = {part: cohort.expected_remove(expected[part], ["S0001", "S0010"]) for part in PARTS}
    assert_holds(repository, expected)
    vczstore.compact(STORE, impl=impl)
    assert_holds(repository, {part: cohort.expected_compact(expected[part]) for part in PARTS})
    assert vczstore.verify(STORE).ok


def test_a_failure_in_one_part_leaves_all_parts_unchanged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = repository_of(Path("all.icechunk"))
    chunk = next(path for path in Path("in/chr2.vcz/call_DP/c").rglob("*") if path.is_file())
    content = chunk.read_bytes()
    chunk.write_bytes(b"none")
    n = len(commits(repository))
    complain(StorageError, ["in/chr2.vcz|chr2", "nothing was committed"], append)
    chunk.write_bytes(content)
    vczstore.remove("all.icechunk#chr2", "S0002", impl="zarr")
    complain(IncompatibleError, ["chr1 and chr2"], append)
    assert len(commits(repository)) == n + 1
    assert_holds(repository, {"chr1": FIRST["chr1"], "chr2": cohort.expected_remove(FIRST["chr2"], ["S0002"])})


def test_another_commit_in_between(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit to any group makes the set's operation plan again."""
    commit, calls = IcechunkTransaction.commit, list[str]()

    def commit_after_another(self: IcechunkTransaction, *arguments: Any) -> str:
        if not calls:
            calls.append("")
            session = self.store.repository.writable_session("main")
            zarr.open_group(session.store, mode="a").attrs["other"] = len(commits(self.store.repository))
            session.commit("another writer")
        return commit(self, *arguments)

    monkeypatch.setattr(IcechunkTransaction, "commit", commit_after_another)
    assert append().retries == 1
    assert_holds(repository_of(Path("all.icechunk")), APPENDED)
    calls.clear()
    complain(ConflictError, ["changed by another writer"], partial(vczstore.remove, STORE, "S0001", max_retries=0))
    assert_holds(repository_of(Path("all.icechunk")), APPENDED)


def test_tags_branches_and_jobs(folder: Path) -> None:
    repository = repository_of(Path("all.icechunk"))
    first = repository.lookup_branch("main")
    assert vczstore.tag(STORE, "release-1") == dict.fromkeys(PARTS, first)
    steps = "- append: in/{part}.vcz\n- remove: S0001\n- tag: release-2\n"
    Path("job.yaml").write_text(f"store: {STORE}\nexecutor: single-threaded\nsteps:\n{steps}")
    vczstore.plan_job("job.yaml")
    done = vczstore.run_job("job.yaml", ["branch=next", "keep={days: 30}"])
    assert isinstance(done, SetJobResult)
    assert [len(result.done) for result in done.parts.values()] == [1, 0]  # both parts share one history
    assert repository.lookup_tag("release-2") == repository.lookup_branch("next")
    vczstore.run("publish", STORE, "next")
    vczstore.run("branch", STORE, "next", delete=True)
    assert_holds(repository, REMOVED)
    assert vczstore.info(STORE).errors == []
    assert list(vczstore.gc(STORE).parts) == ["chr1"]
    assert vczstore.run_job("job.yaml").status == "nothing to do"


def test_a_job_that_was_killed_before_its_tags(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rerun tags the job's own commit, even if another commit came after it, as on a single store."""
    repository = repository_of(Path("all.icechunk"))
    Path("job.yaml").write_text(f"store: {STORE}\nsteps:\n- append: in/{{part}}.vcz\n- tag: release-1\n")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(IcechunkHistory, "create_tag", interrupt)
        with pytest.raises(KeyboardInterrupt):
            vczstore.run_job("job.yaml")
    assert_holds(repository, APPENDED)
    done = repository.lookup_branch("main")
    assert not repository.list_tags()
    vczstore.remove(STORE, "S0001")
    assert vczstore.run_job("job.yaml").status == "done"
    assert repository.lookup_tag("release-1") == done
    assert_holds(repository, REMOVED)
    assert vczstore.run_job("job.yaml").status == "nothing to do"


def test_history_is_shared_by_all_groups(folder: Path) -> None:
    """A purge deletes the history of all groups, and an ID that is still in another group is detected."""
    append()
    vczstore.tag(STORE, "release-1")
    vczstore.remove("all.icechunk#chr1", "S0001")
    complain(TagError, ["tags release-1 are of the whole repository"], partial(vczstore.purge, STORE, tags="recreate"))
    vczstore.purge("all.icechunk#chr1", tags="delete")
    assert not vczstore.verify_removal("all.icechunk#chr1", ["S0001"]).erased
    vczstore.remove("all.icechunk#chr2", "S0001", purge=True)
    assert [vczstore.verify_removal(f"all.icechunk#{part}", ["S0001"]).erased for part in PARTS] == [True, True]
    assert vczstore.repair(STORE, dry_run=True).errors == []
    result: Any = vczstore.gc(STORE, dry_run=True)
    assert (len(result.parts), result.notes) == (1, ["once, since it concerns all groups of the repository"])
    assert result.as_dict()["notes"] == result.notes
    assert_holds(repository_of(Path("all.icechunk")), REMOVED)
    vczstore.remove(STORE, "S0002", purge=True)
    assert [vczstore.verify_removal(f"all.icechunk#{part}", ["S0002"]).erased for part in PARTS] == [True, True]


def test_edits_of_one_group(folder: Path) -> None:
    """Edits, comparisons and restores of one group do not involve the others."""
    chr1, repository = "all.icechunk#chr1", repository_of(Path("all.icechunk"))
    vczstore.tag(chr1, "old")
    vczstore.append(chr1, "in/chr1.vcz", executor="processes", max_workers=1)
    assert_holds(repository, {"chr1": APPENDED["chr1"], "chr2": FIRST["chr2"]})
    vczstore.append("all.icechunk#chr2", "in/chr2.vcz")
    line = next(line for line in vczstore.diff(chr1, at="old").lines() if "samples" in line)
    assert line.split()[1:3] == ["3", "in,"]
    vczstore.run("restore", chr1, "old")
    assert_holds(repository, {"chr1": FIRST["chr1"], "chr2": APPENDED["chr2"]})


def test_in_a_bucket(s3_cloud: Cloud) -> None:
    cloud, options = s3_cloud, {"storage_options": s3_cloud.options}
    for part in PARTS:
        cloud.put(f"plain/{part}", before(part))
        cloud.put(f"in/{part}.vcz", arrays_of(part, cohort.ids(4, 3)))
    store = f"{cloud.url}/all.icechunk#{{part}}"
    vczstore.copy_store_to_icechunk(f"{cloud.url}/plain/{{part}}", store, **options)
    vczstore.append(store, f"{cloud.url}/in/{{part}}.vcz", impl="zarr", **options)
    repository = icechunk.Repository.open(cloud.storage("all.icechunk"))
    assert vczstore.tag(store, "r1", **options) == dict.fromkeys(PARTS, repository.lookup_branch("main"))
    vczstore.remove(store, "S0001", impl="zarr", **options)
    assert_holds(repository, REMOVED)
    assert vczstore.info(store, **options).errors == []
    top = {path.partition("/")[0] for path, _ in cloud.listing()}
    assert top == {"plain", "in", "all.icechunk", "all.icechunk.withdrawal-key"}
    assert obstore.head(cloud.objects(""), "all.icechunk.withdrawal-key")["size"] > 0
