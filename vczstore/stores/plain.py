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
from vczstore.stores.base import Check, Transaction, ZarrBacked
from vczstore.stores.edits import MetadataEdit
from vczstore.stores.folder_swap import ReplacedStore
from vczstore.stores.leftovers import settle_before
from vczstore.stores.lock import HeldLock, unheld
from vczstore.stores.withdrawal_key import delete_unfinished_keys
from vczstore.vcz.zarr_objects import LOCK, claim, names, set_many


@dataclass(frozen=True)
class PlainStore(ZarrBacked):
    """A VCZ on plain Zarr, in a folder or in object storage."""

    def transaction(self, base: str) -> "PlainTransaction":
        """Begin to write to the store directly; a `ConflictError` if its state is not `base`."""
        vcz = self.open()
        if vcz.state != base:
            raise ConflictError(f"{self.label} has changed since the plan was made; plan again")
        parent_metadata.require_writable(vcz)
        return PlainTransaction(self.zarr_store.with_read_only(False))

    def in_place(self) -> ReplacedStore:
        """Return a store that replaces the folder as a whole."""
        return ReplacedStore.of(self.folder, self)

    def settle(self) -> None:
        """Delete the leftovers of an interrupted replacement and unfinished withdrawal keys beside the folder."""
        delete_unfinished_keys(self.folder)
        if self.folder is not None:
            settle_before(self.folder, no_lock=self.no_lock)


@dataclass(frozen=True)
class NewPlainStore(PlainStore):
    """
    A location where a VCZ on plain Zarr will be created.

    Attributes
    ----------
    operation
        Name of the operation that creates it, for messages.
    """

    operation: str = field(kw_only=True)

    def require_free(self) -> None:
        """Raise an `UnsuitableError` unless the location is empty."""
        if names(self.zarr_store):
            raise UnsuitableError(
                f"{self.operation}: {self.label} exists; choose another path, or delete it if it was left by an "
                f"interrupted {self.operation}"
            )

    def writer_lock(self) -> AbstractContextManager[HeldLock]:
        """No lock: it would be inside the store, which does not exist yet."""
        return unheld()

    def transaction(self, base: str) -> "PlainTransaction":
        """
        Claim the location, and begin to write the store, which becomes a VCZ with the last edit.

        Raises
        ------
        UnsuitableError
            If the location is not empty.
        BusyError
            If another process is creating a store there.
        """
        self.require_free()
        store = self.zarr_store.with_read_only(False)
        if not claim(store, LOCK):
            raise BusyError(f"{self.operation}: {self.label}: a store is being created here; choose another path")
        return PlainTransaction(store, is_claimed=True)


@dataclass(frozen=True)
class PlainTransaction(Transaction):
    """
    A transaction in which each step becomes visible as it ends; it is never `is_done` as a whole.

    Attributes
    ----------
    store
        The Zarr store.
    is_claimed
        Whether this process has claimed the location to create the store. The store's own lock supersedes the claim.
    """

    store: ZarrStore
    is_claimed: bool = False
    shows_steps = True

    @contextmanager
    def step(
        self, preparations: Sequence[MetadataEdit], edits: Sequence[MetadataEdit], check: Check | None = None
    ) -> Iterator[ZarrStore]:
        """Apply preparations before and edits after the tasks, whose chunks are outside the shapes that readers see."""
        for edit in preparations:
            edit.apply(self.store)
        yield self.store
        if check is not None:
            check()
        for edit in edits:
            edit.apply(self.store)

    def view(self) -> ZarrStore:
        return self.store

    def commit(self, message: str, metadata: Mapping[str, Any]) -> None:
        """Update the copies of the metadata in groups above; the steps are visible already."""
        parent_metadata.follow(self.store)
        if self.is_claimed:
            set_many(self.store, [(LOCK, None)])


_OUTSIDE_PROCESS = ("S3Store", "GCSStore", "AzureStore", "HTTPStore", "LocalStore")
"""obstore's stores that are not in this process's memory."""


def is_same_everywhere(store: ZarrStore) -> bool:
    """Whether a store is certain to be the same one in another process of this machine after pickling."""
    kind = type(store)
    if isinstance(store, ObjectStore):
        return type(store.store).__name__ in _OUTSIDE_PROCESS
    return kind is LocalStore or kind.__module__.partition(".")[0] in ("vczstore", "icechunk")


def put(store: ZarrStore, key: str, value: bytes | None) -> None:
    """Write one object; None deletes it."""
    buffer = None if value is None else default_buffer_prototype().buffer.from_bytes(value)
    set_many(store, [(key, buffer)])
