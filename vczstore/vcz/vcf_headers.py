"""The header of the VCF that a VCZ was converted from, in attributes of its root group, as bio2zarr writes them."""

from collections.abc import Mapping
from typing import Any

TEXT, LINES = "vcf_header", "vcf_meta_information"
_WORDS = ("sample", "pedigree", "command", "cmd")
_FIXED_COLUMNS = 8


def without_samples(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """
    These attributes, as far as there are any, without what may name samples.

    That is lines on samples and pedigrees, those on the commands that made the VCF, and the columns of samples.
    """
    result: dict[str, Any] = {}
    if LINES in attributes:
        result[LINES] = [list(line) for line in attributes[LINES] if not _may_name_samples(line[0])]
    if TEXT in attributes:
        lines = [_without_samples(line) for line in str(attributes[TEXT]).split("\n")]
        result[TEXT] = "".join(f"{line}\n" for line in lines if line)
    return result


def _may_name_samples(key: str) -> bool:
    return any(word in key.lower() for word in _WORDS)


def _without_samples(line: str) -> str:
    if line.startswith("##"):
        return "" if _may_name_samples(line.partition("=")[0]) else line
    return "\t".join(line.split("\t")[:_FIXED_COLUMNS]) if line.startswith("#CHROM\t") else ""
