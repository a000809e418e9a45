"""Provenance: which append each sample came in by, in an array of the store; of stores that were created with it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
from zarr.types import AnyArray

from plans.core.model import Plan
from plans.core.views import like_source
from plans.schema.fitting import MadeView
from vczstore.errors import DamagedStoreError
from vczstore.stores.edits import Edit, SetAttribute
from vczstore.vcz import arrays
from vczstore.vcz.model import BATCH, SAMPLE_ID, Vcz

ATTRIBUTE = "vczstore_batches"
"""The attribute of the root group with a row for each append: its number, time, a digest of its sources, its job."""


@dataclass(frozen=True)
class Given(MadeView):
    """The numbers of samples of a source, which are known."""

    values: np.ndarray

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Those of some samples."""
        return np.asarray(self.values[region[0]])


def batches(vcz: Vcz) -> list[dict[str, Any]]:
    """
    The rows of the table.

    Raises
    ------
    DamagedStoreError
        If it is none of ours.
    """
    rows = vcz.attributes.get(ATTRIBUTE, [])
    if not isinstance(rows, list) or not all(isinstance(r, dict) and isinstance(r.get("batch"), int) for r in rows):
        raise DamagedStoreError(f"{vcz.label}: the root attribute {ATTRIBUTE} is no table of batches; restore it")
    return rows


def numbered(vcz: Vcz, sources: Sequence[Vcz]) -> tuple[Sequence[Vcz], list[dict[str, Any]]]:
    """
    Give the samples that come in the number of their batch, where the store keeps these.

    Returns
    -------
    sources : sequence of Vcz
        With an array of numbers.
    table : list of dict
        With a row for the batch; that of an append that was stopped, and begins again, is there already.
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
    return [_with(vcz, s, np.full(n, number)) for s, n in zip(sources, lengths, strict=True)], table


def as_before(vcz: Vcz, sources: Sequence[Vcz], places: Sequence[np.ndarray]) -> Sequence[Vcz]:
    """Give samples that are updated the numbers that they have, at their places in the store."""
    if BATCH not in vcz.samples_arrays:
        return sources
    known = arrays.read(vcz.arrays[BATCH], (slice(None),))
    result = []
    for source, to in zip(sources, places, strict=True):
        values = np.full(int(source.arrays[SAMPLE_ID].shape[0]), -1)
        values[source.positions] = known[to]
        result.append(_with(vcz, source, values))
    return result


def _with(vcz: Vcz, source: Vcz, values: np.ndarray) -> Vcz:
    like = like_source(vcz.arrays[BATCH], source.arrays[SAMPLE_ID], (len(values),))
    given = Given(like, like, BATCH, values.astype(like.dtype))
    return replace(source, arrays={**source.arrays, BATCH: cast("AnyArray", given)})


def noting(plan: Plan, table: list[dict[str, Any]]) -> Plan:
    """A plan that writes the table of batches, too: before the samples are visible, and again where that is lost."""
    if not table:
        return plan
    edit = SetAttribute(ATTRIBUTE, table, plan.after.zarr_format)
    after = replace(plan.after, attributes={**plan.after.attributes, ATTRIBUTE: table})
    return replace(plan.recording([edit], [edit]), after=after)


def of_job(plan: Plan, job: str, known: int) -> Plan:
    """A plan of a job, which the rows of the table name, but for as many as were known before."""

    def named(edit: Edit) -> Edit:
        if not isinstance(edit, SetAttribute) or edit.name != ATTRIBUTE:
            return edit
        return replace(edit, value=[*edit.value[:known], *({**row, "job": job} for row in edit.value[known:])])

    return replace(
        plan,
        preparations=tuple(map(named, plan.preparations)),
        edits=tuple(map(named, plan.edits)),
        first=tuple(of_job(one, job, known) for one in plan.first),
    )
