"""Append: the samples of one or more sources become the last samples of a store.

The store's sample axis is a row of chunks of one width. Columns of a source that fall on that grid, and whose
encoding is the store's, are copied as they are. The others, the store's ragged last column among them, are decoded,
joined, cut on the store's grid and encoded. Nothing else is read or written, so the cost is that of the batch.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from zarr.types import AnyArray

from plans import Memory, Plan, Survey, Write, harmonise
from plans.compatible import check_metadata, check_samples, data_checks
from plans.harmonise import Findings, Rules
from plans.parts import Part, PutSamples
from plans.stale import samples_change
from plans.widening import ALLELE, completed, rewritten, widenings
from vczstore import arrays
from vczstore.errors import VczstoreError
from vczstore.stores import Store
from vczstore.stores.edits import Consolidate, SetShape, WriteDocuments
from vczstore.vcz import MASKS, SAMPLE_ID, SAMPLES, VARIANTS, Vcz, dimensions


def compile_append(
    place: Store, store: Vcz, sources: Sequence[Vcz], memory: Memory, findings: Findings | None = None
) -> Plan:
    """
    Compile the append of sources to a store.

    Parameters
    ----------
    place, store
        The store: where it is, and the state that it will be in.
    sources
        What comes in, in this order. All have the store's variants, unless they are harmonised.
    memory
        What a task may use.
    findings
        How the sources are harmonised with the store.

    Raises
    ------
    VczstoreError
        If anything that metadata and sample IDs tell does not fit.
    """
    operation = "append"
    if not sources:
        raise VczstoreError(f"{operation}: no sources given; name the VCZs whose samples come in")
    incoming = [source.n_samples for source in sources]
    old, new = store.n_samples, store.n_samples + sum(incoming)

    # 1. everything is whole, and fits
    if _waits_for_consolidation(store, sources):
        return complete_append(place, store, memory)
    store.require_whole(operation, interrupted_at=None if store.snapshot else new)
    for source in sources:
        source.require_whole(operation)
    check_samples(operation, store, sources)
    base = store.state
    lengths = {} if findings is None else harmonise.widths(operation, store, findings, sources[0])
    may_lack: set[str] = set()
    if findings is not None:
        sources, may_lack = _without_dropped(operation, store, sources, findings, lengths)
    store, created = _with_new_arrays(store, sources[0], lengths)
    for source in sources:
        check_metadata(operation, store, source, harmonised=findings is not None, may_lack=may_lack)
        if findings is not None:
            harmonise.check_fields(operation, store, source, findings, lengths)

    # 2. what happens to each array
    # (a stopped append may have left arrays longer than sample_id says)
    before, after = store.resized(old), store.resized(new)
    wider = {}
    if findings is not None:
        wider = harmonise.wider(operation, store, lengths)
        after = {name: harmonise.widened(array, lengths) for name, array in after.items()}
        before = {
            name: cast("AnyArray", completed(name, store, array, harmonise.widened(array, lengths), findings))
            for name, array in before.items()
        }
    places = np.split(np.arange(old, new), np.cumsum(incoming)[:-1])
    writes: tuple[Write, ...] = tuple(
        PutSamples.of(
            operation,
            before[name],
            after[name],
            [
                Part.make(_incoming(name, i, s, after, findings), s.positions, to)
                for i, (s, to) in enumerate(zip(sources, places, strict=True))
            ],
            memory,
        )
        for name in after
    )
    told = harmonise.Told()
    if findings is not None:
        told = harmonise.Told.of(findings, after, may_lack)
        widening = widenings(operation, store, wider, old, findings, memory)
        writes += widening
        told = replace(told, notes={**told.notes, "rewritten": rewritten(widening)}) if widening else told

    # 3. what makes it visible: sample_id, which alone says how many samples there are, last
    # (and alleles after the vectors that have room for them: what a run that follows a stopped one goes by)
    resized = {**wider, **after}
    resized |= {name: resized.pop(name) for name in (ALLELE, SAMPLE_ID) if name in resized}
    shapes = [SetShape(name, store.zarr_format, array.shape) for name, array in resized.items()]
    ids = np.concatenate([store.sample_ids, *(s.sample_ids for s in sources)])
    planned, marks = samples_change(store.planned(resized, ids))
    return Plan(
        operation=operation,
        store=place,
        base=base,
        checks=tuple(
            check
            for source in sources
            for check in data_checks(operation, store, source, harmonised=findings is not None)
        ),
        writes=writes,
        preparations=(*(WriteDocuments.of(store.arrays[name]) for name in created), *marks),
        edits=(*shapes, Consolidate(tuple(resized), store.zarr_format)),
        memory=memory,
        after=planned,
        counts={"sources": len(sources), "samples added": new - old, **told.counts},
        notes=told.notes,
        last=(ALLELE,),
    )


def compile_harmonised(
    operation: str, place: Store, store: Vcz, sources: Sequence[Vcz], rules: Rules, memory: Memory
) -> Generator[Survey, list[list[Any]], Plan]:
    """
    Compile an append of sources that are harmonised with the store on the way, in stages.

    Parameters
    ----------
    operation
        For messages.
    place, store, sources, memory
        As in `compile_append`.
    rules
        How sources are re-expressed.

    Yields
    ------
    Survey
        What has to be looked up in the data. What was found is to be sent back: a list for each of its scans.

    Raises
    ------
    VczstoreError
        If sources cannot be harmonised.
    """
    after = None if store.snapshot else store.n_samples + sum(source.n_samples for source in sources)
    findings = yield from harmonise.look_up(operation, store, sources, rules, memory, interrupted_at=after)
    return compile_append(place, store, sources, memory, findings)


def _waits_for_consolidation(store: Vcz, sources: Sequence[Vcz]) -> bool:
    """Whether an append of these sources was stopped just before its last edit."""
    if store.planned_ids is not None:
        return False
    incoming = [sample for source in sources for sample in source.sample_ids]
    is_there = 0 < len(incoming) <= store.n_samples and list(store.sample_ids[-len(incoming) :]) == incoming
    return is_there and Consolidate(tuple(store.samples_arrays), store.zarr_format).is_due(store.store)


def complete_append(place: Store, store: Vcz, memory: Memory) -> Plan:
    """Compile what remains of an append that was stopped when its samples were visible already."""
    edits = (Consolidate(tuple(store.samples_arrays), store.zarr_format),)
    counts = {"samples added": 0, "stopped append completed": 1}
    return Plan(
        operation="append",
        store=place,
        base=store.state,
        checks=(),
        writes=(),
        edits=edits,
        memory=memory,
        after=store,
        counts=counts,
    )


def _incoming(
    name: str, number: int, source: Vcz, targets: Mapping[str, AnyArray], findings: Findings | None
) -> AnyArray:
    """An array of a source, as the store would have it."""
    array = source.samples_arrays.get(name)
    if array is None:
        return cast("AnyArray", harmonise.Dropped.of(name, targets[name], int(source.arrays[SAMPLE_ID].shape[0])))
    return array if findings is None else cast("AnyArray", harmonise.incoming(name, number, source, targets, findings))


def _without_dropped(
    operation: str, store: Vcz, sources: Sequence[Vcz], findings: Findings, lengths: Mapping[str, int]
) -> tuple[list[Vcz], set[str]]:
    """The sources without fields that are dropped, and the names of these; what a source lacks is dropped, too."""
    harmonise.check_dropped(operation, store, sources, findings.rules)
    whole, _ = _with_new_arrays(store, sources[0], lengths)
    first = harmonise.without_dropped(operation, whole, sources[0], findings, lengths)
    # a store that takes over the fields of its first source takes none that this source does not bring
    store, _ = _with_new_arrays(store, first, lengths)
    rest = [harmonise.without_dropped(operation, store, s, findings, lengths) for s in sources[1:]]
    absent = {n for s in sources for n in findings.rules.drop_fields if n not in s.samples_arrays}
    lacking = absent | {f"{name}{end}" for name in absent for end in MASKS}
    gone = [set(a.samples_arrays) - set(b.samples_arrays) for a, b in zip(sources, [first, *rest], strict=True)]
    return [first, *rest], lacking.union(*gone)


def _with_new_arrays(store: Vcz, source: Vcz, lengths: Mapping[str, int]) -> tuple[Vcz, list[str]]:
    """A store without samples takes over the fields that its first source has, and it has not."""
    if store.n_samples:
        return store, []
    missing = set(source.samples_arrays) - set(store.samples_arrays)
    if set(store.samples_arrays) == {SAMPLE_ID}:
        missing.add(SAMPLE_ID)  # encoded as the sources are
    lengths = {**lengths, VARIANTS: store.n_variants}
    added = {name: _empty_like(source.samples_arrays[name], store, name, lengths) for name in missing}
    return replace(store, arrays=dict(sorted({**store.arrays, **added}.items()))), sorted(missing)


def _empty_like(array: AnyArray, store: Vcz, name: str, lengths: Mapping[str, int]) -> AnyArray:
    """An array of the store's format and chunks without samples, encoded as one of a source where the formats allow."""
    lengths, names = {**lengths, SAMPLES: 0}, dimensions(array)
    shape = tuple(lengths.get(str(d), n) for d, n in zip(names, array.shape, strict=True))
    chunks = tuple(store.chunk_lengths.get(str(d), n) for d, n in zip(names, array.chunks, strict=True))
    metadata = arrays.in_format(array, store.zarr_format, shape=shape, dimension_names=names, chunks=chunks)
    return arrays.from_metadata(metadata, store.store, name)
