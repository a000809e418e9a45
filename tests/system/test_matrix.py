"""
Append, update and remove against the NumPy model, on every kind of store, by every implementation and executor.

Implementations zarr and cubed run on every kind of store; other combinations are sampled.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import zarr
from filelock import FileLock

import vczstore
from plans.compilers.append import compile_append
from plans.compilers.remove import compile_remove
from plans.compilers.update import compile_update
from plans.core.memory import Memory
from tests.support import cohort
from tests.support.paths import ROOT
from tests.support.ways import FLEXIBLE, IMPLS, KINDS, Way
from vczstore.execution.engine import run_plans
from vczstore.execution.options import Options
from vczstore.stores.resolve import open_store

type Arrays = dict[str, np.ndarray]

LEGACY = "format2_legacy"
N_VARIANTS, VARIANTS_CHUNK, SAMPLES_CHUNK = 10, 4, 3
OLD, BATCHES = cohort.ids(0, 7), (cohort.ids(7, 5), cohort.ids(12, 4))
"""7 samples in chunks of 3, then 5 and 4: the first batch starts in a partial column, the second on a boundary."""
GONE = ["S0013", "S0000", "S0006", "S0007", "S0002"]
"""Removed samples from the store and both batches, and from full, shared and neighbouring chunk columns."""

FIELDS = ("sample_sex", "call_genotype", "call_GL", "call_FT", "call_FC")
"""Fields for executors other than threads: one for each kind of dtype that is pickled differently."""
ALL_FIELDS = ("zarr", "cubed")
"""Implementations tested on threads with all fields. That of xarray, the slowest, has all fields only on Icechunk."""


def _arrays(way: Way, samples: list[str], seed: int) -> Arrays:
    arrays = cohort.make_arrays(N_VARIANTS, samples, seed=seed)
    if way.executor == "threads" and (way.impl in ALL_FIELDS or way.kind == "icechunk"):
        return arrays
    return {n: a for n, a in arrays.items() if "samples" not in cohort.DIMENSIONS[n] or n in (*FIELDS, "sample_id")}


IN_PROCESS = [
    *(Way(kind, impl) for kind in KINDS for impl in ("zarr", "cubed")),
    *(Way(kind, "xarray") for kind in ("format2", "icechunk")),
    *(Way(kind, "cubed", "single-threaded") for kind in ("format2", "icechunk")),
    *(Way(kind, impl) for kind, impl in zip(FLEXIBLE, ("zarr", "cubed"), strict=True)),
]
"""One row per kind for impl zarr, because it has no tasks and so no executor."""
IN_PROCESSES = [
    *(Way(kind, "cubed", "processes") for kind in ("format2", "icechunk", "icechunk_flexible")),
    Way("format3", "xarray", "processes"),
]


# ---- stores ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Legacy:
    """zarr-python 2.18 in a separate environment, and a folder for the stores it writes."""

    python: Path
    folder: Path

    def _run(self, *args: object) -> None:
        script = ROOT / "tests" / "support" / "legacy.py"
        subprocess.run([self.python, script, *args], check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})

    def write(self, store: Path, arrays: Arrays) -> None:
        """Write a store; each is written once for all workers, and copied."""
        samples = arrays["sample_id"]
        original = self.folder / f"{samples[0]}-{len(samples)}-{len(arrays)}.vcz"
        with FileLock(f"{original}.lock"):
            if not (original / ".zmetadata").exists():
                saved = original.with_suffix(".npz")
                np.savez(saved, **{n: v.astype("U") if v.dtype.kind == "O" else v for n, v in arrays.items()})
                layout = original.with_suffix(".json")
                layout.write_text(json.dumps({name: self._layout(name, values) for name, values in arrays.items()}))
                self._run("write", saved, layout, original)
        shutil.copytree(original, store)

    @staticmethod
    def _layout(name: str, values: np.ndarray) -> dict[str, object]:
        dimensions, width = cohort.DIMENSIONS[name], {"variants": VARIANTS_CHUNK, "samples": SAMPLES_CHUNK}
        return {
            "dimensions": dimensions,
            "chunks": [width.get(d, n) for d, n in zip(dimensions, values.shape, strict=True)],
            "is_string": values.dtype.kind == "O",
        }

    def read(self, store: Path) -> tuple[Arrays, Arrays]:
        """All arrays of a store, read by zarr-python 2.18 with and without consolidated metadata."""
        saved = store.with_suffix(".read.npz")
        self._run("read", store, saved)
        with np.load(saved) as arrays:
            return tuple(
                {name.removeprefix(mode): arrays[name] for name in arrays if name.startswith(mode)}
                for mode in ("consolidated/", "plain/")
            )


@pytest.fixture(scope="session")
def legacy(legacy_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Legacy:
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder) / "legacy"
    folder.mkdir(exist_ok=True)
    return Legacy(legacy_python, folder)


@dataclass(frozen=True)
class Cohort:
    """A store and batches for it, on disk and as arrays."""

    way: Way
    store: Path
    batches: tuple[Path, ...]
    old: Arrays
    incoming: tuple[Arrays, ...]
    legacy: Legacy | None

    def assert_holds(self, expected: Arrays) -> None:
        """Assert that the store has these arrays, with every reader."""
        cohort.assert_same(self.way.read(self.store), expected)
        if self.legacy is not None:
            for arrays in self.legacy.read(self.store):
                cohort.assert_same(arrays, expected)
            group = zarr.open_group(self.store, mode="r", use_consolidated=True)
            cohort.assert_same({name: np.asarray(array[...]) for name, array in group.arrays()}, expected)


type MakeCohort = Callable[[Way], Cohort]


@pytest.fixture
def make_cohort(tmp_path: Path, request: pytest.FixtureRequest) -> MakeCohort:
    """Return a function that writes a store and two batches of different Zarr formats."""

    def make(way: Way) -> Cohort:
        arrays = [_arrays(way, samples, seed=i) for i, samples in enumerate([OLD, *BATCHES])]
        paths = [tmp_path / "batch1.vcz", tmp_path / "batch2.vcz"]
        legacy: Legacy | None = None
        if way.kind == LEGACY:
            legacy = request.getfixturevalue("legacy")
            store = tmp_path / "store.vcz"
            legacy.write(store, arrays[0])
            legacy.write(paths[0], arrays[1])
        else:
            store = way.make(tmp_path, arrays[0], variants_chunk=VARIANTS_CHUNK, samples_chunk=SAMPLES_CHUNK)
            cohort.write_vcz(paths[0], arrays[1], zarr_format=2 if way.kind == "format2" else 3)
        cohort.write_vcz(paths[1], arrays[2], zarr_format=3 if way.kind == "format2" else 2)
        return Cohort(way, store, tuple(paths), arrays[0], tuple(arrays[1:]), legacy)

    return make


# ---- tests ----------------------------------------------------------------------------------


def _check(result: vczstore.Result, way: Way, counts: dict[str, int]) -> None:
    assert result.committed
    assert result.counts == counts
    assert (result.snapshot is not None) == way.is_icechunk
    assert (result.tasks is None) == (way.impl == "zarr")


def _append(case: Cohort) -> Arrays:
    before = [cohort.digest(batch) for batch in case.batches]
    result = vczstore.append(case.store, *case.batches, **case.way.options)
    _check(result, case.way, {"sources": 2, "samples added": 9})
    assert [cohort.digest(batch) for batch in case.batches] == before
    return cohort.expected_append(case.old, *case.incoming)


def _remove(case: Cohort, present: Arrays, removed: list[str]) -> Arrays:
    result = vczstore.remove(case.store, removed, **case.way.options)
    _check(result, case.way, {"samples removed": len(removed)})
    return cohort.expected_remove(present, removed)


def _recall(case: Cohort, samples: list[str]) -> tuple[Path, Arrays]:
    """Write re-called samples from both ends of the store, with a different order, chunks and Zarr format."""
    recalled = _arrays(case.way, [samples[i] for i in (-1, 0, 4, 1, -2)], seed=9)
    source = case.store.with_name("recalled.vcz")
    other = 2 if case.way.kind in ("format3", "icechunk", *FLEXIBLE) else 3
    cohort.write_vcz(source, recalled, zarr_format=other, variants_chunk=3, samples_chunk=2)
    return source, recalled


def _update(case: Cohort, present: Arrays) -> Arrays:
    source, recalled = _recall(case, present["sample_id"].tolist())
    before = cohort.digest(source)
    result = vczstore.update(case.store, source, **case.way.options)
    _check(result, case.way, {"sources": 1, "samples updated": 5})
    assert cohort.digest(source) == before
    return cohort.expected_update(present, recalled)


@pytest.mark.parametrize("way", IN_PROCESS, ids=lambda way: way.id)
@pytest.mark.slow
def test_append_then_update_then_remove(way: Way, make_cohort: MakeCohort) -> None:
    """Run the operations in separate calls."""
    case = make_cohort(way)
    appended = _append(case)
    case.assert_holds(appended)
    updated = _update(case, appended)
    case.assert_holds(updated)
    case.assert_holds(_remove(case, updated, GONE))


@pytest.mark.slow
@pytest.mark.parametrize("way", IN_PROCESSES, ids=lambda way: way.id)
def test_append_update_and_remove_in_one_run(way: Way, make_cohort: MakeCohort) -> None:
    """Run the plans together, because processes start slowly; each is compiled for the result of the previous one."""
    case = make_cohort(way)
    appended = cohort.expected_append(case.old, *case.incoming)
    source, recalled = _recall(case, appended["sample_id"].tolist())
    store, memory = open_store(case.store), Memory()
    batches = [open_store(batch).open() for batch in case.batches]
    plans = [compile_append(store, store.open(), batches, memory)]
    plans.append(compile_update(store, plans[-1].after, [open_store(source).open()], memory))
    plans.append(compile_remove(store, plans[-1].after, GONE, memory))
    results = run_plans(plans, "all", {}, Options(**way.options))
    for result, counts in zip(
        results,
        ({"sources": 2, "samples added": 9}, {"sources": 1, "samples updated": 5}, {"samples removed": len(GONE)}),
        strict=True,
    ):
        _check(result, way, counts)
    case.assert_holds(cohort.expected_remove(cohort.expected_update(appended, recalled), GONE))


@pytest.mark.slow
def test_the_legacy_store_has_legacy_metadata(make_cohort: MakeCohort) -> None:
    """Control of the rows with the legacy kind: its stores differ from those written by zarr-python 3."""
    case = make_cohort(Way(LEGACY, "zarr"))
    case.assert_holds(case.old)
    assert (case.store / ".zmetadata").exists()
    assert (case.store / "call_AD" / "0" / "2" / "0").exists()
    assert (case.store / "call_DP" / "0.2").exists()
    document = json.loads((case.store / "sample_id" / ".zarray").read_text())
    assert document["fill_value"] == 0
    assert document["filters"] == [{"id": "vlen-utf8"}]
    assert document["dimension_separator"] == "/"


@pytest.mark.slow
def test_a_legacy_store_is_verified_and_compacted(make_cohort: MakeCohort, tmp_path: Path) -> None:
    """zarr-python 2.18 reads the compacted stores, with and without consolidated metadata."""
    case = make_cohort(Way(LEGACY, "cubed"))
    gone = [OLD[1], OLD[4], OLD[5]]
    vczstore.remove(case.store, gone)
    vczstore.compact(case.store, tmp_path / "output.vcz")
    expected = cohort.select(case.old, [sample for sample in OLD if sample not in gone])
    for arrays in case.legacy.read(tmp_path / "output.vcz"):
        cohort.assert_same(arrays, expected)
    vczstore.compact(case.store)
    for arrays in case.legacy.read(case.store):
        cohort.assert_same(arrays, expected)
    for store in (case.store, tmp_path / "output.vcz"):
        assert vczstore.verify(store).errors == []


@pytest.mark.slow
def test_a_legacy_store_is_repaired(make_cohort: MakeCohort) -> None:
    """After repair, zarr-python 2.18 reads either the old or the new samples, also with consolidated metadata."""
    case = make_cohort(Way(LEGACY, "cubed"))
    plan, local = vczstore.plan("append", case.store, case.batches[0]), zarr.storage.LocalStore(case.store)
    for write in plan.writes:
        write.by_zarr(local)
    for edit in plan.edits[:4]:
        edit.apply(local)
    assert len(vczstore.repair(case.store, quick=True).done) == 1
    for arrays in case.legacy.read(case.store):
        cohort.assert_same(arrays, case.old)
    for edit in plan.edits[:-1]:
        edit.apply(local)
    assert len(vczstore.repair(case.store, quick=True).done) == 1
    for arrays in case.legacy.read(case.store):
        cohort.assert_same(arrays, cohort.expected_append(case.old, case.incoming[0]))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.slow
def test_a_legacy_store_moves_to_icechunk(make_cohort: MakeCohort, tmp_path: Path, impl: str) -> None:
    """Some codecs have no equivalent in format 3; then a legacy batch is appended."""
    case = make_cohort(Way(LEGACY, "zarr"))
    moved = Way("icechunk", impl)
    vczstore.copy_store_to_icechunk(case.store, tmp_path / "moved.vcz", **moved.options)
    cohort.assert_same(moved.read(tmp_path / "moved.vcz"), case.old)
    vczstore.append(tmp_path / "moved.vcz", case.batches[0], **moved.options)
    cohort.assert_same(moved.read(tmp_path / "moved.vcz"), cohort.expected_append(case.old, case.incoming[0]))
