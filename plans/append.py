"""Append: the samples of one or more sources become the last samples of a store.

The store's sample axis is a row of chunks of one width. Columns of a source that fall on that grid, and whose
encoding is the store's, are copied as they are. The others, the store's ragged last column among them, are decoded,
joined, cut on the store's grid and encoded. Nothing else is read or written, so the cost is that of the batch.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from zarr.types import AnyArray

from plans import Memory, Plan
from plans.compatible import check_metadata, check_samples, data_checks
from plans.parts import Part, PutSamples
from plans.stale import samples_change
from vczstore import arrays
from vczstore.errors import VczstoreError
from vczstore.stores import Store
from vczstore.stores.edits import Consolidate, SetShape, WriteDocuments
from vczstore.vcz import SAMPLE_ID, Vcz, dimensions, samples_axis


def compile_append(place: Store, store: Vcz, sources: Sequence[Vcz], memory: Memory) -> Plan:
    """
    Compile the append of sources to a store.

    Parameters
    ----------
    place, store
        The store: where it is, and the state that it will be in.
    sources
        What comes in, in this order. All have the store's variants.
    memory
        What a task may use.

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
    store, created = _with_new_arrays(store, sources[0])
    for source in sources:
        check_metadata(operation, store, source)

    # 2. what happens to each array
    # (a stopped append may have left arrays longer than sample_id says)
    before, after = store.resized(old), store.resized(new)
    places = np.split(np.arange(old, new), np.cumsum(incoming)[:-1])
    writes = tuple(
        PutSamples.of(
            operation,
            before[name],
            after[name],
            [Part.make(s.samples_arrays[name], s.positions, to) for s, to in zip(sources, places, strict=True)],
            memory,
        )
        for name in after
    )

    # 3. what makes it visible: sample_id, which alone says how many samples there are, last
    shapes = [SetShape(name, store.zarr_format, array.shape) for name, array in after.items()]
    ids = np.concatenate([store.sample_ids, *(s.sample_ids for s in sources)])
    planned, marks = samples_change(store.planned(after, ids))
    return Plan(
        operation=operation,
        store=place,
        base=base,
        checks=tuple(check for source in sources for check in data_checks(operation, store, source)),
        writes=writes,
        preparations=(*(WriteDocuments.of(store.arrays[name]) for name in created), *marks),
        edits=(*shapes, Consolidate(tuple(after), store.zarr_format)),
        memory=memory,
        after=planned,
        counts={"sources": len(sources), "samples added": new - old},
    )


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


def _with_new_arrays(store: Vcz, source: Vcz) -> tuple[Vcz, list[str]]:
    """A store without samples takes over the fields that its first source has, and it has not."""
    if store.n_samples:
        return store, []
    missing = set(source.samples_arrays) - set(store.samples_arrays)
    if set(store.samples_arrays) == {SAMPLE_ID}:
        missing.add(SAMPLE_ID)  # made for no samples, so its chunks are of no use
    added = {name: _empty_like(source.samples_arrays[name], store, name) for name in missing}
    return replace(store, arrays=dict(sorted({**store.arrays, **added}.items()))), sorted(missing)


def _empty_like(array: AnyArray, store: Vcz, name: str) -> AnyArray:
    """An array of the store's format without samples, encoded as one of a source where the formats allow."""
    axis = samples_axis(array)
    shape = tuple(0 if i == axis else n for i, n in enumerate(array.shape))
    metadata = arrays.in_format(array, store.zarr_format, shape=shape, dimension_names=dimensions(array))
    return arrays.from_metadata(metadata, store.store, name)
