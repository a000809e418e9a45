"""Actions of jobs after their steps are committed, also on branches: checks, publishing and cleaning up."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import vczstore
from tests.support import cohort
from tests.support.command_line import fails, run
from tests.support.small_stores import repository_of
from vczstore.errors import CheckError, JobFileError, StaleError, TagError, UnsuitableError
from vczstore.jobs.run import JobResult, plan_job, run_job

FIELDS = ("call_genotype",)
OLD = cohort.make_arrays(6, cohort.ids(0, 3), fields=FIELDS)
NIGHTLY = "branch: night"


@dataclass(frozen=True)
class Place:
    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def tips(self) -> dict[str, str]:
        return dict(vczstore.branch(self.store).branches)

    def batch(self, name: str, first: int, *, called: bool = True) -> dict[str, np.ndarray]:
        arrays = cohort.make_arrays(6, cohort.ids(first, 2), seed=first, fields=FIELDS)
        if called:
            arrays["call_genotype"] = np.maximum(arrays["call_genotype"], 0)
        else:
            arrays["call_genotype"][:4, 1] = -1
        cohort.write_vcz(self.folder / "inbox" / name, arrays)
        return arrays

    def write(self, *steps: str, head: str = NIGHTLY) -> Path:
        file = self.folder / "job.yaml"
        file.write_text(f"store: store\n{head}\nsteps:\n" + "".join(f"- {step}\n" for step in steps))
        return file

    def run(self, *steps: str, head: str = NIGHTLY, **more: Any) -> JobResult:
        return run_job(self.write(*steps, head=head), **more)

    def samples(self, branch: str = "main") -> list[str]:
        repository = repository_of(self.store)
        ids = zarr.open_group(repository.readonly_session(branch).store, mode="r")["sample_id"]
        return [str(sample) for sample in np.asarray(ids)]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    cohort.write_icechunk(tmp_path / "store", OLD)
    (tmp_path / "inbox").mkdir()
    return Place(tmp_path)


STEPS = ("append: inbox/*.vcz", "verify: true", "check: {min-call-rate: 0.5, max-samples: 7}", "publish: night")


@pytest.mark.slow
def test_append_check_publish(place: Place) -> None:
    """A batch that passes the checks is published; one that fails stays on the branch and is not appended again."""
    good = place.batch("a.vcz", 3)
    planned = run("plan", place.write(*STEPS)).stdout
    assert "branch night" in planned
    assert "then: verify, check, publish" in planned
    assert list(place.tips) == ["main"]
    done = place.run(*STEPS)
    assert [action.operation.called for action in done.done] == ["verify", "check", "publish"]
    cohort.assert_same(cohort.read_vcz(cohort.icechunk_store(place.store)), cohort.expected_append(OLD, good))
    assert place.tips == {"main": done.snapshot, "night": done.snapshot}
    again = run("run", place.write(*STEPS)).stdout
    assert "has nothing that main lacks" in again
    assert "already applied" in again

    place.batch("bad.vcz", 5, called=False)
    file = place.write(*STEPS)
    words = fails("run", file, "--report", place.folder / "report")
    assert "check: " in words
    assert "the call rate is below 0.5 for 1 of 2 samples, the lowest is 0.3333" in words
    assert words.endswith("what the steps of the job do is committed on the branch night, and not published")
    report = json.loads((place.folder / "report" / "report.json").read_text())
    assert (report["job"]["status"], report["job"]["branch"]) == ("failed", "night")
    assert [action["operation"] for action in report["job"]["after"]] == ["verify", "check"]
    assert report["steps"][0]["seconds"] is not None
    assert place.samples() == cohort.ids(0, 5)
    assert place.samples("night") == cohort.ids(0, 7)
    with pytest.raises(CheckError, match="call rate is below"):  # until the batch is corrected
        run_job(file)
    vczstore.remove(place.store, "S0005", branch="night")
    assert place.run(*STEPS[:2], "check: {min-samples: 6}", STEPS[3]).status == "done"
    assert place.samples() == [*cohort.ids(0, 5), "", "S0006"]


@pytest.mark.slow
def test_a_branch_follows_main(place: Place) -> None:
    """A branch without unpublished commits is moved to main; a branch that cannot be published is refused early."""
    place.batch("a.vcz", 3)
    place.run("append: inbox/a.vcz", "publish: night")
    vczstore.remove(place.store, "S0001")
    place.batch("b.vcz", 5)
    steps = ("append: inbox/*.vcz", "publish: night", "tag: release-1")
    done = place.run(*steps)
    assert place.samples()[1] == ""
    assert vczstore.tags(place.store) == {"release-1": place.tips["main"]} == {"release-1": done.snapshot}
    place.batch("c.vcz", 7)
    place.run("append: inbox/*.vcz")
    vczstore.remove(place.store, "S0002")
    before = place.tips
    with pytest.raises(StaleError, match="has diverged from main"):
        place.run("append: inbox/*.vcz", "publish: night")
    assert place.tips == before


def test_a_run_that_was_stopped_before_it_published(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.batch("a.vcz", 3)
    with monkeypatch.context() as patch:
        patch.setattr("plans.publish.Publish.perform_within", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            place.run("append: inbox/*.vcz", "verify: true", "publish: night")
    assert place.samples() == cohort.ids(0, 3)
    done = place.run("append: inbox/*.vcz", "verify: true", "publish: night")
    assert (len(done.results), [action.operation.called for action in done.done]) == (0, ["verify", "publish"])
    assert place.samples() == cohort.ids(0, 5)


def test_a_tag_refers_to_the_compacted_state(place: Place) -> None:
    done = place.run("remove: S0001", "compact: true", "tag: small", "purge: true", head="")
    assert [action.operation.called for action in done.done] == ["compact", "purge"]
    repository = repository_of(place.store)
    ids = zarr.open_group(repository.readonly_session(tag="small").store, mode="r")["sample_id"]
    assert np.asarray(ids).tolist() == ["S0000", "S0002"]


class Killed(BaseException):
    """Ends a run like a kill, because no code catches it."""


@pytest.mark.slow
def test_a_job_is_killed_before_its_purge_and_run_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    file = place.write("remove: S0001", "compact: true", "tag: small", "purge: true", head="")

    def kill(*_arguments: object, **_options: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("plans.purge.Purge.perform_within", kill)
        with pytest.raises(Killed):
            run_job(file)
    for _ in range(2):
        run_job(file)
        assert vczstore.verify_removal(place.store, ["S0001"]).ok


def test_a_tag_that_was_deleted_is_refused_before_the_commit(place: Place) -> None:
    place.batch("b.vcz", 3)
    vczstore.tag(place.store, "small")
    vczstore.run("tag", place.store, "small", delete=True)
    with pytest.raises(TagError, match="'small' was used and deleted before"):
        place.run("append: inbox/b.vcz", "tag: small", head="")
    assert place.samples() == cohort.ids(0, 3)


@pytest.mark.slow
def test_compact_purge_and_gc_follow_the_commit(place: Place) -> None:
    place.batch("a.vcz", 3)
    steps = ("append: inbox/*.vcz", "remove: S0001", "compact: true", "verify: true", "purge: true", "gc: true")
    done = place.run(*steps, head="")
    assert [action.operation.called for action in done.done] == ["compact", "verify", "purge", "gc"]
    assert place.samples() == ["S0000", "S0002", "S0003", "S0004"]
    assert done.snapshot == place.tips["main"]
    assert place.run("compact: true", head="").status == "nothing to do"
    assert vczstore.verify_removal(place.store, ["S0001"]).erased
    vczstore.tag(place.store, "release-1")
    before, batch = place.tips, place.batch("b.vcz", 5)
    assert len(batch)
    with pytest.raises(TagError, match="older snapshots are kept by the tag release-1; nothing was done"):
        place.run("append: inbox/b.vcz", "purge: true", head="")
    assert place.tips == before


@pytest.mark.slow
def test_retention(place: Place) -> None:
    """Old snapshots expire, except those that have tags, and all remaining ones can be read."""
    vczstore.tag(place.store, "release-1")
    for first in (3, 5):
        place.batch(f"{first}.vcz", first)
        vczstore.append(place.store, place.folder / f"inbox/{first}.vcz")
    head = place.tips["main"]
    assert vczstore.gc(place.store, keep_days=0, dry_run=True).counts["snapshots expired"] == 1
    done = place.run("gc: {keep-days: 30}", head="")
    assert done.done[0].found.as_dict()["counts"]["snapshots expired"] == 0
    assert len(list(vczstore.log(place.store))) == 6
    done = place.run("append: {source: inbox/3.vcz, on-duplicate: skip}", head="keep: {days: 0}")
    (collected,) = done.done
    assert collected.found.as_dict()["counts"]["snapshots expired"] >= 2
    assert head in [entry["snapshot"] for entry in vczstore.log(place.store)], "the log has expired snapshots"
    with pytest.raises(TagError, match="no tag, branch or snapshot"):
        vczstore.info(place.store, at=head)
    assert vczstore.info(place.store, at="release-1").samples == 3
    assert vczstore.verify(place.store).ok
    place.run("verify: {quick: true}", head="keep: {days: 0, tags: none}")
    assert vczstore.tags(place.store) == {}


def test_cleaning_up_without_garbage_is_nothing_to_do(place: Place) -> None:
    place.batch("a.vcz", 3)
    head = "branch: night\nkeep: {days: 30}"
    runs = [place.run("append: inbox/*.vcz", "publish: night", head=head) for _ in range(2)]
    assert [result.status for result in runs] == ["done", "nothing to do"]
    assert runs[1].done[0].found.as_dict()["counts"]["bytes"] == 0
    assert "gc " in "".join(runs[1].lines())


@pytest.mark.parametrize(
    ("head", "steps", "words"),
    [
        ("", ["tag: a", "append: a.vcz"], "a tag names what the whole job leaves behind; put tag after all other"),
        (
            NIGHTLY,
            ["publish: night", "check: {min-samples: 1}"],
            "shows readers what the job has committed; put publish",
        ),
        ("", ["compact: true", "append: a.vcz"], "has a commit of its own, which follows that of the job; put compact"),
        ("", ["gc: true", "verify: true"], "deletes what the job has left behind; put gc after verify"),
        ("", ["publish: night"], "a job publishes the branch that it works on, and there is no key branch"),
        (NIGHTLY, ["publish: day"], "and the key branch says night"),
        ("", ["check: {}"], "nothing to check; give a limit or a command"),
        ("", ["check: {min-call-rate: 95.0}"], "min_call_rate is 95.0; give a number from 0 to 1"),
        ("", ["verify: false"], "expected true, or a mapping with its keys, found false"),
        ("keep: 30", ["verify: true"], "keep"),
        ("branch: a/b", ["verify: true"], "expected a name of printable characters without /"),
        ("branch: vczstore-set-a", ["verify: true"], "expected another name than one that begins with vczstore-"),
    ],
)
def test_invalid_job_files(place: Place, head: str, steps: list[str], words: str) -> None:
    with pytest.raises(JobFileError) as refused:
        plan_job(place.write(*steps, head=head))
    assert words in str(refused.value)


def test_a_check_command_gets_the_branch(place: Place) -> None:
    place.batch("a.vcz", 3)
    check = (
        f'test "$VCZSTORE_BRANCH" = night && test "$VCZSTORE_STORE" = {place.store} && echo $VCZSTORE_SNAPSHOT > seen'
    )
    file = place.write("append: inbox/*.vcz", f"check: {{command: {json.dumps(f'cd {place.folder} && {check}')}}}")
    done = run_job(file)
    assert (place.folder / "seen").read_text().strip() == done.snapshot
    assert "has ended with status 3" in run("check", place.store, "--command", "exit 3", status=1).stdout


def test_the_call_rate_of_a_branch_without_new_samples(place: Place) -> None:
    vczstore.branch(place.store, "night")
    checked = vczstore.check(place.store, branch="night", min_call_rate=0.5)
    assert (checked.ok, checked.looked_at, checked.least_call_rate) == (True, 0, None)


@pytest.mark.parametrize("kind", ["format2", "format3"])
def test_plain_zarr_checks_and_collects(tmp_path: Path, kind: str) -> None:
    place = Place(tmp_path)
    cohort.write_vcz(place.store, OLD, zarr_format=2 if kind == "format2" else 3)
    place.batch("a.vcz", 3)
    done = place.run("append: inbox/a.vcz", "verify: true", "check: {min-samples: 5}", "gc: true", head="")
    assert len(done.done) == 3
    place.batch("b.vcz", 5)
    before = cohort.digest(place.store)
    for steps, head, error in (
        (["append: inbox/b.vcz"], NIGHTLY, TagError),
        (["compact: true"], "", UnsuitableError),
        (["verify: true"], "keep: {days: 3}", TagError),
    ):
        with pytest.raises(error):
            place.run(*steps, head=head)
        assert cohort.digest(place.store) == before
