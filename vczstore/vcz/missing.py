"""Missing and fill values of VCF Zarr for each dtype, and the mask arrays that mark them."""

from typing import Any

import numpy as np
from zarr.types import AnyArray

from vczstore.errors import IncompatibleError
from vczstore.vcz.floats import SENTINELS, same_bits

TEXT = "OSTU"
"""The dtype kinds of strings: variable-length and fixed-width bytes, variable-length and fixed-width text."""

INT_MISSING, INT_FILL = -1, -2

STR_MISSING, STR_FILL = ".", ""


def missing_value(name: str, array: AnyArray) -> Any:
    """
    Return the value that represents "no value" in a field.

    VCF Zarr specification 0.4, "Missing and fill values": integers -1, strings ``"."`` (``b"."`` for bytes and
    objects), floats a NaN with a payload of 1; a ``<name>_mask`` is True there, a ``<name>_fill`` False. Where it
    defines none, this is NaT for times, and for unsigned integers the array's fill value, or 0.

    Raises
    ------
    IncompatibleError
        For other dtypes; see `has_missing_value`.
    """
    return sentinels(name, array)[0]


def has_missing_value(array: AnyArray) -> bool:
    """Whether `missing_value` is defined for an array's dtype: it is not for complex, structured and raw dtypes."""
    return array.dtype.kind in "iufbMm" + TEXT


def lacks_missing_value(name: str, dtype: np.dtype) -> bool:
    """
    Whether a field has no distinct missing value: `missing_value` cannot be distinguished from an actual value.

    VCF Zarr specification 0.4, "Missing and fill values". Masks and phases are booleans that need no missing value.

    >>> lacks_missing_value("call_DP", np.dtype("u1")), lacks_missing_value("call_genotype_phased", np.dtype("?"))
    (True, False)
    """
    if dtype.kind == "b":
        return not name.endswith((*MASKS, "_phased"))
    return dtype.kind not in "ifMm" + TEXT


def fill_value(name: str, array: AnyArray) -> Any:
    """
    Return the value that pads a vector shorter than its axis (end-of-vector).

    VCF Zarr specification 0.4, "Missing and fill values": integers -2, strings ``""`` (``b""`` for bytes and objects),
    floats a NaN with a payload of 2; both a ``<name>_mask`` and a ``<name>_fill`` are True there. Where it defines
    none, this is `missing_value`.
    """
    return sentinels(name, array)[1]


def sentinels(name: str, array: AnyArray) -> tuple[Any, Any]:
    """Return `missing_value` and `fill_value` of a field."""
    dtype = array.dtype
    match dtype.kind:
        case "i":
            return dtype.type(INT_MISSING), dtype.type(INT_FILL)
        case "f" if dtype.itemsize in SENTINELS:
            missing, fill = SENTINELS[dtype.itemsize]
            return missing, fill
        case "b":
            return np.bool_(name.endswith("_mask")), np.bool_(name.endswith(MASKS))
        case "S" | "O":
            return STR_MISSING.encode(), STR_FILL.encode()
        case "T" | "U":
            return STR_MISSING, STR_FILL
        case "f" | "M" | "m":
            none = np.array("NaN" if dtype.kind == "f" else "NaT", dtype=dtype)[()]
        case "u":
            none = dtype.type(array.fill_value or 0)
        case _:
            raise IncompatibleError(f"{name} has dtype {dtype}, which has no missing value; leave it out")
    return none, none


MASKS = ("_mask", "_fill")
"""Suffixes of mask arrays, which mark where another array's values are missing or fill, and where they are fill."""


def masked_by(name: str) -> str:
    """
    The name of the array that a mask array belongs to; the name itself if it is not that of a mask.

    >>> masked_by("call_AD_fill"), masked_by("call_AD")
    ('call_AD', 'call_AD')
    """
    return next((name.removesuffix(end) for end in MASKS if name.endswith(end)), name)


def same(values: np.ndarray, value: Any) -> np.ndarray:
    """Compare values elementwise with `value`: floats bitwise, in either byte order; NaT equals NaT."""
    if values.dtype.kind in "Mm" and np.isnat(value):
        return np.isnat(values)
    return same_bits(values, value) if values.dtype.kind == "f" else np.asarray(values == value)


def has_sentinels(dtype: np.dtype) -> bool:
    """Whether a dtype has distinct sentinels for missing and fill."""
    return dtype.kind in "iSOTU" or (dtype.kind == "f" and dtype.itemsize in SENTINELS)


def is_missing(name: str, array: AnyArray, values: np.ndarray) -> np.ndarray:
    """Return where values of a field are missing or fill; an ordinary NaN is not if the dtype has sentinels."""
    if not has_missing_value(array):
        return np.zeros(values.shape, dtype=bool)
    missing, fill = (same(values, value) for value in sentinels(name, array))
    return missing | fill if has_sentinels(array.dtype) else missing


def mask_of(mask: str, name: str, array: AnyArray, values: np.ndarray) -> np.ndarray:
    """Return the values of mask array `mask` for values of the array it belongs to, whose dtype has sentinels."""
    is_fill = same(values, fill_value(name, array))
    return is_fill if mask.endswith("_fill") else is_fill | same(values, missing_value(name, array))
