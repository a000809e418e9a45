"""Run tasks on an executor without a store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
from cubed.runtime.types import Callback, CubedPipeline

import executors


def dag_of(function: Callable[..., Any], n: int) -> nx.MultiDiGraph:
    """The DAG of a plan with one operation, as passed to executors: `function` is called with 0 to `n` - 1."""
    dag = nx.MultiDiGraph()
    dag.add_node("op", pipeline=CubedPipeline(function, "op", [[i] for i in range(n)], None))
    return dag


class Ends(Callback):
    def __init__(self) -> None:
        self.results: list[Any] = []

    def on_task_end(self, event: Any) -> None:
        self.results.append(event.result)


def run_tasks(name: str, function: Callable[..., Any], n: int, **options: Any) -> list[Any]:
    engine, ends = executors.create(name, **options), Ends()
    try:
        engine.execute_dag(dag_of(function, n), callbacks=[ends])
    finally:
        engine.close()
    return ends.results
