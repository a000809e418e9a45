"""Remove sample IDs from the VCF header that bio2zarr keeps in attributes of a VCZ's root group."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

TEXT, LINES = "vcf_header", "vcf_meta_information"
_WORDS = ("sample", "pedigree", "command", "cmd")
_FILES = re.compile(r"analysis_type=|input_file=|\.(bam|cram|sam|fastq|fq|[gb]?vcf|bcf)\b", re.IGNORECASE)
"""Arguments of GATK before 3, and file names: the value of a header line that has any was a command line."""
_DEFINITIONS = frozenset(("fileformat", "contig", "INFO", "FORMAT", "FILTER", "ALT"))
"""Keys of lines that define the VCF's fields, which are always kept."""
_ON_THE_FILE = frozenset(("fileDate", "phasing", "source"))
"""Keys of lines about the VCF as a whole, which by its specification name no sample."""
_FIXED_COLUMNS, _FIRST_SAMPLE = 8, 9
_WORD = re.compile(r"[^\s,;:=|/\\<>()\[\]{}'\"]+")
_SHORT = 4
"""IDs of fewer bytes occur in lines by chance."""
type _Drops = Callable[[str, str], bool]
"""Whether to drop a line, by its key and value."""
type _Columns = Callable[[list[str]], list[str]]
"""Filters the columns of the ``#CHROM`` line."""
_MANY = 10_000_000
"""The maximum number of lines times samples to search, above which it would take too long."""


def without_samples(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the header attributes without anything that may name samples.

    Dropped are lines about samples, pedigrees and the commands that made the VCF, and the columns of samples.
    """
    return _filtered(attributes, _may_name_samples, lambda columns: columns[:_FIXED_COLUMNS])


def without(attributes: Mapping[str, Any], removed: Collection[str], present: Collection[str]) -> dict[str, Any]:
    """
    Return the root group's header attributes that name removed samples, without the lines and columns that name them.

    `present` are the IDs of the remaining samples, which may contain a removed ID.
    """
    names = _Named(frozenset(removed), frozenset(present), sum(1 for _ in all_lines(attributes))).by
    return _changed(attributes, names, lambda columns: _other_columns(columns, frozenset(removed).__contains__))


def without_dropped(
    attributes: Mapping[str, Any],
    now: Mapping[str, Any],
    present: Collection[str],
    dropped: Collection[tuple[str, str]],
) -> dict[str, Any]:
    """
    Return the header attributes of an earlier state that may name removed samples, without the lines that may.

    Kept are definitions, lines that the current state still has, and the source, date and phasing of the VCF unless
    they have since been dropped for naming a sample. Any other line may name a sample whose ID is not known.

    Parameters
    ----------
    attributes, now
        Attributes of the root group in the earlier and in the current state.
    present
        The IDs of samples whose columns are kept.
    dropped
        The lines dropped since, along with removed samples.
    """
    current = frozenset(all_lines(now))

    def is_dropped(key: str, value: str) -> bool:
        if key in _DEFINITIONS or (key, value) in current:
            return False
        return key not in _ON_THE_FILE or (key, value) in dropped

    return _changed(attributes, is_dropped, lambda columns: _other_columns(columns, lambda name: name not in present))


def all_lines(attributes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the key and value of every header line."""
    for line in attributes.get(LINES, ()):
        yield line[0], _value_of(line)
    for _, text in _texts(attributes):
        for line in text.split("\n"):
            key, _, value = line[2:].partition("=") if line.startswith("##") else (line[:6], "", line)
            yield key, value


def words(attributes: Mapping[str, Any]) -> Iterator[str]:
    """Yield candidate sample IDs in header lines other than definitions: words, and their prefixes before ``._-``."""
    for key, value in all_lines(attributes):
        if key == "#CHROM":
            yield from value.split("\t")[_FIRST_SAMPLE:]
        elif key not in _DEFINITIONS:
            for word in _WORD.findall(value):
                yield word
                yield from (word[: match.start()] for match in re.finditer(r"[._-]", word))


def _may_name_samples(key: str, value: str) -> bool:
    if key in _DEFINITIONS:
        return False
    return any(word in key.lower() for word in _WORDS) or _FILES.search(value) is not None


@dataclass(frozen=True)
class _Named:
    """The IDs of removed (`gone`) and remaining (`left`) samples, and the number of header lines that may name them."""

    gone: frozenset[str]
    left: frozenset[str]
    n_lines: int

    def by(self, key: str, value: str) -> bool:
        """Whether a line names a removed sample, as a word or within one, such as a file name."""
        if key in _DEFINITIONS:
            return False
        may_name = _may_name_samples(key, value)
        samples, as_words = (self.gone, self.gone) if may_name else (self._long, self._as_words)
        if not as_words.isdisjoint(_WORD.findall(value)):
            return True
        if self.n_lines * len(self.gone) > _MANY:
            return may_name and not value.startswith("<")
        return any(self._is_within(sample, value) for sample in samples if sample in value)

    @cached_property
    def _as_words(self) -> frozenset[str]:
        """The removed IDs except numbers and single characters, which are words of unrelated lines by chance."""
        return frozenset(sample for sample in self.gone if len(sample) > 1 and not sample.isdecimal())

    @cached_property
    def _long(self) -> frozenset[str]:
        return frozenset(sample for sample in self.gone if len(sample.encode()) >= _SHORT)

    def _is_within(self, sample: str, value: str) -> bool:
        """Whether an ID is a whole alphanumeric run, or, if long, part of one that is not a remaining sample's ID."""
        for match in re.finditer(re.escape(sample), value):
            start, stop = match.span()
            while start and value[start - 1].isalnum():
                start -= 1
            while stop < len(value) and value[stop].isalnum():
                stop += 1
            if (start, stop) == match.span() or (sample in self._long and value[start:stop] not in self.left):
                return True
        return False


def _other_columns(columns: list[str], is_gone: Callable[[str], bool]) -> list[str]:
    return [name for i, name in enumerate(columns) if i < _FIRST_SAMPLE or not is_gone(name)]


def _changed(attributes: Mapping[str, Any], drops: _Drops, columns: _Columns) -> dict[str, Any]:
    """Return the filtered header attributes that lose any line or column."""
    filtered = _filtered(attributes, drops, columns)
    whole = _filtered(attributes, lambda *_: False, lambda columns: columns)
    return {name: value for name, value in filtered.items() if value != whole[name]}


def _filtered(attributes: Mapping[str, Any], drops: _Drops, columns: _Columns) -> dict[str, Any]:
    """Return the header attributes without the lines for which `drops` is true, and with `columns` applied."""
    result: dict[str, Any] = {}
    if LINES in attributes:
        result[LINES] = [list(line) for line in attributes[LINES] if not drops(line[0], _value_of(line))]
    for name, text in _texts(attributes):
        lines = []
        for line in text.split("\n"):
            if line.startswith("##"):
                key, _, value = line[2:].partition("=")
                lines += [] if drops(key, value) else [line]
            elif line.startswith("#CHROM\t"):
                lines.append("\t".join(columns(line.split("\t"))))
        result[name] = "".join(f"{line}\n" for line in lines)
    return result


def _texts(attributes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names and values of the attributes that are the text of a header."""
    for name, value in attributes.items():
        if name == TEXT or (isinstance(value, str) and value.startswith("##fileformat=")):
            yield name, str(value)


def _value_of(line: Any) -> str:
    return "=".join(str(part) for part in line[1:])
