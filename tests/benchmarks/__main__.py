"""The command: measure, print a table."""

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

os.environ.setdefault("ICECHUNK_LOG", "off")  # read when icechunk is imported

from tests.benchmarks import report, rows, sides

FOLDER = Path(__file__).parents[2] / "build" / "benchmarks"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure vczstore beside its peer. It takes some 35 GB of disk, until it is over.",
    )
    parser.add_argument("--quick", action="store_true", help="small data, few repetitions")
    parser.add_argument(
        "--only", nargs="+", choices=rows.MEASUREMENTS, metavar="NAME", help=", ".join(rows.MEASUREMENTS)
    )
    parser.add_argument("--markdown", action="store_true", help="print the table for examples/guide/tested.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save all figures, after each measurement")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for the data and the peer  [build/benchmarks]")
    options = parser.parse_args()

    say = Console(stderr=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    sizes = rows.QUICK if options.quick else rows.Sizes()
    ours, peer = sides.ours(), sides.peer(options.folder)
    where = report.machine(ours, peer)
    found: list[report.Row] = []
    failed: list[str] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with TemporaryDirectory(dir=options.folder, prefix="work-") as work:
        bench = rows.Bench(ours, peer, sizes, options.folder, Path(work))
        for name in options.only or rows.MEASUREMENTS:
            started = time.perf_counter()
            try:
                with say.status(f"measuring {name}"):
                    found += rows.MEASUREMENTS[name](bench)
            except Exception as error:  # what was measured before is worth an hour
                failed.append(f"{name}: {type(error).__name__}: {error}")
            except KeyboardInterrupt:
                failed.append(f"{name}: interrupted")
                break
            if options.json:
                figures = {"machine": where, "sizes": asdict(sizes), "rows": [row.as_dict() for row in found]}
                options.json.write_text(json.dumps(figures, indent=2) + "\n")
            say.print(f"measured {name} in {time.perf_counter() - started:.0f} s", style="dim", highlight=False)
    console = Console(width=None if sys.stdout.isatty() else 140)
    report.print_report(console, found, where, str(sizes), markdown=options.markdown)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
