"""Failing storage: a few faults are tolerated, lasting ones raise one error in bounded time and commit nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import vczstore
from tests.support import cohort, faults, s3
from tests.support.clouds import BATCH, OLD, Cloud
from tests.system.survival import storage
from vczstore.errors import StorageError
from vczstore.stores import lock, object_store


@dataclass
class Shaky:
    """A bucket, accessed through a proxy with `options`, or directly with `cloud`."""

    cloud: Cloud
    proxy: faults.Proxy
    options: dict[str, Any]


@pytest.fixture
def shaky(s3_cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shaky]:
    monkeypatch.setattr(object_store, "RETRIES", 3)
    monkeypatch.setattr(object_store, "BACKOFF", (0.02, 0.1))
    monkeypatch.setattr(object_store, "TIMEOUT", 1.0)  # under load, responses may take much of this
    monkeypatch.setattr(object_store, "PATIENCE", 10.0)
    monkeypatch.setattr(lock, "TTL", 3.0)
    with faults.before(s3_cloud.options["endpoint"]) as proxy:
        yield Shaky(s3_cloud, proxy, {**s3_cloud.options, "endpoint": proxy.endpoint})


def every(n: int, fault: faults.Fault) -> faults.Plan:
    """A plan in which every n-th request fails."""
    return lambda number, _method, _path: fault if number % n == 1 else None


# the two kinds use different clients; each fault occurs with either kind in one of the next two tests
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fault"), [("format3", 429), ("icechunk", 503), ("icechunk", "reset"), ("format3", "stall")]
)
def test_some_faults_are_tolerated(shaky: Shaky, kind: str, fault: faults.Fault) -> None:
    store, batch = shaky.cloud.make(kind), shaky.cloud.put("batch.vcz", BATCH)
    shaky.proxy.follow(every(100 if fault == "stall" else 7, fault))
    vczstore.append(store, batch, storage_options=shaky.options)
    assert shaky.proxy.faults >= 1
    cohort.assert_same(shaky.cloud.read("cohort/store.vcz", kind), cohort.expected_append(OLD, BATCH))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("methods", "fault", "kind"),
    [("GET", 503, "format3"), ("GET", "stall", "icechunk"), ("PUT", 500, "icechunk"), ("PUT", "reset", "format3")],
)
def test_lasting_faults_raise_one_error(
    shaky: Shaky, monkeypatch: pytest.MonkeyPatch, kind: str, fault: faults.Fault, methods: str
) -> None:
    if fault == "stall":  # each attempt takes TIMEOUT
        monkeypatch.setattr(object_store, "RETRIES", 1)
    store, batch = shaky.cloud.make(kind), shaky.cloud.put("batch.vcz", BATCH)
    before = vczstore.info(store, storage_options=shaky.cloud.options)
    # GET requests work until tasks are running
    first = 60 if methods == "GET" else 5 if kind == "format3" else 0
    puts = iter(range(10**6))

    def plan(number: int, method: str, _path: str) -> faults.Fault:
        if method != methods:
            return None
        return fault if (number if method == "GET" else next(puts)) >= first else None

    shaky.proxy.follow(plan)
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        vczstore.append(store, batch, storage_options=shaky.options)
    assert time.monotonic() - started < 30
    message = str(caught.value)
    assert "\n" not in message
    assert store in message
    for secret in shaky.cloud.secrets:
        assert secret not in message
    # readers see the old state
    after = vczstore.info(store, storage_options=shaky.cloud.options)
    assert (after.snapshot, after.samples) == (before.snapshot, 7)
    cohort.assert_same(shaky.cloud.read("cohort/store.vcz", kind), OLD)
    # and a rerun completes it, once the lock that could not be released has expired
    shaky.proxy.follow(faults.never)
    vczstore.append(store, batch, storage_options=shaky.options)
    cohort.assert_same(shaky.cloud.read("cohort/store.vcz", kind), cohort.expected_append(OLD, BATCH))


@pytest.mark.parametrize("kind", ["format3", "icechunk"])
@pytest.mark.slow
def test_lost_responses(shaky: Shaky, kind: str) -> None:
    """Every write reaches the server, but the response to its first attempt is lost."""
    store, batch = shaky.cloud.make(kind), shaky.cloud.put("batch.vcz", BATCH)
    written: set[str] = set()

    def plan(_number: int, method: str, path: str) -> faults.Fault:
        if method != "PUT" or path in written:
            return None
        written.add(path)
        return "lost answer"

    shaky.proxy.follow(plan)
    vczstore.append(store, batch, storage_options=shaky.options)
    assert shaky.proxy.faults == len(written) > 10
    cohort.assert_same(shaky.cloud.read("cohort/store.vcz", kind), cohort.expected_append(OLD, BATCH))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("then", "message"), [("lost answer", ""), (503, "not known; see vczstore log"), (None, "as it was")]
)
def test_the_response_to_a_commit_is_lost(shaky: Shaky, then: faults.Fault, message: str) -> None:
    """Each attempt to commit fails. The branch shows whether the commit landed, unless it cannot be read."""
    store, batch = shaky.cloud.make("icechunk"), shaky.cloud.put("batch.vcz", BATCH)
    commits: list[str] = []

    def plan(_number: int, method: str, path: str) -> faults.Fault:
        if method == "PUT" and path.partition("?")[0].endswith("/store.vcz/repo"):
            commits.append(path)
            return "lost answer" if then is not None else 503
        return 503 if commits and then == 503 else None

    shaky.proxy.follow(plan)
    if message:
        with pytest.raises(StorageError, match=message):
            vczstore.append(store, batch, storage_options=shaky.options)
    else:
        vczstore.append(store, batch, storage_options=shaky.options)
    assert len(commits) > 1
    expected = OLD if then is None else cohort.expected_append(OLD, BATCH)
    cohort.assert_same(shaky.cloud.read("cohort/store.vcz", "icechunk"), expected)


@pytest.mark.parametrize("backend", [None, "obstore", "icechunk"])
@pytest.mark.parametrize("status", [403, 500])
def test_a_store_that_cannot_be_opened(shaky: Shaky, backend: str | None, status: int) -> None:
    shaky.proxy.follow(lambda *_: status)
    with pytest.raises(StorageError) as caught:
        vczstore.info(f"{shaky.cloud.url}/store", backend_storage=backend, storage_options=shaky.options)
    assert "\n" not in str(caught.value)
    assert f"{shaky.cloud.url}/store" in str(caught.value)
    # Icechunk applies our retry settings only after it has opened a repository, and makes ten attempts before
    assert shaky.proxy.seen <= 4 * (object_store.RETRIES + 1)


# ---- random faults --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2))
def test_generated_faults(number: int) -> None:
    """Random failures of servers and full disks."""
    tally = storage.run(4, seed=0, first=4 * number)
    assert not tally.failures, "\n\n".join(tally.failures)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["append", "remove", "compact", "compact to", "job", "copy", "tag", "purge"])
def test_full_disk(tmp_path: Path, name: str) -> None:
    """A disk with no free space, then with a little: the operation succeeds or raises one error, and can be rerun."""
    for kind, room in zip(cycle(storage.OPERATIONS[name].kinds), (0, 20_000), strict=False):
        work = tmp_path / f"{kind}-{room}"
        work.mkdir()
        with storage.on_disk(kind, work) as (site, limit):
            problems = storage.attempt(name, site, partial(limit, room), partial(limit, None))
        assert not problems, f"{kind}, {room}: {problems}"


@pytest.mark.parametrize("name", ["append", "compact", "copy", "job", "purge", "tag"])
@pytest.mark.slow
def test_each_response_is_lost_once(s3_server: s3.S3Server, tmp_path: Path, name: str) -> None:
    """The first response to every write, deletion and conditional write is lost, including commits, tags and locks."""
    seen: set[tuple[str, str]] = set()

    def plan(_number: int, method: str, path: str) -> faults.Fault:
        if method == "GET" or (method, path) in seen:
            return None
        seen.add((method, path))
        return "lost answer"

    with storage.short_timeouts(), storage.on_server(s3_server, "icechunk", tmp_path, f"lost-{uuid4().hex}") as context:
        site, proxy = context
        old = site.read()
        proxy.follow(plan)
        storage.OPERATIONS[name].call(site)
        assert proxy.faults == len(seen) >= 1
        proxy.follow(faults.never)
        expected = storage.OPERATIONS[name].expected(old)
        cohort.assert_same(site.read("out" if storage.OPERATIONS[name].out else "store.vcz"), expected)
