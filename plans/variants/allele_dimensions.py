"""Lengths of the per-allele dimensions of a store after alleles have been added."""

from collections.abc import Mapping

import numpy as np
from zarr.types import AnyArray

from plans.variants.field_numbers import GENOTYPE, NUMBERS, number_of, numbers_of
from plans.variants.findings import Findings
from plans.variants.vectors import DIPLOID, MAX_PLOIDY, lengths, n_genotypes
from vczstore.errors import IncompatibleError
from vczstore.vcz import arrays
from vczstore.vcz.model import Vcz, dimensions


def allele_lengths(operation: str, vcz: Vcz, findings: Findings, source: Vcz) -> dict[str, int]:
    """
    Return the new lengths of per-allele dimensions, by the name of the dimension.

    Raises
    ------
    IncompatibleError
        If the length of ``genotypes`` matches no ploidy.
    """
    ours, theirs = _lengths(vcz), _lengths(source)
    alleles, most_new = max(ours.get("alleles", 1), findings.most_alleles), findings.most_alleles_where_new
    result = {"alleles": alleles, "alt_alleles": max(alleles - 1, ours.get("alt_alleles", 0))}
    if "genotypes" in ours and GENOTYPE in vcz.arrays:
        # room for all genotypes of the variants that are inserted or gain alleles
        ploidy = vcz.arrays[GENOTYPE].shape[-1]
        result["genotypes"] = max(ours["genotypes"], n_genotypes(most_new, ploidy) if most_new else 0)
    elif "genotypes" in {**ours, **theirs}:
        lengths = ours if "genotypes" in ours else theirs
        result["genotypes"] = _n_genotypes_for(operation, vcz, source, lengths, alleles)
        if findings.rules.gvcf and lengths is theirs:  # which has room for <NON_REF>, too
            result["genotypes"] = n_genotypes(alleles, _ploidy(vcz, source))
    if most_new:
        result |= _info_lengths(vcz, most_new)
    for name, number in findings.rules.by_field.items():
        array = vcz.arrays.get(f"call_{name}", source.arrays.get(f"call_{name}"))
        if array is not None and array.ndim == 3 and dimensions(array)[-1] not in result:
            size = n_genotypes(alleles, _ploidy(vcz, source)) if number == "G" else alleles - (number == "A")
            result[str(dimensions(array)[-1])] = max(array.shape[-1], size)
    return result


def _n_genotypes_for(operation: str, vcz: Vcz, source: Vcz, lengths: Mapping[str, int], alleles: int) -> int:
    """Return the new length of ``genotypes`` where the store's genotypes do not determine the ploidy."""
    before, genotypes = lengths.get("alleles", 1), lengths["genotypes"]
    ploidies = range(1, MAX_PLOIDY + 1) if before > 1 else (_ploidy(vcz, source),)  # one allele, one genotype
    ploidy = next((p for p in ploidies if n_genotypes(before, p) >= genotypes), None)
    if ploidy is None or (n_genotypes(before, ploidy) != genotypes and before > 1):
        raise IncompatibleError(
            f"{operation}: {vcz.label} has {genotypes} genotypes and {before} alleles, which no ploidy gives; "
            "make the store with bio2zarr"
        )
    return max(genotypes, n_genotypes(alleles, ploidy)) if alleles > before else genotypes


def _info_lengths(vcz: Vcz, n_alleles: int) -> dict[str, int]:
    """Return the new lengths of dimensions of INFO fields that are per allele by the VCF header, not by their name."""
    numbers, result = numbers_of(vcz, "INFO"), {}
    for name, number in numbers.items():
        array = vcz.arrays.get(f"variant_{name}")
        if array is None or not number_of(name, array, numbers) or dimensions(array)[-1] in NUMBERS:
            continue
        needed = lengths(number, np.array([n_alleles]), np.array([2]))
        result[str(dimensions(array)[-1])] = max(array.shape[-1], int(needed[0]))
    return result


def _ploidy(*vczs: Vcz) -> int:
    """The highest ploidy of the genotypes of any of the VCZs; 2 if none has genotypes."""
    return max((v.arrays[GENOTYPE].shape[-1] for v in vczs if GENOTYPE in v.arrays), default=DIPLOID)


def _lengths(vcz: Vcz) -> dict[str, int]:
    """Lengths of the per-allele dimensions, from their longest arrays: an interrupted append may have widened some."""
    result: dict[str, int] = {}
    for array in vcz.arrays.values():
        for name, n in zip(dimensions(array), array.shape, strict=True):
            if name in NUMBERS:
                result[str(name)] = max(n, result.get(str(name), 0))
    return result


def widened_array(array: AnyArray, lengths: Mapping[str, int]) -> AnyArray:
    """Return the metadata of an array with its per-allele dimensions widened to `lengths`."""
    shape = tuple(max(n, lengths.get(str(name), n)) for name, n in zip(dimensions(array), array.shape, strict=True))
    return arrays.planned(array, shape=shape)


def arrays_to_widen(operation: str, vcz: Vcz, lengths: Mapping[str, int]) -> dict[str, AnyArray]:
    """
    Return the new metadata of the arrays that have to be widened, by name.

    Raises
    ------
    IncompatibleError
        If two dimensions of one array have to be widened.
    """
    result = {}
    for name, array in vcz.arrays.items():
        after = widened_array(array, lengths)
        sizes = zip(dimensions(array), array.shape, after.shape, strict=True)
        grown = [f"{name_of_axis} {old} to {new}" for name_of_axis, old, new in sizes if old != new]
        if len(grown) > 1:
            raise IncompatibleError(
                f"{operation}: {name} of {vcz.label} would become longer along {' and '.join(grown)}, and one "
                "dimension at a time is supported; delete the array, or make the store with vczstore create"
            )
        if grown:
            result[name] = after
    return result
