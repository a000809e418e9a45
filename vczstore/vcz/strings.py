"""Convert strings between Python's ``str``, in which they are compared, and the dtypes that arrays store."""

import numpy as np


def as_text(values: np.ndarray) -> np.ndarray:
    """
    Convert strings of any stored dtype to an object array of ``str``.

    Bytes, fixed-width or variable-length, are decoded as UTF-8 (VCF 4.3 and later, 1.1); integers become digits.

    Raises
    ------
    UnicodeDecodeError
        If bytes are not UTF-8.

    Examples
    --------
    >>> as_text(np.array([b"A1", b"A2"])).tolist(), as_text(np.array([7, 12])).tolist()
    (['A1', 'A2'], ['7', '12'])
    """
    match values.dtype.kind:
        case "S":
            return np.strings.decode(values, "utf-8").astype(object)
        case "O":
            texts = [v.decode() if isinstance(v, bytes) else str(v) for v in values.ravel().tolist()]
            return np.array(texts, dtype=object).reshape(values.shape)
        case "T" | "U":
            return values.astype(object)
        case _:
            return values.astype("T").astype(object)


def as_stored(texts: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """
    Convert ``str`` to a stored dtype; the inverse of `as_text`.

    Raises
    ------
    ValueError
        If a string is longer than the dtype's fixed width, or no integer where integers are stored.

    Examples
    --------
    >>> as_stored(np.array(["A1", "A2"], dtype=object), np.dtype("S4"))
    array([b'A1', b'A2'], dtype='|S4')
    """
    encoded = [t.encode() for t in texts.ravel().tolist()] if dtype.kind in "SO" else texts
    if dtype.kind == "O":
        return np.array([*encoded, None], dtype=object)[:-1].reshape(texts.shape)
    values = np.array(encoded, dtype="S") if dtype.kind == "S" else texts.astype("T")
    if dtype.kind in "SU" and values.size and (longest := int(np.strings.str_len(values).max())) > width(dtype):
        raise ValueError(f"a string of length {longest} does not fit into {dtype}, which takes {width(dtype)}")
    return values.reshape(texts.shape).astype(dtype)


def width(dtype: np.dtype) -> int:
    """The width of a fixed-width string dtype, in characters, or in bytes for byte strings."""
    return dtype.itemsize // (4 if dtype.kind == "U" else 1)
