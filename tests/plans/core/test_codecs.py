"""Codecs and attributes that affect values: lossy re-encoding and attributes that change the meaning are refused."""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
import zarr.codecs.numcodecs
from click.testing import CliRunner

import vczstore
from tests.support import cohort
from tests.support.covering import in_turn
from tests.support.ways import IMPLS, WRITTEN, Way
from vczstore.cli.main import main
from vczstore.errors import IncompatibleError

pytestmark = [
    pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification"),
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
]

DAYS = "days since 1970-01-01"
LOSSY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "fixedscaleoffset": ("f4", "FixedScaleOffset", {"offset": 0, "scale": 100, "dtype": "<f4", "astype": "u1"}),
    "quantize": ("f4", "Quantize", {"digits": 1, "dtype": "<f4"}),
    "bitround": ("f4", "BitRound", {"keepbits": 3}),
    "astype": ("i4", "AsType", {"encode_dtype": "i1", "decode_dtype": "<i4"}),
    "delta": ("f4", "Delta", {"dtype": "<f4"}),
}
LOSSLESS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "shuffle": ("f4", "Shuffle", {"elementsize": 4}),
    "delta": ("i4", "Delta", {"dtype": "<i4"}),
    "packbits": ("b1", "PackBits", {}),
}


def make_arrays(samples: list[str], *, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays with genotypes only; the tests add the field under test."""
    return cohort.make_arrays(10, samples, seed=seed, fields=["call_genotype"])


def values_of(dtype: str, n_samples: int, seed: int) -> np.ndarray:
    """Values that cannot be encoded as 8-bit hundredths."""
    values = np.random.default_rng(seed).uniform(0, 600, (10, n_samples))
    return (values > 300 if dtype == "b1" else values).astype(dtype)


def put(store: Path, values: np.ndarray, codec: tuple[str, dict[str, Any]] | None = None, **attributes: Any) -> None:
    """Add the field call_X, optionally with a codec."""
    group = zarr.open_group(store, use_consolidated=False)
    options: dict[str, Any] = {}
    if group.metadata.zarr_format == 2:
        attributes["_ARRAY_DIMENSIONS"] = ["variants", "samples"]
    else:
        options["dimension_names"] = ("variants", "samples")
    if codec is not None:
        name, config = codec
        module = numcodecs if group.metadata.zarr_format == 2 else zarr.codecs.numcodecs
        # in format 3, a bytes-to-bytes codec is a compressor
        is_filter = group.metadata.zarr_format == 2 or name != "Shuffle"
        options["filters" if is_filter else "compressors"] = [getattr(module, name)(**config)]
    array = group.create_array(
        "call_X", shape=values.shape, dtype=values.dtype, chunks=(4, 3), attributes=attributes, **options
    )
    array[...] = values


def make(folder: Path, kind: str, codec: tuple[str, dict[str, Any]] | None, dtype: str) -> tuple[Path, Path]:
    """A store of 7 samples with the filtered field, and a batch of 5 samples with the unfiltered one."""
    store, batch = folder / "store.vcz", folder / "batch.vcz"
    plain = folder / "plain.vcz" if kind == "icechunk" else store
    cohort.write_vcz(plain, make_arrays(cohort.ids(0, 7)), zarr_format=2 if kind == "format2" else 3)
    put(plain, values_of(dtype, 7, 0), codec)
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(plain, store)
    cohort.write_vcz(batch, make_arrays(cohort.ids(7, 5), seed=1))
    put(batch, values_of(dtype, 5, 1))
    return store, batch


OPERATIONS = {
    "append": lambda store, batch: ["append", str(store), str(batch)],
    "harmonise": lambda store, batch: ["append", "--harmonise", str(store), str(batch)],
    "remove": lambda store, batch: ["remove", str(store), "S0003"],
}


@in_turn(kind=WRITTEN, operation=list(OPERATIONS), name=list(LOSSY))
@pytest.mark.slow
def test_lossy_codecs_are_refused(tmp_path: Path, kind: str, operation: str, name: str) -> None:
    dtype, codec, config = LOSSY[name]
    store, batch = make(tmp_path, kind, (codec, config), dtype)
    before = cohort.digest(store)
    args = OPERATIONS[operation](store, batch)
    for extra in ([], ["--dry-run"]):
        result = CliRunner().invoke(main, [*args, *extra])
        assert result.exit_code == 1, result.output
        (line,) = result.stderr.splitlines()
        assert f"call_X of {store} is encoded with {name}, which is not known to be lossless" in line
        assert cohort.digest(store) == before


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.slow
def test_update_and_compact_refuse_lossy_codecs(tmp_path: Path, kind: str) -> None:
    dtype, codec, config = LOSSY["fixedscaleoffset"]
    store, _ = make(tmp_path, kind, (codec, config), dtype)
    same = tmp_path / "same.vcz"
    cohort.write_vcz(same, make_arrays(cohort.ids(2, 3), seed=2))
    put(same, values_of(dtype, 3, 2))
    before = cohort.digest(store)
    with pytest.raises(IncompatibleError, match=r"update: call_X of .* is encoded with fixedscaleoffset"):
        vczstore.update(store, same)
    assert cohort.digest(store) == before
    # a removed sample whose ID was blanked by another writer
    ids = cohort.read_vcz(store if kind != "icechunk" else cohort.icechunk_store(store))["sample_id"].tolist()
    if kind != "icechunk":
        group = zarr.open_group(store, use_consolidated=False)
        group["sample_id"][...] = np.array(["", *ids[1:]], dtype=object)
        before = cohort.digest(store)
        with pytest.raises(IncompatibleError, match=r"compact: call_X of .* is encoded with fixedscaleoffset"):
            vczstore.compact(store)
        assert cohort.digest(store) == before


@in_turn(kind=WRITTEN, impl=IMPLS, name=list(LOSSLESS))
@pytest.mark.slow
def test_lossless_filters_are_accepted(tmp_path: Path, kind: str, impl: str, name: str) -> None:
    dtype, codec, config = LOSSLESS[name]
    store, batch = make(tmp_path, kind, (codec, config), dtype)
    vczstore.append(store, batch, impl=impl)
    expected = np.concatenate([values_of(dtype, 7, 0), values_of(dtype, 5, 1)], axis=1)
    np.testing.assert_array_equal(Way(kind, impl).read(store)["call_X"], expected)


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.slow
def test_lossy_chunks_are_accepted_if_copied_verbatim(tmp_path: Path, kind: str) -> None:
    """Chunks of the same encoding are copied; the implementation that would re-encode them raises an error."""
    dtype, codec, config = LOSSY["fixedscaleoffset"]
    store, batch = tmp_path / "store.vcz", tmp_path / "batch.vcz"
    plain = tmp_path / "plain.vcz" if kind == "icechunk" else store
    for path, first, n, seed in ((plain, 0, 6, 0), (batch, 6, 5, 1)):
        zarr_format = 2 if kind == "format2" else 3
        cohort.write_vcz(path, make_arrays(cohort.ids(first, n), seed=seed), zarr_format=zarr_format)
        put(path, values_of(dtype, n, seed), (codec, config))
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(plain, store)
    parts = [cohort.read_vcz(path)["call_X"] for path in (plain, batch)]
    before = cohort.digest(store)
    with pytest.raises(IncompatibleError, match="not known to be lossless"):
        vczstore.append(store, batch, impl="zarr")
    assert cohort.digest(store) == before
    vczstore.append(store, batch)
    np.testing.assert_array_equal(Way(kind, "cubed").read(store)["call_X"], np.concatenate(parts, axis=1))


def base64_of(number: float) -> str:
    """Encode a float in base64, as xarray writes the fill value of a float in format 3."""
    return base64.b64encode(struct.pack("<d", number)).decode()


@pytest.mark.parametrize(
    ("kind", "ours", "theirs", "fits"),
    [
        ("format2", {"scale_factor": 0.01}, {"scale_factor": 0.005}, False),
        ("format3", {}, {"scale_factor": 0.01}, False),
        ("format2", {"add_offset": 3}, {}, False),
        ("format3", {"units": DAYS}, {"units": "hours since 1970-01-01"}, False),
        ("format2", {"units": DAYS, "calendar": "noleap"}, {"units": DAYS}, False),
        ("format3", {"flag_values": [0, 1]}, {"flag_values": [1, 0]}, False),
        ("format2", {"_FillValue": 0.0}, {}, False),
        ("format3", {}, {"_FillValue": base64_of(0.0)}, False),
        ("format2", {"scale_factor": 0.01}, {"scale_factor": 0.01}, True),
        ("format3", {"scale_factor": 1.0, "add_offset": 0}, {}, True),
        ("format2", {"_FillValue": base64_of(float("nan"))}, {}, True),
        ("format3", {"_FillValue": "NaN"}, {}, True),
        ("format2", {"description": "dose"}, {"description": "a dose"}, True),
    ],
)
def test_attributes_that_define_the_meaning_of_values(
    tmp_path: Path, kind: str, ours: dict[str, Any], theirs: dict[str, Any], fits: bool
) -> None:
    store, batch = tmp_path / "store.vcz", tmp_path / "batch.vcz"
    for path, first, n, attributes in ((store, 0, 7, ours), (batch, 7, 5, theirs)):
        arrays = make_arrays(cohort.ids(first, n))
        cohort.write_vcz(path, arrays, zarr_format=2 if kind == "format2" else 3)
        put(path, values_of("f4", n, first), **attributes)
    if fits:
        vczstore.append(store, batch)
        expected = np.concatenate([values_of("f4", 7, 0), values_of("f4", 5, 7)], axis=1)
        np.testing.assert_array_equal(cohort.read_vcz(store)["call_X"], expected)
        return
    before = cohort.digest(store)
    for options in ({}, {"harmonise": True}):
        with pytest.raises(IncompatibleError, match=r"call_X of .* has the attribute .*, the store has") as caught:
            vczstore.append(store, batch, **options)
        differs = next(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
        assert f"the attribute {differs} " in str(caught.value)
    assert cohort.digest(store) == before


def test_a_copy_names_the_lossy_source(tmp_path: Path) -> None:
    dtype, codec, config = LOSSY["fixedscaleoffset"]
    cohort.write_vcz(tmp_path / "source.vcz", make_arrays(cohort.ids(0, 6)))
    put(tmp_path / "source.vcz", values_of(dtype, 6, 0), (codec, config))
    with pytest.raises(IncompatibleError, match=rf"call_X of {tmp_path}/source\.vcz is encoded with"):
        vczstore.copy_store_to_icechunk(tmp_path / "source.vcz", tmp_path / "out.icechunk", impl="zarr")
