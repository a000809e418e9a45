"""Vectors: values per allele, ALT or genotype, of a call or of INFO: their lengths, and their order for other alleles.

The length of a vector follows from its Number (VCF 4.5, section 1.4.2): one value per allele (R), per ALT (A), or per
genotype of the call's ploidy (G). The ploidy is that of the call's own genotype: converters pad vectors, floats even
with *missing*, so padding does not reveal it. Where no allele is called, the ploidy is inferred from the length, since
a genotype of any ploidy may be written as ``.``. A vector with more values is an error, as it is for ``bcftools
merge``. NumPy only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import numpy as np

from vczstore.vcz.missing import INT_FILL, same

DIPLOID = 2
"""The ploidy that VCF assumes for calls without a genotype."""

MAX_PLOIDY = 64
"""The largest ploidy that is tried where it is inferred from a number of genotypes."""


def n_genotypes(n_alleles: int, ploidy: int) -> int:
    """
    Return the number of genotypes of a ploidy (VCF 4.5, section 1.6.2, ``GL``).

    >>> n_genotypes(3, 2), n_genotypes(3, 1)
    (6, 3)
    """
    return math.comb(n_alleles + ploidy - 1, ploidy)


def lengths(number: str, n_alleles: np.ndarray, ploidy: np.ndarray) -> np.ndarray:
    """
    Return the expected lengths of vectors, in the shape of `ploidy`, whose first axis are variants.

    The values of `ploidy` matter only for the number ``G``; below 1 (unknown), the length is 0.

    >>> lengths("G", np.array([2, 3]), np.array([[2, 1], [2, 1]])).tolist()
    [[3, 2], [6, 3]]
    """
    n_alleles = np.broadcast_to(n_alleles.reshape(-1, *[1] * (ploidy.ndim - 1)), ploidy.shape)
    if number != "G":
        return np.asarray(np.maximum(n_alleles - (number == "A"), 0))
    pairs, which = np.unique(np.stack([n_alleles.ravel(), ploidy.ravel()], axis=1), axis=0, return_inverse=True)
    counts = np.array([n_genotypes(n, p) if n > 0 and p > 0 else 0 for n, p in pairs.tolist()], dtype="i8")
    return np.asarray(counts[which.ravel()].reshape(ploidy.shape))


def lacking(values: np.ndarray, expected: np.ndarray, missing: Any, fill: Any) -> np.ndarray:
    """
    Return where vectors end too early: fill within their length, which should be missing.

    A vector that is missing as a whole, ``.`` in VCF, lacks nothing; neither does one that is only fill. Vectors are
    along the last axis of `values`, and `expected` is the length of each.

    >>> lacking(np.array([[5, 6, -2, -2], [-1, -2, -2, -2]]), np.array([3, 3]), -1, -2).astype(int).tolist()
    [[0, 0, 1, 0], [0, 0, 0, 0]]
    """
    is_fill = same(values, fill)
    n_values = (~is_fill).sum(axis=-1)
    is_dot = (n_values == 0) | ((n_values == 1) & same(values[..., 0], missing))
    is_within = np.arange(values.shape[-1]) < expected[..., np.newaxis]
    return np.asarray(is_fill & is_within & ~is_dot[..., np.newaxis])


def beyond(values: np.ndarray, expected: np.ndarray, missing: Any, fill: Any) -> np.ndarray:
    """
    Return where vectors are padded with missing values beyond their length; parameters as in `lacking`.

    >>> beyond(np.array([[5, 6, -1, -1], [5, 6, 7, -1]]), np.array([2, 2]), -1, -2).astype(int).tolist()
    [[0, 0, 1, 1], [0, 0, 0, 0]]
    """
    is_beyond = np.arange(values.shape[-1]) >= expected[..., np.newaxis]
    is_missing = same(values, missing)
    is_padding = (~is_beyond | is_missing | same(values, fill)).all(axis=-1) & (expected > 0)
    return np.asarray(is_beyond & is_missing & is_padding[..., np.newaxis])


def trimmed(values: np.ndarray, missing: Any, fill: Any) -> np.ndarray:
    """
    Replace everything after the last value of each vector by fill.

    >>> trimmed(np.array([[9, -1, 5, -1], [-1, -2, -2, -2]]), -1, -2).tolist()
    [[9, -1, 5, -2], [-2, -2, -2, -2]]
    """
    is_value = ~same(values, missing) & ~same(values, fill)
    is_within = np.logical_or.accumulate(is_value[..., ::-1], axis=-1)[..., ::-1]
    result = values.copy()
    result[~is_within] = fill
    return result


def genotypes(n_alleles: int, ploidy: int) -> list[tuple[int, ...]]:
    """
    Return all genotypes, in the order of a field with Number=G (VCF 4.5, section 1.6.2).

    >>> genotypes(3, 2)
    [(0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2)]
    """
    return sorted(combinations_with_replacement(range(n_alleles), ploidy), key=lambda g: g[::-1])


class Vectors(NamedTuple):
    """
    The lengths of vectors of some variants with the same number of alleles; all arrays are rows by samples.

    Attributes
    ----------
    expected
        Expected number of values.
    found
        Actual number of values, up to the last that is neither missing nor fill.
    ploidy
        Ploidy for Number=G, else 0; -1 if it is unknown.
    is_none
        Whether the vector has no value, and is stored as a single missing one.
    """

    expected: np.ndarray
    found: np.ndarray
    ploidy: np.ndarray
    is_none: np.ndarray

    @property
    def is_wrong(self) -> np.ndarray:
        """Whether the vector has more values than its alleles account for, or an unknown ploidy."""
        return ~self.is_none & ((self.found > self.expected) | (self.ploidy < 0))


@dataclass(frozen=True)
class Field:
    """
    A field with one value per allele, ALT or genotype.

    Attributes
    ----------
    number
        ``R``, ``A`` or ``G``.
    missing, fill
        Sentinels for a missing value, and for the padding of a vector.
    """

    number: str
    missing: Any
    fill: Any

    def look(self, values: np.ndarray, n: int, genotype: np.ndarray | None) -> Vectors:
        """Measure the vectors of variants with `n` alleles; `genotype` is of the same calls, None if there is none."""
        is_end = same(values, self.fill)
        is_value = ~is_end & ~same(values, self.missing)
        places = np.arange(1, values.shape[-1] + 1)
        found = (is_value * places).max(axis=-1, initial=0)
        length = (~is_end * places).max(axis=-1, initial=0)
        ploidy = np.zeros(found.shape, dtype="i8")
        if self.number == "G":
            # unsigned integers have no sentinels, so the length of a vector is unknown
            known_length = np.zeros_like(length) if values.dtype.kind == "u" else length
            ploidy = self._ploidy(n, genotype, found, known_length, may_be_padded=values.dtype.kind == "f")
            sizes = np.array([n_genotypes(n, p) for p in range(int(ploidy.max(initial=0)) + 1)])
            expected = sizes[np.maximum(ploidy, 0)]
        else:
            expected = np.full(found.shape, n - (self.number == "A"))
        is_dot = (length <= 1) & ((self.number == "G") | (expected != 1) | (length == 0))
        return Vectors(expected, found, ploidy, (found == 0) & (is_dot | (length > expected)))

    def _ploidy(
        self, n: int, genotype: np.ndarray | None, found: np.ndarray, length: np.ndarray, *, may_be_padded: bool
    ) -> np.ndarray:
        """Return the ploidy of each call; -1 where it is unknown."""
        own, is_called, default = np.full(found.shape, -1, dtype="i8"), np.zeros(found.shape, dtype=bool), DIPLOID
        if genotype is not None:
            own, is_called, default = (
                (genotype != INT_FILL).sum(axis=-1),
                (genotype >= 0).any(axis=-1),
                genotype.shape[-1],
            )
            own[own == 0] = -1
        if n == 1:  # one value, for any ploidy
            return np.where(is_called, own, default)
        most = max(DIPLOID, default)
        sizes = [n_genotypes(n, p) for p in range(most + 1)]
        by_length = np.full(found.shape, -1, dtype="i8")
        for p in range(1, most + 1):
            by_length[(length == sizes[p]) & (found <= sizes[p])] = p
        if may_be_padded:
            # a vector of lower ploidy that is padded with missing may have the same length
            by_length[(by_length > 1) & (found <= np.array(sizes)[by_length - 1])] = -1
        return np.where(~is_called & (by_length > 0), by_length, own)

    def reorder(
        self,
        values: np.ndarray,
        numbers: np.ndarray,
        n_alleles: tuple[np.ndarray, np.ndarray],
        unseen: np.ndarray,
        width: int,
        genotype: np.ndarray | None = None,
    ) -> np.ndarray:
        """
        Re-order the vectors of variants for the alleles of a store; the values of added alleles are missing.

        Parameters
        ----------
        values
            Rows by samples by values.
        numbers
            Rows by alleles: the new index of each allele; -1 if it is dropped.
        n_alleles
            Number of alleles of each row before and after.
        unseen
            Index of the unseen allele of each row, whose values are copied to added alleles; -1 if there is none.
        width
            Length of the last axis of the result.
        genotype
            The genotypes of the same calls; None if there are none.
        """
        result = np.empty((*values.shape[:-1], width), dtype=values.dtype)
        patterns, which = np.unique(np.column_stack([*n_alleles, unseen, numbers]), axis=0, return_inverse=True)
        for i, (n, m, index, *pattern) in enumerate(patterns.tolist()):
            rows = np.flatnonzero(which.ravel() == i)
            own = None if genotype is None else genotype[rows]
            result[rows] = self._reordered(values[rows], n, m, pattern, width, own, index)
        return result

    def _reordered(
        self,
        values: np.ndarray,
        n: int,
        m: int,
        numbers: Sequence[int],
        width: int,
        genotype: np.ndarray | None,
        unseen: int,
    ) -> np.ndarray:
        """Re-order the vectors of variants with the same alleles: `n` before, and `m` after; see `reorder`."""
        vectors = self.look(values, n, genotype)
        result = np.full((*values.shape[:-1], width), self.fill, dtype=values.dtype)
        for ploidy in np.unique(vectors.ploidy[~vectors.is_none]).tolist():
            where = ~vectors.is_none & (vectors.ploidy == ploidy)
            kept, size = self._kept(n, m, max(ploidy, 1), numbers, unseen)
            chosen = np.full((int(where.sum()), width), self.fill, dtype=values.dtype)
            chosen[:, :size] = self.missing
            old = values[where]
            is_end = same(old, self.fill)
            for i, place in kept:
                if i < old.shape[1]:
                    chosen[:, place] = np.where(is_end[:, i], self.missing, old[:, i])
            result[where] = chosen
        result[..., 0][vectors.is_none] = self.missing
        return result

    def _kept(
        self, n: int, m: int, ploidy: int, numbers: Sequence[int], unseen: int
    ) -> tuple[list[tuple[int, int]], int]:
        """Return the old and the new index of each value that is kept or copied, and the new number of values."""
        old, new = (
            genotypes(k, ploidy) if self.number == "G" else [(a,) for a in range(self.number == "A", k)] for k in (n, m)
        )
        index_of = {alleles: i for i, alleles in enumerate(old)}
        old_of = {number: allele for allele, number in enumerate(numbers[:n])}
        wanted = (tuple(sorted(old_of.get(allele, unseen) for allele in alleles)) for alleles in new)
        return [(index_of[key], place) for place, key in enumerate(wanted) if key in index_of], len(new)
