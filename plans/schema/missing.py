"""Missing values: fields that need them but whose dtype has no sentinel become signed integers, or are refused.

VCF Zarr (0.4, "Missing and fill values") defines sentinels for signed integers, floats and strings. Every value of an
unsigned integer or a boolean is a real value: a depth of 0 does not mean that the depth is missing. Masks and phases
need no sentinel: they are booleans that are True, or False, where the value is missing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from plans.core.compatibility import BY_VARIANT
from plans.schema.fitting import is_derived
from plans.schema.layout import Form, Layout, has_no_samples, lengths_of
from plans.variants.field_numbers import kind_of, number_of, numbers_of
from plans.variants.findings import Findings
from vczstore.errors import IncompatibleError
from vczstore.vcz.missing import lacks_missing_value
from vczstore.vcz.model import SAMPLE_ID, SAMPLES, VARIANTS, Vcz, dimensions


def signed(dtype: np.dtype) -> np.dtype | None:
    """
    Return the signed dtype that holds all values of an unsigned one; None if there is none.

    >>> signed(np.dtype("u1")), signed(np.dtype("u8")), signed(np.dtype("?"))
    (dtype('int16'), None, None)
    """
    wider = np.promote_types(dtype, "i1") if dtype.kind == "u" else dtype
    return wider if wider.kind == "i" else None


def with_missing_values(
    operation: str, store: Vcz, sources: Sequence[Vcz], layout: Layout, findings: Findings | None
) -> Layout:
    """
    Return a layout in which all fields that get missing values have a dtype with a sentinel.

    The sources are without dropped fields, and harmonised as in `findings`, if any.

    Raises
    ------
    IncompatibleError
        If a field needs a missing value and no signed dtype can hold its values.
    """
    forms = dict(layout.forms)
    for name, form in layout.forms.items():
        if name != SAMPLE_ID and lacks_missing_value(name, form.dtype):
            holders = [vcz for vcz in (store, *sources) if name in vcz.samples_arrays]
            why = next(_reasons(name, form, store, sources, layout, findings), None)
            if why is not None:
                forms[name] = with_missing(operation, holders[0].label if holders else store.label, name, form, why)
    for name in _info_that_grows(store, findings):
        why = "alleles that are added"
        forms[name] = with_missing(operation, store.label, name, Form.of(store.arrays[name]), why)
    return replace(layout, forms=forms)


def with_missing(operation: str, label: str, name: str, form: Form, why: str) -> Form:
    """
    Return a form with a signed dtype in place of an unsigned one.

    Raises
    ------
    IncompatibleError
        If no signed dtype holds the same values.
    """
    dtype = signed(form.dtype)
    if dtype is None:
        other = "int64" if form.dtype.kind == "u" else "int8" if form.dtype.kind == "b" else "numbers or strings"
        raise IncompatibleError(
            f"{operation}: {name} of {label} has dtype {form.dtype}, which has no missing value for {why}; store it as "
            f"{other}, or delete the array"
        )
    return replace(form, dtype=dtype)


def _reasons(
    name: str, form: Form, store: Vcz, sources: Sequence[Vcz], layout: Layout, findings: Findings | None
) -> Iterator[str]:
    """Yield the reasons why a field gets missing values, for an error message."""
    for source in sources:
        if name not in source.samples_arrays and not is_derived(name, source):
            yield f"the samples of {source.label}, which lacks it"
    if not has_no_samples(store) and name not in store.samples_arrays:
        yield f"the samples of {store.label}, which lacks it"
    if findings is not None and VARIANTS in form.dimensions:
        why = missing_where_harmonised(name, form, store, sources, findings)
        if why is not None:
            yield why
    final = _final_lengths(name, form, store, layout)
    for vcz in sources if has_no_samples(store) else (store, *sources):
        if name in vcz.samples_arrays and _is_shorter(Form.of(vcz.samples_arrays[name]), final):
            yield f"the vectors of {vcz.label}, which are shorter than others"


def missing_where_harmonised(
    name: str, form: Form, store: Vcz, sources: Sequence[Vcz], findings: Findings
) -> str | None:
    """Return why harmonising a field of calls adds missing values, for an error message; None if it does not."""
    if findings.counts["variants absent"]:
        return "variants that a source lacks"
    if findings.insertion is not None:
        return "inserted variants, which the samples of the store lack"
    array = next(vcz.samples_arrays[name] for vcz in (*sources, store) if name in vcz.samples_arrays)
    if not findings.same_alleles and kind_of(name, array, findings.numbers) in ("R", "A", "G"):
        return "alleles that a source or the store lacks"
    return None


def _final_lengths(name: str, form: Form, vcz: Vcz, layout: Layout) -> dict[str, int]:
    """Return the final lengths of trailing axes, except those by allele, where padding is never read."""
    is_new = name not in vcz.samples_arrays or has_no_samples(vcz)
    current = lengths_of(Form.of(array) for array in vcz.arrays.values()) if is_new else {}
    return {
        str(d): max(n, layout.lengths.get(str(d), 0), current.get(str(d), 0))
        for d, n in zip(form.dimensions, form.lengths, strict=True)
        if d not in (SAMPLES, *BY_VARIANT)
    }


def _is_shorter(form: Form, final: dict[str, int]) -> bool:
    lengths = dict(zip(map(str, form.dimensions), form.lengths, strict=True))
    return any(lengths.get(d, 1) < n for d, n in final.items())


def _info_that_grows(vcz: Vcz, findings: Findings | None) -> list[str]:
    """Return the INFO fields of unsigned dtype with values per allele, if alleles are added."""
    if findings is None or not findings.new_alleles:
        return []
    numbers = numbers_of(vcz, "INFO")
    return [
        name
        for name, array in vcz.arrays.items()
        if array.dtype.kind == "u" and array.ndim > 1 and dimensions(array)[0] == VARIANTS
        if SAMPLES not in dimensions(array) and number_of(name, array, numbers)
    ]
