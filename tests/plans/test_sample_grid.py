"""Stores with a flexible sample grid: batches are appended as chunk columns, and nothing else is re-encoded."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings

import vczstore
from plans.compilers.regrid import merged
from tests.support import cohort, vcf
from tests.support.cohort import some_arrays
from tests.support.command_line import run
from tests.support.ways import FLEXIBLE, Way
from vczstore.cli.main import main
from vczstore.errors import MemoryLimitError, VczstoreError
from vczstore.vcz import rectilinear

type Arrays = dict[str, np.ndarray]

OPTIONS: dict[str, Any] = {"executor": "threads", "max_workers": 1}


def _opened(way: Way, store: Path) -> zarr.Group:
    return zarr.open_group(cohort.icechunk_store(store) if way.is_icechunk else store, mode="r", use_consolidated=False)


def _columns(way: Way, store: Path) -> tuple[int, ...]:
    """Return the widths of the store's columns, and check that all arrays with samples agree."""
    group = _opened(way, store)
    names = [name for name in group if "samples" in cohort.DIMENSIONS.get(name, ())]
    (widths,) = {group[n].read_chunk_sizes[cohort.DIMENSIONS[n].index("samples")] for n in names}
    return widths


def _batch(folder: Path, start: int, n: int, **layout: Any) -> tuple[Path, Arrays]:
    arrays = some_arrays(10, cohort.ids(start, n), seed=start)
    place = folder / f"{start}-{n}.vcz"
    cohort.write_vcz(place, arrays, **{"samples_chunk": n, **layout})
    return place, arrays


def _start(way: Way, folder: Path, n: int = 6) -> tuple[Path, Arrays]:
    arrays = some_arrays(10, cohort.ids(0, n))
    return way.make(folder, arrays, samples_chunk=3), arrays


in_both = pytest.mark.parametrize("way", [Way(k, i) for k in FLEXIBLE for i in ("cubed", "zarr")], ids=lambda w: w.id)
CUBED = [Way(kind, "cubed") for kind in FLEXIBLE]
with_cubed = pytest.mark.parametrize("way", CUBED, ids=lambda w: w.id)


# ---- append ---------------------------------------------------------------------------------


@pytest.mark.slow
@in_both
def test_batches_become_columns(way: Way, tmp_path: Path) -> None:
    """Batches of any width, of several chunks, from a flexible source, and of format 2."""
    store, model = _start(way, tmp_path)
    other, arrays = _batch(tmp_path, 30, 4, samples_chunk=2)
    vczstore.regrid(other, sample_grid="flexible", samples_chunk=4)
    batches = [
        _batch(tmp_path, 6, 5),
        _batch(tmp_path, 11, 1),
        _batch(tmp_path, 12, 5, samples_chunk=2),
        (other, arrays),
        _batch(tmp_path, 40, 2, zarr_format=2),
    ]
    for place, arrays in batches:
        vczstore.append(store, place, **way.options)
        model = cohort.expected_append(model, arrays)
        cohort.assert_same(way.read(store), model)
    assert _columns(way, store) == (3, 3, 5, 1, 2, 2, 1, 4, 2)
    assert vczstore.verify(store).errors == []


def _without_info(records: list[str]) -> list[list[str]]:
    """Return the columns of VCF records without QUAL, FILTER and INFO, which `create` does not copy."""
    return [[*fields[:5], *fields[8:]] for fields in (record.split("\t") for record in records)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["zarr", "icechunk"])
def test_a_vcf_becomes_one_column(backend: str, tmp_path: Path) -> None:
    """New columns may be wider than the existing ones, for example after a first batch of one sample."""
    whole = vcf.write_vcf(tmp_path / "whole.vcf.gz", vcf.EXAMPLES["calls"].make())
    first, *others = vcf.EXAMPLES["calls"].parts[0]
    files = [vcf.split_by_samples(whole, names, tmp_path / f"{i}.vcf.gz") for i, names in enumerate(([first], others))]
    store = tmp_path / "store"
    vczstore.create(store, files[0], sample_grid="flexible", samples_chunk=4, backend_storage=backend)
    for file in files:
        assert vczstore.append(store, file, **OPTIONS).decoded_bytes == 0
    assert _columns(Way(f"{backend}_flexible", "cubed"), store) == (1, len(others))
    vczstore.regrid(store, sample_grid="regular", samples_chunk=2, **OPTIONS)
    part = vcf.split_by_samples(whole, [first, *others], tmp_path / "part.vcf.gz")
    shown = vcf.records(vcf.vcztools_view(store, icechunk=backend == "icechunk"))
    assert _without_info(shown) == _without_info(vcf.bcftools_records(part))


@pytest.mark.slow
@with_cubed
def test_an_append_decodes_nothing_and_changes_no_chunk_of_the_store(way: Way, tmp_path: Path) -> None:
    store, _ = _start(way, tmp_path)
    for start, n in ((6, 5), (11, 1), (12, 7)):
        before = cohort.digest(store)
        plan = vczstore.plan("append", store, _batch(tmp_path, start, n)[0])
        assert (plan.decoded_chunks, plan.chunks_read) == (0, plan.encoded_chunks)
        result = vczstore.append(store, tmp_path / f"{start}-{n}.vcz", **OPTIONS)
        assert (result.decoded_bytes, result.chunks) == (0, plan.encoded_chunks)
        after = cohort.digest(store)
        changed = {name for name in before if after.get(name) != before[name]}
        if not way.is_icechunk:
            assert all(name.endswith("zarr.json") for name in changed)


@pytest.mark.slow
@with_cubed
def test_several_sources_and_other_dtypes(way: Way, tmp_path: Path) -> None:
    store, model = _start(way, tmp_path)
    (first, a), (second, b) = _batch(tmp_path, 6, 2), _batch(tmp_path, 8, 3, samples_chunk=2)
    c = some_arrays(10, cohort.ids(20, 2), seed=4)
    c["call_DP"], c["call_AD"] = c["call_DP"].astype("i8"), c["call_AD"].astype("i1")
    cohort.write_vcz(tmp_path / "c.vcz", c, variants_chunk=7)
    vczstore.append(store, first, second, tmp_path / "c.vcz", **OPTIONS)
    cohort.assert_same(way.read(store), cohort.expected_append(model, a, b, c))
    assert _columns(way, store) == (3, 3, 2, 2, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["zarr", "icechunk"])
def test_a_store_is_created_flexible(backend: str, tmp_path: Path) -> None:
    """An empty store is already flexible; the first batch, including its partial last chunk, becomes columns."""
    way = Way("icechunk" if backend == "icechunk" else "format3", "cubed")
    store = tmp_path / "store.vcz"
    place, model = _batch(tmp_path, 0, 7, samples_chunk=4)
    vczstore.create(store, place, sample_grid="flexible", backend_storage=backend, samples_chunk=5)
    assert vczstore.info(store).sample_columns == []
    vczstore.append(store, place, **OPTIONS)
    samples = [name for name in model if "samples" in cohort.DIMENSIONS[name]]
    contents = way.read(store)
    cohort.assert_same({n: contents[n] for n in samples}, {n: model[n] for n in samples})
    assert _columns(way, store) == (4, 3)
    assert vczstore.info(store).sample_columns == [4, 3]
    lines = "\n".join(vczstore.info(store).lines())
    assert "in columns of 4, 3" in lines
    assert f"vczstore regrid {store} --sample-grid regular" in lines


@pytest.mark.slow
def test_a_field_is_added_to_a_flexible_store(tmp_path: Path) -> None:
    """A field is added from sharded and from flexible sources, and is missing for old samples."""
    way = Way("format3_flexible", "cubed")
    store, _ = _start(way, tmp_path)
    for start, name, shards in ((6, "call_FC", (2, 2)), (10, "sample_pca", None)):
        arrays = cohort.make_arrays(10, cohort.ids(start, 4), seed=1)
        known = {n: a for n, a in way.read(store).items() if "samples" in cohort.DIMENSIONS[n]}
        selected = {n: a for n, a in arrays.items() if "samples" not in cohort.DIMENSIONS[n] or n in (*known, name)}
        source = tmp_path / f"{name}.vcz"
        cohort.write_vcz(source, selected, samples_chunk=2, shards=shards)
        if shards is None:
            vczstore.regrid(source, sample_grid="flexible", samples_chunk=3)
        vczstore.append(store, source, add_fields=[name], **OPTIONS)
        axis = cohort.DIMENSIONS[name].index("samples")
        added = way.read(store)[name].take(range(-4, 0), axis=axis)
        np.testing.assert_array_equal(added, arrays[name])
    assert _columns(way, store) == (3, 3, 4, 2, 2)
    assert vczstore.verify(store).errors == []


@pytest.mark.slow
def test_a_stopped_append_is_completed(tmp_path: Path) -> None:
    """After any number of edits, readers see the old samples; a different batch can be appended instead."""
    way = Way("format3_flexible", "cubed")
    (first, a), (second, b) = _batch(tmp_path, 6, 5, samples_chunk=2), _batch(tmp_path, 11, 5, samples_chunk=3)
    for n_edits in (0, 3, 6):
        store, model = _start(way, tmp_path / str(n_edits))
        plan, place = vczstore.plan("append", store, first), zarr.storage.LocalStore(store)
        for write in plan.writes:
            write.by_zarr(place)
        for edit in plan.edits[:n_edits]:
            edit.apply(place)
        assert _opened(way, store)["sample_id"].shape == (6,)
        contents = way.read(store)
        axes = {n: cohort.DIMENSIONS[n].index("samples") for n in model if "samples" in cohort.DIMENSIONS[n]}
        contents |= {n: np.take(contents[n], np.arange(6), axis=axis) for n, axis in axes.items()}
        cohort.assert_same(contents, model)
        batch, arrays = (second, b) if n_edits == 3 else (first, a)
        vczstore.append(store, batch, **OPTIONS)
        cohort.assert_same(way.read(store), cohort.expected_append(model, arrays))
        assert vczstore.verify(store).errors == []


# ---- compact and regrid ---------------------------------------------------------------------


@pytest.mark.slow
@with_cubed
def test_whole_columns_are_dropped_without_re_encoding(way: Way, tmp_path: Path) -> None:
    """Later columns are renumbered; only columns with removed and remaining samples are re-encoded."""
    store, model = _start(way, tmp_path, 9)
    gone = ["S0003", "S0004", "S0005"]
    vczstore.remove(store, gone, **OPTIONS)
    result = vczstore.compact(store, **OPTIONS)
    model = cohort.expected_compact(cohort.expected_remove(model, gone))
    cohort.assert_same(way.read(store), model)
    assert (_columns(way, store), result.decoded_bytes, result.plan.chunks_read) == ((3, 3), 0, 0)
    vczstore.remove(store, ["S0007"], **OPTIONS)
    plan = vczstore.plan("compact", store)
    assert {write.name: write.decoded for write in plan.writes if hasattr(write, "decoded")} == dict.fromkeys(
        plan.after.samples_arrays, (1,)
    )
    vczstore.compact(store, **OPTIONS)
    cohort.assert_same(way.read(store), cohort.expected_compact(cohort.expected_remove(model, ["S0007"])))
    assert _columns(way, store) == (3, 2)
    assert vczstore.verify(store).errors == []


@pytest.mark.slow
@with_cubed
def test_a_store_becomes_flexible_by_its_metadata_alone(way: Way, tmp_path: Path) -> None:
    """If the last column is full, nothing is re-encoded; otherwise only that column is."""
    for n, kind in ((6, 0), (7, 1)):
        plain = Way("icechunk" if way.is_icechunk else "format3", "cubed")
        arrays = some_arrays(10, cohort.ids(0, n))
        store = plain.make(tmp_path / str(n), arrays, samples_chunk=3)
        result = vczstore.regrid(store, sample_grid="flexible", **OPTIONS)
        assert bool(result.chunks) == bool(kind)
        assert _columns(way, store) == (3,) * (n // 3) + (1,) * kind
        cohort.assert_same(way.read(store), arrays)
        assert vczstore.regrid(store, sample_grid="flexible", **OPTIONS).plan.is_empty


@pytest.mark.slow
@with_cubed
def test_a_regular_copy_has_the_regular_metadata(way: Way, tmp_path: Path) -> None:
    """After regrid to flexible and back, all documents and chunks are, byte for byte, those of a regular store."""
    arrays = some_arrays(10, cohort.ids(0, 7))
    plain = Way("icechunk" if way.is_icechunk else "format3", "cubed")
    store = plain.make(tmp_path, arrays, samples_chunk=3)
    before = {n: a.metadata.to_dict() for n, a in _opened(way, store).arrays()}
    files = cohort.files_of(store)
    vczstore.regrid(store, sample_grid="flexible", samples_chunk=6, **OPTIONS)
    assert _columns(way, store) == (6, 1)
    vczstore.regrid(store, sample_grid="regular", samples_chunk=3, **OPTIONS)
    assert {n: a.metadata.to_dict() for n, a in _opened(way, store).arrays()} == before
    cohort.assert_same(way.read(store), arrays)
    if not way.is_icechunk:
        assert {n for n in files if n.rpartition("/")[2] != "zarr.json"} == {
            n for n in cohort.files_of(store) if n.rpartition("/")[2] != "zarr.json"
        }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["format2", "format3", "icechunk"])
def test_other_chunks_of_a_regular_store(kind: str, tmp_path: Path) -> None:
    way = Way(kind, "cubed")
    arrays = some_arrays(10, cohort.ids(0, 11))
    shards = None if kind == "format2" else (2, 2)
    store = way.make(tmp_path, arrays, samples_chunk=3, shards=shards)
    vczstore.regrid(store, samples_chunk=4, **OPTIONS)
    cohort.assert_same(way.read(store), arrays)
    group = _opened(way, store)
    assert group["call_DP"].chunks == (4, 4)
    assert group["call_DP"].shards == (None if shards is None else (8, 8))
    assert vczstore.verify(store).errors == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["format2", "format3", "icechunk", "icechunk_flexible"])
def test_other_chunks_of_variants_and_another_compressor(kind: str, tmp_path: Path) -> None:
    """All arrays change in one commit; columns stay in place, and arrays that do not change are skipped."""
    way = Way(kind, "cubed")
    arrays = some_arrays(10, cohort.ids(0, 7))
    store = way.make(tmp_path, arrays, samples_chunk=3, shards=(2, 1) if kind == "format3" else None)
    options: dict[str, Any] = {"variants_chunk": 3, "compressor": "lz4", "compression_level": 3}
    vczstore.regrid(store, **options, **OPTIONS)
    cohort.assert_same(way.read(store), arrays)
    for name, array in _opened(way, store).arrays():
        codec = array.compressors[-1]
        config = codec.get_config() if kind == "format2" else codec.to_dict()["configuration"]
        assert (config["cname"], config["clevel"]) == ("lz4", 3), name
        if "variants" in cohort.DIMENSIONS[name] and (
            kind != "icechunk_flexible" or "samples" not in cohort.DIMENSIONS[name]
        ):
            assert array.chunks[cohort.DIMENSIONS[name].index("variants")] == 3, name
    assert vczstore.verify(store).errors == []
    assert vczstore.plan("regrid", store, **options).is_empty
    if kind == "icechunk_flexible":
        assert _columns(way, store) == (3, 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["zarr", "icechunk"])
def test_region_queries_after_other_chunks_of_variants(backend: str, tmp_path: Path) -> None:
    """vcztools and bcftools agree on the records of a region: the index refers to the new chunks."""
    whole = vcf.write_vcf(tmp_path / "whole.vcf.gz", vcf.EXAMPLES["calls"].make())
    store = tmp_path / "store.vcz"
    vcf.to_vcz(whole, store, 3, 16, 3)
    if backend == "icechunk":
        vczstore.copy_store_to_icechunk(store, tmp_path / "store")
        store = tmp_path / "store"
    if backend == "zarr":
        broken = Path(shutil.copytree(store, tmp_path / "broken"))
        shutil.rmtree(broken / "variant_length")
        _refused(broken, partial(vczstore.regrid, broken, variants_chunk=2), "has a region_index", "no variant_length")
    vczstore.regrid(store, variants_chunk=2, **OPTIONS)
    assert vczstore.verify(store).errors == []
    head, *lines = vcf.bcftools_records(whole)
    contig, position = lines[len(lines) // 2].split("\t")[:2]
    region = f"{contig}:{position}-{position}"
    expected = [line for line in lines if line.split("\t")[:2] == [contig, position]]
    shown = vcf.records(vcf.vcztools_view(store, icechunk=backend == "icechunk", region=region))
    assert shown == [head, *expected]


def test_columns_that_are_appended_one_by_one_are_re_encoded_a_few_times() -> None:
    """One sample on each of 30 nights, merged nightly: at most 4 re-encodings per sample, and at most 6 columns."""
    columns: tuple[int, ...] = ()
    rewritten = 0
    for _ in range(30):
        before = (*columns, 1)
        columns = merged(before, 10_000)
        same = sum(1 for _ in next((g for k, g in groupby(zip(before, columns, strict=False), _is_same) if k), ()))
        rewritten += sum(columns[same:]) if columns != before else 0
        assert len(columns) <= 6
    assert sum(columns) == 30
    assert rewritten <= 4 * 30


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["format3_flexible"])
def test_re_encoded_bytes_of_30_nights(kind: str, tmp_path: Path) -> None:
    """One sample each, merged if there are more than 6 columns: at most 4 re-encodings per sample."""
    way, fields = Way(kind, "cubed"), ("call_genotype",)
    model = cohort.make_arrays(40, cohort.ids(0, 64), fields=fields)
    store = way.make(tmp_path, model, samples_chunk=64, variants_chunk=40)
    options = {"executor": "single-threaded"}
    appended = re_encoded = 0
    for night in range(30):
        batch = cohort.make_arrays(40, cohort.ids(100 + night, 1), seed=night, fields=fields)
        cohort.write_vcz(tmp_path / f"{night}.vcz", batch, samples_chunk=1, variants_chunk=40)
        result = vczstore.append(store, tmp_path / f"{night}.vcz", **options)
        assert result.decoded_bytes == 0
        re_encoded += vczstore.regrid(store, when="columns > 6", **options).decoded_bytes
        appended += batch["call_genotype"].nbytes
        model = cohort.expected_append(model, batch)
    assert 0 < re_encoded <= 4 * appended
    assert len(_columns(way, store)) <= 7
    cohort.assert_same(way.read(store), model)


@pytest.mark.slow
def test_columns_are_merged_when_they_are_many_or_narrow(tmp_path: Path) -> None:
    """Otherwise regrid is a no-op. The default width is that of the widest column; wider columns are reported."""
    way = Way("format3_flexible", "cubed")
    store, _ = _start(way, tmp_path)
    for i in (6, 7):
        vczstore.append(store, _batch(tmp_path, i, 1)[0], **OPTIONS)
    assert _columns(way, store) == (3, 3, 1, 1)
    for when in ("columns > 4", "narrowest < 1"):
        assert vczstore.plan("regrid", store, when=when, samples_chunk=4).is_empty
        assert f"nothing to do: the condition '{when}' is not met" in run("regrid", store, "--when", when).stdout
    dry = run("regrid", store, "--when", "columns > 4", "--compressor", "lz4", "--dry-run").stdout
    assert "columns are kept: the condition 'columns > 4' is not met" in dry
    for when, width in (("columns > 3", None), ("narrowest<2", None), ("columns>3", 8)):
        plan = vczstore.plan("regrid", store, when=when, samples_chunk=width)
        assert plan.counts["columns after"] == 1
    plan = vczstore.plan("regrid", store, samples_chunk=2)
    assert plan.notes["not split"].startswith("2 of 3 columns have more than 2 samples, up to 3; --sample-grid regular")


def test_the_number_of_columns_without_calls(tmp_path: Path) -> None:
    """It is that of `sample_id`, also if other arrays are changed."""
    arrays = {name: a for name, a in some_arrays(10, cohort.ids(0, 6)).items() if not name.startswith("call_")}
    cohort.write_vcz(tmp_path / "store.vcz", arrays, samples_chunk=3, variants_chunk=2)
    for options in ({"compressor": "lz4"}, {"variants_chunk": 4}, {"compressor": "lz4", "samples_chunk": 2}):
        counts = vczstore.plan("regrid", tmp_path / "store.vcz", **options).counts
        assert counts == {"columns before": 2, "columns after": 3 if "samples_chunk" in options else 2}


def _is_same(pair: tuple[int, int]) -> bool:
    return pair[0] == pair[1]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 60))
def test_merging(columns: list[int], most: int) -> None:
    """Only adjacent columns are merged, up to the requested width; merging is idempotent."""
    result = merged(columns, most)
    assert sum(result) == sum(columns)
    assert set(np.cumsum(result)) <= set(np.cumsum(columns))
    assert all(width <= most or width in columns for width in result)
    assert merged(result, most) == result


# ---- any sequence ---------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 4), st.integers(1, 4)),
        st.tuples(st.just("remove"), st.sets(st.integers(0, 20), min_size=1, max_size=6)),
        st.tuples(st.just("compact")),
        st.tuples(st.just("merge"), st.integers(1, 9)),
        st.tuples(st.just("regular"), st.integers(1, 5)),
    ),
    min_size=2,
    max_size=6,
)
FIELDS = ("sample_sex", "call_genotype", "call_FT")


@settings(max_examples=7, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(CUBED), steps)
@example(Way("icechunk_flexible", "cubed"), [("merge", 1), ("regular", 1)])  # columns get indices that did not exist
@pytest.mark.slow
def test_random_sequences_of_operations(way: Way, sequence: list[tuple[Any, ...]]) -> None:
    """Values agree bit for bit with the model of a regular store, and `verify` finds no errors."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = cohort.make_arrays(6, cohort.ids(0, 5), fields=FIELDS)
        store = way.make(folder, model, samples_chunk=2)
        start = 5
        for step in sequence:
            model, start = _apply(step, way, store, model, start, folder)
            cohort.assert_same(way.read(store), model)
        assert vczstore.verify(store).errors == []


def _apply(step: tuple[Any, ...], way: Way, store: Path, model: Arrays, start: int, folder: Path) -> tuple[Arrays, int]:
    """Apply a step to the store and to the model; return the model, and how many samples were ever appended."""
    options = {"impl": "zarr"} if step[-1] in (1, 3) else OPTIONS
    match step:
        case ("append", n, chunk):
            batch = cohort.make_arrays(6, cohort.ids(start, n), seed=start, fields=FIELDS)
            cohort.write_vcz(folder / f"{start}.vcz", batch, samples_chunk=chunk)
            vczstore.append(store, folder / f"{start}.vcz", **options)
            return cohort.expected_append(model, batch), start + n
        case ("remove", where):
            ids = [s for i, s in enumerate(model["sample_id"].tolist()) if i in where and s]
            if ids:
                vczstore.remove(store, ids, **options)
            return cohort.expected_remove(model, ids) if ids else model, start
        case ("compact",):
            vczstore.compact(store, **options)
            return cohort.expected_compact(model), start
        case ("merge", n):
            vczstore.regrid(store, sample_grid="flexible", samples_chunk=n, **options)
        case ("regular", n):
            vczstore.regrid(store, sample_grid="regular", samples_chunk=n, **options)
    return model, start


# ---- readers --------------------------------------------------------------------------------


@pytest.mark.slow
@with_cubed
def test_readers(way: Way, tmp_path: Path) -> None:
    """zarr, icechunk, xarray and Dask read flexible stores; zarr without its flag and vcztools raise errors."""
    store, model = _start(way, tmp_path)
    place, arrays = _batch(tmp_path, 6, 2)
    vczstore.append(store, place, **OPTIONS)
    model = cohort.expected_append(model, arrays)
    cohort.assert_same(way.read(store), model)
    opened = xr.open_zarr(_opened(way, store).store, consolidated=False, chunks={}, decode_cf=False)
    assert opened.chunks["samples"] == (3, 3, 2)
    np.testing.assert_array_equal(opened["call_genotype"].compute(), model["call_genotype"])
    counted = (opened["call_DP"] > 5).sum("samples").compute()
    np.testing.assert_array_equal(counted, (model["call_DP"] > 5).sum(axis=1))
    with pytest.raises(Exception, match="only defined for arrays using regular chunk grids"):
        vcf.vcztools_view(store, icechunk=way.is_icechunk)
    with zarr.config.set({rectilinear.FLAG: False}), pytest.raises(ValueError, match="Rectilinear chunk grids are"):
        dict(_opened(way, store).arrays())


@pytest.mark.parametrize("backend", ["zarr", "icechunk"])
@pytest.mark.slow
def test_vcztools_reads_the_regular_copy(backend: str, tmp_path: Path) -> None:
    """vcztools on a store of two batches agrees with bcftools on the VCF."""
    text, parts = vcf.EXAMPLES["calls"].make(), vcf.EXAMPLES["calls"].parts
    whole = vcf.write_vcf(tmp_path / "whole.vcf.gz", text)
    batches = []
    for i, samples in enumerate(parts):
        part = vcf.split_by_samples(whole, [*samples], tmp_path / f"{i}.vcf.gz")
        vcf.to_vcz(part, tmp_path / f"{i}.vcz", 3, 16, 3)
        batches.append(tmp_path / f"{i}.vcz")
    store = batches[0]
    if backend == "icechunk":
        store = tmp_path / "store"
        vczstore.copy_store_to_icechunk(batches[0], store)
    vczstore.regrid(store, sample_grid="flexible", **OPTIONS)
    for batch in batches[1:]:
        vczstore.append(store, batch, **OPTIONS)
    vczstore.regrid(store, sample_grid="regular", samples_chunk=3, **OPTIONS)
    shown = vcf.records(vcf.vcztools_view(store, icechunk=backend == "icechunk"))
    assert shown == vcf.bcftools_records(whole)


# ---- refusals -------------------------------------------------------------------------------


def _refused(store: Path, call: Callable[[], object], *words: str) -> None:
    before = cohort.digest(store)
    with pytest.raises(VczstoreError) as error:
        call()
    (line,) = str(error.value).splitlines()
    assert all(word in line for word in words), line
    assert cohort.digest(store) == before


def test_format_2_is_refused(tmp_path: Path) -> None:
    store = Way("format2", "cubed").make(tmp_path, some_arrays(10, cohort.ids(0, 4)))
    _refused(
        store,
        lambda: vczstore.regrid(store, sample_grid="flexible"),
        f"regrid: {store} is of Zarr format 2",
        f"vczstore copy-store-to-icechunk {store} NEW_STORE",
    )


def test_shards_are_refused(tmp_path: Path) -> None:
    store = Way("format3", "cubed").make(tmp_path, some_arrays(10, cohort.ids(0, 4)), shards=(2, 2))
    _refused(
        store,
        lambda: vczstore.regrid(store, sample_grid="flexible"),
        "regrid: call_AD of",
        "has shards of (8, 6, 2)",
        f"vczstore regrid {store} --sample-grid flexible --samples-shard 0",
    )


def test_the_memory_for_other_chunks_is_that_of_the_largest_array(tmp_path: Path) -> None:
    """The memory that the message names is enough for all arrays, and no more than that."""
    cohort.write_vcz(tmp_path / "store.vcz", some_arrays(10, cohort.ids(0, 5)))
    regrid = partial(vczstore.plan, "regrid", tmp_path / "store.vcz", samples_chunk=10**9, variants_chunk=10**9)
    message = (
        r"^regrid: a task needs (\d+)MB of memory for call_FT, and 2000MB are allowed; give it --allowed-mem \1MB, or "
        "a smaller --samples-chunk or --variants-chunk$"
    )
    with pytest.raises(MemoryLimitError, match=message) as caught:
        regrid()
    enough = int(str(caught.value).partition("MB")[0].split()[-1])
    assert not regrid(allowed_mem=f"{enough}MB").is_empty
    with pytest.raises(MemoryLimitError, match="for call_FT, "):
        regrid(allowed_mem=f"{enough - 1}MB")


def test_nothing_to_change_is_refused(tmp_path: Path) -> None:
    store = Way("format3", "cubed").make(tmp_path, some_arrays(10, cohort.ids(0, 4)))
    _refused(store, lambda: vczstore.regrid(store), "nothing to change; give --sample-grid, ")
    for when in ("columns < 5", "narrowest<", "columns > -1"):
        _refused(store, partial(vczstore.regrid, store, when=when), f"when is {when!r}; write 'columns > N'")


@pytest.mark.slow
def test_xarray_is_refused(tmp_path: Path) -> None:
    """A flexible grid of the store or of a source is refused."""
    way = Way("format3_flexible", "cubed")
    store, _ = _start(way, tmp_path)
    place, _ = _batch(tmp_path, 6, 2)
    words = "flexible sample grid, which --impl xarray does not take; leave impl out"
    _refused(store, lambda: vczstore.append(store, place, impl="xarray"), words)
    _refused(store, lambda: vczstore.remove(store, ["S0001"], impl="xarray"), words)
    _refused(place, lambda: vczstore.append(place, store, impl="xarray"), words)


@pytest.mark.slow
def test_a_partial_last_column_is_refused(tmp_path: Path) -> None:
    """zarr leaves such a column when a flexible array becomes shorter; regrid repairs it."""
    way = Way("format3_flexible", "cubed")
    store, model = _start(way, tmp_path)
    place, arrays = _batch(tmp_path, 6, 2)
    group = zarr.open_group(store)
    for name, array in group.arrays():
        if "samples" in cohort.DIMENSIONS[name]:
            axis = cohort.DIMENSIONS[name].index("samples")
            array.resize(tuple(5 if i == axis else n for i, n in enumerate(array.shape)))
    advice = f"vczstore regrid {store} --sample-grid flexible"
    _refused(store, lambda: vczstore.append(store, place), "3 samples wide and hold 2", advice)
    vczstore.regrid(store, sample_grid="flexible", **OPTIONS)
    vczstore.append(store, place, **OPTIONS)
    expected = cohort.expected_append(cohort.select(model, cohort.ids(0, 5)), arrays)
    cohort.assert_same(way.read(store), expected)
    assert _columns(way, store) == (3, 2, 2)


def test_chunks_of_remote_plain_zarr_are_not_rewritten() -> None:
    """Readers would see half of the change, unless the store is a local folder; metadata alone may be changed."""
    memory = zarr.storage.MemoryStore()
    arrays = some_arrays(10, cohort.ids(0, 6))
    cohort.write_vcz(memory, arrays)
    vczstore.regrid(memory, sample_grid="flexible", **OPTIONS)
    cohort.assert_same(cohort.read_vcz(memory), arrays)
    with pytest.raises(VczstoreError, match="would be rewritten, which on plain Zarr takes a folder"):
        vczstore.regrid(memory, samples_chunk=6, **OPTIONS)
    cohort.assert_same(cohort.read_vcz(memory), arrays)


@pytest.mark.slow
@with_cubed
def test_wider_dtypes_drops_and_updates(way: Way, tmp_path: Path) -> None:
    """Re-encoding for a wider dtype, or for replaced samples, keeps the columns of the store."""
    store, model = _start(way, tmp_path)
    place, arrays = _batch(tmp_path, 6, 2)
    vczstore.append(store, place, **OPTIONS)
    model = cohort.expected_append(model, arrays)
    wide = some_arrays(10, cohort.ids(8, 4), seed=8)
    wide["call_AD"] = wide["call_AD"].astype("i8") + 2**40
    del wide["call_FT"]
    cohort.write_vcz(tmp_path / "wide.vcz", wide, samples_chunk=4)
    vczstore.append(store, tmp_path / "wide.vcz", drop_fields=["FT"], **OPTIONS)
    wide["call_FT"] = np.full((10, 4), ".", dtype=object)
    model["call_AD"] = model["call_AD"].astype("i8")
    model = cohort.expected_append(model, wide)
    cohort.assert_same(way.read(store), model)
    recalled = some_arrays(10, ["S0009", "S0001", "S0006", "S0007"], seed=9)
    recalled["call_DP"] = recalled["call_DP"].astype("i4") + 2**20
    cohort.write_vcz(tmp_path / "recalled.vcz", recalled, samples_chunk=2)
    vczstore.update(store, tmp_path / "recalled.vcz", **OPTIONS)
    model["call_DP"] = model["call_DP"].astype("i4")
    cohort.assert_same(way.read(store), cohort.expected_update(model, recalled))
    assert _columns(way, store) == (3, 3, 2, 4)
    assert vczstore.verify(store).errors == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
def test_consolidated_metadata_are_updated(tmp_path: Path) -> None:
    model = some_arrays(10, cohort.ids(0, 6))
    store = tmp_path / "store.vcz"
    cohort.write_vcz(store, model, consolidated=True)
    place, arrays = _batch(tmp_path, 6, 2)
    vczstore.regrid(store, sample_grid="flexible", **OPTIONS)
    vczstore.append(store, place, **OPTIONS)
    model = cohort.expected_append(model, arrays)
    for _ in range(2):
        group = zarr.open_group(store, mode="r", use_consolidated=True)
        cohort.assert_same({name: np.asarray(array[...]) for name, array in group.arrays()}, model)
        assert vczstore.verify(store).errors == []
        vczstore.regrid(store, sample_grid="regular", samples_chunk=5, **OPTIONS)


@pytest.mark.slow
@with_cubed
def test_a_job_merges_columns(way: Way, tmp_path: Path) -> None:
    """Columns are merged after the append, in the same commit on Icechunk, and only once."""
    store, model = _start(way, tmp_path)
    step = f"append: {tmp_path}/inbox/*.vcz"
    (tmp_path / "job.yaml").write_text(f"store: {store}\nsteps:\n  - {step}\n  - regrid: 8\n  - remove: [S0001]\n")
    (tmp_path / "inbox").mkdir()
    for start, columns in ((6, (8,)), (8, (8, 2)), (10, (8, 4))):
        _, arrays = _batch(tmp_path / "inbox", start, 2)
        before = len(vczstore.info(store).history)
        result = CliRunner().invoke(main, ["run", str(tmp_path / "job.yaml"), "--executor", "threads"])
        assert result.exit_code == 0, result.output
        model = cohort.expected_remove(cohort.expected_append(model, arrays), ["S0001"])
        cohort.assert_same(way.read(store), model)
        assert _columns(way, store) == columns
        assert len(vczstore.info(store).history) == before + way.is_icechunk
    again = CliRunner().invoke(main, ["run", str(tmp_path / "job.yaml")])
    assert (again.exit_code, "already applied" in again.output) == (0, True)
    assert vczstore.verify(store).errors == []


@pytest.mark.slow
@pytest.mark.parametrize("removed", [(), ("S0001", "S0006", "S0007")])
def test_a_compacted_copy_is_flexible(removed: tuple[str, ...], tmp_path: Path) -> None:
    way = Way("format3_flexible", "cubed")
    store, model = _start(way, tmp_path)
    place, arrays = _batch(tmp_path, 6, 2)
    vczstore.append(store, place, **OPTIONS)
    model = cohort.expected_append(model, arrays)
    if removed:
        vczstore.remove(store, removed, **OPTIONS)
        model = cohort.expected_compact(cohort.expected_remove(model, removed))
    vczstore.compact(store, tmp_path / "copy.vcz", **OPTIONS)
    cohort.assert_same(way.read(tmp_path / "copy.vcz"), model)
    assert _columns(way, tmp_path / "copy.vcz") == ((2, 3) if removed else (3, 3, 2))
    assert vczstore.verify(tmp_path / "copy.vcz").errors == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["format3_flexible", "icechunk_flexible"])
def test_a_compaction_to_no_samples_leaves_no_chunks(kind: str, tmp_path: Path) -> None:
    """A flexible grid without samples keeps one column: its chunks are deleted, and a batch can be appended."""
    way = Way(kind, "cubed")
    store, model = _start(way, tmp_path)
    gone = model["sample_id"].tolist()
    vczstore.remove(store, gone, **OPTIONS)
    vczstore.compact(store, **OPTIONS)
    report = vczstore.verify(store)
    assert (report.errors, report.outside) == ([], {})
    place, arrays = _batch(tmp_path, 20, 2)
    vczstore.append(store, place, **OPTIONS)
    expected = cohort.expected_append(cohort.expected_compact(cohort.expected_remove(model, gone)), arrays)
    cohort.assert_same(way.read(store), expected)


@pytest.mark.slow
def test_a_stopped_append_is_repaired(tmp_path: Path) -> None:
    """After the repair, chunks of the append are garbage; a narrower batch can be appended instead."""
    way = Way("format3_flexible", "cubed")
    store, model = _start(way, tmp_path)
    (first, _), (second, arrays) = _batch(tmp_path, 6, 5, samples_chunk=2), _batch(tmp_path, 20, 1)
    plan, place = vczstore.plan("append", store, first), zarr.storage.LocalStore(store)
    for write in plan.writes:
        write.by_zarr(place)
    for edit in plan.edits[:3]:
        edit.apply(place)
    vczstore.repair(store, **OPTIONS)
    cohort.assert_same(way.read(store), model)
    assert _columns(way, store) == (3, 3)
    assert vczstore.gc(store, **OPTIONS).counts["chunks deleted"] > 0
    vczstore.append(store, second, **OPTIONS)
    cohort.assert_same(way.read(store), cohort.expected_append(model, arrays))
    assert _columns(way, store) == (3, 3, 1)
    report = vczstore.verify(store)
    assert (report.errors, report.outside) == ([], {})
