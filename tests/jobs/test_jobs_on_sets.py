"""Jobs on sets of stores: branches, retention, notifications, and actions after the commits."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
import zarr

import vczstore
from plans.export import Export
from plans.publish import Publish
from tests.support import cohort, forks
from tests.support.command_line import fails
from tests.support.refusals import complain, mentions
from tests.support.small_stores import edit, read, repository_of, unchanged
from tests.support.stopped_sets import stop_between_parts
from tests.system.survival.sets import ARRAYS, PARTS, arrays_of, before, make
from vczstore.errors import (
    CheckError,
    Interrupted,
    OptionError,
    SampleError,
    StaleError,
    StorageError,
    TagError,
    UnsuitableError,
)
from vczstore.execution.results import Found
from vczstore.execution.sets.members import StoreSet
from vczstore.jobs.results import SetJobResult
from vczstore.stores.icechunk_history import IcechunkHistory

APPENDED = {part: cohort.expected_append(before(part), arrays_of(part, cohort.ids(4, 3))) for part in PARTS}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a set on Icechunk, and batches."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "icechunk")
    return tmp_path


def write(*steps: str, **keys: Any) -> Path:
    values = {"store": "set/{part}", "executor": "single-threaded"}
    values |= {key.replace("_", "-"): value for key, value in keys.items()}
    head = "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items())
    Path("job.yaml").write_text(f"{head}steps:\n" + "".join(f"- {step}\n" for step in steps))
    return Path("job.yaml")


def run(file: Path) -> SetJobResult:
    done = vczstore.run_job(file)
    assert isinstance(done, SetJobResult)
    return done


def samples(branch: str = "main") -> list[list[str]]:
    """The samples of all parts on a branch, read without vczstore."""
    stores = [repository_of(Path("set", part)).readonly_session(branch).store for part in PARTS]
    return [cohort.read_vcz(store)["sample_id"].tolist() for store in stores]


def metrics() -> dict[str, float]:
    """The values in the metrics file, by name, followed by the part if the value has one."""
    values = {}
    for line in Path("job.prom").read_text().splitlines():
        if not line.startswith("#"):
            name, labels, value = re.findall(r"vczstore_job_(\w+)\{(.*)\} (\S+)", line)[0]
            (part,) = re.findall(r'^job_file="[^"]+",store="[^"]+{part}"(?:,part="(\w+)")?$', labels)
            values[f"{name} {part}".strip()] = float(value)
    return values


HOOKS = {
    "on_success": ["sh", "-c", "cat > good.json; echo $VCZSTORE_STATUS > status"],
    "on_failure": ["sh", "-c", "cat > bad.json"],
    "metrics": "job.prom",
}


@pytest.mark.slow
def test_a_branch_of_all_parts(folder: Path) -> None:
    """The branch is created when the job has something to do, and readers see its commits after publishing."""
    file = write("append: in/{part}.vcz", "tag: batch-1", branch="night", keep={"days": 30}, **HOOKS)
    vczstore.plan_job(file)
    assert [repository_of(Path("set", part)).list_branches() for part in PARTS] == [{"main"}] * 2
    done = run(file)
    assert samples() == [cohort.ids(0, 4)] * 2
    assert samples("night") == [cohort.ids(0, 7)] * 2
    for part, result in done.parts.items():
        repository = repository_of(Path("set", part))
        assert repository.list_branches() == {"main", "night"}
        assert result.snapshot == repository.lookup_branch("night") == repository.lookup_tag("batch-1")
        assert [action.operation.called for action in result.done] == ["gc"]
    report = json.loads(Path("good.json").read_text())
    assert (report["job"]["status"], Path("status").read_text()) == ("done", "done\n")
    assert [part["steps"][0]["counts"]["samples added"] for part in report["parts"].values()] == [3, 3]
    values = metrics()
    assert (values["success"], values["samples_added chr1"], values["samples_added chr2"]) == (1, 3, 3)
    assert "samples_added" not in values
    assert [result.results for result in run(file).parts.values()] == [()] * 2
    assert metrics()["samples_added chr1"] == 0
    vczstore.run("publish", "set/{part}", "night")
    for part in PARTS:
        assert {name: array.tolist() for name, array in read(Path("set", part)).items() if name in APPENDED[part]} == {
            name: array.tolist() for name, array in APPENDED[part].items()
        }


@pytest.mark.slow
def test_a_job_on_a_branch_that_was_stopped_between_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("append: in/{part}.vcz", branch="night", **HOOKS)
    stop_between_parts(monkeypatch, lambda: run(file))
    report = json.loads(Path("bad.json").read_text())
    assert [report["job"]["status"], *(part["job"]["status"] for part in report["parts"].values())] == ["failed"] * 3
    mentions(report["job"]["error"], ["is done in chr1, and not in chr2"])
    assert metrics()["success"] == 0
    mentions("; ".join(vczstore.info("set/{part}").errors), ["is done in chr1, and not in chr2"])
    assert samples("night") == [cohort.ids(0, 7), cohort.ids(0, 4)]
    assert run(file).completed == ("chr2",)
    assert samples("night") == [cohort.ids(0, 7)] * 2
    assert samples() == [cohort.ids(0, 4)] * 2
    assert json.loads(Path("good.json").read_text())["job"]["status"] == "nothing to do"


def test_a_job_that_fails_before_it_writes_leaves_no_branch(folder: Path) -> None:
    complain(SampleError, ["not in the store|no sample"], lambda: run(write("remove: S0999", branch="night", **HOOKS)))
    assert json.loads(Path("bad.json").read_text())["job"]["status"] == "failed"
    assert [repository_of(Path("set", part)).list_branches() for part in PARTS] == [{"main"}] * 2


@pytest.mark.slow
def test_a_part_whose_history_cannot_be_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect, parts = IcechunkHistory.collect_garbage, list[str]()

    def fail(self: IcechunkHistory, **options: Any) -> Any:
        parts.append(self.label.rpartition("/")[2])
        if len(parts) == 1:
            raise StorageError("gc: objects could not be deleted")
        return collect(self, **options)

    monkeypatch.setattr(IcechunkHistory, "collect_garbage", fail)
    words = [
        "gc: objects could not be deleted; gc is done in chr2, and not in chr1; what the steps of the job do is done"
    ]
    complain(StorageError, words, lambda: run(write("append: in/{part}.vcz", keep={"days": 30}, **HOOKS)))
    assert parts == [*PARTS]
    assert samples() == [cohort.ids(0, 7)] * 2
    values = metrics()
    assert (values["success"], values["samples_added chr2"]) == (0, 3)


def stored_call(value: int) -> Callable[[zarr.Group], None]:
    """Set the depth of a removed sample; `verify` reports it unless it is missing."""

    def change(group: zarr.Group) -> None:
        depth = group["call_DP"]
        assert isinstance(depth, zarr.Array)
        depth[0, 1] = value

    return change


CHECKED = ("append: in/{part}.vcz", "verify: true", "check: {min-samples: 5}", "tag: batch-1")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["icechunk", "format3"])
def test_checks_of_all_parts_come_before_any_tag(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "format3":
        make(folder / kind, kind)
        monkeypatch.chdir(kind)
    vczstore.remove("set/{part}", ["S0001"], impl="zarr")
    edit(Path("set/chr2"), stored_call(7))
    steps = CHECKED[:3] if kind == "format3" else CHECKED
    file = write(*steps, **HOOKS)
    words = fails("run", file, "--report", "report")
    error = "chr2: call_DP c/0/0: has values of removed samples, at 1; vczstore repair makes them missing"
    assert words == f"verify: set/{{part}}: {error}; what the steps of the job do is done in all parts"
    present = [[*cohort.ids(0, 1), "", *cohort.ids(2, 5)]] * 2
    assert [read(Path("set", part))["sample_id"].tolist() for part in PARTS] == present
    for report in (json.loads(Path("bad.json").read_text())["parts"][part] for part in PARTS):
        assert [action["operation"] for action in report["job"]["after"]] == ["verify"]
        assert report["job"]["tags"] == []
        assert report["steps"][0]["counts"]["samples added"] == 3
    assert json.loads(Path("report/chr1/report.json").read_text())["job"]["status"] == "failed"
    was = cohort.digest(Path("set"))
    mentions(fails("run", file), ["^verify: .*chr2: call_DP c/0/0"])
    assert cohort.digest(Path("set")) == was
    edit(Path("set/chr2"), stored_call(-1))
    done = run(file)
    for part, result in done.parts.items():
        assert [action.operation.called for action in result.done] == ["verify", "check"]
        assert (result.results, result.status) == ((), "done")
        if kind == "icechunk":
            repository = repository_of(Path("set", part))
            (appended,) = (s for s in repository.ancestry(branch="main") if s.message.startswith("run: append"))
            assert {name: repository.lookup_tag(name) for name in repository.list_tags()} == {"batch-1": appended.id}
            assert result.snapshot == appended.id


@pytest.mark.slow
def test_checks_and_tags_of_groups_of_one_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "groups")
    file = write(*CHECKED, store="set/all.icechunk#{part}")
    run(file)
    repository = repository_of(Path("set/all.icechunk"))
    assert repository.lookup_tag("batch-1") == repository.lookup_branch("main")
    assert run(file).status == "done"  # because of its checks
    edit(Path("set/all.icechunk"), lambda group: group.attrs.update(changed=True))
    file.write_text(file.read_text().replace("batch-1", "batch-2"))
    run(file)
    tags = {name: repository.lookup_tag(name) for name in repository.list_tags()}
    assert tags == {"batch-1": tags["batch-1"], "batch-2": repository.lookup_branch("main")}


@pytest.mark.slow
def test_a_run_that_was_stopped_between_its_tags(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create, labels, file = IcechunkHistory.create_tag, list[str](), write(*CHECKED)

    def stop(self: IcechunkHistory, *arguments: str) -> str:
        labels.append(self.label)
        if len(labels) == 2:
            raise KeyboardInterrupt
        return create(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(IcechunkHistory, "create_tag", stop)
        words = r"^run: interrupted; tag \(batch-1\) is done in chr1, and not in chr2; .*; what .* done in all parts$"
        with pytest.raises(Interrupted, match=words):
            run(file)
    tagged = [repository_of(Path("set", part)).list_tags() for part in PARTS]
    assert tagged == [{"batch-1"}, set()]
    complain(StaleError, ["run it again, or vczstore repair"], lambda: vczstore.remove("set/{part}", ["S0002"]))
    run(file)
    for repository in (repository_of(Path("set", part)) for part in PARTS):
        assert repository.lookup_tag("batch-1") == repository.lookup_branch("main")
    assert not vczstore.info("set/{part}").errors


@pytest.mark.slow
def test_storage_that_fails_when_tags_are_created(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_tags = IcechunkHistory.tags

    def fail(self: IcechunkHistory) -> dict[str, str]:
        if any(frame.function == "tag_states" for frame in inspect.stack()):
            raise icechunk.IcechunkError("connection reset")
        return read_tags(self)

    monkeypatch.setattr(IcechunkHistory, "tags", fail)
    file = write("append: in/{part}.vcz", "check: {min-samples: 5}", "tag: batch-1", **HOOKS)
    words = ["set/{part}: cannot be read .*connection reset.*; what the steps of the job do is done in all parts$"]
    complain(StorageError, words, lambda: vczstore.run_job(file, report="report"))
    for report in (json.loads(Path(f"report/{part}/report.json").read_text()) for part in PARTS):
        assert (report["job"]["status"], report["job"]["tags"]) == ("failed", [])


@pytest.mark.slow
@pytest.mark.parametrize("part", ["{part}", "chr1"])
def test_an_interrupt_after_the_steps_are_committed(folder: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("plans.verify.Verify.perform", stop)
    file = write(f"append: in/{part}.vcz", "verify: true", "tag: batch-1", store=f"set/{part}", **HOOKS)
    words = r"^(run|verify): interrupted; .*what the steps of the job do is (committed|done in all parts)$"
    with pytest.raises(Interrupted, match=words):
        vczstore.run_job(file, report="report")
    path = Path("report", "report.json" if part == "chr1" else "chr1/report.json")
    report, notified = json.loads(path.read_text())["job"], json.loads(Path("bad.json").read_text())
    assert (report["status"], report["snapshot"], report["tags"]) == ("failed", tips()[0], [])
    assert (notified["job"]["status"], notified["job"]["error"]) == ("failed", report["error"])


PUBLISHED = ("append: in/{part}.vcz", "verify: true", "publish: night", "tag: batch-1")


def tips(branch: str = "main") -> list[str]:
    return [repository_of(Path("set", part)).lookup_branch(branch) for part in PARTS]


def tags() -> list[dict[str, str]]:
    repositories = [repository_of(Path("set", part)) for part in PARTS]
    return [{name: r.lookup_tag(name) for name in sorted(r.list_tags())} for r in repositories]


@pytest.mark.slow
def test_all_parts_are_published_after_the_checks(folder: Path) -> None:
    checks = write(*PUBLISHED[:2], "check: {max-samples: 6}", *PUBLISHED[2:], branch="night")
    failed = r"chr1: the number .* is 7, more.*; chr2: .*done in all parts on the branch night, and not published$"
    complain(CheckError, [failed], lambda: run(checks))
    assert (samples(), samples("night"), tags()) == ([cohort.ids(0, 4)] * 2, [cohort.ids(0, 7)] * 2, [{}] * 2)
    vczstore.publish("set/chr1", "night")  # one part only: the job publishes the other
    done = run(write(*PUBLISHED, branch="night"))
    assert samples() == [cohort.ids(0, 7)] * 2
    assert tips() == tips("night") == [result.snapshot for result in done.parts.values()]
    assert tags() == [{"batch-1": tip} for tip in tips()]
    for result in done.parts.values():
        assert [action.operation.called for action in result.done] == ["verify", "publish"]
    again = run(write(*PUBLISHED, branch="night"))
    assert (again.status, [result.done for result in again.parts.values()]) == ("nothing to do", [()] * 2)


@pytest.mark.slow
def test_no_part_is_published_if_main_of_one_has_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, publish = write(*PUBLISHED, branch="night"), Publish.perform_set

    def change_main_then_publish(self: Publish, group: StoreSet, *, dry_run: bool) -> Found:
        edit(Path("set/chr2"), lambda group: group.attrs.update(changed=True))
        return publish(self, group, dry_run=dry_run)

    with monkeypatch.context() as patch:
        patch.setattr(Publish, "perform_set", change_main_then_publish)
        words = ["set/chr2: the branch night has diverged from main", "night, and not published"]
        complain(StaleError, words, lambda: run(file))
    assert (samples(), samples("night"), tags()) == ([cohort.ids(0, 4)] * 2, [cohort.ids(0, 7)] * 2, [{}] * 2)
    with unchanged(*(Path("set", part) for part in PARTS)):
        complain(StaleError, ["set/chr2: the branch night has diverged"], lambda: run(file))
    assert not vczstore.info("set/{part}").errors


KILLED = """
import os, signal, vczstore
from vczstore.stores.icechunk_history import IcechunkHistory
seen, publish = [], IcechunkHistory.publish
def kill(self, *arguments):
    seen.append(arguments)
    if len(seen) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return publish(self, *arguments)
IcechunkHistory.publish = kill
vczstore.run_job("job.yaml")
"""
"""Both parts are committed; the process is killed before the second one is published, or its compaction is visible."""


def kill_job(code: str = KILLED) -> None:
    done = subprocess.run([forks.program("python"), "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("completes", ["run", "repair"])
def test_a_job_that_is_killed_before_the_second_part_is_published(folder: Path, completes: str) -> None:
    file = write(*PUBLISHED, branch="night")
    kill_job()
    complain(StaleError, ["is done in chr1, and not in chr2"], lambda: vczstore.remove("set/{part}", ["S0002"]))
    assert (samples(), tags()) == ([cohort.ids(0, 7), cohort.ids(0, 4)], [{}] * 2)
    if completes == "repair":
        assert vczstore.run("repair", "set/{part}").ok
        assert samples() == [cohort.ids(0, 7)] * 2
    done = run(file)
    assert done.completed == (() if completes == "repair" else ("chr2",))
    assert samples() == [cohort.ids(0, 7)] * 2
    assert tags() == [{"batch-1": tip} for tip in tips()]
    assert not [*Path("set").glob(".*json")]


LEFT = [*cohort.ids(0, 1), *cohort.ids(2, 5)]
"""The samples after the job has appended a batch, removed a sample and compacted the parts."""
ALL_STEPS = (
    *("append: in/{part}.vcz", "remove: S0001", "compact: true", "verify: true", "tag: batch-1"),
    *("export: out/{part}.vcz", "purge: true", "gc: true"),
)


def exported() -> list[dict[str, list[Any]]]:
    exports = [cohort.read_vcz(Path("out", f"{part}.vcz")) for part in PARTS]
    return [{name: array.tolist() for name, array in arrays.items() if name in ARRAYS} for arrays in exports]


def expected() -> list[dict[str, list[Any]]]:
    kept = np.array([0, *range(2, 7)])
    return [
        {
            name: array[kept].tolist()
            if name == "sample_id"
            else array[:, kept].tolist()
            if name == "call_DP"
            else array.tolist()
            for name, array in APPENDED[part].items()
        }
        for part in PARTS
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["icechunk", "groups"])
def test_all_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, kind)
    store = "set/all.icechunk#{part}" if kind == "groups" else "set/{part}"
    branch, published = ({"branch": "night"}, ["publish: night"]) if kind == "groups" else ({}, [])
    steps = [*ALL_STEPS[:4], *published, *ALL_STEPS[4:]]
    done = run(write(*steps, store=store, **branch))
    assert exported() == expected()
    called = ["compact", "verify", *(["publish"] * bool(published)), "export", "purge", "gc"]
    first, second = done.parts.values()
    assert [action.operation.called for action in first.done] == called
    assert len(second.done) == len(called) - 2 * (kind == "groups")  # groups share the repository's history
    assert vczstore.verify_removal(store, ["S0001"]).ok
    places = [Path("set/all.icechunk")] if kind == "groups" else [Path("set", part) for part in PARTS]
    for place in places:
        repository = repository_of(place)
        assert repository.list_branches() == {"main", *branch.values()}
        tagged = repository.readonly_session(tag="batch-1").store
        top = zarr.open_group(tagged, path="chr2" if kind == "groups" else None, mode="r")
        assert np.asarray(top["sample_id"]).tolist() == LEFT
    if kind == "icechunk":  # a completed job is run again, every night
        again = run(write(*steps, store=store))
        assert again.status == "done"  # because of its check
        assert [result.snapshot for result in again.parts.values()] == tips()
    if kind == "icechunk":  # a job without a check
        assert run(write("remove: S0001", "compact: true", "tag: batch-1", store=store)).status == "nothing to do"
        assert samples() == [LEFT] * 2


class Killed(BaseException):
    """Ends a run like a kill, because no code catches it."""


@pytest.mark.slow
def test_groups_whose_job_is_killed_between_compaction_and_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "groups")
    file = write(*ALL_STEPS[:3], "tag: batch-1", store="set/all.icechunk#{part}")

    def kill(*_arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("vczstore.jobs.sets.tag_states", kill)
        with pytest.raises(Killed):
            run(file)
    run(file)
    repository = repository_of(Path("set/all.icechunk"))
    assert repository.lookup_tag("batch-1") == repository.lookup_branch("main")
    tagged = zarr.open_group(repository.readonly_session(tag="batch-1").store, path="chr2", mode="r")
    assert np.asarray(tagged["sample_id"]).tolist() == LEFT


@pytest.mark.slow
def test_all_steps_of_plain_zarr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "format3")
    file = write("append: in/{part}.vcz", "compact: true")
    words = [r"^compact: \S*set/{part} is plain Zarr.*leave the step out, and run: vczstore compact '\S*set/{part}'$"]
    with unchanged(Path("set")):
        complain(UnsuitableError, words, lambda: run(file))
    done = run(write(*(step for step in ALL_STEPS if not step.startswith(("compact", "tag")))))
    assert exported() == expected()
    for result in done.parts.values():
        assert [action.operation.called for action in result.done] == ["verify", "export", "purge", "gc"]


@pytest.mark.slow
def test_a_job_that_is_killed_before_the_second_part_is_compacted(folder: Path) -> None:
    file = write(*ALL_STEPS)
    kill_job()
    complain(StaleError, ["is done in chr1, and not in chr2"], lambda: vczstore.remove("set/{part}", ["S0002"]))
    removed = [*cohort.ids(0, 1), "", *cohort.ids(2, 5)]
    assert (samples(), tags(), Path("out").exists()) == ([LEFT, removed], [{}] * 2, False)
    shutil.copytree("set", "repaired/set")
    assert vczstore.run("repair", "repaired/set/{part}").ok
    assert [read(Path("repaired/set", part))["sample_id"].tolist() for part in PARTS] == [LEFT] * 2
    assert run(file).completed == ("chr2",)
    assert (samples(), exported()) == ([LEFT] * 2, expected())
    assert [[*names] for names in tags()] == [["batch-1"]] * 2
    assert vczstore.verify_removal("set/{part}", ["S0001"]).ok
    assert not [*Path("set").glob(".*json")]


@pytest.mark.slow
def test_a_job_that_is_killed_before_the_second_part_is_purged(folder: Path) -> None:
    file = write("remove: S0001", "purge: true", "gc: true")
    kill_job(KILLED.replace("publish", "purge").replace("== 4", "== 2").replace("*arguments", "**arguments"))
    assert [vczstore.verify_removal(f"set/{part}", ["S0001"]).ok for part in PARTS] == [True, False]
    run(file)
    assert vczstore.verify_removal("set/{part}", ["S0001"]).ok


def test_later_actions_are_checked_for_all_parts_before_the_first_commit(folder: Path) -> None:
    vczstore.tag("set/chr2", "pinned")
    cohort.write_vcz(Path("out/chr2.vcz"), before("chr2"))
    with unchanged(*(Path("set", part) for part in PARTS), Path("out/chr2.vcz")):
        words = ["older snapshots are kept by the tag pinned; nothing was done"]
        complain(TagError, words, lambda: run(write("append: in/{part}.vcz", "purge: true")))
        words = ["^export: .*out/chr2.vcz"]
        complain(UnsuitableError, words, lambda: run(write("append: in/{part}.vcz", "export: out/{part}.vcz")))
        words = ["export: .*set/{part}.vcz would be taken for parts of .*set/{part}; name another folder"]
        complain(UnsuitableError, words, lambda: run(write("append: in/{part}.vcz", "export: set/{part}.vcz")))
        words = ["export: .*out/all.vcz would be the same for all parts of"]
        complain(OptionError, words, lambda: run(write("append: in/{part}.vcz", "export: out/all.vcz")))


@pytest.mark.slow
def test_an_export_that_fails_in_a_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, write_vcz = write("append: in/{part}.vcz", "export: out/{part}.vcz", "gc: true"), Export._write

    def fail(self: Export, *arguments: Any, **options: Any) -> Any:
        if str(self.out).endswith("chr1.vcz"):
            raise OSError(28, "No space left on device")
        return write_vcz(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Export, "_write", fail)
        words = [
            "No space left.*; export is done in chr2, and not in chr1; what the steps of the job do is done in all"
        ]
        complain(StorageError, words, lambda: run(file))
    assert samples() == [cohort.ids(0, 7)] * 2
    run(file)
    assert [arrays["sample_id"] for arrays in exported()] == [cohort.ids(0, 7)] * 2


PLAIN: list[tuple[dict[str, Any], list[str]]] = [
    ({"branch": "night"}, ["plain Zarr"]),
    ({"keep": {"days": 30}}, ["gc", "plain Zarr"]),
]


@pytest.mark.parametrize(("keys", "words"), PLAIN)
def test_plain_zarr_has_no_branches_and_no_retention(folder: Path, keys: dict[str, Any], words: list[str]) -> None:
    make(folder / "plain", "format3")
    was = cohort.digest(folder / "plain")
    file = write("append: in/{part}.vcz", store="plain/set/{part}", **keys)
    complain(TagError, words, lambda: run(file))
    assert cohort.digest(folder / "plain") == was
