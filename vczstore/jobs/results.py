"""What a job has done."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from plans.core.model import in_words
from vczstore.execution.operations import CLEANS, NAMES, OWN_COMMIT, PUBLISHES
from vczstore.execution.results import FoundInParts, Result, SetResult
from vczstore.jobs.afterwards import Done
from vczstore.jobs.compile import CompiledJob

type Status = Literal["done", "nothing to do"]


@dataclass(frozen=True)
class JobResult:
    """
    What a job has done.

    Attributes
    ----------
    status
        ``done``, or ``nothing to do`` if earlier runs have done it all, exports and cleaning up included.
    id, store
        Which job, and on which store.
    snapshot
        The last snapshot that the job has left, or that in which it was applied before; None on plain Zarr.
    tags
        The tags that were made.
    results
        What each plan has done.
    job
        What was run.
    done
        What was done after the commit: checks, publishing, cleaning up.
    retries
        How often it was retried after a concurrent commit.
    """

    status: Status
    id: str
    store: str
    snapshot: str | None
    tags: tuple[str, ...]
    results: tuple[Result, ...]
    job: CompiledJob = field(repr=False, compare=False)
    done: tuple[Done, ...] = ()
    retries: int = 0

    def with_done(self, done: Done) -> "JobResult":
        """The same once an operation that follows the commit is done."""
        status: Status = self.status if done.unchanged else "done"
        return replace(self, status=status, snapshot=self._left_by(done), done=(*self.done, done))

    def _left_by(self, done: Done) -> str | None:
        """The job's snapshot once an operation is done; one that cleans up works on main."""
        is_on_main = self.job.job.branch is None or any(one.operation.phase == PUBLISHES for one in self.done)
        has_left = done.operation.phase == OWN_COMMIT or (done.operation.phase == CLEANS and is_on_main)
        return getattr(done.found, "snapshot", None) or self.snapshot if has_left else self.snapshot

    def with_tags(self, *tags: str) -> "JobResult":
        """The same once it has got tags."""
        return replace(self, status="done" if tags else self.status, tags=(*self.tags, *tags))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "status": self.status,
            "job": self.id,
            "store": self.store,
            "snapshot": self.snapshot,
            "tags": list(self.tags),
            "retries": self.retries,
            "notes": list(self.job.notes),
            "sources": [one._asdict() for one in self.job.found],
            "steps": [result.as_dict() for result in self.results],
            "branch": self.job.job.branch,
            "after": [{"operation": one.operation.called, **one.found.as_dict()} for one in self.done],
        }

    def lines(self) -> Iterator[str]:
        """What the command prints."""
        branch = f", branch {self.job.job.branch}" if self.job.job.branch is not None else ""
        at, head = f", snapshot {self.snapshot}" if self.snapshot else "", f"job {self.id} on {self.store}{branch}:"
        yield from self.job.notes
        if self.status == "nothing to do":
            for one in self.done:
                yield from one.found.lines()
            yield f"{head} {self.job.why_nothing}{at}"
            return
        for done in self.results:
            before = f", {done.resumed_chunks:,} chunks by a run that was stopped" if done.resumed_chunks else ""
            yield f"{done.operation}: {done.plan.summary} in {done.seconds:.2f} s{before}"
            yield from (f"  {what:<7} {text}" for what, text in done.notes.items())
        for one in self.done:
            yield from one.found.lines() if one.operation.phase < NAMES else ()
        yield from (f"tag: {name}" for name in self.tags)
        for one in self.done:
            yield from one.found.lines() if one.operation.phase > NAMES else ()
        yield f"{head} done{at}"


@dataclass(frozen=True)
class SetJobResult:
    """
    What a job has done to a set of stores.

    Attributes
    ----------
    status
        ``done``, or ``nothing to do`` if earlier runs have done it all.
    store
        What the set is called.
    parts
        What was done to each part, by its name.
    completed
        The parts that lacked what an earlier run of the job had done to the others.
    retries
        How often it was retried after a concurrent commit.
    """

    status: Status
    store: str
    parts: Mapping[str, JobResult]
    completed: tuple[str, ...] = ()
    retries: int = 0

    def with_done(self, done: Done) -> "SetJobResult":
        """The same once an operation that follows the commits is done."""
        found = done.found.parts if isinstance(done.found, FoundInParts | SetResult) else {}
        parts = {
            name: one.with_done(Done(done.operation, found[name])) if name in found else one
            for name, one in self.parts.items()
        }
        return replace(self, status=self.status if done.unchanged else "done", parts=parts)

    def with_tags(self, *tags: str) -> "SetJobResult":
        """The same once all parts have got tags."""
        parts = {name: one.with_tags(*tags) for name, one in self.parts.items()}
        return replace(self, status="done" if tags else self.status, parts=parts)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "status": self.status,
            "store": self.store,
            "completed": list(self.completed),
            "retries": self.retries,
            "parts": {name: one.as_dict() for name, one in self.parts.items()},
        }

    def lines(self) -> Iterator[str]:
        """What the command prints."""
        if self.completed:
            yield f"completed what was stopped: {', '.join(self.completed)}"
        for one in self.parts.values():
            yield from one.lines()
        yield f"job on {self.store}: {self.status} in {in_words({'parts': len(self.parts)})}"
