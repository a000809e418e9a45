"""Which fields of a source can be harmonised, and their harmonised arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from zarr.types import AnyArray

from plans.core.views import View
from plans.variants.field_numbers import (
    ALLELE_NUMBERS,
    GENOTYPE,
    LOCAL_ALLELES,
    has_local_alleles,
    is_local,
    kind_of,
    number_of,
)
from plans.variants.findings import Findings
from plans.variants.harmonised import Harmonised
from plans.variants.misfits import Misfit
from plans.variants.sortedness import site
from vczstore.errors import IncompatibleError
from vczstore.vcz.missing import MASKS, has_sentinels, masked_by
from vczstore.vcz.model import SAMPLES, VARIANTS, Vcz, dimensions


def check_fields(operation: str, vcz: Vcz, source: Vcz, findings: Findings, lengths: Mapping[str, int]) -> None:
    """
    Check that all fields of a source can be harmonised; `lengths` are those of `allele_dimensions.allele_lengths`.

    Raises
    ------
    IncompatibleError
        If a field cannot; it names the first one.
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
            f"{operation}: {name} of {source.label} is indexed by local alleles, and without call_LAA it is unknown "
            f"which they are; {_way_out(name)}"
        )
    if findings.same_alleles:
        return
    number = number_of(name, ours, findings.numbers)
    if number in ("R", "A", "G") and names[-1] not in lengths and findings.moves_alleles:
        field = name.removeprefix("call_")
        raise IncompatibleError(
            f"{operation}: {name} of {vcz.label} has the dimension {names[-1]}, as for Number=. of {field} in a VCF "
            f"header, and alleles are re-numbered; give its Number with --number {field}={number} (or A, R, G), or "
            f"{_way_out(name)}"
        )
    if number == "G" and name.endswith(MASKS):
        raise IncompatibleError(
            f"{operation}: {name} of {source.label} has a value per genotype, and does not give their ploidy, so it "
            f"cannot be harmonised where alleles differ from the store's; {_way_out(name)}"
        )


def _describe(source: Vcz, misfit: Misfit) -> str:
    """Describe a misfit in an error message."""
    name, where = misfit.name, f"variant {misfit.row} of {source.label}, {site(source, misfit.row)},"
    if name in ALLELE_NUMBERS:
        return f"{name} has allele {misfit.found} at {where} which has {misfit.n_alleles}, REF included"
    values = f"{misfit.found} values at {where}"
    if misfit.expected < 0:
        return f"{name} has {values} and the ploidy of the genotype is unknown: there is no call_genotype"
    return f"{name} has {values} whose {misfit.n_alleles} alleles take {misfit.expected}"


def _is_derived(name: str, source: Vcz, numbers: Mapping[str, str], *, is_gvcf: bool) -> bool:
    """Whether an array is a mask that can be derived from per-allele values with sentinels for missing and fill."""
    mask, values = source.samples_arrays[name], source.samples_arrays.get(masked_by(name))
    if masked_by(name) == name or values is None or mask.dtype.kind != "b" or values.shape != mask.shape:
        return False
    kinds = ("R", "A", "G", "GT") if is_gvcf else ("R", "A", "G")
    return has_sentinels(values.dtype) and kind_of(masked_by(name), values, numbers) in kinds


def harmonised_array(
    name: str, number: int, source: Vcz, targets: Mapping[str, AnyArray], findings: Findings
) -> "AnyArray | View":
    """Return an array of a source over the variants and alleles of a store, whose planned arrays are `targets`."""
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
    """Return a source without the fields in `may_drop` that cannot be harmonised, and without their masks."""
    # local alleles first, since other fields depend on them
    for name in sorted(may_drop, key=lambda name: name not in LOCAL_ALLELES):
        if name not in source.samples_arrays:
            continue
        try:
            _check_field(operation, vcz, source, name, findings, lengths)
        except IncompatibleError:
            dropped = {name, *(f"{name}_{suffix}" for suffix in ("mask", "fill", "phased"))}
            source = replace(source, arrays={n: a for n, a in source.arrays.items() if n not in dropped})
    return source
