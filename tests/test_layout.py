"""How a store is cut into chunks: what `create` says, what the first append makes of it, and what readers find."""

from __future__ import annotations

import io
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pysam.bcftools
import pytest
import zarr

import vczstore
from tests import cohort, vcf
from tests.test_cli import run
from tests.test_errors import complain
from vczstore.errors import OptionError
from vczstore.vcz import dimensions

HEADER = (
    "##fileformat=VCFv4.2",
    '##FILTER=<ID=PASS,Description="All filters passed">',
    "##contig=<ID=1,length=248956422>",
    "##contig=<ID=2,length=248956422>",
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
)


def make(folder: Path, samples: list[str], sites: list[tuple[str, int, str]]) -> Path:
    """A VCF of heterozygotes: contig, position and ID of each variant."""
    head = "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples])
    rows = ["\t".join([c, str(p), i, "A", "C", ".", "PASS", ".", "GT", *["0/1"] * len(samples)]) for c, p, i in sites]
    return vcf.write_vcf(folder / f"{samples[0]}.vcf.gz", "\n".join([*HEADER, head, *rows, ""]))


def positions(n: int) -> list[tuple[str, int, str]]:
    """The same number of variants on each of two contigs."""
    return [(contig, 1000 + 10 * i, ".") for contig in "12" for i in range(n)]


def view(store: Path, region: str) -> list[list[str]]:
    """The records of a region, which vcztools finds by the region index."""
    is_icechunk = (store / "snapshots").is_dir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vcztools' own affair
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
    """The chunk lengths along a dimension, of all arrays of a store that have it."""
    found = set()
    for _, array in open_root(store).arrays():
        names = dimensions(array)
        if dimension in names:
            found.add(array.chunks[names.index(dimension)])
    return found


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A of 40 variants in chunks of 20, format 2; B of 30 of them in chunks of 10, format 3."""
    folder = tmp_path_factory.mktemp("layout")
    a, b = make(folder, ["A1"], positions(20)), make(folder, ["B1"], positions(15))
    return {
        "A": vcf.to_vcz(a, folder / "a.vcz", 2, 20, None),
        "B": vcf.to_vcz(b, folder / "b.vcz", 3, 10, None),
    }


@pytest.mark.parametrize(
    ("made", "appended", "backend"),
    [*product(["AB", "BA"], ["AB", "BA"], ["zarr"]), ("AB", "BA", "icechunk"), ("BA", "BA", "icechunk")],
)
def test_regions_are_found_whatever_the_sources_chunks(
    sources: dict[str, Path], tmp_path: Path, made: str, appended: str, backend: str
) -> None:
    """The calls that a first append makes are cut along the variants as the store is, whose index counts chunks."""
    out = tmp_path / "out"
    vczstore.create(out, *(sources[s] for s in made), backend_storage=backend)
    vczstore.append(out, *(sources[s] for s in appended), harmonise=True)
    assert chunks_of(out, "variants") == {20}
    assert chunks_of(out, "samples") == {10_000}
    found = {row[1]: dict(zip(appended, row[9:], strict=True)) for row in view(out, "2:1000-1030")}
    assert found == {str(p): {"A": "0/1", "B": "0/1"} for p in (1000, 1010, 1020, 1030)}
    assert [row[1] for row in view(out, "2:1140-")] == ["1140", "1150", "1160", "1170", "1180", "1190"]
    assert vczstore.verify(out).ok


def test_regions_are_found_in_what_is_normalised(sources: dict[str, Path], tmp_path: Path) -> None:
    """It takes the index over from the store, so its calls are cut as the store's are."""
    vczstore.create(tmp_path / "store", sources["A"])
    vczstore.normalise(tmp_path / "store", sources["B"], tmp_path / "out")
    assert chunks_of(tmp_path / "out", "variants") == {20}
    assert [row[1] for row in view(tmp_path / "out", "2:1000-1030")] == ["1000", "1010", "1020", "1030"]
    assert vczstore.verify(tmp_path / "out").ok


@pytest.mark.parametrize("backend", ["zarr", "icechunk"])
def test_chunks_that_are_asked_for(sources: dict[str, Path], tmp_path: Path, backend: str) -> None:
    """They are those of every array, of those that the first append makes too."""
    out = tmp_path / "out"
    options = ["--samples-chunk", "3", "--variants-chunk", "7", "--backend-storage", backend]
    run("create", out, sources["A"], sources["B"], *options)
    assert (chunks_of(out, "samples"), chunks_of(out, "variants") - {40}) == ({3}, {7})
    vczstore.append(out, sources["B"], sources["A"], harmonise=True)
    assert (chunks_of(out, "samples"), chunks_of(out, "variants")) == ({3}, {7})
    assert [row[9:] for row in view(out, "2:1140-1150")] == [["0/1", "0/1"], ["./.", "0/1"]]
    assert vczstore.verify(out).ok


def test_shards_of_a_source_hold_as_many_chunks_of_the_stores_length(tmp_path: Path) -> None:
    arrays = cohort.make_arrays(10, cohort.ids(0, 5))
    cohort.write_vcz(tmp_path / "source", arrays, variants_chunk=2, samples_chunk=2, shards=(2, 3))
    vczstore.create(tmp_path / "out", tmp_path / "source", variants_chunk=3, samples_chunk=4)
    vczstore.append(tmp_path / "out", tmp_path / "source")
    genotypes = open_root(tmp_path / "out")["call_genotype"]
    assert (genotypes.chunks, genotypes.shards) == ((3, 4, 2), (6, 12, 2))
    assert np.array_equal(genotypes[...], arrays["call_genotype"])
    assert vczstore.verify(tmp_path / "out").ok


@pytest.mark.parametrize(
    ("sizes", "length"), [([(1, 1)], 10_000), ([(1, 1), (5, 2)], 2), ([(4, 3), (5, 2)], 3), ([(5, 5)], 10_000)]
)
def test_a_chunk_of_a_whole_axis_tells_nothing(tmp_path: Path, sizes: list[tuple[int, int]], length: int) -> None:
    """A converter makes no chunk longer than the axis: sources of one sample do not make a store of such chunks."""
    places = []
    for number, (n, chunk) in enumerate(sizes):
        places.append(tmp_path / f"{number}.vcz")
        cohort.write_vcz(places[-1], cohort.make_arrays(10, cohort.ids(10 * number, n)), samples_chunk=chunk)
    for order in (places, places[::-1]):
        vczstore.create(tmp_path / f"out{order[0].name}", *order)
        assert chunks_of(tmp_path / f"out{order[0].name}", "samples") == {length}
        if len(places) == 1:
            break


@pytest.mark.parametrize("option", ["samples_chunk", "variants_chunk"])
@pytest.mark.parametrize("length", [0, -1, 10**9 + 1])
def test_a_chunk_length_that_cannot_be(sources: dict[str, Path], tmp_path: Path, option: str, length: int) -> None:
    out = tmp_path / "out"
    complain(OptionError, ["^create: ", option], lambda: vczstore.create(out, sources["A"], **{option: length}))
    assert not out.exists()
    flag = f"--{option.replace('_', '-')}"
    assert flag in run("create", out, sources["A"], flag, length, status=2).stderr


@pytest.mark.parametrize("backend", ["zarr", "icechunk"])
def test_identifiers_of_all_sources(tmp_path: Path, backend: str) -> None:
    """As bcftools merge has them: in the order of the sources, each once, missing ones left out."""
    ids = [("rs1", "rs2", "rs1"), (".", "rs2", "."), ("rs1", "rs1", "rs1"), ("rs2", "rs1", "rs3"), (".", ".", ".")]
    made = []
    for number in range(3):
        path = make(tmp_path, [f"S{number}"], [("1", 10 * i + 10, row[number]) for i, row in enumerate(ids)])
        made.append((path, vcf.to_vcz(path, tmp_path / f"{number}.vcz", 2 + number % 2, None, None)))
    out = tmp_path / "out"
    vczstore.create(out, *(store for _, store in made), backend_storage=backend)
    merged = pysam.bcftools.merge("-m", "none", "--no-version", *(str(path) for path, _ in made))
    wanted = [line.split("\t")[2] for line in vcf.records(merged)[1:]]
    assert wanted == ["rs1;rs2", "rs2", "rs1", "rs2;rs1;rs3", "."]
    root = open_root(out)
    assert root["variant_id"][:].tolist() == wanted
    assert root["variant_id_mask"][:].tolist() == [False] * 4 + [True]
