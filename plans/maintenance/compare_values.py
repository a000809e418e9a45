"""Scans that count the values in which two VCZs differ, among the variants and samples that both have."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import TASK_BYTES
from plans.core.memory import Memory
from plans.core.scan_reader import ScanReader
from plans.variants.field_numbers import is_local, kind_of
from plans.variants.match_index import FindMatches, Unit
from vczstore.vcz import arrays, encoded_chunks
from vczstore.vcz.floats import recast
from vczstore.vcz.metadata import same_encoding
from vczstore.vcz.missing import TEXT, fill_value, masked_by
from vczstore.vcz.model import SAMPLES, VARIANTS, dimensions, has_grid

_GENOTYPE = "call_genotype"
_PHASED = "call_genotype_phased"


def comparable(ours: AnyArray, theirs: AnyArray) -> bool:
    """Whether two arrays have the same leading dimensions, in a supported order, and the same kind of dtype."""
    names = dimensions(ours)
    in_order = (
        names[:2] == (VARIANTS, SAMPLES) if {VARIANTS, SAMPLES} <= set(names) else names[0] in (VARIANTS, SAMPLES)
    )
    same = names[:2] == dimensions(theirs)[:2] and ours.ndim == theirs.ndim and _kind(ours) == _kind(theirs)
    return in_order and same and has_grid(ours) and has_grid(theirs)


def phased_of(fields: Mapping[str, AnyArray]) -> AnyArray | None:
    """Return ``call_genotype_phased``, or None if there is none over variants and samples."""
    array = fields.get(_PHASED)
    return array if array is not None and dimensions(array) == (VARIANTS, SAMPLES) else None


def is_by_allele(name: str, array: AnyArray, numbers: Mapping[str, str]) -> bool:
    """Whether values depend on the order of alleles and, unlike genotypes, cannot be compared in another order."""
    base = masked_by(name)
    if base == _GENOTYPE:
        return False
    field = base.removeprefix("call_").removeprefix("variant_")
    named = not {"alleles", "alt_alleles", "genotypes"}.isdisjoint(dimensions(array))
    return named or is_local(base, array, numbers.get(field, "")) or bool(kind_of(base, array, numbers))


def same_values(ours: AnyArray, theirs: AnyArray) -> bool | None:
    """Whether two arrays without variants or samples axis are equal; None if they are too large to read whole."""
    if ours.shape != theirs.shape or _kind(ours) != _kind(theirs):
        return False
    if max(ours.size, theirs.size) > _MANY:
        return None
    a, b = (arrays.read_normalised(array, (slice(None),) * array.ndim) for array in (ours, theirs))
    return not differing("", ours, a, theirs, b, 0).any()


_MANY = 1_000_000


def _kind(array: AnyArray) -> str:
    kind = array.dtype.kind
    return "text" if kind in TEXT else {"u": "i"}.get(kind, kind)


def differing(
    name: str, ours: AnyArray, values: np.ndarray, theirs: AnyArray, others: np.ndarray, n_axes: int
) -> np.ndarray:
    """
    Find the variants and samples at which any value differs.

    Parameters
    ----------
    name, ours, theirs
        Name of the field, and its array in either VCZ.
    values, others
        Values read from `ours` and `theirs` for the same variants and samples. Trailing axes may differ in length: the
        shorter is padded with fill.
    n_axes
        Number of leading axes, which are those of variants and samples.

    Returns
    -------
    numpy.ndarray of bool
        True where any value differs; its shape is that of the leading axes.
    """
    shape = (*values.shape[:n_axes], *np.maximum(values.shape[n_axes:], others.shape[n_axes:]))
    a, b = _padded(name, ours, values, shape), _padded(name, theirs, others, shape)
    if a.dtype.kind == "f":
        dtype = np.promote_types(a.dtype, b.dtype)
        a, b = (np.ascontiguousarray(recast(x, dtype)).view(f"u{dtype.itemsize}") for x in (a, b))
    elif a.dtype != b.dtype and _is_text(a):
        a, b = a.astype(object), b.astype(object)
    return np.asarray((a != b).reshape(*shape[:n_axes], -1).any(axis=-1))


def _is_text(values: np.ndarray) -> bool:
    return values.dtype.kind in TEXT


def _padded(name: str, array: AnyArray, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if values.shape == shape:
        return values
    fill = "" if _is_text(values) else fill_value(name, array)
    result = np.full(shape, fill, dtype=values.dtype)
    result[tuple(map(slice, values.shape))] = values
    return result


@dataclass(frozen=True)
class Common:
    """
    The variants that two VCZs have in common, among some rows of the first.

    Attributes
    ----------
    rows, others
        Row of each variant in the first VCZ, and in the other.
    alleles
        For each variant, the index in the first VCZ of each allele of the other; alleles that the first lacks come
        after its own.
    realigned
        Whether any allele of a variant has different indices in the two VCZs.
    """

    rows: np.ndarray
    others: np.ndarray
    alleles: np.ndarray
    realigned: np.ndarray

    @classmethod
    def of(cls, unit: Unit, cut: slice) -> "Common":
        """Return the common variants of a range of a unit. Variants whose ALTs are disjoint count as different."""
        matches = unit.sources[0]
        is_shared = ((matches.alleles > 0) & (matches.alleles < unit.n_before[:, np.newaxis])).any(axis=1)
        is_same = (matches.rows >= 0) & (is_shared | (unit.n_before < 2) | (matches.n_alleles < 2))
        here = np.arange(unit.start, unit.stop)[cut][is_same[cut]] - unit.start
        return cls(here + unit.start, matches.rows[here], matches.alleles[here], matches.reordered[here])

    def choose(self, which: np.ndarray) -> "Common":
        """Return the subset selected by a mask or index."""
        return Common(self.rows[which], self.others[which], self.alleles[which], self.realigned[which])

    def pieces(self, height: int) -> "Iterator[Common]":
        """Yield subsets whose rows lie in one chunk of the other VCZ, given its chunk length."""
        chunks = self.others // height
        for chunk in np.unique(chunks):
            yield self.choose(chunks == chunk)


def count_common(matching: FindMatches, rows: slice) -> tuple[int, int]:
    """Count the variants among some rows that two VCZs have in common, and those of them with realigned alleles."""
    parts = [Common.of(unit, cut) for unit, cut in matching.index.units(rows)]
    return sum(len(part.rows) for part in parts), sum(int(part.realigned.sum()) for part in parts)


@dataclass(frozen=True)
class CompareColumn:
    """
    Scan that compares one chunk column of a field with the same samples of another VCZ.

    Attributes
    ----------
    name, ours, theirs
        Name of the field, and its array in either VCZ.
    matching
        The index that matches variants.
    here, there
        Positions of the common samples in either VCZ; `here` is increasing and within one chunk column. None for a
        field without samples axis.
    changed
        Coordinates of the chunks of this column that may differ between two states of a repository; None if that is
        not known without reading them.
    by_allele
        Whether values depend on the order of alleles, so that realigned variants are not compared.
    phased
        For ``call_genotype`` and its masks, ``call_genotype_phased`` of either VCZ. Where it is None, no genotype
        counts as phased.
    """

    name: str
    ours: AnyArray
    theirs: AnyArray
    matching: FindMatches
    here: np.ndarray | None
    there: np.ndarray | None
    changed: frozenset[tuple[int, ...]] | None = None
    by_allele: bool = False
    phased: tuple[AnyArray | None, AnyArray | None] = (None, None)

    def readers(self, memory: Memory) -> list[ScanReader]:
        """Scan with tasks of whole units."""
        index = self.matching.index
        size = arrays.chunk_bytes(self.ours) // arrays.outer_chunks(self.ours)[0] * index.unit
        rows = index.unit * max(1, min(TASK_BYTES // max(1, size), math.ceil(index.n_variants / index.unit / 16)))
        decoding = sum(
            arrays.decode_mem(array, 4) for array in (self.ours, self.theirs, *self.phased) if array is not None
        )
        return [ScanReader(self.look, index.n_variants, rows, self.matching.mem + 2 * decoding)]

    @property
    def is_unchanged(self) -> bool:
        """Whether the column is known to be equal in two states of a repository with the same variants and alleles."""
        if self.changed is None or self.changed or not self._same_form:
            return False
        if arrays.widths(self.ours)[0] != arrays.widths(self.theirs)[0]:
            return False
        if self.here is None or self.there is None:
            return True
        places = [_place(array, [0, int(self.here[0])]) for array in (self.ours, self.theirs)]
        return np.array_equal(self.here, self.there) and places[0] == places[1]

    @property
    def _same_form(self) -> bool:
        """Whether chunks of the two arrays can be byte-for-byte equal: same trailing axes and encoding."""
        return self.ours.shape[2:] == self.theirs.shape[2:] and same_encoding(self.ours, self.theirs)

    def look(self, rows: slice) -> int | None:
        """Return the number of values that differ among some variants, or None if none do."""
        n = 0
        for unit, cut in self.matching.index.units(rows):
            common = Common.of(unit, cut)
            if self.by_allele:
                common = common.choose(~common.realigned)
            for piece in common.pieces(arrays.outer_chunks(self.theirs)[0]):
                n += sum(self._count(piece, *samples) for samples in self._samples())
        return n or None

    def _samples(self) -> Iterator[tuple[np.ndarray | None, np.ndarray | None]]:
        """Yield `here` and `there` restricted to each chunk column of the other VCZ; None, None if they are None."""
        if self.here is None or self.there is None:
            yield None, None
            return
        columns = arrays.cuts(self.theirs)[1].of(self.there)
        for column in np.unique(columns):
            yield self.here[columns == column], self.there[columns == column]

    def _count(self, piece: Common, here: np.ndarray | None, there: np.ndarray | None) -> int:
        """Count the values that differ for variants and samples within one chunk row and column of the other VCZ."""
        if self._is_same_chunk(piece, here, there):
            return 0
        ours, theirs = _read(self.ours, piece.rows, here), _read(self.theirs, piece.others, there)
        if self.name == _GENOTYPE and piece.realigned.any():
            row = np.arange(len(theirs)).reshape(-1, 1, 1)
            theirs = np.where(theirs >= 0, piece.alleles[row, np.maximum(theirs, 0)], theirs)
        differs = differing(self.name, self.ours, ours, self.theirs, theirs, 1 if here is None else 2)
        if masked_by(self.name) == _GENOTYPE and here is not None and there is not None and differs.any():
            ordered = self._is_phased(0, piece.rows, here) & self._is_phased(1, piece.others, there)
            # sort unphased genotypes descending: fill is the smallest value and stays at the end
            ours, theirs = (np.sort(values, axis=-1)[..., ::-1] for values in (ours, theirs))
            differs &= ordered | differing(self.name, self.ours, ours, self.theirs, theirs, 2)
        return int(differs.sum())

    def _is_phased(self, side: int, rows: np.ndarray, samples: np.ndarray) -> np.ndarray:
        array = self.phased[side]
        shape = (len(rows), len(samples))
        return np.zeros(shape, bool) if array is None else _read(array, rows, samples).astype(bool)

    def _is_same_chunk(self, piece: Common, here: np.ndarray | None, there: np.ndarray | None) -> bool:
        """Whether the values lie in chunks with the same coordinates and the same bytes in both arrays."""
        if not self._same_form:
            return False
        if (self.name == _GENOTYPE and piece.realigned.any()) or not np.array_equal(piece.rows, piece.others):
            return False
        if here is not None and there is not None and not np.array_equal(here, there):
            return False
        at = [int(piece.rows[0]), *([] if here is None else [int(here[0])])]
        coords = [_place(self.ours, at), _place(self.theirs, at)]
        if coords[0] != coords[1]:
            return False
        others = [range(n) for n in arrays.grid_of(self.ours)[len(at) :]]
        chunks = [(*(number for number, _, _ in coords[0]), *rest) for rest in product(*others)]
        if self.changed is not None:
            return self.changed.isdisjoint(chunks)
        pairs = zip(*(encoded_chunks.get_encoded(array, chunks) for array in (self.ours, self.theirs)), strict=True)
        return all(
            a is b if a is None or b is None else len(a) == len(b) and a.to_bytes() == b.to_bytes() for a, b in pairs
        )


def _place(array: AnyArray, at: list[int]) -> list[tuple[int, int, int]]:
    """Return, along each axis, the chunk number of a position, and the start and encoded width of that chunk."""
    cuts = arrays.cuts(array)[: len(at)]
    numbers = [int(cut.of(i)) for cut, i in zip(cuts, at, strict=True)]
    return [(n, int(cut.start(n)), int(cut.encoded(n))) for cut, n in zip(cuts, numbers, strict=True)]


def n_differing_samples(name: str, ours: AnyArray, theirs: AnyArray, here: np.ndarray, there: np.ndarray) -> int:
    """
    Count the samples that differ in a field without a variants axis, reading the samples of one chunk at a time.

    Parameters
    ----------
    name, ours, theirs
        Name of the field, and its array in either VCZ.
    here, there
        Positions of the common samples in `ours` and `theirs`.
    """
    n_differing, step = 0, arrays.outer_chunks(ours)[0]
    trailing = [
        [slice(i, i + max(chunks)) for i in range(0, max(lengths), max(chunks))]
        for lengths, chunks in zip(
            zip(ours.shape[1:], theirs.shape[1:], strict=True),
            zip(arrays.outer_chunks(ours)[1:], arrays.outer_chunks(theirs)[1:], strict=True),
            strict=True,
        )
    ]
    for first in range(0, len(here), step):
        batch = slice(first, first + step)
        differs = np.zeros(len(here[batch]), dtype=bool)
        for region in product(*trailing):
            differs |= differing(
                name, ours, _read(ours, here[batch], None, region), theirs, _read(theirs, there[batch], None, region), 1
            )
        n_differing += int(differs.sum())
    return n_differing


def _read(
    array: AnyArray, rows: np.ndarray, samples: np.ndarray | None, trailing: tuple[slice, ...] | None = None
) -> np.ndarray:
    """Read the bounding region of some variants and samples, and select their values from it."""
    chosen = [rows] if samples is None else [rows, samples]
    first = [int(indices.min()) for indices in chosen]
    region = [slice(start, int(indices.max()) + 1) for start, indices in zip(first, chosen, strict=True)]
    others = (slice(None),) * (array.ndim - len(chosen)) if trailing is None else trailing
    values = arrays.read_normalised(array, (*region, *others))
    for axis, (start, indices) in enumerate(zip(first, chosen, strict=True)):
        if len(indices) < values.shape[axis] or (np.diff(indices) != 1).any():
            values = np.take(values, indices - start, axis=axis)
    return values
