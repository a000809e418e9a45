"""`export` of a state of a store to a new VCZ or VCF, checked by zarr-python, xarray and bcftools."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pysam.bcftools
import pytest
import xarray as xr
import zarr

import vczstore
from plans.maintenance import export_vcf
from tests.support import cohort, small_vcf, vcf
from tests.support.command_line import fails, run
from tests.support.killed import killed
from tests.support.refusals import complain
from tests.support.small_stores import repository_of
from tests.support.ways import FLEXIBLE, WRITTEN, Way
from vczstore.errors import MissingDependencyError, NotAStoreError, OptionError, SampleError, TagError, UnsuitableError

OLD = cohort.some_arrays(10, cohort.ids(0, 7))
OUT_OF_DATE = "left out, since samples were added, changed or removed after they were computed"


def exported(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a VCZ, read through its consolidated metadata."""
    group = zarr.open_consolidated(path)
    assert not [name for name in group.attrs if name.startswith("vczstore_") and "info" not in name]
    if group.metadata.zarr_format == 3:
        assert {array.metadata.to_dict()["chunk_grid"]["name"] for _, array in group.arrays()} == {"regular"}
    return {name: np.asarray(array[...]) for name, array in group.arrays()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*WRITTEN, *FLEXIBLE])
def test_a_vcz(kind: str, tmp_path: Path) -> None:
    store = Way(kind, "cubed").make(tmp_path, OLD)
    vczstore.remove(store, ["S0001", "S0005"])
    result = vczstore.export(store, tmp_path / "out")
    expected = cohort.select(OLD, ["S0000", "S0002", "S0003", "S0004", "S0006"])
    assert result.counts == {"samples": 5, "variants": 10}
    cohort.assert_same(exported(tmp_path / "out"), expected)
    assert vczstore.verify(tmp_path / "out").ok
    with xr.open_zarr(tmp_path / "out") as opened:
        assert opened["sample_id"].values.tolist() == expected["sample_id"].tolist()
    run("export", store, tmp_path / "some", "-s", "S0006,S0000,S0003")
    cohort.assert_same(exported(tmp_path / "some"), cohort.select(OLD, ["S0006", "S0000", "S0003"]))
    (tmp_path / "ids").write_text("S0000\nS0006\n")
    run("export", store, tmp_path / "others", "-S", f"^{tmp_path / 'ids'}")
    cohort.assert_same(exported(tmp_path / "others"), cohort.select(OLD, ["S0002", "S0003", "S0004"]))


@pytest.mark.slow
def test_a_release(tmp_path: Path) -> None:
    """An earlier state is exported, and chunks are copied verbatim."""
    store = Way("icechunk", "cubed").make(tmp_path, OLD)
    vczstore.tag(store, "v1")
    cohort.write_vcz(tmp_path / "batch", cohort.some_arrays(10, cohort.ids(7, 2)))
    vczstore.append(store, tmp_path / "batch")
    dry = json.loads(run("export", store, tmp_path / "out", "--at", "v1", "--dry-run", "--json").stdout)
    assert dry["plan"]["chunks_decoded"] == 0 < dry["plan"]["chunks_encoded"]
    assert not (tmp_path / "out").exists()
    vczstore.export(store, tmp_path / "out", at="v1")
    cohort.assert_same(exported(tmp_path / "out"), OLD)
    before = cohort.digest(tmp_path / "out")
    complain(UnsuitableError, ("^export: .*out exists",), lambda: vczstore.export(store, tmp_path / "out"))
    assert cohort.digest(tmp_path / "out") == before


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "suffixes"), [("format2", ("vcf.gz", "bcf")), ("icechunk", ("vcf",))])
def test_a_vcf(kind: str, suffixes: tuple[str, ...], tmp_path: Path) -> None:
    original = vcf.write_vcf(tmp_path / "original.vcf.gz", vcf.CALLS.make())
    samples = vcf.CALLS.samples
    store = vcf.to_vcz(original, tmp_path / "store", 2, 5, 2)
    if kind == "icechunk":
        store = cohort.copy_to_icechunk(store, tmp_path / "repository")
        vczstore.tag(store, "v1")
    vczstore.remove(store, samples[1])
    remaining = [sample for sample in samples if sample != samples[1]]
    expected = vcf.records(pysam.bcftools.view("--no-version", "-s", f"^{samples[1]}", str(original)))
    for suffix in suffixes:
        out = tmp_path / f"out.{suffix}"
        run("export", store, out)
        assert vcf.bcftools_records(out) == expected
    run("export", store, tmp_path / "some.vcf", "-s", f"{remaining[2]},{remaining[0]}", "-r", "chr1")
    viewed = pysam.bcftools.view("--no-version", "-s", f"{remaining[2]},{remaining[0]}", "-r", "chr1", str(original))
    assert vcf.bcftools_records(tmp_path / "some.vcf") == vcf.records(viewed)
    for flags in (["--dry-run"], []):
        assert "0 variants" in run("export", store, tmp_path / "none.vcf", "-r", f"chr1:{'9' * 23}-", *flags).stdout
    assert len(vcf.bcftools_records(tmp_path / "none.vcf")) == 1
    if kind == "icechunk":
        run("export", store, tmp_path / "v1.vcf", "--at", "v1")
        assert vcf.bcftools_records(tmp_path / "v1.vcf") == expected
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


COUNTS = """\
##INFO=<ID=AF,Number=A,Type=Float,Description="Frequency">
##INFO=<ID=NS,Number=1,Type=Integer,Description="Samples">
"""
COUNTED = """\
chr1	100	.	A	C	.	.	AF=0.25;NS=2	GT:DP	0/1:5	./.:6
chr1	110	.	A	C	.	.	.	GT:DP	0/1:5	.:6
chr1	120	.	A	C,G	.	.	AF=.,0.5	GT:DP	1/2:5	0|2:.
"""


def with_sorted_info(text: str) -> list[str]:
    rows = [line.split("\t") for line in vcf.records(text)]
    return ["\t".join([*row[:7], ";".join(sorted(row[7].split(";"))), *row[8:]]) for row in rows]


@pytest.mark.slow
def test_standard_output(tmp_path: Path) -> None:
    """It has the VCF that vcztools view writes and nothing else, and no file is made."""
    vcf.write_vcf(tmp_path / "a.vcf.gz", small_vcf.text())
    store = vcf.to_vcz(tmp_path / "a.vcf.gz", tmp_path / "store.vcz", 3, 2, 2)
    vczstore.recompute(store, ["NS"])
    vczstore.remove(store, ["B1"])
    (tmp_path / "empty").mkdir()
    before = cohort.digest(tmp_path)

    def export(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "vczstore", "export", "../store.vcz", "-", *arguments]
        return subprocess.run(command, cwd=tmp_path / "empty", capture_output=True, check=False)

    done = export("--progress")
    assert done.returncode == 0, done.stderr
    assert b"export: left out, since samples were added, changed or removed" in done.stderr
    assert vcf.records(done.stdout.decode()) == [
        re.sub("(;|(?<=\t))NS=[0-9]", "", line).replace("\t\tGT", "\t.\tGT").replace("\t\tDP", "\t.\tDP")
        for line in vcf.records(vcf.vcztools_view(store))
    ]
    vczstore.export(store, tmp_path / "out.vcf")
    assert done.stdout == (tmp_path / "out.vcf").read_bytes()
    (tmp_path / "out.vcf").unlink()
    done = export("--json", "-r", "chrX")
    assert json.loads(done.stderr)["out"] == "-"
    assert [line.split(b"\t")[0] for line in done.stdout.splitlines() if line[:1] != b"#"] == [b"chrX"]
    done = export("--dry-run")
    assert (done.stdout, done.returncode) == (b"", 0)
    assert b"export -: 1 samples of ../store.vcz (dry run" in done.stderr
    assert cohort.digest(tmp_path) == before


@pytest.mark.slow
def test_a_reader_of_standard_output_that_ends_early(tmp_path: Path) -> None:
    records = [f"chr1\t{n}\t.\tA\tC\t.\t.\t.\tGT\t0/1\t1/1\n" for n in range(1, 20_000)]
    vcf.write_vcf(tmp_path / "a.vcf.gz", small_vcf.text(records="".join(records)))
    vcf.to_vcz(tmp_path / "a.vcf.gz", tmp_path / "store.vcz", 3, 1000, 2)
    command = f"{shlex.quote(sys.executable)} -m vczstore export store.vcz - | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["##fileformat=VCFv4.3", "0"]
    assert done.stderr == ""
    command = f"{shlex.quote(sys.executable)} -m vczstore export store.vcz - > /dev/full"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: export: standard output cannot be written (")
    assert [path.name for path in tmp_path.glob("[!a]*")] == ["store.vcz"]


@pytest.mark.slow
def test_info_fields_of_chosen_samples(tmp_path: Path) -> None:
    """AC and AN are recomputed, other INFO fields kept; FORMAT fields without values are dropped."""
    text = small_vcf.text(("A", "B"), COUNTED, small_vcf.HEADER + COUNTS)
    original = vcf.write_vcf(tmp_path / "original.vcf.gz", text)
    vczstore.init(tmp_path / "store.vcz", original)
    for names in ("A", "B,A", "B"):
        vczstore.export(tmp_path / "store.vcz", tmp_path / f"{names}.vcf", samples=names.split(","))
        expected = with_sorted_info(pysam.bcftools.view("--no-version", "-s", names, str(original)))
        if names == "B":
            expected = [line.replace("GT:DP\t./.:6", "DP\t6").replace("GT:DP\t.:6", "DP\t6") for line in expected]
            expected = [line.replace("GT:DP\t0|2:.", "GT\t0|2") for line in expected]
        assert with_sorted_info((tmp_path / f"{names}.vcf").read_text()) == expected


REGIONS = ("chr1:1115-1300,chrX:2665-,chr1:1290-1340", "chr1:151,chr1:250-399", "chr1:3000-4000")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["format2", "icechunk", "format3_flexible"])
def test_regions_of_a_vcz(kind: str, tmp_path: Path) -> None:
    """Records agree with bcftools view -r, and every array has the same rows."""
    small = small_vcf.text(records=small_vcf.RECORDS.replace("PASS\tCSQ=a,b", "PASS\tCSQ=a"))
    texts = {"calls": (vcf.CALLS.make(), vcf.CALLS.samples), "small": (small, small_vcf.NEW)}
    chosen = [("calls", REGIONS[0]), ("small", REGIONS[1])] + [("small", REGIONS[2])] * (kind in WRITTEN)
    for i, (name, regions) in enumerate(chosen):
        text, samples = texts[name]
        original = vcf.write_vcf(tmp_path / f"{i}.vcf.gz", text)
        store = vcf.to_vcz(original, tmp_path / f"{i}.vcz", 2 if kind == "format2" else 3, 9, 8)
        if kind.startswith("icechunk"):
            store = cohort.copy_to_icechunk(store, tmp_path / f"{i}.icechunk")
        if kind in FLEXIBLE:
            vczstore.regrid(store, sample_grid="flexible")
        names = samples[::-2] if i == 0 else samples
        viewed = pysam.bcftools.view("--no-version", "-I", "-s", ",".join(names), "-r", regions, str(original))
        out = tmp_path / f"{i}.out"
        stdout = run("export", store, out, "-s", ",".join(names), "-r", regions).stdout
        assert vczstore.verify(out).ok
        before, after = Way(kind, "cubed").read(store), exported(out)
        kept = [line.split("\t")[:2] for line in vcf.records(viewed)[1:]]
        contigs = before["contig_id"].tolist()
        rows = [
            row
            for row, (contig, position) in enumerate(
                zip(before["variant_contig"], before["variant_position"], strict=True)
            )
            if [contigs[contig], str(position)] in kept
        ]
        assert len(rows) == len(kept) == vczstore.info(out).variants
        assert ("0 variants" in stdout) == (not kept)
        columns = [before["sample_id"].tolist().index(sample) for sample in names]
        for field, values in before.items():
            if field.startswith(("variant_", "call_")):
                expected = values[rows][:, columns] if field.startswith("call_") else values[rows]
                np.testing.assert_array_equal(after[field], expected, err_msg=field)


@pytest.mark.slow
def test_a_file_of_regions(tmp_path: Path) -> None:
    """Regions are read as by bcftools; positions in a .bed file are 0-based."""
    original = vcf.write_vcf(tmp_path / "original.vcf.gz", vcf.CALLS.make())
    store = vcf.to_vcz(original, tmp_path / "store", 3, 9, 8)
    for name, text in {
        "some.tsv": "chr1\t1037\t1074\nchrX\t2700\t2702\n",
        "positions.tsv": "chr1\t1000\nchr1\t1001\nchr1\t1111\n",
        "some.bed": "#track\nchr1\t1000\t1037\tx\nchr1\t1111\t1148\n",
    }.items():
        (tmp_path / name).write_text(text)
        expected = vcf.records(pysam.bcftools.view("--no-version", "-R", str(tmp_path / name), str(original)))
        assert len(expected) > 2
        for suffix in (".vcz", ".vcf"):
            run("export", store, tmp_path / f"{name}{suffix}", "-R", tmp_path / name)
        assert vcf.bcftools_records(tmp_path / f"{name}.vcf") == expected
        assert vcf.records(vcf.vcztools_view(tmp_path / f"{name}.vcz")) == expected
    before = cohort.digest(tmp_path)
    for text, pattern in {
        "chr1\t20\t10\n": "line 1 of .*bad.tsv ends before it begins",
        "chr1 1 2\n": "line 1 of .*bad.tsv is no region",
        "#nothing\n": "has no region",
        "chr9\t1\t2\n": "no contig chr9, which .*bad.tsv names; it has chr1",
    }.items():
        (tmp_path / "bad.tsv").write_text(text)
        assert re.search(pattern, fails("export", store, tmp_path / "out", "-R", tmp_path / "bad.tsv", status=2))
    assert "not by both" in fails("export", store, tmp_path / "out", "-R", "x", "-r", "chr1", status=2)
    (tmp_path / "bad.tsv").unlink()
    assert cohort.digest(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(("zarr_format", "suffix"), [(2, "vcf"), (3, "bcf")])
def test_the_header_of_the_vcf(zarr_format: int, suffix: str, tmp_path: Path) -> None:
    """The header names no sample that is left out or removed, and keeps lines that do not concern samples."""
    removed, left_out, *remaining = vcf.CALLS.samples
    naming = [f"##SAMPLE=<ID={sample},Sex=F>" for sample in (removed, left_out)]
    naming += [f"##bcftools_viewCommand=view -s {removed},{left_out} in.vcf", f"##cmdline=call {left_out}"]
    first, *others = vcf.CALLS.make().splitlines()
    lines = [first, *naming, "##reference=hg38", *others]
    store = tmp_path / "store"
    vcf.to_vcz(vcf.write_vcf(tmp_path / "original.vcf.gz", "\n".join(lines) + "\n"), store, zarr_format, 5, 2)
    header = [line for line in lines if line.startswith("#")]
    group = zarr.open_group(store)
    assert [line[0] for line in group.attrs["vcf_meta_information"] if "ommand" in line[0]]
    group.attrs["vcf_header"] = "\n".join(header) + "\n"  # as written by older versions of bio2zarr
    if zarr_format == 2:
        zarr.consolidate_metadata(store, zarr_format=2)
    vczstore.remove(store, removed)
    before = cohort.digest(store)
    vcz, file = tmp_path / "out", tmp_path / f"out.{suffix}"
    for out in (vcz, file):
        run("export", store, out, "-s", f"^{left_out}")
    kept = [line for line in header[:-1] if line not in naming]
    attributes = zarr.open_consolidated(vcz).attrs
    assert attributes["vcf_header"].splitlines() == [*kept, header[-1].partition("\tFORMAT")[0]]
    assert ["reference", "hg38"] in attributes["vcf_meta_information"]
    written = [path.read_bytes() for path in vcz.rglob("*") if path.is_file() and path.name.startswith((".z", "zarr"))]
    text = pysam.bcftools.view("--no-version", "-h", str(file))
    assert "##reference=hg38" in text.splitlines()
    assert all(start in text for start in ("##contig=<ID=", "##INFO=<ID=", "##FORMAT=<ID="))
    assert text.splitlines()[-1].split("\t")[9:] == remaining
    for word in (removed, left_out, "##SAMPLE", "viewCommand", "cmdline"):
        assert not [content for content in (*written, text.encode()) if word.encode() in content]
    assert cohort.digest(store) == before


@pytest.mark.slow
def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, out = Way("format3_flexible", "cubed").make(tmp_path, OLD), tmp_path / "out"
    before = cohort.digest(tmp_path)
    complain(
        SampleError,
        ("has no sample S001;", "perhaps .* is meant"),
        lambda: vczstore.export(store, out, samples=["S001"]),
    )
    complain(TagError, ("^export: .*plain Zarr",), lambda: vczstore.export(store, out, at="v1"))
    complain(UnsuitableError, ("has no variant_length, which",), lambda: vczstore.export(store, out, regions=["chr1"]))
    assert "not by both" in fails("export", store, out, "-s", "S0001", "-S", "ids", status=2)
    assert "has an empty name" in run("export", store, out, "-s", "S0001,", status=2).stderr
    for names, words in (("S0001,S0001", "twice"), ("S0001,^S0002", "write ^ once, before the first sample")):
        assert words in fails("export", store, out, "-s", names, status=2)
    assert "empty name" in fails("export", store, out, "-s", "", status=2)
    assert "empty name" in fails("export", store, f"{out}.vcf", "-r", "", status=2)
    assert "cannot be read" in fails("export", store, out, "-S", tmp_path / "ids", status=2)
    complain(UnsuitableError, ("no folder",), lambda: vczstore.export(store, tmp_path / "no" / "out.vcf"))
    for name in ("x.vcz", "x.vcf", "call_DP/x"):
        complain(UnsuitableError, ("would lie in",), lambda name=name: vczstore.export(store, store / name))
    complain(UnsuitableError, ("is no path",), lambda: vczstore.export(store, "s3://bucket/out.vcf"))
    complain(UnsuitableError, ("flexible sample grid",), lambda: vczstore.export(store, tmp_path / "out.vcf"))
    monkeypatch.setitem(sys.modules, "vcztools", None)
    words = ("vcztools", r"pip install '\.\[export\]'")
    complain(MissingDependencyError, words, lambda: vczstore.export(store, tmp_path / "out.vcf"))
    assert cohort.digest(tmp_path) == before


@pytest.mark.slow
def test_regions_and_arrays_in_groups(tmp_path: Path) -> None:
    """Nested groups are copied as a whole, so their rows would belong to other variants."""
    store, out = tmp_path / "store", tmp_path / "out"
    cohort.write_vcz(store, OLD)
    group = zarr.open_group(store)
    for name, values in (("variant_length", [1] * 10), ("extra/depth", [*range(10)])):
        array = group.create_array(name, shape=(10,), dtype="i4", chunks=(4,), dimension_names=["variants"])
        array[:] = values
    before = cohort.digest(tmp_path)
    error = fails("export", store, out, "-r", str(OLD["contig_id"][0]))
    assert "extra/depth of " in error
    assert "lies in a group of its own" in error
    assert cohort.digest(tmp_path) == before
    vczstore.export(store, out)
    assert zarr.open_consolidated(out)["extra/depth"][:].tolist() == [*range(10)]


def test_a_vcf_that_cannot_be_written(tmp_path: Path) -> None:
    """The error contains the reason from vcztools, and no file is left."""
    store = Way("format3", "cubed").make(tmp_path, OLD)
    before = cohort.digest(tmp_path)
    (store / "variant_position" / "c" / "0").write_bytes(b"no chunk")
    before = cohort.digest(tmp_path)
    out = tmp_path / "out.vcf.gz"
    assert "vcztools cannot write" in fails("export", store, out)
    assert "has no contig chrNo, which --regions names; it has " in fails(
        "export", store, out, "-r", "chrNo:1-2", status=2
    )
    contig = str(OLD["contig_id"][0])
    assert "ends before it begins" in fails("export", store, out, "-r", f"{contig}:300-200", status=2)
    assert cohort.digest(tmp_path) == before


@pytest.mark.slow
def test_samples_that_were_removed_later(tmp_path: Path) -> None:
    """Exports of an earlier state contain no samples that were removed later."""
    store = Way("icechunk", "cubed").make(tmp_path, OLD)
    vczstore.tag(store, "v1")
    vczstore.branch(store, "old")
    vczstore.remove(store, ["S0001", "S0003"])
    expected = cohort.select(OLD, [f"S000{i}" for i in (0, 2, 4, 5, 6)])
    for name, flags in (("a", ["--at", "v1"]), ("b", ["--branch", "old"])):
        assert "removed since, and left out: 2 samples" in run("export", store, tmp_path / name, *flags).stdout
        cohort.assert_same(exported(tmp_path / name), expected)
    error = fails("export", store, tmp_path / "c", "--at", "v1", "-s", "S0003,S0000")
    assert "1 of the samples that are named was removed" in error
    (tmp_path / "ids").write_text("S0003\n^S0000\nX1\nS0000\n")
    text = run("export", store, tmp_path / "d", "--at", "v1", "-S", f"^{tmp_path / 'ids'}").stdout
    assert "named with ^, and not there: 2 IDs" in text
    assert exported(tmp_path / "d")["sample_id"].tolist() == ["S0002", "S0004", "S0005", "S0006"]
    error = fails("export", store, tmp_path / "e", "-S", tmp_path / "ids")
    assert "has no sample S0003, ^S0000, X1;" in error
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(("gone", "left"), [("S1", ["S1 ", "S2"]), ("S1 ", ["S1", "S2"]), (["S1", "S1 "], ["S2"])])
def test_an_id_with_spaces_is_another_sample(gone: str | list[str], left: list[str], tmp_path: Path) -> None:
    """A removal does not affect a sample whose ID differs only in spaces; on `old`, both exist."""
    store = Way("icechunk", "cubed").make(tmp_path, cohort.some_arrays(4, ["S1 ", "S1", "S2"]))
    vczstore.branch(store, "old")
    if gone == "S1 ":
        (tmp_path / "ids").write_text("S1\tT1\n")
        vczstore.rename_samples(store, tmp_path / "ids", impl="zarr")
    elif gone == "S1":  # renamed by another tool, because files of IDs cannot contain spaces
        repository = repository_of(store)
        with repository.transaction("main", message="rename") as session:
            zarr.open_array(session, path="sample_id")[0] = "T1"
    vczstore.remove(store, gone, impl="zarr")
    vczstore.export(store, tmp_path / "out", at="old")
    assert exported(tmp_path / "out")["sample_id"].tolist() == left


@pytest.mark.slow
def test_samples_that_were_renamed_later(tmp_path: Path) -> None:
    """An earlier state has the IDs from before the renaming, and a note with their number."""
    store = Way("icechunk", "cubed").make(tmp_path, OLD)
    vczstore.branch(store, "old")
    (tmp_path / "ids").write_text("S0001\tT1\nS0003\tT3\n")
    vczstore.rename_samples(store, tmp_path / "ids")
    vczstore.remove(store, ["T3", "S0005"])
    note = "samples were renamed since: 2 of their IDs are those from before"
    stdout = run("export", store, tmp_path / "a", "--at", "old").stdout
    assert note in stdout
    assert "removed since, and left out: 1 sample" in stdout
    assert note in run("export", store, tmp_path / "b", "--branch", "old").stdout
    assert "renamed since" not in run("export", store, tmp_path / "c").stdout
    (tmp_path / "ids").write_text("S0001\nS0003\n")
    assert (
        "renamed since" not in run("export", store, tmp_path / "d", "--at", "old", "-S", f"^{tmp_path / 'ids'}").stdout
    )


@pytest.mark.slow
def test_info_fields_that_are_out_of_date(tmp_path: Path) -> None:
    """An append, too, makes AF stale; AC and AN are recomputed."""
    text = vcf.CALLS.make()
    store = vcf.to_vcz(vcf.write_vcf(tmp_path / "a.vcf.gz", text), tmp_path / "store", 2, 5, 2)
    vczstore.recompute(store, ["AF"])
    vczstore.rename_samples(shutil.copytree(store, tmp_path / "batch"), _renames(tmp_path / "ids", vcf.CALLS.samples))
    vczstore.append(store, tmp_path / "batch")
    assert f"{OUT_OF_DATE}: INFO/AF; vczstore recompute" in run("export", store, tmp_path / "out.vcf").stdout
    assert "INFO/AF" not in (tmp_path / "out.vcf").read_text()


def _renames(path: Path, samples: Sequence[str]) -> Path:
    path.write_text("".join(f"{sample}\tnew-{sample}\n" for sample in samples))
    return path


@pytest.mark.slow
def test_a_bcf_in_a_process_of_its_own(tmp_path: Path) -> None:
    """INFO fields that count removed samples are left out; AC and AN are recomputed."""
    store = vcf.to_vcz(vcf.write_vcf(tmp_path / "original.vcf.gz", vcf.CALLS.make()), tmp_path / "store", 2, 5, 2)
    vczstore.recompute(store, ["AC", "AN", "AF"])
    vczstore.remove(store, vcf.CALLS.samples[1])
    command = [sys.executable, "-m", "vczstore", "export", str(store), str(tmp_path / "out.bcf")]
    stdout = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"{OUT_OF_DATE}: INFO/AF; vczstore recompute" in stdout
    assert "INFO/AF" not in pysam.bcftools.view("-h", str(tmp_path / "out.bcf"))
    vczstore.recompute(store, ["AC", "AN"])
    run("export", store, tmp_path / "fresh.vcf")
    counts = [pysam.bcftools.query("-f", "%AC %AN\n", str(tmp_path / name)) for name in ("out.bcf", "fresh.vcf")]
    assert counts[0] == counts[1] != ""


def test_an_output_file_that_appears_meanwhile_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made").write_text("new")
    (tmp_path / "out").write_text("theirs")

    def no_links(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    complain(UnsuitableError, ("exists by now",), lambda: export_vcf._publish(tmp_path / "made", tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "theirs"
    export_vcf._publish(tmp_path / "made", tmp_path / "other")
    assert (tmp_path / "other").read_text() == "new"


@pytest.mark.slow
def test_killed(tmp_path: Path) -> None:
    """A killed run leaves no store unless it had finished."""
    store, out = Way("format3", "cubed").make(tmp_path, OLD), "out.vcz"
    code = f"import vczstore; vczstore.export(store, store.with_name({out!r}), executor='single-threaded')"
    *copies, whole = killed(store, tmp_path / "killed", code, step=31)
    assert len(copies) > 3
    for copy in copies:
        assert cohort.digest(copy) == cohort.digest(store)
        output = copy.with_name(out)
        complain(NotAStoreError, (str(output),), lambda output=output: vczstore.info(output))
    cohort.assert_same(exported(whole.with_name(out)), OLD)


def test_a_source_that_tasks_cannot_read(tmp_path: Path) -> None:
    store = Way("format3", "cubed").make(tmp_path, OLD)
    memory, words = cohort.in_memory(store), ("in this process's memory", "use the executor threads")
    complain(OptionError, words, lambda: vczstore.export(memory, tmp_path / "out", executor="processes"))
    complain(OptionError, words, lambda: vczstore.diff(store, memory, executor="processes"))
    assert not (tmp_path / "out").exists()
