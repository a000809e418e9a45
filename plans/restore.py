"""Restore: a store becomes what it was, in a new commit."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plans.info import AT_METAVAR
from vczstore.declarations import argument
from vczstore.execution.operations import Edit, Stages

if TYPE_CHECKING:
    from plans.core.model import Compiling
    from vczstore.execution.options import Options


@dataclass(frozen=True, kw_only=True)
class Restore(Edit):
    """
    Make a store what it was at a tag, branch or snapshot, in a new commit. Icechunk only.

    The history goes on, and what was done since stays in it. Chunks that have changed since are copied as they are;
    all others are not read. What was removed since is not brought back: a state that has such samples is refused, and
    so is one in which samples have other IDs than now. Job steps that were applied since can be applied again.

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

    state: str = argument("Which state.", metavar=AT_METAVAR)

    def check(self, options: "Options") -> None:
        """Refuse a store that keeps no history."""
        options.open(self.store).history.require(self.called)

    def compile(self, compiling: "Compiling") -> Stages:
        """Compile the copy of what has changed since."""
        from plans.compilers.restore import compile_restore

        yield from ()
        return compile_restore(compiling.store, compiling.vcz, self.state, compiling.memory)
