"""Opening what comes into a store."""

from collections.abc import Sequence

import executors
from vczstore.errors import OptionError
from vczstore.execution.options import Options
from vczstore.execution.workers import Workers
from vczstore.stores.base import Location
from vczstore.stores.locations import scheme
from vczstore.stores.object_store import plain_errors
from vczstore.stores.plain import is_same_everywhere
from vczstore.stores.resolve import open_store
from vczstore.vcz.model import Vcz


def open_sources(options: Options, location: Location, sources: Sequence[Location]) -> list[Vcz]:
    """
    Open what comes into a store.

    Storage options reach the sources in object stores of the store's kind too; those of every kind if the store is on
    this machine. Where sources have options of their own, they take these alone.

    Parameters
    ----------
    options
        How they are reached, and what runs the tasks that read them.
    location, sources
        What the store and its sources are called.

    Raises
    ------
    OptionError
        If there are options of sources, and all sources are on this machine.
    UnsuitableError
        If the tasks do not read a source as the driver does.
    """
    if sources and options.source_storage_options and not any(map(scheme, sources)):
        raise OptionError(f"{sources[0]}: a local source takes no storage options")
    opened = list[Vcz]()
    for source in sources:
        with plain_errors(source):
            opened.append(open_store(source, storage_options=options.options_of(source, location)).open())
    if options.impl != "zarr":
        _refuse_unreachable(opened, options)
    return opened


def _refuse_unreachable(sources: Sequence[Vcz], options: Options) -> None:
    """Raise an `OptionError` for sources that the tasks of an executor do not read as the driver does."""
    doubtful = [source for source in sources if not is_same_everywhere(source.store)]
    if options.executor in executors.IN_PROCESS or not doubtful:
        return
    with Workers(options) as workers:
        for source in doubtful:
            workers.check_reads("sources", source.label, source.store)
