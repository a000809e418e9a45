"""Misfits: values of a source that do not fit the alleles of its own variants, looked up before anything is written.

Where alleles get other numbers, a vector with more values than there are alleles would lose some, and the number of an
allele that the variant does not have would become that of one which the store has. Only variants to which this can
happen are read.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from zarr.types import AnyArray

from plans.core.memory import Memory
from plans.variants.block_calls import used_blocks
from plans.variants.find_matches import UnitReport
from plans.variants.in_order import Field
from plans.variants.match_index import Index, Matches, Unit
from vczstore.vcz import arrays

if TYPE_CHECKING:
    from plans.core.scan_tasks import ScanReader

VECTOR_BYTES = 64
"""What it takes to look at one vector, beside its values."""


class Misfit(NamedTuple):
    """
    The first call of a field that does not fit.

    Attributes
    ----------
    source, name, row
        Which source, array and variant.
    n_alleles
        How many alleles the variant has.
    found, expected
        How many values there are and should be, the latter -1 where nothing tells the ploidy; of a field whose values
        are alleles, the number of the allele, and how many alleles there are.
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
    What is looked at of one source.

    Attributes
    ----------
    vectors
        Arrays that hold one value per allele or genotype, with what they go by.
    numbers
        Arrays whose values are numbers of alleles.
    genotype
        The genotypes, if there are any.
    is_chosen
        Which samples come in; None if all do.
    units
        Which units have a variant with other alleles, and which one that has fewer in the source.
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
        """`chosen` are the positions of the samples that come in."""
        arrays_of = [*(a for a, _ in vectors.values()), *numbers.values()]
        is_chosen = None if chosen is None or not arrays_of else np.isin(np.arange(arrays_of[0].shape[1]), chosen)
        other = frozenset(r.number for r in reports if vectors and not r.same_alleles)
        fewer = frozenset(r.number for r in reports if numbers and r.fewer)
        return cls(vectors, numbers, genotype, is_chosen, (other, fewer))

    def look(self, mine: Matches, n_ours: np.ndarray, number: int) -> Iterator[tuple[str, int, int, int, int]]:
        """Look at the variants of one unit: the first misfit of each array, without the source."""
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
        """Look at reference blocks whose calls come in, as `look`."""
        for name, (array, field) in self.vectors.items():
            yield from self._look_at(name, array, field, rows, n_alleles)
        for name, array in self.numbers.items():
            yield from self._look_at(name, array, None, rows, n_alleles)

    @property
    def n_samples(self) -> int:
        """How many samples the source has."""
        arrays_of = [*(a for a, _ in self.vectors.values()), *self.numbers.values()]
        return int(arrays_of[0].shape[1]) if arrays_of else 0

    def _look_at(
        self, name: str, array: AnyArray, field: Field | None, rows: np.ndarray, n_alleles: np.ndarray
    ) -> Iterator[tuple[str, int, int, int, int]]:
        """One array, a chunk column of samples after the other."""
        width = arrays.outer_chunks(array)[1]
        for start in range(0, array.shape[1], width):
            samples = slice(start, min(array.shape[1], start + width))
            values = self._read(array, rows, samples)
            genotype = None
            if field is not None and field.number == "G" and self.genotype is not None:
                genotype = self._read(self.genotype, rows, samples)
            counts = True if self.is_chosen is None else self.is_chosen[samples]
            for n in np.unique(n_alleles).tolist():
                at = np.flatnonzero(n_alleles == n)
                found, expected, is_wrong = _judge(values[at], None if genotype is None else genotype[at], field, n)
                if (wrong := is_wrong & counts).any():
                    i, j = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
                    yield name, int(rows[at[i]]), n, int(found[i, j]), int(expected[i, j])
                    return

    @staticmethod
    def _read(array: AnyArray, rows: np.ndarray, samples: slice) -> np.ndarray:
        low, high = int(rows.min()), int(rows.max()) + 1
        slab = arrays.read(array, (slice(low, high), samples, *(slice(None),) * (array.ndim - 2)))
        return np.asarray(slab[rows - low])

    def mem(self, span: int) -> int:
        """What it takes to look at one unit."""
        found = [0]
        for array in (*(array for array, _ in self.vectors.values()), *self.numbers.values()):
            rows, width = min(span, array.shape[0]), min(array.shape[1], arrays.outer_chunks(array)[1])
            values = VECTOR_BYTES * rows + read_bytes(array, rows) + read_bytes(self.genotype, rows)
            found.append(width * values + arrays.decode_mem(array, 2))
        return max(found)


def read_bytes(array: AnyArray | None, span: int) -> int:
    """What it takes to read so many rows of one sample, and the chunks that they are in."""
    if array is None:
        return 0
    values = math.prod(array.shape[2:]) * arrays.element_bytes(array)
    return 3 * (span + 2 * min(array.shape[0], arrays.outer_chunks(array)[0])) * values


def _judge(
    values: np.ndarray, genotype: np.ndarray | None, field: Field | None, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is found, what should be, and which calls are wrong."""
    if field is None:
        highest = values.reshape(*values.shape[:2], -1).max(axis=2, initial=-2)
        return highest, np.full(highest.shape, n), highest >= n
    vectors = field.look(values, n, genotype)
    return vectors.found, np.where(vectors.ploidy < 0, -1, vectors.expected), vectors.is_wrong


@dataclass(frozen=True)
class FindMisfits:
    """Looks at the units of a store in which values of sources go to other places."""

    index: Index
    sources: tuple[Source, ...]
    rows_per_task: int
    span: int
    mem: int

    @property
    def is_due(self) -> bool:
        """Whether there is anything to look at."""
        return any(some for source in self.sources for some in source.units)

    def look(self, rows: slice) -> list[Misfit]:
        """The first misfit of each array, in some rows: whole units."""
        found: dict[tuple[int, str], Misfit] = {}
        for number in range(rows.start // self.index.unit, -(-rows.stop // self.index.unit)):
            due = [s for s, source in enumerate(self.sources) if any(number in some for some in source.units)]
            if not due:
                continue
            unit = self.index.look_up(number)
            for s in due:
                for item in self._misfits(s, unit):
                    found.setdefault((s, item[0]), Misfit(s, *item))
        return list(found.values())

    def _misfits(self, s: int, unit: Unit) -> Iterator[tuple[str, int, int, int, int]]:
        """Those of one source in a unit."""
        source = self.sources[s]
        yield from source.look(unit.sources[s], unit.n_alleles, unit.start // self.index.unit)
        if self.index.sources[s].blocks is not None:
            for rows, n_alleles in used_blocks(self.index, s, unit, source.n_samples):
                yield from source.look_at_blocks(rows, n_alleles)

    def by_cubed(self, memory: Memory, tag: int) -> "list[ScanReader]":
        """Look in tasks."""
        from plans.core import scan_tasks

        if not self.index.n_variants:
            return []
        needed = self.mem + max((source.mem(self.span) for source in self.sources), default=0)
        return [scan_tasks.ScanReader(self.look, self.index.n_variants, self.rows_per_task, tag, needed)]
