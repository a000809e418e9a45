"""Copies of a store on plain Zarr contain one consistent state of it, or fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vczstore
from tests.support import cohort
from tests.support.refusals import complain
from vczstore.errors import StaleError

COPIES: dict[str, Callable[..., object]] = {
    "append": lambda store, out, **how: vczstore.append(
        store, f"{store}-batch", output=out, harmonise=True, new_variants="insert", **how
    ),
    "compact": vczstore.compact,
    "export": vczstore.export,
    "copy-store-to-icechunk": vczstore.copy_store_to_icechunk,
}


class AnotherWriter:
    """A progress callback that changes the store once the first tasks of the copy run."""

    def __init__(self, change: Callable[[], object]) -> None:
        self.change: Callable[[], object] | None = change

    def __call__(self, phase: str, done: int, total: int, **_: Any) -> None:
        if phase == "writing" and self.change is not None:
            change, self.change = self.change, None
            change()


@pytest.mark.slow
@pytest.mark.parametrize("operation", COPIES)
def test_a_store_that_is_changed_meanwhile(operation: str, tmp_path: Path) -> None:
    store, out = tmp_path / "store.vcz", tmp_path / "out"
    cohort.write_vcz(store, cohort.some_arrays(10, cohort.ids(0, 5)))
    cohort.write_vcz(f"{store}-batch", cohort.some_arrays(10, cohort.ids(5, 2)))
    writer = AnotherWriter(lambda: vczstore.remove(store, "S0001", impl="zarr"))
    words = (f"^{operation}: .*store.vcz was changed by another writer while it was copied",)
    complain(StaleError, words, lambda: COPIES[operation](store, out, progress=writer))
    assert writer.change is None
    assert not list(tmp_path.glob("out/zarr.json"))
    assert "S0001" not in cohort.read_vcz(store)["sample_id"]
