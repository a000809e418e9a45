"""The lock is inside the store: however writers reach it, no batch is lost or mixed, and none writes unlocked."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import obstore
import pytest
import zarr
from click.testing import CliRunner
from zarr.storage import LocalStore, LoggingStore, MemoryStore, ObjectStore

import vczstore
from tests.support import cohort, faults, forks, s3
from tests.support.locks import job_lock
from tests.support.paths import ROOT
from tests.support.refusals import complain
from tests.support.small_stores import repository_of
from vczstore.cli.main import main
from vczstore.errors import BusyError, StorageError
from vczstore.stores import lock
from vczstore.stores.object_store import object_store
from vczstore.stores.resolve import open_store

FIELDS = ("sample_sex", "call_genotype", "call_GL", "call_FT")
"""Few fields in many chunks, so that two writers overlap in time."""
OLD = cohort.make_arrays(40, cohort.ids(0, 3), fields=FIELDS)
NEW = [cohort.make_arrays(40, cohort.ids(3 + 4 * i, 4), seed=i + 1, fields=FIELDS) for i in range(2)]
KEY = "sample_id/.vczstore-job.lock"

WRITER = """
import fcntl, json, os, sys, vczstore
from vczstore.errors import VczstoreError

place, batch, options, setup = json.loads(sys.argv[1])
vczstore.append(place, batch, dry_run=True, **options)
exec(setup)
print("ready", flush=True)
sys.stdin.readline()
try:
    vczstore.append(place, batch, **options)
except VczstoreError as error:
    print(error, flush=True)
    sys.exit(error.exit_status)
"""
NO_FLOCK = """
def flock(file, operation):
    raise OSError(38, "Function not implemented")

fcntl.flock = flock
"""
"""Setup as on Lustre without ``-o flock``."""
NOBODY = "os.setegid(65534); os.seteuid(65534)"


def writer(place: str, batch: str, options: dict[str, Any], setup: str) -> subprocess.Popen[str]:
    command = [forks.program("python"), "-c", WRITER, json.dumps([place, batch, options, setup])]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


def compete(places: list[str], batches: list[str], setup: str = "", **options: Any) -> list[tuple[int, str]]:
    """Append batches concurrently, and return the exit status and the output of each writer."""
    writers = [writer(p, b, options, setup) for p, b in zip(places, batches, strict=True)]
    for process in writers:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for process in writers:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=100) for process in writers]
    assert not [err for _, err in outputs if "Traceback" in err], outputs
    return [(process.returncode, out.strip()) for process, (out, _) in zip(writers, outputs, strict=True)]


def assert_whole(found: dict[str, np.ndarray], ends: list[tuple[int, str]]) -> None:
    """Assert that the batches of successful writers, and no others, are in the store, with their own calls."""
    assert {status for status, _ in ends} <= {0, 3}, ends
    assert any(status == 0 for status, _ in ends), ends
    done = [batch for batch, (status, _) in zip(NEW, ends, strict=True) if status == 0]
    first = found["sample_id"][3] if len(found["sample_id"]) > 3 else None
    done.sort(key=lambda batch: batch["sample_id"][0] != first)
    cohort.assert_same(found, cohort.expected_append(OLD, *done))


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that all users may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def batches(open_folder: Path) -> list[str]:
    folder = open_folder / "batches"
    folder.mkdir()
    for i, batch in enumerate(NEW):
        cohort.write_vcz(folder / f"{i}.vcz", batch)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return [str(folder / f"{i}.vcz") for i in range(2)]


@pytest.fixture
def folder(open_folder: Path) -> Path:
    folder = open_folder / uuid4().hex
    folder.mkdir()
    folder.chmod(0o755)
    return folder


def make(path: Path, kind: str = "format3") -> Path:
    path.parent.mkdir(exist_ok=True)
    if kind == "icechunk":
        cohort.write_icechunk(path, OLD)
    else:
        cohort.write_vcz(path, OLD, zarr_format=2 if kind == "format2" else 3)
    return path


def read(path: Path, kind: str) -> dict[str, np.ndarray]:
    return cohort.read_vcz(cohort.icechunk_store(path) if kind == "icechunk" else path)


@contextmanager
def mounted(what: Path, at: Path, *options: str) -> Iterator[None]:
    at.mkdir()
    if subprocess.run(["mount", "--bind", what, at], capture_output=True, check=False).returncode:
        at.rmdir()
        pytest.skip("nothing may be mounted here")
    try:
        if options:
            subprocess.run(["mount", "-o", ",".join(("remount", "bind", *options)), at], check=True)
        yield
    finally:
        subprocess.run(["umount", at], check=True)


# ---- on this machine ------------------------------------------------------------------------

KINDS = ("format2", "format3", "icechunk")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_one_store_at_two_mounts(folder: Path, batches: list[str], kind: str) -> None:
    store = make(folder / "a" / "store.vcz", kind)
    with mounted(store, folder / "elsewhere"):
        ends = compete([str(store), str(folder / "elsewhere")], batches)
        assert_whole(read(store, kind), ends)
    assert not list(folder.rglob("*.lock"))


def own(store: Path) -> None:
    """Run gc, purge, repair, and remove with a purge."""
    vczstore.gc(store)
    vczstore.purge(store, tags="delete")
    assert vczstore.repair(store, quick=True).ok
    vczstore.remove(store, "S0001", purge=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become another writer")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_a_parent_folder_without_write_permission(
    folder: Path, batches: list[str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The withdrawal key, normally stored there, must come from the environment."""
    store = make(folder / "theirs" / "store.vcz", kind)
    for path in (store, *store.rglob("*")):
        os.chown(path, 65534, 65534)
        path.chmod(0o755 if path.is_dir() else 0o644)
    store.parent.chmod(0o755)
    ends = compete([str(store)] * 2, batches, NOBODY)
    assert_whole(read(store, kind), ends)
    own(make(folder / "other" / "store.vcz", kind))  # import modules that the unprivileged user may not read
    os.setegid(65534)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            (store.parent / "beside").touch()
        before = cohort.digest(store)
        with pytest.raises(StorageError, match=r"Permission denied.*or set VCZSTORE_WITHDRAWAL_KEY"):
            vczstore.remove(store, "S0001")
        assert cohort.digest(store) == before
        monkeypatch.setenv("VCZSTORE_WITHDRAWAL_KEY", "k" * 32)
        own(store)
    finally:
        os.seteuid(0)
        os.setegid(0)
    assert "S0001" not in read(store, kind)["sample_id"]
    assert not list(folder.rglob("*.lock"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_a_file_system_without_locks(folder: Path, batches: list[str], kind: str) -> None:
    store = make(folder / "a" / "store.vcz", kind)
    left = [".vczstore.lock"] if kind == "icechunk" else []
    for name in left:
        (store / name).touch()  # left by commits that used filelock
    ends = compete([str(store)] * 2, batches, NO_FLOCK)
    assert_whole(read(store, kind), ends)
    assert [path.name for path in store.rglob("*.lock")] == left


@pytest.mark.parametrize("kind", ["format3", "icechunk"])
@pytest.mark.slow
def test_a_file_left_by_a_killed_process_is_named_where_there_are_no_locks(
    folder: Path, batches: list[str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process was on another machine and cannot be checked, so the wait is limited to one TTL."""

    def flock(_file: int, _operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr(lock, "TTL", 1.0)
    store = make(folder / "a" / "store.vcz", kind)
    lock_file = store / (".vczstore-commit.lock" if kind == "icechunk" else KEY)
    lock_file.write_text(json.dumps({"host": "node-7", "pid": 42, "started": "2026-11-28T00:00:00", "made": True}))
    before, start = cohort.digest(store), time.monotonic()
    calls = [lambda: vczstore.append(store, batches[0])]
    if kind == "icechunk":
        calls.append(lambda: vczstore.tag(store, "release-1"))
    for call in calls:
        complain(BusyError, [str(store), "process 42 on node-7", "since 2026-11-28", str(lock_file), "delete"], call)
    assert time.monotonic() - start < 20
    if kind == "icechunk":
        before = {k: v for k, v in before.items() if k.startswith(("snapshots", "repo"))}
    assert {k: v for k, v in cohort.digest(store).items() if k in before} == before
    lock_file.unlink()
    vczstore.append(store, batches[0])


def test_machines_with_and_without_flock_exclude_each_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(make(folder / "a" / "store.vcz"))

    def flock(_file: int, _operation: int) -> None:
        raise OSError(38, "Function not implemented")

    with lock.hold(store):
        monkeypatch.setattr("fcntl.flock", flock)
        with pytest.raises(BusyError, match=str(os.getpid())), lock.hold(store):
            pass
    with lock.hold(store) as held:
        monkeypatch.undo()
        with pytest.raises(BusyError, match=str(os.getpid())), lock.hold(store):
            pass
        held.check()
    with lock.hold(store):
        pass


@pytest.mark.parametrize("reach", ["LocalStore", "ObjectStore", "logged", "link", "file://", "obstore", "fsspec"])
@pytest.mark.slow
def test_every_way_to_reach_a_store_has_one_lock(folder: Path, reach: str) -> None:
    path = make(folder / "a" / "store.vcz")
    (folder / "link").symlink_to(path)
    place: Any = {
        "LocalStore": LocalStore(path),
        "ObjectStore": ObjectStore(obstore.store.LocalStore(path)),
        "logged": LoggingStore(LocalStore(path)),
        "link": folder / "link",
        "file://": path.as_uri(),
    }.get(reach, path)
    backend = reach if reach in ("obstore", "fsspec") else None
    with job_lock(str(path), {}, wait=False):
        before = cohort.digest(path)
        with pytest.raises(BusyError, match="busy"):
            vczstore.remove(place, "S0001", backend_storage=backend)
        assert cohort.digest(path) == before
    vczstore.remove(place, "S0001", backend_storage=backend)
    cohort.assert_same(cohort.read_vcz(path), cohort.expected_remove(OLD, ["S0001"]))


def test_an_open_repository_in_a_folder_has_its_lock(folder: Path) -> None:
    path = make(folder / "a" / "store.vcz", "icechunk")
    repository = repository_of(path)
    assert open_store(repository).folder == path
    with job_lock(str(path), {}, wait=False), pytest.raises(BusyError):
        vczstore.gc(repository)


def test_a_store_in_memory_has_a_lock_in_this_process() -> None:
    store = MemoryStore()
    one, other = open_store(store), open_store(LoggingStore(MemoryStore(store._store_dict)))
    with lock.hold(one):
        with pytest.raises(BusyError), lock.hold(other):
            pass
        with lock.hold(open_store(MemoryStore())):
            pass
    with lock.hold(other):
        pass


@pytest.mark.slow
def test_the_lock_is_not_a_member_of_the_group(folder: Path) -> None:
    """Readers do not see it while it is held, and no copy contains it."""
    store = make(folder / "a" / "store.vcz")
    vczstore.remove(store, "S0001")
    with job_lock(str(store), {}, wait=False), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(zarr.open_group(store, mode="r", use_consolidated=False).array_keys()) == set(OLD)
        assert vczstore.verify(store).ok
        assert vczstore.info(store).stored_bytes
        assert vczstore.verify_removal(store, "S0001").erased
        assert vczstore.gc(store, dry_run=True).counts["chunks deleted"] == 0
        vczstore.compact(store, folder / "compacted.vcz")
        vczstore.copy_store_to_icechunk(store, folder / "copy.icechunk")
    assert not list(folder.rglob("*.lock"))


@pytest.mark.slow
def test_a_read_only_mount(folder: Path, batches: list[str]) -> None:
    for kind in ("format3", "icechunk"):
        store = make(folder / kind / "store.vcz", kind)
        before = cohort.digest(store)
        with mounted(store, folder / f"{kind}-read-only", "ro"):
            place = str(folder / f"{kind}-read-only")
            commands = [["append", place, batches[0]], ["gc", place]]
            commands += [["tag", place, "release-1"]] if kind == "icechunk" else [["repair", place]]
            for command in commands:
                done = CliRunner().invoke(main, command)
                assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1), done.output
                for word in (place, "Read-only file system"):
                    assert word in done.stderr, done.stderr
            assert CliRunner().invoke(main, ["tag", place]).exit_code == (kind != "icechunk")
        assert cohort.digest(store) == before


def test_a_mount_point_is_not_compacted_in_place(folder: Path) -> None:
    """A bind mount in the same file system has the same device number as its parent."""
    store = make(folder / "a" / "store.vcz")
    vczstore.remove(store, "S0001")
    before = cohort.digest(store)
    with mounted(store, folder / "mount point"):
        done = CliRunner().invoke(main, ["compact", str(folder / "mount point")])
        assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
        for word in ("mount point", "is a mount point", "mounted from", "--output"):
            assert word in done.stderr
        assert sorted(path.name for path in folder.iterdir()) == ["a", "mount point"]
    assert cohort.digest(store) == before


@pytest.mark.slow
def test_an_exchanged_folder_is_still_locked(folder: Path) -> None:
    store = make(folder / "a" / "store.vcz")
    vczstore.remove(store, "S0001")
    new = folder / "a" / "new.vcz"
    shutil.copytree(store, new)
    with job_lock(str(store), {}, wait=False) as held:
        lock.carry(store, new)
        store.rename(folder / "a" / "old.vcz")
        new.rename(store)
        held.check()
        with pytest.raises(BusyError), job_lock(str(store), {}, wait=False):
            pass
        shutil.rmtree(folder / "a" / "old.vcz")
    with job_lock(str(store), {}, wait=False):
        assert (store / KEY).exists()
    assert not list(folder.rglob("*.lock"))


@pytest.mark.slow
def test_no_lock(folder: Path, batches: list[str]) -> None:
    """``--no-lock`` writes to a locked store, and takes no lock."""
    for kind in ("format3", "icechunk"):
        store = make(folder / kind / "store.vcz", kind)
        with job_lock(str(store), {}, wait=False):
            for command in (["append", str(store), batches[0]], ["gc", str(store)]):
                done = CliRunner().invoke(main, [*command, "--no-lock"])
                assert done.exit_code == 0, done.output
            job = folder / "job.yaml"
            job.write_text(f"store: {{url: {store}, no-lock: true}}\nsteps: [{{append: {batches[1]}}}]\n")
            assert CliRunner().invoke(main, ["run", str(job)]).exit_code == 0
            job.write_text(f"store: {store}\nsteps: [{{remove: S0001}}]\n")
            assert CliRunner().invoke(main, ["run", str(job)]).exit_code == 3
            assert CliRunner().invoke(main, ["run", str(job), "--no-lock"]).exit_code == 0
        expected = cohort.expected_remove(cohort.expected_append(OLD, *NEW), ["S0001"])
        cohort.assert_same(read(store, kind), expected)
    assert "lost or mixed" in " ".join(CliRunner().invoke(main, ["append", "--help"]).stdout.split())


# ---- in an object store ---------------------------------------------------------------------


@pytest.fixture
def proxy(s3_server: s3.S3Server) -> Iterator[faults.Proxy]:
    with faults.before(s3_server.endpoint) as proxy:
        yield proxy


def put(server: s3.S3Server, folder: Path, kind: str = "format3") -> str:
    url = f"{server.url(f'lock-{uuid4().hex}')}/cohort/store.vcz"
    target = object_store_at(url, server.options)
    store = make(folder / "made" / "store.vcz", kind)
    for path in store.rglob("*"):
        if path.is_file():
            obstore.put(target, str(path.relative_to(store)), path.read_bytes())
    return url


def object_store_at(url: str, options: dict[str, Any]) -> Any:
    from vczstore.stores.locations import parse

    return object_store(parse(url), options)


def read_s3(url: str, server: s3.S3Server) -> dict[str, np.ndarray]:
    return cohort.read_vcz(ObjectStore(object_store_at(url, server.options), read_only=True))


@pytest.mark.slow
def test_a_policy_that_allows_the_store_alone(
    proxy: faults.Proxy, s3_server: s3.S3Server, folder: Path, batches: list[str]
) -> None:
    url = put(s3_server, folder)
    bucket = url.split("/")[2]

    def policy(_number: int, _method: str, path: str) -> faults.Fault:
        listed = re.search("[?&]prefix=([^&]*)", path)
        key = listed[1].replace("%2F", "/") if listed else path.partition("?")[0].removeprefix(f"/{bucket}/")
        return None if key.startswith("cohort/store.vcz/") else 403

    proxy.follow(policy)
    options = {"storage_options": {**s3_server.options, "endpoint": proxy.endpoint}}
    ends = compete([url, f"{url}/"], batches, **options)
    assert_whole(read_s3(url, s3_server), ends)


@pytest.mark.parametrize("headers", [{"if-match"}, {"if-none-match", "if-match"}])
@pytest.mark.slow
def test_a_server_that_ignores_conditions(
    proxy: faults.Proxy, s3_server: s3.S3Server, folder: Path, batches: list[str], headers: set[str]
) -> None:
    url = put(s3_server, folder)
    proxy.ignored = frozenset(headers)
    options = {**s3_server.options, "endpoint": proxy.endpoint}
    start = time.monotonic()
    words = [url, "ignores the conditions of writes", "--no-lock"]
    complain(StorageError, words, lambda: vczstore.append(url, batches[0], storage_options=options))
    assert time.monotonic() - start < 20
    cohort.assert_same(read_s3(url, s3_server), OLD)
    vczstore.append(url, batches[0], storage_options=options, no_lock=True)
    cohort.assert_same(read_s3(url, s3_server), cohort.expected_append(OLD, NEW[0]))


@pytest.mark.parametrize("headers", [{"if-match"}, {"if-none-match", "if-match"}])
@pytest.mark.slow
def test_a_repository_on_a_server_that_ignores_conditions(
    proxy: faults.Proxy, s3_server: s3.S3Server, folder: Path, batches: list[str], headers: set[str]
) -> None:
    """Concurrent commits would overwrite each other, so a commit is refused."""
    url = s3_server.url(f"lock-{uuid4().hex}") + "/cohort"
    vczstore.copy_store_to_icechunk(make(folder / "made" / "store.vcz"), url, storage_options=s3_server.options)
    target = object_store_at(url, s3_server.options)
    objects = {entry["path"] for page in target.list() for entry in page}
    proxy.ignored = frozenset(headers)
    options = {**s3_server.options, "endpoint": proxy.endpoint}
    words = ["ignores the conditions of writes", "--no-lock"]
    complain(StorageError, words, lambda: vczstore.append(url, batches[0], storage_options=options))
    assert {entry["path"] for page in target.list() for entry in page} == objects
    vczstore.append(url, batches[0], storage_options=options, no_lock=True)
    proxy.ignored = frozenset()
    vczstore.append(url, batches[1], storage_options={**options, "region": "us-east-1"})
    info = vczstore.info(url, storage_options=s3_server.options)
    assert info.samples == len(OLD["sample_id"]) + sum(len(new["sample_id"]) for new in NEW[:2])
    assert not [entry for page in target.list() for entry in page if lock.LOCK in entry["path"]]


@pytest.mark.parametrize("status", [403, 501, 400])
@pytest.mark.slow
def test_a_lock_that_is_refused(
    proxy: faults.Proxy, s3_server: s3.S3Server, folder: Path, batches: list[str], status: int
) -> None:
    """The error is immediate, and nothing is written."""
    url = put(s3_server, folder)

    def refuse(_number: int, method: str, path: str) -> faults.Fault:
        return status if method == "PUT" and path.endswith(KEY) else None

    proxy.follow(refuse)
    options = {**s3_server.options, "endpoint": proxy.endpoint}
    start = time.monotonic()
    words = [url, "cannot be locked", KEY, "--no-lock"]
    complain(StorageError, words, lambda: vczstore.append(url, batches[0], storage_options=options))
    assert time.monotonic() - start < 20
    cohort.assert_same(read_s3(url, s3_server), OLD)


@pytest.mark.slow
def test_the_lease_is_not_a_member_of_the_group(s3_server: s3.S3Server, folder: Path, batches: list[str]) -> None:
    url = put(s3_server, folder)
    options = {"storage_options": s3_server.options}
    vczstore.append(url, batches[0], **options)
    vczstore.remove(url, "S0001", **options)
    store = ObjectStore(object_store_at(url, s3_server.options), read_only=True)
    assert [e["path"] for e in obstore.list(store.store).collect() if "lock" in e["path"]] == [KEY]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(zarr.open_group(store, mode="r", use_consolidated=False).array_keys()) == set(OLD)
    assert vczstore.verify(url, **options).ok
    verdict = vczstore.verify_removal(url, "S0001", **options)
    assert verdict.erased
    assert verdict.figures["objects that belong to no array"] == 0


# ---- spellings ------------------------------------------------------------------------------


SPELLINGS = {
    "absolute": "{folder}/a/store.vcz",
    "relative": "a/store.vcz",
    "dotted": "./a/../a//store.vcz/",
    "link": "{folder}/link",
    "below a link": "parent/store.vcz/",
    "URL": "file://{folder}/a/store.vcz",
    "URL of localhost": "file://localhost{folder}/link/",
}


@pytest.mark.parametrize("kind", ["format3", "icechunk"])
@pytest.mark.parametrize("other", SPELLINGS)
def test_every_spelling_has_one_lock(
    folder: Path, other: str, kind: str, batches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(folder / "a" / "store.vcz", kind)
    (folder / "link").symlink_to(path)
    (folder / "parent").symlink_to(folder / "a")
    monkeypatch.chdir(folder)
    spelled = SPELLINGS[other].format(folder=folder)
    places: list[Any] = [spelled]
    if not spelled.startswith("file:"):
        places += [Path(spelled), repository_of(spelled) if kind == "icechunk" else LocalStore(spelled)]
    for place in places:
        for first, second in ((path, place), (place, path)):
            with lock.hold(open_store(first)), pytest.raises(BusyError), lock.hold(open_store(second)):
                pass
        if kind == "icechunk":
            assert open_store(place).folder == path
    vczstore.append(places[-1], batches[0])
    cohort.assert_same(read(path, kind), cohort.expected_append(OLD, NEW[0]))


def test_an_open_repository_whose_path_has_line_breaks(folder: Path) -> None:
    path = make(folder / "a: b\n  c " / "store\nvcz", "icechunk")
    assert open_store(repository_of(str(path))).folder == path


@pytest.mark.slow
def test_a_repository_opened_in_another_working_directory(
    folder: Path, batches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Icechunk keeps using the folder that was opened; workers and the lock would resolve the relative path again."""
    path = make(folder / "a" / "store.vcz", "icechunk")
    monkeypatch.chdir(folder)
    repository = repository_of("a/store.vcz")
    (folder / "b").mkdir()
    monkeypatch.chdir(folder / "b")
    before = cohort.digest(folder)
    for executor in ("threads", "processes"):
        with pytest.raises(vczstore.VczstoreError, match=r"relative path 'a/store\.vcz' of another") as caught:
            vczstore.append(repository, batches[0], executor=executor)
        assert "\n" not in str(caught.value)
    assert cohort.digest(folder) == before
    cohort.write_icechunk(folder / "b" / "a" / "store.vcz", NEW[1])
    with pytest.raises(vczstore.VczstoreError, match="absolute path"):
        vczstore.append(repository, batches[0])
    monkeypatch.chdir(folder)
    vczstore.append(repository, batches[0])
    cohort.assert_same(read(path, "icechunk"), cohort.expected_append(OLD, NEW[0]))
