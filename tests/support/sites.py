"""Cohorts of given variants, with fields of every Number, and a slow model of how variants match."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tests.support import cohort, vcf

DIMENSIONS = {
    "call_PL": ("variants", "samples", "genotypes"),
    "call_EC": ("variants", "samples", "alt_alleles"),
    "call_RF": ("variants", "samples", "alleles"),
    "variant_AC": ("variants", "alt_alleles"),
}
CONTIGS = ("chr1", "chr2", "chrX")
NAN_MISSING, NAN_FILL = cohort.MISSING, cohort.FILL


class Site(NamedTuple):
    """A variant: the contig's name, the position, and REF and ALTs."""

    contig: str
    position: int
    alleles: tuple[str, ...]


def make(
    sites: Sequence[Site], samples: Sequence[str], seed: int, *, contigs: Sequence[str] = CONTIGS, padding: int = 0
) -> dict[str, np.ndarray]:
    """The arrays of a cohort with fields of every Number, and haploid and diploid calls, some of them missing."""
    rng = np.random.default_rng([seed, len(samples)])
    order = sorted(range(len(sites)), key=lambda i: (contigs.index(sites[i].contig), sites[i].position))
    sites = [sites[i] for i in order]
    v, n = len(sites), len(samples)
    width = max(2, *(len(s.alleles) for s in sites)) + padding
    allele = np.full((v, width), "", dtype=object)
    gt = np.full((v, n, 2), -2, "i1")
    numbered = {"R": np.full((v, n, width), -2, "i2"), "A": np.full((v, n, width - 1), -2, "i4")}
    numbered["G"] = np.full((v, n, math.comb(width + 1, 2)), -2, "i2")
    floats = np.full((v, n, width), NAN_FILL, "f4")
    for i, site in enumerate(sites):
        k = len(site.alleles)
        allele[i, :k] = site.alleles
        for j in range(n):
            ploidy = 1 if rng.random() < 0.2 else 2
            gt[i, j, :ploidy] = rng.integers(-1, k, ploidy)
            for number, length in (("R", k), ("A", k - 1), ("G", math.comb(k + ploidy - 1, ploidy))):
                numbered[number][i, j, :length] = rng.integers(-1, 99, length)
                if rng.random() < 0.2:
                    numbered[number][i, j] = [-1, *[-2] * (numbered[number].shape[2] - 1)]
            floats[i, j, :k] = rng.random(k)
    return {
        "sample_id": np.array(list(samples), dtype=object),
        "sample_sex": rng.integers(0, 3, n).astype("i1"),
        "contig_id": np.array(list(contigs), dtype=object),
        "variant_contig": np.array([contigs.index(s.contig) for s in sites], "i1"),
        "variant_position": np.array([s.position for s in sites], "i4"),
        "variant_allele": allele,
        "variant_AC": np.full((v, width - 1), 3, "i4"),
        "call_genotype": gt,
        "call_genotype_mask": gt < 0,
        "call_genotype_phased": rng.random((v, n)) < 0.5,
        "call_DP": rng.integers(-1, 99, (v, n)).astype("i2"),
        "call_FT": rng.choice(np.array(["PASS", "q10", "."], dtype=object), (v, n)),
        "call_AD": numbered["R"],
        "call_EC": numbered["A"],
        "call_PL": numbered["G"],
        "call_RF": floats,
    }


def sites_of(arrays: Mapping[str, np.ndarray]) -> list[Site]:
    names = arrays["contig_id"]
    return [
        Site(names[c], int(p), tuple(a for a in alleles if a not in ("", ".")))
        for c, p, alleles in zip(
            arrays["variant_contig"], arrays["variant_position"], arrays["variant_allele"], strict=True
        )
    ]


def model_match(store: Sequence[Site], source: Sequence[Site], *, new: bool) -> dict[int, int]:
    """Map store variants to source variants: apply one matching rule after the other to the unmatched variants."""
    key = [(s.contig, s.position, s.alleles[0].upper()) for s in store]
    their_key = [(s.contig, s.position, s.alleles[0].upper()) for s in source]
    alts = [{a.upper() for a in s.alleles[1:]} for s in store]
    their_alts = [{a.upper() for a in s.alleles[1:]} for s in source]
    match: dict[int, int] = {}
    for i in range(len(store)):
        for j in range(len(source)):
            if j not in match.values() and key[i] == their_key[j] and alts[i] == their_alts[j]:
                match[i] = j
                break
    rules = [lambda ours, theirs: theirs <= ours]
    if new:
        rules += [lambda ours, theirs: bool(ours & theirs) or not ours or not theirs, lambda ours, theirs: True]
    for rule in rules:
        pairs = [
            (i, j)
            for i, j in itertools.product(range(len(store)), range(len(source)))
            if i not in match and j not in match.values() and key[i] == their_key[j] and rule(alts[i], their_alts[j])
        ]
        unique = [(i, j) for i, j in pairs if [p[0] for p in pairs].count(i) == 1 == [p[1] for p in pairs].count(j)]
        match.update(unique)
    return match


POOL = [
    Site(contig, position, tuple(alleles))
    for contig in CONTIGS
    for position in (5, 6, 9)
    for alleles in (
        ("A",),
        ("A", "C"),
        ("A", "C", "T"),
        ("A", "T", "C"),
        ("A", "G", "*"),
        ("C", "A"),
        ("AC", "A", "<DEL>"),
    )
]
HEADER = """##fileformat=VCFv4.3
##contig=<ID=chr1,length=1000>
##contig=<ID=chr2,length=1000>
##FORMAT=<ID=GT,Number=1,Type=String,Description="">
##FORMAT=<ID=AD,Number=R,Type=Integer,Description="">
##FORMAT=<ID=EC,Number=A,Type=Integer,Description="">
##FORMAT=<ID=PL,Number=G,Type=Integer,Description="">
##FORMAT=<ID=DP,Number=1,Type=Integer,Description="">
"""


def vcf_text(sites: Sequence[Site], samples: Sequence[str], seed: int) -> str:
    rng = np.random.default_rng(seed)
    lines = [HEADER + "\t".join(["#CHROM POS ID REF ALT QUAL FILTER INFO FORMAT".replace(" ", "\t"), *samples])]
    for site in sorted(sites, key=lambda s: (s.contig, s.position)):
        k = len(site.alleles)
        calls = []
        for _ in samples:
            genotype = rng.choice(["/", "|"]).join("." if a < 0 else str(a) for a in rng.integers(-1, k, 2))
            values = [",".join(map(str, rng.integers(0, 99, n))) for n in (k, k - 1, k * (k + 1) // 2, 1)]
            calls.append(":".join([genotype, *(v if v and rng.random() < 0.8 else "." for v in values)]))
        start = [
            site.contig,
            str(site.position),
            ".",
            site.alleles[0],
            ",".join(site.alleles[1:]) or ".",
            ".",
            ".",
            ".",
        ]
        lines.append("\t".join([*start, "GT:AD:EC:PL:DP", *calls]))
    return "\n".join(lines) + "\n"


def calls_of(text: str) -> list[tuple[str, dict[str, dict[str, str]]]]:
    """The records of a VCF: the site, and for each sample the fields that are not missing."""
    result, names = [], []
    for line in vcf.records(text):
        fields = line.split("\t")
        if line.startswith("#"):
            names = fields[9:]
            continue
        keys = fields[8].split(":")
        samples = {
            name: {k: v for k, v in zip(keys, call.split(":"), strict=False) if set(v) - set(".,/|")}
            for name, call in zip(names, fields[9:], strict=True)
        }
        result.append(("\t".join([*fields[:2], *fields[3:5]]), samples))
    return result


STORE_SITES = [
    Site("chr1", 10, ("A", "C", "T")),
    Site("chr1", 10, ("A", "G")),
    Site("chr1", 20, ("G", "T")),
    Site("chr1", 30, ("AT", "A", "<DEL>", "*")),
    Site("chr2", 5, ("C", "G")),
    Site("chr2", 7, ("T", "A", "C", "G")),
]
BATCHES = {
    "reordered": (
        [Site("chr1", 10, ("A", "G")), Site("chr1", 10, ("A", "T", "C")), Site("chr2", 7, ("T", "G", "A", "C"))],
        "none",
    ),
    "symbolic": ([Site("chr1", 30, ("AT", "*", "A", "<DEL>")), Site("chr2", 5, ("C", "G"))], "none"),
    "new alleles": (
        [Site("chr1", 20, ("G", "A", "T")), Site("chr2", 5, ("C", "T", "G")), Site("chr2", 7, ("T", "A", "C", "G"))],
        "both",
    ),
}
