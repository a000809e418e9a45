"""The cache of matches in a process: its size is bounded, and each unit is computed once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from time import sleep

import numpy as np
import pytest

from plans.variants import unit_cache
from plans.variants.match_index import Matches, Unit


def _unit(start: int, n: int) -> Unit:
    """Return a unit of variants with two alleles, which a source has in the same order."""
    numbers, unseen = np.full(n, 2, dtype="i4"), np.full(n, -1, dtype="i4")
    matches = Matches(np.arange(start, start + n), np.tile(np.arange(2, dtype="i4"), (n, 1)), numbers, unseen)
    return Unit(start, start + n, None, numbers, numbers, (matches,), ((n, 0, None),))


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_cache, "KEPT_BYTES", 10 * _unit(0, 100).nbytes)
    cache = unit_cache.UnitCache()
    computed: list[int] = []

    def get(number: int) -> Unit:
        return cache.get(("index", number), lambda: computed.append(number) or _unit(100 * number, 100))

    for number in range(50):
        assert get(number).start == 100 * number
        assert get(0).start == 0  # requested each time, so that it stays in the cache
    assert computed == list(range(50))
    assert [get(number).start // 100 for number in range(41, 50)] == list(range(41, 50))
    assert computed == list(range(50))
    get(40)
    assert computed == [*range(50), 40]

    # a unit that is larger than the bound is computed, and becomes the only one in the cache
    whole = cache.get(("index", -1), lambda: _unit(0, 10_000))
    assert cache.get(("index", -1), lambda: pytest.fail("made again")) is whole
    get(49)
    assert computed == [*range(50), 40, 49]


def test_concurrent_requests_compute_a_unit_once() -> None:
    cache, barrier, computed = unit_cache.UnitCache(), threading.Barrier(4), []

    def make() -> Unit:
        sleep(0.1)
        computed.append(None)
        return _unit(0, 10)

    def want() -> Unit:
        barrier.wait()
        return cache.get(("index", 0), make)

    with ThreadPoolExecutor(4) as pool:
        units = [future.result() for future in [pool.submit(want) for _ in range(4)]]
    assert len(computed) == 1
    assert all(unit is units[0] for unit in units)


def test_a_unit_that_failed_is_computed_again() -> None:
    cache = unit_cache.UnitCache()

    def fail() -> Unit:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        cache.get(("index", 0), fail)
    assert cache.get(("index", 0), lambda: _unit(0, 10)).stop == 10
