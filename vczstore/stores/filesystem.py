"""What Python's standard library does not offer for folders: to exchange two, to sync a file system, quick deletion."""

import ctypes
import errno
import os
import shutil
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
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


DELETING_AT_ONCE = 32
"""How many files are deleted at once: a file system may wait for the disk, or for a server, with each."""

_DELETED_WHOLE = 3
"""So many levels down a folder is deleted by one thread: of a store, the chunks of one row of an array."""


def delete_folder(folder: Path) -> None:
    """
    Delete a folder and all that is in it, as `shutil.rmtree` does, by several threads.

    Raises
    ------
    OSError
        If something cannot be deleted; the rest may be.
    """
    members, taking = _members(folder, _DELETED_WHOLE), threading.Lock()

    def take() -> "os.DirEntry[str] | None":
        with taking:
            return next(members, None)

    def delete_members() -> None:
        while (member := take()) is not None:
            if member.is_dir(follow_symlinks=False):
                shutil.rmtree(member.path)
            else:
                os.unlink(member.path)

    with ThreadPoolExecutor(DELETING_AT_ONCE) as pool:
        try:
            for done in [pool.submit(delete_members) for _ in range(DELETING_AT_ONCE)]:
                done.result()
        finally:
            with taking:
                members.close()
    shutil.rmtree(folder)


def _members(folder: str | Path, depth: int) -> Generator["os.DirEntry[str]"]:
    """The files above a depth, and the folders at it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if depth and entry.is_dir(follow_symlinks=False):
                yield from _members(entry.path, depth - 1)
            else:
                yield entry
