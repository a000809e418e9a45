"""Verify a removal: read every object of a store, to show that no trace of removed samples is left."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vczstore.declarations import argument, option
from vczstore.execution.operations import Operation

if TYPE_CHECKING:
    from plans.maintenance.verify_removal import Verification
    from vczstore.execution.options import Options


@dataclass(frozen=True, kw_only=True)
class VerifyRemoval(Operation):
    """
    Read every object of a store, to show that no trace of removed samples is left.

    The IDs are searched for, and are not stored; nothing is written to the store. IDs of fewer than four bytes are
    searched for among sample IDs only. Exit status 1 if anything is found.

    Raises
    ------
    StaleError
        If the store changes during the search.

    Examples
    --------
    >>> verify_removal("cohort.vcz", ["NA00099"]).erased
    True
    """

    group: ClassVar[str] = "withdraw"
    uses: ClassVar[tuple[str, ...]] = ("store",)  # all branches are read

    samples: tuple[str, ...] = argument(
        "The IDs of the samples that were removed.", kind="samples-file", metavar="SAMPLE_ID"
    )
    report: Any = option(None, "Write report.json and report.html here.", metavar="DIR", kind="folder")

    def perform(self, options: "Options", *, dry_run: bool) -> "Verification":
        from plans.maintenance.verify_removal import verify
        from vczstore.reports.page import report_folder

        folder, store = None if self.report is None else Path(self.report), options.open(self.store)
        with report_folder(folder):
            return verify(self.store, store, self.samples, options.storage_options or {}, folder)
