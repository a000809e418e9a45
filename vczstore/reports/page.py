"""
Reports as HTML and JSON, from templates.

Their texts come from file names and untrusted stores. So everything that a template prints is HTML-escaped, and
invisible characters are shown as escapes, by default; templates set the maximum lengths.
"""

import json
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from vczstore.errors import StorageError
from vczstore.sizes import human_size

if TYPE_CHECKING:
    from jinja2 import Environment


def make_folder(folder: Path) -> None:
    """
    Create the folder of a report; called early, so that a failure is raised before anything is done.

    Raises
    ------
    StorageError
        If it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"report: {clean(folder)} cannot be made: {error.strerror}; name another folder") from error


@contextmanager
def report_folder(folder: Path | None) -> Iterator[None]:
    """Context manager that makes the folder of a report as `make_folder`, and deletes what it made if it is empty."""
    made = [] if folder is None else [path for path in (folder, *folder.parents) if not path.exists()]
    if folder is not None:
        make_folder(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


def write(folder: Path, data: Any, template: str, **values: Any) -> None:
    """
    Write the data to ``report.json``, and the rendered template to ``report.html``.

    The page embeds its styles and pictures, has no scripts, and loads nothing from other hosts.

    Raises
    ------
    StorageError
        If the folder cannot be written to.
    """
    make_folder(folder)
    page = render(template, **values)
    try:
        (folder / "report.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        (folder / "report.html").write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise StorageError(
            f"report: {clean(folder)} cannot be written: {error.strerror}; name a folder that can"
        ) from error


def render(template: str, **values: Any) -> str:
    """Render one of ``templates/``."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("vczstore.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value, 10_000),
    )
    environment.filters |= {
        "short": clean,
        "fit": _fit,
        "lines": _lines,
        "number": lambda n: f"{n:,}",
        "counted": counted,
        "size": human_size,
        "duration": duration,
        "dollars": _dollars,
        "when": _when,
        "parts": _parts,
    }
    return environment


def table(title: str, rows: Mapping[str, object]) -> str:
    """
    Return a small HTML table of names and values with a title, for notebooks; all texts are escaped.

    >>> table("append a&b", {"samples": 2})
    '<table><caption>append a&amp;b</caption><tr><th>samples</th><td>2</td></tr></table>'
    """
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows.items())
    return f"<table><caption>{escape(title)}</caption>{cells}</table>"


# ---- text -----------------------------------------------------------------------------------


def clean(text: object, limit: int = 200) -> str:
    r"""
    Escape the invisible characters of a text, and elide its middle if it is longer than `limit`.

    >>> clean("a\u202eb\n"), clean("0123456789", 5)
    ('a\\u202eb\\n', '01…89')
    """
    text = str(text)
    if len(text) > limit:
        text = f"{text[: limit // 2]}…{text[-((limit - 1) // 2) :]}"
    return "".join(c if unicodedata.category(c)[0] not in "CZ" or c == " " else ascii(c)[1:-1] for c in text)


def counted(n: int, noun: str) -> str:
    """
    Format a number with its noun.

    >>> counted(1, "task"), counted(2000, "task")
    ('1 task', '2,000 tasks')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """
    Format a duration in seconds.

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


def _fit(text: object, columns: int) -> str:
    """Return a cleaned text that takes no more than some columns, of which wide characters take two."""
    from rich.cells import cell_len

    fitted = clean(text, columns)
    while cell_len(fitted) > columns:
        fitted = clean(fitted.replace("…", ""), len(fitted) - 1)
    return fitted


def _lines(text: str, columns: int) -> list[str]:
    """Wrap a text into at most two lines."""
    return [_fit(line, columns) for line in wrap(clean(text, 160), columns, max_lines=2, placeholder=" …")]


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.2g}" if amount >= 0.0001 else f"${amount:.7f}"


def _when(iso: str) -> str:
    try:
        at = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{at:%Y-%m-%d %H:%M:%S} {at.tzname() or ''}".strip()


def _parts(parts: Mapping[str, float], unit: str) -> str:
    """Format the parts of a sum whose names end in `unit`, the largest first."""
    formatted = duration if unit == "_seconds" else _dollars
    named = sorted(
        ((n, name.removesuffix(unit)) for name, n in parts.items() if n and name.endswith(unit)), reverse=True
    )
    listed = ", ".join(f"{name.replace('_', ' ')} {formatted(n)}" for n, name in named)
    return f" ({listed})" if listed else ""
