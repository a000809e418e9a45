"""Which fields of a source can be harmonised, and the arrays of those that come in."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from zarr.types import AnyArray

from plans.core.views import View
from plans.variants.field_numbers import ALLELE_NUMBERS, GENOTYPE, kind_of, number_of
from plans.variants.findings import Findings
from plans.variants.harmonised import Harmonised
from plans.variants.local_alleles import LOCAL_ALLELES, has_local_alleles, is_local
from plans.variants.misfits import Misfit
from plans.variants.sortedness import site
from vczstore.errors import IncompatibleError
from vczstore.vcz.missing import MASKS, has_sentinels, masked_by
from vczstore.vcz.model import SAMPLES, VARIANTS, Vcz, dimensions


def check_fields(operation: str, vcz: Vcz, source: Vcz, findings: Findings, lengths: Mapping[str, int]) -> None:
    """
    Check that all fields of a source can be harmonised.

    Raises
    ------
    IncompatibleError
        Naming the first that cannot.
    """
    for name in source.samples_arrays:
        if name in vcz.samples_arrays:
            _check_field(operation, vcz, source, name, findings, lengths)


def _check_field(
    operation: str, vcz: Vcz, source: Vcz, name: str, findings: Findings, lengths: Mapping[str, int]
) -> None:
    ours, names = vcz.samples_arrays[name], dimensions(source.samples_arrays[name])
    if VARIANTS not in names or _is_derived(name, source, findings.numbers, is_gvcf=findings.rules.gvcf):
        return
    if names[:2] != (VARIANTS, SAMPLES):
        raise IncompatibleError(
            f"{operation}: {name} of {source.label} has dimensions {names}, and only (variants, samples, ...) can "
            f"be harmonised; {_way_out(name)}"
        )
    if misfit := findings.misfits.get((source.label, name)):
        raise IncompatibleError(f"{operation}: {_describe(source, misfit)}; {_way_out(name)}")
    is_numbers = name in ALLELE_NUMBERS
    if is_numbers and findings.most_alleles - 1 > np.iinfo(ours.dtype).max:
        raise IncompatibleError(
            f"{operation}: a variant will have {findings.most_alleles} alleles, which {name} of dtype {ours.dtype} "
            "cannot number; leave out --allow-new-alleles"
        )
    number = findings.numbers.get(name.removeprefix("call_"), "")
    needs_local = has_local_alleles(vcz.samples_arrays) or not findings.same_alleles
    is_by_local = not is_numbers and is_local(name, ours, number)
    if is_by_local and needs_local and not has_local_alleles(source.samples_arrays):
        raise IncompatibleError(
            f"{operation}: {name} of {source.label} goes by local alleles, and no call_LAA comes in that says which "
            f"they are; {_way_out(name)}"
        )
    if findings.same_alleles:
        return
    number = number_of(name, ours, findings.numbers)
    if number in ("R", "A", "G") and names[-1] not in lengths and findings.moves_alleles:
        said = name.removeprefix("call_")
        raise IncompatibleError(
            f"{operation}: {name} of {vcz.label} has the dimension {names[-1]}, as of a VCF header with Number=. for "
            f"{said}, and alleles get other numbers; say what it goes by with --number {said}={number} (or A, R, G), "
            f"or {_way_out(name)}"
        )
    if number == "G" and name.endswith(MASKS):
        raise IncompatibleError(
            f"{operation}: {name} of {source.label} goes by genotypes, and does not tell of how many alleles they "
            f"are, so it cannot be harmonised where alleles differ from the store's; {_way_out(name)}"
        )


def _describe(source: Vcz, misfit: Misfit) -> str:
    """What does not fit, for people."""
    name, where = misfit.name, f"variant {misfit.row} of {source.label}, {site(source, misfit.row)},"
    if name in ALLELE_NUMBERS:
        return f"{name} has allele {misfit.found} at {where} which has {misfit.n_alleles}, REF included"
    values = f"{misfit.found} values at {where}"
    if misfit.expected < 0:
        return f"{name} has {values} and nothing tells of how many alleles the genotype is: there is no call_genotype"
    return f"{name} has {values} whose {misfit.n_alleles} alleles take {misfit.expected}"


def _is_derived(name: str, source: Vcz, numbers: Mapping[str, str], *, is_gvcf: bool) -> bool:
    """Whether an array is a mask that follows from values that go by allele and say what is missing."""
    mask, values = source.samples_arrays[name], source.samples_arrays.get(masked_by(name))
    if masked_by(name) == name or values is None or mask.dtype.kind != "b" or values.shape != mask.shape:
        return False
    kinds = ("R", "A", "G", "GT") if is_gvcf else ("R", "A", "G")
    return has_sentinels(values.dtype) and kind_of(masked_by(name), values, numbers) in kinds


def harmonised_array(
    name: str, number: int, source: Vcz, targets: Mapping[str, AnyArray], findings: Findings
) -> "AnyArray | View":
    """An array of a source over the variants and alleles of a store; `targets` are the store's as they will be."""
    if VARIANTS not in dimensions(source.samples_arrays[name]):
        return source.samples_arrays[name]
    data = None
    if _is_derived(name, source, findings.numbers, is_gvcf=findings.rules.gvcf):
        data = Harmonised.of(masked_by(name), source, targets[masked_by(name)], number, findings)
    return Harmonised.of(name, source, targets[name], number, findings, data)


def _way_out(name: str) -> str:
    field = "GT" if name == GENOTYPE else name.removeprefix("call_")
    return f"make the source without it, or leave it missing with --drop-field {field}"


def without_unfit_fields(
    operation: str,
    vcz: Vcz,
    source: Vcz,
    findings: Findings,
    lengths: Mapping[str, int],
    may_drop: Sequence[str],
) -> Vcz:
    """A source without those of the fields that may be dropped which cannot be harmonised, nor their masks."""
    # what others depend on goes first
    for name in sorted(may_drop, key=lambda name: name not in LOCAL_ALLELES):
        if name not in source.samples_arrays:
            continue
        try:
            _check_field(operation, vcz, source, name, findings, lengths)
        except IncompatibleError:
            gone = {name, *(f"{name}_{what}" for what in ("mask", "fill", "phased"))}
            source = replace(source, arrays={n: a for n, a in source.arrays.items() if n not in gone})
    return source
