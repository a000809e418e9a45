"""Job files: every accepted form, and one-line error messages with file, line and key for everything else."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.paths import ROOT
from vczstore import errors
from vczstore.configuration import yaml_file
from vczstore.configuration.executor_file import load_executor
from vczstore.errors import JobFileError, OptionError
from vczstore.jobs import model as jobfile
from vczstore.jobs import reference, step_inputs
from vczstore.jobs.model import ExecutorSpec, StoreSpec
from vczstore.jobs.steps import STEPS

Append, Remove, Tag, Update = (STEPS[name] for name in ("append", "remove", "tag", "update"))

NUMBER = ", which is a number in YAML"
MINIMAL = "store: cohort.vcz\nsteps:\n  - append: batch.vcz\n"


def write(folder: Path, text: str | bytes, name: str = "plan.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load(folder: Path, text: str | bytes, *overrides: str, environ: Mapping[str, str] | None = None) -> jobfile.Job:
    return jobfile.load(write(folder, text), overrides, environ or {})


def refusal(folder: Path, text: str | bytes, *overrides: str, environ: Mapping[str, str] | None = None) -> str:
    """Assert that a job file is refused; return the message without the folder."""
    with pytest.raises(JobFileError) as caught:
        load(folder, text, *overrides, environ=environ)
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) < 600, message
    return message.replace(f"{folder}/", "")


def steps(text: str) -> str:
    """The text of a job with these steps, which begin in line 3."""
    return "store: cohort.vcz\nsteps:\n" + "".join(f"  {line}\n" for line in text.splitlines())


# ---- accepted jobs --------------------------------------------------------------------------


def test_a_complete_job(tmp_path: Path) -> None:
    text = """
        store: {url: s3://bucket/cohort, backend-storage: icechunk, storage-options: {region: eu-west-2, ssl: true}}
        executor: {name: processes, options: {retries: 1}}
        max-workers: 4
        allowed-mem: 2GB
        reserved-mem: 100_MB
        work-dir: tmp
        steps:
          - append: inbox/*.vcz
          - append: {source: [late.vcz, /data/later.vcz, s3://bucket/last.vcz], on-duplicate: skip}
          - update: recalled.vcz
          - update: {source: recalled.vcz, insert: true}
          - remove: {samples-file: withdrawn.txt, missing-ok: true}
          - remove: [NA00002, "1001"]
          - remove: NA00003
          - tag: release-2026-11
          - tag: latest
    """.replace("100_MB", "100 MB")
    job = load(tmp_path, text)
    here = str(tmp_path)
    assert job == jobfile.Job.model_construct(
        path=f"{here}/plan.yaml",
        store=StoreSpec(
            **{
                "url": "s3://bucket/cohort",
                "backend-storage": "icechunk",
                "storage-options": {"region": "eu-west-2", "ssl": True},
            }
        ),
        executor=ExecutorSpec(name="processes", options={"retries": 1}),
        max_workers=4,
        allowed_mem=2_000_000_000,
        reserved_mem=100_000_000,
        work_dir=f"{here}/tmp",
        steps=(
            Append(source=(f"{here}/inbox/*.vcz",)),
            Append(
                **{
                    "source": (f"{here}/late.vcz", "/data/later.vcz", "s3://bucket/last.vcz"),
                    "on-duplicate": "skip",
                }
            ),
            Update(source=(f"{here}/recalled.vcz",)),
            Update(source=(f"{here}/recalled.vcz",), insert=True),
            Remove(**{"samples-file": f"{here}/withdrawn.txt", "missing-ok": True}),
            Remove(samples=("NA00002", "1001")),
            Remove(samples=("NA00003",)),
            Tag(name="release-2026-11"),
            Tag(name="latest"),
        ),
    )
    with pytest.raises(ValueError, match="frozen"):
        job.path = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        job.store.url = "other"  # type: ignore[misc]


def test_a_minimal_job(tmp_path: Path) -> None:
    job = load(tmp_path, b"\xef\xbb\xbf" + MINIMAL.encode())
    assert job.store == StoreSpec(url=str(tmp_path / "cohort.vcz"))
    assert job.executor == ExecutorSpec(name="threads")
    assert (job.max_workers, job.allowed_mem, job.reserved_mem, job.work_dir) == (None,) * 4
    assert job.steps == (Append(source=(str(tmp_path / "batch.vcz"),)),)
    (step,) = job.steps
    assert isinstance(step, Append)
    assert step.on_duplicate == "error"


def test_plain_scalars_are_text(tmp_path: Path) -> None:
    """Unlike in YAML 1.1, dates and words such as NO are text."""
    job = load(tmp_path, steps("- remove: [NO, on, 0x1F, 12:30:45, 1_000]\n- tag: 2026-11-01"))
    assert job.steps == (Remove(samples=("NO", "on", "0x1F", "12:30:45", "1_000")), Tag(name="2026-11-01"))


def test_paths_of_a_relative_file_stay_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    write(tmp_path / "jobs", MINIMAL)
    write(tmp_path, MINIMAL)
    assert jobfile.load("jobs/plan.yaml").store.url == "jobs/cohort.vcz"
    assert jobfile.load("plan.yaml").store.url == "cohort.vcz"


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def set_stdin(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    set_stdin(MINIMAL.encode())
    job = jobfile.load("-")
    assert (job.path, job.store.url) == ("-", "cohort.vcz")
    set_stdin(b"store: x\nstps: []\n")
    with pytest.raises(JobFileError, match=r"^standard input:2: stps: no such key; did you mean steps\?$"):
        jobfile.load("-")
    set_stdin(b"#" * (yaml_file.MAX_BYTES + 1))
    with pytest.raises(JobFileError, match=r"^standard input: is larger than"):
        jobfile.load("-")
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(JobFileError, match=r"^standard input: is empty"):
        jobfile.load("-")


def test_status() -> None:
    statuses = {
        e: e.exit_status for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.VczstoreError)
    }
    special = {
        JobFileError: 2,
        errors.OptionError: 2,
        errors.BusyError: 3,
        errors.StaleError: 4,
        errors.ConflictError: 4,
    }
    assert statuses == {**dict.fromkeys(statuses, 1), **special}


# ---- executor files -------------------------------------------------------------------------


def test_executor_file(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    text = "name: processes\noptions: {retries: 1, zone: b}\nallowed-mem: 4GB\nreserved-mem: 1GB\nwork-dir: scratch\n"
    write(tmp_path / "site", text, "big.yml")
    machines = load_executor(tmp_path / "site" / "big.yml")
    assert machines.model_dump() == {
        "name": "processes",
        "options": {"retries": 1, "zone": "b"},
        "allowed_mem": 4_000_000_000,
        "reserved_mem": 1_000_000_000,
        "work_dir": str(tmp_path / "site" / "scratch"),
    }
    job = load(tmp_path, "executor: site/big.yml\n" + MINIMAL)
    assert job.executor == ExecutorSpec(name="processes", options={"retries": 1, "zone": "b"})
    assert (job.allowed_mem, job.reserved_mem) == (4_000_000_000, 1_000_000_000)
    assert job.work_dir == str(tmp_path / "site" / "scratch")

    mine = "executor: {name: site/big.yml, options: {zone: a}}\nallowed-mem: 1GB\nreserved-mem: 0\nwork-dir: w\n"
    job = load(tmp_path, mine + MINIMAL)
    assert job.executor == ExecutorSpec(name="processes", options={"retries": 1, "zone": "a"})
    assert (job.allowed_mem, job.reserved_mem, job.work_dir) == (1_000_000_000, 0, str(tmp_path / "w"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nam: threads\n", "big.yaml:1: nam: no such key; did you mean name?"),
        ("options: {}\n", "big.yaml:1: name: is missing, and has no default"),
        (
            "\nname: other.yaml\n",
            "big.yaml:2: name: expected single-threaded, threads, processes, lithops, modal, coiled, dask, ray or "
            "spark, found 'other.yaml'",
        ),
        ("name: threads\noptions: 3\n", f"big.yaml:2: options: expected a mapping, found 3{NUMBER}"),
        ("", "big.yaml: is empty; examples/guide/reference-jobs.md shows what belongs in it"),
        (
            "name: threads\nwork-dir: ${W}\n",
            "big.yaml:2: work-dir: the variable W is not set; set it, or write ${W:-default}",
        ),
    ],
)
def test_executor_file_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text, "big.yaml")
    with pytest.raises(JobFileError) as caught:
        load_executor(path, {})
    assert str(caught.value) == f"{tmp_path}/{message}"
    assert refusal(tmp_path, MINIMAL + "executor: big.yaml\n") == f"plan.yaml:4: executor: {message}"


def test_executor_file_missing(tmp_path: Path) -> None:
    message = refusal(tmp_path, MINIMAL + "executor: big.yaml\n")
    assert message == "plan.yaml:4: executor: big.yaml: cannot be read (No such file or directory)"


# ---- sources and samples --------------------------------------------------------------------


def test_expand_sources(tmp_path: Path) -> None:
    for name in ("inbox/b.vcz", "inbox/a.vcz", "inbox/deep/down/c.vcz", "inbox/notes.txt", "x[1].vcz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).mkdir()

    def expand(*sources: str) -> list[str]:
        (step,) = load(tmp_path, f"store: s\nsteps: [{{append: {json.dumps(sources)}}}]").steps
        assert isinstance(step, Append)
        return [p.removeprefix(f"{tmp_path}/") for paths in step_inputs.expand_sources(step).values() for p in paths]

    assert expand("inbox/*.vcz") == ["inbox/a.vcz", "inbox/b.vcz"]
    assert expand("inbox/**/*.vcz") == ["inbox/a.vcz", "inbox/b.vcz", "inbox/deep/down/c.vcz"]
    assert expand("inbox/deep/*.vcz") == []
    with pytest.raises(JobFileError, match=r"there is no folder .*outbox; correct the path"):
        expand("outbox/*.vcz")
    assert expand("nowhere.vcz", "s3://bucket/x.vcz") == ["nowhere.vcz", "s3://bucket/x.vcz"]
    assert expand("inbox/b.vcz", "inbox/?.vcz") == ["inbox/b.vcz", "inbox/a.vcz", "inbox/b.vcz"]
    assert expand("s3://b/x", "s3://b/x") == ["s3://b/x"]
    assert expand("x[[]1].vcz", "no[*].vcz") == ["x[1].vcz", "no*.vcz"]
    assert expand("https://host/x.vcz") == ["https://host/x.vcz"]


def test_glob_characters_in_the_folder_of_the_job(tmp_path: Path) -> None:
    folder = tmp_path / "jobs [old]*"
    (folder / "inbox" / "a.vcz").mkdir(parents=True)
    job = load(folder, "store: s.vcz\nsteps: [{append: [late.vcz, inbox/*]}, {update: late.vcz}]")
    assert job.store.url == f"{folder}/s.vcz"
    assert [
        [*step_inputs.expand_sources(step).values()] for step in job.steps if isinstance(step, Append | Update)
    ] == [
        [[f"{folder}/late.vcz"], [f"{folder}/inbox/a.vcz"]],
        [[f"{folder}/late.vcz"]],
    ]


@pytest.mark.parametrize("url", ["s3://bucket/*/a.vcz", "s3://b/[ab].vcz", "https://host/*.vcz", "file:///data/*.vcz"])
def test_globs_that_cannot_be_listed_are_refused(tmp_path: Path, url: str) -> None:
    message = refusal(tmp_path, steps(f"- update: recalled.vcz\n- append: [a.vcz, '{url}']"))
    assert message == (
        "plan.yaml:4: steps[1].append[1]: expected a URL with * and ? in its last part alone, if s3://, "
        f"gs:// or az://, and without [, found '{url}'"
    )


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://buck?t/a.vcz", "'buck?t' is not a bucket name"),
        ("https://host/a.vcz?v=2", "ends before '?'"),
        ("s3:/bucket/a.vcz", "two slashes"),
    ],
)
def test_invalid_urls_are_refused(tmp_path: Path, url: str, words: str) -> None:
    assert words in refusal(tmp_path, steps(f"- append: '{url}'"))
    assert words in refusal(tmp_path, f"store: '{url}'\nsteps: [{{append: a.vcz}}]")


def test_globs_of_object_stores_are_not_expanded(tmp_path: Path) -> None:
    (step,) = load(tmp_path, steps("- append: ['s3://bucket/inbox/*.vcz', 'az://c/?.vcz']")).steps
    assert isinstance(step, Append)
    assert step_inputs.expand_sources(step) == {url: [url] for url in ("s3://bucket/inbox/*.vcz", "az://c/?.vcz")}


def read_samples(folder: Path, text: str) -> list[str]:
    (step,) = load(folder, text).steps
    assert isinstance(step, Remove)
    return step_inputs.read_samples(step)


def test_read_samples(tmp_path: Path) -> None:
    assert read_samples(tmp_path, steps("- remove: [b, a, b]")) == ["b", "a", "b"]
    (tmp_path / "gone.txt").write_bytes("\ufeffNA1\r\n\n  Zoë \n\t\nNA 2".encode())
    assert read_samples(tmp_path, steps("- remove: {samples-file: gone.txt}")) == ["NA1", "Zoë", "NA 2"]
    (tmp_path / "gone.txt").write_bytes(b"")
    assert read_samples(tmp_path, steps("- remove: {samples-file: gone.txt}")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"^remove: .*gone\.txt: cannot be read \(No such file or directory\); expected a file of sample IDs"),
        (b"NA1\nNA\xff2\n", r"gone\.txt:2: is no UTF-8 text; save it as UTF-8"),
        ("folder", r"gone\.txt: is a folder; name a file"),
    ],
)
def test_samples_file_refused(tmp_path: Path, content: bytes | str | None, message: str) -> None:
    path = tmp_path / "gone.txt"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(OptionError, match=message):
        read_samples(tmp_path, steps("- remove: {samples-file: gone.txt}"))


# ---- refusals -------------------------------------------------------------------------------

KEYS_ARE = (
    "store, parts, branch, source-storage-options, executor, max-workers, allowed-mem, reserved-mem, work-dir, resume, "
    "keep, on-success, on-failure, metrics"
)
*MOST, LAST = STEPS
ONE_KEY = f"a step has one of the keys {', '.join(MOST)} and {LAST}"
REFUSED = {
    "no such key": (
        steps("- append:\n    source: a\n    on-duplicat: skip"),
        "5: steps[0].append.on-duplicat: no such key; did you mean on-duplicate?",
    ),
    "underscore": (
        steps("- append: {source: a, on_duplicate: skip}"),
        "3: steps[0].append.on_duplicate: no such key; did you mean on-duplicate?",
    ),
    "far from any key": ("xyz: 1\n" + MINIMAL, f"1: xyz: no such key; the keys are {KEYS_ARE}, steps"),
    "wrong key, and one missing": ("stor: x\nsteps: []\n", "1: stor: no such key; did you mean store?"),
    "odd key": ('"a b\\tc": 1\n' + MINIMAL, rf"1: 'a b\tc': no such key; the keys are {KEYS_ARE}, steps"),
    "missing store": ("steps:\n- append: x\n", "1: store: is missing, and has no default"),
    "missing steps": ("\nstore: x\n", "2: steps: is missing, and has no default"),
    "missing source": (
        steps("- append: {on-duplicate: skip}"),
        "3: steps[0].append.source: is missing, and has no default",
    ),
    "missing url": (
        "store: {backend-storage: icechunk}\nsteps: [{tag: x}]",
        "1: store.url: is missing, and has no default",
    ),
    "list at the top": ("- a\n- b\n", f"1: expected keys such as {KEYS_ARE} or steps, found a list"),
    "text at the top": ("hello", f"1: expected keys such as {KEYS_ARE} or steps, found 'hello'"),
    "store is a list": (
        "store: [a]\nsteps: [{tag: x}]",
        "1: store: expected a path, a URL, or a mapping with the key url, found a list",
    ),
    "store is empty": ("store: ''\nsteps: [{tag: x}]", "1: store: expected text, found ''"),
    "store is a number": (
        "store: 5\nsteps: [{tag: x}]",
        f"1: store: expected a path, a URL, or a mapping with the key url, found 5{NUMBER}",
    ),
    "url is a number": (
        "store: {url: 5}\nsteps: [{tag: x}]",
        f"1: store.url: expected text, found 5{NUMBER}; put quotes around it",
    ),
    "backend": (
        "store: {url: a, backend-storage: icechnk}\nsteps: [{tag: x}]",
        "1: store.backend-storage: expected zarr, obstore, fsspec or icechunk, found 'icechnk'; did you mean icechunk?",
    ),
    "executor": (
        MINIMAL + "executor: thread\n",
        "4: executor: expected single-threaded, threads, processes, lithops or modal, found 'thread'; "
        "did you mean threads?",
    ),
    "executor is a list": (
        MINIMAL + "executor: []\n",
        "4: executor: expected an executor, the path of an executor file, or a mapping with the key name, "
        "found an empty list",
    ),
    "options of an executor": (
        MINIMAL + "executor: {name: threads, options: [1]}\n",
        "4: executor.options: expected a mapping, found a list",
    ),
    "workers": (MINIMAL + "max-workers: 0\n", f"4: max-workers: expected at least 1, found 0{NUMBER}"),
    "many workers": (
        MINIMAL + "max-workers: 1000001\n",
        f"4: max-workers: expected at most 1000000, found 1000001{NUMBER}",
    ),
    "half a worker": (MINIMAL + "max-workers: 1.5\n", f"4: max-workers: expected a whole number, found 1.5{NUMBER}"),
    "true workers": (
        MINIMAL + "max-workers: true\n",
        "4: max-workers: expected a whole number, found true, which is true or false in YAML",
    ),
    "size": (
        MINIMAL + "allowed-mem: 2 gigs\n",
        "4: allowed-mem: expected a size such as 500MB, 2GB or 4GiB, found '2 gigs'",
    ),
    "size of another script": (
        MINIMAL + "allowed-mem: ٣GB\n",
        "4: allowed-mem: expected a size such as 500MB, 2GB or 4GiB, found '٣GB'",
    ),
    "true size": (
        MINIMAL + "reserved-mem: true\n",
        "4: reserved-mem: expected a size such as 500MB, 2GB or 4GiB, found true, which is true or false in YAML",
    ),
    "negative size": (
        MINIMAL + "reserved-mem: -1\n",
        f"4: reserved-mem: expected a size such as 500MB, 2GB or 4GiB, found -1{NUMBER}",
    ),
    "no steps": ("store: a\nsteps: []\n", "2: steps: expected at least one, found an empty list"),
    "steps are no list": ("store: a\nsteps: {append: x}\n", "2: steps: expected a list, found a mapping"),
    "step is text": (steps("- tag"), "3: steps[0]: expected a step such as append: batch.vcz, found 'tag'"),
    "empty step": (steps("- {}"), f"3: steps[0]: {ONE_KEY}, found none"),
    "two in a step": (
        steps("- append: x\n  tag: y"),
        f"3: steps[0]: {ONE_KEY}, found both append and tag; begin each with a - of its own",
    ),
    "beside, not inside": (
        steps("- append: a\n  on-duplicate: skip"),
        "4: steps[0].on-duplicate: is a key of append; write append: {..., on-duplicate: ...}",
    ),
    "no such step": (steps("- append: a\n- apend: x"), "4: steps[1].apend: no such key; did you mean append?"),
    "empty value": (
        steps("- append:"),
        "3: steps[0].append: expected a value, found none; give one or leave the key out",
    ),
    "source is a number": (
        steps("- append: 7"),
        f"3: steps[0].append: expected a path, a list of paths, or a mapping with the key source, found 7{NUMBER}",
    ),
    "source in a list": (
        steps("- append:\n  - a\n  - 7"),
        f"5: steps[0].append[1]: expected text, found 7{NUMBER}; put quotes around it",
    ),
    "no sources": (steps("- append: []"), "3: steps[0].append: expected at least one, found an empty list"),
    "duplicates": (
        steps("- append: {source: a, on-duplicate: skp}"),
        "3: steps[0].append.on-duplicate: expected error, skip or replace, found 'skp'; did you mean skip?",
    ),
    "insert": (
        steps("- update: {source: a, insert: yes}"),
        "3: steps[0].update.insert: expected true or false, found 'yes'",
    ),
    "samples twice": (
        steps("- remove: {samples: a, samples-file: b}"),
        "3: steps[0].remove: expected samples or samples-file, found both",
    ),
    "no samples": (
        steps("- remove: {missing-ok: true}"),
        "3: steps[0].remove: expected samples or samples-file, found neither",
    ),
    "sample is a number": (
        steps("- remove: [a, 0012]"),
        f"3: steps[0].remove[1]: expected text, found 0012{NUMBER}; put quotes around it",
    ),
    "sample is true": (
        steps("- remove: [true]"),
        "3: steps[0].remove[0]: expected text, found true, which is true or false in YAML; put quotes around it",
    ),
    "no such INFO field": (
        steps("- recompute: [AC, AM]"),
        "3: steps[0].recompute[1]: expected AC, AN, AF, NS, AC_Het, AC_Hom, AC_Hemi, MAF, F_MISSING, HWE or ExcHet, "
        "found 'AM'",
    ),
    "empty sample": (steps("- remove: ['']"), "3: steps[0].remove[0]: expected text, found ''"),
    "remote samples file": (
        steps("- remove: {samples-file: s3://b/x}"),
        "3: steps[0].remove.samples-file: expected a local file, found 's3://b/x'",
    ),
    "tag is a number": (
        steps("- tag: 1.10"),
        f"3: steps[0].tag: expected text, found 1.10{NUMBER}; put quotes around it",
    ),
    "tag is a mapping": (steps("- tag: {name: x}"), "3: steps[0].tag: expected text, found a mapping"),
    "tag with a slash": (
        steps("- tag: a/b"),
        "3: steps[0].tag: expected a name of printable characters without /, found 'a/b'",
    ),
    "tag first": (
        steps("- tag: a\n- append: b"),
        "3: steps[0].tag: a tag names what the whole job leaves behind; put tag after all other steps",
    ),
    "tag twice": (
        steps("- append: b\n- tag: a\n- tag: a"),
        "5: steps[2].tag: this tag is there already; a name can be given once",
    ),
    "recompute after an insertion": (
        steps("- append: {source: a, harmonise: {new-variants: insert}}\n- remove: [S1]\n- recompute: [AC]"),
        "5: steps[2].recompute: an earlier step has new-variants: insert; put this into a job of its own",
    ),
    "regrid after an insertion": (
        steps("- update: {source: a, harmonise: {new-variants: insert}}\n- regrid: 1000"),
        "4: steps[1].regrid: an earlier step has new-variants: insert; put this into a job of its own",
    ),
    "long value": (
        MINIMAL + f"executor: {'x' * 1000}\n",
        f"4: executor: expected single-threaded, threads, processes, lithops or modal, found '{'x' * 40}'...",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    text, message = REFUSED[case]
    assert refusal(tmp_path, text) == f"plan.yaml:{message}"


HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "empty": (b"", ": is empty"),
    "blank": (b"\n# nothing\n\n", ": is empty"),
    "null": (b"~", ": is empty"),
    "document start": (b"---\n...\n", ": is empty"),
    "laughs": ("a: &a [x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n", ":1: YAML anchors and aliases"),
    "alias": (MINIMAL + "work-dir: *x\n", ":4: YAML anchors and aliases"),
    "a glob that is an alias": (steps("- append: *.vcz"), ":3: YAML anchors and aliases"),
    "cycle": ("a: &a\n  b: *a\n", ":1: YAML anchors and aliases"),
    "twice": (MINIMAL + "store: other\n", ":4: the key store is there already, in line 1"),
    "twice inside": (
        steps("- append:\n    source: a\n    source: b"),
        ":5: the key source is there already, in line 4",
    ),
    "twice in options": ("store: {url: a, storage-options: {x: 1, 'x': 2}}", ":1: the key x is there already"),
    "latin": (MINIMAL.encode() + b"work-dir: \xe9t\xe9\n", ":4: is no UTF-8 text"),
    "utf-16": (MINIMAL.encode("utf-16"), ":1: is no UTF-8 text"),
    "NUL": (MINIMAL.encode() + b"work-dir: a\x00b\n", ":4: has a control character"),
    "escaped NUL": (MINIMAL + 'work-dir: "a\\0b"\n', ":4: a text has a control character"),
    "escape": (MINIMAL + 'work-dir: "a\\e[31m"\n', ":4: a text has a control character"),
    "half a character": (MINIMAL + 'work-dir: "\\ud800"\n', ":4: a text has a control character or half"),
    "NUL in a key": (MINIMAL + '"a\\0b": 1\n', ":4: a text has a control character"),
    "beyond Unicode": (MINIMAL + 'work-dir: "\\UFFFFFFFF"\n', ": is not YAML"),
    "version": ("%YAML " + "9" * 5000 + ".1\n---\n" + MINIMAL, ": is not YAML"),
    "huge number": (MINIMAL + "max-workers: 1" + "0" * 5000 + "\n", ":4: a number has too many digits"),
    "huge float": (MINIMAL + "max-workers: 1e999\n", ":4: a number has too many digits"),
    "huge hexadecimal": (MINIMAL + "max-workers: 0x" + "f" * 100_000, ":4: max-workers: expected a whole number"),
    "sexagesimal": (MINIMAL + "max-workers: 1" + ":59" * 100_000, ":4: max-workers: expected a whole number"),
    "huge number in options": (
        "store: {url: a, storage-options: {x: " + "9" * 5000 + "}}",
        ":1: a number has too many",
    ),
    "deep lists": ("[" * 10_000, ":1: lists and mappings are more than 20 deep"),
    "deep lists, closed": ("a: " + "[" * 10_000 + "]" * 10_000, ":1: lists and mappings are more than 20 deep"),
    "deep mappings": ("{a: " * 10_000, ":1: lists and mappings are more than 20 deep"),
    "deep keys": ("? " * 10_000, ":1: lists and mappings are more than 20 deep"),
    "deep blocks": ("- " * 10_000, ":1: lists and mappings are more than 20 deep"),
    "large": (b"#" * (yaml_file.MAX_BYTES + 1), ": is larger than 1,048,576 bytes"),
    "many values": ("[" + "1," * 150_000 + "]", ":1: there are more than 100,000 values"),
    "many errors": ("store: a\nsteps: [" + "1," * 30_000 + "]", ":2: steps[0]: expected a step"),
    "many wrong sources": (steps("- append: [" + "1," * 30_000 + "]"), ":3: steps[0].append[0]: expected text"),
    "many wrong keys": ("{" + ",".join(f"k{i}: 1" for i in range(15_000)) + "}", ":1: k0: no such key"),
    "long key": (f"? {'k' * 300_000}\n: 1\n", f":1: '{'k' * 60}': no such key"),
    "brackets on many lines": ("[\n" * 300_000, ":22: lists and mappings are more than 20 deep"),
    "colons": (":" * 1_000_000, ":1: "),
    "open quote": ('store: "' + "a\n" * 100_000, ":100001: is not YAML: found unexpected end of stream"),
    "URLs": (MINIMAL + "max-workers: '" + "://a:" * 60_000 + "'\n", ":4: max-workers: expected a whole"),
    "questions": (MINIMAL + "max-workers: '" + "?a" * 150_000 + "'\n", ":4: max-workers: expected a whole number"),
    "variables": (MINIMAL + "work-dir: '" + "${A:-" * 60_000 + "'\n", ":4: work-dir: expected a variable"),
    "tag": ("!!python/object/apply:os.system ['true']", ":1: YAML tags (!name) are not allowed"),
    "tag of a value": (MINIMAL + "work-dir: !!python/name:os.system x\n", ":4: YAML tags (!name) are not allowed"),
    "tag of a key": ("!!str store: a\n", ":1: YAML tags (!name) are not allowed"),
    "undefined tag": ("a: !e!tag x\n", ":1: is not YAML"),
    "documents": (MINIMAL + "---\n" + MINIMAL, ":4: a second document begins"),
    "merge": ("<<: {store: a}\nsteps: [{tag: x}]\n", ":1: merge keys (<<) are not allowed"),
    "key is a list": ("[a, b]: c\n", ":1: a key is a word, not a list or a mapping"),
    "key is a mapping": ("? {a: b}\n: c\n", ":1: a key is a word, not a list or a mapping"),
    "key is null": (MINIMAL + "~: c\n", ":4: '~': no such key"),
    "no key": (MINIMAL + "? \n: c\n", ":4: '': no such key"),
    "tab": ("store:\n\t- a\n", ":2: is not YAML: found character '\\t' that cannot start any token"),
    "unfinished": ("store: [a\n", ":2: is not YAML: "),
    "colon": ("store: a: b\n", ":1: is not YAML: mapping values are not allowed here"),
    "percent": ("%" * 100_000, ":1: is not YAML"),
}


TOO_MUCH = ":4: work-dir: the variables hold more than 1,048,576 characters"
HOSTILE["expansion"] = (MINIMAL + "work-dir: '" + "${BIG}" * 100_000 + "'\n", TOO_MUCH)
HOSTILE["list of expansions"] = (
    steps("- remove: [" + ",".join(["'a${BIG}'"] * 30_000) + "]"),
    TOO_MUCH.replace("4: work-dir", "3: steps[0].remove[10]"),
)
BOUNDED = """
import json, resource, sys, time
from vczstore.errors import JobFileError
from vczstore.jobs import model as jobfile
resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))
for path in sys.argv[1:]:
    begin = time.monotonic()
    try:
        jobfile.load(path, environ={"BIG": "x" * 100_000})
    except JobFileError as error:
        print(json.dumps([str(error), time.monotonic() - begin]))
"""


@pytest.mark.slow
def test_hostile(tmp_path: Path) -> None:
    """All files are loaded in one process with half a gigabyte of address space, including its libraries."""
    paths = [write(tmp_path, text, f"{i}.yaml") for i, (text, _) in enumerate(HOSTILE.values())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BOUNDED, *paths]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert done.stderr == ""
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for case, path, (message, seconds) in zip(HOSTILE, paths, results, strict=True):
        assert message.startswith(f"{path}{HOSTILE[case][1]}"), case
        assert message.isprintable(), case
        assert len(message) < 600, case
        assert seconds < 60, case


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.yaml", "missing.yaml: cannot be read (No such file or directory)"),
        ("", ": is a folder; name a file"),
        ("no\x00file", "'no\\x00file': cannot be read"),
        ("no\nfile", "'no\\nfile': cannot be read (No such file or directory)"),
        ("x" * 5000, f"{'x' * 5000}: cannot be read (File name too long)"),
        ("\udcff.yaml", "'\\udcff.yaml': cannot be read (No such file or directory)"),
    ],
)
def test_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobFileError) as caught:
        jobfile.load(name)
    assert str(caught.value) == message


def test_a_folder_and_an_unreadable_device(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match=r"is a folder; name a file$"):
        jobfile.load(tmp_path)
    with pytest.raises(JobFileError, match=r"^/dev/zero: is larger than"):
        jobfile.load("/dev/zero")


# ---- variables ------------------------------------------------------------------------------


def test_variables(tmp_path: Path) -> None:
    text = """
        store: {url: "${BUCKET}/cohort", backend-storage: "${BACKEND:-icechunk}", storage-options: {region: "${R:-}"}}
        max-workers: ${WORKERS:-3}
        allowed-mem: ${MEM}
        work-dir: $${HOME}/$HOME/${EMPTY:-full}
        steps:
          - append: ["${A}", "${A}${A}-${B:-b c}"]
          - remove: ${A}
          - tag: release-${DATE:-x}
    """
    environ = {"BUCKET": "s3://bucket", "MEM": "2GB", "EMPTY": "", "A": "a: [${B}, *x]", "HOME": "h"}
    job = load(tmp_path, text.replace("$${HOME}", "/$${HOME}"), environ=environ)
    assert job.store.url == "s3://bucket/cohort"
    assert job.store.backend_storage == "icechunk"
    assert job.store.storage_options == {"region": ""}
    assert (job.max_workers, job.allowed_mem) == (3, 2_000_000_000)
    assert job.work_dir == "/${HOME}/$HOME/full"
    append, remove, tag = job.steps
    assert append == Append(source=(f"{tmp_path}/a: [${{B}}, *x]", f"{tmp_path}/a: [${{B}}, *x]a: [${{B}}, *x]-b c"))
    assert remove == Remove(samples=("a: [${B}, *x]",))
    assert tag == Tag(name="release-x")
    assert load(tmp_path, MINIMAL + "max-workers: ${N}\n", environ={"N": "12"}).max_workers == 12


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a-${NONE}", "the variable NONE is not set; set it, or write ${NONE:-default}"),
        ("${1x}", "expected a variable such as ${NAME} or ${NAME:-default}; for a mere ${ write $${"),
        ("${A", "expected a variable such as"),
        ("${A:-${B}}", "expected a variable such as"),
        ("${A-b}", "expected a variable such as"),
        ("${NUL}", "a variable holds a control character or half a character"),
        ("${BYTES}", "a variable holds a control character or half a character"),
        ("${EMPTY}", "expected text, found '${EMPTY}'"),
    ],
)
def test_variables_refused(tmp_path: Path, value: str, message: str) -> None:
    text = MINIMAL + f"\nwork-dir: '{value}'\n"
    actual = refusal(tmp_path, text, environ={"NUL": "a\x00", "BYTES": "\udcff", "EMPTY": ""})
    assert actual.startswith(f"plan.yaml:5: work-dir: {message}")


def test_variables_default_to_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCZSTORE_TEST_TAG", "x1")
    assert jobfile.load(write(tmp_path, steps("- tag: ${VCZSTORE_TEST_TAG}"))).steps == (Tag(name="x1"),)


# ---- --set ----------------------------------------------------------------------------------


def test_set(tmp_path: Path) -> None:
    text = MINIMAL + "  - append: [a.vcz, b.vcz]\n  - remove: [A, B]\n"
    overrides = (
        *("store.url=s3://bucket/${NAME}", "store.backend-storage=icechunk", "store.storage-options.region=eu"),
        *("executor=processes", "executor.options.retries=1", "allowed-mem=4GB", "max-workers=2"),
        *("steps.0.append.on-duplicate=skip", "steps.1.append.1=c=d.vcz", "steps.2.remove.missing-ok=true"),
    )
    job = load(tmp_path, text, *overrides, environ={"NAME": "cohort"})
    assert job.store.model_dump() == {
        "url": "s3://bucket/cohort",
        "backend_storage": "icechunk",
        "storage_options": {"region": "eu"},
        "no_lock": False,
    }
    assert job.executor == ExecutorSpec(name="processes", options={"retries": 1})
    assert (job.allowed_mem, job.max_workers) == (4_000_000_000, 2)
    assert job.steps == (
        Append(**{"source": (f"{tmp_path}/batch.vcz",), "on-duplicate": "skip"}),
        Append(source=(f"{tmp_path}/a.vcz", f"{tmp_path}/c=d.vcz")),
        Remove(**{"samples": ("A", "B"), "missing-ok": True}),
    )
    job = load(tmp_path, MINIMAL, "store=/other.vcz", "steps=[{tag: x}]", "steps.0={append: {source: [p.vcz, q.vcz]}}")
    assert job.store.url == "/other.vcz"
    assert job.steps == (Append(source=(f"{tmp_path}/p.vcz", f"{tmp_path}/q.vcz")),)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("store.ur=x", "store.ur: no such key; did you mean url?"),
        ("alowed-mem=4GB", "alowed-mem: no such key; did you mean allowed-mem?"),
        ("steps.0.append.on-duplicat=skip", "steps[0].append.on-duplicat: no such key; did you mean on-duplicate?"),
        (
            "steps.0.append=3",
            "steps[0].append: expected a path, a list of paths, or a mapping with the key source, found 3",
        ),
        ("steps.1.append=x", "steps: expected a number below 1, found 1"),
        ("steps.x.append=x", "steps: expected a number below 1, found x"),
        ("steps.\u0660.append=x", "steps: expected a number below 1, found "),
        (f"steps.{'9' * 5000}=x", "steps: expected a number below 1, found "),
        ("max-workers.x=3", "max-workers.x: no such key"),
        ("max-workers=many", "max-workers: expected a whole number, found 'many'"),
        ("work-dir=", "work-dir: expected a value, found none"),
        ("work-dir", "expected KEY=VALUE, as in "),
        ("=x", "expected KEY=VALUE, as in "),
        ("a..b=x", "expected KEY=VALUE, as in "),
        ("a." * 1000 + "b=x", "expected KEY=VALUE, as in "),
        ("a\x00=x", "the key has a control character"),
        ("work-dir=[", "is not YAML: "),
        ("work-dir=" + "[" * 10_000, "lists and mappings are more than 20 deep"),
        ("work-dir=*x", "YAML anchors and aliases"),
        ("work-dir=!x y", "YAML tags"),
        ("work-dir={a: 1, a: 2}", "the key a is there already"),
        ("work-dir=a\n--- b", "a second document begins"),
        ("work-dir=\x00", "has a control character"),
        ("work-dir=\udcff", "has a control character"),
        ("work-dir=${NO}", "work-dir: the variable NO is not set"),
    ],
)
def test_set_refused(tmp_path: Path, override: str, message: str) -> None:
    assert refusal(tmp_path, MINIMAL + "max-workers: 1\n", override).startswith(f"plan.yaml:--set: {message}")


def test_set_on_a_file_that_is_not_a_mapping(tmp_path: Path) -> None:
    assert refusal(tmp_path, "- a\n", "store=x").startswith("plan.yaml:")
    assert refusal(tmp_path, "hello\n", "store=x").startswith("plan.yaml:")


# ---- credentials ----------------------------------------------------------------------------

HIDDEN = "hunter2hunter2"
KEYS = (
    *("secret", "SECRET", "client_secret", "password", "db-passwd", "token", "sasToken", "access_key", "access-key-id"),
    *(
        "AccessKeyId",
        "aws_secret_access_key",
        "account_key",
        "ACCOUNT.KEY",
        "sas",
        "sas-key",
        "credential",
        "credentials",
    ),
    *("private_key", "api_key", "apikey", "API KEY", "azure_storage_sas_key", "sharedKey", "connection_string"),
)
VALUES = (
    *("AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", "s3://user:hunter2@bucket/x", "https://:hunter2@host/x"),
    *(
        "-----BEGIN PRIVATE KEY-----",
        "https://h.blob.core.windows.net/c?sv=1&sig=hunter2",
        "?sig=hunter2",
        "sig=hunter2",
    ),
    *("https://h/x?X-Amz-Signature=hunter2", "https://h/x?access_token=hunter2", "AccountName=a;AccountKey=hunter2"),
)


def holds_no_secret(message: str, *secrets: str) -> None:
    assert "credentials do not belong here; give them in environment variables or by the instance's role" in message
    assert not any(secret in message for secret in (*secrets, "hunter2"))


@pytest.mark.parametrize("key", KEYS)
def test_keys_of_credentials(tmp_path: Path, key: str) -> None:
    for value in (HIDDEN, f"[{HIDDEN}]", "12345", "null"):
        text = f'store:\n  url: s3://b/x\n  storage-options:\n    "{key}": {value}\nsteps: [{{tag: x}}]\n'
        message = refusal(tmp_path, text)
        assert message.startswith("plan.yaml:4: store.storage-options.")
        holds_no_secret(message, "12345")
    # at any place, also in files with other errors
    assert refusal(tmp_path, f'nonsense: [{{"{key}": {HIDDEN}}}]').startswith("plan.yaml:1: nonsense[0].")
    with pytest.raises(JobFileError) as caught:
        load_executor(write(tmp_path, f'name: threads\noptions: {{"{key}": {HIDDEN}}}\n', "e.yaml"))
    holds_no_secret(str(caught.value))
    if "." not in key:
        holds_no_secret(refusal(tmp_path, MINIMAL, f"store.storage-options.{key}={HIDDEN}"))


@pytest.mark.parametrize("value", VALUES)
def test_values_of_credentials(tmp_path: Path, value: str) -> None:
    messages = [
        refusal(tmp_path, f"store: {{url: '{value}'}}\nsteps: [{{tag: x}}]"),
        refusal(tmp_path, MINIMAL + f"max-workers: ['{value}']\n"),
        refusal(tmp_path, MINIMAL + f"'{value}': 1\n"),
        refusal(tmp_path, MINIMAL + "work-dir: ${PLACE}\n", environ={"PLACE": value}),
        refusal(tmp_path, MINIMAL + f"work-dir: ${{PLACE:-{value}}}\n"),
        refusal(tmp_path, MINIMAL, f"work-dir='{value}'"),
        refusal(tmp_path, f"store: '{value}'\nsteps: [{{tag: x}}]", "store=other"),
    ]
    for message in messages:
        holds_no_secret(message, value)
    # errors that are detected before the check for credentials
    for text in (f"'{value}': 1\n'{value}': 2\n", f"a: {value}\n b: c\n", f"a: ['{value}'\n", f"'{value}' b"):
        message = refusal(tmp_path, text)
        assert value not in message
        assert "hunter2" not in message
    assert value not in refusal(tmp_path, MINIMAL, value.partition("=")[0])


def test_variables_of_credentials(tmp_path: Path) -> None:
    text = MINIMAL + "work-dir: ${AWS_SECRET_ACCESS_KEY}\n"
    message = refusal(tmp_path, text, environ={"AWS_SECRET_ACCESS_KEY": HIDDEN})
    assert message.startswith("plan.yaml:4: work-dir: ${AWS_SECRET_ACCESS_KEY}: credentials do not belong here")
    assert HIDDEN not in refusal(tmp_path, MINIMAL + "executor: ${X}\n", environ={"X": HIDDEN})


def test_values_that_only_resemble_credentials(tmp_path: Path) -> None:
    """Harmless values and the keys of the format are not mistaken for credentials."""
    options = "{anon: true, region: eu, endpoint: 'http://host:9000/a@b', sassafras: 1, key_prefix: a, account: b}"
    text = f"store: {{url: 'abfs://c@account.dfs.core.windows.net/x', storage-options: {options}}}\n"
    job = load(tmp_path, text + "steps: [{remove: [AKIA1, design=1, 'a:b@c']}]")
    assert job.store.storage_options["endpoint"] == "http://host:9000/a@b"
    assert job.steps == (Remove(samples=("AKIA1", "design=1", "a:b@c")),)


# ---- random files ---------------------------------------------------------------------------

words = st.sampled_from(
    [
        *("store", "steps", "append", "update", "remove", "tag", "source", "samples", "samples-file", "on-duplicate"),
        *("missing-ok", "insert", "executor", "name", "options", "url", "max-workers", "allowed-mem", "work-dir"),
        *("threads", "skip", "2GB", "${X}", "${", "*", "<<", "a.vcz", "x.yaml", "s3://b/*", "true", "~", "é", "secret"),
    ]
)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | words | st.dates() | st.binary(max_size=9)
)
structures = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=5), inner, max_size=4),
    max_leaves=15,
)
pieces = st.sampled_from([*"\n :-[]{},&*!|>'\"%@`#?~$.=\t0", "  ", "- ", ": ", "---", "...", "<<: ", "\\U", "${", "!!"])
anything = st.lists(pieces | words | st.text(max_size=3), max_size=40).map("".join)
bounded = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def loads_or_refuses(folder: Path, content: bytes, overrides: Sequence[str] = ()) -> None:
    path = write(folder, content)
    message = f"{folder}/"
    try:
        assert jobfile.load(path, overrides, {"X": "x"}).steps
    except JobFileError as error:
        message = str(error)
    assert message.isprintable()
    assert message.startswith(f"{folder}/")


@bounded
@given(text=anything)
@pytest.mark.slow
def test_any_text(tmp_path: Path, text: str) -> None:
    loads_or_refuses(tmp_path, text.encode(errors="surrogatepass"))


@bounded
@given(content=st.binary())
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    loads_or_refuses(tmp_path, content)


@bounded
@given(data=structures)
@pytest.mark.slow
def test_any_structure(tmp_path: Path, data: Any) -> None:
    loads_or_refuses(tmp_path, yaml.safe_dump(data, allow_unicode=True).encode(errors="surrogatepass"))


@bounded
@given(steps=st.lists(st.dictionaries(words, structures, min_size=1, max_size=2), max_size=3), store=structures)
@pytest.mark.slow
def test_any_nearly_valid_structure(tmp_path: Path, steps: Any, store: Any) -> None:
    data = {"store": store, "steps": steps}
    loads_or_refuses(tmp_path, yaml.safe_dump(data).encode(errors="surrogatepass"))


@pytest.mark.slow
@bounded
@given(override=anything | st.tuples(words, words, st.text()).map(lambda parts: "{}.{}={}".format(*parts)))
def test_any_override(tmp_path: Path, override: str) -> None:
    loads_or_refuses(tmp_path, MINIMAL.encode(), [override])


# ---- schema and reference -------------------------------------------------------------------

WRITTEN = {
    ROOT / "vczstore" / "job.schema.json": lambda: json.dumps(reference.schema(), indent=2, ensure_ascii=False) + "\n",
    ROOT / "examples" / "guide" / "reference-jobs.md": reference.reference,
}


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_generated_files_are_fresh(path: Path) -> None:
    """If not: ``REGENERATE=1 uv run pytest -n 0 tests/jobs/test_jobfile.py -k fresh``."""
    if os.environ.get("REGENERATE"):
        path.write_text(WRITTEN[path]())
    assert path.read_text() == WRITTEN[path]()


def accepts(data: Any) -> bool:
    validator = jsonschema.Draft202012Validator(json.loads((ROOT / "vczstore" / "job.schema.json").read_text()))
    return bool(validator.is_valid(data))


ACCEPTED = (
    MINIMAL,
    "store: {url: a, backend-storage: zarr, storage-options: {a: [1, {b: c}]}}\nsteps: [{append: [a, b]}]",
    *(MINIMAL + f"executor: {e}\n" for e in ("threads", "{name: processes}", "{name: threads, options: {a: 1}}")),
    *(MINIMAL + f"allowed-mem: {m}\n" for m in ("2GB", "500", "1.5 GiB", "10 mb", "'100'")),
    *(MINIMAL + f"max-workers: {m}\n" for m in ("1", "'12'", "${N:-3}")),
    *(steps(f"- append: {a}") for a in ("a/*.vcz", "[a]", "{source: a}", "{source: [a, b], on-duplicate: replace}")),
    *(steps(f"- update: {u}") for u in ("a", "[a, b]", "{source: a, insert: false}")),
    *(steps(f"- remove: {r}") for r in ("a", "[a, b]", "{samples: a}", "{samples: [a], missing-ok: false}")),
    steps("- remove: {samples-file: a}\n- tag: release-${DATE:-a}\n- tag: b"),
    *(steps(f"- recompute: {r}") for r in ("AC", "[AC, HWE]", "{}", "{fields: AN}", "{fields: [AN, NS]}")),
    *(steps(f"- regrid: {r}") for r in ("10000", "{when: columns > 50}", "{samples-chunk: 7, when: narrowest < 5}")),
    steps("- append: {source: a, on-duplicate: '${MODE:-skip}'}"),
    "store: {url: a, backend-storage: '${B:-zarr}'}\nexecutor: ${E:-threads}\nsteps: [{tag: x}]",
)


@pytest.mark.parametrize("text", ACCEPTED)
def test_the_schema_accepts(tmp_path: Path, text: str) -> None:
    load(tmp_path, text)
    assert accepts(yaml.safe_load(text))


def test_the_schema_is_valid_and_complete() -> None:
    schema = reference.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "$id" not in schema
    assert schema["title"] == "vczstore job"

    def objects(part: Any) -> list[dict[str, Any]]:
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        own = [part] if isinstance(part, dict) and "properties" in part else []
        return own + [found for value in inner for found in objects(value)]

    assert len(objects(schema)) == 19
    for part in objects(schema):
        assert part["additionalProperties"] is False
        for key, value in part["properties"].items():
            assert re.fullmatch("[a-z]+(-[a-z]+)*", key)
            assert value["description"]
            assert value["examples"]


@pytest.mark.slow
def test_the_schema_refuses_no_valid_job(tmp_path: Path) -> None:
    """Try the cases above, and accepted jobs with one value replaced. The schema also refuses most invalid jobs."""
    texts = [text for text, _ in REFUSED.values()]
    refused = [text for text in texts if not accepts(yaml.safe_load(text))]
    assert len(refused) > 0.75 * len(texts)
    for text in ACCEPTED:
        data = yaml.safe_load(text)
        for container, key in locations(data):
            kept = container[key]
            for other in (
                None,
                5,
                -1,
                1.5,
                True,
                "",
                "x",
                "${Y:-z}",
                [],
                [[]],
                ["x"],
                [5],
                {},
                {"x": 1},
                {"source": "x"},
            ):
                container[key] = other
                if not accepts(data):
                    refused.append(json.dumps(data))
            container[key] = kept
    assert len(refused) > 1000
    for text in refused:
        refusal(tmp_path, text)


def locations(data: Any) -> list[tuple[Any, Any]]:
    """All locations of values in a structure, each as a container and a key or index."""
    keys = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    return [(data, key) for key in keys] + [location for key in keys for location in locations(data[key])]


def step_of(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The key ``steps`` of a job with one step."""
    return {"steps": [{name: options}]}


def test_the_examples_of_the_reference_are_valid(tmp_path: Path) -> None:
    page = (ROOT / "examples" / "guide" / "reference-jobs.md").read_text()
    job, machines = re.findall(r"```yaml title=.*?\n(.*?)```", page, flags=re.DOTALL)
    assert len(load(tmp_path, job).steps) == 6
    assert accepts(yaml.safe_load(job))
    assert load_executor(write(tmp_path, machines, "cluster.yaml")).name == "processes"

    models = reference.schema()["$defs"]
    required = {"gvcf": True, "new-variants": "insert"}  # some options require these
    within: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "StoreSpec": lambda keys: {"store": {"url": "a"} | keys},
        "ExecutorSpec": lambda keys: {"executor": {"name": "threads"} | keys},
        "Step": lambda keys: {"branch": "nightly", "steps": [keys]},
        "Append": lambda keys: {"steps": [{"append": {"source": "a"} | keys}]},
        "AppendHarmonise": lambda keys: {"steps": [{"append": {"source": "a", "harmonise": required | keys}}]},
        "UpdateHarmonise": lambda keys: {"steps": [{"update": {"source": "a", "harmonise": required | keys}}]},
        "Update": lambda keys: {"steps": [{"update": {"source": "a"} | keys}]},
        "Remove": lambda keys: {"steps": [{"remove": {"samples": "a"} | keys if "missing-ok" in keys else keys}]},
        "Recompute": lambda keys: {"steps": [{"recompute": keys}]},
        "RenameSamples": lambda keys: {"steps": [{"rename-samples": {"file": "a"} | keys}]},
        "Export": lambda keys: {"steps": [{"export": {"to": "x"} | keys}]},
        "KeepSpec": lambda keys: {"store": "a", "keep": {"days": 30} | keys},
        "Gc": lambda keys: {"steps": [{"gc": {"keep-days": 30} | keys}]},
        **{name: partial(step_of, name.lower()) for name in ("Regrid", "Check", "Compact", "Purge", "Verify")},
    }
    assert within.keys() == models.keys()
    for name, model in {**models, "": reference.schema()}.items():
        for key, value in model["properties"].items():
            for example in value["examples"]:
                keys = {key: example}
                data = {"store": "a/{part}" if key == "parts" else "a", "steps": [{"tag": "x"}]} | (
                    within[name](keys) if name else keys
                )
                load(tmp_path, yaml.safe_dump(data))
                assert accepts(data)
                shown = re.search(rf"`{key}: ([^`]*)`", page)
                assert shown is not None
                assert yaml.safe_load(shown[1]) is not None


@pytest.mark.slow
def test_imports_are_light() -> None:
    """Checking a job file does not import the packages needed to run it."""
    code = "import sys, vczstore.jobs.model; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert not {"zarr", "cubed", "numpy", "icechunk", "click", "rich"} & set(done.stdout.split())
