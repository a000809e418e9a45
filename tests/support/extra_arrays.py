"""A small store, and a function to add arrays of any dimensions to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr
from click.testing import CliRunner

from tests.support import cohort
from vczstore.cli.main import main

N_SAMPLES, N_VARIANTS = 5, 7


def put(store: object, name: str, values: np.ndarray, dims: tuple[str | None, ...] | None, zarr_format: int) -> None:
    """Add an array to a group with zarr-python alone."""
    group = zarr.open_group(store, mode="a")  # type: ignore[arg-type]
    options = {"dimension_names": dims} if zarr_format == 3 else {}
    chunks = tuple(max(1, n) for n in values.shape)
    array = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunks, **options)  # type: ignore[arg-type]
    array[...] = values
    if zarr_format == 2 and dims is not None:
        array.attrs["_ARRAY_DIMENSIONS"] = list(dims)


def make(
    folder: Path,
    *,
    zarr_format: int = 3,
    n: int = N_SAMPLES,
    start: int = 0,
    n_variants: int = N_VARIANTS,
    **layout: object,
) -> Path:
    """Write a store without the fields that tests add, by default of five samples and seven variants."""
    arrays = cohort.make_arrays(N_VARIANTS, cohort.ids(start, n), seed=start)
    arrays = {k: v[:n_variants] if cohort.DIMENSIONS[k][0] == "variants" else v for k, v in arrays.items()}
    for name in ("call_DP", "dosage", "sample_sex"):
        del arrays[name]
    cohort.write_vcz(folder, arrays, zarr_format=zarr_format, **layout)  # type: ignore[arg-type]
    return folder


def refused(store: Path, name: str, *arguments: str) -> None:
    """Assert that a command exits with status 1 and one line that names the array, and leaves the store unchanged."""
    before = cohort.digest(store)
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 1, result.output
    assert len(result.output.splitlines()) == 1
    assert f": {name} " in result.output
    assert cohort.digest(store) == before
