"""Create: a store without samples over the variants of one or more VCZs, to append samples to."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from plans.compilers.options import SAMPLE_GRID_HELP, gvcf
from vczstore.choices import MAX_CHUNK, REGULAR, SAMPLE_GRIDS
from vczstore.declarations import argument, option
from vczstore.errors import OptionError
from vczstore.execution.operations import Edit, Stages

if TYPE_CHECKING:
    from plans.core.model import Compiling
    from vczstore.execution.options import Options
    from vczstore.stores.base import Store


@dataclass(frozen=True, kw_only=True)
class Create(Edit):
    """
    Make a store without samples, over the variants of one or more VCZs.

    Records are merged as by bcftools merge -m none: if contig (by name), position and REF agree and they share an ALT,
    regardless of case; but only if every source can be matched with the merged record, so that it can be appended with
    `harmonise`. Duplicate records of a source are all kept; alleles are not trimmed. Contigs are in the order of the
    first source that has them, variants in that of position and first appearance; identifiers of all sources are
    joined, as in rs1;rs2. QUAL, FILTER and INFO, which depend on samples and callers, are not copied, except `info`.
    The store is on plain Zarr of format 3 unless its name ends in ``.icechunk`` or `backend_storage` is icechunk.
    `init` makes a store with all fields and samples of a first batch.

    Raises
    ------
    OptionError
        If the destination exists.
    IncompatibleError
        If a source is not sorted, or sources have different reference genomes.

    Examples
    --------
    >>> create("new.vcz", "batch-7.vcz", "batch-8.vcz", samples_chunk=10_000).committed
    True
    """

    group: ClassVar[str] = "edit"
    uses: ClassVar[tuple[str, ...]] = ("store", "lock", "sources", "work_dir", "workers", "progress")
    makes_store: ClassVar[bool] = True
    is_seen_early: ClassVar[bool] = False
    writes = False
    """No existing store is written."""

    store: Any = argument("A path or URL that does not exist.", metavar="OUT", kind="location", job=False)
    sources: tuple[Any, ...] = argument(
        "The VCZs, or VCF or BCF files, to take variants from, sorted by position within contigs; never written to.",
        metavar="SOURCE...",
        kind="sources",
    )
    samples_chunk: int | None = option(
        None,
        "How many samples a chunk has, also for samples appended later.",
        flags=("--samples-chunk", "--samples-chunk-size"),
        metavar="N",
        bounds=(1, MAX_CHUNK),
        default_text="the sources' longest, or 1,000",
    )
    variants_chunk: int | None = option(
        None,
        "How many variants a chunk has.",
        metavar="N",
        bounds=(1, MAX_CHUNK),
        default_text="the sources' longest, or 1,000",
    )

    sample_grid: str = option(
        REGULAR,
        SAMPLE_GRID_HELP,
        choices=SAMPLE_GRIDS,
    )
    info: tuple[str, ...] = option(
        (),
        "INFO field to include, of one value per variant: the value of the first source that has one.",
        metavar="FIELD",
    )
    provenance: bool = option(False, "Record by which append each sample is added, for samples --long.")
    gvcf: bool = gvcf("reference blocks are not variants, and <NON_REF> or <*> is not an allele.")

    def open(self, options: "Options", written: "Store | None") -> "Compiling":
        """Open the sources, and the destination, which must not exist."""
        from plans.compilers.copy import columns_per_manifest
        from plans.compilers.create import DEFAULT_CHUNKS, ONLY_CUBED
        from plans.core.model import Compiling
        from vczstore.execution.sources import open_sources
        from vczstore.vcf.conversion import Layout
        from vczstore.vcz.model import SAMPLES, VARIANTS

        if options.impl != "cubed":
            raise OptionError(ONLY_CUBED)
        url = os.fspath(self.store)
        sites = Layout(
            self.variants_chunk or DEFAULT_CHUNKS[VARIANTS], DEFAULT_CHUNKS[SAMPLES], info=self.info, sites_only=True
        )
        incoming = open_sources("create", options, url, self.sources, layout=lambda: sites)
        samples_chunks = min(map(columns_per_manifest, incoming), default=1)
        store = options.new_store("create", url, options.backend_storage, self.sources, samples_chunks)
        return Compiling(store, None, incoming, options.memory, options.impl)

    def compile(self, compiling: "Compiling") -> Stages:
        """Survey the order of the sources, then the number of records, and compile the union."""
        from plans.compilers.create import compile_create, left_out_note
        from plans.core.model import with_notes
        from vczstore.stores.resolve import backend_note

        plan = yield from compile_create(
            compiling.store,
            compiling.sources,
            compiling.memory,
            variants_chunk=self.variants_chunk,
            samples_chunk=self.samples_chunk,
            gvcf=self.gvcf,
            sample_grid=self.sample_grid,
            info=self.info,
            provenance=self.provenance,
        )
        no_variants = "" if plan.counts["variants"] else "the store has no variants, since the sources have none"
        return with_notes(plan, left_out_note(compiling.sources, plan.after), no_variants, backend_note(plan.store))
