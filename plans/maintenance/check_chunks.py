"""Scans that check that chunks decode, and that their values are allowed."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from zarr.abc.buffer import Buffer
from zarr.types import AnyArray

from plans.core.chunk_grid import MIN_TASKS, TASK_BYTES, TASK_CHUNKS
from plans.maintenance.findings import Finding, FindingScan, TaskFindings, key_in_array
from vczstore.errors import first_line
from vczstore.vcz import arrays, encoded_chunks, pipeline
from vczstore.vcz.missing import is_missing
from vczstore.vcz.model import listing


@dataclass(frozen=True)
class Outside:
    """Scan that counts stored chunks outside the grids of arrays; `arrays` are pairs of name and array."""

    arrays: tuple[tuple[str, AnyArray], ...]

    def look(self, number: slice) -> TaskFindings | None:
        """Count the chunks outside the grid of one array, given by a slice of length 1; None if there are none."""
        name, array = self.arrays[number.start]
        n = encoded_chunks.count_outside(array)
        return TaskFindings(name, outside=n) if n else None


@dataclass(frozen=True)
class Chunks:
    """
    Scan that decodes all chunks of one array and checks their values.

    Attributes
    ----------
    name, array
        The array.
    axis, removed
        The samples axis, and the sorted positions of removed samples along it, whose values must be missing. The axis
        is None where no sample is checked.
    n_alleles
        Number of alleles, to check genotypes against; None for other arrays.
    """

    name: str
    array: AnyArray
    axis: int | None
    removed: np.ndarray
    n_alleles: int | None

    def scan(self) -> FindingScan:
        """Return a scan over all chunks by their number in C order, about `TASK_BYTES` in a task."""
        n = math.prod(self._grid)
        per_task = max(1, min(TASK_CHUNKS, TASK_BYTES // max(1, self._chunk_bytes), math.ceil(n / MIN_TASKS)))
        # encoded chunks read together, plus the values of the decoded one and temporaries of the comparison
        mem = (self._at_once + 2) * self._chunk_bytes + arrays.decode_mem(self.array, 1)
        return FindingScan(self.look, n, per_task, mem)

    @property
    def _grid(self) -> tuple[int, ...]:
        return arrays.grid_of(self.array)

    @property
    def _chunk_bytes(self) -> int:
        return arrays.chunk_bytes(self.array)

    @property
    def _at_once(self) -> int:
        return max(1, min(pipeline.READS_AT_ONCE, TASK_BYTES // max(1, self._chunk_bytes)))

    def look(self, numbers: slice) -> TaskFindings:
        """Check some chunks: read their bytes in groups, decode one after the other."""
        seen = TaskFindings(self.name)
        decoder = encoded_chunks.ChunkDecoder(self.array)
        for start in range(numbers.start, numbers.stop, self._at_once):
            stop = min(numbers.stop, start + self._at_once)
            coords = [tuple(int(i) for i in np.unravel_index(n, self._grid)) for n in range(start, stop)]
            for at, value in self._encoded(coords):
                if value is None:
                    seen.absent += 1
                    error = self._left_in_fill(at)
                else:
                    seen.stored += 1
                    error = value if isinstance(value, str) else self._wrong(decoder, at, value)
                if error is not None:
                    seen.errors.append(Finding(self.name, key_in_array(self.array, at), error))
        return seen

    def _encoded(self, coords: Sequence[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], Buffer | str | None]]:
        """Yield the coordinates of chunks with their bytes, None if absent, or a message if they cannot be read."""
        try:
            yield from zip(coords, encoded_chunks.get_encoded(self.array, coords), strict=True)
        except Exception as error:
            if len(coords) == 1:
                yield coords[0], f"cannot be read ({first_line(error)})"
                return
            for at in coords:
                yield from self._encoded([at])

    def _wrong(self, decoder: encoded_chunks.ChunkDecoder, at: tuple[int, ...], value: Buffer) -> str | None:
        """Return a message about the error of a stored chunk, or None."""
        size = encoded_chunks.frame_length(self.array, value)
        if size is not None and size != len(value):
            return f"is {'cut off' if size > len(value) else 'too long'}: it has {len(value):,} bytes of {size:,}"
        try:
            values = decoder.decode(at, value)
        except Exception as error:
            return f"cannot be decoded ({first_line(error)})"
        if self.n_alleles is not None and values.size and not -2 <= values.min() <= values.max() < self.n_alleles:
            return f"has genotypes from {values.min()} to {values.max()}, there are {self.n_alleles} alleles"
        return self._left(values, at)

    def _left_in_fill(self, at: tuple[int, ...]) -> str | None:
        """Return a message if removed samples lie in an absent chunk whose fill value is not missing, or None."""
        fill = np.asarray(self.array.fill_value)
        if self.axis is None or self.array.fill_value is None or fill.dtype.kind != self.array.dtype.kind:
            return None
        removed = self._removed_in(at)
        if not len(removed) or is_missing(self.name, self.array, fill[np.newaxis]).all():
            return None
        return _describe_left(removed)

    def _removed_in(self, at: tuple[int, ...]) -> np.ndarray:
        """Return the positions of the removed samples in a chunk."""
        region = encoded_chunks.chunk_region(self.array, at)[self.axis or 0]
        return self.removed[np.searchsorted(self.removed, region.start) : np.searchsorted(self.removed, region.stop)]

    def _left(self, values: np.ndarray, at: tuple[int, ...]) -> str | None:
        """Return a message if a chunk still has values of removed samples, or None."""
        if self.axis is None:
            return None
        region, removed = encoded_chunks.chunk_region(self.array, at)[self.axis], self._removed_in(at)
        if not len(removed):
            return None
        by_sample = np.moveaxis(values, self.axis, 0)[removed - region.start]
        left = ~is_missing(self.name, self.array, by_sample).reshape(len(removed), -1).all(axis=1)
        if not left.any():
            return None
        return _describe_left(removed[left])


LEFT = "has values of removed samples"
"""Prefix of the findings that `plans.compilers.remove.compile_repair` can fix."""


def _describe_left(samples: np.ndarray) -> str:
    return f"{LEFT}, at {listing(samples.tolist())}; vczstore repair makes them missing"
