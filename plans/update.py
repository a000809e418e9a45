"""Update: samples that are in a store get the values that sources have for them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from plans.compilers.options import (
    add_fields,
    allow_returning,
    drop_fields,
    drop_returning,
    fields_of,
    if_none,
    recomputed_fields,
)
from plans.recompute import recomputing
from vczstore.declarations import argument, option
from vczstore.execution.operations import Edit, Stages

if TYPE_CHECKING:
    from plans.core.model import Compiling


@dataclass(frozen=True, kw_only=True)
class Update(Edit):
    """
    Replace the values of samples by those of one or more VCZs.

    The sources need the store's variants, in its order; their samples have to be in the store, and may be in any order.

    Raises
    ------
    SampleError
        If some of the samples are not in the store. All of these are named, and no sample is updated.
    VczstoreError
        If anything else does not fit. Nothing has been changed then.

    Examples
    --------
    >>> update("cohort.vcz", "recalled.vcz").counts
    {'sources': 1, 'samples updated': 2}
    """

    group: ClassVar[str] = "edit"
    uses: ClassVar[tuple[str, ...]] = (*Edit.uses, "sources", "resume")
    is_step: ClassVar[bool] = True
    step_examples: ClassVar[tuple[Any, ...]] = ("recalled.vcz", {"source": "recalled.vcz", "insert": True})

    sources: tuple[Any, ...] = argument(
        "The VCZs, or VCF or BCF files, whose samples have new values; never written to.",
        metavar="SOURCE...",
        kind="sources",
        job_help="As in `append`.",
        shorthand="a path, a list of paths",
        key="source",
        examples=("recalled.vcz", ["a.vcz", "b.vcz"]),
    )
    insert: bool = option(
        False,
        "Append the samples that the store does not have; else they are an error.",
        command=False,
        python=False,
        examples=(True,),
    )
    if_none: str | None = if_none()
    drop_fields: tuple[str, ...] = drop_fields()
    add_fields: tuple[str, ...] = add_fields()
    recompute: tuple[str, ...] = recomputed_fields()
    allow_returning: bool = allow_returning(command=False, python=False, examples=(True,))
    drop_returning: bool = drop_returning(command=False, python=False, examples=(True,))

    @property
    def then(self) -> Edit | None:
        """What follows in the same commit."""
        return recomputing(self.store, self.recompute)

    def compile(self, compiling: "Compiling") -> Stages:
        """Look up whether values need a wider dtype than the store's; then compile what is written where."""
        from plans.compilers.update import compile_in_stages

        fields = fields_of(self.drop_fields, self.add_fields)
        return compile_in_stages(compiling.store, compiling.vcz, compiling.sources, compiling.memory, fields=fields)
