"""vczstore: append, update, remove, tag and copy samples of a VCF Zarr store, as Cubed plans in one atomic commit.

The public names are imported when they are first used, so that ``vczstore --help`` does not wait for cubed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vczstore.api import (
        append,
        compact,
        copy_store_to_icechunk,
        create,
        delete_tag,
        gc,
        info,
        log,
        normalise,
        plan_append,
        plan_compact,
        plan_recompute,
        plan_remove,
        plan_update,
        purge,
        recompute,
        remove,
        repair,
        run,
        tag,
        tags,
        update,
        verify,
        verify_removal,
    )
    from vczstore.errors import VczstoreError
    from vczstore.execution.engine import Result
    from vczstore.jobs.run import plan_job, run_job

__all__ = [
    "Result",
    "VczstoreError",
    "append",
    "compact",
    "copy_store_to_icechunk",
    "create",
    "delete_tag",
    "gc",
    "info",
    "log",
    "normalise",
    "plan_append",
    "plan_compact",
    "plan_job",
    "plan_recompute",
    "plan_remove",
    "plan_update",
    "purge",
    "recompute",
    "remove",
    "repair",
    "run",
    "run_job",
    "tag",
    "tags",
    "update",
    "verify",
    "verify_removal",
]

_HOMES = {
    "Result": "vczstore.execution.engine",
    "VczstoreError": "vczstore.errors",
    "plan_job": "vczstore.jobs.run",
    "run_job": "vczstore.jobs.run",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'vczstore' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "vczstore.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
