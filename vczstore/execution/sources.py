"""Open the sources of an operation, converting VCFs."""

import os
from collections.abc import Callable, Sequence

import numpy as np
from zarr.storage import MemoryStore

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
from vczstore.vcz import conversion
from vczstore.vcz.model import SAMPLE_ID, SAMPLES, Vcz


def open_sources(
    operation: str,
    options: Options,
    location: Location,
    sources: Sequence[Location | VcfFile],
    *,
    layout: Callable[[], Layout] | None = None,
    check: Callable[[Sequence[Vcz]], None] | None = None,
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
    check
        Checks the sample IDs before VCFs are converted, which may take hours; given the sources, it may raise to refuse
        them. VCFs have only `sample_id` then.

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
    files = [None if layout is None else find_vcf(operation, options, location, source) for source in sources]
    opened = list[Vcz]()
    for place, file in zip(places, files, strict=True):
        with plain_errors(place):
            if file is None:
                opened.append(open_store(place, storage_options=options.options_of(place, location)).open())
            else:
                opened.append(_sample_ids_of(file))
    if layout is not None and any(files):
        vcfs, target = [file for file in files if file is not None], layout()
        _refuse_remote(operation, vcfs[0].label, options)
        for file in vcfs:
            if not file.samples and not target.sites_only:
                raise SampleError(f"{operation}: {file.label} has no samples; leave it out")
        if check is not None:
            check(opened)
        converted = iter(
            _conversions(options).converted(
                operation,
                vcfs,
                target,
                workers=_processes(options),
                budget=options.memory.free,
            )
        )
        opened = [vcz if file is None else next(converted) for vcz, file in zip(opened, files, strict=True)]
    if options.impl != "zarr":
        _refuse_unreachable(opened, options)
    return opened


def _sample_ids_of(file: VcfFile) -> Vcz:
    """Return a VCZ that has only the `sample_id` of a VCF, for checks before the conversion."""
    ids = np.array(file.samples, dtype=object)
    array = conversion.new(SAMPLE_ID, shape=ids.shape, dtype="string", chunks=(1,), dimension_names=(SAMPLES,))
    return Vcz(file.label, MemoryStore(), {SAMPLE_ID: array}, {}, 3, planned_ids=ids).converted_from(file)


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
