"""Compile a job: each step against the state that earlier steps will leave, skipping what is already applied."""

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import cached_property, singledispatchmethod
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from plans.append import Append
from plans.compact import Compact
from plans.compilers.append import complete_append
from plans.compilers.remove import compile_completable
from plans.compilers.update import split_known
from plans.core.ledger import Ledger, removal_digest, step_digest
from plans.core.memory import Memory
from plans.core.model import Compiling, Plan, unknown_ids
from plans.core.withdrawn import Withdrawn, counting_left_out, without_returning
from plans.export import Export
from plans.gc import Gc
from plans.maintenance.history import open_at
from plans.maintenance.purge import refuse_pins
from plans.publish import Publish
from plans.purge import Purge
from plans.recompute import Recompute
from plans.regrid import Regrid
from plans.remove import Remove
from plans.schema import provenance
from plans.tag import Tag
from plans.update import Update
from plans.variants.stale import CURRENT, states
from vczstore.configuration.yaml_file import one_line
from vczstore.declarations import declared
from vczstore.errors import IncompatibleError, JobFileError, NotAStoreError, TagError, UnsuitableError
from vczstore.execution.checkpoint import Journal
from vczstore.execution.conversions import Conversions
from vczstore.execution.engine import compile_plan, planning, refuse_same_place, writes_much
from vczstore.execution.naming import naming
from vczstore.execution.operations import CHECKS, IN_COMMIT, OWN_COMMIT, PUBLISHES, Edit, Operation
from vczstore.execution.options import Options
from vczstore.execution.results import Run
from vczstore.execution.sets.members import Samples
from vczstore.execution.sources import find_vcf, open_sources
from vczstore.execution.workers import Workers
from vczstore.jobs.model import Job
from vczstore.jobs.step_inputs import expand_sources, names_one, read_samples
from vczstore.jobs.steps import StepModel
from vczstore.stores.base import Location, Store
from vczstore.stores.locations import is_url, local_path
from vczstore.stores.object_store import plain_errors
from vczstore.vcf.conversion import Layout
from vczstore.vcf.files import VcfFile
from vczstore.vcz.model import BATCH, REMOVED, Batch, Vcz, positions_of, refuse_other_spellings

if TYPE_CHECKING:
    from vczstore.stores.icechunk_branches import IcechunkBranches


@dataclass(frozen=True)
class CompiledStep:
    """
    One step of a job, compiled against the state that the steps before it leave.

    Attributes
    ----------
    operation
        The name of the operation, such as ``append``.
    sources
        The labels of the step's batches.
    plans
        The plans to run; empty if there is nothing to do.
    already_applied
        The number of batches that earlier runs have applied; for a step without batches, 1 or 0.
    samples_before, samples_after
        The number of samples, without removed ones.
    """

    operation: str
    sources: tuple[str, ...]
    plans: tuple[Plan, ...]
    already_applied: int
    samples_before: int
    samples_after: int


class FoundSources(NamedTuple):
    """The sources that a glob of a step matches, or all of its plain paths (then `source` is empty)."""

    operation: str
    source: str
    found: tuple[str, ...]
    new: int

    @property
    def line(self) -> str:
        """The number of sources, and of new ones among them, for messages."""
        count = f"{one_line(self.source)}: {len(self.found):,} found" if self.source else f"{len(self.found):,} named"
        return f"{self.operation}: {count}, {self.new:,} new"


@dataclass(frozen=True)
class CompiledJob:
    """
    A job compiled against one state of its store by `compile_job`; runs on any executor.

    Attributes
    ----------
    job
        The parsed job file.
    base
        The `Vcz.state` of the store that it was compiled against.
    steps
        The steps that edit the store within the job's commit.
    tags
        The names of the tags to make on the job's snapshot.
    notes
        Messages of its steps, a line each, printed even if there is nothing to do.
    found
        The sources that the paths and globs of its steps name.
    after
        The operations to run after the commit, in order.
    id
        Identifier of the job: a digest of its steps, and of the states of its sources.
    memory
        The memory limits of a task.
    samples
        The samples before and after the job; they have to be the same in all parts of a set.
    """

    job: Job
    store: Store
    base: str
    steps: tuple[CompiledStep, ...]
    tags: tuple[str, ...]
    notes: tuple[str, ...]
    found: tuple[FoundSources, ...]
    after: tuple[Operation, ...]
    id: str
    memory: Memory
    samples: tuple[Samples, Samples]

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans of all steps, in their order."""
        return tuple(plan for step in self.steps for plan in step.plans)

    @property
    def summary(self) -> str:
        """The plans, tags and later operations of the job, for messages."""
        plans = [f"{plan.operation} ({plan.summary})" for plan in self.plans]
        afterwards = [operation.called for operation in self.after]
        return ", ".join([*plans, *(f"tag {name}" for name in self.tags), *afterwards]) or "nothing to do"

    @property
    def why_nothing(self) -> str:
        """The reason why there is nothing to do, for messages; undefined if there is something."""
        if self.steps and not any(step.already_applied for step in self.steps):
            return "no source or sample that its steps name was found"
        return "what was found is already applied" if any(not s.found for s in self.found) else "already applied"

    @cached_property
    def applied_in(self) -> str | None:
        """The snapshot that an earlier run of the same job committed; None if the history has none."""
        commits = ((s.id, s.metadata.get("vczstore", {})) for s in self.store.history.snapshots())
        return next((snapshot for snapshot, metadata in commits if metadata.get("job") == self.id), None)

    @property
    def history(self) -> tuple[str, dict[str, Any]]:
        """The message and metadata of its commit."""
        return f"run: {', '.join(f'{plan.operation} ({plan.summary})' for plan in self.plans)}", {
            "operation": "run",
            "job": self.id,
            "steps": [{"operation": plan.operation, **plan.counts} for plan in self.plans],
            "versions": versions(),
        }

    @property
    def journal(self) -> Journal:
        """Its journal: in its local ``work-dir``, else in the cache, or a disabled one if not worthwhile."""
        job, url = self.job, self.job.store.url
        about = {"job": self.id, "base": self.base, "versions": versions(), "allowed_mem": job.allowed_mem}
        if job.work_dir is not None and local_path(job.work_dir) is not None:
            return Journal.of(url, job.branch, job.work_dir, about)
        if not (job.resume and self.store.atomic and writes_much(self.plans)):
            return Journal()
        return Journal.in_cache(url, job.branch, self.id, about)

    def __repr__(self) -> str:
        return f"<CompiledJob {self.id} {self.store.label}: {self.summary}>"


def versions() -> dict[str, str]:
    """Return the versions to record in commits and reports, by package."""
    return {package: version(package) for package in ("vczstore", "cubed", "icechunk", "numpy", "zarr")}


def compile_job(job: Job, conversions: Conversions | None = None, workers: Workers | None = None) -> CompiledJob:
    """
    Compile every step of a job against the state that the steps before it will leave. Nothing is written to the store.

    Parameters
    ----------
    job
        The parsed job file.
    conversions
        Converts VCFs, and keeps the results until it is closed; by default until the process ends.
    workers
        Workers to scan stores with, by default new ones.

    Raises
    ------
    VczstoreError
        If a step cannot be compiled.
    """
    with plain_errors(job.store.url), planning("run"):
        options = options_of(job).but(conversions=conversions or Conversions(job.work_dir))
        options, is_ahead = _on_branch(job, options)
        with nullcontext(workers) if workers is not None else Workers(options) as scanning:
            compiler = _Compiler(job, options, scanning, is_ahead=is_ahead)
            for i, step in enumerate(job.steps):
                compiler.add(step, job.steps[i + 1 :])
            for operation in retention(job):
                compiler.compile_step(operation)
        compiled = compiler.finish()
        for plan in compiled.plans:
            _ = plan.projected_mem  # raises if a task needs more memory than it is allowed
        return compiled


def retention(job: Job) -> list[Operation]:
    """Return the `gc` by which the job file's `keep` limits the history; an empty list without `keep`."""
    keep = job.keep
    return [] if keep is None else [Gc(store=job.store.url, keep_days=keep.days, keep_tags=keep.tags)]


def branches_of(job: Job) -> "IcechunkBranches":
    """Open the job's store, and return its branches."""
    return existing_store(job.store.url, options_of(job).but(branch=None)).history.branches()


def existing_store(url: str, options: Options) -> Store:
    """
    Open the store of a job.

    Raises
    ------
    NotAStoreError
        If there is none; the message says how to make it.
    """
    try:
        return options.open(url)
    except NotAStoreError as error:
        if not str(error).endswith("no such file or directory"):
            raise
        raise NotAStoreError(f"{error}; make the store with vczstore create or vczstore init") from error


def _on_branch(job: Job, options: Options) -> tuple[Options, bool]:
    """
    Return options to compile on the job's branch, and whether that branch has commits that main lacks.

    The options are those for main if the run will create the branch, or fast-forward it to main.

    Raises
    ------
    StaleError
        If the branch and main have diverged, so that it cannot be published.
    """
    if job.branch is None:
        return options, False
    branches = branches_of(job)
    publishes = any(step.operation.phase == PUBLISHES for step in job.steps)
    is_ahead = branches.is_ahead(job.branch, publishing=publishes)
    tips = branches.tips()
    is_current = is_ahead or tips.get(job.branch) == tips["main"]
    return options if is_current else options.but(branch=None), is_ahead


def options_of(job: Job) -> Options:
    """Return the options of a job."""
    options = Options(
        backend_storage=job.store.backend_storage,
        storage_options=job.store.storage_options,
        source_storage_options=job.source_storage_options,
        no_lock=job.store.no_lock,
        branch=job.branch,
        allowed_mem=job.allowed_mem,
        reserved_mem=job.reserved_mem,
        work_dir=job.work_dir,
        max_workers=job.max_workers,
    )
    return options.but(executor=job.executor.name, executor_options=job.executor.options)


class _Compiler:
    """Compiles the steps of a job one by one; `vcz` is the state that the steps so far will leave."""

    def __init__(self, job: Job, options: Options, workers: Workers, *, is_ahead: bool) -> None:
        self.job, self.url, self.is_ahead = job, job.store.url, is_ahead
        self.options, self.memory, self.workers = options, options.memory, workers
        self.store = existing_store(self.url, options)
        self.vcz = vcz = self.store.open()
        self.alleles_added = self.has_inserted = False
        self.base, self.present, self.before = vcz.state, _present(vcz), Samples.of(vcz)
        self.n_batches = len(provenance.batches(vcz))
        self.ledger = Ledger.of(vcz)
        self.steps: list[CompiledStep] = []
        self.after: list[Operation] = []
        self.tags: list[str] = []
        self.notes: list[str] = []
        self.found: list[FoundSources] = []
        self.named: dict[str, list[str]] = {}
        """The sources of the current step, by the path or glob that names them."""
        self.ahead: list[Operation] = []
        """The operations of the steps after the current one."""
        self.digested: list[Any] = []
        """The values from which the job's id is computed."""

    def add(self, step: StepModel, ahead: Sequence[StepModel]) -> None:
        """Compile one step; `ahead` are the later steps."""
        self.ahead = [following.build(self.url) for following in ahead]
        values: dict[str, Any] = {}
        for parameter in fields(step.operation):
            match declared(parameter).kind:
                case "sources":
                    values[parameter.name] = self._find(step)
                case "samples":
                    values[parameter.name] = read_samples(step)
        operation = step.build(self.url, **values)
        with naming(operation.called):
            self.compile_step(operation)

    @singledispatchmethod
    def compile_step(self, operation: Operation) -> None:
        """Compile an operation for the job's commit, or schedule it after the commit."""
        if operation.phase == IN_COMMIT:
            raise TypeError(f"{operation.called} is no step of a job")
        self._schedule(operation)

    def _schedule(self, operation: Operation) -> None:
        """Schedule an operation after the commit."""
        self.digested.append([operation.called, operation.fingerprint])
        self.after.append(operation)

    @compile_step.register
    def compact(self, operation: Compact) -> None:
        """Schedule `compact`, which makes a commit of its own: it reads what the other steps have committed."""
        if not self.store.atomic:
            label = self.job.of_set or self.store.label
            raise UnsuitableError(
                f"compact: {label} is plain Zarr, whose folder a job cannot replace; leave the step out, "
                f"and run: vczstore compact {shlex.quote(label)}"
            )
        self.digested.append([operation.called])
        self.after.append(operation)

    @compile_step.register
    def purge(self, operation: Purge) -> None:
        """Schedule `purge` of the history; tags and branches that pin the history are reported before anything runs."""
        compacts = any(later.phase == OWN_COMMIT for later in self.after) and REMOVED in self.vcz.sample_ids
        changing = any(step.plans for step in self.steps) or compacts
        published = self.store.branch if any(later.phase == PUBLISHES for later in self.after) else None
        refuse_pins(self.store, operation.tags, changing=changing, published=published)
        self._schedule(operation)

    @compile_step.register
    def export(self, operation: Export) -> None:
        """Schedule `export` of the committed state; its destination is checked now."""
        is_of_job = operation.at is None or operation.at in self.tags
        vcz = self.vcz if is_of_job else open_at("export", self.store, operation.at)
        operation.check_place(self.options, vcz)
        self._schedule(operation)

    @compile_step.register
    def gc(self, operation: Gc) -> None:
        """Schedule `gc`."""
        if operation.keep_days is not None:
            self.store.history.require("gc")
        self._schedule(operation)

    @compile_step.register
    def publish(self, operation: Publish) -> None:
        """Schedule `publish` if the branch will have anything that main lacks; otherwise drop the checks before it."""
        self.digested.append([operation.called, operation.fingerprint])
        if any(step.plans for step in self.steps) or self.is_ahead:
            self.after.append(operation)
        else:
            self.after = [later for later in self.after if later.phase != CHECKS]
            self.notes.append(f"publish: the branch {operation.name} has nothing that main lacks")

    @compile_step.register
    def edit(self, operation: Edit) -> None:
        """Compile any other operation; if the ledger says that an earlier run applied it, only what `again` leaves."""
        key: list[Any] = [operation.called, operation.fingerprint]
        sources = list[Vcz]()
        if named := getattr(operation, "sources", ()):
            refuse_same_place(operation.called, self.url, named)
            sources = self._open_all(operation.called, named)
            key.append(_states(sources))
        digest = step_digest(key)
        self.digested.append(key)
        plans: list[Plan] = []
        remaining = operation if digest not in self.ledger.steps else operation.again(self.vcz, self.ahead)
        if remaining is not None:
            plan = self._compile(remaining, sources)
            if plan.is_empty:
                self.notes += [f"{operation.called}: {text}" for text in plan.notes.values()]
            else:
                self.ledger = self.ledger.with_step(digest)
                plans = [replace(plan, edits=(*plan.edits, self.ledger.edit(self.vcz.zarr_format)))]
        if named:
            self._count(operation.called, named if plans else ())
        self._add(operation.called, sources, plans, int(not plans))

    def _find(self, step: StepModel) -> list[str]:
        """Return the step's sources, deduplicated, with globs expanded, and keep them by path or glob in `named`."""
        unique: dict[str, str] = {}
        self.named = {}
        for source, paths in expand_sources(step).items():
            urls = self._listed(step, source, paths)
            kept = [unique.setdefault(url if is_url(url) else os.path.realpath(url), url) for url in urls]
            self.named[source] = list(dict.fromkeys(kept))
        return list(unique.values())

    def _listed(self, step: StepModel, source: str, paths: Sequence[str]) -> list[str]:
        """Return the sources that a path or glob names; `paths` are its local matches, or URLs that may be globs."""
        urls: list[str] = []
        for path in paths:
            matches = self.options.find(path, self.url)
            if matches is None and step.value("if_none") != "ok":
                raise JobFileError(
                    f"{one_line(path)}: nothing at all lies under {one_line(path.rpartition('/')[0])}/; correct the "
                    "URL, or set if-none: ok if the inbox may be empty"
                )
            urls += matches or []
        if not urls and step.value("if_none") == "error":
            raise NotAStoreError(f"{step.operation.called}: {one_line(source)} finds nothing, and if-none says error")
        return urls

    def _count(self, operation: str, new: Collection[object]) -> None:
        """Count the sources, and those in `new`, of each glob of a step, and of its plain paths together."""
        counted = {source: urls for source, urls in self.named.items() if not names_one(source)}
        if named := [url for source, urls in self.named.items() if names_one(source) for url in urls]:
            counted[""] = named
        for source, urls in counted.items():
            found = FoundSources(operation, source, tuple(urls), sum(url in new for url in urls))
            self.found.append(found)
            self.notes.append(found.line)

    def _compile(self, operation: Edit, sources: Sequence[Vcz] = ()) -> Plan:
        """Compile an operation against the state that the steps so far will leave, and keep the state it will leave."""
        if self.has_inserted:
            raise IncompatibleError(
                f"{operation.called}: an earlier step of the job inserts variants into the store, and nothing can be "
                "compiled against these before they are there; run this step in a job of its own"
            )
        plan = compile_plan(operation, Compiling(self.store, self.vcz, sources, self.memory), self.workers, Run(""))
        self.vcz = plan.after
        return plan

    @compile_step.register
    def batches(self, operation: Append | Update) -> None:
        """Compile `append` or `update` for the batches that are not applied yet."""
        sources, fresh = self._open(operation)
        self.digested.append([operation.called, _states(sources), operation.changed_options])
        kept, dropped = self._without_returning(operation, fresh)
        plans = self._append(operation, kept) if isinstance(operation, Append) else self._update(operation, kept)
        plans = [*plans[:-1], *(counting_left_out(plan, fresh, kept) for plan in plans[-1:])]
        plans = self._record_dropped(operation, plans, dropped)
        self._add(operation.called, sources, plans, len(sources) - len(fresh))

    def _append(self, operation: Append, batches: Sequence[Vcz]) -> list[Plan]:
        plans: list[Plan] = []
        pending = list(self.ledger.pending)
        interrupted = sorted((s for s in batches if s.identity in pending), key=lambda s: pending.index(s.identity))
        if interrupted and all(len(split_known(self.vcz, s)[1]) == 0 for s in interrupted):
            # the earlier run was interrupted after its samples had become visible
            self.ledger = self.ledger.completed()
            plan = complete_append(self.store, self.vcz, self.memory)
            plans.append(replace(plan, edits=(*plan.edits, self.ledger.edit(self.vcz.zarr_format))))
            batches, interrupted = [s for s in batches if not self.ledger.has(s)], []
        self._refuse_changed(operation, batches)
        new = batches if not interrupted else [s for s in batches if s.identity not in pending]
        # interrupted batches come first, in a plan of their own: their chunks are at their final positions already
        for group in (interrupted, new):
            plans += self._plans_for(group, operation.on_duplicate, operation)
        return plans

    def _update(self, operation: Update, batches: Sequence[Vcz]) -> list[Plan]:
        if operation.insert:
            return self._plans_for(batches, "replace", operation)
        if not batches:
            return []
        return [self._recorded(self._harmonised(operation, batches), batches)]

    def _without_returning(self, operation: Append | Update, fresh: Sequence[Vcz]) -> tuple[list[Vcz], list[Vcz]]:
        """Drop previously removed samples if the step asks for it; return the other batches, and those left empty."""
        if not operation.drop_returning:
            return [*fresh], []
        kept = without_returning(self.store, self.vcz, fresh)
        identities = {source.identity for source in kept}
        return kept, [source for source in fresh if source.identity not in identities]

    def _record_dropped(self, operation: Append | Update, plans: list[Plan], dropped: Sequence[Vcz]) -> list[Plan]:
        """Record batches without remaining samples in the ledger, in the last plan or a new one; return the plans."""
        if not dropped:
            return plans
        self.ledger = self.ledger.with_sources(dropped)
        edit = self.ledger.edit(self.vcz.zarr_format)
        if plans:
            return [*plans[:-1], plans[-1].recording((), [edit])]
        plan = Plan(
            operation=operation.called,
            store=self.store,
            base=self.vcz.state,
            edits=(edit,),
            memory=self.memory,
            after=self.vcz,
            if_stopped="",
            counts={"sources of removed samples": len(dropped)},
        )
        return [plan]

    def _plans_for(self, group: Sequence[Vcz], on_duplicate: str, operation: Append | Update) -> list[Plan]:
        """Compile plans to append the new samples of batches and, if duplicates are replaced, to update the others."""
        if not group:
            return []
        known, new = list[Vcz](), list(group)
        if on_duplicate != "error":
            split = [split_known(self.vcz, source) for source in group]
            new = [s.select(absent) for s, (_, absent) in zip(group, split, strict=True) if len(absent)]
            known = [s.select(present) for s, (present, _) in zip(group, split, strict=True) if len(present)]
        plans: list[Plan] = []
        drop, add = operation.drop_fields, operation.add_fields
        if known and on_duplicate == "replace":
            update = Update(store=self.url, sources=(), drop_fields=drop, add_fields=add)
            plans.append(self._compile(update, known))
        if new:
            append = operation
            if not isinstance(append, Append):
                append = Append(
                    store=self.url,
                    sources=(),
                    drop_fields=drop,
                    add_fields=add,
                    allow_returning=operation.allow_returning,
                )
            plans.append(self._harmonised(append, new))
        skipped = {source.identity for source in known if on_duplicate == "skip"}
        return [*plans[:-1], *(self._recorded(plan, group, skipped) for plan in plans[-1:])]

    def _harmonised(self, operation: Append | Update, sources: Sequence[Vcz]) -> Plan:
        """Compile an operation that may harmonise its sources, which requires that the store's variants are stored."""
        if operation.harmonise and self.alleles_added:
            raise IncompatibleError(
                f"{operation.called}: {sources[0].label} is to be harmonised with a store to which an earlier step of "
                "the job brings alleles, which cannot be looked up before they are there; name the sources in one step"
            )
        plan = self._compile(operation, sources)
        self.alleles_added |= plan.counts.get("alleles added", 0) > 0
        self.has_inserted = "variants inserted" in plan.counts
        earlier = [previous for step in self.steps for previous in step.plans if not previous.is_empty]
        if self.has_inserted and self.store.atomic and earlier:
            raise IncompatibleError(
                f"{operation.called}: {sources[0].label} has variants that are inserted into the store, which is not "
                "possible after another step of the same job has changed it; run this step in a job of its own, or "
                "leave the variants out with --new-variants drop"
            )
        return plan

    def _recorded(self, plan: Plan, sources: Sequence[Vcz], partly: Collection[str] = ()) -> Plan:
        """Return the plan with edits that record its batches in the ledger, first as pending if it can be resumed."""
        zarr_format = self.vcz.zarr_format
        is_update = plan.operation == "update"  # which is restarted rather than resumed
        begun = self.ledger.begun(sources, partly).edit(zarr_format)
        begun_edits = () if is_update or self.store.atomic else (begun,)
        self.ledger = self.ledger.with_sources(sources, partly)
        return plan.recording(begun_edits, [self.ledger.edit(zarr_format)])

    @compile_step.register
    def remove(self, operation: Remove) -> None:
        """Compile `remove`, unless all samples of the list were removed earlier."""
        wanted, missing_ok = list(dict.fromkeys(operation.samples)), operation.missing_ok
        self.digested.append(["remove", missing_ok, removal_digest(wanted)])
        positions, unknown = positions_of(self.vcz, wanted)
        to_remove = wanted
        withdrawn = Withdrawn.of(self.store, self.vcz).among(unknown)
        if unknown and (missing_ok or len(withdrawn) == len(unknown)):
            to_remove = [str(sample) for sample in self.vcz.sample_ids[positions]]
            samples = self.vcz.sample_ids.tolist()
            refuse_other_spellings("remove", self.vcz, unknown, withdrawn, samples, "nothing was removed")
            self.notes.append(f"remove: {unknown_ids(len(unknown), len(wanted))}")
        if not wanted and missing_ok:
            to_remove = []
        plans: list[Plan] = []
        if to_remove or not (unknown or missing_ok):
            plan = compile_completable(self.store, self.vcz, to_remove, self.memory)
            plans, self.vcz = [plan], plan.after
        self._add("remove", (), plans, int(not plans and (not wanted or bool(withdrawn))))

    @compile_step.register
    def recompute(self, operation: Recompute) -> None:
        """Compile `recompute`, unless the INFO fields are up to date."""
        self.digested.append(["recompute", sorted(operation.fields)])
        field_states = states(self.vcz)
        is_current = all(field_states.get(field) == CURRENT for field in operation.fields)
        self._add("recompute", (), () if is_current else [self._compile(operation)], int(is_current))

    @compile_step.register
    def regrid(self, operation: Regrid) -> None:
        """Compile `regrid`, whose plan is empty if no columns need to be merged."""
        self.digested.append(["regrid", operation.changed_options])
        plan = self._compile(operation)
        self._add("regrid", (), () if plan.is_empty else (plan,), int(plan.is_empty))

    @compile_step.register
    def tag(self, operation: Tag) -> None:
        """Schedule a tag on the job's snapshot."""
        name = operation.name
        assert name is not None
        try:
            self.store.history.require("tag")
        except TagError as error:
            raise TagError(f"{error}, or leave the step out") from error
        tags = self.store.history.tags()
        self.digested.append(["tag", name])
        if name not in tags:
            self.store.history.refuse_tag(name)
            self.tags.append(name)
        elif any(step.plans for step in self.steps):
            raise TagError(
                f"tag: {name!r} exists already, on snapshot {tags[name]}, and this job changes the store; "
                "give the step another name, such as one with a date: release-${DATE:-draft}"
            )

    def finish(self) -> CompiledJob:
        """Return the compiled job."""
        text = json.dumps(self.digested, sort_keys=True).encode()
        identity = hashlib.blake2b(text, digest_size=12).hexdigest()
        steps = self.steps
        if BATCH in self.vcz.arrays:
            steps = [
                replace(step, plans=tuple(provenance.with_job(plan, identity, self.n_batches) for plan in step.plans))
                for step in steps
            ]
        return CompiledJob(
            job=self.job,
            store=self.store,
            base=self.base,
            steps=tuple(steps),
            tags=tuple(self.tags),
            notes=tuple(self.notes),
            found=tuple(self.found),
            after=tuple(self.after),
            id=identity,
            memory=self.memory,
            samples=(self.before, Samples.of(self.vcz)),
        )

    def _open(self, operation: Append | Update) -> tuple[list[Batch], list[Vcz]]:
        """Open a step's sources; return all, and those not applied yet. VCFs that are applied are not converted."""
        name = operation.called
        refuse_same_place(name, self.url, operation.sources)
        inputs = [find_vcf(name, self.options, self.url, source) or source for source in operation.sources]
        entirely = isinstance(operation, Update)
        applied: dict[object, VcfFile] = {
            file.label: file
            for file in inputs
            if isinstance(file, VcfFile) and self.ledger.has(file, entirely=entirely)
        }
        todo = [source for source in inputs if _label(source) not in applied]
        if isinstance(operation, Append):  # checked before conversion as well, which may take hours
            self._refuse_changed(operation, [source for source in todo if isinstance(source, VcfFile)])

        def check(opened: Sequence[Vcz]) -> None:
            vcfs = [source for source in opened if source.file is not None]
            if not self.ledger.pending:  # samples of an interrupted append may be there already
                operation.check_samples(self.store, self.vcz, vcfs)

        opened = iter(self._open_all(name, todo, check))
        sources: list[Batch] = [applied.get(_label(source)) or next(opened) for source in inputs]
        fresh = [s for s in sources if isinstance(s, Vcz) and not self.ledger.has(s, entirely=entirely)]
        is_fresh = set(map(id, fresh))
        self._count(name, {url for url, s in zip(operation.sources, sources, strict=True) if id(s) in is_fresh})
        return sources, fresh

    def _refuse_changed(self, operation: Append, batches: Sequence[Vcz | VcfFile]) -> None:
        """
        Raise an `IncompatibleError` for a batch appended in another state, if `on_duplicate` is "error".

        A batch whose samples were all removed since is not refused here: `append` refuses, drops or admits it.
        """
        if operation.on_duplicate != "error":
            return
        withdrawn = Withdrawn.of(self.store, self.vcz)
        for batch in filter(self.ledger.knows, batches):
            samples = batch.samples if isinstance(batch, VcfFile) else batch.sample_ids.tolist()
            if len(withdrawn.among(samples)) < len(samples):
                raise IncompatibleError(
                    f"append: {batch.label}: its samples were appended before, from another source or an earlier state "
                    "of this one; replace them with an update step, or set on-duplicate: replace; on-duplicate: skip "
                    "keeps the calls that the store has"
                )

    def _open_all(
        self,
        operation: str,
        sources: Sequence[Location | VcfFile],
        check: Callable[[Sequence[Vcz]], None] | None = None,
    ) -> list[Vcz]:
        """Open sources; VCFs are converted after `check`."""
        return open_sources(operation, self.options, self.url, sources, layout=lambda: Layout.of(self.vcz), check=check)

    def _add(self, operation: str, sources: Sequence[Batch], plans: Sequence[Plan], already_applied: int) -> None:
        labels, before = tuple(source.label for source in sources), self.present
        self.present = _present(self.vcz) if plans else before
        self.steps.append(CompiledStep(operation, labels, tuple(plans), already_applied, before, self.present))


def _states(sources: Sequence[Batch]) -> list[tuple[str, str]]:
    return [(source.identity, source.stamp) for source in sources]


def _label(source: Location | VcfFile) -> object:
    return source.label if isinstance(source, VcfFile) else source


def _present(vcz: Vcz) -> int:
    return int(np.count_nonzero(vcz.sample_ids != REMOVED))
