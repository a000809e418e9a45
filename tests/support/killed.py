"""Kills operations: each in a process of its own, right before one of its changes of the file system.

``main(TEMPLATE, FOLDER, CODE, STEP, LAST)``, in a process that has no threads, prints what there is then. CODE is
Python that does something with ``store``. What CODE does with copies of TEMPLATE, ``FOLDER/0/store.vcz`` and so on,
is killed before every STEP-th of its LAST changes, and before every folder that is renamed; then comes one that runs to
its end. They are forks of one process, which has imported all and begun no thread, so that hundreds take seconds.
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
"""What Python's audit hooks call changes of a file system, beside the opening of files for writing."""
MAX_ENDED = 2
"""How many of the last runs may end before they are killed."""


def killed(template: Path, folder: Path, code: str, *, step: int = 1, last: int = 10_000) -> list[Path]:
    """The stores that an operation leaves that is killed; that of a whole run comes last."""
    folder.mkdir()
    main = "import sys; from tests.support.killed import main; main(*sys.argv[1:])"
    command = [forks.program("python"), "-c", main, template, folder, code, str(step), str(last)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [folder / str(i) / "store.vcz" for i in range(int(done.stdout))]


def main(template: str, folder: str, code: str, step: str, last: str) -> None:
    sys.dont_write_bytecode = True  # no change that an operation makes
    import plans.maintenance.repair  # noqa: F401

    compiled = compile(code, "<code>", "exec")

    def run(name: str, changes: int | None = None) -> Path | None:
        """In a child, which is killed before its next change after so many; None if it has made no more than these."""
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
    # two threads may both make a folder, or one of them, so that a run may have a few changes less than another
    if n_killed < len(points) - MAX_ENDED:
        sys.exit(f"{len(points) - n_killed} of {len(points)} runs ended before they were to be killed")
    whole.with_name("changes.json").unlink()
    whole.parent.rename(Path(folder, str(n_killed)))
    print(n_killed + 1)


def _run(code: Any, store: Path, changes: int | None) -> None:
    """As the forked process: change the file system so often, and no more; or tell which changes rename a folder."""
    seen: list[bool] = []

    def count(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in CHANGES or (writes and args[0] != os.devnull):
            if changes is not None and len(seen) >= changes:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(event == "os.rename" and os.path.isdir(args[0]))

    try:
        sys.addaudithook(count)
        exec(code, {"store": store})
        if changes is None:
            store.with_name("changes.json").write_text(json.dumps(seen))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
