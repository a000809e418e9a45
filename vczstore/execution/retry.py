"""Retry after a concurrent commit."""

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any

from vczstore.errors import ConflictError

PAUSE = 0.5
"""Up to how many seconds pass before a retry, more each time: others may be retrying too."""


def retried[T](
    attempt: Callable[[], T], max_retries: int, turn: Callable[[], AbstractContextManager[Any]]
) -> tuple[T, int]:
    """
    Plan and run; where another writer has changed the store meanwhile, do it again from what the store is now.

    Nothing is rebased onto the other's commit: what was planned against another state may be wrong in this one.

    Parameters
    ----------
    attempt
        Opens the store, plans and runs.
    max_retries
        How often it is done again.
    turn
        What is held while it is done again, so that several who have lost do not go on losing to each other.

    Returns
    -------
    result
        Of the attempt that succeeded.
    int
        How often it was done again.

    Raises
    ------
    ConflictError
        If the last attempt has lost, too.
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
