"""Operations and executors of other packages, declared as entry points."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
import zarr

from tests.support import cohort

MODULE = '''
"""An operation and an executor of another package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from executors.local import SingleThreadedExecutor
from vczstore.declarations import argument, option
from vczstore.execution.operations import Edit


@dataclass(frozen=True, kw_only=True)
class SetNote(Edit):
    """
    Keep a note in a store.

    It is an attribute of the root.
    """

    is_step: ClassVar[bool] = True

    note: str = argument("The note.", metavar="NOTE")
    shout: bool = option(False, "In capitals.")
    times: int = option(1, "How often.")
    more: tuple[str, ...] = option((), "Another one.")
    ids_file: str = option("", "A name that ends like that of a file.")

    def compile(self, compiling):
        from plans.core.model import Plan
        from vczstore.stores.edits import SetAttribute

        vcz = compiling.vcz
        note = " ".join([self.note, *self.more]) * self.times + self.ids_file
        note = note.upper() if self.shout else note
        edits = [SetAttribute("note", note, vcz.zarr_format)] if vcz.attributes.get("note") != note else []
        return Plan(
            operation=self.called, store=compiling.store, base=vcz.state, checks=(), writes=(), edits=tuple(edits),
            memory=compiling.memory, after=vcz, if_stopped="run it again", counts={"notes set": len(edits)},
        )


class CountingExecutor(SingleThreadedExecutor):
    """One thread, which says so."""

    def execute_dag(self, dag, **more):
        print("one after the other")
        return super().execute_dag(dag, **more)
'''
ENTRY_POINTS = """\
[vczstore.operations]
set-note = tiny_package:SetNote

[vczstore.executors]
counting = tiny_package:CountingExecutor
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that looks as if a package were installed in it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "tiny_package.py").write_text(MODULE)
    info = folder / "tiny_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


def vczstore(package: Path, *arguments: object, status: int = 0) -> str:
    """Run a command with the package on the path; return its output, or standard error if it must fail."""
    done = subprocess.run(
        [sys.executable, "-m", "vczstore", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def note(store: Path) -> object:
    return zarr.open_group(store, mode="r").attrs.get("note")


@pytest.mark.slow
def test_an_operation_of_another_package_is_a_command_a_step_and_in_the_schema(package: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.vcz"
    cohort.write_vcz(store, cohort.make_arrays(4, cohort.ids(0, 3)))
    assert "  set-note                Keep a note in a store.\n" in vczstore(package, "--help")
    shown = vczstore(package, "set-note", "--help")
    assert "STORE NOTE\n" in shown
    assert "--shout" in shown
    assert "1 note set" in vczstore(package, "set-note", store, "re", "--shout", "--times", 2, "--more", "leased")
    assert note(store) == "RE LEASEDRE LEASED"

    job = tmp_path / "job.yaml"
    job.write_text(f"store: {store}\nsteps:\n  - set-note: {{note: with, more: [drawn], times: 2, ids-file: x}}\n")
    assert "1 note set" in vczstore(package, "run", job)
    assert note(store) == "with drawnwith drawnx"
    assert "already applied" in vczstore(package, "run", job)
    job.write_text(f"store: {store}\nsteps:\n  - set-note: {{note: x, loud: true}}\n")
    assert "steps[0].set-note.loud: no such key" in vczstore(package, "run", job, status=2)

    schema = json.loads(vczstore(package, "schema"))
    assert schema["$defs"]["SetNote"]["properties"]["shout"]["default"] is False
    assert "set-note" in schema["$defs"]["Step"]["properties"]


@pytest.mark.slow
def test_an_executor_of_another_package_runs_plans(package: Path, tmp_path: Path) -> None:
    old, new = cohort.make_arrays(4, cohort.ids(0, 3)), cohort.make_arrays(4, cohort.ids(3, 2), seed=1)
    store, batch = tmp_path / "store.vcz", tmp_path / "batch.vcz"
    cohort.write_vcz(store, old)
    cohort.write_vcz(batch, new)
    assert "one after the other" in vczstore(package, "append", store, batch, "--executor", "counting")
    cohort.assert_same(cohort.read_vcz(store), cohort.expected_append(old, new))
    (tmp_path / "job.yaml").write_text(
        yaml.safe_dump({"store": str(store), "executor": "counting", "steps": [{"remove": "S0001"}]})
    )
    assert "one after the other" in vczstore(package, "run", tmp_path / "job.yaml")
    cohort.assert_same(cohort.read_vcz(store), cohort.expected_remove(cohort.expected_append(old, new), ["S0001"]))


@pytest.mark.slow
def test_a_package_that_cannot_be_loaded(tmp_path: Path) -> None:
    """Its command is listed and fails with a message; all other commands work."""
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vczstore.operations]\nset-note = no_such_module:SetNote\n")
    assert "  append " in vczstore(tmp_path, "--help")
    assert "  set-note " in vczstore(tmp_path, "--help")
    assert "set-note: the package of this operation cannot be loaded" in vczstore(
        tmp_path, "set-note", "store", status=2
    )
    assert '"append"' in vczstore(tmp_path, "schema")


@pytest.mark.slow
def test_neither_is_available_without_the_package(tmp_path: Path) -> None:
    assert "No such command 'set-note'" in vczstore(tmp_path, "set-note", "store", "x", status=2)
    assert "'counting' is none of" in vczstore(tmp_path, "append", "store", "x", "--executor", "counting", status=2)
