"""Compact: removed samples leave, and those that stay move up, from the first chunk column on that changes.

What is selected is the boolean sample mask, ``array[:, keep]``. Tasks read the old chunks while others write the new
ones to the same places, so what they read is never what they write: on Icechunk it is the snapshot that the plan was
compiled against, and on plain Zarr, which has no snapshots, another store.
"""

import numpy as np
from zarr.storage import MemoryStore
from zarr.types import AnyArray

from plans import Memory, Plan, Write
from plans.copy import CopyArray
from plans.parts import Part, PutSamples
from vczstore import arrays
from vczstore.arrays import Document
from vczstore.errors import OptionError
from vczstore.stores import Store
from vczstore.stores.edits import Consolidate, SetShape, WriteDocuments
from vczstore.vcz import REMOVED, Vcz, samples_axis

OPERATION = "compact"


def compile_compact(place: Store, store: Vcz, memory: Memory) -> Plan:
    """
    Compile the compaction of a store in place.

    Icechunk itself drops chunks that lie outside the new shapes, with the commit.

    Parameters
    ----------
    place, store
        The store: where it is, and the state that it is in.
    memory
        What a task may use.

    Raises
    ------
    OptionError
        If the store has no transactions.
    """
    if not place.atomic:
        raise OptionError(
            f"{OPERATION}: {place.label} is plain Zarr, which has no transactions: while samples move, readers would "
            "take one for another; name a new store with --output"
        )
    store.require_whole(OPERATION)
    kept = _kept(store)
    after = store.resized(len(kept)) if len(kept) < store.n_samples else {}
    return Plan(
        operation=OPERATION,
        store=place,
        base=store.state,
        checks=(),
        writes=tuple(_moved(store.arrays[name], target, kept, memory, whole=False) for name, target in after.items()),
        edits=_edits(store, after),
        memory=memory,
        after=store.planned(after, store.sample_ids[kept]),
        counts=_counts(store, kept),
    )


def compile_compacted_copy(place: Store, store: Vcz, memory: Memory) -> Plan:
    """
    Compile a compacted copy of a store, of the same format.

    Parameters
    ----------
    place
        Where the copy comes to be; nothing is there yet.
    store
        What is copied.
    memory
        What a task may use.
    """
    store.require_whole(OPERATION)
    kept = _kept(store)
    after = store.resized(len(kept))
    writes: list[Write] = []
    for name, array in store.arrays.items():
        if name in after:
            writes.append(_moved(array, after[name], kept, memory, whole=True))
        else:
            writes.append(CopyArray.of(OPERATION, name, array, store.zarr_format, memory))
    return Plan(
        operation=OPERATION,
        store=place,
        base="",
        checks=(),
        writes=tuple(writes),
        edits=(WriteDocuments(_documents(store, after)),),
        memory=memory,
        after=store.planned(after, store.sample_ids[kept]),
        counts=_counts(store, kept),
    )


def _kept(store: Vcz) -> np.ndarray:
    return np.flatnonzero(store.sample_ids != REMOVED)


def _counts(store: Vcz, kept: np.ndarray) -> dict[str, int]:
    return {"samples dropped": store.n_samples - len(kept), "samples kept": len(kept)}


def _moved(array: AnyArray, target: AnyArray, kept: np.ndarray, memory: Memory, *, whole: bool) -> PutSamples:
    """The samples that stay, from the first chunk column on that changes, or all of them."""
    axis = samples_axis(array)
    assert axis is not None
    width = arrays.outer_chunks(array)[axis]
    first_removed = int(np.argmin(np.append(kept, -1) == np.arange(len(kept) + 1)))
    start = 0 if whole else min(first_removed // width * width, len(kept))
    part = Part.make(array, kept[start:], np.arange(start, len(kept)))
    return PutSamples.of(OPERATION, array, target, [part], memory)


def _edits(store: Vcz, after: dict[str, AnyArray]) -> tuple[SetShape | Consolidate, ...]:
    shapes = [SetShape(name, store.zarr_format, array.shape) for name, array in after.items()]
    return (*shapes, Consolidate(tuple(after), store.zarr_format)) if after else ()


def _documents(store: Vcz, after: dict[str, AnyArray]) -> dict[str, Document]:
    """
    The documents of the copy: those of the store, with all that vczstore does not know, and with the new shapes.

    The root's own comes last. Without it there is no store, so nobody reads one that is not whole.
    """
    of_array, of_root = [".zarray", ".zattrs"], [".zmetadata", ".zattrs", ".zgroup"]
    if store.zarr_format == 3:
        of_array = of_root = ["zarr.json"]
    keys = [*(f"{path}/{name}" for path in store.arrays for name in of_array), *of_root]
    scratch = MemoryStore()
    stored = zip(keys, arrays.get_many(store.store, keys), strict=True)
    arrays.set_many(scratch, [(key, value) for key, value in stored if value is not None])
    for edit in _edits(store, after):
        edit.apply(scratch)
    documents = {key: arrays.read_json(scratch, key) for key in keys}
    return {key: document for key, document in documents.items() if document is not None}
