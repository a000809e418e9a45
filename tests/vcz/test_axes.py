"""Value axes of length 0, or growing along two dimensions; units of time and byte orders of dtypes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import vczstore
from tests.support import cohort
from tests.support.extra_arrays import make
from vczstore.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")

CALLS = ("variants", "samples", "FORMAT_X_dim")


def put(store: Path, name: str, values: np.ndarray, dims: tuple[str, ...] = CALLS) -> Path:
    """Add an array of format 3, which may be empty."""
    chunks = tuple(max(1, n) for n in values.shape)
    names = dims[: values.ndim]
    array = zarr.create_array(
        store / name, shape=values.shape, dtype=values.dtype, chunks=chunks, dimension_names=names
    )
    if values.size:
        array[...] = values
    return store


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["cubed", "zarr"])
@pytest.mark.parametrize("width", [None, 2])
@pytest.mark.parametrize("empty", [0, 1])
def test_vectors_of_length_0_become_missing(tmp_path: Path, empty: int, width: int | None, impl: str) -> None:
    """Like ``.`` in VCF: a missing value followed by fill values; the wider dtype of the empty vectors is no matter."""
    shape = (7, 5) if width is None else (7, 5, width)
    full = np.arange(np.prod(shape), dtype="i2").reshape(shape)
    sides = [full, np.zeros((7, 5, 0), "i4")] if empty == 1 else [np.zeros((7, 5, 0), "i4"), full]
    stores = [put(make(tmp_path / f"{i}.vcz", start=10 * i), "call_X", values) for i, values in enumerate(sides)]
    vczstore.append(*stores, impl=impl)
    actual = cohort.read_vcz(stores[0])["call_X"].reshape(7, 10, -1)
    full_side, empty_side = (actual[:, :5], actual[:, 5:]) if empty == 1 else (actual[:, 5:], actual[:, :5])
    np.testing.assert_array_equal(full_side, full.reshape(full_side.shape))
    np.testing.assert_array_equal(empty_side, np.broadcast_to([-1, -2][: width or 1], empty_side.shape))
    assert vczstore.verify(stores[0]).errors == []


def test_different_units_of_time_are_refused(tmp_path: Path) -> None:
    """No unit holds all values of both: years in one unit overflow in nanoseconds."""
    dates = np.arange(35).reshape(7, 5)
    store = put(make(tmp_path / "a.vcz"), "call_X", dates.astype("M8[s]"))
    batch = put(make(tmp_path / "b.vcz", start=10), "call_X", dates.astype("M8[ns]"))
    before = cohort.digest(store)
    done = CliRunner().invoke(main, ["append", str(store), str(batch)])
    assert (done.exit_code, len(done.output.splitlines())) == (1, 1)
    assert "call_X of " in done.output
    assert "has dtype datetime64[ns]" in done.output
    assert "has datetime64[s], and nothing holds both" in done.output
    assert cohort.digest(store) == before


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["M8[s]", "m8[ms]", "c8", "i4", "f4"])
@pytest.mark.parametrize("first", [False, True])
def test_byte_orders_of_one_dtype_are_compatible(tmp_path: Path, dtype: str, first: bool) -> None:
    values = np.arange(35).reshape(7, 5).astype(dtype)
    sources = [
        put(make(tmp_path / "a.vcz"), "call_X", values),
        put(make(tmp_path / "b.vcz", start=10), "call_X", values.astype(np.dtype(dtype).newbyteorder(">"))),
    ]
    store = sources[0]
    if first:
        store = tmp_path / "store.vcz"
        vczstore.create(store, *sources)
    vczstore.append(store, *(sources if first else sources[1:]))
    np.testing.assert_array_equal(cohort.read_vcz(store)["call_X"], np.concatenate([values, values], axis=1))


def test_an_array_that_would_grow_along_two_dimensions_is_named(tmp_path: Path) -> None:
    source = make(tmp_path / "a.vcz")
    for name, n in (("X", 3), ("Y", 2)):
        dims = ("variants", "samples", f"FORMAT_{name}_dim")
        put(source, f"call_{name}", np.zeros((7, 5, n), "i2"), dims)
    store = tmp_path / "store.vcz"
    vczstore.create(store, source)
    put(store, "variant_Z", np.zeros((7, 1, 1), "i2"), ("variants", "FORMAT_X_dim", "FORMAT_Y_dim"))
    before = cohort.digest(store)
    done = CliRunner().invoke(main, ["append", str(store), str(source)])
    assert (done.exit_code, len(done.output.splitlines())) == (1, 1)
    message = f"append: variant_Z of {store} would become longer along FORMAT_X_dim 1 to 3 and FORMAT_Y_dim 1 to 2, "
    assert message in done.output
    assert "allow-new-alleles" not in done.output
    assert cohort.digest(store) == before
