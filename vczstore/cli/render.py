"""What commands print: results and errors."""

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
"""With the number of the signal, as shells have it: 130 for SIGINT, 143 for SIGTERM."""

OWN_PROCESS = "own process"
"""The ``obj`` of a command that is all that its process is for."""

COLOURS = {"error": "red", "not erased": "red", "erased": "green", "repaired": "green"}
"""Words at the beginning of what follows the name of an operation, or of a line, that have a colour."""


@contextmanager
def running(verbose: int) -> Iterator[None]:
    """Set up the process of a command, turn errors into one line and an exit status, and end in peace."""
    # what imports allocate is not garbage: looking for some in it takes a tenth of a short command
    gc.set_threshold(100_000)
    _log(verbose)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # paths may be no text, as on standard error
    with _errors(verbose):
        yield
        _end_in_peace()


def _log(verbose: int) -> None:
    import logging

    # it would tell, in many lines, of zarr's reads that failed or that nothing awaits, beside the error that is told
    logging.getLogger("asyncio").disabled = not verbose
    if verbose:
        # icechunk reads this when it is imported
        level = "warn" if verbose == 1 else "info"
        # without its warning about commits at once on a local file system, where a lock is held
        os.environ.setdefault("ICECHUNK_LOG", f"{level},icechunk_arrow_object_store=error")
        logging.basicConfig(level=logging.INFO if verbose == 1 else logging.DEBUG, stream=sys.stderr)


def printable(text: str) -> str:
    """Return a text in one line: names that a damaged store or a user has may hold what changes a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _end_in_peace() -> None:
    """What is done is done: an interrupt that comes now could only say otherwise."""
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
    """Print what went wrong as one JSON object, if the command was to print one."""
    if context.params.get("as_json") if as_json is None else as_json:
        said = {"operation": context.command_path.partition(" ")[2], "error": printable(text), "exit_status": status}
        with writing_out():
            click.echo(json.dumps({"status": "failed", **said}))


@contextmanager
def writing_out(*, is_all: bool = False) -> Iterator[None]:
    """
    Write to standard output; one that is closed or full changes nothing of what was done, nor of the status.

    Where output `is_all` that a command is for, a full one is an error; a reader that has closed it has seen enough.
    """
    try:
        yield
    except OSError as error:
        if is_all and not isinstance(error, BrokenPipeError):
            raise
        with suppress(OSError, io.UnsupportedOperation):  # so that what is buffered does not fail once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not is_all:
            with suppress(OSError):
                click.echo(f"Warning: standard output: {error.strerror or error}; what was done is done", err=True)


def show(found: "Found", *, as_json: bool, is_all: bool = False) -> None:
    """Print what an operation has done or found, as JSON or as text whose names are bold."""
    with writing_out(is_all=is_all):
        if as_json:
            click.echo(json.dumps(found.as_dict()))
            return
        for line in found.lines():
            click.echo(_styled(line))


def confirm(foreseen: "Found") -> None:
    """Show on a terminal what is going to be deleted, and end the command unless the user agrees."""
    for line in foreseen.lines():
        click.echo(line, err=True)
    if not click.confirm("Delete it for good?", err=True):
        raise click.ClickException("nothing was done; --yes answers the question beforehand")


def _styled(line: str) -> str:
    """A line with the operation in bold, and a verdict in its colour."""
    indent = line[: len(line) - len(line.lstrip())]
    head, colon, rest = ("", "", line.lstrip()) if indent else line.partition(": ")
    word = next((word for word in COLOURS if rest.startswith(word)), "")
    coloured = click.style(word, fg=COLOURS[word]) + rest.removeprefix(word) if word else rest
    name = click.style(f"{head}:", bold=True) + " " if colon else head
    return f"{indent}{name}{coloured}"


def wants_progress(asked: bool | None) -> bool:
    """Whether progress is shown on standard error: if it is a terminal, or the user wants it."""
    return sys.stderr.isatty() if asked is None else asked
