"""Blocks of chunks as Cubed arrays: how a plan reads, maps and writes them.

A plan is made of three kinds of array: a *source* (`read`) whose blocks come from a reader, maps (Cubed's own), and a
*sink* (`write`) whose blocks go to a view. Both stand either for decoded values, or for the grid of an array whose
elements are encoded chunks. Cubed fuses the three into one operation, and every task reports to the driver what it
has written.

This is the only module that touches Cubed's private interfaces of arrays and plans.
"""

import dataclasses
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import cubed
import networkx as nx
import numpy as np
from cubed.core.ops import blockwise
from cubed.core.plan import FinalizedPlan
from cubed.primitive.blockwise import apply_blockwise
from cubed.storage.zarr import LazyZarrArray

from plans.core.chunk_grid import Blocks
from plans.core.memory import memory_message
from plans.core.task_report import TaskReport, current_report, peak_mem
from vczstore.errors import MemoryLimitError
from vczstore.vcz import pipeline

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


def run_task(coords: list[int], *, config: Any, about: str, name: str, plan: int = 0) -> TaskReport:
    """
    Run one task of an operation as Cubed would, and say what it has done; an error names what it was about.

    Where several plans are executed together, `plan` says which of them the task belongs to, and so do its report and
    its error.
    """
    token = current_report.set(TaskReport(task=(name, tuple(coords)) if name else None, plan=plan))
    if isinstance(coords, Assigned):
        _share.set(coords.share)
    try:
        with pipeline.naming(about):
            apply_blockwise(list(coords), config=config)
        report = current_report.get()
        report.peak_mem, report.end = peak_mem(), time.time()
        return report
    except Exception as error:
        error.plan = plan  # type: ignore[attr-defined]  # it travels with a pickled exception
        raise
    finally:
        current_report.reset(token)


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


def read(reader: Reader, spec: cubed.Spec, *, extra_mem: int = 0, **into: Any) -> cubed.Array:
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
    **into
        Cubed's own options of where blocks go; see `put`.
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
    """Where Cubed puts blocks. It is there already, so creating and opening it do nothing."""

    reader: SharedReader | None = None
    """What its blocks come from, where each task has its share of it. It is not sent to workers."""
    path: str | None = None
    """The array that is written, if it is one, for messages."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, block: tuple[int, ...]) -> None:
        super().__init__(None, shape, dtype, block)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "reader"}

    def create(self, mode: str | None = None) -> "BlockSink":
        """Nothing to create."""
        return self

    def open(self) -> "BlockSink":
        """Nothing to open."""
        return self

    def __setitem__(self, key: tuple[slice, ...], values: np.ndarray) -> None:
        """Take one block."""
        raise TypeError(f"{type(self).__name__} takes no blocks")


def write(values: cubed.Array, view: BlockSink) -> cubed.Array:
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


def put(reader: Reader, view: BlockSink, spec: cubed.Spec, *, extra_mem: int) -> cubed.Array:
    """As `read` and `write`, in one operation."""
    return read(reader, spec, extra_mem=extra_mem, target_store=view, fusable_with_successors=False)


def move(reader: SharedReader, view: BlockSink, spec: cubed.Spec, *, extra_mem: int, shared: bool) -> cubed.Array:
    """As `put`; where it is `shared`, each task is sent its share of the reader alone."""
    if not shared:
        return put(reader, view, spec, extra_mem=extra_mem)
    view.reader = reader
    return put(_InTask(reader.dtype, reader.blocks), view, spec, extra_mem=extra_mem)


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
    # Cubed runs an operation when those are done on which it depends
    dag.add_edges_from([(a.name, op) for b in last for op in list(dag.predecessors(b.name)) for a in targets])
    return FinalizedPlan(nx.freeze(dag), plan.array_names, plan.optimized)


def _intermediates(dag: nx.MultiDiGraph) -> bool:
    """Whether Cubed itself has arrays to create, between operations that it could not fuse."""
    targets = [node.get("target") for _, node in dag.nodes(data=True)]
    return any(isinstance(t, LazyZarrArray) and not isinstance(t, BlockSink) for t in targets)


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
        if isinstance(view, BlockSink):
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


def _is_ours(node: Mapping[str, Any]) -> bool:
    """Whether the tasks of an operation report to the driver."""
    function = node["pipeline"].function if "pipeline" in node else None
    return isinstance(function, partial) and function.func is run_task


def _name(node: Mapping[str, Any]) -> str:
    return str(node["pipeline"].function.keywords["name"]) if _is_ours(node) else ""


@dataclass(frozen=True)
class _Others(Iterable[list[int]]):
    """The coordinates of the tasks that are left of an operation."""

    all: Iterable[list[int]]
    gone: Collection[tuple[int, ...]]

    def __iter__(self) -> Iterator[list[int]]:
        return (coords for coords in self.all if tuple(coords) not in self.gone)


type OnReport = Callable[[TaskReport], None]
"""Called in the driver, once for each task that succeeds."""


class _Reports(cubed.Callback):
    """Hands the reports of tasks on, as they end, each to the one who waits for those of its plan."""

    def __init__(self, on_report: Sequence[OnReport]) -> None:
        self.on_report = on_report

    def on_compute_start(self, event: Any) -> None:
        """Nothing to do."""

    def on_compute_end(self, event: Any) -> None:
        """Nothing to do."""

    def on_task_end(self, event: cubed.TaskEndEvent) -> None:
        """Hand on a report."""
        if isinstance(event.result, TaskReport):
            self.on_report[event.result.plan](event.result)


def execute(plans: Sequence[tuple[FinalizedPlan, OnReport]], executor: Any) -> None:
    """
    Run plans on a Cubed executor, all in one queue of tasks.

    Parameters
    ----------
    plans
        From `compile_plan`; and for each, who is told of its tasks.
    executor
        Runs the tasks. Of an error of a task, `plan_of` says which plan it was.
    """
    plan = _together([plan for plan, _ in plans])
    plan.execute(executor=executor, callbacks=[_Reports([on_report for _, on_report in plans])])


def plan_of(error: BaseException) -> int | None:
    """Which of the plans that were executed together a task's error belongs to; None if it is no task's."""
    found = getattr(error, "plan", None)
    return found if isinstance(found, int) else None


def _together(plans: Sequence[FinalizedPlan]) -> FinalizedPlan:
    """One plan of several: the tasks of all of a generation are a generation, in which each node says its plan."""
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
