"""Options, hooks and fixtures shared by all tests: store backends, implementations, temporary folders."""

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


RAM_DISK = Path("/dev/shm")
"""A memory-backed folder; missing on some systems."""
MIN_FREE = 4 * 2**30
"""Free bytes required to use `RAM_DISK`, far more than the tests write."""

# the tests start hundreds of processes; without cached bytecode each takes a second to compile zarr, icechunk and cubed
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of tests/system/test_survival.py."""
    parser.addoption("--kills", type=int, default=11, metavar="N", help="how many runs are killed")
    parser.addoption(
        "--seed", type=int, default=0, metavar="S", help="seed of the random points at which they are killed"
    )


def pytest_configure(config: pytest.Config) -> None:
    """
    Choose the temporary folder: `RAM_DISK` if it has space, since the tests write some hundred thousand files.

    Each worker has its own subfolder, because Lithops overwrites its own copy there while other workers run it, and is
    pinned to one core: zarr does every read and write in another thread, which takes a fifth longer on another core.
    """
    config.pluginmanager.register(doctests)
    # a shell that starts the tests in the background makes them and their subprocesses ignore SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:
        tempfile.tempdir = tempfile.mkdtemp(prefix="vczstore-tests-")
        Path(tempfile.tempdir).chmod(0o755)  # for tests that drop root privileges
        _pin_to_one_core(int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")))
    elif config.getoption("numprocesses", 0) and "TMPDIR" not in os.environ and _has_space(RAM_DISK):
        tempfile.tempdir = str(RAM_DISK)
    if tempfile.tempdir:
        os.environ["TMPDIR"] = tempfile.tempdir
    if "PYTEST_XDIST_WORKER" not in os.environ and sys.dont_write_bytecode:
        config.add_cleanup(_cache_bytecode())


def _pin_to_one_core(worker: int) -> None:
    """Pin this worker to one of the available cores, round-robin over the workers."""
    if hasattr(os, "sched_setaffinity"):  # not on macOS
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[worker % len(cores)]})


def _has_space(folder: Path) -> bool:
    """Whether the folder exists, is not mounted noexec, and both it and memory have more than `MIN_FREE` bytes free."""
    if not folder.is_dir() or os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return False
    return min(shutil.disk_usage(folder).free, psutil.virtual_memory().available) > MIN_FREE


def _cache_bytecode() -> Callable[[], None]:
    """
    Cache bytecode in a temporary folder if Python was set not to write any; return a function that removes the folder.

    The tests start hundreds of processes, and each would spend a second compiling the 1,000 or so files it imports.
    """
    folder = tempfile.mkdtemp(prefix="vczstore-bytecode-")
    Path(folder).chmod(0o755)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = folder
    return partial(shutil.rmtree, folder, ignore_errors=True)


def pytest_collection_finish() -> None:
    """Freeze the objects that imports have created: garbage collection over them takes a tenth of the test time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_unconfigure() -> None:
    """Remove this worker's temporary folder."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)


@pytest.fixture
def way(kind: str, impl: str) -> Way:
    """A `Way` on threads, from the test's parameters. tests/system/test_matrix.py covers every combination."""
    return Way(kind, impl)


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A format 3 store of 7 samples and a batch of 4, with 10 variants, in chunks of 4 x 3: partial on both axes."""
    arrays, batch = cohort.make_arrays(10, cohort.ids(0, 7)), cohort.make_arrays(10, cohort.ids(7, 4), seed=1)
    cohort.write_vcz(tmp_path / "store.vcz", arrays)
    cohort.write_vcz(tmp_path / "batch.vcz", batch)
    return tmp_path / "store.vcz", tmp_path / "batch.vcz", arrays, batch


@pytest.fixture(scope="session")
def legacy_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with zarr-python 2.18, created once for all workers."""
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
