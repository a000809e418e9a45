"""Verify: what is wrong with a store, from metadata and sample IDs at once, from chunks in tasks.

Tasks look at chunks by number, or at variants by row, and say what they have seen in the reports that every task sends
to the driver. What they meet they tell, and go on: a store may be damaged in more than one place.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from zarr.abc.buffer import Buffer
from zarr.types import AnyArray

from plans.core.chunk_grid import MIN_TASKS, TASK_BYTES, TASK_CHUNKS
from plans.core.memory import Memory
from plans.variants.sortedness import task_rows
from vczstore.errors import DamagedStoreError, VczstoreError, first_line
from vczstore.stores import parent_metadata
from vczstore.vcz import arrays
from vczstore.vcz.model import (
    REMOVED,
    SAMPLE_ID,
    SAMPLES,
    TEXT,
    VARIANTS,
    Vcz,
    dimensions,
    fill_value,
    has_missing_value,
    has_sentinels,
    listing,
    missing_value,
    same,
    samples_axis,
)

if TYPE_CHECKING:
    from plans.core.cubed_backend import ScanReader

CALL = (VARIANTS, SAMPLES)
FIXED: dict[str, tuple[str, tuple[str, ...]]] = {
    "contig_id": (TEXT, ("contigs",)),
    "contig_length": ("i", ("contigs",)),
    "filter_id": (TEXT, ("filters",)),
    "region_index": ("i", ("region_index_values", "region_index_fields")),
    "sample_id": (TEXT, (SAMPLES,)),
    "variant_allele": (TEXT, (VARIANTS, "alleles")),
    "variant_contig": ("i", (VARIANTS,)),
    "variant_filter": ("b", (VARIANTS, "filters")),
    "variant_id": (TEXT, (VARIANTS,)),
    "variant_id_mask": ("b", (VARIANTS,)),
    "variant_length": ("i", (VARIANTS,)),
    "variant_position": ("i", (VARIANTS,)),
    "variant_quality": ("f", (VARIANTS,)),
    "call_genotype": ("i", (*CALL, "ploidy")),
    "call_genotype_mask": ("b", (*CALL, "ploidy")),
    "call_genotype_phased": ("b", CALL),
}
"""The kinds of dtype, and the dimensions, of the arrays that the VCF Zarr specification 0.4 names."""
DECIDES = {
    SAMPLES: SAMPLE_ID,
    VARIANTS: "variant_position",
    "alleles": "variant_allele",
    "contigs": "contig_id",
    "filters": "filter_id",
    "ploidy": "call_genotype",
}
"""The array whose length counts, where arrays disagree on a dimension; else it is that of most."""
BEGINS: dict[str, tuple[str, ...]] = {"call_": CALL, "variant_": (VARIANTS,)}
"""The first dimensions of other fields, by how their names begin."""
FIELD_KINDS = "biuf" + TEXT
"""What fields may be: VCF has no other types."""
INDEX_COLUMNS = ("chunk", "contig", "start", "end", "max end", "records")
"""Of ``region_index``, one row for each contig in each chunk of variants."""


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
class Seen:
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
class Scan:
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

    look: Callable[[slice], Seen | None]
    n: int
    per_task: int
    mem: int

    def by_cubed(self, memory: Memory, tag: int) -> "list[ScanReader]":
        """As a Cubed array, of what was seen."""
        from plans.core import cubed_backend

        if not self.n:
            return []
        return [cubed_backend.ScanReader(self.look, self.n, self.per_task, tag, self.mem)]


def data_scans(vcz: Vcz) -> list[Scan]:
    """What to look at in the chunks of a store: all of them, and the order of the variants."""
    try:
        removed = np.flatnonzero(vcz.sample_ids == REMOVED)
    except VczstoreError:
        removed = np.empty(0, dtype="i8")  # which chunk it is will be seen
    alleles = vcz.arrays.get("variant_allele")
    n_alleles = alleles.shape[1] if alleles is not None and alleles.ndim == 2 else None
    regular = {
        name: array for name, array in (*vcz.arrays.items(), *vcz.inner.items()) if arrays.has_regular_grid(array)
    }
    scans = [Scan(Outside(tuple(regular.items())).look, len(regular), 1, 0)]
    for name, array in regular.items():
        axis = samples_axis(array)
        of_array = Chunks(
            name,
            array,
            axis if len(removed) and name != SAMPLE_ID else None,
            removed if axis is not None else removed[:0],
            n_alleles if name == "call_genotype" and array.dtype.kind == "i" else None,
        )
        scans.append(of_array.scan())
    return [*scans, *Order.scans(vcz)]


# ---- metadata and sample IDs ----------------------------------------------------------------


def metadata_errors(vcz: Vcz) -> list[Finding]:
    """What metadata and sample IDs tell."""
    inner = [Finding(path, None, why) for path, why in vcz.out_of_reach.items() if path in vcz.inner]
    return [*length_errors(vcz), *_fields(vcz), *inner, *_samples(vcz), *consolidated_errors(vcz)]


def length_errors(vcz: Vcz) -> Iterator[Finding]:
    """Arrays that disagree on the length of a dimension."""
    found: dict[str, dict[str, int]] = {}
    for name, array in vcz.arrays.items():
        for dimension, n in zip(dimensions(array), array.shape, strict=False):
            if dimension is not None:
                found.setdefault(dimension, {})[name] = n
    for dimension, lengths in found.items():
        decides = DECIDES.get(dimension)
        if decides not in lengths:
            (usual, _), *_ = Counter(lengths.values()).most_common(1)
            decides = next(name for name, n in lengths.items() if n == usual)
        way_out = (
            "; if an append was stopped here, run that append again, or vczstore repair" if dimension == SAMPLES else ""
        )
        for name, n in lengths.items():
            if n != lengths[decides]:
                yield Finding(name, None, f"has {n:,} {dimension}, {decides} has {lengths[decides]:,}{way_out}")


def _fields(vcz: Vcz) -> Iterator[Finding]:
    """Arrays that are not as the specification has them."""
    for name, array in vcz.arrays.items():
        names, kind = dimensions(array), array.dtype.kind
        begin = next((dims for prefix, dims in BEGINS.items() if name.startswith(prefix)), ())
        kinds, dims = FIXED.get(name, (FIELD_KINDS if begin else kind, None))
        if kind not in kinds:
            yield Finding(name, None, f"has dtype {array.dtype}, which VCF Zarr does not have for it")
        if name in vcz.out_of_reach:
            yield Finding(name, None, vcz.out_of_reach[name])
        elif len(names) != array.ndim or None in names:
            yield Finding(name, None, "has dimensions without a name")
        elif len(set(names)) < len(names):
            yield Finding(name, None, f"has dimensions {names}, one of them twice")
        elif (dims is not None and names != dims) or names[: len(begin)] != begin:
            wanted = dims or (*begin, "...")
            yield Finding(name, None, f"has dimensions {names}, in VCF Zarr they are {wanted}")
        if not arrays.has_regular_grid(array):
            yield Finding(name, None, "has chunks of different sizes")


def _samples(vcz: Vcz) -> Iterator[Finding]:
    """Sample IDs that are there twice, removed ones aside."""
    try:
        ids = vcz.sample_ids.tolist()
    except VczstoreError as error:
        yield Finding(SAMPLE_ID, None, str(error).partition(f"{SAMPLE_ID} ")[2])
        return
    first: dict[str, int] = {}
    pairs = [(at, i) for i, sample in enumerate(ids) if sample != REMOVED and (at := first.setdefault(sample, i)) != i]
    if pairs:
        shown = listing([f"{i} (as at {at})" for at, i in pairs])
        yield Finding(SAMPLE_ID, None, f"has the same ID more than once, at {shown}; remove the sample and append it")


def consolidated_errors(vcz: Vcz) -> Iterator[Finding]:
    """Consolidated metadata, where there are any, that are not a copy of the arrays' own."""
    way_out = "; if an append was stopped here, run that append again, or vczstore repair"
    for folder in parent_metadata.stale(vcz):
        yield Finding(None, None, f"consolidated metadata of {folder}, the group it lies in, are not its own{way_out}")
    try:
        copy = vcz.consolidated()
    except DamagedStoreError as error:
        yield Finding(None, None, f"{error}{way_out}")
        return
    if copy is None:
        return
    members, copies = ({**one.arrays, **one.inner} for one in (vcz, copy))
    for name in sorted({*members, *copies}):
        mine, theirs = (
            None if array is None else arrays.documents(array.metadata)
            for array in (members.get(name), copies.get(name))
        )
        if mine is None or theirs is None:
            which = "lack it" if theirs is None else "have it, and it does not exist"
            yield Finding(name, None, f"consolidated metadata {which}{way_out}")
        elif mine != theirs:
            yield Finding(name, None, f"consolidated metadata are not its own{way_out}")
    if copy.groups != vcz.groups:
        yield Finding(None, None, f"consolidated metadata have other groups, or other attributes of them{way_out}")
    if copy.attributes != vcz.attributes:
        yield Finding(None, None, f"consolidated metadata have other attributes of the root group{way_out}")


# ---- chunks ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outside:
    """Chunks that lie outside the grids of arrays, each with its name."""

    arrays: tuple[tuple[str, AnyArray], ...]

    def look(self, number: slice) -> Seen | None:
        """Count those of one array."""
        name, array = self.arrays[number.start]
        n = arrays.count_outside(array)
        return Seen(name, outside=n) if n else None


@dataclass(frozen=True)
class Chunks:
    """
    The chunks of one array decode, and hold what they may.

    Attributes
    ----------
    name, array
        The array.
    axis, removed
        Where removed samples are, whose values have to be missing.
    n_alleles
        How many alleles genotypes may name.
    """

    name: str
    array: AnyArray
    axis: int | None
    removed: np.ndarray
    n_alleles: int | None

    def scan(self) -> Scan:
        """Over all chunks by number, about `TASK_BYTES` in a task."""
        n = math.prod(self._grid)
        per_task = max(1, min(TASK_CHUNKS, TASK_BYTES // max(1, self._chunk_bytes), math.ceil(n / MIN_TASKS)))
        # some encoded ones; of one that is decoded the bytes, its values, and what they are compared with
        mem = (self._at_once + 2) * self._chunk_bytes + arrays.decode_mem(self.array, 1)
        return Scan(self.look, n, per_task, mem)

    @property
    def _grid(self) -> tuple[int, ...]:
        return arrays.grid(self.array.shape, arrays.outer_chunks(self.array))

    @property
    def _chunk_bytes(self) -> int:
        return arrays.chunk_bytes(self.array)

    @property
    def _at_once(self) -> int:
        return max(1, min(arrays.READS_AT_ONCE, TASK_BYTES // max(1, self._chunk_bytes)))

    def look(self, numbers: slice) -> Seen:
        """Decode some chunks, one after the other."""
        seen = Seen(self.name)
        decoder = arrays.ChunkDecoder(self.array)
        for start in range(numbers.start, numbers.stop, self._at_once):
            stop = min(numbers.stop, start + self._at_once)
            coords = [tuple(int(i) for i in np.unravel_index(n, self._grid)) for n in range(start, stop)]
            for at, value in self._encoded(coords):
                if value is None:
                    seen.absent += 1
                    what = self._left_in_fill(at)
                else:
                    seen.stored += 1
                    what = value if isinstance(value, str) else self._wrong(decoder, at, value)
                if what is not None:
                    seen.errors.append(Finding(self.name, _key(self.array, at), what))
        return seen

    def _encoded(self, coords: Sequence[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], Buffer | str | None]]:
        """The bytes of chunks, None for those that are absent, and why for those that cannot be read."""
        try:
            yield from zip(coords, arrays.get_encoded(self.array, coords), strict=True)
        except Exception as error:
            if len(coords) == 1:
                yield coords[0], f"cannot be read ({first_line(error)})"
                return
            for at in coords:
                yield from self._encoded([at])

    def _wrong(self, decoder: arrays.ChunkDecoder, at: tuple[int, ...], value: Buffer) -> str | None:
        """What is wrong with a chunk, None if nothing is."""
        said = arrays.frame_length(self.array, value)
        if said is not None and said != len(value):
            return f"is {'cut off' if said > len(value) else 'too long'}: it has {len(value):,} bytes of {said:,}"
        try:
            values = decoder.decode(at, value)
        except Exception as error:
            return f"cannot be decoded ({first_line(error)})"
        if self.n_alleles is not None and values.size and not -2 <= values.min() <= values.max() < self.n_alleles:
            return f"has genotypes from {values.min()} to {values.max()}, there are {self.n_alleles} alleles"
        return self._left(values, at)

    def _left_in_fill(self, at: tuple[int, ...]) -> str | None:
        """Whether removed samples have the fill value of a chunk that is absent, and it is not missing."""
        fill = np.asarray(self.array.fill_value)
        if self.axis is None or self.array.fill_value is None or fill.dtype.kind != self.array.dtype.kind:
            return None
        here = self._removed_in(at)
        if not len(here) or _is_missing(self.name, self.array, fill[np.newaxis]).all():
            return None
        return _told_left(here)

    def _removed_in(self, at: tuple[int, ...]) -> np.ndarray:
        """Which removed samples a chunk has."""
        region = arrays.chunk_region(self.array, at)[self.axis or 0]
        return self.removed[np.searchsorted(self.removed, region.start) : np.searchsorted(self.removed, region.stop)]

    def _left(self, values: np.ndarray, at: tuple[int, ...]) -> str | None:
        """Whether removed samples have values still."""
        if self.axis is None:
            return None
        region, here = arrays.chunk_region(self.array, at)[self.axis], self._removed_in(at)
        if not len(here):
            return None
        theirs = np.moveaxis(values, self.axis, 0)[here - region.start]
        left = ~_is_missing(self.name, self.array, theirs).reshape(len(here), -1).all(axis=1)
        if not left.any():
            return None
        return _told_left(here[left])


LEFT = "has values of removed samples"
"""How what is said of an array begins that `plans.compilers.remove.compile_repair` mends."""


def _told_left(samples: np.ndarray) -> str:
    return f"{LEFT}, at {listing(samples.tolist())}; vczstore repair makes them missing"


def _is_missing(name: str, array: AnyArray, values: np.ndarray) -> np.ndarray:
    """Fill is as good; an ordinary NaN is a value, which readers show as such."""
    if not has_missing_value(array):
        return np.zeros(values.shape, dtype=bool)
    missing = same(values, missing_value(name, array))
    return missing | same(values, fill_value(name, array)) if has_sentinels(array.dtype) else missing


def _key(array: AnyArray, at: Iterable[int]) -> str:
    return arrays.chunk_key(array, tuple(at)).removeprefix(f"{array.path}/")


# ---- variants -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """
    Variants are sorted within contigs, which ``contig_id`` lists, and ``region_index`` says where they are.

    Attributes
    ----------
    contig, position, length, index
        The arrays; the last two where a store has them.
    n_contigs
        How many contigs there are, None if nothing says.
    chunk
        How many variants make a chunk, as the index counts them: arrays may have multiples of them in one.
    """

    contig: AnyArray
    position: AnyArray
    length: AnyArray | None
    index: AnyArray | None
    n_contigs: int | None
    chunk: int

    @classmethod
    def scans(cls, vcz: Vcz) -> list[Scan]:
        """Over all variants, if metadata say that there is anything to compare."""
        found = {name: vcz.arrays.get(f"variant_{name}") for name in ("contig", "position", "length")}
        contig, position, length = (
            a if a is not None and a.shape == (vcz.n_variants,) and a.dtype.kind in "iu" else None
            for a in found.values()
        )
        if contig is None or position is None or not arrays.has_regular_grid(position):
            return []
        index, contigs = vcz.arrays.get("region_index"), vcz.arrays.get("contig_id")
        if index is not None and (index.ndim != 2 or index.shape[1] != len(INDEX_COLUMNS)):
            index = None
        chunk = vcz.chunk_lengths[VARIANTS]
        order = cls(contig, position, length, index, None if contigs is None else contigs.shape[0], chunk)
        rows = task_rows(arrays.outer_chunks(position)[0], chunk)
        per_task = rows * max(1, min(TASK_BYTES // (rows * 24), math.ceil(vcz.n_variants / rows / 4)))
        per_task = min(per_task, vcz.n_variants)
        mem = 100 * per_task  # ten columns of integers
        for array in (contig, position, length):
            if array is not None:
                n_chunks = math.ceil(per_task / arrays.outer_chunks(array)[0]) + 1
                mem += arrays.decode_mem(array, min(n_chunks, arrays.READS_AT_ONCE))
        if index is not None:
            mem += 2 * arrays.decode_mem(index, math.prod(arrays.grid(index.shape, arrays.outer_chunks(index))))
        return [Scan(order.look, vcz.n_variants, per_task, mem)]

    def look(self, rows: slice) -> Seen | None:
        """Compare some rows with each other, with the row before them, and with their part of the index."""
        start = max(0, rows.start - 1)
        try:
            contig, position = (arrays.read(a, (slice(start, rows.stop),)) for a in (self.contig, self.position))
            length = None if self.length is None else arrays.read(self.length, (rows,)).astype("i8")
            index = None if self.index is None else arrays.read(self.index, (slice(None), slice(None))).astype("i8")
        except Exception:
            return None  # the scan of chunks tells
        contig, position = contig.astype("i8"), position.astype("i8")
        seen = Seen("variant_position")
        new = np.flatnonzero(contig[1:] != contig[:-1]) + 1
        # if there are more of these than contigs, some come back already
        limit = len(contig) if self.n_contigs is None else self.n_contigs + 1
        seen.contigs = [(start + int(i), int(contig[i])) for i in ([0] * (rows.start == 0) + new.tolist())[:limit]]
        back = (contig[1:] == contig[:-1]) & (position[1:] < position[:-1])
        if back.any():
            i = int(np.argmax(back)) + 1
            what = f"variant {start + i} at {position[i]} comes after {position[i - 1]} of the same contig"
            seen.errors.append(self._finding(self.position, start + i, what))
        if self.n_contigs is not None and ((contig < 0) | (contig >= self.n_contigs)).any():
            i = int(np.argmax((contig < 0) | (contig >= self.n_contigs)))
            what = f"variant {start + i} is on contig {contig[i]}, there are {self.n_contigs}"
            seen.errors.append(self._finding(self.contig, start + i, what))
        if index is not None:
            skipped = rows.start - start
            seen.errors += self._index(rows, contig[skipped:], position[skipped:], length, index)
        return seen

    @staticmethod
    def _finding(array: AnyArray, row: int, what: str) -> Finding:
        return Finding(array.path, _key(array, (row // arrays.outer_chunks(array)[0],)), what)

    def _index(
        self, rows: slice, contig: np.ndarray, position: np.ndarray, length: np.ndarray | None, index: np.ndarray
    ) -> Iterator[Finding]:
        """Rows of the index that are not what the variants are; those of chunks that do not exist with the first."""
        chunk = self.chunk
        last = math.ceil(self.position.shape[0] / chunk)
        beyond = (index[:, 0] < 0) | (index[:, 0] >= last)
        way_out = "; re-create it with vcf2zarr create-index"
        if rows.start == 0 and beyond.any():
            yield Finding("region_index", None, f"has a row of chunk {index[beyond][0, 0]}, there are {last}{way_out}")
        for i in range(rows.start // chunk, math.ceil(rows.stop / chunk)):
            part = slice(i * chunk - rows.start, min((i + 1) * chunk, rows.stop) - rows.start)
            ends = None if length is None else position[part] + length[part] - 1
            wanted, found = _index_rows(i, contig[part], position[part], ends), index[index[:, 0] == i]
            if ends is None:
                wanted, found = (np.delete(table, INDEX_COLUMNS.index("max end"), axis=1) for table in (wanted, found))
            # an index of 32 bits stops there
            wanted, found = (np.minimum(table, np.iinfo("i4").max) for table in (wanted, found))
            if not np.array_equal(wanted, found):
                yield Finding("region_index", None, f"does not say which variants are in chunk {i}{way_out}")


def _index_rows(i: int, contig: np.ndarray, position: np.ndarray, ends: np.ndarray | None) -> np.ndarray:
    """The rows of the index for one chunk of variants."""
    first = np.flatnonzero(np.append(True, contig[1:] != contig[:-1]))
    after = np.append(first[1:], len(contig))
    longest = position[first] if ends is None else np.maximum.reduceat(ends, first)
    columns = [np.full(len(first), i), contig[first], position[first], position[after - 1], longest, after - first]
    return np.stack(columns, axis=1)


def contig_errors(seen: Iterable[Seen]) -> Iterator[Finding]:
    """Contigs that come back: their variants are not next to one another."""
    begun: set[int] = set()
    for row, contig in sorted(begin for one in seen for begin in one.contigs):
        if contig in begun:
            yield Finding("variant_contig", None, f"contig {contig} comes back at variant {row}; sort the variants")
            return
        begun.add(contig)
