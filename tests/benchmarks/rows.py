"""The measurements: each function yields rows of the table. Compared runs alternate, each on a fresh copy."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import zarr
from numcodecs import Blosc
from zarr.core.buffer import default_buffer_prototype

import vczstore
from plans.core.model import Plan
from tests.benchmarks import gvcfs
from tests.benchmarks.data import CALLS, CHUNK, CLEVEL, Cohort, fresh_copy, fresh_folder, stamps, written_since
from tests.benchmarks.report import Row, Samples
from tests.benchmarks.sides import Side, Worker
from vczstore.sizes import parse_size
from vczstore.vcz import rectilinear

FAR = 10_000_000
"""Number of the first sample of every batch, beyond the samples of all stores."""

MANY_COLUMNS = 11
"""More chunk columns than this are merged by `_nights`."""

MANY = 100
"""Number of samples removed together."""


@dataclass(frozen=True)
class Sizes:
    """
    Sizes of the data, and numbers of repetitions.

    Attributes
    ----------
    variants, samples, batch
        Numbers of variants and samples of the store, and of samples of the batch.
    repeats, quick_repeats
        Repetitions of operations that take seconds, and of faster ones.
    scaling, scaling_variants
        Numbers of samples of the stores used by `scaling`, and their number of variants.
    memory_variants
        Number of variants used by `memory`.
    flat, flat_samples
        Numbers of variants of the stores used by `flat_memory`, and their number of samples.
    sources
        Number of sources of one append.
    nights
        Number of successive batches of one sample each.
    gvcfs, gvcf_records
        Number of gVCFs, and approximate number of records in each.
    """

    variants: int = 50_000
    samples: int = 4_000
    batch: int = 1_000
    repeats: int = 5
    quick_repeats: int = 15
    scaling: tuple[int, ...] = (4_000, 40_000, 400_000)
    scaling_variants: int = 5_000
    memory_variants: int = 1_000_000
    flat: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    flat_samples: int = 20
    sources: int = 1_000
    nights: int = 30
    gvcfs: int = 20
    gvcf_records: int = 10_000

    def __str__(self) -> str:
        return (
            f"{self.variants:,} variants x {self.samples:,} samples, chunks of {CHUNK:,} x {CHUNK:,}, "
            f"medians of {self.repeats}, in turn; for --help and stores of different sizes (of "
            f"{self.scaling_variants:,} variants) of {self.quick_repeats}; memory on {self.memory_variants:,} variants"
        )


QUICK = Sizes(
    variants=2_000,
    samples=2_000,
    repeats=1,
    quick_repeats=1,
    scaling=(4_000, 40_000),
    scaling_variants=2_000,
    memory_variants=10_000,
    flat=(10_000, 50_000),
    sources=100,
    nights=5,
    gvcfs=3,
    gvcf_records=1_000,
)


@dataclass(frozen=True)
class Bench:
    """Both sides, the sizes, a folder for data kept between runs, and a temporary folder."""

    ours: Side
    peer: Side
    sizes: Sizes
    cache: Path
    work: Path

    def cohort(self, samples: int) -> Path:
        """Path of a store with this number of samples."""
        return Cohort(self.sizes.variants, samples).make(self.cache)

    def batch(self) -> Path:
        """Path of the batch to append."""
        return Cohort(self.sizes.variants, self.sizes.batch, first=FAR).make(self.cache)

    def icechunk(self, store: Path) -> Path:
        """Copy a store to Icechunk. Not kept between runs, because this package defines the repository's layout."""
        repository = self.work / f"{store.name}.icechunk"
        if not repository.exists():
            vczstore.copy_store_to_icechunk(store, repository)
        return repository

    def kept_copy(self, store: Path, name: str) -> Path:
        """Copy a store; the copy is kept until all measurements are done."""
        return Path(shutil.copytree(store, self.work / f"{name}-{store.name}", dirs_exist_ok=True))

    def whole(self, side: Side, operation: str, store: Path, *args: object) -> float:
        """Wall time in seconds of a command's process on a fresh copy of a store."""
        return side.command(operation, fresh_copy(store, self.work), *args)

    def inside(self, worker: Worker, operation: str, store: Path, *args: object) -> float:
        """Duration in seconds of a call in a running process, on a fresh copy of a store."""
        return worker.call(operation, fresh_copy(store, self.work), *args).seconds


def in_turn[Name](repeats: int, runs: Mapping[Name, Callable[[], float]]) -> dict[Name, Samples]:
    """Repeat rounds of all runs. An uncounted warm-up round comes first, for imports and caches."""
    rounds = [{name: run() for name, run in runs.items()} for _ in range(repeats + 1)]
    return {name: [figures[name] for figures in rounds[1:]] for name in runs}


# ---- append ---------------------------------------------------------------------------------


def append(bench: Bench) -> Iterator[Row]:
    """Append to a store whose last chunk column is full, so that chunks are copied verbatim."""
    store, batch = bench.cohort(bench.sizes.samples), bench.batch()
    repository = bench.icechunk(store)
    with Worker(bench.ours) as ours, Worker(bench.peer) as peer:
        runs = {
            "ours, whole": partial(bench.whole, bench.ours, "append", store, batch),
            "peer, whole": partial(bench.whole, bench.peer, "append", store, batch),
            "icechunk, whole": partial(bench.whole, bench.ours, "append", repository, batch),
            "ours, in-process": partial(bench.inside, ours, "append", store, batch),
            "peer, in-process": partial(bench.inside, peer, "append", store, batch),
            "icechunk, in-process": partial(bench.inside, ours, "append", repository, batch),
            "floor": partial(_copy_seconds, batch, bench.work),
        }
        results = in_turn(bench.sizes.repeats, runs)
    name = f"append {bench.sizes.batch:,}, aligned"
    for mode, target, icechunk_target in (("whole", 0.8, None), ("in-process", 0.7, 1.2)):
        plain, icechunk = results[f"ours, {mode}"], results[f"icechunk, {mode}"]
        yield Row(name, mode, plain, "peer", results[f"peer, {mode}"], target, floor=results["floor"])
        yield Row(f"{name}, on Icechunk", mode, icechunk, "ours on plain Zarr", plain, icechunk_target)


def append_unaligned(bench: Bench) -> Iterator[Row]:
    """Append to a store whose last chunk column is half full, so that two columns are decoded and encoded."""
    store, batch = bench.cohort(bench.sizes.samples - CHUNK // 2), bench.batch()
    touched = [*_column(store, bench.sizes.samples // CHUNK - 1), *_column(batch, 0)]
    with Worker(bench.ours) as ours, Worker(bench.peer) as peer:
        runs = {
            "ours, whole": partial(bench.whole, bench.ours, "append", store, batch),
            "peer, whole": partial(bench.whole, bench.peer, "append", store, batch),
            "ours, in-process": partial(bench.inside, ours, "append", store, batch),
            "peer, in-process": partial(bench.inside, peer, "append", store, batch),
            "floor": partial(_recode_seconds, touched, bench.work),
        }
        results = in_turn(bench.sizes.repeats, runs)
    name = f"append {bench.sizes.batch:,}, in mid-chunk"
    for mode, target in (("whole", 0.8), ("in-process", 0.9)):
        yield Row(
            name, mode, results[f"ours, {mode}"], "peer", results[f"peer, {mode}"], target, floor=results["floor"]
        )


# ---- flexible sample grid -------------------------------------------------------------------


def flexible(bench: Bench) -> Iterator[Row]:
    """Stores with chunk columns of any width: append in mid-chunk, nightly samples, a dropped column, many columns."""
    yield from _flexible_append(bench)
    yield from _nights(bench)
    yield from _dropped_column(bench)
    yield from _many_columns(bench)


def _flexible(bench: Bench, store: Path) -> Path:
    """A copy of a store with a flexible grid."""
    copy = bench.kept_copy(store, "flexible")
    vczstore.regrid(copy, sample_grid="flexible")
    return copy


def _flexible_append(bench: Bench) -> Iterator[Row]:
    aligned, batch = bench.cohort(bench.sizes.samples), bench.batch()
    store = bench.cohort(bench.sizes.samples - CHUNK // 2)
    flexible = _flexible(bench, store)
    with Worker(bench.ours) as ours, Worker(bench.peer) as peer:
        runs = {
            "flexible": partial(bench.inside, ours, "append", flexible, batch),
            "aligned": partial(bench.inside, ours, "append", aligned, batch),
            "peer": partial(bench.inside, peer, "append", store, batch),
        }
        results = in_turn(bench.sizes.repeats, runs)
    name = f"append {bench.sizes.batch:,}, in mid-chunk, flexible"
    yield Row(name, "in-process", results["flexible"], "ours, aligned", results["aligned"], 1.1)
    yield Row(name, "in-process", results["flexible"], "peer", results["peer"], 0.1)


def _nights(bench: Bench) -> Iterator[Row]:
    """Append one sample a night, and merge narrow columns when there are more than `MANY_COLUMNS`."""
    store, n = bench.cohort(bench.sizes.samples), bench.sizes.nights
    nights = [Cohort(bench.sizes.variants, 1, first=FAR + i).make(bench.work) for i in range(n)]
    for night in nights:
        vczstore.regrid(night, samples_chunk=1)
    copies = {"regular": bench.kept_copy(store, "regular"), "flexible": _flexible(bench, store)}
    seconds = dict.fromkeys(copies, 0.0)
    with Worker(bench.ours) as worker:
        for night in nights:
            for name, copy in copies.items():
                seconds[name] += worker.call("append", copy, night).seconds
            merging = worker.call("regrid", copies["flexible"], when=f"columns > {MANY_COLUMNS}")
            seconds["flexible"] += merging.seconds
    name = f"append 1 sample, {n} nights, flexible and merged"
    yield Row(name, "in-process", [seconds["flexible"]], "regular", [seconds["regular"]], 0.1)
    runs = {
        (kind, wide): partial(_read_seconds, copy, {"samples": CHUNK} if wide else {})
        for kind, copy in copies.items()
        for wide in (True, False)
    }
    read = in_turn(min(3, bench.sizes.repeats), runs)
    for wide, chunking in ((True, f"dask in chunks of {CHUNK:,} samples"), (False, "dask in chunks of the store")):
        name = f"read all calls after {n} nights, xarray and {chunking}"
        yield Row(name, "in-process", read["flexible", wide], "regular", read["regular", wide], 1.2)


def _read_seconds(store: Path, chunks: Mapping[str, int]) -> float:
    """Seconds to read all calls of a store with dask threads, in these chunks, or by default in the store's."""
    import xarray as xr

    started = perf_counter()
    opened = xr.open_zarr(store, consolidated=False, chunks=dict(chunks), mask_and_scale=False)
    opened[list(CALLS)].sum().compute()
    return perf_counter() - started


def _many_columns(bench: Bench) -> Iterator[Row]:
    """Plan an append to a store with 10,000 chunk columns of two widths."""
    widths = (1, 2) * 5_000
    store = Cohort(CHUNK, sum(widths), calls="none").make(bench.work)
    batch = Cohort(CHUNK, bench.sizes.batch, first=FAR, calls="tiled").make(bench.work)
    n_bytes = 0
    for name in CALLS:
        array, file = zarr.open_array(store / name), store / name / "zarr.json"
        rows, _, *others = array.chunks
        metadata = rectilinear.with_widths(array.metadata, array.shape, (rows, widths, *others))
        (document,) = metadata.to_buffer_dict(default_buffer_prototype()).values()
        file.write_bytes(document.to_bytes())
        n_bytes += file.stat().st_size
    with Worker(bench.ours) as worker:

        def plan() -> float:
            return worker.call("append", store, batch, dry_run=True).seconds

        results = in_turn(bench.sizes.repeats, {"plan": plan})
    name = f"plan an append to {len(widths):,} columns"
    yield Row(name, "in-process", results["plan"], "target", [1.0], 1.0)
    yield Row(name, "metadata", [float(n_bytes)], "target", [1e6], 1.0, unit="B")


def _dropped_column(bench: Bench) -> Iterator[Row]:
    """Remove all samples of one chunk column of 40; the regular store, which loses half a column, is re-encoded."""
    cohort = Cohort(bench.sizes.scaling_variants, 40 * CHUNK, calls="tiled")
    store, ids = cohort.make(bench.work), cohort.ids()
    copies = {"regular": bench.kept_copy(store, "regular"), "flexible": _flexible(bench, store)}
    vczstore.remove(copies["regular"], ids[CHUNK // 2 : CHUNK])
    vczstore.remove(copies["flexible"], ids[CHUNK : 2 * CHUNK])
    with Worker(bench.ours) as worker:
        runs = {name: partial(bench.inside, worker, "compact", copy) for name, copy in copies.items()}
        results = in_turn(min(3, bench.sizes.repeats), runs)
    yield Row(
        "compact, 1 column of 40 gone, flexible",
        "in-process",
        results["flexible"],
        "regular, half of one",
        results["regular"],
        0.05,
    )


# ---- harmonise ------------------------------------------------------------------------------


def harmonise(bench: Bench) -> Iterator[Row]:
    """Normalise batches in which some or all variants have re-ordered ALTs; append with and without harmonising."""
    variants, samples = bench.sizes.variants, bench.sizes.batch
    for every, description, target, repeats in (
        (20, "every 20th variant re-ordered", 0.25, bench.sizes.repeats),
        (1, "every variant re-ordered", 0.05, 1),
    ):
        store = Cohort(variants, samples, calls="tiled", multiallelic=every).make(bench.cache)
        batch = Cohort(variants, samples, first=FAR, multiallelic=every, swapped=True).make(bench.cache)
        runs = {
            "ours": partial(_normalise, bench, bench.ours, store, batch),
            "peer": partial(_normalise, bench, bench.peer, store, batch),
            "floor": partial(_recode_seconds, sorted(batch.glob("call_genotype/c/*/*/*")), bench.work),
        }
        results = in_turn(repeats, runs)
        name = f"normalise {samples:,}, {description}"
        yield Row(name, "whole", results["ours"], "peer", results["peer"], target, floor=results["floor"])
    store, batch = bench.cohort(bench.sizes.samples - CHUNK // 2), bench.batch()
    with Worker(bench.ours) as worker:

        def append(**options: bool) -> float:
            return worker.call("append", fresh_copy(store, bench.work), batch, **options).seconds

        results = in_turn(bench.sizes.repeats, {"plain": append, "harmonised": partial(append, harmonise=True)})
    name = f"append {samples:,}, in mid-chunk, harmonised"
    yield Row(name, "in-process", results["harmonised"], "not harmonised", results["plain"], 1.2)


def _normalise(bench: Bench, side: Side, store: Path, batch: Path) -> float:
    return side.command("normalise", store, batch, fresh_folder(bench.work) / "out.vcz")


# ---- insert ---------------------------------------------------------------------------------


def insert(bench: Bench) -> Iterator[Row]:
    """Append a batch in which every 50th variant is new, against re-encoding all chunks, and against bcftools merge."""
    sizes, options = bench.sizes, {"harmonise": True, "new_variants": "insert"}
    store = bench.cohort(sizes.samples)
    batch = Cohort(sizes.variants, sizes.batch, first=FAR, new=50).make(bench.cache)
    repository = bench.icechunk(store)
    chunks = [path for folder in (store, batch) for path in sorted(folder.glob("call_*/c/**/*")) if path.is_file()]
    with Worker(bench.ours) as worker:

        def inside(original: Path) -> float:
            return worker.call("append", fresh_copy(original, bench.work), batch, **options).seconds

        runs = {
            "plain": partial(inside, store),
            "icechunk": partial(inside, repository),
            "floor": partial(_recode_seconds, chunks, bench.work),
        }
        results = in_turn(min(3, sizes.repeats), runs)
    name = f"append {sizes.batch:,}, 2 % of the variants new"
    yield Row(name, "in-process", results["plain"], "floor", results["floor"], 1.3)
    yield Row(f"{name}, on Icechunk", "in-process", results["icechunk"], "floor", results["floor"], 1.3)
    yield from _insert_against_bcftools(bench)


def _insert_against_bcftools(bench: Bench) -> Iterator[Row]:
    """Use a tenth of the variants, because bcftools is slow; its VCFs are written before the measurement."""
    sizes, n = bench.sizes, max(CHUNK, bench.sizes.variants // 10)
    store = Cohort(n, sizes.samples).make(bench.cache)
    batch = Cohort(n, sizes.batch, first=FAR, new=50).make(bench.cache)
    vcfs = [_as_vcf(path, bench.work) for path in (store, batch)]

    def ours() -> float:
        options = ("--harmonise", "--new-variants", "insert")
        return bench.ours.command("append", *options, fresh_copy(store, bench.work), batch)

    def merge() -> float:
        return _bcftools_merge(bench, "-m", "none", "-Ob", "-o", fresh_folder(bench.work) / "merged.bcf", *vcfs)

    results = in_turn(min(3, sizes.repeats), {"ours": ours, "merge": merge})
    name = f"append {sizes.batch:,}, 2 % of {n:,} variants new"
    yield Row(name, "whole", results["ours"], "bcftools merge", results["merge"], 0.2)


def _bcftools_merge(bench: Bench, *arguments: object) -> float:
    """Wall time of the process in seconds."""
    code = f"import pysam.bcftools; pysam.bcftools.merge(*{[*map(str, arguments)]!r}, catch_stdout=False)"
    started = perf_counter()
    subprocess.run([bench.ours.python, "-c", code], check=True)
    return perf_counter() - started


def _as_vcf(vcz: Path, work: Path) -> Path:
    """Write a store as an indexed VCF; return its path."""
    import pysam
    import vcztools

    path = fresh_folder(work) / f"{vcz.stem}.vcf"
    with path.open("w") as text, vcztools.VczReader(vcztools.open_zarr(vcz)) as reader:
        vcztools.write_vcf(reader, text)
    return Path(pysam.tabix_index(str(path), preset="vcf", force=True))


# ---- gVCFs ----------------------------------------------------------------------------------


def gvcf(bench: Bench) -> Iterator[Row]:
    """Create a store and append to it from gVCFs, and from their VCZs made by bio2zarr, against bcftools merge."""
    from bio2zarr import vcf

    folder = fresh_folder(bench.work)
    reference, files = gvcfs.make(folder, bench.sizes.gvcfs, bench.sizes.gvcf_records)
    converted = [folder / f"{file.name}.vcz" for file in files]
    for file, vcz in zip(files, converted, strict=True):
        vcf.convert([file], vcz, variants_chunk_size=CHUNK, samples_chunk_size=1)

    def ours(sources: Sequence[Path]) -> float:
        store = fresh_folder(bench.work) / "cohort.vcz"
        return sum(
            bench.ours.command(*command, store, *sources)
            for command in (("create", "--gvcf", "--variants-chunk", CHUNK), ("append", "--harmonise", "--gvcf"))
        )

    def merge() -> float:
        target = fresh_folder(bench.work) / "merged.bcf"
        return _bcftools_merge(bench, "--gvcf", reference, "-Ob", "-o", target, *files)

    results = in_turn(min(3, bench.sizes.repeats), {"vcf": partial(ours, files), "merge": merge})
    results |= in_turn(min(3, bench.sizes.repeats), {"vcz": partial(ours, converted)})
    name = f"create from and append {len(files)} gVCFs of {bench.sizes.gvcf_records:,} records"
    yield Row(name, "whole", results["vcf"], "bcftools merge --gvcf", results["merge"], 0.5)
    yield Row(f"{name}, converted before", "whole", results["vcz"], "bcftools merge --gvcf", results["merge"], 0.5)


# ---- remove ---------------------------------------------------------------------------------


def remove(bench: Bench) -> Iterator[Row]:
    """Remove one sample, and many samples of one chunk column, which the peer can only remove one by one."""
    store, column = bench.cohort(bench.sizes.samples), bench.sizes.samples // CHUNK // 2
    samples = Cohort(bench.sizes.variants, bench.sizes.samples).ids()[column * CHUNK :][:MANY]
    touched = _column(store, column)
    with Worker(bench.ours) as ours, Worker(bench.peer) as peer:
        runs = {
            "ours, whole": partial(bench.whole, bench.ours, "remove", store, samples[0]),
            "peer, whole": partial(bench.whole, bench.peer, "remove", store, samples[0]),
            "many, whole": partial(bench.whole, bench.ours, "remove", store, *samples),
            "ours, in-process": partial(bench.inside, ours, "remove", store, samples[0]),
            "peer, in-process": partial(bench.inside, peer, "remove", store, samples[0]),
            "many, in-process": partial(bench.inside, ours, "remove", store, samples),
            "floor": partial(_recode_seconds, touched, bench.work),
        }
        results = in_turn(bench.sizes.repeats, runs)
    floor = results["floor"]
    for mode, target in (("whole", 0.8), ("in-process", 1.0)):
        yield Row("remove 1", mode, results[f"ours, {mode}"], "peer", results[f"peer, {mode}"], target, floor=floor)
    for mode in ("whole", "in-process"):
        many, one = results[f"many, {mode}"], results[f"ours, {mode}"]
        yield Row(f"remove {MANY} of one chunk column", mode, many, "ours, 1 sample", one, 1.2, floor=floor)
    many, one = results["many, whole"], results["peer, whole"]
    yield Row(f"remove {MANY} of one chunk column", "whole", many, "peer, one by one", one, 0.03, times=MANY)


# ---- the command itself ---------------------------------------------------------------------


def command_line(bench: Bench) -> Iterator[Row]:
    """Start-up time of the command line."""
    runs = {"ours": partial(bench.ours.command, "--help"), "peer": partial(bench.peer.command, "--help")}
    results = in_turn(bench.sizes.quick_repeats, runs)
    yield Row("vczstore --help", "whole", results["ours"], "peer", results["peer"], target_seconds=0.25)


# ---- scaling --------------------------------------------------------------------------------


def scaling(bench: Bench) -> Iterator[Row]:
    """Append the same batch to stores of increasing size; the cost should not grow."""
    variants, ids_chunk, sizes = bench.sizes.scaling_variants, 10_000, bench.sizes.scaling
    batch = Cohort(variants, bench.sizes.batch, first=FAR, ids_chunk=ids_chunk).make(bench.work)
    plain = {n: Cohort(variants, n, calls="none", ids_chunk=ids_chunk).make(bench.work) for n in sizes}
    stores = {("plain Zarr", n): store for n, store in plain.items()}
    stores |= {("Icechunk", n): bench.icechunk(store) for n, store in plain.items()}
    written: dict[tuple[str, int], dict[Path, int]] = {}
    with Worker(bench.ours) as worker:

        def inside(key: tuple[str, int]) -> float:
            copy = fresh_copy(stores[key], bench.work)
            before = stamps(copy)
            seconds = worker.call("append", copy, batch).seconds
            written[key] = written_since(before, copy)
            return seconds

        runs = {(key, "time, in-process"): partial(inside, key) for key in stores}
        runs |= {
            (key, "time, whole"): partial(bench.whole, bench.ours, "append", store, batch)
            for key, store in stores.items()
        }
        results = in_turn(bench.sizes.quick_repeats, runs)
    for key, files in written.items():
        results[key, "bytes written"] = [float(sum(files.values()))]
        results[key, "bytes of the commit"] = [_commit_bytes(files)]
    for backend, quantities in (
        ("plain Zarr", ("time, whole", "time, in-process", "bytes written")),
        ("Icechunk", ("time, whole", "time, in-process", "bytes written", "bytes of the commit")),
    ):
        for measured in quantities:
            by_size = {n: results[(backend, n), measured] for n in sizes}
            yield from _growth(f"append {bench.sizes.batch:,} on {backend}", measured, by_size)
    full = {n: [_commit_bytes_of_full_store(bench, n, batch, ids_chunk)] for n in sizes}
    yield from _growth(f"append {bench.sizes.batch:,} on Icechunk, every chunk there", "bytes of the commit", full)


def _growth(operation: str, measured: str, by_size: Mapping[int, Samples]) -> Iterator[Row]:
    base, *others = by_size
    unit = "B" if "bytes" in measured else "s"
    for n in others:
        yield Row(f"{operation}, to {n:,}", measured, by_size[n], f"to {base:,}", by_size[base], 1.1, unit=unit)


def _commit_bytes(files: Mapping[Path, int]) -> float:
    """Bytes that an Icechunk commit writes in addition to the chunks."""
    return float(sum(size for path, size in files.items() if path.parts[0] != "chunks"))


def _commit_bytes_of_full_store(bench: Bench, samples: int, batch: Path, ids_chunk: int) -> float:
    """`_commit_bytes` of an append to a repository whose manifests have a reference for every cell of the grid."""
    full = Cohort(bench.sizes.scaling_variants, samples, calls="alike", ids_chunk=ids_chunk)
    repository = bench.icechunk(full.make(bench.work))
    before = stamps(repository)
    vczstore.append(repository, batch)
    return _commit_bytes(written_since(before, repository))


# ---- memory ---------------------------------------------------------------------------------


def memory(bench: Bench) -> Iterator[Row]:
    """Peak memory of an append in mid-chunk, and of a removal, on arrays larger than the memory limit."""
    limits, workers = {"allowed_mem": "420MB", "reserved_mem": "300MB"}, 2
    variants = bench.sizes.memory_variants
    store = Cohort(variants, 3 * CHUNK // 2, calls="tiled").make(bench.work)
    batch = Cohort(variants, bench.sizes.batch, first=FAR, calls="tiled").make(bench.work)
    sample = Cohort(variants, 1).ids()[0]
    cases: list[tuple[str, str, Callable[..., Plan], object]] = [
        (f"append {bench.sizes.batch:,}, in mid-chunk", "append", partial(vczstore.plan, "append"), batch),
        ("remove 1", "remove", partial(vczstore.plan, "remove"), sample),
    ]
    for name, operation, compiled, argument in cases:
        plan = compiled(store, argument, **limits)
        reserved = parse_size(limits["reserved_mem"])
        bound = float(reserved + workers * (plan.projected_mem - reserved))
        with Worker(bench.ours) as worker:
            peak = [float(worker.call(operation, store, argument, **limits, max_workers=workers).peak_rss)]
        yield Row(name, "peak memory", peak, f"projected, {workers} workers", [bound], 1.0, unit="B")
        yield Row(name, "peak memory", peak, "arrays touched", [float(plan.bytes_read)], unit="B")


def flat_memory(bench: Bench) -> Iterator[Row]:
    """Peak memory of harmonising with increasing numbers of variants, every 20th re-ordered; it should not grow."""
    normalised: dict[int, Samples] = {}
    appended: dict[int, Samples] = {}
    for variants in bench.sizes.flat:
        cohort = Cohort(variants, bench.sizes.flat_samples, calls="tiled", multiallelic=20)
        store, batch = cohort.make(bench.work), replace(cohort, first=FAR, swapped=True).make(bench.work)
        with Worker(bench.ours) as worker:
            call = worker.call("normalise", store, batch, fresh_folder(bench.work) / "out.vcz", max_workers=2)
        normalised[variants] = [float(call.peak_rss)]
        copy = fresh_copy(store, bench.work)
        with Worker(bench.ours) as worker:
            call = worker.call("append", copy, batch, harmonise=True, max_workers=2)
        appended[variants] = [float(call.peak_rss)]
    base, *others = bench.sizes.flat
    for operation, peaks in (("normalise", normalised), ("append, harmonised", appended)):
        for n in others:
            name = f"{operation}, {n:,} variants"
            yield Row(name, "peak memory", peaks[n], f"{base:,} variants", peaks[base], 1.25, unit="B")


# ---- jobs -----------------------------------------------------------------------------------


def jobs(bench: Bench) -> Iterator[Row]:
    """Run ten appends as one job and as ten commands; rerun the job; compile a job of a million chunks."""
    sizes, n = bench.sizes, 10
    store = bench.icechunk(Cohort(sizes.scaling_variants, sizes.samples, calls="tiled").make(bench.work))
    each = sizes.batch // n
    batches = [Cohort(sizes.scaling_variants, each, first=FAR + i * each).make(bench.work) for i in range(n)]

    def job(copy: Path) -> Path:
        file = copy.with_suffix(".yaml")
        steps = "".join(f"  - append: {batch}\n" for batch in batches)
        file.write_text(f"store: {copy}\nsteps:\n{steps}")
        return file

    def one_by_one() -> float:
        copy = fresh_copy(store, bench.work)
        return sum(bench.ours.command("append", copy, batch) for batch in batches)

    def together() -> float:
        return bench.ours.command("run", job(fresh_copy(store, bench.work)))

    def again() -> float:
        file = job(fresh_copy(store, bench.work))
        bench.ours.command("run", file)
        return bench.ours.command("run", file)

    results = in_turn(sizes.repeats, {"one by one": one_by_one, "together": together, "again": again})
    yield Row(f"{n} appends in one job", "whole", results["together"], f"{n} commands", results["one by one"], 0.5)
    yield Row(
        f"the same job again, {n} sources",
        "whole",
        results["again"],
        "the first run",
        results["together"],
        target_seconds=1.0,
    )
    columns = 10
    variants = 1_000_000 // (columns * len(CALLS)) * CHUNK
    large, many = (
        Cohort(variants, columns * CHUNK, first=first, calls="metadata").make(bench.work) for first in (0, FAR)
    )
    file = bench.work / "million.yaml"
    file.write_text(f"store: {large}\nsteps:\n  - append: {many}\n")
    with Worker(bench.ours) as worker:
        call = worker.call("plan_job", file)
    yield Row("compile a job of 1,000,000 chunks", "in-process", [call.seconds], "target", [10.0], 1.0)
    yield Row(
        "compile a job of 1,000,000 chunks", "peak memory", [float(call.peak_rss)], "target", [5e8], 1.0, unit="B"
    )


# ---- many sources ---------------------------------------------------------------------------


def many_sources(bench: Bench) -> Iterator[Row]:
    """Plan an append of single-sample sources; the cost should be linear in their number."""
    few, many = bench.sizes.sources // 10, bench.sizes.sources
    store = Cohort(20, 1).make(bench.work)
    sources = [Cohort(20, 1, first=FAR + i).make(bench.work) for i in range(many)]
    with Worker(bench.ours) as worker:

        def plan(n: int) -> float:
            return worker.call("append", store, *sources[:n], dry_run=True).seconds

        results = in_turn(min(3, bench.sizes.repeats), {n: partial(plan, n) for n in (few, many)})
    name = f"plan an append of {many:,} sources of 1 sample"
    yield Row(name, "in-process", results[many], f"of {few:,} sources", results[few], 1.2, times=10)
    yield Row(name, "in-process", results[many], "target", [5.0], 1.0)


# ---- tasks ----------------------------------------------------------------------------------


def tasks(bench: Bench) -> Iterator[Row]:
    """Overhead of tasks."""
    from tests.benchmarks import tasks as overhead

    work = overhead.N_TASKS * overhead.TASK_SECONDS / overhead.WORKERS
    for name in ("threads", "processes"):
        operation = f"{overhead.N_TASKS:,} tasks of 5 ms on {name}"
        yield Row(operation, "in-process", [overhead.scheduling(name)], "their work", [work], 2.0)
    seconds, peak = overhead.merging(bench.work / "merging")
    operation = f"merge what {overhead.N_FORKS * overhead.TIMES:,} tasks have written"
    yield Row(operation, "in-process", [seconds], "target", [10.0], 1.0)
    yield Row(operation, "peak memory", [peak], "target", [5e8], 1.0, unit="B")


# ---- floors ---------------------------------------------------------------------------------


def _copy_seconds(folder: Path, work: Path) -> float:
    target = fresh_folder(work)
    os.sync()
    started = perf_counter()
    subprocess.run(["cp", "-r", folder, target], check=True)
    return perf_counter() - started


def _column(store: Path, column: int) -> list[Path]:
    """The chunk files in one chunk column of all call arrays."""
    paths = (path for row in store.glob("call_*/c/*") for path in (row / f"{column}", row / f"{column}" / "0"))
    return sorted(path for path in paths if path.is_file())


def _recode_seconds(files: Sequence[Path], work: Path) -> float:
    """Seconds to decode and encode the chunks in files with threads on all cores."""
    codec, target = Blosc("zstd", CLEVEL, Blosc.BITSHUFFLE), fresh_folder(work)

    def recode(i: int) -> None:
        values = codec.decode(files[i].read_bytes())
        (target / str(i)).write_bytes(codec.encode(values))

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        os.sync()
        started = perf_counter()
        list(pool.map(recode, range(len(files))))
        return perf_counter() - started


MEASUREMENTS: Mapping[str, Callable[[Bench], Iterator[Row]]] = {
    "append": append,
    "append-unaligned": append_unaligned,
    "flexible": flexible,
    "harmonise": harmonise,
    "insert": insert,
    "gvcf": gvcf,
    "remove": remove,
    "help": command_line,
    "scaling": scaling,
    "memory": memory,
    "flat-memory": flat_memory,
    "jobs": jobs,
    "many-sources": many_sources,
    "tasks": tasks,
}
"""Measurements by the name accepted by ``--only``."""
