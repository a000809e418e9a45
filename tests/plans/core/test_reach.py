"""Stores and sources that tasks in other processes cannot read are refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import obstore
import pytest
from zarr.storage import FsspecStore, LocalStore, LoggingStore, MemoryStore, ObjectStore, WrapperStore

import vczstore
from tests.support import cohort
from tests.support.covering import in_turn
from tests.support.refusals import complain
from vczstore.errors import VczstoreError
from vczstore.stores.resolve import open_store
from vczstore.vcz import zarr_objects

OLD, NEW = cohort.some_arrays(10, cohort.ids(0, 3)), cohort.some_arrays(10, cohort.ids(3, 2), seed=1)


class Users(MemoryStore):
    """A user-defined store that is copied when it is pickled."""


def in_fsspec(_: Path) -> Any:
    return FsspecStore.from_url(f"memory://{uuid4().hex}/store.vcz")


IN_MEMORY: dict[str, Callable[[Path], Any]] = {
    "memory": lambda _: MemoryStore(),
    "fsspec": in_fsspec,
    "wrapped": lambda _: WrapperStore(MemoryStore()),
    "logged": lambda _: LoggingStore(MemoryStore()),
    "obstore": lambda _: ObjectStore(obstore.store.MemoryStore()),
    "users": lambda _: Users(),
}


def fill(store: Any, folder: Path, arrays: dict[str, Any]) -> Any:
    """Write a VCZ into a store, object by object."""
    from vczstore.stores.plain import put

    path = folder / uuid4().hex
    cohort.write_vcz(path, arrays)
    for file in path.rglob("*"):
        if file.is_file():
            put(store, file.relative_to(path).as_posix(), file.read_bytes())
    return store


@in_turn(kind=list(IN_MEMORY), operation=("append", "remove"))
@pytest.mark.slow
def test_a_store_in_memory(tmp_path: Path, kind: str, operation: str) -> None:
    store = fill(IN_MEMORY[kind](tmp_path), tmp_path, OLD)
    cohort.write_vcz(tmp_path / "batch.vcz", NEW)
    argument = {"append": tmp_path / "batch.vcz", "remove": "S0001"}[operation]
    call = getattr(vczstore, operation)
    complain(
        VczstoreError, ["use the executor threads"], lambda: call(store, argument, executor="processes", max_workers=1)
    )
    cohort.assert_same(cohort.read_vcz(store), OLD)
    vczstore.append(store, tmp_path / "batch.vcz")
    cohort.assert_same(cohort.read_vcz(store), cohort.expected_append(OLD, NEW))


@pytest.mark.parametrize("kind", ["fsspec", "obstore"])
@pytest.mark.slow
def test_a_source_in_memory(tmp_path: Path, kind: str) -> None:
    cohort.write_vcz(tmp_path / "store.vcz", OLD)
    source = fill(IN_MEMORY[kind](tmp_path), tmp_path, NEW)
    before = cohort.digest(tmp_path / "store.vcz")
    with pytest.raises(VczstoreError, match="use the executor threads") as caught:
        vczstore.append(tmp_path / "store.vcz", source, executor="processes", max_workers=1)
    assert "\n" not in str(caught.value)
    assert cohort.digest(tmp_path / "store.vcz") == before
    vczstore.append(tmp_path / "store.vcz", source)
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_append(OLD, NEW))


@pytest.mark.slow
def test_stores_and_sources_that_workers_can_read(tmp_path: Path) -> None:
    """A wrapped folder, and a source in memory that is pickled; no nonce is left behind, not even by a killed run."""
    cohort.write_vcz(tmp_path / "store.vcz", OLD)
    stamp = open_store(tmp_path / "store.vcz").open().stamp
    (tmp_path / "store.vcz/sample_id" / f"{zarr_objects.NONCE}0011").write_bytes(b"of a run that was killed")
    assert open_store(tmp_path / "store.vcz").open().stamp == stamp
    source = fill(MemoryStore(), tmp_path, NEW)
    vczstore.append(WrapperStore(LocalStore(tmp_path / "store.vcz")), source, executor="processes", max_workers=1)
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_append(OLD, NEW))
    assert not [path for path in (tmp_path / "store.vcz").rglob(".*") if path.is_file()]
