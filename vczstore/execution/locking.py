"""Who writes to a store, and when: the lock that an operation holds, or waits for after a lost race."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, cast

from plans.core.model import Plan
from vczstore.execution.options import Options
from vczstore.operations import Edit
from vczstore.stores.base import Place, Store, is_repository
from vczstore.stores.folder_swap import ReplacedStore, replacing
from vczstore.stores.locations import local_path
from vczstore.stores.lock import JobLock, hold
from vczstore.stores.object_store import plain_errors
from vczstore.stores.plain import NewPlainStore

type Check = Callable[[], None] | None
"""What makes sure before anything becomes visible that a lock is still held, where one is."""


@dataclass(frozen=True)
class Writing:
    """
    The turn of an operation to write.

    Attributes
    ----------
    lock
        What it holds from the beginning; None where commits are serialised by storage, or nothing is written.
    again
        What it holds while it is retried, so that several who have lost a race do not go on losing to each other.
    """

    lock: JobLock | None
    again: Callable[[], AbstractContextManager[Any]]

    @property
    def check(self) -> Check:
        """What makes sure that the lock is still held."""
        return None if self.lock is None else self.lock.check


@contextmanager
def writing(operation: Edit, options: Options, *, dry_run: bool) -> Iterator[Writing]:
    """
    Hold what an operation needs to write.

    Whoever has lost a race waits for the lock of the store, where there is a place for one: of any number of writers,
    all get through. On plain Zarr, where two writers would mix their chunks, the lock is held from the beginning.

    Raises
    ------
    BusyError
        If another process writes to a store on plain Zarr.
    StorageError
        If the lock cannot be taken.
    """
    location = operation.store
    with plain_errors(location):
        own = operation.locked(options, dry_run=dry_run)
    if own is not None:
        with plain_errors(location), own as lock:
            yield Writing(lock, nullcontext)
        return
    with plain_errors(location):
        plain = _plain(location, options)
    if plain is None:
        yield Writing(None, lambda: _turn(location, options))
        return
    # watched: who was killed, or cut off from an object store, can run the same again
    with hold(plain, watch=True) as lock:
        yield Writing(lock, nullcontext)


def _plain(location: Place, options: Options) -> Store | None:
    """A store that is on plain Zarr; None for a repository, which needs no lock as long as no other writer commits."""
    path = local_path(os.fspath(location)) if isinstance(location, str | os.PathLike) else None
    if path is not None and (options.backend_storage == "icechunk" or is_repository(path)):
        return None
    store = options.open(location)
    return None if store.atomic else store


def _turn(location: Place, options: Options) -> AbstractContextManager[Any]:
    """The lock of a repository, for whoever has lost a race. In an object store it takes obstore; Icechunk does not."""
    store = options.open(location)
    without = store.folder is None and find_spec("obstore") is None
    return nullcontext() if without else hold(store, wait=True)


@contextmanager
def holding(plan: Plan, options: Options) -> Iterator[tuple[Plan, Check]]:
    """
    Hold the lock that a plan needs which was compiled before.

    Yields
    ------
    Plan
        The plan, with what the options say of its lock.
    Check
        What makes sure that the lock is still held.
    """
    if options.no_lock:
        plan = replace(plan, store=replace(cast(Any, plan.store), no_lock=True))
    store = plan.store
    if isinstance(store, ReplacedStore):
        found = {"backend_storage": options.backend_storage, "storage_options": options.storage_options}
        with plain_errors(store.label), replacing(store.path, {**found, "no_lock": store.no_lock}) as lock:
            yield plan, lock.check
    elif store.atomic or isinstance(store, NewPlainStore):
        yield plan, None
    else:
        with hold(store, watch=True) as lock:
            yield plan, lock.check
