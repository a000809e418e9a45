"""Missing: fields that get missing values, and whose dtype has none, become signed integers or are refused.

VCF Zarr (0.4, "Missing and fill values") has missing values of signed integers, floats and strings. Any value of an
unsigned integer or a boolean is a real one: a depth of 0 is none of a sample that has no depth. Masks and phases are
booleans that are False, or True, where there is no value.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from plans.core.compatibility import BY_VARIANT
from plans.schema.fitting import is_derived
from plans.schema.layout import Form, Layout, lengths_of, takes_all
from plans.variants.field_numbers import kind_of, number_of, numbers_of
from plans.variants.findings import Findings
from vczstore.errors import IncompatibleError
from vczstore.vcz.missing import lacks_missing_value
from vczstore.vcz.model import SAMPLE_ID, SAMPLES, VARIANTS, Vcz, dimensions


def signed(dtype: np.dtype) -> np.dtype | None:
    """
    The signed integers that hold the values of an unsigned one; None if there are none.

    >>> signed(np.dtype("u1")), signed(np.dtype("u8")), signed(np.dtype("?"))
    (dtype('int16'), None, None)
    """
    wider = np.promote_types(dtype, "i1") if dtype.kind == "u" else dtype
    return wider if wider.kind == "i" else None


def with_missing_values(
    operation: str, store: Vcz, sources: Sequence[Vcz], layout: Layout, findings: Findings | None
) -> Layout:
    """
    A layout in which all fields that get missing values have a dtype with one.

    Parameters
    ----------
    operation
        For the message.
    store, sources
        A store, and what comes to it without the fields that are dropped.
    layout
        Theirs.
    findings
        How the sources are harmonised; None if they are not.

    Raises
    ------
    IncompatibleError
        Naming the first field that would need a missing value and can have none, and why.
    """
    forms = dict(layout.forms)
    for name, form in layout.forms.items():
        if name != SAMPLE_ID and lacks_missing_value(name, form.dtype):
            holders = [vcz for vcz in (store, *sources) if name in vcz.samples_arrays]
            why = next(_reasons(name, form, store, sources, layout, findings), None)
            if why is not None:
                forms[name] = with_missing(operation, holders[0].label if holders else store.label, name, form, why)
    for name in _info_that_grows(store, findings):
        why = "alleles that come in"
        forms[name] = with_missing(operation, store.label, name, Form.of(store.arrays[name]), why)
    return replace(layout, forms=forms)


def with_missing(operation: str, label: str, name: str, form: Form, why: str) -> Form:
    """
    A form of signed integers in place of unsigned ones.

    Raises
    ------
    IncompatibleError
        If there are none that hold the same values.
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
    """Why a field gets missing values, for a message."""
    for source in sources:
        if name not in source.samples_arrays and not is_derived(name, source):
            yield f"the samples of {source.label}, which lacks it"
    if not takes_all(store) and name not in store.samples_arrays:
        yield f"the samples of {store.label}, which lacks it"
    if findings is not None and VARIANTS in form.dimensions:
        why = missing_where_harmonised(name, form, store, sources, findings)
        if why is not None:
            yield why
    final = _final_lengths(name, form, store, layout)
    for vcz in sources if takes_all(store) else (store, *sources):
        if name in vcz.samples_arrays and _is_shorter(Form.of(vcz.samples_arrays[name]), final):
            yield f"the vectors of {vcz.label}, which are shorter than others"


def missing_where_harmonised(
    name: str, form: Form, store: Vcz, sources: Sequence[Vcz], findings: Findings
) -> str | None:
    """Why a field of calls gets missing values as it is harmonised, for a message; None if it gets none."""
    if findings.counts["variants absent"]:
        return "variants that a source lacks"
    if findings.insertion is not None:
        return "variants that come in, which the samples of the store lack"
    array = next(vcz.samples_arrays[name] for vcz in (*sources, store) if name in vcz.samples_arrays)
    if not findings.same_alleles and kind_of(name, array, findings.numbers) in ("R", "A", "G"):
        return "alleles that a source or the store lacks"
    return None


def _final_lengths(name: str, form: Form, vcz: Vcz, layout: Layout) -> dict[str, int]:
    """The lengths of the axes that vectors end at; those of alleles are left out, since padding is never read there."""
    is_new = name not in vcz.samples_arrays or takes_all(vcz)
    known = lengths_of(Form.of(array) for array in vcz.arrays.values()) if is_new else {}
    return {
        str(d): max(n, layout.lengths.get(str(d), 0), known.get(str(d), 0))
        for d, n in zip(form.dimensions, form.lengths, strict=True)
        if d not in (SAMPLES, *BY_VARIANT)
    }


def _is_shorter(form: Form, final: dict[str, int]) -> bool:
    own = dict(zip(map(str, form.dimensions), form.lengths, strict=True))
    return any(own.get(d, 1) < n for d, n in final.items())


def _info_that_grows(vcz: Vcz, findings: Findings | None) -> list[str]:
    """The INFO fields of unsigned integers that go by allele, where alleles come in."""
    if findings is None or not findings.new_alleles:
        return []
    numbers = numbers_of(vcz, "INFO")
    return [
        name
        for name, array in vcz.arrays.items()
        if array.dtype.kind == "u" and array.ndim > 1 and dimensions(array)[0] == VARIANTS
        if SAMPLES not in dimensions(array) and number_of(name, array, numbers)
    ]
