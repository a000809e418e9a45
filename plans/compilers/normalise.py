"""Normalise: map a source to the variants and alleles of a store, and write it as a new store."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
from zarr.storage import MemoryStore
from zarr.types import AnyArray

from plans.core.compatibility import data_checks
from plans.core.copy_chunks import CopyArray
from plans.core.gather_samples import Part, PutSamples
from plans.core.memory import Memory
from plans.core.model import START_OVER, Plan
from plans.core.views import View
from plans.schema.fitting import fitted
from plans.schema.keep_blocks import look_up_highest, room_for, with_blocks, without_lengths
from plans.schema.layout import STRINGS, Fields, Form, check_named, without_unjoinable
from plans.schema.missing import missing_where_harmonised, with_missing
from plans.schema.widen import Rewritten, WriteAlleles
from plans.variants.allele_dimensions import allele_lengths
from plans.variants.dropped_fields import Dropped
from plans.variants.field_numbers import with_numbers
from plans.variants.findings import Findings, Summary
from plans.variants.harmonise_rules import Rules
from plans.variants.harmonised_fields import check_fields, harmonised_array, without_unfit_fields
from plans.variants.surveys import match_sources
from vczstore.execution.operations import Stages
from vczstore.stores.base import Store
from vczstore.stores.edits import WriteDocuments
from vczstore.vcz import arrays, conversion
from vczstore.vcz.missing import lacks_missing_value
from vczstore.vcz.model import BATCH, SAMPLES, VARIANTS, Vcz, samples_axis

OPERATION = "normalise"

CARRIED = (
    "contig_id",
    "contig_length",
    "filter_id",
    "filter_description",
    "region_index",
    "variant_END",
    "variant_SVLEN",
    "variant_allele",
    "variant_contig",
    "variant_filter",
    "variant_id",
    "variant_id_mask",
    "variant_length",
    "variant_position",
    "variant_quality",
)
"""
Arrays that are copied from the store: those that describe its variants. INFO depends on samples, except END and SVLEN,
which are part of the identity of symbolic ALTs.
"""


TABLES = ("contigs", "contig_lengths", "filters")
"""Attributes of the root group with lookup tables of variants, for stores that have no arrays for these."""


def compile_normalise(store: Store, vcz: Vcz, source: Vcz, rules: Rules, memory: Memory, fields: Fields) -> Stages:
    """
    Compile the mapping of a source to the variants and alleles of a store, in stages.

    The result has the samples of the source, and is written to `store`, of format 3; the store `vcz` is not changed.
    Dropped fields become missing if they cannot be harmonised.

    Raises
    ------
    VczstoreError
        If the source cannot be harmonised.
    """
    # provenance is recorded when the result is appended
    vcz, source = (replace(v, arrays={n: a for n, a in v.arrays.items() if n != BATCH}) for v in (vcz, source))
    (source,) = with_numbers(vcz, [source], rules)
    findings = yield from match_sources(OPERATION, vcz, [source], rules, memory)
    highest = yield from look_up_highest(OPERATION, source, [] if rules.gvcf else [source], memory)
    (source,) = without_lengths([source], rules)
    lengths = allele_lengths(OPERATION, vcz, findings, source)
    check_named(OPERATION, vcz, [source], fields)
    schema = vcz if vcz.n_samples else replace(vcz, arrays={**source.arrays, **vcz.arrays})
    (prepared,) = without_unjoinable(OPERATION, schema, [source], fields, harmonised=True)
    prepared = without_unfit_fields(OPERATION, schema, prepared, findings, lengths, fields.drop)
    check_fields(OPERATION, source, prepared, findings, lengths)
    ((prepared,), _) = with_blocks(OPERATION, vcz, [prepared], findings, fields)
    lacking = {*fields.drop, *source.samples_arrays} - set(prepared.samples_arrays)
    dropped = {name: array for name, array in vcz.samples_arrays.items() if name in lacking}
    writes: list[CopyArray | Rewritten | WriteAlleles | PutSamples] = [
        _carry_over(name, vcz.arrays[name], lengths, findings, memory) for name in CARRIED if name in vcz.arrays
    ]
    members = {write.name: write.target for write in writes}
    lengths = {**lengths, VARIANTS: vcz.n_variants, SAMPLES: source.n_samples}
    # readers, and the region_index that is copied, take the chunk length of calls for that of variants
    row_chunks = {VARIANTS: vcz.chunk_lengths[VARIANTS]}
    by_sample = {**dropped, **prepared.samples_arrays}
    calls = {
        name: _with_missing(name, _target(name, _stored(array), lengths, row_chunks), vcz, source, dropped, findings)
        for name, array in by_sample.items()
    }
    calls |= {name: _with_room(calls[name], n) for name, n in highest.items() if name in calls}
    members |= calls
    prepared = fitted(prepared, calls, harmonised=True)
    for name, after in calls.items():
        axis = samples_axis(after)
        empty = tuple(0 if i == axis else n for i, n in enumerate(after.shape))
        incoming: Any = (
            Dropped.of(name, after, source.n_samples)
            if name in dropped
            else harmonised_array(name, 0, prepared, calls, findings)
        )
        part = Part.make(incoming, np.arange(source.n_samples), np.arange(source.n_samples))
        writes.append(PutSamples.of(OPERATION, arrays.planned(after, shape=empty), after, [part], memory))
    # attributes of vczstore, such as the ledger, describe the source as a store, not as a batch
    attributes = {name: value for name, value in source.attributes.items() if not name.startswith("vczstore_")}
    attributes = {name: value for name, value in attributes.items() if name not in TABLES}
    attributes |= {name: vcz.attributes[name] for name in TABLES if name in vcz.attributes}
    summary = Summary.of(findings, calls, lacking)
    root = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return Plan(
        operation=OPERATION,
        store=store,
        base="",
        checks=tuple(data_checks(OPERATION, prepared, prepared, harmonised=True)),
        writes=tuple(writes),
        preparations=tuple(WriteDocuments.of(array) for array in members.values()),
        edits=(WriteDocuments({"zarr.json": root}),),
        memory=memory,
        after=Vcz(store.label, MemoryStore(), members, attributes, 3, None, source.sample_ids),
        if_stopped="nothing there reads as a store",
        way_out=START_OVER,
        counts={"samples": source.n_samples, "variants": vcz.n_variants, **summary.counts},
        notes=summary.notes,
    )


def _stored(array: AnyArray) -> AnyArray:
    """The array itself; for a view, the array whose metadata it has, with a regular grid."""
    view = cast("AnyArray | View", array)
    if not isinstance(view, View):
        return array
    like = view.like
    return arrays.with_regular_grid(like, arrays.outer_chunks(like)) if arrays.is_flexible(like) else like


def _target(name: str, array: AnyArray, lengths: Mapping[str, int], chunks: Mapping[str, int] = {}) -> AnyArray:
    """An array of the result, with the encoding of `array` where format 3 allows."""
    target = conversion.in_format(array, 3, lengths=lengths, chunks=chunks, store=MemoryStore(), path=name)
    return conversion.with_default_keys(target)


def _with_room(after: AnyArray, highest: int) -> AnyArray:
    """The array, with a dtype that can hold the highest value of kept reference blocks."""
    dtype = room_for(after.dtype, highest)
    return after if dtype == after.dtype else conversion.reformed(after, dtype=dtype)


def _with_missing(
    name: str, after: AnyArray, vcz: Vcz, source: Vcz, dropped: Collection[str], findings: Findings
) -> AnyArray:
    """The array, with a dtype that has a missing value if it will have missing values."""
    if not lacks_missing_value(name, after.dtype):
        return after
    form, holder = Form.of(after), vcz if name in dropped else source
    why = f"the samples of {source.label}, of which it is dropped" if name in dropped else None
    if why is None and VARIANTS in form.dimensions:
        why = missing_where_harmonised(name, form, vcz, [source], findings)
    if why is None:
        return after
    return conversion.reformed(after, dtype=with_missing(OPERATION, holder.label, name, form, why).dtype)


def _carry_over(
    name: str, array: AnyArray, lengths: dict[str, int], findings: Findings, memory: Memory
) -> CopyArray | Rewritten | WriteAlleles:
    """The write that copies an array from the store."""
    after = _target(name, array, lengths)
    if name == "variant_allele" and findings.new_alleles:
        if after.dtype.kind in "US":  # a fixed width would truncate longer alleles
            after = conversion.reformed(after, dtype=STRINGS)
        return WriteAlleles.of(None, after, findings)
    if after.shape != array.shape:
        return Rewritten.of(OPERATION, array, after, memory)
    copy = CopyArray.of(OPERATION, name, array, 3, memory)
    return replace(copy, target=conversion.with_default_keys(copy.target))
