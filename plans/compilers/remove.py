"""Remove: set the values of samples to missing, and blank their IDs; readers of VCZ skip samples with empty IDs.

Only the chunk columns that hold the samples are read and written, each once.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import Columns, chunk_regions
from plans.core.memory import Memory
from plans.core.model import AFTERWARDS, Plan, were
from plans.core.rewrite_columns import ColumnReader, Reencoded
from plans.core.withdrawn import Withdrawn, recording_removal
from plans.variants.stale import mark_stale
from vczstore.errors import IncompatibleError, SampleError
from vczstore.stores.base import Store
from vczstore.stores.edits import Consolidate, SetHeader, SetItems, SetNoFill, SetShape
from vczstore.vcz import arrays, vcf_headers
from vczstore.vcz.missing import TEXT, has_missing_value, lacks_missing_value, missing_value
from vczstore.vcz.model import (
    REMOVED,
    SAMPLE_ID,
    Vcz,
    listing,
    positions_of,
    refuse_padded,
    samples_axis,
    unknown_samples,
)

if TYPE_CHECKING:
    import cubed
    from zarr.abc.store import Store as ZarrStore

    from plans.core.xarray_backend import Opened

OPERATION = "remove"


def compile_remove(store: Store, vcz: Vcz, samples: Sequence[str], memory: Memory) -> Plan:
    """
    Compile the removal of samples from a store by their IDs; duplicates are ignored.

    Raises
    ------
    SampleError
        If no samples are given, some are not in the store (the message names all), or ``sample_id`` is no text.
    IncompatibleError
        If an array has a dtype without a missing value.
    """
    operation = OPERATION
    vcz.require_whole(operation)
    if not samples:
        raise SampleError(f"{operation}: no samples named; give sample IDs, or a file of them with --samples-file")
    positions, unknown = positions_of(vcz, list(dict.fromkeys(samples)))
    refuse_padded(operation, vcz, samples)
    if unknown:
        way_out = f"nothing was removed, vczstore samples {vcz.label} lists the samples"
        raise unknown_samples(operation, vcz, unknown, way_out)
    if (ids := vcz.arrays[SAMPLE_ID]).dtype.kind not in TEXT:
        raise SampleError(
            f"{operation}: {SAMPLE_ID} of {vcz.label} has dtype {ids.dtype}, in which the ID of a removed sample "
            "cannot be empty; write it as strings first"
        )
    for name, array in vcz.samples_arrays.items():
        if not has_missing_value(array):
            raise IncompatibleError(
                f"{operation}: {name} of {vcz.label} has dtype {array.dtype}, which has no missing value that could "
                "take the place of a sample's; delete the array, or store it as numbers or strings"
            )
    blanked = vcz.sample_ids.copy()
    blanked[positions] = REMOVED
    writes = tuple(
        RemoveFromArray.of(operation, name, array, positions, memory)
        for name, array in vcz.samples_arrays.items()
        if name != SAMPLE_ID
    )
    no_fill = SetNoFill.of(ids)  # else readers would take an empty ID for a missing one
    ids = ids if no_fill is None else no_fill.array
    fill_edits = () if no_fill is None else (no_fill, Consolidate((SAMPLE_ID,), vcz.zarr_format))
    header = vcf_headers.without(vcz.attributes, {*vcz.sample_ids[positions].tolist()}, {*blanked.tolist()})
    after, marks = mark_stale(vcz.planned({SAMPLE_ID: ids}, blanked))
    after = replace(after, attributes={**after.attributes, **header})
    return Plan(
        operation=operation,
        store=store,
        base=vcz.state,
        writes=writes,
        edits=(*set_header(header, vcz), *fill_edits, SetItems(ids, positions, REMOVED)),
        memory=memory,
        after=after,
        if_stopped="some values of the samples may be missing already",
        counts={"samples removed": len(positions)},
        preparations=marks,
        notes={AFTERWARDS: text} if (text := _neutral_note(vcz)) else {},
    )


def set_header(header: Mapping[str, Any], vcz: Vcz) -> list[SetHeader]:
    """Edits that write the reduced VCF header; apply them before IDs are blanked, so no finished removal lacks them."""
    return [SetHeader(name, value, vcz.zarr_format) for name, value in header.items()]


def compile_completable(store: Store, vcz: Vcz, samples: Sequence[str], memory: Memory) -> Plan:
    """
    Compile a removal that the store records, and that can be completed if it is interrupted.

    On plain Zarr, IDs in several chunks are blanked one chunk after the other. Since hashes of all IDs are recorded
    first, a second run recognises the IDs that are already blank as removed, not as unknown.
    """
    wanted = list(dict.fromkeys(samples))
    _, unknown = positions_of(vcz, wanted)
    removed = set(Withdrawn.of(store, vcz).among(unknown))
    remaining = [sample for sample in wanted if sample not in removed]
    before = f"{len(removed):,} of the samples {were(len(removed))} removed before"
    if removed and not remaining:
        raise SampleError(
            f"{OPERATION}: {vcz.label} has no sample {listing(wanted)} any more; nothing was removed, since {before}"
        )
    try:
        plan = recording_removal(compile_remove(store, vcz, remaining, memory), vcz, remaining)
    except SampleError as error:
        if not removed:
            raise
        raise SampleError(f"{error.message}; {before}", error.hint) from error
    return replace(plan, counts={**plan.counts, **({"samples removed before": len(removed)} if removed else {})})


def _neutral_note(vcz: Vcz) -> str:
    """A note on fields whose dtype has no missing value, and the values written instead; empty if there are none."""
    fields = [
        f"{name} ({array.dtype}) reads {missing_value(name, array)}"
        for name, array in vcz.samples_arrays.items()
        if lacks_missing_value(name, array.dtype)
    ]
    return f"no missing value: {listing(fields)}" if fields else ""


def compile_repair(store: Store, vcz: Vcz, names: Collection[str], memory: Memory) -> Plan:
    """
    Compile the completion of half-done removals: values that samples without an ID have in some arrays become missing.

    Trailing empty IDs beyond the samples of the call arrays are deleted.
    """
    n = vcz.n_samples if vcz.beyond_calls is None else vcz.beyond_calls
    ids, resized = vcz.sample_ids[:n], vcz.resized(n)
    longer = [name for name, array in resized.items() if array.shape != vcz.arrays[name].shape]
    shapes = [SetShape.of(resized[name]) for name in longer]
    positions = np.flatnonzero(ids == REMOVED)
    operation = "repair"
    writes = tuple(RemoveFromArray.of(operation, name, resized[name], positions, memory) for name in sorted(names))
    return Plan(
        operation=operation,
        store=store,
        base=vcz.state,
        writes=writes,
        edits=(*shapes, Consolidate(tuple(longer), vcz.zarr_format)),
        memory=memory,
        after=vcz.planned(resized, ids),
        if_stopped="some values of the samples may be missing already",
        counts={"empty IDs deleted": vcz.n_samples - len(ids), "arrays blanked": len(writes)},
    )


def compile_header(store: Store, vcz: Vcz, header: Mapping[str, Any], memory: Memory) -> Plan:
    """Compile the repair of VCF headers that name removed samples; `header` has the reduced attributes."""
    return Plan(
        operation="repair",
        store=store,
        base=vcz.state,
        edits=tuple(set_header(header, vcz)),
        memory=memory,
        after=replace(vcz, attributes={**vcz.attributes, **header}),
        if_stopped="some of the lines may be there still",
        counts={"headers": len(header)},
    )


@dataclass(frozen=True)
class RemoveFromArray(Reencoded):
    """
    Set the values of samples of one array to missing; its shape does not change.

    Attributes
    ----------
    positions
        The positions of the samples, increasing.
    value
        The missing value.
    """

    positions: np.ndarray
    value: Any
    read = ()

    @classmethod
    def of(cls, operation: str, name: str, array: AnyArray, positions: np.ndarray, memory: Memory) -> "RemoveFromArray":
        """Find the chunk columns that hold the samples, and choose the number of chunks per task."""
        axis = samples_axis(array)
        assert axis is not None
        touched = np.unique(arrays.cuts(array)[axis].of(positions)).tolist()
        columns = Columns.of(array, axis, touched)
        return cls(name, array, columns, positions, missing_value(name, array)).fit(operation, memory)

    def reader(self, store: "ZarrStore") -> "_Blanked":
        return _Blanked(arrays.planned(self.target, store=store), self.columns, self.positions, self.value)

    def by_xarray(self, store: "ZarrStore", memory: Memory, opened: "Opened") -> "list[cubed.Array]":
        """Select the columns and blank the samples with xarray."""
        from plans.core import xarray_backend

        array = arrays.planned(self.target, store=store)
        columns = xarray_backend.take(opened.variable(array, memory), self.columns.positions())
        blanked = xarray_backend.blank(columns, np.isin(self.columns.positions(), self.positions), self.value)
        return xarray_backend.write(blanked, array, self.columns)

    def by_zarr(self, store: "ZarrStore") -> None:
        """Assign the missing value, chunk by chunk."""
        array = arrays.planned(self.target, store=store)
        axis = self.columns.axis
        assert axis is not None
        cut = arrays.cuts(array)[axis]
        for column in self.columns.columns:
            for region in chunk_regions(array, {axis: range(cut.start(column), cut.stop(column))}):
                values = arrays.read(array, region)
                here = self.positions[cut.of(self.positions) == column] - region[axis].start
                values[(*([slice(None)] * axis), here)] = self.value
                array[region] = values


@dataclass(frozen=True)
class _Blanked(ColumnReader):
    """Reader of columns in which the samples at some positions of the array have a missing value."""

    positions: np.ndarray
    value: Any

    def block(self, index: tuple[int, ...]) -> np.ndarray:
        values, axis = super().block(index), self.columns.axis
        assert axis is not None
        for here, there in self.columns.regions(index):
            inside = self.positions[(self.positions >= there[axis].start) & (self.positions < there[axis].stop)]
            values[(*here[:axis], inside - there[axis].start + here[axis].start)] = self.value
        return values
