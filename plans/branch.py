"""Branch: create, list and delete branches, which readers of main do not see."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vczstore.choices import OURS
from vczstore.declarations import argument, option
from vczstore.errors import OptionError, TagError
from vczstore.execution.operations import Operation

if TYPE_CHECKING:
    from plans.maintenance.history import Branched
    from vczstore.execution.options import Options


def branch_name(operation: str, name: Any) -> None:
    """Raise a `TagError` if `name` is not a valid name of a branch."""
    if not isinstance(name, str) or not name or not name.isprintable() or "/" in name:
        raise TagError(f"{operation}: {name!r} is no name for a branch; use printable characters without /")
    if name.startswith(OURS):
        raise TagError(
            f"{operation}: {name!r} begins with {OURS}, as branches that vczstore makes; choose another name"
        )


@dataclass(frozen=True, kw_only=True)
class Branch(Operation):
    """
    List the branches of a store, or make one.

    A branch has its own line of commits: with ``--branch`` any operation reads and writes it, and readers do not see
    them until `publish`. Samples removed from main stay readable on other branches, so a purge is refused while there
    are branches whose contents differ from main.

    Raises
    ------
    TagError
        If the name is in use, there is no such branch, or the store is on plain Zarr.

    Examples
    --------
    >>> list(branch("cohort.icechunk").branches)
    ['main']
    """

    group: ClassVar[str] = "release"
    is_of_history: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = ("store", "lock")

    name: str | None = argument("A name of printable characters without /.", default=None, metavar="[NAME]")
    at: str | None = option(
        None, "Begin the branch at this tag, branch or snapshot.", metavar="REF", default_text="where main is"
    )
    delete: bool = option(
        False, "Delete the branch, and with it its commits that were not published.", flags=("-d", "--delete")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is None and (self.delete or self.at is not None):
            raise OptionError(f"branch: name the branch to {'delete' if self.delete else 'make'}")
        if self.delete and self.at is not None:
            raise OptionError("branch: --at goes with making a branch, not with --delete")
        if self.name is not None:
            branch_name("branch", self.name)

    @property
    def writes(self) -> bool:
        """Whether a branch is created or deleted."""
        return self.name is not None

    def perform(self, options: "Options", *, dry_run: bool) -> "Branched":
        """List the branches, create one, or delete one."""
        from plans.maintenance.history import Branched, history_of

        branches = history_of(self.store, options, "branch").branches()
        if self.name is None:
            return Branched(branches.tips())
        if self.delete:
            return Branched({}, deleted=self.name, lost=branches.delete(self.name))
        return Branched({self.name: branches.create(self.name, self.at)}, created=self.name)
