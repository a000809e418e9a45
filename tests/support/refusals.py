"""Assertions on refused calls: the class of the error, and the words in its one-line message."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest

from vczstore.errors import (
    VczstoreError,
)


def complain(error: type[VczstoreError], words: Sequence[str], call: Callable[[], object]) -> str:
    """Assert that a call raises this error with a one-line message that matches all regular expressions in `words`."""
    with pytest.raises(VczstoreError) as caught:
        call()
    message = str(caught.value)
    assert isinstance(caught.value, error), repr(caught.value)
    assert message
    assert "\n" not in message
    mentions(message, words)
    return message


def mentions(message: str, words: Sequence[str]) -> None:
    absent = [word for word in words if not re.search(word, message)]
    assert not absent, f"{absent} not in: {message}"
