"""gVCFs merged into a store, compared with ``bcftools merge --gvcf``, and cases in which the results differ."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import vczstore
from tests.support import cohort, gvcf, vcf
from tests.support.command_line import run
from tests.support.one_sample_vcfs import calls_of

FIELDS = "GT:DP:GQ:MIN_DP:PL"
A = (
    f"1 1000 A <NON_REF> 1099 {FIELDS} 0/0:30:50:20:0,60,900",
    "1 1100 A C,<NON_REF> . GT:DP:GQ:AD:PL 0/1:31:99:10,20,1:500,0,400,600,700,800",
    f"1 1101 G <NON_REF> 1101 {FIELDS} 0/0:32:60:20:0,61,901",
    f"1 1102 T <NON_REF> 1400 {FIELDS} 0/0:33:9:20:0,62,902",
    "1 1401 ACG A,<NON_REF> . GT:DP:GQ:AD:PL 0/1:34:40:3,4,0:50,0,60,70,80,90",
    f"1 1404 T <NON_REF> 2000 {FIELDS} 0/0:35:19:21:0,63,903",
    f"X 1000 T <NON_REF> 2000 {FIELDS} 0:35:19:21:0,63",
)
B = (
    f"1 1000 A <NON_REF> 1049 {FIELDS} 0/0:5:40:3:0,6,90",
    "1 1050 C T,<NON_REF> . GT:DP:GQ:AD:PL 1/1:6:50:0,3,0:90,80,0,60,50,40",
    f"1 1051 A <NON_REF> 1409 {FIELDS} 0/0:7:41:3:0,7,91",
    "1 1410 A T,<NON_REF> . GT:DP:GQ:AD:PL 0|1:6:50:1,3,0:90,0,70,60,50,40",
    "X 1200 A T,<NON_REF> . GT:DP:GQ:AD:PL 1:6:50:1,3,0:90,0,70",
)
C = (
    "1 1300 G T,<NON_REF> . GT:DP:GQ:AD:PL 0/1:6:50:1,3,0:90,0,70,60,50,40",
    "1 1403 G T,<NON_REF> . GT:DP:GQ:AD:PL 0/1:6:50:1,3,0:90,0,70,60,50,40",
    f"1 1404 A <NON_REF> 1420 {FIELDS} ./.:8:12:6:0,0,0",
)


def sources(folder: Path, **batches: tuple[str, ...]) -> list[Path]:
    return [gvcf.make(folder, name, gvcf.text([name], *records)) for name, records in batches.items()]


def start(folder: Path, paths: list[Path], backend: str | None = None, **options: Any) -> Path:
    store = folder / "store"
    vczstore.create(store, *paths, gvcf=True, variants_chunk=2, samples_chunk=2, backend_storage=backend)
    vczstore.append(store, *paths, harmonise=True, gvcf=True, **options)
    return store


def shown(store: Path, *, icechunk: bool = False) -> dict[str, dict[str, str]]:
    """Return the values of each variant by sample and field, without missing ones."""
    text = vcf.vcztools_view(store, icechunk=icechunk)
    return dict(zip(gvcf.sites(store, icechunk=icechunk), calls_of(text), strict=True))


@pytest.mark.parametrize(("backend", "impl"), [(None, "cubed"), (None, "zarr"), ("icechunk", "cubed")])
@pytest.mark.slow
def test_the_store_agrees_with_bcftools_merge(tmp_path: Path, backend: str | None, impl: str) -> None:
    """All fields of one value; in a block, bcftools considers likelihoods of an ALT and <NON_REF> unknown."""
    store = start(tmp_path, sources(tmp_path, a=A, b=B, c=C[:2]), backend, impl=impl)

    def plain(calls: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        return {
            site: {key: value for key, value in values.items() if key.partition(":")[2] not in ("PL", "AD")}
            for site, values in calls.items()
        }

    ours, theirs = plain(shown(store, icechunk=backend is not None)), plain(gvcf.merged(tmp_path, "a", "b", "c"))
    assert len(ours) == 7
    assert ours == theirs
    assert ours["1 1300 G T"]["a:DP"] == "33"


@pytest.mark.slow
def test_vectors_of_blocks_are_those_of_the_unseen_allele(tmp_path: Path) -> None:
    calls = shown(start(tmp_path, sources(tmp_path, a=A, b=B, c=C)))
    # a block of ./., whose likelihoods bcftools keeps, is no call
    assert "c:PL" not in calls["1 1410 A T"]
    assert calls["1 1050 C T"]["a:PL"] == "0,60,900"
    assert calls["1 1100 A C"]["b:PL"] == "0,7,91"
    assert calls["X 1200 A T"] == {
        **{"a:GT": "0", "a:DP": "35", "a:GQ": "19", "a:MIN_DP": "21", "a:PL": "0,63"},
        **{"b:GT": "1", "b:DP": "6", "b:GQ": "50", "b:AD": "1,3", "b:PL": "90,0"},
    }
    assert calls["1 1403 G T"] == {
        **{"b:GT": "0/0", "b:DP": "7", "b:GQ": "41", "b:MIN_DP": "3", "b:PL": "0,7,91"},
        **{"c:GT": "0/1", "c:DP": "6", "c:GQ": "50", "c:AD": "1,3", "c:PL": "90,0,70"},
    }
    assert calls["1 1410 A T"]["b:GT"] == "0|1"


@pytest.mark.slow
def test_alleles_that_a_record_lacks_get_the_values_of_the_unseen_allele(tmp_path: Path) -> None:
    first = "1 1000 A C,T,<NON_REF> . GT:AD:PL 1/2:1,2,3,4:0,1,2,3,4,5,6,7,8,9"
    second = "1 1000 A C,<NON_REF> . GT:AD:PL 0/1:5,6,7:10,11,12,13,14,15"
    third = "1 1000 A <NON_REF> 1000 GT:AD:PL 0/0:8,9:20,21,22"
    fourth = "1 1000 A C,<NON_REF> . GT:AD:PL 1/2:5,6,7:10,11,12,13,14,15"
    calls = shown(start(tmp_path, sources(tmp_path, a=(first,), b=(second,), c=(third,), d=(fourth,))))
    assert calls == {
        "1 1000 A C,T": {
            **{"a:GT": "1/2", "a:AD": "1,2,3", "a:PL": "0,1,2,3,4,5"},
            **{"b:GT": "0/1", "b:AD": "5,6,7", "b:PL": "10,11,12,13,14,15"},
            **{"c:GT": "0/0", "c:AD": "8,9,9", "c:PL": "20,21,22,21,22,22"},
            **{"d:GT": "1/.", "d:AD": "5,6,7", "d:PL": "10,11,12,13,14,15"},
        }
    }


@pytest.mark.slow
def test_a_deletion_that_spans_a_variant_leaves_it_missing(tmp_path: Path) -> None:
    """With any value of `absent`, and although a block began before the variant."""
    a = (f"1 1000 A <NON_REF> 1100 {FIELDS} 0/0:30:50:20:0,60,900", "1 1010 AAA A,<NON_REF> . GT:DP 0/1:7")
    b = (
        "1 1011 A C,<NON_REF> . GT:DP 0/1:8",
        "1 1013 A C,<NON_REF> . GT:DP 0/1:9",
        "1 2013 A C,<NON_REF> . GT:DP 0/1:9",
    )
    calls = shown(start(tmp_path, sources(tmp_path, a=a, b=b), absent="reference"))
    assert calls["1 1011 A C"] == {"b:GT": "0/1", "b:DP": "8"}
    assert calls["1 1013 A C"]["a:DP"] == "30"
    assert calls["1 2013 A C"]["a:GT"] == "0/0"  # no record reaches it


@pytest.mark.slow
def test_blocks_below_a_quality_are_missing(tmp_path: Path) -> None:
    paths = sources(tmp_path, a=A, b=B, c=C)
    store = tmp_path / "store"
    run("create", "--gvcf", store, *paths)
    run("append", "--harmonise", "--gvcf", "--min-gq", "20", "--absent", "reference", store, *paths)
    calls = shown(store)
    assert not [key for key in calls["1 1300 G T"] if key.startswith("a:")]  # GQ is 9
    assert calls["1 1050 C T"]["a:GT"] == "0/0"  # GQ is 50
    assert calls["1 1300 G T"]["b:DP"] == "7"


@pytest.mark.slow
def test_a_job_accepts_gvcfs(tmp_path: Path) -> None:
    paths = sources(tmp_path, a=A, b=B)
    run("create", "--gvcf", tmp_path / "store", *paths)
    job = {
        "store": str(tmp_path / "store"),
        "steps": [{"append": {"source": [str(path) for path in paths], "harmonise": {"gvcf": True, "min-gq": 20}}}],
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    run("run", tmp_path / "job.json")
    calls = shown(tmp_path / "store")
    assert calls["1 1050 C T"]["a:DP"] == "30"
    assert "a:DP" not in calls["1 1410 A T"]  # GQ is 19


@pytest.mark.slow
def test_blocks_supply_the_calls_of_a_later_batch(tmp_path: Path) -> None:
    """They do so at variants of an earlier batch; variants that the store lacks may be left out."""
    first, second = sources(tmp_path, b=B, a=A)
    store = tmp_path / "store.vcz"
    vczstore.create(store, first, gvcf=True, variants_chunk=2, samples_chunk=1)
    vczstore.append(store, first, harmonise=True, gvcf=True)
    before = cohort.digest(store)
    stderr = run("append", "--harmonise", "--gvcf", store, second, status=1).stderr
    assert "2 of the 2 variants of" in stderr
    assert "1:1100 A/C,<NON_REF>" in stderr
    assert cohort.digest(store) == before
    result = vczstore.append(store, second, harmonise=True, gvcf=True, new_variants="drop")
    assert (result.counts["variants dropped"], result.counts["reference blocks"]) == (2, 5)
    assert [calls.get("a:DP") for calls in shown(store).values()] == ["30", "35", "35"]


@pytest.mark.slow
def test_normalise_accepts_gvcfs(tmp_path: Path) -> None:
    first, second = sources(tmp_path, b=B, a=A)
    store, out = tmp_path / "store.vcz", tmp_path / "out.vcz"
    vczstore.create(store, first, gvcf=True)
    vczstore.append(store, first, harmonise=True, gvcf=True)
    vczstore.normalise(store, second, out, gvcf=True, new_variants="drop")
    assert [calls.get("a:DP") for calls in shown(out).values()] == ["30", "35", "35"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("0/0:1,2,3,4:0,1,2", "call_AD has 4 values at variant 0 of .*, 1:1000 A/<NON_REF>, whose 2 alleles take 2"),
        ("0/0:1,2:0,1,2,3", "call_PL has 4 values at variant 0"),
        ("0/3:1,2:0,1,2", "call_genotype has allele 3 at variant 0"),
    ],
)
def test_values_of_blocks_that_do_not_fit_are_refused(tmp_path: Path, call: str, words: str) -> None:
    wide = "1 1200 A C,T,G,<NON_REF> . GT:AD:PL 0/0:1,2,3,4,5:0,1,2,3,4,5,6,7,8,9,10,11,12,13,14"
    b = gvcf.make(tmp_path, "b", gvcf.text(["b"], "1 1100 A C,<NON_REF> . GT:AD:PL 0/1:1,2,3:0,1,2,3,4,5"))
    text = gvcf.text(["a"], "1 1000 A <NON_REF> 1150 GT:AD:PL 0/0:1,2:0,1,2", wide)
    a = gvcf.make(tmp_path, "a", text.replace("0/0:1,2:0,1,2\n", f"{call}\n", 1))
    store = tmp_path / "store.vcz"
    vczstore.create(store, a, b, gvcf=True)
    before = cohort.digest(store)
    stderr = run("append", "--harmonise", "--gvcf", store, a, b, status=1).stderr
    assert re.search(words, stderr), stderr
    assert cohort.digest(store) == before
