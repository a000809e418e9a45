"""Garbage collection: delete unreferenced objects of a store."""

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from vczstore.choices import KEPT_TAGS, MAX_DAYS
from vczstore.declarations import option
from vczstore.errors import OptionError
from vczstore.execution.operations import CLEANS, Operation

if TYPE_CHECKING:
    from plans.maintenance.purge import Collected
    from vczstore.execution.options import Options
    from vczstore.stores.base import Keep
    from vczstore.stores.lock import HeldLock


@dataclass(frozen=True, kw_only=True)
class Gc(Operation):
    """
    Delete unreferenced objects, such as those of a killed operation; on request, old history, too.

    On plain Zarr these are chunks outside the shapes of arrays, left by an interrupted append. The append can be
    completed by running it again, with or without them.

    Raises
    ------
    BusyError
        If a job runs on the store; on plain Zarr, if anything does.
    StaleError
        After a concurrent commit. Operations that had begun before it are retried.

    Examples
    --------
    >>> gc("cohort.icechunk", dry_run=True).committed
    False
    """

    group: ClassVar[str] = "maintain"
    is_of_history: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = ("store", "lock")
    is_step: ClassVar[bool] = True
    phase: ClassVar[int] = CLEANS
    step_examples: ClassVar[tuple[Any, ...]] = (True, {"keep-days": 30})
    dry_run: ClassVar[str] = "Count, and delete nothing."
    writes = True
    """Objects of the store are deleted."""

    keep_days: int | None = option(
        None,
        "First delete history older than this many days. Snapshots that main, a branch or a tag names are kept.",
        metavar="DAYS",
        bounds=(0, MAX_DAYS),
        default_text="the history is kept",
        examples=(30,),
    )
    keep_tags: str = option(
        "all",
        "With `keep_days`: keep all tags, or delete those that name older snapshots.",
        choices=KEPT_TAGS,
        examples=("none",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_tags != "all" and self.keep_days is None:
            raise OptionError("gc: --keep-tags needs --keep-days")

    def perform(self, options: "Options", *, dry_run: bool) -> "Collected":
        """Delete, holding the lock of jobs."""
        from plans.maintenance.purge import collect_garbage

        store = options.open(self.store)
        if dry_run:
            return collect_garbage(store, None, dry_run=True, keep=self._keep)
        with store.exclusive_lock() as lock:
            return self.perform_within(options, lock)

    def perform_within(self, options: "Options", lock: "HeldLock") -> "Collected":
        """Delete; the caller holds the lock."""
        from plans.maintenance.purge import collect_garbage

        return collect_garbage(options.open(self.store), lock, dry_run=False, keep=self._keep)

    @property
    def _keep(self) -> "Keep | None":
        from vczstore.stores.base import Keep

        return None if self.keep_days is None else Keep(timedelta(days=self.keep_days), self.keep_tags == "all")
