"""Concurrent writers on one store: after a conflict an operation is planned again, and no commit is lost."""

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
class ConcurrentWriter:
    """A progress callback that calls `change` when an operation starts its phase `during`, up to `times` times."""

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
def test_a_conflict_is_planned_again(repository: Path, batch: Path, others: Path, operation: str) -> None:
    run, expected = OPERATIONS[operation]
    writer = ConcurrentWriter(lambda _: vczstore.append(repository, others, impl="zarr"))
    result = run(repository, batch, progress=writer)
    assert writer.done == 1
    assert result.retries == 1
    cohort.assert_same(read(repository), expected)
    assert head(repository) == result.snapshot


@pytest.mark.slow
def test_a_conflict_before_the_first_write(repository: Path, batch: Path, others: Path) -> None:
    writer = ConcurrentWriter(lambda _: vczstore.append(repository, others, impl="zarr"), during="checking")
    assert vczstore.append(repository, batch, progress=writer).retries == 1
    cohort.assert_same(read(repository), cohort.expected_append(APPENDED, NEW))


@pytest.mark.slow
def test_an_explicit_plan_is_not_planned_again(store: Path, others: Path) -> None:
    plan = vczstore.plan("remove", store, "S0001")
    vczstore.append(store, others)
    complain(ConflictError, ("has changed since the plan was made",), lambda: vczstore.run(plan))
    cohort.assert_same(read(store), APPENDED)


@pytest.mark.slow
def test_the_number_of_retries_is_bounded(repository: Path, batch: Path, tmp_path: Path) -> None:
    def append_one(n: int) -> None:
        cohort.write_vcz(tmp_path / f"{n}.vcz", some_arrays([f"T{n}"], seed=n))
        vczstore.append(repository, tmp_path / f"{n}.vcz", impl="zarr")

    writer = ConcurrentWriter(append_one, times=100)
    words = (re.escape(str(repository)), "changed by another writer", r"retried 2 times")
    complain(ConflictError, words, lambda: vczstore.append(repository, batch, progress=writer, max_retries=2))
    assert writer.done == 3
    assert read(repository)["sample_id"].tolist() == [*OLD["sample_id"], "T1", "T2", "T3"]
    # each commit of the concurrent writer landed once, and there are no others
    assert len(list(repository_of(repository).ancestry(branch="main"))) == 2 + 3


@pytest.mark.slow
def test_an_edit_that_another_writer_has_made_is_not_repeated(repository: Path, batch: Path) -> None:
    writer = ConcurrentWriter(lambda _: vczstore.append(repository, batch, impl="zarr"))
    words = ("append", "all 4 samples", "already")
    complain(SampleError, words, lambda: vczstore.append(repository, batch, progress=writer))
    cohort.assert_same(read(repository), cohort.expected_append(OLD, NEW))
    writer = ConcurrentWriter(lambda _: vczstore.remove(repository, "S0003", impl="zarr"))
    complain(SampleError, ("remove", "S0003"), lambda: vczstore.remove(repository, ["S0003"], progress=writer))
    cohort.assert_same(read(repository), cohort.expected_remove(cohort.expected_append(OLD, NEW), ["S0003"]))


@pytest.mark.slow
def test_a_job_is_planned_again(repository: Path, batch: Path, others: Path, tmp_path: Path) -> None:
    """The tag refers to the job's commit, and the ledger contains the batch."""
    file = tmp_path / "job.yaml"
    file.write_text("store: store.vcz\nsteps:\n  - append: batch.vcz\n  - remove: [S0001]\n  - tag: release-1\n")
    writer = ConcurrentWriter(lambda _: vczstore.append(repository, others, impl="zarr"))
    result = run_job(file, progress=writer, report=tmp_path / "report")
    assert (writer.done, result.retries) == (1, 1)
    expected = cohort.expected_remove(cohort.expected_append(APPENDED, NEW), ["S0001"])
    cohort.assert_same(read(repository), expected)
    assert vczstore.tags(repository) == {"release-1": result.snapshot}
    assert run_job(file).status == "nothing to do"
    assert '"status": "done"' in (tmp_path / "report" / "report.json").read_text()


@pytest.mark.slow
def test_conflicts_in_commands(repository: Path, batch: Path, others: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ConcurrentWriter(lambda _: vczstore.append(repository, others, impl="zarr", allow_returning=True), times=2)
    monkeypatch.setattr("vczstore.cli.main.wants_progress", lambda _: writer)
    result = CliRunner().invoke(main, ["append", str(repository), str(batch), "--replans", "0"])
    assert result.exit_code == 4
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    vczstore.remove(repository, ["S0100", "S0101"])
    result = CliRunner().invoke(main, ["append", str(repository), str(batch)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert "retried 1 time" in result.stdout


@pytest.mark.slow
def test_all_concurrent_writers_succeed(repository: Path, tmp_path: Path) -> None:
    """With more writers than retries, losers must wait for their turn. Each batch is appended once."""
    batches = [some_arrays([f"B{i}a", f"B{i}b"], seed=i) for i in range(7)]
    for i, arrays in enumerate(batches):
        cohort.write_vcz(tmp_path / f"{i}.vcz", arrays)
    command = [forks.program("vczstore"), "append", str(repository)]
    writers = [
        subprocess.Popen([*command, str(tmp_path / f"{i}.vcz")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for i in range(len(batches))
    ]
    outputs = [w.communicate(timeout=240)[0].decode() for w in writers]
    assert [w.returncode for w in writers] == [0] * len(batches), outputs
    arrays = read(repository)
    order = arrays["sample_id"].tolist()[7::2]
    assert sorted(order) == [f"B{i}a" for i in range(len(batches))]
    cohort.assert_same(arrays, cohort.expected_append(OLD, *(batches[int(name[1])] for name in order)))
    assert len(list(repository_of(repository).ancestry(branch="main"))) == 2 + len(batches)
