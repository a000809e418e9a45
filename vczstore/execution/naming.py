"""Prefix errors with the name of their operation, and add the state of the store to interrupts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from vczstore.errors import Interrupted, JobFileError, VczstoreError, with_words
from vczstore.execution import operations

NOTHING_WRITTEN, DONE, AS_IT_WAS = "nothing was written", "it was done already", "it has changed nothing in the store"
UNKNOWN = "whether it was committed is not known"
LOOK = "see vczstore log, and if it was not, run the same command again"
IN_PART = "it may be done, or a part of it; run the same command again"

_COMMANDS = ("run", "plan", "report")


class Aborted(NamedTuple):
    """An aborted operation, the state in which it leaves the store, and the remedy (empty if none), for messages."""

    operation: str
    state: str
    way_out: str = ""

    @property
    def words(self) -> str:
        """The state and the remedy, for the end of a message."""
        return f"{self.state}; {self.way_out}" if self.way_out else self.state


@dataclass
class Standing:
    """The state in which a running operation leaves the store if it is interrupted now; updated as it runs."""

    state: str = NOTHING_WRITTEN


@contextmanager
def naming(operation: str) -> Iterator[Standing]:
    """
    Prefix errors and interrupts with the name of the operation, unless they begin with one already.

    Yields
    ------
    Standing
        Reported by an interrupt that has no message of its own; the caller keeps it up to date.
    """
    standing = Standing()
    try:
        yield standing
    except VczstoreError as error:
        if is_named(error):
            raise
        raise with_words(error, before=f"{operation}: ") from error
    except KeyboardInterrupt as error:
        if str(error):
            raise
        raise Interrupted(f"{operation}: interrupted; {standing.state}") from error


def title(operation: operations.Operation) -> str:
    """Return the operation and its store, for a log; a store that was passed as an object is named by its class."""
    store = operation.store
    return f"{operation.called} {os.fspath(store) if isinstance(store, str | os.PathLike) else type(store).__name__}"


def when_begun(operation: operations.Operation, *, dry_run: bool) -> str:
    """Return the state to report for an interrupt after an operation has begun, if nothing more precise is known."""
    if dry_run:
        return NOTHING_WRITTEN
    return IN_PART if operation.writes or isinstance(operation, operations.Edit) else AS_IT_WAS


def is_named(error: VczstoreError) -> bool:
    """Whether the message of an error begins with an operation, or with the line of a job file."""
    name, colon, _ = str(error).partition(":")
    return isinstance(error, JobFileError) or (colon != "" and name in {*_COMMANDS, *operations.names()})
