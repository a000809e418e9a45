"""The command line, called in this process."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner, Result

from vczstore.cli import main


def run(*arguments: object, status: int = 0, stdin: str | bytes | None = None) -> Result:
    """Call the command line in this process; what it prints goes to no terminal."""
    result = CliRunner().invoke(main.main, [str(a) for a in arguments], input=stdin)
    assert result.exit_code == status, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "\x1b" not in result.output
    return result


def fails(*arguments: object, status: int = 1, **options: Any) -> str:
    """A status, nothing on standard output, and one line on standard error; returns the line."""
    result = run(*arguments, status=status, **options)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")
