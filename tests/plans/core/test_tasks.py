"""Task sizes and concurrency: few, long tasks where starting one is expensive; all arrays of a plan concurrently."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import networkx as nx
import numpy as np
import pytest
import zarr
from cubed.runtime.pipeline import visit_node_generations
from cubed.runtime.types import CubedPipeline

import executors
import vczstore
from plans.compilers.recompute import compile_recompute
from plans.compilers.restore import RestoreChunks
from plans.core.cubed_backend import compile_plan
from plans.core.memory import Memory
from plans.core.model import Plan
from plans.core.scan_tasks import scan
from plans.core.select_rows import Rows
from plans.variants.region_index import IndexRows
from tests.support import cohort
from tests.support.modal_client import no_token, start
from vczstore.errors import MissingDependencyError, OptionError
from vczstore.jobs.run import plan_job
from vczstore.stores.resolve import open_store

__all__ = ["no_token", "start"]  # fixtures

VARIANTS = 200_000


def _vcz(path: Path, first: int, n: int, variants: int = VARIANTS) -> Path:
    """A large VCZ without chunks of calls, because plans are compiled from metadata and sample IDs."""
    root = zarr.create_group(path, attributes={"vcf_zarr_version": "0.4"})
    fields: dict[str, tuple[str, tuple[str, ...], tuple[int, ...]]] = {
        "sample_id": ("string", ("samples",), (n,)),
        "variant_contig": ("i1", ("variants",), (variants,)),
        "variant_position": ("i4", ("variants",), (variants,)),
        "variant_allele": ("string", ("variants", "alleles"), (variants, 2)),
        "call_genotype": ("i1", ("variants", "samples", "ploidy"), (variants, n, 2)),
        "call_DP": ("i2", ("variants", "samples"), (variants, n)),
    }
    for name, (dtype, dims, shape) in fields.items():
        chunks = tuple(min(1000, size) for size in shape)
        root.create_array(name, shape=shape, dtype=dtype, chunks=chunks, dimension_names=dims)
    root["sample_id"][...] = np.array(cohort.ids(first, n), dtype=object)
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of 4,500 samples and a batch of 2,000, 1.6 GB decoded, in chunks of 2 MB that are not aligned."""
    folder = tmp_path_factory.mktemp("large")
    return _vcz(folder / "store.vcz", 0, 4500), _vcz(folder / "batch.vcz", 4500, 2000)


def _both(large: tuple[Path, Path], **options: Any) -> list[Plan]:
    store, batch = large
    return [vczstore.plan("append", store, batch, **options), vczstore.plan("remove", store, "S0003", **options)]


@pytest.fixture
def function(tmp_path: Path) -> str:
    """Path of an executor file for cloud functions, which are never called."""
    file = tmp_path / "lambda.yaml"
    file.write_text(
        "name: lithops\noptions: {backend: aws_lambda, storage: aws_s3, config: {aws: {region: nowhere}}}\n"
    )
    return str(file)


@pytest.mark.parametrize("allowed", ["2GB", "800MB"])
@pytest.mark.slow
def test_functions_have_few_long_tasks(large: tuple[Path, Path], function: str, allowed: str) -> None:
    local_plans = _both(large, executor="processes", allowed_mem=allowed)
    for executor in (function, "modal"):
        cloud_plans = _both(large, executor=executor, allowed_mem=allowed)
        for local, cloud in zip(local_plans, cloud_plans, strict=True):
            assert cloud.projected_mem <= cloud.memory.allowed
            assert cloud.decoded_chunks == local.decoded_chunks
            assert cloud.bytes_written / cloud.tasks > 30_000_000
            assert cloud.tasks < local.tasks
        if allowed == "2GB":
            assert all(c.tasks < p.tasks / 3 for c, p in zip(cloud_plans, local_plans, strict=True))
    plan, _ = cloud_plans
    cloud_checks, local_checks = plan.cubed_checks(), local_plans[0].cubed_checks()
    assert cloud_checks is not None
    assert local_checks is not None
    assert (cloud_checks.num_tasks, local_checks.num_tasks) == (1, 4)


@pytest.mark.slow
def test_jobs_have_few_long_tasks_too(large: tuple[Path, Path], tmp_path: Path, function: str) -> None:
    store, batch = large
    file = tmp_path / "job.yaml"
    file.write_text(f"store: {store}\nsteps: [append: {batch}]\n")
    tasks = {name: plan_job(file, [f"executor={name}"]).plans[0].tasks for name in ("threads", "modal", function)}
    assert tasks["modal"] == tasks[function] < tasks["threads"] / 3


@pytest.mark.slow
def test_executors_that_start_tasks_slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Lithops configuration determines where tasks run, however it is passed."""
    (tmp_path / "lithops.yaml").write_text("lithops: {backend: gcp_cloudrun}\n")
    cloud: list[dict[str, Any]] = [
        {"backend": "aws_lambda"},
        {"config": {"lithops": {"backend": "aws_lambda"}}},
        {"config-file": str(tmp_path / "lithops.yaml")},
    ]
    assert all(executors.start_seconds("lithops", **options) > 0 for options in cloud)
    here: list[dict[str, Any]] = [{"config": {"aws": {"region": "nowhere"}}}, {**cloud[2], "backend": "localhost"}]
    assert not any(executors.start_seconds("lithops", **options) for options in here)
    monkeypatch.setenv("LITHOPS_CONFIG", '{"lithops": {"backend": "aws_lambda"}}')
    assert executors.start_seconds("lithops", retries=1) > 0
    assert executors.start_seconds("modal") > 0
    assert not any(executors.start_seconds(name) for name in (*executors.LOCAL, *executors.OTHERS))


def test_configuration_errors_are_raised_before_planning(
    large: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, batch = large
    file = tmp_path / "none.yaml"
    file.write_text("name: lithops\noptions: {config-file: nowhere.yaml}\n")
    with pytest.raises(OptionError, match=r"lithops cannot be configured: .*nowhere.yaml"):
        vczstore.plan("append", store, batch, executor=str(file))
    monkeypatch.setitem(sys.modules, "lithops", None)
    with pytest.raises(MissingDependencyError, match="lithops is not installed"):
        vczstore.plan("append", store, batch, executor="lithops")


# ---- memory ---------------------------------------------------------------------------------

LITTLE = Memory(allowed=340_000_000)
"""Enough for some small chunks in addition to the reserved memory."""


def test_checks_of_variants_fit_into_little_memory(tmp_path: Path) -> None:
    store, batch = _vcz(tmp_path / "a.vcz", 0, 3, variants=600_000), _vcz(tmp_path / "b.vcz", 3, 3, variants=600_000)
    tasks = []
    for memory in (LITTLE, Memory()):
        checks = vczstore.plan("append", store, batch, allowed_mem=memory.allowed).cubed_checks()
        assert checks is not None
        tasks.append(checks.num_tasks)
    assert tasks[0] > tasks[1]


def test_few_variants_are_indexed_in_little_memory() -> None:
    contig, position = np.zeros(10, "i1"), np.arange(10, dtype="i4")
    fields = (zarr.create_array({}, data=values, chunks=(4,)) for values in (contig, position, position))
    index = IndexRows(tuple(fields), Rows.of(np.array([[0, 10]])), 5)
    (reader,) = index.readers(LITTLE)
    assert compile_plan([scan(reader, LITTLE.spec())], "regrid") is not None
    assert reader.look(reader.range(0).rows).tolist() == [[0, 0, 0, 4, 7, 5], [1, 0, 5, 9, 17, 5]]
    # of many variants, fewer per task
    many = replace(index, rows=Rows.of(np.array([[0, 10**6]])))
    assert {len(many.readers(Memory(allowed=allowed))) for allowed in (310_000_000, 2 * 10**9)} == {11, 2}


def test_restored_chunks_fit_into_little_memory() -> None:
    array = zarr.create_array({}, name="call_DP", shape=(200_000, 1000), chunks=(1000, 1000), dtype="i4")
    for memory, n_tasks in ((LITTLE, 50), (Memory(), 13)):
        plan = compile_plan(RestoreChunks("call_DP", array, None).by_cubed(array.store, memory), "restore")
        assert plan is not None
        assert plan.num_tasks == n_tasks


def test_fields_are_recomputed_in_little_memory(tmp_path: Path) -> None:
    store = open_store(_vcz(tmp_path / "a.vcz", 0, 3, variants=600_000))
    tasks = []
    for memory in (LITTLE, Memory()):
        writes = compile_recompute(store, store.open(), ["AC", "AN"], memory).cubed_writes(zarr.storage.MemoryStore())
        assert writes is not None
        tasks.append(writes.num_tasks)
    assert tasks[0] > tasks[1]


# ---- concurrency ----------------------------------------------------------------------------


@pytest.mark.slow
def test_arrays_of_a_plan_are_one_generation(small: Any, tmp_path: Path) -> None:
    """Copied and re-encoded columns of all arrays do not wait for each other."""
    store, batch, *_ = small
    cohort.write_vcz(tmp_path / "odd.vcz", cohort.make_arrays(10, cohort.ids(11, 4), seed=2), variants_chunk=3)
    plans = [
        vczstore.plan("append", store, batch, tmp_path / "odd.vcz"),
        vczstore.plan("update", store, _changed(tmp_path)),
        vczstore.plan("remove", store, ["S0001", "S0005"]),
    ]
    for plan in plans:
        compiled = plan.cubed_writes(zarr.storage.MemoryStore())
        assert compiled is not None
        (generation,) = visit_node_generations(compiled.dag)
        assert len(generation) >= len(plan.writes) > 10
    checks = plans[0].cubed_checks()
    assert checks is not None
    assert len(list(visit_node_generations(checks.dag))) == 1


def _changed(folder: Path) -> Path:
    cohort.write_vcz(folder / "changed.vcz", cohort.make_arrays(10, cohort.ids(2, 4), seed=3))
    return folder / "changed.vcz"


@pytest.mark.parametrize("name", [name for name in executors.NAMES if name != "single-threaded"])
@pytest.mark.slow
def test_operations_of_a_generation_run_side_by_side(name: str, tmp_path: Path, request: Any) -> None:
    """Two tasks each wait for the other to start."""
    if name == "modal":
        request.getfixturevalue("start")()
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the tests are not in the containers
    dag = nx.MultiDiGraph()
    for task, peer in (("a", "b"), ("b", "a")):
        dag.add_node(task, pipeline=CubedPipeline(_meet(tmp_path / task, tmp_path / peer), task, [[0]], None))
    engine = executors.create(name, max_workers=2, retries=0)
    try:
        engine.execute_dag(dag)
    finally:
        engine.close()
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def _meet(mine: Path, theirs: Path) -> Callable[..., None]:
    def task(coords: list[int], *, config: None) -> None:
        mine.touch()
        deadline = time.monotonic() + 60
        while not theirs.exists():
            assert time.monotonic() < deadline, "alone"
            time.sleep(0.02)

    return task
