"""
Leftovers of interrupted writers: half-written files in a local store, and the record and sibling folder beside it.

See `vczstore.stores.folder_swap` for the record and the folders of a replacement, which `settle` completes or undoes.
"""

import errno
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Literal

from vczstore.errors import StorageError
from vczstore.stores.filesystem import delete_folder, sync_names, write_durably
from vczstore.stores.lock import HeldLock, hold_file, unheld
from vczstore.vcz.zarr_objects import LOCK

SUFFIX = ".vczstore-compact"

PATIENCE = 5.0
"""Seconds to retry a deletion while a worker that has outlived its driver still writes to the folder."""

LATE = 0.5
"""Seconds after an error in which threads may still be writing. The next run deletes anything written later."""

type Outcome = Literal["completed", "undone"]
"""Whether an interrupted replacement has taken place: "undone" if the store at the path is still the old one."""

HALF_WRITTEN_NAME = re.compile(r".*(\.[0-9a-f]{32}\.partial|#\d+)")
"""Names of zarr's and obstore's files before the final rename. A killed process leaves them, with their data."""
HALF_WRITTEN = "half-written files deleted"
"""Key of the number of deleted half-written files."""


def leftovers(path: Path) -> list[Path]:
    """Paths beside a store, sorted, of the folders and the record of an interrupted or running replacement."""
    if not path.parent.is_dir():
        return []
    begin = f".{path.name}{SUFFIX}."
    return sorted(sibling for sibling in path.parent.iterdir() if sibling.name.startswith(begin))


def settling(path: Path, *, no_lock: bool = False, wait: bool = False) -> AbstractContextManager[HeldLock]:
    """
    Return the leftovers lock, which is required to begin, complete or undo a replacement of the store at `path`.

    The lock of the store itself does not suffice, since the store may be absent at that moment.

    Raises
    ------
    BusyError
        If another process is replacing the store.
    StorageError
        If the parent folder is not writable.
    """
    return unheld() if no_lock else hold_file(str(path), path.with_name(f".{path.name}{LOCK}"), wait)


def settle(path: Path) -> Outcome | None:
    """
    Complete or undo an interrupted replacement, and delete its leftovers. Requires the leftovers lock.

    Returns
    -------
    Outcome or None
        None if there were no leftovers.

    Raises
    ------
    StorageError
        If the record is missing or invalid, or does not identify the store.
    OSError
        If they cannot be deleted.
    """
    paths = leftovers(path)
    if not paths:
        return None
    outcome = _outcome(path, paths)
    record = _record(path)
    for leftover in paths:
        if leftover != record:
            _delete(leftover)
    record.unlink(missing_ok=True)
    return outcome


def settle_before(path: Path, *, no_lock: bool) -> None:
    """
    Settle an interrupted replacement of a store that is about to be written.

    Requires the lock of the store. No-op if the parent folder is not writable.
    """
    if os.access(path.parent, os.R_OK | os.W_OK | os.X_OK) and leftovers(path):
        with settling(path, no_lock=no_lock, wait=True):
            settle(path)


def settle_after_error(path: Path) -> Outcome | None:
    """
    Settle after an error, ignoring errors of its own, which would hide the first.

    Settles twice: when one of zarr's threads fails, others finish their writes, which re-creates the folder.
    """
    outcome = None
    with suppress(OSError, StorageError):
        outcome = settle(path)
        time.sleep(LATE)
        settle(path)
    return outcome


def preview(path: Path) -> Outcome | None:
    """Return the outcome that `settle` would return, and change nothing; raise its `StorageError`."""
    paths = leftovers(path)
    return _outcome(path, paths, rename=False) if paths else None


def _outcome(path: Path, paths: Sequence[Path], *, rename: bool = True) -> Outcome:
    try:
        record = json.loads(_record(path).read_bytes())
        new, inodes = path.with_name(record["folder"]), (record["store"], record["new"])
    except FileNotFoundError:
        if not path.exists():
            raise StorageError(f"{path} does not exist, and {paths[0]} has no record; inspect it") from None
        return "undone"  # interrupted before the record was written
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{_record(path)} is not a valid record of the folders beside {path}; if {path} is complete, delete all "
            f"beside it that begins with .{path.name}{SUFFIX}"
        ) from error
    if not path.exists():
        # interrupted between two renames
        if not rename:
            return "completed"
        (new if new.exists() else aside(new)).rename(path)
        sync_names(path.parent)
    inode = path.stat().st_ino
    if inode not in inodes:
        raise StorageError(
            f"{path} is not the store that was being replaced when a run was stopped, and {paths[0]} may be that one; "
            f"if {path} is complete, delete {_record(path)} and all beginning with .{path.name}{SUFFIX}; run this again"
        )
    return "completed" if inode == inodes[1] else "undone"


def _record(path: Path) -> Path:
    return path.with_name(f".{path.name}{SUFFIX}.json")


def aside(new: Path) -> Path:
    """Path to which the old store is renamed where names cannot be exchanged."""
    return new.with_name(f"{new.name}.old")


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write the record of a replacement atomically, and flush it to disk."""
    half = path.with_name(f".{path.name}{SUFFIX}.half")
    write_durably(_record(path), half, json.dumps(content).encode())


def _delete(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if path.is_dir() and not path.is_symlink():
                for document in ("zarr.json", ".zgroup"):
                    # first, so that readers that reach the old store by another mount find none instead of half of it
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
    Files in a folder that are being written, or were left by a killed process.

    zarr names them ``.partial``. obstore and Icechunk append ``#`` and a number, and do not list them.
    """
    for folder, _, files in os.walk(path):
        yield from (Path(folder, name) for name in files if HALF_WRITTEN_NAME.fullmatch(name))


def delete_half_written(path: Path | None, *, dry_run: bool = False) -> dict[str, int]:
    """Delete half-written files, which may hold personal data; return their number by `HALF_WRITTEN`, empty if none."""
    n = 0
    for file in () if path is None else half_written(path):
        n += 1
        if not dry_run:
            file.unlink(missing_ok=True)
    return {HALF_WRITTEN: n} if n else {}
