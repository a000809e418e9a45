"""Exports of jobs: one that is there already is left alone, or replaced by that of another state, at once.

Beside an export lies a record, which says of what it is, and what its files are like: their sizes and times. So a file
or folder that is no export of a job, or has been changed since, is never replaced. A folder or file is made under
another name, and takes its own when it is whole. An object store cannot replace at once, so there nothing is replaced.
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
"""The record lies beside an export, under its name and the suffix; an export is made under a name that begins so."""

_ROOTS = ("zarr.json", ".zgroup")


@dataclass(frozen=True)
class Unchanged:
    """
    An export that is there already.

    Attributes
    ----------
    store, snapshot
        Of what it is; None on plain Zarr.
    out
        Where it is.
    """

    store: str
    snapshot: str | None
    out: str
    unchanged: ClassVar[bool] = True

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "written": False}

    def lines(self) -> list[str]:
        """What the command prints."""
        return [f"{OPERATION} {self.out}: {self.store} is there already, as it is now"]


def digest(*parts: object) -> str:
    """What tells one export from another."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Place:
    """
    Where a job exports to.

    Attributes
    ----------
    url
        As the job names it.
    address
        The same, links resolved.
    options
        What reaches it.
    """

    url: str
    address: Address
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, url: str, options: Mapping[str, Any]) -> "Place":
        """
        A path, or a place in an object store.

        Raises
        ------
        UnsuitableError
            If it has no place beside it.
        """
        address = parse(url)
        if address.path is not None:
            address = Address("file", "", str(real_path(address.path)))
        if (address.path is None and address.kind not in OBJECT_STORES) or not address.key.strip("/"):
            raise UnsuitableError(f"{OPERATION}: {url} is no path or key that a job can export to; name another")
        return cls(url, address, options)

    @property
    def path(self) -> Path | None:
        """The path; None in an object store."""
        return self.address.path

    @property
    def aside(self) -> Path:
        """Where an export is made before it takes its name; it keeps its suffix."""
        assert self.path is not None
        return self.path.with_name(ASIDE + self.path.name)

    def found(self) -> str | None:
        """What is there is like; None if nothing is."""
        if self.path is None:
            store = self._objects()
            return fingerprint(store) if names(store) else None
        return like(self.path) if os.path.lexists(self.path) else None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is there, or a folder with nothing in it, into which an export goes too."""
        is_folder = self.path is not None and self.path.is_dir()
        return not os.listdir(self.path) if is_folder else self.found() is None

    def objects(self) -> ZarrStore:
        """What is there, in an object store, to be written to."""
        return self._objects().with_read_only(False)

    def _objects(self) -> ZarrStore:
        return ObjectStore(object_store(self.address, self.options), read_only=True)

    def record(self) -> Document:
        """What the record says; nothing if there is none."""
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
        """Write what is there, and how it is recognised."""
        folder, name = self._beside()
        write_json(folder.with_read_only(False), name, {"of": of, "known": known, "begun": begun})

    def _beside(self) -> tuple[ZarrStore, str]:
        if self.path is not None:
            return LocalStore(self.path.parent, read_only=True), self.path.name + SUFFIX
        folder, _, name = self.address.key.rpartition("/")
        inside = Address(self.address.kind, self.address.root, folder, self.address.account)
        return ObjectStore(object_store(inside, self.options), read_only=True), name + SUFFIX

    def tidy(self) -> None:
        """Delete what a run that was killed has left beside the path."""
        if self.path is not None:
            record = f"{glob.escape(self.path.name + SUFFIX)}.{'[0-9a-f]' * 32}.partial"  # which has no name yet
            others = (f".{glob.escape(self.aside.name)}-*", record)
            for left in (self.aside, *(path for name in others for path in self.path.parent.glob(name))):
                _delete(left)

    def clear(self) -> None:
        """Delete what is there."""
        if self.path is None:
            clear(self.objects())
        else:
            _delete(self.path)

    def check(self) -> None:
        """
        Check that nothing is there, or an export of a job that has not been changed since.

        Raises
        ------
        UnsuitableError
            If anything else is there.
        """
        found, record = self.found(), self.record()
        if found is None or found in record.get("known", ()) or (self.path is None and record.get("begun")):
            return
        if record:
            why = "has been changed since a job exported to it; move it away"
        else:
            why = "exists, and no job has exported to it; choose another path, or move it away"
        raise UnsuitableError(f"{OPERATION}: {self.url} {why}")


@contextmanager
def of_one_state(group: StoreSet, found: Mapping[str, Vcz], places: Sequence[Place]) -> Iterator[None]:
    """
    Within which the parts of a set on plain Zarr, which no snapshot keeps, are exported one after the other.

    Raises
    ------
    StaleError
        If a part has changed meanwhile, or is about to: parts of different states are no export, so none is left.
    """
    stamps = {name: vcz.stamp for name, vcz in found.items() if vcz.store.supports_listing}
    new = [place for place in places if place.is_empty]
    try:
        yield
        changed = [name for name, stamp in stamps.items() if fingerprint(found[name].store) != stamp]
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
    """What changes when a file does, or any file of a folder."""
    if path.is_dir():
        return fingerprint(LocalStore(path, read_only=True))
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def export_again(place: Place, of: str, unchanged: Unchanged, write: Callable[[str], Found]) -> Found:
    """
    Let an export be that of a state of a store.

    Parameters
    ----------
    place
        Where it is, or will be.
    of
        What tells this export from any other.
    unchanged
        What is returned if it is there already.
    write
        Writes it to a path or URL.

    Raises
    ------
    UnsuitableError
        If something else is there, or an object store has an export of another state.
    StorageError
        If it cannot take its place.
    """
    place.check()
    place.tidy()
    found, record = place.found(), place.record()
    is_same = found is not None and record.get("of") == of
    if is_same and found in record["known"][-1:]:
        return unchanged
    return _to_path(place, of, found, write) if place.path is not None else _to_objects(place, of, unchanged, write)


def _to_path(place: Place, of: str, found: str | None, write: Callable[[str], Found]) -> Found:
    path, aside = place.path, place.aside
    assert path is not None
    done = write(str(aside))
    try:
        place.write_record(of, [*([] if found is None else [found]), like(aside)])
        if found is None or not path.is_dir():
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
    return done


def _to_objects(place: Place, of: str, unchanged: Unchanged, write: Callable[[str], Found]) -> Found:
    store, record = place.objects(), place.record()
    if names(store):
        is_whole = any(found is not None for found in get_many(store, _ROOTS))
        if is_whole and record.get("of") == of:  # a run was killed before it could say so
            place.write_record(of, [fingerprint(store)])
            return unchanged
        if is_whole:
            raise UnsuitableError(
                f"{OPERATION}: {place.url} has an export of another state, which cannot be replaced at once in an "
                "object store; give each its own name, such as one with a date: release-${DATE}.vcz"
            )
        clear(store)  # what a run that was killed has left
    place.write_record(of, [], begun=True)
    done = write(place.url)
    place.write_record(of, [fingerprint(store)])
    return done


def _delete(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
