"""
What stores survive: runs that are killed, writers at once, broken inputs, failing storage, and withdrawals.

``uv run python -m tests.system.survival`` prints a table of what was tried and what went wrong,
which has to be nothing.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tally:
    """How much was tried, and what went wrong: one line for each failure, which says how to repeat it."""

    tried: int
    bad: tuple[str, ...] = ()

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.tried + other.tried, self.bad + other.bad)
