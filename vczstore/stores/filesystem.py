"""What Linux offers for folders, and Python's standard library does not: to exchange two, and to sync a file system."""

import ctypes
import errno
import os
from contextlib import suppress
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems say that do not know how, such as NFS."""


def exchange(a: Path, b: Path) -> bool:
    """
    Exchange the names of two folders, at one moment for all processes: renameat2(2) with ``RENAME_EXCHANGE``.

    Returns
    -------
    bool
        False where the system, or the file system, cannot do it. Nothing has happened then.

    Raises
    ------
    OSError
        If it can, and does not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = (os.fsencode(a), os.fsencode(b))
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), os.fspath(a))


def sync_filesystem(folder: Path) -> None:
    """Have everything that was written to a folder's file system on disk: syncfs(2), or sync(2) where there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):
        os.sync()
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        if libc.syncfs(file) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(folder))
    finally:
        os.close(file)


def sync_names(folder: Path) -> None:
    """Have the names in a folder on disk, where its file system can be asked for that."""
    with suppress(OSError):
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
