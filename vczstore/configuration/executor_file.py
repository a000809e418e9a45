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
    """An executor file: an engine and its machines, for many jobs. Settings of a job take precedence."""

    name: Annotated[str, AfterValidator(one_of(ENGINES)), choice_schema(ENGINES)] = Field(
        description="The executor. Those that a job cannot name are Cubed's own, with Cubed's options.",
        examples=["processes"],
    )
    options: MappingOfAny = Field(
        default_factory=dict,
        description="Options of this executor, in addition to those of every executor.",
        examples=[{"retries": 1}],
    )
    allowed_mem: Size | None = Field(default=None, description="Memory that a task may use.", examples=["2GB"])
    reserved_mem: Size | None = Field(
        default=None, description="The part of it that Python itself takes.", examples=["200MB"]
    )
    work_dir: PlaceText | None = Field(
        default=None,
        description="As in a job file. A local path is relative to the executor file.",
        examples=["/var/tmp/vczstore"],
    )


def load_executor(path: str | os.PathLike[str], environ: Mapping[str, str] = os.environ) -> ExecutorFile:
    """
    Read an executor file, with its local paths resolved against its folder.

    Raises
    ------
    JobFileError
        If it cannot be read, or is invalid.
    """
    file = YamlFile.read(os.fspath(path), (), environ)
    model = file.validate(ExecutorFile)
    options = {
        key: resolve(file.folder, value) if key == "config-file" and isinstance(value, str) else value
        for key, value in model.options.items()
    }
    work_dir = None if model.work_dir is None else resolve(file.folder, model.work_dir)
    return model.model_copy(update={"options": options, "work_dir": work_dir})


def resolve(folder: str, path: str) -> str:
    """Join a path in a file to the folder of that file; return an absolute path or a URL unchanged."""
    return path if is_url(path) else os.path.join(folder, path)
