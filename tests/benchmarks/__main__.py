"""The command ``python -m tests.benchmarks``: run the measurements and print their table."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

os.environ.setdefault("ICECHUNK_LOG", "off")  # icechunk reads it on import

from tests.benchmarks import report, rows, sides

FOLDER = Path(__file__).parents[2] / "build" / "benchmarks"


def main() -> None:
    """Parse the arguments, run the selected measurements, save and print the results."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure vczstore against its peer. Uses about 35 GB of disk while it runs.",
    )
    parser.add_argument("--quick", action="store_true", help="small data, few repetitions")
    names = ", ".join(rows.MEASUREMENTS)
    parser.add_argument("--only", nargs="+", choices=rows.MEASUREMENTS, metavar="NAME", help=f"run only these: {names}")
    parser.add_argument("--markdown", action="store_true", help="print the table for examples/guide/tested.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save all figures, updated after each measurement")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="cache of data and peer  [build/benchmarks]")
    options = parser.parse_args()

    stderr = Console(stderr=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    sizes = rows.QUICK if options.quick else rows.Sizes()
    ours, peer = sides.ours(), sides.peer(options.folder)
    machine = report.machine(ours, peer)
    results: list[report.Row] = []
    failed: list[str] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with TemporaryDirectory(dir=options.folder, prefix="work-") as work:
        bench = rows.Bench(ours, peer, sizes, options.folder, Path(work))
        for name in options.only or rows.MEASUREMENTS:
            started = time.perf_counter()
            try:
                with stderr.status(f"measuring {name}"):
                    results += rows.MEASUREMENTS[name](bench)
            except Exception as error:  # keep the earlier results, which may have taken an hour
                failed.append(f"{name}: {type(error).__name__}: {error}")
            except KeyboardInterrupt:
                failed.append(f"{name}: interrupted")
                break
            if options.json:
                figures = {"machine": machine, "sizes": asdict(sizes), "rows": [row.as_dict() for row in results]}
                options.json.write_text(json.dumps(figures, indent=2) + "\n")
            stderr.print(f"measured {name} in {time.perf_counter() - started:.0f} s", style="dim", highlight=False)
    console = Console(width=None if sys.stdout.isatty() else 140)
    report.print_report(console, results, machine, str(sizes), markdown=options.markdown)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
