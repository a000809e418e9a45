"""What a job has done."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from vczstore.execution.results import Result
from vczstore.jobs.compile import CompiledJob

type Status = Literal["done", "nothing to do"]


@dataclass(frozen=True)
class JobResult:
    """
    What a job has done.

    Attributes
    ----------
    status
        ``done``, or ``nothing to do`` if earlier runs have done it all.
    id, store
        Which job, and on which store.
    snapshot
        The new snapshot, or that in which the job was applied before; None on plain Zarr.
    tags
        The tags that were made.
    results
        What each plan has done.
    job
        What was run.
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
    retries: int = 0

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
        }

    def lines(self) -> Iterator[str]:
        """What the command prints."""
        at, head = f", snapshot {self.snapshot}" if self.snapshot else "", f"job {self.id} on {self.store}:"
        yield from self.job.notes
        if self.status == "nothing to do":
            yield f"{head} {self.job.why_nothing}{at}"
            return
        for done in self.results:
            before = f", {done.resumed_chunks:,} chunks by a run that was stopped" if done.resumed_chunks else ""
            yield f"{done.operation}: {done.plan.summary} in {done.seconds:.2f} s{before}"
            yield from (f"  {what:<7} {text}" for what, text in done.notes.items())
        yield from (f"tag: {name}" for name in self.tags)
        yield f"{head} done{at}"
