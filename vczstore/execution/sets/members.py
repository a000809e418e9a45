"""The stores of a set, what is done to each, and whether they have the same samples."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, NamedTuple

from plans.core.ledger import slow_digest
from vczstore.declarations import declared
from vczstore.errors import (
    BusyError,
    IncompatibleError,
    NotAStoreError,
    OptionError,
    StaleError,
    UnsuitableError,
    VczstoreError,
    with_words,
)
from vczstore.execution.operations import Operation
from vczstore.execution.options import Options
from vczstore.execution.results import Found
from vczstore.stores.base import HeldLock, Store
from vczstore.stores.lock import holder
from vczstore.stores.object_store import plain_errors
from vczstore.stores.resolve import group_of
from vczstore.stores.sets import PART, PartRecord, Record, RecordFile, Template, canonical, require_parts
from vczstore.vcf.files import SUFFIXES
from vczstore.vcz.model import Vcz, listing


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
    """The digest of sample IDs in a record: slow to compute, so that IDs cannot be guessed by trial."""
    return slow_digest(digest)


PLACES = ("location", "sources", "folder")
"""The kinds of arguments that say where something lies, which is elsewhere for each part."""
LAGGING = "bring the parts that lag behind in step by an edit of these alone, with --parts"
"""The way out where parts do not have the same samples."""
_OUTPUTS = ("out", "output")
"""The names of arguments that say where something is made beside the store."""


def members_of(operation: Operation, options: Options) -> dict[str, Operation]:
    """
    An operation on each part of a set, by the name of the part.

    Raises
    ------
    OptionError
        If something is named that would be the same for all parts.
    UnsuitableError
        If something is made that would be found as a part of the set.
    IncompatibleError
        If there are sources for other parts than there are stores.
    """
    named = [one for one in fields(operation) if declared(one).kind in (*PLACES, "file")]
    values = {one.name: getattr(operation, one.name) for one in named}
    coming: list[str] = []
    for one in named:
        texts = _texts(values[one.name])
        if declared(one).kind != "file":
            require_part(operation.called, texts, operation.store)
        if one.name in _OUTPUTS:
            refuse_within(operation.called, texts, Template(str(operation.store)))
        coming += texts if one.name in ("source", "sources") else []
    parts = options.parts or _found(operation, options, coming)
    whence = coming[0] if operation.makes_store and coming else str(operation.store)
    require_parts(operation.called, Template(whence), parts)

    def of(part: str) -> Operation:
        return replace(operation, **{name: in_part(value, part) for name, value in values.items()})

    return {part: of(part) for part in parts}


def _found(operation: Operation, options: Options, coming: Sequence[str]) -> list[str]:
    """The parts that there are, of a store that is edited or read; where one is made, those of what comes in."""
    reach = options.for_store(operation.store, coming).storage_options or {}
    stores = Template(str(operation.store), reach).find()
    by_source = {text: Template(text, options.options_of(text, operation.store)).find(SUFFIXES) for text in coming}
    whole = next(iter(by_source.values()), stores) if operation.makes_store else stores
    for text, found in by_source.items():
        if whole and set(found) != set(whole):
            lacking, other = sorted(set(whole) - set(found)), sorted(set(found) - set(whole))
            what = f"has nothing for {listing(lacking)}" if lacking else f"has {listing(other)}, which the set lacks"
            raise IncompatibleError(
                f"{operation.called}: {text} {what}; the parts of {operation.store} belong together: complete it, or "
                "name the parts with --parts"
            )
    return whole


def _texts(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, tuple) else (value,)) if one is not None]


def require_part(operation: str, texts: Sequence[str], store: str) -> None:
    """Raise an `OptionError` for a place that would be the same for all parts."""
    for text in texts:
        if PART not in text:
            raise OptionError(
                f"{operation}: {text} would be the same for all parts of {store}; put {PART} into its name"
            )


def refuse_within(operation: str, texts: Sequence[str], template: Template) -> None:
    """Raise an `UnsuitableError` for a place where what is made would be found as parts of a set."""
    for text in filter(template.takes, texts):
        raise UnsuitableError(f"{operation}: {text} would be taken for parts of {template.text}; name another folder")


def each_place(value: Any, change: Callable[[str], str]) -> Any:
    """What an argument says once its places, one or several, have changed."""
    if isinstance(value, tuple):
        return tuple(each_place(one, change) for one in value)
    return value if value is None else change(str(value))


def in_part(value: Any, part: str) -> Any:
    """A place, or several, with the name of a part in them."""
    return each_place(value, lambda place: place.replace(PART, part))


@contextmanager
def taking_for_parts(label: str, places: Collection[str], option: str) -> Iterator[None]:
    """Say of what is no store that it was taken for a part of a set, and how it is left out."""
    try:
        yield
    except NotAStoreError as error:
        if not any(place in str(error) for place in places):
            raise
        words = f"; what fits {label} is taken for a part: mend it, or name the parts with {option}"
        raise with_words(error, words) from error


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
    held
        The locks of all parts, where a job holds them within which the operation is done.
    is_named
        Whether the parts were named, and are not those that are there.
    """

    template: Template
    places: Mapping[str, str]
    options: Options
    called: str
    id: str
    members: Mapping[str, Operation] = field(default_factory=dict)
    held: Mapping[str, HeldLock] = field(default_factory=dict)
    is_named: bool = False

    @classmethod
    def of(cls, operation: Operation, options: Options) -> "StoreSet":
        """The set that an operation names."""
        reach = options.for_store(operation.store, _texts(getattr(operation, "sources", ()))).storage_options or {}
        template = Template(str(operation.store), reach)
        members = members_of(operation, options)
        named = [one.name for one in fields(operation) if declared(one).kind in PLACES and one.name != "store"]
        sources = {name: each_place(getattr(operation, name), canonical) for name in named}
        asked = [operation.called, {**operation.fingerprint, **sources}, options.branch]
        said = slow_digest(json.dumps(asked, sort_keys=True, default=str))
        places = {name: str(member.store) for name, member in members.items()}
        alike = options.but(parts=())
        return cls(template, places, alike, operation.called, said, members, is_named=bool(options.parts))

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
        """Do on each part what the operation does on a store; within a job it is tried in all parts."""
        done, failed, repositories = dict[str, Found](), dict[str, VczstoreError](), set[str]()
        for name, one in self.members.items():
            if one.is_of_history and group_of(self.places[name]) is not None:
                store = self.options.but(branch=None).open(self.places[name])
                if store.group and store.place in repositories:
                    continue
                repositories.add(store.place)
            if not self.held:
                done[name] = one.perform(self.options, dry_run=dry_run)
                continue
            try:
                with plain_errors(one.store):
                    done[name] = one.perform_within(self.options, self.held[name])
            except VczstoreError as error:
                failed[name] = error
        if failed:
            first = next(iter(failed.values()))
            where = f"{listing([*done])}, and not in {listing([*failed])}" if done else "no part"
            raise with_words(first, f"; {self.called} is done in {where}") from first
        return done

    def left_out(self, *, by_samples: bool) -> list[str]:
        """Say which parts were not named; `by_samples` those that have other samples, and the way out."""
        if not self.is_named or self.held:
            return []
        behind = list[str]()
        with suppress(Exception):  # all is done in the parts that were named
            ours = Samples.of(next(iter(self.open().values())).open())
            others = [part for part in self.template.find() if part not in self.places]
            if not by_samples:
                return [f"--parts leaves out {listing(others)}"] if others else []
            for part in others:
                with suppress(Exception):
                    if Samples.of(self.options.open(self.template.of(part)).open()) != ours:
                        behind.append(part)
        is_there = f"which {'is' if len(behind) == 1 else 'are'} there"
        way_out = f"bring the set in step with the same command and --parts {','.join(behind)}"
        return [f"not in {listing(behind)}, {is_there}: {way_out}"] if behind else []

    def describe(self, record: Record, stores: Mapping[str, Store]) -> str:
        """What a record says of its parts, and the way out."""
        way_out = "run it again, or vczstore repair"
        if not record.is_staged:
            # of stores that are being made none is locked
            unless = "" if all(part.base for part in record.parts.values()) else "unless it is running, "
            way_out = unless + (
                "once what failed is mended where it is, run the same again to complete it, or else run vczstore "
                f"repair, delete {self.record.place} and edit single parts"
            )
        return f"{record.operation} ({record.summary}) is done in {_where(record, stores)}; {way_out}"

    def pending(self, *, locked: bool = False) -> VczstoreError | None:
        """
        What not all parts have yet; None, and no store is opened, if nothing is under way.

        Parameters
        ----------
        locked
            Whether the locks are held by this process.

        Returns
        -------
        BusyError
            If another process holds the locks of all parts, and so is at work on it.
        StaleError
            If it was stopped.
        """
        if (record := self.record.read()) is None:
            return None
        stores = self.open()
        parts = [] if locked or self.held else [store for name, store in stores.items() if name in record.parts]
        holders = [holder(store) for store in parts]
        if None in holders or len({process for process, _ in filter(None, holders)}) != 1:
            return StaleError(f"{self.label}: {self.describe(record, stores)}")
        process, since = next(filter(None, holders))
        return BusyError(
            f"{self.label} is busy: {process} works on it{since}; {record.operation} ({record.summary}) is done in "
            f"{_where(record, stores)}; run this again when that is over"
        )

    def refuse_pending(self, *, locked: bool = False) -> None:
        """Raise what is `pending`."""
        if (error := self.pending(locked=locked)) is not None:
            raise with_words(error, before=f"{self.called}: ")

    @contextmanager
    def locked(
        self, stores: Mapping[str, Store], *, exclusive: bool = True, wait: bool = False
    ) -> Iterator[dict[str, HeldLock]]:
        """Hold the locks of all parts; nothing of a run that was stopped before its record is left in them."""
        with ExitStack() as stack:
            locks = dict[str, HeldLock]()
            for name, store in stores.items():
                if self.held:
                    locks[name] = self.held[name]
                    continue
                beside = [other for other in locks if store.group and stores[other].place == store.place]
                if beside:  # they are groups of one repository, which has one lock
                    locks[name] = locks[beside[0]]
                    continue
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

    def unstage(self, stores: Mapping[str, Store]) -> None:
        """Delete the branches on which commits of this set wait, as far as possible: the next one deletes the rest."""
        for store in stores.values():
            with suppress(Exception):
                store.history.unstage(self.template.name)

    def require_parts_of(self, record: Record) -> None:
        """Raise a `StaleError` if a record is of other parts than these."""
        if missing := [name for name in record.parts if name not in self.places]:
            raise StaleError(
                f"{self.called}: {self.label}: {record.operation} ({record.summary}) was stopped, which is of "
                f"{listing(missing)} too; name all parts"
            )

    def agree(self, samples: Mapping[str, Samples], what: str, way_out: str = LAGGING) -> None:
        """Raise an `IncompatibleError` if parts, or what comes into them, do not have the same samples in one order."""
        if (found := differing(samples)) is not None:
            raise IncompatibleError(f"{self.called}: {what} {found}; nothing was written; {way_out}")


def differing(samples: Mapping[str, Samples]) -> str | None:
    """How the samples of parts differ, in words; None if all have the same in the same order."""
    (first, ours), *others = samples.items()
    for name, theirs in others:
        if theirs != ours:
            numbers = f"{first} has {ours.n:,}, {name} has {theirs.n:,}"
            how = "as many, but others, or in another order" if theirs.n == ours.n else numbers
            return f"do not have the same samples in the same order in {first} and {name}: {how}"
    return None


def _where(record: Record, stores: Mapping[str, Store]) -> str:
    """In which parts it is done that a record says, and in which not."""
    ahead = [name for name, part in record.parts.items() if _is_ahead(record, part, stores.get(name))]
    rest = [name for name in record.parts if name not in ahead]
    last = "the history of some, which is to be purged" if record.purge else "the tags of some"
    return f"{listing(ahead)}, and not in {listing(rest) or last}" if ahead else "no part"


def _is_ahead(record: Record, part: PartRecord, store: Store | None) -> bool:
    """Whether a part has what a record says; one whose state stays the same has it once it has the tags."""
    if part.is_done or store is None or part.snapshot is None:
        return part.is_done
    if part.snapshot == part.base:
        return bool(record.tags) and store.history.tags().keys() >= {*record.tags}
    return store.history.shows(part.snapshot, record.branch)
