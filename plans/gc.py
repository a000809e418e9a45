"""Collect garbage: unreferenced objects are deleted."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vczstore.execution.operations import Operation

if TYPE_CHECKING:
    from plans.maintenance.purge import Collected
    from vczstore.execution.options import Options


@dataclass(frozen=True, kw_only=True)
class Gc(Operation):
    """
    Delete unreferenced objects, such as those of a killed operation. The history stays.

    On plain Zarr these are chunks outside the arrays' shapes, as an append that was stopped leaves them; to run that
    append again completes it, with or without them.

    Raises
    ------
    BusyError
        If a job runs on the store; on plain Zarr, if anything does.
    StaleError
        After a concurrent commit. Operations that had begun before are retried.

    Examples
    --------
    >>> gc("cohort.icechunk", dry_run=True).committed
    False
    """

    group: ClassVar[str] = "maintain"
    uses: ClassVar[tuple[str, ...]] = ("store", "lock")
    dry_run: ClassVar[str] = "Count, and delete nothing."

    @property
    def writes(self) -> bool:
        """It writes to the store."""
        return True

    def perform(self, options: "Options", *, dry_run: bool) -> "Collected":
        """Hold the lock of jobs, and delete."""
        from plans.maintenance.purge import collect_garbage

        store = options.open(self.store)
        if dry_run:
            return collect_garbage(store, None, dry_run=True)
        with store.exclusive_lock() as lock:
            return collect_garbage(store, lock, dry_run=False)
