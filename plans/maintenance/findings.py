"""What is found wrong with a store, and how tasks look for it.

Tasks look at chunks by number, or at variants by row, and say what they have seen in the reports that every task sends
to the driver. What they meet they tell, and go on: a store may be damaged in more than one place.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, cast

from zarr.types import AnyArray

from plans.core.memory import Memory
from vczstore.vcz import encoded_chunks

if TYPE_CHECKING:
    from plans.core.scan_tasks import ScanReader


@dataclass(frozen=True)
class Finding:
    """
    One thing that is wrong.

    Attributes
    ----------
    array
        Where, None if with the store as a whole.
    chunk
        The chunk's key within the array; None if with no chunk alone.
    what
        In words. Never a sample ID.
    """

    array: str | None
    chunk: str | None
    what: str

    def __str__(self) -> str:
        return f"{' '.join(x for x in (self.array or 'the store', self.chunk) if x)}: {self.what}"

    @property
    def order(self) -> tuple[str, list[int], str]:
        """By array, then by chunk, numbers as numbers."""
        return self.array or "", [int(i) for i in re.findall(r"\d+", self.chunk or "")], self.what


@dataclass
class TaskFindings:
    """
    What one task has seen.

    Attributes
    ----------
    array
        Of which array.
    stored, absent
        How many chunks are stored, and how many are not, which stand for the fill value.
    outside
        How many chunks are stored outside the grid.
    errors
        What is wrong.
    contigs
        The variants, by row, at which another contig begins, and that contig.
    """

    array: str
    stored: int = 0
    absent: int = 0
    outside: int = 0
    errors: list[Finding] = field(default_factory=list)
    contigs: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class FindingScan:
    """
    Something to look at in tasks.

    Attributes
    ----------
    look
        Looks at a range.
    n, per_task
        How much there is, and how much of it one task takes.
    mem
        What a task needs for it, in bytes.
    """

    look: Callable[[slice], TaskFindings | None]
    n: int
    per_task: int
    mem: int

    def by_cubed(self, memory: Memory, tag: int) -> "list[ScanReader]":
        """As a Cubed array, of what was seen."""
        from plans.core import scan_tasks

        if not self.n:
            return []
        return [scan_tasks.ScanReader(self.look, self.n, self.per_task, tag, self.mem)]


def key_in_array(array: AnyArray, at: Iterable[int]) -> str:
    """The key of a chunk below its array."""
    return encoded_chunks.chunk_key(array, tuple(at)).removeprefix(f"{array.path}/")


class WithErrors:
    """A dataclass of what was found in a store, errors among it."""

    errors: Sequence[Finding]

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.errors

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = {one.name: getattr(self, one.name) for one in fields(cast("Any", self))}
        return {"ok": self.ok, **values, "errors": [asdict(finding) for finding in self.errors]}
