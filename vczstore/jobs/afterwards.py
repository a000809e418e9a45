"""What a job does when its steps are committed: checks, publishing, tags, exports, and cleaning up."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from vczstore.errors import CheckError, Interrupted, SampleError, VczstoreError
from vczstore.execution import engine
from vczstore.execution.naming import naming, when_begun
from vczstore.execution.operations import NAMES, OWN_COMMIT, PUBLISHES, Edit, Operation
from vczstore.execution.options import Options
from vczstore.execution.results import Found, FoundInParts
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

    @property
    def unchanged(self) -> bool:
        """Whether it has found nothing to do, such as an export that is there already."""
        return bool(getattr(self.found, "unchanged", False))


def afterwards(
    operations: Sequence[Operation],
    do: Callable[[Operation], Found],
    give_tags: Callable[[Found | None], None],
    branch: str | None,
    committed: str,
) -> Iterator[Done]:
    """
    Do what follows the commit, one thing after the other.

    Parameters
    ----------
    operations
        What follows, in its order.
    do
        Does one of them within the job.
    give_tags
        Makes the tags; it is given what the last operation with a commit of its own has done.
    branch
        That of the job.
    committed
        What a message says of the commits that the job has made; empty if it has made none.

    Raises
    ------
    CheckError
        If a check finds something; what comes after it is not done.
    VczstoreError
        If anything else fails. Either way the message says what is done.
    Interrupted
        If the user stops it.
    """
    is_published, left = branch is None, None
    try:
        for operation in operations:
            if operation.phase < NAMES:
                done = Done(operation, do(operation))
                yield done
                _require(done)
                is_published |= operation.phase == PUBLISHES
                left = done.found if operation.phase == OWN_COMMIT else left
        give_tags(left)
        for operation in operations:
            if operation.phase > NAMES:
                yield Done(operation, do(operation))
    except (VczstoreError, KeyboardInterrupt) as error:
        if not committed:
            raise
        where = "" if is_published else f" on the branch {branch}, and not published"
        # what a job prints is logged, without hints of samples
        told = error.message if isinstance(error, SampleError) else str(error) or "run: interrupted"
        kind = Interrupted if isinstance(error, KeyboardInterrupt) else type(error)
        raise kind(f"{told}; {committed}{where}") from error


def perform(operation: Operation, options: Options, lock: Held) -> Found:
    """Do an operation on a store within a job."""
    options = within(operation, options)
    if isinstance(operation, Edit):
        return cast("Found", engine.run(operation, options))
    with naming(operation.called) as standing, plain_errors(operation.store):
        standing.state = when_begun(operation, dry_run=False)
        return operation.perform_within(options, lock)


def within(operation: Operation, options: Options) -> Options:
    """The options of a job for an operation: with its branch, if it takes any."""
    return options if "branch" in operation.uses else options.but(branch=None)


def _require(done: Done) -> None:
    """Raise a `CheckError` if a check has found something."""
    if not getattr(done.found, "ok", True):
        problems = "; ".join(_problems(done.found)[:3])
        raise CheckError(f"{done.operation.called}: {done.operation.store}: {problems}")


def _problems(found: Found) -> list[str]:
    """What a check has found; of a set with the part in which it is."""
    if isinstance(found, FoundInParts):
        wrong = {name: _problems(one) for name, one in found.parts.items() if not getattr(one, "ok", True)}
        return [*found.errors, *(f"{name}: {'; '.join(problems[:3])}" for name, problems in wrong.items())]
    return [line.strip().removeprefix("error ") for line in list(found.lines())[1:]]
