"""What a job file (``plan.yaml``) says: a store, steps, an executor. Nothing here runs it.

The models below are the one definition of the format: what is accepted, the JSON schema that editors use, and the
reference page ``examples/guide/reference-jobs.md`` all come from them. `vczstore.jobs.yaml_file` reads the file.
"""

import glob
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticCustomError, core_schema

import executors
from vczstore.choices import ABSENT, BACKENDS, DEFAULT_INFO_FIELDS, INFO_FIELDS, NEW_VARIANTS
from vczstore.errors import JobFileError, OptionError
from vczstore.jobs.yaml_file import MAX_BYTES, YamlFile, decode, either_or, keys_of, one_line, read_bytes
from vczstore.sizes import parse_size
from vczstore.stores.locations import is_glob, is_url, literal, parse, split_glob

MAX_SAMPLES_BYTES = 2**28
"""The largest file of sample IDs."""


# ---- what the models are made of ------------------------------------------------------------


def _expected(what: str, hint: str = "") -> PydanticCustomError:
    """The value is not what it should be; the message will add what was found."""
    return PydanticCustomError("expected", "{what}", {"what": what, "hint": hint})


def _wrong(message: str, *at: str | int) -> PydanticCustomError:
    """Something else is wrong, at a place further inside."""
    return PydanticCustomError("wrong", "{message}", {"message": message, "at": at})


def _nearest(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name[:40].lower().replace("_", "-"), names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _one_of(names: Sequence[str]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value not in names:
            raise _expected(either_or(names), _nearest(value, names) if isinstance(value, str) else "")
        return value

    return check


def _short(key: str, what: str, *kinds: type) -> Callable[[Any], Any]:
    """A value of one of these kinds stands for a mapping that has it under this key."""

    def widen(value: Any) -> Any:
        if isinstance(value, kinds):
            return {key: value}
        if not isinstance(value, dict | BaseModel):
            raise _expected(what)
        return value

    return widen


def _named(value: Any) -> Any:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "expected text")
    return {"name": value}


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _workers(value: Any) -> Any:
    # a variable is always text
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,6}", value) else value


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).isascii():
        raise _expected("a size such as 500MB, 2GB or 4GiB")
    try:
        return parse_size(value)
    except OptionError:
        raise _expected("a size such as 500MB, 2GB or 4GiB") from None


def _place(path: str) -> str:
    try:
        parse(path)
    except OptionError as error:
        raise _wrong(str(error)) from None
    return path


def _source(path: str) -> str:
    _place(literal(path))
    if is_url(path) and is_glob(path) and split_glob(path) is None:
        raise _expected("a URL with * and ? in its last part alone, if s3://, gs:// or az://, and without [")
    return path


def _local(path: str) -> str:
    if is_url(path):
        raise _expected("a local file")
    return path


def _tag_name(name: str) -> str:
    if not name.isprintable() or "/" in name:
        raise _expected("a name of printable characters without /")
    return name


def _executor_name(name: str) -> str:
    return name if name.endswith(_YAML) else str(_one_of(executors.NAMES)(name))


_YAML = (".yaml", ".yml")
_ENGINES = (*executors.NAMES, *executors.OTHERS)
_IS_VARIABLE = r"\$\{"


def _choice_schema(names: Sequence[str], *more: dict[str, Any]) -> WithJsonSchema:
    """One of these names, or a variable that may turn out to be one."""
    return WithJsonSchema({"anyOf": [{"enum": list(names)}, *more, {"type": "string", "pattern": _IS_VARIABLE}]})


_EXECUTOR_SCHEMA = _choice_schema(
    executors.NAMES, {"type": "string", "title": "path of an executor file", "pattern": r"\.ya?ml$"}
)
_Text = Annotated[str, Field(min_length=1, title="text")]
_Place = Annotated[str, Field(min_length=1, title="path or URL"), AfterValidator(_place)]
_SourcePlace = Annotated[str, Field(min_length=1, title="path or URL"), AfterValidator(_source)]
_LocalFile = Annotated[str, Field(min_length=1, title="local path"), AfterValidator(_local)]
_Options = Annotated[dict[str, Any], Field(title="mapping")]
_Workers = Annotated[
    int,
    Field(strict=True, ge=1, le=10**6),
    BeforeValidator(_workers),
    WithJsonSchema(
        {
            "title": "whole number",
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 10**6},
                {"type": "string", "pattern": rf"^[0-9]{{1,6}}$|{_IS_VARIABLE}"},
            ],
        }
    ),
]
_Size = Annotated[
    int,
    BeforeValidator(_size),
    WithJsonSchema(
        {
            "title": "size",
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {
                    "type": "string",
                    "pattern": rf"^\s*[0-9]{{1,15}}(\.[0-9]{{1,6}})?\s*([kKmMgGtT][iI]?)?[bB]?\s*$|{_IS_VARIABLE}",
                },
            ],
        }
    ),
]
_Duplicates = Literal["error", "skip", "replace"]
_DUPLICATES = ("error", "skip", "replace")
_Sources = Annotated[
    tuple[_SourcePlace, ...],
    Field(min_length=1, fail_fast=True),
    BeforeValidator(_listed, json_schema_input_type=_SourcePlace | Annotated[list[_SourcePlace], Field(min_length=1)]),
]
_Samples = Annotated[
    tuple[_Text, ...],
    Field(min_length=1, fail_fast=True),
    BeforeValidator(_listed, json_schema_input_type=_Text | Annotated[list[_Text], Field(min_length=1)]),
]


_InfoField = Annotated[str, AfterValidator(_one_of(INFO_FIELDS)), _choice_schema(INFO_FIELDS)]
_Fields = Annotated[
    tuple[_InfoField, ...],
    Field(min_length=1, fail_fast=True),
    BeforeValidator(_listed, json_schema_input_type=_InfoField | Annotated[list[_InfoField], Field(min_length=1)]),
]


class _Model(BaseModel):
    """What all models share: frozen, keys in kebab-case, no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=lambda name: name.replace("_", "-"))

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        """A key that does not exist says more than anything that is missing or wrong because of it."""
        if isinstance(value, dict):
            keys = keys_of(cls)
            for key in value:
                if key not in keys:
                    hint = _nearest(key, keys) or f"; {'the keys are' if keys[1:] else 'the key is'} {', '.join(keys)}"
                    raise _wrong(f"no such key{hint}", key)
        return value


# ---- the models -----------------------------------------------------------------------------


class StoreSpec(_Model):
    """The store that is edited."""

    url: _Place = Field(
        description="Where the store is. A local path is relative to the job file.",
        examples=["cohort.icechunk", "s3://bucket/cohort"],
    )
    backend_storage: Annotated[str | None, AfterValidator(_one_of(BACKENDS)), _choice_schema(BACKENDS)] = Field(
        default=None, description="The backend of the store; auto-detected if left out.", examples=["icechunk"]
    )
    storage_options: _Options = Field(
        default_factory=dict,
        description="What reaches an object store: `region`, `endpoint`, `anonymous`, `allow_http`, `requester_pays` "
        "(S3), `account` (Azure). Sources of the same kind (`s3://`, ...) are reached by them too; sources of another "
        "kind by the environment alone. Never credentials.",
        examples=[{"region": "eu-west-2"}],
    )
    no_lock: StrictBool = Field(
        default=False,
        description="Write without the lock of the store, where storage has none. Nothing else may write to it then.",
        examples=[True],
    )


class ExecutorSpec(_Model):
    """What runs the tasks."""

    name: Annotated[str, AfterValidator(_executor_name), _EXECUTOR_SCHEMA] = Field(
        description="The executor, or the path of an executor file, relative to the job file.",
        examples=["processes", "cluster.yaml"],
    )
    options: _Options = Field(
        default_factory=dict,
        description="What this executor takes beyond what every executor takes. Options of an executor file stay, "
        "unless they are named here.",
        examples=[{"retries": 1}],
    )


class ExecutorFile(_Model):
    """An executor file: an engine and its machines, for many jobs. What a job says itself wins."""

    name: Annotated[str, AfterValidator(_one_of(_ENGINES)), _choice_schema(_ENGINES)] = Field(
        description="The executor. Those beyond the ones a job can name are Cubed's, with Cubed's options.",
        examples=["processes"],
    )
    options: _Options = Field(
        default_factory=dict,
        description="What this executor takes beyond what every executor takes.",
        examples=[{"retries": 1}],
    )
    allowed_mem: _Size | None = Field(default=None, description="What a task may use.", examples=["2GB"])
    reserved_mem: _Size | None = Field(default=None, description="What of it is Python's own.", examples=["200MB"])
    work_dir: _Place | None = Field(
        default=None,
        description="As in a job file. A local path is relative to the executor file.",
        examples=["/var/tmp/vczstore"],
    )


class Harmonise(_Model):
    """Express sources over the store's variants and alleles."""

    allow_new_alleles: StrictBool = Field(
        default=False, description="Let alleles come in that the store has not seen.", examples=[True]
    )
    absent: Annotated[str, BeforeValidator(_one_of(ABSENT)), _choice_schema(ABSENT)] = Field(
        default="missing",
        description="What genotypes are where a source lacks a variant. Other fields are missing.",
        examples=["reference"],
    )
    new_variants: Annotated[str, BeforeValidator(_one_of(NEW_VARIANTS)), _choice_schema(NEW_VARIANTS)] = Field(
        default="refuse", description="What is done about variants that the store lacks.", examples=["drop"]
    )
    haploid_contigs: Annotated[list[_Text], Field(title="list of text")] | None = Field(
        default=None,
        description="Where those genotypes have one allele; X, chrX, Y, chrY, M, MT and chrM by default.",
        examples=[["chrX", "chrM"]],
    )
    drop_fields: Annotated[list[_Text], Field(title="list of text")] = Field(
        default_factory=list,
        description="The same as `drop-fields` of the step.",
        examples=[["LAD", "LPL"]],
    )
    numbers: Annotated[list[_Text], Field(title="list of text")] = Field(
        default_factory=list,
        description="What FORMAT fields go by whose header says Number=., each as NAME=R, NAME=A or NAME=G.",
        examples=[["AD=R"]],
    )


def _true_or_rules(value: Any) -> Any:
    if value is True:
        return {}
    if value is False:
        return None
    if value is not None and not isinstance(value, dict | BaseModel):
        raise _expected("true, false, or a mapping such as {allow-new-alleles: true}")
    return value


class Append(_Model):
    """Append the samples of other VCZs, in the order in which these are named."""

    sources: _Sources = Field(
        alias="source",
        description="One VCZ or a list of them, never written to. Local paths are relative to the job file. Globs "
        "such as `*` and `**` are expanded when the step runs, in sorted order, and may find nothing; they find "
        "folders, and files whose names end in `.zip`, `.vcz` or `.zarr`; for a literal "
        "`*`, `?` or `[` write `[*]`, `[?]` or `[[]`. In an object store, `*` and `?` find stores by the last part of "
        "a URL.",
        examples=["inbox/*.vcz", ["early.vcz", "s3://bucket/late.vcz"]],
    )
    on_duplicate: Annotated[_Duplicates, BeforeValidator(_one_of(_DUPLICATES)), _choice_schema(_DUPLICATES)] = Field(
        default="error",
        description="What to do about samples that the store has already: fail, leave out the incoming ones, or let "
        "them replace the store's.",
        examples=["skip"],
    )
    harmonise: Annotated[
        Harmonise | None, BeforeValidator(_true_or_rules, json_schema_input_type=StrictBool | Harmonise)
    ] = Field(
        default=None,
        description="Express the sources over the store's variants and alleles, which they need to have otherwise. "
        "Not with on-duplicate: replace, and with new alleles in one step of a job alone.",
        examples=[True, {"allow-new-alleles": True, "absent": "reference"}],
    )
    drop_fields: Annotated[list[_Text], Field(title="list of text")] = Field(
        default_factory=list,
        description="FORMAT fields that do not come in where they would be refused: what the store lacks is left out, "
        "and what it has is missing for the samples of a source that lacks it, or whose values do not fit.",
        examples=[["PS"]],
    )
    add_fields: Annotated[list[_Text], Field(title="list of text")] = Field(
        default_factory=list,
        description="FORMAT fields that a source has and the store lacks, which the store gets: the samples that it "
        "has are missing there.",
        examples=[["PS"]],
    )

    @model_validator(mode="after")
    def _goes_together(self) -> "Append":
        if self.harmonise is not None and self.on_duplicate == "replace":
            raise _wrong(
                "does not go with on-duplicate: replace; harmonise the source with vczstore normalise", "harmonise"
            )
        return self


class Update(_Model):
    """Replace the values of samples that the store has, with those of other VCZs."""

    sources: _Sources = Field(
        alias="source", description="As in `append`.", examples=["recalled.vcz", ["a.vcz", "b.vcz"]]
    )
    insert: StrictBool = Field(
        default=False,
        description="Append the samples that the store does not have; else they are an error.",
        examples=[True],
    )
    drop_fields: Annotated[list[_Text], Field(title="list of text")] = Field(
        default_factory=list,
        description="FORMAT fields that do not come in where they would be refused: those that the store lacks are "
        "left out, those that a source lacks, or whose values do not fit, become missing for its samples.",
        examples=[["PS"]],
    )
    add_fields: Annotated[list[_Text], Field(title="list of text")] = Field(
        default_factory=list,
        description="FORMAT fields that a source has and the store lacks, which the store gets: the other samples are "
        "missing there.",
        examples=[["PS"]],
    )


class Remove(_Model):
    """Remove samples: their values become missing and their IDs empty."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["samples"]}, {"required": ["samples-file"]}]})

    samples: _Samples | None = Field(
        default=None,
        description="One sample ID or a list of them. IDs that look like numbers need quotes.",
        examples=["NA00002", ["NA00002", "1001"]],
    )
    samples_file: _LocalFile | None = Field(
        default=None,
        description="A UTF-8 file with one sample ID in a line, read when the step runs. Relative to the job file.",
        examples=["withdrawn.txt"],
    )
    missing_ok: StrictBool = Field(
        default=False,
        description="Leave out the IDs that the store does not have; else they are an error.",
        examples=[True],
    )

    @model_validator(mode="after")
    def _one_list(self) -> "Remove":
        if (self.samples is None) == (self.samples_file is None):
            raise _wrong(f"expected samples or samples-file, found {'neither' if self.samples is None else 'both'}")
        return self


class Recompute(_Model):
    """Compute INFO fields from the genotypes of the samples that are there. Nothing to do if they are current."""

    fields: _Fields = Field(
        default=DEFAULT_INFO_FIELDS,
        description="One field or a list of them: " + ", ".join(f"`{name}`" for name in INFO_FIELDS) + ", which mean "
        "what `bcftools +fill-tags` means by them.",
        examples=["AC", ["AC", "AN", "HWE"]],
    )


class Tag(_Model):
    """Name the state in which the whole job leaves the store. Needs Icechunk."""

    name: Annotated[_Text, AfterValidator(_tag_name)] = Field(
        description="A name of printable characters without `/`.", examples=["release-2026-11"]
    )


type Step = Append | Update | Remove | Recompute | Tag

_TagNameInput = Annotated[str, Field(title="text", pattern=rf"^[^/]+$|{_IS_VARIABLE}")]
_SOURCES_ARE = "a path, a list of paths, or a mapping with the key source"
_SourceInput = _SourcePlace | Annotated[list[_SourcePlace], Field(min_length=1)]
_SampleInput = _Text | Annotated[list[_Text], Field(min_length=1)]
_FieldInput = _InfoField | Annotated[list[_InfoField], Field(min_length=1)]


class _Step(_Model):
    """One step: a mapping with exactly one key, which says what is done."""

    model_config = ConfigDict(title="step", json_schema_extra={"minProperties": 1, "maxProperties": 1})

    append: Annotated[
        Append | None,
        BeforeValidator(_short("source", _SOURCES_ARE, str, list), json_schema_input_type=_SourceInput | Append),
    ] = Field(
        default=None,
        description="Append the samples of other VCZs.",
        examples=["inbox/*.vcz", ["a.vcz", "b.vcz"], {"source": "late.vcz", "on-duplicate": "skip"}],
    )
    update: Annotated[
        Update | None,
        BeforeValidator(_short("source", _SOURCES_ARE, str, list), json_schema_input_type=_SourceInput | Update),
    ] = Field(
        default=None,
        description="Replace the values of samples that the store has.",
        examples=["recalled.vcz", {"source": "recalled.vcz", "insert": True}],
    )
    remove: Annotated[
        Remove | None,
        BeforeValidator(
            _short("samples", "a sample ID, a list of them, or a mapping with samples or samples-file", str, list),
            json_schema_input_type=_SampleInput | Remove,
        ),
    ] = Field(
        default=None,
        description="Remove samples.",
        examples=["NA00002", ["NA00002", "NA00017"], {"samples-file": "withdrawn.txt", "missing-ok": True}],
    )
    recompute: Annotated[
        Recompute | None,
        BeforeValidator(
            _short("fields", "an INFO field, a list of them, or a mapping with the key fields", str, list),
            json_schema_input_type=_FieldInput | Recompute,
        ),
    ] = Field(
        default=None,
        description="Compute INFO fields from the genotypes that are there.",
        examples=["AC", ["AC", "AN"], {"fields": ["AC", "AN", "HWE"]}],
    )
    tag: Annotated[
        Tag | None,
        BeforeValidator(_named, json_schema_input_type=_TagNameInput),
    ] = Field(
        default=None,
        description="Name the state in which the job leaves the store; after all other steps.",
        examples=["release-2026-11"],
    )

    @model_validator(mode="before")
    @classmethod
    def _well_indented(cls, value: Any) -> Any:
        """The likeliest mistake: what belongs inside the one key is written beside it."""
        models: dict[str, type[_Model]] = {
            "append": Append,
            "update": Update,
            "remove": Remove,
            "recompute": Recompute,
        }
        for name in models.keys() & value.keys() if isinstance(value, dict) else ():
            for key in value:
                if key in keys_of(models[name]):
                    raise _wrong(f"is a key of {name}; write {name}: {{..., {key}: ...}}", key)
        return value

    @model_validator(mode="after")
    def _one_key(self) -> "_Step":
        names = sorted(self.model_fields_set)
        if len(names) != 1:
            found = f"both {' and '.join(names)}; begin each with a - of its own" if names else "none"
            raise _wrong(f"a step has one of the keys append, update, remove, recompute and tag, found {found}")
        return self

    @property
    def what(self) -> Step:
        """The one thing that is done."""
        (step,) = (one for one in (self.append, self.update, self.remove, self.recompute, self.tag) if one is not None)
        return step


def _is_step(value: Any) -> Any:
    if not isinstance(value, dict | BaseModel):
        raise _expected("a step such as append: batch.vcz")
    return value


def _tags_last(steps: tuple[_Step, ...]) -> tuple[_Step, ...]:
    names: set[str] = set()
    for i, step in enumerate(steps):
        match step.what:
            case Tag(name=name):
                if name in names:
                    raise _wrong("this tag is there already; a name can be given once", i, "tag")
                names.add(name)
            case _ if names:
                raise _wrong(
                    "a tag names what the whole job leaves behind; put tag after all other steps", i - 1, "tag"
                )
    return steps


class _JobFile(_Model):
    """A job of vczstore: steps that are applied to one store of a cohort, in this order."""

    model_config = ConfigDict(title="vczstore job")

    store: Annotated[
        StoreSpec,
        BeforeValidator(
            _short("url", "a path, a URL, or a mapping with the key url", str),
            json_schema_input_type=_Place | StoreSpec,
        ),
    ] = Field(
        description="The VCZ that is edited.",
        examples=["cohort.icechunk", {"url": "s3://bucket/cohort", "backend-storage": "icechunk"}],
    )
    source_storage_options: _Options = Field(
        default_factory=dict,
        description="What reaches sources in object stores, if that is not what reaches the store: with any of these, "
        "sources take none of the store's. Never credentials.",
        examples=[{"region": "us-east-1", "anonymous": True}],
    )
    executor: Annotated[
        ExecutorSpec,
        BeforeValidator(
            _short("name", "an executor, the path of an executor file, or a mapping with the key name", str),
            json_schema_input_type=Annotated[str, _EXECUTOR_SCHEMA] | ExecutorSpec,
        ),
    ] = Field(
        default="threads",
        validate_default=True,
        description="What runs the tasks.",
        examples=["processes", "cluster.yaml", {"name": "threads", "options": {"retries": 1}}],
    )
    max_workers: _Workers | None = Field(
        default=None,
        description="How many tasks run at once; one per core by default, 100 on Modal.",
        examples=[4],
    )
    allowed_mem: _Size | None = Field(default=None, description="What a task may use.", examples=["2GB"])
    reserved_mem: _Size | None = Field(default=None, description="What of it is Python's own.", examples=["200MB"])
    work_dir: _Place | None = Field(
        default=None,
        description="A folder on this machine in which a job on Icechunk keeps what its tasks have finished, until it "
        "is committed: the next run of the same job goes on from there if this one is killed or fails. That takes one "
        "file for a store, which may hold sample IDs and which its user alone may read. Without a folder, or with the "
        "URL of one, nothing is kept; nor on plain Zarr, where the step in which a run was stopped is done again. "
        "Cubed's intermediate data would go there too, of which no step has any yet. A local path is relative to the "
        "job file.",
        examples=["work"],
    )
    steps: Annotated[
        tuple[Annotated[_Step, BeforeValidator(_is_step)], ...],
        Field(min_length=1, fail_fast=True),
        AfterValidator(_tags_last),
    ] = Field(
        description="What is done, in this order; each a mapping with one key.",
        examples=[[{"append": "inbox/*.vcz"}, {"tag": "release-2026-11"}]],
    )


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
    max_workers, allowed_mem, reserved_mem, work_dir
        As in `vczstore.api.Options`, sizes in bytes; None where neither the job nor its executor file says.
    """

    path: str
    store: StoreSpec
    executor: ExecutorSpec
    max_workers: int | None
    allowed_mem: int | None
    reserved_mem: int | None
    work_dir: str | None
    steps: tuple[Step, ...]
    source_storage_options: Mapping[str, Any] = field(default_factory=dict)


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
    if executor.name.endswith(_YAML):
        try:
            machines = load_executor(_resolve(file.folder, executor.name), environ)
        except JobFileError as error:
            raise file.error(("executor",), str(error)) from None
        executor = ExecutorSpec(name=machines.name, options=machines.options | executor.options)
    else:
        machines = ExecutorFile(name=executor.name)
    return Job(
        path=file.path,
        store=said.store.model_copy(update={"url": _resolve(file.folder, said.store.url)}),
        executor=executor,
        max_workers=said.max_workers,
        allowed_mem=machines.allowed_mem if said.allowed_mem is None else said.allowed_mem,
        reserved_mem=machines.reserved_mem if said.reserved_mem is None else said.reserved_mem,
        work_dir=machines.work_dir if said.work_dir is None else _resolve(file.folder, said.work_dir),
        steps=tuple(_resolve_step(file.folder, step.what) for step in said.steps),
        source_storage_options=said.source_storage_options,
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
        key: _resolve(file.folder, value) if key == "config-file" and isinstance(value, str) else value
        for key, value in said.options.items()
    }
    work_dir = None if said.work_dir is None else _resolve(file.folder, said.work_dir)
    return said.model_copy(update={"options": options, "work_dir": work_dir})


def expand_sources(step: Append | Update) -> list[str]:
    """
    Find the sources of a step: globs in sorted order, each source once.

    A glob may find nothing, but the folder in which it looks has to be there. A path that is none is taken as it is,
    whether something is there or not. URLs are left to those who can list object stores.

    Raises
    ------
    JobFileError
        If the folder of a glob does not exist.
    """
    found: dict[str, str] = {}
    for source in step.sources:
        if is_url(source) or not is_glob(source):
            paths = [source if is_url(source) else literal(source)]
        else:
            _require_folder(source)
            paths = sorted(filter(_may_be_a_store, glob.glob(source, recursive=True)))
        for path in paths:
            found.setdefault(path if is_url(path) else os.path.realpath(path), path)
    return list(found.values())


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


def read_samples(step: Remove) -> list[str]:
    """
    Say which samples a step removes, from its list or its file.

    Raises
    ------
    JobFileError
        If the file cannot be read, or is not UTF-8.
    """
    if step.samples_file is None:
        return list(step.samples or ())
    name = one_line(step.samples_file)
    text = decode(read_bytes(step.samples_file, name, MAX_SAMPLES_BYTES), name)
    return [line.strip() for line in text.splitlines() if line.strip()]


def _resolve(folder: str, path: str) -> str:
    return path if is_url(path) else os.path.join(folder, path)


def _resolve_step(folder: str, step: Step) -> Step:
    match step:
        case Append(sources=sources) | Update(sources=sources):
            # the folder's own name is no glob
            folder = glob.escape(folder)
            return step.model_copy(update={"sources": tuple(_resolve(folder, source) for source in sources)})
        case Remove(samples_file=str(file)):
            return step.model_copy(update={"samples_file": _resolve(folder, file)})
    return step


# ---- schema and reference -------------------------------------------------------------------


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
from standard input. Whatever has `://` in it is a URL and stays as it is. Globs find
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
            f"`{name}`": job["$defs"][name.capitalize()]
            for name in ("append", "harmonise", "update", "remove", "recompute")
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
            return "; ".join(_type(branch) for branch in branches if branch.get("pattern") != _IS_VARIABLE)
        case {"type": "array"}:
            return "list of steps" if "$ref" in one["items"] else "list of these"
        case {"type": "boolean"}:
            return "`true` or `false`"
    return "mapping"


def _flow(value: Any) -> str:
    """YAML in one line."""
    line = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return line.removesuffix("...\n").strip()
