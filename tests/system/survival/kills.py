"""
Kills: stop runs of ``vczstore`` by a signal at seeded random points, check the store they leave, and rerun them.

Each case (operation, kind of store, executor) first runs undisturbed, while `trap` records every executed line of
vczstore and every change of a file, with its time. Points are then drawn in three ways: uniformly from the distinct
lines; from the writes; and uniformly in time over the writing phase, which also covers the time that Icechunk spends in
a commit. The signal goes to the driver, to a worker, or like Ctrl-C in a terminal to the whole process group.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import icechunk
import numpy as np
import psutil
import zarr

import executors
import plans
import vczstore
from tests.support import cohort
from tests.support.paths import ROOT
from tests.system.survival import Tally
from tests.system.survival.forks import TRAP, Forks, shared

ROOTS = [os.path.dirname(package.__file__ or "") for package in (vczstore, plans, executors)]
FIELDS = (
    *("sample_id", "sample_sex", "contig_id", "variant_contig", "variant_position", "variant_allele"),
    *("call_genotype", "call_genotype_mask", "call_DP", "call_GL", "call_FT"),
)
N_VARIANTS, VARIANTS_CHUNK = 300, 150
"""Chunks large enough that Icechunk stores most of them as separate objects instead of inline."""
PATIENCE = 60.0
"""Timeout of a run in seconds."""
_TEMPORARY = re.compile(r"\.partial$|\.withdrawal-key\.[0-9a-f]{16}$")
"""Files that a killed writer may leave: later writers overwrite them, or delete them when they are an hour old."""
DRAWS = 5
"""
Maximum number of points drawn for a kill. The distribution of tasks over workers varies, so a point of a worker may not
be reached; the following draws are points of the driver.
"""


def some_arrays(samples: list[str], seed: int = 0) -> dict[str, np.ndarray]:
    arrays = cohort.make_arrays(N_VARIANTS, samples, seed=seed)
    return {name: arrays[name] for name in FIELDS}


OLD, NEW = some_arrays(cohort.ids(0, 7)), some_arrays(cohort.ids(7, 4), seed=1)
GONE = ["S0001", "S0004"]
APPENDED = cohort.expected_append(OLD, NEW)
"""With chunk columns of three samples, the last one is partial both before and after the append."""

type Arrays = dict[str, np.ndarray]


# ---- cases ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """
    An operation to kill.

    Attributes
    ----------
    command
        Command-line arguments, relative to a folder with ``store.vcz``, ``batch.vcz`` and ``job.yaml``.
    before, after
        Content of ``store.vcz`` before, and of the resulting store after the operation.
    already_done
        Words of its error message when it is rerun after completion; empty if that succeeds.
    removed
        Samples that it removes. On plain Zarr, an interrupted removal may have erased some of their values.
    output
        Name of the new store that it creates, if any.
    samples_chunk
        Length of chunks along samples after it; None if it does not change.
    """

    command: tuple[str, ...]
    before: Arrays
    after: Arrays
    already_done: str
    removed: tuple[str, ...] = ()
    output: str | None = None
    samples_chunk: int | None = None

    def is_done(self, target: Path, arrays: Arrays | None) -> bool:
        """Whether the store at `target`, whose content is `arrays`, is the result of the operation."""
        is_done = _matches(arrays, self.after)
        return is_done and (self.samples_chunk is None or _samples_chunk(target) == self.samples_chunk)


REMOVED = cohort.expected_remove(OLD, GONE)
OPERATIONS = {
    "append": Operation(("append", "store.vcz", "batch.vcz"), OLD, APPENDED, "already"),
    "remove": Operation(("remove", "store.vcz", *GONE), OLD, REMOVED, "has no sample", tuple(GONE)),
    "compact": Operation(("compact", "store.vcz"), REMOVED, cohort.expected_compact(REMOVED), ""),
    "regrid": Operation(("regrid", "store.vcz", "--samples-chunk", "4"), OLD, OLD, "", samples_chunk=4),
    "regrid-shards": Operation(
        ("regrid", "store.vcz", "--samples-chunk", "4", "--variants-shard", str(4 * VARIANTS_CHUNK)),
        OLD,
        OLD,
        "",
        samples_chunk=4,
    ),
    "compact-output": Operation(
        ("compact", "store.vcz", "--output", "new.vcz"),
        REMOVED,
        cohort.expected_compact(REMOVED),
        "exists; choose another path",
        output="new.vcz",
    ),
    "copy": Operation(
        ("copy-store-to-icechunk", "store.vcz", "new.icechunk"),
        OLD,
        OLD,
        "holds a repository already",
        output="new.icechunk",
    ),
    "run": Operation(("run", "job.yaml"), OLD, cohort.expected_remove(APPENDED, GONE), "", tuple(GONE)),
}
KINDS = ("format2", "format3", "icechunk")
"""Storage formats; the format 2 store has consolidated metadata."""
EXECUTORS = ("threads", "processes")


@dataclass(frozen=True)
class Case:
    """An operation on a kind of store with an executor; `operation` is a key of `OPERATIONS`."""

    operation: str
    kind: str
    executor: str

    def __str__(self) -> str:
        return f"{self.operation}-{self.kind}-{self.executor}"

    @property
    def exists(self) -> bool:
        """Whether the operation is supported on this kind of store."""
        if self.operation == "regrid-shards":
            return self.kind != "format2"
        return self.kind != "icechunk" or self.operation not in ("copy", "compact-output")

    @property
    def spec(self) -> Operation:
        """The operation itself."""
        return OPERATIONS[self.operation]

    @property
    def target(self) -> str:
        """Name of the store that is written."""
        return self.spec.output or "store.vcz"

    @property
    def atomic(self) -> bool:
        """Whether readers see either the old or the new store."""
        is_replaced = self.operation.startswith(("compact", "regrid"))
        return self.target == "new.icechunk" or self.kind == "icechunk" or is_replaced

    @property
    def arguments(self) -> list[str]:
        """Arguments of ``vczstore``."""
        return [*self.spec.command, "--executor", self.executor, "--max-workers", "2"]

    def make(self, folder: Path) -> None:
        """Create a folder with the store, the batch and the job file."""
        folder.mkdir(parents=True)
        layout: dict[str, Any] = {"variants_chunk": VARIANTS_CHUNK}
        if self.kind == "icechunk":
            cohort.write_icechunk(folder / "store.vcz", self.spec.before, **layout)
        else:
            is_format2 = self.kind == "format2"
            layout |= {"zarr_format": 2 if is_format2 else 3, "consolidated": is_format2}
            cohort.write_vcz(folder / "store.vcz", self.spec.before, **layout)
        cohort.write_vcz(folder / "batch.vcz", NEW, variants_chunk=VARIANTS_CHUNK)
        steps = ["append: batch.vcz", f"remove: [{', '.join(GONE)}]", *["tag: release-1"] * (self.kind == "icechunk")]
        job = "\n".join(["store: store.vcz", "steps:", *(f"  - {step}" for step in steps)])
        (folder / "job.yaml").write_text(f"{job}\n")


CASES = [
    case for o in OPERATIONS for kind in KINDS for executor in EXECUTORS if (case := Case(o, kind, executor)).exists
]


# ---- runs, and signals ----------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """
    The point at which a run is stopped.

    Attributes
    ----------
    role
        ``driver``, or ``worker`` for the first worker that reaches the point.
    place, nth
        A line of vczstore, or ``write`` for any change of a file; and the 1-based number of the pass through it.
    delay
        Seconds between reaching the point and the signal.
    signal
        The signal's number.
    to_group
        Whether the signal goes to all processes of the run, as from a terminal.
    """

    role: str
    place: str
    nth: int
    delay: float
    signal: int
    to_group: bool

    def __str__(self) -> str:
        target = "all processes" if self.to_group else f"the {self.role}"
        after = f" and {1000 * self.delay:.2f} ms" if self.delay else ""
        return f"{signal.Signals(self.signal).name} to {target} at {self.place} #{self.nth}{after}"


@dataclass(frozen=True)
class Ended:
    """Status, output and duration of a run, and problems: a timeout, and processes left behind."""

    status: int
    out: str
    err: str
    seconds: float
    left: tuple[str, ...]


def run(folder: Path, arguments: list[str], trap: dict[str, Any] | None = None, forks: Forks | None = None) -> Ended:
    """
    Run ``vczstore`` in a folder, in a new session, and wait for all of its processes.

    Parameters
    ----------
    folder, arguments
        Working directory and arguments.
    trap
        Configuration of the trap; None to run without it.
    forks
        Server that forks the run; None to start a new Python process, as users do.
    """
    mark = f"survival-{os.getpid()}-{time.monotonic_ns()}"
    environment = {"VCZSTORE_SURVIVAL": mark}
    if trap is not None:
        environment |= {"PYTHONPATH": str(TRAP), "VCZSTORE_TRAP": json.dumps(trap)}
    started = time.monotonic()
    with TemporaryDirectory(prefix="vczstore-output-") as output:
        if forks is None:
            pid, status = _run_spawned(folder, arguments, environment, Path(output))
        else:
            pid, status = forks.run(folder, arguments, environment, Path(output), PATIENCE)
        seconds = time.monotonic() - started
        deadline = time.monotonic() + 10
        while (left := _marked(mark, pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        remaining = tuple(f"process {p.pid} is left: {' '.join(_cmdline(p))[:200]}" for p in left)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        out, err = (Path(output, name).read_text() for name in ("out", "err"))
    hung = () if status is not None else (f"it takes more than {PATIENCE:.0f} s",)
    return Ended(-9 if status is None else status, out, err, seconds, (*hung, *remaining))


def _run_spawned(
    folder: Path, arguments: list[str], environment: dict[str, str], output: Path
) -> tuple[int, int | None]:
    """Run ``vczstore`` in a new Python process; parameters and return values as in `Forks.run`."""
    kept = {k: v for k, v in os.environ.items() if k not in ("ICECHUNK_LOG", "PYTHONPATH", "VCZSTORE_TRAP")}
    command = [sys.executable, "-c", _LIKE_A_SHELL, *arguments]
    with Path(output, "out").open("w") as out, Path(output, "err").open("w") as err:
        options: dict[str, Any] = {"cwd": folder, "env": {**kept, **environment}, "start_new_session": True}
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, **options) as process:
            try:
                return process.pid, process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.pid, None


_LIKE_A_SHELL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # SIGINT may be ignored in the test runner
from vczstore.__main__ import run
run()
"""


def _marked(mark: str, session: int) -> list[psutil.Process]:
    """The running processes of a run: those in its session, and those with its mark in their environment."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if os.getsid(process.pid) == session or process.environ().get("VCZSTORE_SURVIVAL") == mark:
                processes.append(process)
    return processes


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return ["?"]


# ---- content of stores ----------------------------------------------------------------------


def _opened(path: Path) -> zarr.Group | None:
    """The root group of the store at `path`; None if there is no store."""
    if (path / "zarr.json").exists() or (path / ".zgroup").exists():
        return zarr.open_group(path, mode="r", use_consolidated=False)
    if not path.exists() or not icechunk.Repository.exists(_storage(path)):
        return None
    store = icechunk.Repository.open(_storage(path)).readonly_session("main").store
    try:
        return zarr.open_group(store, mode="r")
    except zarr.errors.GroupNotFoundError:
        return None


def read(path: Path) -> Arrays | None:
    """All arrays of the store at `path`, read with zarr-python; None if there is no store."""
    group = _opened(path)
    return None if group is None else {name: np.asarray(array[...]) for name, array in group.arrays()}


def _samples_chunk(path: Path) -> int:
    """Length of the chunks of calls along samples."""
    group = _opened(path)
    assert group is not None
    array = group["call_DP"]
    assert isinstance(array, zarr.Array)
    return array.chunks[1]


def read_elsewhere(path: Path) -> Arrays | None:
    """As `read`, in another process."""
    code = "import pickle, sys; from tests.system.survival import kills; from pathlib import Path\n"
    code += "pickle.dump(kills.read(Path(sys.argv[1])), sys.stdout.buffer)"
    import pickle

    done = subprocess.run([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=ROOT, check=True)
    arrays: Arrays | None = pickle.loads(done.stdout)
    return arrays


def _storage(path: Path) -> icechunk.Storage:
    return icechunk.local_filesystem_storage(str(path))


def objects(repository: Path) -> dict[str, int]:
    """Number of objects of each kind in a repository."""
    kinds = ("chunks", "manifests", "snapshots", "transactions")
    return {kind: sum(1 for p in (repository / kind).rglob("*") if p.is_file()) for kind in kinds}


def collect_garbage(repository: Path) -> None:
    """Delete unreferenced objects."""
    vczstore.gc(repository)


def _matches(arrays: Arrays | None, model: Arrays | None) -> bool:
    if arrays is None or model is None:
        return arrays is model
    try:
        cohort.assert_same(arrays, model)
    except AssertionError:
        return False
    return True


def _equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Elementwise equality, bit for bit."""
    if a.dtype.kind == "f":
        return np.asarray(a.view("u4") == b.view("u4"))
    return np.asarray(a.astype(object) == b.astype(object))


def between(arrays: Arrays, operation: Operation) -> list[str]:
    """
    Return the problems of a plain Zarr store that a killed operation has left in an intermediate state.

    Each array must have the old or the new length and valid values up to there, except that values of samples being
    removed may be old or erased. ``sample_id`` must be extended or erased last.
    """
    problems = []
    lengths = {len(operation.before["sample_id"]), len(operation.after["sample_id"])}
    models = {len(m["sample_id"]): m for m in (OLD, APPENDED)}
    erased_ids = [s for s in operation.removed if s not in arrays["sample_id"].tolist()]
    for name, values in arrays.items():
        if "samples" not in cohort.DIMENSIONS[name]:
            if not _equal(values, OLD[name]).all():
                problems.append(f"{name}, which has no samples, has changed")
            continue
        length = values.shape[cohort.DIMENSIONS[name].index("samples")]
        if length not in lengths:
            problems.append(f"{name} has {length} samples, neither the old number nor the new")
            continue
        if length < len(arrays["sample_id"]):
            problems.append(f"{name} has {length} samples, and sample_id has {len(arrays['sample_id'])} already")
        present = models[length]
        removed = cohort.expected_remove(present, list(operation.removed))
        erased = cohort.expected_remove(present, erased_ids)
        if not (_equal(values, present[name]) | _equal(values, removed[name])).all():
            problems.append(f"{name} has values that are neither old nor new")
        must_be_erased = ~_equal(erased[name], present[name])
        if name != "sample_id" and not _equal(values, removed[name])[must_be_erased].all():
            problems.append(f"{name} has values of samples whose IDs are removed already")
    return problems


# ---- one case -------------------------------------------------------------------------------

_BEGINS = re.compile(r"ransaction|Icechunk\S+\.create$|NewPlainStore")
"""Functions that begin the writing phase."""
_UNTOUCHED = re.compile(r"nothing was (committed|written|created)|store is as it was|readers see the old samples;")
"""Messages of a run that has changed nothing."""
_INTERRUPTED_REVEAL = "if an append was stopped here, run that append again"
"""Words in the errors of verify for a plain Zarr store whose new samples are partly visible; a rerun fixes that."""


@dataclass
class Bench:
    """A case, the folder for its runs, and the points and results of its undisturbed run."""

    case: Case
    folder: Path
    forks: Forks | None
    events: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    """For each role, the index of the first event at which it may be stopped."""
    objects: dict[str, int] = field(default_factory=dict)
    files: frozenset[str] = frozenset()
    seconds: float = 0.0

    @cached_property
    def template(self) -> Path:
        """A folder that is copied for each run."""
        folder = self.folder / "template"
        self.case.make(folder)
        return folder

    def calibrate(self) -> None:
        """Run the case undisturbed, and keep all points."""
        folder, notes = self.folder / "undisturbed", self.folder / "notes"
        shutil.copytree(self.template, folder)
        notes.mkdir()
        ended = run(folder, self.case.arguments, self._trap(folder, notes), self.forks)
        assert (ended.status, ended.left) == (0, ()), (self.case, ended)
        target = folder / self.case.target
        assert self.case.spec.is_done(target, read(target)), self.case
        for file in sorted(notes.iterdir()):
            role = file.name.partition("-")[0]
            events = [(t, p) for t, p in json.loads(file.read_text()) if p == "write" or p.count(":") == 2]
            # before the command begins its work, Python itself reports an interrupt
            first = next((i for i, (_, p) in enumerate(events) if p.startswith(("vczstore/api", "vczstore/job"))), 0)
            if len(events) > len(self.events.get(role, ())):  # keep the busiest of several workers
                self.events[role], self.first[role] = events, first if role == "driver" else 0
        assert self.events.get("driver"), self.case
        self.seconds = ended.seconds
        if self._is_repository(target):
            collect_garbage(target)
            self.objects = objects(target)
        else:
            self.files = self._files(target)
        shutil.rmtree(folder)

    def _trap(self, watched: Path, notes: Path, **config: Any) -> dict[str, Any]:
        return {"roots": [f"{root}{os.sep}" for root in ROOTS], "watched": str(watched), "folder": str(notes), **config}

    def draw(self, rng: random.Random, *, only_driver: bool) -> Point:
        """Draw a point at random."""
        roles = ["driver"] if only_driver else sorted(self.events)
        role = rng.choice(roles) if rng.random() < 0.8 else "driver"
        events, first = self.events[role], self.first[role]
        writing = next((i for i, (_, place) in enumerate(events) if i >= first and _BEGINS.search(place)), first)
        writes = [i for i, (_, place) in enumerate(events) if i >= first and place == "write"]
        method, delay = rng.choice(["line", "line late", "moment", *["write"] * bool(writes)]), 0.0
        if method == "write":
            index = rng.choice(writes)
        elif method == "moment":
            moment = rng.uniform(events[writing][0], events[-1][0])
            index = max(writing, sum(t <= moment for t, _ in events) - 1)
            delay = max(0.0, moment - events[index][0])
        else:
            start = writing if method == "line late" else first
            by_line: dict[str, list[int]] = {}
            for i, (_, place) in enumerate(events[start:], start):
                by_line.setdefault(place, []).append(i)
            by_line.pop("write", None)
            index = rng.choice(by_line[rng.choice(sorted(by_line))])
        place = events[index][1]
        nth = sum(p == place for _, p in events[: index + 1])
        number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
        to_group = number == signal.SIGINT and rng.random() < 0.5
        return Point(role, place, nth, delay, int(number), to_group)

    def kill(self, number: int, point: Point, *, elsewhere: bool = False) -> Kill:
        """Stop one run, check the store it leaves, on plain Zarr repair every other one, and rerun it."""
        folder, notes = self.folder / f"kill-{number}", self.folder / f"kill-{number}-notes"
        shutil.copytree(self.template, folder)
        notes.mkdir()
        try:
            ended = run(folder, self.case.arguments, self._trap(folder, notes, trigger=asdict(point)), self.forks)
            is_hit = (notes / "hit.json").exists()
            state, problems = self._judge(folder, ended, point, is_hit=is_hit, elsewhere=elsewhere)
            if state != "unreadable" and number % 2 and self._is_plain(folder / self.case.target):
                problems += self._repair(folder, state)
            problems += self._rerun(folder, state)
        finally:
            shutil.rmtree(folder)
            shutil.rmtree(notes)
        return Kill(self.case, point, is_hit, state, ended, problems)

    def _judge(
        self, folder: Path, ended: Ended, point: Point, *, is_hit: bool, elsewhere: bool
    ) -> tuple[str, list[str]]:
        """Return the state of the store ("old", "new", "between" or "unreadable"), and a list of problems."""
        operation, target, problems = self.case.spec, folder / self.case.target, list(ended.left)
        old = None if operation.output else operation.before
        try:
            arrays = read(target)
            if elsewhere and not _matches(read_elsewhere(target), arrays):
                problems.append("another process reads something else")
        except Exception as error:
            return "unreadable", [*problems, f"it cannot be read: {type(error).__name__}: {error}"]
        state = "new" if operation.is_done(target, arrays) else "old" if _matches(arrays, old) else "between"
        if state == "between":
            if self.case.atomic or arrays is None:
                problems.append("readers see neither old nor new")
            else:
                problems += between(arrays, operation)
        if operation.output and not _matches(read(folder / "store.vcz"), operation.before):
            problems.append("the source has changed")
        problems += self._problems_at_exit(ended, point, state, is_hit=is_hit)
        if arrays is not None:
            errors = [str(error) for error in vczstore.verify(target).errors]
            if state == "between":
                errors = [error for error in errors if _INTERRUPTED_REVEAL not in error]
            elif self.case.kind == "format2":  # stopped between writing metadata and consolidated metadata
                errors = [e for e in errors if "consolidated" not in e or _INTERRUPTED_REVEAL not in e]
            problems += [f"verify: {error}" for error in errors[:3]]
        return state, problems

    def _problems_at_exit(self, ended: Ended, point: Point, state: str, *, is_hit: bool) -> list[str]:
        """Return the problems with a run's exit status and messages."""
        problems = []
        killed = is_hit and point.signal == signal.SIGKILL and point.role == "driver"
        allowed = {0} if not is_hit else {0, -9} if killed else {0, 1} if point.role == "worker" else {0, 130, 143}
        if is_hit and point.to_group:
            allowed |= {130, 143}
        if is_hit and state == "old" and not ended.err:  # the signal came before the command handled it
            allowed.add(-point.signal)
        if ended.status not in allowed:
            problems.append(f"it ended with status {ended.status}")
        if ended.status == 0 and state != "new":
            problems.append(f"it said that it had succeeded, and the store is {state}")
        message = ended.err.strip()
        if not killed and (len(message.splitlines()) > 1 or "Traceback" in message or "unexpected" in message):
            problems.append(f"it said more than a line: {message[-1500:]!r}")
        if _UNTOUCHED.search(message) and state == "new":
            problems.append(f"it said what is not true: {message!r}, and the store is new")
        return problems

    def _repair(self, folder: Path, state: str) -> list[str]:
        """Repair the store, which must clean up everything except an operation to complete; return the problems."""
        target = folder / self.case.target
        repaired = vczstore.repair(target)
        problems = [f"repair: {error}" for error in repaired.errors]
        arrays, spec = read(target), self.case.spec
        if state != "between" and not _matches(arrays, spec.before if state == "old" else spec.after):
            problems.append(f"repair: the store is not {state} any more")
        elif state == "between" and arrays is not None:
            problems += [f"repair: {problem}" for problem in between(arrays, spec)]
        return problems + [f"repair: {path} is left" for path in target.rglob("*.partial")]

    def _rerun(self, folder: Path, state: str) -> list[str]:
        """Rerun the operation, and return the problems with its outcome."""
        operation, target = self.case.spec, folder / self.case.target
        if self.case.operation == "compact-output" and state == "old" and target.exists():
            shutil.rmtree(target)  # as its error message says
        # threads are enough here, because only the killed run is checked for leftover workers
        quick = self.case if self.forks is None else replace(self.case, executor="threads")
        ended = run(folder, quick.arguments, None, self.forks)
        problems = [f"again: {left}" for left in ended.left]
        is_done = state == "new" and operation.already_done and operation.already_done in ended.err
        if ended.status != (1 if is_done else 0):
            problems.append(f"again: it ended with status {ended.status}: {ended.err[-500:]!r}")
        try:
            arrays = read(target)
        except Exception as error:
            return [*problems, f"again: it cannot be read: {type(error).__name__}: {error}"]
        if not operation.is_done(target, arrays):
            problems.append("again: the store is not what the operation makes of it")
            return problems
        problems += [f"again: verify: {error}" for error in vczstore.verify(target).errors[:3]]
        if self._is_repository(target):
            if self.case.operation == "run":
                repository = icechunk.Repository.open(_storage(target))
                tagged = {name: repository.lookup_tag(name) for name in repository.list_tags()}
                if tagged != {"release-1": repository.lookup_branch("main")}:
                    problems.append(f"again: tags are {tagged}")
            before = objects(target)
            collect_garbage(target)
            if (after := objects(target)) != self.objects:
                problems.append(f"objects are {before}, {after} once garbage is collected, undisturbed {self.objects}")
            if not operation.is_done(target, read(target)):
                problems.append("the store has changed when garbage was collected")
        elif extra := {f for f in self._files(target) - self.files if not _TEMPORARY.search(f)}:
            problems.append(f"there are files that do not belong there: {sorted(extra)[:5]}")
        return problems

    @staticmethod
    def _is_plain(target: Path) -> bool:
        return (target / "zarr.json").exists() or (target / ".zgroup").exists()

    @staticmethod
    def _is_repository(target: Path) -> bool:
        return (target / "snapshots").is_dir()

    @staticmethod
    def _files(target: Path) -> frozenset[str]:
        """Paths of everything in the store, and of its siblings in the folder."""
        inside = {str(p.relative_to(target.parent)) for p in target.rglob("*")}
        return frozenset(inside | {p.name for p in target.parent.iterdir()})


@dataclass(frozen=True)
class Kill:
    """A kill and its outcome."""

    case: Case
    point: Point
    is_hit: bool
    state: str
    ended: Ended
    problems: list[str]

    def __str__(self) -> str:
        verdict = "; ".join(self.problems) or "well"
        hit = "" if self.is_hit else " (never reached)"
        return f"{self.case}: {self.point}{hit}: status {self.ended.status}, {self.state}: {verdict}"


# ---- many -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Campaign:
    """
    A series of kills.

    Attributes
    ----------
    seed
        Seed of the random points.
    cases
        Cases to kill, in turn.
    spawned
        Whether each run is a new Python process, as for users, instead of a fork.
    """

    seed: int
    cases: tuple[Case, ...] = tuple(CASES)
    spawned: bool = False

    def kills(self, n: int, first: int = 0) -> Iterator[tuple[int, Kill]]:
        """Yield `n` kills from number `first` on; a kill is yielded and drawn again while its point is not reached."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="vczstore-kills-")))
            forks = None if self.spawned else shared()
            benches: dict[Case, Bench] = {}
            for i in range(first, first + n):
                case = self.cases[i % len(self.cases)]
                is_new = case not in benches
                if is_new:
                    benches[case] = Bench(case, folder / str(case), forks)
                    benches[case].folder.mkdir()
                    benches[case].calibrate()
                rng = random.Random(f"{self.seed}/{i}")
                for nth in range(DRAWS):
                    point = benches[case].draw(rng, only_driver=nth > 0)
                    kill = benches[case].kill(i, point, elsewhere=is_new and self.spawned)
                    yield i, kill
                    if kill.is_hit:
                        break

    def tally(self, n: int, first: int = 0, report: Callable[[int, Kill], None] | None = None) -> Tally:
        """Run kills, call `report` after each, and count those whose points were reached."""
        tried, failures = 0, []
        for i, kill in self.kills(n, first):
            tried += kill.is_hit
            if kill.problems:
                which = f"--case '^{kill.case}$' " if len(self.cases) == 1 else ""
                failures.append(f"{which}--seed {self.seed} --first {i} --kills 1: {kill}")
            if report is not None:
                report(i, kill)
        return Tally(tried, tuple(failures))
