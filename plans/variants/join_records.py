"""Joining: which records become one although their ALTs differ. Python values in, numbers out.

``bcftools merge -m none`` joins records of different files that share an ALT, and records without ALTs with others. Of
several records that overlap it first joins those with the most common ALT; the rest make the next record. The same is
done here, with two differences, which ensure that `plans.variants.match.match` finds every record of a source in the
store again:

- records with the same ALTs stay together, even if they could be joined with others;
- a record that would match another one of the store, or several, is not joined.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from plans.variants.match import match
from vczstore.vcz.extents import NONE, UNSEEN


def join(
    alts: Sequence[Sequence[str]],
    sources: Sequence[Sequence[int]],
    extents: Sequence[int] | None = None,
    *,
    any_alt: bool = False,
    store: int | None = None,
) -> list[int]:
    """
    Join records with the same position and REF.

    Parameters
    ----------
    alts
        The ALTs of each record, without repeats, in upper case; symbolic ones include their length.
    sources
        Numbers of the sources that have each record.
    extents
        Extent of each record; see `vczstore.vcz.extents`. None if no ALT is symbolic.
    any_alt
        Whether to join records that share no ALT, as ``bcftools merge -m both`` does, except symbolic ones.
    store
        Number of the source that is an existing store: the lengths of its records do not change, so no symbolic record
        is joined with one that has no symbolic ALT. None if there is none.

    Returns
    -------
    list of int
        For each record, the index of the first record that it is joined with: its own, or an earlier one.

    Examples
    --------
    One source has A>C and A>T, another A>C,T, which is joined with A>C.

    >>> join([["C"], ["T"], ["C", "T"]], [[0], [0], [1]])
    [0, 1, 0]

    A>C of the second source could be joined with either record of the first, so it is joined with none.

    >>> join([["C", "T"], ["C", "G"], ["C"]], [[0], [0], [1]])
    [0, 1, 2]
    """
    records = _Records(alts, sources, [NONE] * len(alts) if extents is None else extents, any_alt, store)
    alone: set[int] = set()
    while True:
        joined = records.joined(alone)
        mismatched = records.mismatched(joined)
        if mismatched <= alone:
            return joined
        alone |= mismatched


@dataclass(frozen=True)
class _Records:
    """Records with the same position and REF; the attributes are the parameters of `join`."""

    alts: Sequence[Sequence[str]]
    sources: Sequence[Sequence[int]]
    extents: Sequence[int]
    any_alt: bool
    store: int | None

    def joined(self, alone: set[int]) -> list[int]:
        """Return the result of `join`, if records `alone` are not joined with others."""
        joined = list(range(len(self.alts)))
        left = [i for i in joined if i not in alone]
        while left:
            chosen = self._choose(left)
            if self.any_alt:
                chosen = self._with_others(chosen, left)
            for i in chosen:
                joined[i] = min(chosen)
            left = [i for i in left if i not in chosen]
        return joined

    def _choose(self, left: Sequence[int]) -> list[int]:
        """Choose the records of the next group: at most one of each source, and symbolic ones of one length only."""
        seen = {i: {alt for alt in self.alts[i] if alt not in UNSEEN} for i in left}
        counts: dict[str, int] = {}
        candidates: list[int] = []
        for i in left:
            if not counts or not seen[i] or not seen[i].isdisjoint(counts):
                candidates.append(i)
                for alt in self.alts[i]:
                    if alt in seen[i]:
                        counts[alt] = counts.get(alt, 0) + len(self.sources[i])
        most = max(counts, key=counts.__getitem__, default=None)  # the first if several are as common
        chosen: list[int] = []
        taken: set[int] = set()
        lengths: set[int] = set()
        for i in sorted(candidates, key=lambda i: not seen[i]):  # records without ALTs last
            mine = {self.extents[i]} if self.store in self.sources[i] else {self.extents[i]} - {NONE}
            is_alike = (most in seen[i] or not seen[i]) and (not mine or lengths in (set(), mine))
            if is_alike and taken.isdisjoint(self.sources[i]):
                chosen.append(i)
                lengths |= mine
                taken.update(self.sources[i])
        return chosen

    def _with_others(self, chosen: Sequence[int], left: Sequence[int]) -> list[int]:
        """Add records to a group that share no ALT with it, unless either has symbolic ALTs."""
        result = list(chosen)
        taken = {source for i in chosen for source in self.sources[i]}
        if any(self.extents[i] != NONE for i in chosen):
            return result
        for i in left:
            if i not in chosen and self.extents[i] == NONE and taken.isdisjoint(self.sources[i]):
                result.append(i)
                taken.update(self.sources[i])
        return result

    def mismatched(self, joined: Sequence[int]) -> set[int]:
        """Return records that must not be joined, since a source would match a record with another group, or none."""
        groups: dict[int, list[int]] = {}
        for i, j in enumerate(joined):
            groups.setdefault(j, []).append(i)
        if len(groups) == 1:
            return set()  # there is no other group
        numbers = {alt: n for n, alt in enumerate(dict.fromkeys(chain.from_iterable(self.alts)), 1)}
        store = _table([sorted({numbers[a] for i in members for a in self.alts[i]}) for members in groups.values()])
        lengths = np.array([max(self.extents[i] for i in members) for members in groups.values()], dtype="i8")
        mismatched: set[int] = set()
        for source in set(chain.from_iterable(self.sources)):
            mine = [i for i, holders in enumerate(self.sources) if source in holders]
            theirs = _table([[numbers[a] for a in self.alts[i]] for i in mine])
            both_lengths = (lengths, np.array([self.extents[i] for i in mine], dtype="i8"))
            matched = match(np.zeros(len(store), "i8"), store, np.zeros(len(mine), "i8"), theirs, extents=both_lengths)
            at = {mine[n]: members for n, members in zip(matched.tolist(), groups.values(), strict=True) if n >= 0}
            for i in mine:
                if at.get(i) != groups[joined[i]]:
                    mismatched.update([i] if len(groups[joined[i]]) > 1 else at.get(i, []))
        return mismatched


def _table(alts: Sequence[Sequence[int]]) -> np.ndarray:
    """Return a table of alleles for `match`: REF is 0, padding is -1."""
    result = np.full((len(alts), 1 + max(map(len, alts), default=0)), -1, dtype="i8")
    result[:, 0] = 0
    for row, numbers in zip(result, alts, strict=True):
        row[1 : 1 + len(numbers)] = numbers
    return result
