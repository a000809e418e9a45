"""Fields of a store that a source does not have, or that are dropped from it: missing values for its samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from zarr.types import AnyArray

from plans.core.views import View
from vczstore.vcz import encoded_chunks, zarr_objects
from vczstore.vcz.missing import fill_value, masked_by, missing_value
from vczstore.vcz.model import samples_axis, with_samples


@dataclass(frozen=True)
class Dropped(View):
    """A field with missing values for all samples of a source."""

    name: str

    @classmethod
    def of(cls, name: str, target: AnyArray, n_samples: int) -> "Dropped":
        """Return the view for `n_samples` samples; `target` is the planned array of the store."""
        like = with_samples(target, n_samples)
        return cls(like, like, name)

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Return a region: each value is one missing value and then fill, each genotype is missing alleles only."""
        lead = (samples_axis(self.like) or 0) + 1
        call = np.full(self.shape[lead:], missing_value(self.name, self.like), dtype=self.dtype)
        if masked_by(self.name) != "call_genotype":
            call.reshape(-1)[1:] = fill_value(self.name, self.like)
        call = call[(*region[lead:], ...)]
        others = [len(np.arange(n)[r]) for n, r in zip(self.shape, region[:lead], strict=False)]
        return np.broadcast_to(call, (*others, *call.shape)).copy()

    def get_encoded(self, coords: Sequence[Sequence[int]]) -> list[zarr_objects.Encoded]:
        """Encode the chunks at some coordinates."""
        regions = [encoded_chunks.chunk_region(self.like, c) for c in coords]
        return [encoded_chunks.encode(self.like, c, r, self[r]) for c, r in zip(coords, regions, strict=True)]
