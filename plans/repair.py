"""Repair: what interrupted operations left is finished or undone, as far as that is safe."""

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
    Finish or undo what an interrupted operation left on plain Zarr, and mend stores of version 0.1.0.

    An append that was interrupted while its samples became visible is undone, and completes when it is run again;
    stale consolidated metadata are rewritten from the arrays' own; an interrupted compaction in place is finished or
    undone; half-written files of a killed process are deleted. Other errors are listed and left. On Icechunk, whose
    commits are all or nothing, only what version 0.1.0 leaves is repaired: empty IDs without calls, and values of
    removed samples. The lock of the store is held; programs that do not take it must not write to the store meanwhile.
    Exit status 1 if there are errors left.

    Raises
    ------
    BusyError
        If a job runs on the store.
    VczstoreError
        If the store cannot be opened, for instance since its metadata are corrupt.

    Examples
    --------
    >>> repair("cohort.vcz", dry_run=True).done
    ()
    """

    group: ClassVar[str] = "maintain"
    uses: ClassVar[tuple[str, ...]] = ("store", "branch", "lock", "workers", "progress")
    dry_run: ClassVar[str] = "Print what would be done; write nothing."

    quick: bool = option(False, "Look for other errors in metadata and sample IDs only.")

    @property
    def writes(self) -> bool:
        """It writes to the store."""
        return True

    @property
    def completes(self) -> bool:
        """It completes what was stopped."""
        return True

    def perform(self, options: "Options", *, dry_run: bool) -> "Repaired":
        """Hold the lock of the store, and repair."""
        from plans.maintenance.repair import repair_store

        return repair_store(self.store, options, dry_run=dry_run, quick=self.quick)

    def perform_set(self, group: "StoreSet", *, dry_run: bool) -> "FoundInParts":
        """Complete what was stopped before all parts of a set had it, and repair each part."""
        from plans.maintenance.sets import repair_set

        return repair_set(group, dry_run=dry_run)
