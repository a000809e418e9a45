"""Retry after a concurrent commit."""

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any

from vczstore.errors import ConflictError

PAUSE = 0.5
"""Maximum of the random delay before the first retry, in seconds; it doubles with each further one."""


def retried[T](
    attempt: Callable[[], T], max_retries: int, turn: Callable[[], AbstractContextManager[Any]]
) -> tuple[T, int]:
    """
    Call `attempt`, and retry it from the current state of the store after a concurrent commit.

    Nothing is rebased onto the other commit: a plan may be wrong for a state that it was not compiled against.

    Parameters
    ----------
    attempt
        Opens the store, compiles the plan and runs it.
    max_retries
        Maximum number of retries.
    turn
        Returns the lock to hold during a retry, so that writers cannot starve one another.

    Returns
    -------
    result
        Result of the attempt that succeeded.
    int
        Number of retries.

    Raises
    ------
    ConflictError
        If the last attempt has met a concurrent commit, too.
    """
    for n in count():
        try:
            with turn() if n else nullcontext():
                return attempt(), n
        except ConflictError as error:
            if n == max_retries:
                raise ConflictError(f"{error} (retried {n} times)" if n else str(error)) from error
        time.sleep(random.uniform(0, PAUSE * 2**n))
    raise AssertionError("unreachable")
