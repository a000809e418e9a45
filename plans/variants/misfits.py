"""Misfits: values of a source that do not fit the alleles of its own variants, found before anything is written.

Where alleles are re-numbered, a vector with more values than its alleles account for would lose some, and the index of
an allele that the variant does not have would become that of another allele of the store. So would such an index in the
store itself, where its variant gains alleles. Only variants to which this can happen are read.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from zarr.types import AnyArray

from plans.core.memory import Memory
from plans.core.scan_reader import ScanReader
from plans.variants.block_calls import used_blocks
from plans.variants.field_numbers import ALLELE_NUMBERS, GENOTYPE, field_of, kind_of
from plans.variants.match_index import Index, Matches, Unit, UnitReport
from plans.variants.reference_blocks import read_calls
from plans.variants.vectors import Field
from vczstore.vcz import arrays
from vczstore.vcz.model import SAMPLE_ID, SAMPLES, VARIANTS, Vcz, dimensions

VECTOR_BYTES = 64
"""Memory for checking one vector, in addition to its values."""


OF_STORE = -1
"""The store, in place of the number of a source."""


class Misfit(NamedTuple):
    """
    The first call of a field that does not fit.

    Attributes
    ----------
    source, name, row
        Number of the source, or `OF_STORE`; name of the array, and row of the variant.
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
    fields
        Arrays by name: with their `Field` if they have one value per allele, ALT or genotype; with None if their values
        are allele indices.
    genotype
        The genotypes; None if there are none.
    n_samples, is_chosen
        Number of samples of the source, and whether each is taken from it; None if all are.
    units
        Numbers of the units that are checked: those with alleles that differ from the store's; if all fields are allele
        indices, those with a variant that has fewer alleles than in the store.
    """

    fields: Mapping[str, tuple[AnyArray, Field | None]]
    genotype: AnyArray | None
    n_samples: int
    is_chosen: np.ndarray | None
    units: frozenset[int]

    @classmethod
    def of(cls, source: Vcz, store: Vcz, numbers: Mapping[str, str], reports: Sequence[UnitReport]) -> "Source":
        """Return the fields of a source that a store has or gets; `numbers` and `reports` are as in `Findings`."""
        fields: dict[str, tuple[AnyArray, Field | None]] = {}
        for name, array in source.samples_arrays.items():
            kind = kind_of(name, array, numbers)
            is_of_calls = dimensions(array)[:2] == (VARIANTS, SAMPLES) and array.dtype != bool
            if kind and is_of_calls and (name in store.samples_arrays or not store.n_samples):
                fields[name] = array, None if kind == "GT" else field_of(name, array, kind)
        n_samples = int(source.arrays[SAMPLE_ID].shape[0])
        is_chosen = None if source.chosen is None else np.isin(np.arange(n_samples), source.chosen)
        are_vectors = any(field is not None for _, field in fields.values())
        units = frozenset(r.number for r in reports if fields and (r.fewer or (are_vectors and not r.same_alleles)))
        return cls(fields, fields.get(GENOTYPE, (None,))[0], n_samples, is_chosen, units)

    @classmethod
    def of_store(cls, store: Vcz, replaced: Collection[str], units: Sequence[int]) -> "Source | None":
        """Return the allele indices of a store in some units, without replaced samples; None if there are none."""
        fields = {n: (store.arrays[n], None) for n in ALLELE_NUMBERS if n in store.samples_arrays}
        if not fields or not units:
            return None
        n_samples = max(
            array.shape[1] for array, _ in fields.values()
        )  # after an interruption, more than there are IDs
        is_kept = np.zeros(n_samples, dtype=bool)
        is_kept[: store.n_samples] = [sample not in replaced for sample in store.sample_ids.tolist()]
        return cls(fields, None, n_samples, is_kept, frozenset(units)) if is_kept.any() else None

    def look(self, mine: Matches, n_ours: np.ndarray) -> Iterator[tuple[str, int, int, int, int]]:
        """Check the variants of a unit: yield the first misfit of each array, as the fields after `Misfit.source`."""
        fewer = (mine.rows >= 0) & (mine.n_alleles < n_ours)
        for name, (_, field) in self.fields.items():
            where = fewer if field is None else fewer | ((mine.rows >= 0) & mine.changed)
            if where.any():
                yield from self.look_at(name, mine.rows[where], mine.n_alleles[where])

    def look_at(self, name: str, rows: np.ndarray, n_alleles: np.ndarray) -> Iterator[tuple[str, int, int, int, int]]:
        """Check some rows of an array, one chunk column of samples after the other, up to the first misfit."""
        array, field = self.fields[name]
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
        return np.asarray(read_calls(array, slice(low, high), samples)[rows - low])

    def mem(self, span: int) -> int:
        """Memory for checking one unit of `span` rows, in bytes."""
        needed = [0]
        for array, _ in self.fields.values():
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
    """
    Checks the values of sources in units in which alleles differ; reads up to `span` rows of a source together.

    Of the store, allele indices are checked where its variants gain alleles; `store` is None if none do.
    """

    index: Index
    sources: tuple[Source, ...]
    store: Source | None
    rows_per_task: int
    span: int
    mem: int

    @property
    def is_due(self) -> bool:
        """Whether there is anything to check."""
        return any(source.units for _, source in self._checked)

    @property
    def _checked(self) -> list[tuple[int, Source]]:
        """The sources with their numbers, and the store."""
        return [*enumerate(self.sources), *([] if self.store is None else [(OF_STORE, self.store)])]

    def look(self, rows: slice) -> list[Misfit]:
        """Return the first misfit of each array in some rows, which are whole units."""
        misfits: dict[tuple[int, str], Misfit] = {}
        for number in range(rows.start // self.index.unit, -(-rows.stop // self.index.unit)):
            for s, source in self._checked:
                if number in source.units:
                    unit = self.index.look_up(number)
                    for item in self._of_store(source, unit) if s == OF_STORE else self._misfits(s, unit):
                        misfits.setdefault((s, item[0]), Misfit(s, *item))
        return list(misfits.values())

    def _of_store(self, store: Source, unit: Unit) -> Iterator[tuple[str, int, int, int, int]]:
        """Yield the misfits of the store at the variants of a unit that gain alleles."""
        rows = self.index.rows_of_store(unit)
        growing = (rows >= 0) & (unit.n_alleles > unit.n_before)
        for name in store.fields if growing.any() else ():
            yield from store.look_at(name, rows[growing], unit.n_before[growing])

    def _misfits(self, s: int, unit: Unit) -> Iterator[tuple[str, int, int, int, int]]:
        """Yield the misfits of one source in a unit."""
        source = self.sources[s]
        yield from source.look(unit.sources[s], unit.n_alleles)
        if self.index.sources[s].blocks is not None:
            for rows, n_alleles in used_blocks(self.index, s, unit, source.n_samples):
                for name in source.fields:
                    yield from source.look_at(name, rows, n_alleles)

    def readers(self, memory: Memory) -> list[ScanReader]:
        """Scan with tasks of whole units."""
        spans = ((source, self.index.unit if s == OF_STORE else self.span) for s, source in self._checked)
        needed = self.mem + max((source.mem(span) for source, span in spans), default=0)
        return [ScanReader(self.look, self.index.n_variants, self.rows_per_task, needed)]
