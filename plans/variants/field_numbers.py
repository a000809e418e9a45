"""How fields depend on alleles: a value per allele, ALT or genotype (Number=R, A, G), or allele indices as values."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from zarr.types import AnyArray

from plans.variants.harmonise_rules import Rules
from plans.variants.in_order import Field
from plans.variants.local_alleles import LOCAL_ALLELES, is_local
from vczstore.vcz import arrays
from vczstore.vcz.missing import sentinels
from vczstore.vcz.model import SAMPLES, Vcz, dimensions

GENOTYPE = "call_genotype"
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
