"""Jobs: several steps on one store, compiled once, run in one transaction, each done exactly once."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, assert_never, cast

import numpy as np

from plans.compilers.append import compile_in_stages, complete_append
from plans.compilers.recompute import compile_recompute
from plans.compilers.remove import compile_remove
from plans.compilers.update import compile_in_stages as update_in_stages
from plans.compilers.update import split_known
from plans.core.ledger import Ledger, removal_digest
from plans.core.memory import Memory
from plans.core.model import Plan
from plans.schema.layout import Fields, array_name
from plans.variants.harmonise import Rules
from plans.variants.stale import CURRENT, states
from vczstore.api import Options, refuse_same_place
from vczstore.errors import IncompatibleError, SampleError, StaleError, TagError, VczstoreError
from vczstore.execution.checkpoint import Journal
from vczstore.execution.engine import (
    REPLANS,
    Progress,
    Result,
    compile_stages,
    planning,
    replanned,
    run_plans,
    task_bytes,
)
from vczstore.jobs.estimate import estimate
from vczstore.jobs.model import (
    Append,
    ExecutorSpec,
    Harmonise,
    Job,
    Recompute,
    Remove,
    Tag,
    Update,
    expand_sources,
    load,
    read_samples,
)
from vczstore.jobs.report import Report, Step, make_folder, write_report
from vczstore.stores.base import Store, refuse_read_only
from vczstore.stores.icechunk import IcechunkStore
from vczstore.stores.locations import scheme
from vczstore.stores.lock import hold
from vczstore.stores.object_store import plain_errors
from vczstore.vcz.model import REMOVED, Vcz, positions_of
from vczstore.vcz.sample_ids import spelt_otherwise

type Status = Literal["done", "nothing to do"]


@dataclass(frozen=True)
class CompiledStep:
    """
    One step of a job, compiled against what the steps before it leave.

    Attributes
    ----------
    operation
        ``append``, ``update``, ``remove`` or ``recompute``.
    sources
        The batches that come in, as messages call them.
    plans
        What there is to do; nothing if it was done before.
    already_applied
        How many batches, lists of samples or lists of fields an earlier run has dealt with.
    samples_before, samples_after
        How many samples are present.
    """

    operation: str
    sources: tuple[str, ...]
    plans: tuple[Plan, ...]
    already_applied: int
    samples_before: int
    samples_after: int


@dataclass(frozen=True)
class CompiledJob:
    """
    A job compiled against one state of its store: one object that runs on any executor. See `compile_job`.

    Attributes
    ----------
    job
        What the file says.
    store
        The store.
    base
        The `Vcz.state` that it was compiled against.
    steps
        All steps but tags.
    tags
        What the job's snapshot is going to be called.
    notes
        What its steps have found, a line each, whether there is anything to do or not.
    id
        What tells this job from others: a digest of its steps, and of the states of its sources.
    memory
        What a task may use.
    """

    job: Job
    store: Store
    base: str
    steps: tuple[CompiledStep, ...]
    tags: tuple[str, ...]
    notes: tuple[str, ...]
    id: str
    memory: Memory

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans of all steps, in their order."""
        return tuple(plan for step in self.steps for plan in step.plans)

    @property
    def summary(self) -> str:
        """What there is to do, in words."""
        done = [f"{plan.operation} ({plan.summary})" for plan in self.plans]
        return ", ".join([*done, *(f"tag {name}" for name in self.tags)]) or "nothing to do"

    @cached_property
    def applied_in(self) -> str | None:
        """The snapshot in which an earlier run of this very job has left the store; None where none is known."""
        return next((s.id for s in self.store.history() if s.metadata.get("vczstore", {}).get("job") == self.id), None)

    def __repr__(self) -> str:
        return f"<CompiledJob {self.id} {self.store.label}: {self.summary}>"


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
    replans
        How often it was retried after a concurrent commit.
    """

    status: Status
    id: str
    store: str
    snapshot: str | None
    tags: tuple[str, ...]
    results: tuple[Result, ...]
    job: CompiledJob = field(repr=False, compare=False)
    replans: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "status": self.status,
            "job": self.id,
            "store": self.store,
            "snapshot": self.snapshot,
            "tags": list(self.tags),
            "replans": self.replans,
            "notes": list(self.job.notes),
            "steps": [result.as_dict() for result in self.results],
        }


# ---- from a file ----------------------------------------------------------------------------


def plan_job(file: str | Path, overrides: Sequence[str] = ()) -> CompiledJob:
    """
    Compile a job file. Nothing is written.

    Parameters
    ----------
    file
        The job file; ``-`` is standard input.
    overrides
        ``KEY=VALUE`` each, such as ``"executor=processes"``: they take the place of what the file says.

    Raises
    ------
    JobFileError
        If the file is no job.
    VczstoreError
        If a step cannot work.

    Examples
    --------
    >>> plan_job("nightly.yaml", ["executor=processes"])  # doctest: +SKIP
    <CompiledJob 5b0f... cohort.icechunk: append (1 source, 3 samples added), tag release-1>
    """
    with _keys_for_flags():
        return compile_job(load(file, overrides))


_FLAG = re.compile(
    r"--(?P<fields>drop|add)-field [\w.]+(?: --(?P=fields)-field [\w.]+)*"
    r"|--number (?P<number>[\w.]+=[RAG])"
    r"|--(?P<rule>new-variants|absent) (?P<value>\w+)"
    r"|--(?P<switch>allow-new-alleles)"
    r"|--(?P<harmonise>harmonise)\b"
)


@contextmanager
def _keys_for_flags() -> Iterator[None]:
    """Let errors name the keys of a job file where they name flags of the command line."""

    def key(match: re.Match[str]) -> str:
        if kind := match["fields"]:
            return f"{kind}-fields: [{', '.join(re.findall('-field ([^ ]+)', match[0]))}]"
        if match["number"]:
            return f"harmonise: {{numbers: [{match['number']}]}}"
        if match["rule"]:
            return f"harmonise: {{{match['rule']}: {match['value']}}}"
        return "harmonise: {allow-new-alleles: true}" if match["switch"] else "harmonise: true"

    try:
        yield
    except VczstoreError as error:
        told = _FLAG.sub(key, str(error))
        if told == str(error):
            raise
        raise type(error)(told) from error


def run_job(
    file: str | Path,
    overrides: Sequence[str] = (),
    *,
    wait: bool = False,
    report: str | Path | None = None,
    progress: Progress | None = None,
) -> JobResult:
    """
    Do what a job file says and no earlier run has done, in one transaction.

    Parameters
    ----------
    file, overrides
        As in `plan_job`.
    wait
        Wait while another job runs on the store.
    report
        A folder for ``report.json`` and ``report.html``.
    progress
        Told of every task that ends.

    Raises
    ------
    BusyError
        If another job runs on the store, and `wait` is False.
    StaleError
        If something else has changed the store while the job ran.
    VczstoreError
        If the file is no job, a step cannot work, a check finds something, or storage fails. Nothing has been
        committed then; on plain Zarr, the steps that were finished are done.
    """
    job = load(file, overrides)
    refuse_read_only("run", job.store.url)
    if report is not None:
        make_folder(Path(report))
    with _keys_for_flags(), hold(_options(job).store(job.store.url), wait=wait) as lock:

        def attempt() -> JobResult:
            compiled = compile_job(job)
            try:
                return run_compiled(compiled, progress=progress, before_commit=lock.check)
            except (VczstoreError, KeyboardInterrupt) as error:
                if report is not None:
                    write_report(Path(report), describe_job(compiled, error=str(error)))
                raise

        result, n = replanned(attempt, REPLANS, nullcontext)  # those who wait for the lock are not in the way
        result = replace(result, replans=n)
    if report is not None:
        write_report(Path(report), describe_job(result.job, result))
    return result


# ---- compiling ------------------------------------------------------------------------------


def compile_job(job: Job) -> CompiledJob:
    """
    Compile every step of a job against the state that the steps before it will leave. Nothing is written.

    Parameters
    ----------
    job
        What a job file says.

    Raises
    ------
    VczstoreError
        If a step cannot work.
    """
    with plain_errors(job.store.url), planning("run"):
        options = _options(job)
        memory = replace(options.memory, task_bytes=task_bytes(job.executor.name, job.executor.options))
        compiler = _Compiler(job.store.url, options.store(job.store.url), options, memory, _runs_on(job))
        for step in job.steps:
            match step:
                case Append():
                    compiler.append(compiler.find(expand_sources(step)), step)
                case Update():
                    compiler.update(compiler.find(expand_sources(step)), step)
                case Remove():
                    compiler.remove(read_samples(step), missing_ok=step.missing_ok)
                case Recompute():
                    compiler.recompute(step.fields)
                case Tag():
                    compiler.tag(step.name)
                case _:
                    assert_never(step)
        compiled = compiler.finish(job)
        for plan in compiled.plans:
            _ = plan.projected_mem  # raises if a task needs more memory than it is allowed
        return compiled


def _options(job: Job) -> Options:
    return Options(
        backend_storage=job.store.backend_storage,
        storage_options=job.store.storage_options,
        source_storage_options=job.source_storage_options,
        no_lock=job.store.no_lock,
        allowed_mem=job.allowed_mem,
        reserved_mem=job.reserved_mem,
        work_dir=job.work_dir,
    )


def _runs_on(job: Job, executor: str | None = None) -> dict[str, Any]:
    """What runs the tasks: what the job says, unless another executor is named."""
    return {
        "executor": executor or job.executor.name,
        "executor_options": job.executor.options if executor is None else None,
        "max_workers": job.max_workers,
    }


class _Compiler:
    """The state that the steps so far will leave, and what they are."""

    def __init__(self, url: str, place: Store, options: Options, memory: Memory, engine: Mapping[str, Any]) -> None:
        vcz = place.open()
        self.engine, self.alleles_added = engine, False
        self.url, self.place, self.vcz, self.options, self.memory = url, place, vcz, options, memory
        self.base, self.present = vcz.state, _present(vcz)
        self.ledger = Ledger.of(vcz)
        self.steps: list[CompiledStep] = []
        self.tags: list[str] = []
        self.notes: list[str] = []
        self.said: list[Any] = []
        """What the job's id is made of."""

    def find(self, sources: Sequence[str]) -> list[str]:
        """The sources that are there, each once: globs in object stores are expanded here, local ones have been."""
        return list(dict.fromkeys(url for source in sources for url in self.options.find(source, self.url)))

    def append(self, urls: Sequence[str], step: Append) -> None:
        """Samples come in; those of batches that have come in before are left alone."""
        sources, fresh = self._open("append", urls)
        harmonise, on_duplicate, fields = step.harmonise, step.on_duplicate, _fields(step)
        said = [] if harmonise is None else [harmonise.model_dump(mode="json")]
        said += [{"fields": [fields.drop, fields.add]}] if step.drop_fields or step.add_fields else []
        self.said.append(["append", on_duplicate, _states(sources), *said])
        plans: list[Plan] = []
        already_applied = len(sources) - len(fresh)
        pending = list(self.ledger.pending)
        stopped = sorted((s for s in fresh if s.identity in pending), key=lambda s: pending.index(s.identity))
        if stopped and all(len(split_known(self.vcz, s)[1]) == 0 for s in stopped):
            # a run was stopped after its samples had become visible
            self.ledger = self.ledger.completed()
            plan = complete_append(self.place, self.vcz, self.memory)
            plans.append(replace(plan, edits=(*plan.edits, self.ledger.edit(self.vcz.zarr_format))))
            fresh, stopped = [s for s in fresh if not self.ledger.has(s)], []
        for source in fresh:
            if self.ledger.knows(source) and on_duplicate == "error":
                raise IncompatibleError(
                    f"append: {source.label} has changed since it was appended; replace its samples with an update "
                    "step, or set on-duplicate: replace; on-duplicate: skip keeps the calls that the store has"
                )
        new = fresh if not stopped else [s for s in fresh if s.identity not in pending]
        # what was stopped comes first, and alone: its chunks lie where they belong already
        for group in (stopped, new):
            plans += self._bring_in(group, on_duplicate, harmonise, fields)
        self._add("append", sources, plans, already_applied)

    def _bring_in(
        self,
        group: Sequence[Vcz],
        on_duplicate: str,
        harmonise: Harmonise | None = None,
        fields: Fields = Fields(),
    ) -> list[Plan]:
        """Plans for batches that have not come in yet."""
        if not group:
            return []
        known, new = list[Vcz](), list(group)
        if on_duplicate != "error":
            split = [split_known(self.vcz, source) for source in group]
            new = [s.select(rest) for s, (_, rest) in zip(group, split, strict=True) if len(rest)]
            known = [s.select(there) for s, (there, _) in zip(group, split, strict=True) if len(there)]
        compiled: list[Callable[[], Plan]] = []
        if known and on_duplicate == "replace":
            compiled.append(lambda: self._update(known, fields))
        if new:
            compiled.append(lambda: self._append(new, harmonise, fields))
        plans = []
        for i, compile_plan in enumerate(compiled):
            plan = compile_plan()
            skipped = {source.identity for source in known if on_duplicate == "skip"}
            plans.append(self._recorded(plan, group, skipped) if i == len(compiled) - 1 else plan)
            self.vcz = plan.after
        return plans

    def _append(self, sources: Sequence[Vcz], harmonise: Harmonise | None, fields: Fields) -> Plan:
        if harmonise is not None and self.alleles_added:
            raise IncompatibleError(
                f"append: {sources[0].label} is to be harmonised with a store to which an earlier step of the job "
                "brings alleles, which nobody can look up before they are there; name the sources in one step"
            )
        said = None if harmonise is None else harmonise.model_dump(exclude={"drop_fields"}, exclude_none=True)
        rules = None if said is None else Rules(**said)
        stages = compile_in_stages(self.place, self.vcz, sources, self.memory, rules=rules, fields=fields)
        plan = compile_stages(stages, "append", self.place, **self.engine)
        self.alleles_added |= plan.counts.get("alleles added", 0) > 0
        return plan

    def _update(self, sources: Sequence[Vcz], fields: Fields) -> Plan:
        stages = update_in_stages(self.place, self.vcz, sources, self.memory, fields=fields)
        return compile_stages(stages, "update", self.place, **self.engine)

    def _recorded(self, plan: Plan, sources: Sequence[Vcz], partly: Collection[str] = ()) -> Plan:
        """The plan, and the ledger's knowledge of it; where a plan can be stopped half-way, that it has begun."""
        zarr_format = self.vcz.zarr_format
        is_update = plan.operation == "update"  # which is done again from its beginning
        begun = () if self.place.atomic or is_update else (self.ledger.begun(sources, partly).edit(zarr_format),)
        self.ledger = self.ledger.with_sources(sources, partly)
        return replace(
            plan, preparations=(*plan.preparations, *begun), edits=(*plan.edits, self.ledger.edit(zarr_format))
        )

    def update(self, urls: Sequence[str], step: Update) -> None:
        """Samples are replaced by those of other batches."""
        sources, fresh = self._open("update", urls)
        fields = _fields(step)
        said = [fields.drop] if fields.drop or fields.add else []
        said += [fields.add] if fields.add else []
        self.said.append(["update", step.insert, _states(sources), *said])
        plans: list[Plan] = []
        if fresh and step.insert:
            plans = self._bring_in(fresh, "replace", fields=fields)
        elif fresh:
            plan = self._update(fresh, fields)
            plans = [self._recorded(plan, fresh)]
            self.vcz = plan.after
        self._add("update", sources, plans, len(sources) - len(fresh))

    def remove(self, samples: Sequence[str], *, missing_ok: bool) -> None:
        """Samples are removed; a list that was removed before is not asked for again."""
        wanted = list(dict.fromkeys(samples))
        self.said.append(["remove", missing_ok, removal_digest(wanted)])
        positions, unknown = positions_of(self.vcz, wanted)
        known = wanted
        if unknown and (missing_ok or self.ledger.has_removal(wanted)):
            known = [str(sample) for sample in self.vcz.sample_ids[positions]]
            self._refuse_other_spellings(unknown)
            self.notes.append(f"remove: {len(unknown):,} of {len(wanted):,} sample IDs are not in the store")
        if not wanted and missing_ok:
            known = []
        plans: list[Plan] = []
        if known or not (unknown or missing_ok):
            plan = compile_remove(self.place, self.vcz, known, self.memory)
            self.ledger = self.ledger.with_removal(wanted)
            # the ledger first: a run that is killed before the IDs are blanked finds the samples there, and one that
            # is killed after that finds that their removal is known
            plans = [replace(plan, edits=(self.ledger.edit(self.vcz.zarr_format), *plan.edits))]
            self.vcz = plan.after
        self._add("remove", (), plans, int(not plans))

    def _refuse_other_spellings(self, unknown: Sequence[str]) -> None:
        """A sample is not left in the store because a list has it in quotes, or beside something else."""
        meant = spelt_otherwise(unknown, self.vcz.sample_ids[self.vcz.sample_ids != REMOVED].tolist())
        if meant:
            raise SampleError(
                f"remove: {self.place.label} has {len(meant):,} of the sample IDs in another spelling (quotes, "
                "columns, invisible characters, Unicode form); nothing was removed, "
                "write them as vcztools query -l does"
            )

    def recompute(self, fields: Sequence[str]) -> None:
        """INFO fields are computed, unless they are those of the samples that are there."""
        self.said.append(["recompute", sorted(fields)])
        known = states(self.vcz)
        plans: list[Plan] = []
        if any(known.get(field) != CURRENT for field in fields):
            plan = compile_recompute(self.place, self.vcz, fields, self.memory)
            plans, self.vcz = [plan], plan.after
        self._add("recompute", (), plans, int(not plans))

    def tag(self, name: str) -> None:
        """The job's snapshot gets a name."""
        tags = self.place.tags()
        if not isinstance(self.place, IcechunkStore):
            raise TagError(
                f"tag: {self.place.label} is plain Zarr, which has no tags; vczstore copy-store-to-icechunk "
                f"{self.place.label} NEW_STORE makes a store that has, or leave the step out"
            )
        self.said.append(["tag", name])
        if name not in tags:
            self.tags.append(name)
        elif any(step.plans for step in self.steps):
            raise TagError(
                f"tag: {name!r} exists already, on snapshot {tags[name]}, and this job changes the store; "
                "give the step another name, such as one with a date: release-${DATE:-draft}"
            )

    def finish(self, job: Job) -> CompiledJob:
        """All of it."""
        text = json.dumps(self.said, sort_keys=True).encode()
        return CompiledJob(
            job=job,
            store=self.place,
            base=self.base,
            steps=tuple(self.steps),
            tags=tuple(self.tags),
            notes=tuple(self.notes),
            id=hashlib.blake2b(text, digest_size=12).hexdigest(),
            memory=self.memory,
        )

    def _open(self, operation: str, urls: Sequence[str]) -> tuple[list[Vcz], list[Vcz]]:
        """All sources of a step, and those that have not come in."""
        refuse_same_place(operation, self.url, urls)
        sources = self.options.sources(self.url, urls)
        entirely = operation == "update"
        fresh = [source for source in sources if not self.ledger.has(source, entirely=entirely)]
        self.notes.append(f"{operation}: {len(sources):,} sources found, {len(fresh):,} new")
        return sources, fresh

    def _add(self, operation: str, sources: Sequence[Vcz], plans: Sequence[Plan], already_applied: int) -> None:
        labels, before = tuple(source.label for source in sources), self.present
        self.present = _present(self.vcz) if plans else before
        self.steps.append(CompiledStep(operation, labels, tuple(plans), already_applied, before, self.present))


# ---- reporting ------------------------------------------------------------------------------


def _engine(executor: ExecutorSpec) -> str:
    """What the price list calls an executor: Lithops costs what its backend does."""
    if executor.name != "lithops":
        return executor.name
    # what a configuration of Lithops' own says is not looked at
    elsewhere = executor.options.keys() & {"config", "config-file"}
    backend = executor.options.get("backend", "" if elsewhere else "localhost")
    return f"lithops-{backend}".replace("_", "-")


def describe_job(compiled: CompiledJob, result: JobResult | None = None, error: str | None = None) -> Report:
    """
    A job for people and machines: what it will do, or what it has done.

    Parameters
    ----------
    compiled
        The job.
    result
        What running it has done; None before, and if it failed.
    error
        Why it failed.
    """
    status = "failed" if error else "planned" if result is None else result.status
    results = {id(r.plan): r for r in result.results} if result is not None else {}
    began = min((t.start for r in results.values() for t in r.timeline), default=0.0)
    steps = [_describe_plan(step, plan, results.get(id(plan)), began) for step in compiled.steps for plan in step.plans]
    job = compiled.job
    workers, remote = job.max_workers or os.cpu_count() or 1, scheme(job.store.url) is not None
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
            "tags": list(compiled.tags),
            "notes": list(compiled.notes),
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


def versions() -> dict[str, str]:
    """What a commit and a report say of the software."""
    return {package: version(package) for package in ("vczstore", "cubed", "icechunk", "numpy", "zarr")}


# ---- running --------------------------------------------------------------------------------


def run_compiled(
    compiled: CompiledJob,
    *,
    executor: str | None = None,
    progress: Progress | None = None,
    before_commit: Callable[[], None] | None = None,
) -> JobResult:
    """
    Run a job that is compiled: on Icechunk in one commit, on plain Zarr step by step.

    On Icechunk, and if the job has a ``work-dir`` on this machine, it goes on where a run of it was stopped, whatever
    stopped it: chunks that were written are not written again, unless the store, a source, the job or a version has
    changed since, or garbage was collected. On plain Zarr the step in which a run was stopped is done again.

    Parameters
    ----------
    compiled
        From `compile_job`.
    executor
        What runs the tasks; what the job says by default.
    progress
        Told of every task that ends.
    before_commit
        Called when everything is written, and may still refuse.

    Raises
    ------
    StaleError
        If the store has changed since the job was compiled.
    VczstoreError
        If a check finds something, or storage fails.
    """
    plans, job, snapshot = compiled.plans, compiled.job, None
    journal = _journal(compiled)
    results: list[Result] = []
    if plans:
        metadata = {
            "operation": "run",
            "job": compiled.id,
            "steps": [{"operation": plan.operation, **plan.counts} for plan in plans],
            "versions": versions(),
        }
        try:
            results = run_plans(
                plans,
                f"run: {', '.join(f'{plan.operation} ({plan.summary})' for plan in plans)}",
                metadata,
                **_runs_on(job, executor),
                progress=progress,
                before_commit=before_commit,
                journal=journal,
            )
        except StaleError:
            journal.delete()
            raise
        snapshot = results[-1].snapshot
    journal.delete()  # of a run that was stopped after its commit, too
    with plain_errors(compiled.store.label):
        if not plans and isinstance(compiled.store, IcechunkStore):
            snapshot = compiled.applied_in or compiled.store.head
        for name in compiled.tags:
            cast("IcechunkStore", compiled.store).create_tag(name, snapshot)
    return JobResult(
        status="done" if plans or compiled.tags else "nothing to do",
        id=compiled.id,
        store=compiled.store.label,
        snapshot=snapshot,
        tags=compiled.tags,
        results=tuple(results),
        job=compiled,
    )


def _journal(compiled: CompiledJob) -> Journal:
    """Where a run of the job that is stopped leaves what it has written; nowhere on plain Zarr."""
    about = {
        "job": compiled.id,
        "base": compiled.base,
        "plans": [plan.writing_tasks for plan in compiled.plans],
        "versions": versions(),
    }
    folder = compiled.job.work_dir if isinstance(compiled.store, IcechunkStore) else None
    return Journal.of(compiled.job.store.url, folder, about)


def _fields(step: Append | Update) -> Fields:
    harmonise = step.harmonise if isinstance(step, Append) else None
    drop = [*step.drop_fields, *(harmonise.drop_fields if harmonise is not None else ())]
    return Fields(tuple(map(array_name, drop)), tuple(map(array_name, step.add_fields)))


def _states(sources: Sequence[Vcz]) -> list[tuple[str, str]]:
    return [(source.identity, source.stamp) for source in sources]


def _present(vcz: Vcz) -> int:
    return int(np.count_nonzero(vcz.sample_ids != REMOVED))
