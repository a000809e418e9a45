"""Print results and errors of commands, and set up their process."""

import gc
import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vczstore.execution.results import Found

INTERRUPTED = 128
"""Added to the number of a signal for the exit status, as in shells: 130 for SIGINT, 143 for SIGTERM."""

OWN_PROCESS = "own process"
"""The ``obj`` of click's context for a command whose process ends with it."""

COLOURS = {"error": "red", "not erased": "red", "erased": "green", "repaired": "green"}
"""Colours of words at the beginning of an indented line, or after the name of an operation."""


@contextmanager
def running(verbose: int) -> Iterator[None]:
    """Set up the process of a command, and convert its errors to one line and an exit status."""
    # collecting what imports allocate, which is no garbage, takes a tenth of the time of a short command
    gc.set_threshold(100_000)
    _log(verbose)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as on standard error: paths may not be encodable
    with _errors(verbose):
        yield
        _ignore_signals()


def _log(verbose: int) -> None:
    import logging

    # asyncio logs zarr's failed or unawaited reads in many lines, in addition to the error that is printed
    logging.getLogger("asyncio").disabled = not verbose
    if verbose:
        # icechunk reads this when it is imported
        level = "warn" if verbose == 1 else "info"
        # silence its warning about concurrent commits on local file systems: a lock prevents these
        os.environ.setdefault("ICECHUNK_LOG", f"{level},icechunk_arrow_object_store=error")
        logging.basicConfig(level=logging.INFO if verbose == 1 else logging.DEBUG, stream=sys.stderr)


def printable(text: str) -> str:
    """Escape the unprintable characters of a text: names in a damaged store may contain control sequences."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _ignore_signals() -> None:
    """Ignore signals once the command is done: an interrupt now would report a wrong status."""
    if click.get_current_context().obj == OWN_PROCESS:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def _errors(verbose: int) -> Iterator[None]:
    received = signal.SIGINT

    def terminate(*_: Any) -> None:
        nonlocal received
        received = signal.SIGTERM
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except click.ClickException as error:
        fail_as_json(click.get_current_context(), error.format_message(), error.exit_code)
        raise
    except KeyboardInterrupt as error:
        text = str(error) or "interrupted"
        fail_as_json(click.get_current_context(), text, INTERRUPTED + received)
        click.secho(text, fg="yellow", err=True)
        sys.exit(INTERRUPTED + received)
    except Exception as error:
        if verbose:
            import traceback

            traceback.print_exc()
        from vczstore.errors import VczstoreError

        status = error.exit_status if isinstance(error, VczstoreError) else 1
        text = " ".join((str(error) or type(error).__name__).split())
        if not isinstance(error, VczstoreError | OSError):
            text = f"unexpected {type(error).__name__}: {text[:300]}; --verbose shows where"
        fail_as_json(click.get_current_context(), text, status)
        click.echo(f"{click.style('Error:', fg='red')} {printable(text)}", err=True)
        sys.exit(status)


def fail_as_json(context: click.Context, text: str, status: int, *, as_json: bool | None = None) -> None:
    """Print an error as a JSON object, if the command was asked for JSON."""
    if context.params.get("as_json") if as_json is None else as_json:
        failure = {"operation": context.command_path.partition(" ")[2], "error": printable(text), "exit_status": status}
        with writing_out():
            click.echo(json.dumps({"status": "failed", **failure}))


@contextmanager
def writing_out(*, is_all: bool = False) -> Iterator[None]:
    """
    Context in which to write to standard output: if that is closed or full, print a warning and keep the exit status.

    If the output is the only purpose of the command (`is_all`), a full one raises an `OSError`, and a closed one is
    ignored.
    """
    try:
        yield
    except OSError as error:
        if is_all and not isinstance(error, BrokenPipeError):
            raise
        with suppress(OSError, io.UnsupportedOperation):  # so that flushing the buffer does not fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not is_all:
            with suppress(OSError):
                click.echo(f"Warning: standard output: {error.strerror or error}; what was done is done", err=True)


def show(outcome: "Found", *, as_json: bool, is_all: bool = False) -> None:
    """
    Print the outcome of an operation, as JSON or as styled text; `is_all` as in `writing_out`.

    It is printed on standard error if standard output has the result itself.
    """
    err = getattr(outcome, "is_printed", False)
    with writing_out(is_all=is_all):
        if as_json:
            click.echo(json.dumps(outcome.as_dict()), err=err)
            return
        for line in outcome.lines():
            click.echo(_styled(line), err=err)


def confirm(foreseen: "Found") -> None:
    """Print the outcome of a dry run; raise a `click.ClickException` unless the user confirms the deletion."""
    for line in foreseen.lines():
        click.echo(line, err=True)
    if not click.confirm("Delete it for good?", err=True):
        raise click.ClickException("nothing was done; --yes answers the question beforehand")


def _styled(line: str) -> str:
    """Style a line: the name of the operation in bold, and a verdict in its colour."""
    indent = line[: len(line) - len(line.lstrip())]
    head, colon, rest = ("", "", line.lstrip()) if indent else line.partition(": ")
    word = next((word for word in COLOURS if rest.startswith(word)), "")
    coloured = click.style(word, fg=COLOURS[word]) + rest.removeprefix(word) if word else rest
    name = click.style(f"{head}:", bold=True) + " " if colon else head
    return f"{indent}{name}{coloured}"


def wants_progress(progress: bool | None) -> bool:
    """Whether to show progress on standard error: by default, if it is a terminal."""
    return sys.stderr.isatty() if progress is None else progress
