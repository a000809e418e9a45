"""Extents: the lengths of symbolic alleles, which are part of their identity.

``<DEL>`` alone does not define what is deleted: INFO's END or SVLEN does (VCF 4.5, sections 1.4.5 and 3). Two records
with the same symbolic ALTs are the same variant if their lengths are equal, as in ``bcftools merge`` since version
1.22. ``<*>`` and ``<NON_REF>`` represent unseen alleles, and have no length.

SVLEN has a value for each ALT. Where the symbolic ALTs of a record differ in it, the extent of the record stands for
all of them: it equals that of another record if each ALT has the same length there.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from zarr.types import AnyArray

from vczstore.vcz import arrays
from vczstore.vcz.missing import INT_FILL, INT_MISSING

ABSENT_ALLELES = ("", ".", "0")
"""Values of an absent allele: fill, VCF's, and PLINK's (.bim, columns 5 and 6)."""
UNSEEN = ("<*>", "<NON_REF>")
"""Symbolic ALTs for unseen alleles; records that share only these share no ALT."""
POSITION, LENGTH, END, SVLEN = "variant_position", "variant_length", "variant_END", "variant_SVLEN"
NONE = -1
"""The extent of a record without symbolic ALTs."""
_INSERTED = 2**40
"""Offset of the extents of alleles that span no reference bases, such as ``<INS>``; longer than any real length."""
_SEVERAL = 2**50
"""Offset of the extents of records whose symbolic ALTs have different lengths; digests of these are added."""
_SPANNING = ("<DEL", "<DUP", "<INV", "<CN")
"""Prefixes of the symbolic ALTs that span reference bases."""


def is_symbolic(allele: str) -> bool:
    """
    Whether an ALT is symbolic, so that its length is needed to identify it; unseen alleles do not count.

    >>> [is_symbolic(a) for a in ("<DEL>", "<INS:ME:ALU>", "<NON_REF>", "*", "N[chr2:7[")]
    [True, True, False, False, False]
    """
    return allele.startswith("<") and allele.endswith(">") and allele.upper() not in UNSEEN


@dataclass(frozen=True)
class Extents:
    """The extents of the variants of a VCZ; `fields` are the arrays that determine them, by name, if it has them."""

    fields: Mapping[str, AnyArray]

    @classmethod
    def of(cls, members: Mapping[str, AnyArray]) -> "Extents":
        """Pick the arrays of a VCZ that determine the extents."""
        return cls({name: members[name] for name in (POSITION, LENGTH, END, SVLEN) if name in members})

    def look(self, alleles: np.ndarray, rows: slice, texts: Collection[str] | None = None) -> np.ndarray:
        """
        Compute the extents of some variants.

        If a record's length (``variant_length``, or else derived from END) exceeds its REF, that is the extent;
        otherwise it is derived from SVLEN (VCF 4.5, section 1.6.1), or else it is the length of REF. If several
        symbolic ALTs have SVLENs that differ, the extent is a digest of these. It is `NONE` where no ALT is symbolic.

        The alleles are those of the VCZ in `rows`, variants by alleles, REF first; `texts` are the distinct ALTs, if
        they are known.
        """
        result = np.full(len(alleles), NONE, dtype="i8")
        texts = set(alleles[:, 1:].ravel().tolist()) if texts is None else texts
        symbolic = [text for text in texts if is_symbolic(text)]
        if not symbolic:
            return result
        where = np.flatnonzero(is_any_of(alleles[:, 1:], symbolic).any(axis=1))
        refs = np.array([len(text) for text in alleles[where, 0].tolist()], dtype="i8")
        lengths = np.maximum(refs, self.lengths(rows)[where])
        vectors = self.vectors(rows)[where]
        sizes = np.abs(longest(vectors))
        spans = is_any_of(alleles[where, 1:], [a for a in symbolic if a.upper().startswith(_SPANNING)]).any(axis=1)
        by_size = np.where(spans, 1 + sizes, _INSERTED + sizes)
        result[where] = np.where((lengths > refs) | (sizes == 0), lengths, by_size)
        is_several = is_any_of(alleles[where, 1:], symbolic).sum(axis=1) > 1
        for i in np.flatnonzero(is_several & (sizes != 0)).tolist():
            alts = [text for text in alleles[where[i], 1:].tolist() if text not in ABSENT_ALLELES]
            result[where[i]] = _extent_of_several(alts, by_alt(alts, vectors[i].tolist()), int(result[where[i]]))
        return result

    def lengths(self, rows: slice) -> np.ndarray:
        """The length of each record on the reference, by ``variant_length`` or else END; at most 0 if unknown."""
        if LENGTH in self.fields:
            return self._read(LENGTH, rows, 0)[:, 0]
        ends, positions = self.ends(rows), arrays.read(self.fields[POSITION], (rows,)).astype("i8")
        return np.where(ends >= 0, ends - positions + 1, 0)

    def ends(self, rows: slice) -> np.ndarray:
        """INFO's END of each record; `INT_MISSING`, or another negative number, if it has none."""
        return self._read(END, rows, INT_MISSING)[:, 0]

    def sizes(self, rows: slice) -> np.ndarray:
        """The SVLEN of greatest magnitude of each record, with its sign; 0 if it has none."""
        return longest(self.vectors(rows))

    def vectors(self, rows: slice) -> np.ndarray:
        """The SVLEN of each record, with sentinels: records by values."""
        return self._read(SVLEN, rows, INT_MISSING)

    def describe(self, alleles: np.ndarray, row: int) -> str:
        """
        Format the extent of a record for a message, to follow the alleles; see `describe`.

        `alleles` are those of the record, an array of shape (alleles,).
        """
        rows = slice(row, row + 1)
        extent = int(self.look(alleles[np.newaxis], rows)[0])
        if extent < _SEVERAL:
            return describe(extent)
        sizes = (
            "." if size == INT_MISSING else str(size) for size in self.vectors(rows)[0].tolist() if size != INT_FILL
        )
        return f" of SVLEN {','.join(sizes)[:60]}"

    def _read(self, name: str, rows: slice, missing: int) -> np.ndarray:
        """Read integers as records by values, with at least one column; `missing` if there is no numeric array."""
        n, array = rows.stop - rows.start, self.fields.get(name)
        if array is None or array.dtype.kind not in "iuf" or 0 in array.shape[1:]:
            return np.full((n, 1), missing, dtype="i8")
        values = arrays.read(array, (rows, *(slice(None),) * (array.ndim - 1)))
        return whole_numbers(values, missing).reshape(n, math.prod(array.shape[1:]))


def longest(vectors: np.ndarray) -> np.ndarray:
    """The value of greatest magnitude of each vector of SVLENs; 0 if there is none."""
    values = np.where((vectors == INT_MISSING) | (vectors == INT_FILL), 0, vectors)
    return values[np.arange(len(values)), np.abs(values).argmax(axis=1)]


def one_size(vectors: np.ndarray) -> np.ndarray:
    """The SVLEN of each record where only one can be kept: that of greatest magnitude; `INT_MISSING` if none."""
    sizes = longest(vectors)
    return np.where(sizes == 0, INT_MISSING, sizes)


def by_alt(alts: Sequence[str], vector: Sequence[int]) -> list[int]:
    """
    Return the SVLEN of each ALT, `INT_MISSING` if it has none.

    SVLEN has one value per ALT (VCF 4.5, section 3). Where it has fewer or more, the one of greatest magnitude is that
    of the first symbolic ALT.

    >>> by_alt(["C", "<DEL>", "<DUP>"], [-1, -500, 300, -2])
    [-1, -500, 300]
    >>> by_alt(["C", "<DEL>", "<DUP>"], [-500])
    [-1, -500, -1]
    """
    n = len(alts)
    within, beyond = vector[:n], vector[n:]
    if len(within) == n and INT_FILL not in within and {*beyond} <= {INT_MISSING, INT_FILL}:
        return list(within)
    sizes = [size for size in vector if size not in (INT_MISSING, INT_FILL)]
    first = next((i for i, alt in enumerate(alts) if is_symbolic(alt)), None)
    return [max(sizes, key=abs) if i == first and sizes else INT_MISSING for i in range(n)]


def _extent_of_several(alts: Sequence[str], sizes: Sequence[int], extent: int) -> int:
    """
    Return the extent of a record with several symbolic ALTs: `extent`, unless they have SVLENs that differ.

    The order of the ALTs matters only if one is repeated, as the lengths of the repeats would be confused.

    >>> extent = _extent_of_several(["<DEL>", "<DUP>"], [5, 3], 9)
    >>> [extent == _extent_of_several(["<DUP>", "<DEL>"], sizes, 9) for sizes in ([3, 5], [5, 3])]
    [True, False]
    >>> _extent_of_several(["<DEL>", "<DUP>"], [500, -500], 501), _extent_of_several(["<DEL>", "C"], [5, 3], 9)
    (501, 9)
    """
    own = [(alt.upper(), abs(size)) for alt, size in zip(alts, sizes, strict=True) if is_symbolic(alt)]
    if len({size for _, size in own} - {abs(INT_MISSING)}) < 2:  # a missing one does not differ
        return extent
    if len({alt for alt, _ in own}) == len(own):
        own.sort()
    return _SEVERAL + int.from_bytes(hashlib.blake2b(repr(own).encode(), digest_size=5).digest())


def whole_numbers(values: np.ndarray, missing: int) -> np.ndarray:
    """
    Cast numbers to int64, including floats, which some converters write; NaN and 2**40 or more become `missing`.

    >>> whole_numbers(np.array([600.0, np.nan, 1e30], "f4"), -1).tolist()
    [600, -1, -1]
    """
    if values.dtype.kind == "i":
        return values.astype("i8")
    with np.errstate(invalid="ignore"):  # of NaN
        is_number = np.abs(values) < _INSERTED
    return np.where(is_number, np.rint(np.where(is_number, values, 0)), missing).astype("i8")


def describe(extent: int) -> str:
    """
    Format an extent for a message, to follow the alleles.

    >>> describe(501), describe(NONE)
    (' of length 501', '')
    """
    if extent == NONE:
        return ""
    return f" of length {extent}" if extent < _INSERTED else f" of SVLEN {extent - _INSERTED}"


def is_any_of(alleles: np.ndarray, texts: Iterable[str]) -> np.ndarray:
    """Whether each allele is one of a few texts."""
    result = np.zeros(alleles.shape, dtype=bool)
    for text in texts:
        result |= alleles == text
    return result
