"""A VCZ on plain Zarr, format 2 or 3: no transactions, so the order of writes keeps readers safe."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zarr.abc.store import Store as ZarrStore
from zarr.buffer import default_buffer_prototype
from zarr.storage import LocalStore, MemoryStore, ObjectStore

from vczstore.errors import BusyError, ConflictError, UnsuitableError
from vczstore.stores import parent_metadata
from vczstore.stores.base import Snapshot
from vczstore.stores.edits import Edit
from vczstore.stores.folders import folder_behind
from vczstore.vcz.arrays import LOCK, claim, clear_outside, names, reading, set_many, stored_bytes
from vczstore.vcz.model import Vcz


@dataclass(frozen=True)
class PlainStore:
    """A VCZ whose chunks and metadata are objects of their own."""

    zarr_store: ZarrStore
    label: str
    backend: str
    atomic: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    no_lock: bool = False

    @property
    def folder(self) -> Path | None:
        """The folder of this machine in which everything is."""
        return folder_behind(self.zarr_store)

    @property
    def pickles(self) -> bool:
        """Other processes reach all places but this process's own memory."""
        return not isinstance(self.zarr_store, MemoryStore)

    def open(self, at: str | None = None) -> Vcz:
        """Read the metadata; plain Zarr has no other moment than now."""
        if at is not None:
            raise UnsuitableError(
                f"info: {self.label} is plain Zarr, which has no tag or snapshot {at!r}; "
                f"vczstore copy-store-to-icechunk {self.label} NEW_STORE makes a store that keeps them"
            )
        return Vcz.read(reading(self.zarr_store), self.label)

    @property
    def head(self) -> str:
        """Plain Zarr has no snapshots."""
        return ""

    def tags(self) -> dict[str, str]:
        """None: plain Zarr has no tags."""
        return {}

    def history(self, snapshot: str | None = None) -> Iterator[Snapshot]:
        """None: plain Zarr has no history."""
        return iter(())

    def stored_bytes(self) -> int | None:
        """The size of all objects, where that takes no listing of a remote place."""
        return stored_bytes(self.zarr_store)

    def collect_garbage(self, *, dry_run: bool) -> dict[str, int]:
        """Delete, or count, the chunks outside the arrays' shapes, which an append that was stopped leaves."""
        vcz, store = self.open(), self.zarr_store.with_read_only(False)
        vcz.require_whole("gc", edited=False)
        found = [clear_outside(array, store, dry_run=dry_run) for array in (*vcz.arrays.values(), *vcz.inner.values())]
        return {"chunks deleted": sum(n for n, _ in found), "bytes": sum(size for _, size in found)}

    def transaction(self, base: str) -> "PlainTransaction":
        """Begin to write to the store itself."""
        vcz = self.open()
        if vcz.state != base:
            raise ConflictError(f"{self.label} has changed since the plan was made; plan again")
        parent_metadata.require_writable(vcz)
        return self._begin()

    def _begin(self) -> "PlainTransaction":
        return PlainTransaction(self.zarr_store.with_read_only(False))


@dataclass(frozen=True)
class NewPlainStore(PlainStore):
    """
    A place where a VCZ on plain Zarr will be, and nothing is yet.

    Attributes
    ----------
    operation
        What makes it.
    """

    operation: str = field(kw_only=True)

    def require_nothing(self) -> None:
        """Raise an `UnsuitableError` if anything lies there."""
        if names(self.zarr_store):
            raise UnsuitableError(
                f"{self.operation}: {self.label} exists; choose another path, or delete it if it is what a stopped "
                f"{self.operation} has left"
            )

    def transaction(self, base: str) -> "PlainTransaction":
        """
        Begin to write what becomes a store with its last edit.

        Raises
        ------
        UnsuitableError
            If something lies there.
        BusyError
            If another process begins to write there at the same time.
        """
        self.require_nothing()
        store = self.zarr_store.with_read_only(False)
        if not claim(store, LOCK):
            raise BusyError(f"{self.operation}: {self.label}: another process makes a store here; choose another path")
        return NewPlainTransaction(store)


@dataclass(frozen=True)
class PlainTransaction:
    """Each step becomes visible when it ends."""

    store: ZarrStore

    @contextmanager
    def step(self, preparations: Sequence[Edit], edits: Sequence[Edit]) -> Iterator[ZarrStore]:
        """Chunks are written at once, beyond the shapes that readers see; the edits come last, in their order."""
        for edit in preparations:
            edit.apply(self.store)
        yield self.store
        for edit in edits:
            edit.apply(self.store)

    def found(self) -> ZarrStore:
        """What the steps so far have left."""
        return self.store

    def collect(self, store: ZarrStore) -> None:
        """Nothing to take in: what a task has written lies in the store."""

    def commit(self, message: str, metadata: Mapping[str, Any]) -> None:
        """Every step is visible already; what groups above keep of the store's metadata follows."""
        parent_metadata.follow(self.store)

    @property
    def is_done(self) -> bool:
        """Not known: who counts the steps knows."""
        return False


@dataclass(frozen=True)
class NewPlainTransaction(PlainTransaction):
    """The same where no store is yet: the process that has claimed the place makes one there."""

    def commit(self, message: str, metadata: Mapping[str, Any]) -> None:
        """There is a store, which has a lock of its own."""
        super().commit(message, metadata)
        set_many(self.store, [(LOCK, None)])


_ANYWHERE = ("S3Store", "GCSStore", "AzureStore", "HTTPStore", "LocalStore")
"""The stores of obstore that lie outside this process."""


def is_same_everywhere(store: ZarrStore) -> bool:
    """Whether a store is surely the same one in another process of this machine, once it was pickled."""
    kind = type(store)
    if isinstance(store, ObjectStore):
        return type(store.store).__name__ in _ANYWHERE
    return kind is LocalStore or kind.__module__.partition(".")[0] in ("vczstore", "icechunk")


def put(store: ZarrStore, key: str, value: bytes | None) -> None:
    """Write one object; None deletes it."""
    buffer = None if value is None else default_buffer_prototype().buffer.from_bytes(value)
    set_many(store, [(key, buffer)])
