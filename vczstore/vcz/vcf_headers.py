"""The header of the VCF that a VCZ was converted from, in attributes of its root group, as bio2zarr writes them."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

TEXT, LINES = "vcf_header", "vcf_meta_information"
_WORDS = ("sample", "pedigree", "command", "cmd")
_FILES = re.compile(r"analysis_type=|input_file=|\.(bam|cram|sam|fastq|fq|[gb]?vcf|bcf)\b", re.IGNORECASE)
"""What stands in lines of other names that tell of a command: GATK's of before version 3, and the names of files."""
_DEFINITIONS = frozenset(("fileformat", "contig", "INFO", "FORMAT", "FILTER", "ALT"))
"""Lines that say what the VCF's fields mean, and that stay."""
_ON_THE_FILE = frozenset(("fileDate", "phasing", "source"))
"""Lines on the VCF as a whole, which by its specification name no sample."""
_FIXED_COLUMNS, _FIRST_SAMPLE = 8, 9
_WORD = re.compile(r"[^\s,;:=|/\\<>()\[\]{}'\"]+")
_SHORT = 4
"""IDs of fewer bytes are in any line by chance."""
type _Drops = Callable[[str, str], bool]
type _Columns = Callable[[list[str]], list[str]]
_MANY = 10_000_000
"""To look for so many samples in so many lines would take long."""


def without_samples(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """
    These attributes, as far as there are any, without what may name samples.

    That is lines on samples and pedigrees, those on the commands that made the VCF, and the columns of samples.
    """
    return _filtered(attributes, _may_name_samples, lambda columns: columns[:_FIXED_COLUMNS])


def without(attributes: Mapping[str, Any], removed: Collection[str], present: Collection[str]) -> dict[str, Any]:
    """
    Those of these attributes that name removed samples, without the lines and columns that do.

    Parameters
    ----------
    attributes
        Of the root group.
    removed
        The IDs of removed samples.
    present
        The IDs of the samples that stay, in which those of removed ones may be contained.
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
    Those of these attributes that have lines which may name samples that are gone, without these lines.

    What stays: definitions, lines that are there now, and those on the source, the date and the phasing of the VCF,
    unless they were dropped since, as those that named a sample. Any other line may name one whose ID is not known.

    Parameters
    ----------
    attributes
        Of the root group, as they were.
    now
        The later ones.
    present
        The IDs of samples whose columns stay.
    dropped
        The lines that were dropped since with samples.
    """
    left = frozenset(all_lines(now))

    def is_dropped(key: str, value: str) -> bool:
        if key in _DEFINITIONS or (key, value) in left:
            return False
        return key not in _ON_THE_FILE or (key, value) in dropped

    return _changed(attributes, is_dropped, lambda columns: _other_columns(columns, lambda name: name not in present))


def all_lines(attributes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The lines of headers: what each is called, and what it says."""
    for line in attributes.get(LINES, ()):
        yield line[0], _value_of(line)
    for _, text in _texts(attributes):
        for line in text.split("\n"):
            key, _, value = line[2:].partition("=") if line.startswith("##") else (line[:6], "", line)
            yield key, value


def words(attributes: Mapping[str, Any]) -> Iterator[str]:
    """What may be the IDs of samples in the lines that may name some: words, and what they begin with."""
    for key, value in all_lines(attributes):
        if key == "#CHROM":
            yield from value.split("\t")[_FIRST_SAMPLE:]
        elif key not in _DEFINITIONS:
            for word in _WORD.findall(value):
                yield word
                yield from (word[: found.start()] for found in re.finditer(r"[._-]", word))


def _may_name_samples(key: str, value: str) -> bool:
    if key in _DEFINITIONS:
        return False
    return any(word in key.lower() for word in _WORDS) or _FILES.search(value) is not None


@dataclass(frozen=True)
class _Named:
    """Samples that are gone, and those that stay; how many lines may name them."""

    gone: frozenset[str]
    left: frozenset[str]
    n_lines: int

    def by(self, key: str, value: str) -> bool:
        """Whether a line names a sample that is gone, as a word or within one, such as the name of a file."""
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
        """Those that are not by chance a word of any line, as a digit is."""
        return frozenset(sample for sample in self.gone if len(sample) > 1 and not sample.isdecimal())

    @cached_property
    def _long(self) -> frozenset[str]:
        return frozenset(sample for sample in self.gone if len(sample.encode()) >= _SHORT)

    def _is_within(self, sample: str, value: str) -> bool:
        """Whether an ID stands by itself, or, if it is long, is a part of anything but the ID of another sample."""
        for found in re.finditer(re.escape(sample), value):
            start, stop = found.span()
            while start and value[start - 1].isalnum():
                start -= 1
            while stop < len(value) and value[stop].isalnum():
                stop += 1
            if (start, stop) == found.span() or (sample in self._long and value[start:stop] not in self.left):
                return True
        return False


def _other_columns(columns: list[str], is_gone: Callable[[str], bool]) -> list[str]:
    return [name for i, name in enumerate(columns) if i < _FIRST_SAMPLE or not is_gone(name)]


def _changed(attributes: Mapping[str, Any], drops: _Drops, columns: _Columns) -> dict[str, Any]:
    """The attributes from which lines or columns are dropped."""
    filtered = _filtered(attributes, drops, columns)
    whole = _filtered(attributes, lambda *_: False, lambda columns: columns)
    return {name: value for name, value in filtered.items() if value != whole[name]}


def _filtered(attributes: Mapping[str, Any], drops: _Drops, columns: _Columns) -> dict[str, Any]:
    """The attributes that hold headers without the lines that are dropped, and with these columns."""
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
    """The attributes that are the text of a header, under any name."""
    for name, value in attributes.items():
        if name == TEXT or (isinstance(value, str) and value.startswith("##fileformat=")):
            yield name, str(value)


def _value_of(line: Any) -> str:
    return "=".join(str(part) for part in line[1:])
