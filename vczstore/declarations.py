"""How arguments and options are declared: once, as fields of dataclasses, for everything that shows or reads them."""

from dataclasses import MISSING, Field, dataclass, field, fields
from inspect import cleandoc
from typing import Any


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
    default_text
        What help texts say of a default that is not known beforehand.
    within
        The switch that it goes with: a key of that one's mapping in a job file.
    also_within
        A switch in whose mapping a job file can have it, too.
    key
        Its key in a job file; its name by default.
    shorthand
        What its values are called where a job file has something else: "a path, a list of paths".
    kind
        What a text stands for: ``location``, ``sources``, ``file``, ``folder``, ``samples`` or ``tag``.
    short
        Whether a job file can give the value of this option alone, instead of a mapping; arguments can be given so.
    positional
        Whether it can be given by position in Python, too; arguments can.
    job_help
        What is said of it beside its help on the reference page of job files.
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
    default_text: str = ""
    within: str = ""
    also_within: str = ""
    key: str = ""
    shorthand: str = ""
    kind: str = ""
    short: bool = False
    positional: bool = False
    job_help: str = ""
    examples: tuple[Any, ...] = ()
    command: bool = True
    job: bool = True
    python: bool = True
    is_argument: bool = False


def argument(text: str, *, default: Any = MISSING, **known: Any) -> Any:
    """Declare a positional argument of an operation; see `Declared`."""
    return _field(default, Declared(text, is_argument=True, **known))


def option(default: Any, text: str, **known: Any) -> Any:
    """Declare an option, which is given by its name; see `Declared`."""
    return _field(default, Declared(text, **known))


def _field(default: Any, known: Declared) -> Any:
    if isinstance(default, dict):
        return field(default_factory=dict, metadata={"declared": known})
    return field(default=default, metadata={"declared": known})


def declared(one: "Field[Any]") -> Declared:
    """What is declared of a field."""
    found: Declared = one.metadata["declared"]
    return found


def documented[C: type](cls: C) -> C:
    """Give a dataclass a docstring that has its declared fields, for ``help`` and the reference."""
    rows = [f"{one.name}\n    {declared(one).help}" for one in fields(cls) if "declared" in one.metadata]
    head, raises, rest = cleandoc(cls.__doc__ or "").partition("\nRaises\n")
    cls.__doc__ = f"{head.rstrip()}\n\nAttributes\n----------\n" + "\n".join(rows) + f"\n{raises}{rest}"
    return cls
