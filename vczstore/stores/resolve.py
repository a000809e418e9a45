"""Resolution of a user's path, URL or open object to a `Store`, which happens only in this module."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zarr.abc.store import Store as ZarrStore

from vczstore.choices import BACKENDS, check_choice
from vczstore.errors import NotAStoreError, OptionError, StorageError, UnsuitableError
from vczstore.stores.base import SESSION_IS_READ, Location, Store
from vczstore.stores.locations import Address, folder_of, parse, real_path
from vczstore.stores.object_store import (
    is_denied,
    is_of_storage,
    object_store,
    plain_errors,
    reason,
    refuse_credentials,
    require,
)


def open_store(
    location: Location,
    *,
    backend_storage: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    no_lock: bool = False,
    branch: str | None = None,
) -> Store:
    """
    Open the `Store` at a location. Nothing is created.

    Parameters
    ----------
    location
        A path (also of a zip file), URL, Zarr store (also in memory), Icechunk repository or session of one.
    backend_storage
        One of `vczstore.choices.BACKENDS`; detected if None.
    storage_options
        Options for a URL: those of `vczstore.stores.object_store`, or of fsspec for that backend. Never credentials.
    no_lock
        Whether to write without taking the lock.
    branch
        Branch of a repository; main if None.

    Raises
    ------
    NotAStoreError
        If there is no store.
    TagError
        If there is no such branch.
    UnsuitableError
        If a branch is given for a store without branches.
    OptionError
        If the options do not fit the location.
    MissingDependencyError
        If the backend is not installed.
    StorageError
        If the store cannot be read.
    """
    check_choice("backend", backend_storage, BACKENDS)
    options = dict(storage_options or {})
    if not isinstance(location, str | os.PathLike):
        from vczstore.stores.plain import PlainStore

        if options:
            raise OptionError("storage options go with a URL, not with a store that is open already")
        if is_session(location):
            from vczstore.stores.icechunk import SessionStore

            if branch is not None:
                raise UnsuitableError(f"--branch {branch}: an Icechunk session sees one branch; hand in its repository")
            return SessionStore.of(location)
        if isinstance(location, ZarrStore):
            _refuse_branch(branch, f"a {type(location).__name__}")
            return PlainStore(location, label=f"<{type(location).__name__}>", backend="zarr", no_lock=no_lock)
        if type(location).__module__.startswith("icechunk"):
            from vczstore.stores.icechunk import IcechunkStore

            return IcechunkStore.of(location, no_lock=no_lock).on(branch)
        raise OptionError(
            f"a store is a path, a URL, a Zarr store or an Icechunk repository, not {type(location).__name__}"
        )

    url = os.fspath(location)
    try:
        return _open_url(url, backend_storage, options, no_lock=no_lock, branch=branch)
    except NotAStoreError:
        if backend_storage not in (None, "icechunk") or (split := group_of(url)) is None:
            raise
    from vczstore.stores.icechunk import IcechunkStore

    place, group = split
    with plain_errors(url):
        return IcechunkStore.at_url(place, options, no_lock=no_lock, group=group).on(branch)


def _open_url(
    url: str, backend_storage: str | None, options: Mapping[str, Any], *, no_lock: bool, branch: str | None
) -> Store:
    """Open a path or URL, as in `open_store`."""
    from vczstore.stores.plain import PlainStore

    address = parse(url)
    path = address.path
    _check_options(url, address, options)
    with plain_errors(url):
        backend = backend_storage or _detect(url, address, options)
        if backend == "icechunk":
            from vczstore.stores.icechunk import IcechunkStore

            return IcechunkStore.at_url(url, options, no_lock=no_lock).on(branch)
        if path is not None and not path.exists():
            from vczstore.stores.leftovers import leftovers

            stopped = "; vczstore repair completes the run that was stopped here" if leftovers(real_path(path)) else ""
            raise NotAStoreError(f"{url}: no such file or directory{stopped}")
    _refuse_branch(branch, url)
    zarr_store = _zarr_store(url, address, backend, options)
    return PlainStore(zarr_store, label=url, backend=backend, options=options, no_lock=no_lock)


ICECHUNK_SUFFIX = ".icechunk"
"""Suffix of the names of Icechunk repositories."""


def group_of(url: str) -> tuple[str, str] | None:
    """
    Split a location such as ``cohort.icechunk#chr1`` into the repository and its group; None if it names no group.

    Other names may contain ``#`` as well. A local path that exists is never split; for a remote URL, the caller has to
    check that there is no store of the whole name.
    """
    place, sharp, group = url.rpartition("#")
    if not (sharp and place and group) or "/" in group:
        return None
    path, folder = parse(url).path, parse(place).path
    if path is not None and path.exists():
        return None
    is_group = place.endswith(ICECHUNK_SUFFIX) or (folder is not None and is_repository(folder))
    return (place, group) if is_group else None


def _refuse_group_in_group(operation: str, url: str, path: Path | None) -> None:
    """Raise an `OptionError` for a new store at ``cohort.icechunk#a/b``: a folder of that name would hide group a."""
    place, sharp, group = url.rpartition("#")
    has_parent = path is not None and path.parent.is_dir()
    if sharp and "/" in group and place.endswith(ICECHUNK_SUFFIX) and not has_parent:
        raise OptionError(
            f"{operation}: {url} names a group in a group, and the groups of a repository cannot be nested; "
            "choose a name without a slash"
        )


def backend_of_new(url: str, backend_storage: str | None) -> str | None:
    """
    Return the backend of a store to be created: the requested one, or ``icechunk`` if the name implies it, or None.

    >>> backend_of_new("cohort.icechunk", None), backend_of_new("cohort.vcz", None)
    ('icechunk', None)
    """
    says_icechunk = url.rstrip("/").endswith(ICECHUNK_SUFFIX) or group_of(url) is not None
    return "icechunk" if backend_storage is None and says_icechunk else backend_storage


def backend_note(store: Store) -> str:
    """Return a note on a new store on plain Zarr whose name is that of an Icechunk repository; else empty."""
    if store.atomic or not store.label.rstrip("/").endswith(ICECHUNK_SUFFIX):
        return ""
    return f"the store is on plain Zarr, as requested, though its name ends in {ICECHUNK_SUFFIX}"


def new_store(
    url: str,
    operation: str,
    *,
    backend_storage: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    samples_chunks: int,
    no_lock: bool = False,
    reads: Sequence[Location] = (),
) -> Store:
    """
    Return the `Store` for a location where one will be created, by its transaction.

    Parameters
    ----------
    url
        A path or URL.
    operation
        Name of the operation, for messages.
    backend_storage
        One of `vczstore.choices.BACKENDS`; plain Zarr if None, except that a group requires ``icechunk``.
    storage_options
        As in `open_store`.
    samples_chunks
        As in `IcechunkStore.create`; ignored on plain Zarr.
    no_lock
        As in `open_store`.
    reads
        Locations that the operation reads.

    Raises
    ------
    UnsuitableError
        If something exists there, or `refuse_nested` refuses the location.
    OptionError
        If the options do not fit the location, or it names a group in a group.
    """
    check_choice("backend", backend_storage, BACKENDS)
    options, address = dict(storage_options or {}), parse(url)
    path = address.path
    _refuse_group_in_group(operation, url, path)
    _check_options(url, address, options)
    refuse_nested(operation, url, reads, backend_storage, options)
    _, group = group_of(url) or (url, "")
    if group and backend_storage != "icechunk":
        raise UnsuitableError(
            f"{operation}: {url} is the name of a group of an Icechunk repository; choose another path"
        )
    if path is not None and path.exists() and not path.is_dir():
        raise UnsuitableError(f"{operation}: {url} exists; choose another path")
    if backend_storage == "icechunk":
        from vczstore.stores.icechunk import NewIcechunkStore

        repository = NewIcechunkStore.in_memory(
            url, options=options, samples_chunks=samples_chunks, no_lock=no_lock, operation=operation, group=group
        )
        repository.require_free()
        return repository
    from vczstore.stores.plain import NewPlainStore

    # local paths always use zarr's own store, since obstore does not open folders that do not exist
    backend = "zarr" if path is not None else backend_storage or "obstore"
    zarr_store = _zarr_store(url, address, backend, options)
    plain = NewPlainStore(zarr_store, label=url, backend=backend, options=options, no_lock=no_lock, operation=operation)
    plain.require_free()
    return plain


def repository_to_fill(
    url: str,
    operation: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    samples_chunks: int,
    overwrite: bool = False,
    no_lock: bool = False,
    reads: Sequence[Location] = (),
) -> Store:
    """
    Open a repository to fill it, or return a new store for a free location. Nothing is created before the transaction.

    Parameters
    ----------
    url, operation, storage_options, samples_chunks, no_lock, reads
        As in `new_store`.
    overwrite
        Whether an existing repository may be replaced.

    Raises
    ------
    UnsuitableError
        If something exists there that is not a repository, or is not empty without `overwrite`; or `refuse_nested`
        refuses the location.
    """
    from vczstore.stores.icechunk import IcechunkStore

    options = dict(storage_options or {})
    refuse_nested(operation, url, reads, "icechunk", options)
    path = parse(url).path
    if path is not None and path.exists() and not path.is_dir():
        raise UnsuitableError(f"{operation}: {url} exists, and is no Icechunk repository; choose another path")
    if not IcechunkStore.exists(url, options):
        return new_store(
            url,
            operation,
            backend_storage="icechunk",
            storage_options=options,
            samples_chunks=samples_chunks,
            no_lock=no_lock,
            reads=reads,
        )
    store = IcechunkStore.at_url(url, options, no_lock=no_lock)
    if not overwrite and not store.is_empty:
        raise UnsuitableError(f"{operation}: {url} holds a repository already; choose another path, or --overwrite it")
    return store


_MARKERS = ("sample_id/zarr.json", "sample_id/.zarray", "refs/branch.main/ref.json", "repo")
"""Keys of objects that mark a VCZ of format 3 or 2, and an Icechunk repository of version 1 or 2."""
_REPOSITORY_MAGIC = "ICE\N{ICE CUBE}CHUNK".encode()
"""First bytes of Icechunk's object ``repo``, a name that other programs may use as well."""


def place_of(location: Location) -> Location:
    """Return the location unchanged; for a group, that of its repository."""
    split = group_of(os.fspath(location)) if isinstance(location, str | os.PathLike) else None
    return location if split is None else split[0]


def refuse_nested(
    operation: str,
    url: str,
    reads: Sequence[Location] = (),
    backend_storage: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """
    Check that the output at `url` is not inside an input or another store, and contains no input.

    The parameters are those of `new_store`. Inputs that are open stores elsewhere than in a folder are not checked.

    Raises
    ------
    UnsuitableError
        If they are nested; the message names both.
    StorageError
        If the parent folder of the output cannot be read; those above it are skipped then.
    """
    place = _real(url)
    assert place is not None
    for location in reads:
        other = _real(location)
        if other is not None and place.is_in(other):
            raise UnsuitableError(f"{operation}: {url} would lie in {location}; choose a path outside it")
        if other is not None and other.is_in(place):
            raise UnsuitableError(f"{operation}: {location}, which is read, lies in {url}; choose a path beside it")
    for n, above in enumerate(place.above):
        try:
            is_store = _has_store(above, backend_storage, options or {})
        except Exception as error:
            if n:  # a parent folder is readable, but the folders above it often are not
                continue
            if not is_of_storage(error):
                raise
            raise StorageError(
                f"{operation}: {url} cannot be made, since {above.url}, where it would lie, cannot be read "
                f"({reason(error)})"
            ) from error
        if is_store:
            raise UnsuitableError(f"{operation}: {url} would lie in the store {above.url}; choose a path outside it")


def _real(location: Location) -> Address | None:
    """Address of a location, symlinks resolved; None for an open store that is not a `LocalStore`."""
    import zarr.storage

    if isinstance(location, zarr.storage.LocalStore):
        location = location.root
    if not isinstance(location, str | os.PathLike):
        return None
    address = parse(location)
    return address if address.path is None else Address("file", "", str(real_path(address.path)))


def _has_store(place: Address, backend_storage: str | None, options: Mapping[str, Any]) -> bool:
    """Whether a VCZ or an Icechunk repository is at an address; False if access is denied."""
    from vczstore.vcz.zarr_objects import get_many

    if place.path is not None:
        contents = [_first_bytes(place.path / name) for name in _MARKERS]
    else:
        backend = "fsspec" if backend_storage == "fsspec" else "obstore"
        try:
            objects = get_many(_zarr_store(place.url, place, backend, options), _MARKERS)
        except Exception as error:
            if is_denied(error):
                return False
            raise
        contents = [None if obj is None else obj.to_bytes() for obj in objects]
    *markers, repository = contents
    return any(marker is not None for marker in markers) or (repository or b"").startswith(_REPOSITORY_MAGIC)


def _first_bytes(path: Path) -> bytes | None:
    """The first bytes of a file, as many as `_REPOSITORY_MAGIC` has; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(_REPOSITORY_MAGIC))
    except OSError:
        return None


def open_in_place(
    location: Location,
    *,
    backend_storage: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    no_lock: bool = False,
    branch: str | None = None,
    dry_run: bool = False,
) -> Store:
    """
    Open a store to rewrite its chunks in place; see `Store.in_place`.

    Parameters
    ----------
    location, backend_storage, storage_options, no_lock, branch
        As in `open_store`.
    dry_run
        Whether nothing will be written. If false, the caller has to hold `Store.writer_lock` before it reads the store:
        the lock settles an interrupted replacement, until which the store may be absent.

    Raises
    ------
    UnsuitableError
        If it is on plain Zarr, but not in a local folder that can be replaced.
    StorageError
        If the folder is not writable.
    NotAStoreError, TagError
        As in `open_store`.
    """
    from vczstore.stores.folder_swap import ReplacedStore
    from vczstore.stores.leftovers import leftovers

    path = folder_of(location)
    is_plain = path is not None and backend_storage != "icechunk" and not is_repository(path)
    if is_plain and group_of(str(location)) is None:
        _refuse_branch(branch, str(location))
    if is_plain and path is not None and not dry_run and leftovers(path):
        return ReplacedStore.unsettled(path, str(location), backend_storage or "zarr", no_lock=no_lock)
    store = open_store(
        location, backend_storage=backend_storage, storage_options=storage_options, no_lock=no_lock, branch=branch
    )
    # `path` is None for open Zarr stores, which are refused
    return store if store.atomic else ReplacedStore.of(path, store)


def is_zip(path: Path) -> bool:
    """Whether a path is a zip file."""
    import zipfile

    return path.is_file() and zipfile.is_zipfile(path)


def is_session(location: object) -> bool:
    """Whether a location is an Icechunk session, or the Zarr store of one."""
    module = type(location).__module__.partition(".")[0]
    return module == "icechunk" and (isinstance(location, ZarrStore) or hasattr(location, "has_uncommitted_changes"))


def refuse_read_only(operation: str, location: Location) -> None:
    """
    Refuse to write to a read-only location.

    Raises
    ------
    OptionError
        If it is a web address.
    UnsuitableError
        If it is a session, a zip file or a read-only Zarr store.
    """
    import zarr.storage

    why = None
    if is_session(location):
        why = SESSION_IS_READ
    elif isinstance(location, zarr.storage.ZipStore):
        why = "a zip file is only read; unpack it, and name the folder"
    elif isinstance(location, ZarrStore) and location.read_only:
        why = f"the {type(location).__name__} was opened with read_only=True; open it without"
    elif isinstance(location, str | os.PathLike):
        address = parse(location)
        if address.kind == "http":
            raise OptionError(
                f"{operation}: {location} is a web address, which is only read; name the store by a path, s3://, "
                "gs:// or az://"
            )
        if address.path is not None and is_zip(address.path):
            why = f"{location} is a zip file, which is only read; unpack it, and name the folder"
    if why is not None:
        raise UnsuitableError(f"{operation}: {why}")


def _refuse_branch(branch: str | None, place: str) -> None:
    """Raise an `UnsuitableError` if a branch is given for a location on plain Zarr."""
    if branch is not None:
        raise UnsuitableError(f"--branch {branch}: {place} is plain Zarr, which has no branches; leave the branch out")


def _check_options(url: str, address: Address, options: Mapping[str, Any]) -> None:
    if address.path is None:
        refuse_credentials(url, options)
    elif options:
        raise OptionError(f"{url}: a local store takes no storage options")


def is_repository(path: Path) -> bool:
    """Whether a folder looks like an Icechunk repository; does not import icechunk."""
    return (path / "snapshots").is_dir() and not (path / "zarr.json").exists()


def _detect(url: str, address: Address, options: Mapping[str, Any]) -> str:
    if address.path is not None:
        return "icechunk" if is_repository(address.path) else "zarr"
    from vczstore.vcz.zarr_objects import get_many

    if address.key.endswith(".zip"):
        raise NotAStoreError(f"{url}: a zip file can only be read locally; download it, or unpack it there")
    # only a Zarr group has one of these documents at the top
    top = get_many(_zarr_store(url, address, "obstore", options), ["zarr.json", ".zgroup"])
    if any(document is not None for document in top):
        return "obstore"
    return "icechunk"


def _zarr_store(url: str, address: Address, backend: str, options: Mapping[str, Any]) -> ZarrStore:
    import zarr.storage

    from vczstore.vcz.zarr_objects import RegularLocalStore

    path = address.path
    if backend == "zarr":
        if path is None:
            raise OptionError(f"{url}: a URL needs --backend-storage obstore, fsspec or icechunk")
        if not path.is_file():
            return RegularLocalStore(path, read_only=True)
        if not is_zip(path):
            raise NotAStoreError(
                f"{url}: there is no Zarr group here, but a file; a VCZ is a folder, or a zip file of its contents"
            )
        return zarr.storage.ZipStore(real_path(path), mode="r")
    if backend == "fsspec":
        require("fsspec", "fsspec")
        if path is not None:
            return _local_fsspec(path)
        return zarr.storage.FsspecStore.from_url(url, storage_options=dict(options), read_only=True)
    if address.kind == "http":
        from vczstore.stores.web import WebStore

        return WebStore(object_store(address, options), address.url)
    return zarr.storage.ObjectStore(object_store(address, options), read_only=True)


def _local_fsspec(path: Path) -> ZarrStore:
    """Open a path verbatim with fsspec, which would decode URLs and split them at ``::``."""
    import zarr.storage
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
    from fsspec.implementations.local import LocalFileSystem

    files = AsyncFileSystemWrapper(LocalFileSystem(auto_mkdir=True), asynchronous=True)
    return zarr.storage.FsspecStore(files, path=str(real_path(path)), read_only=True)
