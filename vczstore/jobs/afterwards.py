"""What a job does when its steps are committed: checks, publishing, tags, exports, and cleaning up."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vczstore.errors import CheckError, SampleError, VczstoreError
from vczstore.execution import engine
from vczstore.execution.operations import NAMES, PUBLISHES, Edit, Operation
from vczstore.execution.options import Options
from vczstore.execution.results import Found
from vczstore.jobs.compile import CompiledJob
from vczstore.stores.object_store import plain_errors


@dataclass(frozen=True)
class Held:
    """The lock of the job, as operations within it see it."""

    check: Callable[[], None]


@dataclass(frozen=True)
class Done:
    """One operation, and what it has done or found."""

    operation: Operation
    found: Found


def afterwards(compiled: CompiledJob, snapshot: str | None, options: Options, lock: Held) -> Iterator[Done]:
    """
    Do what follows the commit, one thing after the other.

    Parameters
    ----------
    compiled
        The job.
    snapshot
        What its steps have made, which its tags name.
    options
        How it runs.
    lock
        The lock that it holds.

    Raises
    ------
    CheckError
        If a check finds something; what comes after it is not done.
    VczstoreError
        If anything else fails. Either way the message says what is done.
    """
    is_published = compiled.job.branch is None
    try:
        for operation in compiled.after:
            if operation.phase < NAMES:
                done = perform(operation, options, lock)
                yield done
                _require(done)
                is_published |= operation.phase == PUBLISHES
        with plain_errors(compiled.store.label):
            for name in compiled.tags:
                compiled.store.history.create_tag(name, snapshot)
        for operation in compiled.after:
            if operation.phase > NAMES:
                yield perform(operation, options, lock)
    except VczstoreError as error:
        if not compiled.plans:
            raise
        branch = "" if is_published else f" on the branch {compiled.job.branch}, and not published"
        told = error.message if isinstance(error, SampleError) else error  # what a job prints is logged
        raise type(error)(f"{told}; what the steps of the job do is committed{branch}") from error


def perform(operation: Operation, options: Options, lock: Held) -> Done:
    """Do an operation within a job."""
    if "branch" not in operation.uses:
        options = options.but(branch=None)
    if isinstance(operation, Edit):
        return Done(operation, engine.run(operation, options))
    with plain_errors(operation.store):
        return Done(operation, operation.perform_within(options, lock))


def _require(done: Done) -> None:
    """Raise a `CheckError` if a check has found something."""
    if not getattr(done.found, "ok", True):
        problems = [line.strip().removeprefix("error ") for line in list(done.found.lines())[1:]]
        raise CheckError(f"{done.operation.called}: {done.operation.store}: {'; '.join(problems[:3])}")
