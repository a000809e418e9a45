"""Update: replace the values of samples in a store by those of sources, for example after another round of calling.

Only the chunk columns that hold the samples are read and written, each once, however many sources there are. A column
whose samples are all replaced is not read; if it matches a column of a source sample for sample, it is copied verbatim.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from plans.compilers.append import StoreArrays, incoming_parts
from plans.core.compatibility import check_incoming
from plans.core.gather_samples import PutSamples
from plans.core.memory import Memory
from plans.core.model import Plan
from plans.core.withdrawn import returning_samples
from plans.schema.insert_variants import ArrayInsertions
from plans.schema.layout import Fields, check_named
from plans.schema.provenance import keep_batch_numbers
from plans.schema.schema_change import (
    SchemaChange,
    compile_growth,
    compile_schema_change,
)
from plans.schema.widen import ALLELE
from plans.variants.findings import Findings, Summary
from plans.variants.stale import mark_stale
from vczstore.errors import SampleError, VczstoreError
from vczstore.stores.base import Store
from vczstore.vcz.model import REMOVED, SAMPLE_ID, Vcz, listing, positions_of, unknown_samples

OPERATION = "update"
IF_STOPPED = "some values of the samples may be new already"


def compile_update(
    store: Store,
    vcz: Vcz,
    sources: Sequence[Vcz],
    memory: Memory,
    *,
    findings: Findings | None = None,
    fields: Fields = Fields(),
    unfit: Collection[tuple[int, str]] | None = None,
) -> Plan:
    """
    Compile the update of samples of a store; the parameters are those of `plans.compilers.append.compile_append`.

    The samples of the sources are in the store, in any order. Dropped fields become missing for the samples of sources
    that lack them, and are left out if the store lacks them.

    Raises
    ------
    SampleError
        If samples are not in the store; the message names all of them.
    VczstoreError
        If the metadata or sample IDs are incompatible in another way.
    """
    if not sources:
        raise VczstoreError(f"{OPERATION}: no sources given; name the VCZs whose samples are new")

    # 1. check that everything is consistent and compatible
    vcz.require_whole(OPERATION)
    for source in sources:
        source.require_whole(OPERATION)
    places = places_of(store, vcz, sources)
    sources = keep_batch_numbers(vcz, sources, places)
    check_named(OPERATION, vcz, sources, fields)
    # a field that the store has is not added, so that its existing values do not become missing
    fields = replace(fields, add=[name for name in fields.add if name not in vcz.samples_arrays])
    change = compile_schema_change(
        OPERATION, store, vcz, sources, memory, fields=fields, findings=findings, unfit=unfit, adds_samples=False
    )
    kept = change.kept
    if findings is not None and findings.insertion is not None:
        return _inserting(store, change, places, findings, memory)

    # 2. the arrays of the store grow first, since samples are written to columns that are widened
    change, growth = compile_growth(OPERATION, store, change, memory)

    # 3. writes of arrays; apart from these, only the states of INFO fields change
    targets = {name: array for name, array in change.vcz.samples_arrays.items() if name != SAMPLE_ID}
    parts = incoming_parts(change.sources, places, targets, findings)
    writes = tuple(PutSamples.of(OPERATION, a, a, parts[name], memory) for name, a in targets.items())
    after, marks = mark_stale(change.vcz)
    summary = Summary.of(findings, targets, change.dropped, change.created)
    n_updated = sum(len(to) for to in places)
    return Plan(
        operation=OPERATION,
        store=store,
        base=vcz.state,
        checks=change.checks,
        writes=writes,
        memory=memory,
        after=after,
        if_stopped=IF_STOPPED,
        counts={
            "sources": len(sources),
            "samples updated": n_updated,
            **summary.counts,
            **kept.counts,
            **change.counts,
        },
        notes={**summary.notes, **kept.notes, **growth.notes},
        preparations=marks,
        first_steps=change.first,
        chunks_of_store=growth.chunks_of_store,
    )


def _inserting(
    store: Store,
    change: SchemaChange,
    places: Sequence[np.ndarray],
    findings: Findings,
    memory: Memory,
) -> Plan:
    """
    Compile an update that inserts variants.

    All chunks of calls are written, since rows are also inserted for samples that are not updated.
    """
    vcz = change.was
    insertions = replace(ArrayInsertions.of(OPERATION, change, findings), old=0)
    change = insertions.absorb(change)
    of_store = StoreArrays.of(OPERATION, change, findings, (), insertions)
    targets = {name: array for name, array in of_store.after.items() if name != SAMPLE_ID}
    parts = incoming_parts(change.sources, places, targets, findings)
    changed = {*insertions.views, *of_store.wider, *of_store.added}
    calls = [
        PutSamples.of(OPERATION, of_store.before[name], target, parts[name], memory, every=name in changed)
        for name, target in targets.items()
    ]
    resized, edits = of_store.edits(change.vcz.zarr_format)
    after, marks = mark_stale(change.vcz.planned(resized, vcz.sample_ids))
    summary = Summary.of(findings, targets, change.dropped, of_store.added)
    n_updated = sum(len(to) for to in places)
    plan = Plan(
        operation=OPERATION,
        store=store,
        base=vcz.state,
        checks=change.checks,
        writes=(*calls, *insertions.writes(change.vcz, of_store.every, memory)),
        preparations=marks,
        edits=edits,
        memory=memory,
        after=after,
        if_stopped=IF_STOPPED,
        counts={"sources": len(change.sources), "samples updated": n_updated, **summary.counts, **change.kept.counts},
        notes={**change.kept.notes, **summary.notes, **change.notes(of_store.wider, ())},
        written_last=(ALLELE,),
        chunks_of_store=sum(write.decoded_chunks for write in calls),
    )
    return insertions.in_place(plan, of_store.every)


def split_known(vcz: Vcz, source: Vcz) -> tuple[np.ndarray, np.ndarray]:
    """
    Split the samples of a source into those that are in a store and the others, as positions for `Vcz.select`.

    Returns
    -------
    known, new : numpy.ndarray of int64
        Increasing positions. Removed samples of the source are in `new`, where an append refuses them.
    """
    present = set(vcz.sample_ids.tolist()) - {REMOVED}
    is_known = np.array([sample in present for sample in source.sample_ids], dtype=bool)
    return np.flatnonzero(is_known), np.flatnonzero(~is_known)


def places_of(store: Store, vcz: Vcz, sources: Sequence[Vcz]) -> list[np.ndarray]:
    """The positions of each source's samples in the store."""
    incoming = check_incoming(OPERATION, sources)
    positions, unknown = positions_of(vcz, list(incoming))
    way_out = "leave them out, or bring them in with append --allow-returning (allow-returning: true in a job)"
    returning_samples(OPERATION, store, vcz, unknown, allow=False, way_out=way_out)
    if unknown:
        way_out = "append these samples, or say insert: true in a job, which updates some and appends the others"
        raise unknown_samples(OPERATION, vcz, unknown, f"nothing was updated, {way_out}")
    position_of = dict(zip(vcz.sample_ids[positions].tolist(), positions.tolist(), strict=True))
    if len(position_of) < len(positions):
        ids, counts = np.unique(vcz.sample_ids[positions], return_counts=True)
        raise SampleError(
            f"{OPERATION}: {vcz.label} has sample {listing(ids[counts > 1])} twice, and either may be meant; "
            "remove it there, and append it"
        )
    return [np.array([position_of[sample] for sample in source.sample_ids], dtype="i8") for source in sources]
