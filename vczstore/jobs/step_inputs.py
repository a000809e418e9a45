"""Resolve the sources and samples of a job's step: expand globs, and read files of sample IDs."""

import glob
import os
from pathlib import Path

from vczstore.configuration.lists import read_lines
from vczstore.configuration.yaml_file import one_line
from vczstore.errors import JobFileError
from vczstore.jobs.steps import StepModel
from vczstore.stores.locations import alternatives, is_glob, is_url, literal
from vczstore.vcf.files import SUFFIXES as VCF_SUFFIXES


def expand_sources(step: StepModel) -> dict[str, list[str]]:
    """
    Return the sources of a step by the path or glob that names them, deduplicated; those of a glob are sorted.

    A glob may match nothing, but its folder has to exist. It matches VCFs only if it ends in a suffix of VCFs, since
    the VCF that a VCZ was converted from may lie alongside it. Plain paths are kept whether or not they exist. Of URLs
    only braces are expanded, since globs require a listing of the object store.

    Raises
    ------
    JobFileError
        If the folder of a glob does not exist.
    """
    expanded: dict[str, list[str]] = {}
    for source in dict.fromkeys(step.value("sources")):
        paths = [path for pattern in alternatives(source) for path in _expand(pattern)]
        expanded[source] = list(dict.fromkeys(paths if is_url(source) or not is_glob(source) else sorted(paths)))
    return expanded


def names_one(source: str) -> bool:
    """Whether a path or URL in a job file names exactly one source: it has no glob and no alternatives in braces."""
    return len(patterns := alternatives(source)) == 1 and not is_glob(patterns[0])


def _expand(pattern: str) -> list[str]:
    """Expand a glob without braces; a URL, or a path without glob characters, is returned as the only match."""
    if is_url(pattern) or not is_glob(pattern):
        return [pattern if is_url(pattern) else literal(pattern)]
    _require_folder(pattern)
    asks_for_vcf = pattern.lower().endswith(VCF_SUFFIXES)
    return [path for path in glob.glob(pattern, recursive=True) if asks_for_vcf or _may_be_a_store(path)]


def _require_folder(pattern: str) -> None:
    """Raise a `JobFileError` if the folder of a glob does not exist: a misspelt inbox would look like an empty one."""
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    folder = literal(str(Path(*parts[:first])))
    if not os.path.isdir(folder):
        raise JobFileError(f"{one_line(pattern)}: there is no folder {one_line(folder)}; correct the path, or make it")


def _may_be_a_store(path: str) -> bool:
    """Whether a match is a folder, or a file with a store's suffix: desktops leave other files, such as ``._*``."""
    name = os.path.basename(path)
    return os.path.isdir(path) or (name.endswith((".zip", ".vcz", ".zarr")) and not name.startswith("._"))


def read_samples(step: StepModel) -> list[str]:
    """
    Return the sample IDs of a step, from its list or its file.

    Raises
    ------
    OptionError
        If the file cannot be read, or is not UTF-8.
    """
    file = step.value("samples_file")
    if file is None:
        return list(step.value("samples") or ())
    return [line for _, line in read_lines(step.operation.called, file)]
