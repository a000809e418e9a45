"""Purge: the history of a store is deleted, so that removed samples cannot be read any more."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vczstore.choices import TAGS
from vczstore.declarations import option
from vczstore.execution.operations import CLEANS, Operation

if TYPE_CHECKING:
    from plans.maintenance.purge import Foreseen, Purged
    from vczstore.execution.options import Options
    from vczstore.stores.base import HeldLock

TAGS_HELP = (
    "What a purge does with tags and branches that keep older snapshots. recreate rewrites what tags name, without the "
    "samples that the store no longer has; release-1 becomes release-1.1, since no name is used twice."
)

YES_HELP = "Do not ask on a terminal whether the history may be deleted; elsewhere nothing is asked."


@dataclass(frozen=True, kw_only=True)
class Purge(Operation):
    """
    Delete the history of a store, in which removed samples stay readable.

    Operations that other writers have begun are retried afterwards; no new one may begin meanwhile. On plain
    Zarr, which keeps no history, there is nothing to do. Where tags are recreated, a sample that was removed and came
    in again is there; INFO fields of recreated states are stale, as after remove.

    Raises
    ------
    TagError
        If there are such tags or branches, and they are to stay. Nothing has been done then.
    BusyError
        If a job runs on the store.
    StaleError
        After a concurrent commit. Operations that had begun before are retried.

    Examples
    --------
    >>> purge("cohort.icechunk", tags="delete").store
    'cohort.icechunk'
    """

    group: ClassVar[str] = "withdraw"
    is_of_history: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = ("store", "lock", "workers", "progress")
    is_step: ClassVar[bool] = True
    phase: ClassVar[int] = CLEANS
    step_examples: ClassVar[tuple[Any, ...]] = (True, {"tags": "delete"})

    dry_run: ClassVar[str] = "Say what would be deleted; delete nothing."
    is_after_commit = False
    """Whether a commit comes before it, so that what names the present state keeps an older one by then."""

    tags: str = option("refuse", TAGS_HELP, choices=TAGS, positional=True, examples=("delete",))
    yes: bool = option(False, YES_HELP, flags=("-y", "--yes"), python=False, job=False)

    @property
    def to_confirm(self) -> "Purge | None":
        """Itself, unless the answer is given."""
        return None if self.yes else self

    @property
    def writes(self) -> bool:
        """It writes to the store."""
        return True

    def perform(self, options: "Options", *, dry_run: bool) -> "Purged | Foreseen":
        """Hold the lock of jobs, and delete."""
        from plans.maintenance.purge import foresee

        store = options.open(self.store)
        if dry_run:
            return foresee(store, self.tags, changing=self.is_after_commit)
        with store.exclusive_lock() as lock:
            return self.perform_within(options, lock)

    def perform_within(self, options: "Options", lock: "HeldLock") -> "Purged":
        """Delete."""
        from plans.maintenance.purge import purge_store

        return purge_store(options.open(self.store), self.tags, lock, options)
