"""gVCFs for the tests: VCFs with reference blocks, as VCZs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.support import vcf

HEADER = """##fileformat=VCFv4.2
##contig=<ID=1,length=100000>
##contig=<ID=2,length=100000>
##contig=<ID=X,length=100000>
##ALT=<ID=NON_REF,Description="">
##INFO=<ID=END,Number=1,Type=Integer,Description="">
##FORMAT=<ID=GT,Number=1,Type=String,Description="">
##FORMAT=<ID=DP,Number=1,Type=Integer,Description="">
##FORMAT=<ID=GQ,Number=1,Type=Integer,Description="">
##FORMAT=<ID=MIN_DP,Number=1,Type=Integer,Description="">
##FORMAT=<ID=LEN,Number=1,Type=Integer,Description="">
##FORMAT=<ID=AD,Number=R,Type=Integer,Description="">
##FORMAT=<ID=AF,Number=A,Type=Float,Description="">
##FORMAT=<ID=PL,Number=G,Type=Integer,Description="">
##FORMAT=<ID=PS,Number=1,Type=Integer,Description="">
"""


def text(samples: Sequence[str], *records: str) -> str:
    """A VCF; a record is ``contig position REF ALT END FORMAT calls``, the END a dot where there is none."""
    lines = ["\t".join(["#CHROM POS ID REF ALT QUAL FILTER INFO FORMAT".replace(" ", "\t"), *samples])]
    keys = set()
    for record in records:
        contig, position, ref, alts, end, fields, *calls = record.split()
        keys.update(fields.split(":"))
        info = "." if end == "." else f"END={end}"
        lines.append("\t".join([contig, position, ".", ref, alts, ".", ".", info, fields, *calls]))
    head = [h for h in HEADER.splitlines() if "FORMAT" not in h or h.split("ID=")[1].split(",")[0] in keys]
    return "\n".join([*head, *lines]) + "\n"


def make(folder: Path, name: str, content: str, zarr_format: int = 3, chunks: tuple[int, int] = (3, 2)) -> Path:
    """A VCZ of a gVCF, beside it."""
    source = vcf.write_vcf(folder / f"{name}.vcf.gz", content)
    return vcf.to_vcz(source, folder / f"{name}.vcz", zarr_format, *chunks)


def sites(store: Path, *, icechunk: bool = False) -> list[str]:
    """The variants of a store, as vcztools shows them."""
    lines = vcf.records(vcf.vcztools_view(store, icechunk=icechunk))[1:]
    return [" ".join(line.split("\t")[i] for i in (0, 1, 3, 4)) for line in lines]
