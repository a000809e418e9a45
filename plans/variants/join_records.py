"""Joining: which records become one although their ALTs differ. Python's values in, numbers out.

``bcftools merge -m none`` joins records of different files that share an ALT, and those of REF alone with others. Of
several that have to do with each other it takes those with the ALT that most of them have; the rest makes the next
record. So it is here, with two differences, both so that every record of a source is found again in the store by
`plans.variants.match.match`:

- records with the same ALTs stay together, even if they could be joined with others;
- a record that would match another one of the store, or several, is not joined.
"""

from collections.abc import Sequence

import numpy as np

from plans.variants.match import match
from vczstore.vcz.extents import NONE, UNSEEN


def join(
    alts: Sequence[Sequence[str]],
    sources: Sequence[Sequence[int]],
    extents: Sequence[int] | None = None,
    *,
    any_alt: bool = False,
) -> list[int]:
    """
    Join records at one position that have one REF.

    Parameters
    ----------
    alts
        Of each record, each once, in upper case; symbolic ones with something that tells other lengths apart.
    sources
        Which of them have the record.
    extents
        How long each record is; see `vczstore.vcz.extents`. None if no ALT is symbolic.
    any_alt
        Whether records are joined that share no ALT, as ``bcftools merge -m both`` does; not symbolic ones.

    Returns
    -------
    list of int
        For each record the first of those that it becomes one with, itself or one before it.

    Examples
    --------
    One source has A>C and A>T, another A>C,T; the second of them stays what it is.

    >>> join([["C"], ["T"], ["C", "T"]], [[0], [0], [1]])
    [0, 1, 0]

    A>C of the second source could be either of the first, so it is none.

    >>> join([["C", "T"], ["C", "G"], ["C"]], [[0], [0], [1]])
    [0, 1, 2]
    """
    alone: set[int] = set()
    extents = [NONE] * len(alts) if extents is None else extents
    while True:
        joined = _join(alts, sources, extents, alone, any_alt=any_alt)
        lost = _lost(alts, sources, extents, joined)
        if lost <= alone:
            return joined
        alone |= lost


def _join(
    alts: Sequence[Sequence[str]],
    sources: Sequence[Sequence[int]],
    extents: Sequence[int],
    alone: set[int],
    *,
    any_alt: bool,
) -> list[int]:
    joined = list(range(len(alts)))
    left = [i for i in joined if i not in alone]
    while left:
        chosen = _choose(alts, sources, extents, left)
        if any_alt:
            chosen = _with_others(chosen, sources, extents, left)
        for i in chosen:
            joined[i] = min(chosen)
        left = [i for i in left if i not in chosen]
    return joined


def _choose(
    alts: Sequence[Sequence[str]], sources: Sequence[Sequence[int]], extents: Sequence[int], left: Sequence[int]
) -> list[int]:
    """The records that become the next: at most one of each source, and symbolic ones of one length."""
    seen = {i: {alt for alt in alts[i] if alt not in UNSEEN} for i in left}
    counts: dict[str, int] = {}
    candidates: list[int] = []
    for i in left:
        if not counts or not seen[i] or not seen[i].isdisjoint(counts):
            candidates.append(i)
            for alt in alts[i]:
                if alt in seen[i]:
                    counts[alt] = counts.get(alt, 0) + len(sources[i])
    most = max(counts, key=counts.__getitem__, default=None)  # of several the first
    chosen: list[int] = []
    taken: set[int] = set()
    long: set[int] = set()
    for i in sorted(candidates, key=lambda i: not seen[i]):  # REF alone goes with what is there
        mine = {extents[i]} - {NONE}
        if (most in seen[i] or not seen[i]) and taken.isdisjoint(sources[i]) and (not mine or long in (set(), mine)):
            chosen.append(i)
            long |= mine
            taken.update(sources[i])
    return chosen


def _with_others(
    chosen: Sequence[int], sources: Sequence[Sequence[int]], extents: Sequence[int], left: Sequence[int]
) -> list[int]:
    """The records that become the next with those that share no ALT with them, none of which is symbolic."""
    result = list(chosen)
    taken = {source for i in chosen for source in sources[i]}
    if any(extents[i] != NONE for i in chosen):
        return result
    for i in left:
        if i not in chosen and extents[i] == NONE and taken.isdisjoint(sources[i]):
            result.append(i)
            taken.update(sources[i])
    return result


def _lost(
    alts: Sequence[Sequence[str]], sources: Sequence[Sequence[int]], extents: Sequence[int], joined: Sequence[int]
) -> set[int]:
    """The records that have been joined, and that a source would not find where they are."""
    together: dict[int, list[int]] = {}
    for i, j in enumerate(joined):
        together.setdefault(j, []).append(i)
    if len(together) == 1:
        return set()  # there is nothing else
    numbers = {alt: n for n, alt in enumerate(dict.fromkeys(alt for texts in alts for alt in texts), 1)}
    store = _table([sorted({numbers[a] for i in members for a in alts[i]}) for members in together.values()])
    long = np.array([max(extents[i] for i in members) for members in together.values()], dtype="i8")
    lost: set[int] = set()
    for source in {s for some in sources for s in some}:
        mine = [i for i, some in enumerate(sources) if source in some]
        theirs = _table([[numbers[a] for a in alts[i]] for i in mine])
        own = (long, np.array([extents[i] for i in mine], dtype="i8"))
        found = match(np.zeros(len(store), "i8"), store, np.zeros(len(mine), "i8"), theirs, extents=own)
        at = {mine[n]: members for n, members in zip(found.tolist(), together.values(), strict=True) if n >= 0}
        for i in mine:
            if at.get(i) != together[joined[i]]:
                lost.update([i] if len(together[joined[i]]) > 1 else at.get(i, []))
    return lost


def _table(alts: Sequence[Sequence[int]]) -> np.ndarray:
    """As `match` takes alleles: REF is 0."""
    result = np.full((len(alts), 1 + max(map(len, alts), default=0)), -1, dtype="i8")
    result[:, 0] = 0
    for row, numbers in zip(result, alts, strict=True):
        row[1 : 1 + len(numbers)] = numbers
    return result
