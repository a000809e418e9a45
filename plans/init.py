"""Init: create a store as a copy of its first batch, with all fields and samples."""

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from vczstore.declarations import argument
from vczstore.execution.operations import Edit, Stages

if TYPE_CHECKING:
    from plans.core.model import Compiling
    from vczstore.execution.options import Options
    from vczstore.stores.base import Store


@dataclass(frozen=True, kw_only=True)
class Init(Edit):
    """
    Make a store from its first batch as a whole: variants, QUAL, FILTER, INFO, calls and samples, in one commit.

    The store has the variants and the chunk lengths of the batch; `create` makes a store over the variants of several
    batches, without samples. A store whose name ends in ``.icechunk``, or with `backend_storage` icechunk, is an
    Icechunk repository; else it is on plain Zarr, of the batch's format. Jobs do not append the same batch again.

    Raises
    ------
    OptionError
        If the destination exists.
    SampleError
        If the batch has no samples, duplicate ones, or removed ones.
    IncompatibleError
        If the batch has reference blocks of a gVCF.

    Examples
    --------
    >>> init("first.icechunk", "batch-7.vcz").counts["samples"]
    2
    """

    group: ClassVar[str] = "edit"
    uses: ClassVar[tuple[str, ...]] = ("store", "lock", "sources", "impl", "work_dir", "workers", "progress")
    makes_store: ClassVar[bool] = True
    writes = False
    """No existing store is written."""

    store: Any = argument("A path or URL that does not exist.", metavar="OUT", kind="location", job=False)
    source: Any = argument(
        "The first batch: a VCZ, or VCF or BCF file; never written to.", metavar="FIRST", kind="location"
    )

    def open(self, options: "Options", written: "Store | None") -> "Compiling":
        """Open the batch, and the destination, which must not exist."""
        from plans.compilers.copy import columns_per_manifest
        from plans.compilers.create import DEFAULT_CHUNKS
        from plans.core.model import Compiling
        from vczstore.execution.sources import open_sources
        from vczstore.vcf.conversion import Layout
        from vczstore.vcz.model import SAMPLES, VARIANTS

        url = os.fspath(self.store)
        layout = Layout(DEFAULT_CHUNKS[VARIANTS], DEFAULT_CHUNKS[SAMPLES], info=None)
        (source,) = open_sources("init", options, url, [self.source], layout=lambda: layout)
        store = options.new_store("init", url, options.backend_storage, [self.source], columns_per_manifest(source))
        return Compiling(store, source, (), options.memory, options.impl)

    def compile(self, compiling: "Compiling") -> Stages:
        from plans.compilers.compact import compile_compacted_copy
        from plans.compilers.copy import compile_copy
        from plans.core.compatibility import check_incoming, refuse_look_alikes
        from plans.core.ledger import Ledger
        from plans.core.model import Survey, with_notes
        from plans.core.withdrawn import ATTRIBUTE as WITHDRAWN
        from plans.variants.reference_blocks import FindBlocks, SeenBlocks, refusal
        from plans.variants.sortedness import unit_rows
        from vczstore.stores.edits import SetAttribute
        from vczstore.stores.resolve import backend_note

        store, source = compiling.store, compiling.vcz
        source.require_whole("init")
        refuse_look_alikes("init", check_incoming("init", [source]), source)
        if {"variant_contig", "variant_position", "variant_allele"} <= source.arrays.keys():
            (found,) = yield Survey("init", (FindBlocks("init", source, unit_rows(source)),), compiling.memory)
            blocks = [row for item in found if (row := SeenBlocks(*item).first) is not None]
            if blocks:
                way_out = "make the store with vczstore create --gvcf, then append it with --harmonise --gvcf"
                raise refusal("init", source, min(blocks), way_out)
        compiler = compile_copy if store.atomic else compile_compacted_copy
        plan = compiler(store, source, compiling.memory, operation="init")
        zarr_format = 3 if store.atomic else source.zarr_format
        ledger = Ledger.of(source).with_sources([source]).edit(zarr_format)
        dropped = SetAttribute(
            WITHDRAWN, None, zarr_format
        )  # hashes of samples removed from the batch, with another key
        after = replace(plan.after, attributes={k: v for k, v in plan.after.attributes.items() if k != WITHDRAWN})
        n_fields = len(source.arrays) + len(source.inner)
        counts = {"fields": n_fields, "samples": source.n_samples, "variants": source.n_variants}
        plan = replace(plan.recording((), [dropped, ledger]), counts=counts, after=after)
        no_variants = "" if source.n_variants else "the store has no variants, since the batch has none"
        return with_notes(plan, backend_note(store), no_variants)
