"""Parametrization with a subset of all combinations, for parameters that are mostly independent of each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, cycle, islice, product
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

costly = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Hypothesis settings for tests of whole operations, where an example takes a second; other tests use the default."""

type Values = Mapping[str, Any] | Sequence[Any]
"""The values of a parameter. The keys of a mapping are used in test IDs instead of the values."""


def pairwise(*parameters: Iterable[Any]) -> list[tuple[Any, ...]]:
    """
    Combinations of values, such that any two values of different parameters occur together in at least one.

    Examples
    --------
    >>> pairwise("ab", "xy", (1, 2))
    [('a', 'x', 1), ('a', 'y', 2), ('b', 'x', 2), ('b', 'y', 1)]
    """
    values = [list(parameter) for parameter in parameters]
    candidates = [(row, set(combinations(enumerate(row), 2))) for row in product(*(range(len(v)) for v in values))]
    missing = {pair for _, pairs in candidates for pair in pairs}
    chosen = []
    while missing:
        row, pairs = max(candidates, key=lambda candidate: len(candidate[1] & missing))
        chosen.append(row)
        missing -= pairs
    return [tuple(v[i] for v, i in zip(values, row, strict=True)) for row in sorted(chosen)]


def in_pairs(*, indirect: Sequence[str] = (), **parameters: Values) -> pytest.MarkDecorator:
    """Parametrize a test with all pairs of values of different parameters; see `pairwise`."""
    return _parametrize(parameters, pairwise(*parameters.values()), indirect)


def in_turn(*, indirect: Sequence[str] = (), **parameters: Values) -> pytest.MarkDecorator:
    """Parametrize a test with every value of every parameter, zipped; shorter parameters are cycled."""
    longest = max(map(len, parameters.values()))
    columns = [islice(cycle(values), longest) for values in parameters.values()]
    return _parametrize(parameters, list(zip(*columns, strict=True)), indirect)


def _parametrize(
    parameters: Mapping[str, Values], rows: list[tuple[Any, ...]], indirect: Sequence[str]
) -> pytest.MarkDecorator:
    argvalues = [
        tuple(p[v] if isinstance(p, Mapping) else v for p, v in zip(parameters.values(), row, strict=True))
        for row in rows
    ]
    return pytest.mark.parametrize(
        tuple(parameters), argvalues, ids=["-".join(map(str, r)) for r in rows], indirect=indirect
    )
