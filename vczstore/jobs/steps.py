"""Models of the steps of a job file, generated from the declarations of operations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, ClassVar, Self, get_args

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
from vczstore.declarations import Declared, declared, is_list
from vczstore.errors import OptionError, VczstoreError
from vczstore.execution import operations
from vczstore.execution.operations import CHECKS, CLEANS, EXPORTS, NAMES, OWN_COMMIT, PUBLISHES, Operation

NUMBERS: Mapping[Any, Any] = {int: int, int | None: int, float: float, float | None: float}
"""The types of numeric parameters without bounds, and the types of their keys."""


class StepModel(Model):
    """A step of a job: an operation with the values that the job file sets."""

    operation: ClassVar[type[Operation]]

    def value(self, key: str) -> Any:
        """Return the value of a key; None if the file does not set it, or there is no such key."""
        return getattr(self, key, None)

    def places(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Yield the key, the kind (see `Declared`) and the paths and URLs of each key that has any."""
        for parameter in fields(self.operation):
            kind = declared(parameter).kind
            key = f"{parameter.name}_file" if kind == "samples" else parameter.name
            if kind in ("sources", "samples", "file", "folder", "location") and (value := self.value(key)) is not None:
                yield key, kind, listed(value)

    def with_places(self, change: Callable[[str, str], str]) -> Self:
        """Return the step with `change`, a function of a kind and a path or URL, applied to each path and URL."""
        changes: dict[str, Any] = {}
        for key, kind, texts in self.places():
            changed = tuple(change(kind, text) for text in texts)
            changes[key] = changed[0] if isinstance(self.value(key), str) else changed
        return self.model_copy(update=changes)

    @model_validator(mode="after")
    def _goes_together(self) -> "StepModel":
        """Run the operation's own validation."""
        try:
            self.build("")
        except VczstoreError as error:
            raise wrong(str(error).removeprefix(f"{self.operation.called}: ")) from None
        return self

    def build(self, store: str, **values: Any) -> Operation:
        """Return the operation on the store at a path or URL; `values` override the file."""
        arguments = {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
        for parameter in fields(self.operation):
            if declared(parameter).kind == "samples":
                arguments.pop(f"{parameter.name}_file", None)
        for name, inner in [(name, value) for name, value in arguments.items() if isinstance(value, Model)]:
            arguments[name] = True  # the switch that enables the options in its mapping
            for key in type(inner).model_fields:
                if (value := getattr(inner, key)) is not None:
                    arguments[key] = (*arguments.get(key, ()), *value) if isinstance(value, tuple) else value
        for parameter in operations.arguments(self.operation):
            if declared(parameter).kind == "samples":
                arguments.setdefault(parameter.name, ())  # the IDs are in a file
        return self.operation(**{"store": store, **arguments, **values})


def _tag_name(name: str) -> str:
    if not name.isprintable() or "/" in name:
        raise expected("a name of printable characters without /")
    return name


_ITEMS = {
    "sources": SourceText,
    "file": LocalFile,
    "folder": LocalFile,
    "location": PlaceText,
    "tag": Annotated[Text, AfterValidator(_tag_name)],
    "samples": Text,
    "": Text,
}
"""The types of single values of parameters, by `Declared.kind`."""


def branch_name(name: str) -> str:
    """Validate a branch name, and return it."""
    if name.startswith(OURS):
        raise expected(f"another name than one that begins with {OURS}, as branches that vczstore makes")
    return _tag_name(name)


def several(item: Any) -> Any:
    """Return the type of a key that takes one value or a list of them, and validates to a tuple."""
    return Annotated[
        tuple[item, ...],
        Key(min_length=1, fail_fast=True),
        BeforeValidator(listed, json_schema_input_type=item | Annotated[list[item], Key(min_length=1)]),
    ]


def _kind(parameter: "Field[Any]") -> Any:
    """The type of a key of a step."""
    declaration = declared(parameter)
    if declaration.choices:
        choice = Annotated[str, BeforeValidator(one_of(declaration.choices)), choice_schema(declaration.choices)]
        return several(choice) if is_list(parameter) else choice
    if declaration.bounds is not None:
        return Annotated[int, Key(strict=True, ge=declaration.bounds[0], le=declaration.bounds[1])]
    if parameter.type is bool:
        return StrictBool
    if parameter.type in NUMBERS:
        return Annotated[NUMBERS[parameter.type], Key(strict=True)]
    item: Any = _ITEMS[declaration.kind]
    if declaration.kind in ("sources", "samples"):
        return several(item)
    if is_list(parameter):
        return Annotated[tuple[item, ...], Key(title="list of text"), BeforeValidator(_tuple)]
    return item


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _key(parameter: "Field[Any]", kind: Any) -> tuple[Any, Any]:
    """Return the type and the definition of a key of a step, whose type is `kind` if it is set."""
    declaration = declared(parameter)
    options: dict[str, Any] = {"description": _described(declaration), "examples": list(declaration.examples)}
    if declaration.key:
        options["alias"] = declaration.key
    is_optional = parameter.default is None or (parameter.default == () and not declaration.choices)
    if is_optional or declaration.kind == "samples":  # sample IDs may be in a file instead
        return kind | None, Key(default=None, **options)
    if parameter.default is MISSING:
        return kind, Key(**options)
    return kind, Key(default=parameter.default, **options)


def _described(declaration: Declared) -> str:
    """The description of a key on the reference page and in editors."""
    default = f"By default {declaration.default_text}." * bool(declaration.default_text)
    return " ".join(text for text in (_with_job_keys(declaration.help), declaration.job_help, default) if text)


def _with_job_keys(text: str) -> str:
    """Replace the names of options in a help text by the keys of job files."""
    names = {field.name for name in operations.names() if (operation := _loaded(name)) for field in fields(operation)}
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
    """Return the keys of a step: its operation's arguments and options. A switch takes a mapping of those within it."""
    parameters = [p for p in (*operations.arguments(operation), *operations.options(operation)) if declared(p).job]
    keys: dict[str, tuple[Any, Any]] = {}
    for parameter in parameters:
        name, declaration = parameter.name, declared(parameter)
        inner = [other for other in parameters if name in (declared(other).within, declared(other).also_within)]
        if declaration.within:
            continue
        if inner:
            text = _with_job_keys(declaration.help)
            model: Any = create_model(  # type: ignore[call-overload]
                f"{operation.__name__}{name.capitalize()}",
                __base__=Model,
                __doc__=text,
                **{o.name: _key(o, _kind(o)) for o in inner},
            )
            inputs = StrictBool | model
            switch = Annotated[model | None, BeforeValidator(_true_or_options, json_schema_input_type=inputs)]
            keys[name] = switch, Key(default=None, description=text, examples=list(declaration.examples))
            continue
        keys[name] = _key(parameter, _kind(parameter))
        if declaration.kind == "samples":
            text = "A UTF-8 file with one sample ID per line, read when the step runs. Relative to the job file."
            keys[f"{name}_file"] = LocalFile | None, Key(default=None, description=text, examples=["withdrawn.txt"])
    return keys


def _one_list(step: StepModel) -> StepModel:
    """Check that sample IDs are either listed or in a file, and return the step."""
    if (step.value("samples") is None) == (step.value("samples_file") is None):
        actual = "neither" if step.value("samples") is None else "both"
        raise wrong(f"expected samples or samples-file, found {actual}")
    return step


def _step_model(operation: type[Operation]) -> type[StepModel]:
    """Create the model of an operation's step."""
    keys, text = _keys(operation), (operation.__doc__ or "").strip().partition("\n")[0]
    has_list = any(declared(parameter).kind == "samples" for parameter in fields(operation))
    model: type[StepModel] = create_model(  # type: ignore[call-overload]
        operation.__name__,
        __base__=StepModel,
        __doc__=text,
        __validators__={"_one_list": model_validator(mode="after")(_one_list)} if has_list else {},
        **keys,
    )
    model.operation = operation
    if has_list:
        model.model_config["json_schema_extra"] = {"oneOf": [{"required": ["samples"]}, {"required": ["samples-file"]}]}
    return model


def _loaded(name: str) -> type[Operation] | None:
    """Load an operation; None if it is of another package and cannot be loaded."""
    try:
        return operations.find(name)
    except OptionError:
        return None


STEPS: Mapping[str, type[StepModel]] = {
    name: _step_model(op) for name in operations.names() if (op := _loaded(name)) is not None and op.is_step
}
"""The models of steps, by the names of their operations."""


def _true_or_keys(value: Any) -> Any:
    if value is not True and not isinstance(value, dict | BaseModel):
        raise expected("true, or a mapping with its keys")
    return {} if value is True else value


def _shorthand(name: str, model: type[StepModel]) -> Any:
    """Return the type of a step: its model, or as shorthand the value of its first key, or true if it has none."""
    operation = model.operation
    candidates = [
        parameter
        for parameter in (*operations.arguments(operation), *operations.options(operation))
        if declared(parameter).job and (declared(parameter).is_argument or declared(parameter).short)
    ]
    if not candidates:
        return Annotated[model | None, BeforeValidator(_true_or_keys, json_schema_input_type=StrictBool | model)]
    first = candidates[0]
    declaration, kind = declared(first), _kind(first)
    key, has_list = declaration.key or first.name.replace("_", "-"), is_list(first)
    if len(model.model_fields) == 1 and not has_list:
        pattern = rf"^[^/]+$|{IS_VARIABLE}" if declaration.kind == "tag" else None
        text = Annotated[str, Key(title="text", pattern=pattern)]
        return Annotated[model | None, BeforeValidator(_named(key), json_schema_input_type=text)]
    keys = " or ".join(keys_of(model)[:2]) if declaration.kind == "samples" else f"the key {key}"
    expectation = f"{declaration.shorthand}, or a mapping with {keys}"
    inputs = kind.__metadata__[1].json_schema_input_type if has_list else kind
    kinds = (int if int in get_args(first.type) else str, *([list] if has_list else []))
    return Annotated[
        model | None, BeforeValidator(short(key, expectation, *kinds), json_schema_input_type=inputs | model)
    ]


def _named(key: str) -> Any:
    def widen(value: Any) -> Any:
        if not isinstance(value, str):
            raise PydanticCustomError("string_type", "expected text")
        return {key: value}

    return widen


class _OneStep(Model):
    """One step: a mapping with exactly one key, the operation."""

    model_config = ConfigDict(title="step", json_schema_extra={"minProperties": 1, "maxProperties": 1})

    @model_validator(mode="before")
    @classmethod
    def _well_indented(cls, value: Any) -> Any:
        """Catch the most likely mistake: keys of the operation's mapping written next to the operation's key."""
        for name in STEPS.keys() & value.keys() if isinstance(value, dict) else ():
            for key in value:
                if key in keys_of(STEPS[name]) and key not in STEPS:
                    raise wrong(f"is a key of {name}; write {name}: {{..., {key}: ...}}", key)
        return value

    @model_validator(mode="after")
    def _one_key(self) -> "_OneStep":
        names = sorted(name.replace("_", "-") for name in self.model_fields_set)
        if len(names) != 1:
            actual = f"both {' and '.join(names)}; begin each with a - of its own" if names else "none"
            raise wrong(
                f"a step has one of the keys {' and '.join([', '.join([*STEPS][:-1]), [*STEPS][-1]])}, found {actual}"
            )
        return self

    @property
    def what(self) -> StepModel:
        """The model of the step's operation."""
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
    """Check that a step is a mapping, and return it."""
    if not isinstance(value, dict | BaseModel):
        raise expected("a step such as append: batch.vcz")
    return value


def check_order(steps: tuple[_OneStep, ...]) -> tuple[_OneStep, ...]:
    """
    Check that steps are in the order of their phases (see `vczstore.execution.operations`), and return them.

    Steps that are compiled against all variants are refused after one that may insert variants.
    """
    names: set[str] = set()
    inserts = False
    for i, step in enumerate(steps):
        operation, before = step.what.operation, steps[max(i - 1, 0)].what.operation
        if operation.phase < before.phase:
            why = _AFTER[before.phase]
            raise wrong(f"{why}; put {before.called} after {_after(before.phase, steps)}", i - 1, before.called)
        if operation.called == "tag":
            name = step.what.value("name")
            if name in names:
                raise wrong("this tag is there already; a name can be given once", i, "tag")
            names.add(name)
        if inserts and operation.needs_variants:
            raise wrong("an earlier step has new-variants: insert; put this into a job of its own", i, operation.called)
        inserts |= getattr(step.what.value("harmonise"), "new_variants", None) == "insert"
    return steps


_AFTER = {
    OWN_COMMIT: "this has a commit of its own, which follows that of the job",
    CHECKS: "this looks at what the job has committed",
    PUBLISHES: "this shows readers what the job has committed",
    NAMES: "a tag names what the whole job leaves behind",
    EXPORTS: "this hands out what the job has committed",
    CLEANS: "this deletes what the job has left behind",
}
"""The reasons, by phase, why a step has to come after those of earlier phases."""


def _after(phase: int, steps: Sequence[_OneStep]) -> str:
    others = dict.fromkeys(step.what.operation.called for step in steps if step.what.operation.phase < phase)
    return "all other steps" if phase == NAMES else ", ".join(others)
