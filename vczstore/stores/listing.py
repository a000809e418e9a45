"""Every object under a store's prefix, whether anything leads to it or not."""

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
"""How many objects are in memory at once."""


class Object(NamedTuple):
    """One object: its key below the prefix, what it holds, and the version of it that storage names, if it does."""

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
        How messages call it.
    kind
        Whose object store it is: ``s3``, ``gs``, ``az``, another scheme; None on this machine.
    root
        A folder, or obstore's store of the prefix.
    """

    url: str
    kind: str | None
    root: Any

    @classmethod
    def at(cls, location: Location, options: Mapping[str, Any]) -> "Objects":
        """
        Open what lies at a path or URL.

        Raises
        ------
        OptionError
            If it is neither: what is open already does not say where its objects are.
        NotAStoreError
            If nothing is there.
        MissingDependencyError
            If obstore is needed, and not installed.
        """
        if not isinstance(location, str | os.PathLike):
            raise OptionError(
                "verify-removal: every object of the store is listed, for which it takes a path or URL, not a "
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
        The size of every object but locks, in the order of the keys' characters.

        All that is kept of all objects at once. Locks are no part of a store, and come and go.
        """
        if isinstance(self.root, Path):
            found = [
                (path.relative_to(self.root).as_posix(), self._size(path))
                for folder, _, files in os.walk(self.root)
                for path in (Path(folder, file) for file in files)
            ]
        else:
            found = [(e["path"], e["size"]) for page in require("obstore", "obstore").list(self.root) for e in page]
        return dict(sorted((key, size) for key, size in found if not is_lock(key)))

    def _size(self, path: Path) -> int:
        if is_lock(path.relative_to(self.root).as_posix()):
            return 0  # it may be gone by now
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a name may be a sample's
            raise StorageError(
                f"verify-removal: {self.url}: something in {path.parent} is a pipe or a device, which cannot be "
                "read to its end; delete it"
            )
        return found.st_size

    def read(self, sizes: Mapping[str, int]) -> Iterator[Object]:
        """
        Read objects in the order given, `READS_AT_ONCE` at a time.

        Raises
        ------
        StaleError
            If one is gone, or has another size than it had.
        """
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            for keys in batched(sizes, READS_AT_ONCE):
                for found in pool.map(self._get, keys):
                    if len(found.data) != sizes[found.key]:
                        raise self._changed(found.key)
                    yield found

    def _get(self, key: str) -> Object:
        try:
            if isinstance(self.root, Path):
                return Object(key, (self.root / key).read_bytes(), None)
            found = require("obstore", "obstore").get(self.root, key)
            return Object(key, bytes(found.bytes()), found.meta["version"])
        except FileNotFoundError as error:
            raise self._changed(key) from error

    def _changed(self, key: str) -> StaleError:
        folder = key.rpartition("/")[0]  # a name may be a sample's
        return StaleError(
            f"verify-removal: {self.url} was changed while it was read (an object{' in ' * bool(folder)}{folder}); "
            "run it again when nothing else works on it"
        )
