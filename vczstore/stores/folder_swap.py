"""
A VCZ in a local folder that is replaced as a whole, for changes that no order of writes makes safe.

The new store is built in a sibling folder unknown to readers. Then the two folders exchange names, atomically for
all readers, and the old one is deleted::

    STORE                               the store that readers see
    .STORE.vczstore-compact.json        the record: which folder is which, by inode
    .STORE.vczstore-compact.1f2e3d4c    the new store while it is built; after the exchange, the old one

Whenever a process is killed, the inode of STORE shows whether the exchange has taken place. In either case, the sibling
folder is no longer needed, and `settle` deletes it. Where a file system cannot exchange two names (such as NFS), the
old folder is renamed, then the new one: for a moment there is no STORE, and if the process is killed just then,
`settle` renames the new one.

Unchanged chunks are hard links in the new store, which take no space and hardly any time. This is safe since zarr and
obstore never modify a file in place: they write a new one and rename it. fsspec does; see below for its writes.

A reader that has the store open looks up each chunk by name. If it reads on after the exchange, it gets chunks of the
new store with shapes and sample IDs of the old one; it can detect this by the folder's new inode.

The lock of the store, which is linked into both folders, excludes other operations before and after the exchange; a
second lock, beside the store, excludes processes that would settle the leftovers. Writes by programs that ignore locks
are detected by the modification times of files and folders right before the exchange, which is then refused. Writes
during that scan (microseconds per file) are lost, and those after the exchange go to the new store.
"""

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from zarr.abc.store import Store as ZarrStore
from zarr.storage import LocalStore

from vczstore.errors import ConflictError, StorageError, UnsuitableError
from vczstore.stores import parent_metadata
from vczstore.stores.base import Check, Store, Transaction, ZarrBacked
from vczstore.stores.edits import MetadataEdit
from vczstore.stores.filesystem import exchange, sync_filesystem, sync_names
from vczstore.stores.leftovers import (
    HALF_WRITTEN_NAME,
    SUFFIX,
    aside,
    leftovers,
    settle,
    settle_after_error,
    settling,
    write_record,
)
from vczstore.stores.lock import HeldLock, carry, hold
from vczstore.stores.object_store import plain_errors, reason
from vczstore.vcz.zarr_objects import COMMIT_LOCK, LOCK, RegularLocalStore, link_file

OPERATION = "compact"

TICK = 3.0
"""Upper bound in seconds of the resolution of a file system's timestamps; that of FAT is two."""

_CHUNK = re.compile(r"c|(c\.)?\d+(\.\d+)*")
"""Names of chunks, and of folders of chunks, within an array's folder."""


@dataclass(frozen=True)
class ReplacedStore(ZarrBacked):
    """A VCZ in a local folder. What is written to it becomes visible as a whole, or never."""

    atomic = True
    begins_empty = True

    @classmethod
    def of(cls, path: Path | None, store: Store) -> "ReplacedStore":
        """
        Return the store as one that is replaced on commit. `path` is its folder; None if it is not in a local one.

        Raises
        ------
        UnsuitableError
            If it is not in a local folder, or the folder cannot be replaced as a whole.
        StorageError
            If the folder is not writable.
        """
        if path is None:
            raise UnsuitableError(
                f"{OPERATION}: {store.label} is plain Zarr, which has no transactions, and no folder on this machine: "
                "readers would confuse samples while these are moved; name a new store with --output"
            )
        replaced = cls.unsettled(path, store.label, store.backend, no_lock=store.no_lock)
        replaced._require_replaceable()
        return replaced

    @classmethod
    def unsettled(cls, path: Path, label: str, backend: str, *, no_lock: bool) -> "ReplacedStore":
        """Return a store with leftovers of an interrupted replacement; it may be absent until these are settled."""
        return cls(LocalStore(path, read_only=True), label=label, backend=backend, no_lock=no_lock)

    def _require_replaceable(self) -> None:
        path = self.path
        members = sorted(path.iterdir())
        link = next((member.name for member in members if member.is_symlink()), None)
        why = None
        if _is_mounted(path):
            why = _MOUNTED
        elif link is not None:
            why = f"is not all in one place: {link} is a symbolic link"
        if why is not None:
            raise UnsuitableError(f"{OPERATION}: {self.label} {why}; or name a new store with --output")
        for folder in (path.parent, path, *(member for member in members if member.is_dir())):
            if not os.access(folder, os.W_OK | os.X_OK):
                raise StorageError(
                    f"{OPERATION}: {self.label}: {folder} may not be written to; name a new store with --output"
                )

    @property
    def path(self) -> Path:
        """The folder, symlinks resolved."""
        return cast("LocalStore", self.zarr_store).root

    @contextmanager
    def writer_lock(self) -> Iterator[HeldLock]:
        """
        Hold the lock of the store while it is replaced, and settle any leftovers at the end.

        Leftovers of an interrupted run are settled first, since the store may be absent until then.

        Raises
        ------
        BusyError
            If another process holds the lock of the store or of its leftovers.
        NotAStoreError
            If the store does not exist.
        UnsuitableError
            If the folder cannot be replaced as a whole.
        StorageError
            If it is not writable, or if the store was replaced, but the old one cannot be deleted.
        """
        with settling(self.path, no_lock=self.no_lock):
            with plain_errors(self.label):
                settle(self.path)
            with hold(self) as lock, _leaving_nothing(self.label, self.path):
                with plain_errors(self.label):
                    self._require_replaceable()
                yield lock

    @contextmanager
    def first_step(self, transaction: Transaction, check: Check | None = None) -> Iterator["Replacement"]:
        """
        Open a transaction for this step alone, commit it on exit, and settle its leftovers.

        Requires the lock of the store. Holders of the leftovers lock do not wait for that lock, so that waiting for the
        leftovers lock here is short and cannot deadlock.
        """
        with settling(self.path, no_lock=self.no_lock, wait=True):
            settle(self.path)
            try:
                own = self.transaction(self.open().state)
                yield own
                if check is not None:
                    check()
                own.commit("", {})
            except BaseException:
                settle_after_error(self.path)
                raise
            settle(self.path)

    def transaction(self, base: str) -> "Replacement":
        """Begin to build the new store; its folder is created with the first edits."""
        return Replacement(self, base)


@contextmanager
def _leaving_nothing(label: str, path: Path) -> Iterator[None]:
    """Settle the replacement of the store at `path` on exit, also after errors."""
    try:
        yield
    except KeyboardInterrupt as error:
        outcome = settle_after_error(path)
        if outcome == "completed":
            raise KeyboardInterrupt(f"{OPERATION}: interrupted after {label} was compacted") from error
        raise
    except BaseException:
        settle_after_error(path)
        raise
    try:
        settle(path)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"{OPERATION}: interrupted; {label} is compacted, and its previous version is not deleted yet: "
            "run the same command again"
        ) from error
    except OSError as error:
        raise StorageError(
            f"{OPERATION}: {label} is compacted, but its previous version cannot be deleted ({reason(error)}): "
            f"{leftovers(path)[0]}; run the same command again once it can"
        ) from error


_MOUNTED = "is a mount point, and cannot be exchanged for another folder; do this where it is mounted from"


def _is_mounted(path: Path) -> bool:
    """Whether a path is a mount point, including bind mounts of the same file system."""
    if path.stat().st_dev != path.parent.stat().st_dev:
        return True
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return False
    return os.fsencode(path) in {_unescaped(line.split()[4]) for line in mounts}


def _unescaped(field: bytes) -> bytes:
    """Decode a path of ``/proc/self/mountinfo``, in which whitespace is written as octal escapes."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


@dataclass
class Replacement(Transaction):
    """
    A transaction that builds a new store, and replaces the old one with it in the commit.

    Attributes
    ----------
    store, base
        The old store, and its `Vcz.state` that the plan was made against.
    new
        Folder of the new store; None until the first step with edits creates it.
    begun
        Time of its creation, in nanoseconds of the file system's clock. If anything in the old store was modified after
        that, it was by another writer.
    inode
        Inode of the new folder, which it keeps when it is renamed.
    """

    store: ReplacedStore
    base: str
    new: Path | None = None
    begun: int = 0
    inode: int = 0

    @property
    def is_done(self) -> bool:
        """Whether the new store has replaced the old one."""
        return self.new is not None and self.store.path.exists() and self.store.path.stat().st_ino == self.inode

    @contextmanager
    def step(
        self, preparations: Sequence[MetadataEdit], edits: Sequence[MetadataEdit], check: Check | None = None
    ) -> Iterator[ZarrStore]:
        """Create the new store for edits and tasks; a step without edits only reads the old store."""
        if not (preparations or edits):
            yield self.store.zarr_store
            return
        if self.new is None:
            self.new = self._begin()
        target = RegularLocalStore(self.new)
        for edit in preparations:
            edit.apply(target)
        yield target
        for edit in edits:
            edit.apply(target)

    def view(self) -> ZarrStore:
        """The old store."""
        return self.store.zarr_store

    def commit(self, message: str, metadata: Mapping[str, Any]) -> None:
        """
        Replace the old store with the new one; the old one is left for `settle` to delete.

        Raises
        ------
        ConflictError
            If another writer has changed the old store in the meantime; it remains in place.
        """
        if self.new is None:
            return
        path = self.store.path
        sync_filesystem(self.new)
        if _has_changed(path, self.begun):
            raise self._conflict()
        carry(path, self.new)
        if not self._exchange(path, self.new):
            old = aside(self.new)
            path.rename(old)
            try:
                self.new.rename(path)
            except OSError:
                old.rename(path)
                raise
        sync_names(path.parent)
        parent_metadata.follow(LocalStore(path))

    def _exchange(self, path: Path, new: Path) -> bool:
        try:
            return exchange(path, new)
        except OSError as error:
            if error.errno == errno.EBUSY:  # a mount point that _is_mounted has missed
                raise StorageError(f"{self.store.label} {_MOUNTED}") from error
            raise

    def _begin(self) -> Path:
        path = self.store.path
        settle(path)
        # a unique name, so that a worker that outlives its driver cannot write to the folder of another attempt
        new = path.with_name(f".{path.name}{SUFFIX}.{secrets.token_hex(4)}")
        new.mkdir()
        _copy_rights(path, new)
        self.begun, self.inode = _now(new), new.stat().st_ino
        write_record(path, {"folder": new.name, "store": path.stat().st_ino, "new": self.inode})
        if self.store.open().state != self.base:
            raise self._conflict()
        return new

    def _conflict(self) -> ConflictError:
        return ConflictError(f"{self.store.label} has changed since the plan was made; plan again")


@dataclass(frozen=True)
class LinkAllBut:
    """
    Hard-link all files of the old store into the new one, except lock files and the chunks of some arrays.

    Attributes
    ----------
    source
        Folder of the old store.
    arrays
        Names of the arrays whose chunks are written by tasks.
    """

    source: Path
    arrays: frozenset[str]

    @classmethod
    def of(cls, store: Store, arrays: frozenset[str]) -> "LinkAllBut":
        """Return the edit for a store that is replaced."""
        assert store.folder is not None
        return cls(store.folder, arrays)

    def apply(self, store: ZarrStore) -> None:
        """Create the folders and the hard links in them."""
        target = cast("LocalStore", store).root
        with os.scandir(self.source) as entries:
            for entry in entries:
                _link(entry, target / entry.name, _CHUNK if entry.name in self.arrays else None)


def _link(entry: "os.DirEntry[str]", target: Path, skip: re.Pattern[str] | None = None) -> None:
    """Link a file, or the members of a folder whose names do not match `skip`."""
    if not entry.is_dir(follow_symlinks=False):
        if entry.name != LOCK and not HALF_WRITTEN_NAME.fullmatch(entry.name):
            link_file(entry.path, os.fspath(target))
        return
    target.mkdir(exist_ok=True)
    _copy_rights(Path(entry.path), target)
    with os.scandir(entry.path) as entries:
        for inner in entries:
            if skip is None or not skip.fullmatch(inner.name):
                _link(inner, target / inner.name)


def _copy_rights(source: Path, target: Path) -> None:
    """Copy owner, mode and access control lists from one folder to another."""
    theirs, ours = source.stat(), target.stat()
    if (theirs.st_uid, theirs.st_gid) != (ours.st_uid, ours.st_gid):
        os.chown(target, theirs.st_uid, theirs.st_gid)
    shutil.copystat(source, target)


# ---- changes by other writers ---------------------------------------------------------------


def _now(folder: Path) -> int:
    """
    Return the file system's current time in nanoseconds, from the modification time of a folder.

    Wait for it to advance (at most `TICK` seconds), so that later writes have greater modification times.
    """
    os.utime(folder)
    begun = folder.stat().st_mtime_ns
    deadline = time.monotonic() + TICK
    while folder.stat().st_mtime_ns == begun and time.monotonic() < deadline:
        time.sleep(0.001)
        os.utime(folder)
    return begun


def _has_changed(folder: str | Path, since: int) -> bool:
    """Whether anything in a folder was modified after `since`. Linking and reading files do not count."""
    if os.stat(folder).st_mtime_ns > since:
        return True
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in (LOCK, COMMIT_LOCK):  # touched by their holders
                continue
            if entry.is_dir(follow_symlinks=False):
                if _has_changed(entry.path, since):
                    return True
            elif entry.stat(follow_symlinks=False).st_mtime_ns > since:
                return True
    return False
