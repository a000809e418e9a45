"""Alleles that are added later: calls that are already in a store get missing values for them."""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pysam.bcftools
import pytest
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import vczstore
from tests.support import cohort, vcf
from tests.support.converted import ALLOWED, CALL, FORMAT, HEADER, make, shown, text
from tests.support.covering import in_turn
from tests.support.killed import killed
from tests.support.refusals import complain
from tests.support.ways import WRITTEN, Way
from vczstore.cli.main import main
from vczstore.errors import IncompatibleError


@in_turn(kind=WRITTEN, impl=("zarr", "cubed"))
@pytest.mark.slow
def test_vectors_have_a_place_for_each_allele(tmp_path: Path, kind: str, impl: str) -> None:
    """VCF 4.5, section 1.4.2: a vector has one value for each allele, or is missing as a whole."""
    is_ice = kind == "icechunk"
    store = make(tmp_path, "a", text(["A1"], f"1 5 C AC=1;MLEAC=1 {CALL}"), kind)
    batch = make(tmp_path, "b", text(["B1"], f"1 5 G AC=1;MLEAC=1 {CALL}"))
    vczstore.append(store, batch, **ALLOWED, **Way(kind, impl).options)
    ours, theirs = "0/1:5,6,.:6,.:30,0,40,.,.,.", "0/2:5,.,6:.,6:30,.,.,0,.,40"
    assert shown(store, icechunk=is_ice) == [["C,G", "AC=1,.;MLEAC=1,.", FORMAT, ours, theirs]]
    # other tools can read it: bcftools refuses INFO of Number=A with more or fewer values than ALTs
    export = vcf.write_vcf(tmp_path / "export.vcf.gz", vcf.vcztools_view(store, icechunk=is_ice))
    split = [line.split("\t")[7:] for line in vcf.records(pysam.bcftools.norm("--no-version", "-m-", str(export)))[1:]]
    assert split == [
        ["AC=1;MLEAC=1", FORMAT, "0/1:5,6:6:30,0,40", "0/0:5,.:.:30,.,."],
        ["AC=.;MLEAC=.", FORMAT, "0/0:5,.:.:30,.,.", "0/1:5,6:6:30,0,40"],
    ]
    # as a batch, it is harmonised correctly in any order of alleles
    other = make(tmp_path, "c", text(["C1"], "1 5 G,C . 0/1:5,6,0:6,0:30,0,40,50,60,70"), kind)
    vczstore.append(other, store, harmonise=True, **Way(kind, impl).options)
    (record,) = shown(other, icechunk=is_ice)
    assert record[0] == "G,C"
    assert record[4:] == ["0/2:5,.,6:.,6:30,.,.,0,.,40", "0/1:5,6,.:6,.:30,0,40,.,.,."]


@pytest.mark.slow
def test_haploid_calls_and_missing_vectors(tmp_path: Path) -> None:
    """Ploidy is that of the genotype; bio2zarr pads floats of haploid calls with missing values."""
    keys = "GT:AD:GL:NM:PL"
    calls = ["0/1:5,6:-3,-1,-4:x,y:30,0,40", "1:.:-2,-1:.:9,0", ".:3,4:.:y,.:1,2,3", "./.:.,.:.:.:."]
    other = "0/1:.:.:.:."
    texts = [text(["A", "B", "C", "D"], f"X 5 C . {' '.join(calls)}", keys=keys)]
    texts.append(text(["E"], f"X 5 G . {other}", keys=keys))
    store, batch = (make(tmp_path, str(i), content, chunks=(2, 5)) for i, content in enumerate(texts))
    vczstore.append(store, batch, **ALLOWED)
    (record,) = shown(store)
    assert record[3:7] == [
        "0/1:5,6,.:-3,-1,-4,.,.,.:x,y,.:30,0,40,.,.,.",
        "1:.:-2,-1,.:.:9,0,.",
        ".:3,4,.:.,.,.:y,.,.:1,2,3,.,.,.",
        "./.:.,.,.:.,.,.,.,.,.:.:.",
    ]


@pytest.mark.slow
def test_floats_that_are_padded_with_missing_values(tmp_path: Path) -> None:
    """bio2zarr pads the floats of a haploid call to the longest vector of the record."""
    store = make(tmp_path, "a", text(["A", "B"], "X 5 C,G . 0/1:1,2,3,4,5,6 2:7,8,9", keys="GT:GL"), chunks=(1, 3))
    padded = cohort.read_vcz(store)["call_GL"][0, 1].view("u4").tolist()
    assert padded[3:] == [0x7F800001] * 3
    batch = make(tmp_path, "b", text(["C"], "X 5 T . 1:1,0", keys="GT:GL"))
    vczstore.append(store, batch, **ALLOWED)
    (record,) = shown(store)
    assert record[3:] == ["0/1:1,2,3,4,5,6,.,.,.,.", "2:7,8,9,.", "3:1,.,.,0"]


@pytest.mark.parametrize("kind", ["format2", "format3"])
@pytest.mark.slow
def test_info_by_allele_without_a_known_dimension(tmp_path: Path, kind: str) -> None:
    """As written by bio2zarr before 0.1.6: then the VCF header has the Number."""
    store = make(tmp_path, "a", text(["A"], f"1 5 C MLEAC=1 {CALL}", f"1 9 C MLEAC=2 {CALL}"), kind, (1, 1))
    group = zarr.open_group(store, mode="a")
    del group["variant_MLEAC"]
    new = group.create_array(
        "variant_MLEAC", data=np.array([[1], [2]], "i1"), chunks=(1, 1), **_named(group, "MLEAC_dim")
    )
    new.attrs["description"] = "MLEAC"
    group.attrs["vcf_header"] = HEADER
    batch = make(tmp_path, "b", text(["B"], f"1 5 G . {CALL}"))
    vczstore.append(store, batch, **ALLOWED)
    assert cohort.read_vcz(store)["variant_MLEAC"].tolist() == [[1, -1], [2, -2]]


def _named(group: zarr.Group, name: str) -> dict[str, Any]:
    dims = ["variants", name]
    is_2 = group.metadata.zarr_format == 2
    return {"attributes": {"_ARRAY_DIMENSIONS": dims}} if is_2 else {"dimension_names": dims}


@pytest.mark.slow
def test_a_batch_that_an_earlier_version_left_with_short_vectors(tmp_path: Path) -> None:
    """Three likelihoods of three alleles could be those of a haploid call; the genotype shows that they are not."""
    batch = make(tmp_path, "a", text(["A", "B"], "1 5 C,G . 0/1:5,6:6:30,0,40 1:5,6:6:9,0"))
    store = make(tmp_path, "c", text(["C"], "1 5 G,C . 0/1:5,6,0:6,0:30,0,40,50,60,70"))
    vczstore.append(store, batch, harmonise=True)
    (record,) = shown(store)
    assert record[4:] == ["0/2:5,.,6:.,6:30,.,.,0,.,40", "2:5,.,6:.,6:9,.,0"]


# ---- compared with bcftools ------------------------------------------------------------------


def cohorts(seed: int, names: Sequence[str], alts: Sequence[str]) -> str:
    """Return a VCF of random haploid and diploid calls, with fields of each Number and type, and random ALTs."""
    rng = random.Random(seed)
    records = []
    for contig, position in (("1", 5), ("1", 6), ("1", 9), ("X", 2)):
        chosen = rng.sample(alts, rng.randint(1, len(alts)))
        n = len(chosen) + 1
        calls = []
        for at, _ in enumerate(names):
            ploidy = 1 if at == 1 else 2
            n_genotypes = n if ploidy == 1 else n * (n + 1) // 2
            vectors = [
                ",".join(str(rng.randint(0, 99)) for _ in range(length)) for length in (n, n - 1, n - 1, n, n_genotypes)
            ]
            genotype = "/".join(str(rng.randrange(n)) for _ in range(ploidy))
            calls.append(":".join([genotype, *(v if at == 0 or rng.random() < 0.8 else "." for v in vectors)]))
        info = f"MLEAC={','.join('7' * (n - 1))};RD={','.join('9' * n)}"
        records.append(" ".join([contig, str(position), ",".join(chosen), info, *calls]))
    return text(names, *records, keys="GT:AD:AO:AF:NM:PL")


def said(record: str) -> list[Any]:
    """Return the site and the calls of a VCF record, without fields that are missing as a whole."""
    fields = record.split("\t")
    calls = [dict(zip(fields[8].split(":"), call.split(":"), strict=False)) for call in fields[9:]]
    return [fields[:2], fields[3:5], [{k: v for k, v in call.items() if set(v) - set(".,")} for call in calls]]


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["format2", "format3"]))
@pytest.mark.slow
def test_as_bcftools_merges_and_splits(seed: int, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        texts = [cohorts(seed, ["a", "b", "c"], ["C", "G"]), cohorts(seed + 1, ["d", "e"], ["T", "G", "C"])]
        store, batch = (make(place, str(i), content, kind) for i, content in enumerate(texts))
        vczstore.append(store, batch, **ALLOWED, executor="single-threaded")
        vcf.write_vcf(place / "export.vcf.gz", vcf.vcztools_view(store))
        merged = ("--no-version", "-m", "both", "-Oz", "-o", str(place / "merged.vcf.gz"))
        pysam.bcftools.merge(*merged, *(str(place / f"{i}.vcf.gz") for i in (0, 1)), catch_stdout=False)
        for command in (pysam.bcftools.view, partial(pysam.bcftools.norm, "-m-")):
            ours, theirs = (
                [said(r) for r in vcf.records(command("--no-version", str(place / name)))[1:]]
                for name in ("export.vcf.gz", "merged.vcf.gz")
            )
            assert ours == theirs


# ---- rewritten chunks ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["format2", "format3"])
@pytest.mark.slow
def test_chunks_without_new_alleles_are_unchanged(tmp_path: Path, kind: str) -> None:
    sites = [f"1 {position} C,T MLEAC=1,2 " + " ".join(["0/1:5,6,7:6,7:30,0,40,1,2,3"] * 4) for position in range(1, 9)]
    sites[4] = "1 5 C MLEAC=1 " + " ".join([CALL] * 4)
    store = make(tmp_path, "a", text(["A", "B", "C", "D"], *sites), kind)
    batch = make(tmp_path, "b", text(["E"], f"1 5 G . {CALL}"))
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    command = ["append", str(store), str(batch), "--harmonise", "--allow-new-alleles", "--dry-run"]
    # one of four rows of two chunks in three call fields; one of four chunks of INFO, and one of the alleles
    message = r"rewritten 8 chunks \([0-9,]+ bytes\) of call_AD, call_AO, call_PL, variant_MLEAC, variant_allele\n"
    assert re.search(message, CliRunner().invoke(main, command).stdout)
    vczstore.append(store, batch, **ALLOWED)
    changed = [path.relative_to(store) for path, old in before.items() if path.read_bytes() != old]
    chunks = {str(path).replace("/c/", "/").replace(".", "/") for path in changed if "json" not in path.name}
    calls = {f"call_{name}/2/{column}/0" for name in ("AD", "AO", "PL") for column in (0, 1)}
    assert {name for name in chunks if not name.endswith(("/zarray", "/zattrs"))} - {"sample_id/0"} == {
        *calls,
        "variant_MLEAC/2/0",
        "variant_allele/2/0",
    }
    assert shown(store)[4][:2] == ["C,G", "MLEAC=1,."]
    assert {record[3] for i, record in enumerate(shown(store)) if i != 4} == {"0/1:5,6,7:6,7:30,0,40,1,2,3"}


# ---- kills -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["format2", "format3"])
def test_killed_at_any_point(tmp_path: Path, kind: str) -> None:
    """A reader who sees an allele sees vectors with a value for it, and running the command again completes it."""
    three = "0/2:5,6,7:6,7:30,0,40,1,2,3"
    records = [f"1 5 C MLEAC=1 {CALL} 1:5,6:6:9,0 .:5,6:6:9,0", f"1 6 C,T MLEAC=1,2 {three} {three} {three}"]
    store = make(tmp_path, "a", text(["A", "B", "C"], *records), kind, (1, 2))
    batch = make(tmp_path, "b", text(["D"], f"1 5 G . {CALL}", f"1 6 G . {CALL}"))
    code = f"import vczstore; vczstore.append(store, {str(batch)!r}, **{ALLOWED!r}, executor='single-threaded')"
    *copies, whole = killed(store, tmp_path / "killed", code, step=29)
    expected = cohort.read_vcz(whole)
    assert expected["variant_allele"].tolist() == [["A", "C", "G", ""], ["A", "C", "T", "G"]]
    assert expected["call_PL"][0, 1:3].tolist() == [[9, 0, -1, *[-2] * 7]] * 2
    assert len(copies) > 3
    allele_counts = set()
    for copy in copies:
        contents = cohort.read_vcz(copy)
        n_alleles = (contents["variant_allele"] != "").sum(axis=1)
        allele_counts.add(tuple(n_alleles.tolist()))
        for row, n in enumerate(n_alleles.tolist()):
            lengths = (contents["call_AD"][row, :3] != -2).sum(axis=1)
            assert (lengths >= n).all()
            assert (contents["variant_MLEAC"][row] != -2).sum() >= n - 1
        if len(contents["sample_id"]) == 3:  # otherwise the append was complete
            vczstore.append(copy, batch, **ALLOWED, executor="single-threaded")
        cohort.assert_same(cohort.read_vcz(copy), expected)
    assert len(allele_counts) > 1
    assert np.array_equal(expected["sample_id"], np.array(["A", "B", "C", "D"], dtype=object))


# ---- calls of the store with alleles that their variant lacks --------------------------------


def spoilt(tmp_path: Path, kind: str = "format3", field: str = "call_genotype") -> tuple[Path, Path]:
    """Return a store whose sample A2 has allele 2 of two at its second variant, and a batch that adds an allele."""
    rows = ["1 5 C . 0/1:1 1/1:1", "1 6 C . 0/1:1 0/1:1", "1 7 C . 0/1:1 0/0:1"]
    header = '##FORMAT=<ID=LAA,Number=.,Type=Integer,Description="">\n'
    vcz = make(tmp_path, "a", with_laa(text(["A1", "A2"], *rows, keys="GT:LAA"), header))
    array = zarr.open_group(vcz)[field]
    assert isinstance(array, zarr.Array)
    array[1, 1, array.shape[2] - 1] = 2
    store = cohort.copy_to_icechunk(vcz, tmp_path / "a.ice") if kind == "icechunk" else vcz
    rows = ["1 5 C . 0/1:1", "1 6 C,G . 1/2:1,2", "1 7 C . 0/1:1"]
    return store, make(tmp_path, "b", with_laa(text(["B1"], *rows, keys="GT:LAA"), header))


def with_laa(text: str, line: str) -> str:
    return text.replace("#CHROM", f"{line}#CHROM")


@pytest.mark.parametrize("field", ["call_genotype", "call_LAA"])
@in_turn(kind=("format3", "icechunk"), impl=("zarr", "cubed"), how=("allow_new_alleles", "new_variants"))
@pytest.mark.slow
def test_an_invalid_allele_of_the_store_gets_no_meaning(
    tmp_path: Path, kind: str, impl: str, how: str, field: str
) -> None:
    store, batch = spoilt(tmp_path, kind, field)
    options: dict[str, Any] = {"harmonise": True, how: "insert" if how == "new_variants" else True, "impl": impl}
    before = cohort.digest(store)
    words = (
        f"^append: {field} of .* has allele 2 at variant 1, 1:6 A/C, which has 2, REF included",
        "vczstore verify names the sample, and vczstore update replaces",
    )
    complain(IncompatibleError, words, lambda: vczstore.append(store, batch, **options))
    assert cohort.digest(store) == before
    assert vczstore.normalise(store, batch, tmp_path / "out.vcz", allow_new_alleles=True) is not None


@pytest.mark.slow
def test_an_invalid_allele_of_the_store_is_replaced_by_an_update(tmp_path: Path) -> None:
    """Only the calls that stay are checked, and only where alleles are added."""
    store, batch = spoilt(tmp_path)
    (tmp_path / "more").mkdir()
    other, _ = spoilt(tmp_path / "more")
    zarr.open_group(other)["sample_id"][...] = np.array(["C1", "C2"], dtype=object)
    vczstore.append(store, other, harmonise=True)  # adds no allele
    zarr.open_group(batch)["sample_id"][...] = np.array(["A1"], dtype=object)
    update = partial(vczstore.update, store, batch, harmonise=True, new_variants="insert")
    complain(IncompatibleError, ("^update: call_genotype of .* has allele 2 at variant 1",), update)
    vczstore.remove(store, ["C2"])
    zarr.open_group(batch)["sample_id"][...] = np.array(["A2"], dtype=object)
    update()
    assert [row[-3:] for row in shown(store)] == [
        ["0/1:1", "0/1:1", "0/1:1"],
        ["0/1:1", "1/2:1,2", "0/1:1"],
        ["0/1:1", "0/1:1", "0/1:1"],
    ]
    assert vczstore.verify(store).ok
