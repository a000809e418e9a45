"""INFO fields from genotypes: the counts of a block of calls, and the fields computed from them. NumPy only.

Fields are defined as by ``bcftools +fill-tags``, with equal values up to ploidy two. bcftools counts genotypes of a
higher ploidy as if they were diploid, and refuses to test Hardy-Weinberg equilibrium there. Here every allele counts,
and the tests use the diploid genotypes. A genotype that lacks an allele counts for F_MISSING whether it is phased or
not; bcftools 1.16 overlooks a phased one that is missing.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

SLAB = 2**17
"""Number of called alleles that are counted together (at least one variant): they fit a processor's cache."""
SLAB_BYTES_PER_ALLELE = 32
"""Memory for counting, for each allele of a slab, in addition to the genotypes."""

TIE = 1e-9
"""Probabilities with a smaller relative difference are equal: it may be a rounding error."""


class Kind(IntEnum):
    """Classes of genotypes. Half-missing ones with one distinct allele are hemizygous, like haploid ones."""

    HEMI = 0
    HOM = 1
    HET = 2
    HOM_POLYPLOID = 3
    HET_POLYPLOID = 4


@dataclass(frozen=True)
class Counts:
    """
    The genotype counts of some variants.

    Attributes
    ----------
    alleles
        variants x kinds of genotype (`Kind`) x alleles: how often an allele is called in such genotypes.
    called
        Number of samples with at least one called allele.
    incomplete
        Number of samples with a missing allele, or none called.
    n_alleles
        Number of alleles of each variant, including REF.
    n_samples
        Number of samples, excluding removed ones.
    """

    alleles: np.ndarray
    called: np.ndarray
    incomplete: np.ndarray
    n_alleles: np.ndarray
    n_samples: int

    @classmethod
    def zeros(cls, n_alleles: np.ndarray, width: int, n_samples: int) -> "Counts":
        """Return zero counts, for at most `width` alleles per variant."""
        n = len(n_alleles)
        alleles = np.zeros((n, len(Kind), width), dtype="i8")
        return cls(alleles, np.zeros(n, dtype="i8"), np.zeros(n, dtype="i8"), n_alleles, n_samples)

    def add(self, genotypes: np.ndarray) -> None:
        """Count genotypes, variants x samples x ploidy. The caller has to check that allele indices are valid."""
        n_variants, n_samples, ploidy = genotypes.shape
        step = max(1, SLAB // max(1, n_samples * ploidy))
        for first in range(0, n_variants, step):
            self._add_slab(slice(first, min(n_variants, first + step)), genotypes[first : first + step])

    def _add_slab(self, rows: slice, genotypes: np.ndarray) -> None:
        genotypes = np.ascontiguousarray(np.moveaxis(genotypes, 2, 0))  # numpy is slow along short last axes
        is_called = genotypes >= 0
        n_called = is_called.sum(axis=0, dtype="i1")
        is_partial = (genotypes == -1).any(axis=0)
        highest = genotypes.max(axis=0)
        is_hom = ~(is_called & (genotypes != highest)).any(axis=0)
        kinds = np.full(highest.shape, Kind.HET, dtype="i1")
        kinds[n_called > 2] = Kind.HET_POLYPLOID
        kinds[is_partial] = Kind.HET_POLYPLOID
        kinds -= is_hom
        kinds[is_hom & (is_partial | (n_called == 1))] = Kind.HEMI
        alleles = self.alleles[rows]
        n, n_kinds, width = alleles.shape
        first = (np.arange(n)[:, np.newaxis] * n_kinds + kinds) * width
        for called, of_sample in zip(is_called, genotypes, strict=True):
            cells = (first + of_sample)[called]
            alleles += np.bincount(cells, minlength=alleles.size).reshape(alleles.shape)
        self.called[rows] += np.count_nonzero(n_called, axis=1)
        self.incomplete[rows] += np.count_nonzero(is_partial | (n_called == 0), axis=1)

    def part(self, rows: slice) -> "Counts":
        """Return a view of the counts of some variants: adding to it adds to these counts."""
        alleles, called, incomplete = self.alleles[rows], self.called[rows], self.incomplete[rows]
        return Counts(alleles, called, incomplete, self.n_alleles[rows], self.n_samples)

    @property
    def of_allele(self) -> np.ndarray:
        """Number of times that each allele is called: variants x alleles."""
        return self.alleles.sum(axis=1)

    def of(self, *kinds: Kind) -> np.ndarray:
        """Return how often each ALT is called in genotypes of some kinds: variants x ALTs."""
        return self.alleles[:, list(kinds), 1:].sum(axis=1)


def numbers_per_variant(width: int) -> int:
    """Return how many numbers `Counts` has for a variant, with at most `width` alleles per variant."""
    return len(Kind) * width + 3


# ---- fields ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Values:
    """The values of a field, variants x values, and which of them are missing."""

    values: np.ndarray
    missing: np.ndarray | bool = False


@dataclass(frozen=True)
class InfoField:
    """An INFO field of integers (kind ``i``) or floats (``f``), with one value, or one for each ALT (`per_allele`)."""

    kind: str
    per_allele: bool
    description: str
    compute: Callable[[Counts], Values]


def _share(part: np.ndarray, whole: np.ndarray) -> Values:
    whole = np.broadcast_to(whole, part.shape)
    return Values(part / np.maximum(whole, 1), whole == 0)


def _total(counts: Counts) -> np.ndarray:
    return counts.of_allele.sum(axis=1, keepdims=True)


def _second_most_common(counts: Counts) -> Values:
    ordered = np.sort(counts.of_allele, axis=1)
    second = ordered[:, -2:-1] if ordered.shape[1] > 1 else np.zeros_like(ordered)
    share = _share(second, _total(counts))
    return Values(share.values, share.missing | (counts.n_alleles < 2)[:, np.newaxis])


def _tested(which: int) -> Callable[[Counts], Values]:
    def compute(counts: Counts) -> Values:
        """Test each ALT, counting all other alleles as REF, without genotypes that are homozygous for another ALT."""
        hom, het = counts.alleles[:, Kind.HOM], counts.alleles[:, Kind.HET]
        alt = hom[:, 1:] + het[:, 1:]
        ref = hom[:, :1] + het.sum(axis=1, keepdims=True) - het[:, 1:]
        triples, where = np.unique(
            np.stack([ref, alt, het[:, 1:]], axis=-1).reshape(-1, 3), axis=0, return_inverse=True
        )
        p_values = np.array([exact_test(*triple)[which] for triple in triples.tolist()], dtype="f8")
        return Values(p_values[where.ravel()].reshape(alt.shape))

    return compute


FIELDS: Mapping[str, InfoField] = {
    "AC": InfoField("i", True, "Allele count in genotypes", lambda c: Values(c.of(*Kind))),
    "AN": InfoField("i", False, "Total number of alleles in called genotypes", lambda c: Values(_total(c))),
    "AF": InfoField("f", True, "Allele frequency", lambda c: _share(c.of(*Kind), _total(c))),
    "NS": InfoField("i", False, "Number of samples with data", lambda c: Values(c.called[:, np.newaxis])),
    "AC_Het": InfoField(
        "i",
        True,
        "Allele counts in heterozygous genotypes",
        lambda c: Values(c.of(Kind.HET, Kind.HET_POLYPLOID)),
    ),
    "AC_Hom": InfoField(
        "i",
        True,
        "Allele counts in homozygous genotypes",
        lambda c: Values(c.of(Kind.HOM, Kind.HOM_POLYPLOID)),
    ),
    "AC_Hemi": InfoField("i", True, "Allele counts in hemizygous genotypes", lambda c: Values(c.of(Kind.HEMI))),
    "MAF": InfoField("f", False, "Frequency of the second most common allele", _second_most_common),
    "F_MISSING": InfoField(
        "f",
        False,
        "Fraction of missing genotypes",
        lambda c: _share(c.incomplete[:, np.newaxis], np.array(c.n_samples)),
    ),
    "HWE": InfoField("f", True, "HWE test (PMID:15789306); 1=good, 0=bad", _tested(0)),
    "ExcHet": InfoField("f", True, "Test excess heterozygosity; 1=good, 0=bad", _tested(1)),
}
"""INFO fields by name, in the order in which they are listed for users."""


def exact_test(ref: int, alt: int, het: int) -> tuple[float, float]:
    """
    Test for Hardy-Weinberg equilibrium, as Wigginton, Cutler and Abecasis do (PMID:15789306).

    Parameters
    ----------
    ref, alt
        Number of occurrences of either allele.
    het
        Number of heterozygous genotypes.

    Returns
    -------
    equilibrium, excess : float
        The probability, given the number of alleles, of a number of heterozygous genotypes that is no more probable
        than `het`; and of `het` or more of them.

    Examples
    --------
    Of four genotypes two are heterozygous, the most probable number.

    >>> [round(p, 6) for p in exact_test(4, 4, 2)]
    [1.0, 0.914286]
    """
    if not ref or not alt:
        return 1.0, 1.0
    rare, n = min(ref, alt), (ref + alt) // 2
    middle = rare * (ref + alt - rare) // (ref + alt)
    middle += (rare - middle) % 2
    # further from the middle, which is near the most probable number, probabilities are negligible
    steps = 1000 + 20 * math.isqrt(n)
    up = np.arange(middle, min(rare, middle + 2 * steps), 2, dtype="f8")
    down = np.arange(middle, max(1, middle - 2 * steps), -2, dtype="f8")
    of_up = np.cumprod((rare - up) * (2 * n - rare - up) / ((up + 2) * (up + 1)))
    of_down = np.cumprod(down * (down - 1) / ((rare - down + 2) * (2 * n - rare - down + 2)))
    numbers = np.concatenate([down[::-1] - 2, [middle], up + 2])
    probabilities = np.concatenate([of_down[::-1], [1.0], of_up])
    probabilities /= probabilities.sum()
    observed = probabilities[numbers == het].sum()  # 0 where it is too far from the middle
    equilibrium = probabilities[probabilities <= observed * (1 + TIE)].sum()
    return min(1.0, float(equilibrium)), min(1.0, float(probabilities[numbers >= het].sum()))
