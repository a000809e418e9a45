"""The command ``python -m tests.system.survival``: run the trials and print a table of their counts."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

os.environ.setdefault("ICECHUNK_LOG", "off")  # icechunk reads it on import

from tests.system.survival import Tally, erasure, inputs, kills, sets, storage, writers


@dataclass(frozen=True)
class Row:
    """A row of the table: labels of its two counts, the default number of trials, and a function that runs them."""

    tried: str
    failed: str
    n: int
    run: Callable[[argparse.Namespace, int], Tally]


def _kills(options: argparse.Namespace, n: int) -> Tally:
    cases = tuple(case for case in kills.CASES if re.search(options.case, str(case)))

    def report(number: int, kill: kills.Kill) -> None:
        if options.verbose:
            print(f"{number:6} {kill}", file=sys.stderr, flush=True)

    return kills.Campaign(options.seed, cases, spawned=options.spawn).tally(n, options.first, report)


ROWS: Mapping[str, Row] = {
    "kills": Row("kill points tried", "stores damaged", 400, _kills),
    "sets": Row("kill points of sets", "not completed", 200, lambda options, n: sets.campaign(n, options.seed)),
    "writers": Row("writers x commits tried", "lost", 100, lambda options, n: writers.run(n, options.seed)),
    "inputs": Row("bad inputs tried", "not clean", 1000, lambda options, n: inputs.run(n, options.seed)),
    "storage": Row("faults injected", "data lost", 100, lambda options, n: storage.run(n, options.seed)),
    "erasure": Row("objects scanned", "withdrawn bytes found", 0, lambda _options, _n: erasure.search()),
}


def main() -> None:
    """Parse the arguments, run the trials, and print the table; exit with an error if there are failures."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.survival", description="Run the stress tests.")
    for name, row in ROWS.items():
        if row.n:
            parser.add_argument(f"--{name}", type=int, default=row.n, metavar="N", help=f"{row.tried}  [{row.n}]")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10_000, help="  [different in each run]")
    parser.add_argument("--first", type=int, default=0, metavar="I", help="number of the first kill  [0]")
    parser.add_argument("--case", default="", metavar="REGEX", help="kill only matching cases, e.g. append-icechunk")
    parser.add_argument("--spawn", action="store_true", help="start new Python processes instead of forks; slow")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=f"run only these: {', '.join(ROWS)}")
    parser.add_argument("--markdown", action="store_true", help="print the table for examples/guide/tested.md")
    parser.add_argument("-v", "--verbose", action="store_true", help="print each kill")
    options = parser.parse_args()

    stderr = Console(stderr=True)
    tallies: dict[str, Tally] = {}
    for name in options.only or ROWS:
        started = time.perf_counter()
        tallies[name] = ROWS[name].run(options, getattr(options, name, 0))
        stderr.print(f"{name} took {time.perf_counter() - started:.0f} s", style="dim", highlight=False)
    _print(tallies, markdown=options.markdown)
    if failures := [failure for tally in tallies.values() for failure in tally.failures]:
        sys.exit("\n".join(failures))


def _print(tallies: Mapping[str, Tally], *, markdown: bool) -> None:
    rows = [(ROWS[name].tried, tally.tried, ROWS[name].failed, len(tally.failures)) for name, tally in tallies.items()]
    if markdown:
        print("| tried | | went wrong | |\n|---|--:|---|--:|")
        for tried, n, failed, m in rows:
            print(f"| {tried} | {n:,} | {failed} | {m:,} |")
        return
    table = Table("tried", "", "went wrong", "")
    for tried, n, failed, m in rows:
        table.add_row(tried, f"{n:,}", failed, f"{m:,}", style="red" if m else "")
    Console().print(table)


if __name__ == "__main__":
    main()
