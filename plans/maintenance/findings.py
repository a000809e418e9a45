"""Errors found in a store, and the scans by which tasks find them.

Tasks scan chunks by number, or variants by row, and return what they found to the driver in their task reports. They
continue after an error, since a store may be damaged in more than one place.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from zarr.types import AnyArray

from vczstore.vcz import arrays, encoded_chunks


@dataclass(frozen=True)
class Finding:
    """
    One error in a store.

    Attributes
    ----------
    array
        Name of the array; None if the error concerns the store as a whole.
    chunk
        Key of the chunk relative to the array; None if the error concerns no single chunk.
    what
        Message. It never contains a sample ID.
    """

    array: str | None
    chunk: str | None
    what: str

    def __str__(self) -> str:
        return f"{' '.join(x for x in (self.array or 'the store', self.chunk) if x)}: {self.what}"

    @property
    def order(self) -> tuple[str, list[int], str]:
        """Sort key: by array, then by chunk in numeric order, then by message."""
        return self.array or "", [int(i) for i in re.findall(r"\d+", self.chunk or "")], self.what


@dataclass
class TaskFindings:
    """
    The report of one task.

    Attributes
    ----------
    array
        Name of the array.
    stored, absent
        Number of chunks that are stored, and that are absent and read as the fill value.
    outside
        Number of chunks that are stored outside the grid.
    errors
        The errors found.
    contigs
        Pairs of a row at which another contig begins, and the number of that contig.
    """

    array: str
    stored: int = 0
    absent: int = 0
    outside: int = 0
    errors: list[Finding] = field(default_factory=list)
    contigs: list[tuple[int, int]] = field(default_factory=list)


def finding_at(array: AnyArray, at: Sequence[int], what: str) -> Finding:
    """Return a finding about the values at some indices along the first axes of an array, in their first chunk."""
    chunk = [int(cut.of(i)) for cut, i in zip(arrays.cuts(array), at, strict=False)]
    return Finding(array.path, key_in_array(array, [*chunk, *[0] * (array.ndim - len(chunk))]), what)


def key_in_array(array: AnyArray, at: Iterable[int]) -> str:
    """Return the key of a chunk relative to its array."""
    return encoded_chunks.chunk_key(array, tuple(at)).removeprefix(f"{array.path}/")


class WithErrors:
    """Mixin for dataclasses of results with a field `errors`."""

    errors: Sequence[Finding]

    @property
    def ok(self) -> bool:
        return not self.errors

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(cast("Any", self))}
