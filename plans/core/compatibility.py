"""Whether a source is compatible with a store: metadata are checked directly, data in tasks over ranges of variants."""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
from zarr.types import AnyArray

from plans.core.chunk_grid import TASK_BYTES
from plans.core.memory import Memory
from plans.core.scan_reader import ScanReader
from vczstore.errors import IncompatibleError, SampleError, VczstoreError
from vczstore.vcz import arrays, cf_attributes, encoded_chunks, metadata, strings
from vczstore.vcz.extents import ABSENT_ALLELES, END, LENGTH, SVLEN, Extents
from vczstore.vcz.model import REMOVED, Vcz, listing, samples_axis
from vczstore.vcz.sample_ids import looking_alike

SITE_FIELDS = ("variant_contig", "variant_position", "variant_allele")
"""Arrays that identify a variant."""
COMPARED = (*SITE_FIELDS, LENGTH, END, SVLEN)
"""Arrays that are compared to decide whether variants are the same; not every store has all of them."""
BY_VARIANT = ("variants", "alleles", "alt_alleles", "genotypes")
"""Dimensions whose lengths may differ where variants are matched."""
CONTIGS = "contig_id"
TABLES = (CONTIGS, "filter_id")
"""Lookup tables into which variants have indices."""


# ---- samples --------------------------------------------------------------------------------


def check_incoming(operation: str, sources: Sequence[Vcz]) -> dict[str, str]:
    """
    Check that the samples of all sources are distinct.

    Returns
    -------
    dict
        For each sample the label of its source.

    Raises
    ------
    SampleError
        If a source has no samples, duplicates or removed samples, or shares a sample with another source.
    """
    owner: dict[str, str] = {}
    for source in sources:
        if source.n_samples == 0:
            raise SampleError(f"{operation}: {source.label} has no samples; leave it out")
        seen: set[str] = set()
        for sample in source.sample_ids:
            if sample == REMOVED:
                raise SampleError(
                    f"{operation}: {source.label} has removed samples (empty IDs), which cannot come in; "
                    "give a copy that is made without them"
                )
            if sample in seen:
                raise SampleError(f"{operation}: {source.label} has sample {sample!r} twice; rename one of them")
            seen.add(sample)
        _refuse_duplicates(operation, sorted(seen & owner.keys()), source.label, owner)
        owner.update(dict.fromkeys(source.sample_ids.tolist(), source.label))
    return owner


def check_samples(operation: str, vcz: Vcz, sources: Sequence[Vcz]) -> None:
    """
    Check that the samples of all sources are distinct and not in the store.

    Raises
    ------
    SampleError
        As in `check_incoming`, or if a sample is in the store.
    """
    owner = check_incoming(operation, sources)
    if not owner.keys().isdisjoint(vcz.sample_ids.tolist()):
        present = [sample for sample in vcz.sample_ids if sample in owner]
        label = owner[present[0]]
        of_source = [sample for sample in present if owner[sample] == label]
        if len(of_source) == sum(other == label for other in owner.values()):
            of = f"{label} to be added" if any(s.chosen is not None and s.label == label for s in sources) else label
            n = len(of_source)
            all_of, is_there = ("the one sample", "is") if n == 1 else (f"all {n:,} samples", "are")
            raise SampleError(
                f"{operation}: {all_of} of {of} {is_there} in {vcz.label} already, perhaps since it "
                "was appended before, as by a run that was killed after its commit: then there is nothing left to "
                "do; to replace the values of these samples, use update"
            )
        _refuse_duplicates(operation, of_source, label, dict.fromkeys(present, vcz.label))
    refuse_look_alikes(operation, owner, vcz)


def refuse_look_alikes(operation: str, owner: Mapping[str, str], vcz: Vcz) -> None:
    """
    Refuse sample IDs that look like another one of `owner` or of `vcz`; `owner` has the label of each sample's source.

    Raises
    ------
    SampleError
        If two IDs differ only in surrounding spaces or Unicode normalization.
    """
    for sample, other in looking_alike(owner, itertools.chain(vcz.sample_ids.tolist(), owner)).items():
        raise SampleError(
            f"{operation}: {owner[sample]} has sample {sample!a}, which looks like {other!a} of "
            f"{owner.get(other, vcz.label)}, but for spaces around it or in another Unicode form; write both in the "
            "same, or rename one of them"
        )


def _refuse_duplicates(operation: str, samples: Sequence[str], label: str, owner: Mapping[str, str]) -> None:
    if samples:
        raise SampleError(
            f"{operation}: {len(samples):,} of the samples of {label} {'is' if len(samples) == 1 else 'are'} in "
            f"{owner[samples[0]]} already: {listing(samples)}; remove them there, or leave them out"
        )


# ---- metadata -------------------------------------------------------------------------------


def check_metadata(
    operation: str, store: Vcz, source: Vcz, *, harmonised: bool = False, may_lack: Collection[str] = ()
) -> None:
    """
    Check that the metadata of a source are compatible: version, variants, genome, tables, fields, attributes.

    The number of variants and the tables may differ if the source is going to be `harmonised`. Fields that the source
    `may_lack` become missing values in the store.

    Raises
    ------
    IncompatibleError
        For the first difference.
    """
    versions = [vcz.attributes.get("vcf_zarr_version") for vcz in (store, source)]
    if None not in versions and versions[0] != versions[1]:
        raise IncompatibleError(
            f"{operation}: {source.label} has vcf_zarr_version {listing(versions[1:])}, the store has "
            f"{listing(versions[:1])}; "
            "convert the source with the version of the store"
        )
    if source.n_variants != store.n_variants and not harmonised:
        raise IncompatibleError(
            f"{operation}: {source.label} has {source.n_variants:,} variants, the store has {store.n_variants:,}; "
            f"both need the same variants, in the same order{_or_harmonise(operation)}"
        )
    for name in SITE_FIELDS:
        for vcz in (store, source):
            if name not in vcz.arrays:
                raise IncompatibleError(f"{operation}: {vcz.label} has no {name}, so variants cannot be compared")
    check_builds(operation, [store, source])
    for name in () if harmonised else TABLES:
        _check_table(operation, store, source, name)
    _check_fields(operation, store, source, may_lack)
    for name, theirs in source.samples_arrays.items():
        check_attributes(operation, source.label, name, store.samples_arrays[name], theirs)


def check_builds(operation: str, vczs: Sequence[Vcz]) -> dict[str, int]:
    """
    Check that VCZs share a reference genome: contigs of the same name must have the same length.

    Returns
    -------
    dict
        The length of each contig of known length.

    Raises
    ------
    IncompatibleError
        For the first contig whose lengths differ.
    """
    first_lengths: dict[str, tuple[int, str]] = {}
    for vcz in vczs:
        for contig, length in vcz.contig_lengths.items():
            other, label = first_lengths.setdefault(contig, (length, vcz.label))
            if length != other:
                raise IncompatibleError(
                    f"{operation}: {vcz.label} has {listing([contig])} of contig_length {length}, {label} of {other}; "
                    "all have to be of one reference genome: lift one over to the other's, and convert it again"
                )
    return {contig: length for contig, (length, _) in first_lengths.items()}


def _or_harmonise(operation: str) -> str:
    """Advice for the error message where variants or alleles differ; empty if the operation has no such option."""
    advice = {
        "append": ", or say --harmonise",
        "update": ", or express the source over the store with vczstore normalise first",
    }
    return advice.get(operation, "")


def _check_table(operation: str, store: Vcz, source: Vcz, name: str) -> None:
    lacking = [vcz.label for vcz in (store, source) if not vcz.has_table(name)]
    if len(lacking) == 1 and name == CONTIGS:
        raise IncompatibleError(
            f"{operation}: {lacking[0]} has no {name}, so which contigs its variants are on cannot be compared; make "
            "it with vcf2zarr"
        )
    if lacking:
        return
    ours, theirs = (list(vcz.table(name)) for vcz in (store, source))
    if ours != theirs:
        pairs = zip([*ours, None], [*theirs, None], strict=False)
        i, (a, b) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        raise IncompatibleError(
            f"{operation}: {source.label} has {name} {listing([b])} at {i}, the store has {listing([a])}; "
            f"both need the same {name}, in the same order{_or_harmonise(operation)}"
        )


def _check_fields(operation: str, vcz: Vcz, source: Vcz, may_lack: Collection[str]) -> None:
    ours, theirs = set(vcz.samples_arrays), set(source.samples_arrays)
    lacking, extra = sorted(ours - theirs - set(may_lack)), sorted(theirs - ours)
    messages, has_flags = [], operation in ("append", "update")
    if lacking:
        way_out = f"leave it missing for these samples with {_flags('--drop-field', lacking)}"
        messages.append(
            f"lacks {listing(lacking)}, which the store has; "
            f"{way_out if has_flags else 'make the source with these fields'}"
        )
    if extra:
        adding = f"add it, missing for the samples that are there, with {_flags('--add-field', extra)}, or "
        way_out = f"{adding}leave it out with {_flags('--drop-field', extra)}"
        messages.append(
            f"has {listing(extra)}, which the store lacks; "
            f"{way_out if has_flags else 'make the source without these fields'}"
        )
    if messages:
        raise IncompatibleError(f"{operation}: {source.label} {'; and it '.join(messages)}")


def _flags(flag: str, names: Sequence[str]) -> str:
    """
    The command-line flags for some arrays. Auxiliary arrays, such as masks, are covered by the flag of their field.

    >>> _flags("--drop-field", ["call_PS", "call_PS_mask"])
    '--drop-field PS'
    """
    fields = [name for name in names if not any(name != n and name.startswith(f"{n}_") for n in names)]
    return " ".join(f"{flag} {name.removeprefix('call_')}" for name in fields)


def check_attributes(operation: str, label: str, name: str, ours: AnyArray, theirs: AnyArray) -> None:
    """Raise an `IncompatibleError` if attributes of an array give its values another meaning than in the store."""
    if (difference := cf_attributes.first_difference(theirs, ours)) is not None:
        attribute, of_source, of_store = difference
        other = (
            f", or leave it out with --drop-field {name.removeprefix('call_')}"
            if operation in ("append", "update")
            else ""
        )
        raise IncompatibleError(
            f"{operation}: {name} of {label} has the attribute {attribute} {of_source}, the store has {of_store}; "
            f"store the source's values as the store's attributes say{other}"
        )


def fits(source: np.dtype, store: np.dtype) -> bool:
    """
    Whether the dtype of a store can hold every value of a source's dtype, including missing values.

    >>> fits(np.dtype("i1"), np.dtype("i2")), fits(np.dtype("i2"), np.dtype("i1"))
    (True, False)
    >>> fits(np.dtype("f4"), np.dtype("f8")), fits(np.dtype("f8"), np.dtype("f4"))
    (True, False)
    """
    if source == store:
        return True
    if source.kind in "TU" and store.kind in "TU":
        return store.kind != "U" or (source.kind == "U" and source.itemsize <= store.itemsize)
    if (source.kind in "iu" and store.kind in "iu") or source.kind == store.kind == "f":
        return np.can_cast(source, store, "safe")
    if source.kind in "OS":  # bytes, which are not cast to text: NumPy would turn b"A" into "b'A'"
        return store.kind == "O" or (source.kind == store.kind and source.itemsize <= store.itemsize)
    return False


# ---- data -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SameVariants:
    """
    Check that a source has the store's variants: in every row the same contig, position, alleles and symbolic length.

    Encoded chunks are compared first, and decoded only where they differ. Alleles may be padded with empty
    strings to different widths.
    """

    operation: str
    store: Vcz
    source: Vcz

    def scan(self, rows: slice) -> int | None:
        """The first row in a range that differs; None if none does."""
        first = [self._differs(name, rows) for name in SITE_FIELDS]
        if first == [None] * len(first):
            first = [self._differs_in_length(rows)]
        return min((row for row in first if row is not None), default=None)

    def _differs(self, name: str, rows: slice) -> int | None:
        if self._same_encoded(name, rows):
            return None
        values = [arrays.read_normalised(vcz.arrays[name], (rows,)) for vcz in (self.store, self.source)]
        differs = _unequal_rows(*(map(blank_absent, values) if name == "variant_allele" else values))
        return None if not differs.any() else rows.start + int(np.argmax(differs))

    def _differs_in_length(self, rows: slice) -> int | None:
        """The first row with another length of symbolic alleles, given equal alleles; None if there is none."""
        if all(self._same_encoded(name, rows) for name in (LENGTH, END, SVLEN)):
            return None
        extents = [self._extents(vcz, rows) for vcz in (self.store, self.source)]
        differs = extents[0] != extents[1]
        return None if not differs.any() else rows.start + int(np.argmax(differs))

    @staticmethod
    def _extents(vcz: Vcz, rows: slice) -> np.ndarray:
        alleles = arrays.read_normalised(vcz.arrays["variant_allele"], (rows,))
        return Extents.of(vcz.arrays).look(alleles, rows)

    def _same_encoded(self, name: str, rows: slice) -> bool:
        """Whether the encoded chunks of an array are identical, or neither side has the array."""
        if name not in self.store.arrays or name not in self.source.arrays:
            return name not in self.store.arrays and name not in self.source.arrays
        ours, theirs = self.store.arrays[name], self.source.arrays[name]
        chunk = arrays.outer_chunks(ours)[0]
        if (
            arrays.outer_chunks(ours) != arrays.outer_chunks(theirs)
            or ours.shape != theirs.shape
            or rows.start % chunk
            or not metadata.same_encoding(ours, theirs)
        ):
            return False
        others = arrays.grid_of(ours)[1:]
        cells = [(i, *c) for i in range(rows.start // chunk, math.ceil(rows.stop / chunk)) for c in np.ndindex(others)]
        a, b = (encoded_chunks.get_encoded(array, cells) for array in (ours, theirs))
        return all(_same_bytes(x, y) for x, y in zip(a, b, strict=True))

    def _rows_per_task(self, memory: Memory) -> int:
        """Number of rows per task: whole chunks of one side, the longest that fit into memory."""
        sides = [vcz.arrays[n] for vcz in (self.store, self.source) for n in COMPARED if n in vcz.arrays]
        lengths = sorted({arrays.outer_chunks(a)[0] for a in sides}, reverse=True)
        chunk = next((n for n in lengths if self._scan_mem(n) <= memory.free), lengths[-1])
        row_bytes = sum(64 * math.prod(a.shape[1:]) for a in sides)
        return rows_per_task(memory, self.store.n_variants, chunk, row_bytes, self._scan_mem)

    def _scan_mem(self, rows: int) -> int:
        """Bytes needed to scan `rows` rows, one array after the other."""
        sides = self.store, self.source
        groups = [[vcz.arrays[name] for vcz in sides] for name in SITE_FIELDS]
        names = ("variant_allele", LENGTH, END, SVLEN)
        groups += [[vcz.arrays[name] for name in names if name in vcz.arrays] for vcz in sides]
        return max(
            sum(arrays.decode_mem(a, math.ceil(rows / arrays.outer_chunks(a)[0]) + 1) for a in in_memory)
            for in_memory in groups
        )

    def readers(self, memory: Memory) -> list[ScanReader]:
        rows = self._rows_per_task(memory)
        store, source = (vcz.only(COMPARED) for vcz in (self.store, self.source))
        scan = replace(self, store=store, source=source).scan  # other arrays are not sent to workers
        return [ScanReader(scan, self.store.n_variants, rows, self._scan_mem(rows))]

    def error(self, found: int) -> VczstoreError:
        """An error that shows row `found` on both sides."""
        a, b = self._site(self.store, found), self._site(self.source, found)
        what = self._difference(found) if a.split() == b.split() else ""
        return IncompatibleError(
            f"{self.operation}: variant {found} of {self.source.label} is {b}, in the store it is {a}{what}; "
            f"both need the same variants, in the same order{_or_harmonise(self.operation)}"
        )

    def _difference(self, row: int) -> str:
        """The first difference between two variants that are displayed alike, since long alleles are truncated."""
        for name in SITE_FIELDS:
            sides = [arrays.read_normalised(v.arrays[name], (slice(row, row + 1),)) for v in (self.store, self.source)]
            if name == "variant_allele":
                sides = [blank_absent(side) for side in sides]
            pairs = zip_longest(*(side.ravel().tolist() for side in sides), fillvalue="")
            for i, (a, b) in enumerate(pairs):
                if a != b:
                    ours, theirs = str(a), str(b)
                    at = next((n for n, (x, y) in enumerate(zip(ours, theirs, strict=False)) if x != y), None)
                    at = min(len(ours), len(theirs)) if at is None else at
                    return f" ({name} {i} of the source is {_from(theirs, at)}, of the store {_from(ours, at)})"
        return ""

    @staticmethod
    def _site(vcz: Vcz, row: int) -> str:
        contig, position, alleles = (
            arrays.read_normalised(vcz.arrays[name], (slice(row, row + 1),)).ravel() for name in SITE_FIELDS
        )
        long = Extents.of(vcz.arrays).describe(alleles, row)
        names = vcz.table(CONTIGS) if vcz.has_table(CONTIGS) else np.empty(0)
        number, present = int(contig[0]), [str(a) for a in alleles if a not in ABSENT_ALLELES]
        name = names[number] if 0 <= number < len(names) else number
        return f"{name}:{position[0]} {listing(present[:1])}/{','.join(present[1:])[:60] or '.'}{long}"


def _from(text: str, at: int) -> str:
    """A text; if it is longer than 40 characters, 20 of them from an offset."""
    if len(text) <= 40:
        return repr(text)
    return f"{text[at : at + 20]!r} after {at:,} of its {len(text):,} characters"


def blank_absent(alleles: np.ndarray) -> np.ndarray:
    """Alleles with every spelling of an absent allele (`ABSENT_ALLELES`) replaced by an empty string."""
    return np.where(np.logical_or.reduce([alleles == text for text in ABSENT_ALLELES]), "", alleles)


def count_alleles(alleles: np.ndarray) -> np.ndarray:
    """
    Return the number of alleles of each variant: at least 1, as REF may be absent where all calls have the ALT.

    >>> count_alleles(np.array([["A", "C", ""], ["A", ".", ""], ["", "C", "G"], ["", "", ""]])).tolist()
    [2, 1, 3, 1]
    """
    numbers = np.where(blank_absent(alleles) != "", np.arange(1, alleles.shape[1] + 1), 1)
    return np.asarray(numbers.max(axis=1, initial=1))


def _same_bytes(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return len(a) == len(b) and bool(np.array_equal(a.as_numpy_array(), b.as_numpy_array()))


def _unequal_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Boolean mask of the rows that differ; strings may be padded to different widths."""
    if a.ndim == 2 and a.shape[1] != b.shape[1]:
        width = max(a.shape[1], b.shape[1])
        a, b = (np.pad(x.astype(object), ((0, 0), (0, width - x.shape[1])), constant_values="") for x in (a, b))
    return np.asarray((a != b).reshape(len(a), -1).any(axis=1))


@dataclass(frozen=True)
class FitsDtype:
    """Check that the values of the chosen samples of a source's array fit the store's narrower dtype."""

    operation: str
    label: str
    name: str
    array: AnyArray
    dtype: np.dtype
    chosen: np.ndarray | None = None

    def scan(self, rows: slice) -> tuple[int, Any] | None:
        """The first row in a range with a value that does not fit, and the value as text; None if all fit."""
        unfit = []
        for rest in itertools.product(*(cut.spans() for cut in arrays.cuts(self.array)[1:])):
            values = arrays.read(self.array, (rows, *rest))
            if (bad := self._unfit(values) & self._is_chosen([rows, *rest])).any():
                first = np.unravel_index(int(np.argmax(bad)), bad.shape)
                unfit.append((rows.start + int(first[0]), str(values[first])))
        return min(unfit, default=None)

    def _is_chosen(self, region: Sequence[slice]) -> np.ndarray | bool:
        """Boolean mask of the chosen samples, which broadcasts to a region; True if all are chosen."""
        if self.chosen is None:
            return True
        axis = samples_axis(self.array) or 0
        is_chosen = np.isin(np.arange(region[axis].start, region[axis].stop), self.chosen)
        return is_chosen.reshape([-1 if i == axis else 1 for i in range(len(region))])

    def _unfit(self, values: np.ndarray) -> np.ndarray:
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            return (values < limits.min) | (values > limits.max)
        return np.strings.str_len(values if values.dtype.kind in "TUS" else values.astype("T")) > strings.width(
            self.dtype
        )

    def _scan_mem(self, rows: int) -> int:
        """Bytes needed to scan `rows` rows, one chunk column after the other."""
        return 2 * arrays.decode_mem(self.array, math.ceil(rows / arrays.outer_chunks(self.array)[0]))

    def readers(self, memory: Memory) -> list[ScanReader]:
        chunk, row_bytes = arrays.outer_chunks(self.array)[0], 8 * math.prod(self.array.shape[1:])
        rows = rows_per_task(memory, self.array.shape[0], chunk, row_bytes, self._scan_mem)
        return [ScanReader(self.scan, self.array.shape[0], rows, self._scan_mem(rows))]

    def error(self, found: tuple[int, Any]) -> VczstoreError:
        """An error that names the row and the value."""
        return IncompatibleError(
            f"{self.operation}: {self.name} of {self.label} has dtype {self.array.dtype} and the value {found[1]} in "
            f"row {found[0]}, which the store's {self.dtype} cannot hold; re-create either with the other's dtype"
        )


def rows_per_task(memory: Memory, n_rows: int, chunk: int, row_bytes: int, scan_mem: Callable[[int], int]) -> int:
    """
    Rows per task, a multiple of `chunk`: `TASK_BYTES` or a quarter of all, or `Memory.task_bytes`, if they fit.

    `scan_mem` returns the bytes that a task needs for a number of rows.
    """
    n_chunks, chunk_bytes = math.ceil(n_rows / chunk), max(1, chunk * row_bytes)
    n_balanced = min(TASK_BYTES // chunk_bytes, math.ceil(n_chunks / 4))
    count = min(n_chunks, max(n_balanced, memory.task_bytes // chunk_bytes))
    while count > 1 and (needed := scan_mem(count * chunk)) > memory.free:
        count = count * memory.free // needed
    return chunk * max(1, count)


def data_checks(operation: str, vcz: Vcz, source: Vcz, *, harmonised: bool = False) -> list[SameVariants | FitsDtype]:
    """Checks of the data of a store and a source whose metadata are compatible."""
    checks: list[SameVariants | FitsDtype] = [] if harmonised else [SameVariants(operation, vcz, source)]
    for name, theirs in source.samples_arrays.items():
        ours = vcz.samples_arrays.get(name)
        if ours is not None and not fits(theirs.dtype, ours.dtype):
            checks.append(FitsDtype(operation, source.label, name, theirs, ours.dtype, source.chosen))
    return checks
