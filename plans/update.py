"""Update: replace the values of samples of a store by those of sources."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from plans.compilers.options import (
    SourceOptions,
    allow_returning,
    drop_returning,
    fields_of,
    harmonise,
)
from plans.recompute import recomputing
from vczstore.declarations import argument, option
from vczstore.errors import OptionError
from vczstore.execution.operations import Edit, Stages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plans.core.model import Compiling
    from vczstore.stores.base import Store
    from vczstore.vcz.model import Vcz


@dataclass(frozen=True, kw_only=True)
class Update(SourceOptions):
    """
    Replace the values of samples by those of one or more VCZs.

    The sources need the store's variants, in its order, unless `harmonise` maps them; their samples have to be in the
    store, and may be in any order.

    Raises
    ------
    SampleError
        If some of the samples are not in the store. The message names all of them, and no sample is updated.
    VczstoreError
        If the sources are incompatible with the store. The store is unchanged then.

    Examples
    --------
    >>> update("cohort.vcz", "recalled.vcz").counts
    {'sources': 1, 'samples updated': 2}
    """

    group: ClassVar[str] = "edit"
    uses: ClassVar[tuple[str, ...]] = (*Edit.uses, "sources", "resume")
    is_step: ClassVar[bool] = True
    changes_samples: ClassVar[bool] = False
    step_examples: ClassVar[tuple[Any, ...]] = (
        "recalled.vcz",
        {"source": "recalled.vcz", "insert": True},
        {"source": "recalled.vcz", "harmonise": {"new-variants": "insert"}},
    )

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
    harmonise: bool = harmonise(True, {"new-variants": "insert"})
    allow_returning: bool = allow_returning(command=False, python=False, examples=(True,))
    drop_returning: bool = drop_returning(command=False, python=False, examples=(True,))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.harmonise and self.insert:
            raise OptionError(
                "update: harmonise does not go with insert: true; append the samples that are new in a step of its own"
            )
        self.rules_if(harmonise=self.harmonise)  # validates the options
        if self.allow_new_alleles and self.new_variants != "insert":
            raise OptionError("update: --allow-new-alleles needs --new-variants insert")

    @property
    def then(self) -> Edit | None:
        """The recomputation of INFO fields in the same commit; None if not requested."""
        return recomputing(self.store, self.recompute)

    def check_samples(self, store: "Store", vcz: "Vcz", sources: "Sequence[Vcz]") -> None:
        """Refuse samples of the sources that are not in the store, unless they are appended or left out."""
        from plans.compilers.update import places_of

        if not self.insert and not self.drop_returning:
            places_of(store, vcz, sources)

    def compile(self, compiling: "Compiling") -> Stages:
        """Survey variants and values where needed, and compile the plan."""
        from plans.compilers.append import look_up
        from plans.compilers.update import compile_update

        rules = self.rules_if(harmonise=self.harmonise)
        if compiling.impl == "xarray" and rules is not None:
            raise OptionError("update: --impl xarray cannot harmonise; leave it out")
        store, vcz, memory = compiling.store, compiling.vcz, compiling.memory
        sources, findings, unfit = yield from look_up(self.called, vcz, compiling.sources, rules, memory)
        fields = fields_of(self.drop_fields, self.add_fields)
        return compile_update(store, vcz, sources, memory, findings=findings, fields=fields, unfit=unfit)
