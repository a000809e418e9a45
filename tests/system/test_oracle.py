"""bcftools and vcztools as references: their output for a store must be the same as for the complete VCF."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import zarr
from filelock import FileLock

import vczstore
from tests.support import cohort, vcf
from tests.support.vcf import EXAMPLES, bcftools_records, records, vcztools_view

WHOLE = "whole"


@dataclass(frozen=True)
class Layout:
    """The chunk sizes of a VCZ."""

    variants: int
    samples: int

    @property
    def id(self) -> str:
        return f"{self.variants}x{self.samples}"


WIDE = 10_000
"""A typical chunk length along the samples axis, larger than all examples."""
PLAIN = Layout(60, 30)
"""A layout in which all examples have a single chunk."""


@dataclass(frozen=True)
class Case:
    """An example, and the kind, layout and source format of its store."""

    example: str
    kind: str
    layout: Layout
    zarr_format: int
    """Zarr format of the VCZs that bio2zarr writes."""

    @property
    def id(self) -> str:
        source = "" if self.kind == f"format{self.zarr_format}" else f"-from{self.zarr_format}"
        return f"{self.example}-{self.kind}{source}-{self.layout.id}"


CASES = [
    # 60 variants and 23 samples, in several rows of chunks or in one
    Case("calls", "format2", Layout(16, 1), 2),
    Case("calls", "format3", Layout(60, 7), 3),
    Case("calls", "icechunk", Layout(16, 3), 2),
    Case("fields", "format3", PLAIN, 3),
    Case("fields", "icechunk", Layout(5, 2), 2),
    Case("mixed_ploidy", "format2", Layout(7, 2), 2),
    Case("mixed_ploidy", "icechunk", Layout(20, WIDE), 3),
    Case("triploid", "format2", Layout(20, 1), 2),
    Case("triploid", "format3", Layout(20, WIDE), 3),
]
"""
Every example on two kinds of store, and a sample of chunk layouts, which test_model.py covers more fully.
"""
cases = pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])


@dataclass(frozen=True)
class Library:
    """The VCFs of the examples and their VCZs, each written once for all workers."""

    folder: Path

    def vcf(self, example: str, part: int | str = WHOLE) -> Path:
        path = self.folder / f"{example}.{part}.vcf.gz"
        with FileLock(f"{path}.lock"):
            if not Path(f"{path}.tbi").exists():
                if part == WHOLE:
                    vcf.write_vcf(path, EXAMPLES[example].make())
                else:
                    vcf.split_by_samples(self.vcf(example), EXAMPLES[example].parts[part], path)
        return path

    def vcz(self, example: str, part: int | str, zarr_format: int, layout: Layout) -> Path:
        path = self.folder / f"{example}.{part}.{zarr_format}.{layout.id}.vcz"
        with FileLock(f"{path}.lock"):
            ready = Path(f"{path}.ready")
            if not ready.exists():
                vcf.to_vcz(self.vcf(example, part), path, zarr_format, layout.variants, layout.samples)
                ready.touch()
        return path

    @cache  # noqa: B019 - there is one library
    def view(self, example: str) -> str:
        """The output of vcztools for the complete VCF."""
        return vcztools_view(self.vcz(example, WHOLE, 3, PLAIN))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder) / "oracle"
    folder.mkdir(exist_ok=True)
    return Library(folder)


def make_store(kind: str, source: Path, folder: Path) -> Path:
    """Copy a VCZ of the library to a store of the given kind; return its path."""
    store = folder / "store.vcz"
    if kind == "icechunk":
        cohort.copy_to_icechunk(source, store)
    else:
        shutil.copytree(source, store)
    return store


def view(kind: str, store: Path) -> str:
    return vcztools_view(store, icechunk=kind == "icechunk")


# ---- the references agree -------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.slow
def test_vcztools_and_bcftools_agree(library: Library, example: str) -> None:
    """Control of the other tests, without vczstore."""
    expected = bcftools_records(library.vcf(example))
    assert records(library.view(example)) == expected
    assert expected[0].split("\t")[9:] == list(EXAMPLES[example].samples)
    assert len(expected) > 10


@pytest.mark.slow
def test_the_examples_cover_all_types_and_shapes(library: Library) -> None:
    """Control: every Type and Number, padded lists, dtypes that must be widened, and ploidies 1 to 3."""
    first, second = (zarr.open_group(library.vcz("fields", i, 3, PLAIN), mode="r") for i in (0, 1))
    fields = [name for name in first.array_keys() if name.startswith("call_") and "genotype" not in name]
    assert len(fields) == len(vcf.TYPES) * len(vcf.NUMBERS)
    assert {first[f"call_I{n}"].dtype for n in "12ARGD"} == {np.dtype("i2")}
    assert {second[f"call_I{n}"].dtype for n in "12ARGD"} == {np.dtype("i1")}
    assert {first[f"call_{t}D"].shape[2] for t in "IFCS"} == {vcf.LONGEST_LIST}
    assert (first["call_ID"][...] == -2).any()
    assert set(np.unique(first["call_genotype"][...])) == {-1, 0, 1}
    mixed = zarr.open_group(library.vcz("mixed_ploidy", 1, 3, PLAIN), mode="r")
    assert (mixed["call_genotype"][:, :, 1] == -2).any()
    triploid = zarr.open_group(library.vcz("triploid", 1, 3, PLAIN), mode="r")
    assert triploid["call_genotype"].shape == (20, 3, 3)


# ---- append and remove -----------------------------------------------------------------------


@cases
@pytest.mark.slow
def test_append_and_remove(library: Library, tmp_path: Path, case: Case) -> None:
    """Append all parts in one call, with the store's chunks; then remove samples of several parts."""
    parts = EXAMPLES[case.example].parts
    first, *others = [library.vcz(case.example, i, case.zarr_format, case.layout) for i in range(len(parts))]
    store = make_store(case.kind, first, tmp_path)
    vczstore.append(store, *others)
    shown = view(case.kind, store)
    assert shown == library.view(case.example)
    assert records(shown) == bcftools_records(library.vcf(case.example))
    vczstore.remove(store, gone(case.example))
    expected = bcftools_records(library.vcf(case.example), without=gone(case.example))
    assert not set(gone(case.example)) & set(expected[0].split("\t"))
    assert records(view(case.kind, store)) == expected


GONE = {"fields": (1, 4), "mixed_ploidy": (0, 3, 6), "triploid": (4, 1), "calls": (22, 0, 9, 8, 13)}
"""Indices of the removed samples of each example, from partial, shared and neighbouring chunks."""


def gone(example: str) -> list[str]:
    return [EXAMPLES[example].samples[i] for i in GONE[example]]


@pytest.mark.parametrize(("kind", "source_format"), [("format2", 3), ("format3", 2), ("icechunk", 2)])
@pytest.mark.slow
def test_append_one_by_one(library: Library, tmp_path: Path, kind: str, source_format: int) -> None:
    """Append sources of either format, with chunks that differ from the store's."""
    store = make_store(kind, library.vcz("calls", 0, 3 if kind == "format3" else 2, Layout(16, 3)), tmp_path)
    samples, parts = EXAMPLES["calls"].samples, EXAMPLES["calls"].parts
    for i in range(1, len(parts)):
        vczstore.append(store, library.vcz("calls", i, source_format, PLAIN))
        to_come = samples[sum(len(part) for part in parts[: i + 1]) :]
        assert records(view(kind, store)) == bcftools_records(library.vcf("calls"), without=to_come)
    assert view(kind, store) == library.view("calls")


# ---- update ---------------------------------------------------------------------------------

RECALLED = {"fields": (4, 0), "mixed_ploidy": (5, 0, 3), "triploid": (0, 4), "calls": (22, 0, 9, 8, 13)}
"""Indices of the re-called samples of each example. Sample 0, always included, has values of the full dimensions."""


UPDATED = [CASES[i] for i in (0, 4, 6, 8)]
"""Every example once, and every kind of store."""


@pytest.mark.parametrize("case", UPDATED, ids=[case.id for case in UPDATED])
@pytest.mark.slow
def test_update(library: Library, tmp_path: Path, case: Case) -> None:
    """The records are the same as in a VCF with the re-called columns of these samples."""
    samples = [EXAMPLES[case.example].samples[i] for i in RECALLED[case.example]]
    text = EXAMPLES[case.example].make()
    expected = bcftools_records(vcf.write_vcf(tmp_path / "recalled.vcf.gz", vcf.recall(text, samples)))
    part = vcf.split_by_samples(tmp_path / "recalled.vcf.gz", samples, tmp_path / "part.vcf.gz")
    assert expected != bcftools_records(library.vcf(case.example))
    assert bcftools_records(part)[0].split("\t")[9:] == samples
    source = vcf.to_vcz(part, tmp_path / "part.vcz", case.zarr_format, case.layout.variants, case.layout.samples)
    store = make_store(case.kind, library.vcz(case.example, WHOLE, case.zarr_format, case.layout), tmp_path)
    vczstore.update(store, source)
    assert records(view(case.kind, store)) == expected


@pytest.mark.parametrize("kind", ["format3", "icechunk"])
@pytest.mark.slow
def test_append_remove_and_append_again(library: Library, tmp_path: Path, kind: str) -> None:
    """A returning sample is added as a new sample at the end."""
    zarr_format = 3 if kind == "format3" else 2
    first, *others = [library.vcz("calls", part, zarr_format, Layout(16, 3)) for part in range(3)]
    store = make_store(kind, first, tmp_path)
    vczstore.append(store, *others)
    middle = EXAMPLES["calls"].parts[1]
    vczstore.remove(store, middle)
    without = bcftools_records(library.vcf("calls"), without=middle)
    assert records(view(kind, store)) == without
    vczstore.append(store, others[0], allow_returning=True)
    again = bcftools_records(library.vcf("calls", 1))
    expected = ["\t".join([line, *more.split("\t")[9:]]) for line, more in zip(without, again, strict=True)]
    assert records(view(kind, store)) == expected
