"""One plan on every executor: the resulting store is the same, byte for byte, on disk or in S3."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import icechunk
import obstore
import pytest
import zarr
from obstore.store import LocalStore, S3Store

import vczstore
from plans.compilers.copy import columns_per_manifest, compile_copy
from plans.compilers.regrid import compile_regrid
from plans.compilers.remove import compile_remove
from plans.core.memory import Memory
from plans.core.model import Plan
from tests.support import cohort, s3
from tests.support.modal_client import no_token, start
from tests.support.s3 import variables
from vczstore.errors import StorageError
from vczstore.execution.engine import run_plans
from vczstore.execution.options import Options
from vczstore.stores.icechunk import IcechunkStore
from vczstore.stores.resolve import open_store

__all__ = ["no_token", "start"]  # fixtures

FIELDS = ("sample_id", "variant_contig", "variant_position", "variant_allele", "call_genotype")
"""Few fields, in few chunks, because some executors start a process per task."""


def make_arrays(first: int, n: int) -> dict[str, Any]:
    arrays = cohort.make_arrays(6, cohort.ids(first, n), seed=first)
    return {name: arrays[name] for name in FIELDS}


# chunks of 3 samples: the first batch's first column is copied verbatim, the next has samples of both batches
OLD, BATCHES = make_arrays(0, 6), [make_arrays(6, 4), make_arrays(10, 1)]
GONE = ["S0006", "S0008"]

EDITED = cohort.expected_remove(cohort.expected_append(OLD, *BATCHES), GONE)
EXPECTED = {"format3": EDITED, "icechunk": EDITED, "copy": OLD, "flexible": cohort.expected_append(OLD, *BATCHES)}
"""
Resulting store of each case: append and remove on plain Zarr and Icechunk, a copy to Icechunk, and an append to a
store with a flexible grid, whose columns are then merged.
"""


@dataclass
class Place:
    """A folder or bucket, and access to its content without vczstore."""

    url: str
    options: Mapping[str, Any]
    objects: Callable[[str], Any]
    """Open the obstore store of the objects below a name."""
    storage: icechunk.Storage
    """Icechunk storage of ``store``."""

    def put(self, name: str, arrays: dict[str, Any]) -> str:
        cohort.write_vcz(zarr.storage.ObjectStore(self.objects(name)), arrays, variants_chunk=6)
        return f"{self.url}/{name}"

    @property
    def files(self) -> dict[str, bytes]:
        """Content of all objects of the store, by path."""
        listed = [entry["path"] for batch in obstore.list(self.store) for entry in batch]
        return {path: bytes(obstore.get(self.store, path).bytes()) for path in listed}

    def put_back(self, files: Mapping[str, bytes]) -> None:
        """Restore the store to these files."""
        obstore.delete(self.store, list(self.files))
        for path, value in files.items():
            obstore.put(self.store, path, value)

    @cached_property
    def store(self) -> Any:
        return self.objects("store")

    def as_zarr(self, case: str) -> zarr.abc.store.Store:
        """The store as a reader opens it."""
        if case == "format3":
            return zarr.storage.ObjectStore(self.store, read_only=True)
        return icechunk.Repository.open(self.storage).readonly_session("main").store


@pytest.fixture
def local(tmp_path: Path) -> Place:
    def objects(name: str) -> LocalStore:
        return LocalStore(tmp_path / name, mkdir=True)

    return Place(str(tmp_path), {}, objects, icechunk.local_filesystem_storage(str(tmp_path / "store")))


@pytest.fixture
def bucket(s3_server: s3.S3Server) -> Place:
    url = s3_server.url(f"equivalence-{uuid4().hex}")

    def objects(prefix: str) -> S3Store:
        return s3_server.objects(f"{url}/{prefix}")

    return Place(url, s3_server.options, objects, s3_server.storage(f"{url}/store"))


def compile_case(place: Place, case: str) -> list[Plan]:
    """Write the store of a case, and compile the plans that change it in one transaction."""
    url, options = f"{place.url}/store", {"storage_options": place.options}
    if case == "copy":
        source = open_store(place.put("source", OLD), **options).open()
        empty = IcechunkStore.create(url, place.options, columns_per_manifest(source))
        return [compile_copy(empty, source, Memory())]
    if case in ("icechunk", "flexible"):
        vczstore.copy_store_to_icechunk(place.put("plain", OLD), url, impl="zarr", **options)
    else:
        place.put("store", OLD)
    if case == "flexible":
        vczstore.regrid(url, sample_grid="flexible", **options)
    append = vczstore.plan("append", url, *(place.put(f"batch-{i}", b) for i, b in enumerate(BATCHES)), **options)
    assert (append.encoded_chunks, append.decoded_chunks) == ((2, 4) if case == "flexible" else (2, 2))
    if case == "flexible":
        return [append, compile_regrid(append.store, append.after, Memory(), sample_grid=None, samples_chunk=6)]
    return [append, compile_remove(append.store, append.after, GONE, Memory())]


def contents(store: zarr.abc.store.Store) -> dict[str, bytes]:
    """Encoded bytes of every chunk and metadata document, by key."""

    async def get_all() -> dict[str, bytes]:
        documents = {}
        async for key in store.list():
            value = await store.get(key, zarr.core.buffer.default_buffer_prototype())
            assert value is not None
            documents[key] = value.to_bytes()
        return documents

    return asyncio.run(get_all())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "case", "executor"),
    [
        ("bucket", "icechunk", "threads"),
        ("bucket", "format3", "processes"),
        ("local", "copy", "processes"),
        ("local", "format3", "lithops"),
        ("local", "icechunk", "modal"),
        ("bucket", "flexible", "modal"),
    ],
)
def test_one_plan_on_every_executor(request: pytest.FixtureRequest, where: str, case: str, executor: str) -> None:
    """
    Every executor is compared with single-threaded, which is compared with the model. Modal refuses local folders.

    Not every combination is run, since executors treat all tasks alike and each task opens its store by itself.
    """
    place = request.getfixturevalue(where)
    plans = compile_case(place, case)
    before = place.files

    def run(executor: str, **options: Any) -> None:
        run_plans(plans, "test", {}, Options(executor=executor).but(executor_options=options))

    run("single-threaded")
    expected = contents(place.as_zarr(case))
    cohort.assert_same(cohort.read_vcz(place.as_zarr(case)), EXPECTED[case])
    place.put_back(before)
    if executor == "modal":
        secret = variables(request.getfixturevalue("s3_server"))
        request.getfixturevalue("start")({"bucket": secret})
        if where == "local":
            with pytest.raises(StorageError, match="a store is on this machine, which Modal's containers cannot reach"):
                run("modal", variables_from="bucket")
            assert place.files.items() >= before.items()  # Icechunk may have added objects that no branch refers to
            return
    run(executor, **({"variables_from": "bucket"} if executor == "modal" else {"max_workers": 2}))
    assert contents(place.as_zarr(case)) == expected
