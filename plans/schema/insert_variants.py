"""Insert variants: the changes to the arrays of a store when variants are inserted that it lacks.

Chunks before the first inserted variant are unchanged. All later chunks are assembled from existing and new rows. Tasks
read the state before the insertion: the base snapshot on Icechunk, the old folder on plain Zarr.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import Columns
from plans.core.compatibility import fits
from plans.core.copy_chunks import CopyArray, LinkChunks
from plans.core.memory import Memory
from plans.core.model import Plan, Write
from plans.core.views import View
from plans.schema.fitting import Fitted
from plans.schema.inserted_rows import Inserted, InsertedCalls, InsertedSites, SourceField, Unmoved
from plans.schema.layout import STRINGS, Form, Mismatch
from plans.schema.rebuild import in_place
from plans.schema.schema_change import SchemaChange
from plans.schema.widen import (
    ALLELE,
    WriteAlleles,
    WriteView,
    changed_rows,
    completed,
    follows_alleles,
    rewrites,
    vector_number,
)
from plans.variants.allele_dimensions import widened_array
from plans.variants.field_numbers import field_of, number_of, numbers_of
from plans.variants.find_insertion import Insertion
from plans.variants.findings import Findings
from plans.variants.inserted_variants import SITE_VALUES
from plans.variants.kept_blocks import KeptBlocks, KeptCalls
from plans.variants.region_index import REGION_INDEX, other_regions
from plans.variants.union_of_sources import CONTIG, FILTER, POSITION
from vczstore.errors import IncompatibleError
from vczstore.stores.edits import Consolidate, Delete, MetadataEdit, WriteArray, WriteDocuments
from vczstore.stores.folder_swap import LinkAllBut
from vczstore.vcz import arrays, conversion, strings
from vczstore.vcz.missing import has_sentinels, masked_by
from vczstore.vcz.model import REMOVED, SAMPLES, VARIANTS, Vcz, dimensions, listing, samples_axis


@dataclass(frozen=True)
class ArrayInsertions:
    """
    The changes to the arrays of a store into which variants are inserted.

    Attributes
    ----------
    operation
        Name of the operation, for error messages.
    was
        The store before the insertion.
    views
        Views of the arrays with a variants axis or a new dtype, as they will be, by name.
    tables
        Writes of the tables of contigs and filters that are extended, by name.
    findings
        The inserted variants, and the new alleles.
    old
        Number of existing samples.
    """

    operation: str
    was: Vcz
    views: Mapping[str, View]
    tables: Mapping[str, WriteArray]
    findings: Findings
    old: int

    @classmethod
    def of(cls, operation: str, change: SchemaChange, findings: Findings) -> "ArrayInsertions":
        """
        Compile the view of each array with the dtypes and axes that the new samples need, and the extended tables.

        Raises
        ------
        IncompatibleError
            If variants cannot be inserted into an array.
        """
        insertion, was = findings.insertion, change.was
        assert insertion is not None
        _check(operation, was, insertion)
        tables = {**_contigs(was, insertion), **_filters(was, insertion)}
        filters = {"filters": tables["filter_id"].array.shape[0]} if "filter_id" in tables else {}
        before, after = (replace(v, arrays={**v.arrays, **v.resized(was.n_samples)}) for v in (was, change.vcz))
        make = _ViewMaker(before, after, {**change.lengths, **filters}, findings, insertion)
        views: dict[str, View] = {}
        for name, array in was.arrays.items():
            if VARIANTS in dimensions(array):
                views[name] = make.view(name)
            elif not _is_same(array, after.arrays[name]):
                views[name] = Unmoved(before.arrays[name], after.arrays[name], name)
        return cls(operation, was, views, tables, findings, was.n_samples)

    @property
    def insertion(self) -> Insertion:
        """The insertion in `findings`, which is never None here."""
        assert self.findings.insertion is not None
        return self.findings.insertion

    def inserted(self, vcz: Vcz) -> Vcz:
        """Return a store that has all arrays it needs with the inserted variants; changed arrays are views."""
        n = self.insertion.records.n_variants
        resized = {
            name: arrays.planned(array, shape=(n, *array.shape[1:]))
            for name, array in vcz.arrays.items()
            if VARIANTS in dimensions(array)
        }
        tables = {name: edit.array for name, edit in self.tables.items()}
        return replace(vcz, arrays={**vcz.arrays, **resized, **cast("dict[str, AnyArray]", dict(self.views)), **tables})

    @property
    def sites(self) -> dict[str, AnyArray]:
        """The arrays of `views` without a samples axis, as they will be."""
        planned = {name: arrays.planned(view.like) for name, view in self.views.items()}
        return {name: array for name, array in planned.items() if samples_axis(array) is None}

    def absorb(self, change: SchemaChange) -> SchemaChange:
        """Return a schema change that is made by the insertion itself, with no plans before it."""
        created = {n: a for n, a in self.inserted(change.vcz).arrays.items() if n in change.created}
        return replace(
            change, vcz=self.inserted(change.vcz), created=created, rebuilt={}, first=(), is_committed_first=False
        )

    def complete(self, plan: Plan, after: Mapping[str, AnyArray]) -> Plan:
        """Return a plan of an append or update to the arrays `after`, with the changes to metadata and tables, too."""
        consolidate = Consolidate((*after, *self.added), self.was.zarr_format)
        return replace(
            plan,
            preparations=(*self.preparations(after), *plan.preparations),
            edits=(*(e for e in plan.edits if not isinstance(e, Consolidate)), *self.edits, consolidate),
            after=replace(plan.after, arrays=dict(sorted({**plan.after.arrays, **self.added}.items()))),
            notes={**plan.notes, **self._note(plan)},
            written_last=(),  # tasks do not read what they write
        )

    def in_place(self, plan: Plan, after: Mapping[str, AnyArray]) -> Plan:
        """
        Return the plan of `complete` for an insertion in place; the arguments are the same.

        Tasks read the old state: a local folder is replaced, with hard links to unchanged chunks.

        Raises
        ------
        UnsuitableError
            If the store is on plain Zarr, but not a local folder that can be replaced.
        """
        instead = "make a copy with all samples by --output" if self.operation == "append" else ""
        store = in_place(self.operation, plan.store, f"variants would be inserted into {plan.store.label}", instead)
        plan = self.complete(plan, after)
        if not store.begins_empty:
            return plan
        replacement = replace(
            plan,
            store=store,
            checks=(),
            writes=(*self.links(after), *plan.writes),
            preparations=(LinkAllBut.of(store, frozenset(self.views)), *plan.preparations),
        )
        return replace(plan, writes=(), preparations=(), edits=(), written_last=(), first_steps=(replacement,))

    def copies(self, after: Mapping[str, AnyArray], memory: Memory) -> list[Write]:
        """Return the writes that copy the chunks unchanged in `after`, for a plan that creates another store."""
        whole = {**self.was.arrays, **self.was.inner}
        kept = {name: array for name, array in whole.items() if name not in {*self.views, *self.added}}
        # the last column of an array of samples without variants is written with the new samples
        grids = {name: self._columns(array) if name in after else arrays.grid_of(array) for name, array in kept.items()}
        grids |= {link.name: link.grid for link in self.links(after)}
        return [CopyArray.first_chunks(self.operation, whole[name], grid, memory) for name, grid in grids.items()]

    def writes(self, vcz: Vcz, after: Mapping[str, AnyArray], memory: Memory) -> list[Write]:
        """Return the writes of existing samples, and of arrays without samples; `vcz` is the result of `inserted`."""
        writes: list[Write] = []
        for name in sorted(self.views, key=ALLELE.__eq__):
            if follows_alleles(name, self.was.arrays[name]):
                writes.append(self._alleles(name, after[name]))
                continue
            inserted, before = self.views[name], self.was.arrays[name]
            view = completed(name, vcz, cast("AnyArray", inserted), inserted.like, self.findings)
            is_same, chunk = _is_same(before, inserted.like), arrays.outer_chunks(inserted.like)[0]
            shape = (inserted.shape[0], *(before.shape[1:] if is_same else (0,) * (inserted.ndim - 1)))
            first = self.first_row(name) // chunk if is_same else 0
            rows = range(first, math.ceil(inserted.shape[0] / chunk))
            writes += rewrites(self.operation, name, cast("View", view), shape, rows, self.old, memory)
        return [write for write in writes if write.decoded_chunks]

    def first_row(self, name: str) -> int:
        """Return the first row of the first chunk of an array that changes."""
        array = self.was.arrays[name]
        chunk = arrays.outer_chunks(array)[0]
        is_by_allele = follows_alleles(name, array) or vector_number(name, self.was, self.findings)
        rows = changed_rows(self.findings, self.insertion.records.n_variants, chunk) if is_by_allele else ()
        return min([self.insertion.first // chunk, *rows]) * chunk

    def _alleles(self, name: str, after: AnyArray) -> WriteAlleles:
        before, chunks = self.was.arrays[name], arrays.outer_chunks(after)
        grid = arrays.grid(after.shape, chunks)
        is_same = _is_same(before, after) and before.shape[1] == after.shape[1]
        first = self.first_row(name) // chunks[0] if is_same else 0
        columns = Columns(after.shape, chunks, 0, tuple(range(first, grid[0])), (1, grid[1]))
        return WriteAlleles(name, after, columns, self.findings.for_tasks)

    def links(self, after: Mapping[str, AnyArray]) -> list[LinkChunks]:
        """Return hard links to the chunks before the first that changes, for a folder that is replaced."""
        links = []
        for name in self.views:
            array = self.was.arrays[name]
            if not _is_same(array, after[name]) or (
                follows_alleles(name, array) and array.shape[1] < after[name].shape[1]
            ):
                continue
            grid = (self.first_row(name) // arrays.outer_chunks(array)[0], *self._grid(name, after[name])[1:])
            links.append(LinkChunks(array.path, array, grid))
        return links

    def _columns(self, array: AnyArray) -> tuple[int, ...]:
        """Return the grid of an array without the chunk column of the first new samples."""
        axis = samples_axis(array)
        return tuple(
            int(arrays.cuts(array)[i].of(self.old)) if i == axis else n for i, n in enumerate(arrays.grid_of(array))
        )

    def _grid(self, name: str, after: AnyArray) -> tuple[int, ...]:
        """Return the size of the leading part of the grid that new samples and extended axes leave unchanged."""
        array = self.was.arrays[name]
        grid, chunks, axis = list(self._columns(array)), arrays.outer_chunks(array), samples_axis(array)
        for i, (n, m) in enumerate(zip(array.shape, after.shape, strict=True)):
            if i and i != axis and n != m:
                grid[i] = n // chunks[i]
        return tuple(grid)

    def preparations(self, after: Mapping[str, AnyArray]) -> list[MetadataEdit]:
        """Return the edits of metadata documents of arrays that get another dtype or axis."""
        changed = {n: self.was.arrays[n] for n in self.views if not _is_same(self.was.arrays[n], after[n])}
        deletions: list[MetadataEdit] = [
            Delete(name) for name, array in changed.items() if array.ndim != after[name].ndim
        ]
        return [*deletions, *(WriteDocuments.of(after[name]) for name in changed)]

    @property
    def edits(self) -> tuple[MetadataEdit, ...]:
        """Edits that the driver applies: extended tables, and the new ``region_index``."""
        edits: list[MetadataEdit] = []
        for name, write in self.tables.items():
            edits += [Delete(name), write]
        if self.insertion.regions is not None:
            edits += [Delete(REGION_INDEX), self._region_index]
        return tuple(edits)

    @cached_property
    def _region_index(self) -> WriteArray:
        array, regions = self.was.arrays[REGION_INDEX], self.insertion.regions
        assert regions is not None
        before = arrays.read(array, tuple(slice(0, n) for n in array.shape)).astype("i8")
        kept = before[before[:, 0] * self.insertion.chunk < self.insertion.first_changed_chunk]
        return other_regions(array, np.concatenate([kept, regions[:, : before.shape[1]]]))

    @property
    def added(self) -> dict[str, AnyArray]:
        """The arrays that `edits` write, as they will be."""
        tables = {name: write.array for name, write in self.tables.items()}
        return tables | ({REGION_INDEX: self._region_index.array} if self.insertion.regions is not None else {})

    def _note(self, plan: Plan) -> dict[str, str]:
        """Return notes for the user about the insertion."""
        insertion = self.insertion
        if not insertion.n_records:
            return {"inserted": "no variants"}
        rewrites = [w for w in plan.writes if w.name in self.views and isinstance(w, WriteView | WriteAlleles)]
        n_chunks, n_bytes = (sum(getattr(w, count) for w in rewrites) for count in ("decoded_chunks", "bytes_written"))
        return {
            "inserted": f"{insertion.n_inserted:,} variants, the first as row {insertion.first:,} of "
            f"{insertion.records.n_variants:,}; {n_chunks:,} chunks of what the store has are rewritten ({n_bytes:,} "
            f"bytes decoded); --new-variants drop would leave out {insertion.n_records:,} records of the sources",
            **({"not taken": f"{listing(self.not_taken)} of new variants, of another type"} if self.not_taken else {}),
        }

    @property
    def not_taken(self) -> list[str]:
        """Per-variant fields of sources whose form is incompatible with that of the store."""
        incompatible = set()
        for name, view in self.views.items():
            for source in self.insertion.sources:
                array = source.arrays.get(name)
                if isinstance(view, InsertedSites) and name != FILTER and array is not None:
                    incompatible |= set() if _joined(Form.of(view.like), array) else {name}
        return sorted(incompatible)


@dataclass(frozen=True)
class _ViewMaker:
    """
    Builds the views of arrays with a variants axis.

    Attributes
    ----------
    was, changed
        The store before the insertion, and with the dtypes and axes that the new samples need; with equal samples.
    lengths
        New lengths of dimensions.
    findings, insertion
        The new alleles, and the inserted variants.
    """

    was: Vcz
    changed: Vcz
    lengths: Mapping[str, int]
    findings: Findings
    insertion: Insertion

    def view(self, name: str) -> Inserted:
        """Return the view of an array with a variants axis."""
        array = self.was.arrays[name]
        if samples_axis(array) is not None:
            return self._calls(name)
        target = self._target(name)
        like = arrays.planned(target, shape=(self.insertion.records.n_variants, *target.shape[1:]))
        fields = tuple(self._field(name, source, like) for source in self.insertion.sources)
        view = InsertedSites(_fitted(array, target, name), like, name, self.insertion.records, fields)
        base = masked_by(name)
        if name != base and base in self.was.arrays and has_sentinels(self.was.arrays[base].dtype):
            masked = self.view(base)
            assert isinstance(masked, InsertedSites)
            return replace(view, masked=masked)
        return view

    def _calls(self, name: str) -> InsertedCalls:
        rules, records, contigs = self.findings.rules, self.insertion.records, self.insertion.contigs
        target = widened_array(self.changed.arrays[name], self.lengths)
        like = arrays.planned(target, shape=(records.n_variants, *target.shape[1:]))
        blocks = KeptBlocks.of(self.was, records.token, contigs, rules.min_gq)
        return InsertedCalls(
            source=_fitted(self.was.arrays[name], target, name),
            like=like,
            name=name,
            records=records,
            is_reference=rules.absent == "reference",
            haploid=tuple(rules.haploid(contigs)),
            removed=np.flatnonzero(self.was.sample_ids == REMOVED),
            kept=KeptCalls.of(blocks, name, like),
        )

    def _target(self, name: str) -> AnyArray:
        """Return a per-variant array with the dtype and trailing axes that it needs to hold the values of sources."""
        array = self.changed.arrays[name]
        form = Form.of(array)
        if name == CONTIG:
            dtype = np.promote_types(array.dtype, np.min_scalar_type(-len(self.insertion.contigs)))
            form = replace(form, dtype=dtype)
        elif name == ALLELE and form.dtype.kind in "US":
            form = replace(form, dtype=STRINGS)  # new alleles may be longer than the fixed width
        elif not follows_alleles(name, array) and self.insertion.n_inserted:
            for source in self.insertion.sources:
                form = _joined(form, source.arrays.get(name)) or form
            if name in SITE_VALUES and form.dtype.kind == "i":  # computed values may exceed all existing ones
                form = replace(form, dtype=np.promote_types(form.dtype, "i4"))
        lengths = {**dict(zip(form.dimensions, form.lengths, strict=True)), VARIANTS: self.was.n_variants}
        shape = tuple(max(lengths[d], self.lengths.get(str(d), 0)) for d in form.dimensions)
        if (form.dtype, form.dimensions) == (array.dtype, dimensions(array)):
            return arrays.planned(array, shape=shape)
        return conversion.reformed(array, dtype=form.dtype, shape=shape, dimension_names=form.dimensions)

    def _field(self, name: str, source: Vcz, like: AnyArray) -> SourceField | None:
        """Return a per-variant field of a source; None if it lacks the field, or the store cannot take it."""
        array = source.arrays.get(name)
        if array is None or name in SITE_VALUES or name in (CONTIG, POSITION, ALLELE):
            return None
        if name == FILTER:
            numbers = {f: i for i, f in enumerate(_filter_table(self.was, self.insertion.sources))}
            return SourceField(array, None, np.array([numbers[f] for f in source.table("filter_id").tolist()]))
        if _joined(Form.of(like), array) is None:
            return None
        if array.ndim < like.ndim:
            fitted_like = arrays.planned(like, shape=(array.shape[0], *like.shape[1:]))
            array = cast("AnyArray", Fitted(array, fitted_like, name))
        number = number_of(name, like, numbers_of(self.was, "INFO"))
        return SourceField(array, field_of(name, like, number) if number in ("R", "A", "G") else None, None)


def _joined(form: Form, array: AnyArray | None) -> Form | None:
    """Return the form that holds the values of a field and of a source's array; None if either is lacking."""
    if array is None:
        return None
    try:
        joined = form.joined(Form.of(array))
    except Mismatch:
        return None
    if fits(array.dtype, form.dtype):
        return replace(joined, dtype=form.dtype)
    return replace(joined, dtype=STRINGS) if form.dtype.kind in "US" else joined


def _is_same(before: AnyArray, after: AnyArray) -> bool:
    """Whether an array keeps its dtype and number of axes."""
    return (before.dtype, before.ndim) == (after.dtype, after.ndim)


def _fitted(array: AnyArray, target: AnyArray, name: str) -> AnyArray:
    """Return an array with the dtype and trailing axes of its target; a view if they differ."""
    if (array.dtype, array.shape) == (target.dtype, target.shape):
        return array
    return cast("AnyArray", Fitted(array, target, name))


# ---- checks and tables ----------------------------------------------------------------------


def _check(operation: str, vcz: Vcz, insertion: Insertion) -> None:
    """
    Check that variants can be inserted into all arrays with a variants axis, and contigs into their table.

    Raises
    ------
    IncompatibleError
        If an array or the table of contigs cannot be extended.
    """
    for name, array in (*vcz.arrays.items(), *vcz.inner.items()):
        names = dimensions(array)
        if VARIANTS not in names:
            continue
        why = None
        if name in vcz.inner:
            why = "lies in a group of its own"
        elif names[0] != VARIANTS or (SAMPLES in names and names[1] != SAMPLES):
            why = f"has the dimensions {', '.join(map(str, names))}"
        if why is not None:
            raise IncompatibleError(
                f"{operation}: {name} of {vcz.label} {why}, so no variants can be inserted there; delete the array, or "
                "leave new variants out with --new-variants drop"
            )
    if len(insertion.contigs) > vcz.n_contigs and "contig_id" not in vcz.arrays:
        new = insertion.contigs[vcz.n_contigs :]
        raise IncompatibleError(
            f"{operation}: {vcz.label} has its contigs in an attribute and no array contig_id, so {listing(list(new))} "
            "cannot be added; leave new variants out with --new-variants drop, or make the store with bio2zarr"
        )


def _contigs(vcz: Vcz, insertion: Insertion) -> dict[str, WriteArray]:
    """Return the writes of the tables of contigs; empty if no contig is added."""
    if len(insertion.contigs) == vcz.n_contigs:
        return {}
    writes = {"contig_id": _strings(vcz.arrays["contig_id"], insertion.contigs)}
    if (array := vcz.arrays.get("contig_length")) is not None:
        lengths = {name: n for source in insertion.sources[::-1] for name, n in source.contig_lengths.items()}
        new = [lengths.get(name, -1) for name in insertion.contigs[vcz.n_contigs :]]
        before = arrays.read(array, (slice(0, vcz.n_contigs),))
        values = np.concatenate([before, np.array(new, dtype=before.dtype)])
        writes["contig_length"] = WriteArray(arrays.planned(array, shape=values.shape), values)
    return writes


def _filter_table(vcz: Vcz, sources: Sequence[Vcz]) -> dict[str, str]:
    """Return the filters of a store, and then those that only sources have, with their descriptions."""
    filters: dict[str, str] = {}
    for each in (vcz, *sources):
        if each is not vcz and not (each.has_table("filter_id") and FILTER in each.arrays):
            continue
        names = each.table("filter_id").tolist()
        texts = each.table("filter_description").tolist() if "filter_description" in each.arrays else [""] * len(names)
        for name, text in zip(names, texts, strict=True):
            filters.setdefault(name, text)
    return filters


def _filters(vcz: Vcz, insertion: Insertion) -> dict[str, WriteArray]:
    """Return the writes of the tables of filters; empty if no filter is added."""
    if FILTER not in vcz.arrays or "filter_id" not in vcz.arrays:
        return {}
    table = _filter_table(vcz, insertion.sources)
    if len(table) == len(vcz.table("filter_id")):
        return {}
    writes = {"filter_id": _strings(vcz.arrays["filter_id"], list(table))}
    if "filter_description" in vcz.arrays:
        writes["filter_description"] = _strings(vcz.arrays["filter_description"], list(table.values()))
    return writes


def _strings(array: AnyArray, texts: Sequence[str]) -> WriteArray:
    """Return the write of an extended table of strings."""
    shape = (len(texts),)
    if array.dtype.kind in "US":  # a fixed width would truncate longer names
        target = conversion.reformed(array, dtype=STRINGS, shape=shape)
    else:
        target = arrays.planned(array, shape=shape)
    return WriteArray(target, strings.as_stored(np.array([*texts, None], dtype=object)[:-1], target.dtype))
