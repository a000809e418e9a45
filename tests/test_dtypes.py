"""Fields of every dtype that Zarr has: what has a missing value is removed, what has none is refused before a write."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import vczstore
from tests import cohort
from tests.conftest import WRITTEN, Way
from tests.test_out_of_reach import make, put
from vczstore.cli import main

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
"""What stands for a value that is not there, by dtype; VCF Zarr has none for unsigned integers, and NaT is NumPy's."""
NONE: dict[str, object] = {
    "complex64": np.complex64,
    "complex128": np.complex128,
    "raw": "V3",
    "structured": [("day", "i4"), ("dose", "f4")],
}
"""Dtypes for which nothing stands for a missing value."""


def values_of(dtype: object, shape: tuple[int, ...]) -> np.ndarray:
    """Values of which none is missing."""
    numbers = np.arange(1, 1 + int(np.prod(shape)))
    kind = np.dtype(dtype).kind  # type: ignore[call-overload]
    if kind == "V":
        size = np.dtype(dtype).itemsize  # type: ignore[call-overload]
        return np.frombuffer(np.resize(numbers.astype("u1"), size * len(numbers)).tobytes(), dtype).reshape(shape)  # type: ignore[call-overload, no-any-return]
    return (numbers % 2 == 1 if kind == "b" else numbers).astype(dtype).reshape(shape)  # type: ignore[call-overload, no-any-return]


def pair(folder: Path, dtype: object, kind: str) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    """A store and a batch with a field by sample, and one by variant and sample, of this dtype; and the latter's."""
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
def test_a_dtype_with_a_missing_value_is_appended_and_removed(tmp_path: Path, dtype: str, kind: str) -> None:
    store, batch, old, new = pair(tmp_path, dtype, kind)
    way = Way(kind, "cubed")
    vczstore.append(store, batch)
    both = np.concatenate([old, new], axis=1)
    np.testing.assert_array_equal(way.read(store)["observed"], both)

    vczstore.remove(store, ["S0001", "S0012"])
    assert vczstore.verify(store, quick=True).damages == []
    found, expected = way.read(store), both.copy()
    expected[:, [1, 7]] = MISSING[dtype]
    np.testing.assert_array_equal(found["observed"], expected)
    assert found["observed"].dtype == np.dtype(dtype)
    if np.dtype(dtype).kind in "Mm":
        assert (found["observed"].view("i8")[:, [1, 7]] == NAT).all()
        assert (found["sample_seen"].view("i8")[[1, 7]] == NAT).all()
    assert vczstore.verify(store).damages == []
    if kind == "icechunk":
        vczstore.purge(store)
    assert vczstore.verify_removal(store, ["S0001", "S0012"]).reasons == ()


@pytest.mark.parametrize("dtype", ["datetime64[s]", "timedelta64[ms]"])
def test_a_time_that_is_left_is_found(tmp_path: Path, dtype: str) -> None:
    store, _, _, _ = pair(tmp_path, dtype, "format3")
    vczstore.remove(store, ["S0001"])
    array = zarr.open_array(store / "observed")
    array[2, 1] = np.array(5).astype(dtype)
    assert any("has values of removed samples" in str(damage) for damage in vczstore.verify(store).damages)
    assert "1 value that is not missing, in observed" in vczstore.verify_removal(store, ["S0001"]).reasons[0]


@pytest.mark.parametrize(("dtype", "kind"), [*product(NONE, ["format3"]), *product(["complex64"], WRITTEN[::2])])
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


@pytest.mark.parametrize("impl", ["zarr", "xarray"])
def test_times_are_removed_by_every_implementation(tmp_path: Path, impl: str) -> None:
    store, batch, old, new = pair(tmp_path, "datetime64[s]", "format3")
    vczstore.append(store, batch, impl=impl)
    vczstore.remove(store, ["S0001"], impl=impl)
    expected = np.concatenate([old, new], axis=1)
    expected[:, 1] = np.datetime64("NaT", "s")
    np.testing.assert_array_equal(cohort.read_vcz(store)["observed"], expected)
