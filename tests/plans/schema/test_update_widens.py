"""Updates with values that do not fit the store: it is widened as by an append, in the same commit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr
from click.testing import CliRunner

import vczstore
from tests.support import cohort
from tests.support.covering import in_turn
from tests.support.one_sample_vcfs import HEADER, KINDS, fix_widths, make, merged, opened, shown, start
from tests.support.ways import IMPLS, WRITTEN, Way
from vczstore.cli.main import main
from vczstore.errors import IncompatibleError, Interrupted, OptionError, SampleError

type Arrays = dict[str, np.ndarray]

SAMPLES = ["S0010", "S0003", "S0000", "S0004"]
"""Samples of the whole, the shared and the ragged chunk columns, in an order other than the store's."""

FIELDS = (
    *("sample_sex", "call_genotype", "call_genotype_mask", "call_DP", "call_AD", "call_GL", "call_FT", "call_FC"),
    "local_matrix",
)


def longer(arrays: Arrays, **lengths: int) -> Arrays:
    """Extend the dimensions of arrays; by the VCF Zarr specification, new elements hold fill values."""
    result = {}
    for name, values in arrays.items():
        pads = [(0, max(0, lengths.get(d, n) - n)) for d, n in zip(cohort.DIMENSIONS[name], values.shape, strict=True)]
        fill = {"i": -2, "f": 0.0, "b": True}.get(values.dtype.kind, "")
        padded = np.pad(values, pads, constant_values=fill)
        if values.dtype.kind == "f":
            original = tuple(slice(0, n) for n in values.shape)
            inside = np.zeros(padded.shape, dtype=bool)
            inside[original] = True
            padded[~inside] = cohort.FILL
            padded[original] = values  # the payloads of NaNs included
        result[name] = padded
    return result


def make_arrays(samples: list[str], *, seed: int = 0) -> Arrays:
    """Fields that cover every axis that becomes longer, and one of each other kind."""
    return cohort.make_arrays(10, samples, seed=seed, fields=FIELDS)


def recalled(**lengths: int) -> Arrays:
    """A second calling with longer vectors, in which about half of the elements are set."""
    plain = make_arrays(SAMPLES, seed=5)
    arrays, rng = longer(plain, **lengths), np.random.default_rng(8)
    for name, values in arrays.items():
        if name.startswith("call_") and values.shape != plain[name].shape:
            chosen = rng.random(values.shape) < 0.5
            values[chosen] = np.ones(1, values.dtype) if values.dtype.kind != "U" else "A"
    return arrays


WIDER: dict[str, dict[str, int]] = {
    "ploidy": {"ploidy": 3},
    "vectors": {"genotypes": 6, "FORMAT_FC_dim": 3},
    "alleles": {"alleles": 3, "ploidy": 4},
}


@in_turn(kind=WRITTEN, impl=IMPLS, lengths=WIDER)
@pytest.mark.slow
def test_axes_become_longer(way: Way, tmp_path: Path, lengths: dict[str, int]) -> None:
    """Other samples keep their values bit for bit, and their vectors end where they ended."""
    old, new = make_arrays(cohort.ids(0, 11)), recalled(**lengths)
    store = way.make(tmp_path, old)
    cohort.write_vcz(tmp_path / "new.vcz", new)
    result = vczstore.update(store, tmp_path / "new.vcz", **way.options)
    assert all(f"to {n}" in result.plan.notes["widened"] for n in lengths.values())
    cohort.assert_same(way.read(store), cohort.expected_update(longer(old, **lengths), new))
    again = vczstore.update(store, tmp_path / "new.vcz", **way.options)
    assert "widened" not in again.plan.notes


@in_turn(kind=WRITTEN, impl=IMPLS)
@pytest.mark.slow
def test_dtypes_become_wider(way: Way, tmp_path: Path) -> None:
    """Integers and fixed-width strings are widened only if a value needs it, together with a longer vector."""
    old, new = make_arrays(cohort.ids(0, 11)), recalled(genotypes=4)
    new["call_DP"] = new["call_DP"].astype("i4")
    new["call_DP"][7, 2] = 70_000
    new["call_AD"] = new["call_AD"].astype("i8")  # all values fit the dtype of the store
    new["call_FC"] = np.full(new["call_FC"].shape, "ACGT", dtype="U4")
    store = way.make(tmp_path, old)
    cohort.write_vcz(tmp_path / "new.vcz", new)
    result = vczstore.update(store, tmp_path / "new.vcz", **way.options)
    assert "call_AD" not in result.plan.notes["widened"]
    expected = longer(old, genotypes=4)
    expected["call_DP"] = expected["call_DP"].astype("i4")
    expected["call_FC"] = expected["call_FC"].astype(object)
    new["call_AD"] = new["call_AD"].astype("i4")
    cohort.assert_same(way.read(store), cohort.expected_update(expected, new))


@in_turn(kind=WRITTEN, impl=IMPLS)
@pytest.mark.slow
def test_shorter_vectors_end_early(way: Way, tmp_path: Path) -> None:
    """A haploid second calling with fewer values: the store's axes stay, and no previous value is left behind."""
    old, new = make_arrays(cohort.ids(0, 11)), make_arrays(SAMPLES, seed=5)
    short = {name: values.copy() for name, values in new.items()}
    for name in ("call_genotype", "call_genotype_mask", "local_matrix"):
        short[name] = short[name][..., :1]
    short["call_FC"] = short["call_FC"][..., 0]  # as converters drop an axis of length 1
    store = way.make(tmp_path, old)
    cohort.write_vcz(tmp_path / "new.vcz", {n: v for n, v in short.items() if n != "call_FC"})
    group = zarr.open_group(tmp_path / "new.vcz")
    group.create_array("call_FC", data=short["call_FC"], dimension_names=["variants", "samples"])
    vczstore.update(store, tmp_path / "new.vcz", **way.options)
    new["call_genotype"][..., 1], new["call_genotype_mask"][..., 1] = -2, True
    new["local_matrix"][..., 1], new["call_FC"][..., 1] = -2, ""
    cohort.assert_same(way.read(store), cohort.expected_update(old, new))


@in_turn(kind=WRITTEN, impl=IMPLS)
@pytest.mark.slow
def test_fields_are_added(way: Way, tmp_path: Path) -> None:
    """In added fields, samples of other sources and samples not updated are missing; no other field is blanked."""
    old, new = make_arrays(cohort.ids(0, 11)), recalled()
    other = make_arrays(["S0007"], seed=6)
    for name in ("call_GL", "call_DP"):
        del old[name], other[name]
    store = way.make(tmp_path, old)
    cohort.write_vcz(tmp_path / "new.vcz", new)
    cohort.write_vcz(tmp_path / "other.vcz", other)
    before = way.read(store)
    with pytest.raises(IncompatibleError, match=r"^update: .*--add-field DP --add-field GL, or .*--drop-field DP"):
        vczstore.update(store, tmp_path / "new.vcz", **way.options)
    cohort.assert_same(way.read(store), before)
    sources = (tmp_path / "new.vcz", tmp_path / "other.vcz")
    result = vczstore.update(store, *sources, add_fields=["DP", "GL"], **way.options)
    assert result.counts["fields added"] == 2
    gl = np.full((10, 11, 3), cohort.FILL, dtype="f4")
    gl[..., 0] = cohort.MISSING
    expected = {**old, "call_DP": np.full((10, 11), -1, "i2"), "call_GL": gl}
    other |= {"call_DP": expected["call_DP"][:, :1], "call_GL": gl[:, :1]}
    cohort.assert_same(way.read(store), cohort.expected_update(expected, new, other))
    assert vczstore.verify(store).errors == []
    # the store has these fields now, so naming them does not make them missing
    with pytest.raises(IncompatibleError, match=r"lacks call_DP, call_GL, .*--drop-field"):
        vczstore.update(store, tmp_path / "other.vcz", add_fields=["DP", "GL"], **way.options)


# ---- compared with bcftools and vcztools ----------------------------------------------------

FORMAT = "GT:DP:XN:XF:PGT"


def second_calling(folder: Path) -> tuple[list[Path], Path, list[dict[str, str]]]:
    """Return sources A, B and C, a second calling of B, and the calls that bcftools merges of A, C and the new B."""
    (folder / "old").mkdir()
    a = make(folder, "A", FORMAT, "0/1:12:1:.5:a", "0/1:100:.:.:a")
    b = make(folder / "old", "B", FORMAT, "0/0:7:2:.25:b", "1/1:9:3:.:b")
    c = make(folder, "C", FORMAT, "1/1:3:1:.:.", "./.:.:4:.5:c")
    new = make(folder, "B", FORMAT, "0/0/1:400:7,8,9:.5,.25:c", "0/1/1:70000:.,2:.:verylong,e")
    return [a, b, c], new, merged(folder, "A", "B", "C")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_second_calling(tmp_path: Path, kind: str) -> None:
    """Deeper, triploid, with vectors that the store has no axis for: by the command, and by both steps of a job."""
    old, new, expected = second_calling(tmp_path)
    for way in ("command", "update", "append"):
        store = start(tmp_path, kind, old[0])
        vczstore.append(store, *old)
        n_commits = len(list(vczstore.log(store))) if kind == "icechunk" else 0
        if way == "command":
            result = CliRunner().invoke(main, ["update", str(store), str(new)])
            assert result.exit_code == 0, result.output
        else:
            step = {"source": str(new), **({"on-duplicate": "replace"} if way == "append" else {})}
            file = tmp_path / f"{way}.yaml"
            file.write_text(yaml.safe_dump({"store": str(store), "steps": [{way: step}]}))
            assert vczstore.run_job(file).status == "done"
            assert vczstore.run_job(file).status == "nothing to do"
        assert shown(store, kind) == expected
        assert vczstore.verify(store).errors == []
        assert [p.name for p in tmp_path.glob(".store-*")] == []
        assert kind != "icechunk" or len(list(vczstore.log(store))) == n_commits + 1


@pytest.mark.slow
def test_fields_of_a_job(tmp_path: Path) -> None:
    """A step that updates one sample and appends another adds the field once, for both."""
    a = make(tmp_path, "A", "GT:DP", "0/1:5", "0/1:7")
    (tmp_path / "old").mkdir()
    old = make(tmp_path / "old", "B", "GT:DP", "0/1:5", "0/1:7")
    b = make(tmp_path, "B", "GT:DP:PS", "0|1:700:3000000", "0|1:8:3000000")
    c = make(tmp_path, "C", "GT:DP:PS", "0|1:9:3000000", "1|0:8:.")
    store = start(tmp_path, "icechunk", a)
    vczstore.append(store, a, old)
    step = {"source": [str(b), str(c)], "insert": True, "add-fields": ["PS"]}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"store": str(store), "steps": [{"update": step}]}))
    assert vczstore.run_job(tmp_path / "job.yaml").status == "done"
    assert shown(store, "icechunk") == merged(tmp_path, "A", "B", "C")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_a_dry_run_reports_what_is_widened_and_its_cost(tmp_path: Path, kind: str) -> None:
    old, new, _ = second_calling(tmp_path)
    store = start(tmp_path, kind, old[0])
    vczstore.append(store, *old)
    before = cohort.digest(store)
    result = vczstore.update(store, new, dry_run=True)
    assert result.plan.notes["widened"] == (
        "call_DP (int8 to int32); call_PGT (FORMAT_PGT_dim none to 2); call_XF (FORMAT_XF_dim none to 2); "
        "call_XN (FORMAT_XN_dim none to 3); call_genotype (ploidy 2 to 3); call_genotype_mask (ploidy 2 to 3)"
    )
    # each of the four fields has 2 variants and 3 samples, in two chunk columns; a string counts 64 bytes
    n_bytes = 6 * (4 + 2 * 64 + 2 * 4 + 3 * 1)
    assert result.counts["chunks re-encoded"] == 8
    assert result.counts["bytes re-encoded"] == n_bytes
    assert cohort.digest(store) == before


# ---- refusals -------------------------------------------------------------------------------


def two(folder: Path) -> tuple[Path, Path]:
    """Return a sample, and a second calling of it with a depth that needs a wider dtype."""
    (folder / "new").mkdir()
    return make(folder, "A", "GT:DP", "0/1:12", "0/1:100"), make(folder / "new", "A", "GT:DP", "0/1:300", "0/1:7")


@pytest.mark.slow
def test_plain_zarr_elsewhere_is_refused(tmp_path: Path) -> None:
    old, new = two(tmp_path)
    store = start(tmp_path, "format3", old)
    vczstore.append(store, old)
    memory = cohort.in_memory(store)
    before = {key: value.to_bytes() for key, value in memory._store_dict.items()}
    with pytest.raises(OptionError, match=r"^update: call_DP of .* re-encoded.*copy-store-to-icechunk"):
        vczstore.update(memory, new)
    assert {key: value.to_bytes() for key, value in memory._store_dict.items()} == before
    vczstore.copy_store_to_icechunk(memory, tmp_path / "repository")
    vczstore.update(tmp_path / "repository", new)
    assert opened(tmp_path / "repository", "icechunk")["call_DP"][...].tolist() == [[300], [7]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_incompatible_dtypes_are_refused(tmp_path: Path, kind: str) -> None:
    """In one line, before anything is re-encoded; if the field may be dropped, it is missing for the sample."""
    old, new = two(tmp_path)
    float_depth = HEADER["DP"].replace("Integer", "Float")
    (tmp_path / "float").mkdir()
    (tmp_path / "unknown").mkdir()
    other = make(tmp_path / "float", "A", "GT:DP", "0/1/1:3.5", "0/1:.", DP=float_depth)
    unknown = make(tmp_path / "unknown", "Z", "GT:DP", "0/1:300", "0/1:7")
    store = start(tmp_path, kind, old)
    vczstore.append(store, old)
    before = cohort.digest(store)
    result = CliRunner().invoke(main, ["update", str(store), str(other)])
    assert result.exit_code == 1
    assert "update: call_DP of" in result.output
    assert all(word in result.output for word in ("float32", "int8", "--drop-field DP"))
    assert result.output.count("\n") == 1
    with pytest.raises(SampleError, match="no sample Z"):
        vczstore.update(store, unknown, new)
    assert cohort.digest(store) == before
    vczstore.update(store, other, drop_fields=["DP"])
    root = opened(store, kind)
    assert root["call_DP"][...].tolist() == [[-1], [-1]]
    assert root["call_genotype"][...].tolist() == [[[0, 1, 1]], [[0, 1, -2]]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_an_unreadable_chunk_leaves_the_store_unchanged(tmp_path: Path, kind: str) -> None:
    """A chunk that cannot be decoded is detected when other chunks may be re-encoded already."""
    old, new = two(tmp_path)
    store = start(tmp_path, "format3", old)
    vczstore.append(store, old)
    chunk = store / "call_DP" / "c" / "0" / "0"
    frame = chunk.read_bytes()
    chunk.write_bytes(frame[:4] + bytes(4) + frame[8:])  # the decoded size in the header of Blosc
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(store, tmp_path / "repository")
        store = tmp_path / "repository"
    before = cohort.digest(store)
    with pytest.raises(vczstore.VczstoreError, match=r"^update: .*call_DP"):
        vczstore.update(store, new)
    assert kind == "icechunk" or cohort.digest(store) == before
    assert opened(store, kind)["call_DP"].dtype == np.int8


# ---- fixed-width strings, and interruptions -------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_no_string_is_cut(tmp_path: Path, kind: str) -> None:
    """Filters that are longer than the store's fixed width; the width of sample IDs stays unchanged."""
    (tmp_path / "new").mkdir()
    old = make(tmp_path, "A", "GT:FT", "0/1:ok", "0/1:ok")
    new = make(tmp_path / "new", "A", "GT:FT", "0/1:verylong", "1/1:ok")
    store = start(tmp_path, "format3", old)
    vczstore.append(store, old)
    fix_widths(store, "call_FT", "sample_id")
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(store, tmp_path / "repository")
        store = tmp_path / "repository"
    vczstore.update(store, new)
    root = opened(store, kind)
    assert root["call_FT"][...].tolist() == [["verylong"], ["ok"]]
    assert root["sample_id"].dtype == "U1"


def stop_after(n: int) -> Callable[..., None]:
    """Return a progress callback that interrupts the run once n writing tasks have ended."""

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("writing") and done >= n:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.slow
def test_stopped(tmp_path: Path, kind: str, n: int) -> None:
    """Samples that are not updated keep their values, and the same command completes the update."""
    way = Way(kind, "cubed")
    old, new = make_arrays(cohort.ids(0, 11)), recalled(ploidy=3, genotypes=6)
    new["call_DP"] = new["call_DP"].astype("i4") + 70_000
    del old["call_FT"]
    store = way.make(tmp_path, old)
    cohort.write_vcz(tmp_path / "new.vcz", new)
    with pytest.raises(Interrupted, match=r"^update: interrupted"):
        vczstore.update(store, tmp_path / "new.vcz", add_fields=["FT"], progress=stop_after(n))
    partial, others = way.read(store), cohort.ids(1, 2)
    rows = [partial["sample_id"].tolist().index(s) for s in others]
    for name in ("call_GL", "call_genotype"):
        width = old[name].shape[-1]
        assert partial[name][:, rows, :width].tobytes() == old[name][:, rows].tobytes()
    assert (partial["call_DP"][:, rows] == old["call_DP"][:, rows]).all()
    vczstore.update(store, tmp_path / "new.vcz", add_fields=["FT"])
    expected = longer(old, ploidy=3, genotypes=6)
    expected["call_DP"] = expected["call_DP"].astype("i4")
    expected["call_FT"] = np.full((10, 11), ".", dtype=object)
    cohort.assert_same(way.read(store), cohort.expected_update(expected, new))
