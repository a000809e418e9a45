"""The results of jobs, on one store or a set of stores."""

from collections.abc import Iterator, Mapping, Sequence
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
    The result of a job on one store.

    Attributes
    ----------
    status
        ``done``; or ``nothing to do`` if there was nothing left to do, including exports and cleaning up.
    id, store
        The job's id, and the label of the store.
    snapshot
        The last snapshot that the job committed, or that in which it was applied earlier; None on plain Zarr.
    tags
        The tags that were made.
    results
        The result of each plan.
    job
        The compiled job.
    done
        The results of operations after the commit: checks, publishing, cleaning up.
    retries
        The number of retries after concurrent commits.
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

    @classmethod
    def of(cls, job: CompiledJob, results: Sequence[Result], tags: tuple[str, ...] = ()) -> "JobResult":
        """Return the result after the commit of a job, which made `tags` as well."""
        status: Status = "done" if results or tags else "nothing to do"
        snapshot = results[-1].snapshot if results else job.applied_in or job.store.head
        return cls(status, job.id, job.store.label, snapshot, tags, tuple(results), job)

    def with_done(self, done: Done) -> "JobResult":
        """Return the result with the outcome of an operation after the commit added."""
        status: Status = self.status if done.unchanged else "done"
        return replace(self, status=status, snapshot=self._snapshot_after(done), done=(*self.done, done))

    def _snapshot_after(self, done: Done) -> str | None:
        """
        Return the job's last snapshot after an operation, which may have committed one.

        Commits by operations that clean up are on main, so they count only if the job has no branch or publishes it.
        """
        is_on_main = self.job.job.branch is None or any(d.operation.phase == PUBLISHES for d in self.done)
        commits = done.operation.phase == OWN_COMMIT or (done.operation.phase == CLEANS and is_on_main)
        return getattr(done.found, "snapshot", None) or self.snapshot if commits else self.snapshot

    def with_tags(self, *tags: str) -> "JobResult":
        """Return the result with tags added."""
        return replace(self, status="done" if tags else self.status, tags=(*self.tags, *tags))

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        return {
            "status": self.status,
            "job": self.id,
            "store": self.store,
            "snapshot": self.snapshot,
            "tags": list(self.tags),
            "retries": self.retries,
            "notes": list(self.job.notes),
            "sources": [sources._asdict() for sources in self.job.found],
            "steps": [result.as_dict() for result in self.results],
            "branch": self.job.job.branch,
            "after": [{"operation": done.operation.called, **done.found.as_dict()} for done in self.done],
        }

    def lines(self) -> Iterator[str]:
        """Yield the lines that the command prints."""
        branch = f", branch {self.job.job.branch}" if self.job.job.branch is not None else ""
        at, head = f", snapshot {self.snapshot}" if self.snapshot else "", f"job {self.id} on {self.store}{branch}:"
        yield from self.job.notes
        if self.status == "nothing to do":
            for done in self.done:
                yield from done.found.lines()
            yield f"{head} {self.job.why_nothing}{at}"
            return
        for result in self.results:
            resumed = f", {result.resumed_chunks:,} chunks by a run that was stopped" if result.resumed_chunks else ""
            yield f"{result.operation}: {result.plan.summary} in {result.seconds:.2f} s{resumed}"
            yield from (f"  {what:<7} {text}" for what, text in result.notes.items())
        for done in self.done:
            yield from done.found.lines() if done.operation.phase < NAMES else ()
        yield from (f"tag: {name}" for name in self.tags)
        for done in self.done:
            yield from done.found.lines() if done.operation.phase > NAMES else ()
        yield f"{head} done{at}"


@dataclass(frozen=True)
class SetJobResult:
    """
    The result of a job on a set of stores.

    Attributes
    ----------
    status
        ``done``, or ``nothing to do`` if earlier runs have done all of it.
    store
        The label of the set.
    parts
        The result of each part, by name.
    completed
        The parts in which this run completed what an interrupted run had applied to others only.
    retries
        The number of retries after concurrent commits.
    """

    status: Status
    store: str
    parts: Mapping[str, JobResult]
    completed: tuple[str, ...] = ()
    retries: int = 0

    def with_done(self, done: Done) -> "SetJobResult":
        """Return the result with the outcomes of an operation after the commits added to the parts."""
        found = done.found.parts if isinstance(done.found, FoundInParts | SetResult) else {}
        parts = {
            name: result.with_done(Done(done.operation, found[name])) if name in found else result
            for name, result in self.parts.items()
        }
        return replace(self, status=self.status if done.unchanged else "done", parts=parts)

    def with_tags(self, *tags: str) -> "SetJobResult":
        """Return the result with tags added to all parts."""
        parts = {name: result.with_tags(*tags) for name, result in self.parts.items()}
        return replace(self, status="done" if tags else self.status, parts=parts)

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        return {
            "status": self.status,
            "store": self.store,
            "completed": list(self.completed),
            "retries": self.retries,
            "parts": {name: result.as_dict() for name, result in self.parts.items()},
        }

    def lines(self) -> Iterator[str]:
        """Yield the lines that the command prints."""
        if self.completed:
            yield f"completed what was stopped: {', '.join(self.completed)}"
        for result in self.parts.values():
            yield from result.lines()
        yield f"job on {self.store}: {self.status} in {in_words({'parts': len(self.parts)})}"
