"""Run an operation repeatedly, and kill each run right before one of its changes of the file system.

``main(TEMPLATE, FOLDER, CODE, STEP, LAST)`` runs in a single-threaded process. CODE is Python that operates on
``store``. It runs on copies of TEMPLATE, ``FOLDER/0/store.vcz`` and so on, and is killed before every STEP-th of its
LAST changes, and before every rename of a folder; the final run completes. The number of copies is printed. All runs
are forks of one process with preloaded imports, so that hundreds take seconds.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.support import forks
from tests.support.paths import ROOT

CHANGES = frozenset(f"os.{name}" for name in ("chmod", "chown", "link", "mkdir", "remove", "rename", "rmdir", "utime"))
"""Audit events of file system changes, in addition to opening files for writing."""
MAX_ENDED = 2
"""Maximum number of runs that may complete before they are killed."""


def killed(template: Path, folder: Path, code: str, *, step: int = 1, last: int = 10_000) -> list[Path]:
    """Return the stores left by the killed runs of an operation, and last the store of a complete run."""
    folder.mkdir()
    main = "import sys; from tests.support.killed import main; main(*sys.argv[1:])"
    command = [forks.program("python"), "-c", main, template, folder, code, str(step), str(last)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [folder / str(i) / "store.vcz" for i in range(int(done.stdout))]


def main(template: str, folder: str, code: str, step: str, last: str) -> None:
    sys.dont_write_bytecode = True  # bytecode is not a change made by the operation
    import plans.maintenance.repair  # noqa: F401

    compiled = compile(code, "<code>", "exec")

    def run(name: str, changes: int | None = None) -> Path | None:
        """Run in a child that is killed after `changes` changes, before the next; return None if it completes first."""
        store = Path(folder, name, "store.vcz")
        shutil.copytree(template, store)
        child = os.fork()
        if child == 0:
            _run(compiled, store, changes)
        _, status = os.waitpid(child, 0)
        if changes is not None and status == 0:
            shutil.rmtree(store.parent)
            return None
        if os.WIFEXITED(status) != (changes is None) or (changes is None and os.WEXITSTATUS(status)):
            sys.exit(f"the operation ended with status {status}")
        return store

    whole = run("whole")
    assert whole is not None
    renames = json.loads(whole.with_name("changes.json").read_text())
    first = max(0, len(renames) - int(last))
    points = [n for n in range(first, len(renames)) if (n - first) % int(step) == 0 or renames[n]]
    n_killed = 0
    for n in points:
        n_killed += run(str(n_killed), n) is not None
    # two threads may both create the same folder or only one of them does, so the number of changes varies slightly
    if n_killed < len(points) - MAX_ENDED:
        sys.exit(f"{len(points) - n_killed} of {len(points)} runs ended before they were to be killed")
    whole.with_name("changes.json").unlink()
    whole.parent.rename(Path(folder, str(n_killed)))
    print(n_killed + 1)


def _run(code: Any, store: Path, changes: int | None) -> None:
    """Run the code in the forked child: kill it after `changes` changes, or save which changes rename a folder."""
    renames: list[bool] = []

    def count(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in CHANGES or (writes and args[0] != os.devnull):
            if changes is not None and len(renames) >= changes:
                os.kill(os.getpid(), signal.SIGKILL)
            renames.append(event == "os.rename" and os.path.isdir(args[0]))

    try:
        sys.addaudithook(count)
        exec(code, {"store": store})
        if changes is None:
            store.with_name("changes.json").write_text(json.dumps(renames))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
