"""Scans that check that chunks decode, and that their values are allowed."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from zarr.abc.buffer import Buffer
from zarr.types import AnyArray

from plans.core.chunk_grid import MIN_TASKS, TASK_BYTES, TASK_CHUNKS
from plans.core.compatibility import count_alleles
from plans.core.scan_reader import ScanReader
from plans.maintenance.findings import Finding, TaskFindings, key_in_array
from vczstore.errors import first_line
from vczstore.vcz import arrays, encoded_chunks, pipeline
from vczstore.vcz.missing import INT_FILL, is_missing
from vczstore.vcz.model import listing


def count_outside(named: Sequence[tuple[str, AnyArray]], number: slice) -> TaskFindings | None:
    """Count the stored chunks outside the grid of the array with a number; None if there are none."""
    name, array = named[number.start]
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
    alleles
        ``variant_allele``, to check genotypes against; None for other arrays.
    """

    name: str
    array: AnyArray
    axis: int | None
    removed: np.ndarray
    alleles: AnyArray | None

    def scan(self) -> ScanReader:
        """Return a scan over all chunks by their number in C order, about `TASK_BYTES` in a task."""
        n = math.prod(self._grid)
        per_task = max(1, min(TASK_CHUNKS, TASK_BYTES // max(1, self._chunk_bytes), math.ceil(n / MIN_TASKS)))
        # encoded chunks read together, plus the values of the decoded one and temporaries of the comparison
        mem = (self._at_once + 2) * self._chunk_bytes + arrays.decode_mem(self.array, 1)
        if self.alleles is not None:
            # a chunk row of alleles, encoded and decoded, and three copies as str; integers by row of genotypes
            mem += arrays.decode_mem(self.alleles, arrays.grid_of(self.alleles)[1])
            mem += 3 * 64 * arrays.outer_chunks(self.alleles)[0] * self.alleles.shape[1]
            mem += 24 * arrays.outer_chunks(self.array)[0]
        return ScanReader(self.look, n, per_task, mem)

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
        chunk_row, n_alleles = -1, None
        for start in range(numbers.start, numbers.stop, self._at_once):
            stop = min(numbers.stop, start + self._at_once)
            coords = [tuple(int(i) for i in np.unravel_index(n, self._grid)) for n in range(start, stop)]
            for at, value in self._encoded(coords):
                if value is None:
                    seen.absent += 1
                    error = self._left(self._fill(at), at)
                else:
                    seen.stored += 1
                    if self.alleles is not None and at[0] != chunk_row:
                        chunk_row = at[0]
                        n_alleles = _n_alleles(self.alleles, encoded_chunks.chunk_region(self.array, at)[0])
                    error = value if isinstance(value, str) else self._wrong(decoder, at, value, n_alleles)
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

    def _wrong(
        self, decoder: encoded_chunks.ChunkDecoder, at: tuple[int, ...], value: Buffer, n_alleles: np.ndarray | None
    ) -> str | None:
        """Return a message about the error of a stored chunk, or None; `n_alleles` is by variant of the chunk."""
        size = encoded_chunks.frame_length(self.array, value)
        if size is not None and size != len(value):
            return f"is {'cut off' if size > len(value) else 'too long'}: it has {len(value):,} bytes of {size:,}"
        try:
            values = decoder.decode(at, value)
        except Exception as error:
            return f"cannot be decoded ({first_line(error)})"
        invalid = None if n_alleles is None else self._invalid_allele(values, at, n_alleles)
        return self._left(values, at) if invalid is None else invalid

    def _invalid_allele(self, values: np.ndarray, at: tuple[int, ...], n_alleles: np.ndarray) -> str | None:
        """Return a message about the first genotype with an allele index that its variant does not have, or None."""
        if not values.size or (values.min() >= INT_FILL and values.max() < n_alleles.min()):
            return None
        lowest, highest = values.min(axis=(1, 2)), values.max(axis=(1, 2))
        is_invalid = (lowest < INT_FILL) | (highest >= n_alleles)
        if not is_invalid.any():
            return None
        row = int(np.argmax(is_invalid))
        n = int(n_alleles[row])
        calls = values[row]
        sample, i = np.argwhere((calls < INT_FILL) | (calls >= n))[0].tolist()
        variants, samples, _ = encoded_chunks.chunk_region(self.array, at)
        return (
            f"variant {variants.start + row} has allele {calls[sample, i]} in the genotype of sample "
            f"{samples.start + sample}, there {'is 1 allele' if n == 1 else f'are {n} alleles'}; vczstore update "
            "replaces the sample's calls"
        )

    def _fill(self, at: tuple[int, ...]) -> np.ndarray | None:
        """Return the fill value, once for each sample of a chunk; None if it is of another kind than the array."""
        fill = np.asarray(self.array.fill_value)
        if self.axis is None or self.array.fill_value is None or fill.dtype.kind != self.array.dtype.kind:
            return None
        region = encoded_chunks.chunk_region(self.array, at)[self.axis]
        return np.broadcast_to(fill, [region.stop - region.start if i == self.axis else 1 for i in range(len(at))])

    def _left(self, values: np.ndarray | None, at: tuple[int, ...]) -> str | None:
        """Return a message if a chunk still has values of removed samples, or None."""
        if self.axis is None or values is None:
            return None
        region = encoded_chunks.chunk_region(self.array, at)[self.axis]
        first, after = np.searchsorted(self.removed, (region.start, region.stop))
        removed = self.removed[first:after]
        if not len(removed):
            return None
        by_sample = np.moveaxis(values, self.axis, 0)[removed - region.start]
        left = removed[~is_missing(self.name, self.array, by_sample).reshape(len(removed), -1).all(axis=1)]
        return f"{LEFT}, at {listing(left.tolist())}; vczstore repair makes them missing" if len(left) else None


def _n_alleles(alleles: AnyArray, rows: slice) -> np.ndarray:
    """
    Return the number of alleles of some variants.

    It is the width of ``variant_allele`` in chunks that cannot be decoded, which the scan of that array reports.
    """
    n_variants, width = alleles.shape
    counts = np.full(rows.stop - rows.start, width)
    for span in arrays.cuts(alleles)[0].spans(rows.start, min(rows.stop, n_variants)):
        try:
            texts = arrays.read_strings(alleles, (span, slice(0, width)))
        except Exception:
            continue
        counts[span.start - rows.start : span.stop - rows.start] = count_alleles(texts)
    return counts


LEFT = "has values of removed samples"
"""Prefix of the findings that `plans.compilers.remove.compile_repair` can fix."""
