"""A cache of recent results, bounded in bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Protocol

KEPT_BYTES = 8 * 2**20
"""Size of each cache of a process in bytes: every array of a plan, and every column of it, needs the same results."""


class Sized(Protocol):
    """An object that reports its size."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""


class UnitCache[T: Sized]:
    """The most recent units, up to `KEPT_BYTES`. A unit that threads request concurrently is computed once."""

    def __init__(self) -> None:
        self._units: OrderedDict[Hashable, T] = OrderedDict()
        self._nbytes = 0
        self._in_flight: dict[Hashable, Future[T]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return a cached unit, or make it."""
        with self._lock:
            if key in self._units:
                self._units.move_to_end(key)
                return self._units[key]
            is_ours = key not in self._in_flight
            future = self._in_flight.setdefault(key, Future())
        if not is_ours:
            return future.result()
        try:
            unit = make()
            self._keep(key, unit)
            future.set_result(unit)
        except BaseException as error:
            future.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._in_flight[key]
        return unit

    def _keep(self, key: Hashable, unit: T) -> None:
        with self._lock:
            self._units[key] = unit
            self._nbytes += unit.nbytes
            while self._nbytes > KEPT_BYTES and len(self._units) > 1:
                self._nbytes -= self._units.popitem(last=False)[1].nbytes
