"""The steps of a job file, as models that are made of the operations' declarations."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, ClassVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StrictBool, create_model, model_validator
from pydantic import Field as Key
from pydantic_core import PydanticCustomError

from vczstore.choices import OURS
from vczstore.configuration.types import (
    IS_VARIABLE,
    LocalFile,
    Model,
    PlaceText,
    SourceText,
    Text,
    choice_schema,
    expected,
    listed,
    one_of,
    short,
    wrong,
)
from vczstore.configuration.yaml_file import keys_of
from vczstore.declarations import Declared, declared
from vczstore.errors import OptionError, VczstoreError
from vczstore.execution import operations
from vczstore.execution.operations import CHECKS, CLEANS, EXPORTS, NAMES, OWN_COMMIT, PUBLISHES, Operation

NUMBERS: Mapping[Any, Any] = {int: int, int | None: int, float: float, float | None: float}
"""The types of numbers without bounds."""


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


def branch_name(name: str) -> str:
    """Check that a text can name a branch."""
    if name.startswith(OURS):
        raise expected(f"another name than one that begins with {OURS}, as branches that vczstore makes")
    return _tag_name(name)


def several(item: Any) -> Any:
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
        return several(choice) if _is_list(one.type) else choice
    if known.bounds is not None:
        return Annotated[int, Key(strict=True, ge=known.bounds[0], le=known.bounds[1])]
    if one.type is bool:
        return StrictBool
    if one.type in NUMBERS:
        return Annotated[NUMBERS[one.type], Key(strict=True)]
    if known.kind in ("sources", "samples"):
        return several(_item(known))
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


Step: Any = create_model(  # type: ignore[call-overload]
    "Step",
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


def require_step(value: Any) -> Any:
    """Check that a step is a mapping."""
    if not isinstance(value, dict | BaseModel):
        raise expected("a step such as append: batch.vcz")
    return value


def check_order(steps: tuple[_OneStep, ...]) -> tuple[_OneStep, ...]:
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
