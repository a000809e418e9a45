"""
Fuzz all commands with broken, odd or hostile inputs.

A command must fail with a one-line message and the right exit status, and leave every byte unchanged. A case is a
command with a corrupted store, batch, argument, or file named by an argument. If zarr-python alone can still read the
whole VCZ, the command may succeed, with the correct result; otherwise it must fail. Cases are drawn from a seed and a
number.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import stat
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from click.testing import CliRunner
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

import vczstore
from tests.support import cohort
from tests.system.survival import Tally
from vczstore.cli.main import main

SECONDS = 20
"""Maximum duration of a command."""
BYTES = 600 * 2**20
"""Maximum increase of memory usage during a command."""
DONE, FAILED, USAGE, BUSY, CONFLICT = range(5)

FIELDS = (
    *("sample_id", "contig_id", "filter_id", "variant_contig", "variant_position", "variant_allele", "variant_AC"),
    *("call_genotype", "call_genotype_phased", "call_DP", "call_FT", "call_AD"),
)
N_VARIANTS = 6
REMOVED = "S0003"
KINDS = ("format3", "format2", "icechunk")

JOB = """
store: store.vcz
steps:
  - append: batch.vcz
  - remove: {samples: [S0001]}
"""


# ---- commands -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """
    A command.

    Attributes
    ----------
    line
        The command line, with placeholders such as ``{store}`` for paths in the folder of the case.
    reads
        Roles of the VCZs whose metadata and chunks it must read, separated by spaces.
    kinds
        Kinds of store that it supports.
    model
        Returns the arrays of the store after the command, given the arrays of the store and of the batch before.
    """

    line: str
    reads: str = "store"
    kinds: tuple[str, ...] = KINDS
    model: Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None

    def args(self, folder: Path) -> list[str]:
        names = ("store", "batch", "recalled")
        paths = {name: str(folder / f"{name}.vcz") for name in names}
        files = {"samples": "samples.txt", "removed": "removed.txt", "job": "job.yaml", "executor": "executor.yaml"}
        paths |= {name: str(folder / file) for name, file in files.items()}
        return [word.format(**paths, out=folder / "out", report=folder / "report") for word in self.line.split()]


def _append(store: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return cohort.expected_append(store, batch)


def _remove(store: dict[str, np.ndarray], _: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return cohort.expected_remove(store, ["S0001"])


COMMANDS = {
    "append": Command("append {store} {batch}", "store batch", model=_append),
    "append by zarr": Command("append {store} {batch} --impl zarr", "store batch", model=_append),
    "append dry": Command("append {store} {batch} --dry-run", "store batch"),
    "append harmonised": Command("append {store} {batch} --harmonise", "store batch"),
    "append recomputing": Command("append {store} {batch} --recompute AC", "store batch"),
    "update": Command("update {store} {recalled}"),
    "remove": Command("remove {store} S0001", model=_remove),
    "remove by zarr": Command("remove {store} S0001 --impl zarr", model=_remove),
    "remove by file": Command("remove {store} -S {samples}"),
    "remove and purge": Command("remove {store} S0001 --purge"),
    "compact to": Command("compact {store} --output {out}", kinds=("format3", "format2")),
    "compact": Command("compact {store}", kinds=("icechunk",)),
    "verify": Command("verify {store}"),
    "verify quick": Command("verify {store} --quick"),
    "recompute": Command("recompute {store} --fields AC,AN"),
    "purge": Command("purge {store}", ""),
    "verify-removal": Command("verify-removal {store} -S {removed} --report {report}", ""),
    "tag": Command("tag {store}", "", kinds=("icechunk",)),
    "tag a": Command("tag {store} release", "", kinds=("icechunk",)),
    "info": Command("info {store}"),
    "info as json": Command("info {store} --json"),
    "samples": Command("samples {store}"),
    "diff": Command("diff {store} {batch}", "store batch"),
    "export": Command("export {store} {out}"),
    "restore": Command("restore {store} main", "", kinds=("icechunk",)),
    "log": Command("log {store}", ""),
    "create": Command("create {out} {batch}", "batch"),
    "create icechunk": Command("create {out} {store} {batch} --backend-storage icechunk", "store batch"),
    "normalise": Command("normalise {store} {batch} {out}", "store batch"),
    "copy": Command("copy-store-to-icechunk {store} {out}", kinds=("format3", "format2")),
    "plan": Command("plan {job}", "store batch"),
    "run": Command("run {job} --report {report}", "store batch", model=lambda s, b: _remove(_append(s, b), {})),
}
COMMANDS["executor"] = Command("executor check {executor}", "")
READ_ONLY = (
    *("append dry", "verify", "verify quick", "verify-removal", "tag", "info", "info as json", "samples", "diff"),
    *("log", "plan"),
)


# ---- the folder of a case -------------------------------------------------------------------


@cache
def templates() -> Path:
    """A folder for each kind of store: a store with a removed sample, a batch, re-called samples, and other files."""
    folder = Path(tempfile.mkdtemp(prefix="vczstore-inputs-"))

    def make_arrays(samples: list[str], seed: int) -> dict[str, np.ndarray]:
        arrays = cohort.make_arrays(N_VARIANTS, samples, seed=seed)
        return {name: arrays[name] for name in FIELDS}

    old = cohort.expected_remove(make_arrays(cohort.ids(0, 5), 0), [REMOVED])
    for kind, options in (("format3", {}), ("format2", {"zarr_format": 2, "consolidated": True})):
        cohort.write_vcz(folder / kind / "store.vcz", old, **options)
        cohort.write_vcz(folder / kind / "batch.vcz", make_arrays(cohort.ids(5, 3), 1), **options)
        cohort.write_vcz(folder / kind / "recalled.vcz", make_arrays(["S0000", "S0001"], 2))
    shutil.copytree(folder / "format3", folder / "icechunk")
    shutil.rmtree(folder / "icechunk" / "store.vcz")
    cohort.write_icechunk(folder / "icechunk" / "store.vcz", old)
    vczstore.tag(folder / "icechunk" / "store.vcz", "first")
    for kind in KINDS:
        (folder / kind / "samples.txt").write_text("S0001\n")
        (folder / kind / "removed.txt").write_text(f"{REMOVED}\n")
        (folder / kind / "job.yaml").write_text(JOB)
        (folder / kind / "executor.yaml").write_text("name: threads\n")
    return folder


def tree(folder: Path) -> dict[str, object]:
    """Content of files, targets of links and types of everything else below a folder, by path; without lock files."""
    entries: dict[str, object] = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                value: object = os.readlink(path)
            elif stat.S_ISREG(mode):
                value = Path(path).read_bytes()
            else:
                value = "folder" if stat.S_ISDIR(mode) else "other"
            entries[os.path.relpath(path, folder)] = value
    locks = (".vczstore-job.lock", ".vczstore-commit.lock")
    return {name: value for name, value in entries.items() if not name.endswith(locks)}


def opens(path: Path) -> bool:
    """Whether zarr-python accepts the metadata of a VCZ. False for pipes and devices, which would block it."""
    if any(entry.is_fifo() or entry.is_char_device() for entry in (path, *path.rglob("*"))):
        return False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            store = cohort.icechunk_store(path) if (path / "snapshots").is_dir() else path
            names = [name for name, _ in zarr.open_group(store, mode="r", use_consolidated=False).arrays()]
        except Exception:  # zarr raises many kinds of errors
            return False
    return {"sample_id", "variant_position"} <= set(names) and not caught


def readable(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a VCZ, read with zarr-python; None if it cannot read them, or an array is too large."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if not opens(path):
                return None
            store = cohort.icechunk_store(path) if (path / "snapshots").is_dir() else path
            group = zarr.open_group(store, mode="r", use_consolidated=False)
            if any(array.size > 10**6 for _, array in group.arrays()):
                return None
            return {name: np.asarray(array[...]) for name, array in group.arrays()}
        except Exception:  # zarr, NumPy and codecs raise many kinds of errors
            return None


@cache
def _of_template(name: str, kind: str) -> tuple[dict[str, object], dict[str, np.ndarray] | None]:
    path = templates() / kind / name
    return tree(path), readable(path)


def _arrays_in(path: Path, kind: str) -> dict[str, np.ndarray] | None:
    """`readable` for a VCZ in the folder of a case, cached if it is the same as in the template."""
    files, arrays = _of_template(path.name, kind)
    return arrays if tree(path) == files else readable(path)


# ---- running one command --------------------------------------------------------------------


@dataclass
class Ran:
    """The outcome of a command: status, output, duration, memory in bytes, and an exception other than SystemExit."""

    status: int
    out: str
    err: str
    seconds: float
    memory: int
    error: BaseException | None = None


def _peak_memory() -> int:
    """Peak memory of this process since `_reset_peak`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_memory()


@contextmanager
def _captured_stderr(output: list[str]) -> Iterator[None]:
    """Append everything that Rust and C code write to file descriptor 2 to `output`."""
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            output.append(file.read().decode(errors="replace"))


def run_command(args: list[str]) -> Ran:
    """Run a command in this process, and interrupt it after `SECONDS`."""
    timer = threading.Timer(SECONDS, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT))
    timer.daemon = True
    native_stderr: list[str] = []
    terminate = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings(), _captured_stderr(native_stderr):
        # Python's default filters
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        before, started = _reset_peak(), time.monotonic()
        timer.start()
        try:
            result = CliRunner().invoke(main, args, catch_exceptions=True)
        finally:
            timer.cancel()
            signal.signal(signal.SIGTERM, terminate)
        seconds, memory = time.monotonic() - started, _peak_memory() - before
    error = None if isinstance(result.exception, SystemExit) else result.exception
    return Ran(result.exit_code, result.stdout, result.stderr + native_stderr[0], seconds, memory, error)


def complaints(ran: Ran, command: str, *, room: int) -> list[str]:
    """Return the problems with the outcome of a command; `room` is the maximum length of its standard error."""
    problems = []
    lines = ran.err.splitlines()
    reports = command.endswith(("verify", "verify quick", "verify-removal")) and ran.status == FAILED and bool(ran.out)
    if ran.error is not None:
        problems.append(f"raised {ran.error!r}")
    elif ran.status not in (DONE, FAILED, USAGE, BUSY, CONFLICT):
        problems.append(f"has status {ran.status}")
    elif ran.status == USAGE and lines[:1] and lines[0].startswith("Usage: "):
        if not lines[-1].startswith("Error: "):
            problems.append("is no usage error")
    elif (ran.status == DONE or reports) and lines:
        problems.append("says something on stderr")
    elif ran.status != DONE and not reports and (len(lines) != 1 or not lines[0].startswith("Error: ")):
        problems.append(f"has {len(lines)} lines on stderr")
    if ran.err.startswith("Error: unexpected ") or "Traceback" in ran.err or "panicked" in ran.err:
        problems.append("was not expected")
    if len(ran.err) > room or any(not line.isprintable() for line in lines):
        problems.append(f"has a line of {len(ran.err):,} characters, or control characters in it")
    if ran.seconds > SECONDS:
        problems.append(f"took {ran.seconds:.0f} s")
    if ran.memory > BYTES:
        problems.append(f"took {ran.memory / 2**20:.0f} MB")
    return problems


# ---- cases ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """
    A broken input and a command.

    Attributes
    ----------
    what
        Description of the broken input.
    kind
        Kind of the store.
    command
        A key of `COMMANDS`; or the arguments themselves, with the placeholder ``{folder}`` for the folder of the case.
    damage
        Corrupts the folder of the case.
    hits
        The corrupted VCZ: "store", "batch", or "" if neither.
    late
        Whether the corruption can only be detected by reading all chunks.
    statuses
        Allowed exit statuses; None to derive them from whether zarr-python can read the VCZs.
    """

    what: str
    kind: str
    command: str | tuple[str, ...]
    damage: Callable[[Path], None]
    hits: str = ""
    late: bool = False
    statuses: tuple[int, ...] | None = None

    def make_in(self, folder: Path) -> None:
        """Copy the templates to an empty folder, and corrupt them."""
        for path in (templates() / self.kind).iterdir():
            (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
        self.damage(folder)

    def try_in(self, folder: Path) -> str | None:
        """Run the case in an empty folder; return a description of the problems, or None."""
        self.make_in(folder)
        line = COMMANDS[self.command] if isinstance(self.command, str) else None
        args = line.args(folder) if line else [word.replace("{folder}", str(folder)) for word in self.command]
        name = self.command if isinstance(self.command, str) else " ".join(("the arguments", *self.command[:1]))
        arrays = {role: _arrays_in(folder / f"{role}.vcz", self.kind) for role in ("store", "batch")}
        is_vcz = self.hits == "" or arrays.get(self.hits) is not None or opens(folder / f"{self.hits}.vcz")
        before = tree(folder)
        with chdir(folder):
            ran = run_command(args)
        problems = complaints(ran, name, room=2500 + max(map(len, args)))
        statuses = self.statuses
        if statuses is None:
            needed = line is not None and self.hits in line.reads.split()
            statuses = (DONE, FAILED) if is_vcz or not needed or self.late else (FAILED,)
        if ran.status not in statuses and not problems:
            problems.append(f"has status {ran.status}, not {' or '.join(map(str, statuses))}")
        if ran.status != DONE or name in READ_ONLY:
            # an error found while decoding chunks may leave written chunks that no reader sees
            late = self.late or "cannot be decoded" in ran.err or "may be missing already" in ran.err
            problems += _changes(name, folder, before, arrays["store"], late=late and name not in READ_ONLY)
        elif line is not None and line.model is not None:
            problems += _differences(folder, line.model, arrays)
        return f"{self.what}: {' '.join(args)[:300]}: {', '.join(problems)}: {ran.err[-400:]!r}" if problems else None


def _has_usual_dimensions(path: Path) -> bool:
    """Whether all arrays have the dimension names that the model expects."""
    store = cohort.icechunk_store(path) if (path / "snapshots").is_dir() else path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arrays = dict(zarr.open_group(store, mode="r", use_consolidated=False).arrays())
    names = {
        n: a.attrs.get("_ARRAY_DIMENSIONS") or getattr(a.metadata, "dimension_names", ()) for n, a in arrays.items()
    }
    return all(tuple(dims or ()) == cohort.DIMENSIONS.get(name) for name, dims in names.items())


def _changes(
    command: str, folder: Path, before: dict[str, object], arrays: dict[str, np.ndarray] | None, *, late: bool
) -> list[str]:
    """Return descriptions of unexpected changes of files: new, gone, or changed."""
    after = {n: value for n, value in tree(folder).items() if not n.startswith("report")}
    new, gone = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    changed = sorted(n for n in after.keys() & before.keys() if after[n] != before[n])
    if late:
        new = [n for n in new if not n.startswith(("store.vcz/", "store.vcz.withdrawal-key", "out"))]
        if command in ("purge", "remove and purge"):  # may be partly done; the next purge completes it
            changed = gone = []
        elif not any(n.startswith("store.vcz/snapshots") for n in before):
            now = readable(folder / "store.vcz")
            # commands that overwrite samples may have changed some values, but not the sample IDs
            overwrites = command.startswith(("remove", "update", "recompute", "run"))
            names = ["sample_id"] if overwrites else list(arrays or {})
            if arrays is None or (now is not None and all(_starts_with(now[name], arrays[name]) for name in names)):
                changed = gone = []
    return [
        f"{len(names)} files are {change} ({', '.join(names[:3])})"
        for change, names in (("new", new), ("gone", gone), ("changed", changed))
        if names
    ]


def _starts_with(longer: np.ndarray, array: np.ndarray) -> bool:
    """Whether the leading part of `longer` equals `array`, bit for bit."""
    leading = longer[tuple(slice(n) for n in array.shape)]
    return leading.shape == array.shape and (
        bool((leading == array).all()) if array.dtype.kind in "OTU" else leading.tobytes() == array.tobytes()
    )


def _differences(
    folder: Path, model: Callable[..., dict[str, np.ndarray]], arrays: dict[str, dict[str, np.ndarray] | None]
) -> list[str]:
    """Return the differences between the store and the result of the NumPy model."""
    if None in arrays.values() or not all(_has_usual_dimensions(folder / f"{role}.vcz") for role in arrays):
        return []
    try:
        expected = model(arrays["store"], arrays["batch"])
    except (KeyError, ValueError, IndexError):  # the model does not support odd shapes
        return []
    actual = readable(folder / "store.vcz")
    if actual is None:
        return ["has left something that cannot be read"]
    try:
        cohort.assert_same(actual, expected)
    except AssertionError as error:
        return [f"has done something else: {str(error).strip().splitlines()[0]}"]
    return []


# ---- documents ------------------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 2, 3, 10**15, 2**63 - 1, 2**64, -(10**30), 0.5, float("nan"), float("inf"), 1e308),
    *("", "x", "samples", "\x00", "\ud800", "\n", "x" * 10**5, "../../etc", "NaN", "AAAA"),
    *([], {}, [[]], [None], [0], [-1], [10**15], [2**70], ["x"], [1, 2, 3, 4, 5], {"name": "x"}, {"id": "x"}),
    *({"name": "zstd"}, {"name": "regular"}, {"name": "bytes", "configuration": {"endian": "big"}}),
    *("int8", "int16", "float32", "string", "bool", "r16", "complex64", "<U100000000", "|O", "<M8[ns]", "numpy.void"),
)
"""Values that replace another value in a document."""
KEYS = ("zarr_format", "node_type", "shape", "attributes", "must_understand", "storage_transformers", "\x00", "x" * 999)
TEXTS = (
    *(b"", b"{", b"null", b"[]", b"0", b'"x"', b"\xff\xfe", b"\x00", b"{}", b"[" * 10**5, b'{"a":' * 10**4),
    *(b"\xef\xbb\xbf{}", b'{"shape": [1], "shape": [2]}', b"9" * 10**5, b" " * 10**6, b"NaN", b"{} {}"),
)


def deep(n: int) -> Any:
    """A list nested in `n` others."""
    value: Any = []
    for _ in range(n):
        value = [value]
    return value


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in a document."""
    yield path
    match value:
        case dict():
            for key, inner in value.items():
                yield from nodes(inner, (*path, key))
        case list():
            for i, inner in enumerate(value):
                yield from nodes(inner, (*path, i))


def mutated(document: Any, rng: random.Random) -> Any:
    """A copy of a document with one value replaced, deleted, extended or shuffled."""
    document = json.loads(json.dumps(document))
    path = rng.choice(list(nodes(document)))
    mutation = rng.choice(("replace", "replace", "replace", "delete", "add", "swap"))
    if not path:
        return rng.choice(ODD) if rng.random() < 0.3 else {**document, rng.choice(KEYS): rng.choice(ODD)}
    inner = document
    for part in path[:-1]:
        inner = inner[part]
    last, value = path[-1], inner[path[-1]]
    if mutation == "delete":
        del inner[last]
    elif mutation == "add" and isinstance(value, list):
        value.insert(rng.randrange(len(value) + 1), rng.choice(ODD))
    elif mutation == "add" and isinstance(value, dict):
        value[rng.choice(KEYS)] = rng.choice(ODD)
    elif mutation == "swap" and isinstance(value, list) and len(value) > 1:
        rng.shuffle(value)
    elif isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        inner[last] = rng.choice((value + 1, value - 1, -value, value * 2, value * 10**12))
    else:
        inner[last] = rng.choice(ODD)
    return document


def documents(folder: Path) -> list[Path]:
    """Paths of all metadata documents of a VCZ."""
    names = ("zarr.json", ".zgroup", ".zattrs", ".zarray", ".zmetadata")
    return sorted(path for path in folder.rglob("*") if path.name in names)


def _document_case(rng: random.Random, kind: str, role: str, command: str) -> Case:
    if kind == "icechunk" and role == "store":
        return _session_case(rng, command)
    path = rng.choice(documents(templates() / kind / f"{role}.vcz")).relative_to(templates() / kind)
    content = (templates() / kind / path).read_bytes()
    text = rng.choice(TEXTS) if rng.random() < 0.15 else json.dumps(mutated(json.loads(content), rng)).encode()

    def damage(folder: Path) -> None:
        (folder / path).write_bytes(text)

    return Case(f"{path} is {text[:300]!r}", kind, command, damage, role)


def _session_case(rng: random.Random, command: str) -> Case:
    """A broken document in a repository, unless Icechunk rejects it."""
    name = rng.choice([f"{name}/" for name in FIELDS] + [""] * 3)
    document = json.loads((templates() / "format3" / "store.vcz" / name / "zarr.json").read_bytes())
    text = json.dumps(mutated(document, rng)).encode()

    def damage(folder: Path) -> None:
        import icechunk

        repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(folder / "store.vcz")))
        session = repository.writable_session("main")
        # Icechunk rejects some documents, and panics for others
        with suppress(BaseException), _captured_stderr([]):
            sync(session.store.set(f"{name}zarr.json", default_buffer_prototype().buffer.from_bytes(text)))
            session.commit("changed by the test")

    return Case(f"{name}zarr.json in a repository is {text[:300]!r}", "icechunk", command, damage, "store")


# ---- chunks, and the objects of repositories ------------------------------------------------


def mangled(content: bytes, rng: random.Random) -> bytes:
    """A corrupted copy of the content."""
    match rng.choice(("cut", "cut", "flip", "flip", "flip", "empty", "more", "zeros", "noise")):
        case "cut":
            return content[: rng.randrange(len(content) + 1)]
        case "flip":
            changed = bytearray(content or b"x")
            for _ in range(rng.choice((1, 1, 3))):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case "empty":
            return b""
        case "more":
            return content + rng.randbytes(9)
        case "zeros":
            return bytes(len(content))
    return rng.randbytes(len(content))


def _bytes_case(rng: random.Random, kind: str, role: str, command: str) -> Case:
    """A corrupted chunk of a VCZ, or object of a repository."""
    top, names = templates() / kind, {"zarr.json", ".zgroup", ".zattrs", ".zarray", ".zmetadata"}
    files = sorted(p for p in (top / f"{role}.vcz").rglob("*") if p.is_file() and p.name not in names)
    path = rng.choice(files).relative_to(top)
    damage_kind = rng.choice(("bytes", "bytes", "bytes", "gone", "folder", "swapped"))
    content = mangled((top / path).read_bytes(), rng) if damage_kind == "bytes" else rng.choice(files).read_bytes()

    def damage(folder: Path) -> None:
        (folder / path).unlink()
        if damage_kind == "folder":
            (folder / path / "within").mkdir(parents=True)
        elif damage_kind != "gone":
            (folder / path).write_bytes(content)

    what = f"{path} is {content[:100]!r} ({damage_kind})"
    return Case(what, kind, command, damage, role, late=True)


# ---- attributes -----------------------------------------------------------------------------

ATTR_KEYS = (
    "vczstore_ledger",
    "vczstore_withdrawn",
    "vczstore_info_fields",
    "vcf_zarr_version",
    "vcf_meta_information",
    "vcf_header",
    "source",
)
ATTRIBUTES: tuple[Any, ...] = (
    *(None, 0, -1, 1e308, True, "", "x", "\n", "\x00", [], {}, [[]], [{}], [[[]]], {"": {}}, {"AC": "stale"}),
    *({"AC": 1}, {"AC": ["stale"]}, {"\n": "stale"}, {"sources": 1}, {"sources": {"a": 1}}, {"sources": {"a": None}}),
    *(
        {"pending": []},
        {"pending": {"a": []}},
        {"hashes": 7},
        {"hashes": ["a"], "check": 1},
        {"hashes": [], "key": {}},
    ),
    *([1], [["a"]], [["contig", 1]], [["contig", None, 3]], ["contig"], "0.4", "99.9", [0, 4], "x" * 10**6, deep(90)),
    *([["contig", "<ID=chr1>"]] * 10**4, dict.fromkeys(map(str, range(10**4)), "stale"), "##contig=<ID=" * 10**5),
    *("##fileformat=VCFv4.3\n##FORMAT=<ID=DP,Number=\n", "##FORMAT=<ID=AD,Number=R,Type=Integer>" * 10**4),
)
DIMENSIONS: tuple[Any, ...] = (None, 7, "samples", [], ["samples"], ["samples"] * 2, [None, None], [1, 2], [[], []], {})


def _attributes_case(rng: random.Random, kind: str, role: str, command: str) -> Case:
    """An odd value of an attribute of the root group that vczstore reads, or in format 2 of ``_ARRAY_DIMENSIONS``."""
    of_array = kind == "format2" and rng.random() < 0.4
    name, value = (
        ("_ARRAY_DIMENSIONS", rng.choice(DIMENSIONS)) if of_array else (rng.choice(ATTR_KEYS), rng.choice(ATTRIBUTES))
    )
    array = rng.choice(FIELDS) if of_array else ""

    def damage(folder: Path) -> None:
        if kind == "icechunk" and role == "store":
            import icechunk

            repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(folder / "store.vcz")))
            session = repository.writable_session("main")
            zarr.open_group(session.store, mode="r+").attrs[name] = value
            session.commit("changed by the test")
            return
        path = folder / f"{role}.vcz" / array / (".zattrs" if kind == "format2" else "zarr.json")
        document = json.loads(path.read_bytes())
        attributes = document if kind == "format2" else document.setdefault("attributes", {})
        attributes[name] = value
        path.write_text(json.dumps(document))

    return Case(f"{role} has {array} {name}={json.dumps(value)[:200]}", kind, command, damage, role, statuses=(0, 1))


# ---- folders and links ----------------------------------------------------------------------


def _replace(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link(target: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        _replace(path)
        path.symlink_to(target)

    return damage


def _folder(path: Path) -> None:
    _replace(path)
    path.mkdir()


def _fifo(path: Path) -> None:
    _replace(path)
    os.mkfifo(path)


def _text(path: Path) -> None:
    _replace(path)
    path.write_text("no Zarr\n")


def _device(path: Path) -> None:
    _replace(path)
    path.symlink_to("/dev/zero")


PLACES: dict[str, Callable[[Path], None]] = {
    "gone": _replace,
    "a link to itself": lambda path: _link(path.name)(path),
    "a link to its folder": _link("."),
    "a link to the folder above": _link(".."),
    "a dangling link": _link("nowhere"),
    "an empty folder": _folder,
    "a pipe": _fifo,
    "a text": _text,
    "a device": _device,
}
PATHS = (
    "",
    "zarr.json",
    "call_DP",
    "call_DP/zarr.json",
    "sample_id",
    "sample_id/c/0",
    "sample_id/zarr.json",
    "call_DP/c/0",
)
EXTRA_PATHS = ("extra", "a\nb", "\x1b[31m", "call_DP/extra", "-x", "c", "héllo", "variant_AC/c/extra", "x" * 200)


def _place_case(rng: random.Random, kind: str, role: str, command: str) -> Case:
    """A path in a VCZ that is replaced by something else, or an extra path."""
    kind = "format3" if role == "store" and kind == "format2" else kind
    paths = PATHS if kind == "format3" or role == "batch" else ("", "repo", "snapshots", "manifests", "chunks", "refs")
    path_in_vcz, what = rng.choice(paths + EXTRA_PATHS), rng.choice(list(PLACES))
    if kind == "format2":
        path_in_vcz = path_in_vcz.replace("zarr.json", ".zarray").replace("/c/", "/")

    def damage(folder: Path) -> None:
        path = folder / f"{role}.vcz" / path_in_vcz
        path.parent.mkdir(exist_ok=True, parents=True)
        PLACES[what](path)

    return Case(f"{role} {path_in_vcz!r} is {what}", kind, command, damage, role, late=True, statuses=(0, 1))


# ---- IDs ------------------------------------------------------------------------------------

IDS = (
    *(
        "a\nb",
        "a\x00b",
        "a,b",
        "-S0001",
        "--help",
        "",
        " ",
        "\t",
        "x" * 10**6,
        "\ud800",
        "\x1b[31m",
        "../../etc/passwd",
    ),
    *("S0001\n", "\ufeffS0001", "S0001 ", "café", "cafe\u0301", "\u202egnp", "{}", "%s", "${HOME}", "S" * 5000, "."),
    *("\x7f", "a\rb", "\u2028", "'; drop table", "NaN", "null", "0", "\U0001f9ec" * 1000),
)
"""Odd sample IDs. Zarr allows newlines, VCF does not."""


def _id_case(rng: random.Random, kind: str, role: str, command: str) -> Case:
    """A malformed sample ID in a VCZ, on the command line, or in a file."""
    where, sample = rng.choice(("vcz", "line", "file")), rng.choice(IDS)
    if where == "line":
        # command-line arguments cannot have NULs or lone surrogates, and their length is limited
        sample = sample.replace("\x00", "").replace("\ud800", "\udcff")[: 10**5]
        args = ("remove", "{folder}/store.vcz", "--", "S0001", sample)
        return Case(f"the ID {sample[:40]!r}", kind, args, lambda _: None, "", statuses=(1,))
    if where == "file":
        content = rng.choice(
            (sample.encode("utf-8", "surrogatepass"), sample.encode("utf-16", "surrogatepass"), b"\xff\n")
        )
        name = rng.choice(("remove by file", "verify-removal"))
        file = "samples.txt" if name == "remove by file" else "removed.txt"

        def write(folder: Path) -> None:
            (folder / file).write_bytes(content)

        return Case(f"a file of {content[:40]!r}", kind, name, write, "", statuses=(0, 1, 2))

    def damage(folder: Path) -> None:
        if kind == "icechunk" and role == "store":
            return
        array = zarr.open_group(folder / f"{role}.vcz", mode="r+", use_consolidated=False)["sample_id"]
        with suppress(UnicodeEncodeError):
            array[1] = sample

    return Case(f"{role} has the ID {sample[:40]!r}", kind, command, damage, role, statuses=(0, 1))


# ---- arguments ------------------------------------------------------------------------------

ODD_ARGUMENTS = (
    *("", " ", "-", "--", ".", "..", "/", "\n", "x" * 5000, "\udcff", "http://", "file://", "file:///nowhere"),
    *(
        "s3://",
        "s3:///a",
        "gs://",
        "az://",
        "ftp://host/a",
        "memory://a",
        "data:,x",
        "file://[::1",
        "http://[",
        "s3://[/a",
    ),
    *(
        "https://127.0.0.1:1/a",
        "https://.blob.core.windows.net/a",
        "file://x",
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
    ),
    *("~", "$HOME", "%00", "*", "[", "\\", "C:\\a", "://", "a://b", "S3://bucket/a", "zip://a.zip", "/dev/stdin"),
)
OPTIONS = (
    *(
        "--allowed-mem=",
        "--allowed-mem=0",
        "--allowed-mem=-1",
        "--allowed-mem=1e400",
        "--allowed-mem=9" * 30,
        "--allowed-mem=nan",
    ),
    *(
        "--allowed-mem=1",
        "--allowed-mem=inf",
        "--allowed-mem=1XB",
        "--max-workers=0",
        "--max-workers=-1",
        "--max-workers=x",
    ),
    *(
        "--max-workers=9999999999999",
        "--executor=",
        "--executor=/dev/null",
        "--executor=nowhere.yaml",
        "--executor=/.yaml",
    ),
    *(
        "--executor=store.vcz.yaml",
        "--impl=",
        "--storage-option==",
        "--storage-option=a",
        "--storage-option=a=" + "[" * 10**4,
    ),
    *(
        "--storage-option=a=NaN",
        "--storage-option=\x7f=1",
        "--backend-storage=",
        "--backend-storage=fsspec",
        "--work-dir=/dev/null",
    ),
    *(
        "--backend-storage=obstore",
        "--backend-storage=icechunk",
        "--replans=-1",
        "--replans=x",
        "--recompute=X",
        "--recompute=,",
    ),
)


def _argument_case(rng: random.Random, kind: str, _role: str, command: str) -> Case:
    """An odd name of a store, tag or field, or an odd value of an option."""
    odd = rng.choice(ODD_ARGUMENTS)
    store, batch, out = (f"{{folder}}/{name}" for name in ("store.vcz", "batch.vcz", "out"))
    forms: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        "store": (("info", "--", odd), (1, 2)),
        "source": (("append", store, "--", odd), (1, 2)),
        "verify": (("verify", "--", odd), (1, 2)),
        "verify-removal": (("verify-removal", "-S", "{folder}/removed.txt", "--", odd), (1, 2)),
        "purge": (("purge", "--", odd), (0, 1, 2)),
        "log": (("log", "--", odd), (1, 2)),
        "out": (("normalise", store, batch, "--", odd), (0, 1, 2)),
        "tag": (("tag", store, "--", odd), (0, 1, 2)),
        "delete": (("tag", "-d", store, "--", odd), (1, 2)),
        "at": (("info", store, f"--at={odd}"), (1, 2)),
        "fields": (("recompute", store, f"--fields={odd}"), (0, 1, 2)),
        "contigs": (("append", store, batch, "--harmonise", f"--haploid-contigs={odd}", "--dry-run"), (0, 1, 2)),
        "job": (("plan", "--", odd), (2,)),
        "run": (("run", "--", odd), (2,)),
        "set": (("plan", "{folder}/job.yaml", f"--set={odd}"), (1, 2)),
        "set store": (("plan", "{folder}/job.yaml", f"--set=store={odd}"), (1, 2)),
        "set source": (("plan", "{folder}/job.yaml", f"--set=steps[0].append={odd}"), (0, 1, 2)),
        "executor": (("executor", "check", "--", odd), (1, 2)),
        "executor file": (("executor", "check", "--", f"{odd}.yaml"), (1, 2)),
        "samples": (("remove", store, "-S", odd), (1, 2)),
        "option": (("append", store, batch, "--dry-run", rng.choice(OPTIONS)), (0, 1, 2)),
        "option of verify": (("verify", store, rng.choice(OPTIONS)), (0, 1, 2)),
        "option of create": (("create", out, batch, "--dry-run", rng.choice(OPTIONS)), (0, 1, 2)),
        "svg": (("plan", "{folder}/job.yaml", "--svg", odd), (0, 1, 2)),
    }
    name = rng.choice(list(forms))
    args, statuses = forms[name]
    return Case(f"{name} is odd", kind, args, lambda _: None, "", statuses=statuses)


# ---- job files ------------------------------------------------------------------------------

BILLION_LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
WORDS = (
    *(
        "store",
        "steps",
        "append",
        "update",
        "remove",
        "tag",
        "recompute",
        "executor",
        "allowed-mem",
        "max-workers",
        "source",
    ),
    *(
        "samples",
        "samples-file",
        "missing-ok",
        "harmonise",
        "on-duplicate",
        "insert",
        "name",
        "options",
        "storage-options",
    ),
    *(
        "store.vcz",
        "batch.vcz",
        "recalled.vcz",
        "samples.txt",
        "S0001",
        "*.vcz",
        "/dev/zero",
        "..",
        "${HOME}",
        "${X:-y}",
        "threads",
    ),
    *(
        "true",
        "null",
        "0",
        "-1",
        "1e400",
        "9999999999999999999",
        "!!python/object:os.system",
        "&a",
        "*a",
        "<<",
        "? ",
        "\x00",
    ),
    *(
        "'",
        '"',
        "{",
        "}",
        "[",
        "]",
        ": ",
        "- ",
        "\n",
        "\n  ",
        "|\n",
        ">\n",
        "%YAML 9.9\n",
        "---\n",
        "...\n",
        "# ",
        "\t",
        "\ufeff",
        "\x85",
    ),
)
JOB_FILES = (
    *(
        BILLION_LAUGHS,
        "store: store.vcz\nstore: other\nsteps: []\n",
        "1: 2\n",
        "? [a]\n: b\n",
        "[" * 1000,
        "{" * 1000,
        "a: " * 500,
    ),
    *("store: store.vcz\nsteps:\n  - append: [" + "batch.vcz," * 1000 + "]\n", "store: [store.vcz]\nsteps: {}\n"),
    *(
        "store: store.vcz\nsteps:\n  - append: 'b\\0.vcz'\n",
        "store: store.vcz\nsteps:\n  - remove: {samples: ['a\\nb']}\n",
    ),
    *(
        "store: store.vcz\nsteps:\n  - remove: {samples-file: store.vcz}\n",
        "store: ../../../etc\nsteps:\n  - append: passwd\n",
    ),
    *(
        "store: store.vcz\nsteps:\n  - remove: {samples-file: /dev/zero}\n",
        "store: store.vcz\nsteps:\n  - append: '**/*'\n",
    ),
    *("store: store.vcz\nsteps:\n  - tag: '../../x'\n", "store: store.vcz\nsteps:\n  - recompute: ['']\n"),
    *("store: store.vcz\nsteps:\n  - append: store.vcz\n", "store: job.yaml\nsteps:\n  - append: batch.vcz\n"),
    *("store: s3://[/x\nsteps:\n  - append: batch.vcz\n", "store: store.vcz\nsteps:\n  - append: 'http://[/*.vcz'\n"),
)


def _yaml_case(rng: random.Random, kind: str, _role: str, _command: str) -> Case:
    """A broken job file or executor file: random pieces of YAML, edits, corrupted bytes, or one of `JOB_FILES`."""
    command = rng.choice(("plan", "plan", "run", "executor"))
    content = JOB.encode() if command != "executor" else b"name: threads\nallowed-mem: 2GB\n"
    match rng.choice(("pieces", "edit", "edit", "edit", "bytes", "made up")):
        case "pieces":
            content = "".join(rng.choices(WORDS, k=rng.randrange(1, 30))).encode("utf-8", "surrogatepass")
        case "edit":
            text = content.decode()
            for _ in range(rng.randrange(1, 4)):
                at, n = rng.randrange(len(text) + 1), rng.choice((0, 0, 1, 5, 20))
                text = text[:at] + rng.choice(WORDS) + text[at + n :]
            content = text.encode("utf-8", "surrogatepass")
        case "bytes":
            content = mangled(content, rng)
        case _:
            content = rng.choice(JOB_FILES).encode()
    file = "executor.yaml" if command == "executor" else "job.yaml"

    def damage(folder: Path) -> None:
        (folder / file).write_bytes(content)

    return Case(f"{file} is {content[:300]!r}", kind, command, damage, "", statuses=(0, 1, 2))


# ---- running cases --------------------------------------------------------------------------

FAMILIES: tuple[Callable[[random.Random, str, str, str], Case], ...] = (
    _document_case,
    _document_case,
    _bytes_case,
    _attributes_case,
    _place_case,
    _id_case,
    _argument_case,
    _yaml_case,
)


def case(seed: int, number: int) -> Case:
    """Draw case `number` of a seed; families and commands take turns."""
    rng = random.Random(f"{seed} {number}")
    command = list(COMMANDS)[number // len(FAMILIES) % len(COMMANDS)]
    kind = rng.choice(COMMANDS[command].kinds)
    roles = COMMANDS[command].reads.split() or ["store"]
    return FAMILIES[number % len(FAMILIES)](rng, kind, rng.choice(roles), command)


def run(n: int, seed: int, *, first: int = 0, step: int = 1) -> Tally:
    """Try `n` cases of a seed, with numbers from `first` on in steps of `step`."""
    failures = []
    with _limited_memory(), tempfile.TemporaryDirectory(prefix="vczstore-inputs-") as top:
        for number in range(first, first + n * step, step):
            folder = Path(top, str(number))
            folder.mkdir()
            problems = case(seed, number).try_in(folder)
            if problems is not None:
                failures.append(f"inputs.case({seed}, {number}): {problems}")
            shutil.rmtree(folder)
    return Tally(n, tuple(failures))


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Limit the memory of this process, so that excessive allocations fail."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_peak_memory() + 8 * 2**30, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
