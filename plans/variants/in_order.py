"""In order: vectors of one value per allele or genotype, as they are with other alleles. NumPy arrays in and out.

How many values a vector has is what the VCF specification says of its Number (4.5, section 1.6.2): one per allele (R),
per ALT (A), or per genotype of the call's ploidy (G). The ploidy is that of the call's own genotype: converters pad
vectors, floats even with *missing*, so how a vector is padded says nothing. Only where no allele is called does the
length decide: a genotype of any ploidy may be written as ``.``. A vector with more values than that is an error, as it
is for ``bcftools merge``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import numpy as np

from plans.variants.vectors import n_genotypes
from vczstore.vcz.missing import INT_FILL, same

DIPLOID = 2
"""What VCF takes calls for that do not say how many alleles they have."""


def genotypes(n_alleles: int, ploidy: int) -> list[tuple[int, ...]]:
    """
    All genotypes in the order of a field with Number=G (VCF 4.5, section 1.6.2).

    >>> genotypes(3, 2)
    [(0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2)]
    """
    return sorted(combinations_with_replacement(range(n_alleles), ploidy), key=lambda g: g[::-1])


def genotype_number(alleles: Sequence[int]) -> int:
    """
    Where a genotype is in that order.

    >>> [genotype_number(g) for g in genotypes(3, 2)]
    [0, 1, 2, 3, 4, 5]
    """
    return sum(math.comb(allele + i, i + 1) for i, allele in enumerate(sorted(alleles)))


class Vectors(NamedTuple):
    """
    What is known of the vectors of some calls that have the same alleles; all arrays are of rows by samples.

    Attributes
    ----------
    expected
        How many values there should be.
    found
        How many there are, up to the last that is neither missing nor fill.
    ploidy
        The ploidy of those with Number=G, else 0; -1 where nothing tells it.
    is_none
        Which have no value, and are a single missing one.
    """

    expected: np.ndarray
    found: np.ndarray
    ploidy: np.ndarray
    is_none: np.ndarray

    @property
    def is_wrong(self) -> np.ndarray:
        """Which have more values than alleles account for, or a ploidy that nothing tells."""
        return ~self.is_none & ((self.found > self.expected) | (self.ploidy < 0))


@dataclass(frozen=True)
class Field:
    """
    A field that goes by alleles.

    Attributes
    ----------
    number
        ``R``, ``A`` or ``G``.
    missing, fill
        What stands for a missing value, and for what lies beyond the end of a vector.
    """

    number: str
    missing: Any
    fill: Any

    def look(self, values: np.ndarray, n: int, genotype: np.ndarray | None) -> Vectors:
        """Look at vectors of variants with `n` alleles; `genotype` are those of the same calls."""
        is_end = same(values, self.fill)
        is_value = ~is_end & ~same(values, self.missing)
        places = np.arange(1, values.shape[-1] + 1)
        found = (is_value * places).max(axis=-1, initial=0)
        length = (~is_end * places).max(axis=-1, initial=0)
        ploidy = np.zeros(found.shape, dtype="i8")
        if self.number == "G":
            # unsigned vectors are padded with 0, which is a value, too: how long they are cannot be told
            told = np.zeros_like(length) if values.dtype.kind == "u" else length
            ploidy = self._ploidy(n, genotype, found, told, may_be_padded=values.dtype.kind == "f")
            sizes = np.array([n_genotypes(n, p) for p in range(int(ploidy.max(initial=0)) + 1)])
            expected = sizes[np.maximum(ploidy, 0)]
        else:
            expected = np.full(found.shape, n - (self.number == "A"))
        is_dot = (length <= 1) & ((self.number == "G") | (expected != 1) | (length == 0))
        return Vectors(expected, found, ploidy, (found == 0) & (is_dot | (length > expected)))

    def _ploidy(
        self, n: int, genotype: np.ndarray | None, found: np.ndarray, length: np.ndarray, *, may_be_padded: bool
    ) -> np.ndarray:
        """The ploidy of each call; -1 where nothing tells it."""
        own, is_called, usual = np.full(found.shape, -1, dtype="i8"), np.zeros(found.shape, dtype=bool), DIPLOID
        if genotype is not None:
            own, is_called, usual = (
                (genotype != INT_FILL).sum(axis=-1),
                (genotype >= 0).any(axis=-1),
                genotype.shape[-1],
            )
            own[own == 0] = -1
        if n == 1:  # one value, for any ploidy
            return np.where(is_called, own, usual)
        most = max(DIPLOID, usual)
        sizes = [n_genotypes(n, p) for p in range(most + 1)]
        by_length = np.full(found.shape, -1, dtype="i8")
        for p in range(1, most + 1):
            by_length[(length == sizes[p]) & (found <= sizes[p])] = p
        if may_be_padded:
            # of fewer alleles, and padded, a vector may look the same
            by_length[(by_length > 1) & (found <= np.array(sizes)[by_length - 1])] = -1
        return np.where(~is_called & (by_length > 0), by_length, own)

    def put_in_order(
        self,
        values: np.ndarray,
        n: int,
        m: int,
        numbers: Sequence[int],
        width: int,
        genotype: np.ndarray | None,
        unseen: int = -1,
    ) -> np.ndarray:
        """
        Put vectors in the order of other alleles; those that these have more get missing values.

        Parameters
        ----------
        values
            Rows by samples by values.
        n, m
            How many alleles there are, and will be.
        numbers
            What number each allele will have; -1 of one that there will not be.
        width
            How many values there is room for.
        genotype
            The genotypes of the same calls; None if there are none.
        unseen
            The allele whose values are those of alleles that these have more; -1 if none is.
        """
        vectors = self.look(values, n, genotype)
        result = np.full((*values.shape[:-1], width), self.fill, dtype=values.dtype)
        for ploidy in np.unique(vectors.ploidy[~vectors.is_none]).tolist():
            where = ~vectors.is_none & (vectors.ploidy == ploidy)
            places = self._places(n, m, max(ploidy, 1), numbers, unseen)
            chosen = np.full((int(where.sum()), width), self.fill, dtype=values.dtype)
            chosen[:, : self._size(m, max(ploidy, 1))] = self.missing
            old = values[where]
            is_end = same(old, self.fill)
            for i, place in places:
                if i < old.shape[1]:
                    chosen[:, place] = np.where(is_end[:, i], self.missing, old[:, i])
            result[where] = chosen
        result[..., 0][vectors.is_none] = self.missing
        return result

    def _size(self, n: int, ploidy: int) -> int:
        return n_genotypes(n, ploidy) if self.number == "G" else n - (self.number == "A")

    def _places(self, n: int, m: int, ploidy: int, numbers: Sequence[int], unseen: int) -> list[tuple[int, int]]:
        """Where values go: pairs of the place where one is, and the one where it will be."""
        first = int(self.number == "A")
        if self.number == "G":
            old = [(i, [numbers[a] for a in g]) for i, g in enumerate(genotypes(n, ploidy))]
            pairs = [(i, genotype_number(g)) for i, g in old if min(g) >= 0]
        else:
            pairs = [(i - first, numbers[i] - first) for i in range(first, n) if numbers[i] >= 0]
        if unseen < 0:
            return pairs
        # which allele each of the new ones has its values from
        of = {number: i for i, number in enumerate(numbers[:n]) if number >= 0}
        known = {place for _, place in pairs}
        if self.number == "G":
            new = enumerate(genotypes(m, ploidy))
            return pairs + [
                (genotype_number([of.get(a, unseen) for a in g]), place) for place, g in new if place not in known
            ]
        return pairs + [(unseen - first, place) for place in range(m - first) if place not in known]
