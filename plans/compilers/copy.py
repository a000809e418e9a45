"""Copy: a store on plain Zarr, of format 2 or 3, becomes a commit of an Icechunk repository.

Chunks are copied verbatim if their encoding is valid in format 3, as it nearly always is; others are re-encoded.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from plans.core.copy_chunks import CopyArray
from plans.core.memory import Memory, compile_each
from plans.core.model import START_OVER, CopiedFrom, Plan
from vczstore.stores.base import Store
from vczstore.stores.edits import Delete, WriteDocuments
from vczstore.vcz import arrays, conversion, metadata, zarr_objects
from vczstore.vcz.model import SAMPLES, VARIANTS, Vcz, dimensions

MANIFEST_CHUNKS = 1000
"""Approximate number of chunk references per manifest: about 20 kB are rewritten when one of them changes."""


def compile_copy(store: Store, source: Vcz, memory: Memory, *, operation: str = "copy-store-to-icechunk") -> Plan:
    """Compile the copy of a VCZ into a repository, whose contents are replaced."""
    source.require_whole(operation, edited=False)
    members = {**source.arrays, **source.inner}
    compilers = {n: partial(CopyArray.of, operation, n, array, 3, memory) for n, array in members.items()}
    copies = compile_each(operation, compilers, memory).values()
    writes = tuple(replace(copy, target=conversion.with_default_keys(copy.target)) for copy in copies)
    root = _group(source.attributes)
    documents = {f"{path}/zarr.json": _group(attributes) for path, attributes in source.groups.items()}
    documents |= {f"{w.name}/zarr.json": metadata.documents(w.target.metadata)["zarr.json"] for w in writes}
    return Plan(
        operation=operation,
        store=store,
        base=store.head or "",
        writes=writes,
        edits=(
            Delete(),
            WriteDocuments({"zarr.json": root, **documents}),
        ),
        memory=memory,
        copied_from=CopiedFrom.of(source),
        after=source,
        if_stopped=f"{store.label} is no store yet",
        way_out=START_OVER,
        counts={"arrays": len(writes), "samples": source.n_samples, "variants": source.n_variants},
    )


def _group(attributes: Mapping[str, Any]) -> zarr_objects.Document:
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def columns_per_manifest(source: Vcz) -> int:
    """The number of chunk columns per manifest that gives it about `MANIFEST_CHUNKS` references."""
    rows = 1
    for array in source.arrays.values():
        names = dimensions(array)
        if SAMPLES in names and VARIANTS in names:
            rows = max(rows, arrays.grid_of(array)[names.index(VARIANTS)])
    return max(1, MANIFEST_CHUNKS // rows)
