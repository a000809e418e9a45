"""Matches of variants, looked up in tasks: which rows of sources are which of a store."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from plans.core.memory import Memory
from plans.variants.match_index import Index, Unit

if TYPE_CHECKING:
    from plans.core.scan_tasks import ScanReader


class UnitReport(NamedTuple):
    """
    What the driver knows of a unit and one source.

    Attributes
    ----------
    number
        Of the unit.
    source
        Which source.
    matched, unmatched, first_unmatched, block
        As in `plans.variants.match_index.Report`.
    reordered, new_alleles
        Variants whose alleles have other numbers, and alleles that come in.
    shift
        How many rows further down all of the unit's variants are in the source; None if they are not all there, one
        after the other.
    same_alleles
        Whether every allele has the same number, and the store has no others.
    fewer
        Whether a variant that matches has fewer alleles in the source than in the store.
    span
        How many rows of the source have to be read.
    most_alleles, most_where_new
        How many alleles a variant will have at most, after all sources; and one to which alleles come, 0 if none is.
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
    """Looks every unit up once, and tells the driver in numbers what it needs to know to plan."""

    operation: str
    index: Index
    mem: int

    def look(self, rows: slice) -> list[UnitReport]:
        """The reports of some rows: whole units."""
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
        """Whole units, and not too few tasks."""
        n_units = -(-self.index.n_variants // self.index.unit)
        return self.index.unit * max(1, min(n_units // 16, 100))

    def by_cubed(self, memory: Memory, tag: int) -> "list[ScanReader]":
        """Look in tasks."""
        from plans.core import scan_tasks

        if not self.index.n_variants:
            return []
        return [scan_tasks.ScanReader(self.look, self.index.n_variants, self.rows_per_task, tag, self.mem)]
