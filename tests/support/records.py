"""VCZs of given records, and a slow model of which records represent the same variant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr

from plans.variants.join_records import join


class Record(NamedTuple):
    """A record of a variant; `length` is its ``variant_length``."""

    contig: str
    position: int
    alleles: tuple[str, ...]
    length: int = 1
    id: str = "."


@dataclass(frozen=True)
class Source:
    """Content and layout of a VCZ of two samples, with the optional arrays in `fields`."""

    records: Sequence[Record]
    contigs: Sequence[str] = ("1", "2")
    zarr_format: int = 3
    chunk: int = 2
    width: int = 0
    fields: frozenset[str] = frozenset({"variant_length", "variant_id", "variant_id_mask", "contig_length"})
    filters: Sequence[str] = ("PASS",)
    attributes: dict[str, Any] = field(default_factory=lambda: {"vcf_zarr_version": "0.5", "source": "tests"})

    def write(self, path: Path) -> Path:
        """Write the VCZ with zarr-python alone; return its path."""
        n = len(self.records)
        width = max([self.width, 1, *(len(r.alleles) for r in self.records)])
        alleles = np.full((n, width), "", dtype="T")
        for i, record in enumerate(self.records):
            alleles[i, : len(record.alleles)] = record.alleles
        ids = np.array([r.id for r in self.records], dtype="T")
        arrays: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {
            "sample_id": (np.array(["S1", "S2"], dtype="T"), ("samples",)),
            "contig_id": (np.array(self.contigs, dtype="T"), ("contigs",)),
            "contig_length": (np.array([1000 + ord(c[-1]) for c in self.contigs]), ("contigs",)),
            "filter_id": (np.array(self.filters, dtype="T"), ("filters",)),
            "filter_description": (np.array([f"all about {f}" for f in self.filters], dtype="T"), ("filters",)),
            "variant_contig": (np.array([self.contigs.index(r.contig) for r in self.records], "i1"), ("variants",)),
            "variant_position": (np.array([r.position for r in self.records], "i2"), ("variants",)),
            "variant_allele": (alleles, ("variants", "alleles")),
            "variant_length": (np.array([r.length for r in self.records], "i1"), ("variants",)),
            "variant_id": (ids, ("variants",)),
            "variant_id_mask": (ids == ".", ("variants",)),
            "variant_DP": (np.arange(n), ("variants",)),
            "call_genotype": (np.ones((n, 2, 2), "i1"), ("variants", "samples", "ploidy")),
        }
        root = zarr.create_group(path, zarr_format=self.zarr_format, attributes=self.attributes)
        optional = {"variant_length", "variant_id", "variant_id_mask", "contig_length"}
        for name, (values, dims) in arrays.items():
            if name in optional - self.fields:
                continue
            array = root.create_array(
                name,
                shape=values.shape,
                dtype="string" if values.dtype.kind == "T" else values.dtype,
                chunks=tuple(
                    self.chunk if d == "variants" else max(1, s) for d, s in zip(dims, values.shape, strict=True)
                ),
                **({"dimension_names": dims} if self.zarr_format == 3 else {}),
                **({"attributes": {"_ARRAY_DIMENSIONS": list(dims)}} if self.zarr_format == 2 else {}),
            )
            if values.size:
                array[...] = values
        return path


def site(record: Record) -> tuple[str, int, str, frozenset[str], int]:
    """Key that is equal for records of the same variant, except for their multiplicity within a source."""
    ref, *alts = (allele.upper() for allele in record.alleles)
    return record.contig, record.position, ref, frozenset(alts) - {"", "."}, extent(record)


def extent(record: Record) -> int:
    """Length of a symbolic deletion; -1 for other records."""
    return max(len(record.alleles[0]), record.length) if "<DEL>" in record.alleles else -1


def units(rows: Sequence[tuple[int, Record]]) -> list[list[int]]:
    """Group the indices of `(source, record)` rows by variant: the k-th record of a site in each source."""
    groups: dict[Any, list[int]] = {}
    seen: Counter[Any] = Counter()
    for i, (source, record) in enumerate(rows):
        groups.setdefault((site(record), seen[source, site(record)]), []).append(i)
        seen[source, site(record)] += 1
    return list(groups.values())


def joined(rows: Sequence[tuple[int, Record]]) -> list[list[int]]:
    """The groups of `units`, merged further by `plans.variants.join_records`."""
    by_site: dict[Any, list[list[int]]] = {}
    for unit in units(rows):
        by_site.setdefault(site(rows[unit[0]][1])[:3], []).append(unit)
    result = []
    for group in by_site.values():
        extents = [extent(rows[unit[0]][1]) for unit in group]
        alts = [list(dict.fromkeys(a.upper() for a in rows[u[0]][1].alleles[1:])) for u in group]
        alts = [[f"{a} {n}" if a == "<DEL>" else a for a in row] for row, n in zip(alts, extents, strict=True)]
        numbers = join(alts, [[rows[i][0] for i in unit] for unit in group], extents)
        result += [
            [i for unit, number in zip(group, numbers, strict=True) if number == n for i in unit]
            for n in dict.fromkeys(numbers)
        ]
    return result
