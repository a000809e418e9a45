"""VCF and BCF files as sources; bcftools and bio2zarr are the oracles."""

from __future__ import annotations

import gzip
import http.server
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr

import vczstore
from tests.support import cohort, vcf
from tests.support.command_line import fails
from tests.support.refusals import complain, mentions
from tests.support.small_vcf import HEADER, NEW, OLD, RECORDS, text, write
from vczstore.errors import (
    IncompatibleError,
    MemoryLimitError,
    MissingDependencyError,
    NotAStoreError,
    SampleError,
    VcfError,
    VczstoreError,
)
from vczstore.execution import conversions
from vczstore.jobs.run import run_job
from vczstore.stores.locations import alternatives
from vczstore.vcf.conversion import Layout


def in_kind(kind: str, plain: Path, store: Path) -> Path:
    """Copy a plain VCZ to `store`, unchanged or as an Icechunk repository."""
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(plain, store)
    else:
        shutil.copytree(plain, store)
    return store


def read(kind: str, store: Path) -> dict[str, np.ndarray]:
    return cohort.read_vcz(cohort.icechunk_store(store) if kind == "icechunk" else store)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, which must be empty after each test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the samples in `OLD`, made by vczstore from their VCF."""
    folder = tmp_path_factory.mktemp("template")
    first = write(folder / "first.vcf.gz", text(OLD))
    vczstore.create(folder / "store.vcz", first, variants_chunk=2, samples_chunk=2)
    vczstore.append(folder / "store.vcz", first)
    return folder / "store.vcz"


@pytest.fixture
def store(tmp_path: Path, template: Path) -> Path:
    """A copy of `template` for one test."""
    shutil.copytree(template, tmp_path / "store.vcz")
    return tmp_path / "store.vcz"


# ---- conversion -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "kind"),
    [
        ("fields", "format2"),
        ("mixed_ploidy", "format3"),
        ("triploid", "icechunk"),
        ("calls", "icechunk"),
    ],
)
def test_appending_a_vcf_equals_appending_the_vcz_of_bio2zarr(tmp_path: Path, example: str, kind: str) -> None:
    """The records are those that bcftools prints of the whole VCF."""
    spec = vcf.EXAMPLES[example]
    whole = vcf.write_vcf(tmp_path / "whole.vcf.gz", spec.make())
    first, *others = (vcf.split_by_samples(whole, p, tmp_path / f"{p[0]}.vcf.gz") for p in spec.parts)
    zarr_format = 2 if kind == "format2" else 3
    plain = vcf.to_vcz(first, tmp_path / "first.vcz", zarr_format, 16, 3)
    converted = [vcf.to_vcz(o, o.with_suffix(".vcz"), zarr_format, 16, 3) for o in others]
    stores = [in_kind(kind, plain, tmp_path / name) for name in ("from-vcf", "from-vcz")]
    plans = [vczstore.append(s, *sources).plan for s, sources in zip(stores, (others, converted), strict=True)]
    actual, expected = (read(kind, s) for s in stores)
    cohort.assert_same(actual, expected)
    assert plans[0].encoded_chunks == plans[1].encoded_chunks
    assert vcf.records(vcf.vcztools_view(stores[0], icechunk=kind == "icechunk")) == vcf.bcftools_records(whole)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("batch.vcf", "format3"),
        ("batch.vcf.gz", "icechunk"),
        ("batch.vcf.bgz", "format2"),
        ("batch.bcf", "icechunk"),
        ("BATCH.VCF.GZ", "format3"),
    ],
)
@pytest.mark.slow
def test_all_kinds_of_files(tmp_path: Path, store: Path, name: str, kind: str) -> None:
    """Multi-allelic, haploid and symbolic alleles, and a record without GT, in files without an index."""
    target = in_kind(kind, store, tmp_path / "target") if kind != "format3" else store
    if kind == "format2":
        shutil.rmtree(target)
        plain = vcf.write_vcf(tmp_path / "plain.vcf.gz", text(OLD))
        vcf.to_vcz(plain, target, 2, 2, 2)
    batch = write(tmp_path / name, text())
    before = cohort.digest(tmp_path / "temporary"), sorted(path.name for path in tmp_path.iterdir())
    result = vczstore.append(target, batch)
    assert result.counts == {"sources": 1, "samples added": 2}
    assert (cohort.digest(tmp_path / "temporary"), sorted(path.name for path in tmp_path.iterdir())) == before
    shown = vcf.records(vcf.vcztools_view(target, icechunk=kind == "icechunk"))
    whole = write(tmp_path / "whole.vcf", _joined())
    expected = [_without_site(line) for line in vcf.bcftools_records(whole)]
    assert [_without_site(line) for line in shown] == expected


def _joined() -> str:
    """The VCF of all samples, as of bcftools merge except for QUAL, FILTER and INFO."""
    lines = [line + "\t" + "\t".join(line.split("\t")[9:]) for line in RECORDS.splitlines()]
    return text((*OLD, *NEW), "\n".join(lines) + "\n")


def _without_site(line: str) -> str:
    """A record without QUAL, FILTER and INFO, which a store made by `create` does not have."""
    fields = line.split("\t")
    if fields[0] == "#CHROM":
        return line
    return "\t".join([*fields[:5], *fields[8:]])


@pytest.mark.slow
def test_converted_chunks_are_copied_verbatim(tmp_path: Path, store: Path) -> None:
    """The VCF is converted with the store's dtypes, which are wider, and its compressors."""
    for name in ("call_DP", "call_genotype"):
        array = zarr.open_array(store / name, mode="r")
        values, names = array[:], array.metadata.dimension_names  # type: ignore[union-attr]
        shutil.rmtree(store / name)
        zarr.create_array(
            store / name,
            data=values.astype("i4"),
            chunks=array.chunks,
            dimension_names=names,
            compressors=zarr.codecs.BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle"),
        )
    small = text(records=RECORDS.replace(":300", ":3"))
    result = vczstore.append(store, write(tmp_path / "batch.vcf", small), require_direct_copy=True)
    assert (result.plan.encoded_chunks, result.plan.decoded_chunks) == (19, 0)
    assert zarr.open_array(store / "call_DP", mode="r")[0].tolist() == [300, 7, 3, 7]


def test_files_that_begin_within_a_chunk_column_have_no_padding() -> None:
    """Files that begin at a chunk boundary get chunks of full width, which can be copied."""
    sizes = [4, 1, 1, 2, 3]
    layouts = Layout(variants=1_000, samples=4).of_each(sizes)
    assert [layout.samples_chunk(n) for layout, n in zip(layouts, sizes, strict=True)] == [4, 4, 1, 2, 4]


def test_vcfs_are_converted_in_the_planned_chunks(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, text()) for name in ("first.vcf", "second.vcf")]
    with conversions.Conversions(None) as converter:
        files = [converter.file("append", path, {}) for path in paths]
        converted = converter.converted("append", files, Layout(variants=1_000, samples=3), budget=2**28)
        assert [vcz.arrays["call_DP"].chunks for vcz in converted] == [(1_000, 3), (1_000, 2)]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_calls_of_one_allele_are_phased(tmp_path: Path, zarr_format: int) -> None:
    """Also in records without calls of two alleles, whose phase cyvcf2 reads from beyond the genotypes."""
    genotypes = ["0/1 1|0 0 .", "1 0 . 1", "0|1 0/0 0|1 ./1", "0 0 0 0", ". . . .", "1 1 0|0 0"]
    lines = [f"chrX\t{10 + i}\t.\tA\tC\t.\t.\t.\tGT\t{calls}" for i, calls in enumerate(genotypes)]
    records = "\n".join(lines).replace(" ", "\t") + "\nchrX\t90\t.\tA\tC\t.\t.\t.\tDP\t1\t2\t3\t4\n"
    path = write(tmp_path / "batch.vcf", text((*OLD, *NEW), records))
    with conversions.Conversions(None) as converter:
        layout = Layout(variants=2, samples=3, zarr_format=zarr_format)
        (vcz,) = converter.converted("append", [converter.file("append", path, {})], layout, budget=2**28)
        actual = vcz.arrays["call_genotype_phased"][:]
    np.testing.assert_array_equal(actual, [["/" not in call for call in c.split()] for c in genotypes] + [[False] * 4])


def test_a_file_is_not_converted_again_after_the_store_has_grown() -> None:
    """As after another writer's commit. The repr of the layout is part of the key of a conversion."""
    before, now = (Layout(variants=1_000, samples=4, begin=begin).of_each([2, 1]) for begin in (0, 1))
    assert repr([*before]) == repr([*now])


@pytest.mark.slow
def test_create_update_and_normalise(tmp_path: Path, store: Path) -> None:
    changed = write(
        tmp_path / "recalled.bcf",
        text(
            OLD[:1],
            RECORDS.replace("0/1:5,6,0", "1/1:0,9,0")
            .replace("\t1/1:0,7,0:7", "")
            .replace("\t0|1:2", "")
            .replace("\t./.:low", "")
            .replace("4\t5", "4")
            .replace("\t0/1:8", ""),
        ),
    )
    assert vczstore.update(store, changed).counts == {"sources": 1, "samples updated": 1}
    genotypes = zarr.open_array(store / "call_genotype", mode="r")
    assert genotypes[0].tolist() == [[1, 1], [1, 1]]
    batch = write(tmp_path / "batch.vcf", text())
    vczstore.normalise(store, batch, tmp_path / "normalised.vcz")
    other = tmp_path / "other.vcz"
    shutil.copytree(store, other)
    vczstore.append(store, batch, harmonise=True)
    vczstore.append(other, tmp_path / "normalised.vcz", harmonise=True)
    cohort.assert_same(cohort.read_vcz(store), cohort.read_vcz(other))


@pytest.mark.slow
def test_create_from_vcfs_equals_create_from_vczs(tmp_path: Path) -> None:
    """Only sites are converted, so a VCF without samples is enough."""
    files = [
        vcf.write_vcf(tmp_path / "a.vcf.gz", text()),
        vcf.write_vcf(tmp_path / "b.vcf.gz", text(OLD, RECORDS.replace("\t150", "\t160"))),
    ]
    vczs = [vcf.to_vcz(f, f.with_suffix(".vcz"), 3, None, None) for f in files]
    vczstore.create(tmp_path / "from-vcf", *files)
    vczstore.create(tmp_path / "from-vcz", *vczs)
    assert cohort.digest(tmp_path / "from-vcf") == cohort.digest(tmp_path / "from-vcz")
    lines = [line.rsplit("\t", 3)[0] for line in text().splitlines() if not line.startswith("##")]
    sites = write(tmp_path / "sites.vcf", HEADER + "\n".join(lines) + "\n")
    result = vczstore.create(tmp_path / "from-sites", sites)
    assert result.counts["variants"] == 5


@pytest.mark.slow
def test_inserted_variants_keep_their_info_values(tmp_path: Path) -> None:
    """INFO fields that the store has are read."""
    first = vcf.write_vcf(tmp_path / "first.vcf.gz", text(OLD))
    more = RECORDS.replace("chr1\t400", "chr1\t350\trs7\tC\tCT\t7\tq10\tCSQ=x,y\tGT:DP\t0/1:3\t1|1:4\nchr1\t400")
    second = vcf.write_vcf(tmp_path / "second.vcf.gz", text(NEW, more))
    plain = vcf.to_vcz(first, tmp_path / "first.vcz", 3, 2, 2)
    vcz = vcf.to_vcz(second, tmp_path / "second.vcz", 3, 2, 2)
    stores = [in_kind("icechunk", plain, tmp_path / name) for name in ("from-vcf", "from-vcz")]
    for store, source in zip(stores, (second, vcz), strict=True):
        vczstore.append(store, source, harmonise=True, new_variants="insert")
    actual, expected = (read("icechunk", store) for store in stores)
    cohort.assert_same(actual, expected)
    assert actual["variant_CSQ"][3].tolist() == ["x", "y"]


GVCF = """\
chr1	100	.	A	<NON_REF>	.	.	END=149	GT:AD:DP	0/0:30,0:30	0/0:9,0:9
chr1	150	.	C	T,<NON_REF>	50	.	.	GT:AD:DP	0/1:15,16,0:31	1/1:0,7,0:7
chr1	151	.	G	<NON_REF>	.	.	END=500	GT:AD:DP	0/0:30,0:30	0/0:9,0:9
"""


@pytest.mark.slow
def test_reference_blocks_keep_their_lengths(tmp_path: Path) -> None:
    """Their lengths are read even if only sites are converted: from INFO/END, or in VCF 4.5 from FORMAT/LEN."""
    lengths = HEADER + '##FORMAT=<ID=LEN,Number=1,Type=Integer,Description="Length">\n'
    gvcf_4_5 = (
        GVCF.replace("END=149\tGT", ".\tLEN:GT")
        .replace("\t0/0:30,0", "\t50:0/0:30,0")
        .replace("\t0/0:9,0", "\t50:0/0:9,0")
    )
    gvcf_4_5 = gvcf_4_5.replace("END=500\tGT", ".\tLEN:GT")
    for name, content in (("end", text(OLD, GVCF)), ("len", text(NEW, gvcf_4_5, lengths))):
        file = vcf.write_vcf(tmp_path / f"{name}.vcf.gz", content)
        vcz = vcf.to_vcz(file, tmp_path / f"{name}.vcz", 3, None, None)
        stores = [tmp_path / f"{name}-from-{source.suffix[1:]}" for source in (file, vcz)]
        for store, source in zip(stores, (file, vcz), strict=True):
            with pytest.raises(IncompatibleError, match="gvcf"):
                vczstore.create(store, source)
            vczstore.create(store, source, gvcf=True)
            vczstore.append(store, source, gvcf=True, harmonise=True)
        actual, expected = map(cohort.read_vcz, stores)
        cohort.assert_same(actual, expected)
        assert actual["variant_position"].tolist() == [150]


@pytest.mark.slow
def test_a_vcf_without_records(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.vcf", text(records=""))
    assert vczstore.create(tmp_path / "store.vcz", empty).counts["variants"] == 0
    assert vczstore.append(tmp_path / "store.vcz", empty).counts["samples added"] == 2


@pytest.mark.slow
def test_files_are_converted_in_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file in parts, small files in parallel."""
    records = "".join(
        f"{c}\t{p}\t.\tA\tC\t.\t.\t.\tGT:DP\t0/1:{p % 90}\t1|1:1\n" for c in ("chr1", "chrX") for p in range(1, 99)
    )
    large = write(tmp_path / "large.vcf.gz", text(records=records))
    small = write(tmp_path / "small.vcf.gz", text(OLD, records))
    vczstore.create(tmp_path / "a", large, variants_chunk=16)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    vczstore.append(tmp_path / "a", large, small)
    monkeypatch.setattr(conversions, "PART_BYTES", large.stat().st_size)
    calls = list[tuple[str, int, int]]()
    vczstore.append(tmp_path / "b", large, small, max_workers=2, progress=lambda *a: calls.append(a))
    cohort.assert_same(cohort.read_vcz(tmp_path / "b"), cohort.read_vcz(tmp_path / "a"))
    calls = [call for call in calls if call[0] == "converting"]
    assert calls[0] == ("converting", 0, 200)
    assert calls[-1] == ("converting", 200, 200)
    assert len(calls) > 5


@pytest.mark.slow
def test_a_stale_index_hides_no_records(tmp_path: Path, store: Path) -> None:
    batch = vcf.write_vcf(tmp_path / "batch.vcf.gz", text(records=RECORDS.splitlines()[0] + "\n"))
    write(batch, text())
    before = cohort.digest(tmp_path)
    assert vczstore.append(store, batch, dry_run=True).counts["samples added"] == 2
    assert cohort.digest(tmp_path) == before


# ---- refusals -------------------------------------------------------------------------------

LINE = RECORDS.splitlines()[1]
BROKEN: dict[str, tuple[Callable[[], str], list[str]]] = {
    "no VCF": (lambda: "sample,genotype\n", ["is no VCF or BCF"]),
    "empty": (lambda: "", ["is empty"]),
    "records only": (lambda: RECORDS, ["is no VCF or BCF"]),
    "no header": (lambda: f"#\n{RECORDS}", ["no valid VCF header"]),
    "duplicate sample": (lambda: text(("B1", "B1")), ["no valid VCF header", "Duplicated sample name 'B1'"]),
    "no samples": (lambda: text((), RECORDS).replace("\tFORMAT", ""), ["has no samples; leave it out"]),
    "too few columns": (lambda: text().replace("\t./.:.\t", "\t"), [r"columns at chr1:150", "correct it"]),
    "cut line": (lambda: text().replace(LINE, LINE[:10]), ["record 2 after chr1:100 cannot be parsed"]),
    "no line break": (lambda: text()[:-4], ["no line break at its end", "copy it again"]),
    "wrong genotype": (lambda: text().replace("0|1:2", "x|1:2"), ["GT", "at chr1:150"]),
    "wrong number": (lambda: text().replace("0|1:2", "0|1:z"), ["DP", "at chr1:150"]),
    "wrong position": (lambda: text().replace("\t150\t", "\tx\t"), ["record 2 after chr1:100 cannot be parsed"]),
    "position 0": (lambda: text().replace("\t100\t", "\t0\t"), ["record 1 is at chr1:0, a telomere"]),
    "unsorted": (lambda: text().replace("\t150\t", "\t50\t"), ["Unsorted positions", "bcftools sort"]),
    "mixed contigs": (lambda: text().replace("chr1\t150", "chrX\t150"), ["(not continuous|Unsorted)", "bcftools sort"]),
    "undeclared FORMAT": (
        lambda: text().replace('##FORMAT=<ID=DP,Number=1,Type=Integer,Description="Depth">\n', ""),
        ["FORMAT DP at chr1:100", "does not declare", "would be lost"],
    ),
    "undeclared END": (
        lambda: text().replace('##INFO=<ID=END,Number=1,Type=Integer,Description="End">\n', ""),
        ["INFO END", "does not declare"],
    ),
    "a negative call": (
        lambda: text().replace("0|1:2", "0|1:-1"),
        ["has -1 for FORMAT/DP at chr1:150", "would be lost", "bcftools annotate -x FORMAT/DP"],
    ),
    "a call beyond 32 bits": (
        lambda: text().replace("0|1:2", "0|1:3000000000"),
        ["FORMAT DP at chr1:150 that takes more than 32 bits", "bcftools annotate -x FORMAT/DP"],
    ),
    "undeclared filter": (
        lambda: text().replace("\tq10\t", "\tq11\t"),
        ["Filter 'q11' was not defined.* at chr1:\\d+"],
    ),
    "unknown Number": (
        lambda: text(header=HEADER.replace("ID=DP,Number=1", "ID=DP,Number=X")),
        ["declares FORMAT/DP with Number=X, which VCF does not define", "bcftools annotate -x FORMAT/DP"],
    ),
    "local fields without LAA": (
        lambda: text(header=HEADER.replace("ID=AD,Number=R", "ID=AD,Number=LR")),
        ["declares FORMAT/AD with Number=LR, and no FORMAT/LAA", "bcftools annotate -x FORMAT/AD"],
    ),
    "wrong Number": (lambda: text().replace("5,6,0", "5,6,0,1,2,3"), ["FORMAT/AD at chr1:\\d+", "max"]),
}


WARNS = ("wrong number", "a call beyond 32 bits")
"""HTSlib warns of these once per process, so each is converted in a process of its own."""


@pytest.mark.parametrize("what", [what for what in BROKEN if what not in WARNS])
def test_a_broken_vcf_is_a_one_line_error(tmp_path: Path, store: Path, what: str) -> None:
    make_text, words = BROKEN[what]
    batch = write(tmp_path / "batch.vcf", make_text())
    before = cohort.digest(tmp_path)
    error = SampleError if what == "no samples" else VcfError
    complain(error, [rf"^append: {batch}", *words], lambda: vczstore.append(store, batch))
    assert cohort.digest(tmp_path) == before


@pytest.mark.slow
def test_calls_beyond_32_bits_are_refused_a_second_time(tmp_path: Path, store: Path) -> None:
    """They are detected again, although HTSlib warns of them only once per process."""
    batch = write(tmp_path / "batch.vcf", BROKEN["a call beyond 32 bits"][0]())
    code = f"""
import vczstore.errors
for _ in range(2):
    try:
        vczstore.append({os.fspath(store)!r}, {os.fspath(batch)!r})
    except vczstore.errors.VcfError as error:
        print("32 bits" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


@pytest.mark.slow
@pytest.mark.parametrize(("position", "length"), [(100, 100), (10, 300), (32_000, 2000)])
def test_the_region_index_of_a_short_contig(tmp_path: Path, position: int, length: int) -> None:
    """The end of a variant may take more bits than its position: bio2zarr would add position and length in these."""
    record = f"chr1\t{position}\t.\t{'A' * length}\tA\t.\t.\t.\tGT\t0/1\t1/1\n"
    store, out = tmp_path / "store.vcz", tmp_path / "out.vcf"
    vczstore.init(store, write(tmp_path / "a.vcf", text(records=record)))
    assert vczstore.verify(store).errors == []
    vczstore.export(store, out, regions=[f"chr1:{position + length - 1}"])
    assert [line.split("\t")[1] for line in out.read_text().splitlines() if line[0] != "#"] == [str(position)]


@pytest.mark.slow
def test_a_field_without_values(tmp_path: Path) -> None:
    """bio2zarr writes an array of length 0: an export leaves it out, an append fills it with missing values."""
    lines = [f'##FORMAT=<ID={name},Number=.,Type=Integer,Description="x">' for name in ("LAA", "LAD")]
    header = HEADER.replace("##FORMAT=<ID=DP", "\n".join([*lines, "##FORMAT=<ID=DP"])).rstrip()
    rows = ["chr1\t10\t.\tA\tC\t.\t.\t.\tGT:DP\t0/1:5", "chr1\t{}\t.\tA\tC\t.\t.\t.\tGT:DP:LAA:LAD\t0/1:5:1:5,6"]
    columns = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t{}"
    first = write(tmp_path / "first.vcf", "\n".join([header, columns.format("a"), rows[0], ""]))
    batch = "\n".join([header, columns.format("b"), rows[1].format(10), rows[1].format(12), ""])
    store, out = tmp_path / "store.vcz", tmp_path / "out.vcf"
    vczstore.init(store, first)
    vczstore.export(store, out)
    assert out.read_text().splitlines()[-1] == rows[0]
    vczstore.append(store, write(tmp_path / "batch.vcf", batch), harmonise=True, new_variants="insert")
    actual = read("format3", store)
    np.testing.assert_array_equal(actual["call_LAA"], [[[-1], [1]]] * 2)
    np.testing.assert_array_equal(actual["call_LAD"], [[[-1, -2], [5, 6]]] * 2)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["duplicate sample", "unsorted", "undeclared FORMAT", *WARNS])
def test_the_command_prints_one_line(tmp_path: Path, store: Path, what: str) -> None:
    """HTSlib's own messages are suppressed."""
    batch = write(tmp_path / "batch.vcf.gz", BROKEN[what][0]())
    before = cohort.digest(tmp_path)
    command = [sys.executable, "-m", "vczstore", "append", store, batch]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: append: {batch}")
    mentions(line, BROKEN[what][1])
    assert cohort.digest(tmp_path) == before


@pytest.mark.slow
def test_a_truncated_file_is_a_one_line_error(tmp_path: Path, store: Path) -> None:
    whole = write(tmp_path / "whole.vcf.gz", text()).read_bytes()
    for n, words in ((28, "is truncated"), (40, "is truncated"), (len(whole) - 10, "no valid VCF header")):
        batch = tmp_path / f"cut-{n}.vcf.gz"
        batch.write_bytes(whole[:-n])
        complain(VcfError, [words], lambda batch=batch: vczstore.append(store, batch))  # type: ignore[misc]
    plain = gzip.compress(text().encode())
    (tmp_path / "plain.vcf.gz").write_bytes(plain[:-20])
    complain(VcfError, ["^append: .*plain.vcf.gz"], lambda: vczstore.append(store, tmp_path / "plain.vcf.gz"))
    (tmp_path / "plain.vcf.gz").write_bytes(plain)
    assert vczstore.append(store, tmp_path / "plain.vcf.gz").committed


@pytest.mark.slow
def test_other_refusals_name_the_file(tmp_path: Path, store: Path) -> None:
    assert fails("append", store, "nothing.vcf.gz") == "append: nothing.vcf.gz: no such file or directory"
    other = write(tmp_path / "other.vcf", text(records=RECORDS.replace("\t150", "\t151")))
    complain(IncompatibleError, [rf"variant 1 of {other} is chr1:151"], lambda: vczstore.append(store, other))
    again = write(tmp_path / "again.vcf", text(OLD))
    complain(SampleError, [rf"all 2 samples of {again} are in {store} already"], lambda: vczstore.append(store, again))
    batch = write(tmp_path / "batch.vcf", text())
    words = [str(batch), "2 samples at once takes", "--allowed-mem"]
    options = {"allowed_mem": 300_001_100, "reserved_mem": 300_000_000}
    complain(MemoryLimitError, words, lambda: vczstore.append(store, batch, **options))


@pytest.mark.parametrize(
    ("n_alleles", "words"), [(30, ["--allowed-mem"]), (70, ["a chunk of call_PL has 1000 x 1000 x 2485"])]
)
@pytest.mark.slow
def test_many_alleles_in_wide_chunks_are_refused(tmp_path: Path, n_alleles: int, words: list[str]) -> None:
    """One sample in chunks of a thousand: each is padded, with as many values per call as the longest record has."""
    alts = ",".join("A" + "C" * i for i in range(1, n_alleles))
    values = ",".join("1" * (n_alleles * (n_alleles + 1) // 2))
    header = HEADER + '##FORMAT=<ID=PL,Number=G,Type=Integer,Description="">\n'
    row = f"chr1\t90\t.\tA\t{alts}\t.\t.\t.\tGT:PL\t5/9:{values}\n"
    more = "".join(f"chr1\t{i}\t.\tA\tC\t.\t.\t.\tGT:PL\t0/1:0,1,2\n" for i in range(100, 1200))
    batch = write(tmp_path / "batch.vcf", text(("s1",), row + more, header))
    words = ["^init: ", *words, "--samples-chunk"]
    complain(MemoryLimitError, words, lambda: vczstore.init(tmp_path / "store", batch, allowed_mem="700MB"))
    assert not (tmp_path / "store").exists()
    vczstore.create(tmp_path / "narrow", batch, variants_chunk=100, samples_chunk=10)
    vczstore.append(tmp_path / "narrow", batch, harmonise=True)
    assert len(cohort.read_vcz(tmp_path / "narrow")["variant_position"]) == 1101


@pytest.mark.slow
def test_sample_ids_are_checked_before_conversion(tmp_path: Path, store: Path) -> None:
    """The records of the VCFs are unsorted, so converting one would raise another error."""
    unsorted = RECORDS.splitlines(keepends=True)[1] + RECORDS
    old, new = (write(tmp_path / f"{s[0]}.vcf", text(s, unsorted)) for s in (OLD, NEW))
    again = write(tmp_path / "again.vcf.gz", text(("C1", NEW[1]), unsorted))
    vcz = tmp_path / "batch.vcz"
    vcf.to_vcz(vcf.write_vcf(tmp_path / "batch.vcf.gz", text()), vcz, 3, 2, 2)
    shared = f"append: 1 of the samples of {again} is in {{}} already: B2; remove them there, or leave them out"
    assert fails("append", store, new, again) == shared.format(new)
    assert fails("append", store, vcz, again) == shared.format(vcz)
    assert fails("append", store, new, old).startswith(f"append: all 2 samples of {old} are in {store} already")
    assert "B1, B2" in fails("update", store, new)
    job = tmp_path / "job.yaml"
    for step, words in (("append", "all 2 samples of .* already"), ("update", "unsorted|sort it")):
        job.write_text(f"store: {store}\nsteps:\n  - {step}: {old}\n")
        complain(VczstoreError, [words], lambda: run_job(job))
    vczstore.remove(store, OLD[:1])
    assert "1 of the incoming samples was removed" in fails("append", store, old)
    assert "sort it with bcftools sort" in fails("append", "--drop-returning", store, old)


@pytest.mark.parametrize("package", ["bio2zarr", "cyvcf2", "pysam"])
def test_without_the_extra(tmp_path: Path, store: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = write(tmp_path / "batch.vcf", text())
    monkeypatch.setitem(sys.modules, package, None)
    words = [f"append: {batch} is a VCF, and {package} is not installed", r"pip install '.\[vcf\]'"]
    complain(MissingDependencyError, words, lambda: vczstore.append(store, batch))


def test_remote_workers_are_refused(tmp_path: Path, store: Path) -> None:
    batch = write(tmp_path / "batch.vcf", text())
    line = fails("create", tmp_path / "new.vcz", batch, "--executor", "modal", status=2)
    assert "is a VCF, which is converted on this machine" in line
    assert "vcf2zarr" in line


# ---- temporary files ------------------------------------------------------------------------


@pytest.mark.slow
def test_the_work_dir(tmp_path: Path, store: Path) -> None:
    """Conversions are written there and deleted afterwards; the folder itself stays."""
    batch, seen = write(tmp_path / "batch.vcf", text()), list[str]()
    work = tmp_path / "work"
    vczstore.append(store, batch, work_dir=str(work), progress=lambda *_: seen.extend(p.name for p in work.iterdir()))
    assert {name.rpartition("-")[0] for name in seen} == {"vczstore-vcf"}
    assert list(work.iterdir()) == []


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to(tmp_path: Path, store: Path) -> None:
    """The second error is that of a full disk, except for the system's message."""
    batch, work, file = write(tmp_path / "batch.vcf", text()), tmp_path / "work", tmp_path / "file"
    file.touch()
    line = fails("append", store, batch, "--work-dir", file / "work")
    assert line.startswith(
        f"append: {file / 'work'}: there can be no folder for VCFs that are converted (Not a directory)"
    )

    before = cohort.digest(store)
    command = [sys.executable, "-m", "vczstore", "append", store, batch, "--work-dir", work]
    limited = ["bash", "-c", 'trap "" XFSZ; ulimit -f 1; exec "$@"', "bash", *command]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # bytecode would be truncated, too
    done = subprocess.run(limited, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    why = f"append: {batch} cannot be converted in {work} (File too large); name another folder with --work-dir"
    assert done.stderr == f"Error: {why}\n"
    assert list(work.iterdir()) == []
    assert cohort.digest(store) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_no_files(tmp_path: Path, temporary: Path, store: Path, number: signal.Signals) -> None:
    records = "".join(f"chr1\t{p}\t.\tA\tC\t.\t.\t.\tGT:DP\t0/1:{p % 90}\t1|1:1\n" for p in range(1, 200_000))
    batch = write(tmp_path / "batch.vcf", text(records=records))
    before = cohort.digest(store)
    command = [sys.executable, "-m", "vczstore", "append", str(store), str(batch), "--harmonise"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "TMPDIR": str(temporary)}, text=True)
    while not list(temporary.rglob("wip")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert stderr == "append: interrupted; nothing was written\n"
    assert cohort.digest(store) == before
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_a_plan_keeps_its_conversions_until_the_process_ends(tmp_path: Path, temporary: Path, store: Path) -> None:
    batch = write(tmp_path / "batch.vcf", text())
    code = (
        "import sys, vczstore, pathlib; made = vczstore.plan('append', *sys.argv[1:3]);"
        "print(len(list(pathlib.Path(sys.argv[3]).iterdir())), vczstore.run(made).committed)"
    )
    command = [sys.executable, "-c", code, store, batch, temporary]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1 True\n"), done.stderr
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_a_vcf_at_a_web_address(tmp_path: Path, store: Path) -> None:
    write(tmp_path / "batch.vcf.gz", text())
    handler = partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            assert vczstore.append(store, f"{url}/batch.vcf.gz").counts["samples added"] == 2
            words = [f"append: {url}/gone.bcf: no such object"]
            complain(NotAStoreError, words, lambda: vczstore.append(store, f"{url}/gone.bcf"))
        finally:
            server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without logging."""

    def log_message(self, *_: object) -> None:
        pass


# ---- globs of jobs --------------------------------------------------------------------------


def test_braces() -> None:
    assert alternatives("a.vcz") == ["a.vcz"]
    assert sorted(alternatives("in/{a,b{1,2}}.{vcz,bcf}")) == [
        f"in/{name}.{end}" for name in ("a", "b1", "b2") for end in ("bcf", "vcz")
    ]
    assert alternatives("{x}{}a[{]1,2}") == ["{x}{}a[{]1,2}"]
