"""Vectors: values per allele, ALT or genotype, of a call or of INFO. NumPy only.

The length of a vector depends on its Number (VCF 4.5, section 1.4.2) and, if that is G, on the ploidy of the call's
genotype. The padding of a vector does not reveal the ploidy: converters pad with missing values as well as with fill.
"""

import math
from typing import Any

import numpy as np

from vczstore.vcz.missing import same

MAX_PLOIDY = 64
"""The largest ploidy that is tried where it is inferred from a number of genotypes."""


def n_genotypes(n_alleles: int, ploidy: int) -> int:
    """
    Return the number of genotypes of a ploidy (VCF 4.5, section 1.6.2, ``GL``).

    >>> n_genotypes(3, 2), n_genotypes(3, 1)
    (6, 3)
    """
    return math.comb(n_alleles + ploidy - 1, ploidy)


def lengths(number: str, n_alleles: np.ndarray, ploidy: np.ndarray) -> np.ndarray:
    """
    Return the expected lengths of vectors, in the shape of `ploidy`.

    Parameters
    ----------
    number
        ``R``, ``A`` or ``G``.
    n_alleles
        Number of alleles of each variant, including REF.
    ploidy
        Ploidy of each call, variants by calls. Its values matter only for ``G``; below 1 (unknown), the length is 0.

    Examples
    --------
    >>> lengths("G", np.array([2, 3]), np.array([[2, 1], [2, 1]])).tolist()
    [[3, 2], [6, 3]]
    """
    n_alleles = np.broadcast_to(n_alleles.reshape(-1, *[1] * (ploidy.ndim - 1)), ploidy.shape)
    if number != "G":
        return np.asarray(np.maximum(n_alleles - (number == "A"), 0))
    pairs, which = np.unique(np.stack([n_alleles.ravel(), ploidy.ravel()], axis=1), axis=0, return_inverse=True)
    counts = np.array([n_genotypes(n, p) if n > 0 and p > 0 else 0 for n, p in pairs.tolist()], dtype="i8")
    return np.asarray(counts[which.ravel()].reshape(ploidy.shape))


def lacking(values: np.ndarray, expected: np.ndarray, missing: Any, fill: Any) -> np.ndarray:
    """
    Return where vectors end too early: fill within their length, which should be missing.

    A vector that is missing as a whole, ``.`` in VCF, lacks nothing; neither does one that is only fill.

    Parameters
    ----------
    values
        Vectors along the last axis.
    expected
        Length that each should have.
    missing, fill
        The sentinels.

    Examples
    --------
    >>> lacking(np.array([[5, 6, -2, -2], [-1, -2, -2, -2]]), np.array([3, 3]), -1, -2).astype(int).tolist()
    [[0, 0, 1, 0], [0, 0, 0, 0]]
    """
    is_fill = same(values, fill)
    n_values = (~is_fill).sum(axis=-1)
    is_dot = (n_values == 0) | ((n_values == 1) & same(values[..., 0], missing))
    is_within = np.arange(values.shape[-1]) < expected[..., np.newaxis]
    return np.asarray(is_fill & is_within & ~is_dot[..., np.newaxis])


def beyond(values: np.ndarray, expected: np.ndarray, missing: Any, fill: Any) -> np.ndarray:
    """
    Return where vectors are padded with missing values beyond their length; parameters as in `lacking`.

    >>> beyond(np.array([[5, 6, -1, -1], [5, 6, 7, -1]]), np.array([2, 2]), -1, -2).astype(int).tolist()
    [[0, 0, 1, 1], [0, 0, 0, 0]]
    """
    is_beyond = np.arange(values.shape[-1]) >= expected[..., np.newaxis]
    is_missing = same(values, missing)
    is_padding = (~is_beyond | is_missing | same(values, fill)).all(axis=-1) & (expected > 0)
    return np.asarray(is_beyond & is_missing & is_padding[..., np.newaxis])


def trimmed(values: np.ndarray, missing: Any, fill: Any) -> np.ndarray:
    """
    Replace everything after the last value of each vector by fill.

    >>> trimmed(np.array([[9, -1, 5, -1], [-1, -2, -2, -2]]), -1, -2).tolist()
    [[9, -1, 5, -2], [-2, -2, -2, -2]]
    """
    is_value = ~same(values, missing) & ~same(values, fill)
    is_within = np.logical_or.accumulate(is_value[..., ::-1], axis=-1)[..., ::-1]
    result = values.copy()
    result[~is_within] = fill
    return result
