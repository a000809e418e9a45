"""The history of an Icechunk repository: snapshots, tags and branches, and how they are deleted or rewritten."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from itertools import count
from typing import Any

import icechunk
import numpy as np

from vczstore.choices import RECREATE
from vczstore.errors import ConflictError, StaleError, StorageError, TagError
from vczstore.stores.base import PAST, Check, History, Keep, Snapshot, Store, past_of
from vczstore.stores.icechunk_branches import (
    BEGUN,
    SWEEPS,
    IcechunkBranches,
    content_of,
    operation_of,
    refuse_swept,
    same_as,
    updates_of,
)
from vczstore.stores.icechunk_storage import BRANCH
from vczstore.stores.leftovers import delete_half_written
from vczstore.stores.object_store import reason
from vczstore.vcz.model import listing
from vczstore.vcz.zarr_objects import wait_for

RECREATED = "vczstore-recreated-"
"""Prefix of the temporary branches on which the states at tags are rewritten."""

STAGED = "vczstore-set-"
"""Prefix of staging branches, whose commits are published together with those of the other stores of a set."""

AHEAD = timedelta(days=1)
"""Offset of a sweep's cutoff into the future: objects written by a clock that is ahead have to be deleted as well."""


@dataclass(frozen=True)
class IcechunkHistory(History):
    """
    The history of a repository.

    Attributes
    ----------
    repository
        The repository, whose snapshots, tags and branches are those of all of its groups.
    lock
        Returns the lock that serialises changes to the repository where the storage does not.
    on_branch
        Returns the store on another branch.
    branch
        Branch of the store, whose snapshots are listed; sweeps, publication and `head` concern main.
    group
        Group of the store; empty for the root.
    """

    repository: icechunk.Repository
    lock: Callable[[], AbstractContextManager[Any]]
    on_branch: Callable[[str], Store]
    branch: str = BRANCH
    group: str = ""
    is_kept = True

    def require(self, operation: str) -> None:
        """No-op: history is kept."""

    @property
    def head(self) -> str:
        """ID of the head of main, regardless of `branch`: the snapshot that readers see."""
        return str(self.repository.lookup_branch(BRANCH))

    def branches(self) -> IcechunkBranches:
        return IcechunkBranches(self.repository, self.label, self.lock)

    def tags(self) -> dict[str, str]:
        names = sorted(self.repository.list_tags())
        return {name: str(self.repository.lookup_tag(name)) for name in names}

    def create_tag(self, name: str, snapshot: str | None = None) -> str:
        """Tag a snapshot, the head of the branch by default, and return the snapshot's ID."""
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
        """The error for a tag name that exists, or once existed."""
        taken = (
            f"was used and deleted before in {self.label}, and Icechunk does not reuse names"
            if (name not in self.repository.list_tags())
            else f"exists already in {self.label}, on snapshot {self.repository.lookup_tag(name)}"
        )
        return TagError(f"tag: {name!r} {taken}; choose another name")

    def delete_tag(self, name: str) -> None:
        try:
            with self.lock():
                self.repository.delete_tag(name)
        except icechunk.NotFoundError as error:
            raise TagError(f"tag: {self.label} has no tag {name!r}; vczstore tag {self.label} lists them") from error

    def snapshots(self, start: str | None = None) -> Iterator[Snapshot]:
        """All snapshots of the branch, newest first; with `start`, that snapshot and its ancestors."""
        ref = {"branch": self.branch} if start is None else {"snapshot_id": start}
        for info in self.repository.ancestry(**ref):
            written = info.written_at.isoformat(timespec="seconds")
            yield Snapshot(str(info.id), written, info.message, dict(info.metadata))

    def pins(self, *, changing: bool = False, keep: Collection[str] = ()) -> tuple[list[str], list[str]]:
        """
        Names of tags, except those in `keep`, and of branches other than main, that keep older states than main's head.

        With `changing`, names of all of them; see `History.refuse_pins`.
        """
        present = set[str]() if changing else self._present()
        tags, branches = self.refs()
        pinning = [name for name, snapshot in tags.items() if snapshot not in present and name not in keep]
        return pinning, [name for name, snapshot in branches.items() if snapshot not in present]

    def refs(self) -> tuple[dict[str, str], dict[str, str]]:
        """Snapshot IDs of the tags, and of the branches except main and `RECREATED` ones, by name."""
        names = [n for n in sorted(self.repository.list_branches() - {BRANCH}) if not n.startswith(RECREATED)]
        return self.tags(), {name: str(self.repository.lookup_branch(name)) for name in names}

    def content(self, snapshot: str) -> str:
        return content_of(self.repository.lookup_snapshot(snapshot))

    def _present(self) -> set[str]:
        """IDs of the head of main and, if that is a commit of a purge or gc, of the snapshots it lists as the same."""
        info = self.repository.lookup_snapshot(self.head)
        return {str(info.id), *same_as(info)}

    def purge(
        self, *, tags: str, keep: Collection[str], base: str | None, before: Check
    ) -> tuple[str, dict[str, int], list[str]]:

        def check() -> None:
            self._refuse_staged()
            if tags != "delete":
                self.refuse_pins(keep=keep)
            before()

        options = " --tags recreate" if tags == RECREATE else ""
        with self._sweeping("purge", check, base=base, options=options, keeps_past=True) as sweep:
            pins, branches = self.pins(keep=keep)
            for name in pins:
                self.repository.delete_tag(name)
            for name in branches:
                self.repository.delete_branch(name)
            self.drop_branches()
            self.repository.expire_snapshots(sweep.cutoff)
            sweep.collect(self)
            sweep.counts |= {"tags deleted": len(pins), "branches deleted": len(branches)}
            new = [name for names in self.pins(keep=keep) for name in names]
            if new:
                raise StaleError(f"purge: {self.label}: {', '.join(new)} was made while it ran; {sweep.again}")
        return sweep.snapshot, sweep.counts, [*pins, *branches]

    def preview_purge(self, *, tags: str, changing: bool = False) -> tuple[dict[str, int], list[str]]:
        self._refuse_staged()
        keep = self.tags() if tags == RECREATE else ()
        if tags != "delete":
            self.refuse_pins(changing=changing, keep=keep)
        pins, branches = self.pins(changing=changing, keep=keep)
        names = [*pins, *branches]
        present = {str(self.repository.lookup_branch(BRANCH))}
        sweep = _Sweep("")
        sweep.collect(self, dry_run=True)
        sizes = {"tags": len(pins), "branches": len(branches)}
        return {"snapshots": len(set(self.reachable()) - present), **sizes, "bytes": sweep.counts["bytes"]}, names

    def collect_garbage(
        self, *, before: Check, dry_run: bool, keep: Keep | None = None
    ) -> tuple[str | None, dict[str, int]]:
        """Delete unreferenced objects; see `Store.collect_garbage`. Commit only if there is something to delete."""
        expires = keep is not None and bool(self._older(datetime.now(UTC) - keep.age))
        if dry_run or not (expires or self._is_being_swept()):
            counts = self._garbage(keep)
            if dry_run or not any(counts.values()):
                return None, counts
        options = "" if keep is None else f" --keep-days {keep.age.days}{'' if keep.all_tags else ' --keep-tags none'}"
        with self._sweeping("gc", before, options=options, keeps_past=keep is not None) as sweep:
            expired = {} if keep is None else self._expire(keep)
            sweep.collect(self)
            sweep.counts = expired | sweep.counts
        return sweep.snapshot, sweep.counts

    def _garbage(self, keep: Keep | None) -> dict[str, int]:
        """Count what `collect_garbage` would delete."""
        sweep = _Sweep("")
        sweep.collect(self, dry_run=True)
        if keep is None:
            return sweep.counts
        cutoff = datetime.now(UTC) - keep.age
        tagged = [] if keep.all_tags else [self.repository.lookup_snapshot(at) for at in self.tags().values()]
        n_tags = sum(info.written_at < cutoff for info in tagged)
        return {EXPIRED: len(self._older(cutoff)), TAGS_DELETED: n_tags} | sweep.counts

    def _is_being_swept(self) -> bool:
        """Whether a purge or gc was interrupted between its two commits, which blocks writers until one completes."""
        return operation_of(self.repository.lookup_snapshot(self.head)) in [BEGUN.format(name) for name in SWEEPS]

    def _expire(self, keep: Keep) -> dict[str, int]:
        """Expire snapshots by age, so that their objects become unreferenced; return counts."""
        tags = len(self.repository.list_tags())
        expired = self.repository.expire_snapshots(datetime.now(UTC) - keep.age, delete_expired_tags=not keep.all_tags)
        return {EXPIRED: len(expired), TAGS_DELETED: tags - len(self.repository.list_tags())}

    def _older(self, cutoff: datetime) -> set[str]:
        """IDs of snapshots written before a time and not named by a branch or tag."""
        refs = [{"branch": name} for name in self.repository.list_branches()]
        refs += [{"tag": name} for name in self.repository.list_tags()]
        older, named = set[str](), set[str]()
        for ref in refs:
            tip, *others = self.repository.ancestry(**ref)
            named.add(str(tip.id))
            older |= {str(info.id) for info in others[:-1] if info.written_at < cutoff}  # the initial snapshot is kept
        return older - named

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
        Context in which to delete unreferenced objects, enclosed by two commits to main that change no data.

        The first makes sessions opened before it conflict, since their uncommitted chunks are about to be deleted. It
        blocks new sessions until the second commit, which is omitted if the sweep fails. Without the first, a commit
        during garbage collection could succeed although its chunks are deleted.

        Parameters
        ----------
        name
            One of `vczstore.stores.icechunk_branches.SWEEPS`.
        check
            Called before the first commit; may refuse by raising.
        base
            The snapshot that has to be the parent of the first commit; None for any.
        options
            Command-line options for the message on how to run it again.
        keeps_past
            Whether both commits record a summary of the history that is about to be deleted.
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
                entry: dict[str, Any] = {"operation": BEGUN.format(name), "same": same, "version": version("vczstore")}
                entry["holds"] = self.content(session.snapshot_id)
                entry |= {PAST: past_of(self.snapshots(session.snapshot_id))} if keeps_past else {}
                begin = _commit_nothing(session, f"{name}: begun", entry)
                yield sweep
                if self.head != begin:
                    raise StaleError(f"{name}: {self.label}: there was a commit while it ran; {sweep.again}")
                swept = {what: n for what, n in sweep.counts.items() if what in _SWEPT}
                message = f"{name}: {', '.join(f'{n:,} {what}' for what, n in swept.items())}"
                counts = {what: n for what, n in sweep.counts.items() if what != "bytes"}
                session = self.repository.writable_session(BRANCH)
                sweep.snapshot = _commit_nothing(session, message, {**entry, "operation": name, **counts})
        except icechunk.ConflictError as error:
            state = sweep.again if begin else f"nothing was deleted, {again}"
            raise StaleError(f"{name}: {self.label} was changed by another writer meanwhile; {state}") from error
        except icechunk.IcechunkError as error:
            state = sweep.again if begin else "nothing was deleted"
            raise StorageError(f"{name}: {self.label}: {reason(error)}; {state}") from error

    def refuse_pins(self, *, changing: bool = False, keep: Collection[str] = (), published: str | None = None) -> None:
        """See `History.refuse_pins`; for a group of a repository, `keep` has to be empty."""
        self._refuse_staged()
        if self.group and keep:
            raise TagError(
                f"purge: {self.label}: the tags {listing(sorted(keep), 3)} are of the whole repository, and cannot be "
                "recreated for one of its groups; nothing was done, let the purge delete them with --tags delete"
            )
        tags, branches = self.pins(changing=changing, keep=keep)
        named = [f"the tag {name}" for name in tags]
        named += [f"the branch {name}" for name in branches if name != published]
        if named:
            raise TagError(
                f"purge: {self.label}: older snapshots are kept by {listing(named, limit=100)}; nothing was done, "
                "delete them, let the purge do it with --tags delete, or have tags rewritten with --tags recreate"
                f"{f'; vczstore publish {self.label} {branches[0]} publishes a branch' if branches else ''}"
            )

    def _refuse_staged(self) -> None:
        """Raise a `StaleError` if the repository has a staged commit of a set, since a purge would delete it."""
        if staged := self.staged():
            raise StaleError(
                f"purge: {self.label} has a commit that waits for the other parts of a set called {staged[0]} "
                "(PART for {part}); nothing was done, complete it with vczstore repair and that name"
            )

    def rename_tag(self, name: str, snapshot: str) -> str:
        """
        Replace a tag with one of another name, since Icechunk never allows a name to be reused.

        Parameters
        ----------
        name
            The tag. The new name appends the first unused number: ``release-1.1``, or ``release-1.2`` when that is
            rewritten in turn. Numbers in names chosen by the user are kept: ``v1.1`` becomes ``v1.1.1``.
        snapshot
            ID of the snapshot for the new tag: a `RECREATE` commit whose parent is the old tag's snapshot.
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
        """Split off the number that `rename_tag` has appended to a tag's name; 0 if it has appended none."""
        stem, dot, number = tag.rpartition(".")
        return (stem, int(number)) if dot and number.isdecimal() and self._is_recreated(tag) else (tag, 0)

    @contextmanager
    def rewriting(self, tag: str) -> "Iterator[Store]":
        branch = f"{RECREATED}{tag}"
        with self.lock():
            self.drop_branches()
            self.repository.create_branch(branch, self.repository.lookup_tag(tag))
        try:
            yield self.on_branch(branch)
        finally:
            with suppress(icechunk.IcechunkError), self.lock():  # on failure, the purge deletes them
                self.drop_branches()

    def drop_branches(self) -> None:
        """Delete all `RECREATED` branches, which interrupted operations may have left."""
        for name in self.repository.list_branches():
            if name.startswith(RECREATED):
                self.repository.delete_branch(name)

    def changed_chunks(self, since: str, until: str) -> dict[str, np.ndarray | None] | None:
        """Chunks that may differ between two snapshots, from the transaction logs of the commits between them."""
        if since == until:
            return {}  # Icechunk does not compare a snapshot with itself
        try:
            diff = self.repository.diff(from_snapshot_id=since, to_snapshot_id=until)
        except icechunk.InvalidInputError as error:
            if error.kind != icechunk.ErrorKind.BAD_SNAPSHOT_CHAIN_FOR_DIFF:
                raise
            return None  # `since` is not an ancestor, or a snapshot in between was expired
        if diff.moved_nodes:
            return None
        top = f"/{self.group}/" if self.group else "/"
        replaced = {path for path in (*diff.new_arrays, *diff.deleted_arrays) if path.startswith(top)}
        logged = {path: {*map(tuple, coords)} for path, coords in diff.updated_chunks.items()}
        chunks = {path: coords for path, coords in logged.items() if path not in replaced and path.startswith(top)}
        for path in diff.updated_arrays - replaced:  # logs do not list chunks dropped by a change of shape
            if path.startswith(top):
                chunks[path] = chunks.get(path, set()) | (self._chunks_at(path, since) - self._chunks_at(path, until))
        changed: dict[str, np.ndarray | None] = dict.fromkeys(path.removeprefix(top) for path in replaced)
        return changed | {path.removeprefix(top): np.array([*at], dtype="i8") for path, at in chunks.items() if at}

    def _chunks_at(self, path: str, snapshot: str) -> set[tuple[int, ...]]:
        """Grid coordinates of the chunks that an array has in a snapshot."""
        session = self.repository.readonly_session(snapshot_id=snapshot)

        async def coordinates() -> set[tuple[int, ...]]:
            return {tuple(at) async for at in session.chunk_coordinates(path)}

        return wait_for(coordinates())

    def refuse_tag(self, name: str) -> None:
        if name in self.repository.list_tags() or self._was_deleted(name):
            raise self._taken(name)

    def _was_deleted(self, name: str) -> bool:
        """Whether the log of changes has a deleted tag of this name; False for old repositories, which keep no log."""
        kinds = (update.kind for update in updates_of(self.repository))
        return any(isinstance(kind, icechunk.UpdateType.TagDeleted) and kind.name == name for kind in kinds)

    def stage(self, base: str, of: str) -> Store:
        """
        Create a staging branch at `base` for the set `of`; its commit is invisible to readers until published.

        A branch left by an interrupted run is deleted first. The name is constant, so that the next run can resume the
        session.
        """
        branch = f"{STAGED}{of}-next"
        with self.lock():
            if branch in self.repository.list_branches():
                self.repository.delete_branch(branch)
            self.repository.create_branch(branch, base)
        return self.on_branch(branch)

    def publish(self, snapshot: str, base: str, branch: str) -> None:
        if self.shows(snapshot, branch):
            return
        try:
            with self.lock():
                self.repository.reset_branch(branch, snapshot, from_snapshot_id=base)
        except icechunk.ConflictError as error:
            raise ConflictError(f"{self.label} was changed by another writer meanwhile") from error

    def shows(self, snapshot: str, branch: str) -> bool:
        return any(str(info.id) == snapshot for info in self.repository.ancestry(branch=branch))

    def staged(self) -> list[str]:
        names = self.repository.list_branches()
        return sorted({_set_of(name) for name in names if name.startswith(STAGED)})

    def unstage(self, of: str) -> None:
        for name in self.repository.list_branches():
            if name.startswith(STAGED) and _set_of(name) == of:
                with self.lock():
                    self.repository.delete_branch(name)

    def reachable(self) -> list[str]:
        ids: dict[str, None] = {}
        refs = [{"branch": name} for name in sorted(self.repository.list_branches())]
        refs += [{"tag": name} for name in sorted(self.repository.list_tags())]
        for ref in refs:
            for info in self.repository.ancestry(**ref):
                ids[str(info.id)] = None
        return list(ids)

    def unreachable(self, snapshots: Sequence[str], names: Mapping[str, set[str]]) -> dict[str, int]:
        used = {str(m.id) for s in snapshots for m in self.repository.list_manifest_files(s)}
        dry = self.repository.garbage_collect(datetime.now(UTC) + AHEAD, dry_run=True, **_MANIFESTS)
        return {
            "snapshot": max(len(names["snapshots"] - set(snapshots)), int(dry.snapshots_deleted)),
            "manifest": max(len(names["manifests"] - used), int(dry.manifests_deleted)),
            "chunk": int(dry.chunks_deleted),
        }


_MANIFESTS = {"max_compressed_manifest_mem_bytes": 2**26, "max_decoded_manifest_mem_bytes": 2**29}
"""Memory limits for manifests during garbage collection; the defaults are gigabytes."""

EXPIRED = "snapshots expired"
"""Key of the number of snapshots expired from the history; tags and branches may still name them."""

TAGS_DELETED = "tags deleted"
"""Key of the number of tags deleted with their snapshots; 0 with `Keep.all_tags`."""

_SWEPT = ("snapshots deleted", "manifests deleted", "chunks deleted")


@dataclass
class _Sweep:
    """
    A purge or gc in progress.

    Attributes
    ----------
    again
        Advice on running it again, for error messages.
    cutoff
        Unreferenced objects written before this time are deleted; see `AHEAD`.
    counts
        Numbers of deleted objects by kind, and their ``bytes``.
    snapshot
        ID of the second commit; empty before that.
    """

    again: str
    cutoff: datetime = field(default_factory=lambda: datetime.now(UTC) + AHEAD)
    counts: dict[str, int] = field(default_factory=dict)
    snapshot: str = ""

    def collect(self, store: "IcechunkHistory", *, dry_run: bool = False) -> None:
        """Delete or count unreferenced objects; in a folder also half-written files, which Icechunk does not list."""
        done = store.repository.garbage_collect(self.cutoff, dry_run=dry_run, **_MANIFESTS)
        if done.objects_failed_to_delete:
            raise StorageError(f"{done.objects_failed_to_delete:,} objects could not be deleted; {self.again}")
        numbers = (done.snapshots_deleted, done.manifests_deleted, done.chunks_deleted)
        self.counts = {**dict(zip(_SWEPT, map(int, numbers), strict=True)), "bytes": int(done.bytes_deleted)}
        self.counts |= delete_half_written(store.folder, dry_run=dry_run)


def _set_of(branch: str) -> str:
    """Name of the set of a staging branch; see `IcechunkHistory.stage`."""
    return branch.removeprefix(STAGED).rpartition("-")[0]


def _commit_nothing(session: icechunk.Session, message: str, metadata: Mapping[str, Any]) -> str:
    return str(session.commit(message, metadata={"vczstore": dict(metadata)}, allow_empty=True))
