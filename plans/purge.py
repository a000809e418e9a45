"""Purge: delete the history of a store, so that removed samples cannot be read any more."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vczstore.choices import TAGS
from vczstore.declarations import option
from vczstore.execution.operations import CLEANS, Operation

if TYPE_CHECKING:
    from plans.maintenance.purge import Foreseen, Purged
    from vczstore.execution.options import Options
    from vczstore.stores.lock import HeldLock

TAGS_HELP = (
    "What a purge does with tags and branches that keep older snapshots. recreate rewrites tagged states without the "
    "samples that the store no longer has; release-1 becomes release-1.1, since no name can be used twice."
)

YES_HELP = "Do not ask on a terminal whether the history may be deleted; elsewhere nothing is asked."


@dataclass(frozen=True, kw_only=True)
class Purge(Operation):
    """
    Delete the history of a store, in which removed samples stay readable.

    Operations that other writers have begun are retried afterwards; no new one may begin meanwhile. On plain
    Zarr, which keeps no history, there is nothing to do. Recreated tags keep samples that were removed and added again;
    INFO fields of recreated states are stale, as after remove.

    Raises
    ------
    TagError
        If tags or branches keep older snapshots, and `tags` is refuse. Nothing is deleted then.
    BusyError
        If a job runs on the store.
    StaleError
        After a concurrent commit. Operations that had begun before it are retried.

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
    writes = True
    """The history of the store is deleted."""
    is_after_commit = False
    """Whether a commit precedes the purge, so that tags of the present state will name an older one by then."""

    tags: str = option("refuse", TAGS_HELP, choices=TAGS, positional=True, examples=("delete",))
    yes: bool = option(False, YES_HELP, flags=("-y", "--yes"), python=False, job=False)

    @property
    def to_confirm(self) -> "Purge | None":
        """The operation itself, unless it is confirmed already."""
        return None if self.yes else self

    def perform(self, options: "Options", *, dry_run: bool) -> "Purged | Foreseen":
        """Delete the history, holding the lock of jobs."""
        from plans.maintenance.purge import foresee

        store = options.open(self.store)
        if dry_run:
            return foresee(store, self.tags, changing=self.is_after_commit)
        with store.exclusive_lock() as lock:
            return self.perform_within(options, lock)

    def perform_within(self, options: "Options", lock: "HeldLock") -> "Purged":
        """Delete the history; the caller holds the lock."""
        from plans.maintenance.purge import purge_store

        return purge_store(options.open(self.store), self.tags, lock, options)
