"""Export: some samples of a store as a VCZ of its own on plain Zarr, of the same format."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from zarr.abc.store import Store as ZarrStore
from zarr.types import AnyArray

from plans.compilers.compact import documents_after
from plans.core.copy_chunks import CopyArray
from plans.core.gather_samples import Part, PutSamples
from plans.core.memory import Memory
from plans.core.model import Plan, Write
from plans.variants.stale import samples_change
from vczstore.stores.base import Store
from vczstore.stores.edits import Edit, Reconsolidate, SetShape, WriteDocuments
from vczstore.vcz import arrays, conversion, zarr_objects
from vczstore.vcz.model import BATCH, INFO_STATES, REMOVED, Vcz, dimensions, positions_of, samples_axis, unknown_samples

OPERATION = "export"


def chosen_samples(vcz: Vcz, named: Sequence[str]) -> np.ndarray:
    """
    The positions of the samples that are exported, in their order.

    Parameters
    ----------
    vcz
        The VCZ.
    named
        The IDs of samples; all but these if the first begins with ``^``, and all that there are if none are named.

    Raises
    ------
    SampleError
        If some are not there. All of these are named.
    """
    present = np.flatnonzero(vcz.sample_ids != REMOVED)
    if not named:
        return present
    is_complement = named[0].startswith("^")
    ids = list(dict.fromkeys([named[0].removeprefix("^"), *named[1:]]))
    positions, unknown = positions_of(vcz, ids)
    if unknown:
        way_out = f"nothing was written, vczstore samples {vcz.label} lists the samples"
        raise unknown_samples(OPERATION, vcz, unknown, way_out)
    if is_complement:
        return np.setdiff1d(present, positions)
    order = {sample: i for i, sample in enumerate(ids)}
    ranks = [order[sample] for sample in vcz.sample_ids[positions].tolist()]
    return np.asarray(positions[np.argsort(ranks, kind="stable")])


def compile_export(store: Store, vcz: Vcz, chosen: np.ndarray, memory: Memory) -> Plan:
    """
    Compile a copy of a VCZ with some of its samples.

    Parameters
    ----------
    store
        Where the copy comes to be, on plain Zarr; nothing is there yet.
    vcz
        What is copied.
    chosen
        The positions of the samples.
    memory
        What a task may use.
    """
    vcz = replace(vcz, arrays={name: array for name, array in vcz.arrays.items() if name != BATCH})
    n = len(chosen)
    after = {name: _target(array, n, vcz.zarr_format) for name, array in vcz.samples_arrays.items()}
    writes: list[Write] = []
    for name, array in (*vcz.arrays.items(), *vcz.inner.items()):
        if name in after:
            part = Part.make(array, chosen, np.arange(n))
            writes.append(PutSamples.of(OPERATION, array, after[name], [part], memory))
        else:
            writes.append(CopyArray.of(OPERATION, name, array, vcz.zarr_format, memory))
    is_all = n == int((vcz.sample_ids != REMOVED).sum())
    marked, marks = (vcz, ()) if is_all else samples_change(vcz)
    edits: list[Edit] = [SetShape.of(array, grid=True) for array in after.values()]
    edits += [*marks, _ForgetHistory(vcz.zarr_format)]
    edits.append(Reconsolidate((*vcz.arrays, *vcz.inner), tuple(vcz.groups), vcz.zarr_format))
    return Plan(
        operation=OPERATION,
        store=store,
        base="",
        checks=(),
        writes=tuple(writes),
        edits=(WriteDocuments(documents_after(vcz, edits)),),
        memory=memory,
        after=marked.planned(after, vcz.sample_ids[chosen]),
        if_stopped=f"{store.label} is no store yet; delete what is there and run the same command again",
        counts={"samples": n, "variants": vcz.n_variants},
    )


def _target(array: AnyArray, n_samples: int, zarr_format: int) -> AnyArray:
    """An array with another number of samples, and a regular grid, which every reader has."""
    axis = samples_axis(array)
    shape = tuple(n_samples if i == axis else n for i, n in enumerate(array.shape))
    metadata = conversion.in_format(
        array, zarr_format, shape=shape, dimension_names=dimensions(array), chunks=arrays.inner_chunks(array)
    )
    return arrays.from_metadata(metadata, array.store, array.path)


@dataclass(frozen=True)
class _ForgetHistory:
    """What a store remembers of what was done to it is not the copy's; which INFO fields are stale is."""

    zarr_format: int

    def apply(self, store: ZarrStore) -> None:
        """Drop these attributes of the root group."""
        key = "zarr.json" if self.zarr_format == 3 else ".zattrs"
        document = zarr_objects.read_json(store, key) or {}
        attributes = document.get("attributes", {}) if self.zarr_format == 3 else document
        for name in [*attributes]:
            if name.startswith("vczstore_") and name != INFO_STATES:
                del attributes[name]
        if document:
            zarr_objects.write_json(store, key, document)
