"""Whether the chunks of an array decode, and hold what they may; looked at by tasks."""

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
    """Chunks that lie outside the grids of arrays, each with its name."""

    arrays: tuple[tuple[str, AnyArray], ...]

    def look(self, number: slice) -> TaskFindings | None:
        """Count those of one array."""
        name, array = self.arrays[number.start]
        n = encoded_chunks.count_outside(array)
        return TaskFindings(name, outside=n) if n else None


@dataclass(frozen=True)
class Chunks:
    """
    The chunks of one array decode, and hold what they may.

    Attributes
    ----------
    name, array
        The array.
    axis, removed
        Where removed samples are, whose values have to be missing.
    n_alleles
        How many alleles genotypes may name.
    """

    name: str
    array: AnyArray
    axis: int | None
    removed: np.ndarray
    n_alleles: int | None

    def scan(self) -> FindingScan:
        """Over all chunks by number, about `TASK_BYTES` in a task."""
        n = math.prod(self._grid)
        per_task = max(1, min(TASK_CHUNKS, TASK_BYTES // max(1, self._chunk_bytes), math.ceil(n / MIN_TASKS)))
        # some encoded ones; of one that is decoded the bytes, its values, and what they are compared with
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
        """Decode some chunks, one after the other."""
        seen = TaskFindings(self.name)
        decoder = encoded_chunks.ChunkDecoder(self.array)
        for start in range(numbers.start, numbers.stop, self._at_once):
            stop = min(numbers.stop, start + self._at_once)
            coords = [tuple(int(i) for i in np.unravel_index(n, self._grid)) for n in range(start, stop)]
            for at, value in self._encoded(coords):
                if value is None:
                    seen.absent += 1
                    what = self._left_in_fill(at)
                else:
                    seen.stored += 1
                    what = value if isinstance(value, str) else self._wrong(decoder, at, value)
                if what is not None:
                    seen.errors.append(Finding(self.name, key_in_array(self.array, at), what))
        return seen

    def _encoded(self, coords: Sequence[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], Buffer | str | None]]:
        """The bytes of chunks, None for those that are absent, and why for those that cannot be read."""
        try:
            yield from zip(coords, encoded_chunks.get_encoded(self.array, coords), strict=True)
        except Exception as error:
            if len(coords) == 1:
                yield coords[0], f"cannot be read ({first_line(error)})"
                return
            for at in coords:
                yield from self._encoded([at])

    def _wrong(self, decoder: encoded_chunks.ChunkDecoder, at: tuple[int, ...], value: Buffer) -> str | None:
        """What is wrong with a chunk, None if nothing is."""
        said = encoded_chunks.frame_length(self.array, value)
        if said is not None and said != len(value):
            return f"is {'cut off' if said > len(value) else 'too long'}: it has {len(value):,} bytes of {said:,}"
        try:
            values = decoder.decode(at, value)
        except Exception as error:
            return f"cannot be decoded ({first_line(error)})"
        if self.n_alleles is not None and values.size and not -2 <= values.min() <= values.max() < self.n_alleles:
            return f"has genotypes from {values.min()} to {values.max()}, there are {self.n_alleles} alleles"
        return self._left(values, at)

    def _left_in_fill(self, at: tuple[int, ...]) -> str | None:
        """Whether removed samples have the fill value of a chunk that is absent, and it is not missing."""
        fill = np.asarray(self.array.fill_value)
        if self.axis is None or self.array.fill_value is None or fill.dtype.kind != self.array.dtype.kind:
            return None
        here = self._removed_in(at)
        if not len(here) or is_missing(self.name, self.array, fill[np.newaxis]).all():
            return None
        return _describe_left(here)

    def _removed_in(self, at: tuple[int, ...]) -> np.ndarray:
        """Which removed samples a chunk has."""
        region = encoded_chunks.chunk_region(self.array, at)[self.axis or 0]
        return self.removed[np.searchsorted(self.removed, region.start) : np.searchsorted(self.removed, region.stop)]

    def _left(self, values: np.ndarray, at: tuple[int, ...]) -> str | None:
        """Whether removed samples have values still."""
        if self.axis is None:
            return None
        region, here = encoded_chunks.chunk_region(self.array, at)[self.axis], self._removed_in(at)
        if not len(here):
            return None
        theirs = np.moveaxis(values, self.axis, 0)[here - region.start]
        left = ~is_missing(self.name, self.array, theirs).reshape(len(here), -1).all(axis=1)
        if not left.any():
            return None
        return _describe_left(here[left])


LEFT = "has values of removed samples"
"""How what is said of an array begins that `plans.compilers.remove.compile_repair` mends."""


def _describe_left(samples: np.ndarray) -> str:
    return f"{LEFT}, at {listing(samples.tolist())}; vczstore repair makes them missing"
