"""
Writing all parts of a set once they are checked.

On Icechunk each part is committed on a branch of its own, which no reader looks at; what is about to become visible is
recorded beside the stores, and then all is published. Groups of one repository are written in one commit. On plain
Zarr, which has no branches, each part is written and becomes visible in its turn, under the same record.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from vczstore.errors import ConflictError, Interrupted, StaleError, TagError, VczstoreError
from vczstore.execution.engine import Execution, commit, telling
from vczstore.execution.naming import Left
from vczstore.execution.results import Result
from vczstore.execution.sets.checking import Checking
from vczstore.execution.sets.completion import complete
from vczstore.stores.base import Store, Transaction
from vczstore.stores.sets import Record


def write(checked: Checking) -> dict[str, list[Result]]:
    """Write all parts, and let all become visible."""
    if not checked.tags and not checked.executions and not checked.again:
        if checked.pending is not None:  # the run that was stopped has done it all
            checked.group.record.delete()
        return {}
    stores = {name: work.store for name, work in checked.works.items() if work.store is not None}
    if len(stores) < len(checked.works) or not all(store.history.is_kept for store in stores.values()):
        return _one_by_one(checked)
    in_one = all(store.group for store in stores.values()) and len({store.place for store in stores.values()}) == 1
    return _in_one_commit(checked, stores) if in_one else _staged(checked, stores)


def _in_one_commit(checked: Checking, stores: Mapping[str, Store]) -> dict[str, list[Result]]:
    """In groups of one Icechunk repository: one commit has all parts, and nothing has to be recorded."""
    from vczstore.stores.icechunk import IcechunkTransaction

    _require_unchanged(checked, stores)
    transaction: IcechunkTransaction | None = None
    written = dict[str, Execution]()
    for batch in checked.batches():
        stages = []
        for name in batch:
            _, execution = checked.ready(name)
            if execution is None or execution.is_empty:
                continue
            with telling(execution.store.label, execution.left):
                begun = transaction or execution.begin()
            assert isinstance(begun, IcechunkTransaction)
            transaction = begun.of(execution.store)
            stages.append(execution.told(execution.writes(transaction)))
            written[name] = execution
        checked.run(stages)
    first = next(iter(checked.compiled.values()))
    snapshot: str | None = next((one.applied for one in checked.compiled.values() if one.applied), first.base)
    if transaction is not None:
        _require_unchanged(checked, stores)
        done = [checked.compiled[name] for name in written]
        last = [*written.values()][-1]
        with telling(last.store.label, last.left):
            said = {**done[0].metadata, "parts": [*written]}
            snapshot = commit(transaction, f"{done[0].message} (in {', '.join(written)})", said)
    history = next(iter(stores.values())).history
    try:
        for tag in checked.tags:
            if tag not in history.tags():
                history.create_tag(tag, snapshot)
    except VczstoreError as error:
        raise type(error)(f"{error}; {first.summary or 'all else'} is done in all parts") from error
    return {name: _results(checked, name, one, snapshot) for name, one in written.items()}


def _staged(checked: Checking, stores: Mapping[str, Store]) -> dict[str, list[Result]]:
    """On Icechunk: commit each part on a branch of its own, record it, and publish all."""
    snapshots: dict[str, str | None] = {name: one.base for name, one in checked.compiled.items()}
    results = {}
    try:
        for batch in checked.batches():
            for name, (execution, snapshot) in _write_together(checked, batch, stores).items():
                snapshots[name], results[name] = snapshot, _results(checked, name, execution, snapshot)
        _require_unchanged(checked, stores)
        record = checked.record(snapshots)
    except BaseException:
        checked.group.unstage(stores)
        raise
    try:
        checked.group.record.write(record)
    except BaseException as error:
        if checked.group.record.read() != record:  # where that fails, what may be recorded has to stay
            checked.group.unstage(stores)
            raise
        if not isinstance(error, Exception):
            raise Interrupted(
                f"{checked.group.called}: interrupted; {checked.group.describe(record, stores)}"
            ) from error
    complete(checked.group, record, stores)
    return results


def _write_together(
    checked: Checking, names: Sequence[str], stores: Mapping[str, Store]
) -> dict[str, tuple[Execution, str | None]]:
    """Write some parts with one queue of tasks, each on a branch of its own; what was run, and the snapshots."""
    ready = {name: checked.ready(name) for name in names}
    writing = dict[str, tuple[Execution, Transaction]]()
    written = dict[str, tuple[Execution, str | None]]()
    for name, (compiled, found) in ready.items():
        if found is None:
            continue
        execution = found.on(stores[name].history.stage(compiled.base, checked.group.template.name))
        with telling(execution.store.label, execution.left):
            if execution.is_empty:
                written[name] = execution, compiled.base
            else:
                writing[name] = execution, execution.begin()
    checked.run([one.told(one.writes(transaction)) for one, transaction in writing.values()])
    for name, (execution, transaction) in writing.items():
        compiled, _ = ready[name]
        with telling(execution.store.label, execution.left):
            written[name] = execution, execution.commit(transaction, compiled.message, compiled.metadata)
    return {name: written[name] for name in names if name in written}


def _require_unchanged(checked: Checking, stores: Mapping[str, Store]) -> None:
    """Make sure that all commits are going to succeed, unless a writer comes that heeds no lock."""
    for name, store in stores.items():
        if (check := checked.works[name].check) is not None:
            check()
        if store.head != checked.compiled[name].base:
            raise ConflictError(
                f"{checked.group.called}: {store.label} was changed by another writer while this ran; nothing was "
                "committed, run it again"
            )


def _one_by_one(checked: Checking) -> dict[str, list[Result]]:
    """On plain Zarr, and of new stores: each part becomes visible when it is written."""
    if checked.tags:
        raise TagError(f"tag: {checked.group.label} is plain Zarr, which has no tags")
    record, results = checked.record({}), {}
    checked.group.record.write(record)
    for name in checked.works:
        if record.parts[name].is_done:
            continue
        try:
            compiled, execution = checked.ready(name)
            if execution is not None:
                left = partial(_left, checked, record, name, execution)
                with telling(execution.store.label, left):
                    snapshot = execution.write(compiled.message, compiled.metadata)
                results[name] = _results(checked, name, execution, snapshot)
        except (VczstoreError, KeyboardInterrupt) as error:
            if _is_untouched(checked, record, name):
                checked.group.record.delete()
                raise
            # what is done in some parts is not tried again by itself
            stale = isinstance(error, ConflictError)
            kind = Interrupted if isinstance(error, KeyboardInterrupt) else StaleError if stale else type(error)
            described = checked.group.describe(record, {})
            raise kind(f"{error}" if described in str(error) else f"{error}; {described}") from error
        record = record.with_done(name)
        checked.group.record.write(record)
    checked.group.record.delete()
    return results


def _results(checked: Checking, name: str, execution: Execution, snapshot: str | None) -> list[Result]:
    """What was done to a part; without what its plan holds, where that is too large to be kept."""
    done = execution.results(snapshot, committed=True)
    return [replace(one, plan=one.plan.summarized()) for one in done] if name in checked.again else done


def _is_untouched(checked: Checking, record: Record, name: str) -> bool:
    """Whether no reader has noticed anything of what ends here, in its first part."""
    if checked.pending is not None or checked.is_seen_early or any(part.is_done for part in record.parts.values()):
        return False
    store, plans = checked.works[name].store, checked.executions[name].plans if name in checked.executions else ()
    if store is None:
        return True
    hidden = bool(plans) and not any(plan.first or plan.chunks_of_store for plan in plans)
    return hidden and len(plans) == 1 and store.open().state == record.parts[name].base


def _left(checked: Checking, record: Record, name: str, execution: Execution) -> Left:
    """What is left of a part that ends here; the way out is that of the set, unless no reader has noticed anything."""
    left = execution.left()
    return left if _is_untouched(checked, record, name) else left._replace(way_out=checked.group.describe(record, {}))
