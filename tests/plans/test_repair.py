"""Repair leftovers of killed operations on plain Zarr, compared with a NumPy model; other errors are only reported."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import vczstore
from plans.compilers.remove import compile_repair
from plans.core.memory import Memory
from tests.support import cohort
from tests.support.command_line import run
from tests.support.killed import killed
from tests.support.refusals import complain
from vczstore.errors import MemoryLimitError, NotAStoreError, SampleError
from vczstore.stores.resolve import open_store
from vczstore.vcz.zarr_objects import LOCK

FIELDS = ("sample_id", "contig_id", "variant_contig", "variant_position", "variant_allele", "call_FT", "call_genotype")
LAYOUTS: dict[str, dict[str, Any]] = {
    "format2": {"zarr_format": 2},
    "format2-consolidated": {"zarr_format": 2, "consolidated": True},
    "format3": {},
    "format3-consolidated": {"consolidated": True},
}

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata")


def some(samples: list[str], seed: int = 0) -> dict[str, np.ndarray]:
    arrays = cohort.make_arrays(10, samples, seed=seed)
    return {name: arrays[name] for name in FIELDS}


OLD, NEW = some(cohort.ids(0, 7)), some(cohort.ids(7, 5), seed=1)
WHOLE = cohort.expected_append(OLD, NEW)


def read(store: Path) -> dict[str, np.ndarray]:
    """Read a store through its consolidated metadata, and check that these agree with the arrays."""
    contents = cohort.read_vcz(store)
    group = zarr.open_group(store, mode="r")
    cohort.assert_same({name: np.asarray(array[...]) for name, array in group.arrays()}, contents)
    return contents


@pytest.fixture(params=LAYOUTS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    cohort.write_vcz(tmp_path / "store.vcz", OLD, **LAYOUTS[request.param])
    return tmp_path / "store.vcz"


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    cohort.write_vcz(tmp_path / "batch.vcz", NEW)
    return tmp_path / "batch.vcz"


# ---- killed operations ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("store", ["format2-consolidated", "format3"], indirect=True)
def test_append_killed(store: Path, batch: Path, tmp_path: Path) -> None:
    """
    After a kill between edits, a repair leaves the old samples or all of them, and the same append completes them.

    Each edit consists of two changes to the file system, which follow those of the chunks.
    """
    code = f"import vczstore; vczstore.append(store, {str(batch)!r}, impl='zarr')"
    consolidated = zarr.open_group(store, mode="r").metadata.consolidated_metadata is not None
    repairs, stores = set[str](), killed(store, tmp_path / "killed", code, last=10)
    for place in stores:
        (place / "sample_id" / LOCK).unlink(missing_ok=True)  # held by a dead process
        before, ids = cohort.digest(place), zarr.open_array(place / "sample_id", mode="r")[...]
        expected = OLD if len(ids) == 7 else WHOLE
        dry = vczstore.repair(place, dry_run=True, quick=True)
        assert dry.ok
        assert cohort.digest(place) == before
        result = vczstore.repair(place, quick=True)
        assert (result.ok, result.done) == (True, dry.done)
        if not result.done:
            assert cohort.digest(place) == before
        repairs.update(result.done)
        cohort.assert_same(read(place), expected)
        assert not list(place.rglob("*.partial"))
        assert vczstore.repair(place, quick=True).done == ()
        if expected is OLD:
            vczstore.append(place, batch, impl="zarr")
        else:
            with pytest.raises(SampleError, match="already"):
                vczstore.append(place, batch, impl="zarr")
        cohort.assert_same(read(place), WHOLE)
    assert vczstore.verify(stores[0]).ok
    what = ["an append that was stopped is undone", "consolidated metadata that were stale are rewritten"]
    assert [any(text.startswith(begin) for text in repairs) for begin in what] == [True, consolidated]
    assert any("half-written" in text for text in repairs)


@pytest.mark.slow
def test_job_killed(tmp_path: Path, batch: Path) -> None:
    """The ledger contains the pending batch, which the next run of the job recognises."""
    cohort.write_vcz(tmp_path / "store.vcz", OLD)
    job = tmp_path / "job.yaml"
    job.write_text(f"store: {tmp_path / 'store.vcz'}\nexecutor: single-threaded\nsteps:\n- append: {batch}\n")
    code = f"from vczstore.jobs.run import run_job; run_job({str(job)!r}, [f'store={{store}}'])"
    n_undone = 0
    for place in killed(tmp_path / "store.vcz", tmp_path / "killed", code, last=16, step=4):
        result = vczstore.repair(place, quick=True)
        assert result.ok
        n_undone += len(result.done)
        vczstore.run_job(job, [f"store={place}"])
        cohort.assert_same(read(place), WHOLE)
        assert vczstore.run_job(job, [f"store={place}"]).status == "nothing to do"
    assert n_undone > 0


@pytest.mark.slow
@pytest.mark.parametrize("edits", [1, 2])
def test_the_report_of_a_repair(store: Path, batch: Path, edits: int) -> None:
    plan, place = vczstore.plan("append", store, batch), zarr.storage.LocalStore(store)
    for write in plan.writes:
        write.by_zarr(place)
    for edit in plan.edits[:edits]:
        edit.apply(place)
    before = cohort.digest(store)
    longer = "call_FT" if edits == 1 else "call_FT, call_genotype"
    begin = f"an append that was stopped is undone: {longer} had 12 samples"
    what = f"{begin}, sample_id has 7; the same append brings them in"
    dry = run("repair", store, "--dry-run", "--json")
    assert cohort.digest(store) == before
    report = {"ok": True, "store": str(store), "done": [what], "errors": [], "note": ""}
    assert json.loads(dry.stdout) == {**report, "dry_run": True}
    assert run("repair", store).stdout == f"repair {store}: 1 repaired\n  repaired {what}\n"
    pattern = rf"repair {store}: nothing to repair; \d+ chunks that no reader sees are left of a stopped append; "
    assert re.fullmatch(rf"{pattern}vczstore gc {store} deletes them\n", run("repair", store).stdout)
    run("gc", store)
    assert run("repair", store).stdout == f"repair {store}: nothing to repair\n"


# ---- stale consolidated metadata ------------------------------------------------------------


def stale(store: Path, what: str) -> None:
    """Change a store like a program that ignores consolidated metadata."""
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    match what:
        case "attributes":
            group.attrs["owner"] = "biobank"
        case "attributes of an array":
            group["call_FT"].attrs["description"] = "Filters"
        case "an array more":
            array = group.create_array("variant_DP", shape=(10,), dtype="i4", chunks=(4,), **_named(store))
            array[...] = np.arange(10)
        case "an array less":
            shutil.rmtree(store / "contig_id")
        case "nonsense":
            if (store / ".zmetadata").exists():
                (store / ".zmetadata").write_text('{"metadata": ')
            else:
                document = json.loads((store / "zarr.json").read_text())
                document["consolidated_metadata"]["metadata"] = {"call_FT": 7}
                (store / "zarr.json").write_text(json.dumps(document))


def _named(store: Path) -> dict[str, Any]:
    if (store / "zarr.json").exists():
        return {"dimension_names": ["variants"]}
    return {"attributes": {"_ARRAY_DIMENSIONS": ["variants"]}}


@pytest.mark.slow
@pytest.mark.parametrize("store", ["format2-consolidated", "format3-consolidated"], indirect=True)
@pytest.mark.parametrize("what", ["attributes", "attributes of an array", "an array more", "an array less", "nonsense"])
def test_stale_consolidated_metadata(store: Path, what: str) -> None:
    stale(store, what)
    if what == "attributes" and (store / "zarr.json").exists():
        assert vczstore.repair(store).done == ()  # these lie in the same document as the originals
        return
    before = cohort.digest(store)
    assert not vczstore.verify(store, quick=True).ok
    dry = vczstore.repair(store, dry_run=True)
    assert cohort.digest(store) == before
    result = vczstore.repair(store)
    assert (result.ok, result.done, dry.done) == (True, dry.done, result.done)
    assert len(result.done) == 1
    after = cohort.digest(store)
    key = ".zmetadata" if (store / ".zmetadata").exists() else "zarr.json"
    assert {name for name in after if after[name] != before[name]} == {key}
    read(store)
    plain, consolidated = (zarr.open_group(store, mode="r", use_consolidated=use) for use in (False, True))
    assert consolidated.attrs.asdict() == plain.attrs.asdict()
    for name, array in plain.arrays():
        assert consolidated[name].attrs.asdict() == array.attrs.asdict()


# ---- errors that are not repaired -----------------------------------------------------------


def resize(store: Path, name: str, n: int) -> None:
    array = zarr.open_array(store / name, mode="r+")
    array.resize((10, n, *array.shape[2:]))


def cut(store: Path) -> None:
    chunk = next(
        path
        for path in sorted((store / "call_genotype").rglob("*"))
        if path.is_file() and "zarr" not in path.name and not path.name.startswith(".")
    )
    chunk.write_bytes(chunk.read_bytes()[:-4])


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "shorter": (lambda store: resize(store, "call_FT", 6), "call_FT"),
    "not the first by name": (lambda store: resize(store, "call_genotype", 9), "call_genotype"),
    "of two lengths": (lambda store: [resize(store, "call_FT", 9), resize(store, "call_genotype", 8)], "call_FT"),
    "a chunk that is cut off": (cut, "call_genotype"),
}


@pytest.mark.slow
@pytest.mark.parametrize("store", ["format2", "format3"], indirect=True)
@pytest.mark.parametrize("name", OTHERS)
def test_other_errors_are_named(store: Path, name: str) -> None:
    damage, array = OTHERS[name]
    damage(store)
    before = cohort.digest(store)
    errors = vczstore.verify(store).errors
    assert errors
    for options in ([], ["--dry-run"]):
        text, as_json = (run("repair", store, *more, *options, status=1) for more in ([], ["--json"]))
        assert [d["array"] for d in json.loads(as_json.stdout)["errors"]] == [d.array for d in errors]
        assert "left that repair does not fix" in text.stdout
        assert f"error {array}" in text.stdout
    assert cohort.digest(store) == before


@pytest.mark.slow
@pytest.mark.parametrize("store", ["format2-consolidated"], indirect=True)
def test_one_error_is_repaired_and_another_is_not(store: Path) -> None:
    stale(store, "attributes")
    cut(store)
    dry = vczstore.repair(store, dry_run=True)
    result = vczstore.repair(store)
    assert (dry.done, dry.errors) == (result.done, result.errors)
    assert len(result.done) == len(result.errors) == 1
    assert vczstore.repair(store, quick=True).ok  # `quick` skips chunks


@pytest.mark.slow
def test_icechunk(tmp_path: Path) -> None:
    cohort.write_icechunk(tmp_path / "store.vcz", OLD)
    before = cohort.digest(tmp_path / "store.vcz")
    text = run("repair", tmp_path / "store.vcz").stdout
    assert "nothing to repair; Icechunk commits all or nothing" in text
    assert cohort.digest(tmp_path / "store.vcz") == before


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError, match="no such file"):
        vczstore.repair(tmp_path / "store.vcz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_too_little_memory(tmp_path: Path) -> None:
    cohort.write_vcz(tmp_path / "store.vcz", OLD)
    zarr.open_array(tmp_path / "store.vcz" / "sample_id", mode="r+")[2] = ""
    store, memory = open_store(tmp_path / "store.vcz"), Memory(allowed=300_001_000)
    words = ["^repair: a task needs", "--allowed-mem"]
    complain(MemoryLimitError, words, lambda: compile_repair(store, store.open(), ["call_genotype"], memory))


def test_in_memory() -> None:
    memory = zarr.storage.MemoryStore()
    cohort.write_vcz(memory, OLD, zarr_format=2, consolidated=True)
    zarr.open_group(memory, mode="r+", use_consolidated=False).attrs["owner"] = "biobank"
    assert len(vczstore.repair(memory).done) == 1
    assert vczstore.verify(memory).ok


@pytest.mark.parametrize("impl", ["cubed", "zarr"])
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.slow
def test_an_append_that_lacks_only_its_consolidation(tmp_path: Path, zarr_format: int, impl: str) -> None:
    """Appending the same samples completes it; other samples with the same IDs are refused."""
    old, new = cohort.make_arrays(10, cohort.ids(0, 5)), cohort.make_arrays(10, cohort.ids(5, 4), seed=3)
    store = tmp_path / "store"
    cohort.write_vcz(store, old, zarr_format=zarr_format, consolidated=True)
    key = ".zmetadata" if zarr_format == 2 else "zarr.json"
    old_metadata = (store / key).read_bytes()
    cohort.write_vcz(tmp_path / "batch", new)
    vczstore.append(store, tmp_path / "batch", impl=impl)
    (store / key).write_bytes(old_metadata)
    before = cohort.digest(store)
    for name in ("call_DP", "call_FT", "sample_pca"):
        other = {**new, name: cohort.make_arrays(10, cohort.ids(5, 4), seed=4)[name]}
        cohort.write_vcz(tmp_path / name, other)
        with pytest.raises(SampleError, match=f"has all of these samples already, with other values of {name}"):
            vczstore.append(store, tmp_path / name, impl=impl)
        assert cohort.digest(store) == before
    result = vczstore.append(store, tmp_path / "batch", impl=impl)
    assert result.counts["stopped append completed"] == 1
    cohort.assert_same(cohort.read_vcz(store), cohort.expected_append(old, new))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr warns that consolidated metadata of format 3 are not specified yet
        group = zarr.open_group(store, mode="r", use_consolidated=True)
    assert {group[name].shape[dims.index("samples")] for name, dims in samples_of(new)} == {9}


def samples_of(arrays: dict[str, np.ndarray]) -> list[tuple[str, tuple[str, ...]]]:
    """Return names and dimensions of the arrays with a samples dimension."""
    return [(name, cohort.DIMENSIONS[name]) for name in arrays if "samples" in cohort.DIMENSIONS[name]]
