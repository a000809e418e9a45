"""VCFs for the tests, and the tools that serve as references: bcftools, bio2zarr and vcztools."""

from __future__ import annotations

import asyncio
import io
import random
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import pysam
import pysam.bcftools
import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from tests.support.cohort import files_of, put

TYPES = ("Integer", "Float", "Character", "String")
NUMBERS = ("1", "2", "A", "R", "G", ".")
LONGEST_LIST = 4
"""Longest list of a field with ``Number=.``. Every part has one, because it sets the dimension size in bio2zarr."""


@dataclass(frozen=True)
class Example:
    """A VCF and the partition of its samples: the first part becomes the store, the others are appended."""

    make: Callable[[], str]
    parts: tuple[tuple[str, ...], ...]

    @property
    def samples(self) -> tuple[str, ...]:
        """All samples, in the order of the VCF."""
        return tuple(chain.from_iterable(self.parts))


def _parts(prefix: str, *sizes: int) -> tuple[tuple[str, ...], ...]:
    names = iter([f"{prefix}{i:05}" for i in range(1, sum(sizes) + 1)])
    return tuple(tuple(next(names) for _ in range(size)) for size in sizes)


# ---- text -----------------------------------------------------------------------------------


def _header(samples: Sequence[str], *definitions: str) -> list[str]:
    return [
        "##fileformat=VCFv4.3",
        '##FILTER=<ID=PASS,Description="All filters passed">',
        '##FILTER=<ID=q10,Description="Quality below 10">',
        '##FILTER=<ID=s50,Description="Less than half of the samples have data">',
        "##contig=<ID=chr1,length=248956422>",
        "##contig=<ID=chrX,length=156040895>",
        *definitions,
        "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *samples]),
    ]


_GT = '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">'


def _fields() -> str:
    """
    A VCF with every FORMAT Type and Number, missing values and missing elements, and many kinds of genotypes.

    Unlike bcftools, vcztools omits a field from a record in which no sample has a value, so the first sample has all
    fields. The values of the first sample of each part in the first record give all parts the same dimension sizes.
    """
    rng = random.Random(1)
    parts = FIELDS.parts
    starts = {part[0] for part in parts}
    names = {f"{kind[0]}{'D' if number == '.' else number}": (kind, number) for kind in TYPES for number in NUMBERS}
    info = {
        "AC": "Number=A,Type=Integer",
        "AF": "Number=A,Type=Float",
        "DB": "Number=0,Type=Flag",
        "XC": "Number=1,Type=Character",
        "XS": "Number=.,Type=String",
    }
    definitions = [f'##INFO=<ID={name},{what},Description="{what}">' for name, what in info.items()]
    definitions += [_GT]
    definitions += [
        f'##FORMAT=<ID={name},Number={number},Type={kind},Description="{kind} of {number}">'
        for name, (kind, number) in sorted(names.items())
    ]
    lines = _header(FIELDS.samples, *definitions)
    genotypes = ["0/1", "1|0", "./.", ".|.", "./1", "0|.", "1/1", "0|0"]
    for row in range(14):
        alts = ["A", "GT"] if row % 3 == 0 else ["A"]
        sizes = {
            "1": 1,
            "2": 2,
            "A": len(alts),
            "R": len(alts) + 1,
            "G": 6 if len(alts) == 2 else 3,
            ".": LONGEST_LIST,
        }
        # all fields in the first six records, then some, only GT in the next to last record, and none in the last
        present = sorted(names) if row < 6 else sorted(rng.sample(sorted(names), 8))
        present = ["GT", *present] if row < 12 else ["GT"] if row == 12 else []
        columns = []
        for sample in FIELDS.samples:
            whole = sample == FIELDS.samples[0] or (row == 0 and sample in starts)
            values = []
            for name in present:
                if name == "GT":
                    values.append("0/1" if whole else rng.choice(genotypes))
                else:
                    kind, number = names[name]
                    wide = sample in parts[0]
                    values.append(_values(rng, kind, sizes[number], number == ".", wide=wide, whole=whole))
            columns.append(":".join(values) or ".")
        values_by_key = {
            "AC": ",".join(str(rng.randrange(9)) for _ in alts),
            "AF": ",".join(str(rng.choice([0.125, 0.5, 0.333])) for _ in alts),
            "DB": None,
            "XC": rng.choice("xyz"),
            "XS": ",".join(rng.sample(["a", "bc", "def"], rng.randrange(1, 4))),
        }
        chosen = [name for name in values_by_key if rng.random() < 0.6]
        text = ";".join(name if values_by_key[name] is None else f"{name}={values_by_key[name]}" for name in chosen)
        filters = ("PASS", "q10", "q10;s50", ".")[row % 4]
        quality = (".", "30", "29.5")[row % 3]
        fixed = [
            "chr1" if row < 9 else "chrX",
            str(100 + row),
            f"rs{row}" if row % 2 else ".",
            "G",
            ",".join(alts),
        ]
        lines.append("\t".join([*fixed, quality, filters, text or ".", ":".join(present) or ".", *columns]))
    return "\n".join(lines) + "\n"


def _values(rng: random.Random, kind: str, size: int, is_list: bool, *, wide: bool, whole: bool) -> str:
    """A FORMAT value of one sample; `whole`: without missing elements; `wide`: with integers that need two bytes."""
    is_float = kind == "Float"  # bio2zarr pads short lists of floats with missing values
    if not whole and rng.random() < 0.2:
        return ",".join("." * size) if is_float else "."
    if is_list and not whole and not is_float:
        size = rng.randrange(1, size + 1)
    integers = [300, -300, 32767, 7] if wide else [0, 1, -3, 127, -100]
    choices = {
        "Integer": [str(i) for i in integers],
        "Float": ["0.5", "-1.25", "3.142", "1024", "inf", "0"],
        "Character": list("abcXYZ+"),
        "String": ["a", "bc", "klmnop", "x%3Ay", "0", "a longer one"],
    }[kind]
    # some elements of a list may be missing
    return ",".join("." if not whole and size > 1 and rng.random() < 0.2 else rng.choice(choices) for _ in range(size))


def _ploidy(example: Example, genotypes: Sequence[str], seed: int) -> str:
    """A VCF with these genotypes. The first sample of each part has the first of them in the first record."""
    rng = random.Random(seed)
    starts = {part[0] for part in example.parts}
    lines = _header(example.samples, _GT)
    for row in range(20):
        alleles = "T\tC,G" if row % 4 == 0 else "T\tC"
        columns = [
            genotypes[0] if row == 0 and sample in starts else rng.choice(genotypes) for sample in example.samples
        ]
        lines.append("\t".join(["chrX", str(10 + row), ".", alleles, ".", "PASS", ".", "GT", *columns]))
    return "\n".join(lines) + "\n"


def _mixed_ploidy() -> str:
    return _ploidy(MIXED_PLOIDY, ["0/1", "0", "1", "1|1", ".", "./.", "0|1", "./1"], seed=2)


def _triploid() -> str:
    return _ploidy(TRIPLOID, ["0/1/1", "0|0|1", "././.", "1/1/1", "0/./1", "1|1|0"], seed=3)


def _calls() -> str:
    """A VCF as written by variant callers: GT:AD:DP:GQ:PL, with trailing fields dropped from missing calls."""
    rng = random.Random(4)
    definitions = [
        '##INFO=<ID=AC,Number=A,Type=Integer,Description="Allele count">',
        '##INFO=<ID=AN,Number=1,Type=Integer,Description="Called alleles">',
        '##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth">',
        '##INFO=<ID=MQ,Number=1,Type=Float,Description="Mapping quality">',
        _GT,
        '##FORMAT=<ID=AD,Number=R,Type=Integer,Description="Depth of each allele">',
        '##FORMAT=<ID=DP,Number=1,Type=Integer,Description="Depth">',
        '##FORMAT=<ID=GQ,Number=1,Type=Integer,Description="Genotype quality">',
        '##FORMAT=<ID=PL,Number=G,Type=Integer,Description="Likelihoods">',
    ]
    lines = _header(CALLS.samples, *definitions)
    narrow = set(CALLS.parts[-1])  # depths of these samples fit in a byte; the store has a wider dtype
    starts = {part[0] for part in CALLS.parts}
    for row in range(60):
        n_alleles = 3 if row % 7 == 0 else 2
        columns, alleles = [], []
        for sample in CALLS.samples:
            if rng.random() < 0.1 and not (row == 0 and sample in starts):
                columns.append(rng.choice(["./.", f"./.:{','.join(['0'] * n_alleles)}:0"]))
                continue
            a, b = sorted(rng.randrange(n_alleles) for _ in range(2))
            depths = [rng.randrange(30 if sample in narrow else 200) for _ in range(n_alleles)]
            if row == 0 and sample not in narrow:
                depths[0] = 300
            likelihoods = [rng.randrange(3000) for _ in range(n_alleles * (n_alleles + 1) // 2)]
            if row == 0:
                likelihoods[1] = 2999
            likelihoods[b * (b + 1) // 2 + a] = 0
            alleles += [a, b]
            separator = rng.choice("/|")
            call = [f"{a}{separator}{b}", ",".join(map(str, depths)), sum(depths), rng.randrange(100)]
            columns.append(":".join(map(str, [*call, ",".join(map(str, likelihoods))])))
        counts = ",".join(str(alleles.count(i)) for i in range(1, n_alleles))
        info = f"AC={counts};AN={len(alleles)};DP={rng.randrange(5000)};MQ={rng.choice(['60', '59.25', '37.5'])}"
        contig, quality = "chr1" if row < 45 else "chrX", rng.choice(["50", "812.75", "."])
        fixed = [contig, str(1000 + 37 * row), ".", "A", "C,AG" if n_alleles == 3 else "C", quality]
        lines.append("\t".join([*fixed, rng.choice(["PASS", "q10"]), info, "GT:AD:DP:GQ:PL", *columns]))
    return "\n".join(lines) + "\n"


FIELDS = Example(_fields, _parts("F", 3, 1, 2))
MIXED_PLOIDY = Example(_mixed_ploidy, _parts("M", 3, 4))
TRIPLOID = Example(_triploid, _parts("T", 2, 3))
CALLS = Example(_calls, _parts("C", 10, 7, 6))
EXAMPLES = {"fields": FIELDS, "mixed_ploidy": MIXED_PLOIDY, "triploid": TRIPLOID, "calls": CALLS}


# ---- tools ----------------------------------------------------------------------------------


def write_vcf(path: Path, text: str) -> Path:
    """Write a compressed and indexed VCF to a path with suffix ``.vcf.gz``; return the path."""
    with pysam.BGZFile(str(path), "wb") as file:
        file.write(text.encode())
    pysam.tabix_index(str(path), preset="vcf", force=True)
    return path


def split_by_samples(vcf: Path, samples: Sequence[str], out: Path) -> Path:
    """Write the VCF of some samples with bcftools, leaving INFO unchanged; return its path."""
    pysam.bcftools.view(
        "--no-version",
        "--no-update",
        "-Oz",
        "-o",
        str(out),
        "-s",
        ",".join(samples),
        str(vcf),
        catch_stdout=False,
    )
    pysam.tabix_index(str(out), preset="vcf", force=True)
    return out


def recall(text: str, samples: Sequence[str]) -> str:
    """The VCF with 0 and 1 swapped, and / and | swapped, in the genotypes of some samples."""
    lines = []
    for line in text.splitlines():
        fields = line.split("\t")
        if line.startswith("#CHROM"):
            columns = [fields.index(sample) for sample in samples]
        elif not line.startswith("#") and fields[8].startswith("GT"):
            for i in columns:
                genotype, colon, rest = fields[i].partition(":")
                fields[i] = genotype.translate(str.maketrans("01/|", "10|/")) + colon + rest
        lines.append("\t".join(fields))
    return "\n".join(lines) + "\n"


def bcftools_records(vcf: Path, *, without: Sequence[str] = ()) -> list[str]:
    """Column names and records in the output of bcftools, without the samples in `without`; INFO is unchanged."""
    subset = ["-s", f"^{','.join(without)}"] if without else []
    text = pysam.bcftools.view("--no-version", "--no-update", *subset, str(vcf))
    return records(text)


def records(text: str) -> list[str]:
    """The line of column names, and the records, of a VCF."""
    return [line for line in text.splitlines() if not line.startswith("##")]


def to_vcz(
    vcf: Path,
    out: Path,
    zarr_format: int,
    variants_chunk: int | None,
    samples_chunk: int | None,
    *,
    local_alleles: bool = False,
) -> Path:
    """Convert with bio2zarr in this process, cached by content and options; return the path of the VCZ."""
    options = {
        "zarr_format": zarr_format,
        "variants_chunk_size": variants_chunk,
        "samples_chunk_size": samples_chunk,
        "local_alleles": local_alleles,
    }
    put(out, _converted(vcf.read_bytes(), tuple(options.items())))
    return out


@lru_cache(maxsize=500)
def _converted(vcf: bytes, options: tuple[tuple[str, Any], ...]) -> dict[str, bytes]:
    """The files of the VCZ, given the content of a compressed VCF."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings within bio2zarr and zarr-python
        from bio2zarr.vcf import convert

        source = Path(name, "source.vcf.gz")
        source.write_bytes(vcf)
        pysam.tabix_index(str(source), preset="vcf", force=True)
        convert([source], Path(name, "vcz"), worker_processes=0, **dict(options))
        return files_of(Path(name, "vcz"))


def vcztools_view(store: Path, *, icechunk: bool = False, region: str | None = None) -> str:
    """The VCF that vcztools writes for a store or a region of it, without the header line with version and time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings within vcztools
        import vcztools

        text = io.StringIO()
        root = vcztools.open_zarr(store, backend_storage="icechunk" if icechunk else None)
        if root.metadata.consolidated_metadata is None:
            root = zarr.consolidate_metadata(asyncio.run(_copied(root.store)))
        with vcztools.VczReader(root) as reader:
            if region is not None:
                reader.set_variants(vcztools.regions.build_chunk_plan(reader, regions=[region]))
            vcztools.write_vcf(reader, text, no_version=True)
    return text.getvalue()


async def _copied(store: Store) -> MemoryStore:
    """Copy a store to memory, to consolidate its metadata there: vcztools lists all arrays sixty times."""
    prototype = default_buffer_prototype()
    copy = MemoryStore()
    async for key in store.list():
        content = await store.get(key, prototype)
        assert content is not None
        await copy.set(key, content)
    return copy
