"""The command line: commands and options, standard output and error, exit statuses, interrupts."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import vczstore
from tests.support import cohort, forks
from tests.support.command_line import fails, run
from tests.support.small_stores import repository_of
from vczstore.cli import main
from vczstore.execution import engine, operations, progress
from vczstore.execution.operations import Operation
from vczstore.execution.options import Options

FIELDS = (
    *("sample_id", "contig_id", "filter_id", "variant_contig", "variant_position", "variant_allele"),
    *("call_genotype", "call_DP", "call_GL", "call_FT"),
)
N_VARIANTS, N_OLD, N_NEW = 10, 7, 4
PROGRAM = [sys.executable, "-m", "vczstore"]


def some_arrays(samples: Sequence[str], *, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a cohort with a few fields, which keeps the tests fast."""
    arrays = cohort.make_arrays(N_VARIANTS, samples, seed=seed)
    return {name: arrays[name] for name in FIELDS}


OLD = some_arrays(cohort.ids(0, N_OLD))
NEW = some_arrays(cohort.ids(N_OLD, N_NEW), seed=1)
MORE = some_arrays(cohort.ids(N_OLD + N_NEW, 3), seed=2)


def read(path: Path) -> dict[str, np.ndarray]:
    return cohort.read_vcz(cohort.icechunk_store(path) if (path / "snapshots").is_dir() else path)


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two batches, and the store on plain Zarr and on Icechunk; created once, copied for each test."""
    folder = tmp_path_factory.mktemp("templates")
    for name, arrays in (("format3", OLD), ("batch.vcz", NEW), ("more.vcz", MORE)):
        cohort.write_vcz(folder / name, arrays)
    vczstore.copy_store_to_icechunk(folder / "format3", folder / "icechunk", impl="zarr")
    return folder


@pytest.fixture(params=["format3", "icechunk"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def store(kind: str, templates: Path, tmp_path: Path) -> Path:
    for name in ("batch.vcz", "more.vcz"):
        shutil.copytree(templates / name, tmp_path / name)
    return shutil.copytree(templates / kind, tmp_path / "store.vcz")


@pytest.fixture
def plain(templates: Path, tmp_path: Path) -> Path:
    shutil.copytree(templates / "batch.vcz", tmp_path / "batch.vcz")
    return shutil.copytree(templates / "format3", tmp_path / "store.vcz")


@pytest.fixture
def repository(templates: Path, tmp_path: Path) -> Path:
    shutil.copytree(templates / "batch.vcz", tmp_path / "batch.vcz")
    return shutil.copytree(templates / "icechunk", tmp_path / "store.vcz")


@pytest.fixture(autouse=True)
def _process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the signal handlers that commands set in this process."""
    monkeypatch.setenv("ICECHUNK_LOG", "off")  # --verbose does not override it
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def one_object(result: Result) -> dict[str, Any]:
    """Assert that standard output is a single JSON object; return it."""
    value = json.loads(result.stdout)
    assert isinstance(value, dict)
    assert result.stdout.count("\n") == 1
    return value


def call(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program as a fork."""
    command = [forks.program("vczstore"), *(str(a) for a in arguments)]
    pipes: dict[str, Any] = {"capture_output": True, "text": True, "env": environment()}
    return subprocess.run(command, check=False, timeout=120, **pipes, **options)


def environment() -> dict[str, str]:
    """The environment without a log level for icechunk."""
    return {name: value for name, value in os.environ.items() if name != "ICECHUNK_LOG"}


# ---- append and remove ----------------------------------------------------------------------

APPENDED = cohort.expected_append(OLD, NEW, MORE)


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_append(store: Path, kind: str, as_json: bool) -> None:
    result = run("append", store, store.with_name("batch.vcz"), store.with_name("more.vcz"), *["--json"] * as_json)
    cohort.assert_same(read(store), APPENDED)
    assert result.stderr == ""
    snapshot = repository_of(store).lookup_branch("main") if kind == "icechunk" else None
    if as_json:
        value = one_object(result)
        assert (value["operation"], value["store"]) == ("append", str(store))
        assert value["committed"] is True
        assert value["snapshot"] == snapshot
        assert value["counts"] == {"sources": 2, "samples added": N_NEW + 3}
        assert value["seconds"] > 0
    else:
        assert re.fullmatch(rf"append {store}: .*\b7 samples added in \d+\.\d\d s.*\n", result.stdout)
        assert snapshot is None or snapshot in result.stdout


RUNS: dict[str, list[str]] = {
    "zarr": ["--impl", "zarr"],
    "xarray": ["--impl", "xarray"],
    "single-threaded": ["--impl", "cubed", "--executor", "single-threaded"],
    "threads": ["--executor", "threads", "--max-workers", "2", "--allowed-mem", "1.5GB"],
    "processes": ["--executor", "processes", "--max-workers", "1"],
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
@pytest.mark.slow
def test_implementations_and_executors(plain: Path, options: list[str]) -> None:
    run("append", plain, plain.with_name("batch.vcz"), *options)
    run("remove", plain, "S0001", "S0008", *options)
    cohort.assert_same(read(plain), cohort.expected_remove(cohort.expected_append(OLD, NEW), ["S0001", "S0008"]))


@pytest.mark.slow
def test_work_dir(plain: Path, tmp_path: Path) -> None:
    """Intermediate data are written to --work-dir, not to the current folder."""
    before = set(Path.cwd().iterdir())
    options = ("--impl", "xarray", "--work-dir", tmp_path / "work")
    run("append", plain, plain.with_name("batch.vcz"), *options)
    cohort.assert_same(read(plain), cohort.expected_append(OLD, NEW))
    assert set(Path.cwd().iterdir()) == before


IDS: dict[str, tuple[list[str], str | bytes, list[str]]] = {
    "IDs": (["S0001", "S0005"], "", ["S0001", "S0005"]),
    "file": (["-S", "FILE"], "S0001\nS0005\n", ["S0001", "S0005"]),
    "standard input": (["-S", "-"], "S0001\nS0005", ["S0001", "S0005"]),
    "both": (["S0003", "--samples-file", "FILE"], "S0001\n", ["S0001", "S0003"]),
    "both from standard input": (["S0003", "S0004", "-S", "-"], "S0001\n", ["S0001", "S0003", "S0004"]),
    "blank lines and line ends": (["-S", "FILE"], "\r\n  S0001\t\r\n\r\nS0005", ["S0001", "S0005"]),
    "named twice": (["S0001", "S0001", "-S", "FILE"], "S0001\n", ["S0001"]),
    "byte order mark": (["-S", "FILE"], b"\xef\xbb\xbfS0001\n", ["S0001"]),
}


@pytest.mark.parametrize(("arguments", "text", "samples"), IDS.values(), ids=IDS)
def test_remove(plain: Path, tmp_path: Path, arguments: list[str], text: str | bytes, samples: list[str]) -> None:
    content = text.encode() if isinstance(text, str) else text
    (tmp_path / "ids.txt").write_bytes(content)
    arguments = [str(tmp_path / "ids.txt") if a == "FILE" else a for a in arguments]
    result = run("remove", plain, *arguments, "--json", "--impl", "zarr", stdin=content)
    assert one_object(result)["counts"] == {"samples removed": len(samples)}
    cohort.assert_same(read(plain), cohort.expected_remove(OLD, samples))


@pytest.mark.parametrize("as_json", [False, True])
def test_update(plain: Path, tmp_path: Path, as_json: bool) -> None:
    new = some_arrays(["S0003", "S0001"], seed=9)
    cohort.write_vcz(tmp_path / "new.vcz", new)
    result = run("update", plain, tmp_path / "new.vcz", *["--json"] * as_json)
    if as_json:
        assert one_object(result)["counts"] == {"sources": 1, "samples updated": 2}
    else:
        assert re.fullmatch(rf"update {plain}: 1 source, 2 samples updated in \d+\.\d\d s\n", result.stdout)
    cohort.assert_same(read(plain), cohort.expected_update(OLD, new))
    cohort.write_vcz(tmp_path / "other.vcz", some_arrays(["S0003", "S0077"]))
    assert "no sample S0077;" in fails("update", plain, tmp_path / "other.vcz")


def test_output_of_remove(store: Path) -> None:
    result = run("remove", store, "S0001", "S0002")
    assert re.match(rf"remove {store}: 2 samples removed in \d+\.\d\d s", result.stdout)
    assert result.stderr == ""


def test_remove_ids_that_are_not_text(plain: Path, tmp_path: Path) -> None:
    """A file in another encoding is a user error, not an unexpected one."""
    (tmp_path / "ids.txt").write_bytes("Zo\xeb\n".encode("latin-1"))
    before = cohort.digest(plain)
    result = CliRunner().invoke(main.main, ["remove", str(plain), "-S", str(tmp_path / "ids.txt")])
    assert result.exit_code in (1, 2)
    assert "ids.txt" in result.stderr
    assert "unexpected" not in result.stderr
    assert cohort.digest(plain) == before


# ---- tag, info, copy ------------------------------------------------------------------------


def test_tag(repository: Path) -> None:
    head = repository_of(repository).lookup_branch("main")
    assert run("tag", repository).stdout == ""
    assert one_object(run("tag", repository, "--json")) == {}
    result = run("tag", repository, "v1")
    assert "v1" in result.stdout
    assert head in result.stdout
    assert one_object(run("tag", repository, "v2", "--json")) == {"tag": "v2", "snapshot": head}
    assert run("tag", repository).stdout == f"v1\t{head}\nv2\t{head}\n"
    assert one_object(run("tag", repository, "--json")) == {"v1": head, "v2": head}
    assert "v1" in run("tag", repository, "--delete", "v1").stdout
    assert one_object(run("tag", repository, "-d", "v2", "--json")) == {"deleted": "v2"}
    assert list(repository_of(repository).list_tags()) == []
    assert "'v1'" in fails("tag", repository, "v1")


def test_info_of_plain_zarr(plain: Path) -> None:
    run("remove", plain, "S0002", "--impl", "zarr")
    text = run("info", plain).stdout
    for line in (r"store +.*store\.vcz.*format 3", r"samples +6 \(1 removed\)", r"variants +10", r"chunks +4 .*x 3 "):
        assert re.search(rf"^{line}", text, re.MULTILINE), line
    for field in ("call_DP", "call_genotype"):
        assert field in text
    value = one_object(run("info", plain, "--json"))
    expected = {"store": str(plain), "backend": "zarr", "zarr_format": 3, "snapshot": None, "history": [], "tags": {}}
    sizes = {"samples": 6, "removed_samples": 1, "variants": 10, "samples_chunk_size": 3, "variants_chunk_size": 4}
    assert value.items() >= {**expected, **sizes}.items()


@pytest.mark.slow
def test_info_at(repository: Path) -> None:
    """Old states are shown, by tag and by snapshot."""
    first = repository_of(repository).lookup_branch("main")
    run("tag", repository, "v1")
    run("append", repository, repository.with_name("batch.vcz"), "--impl", "zarr")
    run("remove", repository, "S0003", "--impl", "zarr")
    for at, samples in ((None, N_OLD + N_NEW - 1), ("v1", N_OLD), (first, N_OLD)):
        options = [] if at is None else ["--at", at]
        value = one_object(run("info", repository, *options, "--json"))
        assert value["samples"] == samples
        assert value["removed_samples"] == (1 if at is None else 0)
        assert (value["snapshot"] == first) == (at is not None)
        assert value["tags"] == {"v1": first}
        text = run("info", repository, *options).stdout
        assert re.search(rf"^samples +{samples}\b", text, re.MULTILINE)
        assert re.search(r"^tags +v1$", text, re.MULTILINE)
    history = one_object(run("info", repository, "--json"))["history"]
    assert [entry["message"].split(":")[0] for entry in history[:3]] == ["remove", "append", "copy-store-to-icechunk"]
    assert all(entry["id"] in run("info", repository).stdout for entry in history)


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.slow
def test_create(plain: Path, tmp_path: Path, as_json: bool) -> None:
    """Create a store without samples, and append the samples of its sources."""
    out, batch = tmp_path / "out", tmp_path / "batch.vcz"
    arguments = ["create", out, plain, batch, "--zarr-backend-storage", "icechunk"]
    dry = run(*arguments, "--dry-run", *["--json"] * as_json)
    assert not out.exists()
    result = run(*arguments, *["--json"] * as_json)
    assert result.stderr == dry.stderr == ""
    counts = {"sources": 2, "variants": N_VARIANTS}
    if as_json:
        assert one_object(dry)["counts"] == one_object(result)["counts"] == counts
        assert one_object(result)["snapshot"] == repository_of(out).lookup_branch("main")
    else:
        assert "2 sources, 10 variants (dry run, nothing was written)" in dry.stdout
        assert re.match(rf"create {out}: 2 sources, 10 variants in ", result.stdout)
    assert "exists" in fails("create", plain, batch)
    run("append", out, plain, batch)
    whole = cohort.expected_append(OLD, NEW)
    arrays = read(out)
    for name in whole:
        if name.startswith(("sample_", "call_", "variant_position")):
            np.testing.assert_array_equal(arrays[name], whole[name], err_msg=name)


def test_progress_of_create(plain: Path, tmp_path: Path) -> None:
    result = run("create", tmp_path / "out", plain, "-P")
    for what in ("survey 1", "survey 2", "writing"):
        assert re.search(rf"{what} .*\b(\d+)/\1\b", result.stderr)


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.slow
def test_copy_store_to_icechunk(plain: Path, templates: Path, tmp_path: Path, as_json: bool) -> None:
    target = tmp_path / "copy"
    before = cohort.digest(plain)
    result = run("copy-store-to-icechunk", plain, target, *["--json"] * as_json)
    assert result.stderr == ""
    cohort.assert_same(read(target), OLD)
    first = repository_of(target).lookup_branch("main")
    if as_json:
        assert one_object(result)["snapshot"] == first
    else:
        assert re.match(rf"copy-store-to-icechunk {target}: .*{N_OLD} samples", result.stdout)
    assert "--overwrite" in fails("copy-store-to-icechunk", plain, target)
    assert cohort.digest(plain) == before
    run("copy-store-to-icechunk", tmp_path / "batch.vcz", target, "--overwrite")
    cohort.assert_same(read(target), NEW)
    assert one_object(run("info", target, "--at", first, "--json"))["samples"] == N_OLD


# ---- options --------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--backend-storage", "--zarr-backend-storage"])
@pytest.mark.parametrize(
    ("kind", "backend"),
    [("format3", "zarr"), ("format3", "obstore"), ("format3", "fsspec"), ("icechunk", "icechunk")],
)
def test_backend_storage(store: Path, option: str, backend: str) -> None:
    value = one_object(run("info", store, option, backend, "--json"))
    assert value["backend"] == backend
    assert value["samples"] == N_OLD


@pytest.mark.parametrize(("kind", "backend"), [("format3", "icechunk"), ("icechunk", "zarr"), ("icechunk", "obstore")])
def test_wrong_backend_storage(store: Path, backend: str) -> None:
    before = cohort.digest(store)
    assert str(store) in fails("append", store, store.with_name("batch.vcz"), "--backend-storage", backend)
    assert cohort.digest(store) == before


def test_copy_to_another_backend(plain: Path, tmp_path: Path) -> None:
    assert "icechunk" in fails(
        "copy-store-to-icechunk", plain, tmp_path / "copy", "--backend-storage", "zarr", status=2
    )
    assert not (tmp_path / "copy").exists()


COMMANDS: dict[str, list[str]] = {
    "create": ["s3://bucket/store", "source"],
    "append": ["s3://bucket/store", "source"],
    "remove": ["s3://bucket/store", "S0001"],
    "compact": ["s3://bucket/store"],
    "verify": ["s3://bucket/store"],
    "repair": ["s3://bucket/store"],
    "recompute": ["s3://bucket/store"],
    "tag": ["s3://bucket/store"],
    "info": ["s3://bucket/store"],
    "copy-store-to-icechunk": ["source", "s3://bucket/store"],
}


class Reached(Exception):
    """Raised instead of running an operation."""


@pytest.mark.parametrize("command", COMMANDS)
def test_storage_options(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are parsed as JSON if valid, and are text otherwise."""
    passed: list[Options] = []

    def stand_in(_: Operation, options: Options, *_args: Any, **_keywords: Any) -> None:
        passed.append(options)
        raise Reached

    monkeypatch.setattr(engine, "run", stand_in)
    pairs = {
        "region=eu-west-1": "eu-west-1",
        "anonymous=true": True,
        "timeout=30": 30,
        'headers={"a": [1, null]}': {"a": [1, None]},
        'quoted="30"': "30",
        "url=http://host/?a=b": "http://host/?a=b",
        "empty=": "",
    }
    options = [o for pair in pairs for o in ("--storage-option", pair)]
    CliRunner().invoke(main.main, [command, *COMMANDS[command], *options])
    assert passed[0].storage_options == {pair.partition("=")[0]: value for pair, value in pairs.items()}


USAGE: dict[str, list[str]] = {
    "no such command": ["merge", "STORE"],
    "no such option": ["append", "STORE", "SOURCE", "--frobnicate"],
    "no store": ["append"],
    "no source": ["append", "STORE"],
    "no source of an update": ["update", "STORE"],
    "no samples": ["remove", "STORE"],
    "no samples file": ["remove", "STORE", "-S", "/nonexistent/ids.txt"],
    "nothing to delete": ["tag", "STORE", "--delete"],
    "nothing to create from": ["create", "NEW"],
    "another impl of create": ["create", "NEW", "SOURCE", "--impl", "zarr"],
    "nowhere to copy to": ["copy-store-to-icechunk", "STORE"],
    "max workers": ["append", "STORE", "SOURCE", "--max-workers", "0"],
    "max workers no number": ["append", "STORE", "SOURCE", "--max-workers", "many"],
    "impl": ["append", "STORE", "SOURCE", "--impl", "fortran"],
    "executor": ["remove", "STORE", "S0001", "--executor", "ray"],
    "backend": ["info", "STORE", "--backend-storage", "tape"],
    "storage option": ["info", "STORE", "--storage-option", "region"],
    "at without value": ["info", "STORE", "--at"],
}


@pytest.fixture(scope="module")
def folder(templates: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and a batch, for commands that change nothing."""
    folder = tmp_path_factory.mktemp("refused")
    shutil.copytree(templates / "batch.vcz", folder / "batch.vcz")
    shutil.copytree(templates / "format3", folder / "store.vcz")
    return folder


@pytest.mark.parametrize("arguments", USAGE.values(), ids=USAGE)
def test_usage_errors(folder: Path, arguments: list[str]) -> None:
    before = cohort.digest(folder)
    places = {"STORE": str(folder / "store.vcz"), "SOURCE": str(folder / "batch.vcz")}
    result = run(*(places.get(a, a) for a in arguments), status=2)
    assert result.stdout == ""
    assert re.search(r"^Error: ", result.stderr, re.MULTILINE)
    assert cohort.digest(folder) == before


ERRORS: dict[str, tuple[list[str], str]] = {
    "append to nothing": (["append", "NOTHING", "SOURCE"], "no such file"),
    "append nothing": (["append", "STORE", "NOTHING"], "no such file"),
    "append twice": (["append", "STORE", "SOURCE", "SOURCE"], "already"),
    "append with too little memory": (["append", "STORE", "SOURCE", "--allowed-mem", "1MB"], "allow"),
    "append with nonsense memory": (["append", "STORE", "SOURCE", "--allowed-mem", "lots"], "'lots'"),
    "options of a local store": (["append", "STORE", "SOURCE", "--storage-option", "a=1"], "no storage options"),
    "remove unknown": (["remove", "STORE", "S0001", "absent-id", "-S", "-"], "absent-id"),
    "compact nothing": (["compact", "NOTHING"], "no such file"),
    "compact onto a store": (["compact", "STORE", "--output", "SOURCE"], "exists"),
    "verify nothing": (["verify", "NOTHING"], "no such file"),
    "tag plain Zarr": (["tag", "STORE", "v1"], "copy-store-to-icechunk"),
    "info of nothing": (["info", "NOTHING"], "no such file"),
    "info at a tag of plain Zarr": (["info", "STORE", "--at", "v1"], "copy-store-to-icechunk"),
    "create from nothing": (["create", "NEW", "SOURCE", "NOTHING"], "no such file"),
    "create a store twice": (["create", "STORE", "SOURCE"], "exists"),
    "create with too little memory": (["create", "NEW", "SOURCE", "--allowed-mem", "1MB"], "allow"),
    "copy of nothing": (["copy-store-to-icechunk", "NOTHING", "NEW"], "no such file"),
    "copy onto a store": (["copy-store-to-icechunk", "STORE", "SOURCE"], "exists"),
}


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize(("arguments", "words"), ERRORS.values(), ids=ERRORS)
def test_errors(folder: Path, arguments: list[str], words: str, as_json: bool) -> None:
    before = cohort.digest(folder)
    names = {"STORE": "store.vcz", "SOURCE": "batch.vcz", "NOTHING": "nothing.vcz", "NEW": "new.vcz"}
    arguments = [str(folder / names[a]) if a in names else a for a in arguments]
    is_usage = any(option in arguments for option in ("--allowed-mem", "--storage-option"))
    assert words in fails(*arguments, *["--json"] * as_json, stdin="", status=2 if is_usage else 1)
    assert cohort.digest(folder) == before


@pytest.mark.parametrize("error", [RuntimeError("first\nsecond"), KeyError("key"), ZeroDivisionError(), MemoryError()])
def test_unexpected_errors(plain: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unexpected errors are one line, too, and --verbose shows the traceback."""

    def stand_in(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(engine, "run", stand_in)
    line = fails("info", plain)
    assert type(error).__name__ in line
    assert "--verbose" in line
    result = CliRunner().invoke(main.main, ["info", str(plain), "--verbose"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "stand_in" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["format3"])
@pytest.mark.parametrize(("options", "shown"), [(["-P"], True), (["--progress"], True), (["-Q"], False), ([], False)])
def test_progress(store: Path, options: list[str], shown: bool) -> None:
    """Progress is on standard error, and by default only on a terminal."""
    for command in (["append", store, store.with_name("batch.vcz")], ["remove", store, "S0001"]):
        result = run(*command, *options, "--json")
        assert one_object(result)["committed"]
        if shown:
            assert "writing" in result.stderr
            assert re.search(r"\b(\d+)/\1\b", result.stderr)  # up to the last task
        else:
            assert result.stderr == ""


@pytest.mark.slow
def test_a_terminal_shows_phase_speed_and_time(plain: Path) -> None:
    command = [forks.program("vczstore"), "append", str(plain), str(plain.with_name("batch.vcz"))]
    reader, writer = pty.openpty()
    started, shown = time.monotonic(), b""
    with subprocess.Popen(command, stderr=writer, stdout=subprocess.DEVNULL, env=environment() | {"TERM": "xterm"}):
        os.close(writer)
        with suppress(OSError):  # the other end is closed
            while part := os.read(reader, 4096):
                if b"preparing" in part:
                    first = time.monotonic() - started
                shown += part
    os.close(reader)
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.decode())
    assert first < 10  # even under load; about 0.3 s otherwise
    assert re.search(r"writing .*\b(\d+)/\1 tasks +[\d.]+ k?B/s 0:00:\d\d elapsed", text)


def test_log_file(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.001)
    log, batch = plain.with_name("run.log"), plain.with_name("batch.vcz")
    assert run("append", plain, batch, "--log-file", log).stderr == ""
    run("append", plain, batch, "--log-file", log, status=1)
    lines = log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d \w", line) for line in lines)
    messages = [line[26:] for line in lines]
    prefix = f"append {plain}:"
    assert messages[0] == f"{prefix} begun"
    assert [line for line in messages if not line.startswith(("preparing", "checking", "writing"))][1:3] == [
        f"{prefix} done",
        f"{prefix} begun",
    ]
    assert any(
        re.fullmatch(r"writing \d+/\d+ tasks(, [\d.]+ k?B written, .*/s)?(, 0:00:0\d left)?", line) for line in messages
    )
    assert messages[-1] == f"{prefix} failed while preparing"
    job = plain.with_name("job.yaml")
    job.write_text(f"store: {plain.name}\nsteps: [{{append: {{source: {batch.name}, on-duplicate: skip}}}}]\n")
    done = json.loads(run("run", job, "--log-file", log, "--json").stdout)
    *_, begun, ended = [line[26:] for line in log.read_text().splitlines() if ": begun" in line or ": done" in line]
    assert begun == f"run {job}: begun"
    assert ended == f"run {job} on {plain}, job {done['job']}: done"
    vczstore.verify(plain, log_file=str(log))
    assert log.read_text().endswith(f" verify {plain}: done\n")
    assert "S0" not in log.read_text()
    before = cohort.digest(plain)
    assert "nowhere/log" in fails("remove", plain, "S0001", "--log-file", plain / "nowhere" / "log")
    assert "is a directory" in run("remove", plain, "S0001", "--log-file", plain, status=2).stderr
    assert cohort.digest(plain) == before


@pytest.mark.slow
def test_progress_in_python(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vczstore.append(plain, plain.with_name("batch.vcz"), progress=True)
    assert re.search(r"writing .*\b(\d+)/\1 tasks", capsys.readouterr().err)


FAILS = {
    "data": (["append", "STORE", "STORE"], 1),
    "usage": (["append", "STORE"], 2),
    "no such option": (["info", "STORE", "--fast"], 2),
    "no such executor": (["executor", "check", "nowhere"], 2),
    "no samples": (["remove", "STORE"], 2),
    "no job file": (["run", "nowhere.yaml"], 2),
    "an option that does not fit": (["append", "STORE", "STORE", "--absent", "reference"], 2),
}


@pytest.mark.parametrize(("arguments", "status"), FAILS.values(), ids=FAILS)
def test_failures_as_json(plain: Path, arguments: list[str], status: int) -> None:
    result = run(*[str(plain) if word == "STORE" else word for word in arguments], "--json", status=status)
    document = one_object(result)
    assert (document["status"], document["exit_status"]) == ("failed", status)
    assert document["operation"] == " ".join(arguments[: 1 + (arguments[0] == "executor")])
    assert result.stderr.splitlines()[-1] == f"Error: {document['error']}"


# ---- dry runs -------------------------------------------------------------------------------

DRY = {
    "append": ["append", "STORE", "SOURCE"],
    "remove": ["remove", "STORE", "S0001"],
    "compact": ["compact", "STORE", "--output", "NEW"],
    "copy": ["copy-store-to-icechunk", "SOURCE", "NEW"],
    "overwrite": ["copy-store-to-icechunk", "SOURCE", "REPOSITORY", "--overwrite"],
}


@pytest.mark.parametrize("arguments", DRY.values(), ids=DRY)
@pytest.mark.slow
def test_dry_run(store: Path, templates: Path, tmp_path: Path, arguments: list[str]) -> None:
    """A dry run writes nothing, and predicts the figures of the run."""
    shutil.copytree(templates / "icechunk", tmp_path / "repository")
    names = {"STORE": "store.vcz", "SOURCE": "batch.vcz", "NEW": "new", "REPOSITORY": "repository"}
    arguments = [str(tmp_path / names[a]) if a in names else a for a in arguments]
    before = cohort.digest(tmp_path)
    text = run(*arguments, "--dry-run")
    assert text.stderr == ""
    assert "dry run" in text.stdout
    for line in (r"chunks +\d+ .*\b\d+ ", r"reads +.*\d", r"writes +.*\d", r"tasks +\d+.*\d MB"):
        assert re.search(rf"^ *{line}", text.stdout, re.MULTILINE), line
    dry = one_object(run(*arguments, "--dry-run", "--json"))
    assert cohort.digest(tmp_path) == before
    assert not (tmp_path / "new").exists()
    assert dry["committed"] is False
    assert dry["snapshot"] is None
    plan = dry["plan"]
    assert plan["bytes_read_at_most"] > 0
    assert plan["bytes_written_at_most"] > 0
    assert plan["projected_mem"] > 0
    done = one_object(run(*arguments, "--json"))
    assert done["committed"] is True
    assert done["counts"] == dry["counts"]
    assert done["chunks"] == plan["chunks_encoded"] + plan["chunks_decoded"] > 0
    assert done["tasks"] == plan["tasks"]
    assert cohort.digest(tmp_path) != before


@pytest.mark.parametrize("impl", ["zarr", "xarray"])
def test_dry_run_of_other_implementations(plain: Path, impl: str) -> None:
    before = cohort.digest(plain)
    dry = one_object(run("append", plain, plain.with_name("batch.vcz"), "--impl", impl, "--dry-run", "--json"))
    assert dry["plan"]["chunks_encoded"] + dry["plan"]["chunks_decoded"] > 0
    assert cohort.digest(plain) == before


def test_dry_run_that_fails(plain: Path, tmp_path: Path) -> None:
    """A dry run fails where the run would fail."""
    other = {**NEW, "variant_position": NEW["variant_position"] + (np.arange(N_VARIANTS) == 9)}
    cohort.write_vcz(tmp_path / "other.vcz", other)
    assert "variant 9" in fails("append", plain, tmp_path / "other.vcz", "--dry-run", "--json")


# ---- demo -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that the demo shows lead to the same samples and values when run separately."""
    monkeypatch.chdir(tmp_path)
    text = run("demo").stdout
    commands = [shlex.split(line.removeprefix("$ ")) for line in text.splitlines() if line.startswith("$ ")]
    assert [command[:2] for command in commands] == [
        ["vczstore", "copy-store-to-icechunk"],
        *[["vczstore", "append"]] * 2,
        ["vczstore", "remove"],
        ["vczstore", "tag"],
    ]
    befores, afters = (re.findall(rf"^ *{word} +(.*)$", text, re.MULTILINE) for word in ("before", "after"))
    store = Path(commands[0][-1])
    arrays, tags = read(store), set(repository_of(store).list_tags())
    assert afters[-1].split() == [sample for sample in arrays["sample_id"] if sample]
    assert befores[1:] == afters[:-1]
    removed = commands[3][-1]
    assert removed in befores[3].split()
    assert removed not in afters[3].split()

    shutil.rmtree(store)
    for command, after in zip(commands, afters, strict=True):
        run(*command[1:])
        assert [sample for sample in read(store)["sample_id"] if sample] == after.split()
    again = read(store)
    assert again.keys() == arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(again[name], values, err_msg=name)
    assert set(repository_of(store).list_tags()) == tags == {commands[-1][-1]}
    # the commands recommended at the end work, too
    for line in re.findall(r"(vczstore info .*)$", text, re.MULTILINE):
        run(*shlex.split(line)[1:])


@pytest.mark.slow
def test_demo_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Existing files are not changed."""
    monkeypatch.chdir(tmp_path)
    run("demo")
    before = cohort.digest(tmp_path)
    run("demo")
    assert len(list(tmp_path.iterdir())) == 2
    run("demo", "--directory", tmp_path / "else where")
    assert (tmp_path / "else where").is_dir()
    assert cohort.digest(tmp_path).items() >= before.items()


@pytest.mark.slow
def test_demo_as_json(tmp_path: Path) -> None:
    value = one_object(run("demo", "--directory", tmp_path / "demo", "--json"))
    assert Path(value["directory"]) == tmp_path / "demo"
    assert [shlex.split(step["command"])[1] for step in value["steps"]] == [
        *("copy-store-to-icechunk", "append", "append", "remove", "tag")
    ]
    assert all(step["before"] != step["after"] for step in value["steps"][:4])


# ---- the package and what it imports --------------------------------------------------------

HEAVY = ("numpy", "zarr", "cubed", "icechunk", "xarray", "rich", "networkx", "obstore", "fsspec", "pydantic")
PROBE = f"""
import sys
from vczstore.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as error:
    assert not error.code, error.code
print("imported:", *sorted(set({HEAVY!r}) & set(sys.modules)))
"""


def imported(*arguments: object) -> set[str]:
    command = [sys.executable, "-c", PROBE, *(str(a) for a in arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split()[1:])


TO_THE_END = """
import os, signal
from vczstore.__main__ import run

class Crashes:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGSEGV)

crashes = Crashes()  # like an object held by Icechunk's threads while Python finalizes
run()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status"), [(["--version"], 0), (["info", "nowhere"], 1), (["info"], 2), (["info", "--help"], 0)]
)
def test_the_program_exits_without_finalizing_python(arguments: list[str], status: int) -> None:
    command = [sys.executable, "-c", TO_THE_END, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == status
    assert (ended.stderr if status else ended.stdout).rstrip()


def test_exit_handlers_run() -> None:
    """Threads are joined, and atexit functions are called in reverse order."""
    script = """if True:
        import atexit, sys, threading, time
        from unittest import mock
        from vczstore import __main__
        from vczstore.cli import main

        def command(*_, **__):
            atexit.register(print, "late", end=" ")  # in a buffer until it is flushed
            threading.Thread(target=lambda: (time.sleep(0.2), print("thread", end=" "))).start()
            sys.exit(3)

        atexit.register(print, "early", end="")
        with mock.patch.object(main, "main", command):
            __main__.run()
    """
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout) == (3, "thread late early")


LATE = """
import atexit, os, signal, click
from vczstore.__main__ import run
signal.signal(signal.SIGINT, signal.default_int_handler)

def interrupt():
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)

if {where!r} == "the end of Python":
    atexit.register(interrupt)
else:
    leave = click.Context.exit
    click.Context.exit = lambda context, code=0: (interrupt(), leave(context, code))
run()
"""


@pytest.mark.parametrize("where", ["the end of the command", "the end of Python"])
@pytest.mark.slow
def test_a_late_interrupt_is_ignored(plain: Path, where: str) -> None:
    command = [sys.executable, "-c", LATE.format(where=where), "remove", str(plain), "S0001"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    cohort.assert_same(read(plain), cohort.expected_remove(OLD, ["S0001"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["append", "--help"], ["remove", "-h"], ["demo", "-h"]]
)
def test_help_imports_nothing(arguments: list[str]) -> None:
    assert imported(*arguments) == set()


@pytest.mark.parametrize(
    ("impl", "not_needed"),
    [
        ("zarr", {"cubed", "icechunk", "xarray", "pydantic"}),
        ("cubed", {"icechunk", "xarray", "pydantic"}),
        ("xarray", {"icechunk"}),
    ],
)
@pytest.mark.slow
def test_only_needed_packages_are_imported(plain: Path, impl: str, not_needed: set[str]) -> None:
    packages = imported("append", plain, plain.with_name("batch.vcz"), "--impl", impl)
    assert not packages & not_needed
    assert packages >= {"numpy", "zarr"}
    cohort.assert_same(read(plain), cohort.expected_append(OLD, NEW))


@pytest.mark.slow
def test_public_names() -> None:
    assert set(vczstore.__all__) <= set(dir(vczstore))
    for name in vczstore.__all__:
        assert getattr(vczstore, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        vczstore.nonsense  # noqa: B018
    code = "from vczstore import *; print(append.__name__, Result.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "append Result\n"


def test_help_and_version() -> None:
    text = run("--help").stdout
    names = [*operations.names(), "demo", "executor", "plan", "run", "schema", "set"]
    assert {"append", "remove", "verify-removal", "copy-store-to-icechunk"} < set(names)
    groups = re.split(r"\n(?=[A-Z][a-z ]+:\n)", text)
    listed = [re.findall(r"^  ([a-z][a-z-]+)  +[A-Z]", group, re.MULTILINE) for group in groups[1:]]
    assert all(group == sorted(group) for group in listed)
    assert sorted(name for group in listed for name in group) == sorted(names)
    for name in names:
        assert "Usage: " in run(name, "--help").stdout
    assert re.search(r"\d+\.\d+", run("--version").stdout)


def test_no_summary_is_cut_off() -> None:
    shown = " ".join(run("--help").stdout.split())
    for name in operations.names():
        summary = operations.listed(name)[1]
        assert summary.endswith(".")
        assert summary in shown


def test_options_have_headings() -> None:
    sections = dict(re.findall(r"^([A-Z].*):\n((?: .*\n|\n(?= ))+)", run("append", "--help").stdout, re.MULTILINE))
    assert [*sections] == ["Options", "With --harmonise", "Stores", "Running", "Output"]
    heading_of = {"--harmonize": "Options", "--gvcf": "With --harmonise", "--no-lock": "Stores", "--help": "Output"}
    assert all(option in sections[heading] for option, heading in heading_of.items())


COMPLETED = {
    "app": "plain,append\n",
    "append --absent ": "plain,missing\nplain,reference\n",
    "append sto": "file,sto\n",
}


@pytest.mark.parametrize(("words", "completed"), COMPLETED.items())
def test_completion(words: str, completed: str) -> None:
    words = f"vczstore {words}"
    environ = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_VCZSTORE_COMPLETE": "bash_complete"}
    assert CliRunner().invoke(main.main, env=environ, prog_name="vczstore").stdout == completed


@pytest.mark.slow
def test_american_spelling(plain: Path, tmp_path: Path) -> None:
    """American spelling is accepted on the command line, in job files and in Python."""
    for name in ("bash", "python"):
        cohort.write_vcz(tmp_path / name, some_arrays([name], seed=3))
    run("normalize", plain, tmp_path / "batch.vcz", tmp_path / "mapped.vcz")
    run("append", plain, tmp_path / "mapped.vcz", "--harmonize")
    (tmp_path / "job.yaml").write_text("store: store.vcz\nsteps:\n  - append: {source: bash, harmonize: true}\n")
    run("run", tmp_path / "job.yaml")
    vczstore.append(plain, tmp_path / "python", harmonize=True)
    vczstore.normalize(plain, tmp_path / "batch.vcz", tmp_path / "again.vcz")
    assert read(plain)["sample_id"].tolist()[-6:] == [*NEW["sample_id"], "bash", "python"]
    cohort.assert_same(read(tmp_path / "again.vcz"), read(tmp_path / "mapped.vcz"))


# ---- the program ----------------------------------------------------------------------------


@pytest.mark.slow
def test_other_files_in_a_store_are_ignored(plain: Path, tmp_path: Path) -> None:
    """Files and folders that are not part of the store cause no message, and stay unchanged."""
    (plain / "README.txt").write_text("Do not delete!\n")
    (plain / "notes").mkdir()
    for command in (["info", plain], ["append", plain, tmp_path / "batch.vcz"], ["remove", plain, "S0003"]):
        result = call(*command)
        assert (result.returncode, result.stderr) == (0, "")
    assert (plain / "README.txt").read_text() == "Do not delete!\n"


@pytest.mark.slow
def test_program_in_processes(plain: Path, tmp_path: Path) -> None:
    """Worker processes start without running the main module again."""
    result = call("append", plain, tmp_path / "batch.vcz", "--executor", "processes", "--max-workers", "2", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["committed"]
    cohort.assert_same(read(plain), cohort.expected_append(OLD, NEW))


@pytest.mark.slow
def test_closed_standard_output(plain: Path) -> None:
    """As in ``vczstore info | head -1``."""
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [*PROGRAM, "info", plain],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
        env=environment(),
    )
    os.close(writer)
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr


@pytest.mark.slow
def test_sample_ids_stay_out_of_history_and_logs(tmp_path: Path) -> None:
    """Entries in history and logs would outlive the removal of a sample."""
    secrets = [f"SECRET{i}" for i in range(6)]
    for name, samples in (("cohort", secrets[:3]), ("batch", secrets[3:])):
        cohort.write_vcz(tmp_path / name, some_arrays(samples))
    (tmp_path / "ids.txt").write_text("SECRET1\nSECRET4\n")
    store = tmp_path / "store"
    for command in (
        ["copy-store-to-icechunk", tmp_path / "cohort", store],
        ["append", store, tmp_path / "batch"],
        ["remove", store, "-S", tmp_path / "ids.txt", "--executor", "processes", "--max-workers", "1"],
        ["tag", store, "v1"],
        ["info", store],
    ):
        result = call(*command, "-v")
        assert result.returncode == 0, result.stderr
        assert "SECRET" not in result.stderr + result.stdout
    snapshots = list(repository_of(store).ancestry(branch="main"))
    messages = [snapshot.message for snapshot in snapshots]
    assert [message.split(":")[0] for message in messages[:3]] == ["remove", "append", "copy-store-to-icechunk"]
    for snapshot in snapshots:
        assert "SECRET" not in f"{snapshot.message} {snapshot.metadata} {snapshot.id}"
    assert set(repository_of(store).list_tags()) == {"v1"}
    cohort.write_vcz(tmp_path / "plain", some_arrays(secrets[:3]))
    result = call("append", tmp_path / "plain", tmp_path / "batch", "-v")
    assert result.returncode == 0, result.stderr
    assert "SECRET" not in result.stderr + result.stdout


# ---- interrupts -----------------------------------------------------------------------------


class SlowFile:
    """
    Make processes wait when they open a file, and signal that they do.

    An audit hook, installed in processes with this `environment`, blocks on a named pipe that is not yet open for
    writing.
    """

    HOOK = """
import os, sys

def wait(event, args):
    if event == "open" and args[0] == os.environ["SLOW_FILE"]:
        gate = os.open(os.environ["SLOW_GATE"], os.O_RDONLY)  # returns when the writer opens the pipe
        os.read(gate, 1)  # returns when the writer writes or closes it
        os.close(gate)

sys.addaudithook(wait)
"""

    def __init__(self, path: Path, folder: Path, seconds: float = 1.0) -> None:
        self.seconds, self.gate = seconds, folder / "gate"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(self.HOOK)
        os.mkfifo(self.gate)
        self.environment = {"PYTHONPATH": str(folder), "SLOW_FILE": str(path), "SLOW_GATE": str(self.gate)}
        self.reading, self.released = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while not self.released.is_set():
            pipe = os.open(self.gate, os.O_WRONLY)  # returns when a reader opens it
            self.reading.set()
            self.released.wait(self.seconds)
            # a byte, since a reader may miss that the pipe was closed if it is opened again at once
            with suppress(BrokenPipeError):  # the reader has exited
                os.write(pipe, b"x")
            os.close(pipe)

    def release(self) -> None:
        """Let all readers continue."""
        self.released.set()
        while self.thread.is_alive():
            os.close(os.open(self.gate, os.O_RDONLY | os.O_NONBLOCK))
            self.thread.join(0.1)


@dataclass(frozen=True)
class Interrupt:
    """A run to interrupt while it reads a file, or if `file` is "", while workers start."""

    id: str
    kind: str
    file: str
    state: str
    options: tuple[str, ...] = ()
    command: str = "append"
    signal: signal.Signals = signal.SIGINT
    to_group: bool = False
    """Whether workers get the signal too, as from a terminal."""


ONE, TWO = (("--executor", "processes", "--max-workers", str(n)) for n in (1, 2))
ZARR = ("--impl", "zarr")
OLD_SAMPLES, NOTHING_COMMITTED = "old samples.*again", "nothing was committed"
RAGGED = "store.vcz/call_GL/c/1/2/0"
INTERRUPTS = [
    Interrupt("threads", "format3", RAGGED, OLD_SAMPLES),
    Interrupt("terminated", "format3", RAGGED, OLD_SAMPLES, TWO, signal=signal.SIGTERM),
    Interrupt("from a terminal while workers start", "format3", "", OLD_SAMPLES, TWO, to_group=True),
    Interrupt("while checking", "format3", "batch.vcz/variant_allele/c/1/0", "nothing was written|old samples"),
    Interrupt("while planning", "format3", "batch.vcz/sample_id/c/0", "nothing was written|old samples"),
    Interrupt("zarr", "format3", "store.vcz/call_GL/c/1/0/0", "may be missing.*again", ZARR, command="remove"),
    Interrupt("from a terminal", "icechunk", "batch.vcz/call_GL/c/1/0/0", NOTHING_COMMITTED, ONE, to_group=True),
]
LIKE_A_SHELL = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # SIGINT may be ignored in the test runner
from vczstore.__main__ import run
run()
"""


def session_of(leader: int) -> list[int]:
    """IDs of the running processes of a session."""
    alive = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just exited
        if int(fields[3]) == leader and fields[0] != "Z":
            alive.append(int(status.parent.name))
    return alive


def wait_for_workers(driver: int) -> None:
    """Wait until workers have started to import. The session also has the driver and a resource tracker."""
    deadline = time.monotonic() + 60
    while len(session_of(driver)) < 3:
        assert time.monotonic() < deadline, "no workers"
        time.sleep(0.01)
    time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_before_the_command_begins_ends_it_silently(number: signal.Signals) -> None:
    stopping = f"""
import os, sys
class Stopping:
    def find_spec(self, name, *_):
        if name == "vczstore.cli.main":
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Stopping())
"""
    command = [sys.executable, "-c", stopping + LIKE_A_SHELL, "--version"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert (ended.returncode, ended.stdout, ended.stderr) == (-number, "", "")


@pytest.mark.parametrize("command", [["remove", "a.vcz"], ["verify-removal", "a.vcz"]], ids=lambda c: c[0])
def test_a_file_name_with_a_line_break_does_not_break_the_message(command: list[str]) -> None:
    result = CliRunner().invoke(main.main, [*command, "-S", "no\nsuch file"])
    assert result.exit_code == 2
    *_, last = result.stderr.splitlines()
    assert re.fullmatch(rf"Error: {command[0]}: 'no\\nsuch file': cannot be read .*", last)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("case", INTERRUPTS, ids=lambda case: case.id)
@pytest.mark.slow
def test_interrupt(templates: Path, tmp_path: Path, case: Interrupt) -> None:
    """The run ends soon, with one line on the state of the store, and a rerun completes it."""
    store = shutil.copytree(templates / case.kind, tmp_path / "store.vcz")
    batch = shutil.copytree(templates / "batch.vcz", tmp_path / "batch.vcz")
    head = repository_of(store).lookup_branch("main") if case.kind == "icechunk" else None
    arguments = [case.command, str(store), str(batch) if case.command == "append" else "S0001", *case.options]
    command = [sys.executable, "-c", LIKE_A_SHELL, *arguments]
    slow = SlowFile(tmp_path / (case.file or RAGGED), tmp_path / "slow")
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pipes["env"] = {**environment(), **slow.environment}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        try:
            if case.file:
                assert slow.reading.wait(60), "the file is not read"
            else:
                wait_for_workers(process.pid)
            started = time.monotonic()
            (os.killpg if case.to_group else os.kill)(process.pid, case.signal)
            stdout, stderr = process.communicate(timeout=30)
            seconds = time.monotonic() - started
            deadline = time.monotonic() + 5
            while (alive := session_of(process.pid)) and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            slow.release()
            for left in session_of(process.pid):
                os.kill(left, signal.SIGKILL)
    assert process.returncode == 128 + case.signal
    assert stdout == ""
    assert len(stderr.splitlines()) == 1, stderr
    assert re.search(case.state, stderr), stderr
    assert seconds < 10
    assert not alive

    if head is not None:
        assert repository_of(store).lookup_branch("main") == head
    arrays = read(store)
    assert list(arrays["sample_id"]) == list(OLD["sample_id"])
    if case.command == "append":
        axes = {name: cohort.DIMENSIONS[name] for name in arrays}
        rows = {n: (slice(None),) * d.index("samples") + (slice(N_OLD),) for n, d in axes.items() if "samples" in d}
        cohort.assert_same({name: values[rows.get(name, ...)] for name, values in arrays.items()}, OLD)

    run(*arguments)
    expected = cohort.expected_append(OLD, NEW) if case.command == "append" else cohort.expected_remove(OLD, ["S0001"])
    cohort.assert_same(read(store), expected)


# ---- output that cannot be written ----------------------------------------------------------


def to_nowhere(words: list[str], output: str) -> subprocess.CompletedProcess[str]:
    """Run a command with a full device, or a pipe without a reader, as standard output."""
    command = [forks.program("vczstore"), *words]
    if output == "full":
        with Path("/dev/full").open("wb") as full:
            return subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment()
            )
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=environment())
    finally:
        os.close(writer)


@pytest.mark.parametrize("output", ["full", "closed"])
@pytest.mark.slow
def test_a_completed_edit_has_status_0_if_output_is_lost(templates: Path, tmp_path: Path, output: str) -> None:
    store = shutil.copytree(templates / "icechunk", tmp_path / "store.vcz")
    shutil.copytree(templates / "batch.vcz", tmp_path / "batch.vcz")
    for words in (
        ["append", str(store), str(tmp_path / "batch.vcz")],
        ["remove", str(store), "S0001", "--json"],
        ["tag", str(store), "one"],
    ):
        done = to_nowhere(words, output)
        assert done.returncode == 0, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("Warning: standard output: ")
    assert vczstore.tags(store).keys() == {"one"}
    assert (vczstore.info(store).samples, vczstore.info(store).removed_samples) == (
        N_OLD + len(NEW["sample_id"]) - 1,
        1,
    )


@pytest.mark.slow
def test_lost_output_of_commands_that_only_print(templates: Path, tmp_path: Path) -> None:
    store = shutil.copytree(templates / "format3", tmp_path / "store.vcz")
    (store / "call_DP/c/0/0").write_bytes(b"no chunk")
    assert to_nowhere(["verify", str(store)], "closed").returncode == 1
    for words in (["info", str(templates / "format3")], ["schema"], ["log", str(templates / "icechunk")]):
        read_enough, full = to_nowhere(words, "closed"), to_nowhere(words, "full")
        assert (read_enough.returncode, read_enough.stderr) == (0, "")
        assert full.returncode == 1
        assert full.stderr == "Error: [Errno 28] No space left on device\n"


@pytest.mark.slow
def test_names_that_the_terminal_cannot_show(templates: Path, tmp_path: Path) -> None:
    store = shutil.copytree(templates / "format3", tmp_path / "kohorte-\u03b2-\u00e9.vcz")
    words = [sys.executable, "-m", "vczstore", "info", str(store)]
    locale = {"PYTHONIOENCODING": "iso-8859-1", "PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(words, capture_output=True, check=False, env={**environment(), **locale})
    assert (done.returncode, done.stderr) == (0, b"")
    assert "kohorte-\\u03b2-" in done.stdout.decode("iso-8859-1")


# ---- options of version 0.1.0 ---------------------------------------------------------------


@pytest.mark.slow
def test_a_direct_copy_is_required(store: Path, kind: str, tmp_path: Path) -> None:
    """Refused if the store ends in the middle of a chunk; accepted if it ends on a chunk boundary."""
    before = cohort.digest(store)
    for more in ([], ["--dry-run"], ["--recompute", "AC"], ["--harmonise"]):
        done = CliRunner().invoke(
            main.main, ["append", str(store), str(store.with_name("batch.vcz")), "--require-direct-copy", *more]
        )
        assert done.exit_code == 1, done.output
        (line,) = done.stderr.splitlines()
        assert re.match(r"Error: append: \d+ chunks of .*call_DP.* would be re-encoded, and --require-direct", line)
        assert cohort.digest(store) == before
    aligned = tmp_path / "aligned.vcz"
    cohort.write_vcz(aligned, some_arrays(cohort.ids(0, 6)))
    run("append", aligned, store.with_name("batch.vcz"), "--require-direct-copy")
    assert vczstore.info(aligned).samples == 6 + N_NEW


@pytest.mark.slow
def test_options_without_effect_cause_a_note(store: Path, kind: str, tmp_path: Path) -> None:
    batch = store.with_name("batch.vcz")
    for words in (
        ["append", str(store), str(batch), "--io-concurrency", "8", "--dry-run"],
        ["remove", str(store), "S0001", "--variant-chunks-in-batch", "2", "--dry-run"],
        ["normalise", str(store), str(batch), str(tmp_path / "out"), "--variant-chunks-in-batch", "2", "--dry-run"],
    ):
        done = CliRunner().invoke(main.main, words)
        assert done.exit_code == 0, done.output
        assert re.fullmatch(r"Note: --[a-z-]+ has no effect; .*\n", done.stderr)


@pytest.mark.slow
def test_output_backends_of_normalise(templates: Path, tmp_path: Path) -> None:
    store, batch = templates / "icechunk", templates / "batch.vcz"
    run("normalise", store, batch, tmp_path / "plain", "--backend-storage", "icechunk")
    run("normalise", store, batch, tmp_path / "repository", "--output-backend", "icechunk")
    assert [vczstore.info(tmp_path / name).backend for name in ("plain", "repository")] == ["zarr", "icechunk"]
