"""Publish: make the commits of a branch visible to readers, on main."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from plans.branch import branch_name
from vczstore.declarations import argument
from vczstore.execution.operations import PUBLISHES, Operation

if TYPE_CHECKING:
    from plans.maintenance.history import Published
    from vczstore.execution.options import Options
    from vczstore.execution.results import Found
    from vczstore.execution.sets.members import StoreSet
    from vczstore.stores.lock import HeldLock


@dataclass(frozen=True, kw_only=True)
class Publish(Operation):
    """
    Fast-forward main to a branch, so that readers see the commits of the branch.

    If main has changed since the branch was created, nothing is published; purges and garbage collection do not count
    as changes. The branch is kept.

    Raises
    ------
    StaleError
        If main has changed since the branch was created.
    TagError
        If there is no such branch, or the store is on plain Zarr.
    BusyError
        If a job runs on the store.

    Examples
    --------
    >>> branch("cohort.icechunk", "batch-7").created
    'batch-7'
    >>> append("cohort.icechunk", "batch-7.vcz", branch="batch-7").counts
    {'sources': 1, 'samples added': 2}
    >>> publish("cohort.icechunk", "batch-7").published
    1
    """

    group: ClassVar[str] = "release"
    uses: ClassVar[tuple[str, ...]] = ("store", "lock")
    is_step: ClassVar[bool] = True
    phase: ClassVar[int] = PUBLISHES
    step_examples: ClassVar[tuple[Any, ...]] = ("nightly",)
    writes = True
    """Main is moved."""
    completes = True
    """Publishing again completes an interrupted run."""

    name: str = argument(
        "The branch.",
        metavar="BRANCH",
        kind="tag",
        job_help="That of the job. Nothing is published if a check before it fails.",
        key="branch",
        shorthand="a branch",
        examples=("nightly",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        branch_name("publish", self.name)

    def perform(self, options: "Options", *, dry_run: bool) -> "Published":
        """Publish, holding the lock of jobs."""
        store = options.open(self.store)
        store.history.require("publish")
        with store.exclusive_lock() as lock:
            return self.perform_within(options, lock)

    def perform_within(self, options: "Options", lock: "HeldLock") -> "Published":
        """Publish; the caller holds the lock."""
        from plans.maintenance.history import Published, history_of

        history = history_of(self.store, options, "publish")
        before, after, n = history.branches().publish(self.name, lock.check)
        return Published(str(self.store), self.name, before, after, n)

    def perform_set(self, group: "StoreSet", *, dry_run: bool) -> "Found":
        """Publish the branch of all parts of a set, or of none of them."""
        from itertools import takewhile

        from plans.maintenance.history import Published
        from vczstore.execution.results import FoundInParts
        from vczstore.execution.sets.completion import publish_all

        parts, stores = dict[str, Published](), group.open()
        for part, move in publish_all(group, self.name).items():
            ids = (entry.id for entry in stores[part].history.snapshots(move.snapshot))
            n = sum(1 for _ in takewhile(move.base.__ne__, ids))
            parts[part] = Published(group.places[part], self.name, move.base, str(move.snapshot), n)
        return FoundInParts(self.called, group.label, parts)
