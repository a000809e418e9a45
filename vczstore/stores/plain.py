"""A VCZ on plain Zarr, format 2 or 3: no transactions, so the order of writes keeps readers safe."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from zarr.abc.store import Store as ZarrStore
from zarr.buffer import default_buffer_prototype
from zarr.storage import LocalStore, ObjectStore

from vczstore.errors import BusyError, ConflictError, UnsuitableError
from vczstore.stores import parent_metadata
from vczstore.stores.base import Check, HeldLock
from vczstore.stores.edits import Edit
from vczstore.stores.folder_swap import ReplacedStore
from vczstore.stores.leftovers import settle_before
from vczstore.stores.lock import unheld
from vczstore.stores.withdrawal_key import delete_unfinished_keys
from vczstore.stores.zarr_backed import ZarrBacked
from vczstore.vcz.zarr_objects import LOCK, claim, names, set_many


@dataclass(frozen=True)
class PlainStore(ZarrBacked):
    """A VCZ whose chunks and metadata are objects of their own."""

    def transaction(self, base: str) -> "PlainTransaction":
        """Begin to write to the store itself."""
        vcz = self.open()
        if vcz.state != base:
            raise ConflictError(f"{self.label} has changed since the plan was made; plan again")
        parent_metadata.require_writable(vcz)
        return PlainTransaction(self.zarr_store.with_read_only(False))

    def in_place(self) -> ReplacedStore:
        """The folder that it lies in, to be replaced as a whole."""
        return ReplacedStore.of(self.folder, self)

    def settle(self) -> None:
        """Delete what a replacement that was stopped, and what writes a key, has left beside the folder."""
        delete_unfinished_keys(self.folder)
        if self.folder is not None:
            settle_before(self.folder, no_lock=self.no_lock)


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

    def require_free(self) -> None:
        """Raise an `UnsuitableError` if anything lies there."""
        if names(self.zarr_store):
            raise UnsuitableError(
                f"{self.operation}: {self.label} exists; choose another path, or delete it if it is what a stopped "
                f"{self.operation} has left"
            )

    def writer_lock(self) -> AbstractContextManager[HeldLock]:
        """None: a lock lies in a store, and there is none yet."""
        return unheld()

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
        self.require_free()
        store = self.zarr_store.with_read_only(False)
        if not claim(store, LOCK):
            raise BusyError(f"{self.operation}: {self.label}: another process makes a store here; choose another path")
        return NewPlainTransaction(store)


@dataclass(frozen=True)
class PlainTransaction:
    """Each step becomes visible when it ends."""

    store: ZarrStore
    is_done = False
    """Not known: who counts the steps knows."""
    resumable = None
    shows_steps = True

    @contextmanager
    def step(
        self, preparations: Sequence[Edit], edits: Sequence[Edit], check: Check | None = None
    ) -> Iterator[ZarrStore]:
        """Chunks are written at once, beyond the shapes that readers see; the edits come last, in their order."""
        for edit in preparations:
            edit.apply(self.store)
        yield self.store
        if check is not None:
            check()
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
