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
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cubed
import networkx as nx
import numpy as np
from cubed.core.ops import blockwise
from cubed.core.plan import FinalizedPlan
from cubed.primitive.blockwise import apply_blockwise
from cubed.storage.zarr import LazyZarrArray
from zarr.abc.store import Store as ZarrStore
from zarr.types import AnyArray

from plans.core.chunk_grid import MIN_TASKS, TASK_BYTES, TASK_CHUNKS, Blocks, Columns
from plans.core.memory import Memory, memory_message
from vczstore.errors import MemoryLimitError
from vczstore.vcz import arrays, encoded_chunks, pipeline, zarr_objects

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
        How much was written as it was, and how much was re-encoded.
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
_share: ContextVar["Share"] = ContextVar("vczstore_task_share")


class Assigned(list[int]):
    """
    The coordinates of a task that takes its own share of a reader along, and no other.

    What an operation reads is sent with each of its tasks. Of many sources each task needs a few: if all of them were
    sent, that would be quadratic.
    """

    def __init__(self, coords: Iterable[int], share: "Share") -> None:
        super().__init__(coords)
        self.share = share


def run_task(coords: list[int], *, config: Any, about: str, name: str) -> TaskReport:
    """Run one task of an operation as Cubed would, and say what it has done; an error names what it was about."""
    token = _report.set(TaskReport(task=(name, tuple(coords)) if name else None))
    if isinstance(coords, Assigned):
        _share.set(coords.share)
    try:
        with pipeline.naming(about):
            apply_blockwise(list(coords), config=config)
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


class Share(Protocol):
    """What a single task reads."""

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Produce the task's block."""


class SharedReader(Reader, Protocol):
    """What a source reads of many places, of which each block needs few."""

    def share(self, index: tuple[int, ...]) -> "Share":
        """What produces this one block."""


@dataclass(frozen=True)
class _InTask:
    """Stands for a reader in an operation whose tasks each have their share of it."""

    dtype: np.dtype
    blocks: Blocks

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Produce the task's own block."""
        return _share.get().block(index)


@dataclass(frozen=True)
class _Assigning(Iterable[list[int]]):
    """The coordinates of an operation's tasks, each with its share."""

    all: Iterable[list[int]]
    reader: SharedReader

    def __iter__(self) -> Iterator[list[int]]:
        return (Assigned(coords, self.reader.share(tuple(coords))) for coords in self.all)


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

    reader: SharedReader | None = None
    """What its blocks come from, where each task has its share of it. It is not sent to workers."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, block: tuple[int, ...]) -> None:
        super().__init__(None, shape, dtype, block)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "reader"}

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


def move(reader: SharedReader, view: View, spec: cubed.Spec, *, extra_mem: int, shared: bool) -> cubed.Array:
    """As `read` and `write`; where it is `shared`, each task is sent its share of the reader alone."""
    if not shared:
        return write(read(reader, spec, extra_mem=extra_mem), view)
    view.reader = reader
    return write(read(_InTask(reader.dtype, reader.blocks), spec, extra_mem=extra_mem), view)


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
    readers = {
        name: view.reader
        for target, view in dag.nodes(data="target")
        if isinstance(view, View) and view.reader is not None
        for name in dag.predecessors(target)
    }
    for name, node in dag.nodes(data=True):
        if "pipeline" in node and node["pipeline"].function is apply_blockwise:
            function = partial(run_task, about=about.get(name, operation), name=names.get(name, ""))
            node["pipeline"] = dataclasses.replace(node["pipeline"], function=function)
            if (reader := readers.get(name)) is not None:
                tasks = _Assigning(node["pipeline"].mappable, reader)
                node["pipeline"] = dataclasses.replace(node["pipeline"], mappable=tasks)
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


type EncodedChunks = list[tuple[tuple[int, ...], zarr_objects.Encoded]]
"""Chunks of a target as they are, by their coordinates; None clears what lay there."""


@dataclass(frozen=True)
class Piece:
    """Chunk columns of an array that are, chunk for chunk, columns of a target; both have the same grid and blocks."""

    source: AnyArray
    source_columns: Columns
    columns: Columns

    @property
    def n_blocks(self) -> int:
        """How many blocks there are."""
        return math.prod(map(len, self.columns.grid_blocks))

    def chunks(self, number: int) -> EncodedChunks:
        """The chunks of one block."""
        index = tuple(int(i) for i in np.unravel_index(number, [len(b) for b in self.columns.grid_blocks]))
        coords = [at for _, at in self.source_columns.coords(self.source_columns.cells(index))]
        encoded = encoded_chunks.get_encoded(self.source, coords)
        encoded_chunks.check_frames(self.source, coords, encoded)
        return list(zip((at for _, at in self.columns.coords(self.columns.cells(index))), encoded, strict=True))


@dataclass(frozen=True)
class _EncodedTask:
    """The pieces that one task copies: some whole, or one block of a single one."""

    pieces: tuple[Piece, ...]
    number: int = 0

    def block(self, _: tuple[int, ...]) -> np.ndarray:
        """All of their chunks."""
        values = np.empty(1, dtype=object)
        values[0] = [chunk for piece in self.pieces for chunk in piece.chunks(self.number)]
        return values


@dataclass(frozen=True)
class EncodedReader:
    """
    The encoded chunks of some pieces of one target, one list of them for each task.

    Attributes
    ----------
    pieces
        What is copied. A block of one makes a task, or several pieces of one block.
    together
        So many chunks at most make a task of several pieces.
    """

    pieces: tuple[Piece, ...]
    together: int

    @cached_property
    def _groups(self) -> tuple[list[int], list[tuple[Piece, ...]]]:
        """The first task of each group of pieces, and the group: one piece, or several of one block each."""
        starts: list[int] = []
        groups: list[list[Piece]] = []
        n_tasks = n_chunks = 0
        for piece in self.pieces:
            if not groups or n_chunks + piece.columns.n_chunks > self.together:
                starts.append(n_tasks)
                groups.append([piece])
                n_tasks, n_chunks = n_tasks + piece.n_blocks, piece.columns.n_chunks
                n_chunks = n_chunks if piece.n_blocks == 1 else self.together
            elif piece.n_blocks == 1:
                groups[-1].append(piece)
                n_chunks += piece.columns.n_chunks
            else:
                starts.append(n_tasks)
                groups.append([piece])
                n_tasks, n_chunks = n_tasks + piece.n_blocks, self.together
        return starts, [tuple(group) for group in groups]

    @property
    def dtype(self) -> np.dtype:
        """An element is a list of chunks."""
        return np.dtype(object)

    @property
    def blocks(self) -> Blocks:
        """One element for each task."""
        starts, groups = self._groups
        return ((1,) * (starts[-1] + groups[-1][0].n_blocks),)

    def share(self, index: tuple[int, ...]) -> _EncodedTask:
        """What one task copies."""
        starts, groups = self._groups
        group = bisect_right(starts, index[0]) - 1
        return _EncodedTask(groups[group], index[0] - starts[group])

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """The chunks of one task."""
        return self.share(index).block(index)


class EncodedView(View):
    """Where encoded chunks are put, lists of them."""

    def __init__(self, array: AnyArray, reader: EncodedReader) -> None:
        super().__init__((len(reader.blocks[0]),), np.dtype(object), (1,))
        self.array = array
        # tells apart what views write; all columns of many pieces are not sent to workers
        columns = repr([piece.columns for piece in reader.pieces]).encode()
        self.columns = hashlib.blake2b(columns, digest_size=8).hexdigest()

    def __setitem__(self, key: tuple[slice, ...], values: np.ndarray) -> None:
        """Write the chunks of one task."""
        chunks: EncodedChunks = [chunk for found in values for chunk in found]
        encoded_chunks.set_encoded(self.array, chunks)
        report = _report.get()
        report.chunks += len(chunks)
        report.encoded_bytes += sum(len(value) for _, value in chunks if value is not None)
        report.store = self.array.store


def copy_encoded(
    pieces: Sequence[Piece], target: AnyArray, spec: cubed.Spec, *, together: int = 1, extra_mem: int = 0
) -> cubed.Array:
    """
    Copy chunk columns as they are.

    Parameters
    ----------
    pieces
        At least one; each has chunks.
    target
        Where they go.
    spec
        Of the plan.
    together
        As in `EncodedReader`.
    extra_mem
        What making a chunk takes, in bytes, where it is made.
    """
    reader = EncodedReader(tuple(pieces), together)
    most = max(together, *(math.prod(piece.columns.block) for piece in pieces))
    # read and written as one object each, hardly ever larger than decoded
    extra = 2 * most * arrays.chunk_bytes(target) + extra_mem
    return move(reader, EncodedView(target, reader), spec, extra_mem=extra, shared=len(pieces) > 1)


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
    """Takes what scans have found to the driver, in the tasks' reports: lists of it, each with the number of a scan."""

    def __init__(self, n_tasks: int) -> None:
        super().__init__((n_tasks,), np.dtype(object), (1,))

    def __setitem__(self, key: tuple[slice, ...], values: np.ndarray) -> None:
        """Keep what one task has found."""
        _report.get().found.extend(pair for pairs in values for pair in pairs)


class Range(NamedTuple):
    """A range of rows that a scan looks at, and what it takes, in bytes."""

    tag: int
    look: Callable[[slice], Any]
    rows: slice
    mem: int


@dataclass(frozen=True)
class ScanReader:
    """
    Looks at one range of rows after the other, each in a task; what is found there is an object, or None.

    Attributes
    ----------
    look
        Looks at a range.
    n_rows, rows_per_task
        How many rows there are, and how many are looked at together.
    tag
        Tells what is found from what other scans find.
    mem
        What it takes to look at a range, in bytes.
    """

    look: Callable[[slice], Any]
    n_rows: int
    rows_per_task: int
    tag: int = 0
    mem: int = 0

    @property
    def dtype(self) -> np.dtype:
        """An element is a list of what was found."""
        return np.dtype(object)

    @property
    def blocks(self) -> Blocks:
        """One element for each task."""
        return ((1,) * math.ceil(self.n_rows / self.rows_per_task),)

    def range(self, number: int) -> Range:
        """What one task looks at."""
        start = number * self.rows_per_task
        return Range(self.tag, self.look, slice(start, min(self.n_rows, start + self.rows_per_task)), self.mem)

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Look at the rows of one task."""
        return _found([self.range(index[0])])


@dataclass(frozen=True)
class _Together:
    """Ranges of many scans, some in each task."""

    tasks: Sequence[Sequence[Range]]

    dtype = np.dtype(object)

    @property
    def blocks(self) -> Blocks:
        """One element for each task."""
        return ((1,) * len(self.tasks),)

    def share(self, index: tuple[int, ...]) -> "_Together":
        """What one task looks at."""
        return _Together([self.tasks[index[0]]])

    def block(self, _: tuple[int, ...]) -> np.ndarray:
        """Look at all of a task's share."""
        return _found(self.tasks[0])


def _found(ranges: Iterable[Range]) -> np.ndarray:
    values = np.empty(1, dtype=object)
    found = ((r.tag, r.look(r.rows)) for r in ranges)
    values[0] = [(tag, value) for tag, value in found if value is not None]
    return values


def scan(reader: ScanReader, spec: cubed.Spec) -> cubed.Array:
    """A scan as a Cubed array, with a task for each range."""
    return write(read(reader, spec, extra_mem=reader.mem), FoundView(len(reader.blocks[0])))


def survey(scans: Sequence[ScanReader], memory: Memory) -> list[cubed.Array]:
    """
    Scans as one Cubed array, so that a plan does not grow with them; none if there is nothing to look at.

    Ranges that take little are looked at together in one task.
    """
    scans = [one for one in scans if one.n_rows]
    if len(scans) < 2:
        return [scan(one, memory.spec()) for one in scans]
    ranges = [one.range(i) for one in scans for i in range(len(one.blocks[0]))]
    most, room = min(TASK_CHUNKS, len(ranges) // MIN_TASKS), max(TASK_BYTES, memory.task_bytes)
    tasks: list[list[Range]] = []
    taken = 0
    for r in ranges:
        if tasks and len(tasks[-1]) < most and taken + r.mem <= room:
            tasks[-1].append(r)
            taken += r.mem
        else:
            tasks.append([r])
            taken = r.mem
    mem = max(one.mem for one in scans)
    return [move(_Together(tasks), FoundView(len(tasks)), memory.spec(), extra_mem=mem, shared=True)]
