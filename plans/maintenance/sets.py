"""Describe a set of stores, find parts that are out of step, and repair the set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plans.core.model import in_words
from plans.maintenance.info import Description
from plans.maintenance.purge import Purged, purge_store
from vczstore.errors import VczstoreError
from vczstore.execution.results import FoundInParts, Shown
from vczstore.execution.sets.completion import complete, purge_all
from vczstore.execution.sets.members import Samples, StoreSet, differing
from vczstore.stores.base import Store
from vczstore.stores.sets import Record
from vczstore.vcz.model import listing


@dataclass(frozen=True)
class SetDescription(Shown):
    """
    The contents of a set of stores.

    Attributes
    ----------
    store
        Label of the set.
    parts
        Description of each part, by name.
    errors
        How the parts are out of step; empty if all have the same samples and tags.
    """

    store: str
    parts: Mapping[str, Description]
    errors: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        parts = {name: part.as_dict() for name, part in self.parts.items()}
        return {"store": self.store, "errors": list(self.errors), "parts": parts}

    def lines(self) -> list[str]:
        """Return the lines that the command prints: the set, and then a line for each part."""
        first = next(iter(self.parts.values()))
        same = "not in step" if self.errors else f"{in_words({'samples': first.samples})}, the same in all"
        tags = [] if self.errors or not first.tags else [("tags", ", ".join(first.tags))]
        rows = [("set", f"{self.store}: {in_words({'parts': len(self.parts)})}, {same}"), *tags]
        rows += [("error", error) for error in self.errors]
        for name, part in self.parts.items():
            at = f", snapshot {part.snapshot}" if part.snapshot else ""
            removed = f" ({part.removed_samples:,} removed)" if part.removed_samples else ""
            rows.append(
                (name, f"{in_words({'samples': part.samples})}{removed}, {in_words({'variants': part.variants})}{at}")
            )
        width = max(8, *(len(name) for name, _ in rows)) + 2
        return [f"{name:<{width}}{value}" for name, value in rows]


def out_of_step(stores: Mapping[str, Store], at: str | None = None) -> list[str]:
    """Return messages about differences between the parts of a set: in their samples, or in their tags."""
    errors = []
    samples = {name: Samples.of(store.open(at)) for name, store in stores.items()}
    if (difference := differing(samples)) is not None:
        errors.append(f"the parts {difference}")
    tags = {name: set(store.history.tags()) for name, store in stores.items()}
    for tag in sorted(set().union(*tags.values())):
        lacking = [name for name, own in tags.items() if tag not in own]
        errors += [f"the tag {tag} is not in {listing(lacking)}"] * bool(lacking)
    return errors


def repair_set(group: StoreSet, *, dry_run: bool) -> FoundInParts:
    """Complete an interrupted operation on a set if its record allows it, and repair each part."""
    record, notes, errors = group.record.read(), list[str](), list[str]()
    if record is not None and record.is_staged:
        stores = group.open()
        group.require_parts_of(record)
        if dry_run:
            notes.append(f"would complete what was stopped: {group.describe(record, stores)}")
        else:
            with group.locked(stores) as locks:
                behind = complete(group, record, stores)

                def purge(name: str) -> Purged:
                    return purge_store(stores[name], record.purge, locks[name], group.options)

                purge_all(group, record, stores, purge)
            notes.append(f"completed {record.operation} ({record.summary}): {listing(behind) or 'no part lacked it'}")
    if record is None and not dry_run:
        with group.locked(group.open()):  # cleans up after a run that was interrupted before it wrote a record
            pass
    parts = group.perform(dry_run=dry_run)
    if record is not None and not record.is_staged:
        outcome = _settled(group, record)
        if outcome is None:
            errors.append(group.describe(record, {}))
        else:
            notes.append(outcome)
            if not dry_run:
                group.record.delete()
    if not dry_run:
        stores = group.open()
        if (difference := differing({name: Samples.of(store.open()) for name, store in stores.items()})) is not None:
            errors.append(f"the parts {difference}")
    return FoundInParts(group.called, group.label, parts, errors, notes)


def _settled(group: StoreSet, record: Record) -> str | None:
    """Return the outcome of an operation interrupted on plain Zarr; None if only running it again completes it."""
    group.require_parts_of(record)
    try:
        digests = {name: Samples.of(store.open()).digest for name, store in group.open().items()}
    except VczstoreError:
        return None
    if any(part.before == part.after for part in record.parts.values()):
        return None
    if all(digests[name] == part.after for name, part in record.parts.items()):
        return f"{record.operation} ({record.summary}) is done in all parts"
    if record.is_hidden and all(digests[name] == part.before for name, part in record.parts.items()):
        return f"{record.operation} ({record.summary}) is done in no part; run it again"
    return None
