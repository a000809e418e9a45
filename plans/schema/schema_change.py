"""Schema changes that a store needs before the samples of its sources can be appended or updated.

Appends and updates share these steps: find the required dtypes, axes and fields, check whether values of a wider dtype
really need it, re-encode arrays before samples are written, and collect the checks that are left to tasks.
"""

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zarr.types import AnyArray

from plans.core.compatibility import FitsDtype, check_metadata, data_checks, fits
from plans.core.memory import Memory
from plans.core.model import Check, Plan, Survey, Write
from plans.schema.fitting import is_derived
from plans.schema.keep_blocks import with_blocks, with_room
from plans.schema.layout import (
    Fields,
    check_named,
    has_no_samples,
    layout_of,
    named,
    new_arrays,
    widest,
    without_unjoinable,
)
from plans.schema.missing import with_missing_values
from plans.schema.rebuild import compile_rebuild, cost, rebuilt_arrays, wider_notes
from plans.schema.widen import ALLELE, rewritten, widenings, write_missing
from plans.variants.allele_dimensions import allele_lengths, arrays_to_widen
from plans.variants.dropped_fields import Dropped
from plans.variants.findings import Findings, Summary
from plans.variants.harmonised_fields import check_fields, without_unfit_fields
from plans.variants.kept_blocks import BLOCKS
from plans.variants.reference_blocks import LEN
from vczstore.stores.base import Store
from vczstore.stores.edits import Consolidate, MetadataEdit, SetShape, WriteDocuments
from vczstore.vcz.model import SAMPLE_ID, Vcz, listing


@dataclass(frozen=True)
class SchemaChange:
    """
    The changes to the arrays of a store that make room for the samples of its sources.

    Attributes
    ----------
    was, vcz
        The store before the change, and with re-encoded and created arrays.
    rebuilt, created
        The arrays that are re-encoded, and those that are created, by name.
    checks
        Checks on data that are left to tasks.
    first
        Plans that change the store before anything else is written.
    is_committed_first
        Whether tasks read the re-encoded arrays, because a local folder is replaced before they begin.
    sources
        The sources, without dropped fields.
    lengths
        The lengths of dimensions that the store needs to take their samples.
    dropped
        The droppable fields that at least one source lacks.
    kept
        A summary of the droppable fields that are kept.
    """

    was: Vcz
    vcz: Vcz
    rebuilt: Mapping[str, AnyArray]
    created: Mapping[str, AnyArray]
    checks: tuple[Check, ...]
    first: tuple[Plan, ...]
    is_committed_first: bool
    sources: list[Vcz]
    lengths: Mapping[str, int]
    dropped: set[str]
    kept: Summary

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of chunks and bytes that are re-encoded; empty if none are."""
        return cost(self.first[0]) if self.rebuilt else {}

    def chunks_of_store(self, widening: Sequence[Write]) -> int:
        """Return the number of existing chunks of the store that are re-encoded or rewritten."""
        return self.counts.get("chunks re-encoded", 0) + sum(write.decoded_chunks for write in widening)

    def notes(self, wider: Mapping[str, AnyArray], widening: Sequence[Write]) -> dict[str, str]:
        """Return notes for the user on arrays that are widened, whether by re-encoding or by additional chunks."""
        rewriting = {"rewritten": rewritten(widening)} if widening else {}
        return {**wider_notes(self.was, self.rebuilt, wider), **rewriting}


def compile_schema_change(
    operation: str,
    store: Store,
    vcz: Vcz,
    sources: Sequence[Vcz],
    memory: Memory,
    *,
    fields: Fields,
    findings: Findings | None,
    unfit: Collection[tuple[int, str]] | None,
    adds_samples: bool = True,
) -> SchemaChange:
    """
    Compile the changes that a store needs to take the samples of its sources.

    Parameters
    ----------
    operation, store, vcz, sources, memory
        The operation that needs them, with its store, sources and memory.
    fields
        Fields to drop or add where the store or a source lacks them.
    findings
        How the sources are harmonised with the store; None if they are not.
    unfit
        What `look_up_unfit` returned; None if values have not been surveyed, so that tasks have to check them.
    adds_samples
        Whether the sample IDs change.

    Raises
    ------
    VczstoreError
        If the metadata of a source are incompatible, or the store cannot be re-encoded.
    """
    all_sources, fields = with_blocks(operation, vcz, sources, findings, fields)
    sources, by_allele = _prepared(operation, vcz, all_sources, findings, fields)
    dropped = dropped_fields(vcz, all_sources, sources, fields)
    layout = layout_of(operation, vcz, sources, by_allele, add=fields.add, unfit=unfit or ())
    if findings is not None:
        layout = with_room(layout, findings.highest_kept)
    if not adds_samples:
        layout = replace(layout, forms={name: form for name, form in layout.forms.items() if name != SAMPLE_ID})
    layout = with_missing_values(operation, vcz, sources, layout, findings)
    texts = (ALLELE,) if findings is not None and findings.new_alleles else ()
    rebuilt = rebuilt_arrays(operation, vcz, layout, texts)
    created = new_arrays(vcz, sources, layout)
    after = replace(vcz, arrays=dict(sorted({**vcz.arrays, **rebuilt, **created}.items())))
    checks = _check(operation, after, sources, findings, by_allele, fields, surveyed=unfit is not None)
    first = (compile_rebuild(operation, store, vcz, rebuilt, memory),) if rebuilt else ()
    is_committed_first = any(plan.store is not store for plan in first)
    kept = kept_summary(sources, fields, dropped)
    return SchemaChange(
        vcz, after, rebuilt, created, tuple(checks), first, is_committed_first, sources, layout.lengths, dropped, kept
    )


def compile_growth(operation: str, store: Store, change: SchemaChange, memory: Memory) -> tuple[SchemaChange, Plan]:
    """
    Compile the extension of axes, and the writing of added fields, for the existing samples of a store.

    The schema change is returned with the longer arrays. The plan does nothing if no array is extended or added.
    """
    wider = arrays_to_widen(operation, change.vcz, change.lengths)
    widening = widenings(operation, change.vcz, wider, None, None, memory)
    n_samples = change.vcz.n_samples
    missing = [
        write_missing(operation, Dropped.of(name, array, n_samples), array, None, memory)
        for name, array in change.created.items()
    ]
    after = replace(change.vcz, arrays={**change.vcz.arrays, **wider})
    edits: list[MetadataEdit] = [*map(WriteDocuments.of, change.created.values()), *map(SetShape.of, wider.values())]
    changed = (*change.created, *wider)
    plan = Plan(
        operation=operation,
        store=store,
        base=change.was.state,
        writes=(*missing, *widening),
        edits=(*edits, Consolidate(changed, after.zarr_format)) if changed else (),
        memory=memory,
        after=after,
        if_stopped="readers see the same values, perhaps in longer arrays",
        notes=change.notes(wider, widening),
        chunks_of_store=change.chunks_of_store(widening),
    )
    return replace(change, vcz=after, first=(*change.first, plan) if changed else change.first), plan


def look_up_unfit(
    operation: str, vcz: Vcz, sources: Sequence[Vcz], memory: Memory
) -> Generator[Survey, list[list[Any]], set[tuple[int, str]]]:
    """
    Survey which arrays of sources, by index and name, have values that the narrower dtype of the store cannot hold.

    Nothing is surveyed if that follows from the dtypes.
    """
    scans = {
        (i, name): FitsDtype(operation, source.label, name, array, vcz.samples_arrays[name].dtype, source.chosen)
        for i, source in enumerate(sources)
        for name, array in source.samples_arrays.items()
        if not has_no_samples(vcz) and _may_not_fit(array, vcz.samples_arrays.get(name))
    }
    results = (yield Survey(operation, tuple(scans.values()), memory)) if scans else []
    return {at for at, values in zip(scans, results, strict=True) if values}


def dropped_fields(vcz: Vcz, sources: Sequence[Vcz], brought: Sequence[Vcz], fields: Fields) -> set[str]:
    """Return the droppable fields that at least one source lacks after dropping."""
    names = {name for each in (vcz, *sources) for name in each.samples_arrays}
    return {n for n in names if named(n, fields.drop) and any(n not in s.samples_arrays for s in brought)}


def kept_summary(brought: Sequence[Vcz], fields: Fields, dropped: Collection[str]) -> Summary:
    """Summarise, for the user, the droppable fields that are kept because they fit."""
    kept = sorted({n for source in brought for n in source.samples_arrays if named(n, fields.drop)} - set(dropped))
    if not kept:
        return Summary()
    return Summary({"fields kept (they fit)": len(kept)}, {"kept": f"{listing(kept)}, which can be added unchanged"})


def _may_not_fit(theirs: AnyArray, ours: AnyArray | None) -> bool:
    """Whether it depends on the values of a source if the dtype of the store's array can hold them."""
    if ours is None or fits(theirs.dtype, ours.dtype) or widest(theirs.dtype, ours.dtype) is None:
        return False
    return ours.dtype.kind in "iuU" or ours.dtype.kind == theirs.dtype.kind == "S"


def _prepared(
    operation: str, vcz: Vcz, sources: Sequence[Vcz], findings: Findings | None, fields: Fields
) -> tuple[list[Vcz], dict[str, int] | None]:
    """The sources without dropped fields, and the new lengths of dimensions of alleles; None if not harmonised."""
    check_named(operation, vcz, sources, fields)
    sources = without_unjoinable(operation, vcz, sources, fields, harmonised=findings is not None)
    if findings is None:
        return sources, None
    by_allele: dict[str, int] = {}
    for source in sources:
        lengths = allele_lengths(operation, vcz, findings, source)
        by_allele |= {name: max(n, by_allele.get(name, 0)) for name, n in lengths.items()}
    layout = layout_of(operation, vcz, sources, by_allele, add=fields.add)
    with_new = replace(vcz, arrays={**vcz.arrays, **new_arrays(vcz, sources, layout)})
    sources = [without_unfit_fields(operation, with_new, s, findings, by_allele, fields.drop) for s in sources]
    return sources, by_allele


def _check(
    operation: str,
    vcz: Vcz,
    sources: Sequence[Vcz],
    findings: Findings | None,
    by_allele: Mapping[str, int] | None,
    fields: Fields,
    *,
    surveyed: bool,
) -> list[Check]:
    """Check the metadata of sources against a store with all arrays it needs; return the checks left to tasks."""
    checks: list[Check] = []
    for source in sources:
        check_metadata(operation, vcz, source, harmonised=findings is not None, may_lack=_may_lack(vcz, source, fields))
        if findings is not None:
            check_fields(operation, vcz, source, findings, by_allele or {})
        own = data_checks(operation, vcz, source, harmonised=findings is not None)
        checks += [check for check in own if not (surveyed and isinstance(check, FitsDtype))]
    return checks


def _may_lack(vcz: Vcz, source: Vcz, fields: Fields) -> set[str]:
    """Return the fields of a store that a source may lack: they are missing, or derived from other fields."""
    lacks = {name for name in vcz.samples_arrays if name not in source.samples_arrays}
    if has_no_samples(vcz):
        return lacks
    # samples may lack kept blocks, and the length of a reference block is not a property of variants
    may_lack = (*fields.drop, *fields.add, BLOCKS, LEN)
    return {n for n in lacks if named(n, may_lack) or is_derived(n, source)}
