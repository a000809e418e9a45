"""What is known of sources and a store before sources are harmonised: what matches, and in which order alleles are."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from zarr.types import AnyArray

from plans.variants.field_numbers import kind_of
from plans.variants.find_insertion import Insertion
from plans.variants.find_matches import UnitReport
from plans.variants.harmonise_rules import Rules
from plans.variants.match_index import Index
from plans.variants.misfits import Misfit
from vczstore.vcz.model import VARIANTS, dimensions, listing


@dataclass(frozen=True)
class Findings:
    """
    What the driver knows of sources and a store, before it plans.

    Attributes
    ----------
    rules, index
        How and by what sources are re-expressed.
    reports
        By unit and source.
    contigs
        The store's contigs.
    numbers
        As `numbers_of` the store.
    misfits
        By the label of a source and the name of an array: the first value that does not fit the alleles.
    insertion
        The variants that are inserted; None if there are none.
    highest_kept
        The highest values of kept blocks that may become calls, by the names of arrays that may have no room for them.
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
        """The same where alleles are read from another array, since the store's is re-encoded before tasks read it."""
        sites = replace(self.index.store, allele=array)
        return replace(self, index=replace(self.index, store=sites))

    @cached_property
    def same_alleles(self) -> bool:
        """Whether every variant that matches has the same alleles in the store, in the same order."""
        return all(r.same_alleles and not r.new_alleles for r in self.reports.values())

    @cached_property
    def moves_alleles(self) -> bool:
        """Whether an allele has another number in the store than in a source, or none."""
        return self.rules.gvcf or any(r.reordered for r in self.reports.values())

    @cached_property
    def most_alleles(self) -> int:
        """How many alleles a variant will have at most."""
        return max((r.most_alleles for r in self.reports.values()), default=0)

    @cached_property
    def new_alleles(self) -> int:
        """How many alleles come in."""
        return sum(r.new_alleles for r in self.reports.values())

    @cached_property
    def most_alleles_where_new(self) -> int:
        """How many alleles a variant that comes in, or to which alleles come, will have at most; 0 if none does."""
        inserted = 0 if self.insertion is None else self.insertion.most_alleles
        return max([inserted, *(r.most_where_new for r in self.reports.values())])

    @cached_property
    def changed_units(self) -> tuple[int, ...]:
        """The units to which alleles come."""
        return tuple(sorted({r.number for r in self.reports.values() if r.new_alleles}))

    @property
    def counts(self) -> dict[str, int]:
        """What is found, in numbers, of all sources together."""
        matched = sum(r.matched for r in self.reports.values())
        return {
            "variants matched": matched,
            "variants absent": len(self.index.sources) * self.index.n_variants - matched,
            "variants dropped": sum(r.unmatched for r in self.reports.values()) + self._strangers(),
            **({} if self.insertion is None else {"variants inserted": self.insertion.n_inserted}),
            "variants with alleles re-ordered": sum(r.reordered for r in self.reports.values()),
            "alleles added": self.new_alleles,
            **({"reference blocks": self._n_blocks} if self.rules.gvcf else {}),
        }

    @property
    def _n_blocks(self) -> int:
        known = [(s.runs, s.blocks) for s in self.index.sources if s.blocks is not None]
        return sum(int((runs[:, 2] - runs[:, 1]).sum()) - blocks.n_variants for runs, blocks in known)

    def _strangers(self) -> int:
        return sum(source.strangers(self._known_contigs)[0] for source in self.index.sources)

    @cached_property
    def _known_contigs(self) -> set[int]:
        return set(self.index.store.runs[:, 0].tolist())

    @cached_property
    def by_source(self) -> dict[int, list[UnitReport]]:
        """The reports of each source."""
        found: dict[int, list[UnitReport]] = {}
        for report in self.reports.values():
            found.setdefault(report.source, []).append(report)
        return found

    def of_source(self, number: int) -> tuple["Findings", int]:
        """What tasks are sent of one source, and its number there: where alleles come in, all depends on all."""
        if self.new_alleles:
            return self.for_tasks, number
        return replace(self.for_tasks, index=self.index.of_source(number)), 0

    @property
    def for_tasks(self) -> "Findings":
        """Without what only the driver needs: tasks are sent no more."""
        return replace(self, reports={}, misfits={}, insertion=None)

    @property
    def n_unmatched(self) -> int:
        """How many variants of sources match nothing."""
        return sum(self.first_unmatched(i)[0] for i in range(len(self.index.sources)))

    def first_unmatched(self, source: int) -> tuple[int, int | None]:
        """How many variants of a source match nothing, and the first of them."""
        n_strange, stranger = self.index.sources[source].strangers(self._known_contigs)
        mine = self.by_source.get(source, [])
        firsts = [row for row in (stranger, *(r.first_unmatched for r in mine)) if row is not None]
        return n_strange + sum(r.unmatched for r in mine), min(firsts, default=None)


@dataclass(frozen=True)
class Summary:
    """What a user sees of harmonising before it runs: counts, and notes by name."""

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
        Count and name.

        Parameters
        ----------
        findings
            None where nothing is harmonised.
        fields
            The arrays of the store that take part.
        dropped, added
            The names of those that do not come in, and of those that come to the store.
        """
        calls = {name: array for name, array in fields.items() if VARIANTS in dimensions(array)}
        gone = sorted(dropped)
        counts = {"fields added": len(added)} if added else {}
        groups = {"added": list(added), "dropped": gone}
        if findings is None:
            counts |= {"fields dropped": len(gone)} if gone else {}
            return cls(counts, {"fields": text} if (text := _listed(groups)) else {})
        mapped = [n for n, a in calls.items() if n not in gone and kind_of(n, a, findings.numbers)]
        plain = [name for name in calls if name not in (*gone, *mapped)]
        rules = findings.rules
        haploid = [name for name in findings.contigs if name in rules.haploid_contigs]
        known = ", ".join(rules.haploid_contigs) or "none"
        notes = {
            "fields": _listed({"by allele": mapped, "as they are": plain, **groups}),
            "absent": f"genotypes {rules.absent}; of one allele on {listing(haploid) if haploid else 'no contig'} "
            f"(haploid contigs: {known})",
        }
        counts |= {**findings.counts, "fields by allele": len(mapped), "fields dropped": len(gone)}
        return cls(counts, notes)


def _listed(groups: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{what}: {listing(names, limit=50)}" for what, names in groups.items() if names)
