"""Messages say of which operation they are, and interrupts also what state the store is in."""

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


class Left(NamedTuple):
    """Which operation was cut short, what state it leaves the store in, and the way out, if any is known."""

    operation: str
    state: str
    way_out: str = ""

    @property
    def words(self) -> str:
        """For the end of a message."""
        return f"{self.state}; {self.way_out}" if self.way_out else self.state


@dataclass
class Standing:
    """What state an operation leaves the store in if it is interrupted now."""

    state: str = NOTHING_WRITTEN


@contextmanager
def naming(operation: str) -> Iterator[Standing]:
    """
    Let errors and interrupts that do not begin with the name of an operation begin with this one.

    Yields
    ------
    Standing
        What an interrupt says that has no words of its own; it is to be kept up to date.
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
    """An operation and its store, for a log; a store that is open has no name to tell."""
    store = operation.store
    return f"{operation.called} {os.fspath(store) if isinstance(store, str | os.PathLike) else type(store).__name__}"


def when_begun(operation: operations.Operation, *, dry_run: bool) -> str:
    """What an interrupt says once an operation has begun, where nothing is known that is more precise."""
    if dry_run:
        return NOTHING_WRITTEN
    return IN_PART if operation.writes or isinstance(operation, operations.Edit) else AS_IT_WAS


def is_named(error: VczstoreError) -> bool:
    """Whether an error says of which operation it is, or in which line of a job file."""
    name, colon, _ = str(error).partition(":")
    return isinstance(error, JobFileError) or (colon != "" and name in {*_COMMANDS, *operations.names()})
