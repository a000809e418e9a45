"""Sets of stores, such as one for each chromosome: an operation is applied to all parts or to none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import executors
import vczstore
from tests.support import cohort
from tests.support.refusals import complain, mentions
from tests.support.small_stores import head, read, repository_of
from tests.support.stopped_sets import stop_between_parts
from tests.system.survival.sets import PARTS, arrays_of, before, make
from vczstore.cli.main import main
from vczstore.errors import (
    BusyError,
    IncompatibleError,
    Interrupted,
    JobFileError,
    NotAStoreError,
    OptionError,
    SampleError,
    StaleError,
    StorageError,
    TagError,
    UnsuitableError,
    VczstoreError,
)
from vczstore.execution.sets import checking
from vczstore.jobs.results import SetJobResult
from vczstore.stores.icechunk_history import IcechunkHistory
from vczstore.stores.resolve import open_store
from vczstore.stores.sets import Record, RecordFile

KINDS = pytest.mark.parametrize("kind", ["icechunk", "format3"])
APPENDED = {p: cohort.expected_append(before(p), arrays_of(p, cohort.ids(4, 3))) for p in PARTS}
REMOVED = {p: cohort.expected_remove(APPENDED[p], ["S0001"]) for p in PARTS}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, set as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def holds(expected: dict[str, dict[str, np.ndarray]]) -> bool:
    """Assert that the parts have these arrays and no other branches; return whether the folder has no hidden files."""
    for part, arrays in expected.items():
        actual = read(Path("set", part))
        assert {name: actual[name].tolist() for name in arrays} == {name: a.tolist() for name, a in arrays.items()}
        if head(Path("set", part)) is not None:
            assert repository_of(Path("set", part)).list_branches() == {"main"}
    return not list(Path("set").glob(".*"))


def append(**options: Any) -> Any:
    return vczstore.append("set/{part}", "in/{part}.vcz", impl="zarr", **options)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "held"), [("icechunk", checking.HELD), ("icechunk", 0), ("format3", checking.HELD)])
def test_all_parts_are_edited(folder: Path, kind: str, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are kept in memory, or compiled twice if together they would be too large."""
    make(folder, kind)
    monkeypatch.setattr(checking, "HELD", held)
    was = cohort.digest(folder)
    dry = append(dry_run=True)
    assert (list(dry.parts), dry.committed, cohort.digest(folder)) == ([*PARTS], False, was)
    done = append()
    assert {name: result.counts["samples added"] for name, result in done.parts.items()} == dict.fromkeys(PARTS, 3)
    assert [result.snapshot for result in done.parts.values()] == [head(Path("set", part)) for part in PARTS]
    assert holds(APPENDED)
    vczstore.remove("set/{part}", "S0001")
    assert holds(REMOVED)
    vczstore.compact("set/{part}", impl="zarr")
    assert holds({part: cohort.expected_compact(REMOVED[part]) for part in PARTS})
    assert vczstore.verify("set/{part}").ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("store", "executor"), [*(("set/{part}", name) for name in executors.LOCAL), ("all.icechunk#{part}", "processes")]
)
def test_tasks_of_all_parts_are_in_one_queue(folder: Path, store: str, executor: str) -> None:
    make(folder, "icechunk")
    if store.startswith("all"):
        vczstore.copy_store_to_icechunk("set/{part}", store)
    steps: dict[str, set[tuple[int, int]]] = {}

    def progress(what: str, done: int, total: int) -> None:
        steps.setdefault(what, set()).add((done, total))

    options = {} if executor == "single-threaded" else {"max_workers": 2}
    started = perf_counter()
    result = vczstore.append(store, "in/{part}.vcz", executor=executor, progress=progress, **options)
    seconds = perf_counter() - started
    assert [*steps] == ["checking 2 parts", "writing 2 parts"]
    totals = []
    for numbers in steps.values():
        (total,) = {total for _, total in numbers}
        assert {done for done, _ in numbers} == {*range(1, total + 1)}
        totals.append(total)
    assert sum(totals) == sum(part.tasks or 0 for part in result.parts.values())
    assert [len(part.timeline) for part in result.parts.values()] == [part.tasks for part in result.parts.values()]
    assert all(part.seconds > 0 for part in result.parts.values())
    assert result.seconds <= seconds, "what is done for other parts does not count twice"
    vczstore.export(store, "out/{part}.vcz")
    for part in PARTS:
        actual = read(Path("out", f"{part}.vcz"))
        assert {name: actual[name].tolist() for name in APPENDED[part]} == {
            n: a.tolist() for n, a in APPENDED[part].items()
        }
    assert vczstore.verify(store).ok


@pytest.mark.slow
def test_the_error_of_a_killed_worker_names_the_set(folder: Path) -> None:
    """Workers are shared by all parts, so no single part is named."""
    make(folder, "icechunk")
    heads = [head(Path("set", part)) for part in PARTS]

    def kill(what: str, done: int, total: int) -> None:
        for worker in active_children():
            worker.kill()

    options = {"executor": "processes", "max_workers": 1, "progress": kill}
    words = ["^append: set/{part}: a worker process was killed", "nothing was committed$"]
    complain(StorageError, words, lambda: vczstore.append("set/{part}", "in/{part}.vcz", **options))
    assert [head(Path("set", part)) for part in PARTS] == heads
    assert holds({part: before(part) for part in PARTS})


def test_locks_are_taken_in_one_order(folder: Path) -> None:
    """Two jobs that name the parts in opposite orders, and wait for locks, cannot wait for one another."""
    make(folder, "format3")
    with ExitStack() as stack:
        for part in PARTS:
            stack.enter_context(open_store(f"set/{part}").exclusive_lock())
        for parts in (PARTS, PARTS[::-1]):
            with pytest.raises(BusyError, match="chr1 is busy"):
                append(parts=parts)


def other_order(part: Path) -> None:
    samples = read(part)["sample_id"].tolist()
    shutil.rmtree(part)
    cohort.write_vcz(part, arrays_of(part.stem, samples[::-1]))


REFUSED: dict[str, tuple[Callable[[Path], object], type[VczstoreError], list[str]]] = {
    "order": (other_order, IncompatibleError, ["first sources", "chr1 and chr2", "another order"]),
    "source lacks": (shutil.rmtree, IncompatibleError, ["nothing for chr2"]),
    "source beyond": (lambda part: shutil.copytree(part, "in/chrX.vcz"), IncompatibleError, ["has chrX"]),
    "stores": (lambda _: vczstore.remove("set/chr2", "S0002"), IncompatibleError, ["parts of set", "chr1 and chr2"]),
}


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("reason", REFUSED)
def test_an_incompatible_part_leaves_all_parts_unchanged(folder: Path, kind: str, reason: str) -> None:
    make(folder, kind)
    damage, error, words = REFUSED[reason]
    damage(Path("in/chr2.vcz"))
    was = cohort.digest(folder)
    complain(error, words, append)
    assert cohort.digest(folder) == was


@pytest.mark.slow
def test_a_source_that_lacks_a_part_is_refused(folder: Path) -> None:
    """Operations that write a new store do not write the other parts, either."""
    make(folder, "format3")
    shutil.copytree("in", "all")
    shutil.rmtree("in/chr2.vcz")
    was = cohort.digest(folder)
    inserting = partial(append, output="out/{part}.vcz", harmonise=True, new_variants="insert")
    complain(IncompatibleError, ["nothing for chr2"], inserting)
    both = ["all/{part}.vcz", "in/{part}.vcz"]
    complain(IncompatibleError, ["in/.*nothing for chr2"], lambda: vczstore.create("new/{part}", *both))
    complain(IncompatibleError, ["all/.*has chr2"], lambda: vczstore.create("new/{part}", *both[::-1]))
    assert cohort.digest(folder) == was
    assert list(inserting(parts=["chr1"]).parts) == ["chr1"]
    assert list(vczstore.compact("set/{part}", "compact/{part}.vcz", impl="zarr").parts) == [*PARTS]


@pytest.mark.slow
def test_a_part_that_cannot_be_reached_is_named(folder: Path) -> None:
    """An unmounted disk leaves a dangling link or an empty folder; neither may be skipped silently."""
    make(folder, "format3")
    words = ["set/chr3", "mend it, or name the parts with --parts"]
    for make_part in (lambda: Path("set/chr3").symlink_to("gone"), lambda: Path("set/chr3").mkdir()):
        make_part()
        was = cohort.digest(folder)
        complain(NotAStoreError, words, lambda: vczstore.info("set/{part}"))
        complain(NotAStoreError, words, lambda: vczstore.remove("set/{part}", "S0001"))
        complain(NotAStoreError, ["set/chr3", "parts: in a job"], lambda: vczstore.run_job("job.yaml"))
        assert cohort.digest(folder) == was
        assert list(vczstore.info("set/{part}", parts=PARTS).parts) == [*PARTS]
        if Path("set/chr3").is_symlink():
            Path("set/chr3").unlink()
    Path("in/chr2.vcz").rename("in/elsewhere")
    Path("in/chr2.vcz").symlink_to("gone")
    complain(NotAStoreError, ["in/chr2.vcz is a link to gone", "mend it"], lambda: append(parts=None))
    Path("deep").mkdir()
    Path("deep/chr1").symlink_to("gone")
    complain(NotAStoreError, ["deep/chr1 is a link to gone"], lambda: vczstore.info("deep/{part}/calls.vcz"))


def test_names_of_sets(folder: Path) -> None:
    make(folder, "format3")
    shutil.copytree("in/chr1.vcz", "in/chr10.vcz")
    shutil.copytree("set/chr1", "set/chr10")
    assert list(vczstore.info("set/{part}").parts) == ["chr1", "chr2", "chr10"]
    assert list(append(dry_run=True, parts=["chr2", "chr1"]).parts) == ["chr2", "chr1"]
    complain(OptionError, ["same for all parts", "put {part}"], lambda: vczstore.append("set/{part}", "in/chr1.vcz"))
    complain(OptionError, ["--parts needs a set"], lambda: vczstore.info("set/chr1", parts=["chr1"]))
    complain(OptionError, ["twice"], lambda: vczstore.info("set/{part}", parts=["chr1", "chr1"]))
    complain(OptionError, ["not a part name"], lambda: vczstore.info("set/{part}", parts=["../set/chr1"]))
    complain(OptionError, ["plan of its own"], lambda: vczstore.plan("append", "set/{part}", "in/{part}.vcz"))
    complain(NotAStoreError, ["sets/{part}: there are no parts"], lambda: vczstore.info("sets/{part}"))
    complain(NotAStoreError, ["gone/{part}.vcz: there are"], lambda: vczstore.create("new/{part}", "gone/{part}.vcz"))
    out, was = "set/{part}.out", cohort.digest(folder)
    words = [f"{out} would be taken for parts of set/{{part}}; name another folder"]
    complain(UnsuitableError, words, lambda: vczstore.export("set/{part}", out))
    complain(UnsuitableError, words, lambda: vczstore.compact("set/{part}", out))
    complain(UnsuitableError, words, lambda: append(output=out, harmonise=True, new_variants="insert"))
    assert cohort.digest(folder) == was
    refused = CliRunner().invoke(main, ["set", "info", "set/chr1"])
    assert refused.exit_code == 2
    mentions(refused.output, ["named with {part}"])


@pytest.mark.slow
def test_set_create_info_and_verify(folder: Path) -> None:
    make(folder, "format3")
    run = CliRunner().invoke
    created = run(main, ["set", "create", "new/{part}.icechunk", "in/{part}.vcz", "--backend-storage", "icechunk"])
    assert created.exit_code == 0, created.output
    assert run(main, ["append", "new/{part}.icechunk", "in/{part}.vcz"]).exit_code == 0
    shown = run(main, ["set", "info", "new/{part}.icechunk"]).output.splitlines()
    assert shown[0].split(maxsplit=1) == ["set", "new/{part}.icechunk: 2 parts, 3 samples, the same in all"]
    assert [line.split(",")[0].split() for line in shown[1:]] == [[part, "3", "samples"] for part in PARTS]
    document = json.loads(run(main, ["set", "verify", "new/{part}.icechunk", "--json"]).output)
    assert (document["errors"], list(document["parts"])) == ([], [*PARTS])
    vczstore.remove("new/chr2.icechunk", "S0004")
    checked = run(main, ["set", "verify", "new/{part}.icechunk", "--quick"])
    assert checked.exit_code == 1
    mentions(checked.output, ["do not have the same samples in the same order in chr1 and chr2"])


@pytest.mark.slow
def test_samples_and_exports_are_of_all_parts(folder: Path) -> None:
    """If parts have different samples, listing is refused, and exporting requires the names of the parts."""
    make(folder, "icechunk")
    run = CliRunner().invoke
    assert run(main, ["samples", "set/{part}"]).output.split() == cohort.ids(0, 4)
    assert json.loads(run(main, ["samples", "set/{part}", "--json"]).output)["parts"]["chr2"]["n_samples"] == 4
    vczstore.remove("set/chr1", "S0001")
    complain(IncompatibleError, ["chr1 and chr2", "such as set/chr2"], lambda: vczstore.samples("set/{part}"))
    complain(IncompatibleError, ["removed"], lambda: vczstore.samples("set/{part}", removed=True))
    words = ["export: the parts do not have the same samples", "name the parts to export with --parts"]
    complain(IncompatibleError, words, lambda: vczstore.export("set/{part}", "out/{part}.vcz"))
    assert not Path("out").exists()
    assert list(vczstore.export("set/{part}", "out/{part}.vcz", parts=PARTS).parts) == [*PARTS]
    vczstore.remove("set/{part}", "S0001", parts=["chr2"])
    assert run(main, ["samples", "set/{part}", "--removed"]).output.split() == ["1"]
    for command in ("tag", "branch", "log"):
        lines = run(main, [command, "set/{part}"]).output.splitlines()
        assert [line for line in lines if not line.startswith(" ")][1:] == [f"{part}:" for part in PARTS], lines
    assert run(main, ["tag", "set/{part}", "--parts", "chr2"]).output.splitlines()[0] == "tag set/{part}: 1 part"


def test_an_export_is_of_one_state(folder: Path) -> None:
    """On plain Zarr, while a writer changes the set after the first part has been exported."""
    make(folder, "format3")
    (folder / "out" / "chr1.vcz").mkdir(parents=True)  # empty, so an export may write to it
    (folder / "out" / "other").touch()

    def progress(*_: object) -> None:
        if Path("out/chr1.vcz/zarr.json").exists() and read(Path("set/chr1"))["sample_id"][1] == "S0001":
            vczstore.remove("set/chr1", "S0001", impl="zarr")

    words = ["^export: set/{part} was changed by another writer while it was copied; nothing was exported"]
    complain(StaleError, words, lambda: vczstore.export("set/{part}", "out/{part}.vcz", progress=progress))
    assert os.listdir("out") == ["other"]
    vczstore.remove("set/chr2", "S0001", impl="zarr")
    vczstore.export("set/{part}", "out/{part}.vcz")
    assert {len(read(Path(f"out/{part}.vcz"))["sample_id"]) for part in PARTS} == {3}


def corrupt(part: Path) -> Callable[[], object]:
    """Corrupt a chunk; return a function that restores it."""
    chunk = next(path for path in (part / "call_DP").rglob("*") if path.is_file() and path.name != "zarr.json")
    content = chunk.read_bytes()
    chunk.write_bytes(b"none")
    return lambda: chunk.write_bytes(content)


def test_a_failed_write_changes_nothing(folder: Path) -> None:
    make(folder, "icechunk")
    heads = [head(Path("set", part)) for part in PARTS]
    corrupt(Path("in/chr2.vcz"))
    complain(StorageError, ["in/chr2.vcz|set/chr2", "nothing was committed"], append)
    assert [head(Path("set", part)) for part in PARTS] == heads
    assert holds({part: before(part) for part in PARTS})


@pytest.mark.slow
def test_messages_name_the_parts_that_are_ahead_on_plain_zarr(folder: Path) -> None:
    make(folder, "format3")
    restore = corrupt(Path("in/chr1.vcz"))
    complain(StorageError, ["chr1"], append)
    assert holds({part: before(part) for part in PARTS})
    restore()
    restore = corrupt(Path("in/chr2.vcz"))
    ahead = "is done in chr1, and not in chr2"
    message = complain(StorageError, [ahead], append)
    assert message.count("again") == message.count("vczstore repair") == 1
    assert [error for error in vczstore.info("set/{part}").errors if ahead in error]
    assert not vczstore.verify("set/{part}").ok
    with ExitStack() as locks:
        for part in PARTS:
            locks.enter_context(open_store(f"set/{part}").writer_lock())
        busy = [rf"busy: process {os.getpid()} on \S+ works on it since .* UTC; append .* {ahead}; run this again when"]
        complain(BusyError, busy, lambda: vczstore.samples("set/{part}"))
        complain(BusyError, busy, lambda: vczstore.export("set/{part}", "out/{part}.vcz"))
        mentions(vczstore.info("set/{part}").errors[0], busy)
    complain(StaleError, [ahead], lambda: vczstore.samples("set/{part}"))
    complain(StaleError, [ahead], lambda: vczstore.remove("set/{part}", "S0002"))
    complain(StaleError, [ahead], lambda: vczstore.run_job("job.yaml"))
    (error,) = vczstore.repair("set/{part}").errors[:1]
    mentions(error, ["mended where it is", f"delete {folder}/set/.PART.vczstore-set.json", "edit single parts"])
    restore()
    assert list(append().parts) == ["chr2"]
    assert holds(APPENDED)


@pytest.mark.slow
@pytest.mark.parametrize("way_out", ["forward", "back"])
def test_give_up_an_interrupted_append_on_plain_zarr(folder: Path, way_out: str) -> None:
    """Delete the record, and either append the batch to the other part, or remove it from the part that is ahead."""
    make(folder, "format3")
    shutil.copytree("in", "elsewhere")
    corrupt(Path("in/chr2.vcz"))
    complain(StorageError, ["is done in chr1, and not in chr2"], append)
    assert not vczstore.repair("set/{part}").ok
    Path("set/.PART.vczstore-set.json").unlink()
    assert vczstore.verify("set/chr2").ok
    assert not vczstore.verify("set/{part}").ok
    if way_out == "forward":
        vczstore.append("set/{part}", "elsewhere/{part}.vcz", parts=["chr2"])
        assert holds(APPENDED)
    else:
        vczstore.remove("set/chr1", cohort.ids(4, 3))
        vczstore.compact("set/chr1", impl="zarr")
        assert holds({part: before(part) for part in PARTS})
    assert vczstore.verify("set/{part}").ok


@pytest.mark.slow
def test_parts_that_are_left_out_are_named(folder: Path) -> None:
    make(folder, "icechunk")
    done = append(parts=["chr1"])
    assert done.notes == ["not in chr2, which is there: bring the set in step with the same command and --parts chr2"]
    assert [*done.lines()][-1].endswith(done.notes[0])
    words = ["do not have the same samples", "edit of these alone, with --parts"]
    complain(IncompatibleError, words, lambda: vczstore.remove("set/{part}", "S0001"))
    assert append(parts=["chr2"]).notes == []
    assert holds(APPENDED)
    updated = vczstore.update("set/{part}", "in/{part}.vcz", parts=["chr2"], impl="zarr")
    assert updated.notes == ["--parts leaves out chr1"]


@pytest.fixture
def stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Return a function that runs a call, and interrupts it right before the second part becomes visible."""
    make(folder, "icechunk")
    return partial(stop_between_parts, monkeypatch)


@pytest.mark.slow
def test_an_operation_stopped_between_commits_is_completed(stopped: Callable[[Callable[[], object]], None]) -> None:
    stopped(append)
    ahead = ["is done in chr1, and not in chr2", "vczstore repair"]
    mentions("; ".join(vczstore.info("set/{part}").errors), ahead)
    was = cohort.digest(Path("set"))
    for refused in (
        lambda: append(dry_run=True),
        lambda: vczstore.remove("set/{part}", "S0002"),
        lambda: vczstore.tag("set/{part}", "release-1"),
        lambda: vczstore.purge("set/{part}"),
        lambda: vczstore.plan_job("job.yaml"),
        lambda: vczstore.run_job("job.yaml"),
    ):
        complain(StaleError, ahead, refused)
    for refused in (
        lambda: vczstore.export("set/{part}", "out/{part}.vcz", parts=["chr1"]),
        lambda: vczstore.samples("set/{part}"),
        lambda: vczstore.tag("set/{part}", "release-1", delete=True),
    ):
        complain(StaleError, ahead, refused)
    for looked_at in (
        lambda: vczstore.diff("set/{part}", "in/{part}.vcz"),
        lambda: vczstore.check("set/{part}", min_samples=1),
        lambda: vczstore.run("tag", "set/{part}"),
        lambda: vczstore.branch("set/{part}"),
        lambda: vczstore.verify_removal("set/{part}", ["NA9999"]),
        lambda: vczstore.verify("set/{part}", quick=True),
        lambda: vczstore.log("set/{part}"),
    ):
        result: Any = looked_at()
        mentions(result.errors[0], ahead)
        assert not result.ok
    assert cohort.digest(Path("set")) == was
    shutil.rmtree("in")  # not needed, because the data of the pending commit are already in the store
    assert append(parts=["chr1", "chr2"]).completed == ("chr2",)
    assert holds(APPENDED)
    assert vczstore.info("set/{part}").errors == []


@pytest.mark.slow
def test_repair_completes_a_stopped_job(stopped: Callable[[Callable[[], object]], None]) -> None:
    stopped(lambda: vczstore.run_job("job.yaml"))
    assert vczstore.repair("set/{part}", dry_run=True).notes[0].startswith("would complete")
    assert vczstore.repair("set/{part}").ok
    assert holds(REMOVED)
    assert vczstore.tags("set/{part}") == {part: {"release-1": head(Path("set", part))} for part in PARTS}
    assert vczstore.run_job("job.yaml").status == "nothing to do"


@pytest.mark.slow
@KINDS
def test_repair_deletes_a_half_written_record(folder: Path, kind: str) -> None:
    """A kill before the first change to a part leaves such a record."""
    make(folder, kind)
    was = cohort.digest(folder)
    half = folder / "set/.PART.vczstore-set.json.half"
    half.write_text("{")
    assert vczstore.repair("set/{part}", dry_run=True).ok
    assert half.exists()
    assert vczstore.repair("set/{part}").ok
    assert not half.exists()
    if kind == "format3":
        assert cohort.digest(folder) == was


@pytest.mark.slow
def test_another_writer_in_between(stopped: Callable[[Callable[[], object]], None]) -> None:
    """A pending commit fails if another writer has changed the part, but the same edit by that writer completes it."""
    stopped(append)
    shutil.copytree("set", "copy")
    vczstore.remove("set/chr2", "S0003")
    words = ["set/chr2 was changed by another writer", "is done in chr1"]
    complain(StaleError, words, lambda: vczstore.repair("set/{part}"))
    shutil.rmtree("set")
    shutil.move("copy", "set")
    vczstore.append("set/chr2", "in/chr2.vcz")
    assert vczstore.repair("set/{part}").ok
    assert holds(APPENDED)


@pytest.mark.slow
def test_a_tag_is_in_all_parts_or_in_none(folder: Path) -> None:
    make(folder, "icechunk")
    vczstore.tag("set/chr2", "taken")
    vczstore.tag("set/chr2", "gone")
    vczstore.delete_tag("set/chr2", "gone")
    for name, words in (("taken", "exists already in .*chr2"), ("gone", "used and deleted before in .*chr2")):
        complain(TagError, [words], partial(vczstore.tag, "set/{part}", name))
    assert vczstore.tags("set/{part}") == {"chr1": {}, "chr2": {"taken": head(Path("set/chr2"))}}
    mentions("; ".join(vczstore.info("set/{part}").errors), ["tag taken is not in chr1"])
    assert vczstore.tag("set/{part}", "release-1") == {part: head(Path("set", part)) for part in PARTS}
    vczstore.remove("set/chr2", "S0002")
    complain(IncompatibleError, ["chr1 and chr2"], lambda: vczstore.tag("set/{part}", "release-2"))


@pytest.mark.slow
@KINDS
def test_jobs(folder: Path, kind: str) -> None:
    make(folder, kind)
    run = CliRunner().invoke
    planned = run(main, ["plan", "job.yaml"])
    assert planned.output.count("append: 1 source, 3 samples added") == len(PARTS)
    assert holds({part: before(part) for part in PARTS})
    steps: dict[str, None] = {}
    done = vczstore.run_job("job.yaml", report="report", progress=lambda what, *_: steps.setdefault(what))
    names = ["2 parts"] if kind == "icechunk" else PARTS
    assert [what for what in steps if "writing" in what] == [f"writing {name} {i}/2" for name in names for i in (1, 2)]
    assert (done.status, list(done.parts)) == ("done", [*PARTS])
    assert all(Path("report", part, "report.html").exists() for part in PARTS)
    assert holds(REMOVED)
    assert vczstore.run_job("job.yaml").status == "nothing to do"
    for part in PARTS:
        cohort.write_vcz(Path("late", f"{part}.vcz"), arrays_of(part, cohort.ids(9, 2)))
    other_order(Path("late/chr2.vcz"))
    was = cohort.digest(Path("set"))
    late = ["steps=[{append: 'late/{part}.vcz'}]"]
    complain(IncompatibleError, ["the parts would", "chr1 and chr2"], lambda: vczstore.run_job("job.yaml", late))
    Path("one/b8").mkdir(parents=True)
    shutil.copytree("late/chr1.vcz", "one/b8/chr1.vcz")
    words = ["there is one/b8/chr1.vcz for chr1, and no one/b8/chr2.vcz for chr2"]
    for call in (vczstore.run_job, vczstore.plan_job):
        complain(IncompatibleError, words, partial(call, "job.yaml", ["steps=[{append: 'one/*/{part}.vcz'}]"]))
    assert cohort.digest(Path("set")) == was
    assert list(vczstore.run_job("job.yaml", [*late, "parts=[chr2]"]).parts) == ["chr2"]
    complain(JobFileError, ["parts"], lambda: vczstore.run_job("job.yaml", ["store=set/chr1", "parts=[chr2]"]))
    same = ["steps=[{append: 'late/chr1.vcz'}]"]
    complain(OptionError, ["same for all parts"], lambda: vczstore.run_job("job.yaml", same))


@pytest.mark.slow
def test_branches_of_all_parts_are_published(folder: Path) -> None:
    make(folder, "icechunk")
    vczstore.run("branch", "set/{part}", "next")
    append(branch="next")
    assert read(Path("set/chr1"))["sample_id"].tolist() == cohort.ids(0, 4)
    vczstore.remove("set/chr2", "S0002", branch="next")
    complain(IncompatibleError, ["chr1 and chr2"], lambda: vczstore.run("publish", "set/{part}", "next"))
    vczstore.remove("set/chr1", "S0002", branch="next")
    done = vczstore.run("publish", "set/{part}", "next")
    assert {part: result.published for part, result in done.parts.items()} == dict.fromkeys(PARTS, 2)
    for part in PARTS:
        assert read(Path("set", part))["sample_id"].tolist() == ["S0000", "S0001", "", *cohort.ids(3, 4)]
    assert vczstore.info("set/{part}").errors == []


def remove_and_purge(**options: Any) -> Any:
    return vczstore.remove("set/{part}", "S0001", purge=True, impl="zarr", **options)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["again", "repair"])
def test_a_purge_that_was_stopped_is_completed(folder: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt before or between the purges of the parts leaves a record of them."""
    make(folder, "icechunk")
    purge, labels = IcechunkHistory.purge, list[str]()

    def stop(self: IcechunkHistory, **options: Any) -> Any:
        labels.append(self.label)
        if len(labels) == 2:
            raise KeyboardInterrupt
        return purge(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(IcechunkHistory, "purge", stop)
        with pytest.raises(Interrupted, match="to be purged"):
            remove_and_purge()
    mentions("; ".join(vczstore.info("set/{part}").errors), ["to be purged"])
    if way == "again":
        assert list(remove_and_purge().purged) == [*PARTS]
    else:
        assert vczstore.repair("set/{part}").ok
    assert all(vczstore.verify_removal(Path("set", part), ["S0001"]).erased for part in PARTS)
    assert not list(Path("set").glob(".*.json"))


@pytest.mark.slow
def test_a_purge_that_fails_in_one_part_purges_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(folder, "icechunk")
    purge = IcechunkHistory.purge

    def fail(self: IcechunkHistory, **options: Any) -> Any:
        if self.label.endswith("chr1"):
            raise StorageError("purge: objects could not be deleted")
        return purge(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(IcechunkHistory, "purge", fail)
        complain(StorageError, ["history of chr1 is not purged", "vczstore purge set/{part}"], remove_and_purge)
    assert vczstore.verify_removal("set/chr2", ["S0001"]).erased
    vczstore.purge("set/{part}")
    assert vczstore.verify_removal("set/chr1", ["S0001"]).erased


def test_a_dry_run_checks_whether_history_can_be_purged(folder: Path) -> None:
    make(folder, "icechunk")
    vczstore.tag("set/{part}", "r1")
    complain(TagError, ["the tag r1"], lambda: remove_and_purge(dry_run=True))


@pytest.mark.slow
def test_all_spellings_of_a_set_have_one_record(stopped: Callable[[Callable[[], object]], None]) -> None:
    stopped(append)
    Path("link").symlink_to("set")
    here = Path.cwd()
    for spelling in (
        here / "set/{part}",
        "in/../set/{part}",
        "link/{part}",
        "./set//{part}/",
        f"file://{here}/set/{{part}}",
    ):
        mentions("; ".join(vczstore.info(spelling).errors), ["is done in chr1, and not in chr2"])
        complain(StaleError, ["is done in chr1"], partial(vczstore.remove, spelling, "S0002"))
    shutil.rmtree("in")
    assert vczstore.append(here / "set/{part}", here / "in/{part}.vcz", impl="zarr", parts=PARTS).completed == ("chr2",)
    Path("link").unlink()
    assert holds(APPENDED)


@pytest.mark.slow
def test_a_job_is_completed_from_another_folder(
    stopped: Callable[[Callable[[], object]], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(lambda: vczstore.run_job("job.yaml"))
    monkeypatch.chdir(folder / "in")
    done = vczstore.run_job(folder / "job.yaml")
    assert isinstance(done, SetJobResult)
    assert done.completed == ("chr2",)
    monkeypatch.chdir(folder)
    assert holds(REMOVED)


@pytest.mark.slow
def test_another_name_of_the_same_set(stopped: Callable[[Callable[[], object]], None]) -> None:
    """Another template finds no record of the interrupted operation, and must not discard its pending commit."""
    stopped(append)
    words = ["a set called PART", "vczstore repair"]
    complain(StaleError, words, lambda: vczstore.remove("set/chr{part}", "S0002"))
    assert vczstore.repair("set/{part}").ok
    assert holds(APPENDED)


def test_a_lost_response_to_writing_the_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(folder, "icechunk")
    write = RecordFile.write

    def lose(self: RecordFile, record: Record) -> None:
        write(self, record)
        raise StorageError("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(RecordFile, "write", lose)
        append()
    assert holds(APPENDED)


def test_a_job_is_not_considered_done_because_of_its_samples(stopped: Callable[[Callable[[], object]], None]) -> None:
    stopped(lambda: vczstore.run_job("job.yaml", ["steps=[{append: 'in/{part}.vcz'}]"]))
    vczstore.append("set/chr2", "in/chr2.vcz")
    complain(StaleError, ["what waits for chr2 cannot follow"], lambda: vczstore.repair("set/{part}"))


@pytest.mark.slow
@KINDS
def test_removed_samples_return_to_no_part(folder: Path, kind: str) -> None:
    """Also if one part has no record of their removal."""
    make(folder, kind)
    withdrawn = {part: cohort.expected_remove(before(part), ["S0001"]) for part in PARTS}
    for part in PARTS:
        cohort.write_vcz(Path("back", f"{part}.vcz"), arrays_of(part, ["S0001", "S0009"]))
    vczstore.remove("set/{part}", "S0001", impl="zarr")
    shutil.move("set/chr2", "chr2")
    (cohort.write_icechunk if kind == "icechunk" else cohort.write_vcz)(Path("set/chr2"), withdrawn["chr2"])
    back = partial(vczstore.append, "set/{part}", "back/{part}.vcz", impl="zarr")
    was = cohort.digest(Path("set"))
    complain(SampleError, ["1 of the incoming samples was removed from set/chr1"], back)
    complain(IncompatibleError, ["the parts would", "chr1 has 5, chr2 has 6"], partial(back, drop_returning=True))
    assert cohort.digest(Path("set")) == was
    shutil.rmtree("set/chr2")
    shutil.move("chr2", "set/chr2")
    done = back(drop_returning=True)
    assert {part: result.counts["samples added"] for part, result in done.parts.items()} == dict.fromkeys(PARTS, 1)
    new = {part: cohort.select(arrays_of(part, ["S0001", "S0009"]), ["S0009"]) for part in PARTS}
    assert holds({part: cohort.expected_append(withdrawn[part], new[part]) for part in PARTS})
