"""Reference blocks of gVCFs: they are no variants, and tell the genotypes of the variants that lie in them."""

from __future__ import annotations

from pathlib import Path

import pytest

import vczstore
from tests.support import cohort, gvcf
from tests.support.command_line import fails, run
from tests.support.small_stores import unchanged

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


@pytest.mark.parametrize("records", [BLOCKS, BY_LEN])
@pytest.mark.parametrize("positions", [(1100,), (1001, 1101), (1000, 1102), (1500,)])
def test_blocks_are_refused_without_the_flag(
    tmp_path: Path, records: tuple[str, ...], positions: tuple[int, ...]
) -> None:
    source = gvcf.make(tmp_path, "a", gvcf.text(["s1"], *records))
    said = fails("create", tmp_path / "store.vcz", source)
    first = records[0].split()
    assert f"variant 0 of {source}, 1:1000 A/{first[3]}, is a reference block" in said
    assert "--gvcf" in said
    assert not (tmp_path / "store.vcz").exists()
    store = gvcf.make(tmp_path, "old", gvcf.text(["s0"], *[f"1 {p} A C . GT 0/1" for p in positions]))
    with unchanged(store):
        for options in ((), ("--new-variants", "drop"), ("--allow-new-alleles",)):
            said = fails("append", "--harmonise", *options, store, source)
            assert f"append: variant 0 of {source}, 1:1000 A/{first[3]}, is a reference block" in said
            assert "--gvcf" in said


@pytest.mark.parametrize("backend", ["zarr", "icechunk"])
def test_create_takes_what_is_no_block(tmp_path: Path, backend: str) -> None:
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


def test_what_lengthens_a_record_is_not_its_own(tmp_path: Path) -> None:
    """FORMAT's LEN of a sample that is reference is no length of the variant."""
    source = gvcf.make(
        tmp_path,
        "a",
        gvcf.text(["s1", "s2"], "1 1100 A C,<*> . GT:DP:LEN 0/1:31:. 0/0:20:50", "1 1300 G <*> . GT 0/0 ./."),
    )
    vczstore.create(tmp_path / "store.vcz", source, gvcf=True)
    assert gvcf.sites(tmp_path / "store.vcz") == ["1 1100 A C"]
    assert cohort.read_vcz(tmp_path / "store.vcz")["variant_length"].tolist() == [1]


def test_what_is_no_gvcf_is_refused(tmp_path: Path) -> None:
    source = gvcf.make(tmp_path, "a", gvcf.text(["s1"], "1 1000 A C . GT 0/1"))
    said = fails("create", "--gvcf", tmp_path / "store.vcz", source)
    assert f"create: {source} has neither <NON_REF> nor <*>" in said
    assert not (tmp_path / "store.vcz").exists()


def test_blocks_that_run_backwards_are_refused(tmp_path: Path) -> None:
    content = gvcf.text(["s1"], "1 1000 A <NON_REF> 1010 GT 0/0", "1 1020 A <NON_REF> 1030 GT 0/0")
    source = gvcf.make(tmp_path, "a", content)
    ends = cohort.read_vcz(source)["variant_END"]
    ends[1] = 1015
    import zarr

    zarr.open_group(source)["variant_END"][:] = ends
    said = fails("create", "--gvcf", tmp_path / "store.vcz", source)
    assert (
        f"create: variant 1 of {source}, 1:1020 A/<NON_REF>, is a reference block, and ends before it begins, at 1015"
        in said
    )
    assert not (tmp_path / "store.vcz").exists()


def test_single_bases_of_an_ordinary_source_stay_what_they_are(tmp_path: Path) -> None:
    source = gvcf.make(tmp_path, "a", gvcf.text(["s1"], "1 1000 A <*> . GT 0/0", "1 1001 A C,<*> . GT 0/1"))
    vczstore.create(tmp_path / "store.vcz", source)
    assert gvcf.sites(tmp_path / "store.vcz") == ["1 1000 A <*>", "1 1001 A C,<*>"]
