"""The command line: parse, call, print. No logic.

Nothing but click is imported until a command runs, so that ``--help`` is quick.
"""

import gc
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

import executors
from vczstore.choices import ABSENT, BACKENDS, DEFAULT_INFO_FIELDS, IMPLS, INFO_FIELDS, MAX_CHUNK, NEW_VARIANTS, TAGS

if TYPE_CHECKING:
    from plans.core.model import Plan
    from plans.maintenance.info import Info
    from plans.maintenance.purge import Collected, Purged
    from plans.maintenance.repair import Repaired
    from plans.maintenance.verify import Verified
    from plans.maintenance.verify_removal import Verification
    from vczstore.execution.engine import Progress, Result
    from vczstore.execution.executor_check import Checked
    from vczstore.jobs.report import Report
    from vczstore.jobs.run import JobResult

INTERRUPTED = 128
"""With the number of the signal, as shells have it: 130 for SIGINT, 143 for SIGTERM."""
MAX_SAMPLES = 2**28
"""The longest list of sample IDs, in characters: some ten million samples, or a mistake."""


class _Found(Protocol):
    def as_dict(self) -> dict[str, Any]: ...


class _Group(click.Group):
    """Commands in the order in which they are written."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Group, name="vczstore", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vczstore")
def main() -> None:
    """Append, update, remove, tag and copy samples of a VCF Zarr store, in one atomic commit."""


# ---- options --------------------------------------------------------------------------------


def _storage_options(_: click.Context, __: click.Parameter, pairs: tuple[str, ...]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not of the form KEY=VALUE")
        try:
            options[key] = json.loads(value)
        except (ValueError, RecursionError):
            options[key] = value
    return options


def _executor(_: click.Context, __: click.Parameter, name: str) -> str:
    if name not in executors.NAMES and not name.endswith((".yaml", ".yml")):
        raise click.BadParameter(f"{name!r} is none of {', '.join(executors.NAMES)}, and no file that ends in .yaml")
    return name


_STORE = (
    click.option(
        "--backend-storage",
        "--zarr-backend-storage",
        type=click.Choice(BACKENDS),
        help="Backend of the store; auto-detected if left out.",
    ),
    click.option(
        "--storage-option",
        "storage_options",
        multiple=True,
        metavar="KEY=VALUE",
        callback=_storage_options,
        help="Connection option of an object store, such as region=eu-west-2 or endpoint=URL, for the store and for "
        "sources of the same kind. Never credentials. VALUE is read as JSON if it is JSON. Repeatable.",
    ),
)
_SOURCES = (
    click.option(
        "--source-storage-option",
        "source_storage_options",
        multiple=True,
        metavar="KEY=VALUE",
        callback=_storage_options,
        help="The same for the sources alone, which then take none of --storage-option. Repeatable.",
    ),
)
_PROGRESS = click.option(
    "-P/-Q", "--progress/--no-progress", default=None, help="Show a progress bar or not.  [default: on a terminal]"
)
_WORKERS = (
    click.option(
        "--executor",
        metavar="NAME|FILE",
        callback=_executor,
        default="threads",
        show_default=True,
        help=f"What runs the tasks: {', '.join(executors.NAMES)}, or an executor file (.yaml).",
    ),
    click.option(
        "--max-workers",
        type=click.IntRange(min=1),
        help="How many tasks run at once.  [default: one per core, 100 on Modal]",
    ),
    click.option("--allowed-mem", metavar="SIZE", help="Memory that a task may use, such as 2GB.  [default: 2GB]"),
)
_TASKS = (
    *_WORKERS,
    click.option("--dry-run", is_flag=True, help="Check everything and print what would be done; write nothing."),
    _PROGRESS,
)
_RUN = (
    click.option("--impl", type=click.Choice(IMPLS), default="cubed", show_default=True, help="Implementation."),
    click.option("--work-dir", metavar="DIR", help="Folder for intermediate data; only --impl xarray has any."),
    *_TASKS,
)
_LOCK = (
    click.option(
        "--no-lock",
        is_flag=True,
        help="Write without the lock of the store, where storage has no locks or does not permit one. If anything else "
        "writes to the store at the same time, batches are lost or mixed without an error.",
    ),
)
_REPLANS = click.option(
    "--replans",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="How often to plan again after a concurrent commit.",
)
_TAGS = click.option(
    "--tags",
    type=click.Choice(TAGS),
    default="refuse",
    show_default=True,
    help="What a purge does with tags and branches that keep older snapshots. recreate rewrites what tags name, "
    "without the samples that the store no longer has; release-1 becomes release-1.1, since no name is used twice.",
)
_OUTPUT = (
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output."),
    click.option("-v", "--verbose", count=True, help="Print more; twice for still more."),
)


def _options(*groups: tuple[Callable[..., Any], ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command groups of options, and turn errors into one line and an exit status."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(*args: Any, verbose: int = 0, **kwargs: Any) -> None:
            # what imports allocate is not garbage: looking for some in it takes a tenth of a short command
            gc.set_threshold(100_000)
            _log(verbose)
            if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
                sys.stdout.reconfigure(errors="backslashreplace")  # paths may be no text, as on standard error
            with _errors(verbose):
                command(*args, **kwargs)
                _end_in_peace()

        for option in reversed([o for group in groups for o in group]):
            run = option(run)
        return run

    return decorate


def _log(verbose: int) -> None:
    import logging

    # it would tell, in many lines, of zarr's reads that failed or that nobody waits for, beside the error that is told
    logging.getLogger("asyncio").disabled = not verbose
    if verbose:
        # icechunk reads this when it is imported
        os.environ.setdefault("ICECHUNK_LOG", "warn" if verbose == 1 else "info")
        logging.basicConfig(level=logging.INFO if verbose == 1 else logging.DEBUG, stream=sys.stderr)


def _printable(text: str) -> str:
    """A text in one line: names that a damaged store or a user has may hold what changes a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class _SamplesFile(click.File):
    """A file of sample IDs."""

    def __init__(self) -> None:
        super().__init__(encoding="utf-8-sig")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Open it; a name with a line break does not break the message."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            raise click.BadParameter(_printable(error.message), ctx, param) from None


OWN_PROCESS = "own process"
"""The ``obj`` of a command that is all that its process is for."""


def _end_in_peace() -> None:
    """What is done is done: an interrupt that comes now could only say otherwise."""
    if click.get_current_context().obj == OWN_PROCESS:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def _errors(verbose: int) -> Iterator[None]:
    received = signal.SIGINT

    def terminate(*_: Any) -> None:
        nonlocal received
        received = signal.SIGTERM
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except click.ClickException:
        raise
    except KeyboardInterrupt as error:
        click.secho(str(error) or "interrupted", fg="yellow", err=True)
        sys.exit(INTERRUPTED + received)
    except Exception as error:
        if verbose:
            import traceback

            traceback.print_exc()
        from vczstore.errors import VczstoreError

        status = error.exit_status if isinstance(error, VczstoreError) else 1
        text = " ".join((str(error) or type(error).__name__).split())
        if not isinstance(error, VczstoreError | OSError):
            text = f"unexpected {type(error).__name__}: {text[:300]}; --verbose shows where"
        click.echo(f"{click.style('Error:', fg='red')} {_printable(text)}", err=True)
        sys.exit(status)


@contextmanager
def _output(*, is_all: bool = False) -> Iterator[None]:
    """
    Write to standard output; one that is closed or full changes nothing of what was done, nor of the status.

    Where output `is_all` that a command is for, a full one is an error; a reader that has closed it has seen enough.
    """
    try:
        yield
    except OSError as error:
        if is_all and not isinstance(error, BrokenPipeError):
            raise
        with suppress(OSError, io.UnsupportedOperation):  # so that what is buffered does not fail once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not is_all:
            with suppress(OSError):
                click.echo(f"Warning: standard output: {error.strerror or error}; what was done is done", err=True)


@contextmanager
def _progress(show: bool | None) -> "Iterator[Progress | None]":
    """A progress bar on standard error, if it is a terminal or the user wants one."""
    if not (sys.stderr.isatty() if show is None else show):
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield update


# ---- commands -------------------------------------------------------------------------------


def _names(_context: click.Context, _parameter: click.Parameter, value: str | None) -> list[str] | None:
    """Names with commas in between."""
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


_RECOMPUTE = click.option(
    "--recompute",
    metavar="FIELD,...",
    default="",
    callback=_names,
    help=f"Recompute these INFO fields in the same commit: {', '.join(INFO_FIELDS)}.",
)
_DROP_FIELD = click.option(
    "--drop-field",
    "drop_fields",
    metavar="NAME",
    multiple=True,
    help="Leave this FORMAT field out, or missing, instead of refusing it. Repeatable.",
)
_ADD_FIELD = click.option(
    "--add-field",
    "add_fields",
    metavar="NAME",
    multiple=True,
    help="Add this FORMAT field, which the store lacks; it is missing for its other samples. Repeatable.",
)


def _without_effect(context: click.Context, parameter: click.Parameter, value: int | None) -> None:
    """Say that an option of vczstore 0.1.0 does nothing, which scripts may still give."""
    if value is not None and not context.resilient_parsing:
        instead = "--max-workers says how many tasks run at once, --allowed-mem how much of a store each takes"
        click.echo(f"Note: {parameter.opts[0]} has no effect; {instead}", err=True)


def _of_first_release(name: str) -> Callable[..., Any]:
    options: dict[str, Any] = {"type": click.IntRange(min=1), "hidden": True, "expose_value": False}
    return click.option(name, callback=_without_effect, **options)


_HARMONISE = (
    click.option("--allow-new-alleles", is_flag=True, help="Add alleles that the store does not have."),
    click.option(
        "--absent",
        type=click.Choice(ABSENT),
        default="missing",
        show_default=True,
        help="Genotypes where a source lacks a variant.",
    ),
    click.option(
        "--new-variants",
        type=click.Choice(NEW_VARIANTS),
        default="refuse",
        show_default=True,
        help="What to do with variants that the store lacks.",
    ),
    click.option(
        "--haploid-contigs",
        metavar="NAME,...",
        callback=_names,
        help="Contigs where the genotypes of --absent have one allele.  [default: X,chrX,Y,chrY,M,MT,chrM]",
    ),
    click.option(
        "--number",
        "numbers",
        metavar="NAME=R|A|G",
        multiple=True,
        help="What a FORMAT field is whose header says Number=., such as AD=R. Repeatable.",
    ),
)


@main.command()
@click.argument("out")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option(
    "--samples-chunk",
    "--samples-chunk-size",
    type=click.IntRange(1, MAX_CHUNK),
    metavar="N",
    help="How many samples a chunk has, also for samples appended later.  [default: the sources' longest, or 1,000]",
)
@click.option(
    "--variants-chunk",
    type=click.IntRange(1, MAX_CHUNK),
    metavar="N",
    help="How many variants a chunk has.  [default: the sources' longest, or 1,000]",
)
@_options(_STORE, _LOCK, _SOURCES, _TASKS, _OUTPUT)
def create(out: str, sources: tuple[str, ...], progress: bool | None, as_json: bool, **options: Any) -> None:
    """Make a store without samples, over the variants of one or more VCZs.

    Records merge as bcftools merge -m none merges them: where contig, position and REF agree and ALTs are shared. QUAL,
    FILTER and INFO are not carried over.
    OUT is plain Zarr of format 3 unless --backend-storage says icechunk.
    """
    from vczstore import api

    with _progress(progress) as bar:
        result = api.create(out, *sources, progress=bar, **options)
    _show(result, as_json)


@main.command()
@click.argument("store")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--harmonise", is_flag=True, help="Map the sources to the variants and alleles of the store.")
@_DROP_FIELD
@_ADD_FIELD
@click.option(
    "--require-direct-copy",
    is_flag=True,
    help="Fail if a chunk of values would be re-encoded instead of being copied as it is.",
)
@_of_first_release("--io-concurrency")
@_RECOMPUTE
@_REPLANS
@_options(_HARMONISE, _STORE, _LOCK, _SOURCES, _RUN, _OUTPUT)
def append(store: str, sources: tuple[str, ...], progress: bool | None, as_json: bool, **options: Any) -> None:
    """Append the samples of one or more VCZs, in their order.

    They need the store's variants and alleles in the store's order, unless --harmonise maps them.
    """
    from vczstore import api

    with _progress(progress) as bar:
        result = api.append(store, *sources, progress=bar, **options)
    _show(result, as_json)


@main.command()
@click.argument("store")
@click.argument("source")
@click.argument("out")
@click.option("--output-backend", type=click.Choice(BACKENDS), help="Backend of OUT.  [default: zarr]")
@_DROP_FIELD
@_of_first_release("--variant-chunks-in-batch")
@_options(_HARMONISE, _STORE, _LOCK, _SOURCES, _RUN, _OUTPUT)
def normalise(store: str, source: str, out: str, progress: bool | None, as_json: bool, **options: Any) -> None:
    """Map a VCZ to the variants and alleles of a store, and write it as a store of its own.

    OUT is plain Zarr of format 3 unless --output-backend says icechunk.
    """
    from vczstore import api

    with _progress(progress) as bar:
        result = api.normalise(store, source, out, progress=bar, **options)
    _show(result, as_json)


@main.command()
@click.argument("store")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@_DROP_FIELD
@_ADD_FIELD
@_RECOMPUTE
@_REPLANS
@_options(_STORE, _LOCK, _SOURCES, _RUN, _OUTPUT)
def update(store: str, sources: tuple[str, ...], progress: bool | None, as_json: bool, **options: Any) -> None:
    """Replace the values of samples by those of one or more VCZs."""
    from vczstore import api

    with _progress(progress) as bar:
        result = api.update(store, *sources, progress=bar, **options)
    _show(result, as_json)


@main.command()
@click.argument("store")
@click.argument("sample_ids", metavar="[SAMPLE_ID]...", nargs=-1)
@click.option(
    "-S",
    "--samples-file",
    type=_SamplesFile(),
    help="File of sample IDs, one per line; - is standard input.",
)
@_of_first_release("--variant-chunks-in-batch")
@click.option("--purge", is_flag=True, help="Then delete the history, in which the samples would stay readable.")
@_TAGS
@_RECOMPUTE
@_REPLANS
@_options(_STORE, _LOCK, _RUN, _OUTPUT)
def remove(
    store: str,
    sample_ids: tuple[str, ...],
    samples_file: Any,
    progress: bool | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Overwrite samples with missing values, and blank their IDs."""
    from vczstore import api

    if not sample_ids and samples_file is None:
        raise click.UsageError("Name SAMPLE_IDs, or a file of them with --samples-file.")
    samples = [*sample_ids, *([] if samples_file is None else _lines("remove", samples_file))]
    with _progress(progress) as bar:
        result = api.remove(store, samples, progress=bar, **options)
    _show(result, as_json)
    if result.purged is not None and not as_json:
        with _output():
            _print_purged(result.purged)


def _lines(command: str, file: Any) -> list[str]:
    """The sample IDs in a file."""
    try:
        text = file.read(MAX_SAMPLES + 1)
        if len(text) > MAX_SAMPLES:
            raise click.ClickException(f"{command}: {file.name} is no list of sample IDs: it is larger than 256 MB")
        return [line.strip() for line in text.splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{command}: {file.name} is no UTF-8 text; give one sample ID in a line") from error


@main.command()
@click.argument("store")
@click.option("--output", metavar="PATH", help="Make a compacted copy on plain Zarr here; STORE stays as it is.")
@_REPLANS
@_options(_STORE, _LOCK, _RUN, _OUTPUT)
def compact(store: str, output: str | None, progress: bool | None, as_json: bool, **options: Any) -> None:
    """Drop removed samples from all arrays: the samples after them move up.

    A folder of plain Zarr is replaced by a new one; plain Zarr elsewhere needs --output.
    """
    from vczstore import api

    with _progress(progress) as bar:
        result = api.compact(store, output, progress=bar, **options)
    _show(result, as_json)


@main.command()
@click.argument("store")
@_TAGS
@_PROGRESS
@_options(_STORE, _LOCK, _WORKERS, _OUTPUT)
def purge(store: str, progress: bool | None, as_json: bool, **options: Any) -> None:
    """Delete the history of a store, in which removed samples stay readable.

    Operations that other writers have begun are planned again afterwards; no new one may begin meanwhile.
    """
    from vczstore import api

    with _progress(progress) as bar:
        done = api.purge(store, progress=bar, **options)
    _tell(done, _print_purged, as_json)


@main.command("gc")
@click.argument("store")
@click.option("--dry-run", is_flag=True, help="Count, and delete nothing.")
@_options(_STORE, _LOCK, _OUTPUT)
def collect_garbage(store: str, as_json: bool, **options: Any) -> None:
    """Delete unreferenced objects, such as those of a killed operation. The history stays."""
    from vczstore import api

    done = api.gc(store, **options)
    _tell(done, _print_collected, as_json)


@main.command()
@click.argument("store")
@click.option(
    "-S",
    "--samples-file",
    type=_SamplesFile(),
    required=True,
    help="File of the IDs of removed samples, one per line; - is standard input.",
)
@click.option(
    "--report", type=click.Path(file_okay=False), metavar="DIR", help="Write report.json and report.html here."
)
@_options(_STORE, _OUTPUT)
def verify_removal(store: str, samples_file: Any, as_json: bool, **options: Any) -> None:
    """Read every object of a store, to show that nothing of removed samples is left.

    The IDs are searched for, and stored nowhere. Exit status 1 if anything is found.
    """
    from vczstore import api

    found = api.verify_removal(store, _lines("verify-removal", samples_file), **options)
    _tell(found, _print_verification, as_json)
    if not found.erased:
        sys.exit(1)


@main.command()
@click.argument("store")
@click.option(
    "--fields",
    metavar="FIELD,...",
    default=",".join(DEFAULT_INFO_FIELDS),
    show_default=True,
    callback=_names,
    help=f"Which: {', '.join(INFO_FIELDS)}.",
)
@_REPLANS
@_options(_STORE, _LOCK, _RUN, _OUTPUT)
def recompute(store: str, fields: list[str], progress: bool | None, as_json: bool, **options: Any) -> None:
    """Recompute INFO fields from the genotypes, as bcftools +fill-tags does."""
    from vczstore import api

    with _progress(progress) as bar:
        result = api.recompute(store, fields, progress=bar, **options)
    _show(result, as_json)


@main.command()
@click.argument("store")
@click.argument("name", required=False)
@click.option("-d", "--delete", is_flag=True, help="Delete the tag. Its name cannot be used again.")
@_options(_STORE, _LOCK, _OUTPUT)
def tag(store: str, name: str | None, delete: bool, as_json: bool, **options: Any) -> None:
    """List the tags of a store, or tag its current state."""
    from vczstore import api

    if name is None:
        if delete:
            raise click.UsageError("Name the tag to delete.")
        found = api.tags(store, **options)
        lines = [f"{name}\t{snapshot}" for name, snapshot in found.items()]
        with _output(is_all=True):
            click.echo(json.dumps(found) if as_json else "\n".join(lines), nl=bool(found) or as_json)
    elif delete:
        api.delete_tag(store, name, **options)
        _say({"deleted": name}, f"deleted tag {name}", as_json)
    else:
        snapshot = api.tag(store, name, **options)
        _say({"tag": name, "snapshot": snapshot}, f"tagged {snapshot} as {name}", as_json)


@main.command()
@click.argument("store")
@click.option("--at", metavar="TAG|BRANCH|SNAPSHOT", help="Show the store at this tag, branch or snapshot.")
@_options(_STORE, _OUTPUT)
def info(store: str, at: str | None, as_json: bool, **options: Any) -> None:
    """Show what is in a store: samples, variants, chunks, tags, history."""
    from vczstore import api

    found = api.info(store, at=at, **options)
    with _output(is_all=True):
        click.echo(json.dumps(found.as_dict())) if as_json else _print_info(found)


@main.command()
@click.argument("store")
@click.option("--quick", is_flag=True, help="Check metadata and sample IDs only.")
@_PROGRESS
@_options(_STORE, _WORKERS, _OUTPUT)
def verify(store: str, quick: bool, progress: bool | None, as_json: bool, **options: Any) -> None:
    """Check a store: metadata, sample IDs, the order of variants, and every chunk.

    Exit status 1 if there are errors.
    """
    from vczstore import api

    with _progress(progress) as bar:
        found = api.verify(store, quick=quick, progress=bar, **options)
    _tell(found, _print_verified, as_json)
    if not found.ok:
        sys.exit(1)


@main.command()
@click.argument("store")
@click.option("--quick", is_flag=True, help="Look for other errors in metadata and sample IDs only.")
@click.option("--dry-run", is_flag=True, help="Print what would be done; write nothing.")
@_PROGRESS
@_options(_STORE, _LOCK, _WORKERS, _OUTPUT)
def repair(store: str, progress: bool | None, as_json: bool, **options: Any) -> None:
    """Finish or undo what an interrupted operation left on plain Zarr, and mend stores of version 0.1.0.

    Other errors are listed and left. Exit status 1 if there are any.
    """
    from vczstore import api

    with _progress(progress) as bar:
        found = api.repair(store, progress=bar, **options)
    _tell(found, _print_repaired, as_json)
    if not found.ok:
        sys.exit(1)


@main.command()
@click.argument("source")
@click.argument("store")
@_of_first_release("--io-concurrency")
@click.option("--overwrite", is_flag=True, help="Replace the contents of the repository. Its history stays.")
@_options(_STORE, _LOCK, _SOURCES, _RUN, _OUTPUT)
def copy_store_to_icechunk(source: str, store: str, progress: bool | None, as_json: bool, **options: Any) -> None:
    """Copy a VCZ on plain Zarr into an Icechunk repository."""
    from vczstore import api

    options["backend_storage"] = options["backend_storage"] or "icechunk"
    with _progress(progress) as bar:
        result = api.copy_store_to_icechunk(source, store, progress=bar, **options)
    _show(result, as_json)


_JOB = (
    click.argument("file", metavar="FILE"),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key of the file, such as --set store=other.vcz. Repeatable.",
    ),
    click.option("--executor", metavar="NAME|FILE", help="What runs the tasks."),
    click.option("--max-workers", type=click.IntRange(min=1), help="Tasks that run at once."),
    click.option("--allowed-mem", metavar="SIZE", help="Memory that a task may use, such as 2GB."),
)


def _overrides(overrides: tuple[str, ...], **flags: Any) -> list[str]:
    """The flags of a command as more of its --set; those that are not given say nothing."""
    given = {name.replace("_", "-"): value for name, value in flags.items() if value is not None}
    return [*overrides, *(f"{name}={json.dumps(value)}" for name, value in given.items())]


@main.command()
@click.option("--svg", type=click.Path(dir_okay=False, writable=True), help="Draw the plan into this file.")
@_options(_JOB, _OUTPUT)
def plan(file: str, svg: str | None, as_json: bool, **flags: Any) -> None:
    """Compile a job file and show what it would do; write nothing."""
    from vczstore.jobs import report
    from vczstore.jobs import run as job

    described = job.describe_job(job.plan_job(file, _overrides(**flags)))
    if svg:
        Path(svg).write_text(report.plan_svg(described), encoding="utf-8", errors="backslashreplace")
    with _output(is_all=True):
        click.echo(json.dumps(described)) if as_json else _print_job(described)


@main.command()
@click.option(
    "--report", type=click.Path(file_okay=False), metavar="DIR", help="Write report.json and report.html here."
)
@click.option(
    "--if-busy",
    type=click.Choice(["wait", "exit"]),
    default="exit",
    show_default=True,
    help="What to do while another job runs on the store; exit means status 3.",
)
@_PROGRESS
@_options(_JOB, _LOCK, _OUTPUT)
def run(
    file: str,
    report: str | None,
    if_busy: str,
    progress: bool | None,
    no_lock: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Apply the steps of a job file that no earlier run has applied, in one commit.

    Exit status: 0 done, or nothing to do; 1 failed; 2 wrong usage, or no job file; 3 busy; 4 conflict with another
    writer. Unless it is 0, nothing is committed on Icechunk, except that a tag may be what failed; on plain Zarr the
    finished steps are done.
    """
    from vczstore.errors import VczstoreError
    from vczstore.jobs import run as job

    try:
        with _progress(progress) as bar:
            overrides = [*_overrides(**flags), *["store.no-lock=true"] * no_lock]
            result = job.run_job(file, overrides, wait=if_busy == "wait", report=report, progress=bar)
    except VczstoreError as error:
        if as_json:
            with _output():
                click.echo(json.dumps({"status": "failed", "error": str(error), "exit_status": error.exit_status}))
        raise
    _tell(result, _print_result, as_json)


@main.command()
@click.argument("store")
@_options(_STORE, _OUTPUT)
def log(store: str, as_json: bool, **options: Any) -> None:
    """Show the history of a store: when, what, how much, by which versions."""
    from vczstore import api

    entries = api.log(store, **options)
    with _output(is_all=True):
        click.echo(json.dumps(list(entries))) if as_json else _print_log(entries)


@main.command()
@_options()
def schema() -> None:
    """Print the JSON Schema of job files.

    With it in a file, an editor completes and checks job files that begin with the comment
    # yaml-language-server: $schema=FILE
    """
    from vczstore.jobs import model

    with _output(is_all=True):
        click.echo(json.dumps(model.schema(), indent=2))


@main.group(cls=_Group)
def executor() -> None:
    """Try an executor."""


@executor.command()
@click.argument("executor", metavar="NAME|FILE", callback=_executor)
@_options(_OUTPUT)
def check(executor: str, as_json: bool) -> None:
    """Run a few tasks on an executor, and compare its workers' versions with those here.

    Exit status 1 if Python, cubed, icechunk or zarr differ.
    """
    from vczstore.execution import executor_check

    found = executor_check.check(executor)
    _tell(found, _print_checked, as_json)
    if not found.ok:
        sys.exit(1)


@main.command()
@click.option("--directory", default="vczstore-demo", show_default=True, help="Where the demo's stores are made.")
@_options(_OUTPUT)
def demo(directory: str, as_json: bool) -> None:
    """Make a small cohort, append two batches to it, remove a sample and tag a release."""
    from vczstore.cli import demo as module

    shown = module.run(directory, err=as_json)
    if as_json:
        click.echo(json.dumps(shown))


# ---- printing -------------------------------------------------------------------------------


def _say(value: Mapping[str, Any], text: str, as_json: bool) -> None:
    with _output():
        click.echo(json.dumps(value) if as_json else text)


def _tell[T: _Found](found: T, show: Callable[[T], None], as_json: bool) -> None:
    """What an operation has found or done, as JSON or by `show`."""
    with _output():
        click.echo(json.dumps(found.as_dict())) if as_json else show(found)


def _show(result: "Result", as_json: bool) -> None:
    """What was done, or would be done."""
    with _output(is_all=not result.committed):
        _print_done(result, as_json)


def _print_done(result: "Result", as_json: bool) -> None:
    from vczstore.sizes import human_size

    plan = result.plan
    would = {
        "chunks_encoded": plan.encoded_chunks,
        "chunks_decoded": plan.decoded_chunks,
        "chunks_of_store": plan.chunks_of_store,
        "bytes_read_at_most": plan.bytes_read,
        "bytes_written_at_most": plan.bytes_written,
    }
    if as_json:
        more = {"tasks": plan.tasks, "projected_mem": plan.projected_mem, "notes": dict(plan.notes)}
        dry = {} if result.committed else {"plan": {**would, **more}}
        click.echo(json.dumps({**result.as_dict(), **dry}))
        return
    counts = result.summary
    head = click.style(f"{result.operation} {result.store}:", bold=True)
    if not result.committed:
        click.echo(f"{head} {counts} (dry run, nothing was written)")
        for what, text in plan.notes.items():
            click.echo(f"  {what:<7} {text}")
        click.echo(
            f"  chunks  {plan.encoded_chunks:,} copied as they are, {plan.decoded_chunks:,} encoded{_of_store(plan)}"
        )
        click.echo(f"  reads   at most {human_size(plan.bytes_read)} (decoded)")
        click.echo(f"  writes  at most {human_size(plan.bytes_written)} (decoded)")
        click.echo(f"  tasks   {plan.tasks:,}, the largest is projected to need {human_size(plan.projected_mem)}")
        return
    snapshot = f", snapshot {result.snapshot}" if result.snapshot else ""
    again = f", retried {result.replans} times after concurrent commits" if result.replans else ""
    click.echo(f"{head} {counts} in {result.seconds:.2f} s{snapshot}{again}")
    _print_notes(result)


def _of_store(plan: "Plan") -> str:
    """Which chunks hold what is in the store already: those that the counts and the notes tell of."""
    if not plan.chunks_of_store:
        return ""
    re_encoded = plan.counts.get("chunks re-encoded", 0)
    parts = {"re-encoded": re_encoded, "rewritten": plan.chunks_of_store - re_encoded}
    told = " and ".join(f"{n:,} {what}" for what, n in parts.items() if n)
    return f", of which {told} hold what is in the store"


def _print_notes(result: "Result") -> None:
    """What is to be known of the store as it is now."""
    for what, text in result.notes.items():
        click.echo(f"  {what:<7} {text}")


def _print_log(entries: Iterator[dict[str, Any]]) -> None:
    """The history, newest first."""
    for entry in entries:
        head = click.style(entry["snapshot"], fg="yellow")
        tags = "".join(click.style(f" ({name})", fg="green") for name in entry["tags"])
        click.echo(f"{head}{tags}  {entry['time']}  {entry['message']}")
        made = [f"{name} {number}" for name, number in entry["versions"].items()]
        if entry["job"] or made:
            click.echo(
                click.style("  " + ", ".join([*([f"job {entry['job']}"] if entry["job"] else []), *made]), dim=True)
            )


def _print_purged(done: "Purged") -> None:
    """What a purge has deleted."""
    from plans.maintenance.purge import NO_HISTORY
    from vczstore.sizes import human_size

    head = click.style(f"purge {done.store}:", bold=True)
    counts = dict(done.counts)
    if done.snapshot is None:
        told = ", ".join(f"{n:,} {what}" for what, n in counts.items()) or "nothing to do"
        click.echo(f"{head} {told}; {NO_HISTORY}")
        return
    size = human_size(counts.pop("bytes"))
    told = ", ".join(f"{n:,} {what}" for what, n in counts.items())
    click.echo(f"{head} {told}, {size}, snapshot {done.snapshot}")
    for name in done.deleted:
        click.echo(f"  deleted {name}, which kept an older snapshot")
    for old, new in done.recreated.items():
        click.echo(f"  {old} is {new} now, without what was removed since")


def _print_collected(done: "Collected") -> None:
    """What was deleted, or would be."""
    from vczstore.sizes import human_size

    counts = dict(done.counts)
    size = human_size(counts.pop("bytes"))
    told = ", ".join(f"{n:,} {what}" for what, n in counts.items())
    end = (
        f", snapshot {done.snapshot}" if done.snapshot else "" if done.committed else " (dry run, nothing was deleted)"
    )
    click.echo(f"{click.style(f'gc {done.store}:', bold=True)} {told}, {size}{end}")


def _print_verification(found: "Verification") -> None:
    """What a verification has found."""
    verdict = click.style("erased", fg="green") if found.erased else click.style("not erased", fg="red")
    click.echo(f"{click.style(f'verify-removal {found.store}:', bold=True)} {verdict}")
    for reason in found.reasons:
        click.echo(f"  found        {reason}")
    for what in found.not_checked:
        click.echo(f"  not checked  {what}")
    for name, value in found.figures.items():  # beside their names, which fit any number
        click.echo(f"  {name:<46} {f'{value:,}' if isinstance(value, int) else f'{value:.2g}'}")
    click.echo(f"  sha256       {found.digest}")


def _print_job(described: "Report") -> None:
    """What a job will do."""
    from vczstore.sizes import human_size

    job = described["job"]
    click.echo(f"{click.style(job['store'], bold=True)}  job {job['id']}, on {job['executor']}")
    visible = "in one commit" if job["atomic"] else "one by one, each safe to stop: plain Zarr has no transactions"
    click.echo(f"  steps become visible {visible}")
    for note in job.get("notes", ()):
        click.echo(f"  {note}")
    for i, step in enumerate(described["steps"], 1):
        head = click.style(f"{i}. {step['operation']}", bold=True)
        click.echo(
            f"{head}: {step['summary']}; {step['samples_before']:,} samples before, {step['samples_after']:,} after"
        )
        for what, text in step.get("notes", {}).items():
            click.echo(f"   {what:<9} {text}")
        click.echo(f"   chunks    {step['encoded_chunks']:,} copied as they are, {step['decoded_chunks']:,} encoded")
        click.echo(f"   reads     at most {human_size(step['bytes_read'])} (decoded), {step['get_requests']:,} GET")
        click.echo(f"   writes    at most {human_size(step['bytes_written'])} (decoded), {step['put_requests']:,} PUT")
        click.echo(
            f"   tasks     {step['tasks']:,}, the largest is projected to need {human_size(step['projected_mem'])}"
        )
    for name in job["tags"]:
        click.echo(f"{click.style('tag', bold=True)}: {name}")
    if not described["steps"] and not job["tags"]:
        click.echo("nothing to do: all of it is applied already")
    elif described["estimate"] is not None:
        found = described["estimate"]
        dollars = "" if found["dollars"] is None else f", ${found['dollars']:.4f} at list prices of {found['date']}"
        click.echo(f"{click.style('estimate', bold=True)}: {found['seconds']:.1f} s{dollars}")


def _print_result(result: "JobResult") -> None:
    """What a job has done."""
    at = f", snapshot {result.snapshot}" if result.snapshot else ""
    head = click.style(f"job {result.id} on {result.store}:", bold=True)
    for note in result.job.notes:
        click.echo(note)
    if result.status == "nothing to do":
        click.echo(f"{head} already applied{at}")
        return
    for done in result.results:
        before = f", {done.resumed_chunks:,} chunks by a run that was stopped" if done.resumed_chunks else ""
        click.echo(
            f"{click.style(f'{done.operation}:', bold=True)} {done.plan.summary} in {done.seconds:.2f} s{before}"
        )
        _print_notes(done)
    for name in result.tags:
        click.echo(f"{click.style('tag:', bold=True)} {name}")
    click.echo(f"{head} done{at}")


def _print_checked(found: "Checked") -> None:
    """What an executor has said of itself."""
    from vczstore.sizes import human_size

    total = "" if found.total_mem is None else f" of {human_size(found.total_mem)}"
    click.echo(f"{click.style(found.executor, bold=True)}: {'ok' if found.ok else 'its versions do not fit'}")
    click.echo(f"  first task  {found.first_seconds:.2f} s, then {found.task_seconds:.2f} s a task")
    click.echo(f"  memory      {human_size(found.peak_mem)}{total}")
    for name, here in found.driver.items():
        there = found.worker.get(name)
        other = f", here {here or 'missing'}" if name in found.differ else ""
        click.echo(f"  {name:<11} {there or 'missing'}{other}")


def _print_verified(found: "Verified") -> None:
    """What is wrong with a store, one line each, after what was looked at."""
    head = click.style(f"verify {found.store}:", bold=True)
    verdict = f"{len(found.errors):,} errors" if len(found.errors) > 1 else "1 error" if found.errors else "consistent"
    chunks = "" if found.chunks is None else f", {found.chunks:,} chunks stored, {found.absent:,} absent"
    what = "metadata and sample IDs" if found.quick else "all"
    click.echo(f"{head} {verdict}; looked at {what} of {found.arrays:,} arrays{chunks}, in {found.seconds:.2f} s")
    for name, n in found.outside.items():
        click.echo(f"  {name}: {n:,} chunks outside its grid, which no reader sees; a stopped append leaves such")
    for finding in found.errors:
        click.echo(f"  {click.style('error', fg='red')} {finding}")


def _print_repaired(found: "Repaired") -> None:
    """What was repaired, one line each, and what was not."""
    head = click.style(f"repair {found.store}:", bold=True)
    dry = " (dry run, nothing was written)" * found.dry_run
    left = (
        f"; {len(found.errors):,} error{'s' * (len(found.errors) > 1)} left that repair does not fix"
        if found.errors
        else ""
    )
    note = f"; {found.note}" if found.note else ""
    click.echo(f"{head} {f'{len(found.done):,} repaired' if found.done else 'nothing to repair'}{note}{left}{dry}")
    for what in found.done:
        click.echo(f"  {click.style('repaired', fg='green')} {what}")
    for finding in found.errors:
        click.echo(f"  {click.style('error', fg='red')} {finding}")


def _print_info(found: "Info") -> None:
    from vczstore.sizes import human_size

    removed = f" ({found.removed_samples:,} removed)" if found.removed_samples else ""
    chunks = (
        "none"
        if found.samples_chunk_size is None
        else f"{found.variants_chunk_size:,} variants x {found.samples_chunk_size:,} samples"
    )
    version = found.vcf_zarr_version or "of no version"
    stored = "" if found.stored_bytes is None else f", {human_size(found.stored_bytes)} stored"
    rows = {
        "store": f"{found.store} ({found.backend}, Zarr format {found.zarr_format}, VCF Zarr {version})",
        "samples": f"{found.samples:,}{removed}",
        "variants": f"{found.variants:,}",
        "chunks": chunks,
        "fields": ", ".join(found.fields),
        "bytes": f"{human_size(found.decoded_bytes)} decoded{stored}",
    }
    if found.stale:
        fields = ",".join(found.stale)
        rows["stale"] = f"INFO {fields}, of samples as they were; vczstore recompute {found.store} --fields {fields}"
    if found.snapshot:
        rows["snapshot"] = found.snapshot
        rows["tags"] = ", ".join(found.tags) or "none"
    for name, value in rows.items():
        click.echo(f"{click.style(f'{name:<10}', bold=True)}{value}")
    for i, entry in enumerate(found.history):
        head = click.style(f"{'history' if i == 0 else '':<10}", bold=True)
        click.echo(f"{head}{entry['time']}  {entry['id']}  {entry['message']}")
