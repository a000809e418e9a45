"""
A VCZ in a folder of this machine that is replaced as a whole, for what no order of writes makes safe.

The new store is made in a folder beside the old one, of which nobody knows. Then the two exchange names, at one moment
for everybody, and the old one is deleted::

    STORE                               what readers see
    .STORE.vczstore-compact.json        the journal: which folder is which, by inode
    .STORE.vczstore-compact.1f2e3d4c    the new store while it is made; after the exchange, the old one

Whatever is killed when, the inode of STORE tells whether the exchange has taken place, so nothing has to be noted at
that moment. In both cases what lies beside is of no more use, and `settle` deletes it. Where a file system cannot
exchange two names (NFS, for one), the old folder is renamed, and then the new one: for a moment there is no STORE, and
if that is when the process is killed, `settle` renames the new one.

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
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from zarr.abc.store import Store as ZarrStore
from zarr.storage import LocalStore

from vczstore.errors import ConflictError, StorageError, UnsuitableError
from vczstore.stores import parent_metadata
from vczstore.stores.base import Place, Store, open_store
from vczstore.stores.edits import Edit
from vczstore.stores.locations import local_path, real_path
from vczstore.stores.lock import JobLock, carry, hold, hold_file
from vczstore.stores.object_store import reason
from vczstore.stores.plain import PlainStore
from vczstore.stores.rename import exchange, write_out, write_out_names
from vczstore.vcz.arrays import COMMIT_LOCK, LOCK, link_file

OPERATION = "compact"
SUFFIX = ".vczstore-compact"

TICK = 3.0
"""At most so many seconds between two times that a file system can tell apart; with FAT they are two."""

PATIENCE = 5.0
"""How many seconds to wait for a worker that has outlived its driver, and still writes to what is to be deleted."""

LATE = 0.5
"""How many seconds after an error threads may still be writing. What comes later the next run deletes."""

type Outcome = Literal["completed", "undone"]
"""Whether a replacement that was stopped has taken place."""

_CHUNK = re.compile(r"c|(c\.)?\d+(\.\d+)*")
"""What the chunks of an array, or the folders that they are in, are called in the array's folder."""

_HALF_WRITTEN = re.compile(r".*(\.[0-9a-f]{32}\.partial|#\d+)")
HALF_WRITTEN = "half-written files deleted"
"""What zarr calls a file before it has its name. A process that is killed leaves it, with anybody's data."""


@dataclass(frozen=True)
class ReplacedStore(PlainStore):
    """A VCZ in a folder of this machine. What is written to it becomes visible at once, or never."""

    atomic: bool = True

    @classmethod
    def of(cls, place: Place, store: Store) -> "ReplacedStore":
        """
        The same store, to be replaced.

        Parameters
        ----------
        place, store
            What the user calls it, and what that is.

        Raises
        ------
        UnsuitableError
            If it is no folder, or cannot be replaced as a whole.
        StorageError
            If it may not be.
        """
        path = folder_of(place)
        if path is None:
            raise UnsuitableError(
                f"{OPERATION}: {store.label} is plain Zarr, which has no transactions, and no folder on this machine: "
                "while samples move, readers would take one for another; name a new store with --output"
            )
        members = sorted(path.iterdir())
        link = next((member.name for member in members if member.is_symlink()), None)
        why = None
        if _is_mounted(path):
            why = _MOUNTED
        elif link is not None:
            why = f"is not all in one place: {link} is a symbolic link"
        if why is not None:
            raise UnsuitableError(_refusal(store.label, why))
        for folder in (path.parent, path, *(member for member in members if member.is_dir())):
            if not os.access(folder, os.W_OK | os.X_OK):
                raise StorageError(
                    f"{OPERATION}: {store.label}: {folder} may not be written to; name a new store with --output"
                )
        return cls(LocalStore(path, read_only=True), store.label, store.backend, no_lock=store.no_lock)

    @property
    def path(self) -> Path:
        """The folder, links resolved."""
        return cast("LocalStore", self.zarr_store).root

    @contextmanager
    def settled(self) -> Iterator[None]:
        """
        Leave nothing beside the store, and keep others from settling what is made there meanwhile.

        The lock of the store has to be held: who has the other one does not wait for it, so that it is soon free.
        """
        with settling(self.path, no_lock=self.no_lock, wait=True):
            settle(self.path)
            try:
                yield
            except BaseException:
                _settle_late(self.path)
                raise
            settle(self.path)

    def transaction(self, base: str) -> "Replacement":  # type: ignore[override]
        """Begin to make another store in its place; nothing is written before there is something to write."""
        return Replacement(self, base)


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

    @property
    def is_done(self) -> bool:
        """Whether the new store has taken its place."""
        return self.new is not None and self.store.path.exists() and self.store.path.stat().st_ino == self.inode

    @contextmanager
    def step(self, preparations: Sequence[Edit], edits: Sequence[Edit]) -> Iterator[ZarrStore]:
        """What is written goes to the new store."""
        if not (preparations or edits):
            yield self.store.zarr_store
            return
        self.new = self._begin()
        target = LocalStore(self.new)
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
        write_out(self.new)
        if _has_changed(path, self.begun):
            raise self._conflict()
        carry(path, self.new)
        if not self._exchange(path, self.new):
            aside = _aside(self.new)
            path.rename(aside)
            try:
                self.new.rename(path)
            except OSError:
                aside.rename(path)
                raise
        write_out_names(path.parent)
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
        _write_journal(path, {"folder": new.name, "store": path.stat().st_ino, "new": self.inode})
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

    def apply(self, store: ZarrStore) -> None:
        """Make folders, and hard links in them."""
        target = cast("LocalStore", store).root
        with os.scandir(self.source) as entries:
            for entry in entries:
                _link(entry, target / entry.name, _CHUNK if entry.name in self.arrays else None)


def _link(entry: "os.DirEntry[str]", target: Path, but: re.Pattern[str] | None = None) -> None:
    """Link a file, or all in a folder but names of some kind."""
    if not entry.is_dir(follow_symlinks=False):
        if entry.name != LOCK and not _HALF_WRITTEN.fullmatch(entry.name):
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


def half_written(path: Path) -> Iterator[Path]:
    """
    Files in a folder that somebody has begun to write; unless it goes on, its process was killed.

    zarr calls them ``.partial``. obstore and Icechunk number them behind a ``#``, and list none of them.
    """
    for folder, _, files in os.walk(path):
        yield from (Path(folder, name) for name in files if _HALF_WRITTEN.fullmatch(name))


def delete_half_written(path: Path | None, *, dry_run: bool = False) -> dict[str, int]:
    """Delete them, or only count them: nobody reads them, and they may hold anybody's data. Empty if there are none."""
    n = 0
    for file in () if path is None else half_written(path):
        n += 1
        if not dry_run:
            file.unlink(missing_ok=True)
    return {HALF_WRITTEN: n} if n else {}


# ---- what was written since -----------------------------------------------------------------


def _now(folder: Path) -> int:
    """The time by a folder's file system, in nanoseconds; whatever is written once this returns is later than that."""
    os.utime(folder)
    begun = folder.stat().st_mtime_ns
    deadline = time.monotonic() + TICK
    while folder.stat().st_mtime_ns == begun and time.monotonic() < deadline:
        time.sleep(0.001)
        os.utime(folder)
    return begun


def _has_changed(folder: Path, since: int) -> bool:
    """Whether anything was written in a folder. To link or read a file does not count."""
    if folder.stat().st_mtime_ns > since:
        return True
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in (LOCK, COMMIT_LOCK):  # touched by whoever holds it
                continue
            found = entry.stat(follow_symlinks=False)
            if _has_changed(Path(entry.path), since) if stat.S_ISDIR(found.st_mode) else found.st_mtime_ns > since:
                return True
    return False


# ---- the journal ----------------------------------------------------------------------------


def folder_of(place: Place) -> Path | None:
    """The folder of this machine that a user calls a store by, links resolved; None if it is none."""
    path = local_path(os.fspath(place)) if isinstance(place, str | os.PathLike) else None
    return None if path is None else real_path(path)


def leftovers(path: Path) -> list[Path]:
    """What a replacement that was stopped, or that goes on, has beside a store."""
    if not path.parent.is_dir():
        return []
    begin = f".{path.name}{SUFFIX}."
    return sorted(place for place in path.parent.iterdir() if place.name.startswith(begin))


@contextmanager
def settling(path: Path, *, no_lock: bool = False, wait: bool = False) -> Iterator[None]:
    """
    Hold the lock of what lies beside a store: it is needed where a replacement is begun, finished or undone.

    Of the store itself there may be none at that moment, so that its own lock does not do.

    Raises
    ------
    BusyError
        If another process replaces the store.
    StorageError
        If the folder may not be written to.
    """
    with nullcontext() if no_lock else hold_file(str(path), path.with_name(f".{path.name}{LOCK}"), wait):
        yield


@contextmanager
def replacing(place: Place, options: Mapping[str, Any]) -> Iterator[JobLock]:
    """
    Hold the lock of a store while it is replaced, and leave nothing beside it.

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
    path = folder_of(place)
    assert path is not None
    if not leftovers(path):
        ReplacedStore.of(place, open_store(place, **options))  # one that cannot be replaced needs no lock
    with settling(path, no_lock=options["no_lock"]):
        settle(path)
        with hold(open_store(place, **options)) as lock, _leaving_nothing(place, path):
            yield lock


@contextmanager
def _leaving_nothing(place: Place, path: Path) -> Iterator[None]:
    """Settle a replacement when it is over, however it ends."""
    try:
        yield
    except KeyboardInterrupt as error:
        outcome = _settle_late(path)
        if outcome == "completed":
            raise KeyboardInterrupt(f"{OPERATION}: interrupted when {place} was compacted already") from error
        raise
    except BaseException:
        _settle_late(path)
        raise
    try:
        settle(path)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"{OPERATION}: interrupted; {place} is compacted, and what it was before is not deleted yet: "
            "run the same command again"
        ) from error
    except OSError as error:
        raise StorageError(
            f"{OPERATION}: {place} is compacted, but what it was before cannot be deleted ({reason(error)}): "
            f"{leftovers(path)[0]}; run the same command again once it can"
        ) from error


def settle(path: Path) -> Outcome | None:
    """
    Finish or undo what a replacement that was stopped has begun, and delete what it has left; its lock has to be held.

    Returns
    -------
    "completed", "undone" or None
        Whether the store was replaced; None if there was nothing to do.

    Raises
    ------
    StorageError
        If it cannot be told what lies beside the store.
    OSError
        If it cannot be deleted.
    """
    found = leftovers(path)
    if not found:
        return None
    outcome = _outcome(path, found)
    journal = _journal(path)
    for place in found:
        if place != journal:
            _delete(place)
    journal.unlink(missing_ok=True)
    return outcome


def settle_before(store: PlainStore) -> None:
    """
    Let nothing of a replacement that was stopped stay beside a store that is about to be written to.

    What it was before holds all that is going to be removed. The lock of the store has to be held.
    """
    path = store.folder
    if path is None or not os.access(path.parent, os.R_OK | os.W_OK | os.X_OK) or not leftovers(path):
        return
    with settling(path, no_lock=store.no_lock, wait=True):
        settle(path)


def _settle_late(path: Path) -> Outcome | None:
    """
    The same after something went wrong, which is what has to be told.

    What zarr's threads have begun they write when another has failed already, and re-create the folder for it.
    """
    outcome = None
    with suppress(OSError, StorageError):
        outcome = settle(path)
        time.sleep(LATE)
        settle(path)
    return outcome


def foreseen(path: Path) -> Outcome | None:
    """What `settle` would return; nothing is done."""
    found = leftovers(path)
    return _outcome(path, found, rename=False) if found else None


def _outcome(path: Path, found: Sequence[Path], *, rename: bool = True) -> Outcome:
    try:
        noted = json.loads(_journal(path).read_bytes())
        new, inodes = path.with_name(noted["folder"]), (noted["store"], noted["new"])
    except FileNotFoundError:
        if not path.exists():
            raise StorageError(f"{path} does not exist, and nothing says what {found[0]} is; look into it") from None
        return "undone"  # it was stopped before it was noted
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{_journal(path)} does not say what lies beside {path}; delete it, and what begins like it, if {path} is "
            "whole"
        ) from error
    if not path.exists():
        # stopped between two renames
        if not rename:
            return "completed"
        (new if new.exists() else _aside(new)).rename(path)
        write_out_names(path.parent)
    inode = path.stat().st_ino
    if inode not in inodes:
        raise StorageError(
            f"{path} was put there while it was compacted, and {found[0]} may be what it was before; "
            f"delete {_journal(path)} and what begins like it if the store is whole"
        )
    return "completed" if inode == inodes[1] else "undone"


def _journal(path: Path) -> Path:
    return path.with_name(f".{path.name}{SUFFIX}.json")


def _aside(new: Path) -> Path:
    """Where the old store is where names cannot be exchanged."""
    return new.with_name(f"{new.name}.old")


def _write_journal(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all, and on disk before this returns."""
    half = path.with_name(f".{path.name}{SUFFIX}.half")
    with half.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    half.replace(_journal(path))
    write_out_names(path.parent)


def _delete(place: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if place.is_dir() and not place.is_symlink():
                for document in ("zarr.json", ".zgroup"):
                    # first: whoever has reached the old store by another mount finds none, instead of half of one
                    (place / document).unlink(missing_ok=True)
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
