"""Where an Icechunk repository lies, and how requests to it are made."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import icechunk

from vczstore.errors import OptionError, StorageError
from vczstore.stores import object_store
from vczstore.stores.locations import parse, real_path
from vczstore.stores.object_store import Remote

BRANCH = "main"
"""The branch that readers see, and that is edited unless another one is named."""


def storage_of(url: str, options: Mapping[str, Any]) -> tuple[icechunk.Storage, Path | None]:
    """The storage that a URL names, and its folder if it is on this machine. Credentials come from the environment."""
    if "ICECHUNK_LOG" not in os.environ:
        # its warning about commits at once on a local file system is answered by the lock
        icechunk.set_logs_filter("error")
    address = parse(url)
    if address.path is not None:
        folder = real_path(address.path)
        for entry in folder.iterdir() if folder.is_dir() else ():
            # icechunk would read it to its end, and cannot be interrupted meanwhile
            if entry.is_fifo() or entry.is_char_device() or entry.is_socket():
                raise StorageError(f"{url}: {entry.name} is a pipe or a device, where there should be a file")
        return icechunk.local_filesystem_storage(str(folder)), folder
    if address.kind == "http":
        # what else there is, such as a page that says so, is no repository
        return icechunk.http_storage(address.url), None
    remote = Remote.of(address, options)
    if remote is None:
        raise OptionError(f"{url}: no Icechunk storage for {address.kind}://; use a path, s3://, gs:// or az://")
    return remote.icechunk(), None


_LOCAL = re.compile(r"<icechunk\.Storage>\ntype: local filesystem\npath:(?: (.*)|\n(.*))\n", re.S)
"""How icechunk describes a storage on this machine, which is all that tells where it is; texts of several lines are
indented."""


def folder_of_repository(repository: icechunk.Repository) -> Path | None:
    """
    Where a repository that is open lies, links resolved; None if it is elsewhere.

    Raises
    ------
    OptionError
        If its path is relative to another working directory. Nothing tells which: processes that it is sent to would
        write elsewhere, and its lock would be another one.
    """
    text = str(repository.storage)
    if "\ntype: local filesystem\n" not in text:
        return None
    said = _LOCAL.fullmatch(text)
    path = "" if said is None else said[1] or re.sub("^    ", "", said[2], flags=re.M)
    folder = real_path(Path(path))
    head = str(repository.lookup_branch(BRANCH))
    if not os.path.isabs(path) and not (folder / "snapshots" / head).exists():
        raise OptionError(
            f"an Icechunk repository was opened by the relative path {path!r} of another working directory, where "
            "other processes would not find it; open it by an absolute path, or name it by its path"
        )
    return folder


def require_writable(label: str) -> None:
    """
    Refuse keys on S3 under which Icechunk 2.3 writes wrongly.

    For each change of a repository it copies an object, and names it in the header ``x-amz-copy-source`` as it is,
    where S3 takes a percent-encoded name (API reference, CopyObject): ``a%20b`` would be a copy of what is in ``a b``.
    """
    address = parse(label)
    wrong = re.search("[%#?+]|[^ -~]", address.key) if address.kind == "s3" else None
    if wrong is not None:
        raise OptionError(
            f"{label}: Icechunk cannot write where an S3 key has {wrong[0]!r} in it; copy the repository to another key"
        )


def runtime() -> icechunk.RepositoryConfig:
    """
    How often requests are made again, how long they may take, and that writes are conditional.

    Conditional even if a repository says otherwise: one that was made in a folder and copied to an object store says
    that they are not, and of commits at once some would be silently lost.
    """
    first, longest = (round(1000 * seconds) for seconds in object_store.BACKOFF)
    wait = round(1000 * object_store.TIMEOUT)
    return icechunk.RepositoryConfig(
        storage=icechunk.StorageSettings(
            unsafe_use_conditional_create=True,
            unsafe_use_conditional_update=True,
            unsafe_use_metadata=True,
            retries=icechunk.StorageRetriesSettings(
                max_tries=object_store.RETRIES + 1, initial_backoff_ms=first, max_backoff_ms=longest
            ),
            timeouts=icechunk.StorageTimeoutSettings(
                connect_timeout_ms=wait,
                read_timeout_ms=wait,
                operation_timeout_ms=round(1000 * object_store.MAX_REQUEST),
            ),
        )
    )
