"""Scan that checks the order of kept reference blocks, sample by sample."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from zarr.types import AnyArray

from plans.core.scan_reader import ScanReader
from plans.maintenance.findings import Finding, TaskFindings, finding_at
from plans.variants.kept_blocks import (
    AFTER_ROW,
    BLOCKS,
    FIELDS,
    FIRST_ROW,
    RUN_FIELDS,
    RUN_START,
    RUNS,
    START,
    STOP,
    rows_of_runs,
)
from vczstore.vcz import arrays
from vczstore.vcz.model import Vcz, has_grid

_WAY_OUT = "update the sample with its gVCF"


@dataclass(frozen=True)
class BlockOrder:
    """
    Scan that checks the order of each sample's runs by row, and of each run's records by position.

    Attributes
    ----------
    blocks, runs
        The arrays `BLOCKS` and `RUNS` of `plans.variants.kept_blocks`.
    """

    blocks: AnyArray
    runs: AnyArray

    @classmethod
    def scans(cls, vcz: Vcz) -> list[ScanReader]:
        """Return one scan over all samples; an empty list if there are no kept blocks, or they have another layout."""
        blocks, runs = vcz.arrays.get(BLOCKS), vcz.arrays.get(RUNS)
        if blocks is None or runs is None or not (has_grid(blocks) and has_grid(runs)):
            return []
        layouts = [(a.ndim, a.shape[0], a.shape[-1], a.dtype.kind) for a in (blocks, runs)]
        if layouts != [(3, vcz.n_samples, len(FIELDS), "i"), (3, vcz.n_samples, len(RUN_FIELDS), "i")]:
            return []
        width, height, _ = arrays.outer_chunks(blocks)
        mem = (
            2 * arrays.decode_mem(blocks, 2)
            + 20 * width * height
            + 10 * arrays.decode_mem(runs, 1) * (1 + runs.shape[1] // arrays.outer_chunks(runs)[1])
        )
        return [ScanReader(cls(blocks, runs).look, vcz.n_samples, width, mem)]

    def look(self, samples: slice) -> TaskFindings | None:
        """Return the first error in the runs of some samples, else those in their records; None if there are none."""
        try:
            runs = arrays.read(self.runs, (samples, slice(0, self.runs.shape[1]), slice(0, len(RUN_FIELDS))))
            errors = list(self._runs(runs.astype("i8"), samples.start)) or list(self._records(runs, samples))
        except Exception:
            return None  # the scan of chunks reports chunks that cannot be decoded
        return TaskFindings(self.blocks.path, errors=errors) if errors else None

    def _runs(self, runs: np.ndarray, first_sample: int) -> Iterator[Finding]:
        """Yield the first run that overlaps the run before it, or has rows beyond the array."""
        first, after = runs[..., FIRST_ROW], runs[..., AFTER_ROW]
        is_run = first >= 0
        is_wrong = is_run & ((after <= first) | (after > self.blocks.shape[1]))
        is_wrong[:, 1:] |= is_run[:, 1:] & (~is_run[:, :-1] | (first[:, 1:] < after[:, :-1]))
        for sample, run in np.argwhere(is_wrong)[:1].tolist():
            at = first_sample + sample, run
            what = f"run {run} of sample {at[0]} has the rows {first[sample, run]} to {after[sample, run] - 1}, which"
            what = f"{what} are not there, or not after those of the run before"
            yield finding_at(self.runs, at, f"{what}; {_WAY_OUT}")

    def _records(self, runs: np.ndarray, samples: slice) -> Iterator[Finding]:
        """Yield the first bad record per chunk row: out of order, ending before its start, or off its run's start."""
        for rows in arrays.cuts(self.blocks)[1].spans():
            low = max(0, rows.start - 1)
            starts, ends = (
                arrays.read(self.blocks, (samples, slice(low, rows.stop), slice(field, field + 1)))[..., 0]
                for field in (START, STOP)
            )
            is_run = runs[..., FIRST_ROW] >= 0
            first, after = runs[..., FIRST_ROW] - low, runs[..., AFTER_ROW] - low
            inside = rows_of_runs(is_run, first, after, starts.shape[1])
            begins = np.full(starts.shape, -1, dtype="i8")
            sample, run = np.nonzero(is_run & (first >= 0) & (first < starts.shape[1]))
            begins[sample, first[sample, run]] = runs[sample, run, RUN_START]
            is_wrong = inside & (ends < starts)
            is_wrong |= (begins >= 0) & (begins != starts)
            is_wrong[:, 1:] |= inside[:, 1:] & (begins[:, 1:] < 0) & (starts[:, 1:] < starts[:, :-1])
            for i, row in np.argwhere(is_wrong)[:1].tolist():
                at = samples.start + i, low + row
                what = f"record {at[1]} of sample {at[0]}, from {starts[i, row]} to {ends[i, row]}, is out of order"
                yield finding_at(self.blocks, at, f"{what}; {_WAY_OUT}")
