"""Every message names its operation; messages of interrupts and failed writes also say what state the store is in."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vczstore
from plans.append import Append
from tests.support import cohort
from tests.support.command_line import fails, run
from tests.support.ways import Way
from vczstore.errors import BusyError, Interrupted, StorageError, TagError
from vczstore.execution import engine
from vczstore.execution.sets import entrance
from vczstore.jobs.run import run_job
from vczstore.stores.icechunk import IcechunkStore
from vczstore.stores.resolve import open_store

OLD = cohort.some_arrays(4, cohort.ids(0, 4))


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def icechunk(folder: Path) -> Path:
    cohort.write_vcz(folder / "batch.vcz", cohort.some_arrays(4, cohort.ids(4, 2)))
    return Way("icechunk", "zarr").make(folder, OLD)


def job(folder: Path, *steps: str) -> Path:
    file = folder / "job.yaml"
    file.write_text("store: store.vcz\nsteps:\n" + "".join(f"- {step}\n" for step in steps))
    return file


@pytest.mark.slow
def test_states_and_locks(tmp_path: Path) -> None:
    store = icechunk(tmp_path)
    wrong = r"{}: .* has no tag, branch or snapshot 'x2'"
    for name, function, *arguments in (
        ("export", vczstore.export, tmp_path / "out.vcz"),
        ("restore", vczstore.restore),
        ("info", vczstore.info),
    ):
        at = ("x2",) if name == "restore" else ()
        with pytest.raises(TagError, match=f"^{wrong.format(name)}"):
            function(store, *arguments, *at, **({} if at else {"at": "x2"}))
    step = job(tmp_path, "export: {to: out.vcz, at: x2}")
    with pytest.raises(TagError, match=f"^{wrong.format('export')}"):
        run_job(step)
    with open_store(store).exclusive_lock():
        with pytest.raises(BusyError, match=r"^gc: .* is busy"):
            vczstore.gc(store)
        assert re.match(r"run: .* is busy", fails("run", job(tmp_path, "remove: S0001"), status=3))


@pytest.mark.slow
@pytest.mark.parametrize("in_set", [False, True])
def test_a_commit_that_cannot_be_written(in_set: bool, tmp_path: Path) -> None:
    """For instance on a full disk, after all chunks have been written."""
    store = icechunk(tmp_path)
    if in_set:
        store = store.rename(tmp_path / "chr1.icechunk")
        shutil.copytree(store, tmp_path / "chr2.icechunk")
        shutil.copytree(tmp_path / "batch.vcz", tmp_path / "b-chr1.vcz")
        shutil.copytree(tmp_path / "batch.vcz", tmp_path / "b-chr2.vcz")
    broken = tmp_path / "chr2.icechunk" if in_set else store
    shutil.rmtree(broken / "transactions")
    (broken / "transactions").touch()
    arguments = ("{part}.icechunk", "b-{part}.vcz") if in_set else (store.name, "batch.vcz")
    message = (
        rf"^append: .*{broken.name}: .*Not a directory.*; nothing was committed, .*; run it again when that is mended"
    )
    with pytest.raises(StorageError, match=message):
        vczstore.append(*(tmp_path / name for name in arguments), impl="zarr")
    assert vczstore.samples(store).ids == cohort.ids(0, 4)


INTERRUPTS: dict[str, tuple[Any, str, Callable[[Path], Any], str]] = {
    "before": (
        Append,
        "__post_init__",
        lambda s: run("append", s, s.with_name("batch.vcz"), status=130).stderr,
        "written",
    ),
    "lock": (IcechunkStore, "writer_lock", lambda s: vczstore.append(s, s.with_name("batch.vcz")), "written"),
    "after": (engine, "together", lambda s: vczstore.append(s, s.with_name("batch.vcz"), impl="zarr"), "done already"),
    "reading": (IcechunkStore, "open", vczstore.info, "it has changed nothing in the store"),
    "import": (entrance, "run", lambda s: run("samples", s, status=130).stderr, "it has changed nothing in the store"),
    "gc": (IcechunkStore, "collect_garbage", vczstore.gc, "or a part of it; run the same command again"),
    "job": (IcechunkStore, "exclusive_lock", lambda s: run_job(job(s.parent, "gc: true")), "run the job again"),
}


@pytest.mark.slow
@pytest.mark.parametrize("when", INTERRUPTS)
def test_interrupts(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, name, call, state = INTERRUPTS[when]
    store = icechunk(tmp_path)
    monkeypatch.setattr(target, name, interrupt)
    if when in ("before", "import"):
        message = call(store)
    else:
        with pytest.raises(Interrupted) as error:
            call(store)
        message = str(error.value)
    assert re.match(rf"(append|info|samples|gc|run): interrupted; .*{state}", message), message
    monkeypatch.undo()
    assert vczstore.samples(store).ids == cohort.ids(0, 6 if when == "after" else 4)
