"""Arithmetic on the chunk grid of one axis, with chunks of equal or individual widths; no I/O."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

type Width = int | tuple[int, ...]
"""The chunk widths along an axis: one width for all chunks, or one per chunk."""


@lru_cache(maxsize=128)
def _borders(widths: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(widths, dtype="i8"))])


@dataclass(frozen=True)
class Cuts:
    """
    The chunks along one axis.

    The last one may extend beyond the axis: it is encoded at its full width, padded with fill.

    Attributes
    ----------
    length
        The length of the axis, in elements.
    width
        The encoded width of the chunks. Individual widths sum to at least `length`.

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
        """The start of each chunk, and the end of the last one; only for individual widths."""
        assert isinstance(self.width, tuple)
        return _borders(self.width)

    @cached_property
    def n(self) -> int:
        """The number of chunks."""
        if isinstance(self.width, int):
            return -(-self.length // self.width)
        return int(np.searchsorted(self._borders, self.length))

    @property
    def widest(self) -> int:
        """The width of the widest chunk."""
        return self.width if isinstance(self.width, int) else int(np.diff(self._borders[: max(1, self.n) + 1]).max())

    def of(self, positions: Any) -> Any:
        """The index of the chunk that contains a position; an array for an array of positions."""
        if isinstance(self.width, int):
            return positions // self.width
        return np.searchsorted(self._borders, positions, side="right") - 1

    def start(self, chunk: Any) -> Any:
        """The start of a chunk; an array for an array of chunk indices."""
        if isinstance(self.width, int):
            return chunk * self.width
        starts = self._borders[chunk]
        return starts if isinstance(chunk, np.ndarray) else int(starts)

    def stop(self, chunk: Any) -> Any:
        """The end of a chunk, clipped to the axis; an array for an array of chunk indices."""
        ends = np.minimum(self.start(chunk + 1), self.length)
        return ends if isinstance(chunk, np.ndarray) else int(ends)

    def encoded(self, chunk: Any) -> Any:
        """The encoded width of a chunk; an array for an array of chunk indices."""
        return self.start(chunk + 1) - self.start(chunk)

    def span(self, chunk: int) -> slice:
        """The range of a chunk, clipped to the axis."""
        return slice(self.start(chunk), self.stop(chunk))

    def spans(self, start: int = 0, stop: int | None = None) -> Iterator[slice]:
        """Yield the ranges of the chunks that overlap a range (by default the axis), clipped to it."""
        stop = self.length if stop is None else stop
        if start < stop:
            for chunk in range(int(self.of(start)), int(self.of(stop - 1)) + 1):
                yield slice(max(start, self.start(chunk)), min(stop, self.stop(chunk)))

    def border(self, position: int) -> int:
        """The start of the chunk that contains a position."""
        return int(self.start(int(self.of(position))))

    @property
    def lengths(self) -> tuple[int, ...]:
        """The widths of the chunks, clipped to the axis."""
        chunks = np.arange(self.n)
        return tuple((self.stop(chunks) - self.start(chunks)).tolist())

    @property
    def is_even(self) -> bool:
        """Whether the last chunk ends where the axis does."""
        return bool(self.start(self.n) == self.length)
