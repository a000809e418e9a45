"""Calls that are refused: the class of the error, and what its one line says."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest

from vczstore.errors import (
    VczstoreError,
)


def complain(error: type[VczstoreError], words: Sequence[str], call: Callable[[], object]) -> str:
    """The call raises one line of the class, with all the words in it (each a regular expression)."""
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
