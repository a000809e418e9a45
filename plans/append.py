"""Append: the samples of one or more sources become the last samples of a store."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from plans.compilers.options import (
    HARMONISE,
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
    from plans.variants.harmonise_rules import Rules
    from vczstore.execution.options import Options
    from vczstore.stores.base import Store
    from vczstore.vcz.model import Vcz

DUPLICATES = ("error", "skip", "replace")


@dataclass(frozen=True, kw_only=True)
class Append(SourceOptions):
    """
    Append the samples of one or more VCZs, in their order.

    They need the store's variants and alleles in the store's order, unless `harmonise` maps them. VCF and BCF files
    (``.vcf``, ``.vcf.gz``, ``.vcf.bgz``, ``.bcf``) are converted to VCZs first, also for a dry run.

    Raises
    ------
    VczstoreError
        If the sources are incompatible with the store. The store is unchanged then.

    Examples
    --------
    >>> append("cohort.vcz", "batch-7.vcz", "batch-8.vcz").counts
    {'sources': 2, 'samples added': 4}
    """

    group: ClassVar[str] = "edit"
    uses: ClassVar[tuple[str, ...]] = (*Edit.uses, "sources", "resume")
    is_step: ClassVar[bool] = True
    is_seen_early: ClassVar[bool] = False
    step_examples: ClassVar[tuple[Any, ...]] = (
        "inbox/*.vcz",
        ["a.vcz", "b.vcz"],
        {"source": "late.vcz", "on-duplicate": "skip"},
    )
    ignored: ClassVar[tuple[str, ...]] = ("--io-concurrency",)

    sources: tuple[Any, ...] = argument(
        "The VCZs, or VCF or BCF files, whose samples are appended; never written to.",
        metavar="SOURCE...",
        kind="sources",
        job_help="One or a list of them. Globs such as `*` and `**` are expanded when the step runs, in sorted order, "
        "and may find nothing; `{a,b}` stands for either. They find folders, and files whose names end in `.zip`, "
        "`.vcz` or `.zarr`; VCF and BCF files if the glob ends as their names do, as in `inbox/*.{vcz,vcf.gz,bcf}`. "
        "For a literal `*`, `?`, `[` or `{` write `[*]`, `[?]`, `[[]` or `[{]`. In an object store, `*` and `?` find "
        "stores by the last part of a URL.",
        shorthand="a path, a list of paths",
        key="source",
        examples=("inbox/*.{vcz,vcf.gz}", ["early.vcz", "s3://bucket/late.vcz"]),
    )
    on_duplicate: str = option(
        "error",
        "What to do about samples that the store has already: fail, leave out those of the sources, or replace those "
        "of the store.",
        choices=DUPLICATES,
        command=False,
        python=False,
        examples=("skip",),
    )
    harmonise: bool = harmonise(True, {"allow-new-alleles": True, "absent": "reference"})
    keep_blocks: bool = option(
        False,
        "With `gvcf`: keep the reference blocks of the appended samples in the store, so that they have calls at "
        "variants inserted later. A store that keeps blocks keeps those of all gVCFs from then on.",
        within=HARMONISE,
        examples=(True,),
    )
    output: Any = option(
        None,
        "With `new-variants: insert`: make a copy with all samples on plain Zarr here; `store` is unchanged. For "
        "stores on plain Zarr in an object store, into which no variants can be inserted in place.",
        metavar="PATH",
        kind="location",
        job=False,
    )
    require_direct_copy: bool = option(
        False, "Fail if a chunk of values would be re-encoded instead of copied verbatim.", job=False
    )
    allow_returning: bool = allow_returning(examples=(True,))
    drop_returning: bool = drop_returning(examples=(True,))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.harmonise and self.on_duplicate == "replace":
            raise OptionError(
                "append: harmonise does not go with on-duplicate: replace; harmonise the source with vczstore normalise"
            )
        if self.allow_returning and self.drop_returning:
            raise OptionError("append: --allow-returning does not go with --drop-returning; choose one")
        if self.output is not None and self.new_variants != "insert":
            raise OptionError(
                "append: --output needs --harmonise and --new-variants insert; without new variants nothing of the "
                "store is rewritten, so leave it out"
            )
        if self.output is not None and self.require_direct_copy:
            raise OptionError(
                "append: --output does not go with --require-direct-copy; variants are inserted, so some are re-encoded"
            )
        if self.output is not None and self.recompute:
            raise OptionError("append: --output does not go with --recompute; recompute the copy afterwards")
        self.rules_if(harmonise=self.harmonise)  # validates the options

    @property
    def rules(self) -> "Rules":
        """
        The rules for harmonising the sources, whether or not `harmonise` is set.

        Raises
        ------
        OptionError
            If an option has an invalid value, or requires another option.
        """
        if self.keep_blocks and not self.gvcf:
            raise OptionError(f"{self.called}: --keep-blocks needs --gvcf")
        return replace(super().rules, keep_blocks=self.keep_blocks, is_copied=self.output is not None)

    @property
    def then(self) -> Edit | None:
        """The recomputation of INFO fields in the same commit; None if not requested."""
        return recomputing(self.store, self.recompute)

    @property
    def writes(self) -> bool:
        """Whether it writes to the store itself."""
        return self.output is None

    def open(self, options: "Options", written: "Store | None") -> "Compiling":
        """Open the store, the sources, and the destination of a copy."""
        if self.output is None:
            return super().open(options, written)
        origin = options.for_store(self.store, [*self.sources, self.output]).open(self.store)
        compiling = super().open(options, origin)
        output = options.place_of_copy(self.called, self.output, self.store, self.sources)
        return replace(compiling, store=output, origin=compiling.store)

    def check_samples(self, store: "Store", vcz: "Vcz", sources: "Sequence[Vcz]") -> None:
        """Refuse samples of the sources that are there already, unless some are left out or replaced."""
        from plans.compilers.append import check_new_samples

        if self.on_duplicate == "error" and not self.drop_returning:
            check_new_samples(store, vcz, sources, allow_returning=self.allow_returning)

    def compile(self, compiling: "Compiling") -> Stages:
        """Survey variants and values where needed, and compile the plan."""
        from plans.compilers.append import compile_in_stages, require_direct_copy

        rules = self.rules_if(harmonise=self.harmonise)
        if compiling.impl == "xarray" and rules is not None:
            raise OptionError("append: --impl xarray cannot harmonise; leave it out")
        plan = yield from compile_in_stages(
            compiling,
            rules=rules,
            fields=fields_of(self.drop_fields, self.add_fields),
            allow_returning=self.allow_returning,
            drop_returning=self.drop_returning,
        )
        if self.require_direct_copy:
            require_direct_copy(plan)
        return plan
