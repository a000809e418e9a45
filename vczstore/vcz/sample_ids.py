"""Sample IDs as people write them: lists come from spreadsheets and other systems, which change what they copy."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
_PLAIN = re.compile(r"[A-Za-z0-9_.:/+-]+")
"""IDs with one spelling alone."""
_COLUMNS = re.compile(r"[\s,;|]+")
_PUNCTUATION = dict.fromkeys(map(ord, " -_./:"))
LOOKED_UP = 3
"""For how many unknown IDs close ones are looked for."""
_LONGEST = 64
"""Of a longer ID no close ones are looked for."""


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
        if _PLAIN.fullmatch(sample):
            known[sample] = sample
        else:
            known |= dict.fromkeys(spellings(sample), sample)
    return {line: known[form] for line in lines for form in sorted(meant(line)) if form in known}


def in_other_case(lines: Iterable[str], samples: Iterable[str]) -> list[str]:
    """
    The lines of a list that are samples of a store in letters of another case.

    >>> in_other_case(["na1", "NA2"], ["NA1", "NA2"])
    ['na1']
    """
    folded: dict[str, set[str]] = {}
    for line in lines:
        folded.setdefault(line.casefold(), set()).add(line)
    found = (folded.get(sample.casefold(), set()) - {sample} for sample in samples)
    return sorted(set().union(*found))


def close_to(unknown: Sequence[str], samples: Iterable[str]) -> list[str]:
    """
    The samples that unknown IDs may mean.

    Those that are spelt otherwise. For a few unknown IDs also those with other case or punctuation, or else with one
    character more, less, replaced or exchanged with its neighbour: a million samples take some seconds.

    >>> close_to(["na-1", "NA21", "NA3"], ["NA1", "NA12"])
    ['NA1', 'NA12']
    """
    present = dict.fromkeys(sample for sample in samples if sample and "\0" not in sample)
    spelt = spelt_otherwise(unknown, present)
    left = [one for one in unknown if one not in spelt and len(one) <= _LONGEST and "\0" not in one][:LOOKED_UP]
    found = set(spelt.values())
    if left and present:
        folded = dict(zip(_folded(present), present, strict=True))
        letters = set("".join(present))
        for one, key in zip(left, _folded(left), strict=True):
            found |= {folded[key]} if key in folded else set(sorted(present.keys() & _one_away(one, letters))[:3])
    return sorted(found)


def _folded(texts: Iterable[str]) -> list[str]:
    """Without case and punctuation; all at once, which takes a tenth of the time."""
    return "\0".join(texts).casefold().translate(_PUNCTUATION).split("\0")


def _one_away(text: str, letters: set[str]) -> set[str]:
    """The texts that are one edit away."""
    splits = [(text[:i], text[i:]) for i in range(len(text) + 1)]
    shorter = {a + b[1:] for a, b in splits if b}
    exchanged = {a + b[1] + b[0] + b[2:] for a, b in splits if len(b) > 1}
    return shorter | exchanged | {a + letter + rest for a, b in splits for letter in letters for rest in (b, b[1:])}


def normal(sample: str) -> str:
    """
    What IDs have in common that look alike: without spaces around them, and in one Unicode form.

    >>> normal(" NA1 ")
    'NA1'
    """
    return (sample if sample.isascii() else unicodedata.normalize("NFC", sample)).strip()


def looking_alike(samples: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """
    The samples that look like others, but are another sequence of characters: spaces around them, or Unicode form.

    >>> looking_alike(["NA1 ", "NA2"], ["NA1", "NA2"])
    {'NA1 ': 'NA1'}
    """
    forms = {normal(sample): sample for sample in samples}
    alike = ((forms.get(normal(other), other), other) for other in others)
    return {sample: other for sample, other in alike if sample != other}
