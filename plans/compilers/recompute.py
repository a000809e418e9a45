"""Recompute: INFO fields follow from the genotypes that are there.

One pass over the genotypes, for any number of fields: a task takes some rows, reads their chunks one after the
other along the samples axis, and counts. What is in memory is one chunk of genotypes and the counts, however many
samples there are.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import MIN_TASKS, TASK_BYTES, Blocks
from plans.core.memory import Memory
from plans.core.model import Plan
from plans.variants.info_fields import FIELDS, SLAB, SLAB_BYTES_PER_ALLELE, Counts, packed_width
from plans.variants.stale import CURRENT, STALE, array_name, mark, states
from vczstore.errors import IncompatibleError, OptionError
from vczstore.stores.base import Store
from vczstore.stores.edits import Consolidate, WriteDocuments
from vczstore.vcz import arrays, conversion, metadata, pipeline
from vczstore.vcz.missing import MASKS, fill_value, mask_of, masked_by, missing_value
from vczstore.vcz.model import REMOVED, VARIANTS, Vcz, dimensions

if TYPE_CHECKING:
    import cubed
    from zarr.abc.store import Store as ZarrStore


GENOTYPE, ALLELE = "call_genotype", "variant_allele"
NEEDED = {GENOTYPE: (VARIANTS, "samples", "ploidy"), ALLELE: (VARIANTS, "alleles")}


OPERATION = "recompute"


def check_fields(fields: Sequence[str]) -> None:
    """Raise an `OptionError` if no fields are named, or one is not among `plans.variants.info_fields.FIELDS`."""
    if not fields:
        raise OptionError(f"{OPERATION}: no fields named; choose from {', '.join(FIELDS)}")
    for field in fields:
        if field not in FIELDS:
            near = get_close_matches(field[:40], FIELDS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(FIELDS)}"
            raise OptionError(f"{OPERATION}: no field {field[:40]!r}; {hint}")


def compile_recompute(store: Store, vcz: Vcz, fields: Sequence[str], memory: Memory) -> Plan:
    """
    Compile the recomputing of INFO fields of a store.

    Parameters
    ----------
    store, vcz
        The store: where it is, and the state that it will be in.
    fields
        Which of `plans.variants.info_fields.FIELDS`. Arrays that are not there are made; others keep their dtype.
        Those that are current already are left as they are.
    memory
        What a task may use.

    Raises
    ------
    OptionError
        If no fields are named, or there is no such field.
    IncompatibleError
        If the store lacks what they are computed from, or has an array that cannot hold one.
    """
    fields = list(dict.fromkeys(fields))
    check_fields(fields)
    vcz.require_whole(OPERATION, edited=False)
    for name, names in NEEDED.items():
        found = dimensions(vcz.arrays[name]) if name in vcz.arrays else None
        if found != names:
            has = f"no {name}" if found is None else f"{name} of dimensions {found}"
            raise IncompatibleError(
                f"{OPERATION}: {vcz.label} has {has}, and fields are computed from {name} of {names}"
            )
    known = states(vcz)
    fields = [field for field in fields if known.get(field) != CURRENT]
    targets = {field: _target(OPERATION, vcz, field) for field in fields}
    write = RecomputeFields.of(vcz, targets, memory)
    created = {a.path: a for a in targets.values() if a.path not in vcz.arrays}

    # what is half-way written when a run is stopped on plain Zarr is not current, even if it was before
    marked, begun = mark(vcz, [f for f in fields if array_name(f) in vcz.arrays], STALE)
    after, done = mark(marked.planned(created, vcz.sample_ids), fields, CURRENT)
    return Plan(
        operation=OPERATION,
        store=store,
        base=vcz.state,
        checks=(),
        writes=(write,) if fields else (),
        preparations=begun,
        edits=()
        if not fields
        else (
            *(WriteDocuments.of(array) for array in created.values()),
            Consolidate(tuple(created), vcz.zarr_format),
            *done,
        ),
        memory=memory,
        after=after,
        if_stopped="some values of the fields may be new already",
        counts={"fields recomputed": len(fields)},
    )


def _target(operation: str, vcz: Vcz, field: str) -> AnyArray:
    """The array that a field goes to: the store's, if it can hold the field, or a new one."""
    what, name = FIELDS[field], array_name(field)
    width = max(0, vcz.arrays[ALLELE].shape[1] - 1) if what.per_allele else 1
    array = vcz.arrays.get(name)
    if array is None:
        return conversion.new_like(
            vcz.arrays["variant_position"],
            name,
            np.dtype("i4" if what.kind == "i" else "f4"),
            (width,) if what.per_allele else (),
            dimension_names=(VARIANTS, "alt_alleles") if what.per_allele else (VARIANTS,),
            attributes={"description": what.description},
        )

    def refuse(has: str, needs: str) -> IncompatibleError:
        return IncompatibleError(
            f"{operation}: {name} of {vcz.label} has {has}, and {field} needs {needs}; leave {field} out, or delete "
            f"the array {name}, which is then re-created"
        )

    if dimensions(array)[:1] != (VARIANTS,) or array.ndim > 2:
        raise refuse(f"dimensions {dimensions(array)}", f"{(VARIANTS, 'alt_alleles')[: 1 + what.per_allele]}")
    if math.prod(array.shape[1:]) < width:
        raise refuse(f"{math.prod(array.shape[1:])} values for a variant", f"{width}")
    if array.dtype.kind != what.kind or array.dtype == np.dtype("f2"):
        raise refuse(f"dtype {array.dtype}", "signed integers" if what.kind == "i" else "float32")
    if not metadata.has_regular_grid(array):
        raise refuse("chunks of different sizes", "chunks of one size")
    return array


@dataclass(frozen=True)
class GenotypeCounter:
    """
    Counts the genotypes of ranges of rows.

    Attributes
    ----------
    genotype, allele
        Where genotypes and alleles are.
    removed
        The positions of removed samples, which are not counted.
    n_rows
        How many rows there are to a task.
    """

    genotype: AnyArray
    allele: AnyArray
    removed: np.ndarray
    n_rows: int

    @property
    def dtype(self) -> np.dtype:
        """Of the counts."""
        return np.dtype("i8")

    @property
    def n_variants(self) -> int:
        """How many rows there are."""
        return int(self.allele.shape[0])

    @property
    def n_samples(self) -> int:
        """How many samples are counted."""
        return int(self.genotype.shape[1]) - len(self.removed)

    @property
    def blocks(self) -> Blocks:
        """Rows of packed counts."""
        starts = range(0, self.n_variants, self.n_rows)
        rows = tuple(min(self.n_rows, self.n_variants - start) for start in starts)
        return rows, (packed_width(self.allele.shape[1]),)

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Count the rows of one task."""
        start = index[0] * self.n_rows
        return self.count(slice(start, min(self.n_variants, start + self.n_rows))).packed()

    def count(self, rows: slice) -> Counts:
        """Read the chunks of some rows, one after the other."""
        n_alleles = np.maximum(1, arrays.read(self.allele, (rows,)).astype(object).astype(bool).sum(axis=1))
        counts = Counts.zeros(n_alleles, self.allele.shape[1], self.n_samples)
        for part in _steps(rows, arrays.outer_chunks(self.genotype)[0]):
            here = slice(part.start - rows.start, part.stop - rows.start)
            some = counts.part(here)
            for samples in arrays.cuts(self.genotype)[1].spans():
                genotypes = arrays.read(self.genotype, (part, samples))
                gone = self.removed[(self.removed >= samples.start) & (self.removed < samples.stop)] - samples.start
                if len(gone):
                    genotypes = np.delete(genotypes, gone, axis=1)
                self._check(genotypes, some.n_alleles, part.start)
                some.add(genotypes)
        return counts

    @staticmethod
    def _check(genotypes: np.ndarray, n_alleles: np.ndarray, first: int) -> None:
        """Raise an error if a genotype has an allele that its variant does not have."""
        if not genotypes.size or int(genotypes.max()) < int(n_alleles.min()):
            return
        wrong = (highest := genotypes.max(axis=(1, 2))) >= n_alleles
        if wrong.any():
            row = int(np.argmax(wrong))
            raise pipeline.DamagedChunkError(
                f"{GENOTYPE} has allele {highest[row]} in row {first + row}, whose variant has {n_alleles[row]} alleles"
            )

    def mem(self) -> int:
        """What counting takes beside the counts: a chunk of genotypes, what is made of it, and alleles."""
        _, samples, ploidy = arrays.outer_chunks(self.genotype)
        decoded = arrays.chunk_bytes(self.genotype)
        kept_apart = decoded if len(self.removed) else 0
        at_once = max(SLAB, min(samples, self.genotype.shape[1]) * ploidy)
        strings = 2 * self.n_rows * self.allele.shape[1] * arrays.element_bytes(self.allele)
        n_chunks = min(pipeline.READS_AT_ONCE, math.ceil(self.n_rows / arrays.outer_chunks(self.allele)[0]))
        return (
            arrays.decode_mem(self.genotype, 1)
            + decoded
            + kept_apart
            + SLAB_BYTES_PER_ALLELE * at_once
            + strings
            + arrays.decode_mem(self.allele, n_chunks)
        )


def _steps(whole: slice, step: int) -> Iterator[slice]:
    """A range, cut where chunks end."""
    start = whole.start
    while start < whole.stop:
        stop = min(whole.stop, (start // step + 1) * step)
        yield slice(start, stop)
        start = stop


@dataclass(frozen=True)
class RecomputeFields:
    """
    The recomputing of the arrays of some INFO fields.

    Attributes
    ----------
    targets
        The array of each field.
    masks
        Arrays that say of these which values are missing or fill.
    counter
        What they are computed from.
    """

    targets: dict[str, AnyArray]
    masks: tuple[AnyArray, ...]
    counter: GenotypeCounter

    @classmethod
    def of(cls, vcz: Vcz, targets: dict[str, AnyArray], memory: Memory) -> "RecomputeFields":
        """Find out how many rows one task takes: whole chunks of all targets, which no other task writes then."""
        masks = tuple(m for a in targets.values() for m in _masks(vcz, a))
        genotype, allele = vcz.arrays[GENOTYPE], vcz.arrays[ALLELE]
        removed = np.flatnonzero(vcz.sample_ids == REMOVED)
        written = math.lcm(*(arrays.outer_chunks(a)[0] for a in (*targets.values(), *masks)))
        n = max(1, vcz.n_variants)
        both = math.lcm(written, arrays.outer_chunks(genotype)[0])
        unit = both if both <= n else min(written, n)  # else some chunks of genotypes are read twice
        count_bytes = 8 * packed_width(allele.shape[1])
        row_bytes = max(count_bytes, math.prod(genotype.shape[1:]) * arrays.element_bytes(genotype))
        units = max(1, min(TASK_BYTES // (unit * row_bytes), math.ceil(n / unit) // MIN_TASKS))
        alone = cls(targets, masks, GenotypeCounter(genotype, allele, removed, unit * units))
        # what fields are made of takes some copies of the counts
        memory.fit("recompute", (1,), unit * units * count_bytes, lambda _: alone._extra_mem(count_bytes))
        return alone

    def _extra_mem(self, count_bytes: int) -> int:
        return self.counter.mem() + 2 * self.counter.n_rows * count_bytes

    @property
    def name(self) -> str:
        """Of all its arrays."""
        return ", ".join(array.path for array in self.arrays)

    @property
    def arrays(self) -> tuple[AnyArray, ...]:
        """The targets, and what says which of their values are missing."""
        return (*self.targets.values(), *self.masks)

    @property
    def encoded_chunks(self) -> int:
        """None."""
        return 0

    @property
    def decoded_chunks(self) -> int:
        """All chunks of all targets."""
        return sum(map(_n_chunks, self.arrays))

    @property
    def chunks_read(self) -> int:
        """All chunks of the genotypes and alleles."""
        return _n_chunks(self.counter.genotype) + _n_chunks(self.counter.allele)

    @property
    def bytes_read(self) -> int:
        """The genotypes and alleles, decoded."""
        return sum(a.size * arrays.element_bytes(a) for a in (self.counter.genotype, self.counter.allele))

    @property
    def bytes_written(self) -> int:
        """The targets, decoded."""
        return sum(a.size * arrays.element_bytes(a) for a in self.arrays)

    def by_cubed(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """Count in tasks, and write what each has counted."""
        from plans.core import cubed_backend, sinks

        here = self._in(store)
        rows, (width,) = here.counter.blocks
        if not rows or not self.decoded_chunks:
            return []
        extra = here._extra_mem(8 * width)
        counts = cubed_backend.read(here.counter, memory.spec(), extra_mem=extra)
        view = sinks.RowsSink((sum(rows), width), here.counter.dtype, (rows[0], width), here.put, store)
        return [cubed_backend.write(counts, view)]

    def by_zarr(self, store: "ZarrStore") -> None:
        """Count and write, one range of rows after the other."""
        here = self._in(store)
        for i, _ in enumerate(here.counter.blocks[0]):
            here.put(i * here.counter.n_rows, here.counter.block((i, 0)))

    def _in(self, store: "ZarrStore") -> "RecomputeFields":
        """All arrays where they are read and written."""
        counter = self.counter
        genotype, allele = (arrays.planned(a, store=store) for a in (counter.genotype, counter.allele))
        return RecomputeFields(
            {field: arrays.planned(array, store=store) for field, array in self.targets.items()},
            tuple(arrays.planned(array, store=store) for array in self.masks),
            GenotypeCounter(genotype, allele, counter.removed, counter.n_rows),
        )

    def put(self, first: int, packed: np.ndarray) -> tuple[int, int]:
        """Compute the fields of some rows, and write them; returns how many chunks and bytes that was."""
        counts = Counts.unpacked(packed, self.counter.n_samples)
        n_chunks = n_bytes = 0
        for field, array in self.targets.items():
            values = _values(field, array, counts, first)
            masks = [m for m in self.masks if masked_by(m.path) == array.path]
            for target, data in ((array, values), *((m, mask_of(m.path, array.path, array, values)) for m in masks)):
                if data.size:
                    target[first : first + len(data)] = data
                n_chunks += math.prod(arrays.grid(data.shape, arrays.outer_chunks(target)))
                n_bytes += data.nbytes
        return n_chunks, n_bytes


def _masks(vcz: Vcz, array: AnyArray) -> list[AnyArray]:
    """
    The arrays of a store that say which values of another are missing or fill.

    Raises
    ------
    IncompatibleError
        If one is not of its shape.
    """
    found = [vcz.arrays[f"{array.path}{end}"] for end in MASKS if f"{array.path}{end}" in vcz.arrays]
    for mask in found:
        if mask.shape != array.shape or mask.dtype.kind != "b" or not metadata.has_regular_grid(mask):
            raise IncompatibleError(
                f"recompute: {mask.path} of {vcz.label} has dtype {mask.dtype} and shape {mask.shape}, {array.path} "
                f"has shape {array.shape}, so it cannot say which of its values are missing; delete the array "
                f"{mask.path}"
            )
    return found


def _n_chunks(array: AnyArray) -> int:
    return math.prod(arrays.grid_of(array))


def _values(field: str, array: AnyArray, counts: Counts, first: int) -> np.ndarray:
    """
    The values of a field, as an array holds them: missing ones, and fill where a variant lacks the allele.

    Raises
    ------
    OverflowError
        If one is too large for the array.
    """
    what = FIELDS[field]
    found = what.compute(counts)
    n, width = found.values.shape
    if array.dtype.kind == "i" and found.values.size and int(found.values.max()) > np.iinfo(array.dtype).max:
        row = int(np.argmax(found.values.max(axis=1)))
        raise OverflowError(
            f"{field} is {found.values.max()} in row {first + row}, which {array.path} of dtype {array.dtype} cannot "
            f"hold; leave {field} out, or delete the array {array.path}, which is then re-created"
        )
    filled = np.full((n, math.prod(array.shape[1:])), fill_value(array.path, array), dtype=array.dtype)
    values = found.values.astype(array.dtype)
    values[np.broadcast_to(found.missing, values.shape)] = missing_value(array.path, array)
    has = np.arange(1, width + 1) < counts.n_alleles[:, np.newaxis] if what.per_allele else np.ones((n, 1), dtype=bool)
    filled[:, :width][has] = values[has]
    return filled.reshape(n, *array.shape[1:])
