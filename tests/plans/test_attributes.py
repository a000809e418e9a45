"""Attributes with NaN or Infinity, which Icechunk does not accept, are refused by name before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import zarr

import vczstore
from tests.support import cohort
from tests.support.refusals import complain
from vczstore.errors import IncompatibleError

CASES: dict[str, tuple[str, str, Any, tuple[str, ...]]] = {
    "an array": ("call_GL", "valid_max", float("inf"), ("valid_max of call_GL is Infinity",)),
    "deep within": ("call_GL", "limits", {"low": [0, float("nan")]}, (r'limits of call_GL is {"low": \[0, NaN\]}',)),
    "the root group": ("", "threshold", float("-inf"), ("threshold of the root group is -Infinity",)),
    "a group": ("qc", "threshold", float("nan"), ("threshold of qc is NaN",)),
}
"""Path and name of an attribute, its value, and words of the message."""


def write(store: Path, start: int, path: str, name: str, value: object, *, zarr_format: int = 3) -> Path:
    """Write a batch with one attribute."""
    arrays = cohort.make_arrays(10, cohort.ids(start, 3), seed=start, fields=["call_genotype", "call_GL"])
    cohort.write_vcz(store, arrays, zarr_format=zarr_format)
    root = zarr.open_group(store, mode="a")
    node = root if not path else root[path] if path in root else root.create_group(path)
    node.attrs[name] = value
    return store


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_a_copy_to_icechunk(case: str, zarr_format: int, tmp_path: Path) -> None:
    path, name, value, words = CASES[case]
    source, out = write(tmp_path / "a.vcz", 0, path, name, value, zarr_format=zarr_format), tmp_path / "a.icechunk"
    for operation, make in (
        ("copy-store-to-icechunk", lambda **how: vczstore.copy_store_to_icechunk(source, out, **how)),
        ("init", lambda **how: vczstore.init(out, source, **how)),
    ):
        for dry_run in (True, False):
            expected = (f"^{operation}: .*a.icechunk: the attribute ", *words, "as text in the source, or delete it")
            complain(IncompatibleError, expected, lambda make=make, dry_run=dry_run: make(dry_run=dry_run))
            assert not out.exists()


@pytest.mark.slow
def test_an_added_field(tmp_path: Path) -> None:
    cohort.write_vcz(tmp_path / "a.vcz", cohort.make_arrays(10, cohort.ids(0, 3), fields=["call_genotype"]))
    store = tmp_path / "a.icechunk"
    vczstore.copy_store_to_icechunk(tmp_path / "a.vcz", store)
    batch = write(tmp_path / "b.vcz", 5, "call_GL", "valid_max", float("inf"))
    before = cohort.digest(store)
    with pytest.raises(IncompatibleError, match=r"^append: .* the attribute valid_max of call_GL is Infinity, "):
        vczstore.append(store, batch, add_fields=["call_GL"])
    assert cohort.digest(store) == before


@pytest.mark.slow
def test_plain_zarr_takes_them(tmp_path: Path) -> None:
    source = write(tmp_path / "a.vcz", 0, "call_GL", "valid_max", float("inf"))
    vczstore.init(tmp_path / "b.vcz", source)
    assert zarr.open_group(tmp_path / "b.vcz", mode="r")["call_GL"].attrs["valid_max"] == float("inf")
