"""Notifications about runs of jobs; a failing notification does not fail the job."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import vczstore
from tests.support import cohort
from vczstore.errors import BusyError, JobFileError, SampleError
from vczstore.jobs import notify
from vczstore.jobs.run import plan_job, run_job
from vczstore.stores.resolve import open_store

FIELDS = ("call_genotype",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cohort.write_vcz(tmp_path / "store", cohort.make_arrays(4, cohort.ids(0, 2), fields=FIELDS))
    cohort.write_vcz(tmp_path / "batch.vcz", cohort.make_arrays(4, cohort.ids(2, 3), fields=FIELDS))
    return tmp_path


@pytest.fixture
def address() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """URL of a server, and the list of documents posted to it. Paths that begin with /no return status 500."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if self.path.startswith("/no") else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    server.server_close()


def write(folder: Path, *steps: str, **keys: Any) -> Path:
    file = folder / "job.yaml"
    values = {"store": "store", **{key.replace("_", "-"): value for key, value in keys.items()}}
    head = "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items())
    file.write_text(f"{head}steps:\n" + "".join(f"- {step}\n" for step in steps))
    return file


def metrics(folder: Path) -> dict[str, float]:
    """The values in the metrics file; assert that every line is in Prometheus' text format."""
    values = {}
    text = (folder / "job.prom").read_text()
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP vczstore_job_\w+ .+|TYPE vczstore_job_\w+ gauge)", line)
            continue
        match = re.fullmatch(r"vczstore_job_(\w+)(\{.*\}) (\S+)", line)
        assert match
        name, labels, value = match.groups()
        assert re.fullmatch(r'\{job_file="[^"]+job\.yaml",store="[^"]+store"\}', labels)
        values[name] = float(value)
    assert text.endswith("\n")
    return values


@pytest.mark.slow
def test_commands_and_metrics(folder: Path) -> None:
    hooks = {
        "on_success": ["sh", "-c", f"cat > {folder}/good.json; echo $VCZSTORE_STATUS > {folder}/status"],
        "on_failure": ["sh", "-c", f"cat > {folder}/bad.json"],
        "metrics": "job.prom",
    }
    run_job(write(folder, "append: batch.vcz", "remove: S0000", **hooks))
    report = json.loads((folder / "good.json").read_text())
    assert (report["job"]["status"], (folder / "status").read_text()) == ("done", "done\n")
    assert report["job"]["sources"][0]["found"] == [str(folder / "batch.vcz")]
    (step, _) = report["steps"]
    assert (step["tasks_run"] >= step["tasks"], step["chunks_written"]) == (
        True,
        step["encoded_chunks"] + step["decoded_chunks"],
    )
    good = metrics(folder)
    assert (good["success"], good["samples_added"], good["samples_removed"]) == (1, 3, 1)
    assert good["tasks"] > 0
    assert good["bytes_written"] > 0
    assert good["last_success_timestamp_seconds"] == good["last_run_timestamp_seconds"]
    with pytest.raises(SampleError):
        run_job(write(folder, "remove: NOBODY", **hooks))
    report = json.loads((folder / "bad.json").read_text())
    assert report["job"]["status"] == "failed"
    bad = metrics(folder)
    assert (bad["success"], bad["samples_added"]) == (0, 0)
    assert bad["last_success_timestamp_seconds"] == good["last_success_timestamp_seconds"]
    assert bad["last_run_timestamp_seconds"] >= good["last_run_timestamp_seconds"]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    (folder / "bad.json").unlink()
    with open_store(folder / "store").exclusive_lock(), pytest.raises(BusyError):
        run_job(write(folder, "append: batch.vcz", **hooks))
    assert not (folder / "bad.json").exists()


def test_a_web_address(
    folder: Path, address: tuple[str, list[dict[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    """The report is posted without sample IDs in error messages, and the path of the URL is not logged."""
    url, received = address
    run_job(write(folder, "append: batch.vcz", on_success=f"{url}/secret-1"))
    assert received[0]["job"]["status"] == "done"
    with pytest.raises(SampleError):
        run_job(write(folder, "remove: S9999", on_failure=f"{url}/no/secret-2"))
    assert received[1]["job"]["status"] == "failed"
    assert received[1]["job"]["error"].startswith("SampleError; ")
    assert "S9999" not in json.dumps(received)
    assert "on-failure: the report did not reach 127.0.0.1 (status 500)" in caplog.messages
    assert "secret" not in caplog.text


def test_failing_hooks_do_not_fail_the_job(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notify, "TIMEOUT", 0.05)
    caplog.set_level(logging.WARNING)
    (folder / "file").touch()
    for hook in (["./none"], ["sh", "-c", "exit 3"], ["sleep", "5"], "http://127.0.0.1:1/secret"):
        assert run_job(write(folder, "append: batch.vcz", on_success=hook, metrics="file/job.prom")).job
    assert vczstore.info(folder / "store").samples == 5
    for words in (
        "./none cannot be run",
        "sh has ended with status 3",
        "sleep took more than",
        "did not reach 127.0.0.1",
    ):
        assert f"on-success: {'the report ' * (words[0] == 'd')}{words}" in caplog.text
    assert "file/job.prom cannot be written" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ("notify.sh", "expected a web address, or a list: a command and its arguments"),
        ([], "on-success"),
        ("https://me:password@host/x", "credentials do not belong here"),
    ],
)
def test_invalid_hooks(folder: Path, hook: Any, words: str) -> None:
    with pytest.raises(JobFileError) as refused:
        plan_job(write(folder, "append: batch.vcz", on_success=hook))
    assert words in str(refused.value)
    assert "password@" not in str(refused.value)
