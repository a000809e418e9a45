"""Jobs: several steps on one store, compiled once, run in one transaction, each done exactly once."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from vczstore.errors import BusyError, SampleError, StaleError, VczstoreError, words_of
from vczstore.execution.conversions import Conversions
from vczstore.execution.engine import run_plans
from vczstore.execution.naming import naming
from vczstore.execution.options import MAX_RETRIES
from vczstore.execution.progress import Progress, showing
from vczstore.execution.results import Found, Result
from vczstore.execution.retry import retried
from vczstore.jobs.afterwards import Held, afterwards, perform
from vczstore.jobs.compile import CompiledJob, branches_of, compile_job, options_of
from vczstore.jobs.describe import describe_job, history_of
from vczstore.jobs.journal import journal_of
from vczstore.jobs.model import Job, load
from vczstore.jobs.notify import Outcome
from vczstore.jobs.report import write_report
from vczstore.jobs.results import JobResult, SetJobResult
from vczstore.jobs.sets import CompiledSet, compile_set, run_set
from vczstore.reports.page import make_folder
from vczstore.stores.base import Check
from vczstore.stores.object_store import plain_errors
from vczstore.stores.resolve import refuse_read_only

log = logging.getLogger(__name__)

# ---- from a file ----------------------------------------------------------------------------


def plan_job(file: str | Path, overrides: Sequence[str] = ()) -> CompiledJob | CompiledSet:
    """
    Compile a job file; that of a set of stores for all its parts. Nothing is written.

    Parameters
    ----------
    file
        The job file; ``-`` is standard input.
    overrides
        ``KEY=VALUE`` each, such as ``"executor=processes"``: they take the place of what the file says.

    Raises
    ------
    JobFileError
        If the file is no job.
    VczstoreError
        If a step cannot work.

    Examples
    --------
    >>> plan_job("nightly.yaml", ["executor=processes"]).summary
    'append (1 source, 2 samples added), tag release-2'
    """
    with _keys_for_flags():
        job = load(file, overrides)
        return compile_set(job) if job.is_of_set else compile_job(job)


_FLAG = re.compile(
    r"--(?P<fields>drop|add)-field [\w.]+(?: --(?P=fields)-field [\w.]+)*"
    r"|--number (?P<number>[\w.]+=[RAG])"
    r"|--(?P<rule>new-variants|absent|on-ref-mismatch) (?P<value>\w+)"
    r"|--(?P<switch>allow-new-alleles)"
    r"|--(?P<harmonise>harmonise)\b"
)


@contextmanager
def _keys_for_flags() -> Iterator[None]:
    """Let errors name the keys of a job file where they name flags of the command line."""

    def key(match: re.Match[str]) -> str:
        if kind := match["fields"]:
            return f"{kind}-fields: [{', '.join(re.findall('-field ([^ ]+)', match[0]))}]"
        if match["number"]:
            return f"harmonise: {{numbers: [{match['number']}]}}"
        if match["rule"]:
            return f"harmonise: {{{match['rule']}: {match['value']}}}"
        return "harmonise: {allow-new-alleles: true}" if match["switch"] else "harmonise: true"

    try:
        yield
    except VczstoreError as error:
        told = str(error)
        if isinstance(error, SampleError):
            told = error.message  # what a job prints is logged
            log.debug("%s", error.hint)
        told = _FLAG.sub(key, told)
        if told == str(error):
            raise
        raise type(error)(told) from error


def run_job(
    file: str | Path,
    overrides: Sequence[str] = (),
    *,
    wait: bool = False,
    report: str | Path | None = None,
    progress: Progress | bool | None = None,
) -> JobResult | SetJobResult:
    """
    Do what a job file says and no earlier run has done, in one transaction; to all stores of a set, or to none.

    Parameters
    ----------
    file, overrides
        As in `plan_job`.
    wait
        Wait while another job runs on the store.
    report
        A folder for ``report.json`` and ``report.html``.
    progress
        True to show on standard error what is under way; or what is told of every task that ends.

    Raises
    ------
    BusyError
        If another job runs on the store, and `wait` is False.
    StaleError
        If something else has changed the store while the job ran.
    VczstoreError
        If the file is no job, a step cannot work, a check finds something, or storage fails. Nothing has been
        committed then, unless what failed is done after the commit; on plain Zarr, the steps that were finished are
        done.
    """
    job = load(file, overrides)
    outcome = Outcome(job)
    try:
        with naming("run") as standing:
            standing.state = "it may be done, or a part of it; run the job again, which does what is not done yet"
            folder = None if report is None else Path(report)
            result = _run_file(job, outcome, wait=wait, report=folder, progress=progress)
    except BusyError:  # another run is under way, of which will be told
        raise
    except (Exception, KeyboardInterrupt) as error:
        outcome.tell(error)
        raise
    outcome.tell()
    return result


def _run_file(
    job: Job, outcome: Outcome, *, wait: bool, report: Path | None, progress: Progress | bool | None
) -> JobResult | SetJobResult:
    """Run what a job file says, and write the report."""
    refuse_read_only("run", job.store.url)
    if report is not None:
        make_folder(report)
    if job.is_of_set:
        with _keys_for_flags():
            return run_set(job, outcome, wait=wait, report=report, progress=progress)
    with (
        _keys_for_flags(),
        options_of(job).but(branch=None).open(job.store.url).exclusive_lock(wait=wait) as lock,
        showing(progress) as told,
        Conversions(job.work_dir, told) as conversions,
    ):

        def attempt() -> JobResult:
            compiled = outcome.compiled = _on_its_branch(compile_job(job, conversions), conversions)
            try:
                result, failed = _run(compiled, None, told, lock.check)
            except (VczstoreError, KeyboardInterrupt) as error:
                if report is not None:
                    write_report(report, describe_job(compiled, error=words_of(error)))
                raise
            outcome.result = result
            if failed is not None:
                if report is not None:
                    write_report(report, describe_job(compiled, result, words_of(failed)))
                raise failed
            return result

        result, n = retried(attempt, MAX_RETRIES, nullcontext)  # those who wait for the lock are not in the way
        result = outcome.result = replace(result, retries=n)
    if report is not None:
        write_report(report, describe_job(result.job, result))
    return result


# ---- running --------------------------------------------------------------------------------


def run_compiled(
    compiled: CompiledJob,
    *,
    executor: str | None = None,
    progress: Progress | None = None,
    before_commit: Callable[[], None] | None = None,
) -> JobResult:
    """
    Run a job that is compiled: on Icechunk in one commit, on plain Zarr step by step.

    On Icechunk, unless the job says ``resume: false``, it goes on where a run of it was stopped, by any cause:
    chunks that were written are not written again, unless the store, a source, the job or a version has changed since,
    or garbage was collected. On plain Zarr the step in which a run was stopped is done again.

    Parameters
    ----------
    compiled
        From `compile_job`.
    executor
        What runs the tasks; what the job says by default.
    progress
        Told of every task that ends.
    before_commit
        Called when everything is written, and may still refuse.

    Raises
    ------
    StaleError
        If the store has changed since the job was compiled.
    VczstoreError
        If a check finds something, or storage fails.
    """
    result, error = _run(_on_its_branch(compiled), executor, progress, before_commit or (lambda: None))
    if error is not None:
        raise error
    return result


def _on_its_branch(compiled: CompiledJob, conversions: Conversions | None = None) -> CompiledJob:
    """A job that works on a branch, compiled against that; one that was compiled against main has it begin there."""
    branch, is_idle = compiled.job.branch, not (compiled.plans or compiled.after or compiled.tags)
    if branch is None or compiled.store.branch == branch or is_idle:
        return compiled
    branches_of(compiled.job).prepare(branch)
    return compile_job(compiled.job, conversions)


def _run(
    compiled: CompiledJob, executor: str | None, progress: Progress | None, check: Check
) -> tuple[JobResult, VczstoreError | KeyboardInterrupt | None]:
    """Run a job; what it has done, and what has failed after its commit."""
    plans, job, snapshot = compiled.plans, compiled.job, None
    options = options_of(job, executor).but(progress=progress)
    journal = journal_of(compiled)
    results: list[Result] = []
    if plans:
        try:
            results = run_plans(
                plans,
                *history_of(compiled),
                options,
                before_commit=check,
                journal=journal,
            )
        except StaleError:
            journal.delete()
            raise
        snapshot = results[-1].snapshot
    journal.delete()  # of a run that was stopped after its commit, too
    if not plans:
        with plain_errors(compiled.store.label):
            snapshot = compiled.applied_in or compiled.store.head
    result = JobResult(
        status="done" if plans else "nothing to do",
        id=compiled.id,
        store=compiled.store.label,
        snapshot=snapshot,
        tags=(),
        results=tuple(results),
        job=compiled,
    )

    def give_tags(left: Found | None) -> None:
        nonlocal result
        at = left.snapshot if isinstance(left, Result) else snapshot
        with plain_errors(compiled.store.label):
            for name in compiled.tags:
                compiled.store.history.create_tag(name, at)
                result = result.with_tags(name)

    do = partial(perform, options=options, lock=Held(check))
    committed = "what the steps of the job do is committed" if plans else ""
    try:
        for one in afterwards(compiled.after, do, give_tags, job.branch, committed):
            result = result.with_done(one)
    except (VczstoreError, KeyboardInterrupt) as error:
        return result, error
    return result, None
