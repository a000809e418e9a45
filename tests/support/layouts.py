"""A Hypothesis strategy for the chunk layout of a store, as options of `cohort.write_vcz`."""

from __future__ import annotations

from hypothesis import strategies as st

layouts = st.fixed_dictionaries(
    {
        "variants_chunk": st.integers(1, 9),
        "samples_chunk": st.integers(1, 7),
        "shards": st.none() | st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "skip_empty": st.booleans(),
    }
)
