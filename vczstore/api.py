"""The operations: open the store, compile a plan, run it, commit."""

import copy
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import executors
from plans.core.memory import Memory
from plans.core.model import Plan
from plans.maintenance.info import Info, describe
from vczstore.choices import ABSENT, DEFAULT_INFO_FIELDS, IMPLS, MAX_CHUNK, NEW_VARIANTS
from vczstore.errors import (
    IncompatibleError,
    OptionError,
    TagError,
    UnsuitableError,
    VczstoreError,
)
from vczstore.execution.engine import (
    REPLANS,
    Progress,
    Result,
    compile_stages,
    planning,
    refuse_unreachable,
    replanned,
    run_plan,
    run_plans,
    run_stages,
    task_bytes,
    together,
)
from vczstore.sizes import parse_size
from vczstore.stores import object_store
from vczstore.stores.base import (
    Place,
    Store,
    check_backend,
    is_repository,
    is_session,
    new_store,
    open_store,
    refuse_read_only,
)
from vczstore.stores.locations import is_url, local_path, parse, scheme
from vczstore.stores.object_store import plain_errors
from vczstore.vcz.arrays import outer_chunks
from vczstore.vcz.model import SAMPLE_ID, Vcz, positions_of

if TYPE_CHECKING:
    from plans.core.model import Survey
    from plans.maintenance.purge import Collected, Purged, Tags
    from plans.maintenance.repair import Repaired
    from plans.maintenance.verify import Verified
    from plans.maintenance.verify_removal import Verification
    from plans.schema.layout import Fields
    from plans.variants.harmonise import Rules
    from vczstore.stores.icechunk import IcechunkStore
    from vczstore.stores.lock import JobLock


@dataclass(frozen=True)
class Options:
    """
    How an operation finds its stores and runs; the same for all operations, in Python and on the command line.

    Attributes
    ----------
    backend_storage
        The store's backend: ``zarr``, ``obstore``, ``fsspec`` or ``icechunk``. Auto-detected when None.
    storage_options
        What reaches an object store: ``region``, ``endpoint``, ``anonymous``, ``allow_http`` and others, for the
        store and for sources of the same kind. Never credentials.
    source_storage_options
        The same for sources alone, such as those of another server. Where given, sources take no `storage_options`.
    impl
        ``cubed``; ``zarr``, which is plain and slow; or ``xarray``, which goes through xarray and cubed-xarray.
    executor
        ``single-threaded``, ``threads``, ``processes``, ``lithops`` or ``modal``; or the path of an executor file,
        which is one of these, or of Cubed's, with its options. What is given here goes before what the file says.
        Where tasks are functions of a cloud, plans have few and long ones.
    max_workers
        How many tasks run at once; one for each core by default, 100 on Modal.
    allowed_mem, reserved_mem
        What a task may use, and what of it is Python's own: bytes, or a string such as ``"2GB"``.
    work_dir
        A folder for intermediate data. Only ``impl="xarray"`` has any.
    progress
        Told of every task that ends, for a progress bar.
    replans
        How often an operation is planned and run again after a concurrent commit.
    no_lock
        Write without the lock of the store, where storage has none. Of several who then write to one store at once,
        batches are silently lost or mixed, on plain Zarr and in a repository on this machine.
    executor_options
        What the executor file says; not given by itself.
    """

    backend_storage: str | None = None
    storage_options: Mapping[str, Any] | None = None
    source_storage_options: Mapping[str, Any] | None = None
    impl: str = "cubed"
    executor: str = "threads"
    max_workers: int | None = None
    allowed_mem: int | str | None = None
    reserved_mem: int | str | None = None
    work_dir: str | None = None
    progress: Progress | None = None
    replans: int = REPLANS
    no_lock: bool = False
    executor_options: Mapping[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        check_backend(self.backend_storage)
        if self.impl not in IMPLS:
            raise OptionError(f"no implementation {self.impl!r}; choose one of {', '.join(IMPLS)}")
        self._read_executor()
        if self.max_workers is not None and self.max_workers < 1:
            raise OptionError(f"{self.max_workers} workers are too few; give at least 1")
        if self.replans < 0:
            raise OptionError(f"cannot retry {self.replans} times; give 0 or more")

    def _read_executor(self) -> None:
        name = str(self.executor)
        if name.endswith((".yaml", ".yml")):
            from vczstore.jobs.model import load_executor

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

    def but(self, **changes: Any) -> "Options":
        """The same with other values; what an executor file says stays, which `dataclasses.replace` would lose."""
        result = copy.copy(self)
        for name, value in changes.items():
            object.__setattr__(result, name, value)  # still being made
        return result

    @property
    def memory(self) -> Memory:
        """What a task may use, and how long it should be on this executor."""
        default = Memory()
        allowed = default.allowed if self.allowed_mem is None else parse_size(self.allowed_mem)
        reserved = default.reserved if self.reserved_mem is None else parse_size(self.reserved_mem)
        if allowed <= reserved:
            raise OptionError(
                f"{allowed:,} bytes of allowed memory leave nothing beside the {reserved:,} that Python itself "
                f"takes; allow at least {2 * reserved:,}"
            )
        return Memory(allowed, reserved, self.work_dir, task_bytes(self.executor, self.executor_options))

    @property
    def engine(self) -> dict[str, Any]:
        """What runs tasks, as `vczstore.execution.engine` takes it."""
        return {
            "executor": self.executor,
            "executor_options": self.executor_options,
            "max_workers": self.max_workers,
            "progress": self.progress,
        }

    def store(self, place: Place) -> Store:
        """Open the store that is edited."""
        return open_store(
            place,
            backend_storage=self.backend_storage,
            storage_options=self.storage_options,
            no_lock=self.no_lock,
        )

    def store_and_sources(self, store: Place, sources: Sequence[Place]) -> tuple[Store, list[Vcz]]:
        """Open the store that is edited, and what comes into it."""
        return self.for_store(store, sources).store(store), self.sources(store, sources)

    def for_store(self, store: Place, sources: Sequence[Place]) -> "Options":
        """The options without those that are for the sources alone, since the store is on this machine."""
        mine = scheme(store) or self.source_storage_options or not any(map(scheme, sources))
        return self if mine else self.but(storage_options=None)

    def sources(self, store: Place, sources: Sequence[Place]) -> list[Vcz]:
        """
        Open what comes into a store.

        Storage options reach the sources in object stores of the store's kind too; those of every kind if the store
        is on this machine. Where sources have options of their own, they take these alone.

        Raises
        ------
        OptionError
            If there are options of sources, and all sources are on this machine.
        """
        if sources and self.source_storage_options and not any(map(scheme, sources)):
            raise OptionError(f"{sources[0]}: a local source takes no storage options")
        opened = list[Vcz]()
        for source in sources:
            with plain_errors(source):
                opened.append(open_store(source, storage_options=self.options_of(source, store)).open())
        if self.impl != "zarr":
            refuse_unreachable(opened, **{k: v for k, v in self.engine.items() if k != "progress"})
        return opened

    def options_of(self, source: Place, store: Place) -> Mapping[str, Any]:
        """The storage options that reach a source."""
        if self.source_storage_options and scheme(source) not in (None, "http"):
            return self.source_storage_options
        return self.shared(source, store)

    def shared(self, place: Place, store: Place) -> Mapping[str, Any]:
        """The store's options where they reach another place too. fsspec's are no others'."""
        mine, theirs = scheme(store), scheme(place)
        reach = theirs not in (None, "http") and mine in (None, theirs) and self.backend_storage != "fsspec"
        return (self.storage_options or {}) if reach else {}

    def find(self, source: str, store: Place) -> list[str]:
        """The source that a path or URL names, or those that a glob in a URL finds."""
        return object_store.find(source, self.options_of(source, store)) if is_url(source) else [source]


# ---- create ---------------------------------------------------------------------------------


def create(
    out: str | Path,
    *sources: Place,
    dry_run: bool = False,
    variants_chunk: int | None = None,
    samples_chunk: int | None = None,
    **options: Any,
) -> Result:
    """
    Make a store without samples over the variants of one or more VCZs, to append samples to.

    Records are the same variant if contig (by name), position, REF and the set of ALTs are, letters regardless of case.
    Of different sources those are joined that share an ALT, and those of REF alone with others, as
    ``bcftools merge -m none`` joins them; but not where a source would not find its record again, so that the sources
    can be appended with ``harmonise=True`` as they are. Records that a source has several times stay as often. Nothing
    is trimmed. Contigs are in the order of the first source that has them, variants in that of position and first
    appearance; ALTs and lengths are as the first source has them, that of joined ones is the longest; identifiers are
    those of all sources, as in ``rs1;rs2``.
    QUAL, FILTER and INFO are not carried over: they speak of samples and callers. The filters' names are, and of the
    VCFs' headers what all sources say.

    Parameters
    ----------
    out
        A path or URL where nothing is. Plain Zarr of format 3, unless ``backend_storage`` is ``icechunk``.
    sources
        Paths, URLs, Zarr stores or Icechunk repositories; never written to. Their variants have to be sorted by
        position within contigs.
    dry_run
        Look at everything, count the variants, create nothing.
    variants_chunk, samples_chunk
        How many variants and samples a chunk of the store has, of samples that come in too. The longest that a source
        has of more than one along the axis, by default, or else 1,000 of each.
    options
        See `Options`; ``impl`` is ``cubed``.

    Raises
    ------
    OptionError
        If something is there already, or a chunk length is not from 1 to a billion.
    IncompatibleError
        If a source is not sorted, or sources are of different reference genomes.
    """
    from plans.compilers.copy import columns_per_manifest
    from plans.compilers.create import ONLY_CUBED, compile_create

    opts, url = _options(create, options), os.fspath(out)
    if opts.impl != "cubed":
        raise OptionError(ONLY_CUBED)
    for name, length in (("variants_chunk", variants_chunk), ("samples_chunk", samples_chunk)):
        if length is not None and not 1 <= length <= MAX_CHUNK:
            raise OptionError(f"create: {name} is {length:,}; give a number from 1 to {MAX_CHUNK:,}")
    with plain_errors(url):
        incoming = opts.sources(url, sources)
        place = new_store(
            url,
            "create",
            backend_storage=opts.backend_storage,
            storage_options=opts.for_store(url, sources).storage_options,
            samples_chunks=min(map(columns_per_manifest, incoming), default=1),
            no_lock=opts.no_lock,
        )
    stages = compile_create(place, incoming, opts.memory, variants_chunk=variants_chunk, samples_chunk=samples_chunk)
    return run_stages(stages, "create", place, dry_run=dry_run, **opts.engine)


def _options(function: Callable[..., Any], given: Mapping[str, Any]) -> Options:
    """
    The options of a call.

    Raises
    ------
    TypeError
        If one does not exist, as Python has it for parameters.
    """
    known = [one.name for one in fields(Options) if one.init]
    for name in given:
        if name not in known:
            own = [p.name for p in signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
            near = get_close_matches(name, [*own, *known], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}{hint}")
    return Options(**given)


def _listed(names: str | Sequence[str]) -> list[str]:
    """Names, of which one may stand alone."""
    return [names] if isinstance(names, str) else list(names)


def _info_fields(names: str | Sequence[str]) -> list[str]:
    """INFO fields that are computed once more, which are known before anything is read."""
    from plans.compilers.recompute import check_fields

    wanted = _listed(names)
    if wanted:
        check_fields(wanted)
    return wanted


# ---- append, update, remove, compact, copy --------------------------------------------------


def append(
    store: Place,
    *sources: Place,
    dry_run: bool = False,
    harmonise: bool = False,
    allow_new_alleles: bool = False,
    absent: str = "missing",
    new_variants: str = "refuse",
    haploid_contigs: Sequence[str] | None = None,
    drop_fields: Sequence[str] = (),
    add_fields: Sequence[str] = (),
    numbers: Sequence[str] = (),
    require_direct_copy: bool = False,
    recompute: Sequence[str] = (),
    **options: Any,
) -> Result:
    """
    Append the samples of one or more VCZs to a store, in one commit.

    Parameters
    ----------
    store
        A path, a URL, a Zarr store or an Icechunk repository.
    sources
        The same; appended in this order, never written to. They need the store's variants, in its order, unless they
        are harmonised.
    dry_run
        Check everything, write nothing.
    harmonise
        Express the sources over the store's variants and alleles; see `plans.variants.match` for what matches. What
        follows, up to `haploid_contigs`, goes with this.
    allow_new_alleles
        Let alleles come in that the store has not seen.
    absent
        What genotypes are where a source lacks a variant: ``missing`` or ``reference``. Other fields are missing.
    new_variants
        What is done about variants that the store lacks: ``refuse`` or ``drop``.
    haploid_contigs
        Where those genotypes have one allele; X, chrX, Y, chrY, M, MT and chrM by default.
    drop_fields
        FORMAT fields, such as ``LPL``, that do not come in where they would be refused: what the store lacks is left
        out, and what it has is missing for the samples of a source that lacks it, or whose values do not fit.
    add_fields
        FORMAT fields that a source has and the store lacks, which the store gets: the samples that it has are missing
        there. A store without samples gets all fields of all its sources.
    numbers
        What FORMAT fields go by whose header says ``Number=.``: ``AD=R``, or ``A`` or ``G``.
    require_direct_copy
        Refuse an append in which a chunk of values would be re-encoded instead of being copied as it is.
    recompute
        INFO fields that are recomputed in the same commit; see `recompute`.
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
    opts = _options(append, options)
    refuse_read_only("append", store)
    rules = _rules("append", harmonise, allow_new_alleles, absent, new_variants, haploid_contigs, numbers)
    changes, then = _fields(drop_fields, add_fields), _info_fields(recompute)

    def attempt(check: Check) -> Result:
        if rules is None or then:
            plan = _plan_append(store, sources, opts, rules, changes, direct=require_direct_copy)
            return _run(plan, opts, check, dry_run=dry_run, then=then)
        refuse_same_place("append", store, sources)
        with plain_errors(store):
            place, stages = _append_in_stages(store, sources, opts, rules, changes, direct=require_direct_copy)
        return run_stages(stages, "append", place, impl=opts.impl, dry_run=dry_run, before_commit=check, **opts.engine)

    return _replanned(store, opts, attempt, sources, locked=dry_run)


def plan_append(
    store: Place,
    *sources: Place,
    harmonise: bool = False,
    allow_new_alleles: bool = False,
    absent: str = "missing",
    new_variants: str = "refuse",
    haploid_contigs: Sequence[str] | None = None,
    drop_fields: Sequence[str] = (),
    add_fields: Sequence[str] = (),
    numbers: Sequence[str] = (),
    **options: Any,
) -> Plan:
    """Compile an append without running it; see `append` and `run`. Harmonising looks variants up, in tasks."""
    opts = _options(plan_append, options)
    refuse_read_only("append", store)
    rules = _rules("append", harmonise, allow_new_alleles, absent, new_variants, haploid_contigs, numbers)
    return _plan_append(store, sources, opts, rules, _fields(drop_fields, add_fields))


def _plan_append(
    store: Place,
    sources: Sequence[Place],
    opts: Options,
    rules: "Rules | None",
    fields: "Fields",
    *,
    direct: bool = False,
) -> Plan:
    refuse_same_place("append", store, sources)
    with plain_errors(store), planning("append"):
        place, stages = _append_in_stages(store, sources, opts, rules, fields, direct=direct)
        return compile_stages(stages, "append", place, **opts.engine)


def _append_in_stages(
    store: Place,
    sources: Sequence[Place],
    opts: Options,
    rules: "Rules | None",
    fields: "Fields",
    *,
    direct: bool,
) -> "tuple[Store, Generator[Survey, list[list[Any]], Plan]]":
    """What compiles an append."""
    from plans.compilers.append import compile_in_stages, copying_directly

    if opts.impl == "xarray" and rules is not None:
        raise OptionError("append: --impl xarray cannot harmonise; leave it out")
    place, incoming = opts.store_and_sources(store, sources)
    stages = compile_in_stages(place, place.open(), incoming, opts.memory, rules=rules, fields=fields)
    return place, copying_directly(stages) if direct else stages


def normalise(
    store: Place,
    source: Place,
    out: str | Path,
    *,
    output_backend: str | None = None,
    dry_run: bool = False,
    allow_new_alleles: bool = False,
    absent: str = "missing",
    new_variants: str = "refuse",
    haploid_contigs: Sequence[str] | None = None,
    drop_fields: Sequence[str] = (),
    numbers: Sequence[str] = (),
    **options: Any,
) -> Result:
    """
    Express a VCZ over the variants and alleles of a store, as a store of its own.

    Appending the result gives what `append` gives that harmonises. Where new alleles come in, the store has to take
    them in as well: append the result with ``harmonise=True, allow_new_alleles=True``.

    Parameters
    ----------
    store
        A path, a URL, a Zarr store or an Icechunk repository. Nothing happens to it.
    source
        The same; what is re-expressed, never written to.
    out
        A path or URL where nothing is. It has the samples of the source, and the variants of the store without INFO.
    output_backend
        The backend of `out`: plain Zarr of format 3, unless it is ``icechunk``.
    dry_run
        Look at everything, create nothing.
    allow_new_alleles, absent, new_variants, haploid_contigs, drop_fields, numbers
        As in `append`.
    options
        See `Options`; ``backend_storage`` is that of the store, `storage_options` are those of the store and `out`.

    Raises
    ------
    OptionError
        If something is at `out` already.
    VczstoreError
        If the source cannot be harmonised.
    """
    from plans.compilers.copy import columns_per_manifest
    from plans.compilers.normalise import OPERATION, compile_normalise

    opts, url = _options(normalise, options), os.fspath(out)
    rules = _rules(OPERATION, True, allow_new_alleles, absent, new_variants, haploid_contigs, numbers)
    assert rules is not None
    if opts.impl == "xarray":
        raise OptionError(f"{OPERATION}: --impl xarray cannot harmonise; leave it out")
    with plain_errors(url):
        reach = opts.shared(store, url)
        ours = open_store(store, backend_storage=opts.backend_storage, storage_options=reach).open()
        (theirs,) = opts.sources(url, [source])
        place = new_store(
            url,
            OPERATION,
            backend_storage=output_backend,
            storage_options=opts.for_store(url, [store, source]).storage_options,
            samples_chunks=columns_per_manifest(theirs),
            no_lock=opts.no_lock,
        )
    stages = compile_normalise(place, ours, theirs, rules, opts.memory, _fields(drop_fields))
    return run_stages(stages, OPERATION, place, impl=opts.impl, dry_run=dry_run, **opts.engine)


def _rules(
    operation: str,
    harmonise: bool,
    allow_new_alleles: bool,
    absent: str,
    new_variants: str,
    haploid_contigs: Sequence[str] | None,
    numbers: Sequence[str],
) -> "Rules | None":
    from plans.variants.harmonise import HAPLOID_CONTIGS, Rules

    for name, value, choices in (("absent", absent, ABSENT), ("new_variants", new_variants, NEW_VARIANTS)):
        if value not in choices:
            raise OptionError(f"{operation}: {name} is {value!r}; choose one of {', '.join(choices)}")
    contigs = HAPLOID_CONTIGS if haploid_contigs is None else tuple(_listed(haploid_contigs))
    rules = Rules(allow_new_alleles, absent, new_variants, contigs, tuple(_listed(numbers)))
    try:
        _ = rules.by_field
    except OptionError as error:
        raise OptionError(f"{operation}: {error}") from None
    if not harmonise and rules != Rules():
        raise OptionError(
            "append: --allow-new-alleles, --absent, --new-variants, --haploid-contigs and --number go with --harmonise"
        )
    return rules if harmonise else None


def _fields(drop: Sequence[str], add: Sequence[str] = ()) -> "Fields":
    from plans.schema.layout import Fields, array_name

    return Fields(tuple(map(array_name, _listed(drop))), tuple(map(array_name, _listed(add))))


def update(
    store: Place,
    *sources: Place,
    dry_run: bool = False,
    drop_fields: Sequence[str] = (),
    add_fields: Sequence[str] = (),
    recompute: Sequence[str] = (),
    **options: Any,
) -> Result:
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
    drop_fields
        FORMAT fields that do not come in where they would be refused: those that the store lacks are left out, those
        that a source lacks, or whose values do not fit, become missing for its samples.
    add_fields
        FORMAT fields that a source has and the store lacks, which the store gets: the other samples are missing there.
    recompute
        INFO fields that are recomputed in the same commit; see `recompute`.
    options
        See `Options`.

    Raises
    ------
    SampleError
        If some of the samples are not in the store. All of these are named, and no sample is updated.
    VczstoreError
        If anything else does not fit. Nothing has been changed then.
    """
    opts, then = _options(update, options), _info_fields(recompute)
    refuse_read_only("update", store)

    def attempt(check: Check) -> Result:
        plan = plan_update(store, *sources, drop_fields=drop_fields, add_fields=add_fields, **options)
        return _run(plan, opts, check, dry_run=dry_run, then=then)

    return _replanned(store, opts, attempt, sources, locked=dry_run)


def plan_update(
    store: Place,
    *sources: Place,
    drop_fields: Sequence[str] = (),
    add_fields: Sequence[str] = (),
    **options: Any,
) -> Plan:
    """Compile an update without running it; see `update` and `run`. Values of wider dtypes are looked up, in tasks."""
    from plans.compilers.update import compile_in_stages

    opts = _options(plan_update, options)
    refuse_read_only("update", store)
    refuse_same_place("update", store, sources)
    with plain_errors(store), planning("update"):
        place, incoming = opts.store_and_sources(store, sources)
        fields = _fields(drop_fields, add_fields)
        stages = compile_in_stages(place, place.open(), incoming, opts.memory, fields=fields)
        return compile_stages(stages, "update", place, **opts.engine)


def refuse_same_place(operation: str, store: Place, sources: Sequence[Place]) -> None:
    """Raise an `IncompatibleError` if a store is among the sources that come into it."""
    for source in sources:
        if _same_place(store, source):
            raise IncompatibleError(f"{operation}: {source} is the store {store} itself; name another source")


def _same_place(a: Place, b: Place) -> bool:
    if not (isinstance(a, str | os.PathLike) and isinstance(b, str | os.PathLike)):
        return a is b
    first, second = parse(a), parse(b)
    if first.path is None or second.path is None:
        return first == second
    return first.path.exists() and second.path.exists() and first.path.samefile(second.path)


def remove(
    store: Place,
    samples: str | Sequence[str],
    *,
    purge: bool = False,
    tags: "Tags" = "refuse",
    dry_run: bool = False,
    recompute: Sequence[str] = (),
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
    recompute
        INFO fields that are recomputed in the same commit; see `recompute`.
    options
        See `Options`.

    Raises
    ------
    SampleError
        If some of the samples are not there. All of these are named, and no sample is removed.
    TagError
        If tags or branches would keep the samples, and are not to be deleted. No sample is removed.
    """
    opts, then = _options(remove, options), _info_fields(recompute)
    refuse_read_only("remove", store)

    def attempt(check: Check) -> Result:
        return _run(plan_remove(store, samples, **options), opts, check, dry_run=dry_run, then=then)

    if not purge:
        return _replanned(store, opts, attempt, locked=dry_run)
    from plans.maintenance.purge import check_tags, purge_store, refuse_pins
    from vczstore.stores.lock import hold

    check_tags(tags)
    with plain_errors(store):
        place = opts.store(store)
        refuse_pins(place, tags)
        with nullcontext() if dry_run else hold(place) as lock:
            result = _replanned(store, opts, attempt, locked=True, lock=lock)
            if lock is None:
                return result
            try:
                purged = purge_store(opts.store(store), tags, lock, opts.memory, **opts.engine)
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
        What to do with tags and other branches that keep older snapshots: ``"refuse"`` to purge; ``"delete"``
        them; or ``"recreate"`` the states that tags name without the samples that the store has no longer (by their
        IDs: a sample that was removed and came in again is there). Icechunk gives no name twice, so a tag that is
        recreated gets a number: ``release-1`` becomes ``release-1.1``. States without such samples keep their names,
        and nothing of what was before them. INFO fields of recreated states are stale, as after `remove`.
    options
        See `Options`; removals from tagged states run on its executor.

    Raises
    ------
    TagError
        If there are such tags or branches, and they are to stay. Nothing has been done then.
    BusyError
        If a job runs on the store.
    StaleError
        After a concurrent commit. Operations that had begun before are planned again.
    """
    from plans.maintenance.purge import check_tags, purge_store
    from vczstore.stores.lock import hold

    check_tags(tags)
    opts = _options(purge, options)
    refuse_read_only("purge", store)
    with plain_errors(store):
        place = opts.store(store)
        with hold(place) as lock:
            return purge_store(place, tags, lock, opts.memory, **opts.engine)


def gc(store: Place, *, dry_run: bool = False, **options: Any) -> "Collected":
    """
    Delete unreferenced objects, such as the chunks of an operation that was killed. The history stays.

    On plain Zarr these are chunks outside the arrays' shapes, as an append that was stopped leaves them; to run that
    append again completes it, with or without them.

    Parameters
    ----------
    store
        A path, a URL, a Zarr store or an Icechunk repository.
    dry_run
        Count, and delete nothing.
    options
        ``backend_storage`` and ``storage_options`` of `Options`.

    Raises
    ------
    BusyError
        If a job runs on the store; on plain Zarr, if anything does.
    StaleError
        After a concurrent commit. Operations that had begun before are planned again.
    """
    from plans.maintenance.purge import collect_garbage
    from vczstore.stores.lock import hold

    opts = _options(gc, options)
    refuse_read_only("gc", store)
    with plain_errors(store):
        place = opts.store(store)
        if dry_run:
            return collect_garbage(place, None, dry_run=True)
        with hold(place) as lock:
            return collect_garbage(place, lock, dry_run=False)


def plan_remove(store: Place, samples: str | Sequence[str], **options: Any) -> Plan:
    """Compile a removal without running it; see `remove` and `run`."""
    opts = _options(plan_remove, options)
    refuse_read_only("remove", store)
    with plain_errors(store), planning("remove"):
        wanted = [samples] if isinstance(samples, str) else list(samples)
        return _removal(opts.store(store), wanted, opts.memory)


def _removal(place: Store, samples: Sequence[str], memory: Memory) -> Plan:
    """
    Compile a removal that can be completed if it is stopped.

    On plain Zarr IDs in several chunks are blanked one chunk after the other. The store remembers beforehand that the
    list is being removed, so that a second run does not take those that are gone for unknown.
    """
    from plans.compilers.remove import compile_remove
    from plans.core.ledger import Ledger

    vcz = place.open()
    if place.atomic:
        return compile_remove(place, vcz, samples, memory)
    ledger, (positions, unknown) = Ledger.of(vcz), positions_of(vcz, list(dict.fromkeys(samples)))
    gone = set(unknown)
    left = [sample for sample in samples if sample not in gone]
    is_known = bool(unknown and left) and ledger.has_removal(samples)
    plan = compile_remove(place, vcz, left if is_known else samples, memory)
    if is_known or len(set(positions // outer_chunks(vcz.arrays[SAMPLE_ID])[0])) < 2:
        return plan
    return replace(plan, edits=(ledger.with_removal(samples).edit(vcz.zarr_format), *plan.edits))


def recompute(
    store: Place, fields: str | Sequence[str] = DEFAULT_INFO_FIELDS, *, dry_run: bool = False, **options: Any
) -> Result:
    """
    Compute INFO fields of a store from the genotypes that it has, in one commit.

    Parameters
    ----------
    store
        A path, a URL, a Zarr store or an Icechunk repository.
    fields
        One of ``AC``, ``AN``, ``AF``, ``NS``, ``AC_Het``, ``AC_Hom``, ``AC_Hemi``, ``MAF``, ``F_MISSING``, ``HWE``
        and ``ExcHet``, or several; they mean what ``bcftools +fill-tags`` means by them. An array that is there keeps
        its dtype, others are made.
    dry_run
        Check everything, write nothing.
    options
        See `Options`.

    Raises
    ------
    OptionError
        If there is no such field.
    IncompatibleError
        If the store has no genotypes, or an array that cannot hold a field.
    """
    opts = _options(recompute, options)
    refuse_read_only("recompute", store)

    def attempt(check: Check) -> Result:
        return _run(plan_recompute(store, fields, **options), opts, check, dry_run=dry_run)

    return _replanned(store, opts, attempt, locked=dry_run)


def plan_recompute(store: Place, fields: str | Sequence[str] = DEFAULT_INFO_FIELDS, **options: Any) -> Plan:
    """Compile the recomputing of INFO fields without running it; see `recompute` and `run`."""
    from plans.compilers.recompute import compile_recompute

    opts = _options(plan_recompute, options)
    refuse_read_only("recompute", store)
    with plain_errors(store), planning("recompute"):
        place = opts.store(store)
        return compile_recompute(place, place.open(), _listed(fields), opts.memory)


def compact(store: Place, output: str | Path | None = None, *, dry_run: bool = False, **options: Any) -> Result:
    """
    Let the samples that have been removed leave a store: those after them move up, in one commit.

    On plain Zarr, a folder of this machine is replaced by another as a whole; see `vczstore.stores.folder_swap`. Who
    opens the store sees it as it was, or compacted. Who has opened it before, and reads on, gets chunks of the one
    with shapes and sample IDs of the other, since nothing on plain Zarr holds them together: let readers open it again.
    If a run is stopped, readers see one or the other, and running it again completes it.

    Parameters
    ----------
    store
        A path, a URL, a Zarr store or an Icechunk repository.
    output
        A path or URL for a compacted copy on plain Zarr; the store stays as it is. Needed for a store on plain Zarr
        that is not named by a path on this machine.
    dry_run
        Check everything, write nothing.
    options
        See `Options`.

    Raises
    ------
    OptionError
        If the store is on plain Zarr elsewhere and `output` is not given, or there is something already.
    BusyError
        If a job runs on a folder that is to be replaced.
    """
    from vczstore.stores.folder_swap import folder_of

    opts = _options(compact, options)
    if output is None:
        refuse_read_only("compact", store)

    def attempt(check: Check) -> Result:
        return _run(plan_compact(store, output, **options), opts, check, dry_run=dry_run)

    with plain_errors(store):
        path = None if output is not None or dry_run else folder_of(store)
        in_one_commit = path is None or opts.backend_storage == "icechunk" or is_repository(path)
        # plain Zarr elsewhere is refused, for which it takes no lock
        locked = dry_run or output is not None or (in_one_commit and not opts.store(store).atomic)
    if in_one_commit:
        return _replanned(store, opts, attempt, locked=locked)
    with plain_errors(store), _replacing(store, opts) as lock:
        return _replanned(store, opts, attempt, locked=True, lock=lock)


def _replacing(store: Place, opts: Options) -> AbstractContextManager["JobLock"]:
    from vczstore.stores.folder_swap import replacing

    options = {"backend_storage": opts.backend_storage, "storage_options": opts.storage_options}
    return replacing(store, {**options, "no_lock": opts.no_lock})


def plan_compact(store: Place, output: str | Path | None = None, **options: Any) -> Plan:
    """Compile a compaction without running it; see `compact` and `run`."""
    from plans.compilers.compact import compile_compact, compile_compacted_copy
    from vczstore.stores.folder_swap import ReplacedStore

    opts = _options(plan_compact, options)
    if output is None:
        refuse_read_only("compact", store)
    with plain_errors(store), planning("compact"):
        if output is None:
            place = opts.store(store)
            place = place if place.atomic else ReplacedStore.of(store, place)
            return compile_compact(place, place.open(), opts.memory)
        url = os.fspath(output)
        vcz = opts.for_store(store, [url]).store(store).open()
        place = new_store(url, "compact", storage_options=opts.shared(url, store), samples_chunks=1)
        return compile_compacted_copy(place, vcz, opts.memory)


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
    from plans.maintenance.verify_removal import verify

    opts = _options(verify_removal, options)
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
        What is copied. ``backend_storage`` is that of the store; the source's is auto-detected.
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
    opts = _options(copy_store_to_icechunk, {"backend_storage": "icechunk", **options})
    if opts.backend_storage != "icechunk":
        raise OptionError(f"copy-store-to-icechunk: the new store is on icechunk, not {opts.backend_storage}")
    with plain_errors(store):
        return _run(*_plan_copy(source, os.fspath(store), opts, overwrite=overwrite, dry_run=dry_run), dry_run=dry_run)


def _plan_copy(source: Place, url: str, opts: Options, *, overwrite: bool, dry_run: bool) -> tuple[Plan, Options]:
    """Compile a copy; unless it is dry, create the repository."""
    from plans.compilers.copy import columns_per_manifest, compile_copy
    from vczstore.stores.icechunk import IcechunkStore

    (vcz,) = opts.sources(url, [source])
    storage_options = opts.for_store(url, [source]).storage_options or {}
    path = local_path(url)
    if path is not None and storage_options:
        raise OptionError(f"{url}: a local store takes no storage options")
    if path is not None and path.exists() and (not path.is_dir() or any(path.iterdir())) and not is_repository(path):
        raise UnsuitableError(
            f"copy-store-to-icechunk: {url} exists, and is no Icechunk repository; choose another path"
        )
    if IcechunkStore.exists(url, storage_options):
        place = IcechunkStore.at_url(url, storage_options, no_lock=opts.no_lock)
        if not overwrite and not place.is_empty:
            raise UnsuitableError(
                f"copy-store-to-icechunk: {url} holds a repository already; choose another path, or --overwrite it"
            )
        return compile_copy(vcz, place, place.head, opts.memory), opts
    # planned before anything is created
    nowhere = IcechunkStore.in_memory(url)
    plan = compile_copy(vcz, nowhere, nowhere.head, opts.memory)
    if not dry_run:
        place = IcechunkStore.create(url, storage_options, columns_per_manifest(vcz), no_lock=opts.no_lock)
        plan = replace(plan, store=place, base=place.head)
    return plan, opts


def run(plan: Plan, **options: Any) -> Result:
    """
    Run a plan that was compiled before, on any executor.

    Parameters
    ----------
    plan
        From `plan_append`, `plan_update`, `plan_remove` or `plan_compact`.
    options
        ``impl``, ``executor``, ``max_workers`` and ``progress`` of `Options`.

    Raises
    ------
    StaleError
        If the store has changed since the plan was compiled.
    BusyError
        If another process writes to a store on plain Zarr.
    """
    from vczstore.stores.folder_swap import ReplacedStore
    from vczstore.stores.lock import hold
    from vczstore.stores.plain import NewPlainStore

    opts = _options(run, options)
    if opts.no_lock:
        plan = replace(plan, store=replace(cast(Any, plan.store), no_lock=True))
    store = plan.store
    if isinstance(store, ReplacedStore):
        with plain_errors(store.label), _replacing(store.path, opts.but(no_lock=store.no_lock)) as lock:
            return _run(plan, opts, lock.check, dry_run=False)
    with nullcontext() if store.atomic or isinstance(store, NewPlainStore) else hold(store, watch=True) as held:
        return _run(plan, opts, None if held is None else held.check, dry_run=False)


type Check = Callable[[], None] | None
"""What makes sure before anything becomes visible that a lock is still held, where one is."""


def _replanned(
    store: Place,
    opts: Options,
    attempt: Callable[[Check], Result],
    sources: Sequence[Place] = (),
    *,
    locked: bool = False,
    lock: "JobLock | None" = None,
) -> Result:
    """
    Plan and run; retry after a concurrent commit.

    Whoever has lost a race waits for the lock of the store, where there is a place for one: of any number of writers,
    all get through. On plain Zarr, where two writers would mix their chunks, the lock is held from the beginning.

    Parameters
    ----------
    store, sources
        What is edited, and what comes in.
    opts
        Its options.
    attempt
        What is done.
    locked, lock
        Whether the lock is held already, which then is given, or not needed since nothing is written.

    Raises
    ------
    BusyError
        If another process writes to a store on plain Zarr.
    StorageError
        If the lock cannot be taken.
    """
    from vczstore.stores.lock import hold

    opts = opts.but(storage_options=opts.for_store(store, sources).storage_options)
    with plain_errors(store):
        plain = None if locked else _plain(store, opts)
    turn = nullcontext if locked or plain is not None else partial(_turn, store, opts)
    # watched: who was killed, or cut off from an object store, can run the same again
    with nullcontext(lock) if plain is None else hold(plain, watch=True) as held:
        result, n = replanned(partial(attempt, None if held is None else held.check), opts.replans, turn)
    return replace(result, replans=n)


def _plain(store: Place, opts: Options) -> Store | None:
    """A store that is on plain Zarr; None for a repository, which needs no lock as long as nobody is in the way."""
    path = local_path(os.fspath(store)) if isinstance(store, str | os.PathLike) else None
    if path is not None and (opts.backend_storage == "icechunk" or is_repository(path)):
        return None
    place = opts.store(store)
    return None if place.atomic else place


def _turn(store: Place, opts: Options) -> AbstractContextManager[Any]:
    """The lock of a repository, for whoever has lost a race. In an object store it takes obstore; Icechunk does not."""
    from vczstore.stores.lock import hold

    place = opts.store(store)
    without = place.folder is None and find_spec("obstore") is None
    return nullcontext() if without else hold(place, wait=True)


def _run(plan: Plan, opts: Options, check: Check = None, *, dry_run: bool, then: Sequence[str] = ()) -> Result:
    """Run a plan, and in the same commit recompute INFO fields."""
    how = {"impl": opts.impl, "dry_run": dry_run, "before_commit": check, **opts.engine}
    if not then:
        return run_plan(plan, **how)
    from plans.compilers.recompute import compile_recompute

    with plain_errors(plan.store.label):
        plans = [plan, compile_recompute(plan.store, plan.after, then, opts.memory)]
    message = "; ".join(f"{one.operation}: {one.summary}" for one in plans)
    steps = [{"operation": one.operation, **one.counts} for one in plans]
    said = {"operation": plan.operation, "steps": steps}
    return together(run_plans(plans, message, said, **how))


# ---- tags and information -------------------------------------------------------------------


def tags(store: Place, **options: Any) -> dict[str, str]:
    """The snapshot of each tag of a store, by name."""
    with plain_errors(store):
        return _repository(store, _options(tags, options)).tags()


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
    refuse_read_only("tag", store)
    with plain_errors(store):
        return _repository(store, _options(tag, options)).create_tag(name)


def delete_tag(store: Place, name: str, **options: Any) -> None:
    """
    Delete a tag. What it names stays; its name cannot be given again.

    Raises
    ------
    TagError
        If there is no such tag.
    """
    refuse_read_only("tag", store)
    with plain_errors(store):
        _repository(store, _options(delete_tag, options)).delete_tag(name)


def _repository(store: Place, opts: Options, operation: str = "tag") -> "IcechunkStore":
    from vczstore.stores.plain import PlainStore

    if is_session(store):
        refuse_read_only(operation, store)
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
        place = _repository(store, _options(log, options), "log")
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
        A tag, branch or snapshot; the present by default.
    options
        ``backend_storage`` and ``storage_options`` of `Options`.
    """
    with plain_errors(store):
        return describe(_options(info, options).store(store), at)


def verify(store: Place, *, quick: bool = False, **options: Any) -> "Verified":
    """
    Look for errors in a store, and write nothing.

    Arrays agree on the lengths of dimensions, and are as the VCF Zarr specification has them; sample IDs are unique;
    consolidated metadata are those of the arrays; every chunk that is stored decodes, and holds no values of removed
    samples; variants are sorted within contigs, and ``region_index`` is true. Chunks that are not stored stand for the
    fill value, and are not errors; nor are those that an interrupted append left outside the grid of an array.

    A bit that has flipped in a chunk is found if its codec, or what it decodes to, tells: gzip and checksums always do.

    Parameters
    ----------
    store
        A path, a URL, a Zarr store or an Icechunk repository.
    quick
        Whether to look at metadata and sample IDs only.
    options
        See `Options`.

    Raises
    ------
    VczstoreError
        If the store cannot be opened, for instance since its metadata are corrupt.
    """
    from plans.maintenance.verify import verify_store

    opts = _options(verify, options)
    with plain_errors(store):
        return verify_store(opts.store(store), opts.memory, quick=quick, **opts.engine)


def repair(store: Place, *, dry_run: bool = False, quick: bool = False, **options: Any) -> "Repaired":
    """
    Repair what interrupted operations left on plain Zarr, and what version 0.1.0 leaves, as far as that is safe.

    An append that was interrupted while its samples became visible is undone, and completes when it is run again;
    stale consolidated metadata are rewritten from the arrays' own; an interrupted compaction in place is finished or
    undone; half-written files of a killed process are deleted. Other errors are listed and left. On Icechunk, whose
    commits are all or nothing, only what version 0.1.0 leaves is repaired: empty IDs without calls, and values of
    removed samples.

    The lock of the store is held; programs that do not take it must not write to the store meanwhile.

    Parameters
    ----------
    store
        A path, a URL, a Zarr store or an Icechunk repository.
    dry_run
        Say what would be done, write nothing.
    quick
        Look for other errors in metadata and sample IDs only.
    options
        See `Options`.

    Raises
    ------
    BusyError
        If a job runs on the store.
    VczstoreError
        If the store cannot be opened, for instance since its metadata are corrupt.
    """
    from plans.maintenance.repair import repair_store

    opts = _options(repair, options)
    refuse_read_only("repair", store)
    with plain_errors(store):
        return repair_store(store, opts, dry_run=dry_run, quick=quick)
