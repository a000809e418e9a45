"""Lithops on this machine, with all that a cloud's workers do to a plan: pickles, object storage, merged sessions."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import executors
import vczstore
from executors.lithops import LithopsExecutor
from tests import cohort
from tests.s3 import CREDENTIALS, S3Server
from tests.test_errors import complain, edit, truncate
from tests.test_executors import _run
from vczstore.errors import MissingDependencyError, OptionError, StorageError

ROOT = Path(__file__).parent.parent
FIELDS = ("sample_id", "variant_position", "variant_allele", "call_genotype", "call_FT")
OPTIONS: dict[str, Any] = {"executor": "lithops", "max_workers": 2}


def of(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A task is a process here, so few fields are enough: one that is copied as it is, and strings."""
    return {name: arrays[name] for name in FIELDS}


OLD, NEW = of(cohort.make_arrays(10, cohort.ids(0, 7))), of(cohort.make_arrays(10, cohort.ids(7, 4), seed=1))


def lithops_processes() -> list[int]:
    """The processes that Lithops has begun for this one, workers and cleaners."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "lithops" in " ".join(process.info["cmdline"] or []) and process.pid != os.getpid()
        and os.environ["LITHOPS_TEST"] in _environment(process)
    ]


def _environment(process: psutil.Process) -> str:
    try:
        return process.environ().get("LITHOPS_TEST", "")
    except psutil.Error:
        return ""


@contextmanager
def nothing_left() -> Iterator[None]:
    """Of this test's jobs, neither processes nor files are left, whatever other jobs there are."""
    folder = Path(tempfile.gettempdir()).resolve() / f"lithops-{os.environ.get('USER', 'root')}"
    before = _entries(folder)
    yield
    assert not lithops_processes()
    assert _entries(folder) <= before
