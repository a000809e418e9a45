"""A cohort of few fields, and the samples that leave it."""

from __future__ import annotations

import numpy as np

from tests.support import cohort

FIELDS = (
    *("sample_id", "sample_pca", "contig_id", "variant_contig", "variant_position", "variant_allele"),
    *("call_genotype", "call_GL", "call_FT"),
)
"""Each kind of dtype and rank once: more would only take time."""


def some_arrays(n: int) -> dict[str, np.ndarray]:
    arrays = cohort.make_arrays(10, cohort.ids(0, n))
    return {name: arrays[name] for name in FIELDS}


GONE = ["S0004", "S0005", "S0006"]
"""
Of 14 samples in chunks of 3: column 0 stays, column 1 is decoded, 2 and 3 are columns of the store already.

0 1 2 | 3 x x | x 7 8 | 9 10 11 | 12 13  ->  0 1 2 | 3 7 8 | 9 10 11 | 12 13
"""
