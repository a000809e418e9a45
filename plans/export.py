"""Export: write a state of a store as a new VCZ, or as VCF or BCF."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

from plans.info import AT_METAVAR
from vczstore.choices import STANDARD_OUTPUT
from vczstore.declarations import argument, option
from vczstore.errors import OptionError
from vczstore.execution.operations import EXPORTS, Operation

if TYPE_CHECKING:
    from plans.compilers.export import Chosen
    from plans.variants.regions import Region
    from vczstore.execution.options import Options
    from vczstore.execution.results import Found
    from vczstore.execution.sets.members import StoreSet
    from vczstore.stores.base import Store
    from vczstore.stores.lock import HeldLock
    from vczstore.vcz.model import Vcz


class _Request(NamedTuple):
    """The store, and the state, samples and regions to export; no regions stand for all variants."""

    store: "Store"
    vcz: "Vcz"
    chosen: "Chosen"
    regions: "list[Region]"


@dataclass(frozen=True, kw_only=True)
class Export(Operation):
    """
    Write a state of a store to a new VCZ on plain Zarr, or to a VCF or BCF file.

    Removed samples are left out; from an earlier state, also those that were removed later. A VCZ has the format of the
    store, a regular grid and consolidated metadata; chunks are copied verbatim if all of their samples and variants are
    exported. A variant overlaps a region if a base of its REF does, or one up to its END, as for bcftools view -r;
    variants keep their order, and are written once. Files that end in .vcf, .vcf.gz or .bcf are written by vcztools, in
    one process, without stale INFO fields; INFO/AC and AN are recomputed for named samples. Lines
    of the VCF header about samples and commands, which may name other samples, are left out. Readers find no store or
    file at `out` until all is written. If `out` is -, uncompressed VCF is written to standard output, and messages to
    standard error.

    A job exports the state that it has committed, after it has set its tags. An earlier export of a job is kept if it
    has the same state, and otherwise replaced in one step; in an object store, replacing it is refused. Exports that
    were changed, and files that no job has exported, are never replaced. A file next to the export, whose name ends in
    .vczstore-export, records its state.

    Raises
    ------
    SampleError
        If some of the samples are not in the store.
    UnsuitableError
        If `out` exists.

    Examples
    --------
    >>> export("cohort.icechunk", "release-1.vcz", at="release-1").counts["samples"]
    4
    """

    group: ClassVar[str] = "release"
    uses: ClassVar[tuple[str, ...]] = ("store", "branch", "workers", "progress")
    is_step: ClassVar[bool] = True
    phase: ClassVar[int] = EXPORTS
    is_handed_out: ClassVar[bool] = True
    step_examples: ClassVar[tuple[Any, ...]] = (
        "latest.vcz",
        {"to": "release-${DATE:-draft}.vcf.gz", "at": "release-${DATE:-draft}", "regions": ["chr20"]},
    )
    dry_run: ClassVar[str] = "Check everything and print what would be done; write nothing."

    out: Any = argument(
        "A path or URL that does not exist.",
        metavar="OUT",
        kind="location",
        key="to",
        shorthand="a path or URL",
        job_help="Or an earlier export of a job, which is replaced.",
        examples=("latest.vcz",),
    )
    at: str | None = option(None, "Export this tag, branch or snapshot.", metavar=AT_METAVAR, examples=("release-1",))
    samples: tuple[str, ...] | None = option(
        None,
        "Export these samples, in this order; all but these if the first begins with ^.",
        flags=("-s", "--samples"),
        metavar="ID,...",
        separator=",",
        examples=(["NA00003", "NA00001"],),
    )
    samples_file: str | None = option(
        None,
        "Export the samples in this file, one ID per line; all but these if its name begins with ^.",
        flags=("-S", "--samples-file"),
        metavar="FILE",
        kind="file",
        examples=("pilot.txt",),
    )
    regions: tuple[str, ...] | None = option(
        None,
        "Export the variants that overlap these regions, such as chr20:1-1000.",
        flags=("-r", "--regions"),
        metavar="REGION,...",
        separator=",",
        examples=(["chr20:1-1000"],),
    )
    regions_file: str | None = option(
        None,
        "Export the variants that overlap the regions in this file: contig, start and end in each line, separated by "
        "tabs. Positions are 1-based and inclusive; in a .bed file 0-based, with an exclusive end.",
        flags=("-R", "--regions-file"),
        metavar="FILE",
        kind="file",
        examples=("exome.bed",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("samples", "regions"):
            values, file = getattr(self, name), getattr(self, f"{name}_file")
            if values is not None and file is not None:
                raise OptionError(f"export: {name} are named by --{name} or by --{name}-file, not by both")
            if values is not None and ("" in values or not values):
                raise OptionError(f"export: --{name} has an empty name; leave it out, or name {name}")
        if any(sample.startswith("^") for sample in (self.samples or ())[1:]):
            raise OptionError("export: in --samples, write ^ once, before the first sample; it applies to all of them")

    @property
    def is_vcf(self) -> bool:
        """Whether a VCF or BCF is written."""
        from vczstore.vcf.files import SUFFIXES

        return self.is_printed or str(os.fspath(self.out)).lower().endswith(SUFFIXES)

    @property
    def is_printed(self) -> bool:
        """Whether a VCF is written to standard output."""
        return bool(self.out == STANDARD_OUTPUT)

    def perform(self, options: "Options", *, dry_run: bool) -> "Found":
        return self._write(self._resolve(options), os.fspath(self.out), options, dry_run=dry_run)

    def perform_within(self, options: "Options", lock: "HeldLock") -> "Found":
        """Write the export, or replace an earlier one of a job unless it has the same contents."""
        from importlib.metadata import version

        from plans.maintenance.export_again import Place, Unchanged, digest, export_again

        url, request = os.fspath(self.out), self._resolve(options)
        vcz, chosen = request.vcz, request.chosen
        exported = vcz.sample_ids[chosen.positions].tolist()  # only IDs that the export itself has
        state = vcz.stamp if vcz.snapshot is None else request.store.history.content(vcz.snapshot)
        identity = digest(state, exported, chosen.n_withdrawn, request.regions, version("vczstore"))

        def write(temporary: str) -> "Found":
            result: Any = self._write(request, temporary, options, dry_run=False)
            return cast("Found", replace(result, **{"out" if self.is_vcf else "store": url}))

        place = Place.of(url, options.shared(url, self.store))
        return export_again(place, identity, Unchanged(vcz.label, vcz.snapshot, url), write)

    def perform_set(self, group: "StoreSet", *, dry_run: bool) -> "Found":
        """Export all parts, in the states at the start; unless parts are named, their samples must agree."""
        from plans.maintenance.export_again import Place, of_one_state
        from plans.maintenance.history import open_at
        from vczstore.execution.sets.members import Samples

        if group.held:
            return super().perform_set(group, dry_run=dry_run)
        reach = group.options.for_store(self.store, [os.fspath(self.out)])
        states = {name: open_at("export", reach.open(place), self.at) for name, place in group.places.items()}
        if not group.is_named:
            way_out = "bring them in step by edits of single parts, or name the parts to export with --parts"
            group.agree({name: Samples.of(vcz) for name, vcz in states.items()}, "the parts", way_out)
        members = {name: cast("Export", member) for name, member in group.members.items()}
        if self.at is None:
            members = {name: replace(member, at=states[name].snapshot) for name, member in members.items()}
            group = replace(group, members=members)
        if dry_run or all(vcz.snapshot is not None for vcz in states.values()):
            return super().perform_set(group, dry_run=dry_run)
        places = [Place.of(url := os.fspath(member.out), reach.shared(url, self.store)) for member in members.values()]
        with of_one_state(group, states, places):
            return super().perform_set(group, dry_run=dry_run)

    def check_place(self, options: "Options", vcz: "Vcz") -> None:
        """Check the destination, the regions and the contents before a job begins, as far as they are known then."""
        from plans.maintenance.export_again import Place
        from vczstore.stores.resolve import refuse_nested

        url = os.fspath(self.out)
        if os.path.basename(url) == STANDARD_OUTPUT:  # a path of a job file has been made absolute
            raise OptionError("export: - is standard output, to which no job exports; name a path or URL")
        reach = options.shared(url, self.store)
        refuse_nested("export", url, [self.store], None, reach)
        Place.of(url, reach).check()
        self._named()
        regions = self._regions(vcz)
        if self.is_vcf:
            from plans.maintenance.export_vcf import check_vcf

            check_vcf(vcz, url)
        elif regions:
            from plans.compilers.export import without_kept_blocks

            without_kept_blocks(vcz)

    def _resolve(self, options: "Options") -> "_Request":
        """Open the store, and look up the state, samples and regions to export."""
        from plans.compilers.export import chosen_samples
        from plans.maintenance.history import open_at
        from vczstore.stores.resolve import refuse_nested

        url = os.fspath(self.out)
        store = options.for_store(self.store, [url]).open(self.store)
        if self.is_vcf and not self.is_printed:
            refuse_nested("export", url, [self.store])
        vcz = open_at("export", store, self.at)
        vcz.require_whole("export")
        named, is_complement = self._named()
        if not is_complement and len({*named}) < len(named):
            raise OptionError("export: a sample is named twice; name each once")
        chosen = chosen_samples(store, vcz, named, is_complement=is_complement)
        return _Request(store, vcz, chosen, self._regions(vcz))

    def _write(self, request: "_Request", url: str, options: "Options", *, dry_run: bool) -> "Found":
        store, vcz, chosen, regions = request
        if self.is_vcf:
            from plans.maintenance.export_vcf import export_vcf

            return export_vcf(vcz, chosen, regions, url, dry_run=dry_run)
        from plans.compilers.export import compile_export, kept_variants, without_kept_blocks
        from vczstore.execution.engine import check_reachable, run_plan
        from vczstore.stores.resolve import new_store

        check_reachable("export", store, options)
        if regions:
            vcz, notes = without_kept_blocks(vcz)
            chosen = chosen._replace(notes=(*chosen.notes, *notes))
        output = new_store(
            url, "export", storage_options=options.shared(url, self.store), samples_chunks=1, reads=[self.store]
        )
        kept = kept_variants(store, vcz, regions, options) if regions else None
        return run_plan(compile_export(output, vcz, chosen, options.memory, kept), options, dry_run=dry_run)

    def _regions(self, vcz: "Vcz") -> "list[Region]":
        """The regions to export; their contigs must be in the store."""
        from plans.variants.regions import parse_region, read_regions_file, require_contigs

        if self.regions_file is not None:
            regions, named_in = read_regions_file("export", Path(self.regions_file)), str(self.regions_file)
        else:
            contigs = vcz.table("contig_id").tolist() if self.regions else ()
            regions, named_in = [parse_region("export", text, contigs) for text in self.regions or ()], "--regions"
        require_contigs("export", vcz, regions, named_in)
        return regions

    def _named(self) -> tuple[Sequence[str], bool]:
        """The named samples, and whether all samples except these are exported."""
        if self.samples_file is None:
            names = self.samples or ()  # only the first may begin with ^
            return [name.removeprefix("^") for name in names], any(name.startswith("^") for name in names)
        from vczstore.configuration.lists import read_lines

        is_complement = str(self.samples_file).startswith("^")
        path = Path(str(self.samples_file).removeprefix("^"))
        lines = [line for _, line in read_lines("export", path)]
        if not lines:
            raise OptionError(f"export: {path} names no sample; give one sample ID in a line")
        return lines, is_complement
