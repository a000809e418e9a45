"""The lock of a store between real processes: as a file on this machine, and as a lease on an S3 server."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, PreconditionError

from tests.support import cohort, s3
from tests.support.locks import job_lock
from tests.support.paths import ROOT
from vczstore.errors import BusyError, NotAStoreError, OptionError, StaleError, StorageError, VczstoreError
from vczstore.stores import lock
from vczstore.stores.object_store import object_store

TTL = 2.0
"""Seconds: short, but long enough for a machine under load."""
PATIENCE = 60.0
KEY = "sample_id/.vczstore-job.lock"
"""Path of the lock in a plain Zarr store: not at the top level, where Zarr readers look for members."""

JOB = """
import json, sys
from vczstore.errors import VczstoreError
from vczstore.stores import lock
from vczstore.stores.resolve import open_store

url, options, wait, lock.TTL = json.loads(sys.argv[1])
print("begins", flush=True)
try:
    with open_store(url, storage_options=options).exclusive_lock(wait=wait) as held:
        print("held", flush=True)
        for line in sys.stdin:
            held.check()
            print("checked", flush=True)
    print("released", flush=True)
except VczstoreError as error:
    print(type(error).__name__, flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
"""Program that holds the lock until its input ends, and checks it at each line."""

COUNT = """
import json, sys, time
from pathlib import Path
from vczstore.stores import lock
from vczstore.stores.resolve import open_store

url, options, lock.TTL, counter = json.loads(sys.argv[1])
for _ in range(3):
    with open_store(url, storage_options=options).exclusive_lock(wait=True) as held:
        value = int(Path(counter).read_text())
        time.sleep(0.02)
        held.check()
        Path(counter).write_text(str(value + 1))
"""


@dataclass
class Job:
    """A process that runs `JOB`."""

    process: subprocess.Popen[str]
    output: Path

    def said(self) -> list[str]:
        return self.output.read_text().split()

    def says(self, word: str) -> None:
        until(lambda: word in self.said() or self.process.poll() is not None)
        assert word in self.said()

    def check(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(PATIENCE) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Place:
    """Location of a store, which need not exist, and the jobs that lock it."""

    url: str
    options: dict[str, Any]
    folder: Path
    jobs: list[Job] = field(default_factory=list)

    def start(self, *, wait: bool = False, ttl: float = TTL) -> Job:
        output = self.folder / f"output-{len(self.jobs)}"
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", JOB, json.dumps([self.url, self.options, wait, ttl])],
                stdin=subprocess.PIPE,
                stdout=file,
                text=True,
                cwd=ROOT,
            )
        self.jobs.append(Job(process, output))
        return self.jobs[-1]

    def holder(self, **options: Any) -> Job:
        job = self.start(**options)
        job.says("held")
        return job

    def lock(self, *, wait: bool = False) -> Any:
        return job_lock(self.url, self.options, wait=wait)

    def assert_busy(self) -> str:
        with pytest.raises(BusyError) as caught, self.lock():
            pass
        return str(caught.value)

    def assert_free(self) -> None:
        with self.lock() as held:
            held.check()

    def stop(self) -> None:
        for job in self.jobs:
            job.kill()
            if job.process.stdin is not None and not job.process.stdin.closed:
                job.process.stdin.close()


def until(condition: Callable[[], bool], patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def make(path: Path) -> None:
    """Write as much of a VCZ as the lock requires: group metadata and the folder of sample IDs."""
    (path / "sample_id").mkdir(parents=True)
    (path / "zarr.json").touch()


def begin(url: str, options: dict[str, Any]) -> None:
    """Write as much of a VCZ to an object store as the lock requires."""
    obstore.put(object_store(url, options), "zarr.json", b"{}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lock, "TTL", TTL)
    return tmp_path


@pytest.fixture
def local(folder: Path) -> Iterator[Place]:
    place = Place(str(folder / "store.vcz"), {}, folder)
    make(Path(place.url))
    yield place
    place.stop()


@pytest.fixture
def remote(folder: Path, s3_server: s3.S3Server) -> Iterator[Place]:
    bucket = s3_server.url(f"lock-{uuid4().hex}")
    place = Place(f"{bucket}/cohort/store.vcz", s3_server.options, folder)
    begin(place.url, place.options)
    yield place
    place.stop()


@pytest.fixture(params=["local", "remote"])
def place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(request.param)


def lease_of(place: Place) -> tuple[Any, str]:
    """The obstore store of a place, and the key of its lease."""
    return object_store(place.url, place.options), KEY


# ---- everywhere -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_job_is_refused_and_names_the_holder(place: Place) -> None:
    holder = place.holder()
    message = place.assert_busy()
    assert "\n" not in message
    for word in (place.url, f"process {holder.process.pid} on {socket.gethostname()}", "since 20", "--if-busy wait"):
        assert word in message
    assert (BusyError.exit_status, VczstoreError.exit_status) == (3, 1)
    holder.check()
    holder.says("checked")
    holder.finish()
    assert holder.said()[-1] == "released"
    place.assert_free()


def test_a_job_in_this_process_counts_too(place: Place) -> None:
    with place.lock():
        place.assert_busy()
    place.assert_free()


def test_a_job_that_fails_releases_the_lock(place: Place) -> None:
    with pytest.raises(ZeroDivisionError), place.lock():
        raise ZeroDivisionError
    place.assert_free()


@pytest.mark.slow
def test_a_waiting_job_gets_the_lock_when_it_is_released(place: Place) -> None:
    holder = place.holder()
    waiting = place.start(wait=True)
    waiting.says("begins")
    time.sleep(2 * TTL)  # the holder renews it all the time
    assert waiting.said() == ["begins"]
    place.assert_busy()
    holder.check()
    holder.says("checked")
    holder.finish()
    waiting.says("held")
    assert str(waiting.process.pid) in place.assert_busy()
    waiting.finish()


@pytest.mark.slow
def test_waiting_can_be_interrupted(place: Place) -> None:
    holder = place.holder()
    waiting = place.start(wait=True)
    waiting.says("begins")
    time.sleep(0.5)
    waiting.process.send_signal(signal.SIGINT)
    assert waiting.process.wait(PATIENCE) == 0
    assert waiting.said() == ["begins", "interrupted"]
    holder.check()
    holder.says("checked")


@pytest.mark.slow
def test_no_update_is_lost(place: Place) -> None:
    counter = place.folder / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", COUNT, json.dumps([place.url, place.options, 5 * TTL, str(counter)])]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    assert [process.wait(PATIENCE) for process in processes] == [0] * 4
    assert counter.read_text() == "12"


def test_two_stores_do_not_share_a_lock(place: Place) -> None:
    if "://" in place.url:
        begin(place.url + "2", place.options)
    else:
        make(Path(place.url + "2"))
    with place.lock(), job_lock(place.url + "2", place.options, wait=False) as other:
        other.check()


def test_a_trailing_slash_shares_the_lock(place: Place) -> None:
    with job_lock(f"{place.url}/", place.options, wait=False):
        place.assert_busy()


# ---- on this machine ------------------------------------------------------------------------


@pytest.mark.slow
def test_the_file_lock_of_a_killed_holder_is_free_immediately(local: Place) -> None:
    local.holder().kill()
    local.assert_free()


def test_the_file_is_in_the_store(local: Place) -> None:
    with local.lock():
        assert sorted(path.name for path in local.folder.iterdir()) == ["store.vcz"]
        assert sorted(path.name for path in Path(local.url).iterdir()) == ["sample_id", "zarr.json"]
        assert (Path(local.url) / KEY).exists()


def test_no_file_is_left(local: Place) -> None:
    before = cohort.digest(local.folder)
    with local.lock():
        local.assert_busy()
    assert cohort.digest(local.folder) == before


def test_reading_the_holder_does_not_block_a_writer(local: Place) -> None:
    """Readers of the file that a killed writer left take a shared lock on it for a moment."""
    lock_file = Path(local.url) / KEY
    lock_file.touch()
    with lock_file.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        unlock = threading.Timer(0.02, fcntl.flock, (reader, fcntl.LOCK_UN))
        unlock.start()
        with local.lock():
            unlock.join()


@pytest.mark.slow
def test_the_lock_is_exclusive_among_many_threads(local: Place) -> None:
    """Each holder deletes the file that the others wait for."""
    inside, most, turns = 0, 0, 0

    def take_turns() -> None:
        nonlocal inside, most, turns
        for _ in range(50):
            with local.lock(wait=True) as held:
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                held.check()
                turns += 1
                inside -= 1

    threads = [threading.Thread(target=take_turns) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, turns) == (1, 300)


def test_a_link_to_a_store_shares_its_lock(local: Place) -> None:
    (local.folder / "elsewhere").mkdir()
    link = local.folder / "elsewhere" / "link.vcz"
    link.symlink_to(local.url)
    with job_lock(link.as_uri(), {}, wait=False):
        local.assert_busy()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"pid": 1}'])
def test_a_lock_file_without_valid_content_is_a_lock(local: Place, content: bytes) -> None:
    with local.lock():
        (Path(local.url) / KEY).write_bytes(content)
        assert "another process works on it; run" in local.assert_busy()
    local.assert_free()


def test_a_holder_whose_file_is_deleted_has_lost_the_lock(local: Place) -> None:
    with local.lock() as held:
        (Path(local.url) / KEY).unlink()
        with pytest.raises(StaleError, match="deleted"):
            held.check()
        with local.lock() as other:
            other.check()
            with pytest.raises(StaleError, match="deleted"):
                held.check()


def test_a_missing_folder_is_not_created(local: Place) -> None:
    (local.folder / "file").touch()
    for path in ("nowhere/store.vcz", "file/store.vcz"):
        with pytest.raises(NotAStoreError, match="no such file"), job_lock(str(local.folder / path), {}, wait=False):
            pass
    assert not (local.folder / "nowhere").exists()


def test_a_file_that_cannot_be_made_is_an_error(local: Place) -> None:
    (Path(local.url) / KEY).mkdir()
    with pytest.raises(StorageError, match="cannot be locked"), local.lock():
        pass


# ---- in an object store ---------------------------------------------------------------------


def test_the_server_honours_conditional_writes(remote: Place) -> None:
    """The tests below rely on this: of eight concurrent writes, one succeeds."""
    store = object_store(remote.url, remote.options)

    def winners(key: str, mode: Any) -> list[str]:
        start, won = threading.Barrier(8), []

        def write(name: str) -> None:
            start.wait()
            try:
                # identical content would keep the ETag, and a second write would succeed
                obstore.put(store, key, f"{name} {mode}".encode(), mode=mode)
            except (AlreadyExistsError, PreconditionError):
                return
            won.append(name)

        threads = [threading.Thread(target=write, args=(f"{key} {mode} {i}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return won

    for i in range(5):
        assert len(winners(str(i), "create")) == 1
        assert len(winners(str(i), {"e_tag": obstore.head(store, str(i))["e_tag"]})) == 1
    assert winners("absent", {"e_tag": obstore.head(store, "0")["e_tag"]}) == []


def test_the_lease_is_in_the_store_and_holds_no_credentials(remote: Place) -> None:
    with remote.lock() as held:
        top = object_store(remote.url.removesuffix("/cohort/store.vcz"), remote.options)
        keys = [f"cohort/store.vcz/{KEY}", "cohort/store.vcz/zarr.json"]
        assert [entry["path"] for entry in obstore.list(top).collect()] == keys
        lease = bytes(obstore.get(top, keys[0]).bytes()).decode()
        assert set(json.loads(lease)) == {"id", "host", "pid", "started", "renewed", "ttl", "released"}
        shown = lease + repr(held) + remote.assert_busy()
        for secret in s3.CREDENTIALS.values():
            assert secret not in shown
    with (
        pytest.raises(OptionError) as refused,
        job_lock(f"{remote.url}?sig=the-test-signature", remote.options, wait=False),
    ):
        pass
    assert "the-test-signature" not in str(refused.value)


def test_a_whole_bucket_has_a_lease(remote: Place) -> None:
    bucket = replace(remote, url=remote.url.removesuffix("/cohort/store.vcz"))
    begin(bucket.url, bucket.options)
    with bucket.lock():
        bucket.assert_busy()
        remote.assert_free()
    bucket.assert_free()


@pytest.mark.slow
def test_the_lease_of_a_killed_holder_expires_for_one_waiting_job_at_a_time(remote: Place) -> None:
    holder = remote.holder()
    waiting = [remote.start(wait=True) for _ in range(4)]
    for job in waiting:
        job.says("begins")
    holder.kill()
    remote.assert_busy()
    until(lambda: any("held" in job.said() for job in waiting))
    time.sleep(1.5 * TTL)
    while waiting:
        until(lambda: any("held" in job.said() for job in waiting))
        (owner,) = (job for job in waiting if "held" in job.said())
        owner.check()
        owner.says("checked")
        waiting.remove(owner)
        owner.finish()
        assert owner.said() == ["begins", "held", "checked", "released"]
    remote.assert_free()


@pytest.mark.slow
def test_an_abandoned_lease_is_taken_over_without_waiting(remote: Place) -> None:
    ttl = 0.6
    remote.holder(ttl=ttl).kill()
    killed = time.monotonic()
    remote.assert_busy()
    time.sleep(lock.ABANDONED * ttl + 1)  # the server counts whole seconds
    remote.assert_free()
    assert time.monotonic() - killed < lock.ABANDONED * TTL  # the holder's TTL applies


@pytest.mark.slow
def test_watching_distinguishes_live_from_dead_holders(remote: Place) -> None:
    holder = remote.holder()
    start = time.monotonic()
    with pytest.raises(BusyError), job_lock(remote.url, remote.options, wait=False, watch=True):
        pass
    assert time.monotonic() - start < TTL
    holder.kill()
    start = time.monotonic()
    with job_lock(remote.url, remote.options, wait=False, watch=True) as held:
        assert TTL <= time.monotonic() - start < lock.ABANDONED * TTL
        held.check()
    start = time.monotonic()
    with job_lock(remote.url, remote.options, wait=False, watch=True):
        assert time.monotonic() - start < TTL / 3  # a released lease is not watched


@pytest.mark.slow
def test_a_holder_that_was_suspended_detects_the_loss(remote: Place) -> None:
    holder = remote.holder()
    holder.process.send_signal(signal.SIGSTOP)
    with remote.lock(wait=True) as held:
        holder.process.send_signal(signal.SIGCONT)
        holder.check()
        holder.says("StaleError")
        assert "checked" not in holder.said()
        held.check()  # the former holder has not overwritten it
        remote.assert_busy()
    remote.assert_free()


@pytest.mark.slow
def test_a_holder_that_was_suspended_keeps_a_lease_without_competitors(remote: Place) -> None:
    holder = remote.holder()
    holder.process.send_signal(signal.SIGSTOP)
    time.sleep(1.5 * TTL)
    holder.process.send_signal(signal.SIGCONT)
    holder.check()
    holder.says("checked")


def test_a_lease_that_is_deleted_is_lost(remote: Place) -> None:
    with remote.lock() as held:
        store, key = lease_of(remote)
        obstore.delete(store, key)
        with pytest.raises(StaleError, match="deleted"):
            held.check()
        with pytest.raises(StaleError, match="deleted"):
            held.check()
    with pytest.raises(FileNotFoundError):
        obstore.head(store, key)
    remote.assert_free()


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"ttl": "long"}'])
@pytest.mark.slow
def test_a_lease_without_valid_content_expires(remote: Place, content: bytes) -> None:
    obstore.put(*lease_of(remote), content)
    assert "another process works on it; run" in remote.assert_busy()
    start = time.monotonic()
    with remote.lock(wait=True):
        assert TTL <= time.monotonic() - start < lock.ABANDONED * TTL


def test_a_write_whose_response_is_lost_counts(remote: Place) -> None:
    """The write reached the server, but the client sees only that its retry was refused."""
    lease = lock._Lease(remote.url, *lease_of(remote))
    assert lease._write()
    lease.version = {}
    lease.acquire(wait=False)
    before = dict(lease.version)
    assert lease._write(over=before)
    lease.version = before
    lease.check()
    remote.assert_busy()
    lease.release()
    remote.assert_free()


@pytest.mark.slow
def test_a_server_that_goes_away(s3_server: s3.S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check raises an error; the release of the lock does not."""
    monkeypatch.setattr(lock, "TTL", 0.5)
    with ExitStack() as server:
        other = server.enter_context(s3.serve())
        url = f"{other.url('bucket')}/store.vcz"
        begin(url, other.options)
        with job_lock(url, other.options, wait=False) as held:
            held.check()
            server.close()
            with pytest.raises(StorageError, match="cannot be locked"):
                held.check()
        with pytest.raises(StorageError, match="cannot be read"), job_lock(url, other.options, wait=True):
            pass
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lease")]


def refused(url: str, options: dict[str, Any], words: Sequence[str]) -> type[Exception]:
    with pytest.raises(VczstoreError) as caught, job_lock(url, options, wait=True):
        pass
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    return type(caught.value)


def test_a_place_that_does_not_exist_is_an_error(remote: Place) -> None:
    nowhere = "s3://no-such-bucket/store.vcz"
    assert refused(nowhere, remote.options, [nowhere, "there is no"]) is NotAStoreError
    assert refused(remote.url, {"no_such_option": 1}, ["/cohort", "no_such_option"]) is OptionError
    assert refused("ftp://host/store.vcz", {}, ["ftp://host", "obstore cannot open it"]) is OptionError


def test_the_environment_is_enough(remote: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", remote.options["endpoint"])
    assert os.environ["AWS_ACCESS_KEY_ID"] == "the-test-key"
    with job_lock(remote.url, {}, wait=False):
        remote.assert_busy()
