"""The samples of a store."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from plans.maintenance.history import open_at
from vczstore.stores.base import Store
from vczstore.vcz.model import REMOVED


@dataclass(frozen=True)
class SampleList:
    """
    The samples of a store.

    Attributes
    ----------
    store, snapshot
        Which store was looked at, and its snapshot; None on plain Zarr.
    ids
        The IDs of the samples that are present, in the order of the store; empty if removed ones were asked for.
    removed
        The positions of removed samples along the samples axis, if these were asked for.
    n_samples, n_removed
        How many samples are present, and how many have been removed.
    """

    store: str
    snapshot: str | None
    ids: list[str]
    removed: list[int]
    n_samples: int
    n_removed: int
    is_all: ClassVar[bool] = True
    """What is printed is all that is done."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def lines(self) -> Iterator[str]:
        """What the command prints: an ID or a position a line."""
        yield from (sample if sample.isprintable() else repr(sample) for sample in self.ids)
        yield from map(str, self.removed)


def list_samples(store: Store, at: str | None = None, *, removed: bool = False) -> SampleList:
    """List the samples of a store, now or at a tag, branch or snapshot; or where removed ones were."""
    vcz = open_at("samples", store, at)
    ids = vcz.sample_ids
    is_removed = ids == REMOVED
    n_removed = int(np.sum(is_removed))
    return SampleList(
        store=store.label,
        snapshot=vcz.snapshot,
        ids=[] if removed else ids[~is_removed].tolist(),
        removed=np.flatnonzero(is_removed).tolist() if removed else [],
        n_samples=len(ids) - n_removed,
        n_removed=n_removed,
    )
