"""
Runs in the environment of either side: makes the calls that standard input names, and measures each of them.

The standard library is all it needs: the peer's environment has nothing of ours.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path


def peak_rss() -> int:
    """
    The most memory that this process has had, in bytes.

    Not from getrusage, which counts in what the parent had when it started this process.
    """
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Answer each line with a line."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        module, function, args, options = json.loads(line)
        call = getattr(import_module(module), function)
        started = time.perf_counter()
        call(*args, **options)
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "peak_rss": peak_rss()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
