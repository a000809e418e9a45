"""Harmonising: sources whose variants and alleles differ from those of the store."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pysam.bcftools
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vczstore
from plans.variants.harmonise_rules import HAPLOID_CONTIGS
from plans.variants.match import match
from plans.variants.vectors import genotypes
from tests.support import cohort, vcf
from tests.support.covering import in_turn
from tests.support.refusals import complain
from tests.support.sites import (
    BATCHES,
    CONTIGS,
    DIMENSIONS,
    NAN_FILL,
    NAN_MISSING,
    POOL,
    STORE_SITES,
    Site,
    calls_of,
    make,
    model_match,
    sites_of,
    vcf_text,
)
from tests.support.ways import Way
from vczstore.errors import DamagedStoreError, IncompatibleError, OptionError
from vczstore.jobs.run import JobResult

dimensions = cohort.more_arrays(DIMENSIONS)


# ---- the model: slow, and obvious ------------------------------------------------------------


def model_append(
    store: Mapping[str, np.ndarray],
    sources: Sequence[Mapping[str, np.ndarray]],
    *,
    new: bool = False,
    absent: str = "missing",
) -> tuple[dict[str, np.ndarray], int]:
    """Return the expected store, and how many variants of the sources match nothing."""
    alleles = [list(s.alleles) for s in sites_of(store)]
    matches, unmatched = [], 0
    for source in sources:
        ours = [Site(s.contig, s.position, tuple(a)) for s, a in zip(sites_of(store), alleles, strict=True)]
        matched = model_match(ours, sites_of(source), new=new)
        matches.append(matched)
        unmatched += len(sites_of(source)) - len(matched)
        for i, j in matched.items():
            known = {a.upper() for a in alleles[i]}
            alleles[i] += [a for a in sites_of(source)[j].alleles if a.upper() not in known]
    width = max([store["variant_allele"].shape[1], *(len(a) for a in alleles)])
    lengths = {"alleles": width, "alt_alleles": width - 1, "genotypes": math.comb(width + 1, 2)}
    result: dict[str, np.ndarray] = {}
    for name, values in store.items():
        dims = cohort.DIMENSIONS[name]
        padding = [(0, lengths.get(d, n) - n) for d, n in zip(dims, values.shape, strict=True)]
        fill: Any = {"i": -2, "f": NAN_FILL, "b": True}.get(values.dtype.kind, "")
        result[name] = np.pad(values, padding, constant_values=fill)
    for i, texts in enumerate(alleles):
        result["variant_allele"][i, : len(texts)] = texts
        if len(texts) > len(sites_of(store)[i].alleles):
            _model_complete(result, i, len(texts))
    for source, matched in zip(sources, matches, strict=True):
        for name, values in source.items():
            if "samples" in cohort.DIMENSIONS[name]:
                calls = _model_calls(name, values, source, result, alleles, matched, absent)
                axis = cohort.DIMENSIONS[name].index("samples")
                result[name] = np.concatenate([result[name], calls], axis=axis)
    return result, unmatched


KINDS = {"call_AD": "R", "call_RF": "R", "call_EC": "A", "call_PL": "G", "variant_AC": "A"}


def _model_complete(store: dict[str, np.ndarray], row: int, n: int) -> None:
    """Pad the vectors of a variant that now has `n` alleles with missing values; entirely missing vectors stay."""
    for name in KINDS.keys() & store.keys():
        values = store[name][row]
        missing: Any = {"i": -1, "f": NAN_MISSING}[values.dtype.kind]
        fill: Any = {"i": -2, "f": NAN_FILL}[values.dtype.kind]
        for k, vector in enumerate(np.atleast_2d(values)):
            ploidy = sum(a != -2 for a in store["call_genotype"][row, k]) if KINDS[name] == "G" else 0
            length = {"R": n, "A": n - 1, "G": math.comb(n + ploidy - 1, ploidy)}[KINDS[name]]
            own = [x for x in vector if not _is(x, fill)]
            if len(own) > 1 or (len(own) == 1 and not _is(own[0], missing)):
                vector[len(own) : length] = missing


def _model_calls(
    name: str,
    values: np.ndarray,
    source: Mapping[str, np.ndarray],
    store: Mapping[str, np.ndarray],
    alleles: Sequence[Sequence[str]],
    found: Mapping[int, int],
    absent: str,
) -> np.ndarray:
    if cohort.DIMENSIONS[name][0] != "variants":
        return values
    shape = (len(alleles), values.shape[1], *store[name].shape[2:])
    missing: Any = {"i": -1, "f": NAN_MISSING, "b": False}.get(values.dtype.kind, ".")
    fill: Any = {"i": -2, "f": NAN_FILL, "b": False}.get(values.dtype.kind, "")
    result = np.full(shape, fill, dtype=values.dtype)
    theirs = sites_of(source)
    unmatched = {site[:2] for j, site in enumerate(theirs) if j not in found.values()}
    for i, row in enumerate(result):
        contig = sites_of(store)[i].contig
        is_reference = absent == "reference" and sites_of(store)[i][:2] not in unmatched
        for k in range(values.shape[1]):
            if i not in found:
                if name == "call_genotype":
                    value = 0 if is_reference else -1
                    row[k] = [value, -2] if contig in HAPLOID_CONTIGS else [value, value]
                elif name == "call_genotype_mask":
                    value = not is_reference
                    row[k] = [value, True] if contig in HAPLOID_CONTIGS else [value, value]
                elif row.ndim == 1:
                    row[k] = missing
                else:
                    row[k, 0] = missing
                continue
            vector, n = values[found[i], k], len(theirs[found[i]].alleles)
            upper = [a.upper() for a in alleles[i]]
            to = [upper.index(a.upper()) for a in theirs[found[i]].alleles]
            kind = KINDS.get(name)
            if name == "call_genotype":
                row[k] = [to[a] if a >= 0 else a for a in vector]
            elif kind is None:
                row[k] = vector
            elif to == list(range(len(upper))):
                both = min(len(vector), row.shape[1])
                row[k, :both] = vector[:both]
            else:
                own = [x for x in vector if not _is(x, fill)]
                if len(own) == 0 or (
                    len(own) == 1 and _is(own[0], missing) and (kind == "G" or n - (kind == "A") != 1)
                ):
                    row[k, 0] = missing
                elif kind == "G":
                    genotype = source["call_genotype"][found[i], k]
                    # for REF alone, a likelihood is one value, and "." is a genotype of any ploidy
                    ploidy = 2 if n == 1 and (genotype < 0).all() else int((genotype != -2).sum())
                    row[k, : math.comb(len(upper) + ploidy - 1, ploidy)] = missing
                    for g in itertools.combinations_with_replacement(range(n), ploidy):
                        row[k, _g(sorted(to[a] for a in g))] = vector[_g(g)]
                else:
                    first = kind == "A"
                    row[k, : len(upper) - first] = missing
                    for a in range(first, n):
                        row[k, to[a] - first] = vector[a - first]
    return result


def _is(value: Any, other: Any) -> bool:
    return np.asarray(value).tobytes() == np.asarray(other, dtype=np.asarray(value).dtype).tobytes()


def _g(genotype: Sequence[int]) -> int:
    """Return the number of a genotype by VCF 4.5, 1.6.2: for a/b, b(b+1)/2 + a; for one allele, the allele."""
    return genotype[0] if len(genotype) == 1 else genotype[1] * (genotype[1] + 1) // 2 + genotype[0]


# ---- matching -------------------------------------------------------------------------------


def test_genotypes_are_in_the_order_of_the_specification() -> None:
    """The examples of VCF 4.5, section 1.6.2."""
    assert ["".join(map(str, g)) for g in genotypes(3, 2)] == ["00", "01", "11", "02", "12", "22"]
    assert ["".join(map(str, g)) for g in genotypes(2, 3)] == ["000", "001", "011", "111"]
    for n, p in itertools.product(range(1, 5), range(1, 5)):
        places = [sum(math.comb(allele + i, i + 1) for i, allele in enumerate(g)) for g in genotypes(n, p)]
        assert places == list(range(math.comb(n + p - 1, p)))


BASES = ("A", "C", "G", "T", "a", "CT", "<DEL>", "*", "<NON_REF>")


@st.composite
def variants(draw: st.DrawFn) -> list[tuple[int, tuple[str, ...]]]:
    """Variants at few positions, so that many positions coincide."""
    variant = st.tuples(
        st.integers(1, 3),
        st.lists(st.sampled_from(BASES[:5]), min_size=1, max_size=4, unique_by=lambda a: a.upper()).map(tuple),
    )
    return sorted(draw(st.lists(variant, max_size=6)), key=lambda v: v[0])


def _numbers(alleles: Sequence[Sequence[str]], width: int) -> np.ndarray:
    table = {a.upper(): i for i, a in enumerate(BASES)}
    table = {a.upper(): table[a.upper()] for a in BASES}
    rows = [[table[a.upper()] for a in texts] + [-1] * (width - len(texts)) for texts in alleles]
    return np.array(rows, "i8").reshape(-1, width)


@settings(max_examples=150, deadline=None)
@given(variants(), variants(), st.booleans())
@pytest.mark.slow
def test_matches_are_those_of_the_model(store: Any, source: Any, new: bool) -> None:
    matched = match(
        np.array([p for p, _ in store], "i8"),
        _numbers([a for _, a in store], 5),
        np.array([p for p, _ in source], "i8"),
        _numbers([a for _, a in source], 4),
        allow_new_alleles=new,
    )
    expected = model_match([Site("1", p, a) for p, a in store], [Site("1", p, a) for p, a in source], new=new)
    assert {i: j for i, j in enumerate(matched.tolist()) if j >= 0} == expected


# ---- whole appends against the model ---------------------------------------------------------


@st.composite
def cohorts(draw: st.DrawFn) -> dict[str, Any]:
    pool = st.sampled_from(POOL)
    store = draw(st.lists(pool, min_size=1, max_size=9))
    return {
        "store": store,
        "sources": [draw(st.lists(pool, min_size=1, max_size=9)) for _ in range(draw(st.integers(1, 2)))],
        "contigs": [draw(st.permutations(CONTIGS)) for _ in range(2)],
        "chunks": [(draw(st.integers(1, 4)), draw(st.integers(1, 3))) for _ in range(3)],
        "padding": draw(st.integers(0, 1)),
        "samples": draw(st.integers(0, 4)),
        "new": draw(st.booleans()),
        "absent": draw(st.sampled_from(["missing", "reference"])),
        "kind": draw(st.sampled_from(["format2", "format3"])),
        "impl": draw(st.sampled_from(["cubed", "cubed", "zarr"])),
    }


@settings(max_examples=14, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cohorts())
@pytest.mark.slow
def test_appends_are_those_of_the_model(case: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _append_as_the_model(Path(folder), case)


def _append_as_the_model(folder: Path, case: dict[str, Any]) -> None:
    formats = {"zarr_format": 2 if case["kind"] == "format2" else 3}
    old = make(case["store"], cohort.ids(0, case["samples"]), 1)
    cohort.write_vcz(
        folder / "store", old, variants_chunk=case["chunks"][0][0], samples_chunk=case["chunks"][0][1], **formats
    )
    sources = []
    for i, sites in enumerate(case["sources"]):
        arrays = make(sites, cohort.ids(10 * (i + 1), 3), 2 + i, contigs=case["contigs"][i], padding=case["padding"])
        rows, width = case["chunks"][i + 1]
        cohort.write_vcz(folder / f"source{i}", arrays, variants_chunk=rows, samples_chunk=width)
        sources.append(arrays)
    expected, unmatched = model_append(old, sources, new=case["new"], absent=case["absent"])
    paths = [folder / f"source{i}" for i in range(len(sources))]
    options = {
        "harmonise": True,
        "allow_new_alleles": case["new"],
        "absent": case["absent"],
        "impl": case["impl"],
        "executor": "single-threaded",
    }
    if unmatched:
        before = cohort.digest(folder / "store")
        with pytest.raises(IncompatibleError, match=r"match none of the store, the first is variant \d+, chr"):
            vczstore.append(folder / "store", *paths, **options)
        assert cohort.digest(folder / "store") == before
    n_unmatched = [
        model_append(old, sources[: i + 1], new=case["new"])[1] - model_append(old, sources[:i], new=case["new"])[1]
        for i in range(len(sources))
    ]
    if any(n == len(sites) for n, sites in zip(n_unmatched, case["sources"], strict=True)):
        with pytest.raises(IncompatibleError, match="drop would leave nothing of it"):
            vczstore.append(folder / "store", *paths, new_variants="drop", **options)
        return
    result = vczstore.append(folder / "store", *paths, new_variants="drop", **options)
    cohort.assert_same(cohort.read_vcz(folder / "store"), expected)
    assert result.counts["variants dropped"] == unmatched
    assert result.counts["variants matched"] == sum(map(len, case["sources"])) - unmatched


# ---- compared with bcftools ------------------------------------------------------------------


@in_turn(kind=("format2", "format3", "icechunk"), batch=tuple(BATCHES))
@pytest.mark.slow
def test_as_bcftools_merges(tmp_path: Path, kind: str, batch: str) -> None:
    sites, multiallelics = BATCHES[batch]
    # with new alleles, bcftools would also join split variants
    store_sites = [s for s in STORE_SITES if batch != "new alleles" or s.position != 10]
    old = vcf.write_vcf(tmp_path / "old.vcf.gz", vcf_text(store_sites, ["a", "b", "c"], 1))
    new = vcf.write_vcf(tmp_path / "new.vcf.gz", vcf_text(sites, ["d", "e"], 2))
    zarr_format = 2 if kind == "format2" else 3
    store = vcf.to_vcz(old, tmp_path / "store.vcz", zarr_format, 2, 2)
    vcf.to_vcz(new, tmp_path / "batch.vcz", 3, 3, 2)
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(store, tmp_path / "ice.vcz", impl="zarr")
        store = tmp_path / "ice.vcz"
    vczstore.append(
        store, tmp_path / "batch.vcz", harmonise=True, allow_new_alleles=batch == "new alleles", executor="threads"
    )
    merged = pysam.bcftools.merge("--no-version", "-m", multiallelics, str(old), str(new))
    shown = vcf.vcztools_view(store, icechunk=kind == "icechunk")
    assert sorted(calls_of(shown), key=str) == sorted(calls_of(merged), key=str)


# ---- whole stores, and refusals --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["format2", "icechunk"])
@pytest.mark.slow
def test_two_batches_with_new_alleles_at_one_site(tmp_path: Path, kind: str) -> None:
    """The result is correct in either order: each batch is expressed over the alleles that the store has by then."""
    way = Way(kind, "cubed")
    old = make([Site("chr1", 5, ("A", "C"))], cohort.ids(0, 4), 1)
    batches = [make([Site("chr1", 5, ("A", alt))], cohort.ids(10 * i, 2), i) for i, alt in ((1, "T"), (2, "G"))]
    for i, batch in enumerate(batches):
        cohort.write_vcz(tmp_path / f"batch{i}", batch)
    for order in ((0, 1), (1, 0)):
        (tmp_path / str(order)).mkdir()
        store = way.make(tmp_path / str(order), old)
        expected = old
        for i in order:
            vczstore.append(store, tmp_path / f"batch{i}", harmonise=True, allow_new_alleles=True, **way.options)
            expected, _ = model_append(expected, [batches[i]], new=True)
        cohort.assert_same(way.read(store), expected)
        assert expected["variant_allele"].tolist() == [["A", "C", *[("T", "G")[i] for i in order]]]


@pytest.mark.parametrize(("kind", "new"), [("format2", True), ("format3", False), ("icechunk", True)])
@pytest.mark.slow
def test_normalise_and_append_equals_harmonise(tmp_path: Path, kind: str, new: bool) -> None:
    sites = [Site("chr1", 5, ("A", "C", "T")), Site("chr1", 9, ("A", "G")), Site("chrX", 2, ("C", "A"))]
    theirs = [Site("chr1", 5, ("A", "T", "C")), Site("chr1", 9, ("A", "T", "G") if new else ("A", "G"))]
    cohort.write_vcz(tmp_path / "batch", make(theirs, cohort.ids(10, 5), 2, contigs=CONTIGS[::-1]), samples_chunk=3)
    way = Way(kind, "cubed")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = (way.make(tmp_path / name, make(sites, cohort.ids(0, 4), 1)) for name in ("one", "two"))
    rules = {"allow_new_alleles": new, "absent": "reference"}
    vczstore.append(one, tmp_path / "batch", harmonise=True, **rules, **way.options)
    backend = "icechunk" if kind == "icechunk" else None
    before = way.read(two)
    vczstore.normalise(two, tmp_path / "batch", tmp_path / "out", output_backend=backend, **rules, **way.options)
    cohort.assert_same(way.read(two), before)
    if new:  # the batch has alleles that the store lacks
        words = ("^append: ", "say --harmonise")
        complain(IncompatibleError, words, lambda: vczstore.append(two, tmp_path / "out", **way.options))
        vczstore.append(two, tmp_path / "out", harmonise=True, allow_new_alleles=True, **way.options)
    else:
        vczstore.append(two, tmp_path / "out", **way.options)
    cohort.assert_same(way.read(two), way.read(one))
    words = ("^normalise: .*out (exists|holds a repository)", "another path")
    again = {"backend_storage": backend, **rules, **way.options}
    complain(OptionError, words, lambda: vczstore.normalise(two, tmp_path / "batch", tmp_path / "out", **again))


@pytest.mark.slow
def test_a_created_store_accepts_harmonised_batches(tmp_path: Path) -> None:
    cohorts = [
        make([Site("chr1", 5, ("A", "C", "T")), Site("chr1", 7, ("A", "G"))], cohort.ids(0, 4), 1),
        make([Site("chr1", 5, ("A", "T", "C")), Site("chrX", 2, ("C", "A"))], cohort.ids(10, 3), 2),
    ]
    for i, arrays in enumerate(cohorts):
        cohort.write_vcz(tmp_path / str(i), arrays)
    paths = [tmp_path / "0", tmp_path / "1"]
    vczstore.create(tmp_path / "store", *paths)
    vczstore.append(tmp_path / "store", *paths, harmonise=True)
    empty = make([Site("chr1", 5, ("A", "C", "T")), Site("chr1", 7, ("A", "G")), Site("chrX", 2, ("C", "A"))], [], 0)
    expected, unmatched = model_append(empty, cohorts)
    assert unmatched == 0
    contents = cohort.read_vcz(tmp_path / "store")
    calls = [n for n, dims in cohort.DIMENSIONS.items() if n in expected and "samples" in dims]
    cohort.assert_same({n: contents[n] for n in calls}, {n: expected[n] for n in calls})


@pytest.mark.slow
def test_allele_indices_beyond_the_dtype_of_the_batch(tmp_path: Path) -> None:
    """Genotypes are int16 in the store and int8 in the batch, which has the alleles 198 and 150 of the store."""
    alleles = ("A", *("A" + "C" * n for n in range(1, 200)))
    keep = ("call_genotype", "call_DP")
    for name, chosen, first, dtype in (("store", alleles, 0, "i2"), ("batch", ("A", *alleles[198:149:-48]), 10, "i1")):
        all_arrays = make([Site("chr1", 5, chosen)], cohort.ids(first, 4), 1)
        arrays = {n: a for n, a in all_arrays.items() if n in keep or n.startswith(("sample_id", "contig", "variant"))}
        arrays["call_genotype"] = np.array([[[0, 1], [2, -1], [1, -2], [2, 2]]], dtype)
        cohort.write_vcz(tmp_path / name, arrays)
    vczstore.append(tmp_path / "store", tmp_path / "batch", harmonise=True)
    result = cohort.read_vcz(tmp_path / "store")["call_genotype"]
    assert result[0, 4:].tolist() == [[0, 198], [150, -1], [198, -2], [150, 150]]


@pytest.mark.slow
def test_unchanged_chunks_are_copied_verbatim(tmp_path: Path) -> None:
    sites = [Site("chr1", i, ("A", "C", "T")) for i in range(1, 17)]
    swapped = [Site("chr1", 7, ("A", "T", "C"))]
    old = make(sites, cohort.ids(0, 6), 1)
    new = make([*sites[:6], *swapped, *sites[7:]], cohort.ids(10, 6), 2)
    for name, arrays in (("store", old), ("batch", new)):
        cohort.write_vcz(tmp_path / name, arrays, variants_chunk=4, samples_chunk=3)
    result = vczstore.append(tmp_path / "store", tmp_path / "batch", harmonise=True)
    # four rows of two chunks in each array: one row is re-created in the five arrays with values by allele
    arrays = [n for n in new if cohort.DIMENSIONS[n][:2] == ("variants", "samples")]
    assert result.plan.decoded_chunks == 5 * 2
    assert result.plan.encoded_chunks == 8 * len(arrays) - 5 * 2 + 2 * 2  # and the sample arrays
    cohort.assert_same(cohort.read_vcz(tmp_path / "store"), model_append(old, [new])[0])


def _unsorted(arrays: dict[str, np.ndarray]) -> None:
    arrays["variant_position"] = arrays["variant_position"][::-1].copy()


def _contig_twice(arrays: dict[str, np.ndarray]) -> None:
    arrays["variant_contig"] = np.array([0, 1, 0], "i1")


def _nowhere(arrays: dict[str, np.ndarray]) -> None:
    arrays["variant_contig"] = np.array([0, 0, 7], "i1")


REFUSED = {
    "nowhere": (_nowhere, {}, ("variant 2 of .*batch has the variant_contig 7", "3 contigs", "re-create it")),
    "unsorted": (_unsorted, {}, ("variant 1 of .*batch, chr1:6 A/C, comes after chr1:7 A/C", "bcftools sort")),
    "contig twice": (_contig_twice, {}, ("variant 2 of .*batch, chr1:7 A/C, comes after chr2:6", "bcftools sort")),
    "xarray": (lambda _: None, {"impl": "xarray"}, ("--impl xarray cannot harmonise",)),
    "absent": (lambda _: None, {"absent": "none"}, ("absent is 'none'", "missing, reference")),
    "no harmonise": (
        lambda _: None,
        {"harmonise": False, "new_variants": "drop"},
        ("--new-variants needs --harmonise",),
    ),
}


@pytest.mark.parametrize(("change", "options", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path: Path, change: Any, options: dict[str, Any], words: tuple[str, ...]) -> None:
    sites = [Site("chr1", p, ("A", "C")) for p in (5, 6, 7)]
    cohort.write_vcz(tmp_path / "store", make(sites, cohort.ids(0, 4), 1))
    batch = make(sites, cohort.ids(10, 2), 2)
    change(batch)
    cohort.write_vcz(tmp_path / "batch", batch)
    before = cohort.digest(tmp_path / "store")
    options = {"harmonise": True, **options}
    complain(
        (DamagedStoreError, IncompatibleError, OptionError),
        (f"^append: .*{words[0]}", *words[1:]),
        lambda: vczstore.append(tmp_path / "store", tmp_path / "batch", **options),
    )
    assert cohort.digest(tmp_path / "store") == before


@pytest.mark.slow
def test_a_job_that_harmonises(tmp_path: Path) -> None:
    old = make([Site("chr1", 5, ("A", "C"))], cohort.ids(0, 4), 1)
    batches = [make([Site("chr1", 5, ("A", alt))], cohort.ids(10 * i, 2), i) for i, alt in ((1, "T"), (2, "G"))]
    store = Way("icechunk", "cubed").make(tmp_path, old)
    for i, batch in enumerate(batches):
        cohort.write_vcz(tmp_path / f"batch{i}.vcz", batch)
    file = tmp_path / "job.yaml"

    def run(steps: str) -> JobResult:
        file.write_text(f"store: {store.name}\nsteps: {steps}\n")
        return vczstore.run_job(file)

    step = "append: {source: batch%d.vcz, harmonise: {allow-new-alleles: true}}"
    complain(IncompatibleError, ("^append: .*batch1.vcz", "in one step"), lambda: run(f"[{step % 0}, {step % 1}]"))
    complain(
        IncompatibleError, ("match none of the store",), lambda: run("[append: {source: batch0.vcz, harmonise: true}]")
    )
    cohort.assert_same(cohort.read_vcz(cohort.icechunk_store(store)), old)
    both = "[append: {source: [batch0.vcz, batch1.vcz], harmonise: {allow-new-alleles: true}}]"
    assert run(both).status == "done"
    cohort.assert_same(cohort.read_vcz(cohort.icechunk_store(store)), model_append(old, batches, new=True)[0])
    assert run(both).status == "nothing to do"
