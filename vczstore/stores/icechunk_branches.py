"""The branches of an Icechunk repository: readers see main, and the others are published to it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import icechunk

from vczstore.choices import OURS
from vczstore.errors import BusyError, StaleError, TagError
from vczstore.stores.icechunk_storage import BRANCH
from vczstore.stores.object_store import reason

SWEEPS = ("purge", "gc")
"""The operations that delete unreferenced objects, in two commits each."""
BEGUN = "{} begun"
"""The operation that is recorded by the first commit of a sweep, with its name inserted."""


@dataclass(frozen=True)
class IcechunkBranches:
    """The branches of a repository. Readers see the main branch. The attributes are those of `IcechunkHistory`."""

    repository: icechunk.Repository
    label: str
    lock: Callable[[], AbstractContextManager[Any]]

    def tips(self) -> dict[str, str]:
        """The head snapshot of each branch, by branch name, except branches internal to operations."""
        return {name: self._tip(name) for name in sorted(self.repository.list_branches()) if not name.startswith(OURS)}

    def create(self, name: str, at: str | None = None) -> str:
        """
        Create a branch at the head of main, or at a tag, branch or snapshot; return the ID of that snapshot.

        Raises
        ------
        TagError
            If the branch exists already, or `at` does not.
        """
        start = self._resolve(at or BRANCH)
        try:
            with self.lock():
                refuse_swept(self.repository, self._tip(BRANCH), self.label)
                self.repository.create_branch(name, start)
        except icechunk.AlreadyExistsError as error:
            raise TagError(f"branch: {self.label} has a branch {name!r} already; choose another name") from error
        except icechunk.IcechunkError as error:
            raise TagError(f"branch: {name!r}: {reason(error)}") from error
        return start

    def delete(self, name: str) -> int:
        """
        Delete a branch; return the number of its snapshots that main does not have.

        Raises
        ------
        TagError
            If there is no such branch, or it is the main one.
        """
        if name == BRANCH:
            raise TagError(f"branch: {BRANCH} is the branch that readers see, and stays; name another one")
        self._tip(name)
        with self.lock():
            n = self._ahead(name)
            self.repository.delete_branch(name)
        return n

    def is_ahead(self, name: str, *, publishing: bool) -> bool:
        """
        Whether a branch has snapshots that main does not have; False if there is no such branch.

        Raises
        ------
        StaleError
            If it is about to be published (`publishing`), and main has diverged from it.
        """
        if name not in self.repository.list_branches() or not self._ahead(name):
            return False
        if publishing:
            self._require_descent(name)
        return True

    def prepare(self, name: str) -> None:
        """Create a branch at the head of main; fast-forward one that exists, unless it has snapshots of its own."""
        with self.lock():
            main = self._tip(BRANCH)
            if name not in self.repository.list_branches():
                self.repository.create_branch(name, main)
            elif (tip := self._tip(name)) != main and not self._ahead(name):
                self.repository.reset_branch(name, main, from_snapshot_id=tip)

    def publish(self, name: str, before: Callable[[], None]) -> tuple[str, str, int]:
        """
        Fast-forward the main branch to the head of another branch; `before` is called right before that.

        Returns
        -------
        before, after : str
            Heads of the main branch before and after.
        n : int
            Number of snapshots added to main; 0, with nothing changed, if it has all of the branch already.

        Raises
        ------
        TagError
            If there is no such branch, or it is the main one.
        StaleError
            If the main branch has diverged from it.
        BusyError
            If a purge or gc is in progress.
        """
        if name == BRANCH:
            raise TagError(f"publish: {BRANCH} is the branch that readers see; name the one to publish")
        try:
            with self.lock():
                main, tip = self._tip(BRANCH), self._tip(name)
                refuse_swept(self.repository, main, self.label)
                n = self._ahead(name)
                if n == 0:
                    return main, main, 0
                self._require_descent(name)
                before()
                self.repository.reset_branch(BRANCH, tip, from_snapshot_id=main)
        except icechunk.ConflictError as error:
            raise StaleError(f"publish: {self.label} was changed meanwhile; nothing was published") from error
        return main, tip, n

    def _tip(self, name: str) -> str:
        try:
            return str(self.repository.lookup_branch(name))
        except icechunk.NotFoundError as error:
            raise TagError(f"{self.label} has no branch {name!r}; vczstore branch {self.label} lists them") from error

    def _resolve(self, ref: str) -> str:
        """ID of the snapshot at a tag, branch or snapshot ID."""
        if ref in self.repository.list_branches():
            return self._tip(ref)
        try:
            return str(self.repository.lookup_tag(ref))
        except icechunk.NotFoundError:
            pass
        try:
            return str(self.repository.lookup_snapshot(ref).id)
        except (icechunk.NotFoundError, icechunk.InvalidInputError) as error:
            raise TagError(f"branch: {self.label} has no tag, branch or snapshot {ref!r}") from error

    def _ahead(self, name: str) -> int:
        """Count the snapshots of a branch that main does not have."""
        on_main = set[str]()
        for info in self.repository.ancestry(branch=BRANCH):
            on_main |= {str(info.id), *same_as(info)}
        n = 0
        for info in self.repository.ancestry(branch=name):
            if str(info.id) in on_main:
                break
            n += 1
        return n

    def _require_descent(self, name: str) -> None:
        """
        Raise a `StaleError` unless a branch descends from the head of main.

        Sweeps of main do not change its data, so their commits are disregarded, unless the repository keeps no log of
        changes: then only these commits prevent other writers from committing references to deleted chunks.
        """
        ancestors = {str(info.id) for info in self.repository.ancestry(branch=name)}
        keeps_log = self.repository.spec_version >= icechunk.SpecVersion.v2
        for info in self.repository.ancestry(branch=BRANCH):
            if ancestors & {str(info.id), *same_as(info)}:
                return
            if not (keeps_log and is_sweep(info)):
                break
        raise StaleError(
            f"publish: {self.label}: the branch {name} has diverged from {BRANCH}: {BRANCH} is at "
            f"{self._tip(BRANCH)}, {name} at {self._tip(name)}; nothing was published, delete the branch "
            f"(vczstore branch {self.label} {name} -d) and repeat its operations on a new one"
        )


def refuse_swept(repository: icechunk.Repository, snapshot: str, label: str) -> None:
    """Raise a `BusyError` if a snapshot is the first commit of a purge or gc, which has not completed."""
    operation = operation_of(repository.lookup_snapshot(snapshot))
    for sweep in SWEEPS:
        if operation == BEGUN.format(sweep):
            raise BusyError(
                f"{label} is being swept by {sweep}, or a {sweep} of it was stopped; wait until it is over, "
                f"or complete it with: vczstore {sweep} {label}"
            )


def updates_of(repository: icechunk.Repository) -> Iterator[Any]:
    """Yield the log of changes, newest first; nothing for a repository of Icechunk format 1, which keeps none."""
    return repository.ops_log() if repository.spec_version >= icechunk.SpecVersion.v2 else iter(())


def operation_of(info: icechunk.SnapshotInfo) -> str | None:
    """The operation recorded by a commit of vczstore; None for other commits."""
    metadata = info.metadata.get("vczstore", {})
    return metadata.get("operation") if isinstance(metadata, dict) else None


def is_sweep(info: icechunk.SnapshotInfo) -> bool:
    """Whether a commit is one of the two of a purge or gc, which do not change the store's data."""
    return operation_of(info) in (*SWEEPS, *map(BEGUN.format, SWEEPS))


def same_as(info: icechunk.SnapshotInfo) -> tuple[str, ...]:
    """IDs of the snapshots of tags and branches that had the same data when a purge or gc commit was made."""
    return tuple(info.metadata["vczstore"].get("same", ())) if is_sweep(info) else ()


def content_of(info: icechunk.SnapshotInfo) -> str:
    """ID of the snapshot that wrote the data of this one: for a purge or gc commit, an earlier one."""
    return str(info.metadata["vczstore"].get("holds", info.id)) if is_sweep(info) else str(info.id)
