"""Single-sample VCFs with any fields, their VCZs, and the output of bcftools merge and vcztools for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pysam
import zarr

import vczstore
from tests.support import cohort
from tests.support.vcf import records, to_vcz, vcztools_view, write_vcf

HEADER = {
    "GT": '##FORMAT=<ID=GT,Number=1,Type=String,Description="x">',
    "DP": '##FORMAT=<ID=DP,Number=1,Type=Integer,Description="x">',
    "GQ": '##FORMAT=<ID=GQ,Number=1,Type=Integer,Description="x">',
    "PS": '##FORMAT=<ID=PS,Number=1,Type=Integer,Description="x">',
    "XN": '##FORMAT=<ID=XN,Number=.,Type=Integer,Description="x">',
    "XF": '##FORMAT=<ID=XF,Number=.,Type=Float,Description="x">',
    "PGT": '##FORMAT=<ID=PGT,Number=.,Type=String,Description="x">',
    "FT": '##FORMAT=<ID=FT,Number=1,Type=String,Description="x">',
}


def make_vcf(
    path: Path, sample: str, fields: str, calls: Sequence[str], alts: Sequence[str] = (), **header: str
) -> Path:
    """Write a VCF with one sample; `fields` is its FORMAT, such as ``GT:DP``, and `calls` has one call per variant."""
    declared = [header.get(f, HEADER[f]) for f in fields.split(":")]
    head = ["##fileformat=VCFv4.2", "##contig=<ID=1,length=248956422>", *declared]
    fixed = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", sample]
    alleles = alts or ["C"] * len(calls)
    lines = [
        "\t".join(["1", str(3_000_000 + 10 * i), ".", "A", alt, ".", ".", ".", fields, call])
        for i, (call, alt) in enumerate(zip(calls, alleles, strict=True))
    ]
    return write_vcf(path, "\n".join([*head, "\t".join(fixed), *lines]) + "\n")


def make(folder: Path, sample: str, fields: str, *calls: str, alts: Sequence[str] = (), **header: str) -> Path:
    """Write a VCF as `make_vcf` does, and convert it to a VCZ in the same folder; return the path of the VCZ."""
    vcf = make_vcf(folder / f"{sample}.vcf.gz", sample, fields, calls, alts, **header)
    return to_vcz(vcf, folder / f"{sample}.vcz", 3, 4, 2)


def merged(folder: Path, *samples: str) -> list[dict[str, str]]:
    """The values of each variant in the output of bcftools merge; see `calls_of`."""
    text = pysam.bcftools.merge("-m", "none", *(str(folder / f"{s}.vcf.gz") for s in samples))
    return calls_of(text)


def calls_of(text: str) -> list[dict[str, str]]:
    """The non-missing values of each variant of a VCF, by ``sample:field``."""
    head, *lines = [line.split("\t") for line in records(text)]
    result = []
    for line in lines:
        values = {}
        for sample, call in zip(head[9:], line[9:], strict=True):
            pairs = zip(line[8].split(":"), call.split(":"), strict=False)
            values |= {f"{sample}:{f}": v for f, v in pairs if v.strip("./|,")}
        result.append(values)
    return result


KINDS = ("format3", "icechunk")
CHUNKS = {"variants_chunk": 4, "samples_chunk": 2}


def start(folder: Path, kind: str, *sources: Path) -> Path:
    """Create a store without samples from the variants of VCZs; return its path."""
    store = folder / f"store-{len(list(folder.glob('store-*')))}"
    backend = "icechunk" if kind == "icechunk" else None
    vczstore.create(store, *sources, backend_storage=backend, **CHUNKS)
    return store


def opened(store: Path, kind: str) -> zarr.Group:
    """The root group of a store, opened with zarr-python."""
    return zarr.open_group(cohort.icechunk_store(store) if kind == "icechunk" else store, mode="r")


def shown(store: Path, kind: str) -> list[dict[str, str]]:
    """The values of each variant in the output of vcztools; see `calls_of`."""
    return calls_of(vcztools_view(store, icechunk=kind == "icechunk"))


def fix_widths(store: Path, *names: str) -> None:
    """Rewrite string arrays with the minimal fixed-width dtype, as sgkit and xarray do."""
    group = zarr.open_group(store, mode="a")
    for name in names:
        old = group[name]
        values, chunks, names_of_axes = old[...].astype(object).astype("U"), old.chunks, old.metadata.dimension_names
        array = group.create_array(
            name, shape=values.shape, dtype=values.dtype, chunks=chunks, dimension_names=names_of_axes, overwrite=True
        )
        array[...] = values
