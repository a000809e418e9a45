"""Compaction in place on plain Zarr, which replaces the folder: with kills, interrupts and concurrent writers."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import vczstore
from tests.support import cohort, forks
from tests.support.killed import killed
from tests.support.leaving import GONE, some_arrays
from tests.support.locks import job_lock
from tests.support.permissions import LIMITED, without_root
from tests.support.refusals import complain
from vczstore.cli.main import main
from vczstore.errors import BusyError, ConflictError, NotAStoreError, OptionError, StorageError
from vczstore.stores import filesystem, folder_swap, leftovers
from vczstore.stores.edits import SetAttribute
from vczstore.stores.folder_swap import LinkAllBut
from vczstore.stores.resolve import open_store
from vczstore.stores.withdrawal_key import SUFFIX

LOCK = ".store.vcz.vczstore-job.lock"
BEFORE = cohort.expected_remove(some_arrays(14), GONE)
AFTER = cohort.expected_compact(BEFORE)
LAYOUTS: dict[str, dict] = {
    "format2": {"zarr_format": 2},
    "format2-consolidated": {"zarr_format": 2, "consolidated": True},
    "format3": {},
    "format3-consolidated": {"consolidated": True},
    "format3-sharded": {"shards": (2, 2)},
}


def make(folder: Path, layout: str = "format3") -> Path:
    """Write `BEFORE`, a store from which samples have been removed."""
    folder.mkdir(exist_ok=True)
    cohort.write_vcz(folder / "store.vcz", some_arrays(14), **LAYOUTS[layout])
    vczstore.remove(folder / "store.vcz", GONE, impl="zarr")
    return folder / "store.vcz"


def read(store: Path) -> dict[str, np.ndarray]:
    return cohort.read_vcz(store)


def beside(store: Path) -> set[str]:
    """Names next to the store, without the withdrawal key and the compaction lock, which a killed process leaves."""
    return {path.name for path in store.parent.iterdir()} - {store.name, store.name + SUFFIX, LOCK}


def assert_compacted(store: Path) -> None:
    """Assert that the store equals `AFTER`, is valid, and that nothing is left next to it."""
    cohort.assert_same(read(store), AFTER)
    assert beside(store) == set()
    report = vczstore.verify(store, quick=True)
    assert report.errors == []


@pytest.mark.parametrize("impl", ["cubed", "zarr"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.slow
def test_in_place(tmp_path: Path, layout: str, impl: str) -> None:
    store = make(tmp_path, layout)
    result = vczstore.compact(store, impl=impl)
    assert (result.committed, result.snapshot) == (True, None)
    assert result.counts == {"samples dropped": 3, "samples kept": 11}
    assert_compacted(store)
    checked = vczstore.verify(store)
    assert (checked.errors, checked.outside) == ([], {})
    assert vczstore.verify_removal(store, GONE).erased
    before = cohort.digest(store)
    assert vczstore.compact(store, impl=impl).counts == {"samples dropped": 0, "samples kept": 11}
    assert cohort.digest(store) == before
    batch = {name: values for name, values in cohort.make_arrays(10, GONE, seed=5).items() if name in AFTER}
    cohort.write_vcz(tmp_path / "batch.vcz", batch)
    vczstore.append(store, tmp_path / "batch.vcz", impl=impl, allow_returning=True)
    cohort.assert_same(read(store), cohort.expected_append(AFTER, batch))


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    store = make(tmp_path)
    before = cohort.digest(tmp_path)
    done = CliRunner().invoke(main, ["compact", str(store), "--dry-run"])
    assert (done.exit_code, "3 samples dropped, 11 samples kept (dry run" in done.stdout) == (0, True), done.output
    assert cohort.digest(tmp_path) == before


@pytest.mark.slow
def test_other_processes(tmp_path: Path) -> None:
    store = make(tmp_path)
    vczstore.run(vczstore.plan("compact", store), executor="processes", max_workers=2)
    assert_compacted(store)


@pytest.mark.filterwarnings("ignore:Object at")
def test_unchanged_chunks_keep_their_files(tmp_path: Path) -> None:
    """Chunks before the first changed column, and those of arrays without samples, are the same files as before."""
    store = make(tmp_path)
    (store / "README").write_text("ours")
    (store / "extra").mkdir()
    (store / "extra" / "notes").write_text("ours too")
    (store / "call_GL" / "notes").write_text("and this")
    suffix = f".{'0' * 32}.partial"
    for name in ("sample_id/c/0", "call_GL/zarr"):
        (store / f"{name}{suffix}").write_text("S0004")  # left by a killed process
    shutil.copy(store / "call_GL/c/0/0/0", store / "call_GL/c/0/9999")  # left by an interrupted append
    store.chmod(0o2770)
    (store / "call_GL").chmod(0o700)
    inodes = {path: path.stat().st_ino for path in store.rglob("*") if path.is_file()}
    kept = [*store.glob("*/c/*/0/0"), *store.glob("call_FT/c/*/0"), *store.glob("variant_*/c/**/*"), store / "README"]
    kept += [store / "sample_id/c/0", store / "extra/notes", store / "call_GL/notes", store / "zarr.json"]
    plan = vczstore.plan("compact", store)
    result = vczstore.run(plan)
    assert_compacted(store)
    assert len(kept) > 20
    for path in kept:
        if path in inodes:
            assert (path.stat().st_ino, path.stat().st_nlink) == (inodes[path], 1), path
    assert [oct(path.stat().st_mode & 0o7777) for path in (store, store / "call_GL")] == ["0o2770", "0o700"]
    assert not list(store.rglob("*.partial"))
    assert not (store / "call_GL/c/0/9999").exists()
    # 14 samples in columns of 3: the second column is re-encoded, and later ones are hard-linked
    moving = {
        n: np.take(a, range(3, 6), cohort.DIMENSIONS[n].index("samples"))
        for n, a in AFTER.items()
        if "samples" in cohort.DIMENSIONS[n]
    }
    values = sum(a.size * (64 if a.dtype.kind in "OT" else a.dtype.itemsize) for a in moving.values())
    assert plan.bytes_written == values
    assert (result.chunks or 0) == plan.encoded_chunks + plan.decoded_chunks


@pytest.mark.slow
def test_writers_replace_files(tmp_path: Path) -> None:
    """Hard links rely on this: a rewritten chunk is a new file, with zarr's stores and with ours."""
    for backend in ("zarr", "obstore"):
        store = make(tmp_path / backend)
        shutil.copytree(store, tmp_path / backend / "links", copy_function=os.link)
        before = cohort.digest(tmp_path / backend / "links")
        vczstore.remove(str(store), "S0001", backend_storage=backend)
        assert cohort.digest(store) != before
        assert cohort.digest(tmp_path / backend / "links") == before


@pytest.mark.parametrize("why", ["EPERM", "EXDEV", "EMLINK"])
@pytest.mark.slow
def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    import errno

    def refused(*_: object) -> None:
        raise OSError(getattr(errno, why), why)

    store = make(tmp_path)
    monkeypatch.setattr(os, "link", refused)
    vczstore.compact(store)
    assert_compacted(store)


@pytest.mark.slow
def test_by_another_name(tmp_path: Path) -> None:
    """A symbolic link is kept and its target is replaced; relative paths and URLs work, too."""
    for i, name in enumerate(("link", "relative", "url")):
        store = make(tmp_path / str(i))
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(store)
        location = {"link": tmp_path / "link", "relative": os.path.relpath(store), "url": store.as_uri()}[name]
        vczstore.compact(location)
        assert (tmp_path / "link").is_symlink()
        assert_compacted(store)


# ---- kills and interrupts -------------------------------------------------------------------

TWO_RENAMES = "import vczstore.stores.folder_swap as r; r.exchange = lambda a, b: False; "
"""Setup as on a file system that cannot exchange two names atomically."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "before", "step"),
    [("format3", "", 5), ("format2-consolidated", "", 9), ("format3-sharded", TWO_RENAMES, 9)],
    ids=["exchange", "consolidated", "two renames"],
)
def test_killed(tmp_path: Path, layout: str, before: str, step: int) -> None:
    """Kill before changes of the file system: readers see the old or the new store, and the next run completes it."""
    model = {name: some_arrays(8)[name] for name in ("sample_id", "variant_position", "call_FT")}
    cohort.write_vcz(tmp_path / "template.vcz", model, variants_chunk=5, **LAYOUTS[layout])
    vczstore.remove(tmp_path / "template.vcz", "S0004", impl="zarr")
    old = cohort.expected_remove(model, ["S0004"])
    new, seen = cohort.expected_compact(old), list[str]()
    code = f"{before}import vczstore; vczstore.compact(store, impl='zarr')"
    stores = killed(tmp_path / "template.vcz", tmp_path / "killed", code, step=step)
    for i, store in enumerate(stores):
        if not store.exists():
            seen.append("nothing")
            with pytest.raises(NotAStoreError, match="vczstore repair completes the run that was stopped here"):
                vczstore.info(store)
        else:
            seen.append("old" if len(read(store)["sample_id"]) == 8 else "new")
            cohort.assert_same(read(store), old if seen[-1] == "old" else new)
            if beside(store):
                verdict = vczstore.verify_removal(store, "S0004")
                assert [reason for reason in verdict.reasons if "vczstore repair" in reason]
        if i % 2:
            assert vczstore.repair(store, quick=True).ok
            assert beside(store) == set()
            cohort.assert_same(read(store), old if seen[-1] == "old" else new)
        vczstore.compact(store, impl="zarr")
        cohort.assert_same(read(store), new)
        assert beside(store) == set()
        assert vczstore.verify(store, quick=True).ok
    assert len(stores) > 80 / step
    assert seen == sorted(seen, key=["old", "nothing", "new"].index)
    assert seen.count("nothing") == bool(before)
    assert seen.count("new") > 20 / step


@pytest.mark.slow
def test_readers_see_the_old_or_the_new_store(tmp_path: Path) -> None:
    """
    There is a store at every moment, either the old or the new one.

    A read that spans the exchange is detected by the folder's inode, which changes.
    """
    stores = [make(tmp_path / str(i)) for i in range(3)]
    current, stop, seen, errors = stores[:1], threading.Event(), list[int](), list[BaseException]()

    def look() -> None:
        try:
            while not stop.is_set():
                store = current[0]
                inode = store.stat().st_ino
                group = zarr.open_group(store, mode="r")
                arrays = {name: np.asarray(group[name][...]) for name in ("sample_id", "call_genotype")}
                if store.stat().st_ino == inode:
                    seen.append(len(arrays["sample_id"]))
                    model = BEFORE if seen[-1] == 14 else AFTER
                    cohort.assert_same(arrays, {name: model[name] for name in arrays})
        except BaseException as error:
            errors.append(error)

    reader = threading.Thread(target=look)
    reader.start()

    def wait_for(n_samples: int) -> None:
        while not errors and seen[-1:] != [n_samples]:
            time.sleep(0.001)

    for store in stores:
        current[0] = store
        wait_for(14)
        vczstore.compact(store)
        wait_for(11)
    stop.set()
    reader.join()
    assert errors == []


@pytest.mark.slow
def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after the exchange, and while the old store is deleted: the message is true; a rerun completes."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    real = filesystem.exchange
    cases: dict[str, tuple[str, Callable[..., object], str]] = {
        "before": ("exchange", interrupt, "nothing was committed, the store is as it was"),
        "after": ("exchange", lambda a, b: (real(a, b), interrupt()), "interrupted after .* was compacted"),
        "deleting": ("_delete", interrupt, "is compacted, and its previous version is not deleted yet: run the same"),
    }
    for name, (function, replacement, words) in cases.items():
        store = make(tmp_path / name)
        with monkeypatch.context() as patch:
            patch.setattr(leftovers if name == "deleting" else folder_swap, function, replacement)
            with pytest.raises(KeyboardInterrupt, match=words):
                vczstore.compact(store)
        cohort.assert_same(read(store), BEFORE if name == "before" else AFTER)
        assert bool(beside(store)) == (name == "deleting")
        vczstore.compact(store)
        assert_compacted(store)


# ---- concurrent writers ---------------------------------------------------------------------


def by_zarr(store: Path) -> None:
    """Change values of a sample that moves, without a lock and without a change to any metadata."""
    zarr.open_array(store / "call_genotype", mode="r+")[:, 12] = 1


def in_place(store: Path) -> None:
    """Overwrite a file in place, as fsspec does; the new store already has a hard link to it."""
    chunks = store / "call_genotype" / "c"
    (chunks / "0/0/0").write_bytes((chunks / "1/0/0").read_bytes())


@pytest.mark.parametrize("max_retries", [0, 3])
@pytest.mark.parametrize("write", [by_zarr, in_place])
@pytest.mark.slow
def test_concurrent_writes_are_not_lost(tmp_path: Path, write: Callable[[Path], None], max_retries: int) -> None:
    store = make(tmp_path)
    states: list[dict[str, np.ndarray]] = []

    def progress(what: str, n: int, total: int) -> None:
        if what == "writing" and n == total and not states:
            write(store)
            states.append(read(store))

    if max_retries:
        assert vczstore.compact(store, progress=progress, max_retries=max_retries).retries == 1
        cohort.assert_same(read(store), cohort.expected_compact(states[0]))
    else:
        words = (str(store), "changed", "again")
        complain(ConflictError, words, lambda: vczstore.compact(store, progress=progress, max_retries=0))
        cohort.assert_same(read(store), states[0])
    assert not np.array_equal(states[0]["call_genotype"], BEFORE["call_genotype"])
    assert beside(store) == set()


@pytest.mark.slow
def test_a_stale_plan_is_refused(tmp_path: Path) -> None:
    store = make(tmp_path)
    plan = vczstore.plan("compact", store)
    vczstore.remove(store, "S0000", impl="zarr")
    complain(ConflictError, (str(store), "changed", "again"), lambda: vczstore.run(plan))
    cohort.assert_same(read(store), cohort.expected_remove(BEFORE, ["S0000"]))
    assert beside(store) == set()


def test_a_store_locked_by_a_job_is_busy(tmp_path: Path) -> None:
    store = make(tmp_path)
    with job_lock(str(store), {}, wait=False):
        before = cohort.digest(store)
        for command in ("compact", "repair"):
            complain(BusyError, (str(store), "busy"), lambda command=command: getattr(vczstore, command)(store))
            assert CliRunner().invoke(main, [command, str(store)]).exit_code == 3
        assert vczstore.compact(store, dry_run=True).plan.decoded_chunks
        assert cohort.digest(store) == before
    assert beside(store) == set()


# ---- what cannot be replaced ----------------------------------------------------------------


def test_refused(tmp_path: Path) -> None:
    store = make(tmp_path)
    memory = zarr.storage.MemoryStore()
    cohort.write_vcz(memory, BEFORE)
    words = ("compact: ", "no transactions", "--output")
    complain(OptionError, words, lambda: vczstore.compact(memory))
    complain(OptionError, words, lambda: vczstore.compact(zarr.storage.LocalStore(store)))
    complain(NotAStoreError, ("no such file",), lambda: vczstore.compact(tmp_path / "nothing"))
    (store / "call_GL").rename(tmp_path / "elsewhere")
    (store / "call_GL").symlink_to(tmp_path / "elsewhere")
    before = cohort.digest(tmp_path)
    words = ("compact: ", str(store), "call_GL is a symbolic link", "--output")
    complain(OptionError, words, lambda: vczstore.compact(store, dry_run=True))
    complain(OptionError, words, lambda: vczstore.plan("compact", store))
    assert cohort.digest(tmp_path) == before


@pytest.mark.parametrize(("name", "options"), [("compact", {}), ("regrid", {"samples_chunk": 5})])
def test_a_mount_point_that_looks_like_a_folder(
    tmp_path: Path, name: str, options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the operation, and the state of the store; only compact has another output."""
    store = make(tmp_path)
    before = cohort.digest(store)

    def exchange(*_: Path) -> bool:
        raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(folder_swap, "exchange", exchange)
        words = (f"^{name}: ", str(store), "is a mount point", "mounted from", "the store is as it was")
        message = complain(StorageError, words, lambda: getattr(vczstore, name)(store, impl="zarr", **options))
    assert "--output" not in message
    assert (cohort.digest(store), beside(store)) == (before, set())


@pytest.mark.parametrize("where", [".", "store.vcz", "store.vcz/call_GL"])
def test_not_permitted(where: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # other users may not enter pytest's own folders
        Path(name).chmod(0o755)
        store = make(Path(name, "folder"))
        before = cohort.digest(store)
        (store.parent / where).chmod(0o555)
        with without_root():
            complain(StorageError, (str(store),), lambda: vczstore.compact(store))
        (store.parent / where).chmod(0o755)
        assert cohort.digest(store) == before
        assert beside(store) == set()


@pytest.mark.slow
def test_disk_full(tmp_path: Path) -> None:
    """A one-line error, the store unchanged, and no leftovers; with enough space the same call succeeds."""
    old = {
        n: a
        for n, a in cohort.make_arrays(400, cohort.ids(0, 40)).items()
        if n in ("sample_id", "variant_position", "call_GL")
    }
    store = tmp_path / "store.vcz"
    cohort.write_vcz(store, old, variants_chunk=400, samples_chunk=16)
    vczstore.remove(store, "S0003", impl="zarr")
    before = cohort.digest(store)
    command = [forks.program("python"), "-c", LIMITED.format(limit=30_000), "compact", str(store)]
    full = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (full.returncode, full.stdout, len(full.stderr.splitlines())) == (1, "", 1), full.stderr
    assert "nothing was committed, the store is as it was" in full.stderr
    assert cohort.digest(store) == before
    assert beside(store) == set()
    vczstore.compact(store)
    cohort.assert_same(read(store), cohort.expected_compact(cohort.expected_remove(old, ["S0003"])))


def test_ambiguous_leftovers_are_left_alone(tmp_path: Path) -> None:
    """A store that replaced the one being compacted, and journals that cannot be parsed."""
    store = make(tmp_path)
    journal = tmp_path / ".store.vcz.vczstore-compact.json"
    other = tmp_path / ".store.vcz.vczstore-compact.01234567"
    cohort.write_vcz(other, BEFORE)
    for text in ('{"folder": ".store.vcz.vczstore-compact.01234567", "store": 1, "new": 2}', "nonsense", "{}"):
        journal.write_text(text)
        before = cohort.digest(tmp_path)
        for call in (vczstore.compact, vczstore.repair):
            words = (f"^{call.__name__}: ", str(journal), "delete", "again" if "folder" in text else "")
            complain(StorageError, words, lambda call=call: call(store))
        assert cohort.digest(tmp_path) == before


def test_all_steps_of_a_transaction_build_one_new_store(tmp_path: Path) -> None:
    store = make(tmp_path)
    replaced = open_store(store).in_place()
    transaction = replaced.transaction(replaced.open().state)
    with transaction.step((LinkAllBut(store, frozenset()),), ()):
        pass
    with transaction.step((), (SetAttribute("note", "second step", 3),)):
        pass
    transaction.commit("", {})
    leftovers.settle(store)
    assert zarr.open_group(store, mode="r").attrs["note"] == "second step"
    cohort.assert_same(read(store), BEFORE)
    assert beside(store) == set()


def test_a_folder_is_deleted_by_several_threads(tmp_path: Path) -> None:
    """Everything in it is deleted, at any depth, but symbolic links are not followed."""
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for inner in ("a/c/0/0/0", "a/c/1/0/0", "a/c/1/1", "b", "empty/c"):
        (folder / inner).mkdir(parents=True)
        for i in range(3):
            (folder / inner / f"file{i}").write_bytes(b"x")
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"x")
    for where in (folder, folder / "a/c/0", folder / "a/c/1/1"):
        (where / "link").symlink_to(elsewhere)
    filesystem.delete_folder(folder)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "file"]
    with pytest.raises(FileNotFoundError):
        filesystem.delete_folder(folder)
