"""Types for models of YAML files: texts, sizes, locations and choices, with their JSON Schemas."""

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from vczstore.configuration.yaml_file import either_or, keys_of
from vczstore.errors import OptionError
from vczstore.sizes import parse_size
from vczstore.stores.locations import is_glob, is_url, literal, parse, split_glob


def expected(what: str, hint: str = "") -> PydanticCustomError:
    """Return the error for an unexpected value; the message is completed with the actual value."""
    return PydanticCustomError("expected", "{what}", {"what": what, "hint": hint})


def wrong(message: str, *at: str | int) -> PydanticCustomError:
    """Return an error with a message of its own; `at` is the path of the value below the validated one."""
    return PydanticCustomError("wrong", "{message}", {"message": message, "at": at})


def nearest(name: str, names: Sequence[str]) -> str:
    """Return a hint with the most similar of some names; empty if none is similar."""
    near = get_close_matches(name[:40].lower().replace("_", "-"), names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def one_of(names: Sequence[str]) -> Callable[[Any], Any]:
    """Return a validator that accepts these names only."""

    def check(value: Any) -> Any:
        if value not in names:
            raise expected(either_or(names), nearest(value, names) if isinstance(value, str) else "")
        return value

    return check


def short(key: str, what: str, *kinds: type) -> Callable[[Any], Any]:
    """Return a validator for a short form: a value of one of these kinds stands for the mapping ``{key: value}``."""

    def widen(value: Any) -> Any:
        if isinstance(value, kinds):
            return {key: value}
        if not isinstance(value, dict | BaseModel):
            raise expected(what)
        return value

    return widen


def listed(value: Any) -> Any:
    """Return a text as a tuple; any other value unchanged."""
    return (value,) if isinstance(value, str) else value


def _workers(value: Any) -> Any:
    # the value of a variable is always text
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,6}", value) else value


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).isascii():
        raise expected("a size such as 500MB, 2GB or 4GiB")
    try:
        return parse_size(value)
    except OptionError:
        raise expected("a size such as 500MB, 2GB or 4GiB") from None


def _place(path: str) -> str:
    try:
        parse(path)
    except OptionError as error:
        raise wrong(str(error)) from None
    return path


def _source(path: str) -> str:
    _place(literal(path))
    if is_url(path) and is_glob(path) and split_glob(path) is None:
        raise expected("a URL with * and ? in its last part alone, if s3://, gs:// or az://, and without [")
    return path


def _local(path: str) -> str:
    if is_url(path):
        raise expected("a local file")
    return path


IS_VARIABLE = r"\$\{"
"""Pattern, for JSON Schemas, of a text with a variable."""


def choice_schema(names: Sequence[str], *more: dict[str, Any]) -> WithJsonSchema:
    """Return a schema for one of the names, or a text with a variable, which may expand to one."""
    return WithJsonSchema({"anyOf": [{"enum": list(names)}, *more, {"type": "string", "pattern": IS_VARIABLE}]})


Text = Annotated[str, Field(min_length=1, title="text")]
PlaceText = Annotated[str, Field(min_length=1, title="path or URL"), AfterValidator(_place)]
SourceText = Annotated[str, Field(min_length=1, title="path or URL"), AfterValidator(_source)]
LocalFile = Annotated[str, Field(min_length=1, title="local path"), AfterValidator(_local)]
MappingOfAny = Annotated[dict[str, Any], Field(title="mapping")]
Workers = Annotated[
    int,
    Field(strict=True, ge=1, le=10**6),
    BeforeValidator(_workers),
    WithJsonSchema(
        {
            "title": "whole number",
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 10**6},
                {"type": "string", "pattern": rf"^[0-9]{{1,6}}$|{IS_VARIABLE}"},
            ],
        }
    ),
]
Size = Annotated[
    int,
    BeforeValidator(_size),
    WithJsonSchema(
        {
            "title": "size",
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {
                    "type": "string",
                    "pattern": rf"^\s*[0-9]{{1,15}}(\.[0-9]{{1,6}})?\s*([kKmMgGtT][iI]?)?[bB]?\s*$|{IS_VARIABLE}",
                },
            ],
        }
    ),
]


class Model(BaseModel):
    """Base of all models: frozen, with keys in kebab-case, and unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=lambda name: name.replace("_", "-"))

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        """Refuse unknown keys first: a misspelt key may be the cause of all other errors."""
        if isinstance(value, dict):
            keys = keys_of(cls)
            for key in value:
                if key not in keys:
                    hint = nearest(key, keys) or f"; {'the keys are' if keys[1:] else 'the key is'} {', '.join(keys)}"
                    raise wrong(f"no such key{hint}", key)
        return value
