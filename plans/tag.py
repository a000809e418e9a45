"""Tag: name a state of a store, such as a release."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vczstore.declarations import argument, option
from vczstore.errors import OptionError, TagError
from vczstore.execution.operations import NAMES, Operation

if TYPE_CHECKING:
    from plans.maintenance.history import Tagged
    from vczstore.execution.options import Options
    from vczstore.execution.results import Found
    from vczstore.execution.sets.members import StoreSet


@dataclass(frozen=True, kw_only=True)
class Tag(Operation):
    """
    List the tags of a store, or tag its current state.

    A name cannot be used again, even after the tag was deleted. In a job, a tag names the state after all steps of the
    job, regardless of its position.

    Raises
    ------
    TagError
        If the name is or was in use, or the store is on plain Zarr.

    Examples
    --------
    >>> len(tag("cohort.icechunk", "release-2"))
    20
    """

    group: ClassVar[str] = "release"
    uses: ClassVar[tuple[str, ...]] = ("store", "branch", "lock")
    is_step: ClassVar[bool] = True
    phase: ClassVar[int] = NAMES
    step_examples: ClassVar[tuple[Any, ...]] = ("release-2026-11",)

    name: str | None = argument(
        "A name of printable characters without /.",
        default=None,
        metavar="[NAME]",
        kind="tag",
        job_help="Needs Icechunk.",
        short=True,
        examples=("release-2026-11",),
    )
    delete: bool = option(False, "Delete the tag. Its name cannot be used again.", flags=("-d", "--delete"), job=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delete and self.name is None:
            raise OptionError("tag: name the tag to delete")
        if self.name is None or self.delete:
            return
        if not self.name or not self.name.isprintable() or "/" in self.name:
            raise TagError(f"tag: {self.name!r} is no name for a tag; use printable characters without /")

    @property
    def writes(self) -> bool:
        """Whether a tag is created or deleted."""
        return self.name is not None

    @property
    def completes(self) -> bool:
        """Whether a tag is created: tagging all parts of a set again completes an interrupted run."""
        return self.name is not None and not self.delete

    def perform(self, options: "Options", *, dry_run: bool) -> "Tagged":
        """List the tags, add one, or delete one."""
        from plans.maintenance.history import Tagged, history_of

        history = history_of(self.store, options)
        if self.name is None:
            return Tagged(tags=history.tags())
        if self.delete:
            history.delete_tag(self.name)
            return Tagged(deleted=self.name)
        return Tagged(tag=self.name, snapshot=history.create_tag(self.name))

    def perform_set(self, group: "StoreSet", *, dry_run: bool) -> "Found":
        """List the tags of all parts, delete one, or tag all parts or none of them."""
        from plans.maintenance.history import Tagged
        from vczstore.execution.results import FoundInParts
        from vczstore.execution.sets.completion import tag_all

        if self.name is None or self.delete:
            return super().perform_set(group, dry_run=dry_run)
        parts = {part: Tagged(tag=self.name, snapshot=snapshot) for part, snapshot in tag_all(group, self.name).items()}
        return FoundInParts(self.called, group.label, parts)
