"""Sites: which records of several VCZs are the same, and in which order they come. NumPy arrays in, NumPy arrays out.

Two records are the same if their contig (by name), position, REF and ALTs are. ALTs may be in any order,
letters count regardless of case, and alleles that are missing (``"."``) or fill (``""``) are no alleles. Alleles are
compared as they are written: nothing is trimmed, as ``bcftools norm`` does. Those that are not the same may be joined;
see `plans.variants.join_records`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from plans.core.compatibility import NOTHING
from plans.variants.allele_numbers import REPEATED, distinguish_repeats
from plans.variants.join_records import join
from vczstore.vcz.extents import NONE, UNSEEN, is_symbolic


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


def _sites(contig: np.ndarray, position: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The same number for the same contig, position and REF."""
    return _pairs(_pairs(contig, position), codes[:, 0] + 1) if len(contig) else np.empty(0, dtype="i8")


def _group(sites: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The same number for the same site and set of ALTs; counted from 0, in the order of first appearance."""
    if not len(sites):
        return sites
    groups = sites.copy()
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
    letters = {allele: allele.upper() for allele in dict.fromkeys(flat)}
    numbers = {allele: i for i, allele in enumerate(dict.fromkeys(letters.values()))}
    codes = {allele: numbers[upper] for allele, upper in letters.items()}
    codes.update(dict.fromkeys(NOTHING, -1))
    result = distinguish_repeats(np.fromiter(map(codes.__getitem__, flat), "i8", len(flat)).reshape(alleles.shape))
    return result if result.max(initial=0) < REPEATED else _compact(result)


def _compact(codes: np.ndarray) -> np.ndarray:
    """The same numbers counted from 0, but for negative ones."""
    known, numbers = np.unique(codes, return_inverse=True)
    return np.maximum(numbers.reshape(codes.shape) - int((known < 0).sum()), -1)


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
    joined
        The alleles of those that have been joined, by the number in the union; others have those of the first.
    """

    record: np.ndarray
    first: np.ndarray
    joined: Mapping[int, Sequence[str]]

    @property
    def most_alleles(self) -> int:
        """How many alleles one that has been joined has at most."""
        return max(map(len, self.joined.values()), default=0)

    def first_where(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The records of the union that have one chosen in a source, and where the first of these is."""
        rows = np.flatnonzero(chosen)
        records, at = np.unique(self.record[rows], return_index=True)
        return records, rows[at]


def merge_sites(
    contig: np.ndarray,
    position: np.ndarray,
    alleles: np.ndarray,
    source: np.ndarray,
    extents: np.ndarray | None = None,
    *,
    any_alt: bool = False,
) -> Merged:
    """
    Merge the records of several sources.

    Records of different sources become one where they are the same, or are joined. A record that a source has several
    times stays as often as it is in the source that has it most often. The union is in order of contig, position and
    first appearance.

    Parameters
    ----------
    contig, position
        Of each record, of one source after the other; contigs are numbers in one table.
    alleles
        REF and ALTs of each record, of two dimensions.
    source
        The number of the source of each record.
    extents
        How long each record is; see `vczstore.vcz.extents`. None if no ALT is symbolic.
    any_alt
        As in `plans.variants.join_records.join`.
    """
    codes = _codes(alleles)
    sites = _sites(contig, position, codes)
    extents = np.full(len(sites), NONE, dtype="i8") if extents is None else extents
    groups = _group(
        sites if (extents == NONE).all() else _pairs(sites, np.unique(extents, return_inverse=True)[1]), codes
    )
    if not len(groups):
        return Merged(groups, groups, {})
    copies = _pairs(groups, count_repeats(groups, source))
    _, first, record = np.unique(copies, return_index=True, return_inverse=True)
    record, first = np.argsort(np.argsort(first))[record], np.sort(first)  # in the order of first appearance

    by_record = np.argsort(record, kind="stable")
    ends = np.searchsorted(record[by_record], np.arange(len(first)), side="right")
    becomes, texts = np.arange(len(first)), {}
    for rows in _meetings(sites, codes, alleles, first, any_alt=any_alt):
        alts = [[a for a in alleles[first[i], 1:].tolist() if a not in NOTHING] for i in rows]
        members = [by_record[ends[i - 1] if i else 0 : ends[i]] for i in rows.tolist()]
        long = extents[first[rows]].tolist()
        ref = str(alleles[first[rows[0]], 0])
        upper = [_labels(ref, some, n) for some, n in zip(alts, long, strict=True)]
        joined = join(upper, [source[m].tolist() for m in members], long, any_alt=any_alt)
        becomes[rows] = rows[joined]
        for i, n in Counter(joined).items():
            if n > 1:
                known: dict[str, str] = {}
                for j in range(len(rows)):
                    for label, allele in zip(upper[j], alts[j], strict=True) if joined[j] == i else ():
                        known.setdefault(label, allele)
                texts[int(rows[i])] = [str(alleles[first[rows[i]], 0]), *known.values()]

    kept = np.flatnonzero(becomes == np.arange(len(first)))
    order = kept[np.lexsort((first[kept], position[first[kept]], contig[first[kept]]))]
    numbers = np.empty(len(first), dtype="i8")
    numbers[order] = np.arange(len(order))
    return Merged(numbers[becomes][record], first[order], {int(numbers[i]): text for i, text in texts.items()})


def _labels(ref: str, alts: Sequence[str], extent: int) -> list[str]:
    """
    Texts that are equal for the same ALTs: of symbolic ones with their length, of those that are repeated numbered.

    >>> _labels("A", ["C", "<DEL>", "c"], 500)
    ['C', '<DEL> 500', 'C #2']
    """
    seen = Counter([ref.upper()])
    result = []
    for alt in map(str.upper, alts):
        seen[alt] += 1
        label = f"{alt} {extent}" if is_symbolic(alt) else alt
        result.append(label if seen[alt] == 1 else f"{label} #{seen[alt]}")
    return result


def _meetings(
    sites: np.ndarray, codes: np.ndarray, alleles: np.ndarray, first: np.ndarray, *, any_alt: bool
) -> list[np.ndarray]:
    """The records that meet at one position and REF, and may be joined: two share an ALT, or one is of REF alone."""
    rows = np.flatnonzero(np.bincount(sites[first])[sites[first]] > 1)
    rows = rows[np.argsort(sites[first[rows]], kind="stable")]
    site, alts = sites[first[rows]], alleles[first[rows], 1:]
    is_alt = (codes[first[rows], 1:] >= 0) & ~np.logical_or.reduce([alts == text for text in UNSEEN])
    row, column = np.nonzero(is_alt)
    may = ~is_alt.any(axis=1)
    if len(row):
        pairs = _pairs(site[row], codes[first[rows[row]], 1 + column])
        may[row[np.bincount(pairs)[pairs] > 1]] = True
    chosen = np.isin(site, site[may]) | any_alt
    rows, site = rows[chosen], site[chosen]
    return np.split(rows, np.flatnonzero(np.diff(site)) + 1) if len(rows) else []
