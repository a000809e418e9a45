"""Union of sites: which records of several VCZs are the same, and their order. NumPy arrays in, NumPy arrays out.

Two records are the same if their contig (by name), position, REF and ALTs are. ALTs may be in any order, case is
ignored, and alleles that are missing (``"."``) or fill (``""``) do not count. Alleles are compared verbatim, without
the trimming of ``bcftools norm``. Records that differ may be joined; see `plans.variants.join_records`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from plans.variants.allele_numbers import REPEATED, Numbers
from plans.variants.join_records import join
from plans.variants.match import rank
from vczstore.vcz.extents import ABSENT_ALLELES, NONE, UNSEEN, is_any_of, is_symbolic


def union_table(tables: Sequence[Sequence[str]]) -> tuple[list[str], list[np.ndarray]]:
    """
    Merge tables of names, in the order of their first appearance.

    Returns
    -------
    union : list of str
    numbers : list of numpy.ndarray of int64
        For each table, the index of each of its names in the union.

    Examples
    --------
    >>> union_table([["chr1", "chr2"], ["chr2", "chrM"]])
    (['chr1', 'chr2', 'chrM'], [array([0, 1]), array([1, 2])])
    """
    numbers: dict[str, int] = {}
    places = [np.array([numbers.setdefault(name, len(numbers)) for name in table], dtype="i8") for table in tables]
    return list(numbers), places


def _sites(contig: np.ndarray, position: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Number the records: the same number for the same contig, position and REF."""
    return _pairs(_pairs(contig, position), codes[:, 0] + 1) if len(contig) else np.empty(0, dtype="i8")


def _group(sites: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Number the records from 0, in order of first appearance: the same number for the same site and set of ALTs."""
    if not len(sites):
        return sites
    groups = sites.copy()
    alts = np.sort(codes[:, 1:], axis=1)
    alts[:, 1:][alts[:, 1:] == alts[:, :-1]] = -1  # without repeats
    alts = -np.sort(-alts, axis=1)
    for column in alts.T:
        rows = np.flatnonzero(column >= 0)
        if not len(rows):
            break
        # new numbers are above all others, so that records with fewer ALTs keep theirs
        groups[rows] = groups.max() + 1 + _pairs(groups[rows], column[rows])
    _, first, groups = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[groups]


def _codes(alleles: np.ndarray) -> np.ndarray:
    """Return the code of each allele, -1 where there is none. Sorting the strings would take four times as long."""
    codes = Numbers().of(alleles)
    if codes.max(initial=0) >= REPEATED:  # then `_pairs` needs smaller ones
        values, numbers = np.unique(codes, return_inverse=True)
        codes = np.maximum(numbers.reshape(codes.shape) - int((values < 0).sum()), -1)
    return codes


def _pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Number pairs from 0, in their sort order: the same number for the same pair. `b` must not be negative."""
    a = np.unique(a, return_inverse=True)[1]
    return np.unique(a * (int(b.max()) + 1) + b, return_inverse=True)[1]


def count_repeats(groups: np.ndarray, source: np.ndarray) -> np.ndarray:
    """
    Count, for each record, the records of the same source and group before it.

    Examples
    --------
    >>> count_repeats(np.array([7, 7, 8, 7]), np.array([0, 0, 0, 1]))
    array([0, 1, 0, 0])
    """
    return rank(np.arange(len(groups)), groups, source)


@dataclass(frozen=True)
class Merged:
    """
    The records of several sources, mapped to the sorted records of their union.

    Attributes
    ----------
    record
        For each record of a source, the number of its record in the union.
    first
        For each record of the union, the index of its first record in a source.
    joined
        Alleles of joined records, by the number in the union; other records have the alleles of the first.
    """

    record: np.ndarray
    first: np.ndarray
    joined: Mapping[int, Sequence[str]]

    @property
    def most_alleles(self) -> int:
        """Largest number of alleles of a joined record; 0 if there is none."""
        return max(map(len, self.joined.values()), default=0)

    def first_where(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the union records that have a chosen record of a source, and the index of the first one of each."""
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
    store: int | None = None,
) -> Merged:
    """
    Merge the records of several sources.

    Records of different sources become one if they are the same, or are joined. A record that sources repeat is
    repeated as often as in the source that has it most often. The union is sorted by contig, position and first
    appearance.

    Parameters
    ----------
    contig, position
        Contig, numbered as in one table, and position of each record, source by source.
    alleles
        Records by alleles, REF first.
    source
        Number of the source of each record.
    extents
        Extent of each record; see `vczstore.vcz.extents`. None if no ALT is symbolic.
    any_alt, store
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
    for rows in _candidates(sites, codes, alleles, first, any_alt=any_alt):
        alts = [[a for a in alleles[first[i], 1:].tolist() if a not in ABSENT_ALLELES] for i in rows]
        members = [by_record[ends[i - 1] if i else 0 : ends[i]] for i in rows.tolist()]
        lengths = extents[first[rows]].tolist()
        ref = str(alleles[first[rows[0]], 0])
        labels = [_labels(ref, record_alts, n) for record_alts, n in zip(alts, lengths, strict=True)]
        joined = join(labels, [source[m].tolist() for m in members], lengths, any_alt=any_alt, store=store)
        becomes[rows] = rows[joined]
        for i, n in Counter(joined).items():
            if n > 1:
                by_label: dict[str, str] = {}
                for j in range(len(rows)):
                    for label, allele in zip(labels[j], alts[j], strict=True) if joined[j] == i else ():
                        by_label.setdefault(label, allele)
                texts[int(rows[i])] = [str(alleles[first[rows[i]], 0]), *by_label.values()]

    kept = np.flatnonzero(becomes == np.arange(len(first)))
    order = kept[np.lexsort((first[kept], position[first[kept]], contig[first[kept]]))]
    numbers = np.empty(len(first), dtype="i8")
    numbers[order] = np.arange(len(order))
    return Merged(numbers[becomes][record], first[order], {int(numbers[i]): text for i, text in texts.items()})


def _labels(ref: str, alts: Sequence[str], extent: int) -> list[str]:
    """
    Return labels that are equal for the same ALTs: in upper case, with the length if symbolic, numbered if repeated.

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


def _candidates(
    sites: np.ndarray, codes: np.ndarray, alleles: np.ndarray, first: np.ndarray, *, any_alt: bool
) -> list[np.ndarray]:
    """Return the groups of records at one position and REF that may be joined: two share an ALT, or one has none."""
    rows = np.flatnonzero(np.bincount(sites[first])[sites[first]] > 1)
    rows = rows[np.argsort(sites[first[rows]], kind="stable")]
    site, alts = sites[first[rows]], alleles[first[rows], 1:]
    is_alt = (codes[first[rows], 1:] >= 0) & ~is_any_of(alts, UNSEEN)
    row, column = np.nonzero(is_alt)
    is_candidate = ~is_alt.any(axis=1)
    if len(row):
        pairs = _pairs(site[row], codes[first[rows[row]], 1 + column])
        is_candidate[row[np.bincount(pairs)[pairs] > 1]] = True
    chosen = np.isin(site, site[is_candidate]) | any_alt
    rows, site = rows[chosen], site[chosen]
    return np.split(rows, np.flatnonzero(np.diff(site)) + 1) if len(rows) else []
