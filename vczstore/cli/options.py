"""What is declared of operations as click's arguments and options."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, get_args, get_origin

import click

import executors
from vczstore.choices import AMERICAN
from vczstore.declarations import Declared, declared
from vczstore.execution import operations
from vczstore.execution.operations import Operation
from vczstore.execution.options import EXECUTOR_FILES, GROUPS, Options

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Stores": ("store", "branch", "sources", "lock"),
    "Running": ("impl", "work_dir", "workers", "retries", "resume"),
    "Output": ("progress",),
}
"""Headings in the help of commands, and the groups of shared options under each."""


class Option(click.Option):
    """An option that the help lists under a heading."""

    section = "Options"


def parameters(operation: type[Operation]) -> list[click.Parameter]:
    """Return the arguments and options of the command of an operation."""
    made = [one for field in operations.arguments(operation) for one in _argument(field)]
    made += [_option(field, operation) for field in operations.options(operation) if declared(field).command]
    made += [_ignored(name) for name in operation.ignored]
    made += [_option(field, operation) for group in operation.uses for field in shared(group)]
    if operation.dry_run:
        made.append(click.Option(["--dry-run"], is_flag=True, help=operation.dry_run))
    return [*made, *output()]


def shared(group: str) -> "list[Field[Any]]":
    """Return the declared options of a group that operations share."""
    return [one for one in fields(Options) if one.name in GROUPS[group]]


def output() -> list[click.Parameter]:
    """Return what every command takes."""
    made = [
        Option(["--json", "as_json"], is_flag=True, help="Print one JSON object on standard output."),
        Option(["-v", "--verbose"], count=True, help="Print more; twice for still more."),
    ]
    for one in made:
        one.section = "Output"
    return [*made]


def in_words_of_commands(text: str, operation: type[Operation]) -> str:
    """Return a text in which options and arguments are called as the command line calls them."""
    for one in (*fields(operation), *fields(Options)):
        if "declared" in one.metadata:
            known = declared(one)
            name = (known.metavar or one.name.upper()) if known.is_argument else _long(one)
            text = text.replace(f"`{one.name}`", name.removesuffix("..."))
    return text.replace("`", "")


def _flags(one: "Field[Any]") -> list[str]:
    american = [f"--{other}" for other, name in AMERICAN.items() if name == one.name]
    return [*declared(one).flags] or [f"--{one.name.replace('_', '-')}", *american]


def _long(one: "Field[Any]") -> str:
    return next(flag for flag in _flags(one) if flag.startswith("--")).split("/")[0]


def _section(one: "Field[Any]", operation: type[Operation]) -> str:
    """The heading of an option: of the switch that it goes with, or of those that operations share."""
    switch = next((other for other in fields(operation) if other.name == declared(one).within), None)
    if switch is not None:
        return f"With {_long(switch)}"
    shared = (title for title, groups in SECTIONS.items() if any(one.name in GROUPS[group] for group in groups))
    return next(shared, Option.section)


def _argument(one: "Field[Any]") -> list[click.Parameter]:
    known = declared(one)
    if known.kind in ("samples", "samples-file"):
        return _samples(one)
    kind: Any = click.Path() if known.kind in ("location", "sources", "file", "folder") else str
    nargs, required = (-1, True) if known.kind == "sources" else (1, one.default is MISSING)
    return [click.Argument([one.name], nargs=nargs, required=required, metavar=known.metavar, type=kind)]


def _samples(one: "Field[Any]") -> list[click.Parameter]:
    """Sample IDs, which are listed or in a file."""
    known = declared(one)
    only = known.kind == "samples-file"
    file = click.Option(
        ["-S", "--samples-file"],
        type=click.Path(allow_dash=True),
        required=only,
        help=f"File of {'the IDs of removed samples' if only else 'sample IDs'}, one per line; - is standard input.",
    )
    return [file] if only else [click.Argument([one.name], nargs=-1, metavar=known.metavar), file]


def samples_of(operation: type[Operation], values: dict[str, Any]) -> dict[str, Any]:
    """
    Return the values of a command with the sample IDs of its file in the place of that.

    Raises
    ------
    click.UsageError
        If there are neither sample IDs nor a file.
    OptionError
        If the file is no list of sample IDs.
    """
    for one in operations.arguments(operation):
        if declared(one).kind in ("samples", "samples-file"):
            listed, file = values.pop(one.name, ()), values.pop("samples_file", None)
            if not listed and file is None:
                raise click.UsageError("Name SAMPLE_IDs, or a file of them with --samples-file.")
            lines: list[tuple[int, str]] = []
            if file is not None:
                from vczstore.configuration.lists import read_lines  # with pydantic, which takes long to import

                lines = read_lines(operation.called, file)
            values[one.name] = [*listed, *(line for _, line in lines)]
    return values


def option_of(one: "Field[Any]", **changes: Any) -> click.Option:
    """Return the option of a command that is no operation, for one that operations share."""
    return _option(one, Operation, **changes)


def _option(one: "Field[Any]", operation: type[Operation], **changes: Any) -> click.Option:
    known = declared(one)
    default = None if one.default is MISSING else one.default
    given: dict[str, Any] = {**_typed(one, known), **changes}
    repeatable = " Repeatable." * bool(given.get("multiple"))
    shown = f"  [default: {known.default_text}]" * bool(known.default_text and "default" not in changes)
    given["help"] = f"{in_words_of_commands(known.help, operation)}{repeatable}{shown}"
    if isinstance(default, tuple) and known.separator and default:
        default = known.separator.join(default)
    if "default" not in given and not given.get("multiple"):
        given["default"] = default
        given["show_default"] = default not in (None, False, ())
        given["default"] = None if default == () else default
    made = Option([*_flags(one), one.name], **given)
    made.section = _section(one, operation)
    return made


def _typed(one: "Field[Any]", known: Declared) -> dict[str, Any]:
    """What click has to know of an option's values."""
    if known.choices and not known.separator:
        return {"type": click.Choice(known.choices)}
    if known.bounds is not None:
        return {"type": click.IntRange(*known.bounds), "metavar": known.metavar}
    if known.kind == "executor":
        return {"callback": executor_name, "metavar": known.metavar}
    if known.kind in ("file", "folder"):
        kind = click.Path(file_okay=known.kind == "file", dir_okay=known.kind == "folder")
        return {"type": kind, "metavar": known.metavar}
    if known.metavar == "KEY=VALUE":
        return {"multiple": True, "callback": _storage_options, "metavar": known.metavar}
    if one.type is bool:
        return {"is_flag": True}
    if one.type in (int, int | None, float, float | None):
        return {"type": float if one.type in (float, float | None) else int, "metavar": known.metavar}
    if any("/" in flag for flag in known.flags):
        return {"default": None}
    if _is_list(one.type):
        listed = {"callback": _names} if known.separator else {"multiple": True}
        return {**listed, "metavar": known.metavar}
    return {"metavar": known.metavar, "type": str}


def _is_list(kind: Any) -> bool:
    return get_origin(kind) is tuple or any(get_origin(one) is tuple for one in get_args(kind))


def _names(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    """Names with commas in between."""
    names = [name.strip() for name in (value or "").split(",")]
    if value and "" in names:
        raise click.BadParameter(f"{value!r} has an empty name; leave out the comma")
    return None if value is None else [name for name in names if name]


def executor_name(_: click.Context, __: click.Parameter, name: str) -> str:
    """Check the name of an executor, or that of an executor file."""
    if name is None or name in executors.NAMES or name.endswith(EXECUTOR_FILES):
        return name
    if name not in executors.names():
        raise click.BadParameter(f"{name!r} is none of {', '.join(executors.names())}, and no file that ends in .yaml")
    return name


def _storage_options(_: click.Context, __: click.Parameter, pairs: tuple[str, ...]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not of the form KEY=VALUE")
        try:
            options[key] = json.loads(value)
        except (ValueError, RecursionError):
            options[key] = value
    return options


def _ignored(name: str) -> click.Option:
    """An option of version 0.1.0 that has no effect, which scripts may still give."""

    def say(context: click.Context, parameter: click.Parameter, value: int | None) -> None:
        if value is not None and not context.resilient_parsing:
            instead = "--max-workers says how many tasks run at once, --allowed-mem how much of a store each takes"
            click.echo(f"Note: {parameter.opts[0]} has no effect; {instead}", err=True)

    return click.Option([name], type=click.IntRange(min=1), hidden=True, expose_value=False, callback=say)
