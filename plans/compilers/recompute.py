"""Recompute: compute INFO fields from the genotypes of a store.

All fields are computed in one pass over the genotypes: a task reads the chunks of a range of rows one after the other
along the samples axis, and counts alleles. Memory is needed for one chunk of genotypes and the counts, regardless of
the number of samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import MIN_TASKS, TASK_BYTES
from plans.core.compatibility import count_alleles
from plans.core.memory import WORKING_COPIES, Memory
from plans.core.model import Plan
from plans.core.scan_reader import ScanReader
from plans.core.task_report import report_written
from plans.schema.rebuild import compile_rebuild, wider_notes
from plans.variants.info_fields import FIELDS, SLAB, SLAB_BYTES_PER_ALLELE, Counts, numbers_per_variant
from plans.variants.stale import CURRENT, STALE, array_name, mark, states
from vczstore.errors import IncompatibleError
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


def compile_recompute(store: Store, vcz: Vcz, fields: Sequence[str], memory: Memory) -> Plan:
    """
    Compile the recomputation of INFO fields of a store, which are keys of `plans.variants.info_fields.FIELDS`.

    Arrays that do not exist are created; those whose integers are too narrow for the number of samples are widened.
    Fields that are current are skipped.

    Raises
    ------
    IncompatibleError
        If the store lacks the arrays that fields are computed from, or has an array that cannot hold a field.
    """
    fields = list(dict.fromkeys(fields))
    vcz.require_whole(OPERATION, edited=False)
    for name, names in NEEDED.items():
        actual = dimensions(vcz.arrays[name]) if name in vcz.arrays else None
        if actual != names:
            has = f"no {name}" if actual is None else f"{name} of dimensions {actual}"
            raise IncompatibleError(
                f"{OPERATION}: {vcz.label} has {has}, and fields are computed from {name} of {names}"
            )
    field_states = states(vcz)
    fields = [field for field in fields if field_states.get(field) != CURRENT]
    narrow = _widened(vcz, fields)
    first = (compile_rebuild(OPERATION, store, vcz, narrow, memory),) if narrow else ()
    notes = wider_notes(vcz, narrow, {})
    vcz = first[0].after if first else vcz
    targets = {field: _target(vcz, field) for field in fields}
    write = RecomputeFields.of(vcz, targets, memory)
    created = {a.path: a for a in targets.values() if a.path not in vcz.arrays}

    # an interrupted run on plain Zarr leaves partly written fields, which are stale even if they were current before
    marked, begun = mark(vcz, [f for f in fields if array_name(f) in vcz.arrays], STALE)
    after, done = mark(marked.planned(created, vcz.sample_ids), fields, CURRENT)
    return Plan(
        operation=OPERATION,
        store=store,
        base=vcz.state,
        writes=(write,) if fields else (),
        preparations=begun,
        edits=(
            *(WriteDocuments.of(array) for array in created.values()),
            Consolidate(tuple(created), vcz.zarr_format),
            *done,
        )
        if fields
        else (),
        memory=memory,
        after=after,
        if_stopped="some values of the fields may be new already",
        counts={"fields recomputed": len(fields)},
        notes=notes,
        first_steps=first,
    )


def _widened(vcz: Vcz, fields: Sequence[str]) -> dict[str, AnyArray]:
    """
    Return the arrays of integer fields whose dtype cannot hold the number of alleles that may be called, widened.

    VCF converters choose the narrowest dtype for the values of one VCF: int8 for AN of up to 63 diploid samples.
    """
    highest = vcz.n_samples * vcz.arrays[GENOTYPE].shape[2]
    needed = np.dtype("i4") if highest <= np.iinfo("i4").max else np.dtype("i8")
    result = {}
    for name in (array_name(field) for field in fields if FIELDS[field].kind == "i"):
        array = vcz.arrays.get(name)
        if array is None or array.dtype.kind != "i" or np.iinfo(array.dtype).max >= highest:
            continue
        try:
            wider = conversion.reformed(array, dtype=needed)
        except metadata.UnsupportedCodecError as error:
            raise IncompatibleError(
                f"{OPERATION}: {name} of {vcz.label} has dtype {array.dtype}, and needs {needed} for {highest:,} "
                f"alleles, which its {error} does not take; leave {name.removeprefix('variant_')} out"
            ) from error
        result[name] = wider
    return result


def _target(vcz: Vcz, field: str) -> AnyArray:
    """The array of a field: the one of the store, which must be able to hold the field, or a new one."""
    info, name = FIELDS[field], array_name(field)
    width = max(0, vcz.arrays[ALLELE].shape[1] - 1) if info.per_allele else 1
    array = vcz.arrays.get(name)
    if array is None:
        return conversion.new_like(
            vcz.arrays["variant_position"],
            name,
            np.dtype("i4" if info.kind == "i" else "f4"),
            (width,) if info.per_allele else (),
            dimension_names=(VARIANTS, "alt_alleles") if info.per_allele else (VARIANTS,),
            attributes={"description": info.description},
        )

    def refuse(has: str, needs: str) -> IncompatibleError:
        return IncompatibleError(
            f"{OPERATION}: {name} of {vcz.label} has {has}, and {field} needs {needs}; leave {field} out, or delete "
            f"the array {name}, which is then re-created"
        )

    if dimensions(array)[:1] != (VARIANTS,) or array.ndim > 2:
        raise refuse(f"dimensions {dimensions(array)}", f"{(VARIANTS, 'alt_alleles')[: 1 + info.per_allele]}")
    if math.prod(array.shape[1:]) < width:
        raise refuse(f"{math.prod(array.shape[1:])} values for a variant", f"{width}")
    if array.dtype.kind != info.kind or array.dtype == np.dtype("f2"):
        raise refuse(f"dtype {array.dtype}", "signed integers" if info.kind == "i" else "float32")
    if arrays.is_flexible(array):
        raise refuse("chunks of different sizes", "chunks of one size")
    return array


@dataclass(frozen=True)
class GenotypeCounter:
    """
    Counts genotypes of ranges of rows.

    Attributes
    ----------
    genotype, allele
        The arrays of genotypes and alleles.
    removed
        The positions of removed samples, which are not counted.
    n_rows
        The number of rows per task.
    """

    genotype: AnyArray
    allele: AnyArray
    removed: np.ndarray
    n_rows: int

    @property
    def n_variants(self) -> int:
        return int(self.allele.shape[0])

    @property
    def n_samples(self) -> int:
        """Number of samples that are counted."""
        return int(self.genotype.shape[1]) - len(self.removed)

    def count(self, rows: slice) -> Counts:
        """Count a range of rows, one chunk of genotypes after the other."""
        n_alleles = count_alleles(arrays.read_strings(self.allele, (rows, slice(None))))
        counts = Counts.zeros(n_alleles, self.allele.shape[1], self.n_samples)
        for part in arrays.cuts(self.genotype)[0].spans(rows.start, rows.stop):
            here = slice(part.start - rows.start, part.stop - rows.start)
            part_counts = counts.part(here)
            for samples in arrays.cuts(self.genotype)[1].spans():
                genotypes = arrays.read(self.genotype, (part, samples))
                removed = self.removed[(self.removed >= samples.start) & (self.removed < samples.stop)] - samples.start
                if len(removed):
                    genotypes = np.delete(genotypes, removed, axis=1)
                self._check(genotypes, part_counts.n_alleles, part.start)
                part_counts.add(genotypes)
        return counts

    @staticmethod
    def _check(genotypes: np.ndarray, n_alleles: np.ndarray, first: int) -> None:
        """Raise a `DamagedChunkError` if a genotype has an allele index that its variant does not have."""
        if not genotypes.size or int(genotypes.max()) < int(n_alleles.min()):
            return
        is_invalid = (highest := genotypes.max(axis=(1, 2))) >= n_alleles
        if is_invalid.any():
            row = int(np.argmax(is_invalid))
            raise pipeline.DamagedChunkError(
                f"{GENOTYPE} has allele {highest[row]} in row {first + row}, whose variant has {n_alleles[row]} alleles"
            )

    def mem(self) -> int:
        """Bytes needed in addition to the counts: a chunk of genotypes, temporary arrays made from it, and alleles."""
        _, samples, ploidy = arrays.outer_chunks(self.genotype)
        decoded = arrays.chunk_bytes(self.genotype)
        without_removed = decoded if len(self.removed) else 0
        slab = max(SLAB, min(samples, self.genotype.shape[1]) * ploidy)
        strings = 2 * self.n_rows * self.allele.shape[1] * arrays.element_bytes(self.allele)
        n_chunks = min(pipeline.READS_AT_ONCE, math.ceil(self.n_rows / arrays.outer_chunks(self.allele)[0]))
        return (
            arrays.decode_mem(self.genotype, 1)
            + decoded
            + without_removed
            + SLAB_BYTES_PER_ALLELE * slab
            + strings
            + arrays.decode_mem(self.allele, n_chunks)
        )


@dataclass(frozen=True)
class RecomputeFields:
    """
    Recompute the arrays of INFO fields.

    Attributes
    ----------
    targets
        The array of each field.
    masks
        The mask arrays of these arrays, which mark missing or fill values.
    counter
        Counts the genotypes from which the fields are computed.
    """

    targets: dict[str, AnyArray]
    masks: tuple[AnyArray, ...]
    counter: GenotypeCounter

    encoded_chunks = 0

    @classmethod
    def of(cls, vcz: Vcz, targets: dict[str, AnyArray], memory: Memory) -> "RecomputeFields":
        """Choose the number of rows per task: whole chunks of all targets, so that no two tasks write one chunk."""
        masks = tuple(m for a in targets.values() for m in _masks(vcz, a))
        genotype, allele = vcz.arrays[GENOTYPE], vcz.arrays[ALLELE]
        removed = np.flatnonzero(vcz.sample_ids == REMOVED)
        written = math.lcm(*(arrays.outer_chunks(a)[0] for a in (*targets.values(), *masks)))
        n = max(1, vcz.n_variants)
        both = math.lcm(written, arrays.outer_chunks(genotype)[0])
        unit = both if both <= n else min(written, n)  # in the latter case, chunks of genotypes may be read twice
        count_bytes = 8 * numbers_per_variant(allele.shape[1])
        row_bytes = max(count_bytes, math.prod(genotype.shape[1:]) * arrays.element_bytes(genotype))
        units = max(1, min(TASK_BYTES // (unit * row_bytes), math.ceil(n / unit) // MIN_TASKS))

        def of_units(units: int) -> "RecomputeFields":
            return cls(targets, masks, GenotypeCounter(genotype, allele, removed, unit * units))

        def computing(block: tuple[int, ...]) -> int:  # the fields, from some copies of the counts
            return of_units(*block)._computing_mem(count_bytes)

        return of_units(*memory.fit(OPERATION, (units,), unit * count_bytes, computing, prefer=(units,)))

    def _computing_mem(self, count_bytes: int) -> int:
        return self.counter.mem() + 2 * self.counter.n_rows * count_bytes

    @property
    def name(self) -> str:
        return ", ".join(array.path for array in self.arrays)

    @property
    def arrays(self) -> tuple[AnyArray, ...]:
        return (*self.targets.values(), *self.masks)

    @property
    def decoded_chunks(self) -> int:
        return sum(map(_n_chunks, self.arrays))

    @property
    def chunks_read(self) -> int:
        return _n_chunks(self.counter.genotype) + _n_chunks(self.counter.allele)

    @property
    def bytes_read(self) -> int:
        return sum(a.size * arrays.element_bytes(a) for a in (self.counter.genotype, self.counter.allele))

    @property
    def bytes_written(self) -> int:
        return sum(a.size * arrays.element_bytes(a) for a in self.arrays)

    def by_cubed(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """Count in tasks; each writes the fields of its rows."""
        from plans.core import scan_tasks

        count_bytes, n_rows = 8 * numbers_per_variant(self.counter.allele.shape[1]), self.counter.n_rows
        mem = self._computing_mem(count_bytes) + WORKING_COPIES * n_rows * count_bytes
        reader = ScanReader(partial(self.recompute, store), self.counter.n_variants, n_rows, mem)
        return [scan_tasks.scan(reader, memory.spec())]

    def by_zarr(self, store: "ZarrStore") -> None:
        """Count and write, one range of rows after the other."""
        for start in range(0, self.counter.n_variants, self.counter.n_rows):
            self._in(store).put(slice(start, min(self.counter.n_variants, start + self.counter.n_rows)))

    def recompute(self, store: "ZarrStore", rows: slice) -> None:
        """Compute and write the fields of some rows in a task."""
        n_chunks, n_bytes = self._in(store).put(rows)
        report_written(store, n_chunks, decoded_bytes=n_bytes)

    def _in(self, store: "ZarrStore") -> "RecomputeFields":
        """The same, with all arrays in the given store."""
        genotype, allele = (arrays.planned(a, store=store) for a in (self.counter.genotype, self.counter.allele))
        return RecomputeFields(
            {field: arrays.planned(array, store=store) for field, array in self.targets.items()},
            tuple(arrays.planned(array, store=store) for array in self.masks),
            replace(self.counter, genotype=genotype, allele=allele),
        )

    def put(self, rows: slice) -> tuple[int, int]:
        """Compute and write the fields of some rows; return the numbers of chunks and decoded bytes written."""
        counts = self.counter.count(rows)
        n_chunks = n_bytes = 0
        for field, array in self.targets.items():
            values = _values(field, array, counts)
            masks = [m for m in self.masks if masked_by(m.path) == array.path]
            for target, data in ((array, values), *((m, mask_of(m.path, array.path, array, values)) for m in masks)):
                if data.size:
                    target[rows] = data
                n_chunks += math.prod(arrays.grid(data.shape, arrays.outer_chunks(target)))
                n_bytes += data.nbytes
        return n_chunks, n_bytes


def _masks(vcz: Vcz, array: AnyArray) -> list[AnyArray]:
    """
    The arrays that mask missing or fill values of an array.

    Raises
    ------
    IncompatibleError
        If a mask has another shape, a wrong dtype or an irregular grid.
    """
    masks = [vcz.arrays[f"{array.path}{end}"] for end in MASKS if f"{array.path}{end}" in vcz.arrays]
    for mask in masks:
        if mask.shape != array.shape or mask.dtype.kind != "b" or arrays.is_flexible(mask):
            raise IncompatibleError(
                f"{OPERATION}: {mask.path} of {vcz.label} has dtype {mask.dtype} and shape {mask.shape}, {array.path} "
                f"has shape {array.shape}, so it cannot say which of its values are missing; delete the array "
                f"{mask.path}"
            )
    return masks


def _n_chunks(array: AnyArray) -> int:
    return math.prod(arrays.grid_of(array))


def _values(field: str, array: AnyArray, counts: Counts) -> np.ndarray:
    """The values of a field as stored in its array, with missing values, and fill values for absent alleles."""
    info = FIELDS[field]
    result = info.compute(counts)
    n, width = result.values.shape
    filled = np.full((n, math.prod(array.shape[1:])), fill_value(array.path, array), dtype=array.dtype)
    values = result.values.astype(array.dtype)
    values[np.broadcast_to(result.missing, values.shape)] = missing_value(array.path, array)
    has = np.arange(1, width + 1) < counts.n_alleles[:, np.newaxis] if info.per_allele else np.ones((n, 1), dtype=bool)
    filled[:, :width][has] = values[has]
    return filled.reshape(n, *array.shape[1:])
