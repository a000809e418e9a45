"""Killed commands resume from the chunks they had written, on stores that keep uncommitted chunks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vczstore
from tests.support import cohort
from vczstore.errors import Interrupted
from vczstore.execution import checkpoint

LAYOUT: dict[str, Any] = {"variants_chunk": 16, "samples_chunk": 16, "compressors": None}


def make(first: int, n: int, seed: int) -> dict[str, np.ndarray]:
    arrays = cohort.make_arrays(320, cohort.ids(first, n), seed=seed)
    fields = ("sample_id", "call_genotype", "call_DP")
    return {k: a for k, a in arrays.items() if k in fields or "samples" not in cohort.DIMENSIONS[k]}


OLD, BATCH = make(0, 40, 0), make(40, 40, 1)
AGAIN = {**make(0, 40, 2), "sample_id": OLD["sample_id"]}
IDS = [OLD["sample_id"][0], OLD["sample_id"][20]]
OPERATIONS: dict[str, tuple[list[Any], dict[str, np.ndarray]]] = {
    "append": (["batch.vcz"], cohort.expected_append(OLD, BATCH)),
    "update": (["again.vcz"], cohort.expected_update(OLD, AGAIN)),
    "remove": ([IDS], cohort.expected_remove(OLD, IDS)),
}

KILLED = """
import os, signal, sys
import vczstore
from vczstore.execution import checkpoint

checkpoint.REST, checkpoint.MIN_CHUNKS = 0, 64
left = 5

def progress(what, done, total):
    global left
    left -= what.startswith("writing")
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

getattr(vczstore, sys.argv[1])(*eval(sys.argv[2]), progress=progress)
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resumed")
    cohort.write_icechunk(folder / "store", OLD, **LAYOUT)
    for name, arrays in (("plain", OLD), ("batch.vcz", BATCH), ("again.vcz", AGAIN)):
        cohort.write_vcz(folder / name, arrays, **LAYOUT)
    return folder


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "MIN_CHUNKS", 64)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def journals(place: Path) -> list[Path]:
    return sorted((place / "cache").rglob("*.journal*"))


def kill(name: str, *arguments: object) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, name, repr(arguments)], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL


def read(store: Path) -> dict[str, np.ndarray]:
    return cohort.read_vcz(cohort.icechunk_store(store) if store.name == "store" else store)


def fail(name: str, *arguments: Any, **options: Any) -> None:
    """Run an operation, and interrupt it after three tasks."""
    left = iter(range(3))

    def progress(what: str, *_: int) -> None:
        if what.startswith("writing") and next(left, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        getattr(vczstore, name)(*arguments, progress=progress, **options)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.slow
def test_a_killed_command_is_resumed(place: Path, name: str) -> None:
    arguments, expected = OPERATIONS[name]
    kill(name, "store", *arguments)
    (journal,) = journals(place)
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600
    assert stat.S_IMODE(journal.parent.stat().st_mode) == 0o700
    content = journal.read_bytes()
    assert not [sample for sample in (*OLD["sample_id"], *BATCH["sample_id"]) if sample.encode() in content]
    cohort.assert_same(read(place / "store"), OLD)
    plan = vczstore.plan(name, "store", *arguments)
    result = getattr(vczstore, name)("store", *arguments)
    assert 0 < result.resumed_chunks < plan.encoded_chunks + plan.decoded_chunks
    assert result.chunks + result.resumed_chunks == plan.encoded_chunks + plan.decoded_chunks
    assert f", {result.resumed_chunks} chunks by a run that was stopped" in result.lines()[0]
    cohort.assert_same(read(place / "store"), expected)
    assert vczstore.verify("store").ok
    assert journals(place) == []


@pytest.mark.slow
def test_a_killed_command_on_plain_zarr_starts_over(place: Path) -> None:
    arguments, expected = OPERATIONS["append"]
    kill("append", "plain", *arguments)
    assert journals(place) == []
    assert vczstore.append("plain", *arguments).resumed_chunks == 0
    cohort.assert_same(read(place / "plain"), expected)


@pytest.mark.slow
def test_only_the_same_command_is_resumed(place: Path) -> None:
    """Neither another operation nor a changed store resumes from a journal."""
    fail("append", "store", "batch.vcz")
    (left,) = journals(place)
    assert vczstore.update("store", "again.vcz").resumed_chunks == 0
    assert journals(place) == [left]
    assert vczstore.append("store", "batch.vcz").resumed_chunks == 0  # to a store that has changed
    assert journals(place) == []
    cohort.assert_same(read(place / "store"), cohort.expected_append(cohort.expected_update(OLD, AGAIN), BATCH))


@pytest.mark.slow
def test_another_implementation_does_not_resume(place: Path) -> None:
    """The journal of another implementation lacks writes such as those of removed IDs."""
    fail("remove", "store", IDS)
    (left,) = journals(place)
    head = json.loads(left.read_bytes().partition(b"\n")[0])
    assert head["about"]["impl"] == "cubed"
    assert vczstore.remove("store", IDS, impl="zarr").resumed_chunks == 0
    cohort.assert_same(read(place / "store"), OPERATIONS["remove"][1])


@pytest.mark.slow
def test_a_journal_has_no_values_of_sample_fields(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It contains neither IDs nor other names of samples."""
    monkeypatch.setitem(cohort.DIMENSIONS, "sample_alias", ("samples",))
    text = {"sample_alias": np.array([f"alias-of-{name}" for name in BATCH["sample_id"]])}
    cohort.write_vcz(place / "named.vcz", {**BATCH, **text}, **LAYOUT)
    fail("append", "store", "named.vcz", add_fields=["sample_alias"])
    (left,) = journals(place)
    assert b"alias-of" not in left.read_bytes()
    result = vczstore.append("store", "named.vcz", add_fields=["sample_alias"])
    assert result.resumed_chunks > 0
    np.testing.assert_array_equal(read(place / "store")["sample_alias"][-40:], text["sample_alias"])


@pytest.mark.slow
def test_large_fields_of_samples_are_written_by_tasks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept reference blocks have no variants, but as many rows as gVCFs: only what may hold IDs is held back."""
    monkeypatch.setitem(cohort.DIMENSIONS, "sample_blocks", ("samples", "blocks", "fields"))
    monkeypatch.setitem(cohort.DIMENSIONS, "sample_aliases", ("samples", "aliases"))
    blocks = np.arange(40 * 50 * 2, dtype="i4").reshape(40, 50, 2)
    added = {"sample_blocks": blocks, "sample_aliases": np.full((40, 2), "alias")}

    def n_tasks(*names: str) -> int:
        totals: dict[str, int] = {}
        store, batch = (place / "-".join((of, *names)) for of in ("with", "batch"))
        shutil.copytree(place / "store", store)
        cohort.write_vcz(batch, {**BATCH, **{name: added[name] for name in names}}, **LAYOUT)
        vczstore.append(store, batch, add_fields=names, progress=lambda what, _, n: totals.update({what: n}))
        actual = cohort.read_vcz(cohort.icechunk_store(store))
        for name in names:
            np.testing.assert_array_equal(actual[name][-40:], added[name])
        return totals["writing"]

    assert n_tasks("sample_aliases") == n_tasks() < n_tasks("sample_blocks") == n_tasks(*added)


@pytest.mark.slow
def test_stale_or_unwanted_journals_are_not_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail("append", "store", "batch.vcz", no_resume=True)
    assert journals(place) == []
    fail("append", "store", "batch.vcz")
    (stale,) = journals(place)
    mtime = time.time() - checkpoint.MAX_AGE - 1
    os.utime(stale, (mtime, mtime))
    fail("update", "store", "again.vcz")
    (left,) = journals(place)
    assert left != stale
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "MIN_CHUNKS", 10**6)
        fail("append", "store", "batch.vcz")
    assert journals(place) == [left]


@pytest.mark.slow
def test_a_command_works_without_a_cache(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    (place / "cache").write_text("")
    assert vczstore.append("store", "batch.vcz").committed
    assert caplog.messages == []  # at the default level
