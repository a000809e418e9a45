"""What a job did, for people: one page that needs nothing but itself, and the same as JSON."""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from vczstore.errors import StorageError
from vczstore.jobs.pictures import (
    Row,
    bars_svg,
    clean,
    colour_names,
    duration,
    escaped,
    operation_colours,
    plan_svg,
    timeline_svg,
)
from vczstore.sizes import human_size

__all__ = ["Job", "MemoryBounds", "Report", "Step", "TaskTime", "page", "plan_svg", "write_report"]


class Job(TypedDict):
    """What was to be done, and what came of it. ``started`` is an ISO time, ``seconds`` # s."""

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
    notes: NotRequired[list[str]]
    atomic: bool
    error: str | None


class MemoryBounds(TypedDict):
    """What a task may use, and what of it is Python's own. # bytes."""

    allowed: int
    reserved: int


class TaskTime(TypedDict):
    """When a task ran, since the job's start # s, and the most memory of its process # bytes."""

    operation: str
    start: float
    end: float
    peak_mem: int


class Step(TypedDict):
    """
    One operation of a job.

    ``bytes_read`` and ``bytes_written`` are bounds, decoded; ``encoded_bytes`` and ``decoded_bytes`` are measured;
    memory # bytes, ``seconds`` # s. ``arrays`` is how many are written to.
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
    projected_mem: int
    measured_mem: int | None
    bytes_read: int
    bytes_written: int
    encoded_bytes: int | None
    decoded_bytes: int | None
    get_requests: int
    put_requests: int
    seconds: float | None
    timeline: list[TaskTime]


class Report(TypedDict):
    """A job as it was planned and as it went. Never a sample ID. ``estimate`` is ``Estimate.as_dict()``."""

    job: Job
    versions: dict[str, str]
    memory: MemoryBounds
    steps: list[Step]
    estimate: dict[str, Any] | None


def make_folder(folder: Path) -> None:
    """
    Make the folder of a report, so that one that cannot be made is told of before anything is done.

    Raises
    ------
    StorageError
        If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"report: {clean(folder)} cannot be made: {error.strerror}; name another folder") from error


def write_report(folder: Path, report: Report) -> None:
    """
    Write ``report.json``, the report as it is, and ``report.html``, which shows it.

    The page holds its styles and pictures, has no script, and asks no host for anything.

    Raises
    ------
    StorageError
        If the folder cannot be written to.
    """
    make_folder(folder)
    try:
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (folder / "report.html").write_text(_page(report), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise StorageError(
            f"report: {clean(folder)} cannot be written: {error.strerror}; name a folder that can"
        ) from error


# ---- the page -------------------------------------------------------------------------------

_LIGHT = """
--back:#eef1f4;--surface:#ffffff;--ink:#1b2430;--muted:#55606e;--line:#d5dae1;
--planned:#8a94a3;--measured:#0072b2;--copied:#0072b2;--encoded:#b87a00;--allowed:#b03a00;
--c0:#0072b2;--c1:#c75300;--c2:#00855f;--c3:#a8528a;--c4:#b87a00;--c5:#2f86b8;--c6:#6b7480;
"""
_DARK = """
--back:#11151b;--surface:#1a2029;--ink:#e8edf3;--muted:#a9b4c1;--line:#36404d;
--planned:#78869a;--measured:#56b4e9;--copied:#56b4e9;--encoded:#e69f00;--allowed:#ff9a62;
--c0:#56b4e9;--c1:#f0803c;--c2:#2fc495;--c3:#dd8fbb;--c4:#e6b400;--c5:#3f8ed0;--c6:#9aa5b3;
"""
_STYLE = f"""
:root{{color-scheme:light dark;{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--back);color:var(--ink);overflow-wrap:anywhere;
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}}
main{{max-width:1280px;margin:0 auto;padding:24px 20px 48px;display:grid;gap:16px;grid-template-columns:minmax(0,1fr)}}
h1{{font-size:24px;line-height:1.25;margin:10px 0 4px;font-weight:650}}
h2{{font-size:17px;margin:0 0 12px;font-weight:650}}
p{{margin:0 0 8px}}
section,header{{background:var(--surface);min-width:0;border:1px solid var(--line);
border-radius:12px;padding:18px 20px}}
.muted{{color:var(--muted)}}
.status{{display:inline-block;padding:2px 12px;border-radius:99px;color:#ffffff;background:var(--pill);font-weight:600}}
.done{{--pill:#00734f}}.failed{{--pill:#b03a00}}.planned-job{{--pill:#005a9c}}.nothing{{--pill:#55606e}}
.error{{border-left:4px solid #b03a00;padding:8px 12px;margin:12px 0 0;background:var(--back)}}
.tiles{{display:grid;gap:12px 24px;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));margin:16px 0 0}}
.tiles dt,.facts dt{{color:var(--muted);font-size:13px}}
.tiles dd{{margin:0;font-size:19px;font-weight:600;line-height:1.3;font-variant-numeric:tabular-nums}}
.facts{{display:grid;grid-template-columns:fit-content(45%) minmax(0,1fr);gap:4px 16px;margin:0}}
.facts dt{{padding-top:1px}}.facts dd{{margin:0}}
.two{{display:grid;gap:16px;grid-template-columns:minmax(0,1fr)}}
.stack{{display:grid;gap:16px;align-content:start;min-width:0}}
.plan{{display:block;max-width:100%;height:auto;margin:0 auto}}
.chart{{display:block;overflow:visible}}
.chart text{{font-size:13px;fill:var(--ink)}}
.chart>text{{paint-order:stroke;stroke:var(--surface);stroke-width:4px;stroke-linejoin:round}}
.chart .strong{{font-weight:600}}
.chart .muted{{fill:var(--muted);font-size:12px}}
.chart .start{{text-anchor:start}}.chart .middle{{text-anchor:middle}}.chart .end{{text-anchor:end}}
.crisp{{shape-rendering:crispEdges}}
.grid{{stroke:var(--line)}}
.mark{{stroke:var(--muted);stroke-width:2;stroke-dasharray:2 4}}
.mark.m1{{stroke:var(--allowed);stroke-dasharray:none}}
rect.planned{{fill:var(--planned)}}rect.measured{{fill:var(--measured)}}
rect.copied{{fill:var(--copied)}}rect.encoded{{fill:var(--encoded)}}
{"".join(f".c{i}{{fill:var(--c{i})}}" for i in range(7))}
.legend{{display:flex;flex-wrap:wrap;gap:4px 18px;list-style:none;padding:0;margin:0 0 10px;font-size:13px}}
.legend svg{{width:11px;height:11px;margin-right:6px}}
table{{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}}
th,td{{text-align:right;padding:8px 10px;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:normal}}
td{{white-space:nowrap}}
th{{color:var(--muted);font-size:13px;font-weight:500;vertical-align:bottom}}
tr:last-child td,tr:last-child th[scope=row]{{border-bottom:0}}
th[scope=row],th:first-child{{text-align:left}}
th[scope=row]{{color:var(--ink);font-size:15px;width:30%;overflow-wrap:anywhere}}
th[scope=row] b{{display:block}}
ul.plain{{margin:8px 0 0;padding-left:18px;color:var(--muted);font-size:13px}}
@media (min-width:960px){{
.two{{grid-template-columns:minmax(0,1fr) minmax(0,1fr)}}
.top{{grid-template-columns:480px minmax(0,1fr);align-items:start}}
}}
@media screen and (max-width:860px){{
thead{{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}}
table,tbody,tr,td,th[scope=row]{{display:block;border:0;width:auto}}
tr{{border-bottom:1px solid var(--line);padding:10px 0}}tr:last-child{{border:0}}
td{{display:flex;justify-content:space-between;gap:16px;padding:2px 0}}
td::before{{content:attr(data-label);color:var(--muted);text-align:left}}
th[scope=row]{{padding:0 0 6px}}
}}
@media (max-width:480px){{main{{padding:10px 8px 24px}}section,header{{padding:14px 12px}}h1{{font-size:20px}}}}
@media print{{
:root{{{_LIGHT}}}
body{{background:#ffffff;font-size:12px}}main{{padding:0;max-width:none}}
section,header,svg,tr{{break-inside:avoid}}
*{{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
}}
"""


def page(title: str, content: str) -> str:
    """A page that holds its styles, has no script, and asks no host for anything; title and content are HTML."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta name="referrer" content="no-referrer"/>
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{content}
</main>
</body>
</html>
"""


def _page(report: Report) -> str:
    job = report["job"]
    content = f"""{_headline(report)}
<div class="two top">
{_section("Plan", plan_svg(report))}
<div class="stack">
{_facts(report)}
{_estimate(report)}
{_versions(report)}
</div>
</div>
{_steps(report)}
{_timeline(report)}
<div class="two">
{_memory(report)}
{_bytes(report)}
</div>"""
    return page(f"{escaped(job['id'], 60)}: {escaped(job['status'])}", content)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


_STATUS = {
    "done": ("done", "✓ done"),
    "failed": ("failed", "✕ failed"),
    "planned": ("planned-job", "○ planned"),
    "nothing to do": ("nothing", "= nothing to do"),
}


def _headline(report: Report) -> str:
    job, steps = report["job"], report["steps"]
    kind, status = _STATUS[job["status"]]
    tiles: dict[str, str] = {}
    if job["seconds"] is not None:
        tiles["time"] = duration(job["seconds"])
    if steps:
        after = "" if job["status"] == "failed" else f" → {steps[-1]['samples_after']:,}"
        tiles["samples"] = f"{steps[0]['samples_before']:,}{after}"
    tiles["tasks"] = f"{sum(s['tasks'] for s in steps):,}"
    tiles["chunks copied"] = f"{sum(s['encoded_chunks'] for s in steps):,}"
    tiles["chunks encoded"] = f"{sum(s['decoded_chunks'] for s in steps):,}"
    measured = [s["measured_mem"] for s in steps if s["measured_mem"] is not None]
    projected = [s["projected_mem"] for s in steps]
    if measured:
        tiles["task memory"] = human_size(max(measured))
    elif projected:
        tiles["task memory, at most"] = human_size(max(projected))
    shown = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles.items())
    snapshot = f'<p class="muted">snapshot <bdi>{escaped(job["snapshot"], 80)}</bdi></p>' if job["snapshot"] else ""
    error = (
        f'<p class="error" role="alert"><b>Error:</b> <bdi>{escaped(job["error"], 2_000)}</bdi></p>'
        if job["error"]
        else ""
    )
    return (
        f'<header class="{kind}"><span class="status">{status}</span>'
        f'<h1><bdi>{escaped(job["store"], 160)}</bdi></h1>{snapshot}{error}<dl class="tiles">{shown}</dl></header>'
    )


def _facts(report: Report) -> str:
    job = report["job"]
    facts = {
        "job": job["id"],
        "file": job["file"],
        "backend": job["backend"],
        "executor": job["executor"],
        "started": _when(job["started"]),
        "state before": job["base"],
        "becomes visible": "all at once, in one commit"
        if job["atomic"]
        else "in an order that is safe for readers; no commit",
    }
    shown = [(name, clean(value, 160)) for name, value in facts.items()]
    if job["status"] == "failed":
        return _section("Job", _list(shown))
    tags = ", ".join([clean(tag, 60) for tag in job["tags"][:20]] + ["…"] * (len(job["tags"]) > 20))
    return _section("Job", _list([*shown, ("tags", tags)], 1_500))


def _list(items: Iterable[tuple[str, str]], limit: int = 200) -> str:
    rows = "".join(
        f"<dt>{escaped(name, 60)}</dt><dd><bdi>{escaped(value, limit)}</bdi></dd>" for name, value in items if value
    )
    return f'<dl class="facts">{rows}</dl>' if rows else ""


def _when(iso: str | None) -> str:
    if iso is None:
        return ""
    try:
        at = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{at:%Y-%m-%d %H:%M:%S} {at.tzname() or ''}".strip()


def _versions(report: Report) -> str:
    return _section("Versions", _list(report["versions"].items()))


def _estimate(report: Report) -> str:
    found = report["estimate"]
    if found is None:
        return ""
    facts = {
        "time": f"{duration(found['seconds'])}{_parts(found['parts'], '_seconds', duration)}",
        "list price": "none"
        if found["dollars"] is None
        else f"{_dollars(found['dollars'])}{_parts(found['parts'], '_dollars', _dollars)}",
    }
    assumptions = "".join(f"<li>{escaped(a, 300)}</li>" for a in found["assumptions"])
    note = f'<p class="muted">Estimated from list prices and speeds of {escaped(found["date"], 20)}.</p>'
    return _section("Estimate", f'{note}{_list(facts.items(), 400)}<ul class="plain">{assumptions}</ul>')


def _parts(parts: Mapping[str, float], unit: str, shown: Callable[[float], str]) -> str:
    """What a sum is of, the largest first."""
    named = sorted(
        ((n, name.removesuffix(unit)) for name, n in parts.items() if n and name.endswith(unit)), reverse=True
    )
    listed = ", ".join(f"{name.replace('_', ' ')} {shown(n)}" for n, name in named)
    return f" ({listed})" if listed else ""


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.2g}" if amount >= 0.0001 else f"${amount:.7f}"


def _steps(report: Report) -> str:
    if not report["steps"]:
        return ""
    names = (
        "samples", "already applied", "chunks copied", "re-encoded", "tasks", "read, at most", "written, at most",
        "GET / PUT", "time",
    )  # fmt: skip
    head = "".join(f'<th scope="col" role="columnheader">{name}</th>' for name in ("step", *names))
    rows = []
    for i, step in enumerate(report["steps"], 1):
        values = (
            f"{step['samples_before']:,} → {step['samples_after']:,}",
            f"{step['already_applied']:,}",
            f"{step['encoded_chunks']:,}",
            f"{step['decoded_chunks']:,}",
            f"{step['tasks']:,}",
            human_size(step["bytes_read"]),
            human_size(step["bytes_written"]),
            f"{step['get_requests']:,} / {step['put_requests']:,}",
            "not run" if step["seconds"] is None else duration(step["seconds"]),
        )
        counts = ", ".join(f"{clean(name, 40)}: {n:,}" for name, n in step["counts"].items())
        cells = "".join(f'<td role="cell" data-label="{n}">{v}</td>' for n, v in zip(names, values, strict=True))
        rows.append(
            f'<tr role="row"><th scope="row" role="rowheader"><b>{i} {escaped(step["operation"], 40)}</b>'
            f'<span class="muted">{escaped(step["summary"] or counts, 200)}</span></th>{cells}</tr>'
        )
    return _section(
        "Steps",
        f'<table role="table"><thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(rows)}</tbody></table>',
    )


def _timeline(report: Report) -> str:
    drawn = timeline_svg(report)
    if not drawn:
        return ""
    colours = operation_colours(t for step in report["steps"] for t in step["timeline"])
    labels = {f"c{colour}": name for colour, name in colour_names(colours).items()}
    return _section("Tasks in time, since the start of the job", _legend(labels) + drawn)


def _legend(labels: Mapping[str, str]) -> str:
    """A list of colours and what they stand for, which is escaped already."""
    items = "".join(
        f'<li><svg aria-hidden="true"><rect class="{kind}" width="11" height="11" rx="2"/></svg>{label}</li>'
        for kind, label in labels.items()
    )
    return f'<ul class="legend">{items}</ul>'


def _memory(report: Report) -> str:
    rows = []
    for i, step in enumerate(report["steps"], 1):
        measured = step["measured_mem"]
        note = f"projected {human_size(step['projected_mem'])}"
        bars = [[(step["projected_mem"], "planned")]]
        if measured is not None:
            note += f", measured {human_size(measured)}"
            bars.append([(measured, "measured")])
        rows.append(Row(f"{i} {clean(step['operation'], 30)}", note, bars))
    if not rows:
        return ""
    bounds = report["memory"]
    marks = {
        f"reserved for Python, {human_size(bounds['reserved'])}": bounds["reserved"],
        f"allowed, {human_size(bounds['allowed'])}": bounds["allowed"],
    }
    legend = _legend({"planned": "projected, at most", "measured": "measured, whole process"})
    return _section("Memory of a task", legend + bars_svg("memory", "Memory of a task", rows, marks))


def _bytes(report: Report) -> str:
    rows = []
    for i, step in enumerate(report["steps"], 1):
        note = f"at most {human_size(step['bytes_written'])}"
        bars = [[(step["bytes_written"], "planned")]]
        copied, encoded = step["encoded_bytes"], step["decoded_bytes"]
        if copied is not None and encoded is not None:
            note += f", copied {human_size(copied)}, encoded {human_size(encoded)}"
            bars.append([(copied, "copied"), (encoded, "encoded")])
        rows.append(Row(f"{i} {clean(step['operation'], 30)}", note, bars))
    legend = _legend(
        {
            "planned": "planned, at most (decoded)",
            "copied": "copied as they are (as stored)",
            "encoded": "re-encoded (decoded)",
        }
    )
    return _section("Bytes written", legend + bars_svg("bytes", "Bytes written", rows, {})) if rows else ""
