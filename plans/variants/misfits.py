"""Misfits: values of a source that do not fit the alleles of its own variants, found before anything is written.

Where alleles are re-numbered, a vector with more values than its alleles account for would lose some, and the index of
an allele that the variant does not have would become that of another allele of the store. Only variants to which this
can happen are read.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from zarr.types import AnyArray

from plans.core.memory import Memory
from plans.core.scan_reader import ScanReader
from plans.variants.block_calls import used_blocks
from plans.variants.find_matches import UnitReport
from plans.variants.in_order import Field
from plans.variants.match_index import Index, Matches, Unit
from vczstore.vcz import arrays

VECTOR_BYTES = 64
"""Memory for checking one vector, in addition to its values."""


class Misfit(NamedTuple):
    """
    The first call of a field that does not fit.

    Attributes
    ----------
    source, name, row
        Number of the source, name of the array, and row of the variant.
    n_alleles
        Number of alleles of the variant.
    found, expected
        Actual and expected number of values, the latter -1 if the ploidy is unknown. In a field of allele indices, the
        index, and the number of alleles.
    """

    source: int
    name: str
    row: int
    n_alleles: int
    found: int
    expected: int


@dataclass(frozen=True)
class Source:
    """
    The fields of one source that are checked.

    Attributes
    ----------
    vectors
        Arrays of one value per allele, ALT or genotype, with their `Field`, by name.
    numbers
        Arrays of allele indices, by name.
    genotype
        The genotypes; None if there are none.
    is_chosen
        Whether each sample is taken from the source; None if all are.
    units
        Numbers of the units whose vectors are checked, since alleles differ from the store's, and of those whose allele
        indices are checked, since a variant has fewer alleles than in the store.
    """

    vectors: Mapping[str, tuple[AnyArray, Field]]
    numbers: Mapping[str, AnyArray]
    genotype: AnyArray | None
    is_chosen: np.ndarray | None
    units: tuple[frozenset[int], frozenset[int]]

    @classmethod
    def of(
        cls,
        vectors: Mapping[str, tuple[AnyArray, Field]],
        numbers: Mapping[str, AnyArray],
        genotype: AnyArray | None,
        chosen: np.ndarray | None,
        reports: Sequence[UnitReport],
    ) -> "Source":
        """Return the fields to check; `chosen` are the indices of the samples that are taken, None for all."""
        checked = [*(a for a, _ in vectors.values()), *numbers.values()]
        is_chosen = None if chosen is None or not checked else np.isin(np.arange(checked[0].shape[1]), chosen)
        other = frozenset(r.number for r in reports if vectors and not r.same_alleles)
        fewer = frozenset(r.number for r in reports if numbers and r.fewer)
        return cls(vectors, numbers, genotype, is_chosen, (other, fewer))

    def look(self, mine: Matches, n_ours: np.ndarray, number: int) -> Iterator[tuple[str, int, int, int, int]]:
        """Check the variants of a unit: yield the first misfit of each array, as the fields after `Misfit.source`."""
        present = mine.rows >= 0
        fewer = present & (mine.n_alleles < n_ours)
        other = fewer | (present & mine.changed)
        if number in self.units[0] and other.any():
            for name, (array, field) in self.vectors.items():
                yield from self._look_at(name, array, field, mine.rows[other], mine.n_alleles[other])
        if number in self.units[1] and fewer.any():
            for name, array in self.numbers.items():
                yield from self._look_at(name, array, None, mine.rows[fewer], mine.n_alleles[fewer])

    def look_at_blocks(self, rows: np.ndarray, n_alleles: np.ndarray) -> Iterator[tuple[str, int, int, int, int]]:
        """Check reference blocks whose calls are used; yields as `look`."""
        for name, (array, field) in self.vectors.items():
            yield from self._look_at(name, array, field, rows, n_alleles)
        for name, array in self.numbers.items():
            yield from self._look_at(name, array, None, rows, n_alleles)

    @property
    def n_samples(self) -> int:
        """Number of samples of the source; 0 if no field is checked."""
        checked = [*(a for a, _ in self.vectors.values()), *self.numbers.values()]
        return int(checked[0].shape[1]) if checked else 0

    def _look_at(
        self, name: str, array: AnyArray, field: Field | None, rows: np.ndarray, n_alleles: np.ndarray
    ) -> Iterator[tuple[str, int, int, int, int]]:
        """Check one array, one chunk column of samples after the other, up to the first misfit."""
        width = arrays.outer_chunks(array)[1]
        for start in range(0, array.shape[1], width):
            samples = slice(start, min(array.shape[1], start + width))
            values = self._read(array, rows, samples)
            genotype = None
            if field is not None and field.number == "G" and self.genotype is not None:
                genotype = self._read(self.genotype, rows, samples)
            is_counted = True if self.is_chosen is None else self.is_chosen[samples]
            for n in np.unique(n_alleles).tolist():
                at = np.flatnonzero(n_alleles == n)
                found, expected, is_wrong = _judge(values[at], None if genotype is None else genotype[at], field, n)
                if (wrong := is_wrong & is_counted).any():
                    i, j = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
                    yield name, int(rows[at[i]]), n, int(found[i, j]), int(expected[i, j])
                    return

    @staticmethod
    def _read(array: AnyArray, rows: np.ndarray, samples: slice) -> np.ndarray:
        low, high = int(rows.min()), int(rows.max()) + 1
        slab = arrays.read(array, (slice(low, high), samples, *(slice(None),) * (array.ndim - 2)))
        return np.asarray(slab[rows - low])

    def mem(self, span: int) -> int:
        """Memory for checking one unit of `span` rows, in bytes."""
        needed = [0]
        for array in (*(array for array, _ in self.vectors.values()), *self.numbers.values()):
            rows, width = min(span, array.shape[0]), min(array.shape[1], arrays.outer_chunks(array)[1])
            values = VECTOR_BYTES * rows + read_bytes(array, rows) + read_bytes(self.genotype, rows)
            needed.append(width * values + arrays.decode_mem(array, 2))
        return max(needed)


def read_bytes(array: AnyArray | None, span: int) -> int:
    """Return the memory for reading `span` rows of one sample, and the chunks that they are in, in bytes."""
    if array is None:
        return 0
    values = math.prod(array.shape[2:]) * arrays.element_bytes(array)
    return 3 * (span + 2 * min(array.shape[0], arrays.outer_chunks(array)[0])) * values


def _judge(
    values: np.ndarray, genotype: np.ndarray | None, field: Field | None, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the actual and the expected value of each call, as in `Misfit`, and whether it is wrong."""
    if field is None:
        highest = values.reshape(*values.shape[:2], -1).max(axis=2, initial=-2)
        return highest, np.full(highest.shape, n), highest >= n
    vectors = field.look(values, n, genotype)
    return vectors.found, np.where(vectors.ploidy < 0, -1, vectors.expected), vectors.is_wrong


@dataclass(frozen=True)
class FindMisfits:
    """Checks the values of sources in units in which alleles differ; reads up to `span` rows of a source together."""

    index: Index
    sources: tuple[Source, ...]
    rows_per_task: int
    span: int
    mem: int

    @property
    def is_due(self) -> bool:
        """Whether there is anything to check."""
        return any(units for source in self.sources for units in source.units)

    def look(self, rows: slice) -> list[Misfit]:
        """Return the first misfit of each array in some rows, which are whole units."""
        misfits: dict[tuple[int, str], Misfit] = {}
        for number in range(rows.start // self.index.unit, -(-rows.stop // self.index.unit)):
            due = [s for s, source in enumerate(self.sources) if any(number in units for units in source.units)]
            if not due:
                continue
            unit = self.index.look_up(number)
            for s in due:
                for item in self._misfits(s, unit):
                    misfits.setdefault((s, item[0]), Misfit(s, *item))
        return list(misfits.values())

    def _misfits(self, s: int, unit: Unit) -> Iterator[tuple[str, int, int, int, int]]:
        """Yield the misfits of one source in a unit."""
        source = self.sources[s]
        yield from source.look(unit.sources[s], unit.n_alleles, unit.start // self.index.unit)
        if self.index.sources[s].blocks is not None:
            for rows, n_alleles in used_blocks(self.index, s, unit, source.n_samples):
                yield from source.look_at_blocks(rows, n_alleles)

    def readers(self, memory: Memory) -> list[ScanReader]:
        """Scan with tasks of whole units."""
        needed = self.mem + max((source.mem(self.span) for source in self.sources), default=0)
        return [ScanReader(self.look, self.index.n_variants, self.rows_per_task, needed)]
