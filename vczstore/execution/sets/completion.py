"""
Complete the pending changes of a record: publish all parts, then tag them, then purge their history.

If this is interrupted, `repair` or the same operation completes it in the same way.
"""

from collections.abc import Callable, Mapping, Sequence

from vczstore.errors import (
    ConflictError,
    Interrupted,
    StaleError,
    StorageError,
    TagError,
    VczstoreError,
    first_line,
)
from vczstore.execution.results import Found
from vczstore.execution.sets.members import Samples, StoreSet
from vczstore.stores.base import Store
from vczstore.stores.object_store import plain_errors
from vczstore.stores.sets import PartRecord, Record
from vczstore.vcz.model import listing


def complete(group: StoreSet, record: Record, stores: Mapping[str, Store]) -> list[str]:
    """
    Publish the pending commits of all parts, then tag the parts; the locks must be held. `purge_all` does the purge.

    Returns
    -------
    list of str
        The parts that were published by this call.

    Raises
    ------
    StaleError
        If a part was changed by another writer, so that its pending commit cannot be published.
    """
    published = []
    try:
        for name, part in record.parts.items():
            if not part.is_done:
                published += [name] * _publish(group, name, record, stores[name])
        for tag in record.tags:
            for name, part in record.parts.items():
                if not _is_tagged(tag, part.snapshot, stores[name]):
                    stores[name].history.create_tag(tag, part.snapshot)
        if record.purge:
            group.record.write(record.with_done(*record.parts))
        else:
            group.record.delete()
    except KeyboardInterrupt as error:
        raise Interrupted(f"{group.called}: interrupted; {group.describe(record, stores)}") from error
    except VczstoreError as error:
        kind = StaleError if isinstance(error, ConflictError) else type(error)  # a ConflictError would be retried
        raise kind(f"{group.called}: {error}; {group.describe(record, stores)}") from error
    except Exception as error:
        raise StorageError(
            f"{group.called}: {group.label}: {first_line(error)}; {group.describe(record, stores)}"
        ) from error
    group.unstage(stores)
    return published


def _publish(group: StoreSet, name: str, record: Record, store: Store) -> bool:
    """Publish the pending commit of a part; return False if it is visible, or another commit has the same effect."""
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
                f"delete {group.record.place}"
            ) from error
        return False
    return True


def purge_all(
    group: StoreSet, record: Record, stores: Mapping[str, Store], purge_part: Callable[[str], Found]
) -> dict[str, Found]:
    """
    Purge all parts with `purge_part`, if the record asks for it; the locks must be held.

    Returns
    -------
    dict
        The return values of `purge_part`, by part.

    Raises
    ------
    VczstoreError
        If some parts could not be purged; the others are.
    """
    done, failed = dict[str, Found](), dict[str, VczstoreError]()
    try:
        for name, store in stores.items() if record.purge else ():
            try:
                with plain_errors(store.label):
                    done[name] = purge_part(name)
            except VczstoreError as error:
                failed[name] = error
    except KeyboardInterrupt as error:
        described = group.describe(record.with_done(*record.parts), stores)
        raise Interrupted(f"{group.called}: interrupted; {described}") from error
    if record.purge:
        group.record.delete()
    if failed:
        first = next(iter(failed.values()))
        options = "" if record.purge == "refuse" else f" --tags {record.purge}"
        raise type(first)(
            f"{group.called}: {record.operation} is done in all parts, but the history of {listing([*failed])} "
            f"is not purged: {first}; complete it with: vczstore purge {group.label}{options}"
        )
    return done


def _is_tagged(tag: str, snapshot: str | None, store: Store) -> bool:
    """Whether a part has a tag; raise a `TagError` if the tag names another snapshot."""
    tagged = store.history.tags().get(tag)
    if tagged not in (None, snapshot):
        raise TagError(f"tag: {tag!r} exists already in {store.label}, on snapshot {tagged}")
    return tagged is not None


def tag_all(group: StoreSet, tag: str) -> dict[str, str]:
    """
    Tag the current states of all parts, or of none.

    Returns
    -------
    dict
        ID of the tagged snapshot, by part.

    Raises
    ------
    TagError
        If the tag cannot be created in a part: it exists or once existed, or no history is kept.
    IncompatibleError
        If the parts do not have the same samples.
    """

    def part_of(store: Store) -> tuple[PartRecord, Samples]:
        store.history.refuse_tag(tag)
        vcz = store.open()
        samples = Samples.of(vcz)
        return PartRecord(vcz.state, vcz.state, samples.digest, samples.digest), samples

    parts = _apply_to_all(group, "tag", tag, part_of, "the parts", tags=(tag,))
    return {name: str(part.snapshot) for name, part in parts.items()}


def tag_states(
    group: StoreSet, stores: Mapping[str, Store], states: Mapping[str, tuple[str, Samples]], tags: Sequence[str]
) -> None:
    """
    Tag all parts after a job; the locks must be held. `states` are the snapshot ID and samples to tag, by part.

    Raises
    ------
    TagError
        If a tag exists and names another snapshot. No part is tagged then.
    """
    for tag in tags:
        for name, (snapshot, _) in states.items():
            if not _is_tagged(tag, snapshot, stores[name]):
                stores[name].history.refuse_tag(tag)
    if tags:
        parts = {name: PartRecord(at, at, samples.digest, samples.digest) for name, (at, samples) in states.items()}
        branch = next(iter(stores.values())).branch or ""
        record = Record(group.id, "tag", ", ".join(tags), parts, tuple(tags), branch)
        group.record.write(record)
        complete(group, record, stores)


def publish_all(group: StoreSet, name: str) -> Mapping[str, PartRecord]:
    """
    Fast-forward the main branches of all parts to the last snapshot of another branch.

    Returns
    -------
    mapping
        The record of each part: its snapshots before and after.

    Raises
    ------
    StaleError
        If the main branch of a part has changed since the other one was created. No part is changed then.
    IncompatibleError
        If the parts do not have the same samples on the branch.
    """

    def part_of(store: Store) -> tuple[PartRecord, Samples]:
        branches, now, then = store.history.branches(), store.open(), store.open(name)
        tip = branches.tips()[name] if branches.is_ahead(name, publishing=True) else now.state
        samples = Samples.of(then)
        return PartRecord(now.state, tip, Samples.of(now).digest, samples.digest), samples

    return _apply_to_all(group, "publish", name, part_of, f"the branches {name}")


def _apply_to_all(
    group: StoreSet,
    operation: str,
    summary: str,
    part_of: Callable[[Store], tuple[PartRecord, Samples]],
    subject: str,
    tags: Sequence[str] = (),
) -> Mapping[str, PartRecord]:
    """
    Write a record of changes to all parts, and complete it; or complete the record of an interrupted run.

    `part_of` checks one part; it returns its record, and the samples, which have to be equal in all parts. `subject` is
    the subject of the message if they differ.
    """
    stores = group.open()
    for store in stores.values():
        store.history.require(operation)
    with group.locked(stores) as locks:
        record = group.record.read()
        if record is None or record.id != group.id:
            group.refuse_pending(locked=True)
            changes = {name: part_of(store) for name, store in stores.items()}
            group.agree({name: samples for name, (_, samples) in changes.items()}, subject)
            parts = {name: part for name, (part, _) in changes.items()}
            branch = next(iter(stores.values())).branch or ""
            record = Record(group.id, operation, summary, parts, tags, branch)
            for lock in locks.values():  # a job may have lost them since it acquired them
                lock.check()
            group.record.write(record)
        group.require_parts_of(record)
        complete(group, record, stores)
    return record.parts
