"""
Groups that a store lies in, and that keep a copy of its metadata.

zarr's consolidated metadata of a group tell of all below it. A reader who opens such a group reads the shapes of a
store within from that copy, and so the samples as they were. On this machine the copy follows the store; above a prefix
of an object store nothing is looked for.
"""

import errno
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zarr.abc.store import Store
from zarr.storage import LocalStore

from vczstore.errors import StorageError
from vczstore.stores.folders import folder_behind
from vczstore.vcz import zarr_objects
from vczstore.vcz.model import Vcz
from vczstore.vcz.zarr_objects import Document

PATIENCE = 60.0
"""Seconds that a group is waited for."""
CANNOT_LOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF)
"""What file systems say that have no locks; NFS wants to write to what it locks."""

_TOLD = ("shape", "attributes", "chunks", "chunk_grid", "dtype", "data_type")
"""What of an array's document a reader of chunks needs; how the rest is written differs between writers."""


@dataclass(frozen=True)
class Parent:
    """
    A group above a store, with consolidated metadata that tell of the store.

    Attributes
    ----------
    folder
        The group.
    path
        Of the store within it.
    key
        The object that holds the copy.
    """

    folder: Path
    path: str
    key: str

    @property
    def _store(self) -> LocalStore:
        return LocalStore(self.folder)

    def refreshed(self, vcz: Vcz) -> tuple[Document, bool]:
        """The object as it should be, and whether it differs from what it is in anything that matters."""
        document = zarr_objects.read_json(self._store, self.key) or {}
        inner = document["consolidated_metadata"] if self.key == "zarr.json" else document
        stored: Mapping[str, Any] = inner["metadata"]
        fresh = {key: found for key, found in self._documents(vcz, stored).items() if found is not None}
        rest = {key: value for key, value in stored.items() if not self._is_within(key)}
        differs = {key for key in stored if self._is_within(key)} != fresh.keys() or any(
            stored[key].get(name) != fresh[key].get(name) for key in fresh for name in _names(key, fresh[key])
        )
        inner = {**inner, "metadata": {**rest, **fresh}}
        return ({**document, "consolidated_metadata": inner} if self.key == "zarr.json" else inner), differs

    def refresh(self, vcz: Vcz) -> None:
        """Let the copy be what the store is. Of stores in one group, one after the other does so."""
        with self._locked():
            document, differs = self.refreshed(vcz)
            if differs:
                zarr_objects.write_json(self._store, self.key, document)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """
        Hold a lock of the folder itself, beside whose files none of ours belongs; each is held for milliseconds.

        Where a file system has no locks, of two stores one may be told of as it was: `stale` names it, and a repair
        mends it.
        """
        import fcntl

        folder, until = os.open(self.folder, os.O_RDONLY), time.monotonic() + PATIENCE
        try:
            while True:
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > until:
                        raise StorageError(
                            f"{self.folder / self.key}: another process has held the group for {PATIENCE:.0f} s; the "
                            "store is written, its copy there is out of date: vczstore repair "
                            f"{self.folder / self.path}"
                        ) from error
                    time.sleep(0.01)
                except OSError as error:
                    if error.errno not in CANNOT_LOCK:
                        raise
                    break
            yield
        finally:
            os.close(folder)

    def _is_within(self, key: str) -> bool:
        return key == self.path or key.startswith(f"{self.path}/")

    def _documents(self, vcz: Vcz, stored: Mapping[str, Any]) -> dict[str, Document | None]:
        groups = [self.path, *(f"{self.path}/{name}" for name in vcz.groups)]
        members = [f"{self.path}/{name}" for name in (*vcz.arrays, *vcz.inner)]
        read = self._store
        if self.key == ".zmetadata":
            names = [*(f"{g}/.zgroup" for g in groups), *(f"{a}/.zarray" for a in members)]
            names += [f"{path}/.zattrs" for path in (*groups, *members)]
            return {name: zarr_objects.read_json(read, name) for name in names}
        found = {path: zarr_objects.read_json(read, f"{path}/zarr.json") for path in (*groups, *members)}
        for path in groups:  # their own copies are not repeated in the one above
            own = found[path] or {}
            found[path] = {**stored.get(path, own), "attributes": own.get("attributes", {})}
        return found


def _names(key: str, document: Document) -> tuple[str, ...]:
    return tuple(document) if key.endswith((".zattrs", ".zgroup")) else _TOLD


def parents(folder: Path) -> Iterator[Parent]:
    """The groups above a folder that keep a copy of its metadata, the nearest first."""
    above = folder.parent
    while above != above.parent:
        keys = [key for key in ("zarr.json", ".zmetadata") if (above / key).is_file()]
        if not keys and not (above / ".zgroup").is_file():
            return
        path = folder.relative_to(above).as_posix()
        for key in keys:
            try:
                document: Any = zarr_objects.read_json(LocalStore(above), key) or {}
                inner = document.get("consolidated_metadata") if key == "zarr.json" else document
                dict((inner or {}).get("metadata", {}))
            except (ValueError, AttributeError, TypeError) as error:
                raise StorageError(
                    f"{above / key}: the metadata of a group above the store cannot be read; repair or delete it"
                ) from error
            if any(k == path or k.startswith(f"{path}/") for k in (inner or {}).get("metadata", {})):
                yield Parent(above, path, key)
        above = above.parent


def of(store: Store) -> list[Parent]:
    """The same of a store; none where it is in no folder of this machine."""
    folder = folder_behind(store)
    return [] if folder is None else list(parents(folder))


def require_writable(vcz: Vcz) -> None:
    """
    Check before anything is written that the copies above a store can follow it.

    Raises
    ------
    StorageError
        Naming the group whose copy may not be written.
    """
    for parent in of(vcz.store):
        places = (parent.folder / parent.key, parent.folder)
        if not all(os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids) for place in places):
            raise StorageError(
                f"{vcz.label}: the group {parent.folder} keeps a copy of its metadata, which may not be written to, "
                f"and readers of the group would see the samples as they are now; let {parent.key} there be written"
            )


def follow(store: Store) -> None:
    """Let the copies above a store be what the store is."""
    for parent in of(store):
        parent.refresh(Vcz.read(store, parent.path))


def stale(vcz: Vcz) -> list[Path]:
    """The groups above a store whose copies tell of it as it was."""
    return [parent.folder for parent in of(vcz.store) if parent.refreshed(vcz)[1]]
