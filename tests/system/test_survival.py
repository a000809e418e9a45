"""A small sample of the stress tests in ``python -m tests.system.survival``, and regression tests of their findings."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import icechunk
import obstore
import pytest
from click.testing import CliRunner

import vczstore
from executors.local import ThreadsExecutor
from tests.support import cohort
from tests.system.survival import erasure, kills, sets, writers
from tests.system.survival.erasure import LAYOUTS, Layout
from tests.system.survival.kills import Case
from vczstore.cli.main import main
from vczstore.errors import Interrupted
from vczstore.stores.leftovers import HALF_WRITTEN, half_written

CASES = (
    *(Case("append", *on) for on in (("format2", "threads"), ("format3", "processes"), ("icechunk", "threads"))),
    *(Case("remove", *on) for on in (("format2", "threads"), ("icechunk", "processes"))),
    *(Case("compact", *on) for on in (("format3", "threads"), ("icechunk", "threads"))),
    *(Case("regrid", *on) for on in (("format3", "threads"), ("icechunk", "threads"))),
    Case("regrid-shards", "format3", "threads"),
    *(Case("copy", *on) for on in (("format2", "threads"), ("format3", "processes"))),
    *(Case("run", *on) for on in (("format3", "threads"), ("icechunk", "threads"))),
)
"""Every operation, kind of store and executor, but not all combinations."""
OF_SETS = [case for case in sets.CASES if case not in {("run", "icechunk"), ("append", "groups"), ("run", "format3")}]
"""A subset of `sets.CASES`; of two kills of each, one is followed by repair and one by a rerun."""


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kills(case: Case, pytestconfig: pytest.Config) -> None:
    n = -(-pytestconfig.getoption("--kills") // len(CASES))
    tally = kills.Campaign(pytestconfig.getoption("--seed"), (case,)).tally(n)
    assert tally.failures == ()
    assert tally.tried == n


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "kind"), OF_SETS)
def test_kills_of_sets(operation: str, kind: str, pytestconfig: pytest.Config) -> None:
    tally = sets.tally(operation, kind, 2, pytestconfig.getoption("--seed"))
    assert tally.failures == ()
    assert tally.tried == 2


@pytest.mark.slow
@pytest.mark.parametrize(("where", "n", "mixed"), [("local", 3, True), ("moto", 4, False)])
def test_writers(where: str, n: int, mixed: bool) -> None:
    tally = writers.one_round(where, n, 0, mixed=mixed)
    assert tally.failures == ()
    assert tally.tried == n + 2 * mixed


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_erasure(layout: Layout) -> None:
    tally = erasure.withdraw(layout)
    assert tally.failures == ()
    assert tally.tried > 5


# ---- controls of the harness -----------------------------------------------------------------


def test_between_detects_invalid_intermediate_states() -> None:
    append = kills.OPERATIONS["append"]
    assert kills.between(kills.OLD, append) == []
    longer = {**kills.OLD, "call_DP": kills.APPENDED["call_DP"]}
    assert kills.between(longer, append) == []
    other = {**kills.OLD, "call_DP": kills.OLD["call_DP"].copy()}
    other["call_DP"][7, 3] += 1
    assert kills.between(other, append) == ["call_DP has values that are neither old nor new"]
    early = {**kills.OLD, "sample_id": kills.APPENDED["sample_id"]}
    assert len(kills.between(early, append)) == sum("samples" in cohort.DIMENSIONS[n] for n in kills.FIELDS) - 1
    remove = kills.OPERATIONS["remove"]
    half = {**kills.OLD, "call_GL": kills.REMOVED["call_GL"]}
    assert kills.between(half, remove) == []
    early = {**kills.REMOVED, "call_GL": kills.OLD["call_GL"]}
    assert kills.between(early, remove) == ["call_GL has values of samples whose IDs are removed already"]
    wrong = {**kills.OLD, "call_GL": cohort.expected_remove(kills.OLD, ["S0002"])["call_GL"]}
    assert kills.between(wrong, remove) == ["call_GL has values that are neither old nor new"]


# ---- regression tests ------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["within the commit", "after it"])
@pytest.mark.slow
def test_an_interrupt_after_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    store, batch = tmp_path / "store", tmp_path / "batch.vcz"
    cohort.write_icechunk(store, kills.OLD)
    cohort.write_vcz(batch, kills.NEW)
    commit = icechunk.Session.commit

    def commit_and_interrupt(session: icechunk.Session, *args: object, **options: object) -> None:
        commit(session, *args, **options)
        signal.raise_signal(signal.SIGINT)

    def interrupt_on_close(executor: ThreadsExecutor) -> None:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)

    if when == "within the commit":
        monkeypatch.setattr(icechunk.Session, "commit", commit_and_interrupt)
    else:
        monkeypatch.setattr(ThreadsExecutor, "close", interrupt_on_close)
    with pytest.raises(Interrupted, match=r"^append: interrupted; it was done already$"):
        vczstore.append(store, batch)
    cohort.assert_same(cohort.read_vcz(cohort.icechunk_store(store)), kills.APPENDED)


@pytest.mark.slow
def test_an_interrupt_while_the_result_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort.write_vcz(tmp_path / "store.vcz", kills.OLD)
    monkeypatch.setattr("vczstore.cli.main.show", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    result = CliRunner().invoke(main, ["remove", str(tmp_path / "store.vcz"), "S0001"])
    assert (result.exit_code, result.stderr) == (130, "remove: interrupted; it was done already\n")


@pytest.mark.parametrize(
    ("kind", "name", "command"),
    [
        ("format3", f"call_DP/c/0/0.{'0' * 32}.partial", "purge"),  # as named by zarr
        ("format3", "call_DP/c/0/0#1", "gc"),  # as named by obstore
        ("icechunk", "chunks/89BSBEJWC97RB30VRRA0#1", "purge"),
        ("icechunk", "chunks/89BSBEJWC97RB30VRRA0#12", "gc"),
    ],
)
@pytest.mark.slow
def test_half_written_files_are_found_and_deleted(tmp_path: Path, kind: str, name: str, command: str) -> None:
    """A killed process may leave data of any sample in them, and later writes do not delete them."""
    store = tmp_path / "store.vcz"
    (cohort.write_icechunk if kind == "icechunk" else cohort.write_vcz)(store, cohort.some_arrays(10, cohort.ids(0, 7)))
    path = store / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"what S0001 has")
    vczstore.remove(store, "S0001", impl="zarr")
    if command == "purge":
        verdict = vczstore.verify_removal(store, "S0001")
        assert any("half written" in reason and "vczstore purge" in reason for reason in verdict.reasons)
    else:
        assert vczstore.gc(store, dry_run=True).counts["half-written files deleted"] == 1
        assert path.exists()
    assert "1 half-written files deleted" in CliRunner().invoke(main, [command, str(store)]).stdout
    assert not path.exists()
    if command == "purge":
        assert vczstore.verify_removal(store, "S0001").erased


@pytest.mark.slow
def test_a_killed_icechunk_writer_leaves_an_unlisted_file(tmp_path: Path) -> None:
    """obstore's listing hides temporary files of the storage layer it shares with Icechunk, so we match their names."""
    script = """if True:
        import icechunk, sys, zarr
        repository = icechunk.Repository.create(icechunk.local_filesystem_storage(sys.argv[1]))
        store = repository.writable_session("main").store
        group = zarr.create_group(store)
        array = group.create_array("a", shape=(4, 2**25), chunks=(1, 2**25), dtype="u1", compressors=None)
        while True:
            array[...] = 1
    """
    left: list[Path] = []
    for attempt in range(40):
        store = tmp_path / f"store{attempt}"
        writer = subprocess.Popen([sys.executable, "-c", script, store])
        try:
            deadline = time.monotonic() + 60
            while not any((store / "chunks").glob("*#*")) and time.monotonic() < deadline:
                time.sleep(0.001)
        finally:
            writer.kill()
            writer.wait()
        left = list((store / "chunks").glob("*#*"))
        if left:  # else the write completed before the signal
            break
    assert left
    assert list(half_written(store)) == left
    listed = [entry["path"] for page in obstore.list(obstore.store.LocalStore(store)) for entry in page]
    assert [path for path in listed if "#" in path] == []
    assert HALF_WRITTEN in vczstore.gc(store).counts
    assert list((store / "chunks").iterdir()) == []


def test_a_repository_that_was_copied_to_an_object_store() -> None:
    """A repository created in a folder disables conditional writes, which would lose concurrent commits in a bucket."""
    from vczstore.stores.icechunk_storage import runtime

    settings = runtime().storage
    assert settings is not None
    assert (settings.unsafe_use_conditional_create, settings.unsafe_use_conditional_update) == (True, True)
