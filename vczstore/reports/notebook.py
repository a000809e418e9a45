"""HTML representations of objects for notebooks."""

from collections.abc import Mapping
from html import escape


def table(title: str, rows: Mapping[str, object]) -> str:
    """
    Return a small HTML table of names and values with a title; all texts are escaped.

    >>> table("append a&b", {"samples": 2})
    '<table><caption>append a&amp;b</caption><tr><th>samples</th><td>2</td></tr></table>'
    """
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows.items())
    return f"<table><caption>{escape(title)}</caption>{cells}</table>"
