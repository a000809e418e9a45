"""Progress displays: bars on a terminal, and a line per minute in a log file."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from vczstore.errors import UnsuitableError
from vczstore.sizes import human_size

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

type Progress = Callable[[str, int, int], None]
"""Called with the current phase, the number of its tasks that have ended, and the total number of its tasks."""

INTERVAL = 60.0
"""Seconds between two lines of a log file."""


class Display:
    """
    The current phase and its progress.

    Attributes
    ----------
    of
        The operation and its store, for the first and last line of a log; may be empty.
    what, done, total
        The last arguments of `Progress`; `total` is None before there are tasks.
    n_bytes
        Bytes that this phase has written: the encoded size of copied chunks, and the decoded size of others.
    bars
        The bars on the terminal; None without them.
    """

    def __init__(self) -> None:
        self.bars: RichProgress | None = None
        self.of = ""
        self._rows: dict[str, Any] = {}
        self._begin("preparing", 0, None)

    def _begin(self, what: str, done: int, total: int | None) -> None:
        self.what, self.done, self.total, self.n_bytes = what, done, total, 0
        self._first, self._began = done, time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Record that a phase has begun, or that another task of it has ended."""
        if what != self.what:
            self._begin(what, done, total)
        self.done, self.total = done, total
        self.show()

    @property
    def speed(self) -> str:
        """Bytes written per second; empty if nothing was written."""
        elapsed = time.monotonic() - self._began
        return f"{human_size(self.n_bytes / elapsed)}/s" if self.n_bytes and elapsed else ""

    @property
    def left(self) -> str:
        """Estimated time left in this phase, such as "0:01:30 left"; empty if unknown, and at the end."""
        done, elapsed = self.done - self._first, time.monotonic() - self._began
        if not done or self.total is None or self.done == self.total:
            return ""
        return f"{timedelta(seconds=round(elapsed / done * (self.total - self.done)))} left"

    def show(self) -> None:
        """Draw the bar of the current phase, if there are bars."""
        if self.bars is None:
            return
        tasks = "" if self.total is None else f"{self.done:,}/{self.total:,} tasks"
        if self.what not in self._rows:
            self.end()
            self._rows[self.what] = self.bars.add_task(self.what, total=None, tasks="", speed="", left="")
        shown: dict[str, Any] = {"tasks": tasks, "speed": self.speed, "left": self.left}
        self.bars.update(self._rows[self.what], completed=self.done, total=self.total, **shown)

    def end(self) -> None:
        """Remove the bar of "preparing", which has no tasks."""
        if self.bars is not None and (row := self._rows.pop("preparing", None)) is not None:
            self.bars.remove_task(row)

    def named(self, text: str) -> str:
        """Prefix a text with the operation and its store."""
        return f"{self.of}: {text}" if self.of else text

    def line(self) -> str:
        """Describe the current phase in a line of a log."""
        tasks = "" if self.total is None else f"{self.done:,}/{self.total:,} tasks"
        written = f"{human_size(self.n_bytes)} written" if self.n_bytes else ""
        return ", ".join(part for part in (f"{self.what} {tasks}".strip(), written, self.speed, self.left) if part)


@contextmanager
def showing(progress: Progress | bool | None, log_file: str | None = None, of: str = "") -> "Iterator[Progress | None]":
    """
    Display progress for the duration of the context; yield the function to call, None if there is nothing to display.

    Parameters
    ----------
    progress
        True to draw bars on standard error, or a function to call instead.
    log_file
        Path of a file to which a line is appended each minute; None for no file.
    of
        The operation and its store, for the first and last line of the file.

    Raises
    ------
    UnsuitableError
        If the file cannot be written.
    """
    if (not progress or callable(progress)) and log_file is None:
        yield progress if callable(progress) else None
        return
    display = Display()
    with ExitStack() as stack:
        if log_file is not None:
            stack.enter_context(_logging(display, log_file, of))
        if progress is True:
            display.bars = stack.enter_context(_bars())
            stack.callback(display.end)
            display.show()
        if not callable(progress):
            yield display
            return

        def report(what: str, done: int, total: int) -> None:
            progress(what, done, total)
            display(what, done, total)

        yield report


def _bars() -> "RichProgress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        *(TextColumn(f"{{task.fields[{name}]}}") for name in ("tasks", "speed")),
        TimeElapsedColumn(),
        TextColumn("elapsed"),
        TextColumn("{task.fields[left]}"),
    )
    return Progress(*columns, console=Console(stderr=True), expand=True)


@contextmanager
def _logging(display: Display, log_file: str, of: str) -> Iterator[None]:
    """Append lines to a file: at the beginning, each minute, and with the outcome at the end."""
    try:
        file = open(log_file, "a", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UnsuitableError(f"--log-file {log_file}: {error.strerror}; name a file that can be written") from error

    def write(text: str) -> None:
        with suppress(OSError):  # a full disk must not fail the operation
            file.write(f"{datetime.now().astimezone().isoformat(' ', 'seconds')} {text}\n")
            file.flush()

    def watch() -> None:
        while not ended.wait(INTERVAL):
            write(display.line())

    ended = Event()
    watcher = Thread(target=watch, daemon=True)
    with file:
        display.of = of
        write(display.named("begun"))
        watcher.start()
        try:
            yield
        except BaseException:
            outcome = f"failed while {display.line()}"
            raise
        else:
            outcome = "done"
        finally:
            ended.set()
            watcher.join()
            write(display.named(outcome))
