"""What the tests share: the ways a store is kept and an operation is run."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from filelock import FileLock

from tests.support import cohort, doctests
from tests.support.azure import azure_server, azurite
from tests.support.clouds import azure_cloud, s3_cloud
from tests.support.s3 import moto, s3_server
from tests.support.ways import Way

__all__ = ["azure_cloud", "azure_server", "azurite", "moto", "s3_cloud", "s3_server"]  # fixtures


MEMORY = Path("/dev/shm")
"""A folder that is no disk, where there is one."""
ROOM = 4 * 2**30
"""Far more than the tests put there."""

# hundreds of processes are started, and to compile zarr, icechunk and cubed takes each of them a second
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much is tried in tests/system/test_survival.py."""
    parser.addoption("--kills", type=int, default=11, metavar="N", help="how many runs are killed")
    parser.addoption(
        "--seed", type=int, default=0, metavar="S", help="what the points are drawn from at which they are"
    )


def pytest_configure(config: pytest.Config) -> None:
    """
    Choose the place of temporary files: memory if there is room, since the tests write some hundred thousand files.

    Each worker has a folder of its own there: Lithops replaces its copy of itself as others run it. And a core, which
    its processes share: zarr hands every read and write to another thread, which on another core takes a fifth more.
    """
    config.pluginmanager.register(doctests)
    # a shell that starts the tests in the background has them ignore it, and what they start too
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:
        tempfile.tempdir = tempfile.mkdtemp(prefix="vczstore-tests-")
        Path(tempfile.tempdir).chmod(0o755)  # for tests that go without root's rights
        _keep_to_one_core(int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")))
    elif config.getoption("numprocesses", 0) and "TMPDIR" not in os.environ and _has_room(MEMORY):
        tempfile.tempdir = str(MEMORY)
    if tempfile.tempdir:
        os.environ["TMPDIR"] = tempfile.tempdir
    if "PYTEST_XDIST_WORKER" not in os.environ and sys.dont_write_bytecode:
        config.add_cleanup(_keep_bytecode())


def _keep_to_one_core(worker: int) -> None:
    """Of those that there are for the tests."""
    if hasattr(os, "sched_setaffinity"):  # not on macOS
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[worker % len(cores)]})


def _has_room(folder: Path) -> bool:
    """Whether large files fit there, and in memory; and programs run from there."""
    if not folder.is_dir() or os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return False
    return min(shutil.disk_usage(folder).free, psutil.virtual_memory().available) > ROOM


def _keep_bytecode() -> Callable[[], None]:
    """
    Where Python is told to leave no bytecode behind, keep it in a temporary folder; returns what removes that.

    Tests start hundreds of processes, each of which would compile all that it imports: some 1,000 files, for a second.
    """
    folder = tempfile.mkdtemp(prefix="vczstore-bytecode-")
    Path(folder).chmod(0o755)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = folder
    return partial(shutil.rmtree, folder, ignore_errors=True)


def pytest_collection_finish() -> None:
    """What is imported by now stays: to look at all of it for garbage again and again takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def pytest_unconfigure() -> None:
    """Remove that folder."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)


@pytest.fixture
def way(kind: str, impl: str) -> Way:
    """On threads; what a test of each kind with each implementation is for, tests/system/test_matrix.py has too."""
    return Way(kind, impl)


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A format 3 store of 7 samples and a batch of 4, 10 variants, chunks of 4 x 3: ragged on both axes."""
    arrays, batch = cohort.make_arrays(10, cohort.ids(0, 7)), cohort.make_arrays(10, cohort.ids(7, 4), seed=1)
    cohort.write_vcz(tmp_path / "store.vcz", arrays)
    cohort.write_vcz(tmp_path / "batch.vcz", batch)
    return tmp_path / "store.vcz", tmp_path / "batch.vcz", arrays, batch


@pytest.fixture(scope="session")
def legacy_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has zarr-python 2.18, made once for all workers."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if os.environ.get("PYTEST_XDIST_WORKER") else shared
    folder = shared / "zarr-python-2.18"
    python = folder / "bin" / "python"
    uv = [sys.executable, "-m", "uv"]
    with FileLock(shared / "zarr-python-2.18.lock"):
        if not (folder / "ready").exists():
            subprocess.run([*uv, "venv", "-q", "-p", sys.executable, folder], check=True)
            packages = ["zarr>=2.18,<2.19", "numcodecs<0.16", "numpy<2.3"]
            subprocess.run([*uv, "pip", "install", "-q", "--python", python, *packages], check=True)
            (folder / "ready").touch()
    return python
