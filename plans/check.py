"""Check: test a store against limits, and by a command."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vczstore.declarations import option
from vczstore.errors import OptionError
from vczstore.execution.operations import CHECKS, Operation

if TYPE_CHECKING:
    from plans.maintenance.check import Checked
    from vczstore.execution.options import Options


@dataclass(frozen=True, kw_only=True)
class Check(Operation):
    """
    Check a store against limits: the number of samples, their call rates, and the exit status of a command.

    On a branch, only the call rates of samples that main does not have are checked. In a job, the step runs after the
    commit of the other steps; if it fails, nothing is published. Exit status 1 if a check fails.

    Raises
    ------
    OptionError
        If there is nothing to check.

    Examples
    --------
    >>> check("cohort.vcz", min_samples=3, min_call_rate=0.5).ok
    True
    """

    group: ClassVar[str] = "look"
    uses: ClassVar[tuple[str, ...]] = ("store", "branch", "workers", "progress")
    is_step: ClassVar[bool] = True
    phase: ClassVar[int] = CHECKS
    step_examples: ClassVar[tuple[Any, ...]] = (
        {"min-call-rate": 0.95, "max-samples": 1000000},
        {"command": "./look.sh"},
    )

    min_samples: int | None = option(
        None, "The fewest samples that may be present.", metavar="N", bounds=(0, None), examples=(1000,)
    )
    max_samples: int | None = option(
        None, "The most samples that may be present.", metavar="N", bounds=(0, None), examples=(1000000,)
    )
    min_call_rate: float | None = option(
        None,
        "The least call rate of a sample, from 0 to 1: the share of variants at which an allele is called.",
        metavar="RATE",
        examples=(0.95,),
    )
    command: str | None = option(
        None,
        "A shell command, which fails the check if its exit status is not 0. It finds the store in VCZSTORE_STORE, the "
        "branch in VCZSTORE_BRANCH and the snapshot in VCZSTORE_SNAPSHOT.",
        metavar="COMMAND",
        examples=("./look.sh",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = (self.min_samples, self.max_samples, self.min_call_rate, self.command)
        if all(limit is None for limit in limits):
            raise OptionError("check: nothing to check; give a limit or a command")
        if self.min_call_rate is not None and not 0 <= self.min_call_rate <= 1:
            raise OptionError(f"check: min_call_rate is {self.min_call_rate}; give a number from 0 to 1")

    def perform(self, options: "Options", *, dry_run: bool) -> "Checked":
        from plans.maintenance.check import check_store

        return check_store(
            options.open(self.store),
            options,
            min_samples=self.min_samples,
            max_samples=self.max_samples,
            min_call_rate=self.min_call_rate,
            command=self.command,
        )
