"""INFO fields from genotypes, compared with bcftools and a slow model; and fields that are stale."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from math import comb, factorial
from pathlib import Path
from typing import Any

import numpy as np
import pysam.bcftools
import pytest
import xarray
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vczstore
from plans.compilers.recompute import compile_recompute
from plans.variants.info_fields import FIELDS, exact_test
from tests.support import cohort, vcf
from tests.support.command_line import printed
from tests.support.covering import in_turn
from tests.support.killed import killed
from tests.support.ways import IMPLS, WRITTEN, Way
from vczstore.errors import (
    DamagedStoreError,
    IncompatibleError,
    MemoryLimitError,
    OptionError,
    StaleError,
    StorageError,
)
from vczstore.execution.options import Options
from vczstore.jobs.run import run_job

ALL = tuple(FIELDS)
DEFAULT = ("AC", "AN", "AF", "NS")
PER_ALLELE = {"AC", "AF", "AC_Het", "AC_Hom", "AC_Hemi", "HWE", "ExcHet"}
INTEGERS = {"AC", "AN", "NS", "AC_Het", "AC_Hom", "AC_Hemi"}
ATTRIBUTE = "vczstore_info_fields"
STORED_BY_BCFTOOLS = Path(__file__).parent / "fill_tags.vcf"
"""
Genotypes of ploidy 1 and 2, and tags by ``bcftools +fill-tags -- -t AC,AN,AF,NS,AC_Het,AC_Hom,AC_Hemi,MAF,HWE,ExcHet,\
F_MISSING`` of bcftools 1.16. The bcftools in pysam lacks this plugin.
"""

few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# ---- the slow, obvious model ----------------------------------------------------------------


def model(genotypes: Sequence[Sequence[Sequence[int]]], n_alleles: Sequence[int], width: int) -> dict[str, np.ndarray]:
    """Compute all fields, genotype by genotype; ``None`` is missing, ``...`` is fill."""
    rows: dict[str, list[Any]] = {field: [] for field in ALL}
    for calls, n in zip(genotypes, n_alleles, strict=True):
        counts: dict[str, Counter[int]] = {kind: Counter() for kind in ("hemi", "hom", "het", "hom2", "het2")}
        ns = incomplete = 0
        for call in calls:
            alleles = [allele for allele in call if allele != -2]
            called = [allele for allele in alleles if allele >= 0]
            ns += bool(called)
            incomplete += not called or -1 in alleles
            is_diploid = len(alleles) == len(called) == 2
            if len(set(called)) == 1 and (len(called) == 1 or len(called) < len(alleles)):
                counts["hemi"].update(called)
            elif len(set(called)) == 1:
                counts["hom"].update(called)
                counts["hom2"].update(called if is_diploid else ())
            else:
                counts["het"].update(called)
                counts["het2"].update(called if is_diploid else ())
        total = counts["hemi"] + counts["hom"] + counts["het"]
        an = sum(total.values())
        frequencies = sorted((total[a] / an if an else None for a in range(n)), key=lambda f: f or 0, reverse=True)
        ref = counts["hom2"][0] + sum(counts["het2"].values())
        tests = [
            hardy_weinberg(ref - counts["het2"][a], counts["hom2"][a] + counts["het2"][a], counts["het2"][a])
            for a in range(1, n)
        ]
        values: dict[str, Any] = {
            "AC": [total[a] for a in range(1, n)],
            "AN": an,
            "AF": [total[a] / an if an else None for a in range(1, n)],
            "NS": ns,
            **{f"AC_{kind.title()}": [counts[kind][a] for a in range(1, n)] for kind in ("het", "hom", "hemi")},
            "MAF": frequencies[1] if n > 1 else None,
            "F_MISSING": incomplete / len(calls) if calls else None,
            "HWE": [p for p, _ in tests],
            "ExcHet": [p for _, p in tests],
        }
        for field, value in values.items():
            rows[field].append(value + [...] * (width - 1 - len(value)) if field in PER_ALLELE else value)
    return {field: as_array(field, value) for field, value in rows.items()}


def as_array(field: str, rows: list[Any]) -> np.ndarray:
    if field in INTEGERS:
        return np.array([[-2 if v is ... else v for v in row] if field in PER_ALLELE else row for row in rows], "i4")
    special = {None: cohort.MISSING, ...: cohort.FILL}
    flat = [v for row in rows for v in row] if field in PER_ALLELE else rows
    values = np.empty(len(flat), "f4")
    for i, value in enumerate(flat):
        values[i] = special[value] if value is None or value is ... else value
    return values.reshape(len(rows), -1) if field in PER_ALLELE else values


def hardy_weinberg(ref: int, alt: int, het: int) -> tuple[float, float]:
    """Hardy-Weinberg tests by definition: in integers, over all possible numbers of heterozygous genotypes."""
    if not ref or not alt:
        return 1.0, 1.0
    n = (ref + alt) // 2

    def ways(h: int) -> int:
        a, b = (ref - h) // 2, (alt - h) // 2
        return factorial(n) // (factorial(a) * factorial(h) * factorial(b)) * 2**h

    weights = {h: ways(h) for h in range(min(ref, alt) % 2, min(ref, alt) + 1, 2)}
    assert sum(weights.values()) == comb(2 * n, alt)
    total = sum(weights.values())
    as_rare = sum(w for w in weights.values() if w <= weights[het])
    return as_rare / total, sum(w for h, w in weights.items() if h >= het) / total


def assert_fields(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Compare bit for bit, except HWE and ExcHet, whose probabilities are summed in another order."""
    for field, values in expected.items():
        result = actual[f"variant_{field}"]
        assert result.shape == values.shape, field
        if field in ("HWE", "ExcHet"):
            assert (np.isnan(result) == np.isnan(values)).all()
            np.testing.assert_array_equal(result.view("u4")[np.isnan(result)], values.view("u4")[np.isnan(result)])
            np.testing.assert_allclose(result, values, rtol=1e-6, err_msg=field)
        else:
            bits = "u4" if field not in INTEGERS else result.dtype
            np.testing.assert_array_equal(result.view(bits), values.view(bits), err_msg=field)


# ---- stores ---------------------------------------------------------------------------------


def make_arrays(
    n_variants: int, samples: Sequence[str], *, seed: int = 0, width: int = 4, ploidy: int = 2
) -> dict[str, np.ndarray]:
    """Genotypes of all kinds, and DP; the variants are the same for all seeds."""
    sites, rng = np.random.default_rng(5), np.random.default_rng([seed, len(samples)])
    n_alleles = sites.integers(1, width + 1, n_variants)
    n_alleles[:2] = width, 1
    alleles = np.full((n_variants, width), "", dtype=object)
    for row, n in enumerate(n_alleles):
        alleles[row, :n] = list("ACGTNKM")[:n]
    shape = (n_variants, len(samples), ploidy)
    genotype = rng.integers(0, np.broadcast_to(n_alleles[:, None, None], shape))
    genotype[rng.random(shape) < 0.4] = 0
    genotype[rng.random(shape) < 0.15] = -1
    ploidies = rng.integers(1, ploidy + 1, shape[:2])
    genotype[np.arange(ploidy) >= ploidies[..., None]] = -2
    genotype[-1] = -1  # no sample is called
    base = cohort.make_arrays(n_variants, samples, seed=seed)
    kept = ("sample_id", "contig_id", "filter_id", "variant_contig", "variant_position", "call_DP")
    return {**{name: base[name] for name in kept}, "variant_allele": alleles, "call_genotype": genotype.astype("i1")}


def expected_fields(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the fields of a store by the model, without removed samples."""
    present = arrays["sample_id"].astype(object) != ""
    n_alleles = np.count_nonzero(arrays["variant_allele"].astype(object) != "", axis=1)
    return model(arrays["call_genotype"][:, present].tolist(), n_alleles.tolist(), arrays["variant_allele"].shape[1])


def attribute(way: Way | None, store: Path) -> dict[str, str]:
    place = cohort.icechunk_store(store) if way is not None and way.kind == "icechunk" else store
    states = zarr.open_group(place, mode="r", use_consolidated=False).attrs.get(ATTRIBUTE, {})
    assert isinstance(states, dict)
    return states


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A format-3 store without INFO fields, of 10 variants in chunks of 4 and 7 samples in chunks of 3; and a batch."""
    cohort.write_vcz(tmp_path / "store.vcz", make_arrays(10, cohort.ids(0, 7)))
    cohort.write_vcz(tmp_path / "batch.vcz", make_arrays(10, cohort.ids(7, 4), seed=1))
    return tmp_path / "store.vcz"


# ---- values ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_bcftools_fill_tags(tmp_path: Path) -> None:
    """Fields that bcftools computed and bio2zarr converted agree with ours, whether overwritten or new."""
    text = STORED_BY_BCFTOOLS.read_text()
    with_info = vcf.to_vcz(vcf.write_vcf(tmp_path / "a.vcf.gz", text), tmp_path / "a.vcz", 3, 7, 5)
    lines = [line.split("\t") for line in text.splitlines() if not line.startswith("##INFO")]
    bare = ["\t".join([*f[:7], ".", *f[8:]]) if len(f) > 9 and f[0] != "#CHROM" else "\t".join(f) for f in lines]
    without = vcf.write_vcf(tmp_path / "b.vcf.gz", "\n".join(bare) + "\n")
    without_info = vcf.to_vcz(without, tmp_path / "b.vcz", 3, 7, 5)
    expected = cohort.read_vcz(with_info)
    is_allele = expected["variant_allele"][:, 1:].astype(object) != ""
    dtypes = {name: array.dtype for name, array in expected.items()}
    group = zarr.open_group(with_info, use_consolidated=False)
    for field in ALL:
        group[f"variant_{field}"][...] = 1
    for path in (with_info, without_info):
        vczstore.recompute(path, ALL, executor="single-threaded")
        computed = cohort.read_vcz(path)
        for field in ALL:
            name = f"variant_{field}"
            mine, theirs = (a[name].reshape(len(is_allele), -1) for a in (computed, expected))
            if field in PER_ALLELE:  # bio2zarr turns a single dot into a row of missing values
                fill = np.isnan(mine[~is_allele]) if field not in INTEGERS else mine[~is_allele] == -2
                assert fill.all()
                mine, theirs = mine[is_allele], theirs[is_allele]
            if field in INTEGERS:
                np.testing.assert_array_equal(mine, theirs, err_msg=field)
            else:
                nans = np.isnan(theirs)
                np.testing.assert_array_equal(mine.view("u4")[nans], theirs.view("u4")[nans], err_msg=field)
                np.testing.assert_allclose(mine, theirs, rtol=1e-5, err_msg=field)
            if path == with_info:
                assert computed[name].dtype == dtypes[name]
    # vcztools shows the fields, and omits missing ones
    shown = vcf.vcztools_view(without_info).splitlines()
    assert "##INFO=<ID=AC,Number=A,Type=Integer" in "\n".join(shown)
    (no_alt,) = [line.split("\t")[7] for line in shown if line.startswith("chr1\t4\t")]
    assert "AC=" not in no_alt
    assert "AN=23" in no_alt


@pytest.mark.parametrize("example", ["mixed_ploidy", "triploid"])
@pytest.mark.slow
def test_bcftools_view_of_the_remaining_samples(example: str, tmp_path: Path) -> None:
    """bcftools recomputes AC and AN when it drops samples."""
    whole = vcf.write_vcf(tmp_path / "whole.vcf.gz", vcf.EXAMPLES[example].make())
    path = vcf.to_vcz(whole, tmp_path / "store.vcz", 3, 7, 3)
    gone = vcf.EXAMPLES[example].samples[1:4]
    vczstore.remove(path, gone, impl="zarr")
    vczstore.recompute(path, ["AC", "AN"], impl="zarr")
    remaining = tmp_path / "left.vcf.gz"
    pysam.bcftools.view("-s", "^" + ",".join(gone), "-Oz", "-o", str(remaining), str(whole), catch_stdout=False)
    lines = pysam.bcftools.query("-f", "%INFO/AN\t%INFO/AC\n", str(remaining)).splitlines()
    contents = cohort.read_vcz(path)
    n_alts = np.count_nonzero(contents["variant_allele"].astype(object) != "", axis=1) - 1
    mine = [
        f"{an}\t{','.join(str(c) for c in ac[:n]) or '.'}"
        for an, ac, n in zip(contents["variant_AN"], contents["variant_AC"], n_alts, strict=True)
    ]
    assert mine == lines


@in_turn(kind=WRITTEN, impl=IMPLS)
@pytest.mark.slow
def test_every_kind_of_store(way: Way, tmp_path: Path) -> None:
    """After append and remove, existing arrays keep dtype and dimensions; the others are created."""
    old, batch = make_arrays(10, cohort.ids(0, 7)), make_arrays(10, cohort.ids(7, 4), seed=1)
    path = way.make(tmp_path, old)
    cohort.write_vcz(tmp_path / "batch.vcz", batch)
    vczstore.append(path, tmp_path / "batch.vcz", impl="zarr")
    vczstore.remove(path, ["S0001", "S0009"], impl="zarr")
    result = vczstore.recompute(path, ALL, **way.options)
    assert result.counts == {"fields recomputed": len(ALL)}
    assert result.chunks in (None, 3 * len(ALL))
    remaining = cohort.expected_remove(cohort.expected_append(old, batch), ["S0001", "S0009"])
    contents = way.read(path)
    expected = expected_fields(remaining)
    assert_fields(contents, expected)
    cohort.assert_same({name: contents[name] for name in remaining}, remaining)
    place = cohort.icechunk_store(path) if way.kind == "icechunk" else path
    ac = zarr.open_group(place, mode="r", use_consolidated=False)["variant_AC"]
    assert isinstance(ac, zarr.Array)
    assert (ac.dtype, ac.chunks, ac.shape) == (np.dtype("i4"), (4, 3), (10, 3))
    names = ac.attrs["_ARRAY_DIMENSIONS"] if way.kind == "format2" else ac.metadata.dimension_names
    assert list(names) == ["variants", "alt_alleles"]
    assert attribute(way, path) == dict.fromkeys(sorted(ALL), "current")


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]]:
    """A store, its layout, and the removed samples."""
    samples = cohort.ids(0, draw(st.integers(1, 9)))
    arrays = make_arrays(
        draw(st.integers(2, 9)),
        samples,
        seed=draw(st.integers(0, 999)),
        width=draw(st.integers(1, 5)),
        ploidy=draw(st.integers(1, 4)),
    )
    layout = {
        "variants_chunk": draw(st.integers(1, 9)),
        "samples_chunk": draw(st.integers(1, 9)),
        "zarr_format": draw(st.sampled_from([2, 3])),
    }
    if layout["zarr_format"] == 3:
        layout["shards"] = draw(st.none() | st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return arrays, layout, draw(st.lists(st.sampled_from(samples), unique=True))


@few
@given(cases(), st.sampled_from(["zarr", "cubed"]), st.integers(1, 9))
@pytest.mark.slow
def test_random_stores(case: tuple[dict[str, np.ndarray], dict[str, Any], list[str]], impl: str, ac_chunk: int) -> None:
    """All ploidies, layouts and numbers of samples, with an existing array in other chunks."""
    arrays, layout, gone = case
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "store.vcz")
        cohort.write_vcz(path, arrays, **layout)
        n_alts = arrays["variant_allele"].shape[1] - 1
        if n_alts:
            options: dict[str, Any] = {"dimension_names": ("variants", "alt_alleles")}
            if layout["zarr_format"] == 2:
                options = {"attributes": {"_ARRAY_DIMENSIONS": ["variants", "alt_alleles"]}}
            shape = (len(arrays["variant_position"]), n_alts)
            zarr.open_group(path).create_array("variant_AC", shape=shape, dtype="i2", chunks=(ac_chunk, 1), **options)
        if gone:
            vczstore.remove(path, gone, impl="zarr")
        expected = expected_fields(cohort.expected_remove(arrays, gone))
        if n_alts:
            expected["AC"] = expected["AC"].astype("i2")
        vczstore.recompute(path, ALL, impl=impl, executor="single-threaded")
        assert_fields(cohort.read_vcz(path), expected)


@settings(few, max_examples=60)
@given(st.integers(0, 25), st.integers(0, 25), st.integers(0, 25))
def test_hardy_weinberg(hom_ref: int, het: int, hom_alt: int) -> None:
    ref, alt = 2 * hom_ref + het, 2 * hom_alt + het
    np.testing.assert_allclose(exact_test(ref, alt, het), hardy_weinberg(ref, alt, het), rtol=1e-9)


def test_hardy_weinberg_of_a_biobank() -> None:
    """Where the integers of the definition are too large: properties that must hold, within limited time."""
    assert exact_test(10**6, 10**6, 0) == (0.0, pytest.approx(1))
    assert exact_test(10**6, 10**6, 10**6) == (0.0, 0.0)
    equilibrium, excess = exact_test(10**6, 10**6, 500_000)
    assert equilibrium == pytest.approx(1, abs=1e-9)
    assert excess == pytest.approx(0.5, abs=1e-3)
    # the probability that none of a thousand rare alleles meet in a genotype is exp(-1/4)
    assert exact_test(1_999_000, 1_000, 1_000)[1] == pytest.approx(np.exp(-0.25), abs=1e-3)


# ---- storage --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_existing_arrays_keep_their_layout(tmp_path: Path, zarr_format: int) -> None:
    """A missing axis of biallelic variants and a small dtype are kept; consolidated metadata have the new arrays."""
    arrays = make_arrays(10, cohort.ids(0, 7), width=2)
    arrays["variant_AC"] = np.zeros(10, dtype="i2")
    cohort.write_vcz(tmp_path / "store.vcz", arrays, zarr_format=zarr_format, consolidated=True)
    before = cohort.digest(tmp_path / "store.vcz")
    vczstore.recompute(tmp_path / "store.vcz", DEFAULT)
    after = cohort.digest(tmp_path / "store.vcz")
    new = {f"variant_{field}" for field in ("AN", "AF", "NS")}
    changed = {name.split("/")[0] for name in after if after[name] != before.get(name)}
    root = {"zarr.json"} if zarr_format == 3 else {".zattrs", ".zmetadata"}
    assert changed - root == {*new, "variant_AC"}
    expected = expected_fields(arrays)
    group = zarr.open_consolidated(tmp_path / "store.vcz")
    np.testing.assert_array_equal(group["variant_AC"][...], expected["AC"][:, 0])
    assert group["variant_AC"].dtype == np.dtype("i2")
    assert new <= set(group.array_keys())
    assert group.attrs[ATTRIBUTE] == dict.fromkeys(sorted(DEFAULT), "current")


@pytest.mark.slow
def test_a_million_samples(tmp_path: Path) -> None:
    """The memory of a task depends on the size of chunks, not on their number."""
    needed = []
    for n in (10_000, 1_000_000):
        path = tmp_path / f"{n}.vcz"
        root = zarr.create_group(path, attributes={"vcf_zarr_version": "0.4"})
        for name, shape, chunks, dtype, names in (
            ("sample_id", (n,), (n,), "string", ["samples"]),
            ("variant_position", (5,), (4,), "i4", ["variants"]),
            ("variant_allele", (5, 2), (4, 2), "string", ["variants", "alleles"]),
            ("call_genotype", (5, n, 2), (4, 10_000, 2), "i1", ["variants", "samples", "ploidy"]),
        ):
            root.create_array(name, shape=shape, chunks=chunks, dtype=dtype, dimension_names=names)
        root["sample_id"][...] = np.arange(n).astype(str)
        root["variant_allele"][...] = np.array([["A", "C"]] * 5, dtype=object)
        plan = vczstore.plan("recompute", path, ["AN", "NS"])
        needed.append(plan.projected_mem)
    assert needed[0] == needed[1]
    result = vczstore.run(plan)
    assert result.tasks == 2
    np.testing.assert_array_equal(zarr.open_group(path)["variant_AN"][...], np.full(5, 2 * n))


@pytest.mark.slow
def test_processes(store: Path) -> None:
    """Tasks in other processes send back forks of a session, each with the chunks of all arrays."""
    repository = store.with_name("repository")
    vczstore.copy_store_to_icechunk(store, repository, impl="zarr")
    vczstore.recompute(repository, ALL, executor="processes", max_workers=2)
    contents = cohort.read_vcz(cohort.icechunk_store(repository))
    assert_fields(contents, expected_fields(cohort.read_vcz(store)))


# ---- stale fields ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["format2", "format3", "icechunk"])
@pytest.mark.slow
def test_samples_that_change_leave_fields_stale(kind: str, tmp_path: Path) -> None:
    way = Way(kind, "zarr")
    path = way.make(tmp_path, make_arrays(10, cohort.ids(0, 7)))
    cohort.write_vcz(tmp_path / "batch.vcz", make_arrays(10, cohort.ids(7, 4), seed=1))
    cohort.write_vcz(tmp_path / "again.vcz", make_arrays(10, cohort.ids(2, 2), seed=2))
    vczstore.append(path, tmp_path / "batch.vcz", **way.options)
    assert vczstore.info(path).stale == []  # the store has no INFO fields
    assert attribute(way, path) == {}
    changes: list[Callable[[], object]] = [
        lambda: vczstore.remove(path, "S0001", **way.options),
        lambda: vczstore.update(path, tmp_path / "again.vcz", **way.options),
        lambda: vczstore.append(path, tmp_path / "batch.vcz", allow_returning=True, **way.options),
    ]
    for change in changes:
        vczstore.recompute(path, ["AC", "AN"], **way.options)
        assert vczstore.info(path).stale == []
        change()
        assert vczstore.info(path).stale == ["AC", "AN"]
        if change is changes[0]:
            vczstore.remove(path, cohort.ids(7, 4), **way.options)  # so that they can be appended again
    vczstore.recompute(path, ["AN", "HWE"], **way.options)
    assert vczstore.info(path).stale == ["AC"]
    assert attribute(way, path) == {"AC": "stale", "AN": "current", "HWE": "current"}
    assert vczstore.info(path).as_dict()["stale"] == ["AC"]


@pytest.mark.slow
def test_fields_are_marked_as_stale_first(store: Path) -> None:
    """On plain Zarr a run may be interrupted anywhere, so fields are marked as stale before anything changes."""
    vczstore.recompute(store, ["AC"])
    operations = {
        "append": lambda: vczstore.plan("append", store, store.with_name("batch.vcz")),
        "update": lambda: vczstore.plan("update", store, store.with_name("again.vcz")),
        "remove": lambda: vczstore.plan("remove", store, "S0003"),
    }
    cohort.write_vcz(store.with_name("again.vcz"), make_arrays(10, cohort.ids(2, 2), seed=2))
    before = cohort.digest(store)
    for operation, compile_plan in operations.items():
        path = shutil.copytree(store, store.with_name(f"{operation}.vcz"))
        for edit in compile_plan().preparations:
            edit.apply(zarr.storage.LocalStore(path))
        after = cohort.digest(path)
        assert {name for name in after if after[name] != before.get(name)} == {"zarr.json"}
        assert vczstore.info(path).stale == ["AC"]


@pytest.mark.slow
def test_new_arrays_become_visible_only_when_complete(store: Path) -> None:
    plan = vczstore.plan("recompute", store, DEFAULT)
    for write in plan.writes:
        write.by_zarr(zarr.storage.LocalStore(store))
    assert not list(store.glob("variant_A[CFN]/zarr.json"))
    vczstore.recompute(store, DEFAULT)
    assert_fields(
        cohort.read_vcz(store), {f: v for f, v in expected_fields(cohort.read_vcz(store)).items() if f in DEFAULT}
    )


def test_a_plan_expires_when_a_stale_field_is_recomputed(store: Path) -> None:
    """An append compiled while AC was stale does not mark it as stale, so it must not run once AC is current."""
    vczstore.recompute(store, ["AC"])
    vczstore.remove(store, "S0001")
    plan = vczstore.plan("append", store, store.with_name("batch.vcz"))
    vczstore.recompute(store, ["AC"])
    with pytest.raises(StaleError, match="plan again"):
        vczstore.run(plan)


# ---- in jobs and on the command line --------------------------------------------------------


@pytest.mark.parametrize("kind", ["format3", "icechunk"])
@pytest.mark.slow
def test_a_job_recomputes_fields_after_its_other_steps(store: Path, tmp_path: Path, kind: str) -> None:
    """Fields are recomputed in the same commit, and again only if samples have changed or a field is missing."""
    way = Way(kind, "cubed")
    expected = expected_fields(
        cohort.expected_remove(
            cohort.expected_append(cohort.read_vcz(store), cohort.read_vcz(tmp_path / "batch.vcz")), ["S0002"]
        )
    )
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(store, tmp_path / "repository", impl="zarr")
        store = tmp_path / "repository"
    steps = ["append: batch.vcz", "remove: {samples: S0002, missing-ok: true}", "recompute: [AC, AN, F_MISSING]"]
    job = tmp_path / "job.yaml"
    job.write_text(f"store: {store}\nsteps:\n" + "".join(f"  - {step}\n" for step in steps))
    result = run_job(job)
    assert [r.operation for r in result.results] == ["append", "remove", "recompute"]
    assert_fields(way.read(store), {field: expected[field] for field in ("AC", "AN", "F_MISSING")})
    assert vczstore.info(store).stale == []
    if kind == "icechunk":
        assert len(list(vczstore.log(store))) == 3  # the commits: empty repository, copy, job
    assert run_job(job).status == "nothing to do"
    assert [r.operation for r in run_job(job, ["steps.2.recompute=[AC, NS]"]).results] == ["recompute"]
    vczstore.remove(store, "S0005", impl="zarr")
    assert [r.operation for r in run_job(job).results] == ["recompute"]
    assert vczstore.info(store).stale == ["NS"]


@pytest.mark.slow
def test_command_line(store: Path) -> None:
    assert "4 fields recomputed (dry run" in printed("recompute", store, "--dry-run")
    assert "variant_AC" not in cohort.read_vcz(store)
    text = printed("recompute", store, "--fields", "AC, HWE", "--json")
    assert json.loads(text)["counts"] == {"fields recomputed": 2}
    assert "stale" not in printed("info", store)
    printed("remove", store, "S0001")
    stale = f"stale     INFO AC,HWE, computed before samples changed; vczstore recompute {store} --fields AC,HWE\n"
    assert stale in printed("info", store)
    printed("recompute", store)
    assert vczstore.info(store).stale == ["HWE"]
    expected = expected_fields(cohort.read_vcz(store))
    assert_fields(cohort.read_vcz(store), {field: expected[field] for field in DEFAULT})
    assert printed("recompute", store, "--fields", "AC_Hm", status=2).endswith(
        "no field 'AC_Hm'; did you mean AC_Hom?\n"
    )


# ---- refusals -------------------------------------------------------------------------------


def replace_array(path: Path, name: str, values: np.ndarray, dimensions: Sequence[str], **options: Any) -> None:
    array = zarr.open_group(path).create_array(
        name, data=values, dimension_names=list(dimensions), overwrite=True, **options
    )
    assert array.shape == values.shape


REFUSED: dict[str, tuple[str, np.ndarray, Sequence[str], str]] = {
    "axes": ("variant_AC", np.zeros((3, 10), "i4"), ("alt_alleles", "variants"), r"dimensions \('alt_alleles', "),
    "narrow": ("variant_AC", np.zeros((10, 2), "i4"), ("variants", "alt_alleles"), "2 values .* AC needs 3"),
    "floats": ("variant_AC", np.zeros((10, 3), "f4"), ("variants", "alt_alleles"), "dtype float32, .* signed integers"),
    "unsigned": ("variant_AN", np.zeros(10, "u4"), ("variants",), "dtype uint32, .* signed integers"),
    "integers": ("variant_AF", np.zeros((10, 3), "i4"), ("variants", "alt_alleles"), "dtype int32, .* float32"),
    "genotype": ("call_genotype", np.zeros((10, 7), "i1"), ("variants", "samples"), "call_genotype of dimensions"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arrays_that_do_not_fit(store: Path, case: str) -> None:
    name, values, dimensions, message = REFUSED[case]
    replace_array(store, name, values, dimensions)
    before = cohort.digest(store)
    with pytest.raises(IncompatibleError, match=f"^recompute: .*{message}"):
        vczstore.recompute(store)
    assert cohort.digest(store) == before


def test_unknown_fields_and_a_store_without_genotypes(store: Path) -> None:
    with pytest.raises(OptionError, match="no fields named; choose from AC, AN"):
        vczstore.recompute(store, [])
    with pytest.raises(OptionError, match="no field 'x'; choose from AC, AN"):
        vczstore.recompute(store, "x")
    shutil.rmtree(store / "call_genotype")
    with pytest.raises(IncompatibleError, match="has no call_genotype"):
        vczstore.recompute(store)


def narrow(kind: str, folder: Path) -> tuple[Path, Path]:
    """A store and a batch of 60 samples each, with AC and AN in int8, as converters make them for these."""
    paths = []
    for i in range(2):
        arrays = make_arrays(10, cohort.ids(100 * i, 60), width=2)
        arrays["variant_AN"] = np.array(counted(arrays)[1], "i1")
        arrays["variant_AC"] = np.array(counted(arrays)[0], "i1")[:, np.newaxis]
        (folder / str(i)).mkdir()
        paths.append(Way(kind, "cubed").make(folder / str(i), arrays))
    return paths[0], paths[1]


def counted(arrays: dict[str, np.ndarray]) -> tuple[list[int], list[int]]:
    """AC, which is fill where there is no ALT, and AN of variants with one ALT at most."""
    calls = arrays["call_genotype"].reshape(len(arrays["call_genotype"]), -1)
    ac = np.where(arrays["variant_allele"][:, 1] == "", -2, (calls == 1).sum(axis=1))
    return ac.tolist(), (calls >= 0).sum(axis=1).tolist()


@pytest.mark.parametrize("how", ["after", "with the append", "zarr-python", "a job"])
@pytest.mark.parametrize("kind", ["format2", "format3", "icechunk"])
@pytest.mark.slow
def test_fields_too_narrow_for_more_samples_are_widened(tmp_path: Path, monkeypatch: Any, kind: str, how: str) -> None:
    for name, dims in (("variant_AC", ("variants", "alt_alleles")), ("variant_AN", ("variants",))):
        monkeypatch.setitem(cohort.DIMENSIONS, name, dims)
    store, batch = narrow(kind, tmp_path)
    match how:
        case "after":
            vczstore.append(store, batch)
            result = vczstore.recompute(store, ["AC", "AN"])
            assert "variant_AN (int8 to int32)" in result.plan.notes["widened"]
        case "with the append":
            vczstore.append(store, batch, recompute=["AC", "AN"])
        case "zarr-python":
            vczstore.append(store, batch, impl="zarr")
            vczstore.recompute(store, ["AC", "AN"], impl="zarr")
        case "a job":
            (tmp_path / "job.yaml").write_text(
                f"store: {store}\nsteps: [{{append: {batch}}}, {{recompute: [AC, AN]}}]\n"
            )
            run_job(tmp_path / "job.yaml")
        case _:
            raise AssertionError(how)
    arrays = Way(kind, "cubed").read(store)
    ac, an = counted(arrays)
    assert max(an) > 127
    assert (arrays["variant_AC"].ravel().tolist(), arrays["variant_AN"].tolist()) == (ac, an)
    assert arrays["variant_AN"].dtype == "i4"
    assert vczstore.info(store).stale == []


@pytest.mark.parametrize(("field", "points"), [("NS", {"last": 16}), ("AN", {"step": 97})])
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")  # files of unfinished writes
@pytest.mark.slow
def test_killed(tmp_path: Path, monkeypatch: Any, field: str, points: dict[str, int]) -> None:
    """On plain Zarr, xarray opens what a kill leaves, whether NS is created or AN widened; a rerun completes it."""
    for name, dims in (("AC", ("variants", "alt_alleles")), ("AN", ("variants",)), ("NS", ("variants",))):
        monkeypatch.setitem(cohort.DIMENSIONS, f"variant_{name}", dims)
    store, batch = narrow("format2", tmp_path)
    vczstore.append(store, batch)
    code = f"import vczstore\nvczstore.recompute(store, [{field!r}], impl='zarr')"
    *copies, whole = killed(store, tmp_path / "killed", code, **points)
    expected = Way("format2", "cubed").read(whole)
    is_called = expected["call_genotype"] >= 0
    count = is_called.any(axis=2).sum(axis=1) if field == "NS" else is_called.sum(axis=(1, 2))
    assert expected[f"variant_{field}"].tolist() == count.tolist()
    assert len(copies) > 5
    for copy in copies:
        with xarray.open_zarr(copy, consolidated=False, chunks=None) as opened:
            assert opened.sizes["samples"] == 120
        exec(code, {"store": copy})
        cohort.assert_same(Way("format2", "cubed").read(copy), expected)


@pytest.mark.parametrize("kind", ["format3", "icechunk"])
@pytest.mark.slow
def test_fields_are_widened_where_variants_are_inserted(tmp_path: Path, monkeypatch: Any, kind: str) -> None:
    for name, dims in (("variant_AC", ("variants", "alt_alleles")), ("variant_AN", ("variants",))):
        monkeypatch.setitem(cohort.DIMENSIONS, name, dims)
    store, _ = narrow(kind, tmp_path)
    more = make_arrays(12, cohort.ids(200, 60), width=2)
    cohort.write_vcz(tmp_path / "more", more)
    vczstore.append(store, tmp_path / "more", harmonise=True, new_variants="insert", recompute=["AC", "AN"])
    arrays = Way(kind, "cubed").read(store)
    assert len(arrays["variant_AN"]) > 10
    assert (arrays["variant_AC"].ravel().tolist(), arrays["variant_AN"].tolist()) == counted(arrays)
    assert max(arrays["variant_AN"]) > 127


@pytest.mark.parametrize("impl", ["zarr", "cubed"])
def test_an_allele_index_that_the_variant_lacks(store: Path, impl: str) -> None:
    group = zarr.open_group(store)
    group["call_genotype"][1, 4, 0] = 3
    message = "call_genotype has allele 3 in row 1, whose variant has 1 alleles"
    with pytest.raises(StorageError, match=f"^recompute: .*{message}"):
        vczstore.recompute(store, impl=impl)


@pytest.mark.parametrize("impl", ["zarr", "cubed"])
@pytest.mark.parametrize("absent", [".", "0"])
def test_other_spellings_of_an_absent_allele_are_no_alleles(store: Path, absent: str, impl: str) -> None:
    """As for bcftools +fill-tags: ALT ``.`` has no AC, AF, HWE or MAF."""
    arrays = cohort.read_vcz(store)
    alleles = arrays["variant_allele"].astype(object)
    zarr.open_group(store)["variant_allele"][...] = np.where(alleles == "", absent, alleles)
    vczstore.recompute(store, ALL, impl=impl)
    assert_fields(cohort.read_vcz(store), expected_fields(arrays))


def test_an_allele_after_an_absent_one(store: Path) -> None:
    group = zarr.open_group(store)
    group["variant_allele"][1] = ["A", "", "C", ""]
    group["call_genotype"][1] = [[0, 2]] * 5 + [[2, 2]] * 2
    vczstore.recompute(store, DEFAULT)
    arrays = cohort.read_vcz(store)
    assert arrays["variant_AC"][1].tolist() == [0, 9, -2]
    assert (arrays["variant_AN"][1], arrays["variant_NS"][1]) == (14, 7)


@pytest.mark.parametrize("value", ["AC", {"AC": "yes"}, [1]])
def test_a_foreign_attribute(store: Path, value: Any) -> None:
    vczstore.recompute(store, ["AC"])
    zarr.open_group(store).attrs[ATTRIBUTE] = value
    calls: list[Callable[[], object]] = [
        lambda: vczstore.info(store),
        lambda: vczstore.remove(store, "S0001"),
        lambda: vczstore.recompute(store),
    ]
    for call in calls:
        with pytest.raises(DamagedStoreError, match=f"attribute {ATTRIBUTE} does not say .*; delete it"):
            call()


def test_memory(store: Path) -> None:
    """The error for too little memory states the amount needed to count one chunk of genotypes."""
    place = Options().open(store)
    with pytest.raises(MemoryLimitError, match=r"^recompute: a task needs .*--allowed-mem"):
        compile_recompute(place, place.open(), ["AC"], Options(allowed_mem="301MB", reserved_mem="300MB").memory)


def test_no_variants(tmp_path: Path) -> None:
    arrays = make_arrays(2, cohort.ids(0, 3))
    empty = {n: a[:0] if cohort.DIMENSIONS[n][0] == "variants" else a for n, a in arrays.items()}
    cohort.write_vcz(tmp_path / "store.vcz", empty)
    for impl in ("zarr", "cubed"):
        vczstore.recompute(tmp_path / "store.vcz", ALL, impl=impl)
    assert cohort.read_vcz(tmp_path / "store.vcz")["variant_AC"].shape == (0, 3)


@pytest.mark.parametrize("kind", ["format2", "icechunk"])
@pytest.mark.slow
def test_recomputed_in_the_commit_that_changes_samples(kind: str, tmp_path: Path) -> None:
    way = Way(kind, "cubed")
    old, batch = make_arrays(10, cohort.ids(0, 7)), make_arrays(10, cohort.ids(7, 4), seed=1)
    path = way.make(tmp_path, old)
    cohort.write_vcz(tmp_path / "batch.vcz", batch)
    result = vczstore.append(path, tmp_path / "batch.vcz", recompute=ALL)
    assert result.counts["fields recomputed"] == len(ALL)
    assert "fields recomputed" in result.summary
    assert_fields(way.read(path), expected_fields(cohort.expected_append(old, batch)))
    if kind == "icechunk":
        assert next(iter(vczstore.log(path)))["snapshot"] == result.snapshot
        assert [step["operation"] for step in next(iter(vczstore.log(path)))["steps"]] == ["append", "recompute"]
    vczstore.remove(path, ["S0001", "S0009"], recompute=ALL, dry_run=True)
    assert "S0001" in way.read(path)["sample_id"]
    vczstore.remove(path, ["S0001", "S0009"], recompute=ALL)
    remaining = cohort.expected_remove(cohort.expected_append(old, batch), ["S0001", "S0009"])
    assert_fields(way.read(path), expected_fields(remaining))
    assert vczstore.info(path).stale == []
    before = way.read(path)
    with pytest.raises(OptionError, match="recompute: no field 'XX'"):
        vczstore.remove(path, ["S0002"], recompute=["XX"])
    cohort.assert_same(way.read(path), before)


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.slow
def test_current_fields_are_not_recomputed(tmp_path: Path, kind: str) -> None:
    """If all fields are current, nothing is written or committed; otherwise only stale ones are computed."""
    way = Way(kind, "cubed")
    store = way.make(tmp_path, cohort.make_arrays(5, cohort.ids(0, 4)))
    vczstore.recompute(store, ["AN", "NS"])
    vczstore.remove(store, cohort.ids(0, 1), recompute=["AN"])
    assert vczstore.info(store).stale == ["AC", "NS"]
    assert vczstore.recompute(store, ["AN", "NS"]).counts == {"fields recomputed": 1}
    before, history = cohort.digest(store), len(vczstore.info(store).history)
    for _ in range(2):
        result = vczstore.recompute(store, ["AN", "NS"])
        assert result.counts == {"fields recomputed": 0}
        assert result.snapshot == vczstore.info(store).snapshot
    assert cohort.digest(store) == before
    assert len(vczstore.info(store).history) == history
    assert vczstore.info(store).stale == ["AC"]
