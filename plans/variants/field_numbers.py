"""What the values of a field go by: alleles, ALT alleles or genotypes (Number=R, A, G), or numbers of alleles."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from zarr.types import AnyArray

from plans.variants.harmonise_rules import Rules
from plans.variants.in_order import Field
from plans.variants.local_alleles import LOCAL_ALLELES, is_local
from vczstore.vcz import arrays
from vczstore.vcz.missing import fill_value, missing_value
from vczstore.vcz.model import SAMPLES, Vcz, dimensions

GENOTYPE = "call_genotype"
ALLELE_NUMBERS = (GENOTYPE, *LOCAL_ALLELES)
"""Fields whose values are numbers of alleles."""
NUMBERS = {"alleles": "R", "alt_alleles": "A", "genotypes": "G"}
"""The Number of a field, by what converters call its last dimension."""
_DIMENSIONS = {number: name for name, number in NUMBERS.items()}
_RESERVED = {"AD": "R", "ADF": "R", "ADR": "R", "EC": "A", "GL": "G", "GP": "G", "PL": "G", "PP": "G", "CNL": "G"}
"""The Number of FORMAT fields in the VCF specification."""


def field_of(name: str, array: AnyArray, number: str) -> Field:
    """How the vectors of an array are put in order; `number` is what they go by."""
    missing, fill = missing_value(name, array), fill_value(name, array)
    return Field(number, missing, fill)


def kind_of(name: str, array: AnyArray, numbers: Mapping[str, str]) -> str:
    """What goes by allele: ``GT`` the values, ``R``, ``A`` or ``G`` the last axis, ``""`` nothing."""
    return "GT" if name in ALLELE_NUMBERS else number_of(name, array, numbers)


def number_of(name: str, array: AnyArray, numbers: Mapping[str, str]) -> str:
    """
    What the last axis of a value goes by, of a call or of INFO: ``R``, ``A`` or ``G`` as in VCF, or ``""``.

    Its dimension says so; else the VCF header; else, of calls, the VCF specification (4.5, table 2).
    """
    names = dimensions(array)
    last, field = str(names[-1]), name.removeprefix("call_").removeprefix("variant_")
    if is_local(name, array, numbers.get(field, "")):
        return ""
    if last in NUMBERS:
        return NUMBERS[last]
    is_of_calls = SAMPLES in names
    usual = _RESERVED.get(field, "") if is_of_calls else ""
    return numbers.get(field, usual) if array.ndim > 1 + is_of_calls and last != "ploidy" else ""


def numbers_of(vcz: Vcz, of: str = "FORMAT") -> dict[str, str]:
    """
    The Number of each field with one of ``R``, ``A``, ``G``, or with L before it, as the VCF header says.

    `of` is ``FORMAT`` or ``INFO``.
    """
    header = str(vcz.attributes.get("vcf_header", ""))
    return dict(re.findall(rf"##{of}=<ID=([^,]+),Number=(L?[RAG]),", header))


def with_numbers(store: Vcz, sources: Sequence[Vcz], rules: Rules) -> list[Vcz]:
    """The sources with the last axes of fields whose Number a user tells called as they are in the store."""
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
