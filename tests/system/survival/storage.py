"""
Storage that fails: servers that answer with errors, stall, hang up or lose their answers, and disks that are full.

A fault is survived, or is one error in bounded time; readers see the old or the new; and the same operation, run again
when storage works, completes it. Faults are made from a seed and a number; which of several requests at once they meet
is up to threads.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import icechunk
import numpy as np
import obstore
from obstore.store import S3Store
from zarr.storage import ObjectStore

import vczstore
from tests.support import cohort, faults, s3
from tests.system.survival import Tally
from vczstore.errors import BusyError, VczstoreError
from vczstore.jobs.run import run_job
from vczstore.stores import lock, object_store
from vczstore.stores.base import UNCHANGED

SECONDS = 60
"""How long an operation may take to give up."""
KINDS = ("format3", "icechunk")
PLACES = ("server", "server", "disk")
FIELDS = (
    *("sample_id", "contig_id", "filter_id", "variant_contig", "variant_position", "variant_allele"),
    *("call_genotype", "call_FT", "call_GL"),
)
REMOVED = "S0002"

type Arrays = dict[str, np.ndarray]


def _some(samples: list[str], seed: int) -> Arrays:
    arrays = cohort.make_arrays(10, samples, seed=seed)
    return {name: arrays[name] for name in FIELDS}


OLD = cohort.expected_remove(_some(cohort.ids(0, 7), 0), [REMOVED])
BATCH = _some(cohort.ids(7, 5), 1)
RECALLED = _some(["S0000", "S0005"], 2)


# ---- places ---------------------------------------------------------------------------------


@dataclass
class Site:
    """
    A store, and what comes into it, in some place that will fail.

    Attributes
    ----------
    kind
        Of the store.
    top
        The folder or URL that all is in.
    options
        The storage options that go through what fails.
    reader
        Opens a Zarr store or a repository in it, without vczstore, past what fails.
    work
        A folder on a disk that has room.
    """

    kind: str
    top: str
    options: dict[str, Any]
    reader: Callable[[str], Any]
    work: Path

    @property
    def store(self) -> str:
        return f"{self.top}/cohort/store.vcz"

    @property
    def out(self) -> str:
        return f"{self.top}/cohort/out"

    def source(self, name: str) -> str:
        return f"{self.top}/{name}.vcz"

    def read(self, name: str = "store.vcz") -> Arrays:
        """What readers see, as far as ``sample_id`` says that there are samples."""
        arrays = cohort.read_vcz(self.reader(f"cohort/{name}"))
        n = len(arrays["sample_id"])
        return {
            name: values[tuple(slice(n) if dim == "samples" else slice(None) for dim in cohort.DIMENSIONS[name])]
            for name, values in arrays.items()
        }

    def job(self) -> Path:
        """A job file."""
        steps = [{"append": self.source("batch")}, {"remove": {"samples": ["S0001"]}}]
        tag = [{"tag": "release"}] if self.kind == "icechunk" else []
        store = {"url": self.store, **({"storage-options": self.options} if self.options else {})}
        path = self.work / "job.yaml"
        path.write_text(json.dumps({"store": store, "steps": [*steps, *tag]}))
        return path


def _sources(put: Callable[[str, Arrays], None]) -> None:
    for name, arrays in (("batch.vcz", BATCH), ("recalled.vcz", RECALLED)):
        put(name, arrays)


@contextmanager
def on_disk(kind: str, work: Path) -> Iterator[tuple[Site, Callable[[int | None], None]]]:
    """A folder, and what limits what can be written there from now on, in bytes; None takes the limit away."""
    with _disk() as (folder, limit):
        (folder / "cohort").mkdir()
        write = cohort.write_icechunk if kind == "icechunk" else cohort.write_vcz
        write(folder / "cohort" / "store.vcz", OLD)
        _sources(lambda name, arrays: cohort.write_vcz(folder / name, arrays))

        def reader(name: str) -> Any:
            path = folder / name
            return cohort.icechunk_store(path) if (path / "snapshots").is_dir() else path

        yield Site(kind, str(folder), {}, reader, work), limit


@contextmanager
def _disk() -> Iterator[tuple[Path, Callable[[int | None], None]]]:
    """A disk of its own if this machine lets us have one; else one on which no file may become large."""
    with tempfile.TemporaryDirectory(prefix="vczstore-disk-") as name:
        folder, everything = Path(name), 2**28
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={everything}", "tmpfs", name], check=False, capture_output=True
        )
        if mounted.returncode == 0:

            def limit(room: int | None) -> None:
                used = shutil.disk_usage(folder).used
                size = everything if room is None else max(4096, used + room)
                subprocess.run(["mount", "-o", f"remount,size={size}", name], check=True)

            try:
                yield folder, limit
            finally:
                subprocess.run(["umount", "-l", name], check=True)
            return
        before = resource.getrlimit(resource.RLIMIT_FSIZE)

        def limit_files(room: int | None) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if room is None else room // 20, before[1]))

        try:
            yield folder, limit_files
        finally:
            limit_files(None)


@contextmanager
def server() -> Iterator[s3.S3Server]:
    """An S3 server, credentials for it, and little patience."""
    with little_patience(), mock.patch.dict(os.environ, s3.CREDENTIALS), s3.serve() as found:
        yield found


@contextmanager
def little_patience() -> Iterator[None]:
    """Requests are made again soon, and not for long."""
    with ExitStack() as stack:
        for module, name, value in (
            (object_store, "RETRIES", 3),
            (object_store, "BACKOFF", (0.02, 0.1)),
            (object_store, "TIMEOUT", 0.5),
            (object_store, "PATIENCE", 10.0),
            (lock, "TTL", 2.0),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield


@contextmanager
def on_server(found: s3.S3Server, kind: str, work: Path, name: str) -> Iterator[tuple[Site, faults.Proxy]]:
    """A bucket, and the proxy that operations go through."""
    bucket = found.url(name).removeprefix("s3://")
    with faults.before(found.endpoint) as proxy:

        def top(prefix: str) -> Any:
            http = {"allow_http": True}
            return S3Store(bucket, prefix=prefix, endpoint=found.endpoint, region="us-east-1", client_options=http)

        def put(name: str, arrays: Arrays, write: Callable[..., None] = cohort.write_vcz) -> None:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder, "x"), arrays)
                for path in Path(folder, "x").rglob("*"):
                    if path.is_file():
                        obstore.put(top(name), path.relative_to(Path(folder, "x")).as_posix(), path.read_bytes())

        def reader(name: str) -> Any:
            if kind != "icechunk":
                return ObjectStore(top(name), read_only=True)
            storage = icechunk.s3_storage(
                bucket=bucket,
                prefix=name,
                endpoint_url=found.endpoint,
                region="us-east-1",
                allow_http=True,
                force_path_style=True,
                from_env=True,
            )
            return icechunk.Repository.open(storage).readonly_session("main").store

        _sources(put)
        put("cohort/store.vcz", OLD, cohort.write_icechunk if kind == "icechunk" else cohort.write_vcz)
        yield Site(kind, f"s3://{bucket}", {**found.options, "endpoint": proxy.endpoint}, reader, work), proxy


# ---- operations -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """
    What is done while storage fails.

    Attributes
    ----------
    call
        Does it.
    expected
        What the store holds then, of what it held before.
    overwrites
        Whether on plain Zarr values of samples that readers see are overwritten one after the other.
    out
        Whether the result is a store of its own.
    """

    call: Callable[[Site], object]
    expected: Callable[[Arrays], Arrays] = dict
    overwrites: bool = False
    out: bool = False
    kinds: tuple[str, ...] = KINDS


def _compact_to(site: Site) -> object:
    return vczstore.compact(site.store, site.out, storage_options=site.options or None)


def _copy(site: Site) -> object:
    return vczstore.copy_store_to_icechunk(site.source("batch"), site.out, storage_options=site.options or None)


def _job(arrays: Arrays) -> Arrays:
    return cohort.expected_remove(cohort.expected_append(arrays, BATCH), ["S0001"])


def _with(site: Site) -> dict[str, Any]:
    return {"storage_options": site.options or None}


OPERATIONS = {
    "append": Operation(
        lambda site: vczstore.append(site.store, site.source("batch"), **_with(site)),
        lambda arrays: cohort.expected_append(arrays, BATCH),
    ),
    "append by zarr": Operation(
        lambda site: vczstore.append(site.store, site.source("batch"), impl="zarr", **_with(site)),
        lambda arrays: cohort.expected_append(arrays, BATCH),
    ),
    "update": Operation(
        lambda site: vczstore.update(site.store, site.source("recalled"), **_with(site)),
        lambda arrays: cohort.expected_update(arrays, RECALLED),
        overwrites=True,
    ),
    "remove": Operation(
        lambda site: vczstore.remove(site.store, ["S0001", "S0006"], **_with(site)),
        lambda arrays: cohort.expected_remove(arrays, ["S0001", "S0006"]),
        overwrites=True,
    ),
    "remove and purge": Operation(
        lambda site: vczstore.remove(site.store, ["S0001"], purge=True, **_with(site)),
        lambda arrays: cohort.expected_remove(arrays, ["S0001"]),
        kinds=("icechunk",),
    ),
    "purge": Operation(lambda site: vczstore.purge(site.store, **_with(site)), kinds=("icechunk",)),
    "tag": Operation(lambda site: vczstore.tag(site.store, "release", **_with(site)), kinds=("icechunk",)),
    "compact": Operation(
        lambda site: vczstore.compact(site.store, **_with(site)), cohort.expected_compact, kinds=("icechunk",)
    ),
    "compact to": Operation(_compact_to, cohort.expected_compact, out=True, kinds=("format3",)),
    "copy": Operation(_copy, lambda _: BATCH, out=True, kinds=("icechunk",)),
    "job": Operation(lambda site: run_job(str(site.job()), wait=True), _job, overwrites=True),
}


# ---- trying ---------------------------------------------------------------------------------


def plan_of(rng: random.Random) -> faults.Plan:
    """Which requests fail, and how."""
    fault = rng.choice((429, 500, 503, "reset", "stall", "lost answer", "lost answer"))
    methods = rng.choice((None, None, "PUT", "PUT", "GET", "DELETE", "POST"))
    first, share = rng.randrange(120), rng.choice((0.02, 0.1, 0.3))
    how = rng.choice(("once", "once", "some", "first of each", "lasting", "lasting"))
    draw, seen, done = random.Random(rng.random()), set[tuple[str, str]](), []

    def plan(number: int, method: str, path: str) -> faults.Fault:
        if methods not in (None, method) or number < first * (how in ("once", "lasting")):
            return None
        new = (method, path) not in seen
        seen.add((method, path))
        match how:
            case "once":
                done.append(number)
                is_due = len(done) == 1
            case "some":
                is_due = draw.random() < share
            case "first of each":
                is_due = new and fault != "stall"
            case _:
                is_due = True
        return fault if is_due else None

    return plan


def _same(found: Arrays, wanted: Arrays) -> bool:
    try:
        cohort.assert_same(found, wanted)
    except AssertionError:
        return False
    return True


def _attempt(operation: Operation, site: Site) -> tuple[str, list[str]]:
    """Do it while storage fails: the error, if there was one, and what is wrong about it."""
    began, found, message = time.monotonic(), [], ""
    try:
        operation.call(site)
    except VczstoreError as error:
        message = str(error)
        if "\n" in message or not message:
            found.append(f"does not say in one line what is wrong: {message!r}")
    except Exception as error:  # anything else is what we look for
        message = repr(error)
        found.append(f"raised {message[:300]}")
    if time.monotonic() - began > SECONDS:
        found.append(f"took {time.monotonic() - began:.0f} s")
    return message, found


def _again(operation: Operation, site: Site) -> str:
    """The same when storage works again; a lease that could not be given back runs out meanwhile."""
    until = time.monotonic() + 30
    while True:
        try:
            operation.call(site)
            return ""
        except BusyError as error:
            if time.monotonic() > until:
                return str(error)
            time.sleep(0.5)
        except VczstoreError as error:
            return str(error)


def attempt(name: str, site: Site, begin: Callable[[], None], end: Callable[[], None]) -> list[str]:
    """
    Do something while storage fails, and again when it does not.

    Parameters
    ----------
    name
        A key of `OPERATIONS`.
    site
        Where.
    begin, end
        Called when storage begins to fail, and when it ends to.

    Returns
    -------
    list of str
        What went wrong that may not.
    """
    operation = OPERATIONS[name]
    old = site.read()
    wanted = operation.expected(old)
    begin()
    message, found = _attempt(operation, site)
    end()
    now = site.read()
    is_done = _same(now, wanted) if not operation.out else not message
    if not message and not is_done:
        return [*found, "says that it is done, and is not"]
    if message and not operation.out and not (is_done or _same(now, old)):
        # where nothing is transactional, values of samples follow one after the other
        is_between = operation.overwrites and site.kind != "icechunk"
        if not (is_between and set(old["sample_id"]) <= set(now["sample_id"]) | {"S0001", "S0006"}):
            found.append(f"is neither old nor new after: {message}")
    if UNCHANGED in message and not operation.out and not _same(now, old):
        found.append(f"says that nothing was committed, and it was: {message}")
    if message:
        if name == "compact to":
            _delete(site.out, site)
        refused = _again(operation, site)
        now = site.read("out" if operation.out else "store.vcz")
        if not _same(now, wanted):
            found.append(f"is not completed by running it again ({refused or 'which says that it is done'})")
        elif refused and not is_done:
            found.append(f"cannot be run again: {refused}")
        if found:
            found.append(f"the error was: {message}")
    if name == "tag" and "release" not in vczstore.tags(site.store, **_with(site)):
        found.append("there is no tag")
    return found


def _delete(url: str, site: Site) -> None:
    """What the message tells to do before it is run again."""
    if not site.options:
        shutil.rmtree(url, ignore_errors=True)
        return
    top = object_store.object_store(url, site.options)
    for page in obstore.list(top):
        obstore.delete(top, [entry["path"] for entry in page])


def run(n: int, seed: int, *, first: int = 0) -> Tally:
    """Try so many faults of a seed."""
    bad = []
    with server() as found:
        for number in range(first, first + n):
            rng = random.Random(f"{seed} {number}")
            name = list(OPERATIONS)[number % len(OPERATIONS)]
            kind, place = rng.choice(OPERATIONS[name].kinds), rng.choice(PLACES)
            with tempfile.TemporaryDirectory() as folder:
                if place == "disk":
                    room = rng.choice((0, 0, rng.randrange(30_000), rng.randrange(200_000)))
                    with on_disk(kind, Path(folder)) as (site, limit):
                        wrong = attempt(name, site, partial(limit, room), partial(limit, None))
                    what = f"{name} on {kind}, a disk with room for {room:,} bytes"
                else:
                    with on_server(found, kind, Path(folder), f"faults-{seed}-{number}") as (site, proxy):
                        plan = plan_of(rng)
                        wrong = attempt(name, site, partial(proxy.follow, plan), partial(proxy.follow, faults.never))
                    what = f"{name} on {kind}, a server that fails"
            bad += [f"storage.run(1, {seed}, first={number}): {what}: {one}" for one in wrong]
    return Tally(n, tuple(bad))
