"""Lists of sample IDs in files, one a line: operations, commands and job files read them by the same rules."""

import os
import re

from vczstore.configuration.yaml_file import STANDARD_INPUT, decode, one_line, read_bytes
from vczstore.errors import JobFileError, OptionError

MAX_BYTES = 2**28
"""The largest list: some ten million samples, or a mistake."""


def read_lines(operation: str, file: str | os.PathLike[str], of: str = "sample IDs") -> list[tuple[int, str]]:
    """
    Read a list: its lines that are not blank, and the number of each.

    A line is an ID with all that is in it, as for ``bcftools view -S``: there are no comments and no further columns.
    Unlike there, spaces around it and a byte order mark are no part of it.

    Parameters
    ----------
    operation
        Whose error it is if the file cannot be read.
    file
        UTF-8, with lines that end in LF, CRLF or CR; the text ``-`` is standard input.
    of
        What the lines are, for errors.

    Raises
    ------
    OptionError
        If it cannot be read, is no UTF-8, has a NUL character, or is too large.
    """
    name = "standard input" if file == STANDARD_INPUT else one_line(os.fspath(file))
    try:
        text = decode(read_bytes(file, name, MAX_BYTES), name)
    except JobFileError as error:
        raise OptionError(f"{operation}: {error}; expected a file of {of}, one a line") from error
    if "\0" in text:
        number = text[: text.index("\0")].count("\n") + 1
        raise OptionError(
            f"{operation}: {name}:{number}: has a NUL character; save it as UTF-8; expected a file of {of}, one a line"
        )
    lines = re.split("\r\n|\r|\n", text)  # splitlines() ends lines at characters that are part of an ID, such as \x85
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
