"""Convert the declarations of operations to click arguments and options."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

import click

import executors
from vczstore.declarations import Declared, declared, flags_of, is_list, long_flag
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
    params = [param for field in operations.arguments(operation) for param in _argument(field)]
    params += [_option(field, operation) for field in operations.options(operation) if declared(field).command]
    params += [_ignored(name) for name in operation.ignored]
    params += [_option(field, operation) for group in operation.uses for field in shared(group)]
    if operation.dry_run:
        params.append(click.Option(["--dry-run"], is_flag=True, help=operation.dry_run))
    return [*params, *output()]


def shared(group: str) -> "list[Field[Any]]":
    """Return the shared options of a group of `GROUPS`."""
    return [field for field in fields(Options) if field.name in GROUPS[group]]


def output() -> list[click.Parameter]:
    """Return the options of every command."""
    params = [
        Option(["--json", "as_json"], is_flag=True, help="Print one JSON object on standard output."),
        Option(["-v", "--verbose"], count=True, help="Print more; twice for still more."),
    ]
    for param in params:
        param.section = "Output"
    return [*params]


def in_words_of_commands(text: str, operation: type[Operation]) -> str:
    """Replace the names of options and arguments in a help text by those of the command line."""
    for field in (*fields(operation), *fields(Options)):
        if "declared" in field.metadata:
            declaration = declared(field)
            name = (declaration.metavar or field.name.upper()) if declaration.is_argument else long_flag(field)
            text = text.replace(f"`{field.name}`", name.removesuffix("..."))
    return text.replace("`", "")


def _section(field: "Field[Any]", operation: type[Operation]) -> str:
    """Return the heading of an option: that of the switch that it depends on, or of its group of shared options."""
    switch = next((other for other in fields(operation) if other.name == declared(field).within), None)
    if switch is not None:
        return f"With {long_flag(switch)}"
    shared = (title for title, groups in SECTIONS.items() if any(field.name in GROUPS[group] for group in groups))
    return next(shared, Option.section)


def _argument(field: "Field[Any]") -> list[click.Parameter]:
    declaration = declared(field)
    if declaration.kind in ("samples", "samples-file"):
        return _samples(field)
    kind: Any = click.Path() if declaration.kind in ("location", "sources", "file", "folder") else str
    nargs, required = (-1, True) if declaration.kind == "sources" else (1, field.default is MISSING)
    return [click.Argument([field.name], nargs=nargs, required=required, metavar=declaration.metavar, type=kind)]


def _samples(field: "Field[Any]") -> list[click.Parameter]:
    """Return the parameters for sample IDs: an argument, an option for a file of them, or both."""
    declaration = declared(field)
    only = declaration.kind == "samples-file"
    file = click.Option(
        ["-S", "--samples-file"],
        type=click.Path(allow_dash=True),
        required=only,
        help=f"File of {'the IDs of removed samples' if only else 'sample IDs'}, one per line; - is standard input.",
    )
    return [file] if only else [click.Argument([field.name], nargs=-1, metavar=declaration.metavar), file]


def samples_of(operation: type[Operation], values: dict[str, Any]) -> dict[str, Any]:
    """
    Return the values of a command with the sample IDs in its file added to the listed ones.

    Raises
    ------
    click.UsageError
        If there are neither sample IDs nor a file.
    OptionError
        If the file cannot be read as a list of sample IDs.
    """
    for field in operations.arguments(operation):
        if declared(field).kind in ("samples", "samples-file"):
            listed, file = values.pop(field.name, ()), values.pop("samples_file", None)
            if not listed and file is None:
                raise click.UsageError("Name SAMPLE_IDs, or a file of them with --samples-file.")
            lines: list[tuple[int, str]] = []
            if file is not None:
                from vczstore.configuration.lists import read_lines  # imports pydantic, which takes long

                lines = read_lines(operation.called, file)
            values[field.name] = [*listed, *(line for _, line in lines)]
    return values


def option_of(field: "Field[Any]", **changes: Any) -> click.Option:
    """Return a shared option for a command that is not an operation; `changes` override arguments of `click.Option`."""
    return _option(field, Operation, **changes)


def _option(field: "Field[Any]", operation: type[Operation], **changes: Any) -> click.Option:
    declaration = declared(field)
    default = None if field.default is MISSING else field.default
    settings: dict[str, Any] = {**_typed(field, declaration), **changes}
    repeatable = " Repeatable." * bool(settings.get("multiple"))
    suffix = f"  [default: {declaration.default_text}]" * bool(declaration.default_text and "default" not in changes)
    settings["help"] = f"{in_words_of_commands(declaration.help, operation)}{repeatable}{suffix}"
    if isinstance(default, tuple) and declaration.separator and default:
        default = declaration.separator.join(default)
    if "default" not in settings and not settings.get("multiple"):
        settings["show_default"] = default not in (None, False, ())
        settings["default"] = None if default == () else default
    option = Option([*flags_of(field), field.name], **settings)
    option.section = _section(field, operation)
    return option


def _typed(field: "Field[Any]", declaration: Declared) -> dict[str, Any]:
    """Return the arguments of `click.Option` for the type of a field."""
    if declaration.choices and not declaration.separator:
        return {"type": click.Choice(declaration.choices)}
    if declaration.bounds is not None:
        return {"type": click.IntRange(*declaration.bounds), "metavar": declaration.metavar}
    if declaration.kind == "executor":
        return {"callback": executor_name, "metavar": declaration.metavar}
    if declaration.kind in ("file", "folder"):
        kind = click.Path(file_okay=declaration.kind == "file", dir_okay=declaration.kind == "folder")
        return {"type": kind, "metavar": declaration.metavar}
    if declaration.metavar == "KEY=VALUE":
        return {"multiple": True, "callback": _storage_options, "metavar": declaration.metavar}
    if field.type is bool:
        return {"is_flag": True}
    if field.type in (int, int | None, float, float | None):
        return {"type": float if field.type in (float, float | None) else int, "metavar": declaration.metavar}
    if any("/" in flag for flag in declaration.flags):
        return {"default": None}
    if is_list(field):
        listed = {"callback": _names} if declaration.separator else {"multiple": True}
        return {**listed, "metavar": declaration.metavar}
    return {"metavar": declaration.metavar, "type": str}


def _names(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    """Split a comma-separated list of names."""
    names = [name.strip() for name in (value or "").split(",")]
    if value and "" in names:
        raise click.BadParameter(f"{value!r} has an empty name; leave out the comma")
    return None if value is None else [name for name in names if name]


def executor_name(_: click.Context, __: click.Parameter, name: str) -> str:
    """Check the name of an executor or of an executor file, and return it unchanged."""
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
    """Return a hidden option of version 0.1.0 that is accepted, but has no effect."""

    def note(context: click.Context, parameter: click.Parameter, value: int | None) -> None:
        if value is not None and not context.resilient_parsing:
            instead = "--max-workers says how many tasks run at once, --allowed-mem how much of a store each takes"
            click.echo(f"Note: {parameter.opts[0]} has no effect; {instead}", err=True)

    return click.Option([name], type=click.IntRange(min=1), hidden=True, expose_value=False, callback=note)
