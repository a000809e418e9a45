"""
What stopped writers leave of a store in a folder of this machine: half-written files, and a folder beside the store.

A replacement of the folder (see `vczstore.stores.folder_swap`) leaves these; its record says which folder is which, by
inode::

    STORE                               what readers see
    .STORE.vczstore-compact.json        the record
    .STORE.vczstore-compact.1f2e3d4c    the new store while it is made; after the exchange, the old one

Whichever process is killed, and at any moment, the inode of STORE tells whether the exchange has taken place. In both
cases what lies beside is of no more use, and `settle` deletes it.
"""

import errno
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

from vczstore.errors import StorageError
from vczstore.stores.filesystem import delete_folder, sync_names
from vczstore.stores.lock import hold_file
from vczstore.vcz.zarr_objects import LOCK

SUFFIX = ".vczstore-compact"

PATIENCE = 5.0
"""How many seconds to wait for a worker that has outlived its driver, and still writes to what is to be deleted."""

LATE = 0.5
"""How many seconds after an error threads may still be writing. What comes later the next run deletes."""

type Outcome = Literal["completed", "undone"]
"""Whether a replacement that was stopped has taken place."""

HALF_WRITTEN_NAME = re.compile(r".*(\.[0-9a-f]{32}\.partial|#\d+)")
"""What zarr calls a file before it has its name. A process that is killed leaves it, with anybody's data."""
HALF_WRITTEN = "half-written files deleted"
"""What their number is called."""


def leftovers(path: Path) -> list[Path]:
    """What a replacement that was stopped, or that goes on, has beside a store."""
    if not path.parent.is_dir():
        return []
    begin = f".{path.name}{SUFFIX}."
    return sorted(beside for beside in path.parent.iterdir() if beside.name.startswith(begin))


@contextmanager
def settling(path: Path, *, no_lock: bool = False, wait: bool = False) -> Iterator[None]:
    """
    Hold the lock of what lies beside a store: it is needed where a replacement is begun, finished or undone.

    Of the store itself there may be none at that moment, so that its own lock does not do.

    Raises
    ------
    BusyError
        If another process replaces the store.
    StorageError
        If the folder may not be written to.
    """
    with nullcontext() if no_lock else hold_file(str(path), path.with_name(f".{path.name}{LOCK}"), wait):
        yield


def settle(path: Path) -> Outcome | None:
    """
    Finish or undo what a replacement that was stopped has begun, and delete what it has left; its lock has to be held.

    Returns
    -------
    "completed", "undone" or None
        Whether the store was replaced; None if there was nothing to do.

    Raises
    ------
    StorageError
        If it cannot be told what lies beside the store.
    OSError
        If it cannot be deleted.
    """
    found = leftovers(path)
    if not found:
        return None
    outcome = _outcome(path, found)
    record = _record(path)
    for one in found:
        if one != record:
            _delete(one)
    record.unlink(missing_ok=True)
    return outcome


def settle_before(path: Path, *, no_lock: bool) -> None:
    """
    Let nothing of a replacement that was stopped stay beside a store that is about to be written to.

    The lock of the store has to be held. Nothing is done where the folder around it may not be written to.
    """
    if os.access(path.parent, os.R_OK | os.W_OK | os.X_OK) and leftovers(path):
        with settling(path, no_lock=no_lock, wait=True):
            settle(path)


def settle_late(path: Path) -> Outcome | None:
    """
    The same after something went wrong, which is what has to be told.

    What zarr's threads have begun they write when another has failed already, and re-create the folder for it.
    """
    outcome = None
    with suppress(OSError, StorageError):
        outcome = settle(path)
        time.sleep(LATE)
        settle(path)
    return outcome


def foreseen(path: Path) -> Outcome | None:
    """What `settle` would return; nothing is done."""
    found = leftovers(path)
    return _outcome(path, found, rename=False) if found else None


def _outcome(path: Path, found: Sequence[Path], *, rename: bool = True) -> Outcome:
    try:
        noted = json.loads(_record(path).read_bytes())
        new, inodes = path.with_name(noted["folder"]), (noted["store"], noted["new"])
    except FileNotFoundError:
        if not path.exists():
            raise StorageError(f"{path} does not exist, and nothing says what {found[0]} is; look into it") from None
        return "undone"  # it was stopped before it was noted
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{_record(path)} does not say what lies beside {path}; delete it, and what begins like it, if {path} is "
            "whole"
        ) from error
    if not path.exists():
        # stopped between two renames
        if not rename:
            return "completed"
        (new if new.exists() else aside(new)).rename(path)
        sync_names(path.parent)
    inode = path.stat().st_ino
    if inode not in inodes:
        raise StorageError(
            f"{path} is not the store that was being replaced when a run was stopped, and {found[0]} may be that one; "
            f"if {path} is whole, delete {_record(path)} and all that begins like it, and run the same command again"
        )
    return "completed" if inode == inodes[1] else "undone"


def _record(path: Path) -> Path:
    return path.with_name(f".{path.name}{SUFFIX}.json")


def aside(new: Path) -> Path:
    """Where the old store is where names cannot be exchanged."""
    return new.with_name(f"{new.name}.old")


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all, and on disk before this returns."""
    half = path.with_name(f".{path.name}{SUFFIX}.half")
    with half.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    half.replace(_record(path))
    sync_names(path.parent)


def _delete(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if path.is_dir() and not path.is_symlink():
                for document in ("zarr.json", ".zgroup"):
                    # first: whoever has reached the old store by another mount finds none, instead of half of one
                    (path / document).unlink(missing_ok=True)
                delete_folder(path)
            else:
                path.unlink(missing_ok=True)
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


# ---- half-written files ----------------------------------------------------------------------


def half_written(path: Path) -> Iterator[Path]:
    """
    Files in a folder that a process has begun to write; unless it goes on, its process was killed.

    zarr calls them ``.partial``. obstore and Icechunk number them behind a ``#``, and list none of them.
    """
    for folder, _, files in os.walk(path):
        yield from (Path(folder, name) for name in files if HALF_WRITTEN_NAME.fullmatch(name))


def delete_half_written(path: Path | None, *, dry_run: bool = False) -> dict[str, int]:
    """Delete them, or only count them, since they may hold personal data. Empty if there are none."""
    n = 0
    for file in () if path is None else half_written(path):
        n += 1
        if not dry_run:
            file.unlink(missing_ok=True)
    return {HALF_WRITTEN: n} if n else {}
