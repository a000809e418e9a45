"""The surveys before sources are harmonised: which variants match, which are inserted, which values do not fit."""

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from plans.core.compatibility import check_builds
from plans.core.memory import Memory
from plans.core.model import Survey
from plans.variants.field_numbers import numbers_of
from plans.variants.find_insertion import find_insertion
from plans.variants.findings import Findings
from plans.variants.harmonise_rules import Rules
from plans.variants.match_index import FindMatches, Index, UnitReport
from plans.variants.misfits import OF_STORE, FindMisfits, Misfit
from plans.variants.misfits import Source as MisfitSource
from plans.variants.reference_blocks import Blocks, FindBlocks, refusal
from plans.variants.sites import Sites
from plans.variants.sortedness import FindRuns, Runs, site, unit_rows
from plans.variants.unit_cache import KEPT_BYTES
from vczstore.errors import IncompatibleError
from vczstore.vcz import arrays
from vczstore.vcz.model import Vcz, listing


def match_sources(
    operation: str,
    vcz: Vcz,
    sources: Sequence[Vcz],
    rules: Rules,
    memory: Memory,
    *,
    interrupted_at: int | None = None,
) -> Generator[Survey, list[list[Any]], Findings]:
    """
    Match the variants of sources with those of a store, in two or more surveys.

    The caller runs each survey, and sends back its results: a list for each scan. `interrupted_at` is as in
    `Vcz.require_whole`, for the store.

    Raises
    ------
    VczstoreError
        If a VCZ is damaged, variants are not sorted, or variants of a source match nothing and the rules refuse them.
    """
    vcz.require_whole(operation, interrupted_at=interrupted_at)
    for source in sources:
        source.require_whole(operation)
    scans = run_scans(operation, vcz, sources)
    block_scans = [FindBlocks(operation, source, unit_rows(source)) for source in sources if rules.gvcf]
    seen = yield Survey(operation, (*scans, *block_scans), memory)
    runs = [scan.joined(items) for scan, items in zip(scans, seen, strict=False)]
    blocks = [
        Blocks.of(operation, f.vcz, f.joined(items), rules.min_gq)
        for f, items in zip(block_scans, seen[len(scans) :], strict=True)
    ]
    scan = match_scan(operation, vcz, sources, rules, runs, blocks or [None] * len(sources))
    (reports,) = yield Survey(operation, (scan,), memory)
    findings = _findings(operation, vcz, sources, rules, scan.index, reports)
    if rules.is_copied or (rules.new_variants == "insert" and findings.n_unmatched):
        insertion, index = yield from find_insertion(
            operation, vcz, sources, runs, scan.index, memory, rules, findings.n_unmatched
        )
        scan = FindMatches(operation, index, insertion.records.reading_mem + scan.mem)
        (reports,) = yield Survey(operation, (scan,), memory)
        findings = _findings(operation, vcz, sources, rules, index, reports)
        findings = replace(findings, insertion=insertion, contigs=insertion.contigs)
    misfit_scan = _misfit_scan(vcz, sources, findings, scan)
    if not misfit_scan.is_due:
        return findings
    (misfits,) = yield Survey(operation, (misfit_scan,), memory)
    first_misfits: dict[tuple[str, str], Misfit] = {}
    for misfit in sorted(Misfit(*item) for items in misfits for item in items):
        if misfit.source == OF_STORE:
            raise IncompatibleError(
                f"{operation}: {misfit.name} of {vcz.label} has allele {misfit.found} at variant {misfit.row}, "
                f"{site(vcz, misfit.row)}, which has {misfit.n_alleles}, REF included, and would get more; "
                "vczstore verify names the sample, and vczstore update replaces its calls"
            )
        first_misfits.setdefault((sources[misfit.source].label, misfit.name), misfit)
    return replace(findings, misfits=first_misfits)


def _misfit_scan(vcz: Vcz, sources: Sequence[Vcz], findings: Findings, scan: FindMatches) -> FindMisfits:
    """Return the last scan: for values that do not fit the alleles."""
    reports = findings.by_source
    checked = tuple(MisfitSource.of(s, vcz, findings.numbers, reports.get(i, [])) for i, s in enumerate(sources))
    # an update replaces all calls of its samples, and a normalised copy has none of the store's
    replaced = {i for s in sources for i in s.sample_ids.tolist()} if scan.operation == "update" else set()
    growing = () if scan.operation == "normalise" else findings.changed_units
    store = MisfitSource.of_store(vcz, replaced, growing)
    gvcfs = [(s.blocks, c.n_samples) for s, c in zip(findings.index.sources, checked, strict=True)]
    slabs = [blocks.slab_rows(n_samples) for blocks, n_samples in gvcfs if blocks is not None]
    span = max([*slabs, *(r.span for r in findings.reports.values())], default=0)
    return FindMisfits(findings.index, checked, store, scan.rows_per_task, span, scan.mem)


def run_scans(operation: str, store: Vcz, sources: Sequence[Vcz]) -> list[FindRuns]:
    """Return the scans for runs of the store and each source. Raise an `IncompatibleError` if an array is missing."""
    for vcz in (store, *sources):
        for name in ("variant_contig", "variant_position", "variant_allele", "contig_id"):
            if not vcz.has_table(name):
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
    """Return the second scan: for matches, given the runs of the store and of each source."""
    contigs = store.table("contig_id").tolist()
    vczs = zip((store, *sources), runs, (None, *blocks), strict=True)
    ours, *theirs = (Sites.of(vcz, runs_of, contigs, blocks_of) for vcz, runs_of, blocks_of in vczs)
    # an insertion joins variants with those of the store as `create` does, and so adds alleles itself
    allows = rules.allow_new_alleles and rules.new_variants != "insert"
    index = Index(uuid4().hex, ours, tuple(theirs), store.n_variants, unit_rows(store), allows)
    return FindMatches(operation, index, _match_mem(index))


def _match_mem(index: Index) -> int:
    """Return the memory for matching a unit, in bytes: reading the store and one source at a time, and all matches."""
    read = [(s.position, s.contig, s.allele, *s.extents.fields.values()) for s in (index.store, *index.sources)]
    reading = [4 * sum(arrays.decode_mem(a, 2) for a in site_arrays) for site_arrays in read]
    rows = min(index.unit, index.n_variants)
    matches = sum(3 * rows * (16 + 8 * s.allele.shape[1]) for s in index.sources)
    matches += KEPT_BYTES if any(s.blocks is not None for s in index.sources) else 0
    return reading[0] + max(reading[1:], default=0) + matches


def _findings(operation: str, vcz: Vcz, sources: Sequence[Vcz], rules: Rules, index: Index, seen: Any) -> Findings:
    """Combine the reports of all tasks. Raise an `IncompatibleError` if the rules refuse a source."""
    reports = {(r.number, r.source): r for items in seen for r in (UnitReport(*item) for item in items)}
    findings = Findings(
        rules,
        replace(index, is_surveyed=True),
        reports,
        tuple(vcz.table("contig_id").tolist()),
        {**numbers_of(vcz), **rules.by_field},
    )
    for i, source in enumerate(sources):
        n, first = findings.first_unmatched(i)
        block_rows = [r.block for r in findings.by_source.get(i, []) if r.block is not None]
        if block_rows:
            raise refusal(operation, source, min(block_rows))
        blocks = index.sources[i].blocks
        n_variants = source.n_variants if blocks is None else blocks.n_variants
        if blocks is None:
            _check_has_calls(operation, vcz, source, rules, n)
        if first is not None and rules.new_variants == "refuse":
            alleles = "" if rules.allow_new_alleles else "let new alleles in with --allow-new-alleles, "
            alleles += "" if operation == "normalise" else "insert them with --new-variants insert, "
            raise IncompatibleError(
                f"{operation}: {n:,} of the {n_variants:,} variants of {source.label} match none of the store, "
                f"the first is variant {first}, {site(source, first)}; {alleles}leave them out with --new-variants "
                "drop, or make a store that has them with vczstore create"
            )
    return findings


def _check_has_calls(operation: str, store: Vcz, source: Vcz, rules: Rules, n_unmatched: int) -> None:
    """Raise an `IncompatibleError` if a source would add only samples without calls."""
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
