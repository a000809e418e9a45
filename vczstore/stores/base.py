"""What operations see of a place that holds a VCZ: Protocols, one implementation per kind of place.

`vczstore.stores.resolve` makes a `Store` of what a user typed; no backend is known here.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from zarr.abc.store import Store as ZarrStore
from zarr.types import AnyArray

from vczstore.stores.edits import Edit
from vczstore.vcz.model import Vcz

if TYPE_CHECKING:
    import numpy as np
    from icechunk import Repository, Session
    from zarr import Group

type Location = str | Path | ZarrStore | "Group | Repository | Session"
"""What a user may call a store by."""

SESSION_IS_READ = (
    "an Icechunk session is only read, since each operation commits by itself; hand in the session's repository, or "
    "its path or URL"
)

UNCHANGED = "nothing was committed, the store is as it was"
"""What state a store is in when a transaction of all or nothing did not end well."""

type Check = Callable[[], None]
"""What is called before something becomes visible, and may refuse by raising."""


class HeldLock(Protocol):
    """A lock that is held."""

    def check(self) -> None:
        """
        Make sure that it is still held; to be called right before a commit.

        Raises
        ------
        StaleError
            If another writer may have worked on the store.
        StorageError
            If storage does not say.
        """


class Snapshot(NamedTuple):
    """One entry of a store's history; `metadata` is what `Transaction.commit` was given."""

    id: str
    time: str
    message: str
    metadata: Mapping[str, Any]


RESTORED = "restored"
"""The key of a restore's metadata that has the snapshot whose state it is."""

PAST = "past"
"""The key of a purge's metadata that has what was in the history before it; see `past_of`."""

MAX_PAST = 10_000
"""Entries of the past that a purge keeps; older ones go. Each purge and gc writes all of them twice."""


def past_of(snapshots: Iterable[Snapshot]) -> list[dict[str, Any]]:
    """
    What is known of a history and of what purges have deleted of it: what was done when, in numbers, newest first.

    What others than vczstore have said of their commits is left out, since it may be anything.
    """
    found, older, seen = list[dict[str, Any]](), list[dict[str, Any]](), set[str]()
    for one in snapshots:
        said = dict(one.metadata.get("vczstore", {}))
        for name in ("same", "holds"):
            said.pop(name, None)
        older = older or said.get(PAST, [])
        said.pop(PAST, None)
        seen.add(one.id)
        found.append({"snapshot": one.id, "time": one.time, **said})
    return [*found, *(one for one in older if one["snapshot"] not in seen)][:MAX_PAST]


class Keep(NamedTuple):
    """What is kept of a history: what is no older than this, and all tags or those that name it alone."""

    age: timedelta
    all_tags: bool


class Saved(NamedTuple):
    """
    What another process needs to go on with a transaction.

    Attributes
    ----------
    session
        All that was merged.
    fork
        What tasks in threads have written since; empty where tasks return what they have written.
    forked
        The snapshot that the fork began with: nothing leads to it, so it goes when garbage is collected.
    began
        The repository's last change before the transaction; None if it keeps no log of changes.
    """

    session: bytes
    fork: bytes
    forked: str
    began: datetime | None


class Resumable(Protocol):
    """A transaction with which another process can go on."""

    def save(self) -> Saved:
        """What was written so far."""

    def restore(self, saved: Saved) -> None:
        """
        Go on with what another process has saved of a transaction, instead of with what was written here.

        Raises
        ------
        ValueError
            If that cannot be: the store has changed, or chunks may be gone.
        """


class Transaction(Protocol):
    """What makes the writes of one or more plans visible at once, or, on plain Zarr, plan by plan in a safe order."""

    def step(
        self, preparations: Sequence[Edit], edits: Sequence[Edit], check: Check | None = None
    ) -> AbstractContextManager[ZarrStore]:
        """
        Write what one plan writes; it sees what the plans before it have written.

        Parameters
        ----------
        preparations
            What the driver writes before the tasks run, and no reader notices.
        edits
            What the driver writes to make everything visible, in the order that is safe where nothing is transactional.
        check
            Called before the edits where readers notice these before the commit.

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
    def is_done(self) -> bool | None:
        """Whether it has committed, though `commit` may have been interrupted, or failed; None if that is not known."""

    @property
    def shows_steps(self) -> bool:
        """Whether readers see each step when it ends, before the commit."""

    @property
    def resumable(self) -> Resumable | None:
        """What lets another process go on with it; None where that cannot be."""


class History(Protocol):
    """The snapshots of a store, and the tags and branches that name them. On plain Zarr there are none of these."""

    @property
    def is_kept(self) -> bool:
        """Whether there are snapshots at all."""

    def require(self, operation: str) -> None:
        """Raise a `TagError` where no history is kept."""

    def tags(self) -> dict[str, str]:
        """The snapshot of each tag, by name."""

    def create_tag(self, name: str, snapshot: str | None = None) -> str:
        """
        Name a snapshot, the present one by default; returns it.

        Raises
        ------
        TagError
            If the name is taken, was taken once, or no history is kept.
        """

    def delete_tag(self, name: str) -> None:
        """
        Delete a tag; its snapshot stays.

        Raises
        ------
        TagError
            If there is no such tag, or no history.
        """

    def snapshots(self, start: str | None = None) -> Iterator[Snapshot]:
        """All snapshots, newest first, or one and those before it."""

    def content(self, snapshot: str) -> str:
        """The snapshot that made the state which one has: a purge or gc makes snapshots, but no other state."""

    def branches(self) -> "Branches":
        """
        The branches, to be looked at and changed.

        Raises
        ------
        TagError
            Where no history is kept.
        """

    def changed_chunks(self, since: str, until: str) -> "Mapping[str, np.ndarray | None] | None":
        """
        Which chunks differ between two snapshots, without reading any.

        Parameters
        ----------
        since, until
            The snapshots, the older one first.

        Returns
        -------
        mapping or None
            The numbers of chunks that may differ, chunks by axes, of each array that has any, by path; None in their
            place for an array that is another one, or is in one snapshot only. None where that is not known: the one
            is no ancestor of the other, or there are no snapshots.
        """

    def reachable(self) -> list[str]:
        """Every snapshot that a branch or tag leads to, older ones included."""

    def unreachable(self, snapshots: Sequence[str], names: Mapping[str, set[str]]) -> dict[str, int]:
        """
        Count unreferenced objects.

        Parameters
        ----------
        snapshots
            Those that are `reachable`.
        names
            What lies in the folders ``snapshots`` and ``manifests``.
        """

    def refuse_pins(self, *, changing: bool = False, keep: Collection[str] = (), published: str | None = None) -> None:
        """
        Raise a `TagError` if tags or branches beside the main one keep more than the present.

        Parameters
        ----------
        changing
            Count those that keep the present too: it is about to become the past.
        keep
            Tags that may stay.
        published
            A branch that is about to be published.
        """

    def purge(
        self, *, tags: str, keep: Collection[str], base: str | None, before: Check
    ) -> tuple[str | None, dict[str, int], list[str]]:
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
        snapshot : str or None
            The new one, of the same content; None where there are none.
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

    def foreseen(self, *, tags: str, changing: bool = False) -> tuple[dict[str, int], list[str]]:
        """
        What a purge would delete: numbers of what is told, and the names of tags and branches.

        Parameters
        ----------
        tags
            As in `purge`; with ``"recreate"`` tags are none of what is deleted.
        changing
            As in `refuse_pins`.

        Raises
        ------
        TagError
            As `purge`.
        """

    def rewriting(self, tag: str) -> "AbstractContextManager[Store]":
        """The store on a branch of its own, on which the state that a tag names is rewritten; it goes afterwards."""

    def rename_tag(self, name: str, snapshot: str) -> str:
        """Let a tag make way for one that names a rewritten snapshot; returns the new name."""

    def complete_renames(self) -> dict[str, str]:
        """Delete tags that have made way already, where `rename_tag` was stopped; the new names by the old ones."""

    def refuse_tag(self, name: str) -> None:
        """Raise a `TagError` if a tag of this name cannot be made: it is taken, or was once."""

    def stage(self, base: str, of: str) -> "Store":
        """The store on a branch of its own, where a commit of a set waits that readers see once it is published."""

    def publish(self, snapshot: str, base: str, branch: str) -> None:
        """
        Let a staged snapshot be what readers of a branch see; where they do already, nothing is done.

        Raises
        ------
        ConflictError
            If the present snapshot is not the one that it was made from.
        """

    def shows(self, snapshot: str, branch: str) -> bool:
        """Whether readers of a branch see a snapshot, or one that came after it."""

    def staged(self) -> list[str]:
        """The sets of which commits wait on branches."""

    def unstage(self, of: str) -> None:
        """Delete the branches on which commits of a set were staged; the lock has to be held."""


class Branches(Protocol):
    """The branches of a repository: lines of snapshots, of which readers see the main one."""

    def tips(self) -> dict[str, str]:
        """The last snapshot of each branch, by name."""

    def create(self, name: str, at: str | None = None) -> str:
        """
        Begin a branch at the main one's last snapshot, or at a tag, branch or snapshot; returns it.

        Raises
        ------
        TagError
            If there is a branch of this name, or nothing to begin it at.
        """

    def delete(self, name: str) -> int:
        """
        Delete a branch; returns how many snapshots it has that the main one lacks.

        Raises
        ------
        TagError
            If there is none, or it is the main one.
        """

    def is_ahead(self, name: str, *, publishing: bool) -> bool:
        """
        Whether a branch has what the main one lacks; False of one that is not there.

        Parameters
        ----------
        name
            The branch.
        publishing
            Whether it is going to be published.

        Raises
        ------
        StaleError
            If the main one has changed since as well, so that the branch cannot be published.
        """

    def prepare(self, name: str) -> None:
        """Make a branch if it is not there; one that has nothing that the main one lacks goes on from that one."""

    def publish(self, name: str, before: Check) -> tuple[str, str, int]:
        """
        Let the main branch go on to the last snapshot of another one.

        Parameters
        ----------
        name
            The other one.
        before
            Called before, and may refuse.

        Returns
        -------
        before, after : str
            The last snapshot of the main branch.
        n : int
            How many snapshots are new there.

        Raises
        ------
        TagError
            If there is no such branch.
        StaleError
            If the main branch has changed since the other one began.
        BusyError
            If the store is being purged, or garbage collected.
        """


class Lockable(Protocol):
    """Where a store is, and so its lock."""

    @property
    def label(self) -> str:
        """How messages call it."""

    @property
    def place(self) -> str:
        """Its path or URL; that of the repository, of a group."""

    @property
    def no_lock(self) -> bool:
        """Whether it is written to without its lock."""

    @property
    def folder(self) -> Path | None:
        """The folder of this machine in which it lies, links resolved; None if it is elsewhere."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The storage options that reach it."""

    @property
    def zarr_store(self) -> ZarrStore | None:
        """What tasks read and write themselves; None where each transaction has a Zarr store of its own."""


class Store(Lockable, Protocol):
    """A place that holds one VCZ."""

    @property
    def group(self) -> str:
        """The group of a repository in which the VCZ lies; empty where it has a place of its own."""

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
    def branch(self) -> str | None:
        """The branch that is read and written to; None where there are none."""

    @property
    def head(self) -> str | None:
        """The last snapshot of the branch; None where there are no snapshots."""

    @property
    def history(self) -> History:
        """Its snapshots, tags and branches."""

    @property
    def begins_empty(self) -> bool:
        """Whether a transaction begins with nothing, so that what stays as it is has to be linked into it."""

    @property
    def why_consistent(self) -> str | None:
        """Why nothing in it is ever half-done; None where a stopped operation may leave something to be repaired."""

    def open(self, at: str | None = None) -> Vcz:
        """
        Read the metadata of the VCZ, as it is now or as it was at a tag or snapshot.

        Raises
        ------
        NotAStoreError
            If there is no VCZ.
        """

    def beside(self) -> Sequence["Store"]:
        """The VCZs whose history this is, itself among them: several of a repository that has them in groups."""

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

    def first_step(self, transaction: Transaction, check: Check | None = None) -> AbstractContextManager[Transaction]:
        """
        Within which a plan is written that runs before another of the same operation.

        Parameters
        ----------
        transaction
            That of the operation.
        check
            Called before something becomes visible that is not part of it.

        Returns
        -------
        context manager of Transaction
            The same, or where a folder is replaced one of its own, which is committed at the end.
        """

    def in_place(self) -> "Store":
        """
        The store to which chunks can be written that readers of the old ones must not see.

        Returns
        -------
        Store
            Where commits are all or nothing, the same; on plain Zarr, the folder that is replaced as a whole.

        Raises
        ------
        UnsuitableError
            If it is on plain Zarr, and no folder of this machine that can be replaced.
        StorageError
            If the folder may not be written to.
        """

    def renumbering(self, array: AnyArray, axis: int, columns: Sequence[tuple[int, int]]) -> Edit:
        """
        What gives chunk columns of an array other numbers, without a chunk being read.

        For a store whose commits are all or nothing, and which does not begin empty.

        Parameters
        ----------
        array, axis
            The array as it is, and the axis.
        columns
            The numbers that columns have, and get. What lay where others come to lie is gone; all other columns stay.
        """

    def unlocked(self) -> "Store":
        """The same, to be written to without its lock."""

    def exclusive_lock(self, *, wait: bool = False, watch: bool = False) -> AbstractContextManager[HeldLock]:
        """
        Hold the lock that keeps jobs, and others that take long or delete, from the store.

        A store that is to be written to without is not locked, nor is a repository that is open and elsewhere, whose
        commits exclude each other.

        Parameters
        ----------
        wait
            Whether to wait until it is free; SIGINT ends the waiting.
        watch
            Whether to see first, if it is not to be waited for, that who holds a lease renews it: that takes up to a
            third of a TTL. The lease of a holder who was killed is taken after a TTL.

        Raises
        ------
        BusyError
            If it is held, and not to be waited for.
        StorageError
            If storage does not let it be held, or does not heed the conditions of a write.
        NotAStoreError
            If the store does not exist.
        MissingDependencyError
            If obstore is not installed.
        """

    def writer_lock(self) -> AbstractContextManager[HeldLock]:
        """
        Hold what one operation needs from before it is planned until after its commit, retries included.

        That is the lock of the store on plain Zarr, where two writers would mix their chunks; who was killed, or cut
        off from an object store, can run the same again, since its holder is watched. Where a folder is replaced as a
        whole, that, and the lock of what lies beside it. Of a repository it is nothing: see `retry_lock`. Nor is
        there anything to lock where a new store will be.

        Raises
        ------
        BusyError, StorageError, NotAStoreError, MissingDependencyError
            As in `exclusive_lock`.
        """

    def retry_lock(self) -> AbstractContextManager[HeldLock]:
        """
        Hold what an operation needs that is retried after a concurrent commit, beside its `writer_lock`.

        Of a repository that is its lock, which is waited for, so that of any number of writers all get through; in an
        object store it takes obstore, and without it nothing is held.
        """

    def settle(self) -> None:
        """
        Delete what the replacement of a folder that was stopped has left beside the store; its lock has to be held.

        What the store was before holds all that is going to be removed.
        """

    def collect_garbage(
        self, *, before: Check, dry_run: bool, keep: Keep | None = None
    ) -> tuple[str | None, dict[str, int]]:
        """
        Delete unreferenced objects, such as what a writer that was killed has left.

        Parameters
        ----------
        before
            Called before the first commit, and may refuse.
        dry_run
            Count, and delete nothing.
        keep
            What is kept of the history; all snapshots if None.

        Returns
        -------
        snapshot : str or None
            The new one, of the same content; None after a dry run, and where there are none.
        counts : dict
            What was deleted, in numbers; ``bytes`` too.

        Raises
        ------
        StaleError
            If another writer has changed the store meanwhile.
        StorageError
            If something could not be deleted.
        """

    def recovery_edits(self, *edits: Edit) -> tuple[Edit, ...]:
        """Those of some edits without which a stopped operation could not be completed; none if all is in a commit."""

    def after_failure(self, if_stopped: str, visible: int) -> str:
        """
        What state the store is in when an operation did not end well.

        Parameters
        ----------
        if_stopped
            That of a store in which a plan was stopped halfway.
        visible
            How many plans before it readers see.
        """
