"""A task uses no more memory than projected, and no more is projected than allowed."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zarr

import vczstore
from plans.compilers.append import HasSamples
from plans.core.gather_samples import Part, PutSamples
from plans.core.memory import Memory
from tests.support import cohort
from vczstore.execution.results import Result

VARIANTS, SAMPLES, CHUNKS = 16_000, 1500, (1000, 1000)

pytestmark = pytest.mark.slow


def _vcz(path: Path, first: int, n: int, *, dtype: str = "i4", chunks: tuple[int, int] = CHUNKS) -> Path:
    """A VCZ with one call field of 16,000 variants, whose chunks are far larger than anything else in memory."""
    root = zarr.create_group(path, attributes={"vcf_zarr_version": "0.4"})

    def add(name: str, values: np.ndarray, dims: tuple[str, ...], width: tuple[int, ...]) -> None:
        kind = "string" if values.dtype.kind == "O" else values.dtype
        array = root.create_array(name, shape=values.shape, dtype=kind, chunks=width, dimension_names=dims)
        array[...] = values

    add("sample_id", np.array([f"S{i}" for i in range(first, first + n)], dtype="O"), ("samples",), (1000,))
    add("variant_contig", np.zeros(VARIANTS, "i1"), ("variants",), (1000,))
    add("variant_position", np.arange(VARIANTS, dtype="i4"), ("variants",), (1000,))
    add("variant_allele", np.full((VARIANTS, 2), "A", dtype="O"), ("variants", "alleles"), (1000, 2))
    calls = root.create_array(
        "call_DP", shape=(VARIANTS, n), dtype=dtype, chunks=chunks, dimension_names=("variants", "samples")
    )
    for start in range(0, VARIANTS, 1000):
        # hardly compressible, because encoded bytes count as well
        calls[start : start + 1000] = np.random.default_rng(start).integers(0, 100, (1000, n))
    return path


def _store(folder: Path, tmp_path: Path, first: int, n: int) -> Path:
    """Return a copy of a store, to be edited; the original is created once."""
    original = folder / f"{first}-{n}.vcz"
    if not original.exists():
        _vcz(original, first, n)
    return shutil.copytree(original, tmp_path / "store.vcz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    _vcz(folder / "batch.vcz", SAMPLES, 1000)
    _vcz(folder / "wide.vcz", SAMPLES, 1000, dtype="i8")
    _vcz(folder / "other-chunks.vcz", SAMPLES, 1000, chunks=(1700, 300))
    ids = zarr.open_array(_vcz(folder / "shuffled.vcz", SAMPLES, 1000), path="sample_id")
    ids[...] = np.random.default_rng(1).permutation(ids[...])
    return folder


def _one_process() -> dict[str, object]:
    return {"executor": "processes", "max_workers": 1}


@pytest.fixture(scope="module")
def python_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, int]:
    """Peak memory of a worker with hardly any data, keyed by whether the store is atomic (Icechunk)."""
    folder = tmp_path_factory.mktemp("python")
    cohort.write_vcz(folder / "a.vcz", cohort.some_arrays(4, cohort.ids(0, 2)))
    cohort.write_vcz(folder / "b.vcz", cohort.some_arrays(4, cohort.ids(2, 2)))
    vczstore.copy_store_to_icechunk(folder / "a.vcz", folder / "repository")
    peaks = {}
    for store in ("a.vcz", "repository"):
        result = vczstore.append(folder / store, folder / "b.vcz", **_one_process())
        assert result.peak_mem is not None
        peaks[result.plan.store.atomic] = result.peak_mem
    return peaks


def _check(result: Result, python_alone: dict[bool, int]) -> None:
    plan = result.plan
    alone = python_alone[plan.store.atomic]
    assert result.peak_mem is not None
    assert result.peak_mem <= plan.projected_mem <= plan.memory.allowed
    # the memory of the data is projected, not merely covered by the reserved memory
    assert result.peak_mem - alone <= plan.projected_mem - plan.memory.reserved
    if plan.decoded_chunks:
        assert result.peak_mem > alone


@pytest.mark.parametrize(
    ("n", "source"),
    [
        pytest.param(1000, "batch", id="aligned-batch"),
        pytest.param(1000, "wide", id="aligned-wide"),
        pytest.param(SAMPLES, "other-chunks", id="ragged-other-chunks"),
    ],
)
def test_append(folder: Path, tmp_path: Path, python_alone: dict[bool, int], n: int, source: str) -> None:
    store = _store(folder, tmp_path, 0, n)
    result = vczstore.append(store, folder / f"{source}.vcz", **_one_process())
    assert (result.plan.decoded_chunks > 0) == (source != "batch" or n == SAMPLES)
    _check(result, python_alone)


@pytest.mark.parametrize("source", ["other-chunks", "shuffled"])
def test_update(folder: Path, tmp_path: Path, python_alone: dict[bool, int], source: str) -> None:
    """Update samples 500 to 1499 of the store: part of one chunk column, and all of another."""
    store = _store(folder, tmp_path, SAMPLES - 500, SAMPLES)
    result = vczstore.update(store, folder / f"{source}.vcz", **_one_process())
    assert result.plan.encoded_chunks == 0
    _check(result, python_alone)


def test_update_with_less_memory(folder: Path, tmp_path: Path) -> None:
    """With smaller blocks, chunks of a shuffled source are read repeatedly; the result is the same."""
    store, source = _store(folder, tmp_path, SAMPLES - 500, SAMPLES), folder / "shuffled.vcz"
    plan = vczstore.plan("update", store, source, allowed_mem="350MB")
    roomy = vczstore.plan("update", store, source)
    assert plan.projected_mem <= 350_000_000 < roomy.projected_mem
    result = vczstore.run(plan, **_one_process())
    assert result.peak_mem is not None
    assert result.peak_mem <= plan.projected_mem
    order = [int(sample[1:]) - SAMPLES for sample in zarr.open_array(source, path="sample_id")[...]]
    updated = zarr.open_array(store, path="call_DP")[:, 500:]
    np.testing.assert_array_equal(updated[:, order], zarr.open_array(source, path="call_DP")[...])


def test_remove(folder: Path, tmp_path: Path, python_alone: dict[bool, int]) -> None:
    store = _store(folder, tmp_path, 0, SAMPLES)
    _check(vczstore.remove(store, ["S3", "S1200"], **_one_process()), python_alone)


def test_copy(folder: Path, tmp_path: Path, python_alone: dict[bool, int]) -> None:
    result = vczstore.copy_store_to_icechunk(folder / "batch.vcz", tmp_path / "repository", **_one_process())
    _check(result, python_alone)


def _sites(path: Path, first: int) -> Path:
    """A VCZ with 30,000 variants of six alleles, at every third position from `first` on."""
    root = zarr.create_group(path, attributes={"vcf_zarr_version": "0.4"})
    n, rng = 30_000, np.random.default_rng(first)
    alleles = rng.choice(np.array(["A", "C", "ACGTACGTACGT", "<DEL>", "GT" * 20]), (n, 6)).astype("T")
    for name, values, dims, width in (
        ("sample_id", np.array(["S1"], dtype="T"), ("samples",), (1,)),
        ("contig_id", np.array(["1"], dtype="T"), ("contigs",), (1,)),
        ("variant_contig", np.zeros(n, "i1"), ("variants",), (2000,)),
        ("variant_position", np.arange(n, dtype="i4") * 3 + first, ("variants",), (2000,)),
        ("variant_allele", alleles, ("variants", "alleles"), (2000, 6)),
        ("variant_id", np.array([f"rs{i}" for i in range(n)], dtype="T"), ("variants",), (2000,)),
    ):
        dtype = "string" if values.dtype.kind == "T" else values.dtype
        array = root.create_array(name, shape=values.shape, dtype=dtype, chunks=width, dimension_names=dims)
        array[...] = values
    return path


def test_create(tmp_path: Path, python_alone: dict[bool, int]) -> None:
    sources = [_sites(tmp_path / f"{i}.vcz", i) for i in (1, 2)]
    result = vczstore.create(tmp_path / "out.vcz", *sources, **_one_process())
    assert result.peak_mem is not None
    assert result.peak_mem - python_alone[False] <= result.plan.projected_mem - result.plan.memory.reserved
    assert result.peak_mem <= result.plan.projected_mem <= result.plan.memory.allowed
    positions = zarr.open_array(tmp_path / "out.vcz", path="variant_position")[...]
    assert positions.tolist() == [i for i in range(90_000) if i % 3 != 0]
    less = vczstore.create(tmp_path / "less.vcz", *sources, allowed_mem="312MB", **_one_process())
    assert less.peak_mem is not None
    assert less.peak_mem <= less.plan.projected_mem <= 312_000_000 < result.plan.projected_mem


def test_reserved_memory_is_sufficient(python_alone: dict[bool, int]) -> None:
    assert max(python_alone.values()) <= Memory().reserved


def test_less_memory_means_smaller_tasks(folder: Path, tmp_path: Path) -> None:
    """With smaller blocks, a tenth of the free memory is enough; the result is the same."""
    store = _store(folder, tmp_path, 0, SAMPLES)
    plan = vczstore.plan("append", store, folder / "batch.vcz", allowed_mem="350MB")
    roomy = vczstore.plan("append", store, folder / "batch.vcz")
    assert plan.projected_mem <= 350_000_000 < roomy.projected_mem
    assert plan.tasks > roomy.tasks
    result = vczstore.run(plan, **_one_process())
    assert result.peak_mem is not None
    assert result.peak_mem <= plan.projected_mem
    added = zarr.open_array(store, path="call_DP")[:, SAMPLES:]
    np.testing.assert_array_equal(added, zarr.open_array(folder / "batch.vcz", path="call_DP")[...])


@pytest.mark.parametrize("axis", [0, 1])
def test_the_check_of_an_interrupted_append(axis: int) -> None:
    """Arrays whose other axes have many chunks, such as kept reference blocks, are compared chunk by chunk."""
    shape, chunks = ((20, 300_000, 2), (10, 10_000, 1)) if axis == 0 else ((10_000, 20, 60), (10_000, 10, 2))
    values = np.random.default_rng(1).integers(0, 100, shape, dtype="i4")
    dims = ("samples", "blocks", "fields") if axis == 0 else ("variants", "samples", "genotypes")
    target = zarr.create_array({}, name="X", data=values, chunks=chunks, dimension_names=dims)
    new = values[10:] if axis == 0 else values[:, 10:]
    batch = zarr.create_array({}, name="X", data=new, chunks=chunks, dimension_names=dims)
    for source, is_same in ((batch, True), (zarr.create_array({}, data=new + 1, chunks=chunks), False)):
        part = Part(source, slice(0, 10), slice(10, 20))
        check = HasSamples("store", PutSamples.of("append", target, target, [part], Memory()))
        for reader in check.readers(Memory()):
            rows = [reader.range(i).rows for i in range(len(reader.blocks[0]))]
            tracemalloc.start()
            found = [reader.look(r) for r in rows]
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert (not any(found)) == is_same
            assert peak <= reader.mem
