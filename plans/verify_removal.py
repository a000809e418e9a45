"""Verify a removal: every object of a store is read, to show that nothing of some samples is left."""

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
    Read every object of a store, to show that nothing of removed samples is left.

    The IDs are searched for, and stored nowhere; nothing is written to the store. IDs of fewer than four bytes are
    looked for as sample IDs only. Exit status 1 if anything is found.

    Raises
    ------
    StaleError
        If the store changes meanwhile.

    Examples
    --------
    >>> verify_removal("cohort.vcz", ["NA00099"]).erased
    True
    """

    group: ClassVar[str] = "withdraw"
    uses: ClassVar[tuple[str, ...]] = ("store",)  # it reads all branches

    samples: tuple[str, ...] = argument(
        "The IDs of the samples that were removed.", kind="samples-file", metavar="SAMPLE_ID"
    )
    report: Any = option(None, "Write report.json and report.html here.", metavar="DIR", kind="folder")

    def perform(self, options: "Options", *, dry_run: bool) -> "Verification":
        """Read the store."""
        from plans.maintenance.verify_removal import verify

        folder = None if self.report is None else Path(self.report)
        return verify(self.store, options.open(self.store), self.samples, options.storage_options or {}, folder)
