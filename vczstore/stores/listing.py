"""Listing and reading of all objects under a store's prefix, referenced or not."""

import os
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import batched
from pathlib import Path
from typing import Any, NamedTuple

from vczstore.errors import NotAStoreError, OptionError, StaleError, StorageError
from vczstore.stores.base import Location
from vczstore.stores.locations import parse
from vczstore.stores.object_store import object_store, require
from vczstore.vcz.zarr_objects import is_lock

READS_AT_ONCE = 8
"""Objects read concurrently, and held in memory."""


class Object(NamedTuple):
    """An object: its key relative to the prefix, its content, and its version if the object store has versions."""

    key: str
    data: bytes
    version: str | None


@dataclass(frozen=True)
class Objects:
    """
    All objects below a prefix.

    Attributes
    ----------
    url
        Name of the location in messages.
    kind
        ``s3``, ``gs``, ``az`` or another URL scheme; None for a local folder.
    root
        Path of the folder, or obstore's store of the prefix.
    """

    url: str
    kind: str | None
    root: Any

    @classmethod
    def at(cls, location: Location, options: Mapping[str, Any]) -> "Objects":
        """
        Open the location at a path or URL.

        Raises
        ------
        OptionError
            If the location is neither: an open store does not expose where its objects are.
        NotAStoreError
            If the folder does not exist.
        MissingDependencyError
            If obstore is required, and not installed.
        """
        if not isinstance(location, str | os.PathLike):
            raise OptionError(
                "verify-removal: every object of the store has to be listed, which requires a path or URL, not a "
                f"{type(location).__name__}"
            )
        url = os.fspath(location)
        address = parse(url)
        path = address.path
        if path is None:
            return cls(url, address.kind, object_store(address, options))
        if not path.is_dir():
            raise NotAStoreError(f"{url}: no such file or directory")
        return cls(url, None, path)

    def sizes(self) -> dict[str, int]:
        """
        The size in bytes of every object, by key, sorted by key.

        Nothing else is held in memory for all objects. Locks are left out, since they are not part of a store.
        """
        if isinstance(self.root, Path):
            sizes = [
                (path.relative_to(self.root).as_posix(), self._size(path))
                for folder, _, files in os.walk(self.root)
                for path in (Path(folder, file) for file in files)
            ]
        else:
            sizes = [(e["path"], e["size"]) for page in require("obstore", "obstore").list(self.root) for e in page]
        return dict(sorted((key, size) for key, size in sizes if not is_lock(key)))

    def _size(self, path: Path) -> int:
        if is_lock(path.relative_to(self.root).as_posix()):
            return 0  # it may have been deleted
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # the message omits the name, which may be that of a sample
            raise StorageError(
                f"verify-removal: {self.url}: something in {path.parent} is a pipe or a device, which cannot be "
                "read to its end; delete it"
            )
        return status.st_size

    def read(self, sizes: Mapping[str, int]) -> Iterator[Object]:
        """
        Read the objects in the order of `sizes`, `READS_AT_ONCE` at a time.

        Raises
        ------
        StaleError
            If one was deleted, or its size has changed.
        """
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            for keys in batched(sizes, READS_AT_ONCE):
                for obj in pool.map(self._get, keys):
                    if len(obj.data) != sizes[obj.key]:
                        raise self._changed(obj.key)
                    yield obj

    def _get(self, key: str) -> Object:
        try:
            if isinstance(self.root, Path):
                return Object(key, (self.root / key).read_bytes(), None)
            result = require("obstore", "obstore").get(self.root, key)
            return Object(key, bytes(result.bytes()), result.meta["version"])
        except FileNotFoundError as error:
            raise self._changed(key) from error

    def _changed(self, key: str) -> StaleError:
        folder = key.rpartition("/")[0]  # the message omits the name, which may be that of a sample
        return StaleError(
            f"verify-removal: {self.url} was changed while it was read (an object{' in ' * bool(folder)}{folder}); "
            "run it again when nothing else works on it"
        )
