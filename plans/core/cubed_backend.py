"""Blocks of chunks as Cubed arrays: how a plan reads and writes them.

The blocks of a *source* (`read`) come from a reader, and a *sink* (`write`) stores blocks; `put` is both in one
operation. Their elements are either decoded values or lists of encoded chunks. With xarray, arrays of Cubed's own lie
between them. Every task reports its writes to the driver.

This is the only module that uses Cubed's private interfaces of arrays and plans.
"""

import dataclasses
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import cubed
import networkx as nx
import numpy as np
from cubed.core.ops import blockwise
from cubed.core.plan import FinalizedPlan
from cubed.primitive.blockwise import apply_blockwise
from cubed.storage.zarr import LazyZarrArray

from plans.core.chunk_grid import Blocks
from plans.core.memory import memory_error
from plans.core.task_report import TaskReport, current_report, peak_mem
from vczstore.vcz import pipeline

_share: ContextVar["Share"] = ContextVar("vczstore_task_share")


class Assigned(list[int]):
    """
    The coordinates of a task, with the task's share of a reader.

    Normally an operation's reader is sent with each of its tasks. With many sources, few of which a task needs, that
    would be quadratic.
    """

    def __init__(self, coords: Iterable[int], share: "Share") -> None:
        super().__init__(coords)
        self.share = share


def run_task(coords: list[int], *, config: Any, about: str, name: str, plan: int = 0) -> TaskReport:
    """
    Run one task as Cubed would, and return its report; errors about chunks name `about`.

    If several plans are executed together, `plan` is the index of the task's plan, which its report and its error have.
    """
    token = current_report.set(TaskReport(task=(name, tuple(coords)) if name else None, plan=plan))
    share_token = _share.set(coords.share) if isinstance(coords, Assigned) else None
    try:
        with pipeline.naming(about):
            apply_blockwise(list(coords), config=config)
        report = current_report.get()
        report.peak_mem, report.end = peak_mem(), time.time()
        return report
    except Exception as error:
        error.plan = plan  # type: ignore[attr-defined]  # pickled together with the exception
        raise
    finally:
        current_report.reset(token)
        if share_token is not None:
            _share.reset(share_token)


# ---- sources and sinks ----------------------------------------------------------------------


class Reader(Protocol):
    """Produces the blocks of a source. It is sent to workers."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the blocks."""

    @property
    def blocks(self) -> Blocks:
        """The length of each block along each axis."""

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Produce one block; `index` counts blocks along each axis."""


class Share(Protocol):
    """The part of a reader that a single task needs."""

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Produce the task's block."""


class SharedReader(Reader, Protocol):
    """A reader of many arrays, which needs few of them for a block."""

    def share(self, index: tuple[int, ...]) -> "Share":
        """The part that produces one block."""


@dataclass(frozen=True)
class _InTask:
    """Placeholder for a reader in an operation whose tasks have a share of the reader each."""

    dtype: np.dtype
    blocks: Blocks

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        """Produce the task's own block."""
        return _share.get().block(index)


@dataclass(frozen=True)
class _Assigning(Iterable[list[int]]):
    """The coordinates of an operation's tasks, each with its share of the reader."""

    all: Iterable[list[int]]
    reader: SharedReader

    def __iter__(self) -> Iterator[list[int]]:
        return (Assigned(coords, self.reader.share(tuple(coords))) for coords in self.all)


def read(reader: Reader, spec: cubed.Spec, *, extra_mem: int = 0, **into: Any) -> cubed.Array:
    """
    A Cubed array of a reader's blocks. `into` are Cubed's options for their destination; see `put`.

    `extra_mem` are the bytes needed to produce one block, in addition to the block itself.
    """
    return cubed.map_blocks(
        _read_block,
        dtype=reader.dtype,
        chunks=reader.blocks,
        spec=spec,
        reader=reader,
        extra_projected_mem=extra_mem,
        **into,
    )


def _read_block(_: np.ndarray, *, reader: Reader, block_id: tuple[int, ...]) -> np.ndarray:
    return reader.block(block_id)


class BlockSink(LazyZarrArray):
    """The destination of Cubed's blocks, stored by ``__setitem__``. It exists: creating and opening it are no-ops."""

    reader: SharedReader | None = None
    """The reader, if each task has only a share of it. It is not sent to workers."""
    path: str | None = None
    """The path of the array that is written, for messages; None unless it is a single array."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, block: tuple[int, ...]) -> None:
        super().__init__(None, shape, dtype, block)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "reader"}

    def create(self, mode: str | None = None) -> "BlockSink":
        return self

    def open(self) -> "BlockSink":
        return self


def write(values: cubed.Array, view: BlockSink) -> cubed.Array:
    """A Cubed array that stores the blocks of `values` in a sink of the same shape and blocks when computed."""
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


def put(reader: Reader, view: BlockSink, spec: cubed.Spec, *, extra_mem: int, shared: bool = False) -> cubed.Array:
    """Like `read` and `write`, in one operation. If `shared`, each task is sent only its share of a `SharedReader`."""
    if shared:
        view.reader = cast("SharedReader", reader)
        reader = _InTask(reader.dtype, reader.blocks)
    return read(reader, spec, extra_mem=extra_mem, target_store=view, fusable_with_successors=False)


def compile_plan(
    targets: Sequence[cubed.Array], operation: str, *, last: Sequence[cubed.Array] = ()
) -> FinalizedPlan | None:
    """
    Compile arrays of `write` or `put` into one plan whose tasks report to the driver; None if there are no arrays.

    The arrays `last` are computed only after all `targets`.

    Raises
    ------
    MemoryLimitError
        If a task is projected to need more memory than it is allowed.
    """
    if not targets and not last:
        return None
    plan = cubed.plan(*targets, *last)
    if too_large := [op for _, op in plan.ops_exceeding_memory]:
        largest = max(too_large, key=lambda op: op.projected_mem)
        raise memory_error(operation, largest.projected_mem, largest.allowed_mem)
    dag = nx.MultiDiGraph(plan.dag)
    dag.remove_nodes_from([name for name in ("create-arrays", "arrays") if name in dag and not _intermediates(dag)])
    about = {
        ancestor: view.path
        for name, view in dag.nodes(data="target")
        if isinstance(view, BlockSink) and view.path is not None
        for ancestor in nx.ancestors(dag, name)
    }
    names = _names(dag)
    readers = {
        name: view.reader
        for target, view in dag.nodes(data="target")
        if isinstance(view, BlockSink) and view.reader is not None
        for name in dag.predecessors(target)
    }
    for name, node in dag.nodes(data=True):
        if "pipeline" in node and node["pipeline"].function is apply_blockwise:
            function = partial(run_task, about=about.get(name, operation), name=names.get(name, ""))
            node["pipeline"] = dataclasses.replace(node["pipeline"], function=function)
            if (reader := readers.get(name)) is not None:
                tasks = _Assigning(node["pipeline"].mappable, reader)
                node["pipeline"] = dataclasses.replace(node["pipeline"], mappable=tasks)
    # Cubed runs an operation after those that it depends on
    dag.add_edges_from([(a.name, op) for b in last for op in list(dag.predecessors(b.name)) for a in targets])
    return FinalizedPlan(nx.freeze(dag), plan.array_names, plan.optimized)


def _intermediates(dag: nx.MultiDiGraph) -> bool:
    """Whether Cubed has intermediate arrays to create, between operations that it could not fuse."""
    targets = [node.get("target") for _, node in dag.nodes(data=True)]
    return any(isinstance(t, LazyZarrArray) and not isinstance(t, BlockSink) for t in targets)


def _names(dag: nx.MultiDiGraph) -> dict[str, str]:
    """
    Names of operations that stay the same when the plan is compiled again, unlike Cubed's names.

    A name is a digest of the blocks that the operation writes. Operations with equal digests have no name, nor have
    those of a plan with intermediate arrays.
    """
    if _intermediates(dag):
        return {}
    written: dict[str, list[str]] = {}
    for name, view in dag.nodes(data="target"):
        if isinstance(view, BlockSink):
            path = getattr(getattr(view, "array", None), "path", None)
            blocks = type(view).__name__, path, getattr(view, "columns", None), view.shape, view.dtype, view.chunks
            for operation in dag.predecessors(name):
                written.setdefault(operation, []).append(repr(blocks))
    names = {o: hashlib.blake2b("\n".join(sorted(w)).encode(), digest_size=8).hexdigest() for o, w in written.items()}
    count = Counter(names.values())
    return {operation: name for operation, name in names.items() if count[name] == 1}


def tasks_of(plan: FinalizedPlan | None) -> dict[str, int]:
    """The number of tasks of each named operation; `without_tasks` can skip these tasks."""
    nodes = () if plan is None else plan.dag.nodes.values()
    return {name: node["primitive_op"].num_tasks for node in nodes if (name := _name(node))}


def without_tasks(plan: FinalizedPlan, done: Mapping[str, Collection[tuple[int, ...]]]) -> FinalizedPlan | None:
    """The plan without the tasks `done`, coordinates by the names of operations; None if no task is left."""
    dag = nx.MultiDiGraph(plan.dag)
    for node in dag.nodes.values():
        if skipped := done.get(_name(node), ()):
            operation = node["primitive_op"]
            node["primitive_op"] = dataclasses.replace(operation, num_tasks=operation.num_tasks - len(skipped))
            remaining = _Remaining(node["pipeline"].mappable, frozenset(skipped))
            node["pipeline"] = dataclasses.replace(node["pipeline"], mappable=remaining)
            node["computed"] = node["primitive_op"].num_tasks == 0  # Cubed skips nodes with this flag
    result = FinalizedPlan(nx.freeze(dag), plan.array_names, plan.optimized)
    return result if result.num_tasks else None


def _is_ours(node: Mapping[str, Any]) -> bool:
    """Whether the tasks of an operation report to the driver."""
    function = node["pipeline"].function if "pipeline" in node else None
    return isinstance(function, partial) and function.func is run_task


def _name(node: Mapping[str, Any]) -> str:
    return str(node["pipeline"].function.keywords["name"]) if _is_ours(node) else ""


@dataclass(frozen=True)
class _Remaining(Iterable[list[int]]):
    """The coordinates of an operation's tasks, except those that are skipped."""

    all: Iterable[list[int]]
    skipped: Collection[tuple[int, ...]]

    def __iter__(self) -> Iterator[list[int]]:
        return (coords for coords in self.all if tuple(coords) not in self.skipped)


type OnReport = Callable[[TaskReport], None]
"""Called in the driver, once for each task that succeeds."""


class _Reports(cubed.Callback):
    """Dispatches the reports of finished tasks to the callbacks of their plans."""

    def __init__(self, on_report: Sequence[OnReport]) -> None:
        self.on_report = on_report

    def on_task_end(self, event: cubed.TaskEndEvent) -> None:
        if isinstance(event.result, TaskReport):
            self.on_report[event.result.plan](event.result)


def execute(plans: Sequence[tuple[FinalizedPlan, OnReport]], executor: Any) -> None:
    """
    Run plans on a Cubed executor, all in one queue of tasks, each with a callback for the reports of its tasks.

    For an error of a task, `plan_of` returns the plan.
    """
    plan = _merged([plan for plan, _ in plans])
    plan.execute(executor=executor, callbacks=[_Reports([on_report for _, on_report in plans])])


def plan_of(error: BaseException) -> int | None:
    """The index of the plan, among those executed together, whose task raised an error; None for other errors."""
    plan = getattr(error, "plan", None)
    return plan if isinstance(plan, int) else None


def _merged(plans: Sequence[FinalizedPlan]) -> FinalizedPlan:
    """Merge plans into one: each generation has the tasks of all plans, and each node has the index of its plan."""
    if len(plans) == 1:
        return plans[0]
    dags = []
    for number, plan in enumerate(plans):
        dag = nx.relabel_nodes(plan.dag, {name: f"{number}.{name}" for name in plan.dag})
        for node in dag.nodes.values():
            node["plan"] = number
            if _is_ours(node):
                function = partial(node["pipeline"].function, plan=number)
                node["pipeline"] = dataclasses.replace(node["pipeline"], function=function)
        dags.append(dag)
    names = [f"{number}.{name}" for number, plan in enumerate(plans) for name in plan.array_names]
    return FinalizedPlan(nx.freeze(nx.union_all(dags)), names, plans[0].optimized)
