"""Base classes of a store of a VCZ, its transactions and its history.

A method that a backend does not override does what suits plain Zarr, which has no snapshots, tags or branches.
`vczstore.stores.resolve` turns a user's location into a `Store`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self

from zarr.abc.store import Store as ZarrStore
from zarr.storage import MemoryStore
from zarr.types import AnyArray

from vczstore.errors import TagError, UnsuitableError
from vczstore.stores.edits import MetadataEdit
from vczstore.stores.folders import folder_behind
from vczstore.stores.leftovers import delete_half_written
from vczstore.stores.lock import HeldLock, hold, unheld
from vczstore.vcz.encoded_chunks import clear_outside
from vczstore.vcz.model import Vcz
from vczstore.vcz.zarr_objects import reading, stored_bytes

if TYPE_CHECKING:
    import numpy as np
    from icechunk import Repository, Session
    from zarr import Group

    from vczstore.stores.icechunk_branches import IcechunkBranches

type Location = str | Path | ZarrStore | "Group | Repository | Session"
"""The types by which a user may refer to a store."""

SESSION_IS_READ = (
    "an Icechunk session is only read, since each operation commits by itself; hand in the session's repository, or "
    "its path or URL"
)

UNCHANGED = "nothing was committed, the store is as it was"
"""State of an atomic store after a failed transaction."""

type Check = Callable[[], None]
"""Callback run right before writes become visible or objects are deleted; it may refuse by raising."""


class Snapshot(NamedTuple):
    """One entry of a store's history; `metadata` is the mapping passed to `Transaction.commit`."""

    id: str
    time: str
    message: str
    metadata: Mapping[str, Any]


RESTORED = "restored"
"""Metadata key of a restore commit: the ID of the snapshot that was restored."""

PAST = "past"
"""Metadata key of a commit of a purge, or of a gc with a `Keep`: the history before it, as returned by `past_of`."""

MAX_PAST = 10_000
"""Entries that `past_of` keeps, the newest ones. They are written twice, by both commits of a purge or gc."""


def past_of(snapshots: Iterable[Snapshot]) -> list[dict[str, Any]]:
    """
    Summarise a history, including the entries that earlier purges have deleted, newest first; at most `MAX_PAST`.

    Each entry has the keys ``snapshot`` (the ID) and ``time``, and the ``vczstore`` metadata of the commit. Metadata of
    other tools are left out, since they may contain anything.
    """
    entries, older, seen = list[dict[str, Any]](), list[dict[str, Any]](), set[str]()
    for snapshot in snapshots:
        metadata = dict(snapshot.metadata.get("vczstore", {}))
        for name in ("same", "holds"):
            metadata.pop(name, None)
        older = older or metadata.get(PAST, [])
        metadata.pop(PAST, None)
        seen.add(snapshot.id)
        entries.append({"snapshot": snapshot.id, "time": snapshot.time, **metadata})
    return [*entries, *(entry for entry in older if entry["snapshot"] not in seen)][:MAX_PAST]


class Keep(NamedTuple):
    """Retention policy of a gc: snapshots no older than `age`, and all tags or, if not `all_tags`, those on them."""

    age: timedelta
    all_tags: bool


class Saved(NamedTuple):
    """
    The serialised state from which another process can resume a transaction.

    Attributes
    ----------
    session
        The writable session, with everything merged so far.
    fork
        The fork that tasks in threads have written to since; empty if it has no writes.
    forked
        Base snapshot of the fork. No branch or tag references it, so a garbage collection deletes it.
    began
        Time of the repository's last change before the transaction; None if it keeps no log of changes.
    """

    session: bytes
    fork: bytes
    forked: str
    began: datetime | None


class Transaction:
    """Makes the writes of one or more plans visible: in one commit, or on plain Zarr plan by plan, in a safe order."""

    def step(
        self, preparations: Sequence[MetadataEdit], edits: Sequence[MetadataEdit], check: Check | None = None
    ) -> AbstractContextManager[ZarrStore]:
        """
        Context in which the tasks of one plan run; they see the writes of the plans before it.

        Parameters
        ----------
        preparations
            Edits that no reader notices, applied before the tasks run.
        edits
            Edits that publish the plan. On plain Zarr they are applied on exit, in this order.
        check
            Called before the edits, if readers see their effect before the commit.

        Returns
        -------
        context manager of zarr.abc.store.Store
            The store that tasks read and write. It can be pickled; pass the store that a task sends back to `collect`.
        """
        raise NotImplementedError

    def view(self) -> ZarrStore:
        """The Zarr store with the writes of all finished steps, to be read while the next step writes."""
        raise NotImplementedError

    def collect(self, store: ZarrStore) -> None:
        """Merge the writes that a task has made through the store it was sent. Call once per successful task."""

    def commit(self, message: str, metadata: Mapping[str, Any]) -> str | None:
        """
        Make all writes visible.

        Parameters
        ----------
        message, metadata
            Recorded in the history, if one is kept. Removals do not erase them: they must not contain sample IDs.

        Returns
        -------
        str or None
            ID of the new snapshot; None where there are no snapshots.

        Raises
        ------
        ConflictError
            If another writer has committed since the transaction began. Nothing is rebased: that could restore a
            removed sample, or write two batches to the same columns.
        """
        raise NotImplementedError

    @property
    def is_done(self) -> bool | None:
        """Whether the commit took effect, even if `commit` was interrupted or raised; None if unknown."""
        return False

    @property
    def shows_steps(self) -> bool:
        """Whether readers see the writes of each step as it ends, before the commit."""
        return False

    @property
    def is_resumable(self) -> bool:
        """Whether another process can resume it, by `save` and `restore`."""
        return False

    def save(self) -> Saved:
        """Serialise the writes so far."""
        raise NotImplementedError

    def restore(self, saved: Saved) -> None:
        """
        Resume from the state that another process has saved, discarding the writes of this process.

        Raises
        ------
        ValueError
            If the state cannot be resumed: the store has changed, or chunks may have been deleted.
        """
        raise NotImplementedError


_KEPT = {"tag": "tags", "branch": "branches", "publish": "branches"}
"""What plain Zarr lacks, by the operation that requires it, for messages."""


@dataclass(frozen=True)
class History:
    """
    The snapshots of a store, and the tags and branches that name them. Plain Zarr has none of these.

    Attributes
    ----------
    label
        Name of the store in messages.
    folder
        Local folder of the store; None if it is not on this machine.
    """

    label: str
    folder: Path | None

    @property
    def is_kept(self) -> bool:
        """Whether the store keeps snapshots at all."""
        return False

    def require(self, operation: str) -> None:
        """Raise a `TagError` if no history is kept; for a session, an `UnsuitableError`."""
        self._refuse(operation)

    def _refuse(self, operation: str) -> NoReturn:
        raise TagError(
            f"{operation}: {self.label} is plain Zarr, which has no {_KEPT.get(operation, 'history')}; "
            f"vczstore copy-store-to-icechunk {self.label} NEW_STORE makes a store that does"
        )

    def tags(self) -> dict[str, str]:
        """The snapshot ID of each tag, by tag name."""
        return {}

    def create_tag(self, name: str, snapshot: str | None = None) -> str:
        """
        Tag a snapshot, the head by default, and return the snapshot's ID.

        Raises
        ------
        TagError
            If a tag of this name exists or once existed, or no history is kept.
        """
        self._refuse("tag")

    def delete_tag(self, name: str) -> None:
        """
        Delete a tag, but not its snapshot.

        Raises
        ------
        TagError
            If there is no such tag, or no history is kept.
        """
        self._refuse("tag")

    def snapshots(self, start: str | None = None) -> Iterator[Snapshot]:
        """All snapshots, newest first; with `start`, that snapshot and its ancestors."""
        return iter(())

    def content(self, snapshot: str) -> str:
        """ID of the snapshot that wrote the data of `snapshot`: for a commit of a purge or gc, an earlier one."""
        return snapshot

    def branches(self) -> "IcechunkBranches":
        """The branches of the repository; where no history is kept, raise as `require` does."""
        self._refuse("branch")

    def changed_chunks(self, since: str, until: str) -> "Mapping[str, np.ndarray | None] | None":
        """
        Chunks that may differ between two snapshots; no chunk is read.

        Parameters
        ----------
        since, until
            IDs of the snapshots, the older one first.

        Returns
        -------
        mapping or None
            Per array path, the grid coordinates of its chunks that may differ, an int64 array of shape (chunks, axes);
            None for an array that was replaced or is in one snapshot only. Unchanged arrays are left out. None instead
            of a mapping if unknown: `since` is not an ancestor of `until`, or there are no snapshots.
        """
        return None

    def reachable(self) -> list[str]:
        """IDs of the tips of all branches and tags, and of their ancestors."""
        return []

    def unreachable(self, snapshots: Sequence[str], names: Mapping[str, set[str]]) -> dict[str, int]:
        """
        Count unreferenced objects by kind: ``snapshot``, ``manifest`` and ``chunk``; empty on plain Zarr.

        Parameters
        ----------
        snapshots
            The IDs returned by `reachable`.
        names
            Object names in the folders ``snapshots`` and ``manifests``, by folder. The chunks are counted by Icechunk,
            which regards those referenced by any manifest as used.
        """
        return {}

    def refuse_pins(self, *, changing: bool = False, keep: Collection[str] = (), published: str | None = None) -> None:
        """
        Refuse tags, and branches other than main, that keep older states than the head.

        Parameters
        ----------
        changing
            Refuse those on the head as well, since it is about to be superseded.
        keep
            Tags that are allowed to remain.
        published
            A branch that is allowed to remain, since it is about to be published.

        Raises
        ------
        TagError
            If there are any.
        StaleError
            If the repository has a staged commit of a set.
        """

    def purge(
        self, *, tags: str, keep: Collection[str], base: str | None, before: Check
    ) -> tuple[str | None, dict[str, int], list[str]]:
        """
        Delete all history, so that data removed from the store cannot be read from older snapshots.

        Parameters
        ----------
        tags
            One of `vczstore.choices.TAGS`. Only ``"delete"`` deletes tags and branches that keep older states.
        keep
            Tags that remain in any case, such as recreated ones, with their states but without the ancestors of these.
        base
            Head at the time that `keep` was computed: if it has moved, the kept states may hold samples removed since.
            None skips this check.
        before
            Called before the first commit; may refuse by raising.

        Returns
        -------
        snapshot : str or None
            ID of the new snapshot, whose data are unchanged; None where there are no snapshots.
        counts : dict
            Numbers of deleted objects by kind, and their ``bytes``.
        names : list of str
            Names of the deleted tags and branches.

        Raises
        ------
        TagError
            If tags or branches keep older states and may not be deleted. Nothing is deleted then.
        StaleError
            If another writer has changed the store in the meantime, or the repository has a staged commit of a set.
        StorageError
            If an object could not be deleted.
        """
        return None, delete_half_written(self.folder), []

    def preview_purge(self, *, tags: str, changing: bool = False) -> tuple[dict[str, int], list[str]]:
        """
        Return what a purge would delete.

        Parameters
        ----------
        tags
            As in `purge`; with ``"recreate"``, tags are not deleted.
        changing
            As in `refuse_pins`.

        Returns
        -------
        counts : dict
            Numbers of snapshots (an upper bound), tags and branches; ``bytes`` of objects unreferenced already. On
            plain Zarr, the number of half-written files.
        names : list of str
            Names of the tags and branches.

        Raises
        ------
        TagError, StaleError
            As in `refuse_pins`.
        """
        return delete_half_written(self.folder, dry_run=True), []

    def rewriting(self, tag: str) -> "AbstractContextManager[Store]":
        """Temporary branch on which the state of a tag is rewritten; it is deleted on exit."""
        self._refuse("tag")

    def rename_tag(self, name: str, snapshot: str) -> str:
        """Replace a tag with one that names the rewritten `snapshot`; return the new name."""
        self._refuse("tag")

    def complete_renames(self) -> dict[str, str]:
        """Delete tags already replaced by an interrupted `rename_tag`; return the new names by the old ones."""
        return {}

    def refuse_tag(self, name: str) -> None:
        """Raise a `TagError` if a tag of this name cannot be created: it exists, or once existed."""
        self._refuse("tag")

    def stage(self, base: str, of: str) -> "Store":
        """Create a staging branch at `base` for the set `of`; its commit is invisible to readers until published."""
        self._refuse("stage")

    def publish(self, snapshot: str, base: str, branch: str) -> None:
        """
        Move a branch from `base` to a staged snapshot; no-op if the branch has the snapshot already.

        Raises
        ------
        ConflictError
            If the branch is not at `base`.
        """
        self._refuse("publish")

    def shows(self, snapshot: str, branch: str) -> bool:
        """Whether a branch is at a snapshot, or at a descendant of it."""
        return False

    def staged(self) -> list[str]:
        """Names of the sets that have staged commits in this repository."""
        return []

    def unstage(self, of: str) -> None:
        """Delete the staging branches of a set. Requires the lock."""


@dataclass(frozen=True, kw_only=True)
class Store:
    """
    A location that holds one VCZ.

    Attributes
    ----------
    zarr_store
        Zarr store that tasks read and write; None where each transaction has a Zarr store of its own.
    label
        Name of the store in messages.
    backend
        One of `vczstore.choices.BACKENDS`.
    options
        Storage options with which it is opened.
    no_lock
        Whether to write without taking the lock.
    """

    zarr_store: ZarrStore | None = None
    label: str
    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)
    no_lock: bool = False

    @property
    def place(self) -> str:
        """Path or URL of the store; for a group, that of its repository."""
        return self.label

    @property
    def folder(self) -> Path | None:
        """Local folder of the store, symlinks resolved; None if it is not on this machine."""
        raise NotImplementedError

    @property
    def group(self) -> str:
        """Path of the group that holds the VCZ in the repository; empty for the root group, and on plain Zarr."""
        return ""

    @property
    def atomic(self) -> bool:
        """Whether commits are atomic. If not, the order of writes hides new samples until they are complete."""
        return False

    @property
    def pickles(self) -> bool:
        """Whether other processes can open the store, so that it may be pickled: not if it is in memory."""
        raise NotImplementedError

    @property
    def branch(self) -> str | None:
        """Name of the branch that is read and written; None on plain Zarr."""
        return None

    @property
    def head(self) -> str | None:
        """ID of the last snapshot of the branch; None where there are no snapshots."""
        return None

    @property
    def history(self) -> History:
        """The snapshots, tags and branches of the store."""
        return History(self.label, self.folder)

    @property
    def begins_empty(self) -> bool:
        """Whether a transaction starts from an empty store, so that unchanged data have to be linked into it."""
        return False

    def open(self, at: str | None = None) -> Vcz:
        """
        Read the metadata of the VCZ: its current state, or that of a tag, branch or snapshot.

        Raises
        ------
        NotAStoreError
            If there is no VCZ.
        TagError
            If the repository has no state `at`. Stores without history raise an `UnsuitableError` or `OptionError`.
        """
        raise NotImplementedError

    def sharing_history(self) -> Sequence[Self]:
        """All stores with the same history, this one included: those of the groups of a repository."""
        return [self]

    def stored_bytes(self) -> int | None:
        """Bytes in storage, older snapshots included; None if that is expensive to determine."""
        raise NotImplementedError

    def transaction(self, base: str) -> Transaction:
        """
        Begin to write. Until `Transaction.commit`, readers see the old state, or that of the last finished step.

        Parameters
        ----------
        base
            The `Vcz.state` that the writes were planned against.

        Raises
        ------
        ConflictError
            If the state of the store has changed.
        """
        raise NotImplementedError

    def first_step(self, transaction: Transaction, check: Check | None = None) -> AbstractContextManager[Transaction]:
        """
        Context for writing a plan of `Plan.first_steps`, which precedes another plan of the same operation.

        It yields the operation's `transaction`; for a folder that is replaced, a separate transaction that is committed
        on exit, after a call of `check`.
        """
        return nullcontext(transaction)

    def in_place(self) -> "Store":
        """
        Return a store in which existing chunks can be rewritten without readers seeing a mixture of old and new.

        This is the store itself if commits are atomic; on plain Zarr, a store that replaces the folder as a whole.

        Raises
        ------
        UnsuitableError
            If it is on plain Zarr, but not in a local folder that can be replaced.
        StorageError
            If the folder is not writable.
        """
        return self

    def renumbering(self, array: AnyArray, axis: int, columns: Sequence[tuple[int, int]]) -> MetadataEdit:
        """
        Return an edit that renumbers chunk columns of an array without reading any chunk.

        Only for stores with atomic commits that do not begin empty.

        Parameters
        ----------
        array, axis
            The array before the edit, and the axis to renumber.
        columns
            Pairs of old and new column numbers. Columns at the new numbers are replaced; all others stay.
        """
        raise UnsuitableError(f"{self.label} is plain Zarr, whose chunks keep their numbers")

    def exclusive_lock(self, *, wait: bool = False, watch: bool = False) -> AbstractContextManager[HeldLock]:
        """
        Hold the exclusive lock of the store, for jobs, long operations and those that delete.

        Nothing is locked if `no_lock` is set, nor for a remote repository that was passed as an open object: its
        commits exclude each other.

        Parameters
        ----------
        wait
            Wait until the lock is free; SIGINT ends the wait.
        watch
            If not waiting, watch a held lease until its holder renews it (up to a third of the TTL) before raising. A
            lease that is not renewed for its TTL is taken over. File locks ignore this.

        Raises
        ------
        BusyError
            If the lock is held and `wait` is false.
        StorageError
            If the lock cannot be written, or the server ignores the conditions of conditional writes.
        NotAStoreError
            If the store does not exist.
        OptionError
            If the storage options do not fit the location.
        MissingDependencyError
            If obstore is not installed, for a store in object storage.
        """
        return hold(self, wait=wait, watch=watch)

    def writer_lock(self) -> AbstractContextManager[HeldLock]:
        """
        Hold the lock that an operation needs from planning until after its commit, retries included.

        On plain Zarr, this is the lock of the store, since two writers would mix their chunks; a lease is watched, so
        that an operation that was killed or cut off can be run again. For a folder that is replaced, it includes the
        lock of the leftovers. A repository, or a store that does not exist yet, needs none; see `retry_lock`.

        Raises as `exclusive_lock` does.
        """
        return self.exclusive_lock(watch=True)

    def retry_lock(self) -> AbstractContextManager[HeldLock]:
        """
        Hold the lock needed by an operation that is retried after a concurrent commit, in addition to `writer_lock`.

        For a repository, wait for its lock, so that concurrent writers cannot starve one another. In an object store
        this requires obstore; without it, nothing is held.
        """
        return unheld()

    def settle(self) -> None:
        """
        Delete the leftovers of an interrupted folder replacement. Requires the lock.

        A leftover old copy of the store would still contain the data that are about to be removed.
        """

    def collect_garbage(
        self, *, before: Check, dry_run: bool, keep: Keep | None = None
    ) -> tuple[str | None, dict[str, int]]:
        """
        Delete unreferenced objects, such as the leftovers of a killed writer.

        Parameters
        ----------
        before
            Called before the first commit; may refuse by raising.
        dry_run
            Count the objects without deleting them.
        keep
            Retention policy for the history; None keeps all snapshots.

        Returns
        -------
        snapshot : str or None
            ID of the new snapshot, whose data are unchanged; None after a dry run, if nothing was deleted, and where no
            history is kept.
        counts : dict
            Numbers of deleted objects by kind, and their ``bytes``.

        Raises
        ------
        StaleError
            If another writer has changed the store in the meantime.
        StorageError
            If an object could not be deleted.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ZarrBacked(Store):
    """A VCZ accessed through one Zarr store: plain Zarr, or a session of Icechunk."""

    zarr_store: ZarrStore = field(kw_only=False)

    @property
    def folder(self) -> Path | None:
        return folder_behind(self.zarr_store)

    @property
    def pickles(self) -> bool:
        return not isinstance(self.zarr_store, MemoryStore)

    def open(self, at: str | None = None) -> Vcz:
        """Read the metadata; raise an `UnsuitableError` for `at`, since plain Zarr has one state."""
        if at is not None:
            raise UnsuitableError(
                f"info: {self.label} is plain Zarr, which has no tag or snapshot {at!r}; "
                f"vczstore copy-store-to-icechunk {self.label} NEW_STORE makes a store that keeps them"
            )
        return Vcz.read(reading(self.zarr_store), self.label)

    def stored_bytes(self) -> int | None:
        return stored_bytes(self.zarr_store)

    def collect_garbage(
        self, *, before: Check, dry_run: bool, keep: Keep | None = None
    ) -> tuple[str | None, dict[str, int]]:
        """Delete, or count, the chunks outside the arrays' shapes, left by interrupted appends."""
        vcz, store = self.open(), self.zarr_store.with_read_only(False)
        vcz.require_whole("gc", edited=False)
        freed = [clear_outside(array, store, dry_run=dry_run) for array in (*vcz.arrays.values(), *vcz.inner.values())]
        counts = {"chunks deleted": sum(n for n, _ in freed), "bytes": sum(size for _, size in freed)}
        return None, counts | delete_half_written(self.folder, dry_run=dry_run)
