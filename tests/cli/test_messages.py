"""Output of commands: history of old states, leftovers, advice in errors, and consistent figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import zarr

import vczstore
from tests.support import cohort
from tests.support.command_line import printed
from tests.support.converted import ALLOWED, CALL, text
from tests.support.converted import make as from_vcf

Small = tuple[Path, Path, dict[str, np.ndarray], dict[str, np.ndarray]]


@pytest.mark.parametrize("at", ["tag", "snapshot", "branch"])
@pytest.mark.slow
def test_info_of_an_old_state_has_its_history(small: Small, tmp_path: Path, at: str) -> None:
    plain, batch, _, _ = small
    store = tmp_path / "store.icechunk"
    vczstore.copy_store_to_icechunk(plain, store)
    vczstore.tag(store, "v1")
    old = vczstore.info(store)
    vczstore.append(store, batch)
    assert len(vczstore.info(store).history) == len(old.history) + 1
    ref = {"tag": "v1", "snapshot": old.snapshot, "branch": "main"}[at]
    document = json.loads(printed("info", store, "--at", ref, "--json"))
    expected = vczstore.info(store) if at == "branch" else old
    assert document["history"] == expected.history
    assert document["history"][0]["id"] == document["snapshot"]


@pytest.mark.slow
def test_update_after_new_alleles_advises_to_normalise(tmp_path: Path) -> None:
    store = from_vcf(tmp_path, "a", text(["A1"], f"1 5 C AC=1 {CALL}"))
    batch = from_vcf(tmp_path, "b", text(["B1"], f"1 5 G AC=1 {CALL}"))
    again = from_vcf(tmp_path, "c", text(["A1"], "1 5 C AC=1 1/1:7,8:8:40,0,30"))
    vczstore.append(store, batch, **ALLOWED)
    before = cohort.digest(store)
    message = printed("update", store, again, status=1)
    assert len(message.splitlines()) == 1
    assert "express the source over the store with vczstore normalise first" in message
    assert cohort.digest(store) == before

    printed("normalise", store, again, tmp_path / "over.vcz")
    printed("update", store, tmp_path / "over.vcz")
    arrays = cohort.read_vcz(store)
    assert arrays["call_AD"][0].tolist() == [[7, 8, -1], [5, -1, 6]]
    assert arrays["call_genotype"][0].tolist() == [[1, 1], [0, 2]]


@pytest.mark.slow
def test_repair_reports_chunks_that_gc_deletes(small: Small) -> None:
    """An append that fails before its samples become visible leaves chunks beyond the end of the arrays."""
    store, _, _, _ = small
    chunk = store / "call_DP/c/0"
    (chunk / "9").write_bytes((chunk / "0").read_bytes())
    note = f"1 chunk that no reader sees is left of a stopped append; vczstore gc {store} deletes it"
    assert printed("repair", store) == f"repair {store}: nothing to repair; {note}\n"
    assert json.loads(printed("repair", store, "--json"))["note"] == note
    assert "1 chunks deleted" in printed("gc", store)
    assert printed("repair", store) == f"repair {store}: nothing to repair\n"


@pytest.mark.slow
def test_figures_of_verify_removal(small: Small, tmp_path: Path) -> None:
    store, _, _, _ = small
    vczstore.remove(store, ["S0001"])
    (tmp_path / "ids").write_text("S0001\n")
    output = printed("verify-removal", store, "-S", tmp_path / "ids")
    assert re.search(r"^  IDs +1$", output, re.MULTILINE)
    assert re.search(r"^  values of removed samples that are not missing +0$", output, re.MULTILINE)
    assert "1 IDs" not in output


@pytest.mark.slow
def test_figures_of_a_dry_run_are_consistent(tmp_path: Path) -> None:
    """The encoded chunks include chunks of the store that are rewritten, or re-encoded with another dtype."""
    store = from_vcf(tmp_path, "a", text([f"A{i}" for i in range(5)], f"1 5 C RD=7,8 {' '.join([CALL] * 5)}"))
    batch = from_vcf(tmp_path, "b", text(["B1"], "1 5 G RD=7,8 0/1:5,600:6:30,0,40"))
    flags = ["--harmonise", "--allow-new-alleles", "--dry-run"]
    output = printed("append", store, batch, *flags)
    re_encoded, rewritten = (
        int(m[1])
        for m in (re.search(r"(\d+) chunks re-encoded", output), re.search(r"rewritten (\d+) chunks", output))
        if m
    )
    line = re.search(r"(\d+) encoded, of which (\d+) re-encoded and (\d+) rewritten hold what is in the store", output)
    assert line is not None, output
    assert (int(line[2]), int(line[3])) == (re_encoded, rewritten)
    plan = json.loads(printed("append", store, batch, *flags, "--json"))["plan"]
    assert plan["chunks_of_store"] == re_encoded + rewritten < plan["chunks_decoded"] == int(line[1])
    assert zarr.open_group(store)["call_AD"].shape[1] == 5  # type: ignore[union-attr]
