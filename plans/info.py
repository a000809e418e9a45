"""Info: describe the contents of a store."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vczstore.declarations import option
from vczstore.execution.operations import Operation

if TYPE_CHECKING:
    from plans.maintenance.info import Description
    from plans.maintenance.sets import SetDescription
    from vczstore.execution.options import Options
    from vczstore.execution.sets.members import StoreSet

AT_METAVAR = "TAG|BRANCH|SNAPSHOT"
"""Placeholder in help texts for the name of a state."""


@dataclass(frozen=True, kw_only=True)
class Info(Operation):
    """
    Show what is in a store: samples, variants, chunks, tags, history.

    Only metadata and sample IDs are read.

    Examples
    --------
    >>> info("cohort.icechunk", at="release-1").samples
    4
    """

    group: ClassVar[str] = "look"
    at: str | None = option(None, "Show the store at this tag, branch or snapshot.", metavar=AT_METAVAR)

    def perform(self, options: "Options", *, dry_run: bool) -> "Description":
        from plans.maintenance.info import describe

        return describe(options.open(self.store), self.at)

    def perform_set(self, group: "StoreSet", *, dry_run: bool) -> "SetDescription":
        """Describe all parts of a set, and whether they are in step."""
        from plans.maintenance.info import describe
        from plans.maintenance.sets import SetDescription, out_of_step

        stores = group.open()
        parts = {name: describe(store, self.at) for name, store in stores.items()}
        return SetDescription(group.label, parts, out_of_step(stores, self.at))
