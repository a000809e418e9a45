"""A FORMAT field with Number=. in one header and Number=R in the other: the error, and the option that resolves it."""

from __future__ import annotations

from pathlib import Path

import pytest

import vczstore
from tests.support import vcf
from tests.support.refusals import complain
from tests.support.small_stores import unchanged
from vczstore.errors import IncompatibleError
from vczstore.jobs.run import run_job

HEADER = """\
##fileformat=VCFv4.3
##contig=<ID=1>
##FILTER=<ID=PASS,Description="All filters passed">
##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">
##FORMAT=<ID=AD,Number={number},Type=Integer,Description="Depths">
#CHROM	POS	ID	REF	ALT	QUAL	FILTER	INFO	FORMAT	{sample}
"""


def batch(folder: Path, sample: str, number: str, *records: str) -> Path:
    """Write a VCZ of one sample; the records are ``POS ALT GT AD``."""
    rows = [record.split() for record in records]
    text = "".join(f"1\t{pos}\t.\tG\t{alt}\t.\tPASS\t.\tGT:AD\t{gt}:{ad}\n" for pos, alt, gt, ad in rows)
    path = vcf.write_vcf(folder / f"{sample}.vcf.gz", HEADER.format(number=number, sample=sample) + text)
    vcf.to_vcz(path, folder / f"{sample}.vcz", 3, None, None)
    return folder / f"{sample}.vcz"


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("R", "."), (".", "R")])
def test_a_number_resolves_the_conflict(first: str, second: str, tmp_path: Path) -> None:
    a = batch(tmp_path, "A", first, "10 A,T 0/1 1,2,3", "20 C 0/1 4,5")
    b = batch(tmp_path, "B", second, "10 T,A 0/1 6,7,8", "20 C 1/1 0,9")
    store = tmp_path / "store.vcz"
    vczstore.create(store, a)
    vczstore.append(store, a, harmonise=True)
    words = ["^append: call_AD of ", "FORMAT_AD_dim", r"Number=\.", "goes by alleles", "--harmonise --number AD=R"]
    with unchanged(store):
        for harmonise in (False, True):
            complain(IncompatibleError, words, lambda h=harmonise: vczstore.append(store, b, harmonise=h))
    job = tmp_path / "job.yaml"
    job.write_text(f"store: {store}\nsteps:\n  - append: {{source: {b}, harmonise: {{numbers: [AD=R]}}}}\n")
    assert run_job(job).status == "done"
    shown = [line.split("\t") for line in vcf.records(vcf.vcztools_view(store))]
    ad_indices = [row[8].split(":").index("AD") for row in shown[1:]]
    depths = [[call.split(":")[at] for call in row[9:]] for row, at in zip(shown[1:], ad_indices, strict=True)]
    assert depths == [["1,2,3", "6,8,7"], ["4,5", "0,9"]]
