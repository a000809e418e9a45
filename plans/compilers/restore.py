"""Restore: what a store was becomes what it is, in a new commit: metadata, and the chunks that have changed since."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import MIN_TASKS, TASK_BYTES, TASK_CHUNKS
from plans.core.ledger import ATTRIBUTE as LEDGER
from plans.core.memory import Memory
from plans.core.model import Plan
from plans.core.task_report import current_report
from plans.core.withdrawn import ATTRIBUTE as WITHDRAWN
from plans.core.withdrawn import Withdrawn
from vczstore.errors import SampleError
from vczstore.stores.base import RESTORED, Snapshot, Store
from vczstore.stores.edits import Delete, Edit, WriteDocuments
from vczstore.vcz import arrays, encoded_chunks, vcf_headers, zarr_objects
from vczstore.vcz.cuts import Width
from vczstore.vcz.metadata import same_encoding
from vczstore.vcz.model import INFO_STATES, REMOVED, Vcz

if TYPE_CHECKING:
    import cubed
    from zarr.abc.store import Store as ZarrStore

OPERATION = "restore"

_OF_STATE = (LEDGER, INFO_STATES)
"""Attributes of ours that tell of what is in the store."""

_KEEP_SAMPLES = {"append", "update", "recompute", "compact", "regrid", OPERATION}
"""Operations that remove and rename no sample."""

_DROP_HEADER = {"remove", "rename-samples", "repair"}
"""Operations that drop lines of the VCF's header."""


def compile_restore(store: Store, vcz: Vcz, state: str, memory: Memory) -> Plan:
    """
    Compile the return to a state.

    Parameters
    ----------
    store, vcz
        The repository, and the state that it is in.
    state
        A tag, branch or snapshot.
    memory
        What a task may use.

    Raises
    ------
    SampleError
        If the state has samples that the store no longer has, or removed samples are hashed with another key there.
    """
    past = store.open(state)
    past.require_whole(OPERATION, edited=False)
    _refuse_withdrawn(store, vcz, past, state)
    changed = store.history.changed_chunks(_last_like(store, vcz, past), vcz.snapshot or "")
    present = {**vcz.arrays, **vcz.inner}
    before = {**past.arrays, **past.inner}
    edits: list[Edit] = [Delete(path) for path in (*present, *vcz.groups) if path not in (*before, *past.groups)]
    writes = []
    for path, array in before.items():
        found = None if changed is None else changed.get(path, _none(array))
        if path in present and not _same_grid(present[path], array):
            edits.append(Delete(path))
            found = None
        write = RestoreChunks(path, array, None if found is None else _within(array, found))
        if write.encoded_chunks:
            writes.append(write)
    attributes = _attributes(store, vcz, past)
    edits += _documents(vcz, past, attributes)
    return Plan(
        operation=OPERATION,
        store=store,
        base=vcz.state,
        checks=(),
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
    """The newest snapshot whose chunks are those of a state: itself, or one that restored it."""
    for entry in store.history.snapshots(vcz.snapshot):
        if past.snapshot in (entry.id, entry.metadata.get("vczstore", {}).get(RESTORED)):
            return entry.id
    return past.snapshot or ""


def _refuse_withdrawn(store: Store, vcz: Vcz, past: Vcz, state: str) -> None:
    """
    Raise a `SampleError` if a state has samples that the store no longer has. They are not named: they are gone.

    Those that are not there only because an earlier state was restored may come back.
    """
    n = len({*past.sample_ids.tolist()} - {*vcz.sample_ids.tolist()} - {REMOVED})
    if n and not _keeps_samples(store, vcz, past):
        raise SampleError(
            f"{OPERATION}: {state} of {vcz.label} has {n:,} samples that were removed or renamed since, and would come "
            f"back; nothing was restored, vczstore export {vcz.label} OUT --at {state} -S ^FILE writes it without "
            "those in a file"
        )


def _keeps_samples(store: Store, vcz: Vcz, past: Vcz) -> bool:
    """Whether all that was done since a state is known to have removed and renamed no sample."""
    for entry in store.history.snapshots(vcz.snapshot):
        if entry.id == past.snapshot:
            return True
        if not operations_of(entry) <= _KEEP_SAMPLES:
            break
    return False


def _attributes(store: Store, vcz: Vcz, past: Vcz) -> dict[str, Any]:
    """
    The attributes of the root group: those of the past.

    Samples that were removed here stay known, and so do those of a state of another branch; of what jobs have brought
    in, it is what was there. Header lines that may name samples that are gone do not come back.
    """
    withdrawn = Withdrawn.of(store, vcz).merged_with(Withdrawn.of(store, past), OPERATION)
    then = {name: value for name, value in past.attributes.items() if name in _OF_STATE or not _is_ours(name)}
    then |= {name: value for name, value in vcz.attributes.items() if name not in _OF_STATE and _is_ours(name)}
    if (dropped := _dropped_header(store, vcz, past)) is not None:
        then |= vcf_headers.without_dropped(then, vcz.attributes, {*past.sample_ids.tolist()}, dropped)
    return then | ({WITHDRAWN: withdrawn.value} if withdrawn.value else {})


def _dropped_header(store: Store, vcz: Vcz, past: Vcz) -> set[tuple[str, str]] | None:
    """
    The lines of the VCF's header that were dropped since a state by operations that drop those that name samples.

    None if there was no such operation; all lines of a state that is not in this history.
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
    """What a snapshot says that was done in it; None if it says nothing."""
    said = entry.metadata.get("vczstore", {})
    return {step.get("operation") for step in said.get("steps", [said])}


def _is_ours(attribute: str) -> bool:
    return attribute.startswith("vczstore_")


def _documents(vcz: Vcz, past: Vcz, attributes: Mapping[str, Any]) -> Iterator[Edit]:
    """What writes the documents that differ; the root's own last."""
    keys = [f"{path}/zarr.json" for path in (*past.groups, *past.arrays, *past.inner)]
    for key in keys:
        document = zarr_objects.read_json(past.store, key)
        if document is not None and document != zarr_objects.read_json(vcz.store, key):
            yield WriteDocuments({key: document})
    root = {**(zarr_objects.read_json(past.store, "zarr.json") or {}), "attributes": dict(attributes)}
    if root != zarr_objects.read_json(vcz.store, "zarr.json"):
        yield WriteDocuments({"zarr.json": root})


def _same_grid(now: AnyArray, then: AnyArray) -> bool:
    """Whether a chunk has the same place and encoding in both."""
    pairs = zip(arrays.widths(now), arrays.widths(then), strict=True)
    return now.ndim == then.ndim and same_encoding(now, then) and all(_same_widths(*pair) for pair in pairs)


def _same_widths(a: Width, b: Width) -> bool:
    if isinstance(a, int) or isinstance(b, int):
        return a == b
    n = min(len(a), len(b))
    return a[:n] == b[:n]


def _none(array: AnyArray) -> np.ndarray:
    return np.empty((0, array.ndim), dtype="i8")


def _within(array: AnyArray, changed: np.ndarray) -> np.ndarray:
    """Of chunks those within the grid of an array."""
    return changed[(changed < np.array(arrays.grid_of(array), dtype="i8")).all(axis=1)]


@dataclass(frozen=True)
class RestoreChunks:
    """
    Chunks of an array become what they were, byte for byte; those that were absent go.

    Attributes
    ----------
    name, array
        The array as it was.
    chunks : numpy.ndarray of int64, chunks by axes
        Which ones; None for all.
    """

    name: str
    array: AnyArray
    chunks: np.ndarray | None

    arrays = ()
    decoded_chunks = 0

    @property
    def encoded_chunks(self) -> int:
        """All of them; absent ones count."""
        return math.prod(arrays.grid_of(self.array)) if self.chunks is None else len(self.chunks)

    @property
    def chunks_read(self) -> int:
        """As many."""
        return self.encoded_chunks

    @property
    def bytes_read(self) -> int:
        """At most, decoded."""
        return self.encoded_chunks * arrays.chunk_bytes(self.array)

    @property
    def bytes_written(self) -> int:
        """The same."""
        return self.bytes_read

    def by_cubed(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """Copy some chunks in a task."""
        from plans.core import scan_tasks

        n, size = self.encoded_chunks, max(1, arrays.chunk_bytes(self.array))
        per_task = max(1, min(TASK_CHUNKS, TASK_BYTES // size, math.ceil(n / MIN_TASKS)))
        look = _RestoreTask(self, store).look
        return [scan_tasks.scan(scan_tasks.ScanReader(look, n, per_task, mem=2 * per_task * size), memory.spec())]

    def by_zarr(self, store: "ZarrStore") -> None:
        """Copy them one after the other."""
        for i in range(self.encoded_chunks):
            self.copy(store, slice(i, i + 1))

    def copy(self, store: "ZarrStore", numbers: slice) -> int:
        """Copy chunks by their numbers; returns their bytes."""
        coords = self._coords(numbers)
        values = encoded_chunks.get_encoded(self.array, coords)
        encoded_chunks.set_encoded(arrays.planned(self.array, store=store), zip(coords, values, strict=True))
        return sum(len(value) for value in values if value is not None)

    def _coords(self, numbers: slice) -> list[tuple[int, ...]]:
        if self.chunks is not None:
            return [tuple(at) for at in self.chunks[numbers].tolist()]
        grid = arrays.grid_of(self.array)
        return [tuple(map(int, np.unravel_index(n, grid))) for n in range(numbers.start, numbers.stop)]


@dataclass(frozen=True)
class _RestoreTask:
    """What a task does."""

    chunks: RestoreChunks
    store: "ZarrStore"

    def look(self, numbers: slice) -> None:
        """Copy some chunks, and say how many."""
        report = current_report.get()
        report.encoded_bytes += self.chunks.copy(self.store, numbers)
        report.chunks += numbers.stop - numbers.start
        report.store = self.store
