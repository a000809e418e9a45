"""
The lock of a store: it keeps two jobs on the same store apart.

It lies in the store, so that it is the same however the store is reached: through a link, another mount, another
spelling of a URL, or a Zarr store that is open. In a VCZ on plain Zarr it lies among the chunks of ``sample_id``, where
no reader of Zarr looks for what is not a chunk; at the top of a group it would be an unknown member. In an Icechunk
repository it lies at the top.

On this machine the kernel holds it, on a file, and frees it when its holder dies. Where a file system has no such locks
(Lustre without ``-o flock``), the file itself is the lock: its holder touches it as long as they live, and deletes it.
One that a killed process has left has to be deleted by hand: nothing there could take it over at one moment.

In an object store it is a lease: an object that its holder renews as long as they live. Only conditional writes touch
it, so that of several who want it exactly one gets it; whoever gets it makes sure that the server heeds conditions:

    free ----------- create, or update of a released lease -----> held
    held ----------- its holder renews it every TTL / 3 --------> held
    held ----------- not renewed for a TTL: whoever waits ------> held by another; the old holder's `check` fails
    held ----------- its holder updates it: "released" ---------> free

Whoever waits, or watches, sees on their own clock that a lease is not renewed; no two clocks are compared. Whoever does
neither takes a lease only when it is long `ABANDONED`, by the object store's clock and their own.

A holder who was suspended for longer than a TTL, or is robbed by a writer whose clock is wrong by minutes, finds out at
`check`, before the commit. On Icechunk that keeps the store whole. On plain Zarr it cannot undo the chunks that such a
holder wrote after the other job had begun.
"""

import errno
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zarr.storage import MemoryStore, ObjectStore

from vczstore.errors import BusyError, NotAStoreError, StaleError, StorageError, VczstoreError
from vczstore.stores.base import HeldLock, Lockable
from vczstore.stores.folders import innermost, protocols
from vczstore.stores.locations import parse
from vczstore.stores.object_store import object_store, put_conditionally, reason
from vczstore.vcz.model import SAMPLE_ID
from vczstore.vcz.zarr_objects import COMMIT_LOCK, LOCK

TTL = 60.0
"""How many seconds a lease lives without being renewed."""

ABANDONED = 5
"""After how many times its TTL a lease may be taken without watching it first."""

POLL = 0.05
"""Seconds between two looks at a file whose existence is the lock."""

WITHOUT = "--no-lock (no_lock in Python) goes without it, if nothing else writes to the store"


@contextmanager
def hold(store: Lockable, *, wait: bool = False, watch: bool = False) -> Iterator[HeldLock]:
    """
    Hold the lock of a store.

    A store that is to be written to without is not locked, nor is a repository that is open and elsewhere, whose
    commits exclude each other.

    Parameters
    ----------
    store
        Which. A store in memory, or of a kind that names no place, has a lock within this process.
    wait
        Whether to wait until it is free; SIGINT ends the waiting.
    watch
        Whether to see first, if it is not to be waited for, that who holds a lease renews it: that takes up to a
        third of a TTL. The lease of a holder who was killed is taken after a TTL.

    Raises
    ------
    BusyError
        If it is held, and not to be waited for.
    StorageError
        If storage does not let it be held, or does not heed the conditions of a write.
    NotAStoreError
        If the store does not exist.
    OptionError
        If the options do not fit the place.
    MissingDependencyError
        If obstore is not installed.
    """
    with unheld() if store.no_lock else _held(store, wait, watch) as lock:
        yield lock


_HEEDED: set[Hashable] = set()
"""The repositories whose servers were seen to heed the conditions of writes."""


def require_conditions(store: Lockable) -> None:
    """
    Make sure that commits to a repository in an object store exclude each other, which rests on conditional writes.

    Its server is asked once in a process, by an object that is deleted again. That takes obstore: without it, as where
    the store is written to without a lock, the server is trusted.

    Raises
    ------
    StorageError
        If the server ignores the conditions of writes, or does not let the object be written.
    """
    if store.no_lock or store.folder is not None or find_spec("obstore") is None:
        return
    there, identity = _at_url(store), (store.label, repr(sorted(store.options.items())))
    if there is None or identity in _HEEDED:
        return
    import obstore

    probe = _Lease(store.label, there, f"{LOCK}.{secrets.token_hex(8)}")
    try:
        if not probe._write(released=True) and (found := probe._read()) is not None:
            probe.version = found[1]  # the answer was lost, and the client's second try met the first
        probe._require_conditions()
    finally:
        with suppress(Exception):  # what is left is no part of a repository
            obstore.delete(there, probe.key)
    _HEEDED.add(identity)


def _held(store: Lockable, wait: bool, watch: bool) -> AbstractContextManager[HeldLock]:
    path = store.folder
    if path is not None:
        return hold_file(store.label, lock_file(path), wait)
    if store.zarr_store is None:
        there = _at_url(store)
        return unheld() if there is None else _hold_lease(store.label, there, LOCK, wait, watch)
    inner = innermost(store.zarr_store)
    elsewhere = _objects(store, inner)
    if elsewhere is not None:
        return _hold_lease(store.label, elsewhere, f"{SAMPLE_ID}/{LOCK}", wait, watch)
    return _hold_here(store.label, _identity(inner), wait)


def _objects(store: Lockable, inner: Any) -> Any:
    """The object store, as obstore has it, in which a VCZ on plain Zarr lies; None if it is in memory or unknown."""
    if isinstance(inner, ObjectStore):
        if type(inner.store).__name__ == "MemoryStore":
            return None
        return _at_url(store) or inner.store
    if type(inner).__name__ != "FsspecStore" or "memory" in protocols(inner):
        return None
    there = _at_url(store)
    if there is not None:
        return there
    raise StorageError(
        f"{store.label}: an open store of fsspec cannot be locked, since fsspec knows no conditional writes; give its "
        f"URL instead; {WITHOUT}"
    )


def _at_url(store: Lockable) -> Any:
    """What lies at the URL of a store; None for one that was open already."""
    address = None if store.place.startswith("<") else parse(store.place)
    if address is None or address.path is not None:
        return None
    # who does not get through for a TTL has lost the lease: no use in trying longer
    return object_store(address, store.options, patience=TTL)


def _identity(inner: Any) -> Hashable:
    """What tells a store in this process's memory from others."""
    if isinstance(inner, MemoryStore):
        return id(inner._store_dict)
    if isinstance(inner, ObjectStore):
        return id(inner.store)
    if type(inner).__name__ == "FsspecStore":
        return str(inner.path)
    return id(inner)


def _holder() -> dict[str, Any]:
    """What others may know of who holds a lock."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _now()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _parse(document: bytes) -> dict[str, Any]:
    """What a lock says; nothing if it is not readable."""
    try:
        found = json.loads(document)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _who(lock: Mapping[str, Any]) -> tuple[str, str]:
    """The holder of a lock, and since when."""
    who = f"process {lock['pid']} on {lock['host']}" if {"pid", "host"} <= lock.keys() else "another process"
    return who, f" since {str(lock['started']).partition('.')[0]} UTC" if "started" in lock else ""


def _busy(url: str, lock: Mapping[str, Any]) -> BusyError:
    who, since = _who(lock)
    return BusyError(
        f"{url} is busy: {who} works on it{since}; run this again when that is over; jobs can wait, with --if-busy wait"
    )


def holder(store: Lockable) -> tuple[str, str] | None:
    """
    Who holds the lock of a store, and since when; None if it is free, or that cannot be seen.

    Nothing is written, so that who may only read can ask. The lease of a holder who was killed counts for its TTL.
    """
    inner = None if store.zarr_store is None else innermost(store.zarr_store)
    with suppress(OSError, VczstoreError):
        if store.folder is not None:
            return _holder_of_file(lock_file(store.folder))
        there = _at_url(store) if inner is None else _objects(store, inner)
        if there is not None:
            return _holder_of_lease(_Lease(store.label, there, LOCK if inner is None else f"{SAMPLE_ID}/{LOCK}"))
        if inner is not None and _identity(inner) in _IN_USE:
            return _who({"pid": os.getpid(), "host": socket.gethostname()})
    return None


def commit_lock(label: str, folder: Path) -> AbstractContextManager[HeldLock]:
    """What serialises commits to a repository in a folder, where Icechunk loses those that are made at once."""
    return hold_file(label, folder / COMMIT_LOCK, wait=True)


# ---- in this process ------------------------------------------------------------------------

_IN_USE: set[Hashable] = set()
_FREED = threading.Condition()


class _Kept:
    """What nothing can take away: a lock within this process, or none at all."""

    def check(self) -> None:
        """It is held until it is given back."""


def unheld() -> AbstractContextManager[HeldLock]:
    """No lock, where none is needed."""
    return nullcontext(_Kept())


@contextmanager
def _hold_here(label: str, identity: Hashable, wait: bool) -> Iterator[HeldLock]:
    with _FREED:
        while identity in _IN_USE:
            if not wait:
                raise _busy(label, {"host": socket.gethostname(), "pid": os.getpid()})
            _FREED.wait()
        _IN_USE.add(identity)
    try:
        yield _Kept()
    finally:
        with _FREED:
            _IN_USE.discard(identity)
            _FREED.notify_all()


# ---- on this machine ------------------------------------------------------------------------

_CANNOT_LOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What flock(2) says on file systems without locks, such as Lustre without ``-o flock``."""


def lock_file(folder: Path) -> Path:
    """The file on which the lock of the store in a folder is."""
    inner = folder / SAMPLE_ID
    return (inner if inner.is_dir() else folder) / LOCK


def carry(old: Path, new: Path) -> None:
    """
    Let the lock of a store be that of the folder too that is about to take its place.

    Whoever comes after the exchange finds it held. Where a file can have no second name, it moves: who takes the lock
    of the old folder in that moment loses it with the exchange, as their `check` tells.
    """
    path = lock_file(new)
    path.unlink(missing_ok=True)
    try:
        os.link(lock_file(old), path)
    except OSError:
        with suppress(FileNotFoundError):  # none is held
            lock_file(old).rename(path)


@dataclass
class _LockedFile:
    """A file that keeps others out: the kernel has locked it for us, or it is ours since we have made it."""

    url: str
    path: Path
    file: int
    made: bool = False
    over: threading.Event = field(default_factory=threading.Event)
    touching: threading.Thread | None = None

    def check(self) -> None:
        """Whoever deletes the file lets others in."""
        if not _is_at(self.file, self.path):
            raise StaleError(
                f"{self.url}: {self.path} was deleted while a job ran; nothing was committed, run it again"
            )

    def begin(self) -> None:
        """Say who holds it, and go on saying so where the kernel does not know."""
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, json.dumps(_holder() | ({"made": True} if self.made else {})).encode(), 0)
        if self.made:
            self.touching = threading.Thread(target=self._touch, name=f"lock of {self.url}", daemon=True)
            self.touching.start()

    def end(self) -> None:
        """Let others have it."""
        self.over.set()
        if self.touching is not None:
            self.touching.join()
        # before it is freed: who waits for it has it open, finds out that it is gone, and makes another
        if _is_at(self.file, self.path):
            with suppress(OSError):
                self.path.unlink()
        os.close(self.file)

    def _touch(self) -> None:
        while not self.over.wait(TTL / 3):
            with suppress(OSError):
                os.utime(self.file)


@contextmanager
def hold_file(label: str, path: Path, wait: bool) -> Iterator[HeldLock]:
    """
    Hold the lock that a file is.

    Raises
    ------
    BusyError
        If it is held, and not to be waited for; or if who holds it by its existence gives no sign of life for a TTL.
    NotAStoreError
        If its folder does not exist.
    StorageError
        If it cannot be made or locked.
    """
    try:
        held = _take(label, path, wait)
    except BlockingIOError:
        said = b""
        with suppress(FileNotFoundError):  # it has just been freed
            said = path.read_bytes()
        raise _busy(label, _parse(said)) from None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotAStoreError(f"{label}: no such file or directory") from error
    except OSError as error:
        raise StorageError(
            f"{label}: cannot be locked with {path} ({error.strerror}); nothing was done; make it writable, or where "
            f"storage cannot lock: {WITHOUT}"
        ) from error
    try:
        yield held
    finally:
        held.end()


def _take(label: str, path: Path, wait: bool) -> _LockedFile:
    unheard = _Unheard(label, path, wait)
    while True:
        held = _try(label, path, wait)
        if held is not None:
            return held
        unheard.look()


def _try(label: str, path: Path, wait: bool) -> _LockedFile | None:
    """Take it; None if it is there, and its existence is what keeps others out, or if it was deleted meanwhile."""
    file, is_new = _open(path)
    is_locked = True
    try:
        is_locked = _flock(file, wait)
        is_held = _parse(os.pread(file, 4096, 0)).get("made") is True if is_locked else not is_new
        if _is_at(file, path) and not is_held:
            held = _LockedFile(label, path, file, made=not is_locked)
            held.begin()
            return held
    except BaseException:
        if is_new and not is_locked:  # its existence is the lock, and would keep others out for ever
            with suppress(OSError):
                os.unlink(path)
        os.close(file)
        raise
    os.close(file)
    return None


def _holder_of_file(path: Path) -> tuple[str, str] | None:
    with path.open("rb") as file:
        lock = _parse(file.read())
        try:
            is_held = not _flock(file.fileno(), wait=False, shared=True) and not _is_gone(lock)
        except BlockingIOError:
            is_held = True
    return _who(lock) if is_held else None


def _open(path: Path) -> tuple[int, bool]:
    """Open a file, made if it is not there: whether it was."""
    while True:
        with suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW), False


def _flock(file: int, wait: bool, *, shared: bool = False) -> bool:
    """Lock an open file; False where the file system has no locks."""
    import fcntl

    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    for pause in () if shared else (0.01, 0.05):  # `holder` has the file for an instant
        with suppress(BlockingIOError):
            return _flocked(file, how)
        time.sleep(pause)
    return _flocked(file, how)


def _flocked(file: int, how: int) -> bool:
    import fcntl

    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno in _CANNOT_LOCK:
            return False
        raise
    return True


@dataclass
class _Unheard:
    """Waits for a file whose existence is the lock, as long as its holder touches it."""

    label: str
    path: Path
    wait: bool
    seen: tuple[int, int] | None = None
    since: float = 0.0

    def look(self) -> None:
        """Wait a moment; raise a `BusyError` if that is of no use."""
        try:
            found, lock = self.path.stat(), _parse(self.path.read_bytes())
        except FileNotFoundError:
            return
        state = (found.st_ino, found.st_mtime_ns)
        if state != self.seen:
            self.seen, self.since = state, time.monotonic()
        who, since = _who(lock)
        unlocked = f"{self.label} is busy: {who} works on it{since}, as {self.path} says"
        if _is_gone(lock) or time.monotonic() - self.since > TTL:
            raise BusyError(f"{unlocked}, but gives no sign of life; if it is over, delete that file")
        if not self.wait:
            raise BusyError(
                f"{unlocked}; run this again when that is over; if it was killed, delete that file: this file system "
                "has no locks that end with their holder"
            )
        time.sleep(POLL)


def _is_gone(lock: Mapping[str, Any]) -> bool:
    """Whether the holder was a process of this machine, and there is none of its number."""
    if lock.get("host") != socket.gethostname() or not isinstance(lock.get("pid"), int):
        return False
    try:
        os.kill(lock["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


# ---- in an object store ---------------------------------------------------------------------

type Version = dict[str, str]
"""What tells one state of an object from all others, in obstore's words."""


@contextmanager
def _hold_lease(url: str, objects: Any, key: str, wait: bool, watch: bool) -> Iterator[HeldLock]:
    lease = _Lease(url, objects, key)
    try:
        lease.acquire(wait, watch)
        yield lease
    finally:
        lease.release()


@dataclass
class _Lease:
    """An object that says who works on a store. It is ours while no other writer has written to it."""

    url: str
    objects: Any
    key: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    holder: dict[str, Any] = field(default_factory=_holder)
    version: Version = field(default_factory=dict)
    lost: bool = False
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)
    renewing: threading.Thread | None = None

    def acquire(self, wait: bool, watch: bool = False) -> None:
        """Get the lease, and begin to renew it."""
        seen: Version | None = None
        since = 0.0
        while True:
            found = self._read()
            if found is None:
                if self._write():
                    break
                continue
            lease, version, modified = found
            if lease.get("id") == self.id:
                # the answer to our write was lost, and the client's second try met the first
                self.version = version
                break
            if version != seen:
                if watch and not wait and seen is not None and not lease.get("released"):
                    raise _busy(self.url, lease)
                seen, since = version, time.monotonic()
            ttl = _ttl(lease)
            if wait or watch:
                dead = time.monotonic() - since > ttl
            else:
                dead = (datetime.now(UTC) - modified).total_seconds() > ABANDONED * ttl
            if dead or lease.get("released"):
                if self._write(over=version):
                    break
            elif wait or watch:
                time.sleep(ttl / 30)
            else:
                raise _busy(self.url, lease)
        self._require_conditions()
        self.renewing = threading.Thread(target=self._keep, name=f"lease of {self.url}", daemon=True)
        self.renewing.start()

    def check(self) -> None:
        """Renew it: that it succeeds says that no other writer has taken it since."""
        self._renew()
        if self.lost:
            raise StaleError(
                f"{self.url}: its lock went to another job, or was deleted, while this job was suspended or cut off; "
                "nothing was committed, run it again"
            )

    def release(self) -> None:
        """Let others have it at once. An object store that is out of reach is no failure of the job: it runs out."""
        self.over.set()
        if self.renewing is not None:
            self.renewing.join()
        with suppress(StorageError):
            if self.version and not self.lost:
                self._write(over=self.version, released=True)

    def _keep(self) -> None:
        while not self.lost and not self.over.wait(TTL / 3):
            with suppress(StorageError):  # the next time may go better, and `check` tells
                self._renew()

    def _renew(self) -> None:
        with self.one_at_a_time:
            if self.lost or self._write(over=self.version):
                return
            found = self._read()
            if found is not None and found[0].get("id") == self.id:
                self.version = found[1]  # as in `acquire`
            else:
                self.lost = True

    def _read(self) -> tuple[dict[str, Any], Version, datetime] | None:
        """What the lease says, which version says it, and since when by the object store's clock."""
        import obstore

        try:
            found = obstore.get(self.objects, self.key)
            return _parse(bytes(found.bytes())), _version(found.meta), found.meta["last_modified"]
        except FileNotFoundError:
            return None
        except Exception as error:  # obstore's own errors, whose classes differ by version
            raise self._refused(error) from error

    def _require_conditions(self) -> None:
        """
        Make sure that the server heeds the conditions of writes: with one that does not, every process gets the lease.

        Raises
        ------
        StorageError
            If it does not.
        """
        for mode in ("create", {name: _NEVER[name] for name in self.version}):
            if self._put(mode) is not None:
                raise StorageError(
                    f"{self.url}: cannot be locked with {self.key}: its server ignores the conditions of writes "
                    f"({'If-None-Match' if mode == 'create' else 'If-Match'}), so that nothing can keep another "
                    f"writer out; nothing was done; {WITHOUT}"
                )

    def _write(self, *, over: Version | None = None, released: bool = False) -> bool:
        """Create the lease, or write over a version of it; False if another writer was quicker."""
        written = self._put("create" if over is None else over, released=released)
        if written is not None:
            self.version = _version(written)
        return written is not None

    def _put(self, mode: Any, *, released: bool = False) -> Any:
        """Write it on a condition; None if that was not met."""
        lease = {"id": self.id, **self.holder, "renewed": _now(), "ttl": TTL, "released": released}
        try:
            return put_conditionally(self.objects, self.key, json.dumps(lease).encode(), mode, patience=TTL)
        except Exception as error:  # obstore's own errors, whose classes differ by version
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> StorageError:
        # a query may carry a token
        said = re.sub(r"\?\S*", "", reason(error))
        return StorageError(
            f"{self.url}: cannot be locked with {self.key} ({said}); nothing was done; allow that object to be "
            f"read and written; {WITHOUT}"
        )


def _holder_of_lease(lease: _Lease) -> tuple[str, str] | None:
    if (found := lease._read()) is None:
        return None
    lock, _, modified = found
    age = (datetime.now(UTC) - modified).total_seconds()
    return None if lock.get("released") or age > _ttl(lock) else _who(lock)


def _ttl(lock: Mapping[str, Any]) -> float:
    """How many seconds a lease lives without being renewed, as it says itself."""
    return lock["ttl"] if isinstance(lock.get("ttl"), int | float) else TTL


_NEVER = {"e_tag": '"0"', "version": "1"}
"""A version that no object has."""


def _version(meta: Mapping[str, Any]) -> Version:
    """A generation where the object store has them, else an ETag. obstore takes no None for what is not there."""
    return {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}
