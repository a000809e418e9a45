"""Matching: which variant of a source is which variant of a store.

A variant is identified by its contig (by name), position, REF, and set of ALTs, all regardless of case. The length of a
symbolic ALT is part of it; see `vczstore.vcz.extents`. Variants of a store and a source with the same contig, position
and REF are matched in this order:

1. variants with the same ALTs match; if there are several, the first one matches the first one, and so on;
2. a variant of the source matches the only variant of the store that has all its ALTs;
3. if new alleles are allowed: a variant matches the only one of the store with which it shares an ALT, or where either
   has no ALT, and its other ALTs are added to it; and then the only one that is left. A record that repeats an ALT adds
   none: it matches only where the store repeats it, too.

A variant of the source that could match several variants of the store matches none: there is no guessing. A variant
with another REF is another variant.

Both sides are sorted, so the matches of a range of the store's variants are neighbours in the source; see
`plans.variants.sortedness`.
"""

import numpy as np

from plans.variants.allele_numbers import REPEATED
from vczstore.vcz.extents import NONE


def match(
    positions: np.ndarray,
    alleles: np.ndarray,
    source_positions: np.ndarray,
    source_alleles: np.ndarray,
    *,
    allow_new_alleles: bool = False,
    extents: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """
    Match the variants of a source to those of a store, on one contig.

    Parameters
    ----------
    positions, source_positions : numpy.ndarray of int64
        Sorted.
    alleles, source_alleles : numpy.ndarray of int64, variants by alleles
        Codes of the alleles, the same on both sides, REF first; negative where there is none.
    allow_new_alleles
        Whether the third rule applies.
    extents
        Extents of the variants of the store and of the source; see `vczstore.vcz.extents`. None if none is symbolic.

    Returns
    -------
    numpy.ndarray of int64
        For each variant of the store, the index of the matching variant of the source, or -1.

    Examples
    --------
    The source's A>T,C matches the store's A>C,T, and its A>C the store's A>C.

    >>> store = np.array([[0, 1, 2], [0, 1, -1]])
    >>> source = np.array([[0, 1, -1], [0, 2, 1]])
    >>> match(np.array([7, 7]), store, np.array([7, 7]), source)
    array([1, 0])
    """
    result = np.full(len(positions), -1, dtype="i8")
    first = np.searchsorted(positions, source_positions, "left")
    counts = np.searchsorted(positions, source_positions, "right") - first
    theirs = np.repeat(np.arange(len(source_positions)), counts)
    if not len(theirs):
        return result
    ours = np.repeat(first, counts) + np.arange(len(theirs)) - np.repeat(np.cumsum(counts) - counts, counts)
    same_ref = alleles[ours, 0] == source_alleles[theirs, 0]
    ours, theirs = ours[same_ref], theirs[same_ref]

    a, b = alleles[ours, 1:], source_alleles[theirs, 1:]
    shared = ((b[:, :, np.newaxis] == a[:, np.newaxis, :]) & (b >= 0)[:, :, np.newaxis]).any(axis=2).sum(axis=1)
    n, m = (a >= 0).sum(axis=1), (b >= 0).sum(axis=1)
    if extents is not None:
        # a record with a symbolic ALT never matches one of the store without, where its length would be lost; without
        # one, it matches one of the store that has one only if they share an ALT, or if it has REF alone
        extents_of = extents[0][ours], extents[1][theirs]
        fits = (extents_of[0] == extents_of[1]) | ((extents_of[1] == NONE) & ((shared > 0) | (m == 0)))
        ours, theirs, shared, n, m = ours[fits], theirs[fits], shared[fits], n[fits], m[fits]

    exact = (shared == m) & (m == n)
    i, j = ours[exact], theirs[exact]
    paired = rank(i, j) == rank(j, i)
    result[i[paired]] = j[paired]

    levels = [shared == m]
    if allow_new_alleles:
        # a repeated allele is not added, since the store would have it twice from then on
        repeats = ((source_alleles >= REPEATED).any(axis=1))[theirs]
        levels += [~repeats & ((shared > 0) | (n == 0) | (m == 0)), ~repeats]
    for level in levels:
        is_free = np.ones(len(source_positions), dtype=bool)
        is_free[result[result >= 0]] = False
        free = level & (result[ours] < 0) & is_free[theirs]
        i, j = ours[free], theirs[free]
        alone = (np.bincount(i, minlength=len(positions))[i] == 1) & (
            np.bincount(j, minlength=len(source_positions))[j] == 1
        )
        result[i[alone]] = j[alone]
    return result


def rank(values: np.ndarray, *groups: np.ndarray) -> np.ndarray:
    """
    Return the rank, from 0, of each value among those with the same groups; equal values rank in their order.

    >>> rank(np.array([3, 1, 2]), np.array([7, 7, 8]))
    array([1, 0, 0])
    """
    order = np.lexsort((values, *groups))
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = np.logical_or.reduce([np.diff(group[order]) != 0 for group in groups])
    here = np.arange(len(order))
    result = np.empty(len(order), dtype="i8")
    result[order] = here - np.maximum.accumulate(np.where(is_first, here, 0))
    return result
