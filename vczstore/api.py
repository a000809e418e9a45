"""The operations as functions. Their docstrings and signatures are generated from the declarations in ``plans``."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, Signature, cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast, overload

from vczstore.choices import AMERICAN
from vczstore.declarations import declared
from vczstore.errors import TagError
from vczstore.execution import operations
from vczstore.execution.operations import Operation

if TYPE_CHECKING:
    from plans.core.model import Plan
    from plans.maintenance.check import Checked
    from plans.maintenance.diff import Difference
    from plans.maintenance.export_vcf import Exported
    from plans.maintenance.history import Branched, PastCommits, Published
    from plans.maintenance.info import Description
    from plans.maintenance.purge import Collected, Foreseen, Purged
    from plans.maintenance.repair import Repaired
    from plans.maintenance.samples import SampleList
    from plans.maintenance.verify import Verified
    from plans.maintenance.verify_removal import Verification
    from vczstore.execution.progress import Progress
    from vczstore.execution.results import Result
    from vczstore.stores.base import Location

FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""The public functions by name."""


class StoreOptions(TypedDict, total=False):
    """How stores are opened and tasks are run; see `vczstore.execution.options.Options`."""

    parts: Sequence[str]
    backend_storage: str | None
    storage_options: Mapping[str, Any] | None
    branch: str | None
    source_storage_options: Mapping[str, Any] | None
    impl: str
    executor: str
    max_workers: int | None
    allowed_mem: int | str | None
    reserved_mem: int | str | None
    work_dir: str | None
    progress: "Progress | bool | None"
    log_file: str | None
    max_retries: int
    no_resume: bool
    no_lock: bool


class RunOptions(StoreOptions, total=False):
    """Options of operations that have a dry run."""

    dry_run: bool


class _Harmonising(RunOptions, total=False):
    allow_new_alleles: bool
    absent: str
    new_variants: str
    haploid_contigs: Sequence[str] | None
    numbers: Sequence[str]
    gvcf: bool
    min_gq: int | None
    drop_fields: Sequence[str]


class AppendOptions(_Harmonising, total=False):
    """Options of `append`."""

    harmonise: bool
    on_ref_mismatch: str
    keep_blocks: bool
    add_fields: Sequence[str]
    output: "str | Path | None"
    require_direct_copy: bool
    recompute: Sequence[str]
    allow_returning: bool
    drop_returning: bool


class UpdateOptions(_Harmonising, total=False):
    """Options of `update`."""

    harmonise: bool
    on_ref_mismatch: str
    add_fields: Sequence[str]
    recompute: Sequence[str]


class RemoveOptions(RunOptions, total=False):
    """Options of `remove`."""

    purge: bool
    tags: str
    recompute: Sequence[str]


class CreateOptions(RunOptions, total=False):
    """Options of `create`."""

    samples_chunk: int | None
    variants_chunk: int | None
    sample_grid: str
    info: Sequence[str]
    provenance: bool
    gvcf: bool


class ExportOptions(RunOptions, total=False):
    """Options of `export`."""

    at: str | None
    samples: Sequence[str]
    samples_file: str | None
    regions: Sequence[str]
    regions_file: str | None


class RegridOptions(RunOptions, total=False):
    """Options of `regrid`."""

    sample_grid: str | None
    samples_chunk: int | None
    variants_chunk: int | None
    samples_shard: int | None
    variants_shard: int | None
    compressor: str | None
    compression_level: int | None
    when: str | None


class NormaliseOptions(_Harmonising, total=False):
    """Options of `normalise`."""

    output_backend: str | None


# ---- any operation --------------------------------------------------------------------------


def plan(operation: str, *arguments: Any, **options: Any) -> "Plan":
    """
    Compile an operation without running it. Surveys of the data that its plan depends on do run, as tasks.

    Parameters
    ----------
    operation
        Name of the operation, such as ``append``.
    arguments, options
        Arguments of the function of this name.

    Returns
    -------
    Plan
        The plan, which `run` executes on any executor.

    Raises
    ------
    VczstoreError
        If the operation is invalid.

    Examples
    --------
    >>> plan("append", "cohort.vcz", "batch-7.vcz").summary
    '1 source, 2 samples added'
    """
    from vczstore.execution import engine

    if "dry_run" in options:
        raise TypeError("plan() got an unexpected keyword argument 'dry_run'; a plan writes nothing until it is run")
    bound, opts, _ = bind(operation, "plan", arguments, options)
    return engine.plan(bound, opts)


@overload
def run(what: "Plan", **options: Unpack[StoreOptions]) -> "Result": ...
@overload
def run(what: str, *arguments: Any, **options: Any) -> Any: ...
def run(what: "str | Plan", *arguments: Any, **options: Any) -> Any:
    """
    Run an operation, or a plan compiled by `plan`, on any executor.

    Parameters
    ----------
    what
        The name of an operation, such as ``append``, or a plan returned by `plan`.
    arguments, options
        Arguments of the function of this name; for a plan, options such as ``executor`` alone.

    Returns
    -------
    Result
        The result of an operation that edits a store, or the findings of one such as ``info``.

    Raises
    ------
    StaleError
        If the store has changed since the plan was compiled.
    BusyError
        If the store is on plain Zarr, and another process is writing to it.

    Examples
    --------
    >>> run(plan("append", "cohort.vcz", "batch-7.vcz"), executor="single-threaded").counts
    {'sources': 1, 'samples added': 2}
    """
    from vczstore.execution import engine
    from vczstore.execution.options import Options

    if isinstance(what, str):
        return _run("run", what, *arguments, **options)
    _refuse_unknown("run", options, [field.name for field in fields(Options) if field.init])
    return engine.run_compiled(what, Options(**options))


def _run(caller: str, name: str, *arguments: Any, **options: Any) -> Any:
    """Run an operation with the arguments of a function call."""
    from vczstore.execution.sets import entrance

    operation, opts, dry_run = bind(name, caller, arguments, options)
    return entrance.run(operation, opts, dry_run=dry_run)


def bind(name: str, caller: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[Operation, Any, bool]:
    """
    Make an operation from the arguments of a function call.

    Returns
    -------
    operation : Operation
    options : vczstore.execution.options.Options
    dry_run : bool

    Raises
    ------
    TypeError
        If an argument is missing, unknown or given twice, as for any Python function.
    """
    from vczstore.execution.options import Options

    operation = operations.find(name.replace("_", "-"))
    keywords = {AMERICAN.get(key, key): value for key, value in keywords.items()}
    positional = signature_of(operation).bind_partial(*arguments).arguments
    own = [field.name for field in fields(operation) if declared(field).python]
    shared = [field.name for field in fields(Options) if field.init]
    _refuse_unknown(caller, keywords, [*own, *shared, *["dry_run"] * bool(operation.dry_run)])
    if twice := positional.keys() & keywords.keys():
        raise TypeError(f"{caller}() got multiple values for argument {min(twice)!r}")
    values = {**positional, **{key: value for key, value in keywords.items() if key in own}}
    for field in operations.arguments(operation):
        if field.name not in values and field.default is MISSING and declared(field).kind != "sources":
            raise TypeError(f"{caller}() missing required argument {field.name!r}")
        if declared(field).kind == "sources":
            values.setdefault(field.name, ())
    opts = Options(**{key: value for key, value in keywords.items() if key in shared})
    return operation(**values), opts, bool(keywords.get("dry_run", False))


def _refuse_unknown(caller: str, keywords: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in keywords:
        if name not in known:
            near = ["max_retries"] if name == "replans" else get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}{hint}")


def signature_of(operation: type[Operation]) -> Signature:
    """Return the signature of the function of an operation: its arguments, and its own options by name."""
    parameters = [_parameter(field) for field in operations.arguments(operation)]
    for field in sorted(operations.options(operation), key=lambda field: not declared(field).positional):
        if declared(field).python:
            kind = Parameter.POSITIONAL_OR_KEYWORD if declared(field).positional else Parameter.KEYWORD_ONLY
            parameters.append(Parameter(field.name, kind, default=field.default, annotation=field.type))
    if operation.dry_run:
        parameters.append(Parameter("dry_run", Parameter.KEYWORD_ONLY, default=False, annotation=bool))
    return Signature([*parameters, Parameter("options", Parameter.VAR_KEYWORD)])


def _parameter(field: "Field[Any]") -> Parameter:
    if declared(field).kind == "sources":
        return Parameter(field.name, Parameter.VAR_POSITIONAL)
    default = Parameter.empty if field.default is MISSING else field.default
    return Parameter(field.name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=field.type)


# ---- each operation -------------------------------------------------------------------------


def _operation[**P, R](declaration: Callable[P, R]) -> Callable[P, R]:
    """Return the function of the operation with the name of the declaration, which has types only."""
    name = declaration.__name__
    operation = operations.find(name.replace("_", "-"))
    returned = str(declaration.__annotations__["return"])

    @wraps(declaration)
    def function(*arguments: P.args, **keywords: P.kwargs) -> R:
        outcome: R = _run(name, operation.called, *arguments, **keywords)
        return outcome

    function.__doc__ = docstring_of(operation, returned)
    function.__signature__ = signature_of(operation).replace(return_annotation=returned)  # type: ignore[attr-defined]
    FUNCTIONS[name] = function
    return function


def docstring_of(operation: type[Operation], returned: str) -> str:
    """Return the numpydoc docstring of the function of an operation, generated from its declaration."""
    text, *sections = re.split(r"\n(?=\w+\n-{3,}\n)", cleandoc(operation.__doc__ or ""))
    rows = [
        f"{'*' * (declared(field).kind == 'sources')}{field.name}\n    {declared(field).help}"
        for field in [*operations.arguments(operation), *operations.options(operation)]
        if declared(field).python
    ]
    if operation.dry_run:
        rows.append(f"dry_run\n    {operation.dry_run}")
    rows.append("options\n    See `vczstore.execution.options.Options`.")
    generated = {"Parameters": "\n".join(rows), "Returns": f"{returned}\n    The outcome of the operation."}
    written = {section.partition("\n")[0] for section in sections}
    parts = [f"{title}\n{'-' * len(title)}\n{body}\n" for title, body in generated.items() if title not in written]
    return "\n".join([text.rstrip() + "\n", *parts, *sections])


@_operation
def create(store: "str | Path", *sources: "Location", **options: Unpack[CreateOptions]) -> "Result": ...
@_operation
def init(store: "str | Path", source: "Location", **options: Unpack[RunOptions]) -> "Result": ...
@_operation
def append(store: "Location", *sources: "Location", **options: Unpack[AppendOptions]) -> "Result": ...
@_operation
def update(store: "Location", *sources: "Location", **options: Unpack[UpdateOptions]) -> "Result": ...
@_operation
def remove(store: "Location", samples: str | Sequence[str], **options: Unpack[RemoveOptions]) -> "Result": ...
@_operation
def recompute(store: "Location", fields: str | Sequence[str] = ..., **options: Unpack[RunOptions]) -> "Result": ...
@_operation
def rename_samples(
    store: "Location",
    file: "str | Path",
    *,
    missing_ok: bool = ...,
    allow_returning: bool = ...,
    **options: Unpack[RunOptions],
) -> "Result": ...
@_operation
def compact(store: "Location", output: "str | Path | None" = ..., **options: Unpack[RunOptions]) -> "Result": ...
@_operation
def regrid(store: "Location", **options: Unpack[RegridOptions]) -> "Result": ...
@_operation
def normalise(
    store: "Location", source: "Location", out: "str | Path", **options: Unpack[NormaliseOptions]
) -> "Result": ...
@_operation
def copy_store_to_icechunk(
    source: "Location", store: "str | Path", *, overwrite: bool = ..., **options: Unpack[RunOptions]
) -> "Result": ...
@_operation
def branch(
    store: "Location",
    name: str | None = ...,
    *,
    at: str | None = ...,
    delete: bool = ...,
    **options: Unpack[StoreOptions],
) -> "Branched": ...
@_operation
def publish(store: "Location", name: str, **options: Unpack[StoreOptions]) -> "Published": ...
@_operation
def purge(store: "Location", tags: str = ..., **options: Unpack[RunOptions]) -> "Purged | Foreseen": ...
@_operation
def gc(
    store: "Location", *, keep_days: int | None = ..., keep_tags: str = ..., **options: Unpack[RunOptions]
) -> "Collected": ...
@_operation
def verify(store: "Location", *, quick: bool = ..., **options: Unpack[StoreOptions]) -> "Verified": ...
@_operation
def check(
    store: "Location",
    *,
    min_samples: int | None = ...,
    max_samples: int | None = ...,
    min_call_rate: float | None = ...,
    command: str | None = ...,
    **options: Unpack[StoreOptions],
) -> "Checked": ...
@_operation
def verify_removal(
    store: "Location",
    samples: str | Sequence[str],
    *,
    report: "str | Path | None" = ...,
    **options: Unpack[StoreOptions],
) -> "Verification": ...
@_operation
def repair(store: "Location", *, quick: bool = ..., **options: Unpack[RunOptions]) -> "Repaired": ...
@_operation
def info(store: "Location", *, at: str | None = ..., **options: Unpack[StoreOptions]) -> "Description": ...
@_operation
def samples(
    store: "Location",
    *,
    at: str | None = ...,
    removed: bool = ...,
    long: bool = ...,
    **options: Unpack[StoreOptions],
) -> "SampleList": ...
@_operation
def diff(
    store: "Location",
    other: "Location | None" = ...,
    *,
    at: str | None = ...,
    to: str | None = ...,
    ids: bool = ...,
    **options: Unpack[StoreOptions],
) -> "Difference": ...
@_operation
def export(store: "Location", out: "str | Path", **options: Unpack[ExportOptions]) -> "Result | Exported": ...
@_operation
def restore(store: "Location", state: str, **options: Unpack[RunOptions]) -> "Result": ...
@_operation
def log(store: "Location", **options: Unpack[StoreOptions]) -> "PastCommits": ...


def _of_each(outcome: Any, name: str) -> Any:
    """Return an attribute of an outcome; for a set of stores, a dict of it by part."""
    parts = getattr(outcome, "parts", None)
    return getattr(outcome, name) if parts is None else {part: getattr(result, name) for part, result in parts.items()}


# ---- tags: three functions for one command --------------------------------------------------


def tags(store: "Location", **options: Unpack[StoreOptions]) -> dict[str, str]:
    """
    Return the snapshot of each tag of a store, by name; for a set of stores, a dict of these by part.

    Parameters
    ----------
    store
        The store: a path, a URL, a Zarr store or an Icechunk repository.
    options
        See `vczstore.execution.options.Options`.

    Raises
    ------
    TagError
        If the store is on plain Zarr, which has no tags.

    Examples
    --------
    >>> list(tags("cohort.icechunk"))
    ['release-1']
    """
    return cast("dict[str, str]", _of_each(_run("tags", "tag", store, **options), "tags"))


def tag(store: "Location", name: str, **options: Unpack[StoreOptions]) -> str:
    """
    Tag the current state of a store, or of all stores of a set.

    Parameters
    ----------
    store
        The store: a path, a URL or an Icechunk repository.
    name
        Printable characters without ``/``; a name that was used once cannot be used again.
    options
        See `vczstore.execution.options.Options`.

    Returns
    -------
    str
        The snapshot; for a set of stores, a dict of the snapshots by part.

    Raises
    ------
    TagError
        If the name is taken, was taken once, or the store is on plain Zarr.

    Examples
    --------
    >>> len(tag("cohort.icechunk", "release-2"))
    20
    """
    if not name:
        raise TagError(f"tag: {name!r} is no name for a tag; use printable characters without /")
    return cast("str", _of_each(_run("tag", "tag", store, name, **options), "snapshot"))


def delete_tag(store: "Location", name: str, **options: Unpack[StoreOptions]) -> None:
    """
    Delete a tag. The snapshot stays; the name cannot be used again.

    Parameters
    ----------
    store, name, options
        As in `tag`.

    Raises
    ------
    TagError
        If there is no such tag.

    Examples
    --------
    >>> delete_tag("cohort.icechunk", "release-1")
    """
    _run("delete_tag", "tag", store, name, delete=True, **options)


FUNCTIONS |= {function.__name__: function for function in (plan, run, tags, tag, delete_tag)}
