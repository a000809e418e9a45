"""Update: samples that are in a store get the values that sources have for them, such as those of a second calling.

Only the chunk columns that hold the samples are read and written, each once, however many sources there are. A column
whose samples are all replaced is not read; if it is a column of a source, sample for sample, it is copied as it is.
"""

from collections.abc import Collection, Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from plans.core.compatibility import check_incoming
from plans.core.gather_samples import Part, PutSamples
from plans.core.memory import Memory
from plans.core.model import Plan, Survey
from plans.core.withdrawn import come_back
from plans.schema.fitting import fitted
from plans.schema.layout import Fields, Layout, check_named, layout_of, without_unjoinable
from plans.schema.schema_change import compile_growth, compile_schema_change, dropped_fields, look_up_unfit, told_kept
from plans.variants.harmonise import Told
from plans.variants.stale import samples_change
from vczstore.errors import SampleError, VczstoreError
from vczstore.stores.base import Store
from vczstore.vcz.model import REMOVED, SAMPLE_ID, Vcz, listing, positions_of, unknown_samples

OPERATION = "update"


def compile_update(
    store: Store,
    vcz: Vcz,
    sources: Sequence[Vcz],
    memory: Memory,
    *,
    fields: Fields = Fields(),
    unfit: Collection[tuple[int, str]] | None = None,
) -> Plan:
    """
    Compile the update of samples of a store.

    Parameters
    ----------
    store, vcz
        The store: where it is, and the state that it will be in.
    sources
        The new values. All have the store's variants, and samples that are in the store, in any order.
    memory
        What a task may use.
    fields
        Which fields become missing for the samples of a source that lacks them, and are left out if the store does;
        and which the store gets.
    unfit
        As in `plans.compilers.append.compile_append`.

    Raises
    ------
    SampleError
        If some of the samples are not in the store: all of these are named.
    VczstoreError
        If anything else that metadata and sample IDs tell does not fit.
    """
    if not sources:
        raise VczstoreError(f"{OPERATION}: no sources given; name the VCZs whose samples are new")

    # 1. everything is whole, and fits
    vcz.require_whole(OPERATION)
    for source in sources:
        source.require_whole(OPERATION)
    places = _places(store, vcz, sources)
    check_named(OPERATION, vcz, sources, fields)
    # a field that the store has is not added: values that it has there do not become missing for that
    fields = replace(fields, add=[name for name in fields.add if name not in vcz.samples_arrays])
    brought = without_unjoinable(OPERATION, vcz, sources, fields, harmonised=False)
    dropped = dropped_fields(vcz, sources, brought, fields)
    layout = _without_ids(layout_of(OPERATION, vcz, brought, None, add=fields.add, unfit=unfit or ()))
    change = compile_schema_change(
        OPERATION, store, vcz, brought, layout, memory, fields=fields, surveyed=unfit is not None
    )

    # 2. what the store lacks comes first, since samples are written to columns that are widened
    change, growth = compile_growth(OPERATION, store, change, layout, memory)

    # 3. what happens to each array; nothing else changes, but what is known of INFO fields
    targets = {name: array for name, array in change.vcz.samples_arrays.items() if name != SAMPLE_ID}
    comes_in = [fitted(source, targets, harmonised=False) for source in brought]
    writes = tuple(
        PutSamples.of(
            OPERATION,
            array,
            array,
            [Part.make(s.samples_arrays[name], s.positions, to) for s, to in zip(comes_in, places, strict=True)],
            memory,
        )
        for name, array in targets.items()
    )
    after, marks = samples_change(change.vcz)
    told, kept = Told.of(None, targets, dropped, change.created), told_kept(brought, fields, dropped)
    n_updated = sum(len(to) for to in places)
    return Plan(
        operation=OPERATION,
        store=store,
        base=vcz.state,
        checks=change.checks,
        writes=writes,
        edits=(),
        memory=memory,
        after=after,
        if_stopped="some values of the samples may be new already; run the same command again to complete it",
        counts={"sources": len(sources), "samples updated": n_updated, **told.counts, **kept.counts, **change.counts},
        notes={**told.notes, **kept.notes, **growth.notes},
        preparations=marks,
        first=change.first,
        chunks_of_store=growth.chunks_of_store,
    )


def compile_in_stages(
    store: Store,
    vcz: Vcz,
    sources: Sequence[Vcz],
    memory: Memory,
    *,
    fields: Fields = Fields(),
) -> Generator[Survey, list[list[Any]], Plan]:
    """
    Compile an update in stages: whether values need a wider dtype than the store's is looked up first.

    Parameters
    ----------
    store, vcz, sources, memory, fields
        As in `compile_update`.

    Yields
    ------
    Survey
        As in `plans.compilers.append.compile_in_stages`.

    Raises
    ------
    VczstoreError
        If the sources do not fit.
    """
    unfit = yield from look_up_unfit(OPERATION, vcz, sources, memory)
    return compile_update(store, vcz, sources, memory, fields=fields, unfit=unfit)


def _without_ids(layout: Layout) -> Layout:
    """A layout without sample IDs, which the store has already."""
    return replace(layout, forms={name: form for name, form in layout.forms.items() if name != SAMPLE_ID})


def split_known(vcz: Vcz, source: Vcz) -> tuple[np.ndarray, np.ndarray]:
    """
    Tell the samples of a source that are in a store from the others, for `Vcz.select`.

    Returns
    -------
    known, new : numpy.ndarray of int64
        Increasing. A removed sample of the source is among the others, where an append refuses it.
    """
    present = set(vcz.sample_ids.tolist()) - {REMOVED}
    is_known = np.array([sample in present for sample in source.sample_ids], dtype=bool)
    return np.flatnonzero(is_known), np.flatnonzero(~is_known)


def _places(store: Store, vcz: Vcz, sources: Sequence[Vcz]) -> list[np.ndarray]:
    """Where the samples of each source are in the store."""
    incoming = check_incoming(OPERATION, sources)
    positions, unknown = positions_of(vcz, list(incoming))
    way_out = "leave them out, or bring them in with append --allow-returning (allow-returning: true in a job)"
    come_back(OPERATION, store, vcz, unknown, allow=False, way_out=way_out)
    if unknown:
        way_out = "append these samples, or say insert: true in a job, which updates some and appends the others"
        raise unknown_samples(OPERATION, vcz, unknown, f"nothing was updated, {way_out}")
    found = dict(zip(vcz.sample_ids[positions].tolist(), positions.tolist(), strict=True))
    if len(found) < len(positions):
        ids, counts = np.unique(vcz.sample_ids[positions], return_counts=True)
        raise SampleError(
            f"{OPERATION}: {vcz.label} has sample {listing(ids[counts > 1])} twice, and either may be meant; "
            "remove it there, and append it"
        )
    return [np.array([found[sample] for sample in source.sample_ids], dtype="i8") for source in sources]
