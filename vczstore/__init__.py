"""vczstore: append, update, remove, tag and copy samples of a VCF Zarr store, as Cubed plans in one atomic commit.

Public names are imported lazily, so that ``vczstore --help`` does not wait for cubed.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vczstore.choices import AMERICAN

if TYPE_CHECKING:
    __version__: str
    from vczstore.api import *  # noqa: F403
    from vczstore.errors import VczstoreError as VczstoreError
    from vczstore.execution.options import Options as Options
    from vczstore.execution.results import Result as Result
    from vczstore.jobs.run import plan_job as plan_job
    from vczstore.jobs.run import run_job as run_job

_MODULES = {
    "Options": "vczstore.execution.options",
    "Result": "vczstore.execution.results",
    "VczstoreError": "vczstore.errors",
    "plan_job": "vczstore.jobs.run",
    "run_job": "vczstore.jobs.run",
}
"""Modules of the public names that are not functions of `vczstore.api`."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("vczstore")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module 'vczstore' has no attribute {name!r}")
    if name != "__all__" and find_spec(f"vczstore.{name}") is not None:
        raise AttributeError(f"module 'vczstore' has no attribute {name!r}")  # so that it is imported as a module
    functions = import_module("vczstore.api").FUNCTIONS
    if name == "__all__":
        return sorted([*functions, *_MODULES])
    if (name := AMERICAN.get(name, name)) in functions:
        return functions[name]
    raise AttributeError(f"module 'vczstore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])
