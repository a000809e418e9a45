"""The Modal executor, with Modal's own client and container runtime, against tests.support.fake_modal."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import cloudpickle
import icechunk
import numpy as np
import psutil
import pytest
import zarr

import executors
import vczstore
from executors.local import ThreadsExecutor
from executors.modal import HERE_ONLY, ModalError, ModalExecutor, pins
from tests.support import cohort, s3
from tests.support.clouds import BATCH, OLD
from tests.support.fake_modal import TOKEN, FakeModal, environment_of
from tests.support.modal_client import no_token, start
from tests.support.paths import ROOT
from tests.support.s3 import variables
from tests.support.tasks import Ends, dag_of
from vczstore.configuration import executor_file
from vczstore.errors import OptionError, StorageError
from vczstore.execution.engine import run_plan
from vczstore.execution.options import Options
from vczstore.execution.results import Result

__all__ = ["no_token", "start"]  # fixtures

EXAMPLES = ROOT / "examples" / "executors"


def _set_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"), TOKEN, strict=True):
        monkeypatch.setenv(name, value)


@pytest.fixture
def fake(start: Callable[..., FakeModal]) -> FakeModal:
    return start({"greeting": {"GREETING": "hello"}})


@pytest.fixture
def by_value() -> Iterator[None]:
    """Pickle this module's functions by value, since containers do not have the tests."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def _run(function: Callable[..., Any], n: int, **options: Any) -> list[Any]:
    engine, ends = executors.create("modal", **options), Ends()
    try:
        engine.execute_dag(dag_of(function, n), callbacks=[ends])
    finally:
        engine.close()
    return ends.results


# ---- tasks ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("by_value")
@pytest.mark.slow
def test_every_task_runs_once_in_containers(fake: FakeModal) -> None:
    def task(coords: list[int], *, config: None) -> tuple[int, int]:
        return coords[0], os.getpid()

    results = _run(task, 12, max_workers=2)
    assert sorted(n for n, _ in results) == list(range(12))
    assert {pid for _, pid in results} <= set(fake.processes)
    assert fake.apps == {"ap-0": "stopped"}


@pytest.mark.usefixtures("by_value")
@pytest.mark.slow
def test_options_are_sent_to_modal(fake: FakeModal) -> None:
    def task(coords: list[int], *, config: None) -> tuple[str | None, ...]:
        return os.environ.get("GREETING"), os.environ.get("SHELL"), os.environ.get("MODAL_TOKEN_SECRET")

    options = {"max-workers": 7, "cpu": 0.5, "memory": 4096, "timeout": 77, "cloud": "aws", "region": "us-east-1"}
    names = {"app-name": "nightly", "environment-name": "lab", "image-packages": ["s3fs==2026.1.0"]}
    assert _run(task, 1, **options, **names, variables_from=["greeting"]) == [("hello", None, None)]
    (function,) = fake.functions.values()
    definition = function.definition
    assert (definition.resources.milli_cpu, definition.resources.memory_mb, definition.timeout_secs) == (500, 4096, 77)
    assert definition.autoscaler_settings.max_containers == 7
    assert (definition.cloud_provider_str, list(definition.scheduler_placement.regions)) == ("aws", ["us-east-1"])
    assert (fake.app_names, set(fake.environments)) == (["nightly"], {"lab"})
    assert not definition.HasField("retry_policy")  # the driver retries
    dockerfile = "\n".join(fake.images[definition.image_id])
    assert f"FROM python:{sys.version_info.major}.{sys.version_info.minor}." in dockerfile
    assert "s3fs==2026.1.0" in dockerfile
    uploaded = {name for mount in definition.mount_ids for name in fake.mounts[mount]}
    sent = {"/".join(Path(name).parts[-3:]) for name in uploaded}  # below a folder that Modal chooses
    assert {"vczstore/vcz/arrays.py", "plans/core/cubed_backend.py"} <= sent
    assert any(name.endswith("executors/modal.py") for name in sent)
    assert not [name for name in uploaded if "test" in name]


@pytest.mark.usefixtures("by_value")
@pytest.mark.slow
def test_one_app_for_all_plans_until_it_is_closed(fake: FakeModal) -> None:
    def task(coords: list[int], *, config: None) -> int:
        return coords[0]

    engine = executors.create("modal", max_workers=1)
    for _ in range(2):
        engine.execute_dag(dag_of(task, 2))
        assert list(fake.apps.values()) == ["running"]
    engine.close()
    assert list(fake.apps.values()) == ["stopped"]
    _assert_all_end(fake)


@pytest.mark.usefixtures("by_value")
@pytest.mark.slow
def test_a_task_that_fails_is_tried_again(fake: FakeModal, tmp_path: Path) -> None:
    def task(coords: list[int], *, config: None) -> int:
        attempts = tmp_path / str(coords[0])
        with attempts.open("a") as file:
            file.write("x")
        if coords[0] == 3 and attempts.stat().st_size < 3:
            raise OSError("the network is away")
        return coords[0]

    assert sorted(_run(task, 6, retries=2)) == list(range(6))
    assert [(tmp_path / str(i)).stat().st_size for i in range(6)] == [1, 1, 1, 3, 1, 1]


@pytest.mark.usefixtures("by_value")
@pytest.mark.slow
def test_a_task_that_always_fails_is_one_error_and_stops_the_app(fake: FakeModal, tmp_path: Path) -> None:
    def task(coords: list[int], *, config: None) -> None:
        if coords[0] == 2:
            with (tmp_path / "attempts").open("a") as file:
                file.write("x")
            raise ValueError("task 2")
        time.sleep(0.05)

    with pytest.raises(ValueError, match=r"^task 2$"):
        _run(task, 200, retries=1, max_workers=2)
    assert (tmp_path / "attempts").stat().st_size == 2
    assert fake.requests["FunctionMap"] < 20
    assert list(fake.apps.values()) == ["stopped"]
    _assert_all_end(fake)


@pytest.mark.usefixtures("by_value")
@pytest.mark.slow
def test_one_task_that_times_out_is_tried_again_alone(fake: FakeModal, tmp_path: Path) -> None:
    def task(coords: list[int], *, config: None) -> int:
        attempts = tmp_path / str(coords[0])
        with attempts.open("a") as file:
            file.write("x")
        if coords[0] == 1 and attempts.stat().st_size == 1:
            time.sleep(60)
        return coords[0]

    assert sorted(_run(task, 4, timeout=2)) == [0, 1, 2, 3]
    assert [(tmp_path / str(i)).stat().st_size for i in range(4)] == [1, 2, 1, 1]


@pytest.mark.usefixtures("by_value")
@pytest.mark.slow
def test_a_task_that_always_times_out_is_one_error(fake: FakeModal) -> None:
    def task(coords: list[int], *, config: None) -> None:
        time.sleep(60)

    message = r"^a task has not ended within the timeout of 1 s, tried 2 times; raise timeout$"
    with pytest.raises(ModalError, match=message):
        _run(task, 1, timeout=1, retries=1)
    _assert_all_end(fake)


@pytest.mark.usefixtures("by_value")
@pytest.mark.slow
def test_a_container_that_always_dies_is_one_error(fake: FakeModal) -> None:
    def task(coords: list[int], *, config: None) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ModalError, match=r"^modal: the container ended with -9"):
        _run(task, 1, retries=0)
    assert list(fake.apps.values()) == ["stopped"]


@pytest.mark.slow
def test_an_interrupt_stops_the_app(fake: FakeModal, tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import sys, time
        from pathlib import Path
        import cloudpickle
        import executors
        from tests.executors.test_executors import dag_of

        def task(coords, *, config):
            Path({str(tmp_path)!r}, "begun").touch()
            time.sleep(60)

        if __name__ == "__main__":
            cloudpickle.register_pickle_by_value(sys.modules["__main__"])
            executors.create("modal").execute_dag(dag_of(task, 20))
        """
    )
    (tmp_path / "driver.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, tmp_path / "driver.py"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as driver:
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        driver.send_signal(signal.SIGINT)
        _, stderr = driver.communicate(timeout=30)
    assert stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert driver.returncode == -signal.SIGINT
    assert list(fake.apps.values()) == ["stopped"]
    _assert_all_end(fake)


def _assert_all_end(fake: FakeModal) -> None:
    _, alive = psutil.wait_procs([psutil.Process(p) for p in fake.processes if psutil.pid_exists(p)], timeout=10)
    assert not alive


# ---- operations -----------------------------------------------------------------------------


class Bucket:
    """A bucket with a batch and an Icechunk store."""

    def __init__(self, server: s3.S3Server, folder: Path) -> None:
        self.server, self.url = server, server.url(f"modal-{uuid4().hex}")
        self.old, self.batch = OLD, BATCH
        self.plain = folder / "store.vcz"
        cohort.write_vcz(self.plain, self.old)
        cohort.write_vcz(self.objects("batch.vcz"), self.batch)
        self.make("store")

    def make(self, name: str) -> None:
        options = {"impl": "zarr", "storage_options": self.server.options}
        vczstore.copy_store_to_icechunk(self.plain, f"{self.url}/{name}", **options)

    def objects(self, name: str) -> zarr.storage.ObjectStore:
        from vczstore.stores.object_store import object_store

        return zarr.storage.ObjectStore(object_store(f"{self.url}/{name}", self.server.options))

    def repository(self, name: str) -> icechunk.Repository:
        return icechunk.Repository.open(self.server.storage(f"{self.url}/{name}"))

    def read(self, name: str) -> dict[str, np.ndarray]:
        return cohort.read_vcz(self.repository(name).readonly_session("main").store)

    def run(self, operation: str, name: str, *args: str, executor: str = "modal", **options: Any) -> Result:
        compiled = vczstore.plan(
            operation, f"{self.url}/{name}", *args, storage_options=self.server.options, backend_storage="icechunk"
        )
        return run_plan(compiled, Options(executor=executor).but(executor_options=options))


@pytest.fixture
def bucket(s3_server: s3.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name, value in variables(s3_server).items():
        monkeypatch.setenv(name, value)
    return Bucket(s3_server, tmp_path)


def _append_and_remove(bucket: Bucket, fake: FakeModal) -> None:
    assert bucket.run("append", "store", f"{bucket.url}/batch.vcz", variables_from=["bucket"]).tasks
    cohort.assert_same(bucket.read("store"), cohort.expected_append(bucket.old, bucket.batch))
    bucket.run("remove", "store", "S0008", variables_from=["bucket"])
    bucket.make("reference")
    bucket.run("append", "reference", f"{bucket.url}/batch.vcz", executor="threads")
    bucket.run("remove", "reference", "S0008", executor="threads")
    cohort.assert_same(bucket.read("store"), bucket.read("reference"))
    assert len(list(bucket.repository("store").ancestry(branch="main"))) == 4
    assert list(fake.apps.values()) == ["stopped"] * 2
    # containers get credentials from a named Modal secret, never from the driver
    inputs = [queued.item.input.args for call in fake.calls.values() for queued in call.inputs.values()]
    outputs = [output.result.data for call in fake.calls.values() for output in call.outputs]
    for value in (*s3.CREDENTIALS.values(), *TOKEN):
        assert not any(value.encode() in sent for sent in inputs + outputs)


@pytest.mark.slow
def test_append_and_remove_as_threads_do(bucket: Bucket, start: Callable[..., FakeModal]) -> None:
    _append_and_remove(bucket, start({"bucket": variables(bucket.server)}))


@pytest.mark.slow
def test_append_and_remove_in_the_image(
    bucket: Bucket, start: Callable[..., FakeModal], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The packages installed in the image are all that tasks need."""
    pythons: list[Path] = []

    def python(dockerfile: list[str]) -> Path:
        pythons[:] = pythons or [environment_of(tmp_path_factory.mktemp("image"), dockerfile)]
        return pythons[0]

    fake = start({"bucket": variables(bucket.server)}, python=python, max_containers=1)
    _append_and_remove(bucket, fake)
    assert pythons
    freeze = [sys.executable, "-m", "uv", "pip", "freeze", "--python", pythons[0]]
    installed = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout.split()
    assert set(pins()) <= set(installed)


@pytest.mark.slow
def test_nothing_is_committed_when_tasks_fail(bucket: Bucket, start: Callable[..., FakeModal]) -> None:
    start({"bucket": variables(bucket.server)})
    batch = bucket.objects("batch.vcz").store
    for entry in [entry for page in batch.list("call_FT/c/") for entry in page]:
        batch.put(entry["path"], b"not a chunk")
    before = bucket.repository("store").lookup_branch("main")
    with pytest.raises(vczstore.VczstoreError, match=r"^append: .*nothing was committed, the store is as it was$") as e:
        bucket.run("append", "store", f"{bucket.url}/batch.vcz", variables_from=["bucket"], retries=1)
    assert "\n" not in str(e.value)
    assert bucket.repository("store").lookup_branch("main") == before
    cohort.assert_same(bucket.read("store"), bucket.old)


@pytest.mark.slow
def test_a_plain_store_in_a_bucket(bucket: Bucket, start: Callable[..., FakeModal]) -> None:
    start({"bucket": variables(bucket.server)})
    cohort.write_vcz(bucket.objects("plain.vcz"), bucket.old)
    options = {"storage_options": bucket.server.options, "backend_storage": "obstore"}
    plan = vczstore.plan("append", f"{bucket.url}/plain.vcz", f"{bucket.url}/batch.vcz", **options)
    run_plan(plan, Options(executor="modal").but(executor_options={"variables-from": "bucket"}))
    cohort.assert_same(cohort.read_vcz(bucket.objects("plain.vcz")), cohort.expected_append(bucket.old, bucket.batch))


@pytest.mark.slow
def test_a_job_with_an_executor_file(bucket: Bucket, start: Callable[..., FakeModal], tmp_path: Path) -> None:
    """The executor file is the example, unchanged."""
    fake = start({"vczstore-aws": variables(bucket.server)})
    (tmp_path / "modal-aws.yaml").write_text((EXAMPLES / "modal-aws.yaml").read_text())
    job = {
        "store": {"url": f"{bucket.url}/store", "storage-options": bucket.server.options},
        "executor": "modal-aws.yaml",
        "max-workers": 1,
        "steps": [{"append": f"{bucket.url}/batch.vcz"}],
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    vczstore.run_job(tmp_path / "job.yaml")
    cohort.assert_same(bucket.read("store"), cohort.expected_append(bucket.old, bucket.batch))
    (function,) = fake.functions.values()
    assert function.definition.autoscaler_settings.max_containers == 1
    assert function.definition.resources.memory_mb == 1908


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("modal-*.yaml")), ids=lambda path: path.stem)
def test_examples_are_executor_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _set_token(monkeypatch)
    loaded = executor_file.load_executor(path)
    engine = executors.create(loaded.name, **loaded.options)
    assert isinstance(engine, ModalExecutor)
    assert f"modal-{engine.cloud}" == path.stem


@pytest.mark.parametrize("kind", ["format3", "icechunk"])
@pytest.mark.slow
def test_a_store_on_this_machine_is_refused(
    kind: str, small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container would write to its own disk and report success."""
    store, batch, arrays, _ = small
    _set_token(monkeypatch)
    read: Any = store
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(store, tmp_path / "icechunk", impl="zarr")
        store = tmp_path / "icechunk"
        read = cohort.icechunk_store(store)
    for plan in (vczstore.plan("append", store, batch), vczstore.plan("remove", store, "S0001")):
        with pytest.raises(StorageError, match="a store is on this machine, which Modal's containers cannot reach"):
            run_plan(plan, Options(executor="modal"))
    cohort.assert_same(cohort.read_vcz(read), arrays)


def test_local_stores_are_recognised_by_their_pickles(tmp_path: Path) -> None:
    import obstore.store

    repositories = [icechunk.local_filesystem_storage(str(tmp_path)), icechunk.in_memory_storage()]
    stores = [
        zarr.storage.LocalStore(tmp_path),
        zarr.storage.MemoryStore(),
        zarr.storage.ObjectStore(obstore.store.LocalStore(tmp_path)),
        zarr.storage.FsspecStore.from_url(tmp_path.as_uri()),
        *(icechunk.Repository.create(storage).writable_session("main").fork().store for storage in repositories),
    ]
    for store in stores:
        assert any(mark in pickle.dumps(store) for mark in HERE_ONLY), store
    remote = zarr.storage.ObjectStore(obstore.store.S3Store("bucket", region="us-east-1"))
    assert not any(mark in pickle.dumps(remote) for mark in HERE_ONLY)


# ---- refused before anything is sent ---------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "modal: timeout is 0; give a whole number from 1 to 86400"),
        ({"timeout": 1.5}, "modal: timeout is 1.5; give a whole number from 1 to 86400"),
        ({"retries": -1}, "modal: retries is -1; give a whole number of at least 0"),
        ({"retries": True}, "modal: retries is True; give a whole number of at least 0"),
        ({"cpu": "2"}, "modal: cpu is '2'; give a number of at least 0.125"),
        ({"memory": 64}, "modal: memory is 64; give a whole number of at least 128"),
        ({"max-workers": 0}, "modal: max_workers is 0; give a whole number of at least 1"),
        ({"cloud": "azure"}, "modal: cloud is 'azure'; choose one of aws, gcp, oci, auto"),
        ({"region": ["us-east-1", 2]}, "modal: region has something in it that is not a name"),
        ({"region": 7}, "modal: region is not a list of names"),
        ({"app-name": ""}, "modal: app_name is ''; give a name"),
        ({"environment-name": 3}, "modal: environment_name is 3; give a name"),
        ({"image-packages": ["s3fs 2026"]}, "modal: image_packages: 's3fs 2026' is not a requirement; give one such "),
        (
            {"variables-from": {"AWS_SECRET_ACCESS_KEY": "x"}},
            "modal: variables_from takes names of Modal secrets, never values; ",
        ),
        (
            {"variables-from": ["AWS_SECRET_ACCESS_KEY=hush"]},
            "modal: variables_from takes names of Modal secrets, never values; ",
        ),
        ({"gpu": "A100"}, "the executor modal has no option gpu; it has app-name, cloud, cpu, environment-name, "),
        ({}, "modal: there is no token; get one with: modal token new, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"),
    ],
    ids=str,
)
def test_options_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(executors.ExecutorOptionError) as caught:
        executors.create("modal", **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert "hush" not in str(caught.value)


def test_without_a_token_nothing_is_done(small: Any) -> None:
    store, batch, arrays, _ = small
    with pytest.raises(OptionError, match=r"^append: modal: there is no token; get one with: modal token new"):
        vczstore.append(store, batch, executor="modal")
    cohort.assert_same(cohort.read_vcz(store), arrays)


@pytest.mark.slow
def test_containers_that_are_too_small(fake: FakeModal) -> None:
    engine, dag = executors.create("modal", memory=128), dag_of(print, 1)
    dag.nodes["op"]["primitive_op"] = SimpleNamespace(allowed_mem=2_000_000_000)
    with pytest.raises(ModalError, match=r"^containers have 128 MiB, a task is allowed 1,908 MiB; raise memory"):
        engine.execute_dag(dag)
    assert not fake.apps


@pytest.mark.slow
def test_intermediate_data_on_this_machine(fake: FakeModal) -> None:
    engine, dag = executors.create("modal"), dag_of(print, 1)
    dag.add_node("array", target=SimpleNamespace(store="/tmp/work/array"))
    with pytest.raises(ModalError, match=r"^the folder for intermediate data is on this machine"):
        engine.execute_dag(dag)
    assert not fake.apps


@pytest.mark.slow
def test_a_secret_that_modal_does_not_have(fake: FakeModal) -> None:
    with pytest.raises(ModalError, match=r"^modal: Secret 'absent' not found"):
        _run(print, 1, variables_from="absent")
    assert list(fake.apps.values()) == ["stopped"]


@pytest.mark.slow
def test_a_token_that_modal_does_not_know(fake: FakeModal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_TOKEN_ID", "ak-another")
    with pytest.raises(ModalError, match=r"^Modal does not accept the token; get another with: modal token new$"):
        _run(print, 1)


def test_no_token_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    _set_token(monkeypatch)
    engine = executors.create("modal", variables_from=["greeting"])
    for token in TOKEN:
        assert token not in repr(engine) + str(vars(engine))
        assert token.encode() not in cloudpickle.dumps(engine)


@pytest.mark.slow
def test_without_modal_it_says_what_to_install() -> None:
    code = textwrap.dedent(
        """
        import sys
        sys.modules["modal"] = None
        from vczstore.errors import MissingDependencyError
        from vczstore.execution.options import Options
        from vczstore.execution.workers import Workers
        try:
            Workers(Options(executor="modal")).executor
        except MissingDependencyError as error:
            print(error)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "modal is not installed; install it from a clone of vczstore: pip install '.[modal]'\n"


def test_the_image_has_the_driver_s_versions() -> None:
    from importlib.metadata import version

    pinned = dict(pin.split("==") for pin in pins())
    for name in ("cubed", "icechunk", "zarr", "numcodecs", "numpy", "cloudpickle", "networkx", "obstore"):
        assert pinned[name] == version(name)
    assert not {"vczstore", "modal", "pytest", "moto", "bio2zarr"} & set(pinned)
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in pinned)


def test_tasks_are_scheduled_as_in_local_executors() -> None:
    """Retries, order of tasks and queue are those tested in tests/executors/test_executors.py."""
    assert ModalExecutor._run is ThreadsExecutor._run


# ---- Modal itself ----------------------------------------------------------------------------


@pytest.mark.real_modal
@pytest.mark.skipif(os.environ.get("VCZSTORE_TEST_MODAL") != "1", reason="needs an account; VCZSTORE_TEST_MODAL=1")
@pytest.mark.usefixtures("by_value")
def test_on_modal_itself() -> None:
    def task(coords: list[int], *, config: None) -> tuple[int, str | None]:
        import plans.core.cubed_backend  # tasks can import their code

        return coords[0], os.environ.get("MODAL_IS_REMOTE") if plans.core.cubed_backend.run_task else None

    assert sorted(_run(task, 3, max_workers=1)) == [(n, "1") for n in range(3)]
