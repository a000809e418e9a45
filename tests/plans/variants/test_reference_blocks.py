"""Reference blocks of gVCFs: they are no variants, and supply the genotypes of the variants that lie in them."""

from __future__ import annotations

import math
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import vczstore
from plans.variants import reference_blocks
from tests.support import cohort, gvcf, vcf
from tests.support.command_line import fails, run
from tests.support.small_stores import unchanged

dimensions = cohort.more_arrays(gvcf.DIMENSIONS)


BLOCKS = (
    "1 1000 A <NON_REF> 1099 GT:DP:GQ 0/0:30:50",
    "1 1100 A C,<NON_REF> . GT:DP:GQ 0/1:31:99",
    "1 1101 G <NON_REF> 1101 GT:DP:GQ 0/0:32:60",
    "1 1102 T <NON_REF> 1400 GT:DP:GQ 0/0:33:9",
    "1 1401 A <NON_REF>,G . GT:DP:GQ 0/2:34:40",
)
BY_LEN = (
    "1 1000 A <*> . GT:DP:LEN 0/0:30:100",
    "1 1100 A C,<*> . GT:DP:LEN 0/1:31:.",
)


@pytest.mark.slow
@pytest.mark.parametrize("records", [BLOCKS, BY_LEN])
@pytest.mark.parametrize("positions", [(1100,), (1001, 1101), (1000, 1102), (1500,)])
def test_blocks_are_refused_without_the_flag(
    tmp_path: Path, records: tuple[str, ...], positions: tuple[int, ...]
) -> None:
    source = gvcf.make(tmp_path, "a", gvcf.text(["s1"], *records))
    stderr = fails("create", tmp_path / "store.vcz", source)
    first = records[0].split()
    stderr_of_init = fails("init", tmp_path / "store.vcz", source)
    assert stderr_of_init.startswith(f"init: variant 0 of {source}, 1:1000 A/{first[3]}, is a reference block, ")
    assert stderr_of_init.endswith("with vczstore create --gvcf, then append it with --harmonise --gvcf")
    assert f"variant 0 of {source}, 1:1000 A/{first[3]}, is a reference block" in stderr
    assert "--gvcf" in stderr
    assert not (tmp_path / "store.vcz").exists()
    store = gvcf.make(tmp_path, "old", gvcf.text(["s0"], *[f"1 {p} A C . GT 0/1" for p in positions]))
    with unchanged(store):
        for options in ((), ("--new-variants", "drop"), ("--allow-new-alleles",)):
            stderr = fails("append", "--harmonise", *options, store, source)
            assert f"append: variant 0 of {source}, 1:1000 A/{first[3]}, is a reference block" in stderr
            assert "--gvcf" in stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["zarr", "icechunk"])
def test_create_skips_reference_blocks(tmp_path: Path, backend: str) -> None:
    sources = [
        gvcf.make(tmp_path, "a", gvcf.text(["s1"], *BLOCKS)),
        gvcf.make(
            tmp_path,
            "b",
            gvcf.text(
                ["s2"],
                "1 1000 A <NON_REF> 1049 GT:DP 0/0:5",
                "1 1050 AC A,<NON_REF> . GT:DP 0/1:5",
                "1 1100 A C,T,<NON_REF> . GT:DP 1/2:6",
            ),
            zarr_format=2,
        ),
    ]
    store = tmp_path / "store"
    run("create", "--gvcf", "--backend-storage", backend, store, *sources)
    assert gvcf.sites(store, icechunk=backend == "icechunk") == [
        "1 1050 AC A",
        "1 1100 A C,T",
        "1 1401 A G",
    ]
    place = cohort.icechunk_store(store) if backend == "icechunk" else store
    arrays = cohort.read_vcz(place)
    assert arrays["variant_length"].tolist() == [2, 1, 1]
    assert arrays["variant_allele"].shape == (3, 3)
    assert arrays["region_index"][0, 4] == 1401


@pytest.mark.slow
def test_lengths_of_reference_samples_are_not_those_of_variants(tmp_path: Path) -> None:
    """FORMAT/LEN of a sample that is reference is not the length of the variant."""
    source = gvcf.make(
        tmp_path,
        "a",
        gvcf.text(["s1", "s2"], "1 1100 A C,<*> . GT:DP:LEN 0/1:31:. 0/0:20:50", "1 1300 G <*> . GT 0/0 ./."),
    )
    vczstore.create(tmp_path / "store.vcz", source, gvcf=True)
    assert gvcf.sites(tmp_path / "store.vcz") == ["1 1100 A C"]
    assert cohort.read_vcz(tmp_path / "store.vcz")["variant_length"].tolist() == [1]


@pytest.mark.slow
@pytest.mark.parametrize("has_lengths", [False, True])
def test_lengths_of_blocks_are_no_field_of_variants(tmp_path: Path, has_lengths: bool) -> None:
    """gVCFs with END and with LEN can be combined, in any order; a store that has LEN keeps it for its own samples."""
    batches = {
        "ends": ("1 1000 A <NON_REF> 1099 GT:DP 0/0:30", "1 1100 A C,<NON_REF> . GT:DP 0/1:31"),
        "lengths": (
            "1 1000 A <NON_REF> . GT:DP:LEN 0/0:40:100",
            "1 1100 A C,<NON_REF> . GT:DP:LEN 0/1:41:.",
            "1 1101 A <NON_REF> . GT:DP:LEN 0/0:42:100",
        ),
        "more": ("1 1050 A T,<NON_REF> . GT:DP 0/1:51", "1 1100 A <NON_REF> 1150 GT:DP 0/0:52"),
    }
    paths = {name: gvcf.make(tmp_path, name, gvcf.text([name], *records)) for name, records in batches.items()}
    store = tmp_path / "store.vcz"
    vczstore.create(store, *paths.values(), gvcf=True, variants_chunk=3, samples_chunk=2)
    vczstore.append(store, paths["lengths"], harmonise=True, gvcf=True)
    assert "call_LEN" not in cohort.read_vcz(store)
    if has_lengths:
        group = zarr.open_group(store, mode="r+", use_consolidated=False)
        values = np.array([[7], [8]], "i4")
        group.create_array("call_LEN", data=values, chunks=(3, 2), dimension_names=["variants", "samples"])
    vczstore.append(store, paths["ends"], paths["more"], harmonise=True, gvcf=True, drop_fields=("LEN",))
    arrays = cohort.read_vcz(store)
    assert arrays["call_DP"].tolist() == [[40, 30, 51], [41, 31, 52]]
    if has_lengths:
        assert arrays["call_LEN"].tolist() == [[7, -1, -1], [8, -1, -1]]


def refused(folder: Path, source: Path, words: str, *options: str) -> None:
    """Assert that `append`, and `create` if there are no options, refuse the source, and that nothing is written."""
    stderr = fails("create", "--gvcf", folder / "store.vcz", source) if not options else words
    assert words in stderr
    assert not (folder / "store.vcz").exists()
    store = gvcf.make(folder, "old", gvcf.text(["s0"], "1 1005 A C . GT 0/1"))
    with unchanged(store):
        assert words in fails("append", "--harmonise", "--gvcf", *options, store, source)


@pytest.mark.slow
def test_a_source_that_is_no_gvcf_is_refused(tmp_path: Path) -> None:
    source = gvcf.make(tmp_path, "a", gvcf.text(["s1"], "1 1000 A C . GT 0/1"))
    refused(tmp_path, source, f": {source} has neither <NON_REF> nor <*>")


@pytest.mark.slow
def test_blocks_without_the_requested_quality_are_refused(tmp_path: Path) -> None:
    source = gvcf.make(tmp_path, "a", gvcf.text(["s1"], "1 1000 A <NON_REF> 1010 GT 0/0"))
    refused(tmp_path, source, f"append: {source} has no call_GQ", "--min-gq", "20")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--harmonise", "--min-gq", "20"), "append: --min-gq needs --gvcf"),
        (("--gvcf",), "append: --gvcf needs --harmonise"),
        (("--harmonise", "--gvcf", "--min-gq", "-1"), "-1 is not in the range"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    assert words in run("append", *options, tmp_path / "store.vcz", tmp_path / "a.vcz", status=2).stderr


@pytest.mark.slow
def test_blocks_that_run_backwards_are_refused(tmp_path: Path) -> None:
    content = gvcf.text(["s1"], "1 1000 A <NON_REF> 1010 GT 0/0", "1 1020 A <NON_REF> 1030 GT 0/0")
    source = gvcf.make(tmp_path, "a", content)
    zarr.open_group(source)["variant_END"][1] = 1015
    words = f"variant 1 of {source}, 1:1020 A/<NON_REF>, is a reference block, and ends before it begins, at 1015"
    refused(tmp_path, source, words)


@pytest.mark.slow
def test_unseen_alleles_of_an_ordinary_source_are_kept(tmp_path: Path) -> None:
    source = gvcf.make(tmp_path, "a", gvcf.text(["s1"], "1 1000 A <*> . GT 0/0", "1 1001 A C,<*> . GT 0/1"))
    vczstore.create(tmp_path / "store.vcz", source)
    assert gvcf.sites(tmp_path / "store.vcz") == ["1 1000 A <*>", "1 1001 A C,<*>"]


# ---- calls ----------------------------------------------------------------------------------


@pytest.mark.slow
@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking an example takes minutes
)
@given(data=st.data())
def test_calls_are_those_of_the_model(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("model")
    min_gq = data.draw(st.sampled_from([0, 0, 30]))
    kind = data.draw(st.sampled_from(["format2", "format3", "icechunk"]))
    sources, drawn = [], []
    for i, n in enumerate(data.draw(st.sampled_from([(1,), (2, 1), (1, 1, 3)]))):
        with_length = data.draw(st.booleans())
        records = data.draw(gvcf.some_records(n, with_length=with_length))
        samples = [f"s{i}{j}" for j in range(n)]
        arrays = gvcf.arrays_of(samples, records, by_length=with_length)
        chunk = data.draw(st.sampled_from([1, 2, 5]))
        cohort.write_vcz(folder / f"{i}.vcz", arrays, variants_chunk=chunk, zarr_format=2 if kind == "format2" else 3)
        if any(len(r.alleles) > len(r.seen) for r in records):
            sources.append(folder / f"{i}.vcz")
            drawn.append((n, records))
    if not sources:
        return
    store = folder / "store"
    backend = "icechunk" if kind == "icechunk" else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_blocks, "SLAB_CALLS", data.draw(st.sampled_from([1, 4, 2**14])))
        vczstore.create(store, *sources, gvcf=True, variants_chunk=3, samples_chunk=2, backend_storage=backend)
        vczstore.append(store, *sources, harmonise=True, gvcf=True, min_gq=min_gq or None)
    contents = cohort.read_vcz(cohort.icechunk_store(store) if backend else store)
    column = 0
    for n, records in drawn:
        matches = gvcf.matches(contents, records)
        for j in range(n):
            for i, match in enumerate(matches):
                alleles = [a for a in contents["variant_allele"][i].tolist() if a]
                position, contig = (
                    int(contents["variant_position"][i]),
                    contents["contig_id"][contents["variant_contig"][i]],
                )
                on_contig = [r for r in records if r.contig == contig]
                expected = gvcf.call_at(on_contig, j, position, alleles, match, min_gq)
                assert gvcf.call_of(contents, i, column) == gvcf.shown(expected), (i, column, alleles)
            column += 1


@pytest.mark.slow
@pytest.mark.parametrize("slab", [1, 4, 2**14])
def test_blocks_far_from_the_variants_of_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slab: int) -> None:
    """Blocks before, between and after the variants are read separately or with them, with the same result."""
    monkeypatch.setattr(reference_blocks, "SLAB_CALLS", slab)
    records = [f"1 {at} A <NON_REF> {at + 9} GT:DP 0/0:{at // 10}" for at in range(10, 400, 10)]
    records[19:19] = ["1 195 A C,<NON_REF> . GT:DP 0/1:99"]
    records[30:30] = ["1 295 A C,<NON_REF> . GT:DP 1/1:98"]
    others = [f"1 {at} A C,<NON_REF> . GT:DP 0/1:7" for at in (15, 105, 195, 255, 295, 395)]
    sources = [
        gvcf.make(tmp_path, "a", gvcf.text(["s1"], *records), chunks=(1, 1)),
        gvcf.make(tmp_path, "b", gvcf.text(["s2"], *others)),
    ]
    store = tmp_path / "store"
    vczstore.create(store, *sources, gvcf=True, variants_chunk=3, samples_chunk=2)
    vczstore.append(store, *sources, harmonise=True, gvcf=True)
    contents = cohort.read_vcz(store)
    depths = dict(zip(contents["variant_position"].tolist(), contents["call_DP"][:, 0].tolist(), strict=True))
    assert depths == {15: 1, 105: 10, 195: 99, 255: 25, 295: 98, 395: 39}
    genotypes = contents["call_genotype"][:, 0].tolist()
    assert genotypes == [[0, 0], [0, 0], [0, 1], [0, 0], [1, 1], [0, 0]]


@pytest.mark.slow
def test_many_gvcfs_are_appended_with_few_open_files(tmp_path: Path) -> None:
    """Each gVCF has one sample with its own blocks; chunk columns are written once."""
    number = (5, 9, (1, 2, 3), (2, 3), (1, 2, 3, 4, 5, 6))
    sources = []
    for i in range(60):
        variant = gvcf.Record(20 + i % 3, ("A", "C", "<NON_REF>"), 20 + i % 3, (gvcf.Call((0, 1), *number),))
        edges = [(1, 19), (variant.position + 1, 60)]
        blocks = [
            gvcf.Record(a, ("A", "<NON_REF>"), b, (gvcf.Call((0, 0), i, 9, (1, 2), (2,), (1, 2, 3)),)) for a, b in edges
        ]
        cohort.write_vcz(tmp_path / f"{i}.vcz", gvcf.arrays_of([f"s{i:02}"], [blocks[0], variant, blocks[1]]))
        sources.append(tmp_path / f"{i}.vcz")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 40, limits[1]))
    try:
        vczstore.create(tmp_path / "store", *sources, gvcf=True, variants_chunk=2, samples_chunk=20)
        plan = vczstore.plan("append", tmp_path / "store", *sources, harmonise=True, gvcf=True)
        vczstore.run("append", tmp_path / "store", *sources, harmonise=True, gvcf=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    contents = cohort.read_vcz(tmp_path / "store")
    # variants after a sample's own lie in its second block; variants before it lie in no block
    expected = [[5 if i % 3 == v else i if i % 3 < v else -1 for i in range(60)] for v in range(3)]
    assert contents["call_DP"].tolist() == expected
    n_chunks = sum(
        math.prod(a.cdata_shape) for n, a in zarr.open_group(tmp_path / "store").arrays() if n[:5] == "call_"
    )
    assert plan.decoded_chunks + plan.encoded_chunks == n_chunks + 3  # and the chunks of sample_id


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"min_gq": 20}])
def test_blocks_without_a_call_are_no_reference(tmp_path: Path, options: dict[str, Any]) -> None:
    variants = ("1 1005 A C . GT:DP:GQ 0/1:9:9", "1 1025 A C . GT:DP:GQ 0/0:9:9")
    blocks = (
        "1 1001 A <NON_REF> 1009 GT:DP:GQ 0/0:30:60 ./.:0:0",
        "1 1020 A <NON_REF> 1029 GT:DP:GQ ./.:0:0 0/0:30:60",
    )
    store = gvcf.make(tmp_path, "s", gvcf.text(["s"], *variants))
    batch = gvcf.make(tmp_path, "g", gvcf.text(["g1", "g2"], *blocks))
    vczstore.append(store, batch, harmonise=True, gvcf=True, absent="reference", **options)
    records = [line.split("\t") for line in vcf.records(vcf.vcztools_view(store))[1:]]
    assert [[call.split(":")[0] for call in fields[10:]] for fields in records] == [["0/0", "./."], ["./.", "0/0"]]


@pytest.mark.slow
def test_an_allele_of_a_block_is_none_of_another_variant(tmp_path: Path) -> None:
    """A record with ALTs is a block, too, if FORMAT/LEN of a sample is longer than its REF."""
    store = gvcf.make(tmp_path, "s", gvcf.text(["s"], "1 1020 A C,G . GT:DP 1/2:9"))
    block = "1 1000 A C,T,<*> . GT:DP:LEN 2/0:30:50 3/0:31:50 0/0:32:50"
    batch = gvcf.make(tmp_path, "g", gvcf.text(["g1", "g2", "g3"], block))
    vczstore.append(store, batch, harmonise=True, gvcf=True, new_variants="drop")
    (_, record) = vcf.records(vcf.vcztools_view(store))
    assert [call.split(":")[0] for call in record.split("\t")[10:]] == ["./0", "./0", "0/0"]
    assert cohort.read_vcz(store)["call_DP"].tolist() == [[9, 30, 31, 32]]


def test_values_of_alts_of_a_block_are_those_of_no_other_allele(tmp_path: Path) -> None:
    """Also where the block has as many alleles as the other variant, and none of them is the unseen one."""
    store = gvcf.make(tmp_path, "s", gvcf.text(["s"], "1 1020 A C,G . GT:AD 1/2:1,2,3"))
    records = "1 1000 A C,T . GT:AD:LEN 0/0:7,8,9:50", "1 1100 A <*> . GT:AD:LEN 0/0:7,0:5"
    batch = gvcf.make(tmp_path, "g", gvcf.text(["g"], *records))
    vczstore.append(store, batch, harmonise=True, gvcf=True, new_variants="drop")
    assert cohort.read_vcz(store)["call_AD"][0].tolist() == [[1, 2, 3], [7, -1, -1]]
