"""Fields of every Zarr dtype: values are removed if it has a missing value, and refused before any write if not."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import vczstore
from tests.support import cohort
from tests.support.converted import make as from_vcf
from tests.support.converted import shown, text
from tests.support.extra_arrays import make, put
from tests.support.ways import IMPLS, WRITTEN, Way
from vczstore.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")

NAT = np.iinfo("i8").min
MISSING: dict[str, object] = {
    "datetime64[s]": np.datetime64("NaT", "s"),
    "datetime64[D]": np.datetime64("NaT", "D"),
    "timedelta64[ms]": np.timedelta64("NaT", "ms"),
    "uint32": 0,
    "int64": -1,
    "bool": False,
    "S3": b".",
    "U3": ".",
}
"""Value of a removed sample by dtype. NaT is NumPy's; VCF Zarr defines no missing value for unsigned integers."""
NONE: dict[str, object] = {
    "complex64": np.complex64,
    "complex128": np.complex128,
    "raw": "V3",
    "structured": [("day", "i4"), ("dose", "f4")],
}
"""Dtypes without a missing value, for which `remove` is refused."""


def values_of(dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a dtype, none of them missing."""
    numbers, wanted = np.arange(1, 1 + int(np.prod(shape))), np.dtype(dtype)
    if wanted.kind == "V":
        content = np.resize(numbers.astype("u1"), wanted.itemsize * len(numbers)).tobytes()
        return np.frombuffer(content, wanted).reshape(shape)
    return np.asarray(numbers % 2 == 1 if wanted.kind == "b" else numbers).astype(wanted).reshape(shape)


def pair(folder: Path, dtype: object, kind: str) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    """A store and a batch with ``sample_seen`` and ``observed`` of this dtype, and their values of ``observed``."""
    zarr_format = 2 if kind == "format2" else 3
    both = []
    for name, start in (("store.vcz", 0), ("batch.vcz", 10)):
        store = make(folder / name, zarr_format=zarr_format, start=start)
        values = values_of(dtype, (7, 5))
        put(store, "sample_seen", values[0], ("samples",), zarr_format)
        put(store, "observed", values if start == 0 else values[::-1], ("variants", "samples"), zarr_format)
        both.append(values if start == 0 else values[::-1])
    store = folder / "store.vcz"
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(store, store := folder / "store.icechunk")
    return store, folder / "batch.vcz", both[0], both[1]


@pytest.mark.parametrize(("dtype", "kind"), [*product(MISSING, ["format3"]), *product(["datetime64[s]"], WRITTEN[::2])])
@pytest.mark.slow
def test_a_dtype_with_a_missing_value_is_appended_and_removed(tmp_path: Path, dtype: str, kind: str) -> None:
    store, batch, old, new = pair(tmp_path, dtype, kind)
    way = Way(kind, "cubed")
    vczstore.append(store, batch)
    both = np.concatenate([old, new], axis=1)
    np.testing.assert_array_equal(way.read(store)["observed"], both)

    vczstore.remove(store, ["S0001", "S0012"])
    assert vczstore.verify(store, quick=True).errors == []
    actual, expected = way.read(store), both.copy()
    expected[:, [1, 7]] = MISSING[dtype]
    np.testing.assert_array_equal(actual["observed"], expected)
    assert actual["observed"].dtype == np.dtype(dtype)
    if np.dtype(dtype).kind in "Mm":
        assert (actual["observed"].view("i8")[:, [1, 7]] == NAT).all()
        assert (actual["sample_seen"].view("i8")[[1, 7]] == NAT).all()
    assert vczstore.verify(store).errors == []
    if kind == "icechunk":
        vczstore.purge(store)
    assert vczstore.verify_removal(store, ["S0001", "S0012"]).reasons == ()


@pytest.mark.parametrize("dtype", ["datetime64[s]", "timedelta64[ms]"])
@pytest.mark.slow
def test_a_time_left_for_a_removed_sample_is_reported(tmp_path: Path, dtype: str) -> None:
    store, _, _, _ = pair(tmp_path, dtype, "format3")
    vczstore.remove(store, ["S0001"])
    array = zarr.open_array(store / "observed")
    array[2, 1] = np.array(5).astype(dtype)
    assert any("has values of removed samples" in str(damage) for damage in vczstore.verify(store).errors)
    assert "1 value that is not missing, in observed" in vczstore.verify_removal(store, ["S0001"]).reasons[0]


@pytest.mark.parametrize(("dtype", "kind"), [*product(NONE, ["format3"]), *product(["complex64"], WRITTEN[::2])])
@pytest.mark.slow
def test_a_dtype_without_a_missing_value_is_refused_before_anything_is_written(
    tmp_path: Path, dtype: str, kind: str
) -> None:
    store, batch, old, new = pair(tmp_path, NONE[dtype], kind)
    way = Way(kind, "cubed")
    before = cohort.digest(store)
    lacks = make(tmp_path / "lacks.vcz", start=20, n_variants=6)
    put(lacks, "sample_seen", values_of(NONE[dtype], (5,)), ("samples",), 3)
    put(lacks, "observed", values_of(NONE[dtype], (6, 5)), ("variants", "samples"), 3)
    for arguments in (["remove", str(store), "S0001"], ["append", str(store), str(lacks), "--harmonise"]):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 1, done.output
        assert f"{arguments[0]}: observed of " in done.output
        assert "no missing value" in done.output
        assert len(done.output.splitlines()) == 1
        assert cohort.digest(store) == before

    vczstore.append(store, batch)
    np.testing.assert_array_equal(way.read(store)["observed"], np.concatenate([old, new], axis=1))
    assert not vczstore.verify_removal(store, ["S0001"]).erased
    vczstore.compact(store)
    assert way.read(store)["sample_id"].tolist() == [*cohort.ids(0, 5), *cohort.ids(10, 5)]


UNSIGNED = {"uint8": "int16", "uint16": "int32", "uint32": "int64"}
"""Signed dtypes that hold all values of the unsigned ones."""


def unsigned(folder: Path, dtype: str, kind: str, *, field: str = "call_DP", n: int = 5) -> tuple[Path, np.ndarray]:
    """A store with a field of a dtype without a missing value, and the values of that field."""
    zarr_format = 2 if kind == "format2" else 3
    store = make(folder / "unsigned.vcz", zarr_format=zarr_format, n=n)
    values = values_of(dtype, (7, n))
    put(store, field, values, ("variants", "samples"), zarr_format)
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(store, store := folder / "unsigned.icechunk")
    return store, values


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("way_in", ["drop_fields", "add_fields"])
@pytest.mark.slow
def test_unsigned_integers_that_get_missing_values_become_signed(tmp_path: Path, way_in: str, kind: str) -> None:
    with_field, values = unsigned(tmp_path, "uint8", kind)
    without = make(tmp_path / "without.vcz", zarr_format=2 if kind == "format2" else 3, start=10)
    if way_in == "add_fields":
        if kind == "icechunk":
            vczstore.copy_store_to_icechunk(without, without := tmp_path / "without.icechunk")
        store, batch = without, with_field
    else:
        store, batch = with_field, without
    dry = vczstore.append(store, batch, **{way_in: ["DP"]}, dry_run=True)
    if way_in == "drop_fields":
        assert dry.plan.notes["widened"] == "call_DP (uint8 to int16)"
    vczstore.append(store, batch, **{way_in: ["DP"]})
    actual = Way(kind, "cubed").read(store)["call_DP"]
    sides = [values, np.full((7, 5), -1)]
    np.testing.assert_array_equal(actual, np.concatenate(sides if way_in == "drop_fields" else sides[::-1], axis=1))
    assert actual.dtype == np.int16
    assert vczstore.verify(store).errors == []


@pytest.mark.parametrize("dtype", UNSIGNED)
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.slow
def test_a_first_append_where_one_source_lacks_a_field(tmp_path: Path, dtype: str, order: int) -> None:
    sources = [unsigned(tmp_path, dtype, "format3")[0], make(tmp_path / "without.vcz", start=10)][::order]
    vczstore.create(tmp_path / "store.vcz", *sources)
    vczstore.append(tmp_path / "store.vcz", *sources)
    actual = cohort.read_vcz(tmp_path / "store.vcz")["call_DP"]
    sides = [values_of(dtype, (7, 5)), np.full((7, 5), -1)][::order]
    np.testing.assert_array_equal(actual, np.concatenate(sides, axis=1))
    assert actual.dtype == UNSIGNED[dtype]


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("ours", ["uint8", "int16"])
@pytest.mark.slow
def test_variants_that_a_source_of_unsigned_integers_lacks_are_missing(tmp_path: Path, ours: str, kind: str) -> None:
    store = make(tmp_path / "store.vcz", zarr_format=2 if kind == "format2" else 3)
    put(store, "call_DP", values_of(ours, (7, 5)), ("variants", "samples"), 2 if kind == "format2" else 3)
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(store, store := tmp_path / "store.icechunk")
    batch = make(tmp_path / "batch.vcz", start=10, n_variants=6)
    put(batch, "call_DP", values_of("uint8", (6, 5)), ("variants", "samples"), 3)
    vczstore.append(store, batch, harmonise=True)
    actual = Way(kind, "cubed").read(store)["call_DP"]
    assert actual.dtype == np.int16
    np.testing.assert_array_equal(actual[:6, 5:], values_of("uint8", (6, 5)))
    assert actual[6].tolist() == [*values_of(ours, (7, 5))[6].tolist(), *[-1] * 5]

    if kind == "format3":
        vczstore.normalise(store, batch, tmp_path / "out.vcz")
        np.testing.assert_array_equal(cohort.read_vcz(tmp_path / "out.vcz")["call_DP"], actual[:, 5:])


@pytest.mark.slow
def test_shorter_vectors_of_unsigned_integers_end_with_fill(tmp_path: Path) -> None:
    for (name, start), width in zip((("store.vcz", 0), ("batch.vcz", 10)), (2, 3), strict=True):
        store = make(tmp_path / name, start=start)
        put(store, "call_XN", values_of("uint8", (7, 5, width)), ("variants", "samples", "FORMAT_XN_dim"), 3)
    vczstore.append(tmp_path / "store.vcz", tmp_path / "batch.vcz")
    actual = cohort.read_vcz(tmp_path / "store.vcz")["call_XN"]
    assert actual.dtype == np.int16
    assert (actual[:, :5, 2] == -2).all()
    np.testing.assert_array_equal(actual[:, :5, :2], values_of("uint8", (7, 5, 2)))
    np.testing.assert_array_equal(actual[:, 5:], values_of("uint8", (7, 5, 3)))


@pytest.mark.parametrize(
    ("dtype", "other"), [("uint64", "int64"), ("bool", "int8"), ("complex64", "numbers or strings")]
)
@pytest.mark.parametrize("way_in", ["--drop-field", "--add-field", "--harmonise"])
def test_a_field_that_can_have_no_missing_value_is_refused(tmp_path: Path, way_in: str, dtype: str, other: str) -> None:
    store, _ = unsigned(tmp_path, dtype, "format3")
    batch = make(tmp_path / "batch.vcz", start=10, n_variants=6 if way_in == "--harmonise" else 7)
    flags = [way_in, "DP"]
    if way_in == "--add-field":
        store, batch = batch, store
    if way_in == "--harmonise":
        put(batch, "call_DP", values_of(dtype, (6, 5)), ("variants", "samples"), 3)
        flags = [way_in]
    before = cohort.digest(store)
    done = CliRunner().invoke(main, ["append", str(store), str(batch), *flags])
    assert done.exit_code == 1, done.output
    assert len(done.output.splitlines()) == 1
    assert done.output.startswith("Error: append: call_DP of ")
    assert f"has dtype {dtype}, which has no missing value for " in done.output
    assert f"; store it as {other}, or delete the array" in done.output
    assert cohort.digest(store) == before


def retyped(store: Path, dtype: str, *names: str) -> Path:
    """Rewrite fields of a format 3 store with another dtype; missing and fill values become 0."""
    for name in names:
        array = zarr.open_array(store / name)
        values, layout = np.maximum(np.asarray(array[...]), 0), {"chunks": array.chunks, "shape": array.shape}
        shutil.rmtree(store / name)
        dims = array.metadata.dimension_names  # type: ignore[union-attr]
        zarr.create_array(store / name, dtype=dtype, dimension_names=dims, **layout)[...] = values.astype(dtype)
    return store


@pytest.mark.parametrize("kind", ["format3", "icechunk"])
@pytest.mark.slow
def test_new_alleles_are_missing_in_vectors_that_were_unsigned(tmp_path: Path, kind: str) -> None:
    """Vector values stay with their alleles, also in a call without a genotype."""
    ours = text(["A1", "A2"], "1 5 C RD=7,8 0/1:5,6:6:30,0,40 ./.:5,0:0:60,30,0")
    theirs = text(["B1"], "1 5 G RD=7,8 ./.:5,6:6:60,30,0")
    names = ("call_AD", "call_AO", "call_PL")
    store = retyped(from_vcf(tmp_path, "a", ours), "uint16", *names, "variant_RD")
    batch = retyped(from_vcf(tmp_path, "b", theirs), "uint8", *names)
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(store, store := tmp_path / "a.icechunk")
    vczstore.append(store, batch, harmonise=True, allow_new_alleles=True)
    calls = ["0/1:5,6,.:6,.:30,0,40,.,.,.", "./.:5,0,.:0,.:60,30,0,.,.,.", "./.:5,.,6:.,6:60,.,.,30,.,0"]
    assert shown(store, icechunk=kind == "icechunk") == [["C,G", "RD=7,8,.", "GT:AD:AO:PL", *calls]]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.slow
def test_remove_says_which_fields_have_no_missing_value(tmp_path: Path, impl: str) -> None:
    store, values = unsigned(tmp_path, "uint8", "format3")
    put(store, "call_seen", values_of("bool", (7, 5)), ("variants", "samples"), 3)
    note = "no missing value: call_DP (uint8) reads 0, call_seen (bool) reads False"
    for flag in (["--dry-run"], []):
        done = CliRunner().invoke(main, ["remove", str(store), "S0001", "--impl", impl, *flag])
        assert done.exit_code == 0, done.output
        assert f"  after   {note}\n" in done.output
    assert vczstore.remove(store, ["S0002"], impl=impl).as_dict()["notes"] == {"after": note}
    values[:, 1:3] = 0
    np.testing.assert_array_equal(cohort.read_vcz(store)["call_DP"], values)
    assert vczstore.verify(store).errors == []
    assert "notes" not in vczstore.remove(make(tmp_path / "other.vcz"), ["S0001"], impl=impl).as_dict()


@pytest.mark.parametrize("impl", ["zarr", "xarray"])
@pytest.mark.slow
def test_times_are_removed_by_every_implementation(tmp_path: Path, impl: str) -> None:
    store, batch, old, new = pair(tmp_path, "datetime64[s]", "format3")
    vczstore.append(store, batch, impl=impl)
    vczstore.remove(store, ["S0001"], impl=impl)
    expected = np.concatenate([old, new], axis=1)
    expected[:, 1] = np.datetime64("NaT", "s")
    np.testing.assert_array_equal(cohort.read_vcz(store)["observed"], expected)


@pytest.mark.slow
def test_an_update_with_a_dropped_field_needs_a_missing_value(tmp_path: Path) -> None:
    """Unsigned integers become signed, as in an append; booleans are refused."""
    source = make(tmp_path / "source.vcz", n=2)
    for dtype in ("bool", "uint8"):
        (tmp_path / dtype).mkdir()
        store, old = unsigned(tmp_path / dtype, dtype, "format3")
        before = cohort.digest(store)
        done = CliRunner().invoke(main, ["update", str(store), str(source), "--drop-field", "DP"])
        if dtype == "bool":
            assert (done.exit_code, len(done.output.splitlines())) == (1, 1)
            assert f"has dtype {dtype}, which has no missing value for the samples of {source}" in done.output
            assert cohort.digest(store) == before
        else:
            assert done.exit_code == 0, done.output
            values = zarr.open_group(store, mode="r")["call_DP"]
            assert values.dtype == "int16"
            assert (values[:, :2] == -1).all()
            assert (values[:, 2:] == old[:, 2:]).all()
