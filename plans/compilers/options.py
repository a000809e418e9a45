"""Options shared by several operations."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from vczstore.choices import ABSENT, IF_NONE, INFO_FIELDS, MAX_GQ, NEW_VARIANTS, REF_MISMATCHES
from vczstore.declarations import declared, long_flag, option
from vczstore.errors import OptionError
from vczstore.execution.operations import Edit, Operation

if TYPE_CHECKING:
    from plans.schema.layout import Fields
    from plans.variants.harmonise_rules import Rules

HARMONISE = "harmonise"
"""The switch that the options of harmonising require."""


def recomputed_fields() -> Any:
    """Declare the INFO fields that are recomputed in the same commit."""
    return option(
        (),
        f"Recompute these INFO fields in the same commit: {', '.join(INFO_FIELDS)}.",
        metavar="FIELD,...",
        separator=",",
        job=False,
    )


def missing_ok(**arguments: Any) -> Any:
    """Declare whether unknown sample IDs are left out."""
    return option(
        False, "Leave out the IDs that the store does not have; else they are an error.", examples=(True,), **arguments
    )


def allow_returning(**arguments: Any) -> Any:
    """Declare whether removed samples may be added again."""
    return option(False, "Allow samples that were removed from the store before; else they are an error.", **arguments)


def drop_returning(**arguments: Any) -> Any:
    """Declare whether removed samples are left out of sources."""
    return option(False, "Leave out samples that were removed from the store before.", **arguments)


SAMPLE_GRID_HELP = (
    "Chunk widths along the samples: regular, all of one width, or flexible, where each batch adds chunk columns of "
    "its own widths; not all readers support flexible stores."
)


def gvcf(text: str, *, within: str = "") -> Any:
    """Declare whether sources are gVCFs."""
    return option(
        False, f"The sources are gVCFs: {text}", flags=("--gvcf",), within=within, examples=(True,) if within else ()
    )


def harmonise(*examples: object) -> Any:
    """Declare whether sources are harmonised."""
    return option(False, "Map the sources to the variants and alleles of the store.", examples=examples)


@dataclass(frozen=True, kw_only=True)
class HarmoniseOptions(Operation):
    """Options for mapping a source to the variants and alleles of a store."""

    allow_new_alleles: bool = option(
        False, "Add alleles that the store does not have.", within=HARMONISE, examples=(True,)
    )
    absent: str = option(
        "missing",
        "Genotypes where a source lacks a variant. Other fields are missing there.",
        choices=ABSENT,
        within=HARMONISE,
        examples=("reference",),
    )
    new_variants: str = option(
        "refuse",
        "What to do with variants that the store lacks: refuse the sources, leave these variants out, or insert them "
        "into the store, where records that share an ALT are joined.",
        choices=NEW_VARIANTS,
        within=HARMONISE,
        examples=("insert",),
    )
    haploid_contigs: tuple[str, ...] | None = option(
        None,
        "Contigs where the genotypes of `absent` have one allele.",
        metavar="NAME,...",
        separator=",",
        default_text="X,chrX,Y,chrY,M,MT,chrM",
        within=HARMONISE,
        examples=(["chrX", "chrM"],),
    )
    numbers: tuple[str, ...] = option(
        (),
        "The Number of a FORMAT field whose header has Number=., such as AD=R.",
        flags=("--number",),
        metavar="NAME=R|A|G",
        within=HARMONISE,
        examples=(["AD=R"],),
    )

    gvcf: bool = gvcf(
        "where a variant of the store lies in a reference block, its calls are those of the block, and <NON_REF> or "
        "<*> stands for alleles that a record lacks.",
        within=HARMONISE,
    )
    min_gq: int | None = option(
        None,
        "With `gvcf`: the calls of reference blocks with a lower GQ, or none, are missing.",
        metavar="N",
        bounds=(0, MAX_GQ),
        within=HARMONISE,
        examples=(20,),
    )
    drop_fields: tuple[str, ...] = option(
        (),
        "FORMAT field to drop where it would be refused: if the store lacks it, it is left out; if a source lacks it, "
        "or has values that do not fit, it is missing for the samples of the source.",
        flags=("--drop-field",),
        also_within=HARMONISE,
        metavar="NAME",
        examples=(["PS"],),
    )

    @property
    def rules(self) -> "Rules":
        """
        The options as `plans.variants.harmonise_rules.Rules`.

        Raises
        ------
        OptionError
            If an option has an invalid value.
        """
        from plans.variants.harmonise_rules import HAPLOID_CONTIGS, Rules

        if self.min_gq is not None and not self.gvcf:
            raise OptionError(f"{self.called}: --min-gq needs --gvcf")
        contigs = HAPLOID_CONTIGS if self.haploid_contigs is None else self.haploid_contigs
        rules = Rules(
            self.allow_new_alleles, self.absent, self.new_variants, contigs, self.numbers, self.gvcf, self.min_gq
        )
        try:
            _ = rules.by_field
        except OptionError as error:
            raise OptionError(f"{self.called}: {error}") from None
        return rules

    def rules_if(self, *, harmonise: bool) -> "Rules | None":
        """
        The rules if sources are harmonised, else None.

        Raises
        ------
        OptionError
            If options of `harmonise` are given without it.
        """
        rules = self.rules
        given = [
            long_flag(field)
            for field in fields(self)
            if declared(field).within == HARMONISE and getattr(self, field.name) != field.default
        ]
        if given and not harmonise:
            names = " and ".join([", ".join(given[:-1])] * (len(given) > 1) + given[-1:])
            raise OptionError(f"{self.called}: {names} {'needs' if len(given) == 1 else 'need'} --harmonise")
        return rules if harmonise else None


@dataclass(frozen=True, kw_only=True)
class SourceOptions(HarmoniseOptions, Edit):
    """Options for taking values of samples from sources."""

    on_ref_mismatch: str = option(
        "refuse",
        "What to do about a new variant whose REF contradicts that of another one at its position, as if from another "
        "reference genome: refuse the sources, or keep both.",
        choices=REF_MISMATCHES,
        within=HARMONISE,
        examples=("keep",),
    )
    if_none: str | None = option(
        None,
        "What to do if a glob matches nothing: fail, or go on. By default the job goes on, unless there is no object "
        "at all under the prefix of an object store, which may be misspelt.",
        choices=IF_NONE,
        command=False,
        python=False,
        examples=("error",),
    )
    add_fields: tuple[str, ...] = option(
        (),
        "FORMAT field of a source to add to the store; it is missing for the store's other samples.",
        flags=("--add-field",),
        metavar="NAME",
        examples=(["PS"],),
    )
    recompute: tuple[str, ...] = recomputed_fields()

    @property
    def rules(self) -> "Rules":
        """
        The rules for harmonising the sources, whether or not `harmonise` is set.

        Raises
        ------
        OptionError
            If an option has an invalid value, or requires another option.
        """
        if self.on_ref_mismatch != "refuse" and self.new_variants != "insert":
            raise OptionError(f"{self.called}: --on-ref-mismatch needs --new-variants insert")
        return replace(super().rules, on_ref_mismatch=self.on_ref_mismatch)


def fields_of(drop: tuple[str, ...], add: tuple[str, ...] = ()) -> "Fields":
    """Return the FORMAT fields to drop and to add, as names of arrays."""
    from plans.schema.layout import Fields, array_name

    return Fields(tuple(map(array_name, drop)), tuple(map(array_name, add)))
