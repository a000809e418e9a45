"""A set of stores: its parts, the operation on each, its locks and record, and checks that parts have equal samples."""

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
from vczstore.stores.base import Store
from vczstore.stores.locations import canonical
from vczstore.stores.lock import HeldLock, holder
from vczstore.stores.object_store import plain_errors
from vczstore.stores.resolve import group_of
from vczstore.stores.sets import PART, PartRecord, Record, RecordFile, Template, require_parts
from vczstore.vcf.files import SUFFIXES
from vczstore.vcz.model import Vcz, listing


class Samples(NamedTuple):
    """The number of samples of a VCZ, removed ones included, and a digest of their IDs."""

    n: int
    digest: str

    @classmethod
    def of(cls, vcz: Vcz | None) -> "Samples":
        """Return the samples of a VCZ; no samples for None, a store that does not exist yet."""
        ids = [] if vcz is None else vcz.sample_ids.tolist()
        digest = hashlib.blake2b(digest_size=16)
        for sample in ids:
            digest.update(f"{sample}\0".encode(errors="surrogatepass"))
        return cls(len(ids), _slow(digest.hexdigest()))


_slow = lru_cache(maxsize=64)(slow_digest)
"""A digest that is slow, so that sample IDs cannot be guessed from a record by trial."""


PLACES = ("location", "sources", "folder")
"""The values of `Declared.kind` whose arguments are locations, which differ between parts."""
LAGGING = "bring the parts that lag behind in step by an edit of these alone, with --parts"
"""The remedy, for messages, if parts do not have the same samples."""
_OUTPUTS = ("out", "output")
"""The names of arguments that are destinations other than the store."""


def members_of(operation: Operation, options: Options) -> dict[str, Operation]:
    """
    Return the operation on each part of a set, by the name of the part.

    Raises
    ------
    OptionError
        If a location would be the same for all parts.
    UnsuitableError
        If an output would match the template of the set.
    IncompatibleError
        If the sources and the stores do not have the same parts.
    """
    located = [arg for arg in fields(operation) if declared(arg).kind in (*PLACES, "file")]
    values = {arg.name: getattr(operation, arg.name) for arg in located}
    sources: list[str] = []
    for arg in located:
        texts = _texts(values[arg.name])
        if declared(arg).kind != "file":
            require_part(operation.called, texts, operation.store)
        if arg.name in _OUTPUTS:
            refuse_within(operation.called, texts, Template(str(operation.store)))
        sources += texts if arg.name in ("source", "sources") else []
    parts = options.parts or _find_parts(operation, options, sources)
    origin = sources[0] if operation.makes_store and sources else str(operation.store)
    require_parts(operation.called, Template(origin), parts)

    def of(part: str) -> Operation:
        return replace(operation, **{name: in_part(value, part) for name, value in values.items()})

    return {part: of(part) for part in parts}


def _find_parts(operation: Operation, options: Options, sources: Sequence[str]) -> list[str]:
    """List the parts of the existing store, or those of the first source if the operation creates the store."""
    storage_options = options.for_store(operation.store, sources).storage_options or {}
    stores = Template(str(operation.store), storage_options).find()
    by_source = {text: Template(text, options.options_of(text, operation.store)).find(SUFFIXES) for text in sources}
    expected = next(iter(by_source.values()), stores) if operation.makes_store else stores
    for text, parts in by_source.items():
        if expected and set(parts) != set(expected):
            lacking, other = sorted(set(expected) - set(parts)), sorted(set(parts) - set(expected))
            why = f"has nothing for {listing(lacking)}" if lacking else f"has {listing(other)}, which the set lacks"
            raise IncompatibleError(
                f"{operation.called}: {text} {why}; the parts of {operation.store} belong together: complete it, or "
                "name the parts with --parts"
            )
    return expected


def _texts(value: Any) -> list[str]:
    return [str(item) for item in (value if isinstance(value, tuple) else (value,)) if item is not None]


def require_part(operation: str, texts: Sequence[str], store: str) -> None:
    """Raise an `OptionError` for a location that would be the same for all parts."""
    for text in texts:
        if PART not in text:
            raise OptionError(
                f"{operation}: {text} would be the same for all parts of {store}; put {PART} into its name"
            )


def refuse_within(operation: str, texts: Sequence[str], template: Template) -> None:
    """Raise an `UnsuitableError` for an output that would match the template of a set."""
    for text in filter(template.takes, texts):
        raise UnsuitableError(f"{operation}: {text} would be taken for parts of {template.text}; name another folder")


def each_place(value: Any, change: Callable[[str], str]) -> Any:
    """Apply a function to the location, or to each of several locations, of an argument; None stays None."""
    if isinstance(value, tuple):
        return tuple(each_place(item, change) for item in value)
    return value if value is None else change(str(value))


def in_part(value: Any, part: str) -> Any:
    """Return a location, or several, with the name of a part filled in."""
    return each_place(value, lambda place: place.replace(PART, part))


@contextmanager
def taking_for_parts(label: str, places: Collection[str], option: str) -> Iterator[None]:
    """Add to a `NotAStoreError` for one of `places` that the template `label` matches it, and `option` excludes it."""
    try:
        yield
    except NotAStoreError as error:
        if not any(place in str(error) for place in places):
            raise
        advice = f"; what fits {label} is taken for a part: mend it, or name the parts with {option}"
        raise with_words(error, advice) from error


@dataclass(frozen=True)
class StoreSet:
    """
    A set of stores, and the operation on it.

    Attributes
    ----------
    template
        The template that names the stores.
    places
        The path or URL of each part, by its name.
    options
        How stores are opened and tasks are run.
    called
        The name of the operation, for messages.
    id
        A digest that identifies the operation and its arguments.
    members
        The operation on each part; empty for a job.
    held
        The locks of all parts, if the operation runs within a job that holds them.
    is_named
        Whether the parts were named by the user, rather than found.
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
        """Return the set on which an operation runs."""
        sources = _texts(getattr(operation, "sources", ()))
        template = Template(str(operation.store), options.for_store(operation.store, sources).storage_options or {})
        members = members_of(operation, options)
        located = [arg.name for arg in fields(operation) if declared(arg).kind in PLACES and arg.name != "store"]
        locations = {name: each_place(getattr(operation, name), canonical) for name in located}
        identity = [operation.called, {**operation.fingerprint, **locations}, options.branch]
        digest = slow_digest(json.dumps(identity, sort_keys=True, default=str))
        places = {name: str(member.store) for name, member in members.items()}
        part_options = options.but(parts=())
        return cls(template, places, part_options, operation.called, digest, members, is_named=bool(options.parts))

    @property
    def label(self) -> str:
        """The name of the set in messages."""
        return self.template.text

    @property
    def record(self) -> RecordFile:
        """Location of the record of pending changes."""
        return self.template.record

    def open(self) -> dict[str, Store]:
        """Open all stores, by name of the part."""
        return {name: self.options.open(place) for name, place in self.places.items()}

    def perform(self, *, dry_run: bool) -> dict[str, Found]:
        """
        Run the operation on each part, or once per repository if it concerns the history; return the outcomes by part.

        Within a job, a failure in one part does not stop the others, and is raised at the end.
        """
        done, failed, repositories = dict[str, Found](), dict[str, VczstoreError](), set[str]()
        for name, member in self.members.items():
            if member.is_of_history and group_of(self.places[name]) is not None:
                store = self.options.but(branch=None).open(self.places[name])
                if store.group and store.place in repositories:
                    continue
                repositories.add(store.place)
            if not self.held:
                done[name] = member.perform(self.options, dry_run=dry_run)
                continue
            try:
                with plain_errors(member.store):
                    done[name] = member.perform_within(self.options, self.held[name])
            except VczstoreError as error:
                failed[name] = error
        if failed:
            first = next(iter(failed.values()))
            where = f"{listing([*done])}, and not in {listing([*failed])}" if done else "no part"
            raise with_words(first, f"; {self.called} is done in {where}") from first
        return done

    def left_out(self, *, by_samples: bool) -> list[str]:
        """Return notes on parts that the user did not name; with `by_samples`, only on those with other samples now."""
        if not self.is_named or self.held:
            return []
        lagging = list[str]()
        with suppress(Exception):  # the operation has succeeded in the named parts
            samples = Samples.of(next(iter(self.open().values())).open())
            others = [part for part in self.template.find() if part not in self.places]
            if not by_samples:
                return [f"--parts leaves out {listing(others)}"] if others else []
            for part in others:
                with suppress(Exception):
                    if Samples.of(self.options.open(self.template.of(part)).open()) != samples:
                        lagging.append(part)
        clause = f"which {'is' if len(lagging) == 1 else 'are'} there"
        way_out = f"bring the set in step with the same command and --parts {','.join(lagging)}"
        return [f"not in {listing(lagging)}, {clause}: {way_out}"] if lagging else []

    def describe(self, record: Record, stores: Mapping[str, Store]) -> str:
        """Describe in which parts the changes of a record are done, and the remedy, for messages."""
        way_out = "run it again, or vczstore repair"
        if not record.is_staged:
            # stores that are being created have no locks, so the run may still be in progress
            unless = "" if all(part.base for part in record.parts.values()) else "unless it is running, "
            way_out = unless + (
                "once what failed is mended where it is, run the same again to complete it, or else run vczstore "
                f"repair, delete {self.record.place} and edit single parts"
            )
        return f"{record.operation} ({record.summary}) is done in {_where(record, stores)}; {way_out}"

    def pending(self, *, locked: bool = False) -> VczstoreError | None:
        """
        Return an error that describes changes which not all parts have yet; None if there is no record.

        Parameters
        ----------
        locked
            Whether this process holds the locks.

        Returns
        -------
        BusyError
            If one other process holds the locks of all parts, and so is still making the changes.
        StaleError
            If the changes were interrupted.
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
        """Raise the error that `pending` returns, if any."""
        if (error := self.pending(locked=locked)) is not None:
            raise with_words(error, before=f"{self.called}: ")

    @contextmanager
    def locked(
        self, stores: Mapping[str, Store], *, exclusive: bool = True, wait: bool = False
    ) -> Iterator[dict[str, HeldLock]]:
        """
        Hold the locks of all parts; yield them by part.

        Without a record, delete commits staged by a run that was interrupted before it wrote one.

        Parameters
        ----------
        stores
            The stores by part.
        exclusive
            Whether to take the exclusive locks on plain Zarr as well, rather than the writer locks.
        wait
            As in `Store.exclusive_lock`.
        """
        with ExitStack() as stack:
            locks = dict[str, HeldLock]()
            # in the same order for all, whatever the order of parts: jobs that wait would wait for one another
            for name, store in sorted(stores.items(), key=lambda item: item[1].place):
                if self.held:
                    locks[name] = self.held[name]
                    continue
                siblings = [other for other in locks if store.group and stores[other].place == store.place]
                if siblings:  # groups of one repository share its lock
                    locks[name] = locks[siblings[0]]
                    continue
                is_exclusive = exclusive or store.history.is_kept
                lock = store.exclusive_lock(wait=wait, watch=True) if is_exclusive else store.writer_lock()
                locks[name] = stack.enter_context(lock)
            if self.record.read() is None:
                self.record.delete()
                for store in stores.values():
                    store.history.unstage(self.template.name)
            self._refuse_staged(stores)
            yield locks

    def _refuse_staged(self, stores: Mapping[str, Store]) -> None:
        """Raise a `StaleError` if a part has a pending commit of a set with another name, which shares the part."""
        for store in stores.values():
            for name in store.history.staged():
                if name != self.template.name:
                    raise StaleError(
                        f"{self.called}: {store.label} has a commit that waits for the other parts of a set called "
                        f"{name} (PART for {PART}); complete it with vczstore repair and that name"
                    )

    def unstage(self, stores: Mapping[str, Store]) -> None:
        """Delete the branches with staged commits of this set, ignoring errors: the next operation deletes the rest."""
        for store in stores.values():
            with suppress(Exception):
                store.history.unstage(self.template.name)

    def require_parts_of(self, record: Record) -> None:
        """Raise a `StaleError` if a record has parts that are not in this set."""
        if missing := [name for name in record.parts if name not in self.places]:
            raise StaleError(
                f"{self.called}: {self.label}: {record.operation} ({record.summary}) was stopped, which is of "
                f"{listing(missing)} too; name all parts"
            )

    def agree(self, samples: Mapping[str, Samples], what: str, way_out: str = LAGGING) -> None:
        """Raise an `IncompatibleError` if parts, or their sources, do not have the same samples in the same order."""
        if (difference := differing(samples)) is not None:
            raise IncompatibleError(f"{self.called}: {what} {difference}; nothing was written; {way_out}")


def differing(samples: Mapping[str, Samples]) -> str | None:
    """Describe how the samples of parts differ; None if all have the same in the same order."""
    (first, expected), *others = samples.items()
    for name, actual in others:
        if actual != expected:
            numbers = f"{first} has {expected.n:,}, {name} has {actual.n:,}"
            difference = "as many, but others, or in another order" if actual.n == expected.n else numbers
            return f"do not have the same samples in the same order in {first} and {name}: {difference}"
    return None


def _where(record: Record, stores: Mapping[str, Store]) -> str:
    """List the parts in which the changes of a record are done, and those in which they are not."""
    ahead = [name for name, part in record.parts.items() if _is_ahead(record, part, stores.get(name))]
    pending = [name for name in record.parts if name not in ahead]
    last = "the history of some, which is to be purged" if record.purge else "the tags of some"
    return f"{listing(ahead)}, and not in {listing(pending) or last}" if ahead else "no part"


def _is_ahead(record: Record, part: PartRecord, store: Store | None) -> bool:
    """Whether a part has the changes of a record; if its snapshot does not change, whether it has the tags."""
    if part.is_done or store is None or part.snapshot is None:
        return part.is_done
    if part.snapshot == part.base:
        return bool(record.tags) and store.history.tags().keys() >= {*record.tags}
    return store.history.shows(part.snapshot, record.branch)
