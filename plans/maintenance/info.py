"""Description of the contents of a store."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice

import numpy as np

from plans.variants.stale import stale
from vczstore.execution.results import AsDict, Shown
from vczstore.sizes import human_size
from vczstore.stores.base import Store
from vczstore.vcz import arrays
from vczstore.vcz.model import REMOVED, SAMPLES, VARIANTS, Vcz, dimensions, listing

HISTORY = 20
"""Number of snapshots to show."""


@dataclass(frozen=True)
class Description(AsDict, Shown):
    """
    The contents of a store.

    Attributes
    ----------
    store, backend, zarr_format, vcf_zarr_version
        Label, storage backend, Zarr format and VCF Zarr version of the store.
    snapshot
        The snapshot that was read; None on plain Zarr.
    branch
        The branch that was read; None on plain Zarr, or if another state was requested.
    samples, removed_samples
        Number of samples that are present, and that have been removed.
    variants
        Number of variants.
    samples_chunk_size, variants_chunk_size
        Chunk lengths of ``call_genotype``, or of the first field with both dimensions; None if there is none. With a
        flexible sample grid, the width of the widest column.
    samples_shard_size, variants_shard_size
        Shard lengths of the same field; None if it has no shards.
    sample_columns
        Number of samples in each chunk column of a flexible sample grid; else None.
    fields
        Names of the arrays with a samples dimension.
    stale
        INFO fields that were not recomputed since samples were added, removed or changed.
    decoded_bytes, stored_bytes
        Decoded size of all arrays, and size in storage including older snapshots. `stored_bytes` is None where it would
        require listing a remote store.
    tags
        The snapshot of each tag, by name.
    history
        The latest snapshots up to the one that was read, newest first: id, time, message.
    """

    store: str
    backend: str
    zarr_format: int
    vcf_zarr_version: str | None
    snapshot: str | None
    samples: int
    removed_samples: int
    variants: int
    samples_chunk_size: int | None
    variants_chunk_size: int | None
    fields: list[str]
    stale: list[str]
    decoded_bytes: int
    stored_bytes: int | None
    tags: Mapping[str, str] = field(default_factory=dict)
    history: list[dict[str, str]] = field(default_factory=list)
    sample_columns: list[int] | None = None
    branch: str | None = None
    samples_shard_size: int | None = None
    variants_shard_size: int | None = None

    def lines(self) -> list[str]:
        """Return the lines that the command prints: a name and a value in each."""
        removed = f" ({self.removed_samples:,} removed)" if self.removed_samples else ""
        chunks = (
            "none"
            if self.samples_chunk_size is None
            else f"{self.variants_chunk_size:,} variants x {self.samples_chunk_size:,} samples"
        )
        if self.samples_shard_size is not None:
            chunks = f"{chunks}, in shards of {self.variants_shard_size:,} x {self.samples_shard_size:,}"
        if self.sample_columns is not None:
            chunks = f"{chunks}, in columns of {_runs(self.sample_columns)}"
        stored = "" if self.stored_bytes is None else f", {human_size(self.stored_bytes)} stored"
        version = self.vcf_zarr_version or "of no version"
        rows = [
            ("store", f"{self.store} ({self.backend}, Zarr format {self.zarr_format}, VCF Zarr {version})"),
            ("samples", f"{self.samples:,}{removed}"),
            ("variants", f"{self.variants:,}"),
            ("chunks", chunks),
            ("fields", ", ".join(self.fields)),
            ("bytes", f"{human_size(self.decoded_bytes)} decoded{stored}"),
        ]
        if self.sample_columns is not None:
            text = "zarr-python 3.4 with array.rectilinear_chunks set, and programs that use it; vcztools does not"
            rows.append(("readers", f"{text}: vczstore regrid {self.store} --sample-grid regular"))
        if self.samples_shard_size is not None:
            text = "zarr-python, and programs that use it; vcztools does not read shards of several chunks"
            rows.append(("readers", f"{text}: vczstore regrid {self.store} --samples-shard 0"))
        if self.stale:
            names = ",".join(self.stale)
            way_out = f"vczstore recompute {self.store} --fields {names}"
            rows.append(("stale", f"INFO {names}, computed before samples changed; {way_out}"))
        if self.snapshot:
            branch = f" (branch {self.branch})" if self.branch else ""
            rows += [("snapshot", f"{self.snapshot}{branch}"), ("tags", ", ".join(self.tags) or "none")]
        rows += [
            ("" if i else "history", f"{entry['time']}  {entry['id']}  {entry['message']}")
            for i, entry in enumerate(self.history)
        ]
        return [f"{name:<10}{value}" for name, value in rows]


def describe(store: Store, at: str | None = None) -> Description:
    """Describe the present state of a store, or a tag, branch or snapshot. Only metadata and sample IDs are read."""
    vcz = store.open(at)
    removed = int(np.sum(vcz.sample_ids == REMOVED))
    chunk, shard = _lengths(vcz)
    version = vcz.attributes.get("vcf_zarr_version")
    past = store.history.snapshots() if at is None else store.history.snapshots(vcz.snapshot)
    return Description(
        store=store.label,
        backend=store.backend,
        zarr_format=vcz.zarr_format,
        vcf_zarr_version=None if version is None else str(version),
        snapshot=vcz.snapshot,
        samples=vcz.n_samples - removed,
        removed_samples=removed,
        variants=vcz.n_variants,
        samples_chunk_size=chunk.get(SAMPLES),
        variants_chunk_size=chunk.get(VARIANTS),
        samples_shard_size=shard.get(SAMPLES),
        variants_shard_size=shard.get(VARIANTS),
        fields=list(vcz.samples_arrays),
        stale=stale(vcz),
        decoded_bytes=sum(a.size * a.dtype.itemsize for a in vcz.arrays.values()),
        stored_bytes=store.stored_bytes(),
        tags=store.history.tags(),
        branch=store.branch if at is None else None,
        sample_columns=list(vcz.columns) if vcz.is_flexible else None,
        history=[{"id": s.id, "time": s.time, "message": s.message} for s in islice(past, HISTORY)],
    )


def _runs(columns: list[int]) -> str:
    """
    Format the widths of columns, run-length encoded.

    >>> _runs([1000, 1000, 7, 1])
    '2 x 1,000, 7, 1'
    """
    run_lengths = [(width, len(list(run))) for width, run in groupby(columns)]
    return listing([f"{n:,} x {width:,}" if n > 1 else f"{width:,}" for width, n in run_lengths], limit=20) or "none"


def _lengths(vcz: Vcz) -> tuple[Mapping[str | None, int], Mapping[str | None, int]]:
    """Return the lengths of a chunk and of a shard of the calls by dimension; empty where there is none."""
    names = sorted(vcz.arrays, key=lambda name: name != "call_genotype")
    for array in (vcz.arrays[name] for name in names):
        dims = dimensions(array)
        if SAMPLES in dims and VARIANTS in dims:
            shards = dict(zip(dims, arrays.outer_chunks(array), strict=True)) if array.shards else {}
            return dict(zip(dims, arrays.inner_chunks(array), strict=True)), shards
    return {}, {}
