"""Blocks of chunks as Cubed arrays: how a plan reads, maps and writes them.

A plan is made of three kinds of array: a *source* (`read`) whose blocks come from a reader, maps (Cubed's own), and a
*sink* (`write`) whose blocks go to a view. Both stand either for decoded values, or for the grid of an array whose
elements are encoded chunks. Cubed fuses the three into one operation, and every task reports to the driver what it
has written.

This is the only module that touches Cubed's private interfaces of arrays and plans.
"""

import dataclasses
import hashlib
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import cubed
import networkx as nx
import numpy as np
from cubed.core.ops import blockwise
from cubed.core.plan import FinalizedPlan
from cubed.primitive.blockwise import apply_blockwise
from cubed.storage.zarr import LazyZarrArray
from zarr.abc.store import Store as ZarrStore
from zarr.types import AnyArray

from plans.columns import Blocks, Columns
from plans.memory import memory_message
from vczstore import arrays
from vczstore.errors import MemoryLimitError

type Task = tuple[str, tuple[int, ...]]
"""A task: what its operation is called, and its coordinates."""


@dataclass
class TaskReport:
    """
    What one task has done. It travels from worker to driver, so it stays small.

    Attributes
    ----------
    chunks
        How many chunks (shards, where there are shards) were written, or cleared.
    encoded_bytes, decoded_bytes
        How much was written as it was, and how much was encoded anew.
    found
        What a scan has found.
    store
        The store that was written to.
    task
        Which task it was: its operation as `tasks_of` calls it, and its coordinates. None if it has no name.
    peak_mem
        The most memory that the task's process had used when the task ended, in bytes.
    start, end
        When it ran, in seconds since the epoch by the worker's clock.
    """

    chunks: int = 0
    encoded_bytes: int = 0
    decoded_bytes: int = 0
    found: list[Any] = field(default_factory=list)
    store: ZarrStore | None = None
    task: Task | None = None
    peak_mem: int = 0
    start: float = field(default_factory=time.time)
    end: float = 0.0


_report: ContextVar[TaskReport] = ContextVar("vczstore_task_report")


def run_task(coords: list[int], *, config: Any, about: str, name: str) -> TaskReport:
    """Run one task of an operation as Cubed would, and say what it has done; an error names what it was about."""
    token = _report.set(TaskReport(task=(name, tuple(coords)) if name else None))
    try:
        with arrays.naming(about):
            apply_blockwise(coords, config=config)
        report = _report.get()
        report.peak_mem, report.end = peak_mem(), time.time()
        return report
    finally:
        _report.reset(token)


def peak_mem() -> int:
    """
    The most memory that this process has used, in bytes.

    Linux's own high-water mark where there is one: what ``getrusage`` says begins at the peak of the process
    that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if match:
            return int(match[1]) * 1024
    from cubed.utils import peak_measured_mem

    return int(peak_measured_mem())


# ---- sources and sinks ----------------------------------------------------------------------


class Reader(Protocol):
    """What a source reads. It is sent to workers."""

    @property
    def dtype(self) -> np.dtype:
        """Of the blocks."""

    @property
    def blocks(self) -> Blocks:
        """The length of each block along each axis."""

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Produce one block; `index` counts blocks along each axis."""


def read(reader: Reader, spec: cubed.Spec, *, extra_mem: int = 0) -> cubed.Array:
    """
    A Cubed array of a reader's blocks.

    Parameters
    ----------
    reader
        What produces the blocks.
    spec
        Of the plan.
    extra_mem
        What producing one block takes beside the block itself, in bytes.
    """
    return cubed.map_blocks(
        _read_block,
        dtype=reader.dtype,
        chunks=reader.blocks,
        spec=spec,
        reader=reader,
        extra_projected_mem=extra_mem,
    )


def _read_block(_: np.ndarray, *, reader: Reader, block_id: tuple[int, ...]) -> np.ndarray:
    return reader.block(block_id)


class View(LazyZarrArray):
    """Where Cubed puts blocks. It is there already, so creating and opening it do nothing."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, block: tuple[int, ...]) -> None:
        super().__init__(None, shape, dtype, block)

    def create(self, mode: str | None = None) -> "View":
        """Nothing to create."""
        return self

    def open(self) -> "View":
        """Nothing to open."""
        return self

    def __setitem__(self, key: tuple[slice, ...], values: np.ndarray) -> None:
        """Take one block."""
        raise TypeError(f"{type(self).__name__} takes no blocks")


def write(values: cubed.Array, view: View) -> cubed.Array:
    """A Cubed array whose computing puts the blocks of `values` into a view of the same shape and blocks."""
    axes = tuple(range(values.ndim))
    return blockwise(
        _same,
        axes,
        values,
        axes,
        dtype=values.dtype,
        align_arrays=False,
        target_store=view,
        fusable_with_successors=False,
    )


def _same(block: np.ndarray) -> np.ndarray:
    return block


def compile_plan(
    targets: Sequence[cubed.Array], operation: str, *, last: Sequence[cubed.Array] = ()
) -> FinalizedPlan | None:
    """
    Turn written arrays into one plan whose tasks report to the driver.

    Parameters
    ----------
    targets
        What is written.
    operation
        For messages.
    last
        What is written when all `targets` are.

    Returns
    -------
    FinalizedPlan or None
        None if there is nothing to do: Cubed has no empty plan.

    Raises
    ------
    MemoryLimitError
        If a task is projected to need more memory than it is allowed.
    """
    if not targets and not last:
        return None
    plan = cubed.plan(*targets, *last)
    for _, op in plan.ops_exceeding_memory:
        raise MemoryLimitError(memory_message(operation, op.projected_mem, op.allowed_mem))
    dag = nx.MultiDiGraph(plan.dag)
    dag.remove_nodes_from([name for name in ("create-arrays", "arrays") if name in dag and not _intermediates(dag)])
    about = {
        ancestor: view.array.path
        for name, view in dag.nodes(data="target")
        if isinstance(view, EncodedView | DecodedView)
        for ancestor in nx.ancestors(dag, name)
    }
    names = _names(dag)
    for name, node in dag.nodes(data=True):
        if "pipeline" in node and node["pipeline"].function is apply_blockwise:
            function = partial(run_task, about=about.get(name, operation), name=names.get(name, ""))
            node["pipeline"] = dataclasses.replace(node["pipeline"], function=function)
    # Cubed runs an operation when those are done on which it depends
    dag.add_edges_from([(a.name, op) for b in last for op in list(dag.predecessors(b.name)) for a in targets])
    return FinalizedPlan(nx.freeze(dag), plan.array_names, plan.optimized)


def _intermediates(dag: nx.MultiDiGraph) -> bool:
    """Whether Cubed itself has arrays to create, between operations that it could not fuse."""
    targets = [node.get("target") for _, node in dag.nodes(data=True)]
    return any(isinstance(t, LazyZarrArray) and not isinstance(t, View) for t in targets)


def _names(dag: nx.MultiDiGraph) -> dict[str, str]:
    """
    A name for each operation that stays the same when the plan is compiled again, unlike those of Cubed.

    It is a digest of the blocks that the operation writes. None are named where that would not tell them apart, or
    where they depend on each other.
    """
    if _intermediates(dag):
        return {}
    written: dict[str, list[str]] = {}
    for name, view in dag.nodes(data="target"):
        if isinstance(view, View):
            path = getattr(getattr(view, "array", None), "path", None)
            what = type(view).__name__, path, getattr(view, "columns", None), view.shape, view.dtype, view.chunks
            for operation in dag.predecessors(name):
                written.setdefault(operation, []).append(repr(what))
    names = {o: hashlib.blake2b("\n".join(sorted(w)).encode(), digest_size=8).hexdigest() for o, w in written.items()}
    count = Counter(names.values())
    return {operation: name for operation, name in names.items() if count[name] == 1}


def tasks_of(plan: FinalizedPlan | None) -> dict[str, int]:
    """How many tasks each operation has that has a name; those are what `without` can leave out."""
    nodes = () if plan is None else plan.dag.nodes.values()
    return {name: node["primitive_op"].num_tasks for node in nodes if (name := _name(node))}


def without(plan: FinalizedPlan, done: Mapping[str, Collection[tuple[int, ...]]]) -> FinalizedPlan | None:
    """
    The plan without some of its tasks, None if no other is left.

    Parameters
    ----------
    plan
        From `compile_plan`.
    done
        The coordinates of the tasks to leave out, by the names of their operations.
    """
    dag = nx.MultiDiGraph(plan.dag)
    for node in dag.nodes.values():
        if gone := done.get(_name(node), ()):
            operation = node["primitive_op"]
            node["primitive_op"] = dataclasses.replace(operation, num_tasks=operation.num_tasks - len(gone))
            others = _Others(node["pipeline"].mappable, frozenset(gone))
            node["pipeline"] = dataclasses.replace(node["pipeline"], mappable=others)
            node["computed"] = node["primitive_op"].num_tasks == 0  # Cubed's own word for what is not to be run
    left = FinalizedPlan(nx.freeze(dag), plan.array_names, plan.optimized)
    return left if left.num_tasks else None


def _name(node: Mapping[str, Any]) -> str:
    function = node["pipeline"].function if "pipeline" in node else None
    return str(function.keywords["name"]) if isinstance(function, partial) and function.func is run_task else ""


@dataclass(frozen=True)
class _Others(Iterable[list[int]]):
    """The coordinates of the tasks that are left of an operation."""

    all: Iterable[list[int]]
    gone: Collection[tuple[int, ...]]

    def __iter__(self) -> Iterator[list[int]]:
        return (coords for coords in self.all if tuple(coords) not in self.gone)


class _Reports(cubed.Callback):
    """Hands the reports of tasks on, as they end."""

    def __init__(self, on_report: Callable[[TaskReport], None]) -> None:
        self.on_report = on_report

    def on_compute_start(self, event: Any) -> None:
        """Nothing to do."""

    def on_compute_end(self, event: Any) -> None:
        """Nothing to do."""

    def on_task_end(self, event: cubed.TaskEndEvent) -> None:
        """Hand on a report."""
        if isinstance(event.result, TaskReport):
            self.on_report(event.result)


def execute(plan: FinalizedPlan, executor: Any, on_report: Callable[[TaskReport], None]) -> None:
    """Run a plan on a Cubed executor; `on_report` is called in the driver, once for each task that succeeds."""
    plan.execute(executor=executor, callbacks=[_Reports(on_report)])


# ---- chunks as they are ---------------------------------------------------------------------


@dataclass(frozen=True)
class EncodedReader:
    """The encoded chunks of some columns: an array of objects over the grid, None where a chunk is absent."""

    array: AnyArray
    columns: Columns

    @property
    def dtype(self) -> np.dtype:
        """An element is the bytes of a chunk."""
        return np.dtype(object)

    @property
    def blocks(self) -> Blocks:
        """In chunks."""
        return self.columns.grid_blocks

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """The bytes of the chunks of one block."""
        cells = self.columns.cells(index)
        where, coords = zip(*self.columns.coords(cells), strict=True)
        encoded = arrays.get_encoded(self.array, coords)
        arrays.check_frames(self.array, coords, encoded)
        values = np.empty([len(r) for r in cells], dtype=object)
        for at, value in zip(where, encoded, strict=True):
            values[at] = value
        return values


class EncodedView(View):
    """Where encoded chunks are put, over the grid; a None clears what lay there."""

    def __init__(self, array: AnyArray, columns: Columns) -> None:
        super().__init__(columns.grid, np.dtype(object), columns.block)
        self.array = array
        self.columns = columns

    def __setitem__(self, key: tuple[slice, ...], values: np.ndarray) -> None:
        """Write one block of encoded chunks."""
        cells = [range(s.start, s.stop) for s in key]
        chunks = [(coords, values[where]) for where, coords in self.columns.coords(cells)]
        arrays.set_encoded(self.array, chunks)
        report = _report.get()
        report.chunks += len(chunks)
        report.encoded_bytes += sum(len(value) for _, value in chunks if value is not None)
        report.store = self.array.store


def copy_encoded(
    source: AnyArray,
    source_columns: Columns,
    target: AnyArray,
    columns: Columns,
    spec: cubed.Spec,
    *,
    extra_mem: int = 0,
) -> cubed.Array:
    """Copy chunk columns as they are; both sides have the same grid and blocks."""
    chunk_bytes = math.prod(columns.chunks) * arrays.element_bytes(target)
    # read and written as one object each, hardly ever larger than decoded
    extra = 2 * math.prod(columns.block) * chunk_bytes + extra_mem
    return write(read(EncodedReader(source, source_columns), spec, extra_mem=extra), EncodedView(target, columns))


# ---- values ---------------------------------------------------------------------------------


class DecodedView(View):
    """Where decoded values are put, columns side by side."""

    def __init__(self, array: AnyArray, columns: Columns) -> None:
        super().__init__(columns.shape, array.dtype, columns.block_shape)
        self.array = array
        self.columns = columns

    def __setitem__(self, key: tuple[slice, ...], values: np.ndarray) -> None:
        """Encode and write one block."""
        cells = self.columns.cells_of(key)
        for here, there in self.columns.runs(cells):
            self.array[there] = values[here]
        report = _report.get()
        report.chunks += math.prod(len(r) for r in cells)
        report.decoded_bytes += values.nbytes
        report.store = self.array.store


def report_written(store: ZarrStore, n_chunks: int, decoded_bytes: int) -> None:
    """Let the present task report what it has written by itself, not through a view."""
    report = _report.get()
    report.chunks += n_chunks
    report.decoded_bytes += decoded_bytes
    report.store = store


class RowsView(View):
    """
    Where rows are handed to somebody who makes chunks of several arrays of them.

    Parameters
    ----------
    shape, dtype, block
        Of what is handed over; a block has whole rows.
    put
        Takes the number of the first row, and rows; returns how many chunks and decoded bytes it has written.
    store
        Where it has written them.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype,
        block: tuple[int, ...],
        put: Callable[[int, np.ndarray], tuple[int, int]],
        store: ZarrStore,
    ) -> None:
        super().__init__(shape, dtype, block)
        self.put = put
        self.store_written = store

    def __setitem__(self, key: tuple[slice, ...], values: np.ndarray) -> None:
        """Hand over one block."""
        n_chunks, n_bytes = self.put(key[0].start, values)
        report = _report.get()
        report.chunks += n_chunks
        report.decoded_bytes += n_bytes
        report.store = self.store_written


# ---- scans ----------------------------------------------------------------------------------


class FoundView(View):
    """Takes what a scan has found to the driver, in the tasks' reports, with the number of the scan."""

    def __init__(self, n_tasks: int, tag: int) -> None:
        super().__init__((n_tasks,), np.dtype(object), (1,))
        self.tag = tag

    def __setitem__(self, key: tuple[slice, ...], values: np.ndarray) -> None:
        """Keep what was found in one block; None is nothing."""
        _report.get().found.extend((self.tag, value) for value in values if value is not None)


@dataclass(frozen=True)
class ScanReader:
    """Looks at one range of rows after the other, and returns an object for each: what was found, or None."""

    look: Callable[[slice], Any]
    n_rows: int
    rows_per_task: int

    @property
    def dtype(self) -> np.dtype:
        """An element is what was found."""
        return np.dtype(object)

    @property
    def blocks(self) -> Blocks:
        """One element for each task."""
        return ((1,) * math.ceil(self.n_rows / self.rows_per_task),)

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Look at the rows of one task."""
        start = index[0] * self.rows_per_task
        values = np.empty(1, dtype=object)
        values[0] = self.look(slice(start, min(self.n_rows, start + self.rows_per_task)))
        return values


def scan(reader: ScanReader, spec: cubed.Spec, tag: int, *, extra_mem: int) -> cubed.Array:
    """A scan as a Cubed array: one element for each task, None where nothing was found."""
    return write(read(reader, spec, extra_mem=extra_mem), FoundView(len(reader.blocks[0]), tag))
