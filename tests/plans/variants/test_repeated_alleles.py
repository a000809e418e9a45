"""Records that repeat an allele, or have REF among their ALTs: the values of each allele stay with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import zarr

import vczstore
from tests.support import cohort, vcf
from tests.support.ways import WRITTEN

CALLS = [
    ("100", "C", "C,T", "1/2:1,2,3:585,895"),
    ("200", "A", "T,T", "1/2:4,5,6:77,88"),
    ("300", "A", "G", "0/1:4,5:77"),
]
HEAD = [
    "##fileformat=VCFv4.3",
    "##contig=<ID=1,length=9000>",
    *(
        f'##FORMAT=<ID={n},Number={m},Type={t},Description="">'
        for n, m, t in (("GT", "1", "String"), ("AD", "R", "Integer"))
    ),
    '##FORMAT=<ID=FA,Number=A,Type=Integer,Description="">',
]


def make(folder: Path, sample: str) -> Path:
    """Write the records as a VCZ of one sample."""
    fixed = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", sample]
    lines = [["1", at, ".", ref, alt, ".", ".", ".", "GT:AD:FA", call] for at, ref, alt, call in CALLS]
    text = "\n".join([*HEAD, *("\t".join(line) for line in [fixed, *lines])]) + "\n"
    return vcf.to_vcz(vcf.write_vcf(folder / f"{sample}.vcf.gz", text), folder / f"{sample}.vcz", 3, 2, 2)


def shown(store: Path, kind: str = "format3") -> list[list[str]]:
    """Return alleles and calls as vcztools shows them."""
    lines = vcf.records(vcf.vcztools_view(store, icechunk=kind == "icechunk"))[1:]
    return [[*line.split("\t")[3:5], *line.split("\t")[9:]] for line in lines]


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.slow
def test_values_stay_with_their_alleles(tmp_path: Path, kind: str) -> None:
    a, b = make(tmp_path, "A"), make(tmp_path, "B")
    store = tmp_path / "store"
    vczstore.create(store, a, b, backend_storage="icechunk" if kind == "icechunk" else None)
    vczstore.append(store, a, b, harmonise=True)
    assert shown(store, kind) == [[ref, alt, call, call] for _, ref, alt, call in CALLS]
    assert vczstore.append(a, b, harmonise=True, dry_run=True).counts["variants with alleles re-ordered"] == 0


@pytest.mark.slow
def test_a_normalised_vcz_has_the_same_values(tmp_path: Path) -> None:
    a, b = make(tmp_path, "A"), make(tmp_path, "B")
    vczstore.normalise(a, b, tmp_path / "out")
    assert shown(tmp_path / "out") == [[ref, alt, call] for _, ref, alt, call in CALLS]


@pytest.mark.slow
def test_a_store_without_the_repetition_does_not_match(tmp_path: Path) -> None:
    store, batch = make(tmp_path, "A"), make(tmp_path, "B")
    group = cohort.read_vcz(store)
    alleles = group["variant_allele"]
    alleles[1] = ["A", "T", ""]
    zarr.open_group(store, use_consolidated=False)["variant_allele"][...] = alleles
    before = cohort.digest(store)
    with pytest.raises(vczstore.VczstoreError, match=r"1 of the 3 variants .* match none"):
        vczstore.append(store, batch, harmonise=True)
    assert cohort.digest(store) == before
