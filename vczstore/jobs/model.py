"""What a job file (``plan.yaml``) says: a store, steps, an executor. Nothing here runs it.

The models are the one definition of the format: what is accepted, the JSON schema that editors use, and the reference
page ``examples/guide/reference-jobs.md`` (`vczstore.jobs.reference`) all come from them. Those of steps are in
`vczstore.jobs.steps`. `vczstore.configuration.yaml_file` reads the file.
"""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
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
from vczstore.declarations import declared
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
    """The store that is edited."""

    url: PlaceText = Key(
        description="Where the store is. A local path is relative to the job file.",
        examples=["cohort.icechunk", "s3://bucket/cohort"],
    )
    backend_storage: Annotated[str | None, AfterValidator(one_of(BACKENDS)), choice_schema(BACKENDS)] = Key(
        default=None, description="The backend of the store; auto-detected if left out.", examples=["icechunk"]
    )
    storage_options: MappingOfAny = Key(
        default_factory=dict,
        description="What reaches an object store: `region`, `endpoint`, `anonymous`, `allow_http`, `requester_pays` "
        "(S3), `account` (Azure). Sources of the same kind (`s3://`, ...) are reached by them too; sources of another "
        "kind by the environment alone. Never credentials.",
        examples=[{"region": "eu-west-2"}],
    )
    no_lock: StrictBool = Key(
        default=False,
        description="Write without the lock of the store, where storage has none. Nothing else may write to it then.",
        examples=[True],
    )


class ExecutorSpec(Model):
    """What runs the tasks."""

    name: Annotated[str, AfterValidator(_executor_name), _EXECUTOR_SCHEMA] = Key(
        description="The executor, or the path of an executor file, relative to the job file.",
        examples=["processes", "cluster.yaml"],
    )
    options: MappingOfAny = Key(
        default_factory=dict,
        description="What this executor takes beyond what every executor takes. Options of an executor file stay, "
        "unless they are named here.",
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
    """What is kept of the history, and how long."""

    days: Annotated[int, Key(strict=True, ge=0, le=MAX_DAYS)] = Key(
        description="How old snapshots may become, in days. What main, a branch or a tag names stays.", examples=[30]
    )
    tags: Annotated[str, AfterValidator(one_of(KEPT_TAGS)), choice_schema(KEPT_TAGS)] = Key(
        default="all", description="Keep all tags, or delete those that name older snapshots.", examples=["all"]
    )


class JobFile(Model):
    """A job of vczstore: steps that are applied to one store of a cohort, in this order."""

    model_config = ConfigDict(title="vczstore job")

    store: Annotated[
        StoreSpec,
        BeforeValidator(
            short("url", "a path, a URL, or a mapping with the key url", str),
            json_schema_input_type=PlaceText | StoreSpec,
        ),
    ] = Key(
        description="The VCZ that is edited.",
        examples=["cohort.icechunk", {"url": "s3://bucket/cohort", "backend-storage": "icechunk"}],
    )
    parts: several(Text) | None = Key(  # type: ignore[valid-type]
        default=None,
        description="The parts of a set of stores, such as one for each chromosome: each takes the place of `{part}` "
        "in the names of the store and of the sources, and what is done is done to all parts or to none. By default "
        "all that are there.",
        examples=[["chr1", "chr2", "chrX"]],
    )
    branch: Annotated[str, Key(title="text"), AfterValidator(branch_name)] | None = Key(
        default=None,
        description="The branch of the store that the steps work on, instead of main; needs Icechunk. It is made if it "
        "is not there. If it has nothing that main lacks, it goes on from where main is. Readers see what is done on "
        "it after a `publish` step, or `vczstore publish`.",
        examples=["nightly"],
    )
    source_storage_options: MappingOfAny = Key(
        default_factory=dict,
        description="What reaches sources in object stores, if that is not what reaches the store: with any of these, "
        "sources take none of the store's. Never credentials.",
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
        description="What runs the tasks.",
        examples=["processes", "cluster.yaml", {"name": "threads", "options": {"retries": 1}}],
    )
    max_workers: Workers | None = Key(
        default=None,
        description="How many tasks run at once; one per core by default, 100 on Modal.",
        examples=[4],
    )
    allowed_mem: Size | None = Key(default=None, description="What a task may use.", examples=["2GB"])
    reserved_mem: Size | None = Key(default=None, description="What of it is Python's own.", examples=["200MB"])
    work_dir: PlaceText | None = Key(
        default=None,
        description="A folder on this machine in which a job on Icechunk keeps what its tasks have finished, until it "
        "is committed: the next run of the same job goes on from there if this one is killed or fails. That takes one "
        "file for a store, which may hold sample IDs and which its user alone may read. Without a folder, or with the "
        "URL of one, a file without sample IDs is in the user's cache folder, for the first step that writes them; "
        "none on plain Zarr, where the step in which a run was stopped is done again. "
        "Cubed's intermediate data would go there too, of which no step has any yet. A local path is relative to the "
        "job file.",
        examples=["work"],
    )
    resume: StrictBool = Key(
        default=True,
        description="Whether a file in the user's cache folder is kept, where there is no `work-dir`.",
        examples=[False],
    )
    keep: KeepSpec | None = Key(
        default=None,
        description="What is kept of the history: the rest goes at the end of each run, as with a step `gc` that says "
        "keep-days. Needs Icechunk.",
        examples=[{"days": 30, "tags": "all"}],
    )
    on_success: Hook | None = Key(
        default=None,
        description=f"Who is told when a run has succeeded. {_HOOK_HELP}. It cannot make the run fail.",
        examples=[["./notify.sh", "cohort"], "https://example.org/hooks/cohort"],
    )
    on_failure: Hook | None = Key(
        default=None,
        description="The same for a run that has failed. What an error says may name samples, so the report that is "
        "sent to an address has its kind alone. Not for one that found the store busy.",
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
        description="What is done, in this order; each a mapping with one key.",
        examples=[[{"append": "inbox/*.vcz"}, {"tag": "release-2026-11"}]],
    )

    @model_validator(mode="after")
    def _publishes_its_branch(self) -> "JobFile":
        for i, step in enumerate(self.steps):
            if step.what.operation.called == "publish" and step.what.value("name") != self.branch:
                found = "there is no key branch" if self.branch is None else f"the key branch says {self.branch}"
                raise wrong(f"a job publishes the branch that it works on, and {found}", "steps", i, "publish")
        return self


@dataclass(frozen=True)
class Job:
    """
    A job, as its file means it: forms are resolved, local paths lead from the working directory.

    Attributes
    ----------
    path
        The job file, ``-`` for standard input.
    store, executor, steps
        What is edited, by what, and how. Globs are not expanded, files of sample IDs not read.
    source_storage_options
        What reaches the sources, if that is not what reaches the store.
    resume
        Whether a checkpoint is kept in the cache folder.
    branch
        The branch that is edited; None for main.
    parts
        Those of a set of stores, if the file names them.
    of_set
        What the set is called, of the job of one part; empty of any other.
    keep
        What is kept of the history; None for all of it.
    on_success, on_failure
        Who is told of a run: a web address, or a command and its arguments.
    metrics
        The file of metrics.
    max_workers, allowed_mem, reserved_mem, work_dir
        As in `vczstore.execution.options.Options`, sizes in bytes; None where neither the job nor its executor file
        says.
    """

    path: str
    store: StoreSpec
    executor: ExecutorSpec
    max_workers: int | None
    allowed_mem: int | None
    reserved_mem: int | None
    work_dir: str | None
    steps: tuple[StepModel, ...]
    source_storage_options: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = True
    branch: str | None = None
    keep: "KeepSpec | None" = None
    on_success: "tuple[str, ...] | str | None" = None
    on_failure: "tuple[str, ...] | str | None" = None
    metrics: str | None = None
    parts: tuple[str, ...] = ()
    of_set: str = ""

    @property
    def is_of_set(self) -> bool:
        """Whether it is done to all stores of a set."""
        return is_template(self.store.url)


# ---- public functions -----------------------------------------------------------------------


def load(path: str | os.PathLike[str], overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> Job:
    """
    Read a job file.

    Parameters
    ----------
    path
        The file, or ``-`` for standard input, whose paths are relative to the working directory.
    overrides
        ``KEY=VALUE``, as in ``allowed-mem=4GB`` or ``steps.0.append=late.vcz``; they go before what the file says.
    environ
        Where ``${VAR}`` is looked up.

    Raises
    ------
    JobFileError
        At the first thing that is wrong, in one line with file, line and key.
    """
    file = YamlFile.read(os.fspath(path), overrides, environ)
    said = file.validate(JobFile)
    executor = said.executor
    if executor.name.endswith(EXECUTOR_FILES):
        try:
            machines = load_executor(resolve(file.folder, executor.name), environ)
        except JobFileError as error:
            raise file.error(("executor",), str(error)) from None
        executor = ExecutorSpec(name=machines.name, options=machines.options | executor.options)
    else:
        machines = ExecutorFile(name=executor.name)
    if said.parts and not is_template(said.store.url):
        raise file.error(("parts",), "goes with a store that has {part} in its name")
    return Job(
        path=file.path,
        store=said.store.model_copy(update={"url": resolve(file.folder, said.store.url)}),
        executor=executor,
        max_workers=said.max_workers,
        allowed_mem=machines.allowed_mem if said.allowed_mem is None else said.allowed_mem,
        reserved_mem=machines.reserved_mem if said.reserved_mem is None else said.reserved_mem,
        work_dir=machines.work_dir if said.work_dir is None else resolve(file.folder, said.work_dir),
        steps=tuple(_resolve_step(file.folder, step.what) for step in said.steps),
        source_storage_options=said.source_storage_options,
        resume=said.resume,
        parts=said.parts or (),
        branch=said.branch,
        keep=said.keep,
        on_success=said.on_success,
        on_failure=said.on_failure,
        metrics=None if said.metrics is None else resolve(file.folder, said.metrics),
    )


def _escaped(folder: str) -> str:
    """A path in which nothing stands for anything else."""
    return glob.escape(folder).replace("{", "[{]")


def _resolve_step(folder: str, step: StepModel) -> StepModel:
    """A step whose local paths lead from the working directory."""
    changes: dict[str, Any] = {}
    for one in fields(step.operation):
        value, kind = step.value(one.name), declared(one).kind
        if kind == "sources" and value:  # the folder's own name is no glob
            changes[one.name] = tuple(resolve(_escaped(folder), source) for source in value)
        elif kind == "samples" and (file := step.value(f"{one.name}_file")) is not None:
            changes[f"{one.name}_file"] = resolve(folder, file)
        elif kind in ("file", "folder", "location") and isinstance(value, str):
            others = "^" if kind == "file" and value.startswith("^") else ""  # all but what is in it
            changes[one.name] = others + resolve(folder, value.removeprefix(others))
    return step.model_copy(update=changes)
