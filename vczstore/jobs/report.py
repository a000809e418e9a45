"""What a job did, for people: one page that needs nothing but itself, and the same as JSON."""

import heapq
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from vczstore.reports import page
from vczstore.sizes import human_size

COLOURS = 6
"""Operations with a colour of their own; those that took least share one more."""

MOST_BARS = 2_000
"""Tasks that are drawn one by one; of more, only how many ran at a time."""

MOST_LANES = 40
BINS = 160


class ReportedSources(TypedDict):
    """What a path or glob of a step names, and how many of that had not come in before."""

    operation: str
    source: str
    found: list[str]
    new: int


class ReportedJob(TypedDict):
    """
    What was to be done, and what came of it. ``started`` is an ISO time, ``seconds`` # s.

    ``then`` is what follows the commit, ``after`` what that has done.
    """

    id: str
    file: str
    store: str
    backend: str
    executor: str
    status: Literal["done", "nothing to do", "failed", "planned"]
    started: str | None
    seconds: float | None
    base: str
    snapshot: str | None
    tags: list[str]
    branch: NotRequired[str | None]
    notes: NotRequired[list[str]]
    then: NotRequired[list[str]]
    after: NotRequired[list[dict[str, Any]]]
    after_lines: NotRequired[list[str]]
    sources: NotRequired[list[ReportedSources]]
    why_nothing: NotRequired[str | None]
    atomic: bool
    error: str | None


class MemoryBounds(TypedDict):
    """What a task may use, and what of it is Python's own. # bytes."""

    allowed: int
    reserved: int


class ReportedTask(TypedDict):
    """When a task ran, since the job's start # s, and the most memory of its process # bytes."""

    operation: str
    start: float
    end: float
    peak_mem: int


class Step(TypedDict):
    """
    One operation of a job.

    ``bytes_read`` and ``bytes_written`` are bounds, decoded; ``encoded_bytes`` and ``decoded_bytes`` are measured;
    memory # bytes, ``seconds`` # s. ``arrays`` is how many are written to. ``tasks_run``, those of checks included, and
    ``chunks_written`` are what running has counted; requests, which are made in libraries, are projected alone.
    ``projected_seconds`` is the step's part of the estimate # s.
    """

    operation: str
    summary: str
    counts: dict[str, int]
    notes: NotRequired[dict[str, str]]
    sources: list[str]
    samples_before: int
    samples_after: int
    already_applied: int
    arrays: NotRequired[int]
    encoded_chunks: int
    decoded_chunks: int
    tasks: int
    tasks_run: NotRequired[int | None]
    chunks_written: NotRequired[int | None]
    projected_mem: int
    measured_mem: int | None
    bytes_read: int
    bytes_written: int
    encoded_bytes: int | None
    decoded_bytes: int | None
    get_requests: int
    put_requests: int
    seconds: float | None
    projected_seconds: NotRequired[float]
    timeline: list[ReportedTask]


class Report(TypedDict):
    """A job as it was planned and as it went. Never a sample ID. ``estimate`` is ``Estimate.as_dict()``."""

    job: ReportedJob
    versions: dict[str, str]
    memory: MemoryBounds
    steps: list[Step]
    estimate: dict[str, Any] | None


def write_report(folder: Path, report: Report) -> None:
    """
    Write ``report.json``, the report as it is, and ``report.html``, which shows it.

    Raises
    ------
    StorageError
        If the folder cannot be written to.
    """
    page.write(folder, report, "job.html.j2", timeline=_timeline(report["steps"]), **report)


def plan_svg(report: Report) -> str:
    """
    Draw the plan of a job, to be looked at by itself.

    From top to bottom: the store as it was, each step with its sources, samples and chunks, and what comes of it.
    """
    return page.render("plan.svg.j2", **report)


# ---- tasks in time --------------------------------------------------------------------------


def _timeline(steps: Sequence[Step]) -> dict[str, Any] | None:
    """
    When each task ran: a bar for each, or, of very many, how many ran at a time; None if none did.

    Lanes are workers as far as can be seen from outside: a task takes the first lane that is free. All that is
    horizontal is in percent.
    """
    tasks = sorted((t for step in steps for t in step["timeline"]), key=lambda t: t["start"])
    if not tasks:
        return None
    total = max([1e-9, *(t["end"] for t in tasks)])
    lanes = _lanes(tasks)
    colours, names = _colours(tasks)
    is_each = len(tasks) <= MOST_BARS and max(lanes) < MOST_LANES
    drawn = _each(tasks, lanes, colours, total) if is_each else _load(tasks, colours, names, total)
    return drawn | {
        "legend": [(f"c{colour}", name) for colour, name in names.items()],
        "ticks": [(tick, round(100 * tick / total, 3)) for tick in _ticks(total)],
        "told": f"{page.counted(len(tasks), 'task')} in {page.duration(total)}, at most {max(lanes) + 1:,} at once",
    }


def _colours(tasks: Sequence[ReportedTask]) -> tuple[dict[str, int], dict[int, str]]:
    """The number of each operation's colour, those that took longest first; and what to write beside each colour."""
    spent: dict[str, float] = {}
    for task in tasks:
        spent[task["operation"]] = spent.get(task["operation"], 0.0) + task["end"] - task["start"]
    order = sorted(spent, key=lambda name: -spent[name])
    names = {i: page.clean(name, 24) for i, name in enumerate(order[:COLOURS])}
    if len(others := order[COLOURS:]) > 0:
        names[COLOURS] = page.clean(others[0], 24) if len(others) == 1 else page.counted(len(others), "other operation")
    return {name: min(i, COLOURS) for i, name in enumerate(order)}, names


def _lanes(tasks: Sequence[ReportedTask]) -> list[int]:
    """The lane of each task, of tasks in order of their starts."""
    busy: list[tuple[float, int]] = []
    free: list[int] = []
    lanes = []
    for task in tasks:
        while busy and busy[0][0] <= task["start"]:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (task["end"], lane))
        lanes.append(lane)
    return lanes


def _each(
    tasks: Sequence[ReportedTask], lanes: Sequence[int], colours: Mapping[str, int], total: float
) -> dict[str, Any]:
    pitch = 18 if max(lanes) < 16 else 10
    bars = []
    for task, lane in zip(tasks, lanes, strict=True):
        seconds = task["end"] - task["start"]
        told = f"{page.clean(task['operation'], 60)}: {page.duration(seconds)}, {human_size(task['peak_mem'])}"
        bars.append(
            {
                "colour": colours[task["operation"]],
                "x": round(100 * task["start"] / total, 3),
                "width": round(max(100 * seconds / total, 0.1), 3),
                "y": lane * pitch + 2,
                "height": pitch - 3,
                "told": told if len(tasks) <= 300 else "",
            }
        )
    return {"bars": bars, "labels": [], "height": (max(lanes) + 1) * pitch + 4}


def _load(
    tasks: Sequence[ReportedTask], colours: Mapping[str, int], names: Mapping[int, str], total: float
) -> dict[str, Any]:
    """For each colour, how many tasks ran in each of `BINS` spans of time, on the average."""
    loads = {colour: _running([t for t in tasks if colours[t["operation"]] == colour], total) for colour in names}
    most = max(max(load) for load in loads.values()) or 1.0
    bars: list[dict[str, Any]] = []
    labels, lane = [], 56
    for y, (colour, load) in zip(range(0, lane * len(loads), lane), loads.items(), strict=True):
        labels.append((y + 13, f"{names[colour]}, up to {max(load):,.1f} at a time"))
        for i, running in enumerate(load):
            height = round((lane - 18) * running / most, 1)
            if height:
                bar = {"x": 100 * i / BINS, "width": 100 / BINS, "y": y + lane - height, "height": height}
                bars.append(bar | {"colour": colour, "told": ""})
    return {"bars": bars, "labels": labels, "height": lane * len(loads) + 2}


def _running(tasks: Sequence[ReportedTask], total: float) -> list[float]:
    """Tasks running in each bin, on the average; in time that does not grow with how long they ran."""
    whole, part = [0.0] * (BINS + 1), [0.0] * (BINS + 1)
    for task in tasks:
        start, end = task["start"] * BINS / total, task["end"] * BINS / total
        first, last = min(int(start), BINS - 1), min(int(end), BINS - 1)
        part[first] -= start - first
        part[last] += end - last
        whole[first] += 1
        whole[last] -= 1
    return [max(full + rest, 0.0) for full, rest in zip(accumulate(whole[:BINS]), part, strict=False)]


def _ticks(total: float) -> list[float]:
    """
    Round values from 0 on, six at most.

    >>> _ticks(2.6), _ticks(10)
    ([0.0, 0.5, 1.0, 1.5, 2.0, 2.5], [0.0, 2.0, 4.0, 6.0, 8.0, 10.0])
    """
    step = next(
        s for power in range(-9, 300) for s in (10.0**power, 2 * 10.0**power, 5 * 10.0**power) if total / s < 5.5
    )
    return [float(f"{i * step:.6g}") for i in range(int(total / step + 1e-9) + 1)]
