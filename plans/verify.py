"""Verify: look for errors in a store, without writing to it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vczstore.declarations import option
from vczstore.execution.operations import CHECKS, Operation

if TYPE_CHECKING:
    from plans.maintenance.verify import Verified
    from vczstore.execution.options import Options
    from vczstore.execution.results import FoundInParts
    from vczstore.execution.sets.members import StoreSet


@dataclass(frozen=True, kw_only=True)
class Verify(Operation):
    """
    Check a store: metadata, sample IDs, the order of variants, and every chunk.

    Arrays must agree on the lengths of dimensions and conform to the VCF Zarr specification; sample IDs must be unique;
    consolidated metadata must match the arrays; every stored chunk must decode, without values of removed samples;
    variants must be sorted within contigs, and region_index must be correct. Chunks that are not stored stand for the
    fill value, and are no errors; nor are those that an interrupted append left outside the grid of an array. A flipped
    bit in a chunk is found if it makes decoding fail or yields invalid values: with gzip and checksums it always is.
    Exit status 1 if there are errors.

    Raises
    ------
    VczstoreError
        If the store cannot be opened, for instance because its metadata are corrupt.

    Examples
    --------
    >>> verify("cohort.vcz", quick=True).ok
    True
    """

    group: ClassVar[str] = "look"
    uses: ClassVar[tuple[str, ...]] = ("store", "branch", "workers", "progress")
    is_step: ClassVar[bool] = True
    phase: ClassVar[int] = CHECKS
    step_examples: ClassVar[tuple[Any, ...]] = (True, {"quick": True})

    quick: bool = option(False, "Check metadata and sample IDs only.", examples=(True,))

    def perform(self, options: "Options", *, dry_run: bool) -> "Verified":
        from plans.maintenance.verify import verify_store

        return verify_store(options.open(self.store), options, quick=self.quick)

    def perform_set(self, group: "StoreSet", *, dry_run: bool) -> "FoundInParts":
        """Verify all parts of a set, and whether they are in step."""
        from plans.maintenance.sets import out_of_step
        from vczstore.execution.results import FoundInParts

        return FoundInParts(self.called, group.label, group.perform(dry_run=dry_run), out_of_step(group.open()))
