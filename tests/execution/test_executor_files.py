"""Executor files in place of executor names, and the output of ``executor check``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from packaging.requirements import Requirement
from packaging.version import Version

import executors
import vczstore
from executors.lithops import LithopsExecutor
from tests.support import cohort
from tests.support.paths import ROOT
from tests.support.refusals import complain
from tests.support.s3 import S3Server
from tests.support.ways import Way
from vczstore.cli.main import main
from vczstore.errors import JobFileError, MissingDependencyError, OptionError, StorageError
from vczstore.execution import executor_check
from vczstore.execution.options import Options

EXAMPLES = ROOT / "examples" / "executors"
FILE = "name: single-threaded\noptions: {retries: 7}\nallowed-mem: 1GB\nreserved-mem: 100MB\nwork-dir: scratch\n"


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "machine.yaml").write_text(FILE)
    return tmp_path / "machine.yaml"


# ---- files ----------------------------------------------------------------------------------


def test_options_of_a_file(file: Path) -> None:
    options = Options(executor=str(file))
    assert (options.executor, dict(options.executor_options)) == ("single-threaded", {"retries": 7})
    assert (options.memory.allowed, options.memory.reserved) == (10**9, 10**8)
    assert options.work_dir == str(file.parent / "scratch")


def test_arguments_override_the_file(file: Path) -> None:
    options = Options(executor=str(file), allowed_mem="3GB", reserved_mem=10**6, work_dir="elsewhere")
    assert (options.memory.allowed, options.memory.reserved) == (3 * 10**9, 10**6)
    assert options.work_dir == "elsewhere"


@pytest.mark.slow
def test_max_workers_overrides_the_file(small: Any, tmp_path: Path) -> None:
    """The value in the file is invalid."""
    store, batch, old, new = small
    (tmp_path / "threads.yaml").write_text("name: threads\noptions: {max-workers: -1}\n")
    with pytest.raises(StorageError):
        vczstore.append(store, batch, executor=tmp_path / "threads.yaml")
    vczstore.append(store, batch, executor=str(tmp_path / "threads.yaml"), max_workers=1)
    cohort.assert_same(cohort.read_vcz(store), cohort.expected_append(old, new))


@pytest.mark.slow
def test_commands_accept_files(small: Any, tmp_path: Path, file: Path) -> None:
    store, batch, old, new = small
    for arguments in (
        ("append", store, batch),
        ("update", store, batch),
        ("remove", store, "S0001"),
        ("copy-store-to-icechunk", store, tmp_path / "copy"),
        ("create", tmp_path / "new", store),
    ):
        done = call(*arguments, "--executor", file, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["committed"]
    expected = cohort.expected_remove(cohort.expected_append(old, new), ["S0001"])
    cohort.assert_same(cohort.read_vcz(cohort.icechunk_store(tmp_path / "copy")), expected)


def test_invalid_files(small: Any, tmp_path: Path) -> None:
    store, batch, *_ = small
    before = cohort.digest(store)
    (tmp_path / "wrong.yaml").write_text("name: thread\n")
    words = ("wrong.yaml:1: name: expected", "did you mean threads")
    complain(JobFileError, words, lambda: vczstore.append(store, batch, executor=str(tmp_path / "wrong.yaml")))
    complain(JobFileError, ("absent.yaml",), lambda: vczstore.append(store, batch, executor="absent.yaml"))
    (tmp_path / "key.yaml").write_text("name: lithops\noptions: {config: {aws: {secret_access_key: abc}}}\n")
    words = ("credentials do not belong here",)
    complain(JobFileError, words, lambda: vczstore.append(store, batch, executor=str(tmp_path / "key.yaml")))
    done = call("append", store, batch, "--executor", tmp_path / "wrong.yaml")
    assert done.exit_code == 2
    assert cohort.digest(store) == before


def test_a_configuration_is_relative_to_its_file(tmp_path: Path) -> None:
    from vczstore.configuration.executor_file import load_executor

    (tmp_path / "cloud.yaml").write_text("name: lithops\noptions: {config-file: lithops.yaml}\n")
    assert load_executor(tmp_path / "cloud.yaml").options == {"config-file": str(tmp_path / "lithops.yaml")}


@pytest.mark.slow
def test_without_a_file_pydantic_is_not_imported() -> None:
    code = "import sys; from vczstore.execution.options import Options; Options(); print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ---- engines of Cubed -----------------------------------------------------------------------


@pytest.mark.parametrize("name", executors.OTHERS)
def test_an_engine_of_cubed_that_is_not_installed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("coiled", "dask", "distributed", "ray", "pyspark"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"cubed.runtime.executors.{name}", raising=False)
    (tmp_path / "other.yaml").write_text(f"name: {name}\n")
    words = (f"the executor {name} needs", "not installed")
    complain(MissingDependencyError, words, lambda: executor_check.check(str(tmp_path / "other.yaml")))


def test_an_engine_of_cubed_has_its_own_options() -> None:
    with pytest.raises(executors.ExecutorOptionError, match="dask takes no max-workers"):
        executors.create("dask", max_workers=3)


def test_an_engine_of_cubed_is_allowed_in_files_only() -> None:
    complain(OptionError, ("no executor 'dask'", "file"), lambda: Options(executor="dask"))


# ---- check ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "name"),
    [
        ("threads", "threads"),
        (EXAMPLES / "this-machine.yaml", "processes"),
        pytest.param(EXAMPLES / "lithops-localhost.yaml", "lithops", marks=pytest.mark.slow),
    ],
    ids=["threads", "this-machine", "lithops-localhost"],
)
@pytest.mark.slow
def test_check(named: str | Path, name: str) -> None:
    """Check an executor by name, and the example files that run on this machine."""
    done = call("executor", "check", named, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["ok"]
    assert report["executor"] == name
    assert report["differ"] == []
    assert report["worker"] == executor_check.versions()
    assert report["worker"]["Python"].startswith("3.")
    assert 0 < report["task_seconds"] < 20
    assert 10**7 < report["peak_mem"] < report["total_mem"]


def test_check_as_text(file: Path) -> None:
    done = call("executor", "check", file)
    assert done.stdout.startswith("single-threaded: ok\n  first task ")
    assert "  cubed       0." in done.stdout


@pytest.mark.slow
def test_check_of_workers_with_other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes are spawned, so the patch does not affect the versions that they report."""
    real = executor_check.versions()
    monkeypatch.setattr(executor_check, "versions", lambda: {**real, "zarr": "3.0.1"})
    done = call("executor", "check", "processes")
    assert done.exit_code == 1
    assert done.stdout.startswith("processes: its versions do not fit\n")
    assert f"zarr        {real['zarr']}, here 3.0.1\n" in done.stdout


@pytest.mark.parametrize(
    ("name", "in_worker", "ok"),
    [
        ("Python", "3.12.99", True),
        ("Python", "3.99.1", False),
        ("cubed", "0.1", False),
        ("icechunk", None, False),
        ("zarr", "3.0.1", False),
        ("numpy", "1.26.0", True),
        ("vczstore", None, True),
    ],
)
def test_which_differences_matter(name: str, in_worker: str | None, ok: bool) -> None:
    here = {**executor_check.versions(), "Python": "3.12.1"}
    same = executor_check.Checked("x", 0, 0, 1, None, here, here, ())
    assert same.ok
    assert replace(same, worker={**here, name: in_worker}, differ=(name,)).ok == ok


def test_check_of_an_unknown_executor() -> None:
    done = call("executor", "check", "thread")
    assert done.exit_code == 2
    assert "single-threaded, threads, processes, lithops" in done.output


# ---- examples -------------------------------------------------------------------------------

CLOUD = {
    "AWS_REGION": "us-east-1",
    "LITHOPS_ROLE": "arn:aws:iam::123456789012:role/lithops",
    "LITHOPS_BUCKET": "lithops-example",
    "LITHOPS_IMAGE": "europe-west2-docker.pkg.dev/project/lithops/vczstore:1",
    "GOOGLE_REGION": "europe-west2",
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.stem)
def test_examples_are_valid_and_listed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CLOUD.items():
        monkeypatch.setenv(name, value)
    options = Options(executor=str(path))
    memory = options.executor_options.get("runtime-memory")
    assert memory is None or options.memory.allowed <= memory * 10**6
    assert f"[`{path.name}`]({path.name})" in (EXAMPLES / "README.md").read_text()


@pytest.mark.slow
def test_lithops_accepts_the_example_for_lambda(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**CLOUD, "AWS_ENDPOINT_URL": s3_server.endpoint}.items():
        monkeypatch.setenv(name, value)
    s3_server.url(CLOUD["LITHOPS_BUCKET"])
    options = Options(executor=str(EXAMPLES / "lithops-aws-lambda.yaml"))
    engine = executors.create("lithops", **options.executor_options)
    assert isinstance(engine, LithopsExecutor)
    assert engine.remote
    engine.close()


def test_requirements_are_within_the_bounds_of_vczstore() -> None:
    """Pins satisfy the package's requirements, and have the same major versions as the tested packages."""
    lines = (EXAMPLES / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    bounds = [Requirement(text) for text in requires("vczstore") or []]
    for name, pin in pins.items():
        assert all(pin in bound.specifier for bound in bounds if bound.name == name), name
        assert Version(pin).major == Version(version(name)).major, name
    assert set(executor_check.PACKAGES) - {"vczstore"} <= set(pins)


@pytest.mark.slow
def test_dask_on_this_machine(tmp_path: Path) -> None:
    """Cubed's Dask executor, which starts and stops its own cluster."""
    old, new = cohort.some_arrays(10, cohort.ids(0, 7)), cohort.some_arrays(10, cohort.ids(7, 4), seed=1)
    way = Way("icechunk", "cubed")
    store = way.make(tmp_path, old)
    cohort.write_vcz(tmp_path / "batch.vcz", new)
    (tmp_path / "dask.yaml").write_text(
        "name: dask\noptions: {compute_kwargs: {n_workers: 2, dashboard_address: ':0'}}\n"
    )
    words = ["append", store, tmp_path / "batch.vcz", "--executor", tmp_path / "dask.yaml"]
    command = [sys.executable, "-m", "vczstore", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    cohort.assert_same(way.read(store), cohort.expected_append(old, new))
