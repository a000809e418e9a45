"""VCF Zarr's NaN sentinels for missing and fill, whose payloads casts and Python's own float lose.

VCF Zarr specification 0.4, "Missing and fill values", defines those of 32 and 64 bits; those of 16 bits are analogous,
as in vcztools.
"""

from typing import Any, cast

import numpy as np

_BITS = {2: (0x7C01, 0x7C02), 4: (0x7F800001, 0x7F800002), 8: (0x7FF0000000000001, 0x7FF0000000000002)}
"""The signalling NaNs that mean missing and fill, by the size of a float in bytes."""
SENTINELS = {size: tuple(np.array(bits, f"u{size}").view(f"f{size}")) for size, bits in _BITS.items()}
"""The same as NumPy floats. Copies preserve the payload, arithmetic and casts to another width do not: see `recast`."""


def same_bits(values: np.ndarray, value: object) -> np.ndarray:
    """Compare floats of either byte order elementwise with `value`, bit by bit, so that NaNs compare by payload."""
    bits = values.dtype.str.replace("f", "u")
    return np.asarray(values.view(bits) == np.asarray(value, dtype=values.dtype).view(bits))


def recast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """
    Cast values to another dtype that can represent them, preserving float sentinels for missing and fill.

    A plain cast turns both into the same quiet NaN.

    >>> recast(np.array([0x7F800002], "u4").view("f4"), np.dtype("f8")).view("u8")[0] == 0x7FF0000000000002
    np.True_
    """
    if values.dtype == dtype:
        return values
    if values.dtype.itemsize == dtype.itemsize or {values.dtype.kind, dtype.kind} != {"f"}:
        return values.astype(dtype)
    with np.errstate(invalid="ignore"):
        result = values.astype(dtype)
    for old, new in zip(SENTINELS.get(values.dtype.itemsize, ()), SENTINELS.get(dtype.itemsize, ()), strict=False):
        result[same_bits(values, old)] = new
    return result


def to_hex(value: np.floating) -> str | None:
    """
    The hexadecimal form, in Zarr format 3, of a NaN with a payload other than NumPy's; None for any other float.

    Zarr core specification 3.1, "Fill value": the bits in hexadecimal, most significant first.

    >>> to_hex(SENTINELS[4][0]), to_hex(np.float32("nan"))
    ('0x7f800001', None)
    """
    size = value.dtype.itemsize
    bits = int(np.asarray(value).view(f"u{size}"))
    is_plain = bits == int(np.array("nan", value.dtype).view(f"u{size}"))
    return f"0x{bits:0{2 * size}x}" if np.isnan(value) and not is_plain else None


def from_hex(text: str, dtype: np.dtype) -> np.floating:
    """
    The inverse of `to_hex`, bit for bit; zarr-python goes through Python's float, which changes the payload.

    >>> to_hex(from_hex("0x7c01", np.dtype("f2")))
    '0x7c01'
    """
    size = dtype.itemsize
    return cast("np.floating", np.array(int(text, 16), f"u{size}").view(f"f{size}")[()])


def is_nan(value: Any) -> bool:
    """Whether a value is a float, and NaN."""
    return isinstance(value, float | np.floating) and bool(np.isnan(value))
