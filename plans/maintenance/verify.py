"""Verify that a store is complete and consistent."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from plans.core.model import Survey
from plans.core.scan_reader import ScanReader
from plans.maintenance.check_blocks import BlockOrder
from plans.maintenance.check_chunks import Chunks, count_outside
from plans.maintenance.check_metadata import CALL, metadata_errors
from plans.maintenance.check_variants import Order, contig_errors
from plans.maintenance.findings import Finding, WithErrors
from vczstore.errors import VczstoreError
from vczstore.execution.engine import run_survey
from vczstore.execution.options import Options
from vczstore.stores.base import Store
from vczstore.vcz.missing import TEXT
from vczstore.vcz.model import REMOVED, SAMPLE_ID, Vcz, dimensions, has_grid, samples_axis

OPERATION = "verify"


@dataclass(frozen=True)
class Verified(WithErrors):
    """
    The result of verifying a store.

    Attributes
    ----------
    store, snapshot
        Label of the store, and the snapshot that was read; the latter None on plain Zarr.
    quick
        Whether only metadata and sample IDs were checked.
    arrays
        Number of arrays.
    chunks, absent
        Number of chunks that are stored, and that are absent and read as the fill value. None if `quick`.
    outside
        Number of chunks outside the grid of each array, which readers ignore; arrays without any are left out.
    errors
        The errors found, sorted by array and chunk.
    seconds
        Elapsed time.
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
        """Return the lines that the command prints: a summary, and one line for each problem."""
        n = len(self.errors)
        verdict = f"{n:,} errors" if n > 1 else "1 error" if n else "consistent"
        chunks = "" if self.chunks is None else f", {self.chunks:,} chunks stored, {self.absent:,} absent"
        scope = "metadata and sample IDs" if self.quick else "all"
        summary = f"looked at {scope} of {self.arrays:,} arrays{chunks}, in {self.seconds:.2f} s"
        return [
            f"verify {self.store}: {verdict}; {summary}",
            *(
                f"  {name}: {n:,} chunks outside its grid, which no reader sees; a stopped append leaves such"
                for name, n in self.outside.items()
            ),
            *(f"  error {finding}" for finding in self.errors),
        ]


def verify_store(store: Store, options: Options, *, quick: bool) -> Verified:
    """
    Verify a store.

    Parameters
    ----------
    store
        The store.
    quick
        Whether to check metadata and sample IDs only.
    options
        Executor and memory of the tasks.
    """
    started = time.perf_counter()
    vcz = store.open()
    errors = set(metadata_errors(vcz))
    results = [] if quick else run_survey(Survey(OPERATION, tuple(_data_scans(vcz)), options.memory), store, options)
    reports = [report for of_scan in results for report in of_scan]
    errors.update(finding for report in reports for finding in report.errors)
    errors.update(contig_errors(reports))
    outside: Counter[str] = Counter()
    for report in reports:
        outside[report.array] += report.outside
    return Verified(
        store=store.label,
        snapshot=vcz.snapshot,
        quick=quick,
        arrays=len(vcz.arrays),
        chunks=None if quick else sum(report.stored for report in reports),
        absent=None if quick else sum(report.absent for report in reports),
        outside={name: n for name, n in sorted(outside.items()) if n},
        errors=sorted(errors, key=lambda finding: finding.order),
        seconds=time.perf_counter() - started,
    )


def _data_scans(vcz: Vcz) -> list[ScanReader]:
    """Return scans over all chunks of a store, and over the order of its variants and kept blocks."""
    try:
        removed = np.flatnonzero(vcz.sample_ids == REMOVED)
    except VczstoreError:
        removed = np.empty(0, dtype="i8")  # the scan of chunks reports the damaged chunk
    alleles = vcz.arrays.get("variant_allele")
    if alleles is not None and (alleles.ndim != 2 or alleles.dtype.kind not in TEXT or not has_grid(alleles)):
        alleles = None
    regular = {name: array for name, array in (*vcz.arrays.items(), *vcz.inner.items()) if has_grid(array)}
    scans = [ScanReader(partial(count_outside, tuple(regular.items())), len(regular), 1)]
    for name, array in regular.items():
        axis = samples_axis(array)
        is_genotype = name == "call_genotype" and array.dtype.kind == "i" and array.ndim == 3
        chunks = Chunks(
            name,
            array,
            axis if len(removed) and name != SAMPLE_ID else None,
            removed if axis is not None else removed[:0],
            alleles if is_genotype and dimensions(array)[:2] == CALL else None,
        )
        scans.append(chunks.scan())
    return [*scans, *Order.scans(vcz), *BlockOrder.scans(vcz)]
