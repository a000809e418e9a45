"""Copy: a store on plain Zarr, of either format, becomes the first commit of an Icechunk repository.

Chunks whose bytes format 3 can decode are copied as they are, which is nearly always; the others are re-encoded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zarr.types import AnyArray

from plans.core.chunk_grid import Columns, chunk_regions
from plans.core.memory import Memory
from plans.core.model import Plan
from plans.core.rewrite_columns import ColumnReader, Reencoded
from vczstore.stores.base import Store
from vczstore.stores.edits import Clear, WriteDocuments
from vczstore.vcz import arrays
from vczstore.vcz.model import SAMPLES, VARIANTS, Vcz, dimensions

if TYPE_CHECKING:
    import cubed
    from zarr.abc.store import Store as ZarrStore

    from plans.core.xarray_backend import Opened

MANIFEST_CHUNKS = 1000
"""About how many chunk references one manifest holds: some 20 kB to rewrite when one of them changes."""


def compile_copy(source: Vcz, place: Store, base: str, memory: Memory) -> Plan:
    """
    Compile the copy of a VCZ.

    Parameters
    ----------
    source
        What is copied.
    place, base
        The repository, and the snapshot that it is at. What it holds there is replaced.
    memory
        What a task may use.
    """
    operation = "copy-store-to-icechunk"
    source.require_whole(operation, edited=False)
    members = {**source.arrays, **source.inner}
    writes = tuple(CopyArray.of(operation, name, array, 3, memory) for name, array in members.items())
    root = _group(source.attributes)
    documents = {f"{path}/zarr.json": _group(attributes) for path, attributes in source.groups.items()}
    documents |= {f"{w.name}/zarr.json": arrays.documents(w.target.metadata)["zarr.json"] for w in writes}
    return Plan(
        operation=operation,
        store=place,
        base=base,
        checks=(),
        writes=writes,
        edits=(
            Clear(),
            WriteDocuments({"zarr.json": root, **documents}),
        ),
        memory=memory,
        after=source,
        if_stopped=f"{place.label} is no store yet; delete what is there and run the same command again",
        counts={"arrays": len(writes), "samples": source.n_samples, "variants": source.n_variants},
    )


def _group(attributes: Mapping[str, Any]) -> arrays.Document:
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def columns_per_manifest(source: Vcz) -> int:
    """How many chunk columns share a manifest, for `MANIFEST_CHUNKS` references in it."""
    rows = 1
    for array in source.arrays.values():
        names = dimensions(array)
        if SAMPLES in names and VARIANTS in names:
            rows = max(rows, arrays.grid(array.shape, arrays.outer_chunks(array))[names.index(VARIANTS)])
    return max(1, MANIFEST_CHUNKS // rows)


@dataclass(frozen=True)
class CopyArray(Reencoded):
    """
    The copy of one array: all of it is written, as it is where its encoding allows.

    Attributes
    ----------
    source
        The array as it is.
    """

    source: AnyArray

    @classmethod
    def of(cls, operation: str, name: str, source: AnyArray, zarr_format: int, memory: Memory) -> "CopyArray":
        """Find the metadata of an array in a format."""
        metadata = arrays.in_format(source, zarr_format, shape=source.shape, dimension_names=dimensions(source))
        target = arrays.from_metadata(metadata, source.store, name)
        chunks = arrays.outer_chunks(target)
        chunk_bytes = arrays.chunk_bytes(target)
        grid = arrays.grid(target.shape, chunks)

        def decoding(block: tuple[int, ...]) -> int:
            return ColumnReader(source, Columns(target.shape, chunks, None, (), block)).decode_mem()

        block = memory.fit(operation, grid, chunk_bytes, decoding)
        return cls(name, target, Columns(target.shape, chunks, None, (), block), source)

    @property
    def is_encoded(self) -> bool:
        """Whether chunks are copied as they are."""
        return arrays.same_encoding(self.source, self.target)

    @property
    def encoded_chunks(self) -> int:
        """All of them, or none."""
        return self.columns.n_chunks if self.is_encoded else 0

    @property
    def decoded_chunks(self) -> int:
        """None of them, or all."""
        return 0 if self.is_encoded else self.columns.n_chunks

    def by_cubed(self, store: "ZarrStore", memory: Memory) -> "list[cubed.Array]":
        """Copy the chunks as they are, or decode and encode them."""
        from plans.core import cubed_backend as chunks

        if not self.columns.n_chunks:
            return []
        target = arrays.planned(self.target, store=store)
        if self.is_encoded:
            return [chunks.copy_encoded([chunks.Piece(self.source, self.columns, self.columns)], target, memory.spec())]
        reader = ColumnReader(self.source, self.columns)
        values = chunks.read(reader, memory.spec(), extra_mem=reader.decode_mem())
        return [chunks.write(values, chunks.DecodedView(target, self.columns))]

    def by_xarray(self, store: "ZarrStore", memory: Memory, opened: "Opened") -> "list[cubed.Array]":
        """Let xarray read the array."""
        from plans.core import xarray_backend

        if not self.columns.n_chunks:
            return []
        target = arrays.planned(self.target, store=store)
        return xarray_backend.write(opened.variable(self.source, memory), target, self.columns)

    def by_zarr(self, store: "ZarrStore") -> None:
        """Assign chunk by chunk."""
        target = arrays.planned(self.target, store=store)
        for region in chunk_regions(target, {}):
            target[region] = arrays.read(self.source, region)
