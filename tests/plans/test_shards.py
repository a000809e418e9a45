"""Stores with shards: regrid adds, changes and removes them, and chunks are copied into them verbatim."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.codecs import BloscCodec

import vczstore
from plans.core.memory import DEFAULT_RESERVED
from tests.support import cohort, vcf
from tests.support.cohort import some_arrays
from tests.support.ways import Way
from vczstore.errors import MemoryLimitError, OptionError, UnsuitableError, VczstoreError

pytestmark = pytest.mark.slow

OPTIONS: dict[str, Any] = {"executor": "threads", "max_workers": 1}


def _opened(way: Way, store: Path) -> zarr.Group:
    return zarr.open_group(cohort.icechunk_store(store) if way.is_icechunk else store, mode="r", use_consolidated=False)


def _shards(way: Way, store: Path) -> dict[str, tuple[int, ...] | None]:
    return {name: array.shards for name, array in _opened(way, store).arrays()}


def _metadata(way: Way, store: Path) -> dict[str, Any]:
    return {name: array.metadata.to_dict() for name, array in _opened(way, store).arrays()}


# ---- regrid ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["format3", "icechunk"])
def test_shards_are_added_changed_and_removed_without_decoding(kind: str, tmp_path: Path) -> None:
    """xarray reads each layout; once the shards are removed, metadata and chunks are the original ones again."""
    fields = ("sample_sex", "call_AD", "call_GL", "call_FT")
    way, arrays = Way(kind, "cubed"), cohort.make_arrays(10, cohort.ids(0, 11), fields=fields)
    store = way.make(tmp_path, arrays, samples_chunk=3)
    before, files = _metadata(way, store), cohort.files_of(store)
    for options, expected in (
        ({"samples_shard": 6}, {"call_AD": (4, 6, 2), "sample_id": (6,), "variant_position": None}),
        ({"variants_shard": 8}, {"call_AD": (8, 6, 2), "sample_id": (6,), "variant_position": (8,)}),
        (
            {"samples_shard": 9, "variants_shard": 4},
            {"call_AD": (4, 9, 2), "sample_id": (9,), "variant_position": None},
        ),
        ({"samples_shard": 0}, {}),
    ):
        result = vczstore.regrid(store, **options, **OPTIONS)
        assert (result.decoded_bytes, result.plan.decoded_chunks) == (0, 0)
        shards = _shards(way, store)
        assert {name: shards[name] for name in expected} == expected
        read = xr.open_zarr(_opened(way, store).store, consolidated=False, chunks=None, decode_cf=False)
        cohort.assert_same({name: read[name].to_numpy() for name in arrays}, arrays)
        assert vczstore.verify(store).errors == []
        assert vczstore.plan("regrid", store, **options).is_empty
    assert _metadata(way, store) == before
    if not way.is_icechunk:
        chunks = {name: content for name, content in files.items() if not name.endswith("zarr.json")}
        after = cohort.files_of(store)
        assert {name: after[name] for name in chunks} == chunks


def test_shards_with_other_chunks_and_another_compressor(tmp_path: Path) -> None:
    """Other chunks or compressors re-encode everything; from shards to a flexible grid, chunks are copied."""
    way, arrays = Way("format3", "cubed"), some_arrays(10, cohort.ids(0, 11))
    store = way.make(tmp_path, arrays, samples_chunk=3)
    options = {"samples_chunk": 4, "samples_shard": 8, "variants_shard": 8, "compressor": "lz4"}
    vczstore.regrid(store, **options, **OPTIONS)
    cohort.assert_same(way.read(store), arrays)
    genotypes = _opened(way, store)["call_genotype"]
    assert (genotypes.chunks, genotypes.shards) == ((4, 4, 2), (8, 8, 2))
    assert genotypes.compressors[0].to_dict()["configuration"]["cname"] == "lz4"
    vczstore.regrid(store, sample_grid="flexible", samples_shard=0, **OPTIONS)
    cohort.assert_same(way.read(store), arrays)
    assert set(_shards(way, store).values()) == {None}
    assert vczstore.info(store).sample_columns is not None


@pytest.mark.parametrize("impl", ["zarr", "xarray"])
def test_other_implementations(impl: str, tmp_path: Path) -> None:
    way, arrays = Way("format3", impl), some_arrays(10, cohort.ids(0, 11))
    store = way.make(tmp_path, arrays, samples_chunk=3)
    for options in ({"samples_shard": 6, "variants_shard": 8}, {"samples_shard": 0}):
        vczstore.regrid(store, **options, **way.options)
        cohort.assert_same(way.read(store), arrays)
    assert vczstore.verify(store).errors == []


def test_vcztools_reads_a_store_without_shards(tmp_path: Path) -> None:
    """vcztools fails with shards, and `export` to VCF is refused; without shards it agrees with bcftools."""
    whole = vcf.write_vcf(tmp_path / "whole.vcf.gz", vcf.EXAMPLES["calls"].make())
    store = tmp_path / "store.vcz"
    vcf.to_vcz(whole, store, 3, 16, 8)
    vczstore.regrid(store, samples_shard=16, variants_shard=32, **OPTIONS)
    assert f"vczstore regrid {store} --samples-shard 0" in "\n".join(vczstore.info(store).lines())
    with pytest.raises(zarr.errors.BoundsCheckError):
        vcf.vcztools_view(store)
    _refused(
        store, partial(vczstore.export, store, tmp_path / "out.vcf"), UnsuitableError, "has shards", "--samples-shard 0"
    )
    vczstore.regrid(store, samples_shard=0, **OPTIONS)
    assert vcf.records(vcf.vcztools_view(store)) == vcf.bcftools_records(whole)


def _refused(store: Path, call: Callable[[], object], kind: type[VczstoreError], *words: str) -> None:
    before = cohort.digest(store)
    with pytest.raises(kind) as error:
        call()
    (line,) = str(error.value).splitlines()
    assert all(word in line for word in words), line
    assert cohort.digest(store) == before


def test_refusals(tmp_path: Path) -> None:
    arrays = some_arrays(10, cohort.ids(0, 11))
    store = Way("format3", "cubed").make(tmp_path, arrays, samples_chunk=3)

    def regrid(**options: Any) -> Callable[[], object]:
        return partial(vczstore.regrid, store, **options, **OPTIONS)

    words = (
        "has chunks of 3 samples, of which a shard of 7 holds no whole number; let --samples-shard be a multiple of 3"
    )
    _refused(store, regrid(samples_shard=7), UnsuitableError, words)
    _refused(store, regrid(samples_shard=0, variants_shard=8), OptionError, "0 stands for no shards at all")
    _refused(store, regrid(samples_shard=6, sample_grid="flexible"), UnsuitableError, "add --sample-grid regular")
    little = DEFAULT_RESERVED + 10_000
    needed = r"regrid: a task needs \d+MB of memory for \w+, and 300MB are allowed; give it --allowed-mem \d+MB, or a "
    needed += "smaller --samples-shard$"
    with pytest.raises(MemoryLimitError, match=needed):
        vczstore.regrid(store, samples_shard=3_000_000, allowed_mem=little, **OPTIONS)
    old = Way("format2", "cubed").make(tmp_path / "2", arrays)
    words = (
        f"is of Zarr format 2, which has no shards; copy it, and regrid the copy: vczstore copy-store-to-icechunk {old}"
    )
    _refused(old, partial(vczstore.regrid, old, samples_shard=6), UnsuitableError, words)
    assert vczstore.plan("regrid", old, samples_shard=0).is_empty


# ---- appending into shards ------------------------------------------------------------------


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A list that collects the shapes of the chunks that Blosc decodes or encodes."""
    shapes: list[tuple[int, ...]] = []
    for name in ("_decode_sync", "_encode_sync"):
        original = getattr(BloscCodec, name)

        def counted(self: BloscCodec, value: Any, spec: Any, original: Any = original) -> Any:
            shapes.append(spec.shape)
            return original(self, value, spec)

        monkeypatch.setattr(BloscCodec, name, counted)
    return shapes


BLOSC = BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle", typesize=1)
INTO_SHARDS: dict[str, tuple[dict[str, Any], ...]] = {
    "the same shards": ({"shards": (2, 2)},),
    "no shards, and others": ({}, {"shards": (1, 3)}),
}


@pytest.mark.parametrize("kind", ["format3", "icechunk"])
@pytest.mark.parametrize("layouts", INTO_SHARDS.values(), ids=INTO_SHARDS)
def test_an_append_that_begins_within_a_shard_decodes_no_shard(
    kind: str, layouts: tuple[dict[str, Any], ...], coded: list[tuple[int, ...]], tmp_path: Path
) -> None:
    """9 samples in shards of 6 and chunks of 3: only if the append begins within a chunk is that chunk decoded."""
    way, model = Way(kind, "cubed"), some_arrays(10, cohort.ids(0, 9))
    store = way.make(tmp_path, model, shards=(2, 2), compressors=BLOSC)
    sizes = [*[6] * (len(layouts) - 1), 7, 2]
    for start, n, *layout in zip(np.cumsum([9, *sizes]), sizes, (*layouts, {}), strict=False):
        cohort.write_vcz(
            tmp_path / f"{start}.vcz", some_arrays(10, cohort.ids(int(start), n)), compressors=BLOSC, **layout[0]
        )
    *sources, last = sorted(tmp_path.glob("[0-9]*.vcz"), key=lambda path: int(path.stem))
    coded.clear()
    result = vczstore.append(store, *sources, require_direct_copy=True, **OPTIONS)
    assert not [shape for shape in coded if shape[:2] == (4, 3)]
    assert (result.decoded_bytes, result.plan.decoded_chunks) == (0, 0)
    model = cohort.expected_append(model, *(cohort.read_vcz(place) for place in sources))
    cohort.assert_same(way.read(store), model)
    coded.clear()
    result = vczstore.append(store, last, **OPTIONS)
    n_coded = len([shape for shape in coded if shape[:2] == (4, 3)])
    n_arrays, rows = sum(shards is not None for shards in _shards(way, store).values()), 3
    assert n_coded == 3 * n_arrays * rows, "a chunk of the store and one of the batch are decoded, and one is encoded"
    assert result.plan.decoded_chunks > 0
    cohort.assert_same(way.read(store), cohort.expected_append(model, cohort.read_vcz(last)))
    assert vczstore.verify(store).errors == []


def test_chunks_are_copied_verbatim_out_of_shards(tmp_path: Path) -> None:
    """If a shard of the batch is truncated, readers see the old samples."""
    way, model = Way("format3", "cubed"), some_arrays(10, cohort.ids(0, 9))
    store, place = way.make(tmp_path, model), tmp_path / "batch.vcz"
    batch = some_arrays(10, cohort.ids(9, 8), seed=1)
    cohort.write_vcz(place, batch, shards=(2, 2))
    shard = place / "call_DP" / "c" / "0" / "0"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(VczstoreError, match=r"a chunk of call_DP in .*batch\.vcz cannot be decoded"):
        vczstore.append(store, place, **OPTIONS)
    cohort.assert_same(way.read(store), model)
    shard.write_bytes(content)
    assert vczstore.append(store, place, **OPTIONS).decoded_bytes == 0
    cohort.assert_same(way.read(store), cohort.expected_append(model, batch))


@pytest.mark.parametrize("shards", [{"shards": (4, 4)}, {}], ids=["into shards", "out of shards"])
def test_without_variants(shards: dict[str, Any], tmp_path: Path) -> None:
    """Samples are appended although there are no chunks to assemble."""
    layouts = [shards, {"shards": (4, 4)} if not shards else {}]
    for name, ids, layout in zip(("store", "batch"), (cohort.ids(0, 3), cohort.ids(3, 2)), layouts, strict=True):
        cohort.write_vcz(tmp_path / name, cohort.some_arrays(0, ids), variants_chunk=2, samples_chunk=2, **layout)
    vczstore.append(tmp_path / "store", tmp_path / "batch")
    assert list(cohort.read_vcz(tmp_path / "store")["sample_id"]) == cohort.ids(0, 5)
    vczstore.update(tmp_path / "store", tmp_path / "batch")
    vczstore.export(tmp_path / "store", tmp_path / "out")
    assert cohort.read_vcz(tmp_path / "out")["call_genotype"].shape[:2] == (0, 5)
