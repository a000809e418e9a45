"""Widening: what changes in a store itself when alleles come in that it has not seen."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
from zarr.abc.store import Store as ZarrStore
from zarr.types import AnyArray

from plans import Memory
from plans.anew import Anew, ColumnReader
from plans.columns import Blocks, Columns
from plans.harmonise import Findings
from plans.matching import Index, Unit
from plans.views import Padded
from vczstore import arrays
from vczstore.vcz import Vcz, samples_axis

if TYPE_CHECKING:
    import cubed

    from plans import Write
    from plans.chunks import Reader


def widenings(
    operation: str, store: Vcz, wider: Mapping[str, AnyArray], old: int, findings: Findings, memory: Memory
) -> "tuple[Write, ...]":
    """What is written of arrays that become longer, beside the samples that come in, and of ``variant_allele``."""
    result: list[Write] = []
    for name, after in wider.items():
        if name != "variant_allele":
            write = Widen.of(operation, name, store.arrays[name], after, old, memory)
            result += [write] if write.decoded_chunks else []
    allele = store.arrays["variant_allele"]
    alleles = WriteAlleles.of(allele, wider.get("variant_allele", allele), findings)
    return (*result, *([alleles] if alleles.decoded_chunks else []))


@dataclass(frozen=True)
class _Made(Anew, ABC):
    """Chunk columns that a reader makes."""

    @abstractmethod
    def reader(self, store: ZarrStore) -> "Reader":
        """What the columns are made of."""

    @abstractmethod
    def reading_mem(self) -> int:
        """What it takes to read a block."""

    def by_cubed(self, store: ZarrStore, memory: Memory) -> "list[cubed.Array]":
        """Read, and write."""
        from plans import chunks

        values = chunks.read(self.reader(store), memory.spec(), extra_mem=self.reading_mem())
        return [chunks.write(values, chunks.DecodedView(arrays.planned(self.target, store=store), self.columns))]

    def by_xarray(self, store: ZarrStore, memory: Memory) -> "list[cubed.Array]":
        """The same: alleles are nothing that xarray knows."""
        return self.by_cubed(store, memory)

    def by_zarr(self, store: ZarrStore) -> None:
        """Block by block."""
        target, reader = arrays.planned(self.target, store=store), self.reader(store)
        for index in np.ndindex(*(len(b) for b in self.columns.blocks)):
            values = reader.block(index)
            for here, there in self.columns.regions(index):
                target[there] = values[here]


@dataclass(frozen=True)
class Rewritten(_Made):
    """All of an array of one store becomes one of another, with dimensions that have become longer."""

    before: AnyArray

    @classmethod
    def of(cls, operation: str, before: AnyArray, after: AnyArray, memory: Memory) -> "Rewritten":
        """`after` is the array in the other store."""
        chunks = arrays.outer_chunks(after)

        def cut(block: tuple[int, ...]) -> "Rewritten":
            return cls(after.path, after, Columns(after.shape, chunks, None, (), block), before)

        chunk_bytes = math.prod(chunks) * arrays.element_bytes(after)
        grid = arrays.grid(after.shape, chunks)
        return cut(memory.fit(operation, grid, chunk_bytes, lambda block: cut(block).reading_mem()))

    def reader(self, store: ZarrStore) -> ColumnReader:
        """The values, filled up."""
        like = arrays.planned(self.before, shape=self.target.shape)
        return ColumnReader(cast("AnyArray", Padded(self.before, like)), self.columns)

    def reading_mem(self) -> int:
        """What it takes to read a block."""
        return self.reader(self.before.store).decode_mem()


@dataclass(frozen=True)
class Widen(_Made):
    """
    A dimension of an array that goes by alleles becomes longer: what it gains is filled.

    Chunks that lie in the old part alone stay as they are. New ones are written, because what an absent chunk reads as
    is 0 in most stores, and that is a value. Samples that come in are written by their append.
    """

    before: AnyArray

    @classmethod
    def of(cls, operation: str, name: str, before: AnyArray, after: AnyArray, old: int, memory: Memory) -> "Widen":
        """Of `old` samples."""
        (axis,) = (i for i, (n, m) in enumerate(zip(before.shape, after.shape, strict=True)) if n != m)
        chunks = arrays.outer_chunks(after)
        shape = list(after.shape)
        if (samples := samples_axis(before)) is not None:
            # the ragged last column belongs to the append
            shape[samples] = old // chunks[samples] * chunks[samples]
        first = before.shape[axis] // chunks[axis]
        columns = tuple(range(first, -(-after.shape[axis] // chunks[axis])))
        grid = [len(columns) if i == axis else n for i, n in enumerate(arrays.grid(shape, chunks))]
        alone = cls(name, after, Columns(tuple(shape), chunks, axis, columns, (1,) * len(chunks)), before)
        if not alone.columns.n_chunks:
            return alone

        def cut(block: tuple[int, ...]) -> "Widen":
            return replace(alone, columns=replace(alone.columns, block=block))

        chunk_bytes = math.prod(chunks) * arrays.element_bytes(after)
        return cut(memory.fit(operation, grid, chunk_bytes, lambda block: cut(block).reading_mem()))

    def reader(self, store: ZarrStore) -> ColumnReader:
        """The old values, filled up."""
        before = arrays.planned(self.before, store=store)
        return ColumnReader(cast("AnyArray", Padded(before, self.target)), self.columns)

    def reading_mem(self) -> int:
        """What it takes to read a block."""
        return self.reader(self.before.store).decode_mem()


@dataclass(frozen=True)
class AllelesReader:
    """The alleles of some chunks of variants, as they will be."""

    index: Index
    columns: Columns
    dtype: np.dtype

    @property
    def blocks(self) -> Blocks:
        """In elements."""
        return self.columns.blocks

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Look the variants of one block up."""
        values = np.full([lengths[i] for lengths, i in zip(self.blocks, index, strict=True)], "", dtype=object)
        for here, there in self.columns.regions(index):
            rows = np.concatenate([self._alleles(unit, at) for unit, at in self.index.units(there[0])])
            values[here] = rows[:, there[1]]
        return arrays.as_stored(values, self.dtype)

    def _alleles(self, unit: Unit, rows: slice) -> np.ndarray:
        if unit.alleles is not None:
            return self._padded(unit.alleles[rows])
        return self._padded(self.index.store.alleles(unit.start + rows.start, unit.start + rows.stop))

    def _padded(self, alleles: np.ndarray) -> np.ndarray:
        width = self.columns.array_shape[1]
        more = width - alleles.shape[1]
        return np.pad(alleles, ((0, 0), (0, max(0, more))), constant_values="")[:, :width]


@dataclass(frozen=True)
class WriteAlleles(_Made):
    """New alleles come to ``variant_allele``, after those that are there."""

    findings: Findings

    @classmethod
    def of(cls, before: AnyArray | None, after: AnyArray, findings: Findings) -> "WriteAlleles":
        """Find the chunks of variants that have new alleles; all of them, where there was no array before."""
        chunks, unit = arrays.outer_chunks(after), findings.index.unit
        rows = {
            row
            for n in findings.changed_units
            for row in range(n * unit // chunks[0], -(-min((n + 1) * unit, after.shape[0]) // chunks[0]))
        }
        if before is None or (after.shape != before.shape and after.fill_value not in ("", None)):
            rows = set(range(arrays.grid(after.shape, chunks)[0]))
        n_wide = arrays.grid(after.shape, chunks)[1]
        columns = Columns(after.shape, chunks, 0, tuple(sorted(rows)), (1, n_wide))
        return cls("variant_allele", after, columns, findings)

    def reader(self, store: ZarrStore) -> AllelesReader:
        """The alleles as they will be."""
        return AllelesReader(self.findings.index, self.columns, self.target.dtype)

    def reading_mem(self) -> int:
        """What it takes to read a block: alleles of all sides, as Python's strings."""
        index = self.findings.index
        return sum(8 * arrays.decode_mem(s.allele, 1) for s in (index.store, *index.sources))
