"""Check a store against limits on its sample count and call rates, and with a user's shell command."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from math import ceil
from typing import Any

import numpy as np
from zarr.types import AnyArray

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


def check_store(
    store: Store,
    options: Options,
    *,
    min_samples: int | None,
    max_samples: int | None,
    min_call_rate: float | None,
    command: str | None,
) -> Checked:
    """
    Check a store against limits.

    Parameters
    ----------
    store
        The store, opened on the branch to check.
    options
        Executor and memory of the tasks that count calls.
    min_samples, max_samples, min_call_rate, command
        The limits, and a shell command to run; each may be None.
    """
    vcz = store.open()
    present = int(np.count_nonzero(vcz.sample_ids != REMOVED))
    problems: list[str] = []
    if min_samples is not None and present < min_samples:
        problems.append(f"the number of present samples is {present:,}, fewer than {min_samples:,}")
    if max_samples is not None and present > max_samples:
        problems.append(f"the number of present samples is {present:,}, more than {max_samples:,}")
    rates = np.empty(0)
    if min_call_rate is not None:
        rates = _call_rates(store, vcz, options, problems)
        if low := int(np.count_nonzero(rates < min_call_rate)):
            problems.append(
                f"the call rate is below {min_call_rate} for {low:,} of {len(rates):,} samples, the lowest is "
                f"{rates.min():.4f}"
            )
    if command is not None and (status := _run(command, store, vcz)):
        problems.append(f"the command {command!r} has ended with status {status}")
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
    rows = arrays.outer_chunks(array)[0]
    per_task = rows * ceil(ceil(vcz.n_variants / rows) / ceil(MOST_TASKS / max(1, len(columns))))
    scans = tuple(
        ScanReader(partial(_count_called, array, column), vcz.n_variants, per_task, arrays.decode_mem(array, 1))
        for column in columns
    )
    rates = np.zeros(vcz.n_samples)
    counted = run_survey(Survey(OPERATION, scans, options.memory), store, options)
    for column, counts in zip(columns, counted, strict=True):
        rates[column] = sum(counts) / vcz.n_variants
    selected: np.ndarray = rates[is_counted]
    return selected


def _count_called(array: AnyArray, samples: slice, rows: slice) -> np.ndarray:
    """Return, for each sample of a chunk column, the number of some variants at which any allele is called."""
    counts = np.zeros(samples.stop - samples.start, dtype="i8")
    step = arrays.outer_chunks(array)[0]
    for start in range(rows.start, rows.stop, step):
        region = (slice(start, min(start + step, rows.stop)), samples, slice(None))
        called = arrays.read(array, region[: array.ndim]) >= 0
        counts += (called.any(axis=2) if called.ndim > 2 else called).sum(axis=0)
    return counts
