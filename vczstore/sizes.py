"""
Parse and format sizes in bytes, as people write them.

pydantic's ByteSize is not used: it accepts true as 1, digits of other scripts and bits, and refuses 4Gi.
"""

import re

from vczstore.errors import OptionError

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


def parse_size(size: int | str) -> int:
    """
    Parse a size, and return the number of bytes.

    Raises
    ------
    OptionError
        If it is not a size.

    Examples
    --------
    >>> parse_size("2GB"), parse_size("1.5 MiB"), parse_size(512)
    (2000000000, 1572864, 512)
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]i?)?b?\s*", str(size).lower())
    if match is None:
        raise OptionError(f"{str(size)[:40]!r} is no size; write it like 500MB, 2GB or 4GiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def human_size(n: float) -> str:
    """
    Format a number of bytes, with decimal units.

    >>> human_size(512), human_size(78_400_000)
    ('512 B', '78.4 MB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    raise AssertionError
