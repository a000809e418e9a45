"""
Operations on sets of stores, such as one for each chromosome: what happens to one part happens to all, or to none.

1. All parts are compiled and checked: the parts have the same samples in the same order, before and after.
2. All parts are written. On Icechunk each is committed on a branch of its own, which no reader looks at.
3. What is about to become visible is recorded beside the stores.
4. One part after the other becomes visible; then all get their tags, and the record goes.

What fails before 3 changes nothing. What is killed after that is completed by `repair`, or by the same operation; until
then any other is refused. On Icechunk all that is missing then waits in the stores, and is published without reading a
source. On plain Zarr, which has no branches, 3 comes before 2, and each part is written and becomes visible in its
turn: the same operation has to be run again, and does what is missing.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

from plans.core.ledger import slow_digest
from plans.core.model import Plan
from vczstore.declarations import declared
from vczstore.errors import (
    ConflictError,
    IncompatibleError,
    Interrupted,
    OptionError,
    SampleError,
    StaleError,
    StorageError,
    TagError,
    VczstoreError,
    first_line,
)
from vczstore.execution import engine
from vczstore.execution.conversions import Conversions
from vczstore.execution.engine import Execution, compile_all, history_of, open_operation, telling
from vczstore.execution.operations import Edit, Operation
from vczstore.execution.options import Options
from vczstore.execution.results import Found, Result, Run, SetResult, together
from vczstore.execution.retry import retried
from vczstore.execution.workers import Workers
from vczstore.stores.base import Check, HeldLock, Store
from vczstore.stores.object_store import plain_errors
from vczstore.stores.resolve import refuse_read_only
from vczstore.stores.sets import PART, PartRecord, Record, RecordFile, Template, is_template, require_parts
from vczstore.vcf.files import SUFFIXES
from vczstore.vcz.model import Vcz, listing

HELD = 4_000_000
"""How many sample IDs the plans of all parts may hold at once; with more, each is compiled again when it is written."""


def run(operation: Operation, options: Options, *, dry_run: bool = False) -> Any:
    """
    Run an operation on a store, or on all stores of a set.

    Parameters
    ----------
    operation, options, dry_run
        As in `vczstore.execution.engine.run`.

    Returns
    -------
    Result or SetResult
        Of an `Edit`; what any other operation has found.

    Raises
    ------
    VczstoreError
        If anything does not fit, or storage fails. Unless the message says which parts are ahead, nothing has changed.
    """
    if not is_template(operation.store):
        if options.parts:
            raise OptionError(
                f"{operation.called}: --parts goes with a set of stores; put {PART} into the name of the store"
            )
        return engine.run(operation, options, dry_run=dry_run)
    engine.refuse_branch(operation, options)
    with engine.shown(options) as opts:
        group = StoreSet.of(operation, opts)
        for member in group.members.values():
            if member.writes:
                refuse_read_only(operation.called, member.store)
        if isinstance(operation, Edit):
            return _edit(group, operation, dry_run=dry_run)
        with plain_errors(operation.store):
            return operation.perform_set(group, dry_run=dry_run)


# ---- which stores ---------------------------------------------------------------------------


class Samples(NamedTuple):
    """How many samples a VCZ has, removed ones included, and a digest of their IDs."""

    n: int
    digest: str

    @classmethod
    def of(cls, vcz: Vcz | None) -> "Samples":
        """Those of a VCZ; none where there is no store yet."""
        ids = [] if vcz is None else vcz.sample_ids.tolist()
        digest = hashlib.blake2b(digest_size=16)
        for sample in ids:
            digest.update(f"{sample}\0".encode(errors="surrogatepass"))
        return cls(len(ids), _slow(digest.hexdigest()))


@lru_cache(maxsize=64)
def _slow(digest: str) -> str:
    """What a record may hold: a removed sample is not found out by trying IDs. All parts have one list of samples."""
    return slow_digest(digest)


def members_of(operation: Operation, options: Options) -> dict[str, Operation]:
    """
    An operation on each part of a set, by the name of the part.

    Raises
    ------
    OptionError
        If something is named that would be the same for all parts.
    IncompatibleError
        If there are sources for other parts than there are stores.
    """
    named = [one for one in fields(operation) if declared(one).kind in ("location", "sources", "folder", "file")]
    values = {one.name: getattr(operation, one.name) for one in named}
    coming: list[str] = []
    for one in named:
        texts = _texts(values[one.name])
        if declared(one).kind != "file":
            require_part(operation.called, texts, operation.store)
        coming += texts if one.name in ("source", "sources") else []
    parts = options.parts or _found(operation, options, coming)
    require_parts(operation.called, Template(operation.store), parts)

    def of(part: str) -> Operation:
        return replace(operation, **{name: in_part(value, part) for name, value in values.items()})

    return {part: of(part) for part in parts}


def _found(operation: Operation, options: Options, coming: Sequence[str]) -> list[str]:
    """The parts that there are, of a store that is edited or read; where one is made, those of what comes in."""
    reach = options.for_store(operation.store, coming).storage_options or {}
    stores = Template(operation.store, reach).find()
    by_source = {text: Template(text, options.options_of(text, operation.store)).find(SUFFIXES) for text in coming}
    if coming and not operation.writes:
        return next(iter(by_source.values()))
    for text, found in by_source.items():
        if stores and set(found) != set(stores):
            lacking, other = sorted(set(stores) - set(found)), sorted(set(found) - set(stores))
            what = f"has nothing for {listing(lacking)}" if lacking else f"has {listing(other)}, which the set lacks"
            raise IncompatibleError(
                f"{operation.called}: {text} {what}; the parts of {operation.store} are edited together: complete it, "
                "or name the parts with --parts"
            )
    return stores


def _texts(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, tuple) else (value,)) if one is not None]


def require_part(operation: str, texts: Sequence[str], store: str) -> None:
    """Raise an `OptionError` for a place that would be the same for all parts."""
    for text in texts:
        if PART not in text:
            raise OptionError(
                f"{operation}: {text} would be the same for all parts of {store}; put {PART} into its name"
            )


def in_part(value: Any, part: str) -> Any:
    """A place, or several, with the name of a part in them."""
    if isinstance(value, tuple):
        return tuple(in_part(one, part) for one in value)
    return value if value is None else str(value).replace(PART, part)


@dataclass(frozen=True)
class StoreSet:
    """
    A set of stores, and what is done to it.

    Attributes
    ----------
    template
        What it is called.
    places
        The path or URL of each part, by its name.
    options
        How they are found, and what runs the tasks.
    called
        The name of the operation, for messages.
    id
        What tells this operation from others: a digest of what was asked for.
    members
        The operation on each part; none of a job.
    """

    template: Template
    places: Mapping[str, str]
    options: Options
    called: str
    id: str
    members: Mapping[str, Operation] = field(default_factory=dict)

    @classmethod
    def of(cls, operation: Operation, options: Options) -> "StoreSet":
        """The set that an operation names."""
        reach = options.for_store(operation.store, _texts(getattr(operation, "sources", ()))).storage_options or {}
        template = Template(str(operation.store).rstrip("/"), reach)
        members = members_of(operation, options)
        asked = [operation.called, operation.fingerprint, options.branch]
        said = slow_digest(json.dumps(asked, sort_keys=True, default=str))
        places = {name: str(member.store) for name, member in members.items()}
        return cls(template, places, options.but(parts=()), operation.called, said, members)

    @property
    def label(self) -> str:
        """How messages call it."""
        return self.template.text

    @property
    def record(self) -> RecordFile:
        """Where it is recorded what is about to become visible."""
        return self.template.record

    def open(self) -> dict[str, Store]:
        """The stores, by the names of their parts."""
        return {name: self.options.open(place) for name, place in self.places.items()}

    def perform(self, *, dry_run: bool) -> dict[str, Found]:
        """Do on each part what the operation does on a store."""
        return {name: one.perform(self.options, dry_run=dry_run) for name, one in self.members.items()}

    def pending(self, stores: Mapping[str, Store]) -> str | None:
        """What was stopped before all parts had it, in words; None if nothing was."""
        record = self.record.read()
        return None if record is None else _describe(record, stores)

    def refuse_pending(self) -> None:
        """
        Raise a `StaleError` if something was stopped before all parts had it.

        The stores are not opened if nothing was.
        """
        if self.record.read() is not None and (described := self.pending(self.open())) is not None:
            raise StaleError(f"{self.called}: {self.label}: {described}")

    @contextmanager
    def locked(
        self, stores: Mapping[str, Store], *, exclusive: bool = True, wait: bool = False
    ) -> Iterator[dict[str, HeldLock]]:
        """Hold the locks of all parts; nothing of a run that was stopped before its record is left in them."""
        with ExitStack() as stack:
            locks = {}
            for name, store in stores.items():
                is_kept = exclusive or store.history.is_kept
                held = store.exclusive_lock(wait=wait, watch=True) if is_kept else store.writer_lock()
                locks[name] = stack.enter_context(held)
            if self.record.read() is None:
                self.record.delete()
                for store in stores.values():
                    store.history.unstage(self.template.name)
            self._refuse_staged(stores)
            yield locks

    def _refuse_staged(self, stores: Mapping[str, Store]) -> None:
        """Raise a `StaleError` if commits of a set with another name, which has parts of this one, wait in a part."""
        for store in stores.values():
            for name in store.history.staged():
                if name != self.template.name:
                    raise StaleError(
                        f"{self.called}: {store.label} has a commit that waits for the other parts of a set called "
                        f"{name} (PART for {PART}); complete it with vczstore repair and that name"
                    )

    def complete(self, record: Record, stores: Mapping[str, Store]) -> list[str]:
        """
        Let all parts have what waits in them, then their tags; their locks have to be held. A purge is left to `purge`.

        Returns
        -------
        list of str
            The parts that did not have it.

        Raises
        ------
        StaleError
            If a part was changed by another writer, so that what waits in it cannot follow.
        """
        behind = []
        try:
            for name, part in record.parts.items():
                if not part.is_done:
                    behind += [name] * self._publish(name, record, stores[name])
            for tag in record.tags:
                for name, part in record.parts.items():
                    _tag(tag, part, stores[name])
            if record.purge:
                self.record.write(record.with_done(*record.parts))
            else:
                self.record.delete()
        except KeyboardInterrupt as error:
            raise Interrupted(f"{self.called}: interrupted; {_describe(record, stores)}") from error
        except VczstoreError as error:
            kind = StaleError if isinstance(error, ConflictError) else type(error)  # which is not tried again by itself
            raise kind(f"{self.called}: {error}; {_describe(record, stores)}") from error
        except Exception as error:
            raise StorageError(
                f"{self.called}: {self.label}: {first_line(error)}; {_describe(record, stores)}"
            ) from error
        self.unstage(stores)
        return behind

    def unstage(self, stores: Mapping[str, Store]) -> None:
        """Delete the branches on which commits of this set wait, as far as possible: the next one deletes the rest."""
        for store in stores.values():
            with suppress(Exception):
                store.history.unstage(self.template.name)

    def _publish(self, name: str, record: Record, store: Store) -> bool:
        """Let readers of one part see what waits in it; False if they do, or see the same samples by other means."""
        part = record.parts[name]
        assert part.snapshot is not None
        if store.history.shows(part.snapshot, record.branch):
            return False
        try:
            store.history.publish(part.snapshot, part.base, record.branch)
        except ConflictError as error:
            samples_decide = record.operation in ("append", "remove") and part.before != part.after
            if not samples_decide or Samples.of(store.open(record.branch)).digest != part.after:
                raise ConflictError(
                    f"{error}, so what waits for {name} cannot follow; once {name} has it by other means, "
                    f"delete {self.record.place}"
                ) from error
            return False
        return True

    def purge(self, record: Record, stores: Mapping[str, Store], one: Callable[[str], Found]) -> dict[str, Found]:
        """
        Delete the history of all parts, if that follows; their locks have to be held. `one` does it to a part.

        Raises
        ------
        VczstoreError
            If the history of some parts is left; it is tried in all.
        """
        done, failed = dict[str, Found](), dict[str, VczstoreError]()
        try:
            for name, store in stores.items() if record.purge else ():
                try:
                    with plain_errors(store.label):
                        done[name] = one(name)
                except VczstoreError as error:
                    failed[name] = error
        except KeyboardInterrupt as error:
            described = _describe(record.with_done(*record.parts), stores)
            raise Interrupted(f"{self.called}: interrupted; {described}") from error
        if record.purge:
            self.record.delete()
        if failed:
            first = next(iter(failed.values()))
            options = "" if record.purge == "refuse" else f" --tags {record.purge}"
            raise type(first)(
                f"{self.called}: {record.operation} is done in all parts, but the history of {listing([*failed])} "
                f"is not purged: {first}; complete it with: vczstore purge {self.label}{options}"
            )
        return done

    def require_parts_of(self, record: Record) -> None:
        """Raise a `StaleError` if a record is of other parts than these."""
        if missing := [name for name in record.parts if name not in self.places]:
            raise StaleError(
                f"{self.called}: {self.label}: {record.operation} ({record.summary}) was stopped, and "
                f"{listing(missing)} is one of its parts; name all parts"
            )

    def agree(self, samples: Mapping[str, Samples], what: str) -> None:
        """Raise an `IncompatibleError` if parts, or what comes into them, do not have the same samples in one order."""
        if (found := differing(samples)) is not None:
            raise IncompatibleError(f"{self.called}: {what} {found}; nothing was written")


def differing(samples: Mapping[str, Samples]) -> str | None:
    """How the samples of parts differ, in words; None if all have the same in the same order."""
    (first, ours), *others = samples.items()
    for name, theirs in others:
        if theirs != ours:
            numbers = f"{first} has {ours.n:,}, {name} has {theirs.n:,}"
            how = "as many, but others, or in another order" if theirs.n == ours.n else numbers
            return f"do not have the same samples in the same order in {first} and {name}: {how}"
    return None


def _describe(record: Record, stores: Mapping[str, Store]) -> str:
    """What a record says of its parts, and the way out."""
    ahead = [
        name
        for name, part in record.parts.items()
        if part.is_done
        or (
            part.snapshot not in (None, part.base)
            and name in stores
            and stores[name].history.shows(part.snapshot, record.branch)
        )
    ]
    rest = [name for name in record.parts if name not in ahead]
    last = "the history of some, which is to be purged" if record.purge else "the tags of some"
    where = f"is done in {listing(ahead) or 'no part'}, and not in {listing(rest) or last}"
    way_out = "run it again, or vczstore repair" if record.is_staged else "run the same again to complete it"
    return f"{record.operation} ({record.summary}) {where}; {way_out}"


def _tag(tag: str, part: PartRecord, store: Store) -> None:
    """Give a part its tag, unless it has it."""
    there = store.history.tags().get(tag)
    if there is None:
        store.history.create_tag(tag, part.snapshot)
    elif there != part.snapshot:
        raise TagError(f"tag: {tag!r} exists already in {store.label}, on snapshot {there}")


def tag_all(group: StoreSet, tag: str) -> dict[str, str]:
    """
    Name the present states of all parts: a tag is in all parts, or in none.

    Returns
    -------
    dict
        The snapshot of each part.

    Raises
    ------
    TagError
        If a part cannot have this tag.
    IncompatibleError
        If the parts do not have the same samples.
    """
    stores = group.open()
    for store in stores.values():
        store.history.require("tag")
    with group.locked(stores):
        record = group.record.read()
        if record is None or record.id != group.id:
            group.refuse_pending()
            for store in stores.values():
                store.history.refuse_tag(tag)
            opened = {name: store.open() for name, store in stores.items()}
            samples = {name: Samples.of(vcz) for name, vcz in opened.items()}
            group.agree(samples, "the parts")
            parts = {
                name: PartRecord(vcz.state, vcz.state, samples[name].digest, samples[name].digest)
                for name, vcz in opened.items()
            }
            branch = next(iter(stores.values())).branch or ""
            record = Record(group.id, "tag", tag, parts, (tag,), branch)
            group.record.write(record)
        group.require_parts_of(record)
        group.complete(record, stores)
        return {name: str(part.snapshot) for name, part in record.parts.items()}


def publish_all(group: StoreSet, name: str) -> dict[str, PartRecord]:
    """
    Let the main branches of all parts go on to what another branch holds.

    Returns
    -------
    dict
        What was done to each part.

    Raises
    ------
    StaleError
        If the main branch of a part has changed since the other one began. No part is changed then.
    IncompatibleError
        If the parts do not have the same samples on the branch.
    """
    stores = group.open()
    for store in stores.values():
        store.history.require("publish")
    with group.locked(stores):
        record = group.record.read()
        if record is None or record.id != group.id:
            group.refuse_pending()
            parts, samples = dict[str, PartRecord](), dict[str, Samples]()
            for part, store in stores.items():
                branches = store.history.branches()
                tips, now, then = branches.tips(), store.open(), store.open(name)
                tip = tips[name] if branches.is_ahead(name, publishing=True) else now.state
                samples[part] = Samples.of(then)
                parts[part] = PartRecord(now.state, tip, Samples.of(now).digest, samples[part].digest)
            group.agree(samples, f"the branches {name}")
            record = Record(group.id, "publish", name, parts, branch=next(iter(stores.values())).branch or "")
            group.record.write(record)
        group.require_parts_of(record)
        group.complete(record, stores)
        return dict(record.parts)


# ---- what is done to them -------------------------------------------------------------------


@dataclass(frozen=True)
class Compiled:
    """
    What is going to be done to one part.

    Attributes
    ----------
    plans
        What to do; nothing where it is done already.
    base
        The state of the part that they were compiled against.
    message, metadata
        For the history.
    before, after
        Its samples.
    sources
        Those of what comes in.
    surveys
        What it took to look things up.
    tags
        What its new state is going to be called.
    """

    plans: Sequence[Plan]
    base: str
    message: str
    metadata: Mapping[str, Any]
    before: Samples
    after: Samples
    sources: Sequence[Samples] = ()
    surveys: Run = field(default_factory=lambda: Run(""))
    tags: Sequence[str] = ()

    @property
    def summary(self) -> str:
        """What is done, in words."""
        return "; ".join(plan.summary for plan in self.plans)


@dataclass(frozen=True)
class Work:
    """
    One part that is worked on.

    Attributes
    ----------
    store
        The store, which is locked; None of one that is made.
    compile
        Compiles what is done to it.
    check
        Raises an error if its lock is lost.
    """

    store: Store | None
    compile: Callable[[], Compiled]
    check: Check | None


@dataclass
class Writing:
    """
    All parts of a set, while they are checked and written.

    Attributes
    ----------
    group, works
        The set, and what is done to its parts.
    workers
        What runs the tasks of all of them.
    pending
        The record of a run of the same operation that was stopped, on stores without snapshots.
    is_seen_early
        Whether readers of plain Zarr may notice what is written before it is all there.
    purge
        What a purge that follows does with tags; empty without one.
    dry_run
        Whether nothing is going to be written.
    again
        The parts that are compiled again when they are written, since all plans at once would be too large.
    compiled, executions
        What was checked of each part; no plan where there is nothing to do.
    """

    group: StoreSet
    works: Mapping[str, Work]
    workers: Workers
    pending: Record | None = None
    is_seen_early: bool = True
    purge: str = ""
    dry_run: bool = False
    again: set[str] = field(default_factory=set)
    compiled: dict[str, Compiled] = field(default_factory=dict)
    executions: dict[str, Execution] = field(default_factory=dict)

    def check(self, *, lookup: bool = True) -> None:
        """Compile all parts, and check what their plans have to check in the data; nothing is written."""
        for name, work in self.works.items():
            if self._is_done(name):
                continue
            try:
                compiled = work.compile()
            except SampleError:
                if not self._has_samples(name, work):
                    raise
                continue
            self.compiled[name], execution = compiled, self._execution(name, compiled)
            if execution is not None:
                if lookup:
                    with telling(execution.store, execution.state):
                        execution.check()
                self.executions[name] = execution
            if execution is not None and not self.dry_run and compiled.after.n * len(self.works) > HELD:
                self.compiled[name] = replace(compiled, plans=(), surveys=Run(""))
                del self.executions[name]
                self.again.add(name)
        self._agree()
        for name, compiled in self.compiled.items():
            self._check_tags(name, compiled)

    @property
    def tags(self) -> list[str]:
        """The tags that all parts get."""
        return list(dict.fromkeys(tag for one in self.compiled.values() for tag in one.tags))

    def _check_tags(self, name: str, compiled: Compiled) -> None:
        """Make sure that all tags can be made in a part, or are there and name what they would name."""
        store = self.works[name].store
        if store is None:
            return
        for tag in self.tags:
            there = store.history.tags().get(tag)
            if there is None:
                store.history.refuse_tag(tag)
            elif there != compiled.base or name in self.executions or name in self.again:
                raise TagError(
                    f"tag: {tag!r} exists already in {store.label}, on snapshot {there}, and not in all parts; choose "
                    "another name"
                )

    def _is_done(self, name: str) -> bool:
        return self.pending is not None and self.pending.parts[name].is_done

    def _has_samples(self, name: str, work: Work) -> bool:
        """Whether a run that was stopped has done a part, and could not note it."""
        part = None if self.pending is None else self.pending.parts[name]
        if part is None or work.store is None or part.before == part.after:
            return False
        return Samples.of(work.store.open()).digest == part.after

    def _execution(self, name: str, compiled: Compiled) -> Execution | None:
        if not compiled.plans:
            return None
        execution = Execution.of(compiled.plans, self.group.options, self.workers, self.works[name].check)
        for i, one in enumerate(execution.runs):
            execution.runs[i] = replace(one, which=f" {name}{one.which}")
        return execution

    def _agree(self) -> None:
        """Check that all parts have the same samples, before and after, and all that comes into them."""
        found = self.compiled
        if self.pending is None and len(found) > 1:
            self.group.agree({name: one.before for name, one in found.items()}, f"the parts of {self.group.label}")
            numbers = {len(one.sources) for one in found.values()}
            for i in range(min(numbers)) if len(numbers) == 1 else ():
                self.group.agree({name: one.sources[i] for name, one in found.items()}, f"the {_nth(i)} sources")
        after = {name: one.after for name, one in found.items()}
        if self.pending is not None:
            others = self.pending.parts.items()
            after |= {name: Samples(-1, part.after) for name, part in others if name not in after}
        if len({one.digest for one in after.values()}) > 1:
            self.group.agree(after, "the parts would")

    def write(self) -> dict[str, list[Result]]:
        """Write all parts, and let all become visible."""
        if not self.tags and not self.executions and not self.again:
            if self.pending is not None:  # the run that was stopped has done it all
                self.group.record.delete()
            return {}
        is_staged = all(work.store is not None and work.store.history.is_kept for work in self.works.values())
        return self._staged() if is_staged else self._one_by_one()

    def _ready(self, name: str) -> tuple[Compiled, Execution | None]:
        """A part that is checked; compiled again if its plan was too large to be kept."""
        compiled = self.compiled[name]
        if name not in self.again:
            return compiled, self.executions.get(name)
        again = self.works[name].compile()
        if (again.base, again.after) != (compiled.base, compiled.after):
            raise ConflictError(f"{self.group.called}: {self.group.label}: {name} has changed since it was checked")
        return again, self._execution(name, again)

    def _record(self, snapshots: Mapping[str, str | None]) -> Record:
        parts = {
            name: PartRecord(one.base, snapshots.get(name), one.before.digest, one.after.digest)
            for name, one in self.compiled.items()
        }
        known = {} if self.pending is None else self.pending.parts
        ordered = {name: parts.get(name) or replace(known[name], is_done=True) for name in self.works}
        summary = next((one.summary for one in self.compiled.values() if one.summary), "")
        branch = next((work.store.branch for work in self.works.values() if work.store is not None), None) or ""
        hidden = not self.is_seen_early
        return Record(self.group.id, self.group.called, summary, ordered, tuple(self.tags), branch, hidden, self.purge)

    def _staged(self) -> dict[str, list[Result]]:
        """On Icechunk: commit each part on a branch of its own, record it, and publish all."""
        stores: dict[str, Store] = {name: work.store for name, work in self.works.items() if work.store is not None}
        snapshots: dict[str, str | None] = {}
        results = {}
        try:
            for name, store in stores.items():
                compiled, execution = self._ready(name)
                snapshots[name] = compiled.base
                if execution is not None:
                    on_branch = execution.on(store.history.stage(compiled.base, self.group.template.name))
                    snapshots[name] = _write(on_branch, compiled)
                    results[name] = self._results(name, on_branch, snapshots[name])
            self._require_unchanged(stores)
            record = self._record(snapshots)
        except BaseException:
            self.group.unstage(stores)
            raise
        try:
            self.group.record.write(record)
        except BaseException as error:
            if self.group.record.read() != record:  # where that fails, what may be recorded has to stay
                self.group.unstage(stores)
                raise
            if not isinstance(error, Exception):
                raise Interrupted(f"{self.group.called}: interrupted; {_describe(record, stores)}") from error
        self.group.complete(record, stores)
        return results

    def _require_unchanged(self, stores: Mapping[str, Store]) -> None:
        """Make sure that all commits are going to succeed, unless a writer comes that heeds no lock."""
        for name, store in stores.items():
            if (check := self.works[name].check) is not None:
                check()
            if store.head != self.compiled[name].base:
                raise ConflictError(
                    f"{self.group.called}: {store.label} was changed by another writer while this ran; nothing was "
                    "committed, run it again"
                )

    def _one_by_one(self) -> dict[str, list[Result]]:
        """On plain Zarr, and of new stores: each part becomes visible when it is written."""
        if self.tags:
            raise TagError(f"tag: {self.group.label} is plain Zarr, which has no tags")
        record, results = self._record({}), {}
        self.group.record.write(record)
        for name in self.works:
            if record.parts[name].is_done:
                continue
            try:
                compiled, execution = self._ready(name)
                if execution is not None:
                    results[name] = self._results(name, execution, _write(execution, compiled))
            except (VczstoreError, KeyboardInterrupt) as error:
                if self._is_untouched(record, name):
                    self.group.record.delete()
                    raise
                # what is done in some parts is not tried again by itself
                stale = isinstance(error, ConflictError)
                kind = Interrupted if isinstance(error, KeyboardInterrupt) else StaleError if stale else type(error)
                raise kind(f"{error}; {_describe(record, {})}") from error
            record = record.with_done(name)
            self.group.record.write(record)
        self.group.record.delete()
        return results

    def _results(self, name: str, execution: Execution, snapshot: str | None) -> list[Result]:
        """What was done to a part; without what its plan holds, where that is too large to be kept."""
        done = execution.results(snapshot, committed=True)
        return [replace(one, plan=one.plan.summarized()) for one in done] if name in self.again else done

    def _is_untouched(self, record: Record, name: str) -> bool:
        """Whether no reader has noticed anything of what ends here, in its first part."""
        if self.pending is not None or self.is_seen_early or any(part.is_done for part in record.parts.values()):
            return False
        store, plans = self.works[name].store, self.executions[name].plans if name in self.executions else ()
        if store is None:
            return True
        hidden = bool(plans) and not any(plan.first or plan.chunks_of_store for plan in plans)
        return hidden and len(plans) == 1 and store.open().state == record.parts[name].base


def _write(execution: Execution, compiled: Compiled) -> str | None:
    with telling(execution.store, execution.state):
        return execution.write(compiled.message, compiled.metadata)


def _nth(i: int) -> str:
    return ("first", "second", "third")[i] if i < 3 else f"{i + 1}th"


# ---- edits ----------------------------------------------------------------------------------


def _edit(group: StoreSet, operation: Edit, *, dry_run: bool) -> SetResult:
    """Lock, check and write all parts; again after a concurrent commit."""
    with Conversions(group.options.work_dir, group.options.progress) as conversions:
        group = replace(group, options=group.options.but(conversions=conversions))
        options = group.options
        if dry_run:
            group.refuse_pending()
            _check(group)
            return _attempt(group, operation, {}, {}, None, dry_run=True)
        stores: dict[str, Store] = {}
        for name, member in group.members.items():
            assert isinstance(member, Edit)
            with plain_errors(member.store):
                if (store := member.store_to_lock(options)) is not None:
                    stores[name] = store
        with group.locked(stores, exclusive=operation.is_exclusive) as locks:
            record = group.record.read()
            if record is not None:
                group.require_parts_of(record)
                if record.id != group.id:
                    group.refuse_pending()
                if record.is_staged:
                    behind = group.complete(record, stores)
                    purged = group.purge(record, stores, partial(_purge, group, locks))
                    return SetResult(group.called, group.label, True, {}, completed=tuple(behind), purged=purged)
            _check(group)
            attempt = partial(_attempt, group, operation, stores, locks, record, dry_run=False)
            result, n = retried(attempt, options.max_retries, nullcontext)
            return _afterwards(group, replace(result, retries=n), stores, locks)


def _check(group: StoreSet) -> None:
    """Check what is known before anything is compiled."""
    for member in group.members.values():
        assert isinstance(member, Edit)
        member.check(group.options)


def _attempt(
    group: StoreSet,
    operation: Edit,
    stores: Mapping[str, Store],
    locks: Mapping[str, HeldLock],
    pending: Record | None,
    *,
    dry_run: bool,
) -> SetResult:
    """Check all parts, and write them."""
    with Workers(group.options) as workers:
        works = {
            name: Work(
                stores.get(name),
                partial(_compile, group, name, stores.get(name), workers, dry_run=dry_run),
                locks[name].check if name in locks else None,
            )
            for name in group.members
        }
        writing = Writing(
            group,
            works,
            workers,
            pending=pending,
            is_seen_early=operation.is_seen_early,
            purge=operation.purges,
            dry_run=dry_run,
        )
        writing.check()
        if dry_run:
            done = {name: one.results(None, committed=False) for name, one in writing.executions.items()}
        else:
            done = writing.write()
        parts = {name: together(one).with_surveys(writing.compiled[name].surveys) for name, one in done.items()}
        return SetResult(group.called, group.label, not dry_run, parts)


def _compile(group: StoreSet, name: str, written: Store | None, workers: Workers, *, dry_run: bool) -> Compiled:
    """Compile what an operation does to one part."""
    operation = group.members[name]
    assert isinstance(operation, Edit)
    compiling = open_operation(operation, group.options, written, dry_run=dry_run)
    surveys = Run("")
    plans = compile_all(operation, compiling, workers, surveys)
    message, metadata = history_of(plans)
    return Compiled(
        plans=plans,
        base=plans[0].base,
        message=message,
        metadata=metadata,
        before=Samples.of(compiling.opened),
        after=Samples.of(plans[-1].after),
        sources=[Samples.of(source) for source in compiling.sources] if operation.writes else (),
        surveys=surveys,
    )


def _afterwards(
    group: StoreSet, result: SetResult, stores: Mapping[str, Store], locks: Mapping[str, HeldLock]
) -> SetResult:
    """The purge of all parts, if one follows their commits; on plain Zarr, too, where no record is left by then."""
    purges = next(member.purges for member in group.members.values() if isinstance(member, Edit))
    if not purges:
        return result
    record = group.record.read() or Record(group.id, group.called, "", {}, purge=purges)
    written = {name: stores[name] for name in result.parts if name in stores}
    parts = dict(result.parts)
    for name, purged in group.purge(record, written, partial(_purge, group, locks)).items():
        parts[name] = parts[name].with_purge(purged)
    return replace(result, parts=parts)


def _purge(group: StoreSet, locks: Mapping[str, HeldLock], name: str) -> Found:
    """Delete the history of one part."""
    member = group.members[name]
    assert isinstance(member, Edit)
    return member.purge_history(group.options, locks[name])
