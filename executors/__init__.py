"""Executors: a name and options in, something that runs a Cubed plan out. They know nothing of VCZ.

An engine's library is imported only when the engine is asked for, and nothing happens at import.
"""

from executors.errors import ExecutorOptionError, MissingEngineError, first_line
from executors.factory import FUNCTION_SECONDS, IN_PROCESS, LOCAL, NAMES, OTHERS, create, names, start_seconds

__all__ = [
    "FUNCTION_SECONDS",
    "IN_PROCESS",
    "LOCAL",
    "NAMES",
    "OTHERS",
    "ExecutorOptionError",
    "MissingEngineError",
    "create",
    "first_line",
    "names",
    "start_seconds",
]
