"""Restore: return a store to an earlier state in a new commit, by its metadata and the chunks that have changed."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import MIN_TASKS, TASK_BYTES, TASK_CHUNKS
from plans.core.ledger import ATTRIBUTE as LEDGER
from plans.core.memory import Memory
from plans.core.model import Plan, in_words
from plans.core.scan_reader import ScanReader
from plans.core.task_report import report_written
from plans.core.withdrawn import ATTRIBUTE as WITHDRAWN
from plans.core.withdrawn import Withdrawn
from vczstore.errors import SampleError
from vczstore.stores.base import RESTORED, Snapshot, Store
from vczstore.stores.edits import Delete, MetadataEdit, WriteDocuments
from vczstore.vcz import arrays, encoded_chunks, vcf_headers, zarr_objects
from vczstore.vcz.cuts import Width
from vczstore.vcz.metadata import same_encoding
from vczstore.vcz.model import INFO_STATES, REMOVED, Vcz

if TYPE_CHECKING:
    import cubed
    from zarr.abc.store import Store as ZarrStore

OPERATION = "restore"

_OF_STATE = (LEDGER, INFO_STATES)
"""Attributes of vczstore that describe the contents of a state, so are restored with it."""

_KEEP_SAMPLES = {"append", "update", "recompute", "compact", "regrid", OPERATION}
"""Operations that neither remove nor rename samples."""

_DROP_HEADER = {"remove", "rename-samples", "repair"}
"""Operations that drop lines of the VCF header."""


def compile_restore(store: Store, vcz: Vcz, state: str, memory: Memory) -> Plan:
    """
    Compile the return of a repository from its current state to that of a tag, branch or snapshot.

    Raises
    ------
    SampleError
        If the state has samples that the store no longer has, or hashes of removed samples with another key.
    """
    past = store.open(state)
    past.require_whole(OPERATION, edited=False)
    _refuse_withdrawn(store, vcz, past, state)
    changed = store.history.changed_chunks(_last_like(store, vcz, past), vcz.snapshot or "")
    present = {**vcz.arrays, **vcz.inner}
    before = {**past.arrays, **past.inner}
    edits: list[MetadataEdit] = [
        Delete(path) for path in (*present, *vcz.groups) if path not in (*before, *past.groups)
    ]
    writes = []
    for path, array in before.items():
        chunks = None if changed is None else changed.get(path, np.empty((0, array.ndim), dtype="i8"))
        if path in present and not _same_grid(present[path], array):
            edits.append(Delete(path))
            chunks = None
        if chunks is not None:
            chunks = chunks[(chunks < np.array(arrays.grid_of(array), dtype="i8")).all(axis=1)]
        writes.append(RestoreChunks(path, array, chunks))
    attributes = _attributes(store, vcz, past)
    edits += _documents(vcz, past, attributes)
    return Plan(
        operation=OPERATION,
        store=store,
        base=vcz.state,
        writes=tuple(writes),
        edits=tuple(edits),
        memory=memory,
        after=replace(past, attributes=attributes),
        if_stopped="",
        counts={
            "samples": int((past.sample_ids != REMOVED).sum()),
            "variants": past.n_variants,
            "chunks restored": sum(write.encoded_chunks for write in writes),
        },
        remembered={RESTORED: past.snapshot or ""},
    )


def _last_like(store: Store, vcz: Vcz, past: Vcz) -> str:
    """The newest snapshot with the chunks of a state: its own, or one that restored it."""
    for entry in store.history.snapshots(vcz.snapshot):
        if past.snapshot in (entry.id, entry.metadata.get("vczstore", {}).get(RESTORED)):
            return entry.id
    return past.snapshot or ""


def _refuse_withdrawn(store: Store, vcz: Vcz, past: Vcz, state: str) -> None:
    """
    Raise a `SampleError` if a state has samples that the store no longer has. The message does not name them.

    Samples that are absent only because an earlier state was restored are allowed.
    """
    n = len({*past.sample_ids.tolist()} - {*vcz.sample_ids.tolist()} - {REMOVED})
    if n and not _keeps_samples(store, vcz, past):
        raise SampleError(
            f"{OPERATION}: {state} of {vcz.label} has {in_words({'samples': n})} removed or renamed since, which would "
            f"come back; nothing was restored, vczstore export {vcz.label} OUT --at {state} -S ^FILE writes it without "
            "those in a file"
        )


def _keeps_samples(store: Store, vcz: Vcz, past: Vcz) -> bool:
    """Whether no operation since a state can have removed or renamed samples."""
    for entry in store.history.snapshots(vcz.snapshot):
        if entry.id == past.snapshot:
            return True
        if not operations_of(entry) <= _KEEP_SAMPLES:
            break
    return False


def _attributes(store: Store, vcz: Vcz, past: Vcz) -> dict[str, Any]:
    """
    The attributes of the root group: those of the past state, including its ledger of jobs.

    Hashes of removed samples are merged from both states. Header lines that may name removed samples are not restored.
    """
    withdrawn = Withdrawn.of(store, vcz).merged_with(Withdrawn.of(store, past), OPERATION)
    result = {name: value for name, value in past.attributes.items() if name in _OF_STATE or not _is_ours(name)}
    result |= {name: value for name, value in vcz.attributes.items() if name not in _OF_STATE and _is_ours(name)}
    if (dropped := _dropped_header(store, vcz, past)) is not None:
        result |= vcf_headers.without_dropped(result, vcz.attributes, {*past.sample_ids.tolist()}, dropped)
    return result | ({WITHDRAWN: withdrawn.value} if withdrawn.value else {})


def _dropped_header(store: Store, vcz: Vcz, past: Vcz) -> set[tuple[str, str]] | None:
    """
    The lines of the VCF header that were dropped since a state by the operations in `_DROP_HEADER`.

    None if there was no such operation; all lines if the state is not in the history.
    """
    entries = list[Snapshot]()
    for entry in store.history.snapshots(vcz.snapshot):
        entries.append(entry)
        if entry.id == past.snapshot:
            break
    else:
        return {*vcf_headers.all_lines(past.attributes)}
    steps = [(old.id, new.id) for new, old in pairwise(entries) if not operations_of(new).isdisjoint(_DROP_HEADER)]
    return {line for old, new in steps for line in _lines(store, old) - _lines(store, new)} if steps else None


def _lines(store: Store, state: str) -> set[tuple[str, str]]:
    return {*vcf_headers.all_lines(store.open(state).attributes)}


def operations_of(entry: Snapshot) -> set[str | None]:
    """The operations recorded in the metadata of a snapshot; {None} if none is recorded."""
    metadata = entry.metadata.get("vczstore", {})
    return {step.get("operation") for step in metadata.get("steps", [metadata])}


def _is_ours(attribute: str) -> bool:
    return attribute.startswith("vczstore_")


def _documents(vcz: Vcz, past: Vcz, attributes: Mapping[str, Any]) -> Iterator[MetadataEdit]:
    """Edits that write the documents that differ, the document of the root group last."""
    keys = [f"{path}/zarr.json" for path in (*past.groups, *past.arrays, *past.inner)]
    for key in keys:
        document = zarr_objects.read_json(past.store, key)
        if document is not None and document != zarr_objects.read_json(vcz.store, key):
            yield WriteDocuments({key: document})
    root = {**(zarr_objects.read_json(past.store, "zarr.json") or {}), "attributes": dict(attributes)}
    if root != zarr_objects.read_json(vcz.store, "zarr.json"):
        yield WriteDocuments({"zarr.json": root})


def _same_grid(now: AnyArray, then: AnyArray) -> bool:
    """Whether chunks have the same coordinates and encoding in both arrays."""
    pairs = zip(arrays.widths(now), arrays.widths(then), strict=True)
    return now.ndim == then.ndim and same_encoding(now, then) and all(_same_widths(*pair) for pair in pairs)


def _same_widths(a: Width, b: Width) -> bool:
    if isinstance(a, int) or isinstance(b, int):
        return a == b
    n = min(len(a), len(b))
    return a[:n] == b[:n]


@dataclass(frozen=True)
class RestoreChunks:
    """
    Restore chunks of an array verbatim, and delete those that did not exist.

    Attributes
    ----------
    name, array
        The array in the earlier state.
    chunks : numpy.ndarray of int64, shape (chunks, axes)
        The coordinates of the chunks; None for all.
    """

    name: str
    array: AnyArray
    chunks: np.ndarray | None

    arrays = ()
    decoded_chunks = 0

    @property
    def encoded_chunks(self) -> int:
        """Number of chunks, including those to delete."""
        return math.prod(arrays.grid_of(self.array)) if self.chunks is None else len(self.chunks)

    @property
    def chunks_read(self) -> int:
        return self.encoded_chunks

    @property
    def bytes_read(self) -> int:
        """Upper bound: all chunks, decoded."""
        return self.encoded_chunks * arrays.chunk_bytes(self.array)

    @property
    def bytes_written(self) -> int:
        return self.bytes_read

    def by_cubed(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """Copy several chunks per task."""
        from plans.core import scan_tasks

        n, size = self.encoded_chunks, max(1, arrays.chunk_bytes(self.array))
        per_task = max(1, min(TASK_CHUNKS, TASK_BYTES // size, memory.free // (2 * size), math.ceil(n / MIN_TASKS)))
        look = partial(self.copy, store)
        return [scan_tasks.scan(ScanReader(look, n, per_task, mem=2 * per_task * size), memory.spec())]

    def by_zarr(self, store: "ZarrStore") -> None:
        for i in range(self.encoded_chunks):
            self._copy(store, slice(i, i + 1))

    def copy(self, store: "ZarrStore", numbers: slice) -> None:
        """Copy a range of chunks in a task, by their indices."""
        report_written(store, numbers.stop - numbers.start, encoded_bytes=self._copy(store, numbers))

    def _copy(self, store: "ZarrStore", numbers: slice) -> int:
        """Copy a range of chunks, and return their encoded bytes."""
        coords = self._coords(numbers)
        values = encoded_chunks.get_encoded(self.array, coords)
        encoded_chunks.set_encoded(arrays.planned(self.array, store=store), zip(coords, values, strict=True))
        return sum(len(value) for value in values if value is not None)

    def _coords(self, numbers: slice) -> list[tuple[int, ...]]:
        if self.chunks is not None:
            return [tuple(at) for at in self.chunks[numbers].tolist()]
        grid = arrays.grid_of(self.array)
        return [tuple(map(int, np.unravel_index(n, grid))) for n in range(numbers.start, numbers.stop)]
