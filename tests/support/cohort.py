"""Cohorts for the tests: VCZs with every dtype, written and read with zarr-python alone, and a NumPy model of edits."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import vczstore

MISSING = np.array([0x7F800001], "u4").view("f4")[0]
FILL = np.array([0x7F800002], "u4").view("f4")[0]
"""The NaNs of VCF Zarr for a missing float and for padding."""

DIMENSIONS = {
    "sample_id": ("samples",),
    "sample_sex": ("samples",),
    "sample_pca": ("samples", "components"),
    "contig_id": ("contigs",),
    "filter_id": ("filters",),
    "variant_contig": ("variants",),
    "variant_position": ("variants",),
    "variant_allele": ("variants", "alleles"),
    "variant_AC": ("variants",),
    "variant_filter": ("variants", "filters"),
    "call_genotype": ("variants", "samples", "ploidy"),
    "call_genotype_mask": ("variants", "samples", "ploidy"),
    "call_genotype_phased": ("variants", "samples"),
    "call_DP": ("variants", "samples"),
    "call_AD": ("variants", "samples", "alleles"),
    "call_GL": ("variants", "samples", "genotypes"),
    "call_FT": ("variants", "samples"),
    "call_FC": ("variants", "samples", "FORMAT_FC_dim"),
    "dosage": ("variants", "samples"),
    "local_matrix": ("variants", "samples", "alleles", "ploidy"),
}
"""Every array of a cohort: 1-D to 4-D, with and without the prefix ``call_``."""


def more_arrays(dimensions: Mapping[str, tuple[str, ...]]) -> Any:
    """Return a fixture for all tests of a module, which adds arrays to `DIMENSIONS`."""

    @pytest.fixture(autouse=True)
    def patched(monkeypatch: pytest.MonkeyPatch) -> None:
        for name, dims in dimensions.items():
            monkeypatch.setitem(DIMENSIONS, name, dims)

    return patched


SOME = ("sample_sex", "call_genotype", "call_DP", "call_AD", "call_GL", "call_FT")
"""Fields for tests that do not depend on them. tests/system/test_matrix.py tests all fields on every kind of store."""


def make_arrays(
    n_variants: int, samples: Sequence[str], *, seed: int = 0, fields: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """
    The arrays of a cohort. Variants are the same for all seeds, calls are not.

    `fields` restricts the arrays with a samples axis: every array adds 10 ms or more to each operation.
    """
    arrays = _all_arrays(n_variants, samples, seed)
    return {
        name: values
        for name, values in arrays.items()
        if fields is None or name in ("sample_id", *fields) or "samples" not in DIMENSIONS[name]
    }


def some_arrays(n_variants: int, samples: Sequence[str], *, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a cohort with the fields in `SOME`."""
    return make_arrays(n_variants, samples, seed=seed, fields=SOME)


def _all_arrays(n_variants: int, samples: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    n, v = len(samples), n_variants
    sites, rng = np.random.default_rng(99), np.random.default_rng([seed, n])

    def text(size: tuple[int, ...]) -> np.ndarray:
        return rng.choice(np.array(["", ".", "PASS", "q10;s50", "héllo", "x" * 40], dtype=object), size)

    gl = rng.normal(size=(v, n, 3)).astype("f4")
    gl[rng.random(gl.shape) < 0.2] = MISSING
    gl[rng.random(gl.shape) < 0.1] = FILL
    genotype = np.minimum(rng.integers(-2, 3, (v, n, 2)), 1).astype("i1")
    return {
        "sample_id": np.array(list(samples), dtype=object),
        "sample_sex": rng.integers(-1, 3, n).astype("i1"),
        "sample_pca": rng.normal(size=(n, 4)).astype("f4"),
        "contig_id": np.array(["chr1", "chrX"], dtype=object),
        "filter_id": np.array(["PASS", "q10"], dtype=object),
        "variant_contig": np.sort(sites.integers(0, 2, v)).astype("i1"),
        "variant_position": np.arange(1, v + 1, dtype="i4") * 10,
        "variant_allele": np.stack([sites.choice(list("AC"), v), sites.choice(list("GT"), v)], axis=1).astype(object),
        "variant_AC": sites.integers(0, 9, v).astype("i2"),
        "call_genotype": genotype,
        "call_genotype_mask": genotype < 0,
        "call_genotype_phased": rng.random((v, n)) < 0.5,
        "call_DP": rng.integers(-1, 3000, (v, n)).astype("i2"),
        "call_AD": rng.integers(-2, 99, (v, n, 2)).astype("i4"),
        "call_GL": gl,
        "call_FT": text((v, n)),
        "call_FC": rng.choice(np.array(list(".ACGT"), dtype="U1"), (v, n, 2)),
        "dosage": rng.random((v, n)).astype("f4"),
        "local_matrix": rng.integers(-1, 4, (v, n, 2, 2)).astype("i1"),
    }


def write_vcz(
    store: Path | str | zarr.abc.store.Store,
    arrays: dict[str, np.ndarray],
    *,
    zarr_format: int = 3,
    variants_chunk: int = 4,
    samples_chunk: int = 3,
    shards: tuple[int, int] | None = None,
    compressors: object = "auto",
    fill_values: dict[str, object] | None = None,
    consolidated: bool = False,
    skip_empty: bool = False,
) -> None:
    """
    Write arrays as a VCZ; `shards` is the number of chunks per shard along variants and samples.

    For a path, the files are cached in memory and written again when a test repeats the same call in this process.
    """
    layout = {
        "zarr_format": zarr_format,
        "variants_chunk": variants_chunk,
        "samples_chunk": samples_chunk,
        "shards": shards,
        "compressors": compressors,
        "fill_values": fill_values,
        "consolidated": consolidated,
        "skip_empty": skip_empty,
    }
    if isinstance(store, zarr.abc.store.Store):
        _write(store, arrays, **layout)
    else:
        put(store, _vcz_files(pickle.dumps((arrays, layout))))


def write_icechunk(folder: Path | str, arrays: dict[str, np.ndarray], **layout: Any) -> None:
    """Write a VCZ on Icechunk, via plain Zarr, with the options of `write_vcz`; cached in memory, too."""
    put(folder, _icechunk_files(pickle.dumps((arrays, layout))))


@lru_cache(maxsize=200)
def _vcz_files(pickled: bytes) -> dict[str, bytes]:
    """The files of a VCZ, given its pickled arrays and layout, which are the cache key."""
    arrays, layout = pickle.loads(pickled)
    with warnings.catch_warnings():
        # tests that consolidate the metadata of format 3 do so on purpose
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", zarr.errors.ZarrUserWarning)
        store = zarr.storage.MemoryStore()
        _write(store, arrays, **layout)
    return {name: content.to_bytes() for name, content in store._store_dict.items()}


@lru_cache(maxsize=50)
def _icechunk_files(pickled: bytes) -> dict[str, bytes]:
    """The files of a repository, given the pickled arrays and layout of a VCZ."""
    arrays, layout = pickle.loads(pickled)
    with tempfile.TemporaryDirectory() as name:
        write_vcz(Path(name, "plain"), arrays, **layout)
        return _as_icechunk(frozenset(files_of(Path(name, "plain")).items()))


def copy_to_icechunk(plain: Path, repository: Path) -> Path:
    """Copy a VCZ on plain Zarr to Icechunk; cached in memory, too."""
    put(repository, _as_icechunk(frozenset(files_of(plain).items())))
    return repository


@lru_cache(maxsize=100)
def _as_icechunk(plain: frozenset[tuple[str, bytes]]) -> dict[str, bytes]:
    """The files of a repository, given the files of a VCZ on plain Zarr."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        put(folder / "plain", dict(plain))
        vczstore.copy_store_to_icechunk(folder / "plain", folder / "repository", impl="zarr")
        return files_of(folder / "repository")


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of all files below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(folder: Path | str, files: dict[str, bytes]) -> None:
    """Write files below a folder; none of them may exist."""
    created = set()
    for name, content in files.items():
        path = Path(folder, name)
        if path.parent not in created:
            path.parent.mkdir(parents=True, exist_ok=True)
            created.add(path.parent)
        with path.open("xb") as file:
            file.write(content)


def _write(
    store: zarr.abc.store.Store,
    arrays: dict[str, np.ndarray],
    *,
    zarr_format: int,
    variants_chunk: int,
    samples_chunk: int,
    shards: tuple[int, int] | None,
    compressors: object,
    fill_values: dict[str, object] | None,
    consolidated: bool,
    skip_empty: bool,
) -> None:
    attributes = {"vcf_zarr_version": "0.4", "source": "tests"}
    root = zarr.create_group(store, zarr_format=zarr_format, attributes=attributes)
    width = {"variants": variants_chunk, "samples": samples_chunk}
    for name, values in arrays.items():
        dims = DIMENSIONS[name]
        chunks = tuple(width.get(d, max(1, n)) for d, n in zip(dims, values.shape, strict=True))
        options: dict[str, object] = {"compressors": compressors}
        if zarr_format == 3:
            options["dimension_names"] = dims
            if shards and "samples" in dims and "variants" in dims:
                factor = dict(zip(("variants", "samples"), shards, strict=True))
                options["shards"] = tuple(c * factor.get(d, 1) for d, c in zip(dims, chunks, strict=True))
        else:
            options["attributes"] = {"_ARRAY_DIMENSIONS": list(dims)}
        if fill_values and name in fill_values:
            options["fill_value"] = fill_values[name]
        array = root.create_array(
            name,
            shape=values.shape,
            dtype="string" if values.dtype.kind in "OT" else values.dtype,
            chunks=chunks,
            config={"write_empty_chunks": not skip_empty},
            **options,
        )
        if values.size:
            array[...] = values
    if consolidated:
        zarr.consolidate_metadata(store, zarr_format=zarr_format)


def read_vcz(store: Path | str | zarr.abc.store.Store) -> dict[str, np.ndarray]:
    """All arrays of a VCZ, read with zarr-python."""
    group = zarr.open_group(store, mode="r", use_consolidated=False)
    return {name: np.asarray(array[...]) for name, array in group.arrays()}


def in_memory(folder: Path) -> zarr.storage.MemoryStore:
    """A Zarr store in memory with the files of a folder."""
    memory = zarr.storage.MemoryStore()
    for path in folder.rglob("*"):
        if path.is_file():
            value = zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(path.read_bytes())
            memory.set_sync(path.relative_to(folder).as_posix(), value)
    return memory


def icechunk_store(path: Path | str) -> zarr.abc.store.Store:
    """A read-only Zarr store of the repository's main branch, opened with icechunk alone."""
    import icechunk

    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(path)))
    return repository.readonly_session("main").store


def expected_append(old: dict[str, np.ndarray], *batches: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Model of an append: concatenation along the samples axis."""
    result = dict(old)
    for name, values in old.items():
        if "samples" in DIMENSIONS[name]:
            axis = DIMENSIONS[name].index("samples")
            parts = [values, *(b[name].astype(values.dtype) for b in batches)]
            result[name] = np.concatenate(parts, axis=axis)
    return result


def expected_update(old: dict[str, np.ndarray], *sources: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Model of an update: the values of each source sample replace those of the same sample in the store."""
    result = {name: values.copy() for name, values in old.items()}
    index = {sample: i for i, sample in enumerate(old["sample_id"].tolist())}
    for source in sources:
        for name, values in result.items():
            if "samples" in DIMENSIONS[name]:
                before = (slice(None),) * DIMENSIONS[name].index("samples")
                for i, sample in enumerate(source["sample_id"].tolist()):
                    values[(*before, index[sample])] = source[name][(*before, i)]
    return result


def select(arrays: dict[str, np.ndarray], samples: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays restricted to these samples, in this order."""
    indices = [arrays["sample_id"].tolist().index(sample) for sample in samples]
    axes = {name: DIMENSIONS[name].index("samples") for name in arrays if "samples" in DIMENSIONS[name]}
    return {n: np.take(a, indices, axis=axes[n]) if n in axes else a for n, a in arrays.items()}


def expected_remove(old: dict[str, np.ndarray], samples: Sequence[str]) -> dict[str, np.ndarray]:
    """Model of a removal: the missing values of the VCF Zarr specification replace all values of the samples."""
    removed = np.isin(old["sample_id"].astype(object), list(samples))
    result = dict(old)
    for name, values in old.items():
        if "samples" in DIMENSIONS[name]:
            axis = DIMENSIONS[name].index("samples")
            missing = {"i": -1, "f": MISSING, "b": name.endswith("_mask")}.get(values.dtype.kind, ".")
            changed = values.copy()
            changed[(*([slice(None)] * axis), removed)] = "" if name == "sample_id" else missing
            result[name] = changed
    return result


def expected_compact(old: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Model of a compaction: ``array[:, keep]``."""
    keep = old["sample_id"].astype(object) != ""
    axes = {name: DIMENSIONS[name].index("samples") for name in old if "samples" in DIMENSIONS[name]}
    return {n: np.compress(keep, a, axis=axes[n]) if n in axes else a for n, a in old.items()}


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Assert that arrays are equal bit for bit, NaN payloads included; strings are compared by value."""
    assert sorted(actual) == sorted(expected)
    for name, values in expected.items():
        array = actual[name]
        assert array.shape == values.shape, name
        if values.dtype.kind == "f":
            assert array.dtype == values.dtype, name
            np.testing.assert_array_equal(array.view("u4"), values.view("u4"), err_msg=name)
        elif values.dtype.kind in "OTU":
            np.testing.assert_array_equal(array.astype(object), values.astype(object), err_msg=name)
        else:
            assert array.dtype == values.dtype, name
            np.testing.assert_array_equal(array, values, err_msg=name)


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path; to assert that nothing has changed."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def ids(start: int, n: int) -> list[str]:
    """Sample IDs, numbered from `start`."""
    return [f"S{i:04d}" for i in range(start, start + n)]
