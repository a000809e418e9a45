"""Generate the reference pages of the guide from the command line's options and the public docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

import click
import griffe

import vczstore
from vczstore.cli.main import Command, main

HOW = "It is generated; `tests/system/test_guide.py` checks that it is up to date, and says how to write it again."


def commands() -> str:
    """Return the page of commands."""
    parts = [
        "# Commands\n",
        f"Every command of `vczstore`, with its options and their defaults, as in `vczstore COMMAND --help`. {HOW}",
        *(_command(command, path) for path, command in _walk(main, ("vczstore",))),
    ]
    return "\n".join(parts)


def _walk(group: click.Group, path: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _walk(command, (*path, name))
        else:
            yield (*path, name), command


def _command(command: click.Command, path: tuple[str, ...]) -> str:
    context = click.Context(command, info_name=" ".join(path))
    assert isinstance(command, Command)
    sections = command.sections(context)
    sections["Output"].pop()  # --help
    tables = [
        f"**{title}**\n\n" * (len(sections) > 1)
        + _table(("option", "meaning", "default"), [_option(option, context) for option in options])
        for title, options in sections.items()
    ]
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    text = inspect.cleandoc(command.help or "")
    return "\n".join([f"\n## {' '.join(path[1:])}\n\n```text\n{usage}\n```\n\n{text}\n", *tables])


def _option(option: click.Option, context: click.Context) -> tuple[str, str, str]:
    """The table cells of an option: spelling, meaning and default."""
    record = option.get_help_record(context)
    assert record is not None
    default = option.get_help_extra(context).get("default", "")
    meaning, _, default_in_help = (option.help or "").partition("  [default: ")
    spelling = record[0].replace("INTEGER RANGE", "N")
    return f"`{spelling}`", meaning, f"`{default}`" if default else default_in_help.removesuffix("]")


def python() -> str:
    """Return the page of the Python API."""
    parts = ["# Python API\n", f"What `import vczstore` offers, from the declarations and docstrings. {HOW}"]
    for name in vczstore.__all__:
        public = getattr(vczstore, name)
        text = griffe.Docstring(inspect.getdoc(public) or "").parse("numpy")
        parameters = f"({_signature(public)})" if inspect.isfunction(public) else ""
        parts.append(_object(f"vczstore.{name}{parameters}", name, text))
    return re.sub(r"(?<!`)``(?!`)", "`", "\n".join(parts))  # numpydoc's code to Markdown's


def _object(signature: str, title: str, sections: Any) -> str:
    parts = [f"\n## {title}\n", f"```text\n{signature}\n```\n"]
    for section in sections:
        match section.kind.value:
            case "text":
                parts.append(section.value + "\n")
            case "parameters" | "attributes" | "raises" | "returns" | "yields" as kind:
                parts.append(f"**{kind.capitalize()}**\n\n{_described(section.value)}")
            case "examples":
                text = "\n".join(text.replace("  # doctest: +SKIP", "") for _, text in section.value)
                parts.append(f"**Example**\n\n```text\n{text}\n```\n")
            case kind:
                raise ValueError(f"{title}: a docstring with {kind}")
    return "\n".join(parts)


def _signature(function: Any) -> str:
    """The parameters of a function with their defaults, one per line."""
    parameters = [
        str(parameter.replace(annotation=inspect.Parameter.empty))
        for parameter in inspect.signature(function).parameters.values()
    ]
    return "\n" + "".join(f"    {parameter},\n" for parameter in parameters)


def _described(items: Iterable[Any]) -> str:
    rows = []
    for item in items:
        name = getattr(item, "name", "") or str(item.annotation)
        rows.append((f"`{name}`", item.description))
    return _table(("", ""), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"
