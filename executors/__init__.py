"""Executors: a name and options in, something that runs a Cubed plan out. They know nothing of VCZ.

An engine's library is imported only when the engine is asked for, and nothing happens at import.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cubed.runtime.types import DagExecutor

NAMES = ("single-threaded", "threads", "processes")


class UnknownExecutorError(ValueError):
    """There is no executor of that name."""


def create(name: str, *, max_workers: int | None = None, retries: int = 2) -> "DagExecutor":
    """
    Make an executor.

    Parameters
    ----------
    name
        One of `NAMES`.
    max_workers
        How many tasks run at once; one for each core by default.
    retries
        How often a task that failed is tried again.

    Raises
    ------
    UnknownExecutorError
        If there is no such executor.
    """
    if name not in NAMES:
        raise UnknownExecutorError(f"no executor {name!r}; choose one of {', '.join(NAMES)}")
    from executors.local import ProcessesExecutor, SingleThreadedExecutor, ThreadsExecutor

    options: dict[str, Any] = {"retries": retries}
    if name == "single-threaded":
        return SingleThreadedExecutor(**options)
    engine = ThreadsExecutor if name == "threads" else ProcessesExecutor
    return engine(max_workers=max_workers, **options)
