"""Exports of jobs: an up-to-date export is left alone, an outdated one is replaced as a whole.

A record next to each export identifies the exported state and fingerprints the files by size and time. So a file or
folder that was not exported by a job, or was changed since, is never replaced. A file or folder is written under a
temporary name and renamed when complete. Object stores have no rename, so nothing is replaced there.
"""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from zarr.abc.store import Store as ZarrStore
from zarr.storage import LocalStore, ObjectStore

from vczstore.errors import StaleError, StorageError, UnsuitableError, first_line
from vczstore.execution.results import Found
from vczstore.execution.sets.members import StoreSet
from vczstore.stores.filesystem import exchange
from vczstore.stores.locations import OBJECT_STORES, Address, parse, real_path
from vczstore.stores.object_store import object_store
from vczstore.vcz.model import Vcz
from vczstore.vcz.zarr_objects import Document, clear, fingerprint, get_many, names, read_json, write_json

OPERATION, SUFFIX, ASIDE = "export", ".vczstore-export", ".vczstore-export-"
"""The name of the record is that of the export plus SUFFIX; an export is written under a name with prefix ASIDE."""

_ROOTS = ("zarr.json", ".zgroup")


@dataclass(frozen=True)
class Unchanged:
    """
    The result where the export is up to date already.

    Attributes
    ----------
    store, snapshot
        Label of the exported store, and its snapshot; the latter None on plain Zarr.
    out
        Path or URL of the export.
    """

    store: str
    snapshot: str | None
    out: str
    unchanged: ClassVar[bool] = True

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "written": False}

    def lines(self) -> list[str]:
        return [f"{OPERATION} {self.out}: up to date with {self.store}"]


def digest(*parts: object) -> str:
    """Return a digest that identifies an export; `parts` are JSON-serialisable."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Place:
    """
    The destination of an export.

    Attributes
    ----------
    url
        Path or URL as given in the job.
    address
        The parsed URL, symbolic links resolved.
    options
        Storage options of the object store.
    """

    url: str
    address: Address
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, url: str, options: Mapping[str, Any]) -> "Place":
        """
        Parse a path or a URL of an object store.

        Raises
        ------
        UnsuitableError
            If it is another kind of URL, or the root of a file system or bucket.
        """
        address = parse(url)
        if address.path is not None:
            address = Address("file", "", str(real_path(address.path)))
        if (address.path is None and address.kind not in OBJECT_STORES) or not address.key.strip("/"):
            raise UnsuitableError(f"{OPERATION}: {url} is no path or key that a job can export to; name another")
        return cls(url, address, options)

    @property
    def path(self) -> Path | None:
        """The local path; None in an object store."""
        return self.address.path

    @property
    def aside(self) -> Path:
        """The temporary path, with the same suffix, at which an export is written before it is renamed."""
        assert self.path is not None
        return self.path.with_name(ASIDE + self.path.name)

    def found(self) -> str | None:
        """Return the fingerprint of the destination; None if nothing exists there."""
        if self.path is None:
            return fingerprint(self.objects) if names(self.objects) else None
        return like(self.path) if os.path.lexists(self.path) else None

    @property
    def is_empty(self) -> bool:
        """Whether nothing exists there, or only an empty folder."""
        is_folder = self.path is not None and self.path.is_dir()
        return not os.listdir(self.path) if is_folder else self.found() is None

    @property
    def objects(self) -> ZarrStore:
        """The destination in an object store, as a Zarr store."""
        return ObjectStore(object_store(self.address, self.options))

    def record(self) -> Document:
        """Return the record; an empty document if there is none."""
        if self.path is not None and not self.path.parent.is_dir():
            return {}
        folder, name = self._beside()
        try:
            return read_json(folder, name) or {}
        except ValueError as error:
            raise UnsuitableError(
                f"{OPERATION}: {self.url}{SUFFIX} is no record of an export; delete it, and what is at {self.url}"
            ) from error

    def write_record(self, of: str, known: list[str], *, begun: bool = False) -> None:
        """Write the record: the digest of the export, and the fingerprints by which it may be recognised."""
        folder, name = self._beside()
        write_json(folder.with_read_only(False), name, {"of": of, "known": known, "begun": begun})

    def _beside(self) -> tuple[ZarrStore, str]:
        if self.path is not None:
            return LocalStore(self.path.parent, read_only=True), self.path.name + SUFFIX
        folder, _, name = self.address.key.rpartition("/")
        inside = Address(self.address.kind, self.address.root, folder, self.address.account)
        return ObjectStore(object_store(inside, self.options), read_only=True), name + SUFFIX

    def tidy(self) -> None:
        """Delete temporary files and folders left next to the path by a killed run."""
        if self.path is not None:
            record = f"{glob.escape(self.path.name + SUFFIX)}.{'[0-9a-f]' * 32}.partial"  # not renamed yet
            others = (f".{glob.escape(self.aside.name)}-*", record)
            for leftover in (self.aside, *(path for name in others for path in self.path.parent.glob(name))):
                _delete(leftover)

    def clear(self) -> None:
        """Delete everything at the destination."""
        if self.path is None:
            clear(self.objects)
        else:
            _delete(self.path)

    def check(self) -> None:
        """
        Check that nothing exists there, or only an unchanged export of a job.

        Raises
        ------
        UnsuitableError
            If anything else exists there.
        """
        current, record = self.found(), self.record()
        if current is None or current in record.get("known", ()) or (self.path is None and record.get("begun")):
            return
        if record:
            why = "has been changed since a job exported to it; move it away"
        else:
            why = "exists, and no job has exported to it; choose another path, or move it away"
        raise UnsuitableError(f"{OPERATION}: {self.url} {why}")


@contextmanager
def of_one_state(group: StoreSet, parts: Mapping[str, Vcz], places: Sequence[Place]) -> Iterator[None]:
    """
    Context manager within which the parts of a set on plain Zarr, which has no snapshots, are exported in turn.

    Raises
    ------
    StaleError
        If a part has changed meanwhile, or an operation on the set is pending. New exports are deleted then, since the
        parts may be of different states.
    """
    stamps = {name: vcz.stamp for name, vcz in parts.items() if vcz.store.supports_listing}
    new = [place for place in places if place.is_empty]
    try:
        yield
        changed = [name for name, stamp in stamps.items() if fingerprint(parts[name].store) != stamp]
        if changed or group.record.read() is not None:
            raise StaleError(
                f"{OPERATION}: {group.label} was changed by another writer while it was copied; nothing was exported, "
                "run the same command again"
            )
    except StaleError:
        for place in new:
            place.clear()
        raise


def like(path: Path) -> str:
    """Return a fingerprint of a file or folder, which changes when any of its files does."""
    if path.is_dir():
        return fingerprint(LocalStore(path, read_only=True))
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def export_again(place: Place, of: str, unchanged: Unchanged, write: Callable[[str], Found]) -> Found:
    """
    Export a state of a store, unless the export is up to date.

    Parameters
    ----------
    place
        The destination.
    of
        The digest that identifies this export; see `digest`.
    unchanged
        The result to return if the export is up to date.
    write
        Writes the export to a path or URL, and returns the result.

    Raises
    ------
    UnsuitableError
        If something else exists there, or an object store has an export of another state.
    StorageError
        If the finished export cannot be renamed.
    """
    place.check()
    place.tidy()
    current, record = place.found(), place.record()
    is_same = current is not None and record.get("of") == of
    if is_same and current in record["known"][-1:]:
        return unchanged
    return _to_path(place, of, current, write) if place.path is not None else _to_objects(place, of, unchanged, write)


def _to_path(place: Place, of: str, current: str | None, write: Callable[[str], Found]) -> Found:
    path, aside = place.path, place.aside
    assert path is not None
    result = write(str(aside))
    try:
        place.write_record(of, [*([] if current is None else [current]), like(aside)])
        if current is None or not path.is_dir():
            os.replace(aside, path)
        else:
            if not exchange(aside, path):
                old = aside.with_name(f".{aside.name}-old")
                os.rename(path, old)
                os.rename(aside, path)
            place.tidy()
    except OSError as error:
        raise StorageError(
            f"{OPERATION}: {place.url} cannot be written ({first_line(error)}); run the job again"
        ) from error
    return result


def _to_objects(place: Place, of: str, unchanged: Unchanged, write: Callable[[str], Found]) -> Found:
    store, record = place.objects, place.record()
    if names(store):
        is_whole = any(document is not None for document in get_many(store, _ROOTS))
        if is_whole and record.get("of") == of:  # a run was killed before it updated the record
            place.write_record(of, [fingerprint(store)])
            return unchanged
        if is_whole:
            raise UnsuitableError(
                f"{OPERATION}: {place.url} has an export of another state, which cannot be replaced at once in an "
                "object store; give each its own name, such as one with a date: release-${DATE}.vcz"
            )
        clear(store)  # an incomplete export of a killed run
    place.write_record(of, [], begun=True)
    result = write(place.url)
    place.write_record(of, [fingerprint(store)])
    return result


def _delete(path: Path) -> None:
    """Delete a file or folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
