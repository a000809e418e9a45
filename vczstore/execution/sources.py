"""Open the sources of an operation, converting VCFs."""

import os
from collections.abc import Callable, Sequence

import executors
from vczstore.errors import OptionError, SampleError
from vczstore.execution.conversions import Conversions
from vczstore.execution.options import Options
from vczstore.execution.workers import Workers
from vczstore.stores.base import Location
from vczstore.stores.locations import scheme
from vczstore.stores.object_store import plain_errors
from vczstore.stores.plain import is_same_everywhere
from vczstore.stores.resolve import open_store
from vczstore.vcf.conversion import Layout
from vczstore.vcf.files import VcfFile, is_vcf
from vczstore.vcz.model import Vcz


def open_sources(
    operation: str,
    options: Options,
    location: Location,
    sources: Sequence[Location | VcfFile],
    *,
    layout: Callable[[], Layout] | None = None,
) -> list[Vcz]:
    """
    Open the sources of an operation on a store.

    The storage options of the store also apply to sources in object stores of the same kind, or of any kind if the
    store is on this machine. Storage options for sources, if there are any, replace them.

    Parameters
    ----------
    operation
        Name of the operation, for messages.
    options
        Storage options, and the executor whose tasks read the sources.
    location, sources
        The store and its sources. VCF and BCF files are converted first.
    layout
        Returns the layout of the VCZs to which VCFs are converted; None if only VCZs can be sources.

    Raises
    ------
    OptionError
        If there are storage options for sources, and all sources are on this machine; or if a source is a VCF, and the
        tasks run on other machines.
    SampleError
        If a VCF has no samples, and the layout is not that of sites.
    UnsuitableError
        If the tasks do not read the same from a source as the driver.
    VcfError
        If a VCF cannot be converted.
    """
    places = [source.label if isinstance(source, VcfFile) else source for source in sources]
    if places and options.source_storage_options and not any(map(scheme, places)):
        raise OptionError(f"{places[0]}: a local source takes no storage options")
    converted = _converted(operation, options, location, sources, layout)
    opened = list[Vcz]()
    for place, vcz in zip(places, converted, strict=True):
        with plain_errors(place):
            opened.append(vcz or open_store(place, storage_options=options.options_of(place, location)).open())
    if options.impl != "zarr":
        _refuse_unreachable(opened, options)
    return opened


def _converted(
    operation: str,
    options: Options,
    location: Location,
    sources: Sequence[Location | VcfFile],
    layout: Callable[[], Layout] | None,
) -> list[Vcz | None]:
    """Convert the sources that are VCFs; return a VCZ for each of these, and None for each of the others."""
    if layout is None:
        return [None] * len(sources)
    files = [find_vcf(operation, options, location, source) for source in sources]
    vcfs = [file for file in files if file is not None]
    if not vcfs:
        return [None] * len(sources)
    target = layout()
    _refuse_remote(operation, vcfs[0].label, options)
    for file in vcfs:
        if not file.samples and not target.sites_only:
            raise SampleError(f"{operation}: {file.label} has no samples; leave it out")
    converted = iter(
        _conversions(options).converted(
            operation,
            vcfs,
            target,
            workers=_processes(options),
            budget=options.memory.free,
        )
    )
    return [None if file is None else next(converted) for file in files]


def find_vcf(operation: str, options: Options, location: Location, source: Location | VcfFile) -> VcfFile | None:
    """Read the header of a VCF source, downloading it from an object store; return None if it is not a VCF."""
    if isinstance(source, VcfFile):
        return source
    if not is_vcf(source):
        return None
    with plain_errors(source):
        return _conversions(options).file(operation, source, options.options_of(source, location))


def _conversions(options: Options) -> Conversions:
    """Return the conversions of the running operation; without one, new ones that are kept until the process ends."""
    return options.conversions or Conversions(options.work_dir, options.progress)


def _processes(options: Options) -> int:
    """Return the maximum number of processes that convert VCFs."""
    n = os.cpu_count() or 1
    return 1 if options.executor == "single-threaded" else min(n, options.max_workers or n)


def _refuse_remote(operation: str, label: str, options: Options) -> None:
    """Raise an `OptionError` if the tasks run on other machines, which cannot read a VCZ converted on this one."""
    with Workers(options) as workers:
        if options.executor == "modal" or getattr(workers.executor, "remote", False):
            raise OptionError(
                f"{operation}: {label} is a VCF, which is converted on this machine, where the workers of "
                f"{options.executor} find nothing; convert it with vcf2zarr into the object store, and name that, or "
                "use the executor threads"
            )


def _refuse_unreachable(sources: Sequence[Vcz], options: Options) -> None:
    """Raise an `UnsuitableError` for sources from which the tasks do not read the same as the driver."""
    doubtful = [source for source in sources if not is_same_everywhere(source.store)]
    if options.executor in executors.IN_PROCESS or not doubtful:
        return
    with Workers(options) as workers:
        for source in doubtful:
            workers.check_reads("sources", source.label, source.store)
