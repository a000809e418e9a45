"""A VCZ in an Icechunk repository: every operation is one commit."""

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, Self

import icechunk
from zarr.abc.store import Store as ZarrStore

from vczstore.errors import (
    BusyError,
    ConflictError,
    NotAStoreError,
    OptionError,
    StaleError,
    StorageError,
    TagError,
    UnsuitableError,
)
from vczstore.execution.checkpoint import Saved
from vczstore.stores import object_store
from vczstore.stores.base import Snapshot
from vczstore.stores.edits import Edit
from vczstore.stores.folder_swap import delete_half_written
from vczstore.stores.locations import local_path, parse, real_path
from vczstore.stores.lock import commit_lock, require_conditions
from vczstore.stores.object_store import Remote, reason
from vczstore.stores.plain import PlainStore
from vczstore.vcz.model import SAMPLE_ID, Vcz, listing

BRANCH = "main"

SAMPLE_ID_CHUNKS = 4
"""How many chunks of sample IDs have their references in one manifest: few, since each commit rewrites the last."""

SWEEPS = ("purge", "gc")
"""The operations that delete unreferenced objects. Each is two commits; the first of them is named `BEGUN`."""
BEGUN = "{} begun"

RECREATE = "recreate"
"""The operation that rewrites a state that a tag names."""
RECREATED = "vczstore-recreated-"
"""Begins the names of the branches on which tagged states are rewritten."""

AHEAD = timedelta(days=1)
"""How far in the future the cutoff of a sweep lies: what was written by a clock that is ahead has to go too."""


@dataclass(frozen=True)
class IcechunkStore:
    """A VCZ on a branch of a repository."""

    repository: icechunk.Repository
    label: str
    folder: Path | None = None
    """Where the repository lies, if on this machine: its commits are serialised by a file lock there."""
    branch: str = BRANCH
    backend: str = "icechunk"
    atomic: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    no_lock: bool = False

    @property
    def pickles(self) -> bool:
        """Other processes reach all places but this process's own memory."""
        return "type: in-memory" not in str(self.repository.storage)

    @classmethod
    def of(cls, repository: icechunk.Repository, *, no_lock: bool = False) -> "IcechunkStore":
        """A repository that is open."""
        return cls(repository, label="<Icechunk repository>", folder=_folder_of(repository), no_lock=no_lock)

    @classmethod
    def at_url(cls, url: str, options: Mapping[str, Any], *, no_lock: bool = False) -> "IcechunkStore":
        """Open an existing repository."""
        storage, folder = _storage(url, options)
        if folder is not None and not folder.exists():
            raise NotAStoreError(f"{url}: no such file or directory")
        try:
            repository = icechunk.Repository.open(storage, config=None if folder else _runtime())
            return cls(repository, label=url, folder=folder, options=options, no_lock=no_lock)
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
            its own, whatever the size of the store.
        no_lock
            As in `open_store`.
        """
        _require_writable(url)
        storage, folder = _storage(url, options)
        dimension = icechunk.ManifestSplitDimCondition.DimensionName("^samples$")
        condition = icechunk.ManifestSplitCondition
        splitting = icechunk.ManifestSplittingConfig.from_dict(
            {
                condition.name_matches(f"^{SAMPLE_ID}$"): {dimension: SAMPLE_ID_CHUNKS},
                condition.AnyArray(): {dimension: samples_chunks},
            }
        )
        config = icechunk.RepositoryConfig.default() if folder else _runtime()
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
        storage, folder = _storage(url, options)
        return (folder is None or folder.exists()) and icechunk.Repository.exists(storage)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever committed to it."""
        history = self.repository.ancestry(branch=BRANCH)
        next(iter(history))
        return next(iter(history), None) is None

    @property
    def head(self) -> str:
        """The snapshot that readers see."""
        return str(self.repository.lookup_branch(self.branch))

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
            return Vcz.read(session.store, self.label, snapshot=str(session.snapshot_id))
        except NotAStoreError as error:
            others = self._refs()[1] if at is None else {}
            if not others:
                raise
            name = next(iter(others))
            raise NotAStoreError(
                f"{error}; that is the branch {self.branch}, beside which there is {listing(others, 3)}: as a source "
                f"in Python, hand in repository.readonly_session({name!r}); only {self.branch} is edited"
            ) from error

    def transaction(self, base: str) -> "IcechunkTransaction":
        """Begin one commit."""
        _require_writable(self.label)
        require_conditions(self)
        began = self._last_update()
        session = self.repository.writable_session(self.branch)
        operation = _operation(self.repository.lookup_snapshot(session.snapshot_id))
        for sweep in SWEEPS:
            if operation == BEGUN.format(sweep):
                raise BusyError(
                    f"{self.label} is being swept by {sweep}, or a {sweep} of it was stopped; wait until it is over, "
                    f"or complete it with: vczstore {sweep} {self.label}"
                )
        if session.snapshot_id != base:
            raise ConflictError(f"{self.label} has changed since the plan was made; plan again")
        return IcechunkTransaction(session, self, began)

    def tags(self) -> dict[str, str]:
        """The snapshot of every tag, by name."""
        names = sorted(self.repository.list_tags())
        return {name: str(self.repository.lookup_tag(name)) for name in names}

    def create_tag(self, name: str, snapshot: str | None = None) -> str:
        """Name a snapshot, the branch's head by default; returns it."""
        head = snapshot or self.head
        try:
            with self.lock():
                self.repository.create_tag(name, snapshot_id=head)
        except icechunk.AlreadyExistsError as error:
            taken = (
                "was used and deleted before, and Icechunk never gives a name twice"
                if (name not in self.repository.list_tags())
                else f"exists already, on snapshot {self.repository.lookup_tag(name)}"
            )
            raise TagError(f"tag: {name!r} {taken}; choose another name") from error
        except icechunk.IcechunkError as error:
            raise TagError(f"tag: {name!r}: {reason(error)}") from error
        return head

    def delete_tag(self, name: str) -> None:
        """Delete a tag; its snapshot stays."""
        try:
            with self.lock():
                self.repository.delete_tag(name)
        except icechunk.NotFoundError as error:
            raise TagError(f"tag: {self.label} has no tag {name!r}; vczstore tag {self.label} lists them") from error

    def history(self, snapshot: str | None = None) -> Iterator[Snapshot]:
        """All snapshots, newest first: those of the branch, or from one of them on."""
        start = {"branch": BRANCH} if snapshot is None else {"snapshot_id": snapshot}
        for info in self.repository.ancestry(**start):
            written = info.written_at.isoformat(timespec="seconds")
            yield Snapshot(str(info.id), written, info.message, dict(info.metadata))

    def stored_bytes(self) -> int | None:
        """The bytes of all chunks of all snapshots, where that takes no reading of a remote history."""
        if self.folder is None:
            return None
        stats = self.repository.chunk_storage_stats()
        return int(stats.native_bytes + stats.inlined_bytes)

    def pins(self, *, changing: bool = False) -> tuple[list[str], list[str]]:
        """
        The tags, and the branches beside the main one, that keep more than the present.

        Parameters
        ----------
        changing
            Count those that keep the present too: it is about to become the past.
        """
        present = set[str]() if changing else self._present()
        tags, branches = self._refs()
        return [n for n, s in tags.items() if s not in present], [n for n, s in branches.items() if s not in present]

    def _refs(self) -> tuple[dict[str, str], dict[str, str]]:
        """The snapshots of tags, and of branches beside the main one and `RECREATED` ones, by name."""
        names = [n for n in sorted(self.repository.list_branches() - {BRANCH}) if not n.startswith(RECREATED)]
        return self.tags(), {name: str(self.repository.lookup_branch(name)) for name in names}

    def _present(self) -> set[str]:
        """The snapshots that hold what the store holds now: those before a purge are named by its commits."""
        info = self.repository.lookup_snapshot(self.head)
        is_sweep = _operation(info) in (*SWEEPS, *map(BEGUN.format, SWEEPS))
        said = info.metadata["vczstore"] if is_sweep else {}
        return {str(info.id), *said.get("same", ())}

    def purge(
        self, *, tags: str, keep: Collection[str], base: str | None, before: Callable[[], None]
    ) -> tuple[str, dict[str, int], list[str]]:
        """
        Delete all history: what no longer is in the store cannot be read afterwards.

        Parameters
        ----------
        tags
            What is done with tags and branches that keep more than the present; ``"delete"`` deletes them.
        keep
            Tags that stay though they do, with the states that they name and nothing before these.
        base
            The present snapshot when `keep` was looked at. What was removed since is in these states; None if
            there are none.
        before
            Called before the first commit, and may refuse.

        Returns
        -------
        snapshot : str
            The new one, of the same content.
        counts : dict
            What was deleted, in numbers; ``bytes`` too.
        names : list of str
            The tags and branches that were deleted.

        Raises
        ------
        TagError
            If there are tags or branches that keep more, and they are not to be deleted. Nothing is done then.
        StaleError
            If another writer has changed the store meanwhile.
        StorageError
            If something could not be deleted.
        """

        def check() -> None:
            if tags != "delete":
                self.refuse_pins(keep=keep)
            before()

        options = " --tags recreate" if tags == "recreate" else ""
        with self._sweeping("purge", check, base=base, options=options) as sweep:
            pins, branches = self._pins_but(keep)
            for name in pins:
                self.repository.delete_tag(name)
            for name in branches:
                self.repository.delete_branch(name)
            self.drop_branches()
            self.repository.expire_snapshots(sweep.cutoff)
            sweep.collect(self)
            sweep.counts |= {"tags deleted": len(pins), "branches deleted": len(branches)}
            new = [name for names in self._pins_but(keep) for name in names]
            if new:
                raise StaleError(f"purge: {self.label}: {', '.join(new)} was made while it ran; {sweep.again}")
        return sweep.snapshot, sweep.counts, [*pins, *branches]

    def collect_garbage(self, *, before: Callable[[], None], dry_run: bool) -> tuple[str | None, dict[str, int]]:
        """
        Delete unreferenced objects, such as what a writer that was killed has left. All snapshots stay.

        Parameters
        ----------
        before
            Called before the first commit, and may refuse.
        dry_run
            Count, and delete nothing.

        Returns
        -------
        snapshot : str or None
            The new one, of the same content; None after a dry run.
        counts : dict
            What was deleted, in numbers; ``bytes`` too.

        Raises
        ------
        StaleError
            If another writer has changed the store meanwhile.
        StorageError
            If something could not be deleted.
        """
        if dry_run:
            sweep = _Sweep("")
            sweep.collect(self, dry_run=True)
            return None, sweep.counts
        with self._sweeping("gc", before) as sweep:
            sweep.collect(self)
        return sweep.snapshot, sweep.counts

    @contextmanager
    def _sweeping(
        self, name: str, check: Callable[[], None], *, base: str | None = None, options: str = ""
    ) -> "Iterator[_Sweep]":
        """
        Deleting unreferenced objects, between two commits that change nothing.

        The first makes every session that began before it conflict, since what such a session has written is about to
        be deleted; and none begins until the second has followed, which stays away if the sweep is stopped. Without
        them a commit that lands while Icechunk collects succeeds, and what it has written is gone.

        Parameters
        ----------
        name
            One of `SWEEPS`.
        check
            Called before the first commit, and may refuse.
        base
            The snapshot that the first commit has to follow; None for any.
        options
            With which it is to be run again, if it is stopped.
        """
        again = f"run it again: vczstore {name} {self.label}{options}"
        sweep = _Sweep(f"the {name} is not complete, {again}")
        begin = ""
        try:
            with self.lock():
                session = self.repository.writable_session(BRANCH)
                if base not in (None, session.snapshot_id):
                    raise StaleError(f"{name}: {self.label} was changed by another writer meanwhile; {sweep.again}")
                check()
                same = sorted(self._present().intersection(s for refs in self._refs() for s in refs.values()))
                said: dict[str, Any] = {"operation": BEGUN.format(name), "same": same, "version": version("vczstore")}
                begin = _commit_nothing(session, f"{name}: begun", said)
                yield sweep
                if self.head != begin:
                    raise StaleError(f"{name}: {self.label}: there was a commit while it ran; {sweep.again}")
                told = {what: n for what, n in sweep.counts.items() if what in _SWEPT}
                message = f"{name}: {', '.join(f'{n:,} {what}' for what, n in told.items())}"
                counts = {what: n for what, n in sweep.counts.items() if what != "bytes"}
                session = self.repository.writable_session(BRANCH)
                sweep.snapshot = _commit_nothing(session, message, {**said, "operation": name, **counts})
        except icechunk.ConflictError as error:
            state = sweep.again if begin else f"nothing was deleted, {again}"
            raise StaleError(f"{name}: {self.label} was changed by another writer meanwhile; {state}") from error
        except icechunk.IcechunkError as error:
            state = sweep.again if begin else "nothing was deleted"
            raise StorageError(f"{name}: {self.label}: {reason(error)}; {state}") from error

    def _pins_but(self, keep: Collection[str]) -> tuple[list[str], list[str]]:
        """The `pins` beside tags that may stay."""
        tags, branches = self.pins()
        return [name for name in tags if name not in keep], branches

    def refuse_pins(self, *, changing: bool = False, keep: Collection[str] = ()) -> None:
        """Raise a `TagError` if there are `pins`, beside tags that may stay."""
        tags, branches = self.pins(changing=changing)
        named = [f"the tag {name}" for name in tags if name not in keep] + [f"the branch {name}" for name in branches]
        if named:
            raise TagError(
                f"purge: {self.label}: older snapshots are kept by {listing(named, limit=100)}; nothing was done, "
                "delete them, let the purge do it with --tags delete, or have tags rewritten with --tags recreate"
            )

    def rename_tag(self, name: str, snapshot: str) -> str:
        """
        Let a tag make way for one of another name, since Icechunk gives no name twice.

        Parameters
        ----------
        name
            The tag. The new one has a number after it, the first that is free: ``release-1.1``, and ``release-1.2``
            when that is rewritten in its turn. A number of the user's stays: ``v1.1`` becomes ``v1.1.1``.
        snapshot
            What the new tag names: a `RECREATE` commit on what the old one names.
        """
        stem, number = self._numbered(name)
        with self.lock():
            for n in count(number + 1):
                try:
                    self.repository.create_tag(f"{stem}.{n}", snapshot_id=snapshot)
                except icechunk.AlreadyExistsError:
                    continue
                self.repository.delete_tag(name)
                return f"{stem}.{n}"
        raise AssertionError("unreachable")

    def complete_renames(self) -> dict[str, str]:
        """Delete tags that have made way already, where `rename_tag` was stopped; the new names by the old ones."""
        with self.lock():
            tags, renamed = self.tags(), dict[str, str]()
            stems = {name: self._numbered(name)[0] for name in tags}
            parents = {name: self.repository.lookup_snapshot(snapshot).parent_id for name, snapshot in tags.items()}
            new = {(stems[name], parents[name]): name for name in tags if self._is_recreated(name)}
            for name, snapshot in tags.items():
                if (stems[name], snapshot) in new:
                    self.repository.delete_tag(name)
                    renamed[name] = new[stems[name], snapshot]
        return renamed

    def _is_recreated(self, tag: str) -> bool:
        return _operation(self.repository.lookup_snapshot(str(self.repository.lookup_tag(tag)))) == RECREATE

    def _numbered(self, tag: str) -> tuple[str, int]:
        """The name of a tag, and the number that `rename_tag` has put after it, 0 if none."""
        stem, dot, number = tag.rpartition(".")
        return (stem, int(number)) if dot and number.isdecimal() and self._is_recreated(tag) else (tag, 0)

    @contextmanager
    def rewriting(self, tag: str) -> "Iterator[IcechunkStore]":
        """The store on a branch of its own, on which the state that a tag names is rewritten; it goes afterwards."""
        branch = f"{RECREATED}{tag}"
        with self.lock():
            self.drop_branches()
            self.repository.create_branch(branch, self.repository.lookup_tag(tag))
        try:
            yield replace(self, branch=branch)
        finally:
            with suppress(icechunk.IcechunkError), self.lock():  # what cannot be deleted now goes with the purge
                self.drop_branches()

    def drop_branches(self) -> None:
        """Delete `RECREATED` branches: who made them was stopped."""
        for name in self.repository.list_branches():
            if name.startswith(RECREATED):
                self.repository.delete_branch(name)

    def reachable(self) -> list[str]:
        """Every snapshot that a branch or tag leads to, older ones included."""
        found: dict[str, None] = {}
        refs = [{"branch": name} for name in sorted(self.repository.list_branches())]
        refs += [{"tag": name} for name in sorted(self.repository.list_tags())]
        for ref in refs:
            for info in self.repository.ancestry(**ref):
                found[str(info.id)] = None
        return list(found)

    def unreachable(self, snapshots: Sequence[str], names: Mapping[str, set[str]]) -> dict[str, int]:
        """
        Count the objects of a repository that nothing leads to.

        Parameters
        ----------
        snapshots
            Those that are `reachable`.
        names
            What lies in the folders ``snapshots`` and ``manifests``. Chunks are counted by Icechunk itself, which
            takes the references in all manifests.
        """
        used = {str(m.id) for s in snapshots for m in self.repository.list_manifest_files(s)}
        dry = self.repository.garbage_collect(datetime.now(UTC) + AHEAD, dry_run=True, **_MANIFESTS)
        return {
            "snapshot": max(len(names["snapshots"] - set(snapshots)), int(dry.snapshots_deleted)),
            "manifest": max(len(names["manifests"] - used), int(dry.manifests_deleted)),
            "chunk": int(dry.chunks_deleted),
        }

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

    def _updates(self) -> Iterator[Any]:
        # repositories of Icechunk's first format keep no log
        return self.repository.ops_log() if self.repository.spec_version >= icechunk.SpecVersion.v2 else iter(())

    def lock(self) -> AbstractContextManager[Any]:
        """What serialises commits where the storage does not."""
        _require_writable(self.label)
        return nullcontext() if self.folder is None or self.no_lock else commit_lock(self.label, self.folder)


@dataclass(frozen=True)
class SessionStore(PlainStore):
    """
    What a session of the user's sees, uncommitted changes included; it is only read.

    Attributes
    ----------
    snapshot
        The snapshot that it sees; None if it has changes of its own.
    """

    snapshot: str | None = None
    atomic: bool = True

    @classmethod
    def of(cls, place: Any) -> "SessionStore":
        """A session, or the Zarr store of one."""
        session = place.session if isinstance(place, icechunk.IcechunkStore) else place
        snapshot = None if session.has_uncommitted_changes else str(session.snapshot_id)
        if not session.read_only and not isinstance(session, icechunk.ForkSession):
            session = session.fork()  # other processes can read that, too
        return cls(session.store, "<Icechunk session>", "icechunk", snapshot=snapshot)

    def open(self, at: str | None = None) -> Vcz:
        """Read the metadata; a session sees one state alone."""
        if at is not None:
            raise OptionError(f"info: {self.label} sees one state; hand in its repository to look at {at!r}")
        return Vcz.read(self.zarr_store, self.label, snapshot=self.snapshot)


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
        """Raise an `UnsuitableError` if something is there that is not an empty repository."""
        path = local_path(self.label)
        if IcechunkStore.exists(self.label, self.options):
            if IcechunkStore.at_url(self.label, self.options).is_empty:
                return
            raise UnsuitableError(f"{self.operation}: {self.label} holds a repository already; choose another path")
        if path is not None and path.exists() and any(path.iterdir()):
            raise UnsuitableError(
                f"{self.operation}: {self.label} exists, and is no Icechunk repository; choose another path"
            )

    def transaction(self, base: str) -> "IcechunkTransaction":
        """Create the repository, and begin its first commit."""
        self.require_nothing()
        place = IcechunkStore.create(self.label, self.options, self.samples_chunks, no_lock=self.no_lock)
        return place.transaction(place.head)


@dataclass
class IcechunkTransaction:
    """A writable session, and the fork of it that the tasks of the present step write to."""

    session: icechunk.Session
    place: IcechunkStore
    began: datetime | None
    """The repository's last change before it."""
    fork: icechunk.IcechunkStore | None = None

    @contextmanager
    def step(self, preparations: Sequence[Edit], edits: Sequence[Edit]) -> Iterator[ZarrStore]:
        """
        Fork the session for the tasks of one plan, and merge what they have written into it.

        The edits are made first: chunks written through a fork that does not know the new shapes yet would be
        silently dropped.
        """
        for edit in (*preparations, *edits):
            edit.apply(self.session.store)
        fork = self.fork = self.session.fork().store
        yield fork
        if fork.session.has_uncommitted_changes:
            self.session.merge(fork.session)

    def found(self) -> ZarrStore:
        """What the steps so far have left, to be read while the next one writes."""
        session = self.session.fork() if self.session.has_uncommitted_changes else self.session
        store: ZarrStore = session.store
        return store

    def collect(self, store: ZarrStore) -> None:
        """
        Merge the fork that a task sends back.

        Tasks in this process write to the one fork that was made here; it is merged once, when the step ends:
        to merge it after each task would be quadratic.
        """
        if store is not self.fork:
            assert isinstance(store, icechunk.IcechunkStore)
            self.session.merge(store.session)

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
            self.place.repository.list_manifest_files(saved.forked)  # a snapshot of no branch cannot be looked up
            session = icechunk.Session(load(saved.session))
            if saved.fork:
                session.merge(icechunk.ForkSession(load(saved.fork)))
        except icechunk.IcechunkError as error:
            raise ValueError(f"is of no use: {reason(error)}") from error
        if (session.snapshot_id, session.branch) != (self.session.snapshot_id, BRANCH):
            raise ValueError("is of another state of the store")
        if self.place.was_collected(saved.began):
            raise ValueError("is of no use: garbage was collected since, and with it what had been written")
        self.session, self.began = session, saved.began

    def commit(self, message: str, metadata: Mapping[str, Any]) -> str:
        """Commit; a store that moved on in the meantime is left as it is, and so is one that nothing was done to."""
        if not self.session.has_uncommitted_changes:
            return str(self.session.snapshot_id)
        try:
            with self.place.lock():
                if self.place.was_collected(self.began):
                    raise ConflictError(
                        f"{self.place.label}: garbage was collected while this ran, and with it what had been written; "
                        "nothing was committed, run it again"
                    )
                return str(self.session.commit(message, metadata=dict(metadata)))
        except icechunk.ConflictError as error:
            raise ConflictError(
                f"{self.place.label} was changed by another writer while this ran; nothing was committed, run it again"
            ) from error
        except icechunk.IcechunkError as error:
            raise StorageError(f"{self.place.label}: {reason(error)}") from error

    @property
    def is_done(self) -> bool:
        """Whether the session has committed: it cannot write any more."""
        return bool(self.session.read_only)


_MANIFESTS = {"max_compressed_manifest_mem_bytes": 2**26, "max_decoded_manifest_mem_bytes": 2**29}
"""What a collection of garbage may hold of manifests at once: by default it is gigabytes."""

_SWEPT = ("snapshots deleted", "manifests deleted", "chunks deleted")


@dataclass
class _Sweep:
    """What a purge or gc does; `again` says what to do if it is stopped."""

    again: str
    cutoff: datetime = field(default_factory=lambda: datetime.now(UTC) + AHEAD)
    counts: dict[str, int] = field(default_factory=dict)
    snapshot: str = ""

    def collect(self, store: IcechunkStore, *, dry_run: bool = False) -> None:
        """Delete unreferenced objects, or only count it; in a folder what is half-written too: Icechunk sees none."""
        done = store.repository.garbage_collect(self.cutoff, dry_run=dry_run, **_MANIFESTS)
        if done.objects_failed_to_delete:
            raise StorageError(f"{done.objects_failed_to_delete:,} objects could not be deleted; {self.again}")
        numbers = (done.snapshots_deleted, done.manifests_deleted, done.chunks_deleted)
        self.counts = {**dict(zip(_SWEPT, map(int, numbers), strict=True)), "bytes": int(done.bytes_deleted)}
        self.counts |= delete_half_written(store.folder, dry_run=dry_run)


def _commit_nothing(session: icechunk.Session, message: str, said: Mapping[str, Any]) -> str:
    return str(session.commit(message, metadata={"vczstore": dict(said)}, allow_empty=True))


_COLLECTIONS = (icechunk.UpdateType.GCRan, icechunk.UpdateType.ExpirationRan)


def _operation(info: icechunk.SnapshotInfo) -> str | None:
    """What a commit of ours did; None for others."""
    said = info.metadata.get("vczstore", {})
    return said.get("operation") if isinstance(said, dict) else None


def _storage(url: str, options: Mapping[str, Any]) -> tuple[icechunk.Storage, Path | None]:
    """The storage that a URL names, and its folder if it is on this machine. Credentials come from the environment."""
    if "ICECHUNK_LOG" not in os.environ:
        # its warning about commits at once on a local file system is answered by the lock
        icechunk.set_logs_filter("error")
    location = parse(url)
    if location.path is not None:
        folder = real_path(location.path)
        for entry in folder.iterdir() if folder.is_dir() else ():
            # icechunk would read it to its end, and let nobody interrupt it
            if entry.is_fifo() or entry.is_char_device() or entry.is_socket():
                raise StorageError(f"{url}: {entry.name} is a pipe or a device, where there should be a file")
        return icechunk.local_filesystem_storage(str(folder)), folder
    if location.kind == "http":
        # what else there is, such as a page that says so, is no repository
        return icechunk.http_storage(location.url), None
    remote = Remote.of(location, options)
    if remote is None:
        raise OptionError(f"{url}: no Icechunk storage for {location.kind}://; use a path, s3://, gs:// or az://")
    return remote.icechunk(), None


_LOCAL = re.compile(r"<icechunk\.Storage>\ntype: local filesystem\npath:(?: (.*)|\n(.*))\n", re.S)
"""How icechunk describes a storage on this machine, which is all that tells where it is; texts of several lines are
indented."""


def _folder_of(repository: icechunk.Repository) -> Path | None:
    """
    Where a repository that is open lies, links resolved; None if it is elsewhere.

    Raises
    ------
    OptionError
        If its path is relative to another working directory. Nothing tells which: processes that it is sent to would
        write elsewhere, and its lock would be another one.
    """
    text = str(repository.storage)
    if "\ntype: local filesystem\n" not in text:
        return None
    said = _LOCAL.fullmatch(text)
    path = "" if said is None else said[1] or re.sub("^    ", "", said[2], flags=re.M)
    folder = real_path(Path(path))
    head = str(repository.lookup_branch(BRANCH))
    if not os.path.isabs(path) and not (folder / "snapshots" / head).exists():
        raise OptionError(
            f"an Icechunk repository was opened by the relative path {path!r} of another working directory, where "
            "other processes would not find it; open it by an absolute path, or name it by its path"
        )
    return folder


def _require_writable(label: str) -> None:
    """
    Refuse keys on S3 under which Icechunk 2.3 writes wrongly.

    For each change of a repository it copies an object, and names it in the header ``x-amz-copy-source`` as it is,
    where S3 takes a percent-encoded name (API reference, CopyObject): ``a%20b`` would be a copy of what is in ``a b``.
    """
    location = parse(label)
    wrong = re.search("[%#?+]|[^ -~]", location.key) if location.kind == "s3" else None
    if wrong is not None:
        raise OptionError(
            f"{label}: Icechunk cannot write where an S3 key has {wrong[0]!r} in it; copy the repository to another key"
        )


def _runtime() -> icechunk.RepositoryConfig:
    """
    How often requests are made again, how long they may take, and that writes are conditional.

    Conditional whatever a repository says: one that was made in a folder and copied to an object store says that they
    are not, and of commits at once some would be silently lost.
    """
    first, longest = (round(1000 * seconds) for seconds in object_store.BACKOFF)
    wait = round(1000 * object_store.TIMEOUT)
    return icechunk.RepositoryConfig(
        storage=icechunk.StorageSettings(
            unsafe_use_conditional_create=True,
            unsafe_use_conditional_update=True,
            unsafe_use_metadata=True,
            retries=icechunk.StorageRetriesSettings(
                max_tries=object_store.RETRIES + 1, initial_backoff_ms=first, max_backoff_ms=longest
            ),
            timeouts=icechunk.StorageTimeoutSettings(
                connect_timeout_ms=wait,
                read_timeout_ms=wait,
                operation_timeout_ms=round(1000 * object_store.MAX_REQUEST),
            ),
        )
    )
