"""Storage of Icechunk repositories: their locations, and the settings of requests to them."""

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
"""The branch that readers see, and that is edited by default."""


def storage_of(url: str, options: Mapping[str, Any]) -> tuple[icechunk.Storage, Path | None]:
    """The storage at a URL, and its folder if local. Credentials come from the environment."""
    if "ICECHUNK_LOG" not in os.environ:
        # the lock makes its warning about concurrent commits on a local file system irrelevant
        icechunk.set_logs_filter("error")
    address = parse(url)
    if address.path is not None:
        folder = real_path(address.path)
        for entry in folder.iterdir() if folder.is_dir() else ():
            # icechunk would block on reading it, and cannot be interrupted
            if entry.is_fifo() or entry.is_char_device() or entry.is_socket():
                raise StorageError(f"{url}: {entry.name} is a pipe or a device, where there should be a file")
        return icechunk.local_filesystem_storage(str(folder)), folder
    if address.kind == "http":
        # anything else, such as an error page, is not a repository
        return icechunk.http_storage(address.url), None
    remote = Remote.of(address, options)
    if remote is None:
        raise OptionError(f"{url}: no Icechunk storage for {address.kind}://; use a path, s3://, gs:// or az://")
    return remote.icechunk(), None


_LOCAL = re.compile(r"<icechunk\.Storage>\ntype: local filesystem\npath:(?: (.*)|\n(.*))\n", re.S)
"""The ``repr`` of a local storage, the only way to get its path. Icechunk indents multi-line values."""


def folder_of_repository(repository: icechunk.Repository) -> Path | None:
    """
    Return the folder of an open repository, symlinks resolved; None if it is not local.

    Raises
    ------
    OptionError
        If its path is relative to another working directory, which is unknown: other processes would write elsewhere,
        and use another lock.
    """
    text = str(repository.storage)
    if "\ntype: local filesystem\n" not in text:
        return None
    match = _LOCAL.fullmatch(text)
    path = "" if match is None else match[1] or re.sub("^    ", "", match[2], flags=re.M)
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
    Refuse S3 keys that Icechunk 2.3 does not write correctly.

    To update a repository it copies an object, with the source key unencoded in the header ``x-amz-copy-source``, where
    S3 expects percent-encoding (API reference, CopyObject): ``a%20b`` would copy the object ``a b``.
    """
    address = parse(label)
    wrong = re.search("[%#?+]|[^ -~]", address.key) if address.kind == "s3" else None
    if wrong is not None:
        raise OptionError(
            f"{label}: Icechunk cannot write where an S3 key has {wrong[0]!r} in it; copy the repository to another key"
        )


def runtime() -> icechunk.RepositoryConfig:
    """
    Return the configuration of retries, timeouts and conditional writes.

    Writes are conditional regardless of the repository's own configuration: in one created in a folder and copied to an
    object store they are disabled, so that some of several concurrent commits would be silently lost.
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
