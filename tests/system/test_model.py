"""Random stores and random sequences of operations against the NumPy model, bit for bit."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import vczstore
from tests.support import cohort
from tests.support.covering import costly
from tests.support.layouts import layouts

pytestmark = pytest.mark.slow

FIELDS = (*cohort.SOME, "call_genotype_mask", "call_FC")
"""One field of each dtype; tests/system/test_matrix.py has all fields."""


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[dict, list]:
    """Draw the layout of a store, and a sequence of appends, updates, removals and compactions."""
    n_variants = draw(st.integers(1, 8))
    present = cohort.ids(0, draw(st.integers(1, 9)))
    start = {
        "n_variants": n_variants,
        "samples": list(present),
        "layout": draw(layouts),
        "seed": draw(st.integers(0, 99)),
    }
    operations: list[tuple] = []
    next_id = len(present)
    for _ in range(draw(st.integers(1, 4))):
        operation = draw(st.sampled_from(["append", "remove", "update", "compact"])) if present else "append"
        if operation == "compact":
            operations.append(("compact", None))
        elif operation == "remove":
            gone = draw(st.lists(st.sampled_from(present), min_size=1, unique=True))
            operations.append(("remove", gone))
            present = [s for s in present if s not in gone]
        elif operation == "update":
            shuffled = draw(st.permutations(present))
            cuts = sorted({0, len(present), *draw(st.lists(st.integers(0, len(present)), max_size=3))})
            pieces = [list(shuffled[a:b]) for a, b in pairwise(cuts)]
            if draw(st.booleans()):  # in the order of the store, which may cover whole columns
                pieces = [sorted(piece) for piece in pieces]
            chosen = draw(st.lists(st.sampled_from(pieces), min_size=1, unique_by=tuple))
            operations.append(
                (
                    "update",
                    [
                        (p, start["layout"] if draw(st.booleans()) else draw(layouts), draw(st.sampled_from([2, 3])))
                        for p in chosen
                    ],
                )
            )
        else:
            batches = []
            for _ in range(draw(st.integers(1, 3))):
                n = draw(st.integers(1, 8))
                same_layout = draw(st.booleans())
                batches.append(
                    (
                        cohort.ids(next_id, n),
                        start["layout"] if same_layout else draw(layouts),
                        draw(st.sampled_from([2, 3])),
                    )
                )
                present += cohort.ids(next_id, n)
                next_id += n
            operations.append(("append", batches))
    return start, operations


def _run(scenario: tuple[dict, list], icechunk: bool, impl: str, executor: str) -> None:
    start, operations = scenario
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = cohort.make_arrays(start["n_variants"], start["samples"], seed=start["seed"], fields=FIELDS)
        store = folder / "store.vcz"
        cohort.write_vcz(store, model, **start["layout"])
        if icechunk:
            vczstore.copy_store_to_icechunk(store, folder / "repository")
            store = folder / "repository"
        for i, (operation, details) in enumerate(operations):
            if operation == "compact":
                output = None if icechunk or i % 2 else folder / f"compacted-{i}.vcz"
                vczstore.compact(store, output, impl=impl, executor=executor)
                store, model = output or store, cohort.expected_compact(model)
                continue
            if operation == "remove":
                vczstore.remove(store, details, impl=impl, executor=executor)
                model = cohort.expected_remove(model, details)
                continue
            paths = []
            for j, (samples, layout, zarr_format) in enumerate(details):
                batch = cohort.make_arrays(start["n_variants"], samples, seed=100 * i + j, fields=FIELDS)
                paths.append(folder / f"batch-{i}-{j}.vcz")
                shards = layout["shards"] if zarr_format == 3 else None
                cohort.write_vcz(paths[-1], batch, **{**layout, "zarr_format": zarr_format, "shards": shards})
                model = (cohort.expected_append if operation == "append" else cohort.expected_update)(model, batch)
            edit = vczstore.append if operation == "append" else vczstore.update
            edit(store, *paths, impl=impl, executor=executor)
        reader: zarr.abc.store.Store | Path = cohort.icechunk_store(store) if icechunk else store
        cohort.assert_same(cohort.read_vcz(reader), model)
        assert vczstore.verify(store, impl="zarr").errors == []


@costly
@given(scenarios())
def test_cubed(scenario: tuple[dict, list]) -> None:
    _run(scenario, icechunk=False, impl="cubed", executor="threads")


@costly
@given(scenarios())
def test_icechunk_cubed(scenario: tuple[dict, list]) -> None:
    _run(scenario, icechunk=True, impl="cubed", executor="single-threaded")


@costly
@given(scenarios())
def test_zarr(scenario: tuple[dict, list]) -> None:
    _run(scenario, icechunk=False, impl="zarr", executor="threads")


@settings(costly, max_examples=4)
@given(scenarios())
def test_xarray(scenario: tuple[dict, list]) -> None:
    _run(scenario, icechunk=False, impl="xarray", executor="threads")
