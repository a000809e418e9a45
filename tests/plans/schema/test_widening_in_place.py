"""Appends that widen a folder: with kills, other writers, and a lost lock."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import vczstore
from plans.core.withdrawn import ATTRIBUTE
from tests.support import cohort
from tests.support.killed import killed
from vczstore.cli.main import main
from vczstore.errors import BusyError, StaleError
from vczstore.stores import leftovers

KEPT = ("sample_id", "contig_id", "variant_contig", "variant_position", "variant_allele", "call_genotype", "call_DP")
OLD = {name: values for name, values in cohort.make_arrays(5, cohort.ids(0, 4)).items() if name in KEPT}
NEW = {name: values for name, values in cohort.make_arrays(5, cohort.ids(4, 2), seed=1).items() if name in KEPT}
NEW["call_DP"] = NEW["call_DP"].astype("i4") + 70_000
WIDER = {**OLD, "call_DP": OLD["call_DP"].astype("i4")}
AFTER = cohort.expected_append(WIDER, NEW)
LOCK = "sample_id/.vczstore-job.lock"

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata", "ignore:Object at variant_")


def make(folder: Path, **layout: Any) -> tuple[Path, Path]:
    cohort.write_vcz(folder / "store.vcz", OLD, **layout)
    cohort.write_vcz(folder / "batch.vcz", NEW)
    return folder / "store.vcz", folder / "batch.vcz"


def documents_of(store: Path) -> dict[Path, Any]:
    """Return the metadata documents of a store, without the attribute that lists withdrawn samples."""
    documents = {path: json.loads(path.read_text()) for path in store.rglob("*json")}
    for document in documents.values():
        document.get("attributes", {}).pop(ATTRIBUTE, None)
    return documents


def beside(store: Path) -> list[str]:
    return [path.name for path in store.parent.iterdir() if "compact" in path.name]


def state(arrays: dict[str, np.ndarray]) -> str:
    """Return which of the allowed states a store is in, and fail if it is in none of them."""
    n = len(arrays["sample_id"])  # readers do not see beyond it
    axes = {name: cohort.DIMENSIONS[name].index("samples") for name in ("call_genotype", "call_DP")}
    arrays = {k: v.take(range(n), axes[k]) if k in axes else v for k, v in arrays.items()}
    if n > len(OLD["sample_id"]):
        cohort.assert_same(arrays, AFTER)
        return "appended"
    name = "as before" if arrays["call_DP"].dtype == OLD["call_DP"].dtype else "wider"
    cohort.assert_same(arrays, OLD if name == "as before" else WIDER)
    return name


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"zarr_format": 2, "consolidated": True}, {}])
def test_killed_at_any_point(tmp_path: Path, layout: dict[str, Any]) -> None:
    """At every point, the store has its old values or all of the new ones, and the same append completes it."""
    store, batch = make(tmp_path, **layout)
    code = f"import vczstore; vczstore.append(store, {str(batch)!r}, executor='single-threaded')"
    *copies, whole = killed(store, tmp_path / "killed", code, step=17)
    cohort.assert_same(cohort.read_vcz(whole), AFTER)
    assert len(copies) > 5
    states = set()
    for copy in copies:
        current = state(cohort.read_vcz(copy))
        states.add(current)
        if current == "appended":
            vczstore.repair(copy, quick=True)  # consolidated metadata are written last
        else:
            vczstore.append(copy, batch, impl="zarr")
        cohort.assert_same(cohort.read_vcz(copy), AFTER)
        assert vczstore.verify(copy).errors == []
        assert beside(copy) == []
    assert {"as before", "wider"} <= states


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compact", "repair"])
def test_other_operations_leave_an_append_in_progress_alone(tmp_path: Path, command: str) -> None:
    """The folders next to the store belong to the append until it has ended."""
    store, batch = make(tmp_path)
    results = []

    def meddle(what: str, *_: int) -> None:
        if what.startswith("writing") and beside(store):
            results.append(CliRunner().invoke(main, [command, str(store)]))

    vczstore.append(store, batch, progress=meddle)
    assert results
    assert {(result.exit_code, len(result.stderr.splitlines())) for result in results} == {(3, 1)}
    cohort.assert_same(cohort.read_vcz(store), AFTER)
    assert beside(store) == []
    assert vczstore.verify(store).errors == []


@pytest.mark.slow
def test_an_append_waits_for_a_lock_that_is_held_briefly(tmp_path: Path) -> None:
    """A compaction that finds the store locked holds the other lock for a moment, which must not fail an append."""
    store, batch = make(tmp_path)
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with leftovers.settling(store):
            held.set()
            over.wait(0.5)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(10)
    vczstore.append(store, batch)
    over.set()
    other.join()
    cohort.assert_same(cohort.read_vcz(store), AFTER)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "widen": vczstore.append,
    "append": vczstore.append,
    "harmonise": lambda store, batch, **o: vczstore.append(store, batch, harmonise=True, **o),
    "update": vczstore.update,
    "remove": lambda store, _, **o: vczstore.remove(store, "S0001", **o),
    "purge": lambda store, _, **o: vczstore.remove(store, "S0001", purge=True, **o),
    "recompute": lambda store, _, **o: vczstore.recompute(store, **o),
    "run": lambda store, batch, **o: vczstore.run(vczstore.plan("append", store, batch), **o),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_becomes_visible_once_the_lock_is_lost(tmp_path: Path, name: str) -> None:
    """
    Another user has deleted it and works on the store: no exchange of folders, no new shapes, IDs or attributes.

    That samples will be withdrawn is recorded before their values are overwritten.
    """
    store, batch = make(tmp_path)
    if name != "widen":
        values = {**NEW, "call_DP": NEW["call_DP"] - 70_000, "sample_id": OLD["sample_id"][:2]}
        values["call_DP"] = values["call_DP"].astype("i2")
        values["sample_id"] = OLD["sample_id"][:2] if name == "update" else NEW["sample_id"]
        batch = tmp_path / "other.vcz"
        cohort.write_vcz(batch, values)
    documents = documents_of(store)
    ids = cohort.read_vcz(store)["sample_id"].tolist()

    def lose(what: str, *_: int) -> None:
        if what.startswith("writing"):
            (store / LOCK).unlink(missing_ok=True)

    with pytest.raises(StaleError, match="was deleted while") as caught:
        OPERATIONS[name](store, batch, progress=lose)
    assert "\n" not in str(caught.value)
    assert documents_of(store) == documents
    assert cohort.read_vcz(store)["sample_id"].tolist() == ids
    assert beside(store) == []
    if name == "widen":
        cohort.assert_same(cohort.read_vcz(store), OLD)
    OPERATIONS[name](store, batch)
    assert vczstore.verify(store).errors == []


def test_the_lock_is_held_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hard links, too, the lock is held from beginning to end, including the exchange of folders."""
    store, batch = make(tmp_path)

    def link(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    phases = []

    def look(what: str, *_: int) -> None:
        if what.startswith("writing"):
            with pytest.raises(BusyError):
                vczstore.remove(store, "S0001")
            phases.append(what)

    monkeypatch.setattr("os.link", link)
    vczstore.append(store, batch, progress=look)
    assert len(phases) > 1
    cohort.assert_same(cohort.read_vcz(store), AFTER)
