"""`diff` of two states of a store, or of two stores, compared with a plain model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import vczstore
from plans.maintenance.compare_values import CompareColumn
from tests.support import cohort
from tests.support.command_line import fails, run
from tests.support.refusals import complain
from tests.support.small_stores import edit, put, repository_of
from tests.support.ways import FLEXIBLE, WRITTEN, Way
from vczstore.errors import IncompatibleError, OptionError, TagError, VczstoreError
from vczstore.vcz import arrays

FIELDS = ("sample_sex", "call_genotype", "call_DP", "call_AD", "call_GL", "call_FT")
OLD = cohort.make_arrays(10, cohort.ids(0, 7), fields=FIELDS)


def changed_copy() -> dict[str, np.ndarray]:
    """Return OLD with other samples, variants, values, orders of samples and alleles, and longer vectors."""
    new = {name: values.copy() for name, values in cohort.make_arrays(10, cohort.ids(0, 7), fields=FIELDS).items()}
    new["call_DP"][2, 2] += 1
    new["call_DP"][5, 3] += 1  # of a sample that is dropped
    new["call_DP"][7, 2] += 1  # of a variant that is dropped
    new["call_DP"][6, 2] += 1  # of a variant with alleles in another order
    new["call_genotype"][:] = new["call_genotype"][..., ::-1]
    new["call_GL"][4, 6, :2] = cohort.MISSING, 99
    new["call_FT"][1, 0] += "x"
    new["sample_sex"][5] += 1
    new["variant_AC"][3] += 1
    new["filter_id"][1] = "q20"
    new["call_AD"] = np.pad(new["call_AD"], ((0, 0), (0, 0), (0, 1)), constant_values=-2)
    new["call_AD"][8, 4, 2] = 7
    new["variant_allele"] = np.pad(new["variant_allele"], ((0, 0), (0, 1)), constant_values="")
    new["variant_allele"][6] = [new["variant_allele"][6, 0], "TTT", new["variant_allele"][6, 1]]
    new["call_genotype"][6] = np.where(new["call_genotype"][6] == 1, 2, new["call_genotype"][6])
    new["call_genotype"][9, 0, 0] = 1 - max(0, new["call_genotype"][9, 0, 0])
    rows, samples = [0, 1, 2, 3, 4, 5, 6, 8, 9], [6, 0, 1, 2, 4, 5]
    for name, values in new.items():
        dims = cohort.DIMENSIONS[name]
        cut = values[rows] if dims[0] == "variants" else values
        new[name] = np.take(cut, samples, axis=dims.index("samples")) if "samples" in dims else cut
    new["sample_id"][2] = "S0101"  # was S0001
    return new


def model(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, int]:
    """Count the values that differ, cell by cell, with variants matched by position and samples by ID."""
    rows = [
        (i, b["variant_position"].tolist().index(p))
        for i, p in enumerate(a["variant_position"].tolist())
        if p in b["variant_position"]
    ]
    ids = b["sample_id"].tolist()
    samples = [(i, ids.index(s)) for i, s in enumerate(a["sample_id"].tolist()) if s and s in ids]

    def cell(values: np.ndarray, arrays: dict[str, np.ndarray], name: str, row: int, *sample: int) -> list[object]:
        elements = np.atleast_1d(values[(row, *sample)]).tolist()
        if values.dtype.kind == "f":
            return [x for x in np.atleast_1d(values[(row, *sample)]).view("u4").tolist() if x != 0x7F800002]
        if name == "call_genotype":
            return sorted(arrays["variant_allele"][row, x] if x >= 0 else str(x) for x in elements)  # none is phased
        return [x for x in elements if x != -2]

    result = {}
    for name in FIELDS[1:]:
        kept = [(i, j) for i, j in rows if name not in ("call_AD", "call_GL") or i != 6]
        result[name] = sum(
            cell(a[name], a, name, i, s) != cell(b[name], b, name, j, t) for i, j in kept for s, t in samples
        )
    result["sample_sex"] = sum(int(a["sample_sex"][s] != b["sample_sex"][t]) for s, t in samples)
    result |= {name: int(a[name].tolist() != b[name].tolist()) for name in ("contig_id", "filter_id")}
    result["variant_AC"] = sum(int(a["variant_AC"][i] != b["variant_AC"][j]) for i, j in rows)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*WRITTEN, *FLEXIBLE])
def test_two_stores(kind: str, tmp_path: Path) -> None:
    a, b = OLD, changed_copy()
    first = Way(kind, "cubed").make(tmp_path, a)
    cohort.write_vcz(tmp_path / "other.vcz", b, variants_chunk=3, samples_chunk=4)
    report = json.loads(run("diff", first, tmp_path / "other.vcz", "--ids", "--json").stdout)
    expected = model(a, b)
    changes = {**dict.fromkeys([*FIELDS, "variant_AC", "filter_id"], 1), "call_DP": 2, "contig_id": 0}
    assert expected == changes, "the model sees what the test has changed"
    assert report["not_compared"] == ["call_AD", "call_GL"]
    assert report["changed"] == dict(sorted(expected.items()))
    samples, variants = (
        [report[f"{what}_{side}"] for side in ("in", "out", "common")] for what in ("samples", "variants")
    )
    assert (samples, variants, report["variants_realigned"]) == ([1, 2, 5], [0, 1, 9], 1)
    assert (report["ids_in"], report["ids_out"], report["same"]) == (["S0101"], ["S0001", "S0003"], False)
    back = vczstore.diff(tmp_path / "other.vcz", first)
    assert (back.samples_in, back.variants_in, dict(back.changed)) == (2, 1, report["changed"])


def test_fields_of_samples_are_read_chunk_by_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as kept reference blocks, which may be as large as genotypes."""
    rng = np.random.default_rng(1)
    names = ["s1", "s2", "s3", "s4", "s5"]
    ours, theirs = (
        {name: rng.integers(0, 9, shape).astype("i4") for name in names}
        for shape in ((7, 2), (9, 2))  # the axis of blocks may differ in length
    )
    for name, at in (("s1", 0), ("s2", 6), ("s4", 8)):
        theirs[name][:7] = ours[name]
        theirs[name][7:] = -2
        theirs[name][at, 1] += 1
    theirs["s5"][:7], theirs["s5"][7:] = ours["s5"], -2
    stores = tmp_path / "a", tmp_path / "b"
    for path, values, order, chunks in (
        (stores[0], ours, names, (2, 3, 2)),
        (stores[1], theirs, names[::-1], (3, 2, 1)),
    ):
        cohort.write_vcz(path, cohort.make_arrays(3, order))
        contents = np.stack([values[name] for name in order])
        array = zarr.open_group(path).create_array(
            "sample_blocks", shape=contents.shape, chunks=chunks, dtype="i4", dimension_names=["samples", "blocks", "x"]
        )
        array[:] = contents
    sizes = []
    read = arrays.read_normalised

    def read_and_record(array: Any, region: tuple[slice, ...]) -> np.ndarray:
        values = read(array, region)
        sizes.append(values.size if array.path == "sample_blocks" else 0)
        return values

    monkeypatch.setattr(arrays, "read_normalised", read_and_record)
    n_differing = vczstore.diff(*stores).changed["sample_blocks"]
    assert n_differing == 4  # all but s5: in s3 any value may differ
    assert 0 < max(sizes) <= 2 * 3 * 2


@pytest.mark.slow
def test_states_of_a_repository(tmp_path: Path) -> None:
    store = Way("icechunk", "cubed").make(tmp_path, OLD)
    vczstore.tag(store, "v1")
    cohort.write_vcz(tmp_path / "batch.vcz", cohort.make_arrays(10, cohort.ids(7, 2), fields=FIELDS, seed=1))
    recalled = cohort.make_arrays(10, cohort.ids(3, 1), fields=FIELDS, seed=2)
    cohort.write_vcz(tmp_path / "recalled.vcz", recalled)
    vczstore.append(store, tmp_path / "batch.vcz")
    vczstore.tag(store, "v2")
    vczstore.update(store, tmp_path / "recalled.vcz")
    vczstore.remove(store, "S0001")
    report = vczstore.diff(store, at="v1")
    n = int((recalled["call_DP"][:, 0] != OLD["call_DP"][:, 3]).sum())
    assert (report.samples_in, report.samples_out, report.samples_common, report.variants_common) == (2, 1, 6, 10)
    assert report.changed["call_DP"] == n > 5
    assert report.changed["variant_AC"] == 0
    assert vczstore.diff(store, at="v1", to="v2").changed["call_DP"] == 0
    text = run("diff", store, "--at", "v2", "--exit-code", status=1).stdout
    assert "  samples   0 in, 1 out, 8 in both\n  variants  0 in, 0 out, 10 in both\n" in text
    assert f"  changed   {n} calls of call_DP\n" in text
    assert "no difference" in run("diff", store, store, "--exit-code").stdout


@pytest.mark.slow
def test_chunks_of_a_repository_that_are_the_same_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of unchanged columns can be deleted. Only the chunks of this field are files; others are inlined."""
    store = Way("icechunk", "cubed").make(tmp_path, OLD)
    wide, dimensions = np.arange(7000).reshape(10, 7, 100), ("variants", "samples", "more")
    edit(store, put("call_PL", wide, dimensions, compressors=None))
    vczstore.tag(store, "v1")
    chunks = [*(store / "chunks").iterdir()]
    monkeypatch.setitem(cohort.DIMENSIONS, "call_PL", dimensions)
    cohort.write_vcz(tmp_path / "recalled.vcz", {**cohort.select(OLD, ["S0004"]), "call_PL": 0 * wide[:, :1]})
    vczstore.update(store, tmp_path / "recalled.vcz")
    others = [path for path in chunks if np.frombuffer(path.read_bytes(), "i8")[0] % 700 != 300]
    assert (len(chunks), len(others)) == (9, 6)
    for path in others:
        path.unlink()
    scanned = []
    readers = CompareColumn.readers

    def counted(scan: CompareColumn, *args: Any) -> Any:
        scanned.append((scan.name, None if scan.here is None else scan.here.tolist()))
        return readers(scan, *args)

    monkeypatch.setattr(CompareColumn, "readers", counted)
    assert vczstore.diff(store, at="v1").changed["call_PL"] == 10
    assert ("call_PL", [3, 4, 5]) in scanned, "S0004 is in the second column of three"
    assert {columns[0] for _, columns in scanned} == {3}


@pytest.mark.slow
def test_a_damaged_log_is_an_error(tmp_path: Path) -> None:
    """All chunks are compared only if snapshots between the two states have expired."""
    store = Way("icechunk", "cubed").make(tmp_path, OLD)
    vczstore.tag(store, "v1")
    for name in ("call_DP", "call_AD"):
        edit(store, put(name, OLD[name] + 1, cohort.DIMENSIONS[name]))
    logs = {path: path.read_bytes() for path in (store / "transactions").iterdir()}
    for path in logs:
        path.write_bytes(b"")
    for call in (vczstore.diff, vczstore.restore):
        with pytest.raises(VczstoreError, match="invalid icechunk header size"):
            call(store, "v1") if call is vczstore.restore else call(store, at="v1")
    for path, content in logs.items():
        path.write_bytes(content)
    repository = repository_of(store)
    last = next(iter(repository.ancestry(branch="main")))
    assert len(repository.expire_snapshots(last.written_at)) == 1, "the tagged one stays"
    assert vczstore.diff(store, at="v1").changed["call_DP"] == 70


def test_fields_that_cannot_be_compared(tmp_path: Path) -> None:
    cohort.write_vcz(tmp_path / "a", OLD)
    b = {name: values for name, values in OLD.items() if name != "call_FT"}
    b |= {"call_DP": OLD["call_DP"].astype("f4"), "dosage": OLD["call_GL"][..., 0]}
    cohort.write_vcz(tmp_path / "b", b, zarr_format=2)
    text = run("diff", tmp_path / "a", tmp_path / "b", "--executor", "single-threaded").stdout
    for what in ("in: dosage", "out: call_FT", "not compared: call_DP"):
        assert f"  fields    {what}\n" in text
    assert "changed" not in text


@pytest.mark.slow
def test_filters_phase_and_attributes(tmp_path: Path) -> None:
    genotype = np.tile(np.array([0, 1], "i1"), (10, 7, 1))
    phased = np.zeros((10, 7), bool)
    phased[3] = True
    a = {**OLD, "call_genotype": genotype, "call_genotype_phased": phased}
    a["variant_filter"] = np.ones((10, 2), bool)
    b = {**a, "call_genotype": genotype[..., ::-1].copy()}
    cohort.write_vcz(tmp_path / "a", a)
    cohort.write_vcz(tmp_path / "b", b)
    report = vczstore.diff(tmp_path / "a", tmp_path / "b")
    assert {name: n for name, n in report.changed.items() if n} == {"call_genotype": 7}, "where it is phased"
    cohort.write_vcz(tmp_path / "c", {**a, "filter_id": np.array(["PASS", "q20"], dtype=object)})
    zarr.open_group(tmp_path / "c").attrs.update({"source": "another", "vczstore_x": 1})
    text = run("diff", tmp_path / "a", tmp_path / "c", "--exit-code", status=1).stdout
    for line in (
        "fields    not compared: variant_filter",
        "changed   1 values of filter_id",
        "changed   attributes: source",
    ):
        assert f"  {line}\n" in text


def test_chunks_of_the_same_bytes_are_not_decoded(tmp_path: Path) -> None:
    cohort.write_vcz(tmp_path / "a", OLD)
    (tmp_path / "a" / "call_DP" / "c" / "0" / "0").write_bytes(b"no chunk")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert vczstore.diff(tmp_path / "a", tmp_path / "b").is_same


@pytest.mark.parametrize("samples", [0, 2])
def test_stores_without_variants_or_samples(samples: int, tmp_path: Path) -> None:
    for name, n in (("a", 0), ("b", 4)):
        cohort.write_vcz(tmp_path / name, cohort.make_arrays(n, cohort.ids(0, samples), fields=FIELDS))
    report = vczstore.diff(tmp_path / "a", tmp_path / "b")
    assert (report.variants_in, report.variants_out, report.samples_common) == (4, 0, samples)
    assert vczstore.diff(tmp_path / "b", tmp_path / "a").variants_out == 4
    assert vczstore.diff(tmp_path / "b", tmp_path / "b").is_same


def test_refusals(tmp_path: Path) -> None:
    unsorted = {**OLD, "variant_position": OLD["variant_position"][::-1].copy()}
    cohort.write_vcz(tmp_path / "a", OLD)
    cohort.write_vcz(tmp_path / "b", unsorted)
    complain(OptionError, ("^diff: name another store",), lambda: vczstore.diff(tmp_path / "a"))
    complain(TagError, ("^diff: .*plain Zarr",), lambda: vczstore.diff(tmp_path / "a", at="v1"))
    complain(IncompatibleError, ("^diff: .*sorted",), lambda: vczstore.diff(tmp_path / "a", tmp_path / "b"))
    assert "no such file" in fails("diff", tmp_path / "a", tmp_path / "c")
