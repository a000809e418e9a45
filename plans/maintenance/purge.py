"""
Purge and gc: what nothing needs is deleted.

A purge deletes the history of a store, so that what was removed cannot be read through any of its snapshots. A
collection of garbage leaves the history alone, and deletes what no snapshot leads to.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from plans.compilers.remove import compile_remove
from vczstore.errors import Interrupted, VczstoreError
from vczstore.execution.engine import run_plans
from vczstore.execution.options import Options
from vczstore.sizes import human_size
from vczstore.stores.base import HeldLock, Keep, Store
from vczstore.vcz.model import REMOVED, Vcz

RECREATE = "recreate"
"""The operation that rewrites a state that a tag names."""

NO_HISTORY = "plain Zarr keeps no history: what was removed is overwritten already"


@dataclass(frozen=True)
class Purged:
    """
    What a purge has done.

    Attributes
    ----------
    store
        Which store.
    snapshot
        The new snapshot, None on plain Zarr, which has none.
    counts
        What was deleted, in numbers; ``bytes`` too.
    deleted
        The tags and branches that were deleted.
    recreated
        The names that rewritten tags have now, by those that they had.
    """

    store: str
    snapshot: str | None
    counts: Mapping[str, int] = field(default_factory=dict)
    deleted: tuple[str, ...] = ()
    recreated: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"deleted": list(self.deleted)}

    def lines(self) -> list[str]:
        """What the command prints."""
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
    What a purge would delete.

    Attributes
    ----------
    store
        Which store.
    counts
        What would be deleted, in numbers; ``bytes`` are those that nothing references already.
    names
        The tags and branches that would be deleted.
    recreated
        The tags that would be rewritten.
    """

    store: str
    counts: Mapping[str, int]
    names: tuple[str, ...] = ()
    recreated: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        lists = {"names": list(self.names), "recreated": list(self.recreated)}
        return {**asdict(self), "counts": dict(self.counts), **lists, "dry_run": True}

    def lines(self) -> list[str]:
        """What the command prints."""
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
    What a purge would delete.

    Parameters
    ----------
    store, tags
        As in `purge_store`.
    changing
        Whether a commit comes before it, such as a removal.
    """
    counts, names = store.history.preview_purge(tags=tags, changing=changing)
    recreated: tuple[str, ...] = ()
    if tags == RECREATE and store.history.is_kept:
        present = {REMOVED, *store.open().sample_ids.tolist()}
        recreated = tuple(name for name in store.history.tags() if changing or _samples(store, name) - present)
    return Foreseen(store.label, {what: n for what, n in counts.items() if n}, tuple(names), recreated)


def refuse_pins(store: Store, tags: str) -> None:
    """Raise a `TagError` if what is going to be removed would be kept by a tag or a branch."""
    if tags != "delete":
        store.history.refuse_pins(changing=True, keep=store.history.tags() if tags == "recreate" else ())


def purge_store(store: Store, tags: str, lock: HeldLock, options: Options) -> Purged:
    """
    Delete the history of a store.

    Parameters
    ----------
    store
        Which.
    tags
        What to do with tags and branches that keep older snapshots.
    lock
        That of jobs; it is held until this returns.
    options
        What runs removals from tagged states.
    """
    again = f"run it again: vczstore purge {store.label}{' --tags recreate' if tags == 'recreate' else ''}"
    try:
        now, base = dict[str, str](), None
        if tags == "recreate" and store.history.tags():
            present = store.open()
            now, base = _recreate(store, present, again, options), present.snapshot
        snapshot, counts, deleted = store.history.purge(
            tags=tags,
            keep=set(now.values()),
            base=base,
            before=lock.check,
        )
    except KeyboardInterrupt as error:
        raise Interrupted(f"purge: interrupted; some of the history may be deleted, {again}") from error
    recreated = {old: new for old, new in now.items() if old != new}
    if recreated:
        counts = {**counts, "tags recreated": len(recreated)}
    return Purged(store.label, snapshot, counts, tuple(deleted), recreated)


def _recreate(store: Store, present: Vcz, again: str, options: Options) -> dict[str, str]:
    """
    Rewrite the states that tags name, without the samples that the present state has no longer.

    Each is removed from on a branch of its own, in one commit. All states are looked at before any is rewritten.

    Returns
    -------
    dict of str to str
        What each tag is called now; most may be called what they were.
    """
    history = store.history
    history.refuse_pins(keep=history.tags())  # branches, before anything is done
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
                said = {"operation": RECREATE, **plan.counts}
                (done,) = run_plans([plan], f"recreate: the state of a tag, {plan.summary}", said, options)
                assert done.snapshot is not None
                now[name] = history.rename_tag(name, done.snapshot)
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
class Collected:
    """
    What a collection of garbage has done.

    Attributes
    ----------
    store
        Which store.
    committed
        False after a dry run.
    snapshot
        The new snapshot; None on plain Zarr, after a dry run, and where there was nothing to delete.
    counts
        What was deleted, or would be, in numbers; ``bytes`` too.
    """

    store: str
    committed: bool
    snapshot: str | None
    counts: Mapping[str, int]

    @property
    def unchanged(self) -> bool:
        """Whether there was nothing to delete."""
        return not any(self.counts.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "counts": dict(self.counts)}

    def lines(self) -> list[str]:
        """What the command prints."""
        counts = dict(self.counts)
        size = human_size(counts.pop("bytes"))
        dry = "" if self.committed else " (dry run, nothing was deleted)"
        end = f", snapshot {self.snapshot}" if self.snapshot else dry
        return [f"gc {self.store}: {_in_words(counts)}, {size}{end}"]


def collect_garbage(store: Store, lock: HeldLock | None, *, dry_run: bool, keep: Keep | None = None) -> Collected:
    """
    Delete unreferenced objects: what writers that were stopped have left.

    Parameters
    ----------
    store
        Which.
    lock
        That of jobs; it is held until this returns.
    dry_run
        Count, and delete nothing.
    keep
        What is kept of the history; all of it if None.

    Raises
    ------
    TagError
        If something is to be kept of a history that there is none of.
    """
    if keep is not None:
        store.history.require("gc")

    def check() -> None:
        if lock is not None:
            lock.check()

    snapshot, counts = store.collect_garbage(before=check, dry_run=dry_run, keep=keep)
    return Collected(store.label, not dry_run, snapshot, counts)
