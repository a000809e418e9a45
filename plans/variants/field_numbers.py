"""How fields depend on alleles: a value per allele, ALT or genotype (Number=R, A, G), or allele indices as values.

Some are indexed by local alleles. LAA lists, call by call, the ALTs "that are actually in-play for that sample and the
order in which they are interpreted" (VCF 4.5, section 1.6.2). They are indices of the variant's alleles, and need not
increase. So where alleles are re-numbered, only the values of LAA change: LAD, LPL and similar fields are in the order
of LAA, and stay unchanged.
"""

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from zarr.types import AnyArray

from plans.variants.harmonise_rules import Rules
from plans.variants.vectors import Field
from vczstore.vcz import arrays
from vczstore.vcz.missing import sentinels
from vczstore.vcz.model import SAMPLES, Vcz, dimensions

GENOTYPE = "call_genotype"
LOCAL_ALLELES = ("call_LAA", "call_LA")
"""Fields that hold the indices of local alleles: LAA those of ALTs, as in VCF; LA also REF, as bio2zarr writes it."""

_LOCAL_NAMES = ("LGT", "LAD", "LADF", "LADR", "LEC", "LGL", "LGP", "LPL", "LPP")
"""Fields that VCF 4.5 reserves, and LGT, the genotype as indices of local alleles, of its drafts and of Hail."""
_LOCAL_NUMBERS = ("LA", "LR", "LG")
_LOCAL_DIMENSIONS = ("local_alleles", "local_alt_alleles", "local_genotypes")
ALLELE_NUMBERS = (GENOTYPE, *LOCAL_ALLELES)
"""Fields whose values are allele indices."""
NUMBERS = {"alleles": "R", "alt_alleles": "A", "genotypes": "G"}
"""The Number of a field, by the name that converters give its last dimension."""
_DIMENSIONS = {number: name for name, number in NUMBERS.items()}
_RESERVED = {"AD": "R", "ADF": "R", "ADR": "R", "EC": "A", "GL": "G", "GP": "G", "PL": "G", "PP": "G", "CNL": "G"}
"""The Number of FORMAT fields in the VCF specification."""


def field_of(name: str, array: AnyArray, number: str) -> Field:
    """Return the `Field` that re-orders the vectors of an array; `number` is its Number."""
    return Field(number, *sentinels(name, array))


def kind_of(name: str, array: AnyArray, numbers: Mapping[str, str]) -> str:
    """Return ``GT`` if values are allele indices, ``R``, ``A`` or ``G`` as the Number of the last axis, or ``""``."""
    return "GT" if name in ALLELE_NUMBERS else number_of(name, array, numbers)


def number_of(name: str, array: AnyArray, numbers: Mapping[str, str]) -> str:
    """
    Return the Number of the last axis of a FORMAT or INFO field: ``R``, ``A`` or ``G``, or ``""`` for any other.

    It is taken from the name of the dimension, else from `numbers` (the VCF header), else, if the field is FORMAT, from
    the VCF specification (4.5, table 2).
    """
    names = dimensions(array)
    last, field = str(names[-1]), name.removeprefix("call_").removeprefix("variant_")
    if is_local(name, array, numbers.get(field, "")):
        return ""
    if last in NUMBERS:
        return NUMBERS[last]
    is_of_calls = SAMPLES in names
    reserved = _RESERVED.get(field, "") if is_of_calls else ""
    return numbers.get(field, reserved) if array.ndim > 1 + is_of_calls and last != "ploidy" else ""


def is_local(name: str, array: AnyArray, number: str) -> bool:
    """Whether a field is indexed by local alleles, by its name, its dimension, or its Number in the VCF header."""
    field = name.removeprefix("call_").removesuffix("_mask").removesuffix("_fill")
    return field in _LOCAL_NAMES or number in _LOCAL_NUMBERS or str(dimensions(array)[-1]).startswith(_LOCAL_DIMENSIONS)


def has_local_alleles(names: Container[str]) -> bool:
    """Whether a VCZ with these arrays has the indices of local alleles."""
    return any(name in names for name in LOCAL_ALLELES)


def numbers_of(vcz: Vcz, of: str = "FORMAT") -> dict[str, str]:
    """
    Return the Number of each field of the VCF header that has R, A, G, LR, LA or LG.

    `of` is ``FORMAT`` or ``INFO``.
    """
    header = str(vcz.attributes.get("vcf_header", ""))
    return dict(re.findall(rf"##{of}=<ID=([^,]+),Number=(L?[RAG]),", header))


def with_numbers(store: Vcz, sources: Sequence[Vcz], rules: Rules) -> list[Vcz]:
    """Return the sources with the last dimensions renamed as in the store, for fields whose Number the user gives."""
    result = []
    for source in sources:
        renamed = {}
        for field_name, number in rules.by_field.items():
            name = f"call_{field_name}"
            theirs, ours = (vcz.samples_arrays.get(name) for vcz in (source, store))
            if theirs is not None and theirs.ndim == 3:
                wanted = _DIMENSIONS[number] if ours is None or ours.ndim != 3 else dimensions(ours)[-1]
                renamed[name] = arrays.with_dimensions(theirs, (*dimensions(theirs)[:-1], wanted))
        result.append(replace(source, arrays={**source.arrays, **renamed}) if renamed else source)
    return result
