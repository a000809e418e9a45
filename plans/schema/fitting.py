"""Fitting: arrays of a source with the axes that a store has, and with what the store has and the source lacks."""

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
class MadeView(View):
    """An array whose chunks are made and encoded when they are asked for."""

    name: str

    def n_copied(self, columns: "Columns") -> int:
        """None: all are encoded."""
        return 0

    def get_encoded(self, coords: Sequence[Sequence[int]]) -> list[zarr_objects.Encoded]:
        """Chunks as the store will have them."""
        regions = [encoded_chunks.chunk_region(self.like, c) for c in coords]
        values = (_cast(self[region], self.like.dtype) for region in regions)
        return [encoded_chunks.encode(self.like, c, r, v) for c, r, v in zip(coords, regions, values, strict=True)]


@dataclass(frozen=True)
class Fitted(MadeView):
    """
    An array with axes that are longer, or with a last axis of which it has only the first position or none at all.

    What is gained is fill, as beyond the end of any vector that is shorter; missing, where there is room for
    no value.
    """

    @property
    def dtype(self) -> np.dtype:
        """The store's."""
        return np.dtype(self.like.dtype)

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Read a region, and fill what lies beyond."""
        region = (*region, *(slice(0, n) for n in self.shape[len(region) :]))
        region = tuple(
            slice(*r.indices(n)[:2]) if isinstance(r, slice) else r for r, n in zip(region, self.shape, strict=True)
        )
        if _is_empty(self.source, self.like):
            return Dropped(self.like, self.like, self.name)[region]
        theirs = (*self.source.shape, 1)[: self.ndim]
        inside = tuple(
            slice(min(r.start, n), min(r.stop, n)) if isinstance(r, slice) else r
            for r, n in zip(region, theirs, strict=True)
        )
        asked = inside[: self.source.ndim] + (slice(0, 1),) * (self.source.ndim - self.ndim)
        is_slices = all(isinstance(r, slice) for r in asked)
        values = arrays.read(self.source, cast("tuple[slice, ...]", asked)) if is_slices else None
        values = arrays.read_at(self.source, asked) if values is None else values
        found = [len(r) if isinstance(r, np.ndarray) else r.stop - r.start for r in inside]
        wanted = [len(r) if isinstance(r, np.ndarray) else r.stop - r.start for r in region]
        if self.source.ndim < self.ndim and not found[-1]:
            values = values[..., np.newaxis][..., :0]  # beyond the only position
        # in the store's dtype: that of the source may have no fill value
        result = np.full(wanted, fill_value(self.name, self.like), dtype=self.dtype)
        result[tuple(slice(0, n) for n in found)] = _cast(values.reshape(found), self.dtype)
        return result


@dataclass(frozen=True)
class Derived(MadeView):
    """A mask that a source lacks, of values that it has."""

    @property
    def dtype(self) -> np.dtype:
        """The mask's."""
        return self.like.dtype

    def __getitem__(self, region: tuple[slice | np.ndarray, ...]) -> np.ndarray:
        """Read the values of a region, and say which are missing."""
        is_slices = all(isinstance(r, slice) for r in region)
        if is_slices:
            values = arrays.read(self.source, cast("tuple[slice, ...]", region))
        else:
            values = arrays.read_at(self.source, region)
        return mask_of(self.name, masked_by(self.name), self.source, values)


def is_derived(name: str, source: Vcz) -> bool:
    """Whether a mask that a source lacks follows from values that it has."""
    values = source.samples_arrays.get(masked_by(name))
    return name.endswith(MASKS) and values is not None and has_sentinels(values.dtype)


def fitted(source: Vcz, targets: Mapping[str, AnyArray], *, harmonised: bool) -> Vcz:
    """
    A source that has the arrays of a store, with its axes.

    Parameters
    ----------
    source
        What comes in.
    targets
        The store's arrays over samples, as they will be.
    harmonised
        Whether the source will be expressed over the store's variants and alleles, which makes axes longer by itself.
    """
    made: dict[str, AnyArray] = {}
    # what has room for no value is no more than what is not there
    present = {n: a for n, a in source.samples_arrays.items() if n not in targets or not _is_empty(a, targets[n])}
    for name, target in targets.items():
        array = present.get(name)
        if array is not None and _needs_fitting(array, target, harmonised):
            made[name] = cast("AnyArray", Fitted(array, _like(array, target, harmonised), name))
    known = {**present, **made}
    n_samples = int(source.arrays[SAMPLE_ID].shape[0])
    for name, target in targets.items():
        if name not in known:
            values = known.get(masked_by(name))
            view: View = Dropped.of(name, target, n_samples)
            if values is not None and is_derived(name, source):
                view = Derived(values, like_source(target, values, values.shape), name)
            made[name] = cast("AnyArray", view)
    return replace(source, arrays={**source.arrays, **made})


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values in the dtype of a store that has room for them."""
    return strings.as_text(values).astype(dtype) if _becomes_text(values.dtype, dtype) else recast(values, dtype)


def _becomes_text(source: np.dtype, target: np.dtype) -> bool:
    return source.kind in "SO" and target.kind in "TU"


def _needs_fitting(array: AnyArray, target: AnyArray, harmonised: bool) -> bool:
    if array.ndim != target.ndim or _becomes_text(array.dtype, target.dtype):
        return True
    if array.dtype.kind == "u" and target.dtype.kind == "i":
        return True  # which has missing values
    lead = _lead(target)
    return array.shape[lead:] != target.shape[lead:] and not _is_lengthened(target, harmonised)


def _is_empty(array: AnyArray, target: AnyArray) -> bool:
    """Whether an array has an axis of length 0 where the store has values."""
    return 0 in array.shape[_lead(array) :] and 0 not in target.shape[_lead(target) :]


def _is_lengthened(target: AnyArray, harmonised: bool) -> bool:
    """Whether harmonising makes the axes of an array longer."""
    return harmonised and VARIANTS in dimensions(target)


def _like(array: AnyArray, target: AnyArray, harmonised: bool) -> AnyArray:
    lead = _lead(target)
    keeps = array.ndim == target.ndim and _is_lengthened(target, harmonised)
    shape = (*array.shape[:lead], *(array if keeps else target).shape[lead:])
    return like_source(target, array, shape)


def _lead(array: AnyArray) -> int:
    """How many axes there are up to that of samples."""
    return (samples_axis(array) or 0) + 1
