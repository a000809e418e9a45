"""The command: try, count, print a table."""

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

os.environ.setdefault("ICECHUNK_LOG", "off")  # read when icechunk is imported

from tests.system.survival import Tally, erasure, inputs, kills, sets, storage, writers


@dataclass(frozen=True)
class Row:
    """What is tried, how it is called in the table, and how much of it by default."""

    tried: str
    bad: str
    n: int
    run: Callable[[argparse.Namespace, int], Tally]


def _kills(options: argparse.Namespace, n: int) -> Tally:
    cases = tuple(case for case in kills.CASES if re.search(options.case, str(case)))

    def told(number: int, kill: kills.Kill) -> None:
        if options.verbose:
            print(f"{number:6} {kill}", file=sys.stderr, flush=True)

    return kills.Campaign(options.seed, cases, spawned=options.spawn).tally(n, options.first, told)


ROWS: Mapping[str, Row] = {
    "kills": Row("kill points tried", "stores damaged", 400, _kills),
    "sets": Row("kill points of sets", "not completed", 200, lambda options, n: sets.campaign(n, options.seed)),
    "writers": Row("writers x commits tried", "lost", 100, lambda options, n: writers.run(n, options.seed)),
    "inputs": Row("bad inputs tried", "not clean", 1000, lambda options, n: inputs.run(n, options.seed)),
    "storage": Row("faults injected", "data lost", 100, lambda options, n: storage.run(n, options.seed)),
    "erasure": Row("objects scanned", "withdrawn bytes found", 0, lambda _options, _n: erasure.search()),
}


def main() -> None:
    """Parse, try, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.survival", description="See what stores survive.")
    for name, row in ROWS.items():
        if row.n:
            parser.add_argument(f"--{name}", type=int, default=row.n, metavar="N", help=f"{row.tried}  [{row.n}]")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10_000, help="  [one that is new each time]")
    parser.add_argument("--first", type=int, default=0, metavar="I", help="the number of the first kill  [0]")
    parser.add_argument("--case", default="", metavar="REGEX", help="kill these only, such as append-icechunk")
    parser.add_argument("--spawn", action="store_true", help="run new Python processes, as users do, not forks; slow")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--markdown", action="store_true", help="print the table for examples/guide/tested.md")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell of each kill")
    options = parser.parse_args()

    say = Console(stderr=True)
    found: dict[str, Tally] = {}
    for name in options.only or ROWS:
        started = time.perf_counter()
        found[name] = ROWS[name].run(options, getattr(options, name, 0))
        say.print(f"{name} took {time.perf_counter() - started:.0f} s", style="dim", highlight=False)
    _print(found, markdown=options.markdown)
    if bad := [one for tally in found.values() for one in tally.bad]:
        sys.exit("\n".join(bad))


def _print(found: Mapping[str, Tally], *, markdown: bool) -> None:
    rows = [(ROWS[name].tried, tally.tried, ROWS[name].bad, len(tally.bad)) for name, tally in found.items()]
    if markdown:
        print("| tried | | went wrong | |\n|---|--:|---|--:|")
        for tried, n, bad, m in rows:
            print(f"| {tried} | {n:,} | {bad} | {m:,} |")
        return
    table = Table("tried", "", "went wrong", "")
    for tried, n, bad, m in rows:
        table.add_row(tried, f"{n:,}", bad, f"{m:,}", style="red" if m else "")
    Console().print(table)


if __name__ == "__main__":
    main()
