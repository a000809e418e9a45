"""Check a store against limits on its sample count and call rates, and with a user's shell command."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, Protocol

import numpy as np
from zarr.types import AnyArray

from plans.core.memory import Memory
from plans.core.model import Survey, in_words
from plans.core.scan_reader import ScanReader
from vczstore.execution.engine import run_survey
from vczstore.execution.options import Options
from vczstore.stores.base import Store
from vczstore.vcz import arrays
from vczstore.vcz.model import REMOVED, Vcz, samples_axis

OPERATION = "check"
GENOTYPES, MAIN = "call_genotype", "main"

MOST_TASKS = 200
"""Approximate number of tasks that count calls; each reports one count per sample of a chunk column."""


@dataclass(frozen=True)
class Checked:
    """
    The result of checking a store against limits.

    Attributes
    ----------
    store, branch, snapshot
        Label of the store, and the branch and snapshot that were checked; the latter two None on plain Zarr.
    samples
        Number of samples that are not removed.
    looked_at
        Number of samples whose call rate was computed.
    least_call_rate
        The lowest of these call rates; None if none was computed.
    problems
        One line for each limit that is violated, and for a command that failed.
    """

    store: str
    branch: str | None
    snapshot: str | None
    samples: int
    looked_at: int
    least_call_rate: float | None
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}

    def lines(self) -> Iterator[str]:
        rate = "" if self.least_call_rate is None else f", call rates from {self.least_call_rate:.4f}"
        verdict = "as it should be" if self.ok else in_words({"problems": len(self.problems)})
        yield f"check {self.store}: {verdict}; {in_words({'samples': self.samples})}{rate}"
        yield from (f"  error {problem}" for problem in self.problems)


class Limits(Protocol):
    """Limits that a store should meet; None where there is no limit. See the options of ``check``."""

    @property
    def min_samples(self) -> int | None: ...
    @property
    def max_samples(self) -> int | None: ...
    @property
    def min_call_rate(self) -> float | None: ...
    @property
    def command(self) -> str | None: ...


def check_store(store: Store, limits: Limits, options: Options) -> Checked:
    """
    Check a store against limits.

    Parameters
    ----------
    store
        The store, opened on the branch to check.
    limits
        The limits, and the shell command to run.
    options
        Executor and memory of the tasks that count calls.
    """
    vcz = store.open()
    present = int(np.count_nonzero(vcz.sample_ids != REMOVED))
    problems: list[str] = []
    if limits.min_samples is not None and present < limits.min_samples:
        problems.append(f"the number of present samples is {present:,}, fewer than {limits.min_samples:,}")
    if limits.max_samples is not None and present > limits.max_samples:
        problems.append(f"the number of present samples is {present:,}, more than {limits.max_samples:,}")
    rates = np.empty(0)
    if limits.min_call_rate is not None:
        rates = _call_rates(store, vcz, options, problems)
        if low := int(np.count_nonzero(rates < limits.min_call_rate)):
            problems.append(
                f"the call rate is below {limits.min_call_rate} for {low:,} of {len(rates):,} samples, the lowest is "
                f"{rates.min():.4f}"
            )
    if limits.command is not None and (status := _run(limits.command, store, vcz)):
        problems.append(f"the command {limits.command!r} has ended with status {status}")
    least = float(rates.min()) if len(rates) else None
    return Checked(store.label, store.branch, vcz.snapshot, present, len(rates), least, tuple(problems))


def _run(command: str, store: Store, vcz: Vcz) -> int:
    """Run a shell command and return its exit status; its standard output is redirected to standard error."""
    variables = {"STORE": store.label, "BRANCH": store.branch or "", "SNAPSHOT": vcz.snapshot or ""}
    environment = {**os.environ, **{f"VCZSTORE_{name}": value for name, value in variables.items()}}
    sys.stderr.flush()
    done = subprocess.run(command, shell=True, env=environment, stdin=subprocess.DEVNULL, stdout=2, check=False)
    return done.returncode


# ---- call rates -----------------------------------------------------------------------------


def _call_rates(store: Store, vcz: Vcz, options: Options, problems: list[str]) -> np.ndarray:
    """Return the call rate of each sample; on a branch, only of samples that main does not have."""
    array = vcz.arrays.get(GENOTYPES)
    if array is None or not vcz.n_variants:
        problems.append(f"there are no calls: {f'the store has no {GENOTYPES}' if array is None else 'no variants'}")
        return np.empty(0)
    is_counted = vcz.sample_ids != REMOVED
    if store.branch not in (None, MAIN):
        is_counted &= ~np.isin(vcz.sample_ids, store.open(at=MAIN).sample_ids)
    columns = [c for c in arrays.cuts(array)[samples_axis(array) or 0].spans() if is_counted[c].any()]
    scans = tuple(_Calls(array, column, -(-MOST_TASKS // len(columns))) for column in columns)
    rates = np.zeros(vcz.n_samples)
    counted = run_survey(Survey(OPERATION, scans, options.memory), store, options)
    for column, counts in zip(columns, counted, strict=True):
        rates[column] = sum(counts) / vcz.n_variants
    selected: np.ndarray = rates[is_counted]
    return selected


@dataclass(frozen=True)
class _Calls:
    """
    Scan that counts, for each sample of a chunk column, the variants at which any allele is called.

    Attributes
    ----------
    array
        ``call_genotype``.
    samples
        The samples of one chunk column.
    n_tasks
        Approximate number of tasks for the column.
    """

    array: AnyArray
    samples: slice
    n_tasks: int

    def readers(self, memory: Memory) -> list[ScanReader]:
        """Scan with tasks of whole chunks of variants."""
        rows, n = arrays.outer_chunks(self.array)[0], self.array.shape[0]
        per_task = rows * ceil(ceil(n / rows) / self.n_tasks)
        return [ScanReader(self.look, n, per_task, arrays.decode_mem(self.array, 1))]

    def look(self, rows: slice) -> np.ndarray:
        """Return the number of called variants of each sample among some rows, reading chunk by chunk."""
        counts = np.zeros(self.samples.stop - self.samples.start, dtype="i8")
        step = arrays.outer_chunks(self.array)[0]
        for start in range(rows.start, rows.stop, step):
            region = (slice(start, min(start + step, rows.stop)), self.samples, slice(None))
            calls = arrays.read(self.array, region[: self.array.ndim])
            called = calls >= 0
            counts += (called.any(axis=2) if called.ndim > 2 else called).sum(axis=0)
        return counts
