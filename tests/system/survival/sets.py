"""
Kill operations on sets of stores at random lines of vczstore, check the stores, and complete the operations.

Each run is a fork of a single-threaded process with preloaded imports, except icechunk, whose import starts threads. An
undisturbed run counts the executed lines of the modules in `COUNTED`; further runs are killed at randomly drawn lines.
Another fork then checks and completes the operation as a user would. Either all parts have the same samples, or `info`
reports the interrupted operation and any other is refused. After a rerun or `repair`, either all parts or none of them
must have the result of the operation.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import zarr

import vczstore
from tests.support import cohort
from tests.support.paths import ROOT
from tests.system.survival import Tally

COUNTED = (
    *(f"vczstore/execution/sets/{name}.py" for name in ("entrance", "members", "checking", "writing", "completion")),
    *("vczstore/stores/sets.py", "vczstore/stores/icechunk_history.py"),
    *("vczstore/stores/icechunk.py", "vczstore/stores/plain.py", "vczstore/stores/edits.py"),
    *("vczstore/jobs/sets.py", "vczstore/jobs/afterwards.py"),
)
IMPORTED = (
    *("vczstore.api", "vczstore.execution.sets.entrance", "vczstore.jobs.run", "plans.maintenance.sets", "plans.tag"),
    *("plans.compilers.append", "plans.compilers.remove", "plans.compilers.update", "plans.maintenance.repair"),
)
CASES = (
    *(("append", "icechunk"), ("append", "format3"), ("tag", "icechunk")),
    *(("remove", "format3"), ("run", "icechunk"), ("run", "format3")),
    *(("append", "groups"), ("run", "groups")),
)
"""Operations to kill, and kinds of store; ``groups`` is a set within one Icechunk repository."""
PARTS = ("chr1", "chr2")
ARRAYS = ("sample_id", "contig_id", "variant_contig", "variant_position", "variant_allele", "call_DP")
OPERATIONS: Mapping[str, str] = {
    "append": "vczstore.append(STORE, 'in/{part}.vcz', impl='zarr')",
    "remove": "vczstore.remove(STORE, ['S0001'], impl='zarr')",
    "tag": "vczstore.tag(STORE, 'release-1')",
    "run": "vczstore.run_job('job.yaml')",
}
"""Code of the operations, run in a folder with the set, the batches and a job file."""


GROUPS = "set/all.icechunk#{part}"


def store_in(folder: Path) -> str:
    """The template of the set in a folder."""
    return GROUPS if (folder / "set/all.icechunk").is_dir() else "set/{part}"


def arrays_of(part: str, samples: list[str]) -> dict[str, np.ndarray]:
    arrays = cohort.make_arrays(3, samples, seed=PARTS.index(part) + len(samples), fields=("call_DP",))
    return {name: arrays[name] for name in ARRAYS}


def before(part: str) -> dict[str, np.ndarray]:
    return arrays_of(part, cohort.ids(0, 4))


def after(operation: str, part: str, *, is_compacted: bool = False) -> dict[str, np.ndarray]:
    """The arrays of a part after an operation; with `is_compacted`, without the positions of removed samples."""
    arrays = before(part)
    if operation in ("append", "run"):
        arrays = cohort.expected_append(arrays, arrays_of(part, cohort.ids(4, 3)))
    arrays = cohort.expected_remove(arrays, ["S0001"]) if operation in ("remove", "run") else arrays
    return cohort.expected_compact(arrays) if is_compacted else arrays


def make(folder: Path, kind: str, *, more_steps: bool = False) -> None:
    """Write a set, batches for it, and a job file; with `more_steps`, the job also verifies, and if atomic compacts."""
    write = cohort.write_icechunk if kind == "icechunk" else cohort.write_vcz
    for part in PARTS:
        write(folder / ("plain" if kind == "groups" else "set") / part, before(part))
        cohort.write_vcz(folder / "in" / f"{part}.vcz", arrays_of(part, cohort.ids(4, 3)))
    if kind == "groups":
        (folder / "set").mkdir()
        vczstore.copy_store_to_icechunk(f"{folder}/plain/{{part}}", f"{folder}/{GROUPS}")
    is_atomic = kind != "format3"
    steps = ["append: in/{part}.vcz", "remove: S0001"]
    if more_steps:
        steps += [*(["compact: true"] * is_atomic), "verify: true"]
    steps += ["tag: release-1"] * is_atomic
    lines = "".join(f"  - {step}\n" for step in steps)
    (folder / "job.yaml").write_text(f"store: {store_in(folder)}\nexecutor: single-threaded\nsteps:\n{lines}")


def tally(operation: str, kind: str, n: int, seed: int) -> Tally:
    """Kill an operation at `n` random lines, and collect the failures."""
    with TemporaryDirectory() as name:
        make(Path(name, "template"), kind, more_steps=True)
        main = "from tests.system.survival.sets import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", main, name, operation, str(n), str(seed)],
            cwd=ROOT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return Tally(n, tuple(json.loads(done.stdout.splitlines()[-1])))


def campaign(n: int, seed: int) -> Tally:
    """Kill all cases, at `n` lines in total, rounded up to the same number for each."""
    each = -(-n // len(CASES))
    return sum((tally(*case, each, seed) for case in CASES), Tally(0))


# ---- in the process that is forked ----------------------------------------------------------


def main() -> None:
    sys.dont_write_bytecode = True
    for module in IMPORTED:
        import_module(module)
    folder, operation, n, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    text = f"import vczstore; STORE = {store_in(folder / 'template')!r}; {OPERATIONS[operation]}"
    source = compile(text, "<operation>", "exec")
    count = folder / "lines"
    failures = []

    def case(name: str, at: int | None) -> Path:
        """Run the operation in a copy of the template, killed at line number `at` unless None; return the copy."""
        copy = folder / name
        shutil.copytree(folder / "template", copy)
        killed = _in_child(copy, partial(_count, source, count, at))
        if killed is not (at is not None):
            failures.append(f"line {at}: the operation ended, or failed")
        return copy

    case("whole", None)
    total = int(count.read_text())
    for i, at in enumerate(sorted(random.Random(seed).choices(range(1, total + 1), k=n))):
        copy = case(str(i), at)
        if _in_child(copy, partial(_complete, operation, source, copy / "wrong", at, is_repaired=i % 2 == 0)):
            failures.append(f"line {at} of {total}: the check was killed")
        failures.extend((copy / "wrong").read_text().splitlines() if (copy / "wrong").exists() else ())
        shutil.rmtree(copy)
    print(json.dumps(failures))


def _in_child(folder: Path, run: Callable[[], None]) -> bool:
    """Call `run` in a fork with this working directory; return whether the fork was killed."""
    child = os.fork()
    if child == 0:
        try:
            os.environ["ICECHUNK_LOG"] = "off"
            os.chdir(folder)
            run()
        except BaseException:
            traceback.print_exc()
            Path("wrong").write_text(traceback.format_exc())
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def _count(source: Any, count: Path, at: int | None) -> None:
    """Run an operation, killed before line number `at`; if None, write the number of lines to the file `count`."""
    monitoring, lines = sys.monitoring, 0

    def on_line(code: Any, _line: int) -> Any:
        nonlocal lines
        if not code.co_filename.endswith(COUNTED):
            return monitoring.DISABLE
        lines += 1
        if lines == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return None

    monitoring.use_tool_id(monitoring.PROFILER_ID, "kills")
    monitoring.register_callback(monitoring.PROFILER_ID, monitoring.events.LINE, on_line)
    monitoring.set_events(monitoring.PROFILER_ID, monitoring.events.LINE)
    exec(source, {})
    monitoring.set_events(monitoring.PROFILER_ID, 0)
    if at is None:
        count.write_text(str(lines))


def _complete(operation: str, source: Any, wrong: Path, at: int, *, is_repaired: bool) -> None:
    """Check the set after a kill, complete the operation, check the set again, and write the failures to `wrong`."""
    store = store_in(Path())
    errors = list(vczstore.info(store).errors)
    pending = [error for error in errors if " is done in " in error]
    failures = []
    if not pending and len(states := {_state(operation, part) for part in PARTS}) > 1:
        failures.append(f"the parts are {states}, and info says {errors}")
    if pending and at % 3 == 0:
        try:
            vczstore.remove(store, ["S0002"], impl="zarr", dry_run=True)
            failures.append("another operation is not refused")
        except vczstore.VczstoreError as error:
            if " is done in " not in str(error):
                failures.append(f"another operation is refused with: {error}")
    if is_repaired:
        vczstore.repair(store, quick=True)
    # a rerun of the job does the steps that follow its commits
    is_half_done = {_state(operation, part) for part in PARTS} & {"not compacted", "not tagged"}
    if not is_repaired or is_half_done or list(vczstore.info(store).errors):
        with suppress(vczstore.VczstoreError):  # the operation may be complete already
            exec(source, {})
    ended = {_state(operation, part) for part in PARTS}
    if ended not in ({"before"}, {"after"}) or (not is_repaired and ended != {"after"}):
        failures.append(f"in the end the parts are {ended}; info said {errors}")
    if left := [*vczstore.info(store).errors, *Path("set").glob(".*")]:
        failures.append(f"in the end there is still {left}")
    wrong.write_text("\n".join(f"line {at}: {failure}" for failure in failures))


def _state(operation: str, part: str) -> str:
    """State of a part, read without vczstore: before or after the operation, in between, or neither."""
    is_group = Path("set/all.icechunk").is_dir()
    path = Path("set/all.icechunk" if is_group else f"set/{part}")
    is_icechunk = (path / "snapshots").is_dir()
    top = zarr.open_group(
        cohort.icechunk_store(path) if is_icechunk else path,
        path=part if is_group else None,
        mode="r",
        use_consolidated=False,
    )
    arrays = {name: np.asarray(array[...]) for name, array in top.arrays()}
    if operation == "tag" or (operation == "run" and is_icechunk):
        import icechunk

        repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(path)))
        tagged = repository.list_tags() == {"release-1"}
        if tagged and repository.lookup_tag("release-1") != repository.lookup_branch("main"):
            return "tagged wrongly"
        if operation == "tag":
            return "after" if tagged else "before"
        if not tagged and _same(arrays, after(operation, part, is_compacted=True)):
            return "not tagged"
    compacts = operation == "run" and is_icechunk
    expected = {"before": before(part), "after": after(operation, part, is_compacted=compacts)}
    if compacts:
        expected["not compacted"] = after(operation, part)
    return next((name for name, model in expected.items() if _same(arrays, model)), "neither")


def _same(arrays: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> bool:
    return arrays.keys() == expected.keys() and all(np.array_equal(arrays[name], expected[name]) for name in expected)
