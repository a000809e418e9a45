"""What a run has written before its commit, kept in a file, so that one whose driver died is continued from there.

On Icechunk the chunks that tasks have written lie in the repository, but only the session that is going to be committed
knows of them, and it dies with the driver. A journal keeps it, together with the names of the tasks whose chunks it
knows. There is one for each branch of a store and user, in a job's ``work-dir``, or for what is done there in the
user's cache folder. The file is:

1. one line of JSON: what is done, against which snapshot, by which versions (all have to be the same for a run to go
   on); the step that is being done; how many tasks it has, which have ended, and how many chunks each has written;
2. the session, and the fork of it that tasks of the driver's process share, as Icechunk serialises them for workers;
3. a BLAKE2b digest of all that.

It is written whole, beside its place, and renamed: there is the one before or the one after. How often follows from how
long that takes (`REST`). Nothing in it is code, and no credentials are. But a session holds what is not worth an object
of its own, chunks of up to 512 bytes: calls, and in a ``work-dir`` **sample IDs**. So only its user may read the file,
and it is deleted with the commit. One in the cache folder is private: sample IDs, and all else that is
of samples alone, are written after it was last saved.
What it says is committed, so it counts only if no one else can have written it.
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

from vczstore.stores.base import Resumable, Saved, Transaction
from vczstore.stores.locations import local_path, parse, real_path

FORMAT = 3

MIN_CHUNKS, MIN_BYTES = 1_000, 100_000_000
"""A run that writes fewer chunks and fewer bytes, counted decoded, takes some seconds; it keeps no journal in the cache
folder, since that takes a few hundredths of one."""

MAX_AGE = 14 * 86_400
"""After so many seconds a journal in the cache folder is deleted."""

REST = 50
"""After the file was written comes a rest of so many times what that took: some two percent of a job."""

_DIGEST = 32
"""Bytes."""

log = logging.getLogger("vczstore")


class Journal:
    """
    The journal of one run of a job.

    Parameters
    ----------
    file
        Where it is; None to keep none.
    about
        What has to be the same for another run to go on, for JSON.
    private
        Whether it may hold nothing that is of samples alone, such as their IDs.

    Attributes
    ----------
    restored
        The step in which another run was stopped, and with which this one goes on; -1 if it starts from the beginning.
    done
        How many chunks each task of the present step has written that has ended: by its coordinates, for each
        operation by name.
    """

    def __init__(self, file: Path | None, about: Mapping[str, Any], *, private: bool = False) -> None:
        self._private = private
        self.file, self.about = file, json.loads(json.dumps({"format": FORMAT, "private": private, **about}))
        self.restored, self.step = -1, 0
        self.done: dict[str, dict[tuple[int, ...], int]] = {}
        self.tasks: dict[str, int] = {}
        self._transaction: Resumable | None = None
        self._due = 0.0

    @classmethod
    def of(cls, url: str, branch: str | None, folder: str | None, about: Mapping[str, Any]) -> "Journal":
        """The journal of a branch of a store on Icechunk; none is kept unless the folder is on this machine."""
        path = None if folder is None else local_path(folder)
        return cls(None if path is None else path / _name(url, branch), about)

    @classmethod
    def in_cache(cls, url: str, branch: str | None, what: str, about: Mapping[str, Any]) -> "Journal":
        """A private one in the user's cache folder, for one thing that is done to a branch of a store on Icechunk."""
        folder = user_cache_path("vczstore") / "resume"
        _delete_stale(folder)
        return cls(folder / _name(url, branch, what), {**about, "what": what}, private=True)

    @property
    def is_private(self) -> bool:
        """Whether one is kept that may hold no sample IDs."""
        return self._private and self.file is not None

    def resume(self, transaction: Transaction) -> None:
        """Put a transaction into the state in which another run of the job has left its own, if there was one."""
        if self.file is None:
            return
        self._transaction = transaction.resumable
        if self._transaction is None:
            self.file = None
            return
        try:
            said, saved = self._read(self.file)
            self._transaction.restore(saved)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            why = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else error
            log.info("the run starts from the beginning: %s %s", self.file, why)
            self.delete()
            return
        self.restored = self.step = int(said["step"])
        self.tasks = dict(said["tasks"])
        self.done = {name: {tuple(coords): n for coords, n in tasks} for name, tasks in said["done"].items()}
        log.info("the run goes on with step %d, where %d chunks are written: %s", self.step + 1, self.chunks, self.file)

    @property
    def chunks(self) -> int:
        """How many chunks the tasks of the present step have written that have ended."""
        return sum(n for tasks in self.done.values() for n in tasks.values())

    def begin(self, step: int, tasks: Mapping[str, int]) -> None:
        """A step begins, or goes on: its fork is made. Tasks that are cut otherwise than those before are all done."""
        if step != self.restored or tasks != self.tasks:
            self.step, self.done, self.tasks = step, {}, dict(tasks)
        self.save()

    def close(self) -> None:
        """Save nothing of what follows."""
        self._transaction = None

    def record(self, task: tuple[str, tuple[int, ...]] | None, chunks: int) -> None:
        """A task has ended, and what it has written was collected. One without a name will be done again."""
        if self.file is None or task is None:
            return
        name, coords = task
        self.done.setdefault(name, {})[coords] = chunks
        if time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Write the file. A job does not fail because it has no journal."""
        if self.file is None or self._transaction is None:
            return
        began = time.monotonic()
        saved = self._transaction.save()
        said = {
            "about": self.about,
            "step": self.step,
            "tasks": self.tasks,
            "done": {name: list(tasks.items()) for name, tasks in self.done.items()},
            "session": len(saved.session),
            "forked": saved.forked,
            "began": saved.began and saved.began.isoformat(),
        }
        try:
            self._write(self.file, json.dumps(said).encode() + b"\n", saved.session, saved.fork)
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
        """All is committed, or none of it can be."""
        if self.file is not None:
            for path in (self.file, _beside(self.file)):
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    @staticmethod
    def _write(file: Path, *parts: bytes) -> None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = _beside(file)
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
            said = json.loads(head)
            about, n = said["about"], said["session"]
            saved = Saved(sessions[:n], sessions[n:], said["forked"], datetime.fromisoformat(said["began"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError("is of another format") from error
        if about != self.about:
            raise ValueError("is of another job, of other versions, or of another state of the store")
        return said, saved


def _name(url: str, branch: str | None, what: str = "") -> str:
    """The name of the file of a branch of a store, of what is done to it, and of a user; it shows none of these."""
    address = parse(url)
    store = address.url if address.path is None else str(real_path(address.path))
    whose = f"{os.geteuid()} {store}{f'#{branch}' if branch is not None else ''}{what and f' {what}'}"
    name = hashlib.blake2b(whose.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return f"vczstore-{name}.journal"


def _delete_stale(folder: Path) -> None:
    """Delete what runs have left that were never run again."""
    with suppress(OSError):
        for path in folder.glob("vczstore-*.journal*"):
            if time.time() - path.stat().st_mtime > MAX_AGE:
                path.unlink(missing_ok=True)


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.new")
