"""Append: the samples of one or more sources become the last samples of a store.

Chunk columns of a source that are aligned with the store's grid and have the same encoding are copied verbatim. The
others, including the store's partially filled last column, are decoded, joined, cut at the store's chunk boundaries and
encoded. Nothing else is read or written, so the cost depends on the batch, not on the store.
"""

import itertools
import math
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
from zarr.types import AnyArray

from plans.compilers.compact import documents_of_copy
from plans.core.compatibility import check_samples
from plans.core.gather_samples import Part, PutSamples
from plans.core.memory import Memory
from plans.core.model import START_OVER, Compiling, CopiedFrom, Plan, Survey, Write
from plans.core.scan_reader import ScanReader
from plans.core.withdrawn import copying_key, counting_left_out, readmitting, returning_samples, without_returning
from plans.schema.fitting import fitted
from plans.schema.insert_variants import ArrayInsertions
from plans.schema.keep_blocks import look_up_highest, without_lengths
from plans.schema.layout import Fields
from plans.schema.provenance import with_batch_numbers, with_batch_table
from plans.schema.schema_change import SchemaChange, compile_schema_change, look_up_unfit
from plans.schema.widen import ALLELE, completed, widenings, write_missing
from plans.variants.allele_dimensions import arrays_to_widen, widened_array
from plans.variants.dropped_fields import Dropped
from plans.variants.field_numbers import with_numbers
from plans.variants.findings import Findings, Summary
from plans.variants.harmonise_rules import Rules
from plans.variants.harmonised_fields import harmonised_array
from plans.variants.stale import mark_stale
from plans.variants.surveys import match_sources
from vczstore.errors import IncompatibleError, SampleError, VczstoreError
from vczstore.execution.operations import Stages
from vczstore.stores.base import Store
from vczstore.stores.edits import Consolidate, MetadataEdit, SetShape, WriteDocuments
from vczstore.vcz import arrays
from vczstore.vcz.missing import same
from vczstore.vcz.model import SAMPLE_ID, Vcz, listing

OPERATION = "append"
IF_STOPPED = "readers see the old samples, or all of the new ones"


def compile_append(
    store: Store,
    vcz: Vcz,
    sources: Sequence[Vcz],
    memory: Memory,
    *,
    findings: Findings | None = None,
    fields: Fields = Fields(),
    unfit: Collection[tuple[int, str]] | None = None,
    copying: bool = False,
) -> Plan:
    """
    Compile the append of sources to a store.

    Parameters
    ----------
    store, vcz
        The store, and its state when the plan will run.
    sources
        The sources, in the order of their samples. All have the store's variants, unless they are harmonised.
    memory
        Memory limits of a task.
    findings
        How the sources match the variants and alleles of the store; None if they are not harmonised.
    fields
        The fields to drop and to add.
    unfit
        Arrays of sources, by index and name, with values that the store's narrower dtype cannot hold: the store's
        dtype is widened for them. None if that is unknown: such values are refused then.
    copying
        Whether unchanged chunks are written, too, for a copy of the store; only where variants are inserted.

    Raises
    ------
    VczstoreError
        If the metadata or sample IDs are incompatible.
    """
    if not sources:
        raise VczstoreError(f"{OPERATION}: no sources given; name the VCZs whose samples come in")
    if (findings is None or findings.insertion is None) and _waits_for_consolidation(vcz, sources):
        return _completion(store, vcz, sources, memory, findings=findings, fields=fields, unfit=unfit)
    columns = [column for source in sources for column in source.columns]
    old, new = vcz.n_samples, vcz.n_samples + sum(columns)

    # 1. check that everything is consistent and compatible
    _check(vcz, sources, new)
    change = compile_schema_change(
        OPERATION, store, vcz, sources, memory, fields=fields, findings=findings, unfit=unfit
    )
    insertions = None
    if findings is not None and findings.insertion is not None:
        insertions = ArrayInsertions.of(OPERATION, change, findings)
        change = insertions.absorb(change)
    elif findings is not None and change.is_committed_first:
        findings = findings.with_alleles_in(change.vcz.arrays[ALLELE])

    # 2. writes of arrays
    arrays_of = StoreArrays.of(OPERATION, change, findings, columns, insertions)
    widening = arrays_of.widenings(change.vcz, findings, old, memory)
    places = np.split(np.arange(old, new), np.cumsum([source.n_samples for source in sources])[:-1])
    parts = incoming_parts(change.sources, places, arrays_of.after, findings)
    writes: tuple[Write, ...] = (
        *(PutSamples.of(OPERATION, arrays_of.before[n], a, parts[n], memory) for n, a in arrays_of.after.items()),
        *(write_missing(OPERATION, v, arrays_of.after[n], old, memory) for n, v in arrays_of.added.items()),
        *widening,
    )

    # 3. metadata edits that make the new samples visible
    resized, edits = arrays_of.edits(change.vcz.zarr_format)
    ids = np.concatenate([vcz.sample_ids, *(s.sample_ids for s in sources)])
    planned, marks = mark_stale(change.vcz.planned(resized, ids))
    created = () if old else tuple(WriteDocuments.of(array) for array in change.created.values())
    summary, kept = Summary.of(findings, arrays_of.after, change.dropped, arrays_of.added), change.kept
    plan = Plan(
        operation=OPERATION,
        store=store,
        base=vcz.state,
        checks=change.checks,
        writes=writes,
        preparations=(*created, *marks),
        edits=edits,
        memory=memory,
        after=planned,
        if_stopped=IF_STOPPED,
        counts={"sources": len(sources), "samples added": new - old, **summary.counts, **kept.counts, **change.counts},
        notes={**summary.notes, **kept.notes, **change.notes(arrays_of.wider, widening)},
        written_last=(ALLELE,),
        first_steps=change.first,
        chunks_of_store=change.chunks_of_store(widening),
    )
    if insertions is None:
        return plan
    if copying:
        plan = replace(plan, writes=(*insertions.copies(arrays_of.every, memory), *plan.writes))
        return insertions.complete(plan, arrays_of.every)
    return insertions.in_place(plan, arrays_of.every)


def _check(vcz: Vcz, sources: Sequence[Vcz], new: int) -> None:
    """Check the sources and the store; an interrupted append may have left arrays of the store with `new` samples."""
    vcz.require_whole(OPERATION, interrupted_at=None if vcz.snapshot else new)
    vcz.require_columns(OPERATION)
    for source in sources:
        source.require_whole(OPERATION)
    check_samples(OPERATION, vcz, sources)


class StoreArrays(NamedTuple):
    """
    The arrays of a store, by name.

    Attributes
    ----------
    before, after
        Arrays with samples: as read by the writes that append to them, and after the operation.
    added
        Views of missing values for the old samples, in arrays that are new to the store.
    wider
        Arrays without samples, after their dimensions of alleles become longer or variants are inserted.
    insertions
        The inserted variants; None if there are none.
    """

    before: dict[str, AnyArray]
    after: dict[str, AnyArray]
    added: dict[str, Dropped]
    wider: dict[str, AnyArray]
    insertions: ArrayInsertions | None

    @classmethod
    def of(
        cls,
        operation: str,
        change: SchemaChange,
        findings: Findings | None,
        columns: Sequence[int],
        insertions: ArrayInsertions | None,
    ) -> "StoreArrays":
        """Resize all arrays. An interrupted append may have left some of them longer than `sample_id`."""
        vcz, created, old = change.vcz, change.created, change.was.n_samples
        wider = arrays_to_widen(operation, vcz, change.lengths)
        after = {name: widened_array(a, change.lengths) for name, a in vcz.extended(old, columns).items()}
        as_read = vcz.resized(old)
        if insertions is not None:
            wider |= insertions.sites
            as_read |= {name: cast("AnyArray", insertions.views[name]) for name in as_read if name in insertions.views}
        before = {
            name: cast("AnyArray", completed(name, vcz, array, widened_array(array, change.lengths), findings))
            for name, array in as_read.items()
            if not (old and name in created)
        }
        added = {name: Dropped.of(name, after[name], old) for name in created if old}
        return cls(before | cast("dict[str, AnyArray]", added), after, added, wider, insertions)

    @property
    def every(self) -> dict[str, AnyArray]:
        """All arrays that change, after the operation."""
        return {**self.wider, **self.after}

    def widenings(self, vcz: Vcz, findings: Findings | None, old: int, memory: Memory) -> list[Write]:
        """Writes that rewrite values of the store, for new alleles or inserted variants."""
        if self.insertions is not None:
            not_viewed = {n: a for n, a in vcz.arrays.items() if n in self.wider and n not in self.insertions.views}
            longer = widenings(OPERATION, replace(vcz, arrays=not_viewed), self.wider, old, None, memory)
            return [*self.insertions.writes(vcz, self.every, memory), *longer]
        existing = replace(vcz, arrays={name: array for name, array in vcz.arrays.items() if name not in self.added})
        return list(widenings(OPERATION, existing, self.wider, old, findings, memory))

    def edits(self, zarr_format: int) -> tuple[dict[str, AnyArray], tuple[MetadataEdit, ...]]:
        """
        The arrays in the order in which they become visible, and the edits that make them visible.

        `sample_id` is last: its shape is the source of truth for the number of samples. The alleles come after the
        vectors that have an element per allele; a run that resumes an interrupted one relies on that order.
        """
        resized = dict(sorted(self.every.items()))  # a run that resumes an interrupted one relies on this order
        resized |= {name: resized.pop(name) for name in (ALLELE, SAMPLE_ID) if name in resized}
        edits: list[MetadataEdit] = [
            WriteDocuments.of(array) if name in self.added else SetShape.of(array) for name, array in resized.items()
        ]
        return resized, (*edits, Consolidate(tuple(resized), zarr_format))


def _completion(
    store: Store, vcz: Vcz, sources: Sequence[Vcz], memory: Memory, *, findings: Findings | None, **more: Any
) -> Plan:
    """Compile the rest of an append that was interrupted before its last edit, after checking that it was this one."""
    n = vcz.n_samples - sum(source.n_samples for source in sources)
    before = vcz.planned(vcz.resized(n), vcz.sample_ids[:n])
    plan = compile_append(store, before, sources, memory, findings=findings, **more)
    if plan.first_steps:  # the interrupted append would have done these steps before its samples became visible
        check_samples(OPERATION, vcz, sources)
    checks = [HasSamples(store.label, write) for write in plan.writes if isinstance(write, PutSamples)]
    return replace(complete_append(store, vcz, memory), checks=(*plan.checks, *checks))


def compile_in_stages(
    compiling: Compiling,
    *,
    rules: Rules | None = None,
    fields: Fields = Fields(),
    allow_returning: bool = False,
    drop_returning: bool = False,
) -> Stages:
    """
    Compile an append in stages: the data are surveyed first, where the plan depends on them.

    Parameters
    ----------
    compiling
        The store and its sources. If it has an `origin`, the plan makes a copy of that store with all samples;
        `rules.is_copied` must be true then.
    rules
        How sources are harmonised with the store; None if they have its variants.
    fields
        As in `compile_append`.
    allow_returning, drop_returning
        Whether samples that were removed from the store may be added again, or are left out.

    Raises
    ------
    VczstoreError
        If the sources are incompatible.
    """
    store, vcz, all_sources, memory = compiling.opened_store, compiling.vcz, compiling.sources, compiling.memory
    sources = all_sources
    if drop_returning and sources and not (sources := without_returning(store, vcz, sources)):
        raise SampleError(f"{OPERATION}: all incoming samples were removed from {vcz.label} before; nothing is left")
    returning = _returning(store, vcz, sources, allow=allow_returning)
    sources, table = with_batch_numbers(vcz, sources)
    after = None if vcz.snapshot else vcz.n_samples + sum(source.n_samples for source in sources)
    sources, findings, unfit = yield from look_up(OPERATION, vcz, sources, rules, memory, interrupted_at=after)
    is_copy = compiling.origin is not None
    plan = compile_append(store, vcz, sources, memory, findings=findings, fields=fields, unfit=unfit, copying=is_copy)
    plan = with_batch_table(counting_left_out(readmitting(plan, vcz, returning), all_sources, sources), table)
    return copying_key(_as_copy(plan, compiling.store, vcz), store, vcz) if is_copy else plan


def _returning(store: Store, vcz: Vcz, sources: Sequence[Vcz], *, allow: bool) -> list[str]:
    """The samples that were removed from the store before. Raise a `SampleError` if there are any, unless `allow`."""
    ids = (sample for source in sources for sample in source.sample_ids.tolist())
    way_out = "leave them out with --drop-returning, or say --allow-returning"
    return returning_samples(OPERATION, store, vcz, ids, allow=allow, way_out=way_out)


def check_new_samples(store: Store, vcz: Vcz, sources: Sequence[Vcz], *, allow_returning: bool) -> None:
    """Raise a `SampleError` for samples that `compile_in_stages` refuses, given sources with at least `sample_id`."""
    _returning(store, vcz, sources, allow=allow_returning)
    if not _waits_for_consolidation(vcz, sources):
        check_samples(OPERATION, vcz, sources)


def _as_copy(plan: Plan, output: Store, vcz: Vcz) -> Plan:
    """The plan of an append as a copy into another store, where all metadata documents are written last, together."""
    writes = (replace(w, is_copy=True) if isinstance(w, PutSamples) else w for w in plan.writes)
    return replace(
        plan,
        store=output,
        base="",
        writes=tuple(writes),
        preparations=(),
        edits=(documents_of_copy(vcz, (*plan.preparations, *plan.edits)),),
        copied_from=CopiedFrom.of(vcz),
        if_stopped=f"{output.label} is no store yet",
        way_out=START_OVER,
    )


def look_up(
    operation: str,
    vcz: Vcz,
    sources: Sequence[Vcz],
    rules: Rules | None,
    memory: Memory,
    *,
    interrupted_at: int | None = None,
) -> Generator[Survey, list[list[Any]], tuple[Sequence[Vcz], Findings | None, set[tuple[int, str]]]]:
    """Survey the matches of sources with a store, the highest values of kept reference blocks, and dtypes."""
    findings = None
    if rules is not None:
        sources = with_numbers(vcz, sources, rules)
        findings = yield from match_sources(operation, vcz, sources, rules, memory, interrupted_at=interrupted_at)
        keepers = [*([vcz] if findings.insertion is not None else []), *([] if rules.gvcf else sources)]
        highest = yield from look_up_highest(operation, vcz, keepers, memory)
        findings = replace(findings, highest_kept=highest)
        sources = without_lengths(sources, rules)
    unfit = yield from look_up_unfit(operation, vcz, sources, memory)
    return sources, findings, unfit


def require_direct_copy(plan: Plan) -> None:
    """Raise an `IncompatibleError`, which names the arrays, if chunks except those of `sample_id` are re-encoded."""
    writes = [write for step in plan.steps for write in step.writes]
    names = {write.name: write.decoded_chunks for write in writes if write.name != SAMPLE_ID and write.decoded_chunks}
    if names:
        raise IncompatibleError(
            f"{OPERATION}: {sum(names.values()):,} chunks of {listing(names)} would be re-encoded, and "
            "--require-direct-copy allows none; the samples have to begin at a chunk boundary of the store, with "
            "the chunks, codecs and dtypes of the store"
        )


def _waits_for_consolidation(vcz: Vcz, sources: Sequence[Vcz]) -> bool:
    """Whether an append of these sources may have been interrupted just before its last edit, the consolidation."""
    if vcz.planned_ids is not None:
        return False
    incoming = [sample for source in sources for sample in source.sample_ids]
    are_last = 0 < len(incoming) <= vcz.n_samples and list(vcz.sample_ids[-len(incoming) :]) == incoming
    return are_last and Consolidate(tuple(vcz.samples_arrays), vcz.zarr_format).is_due(vcz.store)


def complete_append(store: Store, vcz: Vcz, memory: Memory) -> Plan:
    """Compile the rest of an append that was interrupted after its samples became visible: the consolidation."""
    edits = (Consolidate(tuple(vcz.samples_arrays), vcz.zarr_format),)
    counts = {"samples added": 0, "stopped append completed": 1}
    return Plan(
        operation="append",
        store=store,
        base=vcz.state,
        edits=edits,
        memory=memory,
        after=vcz,
        if_stopped=IF_STOPPED,
        counts=counts,
    )


@dataclass(frozen=True)
class HasSamples:
    """Check that an array has the values that an append would write, so it was this append that was interrupted."""

    label: str
    write: PutSamples

    def look(self, rows: slice) -> str | None:
        """The name of the array if values differ in a range along its first axis; else None."""
        target, axis = self.write.target, self.write.axis
        spans = [[rows], *(list(cut.spans()) for cut in arrays.cuts(target)[1:])]
        spans[axis] = self._columns(rows if axis == 0 else slice(0, target.shape[axis]))
        for there in itertools.product(*spans):
            ours = arrays.read(target, there)
            theirs = ours.copy()
            for part in self.write.parts:
                part.put(theirs, axis, tuple(slice(0, n) for n in ours.shape), there)
            if not same(ours, theirs).all():
                return self.write.name
        return None

    def _columns(self, within: slice) -> list[slice]:
        """Ranges along the samples that hold appended samples, one for each chunk column."""
        cut = arrays.cuts(self.write.target)[self.write.axis]
        ends = [part.ends for part in self.write.parts]
        first, last = max(within.start, min(e[0] for e in ends)), min(within.stop, max(e[1] for e in ends) + 1)
        return list(cut.spans(first, last))

    def _look_mem(self) -> int:
        block = arrays.outer_chunks(self.write.target)
        size = math.prod(block) * arrays.element_bytes(self.write.target)
        putting = max(part.put_mem(self.write.axis, block) for part in self.write.parts)
        return 3 * size + putting + arrays.decode_mem(self.write.target, 1)

    def readers(self, memory: Memory) -> list[ScanReader]:
        target = self.write.target
        return [ScanReader(self.look, target.shape[0], arrays.outer_chunks(target)[0], self._look_mem())]

    def error(self, found: str) -> SampleError:
        """An error for samples that have the same IDs, but other values of the array `found`."""
        return SampleError(
            f"{OPERATION}: {self.label} has all of these samples already, with other values of {found}; update them, "
            f"or leave them out (its consolidated metadata are out of date: vczstore repair {self.label})"
        )


def incoming_parts(
    sources: Sequence[Vcz],
    places: Sequence[np.ndarray],
    targets: Mapping[str, AnyArray],
    findings: Findings | None,
) -> dict[str, list[Part]]:
    """
    The samples of all sources, for each array of the store, by its name.

    They are harmonised with the store if there are findings; `places` are their positions in the store.
    """
    parts: dict[str, list[Part]] = {name: [] for name in targets}
    for number, (source, to) in enumerate(zip(sources, places, strict=True)):
        fitting = fitted(source, targets, harmonised=findings is not None)
        for name in targets:
            array: Any = fitting.samples_arrays[name]
            if findings is not None and not isinstance(array, Dropped):
                array = harmonised_array(name, number, fitting, targets, findings)
            parts[name].append(Part.make(array, source.positions, to))
    return parts
