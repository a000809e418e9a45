"""Contigs and alleles as converters other than vcf2zarr write them, and batches without variants of the store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import vczstore
from tests.support import cohort, vcf
from tests.support.converted import make_pair
from tests.support.refusals import complain
from tests.support.ways import WRITTEN
from vczstore.errors import IncompatibleError

LENGTHS = {"chr1": 248956422, "chr2": 242193529, "chr10": 133797422, "chrX": 156040895, "chrY": 57227415}


def text(sample: str, *records: str, lengths: dict[str, int] = LENGTHS) -> str:
    """Return a VCF of one sample with the contigs of its records; a record is CHROM POS REF ALT and a genotype."""
    rows = [record.split() for record in records]
    lines = ["##fileformat=VCFv4.2", '##FILTER=<ID=PASS,Description="">']
    lines += [f"##contig=<ID={c},length={lengths[c]}>" for c in dict.fromkeys(row[0] for row in rows)]
    lines += ['##FORMAT=<ID=GT,Number=1,Type=String,Description="">']
    lines += ["\t".join([*["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT"], sample])]
    lines += ["\t".join([*row[:2], ".", *row[2:4], ".", "PASS", ".", "GT", row[4]]) for row in rows]
    return "\n".join(lines) + "\n"


def to_attributes(place: Path, *, names: bool = True) -> None:
    """Move contigs into attributes, as in VCF Zarr 0.2 and sgkit, or delete them if not `names`."""
    root = zarr.open_group(place, mode="r+", use_consolidated=False)
    contigs, lengths = (root[name][:].tolist() for name in ("contig_id", "contig_length"))
    for name in ("contig_id", "contig_length"):
        shutil.rmtree(place / name)
    if names:
        root.attrs.update({"contigs": contigs, "contig_lengths": lengths})


AUTOSOMES = ["chr1 1000 C T 0/1", "chr2 1000 C T 0/1"]
SEXES = ["chrX 1000 C T 1/1", "chrY 1000 C T 1/1"]


def refused(store: Path, words: tuple[str, ...], *sources: Path, **options: Any) -> None:
    before = cohort.digest(store)
    complain(IncompatibleError, words, lambda: vczstore.append(store, *sources, **options))
    assert cohort.digest(store) == before


@pytest.mark.parametrize("kind", ["format2", "format3"])
@pytest.mark.parametrize("which", ["store", "batch", "both"])
@pytest.mark.slow
def test_contigs_that_are_an_attribute(tmp_path: Path, which: str, kind: str) -> None:
    store, batch = make_pair(tmp_path, text("A1", *AUTOSOMES), text("B1", *SEXES), kind)
    same = vcf.to_vcz(vcf.write_vcf(tmp_path / "c.vcf.gz", text("C1", *AUTOSOMES[::-1])), tmp_path / "c.vcz", 3, 2, 2)
    for place in [store] * (which != "batch") + [batch, same] * (which != "store"):
        to_attributes(place)
    refused(store, ("^append: .*new.vcz has contig_id chrX at 0, the store has chr1", "say --harmonise"), batch)
    refused(store, ("^append: 2 of the 2 variants of .*new.vcz match none", "chrX:1000 C/T"), batch, harmonise=True)
    vczstore.append(store, same, harmonise=True)
    contents = cohort.read_vcz(store)
    assert contents["call_genotype"].tolist() == [[[0, 1], [0, 1]]] * 2
    vczstore.create(tmp_path / "union.vcz", store, batch)
    assert cohort.read_vcz(tmp_path / "union.vcz")["contig_id"].tolist() == ["chr1", "chr2", "chrX", "chrY"]
    vczstore.normalise(store, same, tmp_path / "out.vcz")
    assert zarr.open_group(tmp_path / "out.vcz").attrs.get("contigs") == (
        None if which == "batch" else ["chr1", "chr2"]
    )


@pytest.mark.slow
def test_a_batch_without_contigs(tmp_path: Path) -> None:
    store, batch = make_pair(tmp_path, text("A1", *AUTOSOMES), text("B1", *SEXES))
    to_attributes(batch, names=False)
    words = ("^append: .*new.vcz has no contig_id", "vcf2zarr")
    refused(store, words, batch)
    refused(store, words[:1], batch, harmonise=True)


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("harmonise", [False, True])
@pytest.mark.slow
def test_builds_do_not_mix(tmp_path: Path, harmonise: bool, kind: str) -> None:
    hg19 = {**LENGTHS, "chr2": 243199373}
    store, batch = make_pair(tmp_path, text("A1", *AUTOSOMES), text("B1", *AUTOSOMES, lengths=hg19), kind)
    words = ("^append: .*new.vcz has chr2 of contig_length 243199373, .* of 242193529", "one reference genome")
    refused(store, words, batch, harmonise=harmonise)
    complain(
        IncompatibleError,
        ("^normalise: .*chr2 of contig_length",),
        lambda: vczstore.normalise(store, batch, tmp_path / "out"),
    )


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.slow
def test_a_batch_without_matching_variants(tmp_path: Path, kind: str) -> None:
    store, batch = make_pair(tmp_path, text("A1", *AUTOSOMES), text("B1", *SEXES), kind)
    words = ("^append: all 2 variants of .*new.vcz match none", "its contigs are chrX, chrY, the store's chr1, chr2")
    refused(store, words, batch, harmonise=True, new_variants="drop")
    empty = zarr.open_group(shutil.copytree(batch, tmp_path / "e.vcz"), mode="r+", use_consolidated=False)
    for name, array in empty.arrays():
        if name.startswith(("variant_", "call_")):
            array.resize((0, *array.shape[1:]))
    words = ("^append: .*e.vcz has no variants", "--absent reference")
    refused(store, words, tmp_path / "e.vcz", harmonise=True)
    refused(store, words, tmp_path / "e.vcz", harmonise=True, new_variants="drop")
    vczstore.append(store, tmp_path / "e.vcz", harmonise=True, absent="reference")
    root = cohort.icechunk_store(store) if kind == "icechunk" else store
    assert cohort.read_vcz(root)["call_genotype"][:, 1].tolist() == [[0, 0]] * 2


def write_alleles(place: Path, row: int, alleles: list[str]) -> None:
    zarr.open_group(place, mode="r+", use_consolidated=False)["variant_allele"][row] = np.array(alleles)


@pytest.mark.parametrize("nothing", ["0", ".", ""])
@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.slow
def test_an_absent_allele(tmp_path: Path, nothing: str, order: str) -> None:
    """PLINK writes 0 for an allele that no sample has; the record has only calls of REF, and matches G/A."""
    a, b = text("A1", "chr1 1000 G A 0/0", "chr1 1010 C T 0/1"), text("B1", "chr1 1000 G A 0/1", "chr1 1010 C T 1/1")
    plink, other = make_pair(tmp_path, a, b)
    write_alleles(plink, 0, ["G", nothing])
    sources = [plink, other] if order == "ab" else [other, plink]
    vczstore.create(tmp_path / "store.vcz", *sources)
    created = cohort.read_vcz(tmp_path / "store.vcz")
    assert created["variant_allele"].tolist() == [["G", "A"], ["C", "T"]]
    vczstore.append(tmp_path / "store.vcz", *sources, harmonise=True)
    calls = [[[0, 0], [0, 1]], [[0, 1], [1, 1]]]
    expected = calls if order == "ab" else [row[::-1] for row in calls]
    assert cohort.read_vcz(tmp_path / "store.vcz")["call_genotype"].tolist() == expected
    vczstore.append(other, plink, harmonise=True)
    assert cohort.read_vcz(other)["call_genotype"].tolist() == [row[::-1] for row in calls]


@pytest.mark.slow
def test_notations_of_an_absent_allele_are_equal(tmp_path: Path) -> None:
    sites = ["chr1 1000 G A 0/0", "chr1 1010 C T 0/1"]
    store, batch = make_pair(tmp_path, text("A1", *sites), text("B1", *sites))
    write_alleles(store, 0, ["G", "0"])
    write_alleles(batch, 0, ["G", "."])
    vczstore.create(tmp_path / "union.vcz", store)
    assert cohort.read_vcz(tmp_path / "union.vcz")["variant_allele"].tolist() == [["G", ""], ["C", "T"]]
    vczstore.append(store, batch)
    assert cohort.read_vcz(store)["call_genotype"].tolist() == [[[0, 0]] * 2, [[0, 1]] * 2]
