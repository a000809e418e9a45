"""Broken and hostile inputs to all commands: a one-line message, the right exit status, and an unchanged store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import cohort, forks
from tests.system.survival import inputs

CASES, STEP, ROUNDS = 10, 2, 12
"""Every second of the first 240 cases, which cover all commands."""
COMMANDS_OF_PLAIN = [name for name, command in inputs.COMMANDS.items() if command.reads and "format3" in command.kinds]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ROUNDS))
def test_generated_inputs(number: int) -> None:
    tally = inputs.run(CASES, seed=0, first=number * CASES * STEP + 1, step=STEP)
    assert tally.tried == CASES
    assert not tally.failures, "\n\n".join(tally.failures)


@pytest.mark.slow
def test_cases_are_of_all_commands() -> None:
    cases = [inputs.case(0, i) for i in range(1, ROUNDS * CASES * STEP, STEP)]
    assert len(cases) >= 100
    assert {case.command for case in cases if isinstance(case.command, str)} >= inputs.COMMANDS.keys()
    assert {case.kind for case in cases} == set(inputs.KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("dimension", ["variants", "samples"])
def test_huge_shapes(tmp_path: Path, dimension: str) -> None:
    """All arrays have the same huge dimension, so that the metadata are consistent."""
    for command in COMMANDS_OF_PLAIN:
        role = inputs.COMMANDS[command].reads.split()[-1]

        def damage(folder: Path, role: str = role) -> None:
            for name in inputs.FIELDS:
                if dimension in cohort.DIMENSIONS[name]:
                    path = folder / f"{role}.vcz" / name / "zarr.json"
                    document = json.loads(path.read_bytes())
                    document["shape"][cohort.DIMENSIONS[name].index(dimension)] = 10**15
                    path.write_text(json.dumps(document))

        folder = tmp_path / command
        folder.mkdir()
        problems = inputs.Case(f"10^15 {dimension}", "format3", command, damage, role, statuses=(1,)).try_in(folder)
        assert problems is None, problems


# ---- fuzzing --------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(inputs.ODD),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=6,
)
DOCUMENTS = ("zarr.json", *(f"{name}/zarr.json" for name in inputs.FIELDS))


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, bytes]:
    """A metadata document of a VCZ with one or two values replaced or deleted."""
    name = draw(st.sampled_from(DOCUMENTS))
    document = json.loads((inputs.templates() / "format3" / "store.vcz" / name).read_bytes())
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from([path for path in inputs.nodes(document) if path]))
        inner = document
        for part in path[:-1]:
            inner = inner[part]
        if draw(st.booleans()):
            inner[path[-1]] = draw(JSON)
        else:
            del inner[path[-1]]
    return name, json.dumps(document).encode()


@st.composite
def chunks(draw: st.DrawFn) -> tuple[str, bytes]:
    """A chunk of a VCZ, truncated, with changed bytes, or extended."""
    store = inputs.templates() / "format3" / "store.vcz"
    files = sorted(path for path in store.rglob("*") if path.is_file() and path.name != "zarr.json")
    path = draw(st.sampled_from(files))
    content = bytearray(path.read_bytes()[: draw(st.integers(0, 10**4))])
    for at, byte in draw(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=4)):
        content[at : at + 1] = bytes([byte])
    return str(path.relative_to(store)), bytes(content) + draw(st.binary(max_size=5))


def fuzz(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes, command: str, *, late: bool) -> None:
    """Run a command after replacing a file of the first VCZ that it reads, the store or the batch."""
    role = inputs.COMMANDS[command].reads.split()[0]

    def damage(folder: Path) -> None:
        path = folder / f"{role}.vcz" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    case = inputs.Case(f"{name} of {role} is {content[:300]!r}", "format3", command, damage, role, late=late)
    problems = case.try_in(tmp_path_factory.mktemp("fuzz"))
    assert problems is None, problems


BOUNDED = settings(
    # deterministic by default, random if the variable asks for more examples
    max_examples=int(os.environ.get("VCZSTORE_TEST_EXAMPLES", "25")),
    derandomize="VCZSTORE_TEST_EXAMPLES" not in os.environ,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)


@pytest.mark.slow
@BOUNDED
@given(damaged=documents(), command=st.sampled_from(COMMANDS_OF_PLAIN))
def test_any_document(tmp_path_factory: pytest.TempPathFactory, damaged: tuple[str, bytes], command: str) -> None:
    fuzz(tmp_path_factory, *damaged, command, late=False)


@pytest.mark.slow
@BOUNDED
@given(damaged=chunks(), command=st.sampled_from(COMMANDS_OF_PLAIN))
def test_any_chunk(tmp_path_factory: pytest.TempPathFactory, damaged: tuple[str, bytes], command: str) -> None:
    fuzz(tmp_path_factory, *damaged, command, late=True)


# ---- in separate processes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "command", "damage"),
    [
        ("format3", "append", lambda folder: (folder / "batch.vcz" / "call_DP" / "zarr.json").write_text("[" * 10**5)),
        ("format2", "remove", lambda folder: inputs.PLACES["a pipe"](folder / "store.vcz" / "call_DP" / "0.0")),
        ("icechunk", "verify", lambda folder: inputs.PLACES["an empty folder"](folder / "store.vcz" / "manifests")),
        ("icechunk", "info", lambda folder: inputs.PLACES["a pipe"](folder / "store.vcz" / "repo")),
    ],
)
@pytest.mark.slow
def test_in_a_separate_process(tmp_path: Path, kind: str, command: str, damage: object) -> None:
    """A separate process also shows output written at exit, by threads, and by Rust code."""
    case = inputs.Case("", kind, command, damage)
    case.make_in(tmp_path)
    before = inputs.tree(tmp_path)
    program = [sys.executable, "-m", "vczstore", *inputs.COMMANDS[command].args(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=60)
    ran = inputs.Ran(done.returncode, done.stdout, done.stderr, 0, 0)
    assert done.returncode == 1
    assert not inputs.complaints(ran, command, room=1000), done.stderr
    assert inputs.tree(tmp_path) == before or kind == "format2"


@pytest.mark.parametrize(
    "arguments",
    [
        "info",
        "verify",
        "append batch.vcz",
        "remove S0001",
        "gc",
        "verify-removal --samples-file gone.txt --report report",
    ],
)
@pytest.mark.slow
def test_a_path_that_is_not_utf_8(tmp_path: Path, arguments: str) -> None:
    """Linux allows any bytes in file names, but standard output only takes UTF-8."""
    name = os.fsdecode(b"store-\xff")
    cohort.write_vcz(tmp_path / name, cohort.some_arrays(10, cohort.ids(0, 7)))
    cohort.write_vcz(tmp_path / "batch.vcz", cohort.some_arrays(10, cohort.ids(7, 4)))
    (tmp_path / "gone.txt").write_text("HG99999999\n")
    command, *others = arguments.split()
    program = [forks.program("vczstore"), command, name, *others]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(program, capture_output=True, cwd=tmp_path, env=environment, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"store-\\udcff" in done.stdout
    if "--report" in others:
        assert "store-\\udcff" in (tmp_path / "report" / "report.html").read_text()
        assert json.loads((tmp_path / "report" / "report.json").read_text())["store"] == name
