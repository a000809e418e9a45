"""The outcome of a job's run: written to a report and to metrics, and sent to a command or a web address."""

import json
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from vczstore.errors import VczstoreError, words_of
from vczstore.execution.results import Result
from vczstore.jobs.compile import CompiledJob
from vczstore.jobs.describe import describe_job
from vczstore.jobs.model import Job
from vczstore.jobs.report import Report, write_report
from vczstore.jobs.results import JobResult, SetJobResult

TIMEOUT = 60.0
"""The timeout of a command or a request, in seconds."""

log = logging.getLogger("vczstore")


@dataclass
class Outcome:
    """
    The state of a run, for its report and notification.

    Attributes
    ----------
    job
        The parsed job file.
    compiled
        The compiled jobs so far, by part of a set; that of a single store is under the empty name.
    result
        The result; None until the run has committed.
    began
        The start of the run, in seconds since the epoch.
    """

    job: Job
    compiled: dict[str, CompiledJob] = field(default_factory=dict)
    result: JobResult | SetJobResult | None = None
    began: float = field(default_factory=time.time)

    @contextmanager
    def reported(self, folder: Path | None) -> Iterator[None]:
        """
        Write the report of what runs within the context, also if it fails; that of a part into a subfolder.

        Raises
        ------
        StorageError
            If the report cannot be written.
        """
        try:
            yield
        except (VczstoreError, KeyboardInterrupt) as error:
            self._write_reports(folder, words_of(error))
            raise
        self._write_reports(folder, None)

    def _write_reports(self, folder: Path | None, error: str | None) -> None:
        if folder is not None:
            for part, report in self._reports(error).items():
                write_report(folder / part, report)

    def notify(self, error: BaseException | None = None) -> None:
        """Write the metrics, and call the job's hook for success, or for failure if there is an `error`."""
        hook = self.job.on_success if error is None else self.job.on_failure
        if self.job.metrics is not None:
            _write_metrics(Path(self.job.metrics), self, succeeded=error is None)
        if hook is not None:
            name = "on-success" if error is None else "on-failure"
            message = None if error is None else words_of(error)
            if not isinstance(hook, str):
                _call(name, hook, self._report(message))
            else:  # error messages may name samples, and are not sent
                where = "the message is in the report and the log of the machine that ran the job"
                _post(name, hook, self._report(message and f"{type(error).__name__}; {where}"))

    @property
    def results(self) -> Mapping[str, JobResult]:
        """The results by part of a set; that of a single store is under the empty name."""
        if isinstance(self.result, SetJobResult):
            return self.result.parts
        return {} if self.result is None else {"": self.result}

    def _reports(self, error: str | None) -> dict[str, Report]:
        """Return the reports by part; `error` is the error message, None after success."""
        return {part: describe_job(job, self.results.get(part), error) for part, job in self.compiled.items()}

    def _report(self, error: str | None) -> dict[str, Any]:
        """Return the report to send; `error` as in `_reports`."""
        parts = self._reports(error)
        if "" in parts:
            return dict(parts[""])
        status = self.result.status if self.result is not None and error is None else "failed"
        job = {"file": self.job.path, "store": self.job.store.url, "status": status, "error": error}
        return {"job": job, "parts": parts} if self.job.is_of_set else {"job": job}


def _call(name: str, command: Sequence[str], report: Mapping[str, Any]) -> None:
    """Run a command with the report on its standard input; its output goes to standard error."""
    environment = {**os.environ, "VCZSTORE_STATUS": report["job"]["status"]}
    text = json.dumps(report)
    try:
        done = subprocess.run(
            list(command), input=text, text=True, env=environment, stdout=2, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        log.warning("%s: %s took more than %g s, and was terminated", name, command[0], TIMEOUT)
    except OSError as error:
        log.warning("%s: %s cannot be run (%s)", name, command[0], error.strerror)
    else:
        if done.returncode:
            log.warning("%s: %s has ended with status %d", name, command[0], done.returncode)


def _post(name: str, url: str, report: Mapping[str, Any]) -> None:
    """Send the report to a web address. Only its host is logged, as the path may be a secret."""
    try:
        with urlopen(Request(url, json.dumps(report).encode(), {"Content-Type": "application/json"}), timeout=TIMEOUT):
            pass
    except (OSError, ValueError) as problem:
        status = getattr(problem, "code", None)
        why = f"status {status}" if status else type(problem).__name__
        log.warning("%s: the report did not reach %s (%s)", name, urlsplit(url).hostname, why)


# ---- metrics --------------------------------------------------------------------------------

_HELP = {
    "success": "Whether the last run of the job succeeded.",
    "last_run_timestamp_seconds": "When the last run of the job ended.",
    "last_success_timestamp_seconds": "When the last run that succeeded ended.",
    "duration_seconds": "The duration of the last run.",
    "samples_added": "Samples that the last run has appended.",
    "samples_removed": "Samples that the last run has removed.",
    "samples_updated": "Samples that the last run has updated.",
    "tasks": "Tasks of the last run.",
    "bytes_written": "Bytes that the last run has copied encoded, or encoded (counted before).",
}


def _write_metrics(path: Path, outcome: Outcome, *, succeeded: bool) -> None:
    """Write a file for Prometheus' textfile collector atomically; a failure is logged."""
    now = time.time()
    values: dict[str, Mapping[str, float]] = {
        "success": {"": int(succeeded)},
        "last_run_timestamp_seconds": {"": now},
        "duration_seconds": {"": now - outcome.began},
    }
    parts = [*outcome.compiled] if outcome.job.is_of_set else [""]
    counted = {part: _counted(outcome.results[part].results if part in outcome.results else ()) for part in parts}
    values |= {name: {part: counts[name] for part, counts in counted.items()} for name in _counted(())}
    last = now if succeeded else _last_success(path)
    if last is not None:
        values["last_success_timestamp_seconds"] = {"": last}
    labels = f'job_file="{_escaped(outcome.job.path)}",store="{_escaped(outcome.job.store.url)}"'
    lines = []
    for name, numbers in values.items():
        lines += [f"# HELP vczstore_job_{name} {_HELP[name]}", f"# TYPE vczstore_job_{name} gauge"]
        for part, value in numbers.items():
            part_label = f',part="{_escaped(part)}"' if part else ""
            lines.append(f"vczstore_job_{name}{{{labels}{part_label}}} {value:.15g}")
    text = "\n".join([*lines, ""])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(text)
        os.chmod(file.name, 0o644)  # the collector runs as another user
        os.replace(file.name, path)
    except OSError as error:
        log.warning("metrics: %s cannot be written (%s)", path, error.strerror)


def _counted(results: Sequence[Result]) -> dict[str, float]:
    """Return the sums over the results of a run on one store, by metric."""
    changes = ("added", "removed", "updated")
    return {
        **{f"samples_{what}": sum(r.counts.get(f"samples {what}", 0) for r in results) for what in changes},
        "tasks": sum(r.tasks or 0 for r in results),
        "bytes_written": sum((r.encoded_bytes or 0) + (r.decoded_bytes or 0) for r in results),
    }


def _last_success(path: Path) -> float | None:
    """Return the time of the last success, in seconds since the epoch, from the metrics file; None if unknown."""
    try:
        match = re.search(r"^vczstore_job_last_success_timestamp_seconds\{.*\} (\S+)$", path.read_text(), re.MULTILINE)
        return None if match is None else float(match[1])
    except (OSError, ValueError):
        return None


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
