"""Findings: the results of the surveys before sources are harmonised, namely matches and the order of alleles."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from zarr.types import AnyArray

from plans.variants.field_numbers import kind_of
from plans.variants.find_insertion import Insertion
from plans.variants.harmonise_rules import Rules
from plans.variants.match_index import Index, UnitReport
from plans.variants.misfits import Misfit
from vczstore.vcz.model import VARIANTS, dimensions, listing


@dataclass(frozen=True)
class Findings:
    """
    The results of the surveys of a store and its sources.

    Attributes
    ----------
    rules, index
        How sources are harmonised, and the index of their matches with the store.
    reports
        Reports by unit and source.
    contigs
        Names of the store's contigs.
    numbers
        Number (R, A, G, ...) of FORMAT fields, by name: from the store's VCF header, or given by the user.
    misfits
        First value that does not fit the alleles, by the label of the source and the name of the array.
    insertion
        The variants that are inserted; None if there are none.
    highest_kept
        Highest values of kept blocks that may become calls, by the names of arrays whose dtype may be too narrow.
    """

    rules: Rules
    index: Index
    reports: Mapping[tuple[int, int], UnitReport]
    contigs: tuple[str, ...]
    numbers: Mapping[str, str]
    misfits: Mapping[tuple[str, str], Misfit] = field(default_factory=dict)
    insertion: Insertion | None = None
    highest_kept: Mapping[str, int] = field(default_factory=dict)

    def with_alleles_in(self, array: AnyArray) -> "Findings":
        """Return findings that read alleles from `array`, since the store's own is re-encoded before tasks read it."""
        sites = replace(self.index.store, allele=array)
        return replace(self, index=replace(self.index, store=sites))

    @cached_property
    def same_alleles(self) -> bool:
        """Whether all variants have the same alleles in sources and store, in the same order."""
        return all(r.same_alleles and not r.new_alleles for r in self.reports.values())

    @cached_property
    def moves_alleles(self) -> bool:
        """Whether an allele of a source has another index in the store, or is not in the store."""
        return self.rules.gvcf or any(r.reordered for r in self.reports.values())

    @cached_property
    def most_alleles(self) -> int:
        """Largest number of alleles of a variant after all sources."""
        return max((r.most_alleles for r in self.reports.values()), default=0)

    @cached_property
    def new_alleles(self) -> int:
        """Number of alleles that are added to variants of the store."""
        return sum(r.new_alleles for r in self.reports.values())

    @cached_property
    def most_alleles_where_new(self) -> int:
        """Largest number of alleles of a variant that is inserted or gains alleles; 0 if there is none."""
        inserted = 0 if self.insertion is None else self.insertion.most_alleles
        return max([inserted, *(r.most_where_new for r in self.reports.values())])

    @cached_property
    def changed_units(self) -> tuple[int, ...]:
        """Numbers of the units that gain alleles."""
        return tuple(sorted({r.number for r in self.reports.values() if r.new_alleles}))

    @property
    def counts(self) -> dict[str, int]:
        """Counts that are shown to the user, of all sources together."""
        matched = sum(r.matched for r in self.reports.values())
        return {
            "variants matched": matched,
            "variants absent": len(self.index.sources) * self.index.n_variants - matched,
            "variants dropped": self.n_unmatched,
            **({} if self.insertion is None else {"variants inserted": self.insertion.n_inserted}),
            "variants with alleles re-ordered": sum(r.reordered for r in self.reports.values()),
            "alleles added": self.new_alleles,
            **({"reference blocks": self._n_blocks} if self.rules.gvcf else {}),
        }

    @property
    def _n_blocks(self) -> int:
        gvcfs = [(s.runs, s.blocks) for s in self.index.sources if s.blocks is not None]
        return sum(int((runs[:, 2] - runs[:, 1]).sum()) - blocks.n_variants for runs, blocks in gvcfs)

    @cached_property
    def _store_contigs(self) -> set[int]:
        return set(self.index.store.runs[:, 0].tolist())

    @cached_property
    def by_source(self) -> dict[int, list[UnitReport]]:
        """The reports of each source."""
        reports: dict[int, list[UnitReport]] = {}
        for report in self.reports.values():
            reports.setdefault(report.source, []).append(report)
        return reports

    def of_source(self, number: int) -> tuple["Findings", int]:
        """Return the findings that tasks of one source need, and its number in them; new alleles need all sources."""
        if self.new_alleles:
            return self.for_tasks, number
        return replace(self.for_tasks, index=self.index.of_source(number)), 0

    @property
    def for_tasks(self) -> "Findings":
        """The findings for tasks, without reports, misfits and the insertion, which only the driver needs."""
        return replace(self, reports={}, misfits={}, insertion=None)

    @property
    def n_unmatched(self) -> int:
        """Number of variants of all sources that match nothing."""
        return sum(self.first_unmatched(i)[0] for i in range(len(self.index.sources)))

    def first_unmatched(self, source: int) -> tuple[int, int | None]:
        """Count the variants of a source that match nothing, and return the row of the first one, or None."""
        n_elsewhere, first_elsewhere = self.index.sources[source].on_other_contigs(self._store_contigs)
        mine = self.by_source.get(source, [])
        firsts = [row for row in (first_elsewhere, *(r.first_unmatched for r in mine)) if row is not None]
        return n_elsewhere + sum(r.unmatched for r in mine), min(firsts, default=None)


@dataclass(frozen=True)
class Summary:
    """Summary of harmonising that is shown to the user before it runs: counts and notes, by name."""

    counts: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        findings: Findings | None,
        fields: Mapping[str, AnyArray],
        dropped: Collection[str],
        added: Collection[str] = (),
    ) -> "Summary":
        """
        Summarise the findings, None if nothing is harmonised.

        `fields` are the arrays of the store that are written, `dropped` and `added` the names of arrays that are
        dropped from sources and added to the store.
        """
        calls = {name: array for name, array in fields.items() if VARIANTS in dimensions(array)}
        dropped = sorted(dropped)
        counts = {"fields added": len(added)} if added else {}
        groups = {"added": list(added), "dropped": dropped}
        if findings is None:
            counts |= {"fields dropped": len(dropped)} if dropped else {}
            return cls(counts, {"fields": text} if (text := _listed(groups)) else {})
        mapped = [n for n, a in calls.items() if n not in dropped and kind_of(n, a, findings.numbers)]
        plain = [name for name in calls if name not in (*dropped, *mapped)]
        rules = findings.rules
        haploid = [name for name in findings.contigs if name in rules.haploid_contigs]
        haploid_contigs = ", ".join(rules.haploid_contigs) or "none"
        notes = {
            "fields": _listed({"by allele": mapped, "as they are": plain, **groups}),
            "absent": f"genotypes {rules.absent}; of one allele on {listing(haploid) if haploid else 'no contig'} "
            f"(haploid contigs: {haploid_contigs})",
        }
        counts |= {**findings.counts, "fields by allele": len(mapped), "fields dropped": len(dropped)}
        return cls(counts, notes)


def _listed(groups: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{what}: {listing(names, limit=50)}" for what, names in groups.items() if names)
