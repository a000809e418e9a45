"""
A VCZ in a folder of this machine that is replaced as a whole, for what no order of writes makes safe.

The new store is made in a folder beside the old one, which no reader knows of. Then the two exchange names, at one
moment for all readers, and the old one is deleted::

    STORE                               what readers see
    .STORE.vczstore-compact.json        the record: which folder is which, by inode
    .STORE.vczstore-compact.1f2e3d4c    the new store while it is made; after the exchange, the old one

Whichever process is killed, and at any moment, the inode of STORE tells whether the exchange has taken place, so
nothing has to be noted at that moment. In both cases what lies beside is of no more use, and `settle` deletes it.
Where a file system cannot exchange two names (NFS, for one), the old folder is renamed, and then the new one: for a
moment there is no STORE, and if that is when the process is killed, `settle` renames the new one.

Chunks that stay what they are are hard links in the new store, so they take no room and next to no time. zarr and
obstore change no file in place: they write another, and rename it. fsspec does, and its writes are noticed like others.

A reader that has the store open looks every chunk up by its name. If it reads on after the exchange, it gets chunks of
the new store with shapes and sample IDs of the old one; that the folder has another inode tells.

The lock of the store keeps other operations away, before the exchange and after it, since it lies in both folders; a
second lock, beside the store, those that would settle what lies there. What programs write to STORE meanwhile that know
of no lock is found by the times of its files and folders, right before the exchange, and nothing is replaced then. What
they write while these are looked at (some microseconds for each file) is lost, and one that goes on after the exchange
writes into the new store.
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
from vczstore.stores.base import UNCHANGED, Check, HeldLock, Store, Transaction
from vczstore.stores.edits import Edit
from vczstore.stores.filesystem import exchange, sync_filesystem, sync_names
from vczstore.stores.leftovers import (
    HALF_WRITTEN_NAME,
    SUFFIX,
    aside,
    leftovers,
    settle,
    settle_late,
    settling,
    write_record,
)
from vczstore.stores.lock import carry, hold
from vczstore.stores.object_store import plain_errors, reason
from vczstore.stores.zarr_backed import ZarrBacked
from vczstore.vcz.zarr_objects import COMMIT_LOCK, LOCK, RegularLocalStore, link_file

OPERATION = "compact"

TICK = 3.0
"""At most so many seconds between two times that a file system can tell apart; with FAT they are two."""

_CHUNK = re.compile(r"c|(c\.)?\d+(\.\d+)*")
"""What the chunks of an array, or the folders that they are in, are called in the array's folder."""


@dataclass(frozen=True)
class ReplacedStore(ZarrBacked):
    """A VCZ in a folder of this machine. What is written to it becomes visible at once, or never."""

    atomic = True
    begins_empty = True

    @classmethod
    def of(cls, path: Path | None, store: Store) -> "ReplacedStore":
        """
        The same store, to be replaced.

        Parameters
        ----------
        path, store
            The folder, and what lies there.

        Raises
        ------
        UnsuitableError
            If it is no folder, or cannot be replaced as a whole.
        StorageError
            If it may not be.
        """
        if path is None:
            raise UnsuitableError(
                f"{OPERATION}: {store.label} is plain Zarr, which has no transactions, and no folder on this machine: "
                "while samples move, readers would take one for another; name a new store with --output"
            )
        replaced = cls.unsettled(path, store.label, store.backend, no_lock=store.no_lock)
        replaced._require_replaceable()
        return replaced

    @classmethod
    def unsettled(cls, path: Path, label: str, backend: str, *, no_lock: bool) -> "ReplacedStore":
        """One beside which a stopped replacement has left something, so that it may only be there once it is locked."""
        return cls(LocalStore(path, read_only=True), label, backend, no_lock=no_lock)

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
            raise UnsuitableError(_refusal(self.label, why))
        for folder in (path.parent, path, *(member for member in members if member.is_dir())):
            if not os.access(folder, os.W_OK | os.X_OK):
                raise StorageError(
                    f"{OPERATION}: {self.label}: {folder} may not be written to; name a new store with --output"
                )

    @property
    def path(self) -> Path:
        """The folder, links resolved."""
        return cast("LocalStore", self.zarr_store).root

    def in_place(self) -> "ReplacedStore":
        """The same."""
        return self

    def recovery_edits(self, *edits: Edit) -> tuple[Edit, ...]:
        """None: the new store takes the place of the old one as a whole."""
        return ()

    def after_failure(self, if_stopped: str, visible: int) -> str:
        """The old store is there."""
        return UNCHANGED

    @contextmanager
    def writer_lock(self) -> Iterator[HeldLock]:
        """
        Hold the lock of the store while it is replaced, and leave nothing beside it.

        What a run that was stopped has left is settled first: the store may only be there again after that.

        Raises
        ------
        BusyError
            If a job runs on the store.
        NotAStoreError
            If there is none.
        StorageError
            If the store is replaced, and the old one cannot be deleted.
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
        A transaction of its own, which leaves nothing beside the store.

        The lock of the store has to be held: who has the one of what lies beside it does not wait for the other, so
        that it is soon free.
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
                settle_late(self.path)
                raise
            settle(self.path)

    def transaction(self, base: str) -> "Replacement":
        """Begin to make another store in its place; nothing is written before there is something to write."""
        return Replacement(self, base)


@contextmanager
def _leaving_nothing(label: str, path: Path) -> Iterator[None]:
    """Settle a replacement when it is over, however it ends."""
    try:
        yield
    except KeyboardInterrupt as error:
        outcome = settle_late(path)
        if outcome == "completed":
            raise KeyboardInterrupt(f"{OPERATION}: interrupted when {label} was compacted already") from error
        raise
    except BaseException:
        settle_late(path)
        raise
    try:
        settle(path)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"{OPERATION}: interrupted; {label} is compacted, and what it was before is not deleted yet: "
            "run the same command again"
        ) from error
    except OSError as error:
        raise StorageError(
            f"{OPERATION}: {label} is compacted, but what it was before cannot be deleted ({reason(error)}): "
            f"{leftovers(path)[0]}; run the same command again once it can"
        ) from error


_MOUNTED = "is a mount point, and cannot be exchanged for another folder; compact it where it is mounted from"


def _refusal(label: str, why: str) -> str:
    return f"{OPERATION}: {label} {why}; or name a new store with --output"


def _is_mounted(path: Path) -> bool:
    """Whether something is mounted at a path, be it another folder of the same file system."""
    if path.stat().st_dev != path.parent.stat().st_dev:
        return True
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return False
    return os.fsencode(path) in {_unescaped(line.split()[4]) for line in mounts}


def _unescaped(field: bytes) -> bytes:
    """A path as the kernel writes it: spaces and their like are octal numbers."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


@dataclass
class Replacement:
    """
    Another store that takes the place of one, in the commit.

    Attributes
    ----------
    store, base
        The store that is there, and the state of it that the other one is made from.
    new
        The folder of the other one, once it is begun.
    begun
        When that was, in nanoseconds by the file system's clock: what has a later time was written since.
    inode
        Of that folder, which keeps it when it takes the other's name.
    """

    store: ReplacedStore
    base: str
    new: Path | None = None
    begun: int = 0
    inode: int = 0
    resumable = None
    shows_steps = False

    @property
    def is_done(self) -> bool:
        """Whether the new store has taken its place."""
        return self.new is not None and self.store.path.exists() and self.store.path.stat().st_ino == self.inode

    @contextmanager
    def step(
        self, preparations: Sequence[Edit], edits: Sequence[Edit], check: Check | None = None
    ) -> Iterator[ZarrStore]:
        """What is written goes to the new store."""
        if not (preparations or edits):
            yield self.store.zarr_store
            return
        self.new = self._begin()
        target = RegularLocalStore(self.new)
        for edit in preparations:
            edit.apply(target)
        yield target
        for edit in edits:
            edit.apply(target)

    def found(self) -> ZarrStore:
        """The old store."""
        return self.store.zarr_store

    def collect(self, store: ZarrStore) -> None:
        """Nothing to take in: what a task has written lies in the new store."""

    def commit(self, message: str, metadata: Mapping[str, Any]) -> None:
        """
        Let the new store take the place of the old one, which is left for `settle` to delete.

        Raises
        ------
        ConflictError
            If another writer has written to the old one meanwhile. It stays where it is.
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
            if error.errno == errno.EBUSY:  # a mount of which nothing was known
                raise UnsuitableError(_refusal(self.store.label, _MOUNTED)) from error
            raise

    def _begin(self) -> Path:
        path = self.store.path
        settle(path)
        # of a name of its own: a worker that outlives its driver writes to no other attempt's
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
    All that lies in a folder, the chunks of some arrays aside, comes to lie in the new one too.

    Attributes
    ----------
    source
        The folder.
    arrays
        The arrays whose chunks are left to tasks.
    """

    source: Path
    arrays: frozenset[str]

    @classmethod
    def of(cls, store: Store, arrays: frozenset[str]) -> "LinkAllBut":
        """All that lies in a store that is replaced."""
        assert store.folder is not None
        return cls(store.folder, arrays)

    def apply(self, store: ZarrStore) -> None:
        """Make folders, and hard links in them."""
        target = cast("LocalStore", store).root
        with os.scandir(self.source) as entries:
            for entry in entries:
                _link(entry, target / entry.name, _CHUNK if entry.name in self.arrays else None)


def _link(entry: "os.DirEntry[str]", target: Path, but: re.Pattern[str] | None = None) -> None:
    """Link a file, or all in a folder but names of some kind."""
    if not entry.is_dir(follow_symlinks=False):
        if entry.name != LOCK and not HALF_WRITTEN_NAME.fullmatch(entry.name):
            link_file(entry.path, os.fspath(target))
        return
    target.mkdir(exist_ok=True)
    _copy_rights(Path(entry.path), target)
    with os.scandir(entry.path) as entries:
        for inner in entries:
            if but is None or not but.fullmatch(inner.name):
                _link(inner, target / inner.name)


def _copy_rights(source: Path, target: Path) -> None:
    """Let a folder have the owner, the mode and the access lists of another."""
    theirs, ours = source.stat(), target.stat()
    if (theirs.st_uid, theirs.st_gid) != (ours.st_uid, ours.st_gid):
        os.chown(target, theirs.st_uid, theirs.st_gid)
    shutil.copystat(source, target)


# ---- what was written since -----------------------------------------------------------------


def _now(folder: Path) -> int:
    """The time by a folder's file system, in nanoseconds; all that is written once this returns is later than that."""
    os.utime(folder)
    begun = folder.stat().st_mtime_ns
    deadline = time.monotonic() + TICK
    while folder.stat().st_mtime_ns == begun and time.monotonic() < deadline:
        time.sleep(0.001)
        os.utime(folder)
    return begun


def _has_changed(folder: str | Path, since: int) -> bool:
    """Whether anything was written in a folder. To link or read a file does not count."""
    if os.stat(folder).st_mtime_ns > since:
        return True
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in (LOCK, COMMIT_LOCK):  # touched by whoever holds it
                continue
            if entry.is_dir(follow_symlinks=False):
                if _has_changed(entry.path, since):
                    return True
            elif entry.stat(follow_symlinks=False).st_mtime_ns > since:
                return True
    return False
