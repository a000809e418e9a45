"""What a VCZ is: its dimensions, its fields, its missing values, and when two of them fit together.

Only metadata and ``sample_id`` are read here; no array with a ``variants`` axis ever is.
"""

import hashlib
import json
import math
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.errors import ContainsArrayError, GroupNotFoundError, NodeTypeValidationError, ZarrUserWarning
from zarr.types import AnyArray

from vczstore.errors import DamagedStoreError, NotAStoreError, SampleError, StorageError, first_line
from vczstore.vcz import arrays, encoded_chunks, metadata, pipeline, rectilinear, zarr_objects
from vczstore.vcz.cuts import Cuts
from vczstore.vcz.missing import TEXT
from vczstore.vcz.sample_ids import close_to, in_other_case, spelt_otherwise

SAMPLES = "samples"

VARIANTS = "variants"

SAMPLE_ID = "sample_id"

BATCH = "sample_batch"
"""The array that says by its number which append each sample came in by; see `plans.schema.provenance`."""

INFO_STATES = "vczstore_info_fields"
"""The attribute of the root group that says which INFO fields are stale; see `plans.variants.stale`."""

REMOVED = ""
"""The ID that takes a removed sample's place: readers of VCZ skip it."""

ID_KINDS = TEXT + "iu"
"""What sample IDs are read from: some converters write integers."""

OF_VARIANTS = ("variant_", "contig_", "filter_", "region_index")
"""How the names of arrays begin that VCF Zarr has for what is no sample's."""

OF_SAMPLES = ("call_", "sample_")
"""How the names of arrays begin whose values are samples', in VCF Zarr and in what is made of it."""

LENGTHS = {
    VARIANTS: ("variant_position", 0),
    "alleles": ("variant_allele", 1),
    "contigs": ("contig_id", 0),
    "filters": ("filter_id", 0),
    "ploidy": ("call_genotype", 2),
}
"""The array, and which of its axes, that says how long a dimension is."""

_OTHER_DIMENSIONS = re.compile(r"alleles|alt_alleles|genotypes|region_index_\w+|local_\w+|(INFO|FORMAT)_.+_dim")
"""Dimensions of VCF Zarr that say by their names that they are no samples; the last as bio2zarr calls them."""

_LIKE_SAMPLES = re.compile(r"(not?_|num_)?samples?(_\w+)?", re.IGNORECASE)
"""What others, or a slip, call the dimension of samples."""

MAX_LENGTH = 10**11
"""No axis is longer: a hundred times what this is made for. To look at all that a broken shape has takes for ever."""

_TABLES = {"contig_id": "contigs", "filter_id": "filters"}
"""The attributes of the root group that had what arrays have since VCF Zarr 0.3."""


def dimensions(array: AnyArray) -> tuple[str | None, ...]:
    """The names of an array's axes, from its attributes (format 2) or its metadata (format 3)."""
    names: Any = array.attrs.get("_ARRAY_DIMENSIONS") if array.metadata.zarr_format == 2 else None
    names = names or getattr(array.metadata, "dimension_names", None)
    return tuple(names) if names else (None,) * array.ndim


def has_grid(array: AnyArray) -> bool:
    """Whether chunks have one shape, as VCF Zarr presumes, or differ in their samples alone."""
    return all(isinstance(w, int) or d == SAMPLES for w, d in zip(arrays.widths(array), dimensions(array), strict=True))


def samples_axis(array: AnyArray) -> int | None:
    """Which axis of an array is the ``samples`` dimension, None if none is. Its name decides, nothing else."""
    names = dimensions(array)
    return names.index(SAMPLES) if SAMPLES in names else None


class Batch(Protocol):
    """A batch of samples, in a store of any kind."""

    @property
    def label(self) -> str:
        """How messages call it."""

    @property
    def identity(self) -> str:
        """Which batch it is, wherever it lies."""

    @property
    def stamp(self) -> str:
        """What tells two states of it apart."""


@dataclass(frozen=True)
class Vcz:
    """
    The metadata of a VCZ at one moment.

    Attributes
    ----------
    label
        How messages call it: a path, a URL, or the kind of store.
    store
        Where its arrays are read.
    arrays
        All arrays of its root group, by name.
    attributes
        The attributes of its root group.
    zarr_format
        2 or 3.
    snapshot
        The Icechunk snapshot it was read from, None on plain Zarr.
    planned_ids
        The sample IDs of a state that a plan will leave, and that cannot be read yet; see `planned`.
    chosen
        The positions of the samples that count, None if all do; see `select`.
    inner
        The arrays of groups within the root group, by path. They are copied, and not edited.
    groups
        The attributes of these groups, by path.
    file
        The file that it was converted from, which says which batch it is; None of any other VCZ.
    """

    label: str
    store: Store
    arrays: Mapping[str, AnyArray]
    attributes: Mapping[str, Any]
    zarr_format: int
    snapshot: str | None = None
    planned_ids: np.ndarray | None = None
    chosen: np.ndarray | None = None
    inner: Mapping[str, AnyArray] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    file: Batch | None = None

    @classmethod
    def read(cls, store: Store, label: str, *, snapshot: str | None = None) -> "Vcz":
        """
        Read the metadata of a VCZ.

        Consolidated metadata are ignored: they go stale when an array is resized.

        Raises
        ------
        NotAStoreError
            If there is no Zarr group, or it is not a VCZ.
        DamagedStoreError
            If metadata make no sense.
        StorageError
            If they cannot be read.
        """
        what = "the root metadata"
        rectilinear.enable()
        try:
            group = zarr.open_group(store, mode="r", use_consolidated=False)
            what = "the metadata of an array"
            members, inner, groups = _members(group)
        except (GroupNotFoundError, NodeTypeValidationError, ContainsArrayError) as error:
            hint = _hint(label, snapshot, _folders_with_ids(store))
            raise NotAStoreError(f"{label}: there is no Zarr group here; {hint}") from error
        except OSError as error:
            raise StorageError(f"{label}: {what} cannot be read ({first_line(error)})") from error
        except zarr_objects.NO_METADATA as error:
            raise DamagedStoreError(f"{label}: {what} cannot be read ({first_line(error)})") from error
        for name, array in (*members.items(), *inner.items()):
            _check_dimensions(label, name, array)
            if max(array.shape, default=0) > MAX_LENGTH:
                raise DamagedStoreError(
                    f"{label}: {name} has the shape {array.shape}, more than {MAX_LENGTH:,} along an axis; its "
                    "metadata are damaged, restore them from a copy"
                )
        root = dict(group.attrs)
        vcz = cls(label, store, members, root, group.metadata.zarr_format, snapshot, inner=inner, groups=groups)
        for name in (SAMPLE_ID, "variant_position"):
            if name not in members:
                found = [path.rpartition("/")[0] for path in inner if path.endswith(f"/{SAMPLE_ID}")]
                hint = _hint(label, snapshot, found)
                raise NotAStoreError(f"{label}: not a VCZ, it has no array {name}; {hint}")
        if samples_axis(members[SAMPLE_ID]) != 0 or members[SAMPLE_ID].ndim != 1:
            raise NotAStoreError(
                f"{label}: not a VCZ, sample_id has dimensions {dimensions(members[SAMPLE_ID])}, not ('samples',)"
            )
        if members[SAMPLE_ID].dtype.kind not in ID_KINDS:
            raise NotAStoreError(
                f"{label}: not a VCZ, sample_id has dtype {members[SAMPLE_ID].dtype}, not strings; write it as strings"
            )
        return vcz

    @property
    def n_samples(self) -> int:
        """The length of ``sample_id``, removed samples included: it alone says how many samples a reader sees."""
        return int(self.arrays[SAMPLE_ID].shape[0]) if self.chosen is None else len(self.chosen)

    @property
    def n_variants(self) -> int:
        """The length of the variants axis."""
        return int(self.arrays["variant_position"].shape[0])

    @cached_property
    def sample_ids(self) -> np.ndarray:
        """The sample IDs, as an object array of ``str``; ``""`` where a sample was removed."""
        if self.planned_ids is not None:
            return self.planned_ids
        return self.table(SAMPLE_ID) if self.chosen is None else self.table(SAMPLE_ID)[self.chosen]

    @property
    def positions(self) -> np.ndarray:
        """Where the samples are along the samples axis of the arrays."""
        return np.arange(self.n_samples) if self.chosen is None else self.chosen

    def made_of(self, file: Batch) -> "Vcz":
        """The same VCZ, as what a file was converted to."""
        return replace(self, file=file)

    def select(self, samples: np.ndarray) -> "Vcz":
        """The same VCZ as a source of some of its samples only; `samples` counts those that it has, in any order."""
        return replace(self, chosen=self.positions[samples])

    def table(self, name: str) -> np.ndarray:
        """
        All of an array of strings without a ``variants`` axis: sample IDs, contigs, filters.

        They are ``str``, for any dtype that they are stored as; see `strings.as_text`.

        Raises
        ------
        DamagedStoreError
            If it cannot be decoded.
        """
        if name not in self.arrays and self.tells(name):
            return np.array([str(text) for text in self.attributes[_TABLES[name]]] + [None], dtype=object)[:-1]
        if name == SAMPLE_ID:
            return self._read_table(name)
        if name not in self._tables:
            self._tables[name] = self._read_table(name)
        return self._tables[name].copy()

    @cached_property
    def _tables(self) -> dict[str, np.ndarray]:
        """Tables that were read already: those of a store are compared with the ones of each source."""
        return {}

    def _read_table(self, name: str) -> np.ndarray:
        try:
            return arrays.read_strings(self.arrays[name])
        except OSError as error:
            raise StorageError(f"{self.label}: {name} cannot be read ({first_line(error)})") from error
        except pipeline.DECODING_ERRORS as error:
            raise DamagedStoreError(f"{self.label}: {name} cannot be decoded ({first_line(error)})") from error
        except Exception as error:  # of a store's own classes
            raise StorageError(f"{self.label}: {name} cannot be read ({first_line(error)})") from error

    def tells(self, name: str) -> bool:
        """Whether there is a table: an array, or an attribute of the root as sgkit and VCF Zarr up to 0.2 have it."""
        return name in self.arrays or isinstance(self.attributes.get(_TABLES.get(name, "")), list)

    @property
    def n_contigs(self) -> int:
        """How many contigs there are, by metadata alone."""
        array = self.arrays.get("contig_id")
        return len(self.table("contig_id")) if array is None else int(array.shape[0])

    @cached_property
    def contig_lengths(self) -> dict[str, int]:
        """The lengths of contigs, of those that have one."""
        if "contig_length" in self.arrays:
            found = arrays.read(self.arrays["contig_length"], (slice(None),)).tolist()
        else:
            found = self.attributes.get("contig_lengths")
        if not isinstance(found, list) or not self.tells("contig_id"):
            return {}
        pairs = zip(self.table("contig_id").tolist(), found, strict=False)
        return {name: int(n) for name, n in pairs if isinstance(n, int | float) and n > 0}

    def consolidated(self) -> "Vcz | None":
        """
        The same as consolidated metadata tell it, which may be stale; None if the store has none.

        Raises
        ------
        DamagedStoreError
            If they make no sense.
        """
        try:
            key = ".zmetadata" if self.zarr_format == 2 else "zarr.json"
            document = zarr_objects.read_json(self.store, key)
            if document is None or (self.zarr_format == 3 and not document.get("consolidated_metadata")):
                return None
            group = zarr.open_group(self.store, mode="r", use_consolidated=True)
            copies = document["consolidated_metadata"]["metadata"] if self.zarr_format == 3 else {}
            members, inner, groups = _members(group, copies)
            attributes = document["metadata"].get(".zattrs", {}) if self.zarr_format == 2 else dict(group.attrs)
        except zarr_objects.NO_METADATA as error:
            raise DamagedStoreError(f"consolidated metadata cannot be read ({first_line(error)})") from error
        return replace(self, arrays=members, attributes=attributes, inner=inner, groups=groups)

    def only(self, names: Iterable[str]) -> "Vcz":
        """Those of some arrays that it has, and nothing else: what is sent to workers."""
        found = {name: self.arrays[name] for name in names if name in self.arrays}
        tables = {
            name: self.attributes[name] for name in (*_TABLES.values(), "contig_lengths") if name in self.attributes
        }
        return replace(self, arrays=found, attributes=tables, planned_ids=None, file=None)

    @cached_property
    def samples_arrays(self) -> dict[str, AnyArray]:
        """The arrays that have a ``samples`` dimension, by name, ``sample_id`` last."""
        found = {n: a for n, a in self.arrays.items() if samples_axis(a) is not None and n != SAMPLE_ID}
        return {**found, SAMPLE_ID: self.arrays[SAMPLE_ID]}

    @cached_property
    def chunk_lengths(self) -> dict[str, int]:
        """
        The chunk length of new arrays along the axes of variants and samples.

        Readers count variants in chunks of the calls (VCF Zarr specification 0.4, "Chunking"), and so does
        ``region_index``; the chunks of other arrays are multiples. Where there are no calls yet it is the greatest
        common divisor, as vcztools has it, and the samples are cut as their IDs are.
        """
        variants, samples = 0, arrays.inner_chunks(self.arrays[SAMPLE_ID])[0]
        regular = {name: a for name, a in self.arrays.items() if VARIANTS in dimensions(a) and has_grid(a)}
        for name, array in sorted(regular.items(), key=lambda item: not item[0].startswith("call_")):
            names, chunks = dimensions(array), arrays.inner_chunks(array)
            variants = math.gcd(variants, chunks[names.index(VARIANTS)])
            if name.startswith("call_") and SAMPLES in names:
                return {VARIANTS: variants, SAMPLES: chunks[names.index(SAMPLES)]}
        return {VARIANTS: variants, SAMPLES: samples}

    @property
    def is_flexible(self) -> bool:
        """Whether chunks of samples may have widths of their own, so that any batch makes columns of its own."""
        return any(map(arrays.is_flexible, self.samples_arrays.values()))

    @property
    def columns(self) -> tuple[int, ...]:
        """How many samples each chunk column of the calls has; of the IDs, where there are no calls."""
        names = sorted(n for n, a in self.samples_arrays.items() if n.startswith("call_") and VARIANTS in dimensions(a))
        array = self.arrays[(names or [SAMPLE_ID])[0]]
        cut = replace(arrays.cuts(array)[samples_axis(array) or 0], length=self.n_samples)
        return cut.lengths if self.chosen is None else Cuts(self.n_samples, cut.widest).lengths

    @cached_property
    def state(self) -> str:
        """What tells this state of the store from any other: its snapshot, or a digest of what an edit changes."""
        return self.snapshot or self._digest(self.samples_arrays, self.attributes.get(INFO_STATES))

    @cached_property
    def identity(self) -> str:
        """Which batch of samples it is, wherever it lies: a digest of its arrays' metadata and of its sample IDs."""
        return self._digest(self.arrays) if self.file is None else self.file.identity

    @cached_property
    def stamp(self) -> str:
        """What tells two states of a batch apart, no chunk read: its snapshot, or its objects' times and sizes."""
        if self.file is not None:
            return self.file.stamp
        return self.snapshot or zarr_objects.fingerprint(self.store)

    def _digest(self, members: Mapping[str, AnyArray], also: Any = None) -> str:
        digest = hashlib.blake2b(b"" if also is None else json.dumps(also).encode(), digest_size=16)
        for name, array in members.items():
            documents = metadata.documents(array.metadata)
            digest.update(json.dumps([name, documents], sort_keys=True).encode())
        ids = self.arrays[SAMPLE_ID]
        chunks = list(np.ndindex(arrays.grid_of(ids)))
        for chunk in encoded_chunks.get_encoded(ids, chunks):
            digest.update(b"absent" if chunk is None else chunk.to_bytes())
        return digest.hexdigest()

    def planned(self, arrays: Mapping[str, AnyArray], sample_ids: np.ndarray) -> "Vcz":
        """The VCZ as an operation will leave it, so that the next one can be planned before anything runs."""
        return replace(self, arrays=dict(sorted({**self.arrays, **arrays}.items())), planned_ids=sample_ids)

    def resized(self, n_samples: int) -> dict[str, AnyArray]:
        """The arrays with a ``samples`` dimension as they will be with another number of samples."""
        result = {}
        for name, array in self.samples_arrays.items():
            axis = samples_axis(array)
            shape = tuple(n_samples if i == axis else n for i, n in enumerate(array.shape))
            result[name] = arrays.planned(array, shape=shape)
        return result

    def extended(self, n_samples: int, columns: Sequence[int]) -> dict[str, AnyArray]:
        """
        The same with more samples: behind the first `n_samples` come new ones.

        Where chunks may have widths of their own the new ones make columns of these widths.
        """
        result, old = {}, self.resized(n_samples)
        for name, array in old.items():
            axis = samples_axis(array) or 0
            if arrays.is_flexible(array):
                result[name] = arrays.with_columns(array, axis, [*arrays.cuts(array)[axis].lengths, *columns])
            else:
                shape = tuple(n + sum(columns) if i == axis else n for i, n in enumerate(array.shape))
                result[name] = arrays.planned(self.samples_arrays[name], shape=shape)
        return result

    @cached_property
    def beyond_calls(self) -> int | None:
        """
        How many samples there are where ``sample_id`` goes on with nothing but empty IDs; None where it does not.

        vczstore 0.1.0 makes a store with as many empty IDs as its first source has samples, and with calls of none; of
        one source it copies ``sample_*`` as well.
        """
        lengths = {a.shape[samples_axis(a) or 0] for a in self.samples_arrays.values()}
        n = min(lengths)
        if lengths != {n, self.n_samples} or n == self.n_samples or (self.sample_ids[n:] != REMOVED).any():
            return None
        return int(n)

    @cached_property
    def out_of_reach(self) -> dict[str, str]:
        """The arrays that hold samples where no operation would find them, by path, and why, for a message."""
        left = "so what it holds of them would stay as it is"
        found = {
            name: f"has {_describe(dimensions(array))}, and seems to hold samples, {left}; name that axis samples, or "
            "delete the array"
            for name, array in self.arrays.items()
            if samples_axis(array) is None and self._seems_of_samples(name, array)
        }
        found |= {
            path: f"holds samples in a group within the store, where nothing is edited, {left}; move it to the root "
            "group, or delete it"
            for path, array in self.inner.items()
            if samples_axis(array) is not None or self._seems_of_samples(path.rpartition("/")[2], array)
        }
        return found

    def _seems_of_samples(self, name: str, array: AnyArray) -> bool:
        """
        Whether an array without a ``samples`` dimension holds samples all the same.

        By its name, by what one of its axes is called, or by the length of an axis of which nothing tells another
        meaning: neither its name, nor that of the array, nor another array that has it beside ``samples``.
        """
        if name.startswith(OF_SAMPLES):
            return True
        names, n = dimensions(array), int(self.arrays[SAMPLE_ID].shape[0])
        if any(_LIKE_SAMPLES.fullmatch(dimension or "") for dimension in names):
            return True
        if not n or name.startswith(OF_VARIANTS) or (n == 1 and VARIANTS not in names):
            return False
        return any(m == n and not self._is_other(d, m) for d, m in zip(names, array.shape, strict=True))

    def _is_other(self, dimension: str | None, length: int) -> bool:
        """Whether a dimension of this length is known to be another than that of the samples."""
        if dimension is None:
            return False
        if dimension in LENGTHS:
            name, axis = LENGTHS[dimension]
            array = self.arrays.get(name)
            return array is None or array.ndim <= axis or array.shape[axis] == length
        beside = any(dimension in dimensions(array) for array in self.samples_arrays.values())
        return beside or bool(_OTHER_DIMENSIONS.fullmatch(dimension))

    def require_whole(self, operation: str, *, interrupted_at: int | None = None, edited: bool = True) -> None:
        """
        Check that the arrays agree on their dimensions.

        Parameters
        ----------
        operation
            For the message.
        interrupted_at
            The number of samples that the operation will reach. Arrays that have it already, from the first
            by name on, are what a stopped run of the same operation left behind, and are taken for whole.
        edited
            Whether samples are edited, or come from here, for which all that holds any has to be within reach.

        Raises
        ------
        DamagedStoreError
            If arrays disagree on the number of samples or variants, have two samples axes, or hold samples and have
            no such axis.
        """
        for path, why in self.out_of_reach.items() if edited else ():
            raise DamagedStoreError(f"{operation}: {self.label}: {path} {why}")
        lengths = {}
        for name, array in self.samples_arrays.items():
            if dimensions(array).count(SAMPLES) > 1:
                raise DamagedStoreError(f"{operation}: {self.label}: {name} has two samples dimensions")
            if not has_grid(array):
                raise DamagedStoreError(
                    f"{operation}: {self.label}: {name} has chunks of different sizes, which are supported "
                    "along the samples alone; rewrite the array with chunks of one size"
                )
            lengths[name] = array.shape[samples_axis(array) or 0]
        n_samples = lengths[SAMPLE_ID]
        way_out = "if an append was interrupted here, run that append again"
        if self.beyond_calls is not None:
            way_out = f"its last IDs are empty, as vczstore 0.1.0 leaves them: vczstore repair {self.label}"
        others = [n for name, n in lengths.items() if name != SAMPLE_ID]
        ahead = [n == interrupted_at for n in others]
        stopped = interrupted_at is not None and ahead == sorted(ahead, reverse=True)
        for name, length in lengths.items():
            if length != n_samples and not (stopped and length == interrupted_at):
                raise DamagedStoreError(
                    f"{operation}: {self.label} is damaged: {name} has {length} samples, sample_id has "
                    f"{n_samples}; {way_out}"
                )
        for name, array in self.arrays.items():
            names = dimensions(array)
            if VARIANTS in names and array.shape[names.index(VARIANTS)] != self.n_variants:
                raise DamagedStoreError(
                    f"{operation}: {self.label} is damaged: {name} has {array.shape[names.index(VARIANTS)]} "
                    f"variants, variant_position has {self.n_variants}; restore it from a copy"
                )

    def require_columns(self, operation: str) -> None:
        """
        Check that new columns can begin where the samples end, where chunks have widths of their own.

        Raises
        ------
        DamagedStoreError
            If the last chunk of an array is wider than what samples there are.
        """
        for name, array in self.resized(self.n_samples).items():
            cut = arrays.cuts(array)[samples_axis(array) or 0]
            if arrays.is_flexible(array) and not cut.is_even:
                raise DamagedStoreError(
                    f"{operation}: the last chunks of {name} of {self.label} are {cut.encoded(cut.n - 1):,} samples "
                    f"wide and hold {cut.lengths[-1]:,}, so that no column can begin there: vczstore regrid "
                    f"{self.label} --sample-grid flexible"
                )


def listing(names: Iterable[object], limit: int = 10) -> str:
    """
    Names for a message: not more than a reader takes in.

    >>> listing(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    texts = [str(name) for name in names]
    shown = [text if len(text) <= 60 else text[:57] + "..." for text in texts[:limit]]
    joined = ", ".join(text if text and text.isprintable() else repr(text) for text in shown)
    return joined if len(texts) <= limit else f"{joined} and {len(texts) - limit} more"


def positions_of(vcz: Vcz, samples: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """
    Where samples are in a VCZ.

    Returns
    -------
    positions : numpy.ndarray of int64
        Increasing, of all samples with these IDs.
    unknown : list of str
        The samples that are not there, in the order given.
    """
    wanted = set(samples) - {REMOVED}
    positions = [i for i, sample in enumerate(vcz.sample_ids.tolist()) if sample in wanted]
    known = {vcz.sample_ids[i] for i in positions}
    return np.array(positions, dtype="i8"), [sample for sample in samples if sample not in known]


def refuse_padded(operation: str, vcz: Vcz, samples: Sequence[str]) -> None:
    """
    Refuse samples beside which a VCZ has others with the same ID, and spaces around it: lists do not keep these.

    Raises
    ------
    SampleError
        If there are any that are not among the samples.
    """
    wanted = set(samples)
    others = [s for s in vcz.sample_ids.tolist() if s not in wanted and s != (bare := s.strip()) and bare in wanted]
    if others:
        raise SampleError(
            f"{operation}: beside the samples that are named {vcz.label} has {len(others):,} with the same ID and "
            "spaces around it; nothing was written, first give those that are named other IDs with vczstore "
            "rename-samples",
            f"they are {listing([ascii(one) for one in others])}",
        )


def refuse_other_spellings(
    operation: str, vcz: Vcz, unknown: Sequence[str], gone: Collection[str], samples: Sequence[str], outcome: str
) -> None:
    """
    A sample is not left as it is because a list has it in quotes, with a column, or in another case.

    Parameters
    ----------
    operation, vcz, unknown
        For which operation which IDs are not there.
    gone
        Those of them that were removed before: another sample may have the same in another case.
    samples
        The samples that may be meant.
    outcome
        What was not done.

    Raises
    ------
    SampleError
        If there are any.
    """
    present = [sample for sample in samples if sample != REMOVED]
    never_there = sorted({*unknown}.difference(gone))
    meant = {*spelt_otherwise(unknown, present), *in_other_case(never_there, present)}
    if meant:
        raise SampleError(
            f"{operation}: {vcz.label} has {len(meant):,} of the sample IDs in another spelling (quotes, columns, "
            f"case, invisible characters, Unicode form); {outcome}, write them as vczstore samples does"
        )


def unknown_samples(operation: str, vcz: Vcz, unknown: Sequence[str], outcome: str) -> SampleError:
    """
    The error for sample IDs that a VCZ does not have; it says which ones may be meant.

    Parameters
    ----------
    operation, vcz, unknown
        For which operation which IDs are not there.
    outcome
        What was not done, and the way out.
    """
    # what looks the same is told apart by its escapes
    near = [ascii(sample)[1:-1] for sample in close_to(unknown, vcz.sample_ids.tolist())]
    return SampleError(
        f"{operation}: {vcz.label} has no sample {listing(unknown, limit=1000)}; {outcome}",
        f"perhaps {listing(near)} is meant" if near else "",
    )


def _members(
    group: zarr.Group, copies: zarr_objects.Document | None = None
) -> tuple[dict[str, AnyArray], dict[str, AnyArray], dict[str, dict[str, Any]]]:
    """
    The arrays of a group, those within its groups, and their attributes; other files that lie there do not count.

    By consolidated metadata if there are `copies`, which are those of format 3.
    """
    consolidated = copies is not None
    plain = None if consolidated else arrays.members_of_folder(group.store, group.metadata.zarr_format)
    if plain is not None:
        return plain, {}, {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ZarrUserWarning)
        top = sorted(group.members())
        below = [
            (f"{name}/{path}", node)
            for name, sub in top
            if isinstance(sub, zarr.Group)
            for path, node in sorted(sub.members(max_depth=None, use_consolidated_for_children=consolidated))
        ]
    for warning in caught:
        # zarr takes a key that a document lacks for a member that the group lacks
        name = re.match("Object at (.*) is not recognized", str(warning.message))
        if name and name[1] not in zarr_objects.names(group.store):
            raise KeyError(f"{name[1]} is missing")
    members, inner = (
        {name: arrays.as_documented(node, copies) for name, node in nodes if isinstance(node, zarr.Array)}
        for nodes in (top, below)
    )
    groups = {name: dict(node.attrs) for name, node in (*top, *below) if isinstance(node, zarr.Group)}
    return members, inner, groups


def _describe(names: tuple[str | None, ...]) -> str:
    return "dimensions without a name" if None in names else f"dimensions {names} and no samples dimension"


def _check_dimensions(label: str, name: str, array: AnyArray) -> None:
    """In format 2 they are an attribute, which zarr takes as it comes."""
    said: Any = array.attrs.get("_ARRAY_DIMENSIONS") if array.metadata.zarr_format == 2 else None
    is_list = isinstance(said, list) and all(isinstance(dimension, str | None) for dimension in said)
    if said is not None and not (is_list and len(said) in (0, array.ndim)):
        raise DamagedStoreError(
            f"{label}: the attribute _ARRAY_DIMENSIONS of {name} is {str(said)[:100]!r}; it takes a name for each of "
            f"its {array.ndim} axes"
        )


def _folders_with_ids(store: Store) -> list[str]:
    """Groups at the top of what is no group itself."""
    found: list[str] = []
    with suppress(Exception):  # the message goes without
        for name in sorted(zarr_objects.names(store))[:20]:
            documents = [f"{name}/{SAMPLE_ID}/{key}" for key in ("zarr.json", ".zarray")]
            if any(document is not None for document in zarr_objects.get_many(store, documents)):
                found.append(name)
    return found


def _hint(label: str, snapshot: str | None, groups: Sequence[str]) -> str:
    """What to do where a VCZ is not at the root, but in a group."""
    if not groups:
        return "make a VCZ with vcf2zarr"
    first = groups[0]
    if label.startswith("<"):
        way_out = f"open {first} as a store of its own"
    elif snapshot is not None:
        way_out = f"name {label.rstrip('/')}#{first}"
    elif label.endswith(".zip"):
        way_out = f"zip what is in {first}, without the folder itself"
    else:
        way_out = f"name {label.rstrip('/')}/{first}"
    return f"a VCZ lies in its group {listing(groups, 3)}: {way_out}"
