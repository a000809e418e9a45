"""Restore: return a store to an earlier state, in a new commit."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plans.info import AT_METAVAR
from vczstore.declarations import argument
from vczstore.execution.operations import Edit

if TYPE_CHECKING:
    from plans.core.model import Compiling, Plan
    from vczstore.execution.options import Options


@dataclass(frozen=True, kw_only=True)
class Restore(Edit):
    """
    Return a store to its state at a tag, branch or snapshot, in a new commit. Icechunk only.

    Later commits stay in the history. Chunks that have changed since are copied verbatim; no others are read. Removed
    samples are not restored: a state that has samples which were removed later is refused, and so is a state in which
    samples have other IDs than now. Job steps that were applied later can be applied again.

    Raises
    ------
    SampleError
        If the state has samples that the store no longer has.
    TagError
        If there is no such state, or the store is on plain Zarr.

    Examples
    --------
    >>> restore("cohort.icechunk", "release-1").counts["samples"]
    4
    """

    group: ClassVar[str] = "release"
    uses: ClassVar[tuple[str, ...]] = ("store", "branch", "lock", "workers", "progress", "retries")

    state: str = argument("The state to return to.", metavar=AT_METAVAR)

    def check(self, options: "Options") -> None:
        """Check that the store keeps a history."""
        options.open(self.store).history.require(self.called)

    def compile(self, compiling: "Compiling") -> "Plan":
        """Compile the restoration of metadata and chunks that have changed."""
        from plans.compilers.restore import compile_restore

        return compile_restore(compiling.store, compiling.vcz, self.state, compiling.memory)
