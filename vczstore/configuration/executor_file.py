"""Executor files: an engine and its machines, for many jobs and commands."""

import os
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

import executors
from vczstore.configuration.types import MappingOfAny, Model, PlaceText, Size, choice_schema, one_of
from vczstore.configuration.yaml_file import YamlFile
from vczstore.stores.locations import is_url

ENGINES = (*executors.names(), *executors.OTHERS)


class ExecutorFile(Model):
    """An executor file: an engine and its machines, for many jobs. What a job says itself wins."""

    name: Annotated[str, AfterValidator(one_of(ENGINES)), choice_schema(ENGINES)] = Field(
        description="The executor. Those beyond the ones a job can name are Cubed's, with Cubed's options.",
        examples=["processes"],
    )
    options: MappingOfAny = Field(
        default_factory=dict,
        description="What this executor takes beyond what every executor takes.",
        examples=[{"retries": 1}],
    )
    allowed_mem: Size | None = Field(default=None, description="What a task may use.", examples=["2GB"])
    reserved_mem: Size | None = Field(default=None, description="What of it is Python's own.", examples=["200MB"])
    work_dir: PlaceText | None = Field(
        default=None,
        description="As in a job file. A local path is relative to the executor file.",
        examples=["/var/tmp/vczstore"],
    )


def load_executor(path: str | os.PathLike[str], environ: Mapping[str, str] = os.environ) -> ExecutorFile:
    """
    Read an executor file.

    Raises
    ------
    JobFileError
        As `load` does.
    """
    file = YamlFile.read(os.fspath(path), (), environ)
    said = file.validate(ExecutorFile)
    options = {
        key: resolve(file.folder, value) if key == "config-file" and isinstance(value, str) else value
        for key, value in said.options.items()
    }
    work_dir = None if said.work_dir is None else resolve(file.folder, said.work_dir)
    return said.model_copy(update={"options": options, "work_dir": work_dir})


def resolve(folder: str, path: str) -> str:
    """Return a path that is relative to the folder of the file in which it is written; a URL as it is."""
    return path if is_url(path) else os.path.join(folder, path)
