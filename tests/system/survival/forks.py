"""
Runs of ``vczstore`` as forks of a server process with preloaded imports: hundreds of runs take minutes.

The server must be single-threaded when it forks, so it does not preload icechunk, whose import starts threads.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.paths import ROOT

TRAP = Path(__file__).parent / "trap"
IMPORTED = (
    *(
        "executors.local",
        "plans.compilers.append",
        "plans.core.cubed_backend",
        "plans.compilers.compact",
        "plans.compilers.copy",
        "plans.compilers.remove",
    ),
    *("vczstore.api", "vczstore.cli.main", "vczstore.jobs.model", "plans.maintenance.verify"),
)
"""Preloaded modules, none of which imports icechunk."""


class Forks:
    """The server process. Use as a context manager."""

    def __enter__(self) -> Self:
        environment = {k: v for k, v in os.environ.items() if k not in ("ICECHUNK_LOG", "VCZSTORE_TRAP")}
        # with "-c", because spawned worker processes would import any other main module
        self.server = subprocess.Popen(
            [sys.executable, "-c", "from tests.system.survival.forks import serve; serve()"],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": str(TRAP), "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()

    def run(
        self, folder: Path, arguments: list[str], environment: Mapping[str, str], output: Path, timeout: float
    ) -> tuple[int, int | None]:
        """
        Run ``vczstore`` in a folder, in a new session.

        Parameters
        ----------
        folder, arguments, environment
            Working directory, arguments, and additional environment variables.
        output
            Folder for standard output and error, in the files ``out`` and ``err``.
        timeout
            Maximum duration in seconds.

        Returns
        -------
        int
            Process ID.
        int or None
            Return code, as in `subprocess`; None if it was killed after the timeout.
        """
        request = {"folder": str(folder), "arguments": arguments, "environment": dict(environment)}
        request["output"] = str(output)
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(f"{json.dumps(request)}\n")
        self.server.stdin.flush()
        pid = int(self.server.stdout.readline())
        ended, _, _ = select.select([self.server.stdout], [], [], timeout)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        status = int(self.server.stdout.readline())
        return pid, status if ended else None


@cache
def shared() -> Forks:
    """The server shared by all runs of this process; starting one takes as long as several runs."""
    forks = Forks()
    atexit.register(forks.__enter__().__exit__, None, None, None)
    return forks


def serve() -> None:
    """Fork for each request on standard input; the child runs ``vczstore``."""
    for name in IMPORTED:
        import_module(name)
    from vczstore.__main__ import run

    assert len(os.listdir("/proc/self/task")) == 1
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            break
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    else:
        return
    _set_up(request)
    run(request["arguments"])


def _set_up(request: dict[str, Any]) -> None:
    """Set session, working directory, environment, standard streams and SIGINT handler of the child; start the trap."""
    os.setsid()
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    os.environ.pop("OPENBLAS_NUM_THREADS")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(request["output"], name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "VCZSTORE_TRAP" in os.environ:
        import sitecustomize  # type: ignore[import-not-found]

        sitecustomize.begin(json.loads(os.environ["VCZSTORE_TRAP"]))
