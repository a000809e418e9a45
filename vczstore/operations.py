"""How an operation is declared: once, for the command line, job files, Python and the reference pages.

An operation is a frozen dataclass in a module of its own in ``plans/``, or in a package that names it as an entry
point of the group ``vczstore.operations``. Its fields are its arguments and options, made by `argument` and `option`;
what compiles it is imported when it runs, so that the command line can list operations without importing NumPy.
"""

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from vczstore.errors import OptionError

if TYPE_CHECKING:
    from plans.core.model import Compiling, Plan, Survey

type Stages = Generator["Survey", list[list[Any]], "Plan"]
"""A plan that is compiled in stages: it yields what to look up in the data, and is sent what was found."""

GROUP = "vczstore.operations"
"""Entry points of this group are operations of other packages."""


@dataclass(frozen=True)
class Declared:
    """
    What is declared of an argument or option, beside its name, type and default.

    Attributes
    ----------
    help
        What it is, as one or more sentences.
    metavar
        What stands for its value in help texts.
    flags
        Its names on the command line; ``--`` and its name by default.
    choices
        The values that it may have.
    bounds
        The smallest and largest number.
    separator
        What separates the names of a list in one value; without, the option is repeated.
    default
        What help texts say of a default that is not known beforehand.
    within
        The switch that it goes with: a key of that one's mapping in a job file.
    key
        Its key in a job file; its name by default.
    kind
        What a text stands for: ``location``, ``sources``, ``file``, ``folder``, ``samples`` or ``tag``.
    examples
        Values for the reference page of job files.
    command, job, python
        Where it can be given.
    """

    help: str
    metavar: str | None = None
    flags: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    bounds: tuple[int | None, int | None] | None = None
    separator: str = ""
    default: str = ""
    within: str = ""
    key: str = ""
    kind: str = ""
    examples: tuple[Any, ...] = ()
    command: bool = True
    job: bool = True
    python: bool = True
    is_argument: bool = False


def argument(help: str, *, default: Any = MISSING, **declared: Any) -> Any:
    """Declare a positional argument of an operation; see `Declared`."""
    return _field(default, Declared(help, is_argument=True, **declared))


def option(default: Any, help: str, **declared: Any) -> Any:
    """Declare an option, which is given by its name; see `Declared`."""
    return _field(default, Declared(help, **declared))


def _field(default: Any, declared: Declared) -> Any:
    if isinstance(default, dict):
        return field(default_factory=dict, metadata={"declared": declared})
    return field(default=default, metadata={"declared": declared})


def declared(one: "Field[Any]") -> Declared:
    """What is declared of a field."""
    found: Declared = one.metadata["declared"]
    return found


class Found(Protocol):
    """What an operation has done or found, for people and programs."""

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""

    def lines(self) -> Sequence[str]:
        """What the command prints."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """
    An operation with its arguments: one that is run as it is, such as ``verify``.

    Its name is that of its class in kebab-case.

    Attributes
    ----------
    store
        What a user calls the store by.
    """

    uses: ClassVar[tuple[str, ...]] = ("store",)
    """The groups of `vczstore.execution.options.Options` that it takes."""
    writes: ClassVar[bool] = False
    """Whether it writes to the store; then what can only be read is refused."""
    is_step: ClassVar[bool] = False
    """Whether a job file can have it as a step."""
    dry_run_help: ClassVar[str] = ""
    """What ``--dry-run`` does; empty for an operation that has no such option."""

    store: Any = argument("The store: a path, a URL, a Zarr store or an Icechunk repository.", kind="location", job=False)

    @classmethod
    def name(cls) -> str:
        """How the command line and job files call it."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    @property
    def said(self) -> str:
        """How its messages begin."""
        return self.name()


@dataclass(frozen=True, kw_only=True)
class Edit(Operation):
    """An operation that is compiled into a plan, which runs on any executor and is committed once."""

    uses: ClassVar[tuple[str, ...]] = ("store", "lock", "tasks", "impl", "retries")
    writes: ClassVar[bool] = True
    dry_run_help: ClassVar[str] = "Check everything and print what would be done; write nothing."

    def compile(self, compiling: "Compiling") -> Stages:
        """Compile it against what was opened; nothing is written."""
        raise NotImplementedError


def _ours() -> list[str]:
    import plans

    return [one.name.replace("_", "-") for one in iter_modules(plans.__path__) if not one.ispkg]


def _theirs() -> dict[str, Callable[[], type[Operation]]]:
    from importlib.metadata import entry_points

    return {one.name: one.load for one in entry_points(group=GROUP)}


def arguments(operation: type[Operation]) -> "list[Field[Any]]":
    """The positional arguments of an operation, in their order."""
    return [one for one in fields(operation) if declared(one).is_argument]


def options(operation: type[Operation]) -> "list[Field[Any]]":
    """The options of an operation."""
    return [one for one in fields(operation) if not declared(one).is_argument]


def names() -> list[str]:
    """The names of all operations: those in ``plans``, and those that other packages have, in alphabetical order."""
    return sorted({*_ours(), *_theirs()})


def find(name: str) -> type[Operation]:
    """
    Find the class of an operation by its name.

    Raises
    ------
    OptionError
        If there is none.
    """
    if name in _ours():
        module = import_module(f"plans.{name.replace('-', '_')}")
        (found,) = (
            one
            for one in vars(module).values()
            if isinstance(one, type) and issubclass(one, Operation) and one.__module__ == module.__name__
        )
        return found
    if name in (theirs := _theirs()):
        return theirs[name]()
    raise OptionError(f"no operation {name!r}; choose one of {', '.join(names())}")
