"""Match sample IDs that differ in spelling: lists from spreadsheets and other systems often alter IDs."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import batched

_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
_PLAIN = re.compile(r"[A-Za-z0-9_.:/+-]+")
"""IDs that have only one spelling."""
_COLUMNS = re.compile(r"[\s,;|]+")
_PUNCTUATION = dict.fromkeys(map(ord, " -_./:"))
_MAX_UNKNOWN = 3
"""The maximum number of unknown IDs to compare with all samples by edit distance."""
_LONGEST = 64
"""Longer unknown IDs are not compared by edit distance."""
_BATCH = 10_000
"""The number of IDs that `looking_alike` tests together."""


def spellings(line: str) -> set[str]:
    """
    The IDs that a line of a list may mean: in Unicode forms NFC and NFD, with and without quotes, spaces and invisible
    characters.

    >>> sorted(spellings('"NA1"'))
    ['"NA1"', 'NA1']
    """
    visible = "".join(c for c in line if unicodedata.category(c) not in ("Cf", "Cc"))
    bare = visible.strip().strip(_QUOTES).strip()
    return {unicodedata.normalize(form, text) for text in (line, bare) if text for form in ("NFC", "NFD")} | {line}


def meant(line: str) -> set[str]:
    """
    The `spellings` of the line and of each of its columns, such as family and individual.

    >>> sorted(meant("NA1,withdrawn"))
    ['NA1', 'NA1,withdrawn', 'withdrawn']
    """
    return spellings(line).union(*(spellings(column) for column in _COLUMNS.split(line) if column))


def spelt_otherwise(lines: Iterable[str], samples: Iterable[str]) -> dict[str, str]:
    """
    Map each line of a list that is another spelling of a sample to that sample; the lines are not samples themselves.

    Case is significant: IDs that differ only in case can be two samples.
    """
    by_spelling: dict[str, str] = {}
    for sample in samples:
        # fast path: there can be a million IDs, and most have only one spelling
        if _PLAIN.fullmatch(sample):
            by_spelling[sample] = sample
        else:
            by_spelling |= dict.fromkeys(spellings(sample), sample)
    return {line: by_spelling[form] for line in lines for form in sorted(meant(line)) if form in by_spelling}


def in_other_case(lines: Iterable[str], samples: Iterable[str]) -> list[str]:
    """
    The lines of a list that differ from a sample of a store only in case.

    >>> in_other_case(["na1", "NA2"], ["NA1", "NA2"])
    ['na1']
    """
    folded: dict[str, set[str]] = {}
    for line in lines:
        folded.setdefault(line.casefold(), set()).add(line)
    matches = (folded.get(sample.casefold(), set()) - {sample} for sample in samples)
    return sorted(set().union(*matches))


def close_to(unknown: Sequence[str], samples: Iterable[str]) -> list[str]:
    """
    Return the samples that unknown IDs may mean, sorted.

    These are other spellings and, for the first `_MAX_UNKNOWN` remaining IDs, samples that differ in case or
    punctuation, or else up to three that differ by one edit (insertion, deletion, substitution or transposition). A
    million samples take some seconds.

    >>> close_to(["na-1", "NA21", "NA3"], ["NA1", "NA12"])
    ['NA1', 'NA12']
    """
    present = dict.fromkeys(sample for sample in samples if sample and "\0" not in sample)
    spelt = spelt_otherwise(unknown, present)
    left = [i for i in unknown if i not in spelt and len(i) <= _LONGEST and "\0" not in i][:_MAX_UNKNOWN]
    close = set(spelt.values())
    if left and present:
        folded = dict(zip(_folded(present), present, strict=True))
        letters = set("".join(present))
        for sample, key in zip(left, _folded(left), strict=True):
            close |= {folded[key]} if key in folded else set(sorted(present.keys() & _one_edit(sample, letters))[:3])
    return sorted(close)


def _folded(texts: Iterable[str]) -> list[str]:
    """Fold texts, removing case and punctuation, as one string: ten times faster than one by one."""
    return "\0".join(texts).casefold().translate(_PUNCTUATION).split("\0")


def _one_edit(text: str, letters: set[str]) -> set[str]:
    """The texts that are one edit away."""
    splits = [(text[:i], text[i:]) for i in range(len(text) + 1)]
    shorter = {a + b[1:] for a, b in splits if b}
    exchanged = {a + b[1] + b[0] + b[2:] for a, b in splits if len(b) > 1}
    return shorter | exchanged | {a + letter + rest for a, b in splits for letter in letters for rest in (b, b[1:])}


def normal(sample: str) -> str:
    """
    Normalise an ID so that IDs that look alike become equal: stripped, and in Unicode form NFC.

    >>> normal(" NA1 ")
    'NA1'
    """
    return (sample if sample.isascii() else unicodedata.normalize("NFC", sample)).strip()


def looking_alike(samples: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """
    Map samples to others that look the same, but differ in surrounding spaces or Unicode form.

    >>> looking_alike(["NA1 ", "NA2"], ["NA1", "NA2"])
    {'NA1 ': 'NA1'}
    """
    forms = {normal(sample): sample for sample in samples}
    alike: dict[str, str] = {}
    for batch in batched(others, _BATCH):
        text = "".join(batch)
        # most IDs are ASCII without spaces: comparing these needs no Python code per ID
        is_normal = text.isascii() and text.split(maxsplit=1) in ([], [text])
        if not (is_normal and forms.keys().isdisjoint(batch)):
            pairs = ((forms.get(normal(other), other), other) for other in batch)
            alike |= {sample: other for sample, other in pairs if sample != other}
    return alike
