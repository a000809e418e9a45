"""Makes executors by their names. An engine's library is imported only when the engine is asked for."""

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

from executors.errors import ExecutorOptionError, MissingEngineError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from cubed.runtime.types import DagExecutor

LOCAL = ("single-threaded", "threads", "processes")
"""Executors of this machine, which need nothing."""

NAMES = (*LOCAL, "lithops", "modal")
"""Executors of our own."""

GROUP = "vczstore.executors"
"""Entry points of this group are executors of other packages: classes of Cubed's `DagExecutor`."""

OTHERS = ("coiled", "dask", "ray", "spark")
"""Executors of Cubed that are handed on as they are; only executor files name them."""

IN_PROCESS = frozenset({"single-threaded", "threads"})
"""Executors whose tasks run in this process, and see what is in its memory."""

FUNCTION_SECONDS = 1.0
"""About what it takes until a function of a cloud does something: it is called, and Python imports what it needs."""


def names() -> tuple[str, ...]:
    """Return the names of our executors, and of those that other packages have."""
    return (*NAMES, *(name for name in sorted(_plugins()) if name not in NAMES))


@cache
def _plugins() -> "dict[str, EntryPoint]":
    from importlib.metadata import entry_points

    return {one.name: one for one in entry_points(group=GROUP)}


def create(name: str, **options: Any) -> "DagExecutor":
    """
    Make an executor.

    Parameters
    ----------
    name
        One of `names` or `OTHERS`.
    options
        ``max_workers``, how many tasks run at once (one for each core by default; not of ``single-threaded``), and
        ``retries``, how often a task that failed is tried again (2 by default); for what there is besides see
        `executors.lithops.LithopsExecutor` and `executors.modal.ModalExecutor`. Names may have hyphens. Options of
        `OTHERS` are Cubed's.

    Raises
    ------
    ExecutorOptionError
        If there is no such executor, or no such option.
    MissingEngineError
        If the executor's library is not installed.
    """
    if name in OTHERS:
        return _other(name, {key: value for key, value in options.items() if value is not None})
    options = {key.replace("-", "_"): value for key, value in options.items()}
    engine = _engine(name)
    if name == "single-threaded":
        options.pop("max_workers", None)
    known = set(inspect.signature(engine).parameters)
    if unknown := sorted(set(options) - known):
        raise ExecutorOptionError(
            f"the executor {name} has no option {_kebab(unknown)}; it has {_kebab(sorted(known))}"
        )
    return engine(**options)


def start_seconds(name: str, **options: Any) -> float:
    """
    How long an executor takes to begin a task: nothing to speak of where workers wait for tasks.

    Parameters
    ----------
    name, options
        As in `create`; nothing is started.

    Raises
    ------
    ExecutorOptionError
        If Lithops' configuration cannot be read.
    MissingEngineError
        If Lithops is not installed.
    """
    match name:
        case "lithops":
            from executors.lithops import configure

            options = {key.replace("-", "_"): value for key, value in options.items()}
            said = {key: options.get(key) for key in ("backend", "storage", "config", "config_file")}
            return 0.0 if configure(**said)["lithops"]["backend"] == "localhost" else FUNCTION_SECONDS
        case "modal":
            return FUNCTION_SECONDS
    return 0.0


def _kebab(names: list[str]) -> str:
    return ", ".join(name.replace("_", "-") for name in names)


def _engine(name: str) -> "type[DagExecutor]":
    match name:
        case "single-threaded":
            from executors.local import SingleThreadedExecutor

            return SingleThreadedExecutor
        case "threads":
            from executors.local import ThreadsExecutor

            return ThreadsExecutor
        case "processes":
            from executors.local import ProcessesExecutor

            return ProcessesExecutor
        case "lithops":
            from executors.lithops import LithopsExecutor

            return LithopsExecutor
        case "modal":
            from executors.modal import ModalExecutor

            return ModalExecutor
    if name in _plugins():
        engine: type[DagExecutor] = _plugins()[name].load()
        return engine
    raise ExecutorOptionError(f"no executor {name!r}; choose one of {', '.join(names())}")


def _other(name: str, options: dict[str, Any]) -> "DagExecutor":
    from cubed.runtime.create import create_executor

    if "max_workers" in options:
        raise ExecutorOptionError(f"the executor {name} takes no max-workers; its own options say how many there are")
    try:
        return create_executor(name, options)
    except ImportError as error:
        raise MissingEngineError(f"the executor {name} needs {error.name}, which is not installed") from error
