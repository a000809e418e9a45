"""Purge: the history of a store is deleted, so that what was removed cannot be read through any of its snapshots."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, cast

from vczstore.errors import OptionError
from vczstore.execution import Interrupted
from vczstore.stores import Place, Store
from vczstore.stores.lock import JobLock, job_lock

if TYPE_CHECKING:
    from vczstore.stores.icechunk import IcechunkStore

type Tags = Literal["refuse", "delete"]
"""What to do with tags and branches that keep older snapshots."""

NO_HISTORY = "plain Zarr keeps no history: what was removed is overwritten already"


@dataclass(frozen=True)
class Purged:
    """
    What a purge has done.

    Attributes
    ----------
    store
        Which store.
    snapshot
        The new snapshot, None on plain Zarr, where there is nothing to do.
    counts
        What was deleted, in numbers; ``bytes`` too.
    deleted
        The tags and branches that were deleted.
    """

    store: str
    snapshot: str | None
    counts: Mapping[str, int] = field(default_factory=dict)
    deleted: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"deleted": list(self.deleted)}


def check_tags(tags: str) -> None:
    """Raise an `OptionError` for what cannot be done with tags."""
    if tags not in ("refuse", "delete"):
        raise OptionError(f"purge: tags is {tags!r}; it takes 'refuse' or 'delete'")


@contextmanager
def hold(store: Place, options: Mapping[str, Any] | None, *, wait: bool = False) -> Iterator[JobLock | None]:
    """Hold the lock of jobs; None where there is no place for one."""
    if not isinstance(store, str | os.PathLike):
        yield None
        return
    with job_lock(os.fspath(store), options or {}, wait=wait) as lock:
        yield lock


def refuse_pins(place: Store, tags: Tags) -> None:
    """Raise a `TagError` if what is going to be removed would be kept by a tag or a branch."""
    if tags == "refuse" and place.atomic:
        cast("IcechunkStore", place).refuse_pins(changing=True)


def purge_store(place: Store, tags: Tags, lock: JobLock | None) -> Purged:
    """
    Delete the history of a store.

    Parameters
    ----------
    place
        The store.
    tags
        What to do with tags and branches that keep older snapshots.
    lock
        That of jobs; it is held until this returns.
    """
    if not place.atomic:
        return Purged(place.label, None)
    try:
        snapshot, counts, deleted = cast("IcechunkStore", place).purge(
            delete_pins=tags == "delete", before=lambda: None if lock is None else lock.check()
        )
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"purge: interrupted; some of the history may be deleted, run it again: vczstore purge {place.label}"
        ) from error
    return Purged(place.label, snapshot, counts, tuple(deleted))
