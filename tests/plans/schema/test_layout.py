"""Chunk layout of a store: what `create` chooses, what the first append inherits, and what readers rely on."""

from __future__ import annotations

import io
import pickle
import resource
import warnings
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pysam.bcftools
import pytest
import zarr

import vczstore
from tests.support import cohort, vcf
from tests.support.command_line import run
from tests.support.covering import in_turn
from tests.support.refusals import complain
from vczstore.errors import IncompatibleError, OptionError
from vczstore.vcz.model import dimensions

HEADER = (
    "##fileformat=VCFv4.2",
    '##FILTER=<ID=PASS,Description="All filters passed">',
    "##contig=<ID=1,length=248956422>",
    "##contig=<ID=2,length=248956422>",
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
)


def make(folder: Path, samples: list[str], sites: list[tuple[str, int, str]]) -> Path:
    """Write a VCF of heterozygous calls; `sites` holds contig, position and ID of each variant."""
    head = "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples])
    rows = ["\t".join([c, str(p), i, "A", "C", ".", "PASS", ".", "GT", *["0/1"] * len(samples)]) for c, p, i in sites]
    return vcf.write_vcf(folder / f"{samples[0]}.vcf.gz", "\n".join([*HEADER, head, *rows, ""]))


def positions(n: int) -> list[tuple[str, int, str]]:
    """Return n sites on each of two contigs."""
    return [(contig, 1000 + 10 * i, ".") for contig in "12" for i in range(n)]


def view(store: Path, region: str) -> list[list[str]]:
    """Return the records of a region, which vcztools locates with the region index."""
    is_icechunk = (store / "snapshots").is_dir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of vcztools itself
        import vcztools

        text = io.StringIO()
        root = vcztools.open_zarr(store, backend_storage="icechunk" if is_icechunk else None)
        with vcztools.VczReader(root) as reader:
            reader.set_variants(vcztools.regions.build_chunk_plan(reader, regions=[region]))
            vcztools.write_vcf(reader, text, no_version=True)
    return [line.split("\t") for line in vcf.records(text.getvalue())[1:]]


def open_root(store: Path) -> zarr.Group:
    return zarr.open_group(cohort.icechunk_store(store) if (store / "snapshots").is_dir() else store, mode="r")


def chunks_of(store: Path, dimension: str) -> set[int]:
    """Return the chunk lengths along a dimension, over all arrays of a store that have it."""
    lengths = set()
    for _, array in open_root(store).arrays():
        names = dimensions(array)
        if dimension in names:
            lengths.add(array.chunks[names.index(dimension)])
    return lengths


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A has 40 variants in chunks of 20, format 2; B has 30 of them in chunks of 10, format 3."""
    folder = tmp_path_factory.mktemp("layout")
    a, b = make(folder, ["A1"], positions(20)), make(folder, ["B1"], positions(15))
    return {
        "A": vcf.to_vcz(a, folder / "a.vcz", 2, 20, None),
        "B": vcf.to_vcz(b, folder / "b.vcz", 3, 10, None),
    }


@pytest.mark.parametrize(
    ("made", "appended", "backend"),
    [("AB", "AB", "zarr"), ("BA", "AB", "zarr"), ("AB", "BA", "icechunk")],
)
@pytest.mark.slow
def test_regions_are_found_for_any_chunks_of_sources(
    sources: dict[str, Path], tmp_path: Path, made: str, appended: str, backend: str
) -> None:
    """The first append cuts calls along the variants like the store, because the region index counts chunks."""
    out = tmp_path / "out"
    vczstore.create(out, *(sources[s] for s in made), backend_storage=backend)
    vczstore.append(out, *(sources[s] for s in appended), harmonise=True)
    assert chunks_of(out, "variants") == {20}
    assert chunks_of(out, "samples") == {1_000}
    calls = {row[1]: dict(zip(appended, row[9:], strict=True)) for row in view(out, "2:1000-1030")}
    assert calls == {str(p): {"A": "0/1", "B": "0/1"} for p in (1000, 1010, 1020, 1030)}
    assert [row[1] for row in view(out, "2:1140-")] == ["1140", "1150", "1160", "1170", "1180", "1190"]
    assert vczstore.verify(out).ok


@pytest.mark.slow
def test_regions_are_found_in_a_normalised_vcz(sources: dict[str, Path], tmp_path: Path) -> None:
    """The region index is copied from the store, so the calls are chunked like the store's."""
    vczstore.create(tmp_path / "store", sources["A"])
    vczstore.normalise(tmp_path / "store", sources["B"], tmp_path / "out")
    assert chunks_of(tmp_path / "out", "variants") == {20}
    assert [row[1] for row in view(tmp_path / "out", "2:1000-1030")] == ["1000", "1010", "1020", "1030"]
    assert vczstore.verify(tmp_path / "out").ok


@pytest.mark.parametrize("backend", ["zarr", "icechunk"])
@pytest.mark.slow
def test_requested_chunks(sources: dict[str, Path], tmp_path: Path, backend: str) -> None:
    """The requested lengths apply to every array, including those that the first append creates."""
    out = tmp_path / "out"
    options = ["--samples-chunk", "3", "--variants-chunk", "7", "--backend-storage", backend]
    run("create", out, sources["A"], sources["B"], *options)
    assert (chunks_of(out, "samples"), chunks_of(out, "variants") - {40}) == ({3}, {7})
    vczstore.append(out, sources["B"], sources["A"], harmonise=True)
    assert (chunks_of(out, "samples"), chunks_of(out, "variants")) == ({3}, {7})
    assert [row[9:] for row in view(out, "2:1140-1150")] == [["0/1", "0/1"], ["./.", "0/1"]]
    assert vczstore.verify(out).ok


@pytest.mark.slow
def test_shards_of_a_source_hold_as_many_chunks_of_the_stores_length(tmp_path: Path) -> None:
    arrays = cohort.make_arrays(10, cohort.ids(0, 5))
    cohort.write_vcz(tmp_path / "source", arrays, variants_chunk=2, samples_chunk=2, shards=(2, 3))
    vczstore.create(tmp_path / "out", tmp_path / "source", variants_chunk=3, samples_chunk=4)
    vczstore.append(tmp_path / "out", tmp_path / "source")
    genotypes = open_root(tmp_path / "out")["call_genotype"]
    assert (genotypes.chunks, genotypes.shards) == ((3, 4, 2), (6, 12, 2))
    assert np.array_equal(genotypes[...], arrays["call_genotype"])
    assert vczstore.verify(tmp_path / "out").ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "length"), [([(1, 1)], 1_000), ([(1, 1), (5, 2)], 2), ([(4, 3), (5, 2)], 3), ([(5, 5)], 1_000)]
)
def test_a_chunk_that_covers_its_axis_is_ignored(tmp_path: Path, sizes: list[tuple[int, int]], length: int) -> None:
    """Converters cap chunks at the length of the axis: sources of one sample must not set the store's chunks."""
    paths = []
    for number, (n, chunk) in enumerate(sizes):
        paths.append(tmp_path / f"{number}.vcz")
        cohort.write_vcz(paths[-1], cohort.make_arrays(10, cohort.ids(10 * number, n)), samples_chunk=chunk)
    for order in (paths, paths[::-1]):
        vczstore.create(tmp_path / f"out{order[0].name}", *order)
        assert chunks_of(tmp_path / f"out{order[0].name}", "samples") == {length}
        if len(paths) == 1:
            break


@pytest.mark.slow
@pytest.mark.parametrize("option", ["samples_chunk", "variants_chunk"])
@pytest.mark.parametrize("length", [0, -1, 10**9 + 1])
def test_an_invalid_chunk_length(sources: dict[str, Path], tmp_path: Path, option: str, length: int) -> None:
    out = tmp_path / "out"
    complain(OptionError, ["^create: ", option], lambda: vczstore.create(out, sources["A"], **{option: length}))
    assert not out.exists()
    flag = f"--{option.replace('_', '-')}"
    assert flag in run("create", out, sources["A"], flag, length, status=2).stderr


@pytest.mark.parametrize("backend", ["zarr", "icechunk"])
@pytest.mark.slow
def test_identifiers_of_all_sources(tmp_path: Path, backend: str) -> None:
    """Like bcftools merge: in the order of the sources, each ID once, missing ones left out."""
    ids = [("rs1", "rs2", "rs1"), (".", "rs2", "."), ("rs1", "rs1", "rs1"), ("rs2", "rs1", "rs3"), (".", ".", ".")]
    converted = []
    for number in range(3):
        path = make(tmp_path, [f"S{number}"], [("1", 10 * i + 10, row[number]) for i, row in enumerate(ids)])
        converted.append((path, vcf.to_vcz(path, tmp_path / f"{number}.vcz", 2 + number % 2, None, None)))
    out = tmp_path / "out"
    vczstore.create(out, *(store for _, store in converted), backend_storage=backend)
    merged = pysam.bcftools.merge("-m", "none", "--no-version", *(str(path) for path, _ in converted))
    expected = [line.split("\t")[2] for line in vcf.records(merged)[1:]]
    assert expected == ["rs1;rs2", "rs2", "rs1", "rs2;rs1;rs3", "."]
    root = open_root(out)
    assert root["variant_id"][:].tolist() == expected
    assert root["variant_id_mask"][:].tolist() == [False] * 4 + [True]


# ---- many sources ---------------------------------------------------------------------------


FIELDS = ("sample_id", "contig_id", "filter_id", "variant_contig", "variant_position", "variant_allele")


def many(folder: Path, n: int, fields: tuple[str, ...] = ("call_genotype", "call_DP"), chunk: int = 1) -> list[Path]:
    """Write a store of one sample and n sources of one sample each; return their paths."""
    paths = []
    for i in range(n + 1):
        arrays = cohort.make_arrays(8, cohort.ids(i, 1), seed=i)
        paths.append(folder / f"{i}.vcz")
        cohort.write_vcz(paths[-1], {name: arrays[name] for name in (*FIELDS, *fields)}, samples_chunk=chunk)
    return paths


def sizes(plan: Any) -> tuple[int, int]:
    """Return the number of operations of a Cubed plan, and the bytes that are sent with its largest task."""
    operations, largest = 0, 0
    for _, node in plan.dag.nodes(data=True):
        if "pipeline" in node:
            pipeline = node["pipeline"]
            operations += 1
            fixed = len(cloudpickle.dumps((pipeline.function, pipeline.config)))
            largest = max(largest, *(fixed + len(pickle.dumps(coords)) for coords in pipeline.mappable))
    return operations, largest


@in_turn(what=("append", "harmonise", "update"), chunk=(1, 4))
@pytest.mark.slow
def test_a_plan_does_not_grow_with_its_sources(tmp_path: Path, what: str, chunk: int) -> None:
    """One operation checks all sources, and one or two write each array; a task is sent only its own sources."""
    store, *sources = many(tmp_path, 40, chunk=chunk)
    if what == "update":
        vczstore.append(store, *sources)
    sizes_by_n = []
    for n in (19, 38):
        subset = sources[:n]
        plan = (
            vczstore.plan("update", store, *subset)
            if what == "update"
            else vczstore.plan("append", store, *subset, harmonise=what == "harmonise")
        )
        checks, writes = plan.cubed_checks(), plan.cubed_writes(zarr.storage.MemoryStore())
        sizes_by_n.append([sizes(p) for p in (checks, writes) if p is not None])
    few, twice = sizes_by_n
    assert [operations for operations, _ in few] == [operations for operations, _ in twice]
    assert sum(operations for operations, _ in twice) <= 1 + 2 * 3
    if chunk == 1:  # otherwise a task writes many sources into one chunk
        assert all(b < 1.5 * a for (_, a), (_, b) in zip(few, twice, strict=True))


@in_turn(executor=("threads", "processes"), chunk=(1, 4))
@pytest.mark.slow
def test_many_sources_are_appended_with_few_open_files(tmp_path: Path, executor: str, chunk: int) -> None:
    """The result agrees with the model although the process may open only a few files."""
    store, *sources = many(tmp_path, 60, chunk=chunk)
    expected = cohort.expected_append(cohort.read_vcz(store), *map(cohort.read_vcz, sources))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 40, limits[1]))
    try:
        vczstore.append(store, *sources[:30], executor=executor)
        vczstore.append(store, *sources[30:], executor=executor, harmonise=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    cohort.assert_same(cohort.read_vcz(store), expected)


@pytest.mark.slow
def test_the_first_of_many_sources_that_does_not_fit_is_named(tmp_path: Path) -> None:
    """The error names the source at fault, although one task checks several sources."""
    store, *sources = many(tmp_path, 30)
    before = cohort.digest(store)
    for i in (17, 25):
        zarr.open_array(sources[i] / "variant_position", mode="r+")[3] += 1
    words = ["^append: variant 3 of ", sources[17].name]
    complain(IncompatibleError, words, lambda: vczstore.append(store, *sources))
    assert cohort.digest(store) == before


@pytest.mark.slow
def test_one_survey_looks_at_all_sources_of_create(tmp_path: Path) -> None:
    _, *sources = many(tmp_path, 40)
    result = vczstore.create(tmp_path / "out", *sources)
    assert result.tasks is not None
    assert result.tasks < 20
    assert result.counts["variants"] == 8


# ---- chunks in multiples, and longer than their arrays --------------------------------------


def proportional(folder: Path, samples: list[str], *, allele: int, contig: int, chunk: int = 4) -> Path:
    """Rechunk like vcztools 0.2: variant arrays have multiples of the chunk of calls, which the index counts."""
    store = vcf.to_vcz(make(folder, samples, positions(10)), folder / f"{samples[0]}.vcz", 3, chunk, None)
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    for name, factor in (("variant_allele", allele), ("variant_contig", contig), ("variant_position", contig)):
        old = root[name]
        values, attributes, names = old[...], dict(old.attrs), old.metadata.dimension_names
        del root[name]
        new = root.create_array(
            name,
            shape=values.shape,
            dtype="string" if values.dtype.kind == "T" else values.dtype,
            chunks=(factor * chunk, *values.shape[1:]),
            dimension_names=names,
            attributes=attributes,
        )
        new[...] = values
    return store


@pytest.mark.parametrize(("allele", "contig"), [(2, 3), (41_000, 2_600_000)])
@pytest.mark.slow
def test_index_arrays_in_multiples_of_the_calls_chunk(tmp_path: Path, allele: int, contig: int) -> None:
    """`verify` finds no error, and no operation projects memory for the part of a chunk beyond its array."""
    store = proportional(tmp_path, ["S1", "S2"], allele=allele, contig=contig)
    batch = proportional(tmp_path, ["B1"], allele=allele, contig=contig)
    other = proportional(tmp_path, ["C1"], allele=allele, contig=contig)
    assert [row[1] for row in view(store, "2:1030-1040")] == ["1030", "1040"]
    assert vczstore.verify(store).ok
    vczstore.append(store, batch)
    vczstore.append(store, other, harmonise=True)
    vczstore.update(store, batch)
    vczstore.recompute(store)
    vczstore.remove(store, ["S1"])
    vczstore.normalise(store, batch, tmp_path / "normalised")
    vczstore.create(tmp_path / "created", store, batch)
    vczstore.copy_store_to_icechunk(store, tmp_path / "icechunk")
    vczstore.compact(store)
    for place in (store, tmp_path / "normalised", tmp_path / "created", tmp_path / "icechunk"):
        report = vczstore.verify(place)
        assert report.ok, report.errors
        assert [row[1] for row in view(place, "2:1030-1040")] == ["1030", "1040"]
    assert [row[9:] for row in view(store, "2:1030")] == [["0/1"] * 3]


@pytest.mark.slow
def test_a_wrong_index_of_rechunked_arrays_is_detected(tmp_path: Path) -> None:
    store = proportional(tmp_path, ["S1"], allele=2, contig=3)
    index = zarr.open_array(store / "region_index", mode="r+")
    values = index[...]
    values[2, 3] += 1
    index[...] = values
    assert [(d.array, d.what[:42]) for d in vczstore.verify(store).errors] == [
        ("region_index", f"does not say which variants are in chunk {values[2, 0]}")
    ]


@pytest.mark.slow
def test_strings_of_few_samples_in_long_chunks(tmp_path: Path) -> None:
    """A chunk of 1,000 x 10,000 strings that holds only twelve is not projected as ten million long ones."""
    arrays = cohort.make_arrays(4, cohort.ids(0, 3))
    cohort.write_vcz(tmp_path / "source", {name: arrays[name] for name in (*FIELDS, "call_FT", "call_genotype")})
    vczstore.create(tmp_path / "out", tmp_path / "source", samples_chunk=10_000, variants_chunk=1_000)
    plan = vczstore.plan("append", tmp_path / "out", tmp_path / "source", harmonise=True)
    assert plan.projected_mem < 1_500_000_000
