"""Run jobs: several steps on one store, compiled together, run in one transaction, and each applied exactly once."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from vczstore.errors import BusyError, SampleError, VczstoreError
from vczstore.execution.conversions import Conversions
from vczstore.execution.engine import run_plans
from vczstore.execution.naming import naming
from vczstore.execution.options import MAX_RETRIES
from vczstore.execution.progress import Progress, showing
from vczstore.execution.results import Found, Result
from vczstore.execution.retry import retried
from vczstore.jobs.afterwards import afterwards, perform
from vczstore.jobs.compile import CompiledJob, branches_of, compile_job, existing_store, options_of
from vczstore.jobs.model import Job, load
from vczstore.jobs.notify import Outcome
from vczstore.jobs.results import JobResult, SetJobResult
from vczstore.jobs.sets import CompiledSet, compile_set, run_set
from vczstore.reports.page import report_folder
from vczstore.stores.lock import HeldLock
from vczstore.stores.object_store import plain_errors
from vczstore.stores.resolve import refuse_read_only

log = logging.getLogger(__name__)


def plan_job(file: str | Path, overrides: Sequence[str] = ()) -> CompiledJob | CompiledSet:
    """
    Compile a job file; for a set of stores, for each of its parts. Nothing is written.

    Parameters
    ----------
    file
        The job file; ``-`` is standard input.
    overrides
        ``KEY=VALUE`` each, such as ``"executor=processes"``: they override the file.

    Raises
    ------
    JobFileError
        If the file is not a valid job.
    VczstoreError
        If a step cannot be compiled.

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
    """Replace command-line flags in error messages by the corresponding keys of a job file."""

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
        message = str(error)
        if isinstance(error, SampleError):
            message = error.message  # without the hint, which may name samples: the output of a job is logged
            log.debug("%s", error.hint)
        message = _FLAG.sub(key, message)
        if message == str(error):
            raise
        raise type(error)(message) from error


def run_job(
    file: str | Path,
    overrides: Sequence[str] = (),
    *,
    wait: bool = False,
    report: str | Path | None = None,
    progress: Progress | bool | None = None,
) -> JobResult | SetJobResult:
    """
    Run what no earlier run of a job has applied, in one transaction; on a set of stores, for all of them or none.

    Parameters
    ----------
    file, overrides
        As in `plan_job`.
    wait
        Whether to wait while another job runs on the store.
    report
        A folder for ``report.json`` and ``report.html``; None writes no report.
    progress
        True to show progress on standard error; or a function that is called for every task that ends, with the phase,
        and the numbers of its ended and of all its tasks.

    Raises
    ------
    BusyError
        If another job runs on the store, and `wait` is False.
    StaleError
        If the store was changed concurrently while the job ran.
    VczstoreError
        If the file is not a valid job, a step cannot be compiled, a check finds a problem, or storage fails. Then
        nothing was committed, unless an operation after the commit failed; on plain Zarr, finished steps remain.
    """
    job = load(file, overrides)
    outcome = Outcome(job)
    try:
        with naming("run") as standing:
            standing.state = "it may be done, or a part of it; run the job again, which does what is not done yet"
            folder = None if report is None else Path(report)
            with report_folder(folder), outcome.reported(folder), _keys_for_flags():
                refuse_read_only("run", job.store.url)
                run = run_set if job.is_of_set else _run_on_store
                result = run(job, outcome, wait=wait, progress=progress)
    except BusyError:  # without notification: the other run will send its own
        raise
    except (Exception, KeyboardInterrupt) as error:
        outcome.notify(error)
        raise
    outcome.notify()
    return result


def _run_on_store(job: Job, outcome: Outcome, *, wait: bool, progress: Progress | bool | None) -> JobResult:
    """Run a job under the store's lock, with retries after concurrent commits."""
    with (
        existing_store(job.store.url, options_of(job).but(branch=None)).exclusive_lock(wait=wait) as lock,
        showing(progress) as shown,
        Conversions(job.work_dir, shown) as conversions,
    ):

        def attempt() -> JobResult:
            compiled = _on_its_branch(compile_job(job, conversions), conversions)
            return run_compiled(compiled, outcome, lock, shown)

        result, n = retried(attempt, MAX_RETRIES, nullcontext)  # no retry lock: the store's lock is held
        result = outcome.result = replace(result, retries=n)
    return result


def _on_its_branch(compiled: CompiledJob, conversions: Conversions) -> CompiledJob:
    """Return the job compiled against its branch: for one compiled against main, prepare the branch and recompile."""
    branch, is_idle = compiled.job.branch, not (compiled.plans or compiled.after or compiled.tags)
    if branch is None or compiled.store.branch == branch or is_idle:
        return compiled
    branches_of(compiled.job).prepare(branch)
    return compile_job(compiled.job, conversions)


def run_compiled(
    compiled: CompiledJob, outcome: Outcome, lock: HeldLock, progress: Progress | None = None
) -> JobResult:
    """
    Run a compiled job: on Icechunk in one commit, on plain Zarr step by step.

    On Icechunk, unless the job sets ``resume: false``, an interrupted run is resumed: chunks already written are not
    written again, unless the store, a source, the job or a version has changed since, or garbage was collected. On
    plain Zarr the interrupted step is done again.

    Parameters
    ----------
    compiled
        The job, compiled against its branch.
    outcome
        The state of the run, which is updated.
    lock
        The lock of the store; its check is called when everything is written, and can abort the commit by raising.
    progress
        Called for every task that ends.

    Raises
    ------
    StaleError
        If the store has changed since the job was compiled.
    VczstoreError
        If a check finds a problem, or storage fails.
    """
    plans, job = compiled.plans, compiled.job
    outcome.compiled[""] = compiled
    options = options_of(job).but(progress=progress)
    journal = compiled.journal
    results: list[Result] = []
    if plans:
        results = run_plans(plans, *compiled.history, options, before_commit=lock.check, journal=journal)
    journal.delete()  # also that of an earlier run, interrupted after its commit
    with plain_errors(compiled.store.label):
        committed = result = outcome.result = JobResult.of(compiled, results)

    def give_tags(last_commit: Found | None) -> None:
        nonlocal result
        at = last_commit.snapshot if isinstance(last_commit, Result) else committed.snapshot
        with plain_errors(compiled.store.label):
            for name in compiled.tags:
                compiled.store.history.create_tag(name, at)
                result = outcome.result = result.with_tags(name)

    do = partial(perform, options=options, lock=lock)
    what_is_done = "what the steps of the job do is committed" if plans else ""
    for done in afterwards(compiled.after, do, give_tags, job.branch, what_is_done):
        result = outcome.result = result.with_done(done)
    return result
