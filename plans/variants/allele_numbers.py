"""Integer codes for allele strings, by which variants are compared."""

from collections import Counter

import numpy as np

from vczstore.vcz.extents import ABSENT_ALLELES


class Numbers(dict[str, int]):
    """Codes by allele string, ignoring case and assigned on first use; -1 for missing (``.``) and fill alleles."""

    def __missing__(self, allele: str) -> int:
        upper = allele.upper()
        self[allele] = -1 if allele in ABSENT_ALLELES else len(self) if upper == allele else self[upper]
        return self[allele]

    def of(self, alleles: np.ndarray) -> np.ndarray:
        """Return the codes of an array of alleles, records by alleles; see `distinguish_repeats`."""
        numbers = np.fromiter(map(self.__getitem__, alleles.ravel().tolist()), "i8", alleles.size)
        return distinguish_repeats(numbers.reshape(alleles.shape))


REPEATED = 2**32
"""Offset between the codes of the occurrences of an allele that a record repeats."""


def distinguish_repeats(numbers: np.ndarray) -> np.ndarray:
    """
    Give each occurrence of an allele that a record repeats a code of its own.

    VCF allows no repeated alleles, but some files have them, and the values of each occurrence must stay with it.

    >>> distinguish_repeats(np.array([[0, 1, 2], [0, 1, 1], [3, -1, -1]])).tolist()
    [[0, 1, 2], [0, 1, 4294967297], [3, -1, -1]]
    """
    in_order = np.sort(numbers, axis=1)
    repeats = (np.diff(in_order, axis=1) == 0) & (in_order[:, 1:] >= 0)
    result = numbers
    for row in np.flatnonzero(repeats.any(axis=1)):
        result = numbers.copy() if result is numbers else result
        seen: Counter[int] = Counter()
        for column, number in enumerate(numbers[row].tolist()):
            if number >= 0:
                result[row, column] += seen[number] * REPEATED
                seen[number] += 1
    return result


def padded(values: np.ndarray, width: int, fill: str | int = "") -> np.ndarray:
    """Return alleles, or values per allele, padded with `fill` to `width` columns."""
    return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)


def with_new_alleles(
    alleles: np.ndarray, ours: np.ndarray, theirs: np.ndarray, ids: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Return the store's alleles and codes with the source's new ones, and the index in the store of each source allele.

    `ours` and `ids` are the codes of `alleles` and `theirs`; `at` is the record of the source that matches each variant
    of the store, or -1. `alleles` and `ours` may be changed in place. The index is -1 where there is no allele.
    """
    mapped = np.full((len(at), ids.shape[1]), -1, dtype="i8")
    present = np.flatnonzero(at >= 0)
    if not len(present):
        return alleles, ours, mapped
    wanted = ids[at[present]]
    same = wanted[:, :, np.newaxis] == ours[present][:, np.newaxis, :]
    mapped[present] = np.where(wanted < 0, -1, np.where(same.any(axis=2), same.argmax(axis=2), -2))
    for row in present[(mapped[present] == -2).any(axis=1)]:  # few: -2 marks new alleles
        n = int((ours[row] >= 0).sum())
        for column in np.flatnonzero(mapped[row] == -2):
            if n == ours.shape[1]:
                alleles = padded(alleles, n + 1)
                ours = padded(ours, n + 1, -1)
            alleles[row, n], ours[row, n] = theirs[at[row], column], ids[at[row], column]
            mapped[row, column] = n
            n += 1
    return alleles, ours, mapped
