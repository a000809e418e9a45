"""`append` and `remove` on every kind of store, with every implementation, compared with the NumPy model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

import vczstore
from tests.support import cohort
from tests.support.covering import in_turn
from tests.support.small_stores import repository_of
from tests.support.ways import IMPLS, WRITTEN, Way
from vczstore.errors import SampleError


@in_turn(kind=WRITTEN, impl=IMPLS, n={"aligned": 6, "ragged": 7})
@pytest.mark.slow
def test_append(way: Way, tmp_path: Path, n: int) -> None:
    old = cohort.some_arrays(10, cohort.ids(0, n))
    batches = [
        cohort.some_arrays(10, cohort.ids(n, 5), seed=1),
        cohort.some_arrays(10, cohort.ids(n + 5, 4), seed=2),
    ]
    store = way.make(tmp_path, old)
    for i, batch in enumerate(batches):
        cohort.write_vcz(tmp_path / f"batch{i}.vcz", batch)
    result = vczstore.append(store, tmp_path / "batch0.vcz", tmp_path / "batch1.vcz", **way.options)
    assert result.committed
    assert result.counts == {"sources": 2, "samples added": 9}
    cohort.assert_same(way.read(store), cohort.expected_append(old, *batches))


@in_turn(kind=WRITTEN, impl=IMPLS)
@pytest.mark.slow
def test_remove(way: Way, tmp_path: Path) -> None:
    old = cohort.some_arrays(10, cohort.ids(0, 11))
    store = way.make(tmp_path, old)
    gone = ["S0001", "S0009", "S0010", "S0000"]
    result = vczstore.remove(store, gone, **way.options)
    assert result.counts == {"samples removed": 4}
    cohort.assert_same(way.read(store), cohort.expected_remove(old, gone))


@pytest.mark.parametrize("kind", ["format2", "format3"])
@pytest.mark.slow
def test_a_removal_that_was_stopped_between_two_ids_is_completed(kind: str, tmp_path: Path) -> None:
    """The IDs lie in different chunks of sample_id. The hashes, which are written first, identify the removed one."""
    old, gone = cohort.some_arrays(10, cohort.ids(0, 11)), ["S0001", "S0009"]
    way = Way(kind, "cubed")
    store = way.make(tmp_path, old)
    plan = vczstore.plan("remove", store, gone)
    transaction = plan.store.transaction(plan.base)
    *before, blank = plan.edits
    with transaction.step(plan.preparations, [*before, replace(blank, positions=np.array([9]))]) as target:
        for write in plan.writes:
            write.by_zarr(target)
    with pytest.raises(SampleError, match="has no sample S0042"):
        vczstore.remove(store, ["S0001", "S0042"])
    assert vczstore.remove(store, gone).counts == {"samples removed": 1, "samples removed before": 1}
    cohort.assert_same(way.read(store), cohort.expected_remove(old, gone))
    with pytest.raises(SampleError, match=r"has no sample S0001, S0009.*2 of the samples were removed before"):
        vczstore.remove(store, gone)


@in_turn(kind=WRITTEN, impl=("cubed", "xarray", "zarr"))
@pytest.mark.slow
def test_append_after_remove(way: Way, tmp_path: Path) -> None:
    old = cohort.some_arrays(10, cohort.ids(0, 5))
    batch = cohort.some_arrays(10, ["S0001", "S0005"], seed=3)
    store = way.make(tmp_path, old)
    cohort.write_vcz(tmp_path / "batch.vcz", batch)
    vczstore.remove(store, "S0001", **way.options)
    vczstore.append(store, tmp_path / "batch.vcz", allow_returning=True, **way.options)
    cohort.assert_same(way.read(store), cohort.expected_append(cohort.expected_remove(old, ["S0001"]), batch))


@in_turn(kind=WRITTEN, impl=IMPLS, zarr_format=(3, 2))
@pytest.mark.slow
def test_append_from_other_layouts(way: Way, tmp_path: Path, zarr_format: int) -> None:
    """Other chunks, codecs, format and byte layout: the source is re-chunked on the fly."""
    old, batch = cohort.some_arrays(10, cohort.ids(0, 7)), cohort.some_arrays(10, cohort.ids(7, 8), seed=1)
    store = way.make(tmp_path, old)
    cohort.write_vcz(
        tmp_path / "batch.vcz",
        batch,
        zarr_format=zarr_format,
        variants_chunk=7,
        samples_chunk=5,
        compressors=None,
    )
    before = {n: (a.chunks, a.compressors) for n, a in zarr.open_group(_zarr(way, store), mode="r").arrays()}
    vczstore.append(store, tmp_path / "batch.vcz", **way.options)
    cohort.assert_same(way.read(store), cohort.expected_append(old, batch))
    after = {n: (a.chunks, a.compressors) for n, a in zarr.open_group(_zarr(way, store), mode="r").arrays()}
    assert after == before


@pytest.mark.parametrize("impl", ["zarr", "cubed", "xarray"])
@pytest.mark.slow
def test_sharded(tmp_path: Path, impl: str) -> None:
    old, batch = cohort.some_arrays(17, cohort.ids(0, 7)), cohort.some_arrays(17, cohort.ids(7, 8), seed=1)
    cohort.write_vcz(tmp_path / "store.vcz", old, shards=(2, 2))
    cohort.write_vcz(tmp_path / "batch.vcz", batch, shards=(3, 1))
    vczstore.append(tmp_path / "store.vcz", tmp_path / "batch.vcz", impl=impl)
    vczstore.remove(tmp_path / "store.vcz", ["S0003", "S0014"], impl=impl)
    expected = cohort.expected_remove(cohort.expected_append(old, batch), ["S0003", "S0014"])
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), expected)


@pytest.mark.slow
def test_sharded_columns_are_copied_verbatim(tmp_path: Path) -> None:
    old, batch = cohort.some_arrays(17, cohort.ids(0, 6)), cohort.some_arrays(17, cohort.ids(6, 8), seed=1)
    cohort.write_vcz(tmp_path / "store.vcz", old, shards=(2, 2))
    cohort.write_vcz(tmp_path / "batch.vcz", batch, shards=(2, 2))
    result = vczstore.append(tmp_path / "store.vcz", tmp_path / "batch.vcz")
    assert result.plan.decoded_chunks == 0
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_append(old, batch))


def _zarr(way: Way, store: Path) -> object:
    return cohort.icechunk_store(store) if way.kind == "icechunk" else store


@pytest.mark.slow
def test_an_aligned_append_writes_only_the_batch(tmp_path: Path) -> None:
    """An aligned append writes chunks of the batch, shapes, and the state of AC, but touches no old chunk."""
    old, batch = cohort.some_arrays(10, cohort.ids(0, 6)), cohort.some_arrays(10, cohort.ids(6, 3), seed=1)
    cohort.write_vcz(tmp_path / "store.vcz", old)
    cohort.write_vcz(tmp_path / "batch.vcz", batch)
    before = cohort.digest(tmp_path / "store.vcz")
    result = vczstore.append(tmp_path / "store.vcz", tmp_path / "batch.vcz")
    after = cohort.digest(tmp_path / "store.vcz")
    changed = {name for name in before if after[name] != before[name]}
    samples_arrays = [name for name in old if "samples" in cohort.DIMENSIONS[name]]
    assert changed == {"zarr.json", *(f"{name}/zarr.json" for name in samples_arrays)}
    assert result.plan.decoded_chunks == 0
    # 10 variants in chunks of 4 are three rows of chunks
    assert len(after) - len(before) == sum(3 if "variants" in cohort.DIMENSIONS[n] else 1 for n in samples_arrays)


@pytest.mark.parametrize("n", [6, 7], ids=["aligned", "ragged"])
@pytest.mark.parametrize("impl", ["zarr", "cubed", "xarray"])
@pytest.mark.slow
def test_sparse_chunks_stay_absent_and_replace_stale_ones(tmp_path: Path, n: int, impl: str) -> None:
    old, batch = cohort.some_arrays(8, cohort.ids(0, n)), cohort.some_arrays(8, cohort.ids(n, 6), seed=1)
    batch["call_DP"][:4] = 0
    batch["call_genotype"][...] = 0
    cohort.write_vcz(tmp_path / "store.vcz", old, skip_empty=True)
    cohort.write_vcz(tmp_path / "batch.vcz", batch, skip_empty=True)
    # such as an interrupted run may leave beyond the shape
    stale = tmp_path / "store.vcz" / "call_DP" / "c" / "0" / "3"
    stale.write_bytes((tmp_path / "store.vcz" / "call_DP" / "c" / "0" / "0").read_bytes())
    vczstore.append(tmp_path / "store.vcz", tmp_path / "batch.vcz", impl=impl)
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_append(old, batch))
    assert not stale.exists()
    assert not (tmp_path / "store.vcz" / "call_genotype" / "c" / "1" / "3").exists()


@in_turn(kind=WRITTEN, impl=IMPLS, source_format=(3, 2))
@pytest.mark.slow
def test_first_batch_of_a_variants_list(way: Way, tmp_path: Path, source_format: int) -> None:
    batch = cohort.some_arrays(10, cohort.ids(0, 8))
    fields = [n for n in batch if "samples" not in cohort.DIMENSIONS[n] or n == "sample_id"]
    empty = {n: batch[n][:0] if n == "sample_id" else batch[n] for n in fields}
    store = way.make(tmp_path, empty, samples_chunk=1)
    cohort.write_vcz(tmp_path / "batch.vcz", batch, zarr_format=source_format)
    vczstore.append(store, tmp_path / "batch.vcz", **way.options)
    cohort.assert_same(way.read(store), batch)
    more = cohort.some_arrays(10, cohort.ids(8, 2), seed=5)
    cohort.write_vcz(tmp_path / "more.vcz", more)
    vczstore.append(store, tmp_path / "more.vcz", **way.options)
    cohort.assert_same(way.read(store), cohort.expected_append(batch, more))


@pytest.mark.parametrize("impl", ["zarr", "cubed", "xarray"])
@pytest.mark.slow
def test_narrower_and_wider_integers(tmp_path: Path, impl: str) -> None:
    old, batch = cohort.some_arrays(10, cohort.ids(0, 4)), cohort.some_arrays(10, cohort.ids(4, 4), seed=1)
    batch["call_AD"] = batch["call_AD"].astype("i1")  # always fits
    batch["call_DP"] = batch["call_DP"].astype("i8")  # values have to be checked
    cohort.write_vcz(tmp_path / "store.vcz", old)
    cohort.write_vcz(tmp_path / "batch.vcz", batch)
    vczstore.append(tmp_path / "store.vcz", tmp_path / "batch.vcz", impl=impl)
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_append(old, batch))


@pytest.mark.slow
def test_stores_as_objects(tmp_path: Path) -> None:
    old, batch = cohort.some_arrays(10, cohort.ids(0, 4)), cohort.some_arrays(10, cohort.ids(4, 3), seed=1)
    memory, source = zarr.storage.MemoryStore(), zarr.storage.MemoryStore()
    cohort.write_vcz(memory, old)
    cohort.write_vcz(source, batch)
    vczstore.append(memory, source)
    expected = cohort.expected_append(old, batch)
    cohort.assert_same(cohort.read_vcz(memory), expected)

    vczstore.copy_store_to_icechunk(memory, tmp_path / "repository")
    repository = repository_of(tmp_path / "repository")
    result = vczstore.remove(repository, "S0002", executor="processes")
    session = repository.readonly_session("main")
    assert result.snapshot == session.snapshot_id
    cohort.assert_same(cohort.read_vcz(session.store), cohort.expected_remove(expected, ["S0002"]))


@pytest.mark.parametrize("backend", ["obstore", "fsspec", "zarr"])
@pytest.mark.slow
def test_backends(tmp_path: Path, backend: str) -> None:
    old, batch = cohort.some_arrays(10, cohort.ids(0, 4)), cohort.some_arrays(10, cohort.ids(4, 3), seed=1)
    cohort.write_vcz(tmp_path / "store.vcz", old)
    cohort.write_vcz(tmp_path / "batch.vcz", batch)
    store = tmp_path / "store.vcz"
    vczstore.append(store if backend == "zarr" else store.as_uri(), tmp_path / "batch.vcz", backend_storage=backend)
    vczstore.remove(str(store), ["S0005"], backend_storage=backend)
    expected = cohort.expected_remove(cohort.expected_append(old, batch), ["S0005"])
    cohort.assert_same(cohort.read_vcz(store), expected)


@pytest.mark.slow
def test_large_fill_nan_survives(tmp_path: Path) -> None:
    """A chunk of missing floats is not dropped if the fill value of the array is another NaN."""
    old, batch = cohort.some_arrays(4, cohort.ids(0, 4)), cohort.some_arrays(4, cohort.ids(4, 4), seed=1)
    batch["call_GL"][...] = cohort.MISSING
    cohort.write_vcz(tmp_path / "store.vcz", old, fill_values={"call_GL": np.nan})
    cohort.write_vcz(tmp_path / "batch.vcz", batch, fill_values={"call_GL": np.nan})
    vczstore.append(tmp_path / "store.vcz", tmp_path / "batch.vcz")
    vczstore.remove(tmp_path / "store.vcz", cohort.ids(0, 8))
    expected = cohort.expected_remove(cohort.expected_append(old, batch), cohort.ids(0, 8))
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), expected)
