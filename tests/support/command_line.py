"""The command line, invoked in this process."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from vczstore.cli import main


def run(*arguments: object, status: int = 0, stdin: str | bytes | None = None) -> Result:
    """Invoke the command line, assert its exit status, and return its result. Its output is not a terminal."""
    result = CliRunner().invoke(main.main, [str(a) for a in arguments], input=stdin)
    assert result.exit_code == status, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "\x1b" not in result.output
    return result


def printed(*arguments: object, status: int = 0) -> str:
    """Invoke the command line, assert its exit status, and return all that it prints."""
    return run(*arguments, status=status).output


def fails(*arguments: object, status: int = 1, **options: Any) -> str:
    """
    Assert that a command fails with this status and one line on standard error; return the line.

    Standard output must be empty, or with ``--json`` an object with the same message and status.
    """
    result = run(*arguments, status=status, **options)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    line = lines[0].removeprefix("Error: ")
    if "--json" in arguments:
        document = json.loads(result.stdout)
        assert (document["status"], document["error"], document["exit_status"]) == ("failed", line, status)
    else:
        assert result.stdout == ""
    return line
