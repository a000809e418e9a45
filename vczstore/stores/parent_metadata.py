"""
Groups above a store whose consolidated metadata contain a copy of the store's metadata.

A group's consolidated metadata include all nodes below it. Readers that open such a group get the shapes of a contained
store from that copy, and would see outdated samples. For local stores the copy is kept up to date; in object stores
parent groups are not looked for.
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
"""Seconds to wait for the lock of a group."""
CANNOT_LOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF)
"""Errors of file systems without locks; NFS requires write access to lock a file."""

_COMPARED = ("shape", "attributes", "chunks", "chunk_grid", "dtype", "data_type")
"""Members of an array's document that readers of chunks need; writers differ in how they write the others."""


@dataclass(frozen=True)
class Parent:
    """
    A group above a store, whose consolidated metadata include the store.

    Attributes
    ----------
    folder
        Folder of the group.
    path
        Path of the store within the group.
    key
        Key of the document with the copy.
    """

    folder: Path
    path: str
    key: str

    @property
    def _store(self) -> LocalStore:
        return LocalStore(self.folder)

    def refreshed(self, vcz: Vcz) -> tuple[Document, bool]:
        """Return the up-to-date document, and whether the stored one differs from it in relevant members."""
        document = zarr_objects.read_json(self._store, self.key) or {}
        inner = document["consolidated_metadata"] if self.key == "zarr.json" else document
        stored: Mapping[str, Any] = inner["metadata"]
        fresh = {key: doc for key, doc in self._documents(vcz, stored).items() if doc is not None}
        rest = {key: value for key, value in stored.items() if not self._is_within(key)}
        differs = {key for key in stored if self._is_within(key)} != fresh.keys() or any(
            stored[key].get(name) != fresh[key].get(name) for key in fresh for name in _names(key, fresh[key])
        )
        inner = {**inner, "metadata": {**rest, **fresh}}
        return ({**document, "consolidated_metadata": inner} if self.key == "zarr.json" else inner), differs

    def refresh(self, vcz: Vcz) -> None:
        """Update the copy if it is stale. Stores of the same group do so one at a time."""
        with self._locked():
            document, differs = self.refreshed(vcz)
            if differs:
                zarr_objects.write_json(self._store, self.key, document)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """
        Lock the folder itself, for milliseconds, so that no lock file appears among the files of the group.

        Where the file system has no locks, concurrent updates of two stores may lose one: `stale` detects that, and a
        repair corrects it.
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
        documents = {path: zarr_objects.read_json(read, f"{path}/zarr.json") for path in (*groups, *members)}
        for path in groups:  # consolidated metadata of inner groups are not repeated in the copy
            own = documents[path] or {}
            documents[path] = {**stored.get(path, own), "attributes": own.get("attributes", {})}
        return documents


def _names(key: str, document: Document) -> tuple[str, ...]:
    return tuple(document) if key.endswith((".zattrs", ".zgroup")) else _COMPARED


def parents(store: Store) -> Iterator[Parent]:
    """
    Yield the groups above a store that have a copy of its metadata, innermost first, up to the first non-group.

    There are none if it is not in a local folder.
    """
    folder = folder_behind(store)
    if folder is None:
        return
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


def require_writable(vcz: Vcz) -> None:
    """
    Check, before anything is written, that the copies of a store's metadata can be updated.

    Raises
    ------
    StorageError
        If the copy in a group is not writable.
    """
    for parent in parents(vcz.store):
        places = (parent.folder / parent.key, parent.folder)
        if not all(os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids) for place in places):
            raise StorageError(
                f"{vcz.label}: the group {parent.folder} has a copy of its metadata that is not writable, "
                f"and readers of the group would not see the change; make {parent.key} there writable"
            )


def follow(store: Store) -> None:
    """Update the copies of a store's metadata in the groups above it."""
    for parent in list(parents(store)):
        parent.refresh(Vcz.read(store, parent.path))


def stale(vcz: Vcz) -> list[Path]:
    """Folders of the groups above a store whose copies of its metadata are stale."""
    return [parent.folder for parent in parents(vcz.store) if parent.refreshed(vcz)[1]]
