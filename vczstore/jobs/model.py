"""The models of a job file (``plan.yaml``): a store, steps, an executor. Nothing here runs a job.

The models are the single definition of the format: validation, the JSON schema for editors, and the reference page
``examples/guide/reference-jobs.md`` (`vczstore.jobs.reference`) are derived from them. The models of steps are in
`vczstore.jobs.steps`. `vczstore.configuration.yaml_file` reads the file.
"""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, StrictBool, model_validator
from pydantic import Field as Key

import executors
from vczstore.choices import BACKENDS, KEPT_TAGS, MAX_DAYS
from vczstore.configuration.executor_file import ExecutorFile, load_executor, resolve
from vczstore.configuration.types import (
    IS_VARIABLE,
    LocalFile,
    MappingOfAny,
    Model,
    PlaceText,
    Size,
    Text,
    Workers,
    choice_schema,
    expected,
    one_of,
    short,
    wrong,
)
from vczstore.configuration.yaml_file import YamlFile
from vczstore.errors import JobFileError
from vczstore.execution.options import EXECUTOR_FILES
from vczstore.jobs.steps import Step, StepModel, branch_name, check_order, require_step, several
from vczstore.stores.sets import is_template

_EXECUTOR_SCHEMA = choice_schema(
    executors.names(), {"type": "string", "title": "path of an executor file", "pattern": r"\.ya?ml$"}
)


def _executor_name(name: str) -> str:
    return name if name.endswith(EXECUTOR_FILES) else str(one_of(executors.names())(name))


# ---- the store and the executor -------------------------------------------------------------


class StoreSpec(Model):
    """The store to edit."""

    url: PlaceText = Key(
        description="The path or URL of the store. A local path is relative to the job file.",
        examples=["cohort.icechunk", "s3://bucket/cohort"],
    )
    backend_storage: Annotated[str | None, AfterValidator(one_of(BACKENDS)), choice_schema(BACKENDS)] = Key(
        default=None, description="The backend of the store; auto-detected if left out.", examples=["icechunk"]
    )
    storage_options: MappingOfAny = Key(
        default_factory=dict,
        description="Connection options of an object store: `region`, `endpoint`, `anonymous`, `allow_http`, "
        "`requester_pays` (S3), `account` (Azure). They also apply to sources with the same scheme (`s3://`, ...); for "
        "other sources only the environment is used. Never credentials.",
        examples=[{"region": "eu-west-2"}],
    )
    no_lock: StrictBool = Key(
        default=False,
        description="Write without the store's lock, on storage without locks. Nothing else may write to it meanwhile.",
        examples=[True],
    )


class ExecutorSpec(Model):
    """The executor that runs the tasks."""

    name: Annotated[str, AfterValidator(_executor_name), _EXECUTOR_SCHEMA] = Key(
        description="The executor, or the path of an executor file, relative to the job file.",
        examples=["processes", "cluster.yaml"],
    )
    options: MappingOfAny = Key(
        default_factory=dict,
        description="Options specific to this executor. Those of an executor file apply unless they are overridden "
        "here.",
        examples=[{"retries": 1}],
    )


def _hook(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, str) or not re.match("https?://", value):
        raise expected("a web address, or a list: a command and its arguments")
    return value


_COMMAND = Annotated[tuple[Text, ...], Key(min_length=1, title="list of text")]
Hook = Annotated[
    _COMMAND | str,
    BeforeValidator(
        _hook,
        json_schema_input_type=_COMMAND
        | Annotated[str, Key(title="web address", pattern=rf"^https?://|{IS_VARIABLE}")],
    ),
]
_HOOK_HELP = (
    "A command and its arguments, which gets the report as JSON on standard input and the status in VCZSTORE_STATUS, "
    "or a web address to which the report is sent by POST"
)


class KeepSpec(Model):
    """The part of the history to keep."""

    days: Annotated[int, Key(strict=True, ge=0, le=MAX_DAYS)] = Key(
        description="The maximum age of snapshots, in days. Those that main, a branch or a tag names are kept.",
        examples=[30],
    )
    tags: Annotated[str, AfterValidator(one_of(KEPT_TAGS)), choice_schema(KEPT_TAGS)] = Key(
        default="all", description="Keep all tags, or delete those that name older snapshots.", examples=["all"]
    )


class JobFile(Model):
    """A job of vczstore: steps to apply, in order, to one store of a cohort."""

    model_config = ConfigDict(title="vczstore job")

    store: Annotated[
        StoreSpec,
        BeforeValidator(
            short("url", "a path, a URL, or a mapping with the key url", str),
            json_schema_input_type=PlaceText | StoreSpec,
        ),
    ] = Key(
        description="The VCZ store to edit.",
        examples=["cohort.icechunk", {"url": "s3://bucket/cohort", "backend-storage": "icechunk"}],
    )
    parts: several(Text) | None = Key(  # type: ignore[valid-type]
        default=None,
        description="The parts of a set of stores, such as one per chromosome: each is substituted for `{part}` in the "
        "names of the store and of the sources, and the job is applied to all parts or to none. By default all parts "
        "that exist.",
        examples=[["chr1", "chr2", "chrX"]],
    )
    branch: Annotated[str, Key(title="text"), AfterValidator(branch_name)] | None = Key(
        default=None,
        description="The branch of the store that the steps work on, instead of main; needs Icechunk. It is created if "
        "it does not exist, and moved to main if it has nothing that main lacks. Readers see its commits after a "
        "`publish` step, or `vczstore publish`.",
        examples=["nightly"],
    )
    source_storage_options: MappingOfAny = Key(
        default_factory=dict,
        description="Connection options of sources in object stores, if they differ from the store's: with any of "
        "these, none of the store's apply to sources. Never credentials.",
        examples=[{"region": "us-east-1", "anonymous": True}],
    )
    executor: Annotated[
        ExecutorSpec,
        BeforeValidator(
            short("name", "an executor, the path of an executor file, or a mapping with the key name", str),
            json_schema_input_type=Annotated[str, _EXECUTOR_SCHEMA] | ExecutorSpec,
        ),
    ] = Key(
        default="threads",
        validate_default=True,
        description="The executor that runs the tasks.",
        examples=["processes", "cluster.yaml", {"name": "threads", "options": {"retries": 1}}],
    )
    max_workers: Workers | None = Key(
        default=None,
        description="How many tasks run concurrently; one per core by default, 100 on Modal.",
        examples=[4],
    )
    allowed_mem: Size | None = Key(default=None, description="The memory that a task may use.", examples=["2GB"])
    reserved_mem: Size | None = Key(
        default=None, description="The part of `allowed-mem` that Python itself uses.", examples=["200MB"]
    )
    work_dir: PlaceText | None = Key(
        default=None,
        description="A local folder in which a job on Icechunk keeps a checkpoint of its finished tasks until it is "
        "committed: the next run of the same job resumes there if this one is killed or fails. It is one file for a "
        "store, which may hold sample IDs and which its user alone may read. Without a folder, or with the URL of one, "
        "a checkpoint without sample IDs is in the user's cache folder, for the first step that writes; none on plain "
        "Zarr, where an interrupted step is done again. Cubed's intermediate data would be stored there too, but no "
        "step has any yet. A local path is relative to the job file.",
        examples=["work"],
    )
    resume: StrictBool = Key(
        default=True,
        description="Whether to keep a checkpoint in the user's cache folder if there is no `work-dir`.",
        examples=[False],
    )
    keep: KeepSpec | None = Key(
        default=None,
        description="The part of the history to keep: the rest is deleted at the end of each run, as by a `gc` step "
        "with keep-days. Needs Icechunk.",
        examples=[{"days": 30, "tags": "all"}],
    )
    on_success: Hook | None = Key(
        default=None,
        description=f"A notification when a run has succeeded. {_HOOK_HELP}. It cannot make the run fail.",
        examples=[["./notify.sh", "cohort"], "https://example.org/hooks/cohort"],
    )
    on_failure: Hook | None = Key(
        default=None,
        description="The same when a run has failed. Error messages may name samples, so the report that is sent to an "
        "address has the kind of the error alone. Not sent if the store was busy.",
        examples=[["./notify.sh", "cohort"]],
    )
    metrics: LocalFile | None = Key(
        default=None,
        description="A file for the textfile collector of Prometheus: status, time, samples, tasks and bytes of the "
        "last run. Relative to the job file.",
        examples=["/var/lib/node_exporter/cohort.prom"],
    )
    steps: Annotated[
        tuple[Annotated[Step, BeforeValidator(require_step)], ...],
        Key(min_length=1, fail_fast=True),
        AfterValidator(check_order),
    ] = Key(
        description="The steps to apply, in order; each a mapping with one key.",
        examples=[[{"append": "inbox/*.vcz"}, {"tag": "release-2026-11"}]],
    )

    @model_validator(mode="after")
    def _publishes_its_branch(self) -> "JobFile":
        for i, step in enumerate(self.steps):
            if step.what.operation.called == "publish" and step.what.value("name") != self.branch:
                actual = "there is no key branch" if self.branch is None else f"the key branch says {self.branch}"
                raise wrong(f"a job publishes the branch that it works on, and {actual}", "steps", i, "publish")
        return self


class Job(JobFile):
    """
    A job read from its file: shorthands are expanded, local paths are relative to the working directory.

    The executor file is read, globs are not expanded, and files of sample IDs are not read.

    Attributes
    ----------
    path
        The job file, ``-`` for standard input.
    of_set
        The URL template of the set, in the job of one of its parts; empty in any other.
    """

    path: str
    of_set: str = ""
    steps: tuple[StepModel, ...]

    @property
    def is_of_set(self) -> bool:
        """Whether the job is applied to all stores of a set."""
        return is_template(self.store.url)


def load(path: str | os.PathLike[str], overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> Job:
    """
    Read a job file.

    Parameters
    ----------
    path
        The file, or ``-`` for standard input, whose paths are relative to the working directory.
    overrides
        ``KEY=VALUE``, as in ``allowed-mem=4GB`` or ``steps.0.append=late.vcz``; they override the file.
    environ
        The environment variables for ``${VAR}``.

    Raises
    ------
    JobFileError
        For the first error, in one line with file, line and key.
    """
    file = YamlFile.read(os.fspath(path), overrides, environ)
    content = file.validate(JobFile)
    executor = content.executor
    if executor.name.endswith(EXECUTOR_FILES):
        try:
            machines = load_executor(resolve(file.folder, executor.name), environ)
        except JobFileError as error:
            raise file.error(("executor",), str(error)) from None
        executor = ExecutorSpec(name=machines.name, options=machines.options | executor.options)
    else:
        machines = ExecutorFile(name=executor.name)
    if content.parts and not is_template(content.store.url):
        raise file.error(("parts",), "needs a store that has {part} in its name")
    resolved = {
        "path": file.path,
        "store": content.store.model_copy(update={"url": resolve(file.folder, content.store.url)}),
        "executor": executor,
        "allowed_mem": machines.allowed_mem if content.allowed_mem is None else content.allowed_mem,
        "reserved_mem": machines.reserved_mem if content.reserved_mem is None else content.reserved_mem,
        "work_dir": machines.work_dir if content.work_dir is None else resolve(file.folder, content.work_dir),
        "steps": tuple(step.what.with_places(partial(_resolve_place, file.folder)) for step in content.steps),
        "metrics": None if content.metrics is None else resolve(file.folder, content.metrics),
    }
    return Job.model_construct(**{**dict(content), **resolved})


def _resolve_place(folder: str, kind: str, path: str) -> str:
    """Return a path or URL of a step, resolved against the folder of the job file."""
    if kind == "sources":  # the folder's own name is no glob
        return resolve(glob.escape(folder).replace("{", "[{]"), path)
    complement = "^" if kind == "file" and path.startswith("^") else ""  # all but the samples in the file
    return complement + resolve(folder, path.removeprefix(complement))
