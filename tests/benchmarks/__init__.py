"""
Benchmarks: this package beside vczstore 0.1.0, its peer, on the same data, in the same run, in turn.

``uv run python -m tests.benchmarks`` prints a table of ratios of medians. Nothing is asserted about time: a target
stands beside each figure.
"""
