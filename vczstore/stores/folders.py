"""Local folders behind Zarr stores that zarr itself, obstore or fsspec open."""

import os
from pathlib import Path
from typing import Any

from zarr.abc.store import Store as ZarrStore
from zarr.storage import LocalStore, ObjectStore, WrapperStore


def innermost(store: ZarrStore) -> Any:
    """The store inside any wrappers, such as a logging store."""
    while isinstance(store, WrapperStore):
        store = store._store
    return store


def protocols(store: Any) -> tuple[str, ...]:
    """The fsspec protocols of a Zarr store's file system and of those it wraps; empty for other stores."""
    names: list[str] = []
    fs = getattr(store, "fs", None) if type(store).__name__ == "FsspecStore" else None
    while fs is not None:
        names += [fs.protocol] if isinstance(fs.protocol, str) else fs.protocol
        fs = getattr(fs, "fs", None) or getattr(fs, "sync_fs", None)
    return tuple(names)


def folder_behind(store: ZarrStore) -> Path | None:
    """The local folder behind a Zarr store of any kind, symlinks resolved; None if there is none."""
    folder, inner = None, innermost(store)
    if isinstance(inner, LocalStore):
        folder = inner.root
    elif isinstance(inner, ObjectStore) and type(inner.store).__name__ == "LocalStore":
        folder = inner.store.prefix
    elif "file" in protocols(inner):
        folder = inner.path
    return None if folder is None else Path(os.path.realpath(folder))
