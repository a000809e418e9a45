"""Folders without write permission, and processes with a file size limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def permit(folder: Path, folders: int, files: int) -> None:
    """Set the permissions of everything below a folder."""
    for path in folder.rglob("*"):
        path.chmod(folders if path.is_dir() else files)


@contextmanager
def without_root() -> Iterator[None]:
    """Drop root privileges within the context, because permissions do not apply to root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


LIMITED = """
import os, resource, sys
sys.dont_write_bytecode = True  # Python 3.12 would leave bytecode truncated at the limit, for other processes to import
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # in worker processes, too
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.argv[0] = "vczstore"
from vczstore.cli.main import main
main()
"""
"""The command line with a file size limit. Python ignores SIGXFSZ, so that writes fail as on a full disk."""
