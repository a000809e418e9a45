"""What a job file (``plan.yaml``) says: a store, steps, an executor. Nothing here runs it.

The models are the one definition of the format: what is accepted, the JSON schema that editors use, and the reference
page ``examples/guide/reference-jobs.md`` all come from them. Those of steps are made of the operations' declarations.
`vczstore.configuration.yaml_file` reads the file.
"""

import glob
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StrictBool, create_model, model_validator
from pydantic import Field as Key
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticCustomError, core_schema

import executors
from vczstore.choices import BACKENDS, KEPT_TAGS, MAX_DAYS, OURS
from vczstore.configuration.executor_file import ExecutorFile, load_executor, resolve
from vczstore.configuration.lists import read_lines
from vczstore.configuration.types import (
    IS_VARIABLE,
    LocalFile,
    MappingOfAny,
    Model,
    PlaceText,
    Size,
    SourceText,
    Text,
    Workers,
    choice_schema,
    expected,
    listed,
    one_of,
    short,
    wrong,
)
from vczstore.configuration.yaml_file import MAX_BYTES, YamlFile, either_or, keys_of, one_line
from vczstore.declarations import Declared, declared
from vczstore.errors import JobFileError, OptionError, VczstoreError
from vczstore.execution import operations
from vczstore.execution.operations import CHECKS, CLEANS, EXPORTS, NAMES, OWN_COMMIT, PUBLISHES, Operation
from vczstore.execution.options import EXECUTOR_FILES
from vczstore.stores.locations import alternatives, is_glob, is_url, literal
from vczstore.stores.sets import is_template
from vczstore.vcf.files import SUFFIXES as VCF_SUFFIXES

NUMBERS: Mapping[Any, Any] = {int: int, int | None: int, float: float, float | None: float}
"""The types of numbers without bounds."""

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


# ---- the steps, of which each is an operation -----------------------------------------------


class StepModel(Model):
    """A step of a job: what a job file says of an operation."""

    operation: ClassVar[type[Operation]]

    def value(self, key: str) -> Any:
        """Return what the file says under a key; None where it says nothing, or there is no such key."""
        return getattr(self, key, None)

    @model_validator(mode="after")
    def _goes_together(self) -> "StepModel":
        """Check what the operation itself checks."""
        try:
            self.made("")
        except VczstoreError as error:
            raise wrong(str(error).removeprefix(f"{self.operation.called}: ")) from None
        return self

    def made(self, store: str, **values: Any) -> Operation:
        """Return the operation on a store; values take the place of what the file says."""
        said = {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
        for one in fields(self.operation):
            if declared(one).kind == "samples":
                said.pop(f"{one.name}_file", None)
        for name, inner in [(name, value) for name, value in said.items() if isinstance(value, Model)]:
            said[name] = True  # the switch that the options in its mapping go with
            for key in type(inner).model_fields:
                if (value := getattr(inner, key)) is not None:
                    said[key] = (*said.get(key, ()), *value) if isinstance(value, tuple) else value
        for one in operations.arguments(self.operation):
            if declared(one).kind == "samples":
                said.setdefault(one.name, ())  # they are in a file
        return self.operation(**{"store": store, **said, **values})


def _is_list(kind: Any) -> bool:
    return get_origin(kind) is tuple or any(get_origin(one) is tuple for one in get_args(kind))


def _item(known: Declared) -> Any:
    """What one value of a field is."""
    match known.kind:
        case "sources":
            return SourceText
        case "file" | "folder":
            return LocalFile
        case "location":
            return PlaceText
        case "tag":
            return Annotated[Text, AfterValidator(_tag_name)]
        case "samples" | "":
            return Text
        case other:
            raise ValueError(f"a job file has no values of the kind {other}")


def _tag_name(name: str) -> str:
    if not name.isprintable() or "/" in name:
        raise expected("a name of printable characters without /")
    return name


def _branch_name(name: str) -> str:
    if name.startswith(OURS):
        raise expected(f"another name than one that begins with {OURS}, as branches that vczstore makes")
    return _tag_name(name)


def _several(item: Any) -> Any:
    """One value or a list of them, in a tuple."""
    return Annotated[
        tuple[item, ...],
        Key(min_length=1, fail_fast=True),
        BeforeValidator(listed, json_schema_input_type=item | Annotated[list[item], Key(min_length=1)]),
    ]


def _kind(one: "Field[Any]") -> Any:
    """The type of a key of a step."""
    known = declared(one)
    if known.choices:
        choice = Annotated[str, BeforeValidator(one_of(known.choices)), choice_schema(known.choices)]
        return _several(choice) if _is_list(one.type) else choice
    if known.bounds is not None:
        return Annotated[int, Key(strict=True, ge=known.bounds[0], le=known.bounds[1])]
    if one.type is bool:
        return StrictBool
    if one.type in NUMBERS:
        return Annotated[NUMBERS[one.type], Key(strict=True)]
    if known.kind in ("sources", "samples"):
        return _several(_item(known))
    if _is_list(one.type):
        item: Any = _item(known)
        return Annotated[tuple[item, ...], Key(title="list of text"), BeforeValidator(_tuple)]
    return _item(known)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _key(one: "Field[Any]", kind: Any) -> tuple[Any, Any]:
    """The type and the description of a key of a step."""
    known = declared(one)
    said: dict[str, Any] = {"description": _described(known), "examples": list(known.examples)}
    if known.key:
        said["alias"] = known.key
    if one.default is MISSING:
        return kind, Key(**said)
    if one.default is None or (one.default == () and not known.choices):
        return kind | None, Key(default=None, **said)
    return kind, Key(default=one.default, **said)


def _described(known: Declared) -> str:
    """What the reference page and editors say of a key."""
    default = f"By default {known.default_text}." * bool(known.default_text)
    return " ".join(text for text in (_in_words_of_jobs(known.help), known.job_help, default) if text)


def _in_words_of_jobs(text: str) -> str:
    """A help text in which options are called as in a job file."""
    names = {one.name for name in operations.names() if (found := _loaded(name)) for one in fields(found)}
    for name in names:
        text = text.replace(f"`{name}`", f"`{name.replace('_', '-')}`")
    return text


def _true_or_options(value: Any) -> Any:
    if value is True:
        return {}
    if value is False:
        return None
    if value is not None and not isinstance(value, dict | BaseModel):
        raise expected("true, false, or a mapping such as {allow-new-alleles: true}")
    return value


def _keys(operation: type[Operation]) -> dict[str, tuple[Any, Any]]:
    """The keys of a step: the arguments and options of its operation, those in one mapping that go with a switch."""
    shown = [one for one in (*operations.arguments(operation), *operations.options(operation)) if declared(one).job]
    keys: dict[str, tuple[Any, Any]] = {}
    for one in shown:
        inner = [other for other in shown if one.name in (declared(other).within, declared(other).also_within)]
        if declared(one).within:
            continue
        if inner:
            text = _in_words_of_jobs(declared(one).help)
            made: Any = create_model(  # type: ignore[call-overload]
                f"{operation.__name__}{one.name.capitalize()}",
                __base__=Model,
                __doc__=text,
                **{o.name: _key(o, _kind(o)) for o in inner},
            )
            switch = Annotated[made | None, BeforeValidator(_true_or_options, json_schema_input_type=StrictBool | made)]
            keys[one.name] = switch, Key(default=None, description=text, examples=list(declared(one).examples))
        elif declared(one).kind == "samples":
            said = Key(default=None, description=_described(declared(one)), examples=list(declared(one).examples))
            keys[one.name] = _kind(one) | None, said
            keys[f"{one.name}_file"] = (
                LocalFile | None,
                Key(
                    default=None,
                    description="A UTF-8 file with one sample ID in a line, read when the step runs. Relative to the "
                    "job file.",
                    examples=["withdrawn.txt"],
                ),
            )
        else:
            keys[one.name] = _key(one, _kind(one))
    return keys


def _one_list(step: StepModel) -> StepModel:
    """Check that sample IDs are listed or in a file."""
    if (step.value("samples") is None) == (step.value("samples_file") is None):
        found = "neither" if step.value("samples") is None else "both"
        raise wrong(f"expected samples or samples-file, found {found}")
    return step


def _step_model(operation: type[Operation]) -> type[StepModel]:
    """The model of the step that an operation is."""
    keys, text = _keys(operation), (operation.__doc__ or "").strip().partition("\n")[0]
    has_list = any(declared(one).kind == "samples" for one in fields(operation))
    made: type[StepModel] = create_model(  # type: ignore[call-overload]
        operation.__name__,
        __base__=StepModel,
        __doc__=text,
        __validators__={"_one_list": model_validator(mode="after")(_one_list)} if has_list else {},
        **keys,
    )
    made.operation = operation
    if has_list:
        made.model_config["json_schema_extra"] = {"oneOf": [{"required": ["samples"]}, {"required": ["samples-file"]}]}
    return made


def _loaded(name: str) -> type[Operation] | None:
    """An operation; None of another package that cannot be loaded, of which a job that has it as a step tells."""
    try:
        return operations.find(name)
    except OptionError:
        return None


STEPS: Mapping[str, type[StepModel]] = {
    name: _step_model(found) for name in operations.names() if (found := _loaded(name)) is not None and found.is_step
}
"""The models of steps, by the names of their operations."""


def _true_or_keys(value: Any) -> Any:
    if value is not True and not isinstance(value, dict | BaseModel):
        raise expected("true, or a mapping with its keys")
    return {} if value is True else value


def _shorthand(name: str, model: type[StepModel]) -> Any:
    """What may stand for a step's mapping: the value of its first key, or true if it needs none."""
    operation = model.operation
    firsts = [
        one
        for one in (*operations.arguments(operation), *operations.options(operation))
        if declared(one).job and (declared(one).is_argument or declared(one).short)
    ]
    if not firsts:
        return Annotated[model | None, BeforeValidator(_true_or_keys, json_schema_input_type=StrictBool | model)]
    first = firsts[0]
    known, kind = declared(first), _kind(first)
    key, many = known.key or first.name.replace("_", "-"), _is_list(first.type)
    if len(model.model_fields) == 1 and not many:
        return Annotated[model | None, BeforeValidator(_named(key), json_schema_input_type=_name_input(known))]
    keys = " or ".join(keys_of(model)[:2]) if known.kind == "samples" else f"the key {key}"
    what = f"{known.shorthand}, or a mapping with {keys}"
    inputs = kind.__metadata__[1].json_schema_input_type if many else kind
    kinds = (int if int in get_args(first.type) else str, *([list] if many else []))
    return Annotated[
        model | None,
        BeforeValidator(short(key, what, *kinds), json_schema_input_type=inputs | model),
    ]


def _named(key: str) -> Any:
    def widen(value: Any) -> Any:
        if not isinstance(value, str):
            raise PydanticCustomError("string_type", "expected text")
        return {key: value}

    return widen


def _name_input(known: Declared) -> Any:
    pattern = rf"^[^/]+$|{IS_VARIABLE}" if known.kind == "tag" else None
    return Annotated[str, Key(title="text", pattern=pattern)]


class _OneStep(Model):
    """One step: a mapping with exactly one key, which says what is done."""

    model_config = ConfigDict(title="step", json_schema_extra={"minProperties": 1, "maxProperties": 1})

    @model_validator(mode="before")
    @classmethod
    def _well_indented(cls, value: Any) -> Any:
        """The likeliest mistake: what belongs inside the one key is written beside it."""
        for name in STEPS.keys() & value.keys() if isinstance(value, dict) else ():
            for key in value:
                if key in keys_of(STEPS[name]) and key not in STEPS:
                    raise wrong(f"is a key of {name}; write {name}: {{..., {key}: ...}}", key)
        return value

    @model_validator(mode="after")
    def _one_key(self) -> "_OneStep":
        names = sorted(name.replace("_", "-") for name in self.model_fields_set)
        if len(names) != 1:
            found = f"both {' and '.join(names)}; begin each with a - of its own" if names else "none"
            raise wrong(
                f"a step has one of the keys {' and '.join([', '.join([*STEPS][:-1]), [*STEPS][-1]])}, found {found}"
            )
        return self

    @property
    def what(self) -> StepModel:
        """The one thing that is done."""
        (name,) = self.model_fields_set
        step: StepModel = getattr(self, name)
        return step


_Step: Any = create_model(  # type: ignore[call-overload]
    "_Step",
    __base__=_OneStep,
    __doc__=_OneStep.__doc__,
    **{
        name.replace("-", "_"): (
            _shorthand(name, model),
            Key(default=None, description=model.__doc__, examples=list(model.operation.step_examples)),
        )
        for name, model in STEPS.items()
    },
)


def _is_step(value: Any) -> Any:
    if not isinstance(value, dict | BaseModel):
        raise expected("a step such as append: batch.vcz")
    return value


def _in_order(steps: tuple[_OneStep, ...]) -> tuple[_OneStep, ...]:
    """Check that steps come in the order in which a job does them; see `vczstore.execution.operations.IN_COMMIT`."""
    names: set[str] = set()
    for i, step in enumerate(steps):
        done, before = step.what.operation, steps[max(i - 1, 0)].what.operation
        if done.phase < before.phase:
            why = _AFTER[before.phase]
            raise wrong(f"{why}; put {before.called} after {_after(before.phase, steps)}", i - 1, before.called)
        if done.called == "tag":
            name = step.what.value("name")
            if name in names:
                raise wrong("this tag is there already; a name can be given once", i, "tag")
            names.add(name)
    return steps


_AFTER = {
    OWN_COMMIT: "this has a commit of its own, which follows that of the job",
    CHECKS: "this looks at what the job has committed",
    PUBLISHES: "this shows readers what the job has committed",
    NAMES: "a tag names what the whole job leaves behind",
    EXPORTS: "this hands out what the job has committed",
    CLEANS: "this deletes what the job has left behind",
}
"""Why steps come after those before them in this order."""


def _after(phase: int, steps: Sequence[_OneStep]) -> str:
    others = dict.fromkeys(one.what.operation.called for one in steps if one.what.operation.phase < phase)
    return "all other steps" if phase == NAMES else ", ".join(others)


class _JobFile(Model):
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
    parts: _several(Text) | None = Key(  # type: ignore[valid-type]
        default=None,
        description="The parts of a set of stores, such as one for each chromosome: each takes the place of `{part}` "
        "in the names of the store and of the sources, and what is done is done to all parts or to none. By default "
        "all that are there.",
        examples=[["chr1", "chr2", "chrX"]],
    )
    branch: Annotated[str, Key(title="text"), AfterValidator(_branch_name)] | None = Key(
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
        tuple[Annotated[_Step, BeforeValidator(_is_step)], ...],
        Key(min_length=1, fail_fast=True),
        AfterValidator(_in_order),
    ] = Key(
        description="What is done, in this order; each a mapping with one key.",
        examples=[[{"append": "inbox/*.vcz"}, {"tag": "release-2026-11"}]],
    )

    @model_validator(mode="after")
    def _publishes_its_branch(self) -> "_JobFile":
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
    said = file.validate(_JobFile)
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


# ---- schema and reference -------------------------------------------------------------------


def _kebab(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


class _Schema(GenerateJsonSchema):
    """In the order of the models, and without noise: a title for each key, and null, which no file may hold."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def sort(self, value: dict[str, Any], parent_key: str | None = None) -> dict[str, Any]:
        return value

    def nullable_schema(self, schema: core_schema.NullableSchema) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> dict[str, Any]:
        made = super().default_schema(schema)
        if made.get("default", 0) is None:
            del made["default"]
        return made


def schema() -> dict[str, Any]:
    """Give the JSON Schema of a job file, of draft 2020-12; ``vczstore/job.schema.json`` is its dump."""
    made = _JobFile.model_json_schema(schema_generator=_Schema)
    comment = "an editor uses this for files that begin with: # yaml-language-server: $schema=job.schema.json"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$comment": comment, **made}


_EXAMPLE = """\
store: s3://bucket/cohort          # or {url:, backend-storage:, storage-options:}
executor: threads                  # or {name:, options:}, or the path of an executor file
max-workers: 4
allowed-mem: 2GB
work-dir: work                     # what a run that is stopped has finished is kept here
steps:
  - append: inbox/*.vcz            # one, a list, or a glob
  - append: {source: late.vcz, on-duplicate: skip}
  - update: recalled.vcz           # or {source: recalled.vcz, insert: true}
  - remove: {samples-file: withdrawn.txt, missing-ok: true}
  - recompute: [AC, AN, AF]        # INFO fields, from the genotypes that are there
  - tag: release-${DATE:-draft}
"""
_EXECUTOR_EXAMPLE = """\
name: processes
options: {retries: 1}
allowed-mem: 4GB
"""
_REFERENCE = """\
# Job files

A job file is YAML: a store, the steps that are applied to it, and what runs them. This page is made from the models in
`vczstore/jobs/model.py`, as is the JSON schema for editors, `vczstore/job.schema.json`; `tests/jobs/test_jobfile.py`
says how both are written again.

```yaml title="job.yaml"
{example}```

{tables}## Executor file

{executor_file}

```yaml title="cluster.yaml"
{executor_example}```

{executor_table}
## Paths

Paths are relative to the folder of the file in which they are written, or to the working directory if the job is read
from standard input. A text with `://` in it is a URL and stays as it is. Globs find
local files, and stores by the last part of `s3://`, `gs://` and `az://` URLs: `s3://bucket/inbox/*.vcz`.

## Variables

`${{NAME}}` in a value is replaced by the environment variable, `${{NAME:-default}}` by the default if the variable is
not set or empty. A variable that is not set and has no default is an error. What a variable holds is always text and
never YAML, and is not searched for variables again. `$${{` stands for `${{`. Within `[...]` and `{{...}}`, YAML wants
quotes around a value that has a variable in it.

## On the command line

`--set KEY=VALUE` goes before what the file says: `--set allowed-mem=4GB`, `--set store.backend-storage=icechunk`,
`--set steps.0.append=late.vcz` (steps are counted from 0). The value is read as YAML.

## What is refused

- **Credentials**, by the name of a key or variable (`secret`, `token`, `account-key`, ...) or by the look of a value.
  Backends find them in environment variables or take the instance's role.
- Keys that do not exist, keys that are there twice, empty values.
- YAML anchors, aliases, tags and merge keys; several documents; files that are not UTF-8 or larger than {limit}.

Numbers and booleans are those of YAML 1.2: `NO` and `2026-11-01` are text, `1001` is a number. Where text is expected,
a number needs quotes.
"""


def reference() -> str:
    """Give the reference page of the format in Markdown; ``examples/guide/reference-jobs.md`` is what it returns."""
    job = schema()
    file = ExecutorFile.model_json_schema(schema_generator=_Schema)
    parts = {
        "Keys": job,
        "`store`": job["$defs"]["StoreSpec"],
        "`executor`": job["$defs"]["ExecutorSpec"],
        "`steps`": job["$defs"]["_Step"],
        **{
            f"`{_kebab(name)}`": part
            for name, part in job["$defs"].items()
            if name not in ("StoreSpec", "ExecutorSpec", "_Step") and part.get("type") == "object"
        },
    }
    tables = [f"## {title}\n\n{part['description']}\n\n{_table(part)}\n" for title, part in parts.items()]
    return _REFERENCE.format(
        example=_EXAMPLE,
        tables="".join(tables),
        executor_file=file["description"],
        executor_example=_EXECUTOR_EXAMPLE,
        executor_table=_table(file),
        limit=f"{MAX_BYTES // 2**20} MiB",
    )


def _table(part: dict[str, Any]) -> str:
    rows = ["| key | type | default | meaning | example |", "|---|---|---|---|---|"]
    for key, one in part["properties"].items():
        default = (
            "needed" if key in part.get("required", ()) else f"`{_flow(one['default'])}`" if "default" in one else ""
        )
        examples = "<br>".join(f"`{key}: {_flow(example)}`" for example in one["examples"])
        cells = (f"`{key}`", _type(one), default, one["description"], examples)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _type(one: dict[str, Any]) -> str:
    """What a JSON schema allows, in words; that a variable may stand for it goes without saying."""
    match one:
        case {"title": title}:
            return str(title)
        case {"enum": names}:
            return either_or([f"`{name}`" for name in names])
        case {"anyOf": branches}:
            return "; ".join(_type(branch) for branch in branches if branch.get("pattern") != IS_VARIABLE)
        case {"type": "array"}:
            return "list of steps" if "$ref" in one["items"] else "list of these"
        case {"type": "boolean"}:
            return "`true` or `false`"
    return "mapping"


def _flow(value: Any) -> str:
    """YAML in one line."""
    line = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return line.removesuffix("...\n").strip()
