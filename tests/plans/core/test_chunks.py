"""Private interfaces of cubed, zarr and icechunk that vczstore relies on: a test fails when one of them changes."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import cubed
import numpy as np
import pytest
import zarr
from zarr.core.sync import sync

import executors
import vczstore
from plans.core import cubed_backend, sinks, task_report
from plans.core.chunk_grid import Columns
from plans.core.memory import Memory
from plans.core.rewrite_columns import ColumnReader
from tests.support import cohort
from vczstore.errors import MemoryLimitError
from vczstore.vcz import arrays, encoded_chunks, metadata, pipeline, zarr_objects


def _array(tmp_path: Path, shape: tuple[int, ...] = (10, 7), chunks_: tuple[int, ...] = (4, 3)) -> zarr.Array:
    array = zarr.create_array(tmp_path / "a.zarr", shape=shape, chunks=chunks_, dtype="i4")
    array[...] = np.arange(array.size).reshape(shape)
    return zarr.open_array(tmp_path / "a.zarr")


def _copy(tmp_path: Path, columns: Columns, source: zarr.Array) -> tuple[zarr.Array, cubed.Array]:
    target = zarr.create_array(tmp_path / "b.zarr", shape=source.shape, chunks=source.chunks, dtype="i4")
    values = cubed_backend.read(ColumnReader(source, columns), Memory().spec())
    return target, cubed_backend.write(values + 1, sinks.DecodedSink(target, columns))


def test_source_map_and_sink_become_one_operation(tmp_path: Path) -> None:
    source = _array(tmp_path)
    target, written = _copy(tmp_path, Columns(source.shape, source.chunks, 1, (0, 2), (2, 1)), source)
    plan = cubed_backend.compile_plan([written], "test")
    assert plan is not None
    operations = [n for n, d in plan.dag.nodes(data=True) if "pipeline" in d]
    assert len(operations) == 1, "cubed no longer fuses what is read, mapped and written"
    assert plan.num_tasks == 4
    reports: list[task_report.TaskReport] = []
    cubed_backend.execute([(plan, reports.append)], executors.create("single-threaded"))
    assert sum(r.chunks for r in reports) == 6
    expected = np.where(np.isin(np.arange(7), [0, 1, 2, 6]), source[...] + 1, 0)
    np.testing.assert_array_equal(target[...], expected)


@pytest.mark.parametrize("name", executors.LOCAL)
@pytest.mark.slow
def test_every_executor_reports_every_task(tmp_path: Path, name: str) -> None:
    source = _array(tmp_path)
    target, written = _copy(tmp_path, Columns(source.shape, source.chunks, None, (), (1, 1)), source)
    plan = cubed_backend.compile_plan([written], "test")
    assert plan is not None
    reports: list[task_report.TaskReport] = []
    engine = executors.create(name, max_workers=2)
    cubed_backend.execute([(plan, reports.append)], engine)
    engine.close()
    assert [r.chunks for r in reports] == [1] * 9
    assert sum(r.decoded_bytes for r in reports) == source.nbytes
    assert all(r.peak_mem > 10_000_000 for r in reports)
    np.testing.assert_array_equal(target[...], source[...] + 1)


def test_the_share_of_a_task_is_released_after_it(tmp_path: Path) -> None:
    """It refers to sources, which tasks of other plans in the same process do not need."""
    shares = []

    class Share:
        def block(self, index: tuple[int, ...]) -> np.ndarray:
            return np.array([index[0] + 5], dtype="i4")

    class Reader(Share):
        dtype, blocks = np.dtype("i4"), ((1, 1, 1),)

        def share(self, _: tuple[int, ...]) -> Share:
            share = Share()
            shares.append(weakref.ref(share))
            return share

    target = zarr.create_array(tmp_path / "b.zarr", shape=(3,), chunks=(1,), dtype="i4")
    sink = sinks.DecodedSink(target, Columns((3,), (1,), None, (), (1,)))
    plan = cubed_backend.compile_plan(
        [cubed_backend.put(Reader(), sink, Memory().spec(), extra_mem=0, shared=True)], "test"
    )
    assert plan is not None
    cubed_backend.execute([(plan, lambda _: None)], executors.create("single-threaded"))
    assert target[...].tolist() == [5, 6, 7]
    gc.collect()
    assert [share() for share in shares] == [None] * 3


@pytest.mark.parametrize("name", executors.LOCAL)
@pytest.mark.slow
def test_a_plan_without_some_of_its_tasks(tmp_path: Path, name: str) -> None:
    source = _array(tmp_path)
    columns = Columns(source.shape, source.chunks, None, (), (1, 1))
    target, written = _copy(tmp_path, columns, source)
    plan = cubed_backend.compile_plan([written], "test")
    assert plan is not None
    ((operation, n),) = cubed_backend.tasks_of(plan).items()
    assert n == 9
    values = cubed_backend.read(ColumnReader(source, columns), Memory().spec())
    same = cubed_backend.write(values + 2, sinks.DecodedSink(target, columns))
    assert cubed_backend.tasks_of(cubed_backend.compile_plan([same], "test")) == {operation: 9}, (
        "names have to outlive the process"
    )
    assert cubed_backend.tasks_of(cubed_backend.compile_plan([written, same], "test")) == {}, (
        "names have to tell operations apart"
    )
    remaining = cubed_backend.without_tasks(plan, {operation: {(0, 0), (2, 1)}})
    assert remaining is not None
    assert remaining.num_tasks == 7
    engine, reports = executors.create(name, max_workers=2), list[task_report.TaskReport]()
    cubed_backend.execute([(remaining, reports.append)], engine)
    engine.close()
    others = {(operation, (i, j)) for i in range(3) for j in range(3)} - {(operation, (0, 0)), (operation, (2, 1))}
    assert sorted(r.task or ("", ()) for r in reports) == sorted(others)
    expected = source[...] + 1
    expected[0:4, 0:3] = expected[8:10, 3:6] = 0
    np.testing.assert_array_equal(target[...], expected)
    assert cubed_backend.without_tasks(plan, {operation: {(i, j) for i in range(3) for j in range(3)}}) is None


@pytest.mark.parametrize("name", executors.LOCAL)
@pytest.mark.slow
def test_plans_that_are_executed_together(tmp_path: Path, name: str) -> None:
    """Each plan receives the reports of its own tasks, and an error belongs to its plan."""
    copied = []
    for i in range(3):
        folder = tmp_path / str(i)
        folder.mkdir()
        source = _array(folder)
        copied.append((source, *_copy(folder, Columns(source.shape, source.chunks, None, (), (1, 1)), source)))
    plans = [cubed_backend.compile_plan([written], "test") for _, _, written in copied]
    reports: list[list[task_report.TaskReport]] = [[] for _ in plans]
    todo = [(plan, received.append) for plan, received in zip(plans, reports, strict=True) if plan is not None]
    engine = executors.create(name, max_workers=2)
    cubed_backend.execute(todo, engine)
    assert [len(received) for received in reports] == [9, 9, 9]
    for source, target, _ in copied:
        np.testing.assert_array_equal(target[...], source[...] + 1)
    (tmp_path / "1" / "a.zarr" / "c" / "1" / "1").write_bytes(b"cut off")
    with pytest.raises(Exception, match=r"1/a.zarr cannot be decoded") as caught:
        cubed_backend.execute(todo, engine)
    assert cubed_backend.plan_of(caught.value) == 1
    engine.close()
    assert cubed_backend.plan_of(KeyboardInterrupt()) is None


def test_planning_computes_nothing(tmp_path: Path) -> None:
    """Neither compiling nor displaying a plan runs a task or writes anything."""
    source = _array(tmp_path)
    target, written = _copy(tmp_path, Columns(source.shape, source.chunks, None, (), (1, 1)), source)
    before = cohort.digest(tmp_path)
    with cubed.raise_if_computes():
        cubed_backend.compile_plan([written], "test")
    assert cohort.digest(tmp_path) == before
    assert not target[...].any()


def test_a_task_that_needs_too_much_memory_is_refused(tmp_path: Path) -> None:
    source = _array(tmp_path, (1000, 1000), (1000, 1000))
    columns = Columns(source.shape, source.chunks, None, (), (1, 1))
    target = zarr.create_array(tmp_path / "b.zarr", shape=source.shape, chunks=source.chunks, dtype="i4")
    spec = Memory(allowed=101_000_000, reserved=100_000_000).spec()
    written = cubed_backend.write(
        cubed_backend.read(ColumnReader(source, columns), spec), sinks.DecodedSink(target, columns)
    )
    with pytest.raises(MemoryLimitError, match=r"test: a task needs 1\d\dMB of memory, and 101MB are allowed"):
        cubed_backend.compile_plan([written], "test")


def test_a_planned_array_writes_beyond_the_shape_that_readers_see(tmp_path: Path) -> None:
    stored = _array(tmp_path)
    planned = arrays.planned(stored, shape=(10, 12))
    planned[:, 7:] = 5
    assert zarr.open_array(tmp_path / "a.zarr").shape == (10, 7)
    stored.resize((10, 12))
    assert (zarr.open_array(tmp_path / "a.zarr")[:, 7:] == 5).all()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_synchronous_pipeline_is_used_and_survives_pickling(tmp_path: Path, zarr_format: int) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(4,), chunks=(2,), dtype="i1", zarr_format=zarr_format)[...] = [
        1,
        2,
        3,
        4,
    ]
    array = arrays.planned(zarr.open_array(tmp_path / "a.zarr"))
    copy = pickle.loads(pickle.dumps(array))
    for each in (array, copy):
        assert isinstance(each.async_array.codec_pipeline, pipeline.Pipeline)
        assert each[...].tolist() == [1, 2, 3, 4]


def test_chunks_on_this_machine_are_read_and_encoded_without_an_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.arange(40, dtype="i2").reshape(4, 10)
    texts = np.array(["A", "", "CTG"] * 4, dtype=object)[:10]
    zarr.create_array(tmp_path / "a.zarr", data=values, chunks=(2, 3))
    zarr.create_array(tmp_path / "t.zarr", data=texts.astype("T"), chunks=(4,))
    array, strings = (arrays.planned(zarr.open_array(tmp_path / name)) for name in ("a.zarr", "t.zarr"))
    encoded = encoded_chunks.get_encoded(array, [(1, 2)])[0]
    loop_calls: list[object] = []
    monkeypatch.setattr("zarr.core.array.sync", lambda coroutine: loop_calls.append(coroutine) or sync(coroutine))
    assert arrays.read(array, (slice(1, 4), slice(2, 8))).tolist() == values[1:4, 2:8].tolist()
    assert arrays.read_strings(strings).tolist() == texts.tolist()
    assert encoded_chunks.encode(array, (1, 2), (slice(2, 4), slice(6, 9)), values[2:4, 6:9]) == encoded
    assert not loop_calls
    assert array[...].tolist() == values.tolist()
    assert loop_calls


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("read", [arrays.read, arrays.read_strings])
def test_a_corrupt_number_of_strings_is_not_allocated(tmp_path: Path, zarr_format: Any, read: Any) -> None:
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(3,), chunks=(3,), dtype="string", zarr_format=zarr_format, compressors=None
    )
    array[:] = ["a", "", "ccc"]
    array = arrays.planned(zarr.open_array(tmp_path / "a.zarr"))
    assert list(read(array, (slice(None),))) == ["a", "", "ccc"]
    chunk = tmp_path / "a.zarr" / ("0" if zarr_format == 2 else "c/0")
    encoded = chunk.read_bytes()
    assert encoded[:4] == b"\3\0\0\0"
    chunk.write_bytes((50_000_000).to_bytes(4, "little") + encoded[4:])
    tracemalloc.start()
    with pytest.raises(ValueError, match="50,000,000 strings in 20 bytes"):
        read(array, (slice(None),))
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


def test_zarr_decodes_as_many_chunks_at_once_as_memory_is_planned_for() -> None:
    assert zarr.config.get("async.concurrency") == pipeline.READS_AT_ONCE


def _configs() -> list[dict]:
    from numcodecs import Blosc, GZip, Zstd

    codecs = [None, Zstd(level=3), GZip(level=2)]
    codecs += [Blosc(cname=c, clevel=4, shuffle=s) for c in ("lz4", "zstd", "zlib", "blosclz") for s in (0, 1, 2)]
    return [{"compressors": codec} for codec in codecs]


@pytest.mark.parametrize("config", _configs(), ids=lambda c: str(c["compressors"]))
@pytest.mark.parametrize("dtype", ["i1", "<i4", "f4", "?", "U3", "string"])
def test_format_2_chunks_are_format_3_chunks(config: dict, dtype: str) -> None:
    """Metadata converted to format 3 decode the chunks that were written in format 2."""
    values = np.array([[0, 1, 2], [3, 0, 1], [1, 1, 5]])
    values = values.astype("U1").astype("O") if dtype == "string" else values.astype(dtype)
    old = zarr.create_array(
        zarr.storage.MemoryStore(), shape=(3, 3), chunks=(2, 2), dtype=dtype, zarr_format=2, **config
    )
    old[...] = values
    store = zarr.storage.MemoryStore()
    new = arrays.from_metadata(metadata.as_format_3(old.metadata, dimension_names=("a", None)), store, "x")
    assert metadata.same_encoding(old, new)
    cells = list(np.ndindex(2, 2))
    encoded_chunks.set_encoded(new, list(zip(cells, encoded_chunks.get_encoded(old, cells), strict=True)))
    for name, document in metadata.documents(new.metadata).items():
        zarr_objects.write_json(store, f"x/{name}", document)
    read = zarr.open_array(store, path="x")
    np.testing.assert_array_equal(read[...].astype(object), old[...].astype(object))
    assert read.metadata.dimension_names == ("a", None)


@pytest.mark.parametrize(
    "options", [{"order": "F"}, {"dtype": ">i4"}, {"filters": "delta"}, {"compressors": "lzma"}, {"compressors": "?"}]
)
def test_encodings_that_format_3_cannot_express_raise_an_error(options: dict) -> None:
    from numcodecs import LZMA, Blosc, Delta

    if "filters" in options:
        options = {"filters": [Delta(dtype="i4")]}
    if "compressors" in options:
        # decoding with Blosc does not depend on its parameters
        options = {"compressors": LZMA() if options["compressors"] == "lzma" else Blosc(cname="?")}
    old = zarr.create_array(zarr.storage.MemoryStore(), shape=(3, 3), zarr_format=2, **{"dtype": "i4", **options})
    with pytest.raises(metadata.UnsupportedCodecError):
        metadata.as_format_3(old.metadata)


@pytest.mark.slow
def test_encodings_that_format_3_cannot_express_are_copied_decoded(tmp_path: Path) -> None:
    values = cohort.make_arrays(10, cohort.ids(0, 7))
    cohort.write_vcz(tmp_path / "plain.vcz", values, zarr_format=2)
    group = zarr.open_group(tmp_path / "plain.vcz", zarr_format=2)
    attributes = dict(group["call_AD"].attrs)
    group.create_array(
        "call_AD", shape=(10, 7, 2), chunks=(4, 3, 2), dtype=">i4", overwrite=True, attributes=attributes
    )
    group["call_AD"][...] = values["call_AD"]
    result = vczstore.copy_store_to_icechunk(tmp_path / "plain.vcz", tmp_path / "repository")
    assert result.plan.decoded_chunks == 9
    cohort.assert_same(cohort.read_vcz(cohort.icechunk_store(tmp_path / "repository")), values)


def test_a_fork_is_small_and_returns_its_own_changes(tmp_path: Path) -> None:
    """Two copies of a fork write different chunks, and the commit contains both."""
    import icechunk

    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "repository")))
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(4,), chunks=(1,), dtype="i1")
    store = session.fork().store
    pickled = pickle.dumps(store)
    assert len(pickled) < 5000
    for i in range(2):
        copy = pickle.loads(pickled)
        zarr.open_array(copy, path="a")[i] = i + 1
        session.merge(pickle.loads(pickle.dumps(copy)).session)
    session.commit("test")
    assert zarr.open_array(repository.readonly_session("main").store, path="a")[...].tolist() == [1, 2, 0, 0]


CODECS = {
    "blosc": zarr.codecs.BloscCodec(cname="zstd", shuffle="bitshuffle"),
    "zstd": zarr.codecs.ZstdCodec(level=3),
    "zstd with a checksum": zarr.codecs.ZstdCodec(level=3, checksum=True),
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(1,), (7,), (300,), (70_000,), (300_000,)])
@pytest.mark.parametrize("content", ["random", "alike", "counting"])
def test_a_chunk_cut_off_at_any_length_is_detected(codec: str, shape: tuple[int], content: str) -> None:
    """Frames of one and of several blocks, which are RLE, raw or compressed; content sizes of various widths."""
    values = {
        "random": np.random.default_rng(0).integers(0, 256, shape),
        "alike": np.zeros(shape),
        "counting": np.arange(shape[0]),
    }[content].astype("i4")
    array = zarr.create_array(
        zarr.storage.MemoryStore(),
        name="x",
        shape=shape,
        chunks=shape,
        dtype="i4",
        compressors=CODECS[codec],
        fill_value=9,
    )
    array[...] = values
    (whole,) = encoded_chunks.get_encoded(array, [(0,)])
    assert whole is not None
    encoded_chunks.check_frames(array, [(0,), (0,)], [whole, None])
    n = len(whole)
    for length in {*range(min(n, 40)), *range(n // 2, min(n, n // 2 + 5)), *range(max(0, n - 40), n)}:
        with pytest.raises(pipeline.DamagedChunkError, match="is cut off"):
            encoded_chunks.check_frames(array, [(0,)], [whole[:length]])
