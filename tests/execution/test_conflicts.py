"""Two writers on one store: whoever comes second is planned again, and no commit is lost."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import vczstore
from tests.support import cohort, forks
from tests.support.refusals import complain
from tests.support.small_stores import (
    NEW,
    OLD,
    batch,
    head,
    read,
    repository,
    repository_of,
    some_arrays,
    store,
    templates,
)
from vczstore.cli.main import main
from vczstore.errors import ConflictError, SampleError
from vczstore.jobs.run import run_job

__all__ = ["batch", "repository", "store", "templates"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")

OTHERS = some_arrays(["S0100", "S0101"], seed=2)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vczstore.execution.retry.PAUSE", 0)


@dataclass
class SomebodyElse:
    """Commits to a store when an operation begins to write, as often as told."""

    change: Callable[[int], object]
    times: int = 1
    during: str = "writing"
    done: int = 0
    waiting: bool = False

    def __call__(self, what: str, n: int, _: int) -> None:
        if what.startswith(self.during) and n == 1 and self.done < self.times:
            self.done += 1
            self.change(self.done)


@pytest.fixture
def others(tmp_path: Path) -> Path:
    cohort.write_vcz(tmp_path / "others.vcz", OTHERS)
    return tmp_path / "others.vcz"


APPENDED = cohort.expected_append(OLD, OTHERS)

OPERATIONS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "append": (vczstore.append, cohort.expected_append(APPENDED, NEW)),
    "append harmonised": (
        lambda s, b, **o: vczstore.append(s, b, harmonise=True, **o),
        cohort.expected_append(APPENDED, NEW),
    ),
    "remove": (lambda s, _, **o: vczstore.remove(s, "S0001", **o), cohort.expected_remove(APPENDED, ["S0001"])),
    "remove and purge": (
        lambda s, _, **o: vczstore.remove(s, "S0001", purge=True, **o),
        cohort.expected_remove(APPENDED, ["S0001"]),
    ),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.slow
def test_who_comes_second_plans_again(repository: Path, batch: Path, others: Path, operation: str) -> None:
    run, expected = OPERATIONS[operation]
    somebody = SomebodyElse(lambda _: vczstore.append(repository, others, impl="zarr"))
    result = run(repository, batch, progress=somebody)
    assert somebody.done == 1
    assert result.retries == 1
    cohort.assert_same(read(repository), expected)
    assert head(repository) == result.snapshot


@pytest.mark.slow
def test_what_changed_before_the_first_write(repository: Path, batch: Path, others: Path) -> None:
    somebody = SomebodyElse(lambda _: vczstore.append(repository, others, impl="zarr"), during="checking")
    assert vczstore.append(repository, batch, progress=somebody).retries == 1
    cohort.assert_same(read(repository), cohort.expected_append(APPENDED, NEW))


@pytest.mark.slow
def test_a_plan_that_was_made_before_is_not_made_again(store: Path, others: Path) -> None:
    plan = vczstore.plan("remove", store, "S0001")
    vczstore.append(store, others)
    complain(ConflictError, ("has changed since the plan was made",), lambda: vczstore.run(plan))
    cohort.assert_same(read(store), APPENDED)


@pytest.mark.slow
def test_the_number_of_times_is_bounded(repository: Path, batch: Path, tmp_path: Path) -> None:
    def another(n: int) -> None:
        cohort.write_vcz(tmp_path / f"{n}.vcz", some_arrays([f"T{n}"], seed=n))
        vczstore.append(repository, tmp_path / f"{n}.vcz", impl="zarr")

    somebody = SomebodyElse(another, times=100)
    words = (re.escape(str(repository)), "changed by another writer", r"retried 2 times")
    complain(ConflictError, words, lambda: vczstore.append(repository, batch, progress=somebody, max_retries=2))
    assert somebody.done == 3
    assert read(repository)["sample_id"].tolist() == [*OLD["sample_id"], "T1", "T2", "T3"]
    # each has committed once, and no other writer
    assert len(list(repository_of(repository).ancestry(branch="main"))) == 2 + 3


@pytest.mark.slow
def test_what_somebody_else_has_done_already_is_not_done_twice(repository: Path, batch: Path) -> None:
    somebody = SomebodyElse(lambda _: vczstore.append(repository, batch, impl="zarr"))
    words = ("append", "all 4 samples", "already")
    complain(SampleError, words, lambda: vczstore.append(repository, batch, progress=somebody))
    cohort.assert_same(read(repository), cohort.expected_append(OLD, NEW))
    somebody = SomebodyElse(lambda _: vczstore.remove(repository, "S0003", impl="zarr"))
    complain(SampleError, ("remove", "S0003"), lambda: vczstore.remove(repository, ["S0003"], progress=somebody))
    cohort.assert_same(read(repository), cohort.expected_remove(cohort.expected_append(OLD, NEW), ["S0003"]))


@pytest.mark.slow
def test_a_job_plans_again(repository: Path, batch: Path, others: Path, tmp_path: Path) -> None:
    """The tag names the commit that was made, and the ledger knows the batch."""
    file = tmp_path / "job.yaml"
    file.write_text("store: store.vcz\nsteps:\n  - append: batch.vcz\n  - remove: [S0001]\n  - tag: release-1\n")
    somebody = SomebodyElse(lambda _: vczstore.append(repository, others, impl="zarr"))
    result = run_job(file, progress=somebody, report=tmp_path / "report")
    assert (somebody.done, result.retries) == (1, 1)
    expected = cohort.expected_remove(cohort.expected_append(APPENDED, NEW), ["S0001"])
    cohort.assert_same(read(repository), expected)
    assert vczstore.tags(repository) == {"release-1": result.snapshot}
    assert run_job(file).status == "nothing to do"
    assert '"status": "done"' in (tmp_path / "report" / "report.json").read_text()


@pytest.mark.slow
def test_the_command_line_says_so(repository: Path, batch: Path, others: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    somebody = SomebodyElse(lambda _: vczstore.append(repository, others, impl="zarr", allow_returning=True), times=2)
    monkeypatch.setattr("vczstore.cli.main.wants_progress", lambda _: somebody)
    found = CliRunner().invoke(main, ["append", str(repository), str(batch), "--replans", "0"])
    assert found.exit_code == 4
    assert found.stderr.startswith("Error: ")
    assert found.stderr.count("\n") == 1
    vczstore.remove(repository, ["S0100", "S0101"])
    found = CliRunner().invoke(main, ["append", str(repository), str(batch)])
    assert (found.exit_code, found.stderr) == (0, "")
    assert "retried 1 time" in found.stdout


@pytest.mark.slow
def test_all_who_write_at_once_get_through(repository: Path, tmp_path: Path) -> None:
    """More processes than a writer is planned again: who has lost waits for its turn. Each batch comes in once."""
    batches = [some_arrays([f"B{i}a", f"B{i}b"], seed=i) for i in range(7)]
    for i, arrays in enumerate(batches):
        cohort.write_vcz(tmp_path / f"{i}.vcz", arrays)
    command = [forks.program("vczstore"), "append", str(repository)]
    writers = [
        subprocess.Popen([*command, str(tmp_path / f"{i}.vcz")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for i in range(len(batches))
    ]
    said = [w.communicate(timeout=240)[0].decode() for w in writers]
    assert [w.returncode for w in writers] == [0] * len(batches), said
    found = read(repository)
    came = found["sample_id"].tolist()[7::2]
    assert sorted(came) == [f"B{i}a" for i in range(len(batches))]
    cohort.assert_same(found, cohort.expected_append(OLD, *(batches[int(name[1])] for name in came)))
    assert len(list(repository_of(repository).ancestry(branch="main"))) == 2 + len(batches)
