"""What a job file (``plan.yaml``) says: a store, steps, an executor. Nothing here runs it.

The models below are the one definition of the format: what is accepted, the JSON schema that editors use, and the
reference page ``examples/JOBS.md`` all come from them. Reading goes in one direction::

    bytes -> YAML events -> _Node (value, line) -> --set -> credentials refused, ${VAR} expanded -> models -> Job

YAML is read as events, so that depth and size are bounded before anything is built, and every value keeps its line.
"""

import glob
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema

import executors
from vczstore.choices import BACKENDS
from vczstore.errors import JobFileError, OptionError
from vczstore.sizes import parse_size

MAX_BYTES = 2**20
"""The largest job file; what its variables expand to may be as much again."""
MAX_SAMPLES_BYTES = 2**28
"""The largest file of sample IDs."""
MAX_DEPTH = 20
MAX_VALUES = 100_000
STANDARD_INPUT = "-"

type _Path = tuple[str | int, ...]
"""Where a value is: ``("steps", 1, "append")``."""


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


def _or(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1])] * (len(names) > 1) + [names[-1]])


def _one_of(names: Sequence[str]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value not in names:
            raise _expected(_or(names), _nearest(value, names) if isinstance(value, str) else "")
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


def _is_url(path: str) -> bool:
    return "://" in path


def _source(path: str) -> str:
    # the ? of a web address is no glob
    if _is_url(path) and re.search(r"[*\[]" if path.startswith("http") else r"[*?\[]", path):
        raise _expected("a URL without *, ? and [, since only local folders can be searched")
    return path


def _local(path: str) -> str:
    if _is_url(path):
        raise _expected("a local file")
    return path


def _tag_name(name: str) -> str:
    if not name.isprintable() or "/" in name:
        raise _expected("a name of printable characters without /")
    return name


def _executor_name(name: str) -> str:
    return name if name.endswith(_YAML) else str(_one_of(executors.NAMES)(name))


_YAML = (".yaml", ".yml")
_IS_VARIABLE = r"\$\{"


def _choice_schema(names: Sequence[str], *more: dict[str, Any]) -> WithJsonSchema:
    """One of these names, or a variable that may turn out to be one."""
    return WithJsonSchema({"anyOf": [{"enum": list(names)}, *more, {"type": "string", "pattern": _IS_VARIABLE}]})


_EXECUTOR_SCHEMA = _choice_schema(
    executors.NAMES, {"type": "string", "title": "path of an executor file", "pattern": r"\.ya?ml$"}
)
_Text = Annotated[str, Field(min_length=1, title="text")]
_Place = Annotated[str, Field(min_length=1, title="path or URL")]
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


def _keys(model: type[BaseModel]) -> list[str]:
    return [one.alias or name for name, one in model.model_fields.items()]


class _Model(BaseModel):
    """What all models share: frozen, keys in kebab-case, no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=lambda name: name.replace("_", "-"))

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        """A key that does not exist says more than anything that is missing or wrong because of it."""
        if isinstance(value, dict):
            keys = _keys(cls)
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
        default=None, description="The backend of the store; found out when left out.", examples=["icechunk"]
    )
    storage_options: _Options = Field(
        default_factory=dict,
        description="Passed on to the backend that opens a URL. Never credentials.",
        examples=[{"region": "eu-west-2"}],
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

    name: Annotated[str, AfterValidator(_one_of(executors.NAMES)), _choice_schema(executors.NAMES)] = Field(
        description="The executor.", examples=["processes"]
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
        description="Folder for intermediate data. A local path is relative to the executor file.",
        examples=["s3://bucket/tmp"],
    )


class Append(_Model):
    """Append the samples of other VCZs, in the order in which these are named."""

    sources: _Sources = Field(
        alias="source",
        description="One VCZ or a list of them, never written to. Local paths are relative to the job file. Globs "
        "such as `*` and `**` are expanded when the step runs, in sorted order, and may find nothing; for a literal "
        "`*`, `?` or `[` write `[*]`, `[?]` or `[[]`.",
        examples=["inbox/*.vcz", ["early.vcz", "s3://bucket/late.vcz"]],
    )
    on_duplicate: Annotated[_Duplicates, BeforeValidator(_one_of(_DUPLICATES)), _choice_schema(_DUPLICATES)] = Field(
        default="error",
        description="What to do about samples that the store has already: fail, leave out the incoming ones, or let "
        "them replace the store's.",
        examples=["skip"],
    )


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


class Tag(_Model):
    """Name the state in which the whole job leaves the store. Needs Icechunk."""

    name: Annotated[_Text, AfterValidator(_tag_name)] = Field(
        description="A name of printable characters without `/`.", examples=["release-2026-11"]
    )


type Step = Append | Update | Remove | Tag

_TagNameInput = Annotated[str, Field(title="text", pattern=rf"^[^/]+$|{_IS_VARIABLE}")]
_SOURCES_ARE = "a path, a list of paths, or a mapping with the key source"
_SourceInput = _SourcePlace | Annotated[list[_SourcePlace], Field(min_length=1)]
_SampleInput = _Text | Annotated[list[_Text], Field(min_length=1)]


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
        models: dict[str, type[_Model]] = {"append": Append, "update": Update, "remove": Remove}
        for name in models.keys() & value.keys() if isinstance(value, dict) else ():
            for key in value:
                if key in _keys(models[name]):
                    raise _wrong(f"is a key of {name}; write {name}: {{..., {key}: ...}}", key)
        return value

    @model_validator(mode="after")
    def _one_key(self) -> "_Step":
        names = sorted(self.model_fields_set)
        if len(names) != 1:
            found = f"both {' and '.join(names)}; begin each with a - of its own" if names else "none"
            raise _wrong(f"a step has one of the keys append, update, remove and tag, found {found}")
        return self

    @property
    def what(self) -> Step:
        """The one thing that is done."""
        (step,) = (one for one in (self.append, self.update, self.remove, self.tag) if one is not None)
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
        default=None, description="How many tasks run at once; one for each core by default.", examples=[4]
    )
    allowed_mem: _Size | None = Field(default=None, description="What a task may use.", examples=["2GB"])
    reserved_mem: _Size | None = Field(default=None, description="What of it is Python's own.", examples=["200MB"])
    work_dir: _Place | None = Field(
        default=None,
        description="Folder for intermediate data. A local path is relative to the job file.",
        examples=["s3://bucket/tmp"],
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
    file = _File.read(os.fspath(path), overrides, environ)
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
    )


def load_executor(path: str | os.PathLike[str], environ: Mapping[str, str] = os.environ) -> ExecutorFile:
    """
    Read an executor file.

    Raises
    ------
    JobFileError
        As `load` does.
    """
    file = _File.read(os.fspath(path), (), environ)
    said = file.validate(ExecutorFile)
    if said.work_dir is None:
        return said
    return said.model_copy(update={"work_dir": _resolve(file.folder, said.work_dir)})


def expand_sources(step: Append | Update) -> list[str]:
    """
    Find the sources of a step: globs in sorted order, each source once.

    A glob may find nothing. A path that is none is taken as it is, whether something is there or not.
    """
    found: dict[str, str] = {}
    for source in step.sources:
        literal = re.sub(r"\[([*?[])\]", "", source)
        if _is_url(source) or not glob.has_magic(literal):
            paths = [source if _is_url(source) else re.sub(r"\[([*?[])\]", r"\1", source)]
        else:
            paths = sorted(glob.glob(source, recursive=True))
        for path in paths:
            found.setdefault(path if _is_url(path) else os.path.realpath(path), path)
    return list(found.values())


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
    name = _one_line(step.samples_file)
    text = _decode(_read(step.samples_file, name, MAX_SAMPLES_BYTES), name)
    return [line.strip() for line in text.splitlines() if line.strip()]


def _resolve(folder: str, path: str) -> str:
    return path if _is_url(path) else os.path.join(folder, path)


def _resolve_step(folder: str, step: Step) -> Step:
    match step:
        case Append(sources=sources) | Update(sources=sources):
            # the folder's own name is no glob
            folder = glob.escape(folder)
            return step.model_copy(update={"sources": tuple(_resolve(folder, source) for source in sources)})
        case Remove(samples_file=str(file)):
            return step.model_copy(update={"samples_file": _resolve(folder, file)})
    return step


# ---- files ----------------------------------------------------------------------------------


def _one_line(text: str) -> str:
    """A name for a message: as it is, unless it would break or garble the line."""
    return text if text.isprintable() else ascii(text)


def _read(path: str, name: str, limit: int) -> bytes:
    try:
        if path == STANDARD_INPUT:
            content = b"" if sys.stdin is None else sys.stdin.buffer.read(limit + 1)
        else:
            with Path(path).open("rb") as file:
                content = file.read(limit + 1)
    except IsADirectoryError:
        raise JobFileError(f"{name}: is a folder; name a file") from None
    except OSError as error:
        raise JobFileError(f"{name}: cannot be read ({error.strerror or type(error).__name__})") from None
    except ValueError:  # a NUL in the path, or standard input closed
        raise JobFileError(f"{name}: cannot be read") from None
    if len(content) > limit:
        raise JobFileError(f"{name}: is larger than {limit:,} bytes, which is more than anybody writes by hand")
    return content


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise JobFileError(f"{name}:{line}: is no UTF-8 text; save it as UTF-8") from None


# ---- YAML -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    """A value, and where it is written."""

    value: Any
    """Text, a number, a boolean or None; or nodes, in a list or a dict."""
    line: str
    text: str = ""
    """A scalar as it is written."""

    def plain(self) -> Any:
        match self.value:
            case dict() as entries:
                return {key: node.plain() for key, node in entries.items()}
            case list() as items:
                return [node.plain() for node in items]
        return self.value

    def walk(self, path: _Path = ()) -> Iterator[tuple[_Path, "_Node"]]:
        """Every node, outer before inner, in the order of the file."""
        yield path, self
        match self.value:
            case dict() as entries:
                for key, node in entries.items():
                    yield from node.walk((*path, key))
            case list() as items:
                for i, node in enumerate(items):
                    yield from node.walk((*path, i))

    @property
    def found(self) -> str:
        """How a message calls the value. What a variable held is not said: nobody wrote it into the file."""
        match self.value:
            case dict() as entries:
                return "a mapping" if entries else "an empty mapping"
            case list() as items:
                return "a list" if items else "an empty list"
            case str():
                return f"{self.text[:40]!r}" + "..." * (len(self.text) > 40)
            case bool():
                return f"{self.text}, which is true or false in YAML"
        return f"{self.text}, which is a number in YAML"


_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NUMBER = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
"""Characters that end in no path, name or ID that anybody wants."""


class _Yaml:
    """One document, built from events. What only makes files hard to check is refused: aliases, tags, merge keys."""

    def __init__(self, text: str, name: str, line: str | None = None) -> None:
        self.text = text
        self.name = name
        self.line = line
        self.values = 0

    def root(self) -> _Node | None:
        """The document, None if there is nothing in it."""
        try:
            events = yaml.parse(self.text, Loader=yaml.SafeLoader)
            next(events)
            first = next(events)
            if isinstance(first, yaml.StreamEndEvent):
                return None
            root = self.node(next(events), events, 0)
            next(events)
            after = next(events)
            if not isinstance(after, yaml.StreamEndEvent):
                raise self.error(after, "a second document begins; put all into one")
        except yaml.reader.ReaderError as error:
            line = self.line or self.text.count("\n", 0, error.position) + 1
            raise JobFileError(f"{self.name}:{line}: has a control character, which is not allowed in YAML") from None
        except yaml.MarkedYAMLError as error:
            if error.context == "while scanning an alias":
                raise self.error(error, _ALIASES) from None
            raise self.error(error, f"is not YAML: {error.problem}") from None
        except (ValueError, OverflowError) as error:  # an escape or a directive beyond all numbers
            if isinstance(error, JobFileError):
                raise
            where = self.name if self.line is None else f"{self.name}:{self.line}"
            raise JobFileError(f"{where}: is not YAML: a number is out of range") from None
        return None if root.value is None else root

    def error(self, where: yaml.Event | yaml.MarkedYAMLError, message: str) -> JobFileError:
        mark = where.problem_mark if isinstance(where, yaml.MarkedYAMLError) else where.start_mark
        line = self.line or (1 if mark is None else mark.line + 1)
        return JobFileError(f"{self.name}:{line}: {_one_line(message)}")

    def node(self, event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> _Node:
        self.values += 1
        if self.values > MAX_VALUES:
            raise self.error(event, f"there are more than {MAX_VALUES:,} values; put sample IDs into a file")
        if depth > MAX_DEPTH:
            raise self.error(event, f"lists and mappings are more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise self.error(event, _ALIASES)
        if getattr(event, "tag", None) is not None:
            raise self.error(event, "YAML tags (!name) are not allowed; put text that begins with ! in quotes")
        line = self.line or str(event.start_mark.line + 1 if event.start_mark else 1)
        match event:
            case yaml.SequenceStartEvent():
                items = []
                while not isinstance(event := next(events), yaml.SequenceEndEvent):
                    items.append(self.node(event, events, depth + 1))
                return _Node(items, line)
            case yaml.MappingStartEvent():
                return _Node(self.entries(events, depth), line)
            case yaml.ScalarEvent():
                return _Node(self.scalar(event), line, event.value)
        raise AssertionError(event)

    def entries(self, events: Iterator[yaml.Event], depth: int) -> dict[str, _Node]:
        entries: dict[str, _Node] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            name = self.node(event, events, depth + 1)
            if isinstance(name.value, dict | list):
                raise self.error(event, "a key is a word, not a list or a mapping")
            key = name.text
            shown = _key(key)
            if _UNFIT.search(key):
                raise self.error(event, f"the key {shown} has a control character or half a character")
            if key == "<<":
                raise self.error(event, "merge keys (<<) are not allowed; write the keys out")
            if key in entries:
                raise self.error(event, f"the key {shown} is there already, in line {entries[key].line}")
            entries[key] = self.node(next(events), events, depth + 1)
            entries[key].line = name.line
        return entries

    def scalar(self, event: yaml.ScalarEvent) -> str | int | float | bool | None:
        """The core schema of YAML 1.2, in which ``NO`` is text, as is a date."""
        text: str = event.value
        if _UNFIT.search(text):
            raise self.error(event, "a text has a control character or half a character")
        if not event.implicit[0]:  # quoted
            return text
        if text in _NULLS:
            return None
        if text in _BOOLS:
            return _BOOLS[text]
        if not _NUMBER.fullmatch(text):
            return text
        # int() of many digits takes for ever, or fails
        if len(text) > 18 or not math.isfinite(float(text)):
            raise self.error(event, "a number has too many digits; put quotes around it if it is text")
        return float(text) if re.search("[.eE]", text) else int(text)


_ALIASES = "YAML anchors and aliases (&name, *name) are not allowed; put text that begins with & or * in quotes"


# ---- credentials ----------------------------------------------------------------------------

_NO_CREDENTIALS = (
    "credentials do not belong here; give them in environment variables or by the instance's role, "
    "which the backends read themselves"
)
_CREDENTIAL_WORDS = re.compile(
    "secret|password|passwd|passphrase|pwd|token|credential|authorization|connectionstring"
    "|(?:access|account|shared|private|api|storage|encryption|signing)key"
)
_CREDENTIAL_VALUES = re.compile(
    r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}"  # access key IDs of AWS
    r"|://[^/?#\s:@]*:[^/?#\s@]*@"  # a URL's user and password
    r"|-----BEGIN"
    r"|(?i:(?:^|[?&;\s])(?:sig|x-amz-signature|x-goog-signature)=)"
)


def _is_credential_name(name: str) -> bool:
    words = re.findall("[a-z0-9]+", re.sub("([a-z0-9])([A-Z])", r"\1 \2", name).lower())
    return "sas" in words or _CREDENTIAL_WORDS.search("".join(words)) is not None


def _is_credential(text: str) -> bool:
    if _CREDENTIAL_VALUES.search(text):
        return True
    return any(_is_credential_name(name) for name in re.findall(r"[?&;]([\w.-]+)=", text))


# ---- a file, from its text to its model -----------------------------------------------------

_VARIABLE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}]*))?\}|\$\{")
_SHORT_FORMS = {"store": "url", "executor": "name", "append": "source", "update": "source", "remove": "samples"}
"""What a key's value stands for where it is no mapping, so that ``--set store.backend-storage=...`` finds its place."""
_SET = "--set"


def _key(key: str | int) -> str:
    """A key in a message."""
    text = str(key)
    if _is_credential(text):
        return "(a credential)"
    return text if re.fullmatch(r"[\w-]{1,60}", text) else ascii(text[:60])


def _dotted(path: _Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{_key(part)}" for part in path).removeprefix(".")


@dataclass
class _File:
    """A file that was read: variables expanded, free of credentials, not yet held against a model."""

    path: str
    name: str
    root: _Node = field(default_factory=lambda: _Node({}, "1"))

    @classmethod
    def read(cls, path: str, overrides: Sequence[str], environ: Mapping[str, str]) -> "_File":
        file = cls(path, "standard input" if path == STANDARD_INPUT else _one_line(path))
        text = _decode(_read(path, file.name, MAX_BYTES), file.name)
        root = _Yaml(text, file.name).root()
        if root is None:
            raise JobFileError(f"{file.name}: is empty; examples/JOBS.md shows what belongs in it")
        file.root = root
        # in each state, so that no message of a later one can show them
        file.refuse_credentials()
        for override in overrides:
            file.set(override)
        file.refuse_credentials()
        file.expand(environ)
        file.refuse_credentials()
        return file

    @property
    def folder(self) -> str:
        """What relative paths are relative to."""
        return "" if self.path == STANDARD_INPUT else os.path.dirname(self.path)

    def find(self, loc: _Path) -> tuple[_Path, _Node]:
        """The node at a place in the model: the file may have a short form, without some of the keys."""
        path: _Path = ()
        node = self.root
        for part in loc:
            match node.value:
                case dict() as entries if part in entries:
                    node = entries[part]
                case list() as items if isinstance(part, int) and part < len(items):
                    node = items[part]
                case _:
                    continue
            path = (*path, part)
        return path, node

    def error(self, path: _Path, message: str, line: str | None = None) -> JobFileError:
        line = line or self.find(path)[1].line
        where = f"{_dotted(path)}: " if path else ""
        return JobFileError(f"{self.name}:{line}: {where}{message}")

    def refuse_credentials(self) -> None:
        for path, node in self.root.walk():
            for key in path[-1:]:
                if isinstance(key, str) and (_is_credential_name(key) or _is_credential(key)):
                    raise self.error(path, _NO_CREDENTIALS, node.line)
            if isinstance(node.value, str) and _is_credential(node.value):
                raise self.error(path, _NO_CREDENTIALS, node.line)

    def expand(self, environ: Mapping[str, str]) -> None:
        """Put in the variables, after parsing: whatever they hold, it is text and no YAML."""
        room = MAX_BYTES
        for path, node in self.root.walk():
            if node.value is None:
                raise self.error(path, "expected a value, found none; give one or leave the key out", node.line)
            if not isinstance(node.value, str) or "${" not in node.value:
                continue
            pieces, end = [], 0
            for match in _VARIABLE.finditer(node.value):
                pieces += [node.value[end : match.start()], self.variable(match, environ, path)]
                end = match.end()
                room -= len(pieces[-1])
                if room < 0:
                    raise self.error(path, f"the variables hold more than {MAX_BYTES:,} characters", node.line)
            node.value = "".join([*pieces, node.value[end:]])
            if _UNFIT.search(node.value):
                raise self.error(path, "a variable holds a control character or half a character", node.line)

    def variable(self, match: re.Match[str], environ: Mapping[str, str], path: _Path) -> str:
        name, default = match["name"], match["default"]
        if match[0] == "$${":
            return "${"
        if name is None:
            raise self.error(path, "expected a variable such as ${NAME} or ${NAME:-default}; for a mere ${ write $${")
        if _is_credential_name(name):
            raise self.error(path, f"${{{name}}}: {_NO_CREDENTIALS}")
        value = environ.get(name)
        if default is not None:
            return value or default  # as in a shell, an empty one counts as unset
        if value is None:
            raise self.error(path, f"the variable {name[:60]} is not set; set it, or write ${{{name[:60]}:-default}}")
        return value

    def set(self, override: str) -> None:
        """Put in one ``KEY=VALUE`` of the command line."""
        key, equals, text = override.partition("=")
        parts = key.split(".")
        if not equals or not all(parts) or len(parts) > MAX_DEPTH:
            # not shown: it might be all value
            raise JobFileError(f"{self.name}:{_SET}: expected KEY=VALUE, as in allowed-mem=4GB or store.url=cohort.vcz")
        new = _Yaml(text, self.name, _SET).root() or _Node(None, _SET)
        if _UNFIT.search(key):
            raise JobFileError(f"{self.name}:{_SET}: the key has a control character or half a character")
        node = self.root
        path: _Path = ()
        for i, part in enumerate(parts):
            self.widen(node, path, part)
            last = i == len(parts) - 1
            match node.value:
                case list() as items:
                    at = int(part) if re.fullmatch("[0-9]{1,6}", part) else len(items)
                    if at >= len(items):
                        expected = f"a number below {len(items)}"
                        raise self.error(path, f"expected {expected}, found {_key(part)}", _SET)
                    items[at] = new if last else items[at]
                    node, path = items[at], (*path, at)
                case dict() as entries:
                    entries[part] = new if last else entries.get(part, _Node({}, _SET))
                    node, path = entries[part], (*path, part)
                case _:
                    raise self.error((*path, part), "no such key", _SET)

    @staticmethod
    def widen(node: _Node, path: _Path, part: str) -> None:
        short = _SHORT_FORMS.get(str(path[-1])) if len(path) == 1 or path[:1] == ("steps",) else None
        is_item = isinstance(node.value, list) and re.fullmatch("[0-9]+", part)
        if short and not is_item and isinstance(node.value, str | list):
            node.value = {short: _Node(node.value, node.line, node.text)}

    def validate[M: _Model](self, model: type[M]) -> M:
        if not isinstance(self.root.value, dict):
            raise JobFileError(
                f"{self.name}:{self.root.line}: expected keys such as {_or(_keys(model))}, found {self.root.found}"
            )
        try:
            return model.model_validate(self.root.plain())
        except ValidationError as error:
            self.explain(error.errors(include_url=False, include_input=False))

    def explain(self, errors: list[ErrorDetails]) -> NoReturn:
        """One error for all: the first, unless something is missing or short because something else is wrong."""
        error = min(errors, key=lambda one: {"missing": 1, "too_short": 2}.get(one["type"], 0))
        context = error.get("ctx", {})
        path, node = self.find((*error["loc"], *context.get("at", ())))
        match error["type"]:
            case "missing":
                raise self.error((*path, error["loc"][-1]), "is missing, and has no default", node.line)
            case "wrong":
                raise self.error(path, context["message"])
            case "expected":
                message = f"expected {context['what']}, found {node.found}{context['hint']}"
            case kind:
                expected = _EXPECTED.get(kind)
                if expected is None:
                    raise self.error(path, error["msg"])
                message = f"expected {expected.format(**context)}, found {node.found}"
                if kind == "string_type" and not isinstance(node.value, list | dict):
                    message += "; put quotes around it"
        raise self.error(path, message)


_EXPECTED = {
    "string_type": "text",
    "string_too_short": "text",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "too_short": "at least one",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
}
"""What pydantic's errors mean, in words that fit the rest."""


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
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


_EXAMPLE = """\
store: s3://bucket/cohort          # or {url:, backend-storage:, storage-options:}
executor: threads                  # or {name:, options:}, or the path of an executor file
max-workers: 4
allowed-mem: 2GB
work-dir: s3://bucket/tmp
steps:
  - append: inbox/*.vcz            # one, a list, or a glob
  - append: {source: late.vcz, on-duplicate: skip}
  - update: recalled.vcz           # or {source: recalled.vcz, insert: true}
  - remove: {samples-file: withdrawn.txt, missing-ok: true}
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
[`vczstore/jobfile.py`](../vczstore/jobfile.py), as is the JSON schema for editors,
[`vczstore/job.schema.json`](../vczstore/job.schema.json); `tests/test_jobfile.py` says how both are written again.

```yaml
{example}```

{tables}## Executor file

{executor_file}

```yaml
{executor_example}```

{executor_table}
## Paths

Paths are relative to the folder of the file in which they are written, or to the working directory if the job is read
from standard input. Whatever has `://` in it is a URL and stays as it is. Globs find local files only.

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
    """Give the reference page of the format in Markdown; ``examples/JOBS.md`` is what it returns."""
    job = schema()
    file = ExecutorFile.model_json_schema(schema_generator=_Schema)
    parts = {
        "Keys": job,
        "`store`": job["$defs"]["StoreSpec"],
        "`executor`": job["$defs"]["ExecutorSpec"],
        "`steps`": job["$defs"]["_Step"],
        **{f"`{name}`": job["$defs"][name.capitalize()] for name in ("append", "update", "remove")},
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
            return _or([f"`{name}`" for name in names])
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
