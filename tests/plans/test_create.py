"""`create`, compared with a slow model, bcftools and vcztools; refusals."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pysam.bcftools
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vczstore
from plans.core.memory import Memory
from plans.variants import union_of_sources
from plans.variants.region_index import region_index
from plans.variants.union_sites import (
    _codes,
    _group,
    _sites,
    count_repeats,
    merge_sites,
    union_table,
)
from tests.support import cohort, vcf
from tests.support.records import Record, Source, extent, joined, site
from tests.support.refusals import complain
from vczstore.errors import (
    DamagedStoreError,
    IncompatibleError,
    Interrupted,
    MemoryLimitError,
    NotAStoreError,
    OptionError,
    StorageError,
    VczstoreError,
)
from vczstore.stores.resolve import new_store
from vczstore.vcz.zarr_objects import LOCK, claim, names

# ---- sources, and their expected union ------------------------------------------------------

records = st.builds(
    Record,
    contig=st.sampled_from(["1", "2", "X"]),
    position=st.integers(1, 6),
    alleles=st.tuples(st.sampled_from(["A", "AT"])).flatmap(
        lambda ref: st.lists(
            st.sampled_from(["C", "c", "G", "<DEL>", "*", "ACGTACGT"]), max_size=3, unique_by=str.upper
        ).map(lambda alts: (*ref, *alts))
    ),
    length=st.integers(1, 9),
    id=st.sampled_from([".", "rs1", "rs2", "rs2;rs3"]),
)
SIMPLE = Source(
    [Record("1", 5, ("A", "C")), Record("1", 9, ("A", "G")), Record("1", 9, ("A",)), Record("2", 5, ("A",))]
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return SIMPLE.write(tmp_path / "source.vcz")


def expected(sources: Sequence[Source]) -> tuple[list[str], list[Record]]:
    """Return the contigs and records of the union by the model, record by record."""
    contigs = list(dict.fromkeys(c for s in sources for c in s.contigs))
    rows = []
    for number, source in enumerate(sources):
        for row in source.records:
            record = row
            if "variant_length" not in source.fields:
                record = record._replace(length=len(record.alleles[0]))
            if "variant_id" not in source.fields:
                record = record._replace(id=".")
            rows.append((number, record))
    union = []
    for members in joined(rows):
        first = rows[members[0]][1]
        alleles: dict[str, str] = {}
        for i in members:
            for allele in rows[i][1].alleles[1:]:
                alleles.setdefault(allele.upper(), allele)
        if len(alleles) > len(first.alleles) - 1 or len({site(rows[i][1]) for i in members}) > 1:
            first = first._replace(
                alleles=(first.alleles[0], *alleles.values()), length=max(rows[i][1].length for i in members)
            )
        if deletions := [rows[i][1].length for i in members if extent(rows[i][1]) >= 0]:
            first = first._replace(length=max(deletions))
        ids = [rows[i][1].id for i in sorted(members) if rows[i][1].id != "."]
        parts = [part for i in dict.fromkeys(ids) for part in i.split(";")] if len(set(ids)) > 1 else ids[:1]
        union.append((min(members), first._replace(id=";".join(dict.fromkeys(parts)) or ".")))
    return contigs, [
        r for _, r in sorted(union, key=lambda pair: (contigs.index(pair[1].contig), pair[1].position, pair[0]))
    ]


def expected_index(contigs: Sequence[str], records: Sequence[Record], chunk: int) -> list[list[int]]:
    """Return the rows of the region index by the model, one for each chunk and contig."""
    cells: dict[tuple[int, int], list[Record]] = {}
    for i, record in enumerate(records):
        cells.setdefault((i // chunk, contigs.index(record.contig)), []).append(record)
    return [
        [*cell, rs[0].position, rs[-1].position, max(r.position + r.length - 1 for r in rs), len(rs)]
        for cell, rs in cells.items()
    ]


def expected_chunk(sources: Sequence[Source]) -> int:
    """Return the chunk length by the model: the longest that does not cover a whole source."""
    return max([s.chunk for s in sources if s.chunk < len(s.records)], default=1000)


def holds(contents: dict[str, np.ndarray], sources: Sequence[Source]) -> None:
    """Assert that the contents of a store are the union of the sources."""
    contigs, records = expected(sources)
    written = (len(r.alleles) for s in sources for r in s.records)
    width = max([1, *written, *(s.width for s in sources), *(len(r.alleles) for r in records)])
    assert contents["contig_id"].tolist() == contigs
    assert [contigs[i] for i in contents["variant_contig"]] == [r.contig for r in records]
    assert contents["variant_position"].tolist() == [r.position for r in records]
    padded = [[*r.alleles, *[""] * (width - len(r.alleles))] for r in records]
    assert contents["variant_allele"].shape == (len(records), width)
    assert contents["variant_allele"].tolist() == padded
    assert contents["variant_length"].tolist() == [r.length for r in records]
    if any("variant_id" in s.fields for s in sources):
        assert contents["variant_id"].tolist() == [r.id for r in records]
        assert contents["variant_id_mask"].tolist() == [r.id == "." for r in records]
    else:
        assert "variant_id" not in contents
    assert contents["sample_id"].shape == (0,)
    filters = list(dict.fromkeys(f for s in sources for f in s.filters))
    assert contents["filter_id"].tolist() == filters
    assert contents["filter_description"].tolist() == [f"all about {f}" for f in filters]
    assert contents["variant_filter"].shape == (len(records), len(filters))
    assert not contents["variant_filter"].any()
    contigs_with_length = {c for s in sources if "contig_length" in s.fields for c in s.contigs}
    assert ("contig_length" in contents) == (contigs_with_length == set(contigs))
    if "contig_length" in contents:
        assert contents["contig_length"].tolist() == [1000 + ord(c[-1]) for c in contigs]
    assert contents["region_index"].reshape(-1, 6).tolist() == expected_index(contigs, records, expected_chunk(sources))
    assert not {name for name in contents if name.startswith(("call_", "variant_DP", "variant_quality"))}


def read(path: Path) -> dict[str, np.ndarray]:
    return cohort.read_vcz(cohort.icechunk_store(path) if (path / "snapshots").is_dir() else path)


# ---- sites ----------------------------------------------------------------------------------


def group_sites(contig: np.ndarray, position: np.ndarray, alleles: np.ndarray) -> np.ndarray:
    codes = _codes(alleles)
    return _group(_sites(contig, position, codes), codes)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), records), max_size=20), st.sampled_from(["T", "O", "U8"]))
def test_sites_against_a_model(rows: list[tuple[int, Record]], dtype: str) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    source = np.array([s for s, _ in rows], dtype="i8")
    contig = np.array([["1", "2", "X"].index(r.contig) for _, r in rows], dtype="i8")
    position = np.array([r.position for _, r in rows], dtype="i4")
    alleles = np.array([[*r.alleles, *[""] * (4 - len(r.alleles))] for _, r in rows], dtype=dtype).reshape(-1, 4)
    numbers: dict[Any, int] = {}
    groups = [numbers.setdefault(site(r)[:4], len(numbers)) for _, r in rows]
    assert group_sites(contig, position, alleles).tolist() == groups
    counts: Counter[Any] = Counter()
    repeats = []
    for s, g in zip(source.tolist(), groups, strict=True):
        repeats.append(counts[s, g])
        counts[s, g] += 1
    assert count_repeats(np.array(groups, dtype="i8"), source).tolist() == repeats
    members = sorted(joined(rows), key=lambda group: (contig[min(group)], position[min(group)], min(group)))
    extents = np.array([extent(r) for _, r in rows], dtype="i8")
    merged = merge_sites(contig, position, alleles, source, extents)
    assert merged.first.tolist() == [min(group) for group in members]
    assert [merged.record[group].tolist() for group in members] == [[i] * len(group) for i, group in enumerate(members)]
    for i, group in enumerate(members):
        several = len({site(rows[m][1]) for m in group}) > 1
        assert (i in merged.joined) == several
        if several:
            alts = {a.upper() for m in group for a in rows[m][1].alleles[1:]}
            assert {a.upper() for a in merged.joined[i][1:]} == alts
            assert len(merged.joined[i]) == len(alts) + 1
    chosen = np.array([r.id != "." for _, r in rows], dtype=bool)
    which, at = merged.first_where(chosen)
    by_hand = {}
    for i in np.flatnonzero(chosen).tolist():
        by_hand.setdefault(int(merged.record[i]), i)
    assert dict(zip(which.tolist(), at.tolist(), strict=True)) == by_hand


def test_sets_of_alleles() -> None:
    """A missing ALT does not count, a duplicate counts twice, and a long one is not truncated."""
    long = "A" * 5000
    alleles = np.array(
        [["A", "", ""], ["A", ".", ""], ["A", "C", "C"], ["A", "C", "."], ["A", long, "C"], ["A", "C", long + "A"]], "T"
    )
    ones = np.ones(len(alleles), dtype="i8")
    assert group_sites(ones, ones, alleles).tolist() == [0, 0, 1, 2, 3, 4]
    assert group_sites(ones, ones, alleles[:, :1]).tolist() == [0] * 6
    assert union_table([]) == ([], [])
    assert region_index(*[np.empty(0, dtype="i8")] * 3, start=0, chunk=5).shape == (0, 6)


# ---- the model ------------------------------------------------------------------------------


@st.composite
def sources(draw: st.DrawFn) -> Source:
    contigs = [
        *draw(st.permutations(["1", "2", "X"])),
        *draw(st.lists(st.sampled_from("abc"), max_size=2, unique=True)),
    ]
    runs = draw(st.permutations(contigs))  # not always in the order of `contigs`
    drawn = draw(st.lists(records, max_size=12))
    drawn += draw(st.lists(st.sampled_from(drawn), max_size=3)) if drawn else []
    optional = ["variant_length", "variant_id", "variant_id_mask", "contig_length"]
    fields = set(optional) - set(draw(st.lists(st.sampled_from(optional), max_size=1)))
    return Source(
        sorted(drawn, key=lambda r: (runs.index(r.contig), r.position)),
        contigs,
        zarr_format=draw(st.sampled_from([2, 3])),
        chunk=draw(st.integers(1, 5)),
        width=draw(st.integers(0, 5)),
        fields=frozenset(fields),
        filters=draw(st.sampled_from([("PASS",), ("PASS", "q10"), ("s50", "PASS")])),
    )


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(sources(), min_size=1, max_size=4), st.sampled_from(["zarr", "icechunk"]), st.booleans(), st.data())
@pytest.mark.slow
def test_create_against_a_model(made: list[Source], backend: str, small: bool, data: st.DataObject) -> None:
    """Sources of any layout and order of contigs, with many small ranges or a single one."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(union_of_sources, "SEGMENT_ROWS", data.draw(st.integers(1, 3)))
            patch.setattr(union_of_sources, "TASK_BYTES", 1)
        paths = [source.write(Path(name, f"{i}.vcz")) for i, source in enumerate(made)]
        if data.draw(st.booleans()):
            vczstore.copy_store_to_icechunk(paths[0], Path(name, "0.icechunk"))
            paths[0] = Path(name, "0.icechunk")
        out = Path(name, "out.vcz")
        executor = data.draw(st.sampled_from(["threads", "single-threaded"]))
        result = vczstore.create(out, *paths, executor=executor, backend_storage=backend)
        holds(read(out), made)
        assert result.counts == {"sources": len(made), "variants": len(expected(made)[1])}
        assert result.chunks == result.plan.decoded_chunks


# ---- bcftools and vcztools ------------------------------------------------------------------

PALETTE = {"A": [("C", "T"), ("G",), ("AT",), ("<DEL>",)], "ACC": [("A",), ("GTT", "TGG")]}
"""Sets of ALTs that are equal or disjoint, without bases to trim: bcftools merges others differently."""


def made_vcf(folder: Path, number: int, contigs: Sequence[str]) -> Path:
    """Write a VCF with duplicates, ALTs in any order, and sites with REF only."""
    rng = random.Random(number)
    samples = [f"S{number}{i}" for i in range(2)]
    lines = [
        "##fileformat=VCFv4.3",
        '##FILTER=<ID=PASS,Description="All filters passed">',
        f'##FILTER=<ID=q{number},Description="Quality of {number}">',
        *(f"##contig=<ID={contig},length=100000>" for contig in contigs),
        '##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth">',
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
        "##bcftools_viewCommand=view -s S00",
        "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples]),
    ]
    for contig in contigs:
        for position in range(10, 40):
            if position % 7 == 0:
                sites = [("A", ())] * rng.randrange(2)
            else:
                ref = "A" if position % 3 else "ACC"
                sites = [
                    (ref, alts) for alts in rng.sample(PALETTE[ref], 2) for _ in range(rng.choice([0, 0, 1, 1, 2]))
                ]
            for ref, alts in sites:
                alt = ",".join(rng.sample(alts, len(alts))) or "."
                name = rng.choice([".", f"rs{number}{position}"])
                fixed = [contig, str(position), name, ref, alt, "30", f"q{number}", "DP=3", "GT", "0/0", "./."]
                lines.append("\t".join(fixed))
    return vcf.write_vcf(folder / f"{number}.vcf.gz", "\n".join(lines) + "\n")


def judged(text: str) -> list[tuple[str, ...]]:
    """Return contig, position, REF and sorted ALTs of the records, in a canonical order."""
    rows = [line.split("\t") for line in vcf.records(text)[1:]]
    contigs = list(dict.fromkeys(row[0] for row in rows))
    keys = [(row[0], row[1], row[3], ",".join(sorted(row[4].split(",")))) for row in rows]
    return sorted(keys, key=lambda r: (contigs.index(r[0]), int(r[1]), r[2], r[3]))


@pytest.fixture(scope="module")
def vcfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three VCFs, and the VCZs that bio2zarr converts them to."""
    folder = tmp_path_factory.mktemp("vcfs")
    for number, (contigs, zarr_format) in enumerate([(["1", "2"], 2), (["1", "2", "X"], 3), (["1", "3", "X"], 2)]):
        path = made_vcf(folder, number, contigs)
        vcf.to_vcz(path, folder / f"{number}.vcz", zarr_format, 16 - number, 2)
    vczstore.copy_store_to_icechunk(folder / "2.vcz", folder / "2.icechunk")
    return folder


@pytest.mark.parametrize("backend", ["zarr", "icechunk"])
@pytest.mark.slow
def test_bcftools_merges_the_same_records(
    vcfs: Path, tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variants agree with `bcftools merge -m none`, and region queries with those of the merged VCF."""
    monkeypatch.setattr(union_of_sources, "SEGMENT_ROWS", 5)
    monkeypatch.setattr(union_of_sources, "TASK_BYTES", 1)
    out = tmp_path / "out"
    vczstore.create(out, vcfs / "0.vcz", vcfs / "1.vcz", vcfs / "2.icechunk", backend_storage=backend)
    merged = pysam.bcftools.merge("-m", "none", "--no-version", *(str(vcfs / f"{i}.vcf.gz") for i in range(3)))
    shown = vcf.vcztools_view(out, icechunk=backend == "icechunk")
    assert judged(shown) == judged(merged)
    assert len(judged(shown)) > 150
    header = [line for line in shown.splitlines() if line.startswith("##")]
    assert [line for line in header if line.startswith("##contig")] == [
        f"##contig=<ID={contig},length=100000>" for contig in ("1", "2", "X", "3")
    ]
    assert sum(line.startswith("##FILTER=<ID=q") for line in header) == 3
    assert not any("Command" in line or "INFO" in line for line in header)
    assert {tuple(line.split("\t")[5:]) for line in vcf.records(shown)[1:]} == {(".", ".", ".")}
    for region in ("2", "1:12-15", "X:39-50", "3:20-"):
        path = vcf.write_vcf(tmp_path / "merged.vcf.gz", merged)
        assert judged(view(out, backend, region)) == judged(pysam.bcftools.view("-r", region, str(path)))


def view(store: Path, backend: str, region: str) -> str:
    """Return the variants of a region as VCF, from vcztools with the region index."""
    import io
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raised by vcztools itself
        import vcztools

        text = io.StringIO()
        root = vcztools.open_zarr(store, backend_storage="icechunk" if backend == "icechunk" else None)
        with vcztools.VczReader(root) as reader:
            reader.set_variants(vcztools.regions.build_chunk_plan(reader, regions=[region]))
            vcztools.write_vcf(reader, text, no_version=True)
    return text.getvalue()


@pytest.mark.parametrize(("number", "backend"), [(0, "zarr"), (1, "icechunk")])
@pytest.mark.slow
def test_samples_are_appended(vcfs: Path, tmp_path: Path, number: int, backend: str) -> None:
    """A store over the variants of a VCZ equals it except for QUAL, FILTER and INFO once its samples are appended."""
    source, out = vcfs / f"{number}.vcz", tmp_path / "out"
    vczstore.create(out, source, backend_storage=backend)
    vczstore.append(out, source)
    before, after = (
        [
            line.split("\t")
            for line in vcf.records(vcf.vcztools_view(path, icechunk=path is out and backend == "icechunk"))
        ]
        for path in (source, out)
    )
    assert [row[:5] + row[8:] for row in after] == [row[:5] + row[8:] for row in before]
    assert len(after) > 50


# ---- destinations ---------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [None, "zarr", "obstore", "fsspec", "icechunk"])
def test_every_backend(source: Path, tmp_path: Path, backend: str | None) -> None:
    """Paths, URLs and empty folders; a dry run creates nothing, and its counts are correct."""
    out = tmp_path / "out"
    dry = vczstore.create(out, source, backend_storage=backend, dry_run=True)
    assert not out.exists()
    assert (dry.committed, dry.snapshot, dry.counts) == (False, None, {"sources": 1, "variants": 4})
    out.mkdir()
    result = vczstore.create(out.as_uri(), source, backend_storage=backend)
    assert (result.tasks, result.committed) == (dry.tasks + dry.plan.tasks, True)
    assert dry.plan.bytes_read == result.plan.bytes_read > 0
    assert result.plan.chunks_read > 0
    holds(read(out), [SIMPLE])
    info = vczstore.info(out)
    assert (info.samples, info.variants, info.backend) == (0, 4, "icechunk" if backend == "icechunk" else "zarr")


@pytest.mark.slow
def test_processes(source: Path, tmp_path: Path) -> None:
    result = vczstore.create(tmp_path / "out", source, backend_storage="icechunk", executor="processes", max_workers=2)
    holds(read(tmp_path / "out"), [SIMPLE])
    assert result.snapshot is not None
    assert next(vczstore.log(tmp_path / "out"))["message"] == "create: 1 source, 4 variants"


def test_no_variants(tmp_path: Path) -> None:
    empty = Source([], contigs=["1"])
    vczstore.create(tmp_path / "out", empty.write(tmp_path / "empty.vcz"))
    holds(read(tmp_path / "out"), [empty])


@pytest.mark.slow
def test_only_cubed(source: Path, tmp_path: Path) -> None:
    for impl in ("zarr", "xarray"):
        complain(
            OptionError, ["^create: ", "cubed"], lambda impl=impl: vczstore.create(tmp_path / "o", source, impl=impl)
        )
        dry = vczstore.create(tmp_path / "o", source, dry_run=True)
        with pytest.raises(OptionError, match=r"^create: .*cubed"):
            vczstore.run(dry.plan, impl=impl)
        assert not (tmp_path / "o" / "zarr.json").exists()
        if (tmp_path / "o").exists():
            shutil.rmtree(tmp_path / "o")


@pytest.mark.parametrize("backend", ["zarr", "icechunk"])
@pytest.mark.parametrize("what", ["folder", "file", "store", "repository"])
def test_the_destination_exists(source: Path, tmp_path: Path, backend: str, what: str) -> None:
    out = tmp_path / "out"
    if what == "folder":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    elif what == "file":
        out.write_text("mine")
    else:
        vczstore.create(out, source, backend_storage="icechunk" if what == "repository" else None)
    before = cohort.digest(tmp_path)
    for dry_run in (False, True):
        complain(
            OptionError,
            ["^create: ", str(out), "exists|holds a repository", "choose another path"],
            lambda dry_run=dry_run: vczstore.create(out, source, backend_storage=backend, dry_run=dry_run),
        )
    assert cohort.digest(tmp_path) == before


@pytest.mark.parametrize("backend", ["zarr", "icechunk"])
@pytest.mark.slow
def test_the_destination_is_created_meanwhile(source: Path, tmp_path: Path, backend: str) -> None:
    """Another store is created at the destination between planning and writing."""
    plan = vczstore.create(tmp_path / "out", source, backend_storage=backend, dry_run=True).plan
    vczstore.create(tmp_path / "out", source, backend_storage=backend)
    before = cohort.digest(tmp_path)
    complain(OptionError, ["^create: ", "choose another path"], lambda: vczstore.run(plan))
    assert cohort.digest(tmp_path) == before


def test_options_of_a_local_store(source: Path, tmp_path: Path) -> None:
    words = ["no storage options"]
    complain(OptionError, words, lambda: vczstore.create(tmp_path / "o", source, storage_options={"region": "x"}))
    complain(OptionError, ["'tape'"], lambda: vczstore.create(tmp_path / "o", source, backend_storage="tape"))


# ---- refusals -------------------------------------------------------------------------------

ALLELES = ("A", "C")


def at(*places: str) -> list[Record]:
    return [Record(contig, int(position), ALLELES) for contig, _, position in (p.partition(":") for p in places)]


UNSORTED = {
    "in a chunk": (["1:5", "1:4", "1:9"], "variant 1 of .*, 1:4 A/C, comes after 1:5 A/C"),
    "from chunk to chunk": (
        ["1:5", "1:6", "1:6", "1:7", "1:3", "2:1"],
        "variant 4 of .*, 1:3 A/C, comes after 1:7 A/C",
    ),
    "contig in a chunk": (["1:5", "2:4", "2:5", "1:9"], "variant 3 of .*, 1:9 A/C, comes after 2:5 A/C"),
    "contig later": (["2:5", "1:4", "1:5", "1:6", "2:5", "2:6"], "variant 4 of .*, 2:5 A/C, comes after 1:6 A/C"),
    "the first of several": (
        ["1:5", "1:6", "1:7", "1:2", "1:9", "1:8"],
        "variant 3 of .*, 1:2 A/C, comes after 1:7 A/C",
    ),
}


@pytest.mark.parametrize(("places", "words"), UNSORTED.values(), ids=UNSORTED)
@pytest.mark.parametrize("rows", [1, 1000])
def test_unsorted(
    source: Path, tmp_path: Path, places: list[str], words: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(union_of_sources, "SEGMENT_ROWS", rows)
    other = Source(at(*places), chunk=3).write(tmp_path / "other.vcz")
    words_ = ["^create: ", str(other), words + ":", "bcftools sort"]
    complain(IncompatibleError, words_, lambda: vczstore.create(tmp_path / "out", source, other))
    assert not (tmp_path / "out").exists()


def changed(path: Path, name: str, position: int, value: Any) -> None:
    zarr.open_group(path, mode="r+")[name][position] = value


def without(*names: str) -> Callable[[Path], None]:
    def remove(path: Path) -> None:
        for name in names:
            shutil.rmtree(path / name)

    return remove


REFUSED: dict[str, tuple[Callable[[Path], None], type[VczstoreError], list[str]]] = {
    "no such contig": (
        lambda p: changed(p, "variant_contig", 2, 7),
        DamagedStoreError,
        ["variant 2 ", "variant_contig 7"],
    ),
    "contig -1": (
        lambda p: changed(p, "variant_contig", 3, -1),
        DamagedStoreError,
        ["variant 3 ", "variant_contig -1"],
    ),
    "position -1": (
        lambda p: changed(p, "variant_position", 1, -1),
        DamagedStoreError,
        ["variant 1 ", "variant_position -1"],
    ),
    "another genome": (
        lambda p: changed(p, "contig_length", 1, 77),
        IncompatibleError,
        ["2 of contig_length 77", "source.vcz of 1050"],
    ),
    "no alleles": (without("variant_allele"), IncompatibleError, ["no variant_allele"]),
    "no contigs": (without("contig_id"), IncompatibleError, ["no contig_id"]),
    "another version": (
        lambda p: zarr.open_group(p, mode="r+").attrs.update(vcf_zarr_version="0.4"),
        IncompatibleError,
        ["vcf_zarr_version 0.4", "0.5"],
    ),
    "shorter": (
        lambda p: zarr.open_group(p, mode="r+")["variant_length"].resize((3,)),
        DamagedStoreError,
        ["variant_length has 3"],
    ),
    "no VCZ": (without("sample_id"), NotAStoreError, ["sample_id"]),
}


@pytest.mark.parametrize(("change", "error", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("backend", ["zarr", "icechunk"])
def test_refused(
    source: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    error: type[VczstoreError],
    words: list[str],
    backend: str,
) -> None:
    other = SIMPLE.write(tmp_path / "other.vcz")
    change(other)
    out = tmp_path / "out"
    complain(error, [str(other), *words], lambda: vczstore.create(out, source, other, backend_storage=backend))
    assert not out.exists()


def test_no_sources(tmp_path: Path) -> None:
    complain(VczstoreError, ["^create: no sources"], lambda: vczstore.create(tmp_path / "out"))


def test_attributes(tmp_path: Path) -> None:
    """The attributes that all sources share, except those that may name samples."""
    lines = [["fileformat", "VCFv4.3"], ["META", {"ID": "a"}], ["SAMPLE", "<ID=S1>"], ["bcftools_viewCommand", "-s S1"]]
    first = {"vcf_zarr_version": "0.5", "source": "a", "vcf_header": "S1", "vcf_meta_information": [*lines, ["x", "1"]]}
    second = {"vcf_zarr_version": "0.5", "source": "b", "vcf_meta_information": [["x", "2"], *lines]}
    for i, attributes in enumerate([first, second]):
        Source(SIMPLE.records, attributes=attributes).write(tmp_path / f"{i}.vcz")
    vczstore.create(tmp_path / "out", tmp_path / "0.vcz", tmp_path / "1.vcz")
    assert dict(zarr.open_group(tmp_path / "out", mode="r").attrs) == {
        "vcf_zarr_version": "0.5",
        "vcf_meta_information": lines[:2],
    }


# ---- memory ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("dtype", ["S1", "U1"])
def test_a_missing_text_in_the_first_source_is_taken_from_another(tmp_path: Path, dtype: str) -> None:
    sources = [SIMPLE.write(tmp_path / name) for name in "ab"]
    for path, texts in zip(sources, ([".", "y", ".", "."], ["x", "z", ".", "."]), strict=True):
        array = zarr.open_group(path).create_array(
            "variant_WHO", shape=4, chunks=3, dtype=dtype, dimension_names=["variants"]
        )
        array[:] = np.array(texts, dtype=dtype)
    vczstore.create(tmp_path / "out", *sources, info=["WHO"])
    assert read(tmp_path / "out")["variant_WHO"].tolist() == ["x", "y", ".", "."]


def test_memory(source: Path, tmp_path: Path) -> None:
    """Too little memory is refused before anything is written; the amount in the message is sufficient."""
    many = [Record("1", i, (*ALLELES, *["T" * n for n in range(2, 20)])) for i in range(1, 500)]
    wide = Source(many, chunk=100).write(tmp_path / "wide.vcz")
    out = tmp_path / "out"
    options = {"reserved_mem": 1_000_000, "allowed_mem": 1_500_000}
    message = complain(MemoryLimitError, ["^create: ", "--allowed-mem"], lambda: vczstore.create(out, wide, **options))
    assert not out.exists()
    enough = message.rpartition("--allowed-mem ")[2]
    result = vczstore.create(out, wide, reserved_mem=1_000_000, allowed_mem=enough)
    assert read(out)["variant_position"].tolist() == list(range(1, 500))
    assert result.plan.projected_mem <= int(enough.removesuffix("MB")) * 1_000_000


def test_ranges_fit_into_memory() -> None:
    """Each range fits into memory, or cannot be cut; together the ranges cover all rows."""
    rng = np.random.default_rng(1)
    segments = []
    for _ in range(3):
        edges = np.sort(rng.integers(0, 10_000, 41))
        starts = np.arange(40) * 10
        segments.append(np.stack([edges[:-1], edges[1:], starts, starts + 10], axis=1))
    whole = np.unique(np.concatenate(segments)[:, 0])
    edges = union_of_sources.cut_genome(segments, [1, 2, 3], 400)
    assert np.isin(edges[:-1], whole).all()
    assert edges[0] == whole[0]
    sizes = np.zeros(len(edges) - 1)
    for rows, size in zip(segments, [1, 2, 3], strict=True):
        for number, start, stop in union_of_sources.rows_between(rows, edges).tolist():
            sizes[number] += (stop - start) * size
    alone = [np.searchsorted(whole, b) - np.searchsorted(whole, a) == 1 for a, b in pairwise(edges)]
    assert ((sizes <= 400) | alone).all()
    assert 5 < len(sizes) < 60


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_rows_that_may_lie_in_a_range(order: list[int]) -> None:
    """Contigs in any order in the source; every row is in a piece of the range that it belongs to."""
    rng = np.random.default_rng(2)
    contigs = [np.sort(rng.integers(0, 1000, 60)) + 1000 * contig for contig in order]
    places = np.concatenate(contigs)
    starts = [60 * i + start for i in range(3) for start in range(0, 60, 7)]
    stops = [*starts[1:], 180]
    segments = np.array([(places[a], places[b - 1], a, b) for a, b in zip(starts, stops, strict=True)])
    segments = segments[np.argsort(segments[:, 0])]
    edges = np.array([0, 5, 300, 320, 900, 1500, 1501, 2400, 9000])
    pieces = union_of_sources.rows_between(segments, edges)
    assert (np.diff(pieces[:, 0]) >= 0).all()
    for number, (low, high) in enumerate(pairwise(edges)):
        rows = np.concatenate([np.arange(a, b) for i, a, b in pieces if i == number] or [np.arange(0)])
        assert len(rows) == len(set(rows.tolist()))
        assert set(np.flatnonzero((low <= places) & (places < high)).tolist()) <= set(rows.tolist())


def test_many_overlapping_sources_that_exceed_memory_are_an_error_after_few_attempts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes = {"variant_position": (1000,), "variant_allele": (1000, 2)}
    sites = union_of_sources.SourceSites(
        {
            name: zarr.create_array({}, shape=shape, chunks=(10, *shape[1:]), dtype="i8")
            for name, shape in shapes.items()
        },
        np.zeros(1, "i8"),
    )
    starts = np.arange(0, 1000, 10)
    segments = np.stack([starts, starts + 9, starts, starts + 10], axis=1)
    rooms = []
    cut_genome = union_of_sources.cut_genome
    monkeypatch.setattr(
        union_of_sources, "cut_genome", lambda *arguments: (rooms.append(arguments[-1]), cut_genome(*arguments))[1]
    )
    memory = Memory(allowed=300_000_000, reserved=0)
    with pytest.raises(MemoryLimitError, match=r"^create: .* --allowed-mem"):
        union_of_sources.Union.of([sites] * 2000, [segments] * 2000, 290_000_000, memory)
    assert 1 <= len(rooms) <= 8


# ---- interrupted runs -----------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["zarr", "icechunk"])
def test_a_run_that_fails_leaves_no_store(tmp_path: Path, backend: str) -> None:
    """A chunk that only the writing tasks read cannot be decoded; once it is repaired, the run succeeds."""
    source, out = SIMPLE.write(tmp_path / "source.vcz"), tmp_path / "out"
    chunk = source / "variant_id" / "c" / "1"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:20])
    advice = "delete what is there" if backend == "zarr" else "nothing was committed"
    words = ["^create: ", "variant_id", advice]
    complain(StorageError, words, lambda: vczstore.create(out, source, backend_storage=backend))
    assert out.exists()
    with pytest.raises(VczstoreError):
        vczstore.info(out)
    assert not (out / "zarr.json").exists()
    chunk.write_bytes(whole)
    if backend == "zarr":
        complain(OptionError, ["exists", "interrupted create"], lambda: vczstore.create(out, source))
        shutil.rmtree(out)
    vczstore.create(out, source, backend_storage=backend)
    holds(read(out), [SIMPLE])


@pytest.mark.parametrize(("when", "words"), [("survey 2", "nothing was written"), ("writing", "reads as a store")])
def test_interrupted(source: Path, tmp_path: Path, when: str, words: str) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == when:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=f"^create: interrupted; .*{words}"):
        vczstore.create(tmp_path / "out", source, progress=stop)
    assert not (tmp_path / "out" / "zarr.json").exists()


def test_two_concurrent_runs(tmp_path: Path) -> None:
    """One run creates the store; the other is refused, although the destination was empty when both started."""
    cohort.write_vcz(tmp_path / "a.vcz", cohort.make_arrays(10, ["A"]))
    first, second = (new_store(str(tmp_path / "out"), "create", samples_chunks=1) for _ in range(2))
    transaction = first.transaction("")
    with pytest.raises(VczstoreError, match=r"create: .*out(: a store is being created here| exists)"):
        second.transaction("")
    assert not claim(first.zarr_store.with_read_only(False), LOCK)
    transaction.commit("", {})
    assert names(first.zarr_store) == set()
    vczstore.create(tmp_path / "out", tmp_path / "a.vcz")
    assert not list((tmp_path / "out").glob(".vczstore*"))
