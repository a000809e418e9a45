"""Single-sample gVCFs: two of five records are variants, at sites shared by all files; the rest are blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

SEED = 20_260_102
STEP = 30
"""Distance between neighbouring sites, in bases."""

HEADER = """##fileformat=VCFv4.2
##ALT=<ID=NON_REF,Description="Any other allele">
##contig=<ID=1,length={length}>
##INFO=<ID=END,Number=1,Type=Integer,Description="Last base of the block">
##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">
##FORMAT=<ID=DP,Number=1,Type=Integer,Description="Read depth">
##FORMAT=<ID=GQ,Number=1,Type=Integer,Description="Genotype quality">
##FORMAT=<ID=AD,Number=R,Type=Integer,Description="Reads of each allele">
##FORMAT=<ID=PL,Number=G,Type=Integer,Description="Genotype likelihoods">
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t{sample}
"""


def make(folder: Path, n_files: int, n_records: int) -> tuple[Path, list[Path]]:
    """
    Write gVCFs, compressed and indexed, and their reference sequence.

    Parameters
    ----------
    folder
        The destination.
    n_files
        Number of gVCFs.
    n_records
        Approximate number of records in each.

    Returns
    -------
    reference : Path
        An indexed FASTA.
    gvcfs : list of Path
        One file per sample.
    """
    import pysam

    random = np.random.default_rng(SEED)
    n_sites = n_records * 3 // 5
    bases = random.choice(list("ACGT"), n_sites * STEP + 1).tolist()
    reference = folder / "reference.fa"
    reference.write_text(">1\n" + "".join(bases) + "\n")
    pysam.faidx(str(reference))
    paths = []
    for i in range(n_files):
        path = folder / f"s{i:03d}.g.vcf"
        with path.open("w") as file:
            file.write(HEADER.format(length=len(bases), sample=f"s{i:03d}"))
            file.writelines(_records(np.random.default_rng([SEED, i]), bases, n_sites))
        paths.append(Path(pysam.tabix_index(str(path), preset="vcf", force=True)))
    return reference, paths


def _records(random: np.random.Generator, bases: Sequence[str], n_sites: int) -> Iterator[str]:
    """Records of one sample: two of three sites have a variant, and a block extends to the next site."""
    depths = random.integers(8, 60, n_sites)
    kinds = random.integers(0, 3, n_sites)
    for site, (depth, kind) in enumerate(zip(depths.tolist(), kinds.tolist(), strict=True)):
        position = site * STEP + 1
        start = position
        if kind:
            ref = bases[position - 1]
            alt = "ACGT"["ACGT".index(ref) - 1]
            likelihoods = ",".join(str(n * depth) for n in (9, 0, 9, 12, 12, 20))
            yield (
                f"1\t{position}\t.\t{ref}\t{alt},<NON_REF>\t50\t.\t.\tGT:DP:GQ:AD:PL\t"
                f"0/1:{depth}:99:{depth - depth // 2},{depth // 2},0:{likelihoods}\n"
            )
            start += 1
        yield (
            f"1\t{start}\t.\t{bases[start - 1]}\t<NON_REF>\t.\t.\tEND={position + STEP - 1}\tGT:DP:GQ:PL\t"
            f"0/0:{depth}:{min(99, 3 * depth)}:0,{min(99, 3 * depth)},{depth * 45}\n"
        )
