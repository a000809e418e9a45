"""Cohorts for the benchmarks: VCZs of Zarr format 3. The same parameters give the same bytes."""

from __future__ import annotations

import itertools
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.types import AnyArray

SEED = 20_260_101
REVISION = 1
"""Part of the name of every cached store. Increment it when the data written for the same parameters change."""

CHUNK = 1_000
"""Chunk length along both the variants and the samples axis."""

CLEVEL = 7
CALLS = {
    "call_genotype": ("i1", ("variants", "samples", "ploidy")),
    "call_genotype_phased": ("bool", ("variants", "samples")),
    "call_DP": ("i1", ("variants", "samples")),
    "call_GQ": ("i1", ("variants", "samples")),
}


@dataclass(frozen=True)
class Cohort:
    """
    Parameters of a synthetic VCZ.

    Attributes
    ----------
    variants, samples
        Number of variants and of samples. Cohorts with the same number of variants have the same positions.
    first
        Number of the first sample, from which sample IDs are made. Cohorts to be combined must not overlap.
    calls
        ``real``: every call is drawn independently. ``tiled``: the first chunk is repeated, which is fast to write.
        ``alike``: as ``tiled``, with identical samples, which compresses well. ``none``: calls have no chunks.
        ``metadata``: neither calls nor variants have chunks.
    ids_chunk
        Chunk length of ``sample_id``.
    multiallelic
        Every n-th variant has two ALTs; 0 for none.
    swapped
        Whether the ALTs of these variants are in reverse order.
    new
        Every n-th variant has a different ALT, and so is absent from cohorts with ``new=0``; 0 for none.
    """

    variants: int
    samples: int
    first: int = 0
    calls: Literal["real", "tiled", "alike", "none", "metadata"] = "real"
    ids_chunk: int = CHUNK
    multiallelic: int = 0
    swapped: bool = False
    new: int = 0

    def make(self, folder: Path) -> Path:
        """Return the path of the VCZ below a folder; write it unless it exists."""
        shape = f"{self.variants}x{self.samples}"
        alleles = f"-every-{self.multiallelic}-{'swapped' if self.swapped else 'in-order'}" if self.multiallelic else ""
        alleles += f"-new-{self.new}" if self.new else ""
        name = f"{self.calls}-{shape}-from-{self.first}-ids-{self.ids_chunk}{alleles}-r{REVISION}.vcz"
        path, unfinished = folder / name, folder / f"{name}.unfinished"
        if not path.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            self._write(unfinished)
            unfinished.rename(path)
        return path

    def ids(self) -> list[str]:
        """The sample IDs."""
        return [f"HG{i:08d}" for i in range(self.first, self.first + self.samples)]

    def _write(self, path: Path) -> None:
        root = zarr.create_group(path, attributes={"vcf_zarr_version": "0.4", "source": "tests.benchmarks"})
        _put(root, "sample_id", np.array(self.ids(), dtype="T"), ("samples",), (self.ids_chunk,))
        _put(root, "contig_id", np.array(["chr20"], dtype="T"), ("contigs",), (1,))
        _put(root, "filter_id", np.array(["PASS"], dtype="T"), ("filters",), (1,))
        if self.calls == "metadata":
            for name, dtype, shape in (("contig", "i1", ()), ("position", "i4", ()), ("allele", "string", (2,))):
                dimensions = ("variants", "alleles")[: 1 + len(shape)]
                _create(root, f"variant_{name}", (self.variants, *shape), dtype, dimensions, (CHUNK, *shape))
        else:
            self._write_sites(root)
        sizes = {"variants": self.variants, "samples": self.samples, "ploidy": 2}
        calls: dict[str, AnyArray] = {}
        for name, (dtype, dimensions) in CALLS.items():
            shape = tuple(sizes[d] for d in dimensions)
            calls[name] = _create(root, name, shape, dtype, dimensions, (CHUNK, CHUNK, 2)[: len(shape)])
        if self.calls == "real":
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(lambda start: self._write_rows(calls, start), range(0, self.variants, CHUNK)))
        elif self.calls in ("tiled", "alike"):
            self._write_tiles(calls, path)

    def _write_sites(self, root: zarr.Group) -> None:
        _put(root, "variant_contig", np.zeros(self.variants, "i1"), ("variants",), (CHUNK,))
        positions = np.cumsum(np.random.default_rng(SEED).integers(1, 60, self.variants), dtype="i4")
        _put(root, "variant_position", positions, ("variants",), (CHUNK,))
        bases = np.random.default_rng(SEED).integers(0, 4, self.variants)
        shifts = ((0, 1, 2) if self.swapped else (0, 2, 1)) if self.multiallelic else (0, 2)
        alleles = np.stack([np.array(list("ACGT"))[(bases + shift) % 4] for shift in shifts], axis=1)
        if self.multiallelic:
            biallelic = np.arange(self.variants) % self.multiallelic != 0
            alleles[biallelic, 1], alleles[biallelic, 2] = np.array(list("ACGT"))[(bases[biallelic] + 2) % 4], ""
        if self.new:
            alleles[:: self.new, 1] = np.array(list("ACGT"))[(bases[:: self.new] + 3) % 4]
        _put(root, "variant_allele", alleles.astype("T"), ("variants", "alleles"), (CHUNK, len(shifts)))

    def _write_rows(self, calls: dict[str, AnyArray], start: int) -> None:
        stop = min(start + CHUNK, self.variants)
        for name, values in _calls(self.first, start, stop - start, self.samples).items():
            calls[name][start:stop] = values

    def _write_tiles(self, calls: dict[str, AnyArray], path: Path) -> None:
        values = _calls(self.first, 0, CHUNK, CHUNK)
        if self.calls == "alike":
            values = {name: np.repeat(v[:, :1], CHUNK, axis=1) for name, v in values.items()}
        n_rows, n_columns = (math.ceil(n / CHUNK) for n in (self.variants, self.samples))
        for name, array in calls.items():
            array[:CHUNK, :CHUNK] = values[name][: self.variants, : self.samples]
            folder = path / name
            first, *others = (
                folder / array.metadata.encode_chunk_key((i, j, 0)[: array.ndim])
                for i, j in itertools.product(range(n_rows), range(n_columns))
            )
            for other in others:
                other.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(first, other)


def _calls(first: int, start: int, n_variants: int, n_samples: int) -> dict[str, np.ndarray]:
    """Calls of `n_variants` variants: mostly rare ALTs, few missing calls, depths around 30, most qualities capped."""
    sites, rng = np.random.default_rng([SEED, start]), np.random.default_rng([SEED, first, start])
    shape = (n_variants, n_samples)
    frequency = sites.beta(0.15, 1.5, n_variants).astype("f4")
    uncertain = sites.beta(0.3, 3, n_variants).astype("f4")
    genotype = (rng.random((*shape, 2), dtype="f4") < frequency[:, None, None]).astype("i1")
    genotype[rng.random(shape, dtype="f4") < 0.002] = -1
    phased = (genotype[..., 0] != genotype[..., 1]) & (rng.random(shape, dtype="f4") < 0.3)
    depth = np.minimum(rng.poisson(30, shape), 127).astype("i1")
    tail = 3 * rng.integers(5, 33, shape, dtype="i1")
    quality = np.where(rng.random(shape, dtype="f4") < uncertain[:, None], tail, np.int8(99))
    return {"call_genotype": genotype, "call_genotype_phased": phased, "call_DP": depth, "call_GQ": quality}


def _create(
    root: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    dimensions: tuple[str, ...],
    chunks: tuple[int, ...],
) -> AnyArray:
    compressor = BloscCodec(cname="zstd", clevel=CLEVEL, shuffle="bitshuffle")
    return root.create_array(
        name, shape=shape, dtype=dtype, chunks=chunks, dimension_names=dimensions, compressors=compressor
    )


def _put(root: zarr.Group, name: str, values: np.ndarray, dimensions: tuple[str, ...], chunks: tuple[int, ...]) -> None:
    _create(root, name, values.shape, values.dtype, dimensions, chunks)[...] = values


# ---- copies, and the files written to them --------------------------------------------------


def fresh_folder(folder: Path) -> Path:
    """
    Create an empty folder for one measurement.

    It is not deleted until all measurements are done: for minutes after a deletion ext4 skips every freed inode, and
    creating files in a large folder takes up to twice as long.
    """
    return Path(mkdtemp(dir=folder))


def fresh_copy(store: Path, folder: Path) -> Path:
    """Copy a local store for one measurement, and flush it to disk."""
    copy = fresh_folder(folder) / "store.vcz"
    shutil.copytree(store, copy)
    os.sync()
    return copy


def stamps(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Inode, modification time and size of each file below a folder, to detect later writes."""
    files = ((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    return {path: (stat.st_ino, stat.st_mtime_ns, stat.st_size) for path, stat in files}


def written_since(before: dict[Path, tuple[int, int, int]], folder: Path) -> dict[Path, int]:
    """Size of each file that is new or changed since `before`, by its path relative to the folder."""
    return {path.relative_to(folder): now[-1] for path, now in stamps(folder).items() if now != before.get(path)}
