"""Insertion of variants that a store lacks: laws, a comparison with bcftools merge, and what is rewritten."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pysam.bcftools
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vczstore
from plans.variants import find_insertion
from tests.support import cohort, gvcf, sites, vcf
from tests.support.command_line import fails, run
from tests.support.covering import in_turn
from tests.support.killed import killed
from tests.support.refusals import complain
from tests.support.sites import POOL, Site
from tests.support.small_stores import unchanged
from tests.support.ways import Way
from vczstore.errors import IncompatibleError, OptionError, UnsuitableError
from vczstore.vcz.model import Vcz

INSERT: dict[str, Any] = {"harmonise": True, "new_variants": "insert"}
KEEP = {**INSERT, "on_ref_mismatch": "keep"}
"""Options for the pool of sites, which has several REFs at one position."""
KINDS = ("format2", "format3", "icechunk")
BY_ALLELE = {"call_AD": 0, "call_RF": 0, "call_EC": 1}
"""Fields with one value per allele, and the first allele that has one."""

dimensions = cohort.more_arrays(sites.DIMENSIONS)


# ---- laws -----------------------------------------------------------------------------------


def calls(store: Path, kind: str) -> Counter[Any]:
    """Count the calls of each sample at each record; the order of records, ALTs and samples does not matter."""
    arrays = Way(kind, "cubed").read(store)
    counts: Counter[Any] = Counter()
    for i, site in enumerate(sites.sites_of(arrays)):
        key = (site.contig, site.position, site.alleles[0], frozenset(site.alleles[1:]))
        for j, sample in enumerate(arrays["sample_id"]):
            counts[key, sample, _call(arrays, site, i, j)] += 1
    return counts


def _call(arrays: Mapping[str, np.ndarray], site: Site, i: int, j: int) -> tuple[Any, ...]:
    genotype = tuple(site.alleles[a] if a >= 0 else int(a) for a in arrays["call_genotype"][i, j])
    values: list[Any] = [genotype, bool(arrays["call_genotype_phased"][i, j])]
    for name, first in BY_ALLELE.items():
        vector = arrays[name][i, j]
        is_none = np.isnan(vector).all() if vector.dtype.kind == "f" else (vector < 0).all()
        by_allele = {} if is_none else dict(zip(site.alleles[first:], map(repr, vector), strict=False))
        values.append(frozenset(by_allele.items()))
    return (*values, int(arrays["call_DP"][i, j]), str(arrays["call_FT"][i, j]))


def alts_of(counts: Counter[Any]) -> Counter[Any]:
    """Count the ALTs that each sample carries, over all records."""
    return Counter(
        ((contig, position, ref, allele, sample), n)
        for ((contig, position, ref, _), sample, (genotype, *_)), n in counts.items()
        for allele in genotype
        if isinstance(allele, str) and allele != ref
    )


def write(folder: Path, number: int, batch_sites: Sequence[Site], chunk: int) -> Path:
    """Write a batch of two samples with these variants."""
    path = folder / f"{number}.vcz"
    arrays = sites.make(batch_sites, cohort.ids(10 * number, 2), number)
    cohort.write_vcz(path, arrays, variants_chunk=chunk, samples_chunk=2 + number % 2)
    return path


def created(folder: Path, name: str, kind: str, chunk: int, *sources: Path) -> Path:
    """Create a store over the variants of the sources, and append their samples."""
    store = folder / name
    backend = "icechunk" if kind == "icechunk" else None
    vczstore.create(store, *sources, variants_chunk=chunk, samples_chunk=3, backend_storage=backend)
    vczstore.append(store, *sources, harmonise=True)
    return store


def variants(*, ref_alone: bool) -> st.SearchStrategy[list[Site]]:
    pool = [site for site in POOL if ref_alone or len(site.alleles) > 1]
    return st.lists(st.sampled_from(pool), min_size=1, max_size=6, unique=True)


def batches(*, ref_alone: bool) -> st.SearchStrategy[tuple[list[Site], ...]]:
    return st.tuples(*[variants(ref_alone=ref_alone)] * 3)


@given(batches=batches(ref_alone=False), chunk=st.integers(1, 4), kind=st.sampled_from(["format3", "icechunk"]))
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.slow
def test_insertion_equals_creation_from_all_sources(batches: tuple[list[Site], ...], chunk: int, kind: str) -> None:
    """In any order, and all at once; only the order of ALTs may differ."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [write(folder, i, batch, chunk) for i, batch in enumerate(batches)]
        model = calls(created(folder, "every", kind, chunk, *paths), kind)
        for number, steps in enumerate([paths[1:], [paths[2], paths[1]], [tuple(paths[1:])]]):
            store = created(folder, str(number), kind, chunk, paths[0])
            for step in steps:
                vczstore.append(store, *(step if isinstance(step, tuple) else [step]), **KEEP)
            assert calls(store, kind) == model


@given(batches=batches(ref_alone=False), chunk=st.integers(1, 4), kind=st.sampled_from(["format3", "icechunk"]))
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.slow
def test_update_equals_remove_and_append(batches: tuple[list[Site], ...], chunk: int, kind: str) -> None:
    """Except for the order of samples and ALTs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = [write(folder, i, batch, chunk) for i, batch in enumerate(batches[:2])]
        again = folder / "again.vcz"
        arrays = sites.make(batches[2], cohort.ids(10, 2)[::-1], 5)
        cohort.write_vcz(again, arrays, variants_chunk=chunk, samples_chunk=1)
        store, model = (created(folder, name, kind, chunk, *before) for name in ("store", "model"))
        vczstore.update(store, again, **KEEP)
        vczstore.remove(model, cohort.ids(10, 2))
        vczstore.append(model, again, **KEEP, allow_returning=True)
        expected = Counter({key: n for key, n in calls(model, kind).items() if key[1]})
        assert calls(store, kind) == expected
        assert vczstore.verify(store).ok


@given(batches=batches(ref_alone=True), chunk=st.integers(1, 4))
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.slow
def test_records_of_ref_alone_lose_no_alt(batches: tuple[list[Site], ...], chunk: int) -> None:
    """Which record a REF-only record is joined with depends on the records present, as in bcftools; no ALT is lost."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [write(folder, i, batch, chunk) for i, batch in enumerate(batches)]
        model = calls(created(folder, "every", "format3", chunk, *paths), "format3")
        store = created(folder, "one", "format3", chunk, paths[0])
        for path in paths[1:]:
            vczstore.append(store, path, **KEEP)
        assert alts_of(calls(store, "format3")) == alts_of(model)


# ---- bcftools -------------------------------------------------------------------------------

OLD = [Site("chr1", 10, ("A", "C")), Site("chr1", 20, ("G", "T")), Site("chr1", 40, ("T", "TA")), Site("chr2", 5, "CG")]
NEW = [
    Site("chr1", 7, ("T", "G", "A")),
    Site("chr1", 10, ("A", "G")),
    Site("chr1", 20, ("G", "A", "T")),
    Site("chr1", 41, ("A", "<DEL>")),
    Site("chr2", 5, ("C", "G")),
    Site("chr2", 900, ("AT", "A")),
]


@pytest.mark.parametrize(("kind", "merge"), [("format2", "none"), ("format3", "both"), ("icechunk", "none")])
@pytest.mark.slow
def test_bcftools_merge(tmp_path: Path, kind: str, merge: str) -> None:
    for name, records, seed in (("old", OLD, 1), ("new", NEW, 2)):
        vcf.write_vcf(tmp_path / f"{name}.vcf.gz", sites.vcf_text(records, cohort.ids(10 * seed, 3), seed))
        vcf.to_vcz(tmp_path / f"{name}.vcf.gz", tmp_path / f"{name}.vcz", 2 if kind == "format2" else 3, 2, 2)
    store = tmp_path / "old.vcz"
    if kind == "icechunk":
        store = tmp_path / "ice.vcz"
        vczstore.copy_store_to_icechunk(tmp_path / "old.vcz", store, impl="zarr")
    vczstore.append(store, tmp_path / "new.vcz", **INSERT, allow_new_alleles=merge == "both")
    model = pysam.bcftools.merge("-m", merge, *(str(tmp_path / f"{name}.vcf.gz") for name in ("old", "new")))
    shown = sites.calls_of(vcf.vcztools_view(store, icechunk=kind == "icechunk"))
    assert sorted(map(_by_allele, shown), key=str) == sorted(map(_by_allele, sites.calls_of(model)), key=str)
    assert vczstore.verify(store).errors == []


def _by_allele(record: tuple[str, dict[str, dict[str, str]]]) -> tuple[Any, ...]:
    """Return a record with alleles named instead of numbered, and PL keyed by the alleles of a genotype."""
    contig, position, ref, alts = record[0].split("\t")
    alleles = [ref, *alts.split(",")]
    pairs = [frozenset({a, b}) for j, b in enumerate(alleles) for a in alleles[: j + 1]]
    keys = {"AD": alleles, "EC": alleles[1:], "PL": pairs}
    samples = {}
    for sample, values in record[1].items():
        named_values: dict[str, Any] = {}
        for field, text in values.items():
            if field == "GT":
                phase = "|" if "|" in text else "/"
                named = [alleles[int(a)] if a.isdigit() else a for a in text.replace("|", "/").split("/")]
                named_values[field] = phase.join(named)
            else:
                named_values[field] = dict(zip(keys.get(field, [field]), text.split(","), strict=True))
        samples[sample] = named_values
    return contig, position, ref, frozenset(alts.split(",")), samples


# ---- other fields of variants ---------------------------------------------------------------

HEAD = """##fileformat=VCFv4.3
##FILTER=<ID=PASS,Description="All filters passed">
{more}##INFO=<ID=DP,Number=1,Type=Integer,Description="">
##INFO=<ID=AF,Number=A,Type=Float,Description="">
##INFO=<ID=RD,Number=R,Type=Integer,Description="">
##INFO=<ID=DB,Number=0,Type=Flag,Description="">
##INFO=<ID=WHO,Number=.,Type=String,Description="">
##FORMAT=<ID=GT,Number=1,Type=String,Description="">
#CHROM POS ID REF ALT QUAL FILTER INFO FORMAT {samples}
"""
FIRST = """1 10 rs1 A C 30 PASS DP=5;AF=0.5;RD=3,4;DB;WHO=a GT 0/1 0|0 1/1
1 20 . G T 10 q10 DP=6;AF=0.25 GT 0/1 1/1 0/0
1 40 . C A,T . . . GT 0/1 2/2 0/0
X 50 . G T . . . GT 0 1 0/1
"""
SECOND = """1 5 rsb A C 33 PASS DP=500;AF=0.5;RD=3,4;DB;WHO=long,words GT 0/1 0|0
1 25 . G T,A,C 10 s50 DP=6;AF=0.25,.,0.5 GT 1/3 0|0
1 40 rsq C T,G 7 PASS DP=8 GT 0/2 0|1
2 7 . CAT C . PASS . GT 0/1 0|0
X 60 . G T . . . GT 0 1/1
"""
THIRD = """1 25 rs25 G C . . DP=7;AF=0.5;RD=8,9 GT 0/1
1 26 . T G 99 PASS WHO=x GT 1/1
"""
INSERTED = [
    "1 5 rsb A C 33 PASS AF=0.5;DB;DP=500;RD=3,4;WHO=long,words",
    "1 10 rs1 A C 30 PASS AF=0.5;DB;DP=5;RD=3,4;WHO=a",
    "1 20 . G T 10 q10 AF=0.25;DP=6",
    "1 25 rs25 G T,A,C 10 s50 AF=0.25,.,0.5;DP=6;RD=8,.,.,9",
    "1 26 . T G 99 PASS WHO=x",
    "1 40 . C A,T,G . . .",
    "X 50 . G T . . .",
    "X 60 . G T . . .",
    "2 7 . CAT C . PASS .",
]


def text(samples: str, records: str, more: str) -> str:
    head, _, columns = HEAD.format(more=more, samples=samples).rpartition("#CHROM")
    return head + "#CHROM" + columns.replace(" ", "\t") + records.replace(" ", "\t")


def make(folder: Path, kind: str) -> tuple[Path, list[Path]]:
    """Return a store, and two batches with variants, filters and a contig that it lacks."""
    contigs = "".join(f"##contig=<ID={name},length=1000>\n" for name in ("1", "X"))
    filters = '##FILTER=<ID=q10,Description="q">\n'
    more = '##contig=<ID=2,length=500>\n##FILTER=<ID=s50,Description="half">\n'
    texts = (
        text("a1 a2 a3", FIRST, contigs + filters),
        text("b1 b2", SECOND, contigs + more),
        text("c1", THIRD, contigs),
    )
    (folder / "a.txt").write_text(texts[0])
    paths = []
    for i, content in enumerate(texts):
        vcf.write_vcf(folder / f"{i}.vcf.gz", content)
        paths.append(vcf.to_vcz(folder / f"{i}.vcf.gz", folder / f"{i}.vcz", 2 if kind == "format2" else 3, 2, 2))
    store = paths[0]
    if kind == "icechunk":
        store = folder / "ice.vcz"
        vczstore.copy_store_to_icechunk(paths[0], store, impl="zarr")
    return store, paths[1:]


def lines(store: Path, kind: str) -> list[list[str]]:
    records = vcf.records(vcf.vcztools_view(store, icechunk=kind == "icechunk"))
    return [line.split("\t") for line in records[1:]]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("format2", {"impl": "zarr"}),
        ("format3", {}),
        ("icechunk", {}),
        ("icechunk", {"executor": "processes", "max_workers": 2}),
    ],
)
@pytest.mark.slow
def test_fields_of_new_variants(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    store, batches = make(tmp_path, kind)
    result = vczstore.append(store, *batches, **INSERT, absent="reference", **options)
    assert result.counts["variants inserted"] == 5
    records = lines(store, kind)
    assert [" ".join(fields[:8]) for fields in records] == INSERTED
    genotypes = {tuple(fields[:2]): fields[9:] for fields in records}
    assert genotypes["1", "25"] == ["0/0", "0/0", "0/0", "1/3", "0|0", "0/3"]
    assert genotypes["1", "40"] == ["0/1", "2/2", "0/0", "0/3", "0|2", "0/0"]
    assert genotypes["X", "60"] == ["0", "0", "0", "0", "1/1", "0"]
    assert genotypes["2", "7"] == ["0/0", "0/0", "0/0", "0/1", "0|0", "0/0"]
    group = zarr.open_group(cohort.icechunk_store(store) if kind == "icechunk" else store, mode="r")
    assert group["contig_id"][...].tolist() == ["1", "X", "2"]
    assert group["contig_length"][...].tolist() == [1000, 1000, 500]
    assert group["filter_description"][...].tolist() == ["All filters passed", "q", "half"]
    index = group["region_index"][...].tolist()
    assert [row[:4] + row[5:] for row in index] == [
        [0, 0, 5, 10, 2],
        [1, 0, 20, 25, 2],
        [2, 0, 26, 40, 2],
        [3, 1, 50, 60, 2],
        [4, 2, 7, 7, 1],
    ]
    assert vczstore.verify(store).errors == []


def test_filter_of_new_variants(tmp_path: Path) -> None:
    """FILTER of a new variant is that of the first source in which it is not ``.``, as for QUAL and INFO."""
    tables = {"first": ["PASS", "q10"], "second": ["PASS", "s50", "q10"], "third": ["s50", "PASS"]}
    texts = {
        "first": [".", ".", ".", "PASS", "q10"],
        "second": [".", "PASS", "s50;q10", "q10", "."],
        "third": ["s50", "s50", "PASS", "s50", "PASS"],
    }
    expected = ["s50", "PASS", "s50;q10", "", "PASS", "q10"]  # the fourth is the store's
    for i, (name, table) in enumerate(tables.items()):
        arrays = sites.make(_sites_with(*range(10, 60, 10)), cohort.ids(10 * i, 1), i)
        arrays["filter_id"] = np.array(table, dtype=object)
        arrays["variant_filter"] = np.array([[f in text.split(";") for f in table] for text in texts[name]])
        cohort.write_vcz(tmp_path / name, arrays)
    old = sites.make(_sites_with(35), cohort.ids(90, 1), 9)
    filters = {"filter_id": np.array(["PASS"], dtype=object), "variant_filter": np.array([[False]])}
    cohort.write_vcz(tmp_path / "store", {**old, **filters})
    vczstore.append(tmp_path / "store", *(tmp_path / name for name in tables), **INSERT, impl="zarr")
    group = zarr.open_group(tmp_path / "store", mode="r")
    names = np.array(group["filter_id"][...], dtype=object)
    given = [{*names[is_set]} for is_set in group["variant_filter"][...]]
    assert given == [{*filter(None, text.split(";"))} for text in expected]


@pytest.mark.slow
def test_batches_together_or_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (one, together), (two, batches) = make(tmp_path / "one", "format3"), make(tmp_path / "two", "format3")
    vczstore.append(one, *together, **INSERT)
    for batch in batches:
        vczstore.append(two, batch, **INSERT)
    # the second batch is matched with the store as the first batch left it
    assert [f[:2] + f[9:] for f in lines(one, "format3")] == [f[:2] + f[9:] for f in lines(two, "format3")]


GVCFS = {
    "a": (
        "1 1001 A <NON_REF> 1099 GT:DP:GQ:AD:PL 0/0:9:50:9,0:0,30,200",
        "1 1100 A C,<NON_REF> . GT:DP:GQ:AD:PL 0/1:20:60:10,10,0:100,0,90,120,110,300",
        "1 1101 T <NON_REF> 1400 GT:DP:GQ:AD:PL 0/0:7:20:7,0:0,20,150",
    ),
    "b": (
        "1 1001 A <NON_REF> 1049 GT:DP:GQ:AD:PL 0/0:5:15:5,0:0,15,90",
        "1 1050 G T,<NON_REF> . GT:DP:GQ:AD:PL 1/1:8:24:0,8,0:80,24,0,90,30,95",
        "1 1051 A <NON_REF> 1200 GT:DP:GQ:AD:PL 0/0:6:18:6,0:0,18,120",
        "1 1201 C A,G,<NON_REF> . GT:DP:GQ:AD:PL 1/2:9:9:1,4,4,0:9,8,7,6,5,4,3,2,1,0",
    ),
}


@pytest.mark.parametrize("kind", ["format3", "icechunk"])
@pytest.mark.slow
def test_reference_blocks_of_appended_samples(tmp_path: Path, kind: str) -> None:
    """As in a store created over all variants, except that the blocks of the earlier samples were not kept."""
    paths = [gvcf.make(tmp_path, name, gvcf.text([name], *records)) for name, records in GVCFS.items()]
    backend = "icechunk" if kind == "icechunk" else None
    complete, store = tmp_path / "every", tmp_path / "one"
    vczstore.create(complete, *paths, gvcf=True)
    vczstore.append(complete, *paths, harmonise=True, gvcf=True)
    vczstore.create(store, paths[0], gvcf=True, backend_storage=backend)
    vczstore.append(store, paths[0], harmonise=True, gvcf=True)
    vczstore.append(store, paths[1], **INSERT, gvcf=True)
    ours, model = lines(store, kind), lines(complete, "format3")
    assert [fields[:5] + fields[8:9] + fields[10:] for fields in ours] == [
        fields[:5] + fields[8:9] + fields[10:] for fields in model
    ]
    assert [fields[9] for fields in ours if fields[1] == "1100"] == [f[9] for f in model if f[1] == "1100"]
    assert {fields[9].split(":")[0] for fields in ours if fields[1] in ("1050", "1201")} == {"./."}


def test_contigs_with_blocks_alone_are_sorted_after_the_contigs_of_the_store(tmp_path: Path) -> None:
    """Sorted among the variants of another contig, such blocks would hide variants from the search for overlaps."""
    store, source = tmp_path / "store", tmp_path / "source"
    for path, contigs in ((store, ["1", "2"]), (source, ["X", "2", "Y", "1"])):
        arrays = sites.make(_sites_with(1), cohort.ids(0, 1), 1)
        cohort.write_vcz(path, {**arrays, "contig_id": np.array(contigs, dtype=object)})
    of_store, of_source = find_insertion._sites(
        [Vcz.read(zarr.storage.LocalStore(path), "store") for path in (store, source)],
        ["1", "2"],
        np.array([1, 0]),
        [True, True],
    )
    assert of_store.contigs.tolist() == [1, 0]
    x, two, y, one = of_source.contigs.tolist()
    assert (two, one) == (0, 1)
    assert len({x, y, 0, 1}) == 4


# ---- rewritten chunks -----------------------------------------------------------------------


def _sites_with(*positions: int) -> list[Site]:
    return [Site("chr1", position, ("A", "C")) for position in positions]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_chunks_before_the_first_new_variant_stay(tmp_path: Path, kind: str) -> None:
    old = sites.make(_sites_with(*range(1, 17)), cohort.ids(0, 6), 1)
    store = Way(kind, "cubed").make(tmp_path, old, variants_chunk=4, samples_chunk=3)
    cohort.write_vcz(tmp_path / "batch", sites.make(_sites_with(2, 11, 99), cohort.ids(10, 3), 2), samples_chunk=3)
    before = {} if kind == "icechunk" else {p: p.stat().st_ino for p in store.glob("call_*/**/*") if p.is_file()}
    result = vczstore.append(store, tmp_path / "batch", **INSERT)
    assert result.counts["variants inserted"] == 1
    assert re.search("3 variants matched, .*, 1 of the matched variants inserted, ", result.summary)
    kept = [p for p, inode in before.items() if p.exists() and p.stat().st_ino == inode]
    n_calls = sum(name.startswith("call_") for name in old)
    if before:
        assert len([p for p in kept if p.name not in (".zarray", ".zattrs", "zarr.json")]) >= n_calls * 4 * 2
    plan_of_old = sum(w.decoded_chunks for w in _rewrites(result.plan) if w.name == "call_DP")
    assert plan_of_old == 2  # of the ten chunks of the old samples, only those of the last row


def _rewrites(plan: Any) -> list[Any]:
    return [write for step in plan.steps for write in step.writes if type(write).__name__ == "WriteView"]


@in_turn(kind=KINDS, old=(0, 4, 6))
@pytest.mark.slow
def test_any_first_column_of_the_samples(tmp_path: Path, kind: str, old: int) -> None:
    ours, theirs = _sites_with(3, 5, 7, 9, 11), _sites_with(1, 5, 6, 9, 12)
    first = sites.make(ours, cohort.ids(0, old), 1)
    second = sites.make(theirs, cohort.ids(10, 4), 2)
    store = Way(kind, "cubed").make(tmp_path, first, variants_chunk=2, samples_chunk=3)
    cohort.write_vcz(tmp_path / "batch", second, variants_chunk=4, samples_chunk=2)
    vczstore.append(store, tmp_path / "batch", **INSERT)
    contents = Way(kind, "cubed").read(store)
    union = sorted({*ours, *theirs})
    assert sites.sites_of(contents) == union
    for name in ("call_genotype", "call_PL", "call_DP", "call_FT"):
        for arrays, present, columns in ((first, ours, slice(0, old)), (second, theirs, slice(old, old + 4))):
            rows = [union.index(site) for site in present]
            np.testing.assert_array_equal(contents[name][rows][:, columns], arrays[name])
            others = np.delete(contents[name][:, columns], rows, axis=0)
            first_values = others if others.ndim == 2 else others[..., 0]
            assert (first_values == ("." if name == "call_FT" else -1)).all()
    assert vczstore.verify(store).errors == []


@pytest.mark.slow
def test_shards_and_strings_of_fixed_width(tmp_path: Path) -> None:
    first = sites.make(_sites_with(3, 5, 7, 9, 11), cohort.ids(0, 4), 1)
    first["variant_allele"] = first["variant_allele"].astype("U1")
    cohort.write_vcz(tmp_path / "store.vcz", first, variants_chunk=1, samples_chunk=1, shards=(2, 2))
    long = [Site("chr1", 4, ("ACGT", "A")), Site("chr1", 5, ("A", "C"))]
    cohort.write_vcz(tmp_path / "batch", sites.make(long, cohort.ids(10, 3), 2))
    vczstore.append(tmp_path / "store.vcz", tmp_path / "batch", **INSERT)
    contents = cohort.read_vcz(tmp_path / "store.vcz")
    assert [site.alleles[0] for site in sites.sites_of(contents)] == ["A", "ACGT", "A", "A", "A", "A"]
    np.testing.assert_array_equal(np.delete(contents["call_PL"][:, :4], 1, axis=0), first["call_PL"])
    assert vczstore.verify(tmp_path / "store.vcz").errors == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_only_alleles_are_added(tmp_path: Path, kind: str) -> None:
    """Every record without a match is joined with a record of the store."""
    store = Way(kind, "cubed").make(tmp_path, sites.make(_sites_with(3, 5), cohort.ids(0, 4), 1))
    cohort.write_vcz(tmp_path / "batch", sites.make([Site("chr1", 5, ("A", "C", "T"))], cohort.ids(10, 2), 2))
    result = vczstore.append(store, tmp_path / "batch", **INSERT)
    assert (result.counts["variants inserted"], result.counts["alleles added"]) == (0, 1)
    merged_sites = sites.sites_of(Way(kind, "cubed").read(store))
    assert merged_sites == [Site("chr1", 3, ("A", "C")), Site("chr1", 5, ("A", "C", "T"))]
    assert vczstore.verify(store).errors == []


@pytest.mark.slow
@in_turn(kind=KINDS, old=(3, 4))
def test_fields_of_samples_that_become_wider(tmp_path: Path, kind: str, old: int) -> None:
    first = sites.make(_sites_with(3, 5), cohort.ids(0, old), 1)
    second = sites.make(_sites_with(3, 4), cohort.ids(10, 3), 2)
    second["sample_sex"] = np.array([1, 300, 2], "i2")
    second["call_DP"] = np.array([[1, 2, 70_000], [3, 4, 5]], "i4")
    store = Way(kind, "cubed").make(tmp_path, first)
    cohort.write_vcz(tmp_path / "batch", second)
    vczstore.append(store, tmp_path / "batch", **INSERT)
    contents = Way(kind, "cubed").read(store)
    assert contents["sample_sex"].tolist() == [*first["sample_sex"].tolist(), 1, 300, 2]
    assert contents["call_DP"][0].tolist() == [*first["call_DP"][0].tolist(), 1, 2, 70_000]
    assert vczstore.verify(store).errors == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_removed_samples_stay_missing(tmp_path: Path, kind: str) -> None:
    store = Way(kind, "cubed").make(tmp_path, sites.make(_sites_with(3, 5), cohort.ids(0, 4), 1))
    cohort.write_vcz(tmp_path / "batch", sites.make(_sites_with(4), cohort.ids(10, 2), 2))
    vczstore.remove(store, cohort.ids(1, 1))
    vczstore.append(store, tmp_path / "batch", **INSERT, absent="reference")
    genotypes = Way(kind, "cubed").read(store)["call_genotype"]
    assert genotypes[1, :4].tolist() == [[0, 0], [-1, -1], [0, 0], [0, 0]]
    assert vczstore.verify(store).errors == []


@pytest.mark.slow
def test_a_long_reference_in_a_store_with_short_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sites.make(_sites_with(3, 5), cohort.ids(0, 4), 1)
    first["variant_length"] = np.array([1, 1], "i1")
    monkeypatch.setitem(cohort.DIMENSIONS, "variant_length", ("variants",))
    cohort.write_vcz(tmp_path / "store", first)
    long = [Site("chr1", 4, ("A" * 300, "A"))]
    cohort.write_vcz(tmp_path / "batch", sites.make(long, cohort.ids(10, 2), 2))
    vczstore.append(tmp_path / "store", tmp_path / "batch", **INSERT)
    assert cohort.read_vcz(tmp_path / "store")["variant_length"].tolist() == [1, 300, 1]


# ---- jobs -----------------------------------------------------------------------------------


def _job(folder: Path, store: Path, *steps: str) -> Path:
    file = folder / "job.yaml"
    file.write_text(f"store: {store}\nsteps:\n" + "".join(f"  - {step}\n" for step in steps))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_job_inserts_once(tmp_path: Path, kind: str) -> None:
    store, batches = make(tmp_path, kind)
    step = f"append: {{source: [{batches[0]}, {batches[1]}], harmonise: {{new-variants: insert}}}}"
    file = _job(tmp_path, store, step)
    first, second = vczstore.run_job(file), vczstore.run_job(file)
    assert (first.status, second.status) == ("done", "nothing to do")
    assert [" ".join(fields[:8]) for fields in lines(store, kind)] == INSERTED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "first"),
    [("format3", "remove: [a1]"), ("format3", "append: {plain}"), ("icechunk", "append: {plain}")],
)
def test_another_step_of_the_same_job(tmp_path: Path, kind: str, first: str) -> None:
    """On Icechunk, data of an earlier step cannot be read while they are rewritten; on plain Zarr they can."""
    store, batches = make(tmp_path, kind)
    plain = tmp_path / "plain.vcz"
    vcf.write_vcf(tmp_path / "plain.vcf.gz", (tmp_path / "a.txt").read_text().replace("a1\ta2\ta3", "p1\tp2\tp3"))
    vcf.to_vcz(tmp_path / "plain.vcf.gz", plain, 3, 2, 2)
    insert = f"append: {{source: {batches[0]}, harmonise: {{new-variants: insert}}}}"
    file = _job(tmp_path, store, first.format(plain=plain), insert)
    before = lines(store, kind)
    if kind == "icechunk":
        words = ("^append: ", "run this step in a job of its own")
        complain(IncompatibleError, words, lambda: vczstore.run_job(file))
        assert lines(store, kind) == before
    else:
        vczstore.run_job(file)
        genotypes = {tuple(fields[:2]): fields[9:] for fields in lines(store, kind)}
        assert genotypes["1", "10"][:2] == (["0|0", "1/1"] if "remove" in first else ["0/1", "0|0"])
        if "append" in first:
            assert genotypes["1", "10"][3:6] == ["0/1", "0|0", "1/1"]


@pytest.mark.slow
def test_a_step_does_not_match_variants_that_an_earlier_step_inserts(tmp_path: Path) -> None:
    store, batches = make(tmp_path, "format3")
    steps = [f"append: {{source: {batch}, harmonise: {{new-variants: insert}}}}" for batch in batches[::-1]]
    before = cohort.digest(store)
    words = ("^append: an earlier step of the job inserts variants", "a job of its own")
    complain(IncompatibleError, words, lambda: vczstore.run_job(_job(tmp_path, store, *steps)))
    assert cohort.digest(store) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["format3", "icechunk"])
def test_samples_are_removed_after_an_insertion(tmp_path: Path, kind: str) -> None:
    store, batches = make(tmp_path, kind)
    insert = f"append: {{source: {batches[0]}, harmonise: {{new-variants: insert}}}}"
    vczstore.run_job(_job(tmp_path, store, insert, "remove: [a2]"))
    genotypes = {tuple(fields[:2]): fields[9:] for fields in lines(store, kind)}
    assert genotypes["1", "10"] == ["0/1", "1/1", "./.", "./."]
    assert genotypes["1", "25"] == ["./.", "./.", "1/3", "0|0"]
    assert vczstore.verify(store).errors == []


@pytest.mark.slow
def test_tasks_are_sent_no_sample_ids(tmp_path: Path) -> None:
    cohort.write_vcz(tmp_path / "store", sites.make(_sites_with(3, 5), cohort.ids(0, 4), 1))
    new_sites = [Site("chr1", 4, ("A", "C")), Site("chr1", 5, ("A", "C", "T"))]
    cohort.write_vcz(tmp_path / "batch", sites.make(new_sites, cohort.ids(10, 2), 2))
    plan = vczstore.plan("append", tmp_path / "store", tmp_path / "batch", **INSERT)
    for write in (write for step in plan.steps for write in step.writes):
        pickled = cloudpickle.dumps(write)
        assert not [sample for sample in cohort.ids(0, 12) if sample.encode() in pickled], write.name


# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_field_in_a_group_of_its_own_is_refused(tmp_path: Path) -> None:
    store, batches = make(tmp_path, "format3")
    group = zarr.open_group(store, mode="a").create_group("annotations")
    group.create_array("score", shape=(4,), dtype="f4", dimension_names=("variants",))
    before = cohort.digest(store)
    words = ("^append: annotations/score of ", "a group of its own", "--new-variants drop")
    complain(IncompatibleError, words, lambda: vczstore.append(store, *batches, **INSERT))
    assert cohort.digest(store) == before


@pytest.mark.slow
def test_normalise_inserts_nothing(tmp_path: Path) -> None:
    store, (batch, _) = make(tmp_path, "format3")
    words = ("^normalise: --new-variants insert is for append",)
    out = tmp_path / "out.vcz"
    complain(OptionError, words, lambda: vczstore.normalise(store, batch, out, new_variants="insert"))
    assert not out.exists()


@pytest.mark.slow
def test_plain_zarr_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    path, batches = make(tmp_path, "format3")
    store = cohort.in_memory(path)
    before = cohort.read_vcz(store)
    words = ("^append: variants would be inserted", "one half of it", "copy-store-to-icechunk")
    complain(UnsuitableError, words, lambda: vczstore.append(store, *batches, **INSERT))
    cohort.assert_same(cohort.read_vcz(store), before)


@pytest.mark.slow
def test_an_update_that_harmonises(tmp_path: Path) -> None:
    """Also in a job, and with variants that are dropped or refused; samples that are not named keep their values."""
    first, again = (tmp_path / name for name in ("first.vcz", "again.vcz"))
    ours, theirs = [("chr1", 5, "A", "C"), ("chr1", 9, "A", "G")], [("chr1", 7, "A", "T"), ("chr1", 9, "A", "G")]
    for path, records, ids, seed in ((first, ours, cohort.ids(0, 3), 1), (again, theirs, cohort.ids(1, 1), 2)):
        arrays = sites.make([Site(c, p, (r, a)) for c, p, r, a in records], ids, seed)
        cohort.write_vcz(path, arrays, variants_chunk=2, samples_chunk=2)
    store = created(tmp_path, "store", "format3", 2, first)
    before, new = Way("format3", "cubed").read(store), Way("format3", "cubed").read(again)
    with unchanged(store):
        assert "match none of the store" in fails("update", "--harmonise", store, again)
        assert (
            "needs --new-variants insert"
            in run("update", "--harmonise", "--allow-new-alleles", store, again, status=2).stderr
        )
        assert (
            "--new-variants needs --harmonise" in run("update", "--new-variants", "drop", store, again, status=2).stderr
        )
        step = {"source": str(again), "insert": True, "harmonise": True}
        (tmp_path / "job.yaml").write_text(f"store: {store}\nsteps: [{{update: {json.dumps(step)}}}]\n")
        assert "harmonise does not go with insert" in run("run", tmp_path / "job.yaml", status=2).stderr
    vczstore.update(store, again, harmonise=True, new_variants="drop")
    after = Way("format3", "cubed").read(store)
    assert (after["call_DP"][:, [0, 2]] == before["call_DP"][:, [0, 2]]).all()
    assert after["call_DP"][:, 1].tolist() == [-1, new["call_DP"][1, 0]]
    step = {"source": str(again), "harmonise": {"new-variants": "insert"}}
    (tmp_path / "job.yaml").write_text(f"store: {store}\nsteps: [{{update: {json.dumps(step)}}}]\n")
    vczstore.run_job(tmp_path / "job.yaml")
    after = Way("format3", "cubed").read(store)
    assert after["variant_position"].tolist() == [5, 7, 9]
    assert after["call_DP"][:, 1].tolist() == [-1, *new["call_DP"][:, 0]]
    assert (after["call_DP"][[0, 2]][:, [0, 2]] == before["call_DP"][:, [0, 2]]).all()
    assert (after["call_DP"][1, [0, 2]] == -1).all()


@pytest.mark.slow
def test_another_reference_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store.vcz"
    cohort.write_vcz(store, sites.make(_sites_with(3, 5), cohort.ids(0, 4), 1))
    for name, ref in (("same", "AC"), ("any", "NT"), ("other", "G")):
        new_sites = [Site("chr1", 5, (ref, "T")), Site("chr1", 9, ("A", "C"))]
        cohort.write_vcz(tmp_path / name, sites.make(new_sites, cohort.ids(10, 2), 2))
    before = cohort.digest(store)
    words = (
        "^append: at chr1:5 the REF is G in .*other, and A in .*store.vcz",
        "have both with --on-ref-mismatch keep",
    )
    complain(IncompatibleError, words, lambda: vczstore.append(store, tmp_path / "other", **INSERT))
    assert cohort.digest(store) == before
    for name, options in (("same", INSERT), ("any", INSERT), ("other", KEEP)):
        shutil.copytree(store, tmp_path / f"{name}.vcz")
        result = vczstore.append(tmp_path / f"{name}.vcz", tmp_path / name, **options)
        assert result.counts["variants inserted"] == 2
    alone = {"harmonise": True, "on_ref_mismatch": "keep"}
    words = ("^append: --on-ref-mismatch needs --new-variants insert",)
    complain(OptionError, words, lambda: vczstore.append(store, tmp_path / "same", **alone))


# ---- killed operations ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["command", "job", "update"])
def test_killed(tmp_path: Path, how: str) -> None:
    """On plain Zarr, a kill at any point leaves the store as before or as after; the same operation completes it."""
    store, (batch, _) = make(tmp_path, "format3")
    shutil.copytree(store, tmp_path / "template.vcz")
    code = f"vczstore.append(store, {str(batch)!r}, harmonise=True, new_variants='insert', impl='zarr')"
    if how == "job":
        step = f"append: {{source: {batch}, harmonise: {{new-variants: insert}}}}"
        code = (
            "file = store.with_name('job.yaml')\n"
            f"text = 'executor: single-threaded\\nsteps: [{{{step}}}]'\n"
            "file.write_text(f'store: {store}\\n' + text)\n"
            "vczstore.run_job(file)"
        )
    if how == "update":
        again = shutil.copytree(batch, tmp_path / "again.vcz")
        (tmp_path / "names.tsv").write_text("b1\ta1\nb2\ta3\n")
        vczstore.rename_samples(again, tmp_path / "names.tsv")
        code = f"vczstore.update(store, {str(again)!r}, harmonise=True, new_variants='insert', impl='zarr')"
    code = f"import vczstore\n{code}"
    *copies, whole = killed(tmp_path / "template.vcz", tmp_path / "killed", code, step=171 if how == "job" else 131)
    before, after = lines(store, "format3"), lines(whole, "format3")
    outcomes = Counter()
    for copy in copies:
        records = lines(copy, "format3")
        assert records in (before, after)
        outcomes[records == after] += 1
        if records == before or how == "job":
            exec(code, {"store": copy})
            assert lines(copy, "format3") == after
        if records == before:
            assert not [path for path in copy.parent.iterdir() if "vczstore-compact" in path.name]
    assert outcomes[False] > 3
