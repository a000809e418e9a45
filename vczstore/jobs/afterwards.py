"""Run the operations that follow a job's commit: checks, publishing, tags, exports, and cleaning up."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from vczstore.errors import CheckError, Interrupted, SampleError, VczstoreError
from vczstore.execution import engine
from vczstore.execution.naming import naming, when_begun
from vczstore.execution.operations import NAMES, OWN_COMMIT, PUBLISHES, Edit, Operation
from vczstore.execution.options import Options
from vczstore.execution.results import Found, FoundInParts
from vczstore.stores.lock import HeldLock
from vczstore.stores.object_store import plain_errors


@dataclass(frozen=True)
class Done:
    """An operation, and its result."""

    operation: Operation
    found: Found

    @property
    def unchanged(self) -> bool:
        """Whether the operation was a no-op, such as an export that exists already."""
        return bool(getattr(self.found, "unchanged", False))


def afterwards(
    operations: Sequence[Operation],
    do: Callable[[Operation], Found],
    give_tags: Callable[[Found | None], None],
    branch: str | None,
    committed: str,
) -> Iterator[Done]:
    """
    Run the operations that follow the commit, in order, and yield each with its result.

    Parameters
    ----------
    operations
        The operations, in order of their phases.
    do
        Runs one operation within the job, and returns its outcome.
    give_tags
        Creates the tags; its argument is the result of the last operation with a commit of its own, None without any.
    branch
        The job's branch, None if it has none.
    committed
        Describes the job's commits for error messages; empty if it made none.

    Raises
    ------
    CheckError
        If a check finds a problem; the operations after it are not run.
    VczstoreError
        If anything else fails.
    Interrupted
        On a keyboard interrupt. All messages end with `committed`.
    """
    is_published, last_commit = branch is None, None
    try:
        for operation in operations:
            if operation.phase < NAMES:
                done = Done(operation, do(operation))
                yield done
                _require(done)
                is_published |= operation.phase == PUBLISHES
                last_commit = done.found if operation.phase == OWN_COMMIT else last_commit
        give_tags(last_commit)
        for operation in operations:
            if operation.phase > NAMES:
                yield Done(operation, do(operation))
    except (VczstoreError, KeyboardInterrupt) as error:
        if not committed:
            raise
        where = "" if is_published else f" on the branch {branch}, and not published"
        # the output of a job is logged: leave out hints with sample IDs
        message = error.message if isinstance(error, SampleError) else str(error) or "run: interrupted"
        kind = Interrupted if isinstance(error, KeyboardInterrupt) else type(error)
        raise kind(f"{message}; {committed}{where}") from error


def perform(operation: Operation, options: Options, lock: HeldLock) -> Found:
    """Run an operation on a store within a job."""
    options = within(operation, options)
    with naming(operation.called) as standing, plain_errors(operation.store):
        if isinstance(operation, Edit):
            return cast("Found", engine.run(operation, options, standing))
        standing.state = when_begun(operation, dry_run=False)
        return operation.perform_within(options, lock)


def within(operation: Operation, options: Options) -> Options:
    """Return the job's options for an operation, without the branch if the operation takes none."""
    return options if "branch" in operation.uses else options.but(branch=None)


def _require(done: Done) -> None:
    """Raise a `CheckError` if a check found a problem."""
    if not getattr(done.found, "ok", True):
        problems = "; ".join(_problems(done.found)[:3])
        raise CheckError(f"{done.operation.called}: {done.operation.store}: {problems}")


def _problems(found: Found) -> list[str]:
    """Return the problems that a check found; for a set, with the names of the parts."""
    if isinstance(found, FoundInParts):
        failed = {name: _problems(part) for name, part in found.parts.items() if not getattr(part, "ok", True)}
        return [*found.errors, *(f"{name}: {'; '.join(problems[:3])}" for name, problems in failed.items())]
    return [line.strip().removeprefix("error ") for line in list(found.lines())[1:]]
