"""
Purge and gc: delete the history, or unreferenced objects.

A purge deletes the history of a store, so that removed samples cannot be read through any older snapshot. Garbage
collection leaves the history alone, and deletes objects that no snapshot references.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from plans.compilers.remove import compile_remove
from vczstore.choices import RECREATE
from vczstore.errors import Interrupted, VczstoreError
from vczstore.execution.engine import run_plans
from vczstore.execution.options import Options
from vczstore.execution.results import AsDict
from vczstore.sizes import human_size
from vczstore.stores.base import Keep, Store
from vczstore.stores.lock import HeldLock
from vczstore.vcz.model import REMOVED, Vcz

NO_HISTORY = "plain Zarr keeps no history: what was removed is overwritten already"


@dataclass(frozen=True)
class Purged(AsDict):
    """
    The result of a purge.

    Attributes
    ----------
    store
        Label of the store.
    snapshot
        The new snapshot; None on plain Zarr.
    counts
        Numbers of deleted objects by kind, and ``bytes``.
    deleted
        Tags and branches that were deleted.
    recreated
        The new name of each rewritten tag, by old name.
    """

    store: str
    snapshot: str | None
    counts: Mapping[str, int] = field(default_factory=dict)
    deleted: tuple[str, ...] = ()
    recreated: Mapping[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        counts = dict(self.counts)
        if self.snapshot is None:
            return [f"purge {self.store}: {_in_words(counts) or 'nothing to do'}; {NO_HISTORY}"]
        size = human_size(counts.pop("bytes"))
        return [
            f"purge {self.store}: {_in_words(counts)}, {size}, snapshot {self.snapshot}",
            *(f"  deleted {name}, which kept an older snapshot" for name in self.deleted),
            *(f"  {old} is {new} now, without what was removed since" for old, new in self.recreated.items()),
        ]


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in counts.items())


@dataclass(frozen=True)
class Foreseen:
    """
    The result of a dry run of a purge.

    Attributes
    ----------
    store
        Label of the store.
    counts
        Numbers of objects that would be deleted, by kind; ``bytes`` counts those that are unreferenced already.
    names
        Tags and branches that would be deleted.
    recreated
        Tags that would be rewritten.
    """

    store: str
    counts: Mapping[str, int]
    names: tuple[str, ...] = ()
    recreated: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "dry_run": True}

    def lines(self) -> list[str]:
        counts = dict(self.counts)
        size = counts.pop("bytes", 0)
        also = f", and {human_size(size)} that nothing references already" * bool(size)
        return [
            f"purge {self.store}: would delete {_in_words(counts) or 'nothing'}{also} (dry run, nothing was deleted)",
            *(f"  would delete {name}, which keeps an older snapshot" for name in self.names),
            *(f"  would rewrite {name}, without what was removed since" for name in self.recreated),
        ]


def foresee(store: Store, tags: str, *, changing: bool = False) -> Foreseen:
    """
    Find what a purge would delete.

    Parameters
    ----------
    store, tags
        As in `purge_store`.
    changing
        Whether a commit, such as a removal, would precede it.
    """
    counts, names = store.history.preview_purge(tags=tags, changing=changing)
    recreated: tuple[str, ...] = ()
    if tags == RECREATE and store.history.is_kept:
        present = {REMOVED, *store.open().sample_ids.tolist()}
        recreated = tuple(name for name in store.history.tags() if changing or _samples(store, name) - present)
    return Foreseen(store.label, {what: n for what, n in counts.items() if n}, tuple(names), recreated)


def refuse_pins(store: Store, tags: str, *, changing: bool = True, published: str | None = None) -> None:
    """Raise a `TagError` if a tag or branch would keep samples; see `History.refuse_pins` for the last two."""
    if tags != "delete":
        keep = store.history.tags() if tags == RECREATE else ()
        store.history.refuse_pins(changing=changing, keep=keep, published=published)


def purge_store(store: Store, tags: str, lock: HeldLock, options: Options) -> Purged:
    """
    Delete the history of a store.

    Parameters
    ----------
    store
        The store.
    tags
        Treatment of tags and branches that keep older snapshots: one of `vczstore.choices.TAGS`.
    lock
        The lock of jobs, held until this returns.
    options
        Executor and memory of the removals from tagged states.
    """
    again = f"run it again: vczstore purge {store.label}{' --tags recreate' if tags == 'recreate' else ''}"
    try:
        renames, base = dict[str, str](), None
        if tags == RECREATE and store.history.tags():
            present = store.open()
            renames, base = _recreate(store, present, again, options), present.snapshot
        snapshot, counts, deleted = store.history.purge(
            tags=tags, keep=set(renames.values()), base=base, before=lock.check
        )
    except KeyboardInterrupt as error:
        raise Interrupted(f"purge: interrupted; some of the history may be deleted, {again}") from error
    recreated = {old: new for old, new in renames.items() if old != new}
    if recreated:
        counts = {**counts, "tags recreated": len(recreated)}
    return Purged(store.label, snapshot, counts, tuple(deleted), recreated)


def _recreate(store: Store, present: Vcz, again: str, options: Options) -> dict[str, str]:
    """
    Rewrite the states of tags without the samples that are missing from the present state.

    Samples are removed from each state in one commit on a branch of its own. All states are read before any is
    rewritten.

    Returns
    -------
    dict of str to str
        The new name of each tag by its old name; the same for a tag that was not rewritten.
    """
    history = store.history
    history.refuse_pins(keep=history.tags())  # fail early if a branch keeps older snapshots
    ids = {REMOVED, *present.sample_ids.tolist()}
    withdrawn = {name: sorted(_samples(store, name) - ids) for name in history.tags()}
    renamed = history.complete_renames()
    now = {name: name for name in withdrawn if name not in renamed}
    for name in now:
        if not withdrawn[name]:
            continue
        try:
            with history.rewriting(name) as branch:
                plan = compile_remove(branch, branch.open(), withdrawn[name], options.memory)
                metadata = {"operation": RECREATE, **plan.counts}
                (result,) = run_plans([plan], f"recreate: the state of a tag, {plan.summary}", metadata, options)
                assert result.snapshot is not None
                now[name] = history.rename_tag(name, result.snapshot)
        except VczstoreError as error:
            raise type(error)(f"purge: the tag {name} could not be rewritten: {error}; {again}") from error
    return {**now, **{old: now[new] for old, new in renamed.items()}}


def _samples(store: Store, tag: str) -> set[str]:
    try:
        return set(store.open(at=tag).sample_ids.tolist())
    except VczstoreError as error:
        raise type(error)(
            f"purge: what the tag {tag} names cannot be looked at: {error}; nothing was done, "
            f"delete it with: vczstore tag {store.label} {tag} -d"
        ) from error


@dataclass(frozen=True)
class Collected(AsDict):
    """
    The result of a garbage collection.

    Attributes
    ----------
    store
        Label of the store.
    committed
        False after a dry run.
    snapshot
        The new snapshot; None on plain Zarr, after a dry run, and if there was nothing to delete.
    counts
        Numbers of objects that were deleted, or would be, by kind, and ``bytes``.
    """

    store: str
    committed: bool
    snapshot: str | None
    counts: Mapping[str, int]

    @property
    def unchanged(self) -> bool:
        """Whether there was nothing to delete."""
        return not any(self.counts.values())

    def lines(self) -> list[str]:
        counts = dict(self.counts)
        size = human_size(counts.pop("bytes"))
        dry = "" if self.committed else " (dry run, nothing was deleted)"
        end = f", snapshot {self.snapshot}" if self.snapshot else dry
        return [f"gc {self.store}: {_in_words(counts)}, {size}{end}"]


def collect_garbage(store: Store, lock: HeldLock | None, *, dry_run: bool, keep: Keep | None = None) -> Collected:
    """
    Delete unreferenced objects, such as those left by interrupted writers.

    Parameters
    ----------
    store
        The store.
    lock
        The lock of jobs, held until this returns; None in a dry run.
    dry_run
        Whether to count only.
    keep
        Part of the history to keep; all of it if None.

    Raises
    ------
    TagError
        If `keep` is given and the store has no history.
    """
    if keep is not None:
        store.history.require("gc")

    def check() -> None:
        if lock is not None:
            lock.check()

    snapshot, counts = store.collect_garbage(before=check, dry_run=dry_run, keep=keep)
    return Collected(store.label, not dry_run, snapshot, counts)
