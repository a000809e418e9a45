"""Extents: how long symbolic alleles are, which is part of what they are.

``<DEL>`` alone does not say what is deleted: INFO's END or SVLEN does (VCF 4.5, sections 1.4.5 and 3). Two records with
the same symbolic ALTs are the same variant if they are equally long, as ``bcftools merge`` has it since version 1.22.
``<*>`` and ``<NON_REF>`` stand for alleles that were not seen, and have no length.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from zarr.types import AnyArray

from vczstore.vcz import arrays
from vczstore.vcz.missing import INT_FILL, INT_MISSING

UNSEEN = ("<*>", "<NON_REF>")
"""These stand for alleles that were not seen; to share one is to share nothing."""
POSITION, LENGTH, END, SVLEN = "variant_position", "variant_length", "variant_END", "variant_SVLEN"
NONE = -1
"""The extent of a record without symbolic ALTs."""
_INSERTED = 2**40
"""Added to the extent of what takes up nothing of the reference, such as ``<INS>``: nothing of it is so long."""
_SPANNING = ("<DEL", "<DUP", "<INV", "<CN")


def is_symbolic(allele: str) -> bool:
    """
    Whether an ALT needs a length to say what it is.

    >>> [is_symbolic(a) for a in ("<DEL>", "<INS:ME:ALU>", "<NON_REF>", "*", "N[chr2:7[")]
    [True, True, False, False, False]
    """
    return allele.startswith("<") and allele.endswith(">") and allele.upper() not in UNSEEN


@dataclass(frozen=True)
class Extents:
    """
    The extents of the variants of a VCZ.

    Attributes
    ----------
    fields
        The arrays that tell them, by name, of those that there are.
    """

    fields: Mapping[str, AnyArray]

    @classmethod
    def of(cls, members: Mapping[str, AnyArray]) -> "Extents":
        """From the arrays of a VCZ."""
        return cls({name: members[name] for name in (POSITION, LENGTH, END, SVLEN) if name in members})

    def look(self, alleles: np.ndarray, rows: slice, texts: Collection[str] | None = None) -> np.ndarray:
        """
        Look at some variants.

        Where a record has a length beyond its REF, that is the extent, from ``variant_length`` or else END; else what
        SVLEN says, of which END follows (VCF 4.5, section 1.6.1); else it is the length of REF.

        Parameters
        ----------
        alleles
            Of these variants, REF first.
        rows
            Which they are.
        texts
            All their ALTs, if that is known.

        Returns
        -------
        numpy.ndarray of int64
            `NONE` where no ALT is symbolic.
        """
        result = np.full(len(alleles), NONE, dtype="i8")
        texts = set(alleles[:, 1:].ravel().tolist()) if texts is None else texts
        symbolic = [text for text in texts if is_symbolic(text)]
        if not symbolic:
            return result
        where = np.flatnonzero(_are(alleles[:, 1:], symbolic).any(axis=1))
        refs = np.array([len(text) for text in alleles[where, 0].tolist()], dtype="i8")
        lengths = np.maximum(refs, self.lengths(rows)[where])
        sizes = np.abs(self.sizes(rows)[where])
        spans = _are(alleles[where, 1:], [a for a in symbolic if a.upper().startswith(_SPANNING)]).any(axis=1)
        by_size = np.where(spans, 1 + sizes, _INSERTED + sizes)
        result[where] = np.where((lengths > refs) | (sizes == 0), lengths, by_size)
        return result

    def lengths(self, rows: slice) -> np.ndarray:
        """What records take up of the reference; 0 where nothing says it."""
        if LENGTH in self.fields:
            return self._read(LENGTH, rows, 0)[:, 0]
        ends, positions = self.ends(rows), arrays.read(self.fields[POSITION], (rows,)).astype("i8")
        return np.where(ends >= 0, ends - positions + 1, 0)

    def ends(self, rows: slice) -> np.ndarray:
        """INFO's END of each record; missing where there is none."""
        return self._read(END, rows, INT_MISSING)[:, 0]

    def sizes(self, rows: slice) -> np.ndarray:
        """The SVLEN of each record that is the greatest regardless of its sign; 0 where there is none."""
        values = self._read(SVLEN, rows, 0)
        values[(values == INT_MISSING) | (values == INT_FILL)] = 0
        return values[np.arange(len(values)), np.abs(values).argmax(axis=1)]

    def _read(self, name: str, rows: slice, missing: int) -> np.ndarray:
        """The numbers of some records, records by values; there is at least one, `missing` where none says anything."""
        n, array = rows.stop - rows.start, self.fields.get(name)
        if array is None or array.dtype.kind not in "iuf" or 0 in array.shape[1:]:
            return np.full((n, 1), missing, dtype="i8")
        values = arrays.read(array, (rows, *(slice(None),) * (array.ndim - 1)))
        return whole_numbers(values, missing).reshape(n, math.prod(array.shape[1:]))


def whole_numbers(values: np.ndarray, missing: int) -> np.ndarray:
    """
    Numbers as int64, of floats too, which some converters write; NaN, and what is beyond any genome, is `missing`.

    >>> whole_numbers(np.array([600.0, np.nan, 1e30], "f4"), -1).tolist()
    [600, -1, -1]
    """
    if values.dtype.kind == "i":
        return values.astype("i8")
    with np.errstate(invalid="ignore"):  # of NaN
        is_number = np.abs(values) < _INSERTED
    return np.where(is_number, np.rint(np.where(is_number, values, 0)), missing).astype("i8")


def may_match(ours: np.ndarray, theirs: np.ndarray, shared: np.ndarray, is_ref_alone: np.ndarray) -> np.ndarray:
    """
    Which pairs of records may be the same variant, as far as their lengths tell.

    A symbolic ALT never comes to a record that has none: the length that says what it is would be lost. To a record
    that has one others come only if they share an ALT, or are of REF alone.

    Parameters
    ----------
    ours, theirs
        The extents of the record of the store, and of the source.
    shared
        How many ALTs they share.
    is_ref_alone
        Whether the record of the source has no ALT.
    """
    return np.asarray((ours == theirs) | ((theirs == NONE) & ((shared > 0) | is_ref_alone)))


def describe(extent: int) -> str:
    """
    An extent for people, after the alleles.

    >>> describe(501), describe(NONE)
    (' of length 501', '')
    """
    if extent == NONE:
        return ""
    return f" of length {extent}" if extent < _INSERTED else f" of SVLEN {extent - _INSERTED}"


def _are(alleles: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    result = np.zeros(alleles.shape, dtype=bool)
    for text in texts:
        result |= alleles == text
    return result
