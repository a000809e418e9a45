"""Describe a job, before or after it has run, as a report (JSON) and as printed lines."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from plans.core.model import Plan, in_words
from vczstore.execution.results import Result
from vczstore.jobs.compile import CompiledJob, CompiledStep, versions
from vczstore.jobs.estimate import WITHOUT_CONVERSION, estimate
from vczstore.jobs.model import ExecutorSpec
from vczstore.jobs.report import Report, Step
from vczstore.jobs.results import JobResult
from vczstore.sizes import human_size
from vczstore.stores.locations import scheme


def _engine(executor: ExecutorSpec) -> str:
    """Return the name of an executor in ``prices.json``: for Lithops ``lithops-`` and its backend."""
    if executor.name != "lithops":
        return executor.name
    # Lithops' own configuration files are not read
    elsewhere = executor.options.keys() & {"config", "config-file"}
    backend = executor.options.get("backend", "" if elsewhere else "localhost")
    return f"lithops-{backend}".replace("_", "-")


def describe_job(compiled: CompiledJob, result: JobResult | None = None, error: str | None = None) -> Report:
    """
    Return the report of a job that was planned, has run, or has failed.

    Parameters
    ----------
    compiled
        The job.
    result
        The result of the run; None if it has not run, or failed before its commit.
    error
        The error message if it failed, even after its commit; else None.
    """
    status = "failed" if error is not None else "planned" if result is None else result.status
    tags = result.tags if result is not None else compiled.tags if error is None else ()
    results = {id(r.plan): r for r in result.results} if result is not None else {}
    began = min((t.start for r in results.values() for t in r.timeline), default=0.0)
    steps = [_describe_plan(step, plan, results.get(id(plan)), began) for step in compiled.steps for plan in step.plans]
    job = compiled.job
    workers, remote = job.max_workers or os.cpu_count() or 1, scheme(job.store.url) is not None
    for step in steps:
        step["projected_seconds"] = estimate([step], _engine(job.executor), workers=workers, remote=remote).seconds
    return {
        "job": {
            "id": compiled.id,
            "file": str(job.path),
            "store": compiled.store.label,
            "backend": compiled.store.backend,
            "executor": job.executor.name,
            "status": status,
            "started": datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds") if began else None,
            "seconds": sum(r.seconds for r in results.values()) if result is not None else None,
            "base": compiled.base,
            "snapshot": None if result is None else result.snapshot,
            "tags": list(tags),
            "branch": job.branch,
            "notes": list(compiled.notes),
            "then": [operation.called for operation in compiled.after],
            "after_lines": [line for done in (result.done if result else ()) for line in done.found.lines()],
            "after": [
                {"operation": done.operation.called, **done.found.as_dict()} for done in (result.done if result else ())
            ],
            "sources": [sources._asdict() for sources in compiled.found],
            "why_nothing": None if compiled.plans or compiled.tags or compiled.after else compiled.why_nothing,
            "atomic": compiled.store.atomic,
            "error": error,
        },
        "versions": versions(),
        "memory": {"allowed": compiled.memory.allowed, "reserved": compiled.memory.reserved},
        "steps": steps,
        "estimate": estimate(steps, _engine(job.executor), workers=workers, remote=remote).as_dict(),
    }


def _describe_plan(step: CompiledStep, plan: Plan, result: Result | None, began: float) -> Step:
    return {
        "operation": plan.operation,
        "summary": plan.summary,
        "notes": dict(plan.notes),
        "counts": dict(plan.counts),
        "sources": list(step.sources),
        "samples_before": step.samples_before,
        "samples_after": step.samples_after,
        "already_applied": step.already_applied,
        "arrays": len(plan.writes),
        "encoded_chunks": plan.encoded_chunks,
        "decoded_chunks": plan.decoded_chunks,
        "tasks": plan.tasks,
        "tasks_run": None if result is None else result.tasks,
        "chunks_written": None if result is None else result.chunks,
        "projected_mem": plan.projected_mem,
        "measured_mem": None if result is None else result.peak_mem,
        "bytes_read": plan.bytes_read,
        "bytes_written": plan.bytes_written,
        "encoded_bytes": None if result is None else result.encoded_bytes,
        "decoded_bytes": None if result is None else result.decoded_bytes,
        "get_requests": plan.chunks_read,
        "put_requests": plan.encoded_chunks + plan.decoded_chunks + len(plan.edits),
        "seconds": None if result is None else result.seconds,
        "timeline": [
            {
                "operation": f"{t.what} {plan.operation}",
                "start": t.start - began,
                "end": t.end - began,
                "peak_mem": t.peak_mem,
            }
            for t in (() if result is None else result.timeline)
        ],
    }


@dataclass(frozen=True)
class Described:
    """
    The description of a planned job, for printing.

    Attributes
    ----------
    report
        The report of `describe_job`.
    """

    report: Report

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        return dict(self.report)

    def lines(self) -> Iterator[str]:
        """Yield the lines that the command prints."""
        job = self.report["job"]
        visible = "in one commit" if job["atomic"] else "one by one, each safe to stop: plain Zarr has no transactions"
        branch = f"  branch {job['branch']}" if job["branch"] else ""
        yield f"{job['store']}{branch}  job {job['id']}, on {job['executor']}"
        yield f"  steps become visible {visible}"
        yield from (f"  {note}" for note in job["notes"])
        for i, step in enumerate(self.report["steps"], 1):
            yield from _lines_of(i, step)
        if job["then"]:
            yield f"then: {', '.join(job['then'])}"
        yield from (f"tag: {name}" for name in job["tags"])
        if not self.report["steps"] and not job["tags"] and not job["then"]:
            yield f"nothing to do: {job['why_nothing']}"
        elif (cost := self.report["estimate"]) is not None:
            dollars = "" if cost["dollars"] is None else f", ${cost['dollars']:.4f} at list prices of {cost['date']}"
            conversion = f", {WITHOUT_CONVERSION}" * (WITHOUT_CONVERSION in cost["assumptions"])
            yield f"estimate: {cost['seconds']:.1f} s{conversion}{dollars}"


@dataclass(frozen=True)
class DescribedSet:
    """
    The description of a planned job on a set of stores, for printing.

    Attributes
    ----------
    store
        The label of the set.
    parts
        The report of each part, by name.
    """

    store: str
    parts: Mapping[str, Report]

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        return {"store": self.store, "parts": {name: dict(report) for name, report in self.parts.items()}}

    def lines(self) -> Iterator[str]:
        """Yield the lines that the command prints."""
        yield f"{self.store}: {in_words({'parts': len(self.parts)})}"
        for report in self.parts.values():
            yield from Described(report).lines()


def _lines_of(i: int, step: Step) -> Iterator[str]:
    """Yield the lines that the command prints for step number `i`."""
    samples = f"{step['samples_before']:,} samples before, {step['samples_after']:,} after"
    yield f"{i}. {step['operation']}: {step['summary']}; {samples}"
    yield from (f"   {what:<9} {text}" for what, text in step["notes"].items())
    yield f"   chunks    {step['encoded_chunks']:,} copied as they are, {step['decoded_chunks']:,} encoded"
    yield f"   reads     at most {human_size(step['bytes_read'])} (decoded), {step['get_requests']:,} GET"
    yield f"   writes    at most {human_size(step['bytes_written'])} (decoded), {step['put_requests']:,} PUT"
    yield f"   tasks     {step['tasks']:,}, the largest is projected to need {human_size(step['projected_mem'])}"
