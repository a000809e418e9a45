"""
Failing storage: servers that return errors, stall, reset connections or lose responses, and full disks.

An operation must either tolerate a fault or raise one error within bounded time, readers must see the old or the new
state, and a rerun on working storage must complete it. Faults are drawn from a seed and a number, but with concurrent
requests, thread scheduling determines which of them are affected.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
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
from zarr.storage import ObjectStore

import vczstore
from tests.support import cohort, faults, s3
from tests.system.survival import Tally
from vczstore.errors import BusyError, VczstoreError
from vczstore.jobs.run import run_job
from vczstore.stores import lock, object_store
from vczstore.stores.base import UNCHANGED

SECONDS = 60
"""Maximum duration of an operation on failing storage."""
KINDS = ("format3", "icechunk")
PLACES = ("server", "server", "disk")
FIELDS = (
    *("sample_id", "contig_id", "filter_id", "variant_contig", "variant_position", "variant_allele"),
    *("call_genotype", "call_FT", "call_GL"),
)
REMOVED = "S0002"

type Arrays = dict[str, np.ndarray]


def _arrays_of(samples: list[str], seed: int) -> Arrays:
    arrays = cohort.make_arrays(10, samples, seed=seed)
    return {name: arrays[name] for name in FIELDS}


OLD = cohort.expected_remove(_arrays_of(cohort.ids(0, 7), 0), [REMOVED])
BATCH = _arrays_of(cohort.ids(7, 5), 1)
RECALLED = _arrays_of(["S0000", "S0005"], 2)


# ---- places ---------------------------------------------------------------------------------


@dataclass
class Site:
    """
    A store and sources for it, on storage that will fail.

    Attributes
    ----------
    kind
        Kind of the store.
    top
        Folder or URL that contains the store and the sources.
    options
        Storage options, with the endpoint of the failing proxy.
    reader
        Opens the store at a path below `top` without vczstore, and bypasses the proxy.
    work
        A folder on a disk that does not fail.
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
        """The arrays as seen by readers, truncated to the number of samples in ``sample_id``."""
        arrays = cohort.read_vcz(self.reader(f"cohort/{name}"))
        n = len(arrays["sample_id"])
        return {
            name: values[tuple(slice(n) if dim == "samples" else slice(None) for dim in cohort.DIMENSIONS[name])]
            for name, values in arrays.items()
        }

    def job(self) -> Path:
        """Write a job file; return its path."""
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
    """A site on a disk, and a function to limit the bytes that can be written from now on; None removes the limit."""
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
    """A tmpfs if we may mount one, with a limit on its free space; else a folder, with a limit on the file size."""
    with tempfile.TemporaryDirectory(prefix="vczstore-disk-") as name:
        folder, capacity = Path(name), 2**28
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={capacity}", "tmpfs", name], check=False, capture_output=True
        )
        if mounted.returncode == 0:

            def limit(room: int | None) -> None:
                used = shutil.disk_usage(folder).used
                size = capacity if room is None else max(4096, used + room)
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
            # Python 3.12 would leave bytecode truncated at the limit, for later imports, of workers as well
            with (
                mock.patch.object(sys, "dont_write_bytecode", True),
                mock.patch.dict(os.environ, PYTHONDONTWRITEBYTECODE="1"),
            ):
                yield folder, limit_files
        finally:
            limit_files(None)


@contextmanager
def server() -> Iterator[s3.S3Server]:
    """An S3 server, with its credentials in the environment, and short timeouts."""
    with short_timeouts(), mock.patch.dict(os.environ, s3.CREDENTIALS), s3.serve() as running:
        yield running


@contextmanager
def short_timeouts() -> Iterator[None]:
    """Shorten retries, timeouts and the lifetime of locks."""
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
def on_server(running: s3.S3Server, kind: str, work: Path, name: str) -> Iterator[tuple[Site, faults.Proxy]]:
    """A site in a bucket, and the proxy between operations and the server."""
    url = running.url(name)
    with faults.before(running.endpoint) as proxy:

        def top(prefix: str) -> Any:
            return running.objects(f"{url}/{prefix}")

        def put(name: str, arrays: Arrays, write: Callable[..., None] = cohort.write_vcz) -> None:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder, "x"), arrays)
                for path in Path(folder, "x").rglob("*"):
                    if path.is_file():
                        obstore.put(top(name), path.relative_to(Path(folder, "x")).as_posix(), path.read_bytes())

        def reader(name: str) -> Any:
            if kind != "icechunk":
                return ObjectStore(top(name), read_only=True)
            storage = running.storage(f"{url}/{name}")
            return icechunk.Repository.open(storage).readonly_session("main").store

        _sources(put)
        put("cohort/store.vcz", OLD, cohort.write_icechunk if kind == "icechunk" else cohort.write_vcz)
        yield Site(kind, url, {**running.options, "endpoint": proxy.endpoint}, reader, work), proxy


# ---- operations -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """
    An operation to run on failing storage.

    Attributes
    ----------
    call
        Runs the operation.
    expected
        Returns the store's arrays after the operation, given those before.
    overwrites
        Whether on plain Zarr it overwrites values of visible samples, one chunk after the other.
    out
        Whether it writes a new store.
    kinds
        Kinds of store that support it.
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


def _options(site: Site) -> dict[str, Any]:
    return {"storage_options": site.options or None}


OPERATIONS = {
    "append": Operation(
        lambda site: vczstore.append(site.store, site.source("batch"), **_options(site)),
        lambda arrays: cohort.expected_append(arrays, BATCH),
    ),
    "append by zarr": Operation(
        lambda site: vczstore.append(site.store, site.source("batch"), impl="zarr", **_options(site)),
        lambda arrays: cohort.expected_append(arrays, BATCH),
    ),
    "update": Operation(
        lambda site: vczstore.update(site.store, site.source("recalled"), **_options(site)),
        lambda arrays: cohort.expected_update(arrays, RECALLED),
        overwrites=True,
    ),
    "remove": Operation(
        lambda site: vczstore.remove(site.store, ["S0001", "S0006"], **_options(site)),
        lambda arrays: cohort.expected_remove(arrays, ["S0001", "S0006"]),
        overwrites=True,
    ),
    "remove and purge": Operation(
        lambda site: vczstore.remove(site.store, ["S0001"], purge=True, **_options(site)),
        lambda arrays: cohort.expected_remove(arrays, ["S0001"]),
        kinds=("icechunk",),
    ),
    "purge": Operation(lambda site: vczstore.purge(site.store, **_options(site)), kinds=("icechunk",)),
    "tag": Operation(lambda site: vczstore.tag(site.store, "release", **_options(site)), kinds=("icechunk",)),
    "compact": Operation(
        lambda site: vczstore.compact(site.store, **_options(site)), cohort.expected_compact, kinds=("icechunk",)
    ),
    "compact to": Operation(_compact_to, cohort.expected_compact, out=True, kinds=("format3",)),
    "copy": Operation(_copy, lambda _: BATCH, out=True, kinds=("icechunk",)),
    "job": Operation(lambda site: run_job(str(site.job()), wait=True), _job, overwrites=True),
}


# ---- trials ---------------------------------------------------------------------------------


def plan_of(rng: random.Random) -> faults.Plan:
    """Draw a fault, and the requests that it affects."""
    fault = rng.choice((429, 500, 503, "reset", "stall", "lost answer", "lost answer"))
    methods = rng.choice((None, None, "PUT", "PUT", "GET", "DELETE", "POST"))
    first, share = rng.randrange(120), rng.choice((0.02, 0.1, 0.3))
    mode = rng.choice(("once", "once", "some", "first of each", "lasting", "lasting"))
    draw, seen, matching = random.Random(rng.random()), set[tuple[str, str]](), []

    def plan(number: int, method: str, path: str) -> faults.Fault:
        if methods not in (None, method) or number < first * (mode in ("once", "lasting")):
            return None
        new = (method, path) not in seen
        seen.add((method, path))
        match mode:
            case "once":
                matching.append(number)
                is_due = len(matching) == 1
            case "some":
                is_due = draw.random() < share
            case "first of each":
                is_due = new and fault != "stall"
            case _:
                is_due = True
        return fault if is_due else None

    return plan


def _same(arrays: Arrays, expected: Arrays) -> bool:
    try:
        cohort.assert_same(arrays, expected)
    except AssertionError:
        return False
    return True


def _attempt(operation: Operation, site: Site) -> tuple[str, list[str]]:
    """Run an operation on failing storage; return the error message, or "", and problems with the error or duration."""
    started, problems, message = time.monotonic(), [], ""
    try:
        operation.call(site)
    except VczstoreError as error:
        message = str(error)
        if "\n" in message or not message:
            problems.append(f"does not say in one line what is wrong: {message!r}")
    except Exception as error:  # any other error is a problem
        message = repr(error)
        problems.append(f"raised {message[:300]}")
    if time.monotonic() - started > SECONDS:
        problems.append(f"took {time.monotonic() - started:.0f} s")
    return message, problems


def _rerun(operation: Operation, site: Site) -> str:
    """Rerun on working storage, after stale leases have expired; return the error message, or ""."""
    deadline = time.monotonic() + 30
    while True:
        try:
            operation.call(site)
            return ""
        except BusyError as error:
            if time.monotonic() > deadline:
                return str(error)
            time.sleep(0.5)
        except VczstoreError as error:
            return str(error)


def attempt(name: str, site: Site, begin: Callable[[], None], end: Callable[[], None]) -> list[str]:
    """
    Run an operation on failing storage, and if that fails, again on working storage.

    Parameters
    ----------
    name
        A key of `OPERATIONS`.
    site
        Store and sources.
    begin, end
        Functions that make the storage begin and stop failing.

    Returns
    -------
    list of str
        The problems.
    """
    operation = OPERATIONS[name]
    old = site.read()
    expected = operation.expected(old)
    begin()
    message, problems = _attempt(operation, site)
    end()
    now = site.read()
    is_done = _same(now, expected) if not operation.out else not message
    if not message and not is_done:
        return [*problems, "says that it is done, and is not"]
    if message and not operation.out and not (is_done or _same(now, old)):
        # without transactions, values of samples may be overwritten in part
        is_between = operation.overwrites and site.kind != "icechunk"
        if not (is_between and set(old["sample_id"]) <= set(now["sample_id"]) | {"S0001", "S0006"}):
            problems.append(f"is neither old nor new after: {message}")
    if UNCHANGED in message and not operation.out and not _same(now, old):
        problems.append(f"says that nothing was committed, and it was: {message}")
    if message:
        if name == "compact to":
            _delete(site.out, site)
        error = _rerun(operation, site)
        now = site.read("out" if operation.out else "store.vcz")
        if not _same(now, expected):
            problems.append(f"is not completed by running it again ({error or 'which says that it is done'})")
        elif error and not is_done:
            problems.append(f"cannot be run again: {error}")
        if problems:
            problems.append(f"the error was: {message}")
    if name == "tag" and "release" not in vczstore.tags(site.store, **_options(site)):
        problems.append("there is no tag")
    return problems


def _delete(url: str, site: Site) -> None:
    """Delete the output of an operation, as its error message says, before a rerun."""
    if not site.options:
        shutil.rmtree(url, ignore_errors=True)
        return
    top = object_store.object_store(url, site.options)
    for page in obstore.list(top):
        obstore.delete(top, [entry["path"] for entry in page])


def run(n: int, seed: int, *, first: int = 0) -> Tally:
    """Try `n` faults of a seed, from number `first` on."""
    failures = []
    with server() as running:
        for number in range(first, first + n):
            rng = random.Random(f"{seed} {number}")
            name = list(OPERATIONS)[number % len(OPERATIONS)]
            kind, place = rng.choice(OPERATIONS[name].kinds), rng.choice(PLACES)
            with tempfile.TemporaryDirectory() as folder:
                if place == "disk":
                    room = rng.choice((0, 0, rng.randrange(30_000), rng.randrange(200_000)))
                    with on_disk(kind, Path(folder)) as (site, limit):
                        problems = attempt(name, site, partial(limit, room), partial(limit, None))
                    description = f"{name} on {kind}, a disk with room for {room:,} bytes"
                else:
                    with on_server(running, kind, Path(folder), f"faults-{seed}-{number}") as (site, proxy):
                        plan = plan_of(rng)
                        problems = attempt(name, site, partial(proxy.follow, plan), partial(proxy.follow, faults.never))
                    description = f"{name} on {kind}, a server that fails"
            failures += [f"storage.run(1, {seed}, first={number}): {description}: {problem}" for problem in problems]
    return Tally(n, tuple(failures))
