"""Cuts: how an axis is cut into chunks of equal or individual widths. Integers in, integers out."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

type Width = int | tuple[int, ...]
"""How wide the chunks along an axis are: all of them, or each."""


@lru_cache(maxsize=128)
def _borders(widths: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(widths, dtype="i8"))])


@dataclass(frozen=True)
class Cuts:
    """
    The chunks along one axis.

    The last one may be wider than what is left of the axis: it is encoded as wide as it is, and what lies beyond the
    axis is fill.

    Attributes
    ----------
    length
        Of the axis, in elements.
    width
        How wide its chunks are, as they are encoded. Chunks of several widths cover the axis.

    Examples
    --------
    >>> cuts = Cuts(10, 4)
    >>> cuts.n, list(cuts.spans()), cuts.encoded(2)
    (3, [slice(0, 4, None), slice(4, 8, None), slice(8, 10, None)], 4)
    >>> cuts = Cuts(10, (4, 1, 5))
    >>> cuts.n, list(cuts.spans()), cuts.of(np.array([3, 4, 5]))
    (3, [slice(0, 4, None), slice(4, 5, None), slice(5, 10, None)], array([0, 1, 2]))
    """

    length: int
    width: Width

    def __getstate__(self) -> dict[str, Any]:
        return {"length": self.length, "width": self.width}

    @cached_property
    def _borders(self) -> np.ndarray:
        """Where chunks begin that have each a width of their own, and where the last one ends."""
        assert isinstance(self.width, tuple)
        return _borders(self.width)

    @cached_property
    def n(self) -> int:
        """How many chunks there are."""
        if isinstance(self.width, int):
            return -(-self.length // self.width)
        return int(np.searchsorted(self._borders, self.length))

    @property
    def widest(self) -> int:
        """The width of the widest chunk."""
        return self.width if isinstance(self.width, int) else int(np.diff(self._borders[: max(1, self.n) + 1]).max())

    def of(self, positions: Any) -> Any:
        """The chunk of a position, or of each."""
        if isinstance(self.width, int):
            return positions // self.width
        return np.searchsorted(self._borders, positions, side="right") - 1

    def start(self, chunk: Any) -> Any:
        """Where a chunk begins, or each."""
        if isinstance(self.width, int):
            return chunk * self.width
        starts = self._borders[chunk]
        return starts if isinstance(chunk, np.ndarray) else int(starts)

    def stop(self, chunk: Any) -> Any:
        """Where a chunk ends, or each, as far as the axis goes."""
        ends = np.minimum(self.start(chunk + 1), self.length)
        return ends if isinstance(chunk, np.ndarray) else int(ends)

    def encoded(self, chunk: Any) -> Any:
        """How wide a chunk is encoded, or each."""
        return self.start(chunk + 1) - self.start(chunk)

    def span(self, chunk: int) -> slice:
        """Where a chunk is."""
        return slice(self.start(chunk), self.stop(chunk))

    def spans(self, start: int = 0, stop: int | None = None) -> Iterator[slice]:
        """Where the chunks are that a range has a part in, cut to the range."""
        stop = self.length if stop is None else stop
        if start < stop:
            for chunk in range(int(self.of(start)), int(self.of(stop - 1)) + 1):
                yield slice(max(start, self.start(chunk)), min(stop, self.stop(chunk)))

    def border(self, position: int) -> int:
        """The last border between chunks up to a position."""
        return int(self.start(int(self.of(position))))

    @property
    def lengths(self) -> tuple[int, ...]:
        """How wide the chunks are, as far as the axis goes."""
        chunks = np.arange(self.n)
        return tuple((self.stop(chunks) - self.start(chunks)).tolist())

    @property
    def is_even(self) -> bool:
        """Whether the last chunk ends where the axis does."""
        return bool(self.start(self.n) == self.length)
