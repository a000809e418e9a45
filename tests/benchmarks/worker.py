"""
Worker process, run in the environment of either side: makes the calls read from standard input and measures each.

It imports only the standard library, because our package is not installed in the peer's environment.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path


def peak_rss() -> int:
    """
    Peak resident memory of this process in bytes.

    Not from getrusage, whose value includes the parent's memory at the time of the fork.
    """
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Answer each call, a line of JSON, with a line of measurements."""
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
