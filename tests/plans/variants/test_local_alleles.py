"""Local alleles: calls keep their meaning in terms of allele names. And fields that are dropped."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pysam.bcftools
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vczstore
from plans.variants.field_numbers import is_local
from tests.support import cohort, vcf
from tests.support.command_line import run as run_cli
from tests.support.refusals import complain
from tests.support.sites import BATCHES, DIMENSIONS, STORE_SITES, Site, make, sites_of, vcf_text
from tests.support.ways import Way
from vczstore.errors import IncompatibleError, OptionError

LOCAL = {
    "call_LAA": ("variants", "samples", "local_alt_alleles"),
    "call_LAD": ("variants", "samples", "local_alleles"),
    "call_LPL": ("variants", "samples", "local_genotypes"),
    "call_LGP": ("variants", "samples", "local_genotypes"),
    "call_LGT": ("variants", "samples"),
    "call_AD_mask": ("variants", "samples", "alleles"),
    "call_PL_mask": ("variants", "samples", "genotypes"),
}
FULL = ("call_AD", "call_EC", "call_PL", "call_RF", "call_DP", "call_FT", "variant_AC")

dimensions = cohort.more_arrays({**DIMENSIONS, **LOCAL})


def localised(sites: Sequence[Site], samples: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Return a cohort with local fields: haploid and diploid calls with at most two local ALTs, in any order."""
    rng = np.random.default_rng([7, seed])
    arrays = make(sites, samples, seed)
    for name in FULL:
        del arrays[name]
    v, n = arrays["call_genotype"].shape[:2]
    laa, lad = np.full((v, n, 2), -2, "i1"), np.full((v, n, 3), -2, "i2")
    lpl, lgp = np.full((v, n, 6), -2, "i4"), np.full((v, n, 6), cohort.FILL, "f4")
    lgt = np.full((v, n), ".", dtype=object)
    for i, site in enumerate(sites_of(arrays)):
        for j in range(n):
            kind, ploidy = rng.integers(0, 8), 1 + int((arrays["call_genotype"][i, j] != -2).all())
            if kind == 0:  # everything is missing
                laa[i, j, 0] = lad[i, j, 0] = lpl[i, j, 0] = -1
                lgp[i, j, 0] = cohort.MISSING
                continue
            alts = range(1, len(site.alleles))
            chosen = rng.permutation(alts)[: rng.integers(0, 1 + min(2, len(alts)))]
            laa[i, j, : len(chosen)] = chosen
            if not len(chosen):
                laa[i, j, 0] = rng.choice([-1, -2])  # REF alone, which is written in either way
            k = len(chosen) + 1
            g = math.comb(k + ploidy - 1, ploidy)
            lad[i, j, :k], lpl[i, j, :g] = rng.integers(-1, 99, k), rng.integers(-1, 999, g)
            lgp[i, j, :g] = rng.choice(np.array([0.25, cohort.MISSING], "f4"), g)
            lgt[i, j] = "/".join(map(str, rng.integers(0, k, ploidy)))
    return {**arrays, "call_LAA": laa, "call_LAD": lad, "call_LPL": lpl, "call_LGP": lgp, "call_LGT": lgt}


def genotypes(alleles: Sequence[str], ploidy: int) -> list[tuple[str, ...]]:
    """Return the genotypes in the order of VCF 4.5, section 1.6.2: for two alleles, b(b+1)/2 + a."""
    pairs = [(alleles[a], alleles[b]) for b in range(len(alleles)) for a in range(b + 1)]
    return [tuple(sorted(p)) for p in pairs] if ploidy == 2 else [(a,) for a in alleles]


def said(arrays: Mapping[str, np.ndarray], samples: Sequence[str]) -> dict[Any, Any]:
    """Return the values of each call, keyed by the names of alleles."""
    result = {}
    for i, site in enumerate(sites_of(arrays)):
        for j in (arrays["sample_id"].tolist().index(s) for s in samples):
            numbers = arrays["call_LAA"][i, j]
            local = [site.alleles[0], *(site.alleles[a] for a in numbers if a > 0)]
            own = {n: [x.tobytes() for x in arrays[n][i, j] if not same(x, fill)] for n, fill in FILLS.items()}
            ploidy = 1 if len(own["call_LPL"]) == len(local) > 1 else 2
            by_genotype = genotypes(local, ploidy)
            key = (site.contig, site.position, site.alleles[0].upper(), arrays["sample_id"][j])
            gt = [site.alleles[a].upper() if a >= 0 else int(a) for a in arrays["call_genotype"][i, j]]
            lgt = arrays["call_LGT"][i, j]
            result[key] = {
                "GT": gt,
                "none": [int(a) for a in numbers if a < 0],
                "LAD": own["call_LAD"] if len(own["call_LAD"]) != len(local) else by_name(local, own["call_LAD"]),
                "LGT": lgt if lgt == "." else [local[int(a)].upper() for a in lgt.split("/")],
                **{
                    n: own[n] if len(own[n]) != len(by_genotype) else by_name(by_genotype, own[n])
                    for n in ("call_LPL", "call_LGP")
                },
            }
    return result


FILLS: dict[str, Any] = {"call_LAD": -2, "call_LPL": -2, "call_LGP": cohort.FILL}
NOTHING: dict[str, Any] = dict.fromkeys(("call_LAA", "call_LAD", "call_LPL"), (-1, -2))
NOTHING["call_LGP"] = (cohort.MISSING, cohort.FILL)


def same(value: Any, other: Any) -> bool:
    return bool(value.tobytes() == np.asarray(other, dtype=value.dtype).tobytes())


def by_name(names: Sequence[Any], values: Sequence[Any]) -> dict[Any, Any]:
    return {str(name).upper(): value for name, value in zip(names, values, strict=True)}


STORE = [
    Site("chr1", 5, ("A", "C", "T", "G")),
    Site("chr1", 8, ("A", "C")),
    Site("chr2", 3, ("AT", "A", "<DEL>", "*")),
    Site("chrX", 6, ("T", "A", "C")),
]


@st.composite
def batches(draw: st.DrawFn) -> list[Site]:
    """Some of the store's variants, with some of their alleles, in any order, and perhaps a new one."""
    result = []
    for site in draw(st.lists(st.sampled_from(STORE), unique=True, min_size=1)):
        alts = draw(st.permutations(site.alleles[1:]))[: draw(st.integers(1, len(site.alleles) - 1))]
        more = draw(st.sampled_from([(), (), ("ACGT",)]))
        result.append(site._replace(alleles=(site.alleles[0], *draw(st.permutations([*alts, *more])))))
    return result


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    case=st.lists(batches(), min_size=1, max_size=2),
    rows=st.integers(1, 3),
    kind=st.sampled_from(["format2", "format3"]),
    impl=st.sampled_from(["cubed", "zarr"]),
)
def test_calls_keep_their_meaning_by_allele_names(case: list[list[Site]], rows: int, kind: str, impl: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        old = localised(STORE, cohort.ids(0, 3), 1)
        store = Way(kind, impl).make(folder, old, variants_chunk=rows, samples_chunk=2)
        sources = [localised(sites, cohort.ids(10 * i, 3), i) for i, sites in enumerate(case, 1)]
        for i, arrays in enumerate(sources):
            cohort.write_vcz(folder / str(i), arrays, variants_chunk=2, samples_chunk=2)
        paths = [folder / str(i) for i in range(len(sources))]
        vczstore.append(store, *paths, harmonise=True, allow_new_alleles=True, impl=impl, executor="single-threaded")
        contents = cohort.read_vcz(store)
        for arrays in [old, *sources]:
            ids = arrays["sample_id"].tolist()
            before, after = said(arrays, ids), said(contents, ids)
            assert {key: after[key] for key in before} == before
            absent = [i for i, s in enumerate(sites_of(contents)) if not any(s[:2] == key[:2] for key in before)]
            columns = [contents["sample_id"].tolist().index(sample) for sample in ids]
            for field, (missing, fill) in NOTHING.items():
                nothing = np.array([missing, *[fill] * (contents[field].shape[2] - 1)], dtype=contents[field].dtype)
                assert all(contents[field][i, j].tobytes() == nothing.tobytes() for i in absent for j in columns)
            assert (contents["call_LGT"][np.ix_(absent, columns)] == ".").all()


# ---- compared with bcftools and bio2zarr -----------------------------------------------------


def by_alleles(vcz: Path, samples: Sequence[str]) -> dict[Any, Any]:
    """Return the values of bio2zarr's LAD and LPL that are not missing, keyed by the numbers of alleles in LA."""
    arrays, result = cohort.read_vcz(vcz), {}
    for i, site in enumerate(sites_of(arrays)):
        for sample in samples:
            j = arrays["sample_id"].tolist().index(sample)
            local = [int(a) for a in arrays["call_LA"][i, j] if a >= 0]
            pairs = [tuple(sorted((local[a], local[b]))) for b in range(len(local)) for a in range(b + 1)]
            depths = zip(local, arrays["call_LAD"][i, j].tolist(), strict=False)
            likelihoods = zip(pairs, arrays["call_LPL"][i, j].tolist(), strict=False)
            result[(*site, sample)] = (
                set(local),
                {a: value for a, value in depths if value >= 0},
                {g: value for g, value in likelihoods if value >= 0},
                arrays["call_genotype"][i, j].tolist(),
            )
    return result


@pytest.mark.parametrize("batch", ["reordered", "symbolic"])
@pytest.mark.slow
def test_local_alleles_agree_with_bcftools_merge(tmp_path: Path, batch: str) -> None:
    """Localising and harmonising equals merging and localising."""
    sites, multiallelics = BATCHES[batch]
    samples = ["a", "b", "c", "d", "e"]
    vcf.write_vcf(tmp_path / "old.vcf.gz", vcf_text(STORE_SITES, samples[:3], 1))
    vcf.write_vcf(tmp_path / "new.vcf.gz", vcf_text(sites, samples[3:], 2))
    paths = [str(tmp_path / f"{name}.vcf.gz") for name in ("old", "new")]
    vcf.write_vcf(tmp_path / "merged.vcf.gz", pysam.bcftools.merge("--no-version", "-m", multiallelics, *paths))
    for name in ("old", "new", "merged"):
        vcf.to_vcz(tmp_path / f"{name}.vcf.gz", tmp_path / f"{name}.vcz", 3, 2, 2, local_alleles=True)
    vczstore.append(tmp_path / "old.vcz", tmp_path / "new.vcz", harmonise=True)
    ours, theirs = (by_alleles(tmp_path / f"{name}.vcz", samples) for name in ("old", "merged"))
    assert ours == theirs
    assert sum(len(likelihoods) > 1 for _, _, likelihoods, _ in ours.values()) > 5


@pytest.mark.parametrize(
    ("name", "dims", "number", "expected"),
    [
        ("call_LPL", ("variants", "samples", "FORMAT_LPL_dim"), "", True),
        ("call_LAD_mask", ("variants", "samples", "x"), "", True),
        ("call_XY", ("variants", "samples", "x"), "LG", True),
        ("call_XY", ("variants", "samples", "local_genotypes"), "", True),
        ("call_PL", ("variants", "samples", "genotypes"), "G", False),
        ("call_LAF", ("variants", "samples", "alt_alleles"), "A", False),
    ],
)
def test_is_local(tmp_path: Path, name: str, dims: tuple[str, ...], number: str, expected: bool) -> None:
    root = zarr.create_group(tmp_path / "x")
    array = root.create_array(name, shape=(1, 1, 1), dtype="i1", dimension_names=dims)
    assert is_local(name, array, number) is expected


# ---- fields that cannot be harmonised, and are dropped ---------------------------------------

SITES, SWAPPED = ([Site("chr1", 5, alleles)] for alleles in (("A", "C", "T"), ("A", "T", "C")))


def _without_laa(arrays: dict[str, np.ndarray]) -> None:
    del arrays["call_LAA"]


def _genotypes_mask(arrays: dict[str, np.ndarray]) -> None:
    arrays["call_PL_mask"] = np.zeros((*arrays["call_DP"].shape, 6), dtype=bool)


DROPPED: dict[str, tuple[Callable[..., None], Callable[..., None], list[str], str]] = {
    "no LAA": (_without_laa, _without_laa, ["LAD", "LPL", "LGP", "LGT"], "call_L.. of .* is indexed by local alleles"),
}


@pytest.mark.parametrize(("kind", "impl"), [("format2", "zarr"), ("icechunk", "cubed")])
@pytest.mark.parametrize("case", DROPPED)
@pytest.mark.slow
def test_dropped_fields(tmp_path: Path, kind: str, impl: str, case: str) -> None:
    """The store keeps the array, in which appended samples are missing; all other fields are harmonised."""
    change_store, change_batch, fields, words = DROPPED[case]
    old, batch = localised(SITES, cohort.ids(0, 4), 1), localised(SWAPPED, cohort.ids(10, 5), 2)
    change_store(old)
    change_batch(batch)
    way = Way(kind, impl)
    store = way.make(tmp_path, old, samples_chunk=2)
    cohort.write_vcz(tmp_path / "batch.vcz", batch, samples_chunk=2)
    before = cohort.digest(store)
    refused = (f"^append: {words}", "--drop-field L..|make the source with")
    complain(IncompatibleError, refused, lambda: vczstore.append(store, tmp_path / "batch.vcz", harmonise=True))
    unknown = ("^append: neither the store nor a source has call_XYZ",)
    again = {"harmonise": True, "drop_fields": ["XYZ"]}
    complain(OptionError, unknown, lambda: vczstore.append(store, tmp_path / "batch.vcz", **again))
    assert cohort.digest(store) == before

    backend = {"backend_storage": "icechunk"} if kind == "icechunk" else {}
    options = {"drop_fields": [*fields, "GT"], "impl": impl}
    vczstore.normalise(store, tmp_path / "batch.vcz", tmp_path / "out", **options, **backend)
    dry = vczstore.append(store, tmp_path / "batch.vcz", harmonise=True, dry_run=True, **options)
    assert cohort.digest(store) == before
    assert dry.plan.counts["fields dropped"] == len(fields)
    assert dry.plan.notes["fields"].endswith("dropped: " + ", ".join(sorted(f"call_{name}" for name in fields)))
    result = vczstore.append(store, tmp_path / "batch.vcz", harmonise=True, **options)
    if impl == "cubed":
        assert result.chunks == result.plan.encoded_chunks + result.plan.decoded_chunks
    contents = way.read(store)
    for name in fields:
        values = contents[f"call_{name}"]
        cohort.assert_same({name: values[:, :4]}, {name: old[f"call_{name}"]})
        missing: Any = {"i": -1, "f": cohort.MISSING, "O": "."}[old[f"call_{name}"].dtype.kind]
        fill: Any = {"i": -2, "f": cohort.FILL, "O": ""}[old[f"call_{name}"].dtype.kind]
        expected = np.full(values[:, 4:].shape, fill, dtype=old[f"call_{name}"].dtype)
        expected[(slice(None), slice(None), *[0] * (values.ndim - 2))] = missing
        cohort.assert_same({name: values[:, 4:]}, {name: expected})
    # genotypes can be harmonised, so they are kept although they may be dropped
    swapped = np.where(batch["call_genotype"] > 0, 3 - batch["call_genotype"], batch["call_genotype"])
    np.testing.assert_array_equal(contents["call_genotype"][:, 4:], swapped)
    two = tmp_path / "two"
    two.mkdir()
    other = way.make(two, old, samples_chunk=2)
    vczstore.append(other, tmp_path / "out")
    cohort.assert_same(way.read(other), contents)


@pytest.mark.slow
def test_dropped_by_command_and_by_job(tmp_path: Path) -> None:
    old, batch = localised(SITES, cohort.ids(0, 4), 1), localised(SWAPPED, cohort.ids(10, 5), 2)
    for arrays in (old, batch):
        _without_laa(arrays)
    for name in ("one.vcz", "two.vcz"):
        cohort.write_vcz(tmp_path / name, old)
    cohort.write_vcz(tmp_path / "batch.vcz", batch)
    flags = [x for name in ("LAD", "LPL", "LGP", "call_LGT") for x in ("--drop-field", name)]
    arguments = ("append", tmp_path / "one.vcz", tmp_path / "batch.vcz", *flags)
    assert "or say --harmonise" in run_cli(*arguments, status=1).stderr
    text = run_cli(*arguments, "--harmonise", "--dry-run").stdout
    assert "2 fields by allele" not in text
    assert "1 field by allele, 4 fields dropped" in text
    assert "  fields  by allele: call_genotype; as they are: call_genotype_mask, call_genotype_phased; dropped" in text
    assert "  absent  genotypes missing; of one allele on chrX (haploid contigs: X, chrX, Y, chrY, M, MT, chrM)" in text
    run_cli(*arguments, "--harmonise")
    job = tmp_path / "job.yaml"
    step = "{append: {source: batch.vcz, harmonise: {drop-fields: [LAD, LPL, LGP, LGT]}}}"
    job.write_text(f"store: two.vcz\nsteps: [{step}]\n")
    assert "   fields    by allele: call_genotype; as they are: call_gen" in run_cli("plan", job).stdout
    run_cli("run", job)
    one, two = (cohort.read_vcz(tmp_path / f"{name}.vcz") for name in ("one", "two"))
    cohort.assert_same(one, two)


@pytest.mark.slow
def test_a_store_without_samples_gets_no_dropped_field(tmp_path: Path) -> None:
    batch = localised([*SWAPPED, Site("chr1", 9, ("A", "G"))], cohort.ids(10, 5), 2)
    _without_laa(batch)
    cohort.write_vcz(tmp_path / "batch.vcz", batch)
    cohort.write_vcz(tmp_path / "swapped.vcz", localised(SITES, cohort.ids(0, 2), 1))
    vczstore.create(tmp_path / "store", tmp_path / "swapped.vcz", tmp_path / "batch.vcz")
    fields = ["LAD", "LPL", "LGP", "LGT"]
    vczstore.append(tmp_path / "store", tmp_path / "batch.vcz", harmonise=True, drop_fields=fields)
    contents = cohort.read_vcz(tmp_path / "store")
    assert not {f"call_{name}" for name in fields} & set(contents)
    # another source may drop fields that the store does not have
    dropped = [*fields, "LAA"]
    vczstore.append(tmp_path / "store", tmp_path / "swapped.vcz", harmonise=True, drop_fields=dropped)
    assert cohort.read_vcz(tmp_path / "store")["sample_id"].tolist() == cohort.ids(10, 5) + cohort.ids(0, 2)


@pytest.mark.slow
def test_local_fields_are_not_added_without_their_alleles(tmp_path: Path) -> None:
    """LPL alongside a missing LAA would mean REF alone, so either both are left missing or neither is."""
    old, batch = localised(SITES, cohort.ids(0, 4), 1), localised(SITES, cohort.ids(10, 5), 2)
    _without_laa(batch)
    cohort.write_vcz(tmp_path / "store", old)
    cohort.write_vcz(tmp_path / "batch", batch)
    before = cohort.digest(tmp_path / "store")
    fields: list[str] = []
    for words in ("lacks call_LAA", "call_LAD .*without call_LAA"):
        options = {"harmonise": True, "drop_fields": fields}
        complain(
            IncompatibleError,
            (f"^append: .*{words}",),
            lambda options=options: vczstore.append(tmp_path / "store", tmp_path / "batch", **options),
        )
        fields = ["LAA"]
    assert cohort.digest(tmp_path / "store") == before
    fields = ["LAA", "LAD", "LPL", "LGP", "LGT"]
    vczstore.append(tmp_path / "store", tmp_path / "batch", harmonise=True, drop_fields=fields)
    contents = cohort.read_vcz(tmp_path / "store")
    assert (contents["call_LAA"][:, 4:] == [-1, -2]).all()
    assert (contents["call_LPL"][:, 4:, 0] == -1).all()
    np.testing.assert_array_equal(contents["call_genotype"][:, 4:], batch["call_genotype"])


@pytest.mark.slow
def test_a_mask_of_genotypes_follows_the_values(tmp_path: Path) -> None:
    """The mask itself does not determine how many alleles the genotypes of each call have."""
    old, batch = (make(sites, cohort.ids(10 * i, 3), i) for i, sites in enumerate((SITES, SWAPPED)))
    for name, arrays in (("store", old), ("batch", batch)):
        _genotypes_mask(arrays)
        cohort.write_vcz(tmp_path / name, arrays)
    vczstore.append(tmp_path / "store", tmp_path / "batch", harmonise=True)
    contents = cohort.read_vcz(tmp_path / "store")
    np.testing.assert_array_equal(contents["call_PL_mask"][:, 3:], contents["call_PL"][:, 3:] < 0)


LOCAL_NUMBERS = """##fileformat=VCFv4.5
##contig=<ID=chr1,length=1000>
##FORMAT=<ID=GT,Number=1,Type=String,Description="">
##FORMAT=<ID=LAA,Number=.,Type=Integer,Description="">
##FORMAT=<ID=LAD,Number=LR,Type=Integer,Description="">
##FORMAT=<ID=LEC,Number=LA,Type=Integer,Description="">
##FORMAT=<ID=LPL,Number=LG,Type=Integer,Description="">
##FORMAT=<ID=PSL,Number=P,Type=String,Description="">
"""
COLUMNS = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT")
LOCAL_CALLS = {
    "a": [
        "C,G,T GT:LAA:LAD:LEC:LPL:PSL 0|2:2:5,6:7:9,0,8:k,l",
        "C,G GT:LAA:LAD:LEC:LPL:PSL 1|2:1,2:5,6,7:8,9:1,2,3,4,5,6:m,n",
    ],
    "b": ["G,C GT:LAA:LAD:LEC:LPL:PSL 0|2:2:3,4:5:6,0,7:o,p", "G,C GT:LAA:LAD:LEC:LPL:PSL 0|1:1:3,4:5:6,0,7:q,r"],
}


@pytest.mark.slow
def test_the_numbers_of_local_fields_in_a_vcf(tmp_path: Path) -> None:
    """LA, LR, LG and P, which bio2zarr does not know: local fields stay, and LAA follows the alleles."""
    for sample, calls in LOCAL_CALLS.items():
        lines = ["\t".join([*COLUMNS, sample])]
        for position, record in zip((100, 200), calls, strict=True):
            alts, keys, call = record.split()
            lines.append("\t".join(["chr1", str(position), ".", "A", alts, ".", ".", ".", keys, call]))
        vcf.write_vcf(tmp_path / f"{sample}.vcf.gz", LOCAL_NUMBERS + "\n".join(lines) + "\n")
    sources = [tmp_path / f"{sample}.vcf.gz" for sample in LOCAL_CALLS]
    vczstore.create(tmp_path / "store.vcz", *sources)
    vczstore.append(tmp_path / "store.vcz", *sources, harmonise=True)
    fields = [line.split("\t") for line in vcf.records(vcf.vcztools_view(tmp_path / "store.vcz"))[1:]]
    first, second = (call.split()[2] for call in LOCAL_CALLS["a"])
    assert [(f[4], f[9]) for f in fields] == [("C,G,T", first), ("C,G", second)]
    assert [f[10] for f in fields] == ["0|1:1:3,4:5:6,0,7:o,p", "0|2:2:3,4:5:6,0,7:q,r"]
