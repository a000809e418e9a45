"""Vectors: values that go by the alleles of a variant, of a call or of INFO. NumPy only.

How long one has to be depends on its Number (VCF 4.5, section 1.4.2) and, where that is G, on the ploidy of the call.
The ploidy is that of the genotype. What a vector is padded with says nothing of it: converters pad with missing values
as well as with fill.
"""

import math
from typing import Any

import numpy as np

from vczstore.vcz import INT_FILL

MAX_PLOIDY = 64
"""No genotype has more alleles: what a vector that fits none of these has is left as it is."""


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
        Of each call, variants by calls; looked at for ``G`` alone.

    Examples
    --------
    >>> lengths("G", np.array([2, 3]), np.array([[2, 1], [2, 1]])).tolist()
    [[3, 2], [6, 3]]
    """
    n_alleles = np.broadcast_to(n_alleles.reshape(-1, *[1] * (ploidy.ndim - 1)), ploidy.shape)
    if number != "G":
        return np.asarray(np.maximum(n_alleles - (number == "A"), 0))
    pairs, which = np.unique(np.stack([n_alleles.ravel(), ploidy.ravel()], axis=1), axis=0, return_inverse=True)
    found = np.array([n_genotypes(n, p) if n > 0 else 0 for n, p in pairs.tolist()], dtype="i8")
    return np.asarray(found[which.ravel()].reshape(ploidy.shape))


def ploidies(genotypes: np.ndarray) -> np.ndarray:
    """
    How many alleles genotypes have, missing ones included; 1 where all is fill.

    >>> ploidies(np.array([[0, 1], [1, -2], [-1, -1]])).tolist()
    [2, 1, 2]
    """
    return np.asarray(np.maximum((genotypes != INT_FILL).sum(axis=-1), 1))


def fitted(ploidy: np.ndarray, extents: np.ndarray, n_alleles: np.ndarray) -> np.ndarray:
    """
    The ploidy of vectors with Number=G: that of the genotype, unless they have a value beyond what belongs to it.

    A genotype that is written as ``.``, whatever its ploidy, is one of these.

    Parameters
    ----------
    ploidy
        As the genotypes have it, variants by calls.
    extents
        How many values the vector of each call has, up to the last that is neither missing nor fill.
    n_alleles
        How many alleles each variant has.

    Examples
    --------
    >>> fitted(np.array([[1, 1, 2]]), np.array([[2, 3, 2]]), np.array([2])).tolist()
    [[1, 2, 2]]
    """
    result = ploidy.copy()
    beyond = extents > lengths("G", n_alleles, ploidy)
    rows = np.nonzero(beyond)[0]
    for at, row, extent in zip(np.argwhere(beyond).tolist(), rows.tolist(), extents[beyond].tolist(), strict=True):
        n = int(n_alleles[row])
        more = range(int(ploidy[tuple(at)]), MAX_PLOIDY + 1)
        result[tuple(at)] = next((p for p in more if n_genotypes(n, p) >= extent), MAX_PLOIDY)
    return result


def extents(values: np.ndarray, missing: Any, fill: Any) -> np.ndarray:
    """
    How many values vectors have, up to the last that is neither missing nor fill.

    >>> extents(np.array([[30, 0, 40, -1], [-1, -2, -2, -2]]), -1, -2).tolist()
    [3, 0]
    """
    is_value = ~same(values, missing) & ~same(values, fill)
    last = values.shape[-1] - np.argmax(is_value[..., ::-1], axis=-1)
    return np.where(is_value.any(axis=-1), last, 0)


def same(values: np.ndarray, value: Any) -> np.ndarray:
    """Where values are this one, NaN by its payload."""
    if values.dtype.kind == "f":
        unsigned = np.dtype(f"u{values.dtype.itemsize}")
        return np.asarray(values.view(unsigned) == np.asarray(value, dtype=values.dtype).view(unsigned))
    return np.asarray(values == value)


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
