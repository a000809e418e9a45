"""Compact: drop removed samples from a store; the others move up."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vczstore.declarations import option
from vczstore.execution.operations import OWN_COMMIT, Edit

if TYPE_CHECKING:
    from plans.core.model import Compiling, Plan
    from vczstore.execution.options import Options
    from vczstore.stores.base import Store


@dataclass(frozen=True, kw_only=True)
class Compact(Edit):
    """
    Drop removed samples from all arrays: the samples after them move up.

    A local folder on plain Zarr is replaced by a new one; plain Zarr elsewhere needs `output`. Readers that have such a
    folder open should open it again, since they would read new chunks with the old shapes. If a run is interrupted,
    readers see either the old or the new folder, and running it again completes it.

    Raises
    ------
    OptionError
        If the store is on plain Zarr elsewhere and `output` is not given, or `output` exists.
    BusyError
        If a job runs on a folder that is to be replaced.

    Examples
    --------
    >>> compact("cohort.icechunk", dry_run=True).committed
    False
    """

    group: ClassVar[str] = "maintain"
    is_step: ClassVar[bool] = True
    phase: ClassVar[int] = OWN_COMMIT
    step_examples: ClassVar[tuple[Any, ...]] = (True,)

    output: Any = option(
        None,
        "Make a compacted copy on plain Zarr here; `store` is unchanged.",
        metavar="PATH",
        kind="location",
        positional=True,
        job=False,
    )

    @property
    def writes(self) -> bool:
        """Whether it writes to the store itself."""
        return self.output is None

    def store_to_lock(self, options: "Options") -> "Store | None":
        """Open the store to lock; plain Zarr that is not a local folder is refused. None if a copy is made."""
        return self._in_place(options) if self.writes else None

    def _in_place(self, options: "Options", *, dry_run: bool = False) -> "Store":
        from vczstore.stores.resolve import open_in_place

        return open_in_place(
            self.store,
            backend_storage=options.backend_storage,
            storage_options=options.storage_options,
            no_lock=options.no_lock,
            branch=options.branch,
            dry_run=dry_run,
        )

    def open(self, options: "Options", written: "Store | None") -> "Compiling":
        """Open the store, and the destination of a copy or of the folder that replaces the store."""
        from plans.core.model import Compiling

        if self.output is None:  # reopened, since the leftovers of an interrupted run may have been the only store
            store = self._in_place(options, dry_run=True)
            return Compiling(store, store.open(), (), options.memory, options.impl)
        origin = options.for_store(self.store, [self.output]).open(self.store)
        output = options.place_of_copy(self.called, self.output, self.store)
        return Compiling(output, origin.open(), (), options.memory, options.impl, origin)

    def compile(self, compiling: "Compiling") -> "Plan":
        """Compile the compaction, in place or into a copy."""
        from plans.compilers.compact import compile_compact, compile_compacted_copy
        from plans.core.withdrawn import copying_key

        if compiling.origin is None:
            return compile_compact(compiling.store, compiling.vcz, compiling.memory)
        copy = compile_compacted_copy(compiling.store, compiling.vcz, compiling.memory)
        return copying_key(copy, compiling.origin, compiling.vcz)
