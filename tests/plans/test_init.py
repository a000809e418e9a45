"""`init` makes a store from a whole first batch; the name of a new store determines its backend."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import vczstore
from tests.support import cohort, vcf
from tests.support.command_line import run
from tests.support.refusals import complain
from vczstore.errors import IncompatibleError, MemoryLimitError, OptionError, SampleError
from vczstore.jobs.run import run_job

VCF = """\
##fileformat=VCFv4.3
##contig=<ID=1>
##FILTER=<ID=PASS,Description="All filters passed">
##FILTER=<ID=q10,Description="Quality below 10">
##INFO=<ID=AC,Number=A,Type=Integer,Description="Allele count">
##INFO=<ID=MQ,Number=1,Type=Float,Description="Mapping quality">
##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">
##FORMAT=<ID=DP,Number=1,Type=Integer,Description="Depth">
#CHROM	POS	ID	REF	ALT	QUAL	FILTER	INFO	FORMAT	A	B
1	10	rs1	G	A	29	PASS	AC=1;MQ=60	GT:DP	0|0:1	1|0:8
1	20	.	T	A,C	3	q10	AC=1,1;MQ=33.5	GT:DP	0|1:3	2|0:5
"""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first batch: a VCF, and the VCZs that bio2zarr makes of it in both formats."""
    folder = tmp_path_factory.mktemp("first")
    path = vcf.write_vcf(folder / "first.vcf.gz", VCF)
    for zarr_format in (2, 3):
        vcf.to_vcz(path, folder / f"format{zarr_format}.vcz", zarr_format, None, None)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("source", ["format2.vcz", "format3.vcz", "first.vcf.gz"])
@pytest.mark.parametrize("out", ["store.icechunk", "store.vcz"])
def test_the_batch_is_copied_whole(source: str, out: str, first: Path, tmp_path: Path) -> None:
    """The records that vcztools reads from the store are those of the VCF."""
    store = tmp_path / out
    dry = vczstore.init(store, first / source, dry_run=True)
    assert not store.exists()
    result = vczstore.init(store, first / source)
    assert result.counts == dry.counts
    assert (result.counts["samples"], result.counts["variants"]) == (2, 2)
    is_icechunk = out.endswith(".icechunk")
    assert vczstore.info(store).backend == ("icechunk" if is_icechunk else "zarr")
    shown = vcf.vcztools_view(store, icechunk=is_icechunk)
    assert vcf.records(shown) == vcf.records(VCF)
    if is_icechunk:
        shown = vcf.vcztools_view(store, icechunk=True, region="1:20-20")
        assert [record.split("\t")[1] for record in vcf.records(shown)[1:]] == ["20"]
        assert [entry["operation"] for entry in vczstore.log(store)] == ["init", None]


@pytest.mark.slow
def test_a_job_after_init(first: Path, tmp_path: Path) -> None:
    """A job skips the first batch, and appends the second."""
    (tmp_path / "inbox").mkdir()
    shutil.copytree(first / "format3.vcz", tmp_path / "inbox/1.vcz")
    vczstore.init(tmp_path / "store.icechunk", tmp_path / "inbox/1.vcz")
    job = tmp_path / "job.yaml"
    job.write_text("store: store.icechunk\nsteps:\n  - append: inbox/*.vcz\n")
    assert run_job(job).status == "nothing to do"
    batch = cohort.read_vcz(first / "format3.vcz")
    vcf.to_vcz(
        vcf.write_vcf(tmp_path / "2.vcf.gz", VCF.replace("\tA\tB\n", "\tC\tD\n")),
        tmp_path / "inbox/2.vcz",
        3,
        None,
        None,
    )
    assert run_job(job).status == "done"
    contents = cohort.read_vcz(cohort.icechunk_store(tmp_path / "store.icechunk"))
    assert contents["sample_id"].tolist() == ["A", "B", "C", "D"]
    np.testing.assert_array_equal(contents["call_DP"], np.tile(batch["call_DP"], (1, 2)))


@pytest.mark.slow
def test_refusals(first: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.vcz"
    removed = shutil.copytree(first / "format3.vcz", tmp_path / "removed.vcz")
    vczstore.remove(removed, ["A"])
    complain(SampleError, ["^init: ", "removed samples"], lambda: vczstore.init(store, removed))
    assert not store.exists()
    vczstore.init(store, first / "format3.vcz")
    before = cohort.digest(store)
    complain(OptionError, ["^init: ", "another path"], lambda: vczstore.init(store, first / "format3.vcz"))
    assert cohort.digest(store) == before
    words = ["^compact: ", r"\.icechunk", "copy-store-to-icechunk"]
    complain(OptionError, words, lambda: vczstore.compact(store, tmp_path / "out.icechunk"))
    assert not (tmp_path / "out.icechunk").exists()


def test_too_little_memory(tmp_path: Path) -> None:
    cohort.write_vcz(tmp_path / "batch.vcz", cohort.some_arrays(10, cohort.ids(0, 5)))
    tiny = {"allowed_mem": 300_001_500, "reserved_mem": 300_000_000}
    complain(
        MemoryLimitError,
        ["^init: a task needs", "--allowed-mem"],
        lambda: vczstore.init(tmp_path / "store.vcz", tmp_path / "batch.vcz", **tiny),
    )
    assert not (tmp_path / "store.vcz").exists()


@pytest.mark.slow
def test_create_reports_its_backend_and_what_is_left_out(first: Path, tmp_path: Path) -> None:
    result = run("create", tmp_path / "a.icechunk", first / "format3.vcz", "--json")
    assert vczstore.info(tmp_path / "a.icechunk").backend == "icechunk"
    note = json.loads(result.stdout)["notes"]["after"]
    assert "left out: QUAL, FILTER, INFO/AC, INFO/MQ" in note
    assert note.endswith("; to keep them, use init")
    result = run("create", tmp_path / "b.icechunk", first / "first.vcf.gz", "--backend-storage", "zarr")
    assert vczstore.info(tmp_path / "b.icechunk").backend == "zarr"
    assert "INFO of VCFs" in result.stdout
    assert "plain Zarr, as requested, though its name ends in .icechunk" in result.stdout
    vczstore.normalise(tmp_path / "a.icechunk", first / "format3.vcz", tmp_path / "n.icechunk")
    assert vczstore.info(tmp_path / "n.icechunk").backend == "icechunk"


@pytest.mark.slow
def test_a_store_without_variants(tmp_path: Path) -> None:
    empty = vcf.write_vcf(tmp_path / "empty.vcf.gz", "".join(VCF.splitlines(keepends=True)[:-2]))
    for name in ("create", "init"):
        result = run(name, tmp_path / f"{name}.vcz", empty)
        assert "the store has no variants" in result.stdout


@pytest.mark.slow
def test_info_comes_from_the_first_source_that_has_a_value(tmp_path: Path) -> None:
    """INFO fields come from VCZs and a VCF; if no source has a value, it is missing."""

    def batch(name: str, sample: str, *rows: str) -> Path:
        head = VCF.partition("1\t10\t")[0].replace("\tA\tB\n", f"\t{sample}\n")
        head = head.replace("##FORMAT=<ID=DP", '##INFO=<ID=DB,Number=0,Type=Flag,Description="Known">\n##FORMAT=<ID=DP')
        head = head.replace(
            "##FORMAT=<ID=DP", '##INFO=<ID=CS,Number=1,Type=String,Description="Text">\n##FORMAT=<ID=DP'
        )
        text = "".join(f"1\t{pos}\t.\tG\t{alt}\t.\t.\t{info}\tGT\t0/1\n" for pos, alt, info in map(str.split, rows))
        return vcf.write_vcf(tmp_path / f"{name}.vcf.gz", head + text)

    a = batch("a", "S1", "10 A MQ=60;CS=one;AC=1", "20 C CS=two", "40 T .")
    b = batch("b", "S2", "10 A MQ=10;DB", "20 C MQ=20;CS=other", "30 A MQ=30;CS=b", "40 T .")
    vcf.to_vcz(a, tmp_path / "a.vcz", 2, None, None)
    store = tmp_path / "store.icechunk"
    stdout = run("create", store, tmp_path / "a.vcz", b, "--info", "MQ", "--info", "CS", "--info", "DB").stdout
    assert "INFO/AC" in stdout
    assert "INFO/MQ" not in stdout
    shown = [line.split("\t") for line in vcf.records(vcf.vcztools_view(store, icechunk=True))[1:]]
    records = [(row[1], set(row[7].split(";"))) for row in shown]
    assert records == [
        ("10", {"MQ=60", "CS=one", "DB"}),
        ("20", {"MQ=20", "CS=two"}),
        ("30", {"MQ=30", "CS=b"}),
        ("40", {"."}),
    ]
    out = tmp_path / "out.vcz"
    complain(OptionError, ["INFO field XX"], lambda: vczstore.create(out, tmp_path / "a.vcz", info=["XX"]))
    words = ["INFO/AC", "alt_alleles", "recompute"]
    complain(IncompatibleError, words, lambda: vczstore.create(out, tmp_path / "a.vcz", info=["AC"]))
    assert not out.exists()
