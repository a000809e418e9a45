"""A cache of what was matched last, within a bound in bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Protocol

KEPT_BYTES = 8 * 2**20
"""How much a process remembers of the latest matches: every array of a plan, and every column of it, asks for them."""


class Sized(Protocol):
    """Something of which it is known what it takes to keep it."""

    @property
    def nbytes(self) -> int:
        """In bytes."""


class UnitCache[T: Sized]:
    """The latest units of a process, as many as `KEPT_BYTES` hold. What several threads want at once is made once."""

    def __init__(self) -> None:
        self._units: OrderedDict[Hashable, T] = OrderedDict()
        self._nbytes = 0
        self._made: dict[Hashable, Future[T]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """A unit that is there, or is made now."""
        with self._lock:
            if key in self._units:
                self._units.move_to_end(key)
                return self._units[key]
            is_ours = key not in self._made
            future = self._made.setdefault(key, Future())
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
                del self._made[key]
        return unit

    def _keep(self, key: Hashable, unit: T) -> None:
        with self._lock:
            self._units[key] = unit
            self._nbytes += unit.nbytes
            while self._nbytes > KEPT_BYTES and len(self._units) > 1:
                self._nbytes -= self._units.popitem(last=False)[1].nbytes
