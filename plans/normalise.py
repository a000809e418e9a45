"""Normalise: map a VCZ to the variants and alleles of a store, and write it as a new store."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from plans.compilers.options import HarmoniseOptions, fields_of
from vczstore.choices import BACKENDS
from vczstore.declarations import argument, option
from vczstore.errors import OptionError
from vczstore.execution.operations import Edit, Stages

if TYPE_CHECKING:
    from plans.core.model import Compiling
    from vczstore.execution.options import Options
    from vczstore.stores.base import Store


@dataclass(frozen=True, kw_only=True)
class Normalise(HarmoniseOptions, Edit):
    """
    Map a VCZ to the variants and alleles of a store, and write it as a new store.

    `out` has the samples of `source`, and the variants of `store` without INFO; it is on plain Zarr of format 3 unless
    its name ends in ``.icechunk`` or `output_backend` is icechunk. Appending it has the same result as appending the
    source with ``harmonise``. If it has new alleles, append it with ``harmonise`` and ``allow_new_alleles``.

    Raises
    ------
    OptionError
        If `out` exists.
    VczstoreError
        If the source cannot be harmonised.

    Examples
    --------
    >>> normalise("cohort.vcz", "batch-7.vcz", "batch-7.normalised.vcz").counts["samples"]
    2
    """

    group: ClassVar[str] = "edit"
    uses: ClassVar[tuple[str, ...]] = ("store", "branch", "lock", "sources", "impl", "work_dir", "workers", "progress")
    is_seen_early: ClassVar[bool] = False
    ignored: ClassVar[tuple[str, ...]] = ("--variant-chunks-in-batch",)
    writes = False
    """No existing store is written."""

    source: Any = argument(
        "The VCZ, or VCF or BCF file, that is mapped; never written to.", metavar="SOURCE", kind="location"
    )
    out: Any = argument("A path or URL that does not exist.", metavar="OUT", kind="location")
    output_backend: str | None = option(
        None, "Backend of `out`.", choices=BACKENDS, default_text="icechunk for .icechunk, else zarr"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.rules  # validates the options

    def open(self, options: "Options", written: "Store | None") -> "Compiling":
        """Open the store, the source, and the destination, which must not exist."""
        from plans.compilers.copy import columns_per_manifest
        from plans.core.model import Compiling
        from vczstore.execution.sources import open_sources
        from vczstore.vcf.conversion import Layout

        if self.new_variants == "insert":
            raise OptionError(
                "normalise: --new-variants insert is for append, which changes the store; say refuse or drop"
            )
        if options.impl == "xarray":
            raise OptionError("normalise: --impl xarray cannot harmonise; leave it out")
        url, reach = os.fspath(self.out), options.shared(self.store, os.fspath(self.out))
        ours = options.but(storage_options=reach).open(self.store).open()
        (theirs,) = open_sources("normalise", options, url, [self.source], layout=lambda: Layout.of(ours))
        reads, samples_chunks = [self.store, self.source], columns_per_manifest(theirs)
        store = options.new_store("normalise", url, self.output_backend, reads, samples_chunks)
        return Compiling(store, ours, (theirs,), options.memory, options.impl)

    def compile(self, compiling: "Compiling") -> Stages:
        """Survey the variants of both, and compile the result."""
        from plans.compilers.normalise import compile_normalise
        from plans.core.model import with_notes
        from vczstore.stores.resolve import backend_note

        (source,) = compiling.sources
        fields = fields_of(self.drop_fields)
        plan = yield from compile_normalise(
            compiling.store, compiling.vcz, source, self.rules, compiling.memory, fields
        )
        return with_notes(plan, backend_note(compiling.store))
