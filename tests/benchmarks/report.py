"""The benchmark results as a table, for a terminal or in Markdown for the guide."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.sides import Side
from vczstore.sizes import human_size

type Samples = list[float]
"""One figure for each repetition."""

FLOORS = (
    "floor, and ours as a multiple of it: cp -r of the batch if chunks are copied verbatim, "
    "else decoding and encoding of the chunks touched, in threads on all cores"
)
COLUMNS = ("operation", "measured", "ours", "compared with", "ratio", "target", "", "floor")


@dataclass(frozen=True)
class Row:
    """
    One ratio of medians.

    Attributes
    ----------
    operation, measured
        The operation, and the quantity measured: time of the whole process or in-process, memory, bytes written.
    ours, against, other
        Our figures, the name of the comparison, and its figures.
    target
        Upper bound of the ratio; None if there is none.
    target_seconds
        Upper bound of our median, in seconds, which replaces `target`.
    times
        Number of runs of `other` that do the work of one of ours.
    unit
        ``s`` or ``B``.
    floor
        Figures for a lower bound on the time of the operation; see `FLOORS`.
    """

    operation: str
    measured: str
    ours: Samples
    against: str
    other: Samples
    target: float | None = None
    target_seconds: float | None = None
    times: int = 1
    unit: str = "s"
    floor: Samples | None = None

    @property
    def ratio(self) -> float:
        """Ratio of our median to `times` the other median."""
        return median(self.ours) / (self.times * median(self.other))

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is none."""
        if self.target_seconds is not None:
            return median(self.ours) <= self.target_seconds
        return None if self.target is None else self.ratio <= self.target

    def cells(self) -> list[str]:
        """The row of the table, in the order of `COLUMNS`."""
        ours, other = median(self.ours), median(self.other)
        target = "" if self.target is None else f"≤ {self.target:g} x"
        if self.target_seconds is not None:
            target = f"≤ {self.target_seconds:g} s"
        times = "" if self.times == 1 else f"{self.times} x "
        floor = self.floor and median(self.floor)
        return [
            self.operation,
            self.measured,
            self._figure(ours),
            f"{self.against}, {times}{self._figure(other)}",
            f"{self.ratio:.3f} x" if self.ratio < 0.1 else f"{self.ratio:.2f} x",
            target,
            {True: "✓", False: "✗", None: ""}[self.met],
            f"{self._figure(floor)}, {ours / floor:.1f} x" if floor else "",
        ]

    def _figure(self, value: float) -> str:
        if self.unit == "B":
            return human_size(value)
        return f"{value:.2f} s" if value >= 0.995 else f"{1000 * value:.0f} ms"

    def as_dict(self) -> dict[str, Any]:
        """All attributes, the ratio and whether the target is met, for JSON."""
        return {**asdict(self), "ratio": self.ratio, "met": self.met}


def machine(ours: Side, peer: Side) -> dict[str, Any]:
    """Describe the machine and the package versions of both sides, without which the figures mean nothing."""
    packages = ("vczstore", "zarr", "numcodecs", "numpy")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "ours": ours.versions([*packages, "cubed", "icechunk"]),
        "peer": peer.versions(packages),
    }


def print_report(console: Console, rows: Sequence[Row], machine: dict[str, Any], sizes: str, *, markdown: bool) -> None:
    """Print the table, followed by notes on the machine and the data."""
    notes = [*_machine_lines(machine), sizes, FLOORS]
    if markdown:
        lines = [COLUMNS, ["---"] * len(COLUMNS), *(row.cells() for row in rows)]
        print("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
        print("\n" + "\n".join(f"- {note}" for note in notes))
        return
    table = Table(*COLUMNS)
    for name in ("ours", "ratio", "target"):
        table.columns[COLUMNS.index(name)].justify = "right"
    for row in rows:
        style = {True: "green", False: "red", None: ""}[row.met]
        cells = row.cells()
        cells[4] = f"[{style}]{cells[4]}[/]" if style else cells[4]
        cells[6] = f"[{style}]{cells[6]}[/]" if style else cells[6]
        table.add_row(*cells)
    console.print(table)
    for note in notes:
        console.print(note, style="dim", highlight=False)


def _machine_lines(machine: dict[str, Any]) -> Iterable[str]:
    memory = f"{math.ceil(machine['memory'] / 2**30)} GiB"
    yield f"{machine['cores']} cores, {memory} of memory, {machine['system']}, Python {machine['python']}"
    for side in ("ours", "peer"):
        yield f"{side}: {', '.join(f'{name} {version}' for name, version in machine[side].items())}"
