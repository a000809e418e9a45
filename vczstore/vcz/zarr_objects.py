"""Read, write, list and claim the objects of a Zarr store by key, many concurrently."""

import errno
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from zarr.abc.buffer import Buffer
from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype
from zarr.core.common import concurrent_map
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore, ObjectStore, ZipStore

type Document = dict[str, Any]
"""A metadata document: a ``zarr.json``, or a ``.zarray`` as stored."""

type Encoded = Buffer | None
"""The bytes of a chunk, None for an absent chunk."""

CONCURRENCY = 32
"""The number of requests that one task keeps in flight on an asynchronous store."""

NONCE = ".vczstore-nonce-"
"""Name prefix of objects by which tasks prove that they can reach a store; killed runs leave one behind."""

LOCK = ".vczstore-job.lock"
"""Name of the lock of a store, held by the process that writes to it; like `COMMIT_LOCK`, not part of its data."""

COMMIT_LOCK = ".vczstore-commit.lock"
"""Name of the lock of a local Icechunk repository, held by the process that commits to it."""

NO_METADATA = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""Exceptions that zarr and json raise for invalid metadata documents; the last if nested too deeply."""


def place(store: Store) -> str:
    """
    The name of a Zarr store in messages: its path or URL, or else its class.

    ``str`` is not called on Icechunk's stores: it waits for concurrent writes of the session without releasing the
    GIL, which is a deadlock.
    """
    if type(store).__module__.partition(".")[0] == "icechunk":
        return f"<{type(store).__name__}>"
    text = str(store)
    return text.removeprefix("file://") if "://" in text else f"<{type(store).__name__}>"


def link_file(source: str, target: str) -> None:
    """Hard-link a file, or copy it where links are not possible. An existing target is left unchanged."""
    try:
        os.link(source, target)
    except FileExistsError:
        return  # an earlier attempt of the same task made it
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with _replacing(target) as partial:
            shutil.copy2(source, partial, follow_symlinks=False)


_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EMLINK, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of hard links: another or no supporting file system, too many links, or a file of another user."""


def wait_for[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in zarr's event loop, and return its result."""
    return sync(coroutine)


def get_many(store: Store, keys: Sequence[str]) -> list[Buffer | None]:
    """Read several objects, at most `CONCURRENCY` at a time; None for each that does not exist."""
    prototype = default_buffer_prototype()
    if isinstance(store, LocalStore | MemoryStore):  # without zarr's event loop, which is twice as fast on a disk
        return [store.get_sync(key, prototype=prototype) for key in keys]
    return sync(concurrent_map([(key, prototype) for key in keys], store.get, CONCURRENCY))


def set_many(store: Store, items: Sequence[tuple[str, Buffer | None]]) -> None:
    """Write several objects, at most `CONCURRENCY` at a time; delete those that are None."""
    if isinstance(store, LocalStore | MemoryStore):
        for key, value in items:
            if value is None:
                store.delete_sync(key)
            elif type(store) is LocalStore and not store.read_only:
                put_file(os.path.join(store.root, key), value)
            else:
                store.set_sync(key, value)
        return

    async def put(key: str, value: Buffer | None) -> None:
        if value is None:
            with suppress(FileNotFoundError):  # which only fsspec raises
                await store.delete(key)
        else:
            await store.set(key, value)

    sync(concurrent_map(items, put, CONCURRENCY))


def put_file(path: str, value: Buffer) -> None:
    """Write a file atomically under a temporary name, and create missing folders; twice as fast as zarr."""
    with _replacing(path) as partial:
        try:
            file = open(partial, "xb")  # noqa: SIM115
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = open(partial, "xb")  # noqa: SIM115
        with file:
            file.write(value.as_buffer_like())


@contextmanager
def _replacing(path: str) -> Iterator[str]:
    """Yield a temporary name for a file that replaces `path`; after an error, it is deleted instead."""
    partial = f"{path}.{uuid.uuid4().hex}.partial"
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


_DOCUMENTS = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")


class RegularLocalStore(LocalStore):
    """
    A local folder in which only regular files are read: reading a pipe would block, a device might never end.

    Files are read and written as zarr does, but without `pathlib`, which takes as long as the file system.
    """

    def get_sync(self, key: str, **options: Any) -> Buffer | None:
        """Read a file."""
        if options.get("byte_range") is not None:
            self._require_file(key)
            return super().get_sync(key, **options)
        self._ensure_open_sync()
        value = read_file(self.root, key)
        prototype = options.get("prototype") or default_buffer_prototype()
        return None if value is None else prototype.buffer.from_bytes(value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write a file."""
        self._ensure_open_sync()
        self._check_writable()
        put_file(os.path.join(self.root, key), value)

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Buffer | None:
        """Read a file; a metadata document in the calling thread, as a switch takes longer than the read."""
        if byte_range is None and key.rpartition("/")[2] in _DOCUMENTS:
            return self.get_sync(key, prototype=prototype)
        self._require_file(key)
        return await super().get(key, prototype, byte_range)

    def _require_file(self, key: str) -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            _is_file(os.path.join(self.root, key), key)


def _is_file(path: str, key: str) -> bool:
    """Whether a path is a regular file rather than a folder; raise an `OSError` if it is neither, or missing."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(f"{key} is a pipe or a device, where there should be a file")
    return stat.S_ISREG(mode)


def stored_bytes(store: Store) -> int | None:
    """The total size in bytes of the objects of a local or memory store; None for others, where it takes a listing."""
    return sync(store.getsize_prefix("")) if isinstance(store, LocalStore | MemoryStore) else None


@runtime_checkable
class Listed(Protocol):
    """A store that lists its own objects."""

    def entries(self) -> Iterator[tuple[str, object, object]]:
        """Yield the key, size and version (such as a modification time or entity tag) of every object."""


def reading(store: Store) -> Store:
    """Return a read-only view of the store; a zip store is returned unchanged, as it has no such view."""
    return store if store.read_only or isinstance(store, ZipStore) else store.with_read_only(True)


def fingerprint(store: Store) -> str:
    """
    Return a digest that changes when any object of a store does. Objects are not read, except in memory stores.

    It is computed from keys, sizes and, where available, modification times or entity tags. Locks are left out.
    """
    digest = hashlib.blake2b(digest_size=16)
    for entry in sorted(_entries(store)):
        if not is_lock(entry[0]):
            digest.update(repr(entry).encode())
    return digest.hexdigest()


def is_lock(key: str) -> bool:
    """Whether a key is that of a lock or nonce, in the root or one folder below: not part of the store's data."""
    name = key.rpartition("/")[2]
    return key.count("/") <= 1 and (name in (LOCK, COMMIT_LOCK) or name.startswith(NONCE))


def _files(root: Path) -> Iterator[tuple[str, object, object]]:
    """Yield the path, size and mtime of files below a folder, except locks, which other writers create and delete."""
    top = os.fspath(root)
    for folder, _, files in os.walk(top):
        below = os.path.relpath(folder, top).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        for file in files:
            if not is_lock(prefix + file):
                status = os.stat(os.path.join(folder, file))
                yield prefix + file, status.st_size, status.st_mtime_ns


def _entries(store: Store) -> Iterator[tuple[str, object, object]]:
    match store:
        case Listed():
            yield from store.entries()
        case ZipStore(path=Path() as path):
            status = path.stat()
            yield "", status.st_size, status.st_mtime_ns
        case LocalStore():
            yield from _files(store.root)
        case ObjectStore():
            for batch in store.store.list():
                for entry in batch:
                    yield entry["path"], entry["size"], entry["e_tag"] or str(entry["last_modified"])
        case _:

            async def keys() -> list[str]:
                return [key async for key in store.list()]

            for key in sync(keys()):
                if isinstance(store, MemoryStore):
                    (value,) = get_many(store, [key])
                    yield key, None if value is None else hashlib.blake2b(value.to_bytes()).hexdigest(), None
                else:
                    yield key, sync(store.getsize(key)), None


def names(store: Store, folder: str = "") -> set[str]:
    """The names of the objects and folders at the top of a store, or of a folder in it."""

    async def collect() -> set[str]:
        return {name async for name in store.list_dir(folder)}

    return sync(collect())


def read_file(folder: str | Path, name: str) -> bytes | None:
    """Read a regular file, None if it does not exist or is a folder."""
    path = os.path.join(folder, name)
    with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
        if _is_file(path, name):
            with open(path, "rb", buffering=0) as file:
                return file.readall()
    return None


def claim(store: Store, key: str) -> bool:
    """Create an object unless it exists; return whether this call created it, which is true for one caller only."""
    token = default_buffer_prototype().buffer.from_bytes(uuid.uuid4().hex.encode())
    sync(store.set_if_not_exists(key, token))
    (stored,) = get_many(store, [key])
    return stored is not None and stored.to_bytes() == token.to_bytes()


def clear(store: Store, path: str = "") -> None:
    """Delete all objects of a store, or those below a path."""
    sync(store.delete_dir(path) if path else store.clear())


def read_json(store: Store, key: str) -> Document | None:
    """Read a metadata document, None if there is none."""
    (value,) = get_many(store, [key])
    return None if value is None else json.loads(value.to_bytes())


def write_json(store: Store, key: str, document: Document) -> None:
    """Write a metadata document."""
    value = default_buffer_prototype().buffer.from_bytes(json.dumps(document, indent=2).encode())
    set_many(store, [(key, value)])
