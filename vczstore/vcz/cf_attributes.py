"""CF attributes, by which readers such as xarray interpret an array's stored values."""

import base64
import math
import struct
from contextlib import suppress
from typing import Any

from zarr.types import AnyArray

from vczstore.vcz.missing import sentinels

_NEUTRAL: dict[str, Any] = {
    **{"scale_factor": 1, "add_offset": 0, "units": "", "calendar": "", "_Unsigned": "false"},
    **dict.fromkeys(("flag_values", "flag_masks", "flag_meanings")),
}
"""Attributes of CF conventions 1.12 (2.5.1, 3.1, 3.5, 4.4.1, 8.1), and the value with which each is a no-op."""
_MASKED = ("_FillValue", "missing_value")
"""Attributes that name a value which readers mask as missing (CF 2.5.1)."""


def first_difference(source: AnyArray, store: AnyArray) -> tuple[str, str, str] | None:
    """
    Find the first CF attribute that gives equal stored values of two arrays different meanings.

    Returns
    -------
    tuple of str or None
        The attribute, and its value in each array; None if there is no such attribute.
    """
    if source.metadata.attributes == store.metadata.attributes and source.dtype == store.dtype:
        return None
    for name in (*_NEUTRAL, *_MASKED):
        a, b = _meaning(name, source), _meaning(name, store)
        if a != b:
            return name, _shown(a), _shown(b)
    return None


def _shown(value: Any) -> str:
    return "absent" if value is None else repr(value)[:60]


def _meaning(name: str, array: AnyArray) -> Any:
    """An attribute's value, None if the stored values mean the same without it."""
    value = array.attrs.get(name)
    is_neutral = _is_sentinel(value, array) if name in _MASKED else value == _NEUTRAL[name]
    return None if value is None or is_neutral else value


def _is_sentinel(value: Any, array: AnyArray) -> bool:
    """Whether a masked value already means missing in VCF Zarr: NaN, or the missing or fill value of the dtype."""
    if array.dtype.kind == "f":
        with suppress(ValueError, TypeError, struct.error):
            # in format 3 xarray writes a float as a base64-encoded double
            number = struct.unpack("<d", base64.b64decode(value, validate=True))[0] if isinstance(value, str) else value
            return math.isnan(float(number))
        return str(value).lower() == "nan"
    return array.dtype.kind in "ibOTUS" and value in sentinels(array.path, array)
