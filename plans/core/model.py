"""Plans: one module per operation. A store and its sources in, a `Plan` out; no data is read that does not steer it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from plans.core.memory import Memory
from vczstore.errors import IncompatibleError, OptionError, StaleError, VczstoreError
from vczstore.reports.notebook import table
from vczstore.sizes import human_size
from vczstore.stores.edits import Edit
from vczstore.stores.object_store import require
from vczstore.vcz import arrays, metadata, zarr_objects
from vczstore.vcz.model import Vcz

if TYPE_CHECKING:
    import cubed
    from cubed.core.plan import FinalizedPlan
    from zarr.abc.store import Store as ZarrStore
    from zarr.types import AnyArray

    from plans.core.scan_tasks import ScanReader
    from plans.core.xarray_backend import Opened
    from vczstore.stores.base import Store

__all__ = ["Check", "Compiling", "Memory", "Plan", "Scan", "Survey", "Write"]


class Scan(Protocol):
    """Something to look up in the data."""

    def by_cubed(self, memory: Memory, tag: int) -> "list[ScanReader]":
        """How it is looked up in tasks, over ranges of rows. What is found is reported with the tag."""


class Check(Scan, Protocol):
    """Something about the data that has to hold before the first write: what is found are violations."""

    def by_zarr(self) -> Iterator[Any]:
        """The same in a plain loop: everything that was found."""

    def error(self, found: Any) -> VczstoreError:
        """What to tell the user about a violation. Of several, the smallest is told."""


class Write(Protocol):
    """What happens to one array, in implementations that agree; see `ThroughXarray` for the third."""

    @property
    def name(self) -> str:
        """Of the array."""

    @property
    def arrays(self) -> "Sequence[AnyArray]":
        """The arrays that are written, as they will be."""

    @property
    def encoded_chunks(self) -> int:
        """How many chunks are copied as they are."""

    @property
    def decoded_chunks(self) -> int:
        """How many chunks are re-encoded."""

    @property
    def chunks_read(self) -> int:
        """At most so many chunks are read."""

    @property
    def bytes_read(self) -> int:
        """At most so many bytes are read, counted decoded."""

    @property
    def bytes_written(self) -> int:
        """At most so many bytes are written, counted decoded."""

    def by_cubed(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """Cubed arrays over blocks of chunks, whose computing writes to the store."""

    def by_zarr(self, store: "ZarrStore") -> None:
        """The plain reference: zarr-python alone, chunk by chunk."""


@runtime_checkable
class ThroughXarray(Protocol):
    """A write that xarray can do too; all others are done by Cubed alone, with any `impl`."""

    @property
    def read(self) -> "Sequence[AnyArray]":
        """The arrays that are read, other than those that are written."""

    def by_xarray(self, store: "ZarrStore", memory: Memory, opened: "Opened") -> "list[cubed.Array]":
        """As `Write.by_cubed`, by way of xarray and cubed-xarray."""


@dataclass(frozen=True)
class Survey:
    """What has to be looked up in the data before a plan can be compiled."""

    operation: str
    scans: tuple[Scan, ...]
    memory: Memory

    def cubed_plan(self) -> "FinalizedPlan | None":
        """
        All scans as one Cubed plan, None if there is nothing to look at.

        Raises
        ------
        MemoryLimitError
            If a task needs more memory than it is allowed.
        """
        from plans.core import cubed_backend, scan_tasks

        scans = [reader for i, s in enumerate(self.scans) for reader in s.by_cubed(self.memory, i)]
        return cubed_backend.compile_plan(scan_tasks.survey(scans, self.memory), self.operation)


@dataclass(frozen=True)
class Compiling:
    """
    What an operation is compiled against.

    Attributes
    ----------
    store
        Where it writes.
    opened
        The state that the store will be in by then, or the VCZ that is copied; None of a store that is made.
    sources
        What comes in, opened.
    memory
        What a task may use.
    impl
        One of `vczstore.choices.IMPLS`.
    dry_run
        Whether nothing is going to be written.
    origin
        What is copied, if that is a store.
    """

    store: "Store"
    opened: Vcz | None
    sources: Sequence[Vcz]
    memory: Memory
    impl: str = "cubed"
    dry_run: bool = False
    origin: "Store | None" = None

    @property
    def vcz(self) -> Vcz:
        """What was opened."""
        assert self.opened is not None
        return self.opened


AFTERWARDS = "after"
"""The word of a note that holds once the operation is done, and is told then, too."""


@dataclass(frozen=True)
class CopiedFrom:
    """
    The state of a store on plain Zarr from which a copy is made: a copy of two states is of none.

    Attributes
    ----------
    operation
        For the message.
    vcz
        What is copied.
    stamp
        What told its state when the copy was compiled.
    """

    operation: str
    vcz: Vcz
    stamp: str

    @classmethod
    def of(cls, operation: str, vcz: Vcz) -> "CopiedFrom | None":
        """The present state; None of a snapshot, which does not change, and of what cannot be listed."""
        is_listed = vcz.snapshot is None and vcz.store.supports_listing
        return cls(operation, vcz, zarr_objects.fingerprint(vcz.store)) if is_listed else None

    def require_unchanged(self) -> None:
        """Raise a `StaleError` if any object of the store has changed."""
        if zarr_objects.fingerprint(self.vcz.store) != self.stamp:
            raise StaleError(
                f"{self.operation}: {self.vcz.label} was changed by another writer while it was copied; run the same "
                "command again"
            )


START_OVER = "delete what is there and run the same command again"
"""The way out where a new store was being written."""


@dataclass(frozen=True, repr=False)
class Plan:
    """
    One operation compiled against one state of one store. Immutable; knows nothing of executors.

    Attributes
    ----------
    operation
        Its name.
    store
        The store that it is for.
    base
        The `Vcz.state` of the store that it was compiled against. It runs against no other.
    checks
        What has to hold before the first write, and is too large for the driver to look at.
    writes
        What happens to the chunks of each array.
    edits
        What the driver writes itself, in the order that is safe where nothing is transactional.
    memory
        What a task may use.
    counts
        What the operation does, in numbers, for people and for the history. Never a sample ID.
    remembered
        What the history says of it beside the numbers. Never a sample ID.
    notes
        What people are told of it beside the numbers, before it runs: a line each, by a word.
    after
        The store as the plan will leave it.
    if_stopped
        What state a store without transactions is in if the plan is stopped halfway.
    way_out
        What to do then.
    preparations
        What the driver writes before all else, and no reader notices: new arrays without samples.
    first
        Plans that run before this one, after the same checks, and are a part of it. What they read is what was there
        before them: see `from_store`.
    conclude
        Makes of what the tasks that wrote have found the edits that come last of all.
    copied_from
        What has to be as it was when everything is written, if that is a copy.
    chunks_of_store
        How many of the `decoded_chunks` hold what is in the store already, and nothing that comes in.
    last
        The arrays to which nothing is written before all others have been; they come last in `writes`.
    """

    operation: str
    store: "Store"
    base: str
    checks: tuple[Check, ...]
    writes: tuple[Write, ...]
    edits: tuple[Edit, ...]
    memory: Memory
    after: Vcz
    if_stopped: str
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    remembered: Mapping[str, str] = field(default_factory=dict)
    preparations: tuple[Edit, ...] = ()
    conclude: Callable[[Sequence[Any]], Sequence[Edit]] | None = None
    copied_from: "CopiedFrom | None" = None
    last: tuple[str, ...] = ()
    first: "tuple[Plan, ...]" = ()
    chunks_of_store: int = 0
    way_out: str = "run the same command again to complete it"

    @property
    def steps(self) -> "tuple[Plan, ...]":
        """The plans that it is made of, in their order."""
        return (*self.first, replace(self, first=()) if self.first else self)

    @property
    def _all_writes(self) -> tuple[Write, ...]:
        return tuple(write for plan in self.steps for write in plan.writes)

    def recording(self, preparations: Sequence[Edit], edits: Sequence[Edit]) -> "Plan":
        """The same with edits that record it in the store: in the step that makes it visible."""
        if self.first and not (self.writes or self.edits):  # a store is replaced as a whole
            *before, last = self.first
            return replace(self, first=(*before, replace(last, edits=(*last.edits, *edits))))
        return replace(self, preparations=(*self.preparations, *preparations), edits=(*self.edits, *edits))

    def summarized(self) -> "Plan":
        """The same for people, without what it takes to run it: sample IDs, for one."""
        after = replace(self.after, planned_ids=None)
        return replace(self, checks=(), writes=(), edits=(), preparations=(), first=(), conclude=None, after=after)

    def on(self, store: "Store") -> "Plan":
        """The same for another branch of its store, which is in the same state."""
        return replace(self, store=store, first=tuple(plan.on(store) for plan in self.first))

    def from_store(self, store: "ZarrStore") -> "Plan":
        """The same, with what is re-encoded read from a store that has what earlier steps have left."""
        return replace(self, writes=tuple(_read_from(write, store) for write in self.writes))

    def require_unchanged(self) -> None:
        """Raise a `StaleError` if what is copied has changed since the plan was compiled."""
        if self.copied_from is not None:
            self.copied_from.require_unchanged()

    def __post_init__(self) -> None:
        self.require_lossless([write for write in self.writes if _has_lossy(write) and write.decoded_chunks])

    def require_lossless(self, re_encoding: "Sequence[Write] | None" = None) -> None:
        """
        Check that what is re-encoded decodes to the same values.

        Parameters
        ----------
        re_encoding
            The writes that re-encode chunks; all of them by default, as where nothing is copied encoded.

        Raises
        ------
        IncompatibleError
            Naming the array and the codec that may change values.
        """
        for write in self.writes if re_encoding is None else re_encoding:
            for array in write.arrays:
                if (codec := metadata.lossy_codec(array)) is not None:
                    where = zarr_objects.place(array.store)  # of a copy, that of the source
                    label = where if where.startswith("/") else self.store.label
                    raise IncompatibleError(
                        f"{self.operation}: {array.path} of {label} is encoded with {codec}, which is not "
                        "known to be lossless, and some of its chunks would be re-encoded; rewrite this array with "
                        "lossless codecs only, such as zstd or blosc"
                    )

    def require_regular(self) -> None:
        """
        Check that xarray can write what is written through it: Cubed, to which it hands arrays, has regular ones only.

        Raises
        ------
        OptionError
            Naming an array whose chunks may have widths of their own.
        """
        for write in self._all_writes:
            if isinstance(write, ThroughXarray) and any(map(arrays.is_flexible, (*write.arrays, *write.read))):
                raise OptionError(
                    f"{self.operation}: {write.name} of {self.store.label}, or of what comes in, has a flexible sample "
                    "grid, which --impl xarray does not take; leave impl out, which is cubed then"
                )

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do, and nothing to commit."""
        return not (self.writes or self.preparations or self.edits or self.conclude or self.first)

    @property
    def encoded_chunks(self) -> int:
        """How many chunks are copied as they are."""
        return sum(w.encoded_chunks for w in self._all_writes)

    @property
    def decoded_chunks(self) -> int:
        """How many chunks are re-encoded."""
        return sum(w.decoded_chunks for w in self._all_writes)

    @property
    def chunks_read(self) -> int:
        """At most so many chunks are read, those of checks aside."""
        return sum(w.chunks_read for w in self._all_writes)

    @property
    def bytes_read(self) -> int:
        """At most so many bytes are read, counted decoded."""
        return sum(w.bytes_read for w in self._all_writes)

    @property
    def bytes_written(self) -> int:
        """At most so many bytes are written, counted decoded."""
        return sum(w.bytes_written for w in self._all_writes)

    def cubed_checks(self) -> "FinalizedPlan | None":
        """
        The checks as one Cubed plan, None if there are none.

        Raises
        ------
        MemoryLimitError
            If a task needs more memory than it is allowed.
        """
        return Survey(self.operation, self.checks, self.memory).cubed_plan()

    def cubed_writes(self, store: "ZarrStore", *, through_xarray: bool = False) -> "FinalizedPlan | None":
        """
        The writes as one Cubed plan, None if there are none.

        Parameters
        ----------
        store
            Where the tasks read and write: a transaction's.
        through_xarray
            Whether arrays are read, joined and selected by xarray.

        Raises
        ------
        MemoryLimitError
            If a task needs more memory than it is allowed.
        """
        from plans.core import cubed_backend

        def arrays_of(write: Write) -> "list[cubed.Array]":
            if opened is not None and isinstance(write, ThroughXarray):
                return write.by_xarray(store, self.memory, opened)
            return write.by_cubed(store, self.memory)

        opened = None
        if through_xarray:
            require("cubed_xarray", "xarray")
            from plans.core.xarray_backend import Opened

            opened = Opened()
        first, last = (
            [array for w in self.writes if (w.name in self.last) == is_last for array in arrays_of(w)]
            for is_last in (False, True)
        )
        return cubed_backend.compile_plan(first, self.operation, last=last)

    @cached_property
    def _sizes(self) -> tuple[int, int, dict[str, int]]:
        from plans.core import cubed_backend

        writes = [plan.cubed_writes(_nowhere()) for plan in self.steps]
        plans = [p for p in (self.cubed_checks(), *writes) if p is not None]
        tasks = sum(p.num_tasks for p in plans)
        names = {name: n for plan in writes for name, n in cubed_backend.tasks_of(plan).items()}
        return tasks, max([p.max_projected_mem for p in plans], default=0), names

    @property
    def tasks(self) -> int:
        """How many tasks Cubed makes of it, checks included."""
        return self._sizes[0]

    @property
    def projected_mem(self) -> int:
        """What the largest task is projected to need, in bytes."""
        return self._sizes[1]

    @property
    def writing_tasks(self) -> dict[str, int]:
        """How many tasks write each set of blocks, by a name that another process gives it too."""
        return self._sizes[2]

    def visualize(self, filename: str, **options: Any) -> Any:
        """Draw the Cubed plan; see ``cubed.visualize``. Needs graphviz and pydot."""
        plan = self.cubed_writes(_nowhere())
        if plan is None:
            raise VczstoreError(f"{self.operation}: there is nothing to do, and nothing to draw")
        return plan.visualize(filename, **options)

    @property
    def summary(self) -> str:
        """The counts in words, such as "2 sources, 1 sample added"."""
        return in_words(self.counts)

    def __repr__(self) -> str:
        n_arrays = len({write.name for write in self._all_writes})
        return (
            f"<Plan {self.operation} {self.store.label}: {self.summary}; {self.encoded_chunks:,} chunks copied "
            f"as they are, {self.decoded_chunks:,} re-encoded; {n_arrays} arrays, {len(self.checks)} checks>"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = {
            **self.counts,
            "chunks copied as they are": self.encoded_chunks,
            "chunks re-encoded": self.decoded_chunks,
            "read at most": human_size(self.bytes_read),
            "written at most": human_size(self.bytes_written),
        }
        return table(f"Plan: {self.operation} {self.store.label}", rows)


def with_notes(plan: Plan, *texts: str) -> Plan:
    """The same plan, of which people are told more once it is done; empty texts are none."""
    said = "; ".join(text for text in (plan.notes.get(AFTERWARDS, ""), *texts) if text)
    return replace(plan, notes={**plan.notes, AFTERWARDS: said}) if said else plan


def _has_lossy(write: Write) -> bool:
    return any(metadata.lossy_codec(array) is not None for array in write.arrays)


def _read_from(write: Write, store: "ZarrStore") -> Write:
    moved = getattr(write, "reading_from", None)
    return write if moved is None else moved(store)


def in_words(counts: Mapping[str, int]) -> str:
    """What an operation does, in numbers with their words."""
    return ", ".join(_count(n, what) for what, n in counts.items())


def were(n: int) -> str:
    """The verb that goes with so many."""
    return "was" if n == 1 else "were"


def _count(n: int, what: str) -> str:
    noun, _, rest = what.partition(" ")
    return f"{n:,} {noun.removesuffix('s') if n == 1 else noun} {rest}".strip()


def _nowhere() -> "ZarrStore":
    """A store to compile against when nothing is going to run."""
    from zarr.storage import MemoryStore

    return MemoryStore()
