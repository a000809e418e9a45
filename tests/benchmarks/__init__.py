"""
Benchmarks of this package against vczstore 0.1.0, its peer: same data, same run, alternating.

``uv run python -m tests.benchmarks`` prints a table of ratios of medians, with a target for most of them. Nothing is
asserted about time.
"""
