"""Create executors by name and options, with their errors converted to those of vczstore."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import executors
from vczstore.errors import MissingDependencyError, OptionError, missing_extra

if TYPE_CHECKING:
    from cubed.runtime.types import DagExecutor

WORTH_A_SECOND = 800_000_000
"""Decoded bytes that a task should have per second of its start-up; re-encoding them takes 10 s, copying them 2 s."""


def create_executor(name: str, options: Mapping[str, Any]) -> "DagExecutor":
    """
    Create an executor.

    Raises
    ------
    OptionError
        If there is no such executor, or no such option.
    MissingDependencyError
        If its library is not installed.
    """
    with _plain_errors():
        return executors.create(name, **options)


def task_bytes(executor: str, options: Mapping[str, Any]) -> int:
    """
    Return the number of decoded bytes for which it is worth to start a task; see `plans.core.memory.Memory`.

    The executor is not started.

    Raises
    ------
    OptionError
        If the options of the executor cannot be read.
    MissingDependencyError
        If its library is needed to read them, and not installed.
    """
    with _plain_errors():
        return round(executors.start_seconds(executor, **options) * WORTH_A_SECOND)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Convert errors of executors to those of vczstore."""
    try:
        yield
    except executors.ExecutorOptionError as error:
        raise OptionError(str(error)) from error
    except executors.MissingEngineError as error:
        raise (missing_extra(error, error.extra) if error.extra else MissingDependencyError(str(error))) from error
