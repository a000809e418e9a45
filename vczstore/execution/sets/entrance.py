"""
The entry point of operations on a store, or on all stores of a set.

1. All parts are compiled and checked: the parts must have the same samples in the same order, before and after.
2. All parts are written. On Icechunk, each is committed on a branch of its own, which no reader looks at.
3. A record of the pending changes is written next to the stores.
4. The parts become visible one after the other; then all are tagged, and the record is deleted.

A failure before step 3 changes nothing. An operation that is killed after that is completed by `repair`, or by running
it again; until then all others are refused. On Icechunk, the pending commits are in the stores, and are published
without reading a source. On plain Zarr, which has no branches, step 3 comes before step 2, and each part becomes
visible when it is written: the same operation has to be run again, and writes the pending parts.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from vczstore.errors import OptionError
from vczstore.execution import engine
from vczstore.execution.conversions import Conversions
from vczstore.execution.engine import compile_all, history_of, open_operation
from vczstore.execution.naming import naming, title, when_begun
from vczstore.execution.operations import Edit, Operation
from vczstore.execution.options import Options
from vczstore.execution.results import Found, Run, SetResult, together
from vczstore.execution.retry import retried
from vczstore.execution.sets.checking import Checking, Compiled
from vczstore.execution.sets.completion import complete, purge_all
from vczstore.execution.sets.members import Samples, StoreSet, taking_for_parts
from vczstore.execution.sets.writing import write
from vczstore.execution.workers import Workers
from vczstore.stores.base import Store
from vczstore.stores.lock import HeldLock
from vczstore.stores.object_store import plain_errors
from vczstore.stores.resolve import refuse_read_only
from vczstore.stores.sets import PART, Record, is_template


def run(operation: Operation, options: Options, *, dry_run: bool = False) -> Any:
    """
    Run an operation on a store, or on all stores of a set.

    Parameters
    ----------
    operation
        The operation with its arguments.
    options
        How stores are opened and tasks are run.
    dry_run
        Check everything, write nothing.

    Returns
    -------
    Result, SetResult or Found
        For an `Edit`, the first on a store and the second on a set; else the return value of its `perform` or
        `perform_set`.

    Raises
    ------
    VczstoreError
        If the operation is invalid, or storage fails. Nothing has changed unless the message names the parts that are
        ahead.
    Interrupted
        On a keyboard interrupt; the message describes the state of the store.
    """
    with naming(operation.called) as standing, engine.progress_display(options, title(operation)) as opts:
        if not is_template(operation.store):
            if options.parts:
                raise OptionError(
                    f"{operation.called}: --parts needs a set of stores; put {PART} into the name of the store"
                )
            return engine.run(operation, opts, standing, dry_run=dry_run)
        standing.state = when_begun(operation, dry_run=dry_run)
        engine.refuse_branch(operation, options)
        group = StoreSet.of(operation, opts)
        for member in group.members.values():
            if member.writes:
                refuse_read_only(operation.called, member.store)
        with taking_for_parts(group.label, () if options.parts else group.places.values(), "--parts"):
            return perform(operation, group, dry_run=dry_run)


def perform(operation: Operation, group: StoreSet, *, dry_run: bool = False) -> Any:
    """Run an operation on a set, within a job if that holds the locks (`StoreSet.held`); return as `run` does."""
    if isinstance(operation, Edit):
        result = _edit(group, operation, dry_run=dry_run)
        return (
            result
            if dry_run or operation.makes_store
            else replace(result, notes=group.left_out(by_samples=operation.changes_samples))
        )
    with plain_errors(operation.store):
        if not operation.completes and (operation.writes or operation.is_handed_out):
            group.refuse_pending()
        outcome: Any = operation.perform_set(group, dry_run=dry_run)
        if operation.writes or (pending := group.pending()) is None:
            return outcome
        return replace(outcome, errors=[str(pending), *outcome.errors])


def _edit(group: StoreSet, operation: Edit, *, dry_run: bool) -> SetResult:
    """Lock, check and write all parts, and retry after a concurrent commit; or complete an interrupted run."""
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
                    group.refuse_pending(locked=True)
                if record.is_staged:
                    published = complete(group, record, stores)
                    purged = purge_all(group, record, stores, partial(_purge, group, locks))
                    return SetResult(group.called, group.label, True, {}, completed=tuple(published), purged=purged)
            _check(group)
            attempt = partial(_attempt, group, operation, stores, locks, record, dry_run=False)
            result, n = retried(attempt, options.max_retries, nullcontext)
            return _afterwards(group, replace(result, retries=n), stores, locks)


def _check(group: StoreSet) -> None:
    """Check arguments and options of all parts before anything is compiled."""
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
    """Compile and check all parts and, unless `dry_run`, write them."""
    with Workers(group.options) as workers:
        checked = Checking(
            group,
            partial(_compile, group, stores, workers),
            workers,
            stores,
            locks,
            pending=pending,
            is_seen_early=operation.is_seen_early,
            purge=operation.purges,
            dry_run=dry_run,
        )
        checked.check()
        if dry_run:
            done = {name: execution.results(None, committed=False) for name, execution in checked.executions.items()}
        else:
            done = write(checked)
        parts = {name: together(results) for name, results in done.items()}
        return SetResult(group.called, group.label, not dry_run, parts)


def _compile(group: StoreSet, stores: Mapping[str, Store], workers: Workers, name: str) -> Compiled:
    """Compile an operation on one part."""
    operation = group.members[name]
    assert isinstance(operation, Edit)
    compiling = open_operation(operation, group.options, stores.get(name))
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
        sources=[Samples.of(source) for source in compiling.sources] if not operation.makes_store else (),
        surveys=surveys,
    )


def _afterwards(
    group: StoreSet, result: SetResult, stores: Mapping[str, Store], locks: Mapping[str, HeldLock]
) -> SetResult:
    """Purge the written parts, if the operation asks for it; on plain Zarr, the record has been deleted before."""
    purges = next(member.purges for member in group.members.values() if isinstance(member, Edit))
    if not purges:
        return result
    record = group.record.read() or Record(group.id, group.called, "", {}, purge=purges)
    written = {name: stores[name] for name in result.parts if name in stores}
    parts = dict(result.parts)
    for name, purged in purge_all(group, record, written, partial(_purge, group, locks)).items():
        parts[name] = parts[name].with_purge(purged)
    return replace(result, parts=parts)


def _purge(group: StoreSet, locks: Mapping[str, HeldLock], name: str) -> Found:
    """Delete the history of one part."""
    member = group.members[name]
    assert isinstance(member, Edit)
    return member.purge_history(group.options, locks[name])
