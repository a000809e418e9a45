"""SchemaChange: what a store needs before it can take the samples of its sources, be they new to it or not.

An append and an update ask the same: which dtypes, axes and fields there have to be, whether the values of a wider
dtype need it, what is re-encoded before anything comes in, and what is left for tasks to check.
"""

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zarr.types import AnyArray

from plans.core.compatibility import FitsDtype, check_metadata, data_checks, fits
from plans.core.memory import Memory
from plans.core.model import Check, Plan, Survey, Write
from plans.schema.fitting import is_derived
from plans.schema.layout import Fields, Layout, named, new_arrays, takes_all, widest
from plans.schema.missing import with_missing_values
from plans.schema.rebuild import compile_rebuild, cost, rebuilt_arrays, wider_notes
from plans.schema.widen import ALLELE, WriteMissing, rewritten, widenings
from plans.variants.allele_dimensions import arrays_to_widen
from plans.variants.dropped_fields import Dropped
from plans.variants.findings import Findings, Summary
from plans.variants.harmonised_fields import check_fields
from plans.variants.kept_blocks import BLOCKS
from plans.variants.reference_blocks import LEN
from vczstore.stores.base import Store
from vczstore.stores.edits import Consolidate, Edit, SetShape, WriteDocuments
from vczstore.vcz.model import Vcz, listing


@dataclass(frozen=True)
class SchemaChange:
    """
    What changes in the arrays of a store so that they can hold the samples of its sources.

    Attributes
    ----------
    was, vcz
        The store as it is, and with arrays that are re-encoded and created.
    rebuilt, created
        These arrays, by name.
    checks
        What is left for tasks to check.
    first
        What re-encodes, before anything else is written.
    is_committed_first
        Whether the re-encoded arrays are those that tasks read, since a folder is replaced before they begin.
    """

    was: Vcz
    vcz: Vcz
    rebuilt: Mapping[str, AnyArray]
    created: Mapping[str, AnyArray]
    checks: tuple[Check, ...]
    first: tuple[Plan, ...]
    is_committed_first: bool

    @property
    def counts(self) -> dict[str, int]:
        """What re-encoding takes, in numbers."""
        return cost(self.first[0]) if self.rebuilt else {}

    def chunks_of_store(self, widening: Sequence[Write]) -> int:
        """How many chunks of what the store has are re-encoded or rewritten."""
        return self.counts.get("chunks re-encoded", 0) + sum(write.decoded_chunks for write in widening)

    def notes(self, wider: Mapping[str, AnyArray], widening: Sequence[Write]) -> dict[str, str]:
        """What people are told of arrays that become wider, be it by chunks beside the old ones."""
        rewriting = {"rewritten": rewritten(widening)} if widening else {}
        return {**wider_notes(self.was, self.rebuilt, wider), **rewriting}


def compile_schema_change(
    operation: str,
    store: Store,
    vcz: Vcz,
    sources: Sequence[Vcz],
    layout: Layout,
    memory: Memory,
    *,
    fields: Fields,
    surveyed: bool,
    findings: Findings | None = None,
    by_allele: Mapping[str, int] | None = None,
) -> SchemaChange:
    """
    Compile what a store needs before it can take the samples of its sources.

    Parameters
    ----------
    operation
        What it is a part of.
    store, vcz
        The store: where it is, and the state that it will be in.
    sources
        What comes in, without the fields that are dropped.
    layout
        What the store needs, from `plans.schema.layout.layout_of`.
    memory
        What a task may use.
    fields
        What is done about fields that the store or a source lacks.
    surveyed
        Whether it is known which values need a wider dtype, so that no task has to check it.
    findings, by_allele
        How the sources are harmonised with the store, and how long the axes become that go by alleles.

    Raises
    ------
    VczstoreError
        If metadata tell that a source does not fit, or the store cannot be re-encoded.
    """
    layout = with_missing_values(operation, vcz, sources, layout, findings)
    texts = (ALLELE,) if findings is not None and findings.new_alleles else ()
    rebuilt = rebuilt_arrays(operation, vcz, layout, texts)
    created = new_arrays(vcz, sources, layout)
    after = replace(vcz, arrays=dict(sorted({**vcz.arrays, **rebuilt, **created}.items())))
    checks = _check(operation, after, sources, findings, by_allele, fields, surveyed=surveyed)
    first = (compile_rebuild(operation, store, vcz, rebuilt, memory),) if rebuilt else ()
    is_committed_first = any(plan.store is not store for plan in first)
    return SchemaChange(vcz, after, rebuilt, created, tuple(checks), first, is_committed_first)


def compile_growth(
    operation: str, store: Store, change: SchemaChange, layout: Layout, memory: Memory
) -> tuple[SchemaChange, Plan]:
    """
    Compile what makes axes longer, and writes fields that are added, for the samples that a store has.

    Returns
    -------
    change
        The same, with the longer arrays.
    plan
        What writes them, and does nothing where there are none.
    """
    wider = arrays_to_widen(operation, change.vcz, layout.lengths)
    widening = widenings(operation, change.vcz, wider, None, None, memory)
    n_samples = change.vcz.n_samples
    missing = [
        WriteMissing.of(operation, Dropped.of(name, array, n_samples), array, None, memory)
        for name, array in change.created.items()
    ]
    after = replace(change.vcz, arrays={**change.vcz.arrays, **wider})
    lengthened = [SetShape.of(array) for array in wider.values()]
    edits: list[Edit] = [*map(WriteDocuments.of, change.created.values()), *lengthened]
    changed = (*change.created, *wider)
    plan = Plan(
        operation=operation,
        store=store,
        base=change.was.state,
        checks=(),
        writes=(*(write for write in missing if write is not None), *widening),
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
    Look up which arrays of sources, by number and name, have values that the store's narrower dtype cannot hold.

    Yields
    ------
    Survey
        What has to be looked up, if anything has. What was found is to be sent back: a list for each of its scans.
    """
    scans = {
        (i, name): FitsDtype(operation, source.label, name, array, vcz.samples_arrays[name].dtype, source.chosen)
        for i, source in enumerate(sources)
        for name, array in source.samples_arrays.items()
        if not takes_all(vcz) and _may_not_fit(array, vcz.samples_arrays.get(name))
    }
    found = (yield Survey(operation, tuple(scans.values()), memory)) if scans else []
    return {at for at, values in zip(scans, found, strict=True) if values}


def dropped_fields(vcz: Vcz, sources: Sequence[Vcz], brought: Sequence[Vcz], fields: Fields) -> set[str]:
    """The fields that may be dropped and are missing, from some source at least, in the store or as a whole."""
    known = {name for one in (vcz, *sources) for name in one.samples_arrays}
    return {n for n in known if named(n, fields.drop) and any(n not in s.samples_arrays for s in brought)}


def kept_summary(brought: Sequence[Vcz], fields: Fields, dropped: Collection[str]) -> Summary:
    """What people are told of fields that may be dropped, and come in since they fit."""
    kept = sorted({n for source in brought for n in source.samples_arrays if named(n, fields.drop)} - set(dropped))
    if not kept:
        return Summary()
    return Summary({"fields kept (they fit)": len(kept)}, {"kept": f"{listing(kept)}, which can come in as it is"})


def _may_not_fit(theirs: AnyArray, ours: AnyArray | None) -> bool:
    """Whether values decide if the dtype of a store's array has room for those of a source."""
    if ours is None or fits(theirs.dtype, ours.dtype) or widest(theirs.dtype, ours.dtype) is None:
        return False
    return ours.dtype.kind in "iuU" or ours.dtype.kind == theirs.dtype.kind == "S"


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
    """Check what metadata tell of sources and a store that has all arrays it needs; what is left for tasks to check."""
    checks: list[Check] = []
    for source in sources:
        check_metadata(operation, vcz, source, harmonised=findings is not None, may_lack=_may_lack(vcz, source, fields))
        if findings is not None:
            check_fields(operation, vcz, source, findings, by_allele or {})
        mine = data_checks(operation, vcz, source, harmonised=findings is not None)
        checks += [check for check in mine if not (surveyed and isinstance(check, FitsDtype))]
    return checks


def _may_lack(vcz: Vcz, source: Vcz, fields: Fields) -> set[str]:
    """The fields of a store that are missing for the samples of a source, or follow from others."""
    lacks = {name for name in vcz.samples_arrays if name not in source.samples_arrays}
    if takes_all(vcz):
        return lacks
    # of samples without blocks nothing is known, and the length of a block is none of a variant's fields
    may_lack = (*fields.drop, *fields.add, BLOCKS, LEN)
    return {n for n in lacks if named(n, may_lack) or is_derived(n, source)}
