"""The survey of matches: tasks match the rows of sources with those of a store, and report to the driver."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from plans.core.memory import Memory
from plans.core.scan_reader import ScanReader
from plans.variants.match_index import Index, Unit


class UnitReport(NamedTuple):
    """
    Summary of the matches of one source in one unit.

    Attributes
    ----------
    number, source
        Number of the unit, and of the source.
    matched, unmatched, first_unmatched, block
        As in `plans.variants.match_index.Report`.
    reordered, new_alleles
        Number of variants whose allele indices change, and of alleles that are added (by all sources, in the report of
        the first one).
    shift
        Row in the source minus row in the store; None unless the source has all variants in consecutive rows.
    same_alleles
        Whether all variants have the same alleles in both, in the same order.
    fewer
        Whether a matched variant has fewer alleles in the source than in the store.
    span
        Number of rows of the source from the first to the last match.
    most_alleles, most_where_new
        Largest number of alleles of any variant after all sources, and of one that gains alleles (0 if none does).
    """

    number: int
    source: int
    matched: int
    unmatched: int
    first_unmatched: int | None
    block: int | None
    reordered: int
    new_alleles: int
    shift: int | None
    same_alleles: bool
    fewer: bool
    span: int
    most_alleles: int
    most_where_new: int


@dataclass(frozen=True)
class FindMatches:
    """Matches every unit once, in `mem` bytes per task, and reports to the driver the numbers that it needs to plan."""

    operation: str
    index: Index
    mem: int

    def look(self, rows: slice) -> list[UnitReport]:
        """Return the reports of some rows, which are whole units."""
        return [self._report(unit, s) for unit, _ in self.index.units(rows) for s in range(len(self.index.sources))]

    def _report(self, unit: Unit, s: int) -> UnitReport:
        mine = unit.sources[s]
        present = mine.rows[mine.rows >= 0]
        shift: int | None = None
        is_all = mine.unseen is None and len(present) == len(mine.rows)
        if is_all and (np.diff(mine.rows) == 1).all():
            shift = int(mine.rows[0]) - unit.start
        new = int((unit.n_alleles - unit.n_before).sum()) if s == 0 else 0  # of all sources together
        same = not mine.changed.any() and bool((mine.n_alleles == unit.n_alleles).all())
        return UnitReport(
            number=unit.start // self.index.unit,
            source=s,
            **unit.reports[s]._asdict(),
            reordered=int(mine.reordered.sum()),
            new_alleles=new,
            shift=shift,
            same_alleles=same,
            fewer=bool((mine.n_alleles < unit.n_alleles)[mine.rows >= 0].any()),
            span=int(present.max() - present.min()) + 1 if len(present) else 0,
            most_alleles=int(unit.n_alleles.max(initial=0)),
            most_where_new=int(unit.n_alleles[unit.n_alleles > unit.n_before].max(initial=0)),
        )

    @property
    def rows_per_task(self) -> int:
        """Number of rows per task: at most 100 whole units, and few enough for 16 tasks if there are 16 units."""
        n_units = -(-self.index.n_variants // self.index.unit)
        return self.index.unit * max(1, min(n_units // 16, 100))

    def readers(self, memory: Memory) -> list[ScanReader]:
        """Scan with tasks of whole units."""
        return [ScanReader(self.look, self.index.n_variants, self.rows_per_task, self.mem)]
