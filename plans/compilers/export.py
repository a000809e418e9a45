"""Export: selected samples and variants of a store as a new VCZ on plain Zarr, of the same format."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from plans.compilers.compact import documents_of_copy
from plans.compilers.restore import operations_of
from plans.core.copy_chunks import CopyArray
from plans.core.gather_samples import Part, PutSamples
from plans.core.memory import Memory
from plans.core.model import START_OVER, CopiedFrom, Plan, Survey, Write, in_words, were, with_notes
from plans.core.select_rows import Rows, SelectRows
from plans.core.withdrawn import Withdrawn
from plans.variants.kept_blocks import BLOCKS, RUNS
from plans.variants.region_index import REGION_INDEX, IndexRows, other_regions
from plans.variants.regions import FindRows, Overlap, Region
from plans.variants.stale import mark_stale
from vczstore.errors import SampleError, UnsuitableError
from vczstore.execution.engine import run_survey
from vczstore.execution.options import Options
from vczstore.stores.base import Store
from vczstore.stores.edits import MetadataEdit, Reconsolidate, SetAttribute, SetShape
from vczstore.vcz import conversion, vcf_headers
from vczstore.vcz.model import (
    BATCH,
    INFO_STATES,
    REMOVED,
    SAMPLES,
    VARIANTS,
    Vcz,
    dimensions,
    listing,
    positions_of,
    refuse_other_spellings,
    refuse_padded,
    unknown_samples,
)

OPERATION, MAIN = "export", "main"


class Chosen(NamedTuple):
    """The positions of the exported samples, in order; the number of samples removed since; notes for the user."""

    positions: np.ndarray
    n_withdrawn: int
    notes: tuple[str, ...]


def chosen_samples(store: Store, vcz: Vcz, named: Sequence[str], *, is_complement: bool) -> Chosen:
    """
    Select the samples of the state `vcz` to export: the named ones, or with `is_complement` all others.

    If none are named, these are all samples of the state, except those removed since. Unknown IDs are no error with
    `is_complement`.

    Raises
    ------
    SampleError
        If named samples are unknown or were removed since, or no samples remain.
    """
    present = np.flatnonzero(vcz.sample_ids != REMOVED)
    removed_since = _removed_since(store, vcz)
    withdrawn, _ = positions_of(vcz, [*removed_since])
    ids = list(dict.fromkeys(named))
    positions, unknown = positions_of(vcz, ids)
    refuse_padded(OPERATION, vcz, ids)
    notes: tuple[str, ...] = (
        (f"removed since, and left out: {in_words({'samples': len(withdrawn)})}",) if len(withdrawn) else ()
    )
    if is_complement:
        chosen = np.setdiff1d(np.setdiff1d(present, withdrawn), positions)
        notes += _renamed_notes(store, vcz, chosen)
        if not len(chosen):
            raise SampleError(f"{OPERATION}: no sample of {vcz.label} is left; nothing was written, name fewer")
        if unknown:
            removed = Withdrawn.of(store, vcz).among(unknown)
            refuse_other_spellings(OPERATION, vcz, unknown, removed, vcz.sample_ids.tolist(), "nothing was written")
        unknown_notes = (f"named with ^, and not there: {in_words({'IDs': len(unknown)})}",) if unknown else ()
        return Chosen(chosen, len(withdrawn), (*notes, *unknown_notes))
    if not named:
        chosen = np.setdiff1d(present, withdrawn)
        return Chosen(chosen, len(withdrawn), (*notes, *_renamed_notes(store, vcz, chosen)))
    if unknown:
        way_out = f"nothing was written, vczstore samples {vcz.label} lists the samples"
        raise unknown_samples(OPERATION, vcz, unknown, way_out)
    if removed := [sample for sample in ids if sample in removed_since]:
        n = len(removed)
        raise SampleError(
            f"{OPERATION}: {n:,} of the samples that are named {were(n)} removed from {store.label} since; nothing was "
            f"written, leave {'it' if n == 1 else 'them'} out",
            f"removed were {listing(removed)}",
        )
    order = {sample: i for i, sample in enumerate(ids)}
    ranks = [order[sample] for sample in vcz.sample_ids[positions].tolist()]
    return Chosen(np.asarray(positions[np.argsort(ranks, kind="stable")]), len(withdrawn), ())


def _removed_since(store: Store, vcz: Vcz) -> set[str]:
    """
    The samples of a state that were removed later, on main or on the opened branch.

    The key of the hashes is needed only if the state has samples that the store no longer has.
    """
    removed = set[str]()
    for tip in _tips(store, vcz):
        missing = {*vcz.sample_ids.tolist()} - {*tip.sample_ids.tolist()} - {REMOVED}
        removed.update(Withdrawn.of(store, tip).among(sorted(missing), exactly=True) if missing else ())
    return removed


def _renamed_notes(store: Store, vcz: Vcz, positions: np.ndarray) -> tuple[str, ...]:
    """A note if samples of a state have been renamed later, according to the log; else no notes."""
    old = set[str]()
    for tip in _tips(store, vcz):
        missing = {*vcz.sample_ids[positions].tolist()} - {*tip.sample_ids.tolist()}
        if missing and _renamed_between(store, vcz.snapshot, tip.snapshot):
            old |= missing
    return (f"samples were renamed since: {len(old):,} of their IDs are those from before",) if old else ()


def _tips(store: Store, vcz: Vcz) -> list[Vcz]:
    """The present states of main and of the opened branch; empty if the store keeps no history."""
    is_kept = vcz.snapshot is not None and store.history.is_kept
    return [store.open(MAIN), store.open()] if is_kept else []


def _renamed_between(store: Store, past: str | None, tip: str | None) -> bool:
    """Whether samples were renamed between snapshot `past` and snapshot `tip`; False if `past` is not an ancestor."""
    renamed = False
    for entry in store.history.snapshots(tip):
        if entry.id == past:
            return renamed
        renamed |= "rename-samples" in operations_of(entry)
    return False


class Kept(NamedTuple):
    """The exported variants, and their ``region_index``; None if the VCZ has none."""

    rows: Rows
    regions: np.ndarray | None


def kept_variants(store: Store, vcz: Vcz, regions: Sequence[Region], options: Options) -> Kept | None:
    """Find the variants that overlap regions; None if all variants do."""
    scan = FindRows.of(OPERATION, vcz, Overlap.of(regions, vcz.table("contig_id").tolist()))
    (runs_by_task,) = run_survey(Survey(OPERATION, (scan,), options.memory), store, options)
    runs = np.concatenate([np.empty((0, 2), dtype="i8"), *runs_by_task])
    rows = Rows.of(runs[np.argsort(runs[:, 0])])
    if rows.n == vcz.n_variants:
        return None
    if REGION_INDEX not in vcz.arrays:
        return Kept(rows, None)
    scan_kept = IndexRows.of(vcz, rows, vcz.chunk_lengths[VARIANTS])
    (index_rows,) = run_survey(Survey(OPERATION, (scan_kept,), options.memory), store, options)
    return Kept(rows, IndexRows.joined(index_rows))


def without_kept_blocks(vcz: Vcz) -> tuple[Vcz, tuple[str, ...]]:
    """
    Drop kept reference blocks, which would reveal calls outside the regions; return the VCZ and notes for the user.

    Raises
    ------
    UnsuitableError
        If a nested group has arrays of variants, since nested groups are copied unchanged.
    """
    if (path := next((path for path, array in vcz.inner.items() if VARIANTS in dimensions(array)), None)) is not None:
        raise UnsuitableError(
            f"{OPERATION}: {path} of {vcz.label} lies in a group of its own, so its variants cannot be chosen; leave "
            "the regions out, or export a copy without that array"
        )
    others = {name: array for name, array in vcz.arrays.items() if name not in (BLOCKS, RUNS)}
    notes = (BLOCKS_LEFT_OUT,) if len(others) < len(vcz.arrays) else ()
    return replace(vcz, arrays=others), notes


BLOCKS_LEFT_OUT = "reference blocks are left out: they would tell calls outside the regions, too"
NO_VARIANTS = "warning: no variant overlaps the regions; what is written has 0 variants"


def compile_export(store: Store, vcz: Vcz, choice: Chosen, memory: Memory, kept: Kept | None = None) -> Plan:
    """Compile a copy of a VCZ with selected samples and variants (None for all) to new plain Zarr."""
    header = vcf_headers.without_samples(vcz.attributes)  # always, since it may also name former samples
    members = {name: array for name, array in vcz.arrays.items() if name != BATCH}
    vcz = replace(vcz, arrays=members, attributes={**vcz.attributes, **header})
    n = len(choice.positions)
    lengths = {SAMPLES: n, VARIANTS: vcz.n_variants if kept is None else kept.rows.n}
    is_changed = {SAMPLES} if kept is None else {SAMPLES, VARIANTS}
    changed = {name: array for name, array in vcz.arrays.items() if is_changed & {*dimensions(array)}}
    # a regular grid, which all readers support
    after = {n: conversion.in_format(a, vcz.zarr_format, lengths=lengths, chunks={}) for n, a in changed.items()}
    index = () if kept is None or kept.regions is None else (other_regions(vcz.arrays[REGION_INDEX], kept.regions),)
    writes: list[Write] = []
    for name, array in (*vcz.arrays.items(), *vcz.inner.items()):
        if index and name == REGION_INDEX:
            after[name] = index[0].array
        elif name not in after:
            writes.append(CopyArray.of(OPERATION, name, array, vcz.zarr_format, memory))
        elif kept is not None and VARIANTS in dimensions(array):
            writes.append(SelectRows.of(OPERATION, array, after[name], kept.rows, choice.positions, memory))
        else:
            part = Part.make(array, choice.positions, np.arange(n))
            writes.append(PutSamples.of(OPERATION, array, after[name], [part], memory))
    is_all = n == int((vcz.sample_ids != REMOVED).sum())
    marked, marks = (vcz, ()) if is_all else mark_stale(vcz)
    edits: list[MetadataEdit] = [SetShape.of(array, grid=True) for array in after.values()]
    edits += index
    edits += [SetAttribute(name, value, vcz.zarr_format) for name, value in header.items()]
    edits += [*marks, Reconsolidate((*vcz.arrays, *vcz.inner), tuple(vcz.groups), vcz.zarr_format)]
    # attributes of vczstore, such as the ledger, describe the store, not its copy
    ours = [name for name in vcz.attributes if name.startswith("vczstore_") and name != INFO_STATES]
    edits += [SetAttribute(name, None, vcz.zarr_format) for name in ours]
    plan = Plan(
        operation=OPERATION,
        store=store,
        base="",
        writes=tuple(writes),
        edits=(documents_of_copy(vcz, edits),),
        copied_from=CopiedFrom.of(vcz),
        memory=memory,
        after=marked.planned(after, vcz.sample_ids[choice.positions]),
        if_stopped=f"{store.label} is no store yet",
        way_out=START_OVER,
        counts={"samples": n, "variants": lengths[VARIANTS]},
    )
    return with_notes(plan, *choice.notes, *([] if lengths[VARIANTS] or kept is None else [NO_VARIANTS]))
