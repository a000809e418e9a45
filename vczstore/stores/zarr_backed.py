"""Base class of stores accessed through one Zarr store: plain Zarr, and Icechunk sessions."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, Self

from zarr.abc.store import Store as ZarrStore
from zarr.storage import MemoryStore
from zarr.types import AnyArray

from vczstore.errors import TagError, UnsuitableError
from vczstore.stores.base import Branches, Check, HeldLock, History, Keep, Snapshot, Store, Transaction
from vczstore.stores.edits import Edit
from vczstore.stores.folders import folder_behind
from vczstore.stores.leftovers import delete_half_written
from vczstore.stores.lock import hold, unheld
from vczstore.vcz.encoded_chunks import clear_outside
from vczstore.vcz.model import Vcz
from vczstore.vcz.zarr_objects import reading, stored_bytes

_KEPT = {"tag": "tags", "branch": "branches", "publish": "branches"}
"""What plain Zarr lacks, by the operation that requires it, for messages."""


@dataclass(frozen=True)
class NoHistory:
    """
    The empty history of a store on plain Zarr. Methods that cannot do without a history raise as `require` does.

    Attributes
    ----------
    label
        Name of the store in messages.
    folder
        Local folder of the store; None if it is not on this machine.
    """

    label: str
    folder: Path | None = None
    is_kept = False

    def require(self, operation: str) -> NoReturn:
        """Raise a `TagError` with advice on how to get a store with history."""
        raise TagError(
            f"{operation}: {self.label} is plain Zarr, which has no {_KEPT.get(operation, 'history')}; "
            f"vczstore copy-store-to-icechunk {self.label} NEW_STORE makes a store that does"
        )

    def tags(self) -> dict[str, str]:
        return {}

    def create_tag(self, name: str, snapshot: str | None = None) -> str:
        self.require("tag")

    def delete_tag(self, name: str) -> None:
        self.require("tag")

    def snapshots(self, start: str | None = None) -> Iterator[Snapshot]:
        return iter(())

    def content(self, snapshot: str) -> str:
        """The ID itself."""
        return snapshot

    def branches(self) -> Branches:
        self.require("branch")

    def changed_chunks(self, since: str, until: str) -> None:
        """Always None: unknown."""

    def reachable(self) -> list[str]:
        return []

    def unreachable(self, snapshots: Sequence[str], names: Mapping[str, set[str]]) -> dict[str, int]:
        """Empty; chunks outside the arrays' shapes are not counted."""
        return {}

    def refuse_pins(self, *, changing: bool = False, keep: Collection[str] = (), published: str | None = None) -> None:
        """No-op: there are no tags or branches."""

    def purge(
        self, *, tags: str, keep: Collection[str], base: str | None, before: Check
    ) -> tuple[str | None, dict[str, int], list[str]]:
        """Delete half-written files, and return their count; removed data are already overwritten."""
        return None, delete_half_written(self.folder), []

    def preview_purge(self, *, tags: str, changing: bool = False) -> tuple[dict[str, int], list[str]]:
        """Count half-written files."""
        return delete_half_written(self.folder, dry_run=True), []

    def rewriting(self, tag: str) -> AbstractContextManager[Store]:
        self.require("tag")

    def rename_tag(self, name: str, snapshot: str) -> str:
        self.require("tag")

    def complete_renames(self) -> dict[str, str]:
        return {}

    def refuse_tag(self, name: str) -> None:
        self.require("tag")

    def stage(self, base: str, of: str) -> NoReturn:
        self.require("stage")

    def publish(self, snapshot: str, base: str, branch: str) -> None:
        self.require("publish")

    def shows(self, snapshot: str, branch: str) -> bool:
        """Always False: there are no snapshots."""
        return False

    def staged(self) -> list[str]:
        return []

    def unstage(self, of: str) -> None:
        """No-op."""


@dataclass(frozen=True)
class ZarrBacked:
    """
    A VCZ accessed through one Zarr store: a `Store` like plain Zarr, unless a subclass overrides it.

    Methods without a docstring are described in `Store`.
    """

    zarr_store: ZarrStore
    label: str
    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)
    no_lock: bool = False
    group = ""
    atomic = False
    begins_empty = False

    @property
    def place(self) -> str:
        return self.label

    def sharing_history(self) -> list[Self]:
        """A list of this store only."""
        return [self]

    @property
    def folder(self) -> Path | None:
        return folder_behind(self.zarr_store)

    @property
    def pickles(self) -> bool:
        """Whether other processes can open the store: not if it is in memory."""
        return not isinstance(self.zarr_store, MemoryStore)

    @property
    def head(self) -> str | None:
        """Always None: plain Zarr has no snapshots."""
        return None

    @property
    def history(self) -> History:
        return NoHistory(self.label, self.folder)

    @property
    def branch(self) -> None:
        """Always None: there are no branches."""

    @property
    def why_consistent(self) -> str | None:
        """Always None: an interrupted operation may leave something to repair."""
        return None

    def open(self, at: str | None = None) -> Vcz:
        """Read the metadata; raise an `UnsuitableError` for `at`, since plain Zarr has one state."""
        if at is not None:
            raise UnsuitableError(
                f"info: {self.label} is plain Zarr, which has no tag or snapshot {at!r}; "
                f"vczstore copy-store-to-icechunk {self.label} NEW_STORE makes a store that keeps them"
            )
        return Vcz.read(reading(self.zarr_store), self.label)

    def stored_bytes(self) -> int | None:
        """Bytes of all objects; None if that requires listing a remote location."""
        return stored_bytes(self.zarr_store)

    def first_step(self, transaction: Transaction, check: Check | None = None) -> AbstractContextManager[Transaction]:
        """Return a context of the same transaction."""
        return nullcontext(transaction)

    def renumbering(self, array: AnyArray, axis: int, columns: Sequence[tuple[int, int]]) -> NoReturn:
        """Raise an `UnsuitableError`: chunks on plain Zarr are stored under their numbers."""
        raise UnsuitableError(f"{self.label} is plain Zarr, whose chunks keep their numbers")

    def unlocked(self) -> Self:
        return replace(self, no_lock=True)

    def exclusive_lock(self, *, wait: bool = False, watch: bool = False) -> AbstractContextManager[HeldLock]:
        """Hold the lock of the store; a store in memory, or of unknown location, has one within this process."""
        return hold(self, wait=wait, watch=watch)

    def writer_lock(self) -> AbstractContextManager[HeldLock]:
        """Hold the lock of the store, since two writers would mix their chunks."""
        return self.exclusive_lock(watch=True)

    def retry_lock(self) -> AbstractContextManager[HeldLock]:
        """No additional lock: `writer_lock` is held already."""
        return unheld()

    def settle(self) -> None:
        """No-op: only stores in local folders have leftovers beside them; see `PlainStore`."""

    def collect_garbage(
        self, *, before: Check, dry_run: bool, keep: Keep | None = None
    ) -> tuple[str | None, dict[str, int]]:
        """Delete, or count, the chunks outside the arrays' shapes, left by interrupted appends."""
        vcz, store = self.open(), self.zarr_store.with_read_only(False)
        vcz.require_whole("gc", edited=False)
        freed = [clear_outside(array, store, dry_run=dry_run) for array in (*vcz.arrays.values(), *vcz.inner.values())]
        counts = {"chunks deleted": sum(n for n, _ in freed), "bytes": sum(size for _, size in freed)}
        return None, counts | delete_half_written(self.folder, dry_run=dry_run)

    def recovery_edits(self, *edits: Edit) -> tuple[Edit, ...]:
        """Return all edits: an interrupted operation may leave its preparations alone."""
        return edits

    def after_failure(self, if_stopped: str, visible: int) -> str:
        """State how many earlier plans are done, followed by `if_stopped`."""
        before = (
            f"the {visible} steps before it are done; " if visible > 1 else "the step before it is done; " * visible
        )
        return f"{before}{if_stopped}"
