"""Symbolic alleles: their length is part of their identity; compared with bcftools."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pysam.bcftools
import pytest
import zarr

import vczstore
from tests.support import cohort, vcf
from tests.support.converted import make_pair
from tests.support.covering import in_turn
from tests.support.refusals import complain
from tests.support.sites import calls_of
from vczstore.errors import IncompatibleError


def text(sample: str, *records: str, contigs: Sequence[str] = ("chr1",), number: str = "1") -> str:
    """
    Return a VCF; a record is POS REF ALT INFO and a genotype, preceded by its contig if that is not the first.

    `number` is the Number of SVLEN.
    """
    lines = ["##fileformat=VCFv4.2", '##FILTER=<ID=PASS,Description="">']
    lines += [f"##contig=<ID={contig},length=248956422>" for contig in contigs]
    numbers = {"END": "1", "SVLEN": number}
    lines += [f'##INFO=<ID={name},Number={n},Type=Integer,Description="">' for name, n in numbers.items()]
    lines += ['##FORMAT=<ID=GT,Number=1,Type=String,Description="">']
    lines += ["\t".join([*["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT"], sample])]
    for record in records:
        *contig, position, ref, alt, info, genotype = record.split()
        lines.append("\t".join([*(contig or contigs[:1]), position, ".", ref, alt, ".", "PASS", info, "GT", genotype]))
    return "\n".join(lines) + "\n"


REST = "900000 A C . 0/1"
DIFFERENT = {
    "END": ("100 N <DEL> END=600 0/1", "100 N <DEL> END=99100 1/1"),
    "SVLEN": ("100 N <INS> SVLEN=300;END=100 0/1", "100 N <INS> SVLEN=6000;END=100 1/1"),
    "SVLEN alone": ("100 N <DEL> SVLEN=-500 0/1", "100 N <DEL> SVLEN=-900 1/1"),
    "a subtype": ("100 N <DUP:TANDEM> END=600 0/1", "100 N <DUP:TANDEM> END=700 1/1"),
    "beside another allele": ("100 A C,<DEL> END=600 0/2", "100 A C,<DEL> END=700 1/2"),
    "beside an unseen allele": ("100 A <DEL>,<NON_REF> END=600 0/1", "100 A <DEL>,<NON_REF> END=700 1/1"),
}
SAME = {
    "END": ("100 N <DEL> END=600 0/1", "100 N <DEL> END=600 1/1"),
    "the sign of SVLEN": ("100 N <DEL> SVLEN=-500 0/1", "100 N <DEL> SVLEN=500 1/1"),
    "END and SVLEN": ("100 N <DEL> END=600 0/1", "100 N <DEL> SVLEN=-500 1/1"),
    "not seen": ("100 N <NON_REF> END=100 0/0", "100 N <NON_REF> . 0/0"),
    "not seen either": ("100 N <*> END=100 0/0", "100 N <*> . 0/0"),
    "overlapped": ("100 A * END=600 0/1", "100 A * END=700 1/1"),
    "a breakend": ("100 N N[chr1:5000[ END=600 0/1", "100 N N[chr1:5000[ END=700 1/1"),
    "some alleles of another": ("100 A <CN0>,<CN2> END=600 0/2", "100 A <CN0> END=600 0/1"),
    "REF alone": ("100 A <DEL> END=600 0/1", "100 A . . 0/0"),
    "an SNP beside it": ("100 A C,<DEL> END=600 0/1", "100 A C . 0/1"),
}


def view(store: Path, kind: str = "format3") -> list[Any]:
    return calls_of(vcf.vcztools_view(store, icechunk=kind == "icechunk"))


@pytest.mark.parametrize(
    ("case", "kind"), [*((c, "format3") for c in DIFFERENT), ("END", "format2"), ("END", "icechunk")]
)
@pytest.mark.slow
def test_other_lengths_are_other_variants(tmp_path: Path, case: str, kind: str) -> None:
    a, b = (text(name, record, REST) for name, record in zip(("A1", "B1"), DIFFERENT[case], strict=True))
    store, batch = make_pair(tmp_path, a, b, kind)
    before = cohort.digest(store)

    def refused(words: tuple[str, ...], **options: Any) -> None:
        complain(IncompatibleError, words, lambda: vczstore.append(store, batch, **options))
        assert cohort.digest(store) == before

    alleles = DIFFERENT[case][0].split()[2]
    refused((f"^append: variant 0 of .*new.vcz is chr1:100 ./{alleles} of (length|SVLEN) [0-9]+, in the store it is",))
    for extra in ({}, {"allow_new_alleles": True}):
        refused(("^append: 1 of the 2 variants of .*new.vcz match none", "of (length|SVLEN)"), harmonise=True, **extra)


@pytest.mark.parametrize("order", ["AB", "BA"])
@pytest.mark.slow
def test_create_has_the_records_of_bcftools_merge(tmp_path: Path, order: str) -> None:
    """bcftools compares only END; here SVLEN, from which END follows, is compared as well. Each case has a contig."""
    cases = {
        f"chr{i}": records for i, records in enumerate([(REST, REST), *SAME.values(), *DIFFERENT.values()], start=1)
    }
    for i, name in enumerate("AB"):
        records = [f"{contig} {pair[i].replace('chr1:', f'{contig}:')}" for contig, pair in cases.items()]
        vcf.write_vcf(tmp_path / f"{name}.vcf.gz", text(f"{name}1", *records, contigs=list(cases)))
        vcf.to_vcz(tmp_path / f"{name}.vcf.gz", tmp_path / f"{name}.vcz", 3, 2, 2)
    sources = [tmp_path / f"{name}.vcz" for name in order]
    vczstore.create(tmp_path / "store.vcz", *sources)
    vczstore.append(tmp_path / "store.vcz", *sources, harmonise=True)
    vcfs = [str(path.with_suffix(".vcf.gz")) for path in sources]
    shown, merged = view(tmp_path / "store.vcz"), calls_of(pysam.bcftools.merge("--no-version", "-m", "none", *vcfs))
    for number, (contig, records) in enumerate(cases.items()):
        ours, theirs = (
            sorted((r for r in calls if r[0].startswith(f"{contig}\t")), key=str) for calls in (shown, merged)
        )
        assert len(ours) == (1 if number <= len(SAME) else 2), records
        if "SVLEN" not in "".join(records):
            assert ours == theirs, records


@pytest.mark.slow
def test_a_symbolic_allele_keeps_its_length_in_a_created_store(tmp_path: Path) -> None:
    sources = []
    for name, records in (("A1", DIFFERENT["END"][:1]), ("B1", DIFFERENT["END"][1:]), ("C1", DIFFERENT["SVLEN"][:1])):
        vcf.write_vcf(tmp_path / f"{name}.vcf.gz", text(name, *records, REST))
        sources.append(vcf.to_vcz(tmp_path / f"{name}.vcf.gz", tmp_path / f"{name}.vcz", 3, 2, 2))
    vczstore.create(tmp_path / "store.vcz", *sources)
    info = [line.split("\t")[7] for line in vcf.records(vcf.vcztools_view(tmp_path / "store.vcz"))[1:]]
    assert sorted(info) == [".", "END=100;SVLEN=300", "END=600", "END=99100"]


@pytest.mark.slow
def test_a_record_without_alts_keeps_its_end_in_a_created_store(tmp_path: Path) -> None:
    """Alongside a deletion from another source, and in agreement with variant_length."""
    sources = []
    for name, records in (("A1", ["100 A . END=199 0/0"]), ("B1", ["500 A <DEL> END=600 0/1"])):
        vcf.write_vcf(tmp_path / f"{name}.vcf.gz", text(name, *records, REST))
        sources.append(vcf.to_vcz(tmp_path / f"{name}.vcf.gz", tmp_path / f"{name}.vcz", 3, 2, 2))
    vczstore.create(tmp_path / "store.vcz", *sources)
    info = [line.split("\t")[7] for line in vcf.records(vcf.vcztools_view(tmp_path / "store.vcz"))[1:]]
    assert info == ["END=199", "END=600", "."]
    assert cohort.read_vcz(tmp_path / "store.vcz")["variant_length"].tolist() == [100, 101, 1]


@pytest.mark.parametrize(("order", "kind"), [("ab", "format2"), ("ba", "icechunk")])
@pytest.mark.slow
def test_a_symbolic_allele_is_not_added_to_a_record_of_bases(tmp_path: Path, order: str, kind: str) -> None:
    records = ["100 A C . 0/1", "100 A <DEL> END=600 0/1"]
    a, b = (text(f"{name.upper()}1", records["ab".index(name)], REST) for name in order)
    store, batch = make_pair(tmp_path, a, b, kind)
    complain(
        IncompatibleError,
        ("^append: 1 of the 2 variants", "create"),
        lambda: vczstore.append(store, batch, harmonise=True, allow_new_alleles=True),
    )


@pytest.mark.parametrize(
    ("side", "gone"),
    [("store", "variant_length"), ("batch", "variant_END"), ("store", "all"), ("batch", "all"), ("both", "all")],
)
@pytest.mark.slow
def test_lengths_that_one_side_lacks(tmp_path: Path, side: str, gone: str) -> None:
    """Either variant_length or variant_END suffices; if only one side has a length, nothing is guessed."""
    for name, records in (("same", SAME["END"]), ("different", DIFFERENT["END"])):
        (tmp_path / name).mkdir()
        a, b = (text(sample, record, REST) for sample, record in zip(("A1", "B1"), records, strict=True))
        store, batch = make_pair(tmp_path / name, a, b)
        for place in [store] * (side != "batch") + [batch] * (side != "store"):
            for array in ("variant_length", "variant_END"):
                if gone in (array, "all"):
                    shutil.rmtree(place / array)
            assert zarr.open_group(place)["variant_allele"][0, 1] == "<DEL>"
        lacks_lengths = gone == "all" and side == "both"
        is_accepted = lacks_lengths or (name == "same" and gone != "all")
        for options in ({}, {"harmonise": True}):
            copy = shutil.copytree(store, tmp_path / name / f"copy{len(options)}.vcz")
            append = functools.partial(vczstore.append, copy, batch, **options)
            if is_accepted:
                append()
                assert len(view(copy)) == 2
            else:
                complain(IncompatibleError, ("^append: .*<DEL> of length",), append)


def retyped(store: Path, dtype: str, *, axis: bool = False) -> Path:
    """Convert END and SVLEN to `dtype` (NaN if missing), perhaps with an axis of values, and delete variant_length."""
    for name in ("variant_END", "variant_SVLEN"):
        if not (store / name).exists():
            continue
        values = zarr.open_array(store / name)[:]
        shutil.rmtree(store / name)
        converted = np.where(values == -1, np.nan, values).astype(dtype) if dtype[0] == "f" else values.astype(dtype)
        converted = converted[:, np.newaxis] if axis else converted
        names = ("variants", "FORMAT_X_dim")[: converted.ndim]
        zarr.create_array(store / name, data=converted, chunks=(2, 1)[: converted.ndim], dimension_names=names)
    for lengths in store.glob("variant_length"):
        shutil.rmtree(lengths)
    return store


@pytest.mark.filterwarnings("error")
@in_turn(case=("END", "SVLEN", "SVLEN alone"), dtype=("f4", "f8", "i8"), axis=(False, True))
@pytest.mark.slow
def test_lengths_of_other_dtypes(tmp_path: Path, case: str, dtype: str, axis: bool) -> None:
    for records, is_same in ((DIFFERENT[case], False), ((DIFFERENT[case][0],) * 2, True)):
        folder = tmp_path / str(is_same)
        folder.mkdir()
        store, batch = make_pair(
            folder, *(text(s, record, REST) for s, record in zip(("A1", "B1"), records, strict=True))
        )
        shutil.rmtree(store / "variant_length")
        retyped(batch, dtype, axis=axis)
        if is_same:
            assert vczstore.append(store, batch, dry_run=True).counts["samples added"] == 1
        else:
            complain(IncompatibleError, ("of (length|SVLEN) [0-9]+",), functools.partial(vczstore.append, store, batch))


@pytest.mark.parametrize("dtype", ["f8", "i8"])
@pytest.mark.slow
def test_an_end_beyond_int32_does_not_wrap_around(tmp_path: Path, dtype: str) -> None:
    """On a contig longer than 2^31, or in a record that claims such an END."""
    (tmp_path / "a").mkdir()
    end = 3 * 10**9
    source = make_pair(tmp_path / "a", *(text(s, "100 N <DEL> END=600 0/1", REST) for s in ("A1", "B1")))[0]
    shutil.rmtree(source / "variant_length")
    shutil.rmtree(source / "variant_END")
    missing = np.nan if dtype == "f8" else -1
    zarr.create_array(source / "variant_END", data=np.array([end, missing], dtype), dimension_names=("variants",))
    vczstore.create(tmp_path / "store.vcz", source)
    contents = cohort.read_vcz(tmp_path / "store.vcz")
    assert contents["variant_END"].tolist() == [end, -1]
    assert contents["variant_length"].tolist() == [end - 99, 1]
    assert contents["region_index"][0].tolist()[1:4] == [0, 100, 900000]
    assert contents["region_index"][0, 4] == 2**31 - 1  # no query reaches further
    assert vczstore.verify(tmp_path / "store.vcz").errors == []


@pytest.mark.slow
def test_a_normalised_batch_is_appended_as_the_batch_is(tmp_path: Path) -> None:
    """END and SVLEN, which identify symbolic ALTs, are copied with the store's other values of variants."""
    insertion = "300 N <INS> SVLEN=300;END=300 0/1"
    for name, deletion in (("A1", "100 N <DEL> END=600 0/1"), ("B1", "100 N <DEL> END=600 1/1")):
        vcf.write_vcf(tmp_path / f"{name}.vcf.gz", text(name, deletion, insertion, REST))
        vcf.to_vcz(tmp_path / f"{name}.vcf.gz", tmp_path / f"{name}.vcz", 3, 2, 2)
    for kept in ("variant_length", "variant_END"):
        store, out = shutil.copytree(tmp_path / "A1.vcz", tmp_path / kept), tmp_path / f"{kept}.normalised"
        if kept != "variant_length":
            shutil.rmtree(store / "variant_length")
        direct = shutil.copytree(store, tmp_path / f"{kept}.direct")
        vczstore.normalise(store, tmp_path / "B1.vcz", out)
        vczstore.append(store, out)
        vczstore.append(direct, tmp_path / "B1.vcz", harmonise=True)
        assert view(store) == view(direct)


@in_turn(kind=("format2", "format3", "icechunk"), start=("init", "create"))
@pytest.mark.slow
def test_an_inserted_symbolic_allele_keeps_its_length(tmp_path: Path, kind: str, start: str) -> None:
    """It is not joined with a variant of the store without one, whose length would stay that of an SNP."""
    records = {"A1": "100 C G . 0/1", "B1": "100 C G,<DEL> END=600;SVLEN=.,-500 1/2", "C1": "100 C . . 0/0"}
    for name, record in records.items():
        vcf.write_vcf(tmp_path / f"{name}.vcf.gz", text(name, record, REST))
        vcf.to_vcz(tmp_path / f"{name}.vcf.gz", tmp_path / f"{name}.vcz", 2 if kind == "format2" else 3, 2, 2)
    for first in ("A1", "C1"):
        store, backend = tmp_path / f"store-{first}", "icechunk" if kind == "icechunk" else None
        if start == "init":
            vczstore.init(store, tmp_path / f"{first}.vcz", backend_storage=backend)
        else:
            vczstore.create(store, tmp_path / f"{first}.vcz", backend_storage=backend)
            vczstore.append(store, tmp_path / f"{first}.vcz", harmonise=True)
        vczstore.append(store, tmp_path / "B1.vcz", harmonise=True, new_variants="insert")
        lines = [line.split("\t") for line in vcf.records(vcf.vcztools_view(store, icechunk=kind == "icechunk"))[1:]]
        shown = {fields[4]: (fields[7], fields[9], fields[10]) for fields in lines if fields[1] == "100"}
        assert len(shown) == 2
        info, of_first, of_second = shown["G,<DEL>"]
        assert "END=600" in info
        assert (of_first.split(":")[0], of_second.split(":")[0]) == ("./.", "1/2")


# ---- SVLEN of several ALTs -------------------------------------------------------------------


SEVERAL = {
    "A1": (
        "100 A <DEL>,<DUP> SVLEN=500,300 1/2",
        "200 A <DEL>,<DEL> SVLEN=500,300 1/1",
        "300 A <INS>,<DEL> SVLEN=50,30 1/2",
        "400 A C,<DEL> SVLEN=.,70 1/2",
        "500 A <DEL>,<DUP> END=600;SVLEN=100,90 0/1",
        "600 A <DEL>,<DUP> SVLEN=500,300 0/1",
    ),
    "B1": (
        "100 A <DEL>,<DUP> SVLEN=500,200 0/2",
        "200 A <DEL>,<DEL> SVLEN=300,500 1/1",
        "300 A <DEL>,<INS> SVLEN=30,50 1/1",
        "400 A C,<DEL> SVLEN=.,70 0/2",
        "500 A <DUP>,<DEL> END=600;SVLEN=90,100 0/1",
        "600 A <DEL> SVLEN=500 1/1",
    ),
}
"""Variants that differ in the length of one ALT, or have ALTs in another order; SVLEN has Number=A."""


def split_calls(vcf_path: Path) -> dict[str, set[tuple[str, ...]]]:
    """By sample, the position, ALT, END, SVLEN and count of each called ALT, one ALT in a record, as by bcftools."""
    split = pysam.bcftools.norm("--no-version", "-m-any", str(vcf_path))
    (vcf_path.parent / "split.vcf").write_text(split)
    result: dict[str, set[tuple[str, ...]]] = {}
    with pysam.VariantFile(str(vcf_path.parent / "split.vcf")) as records:
        for record in records:
            size = record.info.get("SVLEN", (None,))[0]
            for sample, call in record.samples.items():
                if n := [*call["GT"]].count(1):
                    key = (str(record.pos), str((record.alts or ("",))[0]), str(record.stop), str(size), str(n))
                    result.setdefault(sample, set()).add(key)
    return result


@pytest.mark.parametrize("kind", ["format2", "format3", "icechunk"])
@pytest.mark.parametrize("start", ["init", "create"])
@pytest.mark.slow
def test_each_alt_has_its_own_length(tmp_path: Path, kind: str, start: str) -> None:
    """Calls have the lengths that they have in the sources, where bcftools splits the records of both."""
    expected: dict[str, set[tuple[str, ...]]] = {}
    sources = []
    for name, records in SEVERAL.items():
        source = vcf.write_vcf(tmp_path / f"{name}.vcf.gz", text(name, *records, number="A"))
        expected |= split_calls(source)
        sources.append(vcf.to_vcz(source, tmp_path / f"{name}.vcz", 2 if kind == "format2" else 3, 2, 2))
    store, backend = tmp_path / "store", "icechunk" if kind == "icechunk" else None
    if start == "init":
        vczstore.init(store, sources[0], backend_storage=backend)
        vczstore.append(store, sources[1], harmonise=True, new_variants="insert")
    else:
        vczstore.create(store, *sources, backend_storage=backend)
        vczstore.append(store, *sources, harmonise=True)
    export = tmp_path / "export.vcf"
    vczstore.export(store, export)
    assert split_calls(export) == expected
    records_of = [line.split("\t")[1:5:3] for line in vcf.records(export.read_text())[1:]]
    assert sorted(records_of) == [
        *[["100", "<DEL>,<DUP>"]] * 2,
        *[["200", "<DEL>,<DEL>"]] * 2,
        ["300", "<INS>,<DEL>"],
        ["400", "C,<DEL>"],
        ["500", "<DEL>,<DUP>"],
        ["600", "<DEL>"],
        ["600", "<DEL>,<DUP>"],
    ]
    assert vczstore.verify(store).ok


@pytest.mark.slow
def test_other_lengths_of_one_alt_are_refused(tmp_path: Path) -> None:
    for row in (0, 1):
        (tmp_path / str(row)).mkdir()
        a, b = (text(name, records[row], number="A") for name, records in SEVERAL.items())
        store, batch = make_pair(tmp_path / str(row), a, b)
        before = cohort.digest(store)
        lengths = ("500,200", "500,300") if row == 0 else ("300,500", "500,300")
        words = ("variant 0 of .* of SVLEN {}, in the store it is .* of SVLEN {}".format(*lengths),)
        complain(IncompatibleError, words, lambda store=store, batch=batch: vczstore.append(store, batch))
        for extra in ({}, {"allow_new_alleles": True}):
            append = functools.partial(vczstore.append, store, batch, harmonise=True, **extra)
            complain(IncompatibleError, ("^append: 1 of the 1 variants .* match none", f"SVLEN {lengths[0]}"), append)
        assert cohort.digest(store) == before


@pytest.mark.slow
def test_a_normalised_batch_keeps_the_length_of_each_alt(tmp_path: Path) -> None:
    rows = [2, 3, 4]  # the others do not match
    a, b = (text(name, *(records[row] for row in rows), number="A") for name, records in SEVERAL.items())
    store, batch = make_pair(tmp_path, a, b)
    vczstore.normalise(store, batch, tmp_path / "out.vcz")
    ours, theirs = (cohort.read_vcz(path)["variant_SVLEN"].tolist() for path in (store, tmp_path / "out.vcz"))
    assert ours == theirs == [[50, 30], [-1, 70], [100, 90]]
    vczstore.append(store, tmp_path / "out.vcz")
