"""A VCZ in an Icechunk repository: every operation is one commit."""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, Self

import icechunk
import zarr
from zarr.abc.store import Store as ZarrStore
from zarr.errors import GroupNotFoundError
from zarr.types import AnyArray

from vczstore.errors import (
    ConflictError,
    NotAStoreError,
    OptionError,
    StorageError,
    TagError,
    UnsuitableError,
)
from vczstore.stores.base import SESSION_IS_READ, Check, History, Keep, Saved, Store, Transaction, ZarrBacked
from vczstore.stores.edits import MetadataEdit
from vczstore.stores.icechunk_branches import is_sweep, refuse_swept, updates_of
from vczstore.stores.icechunk_groups import unwrap_group, within
from vczstore.stores.icechunk_history import RECREATED, STAGED, IcechunkHistory
from vczstore.stores.icechunk_storage import BRANCH, folder_of_repository, require_writable, runtime, storage_of
from vczstore.stores.locations import local_path
from vczstore.stores.lock import HeldLock, hold_file, require_conditions, unheld
from vczstore.stores.object_store import reason
from vczstore.stores.withdrawal_key import delete_unfinished_keys
from vczstore.vcz import arrays, zarr_objects
from vczstore.vcz.metadata import metadata_key
from vczstore.vcz.model import SAMPLE_ID, Vcz, listing
from vczstore.vcz.zarr_objects import wait_for

SAMPLE_ID_CHUNKS = 4
"""Chunks of sample IDs per manifest: few, since each commit rewrites the last manifest."""

_MARK = "vczstore_commit"
"""Metadata key of a random token that distinguishes a commit from others with the same message and metadata."""


@dataclass(frozen=True)
class IcechunkStore(Store):
    """A VCZ on a branch of a repository."""

    repository: icechunk.Repository
    folder: Path | None = None
    """Local folder of the repository, in which a file lock serialises commits; None if it is not on this machine."""
    branch: str = BRANCH
    backend: str = field(default="icechunk", kw_only=True)
    group: str = ""
    atomic = True

    @property
    def place(self) -> str:
        return self.label.removesuffix(f"#{self.group}") if self.group else self.label

    @property
    def pickles(self) -> bool:
        return "type: in-memory" not in str(self.repository.storage)

    @classmethod
    def of(cls, repository: icechunk.Repository, *, no_lock: bool = False) -> "IcechunkStore":
        """Return the store for a repository that is open already."""
        return cls(repository, label="<Icechunk repository>", folder=folder_of_repository(repository), no_lock=no_lock)

    @classmethod
    def at_url(cls, url: str, options: Mapping[str, Any], *, no_lock: bool = False, group: str = "") -> "IcechunkStore":
        """Open an existing repository, or a group of it."""
        storage, folder = storage_of(url, options)
        if folder is not None and not folder.exists():
            raise NotAStoreError(f"{url}: no such file or directory")
        try:
            repository = icechunk.Repository.open(storage, config=None if folder else runtime())
            label = f"{url}#{group}" if group else url
            return cls(repository, label=label, folder=folder, options=options, no_lock=no_lock, group=group)
        except icechunk.RepositoryNotFoundError as error:
            raise NotAStoreError(
                f"{url}: there is no Icechunk repository here; make one with: "
                f"vczstore copy-store-to-icechunk SOURCE {url}"
            ) from error
        except icechunk.IcechunkError as error:
            raise StorageError(f"{url}: {reason(error)}") from error

    @classmethod
    def create(
        cls, url: str, options: Mapping[str, Any], samples_chunks: int, *, no_lock: bool = False
    ) -> "IcechunkStore":
        """
        Open a repository, or create an empty one, whose manifests hold `samples_chunks` chunk columns of a field each.

        A commit rewrites every manifest that it touches. Since they are split along the samples axis, an append only
        rewrites the last manifest and adds its own, regardless of the size of the store.
        """
        require_writable(url)
        storage, folder = storage_of(url, options)
        dimension = icechunk.ManifestSplitDimCondition.DimensionName("^samples$")
        condition = icechunk.ManifestSplitCondition
        splitting = icechunk.ManifestSplittingConfig.from_dict(
            {
                condition.name_matches(f"^{SAMPLE_ID}$"): {dimension: SAMPLE_ID_CHUNKS},
                condition.AnyArray(): {dimension: samples_chunks},
            }
        )
        config = icechunk.RepositoryConfig.default() if folder else runtime()
        config.manifest = icechunk.ManifestConfig(splitting=splitting)
        try:
            repository = icechunk.Repository.open_or_create(storage, config=config)
            repository.save_config()
        except icechunk.IcechunkError as error:
            raise StorageError(f"{url}: {reason(error)}") from error
        return cls(repository, label=url, folder=folder, options=options, no_lock=no_lock)

    @classmethod
    def in_memory(cls, label: str, **fields: Any) -> Self:
        """Return the store of a new, empty repository in memory, to plan against before the actual one exists."""
        return cls(icechunk.Repository.create(icechunk.in_memory_storage()), label=label, **fields)

    @classmethod
    def exists(cls, url: str, options: Mapping[str, Any]) -> bool:
        """Whether there is a repository at a URL."""
        storage, folder = storage_of(url, options)
        return (folder is None or folder.exists()) and icechunk.Repository.exists(storage)

    @property
    def is_empty(self) -> bool:
        """Whether the main branch has no commit other than the initial one."""
        history = self.repository.ancestry(branch=BRANCH)
        next(iter(history))
        return next(iter(history), None) is None

    def groups(self) -> list[str]:
        """Names of the top-level groups, such as the parts of a set."""
        with suppress(GroupNotFoundError):
            top = zarr.open_group(self.repository.readonly_session(self.branch).store, mode="r")
            return sorted(top.group_keys())
        return []

    def sharing_history(self) -> list[Self]:
        """For a group, the stores of all groups of the repository; for the root group, this store."""
        names = self.groups() if self.group else [""]
        return [replace(self, group=name, label=f"{self.place}#{name}" if name else self.label) for name in names]

    def has(self, group: str) -> bool:
        """Whether there is anything at the path of a group."""
        return not wait_for(self.repository.readonly_session(self.branch).store.is_empty(group))

    @property
    def head(self) -> str:
        return str(self.repository.lookup_branch(self.branch))

    @property
    def history(self) -> IcechunkHistory:
        """The repository's snapshots, tags and branches."""

        def on_branch(branch: str) -> IcechunkStore:
            return replace(self, branch=branch)

        return IcechunkHistory(
            self.label, self.folder, self.repository, self.commit_lock, on_branch, self.branch, self.group
        )

    def on(self, branch: str | None) -> Self:
        """Return the store on another branch; None keeps the branch."""
        if branch is None:
            return self
        if branch not in self.repository.list_branches():
            raise TagError(
                f"{self.label} has no branch {branch!r}; make it with: vczstore branch {self.label} {branch}"
            )
        return replace(self, branch=branch)

    def open(self, at: str | None = None) -> Vcz:
        """Read the metadata at the head of this branch, or at another branch, a tag or a snapshot."""
        if at is None or at in self.repository.list_branches():
            session = self.repository.readonly_session(at or self.branch)
        elif at in self.repository.list_tags():
            session = self.repository.readonly_session(tag=at)
        else:
            try:
                session = self.repository.readonly_session(snapshot_id=at)
            except icechunk.IcechunkError as error:
                raise TagError(
                    f"{self.label} has no tag, branch or snapshot {at!r}; vczstore tag lists the tags"
                ) from error
        try:
            return Vcz.read(within(session.store, self.group), self.label, snapshot=str(session.snapshot_id))
        except NotAStoreError as error:
            others = self.history.refs()[1] if at is None else {}
            if not others:
                raise
            name = next(iter(others))
            raise NotAStoreError(
                f"{error}; that is the branch {self.branch}, there also is {listing(others, 3)}: name one with "
                f"--branch; as a source in Python, hand in repository.readonly_session({name!r})"
            ) from error

    def transaction(self, base: str) -> "IcechunkTransaction":
        """Begin a transaction that makes one commit."""
        require_writable(self.place)
        require_conditions(self)
        # the time of the last change, by the clock of its writer, identifies it; repositories without a log have none
        began = next((update.updated_at for update in updates_of(self.repository)), None)
        session = self.repository.writable_session(self.branch)
        refuse_swept(self.repository, str(session.snapshot_id), self.label)
        main = (
            None
            if self.branch == BRANCH or self.branch.startswith(RECREATED)
            else str(self.repository.lookup_branch(BRANCH))
        )
        if main is not None:
            refuse_swept(self.repository, main, self.label)
        if session.snapshot_id != base:
            raise ConflictError(f"{self.label} has changed since the plan was made; plan again")
        return IcechunkTransaction(session, self, began, main)

    def stored_bytes(self) -> int | None:
        """Bytes of the chunks of all snapshots; None if remote, which would require reading all history."""
        if self.folder is None:
            return None
        stats = self.repository.chunk_storage_stats()
        return int(stats.native_bytes + stats.inlined_bytes)

    def renumbering(self, array: AnyArray, axis: int, columns: Sequence[tuple[int, int]]) -> MetadataEdit:
        """Return an edit that renumbers references to chunks."""
        return Renumber(array.path, arrays.grid_of(array), axis, tuple(columns))

    def writer_lock(self) -> AbstractContextManager[HeldLock]:
        """No lock: of two concurrent commits, one fails with a `ConflictError` and is retried."""
        return unheld()

    def retry_lock(self) -> AbstractContextManager[HeldLock]:
        """Wait for the lock. In an object store this requires obstore, which Icechunk itself does not."""
        if self.folder is None and find_spec("obstore") is None:
            return unheld()
        return self.exclusive_lock(wait=True)

    def settle(self) -> None:
        """Delete the withdrawal keys left unfinished by killed writers; all other writes are in commits."""
        delete_unfinished_keys(self.folder)

    def collect_garbage(
        self, *, before: Check, dry_run: bool, keep: Keep | None = None
    ) -> tuple[str | None, dict[str, int]]:
        """See `Store.collect_garbage`. Half-written local files are included."""
        return self.history.collect_garbage(before=before, dry_run=dry_run, keep=keep)

    def was_collected(self, since: datetime | None) -> bool:
        """Whether garbage was collected after the change at `since`, perhaps deleting uncommitted chunks."""
        for update in updates_of(self.repository):
            if update.updated_at == since:
                break
            if isinstance(update.kind, _COLLECTIONS):
                return True
        return False

    def was_swept(self, main: str) -> bool:
        """Whether a purge or gc has begun since main was at snapshot `main`; these commit to main only."""
        for info in self.repository.ancestry(branch=BRANCH):
            if str(info.id) == main:
                break
            if is_sweep(info):
                return True
        return False

    def commit_lock(self) -> AbstractContextManager[Any]:
        """Return the lock that serialises commits where the storage does not: in a local folder."""
        require_writable(self.place)
        if self.folder is None or self.no_lock:
            return nullcontext()
        return hold_file(self.label, self.folder / zarr_objects.COMMIT_LOCK, wait=True)


@dataclass(frozen=True)
class SessionStore(ZarrBacked):
    """
    The state that a user's session sees, including its uncommitted changes. Read-only.

    Attributes
    ----------
    snapshot
        ID of the session's snapshot; None if it has uncommitted changes.
    """

    snapshot: str | None = None
    atomic = True

    @classmethod
    def of(cls, location: Any) -> "SessionStore":
        """Return the store of a session, or of a session's Zarr store."""
        session = location.session if isinstance(location, icechunk.IcechunkStore) else location
        snapshot = None if session.has_uncommitted_changes else str(session.snapshot_id)
        if not session.read_only and not isinstance(session, icechunk.ForkSession):
            session = session.fork()  # unlike the session, a fork can be read in other processes
        return cls(session.store, label="<Icechunk session>", backend="icechunk", snapshot=snapshot)

    def open(self, at: str | None = None) -> Vcz:
        """Read the metadata; raise an `OptionError` for `at`, since a session has one state."""
        if at is not None:
            raise OptionError(f"info: {self.label} sees one state; hand in its repository to look at {at!r}")
        return Vcz.read(self.zarr_store, self.label, snapshot=self.snapshot)

    @property
    def history(self) -> History:
        return _SessionHistory(self.label, self.folder)

    def in_place(self) -> NoReturn:
        """Raise an `UnsuitableError`: a session is read-only."""
        raise UnsuitableError(f"{self.label}: {SESSION_IS_READ}")

    def transaction(self, base: str) -> NoReturn:
        """Raise an `UnsuitableError`: a session is read-only."""
        raise UnsuitableError(f"{self.label}: {SESSION_IS_READ}")


class _SessionHistory(History):
    """A session has no history, though its repository may."""

    def _refuse(self, operation: str) -> NoReturn:
        raise UnsuitableError(f"{operation}: {SESSION_IS_READ}")


@dataclass(frozen=True)
class NewIcechunkStore(IcechunkStore):
    """
    A location where a repository will be created; until then, an empty one in memory stands in for it.

    Attributes
    ----------
    samples_chunks
        As in `IcechunkStore.create`.
    operation
        Name of the operation that creates it, for messages.
    """

    samples_chunks: int = 1
    operation: str = field(kw_only=True)

    @property
    def pickles(self) -> bool:
        """Always True: the repository that will be created is not in memory."""
        return True

    def require_free(self) -> None:
        """Raise an `UnsuitableError` unless the location is empty, or its repository is empty or lacks the group."""
        path = local_path(self.place)
        if IcechunkStore.exists(self.place, self.options):
            repository = IcechunkStore.at_url(self.place, self.options)
            if repository.is_empty or (self.group and not repository.has(self.group)):
                return
            what = (
                "is there already; choose another name"
                if self.group
                else "holds a repository already; choose another path"
            )
            raise UnsuitableError(f"{self.operation}: {self.label} {what}")
        # leftovers of an interrupted creation are completed by the next one
        if path is not None and path.exists() and any(path.iterdir()) and not (path / "snapshots").is_dir():
            raise UnsuitableError(
                f"{self.operation}: {self.label} exists, and is no Icechunk repository; choose another path"
            )

    def transaction(self, base: str) -> "IcechunkTransaction":
        """Create the repository, or open an existing one for its group, and begin a transaction."""
        self.require_free()
        if not self.group or not IcechunkStore.exists(self.place, self.options):
            store = IcechunkStore.create(self.place, self.options, self.samples_chunks, no_lock=self.no_lock)
        else:
            store = IcechunkStore.at_url(self.place, self.options, no_lock=self.no_lock)
        store = replace(store, label=self.label, group=self.group)
        transaction = store.transaction(store.head)
        if self.group:
            zarr.open_group(transaction.session.store, mode="a")  # the root group, as parent of the group
        return transaction


@dataclass(frozen=True)
class Renumber:
    """
    Renumber the references to an array's chunks in a session.

    Attributes
    ----------
    path, grid
        Path of the array, and its number of chunks along each axis.
    axis, columns
        As in `Store.renumbering`.
    """

    path: str
    grid: tuple[int, ...]
    axis: int
    columns: tuple[tuple[int, int], ...]

    def apply(self, store: ZarrStore) -> None:
        """
        Renumber the references.

        Icechunk renumbers only regular grids, since it does not check the widths of other chunks; here each chunk moves
        to a column of the same width. The array therefore gets a temporary regular grid that fits old and new numbers.
        """
        inner, prefix = unwrap_group(store)
        key = metadata_key(self.path, 3)
        document = zarr_objects.read_json(store, key)
        grid = {"name": "regular", "configuration": {"chunk_shape": [1] * len(self.grid)}}
        shape = list(self.grid)
        shape[self.axis] = max(shape[self.axis], *(1 + max(pair) for pair in self.columns))
        zarr_objects.write_json(store, key, {**(document or {}), "shape": shape, "chunk_grid": grid})
        places, origins = dict(self.columns), {new: old for old, new in self.columns}
        inner.session.reindex_array(
            f"/{prefix}{self.path}", lambda at: self._moved(at, places), lambda at: self._moved(at, origins) or at
        )
        zarr_objects.write_json(store, key, document or {})

    def _moved(self, at: Iterable[int], columns: Mapping[int, int]) -> list[int] | None:
        """Coordinates of a chunk after renumbering its column by the mapping; None if the column is not in it."""
        result = list(at)
        if (column := columns.get(result[self.axis])) is None:
            return None
        result[self.axis] = column
        return result


@dataclass
class IcechunkTransaction(Transaction):
    """A writable session, and its fork that the tasks of the current step write to."""

    session: icechunk.Session
    store: IcechunkStore
    began: datetime | None
    """Time of the repository's last change before the transaction; None if it keeps no log."""
    main: str | None = None
    """Head of main at the beginning; None for a transaction on main itself, where a sweep causes a conflict."""
    fork: icechunk.IcechunkStore | None = None
    is_unknown: bool = False
    """Whether the commit raised an error, and whether it took effect could not be determined."""
    is_on_branch: bool = False
    """Whether the commit raised an error, but took effect."""

    @contextmanager
    def step(
        self, preparations: Sequence[MetadataEdit], edits: Sequence[MetadataEdit], check: Check | None = None
    ) -> Iterator[ZarrStore]:
        """
        Fork the session for the tasks of one plan, and merge the fork on exit.

        The edits are made before the fork: chunks written through a fork with the old shapes would be silently dropped.
        """
        for edit in (*preparations, *edits):
            edit.apply(within(self.session.store, self.store.group))
        fork = self.fork = self.session.fork().store
        yield within(fork, self.store.group)
        if fork.session.has_uncommitted_changes:
            self.session.merge(fork.session)

    def view(self) -> ZarrStore:
        """The session with the writes of all finished steps; a fork, unless there are none."""
        session = self.session.fork() if self.session.has_uncommitted_changes else self.session
        return within(session.store, self.store.group)

    def collect(self, store: ZarrStore) -> None:
        """
        Merge the fork that a task sends back.

        Tasks in this process write to the fork made by `step`, which is merged once, at the end of the step: merging
        it after each task would take quadratic time.
        """
        inner, _ = unwrap_group(store)
        if inner is not self.fork:
            self.session.merge(inner.session)

    def of(self, store: Store) -> "IcechunkTransaction":
        """Return this transaction for another group of the repository, so that both are in one commit."""
        assert isinstance(store, IcechunkStore)
        return replace(self, store=store, fork=None)

    @property
    def is_resumable(self) -> bool:
        """Whether the repository keeps a log, which shows whether chunks were collected since."""
        return self.began is not None

    def save(self) -> Saved:
        """Serialise the writes so far; see `restore`. Only these two methods use icechunk's private session API."""
        fork = self.fork.session if self.fork is not None else None
        return Saved(
            session=self.session._session.as_bytes(),
            fork=fork._session.as_bytes() if fork is not None and fork.has_uncommitted_changes else b"",
            forked=str(self.session.snapshot_id if fork is None else fork.snapshot_id),
            began=self.began,
        )

    def restore(self, saved: Saved) -> None:
        """
        Resume from the state that another process has saved, discarding the writes of this process.

        See `Transaction.restore`. The session is restored verbatim: if the edits were repeated in a new session, new
        arrays would have other node IDs, and the chunks already written for them would be silently dropped.
        """
        load = type(self.session._session).from_bytes
        try:
            self.store.repository.list_manifest_files(saved.forked)  # fails if deleted; lookup_snapshot needs a branch
            session = icechunk.Session(load(saved.session))
            if saved.fork:
                session.merge(icechunk.ForkSession(load(saved.fork)))
        except icechunk.IcechunkError as error:
            raise ValueError(f"is of no use: {reason(error)}") from error
        if (session.snapshot_id, session.branch) != (self.session.snapshot_id, self.session.branch):
            raise ValueError("is of another state of the store")
        if self.store.was_collected(saved.began):
            raise ValueError("is of no use: garbage was collected since, perhaps with its uncommitted chunks")
        self.session, self.began = session, saved.began

    def commit(self, message: str, metadata: Mapping[str, Any]) -> str:
        """Commit, or raise a `ConflictError` if the branch has moved; no-op if there are no changes."""
        if not self.session.has_uncommitted_changes:
            return str(self.session.snapshot_id)
        try:
            with self.store.commit_lock():
                self._refuse_collected()
                base, snapshot = str(self.session.snapshot_id), self._commit(message, metadata)
                if self.main is not None:
                    try:
                        self._refuse_collected()
                    except ConflictError:
                        # it may have landed while a sweep was deleting its chunks, still unreferenced
                        self.store.repository.reset_branch(self.store.branch, base, from_snapshot_id=snapshot)
                        raise
                return snapshot
        except icechunk.ConflictError as error:
            raise ConflictError(
                f"{self.store.label} was changed by another writer while this ran; nothing was committed, run it again"
            ) from error

    def _commit(self, message: str, metadata: Mapping[str, Any]) -> str:
        """Commit; after an error, look on the branch whether the commit took effect and only the response was lost."""
        base, mark = str(self.session.snapshot_id), secrets.token_hex(8)
        try:
            return str(self.session.commit(message, metadata={**metadata, _MARK: mark}))
        except icechunk.IcechunkError as error:
            self.is_unknown = not self.store.branch.startswith(STAGED)  # no reader sees a staged commit
            try:
                snapshot = self._find_commit(base, mark)
            except icechunk.IcechunkError:
                raise StorageError(f"{self.store.label}: {reason(error)}") from error
            self.is_unknown = False
            if snapshot is None:
                raise
            self.is_on_branch = True
            return snapshot

    def _find_commit(self, base: str, mark: str) -> str | None:
        """ID of this commit's snapshot on the branch; None if it is not there."""
        for info in self.store.repository.ancestry(branch=self.store.branch):
            if info.metadata.get(_MARK) == mark:
                return str(info.id)
            if str(info.id) == base:
                break
        return None

    def _refuse_collected(self) -> None:
        """Raise a `ConflictError` if uncommitted chunks may have been deleted by a garbage collection."""
        if self.store.was_collected(self.began) or (self.main is not None and self.store.was_swept(self.main)):
            raise ConflictError(
                f"{self.store.label}: garbage was collected while this ran, perhaps with its uncommitted chunks; "
                "nothing was committed, run it again"
            )

    @property
    def is_done(self) -> bool | None:
        """Whether it has committed, which makes the session read-only; None if unknown."""
        return None if self.is_unknown else self.is_on_branch or bool(self.session.read_only)


_COLLECTIONS = (icechunk.UpdateType.GCRan, icechunk.UpdateType.ExpirationRan)
