"""Whether a store is whole."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from plans.core.model import Survey
from plans.maintenance.check_metadata import metadata_errors
from plans.maintenance.check_variants import contig_errors
from plans.maintenance.findings import Finding, WithErrors
from plans.maintenance.scans import data_scans
from vczstore.execution.engine import run_survey
from vczstore.execution.options import Options
from vczstore.stores.base import Store

OPERATION = "verify"


@dataclass(frozen=True)
class Verified(WithErrors):
    """
    What was found in a store.

    Attributes
    ----------
    store, snapshot
        Which store was looked at, and its snapshot; None on plain Zarr.
    quick
        Whether metadata and sample IDs are all that was looked at.
    arrays
        How many arrays there are.
    chunks, absent
        How many chunks are stored, and how many are not and stand for the fill value, as Zarr allows. None if quick.
    outside
        How many chunks each array has outside its grid, where no reader looks; arrays without any are left out.
    errors
        What is wrong, sorted by array and chunk.
    seconds
        What it took.
    """

    store: str
    snapshot: str | None
    quick: bool
    arrays: int
    chunks: int | None
    absent: int | None
    outside: Mapping[str, int]
    errors: list[Finding]
    seconds: float = field(compare=False)

    def lines(self) -> list[str]:
        """What the command prints: what was looked at, and what is wrong, a line each."""
        n = len(self.errors)
        verdict = f"{n:,} errors" if n > 1 else "1 error" if n else "consistent"
        chunks = "" if self.chunks is None else f", {self.chunks:,} chunks stored, {self.absent:,} absent"
        what = "metadata and sample IDs" if self.quick else "all"
        looked = f"looked at {what} of {self.arrays:,} arrays{chunks}, in {self.seconds:.2f} s"
        return [
            f"verify {self.store}: {verdict}; {looked}",
            *(
                f"  {name}: {n:,} chunks outside its grid, which no reader sees; a stopped append leaves such"
                for name, n in self.outside.items()
            ),
            *(f"  error {finding}" for finding in self.errors),
        ]


def verify_store(store: Store, options: Options, *, quick: bool) -> Verified:
    """
    Look at all of a store, or at its metadata and sample IDs.

    Parameters
    ----------
    store
        The store.
    quick
        Whether to leave the chunks alone.
    options
        What runs the tasks.
    """
    started = time.perf_counter()
    vcz = store.open()
    errors = set(metadata_errors(vcz))
    found = [] if quick else run_survey(Survey(OPERATION, tuple(data_scans(vcz)), options.memory), store, options)
    seen = [one for ones in found for one in ones]
    errors.update(finding for one in seen for finding in one.errors)
    errors.update(contig_errors(seen))
    outside: Counter[str] = Counter()
    for one in seen:
        outside[one.array] += one.outside
    return Verified(
        store=store.label,
        snapshot=vcz.snapshot,
        quick=quick,
        arrays=len(vcz.arrays),
        chunks=None if quick else sum(one.stored for one in seen),
        absent=None if quick else sum(one.absent for one in seen),
        outside={name: n for name, n in sorted(outside.items()) if n},
        errors=sorted(errors, key=lambda finding: finding.order),
        seconds=time.perf_counter() - started,
    )
