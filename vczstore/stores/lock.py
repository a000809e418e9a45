"""
The lock of a store, which excludes concurrent jobs on the same store.

It is kept inside the store, so that it is the same however the store is reached: by a symlink, another mount, another
spelling of a URL, or an open Zarr store. In a VCZ on plain Zarr it is among the chunks of ``sample_id``, where Zarr
readers look only for chunks; at the top of a group it would be an unknown member. In an Icechunk repository it is at
the top.

For a local store it is a file lock held by the kernel, which frees it when its holder dies. On file systems without
such locks (Lustre without ``-o flock``), the existence of the file is the lock: its holder touches it periodically, and
finally deletes it. If the holder is killed, the file has to be deleted by hand: it cannot be taken over atomically.

In an object store it is a lease: an object that its holder renews. All writes to it are conditional, so that exactly
one of several contenders gets it; each new holder verifies that the server honours the conditions:

    free ----------- create, or update of a released lease -----> held
    held ----------- its holder renews it every TTL / 3 --------> held
    held ----------- not renewed for a TTL, seen by a waiter ---> held by the waiter; the old holder's `check` fails
    held ----------- its holder updates it: "released" ---------> free

Processes that wait or watch measure the time without renewal with their own clock, so that no clocks are compared.
Others take over a lease only if it is `ABANDONED`, comparing the object store's clock with their own.

A holder that was suspended for longer than a TTL, or whose lease was taken by a process with a clock wrong by minutes,
learns of it in `check`, before the commit. On Icechunk that keeps the store consistent. On plain Zarr it cannot undo
the chunks that the holder wrote after the other job had begun.
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
from typing import Any, Protocol

from zarr.abc.store import Store as ZarrStore
from zarr.storage import MemoryStore, ObjectStore

from vczstore.errors import BusyError, NotAStoreError, StaleError, StorageError, VczstoreError
from vczstore.stores.folders import innermost, protocols
from vczstore.stores.locations import parse
from vczstore.stores.object_store import object_store, put_conditionally, reason
from vczstore.vcz.model import SAMPLE_ID
from vczstore.vcz.zarr_objects import LOCK

TTL = 60.0
"""Seconds for which a lease is valid without being renewed."""

ABANDONED = 5
"""Multiple of a lease's TTL after which it may be taken without being watched."""

POLL = 0.05
"""Seconds between checks of a file whose existence is the lock."""

NO_LOCK_ADVICE = "--no-lock (no_lock in Python) goes without it, if nothing else writes to the store"


class HeldLock(Protocol):
    """A lock held by this process."""

    def check(self) -> None:
        """
        Make sure that the lock is still held. Call this right before a commit.

        Raises
        ------
        StaleError
            If another writer may have worked on the store.
        StorageError
            If the lock cannot be read or renewed in storage.
        """


class Lockable(Protocol):
    """The attributes of `vczstore.stores.base.Store` from which its lock is derived."""

    @property
    def label(self) -> str: ...
    @property
    def place(self) -> str: ...
    @property
    def no_lock(self) -> bool: ...
    @property
    def folder(self) -> Path | None: ...
    @property
    def options(self) -> Mapping[str, Any]: ...
    @property
    def zarr_store(self) -> ZarrStore | None: ...


@contextmanager
def hold(store: Lockable, *, wait: bool = False, watch: bool = False) -> Iterator[HeldLock]:
    """
    Hold the lock of a store; see `Store.exclusive_lock`.

    A store in memory, or of a kind without a known location, has a lock within this process.
    """
    if store.no_lock:
        lock = unheld()
    elif store.folder is not None:
        lock = hold_file(store.label, lock_file(store.folder), wait)
    elif (lease := _lease_of(store)) is not None:
        lock = _hold_lease(lease, wait, watch)
    elif store.zarr_store is not None:
        lock = _hold_in_process(store.label, _identity(innermost(store.zarr_store)), wait)
    else:
        lock = unheld()
    with lock as held:
        yield held


_VERIFIED: set[Hashable] = set()
"""Repositories whose servers have been verified to honour conditional writes."""


def require_conditions(store: Lockable) -> None:
    """
    Verify that the server of a repository honours conditional writes, on which the exclusion of commits depends.

    This writes and deletes a probe object, once per process and repository. It requires obstore; without it, or with
    `no_lock`, the server is trusted.

    Raises
    ------
    StorageError
        If the server ignores the conditions of writes, or the probe cannot be written.
    """
    if store.no_lock or store.folder is not None or find_spec("obstore") is None:
        return
    objects, identity = _at_url(store), (store.label, repr(sorted(store.options.items())))
    if objects is None or identity in _VERIFIED:
        return
    import obstore

    probe = _Lease(store.label, objects, f"{LOCK}.{secrets.token_hex(8)}")
    try:
        if not probe._write(released=True) and (state := probe._read()) is not None:
            probe.version = state[1]  # the response was lost, and the client's retry met its first attempt
        probe._require_conditions()
    finally:
        with suppress(Exception):  # a leftover probe is not part of the repository
            obstore.delete(objects, probe.key)
    _VERIFIED.add(identity)


def _lease_of(store: Lockable) -> "_Lease | None":
    """Return the lease of a store; None for a store in memory, and a repository that was passed as an object."""
    if store.zarr_store is None:
        objects, key = _at_url(store), LOCK
    else:
        objects, key = _objects(store, innermost(store.zarr_store)), f"{SAMPLE_ID}/{LOCK}"
    return None if objects is None else _Lease(store.label, objects, key)


def _objects(store: Lockable, inner: Any) -> Any:
    """Return obstore's store for a VCZ on plain Zarr; None if it is in memory or of an unknown kind."""
    if isinstance(inner, ObjectStore):
        if type(inner.store).__name__ == "MemoryStore":
            return None
        return _at_url(store) or inner.store
    if type(inner).__name__ != "FsspecStore" or "memory" in protocols(inner):
        return None
    objects = _at_url(store)
    if objects is not None:
        return objects
    raise StorageError(
        f"{store.label}: an open store of fsspec cannot be locked, since fsspec has no conditional writes; give its "
        f"URL instead; {NO_LOCK_ADVICE}"
    )


def _at_url(store: Lockable) -> Any:
    """Return obstore's store for the URL of a store; None for local and open stores."""
    address = None if store.place.startswith("<") else parse(store.place)
    if address is None or address.path is not None:
        return None
    # after a TTL without success the lease is lost, so retrying longer is useless
    return object_store(address, store.options, patience=TTL)


def _identity(inner: Any) -> Hashable:
    """Key that identifies a store within this process."""
    if isinstance(inner, MemoryStore):
        return id(inner._store_dict)
    if isinstance(inner, ObjectStore):
        return id(inner.store)
    if type(inner).__name__ == "FsspecStore":
        return str(inner.path)
    return id(inner)


def _holder() -> dict[str, Any]:
    """Description of this process as lock holder, for other processes."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _now()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _parse(document: bytes) -> dict[str, Any]:
    """Decode the JSON object in a lock; empty if it is not valid."""
    try:
        lock = json.loads(document)
    except ValueError:
        return {}
    return lock if isinstance(lock, dict) else {}


def _who(lock: Mapping[str, Any]) -> tuple[str, str]:
    """Describe the holder of a lock, and since when it holds it: two texts for a message, the second may be empty."""
    who = f"process {lock['pid']} on {lock['host']}" if {"pid", "host"} <= lock.keys() else "another process"
    return who, f" since {str(lock['started']).partition('.')[0]} UTC" if "started" in lock else ""


def _busy(url: str, lock: Mapping[str, Any]) -> BusyError:
    who, since = _who(lock)
    return BusyError(
        f"{url} is busy: {who} works on it{since}; run this again when that is over; jobs can wait, with --if-busy wait"
    )


def holder(store: Lockable) -> tuple[str, str] | None:
    """
    Describe who holds the lock of a store, and since when, as `_who` does; None if it is free or cannot be read.

    Read-only, so that no write permission is needed. The lease of a killed holder counts as held for its TTL.
    """
    with suppress(OSError, VczstoreError):
        if store.folder is not None:
            return _holder_of_file(lock_file(store.folder))
        if (lease := _lease_of(store)) is not None:
            return _holder_of_lease(lease)
        if store.zarr_store is not None and _identity(innermost(store.zarr_store)) in _IN_USE:
            return _who({"pid": os.getpid(), "host": socket.gethostname()})
    return None


# ---- in this process ------------------------------------------------------------------------

_IN_USE: set[Hashable] = set()
_FREED = threading.Condition()


class _Unlosable:
    """A lock that cannot be lost: one within this process, or none at all."""

    def check(self) -> None:
        """No-op: it is held until it is released."""


def unheld() -> AbstractContextManager[HeldLock]:
    """Return a context in place of a lock, where none is needed."""
    return nullcontext(_Unlosable())


@contextmanager
def _hold_in_process(label: str, identity: Hashable, wait: bool) -> Iterator[HeldLock]:
    with _FREED:
        while identity in _IN_USE:
            if not wait:
                raise _busy(label, {"host": socket.gethostname(), "pid": os.getpid()})
            _FREED.wait()
        _IN_USE.add(identity)
    try:
        yield _Unlosable()
    finally:
        with _FREED:
            _IN_USE.discard(identity)
            _FREED.notify_all()


# ---- in a local folder ----------------------------------------------------------------------

_CANNOT_LOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""Errors of flock(2) on file systems without locks, such as Lustre without ``-o flock``."""


def lock_file(folder: Path) -> Path:
    """Path of the lock file of the store in a folder."""
    inner = folder / SAMPLE_ID
    return (inner if inner.is_dir() else folder) / LOCK


def carry(old: Path, new: Path) -> None:
    """
    Link the lock file of a store into the folder that is about to replace it.

    Processes that come after the exchange then find it locked. Where hard links are not supported, the file is moved:
    a process that locks the old folder just then loses the lock with the exchange, and its `check` fails.
    """
    path = lock_file(new)
    path.unlink(missing_ok=True)
    try:
        os.link(lock_file(old), path)
    except OSError:
        with suppress(FileNotFoundError):  # the store is not locked
            lock_file(old).rename(path)


@dataclass
class _LockedFile:
    """
    A lock file that this process holds.

    Attributes
    ----------
    path, file
        Path of the lock file, and its open descriptor.
    by_existence
        Whether the file's existence is the lock, rather than a lock of the kernel on it.
    """

    url: str
    path: Path
    file: int
    by_existence: bool = False
    ended: threading.Event = field(default_factory=threading.Event)
    touching: threading.Thread | None = None

    def check(self) -> None:
        """Raise a `StaleError` if the file was deleted or replaced, since others can then take the lock."""
        if not _is_at(self.file, self.path):
            raise StaleError(
                f"{self.url}: {self.path} was deleted while a job ran; nothing was committed, run it again"
            )

    def begin(self) -> None:
        """Write the holder's description, and start the heartbeat if the lock is the file's existence."""
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, json.dumps(_holder() | ({"made": True} if self.by_existence else {})).encode(), 0)
        if self.by_existence:
            self.touching = threading.Thread(target=self._touch, name=f"lock of {self.url}", daemon=True)
            self.touching.start()

    def end(self) -> None:
        """Stop the heartbeat, delete the file and release the lock."""
        self.ended.set()
        if self.touching is not None:
            self.touching.join()
        # before the lock is released: a waiter then gets a lock on a deleted file, notices, and creates another
        if _is_at(self.file, self.path):
            with suppress(OSError):
                self.path.unlink()
        os.close(self.file)

    def _touch(self) -> None:
        while not self.ended.wait(TTL / 3):
            with suppress(OSError):
                os.utime(self.file)


@contextmanager
def hold_file(label: str, path: Path, wait: bool) -> Iterator[HeldLock]:
    """
    Hold a lock file.

    Raises
    ------
    BusyError
        If it is held and `wait` is false; also if the file's existence is the lock, and its holder is dead.
    NotAStoreError
        If the parent folder does not exist.
    StorageError
        If the file cannot be created or locked.
    """
    watch = _HeartbeatWatch(label, path, wait)
    try:
        while (held := _try(label, path, wait)) is None:
            watch.look()
    except BlockingIOError:
        content = b""
        with suppress(FileNotFoundError):  # released just now
            content = path.read_bytes()
        raise _busy(label, _parse(content)) from None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotAStoreError(f"{label}: no such file or directory") from error
    except OSError as error:
        raise StorageError(
            f"{label}: cannot be locked with {path} ({error.strerror}); nothing was done; make it writable, or where "
            f"storage cannot lock: {NO_LOCK_ADVICE}"
        ) from error
    try:
        yield held
    finally:
        held.end()


def _try(label: str, path: Path, wait: bool) -> _LockedFile | None:
    """Try to take the lock; None if the file's existence is another process's lock, or the file was just deleted."""
    file, is_new = _open(path)
    is_locked = True
    try:
        is_locked = _flock(file, wait)
        is_held = _parse(os.pread(file, 4096, 0)).get("made") is True if is_locked else not is_new
        if _is_at(file, path) and not is_held:
            held = _LockedFile(label, path, file, by_existence=not is_locked)
            held.begin()
            return held
    except BaseException:
        if is_new and not is_locked:  # its existence would lock out others forever
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
    """Open a file, or create it; also return whether it was created."""
    while True:
        with suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW), False


def _flock(file: int, wait: bool, *, shared: bool = False) -> bool:
    """Lock an open file; return False where the file system has no locks."""
    import fcntl

    flags = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    pauses = iter(() if shared else (0.01, 0.05))  # `holder` locks the file for an instant
    while True:
        try:
            fcntl.flock(file, flags)
            return True
        except BlockingIOError:
            if (pause := next(pauses, None)) is None:
                raise
            time.sleep(pause)
        except OSError as error:
            if error.errno in _CANNOT_LOCK:
                return False
            raise


@dataclass
class _HeartbeatWatch:
    """Waits for a file whose existence is the lock: `seen` is its inode and mtime, unchanged `since` that time."""

    label: str
    path: Path
    wait: bool
    seen: tuple[int, int] | None = None
    since: float = 0.0

    def look(self) -> None:
        """Sleep for `POLL` seconds unless the file is gone; raise a `BusyError` if its holder died, or not `wait`."""
        try:
            status, lock = self.path.stat(), _parse(self.path.read_bytes())
        except FileNotFoundError:
            return
        state = (status.st_ino, status.st_mtime_ns)
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
    """Whether the holder was a process of this machine that no longer exists."""
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
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


# ---- in an object store ---------------------------------------------------------------------

type Version = dict[str, str]
"""ETag or version of an object, as obstore names them."""


@contextmanager
def _hold_lease(lease: "_Lease", wait: bool, watch: bool) -> Iterator[HeldLock]:
    try:
        lease.acquire(wait, watch)
        yield lease
    finally:
        lease.release()


@dataclass
class _Lease:
    """
    A lease object. This process holds it as long as no other process has written it.

    Attributes
    ----------
    objects, key
        The obstore store, and the key of the object in it.
    version
        Version of the object as this process last wrote it; empty before that.
    lost
        Whether another process has written or deleted the object since.
    """

    url: str
    objects: Any
    key: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    holder: dict[str, Any] = field(default_factory=_holder)
    version: Version = field(default_factory=dict)
    lost: bool = False
    renewal_lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)
    renewing: threading.Thread | None = None

    def acquire(self, wait: bool, watch: bool = False) -> None:
        """Acquire the lease, and start to renew it; the parameters and errors are those of `Store.exclusive_lock`."""
        seen: Version | None = None
        since = 0.0
        while True:
            state = self._read()
            if state is None:
                if self._write():
                    break
                continue
            lease, version, modified = state
            if lease.get("id") == self.id:
                # the response to our write was lost, and the client's retry met its first attempt
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
        """Renew the lease; raise a `StaleError` if another process has written it since."""
        self._renew()
        if self.lost:
            raise StaleError(
                f"{self.url}: its lock went to another job, or was deleted, while this job was suspended or cut off; "
                "nothing was committed, run it again"
            )

    def release(self) -> None:
        """Release the lease. Errors of the object store are ignored: the lease will expire."""
        self.ended.set()
        if self.renewing is not None:
            self.renewing.join()
        with suppress(StorageError):
            if self.version and not self.lost:
                self._write(over=self.version, released=True)

    def _keep(self) -> None:
        while not self.lost and not self.ended.wait(TTL / 3):
            with suppress(StorageError):  # it may be transient, and `check` fails if the lease is lost
                self._renew()

    def _renew(self) -> None:
        with self.renewal_lock:
            if self.lost or self._write(over=self.version):
                return
            state = self._read()
            if state is not None and state[0].get("id") == self.id:
                self.version = state[1]  # as in `acquire`
            else:
                self.lost = True

    def _read(self) -> tuple[dict[str, Any], Version, datetime] | None:
        """The lease, its version, and its modification time by the object store's clock; None if there is none."""
        import obstore

        try:
            result = obstore.get(self.objects, self.key)
            return _parse(bytes(result.bytes())), _version(result.meta), result.meta["last_modified"]
        except FileNotFoundError:
            return None
        except Exception as error:  # obstore's own errors, whose classes differ by version
            raise self._refused(error) from error

    def _require_conditions(self) -> None:
        """
        Verify that the server honours the conditions of writes; otherwise every process would get the lease.

        Raises
        ------
        StorageError
            If it ignores them.
        """
        for mode in ("create", {name: _NEVER[name] for name in self.version}):
            if self._put(mode) is not None:
                raise StorageError(
                    f"{self.url}: cannot be locked with {self.key}: its server ignores the conditions of writes "
                    f"({'If-None-Match' if mode == 'create' else 'If-Match'}), so that nothing can keep another "
                    f"writer out; nothing was done; {NO_LOCK_ADVICE}"
                )

    def _write(self, *, over: Version | None = None, released: bool = False) -> bool:
        """Create the lease, or replace version `over` of it; return False if another writer came first."""
        written = self._put("create" if over is None else over, released=released)
        if written is not None:
            self.version = _version(written)
        return written is not None

    def _put(self, mode: Any, *, released: bool = False) -> Any:
        """Write the lease in obstore's `mode`; return the result of the write, None if its condition was not met."""
        lease = {"id": self.id, **self.holder, "renewed": _now(), "ttl": TTL, "released": released}
        try:
            return put_conditionally(self.objects, self.key, json.dumps(lease).encode(), mode, patience=TTL)
        except Exception as error:  # obstore's own errors, whose classes differ by version
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> StorageError:
        # the query string may contain a token
        text = re.sub(r"\?\S*", "", reason(error))
        return StorageError(
            f"{self.url}: cannot be locked with {self.key} ({text}); nothing was done; make that object readable "
            f"and writable; {NO_LOCK_ADVICE}"
        )


def _holder_of_lease(lease: _Lease) -> tuple[str, str] | None:
    if (state := lease._read()) is None:
        return None
    lock, _, modified = state
    age = (datetime.now(UTC) - modified).total_seconds()
    return None if lock.get("released") or age > _ttl(lock) else _who(lock)


def _ttl(lock: Mapping[str, Any]) -> float:
    """The TTL in seconds that a lease states, `TTL` if it states none."""
    return lock["ttl"] if isinstance(lock.get("ttl"), int | float) else TTL


_NEVER = {"e_tag": '"0"', "version": "1"}
"""Versions that no object has."""


def _version(meta: Mapping[str, Any]) -> Version:
    """The generation, where the object store has them, and the ETag. obstore does not accept None for a missing one."""
    return {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}
