"""Sample IDs as people write them: lists come from spreadsheets and other systems, which change what they copy."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
_PLAIN = re.compile(r"[A-Za-z0-9_.:/+-]+")
"""IDs with one spelling alone."""
_COLUMNS = re.compile(r"[\s,;|]+")


def spellings(line: str) -> set[str]:
    """
    What a line of a list may mean: in both Unicode forms, and without quotes, spaces and invisible characters.

    >>> sorted(spellings('"NA1"'))
    ['"NA1"', 'NA1']
    """
    visible = "".join(c for c in line if unicodedata.category(c) not in ("Cf", "Cc"))
    bare = visible.strip().strip(_QUOTES).strip()
    return {unicodedata.normalize(form, text) for text in (line, bare) if text for form in ("NFC", "NFD")} | {line}


def meant(line: str) -> set[str]:
    """
    The same, of the line and of each of its columns, such as family and individual.

    >>> sorted(meant("NA1,withdrawn"))
    ['NA1', 'NA1,withdrawn', 'withdrawn']
    """
    return spellings(line).union(*(spellings(column) for column in _COLUMNS.split(line) if column))


def spelt_otherwise(lines: Iterable[str], samples: Iterable[str]) -> dict[str, str]:
    """
    For lines of a list that are no samples of a store, the samples that they may mean.

    Letters of another case are no other spelling: these can be two samples.
    """
    known: dict[str, str] = {}
    for sample in samples:
        # most IDs have one spelling, and a million of them are looked at
        known |= {sample: sample} if _PLAIN.fullmatch(sample) else dict.fromkeys(spellings(sample), sample)
    return {line: known[form] for line in lines for form in sorted(meant(line)) if form in known}


def same_in_unicode(samples: Sequence[str], others: Iterable[str]) -> dict[str, str]:
    """The samples that look like others, but are another sequence of characters: in NFC and NFD, for instance."""
    forms = {unicodedata.normalize("NFC", sample): sample for sample in samples if not sample.isascii()}
    if not forms:
        return {}
    normal = ((other, unicodedata.normalize("NFC", other)) for other in others if not other.isascii())
    return {forms[form]: other for other, form in normal if forms.get(form, other) != other}
