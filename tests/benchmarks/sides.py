"""The two packages compared: ours in this environment, the peer in a separate one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

PEER_VERSION = "0.1.0"
PEER_OVERRIDE = "ruranges-py ; sys_platform == 'never'\n"
"""vcztools depends on ruranges-py, which has no wheel; without it vcztools falls back to pyranges."""

WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Side:
    """One of the packages: the interpreter of its environment, and the module of each operation."""

    python: Path
    modules: Mapping[str, str]

    def command(self, *args: object) -> float:
        """Run the side's ``vczstore`` command; return the wall time of the process in seconds."""
        command = [str(self.python.with_name("vczstore")), *map(str, args)]
        started = time.perf_counter()
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=_environment(), check=False
        )
        seconds = time.perf_counter() - started
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[:5])} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
        return seconds

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        """The installed versions of packages, by name."""
        script = "import json, sys, importlib.metadata as m; print(json.dumps([m.version(p) for p in sys.argv[1:]]))"
        done = subprocess.run(
            [self.python, "-P", "-c", script, *packages],
            capture_output=True,
            text=True,
            env=_environment(),
            check=True,
        )
        return dict(zip(packages, json.loads(done.stdout), strict=True))


class Call(NamedTuple):
    """The duration of one call, and the peak memory of its process up to the end of the call, in bytes."""

    seconds: float
    peak_rss: int


class Worker:
    """A long-lived process of one side, which makes repeated calls without importing the package each time."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.process = subprocess.Popen(
            [side.python, "-P", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(),
        )

    def call(self, operation: str, *args: object, **options: object) -> Call:
        """Call an operation and measure it; raise `RuntimeError` if it fails."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        values = [a if isinstance(a, list) else str(a) for a in args]
        self.process.stdin.write(json.dumps([self.side.modules[operation], operation, values, options]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{operation} of {self.side.modules[operation]} failed; see above")
        return Call(**json.loads(answer))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


def ours() -> Side:
    """The package in this environment."""
    modules = dict.fromkeys(("append", "remove", "normalise", "compact", "regrid"), "vczstore.api")
    return Side(Path(sys.executable), {**modules, "plan_job": "vczstore.jobs.run"})


def peer(folder: Path) -> Side:
    """The peer, with our versions of zarr and numcodecs; installed below the folder on first use."""
    pins = [f"{package}=={version(package)}" for package in ("zarr", "numcodecs")]
    python = ".".join(map(str, sys.version_info[:2]))
    venv = folder / f"peer-{PEER_VERSION}-zarr-{version('zarr')}-python-{python}"
    side = Side(venv / "bin" / "python", {name: f"vczstore.{name}" for name in ("append", "remove", "normalise")})
    if not (venv / "ready").exists():
        uv: list[str | Path] = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "-q", "--clear", "-p", sys.executable, venv], check=True)
        override = venv / "override.txt"
        override.write_text(PEER_OVERRIDE)
        install = [
            *uv,
            "pip",
            "install",
            "-q",
            "--compile-bytecode",
            "--python",
            side.python,
            "--override",
            override,
        ]
        subprocess.run([*install, f"vczstore=={PEER_VERSION}", "pyranges", *pins], check=True)
        (venv / "ready").touch()
    return side


def _environment() -> dict[str, str]:
    """The environment without Python's variables, so that no side imports the other and both cache bytecode."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
