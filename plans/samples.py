"""Samples: the IDs of the samples of a store."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plans.info import AT_METAVAR
from vczstore.declarations import option
from vczstore.execution.operations import Operation

if TYPE_CHECKING:
    from plans.maintenance.samples import SampleList
    from vczstore.execution.options import Options
    from vczstore.execution.results import FoundInParts
    from vczstore.execution.sets.members import StoreSet


@dataclass(frozen=True, kw_only=True)
class Samples(Operation):
    """
    List the IDs of the samples of a store, one a line, in the order of the store.

    For removed samples only the positions are known, since their IDs are blanked.

    Raises
    ------
    TagError
        If `at` is given and the store is on plain Zarr, or has no such tag, branch or snapshot.

    Examples
    --------
    >>> samples("cohort.vcz").ids
    ['NA00001', 'NA00002', 'NA00003', 'NA00004']
    """

    group: ClassVar[str] = "look"
    is_handed_out: ClassVar[bool] = True
    at: str | None = option(None, "List the samples at this tag, branch or snapshot.", metavar=AT_METAVAR)
    removed: bool = option(False, "List the positions of removed samples instead, counted from 0.")

    long: bool = option(
        False,
        "Also list by which append each sample was added: its number, time and job. For stores that were created with "
        "--provenance.",
        flags=("-l", "--long"),
    )

    def perform(self, options: "Options", *, dry_run: bool) -> "SampleList":
        from plans.maintenance.samples import list_samples

        return list_samples(options.open(self.store), self.at, removed=self.removed, long=self.long)

    def perform_set(self, group: "StoreSet", *, dry_run: bool) -> "FoundInParts":
        """Read the sample IDs of all parts, which must agree."""
        from plans.maintenance.samples import require_same
        from vczstore.execution.results import FoundInParts

        parts = group.perform(dry_run=dry_run)
        require_same(group.label, parts)
        return FoundInParts(self.called, group.label, parts, is_same=not self.long)
