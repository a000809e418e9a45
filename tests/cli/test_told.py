"""What people are told: of the past, of what is left, of ways out, and in figures that agree."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import vczstore
from tests.support import cohort
from tests.support.converted import ALLOWED, CALL, text
from tests.support.converted import make as from_vcf
from vczstore.cli.main import main

Small = tuple[Path, Path, dict[str, np.ndarray], dict[str, np.ndarray]]


def run(*arguments: object, status: int = 0) -> str:
    """What a command says."""
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    assert done.exit_code == status, done.output
    return done.output


@pytest.mark.parametrize("at", ["tag", "snapshot", "branch"])
@pytest.mark.slow
def test_info_of_the_past_has_the_history_up_to_then(small: Small, tmp_path: Path, at: str) -> None:
    plain, batch, _, _ = small
    store = tmp_path / "store.icechunk"
    vczstore.copy_store_to_icechunk(plain, store)
    vczstore.tag(store, "v1")
    then = vczstore.info(store)
    vczstore.append(store, batch)
    assert len(vczstore.info(store).history) == len(then.history) + 1
    place = {"tag": "v1", "snapshot": then.snapshot, "branch": "main"}[at]
    found = json.loads(run("info", store, "--at", place, "--json"))
    expected = vczstore.info(store) if at == "branch" else then
    assert found["history"] == expected.history
    assert found["history"][0]["id"] == found["snapshot"]


@pytest.mark.slow
def test_update_after_alleles_came_in_names_the_way_out(tmp_path: Path) -> None:
    store = from_vcf(tmp_path, "a", text(["A1"], f"1 5 C AC=1 {CALL}"))
    batch = from_vcf(tmp_path, "b", text(["B1"], f"1 5 G AC=1 {CALL}"))
    again = from_vcf(tmp_path, "c", text(["A1"], "1 5 C AC=1 1/1:7,8:8:40,0,30"))
    vczstore.append(store, batch, **ALLOWED)
    before = cohort.digest(store)
    said = run("update", store, again, status=1)
    assert len(said.splitlines()) == 1
    assert "express the source over the store with vczstore normalise first" in said
    assert cohort.digest(store) == before

    run("normalise", store, again, tmp_path / "over.vcz")
    run("update", store, tmp_path / "over.vcz")
    found = cohort.read_vcz(store)
    assert found["call_AD"][0].tolist() == [[7, 8, -1], [5, -1, 6]]
    assert found["call_genotype"][0].tolist() == [[1, 1], [0, 2]]


@pytest.mark.slow
def test_repair_tells_of_chunks_that_gc_deletes(small: Small) -> None:
    """An append that failed before its samples became visible has left chunks beyond the arrays."""
    store, _, _, _ = small
    chunk = store / "call_DP/c/0"
    (chunk / "9").write_bytes((chunk / "0").read_bytes())
    said = f"1 chunk that no reader sees is left of a stopped append; vczstore gc {store} deletes it"
    assert run("repair", store) == f"repair {store}: nothing to repair; {said}\n"
    assert json.loads(run("repair", store, "--json"))["note"] == said
    assert "1 chunks deleted" in run("gc", store)
    assert run("repair", store) == f"repair {store}: nothing to repair\n"


@pytest.mark.slow
def test_figures_of_a_removal_fit_any_number(small: Small, tmp_path: Path) -> None:
    store, _, _, _ = small
    vczstore.remove(store, ["S0001"])
    (tmp_path / "ids").write_text("S0001\n")
    said = run("verify-removal", store, "-S", tmp_path / "ids")
    assert re.search(r"^  IDs +1$", said, re.MULTILINE)
    assert re.search(r"^  values of removed samples that are not missing +0$", said, re.MULTILINE)
    assert "1 IDs" not in said


@pytest.mark.slow
def test_figures_of_a_dry_run_agree(tmp_path: Path) -> None:
    """Chunks of the store that are re-encoded in another dtype or rewritten are a part of those that are encoded."""
    store = from_vcf(tmp_path, "a", text([f"A{i}" for i in range(5)], f"1 5 C RD=7,8 {' '.join([CALL] * 5)}"))
    batch = from_vcf(tmp_path, "b", text(["B1"], "1 5 G RD=7,8 0/1:5,600:6:30,0,40"))
    flags = ["--harmonise", "--allow-new-alleles", "--dry-run"]
    said = run("append", store, batch, *flags)
    re_encoded, rewritten = (
        int(m[1])
        for m in (re.search(r"(\d+) chunks re-encoded", said), re.search(r"rewritten (\d+) chunks", said))
        if m
    )
    line = re.search(r"(\d+) encoded, of which (\d+) re-encoded and (\d+) rewritten hold what is in the store", said)
    assert line is not None, said
    assert (int(line[2]), int(line[3])) == (re_encoded, rewritten)
    plan = json.loads(run("append", store, batch, *flags, "--json"))["plan"]
    assert plan["chunks_of_store"] == re_encoded + rewritten < plan["chunks_decoded"] == int(line[1])
    assert zarr.open_group(store)["call_AD"].shape[1] == 5  # type: ignore[union-attr]
