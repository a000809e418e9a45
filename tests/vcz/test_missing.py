"""Missing and fill values of every dtype, and the mask arrays of VCF Zarr 0.4."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import vczstore
from tests.support import cohort, vcf
from tests.support.ways import IMPLS

BITS = {2: (0x7C01, 0x7C02), 4: (0x7F800001, 0x7F800002), 8: (0x7FF0000000000001, 0x7FF0000000000002)}
"""Missing and fill NaNs by size in bytes: VCF Zarr 0.4, "Missing and fill values"; half precision as in vcztools."""
HEADER = """##fileformat=VCFv4.2
##FILTER=<ID=PASS,Description="All filters passed">
##contig=<ID=1,length=248956422>
##contig=<ID=X,length=156040895>
##INFO=<ID=AF,Number=A,Type=Float,Description="af">
##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">
##FORMAT=<ID=AD,Number=R,Type=Integer,Description="AD">
##FORMAT=<ID=GP,Number=G,Type=Float,Description="GP">
##FORMAT=<ID=DS,Number=1,Type=Float,Description="DS">
##FORMAT=<ID=ST,Number=A,Type=String,Description="ST">
#CHROM	POS	ID	REF	ALT	QUAL	FILTER	INFO	FORMAT	"""
FORMAT = "GT:AD:GP:DS:ST"
FIRST = (
    f"1	3000000	.	A	C,G	.	PASS	AF=0.5,0.1	{FORMAT}	"
    "0/1:1,2,3:0,1,0,0,0,0:1.25:a,b	0/2:4,.,6:0,0,.,0,1,0:.:c,.",
    f"1	3000010	.	A	C	.	PASS	AF=0.5	{FORMAT}	0/1:1,2:0,1,0:.:a	./.:.:.:0.5:.",
    f"X	3000020	.	A	C	.	PASS	AF=0.5	{FORMAT}	0/1:7,8:0,1,0:2:a	0/0:8,.:1,0,0:.:b",
)
SECOND = (
    f"1	3000000	.	A	G,C	.	PASS	AF=0.5,0.1	{FORMAT}	0/1:10,20,30:0.125,0.75,0,0.0625,0.0625,0:.:x,y",
    f"1	3000010	.	A	T	.	PASS	AF=0.5	{FORMAT}	0/1:10,20:0.125,0.75,0.125:0.5:z",
)
SHORT = (f"1	3000000	.	A	G	.	PASS	AF=0.5	{FORMAT}	0/1:5,6:0.25,0.5,0.25:.:s",)


def make(folder: Path, name: str, samples: str, records: Sequence[str], zarr_format: int = 3) -> Path:
    """Write a VCF, and convert it with bio2zarr; `samples` are separated by spaces."""
    text = HEADER + "\t".join(samples.split()) + "\n" + "\n".join(records) + "\n"
    vcf.write_vcf(folder / f"{name}.vcf.gz", text)
    return vcf.to_vcz(folder / f"{name}.vcf.gz", folder / f"{name}.vcz", zarr_format, 2, 2)


def as_float(values: np.ndarray, dtype: str) -> np.ndarray:
    """Cast single-precision floats to `dtype`, with that dtype's NaNs for missing and fill."""
    with np.errstate(invalid="ignore"):
        result = values.astype(dtype)
    bits = result.view(dtype.replace("f", "u"))
    for old, new in zip(BITS[4], BITS[int(dtype[-1])], strict=True):
        bits[values.view("u4") == old] = new
    return result


def change(store: Path, arrays: dict[str, np.ndarray], *, like: dict[str, str] | None = None) -> None:
    """Replace arrays of a VCZ, or add them with the layout of the array that `like` names."""
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    for name, values in arrays.items():
        old: Any = group[(like or {}).get(name, name)]
        options = {"dimension_names": old.metadata.dimension_names} if group.metadata.zarr_format == 3 else {}
        array = group.create_array(
            name,
            shape=values.shape,
            dtype="string" if values.dtype.kind in "OT" else values.dtype,
            chunks=old.chunks,
            overwrite=True,
            attributes=dict(old.attrs),
            **options,
        )
        array[...] = values


def with_floats(store: Path, dtype: str) -> Path:
    """Copy a VCZ, with its floats cast to `dtype`."""
    copy = store.with_name(f"{store.stem}-{dtype[1:]}{'b' if dtype[0] == '>' else ''}.vcz")
    shutil.copytree(store, copy)
    change(copy, {n: as_float(a, dtype) for n, a in cohort.read_vcz(store).items() if a.dtype == "f4"})
    return copy


def masks(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Expected masks of all fields that may have missing values: VCF Zarr 0.4, "Missing and fill values"."""
    result = {}
    for name, values in arrays.items():
        if name.startswith(("call_", "variant_")) and values.dtype.kind in "ifOT" and not name.endswith("contig"):
            if values.dtype.kind == "f":
                missing, fill = (values.view(f"u{values.itemsize}") == bits for bits in BITS[values.itemsize])
            else:
                sentinels = (-1, -2) if values.dtype.kind == "i" else (".", "")
                missing, fill = (values.astype(object) == sentinel for sentinel in sentinels)
            result |= {f"{name}_mask": missing | fill, f"{name}_fill": fill}
    return result


def with_masks(store: Path) -> Path:
    """Add the mask arrays of all fields to a VCZ."""
    mask_arrays = masks({n: a for n, a in cohort.read_vcz(store).items() if not n.endswith("_mask")})
    change(store, mask_arrays, like={name: name.removesuffix("_mask").removesuffix("_fill") for name in mask_arrays})
    return store


def check_masks(store: Path, *, icechunk: bool = False) -> dict[str, np.ndarray]:
    """Assert that every mask agrees with its values, and return the arrays."""
    arrays = cohort.read_vcz(cohort.icechunk_store(store) if icechunk else store)
    expected = masks({n: a for n, a in arrays.items() if not n.endswith(("_mask", "_fill"))})
    assert expected.keys() <= arrays.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values, err_msg=name)
    return arrays


# ---- floats ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("zarr_format", "dtype"), [(2, "<f8"), (2, ">f8"), (3, "<f8"), (3, "<f2")])
@pytest.mark.slow
def test_floats_of_every_width_behave_like_single_precision(tmp_path: Path, zarr_format: int, dtype: str) -> None:
    """
    The oracle is vcztools, which prints the same for every width, and "." for missing values.

    It cannot read big-endian floats. Half-precision INFO is not recomputed, since it cannot hold the values.
    """
    store = make(tmp_path, "store", "A1 A2", FIRST, zarr_format)
    batch = make(tmp_path, "batch", "B1", SECOND, zarr_format)
    shown, results = [], []
    for target, source in ((store, batch), (with_floats(store, dtype), with_floats(batch, dtype))):
        vczstore.append(target, source, harmonise=True, allow_new_alleles=True, impl="zarr")
        vczstore.remove(target, ["A1"], recompute=[] if dtype == "<f2" else ["AF"], impl="zarr")
        shown += [] if dtype[0] == ">" else [vcf.records(vcf.vcztools_view(target))]
        results.append(cohort.read_vcz(target))
    assert shown[:1] == shown[1:]
    assert "nan" not in str(shown).lower()
    floats = {name: values for name, values in results[0].items() if values.dtype == "f4"}
    assert {"call_DS", "call_GP", "variant_AF"} <= floats.keys()
    for name, values in floats.items():
        bits = as_float(values, dtype).view(dtype.replace("f", "u"))
        np.testing.assert_array_equal(results[1][name].view(bits.dtype), bits, err_msg=name)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.slow
def test_single_precision_is_appended_to_double_precision(tmp_path: Path, impl: str) -> None:
    store = with_floats(make(tmp_path, "store", "A1 A2", FIRST), "<f8")
    batch = make(tmp_path, "batch", "B1 B2 B3", [line + "\t" + line.split("\t")[-1] for line in FIRST])
    before, new = cohort.read_vcz(store), cohort.read_vcz(batch)
    vczstore.append(store, batch, impl=impl)
    vczstore.update(store, batch, impl=impl)
    after = cohort.read_vcz(store)
    for name in ("call_GP", "call_DS"):
        expected = np.concatenate([before[name], as_float(new[name], "<f8")], axis=1)
        np.testing.assert_array_equal(after[name].view("u8"), expected.view("u8"))


@pytest.mark.slow
def test_ordinary_nan_of_a_removed_sample_is_a_value(tmp_path: Path) -> None:
    """Readers show it as ``nan``, unlike the NaNs for missing and fill."""
    store = with_floats(make(tmp_path, "store", "A1 A2", FIRST), "<f8")
    vczstore.remove(store, ["A1"])
    assert not vczstore.verify(store).errors
    array: Any = zarr.open_group(store, mode="r+")["call_DS"]
    array[0, 0] = np.nan
    (damage,) = vczstore.verify(store).errors
    assert damage.array == "call_DS"
    assert "values of removed samples" in damage.what


# ---- masks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["format2", "format3", "icechunk"])
@pytest.mark.slow
def test_masks_after_a_harmonised_append(tmp_path: Path, kind: str) -> None:
    zarr_format = 2 if kind == "format2" else 3
    store = with_masks(make(tmp_path, "store", "A1 A2", FIRST, zarr_format))
    batch = with_masks(make(tmp_path, "batch", "B1", SECOND, zarr_format))
    short = with_masks(make(tmp_path, "short", "C1", SHORT, zarr_format))
    if kind == "icechunk":
        vczstore.copy_store_to_icechunk(store, tmp_path / "store.icechunk")
        store = tmp_path / "store.icechunk"
    vczstore.append(store, batch, harmonise=True, new_variants="drop", haploid_contigs=["X"])
    vczstore.append(store, short, harmonise=True, absent="reference", haploid_contigs=["X"])
    arrays = check_masks(store, icechunk=kind == "icechunk")
    # variants absent from `batch` are missing, those absent from `short` reference; calls on X are haploid
    assert arrays["call_genotype_fill"][1:, 2:].tolist() == [[[False, False]] * 2, [[False, True]] * 2]
    assert arrays["call_genotype_mask"][1:, 2:].tolist() == [
        [[True, True], [False, False]],
        [[True, True], [False, True]],
    ]
    assert arrays["call_AD"][:, 2].tolist() == [[10, 30, 20], [-1, -2, -2], [-1, -2, -2]]
    assert arrays["call_AD_fill"][:, 2].tolist() == [[False] * 3, [False, True, True], [False, True, True]]


@pytest.mark.parametrize("impl", ["cubed", "zarr"])
@pytest.mark.slow
def test_masks_of_new_alleles(tmp_path: Path, impl: str) -> None:
    store = with_masks(make(tmp_path, "store", "A1 A2", FIRST[1:]))
    batch = with_masks(make(tmp_path, "batch", "B1", SECOND))
    vczstore.append(store, batch, harmonise=True, allow_new_alleles=True, new_variants="drop", impl=impl)
    arrays = check_masks(store)
    assert arrays["variant_allele"].tolist() == [["A", "C", "T"], ["A", "C", ""]]


@pytest.mark.slow
def test_masks_of_dropped_fields(tmp_path: Path) -> None:
    store = with_masks(make(tmp_path, "store", "A1 A2", FIRST))
    batch = with_masks(make(tmp_path, "batch", "B1", SECOND))
    for name in ("call_AD", "call_AD_mask", "call_AD_fill", "call_genotype_phased"):
        shutil.rmtree(batch / name)
    shutil.rmtree(store / "call_genotype_phased")
    vczstore.append(store, batch, harmonise=True, new_variants="drop", drop_fields=["AD"])
    assert check_masks(store)["call_AD"][:, 2].tolist() == [[-1, -2, -2]] * 3


@pytest.mark.slow
def test_masks_of_removed_samples_and_recomputed_fields(tmp_path: Path) -> None:
    store = with_masks(make(tmp_path, "store", "A1 A2", FIRST))
    vczstore.remove(store, ["A1"], recompute=["AF"])
    arrays = check_masks(store)
    assert arrays["call_AD_mask"][:, 0].all()
    assert not arrays["call_AD_fill"][:, 0].any()
    assert arrays["variant_AF_fill"].tolist() == [[False, False], [False, True], [False, True]]


@pytest.mark.slow
def test_normalise_writes_masks(tmp_path: Path) -> None:
    store = with_masks(make(tmp_path, "store", "A1 A2", FIRST))
    batch = with_masks(make(tmp_path, "batch", "B1", SECOND))
    vczstore.normalise(store, batch, tmp_path / "out.vcz", new_variants="drop")
    arrays = cohort.read_vcz(tmp_path / "out.vcz")
    expected = masks({n: a for n, a in arrays.items() if n.startswith("call_") and not n.endswith(("_mask", "_fill"))})
    assert len(expected) == 10
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values, err_msg=name)
