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
from vczstore.stores.base import SESSION_IS_READ, UNCHANGED, Check, HeldLock, Keep, Saved, Store, Transaction
from vczstore.stores.edits import Edit
from vczstore.stores.icechunk_branches import is_sweep, refuse_swept
from vczstore.stores.icechunk_groups import around, within
from vczstore.stores.icechunk_history import RECREATED, STAGED, IcechunkHistory
from vczstore.stores.icechunk_storage import BRANCH, folder_of_repository, require_writable, runtime, storage_of
from vczstore.stores.locations import local_path
from vczstore.stores.lock import commit_lock, hold, require_conditions, unheld
from vczstore.stores.object_store import reason
from vczstore.stores.withdrawal_key import delete_unfinished_keys
from vczstore.stores.zarr_backed import NoHistory, ZarrBacked
from vczstore.vcz import arrays, zarr_objects
from vczstore.vcz.metadata import metadata_key
from vczstore.vcz.model import SAMPLE_ID, Vcz, listing
from vczstore.vcz.zarr_objects import wait_for

TRANSACTIONS = "Icechunk commits all or nothing, so that nothing there is ever half-done"

SAMPLE_ID_CHUNKS = 4
"""How many chunks of sample IDs have their references in one manifest: few, since each commit rewrites the last."""

_MARK = "vczstore_commit"
"""The key of a commit's metadata that has a random number: what tells it from others that did the same."""


@dataclass(frozen=True)
class IcechunkStore:
    """A VCZ on a branch of a repository."""

    repository: icechunk.Repository
    label: str
    folder: Path | None = None
    """Where the repository lies, if on this machine: its commits are serialised by a file lock there."""
    branch: str = BRANCH
    backend: str = "icechunk"
    options: Mapping[str, Any] = field(default_factory=dict)
    no_lock: bool = False
    group: str = ""
    """The group of the repository in which the VCZ lies; its root if empty."""
    atomic = True
    begins_empty = False
    zarr_store = None
    why_consistent = TRANSACTIONS

    @property
    def place(self) -> str:
        """The path or URL of the repository."""
        return self.label.removesuffix(f"#{self.group}") if self.group else self.label

    @property
    def pickles(self) -> bool:
        """Other processes reach all places but this process's own memory."""
        return "type: in-memory" not in str(self.repository.storage)

    @classmethod
    def of(cls, repository: icechunk.Repository, *, no_lock: bool = False) -> "IcechunkStore":
        """A repository that is open."""
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
        Open a repository, or create one that holds nothing yet.

        Parameters
        ----------
        url, options
            Where.
        samples_chunks
            How many chunk columns of a field have their chunk references in one manifest. A commit rewrites every
            manifest that it touches: split along the samples axis, an append rewrites the last one and adds
            its own, for a store of any size.
        no_lock
            As in `open_store`.
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
        """A repository to plan against, where there is none yet."""
        return cls(icechunk.Repository.create(icechunk.in_memory_storage()), label=label, **fields)

    @classmethod
    def exists(cls, url: str, options: Mapping[str, Any]) -> bool:
        """Whether there is a repository."""
        storage, folder = storage_of(url, options)
        return (folder is None or folder.exists()) and icechunk.Repository.exists(storage)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever committed to it."""
        history = self.repository.ancestry(branch=BRANCH)
        next(iter(history))
        return next(iter(history), None) is None

    def groups(self) -> list[str]:
        """The groups at the top, such as those that are parts of a set."""
        with suppress(GroupNotFoundError):
            top = zarr.open_group(self.repository.readonly_session(self.branch).store, mode="r")
            return sorted(top.group_keys())
        return []

    def beside(self) -> list[Self]:
        """The VCZs that have this history, too: of a group, those in all groups of the repository."""
        names = self.groups() if self.group else [""]
        return [replace(self, group=name, label=f"{self.place}#{name}" if name else self.label) for name in names]

    def has(self, group: str) -> bool:
        """Whether there is a group of this name, or anything that has its place."""
        return not wait_for(self.repository.readonly_session(self.branch).store.is_empty(group))

    @property
    def head(self) -> str:
        """The snapshot that readers see."""
        return str(self.repository.lookup_branch(self.branch))

    @property
    def history(self) -> IcechunkHistory:
        """The snapshots of the repository, its tags and branches."""

        def on_branch(branch: str) -> IcechunkStore:
            return replace(self, branch=branch)

        return IcechunkHistory(
            self.repository, self.label, self.folder, self.commit_lock, on_branch, self.branch, self.group
        )

    def on(self, branch: str | None) -> Self:
        """The same on another branch; None for this one."""
        if branch is None:
            return self
        if branch not in self.repository.list_branches():
            raise TagError(
                f"{self.label} has no branch {branch!r}; make it with: vczstore branch {self.label} {branch}"
            )
        return replace(self, branch=branch)

    def open(self, at: str | None = None) -> Vcz:
        """Read the metadata at the branch's head, another branch's, a tag or a snapshot."""
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
                f"{error}; that is the branch {self.branch}, beside which there is {listing(others, 3)}: name one with "
                f"--branch; as a source in Python, hand in repository.readonly_session({name!r})"
            ) from error

    def transaction(self, base: str) -> "IcechunkTransaction":
        """Begin one commit."""
        require_writable(self.place)
        require_conditions(self)
        began = self._last_update()
        session = self.repository.writable_session(self.branch)
        refuse_swept(self.repository, str(session.snapshot_id), self.label)
        main = None if self.is_main or self.branch.startswith(RECREATED) else str(self.repository.lookup_branch(BRANCH))
        if main is not None:
            refuse_swept(self.repository, main, self.label)
        if session.snapshot_id != base:
            raise ConflictError(f"{self.label} has changed since the plan was made; plan again")
        return IcechunkTransaction(session, self, began, main)

    @property
    def is_main(self) -> bool:
        """Whether it is the branch that readers see."""
        return self.branch == BRANCH

    def stored_bytes(self) -> int | None:
        """The bytes of all chunks of all snapshots, where that takes no reading of a remote history."""
        if self.folder is None:
            return None
        stats = self.repository.chunk_storage_stats()
        return int(stats.native_bytes + stats.inlined_bytes)

    def first_step(self, transaction: Transaction, check: Check | None = None) -> AbstractContextManager[Transaction]:
        """The transaction of the operation."""
        return nullcontext(transaction)

    def in_place(self) -> Self:
        """The same: readers see nothing before the commit."""
        return self

    def renumbering(self, array: AnyArray, axis: int, columns: Sequence[tuple[int, int]]) -> Edit:
        """Let Icechunk renumber its references."""
        return Renumber(array.path, arrays.grid_of(array), axis, tuple(columns))

    def unlocked(self) -> Self:
        """The same, to be written to without its lock."""
        return replace(self, no_lock=True)

    def exclusive_lock(self, *, wait: bool = False, watch: bool = False) -> AbstractContextManager[HeldLock]:
        """Hold the lock of the repository; one that is open and elsewhere has none."""
        return hold(self, wait=wait, watch=watch)

    def writer_lock(self) -> AbstractContextManager[HeldLock]:
        """Nothing: of two that commit at once one is refused, and tries again."""
        return unheld()

    def retry_lock(self) -> AbstractContextManager[HeldLock]:
        """The lock, waited for. In an object store it takes obstore, which Icechunk does not."""
        if self.folder is None and find_spec("obstore") is None:
            return unheld()
        return self.exclusive_lock(wait=True)

    def settle(self) -> None:
        """Delete what writers of a key that were killed have left beside the folder; all else is in commits."""
        delete_unfinished_keys(self.folder)

    def collect_garbage(
        self, *, before: Check, dry_run: bool, keep: Keep | None = None
    ) -> tuple[str | None, dict[str, int]]:
        """Delete, or count, what no snapshot leads to, and half-written files of a folder."""
        return self.history.collect_garbage(before=before, dry_run=dry_run, keep=keep)

    def recovery_edits(self, *edits: Edit) -> tuple[Edit, ...]:
        """None: all is in one commit."""
        return ()

    def after_failure(self, if_stopped: str, visible: int) -> str:
        """Nothing was committed."""
        return UNCHANGED

    def _last_update(self) -> datetime | None:
        """The time of the repository's last change, by the clock of who made it: what tells it from others."""
        return next((update.updated_at for update in self._updates()), None)

    def was_collected(self, since: datetime | None) -> bool:
        """Whether garbage was collected after a change, by any tool: what was not committed then may be gone."""
        for update in self._updates():
            if update.updated_at == since:
                break
            if isinstance(update.kind, _COLLECTIONS):
                return True
        return False

    def was_swept(self, main: str) -> bool:
        """Whether a purge or gc has begun since the main branch was at a snapshot; they commit to that branch alone."""
        for info in self.repository.ancestry(branch=BRANCH):
            if str(info.id) == main:
                break
            if is_sweep(info):
                return True
        return False

    def _updates(self) -> Iterator[Any]:
        # repositories of Icechunk's first format keep no log
        return self.repository.ops_log() if self.repository.spec_version >= icechunk.SpecVersion.v2 else iter(())

    def commit_lock(self) -> AbstractContextManager[Any]:
        """What serialises commits where the storage does not."""
        require_writable(self.place)
        return nullcontext() if self.folder is None or self.no_lock else commit_lock(self.label, self.folder)


@dataclass(frozen=True)
class SessionStore(ZarrBacked):
    """
    What a session of the user's sees, uncommitted changes included; it is only read.

    Attributes
    ----------
    snapshot
        The snapshot that it sees; None if it has changes of its own.
    """

    snapshot: str | None = None
    atomic = True

    @classmethod
    def of(cls, location: Any) -> "SessionStore":
        """A session, or the Zarr store of one."""
        session = location.session if isinstance(location, icechunk.IcechunkStore) else location
        snapshot = None if session.has_uncommitted_changes else str(session.snapshot_id)
        if not session.read_only and not isinstance(session, icechunk.ForkSession):
            session = session.fork()  # other processes can read that, too
        return cls(session.store, "<Icechunk session>", "icechunk", snapshot=snapshot)

    def open(self, at: str | None = None) -> Vcz:
        """Read the metadata; a session sees one state alone."""
        if at is not None:
            raise OptionError(f"info: {self.label} sees one state; hand in its repository to look at {at!r}")
        return Vcz.read(self.zarr_store, self.label, snapshot=self.snapshot)

    @property
    def history(self) -> NoHistory:
        """That of its repository, which has to be handed in."""
        return _SessionHistory(self.label)

    def in_place(self) -> NoReturn:
        """Refuse to write."""
        raise UnsuitableError(f"{self.label}: {SESSION_IS_READ}")

    def transaction(self, base: str) -> NoReturn:
        """Refuse to write."""
        raise UnsuitableError(f"{self.label}: {SESSION_IS_READ}")


class _SessionHistory(NoHistory):
    """What a session sees has no history, though its repository may."""

    def require(self, operation: str) -> NoReturn:
        """Raise an `UnsuitableError`."""
        raise UnsuitableError(f"{operation}: {SESSION_IS_READ}")


@dataclass(frozen=True)
class NewIcechunkStore(IcechunkStore):
    """
    A place where a repository will be; until then an empty one in memory stands for it.

    Attributes
    ----------
    samples_chunks
        As of `IcechunkStore.create`.
    operation
        What makes it.
    """

    samples_chunks: int = 1
    operation: str = field(kw_only=True)

    @property
    def pickles(self) -> bool:
        """What will be written to is no memory."""
        return True

    def require_nothing(self) -> None:
        """Raise an `UnsuitableError` if something is there that is not an empty repository, or without the group."""
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
        # what the creation of a repository that was stopped has left is completed by the next
        if path is not None and path.exists() and any(path.iterdir()) and not (path / "snapshots").is_dir():
            raise UnsuitableError(
                f"{self.operation}: {self.label} exists, and is no Icechunk repository; choose another path"
            )

    def transaction(self, base: str) -> "IcechunkTransaction":
        """Create the repository, and begin its first commit."""
        self.require_nothing()
        if not self.group or not IcechunkStore.exists(self.place, self.options):
            store = IcechunkStore.create(self.place, self.options, self.samples_chunks, no_lock=self.no_lock)
        else:
            store = IcechunkStore.at_url(self.place, self.options, no_lock=self.no_lock)
        store = replace(store, label=self.label, group=self.group)
        transaction = store.transaction(store.head)
        if self.group:
            zarr.open_group(transaction.session.store, mode="a")  # which holds the group
        return transaction


@dataclass(frozen=True)
class Renumber:
    """
    References to the chunks of an array are renumbered in a session.

    Attributes
    ----------
    path, grid
        The array, and how many chunks it has along each axis.
    axis, columns
        As in `Store.renumbering`.
    """

    path: str
    grid: tuple[int, ...]
    axis: int
    columns: tuple[tuple[int, int], ...]

    def apply(self, store: ZarrStore) -> None:
        """
        Renumber them.

        Icechunk renumbers regular grids alone, since it does not know how wide other chunks are; here each goes where
        it is as wide. So the array has a regular grid meanwhile, with room for old and new numbers.
        """
        inner, above = around(store)
        key = metadata_key(self.path, 3)
        document = zarr_objects.read_json(store, key)
        grid = {"name": "regular", "configuration": {"chunk_shape": [1] * len(self.grid)}}
        shape = list(self.grid)
        shape[self.axis] = max(shape[self.axis], *(1 + max(pair) for pair in self.columns))
        zarr_objects.write_json(store, key, {**(document or {}), "shape": shape, "chunk_grid": grid})
        places, origins = dict(self.columns), {to: of for of, to in self.columns}
        inner.session.reindex_array(
            f"/{above}{self.path}", lambda at: self._moved(at, places), lambda at: self._moved(at, origins) or at
        )
        zarr_objects.write_json(store, key, document or {})

    def _moved(self, at: Iterable[int], columns: Mapping[int, int]) -> list[int] | None:
        """Where a chunk goes, None if it stays where it is."""
        result = list(at)
        if (column := columns.get(result[self.axis])) is None:
            return None
        result[self.axis] = column
        return result


@dataclass
class IcechunkTransaction:
    """A writable session, and the fork of it that the tasks of the present step write to."""

    session: icechunk.Session
    store: IcechunkStore
    began: datetime | None
    """The repository's last change before it."""
    main: str | None = None
    """The main branch's last snapshot when it began; None if this writes to that branch, where a sweep conflicts."""
    fork: icechunk.IcechunkStore | None = None
    is_unknown: bool = False
    """Whether the commit has failed, and so has the look at the branch that tells whether it got through."""
    was_found: bool = False
    """Whether it failed, and got through."""
    shows_steps = False

    @contextmanager
    def step(
        self, preparations: Sequence[Edit], edits: Sequence[Edit], check: Check | None = None
    ) -> Iterator[ZarrStore]:
        """
        Fork the session for the tasks of one plan, and merge what they have written into it.

        The edits are made first: chunks written through a fork that does not know the new shapes yet would be
        silently dropped.
        """
        for edit in (*preparations, *edits):
            edit.apply(within(self.session.store, self.store.group))
        fork = self.fork = self.session.fork().store
        yield within(fork, self.store.group)
        if fork.session.has_uncommitted_changes:
            self.session.merge(fork.session)

    def found(self) -> ZarrStore:
        """What the steps so far have left, to be read while the next one writes."""
        session = self.session.fork() if self.session.has_uncommitted_changes else self.session
        return within(session.store, self.store.group)

    def collect(self, store: ZarrStore) -> None:
        """
        Merge the fork that a task sends back.

        Tasks in this process write to the one fork that was made here; it is merged once, when the step ends:
        to merge it after each task would be quadratic.
        """
        inner, _ = around(store)
        if inner is not self.fork:
            self.session.merge(inner.session)

    def of(self, store: Store) -> "IcechunkTransaction":
        """The same commit, of what is in another group of the repository."""
        assert isinstance(store, IcechunkStore)
        return replace(self, store=store, fork=None)

    @property
    def resumable(self) -> "IcechunkTransaction | None":
        """The same; None where nothing tells whether garbage was collected since, and with it what was written."""
        return None if self.began is None else self

    def save(self) -> Saved:
        """What was written so far; see `restore`. Here and there alone is what icechunk keeps to itself of sessions."""
        fork = self.fork.session if self.fork is not None else None
        return Saved(
            session=self.session._session.as_bytes(),
            fork=fork._session.as_bytes() if fork is not None and fork.has_uncommitted_changes else b"",
            forked=str(self.session.snapshot_id if fork is None else fork.snapshot_id),
            began=self.began,
        )

    def restore(self, saved: Saved) -> None:
        """
        Go on with what another process has saved of a transaction, instead of with what was written here.

        A session as it is, since another one with the same edits would not do: arrays that are new have other
        identities there, and chunks of theirs would be silently dropped.

        Raises
        ------
        ValueError
            If that cannot be: the store has changed, or chunks may be gone.
        """
        load = type(self.session._session).from_bytes
        try:
            self.store.repository.list_manifest_files(saved.forked)  # a snapshot of no branch cannot be looked up
            session = icechunk.Session(load(saved.session))
            if saved.fork:
                session.merge(icechunk.ForkSession(load(saved.fork)))
        except icechunk.IcechunkError as error:
            raise ValueError(f"is of no use: {reason(error)}") from error
        if (session.snapshot_id, session.branch) != (self.session.snapshot_id, self.session.branch):
            raise ValueError("is of another state of the store")
        if self.store.was_collected(saved.began):
            raise ValueError("is of no use: garbage was collected since, and with it what had been written")
        self.session, self.began = session, saved.began

    def commit(self, message: str, metadata: Mapping[str, Any]) -> str:
        """Commit; a store that moved on in the meantime is left as it is, and so is one that nothing was done to."""
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
                        # it may have landed while chunks were deleted that nothing led to yet
                        self.store.repository.reset_branch(self.store.branch, base, from_snapshot_id=snapshot)
                        raise
                return snapshot
        except icechunk.ConflictError as error:
            raise ConflictError(
                f"{self.store.label} was changed by another writer while this ran; nothing was committed, run it again"
            ) from error

    def _commit(self, message: str, metadata: Mapping[str, Any]) -> str:
        """Commit; where that fails, the branch tells whether it got through, and only the answer was lost."""
        base, mark = str(self.session.snapshot_id), secrets.token_hex(8)
        try:
            return str(self.session.commit(message, metadata={**metadata, _MARK: mark}))
        except icechunk.IcechunkError as error:
            self.is_unknown = not self.store.branch.startswith(STAGED)  # which no reader looks at
            try:
                found = self._found(base, mark)
            except icechunk.IcechunkError:
                raise StorageError(f"{self.store.label}: {reason(error)}") from error
            self.is_unknown = False
            if found is None:
                raise
            self.was_found = True
            return found

    def _found(self, base: str, mark: str) -> str | None:
        """The snapshot of this commit on the branch."""
        for info in self.store.repository.ancestry(branch=self.store.branch):
            if info.metadata.get(_MARK) == mark:
                return str(info.id)
            if str(info.id) == base:
                break
        return None

    def _refuse_collected(self) -> None:
        """Raise a `ConflictError` if what was written may have been deleted, since nothing led to it."""
        if self.store.was_collected(self.began) or (self.main is not None and self.store.was_swept(self.main)):
            raise ConflictError(
                f"{self.store.label}: garbage was collected while this ran, and with it what had been written; "
                "nothing was committed, run it again"
            )

    @property
    def is_done(self) -> bool | None:
        """Whether it has committed; a session that has cannot write any more."""
        return None if self.is_unknown else self.was_found or bool(self.session.read_only)


_COLLECTIONS = (icechunk.UpdateType.GCRan, icechunk.UpdateType.ExpirationRan)
