"""Repair: complete or undo interrupted operations, as far as that is safe."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vczstore.declarations import option
from vczstore.execution.operations import Operation

if TYPE_CHECKING:
    from plans.maintenance.repair import Repaired
    from vczstore.execution.options import Options
    from vczstore.execution.results import FoundInParts
    from vczstore.execution.sets.members import StoreSet


@dataclass(frozen=True, kw_only=True)
class Repair(Operation):
    """
    Complete or undo an interrupted operation on plain Zarr, and repair stores of version 0.1.0.

    An append that was interrupted while its samples became visible is undone, and can be completed by running it again;
    stale consolidated metadata are rewritten from the metadata of the arrays; an interrupted compaction in place is
    completed or undone; partial files of a killed process are deleted. Other errors are only listed. On Icechunk, whose
    commits are atomic, only errors of version 0.1.0 are repaired: empty IDs without calls, and values of removed
    samples. The lock of the store is held; programs that do not take it must not write to the store meanwhile. Exit
    status 1 if errors remain.

    Raises
    ------
    BusyError
        If a job runs on the store.
    VczstoreError
        If the store cannot be opened, for instance because its metadata are corrupt.

    Examples
    --------
    >>> repair("cohort.vcz", dry_run=True).done
    ()
    """

    group: ClassVar[str] = "maintain"
    uses: ClassVar[tuple[str, ...]] = ("store", "branch", "lock", "workers", "progress")
    dry_run: ClassVar[str] = "Print what would be done; write nothing."
    writes = True
    """The store is written."""
    completes = True
    """Interrupted operations are completed."""

    quick: bool = option(False, "Look for other errors in metadata and sample IDs only.")

    def perform(self, options: "Options", *, dry_run: bool) -> "Repaired":
        """Repair, holding the lock of the store."""
        from plans.maintenance.repair import repair_store

        return repair_store(self.store, options, dry_run=dry_run, quick=self.quick)

    def perform_set(self, group: "StoreSet", *, dry_run: bool) -> "FoundInParts":
        """Complete operations that were interrupted before all parts of a set had them, and repair each part."""
        from plans.maintenance.sets import repair_set

        return repair_set(group, dry_run=dry_run)
