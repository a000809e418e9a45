"""Jobs on Icechunk resume after their driver was killed; the tests count the chunks that are written again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import icechunk
import numpy as np
import psutil
import pytest
from zarr.storage import MemoryStore

import vczstore
from plans.core.cubed_backend import tasks_of
from plans.core.model import Plan
from tests.support import cohort, forks
from tests.support.clouds import Cloud
from vczstore.errors import Interrupted, StaleError, StorageError
from vczstore.execution import checkpoint
from vczstore.jobs.notify import Outcome
from vczstore.jobs.results import SetJobResult
from vczstore.jobs.run import JobResult, plan_job, run_compiled, run_job
from vczstore.jobs.sets import CompiledSet
from vczstore.stores import lock
from vczstore.vcz import encoded_chunks

N_VARIANTS = 320
LAYOUT: dict[str, Any] = {"variants_chunk": 32, "samples_chunk": 16, "compressors": None}
"""Chunks of 1 to 2 kB: Icechunk stores each as an object, so that the chunks written by a run can be listed."""
FIELDS = ("call_genotype", "call_DP")


def ids(first: int, n: int) -> list[str]:
    """Sample IDs so long that Icechunk stores each chunk of them as an object, too."""
    return [f"{name}-{'x' * 40}" for name in cohort.ids(first, n)]


STEPS = """
  - append: a.vcz
  - append: b.vcz
  - update: c.vcz
"""
"""The first decodes two chunk columns, the second copies two verbatim, the third decodes two: 20 chunks each."""
PLANNED = (42, 42, 40)
"""Number of chunks written by each step: those of the two fields, and those of sample_id."""


def make_arrays(first: int, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    arrays = cohort.make_arrays(N_VARIANTS, ids(first, n), seed=seed)
    return {k: a for k, a in arrays.items() if k in (*FIELDS, "sample_id") or "samples" not in cohort.DIMENSIONS[k]}


OLD, A, B = make_arrays(0, 24), make_arrays(24, 24, 1), make_arrays(48, 32, 2)
C = {**make_arrays(0, 2, 3), "sample_id": np.array([*ids(3, 1), *ids(20, 1)], dtype=object)}
NEW = cohort.expected_update(cohort.expected_append(OLD, A, B), C)

DRIVER = """
import json, os, signal, sys
import psutil
from vczstore.jobs.run import run_job
from vczstore.execution import checkpoint
from vczstore.stores import lock

file, n, checkpoint.REST, lock.TTL = json.loads(sys.argv[1])

def progress(what, done, total):
    global n
    n -= what.startswith("writing")
    if n == 0:
        print(json.dumps([process.pid for process in psutil.Process().children(recursive=True)]), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

run_job(file, progress=progress)
"""


@dataclass
class Place:
    """A folder with a job, its batches, its work dir, and unless it is in a bucket, the store."""

    folder: Path
    url: str
    options: dict[str, Any] = field(default_factory=dict)
    storage: Callable[[], icechunk.Storage] | None = None
    chunks: Callable[[], set[str]] | None = None

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def repository(self) -> icechunk.Repository:
        return icechunk.Repository.open(
            self.storage() if self.storage else icechunk.local_filesystem_storage(str(self.folder / "store"))
        )

    def written(self) -> set[str]:
        """Names of the objects of all chunks, referenced or not."""
        return self.chunks() if self.chunks else {path.name for path in (self.folder / "store/chunks").iterdir()}

    def read(self) -> dict[str, np.ndarray]:
        return cohort.read_vcz(self.repository.readonly_session("main").store)

    def job(self, executor: str = "threads", steps: str = STEPS, work_dir: str | None = "work") -> Path:
        file = self.folder / "job.yaml"
        store = json.dumps({"url": self.url, "storage-options": self.options} if self.options else self.url)
        values = {
            "store": store,
            "executor": executor,
            "max-workers": "2",
            **({"work-dir": work_dir} if work_dir else {}),
        }
        file.write_text("".join(f"{key}: {value}\n" for key, value in values.items()) + f"steps:{steps}")
        return file

    def kill(self, file: Path, n: int, *, rest: float = 0) -> None:
        """Run the job, and kill its driver after `n` tasks have written; `rest` is the interval between records."""
        head = self.repository.lookup_branch("main")
        command = [forks.program("python"), "-c", DRIVER, json.dumps([str(file), n, rest, 1.0])]
        killed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        # its workers exit by themselves, and until then may write chunks that are not in the journal
        left = [psutil.Process(pid) for pid in json.loads(killed.stdout) if psutil.pid_exists(pid)]
        assert psutil.wait_procs(left, timeout=120)[1] == []
        assert self.repository.lookup_branch("main") == head

    @property
    def journal(self) -> Path:
        """The journal, which is the only file in the work dir."""
        (file,) = self.work.iterdir()
        return file

    def complete(
        self, file: Path, expected: dict[str, np.ndarray] = NEW, then: str = "nothing to do"
    ) -> tuple[int, JobResult]:
        """Rerun the job until it is complete; return the number of new chunk objects and the job's result."""
        before, head = self.written(), self.repository.lookup_branch("main")
        result = run_job(file)
        assert result.status == "done"
        cohort.assert_same(self.read(), expected)
        history = [snapshot.id for snapshot in self.repository.ancestry(branch="main")]
        assert history[:2] == [result.snapshot, head]  # one commit
        assert list(self.work.iterdir()) == []
        n_new = len(self.written() - before)
        assert run_job(file).status == then
        return n_new, result


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    cohort.write_icechunk(folder / "store", OLD, **LAYOUT)
    cohort.write_vcz(folder / "a.vcz", A, **LAYOUT)
    cohort.write_vcz(folder / "b.vcz", B, **LAYOUT)
    cohort.write_vcz(folder / "c.vcz", C, **LAYOUT)
    return folder


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Place:
    # with modification times, because they are part of the identity of a batch
    subprocess.run(["cp", "-a", f"{template}/.", tmp_path], check=True)
    return Place(tmp_path, "store")


def resumed(result: JobResult) -> int:
    """The number of chunks that were not written again."""
    n_resumed = sum(r.resumed_chunks for r in result.results)
    assert n_resumed + sum(r.chunks or 0 for r in result.results) == sum(PLANNED)
    return n_resumed


def n_writing_tasks(plan: Plan) -> int:
    return sum(sum(tasks_of(step.cubed_writes(MemoryStore())).values()) for step in plan.steps)


def tasks(file: Path) -> list[int]:
    """The number of writing tasks of each step."""
    return [n_writing_tasks(plan) for plan in plan_job(file).plans]


# ---- killed ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("executor", "step", "part"),
    [
        ("threads", 0, 0.0),
        ("threads", 2, 1.0),
        ("processes", 1, 0.6),
    ],
)
def test_a_job_is_resumed_after_its_driver_was_killed(place: Place, executor: str, step: int, part: float) -> None:
    file, before = place.job(executor), place.written()
    per_step = tasks(file)
    within = max(1, round(part * per_step[step]))
    place.kill(file, sum(per_step[:step]) + within)
    orphans = len(place.written() - before)
    again, result = place.complete(file)
    # chunks in the journal are kept; other chunks are written again even if they exist
    n_resumed = resumed(result)
    assert sum(PLANNED[:step]) + within <= n_resumed <= orphans
    assert again == sum(PLANNED) - n_resumed


@pytest.mark.slow
@pytest.mark.parametrize("work_dir", ["work", None])
def test_a_job_on_a_set_is_resumed_in_each_part(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work_dir: str | None
) -> None:
    """The first part was complete and the second one partly written; their chunks are not written again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoint, "MIN_CHUNKS", 1)
    places = {part: Place(tmp_path / part, "store") for part in ("chr1", "chr2")}
    for part in places:
        subprocess.run(["cp", "-a", f"{template}/.", tmp_path / part], check=True)
    steps = "\n  - append: '{part}/a.vcz'\n"
    file = Place(tmp_path, "{part}/store").job("single-threaded", steps, work_dir)
    per_part = [n_writing_tasks(plan) for job in compiled_set(file).parts.values() for plan in job.plans]
    command = [
        forks.program("python"),
        "-c",
        f"from vczstore.execution import checkpoint; checkpoint.MIN_CHUNKS = 1\n{DRIVER}",
    ]
    killed = subprocess.run(
        [*command, json.dumps([str(file), per_part[0] + 3, 0, 1.0])], capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = {part: place.written() for part, place in places.items()}
    done = run_job(file)
    assert isinstance(done, SetJobResult)
    n_resumed = []
    for part, place in places.items():
        (result,) = done.parts[part].results
        cohort.assert_same(place.read(), cohort.expected_append(OLD, A))
        assert len(place.written() - before[part]) == (result.chunks or 0) == PLANNED[0] - result.resumed_chunks
        assert place.repository.list_branches() == {"main"}
        n_resumed.append(result.resumed_chunks)
    assert n_resumed[0] > n_resumed[1] >= 3
    assert not [*tmp_path.rglob("*.journal")]
    assert run_job(file).status == "nothing to do"


def compiled_set(file: Path) -> CompiledSet:
    compiled = plan_job(file)
    assert isinstance(compiled, CompiledSet)
    return compiled


@pytest.mark.slow
def test_on_lithops(tmp_path: Path) -> None:
    """With few tasks, because each is a Python process; those running when the driver is killed end later."""
    few = [{k: a[:64] if len(a) == N_VARIANTS else a for k, a in arrays.items()} for arrays in (OLD, A)]
    old, batch = [{k: a for k, a in arrays.items() if k != "call_DP"} for arrays in few]
    cohort.write_icechunk(tmp_path / "store", old, **LAYOUT)
    cohort.write_vcz(tmp_path / "a.vcz", batch, **LAYOUT)
    place = Place(tmp_path, "store")
    file = place.job("lithops", steps="\n  - append: a.vcz\n")
    place.kill(file, 2)
    again, result = place.complete(file, cohort.expected_append(old, batch))
    n_resumed = result.results[0].resumed_chunks
    assert 0 < n_resumed < 6
    assert again == 6 - n_resumed


@pytest.mark.slow
def test_at_an_object_store(template: Path, tmp_path: Path, s3_cloud: Cloud) -> None:
    subprocess.run(["cp", "-a", f"{template}/.", tmp_path], check=True)
    cohort.write_vcz(tmp_path / "old.vcz", OLD, **LAYOUT)
    name = f"resumed-{uuid4().hex}"
    url = f"{s3_cloud.url}/{name}"
    vczstore.copy_store_to_icechunk(tmp_path / "old.vcz", url, storage_options=s3_cloud.options)

    def chunks() -> set[str]:
        return {entry["path"] for batch in s3_cloud.objects(name).list("chunks") for entry in batch}

    place = Place(tmp_path, url, s3_cloud.options, lambda: s3_cloud.storage(name), chunks)
    file = place.job("threads")
    per_step = tasks(file)
    place.kill(file, per_step[0] + per_step[1] // 2)
    content = place.journal.read_bytes()
    for secret in s3_cloud.secrets:
        assert secret.encode() not in content
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "TTL", 1.0)
        patch.setattr(lock, "ABANDONED", 0)  # do not wait for the dead driver's lease to expire
        again, result = place.complete(file)
    assert PLANNED[0] < resumed(result) < sum(PLANNED[:2])
    assert again == sum(PLANNED) - resumed(result)


@pytest.mark.slow
def test_at_the_default_interval(place: Place) -> None:
    """With records at the default interval, the journal is behind the written chunks, never ahead of them."""
    file = place.job("single-threaded")
    place.kill(file, sum(tasks(file)) - 1, rest=checkpoint.REST)
    again, result = place.complete(file)
    assert resumed(result) >= sum(PLANNED[:2])  # the start of each step is recorded
    assert again == sum(PLANNED) - resumed(result)


@pytest.mark.parametrize(("step", "within"), [(1, 1), (1, None), (3, 2)])
@pytest.mark.slow
def test_new_arrays(place: Place, step: int, within: int | None) -> None:
    """New arrays exist only in the killed driver's session, with their own node IDs."""
    (place.folder / "whole").mkdir()
    shutil.copytree(place.folder / "store", place.folder / "whole/store")
    (removed,) = ids(30, 1)
    steps = f"\n  - append: a.vcz\n  - recompute: [AN, NS, AF]\n  - append: b.vcz\n  - remove: [{removed}]\n"
    file = place.job(steps=steps)
    per_step = tasks(file)
    run_job(file, [f"store={place.folder}/whole/store"])
    expected = Place(place.folder / "whole", "store").read()
    called = (np.concatenate([OLD["call_genotype"], A["call_genotype"]], axis=1) >= 0).sum(axis=(1, 2))
    np.testing.assert_array_equal(expected["variant_AN"], called)
    place.kill(file, sum(per_step[:step]) + (within or per_step[step]))
    _, result = place.complete(file, expected, then="done")  # the fields are stale again
    n_resumed = [r.resumed_chunks for r in result.results]
    assert n_resumed[:step] == [42, 30, 42][:step]
    assert n_resumed[step] > 0
    assert n_resumed[step + 1 :] == [0] * (3 - step)


@pytest.mark.slow
def test_killed_after_the_commit(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    file = place.job()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Journal, "delete", lambda self: None)
        run_job(file)
    assert place.journal.exists()  # with sample IDs
    assert run_job(file).status == "nothing to do"
    assert list(place.work.iterdir()) == []


# ---- failed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.slow
def test_a_failed_run_is_resumed(place: Place, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    file = place.job()
    real, left = encoded_chunks.set_encoded, iter(range(10))

    def set_encoded(*args: Any) -> None:
        if next(left, None) is None:
            raise error
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(encoded_chunks, "set_encoded", set_encoded)
        with pytest.raises(Interrupted if isinstance(error, KeyboardInterrupt) else StorageError):
            run_job(file)
    cohort.assert_same(place.read(), OLD)
    again, result = place.complete(file)
    assert PLANNED[0] < resumed(result) < sum(PLANNED[:2])
    assert again == sum(PLANNED) - resumed(result)


@pytest.mark.slow
def test_a_conflict_leaves_no_journal(place: Place) -> None:
    compiled = plan_job(place.job())
    remove = partial(vczstore.remove, place.folder / "store", *ids(0, 1))
    with pytest.raises(StaleError):
        run_compiled(compiled, Outcome(compiled.job), Mock(check=remove))
    assert list(place.work.iterdir()) == []


# ---- restarted -------------------------------------------------------------------------------


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def sign(body: bytes) -> bytes:
    return body + hashlib.blake2b(body, digest_size=32).digest()


def other_session(file: Path) -> None:
    head, _, _ = file.read_bytes().partition(b"\n")
    metadata = json.loads(head)
    file.write_bytes(sign(head + b"\n" + b"x" * metadata["session"]))


def other_tasks(file: Path) -> None:
    head, _, rest = file.read_bytes().partition(b"\n")
    metadata = json.loads(head)
    metadata["tasks"] = dict.fromkeys(metadata["tasks"], 1)
    file.write_bytes(sign(json.dumps(metadata).encode() + b"\n" + rest[:-32]))


def link(file: Path) -> None:
    file.rename(file.parent.parent / "elsewhere")
    file.symlink_to("../elsewhere")


@pytest.fixture(scope="module")
def as_killed(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The folder of a job whose driver was killed in the second step; a copy is in another folder next to it."""
    folder = tmp_path_factory.mktemp("killed")
    subprocess.run(["cp", "-a", f"{template}/.", folder], check=True)
    place = Place(folder, "store")
    file = place.job()
    place.kill(file, tasks(file)[0] + 4)
    subprocess.run(["cp", "-a", folder, f"{folder}-copy"], check=True)
    return place


@pytest.fixture
def killed(as_killed: Place) -> Place:
    """The same folder, restored from the copy, at the same path because a journal contains the store's location."""
    folder = as_killed.folder
    shutil.rmtree(folder)
    subprocess.run(["cp", "-a", f"{folder}-copy", folder], check=True)
    return as_killed


def restarts(place: Place, caplog: pytest.LogCaptureFixture, words: str) -> None:
    name = place.journal
    with caplog.at_level(logging.INFO, "vczstore"):
        again, result = place.complete(place.folder / "job.yaml")
    assert (again, resumed(result)) == (sum(PLANNED), 0)
    (message,) = caplog.messages
    assert message.startswith(f"the run starts from the beginning: {name} ")
    assert words in message


@pytest.mark.slow
def test_on_another_executor(killed: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Control of the following tests: without further changes, the job is resumed."""
    assert stat.S_IMODE(killed.journal.stat().st_mode) == 0o600
    file = killed.job("processes")
    with caplog.at_level(logging.INFO, "vczstore"):
        again, result = killed.complete(file)
    assert again == sum(PLANNED) - resumed(result) < sum(PLANNED[1:])
    (message,) = caplog.messages
    assert message.startswith("the run goes on with step 2, where ")


@pytest.mark.slow
def test_killed_repeatedly(killed: Place) -> None:
    file, before = killed.folder / "job.yaml", killed.written()
    for n in (5, 7):
        killed.kill(file, n)
    again, result = killed.complete(file)
    assert sum(PLANNED[:1]) + 12 <= resumed(result) <= len(before) + sum(PLANNED)
    assert again == sum(PLANNED) - resumed(result)


@pytest.mark.slow
def test_another_job_replaces_the_journal(killed: Place, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vczstore"):
        assert run_job(killed.job(steps="\n  - append: b.vcz\n")).status == "done"
    assert "is of another job" in caplog.text
    assert list(killed.work.iterdir()) == []
    cohort.assert_same(killed.read(), cohort.expected_append(OLD, B))


@pytest.mark.slow
def test_a_resumed_run_may_have_a_conflict(killed: Place) -> None:
    file, store = killed.folder / "job.yaml", killed.folder / "store"
    compiled, remove = plan_job(file), partial(vczstore.remove, store, *ids(0, 1))
    with pytest.raises(StaleError):
        run_compiled(compiled, Outcome(compiled.job), Mock(check=remove))
    cohort.assert_same(killed.read(), cohort.expected_remove(OLD, ids(0, 1)))
    assert list(killed.work.iterdir()) == []
    again, result = killed.complete(file, cohort.expected_remove(NEW, ids(0, 1)))
    assert (again, resumed(result)) == (sum(PLANNED), 0)


@pytest.mark.slow
def test_a_resumed_run_is_planned_again_after_a_conflict(killed: Place) -> None:
    """The chunks written for the old state cannot be used then."""
    store, before, done = killed.folder / "store", killed.written(), list[str]()

    def progress(what: str, _done: int, _total: int) -> None:
        if what.startswith("writing") and not done:
            done.append(what)
            vczstore.remove(store, *ids(0, 1))

    result = run_job(killed.folder / "job.yaml", progress=progress)
    assert (result.retries, resumed(result)) == (1, 0)
    assert len(killed.written() - before) > sum(PLANNED)
    cohort.assert_same(killed.read(), cohort.expected_remove(NEW, ids(0, 1)))
    assert list(killed.work.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "is damaged"),
        (flip, "is damaged"),
        (lambda file: file.write_bytes(b""), "is damaged"),
        (lambda file: file.write_bytes(sign(b"{}")), "is of another format"),
        (lambda file: file.write_bytes(sign(b"\xff\x00")), "is of another format"),
        (other_session, "is of no use"),
        (link, "cannot be read"),
        (lambda file: file.chmod(0o620), "is not trusted"),
        (lambda file: file.chmod(0o604), "is not trusted"),
        (lambda file: (file.unlink(), os.mkfifo(file, 0o600)), "is not trusted"),
    ],
)
@pytest.mark.slow
def test_untrusted_journals(
    killed: Place, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], words: str
) -> None:
    damage(killed.journal)
    restarts(killed, caplog, words)


@pytest.mark.slow
def test_a_step_with_other_tasks_starts_over(killed: Place) -> None:
    """For instance on another executor, with larger tasks; earlier steps are resumed."""
    other_tasks(killed.journal)
    again, result = killed.complete(killed.folder / "job.yaml")
    assert (again, resumed(result)) == (sum(PLANNED[1:]), PLANNED[0])


@pytest.mark.slow
def test_garbage_was_collected(killed: Place, caplog: pytest.LogCaptureFixture) -> None:
    """By another tool, which does not know that a journal refers to chunks."""
    chunks = killed.written()
    killed.repository.garbage_collect(datetime.now(UTC))
    assert killed.written() < chunks
    restarts(killed, caplog, "is of no use")


@pytest.mark.slow
def test_garbage_collection_that_deleted_nothing(killed: Place, caplog: pytest.LogCaptureFixture) -> None:
    """The run starts over, because it cannot know that nothing was deleted."""
    killed.repository.garbage_collect(datetime(2020, 1, 1, tzinfo=UTC))
    restarts(killed, caplog, "garbage was collected since")


@pytest.mark.slow
def test_the_store_was_restored_from_a_copy(killed: Place, template: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The copy has the same snapshot, but lacks the chunks."""
    shutil.rmtree(killed.folder / "store")
    shutil.copytree(template / "store", killed.folder / "store")
    restarts(killed, caplog, "is of no use")


@pytest.mark.slow
def test_the_store_has_changed(killed: Place, caplog: pytest.LogCaptureFixture) -> None:
    vczstore.remove(killed.folder / "store", *ids(0, 1))
    name = killed.journal
    with caplog.at_level(logging.INFO, "vczstore"):
        again, result = killed.complete(killed.folder / "job.yaml", cohort.expected_remove(NEW, ids(0, 1)))
    assert (again, resumed(result)) == (sum(PLANNED), 0)
    assert caplog.messages[0].startswith(f"the run starts from the beginning: {name} is of another job")


@pytest.mark.slow
def test_a_source_has_changed(killed: Place, caplog: pytest.LogCaptureFixture) -> None:
    other = make_arrays(24, 24, 9)
    shutil.rmtree(killed.folder / "a.vcz")
    cohort.write_vcz(killed.folder / "a.vcz", other, **LAYOUT)
    with caplog.at_level(logging.INFO, "vczstore"):
        _, result = killed.complete(
            killed.folder / "job.yaml",
            cohort.expected_update(cohort.expected_append(OLD, other, B), C),
        )
    assert resumed(result) == 0
    assert "is of another job" in caplog.text


# ---- no journal -----------------------------------------------------------------------------


@pytest.mark.parametrize("work_dir", [None, "s3://nowhere/work"])
@pytest.mark.slow
def test_no_journal_without_a_local_folder(place: Place, work_dir: str | None) -> None:
    assert run_job(place.job(work_dir=work_dir)).status == "done"
    assert not place.work.exists()


@pytest.mark.slow
def test_no_journal_on_plain_zarr(place: Place) -> None:
    cohort.write_vcz(place.folder / "plain.vcz", OLD, **LAYOUT)
    assert run_job(place.job(), ["store=plain.vcz"]).status == "done"
    assert not place.work.exists()


@pytest.mark.slow
def test_a_job_works_without_a_journal(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    (place.folder / "taken").write_text("")
    assert run_job(place.job(work_dir="taken/work")).status == "done"
    cohort.assert_same(place.read(), NEW)
    (message,) = caplog.messages  # at the default level
    assert message.startswith("no journal is kept, so a run that is stopped starts from the beginning: ")
