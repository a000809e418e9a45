"""Probe whether the tasks of an executor can read a store: after pickling, a store may be a copy, or empty."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import cloudpickle
from zarr.abc.store import Store as ZarrStore

from plans.core.memory import Memory
from plans.core.scan_reader import ScanReader
from vczstore.vcz.zarr_objects import get_many, reading

if TYPE_CHECKING:
    from cubed.core.plan import FinalizedPlan


def pickled(store: ZarrStore) -> bytes:
    """The pickled store, as it is sent to a task."""
    return bytes(cloudpickle.dumps(reading(store)))


def read(store: ZarrStore, keys: Sequence[str]) -> list[bytes | None]:
    """Read objects, None if absent; a task of `probe_plan` should read the same values as the driver."""
    return [None if value is None else value.to_bytes() for value in get_many(reading(store), keys)]


def probe_plan(sent: bytes, keys: Sequence[str]) -> "FinalizedPlan | None":
    """A plan of one task, whose finding is the values of some objects (None if absent), or an error message."""
    from plans.core import cubed_backend, scan_tasks

    reader = ScanReader(partial(_read_in_task, sent, keys), 1, 1)
    return cubed_backend.compile_plan([scan_tasks.scan(reader, Memory().spec())], "reach")


def _read_in_task(sent: bytes, keys: Sequence[str], _: slice) -> list[bytes | None] | str:
    try:
        return read(cloudpickle.loads(sent), keys)
    except Exception as error:  # a user's store may raise any exception
        return f"{type(error).__name__}: {error}"
