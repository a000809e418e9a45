"""`compact`, compared with a NumPy model, bcftools and vcztools; failures leave the store unchanged."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vczstore
from plans.core.gather_samples import Part
from tests.support import cohort, vcf
from tests.support.layouts import layouts
from tests.support.leaving import FIELDS, GONE, some_arrays
from tests.support.refusals import complain
from tests.support.small_stores import repository_of
from tests.support.ways import IMPLS, WRITTEN, Way
from vczstore.errors import DamagedStoreError, MemoryLimitError, OptionError, StaleError, StorageError


def history(path: Path) -> list[str]:
    return [entry.id for entry in repository_of(path).ancestry(branch="main")]


def keys(store: zarr.abc.store.Store, prefix: str) -> set[str]:
    async def collect() -> set[str]:
        return {key async for key in store.list_prefix(prefix)}

    return asyncio.run(collect())


SOME_WAYS = [Way(kind, impl) for kind in WRITTEN for impl in IMPLS if impl != "xarray" or kind == "icechunk"]


@pytest.fixture
def removed(tmp_path: Path) -> Callable[[Way], tuple[Path, dict[str, np.ndarray]]]:
    """A function that returns a store with removed samples, and its expected contents."""

    def make(way: Way, **layout: object) -> tuple[Path, dict[str, np.ndarray]]:
        old = some_arrays(14)
        store = way.make(tmp_path, old, **layout)
        vczstore.remove(store, GONE, impl="zarr")
        return store, cohort.expected_remove(old, GONE)

    return make


@pytest.mark.parametrize("way", SOME_WAYS, ids=[way.id for way in SOME_WAYS])
@pytest.mark.slow
def test_compact(way: Way, removed: Callable, tmp_path: Path) -> None:
    store, before = removed(way)
    output = None if way.kind == "icechunk" else tmp_path / "output.vcz"
    past = history(store) if output is None else []
    digest = cohort.digest(store)
    result = vczstore.compact(store, output, **way.options)
    assert result.counts == {"samples dropped": 3, "samples kept": 11}
    # a chunk column has 3 chunks of each call array, and one of each sample array; variants have 3 chunks as well
    column = 3 * 3 + 2
    assert result.plan.decoded_chunks == column
    # in place, two columns are renumbered, not written
    assert result.plan.encoded_chunks == (0 if output is None else 3 * column + 3 * 3 + 1)
    if output is None:
        assert history(store) == [result.snapshot, *past]
        cohort.assert_same(way.read(store), cohort.expected_compact(before))
        session = repository_of(store).readonly_session(snapshot_id=past[0])
        cohort.assert_same(cohort.read_vcz(session.store), before)
    else:
        assert cohort.digest(store) == digest
        cohort.assert_same(cohort.read_vcz(output), cohort.expected_compact(before))
    assert vczstore.info(output or store).samples == 11


@pytest.mark.slow
def test_nothing_is_left_beyond_the_new_shapes(removed: Callable, tmp_path: Path) -> None:
    """Dropped chunks are neither listed, nor visible when the axis grows again, because Icechunk deletes them."""
    way = Way("icechunk", "cubed")
    store, before = removed(way)
    vczstore.compact(store)
    chunks = {key.partition("/c/")[2] for key in keys(cohort.icechunk_store(store), "call_GL/")} - {""}
    assert chunks == {f"{row}/{column}/0" for row in range(3) for column in range(4)}
    session = repository_of(store).writable_session("main")
    zarr.open_array(session.store, path="call_GL", mode="r+").resize((10, 30, 3))
    assert (zarr.open_array(session.store, path="call_GL", mode="r")[:, 11:] == 0).all()
    batch = cohort.make_arrays(10, [*GONE, "S0100"], seed=1)
    batch = {name: batch[name] for name in FIELDS}
    cohort.write_vcz(tmp_path / "batch.vcz", batch)
    vczstore.append(store, tmp_path / "batch.vcz", allow_returning=True)
    cohort.assert_same(way.read(store), cohort.expected_append(cohort.expected_compact(before), batch))


@pytest.mark.parametrize("kind", ["format3", "icechunk"])
@pytest.mark.slow
def test_many_withdrawals_cost_one_pass(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 1,000 samples spread over 100 chunk columns, only these columns are read and written, each once."""
    n, width, first = 4_000, 20, 100  # 200 columns, of which the second half is touched
    arrays = cohort.make_arrays(8, cohort.ids(0, n))
    arrays = {name: arrays[name] for name in ("sample_id", "variant_position", "call_genotype", "call_DP")}
    way = Way(kind, "cubed", "single-threaded")
    store = way.make(tmp_path, arrays, samples_chunk=width)
    gone = [f"S{i:04d}" for i in range(first * width + 1, n, 2)]
    assert len(gone) == 1_000

    removal = vczstore.remove(store, gone, **way.options)
    # two chunk rows in each column, of two fields
    assert removal.plan.chunks_read == removal.plan.decoded_chunks == removal.chunks == 100 * 2 * 2
    expected = cohort.expected_remove(arrays, gone)
    cohort.assert_same(way.read(store), expected)

    read = list[tuple[str, int, int]]()
    original_put = Part.put

    def put(self: Part, values: np.ndarray, axis: int, here: Any, there: Any) -> None:
        positions, _ = self.within(there[axis])
        read.extend((self.array.path, there[0].start, int(column)) for column in np.unique(positions // width))
        original_put(self, values, axis, here, there)

    monkeypatch.setattr(Part, "put", put)
    compaction = vczstore.compact(store, **way.options)
    # 100 columns become 50; the columns before them are linked, or stay in place
    columns = 50 * (2 * 2 + 1)
    assert compaction.plan.decoded_chunks == columns
    assert compaction.plan.encoded_chunks == (0 if kind == "icechunk" else 100 * (2 * 2 + 1) + 2)
    assert compaction.plan.bytes_read == compaction.plan.bytes_written
    assert compaction.chunks == compaction.plan.encoded_chunks + columns
    assert len(read) == len(set(read))
    assert {column for _, _, column in read} == set(range(100, 200))
    cohort.assert_same(way.read(store), cohort.expected_compact(expected))


@pytest.mark.slow
def test_other_processes(removed: Callable) -> None:
    """Tasks read the base snapshot while others write to the same chunks."""
    store, before = removed(Way("icechunk", "cubed"))
    vczstore.compact(store, executor="processes", max_workers=2)
    cohort.assert_same(Way("icechunk", "cubed").read(store), cohort.expected_compact(before))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.data(), st.integers(1, 13), layouts, st.sampled_from(["format2", "format3", "icechunk"]), st.sampled_from("cz")
)
@pytest.mark.slow
def test_random_stores(data: st.DataObject, n: int, layout: dict, kind: str, impl: str) -> None:
    gone = data.draw(st.sets(st.sampled_from(cohort.ids(0, n))))
    if kind == "format2":
        layout = {**layout, "shards": None}
    with tempfile.TemporaryDirectory() as name:
        way = Way(kind, {"c": "cubed", "z": "zarr"}[impl])
        model = some_arrays(n)
        store = way.make(Path(name), model, **layout)
        if gone:
            vczstore.remove(store, sorted(gone), impl="zarr")
        expected = cohort.expected_compact(cohort.expected_remove(model, sorted(gone)))
        if kind == "icechunk":
            vczstore.compact(store, **way.options)
            cohort.assert_same(way.read(store), expected)
        vczstore.compact(store, Path(name, "output.vcz"), **way.options)
        cohort.assert_same(cohort.read_vcz(Path(name, "output.vcz")), expected)


@pytest.mark.parametrize("kind", ["format2", "icechunk"])
@pytest.mark.slow
def test_bcftools_and_vcztools(tmp_path: Path, kind: str) -> None:
    """A compacted store agrees with the VCF without the removed samples, also after an append."""
    text, (first, second, _) = vcf.EXAMPLES["calls"].make(), vcf.EXAMPLES["calls"].parts
    whole = vcf.write_vcf(tmp_path / "whole.vcf.gz", text)
    part = vcf.split_by_samples(whole, [*first, *second], tmp_path / "part.vcf.gz")
    rest = [s for s in vcf.EXAMPLES["calls"].samples if s not in (*first, *second)]
    later = vcf.split_by_samples(whole, rest, tmp_path / "later.vcf.gz")
    store, batch = (tmp_path / name for name in ("store.vcz", "batch.vcz"))
    zarr_format = 2 if kind == "format2" else 3
    vcf.to_vcz(part, tmp_path / "part.vcz", zarr_format, 16, 3)
    vcf.to_vcz(later, batch, zarr_format, 16, 3)
    gone = [first[1], first[4], *second[:3]]
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(tmp_path / "part.vcz", store)
        vczstore.remove(store, gone)
        vczstore.compact(store)
    else:
        vczstore.remove(tmp_path / "part.vcz", gone)
        vczstore.compact(tmp_path / "part.vcz", store)
    vczstore.append(store, batch)
    expected = vcf.bcftools_records(whole, without=gone)
    assert vcf.records(vcf.vcztools_view(store, icechunk=kind == "icechunk")) == expected


@pytest.mark.slow
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_metadata_documents_are_kept(tmp_path: Path, zarr_format: int) -> None:
    """Unknown metadata are kept; consolidated metadata have the new shapes."""
    old = some_arrays(7)
    store, output = tmp_path / "store.vcz", tmp_path / "output.vcz"
    cohort.write_vcz(store, old, zarr_format=zarr_format)
    zarr.open_group(store, mode="r+").attrs["owner"] = {"name": "biobank"}
    zarr.open_array(store / "call_GL", mode="r+").attrs["description"] = "Likelihoods"
    zarr.consolidate_metadata(store, zarr_format=zarr_format)
    vczstore.remove(store, ["S0001", "S0002"])
    vczstore.compact(store, output)
    group = zarr.open_group(output, mode="r", use_consolidated=True)
    assert group.attrs.asdict() == zarr.open_group(store, mode="r").attrs.asdict()
    assert group["call_GL"].shape == (10, 5, 3)
    assert group["call_GL"].attrs["description"] == "Likelihoods"
    name = "zarr.json" if zarr_format == 3 else ".zarray"
    for path in old:
        documents = [json.loads((place / path / name).read_text()) for place in (store, output)]
        before, after = ({k: v for k, v in d.items() if k != "shape"} for d in documents)
        assert after == before


def test_nothing_to_do(tmp_path: Path) -> None:
    """Nothing is committed, and the current snapshot is returned."""
    way = Way("icechunk", "cubed")
    store = way.make(tmp_path, some_arrays(5))
    before = history(store)
    result = vczstore.compact(store)
    assert result.snapshot == before[0]
    assert result.counts == {"samples dropped": 0, "samples kept": 5}
    assert history(store) == before


# ---- failures -------------------------------------------------------------------------------


@pytest.mark.slow
def test_output_paths_that_are_taken(removed: Callable, tmp_path: Path) -> None:
    store, _ = removed(Way("format3", "cubed"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("")
    before = cohort.digest(tmp_path)
    for taken in (store, tmp_path / "file", tmp_path / "folder"):
        words = (str(taken), "choose another path")
        complain(OptionError, words, lambda taken=taken: vczstore.compact(store, taken))
    tiny = {"allowed_mem": 300_001_500, "reserved_mem": 300_000_000}
    complain(MemoryLimitError, ("compact: ",), lambda: vczstore.compact(store, tmp_path / "output", **tiny))
    vczstore.compact(store, tmp_path / "output", dry_run=True)
    assert cohort.digest(tmp_path) == before
    assert not (tmp_path / "output").exists()


def test_an_output_path_that_was_taken_after_planning(removed: Callable, tmp_path: Path) -> None:
    store, _ = removed(Way("format3", "cubed"))
    plan = vczstore.plan("compact", store, tmp_path / "output")
    cohort.write_vcz(tmp_path / "output", cohort.make_arrays(3, ["other"]))
    before = cohort.digest(tmp_path)
    complain(OptionError, (str(tmp_path / "output"), "exists"), lambda: vczstore.run(plan))
    assert cohort.digest(tmp_path) == before


@pytest.mark.parametrize("column", [2, 3], ids=["decoded", "copied as it is"])
@pytest.mark.slow
def test_truncated_chunk(removed: Callable, tmp_path: Path, column: int) -> None:
    """The store is unchanged; once the chunk is repaired and the partial copy deleted, a rerun succeeds."""
    store, before = removed(Way("format3", "cubed"))
    chunk = store / "call_GL" / "c" / "1" / str(column) / "0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-4])
    digest = cohort.digest(store)
    output = tmp_path / "output.vcz"
    words = ("compact: ", "call_GL", "delete", "again")
    complain(StorageError, words, lambda: vczstore.compact(store, output))
    assert cohort.digest(store) == digest
    assert not (output / "zarr.json").exists()
    complain(OptionError, (str(output), "delete"), lambda: vczstore.compact(store, output))

    chunk.write_bytes(whole)
    shutil.rmtree(output)
    vczstore.compact(store, output)
    cohort.assert_same(cohort.read_vcz(output), cohort.expected_compact(before))


@pytest.mark.slow
def test_truncated_chunk_on_icechunk(removed: Callable) -> None:
    store, before = removed(Way("icechunk", "cubed"))
    session = repository_of(store).writable_session("main")
    from zarr.core.buffer import default_buffer_prototype

    async def truncate() -> None:
        value = await session.store.get("call_GL/c/1/2/0", default_buffer_prototype())
        await session.store.set("call_GL/c/1/2/0", value[:-4])

    asyncio.run(truncate())
    session.commit("truncated by the test")
    snapshots = history(store)
    words = ("compact: ", "call_GL", "nothing was committed")
    complain(StorageError, words, lambda: vczstore.compact(store))
    assert history(store) == snapshots
    contents = cohort.read_vcz(repository_of(store).readonly_session(snapshot_id=snapshots[1]).store)
    cohort.assert_same(contents, before)


@pytest.mark.slow
def test_a_concurrent_commit(removed: Callable) -> None:
    store, before = removed(Way("icechunk", "cubed"))
    snapshots: list[str | None] = []

    def progress(what: str, *_: int) -> None:
        if what == "writing" and not snapshots:
            snapshots.append(vczstore.remove(store, "S0000", impl="zarr").snapshot)

    complain(
        StaleError, (str(store), "changed", "again"), lambda: vczstore.compact(store, progress=progress, max_retries=0)
    )
    assert history(store)[0] == snapshots[0]
    plan = vczstore.plan("compact", store)
    vczstore.remove(store, "S0001", impl="zarr")
    complain(StaleError, (str(store), "changed", "again"), lambda: vczstore.run(plan))
    vczstore.compact(store)
    expected = cohort.expected_compact(cohort.expected_remove(before, ["S0000", "S0001"]))
    cohort.assert_same(Way("icechunk", "cubed").read(store), expected)


def test_an_inconsistent_store(removed: Callable, tmp_path: Path) -> None:
    store, _ = removed(Way("format3", "cubed"))
    zarr.open_array(store / "call_GL", mode="r+").resize((10, 17, 3))
    before = cohort.digest(tmp_path)
    words = ("compact: ", "call_GL", "17", "14")
    complain(DamagedStoreError, words, lambda: vczstore.compact(store, tmp_path / "output"))
    assert cohort.digest(tmp_path) == before


@pytest.mark.parametrize(
    ("kind", "shards"), [("format2", None), ("format3", (2, 1)), ("icechunk", None), ("icechunk", (2, 1))]
)
def test_later_columns_are_renumbered_unread(kind: str, shards: tuple[int, int] | None, tmp_path: Path) -> None:
    """Columns after a dropped one are renumbered, absent chunks included; on plain Zarr by hard links."""
    way = Way(kind, "cubed")
    old = cohort.make_arrays(10, cohort.ids(0, 10), fields=("call_DP", "call_FT"))
    old["call_DP"][:8, 6:9] = 0
    store = way.make(tmp_path, old, samples_chunk=3, shards=shards)
    gone = old["sample_id"][3:6].tolist()
    vczstore.remove(store, gone, **way.options)
    inodes = {path.relative_to(store): path.stat().st_ino for path in store.rglob("call_DP/**/*") if path.is_file()}
    result = vczstore.compact(store, **way.options)
    assert (result.plan.chunks_read, result.plan.decoded_chunks, result.decoded_bytes) == (0, 0, 0)
    cohort.assert_same(way.read(store), cohort.expected_compact(cohort.expected_remove(old, gone)))
    assert vczstore.verify(store).errors == []
    if way.is_icechunk:
        assert result.chunks == 0
    else:
        name = "0.{}" if kind == "format2" else "c/0/{}"
        assert (store / "call_DP" / name.format(2)).stat().st_ino == inodes[Path("call_DP", name.format(3))]
