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
"""Every dtype but no two alike; tests/system/test_matrix.py has all fields."""


@st.composite
def stories(draw: st.DrawFn) -> tuple[dict, list]:
    """A store's layout, and what happens to it: batches, updates and removals of present samples, and compactions."""
    n_variants = draw(st.integers(1, 8))
    present = cohort.ids(0, draw(st.integers(1, 9)))
    start = {
        "n_variants": n_variants,
        "samples": list(present),
        "layout": draw(layouts),
        "seed": draw(st.integers(0, 99)),
    }
    events: list[tuple] = []
    fresh = len(present)
    for _ in range(draw(st.integers(1, 4))):
        what = draw(st.sampled_from(["append", "remove", "update", "compact"])) if present else "append"
        if what == "compact":
            events.append(("compact", None))
        elif what == "remove":
            gone = draw(st.lists(st.sampled_from(present), min_size=1, unique=True))
            events.append(("remove", gone))
            present = [s for s in present if s not in gone]
        elif what == "update":
            shuffled = draw(st.permutations(present))
            cuts = sorted({0, len(present), *draw(st.lists(st.integers(0, len(present)), max_size=3))})
            pieces = [list(shuffled[a:b]) for a, b in pairwise(cuts)]
            if draw(st.booleans()):  # samples in the order of the store: whole columns
                pieces = [sorted(piece) for piece in pieces]
            chosen = draw(st.lists(st.sampled_from(pieces), min_size=1, unique_by=tuple))
            events.append(
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
                same = draw(st.booleans())
                batches.append(
                    (
                        cohort.ids(fresh, n),
                        start["layout"] if same else draw(layouts),
                        draw(st.sampled_from([2, 3])),
                    )
                )
                present += cohort.ids(fresh, n)
                fresh += n
            events.append(("append", batches))
    return start, events


def _tell(story: tuple[dict, list], icechunk: bool, impl: str, executor: str) -> None:
    start, events = story
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = cohort.make_arrays(start["n_variants"], start["samples"], seed=start["seed"], fields=FIELDS)
        store = folder / "store.vcz"
        cohort.write_vcz(store, model, **start["layout"])
        if icechunk:
            vczstore.copy_store_to_icechunk(store, folder / "repository")
            store = folder / "repository"
        for i, (what, details) in enumerate(events):
            if what == "compact":
                output = None if icechunk or i % 2 else folder / f"compacted-{i}.vcz"
                vczstore.compact(store, output, impl=impl, executor=executor)
                store, model = output or store, cohort.expected_compact(model)
                continue
            if what == "remove":
                vczstore.remove(store, details, impl=impl, executor=executor)
                model = cohort.expected_remove(model, details)
                continue
            paths = []
            for j, (samples, layout, zarr_format) in enumerate(details):
                batch = cohort.make_arrays(start["n_variants"], samples, seed=100 * i + j, fields=FIELDS)
                paths.append(folder / f"batch-{i}-{j}.vcz")
                shards = layout["shards"] if zarr_format == 3 else None
                cohort.write_vcz(paths[-1], batch, **{**layout, "zarr_format": zarr_format, "shards": shards})
                model = (cohort.expected_append if what == "append" else cohort.expected_update)(model, batch)
            operation = vczstore.append if what == "append" else vczstore.update
            operation(store, *paths, impl=impl, executor=executor)
        place: zarr.abc.store.Store | Path = cohort.icechunk_store(store) if icechunk else store
        cohort.assert_same(cohort.read_vcz(place), model)
        assert vczstore.verify(store, impl="zarr").errors == []


@costly
@given(stories())
def test_cubed(story: tuple[dict, list]) -> None:
    _tell(story, icechunk=False, impl="cubed", executor="threads")


@costly
@given(stories())
def test_icechunk_cubed(story: tuple[dict, list]) -> None:
    _tell(story, icechunk=True, impl="cubed", executor="single-threaded")


@costly
@given(stories())
def test_zarr(story: tuple[dict, list]) -> None:
    _tell(story, icechunk=False, impl="zarr", executor="threads")


@settings(costly, max_examples=4)
@given(stories())
def test_xarray(story: tuple[dict, list]) -> None:
    _tell(story, icechunk=False, impl="xarray", executor="threads")
