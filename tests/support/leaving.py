"""A cohort with few fields, and the samples to be removed from it."""

from __future__ import annotations

import numpy as np

from tests.support import cohort

FIELDS = (
    *("sample_id", "sample_pca", "contig_id", "variant_contig", "variant_position", "variant_allele"),
    *("call_genotype", "call_GL", "call_FT"),
)
"""One field of each kind of dtype and rank, which keeps the tests fast."""


def some_arrays(n: int) -> dict[str, np.ndarray]:
    arrays = cohort.make_arrays(10, cohort.ids(0, n))
    return {name: arrays[name] for name in FIELDS}


GONE = ["S0004", "S0005", "S0006"]
"""
Removed from 14 samples in chunks of 3, compaction keeps column 0, re-encodes column 1, and copies columns 3 and 4.

0 1 2 | 3 x x | x 7 8 | 9 10 11 | 12 13  ->  0 1 2 | 3 7 8 | 9 10 11 | 12 13
"""
