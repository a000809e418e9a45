"""The operations: open the store, compile a plan, run it, commit."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import executors
from plans import Memory, Plan
from vczstore.choices import IMPLS
from vczstore.describe import Info, describe
from vczstore.errors import IncompatibleError, OptionError, TagError, VczstoreError
from vczstore.execution import Progress, Result, run_plan
from vczstore.sizes import parse_size
from vczstore.stores import Place, Store, check_backend, is_repository, local_path, objects, open_store
from vczstore.stores.objects import plain_errors
from vczstore.vcz import Vcz

if TYPE_CHECKING:
    from vczstore.purging import Purged, Tags
    from vczstore.stores.icechunk import IcechunkStore
    from vczstore.verification import Verification


@dataclass(frozen=True)
class Options:
    """
    How an operation finds its stores and runs; the same for all operations, in Python and on the command line.

    Attributes
    ----------
    backend_storage
        The store's backend: ``zarr``, ``obstore``, ``fsspec`` or ``icechunk``. Found out when None.
    storage_options
        What reaches an object store: ``region``, ``endpoint``, ``anonymous``, ``allow_http`` and others, for the
        store and for sources of the same kind. Never credentials.
    impl
        ``cubed``; ``zarr``, which is plain and slow; or ``xarray``, which goes through xarray and cubed-xarray.
    executor
        ``single-threaded``, ``threads``, ``processes``, ``lithops`` or ``modal``; or the path of an executor file,
        which is one of these, or of Cubed's, with its options. What is given here goes before what the file says.
    max_workers
        How many tasks run at once; one for each core by default, 100 on Modal.
    allowed_mem, reserved_mem
        What a task may use, and what of it is Python's own: bytes, or a string such as ``"2GB"``.
    work_dir
        A folder for intermediate data. Only ``impl="xarray"`` has any.
    progress
        Told of every task that ends, for a progress bar.
    executor_options
        What the executor file says; not given by itself.
    """

    backend_storage: str | None = None
    storage_options: Mapping[str, Any] | None = None
    impl: str = "cubed"
    executor: str = "threads"
    max_workers: int | None = None
    allowed_mem: int | str | None = None
    reserved_mem: int | str | None = None
    work_dir: str | None = None
    progress: Progress | None = None
    executor_options: Mapping[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        check_backend(self.backend_storage)
        if self.impl not in IMPLS:
            raise OptionError(f"no implementation {self.impl!r}; choose one of {', '.join(IMPLS)}")
        self._read_executor()
        if self.max_workers is not None and self.max_workers < 1:
            raise OptionError(f"{self.max_workers} workers are too few; give at least 1")

    def _read_executor(self) -> None:
        name = str(self.executor)
        if name.endswith((".yaml", ".yml")):
            from vczstore.jobfile import load_executor

            file = load_executor(name)
            said = {"executor": file.name, "executor_options": file.options}
            for name in ("allowed_mem", "reserved_mem", "work_dir"):
                if getattr(self, name) is None:
                    said[name] = getattr(file, name)
            for name, value in said.items():
                object.__setattr__(self, name, value)  # still being made
        elif name not in executors.NAMES:
            raise OptionError(
                f"no executor {name!r}; choose one of {', '.join(executors.NAMES)}, or name an executor file "
                "that ends in .yaml"
            )

    @property
    def memory(self) -> Memory:
        """What a task may use."""
        default = Memory()
        allowed = default.allowed if self.allowed_mem is None else parse_size(self.allowed_mem)
        reserved = default.reserved if self.reserved_mem is None else parse_size(self.reserved_mem)
        if allowed <= reserved:
            raise OptionError(
                f"{allowed:,} bytes of allowed memory leave nothing beside the {reserved:,} that Python itself "
                f"takes; allow at least {2 * reserved:,}"
            )
        return Memory(allowed, reserved, self.work_dir)

    def store(self, place: Place) -> Store:
        """Open the store that is edited."""
        return open_store(place, backend_storage=self.backend_storage, storage_options=self.storage_options)

    def store_and_sources(self, store: Place, sources: Sequence[Place]) -> tuple[Store, list[Vcz]]:
        """Open the store that is edited, and what comes into it."""
        return self.for_store(store, sources).store(store), self.sources(store, sources)

    def for_store(self, store: Place, sources: Sequence[Place]) -> "Options":
        """The options without those that are for the sources alone, since the store is on this machine."""
        mine = objects.scheme(store) or not any(objects.scheme(source) for source in sources)
        return self if mine else replace(self, storage_options=None)

    def sources(self, store: Place, sources: Sequence[Place]) -> list[Vcz]:
        """
        Open what comes into a store.

        Storage options reach the sources in object stores of the store's kind too; those of every kind if the store
        is on this machine.
        """
        return [open_store(s, storage_options=self.options_of(s, store)).open() for s in sources]

    def options_of(self, source: Place, store: Place) -> Mapping[str, Any]:
        """The storage options that reach a source. fsspec's are no others'."""
        mine, theirs = objects.scheme(store), objects.scheme(source)
        reach = theirs is not None and mine in (None, theirs) and self.backend_storage != "fsspec"
        return (self.storage_options or {}) if reach else {}

    def find(self, source: str, store: Place) -> list[str]:
        """The source that a path or URL names, or those that a glob in a URL finds."""
        return objects.find(source, self.options_of(source, store)) if objects.is_glob(source) else [source]


# ---- append, update, remove, copy -----------------------------------------------------------


def append(store: Place, *sources: Place, dry_run: bool = False, **options: Any) -> Result:
    """
    Append the samples of one or more VCZs to a store, in one commit.

    Parameters
    ----------
    store
        A path, a URL, a Zarr store or an Icechunk repository.
    sources
        The same; appended in this order, never written to. They need the store's variants, in its order.
    dry_run
        Check everything, write nothing.
    options
        See `Options`.

    Raises
    ------
    VczstoreError
        If anything does not fit. Nothing has been changed then.

    Examples
    --------
    >>> append("cohort.vcz", "batch-7.vcz", "batch-8.vcz", executor="processes")  # doctest: +SKIP
    """
    opts = Options(**options)
    return _run(_plan_append(store, sources, opts), opts, dry_run=dry_run)


def plan_append(store: Place, *sources: Place, **options: Any) -> Plan:
    """Compile an append without running it; see `append` and `run`."""
    return _plan_append(store, sources, Options(**options))


def _plan_append(store: Place, sources: Sequence[Place], opts: Options) -> Plan:
    from plans.append import compile_append

    refuse_same_place("append", store, sources)
    with plain_errors(store):
        place, incoming = opts.store_and_sources(store, sources)
        return compile_append(place, place.open(), incoming, opts.memory)


def update(store: Place, *sources: Place, dry_run: bool = False, **options: Any) -> Result:
    """
    Replace the values of samples of a store by those that one or more VCZs have for them, in one commit.

    Parameters
    ----------
    store
        A path, a URL, a Zarr store or an Icechunk repository.
    sources
        The same; never written to. They need the store's variants, in its order; their samples have to be in the
        store, and may be in any order.
    dry_run
        Check everything, write nothing.
    options
        See `Options`.

    Raises
    ------
    SampleError
        If some of the samples are not in the store. All of these are named, and no sample is updated.
    VczstoreError
        If anything else does not fit. Nothing has been changed then.
    """
    opts = Options(**options)
    return _run(_plan_update(store, sources, opts), opts, dry_run=dry_run)


def plan_update(store: Place, *sources: Place, **options: Any) -> Plan:
    """Compile an update without running it; see `update` and `run`."""
    return _plan_update(store, sources, Options(**options))


def _plan_update(store: Place, sources: Sequence[Place], opts: Options) -> Plan:
    from plans.update import compile_update

    refuse_same_place("update", store, sources)
    with plain_errors(store):
        place, incoming = opts.store_and_sources(store, sources)
        return compile_update(place, place.open(), incoming, opts.memory)


def refuse_same_place(operation: str, store: Place, sources: Sequence[Place]) -> None:
    """Raise an `IncompatibleError` if a store is among the sources that come into it."""
    for source in sources:
        if _same_place(store, source):
            raise IncompatibleError(f"{operation}: {source} is the store {store} itself; name another source")


def _same_place(a: Place, b: Place) -> bool:
    paths = [local_path(os.fspath(p)) if isinstance(p, str | os.PathLike) else None for p in (a, b)]
    if None in paths:
        return a is b
    first, second = cast("list[Path]", paths)
    return first.exists() and second.exists() and first.samefile(second)


def remove(
    store: Place,
    samples: str | Sequence[str],
    *,
    purge: bool = False,
    tags: "Tags" = "refuse",
    dry_run: bool = False,
    **options: Any,
) -> Result:
    """
    Remove samples from a store: their values become missing and their IDs empty, in one commit.

    On Icechunk they stay readable in older snapshots until the store is purged.

    Parameters
    ----------
    store
        A path, a URL, a Zarr store or an Icechunk repository.
    samples
        One sample ID, or several.
    purge, tags
        Delete the history afterwards; see `purge`. All tags and branches there are keep the samples.
    dry_run
        Check everything, write nothing.
    options
        See `Options`.

    Raises
    ------
    SampleError
        If some of the samples are not there. All of these are named, and no sample is removed.
    TagError
        If tags or branches would keep the samples, and are not to be deleted. No sample is removed.
    """
    opts = Options(**options)
    if not purge:
        return _run(_plan_remove(store, samples, opts), opts, dry_run=dry_run)
    from vczstore.purging import check_tags, hold, purge_store, refuse_pins

    check_tags(tags)
    with plain_errors(store):
        refuse_pins(opts.store(store), tags)
        with hold(store, opts.storage_options) as lock:
            result = _run(_plan_remove(store, samples, opts), opts, dry_run=dry_run)
            if dry_run:
                return result
            try:
                purged = purge_store(opts.store(store), tags, lock)
            except VczstoreError as error:
                raise type(error)(f"remove: the samples are removed, but not yet from the history: {error}") from error
    return replace(result, snapshot=purged.snapshot, purged=purged)


def purge(store: Place, tags: "Tags" = "refuse", **options: Any) -> "Purged":
    """
    Delete the history of a store, so that removed samples cannot be read through any snapshot, tag or branch.

    On plain Zarr, which keeps no history, there is nothing to do.

    Parameters
    ----------
    store
        A path, a URL, a Zarr store or an Icechunk repository.
    tags
        What to do with tags and other branches that keep older snapshots: ``"refuse"`` to purge, or ``"delete"``
        them. The names of tags cannot be given again then.
    options
        ``backend_storage`` and ``storage_options`` of `Options`.

    Raises
    ------
    TagError
        If there are such tags or branches, and they are not to be deleted. Nothing has been done then.
    BusyError
        If a job runs on the store.
    StaleError
        If somebody else has changed the store meanwhile. Operations that had begun before fail with one too.
    """
    from vczstore.purging import check_tags, hold, purge_store

    check_tags(tags)
    opts = Options(**options)
    with plain_errors(store):
        place = opts.store(store)
        with hold(store, opts.storage_options) as lock:
            return purge_store(place, tags, lock)


def plan_remove(store: Place, samples: str | Sequence[str], **options: Any) -> Plan:
    """Compile a removal without running it; see `remove` and `run`."""
    return _plan_remove(store, samples, Options(**options))


def _plan_remove(store: Place, samples: str | Sequence[str], opts: Options) -> Plan:
    from plans.remove import compile_remove

    with plain_errors(store):
        place = opts.store(store)
        wanted = [samples] if isinstance(samples, str) else list(samples)
        return compile_remove(place, place.open(), wanted, opts.memory)


def verify_removal(
    store: str | Path, samples: str | Sequence[str], *, report: str | Path | None = None, **options: Any
) -> "Verification":
    """
    Read every object of a store, to show that nothing of some samples is left: no ID, and no value of a removed sample.

    Nothing is written to the store, and the IDs are kept nowhere. Objects are in memory a few at a time.

    Parameters
    ----------
    store
        A path or URL: an object that is open does not say where it lies.
    samples
        One sample ID, or several: those that were removed. Fewer than four bytes are looked for as sample IDs only.
    report
        A folder for ``report.json`` and ``report.html``.
    options
        ``backend_storage`` and ``storage_options`` of `Options`.

    Returns
    -------
    Verification
        Whether they are ``erased``, the ``reasons`` why not, what was ``not_checked``, and the ``figures``.

    Raises
    ------
    StaleError
        If the store changes meanwhile.
    """
    from vczstore.verification import verify

    opts = Options(**options)
    with plain_errors(store):
        wanted = [samples] if isinstance(samples, str) else list(samples)
        folder = None if report is None else Path(report)
        return verify(store, opts.store(store), wanted, opts.storage_options or {}, folder)


def copy_store_to_icechunk(
    source: Place, store: str | Path, *, overwrite: bool = False, dry_run: bool = False, **options: Any
) -> Result:
    """
    Copy a VCZ on plain Zarr, of format 2 or 3, into an Icechunk repository, in one commit.

    Parameters
    ----------
    source
        What is copied. ``backend_storage`` speaks of the store; the source's is found out.
    store
        A path or URL for the repository.
    overwrite
        Let the copy replace what an existing repository holds. Its history stays, and with it the old data.
    dry_run
        Check everything, create nothing.
    options
        See `Options`.

    Raises
    ------
    OptionError
        If there is something at the path already, and `overwrite` is not given.
    """
    opts = Options(**{"backend_storage": "icechunk", **options})
    if opts.backend_storage != "icechunk":
        raise OptionError(f"copy-store-to-icechunk: the new store is on icechunk, not {opts.backend_storage}")
    with plain_errors(store):
        return _run(*_plan_copy(source, os.fspath(store), opts, overwrite=overwrite, dry_run=dry_run), dry_run=dry_run)


def _plan_copy(source: Place, url: str, opts: Options, *, overwrite: bool, dry_run: bool) -> tuple[Plan, Options]:
    """Compile a copy; unless it is dry, create the repository."""
    from plans.copy import columns_per_manifest, compile_copy
    from vczstore.stores.icechunk import IcechunkStore

    (vcz,) = opts.sources(url, [source])
    storage_options = opts.for_store(url, [source]).storage_options or {}
    path = local_path(url)
    if path is not None and storage_options:
        raise OptionError(f"{url}: a local store takes no storage options")
    if path is not None and path.exists() and (not path.is_dir() or any(path.iterdir())) and not is_repository(path):
        raise OptionError(f"copy-store-to-icechunk: {url} exists, and is no Icechunk repository; choose another path")
    if IcechunkStore.exists(url, storage_options):
        place = IcechunkStore.at_url(url, storage_options)
        if not overwrite and not place.is_empty:
            raise OptionError(
                f"copy-store-to-icechunk: {url} holds a repository already; choose another path, or --overwrite it"
            )
        return compile_copy(vcz, place, place.head, opts.memory), opts
    # planned before anything is created
    nowhere = IcechunkStore.in_memory(url)
    plan = compile_copy(vcz, nowhere, nowhere.head, opts.memory)
    if not dry_run:
        place = IcechunkStore.create(url, storage_options, columns_per_manifest(vcz))
        plan = replace(plan, store=place, base=place.head)
    return plan, opts


def run(plan: Plan, **options: Any) -> Result:
    """
    Run a plan that was compiled before, on any executor.

    Parameters
    ----------
    plan
        From `plan_append`, `plan_update` or `plan_remove`.
    options
        ``impl``, ``executor``, ``max_workers`` and ``progress`` of `Options`.

    Raises
    ------
    StaleError
        If the store has changed since the plan was compiled.
    """
    return _run(plan, Options(**options), dry_run=False)


def _run(plan: Plan, opts: Options, *, dry_run: bool) -> Result:
    return run_plan(
        plan,
        impl=opts.impl,
        executor=opts.executor,
        executor_options=opts.executor_options,
        max_workers=opts.max_workers,
        progress=opts.progress,
        dry_run=dry_run,
    )


# ---- tags and information -------------------------------------------------------------------


def tags(store: Place, **options: Any) -> dict[str, str]:
    """The snapshot of each tag of a store, by name."""
    with plain_errors(store):
        return _repository(store, Options(**options)).tags()


def tag(store: Place, name: str, **options: Any) -> str:
    """
    Name the store's present state.

    Returns
    -------
    str
        The snapshot.

    Raises
    ------
    TagError
        If the name is taken, was taken once, or the store is on plain Zarr.
    """
    if not name or not name.isprintable() or "/" in name:
        raise TagError(f"tag: {name!r} is no name for a tag; use printable characters without /")
    with plain_errors(store):
        return _repository(store, Options(**options)).create_tag(name)


def delete_tag(store: Place, name: str, **options: Any) -> None:
    """
    Delete a tag. What it names stays; its name cannot be given again.

    Raises
    ------
    TagError
        If there is no such tag.
    """
    with plain_errors(store):
        _repository(store, Options(**options)).delete_tag(name)


def _repository(store: Place, opts: Options, operation: str = "tag") -> "IcechunkStore":
    from vczstore.stores.plain import PlainStore

    place = opts.store(store)
    if isinstance(place, PlainStore):
        raise TagError(
            f"{operation}: {place.label} is plain Zarr, which has no {'tags' if operation == 'tag' else 'history'}; "
            f"vczstore copy-store-to-icechunk {place.label} NEW_STORE makes a store that has"
        )
    return cast("IcechunkStore", place)


def log(store: Place, **options: Any) -> Iterator[dict[str, Any]]:
    """
    The history of a store, newest first.

    Yields
    ------
    dict
        ``snapshot``, ``time`` (ISO 8601, UTC), ``message``, ``operation``, ``steps`` (what each has done, in
        numbers), ``job`` (the id of the job, None for a single operation), ``versions``, ``tags``.

    Raises
    ------
    TagError
        If the store is on plain Zarr, which keeps no history.
    """
    with plain_errors(store):
        place = _repository(store, Options(**options), "log")
        names: dict[str, list[str]] = {}
        for name, snapshot in place.tags().items():
            names.setdefault(snapshot, []).append(name)
        for entry in place.history():
            said = dict(entry.metadata.get("vczstore", {}))
            versions = (
                {"vczstore": said.pop("version"), **dict(sorted(said.pop("versions", {}).items()))} if said else {}
            )
            operation, job, steps = said.pop("operation", None), said.pop("job", None), said.pop("steps", None)
            said.pop("same", None)  # snapshots, which are no numbers
            yield {
                "snapshot": entry.id,
                "time": entry.time,
                "message": entry.message,
                "operation": operation,
                "steps": steps if steps is not None else [{"operation": operation, **said}] if operation else [],
                "job": job,
                "versions": versions,
                "tags": names.get(entry.id, []),
            }


def info(store: Place, *, at: str | None = None, **options: Any) -> Info:
    """
    What is in a store, from its metadata and its sample IDs.

    Parameters
    ----------
    store
        A path, a URL, a Zarr store or an Icechunk repository.
    at
        A tag or snapshot; the present by default.
    options
        ``backend_storage`` and ``storage_options`` of `Options`.
    """
    with plain_errors(store):
        return describe(Options(**options).store(store), at)
