"""Folders and processes that may not write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def permit(folder: Path, folders: int, files: int) -> None:
    """Set the permissions of all that is in a folder."""
    for path in folder.rglob("*"):
        path.chmod(folders if path.is_dir() else files)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's rights, which no permission stops."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


LIMITED = """
import resource, sys
sys.dont_write_bytecode = True  # Python 3.12 would leave modules cut off at the limit for others to import
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.argv[0] = "vczstore"
from vczstore.cli.main import main
main()
"""
"""A disk that takes small files only. Python ignores SIGXFSZ, so that writing is refused as on a full disk."""
