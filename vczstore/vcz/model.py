"""The model of a VCZ: its arrays, dimensions and sample IDs, and checks that they are consistent.

Only metadata and arrays without a ``variants`` axis, such as ``sample_id``, are read here.
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
"""The array with the number of the append that added each sample; see `plans.schema.provenance`."""

INFO_STATES = "vczstore_info_fields"
"""The attribute of the root group that records which INFO fields are stale; see `plans.variants.stale`."""

REMOVED = ""
"""The ID that replaces a removed sample's: readers of VCZ skip it."""

ID_KINDS = TEXT + "iu"
"""The dtype kinds accepted for sample IDs: some converters write integers."""

OF_VARIANTS = ("variant_", "contig_", "filter_", "region_index")
"""Name prefixes of the VCF Zarr arrays that hold no values of samples."""

OF_SAMPLES = ("call_", "sample_")
"""Name prefixes of arrays with a value per sample, in VCF Zarr and in formats derived from it."""

LENGTHS = {
    VARIANTS: ("variant_position", 0),
    "alleles": ("variant_allele", 1),
    "contigs": ("contig_id", 0),
    "filters": ("filter_id", 0),
    "ploidy": ("call_genotype", 2),
}
"""By dimension name: the array and the axis of it that define the length of the dimension."""

_OTHER_DIMENSIONS = re.compile(r"alleles|alt_alleles|genotypes|region_index_\w+|local_\w+|(INFO|FORMAT)_.+_dim")
"""Names of further VCF Zarr dimensions, none of them samples; the last alternative matches bio2zarr's names."""

_LIKE_SAMPLES = re.compile(r"(not?_|num_)?samples?(_\w+)?", re.IGNORECASE)
"""Misspellings of the samples dimension, and names that other programs give it."""

MAX_LENGTH = 10**11
"""Maximum axis length, 100 times the design limit; a longer axis is taken for corrupt metadata."""

_TABLES = {"contig_id": "contigs", "filter_id": "filters"}
"""Root attributes that hold the tables in VCF Zarr up to 0.2, by the name of the array that replaced each in 0.3."""


def dimensions(array: AnyArray) -> tuple[str | None, ...]:
    """The name of each axis, None if unnamed, from the array's attributes (format 2) or metadata (format 3)."""
    names: Any = array.attrs.get("_ARRAY_DIMENSIONS") if array.metadata.zarr_format == 2 else None
    names = names or getattr(array.metadata, "dimension_names", None)
    return tuple(names) if names else (None,) * array.ndim


def has_grid(array: AnyArray) -> bool:
    """Whether the chunks of an array have one width along every axis other than samples."""
    return all(isinstance(w, int) or d == SAMPLES for w, d in zip(arrays.widths(array), dimensions(array), strict=True))


def samples_axis(array: AnyArray) -> int | None:
    """Index of the first axis named ``samples``; None if there is none."""
    names = dimensions(array)
    return names.index(SAMPLES) if SAMPLES in names else None


def with_samples(array: AnyArray, n_samples: int) -> AnyArray:
    """Return the planned array with another number of samples."""
    axis = samples_axis(array)
    return arrays.planned(array, shape=tuple(n_samples if i == axis else n for i, n in enumerate(array.shape)))


class Batch(Protocol):
    """A batch of samples: a VCZ, or a VCF file that may not have been converted yet."""

    @property
    def label(self) -> str:
        """Name of the batch in messages."""

    @property
    def identity(self) -> str:
        """Digest that identifies the batch, independent of its location."""

    @property
    def stamp(self) -> str:
        """Identifier of the batch's current state: it changes with any change to the data."""


@dataclass(frozen=True)
class Vcz:
    """
    The metadata of a VCZ at one moment.

    Attributes
    ----------
    label
        Name in messages: a path, a URL, or the kind of store.
    store
        The Zarr store that the arrays are read from.
    arrays
        All arrays of the root group, by name.
    attributes
        The attributes of the root group.
    zarr_format
        2 or 3.
    snapshot
        ID of the Icechunk snapshot; None on plain Zarr, and in a session with uncommitted changes.
    planned_ids
        The sample IDs of a planned state, an object array of ``str``; None if they are read from `store`.
    chosen
        The positions of the selected samples; None if all are selected. See `select`.
    inner
        The arrays of groups within the root group, by path. They are copied, but not edited.
    groups
        The attributes of these groups, by path.
    file
        The VCF file that was converted to this VCZ, and whose identity counts; None if it was not converted.
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
            If metadata cannot be parsed, or an axis is longer than `MAX_LENGTH`.
        StorageError
            If metadata cannot be read.
        """
        group: zarr.Group | None = None
        rectilinear.enable()
        try:
            group = zarr.open_group(store, mode="r", use_consolidated=False)
            members, inner, groups = _members(group)
        except (GroupNotFoundError, NodeTypeValidationError, ContainsArrayError) as error:
            hint = _hint(label, snapshot, _folders_with_ids(store))
            raise NotAStoreError(f"{label}: there is no Zarr group here; {hint}") from error
        except OSError as error:
            what = "the root metadata" if group is None else "the metadata of an array"
            raise StorageError(f"{label}: {what} cannot be read ({first_line(error)})") from error
        except zarr_objects.NO_METADATA as error:
            what, way_out = "the root metadata", "restore them from a copy"
            if group is not None:
                path = None
                with suppress(Exception):  # then the message names no array
                    path = _unreadable(group)
                what = f"the metadata of {path or 'an array'}"
                way_out += ", or rewrite the array with a dtype and codecs that zarr-python has"
            raise DamagedStoreError(f"{label}: {what} cannot be read ({first_line(error)}); {way_out}") from error
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
                nested = [path.rpartition("/")[0] for path in inner if path.endswith(f"/{SAMPLE_ID}")]
                hint = _hint(label, snapshot, nested)
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
        """The number of selected samples, removed ones included; without a selection, the length of ``sample_id``."""
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
        """The positions of the selected samples along the samples axis of the arrays, an int64 array."""
        return np.arange(self.n_samples) if self.chosen is None else self.chosen

    def converted_from(self, file: Batch) -> "Vcz":
        """Return the same VCZ with the identity and stamp of the VCF file that it was converted from."""
        return replace(self, file=file)

    def select(self, samples: np.ndarray) -> "Vcz":
        """Return the VCZ restricted to some of its selected samples, given by their indices in `sample_ids`."""
        return replace(self, chosen=self.positions[samples])

    def table(self, name: str) -> np.ndarray:
        """
        Read a whole array of strings without a ``variants`` axis: sample IDs, contigs or filters.

        The result is an object array of ``str`` for any stored dtype; see `strings.as_text`. Contigs and filters fall
        back to the root attributes of VCF Zarr up to 0.2, and are cached.

        Raises
        ------
        DamagedStoreError
            If the array cannot be decoded.
        StorageError
            If it cannot be read.
        """
        if name not in self.arrays and self.has_table(name):
            return np.array([str(text) for text in self.attributes[_TABLES[name]]] + [None], dtype=object)[:-1]
        if name == SAMPLE_ID:
            return self._read_table(name)
        if name not in self._tables:
            self._tables[name] = self._read_table(name)
        return self._tables[name].copy()

    @cached_property
    def _tables(self) -> dict[str, np.ndarray]:
        """Cache of `table`, since the tables of a store are compared with those of every source."""
        return {}

    def _read_table(self, name: str) -> np.ndarray:
        try:
            return arrays.read_strings(self.arrays[name])
        except pipeline.DECODING_ERRORS as error:
            raise DamagedStoreError(f"{self.label}: {name} cannot be decoded ({first_line(error)})") from error
        except Exception as error:  # storage backends raise classes of their own
            raise StorageError(f"{self.label}: {name} cannot be read ({first_line(error)})") from error

    def has_table(self, name: str) -> bool:
        """Whether `table` can read it from an array, or a root attribute as in sgkit and VCF Zarr up to 0.2."""
        return name in self.arrays or isinstance(self.attributes.get(_TABLES.get(name, "")), list)

    @property
    def n_contigs(self) -> int:
        """The number of contigs, without reading chunks."""
        array = self.arrays.get("contig_id")
        return len(self.table("contig_id")) if array is None else int(array.shape[0])

    @cached_property
    def contig_lengths(self) -> dict[str, int]:
        """The lengths, by contig ID, of the contigs whose length is known and positive."""
        if "contig_length" in self.arrays:
            lengths = arrays.read(self.arrays["contig_length"], (slice(None),)).tolist()
        else:
            lengths = self.attributes.get("contig_lengths")
        if not isinstance(lengths, list) or not self.has_table("contig_id"):
            return {}
        pairs = zip(self.table("contig_id").tolist(), lengths, strict=False)
        return {name: int(n) for name, n in pairs if isinstance(n, int | float) and n > 0}

    def consolidated(self) -> "Vcz | None":
        """
        Read the same VCZ from consolidated metadata, which may be stale; None if the store has none.

        Raises
        ------
        DamagedStoreError
            If they are invalid.
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
        """Return the VCZ with only these arrays, as far as they exist: a small pickle to send to workers."""
        kept = {name: self.arrays[name] for name in names if name in self.arrays}
        tables = {
            name: self.attributes[name] for name in (*_TABLES.values(), "contig_lengths") if name in self.attributes
        }
        return replace(self, arrays=kept, attributes=tables, planned_ids=None, file=None)

    @cached_property
    def samples_arrays(self) -> dict[str, AnyArray]:
        """The arrays that have a ``samples`` dimension, by name, ``sample_id`` last."""
        others = {n: a for n, a in self.arrays.items() if samples_axis(a) is not None and n != SAMPLE_ID}
        return {**others, SAMPLE_ID: self.arrays[SAMPLE_ID]}

    @cached_property
    def chunk_lengths(self) -> dict[str, int]:
        """
        The chunk lengths of new arrays along the variants and samples axes: those of the ``call_*`` arrays.

        Readers and ``region_index`` number the variant chunks of these arrays (VCF Zarr specification 0.4, "Chunking").
        If there are no calls yet, the variants' length is the greatest common divisor of all chunk lengths, as in
        vcztools, and the samples' length that of ``sample_id``. Chunks of sharded arrays are the inner ones.
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
        """Whether chunks may differ in width along the samples axis, so that each batch gets its own chunk columns."""
        return any(map(arrays.is_flexible, self.samples_arrays.values()))

    @property
    def columns(self) -> tuple[int, ...]:
        """
        The number of samples in each chunk column of the calls, or of ``sample_id`` if there are no calls.

        If samples are selected, they are divided into columns of the greatest width.
        """
        names = sorted(n for n, a in self.samples_arrays.items() if n.startswith("call_") and VARIANTS in dimensions(a))
        array = self.arrays[(names or [SAMPLE_ID])[0]]
        cut = replace(arrays.cuts(array)[samples_axis(array) or 0], length=self.n_samples)
        return cut.lengths if self.chosen is None else Cuts(self.n_samples, cut.widest).lengths

    @cached_property
    def state(self) -> str:
        """Identifier of this state of the store: its snapshot, or a digest of metadata and IDs that edits change."""
        return self.snapshot or self._digest(self.samples_arrays, self.attributes.get(INFO_STATES))

    @cached_property
    def identity(self) -> str:
        """Location-independent identifier: that of `file`, or a digest of `arrays`' metadata and the sample IDs."""
        return self._digest(self.arrays) if self.file is None else self.file.identity

    @cached_property
    def stamp(self) -> str:
        """Identifier of the state: that of `file`, the snapshot, or a digest of the objects' times and sizes."""
        if self.file is not None:
            return self.file.stamp
        return self.snapshot or zarr_objects.fingerprint(self.store)

    def _digest(self, members: Mapping[str, AnyArray], extra: Any = None) -> str:
        digest = hashlib.blake2b(b"" if extra is None else json.dumps(extra).encode(), digest_size=16)
        for name, array in members.items():
            documents = metadata.documents(array.metadata)
            digest.update(json.dumps([name, documents], sort_keys=True).encode())
        ids = self.arrays[SAMPLE_ID]
        chunks = list(np.ndindex(arrays.grid_of(ids)))
        for chunk in encoded_chunks.get_encoded(ids, chunks):
            digest.update(b"absent" if chunk is None else chunk.to_bytes())
        return digest.hexdigest()

    def planned(self, arrays: Mapping[str, AnyArray], sample_ids: np.ndarray) -> "Vcz":
        """Return the VCZ as a planned operation will leave it, so that the next one can be planned before it runs."""
        return replace(self, arrays=dict(sorted({**self.arrays, **arrays}.items())), planned_ids=sample_ids)

    def resized(self, n_samples: int) -> dict[str, AnyArray]:
        """Return the arrays with a ``samples`` dimension as planned after a resize to `n_samples`; no I/O."""
        return {name: with_samples(array, n_samples) for name, array in self.samples_arrays.items()}

    def extended(self, n_samples: int, columns: Sequence[int]) -> dict[str, AnyArray]:
        """
        Return the arrays with a ``samples`` dimension as planned after an append to the first `n_samples` samples.

        `columns` are the numbers of appended samples: in arrays with a flexible grid, the widths of new chunk columns.
        """
        result = self.resized(n_samples + sum(columns))
        for name, array in self.resized(n_samples).items():
            if arrays.is_flexible(array):
                axis = samples_axis(array) or 0
                result[name] = arrays.with_columns(array, axis, [*arrays.cuts(array)[axis].lengths, *columns])
        return result

    @cached_property
    def beyond_calls(self) -> int | None:
        """
        The number of samples in the calls if ``sample_id`` is longer, and all further IDs are empty; else None.

        vczstore 0.1.0 creates such stores: with as many empty IDs as the first source has samples, and no calls. From a
        single source, it copies ``sample_*`` as well.
        """
        lengths = {a.shape[samples_axis(a) or 0] for a in self.samples_arrays.values()}
        n = min(lengths)
        if lengths != {n, self.n_samples} or n == self.n_samples or (self.sample_ids[n:] != REMOVED).any():
            return None
        return int(n)

    @cached_property
    def out_of_reach(self) -> dict[str, str]:
        """Why operations would not edit an array although it seems to hold values of samples, for messages, by path."""
        effect = "so their values would be left unedited"
        reasons = {
            name: f"has {_describe(dimensions(array))}, and seems to hold samples, {effect}; name that axis samples, "
            "or delete the array"
            for name, array in self.arrays.items()
            if samples_axis(array) is None and self._seems_of_samples(name, array)
        }
        reasons |= {
            path: f"holds samples in a group within the store, where nothing is edited, {effect}; move it to the root "
            "group, or delete it"
            for path, array in self.inner.items()
            if samples_axis(array) is not None or self._seems_of_samples(path.rpartition("/")[2], array)
        }
        return reasons

    def _seems_of_samples(self, name: str, array: AnyArray) -> bool:
        """
        Whether an array without a ``samples`` dimension seems to hold values of samples nevertheless.

        It does if its name or an axis name suggests it, or if an axis is as long as ``sample_id`` and neither the array
        is one of `OF_VARIANTS` nor the dimension another one, as judged by `_is_other`. The length counts only if there
        is a ``variants`` axis or an unnamed one: without either, the number of samples may reach it by chance.
        """
        if name.startswith(OF_SAMPLES):
            return True
        names, n = dimensions(array), int(self.arrays[SAMPLE_ID].shape[0])
        if any(_LIKE_SAMPLES.fullmatch(dimension or "") for dimension in names):
            return True
        if not n or name.startswith(OF_VARIANTS):
            return False
        if VARIANTS not in names and (n == 1 or None not in names):
            return False
        return any(m == n and not self._is_other(d, m) for d, m in zip(names, array.shape, strict=True))

    def _is_other(self, dimension: str | None, length: int) -> bool:
        """Whether a dimension is one of VCF Zarr other than samples, or another array has it alongside ``samples``."""
        if dimension is None:
            return False
        if dimension in LENGTHS:
            name, axis = LENGTHS[dimension]
            array = self.arrays.get(name)
            return array is None or array.ndim <= axis or array.shape[axis] == length
        is_with_samples = any(dimension in dimensions(array) for array in self.samples_arrays.values())
        return is_with_samples or bool(_OTHER_DIMENSIONS.fullmatch(dimension))

    def require_whole(self, operation: str, *, interrupted_at: int | None = None, edited: bool = True) -> None:
        """
        Check that the arrays agree on the lengths of their dimensions.

        Parameters
        ----------
        operation
            For the message.
        interrupted_at
            The number of samples after the operation. Arrays that already have this length are accepted if they come
            first in order of name: an interrupted run of the same operation resized them. None accepts none.
        edited
            Whether samples are edited, or copied from here, which requires that `out_of_reach` is empty.

        Raises
        ------
        DamagedStoreError
            If arrays disagree on the number of samples or variants, have two samples axes, or have chunks of different
            sizes along another axis; and with `edited`, if `out_of_reach` is not empty.
        """
        for path, why in self.out_of_reach.items() if edited else ():
            raise DamagedStoreError(f"{operation}: {self.label}: {path} {why}")
        lengths = {}
        for name, array in self.samples_arrays.items():
            if dimensions(array).count(SAMPLES) > 1:
                raise DamagedStoreError(
                    f"{operation}: {self.label}: {name} has two samples dimensions, and arrays are edited along one; "
                    "move it out of the store, or delete it"
                )
            if not has_grid(array):
                raise DamagedStoreError(
                    f"{operation}: {self.label}: {name} has chunks of different sizes, which are supported "
                    "along the samples alone; rewrite the array with chunks of one size"
                )
            lengths[name] = array.shape[samples_axis(array) or 0]
        n_samples = lengths[SAMPLE_ID]
        remedy = "if an append was interrupted here, run that append again"
        if self.beyond_calls is not None:
            remedy = f"its last IDs are empty, as vczstore 0.1.0 leaves them: vczstore repair {self.label}"
        others = [n for name, n in lengths.items() if name != SAMPLE_ID]
        is_resized = [n == interrupted_at for n in others]
        is_interrupted = interrupted_at is not None and is_resized == sorted(is_resized, reverse=True)
        for name, length in lengths.items():
            if length != n_samples and not (is_interrupted and length == interrupted_at):
                raise DamagedStoreError(
                    f"{operation}: {self.label} is damaged: {name} has {length} samples, sample_id has "
                    f"{n_samples}; {remedy}"
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
        Check, for arrays with a flexible grid, that a new chunk column can begin where the samples end.

        Raises
        ------
        DamagedStoreError
            If the last chunk of such an array extends beyond its samples.
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
    Join the first `limit` names for a message, each truncated to 60 characters.

    >>> listing(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    texts = [str(name) for name in names]
    shown = [text if len(text) <= 60 else text[:57] + "..." for text in texts[:limit]]
    joined = ", ".join(text if text and text.isprintable() else repr(text) for text in shown)
    return joined if len(texts) <= limit else f"{joined} and {len(texts) - limit} more"


def positions_of(vcz: Vcz, samples: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """
    Look up samples by ID in a VCZ.

    Returns
    -------
    positions : numpy.ndarray of int64
        Indices in `Vcz.sample_ids`, increasing, of all samples with these IDs.
    unknown : list of str
        The IDs that the VCZ does not have, in the order of `samples`.
    """
    wanted = set(samples) - {REMOVED}
    positions = [i for i, sample in enumerate(vcz.sample_ids.tolist()) if sample in wanted]
    present = {vcz.sample_ids[i] for i in positions}
    return np.array(positions, dtype="i8"), [sample for sample in samples if sample not in present]


def refuse_padded(operation: str, vcz: Vcz, samples: Sequence[str]) -> None:
    """
    Refuse samples if the VCZ also has their IDs padded with spaces, which lists of samples do not preserve.

    Raises
    ------
    SampleError
        If the VCZ has such padded IDs that are not among the samples.
    """
    wanted = set(samples)
    others = [s for s in vcz.sample_ids.tolist() if s not in wanted and s != (bare := s.strip()) and bare in wanted]
    if others:
        raise SampleError(
            f"{operation}: in addition to the samples named, {vcz.label} has {len(others):,} with the same ID and "
            "spaces around it; nothing was written, first rename the samples named with vczstore rename-samples",
            f"they are {listing([ascii(sample) for sample in others])}",
        )


def refuse_other_spellings(
    operation: str, vcz: Vcz, unknown: Sequence[str], gone: Collection[str], samples: Sequence[str], outcome: str
) -> None:
    """
    Refuse unknown IDs that are other spellings of `samples`: in quotes, with another column, or in another case.

    Of samples removed earlier (`gone`), another case is accepted as another sample. The message has the `outcome`: what
    was not done.

    Raises
    ------
    SampleError
        If `samples` has another spelling of an unknown ID.
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
    Return the error for IDs that a VCZ does not have; it suggests similar IDs.

    The message ends with `outcome`: what was not done, and the remedy.
    """
    # escapes make IDs that look the same distinguishable
    near = [ascii(sample)[1:-1] for sample in close_to(unknown, vcz.sample_ids.tolist())]
    return SampleError(
        f"{operation}: {vcz.label} has no sample {listing(unknown, limit=1000)}; {outcome}",
        f"perhaps {listing(near)} is meant" if near else "",
    )


def _members(
    group: zarr.Group, copies: zarr_objects.Document | None = None
) -> tuple[dict[str, AnyArray], dict[str, AnyArray], dict[str, dict[str, Any]]]:
    """
    Read the members of a root group: its arrays, the arrays of all subgroups, and the attributes of each subgroup.

    Keys are names, or paths of subgroups' members. Other files are ignored. Unless `copies` is None, consolidated
    metadata are read; `copies` are those of format 3 by path, and empty in format 2.

    Raises
    ------
    KeyError
        If a member's metadata lack a required key.
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
        # zarr reports a key that a document lacks as an unrecognised member, which the store then does not have
        name = re.match("Object at (.*) is not recognized", str(warning.message))
        if name and name[1] not in zarr_objects.names(group.store):
            raise KeyError(f"{name[1]} is missing")
    members, inner = (
        {name: arrays.as_documented(node, copies) for name, node in nodes if isinstance(node, zarr.Array)}
        for nodes in (top, below)
    )
    groups = {name: dict(node.attrs) for name, node in (*top, *below) if isinstance(node, zarr.Group)}
    return members, inner, groups


def _unreadable(group: zarr.Group) -> str | None:
    """Path of the first array or group within a group whose metadata zarr cannot parse; None if there is none."""
    for name in sorted(zarr_objects.names(group.store, group.path)):
        path = f"{group.path}/{name}".lstrip("/")
        try:
            node = group[name]
        except zarr_objects.NO_METADATA:  # also of files that are no part of the store
            documents = [f"{path}/{key}" for key in ("zarr.json", ".zarray", ".zgroup")]
            if any(document is not None for document in zarr_objects.get_many(group.store, documents)):
                return path
            continue
        if isinstance(node, zarr.Group) and (found := _unreadable(node)) is not None:
            return found
    return None


def _describe(names: tuple[str | None, ...]) -> str:
    return "dimensions without a name" if None in names else f"dimensions {names} and no samples dimension"


def _check_dimensions(label: str, name: str, array: AnyArray) -> None:
    """Raise a `DamagedStoreError` for invalid dimension names of format 2, which zarr does not validate."""
    names: Any = array.attrs.get("_ARRAY_DIMENSIONS") if array.metadata.zarr_format == 2 else None
    is_list = isinstance(names, list) and all(isinstance(dimension, str | None) for dimension in names)
    if names is not None and not (is_list and len(names) in (0, array.ndim)):
        raise DamagedStoreError(
            f"{label}: the attribute _ARRAY_DIMENSIONS of {name} is {str(names)[:100]!r}; it takes a name for each of "
            f"its {array.ndim} axes"
        )


def _folders_with_ids(store: Store) -> list[str]:
    """Names of the folders, among the first 20 at the top of a store without a root group, that hold a VCZ."""
    folders: list[str] = []
    with suppress(Exception):  # then the message has no hint
        for name in sorted(zarr_objects.names(store))[:20]:
            documents = [f"{name}/{SAMPLE_ID}/{key}" for key in ("zarr.json", ".zarray")]
            if any(document is not None for document in zarr_objects.get_many(store, documents)):
                folders.append(name)
    return folders


def _hint(label: str, snapshot: str | None, groups: Sequence[str]) -> str:
    """The remedy for a message that the root is not a VCZ; `groups` are the paths of VCZs within it."""
    if not groups:
        return "make a VCZ with vcf2zarr"
    first = groups[0]
    if label.startswith("<"):
        remedy = f"open {first} as a store of its own"
    elif snapshot is not None:
        remedy = f"name {label.rstrip('/')}#{first}"
    elif label.endswith(".zip"):
        remedy = f"zip what is in {first}, without the folder itself"
    else:
        remedy = f"name {label.rstrip('/')}/{first}"
    return f"a VCZ lies in its group {listing(groups, 3)}: {remedy}"
