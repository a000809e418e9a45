"""
Write all parts of a set after they were checked.

On Icechunk, each part is committed on a branch of its own, which no reader looks at; then a record of the pending
commits is written next to the stores, and all are published. Groups of one repository are written in one commit. On
plain Zarr, which has no branches, each part becomes visible when it is written, under the same record.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from vczstore.errors import ConflictError, Interrupted, StaleError, TagError, VczstoreError
from vczstore.execution.engine import Execution, reporting
from vczstore.execution.naming import Aborted
from vczstore.execution.results import Result
from vczstore.execution.sets.checking import Checking
from vczstore.execution.sets.completion import complete
from vczstore.stores.base import Transaction
from vczstore.stores.sets import Record


def write(checked: Checking) -> dict[str, list[Result]]:
    """Write all parts and make them visible; return the results of the plans of each part that was written, by part."""
    if not checked.tags and not checked.executions and not checked.recompiled:
        if checked.pending is not None:  # the interrupted run had written all parts
            checked.group.record.delete()
        return {}
    stores = checked.stores.values()
    if len(stores) < len(checked.group.places) or not all(store.history.is_kept for store in stores):
        return _one_by_one(checked)
    in_one = all(store.group for store in stores) and len({store.place for store in stores}) == 1
    return _in_one_commit(checked) if in_one else _staged(checked)


def _in_one_commit(checked: Checking) -> dict[str, list[Result]]:
    """Write the groups of one Icechunk repository in one commit, which needs no record."""
    from vczstore.stores.icechunk import IcechunkTransaction

    _require_unchanged(checked)
    transaction: IcechunkTransaction | None = None
    written = dict[str, Execution]()
    for batch in checked.batches():
        stages = []
        for name in batch:
            _, execution = checked.ready(name)
            if execution is None or execution.is_empty:
                continue
            with reporting(execution.store.label, execution.if_aborted):
                begun = transaction or execution.begin()
            assert isinstance(begun, IcechunkTransaction)
            transaction = begun.of(execution.store)
            stages.append(execution.reported(execution.writes(transaction)))
            written[name] = execution
        checked.run(stages)
    first = next(iter(checked.compiled.values()))
    snapshot: str | None = next((part.applied for part in checked.compiled.values() if part.applied), first.base)
    if transaction is not None:
        _require_unchanged(checked)
        done = [checked.compiled[name] for name in written]
        last = [*written.values()][-1]
        with reporting(last.store.label, last.if_aborted):
            metadata = {**done[0].metadata, "parts": [*written]}
            snapshot = last.commit(transaction, f"{done[0].message} (in {', '.join(written)})", metadata)
    history = next(iter(checked.stores.values())).history
    try:
        for tag in checked.tags:
            if tag not in history.tags():
                history.create_tag(tag, snapshot)
    except VczstoreError as error:
        raise type(error)(f"{error}; {first.summary or 'all else'} is done in all parts") from error
    return {name: _results(checked, name, execution, snapshot) for name, execution in written.items()}


def _staged(checked: Checking) -> dict[str, list[Result]]:
    """Commit each part on a branch of its own repository, write a record of the commits, and publish all."""
    stores = checked.stores
    snapshots: dict[str, str | None] = {name: part.base for name, part in checked.compiled.items()}
    results = {}
    try:
        for batch in checked.batches():
            for name, (execution, snapshot) in _write_together(checked, batch).items():
                snapshots[name], results[name] = snapshot, _results(checked, name, execution, snapshot)
        _require_unchanged(checked)
        record = checked.record(snapshots)
    except BaseException:
        checked.group.unstage(stores)
        raise
    try:
        checked.group.record.write(record)
    except BaseException as error:
        if checked.group.record.read() != record:  # if reading fails, the record may exist, so the branches must stay
            checked.group.unstage(stores)
            raise
        if not isinstance(error, Exception):
            raise Interrupted(
                f"{checked.group.called}: interrupted; {checked.group.describe(record, stores)}"
            ) from error
    complete(checked.group, record, stores)
    return results


def _write_together(checked: Checking, names: Sequence[str]) -> dict[str, tuple[Execution, str | None]]:
    """Write parts with one queue of tasks, each on a branch of its own; return their executions and snapshots."""
    ready = {name: checked.ready(name) for name in names}
    writing = dict[str, tuple[Execution, Transaction]]()
    written = dict[str, tuple[Execution, str | None]]()
    for name, (compiled, checked_execution) in ready.items():
        if checked_execution is None:
            continue
        history = checked.stores[name].history
        execution = checked_execution.on(history.stage(compiled.base, checked.group.template.name))
        with reporting(execution.store.label, execution.if_aborted):
            if execution.is_empty:
                written[name] = execution, compiled.base
            else:
                writing[name] = execution, execution.begin()
    checked.run([execution.reported(execution.writes(transaction)) for execution, transaction in writing.values()])
    for name, (execution, transaction) in writing.items():
        compiled, _ = ready[name]
        with reporting(execution.store.label, execution.if_aborted):
            written[name] = execution, execution.commit(transaction, compiled.message, compiled.metadata)
    return {name: written[name] for name in names if name in written}


def _require_unchanged(checked: Checking) -> None:
    """Check that no lock is lost and no part has changed; raise a `StaleError` or `ConflictError`."""
    for name, store in checked.stores.items():
        checked.locks[name].check()
        if store.head != checked.compiled[name].base:
            raise ConflictError(
                f"{checked.group.called}: {store.label} was changed by another writer while this ran; nothing was "
                "committed, run it again"
            )


def _one_by_one(checked: Checking) -> dict[str, list[Result]]:
    """Write the parts one after the other, on plain Zarr and for new stores: each is visible once it is written."""
    if checked.tags:
        raise TagError(f"tag: {checked.group.label} is plain Zarr, which has no tags")
    record, results = checked.record({}), {}
    checked.group.record.write(record)
    for name in checked.group.places:
        if record.parts[name].is_done:
            continue
        try:
            compiled, execution = checked.ready(name)
            if execution is not None:
                if_aborted = partial(_if_aborted, checked, record, name, execution)
                with reporting(execution.store.label, if_aborted):
                    snapshot = execution.write(compiled.message, compiled.metadata)
                results[name] = _results(checked, name, execution, snapshot)
        except (VczstoreError, KeyboardInterrupt) as error:
            if _is_untouched(checked, record, name):
                checked.group.record.delete()
                raise
            # a ConflictError would be retried, which must not happen once some parts are done
            stale = isinstance(error, ConflictError)
            kind = Interrupted if isinstance(error, KeyboardInterrupt) else StaleError if stale else type(error)
            described = checked.group.describe(record, {})
            raise kind(f"{error}" if described in str(error) else f"{error}; {described}") from error
        record = record.with_done(name)
        checked.group.record.write(record)
    checked.group.record.delete()
    return results


def _results(checked: Checking, name: str, execution: Execution, snapshot: str | None) -> list[Result]:
    """Return the results of the plans of a part; with summarized plans if the full ones are too large to keep."""
    done = execution.results(snapshot, committed=True)
    return [replace(result, plan=result.plan.summarized()) for result in done] if name in checked.recompiled else done


def _is_untouched(checked: Checking, record: Record, name: str) -> bool:
    """Whether an operation that fails in its first part has changed nothing that readers see."""
    if checked.pending is not None or checked.is_seen_early or any(part.is_done for part in record.parts.values()):
        return False
    store, plans = checked.stores.get(name), checked.executions[name].plans if name in checked.executions else ()
    if store is None:
        return True
    hidden = bool(plans) and not any(plan.first_steps or plan.chunks_of_store for plan in plans)
    return hidden and len(plans) == 1 and store.open().state == record.parts[name].base


def _if_aborted(checked: Checking, record: Record, name: str, execution: Execution) -> Aborted:
    """Return the state in which a part is left. The way out is that of the set, unless readers have seen no change."""
    aborted = execution.if_aborted()
    if _is_untouched(checked, record, name):
        return aborted
    return aborted._replace(way_out=checked.group.describe(record, {}))
