"""Provenance: the batch in which each sample was appended stays recorded through later operations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import vczstore
from tests.support import cohort, vcf
from tests.support.command_line import fails, run
from tests.support.killed import killed
from tests.support.ways import Way
from vczstore.vcz.model import BATCH
from vczstore.vcz.zarr_objects import LOCK

KINDS = {"format3": ("zarr", "regular"), "icechunk": ("icechunk", "regular"), "flexible": ("icechunk", "flexible")}
FIELDS = ("call_genotype", "call_DP")
PARTS = [cohort.make_arrays(6, cohort.ids(3 * i, 3), fields=FIELDS, seed=i) for i in range(3)]


def make(kind: str, folder: Path) -> Path:
    """Create a store with two batches; a third one lies next to it."""
    backend, grid = KINDS[kind]
    parts = [folder / f"{i}.vcz" for i in range(3)]
    for path, arrays in zip(parts, PARTS, strict=True):
        cohort.write_vcz(path, arrays)
    store = folder / "store"
    vczstore.create(store, *parts, backend_storage=backend, sample_grid=grid, samples_chunk=2, provenance=True)
    for path in parts[:2]:
        vczstore.append(store, path)
    return store


def numbers(store: Path) -> list[int]:
    is_repository = (store / "snapshots").is_dir()
    return cohort.read_vcz(cohort.icechunk_store(store) if is_repository else store)[BATCH].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_batch_numbers_survive_later_operations(kind: str, tmp_path: Path) -> None:
    store = make(kind, tmp_path)
    assert numbers(store) == [1, 1, 1, 2, 2, 2]
    recalled = cohort.make_arrays(6, ["S0004", "S0001"], fields=FIELDS, seed=9)
    cohort.write_vcz(tmp_path / "recalled.vcz", recalled)
    vczstore.update(store, tmp_path / "recalled.vcz")
    vczstore.remove(store, "S0001")
    assert numbers(store) == [1, -1, 1, 2, 2, 2]
    (tmp_path / "job.yaml").write_text(f"store: {store}\nsteps:\n  - append: {{source: 2.vcz, harmonise: true}}\n")
    run("run", tmp_path / "job.yaml")
    vczstore.compact(store)
    assert numbers(store) == [1, 1, 2, 2, 2, 3, 3, 3]
    vczstore.regrid(store, samples_chunk=4)
    assert numbers(store) == [1, 1, 2, 2, 2, 3, 3, 3]
    assert vczstore.verify(store).ok
    shown = json.loads(run("samples", store, "--long", "--json").stdout)
    assert (shown["batches"], [row["batch"] for row in shown["table"]]) == (numbers(store), [1, 2, 3])
    rows = [line.split("\t") for line in run("samples", store, "-l").stdout.splitlines()]
    assert [(sample, int(n)) for sample, n, *_ in rows] == list(zip(shown["ids"], shown["batches"], strict=True))
    assert {tuple(rest) for _, n, *rest in rows if n == "3"} == {(shown["table"][2]["time"], shown["table"][2]["job"])}
    if kind != "format3":
        assert shown["table"][2]["job"] == next(entry["job"] for entry in vczstore.log(store) if entry["job"])
    assert "job" not in shown["table"][1]
    if kind == "format3":
        vczstore.copy_store_to_icechunk(store, tmp_path / "copy")
        assert vczstore.samples(tmp_path / "copy", long=True).batches == shown["batches"]


@pytest.mark.slow
def test_readers_export_and_normalise_ignore_batches(tmp_path: Path) -> None:
    store = make("format3", tmp_path)
    assert len(vcf.records(vcf.vcztools_view(store))) == 7
    vczstore.export(store, tmp_path / "out")
    expected = {**cohort.read_vcz(store)}
    expected.pop(BATCH)
    cohort.assert_same(cohort.read_vcz(tmp_path / "out"), expected)
    vczstore.normalise(store, tmp_path / "2.vcz", tmp_path / "mapped.vcz")
    vczstore.append(store, tmp_path / "mapped.vcz")
    assert numbers(store) == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_a_store_without_provenance(tmp_path: Path) -> None:
    store = Way("format3", "cubed").make(tmp_path, PARTS[0])
    assert "create --provenance" in fails("samples", store, "--long")
    assert np.all(np.array(vczstore.samples(store).ids) == PARTS[0]["sample_id"])


@pytest.mark.slow
def test_killed(tmp_path: Path) -> None:
    """Repeating a killed append completes it with the same batch number."""
    store = make("format3", tmp_path)
    code = f"import vczstore; vczstore.append(store, {str(tmp_path / '2.vcz')!r}, impl='zarr')"
    for place in killed(store, tmp_path / "killed", code, last=16, step=5):
        (place / "sample_id" / LOCK).unlink(missing_ok=True)  # held by the killed process
        if len(cohort.read_vcz(place)["sample_id"]) == 6 or not vczstore.verify(place, quick=True).ok:
            vczstore.append(place, tmp_path / "2.vcz")
        assert vczstore.samples(place, long=True).batches == [1, 1, 1, 2, 2, 2, 3, 3, 3]
        assert [row["batch"] for row in vczstore.samples(place, long=True).table or ()] == [1, 2, 3]
