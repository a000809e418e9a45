"""The report of a job, also with hostile texts and in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from vczstore.errors import StorageError
from vczstore.jobs.estimate import estimate
from vczstore.jobs.report import MAX_BARS, plan_svg, write_report
from vczstore.reports.page import clean, duration

HTML_TAGS = set(re.findall(r"\w+", "html head meta title style body main header section div span h1 h2 p b bdi"))
HTML_TAGS |= set(re.findall(r"\w+", "dl dt dd ul li table thead tbody tr th td"))
SVG_TAGS = {"svg", "title", "desc", "style", "rect", "line", "circle", "text"}
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    "<script>document.title='owned'</script>",
    "\"' onload=document.title='owned' x='",
    "</style></svg></title><img src=http://canary.example/image>",
    "<style>@import url(http://canary.example/style)</style>",
    "]]>&amp;<!-- --!> &#60;b&#62; {{x}} $ink",
    "a\nb\r\tc\x00\x1b[31m\x7f\x85",
    "\u202egnp.elif\u2066\u200f\u200e\ufeff",
    "lone \ud800 surrogate",
    "/" + "very-long-folder/" * 588,
    "漢字" * 200,
    "",
]


def make_task(end: float) -> dict[str, Any]:
    return {"operation": "w", "start": 0.0, "end": end, "peak_mem": 1}


def make_step(operation: str = "append", *, tasks: int = 40, start: float = 0.0, **changes: Any) -> dict[str, Any]:
    timeline = [
        {
            "operation": f"{'check' if i < 4 else 'write'} {operation}",
            "start": start + i // 4 * 0.1,
            "end": start + i // 4 * 0.1 + 0.09,
            "peak_mem": 300_000_000,
        }
        for i in range(tasks)
    ]
    step = {
        "operation": operation,
        "summary": "2 sources, 1,500 samples added",
        "counts": {"sources": 2, "samples added": 1_500},
        "notes": {},
        "sources": ["s3://bucket/batch-7.vcz", "s3://bucket/batch-8.vcz"],
        "samples_before": 4_000,
        "samples_after": 5_500,
        "already_applied": 0,
        "encoded_chunks": 480,
        "decoded_chunks": 96,
        "tasks": tasks,
        "tasks_run": None,
        "chunks_written": None,
        "projected_mem": 1_100_000_000,
        "measured_mem": 600_000_000,
        "bytes_read": 2_100_000_000,
        "bytes_written": 1_700_000_000,
        "encoded_bytes": 240_000_000,
        "decoded_bytes": 310_000_000,
        "get_requests": 1_520,
        "put_requests": 810,
        "seconds": 1.0,
        "timeline": timeline,
    }
    return step | changes


def make_report(steps: list[dict[str, Any]] | None = None, **job: Any) -> Any:
    steps = [make_step(arrays=5), make_step("remove", start=1.5)] if steps is None else steps
    default = {
        "id": "november",
        "file": "jobs/november.yaml",
        "store": "s3://bucket/cohort.icechunk",
        "backend": "icechunk",
        "executor": "threads",
        "status": "done",
        "started": "2026-11-22T15:36:07+00:00",
        "seconds": 2.6,
        "base": "8ZV4XN8Q1S9J3K2M4T5G",
        "snapshot": "1CECHNKREP0F1RSTCMT0",
        "tags": ["release-1"],
        "branch": None,
        "notes": [],
        "then": [],
        "after": [],
        "after_lines": [],
        "sources": [],
        "why_nothing": None,
        "atomic": True,
        "error": None,
    }
    return {
        "job": default | job,
        "versions": {"vczstore": "0.2.0", "cubed": "0.28.0"},
        "memory": {"allowed": 2_000_000_000, "reserved": 200_000_000},
        "steps": steps,
        "estimate": estimate(steps, "lithops-aws-lambda", workers=10, remote=True).as_dict(),
    }


def make_hostile(text: str, **job: Any) -> Any:
    """A report in which every text is `text`."""
    step = make_step(text, summary=text, counts={text: 1}, sources=[text] * 5, already_applied=3)
    report = make_report([step], id=text, file=text, store=text, backend=text, executor=text, base=text, **job)
    report["job"] |= {"started": text, "snapshot": text, "tags": [text] * 30, "error": text}
    report["versions"] = {text: text}
    report["estimate"] |= {"date": text, "assumptions": [text], "parts": {f"{text}_dollars": 1e-5}}
    return report


PLANNED = {"seconds": None, "measured_mem": None, "encoded_bytes": None, "decoded_bytes": None, "timeline": []}
REPORTS = {
    "done": make_report(),
    "plain Zarr": make_report(atomic=False, snapshot=None, tags=[]),
    "failed": make_report([make_step(**PLANNED)], status="failed", snapshot=None, error="append: it broke; mend it"),
    "failed on plain Zarr": make_report([make_step(**PLANNED)], status="failed", snapshot=None, atomic=False),
    "planned": make_report([make_step(**PLANNED)], status="planned", snapshot=None, seconds=None, started=None),
    "planned on plain Zarr": make_report([make_step(**PLANNED)], status="planned", snapshot=None, atomic=False),
    "nothing to do": make_report([], status="nothing to do", snapshot=None, tags=[]) | {"estimate": None},
    "a step without chunks": make_report([make_step(encoded_chunks=0, decoded_chunks=0, tasks=0, timeline=[])]),
    "twenty steps, many sources and tags": make_report(
        [make_step(f"append {i}", sources=["x"] * 50, start=i) for i in range(20)], tags=[f"t{i}" for i in range(50)]
    ),
    "5,000 tasks": make_report([make_step(tasks=5_000)]),
    "5,000 tasks at once": make_report([make_step(timeline=[make_task(1.0)] * 5_000)]),
    "tasks of no time": make_report([make_step(timeline=[make_task(0.0)] * 3)]),
    **{f"hostile {i}": make_hostile(text) for i, text in enumerate(HOSTILE)},
}


@pytest.fixture(params=REPORTS)
def report(request: pytest.FixtureRequest) -> Any:
    return REPORTS[request.param]


# ---- files ----------------------------------------------------------------------------------


def page_of(folder: Path, report: Any) -> str:
    write_report(folder, report)
    return (folder / "report.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Tags and attributes of a page, read with a lenient parser."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_json_is_the_report_as_given(tmp_path: Path, report: Any) -> None:
    write_report(tmp_path / "new" / "folder", report)
    text = (tmp_path / "new" / "folder" / "report.json").read_text(encoding="utf-8")
    assert json.loads(text) == report
    assert text.startswith('{\n  "job": {\n    "id"')
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["report.html", "report.json"]


def test_page_is_well_formed_and_requests_nothing(tmp_path: Path, report: Any) -> None:
    page = page_of(tmp_path, report)
    root = ElementTree.fromstring(page)
    assert root.tag == "html"
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    elements = Elements(page).found
    assert {tag for tag, _ in elements} <= HTML_TAGS | SVG_TAGS
    for _, attributes in elements:
        assert not {"src", "href", "xlink:href", "srcset", "style", "action", "data"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        allowed = {"xmlns": "http://www.w3.org/2000/svg"}
        assert not [v for k, v in attributes.items() if v and re.search(r"url\(|https?:", v) and allowed.get(k) != v]
    for style in [e.text or "" for e in root.iter() if e.tag in ("style", f"{SVG}style")]:
        assert not re.search(r"url\(|@import|@font-face|https?:", style)
    plan = ElementTree.fromstring(plan_svg(report))
    (shown,) = [e for e in root.iter() if e.tag == plan.tag]
    assert list(shown.itertext()) == list(plan.itertext())
    (policy,) = [a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_plan_is_a_standalone_picture(report: Any) -> None:
    root = ElementTree.fromstring(plan_svg(report))
    assert root.tag == f"{SVG}svg"
    assert {e.tag.removeprefix(SVG) for e in root.iter()} <= SVG_TAGS
    assert root.get("role") == "img"
    labels = (root.get("aria-labelledby") or "").split()
    assert labels == [e.get("id") for e in root.iter() if e.tag in (f"{SVG}title", f"{SVG}desc")]
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for box in root.iter(f"{SVG}rect"):
        assert 0 <= float(box.get("x", 0)) <= float(box.get("x", 0)) + float(box.get("width", 0)) <= width
        assert 0 <= float(box.get("y", 0)) <= float(box.get("y", 0)) + float(box.get("height", 0)) <= height
    for text in root.iter(f"{SVG}text"):
        assert len("".join(text.itertext())) <= 46


def texts(report: Any) -> list[str]:
    return ["".join(e.itertext()) for e in ElementTree.fromstring(plan_svg(report)).iter(f"{SVG}text")]


def test_plan_shows_store_steps_and_commit() -> None:
    labels = texts(REPORTS["done"])
    assert labels[:12] == [
        "s3://bucket/cohort.icechunk",
        "icechunk, 4,000 samples",
        "state 8ZV4XN8Q1S9J3K2M4T5G",
        "1",
        "append",
        "4,000 → 5,500 samples",
        "2 sources, 1,500 samples added",
        "← s3://bucket/batch-7.vcz",
        "← s3://bucket/batch-8.vcz",
        "480 chunks copied as they are",
        "96 chunks re-encoded",
        "5 arrays, 40 tasks",
    ]
    assert labels[-4:] == ["one commit", "snapshot 1CECHNKREP0F1RSTCMT0", "5,500 samples", "release-1"]


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("plain Zarr", "visible: shapes first, sample IDs last"),
        ("failed", "no commit: the store is as it was"),
        ("failed on plain Zarr", "failed: readers see the old samples"),
        ("planned", "to be one commit"),
        ("planned on plain Zarr", "to be visible with the sample IDs, last"),
        ("nothing to do", "no commit: nothing to do"),
    ],
)
def test_plan_shows_the_outcome(name: str, end: str) -> None:
    labels = texts(REPORTS[name])
    assert end in labels
    assert ("release-1" in labels) == name.startswith("planned")


def test_plan_shows_the_number_of_applied_sources() -> None:
    assert "40 tasks, 1 applied before" in texts(make_report([make_step(already_applied=1)]))


def test_sources_are_named(tmp_path: Path) -> None:
    glob = {"operation": "append", "source": "inbox/*.vcz", "found": [f"inbox/{i}" for i in range(1_001)], "new": 7}
    page = page_of(tmp_path, make_report(sources=[glob]))
    assert "<bdi>inbox/999</bdi>" in page
    assert "inbox/1000<" not in page
    assert "and 1 more, in report.json" in page


def test_many_sources_and_tags_are_counted() -> None:
    labels = texts(REPORTS["twenty steps, many sources and tags"])
    assert labels.count("← and 47 more sources") == 20
    assert "and 44 more tags" in labels


@pytest.mark.parametrize("name", ["5,000 tasks", "5,000 tasks at once"])
def test_thousands_of_tasks_stay_small(tmp_path: Path, name: str) -> None:
    page = page_of(tmp_path, REPORTS[name])
    assert len(page) < 150_000
    assert page.count("<rect") < MAX_BARS
    # each of 4 workers is busy for 0.09 s of every 0.1 s
    load = {"5,000 tasks": "write append, up to 3.6 at a time", "5,000 tasks at once": "w, up to 5,000.0 at a time"}
    assert load[name] in page


def test_every_task_is_a_bar_with_its_colour(tmp_path: Path) -> None:
    root = ElementTree.fromstring(page_of(tmp_path, REPORTS["done"]))
    (chart,) = [e for e in root.iter() if e.get("aria-labelledby") == "timeline-title timeline-desc"]
    bars = [e for e in chart.iter() if e.tag.endswith("rect")]
    assert len(bars) == 80
    assert len({b.get("y") for b in bars}) == 4
    kinds = {(b.get("class"), b[0].text.partition(":")[0]) for b in bars}
    assert len(kinds) == len({kind for kind, _ in kinds}) == len({name for _, name in kinds}) == 4
    ends = [float(b.get("x").rstrip("%")) + float(b.get("width").rstrip("%")) for b in bars]
    assert max(ends) == pytest.approx(100)


def test_numbers_of_the_page(tmp_path: Path) -> None:
    shown = " ".join("".join(ElementTree.fromstring(page_of(tmp_path, REPORTS["done"])).itertext()).split())
    for part in ("✓ done", "2.6 s", "4,000 → 5,500", "projected 1.1 GB, measured 600.0 MB", "allowed, 2.0 GB",
                 "reserved for Python, 200.0 MB", "at most 1.7 GB, copied 240.0 MB, encoded 310.0 MB",
                 "1,520 / 810", "vczstore0.2.0", "list price", "2026-11-22 15:36:07 UTC"):  # fmt: skip
        assert part in shown, part


def test_page_of_a_failed_job(tmp_path: Path) -> None:
    page = page_of(tmp_path, REPORTS["failed"])
    header = page[page.index("<header") : page.index("</header>")]
    assert "✕ failed" in header
    assert "append: it broke; mend it" in header
    assert "<dt>samples</dt><dd>4,000</dd>" in header
    assert "release-1" not in page


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_are_shown_without_invisible_characters(text: str) -> None:
    shown = clean(text, 100)
    assert len(shown) <= 600
    assert not re.search("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff]", shown)
    if text.isprintable() and len(text) <= 100:
        assert shown == text


@pytest.mark.parametrize("seconds", [0, 0.9999, 59.96, 3599.9, 1e9])
def test_durations_are_short(seconds: float) -> None:
    assert re.fullmatch(r"[\d.,]+ (s|min|h)( \d+ (s|min))?", duration(seconds))


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"^report: .*/file/deeper cannot be made: Not a directory; name another"):
        write_report(tmp_path / "file" / "deeper", REPORTS["done"])


# ---- contrast -------------------------------------------------------------------------------


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_meets_wcag_aa(tmp_path: Path, dark: bool) -> None:
    style = page_of(tmp_path, REPORTS["done"]).partition("<style>")[2]
    themes = [
        dict(re.findall(r"--([a-z0-9]+):(#[0-9a-f]{6})", part)) for part in re.findall(r":root\{([^}]*)\}", style)
    ]
    theme = themes[1 if dark else 0]
    for text in ("ink", "muted"):
        assert min(_contrast(theme[text], theme[back]) for back in ("surface", "back")) >= 4.5
    for name in ("planned", "measured", "copied", "encoded", "allowed", *(f"c{i}" for i in range(7))):
        assert _contrast(theme[name], theme["surface"]) >= 3, name
    for pill in re.findall(r"--pill:(#[0-9a-f]{6})", style):
        assert _contrast(pill, "#ffffff") >= 4.5


# ---- in a browser ---------------------------------------------------------------------------

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # for requests of the browser itself
]

type Browser = Callable[..., str]


@pytest.fixture
def browse(tmp_path: Path) -> Browser:
    """Return a function that runs Chromium once with a new profile, and returns its output."""
    chromium = shutil.which("chromium")
    if chromium is None and "CI" not in os.environ:
        pytest.skip("no chromium on this machine; .ci/run installs it")
    assert chromium

    def run(page: Path, *flags: str) -> str:
        profile = f"--user-data-dir={tmp_path / f'profile-{time.monotonic_ns()}'}"
        command = [chromium, *FLAGS, profile, *flags, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    return run


def requests_of(log: Path) -> list[str]:
    """URLs requested by a page, from the browser's log; requests of the browser itself have no origin."""
    document = json.loads(log.read_text())
    kind = document["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    started = [e["params"] for e in document["events"] if e["type"] == kind and "url" in e.get("params", {})]
    return [p["url"] for p in started if p["initiator"] != "not an origin"]


@pytest.mark.slow
def test_the_page_sends_no_requests(tmp_path: Path, browse: Browser) -> None:
    """As a control, a page with an image sends a request; a report with only hostile texts sends none."""
    log = tmp_path / "net.json"
    control = tmp_path / "control.html"
    control.write_text("<img src='http://canary.example/control'>")
    browse(control, f"--log-net-log={log}", "--dump-dom")
    assert requests_of(log) == ["http://canary.example/control"]

    report = make_hostile("".join(HOSTILE[:4]))
    report["steps"] = [make_step(text, summary=text, sources=[text]) for text in HOSTILE]
    page = page_of(tmp_path, report)
    # also without its security policy, so that nothing blocks requests
    (tmp_path / "bare.html").write_text(re.sub(r"<meta http-equiv[^>]*>", "", page), encoding="utf-8")
    for name in ("report.html", "bare.html"):
        log.unlink()
        dom = browse(tmp_path / name, f"--log-net-log={log}", "--dump-dom")
        assert requests_of(log) == []
        assert "<title>owned" not in dom
        assert not re.search("<(script|img|link|iframe)", dom)
        assert dom.count("<section>") == page.count("<section>") == 7


@pytest.mark.parametrize("name", ["done", "hostile"])
@pytest.mark.slow
def test_nothing_is_wider_than_the_window(tmp_path: Path, browse: Browser, name: str) -> None:
    """A script measures the page and the texts of pictures, in frames of several widths, in a copy without policy."""
    report = REPORTS["done"] if name == "done" else make_hostile(HOSTILE[8])
    page = re.sub(r"<meta http-equiv[^>]*>", "", page_of(tmp_path, report))
    script = """<script>
        const ends = [...document.querySelectorAll("svg text")].map(t => Math.floor(t.getBoundingClientRect().right));
        parent.postMessage([innerWidth, Math.max(document.documentElement.scrollWidth, ...ends)].join(":"), "*");
    </script>"""
    (tmp_path / "copy.html").write_text(page.replace("</body>", f"{script}</body>"), encoding="utf-8")
    widths = (360, 400, 700, 900, 1000, 1600)
    frames = "".join(f"<iframe src=copy.html style='width:{w}px;border:0'></iframe>" for w in widths)
    listen = "<p id=out></p><script>onmessage = e => { out.textContent += e.data + ' ' }</script>"
    (tmp_path / "frames.html").write_text(f"<body>{listen}{frames}")
    dom = browse(tmp_path / "frames.html", "--dump-dom", "--virtual-time-budget=5000")
    measured = sorted(tuple(map(int, pair)) for pair in re.findall(r"(\d+):(\d+)", dom))
    assert measured == [(w, w) for w in widths]


def _pixels(png: bytes) -> tuple[int, int, list[bytes]]:
    """Decode a PNG written by Chromium: return width, height, and rows with 3 bytes per pixel."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    step = {2: 3, 6: 4}[kind]
    assert depth == 8
    offset, packed = 8, b""
    while offset < len(png):
        (length,) = struct.unpack(">I", png[offset : offset + 4])
        if png[offset + 4 : offset + 8] == b"IDAT":
            packed += png[offset + 8 : offset + 8 + length]
        offset += length + 12
    raw, rows, above = zlib.decompress(packed), [], bytearray(width * step)
    for y in range(height):
        start = y * (width * step + 1)
        method, row = raw[start], bytearray(raw[start + 1 : start + 1 + width * step])
        for i in range(len(row)):
            a, b = (row[i - step] if i >= step else 0), above[i]
            c = above[i - step] if i >= step else 0
            match method:
                case 1:
                    row[i] = (row[i] + a) & 255
                case 2:
                    row[i] = (row[i] + b) & 255
                case 3:
                    row[i] = (row[i] + (a + b) // 2) & 255
                case 4:
                    p = a + b - c
                    nearest = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
                    row[i] = (row[i] + nearest) & 255
        above = row
        rows.append(b"".join(bytes(row[i : i + 3]) for i in range(0, len(row), step)))
    return width, height, rows


@pytest.mark.parametrize(("scheme", "back"), [("1", "eef1f4"), ("0", "11151b")])
@pytest.mark.slow
def test_light_and_dark_colour_schemes(tmp_path: Path, browse: Browser, scheme: str, back: str) -> None:
    page_of(tmp_path, REPORTS["done"])
    picture = tmp_path / "page.png"
    flags = (f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={picture}", "--window-size=600,500")
    browse(tmp_path / "report.html", *flags)
    width, height, rows = _pixels(picture.read_bytes())
    assert (width, height) == (600, 500)
    assert rows[2][:3].hex() == back
    colours = {row[i : i + 3] for row in rows for i in range(0, len(row), 3)}
    assert bytes.fromhex("00734f") in colours  # the status
    assert len(colours) > 50
