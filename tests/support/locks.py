"""Hold the lock of a store, as another job would."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vczstore.stores.lock import HeldLock
from vczstore.stores.resolve import open_store


@contextmanager
def job_lock(url: str, storage_options: Mapping[str, Any], *, wait: bool, watch: bool = False) -> Iterator[HeldLock]:
    """Hold the lock of the store at a path or URL; see `vczstore.stores.base.Store.exclusive_lock`."""
    with open_store(url, storage_options=storage_options).exclusive_lock(wait=wait, watch=watch) as lock:
        yield lock
