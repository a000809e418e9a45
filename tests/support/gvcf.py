"""gVCFs for the tests: texts, their VCZs, and a slow model of how their records become calls of a store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pysam
import pysam.bcftools
from hypothesis import strategies as st

from tests.support import vcf
from tests.support.one_sample_vcfs import calls_of

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
    """The text of a VCF. A record is ``contig position REF ALT END FORMAT calls``; a missing END is a dot."""
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
    """Write a gVCF and convert it to a VCZ in the same folder; return the path of the VCZ."""
    source = vcf.write_vcf(folder / f"{name}.vcf.gz", content)
    return vcf.to_vcz(source, folder / f"{name}.vcz", zarr_format, *chunks)


def sites(store: Path, *, icechunk: bool = False) -> list[str]:
    """The variants of a store in the output of vcztools, each as ``contig position REF ALT``."""
    lines = vcf.records(vcf.vcztools_view(store, icechunk=icechunk))[1:]
    return [" ".join(line.split("\t")[i] for i in (0, 1, 3, 4)) for line in lines]


def merged(folder: Path, *names: str) -> dict[str, dict[str, str]]:
    """Values in the output of ``bcftools merge --gvcf`` by variant, and by sample and field; <NON_REF> is dropped."""
    reference = folder / "reference.fa"
    reference.write_text("".join(f">{contig}\n{'A' * 3000}\n" for contig in ("1", "2", "X")))
    pysam.faidx(str(reference))
    paths = [str(folder / f"{name}.vcf.gz") for name in names]
    text = pysam.bcftools.merge("--no-version", "-m", "none", "--gvcf", str(reference), *paths)
    result = {}
    for line, calls in zip(vcf.records(text)[1:], calls_of(text), strict=True):
        contig, position, _, ref, alts = line.split("\t")[:5]
        kept = [a for a in alts.split(",") if a != "<NON_REF>"]
        if kept:
            number = {str(1 + alts.split(",").index(a)): str(1 + i) for i, a in enumerate(kept)}
            for key, value in calls.items():
                if key.endswith(":GT"):
                    calls[key] = "".join(number.get(c, c) for c in value)
            result[f"{contig} {position} {ref} {','.join(kept)}"] = calls
    return result


# ---- a model --------------------------------------------------------------------------------


DIMENSIONS = {
    "variant_END": ("variants",),
    "call_GQ": ("variants", "samples"),
    "call_LEN": ("variants", "samples"),
    "call_PL": ("variants", "samples", "genotypes"),
    "call_EC": ("variants", "samples", "alt_alleles"),
}
"""Dimensions of arrays that are not in `cohort.DIMENSIONS`."""
LENGTH = 60
REFERENCE = ("ACGTTGCAAT" * LENGTH)[:LENGTH]


class Call(NamedTuple):
    """The values of one sample in a record; `by_*` have an element per allele, per ALT and per genotype."""

    genotype: tuple[int, ...]
    depth: int
    quality: int
    by_allele: tuple[int, ...]
    by_alt: tuple[int, ...]
    by_genotype: tuple[int, ...]
    length: int = -1

    @property
    def is_called(self) -> bool:
        """Whether any allele of the genotype is called."""
        return any(allele >= 0 for allele in self.genotype)


class Record(NamedTuple):
    """A record of a gVCF; `alleles` are REF and ALTs, including <NON_REF>."""

    position: int
    alleles: tuple[str, ...]
    end: int
    calls: tuple[Call, ...]
    contig: str = "1"

    @property
    def seen(self) -> tuple[str, ...]:
        """The alleles except <NON_REF>."""
        return tuple(a for a in self.alleles if a != "<NON_REF>")

    @property
    def is_block(self) -> bool:
        """Whether the record is a reference block."""
        return len(self.seen) == 1

    def last(self, sample: int) -> int:
        """The last position that the record covers in a sample."""
        ref = self.position + len(self.alleles[0]) - 1
        if not self.is_block:
            return max(ref, self.position + self.calls[sample].length - 1)
        return self.end if self.calls[sample].length < 1 else self.position + self.calls[sample].length - 1


def genotypes(n_alleles: int, ploidy: int) -> list[tuple[int, ...]]:
    """All genotypes of ploidy 1 or 2, in VCF order."""
    if ploidy == 1:
        return [(a,) for a in range(n_alleles)]
    return [(a, b) for b in range(n_alleles) for a in range(b + 1)]


def arrays_of(samples: Sequence[str], records: Sequence[Record], *, by_length: bool = False) -> dict[str, np.ndarray]:
    """The arrays of a gVCF, contigs in the order of the records. Ends are in END, and if `by_length` also in LEN."""
    v, n = len(records), len(samples)
    contigs = list(dict.fromkeys(r.contig for r in records)) or ["1"]
    width = max((len(r.alleles) for r in records), default=2)

    def padded(length: int, values: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
        result = np.full((v, n, length), -2, "i2")
        for i, j in np.ndindex(v, n):
            result[i, j, : len(values[i][j])] = values[i][j]
        return result

    genotype = padded(2, [[c.genotype for c in r.calls] for r in records]).astype("i1")
    alleles = np.full((v, width), "", dtype=object)
    for i, r in enumerate(records):
        alleles[i, : len(r.alleles)] = r.alleles
    result = {
        "sample_id": np.array(list(samples), dtype=object),
        "contig_id": np.array(contigs, dtype=object),
        "variant_contig": np.array([contigs.index(r.contig) for r in records], "i1"),
        "variant_position": np.array([r.position for r in records], "i4"),
        "variant_allele": alleles,
        "variant_END": np.array([r.end if r.is_block else -1 for r in records], "i4"),
        "call_genotype": genotype,
        "call_genotype_mask": genotype < 0,
        "call_genotype_phased": np.zeros((v, n), dtype=bool),
        "call_DP": np.array([[c.depth for c in r.calls] for r in records], "i2").reshape(v, n),
        "call_GQ": np.array([[c.quality for c in r.calls] for r in records], "i2").reshape(v, n),
        "call_AD": padded(width, [[c.by_allele for c in r.calls] for r in records]),
        "call_EC": padded(width - 1, [[c.by_alt for c in r.calls] for r in records]),
        "call_PL": padded(math.comb(width + 1, 2), [[c.by_genotype for c in r.calls] for r in records]),
    }
    if by_length:
        result["call_LEN"] = np.array([[c.length for c in r.calls] for r in records], "i4").reshape(v, n)
    return result


@st.composite
def some_calls(draw: st.DrawFn, n_alleles: int, *, is_block: bool, with_length: bool) -> Call:
    """A strategy for the values of one sample in a record."""
    ploidy = draw(st.sampled_from([2, 2, 2, 1]))
    highest = n_alleles - 1 if draw(st.integers(0, 9)) == 0 else (0 if is_block else n_alleles - 2)
    alleles = st.sampled_from([-1, *range(highest + 1)] if draw(st.integers(0, 3)) == 0 else range(highest + 1))
    number = st.integers(0, 99)
    return Call(
        tuple(draw(st.lists(alleles, min_size=ploidy, max_size=ploidy))),
        draw(number),
        draw(st.integers(0, 60)),
        tuple(draw(st.lists(number, min_size=n_alleles, max_size=n_alleles))),
        tuple(draw(st.lists(number, min_size=n_alleles - 1, max_size=n_alleles - 1))),
        tuple(draw(number) for _ in genotypes(n_alleles, ploidy)),
        draw(st.sampled_from([-1, 1, 5, 30])) if with_length else -1,
    )


@st.composite
def some_records(draw: st.DrawFn, n_samples: int, *, with_length: bool) -> list[Record]:
    """A strategy for the records of a gVCF: variants on some contigs, and blocks alone on others, in any order."""
    contigs = draw(st.permutations(["1", "2", "Y"]))[: draw(st.integers(1, 3))]
    return [record for contig in contigs for record in draw(_on_contig(contig, n_samples, with_length=with_length))]


@st.composite
def _on_contig(draw: st.DrawFn, contig: str, n_samples: int, *, with_length: bool) -> list[Record]:
    records: list[Record] = []
    only_blocks = contig == "Y"
    for position in sorted(draw(st.lists(st.integers(1, LENGTH - 3), max_size=9))):
        is_block = draw(st.booleans()) or only_blocks or any(r.position == position and not r.is_block for r in records)
        ref = REFERENCE[position - 1 : position - 1 + (1 if is_block else draw(st.sampled_from([1, 1, 3])))]
        bases = [b for b in "ACGT" if b != ref[0]]
        alts = () if is_block else tuple(draw(st.permutations(bases))[: draw(st.integers(1, 2))])
        alleles = (ref, *alts, "<NON_REF>")
        if alts and draw(st.integers(0, 5)) == 0:
            alleles = (ref, "<NON_REF>", *alts)
        end = position + draw(st.sampled_from([0, 1, 7, 40])) if is_block else position + len(ref) - 1
        call = some_calls(len(alleles), is_block=is_block, with_length=with_length)
        records.append(Record(position, alleles, end, tuple(draw(call) for _ in range(n_samples)), contig))
    return records


def call_at(
    records: Sequence[Record], sample: int, position: int, alleles: Sequence[str], match: Record | None, min_gq: int
) -> Call | None:
    """
    Model of a sample's call at a store's variant with these alleles; None if the gVCF has no call there.

    `match` is the gVCF's record of the same variant, or None.
    """
    covering = [r for r in records if r.position <= position <= r.last(sample) and r.calls[sample].is_called]
    covering.sort(key=lambda r: (r.position, not r.is_block))  # the sort is stable: of equal records, the last wins
    last = covering[-1] if covering else None
    from_block = last is not None and (last.is_block or position > last.position + len(last.alleles[0]) - 1)
    if last is not None and from_block:
        call = last.calls[sample]
        if call.quality < min_gq:
            return None if match is None else _remapped(match, match.calls[sample], alleles)
        return _remapped(last, call, alleles, at_other_position=True)
    return None if match is None else _remapped(match, match.calls[sample], alleles)


def _remapped(record: Record, call: Call, alleles: Sequence[str], *, at_other_position: bool = False) -> Call:
    """A call of a record, remapped to the alleles of a store."""
    unseen = record.alleles.index("<NON_REF>") if "<NON_REF>" in record.alleles else None
    shared = record.alleles[:1] if at_other_position else record.seen
    own = {a if i else "REF": record.alleles.index(a) for i, a in enumerate(shared)}
    source = [own.get(a if i else "REF", unseen) for i, a in enumerate(alleles)]
    number = {index: alleles.index(text) if text != "REF" else 0 for text, index in own.items()}
    ploidy = len(call.genotype)
    order = genotypes(len(record.alleles), ploidy)

    def at(values: Sequence[int], index: int | None) -> int:
        return -1 if index is None else values[index]

    def of_genotype(g: tuple[int, ...]) -> int:
        source_genotype = [source[a] for a in g]
        if None in source_genotype or not call.by_genotype:
            return -1
        return call.by_genotype[order.index(tuple(sorted(a for a in source_genotype if a is not None)))]

    return Call(
        tuple(a if a < 0 else number.get(a, -1) for a in call.genotype),
        call.depth,
        call.quality,
        tuple(at(call.by_allele, i) for i in source),
        tuple(at(call.by_alt, None if i is None else i - 1) for i in source[1:]),
        tuple(of_genotype(g) for g in genotypes(len(alleles), ploidy)),
        call.length,
    )


def matches(store: dict[str, np.ndarray], records: Sequence[Record]) -> list[Record | None]:
    """For each variant of a store, the matching record or None. Every variant record must match one variant."""
    sites = [
        (store["contig_id"][c], int(p), alleles[0], {a for a in alleles[1:] if a})
        for c, p, alleles in zip(
            store["variant_contig"], store["variant_position"], store["variant_allele"].tolist(), strict=True
        )
    ]
    result: list[Record | None] = [None] * len(sites)
    for record in records:
        if record.is_block:
            continue
        ref, *alts = record.seen
        own = (record.contig, record.position, ref)
        candidates = [i for i, (*site, a) in enumerate(sites) if tuple(site) == own and set(alts) <= a]
        exact = [i for i in candidates if sites[i][-1] == set(alts)]
        (i,) = exact or candidates
        result[i] = record
    return result


def call_of(store: dict[str, np.ndarray], variant: int, sample: int) -> list[list[int]]:
    """The vectors of a call in a store, without padding."""
    names = ("genotype", "DP", "GQ", "AD", "EC", "PL")
    vectors = [
        np.atleast_1d(store[f"call_{name}"][variant, sample]).tolist() for name in names if f"call_{name}" in store
    ]
    mask = store["call_genotype_mask"][variant, sample].tolist()
    assert mask == [a < 0 for a in vectors[0]]
    return [[x for x in vector if x != -2] for vector in vectors]


def shown(call: Call | None) -> list[list[int]]:
    """The vectors of a model's call, as in `call_of`; None is a call of a variant that the source does not have."""
    if call is None:
        return [[-1, -1], [-1], [-1], [-1], [-1], [-1]]
    vectors = (call.genotype, (call.depth,), (call.quality,), call.by_allele, call.by_alt, call.by_genotype)
    return [list(vector) for vector in vectors]
