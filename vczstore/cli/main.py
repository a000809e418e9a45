"""The command line: commands generated from the declarations of operations, and commands for jobs and executors.

Only click and declarations are imported until a command runs, so that ``--help`` is quick.
"""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from inspect import cleandoc
from pathlib import Path
from typing import Any

import click

from vczstore.choices import AMERICAN
from vczstore.cli.options import executor_name, in_words_of_commands, option_of, output, parameters, samples_of, shared
from vczstore.cli.render import confirm, fail_as_json, running, show, wants_progress, writing_out
from vczstore.errors import OptionError
from vczstore.execution import operations
from vczstore.execution.naming import DONE, NOTHING_WRITTEN, naming, when_begun


class Command(click.Command):
    """
    A command whose help and parameters are made on first use, since the list of commands does not need them.

    Parameters
    ----------
    name, short_help, more
        As in `click.Command`.
    group
        The group of commands in which the help lists it.
    make
        Returns the help and the parameters.
    """

    def __init__(
        self, name: str, group: str, short_help: str, make: Callable[[], tuple[str, list[click.Parameter]]], **more: Any
    ):
        super().__init__(name, short_help=short_help, **more)
        self.listed_in, self.make = group, make

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return its arguments and options, made on first use."""
        if not self.params:
            try:
                self.help, self.params = self.make()
            except OptionError as error:
                raise click.UsageError(str(error)) from error
        return super().get_params(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; with ``--json``, a usage error is printed as JSON, too."""
        as_json = "--json" in args
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            fail_as_json(ctx, error.format_message(), error.exit_code, as_json=as_json)
            raise

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write its help."""
        self.get_params(ctx)
        super().format_help_text(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write its options, each under its heading."""
        for title, options in self.sections(ctx).items():
            with formatter.section(title):
                formatter.write_dl([record for option in options if (record := option.get_help_record(ctx))])

    def sections(self, ctx: click.Context) -> dict[str, list[click.Option]]:
        """Return its options that are not hidden, by the headings of the help."""
        by_title: dict[str, list[click.Option]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and not param.hidden:
                title = "Output" if param is self.get_help_option(ctx) else getattr(param, "section", "Options")
                by_title.setdefault(title, []).append(param)
        return by_title


def _of_operation(name: str, *, of_set: bool = False) -> Command:
    """Return the command of an operation; with `of_set`, one that refuses single stores."""

    def make() -> tuple[str, list[click.Parameter]]:
        operation = operations.find(name)
        text = re.split(r"\n(?=\w+\n-{3,}\n)", cleandoc(operation.__doc__ or ""))[0]
        return in_words_of_commands(text, operation), parameters(operation)

    return Command(name, *operations.listed(name), make, callback=lambda **values: _run(name, values, of_set=of_set))


class _Commands(click.Group):
    """The commands defined in this module, and one for each operation, in groups."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*self.commands, *operations.names()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name."""
        cmd_name = AMERICAN.get(cmd_name, cmd_name)
        if cmd_name not in self.commands and cmd_name in operations.names():
            self.commands[cmd_name] = _of_operation(cmd_name)
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, each in its group."""
        names = self.list_commands(ctx)
        width = max(map(len, names))
        groups: dict[str, list[tuple[str, str]]] = {group: [] for group in operations.GROUPS}
        for name in names:
            command = self.get_command(ctx, name)
            assert command is not None
            row = name.ljust(width), command.short_help or ""
            groups.setdefault(getattr(command, "listed_in", "jobs"), []).append(row)
        for group, rows in groups.items():
            if rows:
                with formatter.section(operations.GROUPS.get(group, group)):
                    formatter.write_dl(rows)


SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
"""Context settings of all commands; by default, click limits the help to 80 columns."""


@click.group(cls=_Commands, name="vczstore", context_settings=SETTINGS)
@click.version_option(package_name="vczstore")
def main() -> None:
    """Append, update, remove, tag and copy samples of a VCF Zarr store, in one atomic commit."""


def _run(name: str, values: dict[str, Any], *, of_set: bool = False) -> None:
    """Run an operation with the parsed values of its command, and print its outcome."""
    from vczstore.execution.progress import showing
    from vczstore.stores.sets import PART, is_template

    kind = operations.find(name)
    if of_set and not is_template(values["store"]):
        raise click.UsageError(f"A set is named with {PART}, as in 'cohort/{PART}.icechunk'; found {values['store']}.")
    with running(values.pop("verbose")):
        as_json, dry_run = values.pop("as_json"), values.pop("dry_run", False)
        values = samples_of(kind, values)
        own = {field.name: values.pop(field.name) for field in fields(kind) if field.name in values}
        has_bars = "progress" in kind.uses and wants_progress(values.pop("progress"))
        of = f"{name} {own['store']}"
        progress_display = partial(showing, has_bars, values.pop("log_file", None), of)
        with naming(name) as standing, progress_display() as progress:  # before the slow imports
            operation = kind(**{name: value for name, value in own.items() if value is not None})
            from vczstore.execution.options import Options
            from vczstore.execution.sets import entrance

            opts = Options(progress=progress, **values)
            to_confirm = operation.to_confirm if not dry_run and sys.stdin.isatty() else None
            is_dry = dry_run or to_confirm is not None
            standing.state = when_begun(operation, dry_run=is_dry)
            outcome = entrance.run(to_confirm or operation, opts, dry_run=is_dry)
        if to_confirm is not None:
            confirm(outcome)
            with naming(name) as standing, progress_display() as progress:
                standing.state = when_begun(operation, dry_run=False)
                outcome = entrance.run(operation, opts.but(progress=progress))
        with naming(name) as standing:
            standing.state = NOTHING_WRITTEN if dry_run else DONE
            show(outcome, as_json=as_json, is_all=getattr(outcome, "is_all", False))
        if not getattr(outcome, "ok", True):
            sys.exit(1)


# ---- commands that are not operations -------------------------------------------------------


def _command(
    *params: click.Parameter, parent: click.Group = main, group: str = "jobs"
) -> Callable[[Callable[..., None]], None]:
    """Return a decorator that adds a function as a command, with the options that every command has."""

    def decorate(function: Callable[..., None]) -> None:
        text = cleandoc(function.__doc__ or "")

        def run(*, verbose: int, **values: Any) -> None:
            with running(verbose):
                function(**values)

        name = function.__name__.replace("_", "-")
        summary = text.partition("\n")[0]
        parent.add_command(Command(name, group, summary, lambda: (text, [*params, *output()]), callback=run))

    return decorate


_JOB = (
    click.Argument(["file"], metavar="FILE", type=click.Path(allow_dash=True)),
    click.Option(
        ["--set", "overrides"],
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key of the file, such as --set store=other.vcz. Repeatable.",
    ),
    *(option_of(field, default=None, show_default=False) for field in shared("workers")),
)
"""The parameters with which a job file is read; flags override keys of the file, as ``--set`` does."""


def _overrides(overrides: tuple[str, ...], **flags: Any) -> list[str]:
    """Append the flags that were given to the values of ``--set``."""
    given = {name.replace("_", "-"): value for name, value in flags.items() if value is not None}
    return [*overrides, *(f"{name}={json.dumps(value)}" for name, value in given.items())]


@_command(
    *_JOB, click.Option(["--svg"], type=click.Path(dir_okay=False, writable=True), help="Draw the plan into this file.")
)
def plan(file: str, svg: str | None, as_json: bool, **flags: Any) -> None:
    """Compile a job file and show what it would do; write nothing."""
    from vczstore.jobs import report
    from vczstore.jobs.describe import Described, DescribedSet, describe_job
    from vczstore.jobs.run import plan_job
    from vczstore.jobs.sets import CompiledSet

    compiled = plan_job(file, _overrides(**flags))
    if isinstance(compiled, CompiledSet):
        if svg:
            raise OptionError("plan: --svg draws the plan of one store, and this job has one for each part of a set")
        parts = {name: describe_job(part) for name, part in compiled.parts.items()}
        show(DescribedSet(compiled.store, parts), as_json=as_json, is_all=True)
        return
    described = describe_job(compiled)
    if svg:
        Path(svg).write_text(report.plan_svg(described), encoding="utf-8", errors="backslashreplace")
    show(Described(described), as_json=as_json, is_all=True)


@_command(
    *_JOB,
    click.Option(
        ["--report"], type=click.Path(file_okay=False), metavar="DIR", help="Write report.json and report.html here."
    ),
    click.Option(
        ["--if-busy"],
        type=click.Choice(["wait", "exit"]),
        default="exit",
        show_default=True,
        help="What to do while another job runs on the store; exit means status 3.",
    ),
    *(option_of(field) for group in ("progress", "lock") for field in shared(group)),
)
def run(
    file: str,
    report: str | None,
    if_busy: str,
    progress: bool | None,
    log_file: str | None,
    no_lock: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Apply the steps of a job file that no earlier run has applied, in one commit.

    Exit status: 0 done, or nothing to do; 1 failed; 2 wrong usage, or no job file; 3 busy; 4 conflict with another
    writer. If it is not 0, nothing was committed on Icechunk, unless the message says that only a tag, or a step after
    the commit such as a check, has failed; on plain Zarr the finished steps remain.
    """
    from vczstore.execution.progress import Display, showing

    with naming("run") as standing:
        with showing(wants_progress(progress), log_file, f"run {file}") as display:
            from vczstore.jobs.results import SetJobResult
            from vczstore.jobs.run import run_job

            overrides = [*_overrides(**flags), *["store.no-lock=true"] * no_lock]
            result = run_job(file, overrides, wait=if_busy == "wait", report=report, progress=display)
            if isinstance(display, Display):
                display.of += f" on {result.store}"
                display.of += "" if isinstance(result, SetJobResult) else f", job {result.id}"
        standing.state = DONE
        show(result, as_json=as_json)


@_command()
def schema(as_json: bool) -> None:
    """Print the JSON Schema of job files.

    With it in a file, an editor completes and checks job files that begin with the comment
    # yaml-language-server: $schema=FILE
    """
    from vczstore.jobs import reference

    with writing_out(is_all=True):
        click.echo(json.dumps(reference.schema(), indent=2))


@main.group(name="set", short_help="Make a set of stores, or look at it.")
def of_sets() -> None:
    """Make a set of stores, such as one for each chromosome, or look at it.

    The name of a set has {part} in it. All other commands take such a name, too.
    """


for _name in ("create", "info", "verify"):
    of_sets.add_command(_of_operation(_name, of_set=True))


@main.group(short_help="Try an executor.")
def executor() -> None:
    """Try an executor."""


@_command(click.Argument(["name"], metavar="NAME|FILE", callback=executor_name), parent=executor)
def check(name: str, as_json: bool) -> None:
    """Run a few tasks on an executor, and compare its workers' versions with those here.

    Exit status 1 if Python, cubed, icechunk or zarr differ.
    """
    from vczstore.execution import executor_check

    checked = executor_check.check(name)
    show(checked, as_json=as_json)
    if not checked.ok:
        sys.exit(1)


@_command(
    click.Option(["--directory"], default="vczstore-demo", show_default=True, help="Where the demo's stores are made."),
    group="other",
)
def demo(directory: str, as_json: bool) -> None:
    """Make a small cohort, append two batches to it, remove a sample and tag a release."""
    from vczstore.cli import demo as module

    steps = module.run(directory, err=as_json)
    if as_json:
        click.echo(json.dumps(steps))
