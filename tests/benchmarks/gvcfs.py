"""gVCFs of one sample each: two of five records are variants, at places that all share, the others reference blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

SEED = 20_260_102
STEP = 30
"""Bases from one place of a variant to the next."""

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
    Write gVCFs, compressed and indexed, and the reference that they were called against.

    Parameters
    ----------
    folder
        Where they are made.
    n_files, n_records
        How many gVCFs, of about so many records each.

    Returns
    -------
    reference : Path
        A FASTA, indexed.
    gvcfs : list of Path
        The files, by sample.
    """
    import pysam

    random = np.random.default_rng(SEED)
    n_places = n_records * 3 // 5
    bases = random.choice(list("ACGT"), n_places * STEP + 1).tolist()
    reference = folder / "reference.fa"
    reference.write_text(">1\n" + "".join(bases) + "\n")
    pysam.faidx(str(reference))
    made = []
    for i in range(n_files):
        path = folder / f"s{i:03d}.g.vcf"
        with path.open("w") as file:
            file.write(HEADER.format(length=len(bases), sample=f"s{i:03d}"))
            file.writelines(_records(np.random.default_rng([SEED, i]), bases, n_places))
        made.append(Path(pysam.tabix_index(str(path), preset="vcf", force=True)))
    return reference, made


def _records(random: np.random.Generator, bases: Sequence[str], n_places: int) -> Iterator[str]:
    """Two of three places have a variant; a block follows, up to the next place."""
    depths = random.integers(8, 60, n_places)
    kinds = random.integers(0, 3, n_places)
    for place, (depth, kind) in enumerate(zip(depths.tolist(), kinds.tolist(), strict=True)):
        at = place * STEP + 1
        start = at
        if kind:
            ref = bases[at - 1]
            alt = "ACGT"["ACGT".index(ref) - 1]
            likelihoods = ",".join(str(n * depth) for n in (9, 0, 9, 12, 12, 20))
            yield (
                f"1\t{at}\t.\t{ref}\t{alt},<NON_REF>\t50\t.\t.\tGT:DP:GQ:AD:PL\t"
                f"0/1:{depth}:99:{depth - depth // 2},{depth // 2},0:{likelihoods}\n"
            )
            start += 1
        yield (
            f"1\t{start}\t.\t{bases[start - 1]}\t<NON_REF>\t.\t.\tEND={at + STEP - 1}\tGT:DP:GQ:PL\t"
            f"0/0:{depth}:{min(99, 3 * depth)}:0,{min(99, 3 * depth)},{depth * 45}\n"
        )
