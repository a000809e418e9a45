"""Executors: a name and options in, something that runs a Cubed plan out. They know nothing of VCZ.

An engine's library is imported only when the engine is asked for, and nothing happens at import.
"""

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cubed.runtime.types import DagExecutor

LOCAL = ("single-threaded", "threads", "processes")
NAMES = (*LOCAL, "modal")


class ExecutorOptionError(ValueError):
    """There is no executor of that name, or it has no such option."""


def create(name: str, **options: Any) -> "DagExecutor":
    """
    Make an executor.

    Parameters
    ----------
    name
        One of `NAMES`.
    options
        ``max_workers``, how many tasks run at once (one for each core by default, 100 on Modal; not of
        ``single-threaded``), and ``retries``, how often a task that failed is tried again (2 by default). What else
        there is for Modal is in `executors.modal.ModalExecutor`. A ``-`` in a name is as good as a ``_``.

    Raises
    ------
    ExecutorOptionError
        If there is no such executor, or no such option.
    """
    from executors import local

    options = {key.replace("-", "_"): value for key, value in options.items()}
    match name:
        case "single-threaded":
            options.pop("max_workers", None)
            engine: type[DagExecutor] = local.SingleThreadedExecutor
        case "threads":
            engine = local.ThreadsExecutor
        case "processes":
            engine = local.ProcessesExecutor
        case "modal":
            from executors.modal import ModalExecutor as engine
        case _:
            raise ExecutorOptionError(f"no executor {name!r}; choose one of {', '.join(NAMES)}")
    known = set(inspect.signature(engine).parameters)
    if unknown := sorted(set(options) - known):
        raise ExecutorOptionError(
            f"the executor {name} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    return engine(**options)
