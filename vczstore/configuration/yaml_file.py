"""Read YAML files of limited size, refuse credentials in them, and validate them by a model, with errors by line.

The stages of reading are::

    bytes -> YAML events -> Node (value, line) -> --set -> credentials refused, ${VAR} expanded -> a pydantic model

Nodes are built from PyYAML's events, not by its loader or that of ruamel.yaml: these construct values that have to be
refused (aliases, deep nesting, duplicate keys, a megabyte of values) first, and keep no line for a scalar.
"""

import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import batched
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vczstore.choices import AMERICAN
from vczstore.errors import JobFileError
from vczstore.stores.credentials import NO_CREDENTIALS, is_credential, is_credential_name

MAX_BYTES = 2**20
"""Maximum size of a file, and of the text to which its variables expand, in bytes and characters."""
MAX_DEPTH = 20
MAX_VALUES = 100_000
STANDARD_INPUT = "-"

type KeyPath = tuple[str | int, ...]
"""The path of a value, such as ``("steps", 1, "append")``."""


def either_or(names: Sequence[str]) -> str:
    """
    Join names for a message.

    >>> either_or(["a", "b", "c"])
    'a, b or c'
    """
    return " or ".join([", ".join(names[:-1])] * (len(names) > 1) + [names[-1]])


def keys_of(model: type[BaseModel]) -> list[str]:
    """Return the keys of a model as they are written in a file."""
    return [field.alias or name for name, field in model.model_fields.items()]


# ---- files ----------------------------------------------------------------------------------


def one_line(text: str) -> str:
    """Return a name for a message: unchanged if it is printable, else escaped."""
    return text if text.isprintable() else ascii(text)


def read_bytes(path: str | os.PathLike[str], name: str, limit: int) -> bytes:
    """Read a file, or standard input; raise a `JobFileError` if that fails, or there are more than `limit` bytes."""
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
        raise JobFileError(f"{name}: is larger than {limit:,} bytes, more than such a file may have")
    return content


def decode(content: bytes, name: str) -> str:
    """Decode UTF-8, without a byte order mark; raise a `JobFileError` if it is invalid."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise JobFileError(f"{name}:{line}: is no UTF-8 text; save it as UTF-8") from None


# ---- YAML -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Node:
    """A value, and the number of its line; ``--set`` for a value from the command line."""

    value: Any
    """Text, a number, a boolean or None; or a list or dict of nodes."""
    line: str
    text: str = ""
    """The source text of a scalar."""

    def items(self) -> Iterable[tuple[Any, "Node"]]:
        """Return the inner nodes with their keys or indices; empty for a scalar."""
        match self.value:
            case dict() as entries:
                return entries.items()
            case list() as items:
                return enumerate(items)
        return ()

    def plain(self) -> Any:
        """Return the value without nodes."""
        match self.value:
            case dict():
                return {key: node.plain() for key, node in self.items()}
            case list():
                return [node.plain() for _, node in self.items()]
        return self.value

    def walk(self, path: KeyPath = ()) -> Iterator[tuple[KeyPath, "Node"]]:
        """Yield all nodes with their paths, outer before inner, in the order of the file."""
        yield path, self
        for key, node in self.items():
            yield from node.walk((*path, key))

    @property
    def label(self) -> str:
        """The value for a message. Variables are not expanded, so that their values are not shown."""
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


_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NUMBER = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
"""Control characters and surrogates, which no path, name or ID should have."""
_ALIASES = "YAML anchors and aliases (&name, *name) are not allowed; put text that begins with & or * in quotes"


class _Refused(Exception):
    """A YAML construct that is not allowed; the arguments are its line and the problem."""


def _parse(text: str, name: str, line: str | None = None) -> Node | None:
    """Parse the only document of a text; None if it is empty. `line` replaces the line numbers of all nodes."""
    try:
        root = _compose(text, line)
    except _Refused as error:
        at, problem = error.args
    except yaml.reader.ReaderError as error:
        at = text.count("\n", 0, error.position) + 1
        problem = "has a control character, which is not allowed in YAML"
    except yaml.MarkedYAMLError as error:
        at = 1 if error.problem_mark is None else error.problem_mark.line + 1
        problem = _ALIASES if error.context == "while scanning an alias" else f"is not YAML: {error.problem}"
    except (ValueError, OverflowError):  # an escape or a directive with too large a number
        where = name if line is None else f"{name}:{line}"
        raise JobFileError(f"{where}: is not YAML: a number is out of range") from None
    else:
        return None if root is None or root.value is None else root
    raise JobFileError(f"{name}:{line or at}: {one_line(problem)}") from None


def _compose(text: str, line: str | None) -> Node | None:
    top = Node([], "1")
    inside, values = [top], 0
    for event in yaml.parse(text, yaml.SafeLoader):
        at = line or str(event.start_mark.line + 1 if event.start_mark else 1)
        match event:
            case yaml.DocumentStartEvent() if top.value:
                raise _Refused(at, "a second document begins; put all into one")
            case yaml.SequenceEndEvent():
                inside.pop()
            case yaml.MappingEndEvent():
                ended = inside.pop()
                ended.value = _entries(ended.value)
            case yaml.NodeEvent():
                values += 1
                if values > MAX_VALUES:
                    raise _Refused(at, f"there are more than {MAX_VALUES:,} values; put sample IDs into a file")
                if len(inside) > MAX_DEPTH + 1:
                    raise _Refused(at, f"lists and mappings are more than {MAX_DEPTH} deep")
                node = _node(event, at)
                inside[-1].value.append(node)
                if isinstance(event, yaml.CollectionStartEvent):
                    inside.append(node)
    return top.value[0] if top.value else None


def _node(event: yaml.NodeEvent, at: str) -> Node:
    if event.anchor is not None:
        raise _Refused(at, _ALIASES)
    if getattr(event, "tag", None) is not None:
        raise _Refused(at, "YAML tags (!name) are not allowed; put text that begins with ! in quotes")
    if not isinstance(event, yaml.ScalarEvent):
        return Node([], at)
    if _UNFIT.search(event.value):
        raise _Refused(at, "a text has a control character or half a character")
    is_quoted = not event.implicit[0]
    return Node(event.value if is_quoted else _typed(event.value, at), at, event.value)


def _entries(nodes: Sequence[Node]) -> dict[str, Node]:
    """Make a mapping of alternating keys and values; a value gets the line of its key."""
    entries: dict[str, Node] = {}
    for key, value in batched(nodes, 2):
        if isinstance(key.value, dict | list):
            raise _Refused(key.line, "a key is a word, not a list or a mapping")
        if key.text == "<<":
            raise _Refused(key.line, "merge keys (<<) are not allowed; write the keys out")
        name = AMERICAN.get(key.text, key.text)
        if name in entries:
            raise _Refused(key.line, f"the key {_key(name)} is there already, in line {entries[name].line}")
        value.line = key.line
        entries[name] = value
    return entries


def _typed(text: str, at: str) -> str | int | float | bool | None:
    """Convert an unquoted scalar by the core schema of YAML 1.2, in which ``NO`` and dates are text."""
    if text in _WORDS:
        return _WORDS[text]
    if not _NUMBER.fullmatch(text):
        return text
    # int() takes quadratic time for many digits, or fails
    if len(text) > 18 or not math.isfinite(float(text)):
        raise _Refused(at, "a number has too many digits; put quotes around it if it is text")
    return float(text) if re.search("[.eE]", text) else int(text)


# ---- a file, from its text to its model -----------------------------------------------------

_VARIABLE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}]*))?\}|\$\{")
_SHORT_FORMS = {"store": "url", "executor": "name", "append": "source", "update": "source", "remove": "samples"}
"""The key whose value a short form is: ``--set store.backend-storage=...`` expands ``store: cohort.vcz`` with it."""
_SET = "--set"


def _key(key: str | int) -> str:
    """Return a key for a message: hidden if it looks like a credential, escaped if it is unusual."""
    text = str(key)
    if is_credential(text):
        return "(a credential)"
    return text if re.fullmatch(r"[\w-]{1,60}", text) else ascii(text[:60])


def _dotted(path: KeyPath) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{_key(part)}" for part in path).removeprefix(".")


@dataclass
class YamlFile:
    """A parsed file: variables expanded and credentials refused, but not yet validated by a model."""

    path: str
    name: str
    root: Node = field(default_factory=lambda: Node({}, "1"))

    @classmethod
    def read(cls, path: str, overrides: Sequence[str], environ: Mapping[str, str]) -> "YamlFile":
        file = cls(path, "standard input" if path == STANDARD_INPUT else one_line(path))
        text = decode(read_bytes(path, file.name, MAX_BYTES), file.name)
        root = _parse(text, file.name)
        if root is None:
            raise JobFileError(f"{file.name}: is empty; examples/guide/reference-jobs.md shows what belongs in it")
        file.root = root
        # refused after each stage, so that no error of a later stage can show credentials
        file.refuse_credentials()
        for override in overrides:
            file.set(override)
        file.refuse_credentials()
        file.expand(environ)
        file.refuse_credentials()
        return file

    @property
    def folder(self) -> str:
        """The folder of the file; empty for standard input."""
        return "" if self.path == STANDARD_INPUT else os.path.dirname(self.path)

    def find(self, loc: KeyPath) -> tuple[KeyPath, Node]:
        """Return the node at a path in the model, and its path in the file, where short forms lack some keys."""
        path: KeyPath = ()
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

    def error(self, path: KeyPath, message: str, line: str | None = None) -> JobFileError:
        """Return an error with the file, the line (by default that of the value) and the key."""
        line = line or self.find(path)[1].line
        where = f"{_dotted(path)}: " if path else ""
        return JobFileError(f"{self.name}:{line}: {where}{message}")

    def refuse_credentials(self) -> None:
        """Raise a `JobFileError` for a key or value that looks like a credential, without showing it."""
        for path, node in self.root.walk():
            for key in path[-1:]:
                if isinstance(key, str) and (is_credential_name(key) or is_credential(key)):
                    raise self.error(path, NO_CREDENTIALS, node.line)
            if isinstance(node.value, str) and is_credential(node.value):
                raise self.error(path, NO_CREDENTIALS, node.line)

    def expand(self, environ: Mapping[str, str]) -> None:
        """Expand the variables. This is done after parsing, so their values are text and never YAML."""
        budget = MAX_BYTES

        def value_of(match: re.Match[str]) -> str:
            nonlocal budget
            value = self.variable(match, environ, path)
            budget -= len(value)
            if budget < 0:
                raise self.error(path, f"the variables hold more than {MAX_BYTES:,} characters", node.line)
            return value

        for path, node in self.root.walk():
            if node.value is None:
                raise self.error(path, "expected a value, found none; give one or leave the key out", node.line)
            if isinstance(node.value, str):
                node.value = _VARIABLE.sub(value_of, node.value)
                if _UNFIT.search(node.value):
                    raise self.error(path, "a variable holds a control character or half a character", node.line)

    def variable(self, match: re.Match[str], environ: Mapping[str, str], path: KeyPath) -> str:
        """Return the text for a match of `_VARIABLE` in the value at `path`."""
        name, default = match["name"], match["default"]
        if match[0] == "$${":
            return "${"
        if name is None:
            raise self.error(path, "expected a variable such as ${NAME} or ${NAME:-default}; for a mere ${ write $${")
        if is_credential_name(name):
            raise self.error(path, f"${{{name}}}: {NO_CREDENTIALS}")
        value = environ.get(name)
        if default is not None:
            return value or default  # as in a shell, an empty variable counts as unset
        if value is None:
            raise self.error(path, f"the variable {name[:60]} is not set; set it, or write ${{{name[:60]}:-default}}")
        return value

    def set(self, override: str) -> None:
        """Apply one ``KEY=VALUE`` of the command line."""
        key, equals, text = override.partition("=")
        parts = [AMERICAN.get(part, part) for part in key.split(".")]
        if not equals or not all(parts) or len(parts) > MAX_DEPTH:
            # the text is not shown, since it might be a value alone
            raise JobFileError(f"{self.name}:{_SET}: expected KEY=VALUE, as in allowed-mem=4GB or store.url=cohort.vcz")
        if _UNFIT.search(key):
            raise JobFileError(f"{self.name}:{_SET}: the key has a control character or half a character")
        path: KeyPath = ()
        node = self.root
        for part in parts:
            path, node = self.below(path, node, part)
        new = _parse(text, self.name, _SET) or Node(None, _SET)
        node.value, node.text, node.line = new.value, new.text, new.line

    def below(self, path: KeyPath, node: Node, part: str) -> tuple[KeyPath, Node]:
        """Return the path and node of a key or item below a node; expand short forms, and add missing keys."""
        is_item = isinstance(node.value, list) and re.fullmatch("[0-9]+", part)
        short = _SHORT_FORMS.get(str(path[-1])) if len(path) == 1 or path[:1] == ("steps",) else None
        if short and not is_item and isinstance(node.value, str | list):
            node.value = {short: Node(node.value, node.line, node.text)}
        match node.value:
            case dict() as entries:
                return (*path, part), entries.setdefault(part, Node({}, _SET))
            case list() as items:
                at = int(part) if re.fullmatch("[0-9]{1,6}", part) else len(items)
                if at < len(items):
                    return (*path, at), items[at]
                raise self.error(path, f"expected a number below {len(items)}, found {_key(part)}", _SET)
        raise self.error((*path, part), "no such key", _SET)

    def validate[M: BaseModel](self, model: type[M]) -> M:
        """Return the model of the file; raise a `JobFileError` for the first error."""
        if not isinstance(self.root.value, dict):
            keys = either_or(keys_of(model))
            raise JobFileError(f"{self.name}:{self.root.line}: expected keys such as {keys}, found {self.root.label}")
        try:
            return model.model_validate(self.root.plain())
        except ValidationError as error:
            self.explain(error.errors(include_url=False, include_input=False))

    def explain(self, errors: list[ErrorDetails]) -> NoReturn:
        """Raise a `JobFileError` for the first error; missing and too short values come last, as they may follow."""
        error = min(errors, key=lambda error: {"missing": 1, "too_short": 2}.get(error["type"], 0))
        context = error.get("ctx", {})
        path, node = self.find((*error["loc"], *context.get("at", ())))
        match error["type"]:
            case "missing":
                raise self.error((*path, error["loc"][-1]), "is missing, and has no default", node.line)
            case "wrong":
                raise self.error(path, context["message"])
            case "expected":
                message = f"expected {context['what']}, found {node.label}{context['hint']}"
            case kind:
                expected = _EXPECTED.get(kind)
                if expected is None:
                    raise self.error(path, error["msg"])
                message = f"expected {expected.format(**context)}, found {node.label}"
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
"""Expected values by type of pydantic's error, for messages."""
