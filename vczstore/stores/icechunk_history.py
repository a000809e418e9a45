"""The history of an Icechunk repository: snapshots, tags and branches, and how they are deleted or rewritten."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import icechunk
import numpy as np

from vczstore.errors import ConflictError, StaleError, StorageError, TagError
from vczstore.stores.base import PAST, Check, Keep, Snapshot, Store, past_of
from vczstore.stores.icechunk_branches import (
    BEGUN,
    SWEEPS,
    IcechunkBranches,
    content_of,
    operation_of,
    refuse_swept,
    same_as,
)
from vczstore.stores.icechunk_storage import BRANCH
from vczstore.stores.leftovers import delete_half_written
from vczstore.stores.object_store import reason
from vczstore.vcz.model import listing
from vczstore.vcz.zarr_objects import wait_for

RECREATE = "recreate"
"""The operation that rewrites a state that a tag names."""
RECREATED = "vczstore-recreated-"
"""Begins the names of the branches on which tagged states are rewritten."""

STAGED = "vczstore-set-"
"""Begins the names of the branches on which commits wait that are published together with those of other stores."""

AHEAD = timedelta(days=1)
"""How far in the future the cutoff of a sweep lies: what was written by a clock that is ahead has to go too."""


@dataclass(frozen=True)
class IcechunkHistory:
    """
    The history of a repository.

    Attributes
    ----------
    repository
        Which.
    label
        How messages call the store.
    folder
        Where it lies, if on this machine.
    lock
        What serialises changes of it where the storage does not.
    on_branch
        The store on another branch.
    branch
        Whose history it is.
    group
        The group in which the store lies; the root if empty. Snapshots, tags and branches are of the whole repository.
    """

    repository: icechunk.Repository
    label: str
    folder: Path | None
    lock: Callable[[], AbstractContextManager[Any]]
    on_branch: Callable[[str], Store]
    branch: str = BRANCH
    group: str = ""
    is_kept = True

    def require(self, operation: str) -> None:
        """It is kept."""

    @property
    def head(self) -> str:
        """The present snapshot: that which readers see."""
        return str(self.repository.lookup_branch(BRANCH))

    def branches(self) -> IcechunkBranches:
        """The branches."""
        return IcechunkBranches(self.repository, self.label, self.lock)

    def tags(self) -> dict[str, str]:
        """The snapshot of every tag, by name."""
        names = sorted(self.repository.list_tags())
        return {name: str(self.repository.lookup_tag(name)) for name in names}

    def create_tag(self, name: str, snapshot: str | None = None) -> str:
        """Name a snapshot, the branch's head by default; returns it."""
        head = snapshot or str(self.repository.lookup_branch(self.branch))
        try:
            with self.lock():
                refuse_swept(self.repository, self.head, self.label)
                self.repository.create_tag(name, snapshot_id=head)
        except icechunk.AlreadyExistsError as error:
            raise self._taken(name) from error
        except icechunk.IcechunkError as error:
            raise TagError(f"tag: {name!r}: {reason(error)}") from error
        return head

    def _taken(self, name: str) -> TagError:
        """What a name that cannot be given is refused with."""
        taken = (
            f"was used and deleted before in {self.label}, and Icechunk never gives a name twice"
            if (name not in self.repository.list_tags())
            else f"exists already in {self.label}, on snapshot {self.repository.lookup_tag(name)}"
        )
        return TagError(f"tag: {name!r} {taken}; choose another name")

    def delete_tag(self, name: str) -> None:
        """Delete a tag; its snapshot stays."""
        try:
            with self.lock():
                self.repository.delete_tag(name)
        except icechunk.NotFoundError as error:
            raise TagError(f"tag: {self.label} has no tag {name!r}; vczstore tag {self.label} lists them") from error

    def snapshots(self, start: str | None = None) -> Iterator[Snapshot]:
        """All snapshots, newest first: those of the branch, or from one of them on."""
        ref = {"branch": self.branch} if start is None else {"snapshot_id": start}
        for info in self.repository.ancestry(**ref):
            written = info.written_at.isoformat(timespec="seconds")
            yield Snapshot(str(info.id), written, info.message, dict(info.metadata))

    def pins(self, *, changing: bool = False) -> tuple[list[str], list[str]]:
        """
        The tags, and the branches beside the main one, that keep more than the present.

        Parameters
        ----------
        changing
            Count those that keep the present too: it is about to become the past.
        """
        present = set[str]() if changing else self._present()
        tags, branches = self.refs()
        return [n for n, s in tags.items() if s not in present], [n for n, s in branches.items() if s not in present]

    def refs(self) -> tuple[dict[str, str], dict[str, str]]:
        """The snapshots of tags, and of branches beside the main one and `RECREATED` ones, by name."""
        names = [n for n in sorted(self.repository.list_branches() - {BRANCH}) if not n.startswith(RECREATED)]
        return self.tags(), {name: str(self.repository.lookup_branch(name)) for name in names}

    def content(self, snapshot: str) -> str:
        """The snapshot that made the state which one has."""
        return content_of(self.repository.lookup_snapshot(snapshot))

    def _present(self) -> set[str]:
        """The snapshots that hold what the store holds now: those before a purge are named by its commits."""
        info = self.repository.lookup_snapshot(self.head)
        return {str(info.id), *same_as(info)}

    def purge(
        self, *, tags: str, keep: Collection[str], base: str | None, before: Check
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
            self._refuse_staged()
            if tags != "delete":
                self.refuse_pins(keep=keep)
            before()

        options = " --tags recreate" if tags == "recreate" else ""
        with self._sweeping("purge", check, base=base, options=options, keeps_past=True) as sweep:
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

    def foreseen(self, *, tags: str, changing: bool = False) -> tuple[dict[str, int], list[str]]:
        """
        What a purge would delete.

        Parameters
        ----------
        tags
            As in `purge`; with ``"recreate"`` tags are none of what is deleted.
        changing
            Count tags and branches that keep the present too.

        Returns
        -------
        counts : dict
            How many snapshots, at most, and how much of garbage that is there already; ``bytes`` of all objects.
        names : list of str
            The tags and branches.
        """
        self._refuse_staged()
        keep = self.tags() if tags == "recreate" else ()
        if tags != "delete":
            self.refuse_pins(changing=changing, keep=keep)
        pins, branches = self.pins(changing=changing)
        names = [*(name for name in pins if name not in keep), *branches]
        present = {str(self.repository.lookup_branch(BRANCH))}
        sweep = _Sweep("")
        sweep.collect(self, dry_run=True)
        sizes = {"tags": len(names) - len(branches), "branches": len(branches)}
        return {"snapshots": len(set(self.reachable()) - present), **sizes, "bytes": sweep.counts["bytes"]}, names

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
            The new one, of the same content; None after a dry run, and where there was nothing to delete.
        counts : dict
            What was deleted, in numbers; ``bytes`` too.

        Raises
        ------
        StaleError
            If another writer has changed the store meanwhile.
        StorageError
            If something could not be deleted.
        """
        expires = keep is not None and bool(self._older(datetime.now(UTC) - keep.age))
        if dry_run or not (expires or self._is_being_swept()):
            foreseen = self._garbage(keep)
            if dry_run or not any(foreseen.values()):
                return None, foreseen
        options = "" if keep is None else f" --keep-days {keep.age.days}{'' if keep.all_tags else ' --keep-tags none'}"
        with self._sweeping("gc", before, options=options, keeps_past=keep is not None) as sweep:
            expired = {} if keep is None else self._expire(keep)
            sweep.collect(self)
            sweep.counts = expired | sweep.counts
        return sweep.snapshot, sweep.counts

    def _garbage(self, keep: Keep | None) -> dict[str, int]:
        """What a collection of garbage would delete, in numbers."""
        sweep = _Sweep("")
        sweep.collect(self, dry_run=True)
        if keep is None:
            return sweep.counts
        cutoff = datetime.now(UTC) - keep.age
        return {
            EXPIRED: len(self._older(cutoff)),
            TAGS_DELETED: 0 if keep.all_tags else self._older_tags(cutoff),
        } | sweep.counts

    def _is_being_swept(self) -> bool:
        """Whether a purge or gc was stopped between its two commits: no writer begins until another is complete."""
        return operation_of(self.repository.lookup_snapshot(self.head)) in [BEGUN.format(name) for name in SWEEPS]

    def _older_tags(self, cutoff: datetime) -> int:
        """How many tags name a snapshot before a time."""
        named = self.tags().values()
        return sum(self.repository.lookup_snapshot(snapshot).written_at < cutoff for snapshot in named)

    def _expire(self, keep: Keep) -> dict[str, int]:
        """Drop snapshots that are older than what is kept; their objects are garbage then."""
        tags = len(self.repository.list_tags())
        expired = self.repository.expire_snapshots(datetime.now(UTC) - keep.age, delete_expired_tags=not keep.all_tags)
        return {EXPIRED: len(expired), TAGS_DELETED: tags - len(self.repository.list_tags())}

    def _older(self, cutoff: datetime) -> set[str]:
        """The snapshots before a time that no branch or tag names."""
        refs = [{"branch": name} for name in self.repository.list_branches()]
        refs += [{"tag": name} for name in self.repository.list_tags()]
        found, named = set[str](), set[str]()
        for ref in refs:
            tip, *others = self.repository.ancestry(**ref)
            named.add(str(tip.id))
            found |= {str(info.id) for info in others[:-1] if info.written_at < cutoff}  # the first of all stays
        return found - named

    @contextmanager
    def _sweeping(
        self,
        name: str,
        check: Check,
        *,
        base: str | None = None,
        options: str = "",
        keeps_past: bool = False,
    ) -> "Iterator[_Sweep]":
        """
        Deleting unreferenced objects, between two commits that change nothing.

        The first makes every session that began before it conflict, since what such a session has written is about to
        be deleted; and none begins until the second has followed, which stays away if the sweep is stopped. Without
        them a commit that lands while Icechunk collects succeeds, and what it has written is gone.

        Parameters
        ----------
        name
            One of `vczstore.stores.icechunk_branches.SWEEPS`.
        check
            Called before the first commit, and may refuse.
        base
            The snapshot that the first commit has to follow; None for any.
        options
            With which it is to be run again, if it is stopped.
        keeps_past
            Whether both commits keep what is known of the history, which is about to be deleted.
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
                same = sorted(self._present().intersection(s for refs in self.refs() for s in refs.values()))
                said: dict[str, Any] = {"operation": BEGUN.format(name), "same": same, "version": version("vczstore")}
                said["holds"] = self.content(session.snapshot_id)
                said |= {PAST: past_of(self.snapshots(session.snapshot_id))} if keeps_past else {}
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

    def refuse_pins(self, *, changing: bool = False, keep: Collection[str] = (), published: str | None = None) -> None:
        """Raise a `TagError` if there are `pins`, beside tags that may stay."""
        self._refuse_staged()
        if self.group and keep:
            raise TagError(
                f"purge: {self.label}: the tags {listing(sorted(keep), 3)} are of the whole repository, and cannot be "
                "recreated for one of its groups; nothing was done, let the purge delete them with --tags delete"
            )
        tags, branches = self.pins(changing=changing)
        named = [f"the tag {name}" for name in tags if name not in keep]
        named += [f"the branch {name}" for name in branches if name != published]
        if named:
            raise TagError(
                f"purge: {self.label}: older snapshots are kept by {listing(named, limit=100)}; nothing was done, "
                "delete them, let the purge do it with --tags delete, or have tags rewritten with --tags recreate"
                f"{f'; vczstore publish {self.label} {branches[0]} publishes a branch' if branches else ''}"
            )

    def _refuse_staged(self) -> None:
        """Raise a `StaleError` if a commit waits for other parts of a set: a purge would delete it."""
        if staged := self.staged():
            raise StaleError(
                f"purge: {self.label} has a commit that waits for the other parts of a set called {staged[0]} "
                "(PART for {part}); nothing was done, complete it with vczstore repair and that name"
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
        return operation_of(self.repository.lookup_snapshot(str(self.repository.lookup_tag(tag)))) == RECREATE

    def _numbered(self, tag: str) -> tuple[str, int]:
        """The name of a tag, and the number that `rename_tag` has put after it, 0 if none."""
        stem, dot, number = tag.rpartition(".")
        return (stem, int(number)) if dot and number.isdecimal() and self._is_recreated(tag) else (tag, 0)

    @contextmanager
    def rewriting(self, tag: str) -> "Iterator[Store]":
        """The store on a branch of its own, on which the state that a tag names is rewritten; it goes afterwards."""
        branch = f"{RECREATED}{tag}"
        with self.lock():
            self.drop_branches()
            self.repository.create_branch(branch, self.repository.lookup_tag(tag))
        try:
            yield self.on_branch(branch)
        finally:
            with suppress(icechunk.IcechunkError), self.lock():  # what cannot be deleted now goes with the purge
                self.drop_branches()

    def drop_branches(self) -> None:
        """Delete `RECREATED` branches: who made them was stopped."""
        for name in self.repository.list_branches():
            if name.startswith(RECREATED):
                self.repository.delete_branch(name)

    def changed_chunks(self, since: str, until: str) -> dict[str, np.ndarray | None] | None:
        """Which chunks differ between two snapshots, by the logs of the commits between them."""
        if since == until:
            return {}  # which Icechunk does not compare
        try:
            diff = self.repository.diff(from_snapshot_id=since, to_snapshot_id=until)
        except icechunk.InvalidInputError as error:
            if error.kind != icechunk.ErrorKind.BAD_SNAPSHOT_CHAIN_FOR_DIFF:
                raise
            return None  # the one is no ancestor of the other, or what is between was expired
        if diff.moved_nodes:
            return None
        top = f"/{self.group}/" if self.group else "/"
        others = {path for path in (*diff.new_arrays, *diff.deleted_arrays) if path.startswith(top)}
        listed = {path: {*map(tuple, found)} for path, found in diff.updated_chunks.items()}
        chunks = {path: found for path, found in listed.items() if path not in others and path.startswith(top)}
        for path in diff.updated_arrays - others:  # the logs do not list chunks that went with a shape
            if path.startswith(top):
                chunks[path] = chunks.get(path, set()) | (self._chunks(path, since) - self._chunks(path, until))
        changed: dict[str, np.ndarray | None] = dict.fromkeys(path.removeprefix(top) for path in others)
        return changed | {path.removeprefix(top): np.array([*at], dtype="i8") for path, at in chunks.items() if at}

    def _chunks(self, path: str, snapshot: str) -> set[tuple[int, ...]]:
        """The numbers of the chunks that an array has in a snapshot."""
        session = self.repository.readonly_session(snapshot_id=snapshot)

        async def listed() -> set[tuple[int, ...]]:
            return {tuple(at) async for at in session.chunk_coordinates(path)}

        return wait_for(listed())

    def refuse_tag(self, name: str) -> None:
        """Raise a `TagError` if a tag of this name cannot be made: it is taken, or was once."""
        if name in self.repository.list_tags() or self._was_deleted(name):
            raise self._taken(name)

    def _was_deleted(self, name: str) -> bool:
        """Whether there was a tag of this name, as the log of changes has it, which old repositories lack."""
        has_log = self.repository.spec_version >= icechunk.SpecVersion.v2
        kinds = (update.kind for update in (self.repository.ops_log() if has_log else ()))
        return any(isinstance(kind, icechunk.UpdateType.TagDeleted) and kind.name == name for kind in kinds)

    def stage(self, base: str, of: str) -> Store:
        """
        The store on a branch of its own, where a commit of a set waits that readers see once it is published.

        What a run that was stopped has left of it goes. The name stays the same, so that the next run can go on with
        its session.
        """
        branch = f"{STAGED}{of}-next"
        with self.lock():
            if branch in self.repository.list_branches():
                self.repository.delete_branch(branch)
            self.repository.create_branch(branch, base)
        return self.on_branch(branch)

    def publish(self, snapshot: str, base: str, branch: str) -> None:
        """
        Let a staged snapshot be what readers of a branch see; where they do already, nothing is done.

        Raises
        ------
        ConflictError
            If the present snapshot is not the one that it was made from.
        """
        if self.shows(snapshot, branch):
            return
        try:
            with self.lock():
                self.repository.reset_branch(branch, snapshot, from_snapshot_id=base)
        except icechunk.ConflictError as error:
            raise ConflictError(f"{self.label} was changed by another writer meanwhile") from error

    def shows(self, snapshot: str, branch: str) -> bool:
        """Whether readers of a branch see a snapshot, or one that came after it."""
        return any(str(info.id) == snapshot for info in self.repository.ancestry(branch=branch))

    def staged(self) -> list[str]:
        """The sets of which commits wait on branches."""
        names = self.repository.list_branches()
        return sorted({_set_of(name) for name in names if name.startswith(STAGED)})

    def unstage(self, of: str) -> None:
        """Delete the branches on which commits of a set were staged; the lock has to be held."""
        for name in self.repository.list_branches():
            if name.startswith(STAGED) and _set_of(name) == of:
                with self.lock():
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


_MANIFESTS = {"max_compressed_manifest_mem_bytes": 2**26, "max_decoded_manifest_mem_bytes": 2**29}
"""What a collection of garbage may hold of manifests at once: by default it is gigabytes."""

EXPIRED = "snapshots expired"
"""Of the history; tags and branches may still name them."""

TAGS_DELETED = "tags deleted"
"""Where `keep` keeps none."""

_SWEPT = ("snapshots deleted", "manifests deleted", "chunks deleted")


@dataclass
class _Sweep:
    """What a purge or gc does; `again` says what to do if it is stopped."""

    again: str
    cutoff: datetime = field(default_factory=lambda: datetime.now(UTC) + AHEAD)
    counts: dict[str, int] = field(default_factory=dict)
    snapshot: str = ""

    def collect(self, store: "IcechunkHistory", *, dry_run: bool = False) -> None:
        """Delete unreferenced objects, or only count it; in a folder what is half-written too: Icechunk sees none."""
        done = store.repository.garbage_collect(self.cutoff, dry_run=dry_run, **_MANIFESTS)
        if done.objects_failed_to_delete:
            raise StorageError(f"{done.objects_failed_to_delete:,} objects could not be deleted; {self.again}")
        numbers = (done.snapshots_deleted, done.manifests_deleted, done.chunks_deleted)
        self.counts = {**dict(zip(_SWEPT, map(int, numbers), strict=True)), "bytes": int(done.bytes_deleted)}
        self.counts |= delete_half_written(store.folder, dry_run=dry_run)


def _set_of(branch: str) -> str:
    """The set of which a commit waits on a branch; see `IcechunkHistory.stage`."""
    return branch.removeprefix(STAGED).rpartition("-")[0]


def _commit_nothing(session: icechunk.Session, message: str, said: Mapping[str, Any]) -> str:
    return str(session.commit(message, metadata={"vczstore": dict(said)}, allow_empty=True))
