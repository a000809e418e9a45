"""Fit a source to a store: views with the axes and dtypes of the store, and stand-ins for arrays the source lacks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
from zarr.types import AnyArray

from plans.core.views import View, like_source
from plans.variants.dropped_fields import Dropped
from vczstore.vcz import arrays, encoded_chunks, strings, zarr_objects
from vczstore.vcz.floats import recast
from vczstore.vcz.missing import MASKS, fill_value, has_sentinels, mask_of, masked_by
from vczstore.vcz.model import SAMPLE_ID, VARIANTS, Vcz, dimensions, samples_axis

if TYPE_CHECKING:
    from plans.core.chunk_grid import Columns


@dataclass(frozen=True)
class ComputedView(View):
    """A view whose chunks are computed and encoded on demand."""

    name: str

    def n_copied(self, columns: "Columns") -> int:
        """Return 0: all chunks are encoded."""
        return 0

    def get_encoded(self, coords: Sequence[Sequence[int]]) -> list[zarr_objects.Encoded]:
        """Compute and encode chunks as the store will have them."""
        regions = [encoded_chunks.chunk_region(self.like, c) for c in coords]
        values = (_cast(self[region], self.like.dtype) for region in regions)
        return [encoded_chunks.encode(self.like, c, r, v) for c, r, v in zip(coords, regions, values, strict=True)]


@dataclass(frozen=True)
class Fitted(ComputedView):
    """
    View of an array in the store's dtype, with longer axes, or with a last axis that the array lacks.

    Values beyond the array are fill, as beyond the end of a short vector. If the array has no room for any value, the
    field is missing.
    """

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.like.dtype)

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Read a region, padded with fill beyond the array."""
        region = (*region, *(slice(0, n) for n in self.shape[len(region) :]))
        region = tuple(
            slice(*r.indices(n)[:2]) if isinstance(r, slice) else r for r, n in zip(region, self.shape, strict=True)
        )
        if _is_empty(self.source, self.like):
            return Dropped(self.like, self.like, self.name)[region]
        source_shape = (*self.source.shape, 1)[: self.ndim]
        inside = tuple(
            slice(min(r.start, n), min(r.stop, n)) if isinstance(r, slice) else r
            for r, n in zip(region, source_shape, strict=True)
        )
        selection = inside[: self.source.ndim] + (slice(0, 1),) * (self.source.ndim - self.ndim)
        values = arrays.read(self.source, selection)
        n_read = [len(r) if isinstance(r, np.ndarray) else r.stop - r.start for r in inside]
        shape = [len(r) if isinstance(r, np.ndarray) else r.stop - r.start for r in region]
        if self.source.ndim < self.ndim and not n_read[-1]:
            values = values[..., np.newaxis][..., :0]  # the region lies beyond the only position
        # in the dtype of the store: that of the source may have no fill value
        result = np.full(shape, fill_value(self.name, self.like), dtype=self.dtype)
        result[tuple(slice(0, n) for n in n_read)] = _cast(values.reshape(n_read), self.dtype)
        return result


@dataclass(frozen=True)
class Derived(ComputedView):
    """View of a mask that a source lacks, in the dtype of `like`, computed from the sentinels of the masked values."""

    @property
    def dtype(self) -> np.dtype:
        return self.like.dtype

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Read the values of a region, and compute the mask from them."""
        return mask_of(self.name, masked_by(self.name), self.source, arrays.read(self.source, region))


def is_derived(name: str, source: Vcz) -> bool:
    """Whether an array is a mask that can be computed from sentinels in the values of a source."""
    values = source.samples_arrays.get(masked_by(name))
    return name.endswith(MASKS) and values is not None and has_sentinels(values.dtype)


def fitted(source: Vcz, targets: Mapping[str, AnyArray], *, harmonised: bool) -> Vcz:
    """
    Return a source with all arrays over samples of a store, with the axes that these will have.

    If it is going to be `harmonised` with the store, that extends the axes of arrays over variants.
    """
    views: dict[str, AnyArray] = {}
    # an array without room for any value counts as absent
    present = {n: a for n, a in source.samples_arrays.items() if n not in targets or not _is_empty(a, targets[n])}
    for name, target in targets.items():
        array = present.get(name)
        if array is not None and _needs_fitting(array, target, harmonised):
            views[name] = cast("AnyArray", Fitted(array, _like(array, target, harmonised), name))
    existing = {**present, **views}
    n_samples = int(source.arrays[SAMPLE_ID].shape[0])
    for name, target in targets.items():
        if name not in existing:
            values = existing.get(masked_by(name))
            view: View = Dropped.of(name, target, n_samples)
            if values is not None and is_derived(name, source):
                view = Derived(values, like_source(target, values, values.shape), name)
            views[name] = cast("AnyArray", view)
    return replace(source, arrays={**source.arrays, **views})


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Cast values to the dtype of the store, which can hold them."""
    return strings.as_text(values).astype(dtype) if _becomes_text(values.dtype, dtype) else recast(values, dtype)


def _becomes_text(source: np.dtype, target: np.dtype) -> bool:
    return source.kind in "SO" and target.kind in "TU"


def _needs_fitting(array: AnyArray, target: AnyArray, harmonised: bool) -> bool:
    if array.ndim != target.ndim or _becomes_text(array.dtype, target.dtype):
        return True
    if array.dtype.kind == "u" and target.dtype.kind == "i":
        return True  # the signed dtype has a missing value
    lead = _lead(target)
    return array.shape[lead:] != target.shape[lead:] and not _is_lengthened(target, harmonised)


def _is_empty(array: AnyArray, target: AnyArray) -> bool:
    """Whether an array has a trailing axis of length 0 and the store's array has none."""
    return 0 in array.shape[_lead(array) :] and 0 not in target.shape[_lead(target) :]


def _is_lengthened(target: AnyArray, harmonised: bool) -> bool:
    """Whether harmonising extends the axes of an array."""
    return harmonised and VARIANTS in dimensions(target)


def _like(array: AnyArray, target: AnyArray, harmonised: bool) -> AnyArray:
    lead = _lead(target)
    keeps_lengths = array.ndim == target.ndim and _is_lengthened(target, harmonised)
    shape = (*array.shape[:lead], *(array if keeps_lengths else target).shape[lead:])
    return like_source(target, array, shape)


def _lead(array: AnyArray) -> int:
    """Return the number of axes up to and including samples."""
    return (samples_axis(array) or 0) + 1
