"""Vectors: values that go by the alleles of a variant, of a call or of INFO. NumPy only.

How long one has to be depends on its Number (VCF 4.5, section 1.4.2) and, where that is G, on the ploidy of the call.
The ploidy is that of the genotype. What a vector is padded with says nothing of it: converters pad with missing values
as well as with fill.
"""

import math
from typing import Any

import numpy as np

from vczstore.vcz.missing import same

MAX_PLOIDY = 64
"""No genotype has more alleles."""


def n_genotypes(n_alleles: int, ploidy: int) -> int:
    """
    How many genotypes of a ploidy there are (VCF 4.5, section 1.6.2, ``GL``).

    >>> n_genotypes(3, 2), n_genotypes(3, 1)
    (6, 3)
    """
    return math.comb(n_alleles + ploidy - 1, ploidy)


def lengths(number: str, n_alleles: np.ndarray, ploidy: np.ndarray) -> np.ndarray:
    """
    How many values vectors have.

    Parameters
    ----------
    number
        ``R``, ``A`` or ``G``.
    n_alleles
        How many alleles each variant has, the reference included.
    ploidy
        Of each call, variants by calls, below 1 where nothing tells it: no values; looked at for ``G`` alone.

    Examples
    --------
    >>> lengths("G", np.array([2, 3]), np.array([[2, 1], [2, 1]])).tolist()
    [[3, 2], [6, 3]]
    """
    n_alleles = np.broadcast_to(n_alleles.reshape(-1, *[1] * (ploidy.ndim - 1)), ploidy.shape)
    if number != "G":
        return np.asarray(np.maximum(n_alleles - (number == "A"), 0))
    pairs, which = np.unique(np.stack([n_alleles.ravel(), ploidy.ravel()], axis=1), axis=0, return_inverse=True)
    found = np.array([n_genotypes(n, p) if n > 0 and p > 0 else 0 for n, p in pairs.tolist()], dtype="i8")
    return np.asarray(found[which.ravel()].reshape(ploidy.shape))


def lacking(values: np.ndarray, wanted: np.ndarray, missing: Any, fill: Any) -> np.ndarray:
    """
    Where vectors end before their length: what has to be missing there, and is fill.

    A vector that is missing as a whole, ``.`` in VCF, lacks nothing; neither does one that is fill as a whole.

    Parameters
    ----------
    values
        Vectors along the last axis.
    wanted
        How long each has to be.
    missing, fill
        What stands for either.

    Examples
    --------
    >>> lacking(np.array([[5, 6, -2, -2], [-1, -2, -2, -2]]), np.array([3, 3]), -1, -2).astype(int).tolist()
    [[0, 0, 1, 0], [0, 0, 0, 0]]
    """
    is_fill = same(values, fill)
    n_values = (~is_fill).sum(axis=-1)
    is_dot = (n_values == 0) | ((n_values == 1) & same(values[..., 0], missing))
    is_within = np.arange(values.shape[-1]) < wanted[..., np.newaxis]
    return np.asarray(is_fill & is_within & ~is_dot[..., np.newaxis])


def beyond(values: np.ndarray, wanted: np.ndarray, missing: Any, fill: Any) -> np.ndarray:
    """
    Where vectors that have all their values are padded with missing ones; as `lacking`.

    >>> beyond(np.array([[5, 6, -1, -1], [5, 6, 7, -1]]), np.array([2, 2]), -1, -2).astype(int).tolist()
    [[0, 0, 1, 1], [0, 0, 0, 0]]
    """
    is_beyond = np.arange(values.shape[-1]) >= wanted[..., np.newaxis]
    is_missing = same(values, missing)
    is_padding = (~is_beyond | is_missing | same(values, fill)).all(axis=-1) & (wanted > 0)
    return np.asarray(is_beyond & is_missing & is_padding[..., np.newaxis])


def trimmed(values: np.ndarray, missing: Any, fill: Any) -> np.ndarray:
    """
    Vectors that end with their last value, without the values that pad them.

    >>> trimmed(np.array([[9, -1, 5, -1], [-1, -2, -2, -2]]), -1, -2).tolist()
    [[9, -1, 5, -2], [-2, -2, -2, -2]]
    """
    is_value = ~same(values, missing) & ~same(values, fill)
    is_within = np.logical_or.accumulate(is_value[..., ::-1], axis=-1)[..., ::-1]
    result = values.copy()
    result[~is_within] = fill
    return result
