"""Read lists of sample IDs, one per line, with the same rules for operations, commands and job files."""

import os
import re

from vczstore.configuration.yaml_file import STANDARD_INPUT, decode, one_line, read_bytes
from vczstore.errors import JobFileError, OptionError

MAX_BYTES = 2**28
"""Maximum size of a list, some ten million samples; a larger file is taken for a mistake."""


def read_lines(operation: str, file: str | os.PathLike[str], of: str = "sample IDs") -> list[tuple[int, str]]:
    """
    Return the lines of a list that are not blank, each with its number.

    A whole line is an ID, as for ``bcftools view -S``: there are no comments and no further columns. But unlike there,
    surrounding white space and a byte order mark are removed.

    Parameters
    ----------
    operation
        Name of the operation, for messages.
    file
        A UTF-8 file with lines that end in LF, CRLF or CR; ``-`` is standard input.
    of
        What the lines are, for messages.

    Raises
    ------
    OptionError
        If it cannot be read, is not UTF-8, has a NUL character, or is too large.
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
