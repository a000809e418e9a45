"""What a process remembers of matches: not too much, and made once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from time import sleep

import numpy as np
import pytest

from plans.variants import unit_cache
from plans.variants.match_index import Matches, Unit


def _unit(start: int, n: int) -> Unit:
    """A range of variants of two alleles, which a source has as they are."""
    numbers = np.full(n, 2, dtype="i4")
    matches = Matches(np.arange(start, start + n), np.tile(np.arange(2, dtype="i4"), (n, 1)), numbers)
    return Unit(start, start + n, None, numbers, numbers, (matches,), ((n, 0, None),))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_cache, "KEPT_BYTES", 10 * _unit(0, 100).nbytes)
    kept = unit_cache.UnitCache()
    made: list[int] = []

    def get(number: int) -> Unit:
        return kept.get(("index", number), lambda: made.append(number) or _unit(100 * number, 100))

    for number in range(50):
        assert get(number).start == 100 * number
        assert get(0).start == 0  # asked for all the time, so that it stays
    assert made == list(range(50))
    assert [get(number).start // 100 for number in range(41, 50)] == list(range(41, 50))
    assert made == list(range(50))
    get(40)
    assert made == [*range(50), 40]

    # one that is larger than all that may be kept is made, and kept alone
    whole = kept.get(("index", -1), lambda: _unit(0, 10_000))
    assert kept.get(("index", -1), lambda: pytest.fail("made again")) is whole
    get(49)
    assert made == [*range(50), 40, 49]


def test_what_two_threads_want_at_once_is_made_once() -> None:
    kept, together, made = unit_cache.UnitCache(), threading.Barrier(4), []

    def make() -> Unit:
        sleep(0.1)
        made.append(None)
        return _unit(0, 10)

    def want() -> Unit:
        together.wait()
        return kept.get(("index", 0), make)

    with ThreadPoolExecutor(4) as pool:
        units = [each.result() for each in [pool.submit(want) for _ in range(4)]]
    assert len(made) == 1
    assert all(unit is units[0] for unit in units)


def test_what_could_not_be_made_is_made_again() -> None:
    kept = unit_cache.UnitCache()

    def fail() -> Unit:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        kept.get(("index", 0), fail)
    assert kept.get(("index", 0), lambda: _unit(0, 10)).stop == 10
