"""Create executors by name. The library of an engine is imported only when its executor is created."""

import inspect
from functools import cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from executors.errors import ExecutorOptionError, MissingEngineError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from cubed.runtime.types import DagExecutor

LOCAL = ("single-threaded", "threads", "processes")
"""Executors on this machine, without further dependencies."""

_CLASSES = {
    "single-threaded": "executors.local:SingleThreadedExecutor",
    "threads": "executors.local:ThreadsExecutor",
    "processes": "executors.local:ProcessesExecutor",
    "lithops": "executors.lithops:LithopsExecutor",
    "modal": "executors.modal:ModalExecutor",
}

NAMES = tuple(_CLASSES)
"""Executors of this package."""

GROUP = "vczstore.executors"
"""Entry point group of executors of other packages: subclasses of Cubed's `DagExecutor`."""

OTHERS = ("coiled", "dask", "ray", "spark")
"""Executors of Cubed that are passed through unchanged; only executor files can name them."""

IN_PROCESS = frozenset({"single-threaded", "threads"})
"""Executors whose tasks run in this process, and share its memory."""

FUNCTION_SECONDS = 1.0
"""Approximate start-up time of a cloud function: the invocation, and Python's imports."""


def names() -> tuple[str, ...]:
    """Return the names of the executors of this package, and of other packages."""
    return (*NAMES, *(name for name in sorted(_plugins()) if name not in NAMES))


@cache
def _plugins() -> "dict[str, EntryPoint]":
    from importlib.metadata import entry_points

    return {entry_point.name: entry_point for entry_point in entry_points(group=GROUP)}


def create(name: str, **options: Any) -> "DagExecutor":
    """
    Create an executor.

    Parameters
    ----------
    name
        One of `names()` or `OTHERS`.
    options
        ``max_workers``, the number of concurrent tasks (by default one per core on this machine; ignored by
        ``single-threaded``), and ``retries``, the number of retries of a failed task (by default 2); for further
        options see `executors.lithops.LithopsExecutor` and `executors.modal.ModalExecutor`. Hyphens in option names
        stand for underscores. `OTHERS` take the options of Cubed, except ``max_workers``.

    Raises
    ------
    ExecutorOptionError
        If there is no such executor or option, or an option is invalid.
    MissingEngineError
        If the executor's library is not installed.
    """
    if name in OTHERS:
        return _other(name, {key: value for key, value in options.items() if value is not None})
    options = {key.replace("-", "_"): value for key, value in options.items()}
    engine = _engine(name)
    if name == "single-threaded":
        options.pop("max_workers", None)
    allowed = set(inspect.signature(engine).parameters)
    if unknown := sorted(set(options) - allowed):
        raise ExecutorOptionError(
            f"the executor {name} has no option {_kebab(unknown)}; it has {_kebab(sorted(allowed))}"
        )
    return engine(**options)


def start_seconds(name: str, **options: Any) -> float:
    """
    Return the start-up time of a task on an executor, in seconds; 0 for persistent workers. Nothing is started.

    Parameters
    ----------
    name, options
        As in `create`.

    Raises
    ------
    ExecutorOptionError
        If the configuration of Lithops cannot be read.
    MissingEngineError
        If Lithops is not installed.
    """
    match name:
        case "lithops":
            from executors.lithops import configure

            options = {key.replace("-", "_"): value for key, value in options.items()}
            settings = {key: options.get(key) for key in ("backend", "storage", "config", "config_file")}
            return 0.0 if configure(**settings)["lithops"]["backend"] == "localhost" else FUNCTION_SECONDS
        case "modal":
            return FUNCTION_SECONDS
    return 0.0


def _kebab(names: list[str]) -> str:
    return ", ".join(name.replace("_", "-") for name in names)


def _engine(name: str) -> "type[DagExecutor]":
    engine: type[DagExecutor]
    if name in _CLASSES:
        engine = resolve_name(_CLASSES[name])
    elif name in _plugins():
        engine = _plugins()[name].load()
    else:
        raise ExecutorOptionError(f"no executor {name!r}; choose one of {', '.join(names())}")
    return engine


def _other(name: str, options: dict[str, Any]) -> "DagExecutor":
    from cubed.runtime.create import create_executor

    if "max_workers" in options:
        raise ExecutorOptionError(f"the executor {name} takes no max-workers; its own options say how many there are")
    try:
        return create_executor(name, options)
    except ImportError as error:
        raise MissingEngineError(f"the executor {name} needs {error.name}, which is not installed") from error
