"""A small store on each backend, a batch for it, and functions that corrupt them with zarr-python alone."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
import zarr

import vczstore
from tests.support import cohort

FIELDS = (
    *("sample_id", "contig_id", "filter_id", "variant_contig", "variant_position", "variant_allele"),
    *("call_genotype", "call_genotype_phased", "call_DP", "call_AD", "call_GL", "call_FT", "call_FC"),
)
"""One field of each dtype and rank, which keeps the tests fast."""
KINDS = ("format3", "icechunk")
N_OLD, N_NEW, N_VARIANTS = 7, 4, 10
type Change = Callable[[zarr.Group], None]


def some_arrays(samples: Sequence[str], *, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a cohort with the fields in `FIELDS`."""
    arrays = cohort.make_arrays(N_VARIANTS, samples, seed=seed)
    return {name: arrays[name] for name in FIELDS}


OLD = some_arrays(cohort.ids(0, N_OLD))
NEW = some_arrays(cohort.ids(N_OLD, N_NEW), seed=1)


def repository_of(path: Path | str) -> icechunk.Repository:
    return icechunk.Repository.open(icechunk.local_filesystem_storage(str(path)))


def is_repository(path: Path) -> bool:
    return (path / "snapshots").is_dir()


def head(path: Path) -> str | None:
    """The ID of the latest snapshot on main; None on plain Zarr."""
    return repository_of(path).lookup_branch("main") if is_repository(path) else None


def read(path: Path) -> dict[str, np.ndarray]:
    with warnings.catch_warnings():
        # readers ignore chunks whose array has no metadata yet
        warnings.filterwarnings("ignore", "Object at .* is not recognized", zarr.errors.ZarrUserWarning)
        return cohort.read_vcz(cohort.icechunk_store(path) if is_repository(path) else path)


def edit(path: Path, change: Change) -> None:
    """Apply a change to a store with zarr-python alone, and commit it on Icechunk."""
    if not is_repository(path):
        change(zarr.open_group(path, mode="r+", use_consolidated=False))
        return
    session = repository_of(path).writable_session("main")
    change(zarr.open_group(session.store, mode="r+", use_consolidated=False))
    session.commit("changed by the test")


@contextmanager
def unchanged(*paths: Path) -> Iterator[None]:
    """Assert that the files and the snapshot of stores are the same after the block as before."""
    paths = tuple(path for path in paths if path.is_dir())
    before = [(head(path), cohort.digest(path)) for path in paths]
    yield
    assert [(head(path), cohort.digest(path)) for path in paths] == before


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a batch, and the store on plain Zarr and on Icechunk; created once, copied for each test."""
    folder = tmp_path_factory.mktemp("templates")
    cohort.write_vcz(folder / "format3", OLD)
    cohort.write_vcz(folder / "batch", NEW)
    vczstore.copy_store_to_icechunk(folder / "format3", folder / "icechunk", impl="zarr")
    return folder


@pytest.fixture
def batch(templates: Path, tmp_path: Path) -> Path:
    return shutil.copytree(templates / "batch", tmp_path / "batch.vcz")


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, templates: Path, tmp_path: Path) -> Path:
    return shutil.copytree(templates / request.param, tmp_path / "store.vcz")


@pytest.fixture
def repository(templates: Path, tmp_path: Path) -> Path:
    return shutil.copytree(templates / "icechunk", tmp_path / "store.vcz")


def put(name: str, values: np.ndarray, dims: Sequence[str] | None = None, **options: Any) -> Change:
    """Replace an array, or add one."""

    def change(group: zarr.Group) -> None:
        widths = {"variants": 4, "samples": 3}
        names = tuple(dims or cohort.DIMENSIONS[name])
        chunks = tuple(min(widths.get(d, n), n) or 1 for d, n in zip(names, values.shape, strict=True))
        dtype = "string" if values.dtype.kind in "OT" else values.dtype
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=dtype,
            dimension_names=names,
            overwrite=True,
            **{"chunks": chunks, **options},
        )
        if values.size:
            array[...] = values

    return change


def altered(values: np.ndarray, *items: tuple[Any, Any]) -> np.ndarray:
    """A copy with these `(index, value)` items set."""
    values = values.copy()
    for index, value in items:
        values[index] = value
    return values


def resize(name: str, *shape: int) -> Change:
    return lambda group: group[name].resize(shape)


def truncate(name: str, *coords: int) -> Change:
    """Truncate a chunk to half of its bytes."""

    def change(group: zarr.Group) -> None:
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        prototype = default_buffer_prototype()
        key = f"{name}/{group[name].metadata.encode_chunk_key(coords)}"
        value = sync(group.store.get(key, prototype))
        assert value is not None, key
        sync(group.store.set(key, prototype.buffer.from_bytes(value.to_bytes()[: len(value) // 2])))

    return change
