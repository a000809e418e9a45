"""Compact: removed samples leave a store, and those that stay move up."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vczstore.operations import Edit, Stages, option

if TYPE_CHECKING:
    from plans.core.model import Compiling
    from vczstore.execution.options import Options
    from vczstore.stores.lock import JobLock


@dataclass(frozen=True, kw_only=True)
class Compact(Edit):
    """
    Drop removed samples from all arrays: the samples after them move up.

    A folder of plain Zarr is replaced by a new one; plain Zarr elsewhere needs `output`. Readers that have such a
    folder open should open it again: they would read chunks of the new one by the shapes of the old one. If a run is
    stopped, readers see one or the other, and running it again completes it.

    Raises
    ------
    OptionError
        If the store is on plain Zarr elsewhere and `output` is not given, or there is something already.
    BusyError
        If a job runs on a folder that is to be replaced.

    Examples
    --------
    >>> compact("cohort.icechunk")  # doctest: +SKIP
    """

    output: Any = option(
        None,
        "Make a compacted copy on plain Zarr here; `store` stays as it is.",
        metavar="PATH",
        kind="location",
    )

    @property
    def writes(self) -> bool:
        """Whether it writes to the store itself."""
        return self.output is None

    def locked(self, options: "Options", *, dry_run: bool) -> "AbstractContextManager[JobLock | None] | None":
        """Hold the lock of a folder on plain Zarr while it is replaced; plain Zarr elsewhere is refused without."""
        from vczstore.stores.base import is_repository
        from vczstore.stores.folder_swap import folder_of, replacing

        if dry_run or self.output is not None:
            return nullcontext()
        path = folder_of(self.store)
        if path is None or options.backend_storage == "icechunk" or is_repository(path):
            return None if options.open(self.store).atomic else nullcontext()
        found = {"backend_storage": options.backend_storage, "storage_options": options.storage_options}
        return replacing(self.store, {**found, "no_lock": options.no_lock})

    def open(self, options: "Options", *, dry_run: bool) -> "Compiling":
        """Open the store, and the place of a copy or of what replaces a folder."""
        from plans.core.model import Compiling
        from vczstore.stores.base import new_store
        from vczstore.stores.folder_swap import ReplacedStore

        if self.output is None:
            store = options.open(self.store)
            store = store if store.atomic else ReplacedStore.of(self.store, store)
            return Compiling(store, store.open(), (), options.memory, options.impl, dry_run)
        url = os.fspath(self.output)
        vcz = options.for_store(self.store, [url]).open(self.store).open()
        output = new_store(url, "compact", storage_options=options.shared(url, self.store), samples_chunks=1)
        return Compiling(output, vcz, (), options.memory, options.impl, dry_run)

    def compile(self, compiling: "Compiling") -> Stages:
        """Compile what moves samples up, in place or into a copy."""
        from plans.compilers.compact import compile_compact, compile_compacted_copy

        yield from ()
        compiler = compile_compact if self.output is None else compile_compacted_copy
        return compiler(compiling.store, compiling.vcz, compiling.memory)
