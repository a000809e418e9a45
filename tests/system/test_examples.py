"""The examples run unchanged, and the commands in configurations of schedulers are valid."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from tests.support import cohort
from tests.support.paths import EXAMPLES
from vczstore.cli.main import main

SCHEDULE = EXAMPLES / "schedule"


@pytest.mark.slow
def test_nightly(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "nightly", tmp_path / "nightly", ignore=shutil.ignore_patterns("data"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        ["sh", tmp_path / "nightly/run.sh"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("already applied") == 1
    folder = tmp_path / "nightly/data"
    samples = cohort.read_vcz(cohort.icechunk_store(folder / "cohort.icechunk"))["sample_id"].tolist()
    assert samples == ["ana", "", "cho", "dai", "eva", "fay", "gus"]
    report = json.loads((folder / "report/report.json").read_text())
    assert (report["job"]["status"], report["job"]["tags"]) == ("done", ["release-2"])
    assert "release-2" in (folder / "report/report.html").read_text()


def commands() -> dict[str, list[str]]:
    """The command in each scheduler's configuration, without ``vczstore``."""
    crontab = (SCHEDULE / "crontab").read_text().splitlines()[-1].partition("vczstore ")[2].partition(">>")[0]
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(SCHEDULE / "vczstore-nightly.service")
    pod = yaml.safe_load((SCHEDULE / "cronjob.yaml").read_text())["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    workflow = yaml.safe_load((SCHEDULE / "github-actions.yaml").read_text())
    (step,) = [s["run"] for s in workflow["jobs"]["run"]["steps"] if "run" in s]
    dag = ast.parse((SCHEDULE / "airflow_dag.py").read_text())
    (bash,) = [k.value for n in ast.walk(dag) if isinstance(n, ast.Call) for k in n.keywords if k.arg == "bash_command"]
    return {
        "crontab": shlex.split(re.sub(r"\$\(.*?\)", "X", crontab)),
        "vczstore-nightly.service": _of_shell(shlex.split(unit["Service"]["ExecStart"])),
        "cronjob.yaml": _of_shell(pod["containers"][0]["command"]),
        "github-actions.yaml": shlex.split(step.partition("uv run vczstore ")[2]),
        "Snakefile": _in_text("Snakefile", r' vczstore (.*)"'),
        "main.nf": _in_text("main.nf", r" vczstore (.*)$"),
        "prefect_flow.py": _of_flow(),
        "airflow_dag.py": shlex.split(re.sub(r"\{\{.*?\}\}", "X", ast.literal_eval(bash)))[1:],
    }


def _in_text(name: str, pattern: str) -> list[str]:
    """The command in a workflow file, with placeholders in braces replaced."""
    (line,) = re.findall(pattern, (SCHEDULE / name).read_text(), re.MULTILINE)
    return shlex.split(re.sub(r"\$?\{.*?\}", "nightly.yaml", line))


def _of_flow() -> list[str]:
    flow = ast.parse((SCHEDULE / "prefect_flow.py").read_text())
    (command,) = [n.value for n in ast.walk(flow) if isinstance(n, ast.Assign) and ast.unparse(n.targets) == "command"]
    assert isinstance(command, ast.List)
    return ["nightly.yaml" if isinstance(e, ast.Name) else ast.literal_eval(e) for e in command.elts][1:]


def _of_shell(command: list[str]) -> list[str]:
    """The command run by a shell, after the assignment of the release's name."""
    shell, flag, line = command
    assert (Path(shell).name, flag) == ("sh", "-c")
    assert line.startswith("RELEASE=$$(date +%")
    return shlex.split(line.partition(" exec ")[2])[1:]


@pytest.mark.parametrize("name", commands())
def test_scheduled_commands_are_valid(name: str) -> None:
    command, *args = commands()[name]
    context = main.commands[command].make_context(command, args)
    assert context.params["file"].endswith("nightly.yaml")


@pytest.mark.parametrize("name", commands())
def test_the_tag_of_each_night_has_another_name(name: str) -> None:
    """A job that changes the store is refused if its tag exists."""
    assert "tag: release-${RELEASE:-1}" in (EXAMPLES / "nightly" / "nightly.yaml").read_text()
    assert re.search(r"\bRELEASE\b.*(\$\(date \+|\bds\b|date\.today)", (SCHEDULE / name).read_text())


def test_the_timer_and_the_cron_job() -> None:
    timer = configparser.ConfigParser(interpolation=None)
    timer.read(SCHEDULE / "vczstore-nightly.timer")
    assert timer["Timer"]["oncalendar"] == "*-*-* 02:30:00"
    job = yaml.safe_load((SCHEDULE / "cronjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"], job["spec"]["concurrencyPolicy"]) == ("batch/v1", "CronJob", "Forbid")


def test_every_file_is_in_the_table() -> None:
    table = (SCHEDULE / "README.md").read_text()
    assert [p.name for p in SCHEDULE.iterdir() if p.name != "README.md" and f"({p.name})" not in table] == []


def test_an_unknown_option_is_detected() -> None:
    """Control of `test_scheduled_commands_are_valid`."""
    with pytest.raises(click.NoSuchOption):
        main.commands["run"].make_context("run", ["nightly.yaml", "--reports", "x"])
