"""Remove: set the values of samples to missing, and blank their IDs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from plans.compilers.options import missing_ok, recomputed_fields
from plans.purge import TAGS_HELP, YES_HELP, Purge
from plans.recompute import recomputing
from vczstore.choices import TAGS
from vczstore.declarations import argument, option
from vczstore.errors import VczstoreError
from vczstore.execution.operations import Edit

if TYPE_CHECKING:
    from plans.core.model import Compiling, Plan
    from plans.maintenance.purge import Purged
    from vczstore.execution.options import Options
    from vczstore.execution.results import Result
    from vczstore.stores.lock import HeldLock


@dataclass(frozen=True, kw_only=True)
class Remove(Edit):
    """
    Overwrite samples with missing values, and blank their IDs.

    On Icechunk, the samples stay readable in older snapshots until the store is purged.

    Raises
    ------
    SampleError
        If some of the samples are not in the store. The message names all of them, and no sample is removed.
    TagError
        If tags or branches would keep the samples after a purge, and `tags` is refuse. No sample is removed.

    Examples
    --------
    >>> remove("cohort.icechunk", ["NA00002"], purge=True, tags="delete").counts
    {'samples removed': 1}
    """

    group: ClassVar[str] = "withdraw"
    uses: ClassVar[tuple[str, ...]] = (*Edit.uses, "resume")
    is_step: ClassVar[bool] = True
    step_examples: ClassVar[tuple[Any, ...]] = (
        "NA00002",
        ["NA00002", "NA00017"],
        {"samples-file": "withdrawn.txt", "missing-ok": True},
    )
    ignored: ClassVar[tuple[str, ...]] = ("--variant-chunks-in-batch",)

    samples: tuple[str, ...] = argument(
        "The IDs of the samples.",
        metavar="[SAMPLE_ID]...",
        kind="samples",
        job_help="One or a list of them; IDs that look like numbers need quotes.",
        shorthand="a sample ID, a list of them",
        examples=("NA00002", ["NA00002", "1001"]),
    )
    missing_ok: bool = missing_ok(command=False, python=False)
    purge: bool = option(False, "Then delete the history, in which the samples would stay readable.", job=False)
    tags: str = option("refuse", TAGS_HELP, choices=TAGS, job=False)
    recompute: tuple[str, ...] = recomputed_fields()
    yes: bool = option(False, YES_HELP, flags=("-y", "--yes"), job=False, python=False)

    @property
    def to_confirm(self) -> Purge | None:
        """The purge, unless there is none or it is confirmed already."""
        if not self.purge or self.yes:
            return None
        purge = Purge(store=self.store, tags=self.tags)
        object.__setattr__(purge, "is_after_commit", True)  # frozen, but not yet in use
        return purge

    @property
    def then(self) -> Edit | None:
        """The recomputation of INFO fields in the same commit; None if not requested."""
        return recomputing(self.store, self.recompute)

    @property
    def beyond_plan(self) -> str | None:
        """Name of the option whose follow-up the plan does not contain: the purge, else as for any edit."""
        return "purge" if self.purge else super().beyond_plan

    @property
    def is_exclusive(self) -> bool:
        """Whether the history is purged, too."""
        return self.purge

    @property
    def purges(self) -> str:
        """The treatment of tags by the purge; empty if there is no purge."""
        return self.tags if self.purge else ""

    def check(self, options: "Options") -> None:
        """Check that the history can be purged."""
        if self.purge:
            from plans.maintenance.purge import refuse_pins

            refuse_pins(options.open(self.store), self.tags)

    def compile(self, compiling: "Compiling") -> "Plan":
        """Compile a removal that can be completed if it is interrupted."""
        from plans.compilers.remove import compile_completable

        return compile_completable(compiling.store, compiling.vcz, self.samples, compiling.memory)

    def purge_history(self, options: "Options", lock: "HeldLock") -> "Purged":
        """Delete the history, in which the samples are still readable."""
        return Purge(store=self.store, tags=self.tags).perform_within(options, lock)

    def afterwards(self, result: "Result", options: "Options", lock: "HeldLock") -> "Result":
        """Purge the history, if requested."""
        if not self.purge:
            return result
        try:
            purged = self.purge_history(options, lock)
        except VczstoreError as error:
            raise type(error)(f"remove: the samples are removed, but not yet from the history: {error}") from error
        return result.with_purge(purged)
