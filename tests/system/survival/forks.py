"""
Runs of ``vczstore`` that are forks of one process, which has imported nearly all that they need: hundreds take minutes.

It has begun no thread when it forks. So icechunk, whose import begins some, is left to each of them.
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
"""None of them imports icechunk."""


class Forks:
    """That process, and how it is told to fork."""

    def __enter__(self) -> Self:
        environment = {k: v for k, v in os.environ.items() if k not in ("ICECHUNK_LOG", "VCZSTORE_TRAP")}
        # "-c": processes that workers are spawned in would import any other main module
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
        self, folder: Path, arguments: list[str], environment: Mapping[str, str], said: Path, patience: float
    ) -> tuple[int, int | None]:
        """
        Run ``vczstore`` in a folder, in a session of its own.

        Parameters
        ----------
        folder, arguments, environment
            What is run, where, and what is new in its environment.
        said
            A folder for ``out`` and ``err``.
        patience
            How many seconds it may take.

        Returns
        -------
        int
            Its process.
        int or None
            Its status, as `subprocess` has it; None if it had to be killed.
        """
        request = {"folder": str(folder), "arguments": arguments, "environment": dict(environment), "said": str(said)}
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(f"{json.dumps(request)}\n")
        self.server.stdin.flush()
        pid = int(self.server.stdout.readline())
        ended, _, _ = select.select([self.server.stdout], [], [], patience)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        status = int(self.server.stdout.readline())
        return pid, status if ended else None


@cache
def shared() -> Forks:
    """One for all that this process has run: to begin takes as long as several runs."""
    forks = Forks()
    atexit.register(forks.__enter__().__exit__, None, None, None)
    return forks


def serve() -> None:
    """Fork as often as told; the child goes on as ``vczstore`` does."""
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
    _become(request)
    run(request["arguments"])


def _become(request: dict[str, Any]) -> None:
    os.setsid()
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    os.environ.pop("OPENBLAS_NUM_THREADS")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(request["said"], name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "VCZSTORE_TRAP" in os.environ:
        import sitecustomize  # type: ignore[import-not-found]

        sitecustomize.begin(json.loads(os.environ["VCZSTORE_TRAP"]))
