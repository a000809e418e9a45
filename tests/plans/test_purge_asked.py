"""`purge`: its dry run, its confirmation on a terminal, and the counts of the history that it keeps."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import vczstore
from tests.support import cohort
from tests.support.command_line import run
from tests.support.refusals import complain
from tests.support.small_stores import repository_of, unchanged
from vczstore.errors import TagError

FIELDS = ("sample_id", "contig_id", "variant_contig", "variant_position", "variant_allele", "call_genotype")
OLD = {name: values for name, values in cohort.make_arrays(4, cohort.ids(0, 5)).items() if name in FIELDS}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A repository with three commits, and a tag on the second."""
    cohort.write_icechunk(tmp_path / "store.icechunk", OLD)
    store = tmp_path / "store.icechunk"
    vczstore.remove(store, ["S0001"], impl="zarr")
    vczstore.tag(store, "r1")
    vczstore.remove(store, ["S0002", "S0003"], impl="zarr")
    return store


def on_a_terminal(answer: str, *arguments: object) -> tuple[int, str]:
    """Run a command with a terminal as standard input; return its status and output."""
    controller, tty = pty.openpty()
    try:
        os.write(controller, f"{answer}\n".encode())
        command = [sys.executable, "-m", "vczstore", *map(str, arguments)]
        process = subprocess.run(
            command, stdin=tty, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False
        )
    finally:
        os.close(controller)
        os.close(tty)
    return process.returncode, process.stdout


@pytest.mark.slow
def test_a_dry_run_reports_what_would_be_deleted(store: Path, tmp_path: Path) -> None:
    with unchanged(store):
        complain(TagError, ["the tag r1"], lambda: vczstore.purge(store, dry_run=True))
        deleted = json.loads(run("purge", store, "--tags", "delete", "--dry-run", "--json").stdout)
        recreated = run("purge", store, "--tags", "recreate", "--dry-run").stdout
    assert deleted["names"] == ["r1"]
    assert deleted["counts"]["snapshots"] == 3 == len(list(repository_of(store).ancestry(branch="main"))) - 1
    assert "would rewrite r1" in recreated
    cohort.write_vcz(tmp_path / "plain.vcz", OLD)
    with unchanged(tmp_path / "plain.vcz"):
        assert "would delete nothing" in run("purge", tmp_path / "plain.vcz", "--dry-run").stdout


def test_the_log_survives_purges(store: Path) -> None:
    def log_entries() -> list[tuple[str, str, int]]:
        entries = [(entry["time"], step) for entry in vczstore.log(store) for step in entry["steps"]]
        return [(time, step["operation"], step.get("samples removed", 0)) for time, step in entries]

    before = [row for row in log_entries() if row[1] == "remove"]
    assert [n for _, _, n in before] == [2, 1]
    vczstore.purge(store, tags="delete")
    assert [row for row in log_entries() if row[1] == "remove"] == before
    vczstore.remove(store, ["S0004"], impl="zarr")
    vczstore.purge(store)
    after = log_entries()
    assert [row for row in after if row[1] == "remove"][1:] == before
    assert len({row[0] for row in after if row[1] == "purge"}) in (1, 2)  # the times may differ by a second
    assert [row[1] for row in after].count("purge") == 2
    repository = repository_of(store)
    messages = [f"{s.message} {json.dumps(s.metadata)}" for s in repository.ancestry(branch="main")]
    assert not [text for text in messages if "S000" in text]


@pytest.mark.slow
def test_a_purge_asks_for_confirmation_on_a_terminal(store: Path) -> None:
    with unchanged(store):
        status, output = on_a_terminal("n", "purge", store, "--tags", "delete")
        assert (status, "would delete r1" in output, "nothing was done" in output) == (1, True, True), output
        status, output = on_a_terminal("n", "remove", store, "S0004", "--purge", "--tags", "delete")
        assert (status, "nothing was done" in output) == (1, True), output
    status, output = on_a_terminal("y", "purge", store, "--tags", "delete")
    assert (status, "deleted r1" in output) == (0, True), output
    assert "Delete it" not in run("remove", store, "S0004", "--purge", "--yes").output
    assert "Delete it" not in run("purge", store).output  # not on a terminal
