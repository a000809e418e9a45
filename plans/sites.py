"""Sites: which records of several VCZs are the same, and in which order they come. NumPy arrays in, NumPy arrays out.

Two records are the same if their contig (by name), position, REF and set of ALTs are. ALTs may be in any order, and
alleles that are missing (``"."``) or fill (``""``) are no alleles. Alleles are compared as they are written: nothing
is trimmed, as ``bcftools norm`` does, and ALTs that have some alleles in common are not merged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ABSENT = ("", ".")
"""What stands for no allele, and for no identifier."""


def union_table(tables: Sequence[Sequence[str]]) -> tuple[list[str], list[np.ndarray]]:
    """
    The names of several tables, each once, in the order of their first appearance.

    Returns
    -------
    union : list of str
    numbers : list of numpy.ndarray of int64
        For each table, the number that each of its names has in the union.

    Examples
    --------
    >>> union_table([["chr1", "chr2"], ["chr2", "chrM"]])
    (['chr1', 'chr2', 'chrM'], [array([0, 1]), array([1, 2])])
    """
    numbers: dict[str, int] = {}
    places = [np.array([numbers.setdefault(name, len(numbers)) for name in table], dtype="i8") for table in tables]
    return list(numbers), places


def group_sites(contig: np.ndarray, position: np.ndarray, alleles: np.ndarray) -> np.ndarray:
    """
    Give the same number to records that are the same.

    Parameters
    ----------
    contig, position
        Of each record; contigs are numbers in one table.
    alleles
        REF and ALTs of each record, of two dimensions.

    Returns
    -------
    numpy.ndarray of int64
        Counted from 0, in the order of first appearance.

    Examples
    --------
    >>> alleles = np.array([["A", "C", "G"], ["A", "C", ""], ["A", "G", "C"]])
    >>> group_sites(np.array([0, 0, 0]), np.array([5, 5, 5]), alleles)
    array([0, 1, 0])
    """
    if not len(contig):
        return np.empty(0, dtype="i8")
    codes = _codes(alleles)
    groups = _pairs(_pairs(contig, position), codes[:, 0] + 1)
    alts = np.sort(codes[:, 1:], axis=1)
    alts[:, 1:][alts[:, 1:] == alts[:, :-1]] = -1  # a set has each once
    alts = -np.sort(-alts, axis=1)
    for column in alts.T:
        rows = np.flatnonzero(column >= 0)
        if not len(rows):
            break
        # above all others: records with fewer ALTs keep the numbers that they have
        groups[rows] = groups.max() + 1 + _pairs(groups[rows], column[rows])
    _, first, groups = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[groups]


def _codes(alleles: np.ndarray) -> np.ndarray:
    """A number for each string, -1 where there is no allele. To sort strings would take four times as long."""
    flat = alleles.ravel().tolist()
    codes = {allele: i for i, allele in enumerate(dict.fromkeys(flat))}
    codes.update(dict.fromkeys(ABSENT, -1))
    return np.fromiter(map(codes.__getitem__, flat), "i8", len(flat)).reshape(alleles.shape)


def _pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The same number for the same pair, counted from 0 in the order of the pairs; `b` is not negative."""
    a = np.unique(a, return_inverse=True)[1]
    return np.unique(a * (int(b.max()) + 1) + b, return_inverse=True)[1]


def count_repeats(groups: np.ndarray, source: np.ndarray) -> np.ndarray:
    """
    How many records of the same source and group are before each record.

    Examples
    --------
    >>> count_repeats(np.array([7, 7, 8, 7]), np.array([0, 0, 0, 1]))
    array([0, 1, 0, 0])
    """
    order = np.lexsort((source, groups))
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (np.diff(groups[order]) != 0) | (np.diff(source[order]) != 0)
    starts = np.flatnonzero(is_first)
    repeats = np.empty(len(order), dtype="i8")
    repeats[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return repeats


@dataclass(frozen=True)
class Merged:
    """
    The records of several sources as records of their union, which are in order.

    Attributes
    ----------
    record
        For each record of a source, the number of the one of the union.
    first
        For each record of the union, where it appears first.
    """

    record: np.ndarray
    first: np.ndarray

    def first_where(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The records of the union that have one chosen in a source, and where the first of these is."""
        rows = np.flatnonzero(chosen)
        records, at = np.unique(self.record[rows], return_index=True)
        return records, rows[at]


def merge_sites(contig: np.ndarray, position: np.ndarray, alleles: np.ndarray, source: np.ndarray) -> Merged:
    """
    Merge the records of several sources.

    Records of different sources become one where they are the same. A record that a source has several times
    stays as often as it is in the source that has it most often. The union is in order of contig, position and
    first appearance.

    Parameters
    ----------
    contig, position, alleles
        As in `group_sites`; of one source after the other.
    source
        The number of the source of each record.
    """
    groups = group_sites(contig, position, alleles)
    if not len(groups):
        return Merged(groups, groups)
    copies = _pairs(groups, count_repeats(groups, source))
    _, first, record = np.unique(copies, return_index=True, return_inverse=True)
    order = np.lexsort((first, position[first], contig[first]))
    return Merged(np.argsort(order)[record], first[order])


def region_index(contig: np.ndarray, position: np.ndarray, length: np.ndarray, *, start: int, chunk: int) -> np.ndarray:
    """
    The rows of ``region_index`` for some variants: one for each contig in each chunk of variants.

    Parameters
    ----------
    contig, position, length
        Of the variants, in order.
    start
        The number of the first of them, which begins a chunk.
    chunk
        How many variants a chunk has.

    Returns
    -------
    numpy.ndarray of int64
        Of six columns: the chunk, the contig, the first and the last position, the greatest end (the last base that
        a variant takes up), the number of variants.

    Examples
    --------
    >>> ones = np.ones(3, dtype="i8")
    >>> region_index(np.array([0, 0, 1]), np.array([5, 9, 4]), 2 * ones, start=4, chunk=2)
    array([[ 2,  0,  5,  9, 10,  2],
           [ 3,  1,  4,  4,  5,  1]])
    """
    if not len(contig):
        return np.empty((0, 6), dtype="i8")
    contig, position = contig.astype("i8"), position.astype("i8")
    chunks = (start + np.arange(len(contig))) // chunk
    starts = np.flatnonzero(np.diff(chunks, prepend=-1).astype(bool) | np.diff(contig, prepend=-1).astype(bool))
    counts = np.diff(np.append(starts, len(contig)))
    ends = np.maximum.reduceat(position + length - 1, starts)
    return np.stack(
        [chunks[starts], contig[starts], position[starts], position[starts + counts - 1], ends, counts], axis=1
    )
