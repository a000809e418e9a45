"""`update`, and selected samples of sources, compared with a NumPy model; bytes touched; refusals."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import zarr

import vczstore
from plans.compilers.append import compile_append
from plans.compilers.update import compile_update, split_known
from plans.core.gather_samples import Part, PutSamples
from plans.core.memory import Memory
from plans.core.model import Plan
from tests.support import cohort
from tests.support.covering import in_pairs, in_turn
from tests.support.refusals import complain
from tests.support.small_stores import FIELDS, KINDS, altered, edit, head, put, resize, truncate, unchanged
from tests.support.ways import IMPLS, WRITTEN, Way
from vczstore.errors import DamagedStoreError, IncompatibleError, MemoryLimitError, SampleError, VczstoreError
from vczstore.stores.resolve import open_store
from vczstore.vcz.model import Vcz

type Arrays = dict[str, np.ndarray]


def recalled(samples: Sequence[str], *, seed: int = 5) -> Arrays:
    """Arrays of samples from a second round of calling."""
    return cohort.some_arrays(10, samples, seed=seed)


# ---- update ---------------------------------------------------------------------------------


@in_turn(kind=WRITTEN, impl=IMPLS)
@pytest.mark.slow
def test_samples_in_any_order(way: Way, tmp_path: Path) -> None:
    """Samples of several sources, in whole, ragged, shared and adjacent columns of 3; one is replaced as a whole."""
    old = cohort.some_arrays(10, cohort.ids(0, 11))
    new = [recalled(["S0010", "S0003", "S0000", "S0005"]), recalled(["S0004", "S0001"], seed=6)]
    store = way.make(tmp_path, old)
    cohort.write_vcz(tmp_path / "a.vcz", new[0])
    cohort.write_vcz(tmp_path / "b.vcz", new[1], zarr_format=2, variants_chunk=7, samples_chunk=1, compressors=None)
    result = vczstore.update(store, tmp_path / "a.vcz", tmp_path / "b.vcz", **way.options)
    assert result.committed
    assert result.counts == {"sources": 2, "samples updated": 6}
    cohort.assert_same(way.read(store), cohort.expected_update(old, *new))


@in_turn(kind=WRITTEN, impl=("cubed", "xarray", "zarr"))
@pytest.mark.slow
def test_fields_that_one_side_lacks(way: Way, tmp_path: Path) -> None:
    """Fields that the source lacks become missing, and fields that the store lacks are left out, but only if named."""
    old, new = cohort.some_arrays(10, cohort.ids(0, 11)), recalled(["S0010", "S0003", "S0004"])
    del old["call_DP"], new["call_FT"]
    store = way.make(tmp_path, old)
    cohort.write_vcz(tmp_path / "new.vcz", new)
    for dropped in ((), ("FT",), ("DP",)):
        with pytest.raises(IncompatibleError, match="--drop-field"):
            vczstore.update(store, tmp_path / "new.vcz", drop_fields=dropped, **way.options)
    cohort.assert_same(way.read(store), old)
    vczstore.update(store, tmp_path / "new.vcz", drop_fields=["FT", "DP"], **way.options)
    new["call_FT"] = np.full((10, 3), ".", dtype=old["call_FT"].dtype)
    del new["call_DP"]
    cohort.assert_same(way.read(store), cohort.expected_update(old, new))


@in_turn(kind=WRITTEN, impl=("zarr", "cubed"))
@pytest.mark.slow
def test_whole_columns_are_copied_verbatim(way: Way, tmp_path: Path) -> None:
    """A batch is updated with its columns in another order, including the ragged last one."""
    old = cohort.some_arrays(10, cohort.ids(0, 8))
    new = recalled(["S0003", "S0004", "S0005", "S0000", "S0001", "S0002", "S0006", "S0007"])
    store = way.make(tmp_path, old)
    cohort.write_vcz(tmp_path / "new.vcz", new, zarr_format=2 if way.kind == "format2" else 3)
    result = vczstore.update(store, tmp_path / "new.vcz", **way.options)
    assert result.plan.decoded_chunks == 0
    cohort.assert_same(way.read(store), cohort.expected_update(old, new))


@in_turn(kind=WRITTEN, impl=("cubed", "xarray", "zarr"))
@pytest.mark.slow
def test_after_remove(way: Way, tmp_path: Path) -> None:
    """Positions of removed samples stay empty, also between updated samples."""
    old = cohort.some_arrays(10, cohort.ids(0, 5))
    store = way.make(tmp_path, old)
    new = recalled(["S0002", "S0000"])
    cohort.write_vcz(tmp_path / "new.vcz", new)
    vczstore.remove(store, "S0001", **way.options)
    vczstore.update(store, tmp_path / "new.vcz", **way.options)
    cohort.assert_same(way.read(store), cohort.expected_update(cohort.expected_remove(old, ["S0001"]), new))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.slow
def test_sharded(tmp_path: Path, impl: str) -> None:
    old, new = cohort.some_arrays(17, cohort.ids(0, 14)), cohort.some_arrays(17, cohort.ids(4, 8)[::-1], seed=1)
    cohort.write_vcz(tmp_path / "store.vcz", old, shards=(2, 2))
    cohort.write_vcz(tmp_path / "new.vcz", new, shards=(3, 1))
    vczstore.update(tmp_path / "store.vcz", tmp_path / "new.vcz", impl=impl)
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_update(old, new))


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("samples", [cohort.ids(3, 3), cohort.ids(4, 3)], ids=["copied", "decoded"])
def test_absent_chunks(tmp_path: Path, impl: str, samples: list[str]) -> None:
    """An absent chunk of a source deletes the store's chunk, and an absent chunk of the store is filled."""
    old, new = cohort.some_arrays(8, cohort.ids(0, 9)), cohort.some_arrays(8, samples, seed=1)
    old["call_AD"][...] = 0
    new["call_DP"][...] = 0
    cohort.write_vcz(tmp_path / "store.vcz", old, skip_empty=True)
    cohort.write_vcz(tmp_path / "new.vcz", new, skip_empty=True)
    chunk = tmp_path / "store.vcz" / "call_DP" / "c" / "0" / "1"
    assert chunk.exists()
    vczstore.update(tmp_path / "store.vcz", tmp_path / "new.vcz", impl=impl)
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_update(old, new))
    assert chunk.exists() == (samples[0] != "S0003")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.slow
def test_missing_floats_that_look_like_the_fill_value(tmp_path: Path, impl: str) -> None:
    """A chunk of missing floats is not dropped if the fill value of the array is another NaN."""
    old, new = cohort.some_arrays(8, cohort.ids(0, 9)), cohort.some_arrays(8, cohort.ids(4, 3), seed=1)
    old["call_GL"][...] = new["call_GL"][...] = cohort.MISSING
    cohort.write_vcz(tmp_path / "store.vcz", old, fill_values={"call_GL": np.nan})
    cohort.write_vcz(tmp_path / "new.vcz", new, fill_values={"call_GL": np.nan})
    vczstore.update(tmp_path / "store.vcz", tmp_path / "new.vcz", impl=impl)
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_update(old, new))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.slow
def test_narrower_and_wider_integers(tmp_path: Path, impl: str) -> None:
    old, new = cohort.some_arrays(10, cohort.ids(0, 7)), recalled(["S0005", "S0001"])
    new["call_AD"], new["call_DP"] = new["call_AD"].astype("i1"), new["call_DP"].astype("i8")
    cohort.write_vcz(tmp_path / "store.vcz", old)
    cohort.write_vcz(tmp_path / "new.vcz", new)
    vczstore.update(tmp_path / "store.vcz", tmp_path / "new.vcz", impl=impl)
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_update(old, new))


@pytest.mark.slow
def test_a_repeated_update_changes_nothing(tmp_path: Path) -> None:
    cohort.write_vcz(tmp_path / "store.vcz", cohort.some_arrays(10, cohort.ids(0, 7)))
    cohort.write_vcz(tmp_path / "new.vcz", recalled(["S0005", "S0001"]))
    vczstore.update(tmp_path / "store.vcz", tmp_path / "new.vcz")
    with unchanged(tmp_path / "store.vcz"):
        vczstore.update(tmp_path / "store.vcz", tmp_path / "new.vcz")


# ---- reads and writes -----------------------------------------------------------------------


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.slow
def test_only_the_columns_of_the_samples_are_written(tmp_path: Path, impl: str) -> None:
    store = tmp_path / "store.vcz"
    cohort.write_vcz(store, cohort.some_arrays(10, cohort.ids(0, 11)))
    cohort.write_vcz(tmp_path / "new.vcz", recalled(["S0010", "S0001"]))

    def times() -> dict[Path, int]:
        return {path.relative_to(store): path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}

    before = times()
    result = vczstore.update(store, tmp_path / "new.vcz", impl=impl)
    after = times()
    assert after.keys() <= before.keys()  # a chunk with only the fill value is deleted
    expected = set()
    for path in before:
        name, c, *cell = path.parts if len(path.parts) > 1 else (path.name, "")
        axes = cohort.DIMENSIONS.get(name, ())
        if c == "c" and "samples" in axes and name != "sample_id" and cell[axes.index("samples")] in "03":
            expected.add(path)
    # and the metadata document of the root group, in which AC becomes stale
    assert {path for path in before if before[path] != after.get(path)} == {*expected, Path("zarr.json")}
    assert len(expected) == result.plan.decoded_chunks


@pytest.mark.parametrize("impl", ["zarr", "cubed"])
@pytest.mark.parametrize("samples", [cohort.ids(3, 3), cohort.ids(3, 3)[::-1]], ids=["copied", "decoded"])
def test_a_column_that_is_replaced_whole_is_not_read(tmp_path: Path, impl: str, samples: list[str]) -> None:
    """A damaged chunk in such a column is repaired by the update."""
    old, new = cohort.some_arrays(10, cohort.ids(0, 8)), recalled(samples)
    cohort.write_vcz(tmp_path / "store.vcz", old)
    cohort.write_vcz(tmp_path / "new.vcz", new)
    for name in ("call_DP", "call_FT"):
        edit(tmp_path / "store.vcz", truncate(name, 1, 1))
    vczstore.update(tmp_path / "store.vcz", tmp_path / "new.vcz", impl=impl)
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_update(old, new))


def test_bytes_and_chunks_are_reported(tmp_path: Path) -> None:
    """For call_DP of 10 variants, column 0 is copied, column 1 keeps one of 3 samples, and the last one is replaced."""
    old = cohort.some_arrays(10, cohort.ids(0, 8))
    cohort.write_vcz(tmp_path / "store.vcz", old)
    samples = ["S0000", "S0001", "S0002", "S0004", "S0003", "S0007", "S0006"]
    cohort.write_vcz(tmp_path / "new.vcz", recalled(samples))
    plan = vczstore.plan("update", tmp_path / "store.vcz", tmp_path / "new.vcz")
    (write,) = [w for w in plan.writes if w.name == "call_DP"]
    assert (write.encoded_chunks, write.decoded_chunks) == (3, 6)
    assert isinstance(write, PutSamples)
    assert len(write.kept.moves[0]) == 3
    assert (write.bytes_read, write.bytes_written) == (10 * (7 + 3) * 2, 10 * 8 * 2)
    assert "sample_id" not in [w.name for w in plan.writes]
    assert plan.edits == ()


def test_a_shuffled_source_is_read_once_where_memory_allows(tmp_path: Path) -> None:
    """All columns over which a chunk of the source is spread form one block."""
    cohort.write_vcz(tmp_path / "store.vcz", cohort.some_arrays(10, cohort.ids(0, 12)))
    cohort.write_vcz(tmp_path / "new.vcz", recalled(["S0010", "S0001", "S0003"]))
    plan = vczstore.plan("update", tmp_path / "store.vcz", tmp_path / "new.vcz")
    (write,) = [w for w in plan.writes if w.name == "call_DP"]
    assert isinstance(write, PutSamples)
    assert (write.decoded, write.block) == ((0, 1, 3), (1, 3))


def test_a_contiguous_part_is_sent_as_slices(tmp_path: Path) -> None:
    """Positions are sent to tasks as arrays only if the samples of a batch are not consecutive."""
    array = zarr.create_array(tmp_path / "a", shape=(10**6,), dtype="i1")
    part = Part.make(array, np.arange(10**6), np.arange(5, 10**6 + 5))
    assert (part.of, part.to) == (slice(0, 10**6), slice(5, 10**6 + 5))
    backwards = Part.make(array, np.arange(3)[::-1], np.arange(3))
    assert isinstance(backwards.of, np.ndarray)
    assert [positions.tolist() for positions in backwards.within(slice(1, 3))] == [[1, 0], [1, 2]]


def test_zarr_python_visits_a_part_only_for_its_own_columns() -> None:
    """Each visit compares all samples of a part, so that visits of all parts for all columns would be quadratic."""
    visits = []

    class Counted(Part):
        def within(self, there: slice) -> tuple[np.ndarray, np.ndarray]:
            visits.append(there)
            return super().within(there)

    axes, values = ("variants", "samples"), np.arange(240, dtype="i2").reshape(4, 60)
    target = zarr.create_array({}, name="call_DP", shape=(4, 60), chunks=(2, 3), dtype="i2", dimension_names=axes)
    parts = []
    for first in range(0, 60, 3):
        batch = zarr.create_array({}, data=values[:, first : first + 3], chunks=(2, 3), dimension_names=axes)
        parts.append(Counted(batch, slice(0, 3), slice(first, first + 3)))
    PutSamples.of("update", target, target, parts, Memory()).by_zarr(target.store)
    np.testing.assert_array_equal(target[...], values)
    assert len(visits) == 2 * 20


# ---- refusals -------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store of 7 samples, S0000 to S0006, of which S0002 was removed."""
    store = Way(request.param, "zarr").make(tmp_path, some(cohort.ids(0, 7), seed=0))
    vczstore.remove(store, "S0002", impl="zarr")
    return store


def some(samples: Sequence[str], *, seed: int = 5) -> Arrays:
    arrays = cohort.make_arrays(10, samples, seed=seed)
    return {name: arrays[name] for name in FIELDS}


def make(tmp_path: Path, samples: Sequence[str], name: str = "new.vcz") -> Path:
    cohort.write_vcz(tmp_path / name, some(samples))
    return tmp_path / name


@pytest.mark.slow
def test_unknown_samples_are_all_named(store: Path, tmp_path: Path) -> None:
    sources = make(tmp_path, ["S0001", "S0077"]), make(tmp_path, ["S0078", "S0000"], "other.vcz")
    words = ("^update: ", re.escape(str(store)), "no sample S0077, S0078;", "insert: true", "append")
    with unchanged(store, *sources):
        complain(SampleError, words, lambda: vczstore.update(store, *sources))


@pytest.mark.slow
def test_a_removed_sample_is_reported_as_removed(store: Path, tmp_path: Path) -> None:
    """S0002 was removed, so it is unknown as well; but a job must not add it again with `insert`."""
    source = make(tmp_path, ["S0001", "S0077", "S0002"])
    words = (
        "^update: ",
        re.escape(str(store)),
        "1 of the incoming samples was removed",
        "S0002",
        "--allow-returning",
    )
    with unchanged(store, source):
        complain(SampleError, words, lambda: vczstore.update(store, source))


DOUBLED: dict[str, tuple[list[list[str]], tuple[str, ...]]] = {
    "within a source": ([["S0001", "S0003", "S0001"]], ("new0.vcz", "S0001", "twice")),
    "between sources": ([["S0001", "S0003"], ["S0003"]], ("new1.vcz", "new0.vcz", "S0003", "leave them out")),
    "removed from a source": ([["S0001", ""]], ("new0.vcz", "removed", "without them")),
    "no samples": ([[]], ("new0.vcz", "no samples", "leave it out")),
}


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "words"), DOUBLED.values(), ids=DOUBLED)
def test_unsuitable_samples(store: Path, tmp_path: Path, samples: list[list[str]], words: tuple[str, ...]) -> None:
    sources = [make(tmp_path, ids, f"new{i}.vcz") for i, ids in enumerate(samples)]
    with unchanged(store, *sources):
        complain(SampleError, ("^update: ", *words), lambda: vczstore.update(store, *sources))


@pytest.mark.slow
def test_a_duplicate_sample_in_the_store(store: Path, tmp_path: Path) -> None:
    edit(store, lambda group: group["sample_id"].set_basic_selection(5, "S0001"))
    source = make(tmp_path, ["S0000", "S0001"])
    with unchanged(store, source):
        words = ("^update: ", re.escape(str(store)), "sample S0001 twice", "append")
        complain(SampleError, words, lambda: vczstore.update(store, source))
    other = make(tmp_path, ["S0000", "S0003"], "other.vcz")
    assert vczstore.update(store, other).committed  # these samples have unique IDs


NEW = some(["S0001", "S0004"])
type Misfit = tuple[type[VczstoreError], tuple[str, ...], Callable[[zarr.Group], None]]
MISFITS: dict[str, Misfit] = {
    "variants": (
        IncompatibleError,
        ("variant 9 ", "1234", "same variants"),
        put("variant_position", altered(NEW["variant_position"], (9, 1234))),
    ),
    "dtype": (
        IncompatibleError,
        ("call_DP", "float32", "int16", "--drop-field DP"),
        put("call_DP", NEW["call_DP"].astype("f4")),
    ),
    "dimensions": (
        IncompatibleError,
        ("call_AD", "dimensions", "--drop-field AD"),
        put("call_AD", NEW["call_AD"], ("variants", "samples", "others")),
    ),
    "damaged": (DamagedStoreError, ("call_DP has 1 samples",), resize("call_DP", 10, 1)),
}


@pytest.mark.slow
@in_pairs(store=KINDS, misfit=MISFITS, impl=("zarr", "cubed"), indirect=["store"])
def test_misfits(store: Path, tmp_path: Path, misfit: Misfit, impl: str) -> None:
    error, words, change = misfit
    source = make(tmp_path, ["S0001", "S0004"])
    edit(source, change)
    with unchanged(store, source):
        words = ("^update: ", re.escape(str(source)), *words)
        complain(error, words, lambda: vczstore.update(store, source, impl=impl))


def test_no_sources_and_the_store_itself(store: Path) -> None:
    with unchanged(store):
        complain(VczstoreError, ("^update: ", "no sources"), lambda: vczstore.update(store))
        complain(IncompatibleError, ("^update: ", "store .* itself"), lambda: vczstore.update(store, store))


def test_damaged_store(store: Path, tmp_path: Path) -> None:
    edit(store, resize("call_DP", 10, 6))
    source = make(tmp_path, ["S0001"])
    with unchanged(store, source):
        complain(DamagedStoreError, ("^update: ", "call_DP has 6"), lambda: vczstore.update(store, source))


@pytest.mark.slow
def test_dry_run(store: Path, tmp_path: Path) -> None:
    source = make(tmp_path, ["S0001", "S0004"])
    with unchanged(store, source):
        result = vczstore.update(store, source, dry_run=True)
    assert not result.committed
    assert result.plan.tasks > 0


@pytest.mark.slow
def test_too_little_memory(tmp_path: Path) -> None:
    """The amount of memory in the message is sufficient."""
    old, new = cohort.some_arrays(1000, cohort.ids(0, 900)), cohort.some_arrays(1000, ["S0007", "S0003"], seed=1)
    fields = [n for n in FIELDS if "samples" not in cohort.DIMENSIONS[n]] + ["sample_id", "call_AD"]
    for name, arrays in (("store.vcz", old), ("new.vcz", new)):
        cohort.write_vcz(tmp_path / name, {n: arrays[n] for n in fields}, variants_chunk=1000, samples_chunk=1000)
    store, source = tmp_path / "store.vcz", tmp_path / "new.vcz"
    with unchanged(store, source):
        words = ("^update: ", r"needs \d+MB", "310MB are allowed")
        message = complain(MemoryLimitError, words, lambda: vczstore.update(store, source, allowed_mem="310MB"))
    needed = re.search(r"--allowed-mem (\w+)", message)
    assert needed
    assert vczstore.update(store, source, allowed_mem=needed[1]).committed


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.slow
def test_broken_source(store: Path, tmp_path: Path, impl: str) -> None:
    """The error names the array; on Icechunk nothing is committed; with the source repaired, the same call succeeds."""
    source = make(tmp_path, ["S0001", "S0004"])
    edit(source, truncate("call_DP", 1, 0))
    snapshot, way = head(store), Way("icechunk" if head(store) else "format3", impl)
    before = way.read(store)
    words = ("^update: ",) if impl == "xarray" else ("^update: ", "call_DP", re.escape(str(source)))
    complain(VczstoreError, words, lambda: vczstore.update(store, source, impl=impl))
    assert head(store) == snapshot
    if snapshot:
        cohort.assert_same(way.read(store), before)
    shutil.rmtree(source)
    make(tmp_path, ["S0001", "S0004"])
    vczstore.update(store, source, impl=impl)
    cohort.assert_same(way.read(store), cohort.expected_update(before, some(["S0001", "S0004"])))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.slow
def test_stopped(tmp_path: Path, impl: str) -> None:
    """The same update completes one that was interrupted at any point."""
    old, new = some(cohort.ids(0, 7), seed=0), some(["S0005", "S0001", "S0002"])
    cohort.write_vcz(tmp_path / "store.vcz", old)
    cohort.write_vcz(tmp_path / "new.vcz", new)
    plan = vczstore.plan("update", tmp_path / "store.vcz", tmp_path / "new.vcz")
    for write in plan.writes[:3]:
        write.by_zarr(zarr.storage.LocalStore(tmp_path / "store.vcz"))
    vczstore.update(tmp_path / "store.vcz", tmp_path / "new.vcz", impl=impl)
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_update(old, new))


# ---- selected samples of a source -----------------------------------------------------------


def plan_append(store: Path, *sources: Vcz) -> Plan:
    place = open_store(store)
    return compile_append(place, place.open(), sources, Memory())


def plan_update(store: Path, *sources: Vcz) -> Plan:
    place = open_store(store)
    return compile_update(place, place.open(), sources, Memory())


@pytest.mark.slow
def test_split_known(tmp_path: Path) -> None:
    cohort.write_vcz(tmp_path / "store.vcz", cohort.some_arrays(10, ["S0", "", "S2", "S3"]))
    cohort.write_vcz(tmp_path / "new.vcz", cohort.some_arrays(10, ["S9", "S3", "", "S0", "S8"]))
    store, source = (open_store(tmp_path / name).open() for name in ("store.vcz", "new.vcz"))
    known, new = split_known(store, source)
    assert (known.tolist(), new.tolist()) == ([1, 3], [0, 2, 4])
    assert source.select(new).sample_ids.tolist() == ["S9", "", "S8"]
    assert source.select(new).select(np.array([2, 0])).sample_ids.tolist() == ["S8", "S9"]
    no_positions, all_positions = split_known(store, source.select(np.array([0, 4])))
    assert (no_positions.tolist(), all_positions.tolist()) == ([], [0, 1])
    with pytest.raises(SampleError, match="no samples; leave it out"):
        plan_append(tmp_path / "store.vcz", source.select(no_positions))


@in_turn(kind=WRITTEN, impl=IMPLS, n={"aligned": 6, "ragged": 7})
@pytest.mark.slow
def test_known_samples_are_updated_and_others_appended(way: Way, tmp_path: Path, n: int) -> None:
    old = cohort.some_arrays(10, cohort.ids(0, n))
    samples = ["S0100", "S0004", "S0101", "S0000", "S0102", "S0103", "S0104", "S0003"]
    incoming, other = recalled(samples), recalled(cohort.ids(50, 4), seed=7)
    store = way.make(tmp_path, old)
    cohort.write_vcz(tmp_path / "new.vcz", incoming, zarr_format=2 if way.kind == "format2" else 3)
    cohort.write_vcz(tmp_path / "other.vcz", other)
    source, whole = (open_store(tmp_path / name).open() for name in ("new.vcz", "other.vcz"))
    known, new = split_known(open_store(store).open(), source)
    updated = vczstore.run(plan_update(store, source.select(known)), **way.options)
    appended = vczstore.run(plan_append(store, source.select(new), whole), **way.options)
    assert updated.counts == {"sources": 1, "samples updated": 3}
    assert appended.counts == {"sources": 2, "samples added": 9}
    expected = cohort.expected_update(old, cohort.select(incoming, ["S0000", "S0003", "S0004"]))
    expected = cohort.expected_append(
        expected, cohort.select(incoming, ["S0100", "S0101", "S0102", "S0103", "S0104"]), other
    )
    cohort.assert_same(way.read(store), expected)


@pytest.mark.slow
def test_samples_that_are_not_selected_are_not_checked(tmp_path: Path) -> None:
    """They may be removed, or have values that do not fit; their columns are not read."""
    old, incoming = cohort.some_arrays(10, cohort.ids(0, 6)), recalled(["S0000", "", *cohort.ids(6, 5)])
    incoming["call_DP"] = incoming["call_DP"].astype("i8")
    incoming["call_DP"][4, 2] = 70_000
    cohort.write_vcz(tmp_path / "store.vcz", old)
    cohort.write_vcz(tmp_path / "new.vcz", incoming)
    edit(tmp_path / "new.vcz", truncate("call_FT", 0, 0))
    source = open_store(tmp_path / "new.vcz").open()
    for impl in ("zarr", "cubed"):
        store = shutil.copytree(tmp_path / "store.vcz", tmp_path / f"{impl}.vcz")
        vczstore.run(plan_append(store, source.select(np.array([3, 4, 5, 6]))), impl=impl)
        expected = cohort.expected_append(old, cohort.select(incoming, cohort.ids(7, 4)))
        cohort.assert_same(cohort.read_vcz(store), expected)
        with pytest.raises(IncompatibleError, match="70000"):
            vczstore.run(plan_append(tmp_path / "store.vcz", source.select(np.array([2, 4]))), impl=impl)


@pytest.mark.slow
def test_whole_columns_of_a_selection_are_copied(tmp_path: Path) -> None:
    old, incoming = cohort.some_arrays(10, cohort.ids(0, 6)), recalled(["S0000", "S0001", "S0002", *cohort.ids(6, 5)])
    cohort.write_vcz(tmp_path / "store.vcz", old)
    cohort.write_vcz(tmp_path / "new.vcz", incoming)
    source = open_store(tmp_path / "new.vcz").open()
    plan = plan_append(tmp_path / "store.vcz", source.select(np.arange(3, 8)))
    assert plan.decoded_chunks == 0
    vczstore.run(plan)
    expected = cohort.expected_append(old, cohort.select(incoming, cohort.ids(6, 5)))
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), expected)
