"""Which records of several sources become one: compared with bcftools; and every record must be found again."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pysam.bcftools
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vczstore
from plans.variants.join_records import join
from tests.support import cohort, vcf
from tests.support.records import Record, joined
from tests.support.sites import DIMENSIONS, POOL, Site, make, model_match, sites_of

type Union = list[tuple[frozenset[str], list[int]]]
"""For each record at one position: its ALTs, and the sources that have it."""

HEADER = """##fileformat=VCFv4.3
##contig=<ID=1,length=100000>
##ALT=<ID=DEL,Description="">
##FORMAT=<ID=GT,Number=1,Type=String,Description="">
"""


def by_bcftools(folder: Path, places: Sequence[Sequence[tuple[int, tuple[str, ...]]]], n: int) -> list[Union]:
    """Return the records that `bcftools merge` makes of the sources and ALTs at each place; REF is A."""
    for source in range(n):
        lines = [
            "\t".join(["1", str(10 * i), ".", "A", ",".join(alts) or ".", ".", ".", ".", "GT", "0/0"])
            for i, records in enumerate(places, 1)
            for s, alts in records
            if s == source
        ]
        head = "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", f"s{source}"])
        vcf.write_vcf(folder / f"{source}.vcf.gz", "\n".join([HEADER + head, *lines, ""]))
    files = [str(folder / f"{source}.vcf.gz") for source in range(n)]
    result: list[Union] = [[] for _ in places]
    for line in vcf.records(pysam.bcftools.merge("--no-version", "-m", "none", *files))[1:]:
        fields = line.split("\t")
        has = [source for source, call in enumerate(fields[9:]) if call == "0/0"]
        result[int(fields[1]) // 10 - 1].append((frozenset(fields[4].split(",")) - {"."}, has))
    return result


def ours(records: Sequence[tuple[int, tuple[str, ...]]]) -> Union:
    rows = [(source, Record("1", 1, ("A", *alts))) for source, alts in records]
    return [
        (frozenset(a for i in group for a in rows[i][1].alleles[1:]), sorted(rows[i][0] for i in group))
        for group in joined(rows)
    ]


def is_found(union: Union, records: Sequence[tuple[int, tuple[str, ...]]]) -> bool:
    """Whether each record of each source matches a record of the union that the source has; by the slow model."""
    store = [Site("1", 1, ("A", *sorted(alts))) for alts, _ in union]
    for source in {s for s, _ in records}:
        variants = [Site("1", 1, ("A", *alts)) for s, alts in records if s == source]
        matched = model_match(store, variants, new=False)
        if len(matched) < len(variants) or any(source not in union[i][1] for i in matched):
            return False
    return True


def draw(rng: random.Random, n_sources: int, alts: Sequence[str], most: int) -> list[tuple[int, tuple[str, ...]]]:
    return [
        (source, tuple(rng.sample(alts, rng.choice([0, 1, 1, 2, 3]))))
        for source in range(n_sources)
        for _ in range(rng.randrange(most + 1))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("alts", [("C", "T", "G"), ("C", "T", "AT", "AGG"), ("C", "T", "<NON_REF>")], ids=str)
def test_records_are_joined_as_bcftools_joins_them(tmp_path: Path, alts: tuple[str, ...]) -> None:
    """Each source has at most one record. Records that would not be found again are excepted."""
    rng = random.Random(1)
    places = [draw(rng, n, alts, 1) for n in (2, 3, 5) for _ in range(200)]
    differ = 0
    for records, theirs in zip(places, by_bcftools(tmp_path, places, 5), strict=True):
        mine = ours(records)
        assert is_found(mine, records)
        if is_found(theirs, records):
            assert _counted(mine) == _counted(theirs), records
        else:
            differ += 1
    assert 0 < differ < 60


@pytest.mark.slow
def test_a_store_of_joined_records(tmp_path: Path) -> None:
    """From VCFs to a VCF by bio2zarr, create and vcztools: the records are those of bcftools merge."""
    rng = random.Random(3)
    places = [draw(rng, 3, ("C", "T", "AT"), 1) for _ in range(120)]
    merged = by_bcftools(tmp_path, places, 3)
    paths = [vcf.to_vcz(tmp_path / f"{i}.vcf.gz", tmp_path / f"{i}.vcz", 3, 16 - i, 1) for i in range(3)]
    vczstore.create(tmp_path / "store", *paths)
    rows = [line.split("\t") for line in vcf.records(vcf.vcztools_view(tmp_path / "store"))[1:]]
    shown: list[list[frozenset[str]]] = [[] for _ in places]
    for row in rows:
        shown[int(row[1]) // 10 - 1].append(frozenset(row[4].split(",")) - {"."})
    assert [int(row[1]) for row in rows] == sorted(int(row[1]) for row in rows)
    compared = 0
    for mine, theirs, records in zip(shown, merged, places, strict=True):
        if is_found(theirs, records):
            compared += 1
            assert Counter(mine) == Counter(alts for alts, _ in theirs)
    assert compared > 110
    assert max(len(alts) for mine in shown for alts in mine) == 3


def _counted(union: Union) -> Counter[Any]:
    return Counter((alts, tuple(has)) for alts, has in union)


@pytest.mark.slow
def test_joined_records_are_found_again() -> None:
    """For any number of records of a source; a joined record has at most one record of each source."""
    rng, joined_somewhere = random.Random(2), 0
    for _ in range(1500):
        records = draw(rng, 4, ("C", "T", "G", "AT", "*", "<*>"), 3)
        mine = ours(records)
        assert is_found(mine, records), records
        assert all(len(set(has)) == len(has) for _, has in mine), records
        assert sum(len(has) for _, has in mine) == len(records)
        joined_somewhere += any(len(has) > 1 for _, has in mine)
    assert joined_somewhere > 500


CASES: dict[str, tuple[list[list[str]], list[list[int]], list[int]]] = {
    "share an ALT": ([["C"], ["T", "C"]], [[0], [1]], [0, 0]),
    "share none": ([["C"], ["T"]], [[0], [1]], [0, 1]),
    "no one source's": ([["C"], ["C", "T"]], [[0, 1], [1]], [0, 1]),
    "the rest is next": ([["C"], ["T"], ["C", "T"]], [[0], [0], [1]], [0, 1, 0]),
    "either, so none": ([["C", "T"], ["C", "G"], ["C"]], [[0], [0], [1]], [0, 1, 2]),
    "REF alone": ([[], ["C"]], [[0], [1]], [0, 0]),
    "REF alone, and two that it could be": ([[], ["C"], ["T"]], [[0], [1], [1]], [0, 1, 2]),
    "REF alone twice": ([[], [], ["C"]], [[0], [0], [1]], [0, 1, 2]),
    "unseen": ([["C", "<NON_REF>"], ["T", "<NON_REF>"]], [[0], [1]], [0, 1]),
    "unseen alone": ([["C", "<*>"], ["<*>"]], [[0], [1]], [0, 0]),
    "star": ([["C", "*"], ["T", "*"]], [[0], [1]], [0, 0]),
    "of two the first": ([["T", "C"], ["C"], ["T"]], [[0], [1], [2]], [0, 1, 0]),
}


@pytest.mark.parametrize(("alts", "sources", "expected"), CASES.values(), ids=CASES)
def test_join(alts: list[list[str]], sources: list[list[int]], expected: list[int]) -> None:
    assert join(alts, sources) == expected


# ---- a created store, and its sources appended ------------------------------------------------

sites = st.lists(st.sampled_from([*POOL, Site("chr1", 5, ("a", "c", "G"))]), min_size=1, max_size=9)


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(sites, min_size=1, max_size=3), st.integers(1, 4), st.data())
def test_a_created_store_accepts_its_sources(made: list[list[Site]], rows: int, data: st.DataObject) -> None:
    """All of them, without new alleles, in any order; every call keeps its alleles."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        for array, dims in DIMENSIONS.items():
            patch.setitem(cohort.DIMENSIONS, array, dims)
        sources = [make(source_sites, cohort.ids(10 * i, 2), i) for i, source_sites in enumerate(made)]
        paths = [Path(name, str(i)) for i in range(len(sources))]
        for path, arrays in zip(paths, sources, strict=True):
            cohort.write_vcz(path, arrays, variants_chunk=rows)
        options = {"executor": "single-threaded"}
        vczstore.create(Path(name, "store"), *paths, **options)
        order = data.draw(st.permutations(range(len(paths))))
        store, appended = Path(name, "store"), [paths[i] for i in order]
        first, *others = appended
        counts = [vczstore.append(store, first, harmonise=True, **options).counts]
        if others:
            counts.append(vczstore.append(store, *others, harmonise=True, **options).counts)
        assert sum(c["variants matched"] for c in counts) == sum(map(len, made))
        assert sum(c["alleles added"] + c["variants dropped"] for c in counts) == 0
        contents = cohort.read_vcz(store)
        for arrays in sources:
            assert _calls(contents, arrays["sample_id"].tolist()) == _calls(arrays, arrays["sample_id"].tolist())


def _calls(arrays: dict[str, np.ndarray], samples: list[str]) -> Counter[Any]:
    """Count the genotypes at each position and REF, by the names of alleles; entirely missing records are left out."""
    result: Counter[Any] = Counter()
    columns = [arrays["sample_id"].tolist().index(sample) for sample in samples]
    for i, row in enumerate(sites_of(arrays)):
        genotypes = arrays["call_genotype"][i, columns]
        if (genotypes >= 0).any():
            names = tuple(tuple(row.alleles[a].upper() if a >= 0 else "." for a in call) for call in genotypes.tolist())
            result[row.contig, row.position, row.alleles[0].upper(), names] += 1
    return result
