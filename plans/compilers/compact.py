"""Compact: drop removed samples and shift the others, starting at the first chunk column that changes.

The result is a selection by a boolean mask, ``array[:, keep]``. Tasks read old chunks while others write new ones to
the same keys, so they must not read what they write: on Icechunk they read the snapshot that the plan was compiled
against, and write to a transaction; on plain Zarr they write to another store, which replaces a local folder in the
end. Columns that only change their index are not read: see `plans.core.keep_columns`.
"""

from collections.abc import Sequence

import numpy as np
from zarr.abc.buffer import Buffer
from zarr.storage import MemoryStore
from zarr.types import AnyArray

from plans.core.copy_chunks import CopyArray
from plans.core.gather_samples import Part, PutSamples
from plans.core.keep_columns import keep_columns
from plans.core.memory import Memory
from plans.core.model import START_OVER, CopiedFrom, Plan, Write
from vczstore.stores.base import Store
from vczstore.stores.edits import Consolidate, Delete, MetadataEdit, SetShape, WriteDocuments, WriteObjects
from vczstore.stores.folder_swap import OPERATION
from vczstore.vcz import arrays, zarr_objects
from vczstore.vcz.model import REMOVED, Vcz, samples_axis


def compile_compact(store: Store, vcz: Vcz, memory: Memory) -> Plan:
    """
    Compile the compaction of a store in place, whose writes become visible together.

    Icechunk drops the chunks outside the new shapes with the commit. A folder that replaces the store never has them.
    """
    vcz.require_whole(OPERATION)
    kept = _kept(vcz)
    after = _compacted(vcz, kept) if len(kept) < vcz.n_samples else {}
    n_unchanged = {name: _first_changed(vcz.arrays[name], kept) for name in after}
    puts = {
        name: _moved(OPERATION, vcz.arrays[name], target, kept, n_unchanged[name], memory)
        for name, target in after.items()
    }
    writes, preparations = keep_columns(store, vcz, n_unchanged, puts) if after else ((), ())
    return Plan(
        operation=OPERATION,
        store=store,
        base=vcz.state,
        writes=writes,
        edits=_edits(vcz, after),
        memory=memory,
        after=vcz.planned(after, vcz.sample_ids[kept]),
        if_stopped=f"{store.label} is no store yet",
        way_out=START_OVER,
        counts=_counts(vcz, kept),
        preparations=preparations,
    )


def compile_compacted_copy(store: Store, vcz: Vcz, memory: Memory, *, operation: str = OPERATION) -> Plan:
    """Compile a compacted copy of a VCZ, of the same format, to a store that does not exist yet."""
    vcz.require_whole(operation)
    kept = _kept(vcz)
    after = _compacted(vcz, kept)
    writes: list[Write] = []
    for name, array in (*vcz.arrays.items(), *vcz.inner.items()):
        if name in after:
            writes.append(_moved(operation, array, after[name], kept, 0, memory))
        else:
            writes.append(CopyArray.of(operation, name, array, vcz.zarr_format, memory))
    return Plan(
        operation=operation,
        store=store,
        base="",
        writes=tuple(writes),
        edits=(documents_of_copy(vcz, _edits(vcz, after)),),
        memory=memory,
        after=vcz.planned(after, vcz.sample_ids[kept]),
        if_stopped=f"{store.label} is no store yet",
        way_out=START_OVER,
        counts=_counts(vcz, kept),
        copied_from=CopiedFrom.of(vcz),
    )


def _kept(vcz: Vcz) -> np.ndarray:
    return np.flatnonzero(vcz.sample_ids != REMOVED)


def _compacted(vcz: Vcz, kept: np.ndarray) -> dict[str, AnyArray]:
    """The arrays after compaction. Columns of a flexible grid become narrower; empty ones are dropped."""
    result = vcz.resized(len(kept))
    for name, array in vcz.samples_arrays.items():
        if arrays.is_flexible(array):
            axis = samples_axis(array) or 0
            cut = arrays.cuts(array)[axis]
            lengths = np.unique(cut.of(kept), return_counts=True)[1].tolist()
            result[name] = arrays.with_columns(array, axis, lengths, if_empty=cut.widest)
    return result


def _counts(vcz: Vcz, kept: np.ndarray) -> dict[str, int]:
    return {"samples dropped": vcz.n_samples - len(kept), "samples kept": len(kept)}


def _moved(
    operation: str, array: AnyArray, target: AnyArray, kept: np.ndarray, first: int, memory: Memory
) -> PutSamples:
    """The write of the remaining samples, starting at chunk column `first`."""
    start = arrays.cuts(array)[samples_axis(array) or 0].start(first)
    part = Part.make(array, kept[start:], np.arange(start, len(kept)))
    return PutSamples.of(operation, array, target, [part], memory)


def _first_changed(array: AnyArray, kept: np.ndarray) -> int:
    """The index of the first chunk column of an array that changes."""
    first_removed = int(np.argmin(np.append(kept, -1) == np.arange(len(kept) + 1)))
    return int(arrays.cuts(array)[samples_axis(array) or 0].of(first_removed))


def _edits(vcz: Vcz, after: dict[str, AnyArray]) -> tuple[MetadataEdit, ...]:
    shapes = [edit for array in after.values() for edit in _resizing(array)]
    return (*shapes, Consolidate(tuple(after), vcz.zarr_format)) if after else ()


def _resizing(array: AnyArray) -> list[MetadataEdit]:
    """Edits that set the new shape. A flexible grid without samples keeps one column, so its chunks are deleted."""
    if arrays.is_flexible(array) and not array.shape[samples_axis(array) or 0]:
        return [Delete(array.path), WriteDocuments.of(array)]
    return [SetShape.of(array)]


def documents_of_copy(vcz: Vcz, edits: Sequence[MetadataEdit]) -> WriteObjects:
    """
    The metadata documents of a copy: those of the store, including unknown members, with edits applied.

    Chunks written by the edits are included.
    """
    of_array, of_group, of_root = [".zarray", ".zattrs"], [".zgroup", ".zattrs"], [".zmetadata", ".zattrs", ".zgroup"]
    if vcz.zarr_format == 3:
        of_array = of_group = of_root = ["zarr.json"]
    keys = [f"{path}/{name}" for path in vcz.groups for name in of_group]
    keys += [*(f"{path}/{name}" for path in (*vcz.arrays, *vcz.inner) for name in of_array), *of_root]
    objects: dict[str, Buffer] = {}
    scratch = MemoryStore(objects)
    stored = zip(keys, zarr_objects.get_many(vcz.store, keys), strict=True)
    zarr_objects.set_many(scratch, [(key, value) for key, value in stored if value is not None])
    for edit in edits:
        edit.apply(scratch)
    last = {key: objects.pop(key) for key in of_root if key in objects}
    return WriteObjects(objects, last)
