"""Lithops on this machine, which handles a plan as in a cloud: pickles, object storage, merged sessions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import icechunk
import numpy as np
import psutil
import pytest
import zarr

import executors
import vczstore
from executors.lithops import LithopsExecutor, LostTaskError
from tests.support import cohort, small_vcf
from tests.support.paths import ROOT
from tests.support.refusals import complain
from tests.support.s3 import CREDENTIALS, S3Server
from tests.support.small_stores import edit, repository_of, truncate
from vczstore.errors import MissingDependencyError, OptionError

FIELDS = ("sample_id", "contig_id", "variant_contig", "variant_position", "variant_allele", "call_genotype")
"""Few fields, because every task is a process."""
LITHOPS = ("--executor", "lithops", "--max-workers", "2")


def of(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: arrays[name] for name in FIELDS}


OLD = of(cohort.make_arrays(10, cohort.ids(0, 7)))
NEW = of(cohort.make_arrays(10, cohort.ids(7, 4), seed=1))


class Machine:
    """A private folder for temporary files, to detect files and processes that Lithops leaves behind."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        folder.mkdir()
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "HOME": str(folder)}
        self.environment |= {"ICECHUNK_LOG": "", **environment}

    def begin(self, *arguments: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vczstore", *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, env=self.environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def run(self, *arguments: str | Path, status: int = 0) -> str:
        """Run a command and return its standard error; assert that it leaves no files or processes."""
        process = self.begin(*arguments)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == status, stderr
        self.assert_clean()
        return stderr

    def assert_clean(self) -> None:
        assert not self.processes()
        left = [
            path
            for kind in ("jobs", "logs", "storage/lithops.jobs", "cleaner")
            for path in self.folder.glob(f"lithops-*/{kind}/*")
        ]
        assert not left

    def processes(self) -> list[psutil.Process]:
        """Processes that Lithops has started from this folder."""
        return [p for p in psutil.process_iter() if str(self.folder / "lithops-") in " ".join(_command(p))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "tmp")


def make(folder: Path, kind: str) -> tuple[Path, Path]:
    """Write a store and a batch, and return their paths."""
    cohort.write_vcz(folder / "batch.vcz", NEW)
    (cohort.write_icechunk if kind == "icechunk" else cohort.write_vcz)(folder / "store.vcz", OLD)
    return folder / "store.vcz", folder / "batch.vcz"


# ---- operations -----------------------------------------------------------------------------


@pytest.mark.slow
def test_everything_in_an_object_store(tmp_path: Path, s3_server: S3Server) -> None:
    """As in a cloud: the store and Lithops' own storage are in S3. The batch is a local folder."""
    bucket = s3_server.url("lithops-cohort")
    s3_server.url("lithops-tmp")
    client = boto3.client("s3", endpoint_url=s3_server.endpoint, region_name="us-east-1")
    make(tmp_path, "format3")
    options = {"storage_options": s3_server.options}
    vczstore.copy_store_to_icechunk(tmp_path / "store.vcz", f"{bucket}/store", impl="zarr", **options)
    machine = Machine(tmp_path / "tmp", AWS_ENDPOINT_URL=s3_server.endpoint, AWS_REGION="us-east-1", **CREDENTIALS)
    (tmp_path / "s3.yaml").write_text(
        "name: lithops\n"
        "options:\n"
        "  backend: localhost\n"
        "  storage: aws_s3\n"
        "  max-workers: 2\n"
        "  config: {aws: {region: us-east-1}, aws_s3: {storage_bucket: lithops-tmp}}\n"
    )
    flags = [f"--storage-option={key}={value}" for key, value in s3_server.options.items()]
    stderr = machine.run(
        "append", f"{bucket}/store", tmp_path / "batch.vcz", "--executor", tmp_path / "s3.yaml", *flags
    )
    assert stderr == ""
    keys = [o["Key"] for o in client.list_objects_v2(Bucket="lithops-tmp").get("Contents", [])]
    assert [key for key in keys if not key.startswith("lithops.runtimes/")] == []
    session = icechunk.Repository.open(s3_server.storage("s3://lithops-cohort/store")).readonly_session("main")
    cohort.assert_same(cohort.read_vcz(session.store), cohort.expected_append(OLD, NEW))


@pytest.mark.slow
def test_a_task_that_fails(tmp_path: Path, machine: Machine) -> None:
    store, batch = make(tmp_path, "icechunk")
    edit(batch, truncate("call_genotype", 1, 1, 0))
    (tmp_path / "once.yaml").write_text("name: lithops\noptions: {retries: 0, max-workers: 2}\n")
    stderr = machine.run("append", store, batch, "--executor", tmp_path / "once.yaml", status=1)
    assert stderr.startswith("Error: append: ")
    assert stderr.count("\n") == 1
    assert "call_genotype" in stderr
    cohort.assert_same(cohort.read_vcz(cohort.icechunk_store(store)), OLD)


@pytest.mark.slow
def test_an_interrupt(tmp_path: Path, machine: Machine) -> None:
    store, batch = make(tmp_path, "icechunk")
    process = machine.begin("append", store, batch, *LITHOPS)
    while process.poll() is None and not any("run_job" in _command(p) for p in machine.processes()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr == "append: interrupted; nothing was committed, the store is as it was\n"
    machine.assert_clean()
    cohort.assert_same(cohort.read_vcz(cohort.icechunk_store(store)), OLD)


# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", sorted(set(executors.NAMES) - executors.IN_PROCESS))
def test_a_store_in_memory(tmp_path: Path, executor: str) -> None:
    memory = zarr.storage.MemoryStore()
    cohort.write_vcz(memory, OLD)
    cohort.write_vcz(tmp_path / "batch.vcz", NEW)
    words = ("^append: ", "in this process's memory", "threads")
    complain(OptionError, words, lambda: vczstore.append(memory, tmp_path / "batch.vcz", executor=executor))
    cohort.assert_same(cohort.read_vcz(memory), OLD)


@contextmanager
def in_the_cloud(s3_server: S3Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write an executor file for Lambda, on which no task is run."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    s3_server.url("lithops-lambda")
    file = folder / "lambda.yaml"
    file.write_text(
        "name: lithops\n"
        "options:\n"
        "  backend: aws_lambda\n"
        "  storage: aws_s3\n"
        "  runtime-memory: 512\n"
        "  config:\n"
        "    aws: {region: us-east-1}\n"
        "    aws_lambda: {execution_role: 'arn:aws:iam::123456789012:role/lithops'}\n"
        "    aws_s3: {storage_bucket: lithops-lambda}\n"
    )
    yield file


@pytest.mark.slow
def test_a_cloud_cannot_reach_folders(tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cloud workers would find no chunks in a local source, and chunks written to a local store would be lost."""
    options = {"storage_options": s3_server.options}
    store, batch = make(tmp_path, "format3")
    bucket = s3_server.url("lithops-folders")
    vczstore.copy_store_to_icechunk(store, f"{bucket}/store", impl="zarr", **options)
    before = cohort.digest(store)
    with in_the_cloud(s3_server, tmp_path, monkeypatch) as file:
        run = {"executor": str(file), "allowed_mem": "500MB"}
        words = ("^append: .*store.vcz is on this machine", "processes")
        complain(OptionError, words, lambda: vczstore.append(store, batch, **run))
        words = ("^append: <Icechunk repository> is not named by a URL", "processes")
        cohort.write_icechunk(tmp_path / "local", OLD)
        repository = repository_of(tmp_path / "local")
        complain(OptionError, words, lambda: vczstore.append(repository, batch, **run))
        words = ("^append: .*batch.vcz.* is on this machine", "object store")
        complain(OptionError, words, lambda: vczstore.append(f"{bucket}/store", batch, **options, **run))
        words = ("^append: .*batch.vcf is a VCF, which is converted on this machine", "vcf2zarr into the object store")
        vcf = small_vcf.write(tmp_path / "batch.vcf", small_vcf.text())
        complain(OptionError, words, lambda: vczstore.append(f"{bucket}/store", vcf, **options, **run))
        words = ("^append: a task may use 2,000,000,000 bytes", "512,000,000", "runtime-memory", "allowed-mem")
        del run["allowed_mem"]
        complain(OptionError, words, lambda: vczstore.append(f"{bucket}/store", batch, **options, **run))
    assert cohort.digest(store) == before
    assert vczstore.info(f"{bucket}/store", **options).samples == 7


REFUSED = {
    "unknown": ({"speed": 3}, "no option speed; it has backend, config, config-file, max-workers, retries"),
    "both": ({"config": {}, "config-file": "lithops.yaml"}, "config or config-file, not both"),
    "no file": ({"config-file": "/nonexistent.yaml"}, "cannot be configured: .*nonexistent.yaml"),
    "backend": ({"config": {"lithops": {}}, "backend": "abacus"}, "abacus"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_options_that_lithops_does_not_take(options: dict[str, Any], message: str) -> None:
    with pytest.raises((executors.ExecutorOptionError, executors.MissingEngineError), match=message) as caught:
        executors.create("lithops", **options)
    assert "\n" not in str(caught.value)


def test_lithops_is_not_installed(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, batch, *_ = small
    monkeypatch.setitem(sys.modules, "lithops", None)
    before = cohort.digest(store)
    words = (r"from a clone of vczstore: pip install '.\[lithops\]'",)
    complain(MissingDependencyError, words, lambda: vczstore.append(store, batch, executor="lithops"))
    assert cohort.digest(store) == before


@pytest.mark.slow
def test_the_inputs_of_all_tasks_are_not_pickled_together() -> None:
    """They hold large readers, and on this machine may refer to local stores."""
    from tests.support.tasks import Ends, dag_of

    class Inputs(list[list[int]]):
        def __reduce__(self) -> Any:
            raise AssertionError("pickled")

    def task(coords: list[int], *, config: None) -> int:
        return coords[0]

    dag, ends = dag_of(task, 2), Ends()
    dag.nodes["op"]["pipeline"] = replace(dag.nodes["op"]["pipeline"], mappable=Inputs([[0], [1]]))
    engine = executors.create("lithops")
    try:
        engine.execute_dag(dag, callbacks=[ends])
    finally:
        engine.close()
    assert sorted(ends.results) == [0, 1]


@pytest.mark.slow
def test_a_worker_that_is_killed() -> None:
    from tests.support.tasks import run_tasks

    def task(coords: list[int], *, config: None) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    started = time.monotonic()
    with pytest.raises(MemoryError, match="killed"):
        run_tasks("lithops", task, 1, retries=0)
    assert time.monotonic() - started < 30


def runner(folder: Path, body: str) -> str:
    """Write a wrapper of Python that runs the shell command `body` before it runs the first task."""
    file = folder / "python"
    begun = folder / "begun"
    file.write_text(
        f'#!/bin/sh\nif [ "$2" = run_job ] && mkdir {begun} 2> /dev/null; then {body}; fi\nexec {sys.executable} "$@"\n'
    )
    file.chmod(0o755)
    return str(file)


@pytest.mark.slow
def test_a_worker_that_ends_silently(tmp_path: Path) -> None:
    from tests.support.tasks import run_tasks

    def task(coords: list[int], *, config: None) -> int:
        return coords[0]

    python = runner(tmp_path, "exit 3")
    assert sorted(run_tasks("lithops", task, 3, runtime=python, max_workers=2)) == [0, 1, 2]
    (tmp_path / "begun").rmdir()
    with pytest.raises(LostTaskError, match="ended silently"):
        run_tasks("lithops", task, 1, runtime=python, retries=0)


@pytest.mark.slow
def test_a_worker_that_never_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.tasks import run_tasks

    def task(coords: list[int], *, config: None) -> None:
        pass

    monkeypatch.setattr("executors.lithops.SILENCE", 1.0)
    with pytest.raises(LostTaskError, match="no task has begun or ended for 2 s"):
        run_tasks("lithops", task, 1, runtime=runner(tmp_path, "sleep 600"), retries=0, timeout=1)
    assert not [p for p in psutil.process_iter() if str(tmp_path) in " ".join(_command(p))]


@pytest.mark.slow
def test_an_error_that_cannot_be_pickled() -> None:
    from tests.support.tasks import run_tasks

    def task(coords: list[int], *, config: None) -> None:
        class Own(Exception):
            def __reduce__(self) -> Any:
                raise TypeError("stays here")

        raise Own("what happened")

    with pytest.raises(RuntimeError, match="Own: what happened"):
        run_tasks("lithops", task, 1, retries=0)


def test_closed_twice() -> None:
    engine = executors.create("lithops")
    assert isinstance(engine, LithopsExecutor)
    engine.close()
    engine.close()


@pytest.mark.slow
def test_executor_ids_are_unique() -> None:
    """Also in a subprocess of a process with an executor: with the same ID they would take each other's results."""
    code = "from executors.lithops import LithopsExecutor as E; e = E(); print(e._functions.executor_id); e.close()"
    names = []
    for _ in range(2):
        executor = LithopsExecutor()
        names.append(executor._functions.executor_id)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        names.append(done.stdout.strip())
        executor.close()
    assert len(set(names)) == len(names) == 4
    assert len({name.partition("-")[0] for name in names}) == 4
