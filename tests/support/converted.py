"""VCZs converted from small VCFs by bio2zarr."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support import cohort, vcf

HEADER = """##fileformat=VCFv4.3
##contig=<ID=1,length=1000>
##contig=<ID=X,length=1000>
##INFO=<ID=AC,Number=A,Type=Integer,Description="">
##INFO=<ID=MLEAC,Number=A,Type=Integer,Description="">
##INFO=<ID=MLEAF,Number=A,Type=Float,Description="">
##INFO=<ID=RD,Number=R,Type=Integer,Description="">
##INFO=<ID=WHO,Number=A,Type=String,Description="">
##FORMAT=<ID=GT,Number=1,Type=String,Description="">
##FORMAT=<ID=AD,Number=R,Type=Integer,Description="">
##FORMAT=<ID=AO,Number=A,Type=Integer,Description="">
##FORMAT=<ID=AF,Number=A,Type=Float,Description="">
##FORMAT=<ID=NM,Number=R,Type=String,Description="">
##FORMAT=<ID=PL,Number=G,Type=Integer,Description="">
##FORMAT=<ID=GL,Number=G,Type=Float,Description="">
"""
FORMAT = "GT:AD:AO:PL"
CALL = "0/1:5,6:6:30,0,40"
ALLOWED: dict[str, Any] = {"harmonise": True, "allow_new_alleles": True}


def text(samples: Sequence[str], *records: str, keys: str = FORMAT) -> str:
    """The text of a VCF. A record is ``contig position ALT INFO calls``, and REF is A."""
    lines = ["\t".join(["#CHROM POS ID REF ALT QUAL FILTER INFO FORMAT".replace(" ", "\t"), *samples])]
    used = {name.partition("=")[0] for record in records for name in record.split()[3].split(";")}
    for record in records:
        contig, position, alt, info, *calls = record.split()
        lines.append("\t".join([contig, position, ".", "A", alt, ".", ".", info, keys, *calls]))
    kept = ("file", "cont", *(f"INFO=<ID={name}," for name in used), *(f"FORMAT=<ID={key}," for key in keys.split(":")))
    header = [line for line in HEADER.splitlines() if line.startswith(tuple(f"##{name}" for name in kept))]
    return "\n".join([*header, *lines]) + "\n"


def make(folder: Path, name: str, text: str, kind: str = "format3", chunks: tuple[int, int] = (2, 2)) -> Path:
    """Convert the text of a VCF to a VCZ; return its path."""
    source = vcf.write_vcf(folder / f"{name}.vcf.gz", text)
    vcz = vcf.to_vcz(source, folder / f"{name}.vcz", 2 if kind == "format2" else 3, *chunks)
    if kind != "icechunk":
        return vcz
    return cohort.copy_to_icechunk(vcz, folder / f"{name}.ice")


def shown(store: Path, *, icechunk: bool = False) -> list[list[str]]:
    """ALT, INFO, FORMAT and the calls of each record in the output of vcztools."""
    lines = vcf.records(vcf.vcztools_view(store, icechunk=icechunk))
    return [[fields[4], *fields[7:]] for fields in (line.split("\t") for line in lines[1:])]


def make_pair(tmp_path: Path, old: str, new: str, kind: str = "format3") -> tuple[Path, Path]:
    """Convert two VCFs to a store and a batch; return their paths."""
    for name, content in (("old", old), ("new", new)):
        vcf.write_vcf(tmp_path / f"{name}.vcf.gz", content)
        vcf.to_vcz(tmp_path / f"{name}.vcf.gz", tmp_path / f"{name}.vcz", 2 if kind == "format2" else 3, 2, 2)
    store = tmp_path / "old.vcz"
    if kind == "icechunk":
        store = cohort.copy_to_icechunk(store, tmp_path / "ice.vcz")
    return store, tmp_path / "new.vcz"
