"""The report of a job: a self-contained HTML page, and the same as JSON."""

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np

from vczstore.reports import page
from vczstore.sizes import human_size

COLOURS = 6
"""The number of operations with a colour of their own, those with the most total time; all others share one."""

MAX_BARS = 2_000
"""The maximum number of tasks to draw one by one; for more, the number of concurrent tasks over time is drawn."""

MAX_LANES = 40
BINS = 160


class ReportedJob(TypedDict):
    """
    The job and its outcome. ``started`` is an ISO 8601 time.

    ``then`` names the operations that follow the commit; ``after`` are their results, and ``after_lines`` as text.
    ``sources`` are those of `vczstore.jobs.compile.FoundSources`.
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
    branch: str | None
    notes: list[str]
    then: list[str]
    after: list[dict[str, Any]]
    after_lines: list[str]
    sources: list[dict[str, Any]]
    why_nothing: str | None
    atomic: bool
    error: str | None


class ReportedTask(TypedDict):
    """The start and end of a task, in seconds since the job's first task, and its process's peak memory in bytes."""

    operation: str
    start: float
    end: float
    peak_mem: int


class Step(TypedDict):
    """
    One operation of a job.

    ``bytes_read`` and ``bytes_written`` are upper bounds of decoded bytes; ``encoded_bytes`` and ``decoded_bytes`` are
    counted, as in `vczstore.execution.results.Result`. Memory is in bytes. ``arrays`` is the number of arrays written
    to. ``tasks_run``, which includes those of checks, and ``chunks_written`` are counted during the run; requests are
    projected. ``projected_seconds`` is the step's part of the estimate. Measurements are None before the run.
    """

    operation: str
    summary: str
    counts: dict[str, int]
    notes: dict[str, str]
    sources: list[str]
    samples_before: int
    samples_after: int
    already_applied: int
    arrays: int
    encoded_chunks: int
    decoded_chunks: int
    tasks: int
    tasks_run: int | None
    chunks_written: int | None
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
    """
    A job as planned and as run. It contains no sample IDs.

    ``memory`` has the bytes that a task may use (``allowed``), and those of them that Python itself uses
    (``reserved``). ``estimate`` is the result of `Estimate.as_dict`.
    """

    job: ReportedJob
    versions: dict[str, str]
    memory: dict[str, int]
    steps: list[Step]
    estimate: dict[str, Any] | None


def write_report(folder: Path, report: Report) -> None:
    """
    Write the report to ``report.json``, and a page that shows it to ``report.html``.

    Raises
    ------
    StorageError
        If the folder cannot be written to.
    """
    page.write(folder, report, "job.html.j2", timeline=_timeline(report["steps"]), **report)


def plan_svg(report: Report) -> str:
    """
    Draw the plan of a job as a standalone SVG.

    From top to bottom: the store before, each step with its sources, samples and chunks, and the store after.
    """
    return page.render("plan.svg.j2", **report)


# ---- tasks in time --------------------------------------------------------------------------


def _timeline(steps: Sequence[Step]) -> dict[str, Any] | None:
    """
    Return the template's timeline: a bar per task or, for many, bars of their average number; None without tasks.

    Lanes approximate workers: a task takes the first lane that is free. All horizontal positions are in percent.
    """
    tasks = sorted((t for step in steps for t in step["timeline"]), key=lambda t: t["start"])
    if not tasks:
        return None
    total = max([1e-9, *(t["end"] for t in tasks)])
    lanes = _lanes(tasks)
    colours, names = _colours(tasks)
    is_each = len(tasks) <= MAX_BARS and max(lanes) < MAX_LANES
    drawn = _each(tasks, lanes, colours, total) if is_each else _load(tasks, colours, names, total)
    return drawn | {
        "legend": [(f"c{colour}", name) for colour, name in names.items()],
        "ticks": [(tick, round(100 * tick / total, 3)) for tick in _ticks(total)],
        "description": f"{page.counted(len(tasks), 'task')} in {page.duration(total)}, at most {max(lanes) + 1:,} at "
        "once",
    }


def _colours(tasks: Sequence[ReportedTask]) -> tuple[dict[str, int], dict[int, str]]:
    """The colour number of each operation, in decreasing order of total time; and the legend text of each colour."""
    spent = defaultdict[str, float](float)
    for task in tasks:
        spent[task["operation"]] += task["end"] - task["start"]
    order = sorted(spent, key=spent.__getitem__, reverse=True)
    names = {i: page.clean(name, 24) for i, name in enumerate(order[:COLOURS])}
    if others := order[COLOURS:]:
        names[COLOURS] = page.clean(others[0], 24) if len(others) == 1 else page.counted(len(others), "other operation")
    return {name: min(i, COLOURS) for i, name in enumerate(order)}, names


def _lanes(tasks: Sequence[ReportedTask]) -> list[int]:
    """The lane of each task, an index from 0; the tasks are in order of their starts."""
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
        tooltip = f"{page.clean(task['operation'], 60)}: {page.duration(seconds)}, {human_size(task['peak_mem'])}"
        bars.append(
            {
                "colour": colours[task["operation"]],
                "x": round(100 * task["start"] / total, 3),
                "width": round(max(100 * seconds / total, 0.1), 3),
                "y": lane * pitch + 2,
                "height": pitch - 3,
                "tooltip": tooltip if len(tasks) <= 300 else "",
            }
        )
    return {"bars": bars, "labels": [], "height": (max(lanes) + 1) * pitch + 4}


def _load(
    tasks: Sequence[ReportedTask], colours: Mapping[str, int], names: Mapping[int, str], total: float
) -> dict[str, Any]:
    """Bars for each colour: the average number of running tasks in each of `BINS` time bins."""
    loads = {colour: _running([t for t in tasks if colours[t["operation"]] == colour], total) for colour in names}
    peak = max(max(load) for load in loads.values()) or 1.0
    bars: list[dict[str, Any]] = []
    labels, lane = [], 56
    for y, (colour, load) in zip(range(0, lane * len(loads), lane), loads.items(), strict=True):
        labels.append((y + 13, f"{names[colour]}, up to {max(load):,.1f} at a time"))
        for i, running in enumerate(load):
            height = round((lane - 18) * running / peak, 1)
            if height:
                bar = {"x": 100 * i / BINS, "width": 100 / BINS, "y": y + lane - height, "height": height}
                bars.append(bar | {"colour": colour, "tooltip": ""})
    return {"bars": bars, "labels": labels, "height": lane * len(loads) + 2}


def _running(tasks: Sequence[ReportedTask], total: float) -> list[float]:
    """The average number of tasks running in each bin: the increase of the time that tasks have run, by its width."""
    starts, ends = (np.array([task[key] for task in tasks]) for key in ("start", "end"))
    time_run = [(np.clip(edge, starts, ends) - starts).sum() for edge in np.linspace(0, total, BINS + 1)]
    return [float(n) for n in np.diff(time_run) * BINS / total]


def _ticks(total: float) -> list[float]:
    """
    At most six round values, from 0 to at most `total`.

    >>> _ticks(2.6), _ticks(10)
    ([0.0, 0.5, 1.0, 1.5, 2.0, 2.5], [0.0, 2.0, 4.0, 6.0, 8.0, 10.0])
    """
    step = next(
        s for power in range(-9, 300) for s in (10.0**power, 2 * 10.0**power, 5 * 10.0**power) if total / s < 5.5
    )
    return [float(f"{i * step:.6g}") for i in range(int(total / step + 1e-9) + 1)]
