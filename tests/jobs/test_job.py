"""Jobs: steps see the results of earlier ones, become visible together, and are applied exactly once."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import icechunk
import numpy as np
import pytest
import zarr
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import vczstore
from plans.core.ledger import ATTRIBUTE
from tests.support import cohort, forks
from tests.support.command_line import fails
from tests.support.covering import costly, in_turn
from tests.support.small_stores import repository_of
from vczstore.cli.main import main
from vczstore.errors import (
    IncompatibleError,
    JobFileError,
    MemoryLimitError,
    NotAStoreError,
    OptionError,
    SampleError,
    StaleError,
    StorageError,
    TagError,
    VczstoreError,
)
from vczstore.jobs.model import ExecutorSpec
from vczstore.jobs.notify import Outcome
from vczstore.jobs.run import JobResult, plan_job, run_compiled, run_job
from vczstore.vcz import zarr_objects

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")

KINDS = ("format2", "format3", "icechunk")
N_VARIANTS = 10


@dataclass(frozen=True)
class Place:
    """A folder with a store of seven samples, an inbox, and a job file."""

    folder: Path
    kind: str

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def batch(
        self, name: str, samples: list[str], *, seed: int = 1, fields: Sequence[str] = (), **layout: Any
    ) -> dict[str, np.ndarray]:
        """Write a batch to the inbox, replacing one with the same name; return its arrays."""
        arrays = few(cohort.make_arrays(N_VARIANTS, samples, seed=seed, fields=SOME), fields)
        shutil.rmtree(self.folder / "inbox" / name, ignore_errors=True)
        cohort.write_vcz(self.folder / "inbox" / name, arrays, **layout)
        return arrays

    def write(self, steps: str, **keys: str) -> Path:
        """Write the job file; return its path."""
        head = "".join(f"{key}: {value}\n" for key, value in {"store": "store", **keys}.items())
        file = self.folder / "job.yaml"
        file.write_text(f"{head}steps:\n{textwrap.indent(textwrap.dedent(steps).strip(), '  ')}\n")
        return file

    def run(self, steps: str, **keys: str) -> JobResult:
        return run_job(self.write(steps, **keys))

    def read(self) -> dict[str, np.ndarray]:
        return cohort.read_vcz(cohort.icechunk_store(self.store) if self.kind == "icechunk" else self.store)

    @property
    def repository(self) -> icechunk.Repository:
        return repository_of(self.store)

    @property
    def snapshots(self) -> int:
        return len(list(self.repository.ancestry(branch="main")))

    def state(self) -> dict[str, str]:
        """Hashes of all files of the store."""
        return cohort.digest(self.store)


SOME = ("sample_sex", "call_genotype", "call_DP", "call_FT")
FEW = ("call_genotype", "sample_sex")
"""Few fields, which keeps the tests fast; jobs do not depend on fields."""
OLD = cohort.make_arrays(N_VARIANTS, cohort.ids(0, 7), fields=SOME)


def few(arrays: dict[str, np.ndarray], fields: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays restricted to these fields of samples; all arrays if `fields` is empty."""
    keep = {*fields, "sample_id"}
    return {n: a for n, a in arrays.items() if not fields or n in keep or "samples" not in cohort.DIMENSIONS[n]}


def make(folder: Path, kind: str, *, fields: Sequence[str] = ()) -> Place:
    place = Place(folder, kind)
    (folder / "inbox").mkdir(parents=True)
    if kind == "icechunk":
        cohort.write_icechunk(place.store, few(OLD, fields))
    else:
        cohort.write_vcz(place.store, few(OLD, fields), zarr_format=2 if kind == "format2" else 3, consolidated=True)
    return place


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return make(tmp_path, request.param)


@pytest.fixture
def repo(tmp_path: Path) -> Place:
    return make(tmp_path, "icechunk")


@pytest.fixture
def plain(tmp_path: Path) -> Place:
    return make(tmp_path, "format3")


@contextmanager
def unchanged(place: Place) -> Iterator[None]:
    before = place.state()
    yield
    assert place.state() == before


# ---- steps ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_later_steps_see_earlier_ones(place: Place) -> None:
    first, second = place.batch("a.vcz", cohort.ids(7, 2)), place.batch("b.vcz", cohort.ids(9, 3), seed=2)
    recalled = place.batch("recalled.vcz", ["S0008", "S0003"], seed=3)
    result = place.run(
        """
        - append: inbox/a.vcz
        - append: {source: inbox/b.vcz}
        - update: inbox/recalled.vcz
        - remove: [S0009, S0000]
        """
    )
    expected = cohort.expected_update(cohort.expected_append(OLD, first, second), recalled)
    cohort.assert_same(place.read(), cohort.expected_remove(expected, ["S0009", "S0000"]))
    assert result.status == "done"
    assert [r.operation for r in result.results] == ["append", "append", "update", "remove"]


@in_turn(place=KINDS, executor=("single-threaded", "threads", "processes"), indirect=["place"])
@pytest.mark.slow
def test_on_every_executor(place: Place, executor: str) -> None:
    batch = place.batch("a.vcz", cohort.ids(7, 4))
    place.run("- append: inbox/a.vcz\n- remove: S0001", executor=executor)
    cohort.assert_same(place.read(), cohort.expected_remove(cohort.expected_append(OLD, batch), ["S0001"]))


@pytest.mark.slow
def test_a_compiled_job_runs_unchanged_on_any_executor(plain: Place) -> None:
    batch = plain.batch("a.vcz", cohort.ids(7, 4))
    compiled = plan_job(plain.write("- append: inbox/a.vcz\n- remove: S0001"))
    expected = cohort.expected_remove(cohort.expected_append(OLD, batch), ["S0001"])
    before, states = plain.folder / "before", []
    shutil.copytree(plain.store, before)
    for executor in ("single-threaded", "threads", "processes"):
        shutil.rmtree(plain.store)
        shutil.copytree(before, plain.store)
        job = compiled.job.model_copy(update={"executor": ExecutorSpec(name=executor)})
        run_compiled(dataclasses.replace(compiled, job=job), Outcome(job), Mock())
        cohort.assert_same(plain.read(), expected)
        states.append(plain.state())
    assert states[0] == states[1] == states[2]


@pytest.mark.slow
def test_a_job_is_one_commit_with_its_tags(repo: Place) -> None:
    repo.batch("a.vcz", cohort.ids(7, 2))
    repo.batch("b.vcz", cohort.ids(9, 3), seed=2)
    before = repo.snapshots
    result = repo.run("- append: inbox/*.vcz\n- remove: S0001\n- tag: release-1\n- tag: latest")
    assert repo.snapshots == before + 1
    assert {repo.repository.lookup_tag(name) for name in ("release-1", "latest")} == {result.snapshot}
    metadata = next(iter(repo.repository.ancestry(branch="main"))).metadata["vczstore"]
    assert metadata["steps"] == [
        {"operation": "append", "sources": 2, "samples added": 5},
        {"operation": "remove", "samples removed": 1},
    ]
    assert metadata["job"] == result.id


@pytest.mark.slow
def test_steps_on_plain_zarr_become_visible_in_order(plain: Place) -> None:
    batch = plain.batch("a.vcz", cohort.ids(7, 3))
    plain.batch("b.vcz", cohort.ids(10, 2), seed=2)
    file = plain.write("- append: inbox/a.vcz\n- append: inbox/b.vcz")
    compiled = plan_job(file)
    chunk = plain.folder / "inbox/b.vcz/call_DP/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(StorageError, match="the step before it is done; readers see the old samples"):
        run_compiled(compiled, Outcome(compiled.job), Mock())
    cohort.assert_same(plain.read(), cohort.expected_append(OLD, batch))


def test_an_impossible_step_fails_the_job_before_the_first_write(place: Place) -> None:
    place.batch("a.vcz", cohort.ids(7, 2))
    file = place.write("- append: inbox/a.vcz\n- remove: [S0008, NOBODY]")
    with unchanged(place), pytest.raises(SampleError, match="has no sample NOBODY"):
        run_job(file)


@pytest.mark.slow
def test_a_failed_check_fails_the_job_before_the_first_write(place: Place) -> None:
    place.batch("a.vcz", cohort.ids(7, 2))
    place.batch("b.vcz", cohort.ids(9, 2))
    zarr.open_array(place.folder / "inbox/b.vcz/variant_position")[3] = 7
    file = place.write("- append: inbox/a.vcz\n- append: inbox/b.vcz")
    with unchanged(place), pytest.raises(IncompatibleError, match=r"variant 3 of .*b\.vcz is"):
        run_job(file)


def test_memory_is_checked_for_all_steps(place: Place) -> None:
    place.batch("a.vcz", cohort.ids(7, 2))
    keys = {"allowed-mem": "300001kB", "reserved-mem": "300MB"}
    with unchanged(place), pytest.raises(MemoryLimitError, match="give it --allowed-mem"):
        place.run("- append: inbox/a.vcz", **keys)


@pytest.mark.parametrize(
    ("steps", "error", "words"),
    [
        ("- append: inbox/none.vcz", NotAStoreError, "none.vcz: no such file"),
        ("- append: store", IncompatibleError, "is the store .* itself"),
        ("- update: inbox/a.vcz", SampleError, "insert"),
        ("- remove: {samples-file: absent.txt}", VczstoreError, "absent.txt"),
    ],
)
def test_impossible_jobs(place: Place, steps: str, error: type[VczstoreError], words: str) -> None:
    place.batch("a.vcz", cohort.ids(7, 2))
    with unchanged(place), pytest.raises(error, match=words):
        place.run(steps)


def test_tags_need_icechunk(plain: Place) -> None:
    plain.batch("a.vcz", cohort.ids(7, 2))
    with unchanged(plain), pytest.raises(TagError, match="is plain Zarr, which has no tags"):
        plain.run("- append: inbox/a.vcz\n- tag: release-1")


def test_executor_options_are_checked(place: Place) -> None:
    place.batch("a.vcz", cohort.ids(7, 2))
    with unchanged(place), pytest.raises(OptionError, match="threads has no option speed"):
        place.run("- append: inbox/a.vcz", executor="{name: threads, options: {speed: 9}}")


# ---- samples that are in the store already --------------------------------------------------


@pytest.mark.slow
def test_on_duplicate(place: Place) -> None:
    arrays = place.batch("late.vcz", ["S0008", "S0002", "S0007", "S0005"], seed=4)
    with unchanged(place), pytest.raises(SampleError, match=r"2 of the samples of .*late\.vcz are in .* already"):
        place.run("- append: inbox/late.vcz")
    new = {
        name: values
        if "samples" not in cohort.DIMENSIONS[name]
        else values.take([0, 2], cohort.DIMENSIONS[name].index("samples"))
        for name, values in arrays.items()
    }
    other = make(place.folder / "other", place.kind)
    shutil.copytree(place.folder / "inbox/late.vcz", other.folder / "inbox/late.vcz")
    place.run("- append: {source: inbox/late.vcz, on-duplicate: skip}")
    cohort.assert_same(place.read(), cohort.expected_append(OLD, new))
    other.run("- append: {source: inbox/late.vcz, on-duplicate: replace}")
    present = {
        name: values
        if "samples" not in cohort.DIMENSIONS[name]
        else values.take([1, 3], cohort.DIMENSIONS[name].index("samples"))
        for name, values in arrays.items()
    }
    cohort.assert_same(other.read(), cohort.expected_append(cohort.expected_update(OLD, present), new))


@pytest.mark.slow
def test_an_update_after_an_append_that_skipped_samples(place: Place) -> None:
    """For the same batch, a repeated append has nothing to do, but an update has."""
    arrays = place.batch("late.vcz", ["S0008", "S0002", "S0007", "S0005"], seed=4)
    for status in ("done", "nothing to do"):
        assert place.run("- append: {source: inbox/late.vcz, on-duplicate: skip}").status == status
    for status in ("done", "nothing to do"):
        assert place.run("- update: {source: inbox/late.vcz, insert: true}").status == status
    seen = place.read()
    indices = [seen["sample_id"].tolist().index(sample) for sample in arrays["sample_id"]]
    np.testing.assert_array_equal(seen["call_genotype"][:, indices], arrays["call_genotype"])
    assert place.run("- append: {source: inbox/late.vcz, on-duplicate: skip}").status == "nothing to do"


@pytest.mark.slow
def test_messages_about_globs_without_matches(plain: Place) -> None:
    plain.batch("a.vcz", ["A1"])
    file = plain.write("- append: [inbox/a.vcz, 'inbox/?.vcz', inbox/*.none]\n- remove: {samples: X, missing-ok: true}")
    for new in (1, 0):
        sources = [(s.source.rpartition("/")[2], len(s.found), s.new) for s in plan_job(file).found]
        assert sources == [("?.vcz", 1, new), ("*.none", 0, 0), ("", 1, new)]
        out = command("run", file).stdout
        assert f"inbox/?.vcz: 1 found, {new} new\n" in out
        assert "inbox/*.none: 0 found, 0 new\n" in out
    assert "what was found is already applied" in out
    file = plain.write("- append: inbox/*.none\n- remove: {samples: X, missing-ok: true}")
    for verb in ("run", "plan"):
        out = command(verb, file).stdout
        assert "no source or sample that its steps name was found" in out
        assert "already applied" not in out
    with unchanged(plain), pytest.raises(NotAStoreError, match=r"append: .*none finds nothing, and if-none says error"):
        plain.run("- append: {source: inbox/*.none, if-none: error}")


def test_a_missing_folder_is_not_an_empty_inbox(place: Place) -> None:
    assert place.run("- append: inbox/*.vcz").status == "nothing to do"
    with unchanged(place), pytest.raises(JobFileError, match=r"inbx/\*\.vcz: there is no folder .*inbx; correct"):
        place.run("- append: inbx/*.vcz")


@pytest.mark.parametrize("kind", ["format2", "format3"])
@pytest.mark.parametrize("step", ["append: {source: inbox/a.vcz, on-duplicate: replace}", "update: inbox/a.vcz"])
@pytest.mark.slow
def test_a_stopped_update_is_repeated(kind: str, step: str, tmp_path: Path) -> None:
    """The samples are in the store before and after, so their presence does not show that the update is complete."""
    template = make(tmp_path / "template", kind, fields=FEW)
    arrays = template.batch("a.vcz", ["S0001", "S0004"], seed=9, fields=FEW)
    template.write(f"- {step}", executor="single-threaded")
    for n in range(1, 9, 2):
        place = Place(tmp_path / f"run{n}", kind)
        shutil.copytree(template.folder, place.folder)
        with failing_after(n), pytest.raises(StorageError):
            run_job(place.folder / "job.yaml")
        assert run_job(place.folder / "job.yaml").status == "done"
        cohort.assert_same(place.read(), cohort.expected_update(few(OLD, FEW), arrays))
        assert run_job(place.folder / "job.yaml").status == "nothing to do"


def test_errors_refer_to_keys_of_the_job_file(plain: Place) -> None:
    """Instead of flags of the command line."""
    plain.batch("a.vcz", ["S0011"])
    shutil.rmtree(plain.folder / "inbox/a.vcz/call_DP")
    shutil.copytree(plain.folder / "inbox/a.vcz/call_FT", plain.folder / "inbox/a.vcz/call_XA")
    shutil.copytree(plain.folder / "inbox/a.vcz/call_FT", plain.folder / "inbox/a.vcz/call_XB")
    with unchanged(plain), pytest.raises(IncompatibleError) as caught:
        plain.run("- append: inbox/a.vcz")
    assert "with drop-fields: [DP]" in str(caught.value)
    assert "with add-fields: [XA, XB], or leave it out with drop-fields: [XA, XB]" in str(caught.value)
    plain.batch("b.vcz", ["S0012"])
    group = zarr.open_group(plain.folder / "inbox/b.vcz")
    group["variant_position"][:] = group["variant_position"][:] + 1
    with unchanged(plain), pytest.raises(IncompatibleError, match="or say harmonise: true"):
        plain.run("- append: inbox/b.vcz")


@pytest.mark.slow
def test_update_from_a_source_that_lacks_a_field(place: Place) -> None:
    arrays = place.batch("recalled.vcz", ["S0006", "S0001"], seed=5)
    shutil.rmtree(place.folder / "inbox/recalled.vcz/call_DP")
    with (
        unchanged(place),
        pytest.raises(IncompatibleError, match=r"missing for these samples with drop-fields: \[DP\]"),
    ):
        place.run("- update: inbox/recalled.vcz")
    place.run("- update: {source: inbox/recalled.vcz, drop-fields: [DP]}")
    seen = place.read()
    np.testing.assert_array_equal(seen["call_genotype"][:, [6, 1]], arrays["call_genotype"])
    assert (seen["call_DP"][:, [1, 6]] == -1).all()
    np.testing.assert_array_equal(seen["call_DP"][:, [0, 2, 3, 4, 5]], OLD["call_DP"][:, [0, 2, 3, 4, 5]])


@pytest.mark.slow
def test_update_with_insert(place: Place) -> None:
    arrays = place.batch("recalled.vcz", ["S0006", "S0011"], seed=5)
    place.run("- update: {source: inbox/recalled.vcz, insert: true}")
    seen = place.read()
    assert seen["sample_id"].tolist() == [*cohort.ids(0, 7), "S0011"]
    np.testing.assert_array_equal(seen["call_genotype"][:, 6:], arrays["call_genotype"])
    np.testing.assert_array_equal(seen["call_genotype"][:, :6], OLD["call_genotype"][:, :6])


# ---- exactly once ---------------------------------------------------------------------------


JOB = """
- append: inbox/*.vcz
- remove: {samples-file: withdrawn.txt, missing-ok: true}
"""


@pytest.mark.slow
def test_an_applied_job_is_not_applied_again(place: Place) -> None:
    place.batch("a.vcz", cohort.ids(7, 2))
    place.batch("b.vcz", cohort.ids(9, 3), seed=2)
    (place.folder / "withdrawn.txt").write_text("S0001\nNOBODY\n")
    first = place.run(JOB)
    with unchanged(place):
        again = place.run(JOB)
    assert (first.status, again.status, again.results) == ("done", "nothing to do", ())
    assert (again.id, again.snapshot) == (first.id, first.snapshot)


@pytest.mark.slow
def test_the_snapshot_of_an_applied_job_after_later_commits(repo: Place) -> None:
    repo.batch("a.vcz", cohort.ids(7, 2))
    first = repo.run("- append: inbox/a.vcz")
    vczstore.remove(repo.store, "S0000")
    again = repo.run("- append: inbox/a.vcz")
    assert (again.status, again.snapshot) == ("nothing to do", first.snapshot)


@pytest.mark.slow
def test_only_new_batches_are_appended(place: Place) -> None:
    first = place.batch("a.vcz", cohort.ids(7, 2))
    place.run("- append: inbox/*.vcz")
    second = place.batch("b.vcz", cohort.ids(9, 3), seed=2)
    result = place.run("- append: inbox/*.vcz")
    assert result.results[0].counts == {"sources": 1, "samples added": 3}
    assert result.job.steps[0].already_applied == 1
    cohort.assert_same(place.read(), cohort.expected_append(OLD, first, second))


@pytest.mark.slow
def test_a_moved_batch_is_recognised(place: Place) -> None:
    place.batch("a.vcz", cohort.ids(7, 2))
    place.run("- append: inbox/*.vcz")
    (place.folder / "inbox/a.vcz").rename(place.folder / "inbox/z.vcz")
    with unchanged(place):
        assert place.run("- append: inbox/*.vcz").status == "nothing to do"


@pytest.mark.slow
def test_removed_samples_do_not_return(place: Place) -> None:
    place.batch("a.vcz", cohort.ids(7, 2))
    place.run("- append: inbox/*.vcz")
    vczstore.remove(place.store, "S0007")
    with unchanged(place):
        assert place.run("- append: inbox/*.vcz").status == "nothing to do"


@pytest.mark.slow
def test_a_changed_source_is_detected(place: Place) -> None:
    place.batch("a.vcz", cohort.ids(7, 2))
    place.run("- append: inbox/a.vcz")
    changed = place.batch("a.vcz", cohort.ids(7, 2), seed=9)
    with unchanged(place), pytest.raises(IncompatibleError, match=r"a\.vcz: its samples were appended before"):
        place.run("- append: inbox/a.vcz")
    with unchanged(place):
        assert place.run("- append: {source: inbox/a.vcz, on-duplicate: skip}").status == "nothing to do"
    place.run("- append: {source: inbox/a.vcz, on-duplicate: replace}")
    cohort.assert_same(place.read(), cohort.expected_append(OLD, changed))
    with unchanged(place):
        assert place.run("- append: inbox/a.vcz").status == "nothing to do"


@pytest.mark.parametrize("kind", ["format2", "format3"])
@pytest.mark.slow
def test_a_source_that_changed_after_its_append_was_stopped(tmp_path: Path, kind: str) -> None:
    """The change is detected even though the append was stopped before it was recorded in the ledger."""
    place = make(tmp_path, kind)
    old = place.batch("a.vcz", cohort.ids(7, 2))
    steps = "- append: inbox/a.vcz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plans.core.ledger.Ledger.with_sources", lambda self, sources, _: self.begun(sources))
        place.run(steps)  # as if stopped before the last edit, which records the source
    cohort.assert_same(place.read(), cohort.expected_append(OLD, old))
    changed = place.batch("a.vcz", cohort.ids(7, 2), seed=9)
    with unchanged(place), pytest.raises(IncompatibleError, match=r"a\.vcz: its samples were appended before"):
        place.run(steps)
    place.run("- append: {source: inbox/a.vcz, on-duplicate: replace}")
    cohort.assert_same(place.read(), cohort.expected_append(OLD, changed))
    with unchanged(place):
        assert place.run(steps).status == "nothing to do"


@pytest.mark.slow
def test_a_job_that_appends_and_recalls_the_same_batch(place: Place) -> None:
    place.batch("a.vcz", cohort.ids(7, 2))
    recalled = place.batch("recalled.vcz", cohort.ids(7, 2), seed=9)
    steps = "- append: inbox/a.vcz\n- update: inbox/recalled.vcz"
    place.run(steps)
    cohort.assert_same(place.read(), cohort.expected_append(OLD, recalled))
    with unchanged(place):
        assert place.run(steps).status == "nothing to do"


@pytest.mark.slow
def test_a_repeated_removal_is_nothing_to_do(place: Place) -> None:
    place.run("- remove: [S0001, S0002]")
    with unchanged(place):
        assert place.run("- remove: [S0002, S0001]").status == "nothing to do"
        with pytest.raises(SampleError, match="has no sample S0099"):
            place.run("- remove: [S0001, S0099]")
    assert place.run("- remove: [S0001, S0003]").status == "done"


@pytest.mark.slow
def test_an_existing_tag(repo: Place) -> None:
    repo.batch("a.vcz", cohort.ids(7, 2))
    first = repo.run("- append: inbox/*.vcz\n- tag: release-1")
    assert repo.run("- append: inbox/*.vcz\n- tag: release-1").status == "nothing to do"
    repo.batch("b.vcz", cohort.ids(9, 2))
    with (
        unchanged(repo),
        pytest.raises(TagError, match=r"'release-1' exists already, on snapshot .* changes the store"),
    ):
        repo.run("- append: inbox/*.vcz\n- tag: release-1")
    assert vczstore.tags(repo.store) == {"release-1": first.snapshot}


@pytest.mark.slow
def test_a_missing_tag_is_created_by_the_next_run(repo: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a run that was killed between its commit and its tag."""
    repo.batch("a.vcz", cohort.ids(7, 2))
    steps = "- append: inbox/*.vcz\n- tag: release-1"
    with monkeypatch.context() as patch:
        patch.setattr("vczstore.stores.icechunk_history.IcechunkHistory.create_tag", _killed)
        with pytest.raises(RuntimeError, match="killed"):
            repo.run(steps)
    head = repo.repository.lookup_branch("main")
    vczstore.remove(repo.store, "S0000")
    result = repo.run(steps)
    assert (result.status, result.tags, result.snapshot) == ("done", ("release-1",), head)
    assert vczstore.tags(repo.store) == {"release-1": head}


def _killed(*_: Any) -> None:
    raise RuntimeError("killed")


@pytest.mark.slow
def test_a_rerun_reads_no_chunks(place: Place) -> None:
    """An audit hook records every file that the process opens."""
    for i in range(3):
        place.batch(f"{i}.vcz", cohort.ids(10 * (i + 1), 2), seed=i)
    file = place.write("- append: inbox/*.vcz")
    run_job(file)
    script = """
        import sys
        opened = []
        sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
        from vczstore.jobs.run import run_job
        assert run_job(sys.argv[1]).status == "nothing to do"
        print("\\n".join(path for path in opened if path.startswith(sys.argv[2])))
    """
    command = [forks.program("python"), "-c", textwrap.dedent(script), file, f"{place.folder}/"]
    opened = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [path for path in opened if "inbox" in path and path.endswith("zarr.json")]
    metadata = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
    others = [path for path in opened if not path.endswith((*metadata, "lock", "job.yaml"))]
    assert [path for path in others if "/sample_id/" not in path] == []


@pytest.mark.parametrize("kind", ["format2", "format3"])
@pytest.mark.slow
def test_a_run_stopped_at_any_write_is_completed_by_the_next(tmp_path: Path, kind: str) -> None:
    """
    On plain Zarr, storage fails at one of the writes; another batch arrives before the second run.

    To save time, each format stops at a different subset of the arrays, and of consecutive chunks at the first only.
    """
    template = make(tmp_path / "template", kind, fields=FEW)
    first = template.batch("a.vcz", cohort.ids(7, 2), fields=FEW)
    second = template.batch("b.vcz", cohort.ids(9, 3), seed=2, fields=FEW)
    steps = "- append: inbox/*.vcz\n- remove: {samples: [S0008], missing-ok: true}\n- append: {source: late.vcz}"
    late = cohort.make_arrays(N_VARIANTS, cohort.ids(20, 2), seed=7, fields=FEW)
    cohort.write_vcz(template.folder / "late.vcz", late)
    template.write(steps, executor="single-threaded")
    shutil.copytree(template.folder, tmp_path / "whole")
    with failing_after(10_000) as keys:
        run_job(tmp_path / "whole" / "job.yaml")
    arrays = [re.sub(r"/(c/)?\d[\d./]*$", "/chunk", key) for key in keys]
    stops = [n for n, array in enumerate(arrays) if n == 0 or array != arrays[n - 1]]
    last, stops = stops[-1], stops[2 * (kind == "format2") :: 5]  # each format stops at a different subset
    stops += [last] * (last not in stops)
    assert len(keys) > 30
    assert len(stops) > 5
    for n in stops:
        place = Place(tmp_path / f"run{n}", kind)
        shutil.copytree(template.folder, place.folder)
        with failing_after(n), pytest.raises(StorageError):
            run_job(place.folder / "job.yaml")
        seen = place.read()["sample_id"].tolist()
        assert seen[:7] == cohort.ids(0, 7)
        shutil.copytree(template.folder / "late.vcz", place.folder / "inbox/c.vcz")
        result = run_job(place.folder / "job.yaml")
        expected = cohort.expected_append(few(OLD, FEW), first, second, late)
        cohort.assert_same(place.read(), cohort.expected_remove(expected, ["S0008"]))
        assert result.status == "done"
        if n in (stops[0], last):
            assert run_job(place.folder / "job.yaml").status == "nothing to do"
        shutil.rmtree(place.folder)


@contextmanager
def failing_after(n: int) -> Iterator[list[str]]:
    """Make storage fail after `n` writes of chunks and documents; yield the list of their keys."""
    from zarr.storage import LocalStore

    keys: list[str] = []
    real, put_file = LocalStore.set_sync, zarr_objects.put_file

    def count(key: str) -> None:
        if len(keys) == n:
            raise OSError(28, "No space left on device")
        keys.append(key)

    def set_sync(self: LocalStore, key: str, value: Any) -> None:
        count(key)
        real(self, key, value)

    def put(path: str, value: Any) -> None:
        count(path)
        put_file(path, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStore, "set_sync", set_sync)
        patch.setattr(zarr_objects, "put_file", put)
        yield keys


# ---- the ledger -----------------------------------------------------------------------------


@pytest.mark.slow
def test_no_sample_id_is_recorded(place: Place) -> None:
    place.batch("a.vcz", ["SECRET-1", "SECRET-2"])
    place.run("- append: inbox/a.vcz\n- remove: [SECRET-2, S0003]")
    attributes = zarr.open_group(
        cohort.icechunk_store(place.store) if place.kind == "icechunk" else place.store, mode="r"
    ).attrs.asdict()
    assert set(attributes[ATTRIBUTE]) == {"sources"}
    assert attributes["source"] == "tests"
    assert len(attributes["vczstore_withdrawn"]["hashes"]) == 2
    texts = [json.dumps(attributes)]
    if place.kind == "icechunk":
        texts += [f"{s.message} {json.dumps(s.metadata)}" for s in place.repository.ancestry(branch="main")]
        texts.append(json.dumps(list(vczstore.log(place.store))))
    assert not [text for text in texts if "SECRET" in text or "S0003" in text]


def test_an_invalid_ledger(place: Place) -> None:
    place.batch("a.vcz", cohort.ids(7, 2))
    if place.kind == "icechunk":
        session = place.repository.writable_session("main")
        zarr.open_group(session.store, mode="r+").attrs[ATTRIBUTE] = {"sources": [1]}
        session.commit("hostile")
    else:
        zarr.open_group(place.store, mode="r+", use_consolidated=False).attrs[ATTRIBUTE] = {"sources": [1]}
    with unchanged(place), pytest.raises(VczstoreError, match=f"the root attribute {ATTRIBUTE} is no ledger of jobs"):
        place.run("- append: inbox/a.vcz")


# ---- conflicts and concurrent runs ----------------------------------------------------------


@pytest.mark.slow
def test_exit_status_of_a_conflict(repo: Place) -> None:
    repo.batch("a.vcz", cohort.ids(7, 2))
    compiled = plan_job(repo.write("- append: inbox/a.vcz"))
    remove = functools.partial(vczstore.remove, repo.store, "S0000")
    with pytest.raises(StaleError) as caught:
        run_compiled(compiled, Outcome(compiled.job), Mock(check=remove))
    assert caught.value.exit_status == 4
    cohort.assert_same(repo.read(), cohort.expected_remove(OLD, ["S0000"]))


def test_a_compiled_job_runs_once(place: Place) -> None:
    place.batch("a.vcz", cohort.ids(7, 2))
    compiled = plan_job(place.write("- append: inbox/a.vcz"))
    run_compiled(compiled, Outcome(compiled.job), Mock())
    with unchanged(place), pytest.raises(StaleError, match="has changed since the plan was made"):
        run_compiled(compiled, Outcome(compiled.job), Mock())


HOLD = """
import sys, time
from vczstore.stores.resolve import open_store
with open_store(sys.argv[1]).exclusive_lock():
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held(place: Place) -> Iterator[subprocess.Popen[str]]:
    """Hold the store's lock in another process; yield the process."""
    command = [forks.program("python"), "-c", HOLD, str(place.store)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def command(*args: object) -> Result:
    """Invoke the command line in this process, and restore the signal handler."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        return CliRunner().invoke(main, [str(arg) for arg in args])
    finally:
        signal.signal(signal.SIGTERM, handler)


on_two_kinds = pytest.mark.parametrize("place", ["format3", "icechunk"], indirect=True)
"""For tests that start several processes, and do not depend on the format of a plain store."""


@on_two_kinds
@pytest.mark.slow
def test_busy(place: Place) -> None:
    place.batch("a.vcz", cohort.ids(7, 2))
    file = place.write("- append: inbox/a.vcz")
    with held(place), unchanged(place):
        done = command("run", file, "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["exit_status"] == 3
    assert len(done.stderr.splitlines()) == 1
    assert "--if-busy wait" in done.stderr


@pytest.mark.slow
def test_waiting_for_a_run_that_is_killed(plain: Place) -> None:
    batch = plain.batch("a.vcz", cohort.ids(7, 2))
    file = plain.write("- append: inbox/a.vcz")
    with held(plain) as holder:
        waiting = subprocess.Popen([forks.program("vczstore"), "run", str(file), "--if-busy", "wait"])
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(3)
        holder.send_signal(signal.SIGKILL)
        assert waiting.wait(60) == 0
    cohort.assert_same(plain.read(), cohort.expected_append(OLD, batch))


@on_two_kinds
@pytest.mark.slow
def test_concurrent_runs_apply_the_job_once(place: Place) -> None:
    batch = place.batch("a.vcz", cohort.ids(7, 2))
    file = place.write("- append: inbox/a.vcz")
    runs = [
        subprocess.Popen(
            [forks.program("vczstore"), "run", str(file), "--if-busy", "wait", "--json"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    outputs = [json.loads(run.communicate()[0]) for run in runs]
    assert [run.returncode for run in runs] == [0] * 4
    assert sorted(answer["status"] for answer in outputs) == ["done"] + ["nothing to do"] * 3
    cohort.assert_same(place.read(), cohort.expected_append(OLD, batch))


# ---- the commands ---------------------------------------------------------------------------


@pytest.mark.slow
def test_plan_writes_nothing_and_shows_every_step(place: Place, tmp_path: Path) -> None:
    place.batch("a.vcz", cohort.ids(7, 2))
    file = place.write("- append: inbox/*.vcz\n- remove: S0001")
    with unchanged(place):
        shown = command("plan", file)
        machine = command("plan", file, "--json", "--svg", tmp_path / "plan.svg")
    assert (shown.exit_code, shown.stderr, machine.exit_code, machine.stderr) == (0, "", 0, "")
    assert "1. append" in shown.stdout
    assert "2. remove" in shown.stdout
    assert ("in one commit" in shown.stdout) == (place.kind == "icechunk")
    assert ("one by one, each safe to stop" in shown.stdout) == (place.kind != "icechunk")
    described = json.loads(machine.stdout)
    append, remove = described["steps"]
    assert (append["samples_before"], append["samples_after"], remove["samples_after"]) == (7, 9, 8)
    compiled = plan_job(file)
    assert [step["tasks"] for step in described["steps"]] == [plan.tasks for plan in compiled.plans]
    assert (tmp_path / "plan.svg").read_text().startswith("<svg")


@pytest.mark.slow
def test_run_and_log(repo: Place, tmp_path: Path) -> None:
    repo.batch("a.vcz", cohort.ids(7, 2))
    file = repo.write("- append: inbox/*.vcz\n- tag: ${NAME:-release-1}")
    # in a separate process, so that its memory can be measured
    program = [sys.executable, "-m", "vczstore", "run", file, "--json", "--report", tmp_path / "report"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["job"]["snapshot"] == answer["snapshot"] == repo.repository.lookup_tag("release-1")
    (step,) = report["steps"]
    assert len(step["timeline"]) == step["tasks"] == answer["steps"][0]["tasks"]
    assert 0 <= min(t["start"] for t in step["timeline"]) <= max(t["end"] for t in step["timeline"])
    assert step["measured_mem"] <= step["projected_mem"]
    html = (tmp_path / "report/report.html").read_text()
    assert "<svg" in html
    # actual figures next to projected ones, and the source by name
    assert step["projected_seconds"] == pytest.approx(report["estimate"]["seconds"])
    assert step["chunks_written"] == step["encoded_chunks"] + step["decoded_chunks"]
    for shown in (
        f"written {step['chunks_written']}</span>",
        f"{step['tasks_run']} ran with checks",
        "took ",
        "inbox/",
    ):
        assert shown in html
    assert "already applied" in command("run", file).stdout
    (entry, *_) = json.loads(command("log", repo.store, "--json").stdout)
    assert (entry["snapshot"], entry["job"], entry["tags"]) == (answer["snapshot"], answer["job"], ["release-1"])
    assert set(entry["versions"]) == {"vczstore", "cubed", "icechunk", "numpy", "zarr"}
    assert entry["steps"] == [{"operation": "append", "sources": 1, "samples added": 2}]
    text = command("log", repo.store).stdout
    assert answer["job"] in text
    assert "(release-1)" in text


def test_log_of_plain_zarr(plain: Place) -> None:
    done = command("log", plain.store)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "is plain Zarr, which has no history" in done.stderr


def test_flags_override_the_file(place: Place) -> None:
    place.batch("a.vcz", cohort.ids(7, 2))
    file = place.write("- append: inbox/*.vcz", executor="single-threaded")
    plan = json.loads(command("plan", file, "--json").stdout)
    assert plan["job"]["executor"] == "single-threaded"
    args = ("--executor", "processes", "--allowed-mem", "1GB", "--set", "steps.0.append=inbox/none*.vcz")
    plan = json.loads(command("plan", file, "--json", *args).stdout)
    assert (plan["job"]["executor"], plan["memory"]["allowed"], plan["steps"]) == ("processes", 10**9, [])


@pytest.mark.parametrize("name", ["cohort.icechunk", "cohort.vcz"])
@pytest.mark.parametrize("branch", ["", "branch: night\n"])
def test_a_missing_store(tmp_path: Path, name: str, branch: str) -> None:
    """The message says how to make it. No folder for a report is left, except one that was there."""
    (tmp_path / "job.yaml").write_text(f"store: {name}\n{branch}steps:\n- append: a.vcz\n")
    (tmp_path / "own").mkdir()
    words = f"{tmp_path / name}: no such file or directory; make the store with vczstore create or vczstore init"
    for report in ("own", "own/deeper/report"):
        assert words in fails("run", tmp_path / "job.yaml", "--report", tmp_path / report)
    assert words in fails("plan", tmp_path / "job.yaml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.yaml", "own"]
    assert not list((tmp_path / "own").iterdir())


def test_a_failed_run_leaves_a_report(place: Place, tmp_path: Path) -> None:
    place.batch("a.vcz", cohort.ids(7, 2))
    chunk = place.folder / "inbox/a.vcz/call_DP/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    done = command("run", place.write("- append: inbox/a.vcz"), "--report", tmp_path / "report", "--json")
    assert done.exit_code == 1
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["job"]["status"] == "failed"
    assert report["job"]["error"] == json.loads(done.stdout)["error"]
    assert place.read()["sample_id"].tolist() == cohort.ids(0, 7)


def test_a_report_that_cannot_be_written_fails_first(place: Place, tmp_path: Path) -> None:
    place.batch("a.vcz", cohort.ids(7, 2))
    file = place.write("- append: inbox/a.vcz")
    (tmp_path / "taken").write_text("")
    with unchanged(place), pytest.raises(StorageError, match=r"report: .*taken/report cannot be made"):
        run_job(file, report=tmp_path / "taken" / "report")


def test_an_invalid_job_file_is_a_usage_error(place: Place) -> None:
    (place.folder / "job.yaml").write_text("stores: x\nsteps: []\n")
    with unchanged(place):
        done = command("run", place.folder / "job.yaml")
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1


def test_schema_is_the_same_as_in_the_package() -> None:
    shipped = Path(vczstore.__file__).with_name("job.schema.json").read_text()
    assert json.loads(command("schema").stdout) == json.loads(shipped)


# ---- random jobs ----------------------------------------------------------------------------


@costly
@given(data=st.data(), kind=st.sampled_from(KINDS))
@pytest.mark.slow
def test_any_job_is_its_steps_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str
) -> None:
    """Random steps against the model; then the same job again."""
    place = make(tmp_path_factory.mktemp("job"), kind)
    expected, steps, next_id = OLD, [], 7
    for i in range(data.draw(st.integers(1, 4))):
        present = [s for s in expected["sample_id"] if s]
        match data.draw(st.sampled_from(["append", "remove", "update"])):
            case "append":
                n = data.draw(st.integers(1, 5))
                batch = place.batch(
                    f"{i}.vcz", cohort.ids(next_id, n), seed=i, samples_chunk=data.draw(st.integers(1, 4))
                )
                expected, next_id = cohort.expected_append(expected, batch), next_id + n
                steps.append(f"- append: inbox/{i}.vcz")
            case "remove" if present:
                samples = data.draw(st.lists(st.sampled_from(present), min_size=1, max_size=3, unique=True))
                expected = cohort.expected_remove(expected, samples)
                steps.append(f"- remove: [{', '.join(samples)}]")
            case "update" if present:
                samples = data.draw(st.lists(st.sampled_from(present), min_size=1, max_size=4, unique=True))
                batch = place.batch(f"{i}.vcz", samples, seed=100 + i)
                expected = cohort.expected_update(expected, batch)
                steps.append(f"- update: inbox/{i}.vcz")
    if not steps:
        return
    place.run("\n".join(steps))
    cohort.assert_same(place.read(), expected)
    with unchanged(place):
        assert place.run("\n".join(steps)).status == "nothing to do"
