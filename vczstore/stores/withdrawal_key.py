"""
The key with which the IDs of withdrawn samples are hashed. Without it, hashes cannot be compared with IDs.

It comes from the environment or from a file or object beside the store, so that a copy of the store does not include
it. For open stores, and stores that fill a whole bucket, no location beside the store is known.
"""

import os
import re
import secrets
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zarr.abc.store import Store as ZarrStore

from vczstore.errors import ConflictError, OptionError, StorageError, VczstoreError
from vczstore.stores.base import Store
from vczstore.stores.locations import OBJECT_STORES, Address, parse
from vczstore.stores.object_store import is_of_storage, open_folder_of, put_conditionally, reason, require

VARIABLE = "VCZSTORE_WITHDRAWAL_KEY"
SUFFIX = ".withdrawal-key"
MIN_LENGTH = 32
"""Minimum length of a key in characters, that of 16 random bytes in hexadecimal."""
_UNFINISHED = 3600
"""Age in seconds at which a temporary file is considered left by a killed writer."""
_ATTEMPTS = 3


def from_environment() -> str | None:
    """
    Return the key from the environment; None if it is not set.

    Raises
    ------
    OptionError
        If it is too short.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if text and len(text) < MIN_LENGTH:
        raise OptionError(
            f"{VARIABLE} has {len(text)} characters; give {MIN_LENGTH} random ones or more, as by openssl rand -hex 32"
        )
    return text or None


_new_keys = dict[int | str, str]()


def new_key(store: Store) -> str:
    """
    Return a new random key for a store without one; the same on each call, since a job uses it before it is written.

    All groups of a repository have the same key, since several may be edited in one commit.
    """
    identity = store.place if store.group else id(store)
    if identity not in _new_keys:
        _new_keys[identity] = secrets.token_hex(32)
        if not store.group:
            weakref.finalize(store, _new_keys.pop, identity, None)
    return _new_keys[identity]


@dataclass(frozen=True)
class KeyPlace:
    """
    Location of a store's key: a file or object beside the store.

    Attributes
    ----------
    path
        Path of the file; None in an object store.
    address, options
        Address of the object, and its storage options.
    """

    path: Path | None
    address: Address | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store) -> "KeyPlace | None":
        """Return the location for a store; None if none is known."""
        if (folder := store.folder) is not None:
            return cls(folder.with_name(folder.name + SUFFIX)) if folder.name else None
        if store.label.startswith("<"):
            return None
        address = parse(store.place)
        if address.path is not None:  # the folder does not exist yet
            folder = Path(os.path.realpath(address.path))
            return cls(folder.with_name(folder.name + SUFFIX))
        if address.kind not in OBJECT_STORES or not address.key:
            return None
        return cls(None, replace(address, key=address.key + SUFFIX), store.options)

    def __str__(self) -> str:
        return str(self.path) if self.address is None else self.address.url

    def read(self) -> str | None:
        """
        Read the key; None if there is none.

        Raises
        ------
        StorageError
            If it cannot be read, or is too short.
        """
        try:
            if self.path is not None:
                key = self.path.read_text(encoding="utf-8").strip()
            else:
                result = require("obstore", "obstore").get(*self._in_object_store())
                key = bytes(result.bytes()).decode().strip()
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failure("read", error) from error
        if len(key) < MIN_LENGTH:
            raise StorageError(
                f"{self}: the key of withdrawn samples has {len(key)} characters, {MIN_LENGTH} or more expected; put a "
                f"copy of the key there, or delete it if no sample was removed from the store yet, or set {VARIABLE}"
            )
        return key

    def create(self, key: str) -> None:
        """
        Write the key atomically if none exists.

        Raises
        ------
        ConflictError
            If another writer has created a different key in the meantime.
        StorageError
            If it cannot be written.
        """
        try:
            is_ours = self._create(f"{key}\n")
        except Exception as error:
            raise self._failure("written", error) from error
        if not is_ours and self.read() != key:
            raise ConflictError(f"{self}: another writer has made a key meanwhile; run this again")

    def _create(self, text: str) -> bool:
        """Write the key; return False if one exists."""
        if self.path is None:
            folder, name = self._in_object_store()
            return put_conditionally(folder, name, text.encode(), "create") is not None
        try:
            _create_file(self.path, text)
        except FileExistsError:
            return False
        return True

    def _in_object_store(self) -> tuple[Any, str]:
        """Store opened by obstore for the parent folder, and the key's name in it."""
        assert self.address is not None
        return open_folder_of(self.address, self.options)

    def _failure(self, what: str, error: Exception) -> Exception:
        if isinstance(error, VczstoreError):  # obstore is not installed
            return type(error)(f"{self}: the key of withdrawn samples cannot be {what}: {error}, or set {VARIABLE}")
        if not is_of_storage(error):
            return error
        return StorageError(
            f"{self}: the key of withdrawn samples cannot be {what} ({reason(error)}); fix that, or set {VARIABLE}"
        )


def delete_unfinished_keys(folder: Path | None) -> None:
    """
    Delete the temporary files of killed writers of a store's key.

    This takes no lock, so recent files, which may be in use, are kept, and so are those owned by other users.
    """
    if folder is None:
        return
    name = re.compile(re.escape(folder.name + SUFFIX) + r"\.[0-9a-f]{16}")
    with suppress(OSError):
        for path in folder.parent.iterdir():
            with suppress(OSError):  # such as in a folder with the sticky bit
                if name.fullmatch(path.name) and path.stat().st_mtime < time.time() - _UNFINISHED:
                    path.unlink()


def _create_file(path: Path, text: str) -> None:
    """Create a file atomically with its content, readable only by its owner; `FileExistsError` if one exists."""
    for _ in range(_ATTEMPTS - 1):
        with suppress(FileNotFoundError):  # another process has deleted the temporary file
            return _create_once(path, text)
    return _create_once(path, text)


def _create_once(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        _fill(temporary, text)
        try:
            os.link(temporary, path)
        except (FileExistsError, FileNotFoundError):
            raise
        except OSError:  # hard links are not supported
            _claim(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _claim(temporary: Path, path: Path) -> None:
    """Rename a file to an unused name: an empty file reserves the name, and is then replaced atomically."""
    _fill(path, "")
    try:
        temporary.replace(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _fill(path: Path, text: str) -> None:
    """Create a file readable only by its owner, and flush it to disk; delete it on failure."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class CreateKey:
    """Create a store's key, before the store contains anything that depends on it."""

    place: KeyPlace
    key: str = field(repr=False)

    def apply(self, store: ZarrStore) -> None:
        """Write the key if none exists."""
        self.place.create(self.key)
