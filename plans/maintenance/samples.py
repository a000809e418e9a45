"""List the samples of a store."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from plans.maintenance.history import open_at
from plans.schema.provenance import batches
from vczstore.errors import IncompatibleError, UnsuitableError
from vczstore.execution.results import Shown, Unnamed
from vczstore.stores.base import Store
from vczstore.vcz import arrays
from vczstore.vcz.model import BATCH, REMOVED


@dataclass(frozen=True)
class SampleList(Shown, Unnamed):
    """
    The samples of a store.

    Attributes
    ----------
    store, snapshot
        Label of the store, and the snapshot that was read; the latter None on plain Zarr.
    ids
        IDs of the samples that are present, in store order; empty if removed samples were requested.
    removed
        Positions of removed samples along the samples axis, if requested; else empty.
    n_samples, n_removed
        Number of samples that are present, and that have been removed.
    batches
        Number of the append that added each sample of `ids`, -1 if unknown; None unless requested.
    table
        The appends, if `batches` is given: number, time, digest of the sources, and ID of the job.
    """

    store: str
    snapshot: str | None
    ids: list[str]
    removed: list[int]
    n_samples: int
    n_removed: int
    batches: list[int] | None = None
    table: list[dict[str, Any]] | None = None

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None or name == "snapshot"}

    def lines(self) -> Iterator[str]:
        """Yield the lines that the command prints: one ID or position in each."""
        ids = (sample if sample.isprintable() else repr(sample) for sample in self.ids)
        if self.batches is None:
            yield from ids
        else:
            appends = {row["batch"]: f"{row.get('time', '')}\t{row.get('job', '')}" for row in self.table or ()}
            unknown = "\t"
            yield from (f"{i}\t{n}\t{appends.get(n, unknown)}" for i, n in zip(ids, self.batches, strict=True))
        yield from map(str, self.removed)


def require_same(store: str, parts: Mapping[str, Any]) -> None:
    """Raise an `IncompatibleError` if the parts of a set do not have the same samples in the same order."""
    (first, ours), *others = parts.items()
    for name, theirs in others:
        if (ours.ids, ours.removed) != (theirs.ids, theirs.removed):
            is_removed = not (ours.ids or theirs.ids)
            what = "samples removed at the same places" if is_removed else "the same samples in the same order"
            raise IncompatibleError(
                f"samples: {store}: {first} and {name} do not have {what}; list those of one part by its own name, "
                f"such as {theirs.store}, or of some with --parts"
            )


def list_samples(store: Store, at: str | None = None, *, removed: bool = False, long: bool = False) -> SampleList:
    """
    List the samples of a store, or of its state at a tag, branch or snapshot; or the positions of removed samples.

    Raises
    ------
    UnsuitableError
        If `long` is set and the store does not record which append added a sample.
    """
    vcz = open_at("samples", store, at)
    ids = vcz.sample_ids
    is_removed = ids == REMOVED
    numbers = None
    if long and not removed:
        if BATCH not in vcz.samples_arrays:
            raise UnsuitableError(
                f"samples: {vcz.label} does not keep by which append samples came in, as stores do that are made with "
                "vczstore create --provenance; leave --long out"
            )
        numbers = arrays.read(vcz.arrays[BATCH], (slice(None),))[~is_removed].tolist()
    n_removed = int(np.sum(is_removed))
    return SampleList(
        store=store.label,
        snapshot=vcz.snapshot,
        ids=[] if removed else ids[~is_removed].tolist(),
        removed=np.flatnonzero(is_removed).tolist() if removed else [],
        n_samples=len(ids) - n_removed,
        n_removed=n_removed,
        batches=numbers,
        table=None if numbers is None else batches(vcz),
    )
