"""Harmonise: what a source has, expressed over the variants and alleles of a store.

Nothing is stored in between. `Harmonised` is an array of a source as the store would have it, and an append reads it
as any other: rows are found through the `Index`, and values that go by allele are put in order. Chunks in which
nothing changes are copied as they are.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast
from uuid import uuid4

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import Columns
from plans.core.compatibility import check_builds
from plans.core.memory import Memory
from plans.core.model import Survey
from plans.core.views import View, like_source
from plans.variants.block_calls import covering
from plans.variants.find_insertion import Insertion, find_insertion
from plans.variants.find_matches import FindMatches, UnitReport
from plans.variants.in_order import DIPLOID, Field
from plans.variants.kept_blocks import KeptBlocks
from plans.variants.kept_calls import KeptCalls
from plans.variants.local_alleles import LOCAL_ALLELES, has_local_alleles, is_local
from plans.variants.match import ABSENT, KEPT_BYTES, UNMATCHED, Index, Matches, Sites
from plans.variants.misfits import VECTOR_BYTES, FindMisfits, Misfit, read_bytes
from plans.variants.misfits import Source as MisfitSource
from plans.variants.reference_blocks import LEN, Blocks, FindBlocks, read_calls, refusal
from plans.variants.sortedness import FindRuns, Runs, site, unit_rows
from plans.variants.vectors import MAX_PLOIDY, lengths, n_genotypes
from vczstore.errors import IncompatibleError, OptionError
from vczstore.vcz import arrays, encoded_chunks, metadata, zarr_objects
from vczstore.vcz.missing import MASKS, fill_value, has_sentinels, mask_of, masked_by, missing_value
from vczstore.vcz.model import SAMPLE_ID, SAMPLES, VARIANTS, Vcz, dimensions, listing, samples_axis

HAPLOID_CONTIGS = ("X", "chrX", "Y", "chrY", "M", "MT", "chrM")
"""Where a variant that a source lacks gets genotypes of one allele, unless said otherwise."""

GENOTYPE = "call_genotype"
ALLELE_NUMBERS = (GENOTYPE, *LOCAL_ALLELES)
"""Fields whose values are numbers of alleles."""


@dataclass(frozen=True)
class Rules:
    """
    How sources are re-expressed.

    Attributes
    ----------
    allow_new_alleles
        Whether alleles that the store has not seen come in.
    absent
        The genotypes of a variant that a source lacks: one of `vczstore.choices.ABSENT`.
    new_variants
        What to do about variants that the store lacks: one of `vczstore.choices.NEW_VARIANTS`.
    haploid_contigs
        Where those genotypes have one allele.
    numbers
        What FORMAT fields go by whose header does not say so: ``AD=R``, with one of ``R``, ``A`` and ``G``.
    gvcf
        Whether the sources are gVCFs, whose reference blocks tell calls.
    min_gq
        Calls of blocks with a lower GQ are missing; None if all count.
    on_ref_mismatch
        What to do about new variants whose REF contradicts another: one of `vczstore.choices.REF_MISMATCHES`.
    keep_blocks
        Whether the store keeps the blocks, for variants that come later.
    is_copied
        Whether variants are inserted into a copy of the store, which is made even if none are new.
    """

    allow_new_alleles: bool = False
    absent: str = "missing"
    new_variants: str = "refuse"
    haploid_contigs: Sequence[str] = HAPLOID_CONTIGS
    numbers: Sequence[str] = ()
    gvcf: bool = False
    min_gq: int | None = None
    on_ref_mismatch: str = "refuse"
    keep_blocks: bool = False
    is_copied: bool = False

    def haploid(self, contigs: Sequence[str]) -> list[int]:
        """Return the numbers of those contigs where genotypes of absent variants have one allele."""
        return [i for i, name in enumerate(contigs) if name in self.haploid_contigs]

    @property
    def by_field(self) -> dict[str, str]:
        """
        The same numbers, by the names of fields.

        Raises
        ------
        OptionError
            If one is not of that form.
        """
        for text in self.numbers:
            if not re.fullmatch(r"[^=]+=[RAG]", text):
                raise OptionError(f"--number takes NAME=R, NAME=A or NAME=G, such as AD=R, and got {text!r}")
        return {name.removeprefix("call_"): number for name, number in (text.split("=") for text in self.numbers)}


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


_DIMENSIONS = {"R": "alleles", "A": "alt_alleles", "G": "genotypes"}
"""What converters call the last axis of a field, by its Number."""


def with_numbers(store: Vcz, sources: Sequence[Vcz], rules: Rules) -> list[Vcz]:
    """The sources with the last axes of fields whose Number a user tells called as they are in the store."""
    result = []
    for source in sources:
        renamed = {}
        for field_name, number in rules.by_field.items():
            name = f"call_{field_name}"
            theirs, ours = (vcz.samples_arrays.get(name) for vcz in (source, store))
            if theirs is not None and theirs.ndim == 3:
                wanted = _DIMENSIONS[number] if ours is None or ours.ndim != 3 else dimensions(ours)[-1]
                renamed[name] = arrays.with_dimensions(theirs, (*dimensions(theirs)[:-1], wanted))
        result.append(replace(source, arrays={**source.arrays, **renamed}) if renamed else source)
    return result


def look_up(
    operation: str,
    vcz: Vcz,
    sources: Sequence[Vcz],
    rules: Rules,
    memory: Memory,
    *,
    interrupted_at: int | None = None,
) -> Generator[Survey, list[list[Any]], Findings]:
    """
    Find out what of sources is what of a store, in two surveys.

    Parameters
    ----------
    operation, vcz, sources, rules, memory
        As in `plans.compilers.append`.
    interrupted_at
        As in `Vcz.require_whole`, of the store.

    Raises
    ------
    VczstoreError
        If a VCZ is damaged, variants are not sorted, or some of a source's match nothing and are not to be dropped.
    """
    vcz.require_whole(operation, interrupted_at=interrupted_at)
    for source in sources:
        source.require_whole(operation)
    scans = run_scans(operation, vcz, sources)
    finding = [FindBlocks(operation, source, unit_rows(source)) for source in sources if rules.gvcf]
    seen = yield Survey(operation, (*scans, *finding), memory)
    runs = [scan.joined(items) for scan, items in zip(scans, seen, strict=False)]
    blocks = [
        Blocks.of(operation, f.vcz, f.joined(items), rules.min_gq)
        for f, items in zip(finding, seen[len(scans) :], strict=True)
    ]
    scan = match_scan(operation, vcz, sources, rules, runs, blocks or [None] * len(sources))
    (reports,) = yield Survey(operation, (scan,), memory)
    findings = _findings(operation, vcz, sources, rules, scan.index, reports)
    if rules.is_copied or (rules.new_variants == "insert" and findings.n_unmatched):
        insertion, index = yield from find_insertion(
            operation,
            vcz,
            sources,
            runs,
            scan.index,
            memory,
            n_records=findings.n_unmatched,
            any_alt=rules.allow_new_alleles,
            on_ref_mismatch=rules.on_ref_mismatch,
        )
        scan = FindMatches(operation, index, insertion.records.reading_mem + scan.mem)
        (reports,) = yield Survey(operation, (scan,), memory)
        findings = _findings(operation, vcz, sources, rules, index, reports)
        findings = replace(findings, insertion=insertion, contigs=insertion.contigs)
    values = _misfit_scan(vcz, sources, findings, scan)
    if not values.is_due:
        return findings
    (misfits,) = yield Survey(operation, (values,), memory)
    found: dict[tuple[str, str], Misfit] = {}
    for misfit in sorted(Misfit(*item) for items in misfits for item in items):
        found.setdefault((sources[misfit.source].label, misfit.name), misfit)
    return replace(findings, misfits=found)


def _misfit_scan(vcz: Vcz, sources: Sequence[Vcz], findings: Findings, scan: FindMatches) -> FindMisfits:
    """What has to be looked up last: whether values fit the alleles."""
    looked_at = []
    for i, source in enumerate(sources):
        calls = {
            name: array
            for name, array in source.samples_arrays.items()
            if dimensions(array)[:2] == (VARIANTS, SAMPLES) and (name in vcz.samples_arrays or not vcz.n_samples)
        }
        kinds = {name: kind_of(name, array, findings.numbers) for name, array in calls.items() if array.dtype != bool}
        vectors = {n: (calls[n], field_of(n, calls[n], kind)) for n, kind in kinds.items() if kind in ("R", "A", "G")}
        numbers = {name: calls[name] for name, kind in kinds.items() if kind == "GT"}
        reports = findings.by_source.get(i, [])
        looked_at.append(MisfitSource.of(vectors, numbers, calls.get(GENOTYPE), source.chosen, reports))
    known = [(s.blocks, source) for s, source in zip(findings.index.sources, sources, strict=True)]
    slabs = [blocks.slab_rows(source.arrays[SAMPLE_ID].shape[0]) for blocks, source in known if blocks is not None]
    span = max([*slabs, *(r.span for r in findings.reports.values())], default=0)
    return FindMisfits(findings.index, tuple(looked_at), scan.rows_per_task, span, scan.mem)


def run_scans(operation: str, store: Vcz, sources: Sequence[Vcz]) -> list[FindRuns]:
    """What has to be looked up first: where the variants of each are."""
    for vcz in (store, *sources):
        for name in ("variant_contig", "variant_position", "variant_allele", "contig_id"):
            if not vcz.tells(name):
                raise IncompatibleError(f"{operation}: {vcz.label} has no {name}, so variants cannot be matched")
    check_builds(operation, [store, *sources])
    return [FindRuns(operation, vcz, unit_rows(vcz)) for vcz in (store, *sources)]


def match_scan(
    operation: str,
    store: Vcz,
    sources: Sequence[Vcz],
    rules: Rules,
    runs: Sequence[Runs],
    blocks: Sequence[Blocks | None],
) -> FindMatches:
    """What has to be looked up then: what matches."""
    ours = {name: i for i, name in enumerate(store.table("contig_id").tolist())}
    sites = []
    for vcz, mine, theirs in zip((store, *sources), runs, (None, *blocks), strict=True):
        names = vcz.table("contig_id").tolist()
        numbers = np.array([ours.get(name, -1 - i) for i, name in enumerate(names)], "i8")
        sites.append(Sites.of(vcz, mine, numbers, theirs))
    token = uuid4().hex
    unit = unit_rows(store)
    # what is inserted is joined with what is there as `create` joins it
    is_joined_later = rules.new_variants == "insert"
    allows = rules.allow_new_alleles and not is_joined_later
    index = Index(token, sites[0], tuple(sites[1:]), store.n_variants, unit, allows)
    return FindMatches(operation, index, _match_mem(index))


def _match_mem(index: Index) -> int:
    """What it takes to match a unit: reading the store and one source after the other, and what is found in each."""
    read = [(s.position, s.contig, s.allele, *s.extents.fields.values()) for s in (index.store, *index.sources)]
    reading = [4 * sum(arrays.decode_mem(a, 2) for a in some) for some in read]
    rows = min(index.unit, index.n_variants)
    found = sum(3 * rows * (16 + 8 * s.allele.shape[1]) for s in index.sources)
    return reading[0] + max(reading[1:], default=0) + found


def _findings(operation: str, vcz: Vcz, sources: Sequence[Vcz], rules: Rules, index: Index, found: Any) -> Findings:
    """Put together what was found."""
    reports = {(r.number, r.source): r for items in found for r in (UnitReport(*item) for item in items)}
    findings = Findings(
        rules,
        replace(index, is_surveyed=True),
        reports,
        tuple(vcz.table("contig_id").tolist()),
        {**numbers_of(vcz), **rules.by_field},
    )
    for i, source in enumerate(sources):
        n, first = findings.first_unmatched(i)
        blocks = [r.block for r in findings.by_source.get(i, []) if r.block is not None]
        if blocks:
            raise refusal(operation, source, min(blocks))
        known = index.sources[i].blocks
        n_variants = source.n_variants if known is None else known.n_variants
        if known is None:
            _check_some(operation, vcz, source, rules, n)
        if first is not None and rules.new_variants == "refuse":
            alleles = "" if rules.allow_new_alleles else "let new alleles in with --allow-new-alleles, "
            alleles += "" if operation == "normalise" else "insert them with --new-variants insert, "
            raise IncompatibleError(
                f"{operation}: {n:,} of the {n_variants:,} variants of {source.label} match none of the store, "
                f"the first is variant {first}, {site(source, first)}; {alleles}leave them out with --new-variants "
                "drop, or make a store that has them with vczstore create"
            )
    return findings


def _check_some(operation: str, store: Vcz, source: Vcz, rules: Rules, n_unmatched: int) -> None:
    """Refuse a source of which nothing would come in but samples without calls."""
    if 0 < source.n_variants <= n_unmatched and rules.new_variants == "drop":
        contigs = [listing(vcz.table("contig_id").tolist(), limit=5) for vcz in (source, store)]
        raise IncompatibleError(
            f"{operation}: all {n_unmatched:,} variants of {source.label} match none of the store, and --new-variants "
            f"drop would leave nothing of it; its contigs are {contigs[0]}, the store's {contigs[1]}: make it over the "
            "store's reference genome, or a store that has its variants with vczstore create"
        )
    if store.n_variants and not source.n_variants and rules.absent == "missing":
        raise IncompatibleError(
            f"{operation}: {source.label} has no variants, so all its genotypes would be missing; say --absent "
            "reference if they are the reference, or leave it out"
        )


# ---- dimensions -----------------------------------------------------------------------------


def widths(operation: str, vcz: Vcz, findings: Findings, source: Vcz) -> dict[str, int]:
    """
    How long the dimensions become that go by alleles.

    Raises
    ------
    IncompatibleError
        If the length of ``genotypes`` belongs to no ploidy.
    """
    ours, theirs = _lengths(vcz), _lengths(source)
    alleles, most_new = max(ours.get("alleles", 1), findings.most_alleles), findings.most_alleles_where_new
    result = {"alleles": alleles, "alt_alleles": max(alleles - 1, ours.get("alt_alleles", 0))}
    if "genotypes" in ours and GENOTYPE in vcz.arrays:
        # those to which alleles come need room, even if no other variant has as many
        ploidy = vcz.arrays[GENOTYPE].shape[-1]
        result["genotypes"] = max(ours["genotypes"], n_genotypes(most_new, ploidy) if most_new else 0)
    elif "genotypes" in {**ours, **theirs}:
        lengths = ours if "genotypes" in ours else theirs
        result["genotypes"] = _n_genotypes_for(operation, vcz, source, lengths, alleles)
        if findings.rules.gvcf and lengths is theirs:  # which have room for <NON_REF>
            result["genotypes"] = n_genotypes(alleles, _ploidy(vcz, source))
    if most_new:
        result |= _info_lengths(vcz, most_new)
    for name, number in findings.rules.by_field.items():
        array = vcz.arrays.get(f"call_{name}", source.arrays.get(f"call_{name}"))
        if array is not None and array.ndim == 3 and dimensions(array)[-1] not in result:
            size = n_genotypes(alleles, _ploidy(vcz, source)) if number == "G" else alleles - (number == "A")
            result[str(dimensions(array)[-1])] = max(array.shape[-1], size)
    return result


def _n_genotypes_for(operation: str, vcz: Vcz, source: Vcz, lengths: Mapping[str, int], alleles: int) -> int:
    """How long the dimension becomes where the store's genotypes do not tell the ploidy."""
    before, genotypes = lengths.get("alleles", 1), lengths["genotypes"]
    ploidies = range(1, MAX_PLOIDY + 1) if before > 1 else (_ploidy(vcz, source),)  # one allele, one genotype
    ploidy = next((p for p in ploidies if n_genotypes(before, p) >= genotypes), None)
    if ploidy is None or (n_genotypes(before, ploidy) != genotypes and before > 1):
        raise IncompatibleError(
            f"{operation}: {vcz.label} has {genotypes} genotypes and {before} alleles, which no ploidy gives; "
            "make the store with bio2zarr"
        )
    return max(genotypes, n_genotypes(alleles, ploidy)) if alleles > before else genotypes


def _info_lengths(vcz: Vcz, n_alleles: int) -> dict[str, int]:
    """How long the dimensions of INFO fields become that the VCF header alone says go by alleles."""
    numbers, result = numbers_of(vcz, "INFO"), {}
    for name, number in numbers.items():
        array = vcz.arrays.get(f"variant_{name}")
        if array is None or not number_of(name, array, numbers) or dimensions(array)[-1] in _NUMBERS:
            continue
        needed = lengths(number, np.array([n_alleles]), np.array([2]))
        result[str(dimensions(array)[-1])] = max(array.shape[-1], int(needed[0]))
    return result


def _ploidy(*vczs: Vcz) -> int:
    """The highest of any genotype."""
    return max((v.arrays[GENOTYPE].shape[-1] for v in vczs if GENOTYPE in v.arrays), default=DIPLOID)


def _lengths(vcz: Vcz) -> dict[str, int]:
    """The lengths of dimensions that go by alleles; of an append that was stopped, those that it had reached."""
    result: dict[str, int] = {}
    for array in vcz.arrays.values():
        for name, n in zip(dimensions(array), array.shape, strict=True):
            if name in _NUMBERS:
                result[str(name)] = max(n, result.get(str(name), 0))
    return result


def widened(array: AnyArray, lengths: Mapping[str, int]) -> AnyArray:
    """An array as it will be when the dimensions that go by alleles have become longer."""
    shape = tuple(max(n, lengths.get(str(name), n)) for name, n in zip(dimensions(array), array.shape, strict=True))
    return arrays.planned(array, shape=shape)


def wider(operation: str, vcz: Vcz, lengths: Mapping[str, int]) -> dict[str, AnyArray]:
    """
    The arrays whose dimensions become longer, as they will be.

    Raises
    ------
    IncompatibleError
        If two dimensions of one array do.
    """
    result = {}
    for name, array in vcz.arrays.items():
        after = widened(array, lengths)
        if after.shape != array.shape:
            if sum(n != m for n, m in zip(array.shape, after.shape, strict=True)) > 1:
                grown = [
                    f"{d} {n} to {m}"
                    for d, n, m in zip(dimensions(array), array.shape, after.shape, strict=True)
                    if n != m
                ]
                raise IncompatibleError(
                    f"{operation}: {name} of {vcz.label} would become longer along {' and '.join(grown)}, and one "
                    "dimension at a time is supported; delete the array, or make the store with vczstore create"
                )
            result[name] = after
    return result


def check_fields(operation: str, vcz: Vcz, source: Vcz, findings: Findings, lengths: Mapping[str, int]) -> None:
    """
    Check that all fields of a source can be harmonised.

    Raises
    ------
    IncompatibleError
        Naming the first that cannot.
    """
    for name in source.samples_arrays:
        if name in vcz.samples_arrays:
            _check_field(operation, vcz, source, name, findings, lengths)


def _check_field(
    operation: str, vcz: Vcz, source: Vcz, name: str, findings: Findings, lengths: Mapping[str, int]
) -> None:
    ours, names = vcz.samples_arrays[name], dimensions(source.samples_arrays[name])
    if VARIANTS not in names or _is_derived(name, source, findings.numbers, is_gvcf=findings.rules.gvcf):
        return
    if names[:2] != (VARIANTS, SAMPLES):
        raise IncompatibleError(
            f"{operation}: {name} of {source.label} has dimensions {names}, and only (variants, samples, ...) can "
            f"be harmonised; {_way_out(name)}"
        )
    if misfit := findings.misfits.get((source.label, name)):
        raise IncompatibleError(f"{operation}: {_describe(source, misfit)}; {_way_out(name)}")
    is_numbers = name in ALLELE_NUMBERS
    if is_numbers and findings.most_alleles - 1 > np.iinfo(ours.dtype).max:
        raise IncompatibleError(
            f"{operation}: a variant will have {findings.most_alleles} alleles, which {name} of dtype {ours.dtype} "
            "cannot number; leave out --allow-new-alleles"
        )
    number = findings.numbers.get(name.removeprefix("call_"), "")
    needs_local = has_local_alleles(vcz.samples_arrays) or not findings.same_alleles
    is_by_local = not is_numbers and is_local(name, ours, number)
    if is_by_local and needs_local and not has_local_alleles(source.samples_arrays):
        raise IncompatibleError(
            f"{operation}: {name} of {source.label} goes by local alleles, and no call_LAA comes in that says which "
            f"they are; {_way_out(name)}"
        )
    if findings.same_alleles:
        return
    number = number_of(name, ours, findings.numbers)
    if number in ("R", "A", "G") and names[-1] not in lengths and findings.moves_alleles:
        said = name.removeprefix("call_")
        raise IncompatibleError(
            f"{operation}: {name} of {vcz.label} has the dimension {names[-1]}, as of a VCF header with Number=. for "
            f"{said}, and alleles get other numbers; say what it goes by with --number {said}={number} (or A, R, G), "
            f"or {_way_out(name)}"
        )
    if number == "G" and name.endswith(MASKS):
        raise IncompatibleError(
            f"{operation}: {name} of {source.label} goes by genotypes, and does not tell of how many alleles they "
            f"are, so it cannot be harmonised where alleles differ from the store's; {_way_out(name)}"
        )


def _describe(source: Vcz, misfit: Misfit) -> str:
    """What does not fit, for people."""
    name, where = misfit.name, f"variant {misfit.row} of {source.label}, {site(source, misfit.row)},"
    if name in ALLELE_NUMBERS:
        return f"{name} has allele {misfit.found} at {where} which has {misfit.n_alleles}, REF included"
    values = f"{misfit.found} values at {where}"
    if misfit.expected < 0:
        return f"{name} has {values} and nothing tells of how many alleles the genotype is: there is no call_genotype"
    return f"{name} has {values} whose {misfit.n_alleles} alleles take {misfit.expected}"


def _is_derived(name: str, source: Vcz, numbers: Mapping[str, str], *, is_gvcf: bool) -> bool:
    """Whether an array is a mask that follows from values that go by allele and say what is missing."""
    mask, values = source.samples_arrays[name], source.samples_arrays.get(masked_by(name))
    if masked_by(name) == name or values is None or mask.dtype.kind != "b" or values.shape != mask.shape:
        return False
    kinds = ("R", "A", "G", "GT") if is_gvcf else ("R", "A", "G")
    return has_sentinels(values.dtype) and kind_of(masked_by(name), values, numbers) in kinds


def incoming(
    name: str, number: int, source: Vcz, targets: Mapping[str, AnyArray], findings: Findings
) -> "AnyArray | View":
    """An array of a source over the variants and alleles of a store; `targets` are the store's as they will be."""
    if VARIANTS not in dimensions(source.samples_arrays[name]):
        return source.samples_arrays[name]
    data = None
    if _is_derived(name, source, findings.numbers, is_gvcf=findings.rules.gvcf):
        data = Harmonised.of(masked_by(name), source, targets[masked_by(name)], number, findings)
    return Harmonised.of(name, source, targets[name], number, findings, data)


def _way_out(name: str) -> str:
    field = "GT" if name == GENOTYPE else name.removeprefix("call_")
    return f"make the source without it, or leave it missing with --drop-field {field}"


# ---- fields that are dropped ----------------------------------------------------------------


def without_dropped(
    operation: str,
    vcz: Vcz,
    source: Vcz,
    findings: Findings,
    lengths: Mapping[str, int],
    may_drop: Sequence[str],
) -> Vcz:
    """A source without those of the fields that may be dropped which cannot be harmonised, nor their masks."""
    # what others depend on goes first
    for name in sorted(may_drop, key=lambda name: name not in LOCAL_ALLELES):
        if name not in source.samples_arrays:
            continue
        try:
            _check_field(operation, vcz, source, name, findings, lengths)
        except IncompatibleError:
            gone = {name, *(f"{name}_{what}" for what in ("mask", "fill", "phased"))}
            source = replace(source, arrays={n: a for n, a in source.arrays.items() if n not in gone})
    return source


@dataclass(frozen=True)
class Dropped(View):
    """The samples of a source that does not bring a field of the store: missing values."""

    name: str

    @classmethod
    def of(cls, name: str, target: AnyArray, n_samples: int) -> "Dropped":
        """`target` is the array of the store as it will be."""
        axis = samples_axis(target)
        like = arrays.planned(target, shape=tuple(n_samples if i == axis else n for i, n in enumerate(target.shape)))
        return cls(like, like, name)

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """The values of a region: missing, and no more of them."""
        lead = (samples_axis(self.like) or 0) + 1
        call = np.full(self.shape[lead:], missing_value(self.name, self.like), dtype=self.dtype)
        if masked_by(self.name) != "call_genotype":
            call.reshape(-1)[1:] = fill_value(self.name, self.like)
        call = call[(*region[lead:], ...)]
        others = [len(np.arange(n)[r]) for n, r in zip(self.shape, region[:lead], strict=False)]
        return np.broadcast_to(call, (*others, *call.shape)).copy()

    def get_encoded(self, coords: Sequence[Sequence[int]]) -> list[zarr_objects.Encoded]:
        """Chunks of them."""
        regions = [encoded_chunks.chunk_region(self.like, c) for c in coords]
        return [encoded_chunks.encode(self.like, c, r, self[r]) for c, r in zip(coords, regions, strict=True)]


# ---- what a field goes by -------------------------------------------------------------------


def field_of(name: str, array: AnyArray, number: str) -> Field:
    """How the vectors of an array are put in order; `number` is what they go by."""
    missing, fill = missing_value(name, array), fill_value(name, array)
    return Field(number, missing, fill)


def kind_of(name: str, array: AnyArray, numbers: Mapping[str, str]) -> str:
    """What goes by allele: ``GT`` the values, ``R``, ``A`` or ``G`` the last axis, ``""`` nothing."""
    return "GT" if name in ALLELE_NUMBERS else number_of(name, array, numbers)


def number_of(name: str, array: AnyArray, numbers: Mapping[str, str]) -> str:
    """
    What the last axis of a value goes by, of a call or of INFO: ``R``, ``A`` or ``G`` as in VCF, or ``""``.

    Its dimension says so; else the VCF header; else, of calls, the VCF specification (4.5, table 2).
    """
    names = dimensions(array)
    last, field = str(names[-1]), name.removeprefix("call_").removeprefix("variant_")
    if is_local(name, array, numbers.get(field, "")):
        return ""
    if last in _NUMBERS:
        return _NUMBERS[last]
    is_of_calls = SAMPLES in names
    usual = _RESERVED.get(field, "") if is_of_calls else ""
    return numbers.get(field, usual) if array.ndim > 1 + is_of_calls and last != "ploidy" else ""


def numbers_of(vcz: Vcz, of: str = "FORMAT") -> dict[str, str]:
    """
    The Number of each field with one of ``R``, ``A``, ``G``, or with L before it, as the VCF header says.

    `of` is ``FORMAT`` or ``INFO``.
    """
    header = str(vcz.attributes.get("vcf_header", ""))
    return dict(re.findall(rf"##{of}=<ID=([^,]+),Number=(L?[RAG]),", header))


_NUMBERS = {"alleles": "R", "alt_alleles": "A", "genotypes": "G"}
_RESERVED = {"AD": "R", "ADF": "R", "ADR": "R", "EC": "A", "GL": "G", "GP": "G", "PL": "G", "PP": "G", "CNL": "G"}


# ---- arrays ---------------------------------------------------------------------------------


def absent_calls(
    name: str, array: AnyArray, like: AnyArray, is_reference: np.ndarray, is_haploid: np.ndarray
) -> np.ndarray:
    """
    The calls of some variants that samples have no record of.

    Parameters
    ----------
    name, array
        What array they are for, and whose missing values.
    like
        The array as the store will have it, variants by samples by what a call has.
    is_reference, is_haploid
        Of which variants genotypes are the reference, and of which they have one allele.

    Returns
    -------
    numpy.ndarray
        The variants by 1 by what a call has.
    """
    missing, fill = missing_value(name, array), fill_value(name, array)
    dtype = np.promote_types(array.dtype, like.dtype) if name in ALLELE_NUMBERS else array.dtype
    values = np.full((len(is_reference), 1, *like.shape[2:]), missing, dtype=dtype)
    if not len(values):
        return values
    if dimensions(like)[-1] == "ploidy" and masked_by(name) == GENOTYPE:
        values[is_reference] = 0  # which is False, too
        values[is_haploid, :, 1:] = fill
    elif values.ndim > 2:
        values.reshape(len(values), 1, -1)[:, :, 1:] = fill
    return values


@dataclass(frozen=True)
class Harmonised(View):
    """
    An array of a source, over the variants and alleles of a store.

    Attributes
    ----------
    source
        The array as it is.
    like
        Its metadata as the store has them, with the source's samples.
    name
        Of the array.
    number
        Of the source, among those of the findings.
    findings
        What goes where, without the reports, which are the driver's.
    copied
        Runs of units whose chunks are those of the source: the first, the one after the last, and how much further
        down in the source they are, in chunks. It goes to every task, and a store can have a million units.
    span
        How many rows of the source a unit takes at most.
    genotype
        The source's genotypes, which tell the ploidy of each call; None if it has none.
    data
        What a mask is made of, where values are put in order: the mask alone does not say what is missing and what is
        fill, nor of how many alleles a vector is.
    kept
        What the blocks that the source keeps tell of variants that it lacks; None if nothing.
    """

    name: str
    number: int
    findings: Findings
    copied: tuple[tuple[int, int, int], ...]
    span: int
    genotype: AnyArray | None
    data: "Harmonised | None" = None
    kept: KeptCalls | None = None

    @classmethod
    def of(
        cls,
        name: str,
        source: Vcz,
        target: AnyArray,
        number: int,
        findings: Findings,
        data: "Harmonised | None" = None,
    ) -> "Harmonised":
        """`target` is the array of the store as it will be."""
        array = source.samples_arrays[name]
        axis = samples_axis(array)
        shape = tuple(array.shape[i] if i == axis else n for i, n in enumerate(target.shape))
        like = like_source(target, array, shape)
        by_genotype = kind_of(name, array, findings.numbers) == "G"
        genotype = source.samples_arrays.get(GENOTYPE) if by_genotype and data is None else None
        genotype = None if isinstance(genotype, Dropped) else genotype  # which the source does not have
        reports = findings.by_source.get(number, [])
        sent, at = findings.of_source(number)
        blocks = KeptBlocks.of(source, f"{findings.index.token}.{number}", findings.contigs, None)
        # those of a gVCF are not stored yet, and what they tell is found in the gVCF itself
        kept = None if findings.rules.gvcf else KeptCalls.of(blocks, name, like)
        view = cls(array, like, name, at, sent, (), max((r.span for r in reports), default=0), genotype, data, kept)
        return replace(view, copied=view._copied(reports))

    @property
    def kind(self) -> str:
        """What goes by allele: ``GT`` the values, ``R``, ``A`` or ``G`` the last axis, ``""`` nothing."""
        return kind_of(self.name, self.like, self.findings.numbers) if self.data is None else self.data.kind

    @property
    def dtype(self) -> np.dtype:
        """As the source's; where values number alleles, or are those of kept blocks, one that has room for more."""
        is_wider = self.kind == "GT" or self.kept is not None
        return np.promote_types(self.source.dtype, self.like.dtype) if is_wider else self.source.dtype

    @property
    def has_blocks(self) -> bool:
        """Whether the source is a gVCF, whose reference blocks tell calls."""
        return self.findings.index.sources[self.number].blocks is not None

    def _copied(self, reports: Sequence[UnitReport]) -> tuple[tuple[int, int, int], ...]:
        mine, theirs = arrays.widths(self.like), arrays.widths(self.source)
        rows = self.findings.index.unit
        # which columns of samples are the same is told where they are put
        if not mine[0] == theirs[0] == rows or mine[2:] != theirs[2:] or self.like.shape[2:] != self.source.shape[2:]:
            return ()
        if isinstance(cast("AnyArray | View", self.source), View) or not metadata.same_encoding(self.source, self.like):
            return ()
        runs: list[tuple[int, int, int]] = []
        by_allele = bool(self.kind)
        for report in sorted(reports):
            if report.shift is None or report.shift % rows or (by_allele and not report.same_alleles):
                continue
            start, shift = report.number * rows, report.shift // rows
            # the last chunk may be shorter on one side
            if min(rows, self.like.shape[0] - start) != min(rows, self.source.shape[0] - start - report.shift):
                continue
            if runs and runs[-1][1:] == (report.number, shift):
                runs[-1] = (runs[-1][0], report.number + 1, shift)
            else:
                runs.append((report.number, report.number + 1, shift))
        return tuple(runs)

    def n_copied(self, columns: Columns) -> int:
        """How many chunks of some columns are copied as they are."""
        n_units = sum(stop - start for start, stop, _ in self.copied)
        return n_units * columns.n_chunks // max(1, columns.grid[0])

    def _copy_of(self, unit: int) -> int | None:
        """Which chunk of the source a unit's chunk is, if it is one."""
        at = bisect_right(self.copied, unit, key=lambda run: run[0]) - 1
        if at < 0 or unit >= self.copied[at][1]:
            return None
        return unit + self.copied[at][2]

    def get_encoded(self, coords: Sequence[Sequence[int]]) -> list[zarr_objects.Encoded]:
        """Chunks as the store will have them: those of the source, or re-created."""
        copies = [self._copy_of(c[0]) for c in coords]
        theirs = [(unit, *c[1:]) for unit, c in zip(copies, coords, strict=True) if unit is not None]
        found = encoded_chunks.get_encoded(self.source, theirs)
        encoded_chunks.check_frames(self.source, theirs, found)
        rest = iter(found)
        return [self._encode(c) if unit is None else next(rest) for unit, c in zip(copies, coords, strict=True)]

    def _encode(self, coords: Sequence[int]) -> zarr_objects.Encoded:
        region = encoded_chunks.chunk_region(self.like, coords)
        return encoded_chunks.encode(self.like, coords, region, arrays.read(cast("AnyArray", self), region))

    def extra_mem(self, block: tuple[int, ...]) -> int:
        """What it takes to make a block beside the block and the chunks it is made of."""
        size = arrays.element_bytes(cast("AnyArray", self))
        n_samples = min(self.shape[1], max(arrays.outer_chunks(self.source)[1], block[1]))
        read = n_samples * (read_bytes(self.source, self.span) + read_bytes(self.genotype, self.span))
        # one unit after the other: its values, some times over, and how many they are
        unit = min(self.shape[0], self.findings.index.unit)
        made = math.prod(self.source.shape[2:]) * (5 * unit + min(self.shape[0], block[0])) * size
        counted = VECTOR_BYTES * unit if self.kind in ("R", "A", "G") else 0
        data = 0 if self.data is None else self.data.extra_mem(block)
        looking = self.findings.index.reading_mem
        looking += 0 if self.kept is None else self.kept.reading_mem(unit, n_samples)
        return data + looking + read + n_samples * (made + counted) + self._covering_mem(n_samples)

    def _covering_mem(self, n_samples: int) -> int:
        """What it takes to find the blocks of some samples, and to read them: run by run of the source."""
        source = self.findings.index.sources[self.number]
        if source.blocks is None:
            return 0
        span = source.blocks.slab_rows(n_samples)
        calls = [self.source, source.blocks.genotype, source.blocks.quality, source.spans.fields.get(LEN)]
        read = n_samples * sum(read_bytes(array, span) for array in calls)
        sites = [source.allele, source.position, *source.spans.fields.values(), *source.extents.fields.values()]
        decoding = sum(read_bytes(a, span) for a in sites if SAMPLES not in dimensions(a))
        return read + VECTOR_BYTES * n_samples * (self.findings.index.unit + span) + 4 * decoding + KEPT_BYTES

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Read a region: find the rows, and put in order what goes by allele."""
        if self.data is not None:
            return mask_of(self.name, self.data.name, self.data.source, self.data[region])
        rows, samples, *rest = region
        assert isinstance(rows, slice)
        parts = [self._unit(mine, n, at, samples) for mine, n, at in self._units(rows)]
        if self.has_blocks:
            units = zip(parts, self._units(rows), strict=True)
            parts = [self._with_blocks(values, mine, n, at, samples) for values, (mine, n, at) in units]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return values[(slice(None), slice(None), *rest)]

    def _units(self, rows: slice) -> Any:
        for unit, here in self.findings.index.units(rows):
            yield unit.sources[self.number].cut(here), unit.n_alleles[here], unit.start + here.start

    def _unit(self, mine: Matches, n_alleles: np.ndarray, start: int, samples: slice | np.ndarray) -> np.ndarray:
        """All of some variants: `mine` are their matches, `n_alleles` their alleles, from row `start` on."""
        present = np.flatnonzero(mine.rows >= 0)
        trailing = self.like.shape[2:]
        if len(present):
            low, high = int(mine.rows[present].min()), int(mine.rows[present].max()) + 1
            read: Any = arrays.read if isinstance(samples, slice) else arrays.read_at
            wanted = mine.rows[present] - low
            is_all = len(present) == high - low and (np.diff(wanted) == 1).all()

            def rows_of(array: AnyArray) -> np.ndarray:
                slab: np.ndarray = read(array, (slice(low, high), samples, *(slice(None),) * (array.ndim - 2)))
                return slab if is_all else slab[wanted]

            slab = self._in_order(rows_of, mine, n_alleles, present)
            if len(present) == len(mine.rows):
                return slab
        n_samples = len(samples) if isinstance(samples, np.ndarray) else len(range(*samples.indices(self.shape[1])))
        result = np.empty((len(mine.rows), n_samples, *trailing), dtype=self.dtype)
        if len(present):
            result[present] = slab
        absent = np.flatnonzero(mine.rows < 0)
        result[absent] = self._absent(start + absent, mine.rows[absent] == UNMATCHED)
        return self._with_kept(result, start, np.flatnonzero(mine.rows == ABSENT), samples)

    def _with_kept(self, values: np.ndarray, start: int, absent: np.ndarray, samples: slice | np.ndarray) -> np.ndarray:
        """The same values, those of blocks that the source keeps where it lacks a variant; see `_unit`."""
        if self.kept is None or not len(absent):
            return values
        rows, store = start + absent, self.findings.index.store
        told, missing = values[absent], self._absent(rows, np.ones(len(rows), dtype=bool))
        first, positions = int(absent[0]), arrays.read(store.position, (slice(int(rows[0]), int(rows[-1]) + 1),))
        where = store.contigs_of(rows), positions[absent - first].astype("i8")
        self.kept.put(told, missing, rows, *where, np.arange(self.shape[1])[samples])
        values[absent] = told
        return values

    def _with_blocks(
        self, values: np.ndarray, mine: Matches, n_alleles: np.ndarray, start: int, samples: slice | np.ndarray
    ) -> np.ndarray:
        """The same values, those of blocks where a sample's call is that of one; see `_unit`."""
        index = self.findings.index
        source, rows = index.sources[self.number], slice(start, start + len(mine.rows))
        found = covering(index, self.number, rows, mine.rows >= 0, samples, values.shape[1])
        variants, calls = np.nonzero(found.rows == UNMATCHED)
        values[variants, calls] = self._absent(start + variants, np.ones(len(variants), dtype=bool))[:, 0]
        variants, calls = np.nonzero(found.rows >= 0)
        chosen = found.rows[variants, calls]
        assert source.blocks is not None
        slabs = chosen // source.blocks.slab_rows(values.shape[1])
        for slab in np.unique(slabs).tolist():
            here = np.flatnonzero(slabs == slab)
            rows = slice(int(chosen[here].min()), int(chosen[here].max()) + 1)
            at = (chosen[here] - rows.start, calls[here])

            def rows_of(array: AnyArray, rows: slice = rows, at: Any = at) -> np.ndarray:
                return np.asarray(read_calls(array, rows, samples)[at][:, np.newaxis])

            which = np.searchsorted(found.used, chosen[here])
            told = found.n_alleles[which], n_alleles[variants[here]], found.unseen[which]
            values[variants[here], calls[here]] = self._of_blocks(rows_of, *told)[:, 0]
        return values

    def _of_blocks(
        self, rows_of: Callable[[AnyArray], np.ndarray], n_theirs: np.ndarray, n_ours: np.ndarray, unseen: np.ndarray
    ) -> np.ndarray:
        """Values of blocks, calls by 1: REF is the store's, and its other alleles were not seen."""
        slab = rows_of(self.source)
        maps = np.full((len(slab), int(n_theirs.max(initial=1))), -1, dtype="i8")
        maps[:, 0] = 0
        if self.kind != "GT":
            return self._by_allele(rows_of, slab, (maps, n_theirs, n_ours, unseen), np.ones(len(slab), dtype=bool))
        slab = self._lengthened(slab).astype(self.dtype, copy=False)
        return np.asarray(np.where(slab > 0, missing_value(self.name, self.source), slab))

    def _absent(self, rows: np.ndarray, is_unmatched: np.ndarray) -> np.ndarray:
        """
        The values of variants that the source lacks: rows by 1 by what a call has.

        Where it has a record there that matches none of the store's, its samples may well carry an allele of them:
        their genotypes are missing, also where absent ones are not.
        """
        contigs = self.findings.index.store.contigs_of(rows)
        haploid = self.findings.rules.haploid(self.findings.contigs)
        is_reference = ~is_unmatched & (self.findings.rules.absent == "reference")
        return absent_calls(self.name, self.source, self.like, is_reference, np.isin(contigs, haploid))

    def _in_order(
        self, rows_of: Callable[[AnyArray], np.ndarray], mine: Matches, n_alleles: np.ndarray, present: np.ndarray
    ) -> np.ndarray:
        """Put in order what goes by allele, where an allele has another number or the store has others."""
        slab = rows_of(self.source)
        maps, n_theirs, n_ours = mine.alleles[present], mine.n_alleles[present], n_alleles[present]
        other = mine.changed[present]
        unseen = np.full(len(present), -1) if mine.unseen is None else mine.unseen[present]
        if self.kind == "GT":
            slab = self._lengthened(slab).astype(self.dtype, copy=False)
            rows = np.flatnonzero(other)
            # an allele that the source does not have is an error, and stays visible; so do missing and fill
            shifts = np.where(maps >= 0, maps - np.arange(maps.shape[1]), 0)[rows].astype(slab.dtype)
            values = slab[rows]
            for allele in np.flatnonzero(shifts.any(axis=0)):
                slab[rows] += (values == allele) * shifts[:, allele].reshape(-1, *[1] * (slab.ndim - 1))
            if mine.unseen is not None:  # <NON_REF> stands for any allele
                is_unseen = (values == unseen[rows].reshape(-1, *[1] * (slab.ndim - 1))) & (values > 0)
                slab[rows] = np.where(is_unseen, missing_value(self.name, self.source), slab[rows])
            return slab
        return self._by_allele(rows_of, slab, (maps, n_theirs, n_ours, unseen), other | (n_theirs != n_ours))

    def _by_allele(
        self,
        rows_of: Callable[[AnyArray], np.ndarray],
        slab: np.ndarray,
        alleles: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
        is_changed: np.ndarray,
    ) -> np.ndarray:
        """
        Put vectors in the order of the store's alleles.

        Parameters
        ----------
        rows_of
            Reads the same rows of an array.
        slab
            The values.
        alleles
            For each row: what number each of its alleles has in the store, how many it has, how many the store has, and
            which of them stands for what was not seen.
        is_changed
            Which rows are not as they are.
        """
        result, changed = self._lengthened(slab), np.flatnonzero(is_changed)
        if not self.kind or not len(changed):
            return result
        result = result.copy() if result is slab else result
        genotype = None if self.genotype is None else rows_of(self.genotype)
        maps, *others = alleles
        patterns = np.concatenate([*(a[changed, None] for a in others), maps[changed]], axis=1)
        unique, which = np.unique(patterns, axis=0, return_inverse=True)
        field, width = self._field, self.like.shape[-1]
        for number, (n, m, unseen, *numbers) in enumerate(unique.tolist()):
            rows = changed[which.ravel() == number]
            own = None if genotype is None else genotype[rows]
            result[rows] = field.put_in_order(slab[rows], n, m, numbers, width, own, unseen)
        return result

    @property
    def _field(self) -> Field:
        return field_of(self.name, self.source, self.kind)

    def _lengthened(self, slab: np.ndarray) -> np.ndarray:
        """With the last axes as long as the store's; what is cut off is fill."""
        trailing = self.like.shape[2:]
        if slab.shape[2:] == trailing:
            return slab
        result = np.full((*slab.shape[:2], *trailing), fill_value(self.name, self.source), dtype=slab.dtype)
        both = tuple(slice(0, min(a, b)) for a, b in zip(slab.shape[2:], trailing, strict=True))
        result[(slice(None), slice(None), *both)] = slab[(slice(None), slice(None), *both)]
        return result
