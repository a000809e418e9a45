"""
Stress tests: killed runs, concurrent writers, broken inputs, failing storage, and erasure of withdrawn samples.

``uv run python -m tests.system.survival`` prints a table of the numbers of trials and failures. There must be none.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tally:
    """The number of trials, and one line for each failure, with the arguments that reproduce it."""

    tried: int
    failures: tuple[str, ...] = ()

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.tried + other.tried, self.failures + other.failures)
