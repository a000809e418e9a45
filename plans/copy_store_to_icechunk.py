"""Copy: a VCZ on plain Zarr into an Icechunk repository."""

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vczstore.declarations import argument, option
from vczstore.errors import NotAStoreError, OptionError
from vczstore.execution.operations import Edit

if TYPE_CHECKING:
    from plans.core.model import Compiling, Plan
    from vczstore.execution.options import Options
    from vczstore.stores.base import Store


@dataclass(frozen=True, kw_only=True)
class CopyStoreToIcechunk(Edit):
    """
    Copy a VCZ on plain Zarr into an Icechunk repository.

    Raises
    ------
    OptionError
        If `store` exists, and `overwrite` is not given.
    SampleError
        If the VCZ has samples that were removed from the repository that is overwritten.

    Examples
    --------
    >>> copy_store_to_icechunk("cohort.vcz", "copy.icechunk").committed
    True
    """

    group: ClassVar[str] = "edit"
    uses: ClassVar[tuple[str, ...]] = ("store", "lock", "sources", "impl", "workers", "progress")
    makes_store: ClassVar[bool] = True
    is_seen_early: ClassVar[bool] = False
    ignored: ClassVar[tuple[str, ...]] = ("--io-concurrency",)
    order: ClassVar[tuple[str, ...]] = ("source", "store")
    writes = False
    """The repository is opened or created by `open`."""

    source: Any = argument("The VCZ that is copied, of format 2 or 3.", metavar="SOURCE", kind="location")
    store: Any = argument("A path or URL for the repository.", metavar="STORE", kind="location")
    overwrite: bool = option(
        False,
        "Replace the contents of the repository. Its history stays, and with it the old data; samples removed from it "
        "stay out, and so do lines of the VCF's header that name them.",
    )

    def open(self, options: "Options", written: "Store | None") -> "Compiling":
        """Open the source, and open or create the repository."""
        from plans.compilers.copy import columns_per_manifest
        from plans.core.model import Compiling
        from vczstore.execution.sources import open_sources
        from vczstore.stores.resolve import open_store, repository_to_fill

        if options.backend_storage not in (None, "icechunk"):
            raise OptionError(f"{self.called}: the new store is on icechunk, not {options.backend_storage}")
        url = os.fspath(self.store)
        (vcz,) = open_sources(self.called, options.but(backend_storage="icechunk"), url, [self.source])
        store = repository_to_fill(
            url,
            self.called,
            storage_options=options.for_store(url, [self.source]).storage_options,
            samples_chunks=columns_per_manifest(vcz),
            overwrite=self.overwrite,
            no_lock=options.no_lock,
            reads=[self.source],
        )
        origin = open_store(self.source, storage_options=options.options_of(self.source, url))
        return Compiling(store, vcz, (), options.memory, options.impl, origin)

    def compile(self, compiling: "Compiling") -> "Plan":
        from plans.compilers.copy import compile_copy
        from plans.core.withdrawn import copying_key, overwriting

        store = compiling.store
        copy = compile_copy(store, compiling.vcz, compiling.memory)
        with suppress(NotAStoreError):  # if there is no store to overwrite
            copy = overwriting(copy, store.open(), compiling.vcz)
        return copy if compiling.origin is None else copying_key(copy, compiling.origin, compiling.vcz)
