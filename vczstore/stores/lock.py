"""
The lock of a store: it keeps two jobs on the same store apart.

On this machine the kernel holds it, on a file beside the store, and frees it when its holder dies. In an object store
it is a lease: an object beside the store that its holder renews as long as they live. Only conditional writes touch
it, so that of several who want it exactly one gets it:

    free ----------- create, or update of a released lease -----> held
    held ----------- its holder renews it every TTL / 3 --------> held
    held ----------- not renewed for a TTL: whoever waits ------> held by another; the old holder's `check` fails
    held ----------- its holder updates it: "released" ---------> free

Whoever waits, or watches, sees on their own clock that a lease is not renewed; no two clocks are compared. Whoever does
neither takes a lease only when it is long `ABANDONED`, by the object store's clock and their own.

A holder who was suspended for longer than a TTL, or is robbed by somebody whose clock is wrong by minutes, finds out at
`check`, before the commit. On Icechunk that keeps the store whole. On plain Zarr it cannot undo the chunks that such a
holder wrote after the other job had begun.
"""

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from vczstore.errors import BusyError, NotAStoreError, StaleError, StorageError
from vczstore.locations import Location, parse, real_path
from vczstore.stores import Place
from vczstore.stores.objects import BACKOFF, object_store

SUFFIX = ".vczstore-job.lock"
"""Of the lock's name, after the store's. Beside the store: within, it would be an unknown member of a Zarr group."""

TTL = 60.0
"""How many seconds a lease lives without being renewed."""

ABANDONED = 5
"""After how many times its TTL a lease may be taken without watching it first."""


class JobLock(Protocol):
    """A lock that is held."""

    def check(self) -> None:
        """
        Make sure that it is still held; to be called right before a commit.

        Raises
        ------
        StaleError
            If somebody else may have worked on the store.
        StorageError
            If storage does not say.
        """


@contextmanager
def job_lock(url: str, storage_options: Mapping[str, Any], *, wait: bool, watch: bool = False) -> Iterator[JobLock]:
    """
    Hold the lock of the store at a path or URL. There need not be a store yet.

    Parameters
    ----------
    url, storage_options
        Where the store is; a URL is opened with obstore.
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
        If storage does not let it be held.
    NotAStoreError
        If the folder of a local store does not exist.
    OptionError
        If the options do not fit the place.
    MissingDependencyError
        If obstore is not installed.
    """
    location = parse(url)
    if location.path is not None:
        with _hold_file(url, real_path(location.path), wait) as held:
            yield held
        return
    lease = _Lease.beside(location, storage_options)
    try:
        lease.acquire(wait, watch)
        yield lease
    finally:
        lease.release()


@contextmanager
def hold(
    store: Place, options: Mapping[str, Any] | None, *, wait: bool = False, watch: bool = False
) -> Iterator[JobLock | None]:
    """Hold the lock of a store as `job_lock` does; None where there is no place for one: a store that is open."""
    if not isinstance(store, str | os.PathLike):
        yield None
        return
    with job_lock(os.fspath(store), options or {}, wait=wait, watch=watch) as lock:
        yield lock


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


def _busy(url: str, lock: Mapping[str, Any]) -> BusyError:
    who = f"process {lock['pid']} on {lock['host']}" if {"pid", "host"} <= lock.keys() else "another process"
    since = f" since {str(lock['started']).partition('.')[0]} UTC" if "started" in lock else ""
    return BusyError(
        f"{url} is busy: {who} works on it{since}; run this again when that is over; jobs can wait, with --if-busy wait"
    )


# ---- on this machine ------------------------------------------------------------------------


@dataclass(frozen=True)
class _LockedFile:
    """A file that the kernel has locked for us."""

    url: str
    path: Path
    file: int

    def check(self) -> None:
        """Whoever deletes the file lets others in."""
        if not _is_at(self.file, self.path):
            raise StaleError(
                f"{self.url}: {self.path} was deleted while a job ran; nothing was committed, run it again"
            )


@contextmanager
def _hold_file(url: str, path: Path, wait: bool) -> Iterator[_LockedFile]:
    place = path.with_name(f".{path.name}{SUFFIX}")
    try:
        file = _open_locked(place, wait)
    except BlockingIOError:
        said = b""
        with suppress(FileNotFoundError):  # it has just been freed
            said = place.read_bytes()
        raise _busy(url, _parse(said)) from None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotAStoreError(f"{url}: no such file or directory") from error
    except OSError as error:
        raise StorageError(f"{url}: cannot be locked with {place} ({error.strerror})") from error
    try:
        yield _LockedFile(url, place, file)
    finally:
        # before it is freed: who waits for it has it open, finds out that it is gone, and makes another
        if _is_at(file, place):
            with suppress(OSError):
                place.unlink()
        os.close(file)


def _open_locked(place: Path, wait: bool) -> int:
    # not filelock: where it cannot lock, it takes a file's existence for a lock, which outlives its holder
    import fcntl

    while True:
        file = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, place):
                os.ftruncate(file, 0)
                os.pwrite(file, json.dumps(_holder()).encode(), 0)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its holder deleted it meanwhile: it keeps nobody out any more


def _is_at(file: int, place: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.stat(place), os.fstat(file))
    except FileNotFoundError:
        return False


# ---- in an object store ---------------------------------------------------------------------

type Version = dict[str, str]
"""What tells one state of an object from all others, in obstore's words."""


@dataclass
class _Lease:
    """An object that says who works on a store. It is ours while nobody else has written to it."""

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

    @classmethod
    def beside(cls, location: Location, options: Mapping[str, Any]) -> "_Lease":
        """The lease of the store at a place. The lease of a whole bucket is within it."""
        parent, _, name = location.key.rpartition("/")
        # who does not get through for a TTL has lost the lease: no use in trying longer
        objects = object_store(replace(location, key=parent), options, patience=TTL)
        return cls(location.url, objects, f"{name}{SUFFIX}")

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
            ttl = lease["ttl"] if isinstance(lease.get("ttl"), int | float) else TTL
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
        self.renewing = threading.Thread(target=self._keep, name=f"lease of {self.url}", daemon=True)
        self.renewing.start()

    def check(self) -> None:
        """Renew it: that it succeeds says that nobody else has got it since."""
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

    def _write(self, *, over: Version | None = None, released: bool = False) -> bool:
        """Create the lease, or write over a version of it; False if somebody else was quicker."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, GenericError, PreconditionError

        lease = {"id": self.id, **self.holder, "renewed": _now(), "ttl": TTL, "released": released}
        mode = "create" if over is None else over
        until, pause = time.monotonic() + TTL, BACKOFF[0]
        while True:
            try:
                written = obstore.put(self.objects, self.key, json.dumps(lease).encode(), mode=mode)
            except (AlreadyExistsError, PreconditionError):
                return False
            except Exception as error:
                # obstore makes no conditional write again that was cut off: it may have taken effect. If it has,
                # the next finds our own ID there
                if not isinstance(error, GenericError) or time.monotonic() + pause > until:
                    raise self._refused(error) from error
                time.sleep(pause)
                pause = min(2 * pause, BACKOFF[1])
                continue
            self.version = _version(written)
            return True

    def _refused(self, error: Exception) -> StorageError:
        # a query may carry a token
        reason = re.sub(r"\?\S*", "", str(error).splitlines()[0])
        return StorageError(f"{self.url}: cannot be locked with {self.key} ({reason})")


def _version(meta: Mapping[str, Any]) -> Version:
    """A generation where the object store has them, else an ETag. obstore takes no None for what is not there."""
    return {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}
