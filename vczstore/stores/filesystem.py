"""Folder operations missing from the standard library: atomic exchange, file system sync, fast deletion."""

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import batched
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems that do not support the operation, such as NFS."""


def exchange(a: Path, b: Path) -> bool:
    """
    Exchange the names of two folders atomically: renameat2(2) with ``RENAME_EXCHANGE``.

    Returns
    -------
    bool
        False where the system or the file system does not support it; nothing has changed then.

    Raises
    ------
    OSError
        If it is supported, but fails.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = (os.fsencode(a), os.fsencode(b))
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), os.fspath(a))


def sync_filesystem(folder: Path) -> None:
    """Flush the file system of a folder to disk: syncfs(2), or sync(2) where there is none."""
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
    """Flush the directory entries of a folder to disk, where its file system supports that."""
    with suppress(OSError):
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def write_durably(path: Path, half: Path, content: bytes) -> None:
    """Write a file atomically and flush it to disk; `half` is its path until it is complete."""
    with half.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)
    sync_names(path.parent)


DELETE_THREADS = 32
"""Files deleted concurrently: a file system may wait for the disk, or for a server, with each."""

_TREE_DEPTH = 3
"""Depth from which one thread deletes a whole folder: in a store, the chunks of one row of an array."""


def delete_folder(folder: Path) -> None:
    """
    Delete a folder tree, like `shutil.rmtree`, with several threads.

    Raises
    ------
    OSError
        If something cannot be deleted; the rest may have been deleted.
    """

    def delete(member: "os.DirEntry[str]") -> None:
        if member.is_dir(follow_symlinks=False):
            shutil.rmtree(member.path)
        else:
            os.unlink(member.path)

    with ThreadPoolExecutor(DELETE_THREADS) as pool:
        for members in batched(_members(folder, _TREE_DEPTH), 100 * DELETE_THREADS):  # a store may have millions
            for _ in pool.map(delete, members):
                pass
    shutil.rmtree(folder)


def _members(folder: str | Path, depth: int) -> Iterator["os.DirEntry[str]"]:
    """The files above `depth`, and the folders at `depth`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if depth and entry.is_dir(follow_symlinks=False):
                yield from _members(entry.path, depth - 1)
            else:
                yield entry
