"""
Kills: runs of ``vczstore`` that are stopped by a signal at seeded random points, and what they leave.

Each case, an operation on a kind of store with an executor, is run once without a signal, while `trap` notes every line
of vczstore that is executed and every file that is written, with the time. Points are then drawn in three ways: among
the lines, each as likely as any other; among the writes; and among the moments of the phase that writes, so that the
time that Icechunk spends in a commit counts as it lasts. A driver or a worker gets the signal; from a terminal, all do.
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
"""Chunks of so many variants that Icechunk keeps most of them as objects of their own."""
PATIENCE = 60.0
"""Seconds that a run may take, and that it may take to end."""
DRAWS = 5
"""
How many points are drawn for a kill at most. Workers share the tasks differently each time, so a point of theirs may
not be reached; then it is the driver's turn.
"""


def some_arrays(samples: list[str], seed: int = 0) -> dict[str, np.ndarray]:
    arrays = cohort.make_arrays(N_VARIANTS, samples, seed=seed)
    return {name: arrays[name] for name in FIELDS}


OLD, NEW = some_arrays(cohort.ids(0, 7)), some_arrays(cohort.ids(7, 4), seed=1)
GONE = ["S0001", "S0004"]
APPENDED = cohort.expected_append(OLD, NEW)
"""Ragged before and after: columns are of three samples."""

type Arrays = dict[str, np.ndarray]


# ---- cases ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """
    One that is killed.

    Attributes
    ----------
    command
        Its arguments, in a folder that has ``store.vcz``, ``batch.vcz`` and ``job.yaml``.
    before, after
        What is in the store. None before a store that the operation makes.
    gone
        Samples that it removes: on plain Zarr their values may be missing in part already.
    again
        What it says when it was done already, and there is nothing to do.
    makes
        The store that it makes, if it makes one.
    """

    command: tuple[str, ...]
    before: Arrays
    after: Arrays
    again: str
    gone: tuple[str, ...] = ()
    makes: str | None = None


REMOVED = cohort.expected_remove(OLD, GONE)
OPERATIONS = {
    "append": Operation(("append", "store.vcz", "batch.vcz"), OLD, APPENDED, "already"),
    "remove": Operation(("remove", "store.vcz", *GONE), OLD, REMOVED, "has no sample", tuple(GONE)),
    "compact": Operation(("compact", "store.vcz"), REMOVED, cohort.expected_compact(REMOVED), ""),
    "regrid": Operation(("regrid", "store.vcz", "--samples-chunk", "4"), OLD, OLD, ""),
    "regrid-shards": Operation(
        ("regrid", "store.vcz", "--samples-chunk", "4", "--variants-shard", str(4 * VARIANTS_CHUNK)), OLD, OLD, ""
    ),
    "compact-output": Operation(
        ("compact", "store.vcz", "--output", "new.vcz"),
        REMOVED,
        cohort.expected_compact(REMOVED),
        "exists; choose another path",
        makes="new.vcz",
    ),
    "copy": Operation(
        ("copy-store-to-icechunk", "store.vcz", "new.icechunk"),
        OLD,
        OLD,
        "holds a repository already",
        makes="new.icechunk",
    ),
    "run": Operation(("run", "job.yaml"), OLD, cohort.expected_remove(APPENDED, GONE), "", tuple(GONE)),
}
KINDS = ("format2", "format3", "icechunk")
"""Format 2 has consolidated metadata."""
EXECUTORS = ("threads", "processes")


@dataclass(frozen=True)
class Case:
    """An operation on a kind of store, with an executor."""

    operation: str
    kind: str
    executor: str

    def __str__(self) -> str:
        return f"{self.operation}-{self.kind}-{self.executor}"

    @property
    def exists(self) -> bool:
        """Whether there is such an operation on this kind of store."""
        if self.operation == "regrid-shards":
            return self.kind != "format2"
        return self.kind != "icechunk" or self.operation not in ("copy", "compact-output")

    @property
    def what(self) -> Operation:
        """What is done."""
        return OPERATIONS[self.operation]

    @property
    def target(self) -> str:
        """The store that is written to."""
        return self.what.makes or "store.vcz"

    @property
    def atomic(self) -> bool:
        """Whether readers see all of it or nothing."""
        is_replaced = self.operation.startswith(("compact", "regrid"))
        return self.target == "new.icechunk" or self.kind == "icechunk" or is_replaced

    @property
    def arguments(self) -> list[str]:
        """Of ``vczstore``."""
        return [*self.what.command, "--executor", self.executor, "--max-workers", "2"]

    def make(self, folder: Path) -> None:
        """All that the command needs."""
        folder.mkdir(parents=True)
        layout: dict[str, Any] = {"variants_chunk": VARIANTS_CHUNK}
        if self.kind == "icechunk":
            cohort.write_icechunk(folder / "store.vcz", self.what.before, **layout)
        else:
            old = self.kind == "format2"
            layout |= {"zarr_format": 2 if old else 3, "consolidated": old}
            cohort.write_vcz(folder / "store.vcz", self.what.before, **layout)
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
    Where a run is stopped.

    Attributes
    ----------
    role
        ``driver``, or ``worker``: the first that gets there.
    place, nth
        A line of vczstore, or ``write`` for any change of a file; and which time that it is reached.
    delay
        How many seconds after that.
    signal
        Which signal.
    everybody
        Whether all processes get it, as they do from a terminal.
    """

    role: str
    place: str
    nth: int
    delay: float
    signal: int
    everybody: bool

    def __str__(self) -> str:
        to = "everybody" if self.everybody else f"the {self.role}"
        after = f" and {1000 * self.delay:.2f} ms" if self.delay else ""
        return f"{signal.Signals(self.signal).name} to {to} at {self.place} #{self.nth}{after}"


@dataclass(frozen=True)
class Ended:
    """How a run ended, and what of it was left after some seconds."""

    status: int
    out: str
    err: str
    seconds: float
    left: tuple[str, ...]


def run(folder: Path, arguments: list[str], trap: dict[str, Any] | None = None, forks: Forks | None = None) -> Ended:
    """
    Run ``vczstore`` in a folder, in a session of its own, and wait for all of its processes.

    Parameters
    ----------
    folder, arguments
        What is run, and where.
    trap
        What the trap is told; None for none.
    forks
        What runs it as a fork; None to start a new Python, as users do.
    """
    mark = f"survival-{os.getpid()}-{time.monotonic_ns()}"
    environment = {"VCZSTORE_SURVIVAL": mark}
    if trap is not None:
        environment |= {"PYTHONPATH": str(TRAP), "VCZSTORE_TRAP": json.dumps(trap)}
    begun = time.monotonic()
    with TemporaryDirectory(prefix="vczstore-said-") as said:
        if forks is None:
            pid, status = _run_spawned(folder, arguments, environment, Path(said))
        else:
            pid, status = forks.run(folder, arguments, environment, Path(said), PATIENCE)
        seconds = time.monotonic() - begun
        deadline = time.monotonic() + 10
        while (left := _marked(mark, pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        told = tuple(f"process {p.pid} is left: {' '.join(_cmdline(p))[:200]}" for p in left)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        out, err = (Path(said, name).read_text() for name in ("out", "err"))
    hung = () if status is not None else (f"it takes more than {PATIENCE:.0f} s",)
    return Ended(-9 if status is None else status, out, err, seconds, (*hung, *told))


def _run_spawned(folder: Path, arguments: list[str], environment: dict[str, str], said: Path) -> tuple[int, int | None]:
    """As `Forks.run` does."""
    kept = {k: v for k, v in os.environ.items() if k not in ("ICECHUNK_LOG", "PYTHONPATH", "VCZSTORE_TRAP")}
    command = [sys.executable, "-c", _LIKE_A_SHELL, *arguments]
    with Path(said, "out").open("w") as out, Path(said, "err").open("w") as err:
        options: dict[str, Any] = {"cwd": folder, "env": {**kept, **environment}, "start_new_session": True}
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, **options) as process:
            try:
                return process.pid, process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.pid, None


_LIKE_A_SHELL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # the handler of the test runner may be another
from vczstore.__main__ import run
run()
"""


def _marked(mark: str, session: int) -> list[psutil.Process]:
    """The processes that are of a run: by its session, or by its mark if they have left that."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if os.getsid(process.pid) == session or process.environ().get("VCZSTORE_SURVIVAL") == mark:
                found.append(process)
    return found


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return ["?"]


# ---- what is there --------------------------------------------------------------------------


def read(place: Path) -> Arrays | None:
    """What zarr-python reads from the store, reopened. None where there is no store."""
    if (place / "zarr.json").exists() or (place / ".zgroup").exists():
        return cohort.read_vcz(place)
    if not place.exists() or not icechunk.Repository.exists(_storage(place)):
        return None
    store = icechunk.Repository.open(_storage(place)).readonly_session("main").store
    try:
        zarr.open_group(store, mode="r")
    except zarr.errors.GroupNotFoundError:
        return None
    return cohort.read_vcz(store)


def read_elsewhere(place: Path) -> Arrays | None:
    """The same, by another process."""
    code = "import pickle, sys; from tests.system.survival import kills; from pathlib import Path\n"
    code += "pickle.dump(kills.read(Path(sys.argv[1])), sys.stdout.buffer)"
    import pickle

    done = subprocess.run([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE, cwd=ROOT, check=True)
    found: Arrays | None = pickle.loads(done.stdout)
    return found


def _storage(place: Path) -> icechunk.Storage:
    return icechunk.local_filesystem_storage(str(place))


def objects(repository: Path) -> dict[str, int]:
    """How many objects of each kind a repository has."""
    kinds = ("chunks", "manifests", "snapshots", "transactions")
    return {kind: sum(1 for p in (repository / kind).rglob("*") if p.is_file()) for kind in kinds}


def collect_garbage(repository: Path) -> None:
    """Delete unreferenced objects."""
    vczstore.gc(repository)


def _is(found: Arrays | None, model: Arrays | None) -> bool:
    if found is None or model is None:
        return found is model
    try:
        cohort.assert_same(found, model)
    except AssertionError:
        return False
    return True


def _equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Element by element, bit by bit."""
    if a.dtype.kind == "f":
        return np.asarray(a.view("u4") == b.view("u4"))
    return np.asarray(a.astype(object) == b.astype(object))


def between(found: Arrays, what: Operation) -> list[str]:
    """
    What is wrong with a store on plain Zarr that a killed operation has left between old and new.

    Arrays are as long as before or after, and up to there hold what belongs there; the samples that are removed may
    be so in part. Sample IDs come last.
    """
    wrong = []
    lengths = {len(what.before["sample_id"]), len(what.after["sample_id"])}
    models = {len(m["sample_id"]): m for m in (OLD, APPENDED)}
    blanked = [s for s in what.gone if s not in found["sample_id"].tolist()]
    for name, values in found.items():
        if "samples" not in cohort.DIMENSIONS[name]:
            if not _equal(values, OLD[name]).all():
                wrong.append(f"{name}, which has no samples, has changed")
            continue
        n = values.shape[cohort.DIMENSIONS[name].index("samples")]
        if n not in lengths:
            wrong.append(f"{name} has {n} samples, neither the old number nor the new")
            continue
        if n < len(found["sample_id"]):
            wrong.append(f"{name} has {n} samples, and sample_id has {len(found['sample_id'])} already")
        present = models[n]
        removed = cohort.expected_remove(present, list(what.gone))
        gone = cohort.expected_remove(present, blanked)
        if not (_equal(values, present[name]) | _equal(values, removed[name])).all():
            wrong.append(f"{name} has values that are neither old nor new")
        is_gone = ~_equal(gone[name], present[name])
        if name != "sample_id" and not _equal(values, removed[name])[is_gone].all():
            wrong.append(f"{name} has values of samples whose IDs are removed already")
    return wrong


# ---- one case -------------------------------------------------------------------------------

_BEGINS = re.compile(r"ransaction|Icechunk\S+\.create$|NewPlainStore")
"""The functions in which the phase begins that writes."""
_UNTOUCHED = re.compile(r"nothing was (committed|written|created)|store is as it was|readers see the old samples;")
"""What a run says that has changed nothing."""
_INTERRUPTED_REVEAL = "if an append was stopped here, run that append again"
"""In what verify says of a store on plain Zarr whose new samples have become visible in part; to run again mends it."""


@dataclass
class Bench:
    """A case, where it is tried, and what was learnt from the run that was not killed."""

    case: Case
    folder: Path
    forks: Forks | None
    events: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    """Of each role, the event from which on it is stopped."""
    objects: dict[str, int] = field(default_factory=dict)
    files: frozenset[str] = frozenset()
    seconds: float = 0.0

    @cached_property
    def template(self) -> Path:
        """What every run begins with."""
        place = self.folder / "template"
        self.case.make(place)
        return place

    def calibrate(self) -> None:
        """Run it once, and keep all points."""
        place, notes = self.folder / "undisturbed", self.folder / "notes"
        shutil.copytree(self.template, place)
        notes.mkdir()
        done = run(place, self.case.arguments, self._trap(place, notes), self.forks)
        assert (done.status, done.left) == (0, ()), (self.case, done)
        assert _is(read(place / self.case.target), self.case.what.after), self.case
        for file in sorted(notes.iterdir()):
            role = file.name.partition("-")[0]
            events = [(t, p) for t, p in json.loads(file.read_text()) if p == "write" or p.count(":") == 2]
            # until the command begins its work, the way an interrupt is told is Python's own
            first = next((i for i, (_, p) in enumerate(events) if p.startswith(("vczstore/api", "vczstore/job"))), 0)
            if len(events) > len(self.events.get(role, ())):  # of several workers, the busiest
                self.events[role], self.first[role] = events, first if role == "driver" else 0
        assert self.events.get("driver"), self.case
        self.seconds = done.seconds
        target = place / self.case.target
        if self._is_repository(target):
            collect_garbage(target)
            self.objects = objects(target)
        else:
            self.files = self._files(target)
        shutil.rmtree(place)

    def _trap(self, place: Path, notes: Path, **said: Any) -> dict[str, Any]:
        return {"roots": [f"{root}{os.sep}" for root in ROOTS], "watched": str(place), "folder": str(notes), **said}

    def draw(self, rng: random.Random, *, only_driver: bool) -> Point:
        """A point."""
        roles = ["driver"] if only_driver else sorted(self.events)
        role = rng.choice(roles) if rng.random() < 0.8 else "driver"
        events, first = self.events[role], self.first[role]
        writing = next((i for i, (_, place) in enumerate(events) if i >= first and _BEGINS.search(place)), first)
        writes = [i for i, (_, place) in enumerate(events) if i >= first and place == "write"]
        way, delay = rng.choice(["line", "line late", "moment", *["write"] * bool(writes)]), 0.0
        if way == "write":
            at = rng.choice(writes)
        elif way == "moment":
            moment = rng.uniform(events[writing][0], events[-1][0])
            at = max(writing, sum(t <= moment for t, _ in events) - 1)
            delay = max(0.0, moment - events[at][0])
        else:
            start = writing if way == "line late" else first
            there: dict[str, list[int]] = {}
            for i, (_, place) in enumerate(events[start:], start):
                there.setdefault(place, []).append(i)
            there.pop("write", None)
            at = rng.choice(there[rng.choice(sorted(there))])
        place = events[at][1]
        nth = sum(p == place for _, p in events[: at + 1])
        number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
        everybody = number == signal.SIGINT and rng.random() < 0.5
        return Point(role, place, nth, delay, int(number), everybody)

    def kill(self, number: int, point: Point, *, elsewhere: bool = False) -> Kill:
        """Stop one run, look at what it leaves, and run it again."""
        place, notes = self.folder / f"kill-{number}", self.folder / f"kill-{number}-notes"
        shutil.copytree(self.template, place)
        notes.mkdir()
        try:
            ended = run(place, self.case.arguments, self._trap(place, notes, trigger=asdict(point)), self.forks)
            is_hit = (notes / "hit.json").exists()
            state, wrong = self._judge(place, ended, point, is_hit=is_hit, elsewhere=elsewhere)
            if state != "unreadable" and number % 2 and self._is_plain(place / self.case.target):
                wrong += self._repair(place, state)
            wrong += self._again(place, state)
        finally:
            shutil.rmtree(place)
            shutil.rmtree(notes)
        return Kill(self.case, point, is_hit, state, ended, wrong)

    def _judge(
        self, place: Path, ended: Ended, point: Point, *, is_hit: bool, elsewhere: bool
    ) -> tuple[str, list[str]]:
        """Whether what is there is old, new, or on plain Zarr between these; and what is wrong."""
        what, target, wrong = self.case.what, place / self.case.target, list(ended.left)
        old = None if what.makes else what.before
        try:
            found = read(target)
            if elsewhere and not _is(read_elsewhere(target), found):
                wrong.append("another process reads something else")
        except Exception as error:
            return "unreadable", [*wrong, f"it cannot be read: {type(error).__name__}: {error}"]
        state = "old" if _is(found, old) else "new" if _is(found, what.after) else "between"
        if state == "between":
            if self.case.atomic or found is None:
                wrong.append("readers see neither old nor new")
            else:
                wrong += between(found, what)
        if what.makes and not _is(read(place / "store.vcz"), what.before):
            wrong.append("the source has changed")
        wrong += self._wrong_end(ended, point, state, is_hit=is_hit)
        if found is not None:
            errors = [str(error) for error in vczstore.verify(target).errors]
            if state == "between":
                errors = [error for error in errors if _INTERRUPTED_REVEAL not in error]
            elif self.case.kind == "format2":  # stopped between a document and the consolidated metadata
                errors = [e for e in errors if "consolidated" not in e or _INTERRUPTED_REVEAL not in e]
            wrong += [f"verify: {error}" for error in errors[:3]]
        return state, wrong

    def _wrong_end(self, ended: Ended, point: Point, state: str, *, is_hit: bool) -> list[str]:
        """How it ended, and what it said."""
        wrong = []
        killed = is_hit and point.signal == signal.SIGKILL and point.role == "driver"
        allowed = {0} if not is_hit else {0, -9} if killed else {0, 1} if point.role == "worker" else {0, 130, 143}
        if is_hit and point.everybody:
            allowed |= {130, 143}
        if ended.status not in allowed:
            wrong.append(f"it ended with status {ended.status}")
        if ended.status == 0 and state != "new":
            wrong.append(f"it said that it had succeeded, and the store is {state}")
        said = ended.err.strip()
        if not killed and (len(said.splitlines()) > 1 or "Traceback" in said or "unexpected" in said):
            wrong.append(f"it said more than a line: {said[-1500:]!r}")
        if _UNTOUCHED.search(said) and state == "new":
            wrong.append(f"it said what is not true: {said!r}, and the store is new")
        return wrong

    def _repair(self, place: Path, state: str) -> list[str]:
        """Let it be repaired: nothing is left of the kill but an operation to complete."""
        target = place / self.case.target
        repaired = vczstore.repair(target)
        wrong = [f"repair: {damage}" for damage in repaired.errors]
        found = read(target)
        if state != "between" and not _is(found, self.case.what.before if state == "old" else self.case.what.after):
            wrong.append(f"repair: the store is not {state} any more")
        elif state == "between" and found is not None:
            wrong += [f"repair: {one}" for one in between(found, self.case.what)]
        return wrong + [f"repair: {half} is left" for half in target.rglob("*.partial")]

    def _again(self, place: Path, state: str) -> list[str]:
        """Run it again, and look at what is there then."""
        what, target = self.case.what, place / self.case.target
        if self.case.operation == "compact-output" and state == "old" and target.exists():
            shutil.rmtree(target)  # as it says
        # the workers that might be left are those of the first
        quick = self.case if self.forks is None else replace(self.case, executor="threads")
        ended = run(place, quick.arguments, None, self.forks)
        wrong = [f"again: {left}" for left in ended.left]
        is_done = state == "new" and what.again and what.again in ended.err
        if ended.status != (1 if is_done else 0):
            wrong.append(f"again: it ended with status {ended.status}: {ended.err[-500:]!r}")
        try:
            found = read(target)
        except Exception as error:
            return [*wrong, f"again: it cannot be read: {type(error).__name__}: {error}"]
        if not _is(found, what.after):
            wrong.append("again: the store is not what the operation makes of it")
            return wrong
        wrong += [f"again: verify: {damage}" for damage in vczstore.verify(target).errors[:3]]
        if self._is_repository(target):
            if self.case.operation == "run":
                repository = icechunk.Repository.open(_storage(target))
                tagged = {name: repository.lookup_tag(name) for name in repository.list_tags()}
                if tagged != {"release-1": repository.lookup_branch("main")}:
                    wrong.append(f"again: tags are {tagged}")
            before = objects(target)
            collect_garbage(target)
            if (after := objects(target)) != self.objects:
                wrong.append(f"objects are {before}, {after} once garbage is collected, undisturbed {self.objects}")
            if not _is(read(target), what.after):
                wrong.append("the store has changed when garbage was collected")
        elif extra := {f for f in self._files(target) - self.files if not f.endswith(".partial")}:
            wrong.append(f"there are files that do not belong there: {sorted(extra)[:5]}")
        return wrong

    @staticmethod
    def _is_plain(target: Path) -> bool:
        return (target / "zarr.json").exists() or (target / ".zgroup").exists()

    @staticmethod
    def _is_repository(target: Path) -> bool:
        return (target / "snapshots").is_dir()

    @staticmethod
    def _files(target: Path) -> frozenset[str]:
        """All in the store, and what lies beside it."""
        inside = {str(p.relative_to(target.parent)) for p in target.rglob("*")}
        return frozenset(inside | {p.name for p in target.parent.iterdir()})


@dataclass(frozen=True)
class Kill:
    """What became of one."""

    case: Case
    point: Point
    is_hit: bool
    state: str
    ended: Ended
    wrong: list[str]

    def __str__(self) -> str:
        verdict = "; ".join(self.wrong) or "well"
        hit = "" if self.is_hit else " (never reached)"
        return f"{self.case}: {self.point}{hit}: status {self.ended.status}, {self.state}: {verdict}"


# ---- many -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Campaign:
    """
    Many kills.

    Attributes
    ----------
    seed
        What the points are drawn from.
    cases
        Which cases take their turns.
    spawned
        Whether each run is a new Python, as it is for users, instead of a fork.
    """

    seed: int
    cases: tuple[Case, ...] = tuple(CASES)
    spawned: bool = False

    def kills(self, n: int, first: int = 0) -> Iterator[tuple[int, Kill]]:
        """The kills from a number on, and before each those whose points were not reached."""
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

    def tally(self, n: int, first: int = 0, told: Callable[[int, Kill], None] | None = None) -> Tally:
        """Count those that hit."""
        tried, bad = 0, []
        for i, kill in self.kills(n, first):
            tried += kill.is_hit
            if kill.wrong:
                which = f"--case '^{kill.case}$' " if len(self.cases) == 1 else ""
                bad.append(f"{which}--seed {self.seed} --first {i} --kills 1: {kill}")
            if told is not None:
                told(i, kill)
        return Tally(tried, tuple(bad))
