"""Where a VCZ lives, and how what is written to it becomes visible: one module per kind of place.

`open_store` is the one place where a path, URL or object becomes a `Store`; operations see the Protocol only.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from zarr.abc.store import Store as ZarrStore

from vczstore.choices import BACKENDS
from vczstore.errors import NotAStoreError, OptionError, UnsuitableError
from vczstore.stores.edits import Edit
from vczstore.stores.locations import Location, parse, real_path
from vczstore.stores.object_store import object_store, plain_errors, refuse_credentials, require
from vczstore.vcz.model import Vcz

if TYPE_CHECKING:
    from icechunk import Repository, Session

type Place = str | Path | ZarrStore | "Repository | Session"
"""What a user may call a store by."""


class Snapshot(NamedTuple):
    """One entry of a store's history; `metadata` is what `Transaction.commit` was given."""

    id: str
    time: str
    message: str
    metadata: Mapping[str, Any]


class Transaction(Protocol):
    """What makes the writes of one or more plans visible at once, or, on plain Zarr, plan by plan in a safe order."""

    def step(self, preparations: Sequence[Edit], edits: Sequence[Edit]) -> AbstractContextManager[ZarrStore]:
        """
        Write what one plan writes; it sees what the plans before it have written.

        Parameters
        ----------
        preparations
            What the driver writes before the tasks run, and no reader notices.
        edits
            What the driver writes to make everything visible, in the order that is safe where nothing is transactional.

        Returns
        -------
        context manager of zarr.abc.store.Store
            What the tasks read and write. It survives pickling; what comes back is handed to `collect`.
        """

    def found(self) -> ZarrStore:
        """What the steps so far have left, to be read while the next one writes."""

    def collect(self, store: ZarrStore) -> None:
        """Take in what a task has written to the store it was sent. Called once for each task that succeeds."""

    def commit(self, message: str, metadata: Mapping[str, Any]) -> str | None:
        """
        Make everything visible.

        Parameters
        ----------
        message, metadata
            For the history, where the place keeps one. They outlive any removal: no sample ID belongs there.

        Returns
        -------
        str or None
            The new snapshot's ID, None where there are no snapshots.

        Raises
        ------
        ConflictError
            If another writer has committed since the transaction began. Nothing is rebased: a removed sample would
            come back, or two batches would lie in one place.
        """

    @property
    def is_done(self) -> bool:
        """Whether it has committed, though `commit` may have been interrupted before it returned."""


class Store(Protocol):
    """A place that holds one VCZ."""

    @property
    def label(self) -> str:
        """How messages call it."""

    @property
    def backend(self) -> str:
        """One of `BACKENDS`."""

    @property
    def atomic(self) -> bool:
        """Whether a commit is all or nothing. Where it is not, the order of writes keeps readers on the old samples."""

    @property
    def pickles(self) -> bool:
        """Whether other processes can reach it."""

    @property
    def folder(self) -> Path | None:
        """The folder of this machine in which it lies, links resolved; None if it is elsewhere."""

    @property
    def head(self) -> str:
        """The snapshot of its present state; empty where there are none."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The storage options that reach it."""

    @property
    def no_lock(self) -> bool:
        """Whether it is written to without its lock."""

    def open(self, at: str | None = None) -> Vcz:
        """
        Read the metadata of the VCZ, as it is now or as it was at a tag or snapshot.

        Raises
        ------
        NotAStoreError
            If there is no VCZ.
        """

    def tags(self) -> dict[str, str]:
        """The snapshot of each tag, by name. None where there are no tags."""

    def history(self, snapshot: str | None = None) -> Iterator[Snapshot]:
        """All snapshots, newest first, or one and those before it. None where there is no history."""

    def stored_bytes(self) -> int | None:
        """The size of what is stored, in bytes, older snapshots included; None if it is not cheap to say."""

    def transaction(self, base: str) -> Transaction:
        """
        Begin to write. Without `Transaction.commit` readers stay where they were, or after the last whole step.

        Parameters
        ----------
        base
            The `Vcz.state` that the writes were planned against.

        Raises
        ------
        ConflictError
            If the store is in another state by now.
        """


def open_store(
    place: Place,
    *,
    backend_storage: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    no_lock: bool = False,
) -> Store:
    """
    Turn what a user calls a store by into a `Store`. Nothing is created.

    Parameters
    ----------
    place
        A path (of a zip file too), a URL, a Zarr store (in memory too), an Icechunk repository or a session of one.
    backend_storage
        One of `BACKENDS`; auto-detected when None.
    storage_options
        What reaches a URL: see `vczstore.stores.object_store`. fsspec takes its own. Never credentials.
    no_lock
        Whether it is written to without its lock.

    Raises
    ------
    NotAStoreError
        If nothing is there.
    OptionError
        If the options do not fit the place.
    MissingDependencyError
        If the backend is not installed.
    StorageError
        If it may not be read.
    """
    from vczstore.stores.plain import PlainStore

    check_backend(backend_storage)
    options = dict(storage_options or {})
    if not isinstance(place, str | os.PathLike):
        if options:
            raise OptionError("storage options go with a URL, not with a store that is open already")
        if is_session(place):
            from vczstore.stores.icechunk import SessionStore

            return SessionStore.of(place)
        if isinstance(place, ZarrStore):
            return PlainStore(place, label=f"<{type(place).__name__}>", backend="zarr", no_lock=no_lock)
        if type(place).__module__.startswith("icechunk"):
            from vczstore.stores.icechunk import IcechunkStore

            return IcechunkStore.of(place, no_lock=no_lock)
        raise OptionError(
            f"a store is a path, a URL, a Zarr store or an Icechunk repository, not {type(place).__name__}"
        )

    url = os.fspath(place)
    location = parse(url)
    path = location.path
    _check_options(url, location, options)
    with plain_errors(url):
        backend = backend_storage or _detect(url, location, options)
        if backend == "icechunk":
            from vczstore.stores.icechunk import IcechunkStore

            return IcechunkStore.at_url(url, options, no_lock=no_lock)
        if path is not None and not path.exists():
            from vczstore.stores.folder_swap import leftovers

            stopped = (
                "; vczstore repair completes a compaction that was stopped here" if leftovers(real_path(path)) else ""
            )
            raise NotAStoreError(f"{url}: no such file or directory{stopped}")
    zarr_store = _zarr_store(url, location, backend, options)
    return PlainStore(zarr_store, label=url, backend=backend, options=options, no_lock=no_lock)


def new_store(
    url: str,
    operation: str,
    *,
    backend_storage: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    samples_chunks: int,
    no_lock: bool = False,
) -> Store:
    """
    A place where a store will be. Nothing is created before its transaction begins.

    Parameters
    ----------
    url
        A path or URL.
    operation
        For messages.
    backend_storage
        One of `BACKENDS`; plain Zarr when None.
    storage_options
        As in `open_store`.
    samples_chunks
        On Icechunk, how many chunk columns of a field have their chunk references in one manifest.
    no_lock
        As in `open_store`.

    Raises
    ------
    OptionError
        If something is there already.
    """
    check_backend(backend_storage)
    options, location = dict(storage_options or {}), parse(url)
    path = location.path
    _check_options(url, location, options)
    if path is not None and path.exists() and not path.is_dir():
        raise UnsuitableError(f"{operation}: {url} exists; choose another path")
    if backend_storage == "icechunk":
        from vczstore.stores.icechunk import NewIcechunkStore

        place = NewIcechunkStore.in_memory(
            url, options=options, samples_chunks=samples_chunks, no_lock=no_lock, operation=operation
        )
        place.require_nothing()
        return place
    from vczstore.stores.plain import NewPlainStore

    # here by zarr itself, whichever of them is named: obstore opens no folder that is not there yet
    backend = "zarr" if path is not None else backend_storage or "obstore"
    zarr_store = _zarr_store(url, location, backend, options)
    plain = NewPlainStore(zarr_store, label=url, backend=backend, options=options, no_lock=no_lock, operation=operation)
    plain.require_nothing()
    return plain


def is_zip(path: Path) -> bool:
    """Whether a path is that of a zip file."""
    import zipfile

    return path.is_file() and zipfile.is_zipfile(path)


def is_session(place: object) -> bool:
    """Whether a user hands in an Icechunk session, or the Zarr store of one."""
    module = type(place).__module__.partition(".")[0]
    return module == "icechunk" and (isinstance(place, ZarrStore) or hasattr(place, "has_uncommitted_changes"))


def refuse_read_only(operation: str, place: Place) -> None:
    """
    Refuse to write to what can only be read.

    Raises
    ------
    OptionError
        If it is an Icechunk session, a zip file, a Zarr store that was opened to be read, or at a web address.
    """
    import zarr.storage

    why = None
    if is_session(place):
        why = (
            "an Icechunk session is only read, since each operation commits by itself; hand in the session's "
            "repository, or its path or URL"
        )
    elif isinstance(place, zarr.storage.ZipStore):
        why = "a zip file is only read; unpack it, and name the folder"
    elif isinstance(place, ZarrStore) and place.read_only:
        why = f"the {type(place).__name__} was opened with read_only=True; open it without"
    elif isinstance(place, str | os.PathLike):
        location = parse(place)
        if location.kind == "http":
            raise OptionError(
                f"{operation}: {place} is a web address, which is only read; name the store by a path, s3://, gs:// or "
                "az://"
            )
        if location.path is not None and is_zip(location.path):
            why = f"{place} is a zip file, which is only read; unpack it, and name the folder"
    if why is not None:
        raise UnsuitableError(f"{operation}: {why}")


def check_backend(backend_storage: str | None) -> None:
    """Raise an `OptionError` for a backend that does not exist."""
    if backend_storage is not None and backend_storage not in BACKENDS:
        raise OptionError(f"no backend {backend_storage!r}; choose one of {', '.join(BACKENDS)}")


def _check_options(url: str, location: Location, options: Mapping[str, Any]) -> None:
    if location.path is None:
        refuse_credentials(url, options)
    elif options:
        raise OptionError(f"{url}: a local store takes no storage options")


def is_repository(path: Path) -> bool:
    """Whether a folder looks like an Icechunk repository; icechunk itself need not be imported for that."""
    return (path / "snapshots").is_dir() and not (path / "zarr.json").exists()


def _detect(url: str, location: Location, options: Mapping[str, Any]) -> str:
    if location.path is not None:
        return "icechunk" if is_repository(location.path) else "zarr"
    from vczstore.vcz.arrays import get_many

    if location.key.endswith(".zip"):
        raise NotAStoreError(f"{url}: a zip file is read on this machine alone; download it, or unpack it there")
    # a repository's objects are its own; a Zarr group has its document at the top
    top = get_many(_zarr_store(url, location, "obstore", options), ["zarr.json", ".zgroup"])
    if any(document is not None for document in top):
        return "obstore"
    return "icechunk"


def _zarr_store(url: str, location: Location, backend: str, options: Mapping[str, Any]) -> ZarrStore:
    import zarr.storage

    path = location.path
    if backend == "zarr":
        if path is None:
            raise OptionError(f"{url}: a URL needs --backend-storage obstore, fsspec or icechunk")
        return _local_store(url, path)
    if backend == "fsspec":
        require("fsspec", "fsspec")
        if path is not None:
            return _local_fsspec(path)
        return zarr.storage.FsspecStore.from_url(url, storage_options=dict(options), read_only=True)
    if location.kind == "http":
        from vczstore.stores.web import WebStore

        return WebStore(object_store(location, options), location.url)
    return zarr.storage.ObjectStore(object_store(location, options), read_only=True)


def _local_store(url: str, path: Path) -> ZarrStore:
    import zarr.storage

    from vczstore.vcz.arrays import RegularLocalStore

    if not path.is_file():
        return RegularLocalStore(path, read_only=True)
    if not is_zip(path):
        raise NotAStoreError(
            f"{url}: there is no Zarr group here, but a file; a VCZ is a folder, or a zip file of what is in one"
        )
    return zarr.storage.ZipStore(real_path(path), mode="r")


def _local_fsspec(path: Path) -> ZarrStore:
    """A path as it is: fsspec decodes no URL, and takes ``::`` for a chain of them."""
    import zarr.storage
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
    from fsspec.implementations.local import LocalFileSystem

    files = AsyncFileSystemWrapper(LocalFileSystem(auto_mkdir=True), asynchronous=True)
    return zarr.storage.FsspecStore(files, path=str(real_path(path)), read_only=True)
