"""Journals of uncommitted writes, from which a run resumes after its driver was killed.

On Icechunk, the chunks that tasks have written are in the repository, but only the uncommitted session refers to them,
and it is lost with the driver. A journal keeps the session, and the names of the tasks whose writes it contains. There
is one per user, store and branch in the ``work-dir`` of a job, or one per user, store, branch and operation in the
user's cache folder. The file consists of:

1. one line of JSON: the operation, base snapshot and package versions, which must all match for a run to resume; the
   current step; its number of tasks, those that have ended, and the number of chunks that each of them has written;
2. the session, and the fork of it that tasks in the driver's process share, as Icechunk serialises them for workers;
3. a BLAKE2b digest of 1 and 2.

The file is replaced atomically, at intervals of at least `REST` times the duration of a save. It holds no code and no
credentials. But a session inlines chunks of up to 512 bytes: calls, and, in a ``work-dir``, **sample IDs**. So the file
is readable by its user only, and deleted after the commit. A journal in the cache folder is private: sample IDs, and
other arrays with one value per sample, or with texts and no variants, are written after it was last saved.
The content of a journal gets committed, so it is trusted only if no other user can have written it.
"""

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from vczstore.stores.base import Saved, Transaction
from vczstore.stores.locations import canonical, local_path

FORMAT = 3

MIN_CHUNKS, MIN_BYTES = 1_000, 100_000_000
"""A run that writes fewer chunks and fewer decoded bytes takes only seconds, so it keeps no journal in the cache."""

MAX_AGE = 14 * 86_400
"""Age in seconds after which a journal in the cache folder is deleted."""

REST = 50
"""Minimum interval between two saves, as a multiple of the time that a save takes: at most 2% of a job."""

_DIGEST = 32
"""Length of the digest in bytes."""

log = logging.getLogger("vczstore")


class Journal:
    """
    The journal of one run.

    Parameters
    ----------
    file
        Path of the file; None, the default, to keep no journal.
    about
        JSON-serialisable values that must match for another run to resume.
    private
        Whether it must not hold arrays with names of samples, such as `sample_id`.

    Attributes
    ----------
    file, about
        As the parameters; `file` becomes None if the journal cannot be written or resumed.
    restored
        Index of the step in which an interrupted run was stopped and this one resumes; -1 if it is not a resumed run.
    step, tasks
        Index of the current step, and its number of tasks by name of the Cubed operation.
    done
        Number of chunks written by each finished task of the current step: by name of the Cubed operation, then by
        coordinates of the task.
    """

    def __init__(self, file: Path | None = None, about: Mapping[str, Any] = {}, *, private: bool = False) -> None:
        self._private = private
        self.file, self.about = file, json.loads(json.dumps({"format": FORMAT, "private": private, **about}))
        self.restored, self.step = -1, 0
        self.done: dict[str, dict[tuple[int, ...], int]] = {}
        self.tasks: dict[str, int] = {}
        self._transaction: Transaction | None = None
        self._due = 0.0

    @classmethod
    def of(cls, url: str, branch: str | None, folder: str | None, about: Mapping[str, Any]) -> "Journal":
        """Return the journal of a store's branch in a folder; a disabled one if the folder is None or remote."""
        path = None if folder is None else local_path(folder)
        return cls(None if path is None else path / _name(url, branch), about)

    @classmethod
    def in_cache(cls, url: str, branch: str | None, what: str, about: Mapping[str, Any]) -> "Journal":
        """Return a private journal in the user's cache folder, for the operation `what` on a branch of a store."""
        folder = user_cache_path("vczstore") / "resume"
        _delete_stale(folder)
        return cls(folder / _name(url, branch, what), {**about, "what": what}, private=True)

    @property
    def is_private(self) -> bool:
        """Whether a journal is kept that must not hold sample IDs."""
        return self._private and self.file is not None

    def resume(self, transaction: Transaction) -> None:
        """Restore the writes of an interrupted run into a transaction, if the file is valid; else delete it."""
        if self.file is None:
            return
        if not transaction.is_resumable:
            self.file = None
            return
        self._transaction = transaction
        try:
            header, saved = self._read(self.file)
            transaction.restore(saved)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            why = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else error
            log.info("the run starts from the beginning: %s %s", self.file, why)
            self.delete()
            return
        self.restored = self.step = int(header["step"])
        self.tasks = dict(header["tasks"])
        self.done = {name: {tuple(coords): n for coords, n in tasks} for name, tasks in header["done"].items()}
        log.info("the run goes on with step %d, where %d chunks are written: %s", self.step + 1, self.chunks, self.file)

    @property
    def chunks(self) -> int:
        """The number of chunks written by the finished tasks of the current step."""
        return sum(n for tasks in self.done.values() for n in tasks.values())

    def begin(self, step: int, tasks: Mapping[str, int]) -> None:
        """Begin or resume a step, after its fork was made. If its tasks are not the recorded ones, all run."""
        if step != self.restored or tasks != self.tasks:
            self.step, self.done, self.tasks = step, {}, dict(tasks)
        self.save()

    def close(self) -> None:
        """Stop saving: later writes are not recorded."""
        self._transaction = None

    def record(self, task: tuple[str, tuple[int, ...]] | None, chunks: int) -> None:
        """Record that a task has ended and its writes were collected, and save if due. None is not recorded."""
        if self.file is None or task is None:
            return
        name, coords = task
        self.done.setdefault(name, {})[coords] = chunks
        if time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Write the file. If that fails, the journal is disabled, and the run goes on without it."""
        if self.file is None or self._transaction is None:
            return
        began = time.monotonic()
        saved = self._transaction.save()
        header = {
            "about": self.about,
            "step": self.step,
            "tasks": self.tasks,
            "done": {name: list(tasks.items()) for name, tasks in self.done.items()},
            "session": len(saved.session),
            "forked": saved.forked,
            "began": saved.began and saved.began.isoformat(),
        }
        try:
            self._write(self.file, json.dumps(header).encode() + b"\n", saved.session, saved.fork)
        except OSError as error:
            log.log(
                logging.INFO if self._private else logging.WARNING,
                "no journal is kept, so a run that is stopped starts from the beginning: %s (%s)",
                self.file,
                error.strerror,
            )
            self.delete()
            self.file = None
        now = time.monotonic()
        self._due = now + REST * (now - began)

    def delete(self) -> None:
        """Delete the file: its content is committed, or can no longer be."""
        if self.file is not None:
            for path in (self.file, _temporary(self.file)):
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    @staticmethod
    def _write(file: Path, *parts: bytes) -> None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = _temporary(file)
        new.unlink(missing_ok=True)
        digest = hashlib.blake2b(digest_size=_DIGEST)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as out:
            for part in parts:
                digest.update(part)
                out.write(part)
            out.write(digest.digest())
        new.replace(file)

    def _read(self, file: Path) -> tuple[dict[str, Any], Saved]:
        with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
            status = os.fstat(stream.fileno())
            is_ours = status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
            if not is_ours or not stat.S_ISREG(status.st_mode):
                raise ValueError("is not trusted: others than its user may have written it")
            content = stream.read()
        body, digest = content[:-_DIGEST], content[-_DIGEST:]
        if hashlib.blake2b(body, digest_size=_DIGEST).digest() != digest:
            raise ValueError("is damaged")
        head, _, sessions = body.partition(b"\n")
        try:
            header = json.loads(head)
            about, n = header["about"], header["session"]
            saved = Saved(sessions[:n], sessions[n:], header["forked"], datetime.fromisoformat(header["began"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError("is of another format") from error
        if about != self.about:
            raise ValueError("is of another job, of other versions, or of another state of the store")
        return header, saved


def _name(url: str, branch: str | None, what: str = "") -> str:
    """Return the file name of a journal: a hash of the user, the store, the branch and the operation."""
    key = f"{os.geteuid()} {canonical(url)}{f'#{branch}' if branch is not None else ''}{what and f' {what}'}"
    name = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return f"vczstore-{name}.journal"


def _delete_stale(folder: Path) -> None:
    """Delete the journals in a folder that are older than `MAX_AGE`."""
    with suppress(OSError):
        for path in folder.glob("vczstore-*.journal*"):
            if time.time() - path.stat().st_mtime > MAX_AGE:
                path.unlink(missing_ok=True)


def _temporary(file: Path) -> Path:
    return file.with_name(f"{file.name}.new")
