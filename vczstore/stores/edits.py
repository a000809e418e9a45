"""Edits of shapes, arrays, sample IDs and attributes: small changes that the driver makes itself, without tasks.

Without transactions, safety depends on their order: an edit that a reader notices comes after everything it depends
on. Documents are updated member by member, so that members unknown to vczstore are kept, and stores written by
zarr-python 2.18 stay readable to it.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from zarr.abc.buffer import Buffer
from zarr.abc.store import Store
from zarr.types import AnyArray

from vczstore.vcz import arrays, encoded_chunks, metadata, strings, zarr_objects
from vczstore.vcz.metadata import metadata_key
from vczstore.vcz.zarr_objects import Document


class MetadataEdit(Protocol):
    """A small change to a store's metadata, or to ``sample_id``."""

    def apply(self, store: Store) -> None:
        """Make the change. Idempotent."""


@dataclass(frozen=True)
class Delete:
    """Delete an array, or all that is in the store. Only for stores whose edits are part of a transaction."""

    path: str = ""
    """Path of the array; empty for the whole store."""

    def apply(self, store: Store) -> None:
        """Delete the documents and chunks."""
        zarr_objects.clear(store, self.path)


@dataclass(frozen=True)
class SetShape:
    """
    Set the shape of an array: chunks already written beyond the old shape become visible.

    Attributes
    ----------
    path, zarr_format, shape
        Path, format and new shape of the array.
    others
        Members of its document that change with the shape: the chunk grid and codecs.
    """

    path: str
    zarr_format: int
    shape: tuple[int, ...]
    others: Document = field(default_factory=dict)

    @classmethod
    def of(cls, array: AnyArray, *, grid: bool = False, codecs: bool = False) -> "SetShape":
        """
        Return the edit that gives the stored array the shape of `array`.

        If `grid` is true or the grid is flexible, it sets the chunk grid as well; and in that case, if `codecs` is true
        or the array has shards, the codecs.
        """
        others: Document = {}
        if grid or arrays.is_flexible(array):
            document = next(iter(metadata.documents(array.metadata).values()))
            keys = ("chunks", "chunk_grid", *(["codecs", "compressor"] if array.shards or codecs else []))
            others = {key: document[key] for key in keys if key in document}
        return cls(array.path, array.metadata.zarr_format, array.shape, others)

    def apply(self, store: Store) -> None:
        """Update the array's document; raise a `FileNotFoundError` if there is none."""
        key = metadata_key(self.path, self.zarr_format)
        document = zarr_objects.read_json(store, key)
        if document is None:
            raise FileNotFoundError(key)
        changed = {**document, "shape": list(self.shape), **self.others}
        if changed != document:
            zarr_objects.write_json(store, key, changed)


@dataclass(frozen=True)
class WriteDocuments:
    """Create arrays or groups: write their documents, a mapping from keys."""

    documents: Mapping[str, Document]

    @classmethod
    def of(cls, array: AnyArray) -> "WriteDocuments":
        """Return the edit that creates `array`, without chunks."""
        return cls({f"{array.path}/{name}": doc for name, doc in metadata.documents(array.metadata).items()})

    def apply(self, store: Store) -> None:
        """Write the documents; ``.zattrs`` first, so that an interruption leaves no array without dimension names."""
        for key in sorted(self.documents, key=lambda key: not key.endswith(".zattrs")):
            zarr_objects.write_json(store, key, self.documents[key])


@dataclass(frozen=True)
class WriteObjects:
    """
    Write objects verbatim: the documents and small chunks of a new store.

    Attributes
    ----------
    objects
        Objects by key.
    last
        Documents of the root group, written last and in order: without them there is no store.
    """

    objects: Mapping[str, Buffer]
    last: Mapping[str, Buffer]

    def apply(self, store: Store) -> None:
        """Write the objects."""
        zarr_objects.set_many(store, list(self.objects.items()))
        for item in self.last.items():
            zarr_objects.set_many(store, [item])


@dataclass(frozen=True)
class WriteArray:
    """Create a small array, including its values."""

    array: AnyArray
    values: np.ndarray

    def apply(self, store: Store) -> None:
        """Write the documents, then the values."""
        WriteDocuments.of(self.array).apply(store)
        if self.values.size:
            arrays.planned(self.array, store=store)[...] = self.values


@dataclass(frozen=True)
class SetItems:
    """
    Set elements of a one-dimensional array of strings, such as the IDs of removed samples.

    Attributes
    ----------
    positions
        Indices of the elements, in increasing order.
    values
        Their new values: one for all, or one each.
    """

    array: AnyArray
    positions: np.ndarray
    values: str | Sequence[str]

    def apply(self, store: Store) -> None:
        """Rewrite the chunks that hold the elements."""
        texts = np.full(len(self.positions), self.values, dtype=object)
        values = strings.as_stored(texts, self.array.dtype)
        arrays.planned(self.array, store=store).set_orthogonal_selection(self.positions, values)


@dataclass(frozen=True)
class SetNoFill:
    """
    Set the fill value of a one-dimensional format 2 string array to null.

    CF-compliant readers such as xarray show elements that are equal to the fill value as missing. `array` has the new
    metadata.
    """

    array: AnyArray

    @classmethod
    def of(cls, array: AnyArray) -> "SetNoFill | None":
        """Return the edit for an array; None if its fill value is not the empty string, or the format is 3."""
        if array.metadata.zarr_format != 2 or array.metadata.fill_value not in ("", b""):
            return None
        return cls(arrays.from_metadata(replace(array.metadata, fill_value=None), array.store, array.path))

    def apply(self, store: Store) -> None:
        """Write the absent chunks, whose values depend on the fill value; then the document."""
        array, key = arrays.planned(self.array, store=store), metadata_key(self.array.path, 2)
        document = zarr_objects.read_json(store, key)
        if document is None or document["fill_value"] is None:
            return
        (cut,) = arrays.cuts(array)
        chunks = encoded_chunks.get_encoded(array, [(i,) for i in range(cut.n)])
        for span in (span for span, chunk in zip(cut.spans(), chunks, strict=True) if chunk is None):
            array[span] = strings.as_stored(np.full(span.stop - span.start, "", dtype=object), array.dtype)
        zarr_objects.write_json(store, key, {**document, "fill_value": None})


def edit_attributes(store: Store, zarr_format: int, edit: Callable[[Document], object]) -> None:
    """Edit the attributes of the root group, in its document and any consolidated metadata."""
    key = "zarr.json" if zarr_format == 3 else ".zattrs"
    stored = zarr_objects.read_json(store, key)
    document = stored or {}
    attributes = document.setdefault("attributes", {}) if zarr_format == 3 else document
    edit(attributes)
    consolidated = zarr_objects.read_json(store, ".zmetadata") if zarr_format == 2 else None
    if consolidated is not None:  # written before the document, from which attributes are read
        consolidated["metadata"][".zattrs"] = attributes
        zarr_objects.write_json(store, ".zmetadata", consolidated)
    if document or stored is not None:
        zarr_objects.write_json(store, key, document)


@dataclass(frozen=True)
class SetAttribute:
    """Set an attribute of the root group, or delete it if the value is None; also in any consolidated metadata."""

    name: str
    value: Any
    zarr_format: int

    def apply(self, store: Store) -> None:
        """Update the root's document and its consolidated copy."""

        def edit(attributes: Document) -> None:
            if self.value is None:
                attributes.pop(self.name, None)
            else:
                attributes[self.name] = self.value

        edit_attributes(store, self.zarr_format, edit)


@dataclass(frozen=True)
class SetHeader(SetAttribute):
    """Set an attribute that may contain sample IDs, and so is never saved in a checkpoint."""


@dataclass(frozen=True)
class Consolidate:
    """Update the copies of the documents of some arrays in the consolidated metadata, if the store has these."""

    paths: tuple[str, ...]
    zarr_format: int

    def apply(self, store: Store) -> None:
        """Copy the documents of the named arrays into the consolidated metadata."""
        if (current := self._updated(store)) is not None:
            zarr_objects.write_json(store, self._key, current)

    def is_due(self, store: Store) -> bool:
        """Whether consolidated metadata are stale."""
        return self._updated(store) is not None

    @property
    def _key(self) -> str:
        return "zarr.json" if self.zarr_format == 3 else ".zmetadata"

    def _updated(self, store: Store) -> Document | None:
        """The document as it should be; None if it is up to date, or there are no consolidated metadata."""
        stored = zarr_objects.read_json(store, self._key)
        current = copy.deepcopy(stored)
        inner = current and (current.get("consolidated_metadata") if self.zarr_format == 3 else current)
        if not inner:
            return None
        names = ("zarr.json",) if self.zarr_format == 3 else (".zarray", ".zattrs")
        for path in self.paths:
            for name in names:
                document = zarr_objects.read_json(store, f"{path}/{name}")
                if document is not None:
                    inner["metadata"][path if self.zarr_format == 3 else f"{path}/{name}"] = document
        return None if current == stored else current


@dataclass(frozen=True)
class Reconsolidate:
    """Rebuild consolidated metadata from the documents of arrays and groups, even if absent or invalid."""

    paths: tuple[str, ...]
    groups: tuple[str, ...]
    zarr_format: int

    def apply(self, store: Store) -> None:
        """Copy the existing documents of the named arrays and groups, and of the nodes consolidated before."""
        if self.zarr_format == 3:
            root = zarr_objects.read_json(store, "zarr.json") or {}
            stored = root.get("consolidated_metadata")
            inner = stored if isinstance(stored, dict) else {}
            keys = {name: f"{name}/zarr.json" for name in self._keys(inner, (*self.paths, *self.groups))}
            head = {"kind": "inline", "must_understand": False}
            document = {**root, "consolidated_metadata": {**head, **inner, "metadata": self._copy(store, keys)}}
            zarr_objects.write_json(store, "zarr.json", document)
            return
        inner = {}
        with suppress(ValueError):
            inner = zarr_objects.read_json(store, ".zmetadata") or {}
        names = [f"{path}/{name}" for path in self.paths for name in (".zarray", ".zattrs")]
        names += [f"{path}/{name}" for path in self.groups for name in (".zgroup", ".zattrs")]
        keys = {name: name for name in self._keys(inner, [".zgroup", ".zattrs", *names])}
        zarr_objects.write_json(
            store, ".zmetadata", {"zarr_consolidated_format": 1, "metadata": self._copy(store, keys)}
        )

    @staticmethod
    def _keys(stored: Document, names: Iterable[str]) -> list[str]:
        copies = stored.get("metadata") if isinstance(stored, dict) else None
        return sorted({*names, *(copies if isinstance(copies, dict) else ())})

    @staticmethod
    def _copy(store: Store, keys: Mapping[str, str]) -> Document:
        documents = {name: zarr_objects.read_json(store, key) for name, key in keys.items()}
        return {name: document for name, document in documents.items() if document is not None}
