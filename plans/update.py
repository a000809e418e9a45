"""Update: samples that are in a store get the values that sources have for them, such as those of a second calling.

Only the chunk columns that hold the samples are read and written, each once, however many sources there are. A column
whose samples are all replaced is not read; if it is a column of a source, sample for sample, it is copied as it is.
"""

from collections.abc import Sequence

import numpy as np

from plans import Memory, Plan
from plans.compatible import check_field, check_incoming, check_metadata, data_checks
from plans.fitting import fitted
from plans.layout import Fields, check_named, named, without_unjoinable
from plans.parts import Part, PutSamples
from plans.stale import samples_change
from vczstore.errors import IncompatibleError, SampleError, VczstoreError
from vczstore.stores import Store
from vczstore.vcz import REMOVED, SAMPLE_ID, Vcz, lacks_missing_value, listing, positions_of


def compile_update(
    place: Store,
    store: Vcz,
    sources: Sequence[Vcz],
    memory: Memory,
    *,
    fields: Fields = Fields(),  # noqa: B008
) -> Plan:
    """
    Compile the update of samples of a store.

    Parameters
    ----------
    place, store
        The store: where it is, and the state that it will be in.
    sources
        The new values. All have the store's variants, and samples that are in the store, in any order.
    memory
        What a task may use.
    fields
        Which fields become missing for the samples of a source that lacks them, and are left out if the store does.

    Raises
    ------
    SampleError
        If some of the samples are not in the store: all of these are named.
    VczstoreError
        If anything else that metadata and sample IDs tell does not fit.
    """
    operation = "update"
    if not sources:
        raise VczstoreError(f"{operation}: no sources given; name the VCZs whose samples are new")

    # 1. everything is whole, and fits
    store.require_whole(operation)
    for source in sources:
        source.require_whole(operation)
    places = _places(operation, store, sources)
    check_named(operation, store, sources, fields)
    sources = [_fitted(operation, store, source, fields) for source in sources]

    # 2. what happens to each array; nothing else changes, but what is known of INFO fields
    writes = tuple(
        PutSamples.of(
            operation,
            array,
            array,
            [Part.make(s.samples_arrays[name], s.positions, to) for s, to in zip(sources, places, strict=True)],
            memory,
        )
        for name, array in store.samples_arrays.items()
        if name != SAMPLE_ID
    )
    after, marks = samples_change(store)
    return Plan(
        operation=operation,
        store=place,
        base=store.state,
        checks=tuple(check for source in sources for check in data_checks(operation, store, source)),
        writes=writes,
        edits=(),
        memory=memory,
        after=after,
        if_stopped="some values of the samples may be new already; run the same command again to complete it",
        counts={"sources": len(sources), "samples updated": sum(len(to) for to in places)},
        preparations=marks,
    )


def _fitted(operation: str, store: Vcz, source: Vcz, fields: Fields) -> Vcz:
    """A source that fits a store, with missing values for fields that it lacks and that may be dropped."""
    (brought,) = without_unjoinable(operation, store, [source], fields, harmonised=False)
    lacks = {name for name in store.samples_arrays if name not in brought.samples_arrays}
    may_lack = {name for name in lacks if named(name, fields.drop)}
    check_metadata(operation, store, brought, may_lack=may_lack)
    for name in sorted(may_lack):
        if lacks_missing_value(name, (dtype := store.samples_arrays[name].dtype)):
            raise IncompatibleError(
                f"{operation}: {name} of {store.label} has dtype {dtype}, which has no missing value for the "
                f"samples of {source.label}, which lacks it; make the source with this field"
            )
    for name, array in brought.samples_arrays.items():
        check_field(operation, source.label, name, store.samples_arrays[name], array)
    return fitted(brought, store.samples_arrays, harmonised=False) if may_lack else brought


def split_known(store: Vcz, source: Vcz) -> tuple[np.ndarray, np.ndarray]:
    """
    Tell the samples of a source that are in a store from the others, for `Vcz.select`.

    Returns
    -------
    known, new : numpy.ndarray of int64
        Increasing. A removed sample of the source is among the others, where an append refuses it.
    """
    present = set(store.sample_ids.tolist()) - {REMOVED}
    is_known = np.array([sample in present for sample in source.sample_ids], dtype=bool)
    return np.flatnonzero(is_known), np.flatnonzero(~is_known)


def _places(operation: str, store: Vcz, sources: Sequence[Vcz]) -> list[np.ndarray]:
    """Where the samples of each source are in the store."""
    incoming = check_incoming(operation, sources)
    positions, unknown = positions_of(store, list(incoming))
    if unknown:
        raise SampleError(
            f"{operation}: {store.label} has no sample {listing(unknown, limit=1000)}; nothing was updated, append "
            "these samples, or say insert: true in a job, which updates some and appends the others"
        )
    found = dict(zip(store.sample_ids[positions].tolist(), positions.tolist(), strict=True))
    if len(found) < len(positions):
        ids, counts = np.unique(store.sample_ids[positions], return_counts=True)
        raise SampleError(
            f"{operation}: {store.label} has sample {listing(ids[counts > 1])} twice, and either may be meant; "
            "remove it there, and append it"
        )
    return [np.array([found[sample] for sample in source.sample_ids], dtype="i8") for source in sources]
