"""Executors of Cubed plans, created by name and options. They know nothing of VCZ.

The library of an engine is imported lazily, when one is created; importing this package has no side effects.
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
