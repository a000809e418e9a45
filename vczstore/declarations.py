"""Declare arguments and options as dataclass fields, shared by the command line, job files, Python and the docs."""

from dataclasses import MISSING, Field, dataclass, field, fields
from inspect import cleandoc
from typing import Any, get_args, get_origin

from vczstore.choices import AMERICAN


@dataclass(frozen=True)
class Declared:
    """
    The declaration of an argument or option, in addition to its name, type and default.

    Attributes
    ----------
    help
        Its description, in one or more sentences.
    metavar
        The placeholder for its value in help texts.
    flags
        Its names on the command line; ``--`` and its name by default.
    choices
        The allowed values.
    bounds
        The smallest and largest allowed number; None for no limit.
    separator
        Separator of the items of a list in one value; if empty, the option is repeated.
    default_text
        The default in help texts, if it depends on the environment.
    within
        The switch on which it depends: in a job file it is a key of the mapping of that switch.
    also_within
        A further switch in whose mapping a job file can have it.
    key
        Its key in a job file; its name by default.
    shorthand
        Its allowed values in the message for a value of another type in a job file: "a path, a list of paths".
    kind
        The meaning of a text value: ``location``, ``sources``, ``file``, ``folder``, ``samples``,
        ``samples-file``, ``executor`` or ``tag``.
    short
        Whether a job file can have its value instead of a mapping of options; always so for arguments.
    positional
        Whether it can be passed by position in Python; always so for arguments.
    job_help
        Addition to its help on the reference page of job files.
    examples
        Example values for the reference page of job files.
    command, job, python
        Whether the command line, job files and Python functions have it.
    is_argument
        Whether it is a positional argument.
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


def argument(text: str, *, default: Any = MISSING, **declaration: Any) -> Any:
    """Declare a positional argument of an operation; see `Declared`."""
    return _field(default, Declared(text, is_argument=True, **declaration))


def option(default: Any, text: str, **declaration: Any) -> Any:
    """Declare an option, which is given by its name; see `Declared`."""
    return _field(default, Declared(text, **declaration))


def _field(default: Any, declaration: Declared) -> Any:
    if isinstance(default, dict):
        return field(default_factory=dict, metadata={"declared": declaration})
    return field(default=default, metadata={"declared": declaration})


def declared(f: "Field[Any]") -> Declared:
    """Return the declaration of a field."""
    declaration: Declared = f.metadata["declared"]
    return declaration


def is_list(f: "Field[Any]") -> bool:
    """Whether the values of a field are tuples, or a tuple or None."""
    return any(get_origin(kind) is tuple for kind in (f.type, *get_args(f.type)))


def flags_of(f: "Field[Any]") -> list[str]:
    """Return the names of an option on the command line, American spelling included."""
    american = [f"--{other}" for other, name in AMERICAN.items() if name == f.name]
    return [*declared(f).flags] or [f"--{f.name.replace('_', '-')}", *american]


def long_flag(f: "Field[Any]") -> str:
    """Return the long name of an option on the command line; that for true of a switch with two."""
    return next(flag for flag in flags_of(f) if flag.startswith("--")).split("/")[0]


def documented[C: type](cls: C) -> C:
    """Add the declared fields of a dataclass to its docstring, for ``help`` and the reference."""
    rows = [f"{f.name}\n    {declared(f).help}" for f in fields(cls) if "declared" in f.metadata]
    head, raises, rest = cleandoc(cls.__doc__ or "").partition("\nRaises\n")
    cls.__doc__ = f"{head.rstrip()}\n\nAttributes\n----------\n" + "\n".join(rows) + f"\n{raises}{rest}"
    return cls
