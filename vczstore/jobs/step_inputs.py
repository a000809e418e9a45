"""The sources and samples that a step of a job names: globs are expanded, files of sample IDs are read."""

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
    Find what each path or glob of a step names: globs in sorted order, each source once, where it is named first.

    A glob may find nothing, but the folder in which it looks has to be there. It finds VCFs if it ends as their names
    do: beside a VCZ may lie the VCF that it was made of. A path that is none is taken as it is,
    whether something is there or not. URLs are left to those who can list object stores.

    Raises
    ------
    JobFileError
        If the folder of a glob does not exist.
    """
    found: dict[str, list[str]] = {}
    for source in dict.fromkeys(step.value("sources")):
        paths = [path for pattern in alternatives(source) for path in _expand(pattern)]
        found[source] = list(dict.fromkeys(paths if is_url(source) or not is_glob(source) else sorted(paths)))
    return found


def names_one(source: str) -> bool:
    """Whether a path or URL in a job file names one source, and is no glob that may find nothing."""
    return len(patterns := alternatives(source)) == 1 and not is_glob(patterns[0])


def _expand(pattern: str) -> list[str]:
    """What a pattern without braces finds."""
    if is_url(pattern) or not is_glob(pattern):
        return [pattern if is_url(pattern) else literal(pattern)]
    _require_folder(pattern)
    asks_for_vcf = pattern.lower().endswith(VCF_SUFFIXES)
    return [path for path in glob.glob(pattern, recursive=True) if asks_for_vcf or _may_be_a_store(path)]


def _require_folder(pattern: str) -> None:
    """A misspelt inbox would find nothing, every night, and look like an empty one."""
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    folder = literal(str(Path(*parts[:first])))
    if not os.path.isdir(folder):
        raise JobFileError(f"{one_line(pattern)}: there is no folder {one_line(folder)}; correct the path, or make it")


def _may_be_a_store(path: str) -> bool:
    """Whether what a glob has found is a folder, or a file that is called like a store: desktops leave other files."""
    name = os.path.basename(path)
    return os.path.isdir(path) or (name.endswith((".zip", ".vcz", ".zarr")) and not name.startswith("._"))


def read_samples(step: StepModel) -> list[str]:
    """
    Say which samples a step removes, from its list or its file.

    Raises
    ------
    OptionError
        If the file cannot be read, or is not UTF-8.
    """
    file = step.value("samples_file")
    if file is None:
        return list(step.value("samples") or ())
    return [line for _, line in read_lines(step.operation.called, file)]
