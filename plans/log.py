"""Log: the history of a store."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vczstore.execution.operations import Operation

if TYPE_CHECKING:
    from plans.maintenance.history import PastCommits
    from vczstore.execution.options import Options


@dataclass(frozen=True, kw_only=True)
class Log(Operation):
    """
    Show the history of a store: times, operations, counts and versions.

    Newest first. Each entry has ``snapshot``, ``time`` (ISO 8601, UTC), ``message``, ``operation``, ``steps`` (the
    counts of each), ``job`` (the id of the job, None for a single operation), ``versions`` and ``tags``. Entries that a
    purge has deleted are last: operations, times and counts, without snapshots.

    Raises
    ------
    TagError
        If the store is on plain Zarr, which keeps no history.

    Examples
    --------
    >>> [entry["operation"] for entry in log("cohort.icechunk")][0]
    'copy-store-to-icechunk'
    """

    group: ClassVar[str] = "look"
    is_of_history: ClassVar[bool] = True

    def perform(self, options: "Options", *, dry_run: bool) -> "PastCommits":
        from plans.maintenance.history import PastCommits, history_of, past_commits

        return PastCommits(past_commits(history_of(self.store, options, "log")))
