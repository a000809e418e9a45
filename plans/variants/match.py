"""Matching: which variant of a source is which of the store's, and which of its alleles is which.

A variant is its contig (by name), position, REF, and the set of its ALTs; letters count regardless of case. Where an
ALT is symbolic, its length belongs to it; see `vczstore.vcz.extents`. Of a store and a source that have the same
contig, position and REF, in this order:

1. variants with the same ALTs are the same; of several, the first of one is the first of the other, and so on;
2. a variant of the source whose ALTs are among those of one variant of the store is that one;
3. if new alleles are allowed: one that shares an ALT with one variant of the store, or of which either has no ALT,
   is that one, and its other ALTs come in; and then one for which there is no other choice. A record that repeats an
   ALT brings none: it is a variant of the store only where the store repeats it, too.

A variant of the source that could be several of the store's is none of them: nothing is guessed. Another REF is
another variant.

Both sides are sorted, so what belongs to a range of the store's variants lies together in the source; see
`plans.variants.sortedness`.
"""

import numpy as np

from plans.variants.allele_numbers import REPEATED
from vczstore.vcz.extents import may_match


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
        A number for each different allele, the same on both sides, REF first; negative where there is none.
    allow_new_alleles
        Whether the third rule holds.
    extents
        How long the variants of the store and of the source are; see `vczstore.vcz.extents`. None if none is symbolic.

    Returns
    -------
    numpy.ndarray of int64
        For each variant of the store, that of the source, or -1.

    Examples
    --------
    A C,T is the C,T of the store; C alone belongs to the next.

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
        may = may_match(extents[0][ours], extents[1][theirs], shared, m == 0)
        ours, theirs, shared, n, m = ours[may], theirs[may], shared[may], n[may], m[may]

    exact = (shared == m) & (m == n)
    i, j = ours[exact], theirs[exact]
    paired = _rank(i, j) == _rank(j, i)
    result[i[paired]] = j[paired]

    levels = [shared == m]
    if allow_new_alleles:
        # an allele that a record repeats is no new one: the store would have two of it from then on
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


def _rank(of: np.ndarray, among: np.ndarray) -> np.ndarray:
    """For each pair, the rank of `of` among those paired with the same `among`."""
    order = np.lexsort((of, among))
    starts = np.r_[True, np.diff(among[order]) != 0] if len(order) else np.empty(0, dtype=bool)
    here = np.arange(len(order))
    rank = np.empty(len(order), dtype="i8")
    rank[order] = here - np.maximum.accumulate(np.where(starts, here, 0))
    return rank
