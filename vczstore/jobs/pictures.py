"""Pictures of a job as SVG: its plan, its tasks in time, its memory and bytes.

What a job is about comes from file names and other people's stores, so every text goes through `escaped`. Charts are
drawn in percent of their width and in pixels of height: they fill any width, and their letters keep their size.
"""

import heapq
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import accumulate
from string import Template
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

from vczstore.sizes import human_size

if TYPE_CHECKING:
    from vczstore.jobs.report import Report, Step, TaskTime

COLOURS = 6
"""Operations with a colour of their own; those that took least share one more."""

MOST_BARS = 2_000
"""Tasks that are drawn one by one; of more, only how many ran at a time."""

MOST_LANES = 40
BINS = 160

# ---- text -----------------------------------------------------------------------------------


def clean(text: object, limit: int = 200) -> str:
    r"""
    Make a text fit to be shown: invisible characters as escapes, the middle left out if it is long.

    >>> clean("a\u202eb\n"), clean("0123456789", 5)
    ('a\\u202eb\\n', '01…89')
    """
    text = str(text)
    if len(text) > limit:
        text = f"{text[: limit // 2]}…{text[-((limit - 1) // 2) :]}"
    return "".join(c if unicodedata.category(c)[0] not in "CZ" or c == " " else ascii(c)[1:-1] for c in text)


def escaped(text: object, limit: int = 200) -> str:
    """Make a text fit to be shown in HTML or SVG, in an attribute too."""
    return escape(clean(text, limit))


def counted(n: int, noun: str) -> str:
    """
    Write a number of things.

    >>> counted(1, "task"), counted(2000, "task")
    ('1 task', '2,000 tasks')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """
    Write seconds as people read them.

    >>> duration(0.1234), duration(42.06), duration(200), duration(7500)
    ('0.123 s', '42.1 s', '3 min 20 s', '2 h 5 min')
    """
    if seconds < 1:
        return f"{seconds:.3f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def _width(text: str) -> int:
    """In columns, as a terminal would count them: wide characters are two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _fit(text: object, columns: int) -> str:
    shown = clean(text, columns)
    while _width(shown) > columns:
        shown = clean(shown.replace("…", ""), len(shown) - 1)
    return shown


# ---- the plan -------------------------------------------------------------------------------

_LIGHT = {
    "surface": "#ffffff", "card": "#f6f7f9", "line": "#c3cad3", "ink": "#1b2430", "muted": "#55606e",
    "copied": "#0072b2", "encoded": "#b87a00", "good": "#00734f", "bad": "#b03a00",
}  # fmt: skip
_DARK = {
    "surface": "#1a2029", "card": "#222a35", "line": "#465262", "ink": "#e8edf3", "muted": "#a9b4c1",
    "copied": "#56b4e9", "encoded": "#e69f00", "good": "#3fcf9f", "bad": "#ff9a62",
}  # fmt: skip
_PLAN_STYLE = Template("""
.plan text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:$ink}
.plan .strong{font-weight:600;font-size:14px}
.plan .muted{fill:$muted;font-size:12px}
.plan .number{fill:$surface;font-weight:600;font-size:12px;text-anchor:middle}
.plan .end{text-anchor:end}
.plan .back{fill:$surface}
.plan .card{fill:$card;stroke:$line}
.plan .rail{stroke:$muted;stroke-width:3;fill:none}
.plan .dashed{stroke-dasharray:3 6;stroke-linecap:round}
.plan .node{fill:$muted}
.plan .open{fill:$surface;stroke:$muted;stroke-width:3}
.plan .good{fill:$good}
.plan .bad{fill:$bad}
.plan .copied{fill:$copied}
.plan .encoded{fill:$encoded}
.plan .tag{fill:none;stroke:$good}
""")

WIDTH, RAIL, LEFT, COLUMNS = 440, 22, 46, 44


def plan_svg(report: "Report") -> str:
    """
    Draw the plan of a job, to be looked at by itself or within a page.

    From top to bottom: the store as it was, each step with its sources, samples and chunks, and what comes of it.
    """
    job, steps = report["job"], report["steps"]
    canvas = _Canvas()
    before = f", {counted(steps[0]['samples_before'], 'sample')}" if steps else ""
    canvas.node("node")
    canvas.text(_fit(job["store"], COLUMNS - 2), "strong")
    canvas.text(f"{_fit(job['backend'], 20)}{before}", "muted")
    canvas.text(f"state {_fit(job['base'], COLUMNS - 6)}", "muted")
    canvas.y += 14
    for i, step in enumerate(steps, 1):
        _draw_step(canvas, i, step)
    _draw_end(canvas, report)
    height = canvas.y + 4
    joined = "rail" if job["status"] == "done" else "rail dashed"
    rail = f'<line class="{joined}" x1="{RAIL}" y1="{canvas.nodes[0]}" x2="{RAIL}" y2="{canvas.nodes[-1]}"/>'
    told = "; ".join(f"{i}. {s['operation']}: {clean(s['summary'], 100)}" for i, s in enumerate(steps, 1))
    style = f"{_PLAN_STYLE.substitute(_LIGHT)}@media (prefers-color-scheme:dark){{{_PLAN_STYLE.substitute(_DARK)}}}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plan" role="img" aria-labelledby="plan-title plan-steps" '
        f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">'
        f'<title id="plan-title">Plan of {escaped(job["id"], 60)}: {escaped(job["status"])}</title>'
        f'<desc id="plan-steps">{escaped(told, 2_000)}</desc><style>{style}</style>'
        f'<rect class="back" width="{WIDTH}" height="{height}" rx="8"/>{rail}{"".join(canvas.parts)}</svg>\n'
    )


class _Canvas:
    """What has been drawn, and how far down."""

    def __init__(self) -> None:
        self.y = 12
        self.parts: list[str] = []
        self.nodes: list[int] = []

    def node(self, kind: str, number: str = "") -> None:
        """A station of the rail, beside the text that comes next."""
        self.nodes.append(self.y + 12)
        self.parts.append(f'<circle class="{kind}" cx="{RAIL}" cy="{self.y + 12}" r="{10 if number else 7}"/>')
        if number:
            self.parts.append(f'<text class="number" x="{RAIL}" y="{self.y + 16}">{number}</text>')

    def text(self, text: str, kind: str = "", x: int = LEFT) -> None:
        """A line of text that fits."""
        self.y += 18
        self.parts.append(f'<text class="{kind}" x="{x}" y="{self.y - 2}">{escape(text)}</text>')


def _draw_step(canvas: _Canvas, number: int, step: "Step") -> None:
    top, place, x = canvas.y, len(canvas.parts), LEFT + 12
    canvas.y += 6
    canvas.node("node", str(number))
    canvas.text(_fit(step["operation"], 20), "strong", x)
    samples = f"{step['samples_before']:,} → {step['samples_after']:,} samples"
    canvas.parts.append(f'<text class="end" x="{WIDTH - 20}" y="{canvas.y - 2}">{samples}</text>')
    lines = wrap(clean(step["summary"], 160), COLUMNS - 4, max_lines=2, placeholder=" …")
    for line in lines:
        canvas.text(_fit(line, COLUMNS - 4), x=x)
    for source in step["sources"][:3]:
        canvas.text(f"← {_fit(source, COLUMNS - 4)}", "muted", x)
    if len(step["sources"]) > 3:
        canvas.text(f"← and {counted(len(step['sources']) - 3, 'more source')}", "muted", x)
    _draw_chunks(canvas, step, x)
    arrays = [counted(step["arrays"], "array")] if "arrays" in step else []
    applied = [f"{step['already_applied']:,} applied before"] if step["already_applied"] else []
    canvas.text(_fit(", ".join([*arrays, counted(step["tasks"], "task"), *applied]), COLUMNS), "muted", x)
    canvas.y += 10
    card = f'<rect class="card" x="{LEFT}" y="{top}" width="{WIDTH - LEFT - 8}" height="{canvas.y - top}" rx="8"/>'
    canvas.parts.insert(place, card)
    canvas.y += 14


def _draw_chunks(canvas: _Canvas, step: "Step", x: int) -> None:
    """Chunks that are copied and those that are encoded, as shares of a bar."""
    copied, encoded = step["encoded_chunks"], step["decoded_chunks"]
    room, y = WIDTH - 20 - x, canvas.y + 8
    if not copied + encoded:
        canvas.text("no chunk is written", "muted", x)
        return
    split = room * copied // (copied + encoded)
    if copied:
        canvas.parts.append(f'<rect class="copied" x="{x}" y="{y}" width="{max(split - 1, 2)}" height="6" rx="2"/>')
    if encoded:
        width = max(room - split - 1, 2)
        canvas.parts.append(f'<rect class="encoded" x="{x + room - width}" y="{y}" width="{width}" height="6" rx="2"/>')
    canvas.y += 16
    for kind, text in (
        ("copied", f"{counted(copied, 'chunk')} copied as {'it is' if copied == 1 else 'they are'}" if copied else ""),
        ("encoded", f"{counted(encoded, 'chunk')} re-encoded" if encoded else ""),
    ):
        if text:
            canvas.text(text, "muted", x + 14)
            canvas.parts.append(f'<rect class="{kind}" x="{x}" y="{canvas.y - 11}" width="8" height="8" rx="2"/>')


def _draw_end(canvas: _Canvas, report: "Report") -> None:
    job, steps = report["job"], report["steps"]
    after = f"{counted(steps[-1]['samples_after'], 'sample')}" if steps else "the store as it is"
    atomic = job["atomic"]
    match job["status"]:
        case "done":
            kind, head = "good", "one commit" if atomic else "visible: shapes first, sample IDs last"
        case "planned":
            kind, head = "open", "to be one commit" if atomic else "to be visible with the sample IDs, last"
        case "nothing to do":
            kind, head = "open", "no commit: nothing to do"
        case _:
            kind, head = "bad", "no commit: the store is as it was" if atomic else "failed: readers see the old samples"
            after = ""
    canvas.node(kind)
    canvas.text(head, "strong")
    for note in (f"snapshot {job['snapshot']}" if job["snapshot"] else "", after):
        if note:
            canvas.text(_fit(note, COLUMNS), "muted")
    canvas.y += 4
    tags = [] if job["status"] == "failed" else job["tags"]
    for tag in tags[:6]:
        shown = _fit(tag, 36)
        canvas.text(shown, x=LEFT + 10)
        width = min(20 + 9 * _width(shown), WIDTH - LEFT - 8)
        canvas.parts.append(f'<rect class="tag" x="{LEFT}" y="{canvas.y - 16}" width="{width}" height="20" rx="10"/>')
        canvas.y += 6
    if len(tags) > 6:
        canvas.text(f"and {counted(len(tags) - 6, 'more tag')}", "muted")
    canvas.y += 8


# ---- charts ---------------------------------------------------------------------------------


class Row(NamedTuple):
    """Bars of a chart, each of segments: how much, and its class."""

    title: str
    note: str
    bars: Sequence[Sequence[tuple[float, str]]]


def bars_svg(name: str, title: str, rows: Sequence[Row], marks: Mapping[str, float]) -> str:
    """
    Draw horizontal bars over one scale, with marked values.

    Parameters
    ----------
    name
        For the ids within the page.
    title
        For those who cannot see it.
    rows
        From top to bottom.
    marks
        Vertical lines across all rows, by their labels.
    """
    most = max([*marks.values(), *(sum(n for n, _ in bar) for row in rows for bar in row.bars)], default=0)
    scale = 98 / (most or 1)
    parts, y = [], 16 * len(marks)
    below = []
    for row in rows:
        parts.append(f'<text class="strong" y="{y + 16}">{escaped(row.title, 40)}</text>')
        parts.append(f'<text class="muted" y="{y + 33}">{escaped(row.note, 80)}</text>')
        y += 40
        for bar in row.bars:
            x = 0.0
            for amount, kind in bar:
                width = amount * scale
                parts.append(f'<rect class="{kind}" x="{x:.3f}%" y="{y}" width="{width:.3f}%" height="11" rx="2"/>')
                x += width
            y += 14
        y += 8
    for i, (label, amount) in enumerate(marks.items()):
        x = amount * scale
        anchor = "end" if x > 50 else "start"
        below.append(f'<line class="mark m{i}" x1="{x:.3f}%" x2="{x:.3f}%" y1="{16 * i + 14}" y2="{y}"/>')
        below.append(f'<text class="muted {anchor}" x="{x:.3f}%" y="{16 * i + 11}">{escaped(label)}</text>')
    told = "; ".join(f"{row.title}: {row.note}" for row in rows)
    return _chart(name, title, told, y, "".join(below + parts))


def timeline_svg(report: "Report") -> str:
    """
    Draw when each task ran: a bar for each, or, of very many, how many ran at a time.

    Lanes are workers as far as can be seen from outside: a task takes the first lane that is free.
    """
    tasks = sorted((t for step in report["steps"] for t in step["timeline"]), key=lambda t: t["start"])
    if not tasks:
        return ""
    colours = operation_colours(tasks)
    total = max([1e-9, *(t["end"] for t in tasks)])
    lanes = _lanes(tasks)
    ticks = _ticks(total)
    if len(tasks) <= MOST_BARS and max(lanes) < MOST_LANES:
        drawn, height = _draw_bars(tasks, lanes, colours, total)
    else:
        drawn, height = _draw_load(tasks, colours, total)
    grid = []
    for tick in ticks:
        x = 100 * tick / total
        anchor = "start" if not tick else "end" if x > 92 else "middle"
        grid.append(f'<line class="grid" x1="{x:.3f}%" x2="{x:.3f}%" y1="0" y2="{height}"/>')
        grid.append(f'<text class="muted {anchor}" x="{x:.3f}%" y="{height + 16}">{tick:g} s</text>')
    told = f"{counted(len(tasks), 'task')} in {duration(total)}, at most {max(lanes) + 1:,} at once"
    return _chart("timeline", "When the tasks ran", told, height + 22, "".join([*grid, *drawn]))


def operation_colours(tasks: Iterable["TaskTime"]) -> dict[str, int]:
    """Give operations the numbers of their colours; those that took longest come first."""
    spent: dict[str, float] = {}
    for task in tasks:
        spent[task["operation"]] = spent.get(task["operation"], 0.0) + task["end"] - task["start"]
    order = sorted(spent, key=lambda name: -spent[name])
    return {name: min(i, COLOURS) for i, name in enumerate(order)}


def colour_names(colours: Mapping[str, int]) -> dict[int, str]:
    """What to write beside each colour, escaped."""
    named: dict[int, list[str]] = {}
    for name, colour in colours.items():
        named.setdefault(colour, []).append(name)
    return {
        colour: escaped(names[0], 24) if len(names) == 1 else counted(len(names), "other operation")
        for colour, names in sorted(named.items())
    }


def _chart(name: str, title: str, told: str, height: float, drawn: str) -> str:
    return (
        f'<svg class="chart" role="img" aria-labelledby="{name}-title {name}-told" width="100%" height="{height:.0f}">'
        f'<title id="{name}-title">{title}</title><desc id="{name}-told">{escaped(told, 2_000)}</desc>{drawn}</svg>'
    )


def _lanes(tasks: Sequence["TaskTime"]) -> list[int]:
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


def _draw_bars(
    tasks: Sequence["TaskTime"], lanes: Sequence[int], colours: Mapping[str, int], total: float
) -> tuple[list[str], int]:
    pitch = 18 if max(lanes) < 16 else 10
    drawn = []
    for task, lane in zip(tasks, lanes, strict=True):
        x, width = 100 * task["start"] / total, 100 * (task["end"] - task["start"]) / total
        told = (
            f"{clean(task['operation'], 60)}: {duration(task['end'] - task['start'])}, {human_size(task['peak_mem'])}"
        )
        title = f"<title>{escape(told)}</title>" if len(tasks) <= 300 else ""
        drawn.append(
            f'<rect class="c{colours[task["operation"]]}" x="{x:.3f}%" y="{lane * pitch + 2}" '
            f'width="{max(width, 0.1):.3f}%" height="{pitch - 3}" rx="1.5">{title}</rect>'
        )
    return drawn, (max(lanes) + 1) * pitch + 4


def _draw_load(tasks: Sequence["TaskTime"], colours: Mapping[str, int], total: float) -> tuple[list[str], int]:
    """For each colour, how many tasks ran in each of `BINS` spans of time, on the average."""
    loads = {
        colour: _load([t for t in tasks if colours[t["operation"]] == colour], total)
        for colour in sorted(set(colours.values()))
    }
    most = max(max(load) for load in loads.values()) or 1.0
    names = colour_names(colours)
    drawn, y, lane = [], 0, 56
    for colour, load in loads.items():
        drawn.append(f'<text class="muted" y="{y + 13}">{names[colour]}, up to {max(load):,.1f} at a time</text>')
        y += lane
        for i, running in enumerate(load):
            height = (lane - 18) * running / most
            if height >= 0.1:
                drawn.append(
                    f'<rect class="c{colour} crisp" x="{100 * i / BINS:.2f}%" y="{y - height:.1f}" '
                    f'width="{100 / BINS:.2f}%" height="{height:.1f}"/>'
                )
    return drawn, y + 2


def _load(tasks: Sequence["TaskTime"], total: float) -> list[float]:
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
    ([0.0, 0.5, 1.0, 1.5, 2.0, 2.5], [0, 2, 4, 6, 8, 10])
    """
    size = 1e-9
    while True:
        for step in (size, 2 * size, 5 * size):
            if total / step < 5.5:
                digits = max(0, -int(f"{step:e}".partition("e")[2]))
                return [
                    round(i * step, digits) if digits else round(i * step) for i in range(int(total / step + 1e-9) + 1)
                ]
        size *= 10
