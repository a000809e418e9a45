"""Recompute: compute INFO fields from the genotypes of a store."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar

from vczstore.choices import DEFAULT_INFO_FIELDS, INFO_FIELDS
from vczstore.declarations import option
from vczstore.errors import OptionError
from vczstore.execution.operations import Edit

if TYPE_CHECKING:
    from plans.core.model import Compiling, Plan


@dataclass(frozen=True, kw_only=True)
class Recompute(Edit):
    """
    Recompute INFO fields from the genotypes, as bcftools +fill-tags does.

    Arrays that do not exist are created; integers too narrow for the number of samples are widened, in the same commit.
    Fields that are current are skipped.

    Raises
    ------
    OptionError
        If a field is unknown.
    IncompatibleError
        If the store has no genotypes, or has an array that cannot hold a field.

    Examples
    --------
    >>> recompute("cohort.vcz", ["AC", "AN"]).committed
    True
    """

    group: ClassVar[str] = "edit"
    uses: ClassVar[tuple[str, ...]] = (*Edit.uses, "resume")
    is_step: ClassVar[bool] = True
    needs_variants: ClassVar[bool] = True
    changes_samples: ClassVar[bool] = False
    step_examples: ClassVar[tuple[Any, ...]] = ("AC", ["AC", "AN"], {"fields": ["AC", "AN", "HWE"]})

    fields: tuple[str, ...] = option(
        DEFAULT_INFO_FIELDS,
        f"The fields: {', '.join(INFO_FIELDS)}.",
        metavar="FIELD,...",
        separator=",",
        choices=INFO_FIELDS,
        short=True,
        positional=True,
        shorthand="an INFO field, a list of them",
        examples=("AC", ["AC", "AN", "HWE"]),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fields:
            raise OptionError(f"recompute: no fields named; choose from {', '.join(INFO_FIELDS)}")
        for name in self.fields:
            if name not in INFO_FIELDS:
                near = get_close_matches(name[:40], INFO_FIELDS, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(INFO_FIELDS)}"
                raise OptionError(f"recompute: no field {name[:40]!r}; {hint}")

    def compile(self, compiling: "Compiling") -> "Plan":
        """Compile the recomputation, in one pass over the genotypes."""
        from plans.compilers.recompute import compile_recompute

        return compile_recompute(compiling.store, compiling.vcz, self.fields, compiling.memory)


def recomputing(store: Any, fields: tuple[str, ...]) -> Recompute | None:
    """Return the operation that recomputes fields in the commit of another one; None if there are no fields."""
    return Recompute(store=store, fields=fields) if fields else None
