"""The model of a plan, and the protocols of its parts. Compiling a plan reads only the data that determine the plan."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from zarr.storage import MemoryStore

from plans.core.memory import Memory
from plans.core.scan_reader import ScanReader
from vczstore.errors import IncompatibleError, OptionError, StaleError, VczstoreError
from vczstore.reports.page import table
from vczstore.sizes import human_size
from vczstore.stores.edits import MetadataEdit, WriteDocuments
from vczstore.stores.object_store import require
from vczstore.vcz import arrays, metadata, zarr_objects
from vczstore.vcz.model import Vcz

if TYPE_CHECKING:
    import cubed
    from cubed.core.plan import FinalizedPlan
    from zarr.abc.store import Store as ZarrStore
    from zarr.types import AnyArray

    from plans.core.xarray_backend import Opened
    from vczstore.stores.base import Store

__all__ = ["Check", "Compiling", "Memory", "Plan", "Scan", "Survey", "Write"]


class Scan(Protocol):
    """A scan of array data over ranges of rows."""

    def readers(self, memory: Memory) -> list[ScanReader]:
        """Readers that scan in tasks; those without rows are skipped."""


class Check(Scan, Protocol):
    """A scan for violations of a condition that must hold before the first write."""

    def error(self, found: Any) -> VczstoreError:
        """The error to raise for a violation. If there are several, the smallest one is reported."""


class Write(Protocol):
    """The change to one array, in equivalent implementations; see `ThroughXarray` for the third."""

    @property
    def name(self) -> str:
        """The name of the array."""

    @property
    def arrays(self) -> "Sequence[AnyArray]":
        """The arrays that are written, with their final metadata."""

    @property
    def encoded_chunks(self) -> int:
        """Number of chunks copied verbatim."""

    @property
    def decoded_chunks(self) -> int:
        """Number of chunks re-encoded."""

    @property
    def chunks_read(self) -> int:
        """Upper bound on the number of chunks read."""

    @property
    def bytes_read(self) -> int:
        """Upper bound on the decoded bytes read."""

    @property
    def bytes_written(self) -> int:
        """Upper bound on the decoded bytes written."""

    def by_cubed(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """Cubed arrays over blocks of chunks, of which there is at least one; computing them writes to the store."""

    def by_zarr(self, store: "ZarrStore") -> None:
        """Write with zarr-python alone, chunk by chunk: the reference implementation."""


@runtime_checkable
class ThroughXarray(Protocol):
    """A write that can also go through xarray. All other writes use Cubed alone, with any `impl`."""

    @property
    def read(self) -> "Sequence[AnyArray]":
        """The arrays that are read but not written."""

    def by_xarray(self, store: "ZarrStore", memory: Memory, opened: "Opened") -> "list[cubed.Array]":
        """Like `Write.by_cubed`, through xarray and cubed-xarray."""


@dataclass(frozen=True)
class Survey:
    """Scans whose results are needed to compile a plan."""

    operation: str
    scans: tuple[Scan, ...]
    memory: Memory

    def cubed_plan(self) -> "FinalizedPlan | None":
        """
        All scans as one Cubed plan; None if there is nothing to scan.

        Raises
        ------
        MemoryLimitError
            If a task needs more memory than it is allowed.
        """
        from plans.core import cubed_backend, scan_tasks

        scans = [replace(reader, tag=i) for i, s in enumerate(self.scans) for reader in s.readers(self.memory)]
        return cubed_backend.compile_plan(scan_tasks.survey(scans, self.memory), self.operation)


@dataclass(frozen=True)
class Compiling:
    """
    The inputs of a compiler.

    Attributes
    ----------
    store
        The store that is written to.
    opened
        The state of the store when the plan will run, or the VCZ that is copied; None for a new store.
    sources
        The opened source VCZs.
    memory
        Memory limits of a task.
    impl
        One of `vczstore.choices.IMPLS`.
    origin
        The store that is copied; None if the operation copies no store.
    """

    store: "Store"
    opened: Vcz | None
    sources: Sequence[Vcz]
    memory: Memory
    impl: str = "cubed"
    origin: "Store | None" = None

    @property
    def vcz(self) -> Vcz:
        """`opened`, which must not be None."""
        assert self.opened is not None
        return self.opened

    @property
    def opened_store(self) -> "Store":
        """The store whose state is `vcz`: the one that is copied or written to."""
        return self.store if self.origin is None else self.origin


AFTERWARDS = "after"
"""Key of the note that is also shown once the operation is done."""


@dataclass(frozen=True)
class CopiedFrom:
    """
    The state of a store on plain Zarr that is being copied, to detect a concurrent change.

    Attributes
    ----------
    vcz
        The VCZ that is copied.
    stamp
        The fingerprint of its objects when the copy was compiled.
    """

    vcz: Vcz
    stamp: str

    @classmethod
    def of(cls, vcz: Vcz) -> "CopiedFrom | None":
        """The current state; None for a snapshot, which is immutable, and for a store that cannot be listed."""
        is_listed = vcz.snapshot is None and vcz.store.supports_listing
        return cls(vcz, zarr_objects.fingerprint(vcz.store)) if is_listed else None

    def require_unchanged(self, operation: str) -> None:
        """Raise a `StaleError` if any object of the store has changed."""
        if zarr_objects.fingerprint(self.vcz.store) != self.stamp:
            raise StaleError(
                f"{operation}: {self.vcz.label} was changed by another writer while it was copied; run the same "
                "command again"
            )


START_OVER = "delete what is there and run the same command again"
"""`Plan.way_out` of a plan that writes a new store."""


@dataclass(frozen=True, repr=False, kw_only=True)
class Plan:
    """
    One operation compiled against one state of one store. Immutable, and independent of the executor.

    Attributes
    ----------
    operation
        The name of the operation.
    store
        The store that is written to.
    base
        The `Vcz.state` that the plan was compiled against, and the only one that it runs against.
    checks
        Conditions that must hold before the first write; they are checked in tasks.
    writes
        Changes to the chunks of arrays; those without chunks are dropped.
    edits
        Writes by the driver, in an order that is safe without transactions.
    memory
        Memory limits of a task.
    counts
        Numbers that describe the operation, for messages and the history. Never a sample ID.
    remembered
        Further metadata for the history. Never a sample ID.
    notes
        Further lines for messages, by their labels, shown before the plan runs.
    after
        The store after the plan.
    if_stopped
        Description of what readers see in a store without transactions after an interruption, for messages.
    way_out
        What the user can do after an interruption.
    preparations
        Writes by the driver before everything else, which readers do not notice, such as new arrays without samples.
    first_steps
        Plans that run before this one, after the same checks, as parts of it. They read the store as it was before any
        of them ran; see `from_store`.
    conclude
        Returns the very last edits, given the findings of the writing tasks; None if there are none.
    copied_from
        For a copy, the state of the source, which must still be the same once everything is written; else None.
    chunks_of_store
        How many of the `decoded_chunks` hold only values that are already in the store.
    written_last
        Names of arrays that are written only after all others; they come last in `writes`.
    """

    operation: str
    store: "Store"
    base: str
    checks: tuple[Check, ...] = ()
    writes: tuple[Write, ...] = ()
    edits: tuple[MetadataEdit, ...] = ()
    memory: Memory
    after: Vcz
    if_stopped: str
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    remembered: Mapping[str, str] = field(default_factory=dict)
    preparations: tuple[MetadataEdit, ...] = ()
    conclude: Callable[[Sequence[Any]], Sequence[MetadataEdit]] | None = None
    copied_from: "CopiedFrom | None" = None
    written_last: tuple[str, ...] = ()
    first_steps: "tuple[Plan, ...]" = ()
    chunks_of_store: int = 0
    way_out: str = "run the same command again to complete it"

    @property
    def steps(self) -> "tuple[Plan, ...]":
        """The plans that run, in order."""
        return (*self.first_steps, replace(self, first_steps=()) if self.first_steps else self)

    @property
    def _all_writes(self) -> tuple[Write, ...]:
        return tuple(write for plan in self.steps for write in plan.writes)

    def recording(self, preparations: Sequence[MetadataEdit], edits: Sequence[MetadataEdit]) -> "Plan":
        """The plan with edits that record it in the store, added to the step that makes its changes visible."""
        if self.first_steps and not (self.writes or self.edits):  # the whole store is replaced
            *before, last = self.first_steps
            return replace(self, first_steps=(*before, replace(last, edits=(*last.edits, *edits))))
        return replace(self, preparations=(*self.preparations, *preparations), edits=(*self.edits, *edits))

    def summarized(self) -> "Plan":
        """The plan for display only, without what is needed to run it, such as sample IDs."""
        after = replace(self.after, planned_ids=None)
        return replace(
            self, checks=(), writes=(), edits=(), preparations=(), first_steps=(), conclude=None, after=after
        )

    def on(self, store: "Store") -> "Plan":
        """The plan for another branch of its store, which must be in the same state."""
        return replace(self, store=store, first_steps=tuple(plan.on(store) for plan in self.first_steps))

    def from_store(self, store: "ZarrStore") -> "Plan":
        """The plan with the inputs of re-encoding read from `store`, which has the results of the earlier steps."""
        return replace(self, writes=tuple(_read_from(write, store) for write in self.writes))

    def __post_init__(self) -> None:
        writes = tuple(write for write in self.writes if write.encoded_chunks or write.decoded_chunks)
        object.__setattr__(self, "writes", writes)  # frozen, but still being initialised
        self.require_lossless(only_re_encoded=True)
        if self.store.backend == "icechunk":
            self._require_finite_attributes()

    def _require_finite_attributes(self) -> None:
        """Raise an `IncompatibleError` for an attribute with NaN or Infinity, which Icechunk does not accept."""
        for edit in (*self.preparations, *self.edits):
            for key, document in edit.documents.items() if isinstance(edit, WriteDocuments) else ():
                for name, value in document.get("attributes", {}).items():
                    if not _is_finite(value):
                        path = key.rpartition("/")[0]
                        raise IncompatibleError(
                            f"{self.operation}: {self.store.label}: the attribute {name} of {path or 'the root group'} "
                            f"is {json.dumps(value)[:100]}, and Icechunk takes neither NaN nor Infinity in attributes; "
                            "write it as text in the source, or delete it there"
                        )

    def require_lossless(self, *, only_re_encoded: bool = False) -> None:
        """
        Check that chunks decode to the same values if they are encoded again, or only those that are re-encoded.

        Raises
        ------
        IncompatibleError
            If a codec may change values; the message names the array and the codec.
        """
        for write in self.writes:
            for array in write.arrays:
                codec = metadata.lossy_codec(array)
                if codec is not None and (write.decoded_chunks or not only_re_encoded):
                    where = zarr_objects.place(array.store)  # for a copy, the place of the source
                    label = where if where.startswith("/") else self.store.label
                    raise IncompatibleError(
                        f"{self.operation}: {array.path} of {label} is encoded with {codec}, which is not "
                        "known to be lossless, and some of its chunks would be re-encoded; rewrite this array with "
                        "lossless codecs only, such as zstd or blosc"
                    )

    def require_regular(self) -> None:
        """
        Check that no array written through xarray has a flexible grid, since Cubed arrays have regular chunks.

        Raises
        ------
        OptionError
            If an array has a flexible grid; the message names it.
        """
        for write in self._all_writes:
            if isinstance(write, ThroughXarray) and any(map(arrays.is_flexible, (*write.arrays, *write.read))):
                raise OptionError(
                    f"{self.operation}: {write.name} of {self.store.label}, or of what comes in, has a flexible sample "
                    "grid, which --impl xarray does not take; leave impl out, which is cubed then"
                )

    @property
    def is_empty(self) -> bool:
        """Whether the plan is a no-op, with nothing to commit."""
        return not (self.writes or self.preparations or self.edits or self.conclude or self.first_steps)

    @property
    def encoded_chunks(self) -> int:
        """Number of chunks copied verbatim."""
        return sum(w.encoded_chunks for w in self._all_writes)

    @property
    def decoded_chunks(self) -> int:
        """Number of chunks re-encoded."""
        return sum(w.decoded_chunks for w in self._all_writes)

    @property
    def chunks_read(self) -> int:
        """Upper bound on the number of chunks read, not counting checks."""
        return sum(w.chunks_read for w in self._all_writes)

    @property
    def bytes_read(self) -> int:
        """Upper bound on the decoded bytes read, not counting checks."""
        return sum(w.bytes_read for w in self._all_writes)

    @property
    def bytes_written(self) -> int:
        """Upper bound on the decoded bytes written."""
        return sum(w.bytes_written for w in self._all_writes)

    def cubed_checks(self) -> "FinalizedPlan | None":
        """
        The checks as one Cubed plan; None if there are none.

        Raises
        ------
        MemoryLimitError
            If a task needs more memory than it is allowed.
        """
        return Survey(self.operation, self.checks, self.memory).cubed_plan()

    def cubed_writes(self, store: "ZarrStore", *, through_xarray: bool = False) -> "FinalizedPlan | None":
        """
        The writes as one Cubed plan, whose tasks read and write `store`, that of a transaction; None if there are none.

        With `through_xarray`, xarray reads, joins and selects the arrays.

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
            [array for w in self.writes if (w.name in self.written_last) == is_last for array in arrays_of(w)]
            for is_last in (False, True)
        )
        return cubed_backend.compile_plan(first, self.operation, last=last)

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        """The number of tasks and the largest projected memory; Cubed's plans, which are large, are not kept."""
        writes = [plan.cubed_writes(MemoryStore()) for plan in self.steps]
        plans = [p for p in (self.cubed_checks(), *writes) if p is not None]
        return sum(p.num_tasks for p in plans), max([p.max_projected_mem for p in plans], default=0)

    @property
    def tasks(self) -> int:
        """Number of Cubed tasks, including checks."""
        return self._sizes[0]

    @property
    def projected_mem(self) -> int:
        """The projected memory of the largest task, in bytes."""
        return self._sizes[1]

    def visualize(self, filename: str, **options: Any) -> Any:
        """Draw the Cubed plan; see ``cubed.visualize``. Needs graphviz and pydot."""
        plan = self.cubed_writes(MemoryStore())
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
        """HTML for notebooks."""
        rows = {
            **self.counts,
            "chunks copied as they are": self.encoded_chunks,
            "chunks re-encoded": self.decoded_chunks,
            "read at most": human_size(self.bytes_read),
            "written at most": human_size(self.bytes_written),
        }
        return table(f"Plan: {self.operation} {self.store.label}", rows)


def with_notes(plan: Plan, *texts: str) -> Plan:
    """The plan with more text in its note `AFTERWARDS`; empty texts are skipped."""
    note = "; ".join(text for text in (plan.notes.get(AFTERWARDS, ""), *texts) if text)
    return replace(plan, notes={**plan.notes, AFTERWARDS: note}) if note else plan


def _is_finite(value: Any) -> bool:
    """Whether an attribute, at any depth, has no NaN or infinite number."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _read_from(write: Write, store: "ZarrStore") -> Write:
    reading_from = getattr(write, "reading_from", None)
    return write if reading_from is None else reading_from(store)


def in_words(counts: Mapping[str, int]) -> str:
    """Counts as text, such as "2 sources, 1 sample added"."""
    return ", ".join(_count(n, what) for what, n in counts.items())


def were(n: int) -> str:
    """The verb for `n` things, "was" or "were"."""
    return "was" if n == 1 else "were"


def unknown_ids(n: int, total: int) -> str:
    """A note that `n` of `total` named sample IDs are not in the store; empty if `n` is 0."""
    return f"{n:,} of {total:,} sample IDs {'is' if n == 1 else 'are'} not in the store" if n else ""


def _count(n: int, what: str) -> str:
    if what == "variants inserted":  # counted as matched, too
        return f"{n:,} of the matched variants inserted"
    noun, _, rest = what.partition(" ")
    return f"{n:,} {noun.removesuffix('s') if n == 1 else noun} {rest}".strip()
