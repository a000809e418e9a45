"""Provenance: stores created with it record the append that added each sample, in an array."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
from zarr.types import AnyArray

from plans.core.model import Plan
from plans.core.views import like_source
from plans.schema.fitting import ComputedView
from vczstore.errors import DamagedStoreError
from vczstore.stores.edits import MetadataEdit, SetAttribute
from vczstore.vcz import arrays
from vczstore.vcz.model import BATCH, SAMPLE_ID, Vcz

ATTRIBUTE = "vczstore_batches"
"""Root attribute with one row per append: its number, time, digest of the sources, and ID of the job, if any."""


@dataclass(frozen=True)
class BatchNumbers(ComputedView):
    """View of the batch numbers of the samples of a source, held in memory."""

    values: np.ndarray

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        return np.asarray(self.values[region[0]])


def batches(vcz: Vcz) -> list[dict[str, Any]]:
    """
    Return the rows of the table of batches; empty if the store has none.

    Raises
    ------
    DamagedStoreError
        If the attribute is not a table of batches.
    """
    rows = vcz.attributes.get(ATTRIBUTE, [])
    if not isinstance(rows, list) or not all(isinstance(r, dict) and isinstance(r.get("batch"), int) for r in rows):
        raise DamagedStoreError(f"{vcz.label}: the root attribute {ATTRIBUTE} is not a table of batches; restore it")
    return rows


def with_batch_numbers(vcz: Vcz, sources: Sequence[Vcz]) -> tuple[Sequence[Vcz], list[dict[str, Any]]]:
    """
    Add an array of batch numbers to the sources, and a row for the batch to the table of batches, which is returned.

    An interrupted append that is run again has its row already. If the store does not record provenance, the sources
    are unchanged and the table is empty.
    """
    if BATCH not in vcz.samples_arrays or not sources:
        return sources, []
    table = batches(vcz)
    digest = hashlib.blake2b("".join(sorted(s.identity for s in sources)).encode(), digest_size=8).hexdigest()
    if not table or table[-1].get("sources") != digest:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        table = [*table, {"batch": max([0, *(r["batch"] for r in table)]) + 1, "time": time, "sources": digest}]
    number = table[-1]["batch"]
    lengths = [int(source.arrays[SAMPLE_ID].shape[0]) for source in sources]
    return [_with_numbers(vcz, s, np.full(n, number)) for s, n in zip(sources, lengths, strict=True)], table


def keep_batch_numbers(vcz: Vcz, sources: Sequence[Vcz], places: Sequence[np.ndarray]) -> Sequence[Vcz]:
    """Add their existing batch numbers to samples that are updated; `places` are their positions in the store."""
    if BATCH not in vcz.samples_arrays:
        return sources
    numbers = arrays.read(vcz.arrays[BATCH], (slice(None),))
    result = []
    for source, to in zip(sources, places, strict=True):
        values = np.full(int(source.arrays[SAMPLE_ID].shape[0]), -1)
        values[source.positions] = numbers[to]
        result.append(_with_numbers(vcz, source, values))
    return result


def _with_numbers(vcz: Vcz, source: Vcz, values: np.ndarray) -> Vcz:
    like = like_source(vcz.arrays[BATCH], source.arrays[SAMPLE_ID], (len(values),))
    view = BatchNumbers(like, like, BATCH, values.astype(like.dtype))
    return replace(source, arrays={**source.arrays, BATCH: cast("AnyArray", view)})


def with_batch_table(plan: Plan, table: list[dict[str, Any]]) -> Plan:
    """Return a plan that also writes the table of batches: in preparation, and with the edits that end the plan."""
    if not table:
        return plan
    edit = SetAttribute(ATTRIBUTE, table, plan.after.zarr_format)
    after = replace(plan.after, attributes={**plan.after.attributes, ATTRIBUTE: table})
    return replace(plan.recording([edit], [edit]), after=after)


def with_job(plan: Plan, job: str, known: int) -> Plan:
    """Return a plan in which the rows of the table after the first `known` ones have the ID of the job."""

    def stamped(edit: MetadataEdit) -> MetadataEdit:
        if not isinstance(edit, SetAttribute) or edit.name != ATTRIBUTE:
            return edit
        return replace(edit, value=[*edit.value[:known], *({**row, "job": job} for row in edit.value[known:])])

    return replace(
        plan,
        preparations=tuple(map(stamped, plan.preparations)),
        edits=tuple(map(stamped, plan.edits)),
        first_steps=tuple(with_job(earlier, job, known) for earlier in plan.first_steps),
    )
