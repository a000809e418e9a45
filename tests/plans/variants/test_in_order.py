"""Vectors of values by allele and genotype, re-ordered for other alleles; compared with bcftools."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pysam.bcftools
import pytest

import vczstore
from tests.support import cohort, vcf
from tests.support.command_line import run
from tests.support.converted import make_pair
from tests.support.covering import in_turn
from tests.support.refusals import complain
from tests.support.sites import calls_of
from tests.support.ways import WRITTEN
from vczstore.errors import IncompatibleError, OptionError

HEADER = """##fileformat=VCFv4.2
##FILTER=<ID=PASS,Description="All filters passed">
##contig=<ID=X,length=156040895>
##FORMAT=<ID=GT,Number=1,Type=String,Description="">
##FORMAT=<ID=AD,Number=R,Type=Integer,Description="">
##FORMAT=<ID=AO,Number=A,Type=Integer,Description="">
##FORMAT=<ID=PL,Number=G,Type=Integer,Description="">
##FORMAT=<ID=GP,Number=G,Type=Float,Description="">
"""


def text(samples: str, *records: str, header: str = HEADER) -> str:
    """Return a VCF on contig X; a record is POS REF ALT FORMAT and calls, separated by spaces."""
    lines = [header + "\t".join(["#CHROM POS ID REF ALT QUAL FILTER INFO FORMAT".replace(" ", "\t"), *samples.split()])]
    for record in records:
        position, ref, alt, *calls = record.split()
        lines.append("\t".join(["X", position, ".", ref, alt, ".", "PASS", ".", *calls]))
    return "\n".join(lines) + "\n"


def new_calls(shown: str, samples: str) -> list[Any]:
    """Return the values of the appended samples at each site, without missing ones."""
    return [(site, {s: calls[s] for s in samples.split()}) for site, calls in calls_of(shown)]


OLD = text(
    "A1 A2",
    "100 A C,G GT:PL:GP 2:90,80,0:0,0.125,0.875 0/1:30,0,40,50,60,70:0,1,0,0,0,0",
    "110 A C,G GT:PL:GP 2:90,80,0:0,0.125,0.875 0/1:30,0,40,50,60,70:0,1,0,0,0,0",
    "120 A C GT:PL:GP 0/1:30,0,40:0.25,0.75,0 0:0,9:1,0",
    "130 A C,G GT:AD:PL 0/1:1,2,3:30,0,40,50,60,70 0/1:1,2,3:30,0,40,50,60,70",
    "140 A C,G GT 0/2 0/1",
)
BATCHES = {
    "haploid": text(
        "B1 B2",
        "100 A G,C GT:PL:GP 1:70,0,60:0.125,0.75,0.125 0/1:30,0,40,50,60,70:0,0.875,0.125,0,0,0",
        "110 A G GT:PL:GP 1:70,0:0.125,0.875 0/1:30,0,40:0,0.875,0.125",
    ),
    "REF alone": text("B1 B2", "120 A . GT:AD:PL:GP 0/0:9:0:1 0:8:0:1", "130 A . GT:AD:PL:GP 0/0:9:0:1 ./.:.:.:."),
    "no vector": text(
        "B1 B2",
        "100 A G,C GT:AD:PL:GP 0/1:1,2,3:30,0,40,50,60,70:0,1,0,0,0,0 1/1:3,2,1:9,8,7,6,5,4:.",
        "130 A G GT 0/1 1/1",
        "140 A G,C GT 0/1 2/2",
    ),
}


@in_turn(kind=WRITTEN, batch=tuple(BATCHES))
@pytest.mark.slow
def test_vectors_are_those_of_bcftools(tmp_path: Path, batch: str, kind: str) -> None:
    store, source = make_pair(tmp_path, OLD, BATCHES[batch], kind)
    arrays = cohort.read_vcz(source)
    lacking = [name for name in ("AD", "PL", "GP") if f"call_{name}" not in arrays]
    impl = "zarr" if kind == "format2" else "cubed"
    vczstore.append(store, source, harmonise=True, drop_fields=lacking, impl=impl, executor="threads")
    both = [str(tmp_path / f"{name}.vcf.gz") for name in ("old", "new")]
    merged = pysam.bcftools.merge("--no-version", "-m", "none", *both)
    shown = vcf.vcztools_view(store, icechunk=kind == "icechunk")
    assert new_calls(shown, "B1 B2") == new_calls(merged, "B1 B2")
    assert sum(len(call) for _, calls in new_calls(shown, "B1 B2") for call in calls.values()) > 4


@pytest.mark.parametrize("impl", ["cubed", "zarr"])
@pytest.mark.slow
def test_vectors_of_calls_without_alleles(tmp_path: Path, impl: str) -> None:
    """A genotype of any ploidy may be written as "."; the length of the vector then determines the ploidy."""
    new = text("B1 B2", "100 A G,C GT:PL .:1,2,3,4,5,6 .:1,2,3", "110 A G GT:PL ./.:1,2,3 0/.:1,2,3")
    store, source = make_pair(tmp_path, OLD, new)
    vczstore.append(store, source, harmonise=True, drop_fields=["AD", "GP"], impl=impl)
    assert [calls for _, calls in new_calls(vcf.vcztools_view(store), "B1 B2")][:2] == [
        {"B1": {"PL": "1,4,6,2,5,3"}, "B2": {"PL": "1,3,2"}},
        {"B1": {"PL": "1,.,.,2,.,3"}, "B2": {"GT": "0/.", "PL": "1,.,.,2,.,3"}},
    ]


@pytest.mark.slow
def test_a_field_without_genotypes(tmp_path: Path) -> None:
    """If there are no genotypes at all, the length alone determines the ploidy."""
    old = text("A1", "100 A C,G GT:PL:GP 0/1:1,2,3,4,5,6:0,1,0,0,0,0", "110 A C,G GT:PL 0/1:1,2,3,4,5,6")
    new = text("B1 B2", "100 A G,C GT:PL:GP 0/1:1,2,3,4,5,6:0,0,0,0.25,0.25,0.5 1:1,2,3:.", "110 A . GT:PL 0/0:7 1:.")
    store, source = make_pair(tmp_path, old, new)
    for place in (store, source):
        for folder in place.glob("call_genotype*"):
            shutil.rmtree(folder)
    vczstore.append(store, source, harmonise=True)
    contents = cohort.read_vcz(store)
    assert contents["call_PL"][:, 1:].tolist() == [
        [[1, 4, 6, 2, 5, 3], [1, 3, 2, -2, -2, -2]],
        [[7, -1, -1, -1, -1, -1], [-1, -2, -2, -2, -2, -2]],
    ]
    assert contents["call_GP"][0, 1].tolist() == [0, 0.25, 0.5, 0, 0.25, 0]


# ---- values that do not fit -----------------------------------------------------------------

THREE = "A C,G GT:AD:AO:PL 0/1:1,2,3:2,3:1,2,3,4,5,6"
MISFITS = {
    "R": ("120 A G GT:AD 0/1:1,2,3", "call_AD has 3 values at .*, X:120 A/G, whose 2 alleles take 2"),
    "A": ("120 A G GT:AO 0/1:1,2", "call_AO has 2 values at .*, X:120 A/G, whose 2 alleles take 1"),
    "G": ("120 A G GT:PL 0/1:1,2,3,4", "call_PL has 4 values at .*, X:120 A/G, whose 2 alleles take 3"),
    "G of one allele": ("120 A G GT:PL 1:1,2,3", "call_PL has 3 values at .*, X:120 A/G, whose 2 alleles take 2"),
    "GT": ("120 A G GT 0/2", "call_genotype has allele 2 at .*, X:120 A/G, which has 2, REF included"),
    "GT of REF alone": ("120 A . GT 0/1", "call_genotype has allele 1 at .*, X:120 A/., which has 1, REF included"),
}


@pytest.mark.parametrize(("case", "kind"), [*((c, "format3") for c in MISFITS), ("R", "format2"), ("GT", "icechunk")])
@pytest.mark.slow
def test_values_that_do_not_fit_the_alleles_are_refused(tmp_path: Path, case: str, kind: str) -> None:
    record, words = MISFITS[case]
    new = text("B1", f"100 {THREE}", record, f"130 {THREE}")
    store, source = make_pair(tmp_path, text("A1", *(f"{p} {THREE}" for p in (100, 120, 130))), new, kind)
    before = cohort.digest(store)
    for extra in ({}, {"dry_run": True}):
        complain(
            IncompatibleError,
            (f"^append: {words}", "variant 1 of .*new.vcz", "--drop-field"),
            lambda extra=extra: vczstore.append(store, source, harmonise=True, **extra),
        )
    assert cohort.digest(store) == before
    complain(IncompatibleError, (f"^normalise: {words}",), lambda: vczstore.normalise(store, source, tmp_path / "out"))
    dropped = record.split()[3].split(":")[-1]
    vczstore.append(store, source, harmonise=True, drop_fields=[dropped])
    contents = cohort.read_vcz(cohort.icechunk_store(store) if kind == "icechunk" else store)
    name = "call_genotype" if dropped == "GT" else f"call_{dropped}"
    assert (contents[name][:, 1] < 0).all()


@pytest.mark.slow
def test_vectors_that_need_no_re_ordering_are_not_checked(tmp_path: Path) -> None:
    """A vector that is too long loses nothing if no allele gets another number."""
    record = "120 A G GT:AD 0/1:1,2,3"
    store, source = make_pair(tmp_path, *(text(s, record, "130 A C,G GT:AD 0/1:1,2,3") for s in ("A1", "B1")))
    vczstore.append(store, source, harmonise=True)
    assert cohort.read_vcz(store)["call_AD"][0].tolist() == [[1, 2, 3]] * 2


@pytest.mark.slow
def test_a_length_that_does_not_determine_the_ploidy(tmp_path: Path) -> None:
    """Floats that a converter has padded, in a batch without genotypes: the call may be haploid or diploid."""
    old = text("A1", "100 A C,G GT:GP 0/1:0,1,0,0,0,0")
    store, source = make_pair(tmp_path, old, text("B1 B2", "100 A G,C GT:GP 0/1:0,1,0,0,0,0 1:0,1,0"))
    for place in (store, source):
        for folder in place.glob("call_genotype*"):
            shutil.rmtree(folder)
    complain(
        IncompatibleError,
        ("^append: call_GP has 3 values at variant 0 .*new.vcz, X:100 A/G,C, and the ploidy", "--drop-field GP"),
        lambda: vczstore.append(store, source, harmonise=True),
    )


# ---- a header with Number=. ------------------------------------------------------------------

DOT = HEADER.replace("ID=AD,Number=R", "ID=AD,Number=.")


@pytest.mark.slow
def test_a_field_with_an_unknown_number(tmp_path: Path) -> None:
    """AD with Number=., as in files of GATK 3 and the 1000 Genomes."""
    old = text("A1", "100 A C,G GT:AD 0/1:1,2,3", "110 A C GT:AD 0/1:1,2", header=DOT)
    new = text("B1", "100 A G,C GT:AD 0/1:4,5,6", "110 A C GT:AD 1/1:7,8", header=DOT)
    store, source = make_pair(tmp_path, old, new)
    before = cohort.digest(store)
    words = ("^append: call_AD of .*FORMAT_AD_dim.*Number=.", "--number AD=R", "--drop-field AD")
    complain(IncompatibleError, words, lambda: vczstore.append(store, source, harmonise=True))
    words = ("^append: --number takes NAME=R.*'AD=X'",)
    complain(OptionError, words, lambda: vczstore.append(store, source, harmonise=True, numbers=["AD=X"]))
    assert cohort.digest(store) == before
    for how in ("command", "job"):
        shutil.copytree(store, tmp_path / f"{how}.vcz")
    run("append", tmp_path / "command.vcz", source, "--harmonise", "--number", "AD=R")
    steps = "[{append: {source: new.vcz, harmonise: {numbers: [AD=R]}}}]"
    (tmp_path / "job.yaml").write_text(f"store: job.vcz\nsteps: {steps}\n")
    vczstore.run_job(tmp_path / "job.yaml")
    vczstore.append(store, source, harmonise=True, numbers=["AD=R"])
    for how in ("command", "job"):
        cohort.assert_same(cohort.read_vcz(tmp_path / f"{how}.vcz"), cohort.read_vcz(store))
    assert cohort.read_vcz(store)["call_AD"][:, 1].tolist() == [[4, 6, 5], [7, 8, -2]]


@pytest.mark.parametrize("dot", ["store", "batch"])
@pytest.mark.parametrize("kind", ["format2", "format3"])
@pytest.mark.slow
def test_a_number_that_only_one_header_has(tmp_path: Path, dot: str, kind: str) -> None:
    """Number=R on one side and Number=. on the other: the user declares that they are the same."""
    mine, theirs = (DOT, HEADER) if dot == "store" else (HEADER, DOT)
    old = text("A1", "100 A C,G GT:AD 0/1:1,2,3", "110 A C GT:AD 0/1:1,2", header=mine)
    new = text("B1", "100 A G,C GT:AD 0/1:4,5,6", "110 A C GT:AD 1/1:7,8", header=theirs)
    store, source = make_pair(tmp_path, old, new, kind)
    before = cohort.digest(store)
    with pytest.raises(IncompatibleError, match="call_AD"):
        vczstore.append(store, source, harmonise=True)
    assert cohort.digest(store) == before
    vczstore.append(store, source, harmonise=True, numbers=["AD=R"])
    assert cohort.read_vcz(store)["call_AD"][:, 1].tolist() == [[4, 6, 5], [7, 8, -2]]


@pytest.mark.slow
def test_a_field_without_a_number_where_no_allele_moves(tmp_path: Path) -> None:
    old = text("A1", "100 A C,G GT:AD 0/1:1,2,3", "110 A C GT:AD 0/1:1,2", header=DOT)
    new = text("B1", "100 A C,G GT:AD 0/1:4,5,6", header=DOT)
    store, source = make_pair(tmp_path, old, new)
    vczstore.append(store, source, harmonise=True)
    assert cohort.read_vcz(store)["call_AD"][:, 1].tolist() == [[4, 5, 6], [-1, -2, -2]]
