"""The command line, called in this process."""

from __future__ import annotations

import json
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
    """
    A status and one line on standard error, which is returned.

    Standard output has nothing, or with ``--json`` an object that says the same.
    """
    result = run(*arguments, status=status, **options)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    line = lines[0].removeprefix("Error: ")
    if "--json" in arguments:
        said = json.loads(result.stdout)
        assert (said["status"], said["error"], said["exit_status"]) == ("failed", line, status)
    else:
        assert result.stdout == ""
    return line
