"""`samples`: lists of IDs, and the suggestions in errors about unknown IDs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

import vczstore
from tests.support import cohort
from tests.support.command_line import fails, run
from tests.support.refusals import complain
from tests.support.ways import WRITTEN, Way
from vczstore.errors import SampleError, TagError
from vczstore.jobs.run import run_job

IDS = ["NA00001", "NA00002", "HG-0003", "e\u0301", "a\tb"]


def make(kind: str, folder: Path) -> Path:
    return Way(kind, "cubed").make(folder, cohort.make_arrays(4, IDS, fields=()))


@pytest.mark.parametrize("kind", WRITTEN)
def test_samples_are_listed(kind: str, tmp_path: Path) -> None:
    store = make(kind, tmp_path)
    assert vczstore.samples(store).ids == IDS
    vczstore.remove(store, ["NA00002", "a\tb"])
    assert run("samples", store).stdout.splitlines() == ["NA00001", "HG-0003", "e\u0301"]
    assert run("samples", store, "--removed").stdout.splitlines() == ["1", "4"]
    listing = json.loads(run("samples", store, "--json").stdout)
    assert (listing["ids"], listing["n_samples"], listing["n_removed"]) == (["NA00001", "HG-0003", "e\u0301"], 3, 2)


def test_samples_of_an_earlier_state(tmp_path: Path) -> None:
    store = make("icechunk", tmp_path)
    vczstore.tag(store, "v1")
    vczstore.remove(store, "NA00002")
    assert run("samples", store, "--at", "v1").stdout.splitlines() == [*IDS[:4], repr("a\tb")]
    assert "has no tag, branch or snapshot 'v2'" in fails("samples", store, "--at", "v2")


def test_plain_zarr_keeps_no_earlier_states(tmp_path: Path) -> None:
    store = make("format3", tmp_path)
    complain(TagError, ("^samples: ", "copy-store-to-icechunk"), lambda: vczstore.samples(store, at="v1"))


SUGGESTED = {"na00001": "NA00001", "HG0003": "HG-0003", "NA0000": "NA00001", "AN00002": "NA00002", "NA0000Z": "NA00001"}


@pytest.mark.parametrize("kind", WRITTEN)
def test_errors_suggest_samples(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Errors of commands contain suggestions; jobs log these only at the debug level."""
    store = make(kind, tmp_path)
    before = cohort.digest(store)
    caplog.set_level(logging.INFO)
    for asked, meant in SUGGESTED.items():
        words = (f"^remove: .* has no sample {asked}; nothing was removed", f"perhaps {meant}.* is meant")
        complain(SampleError, words, lambda asked=asked: vczstore.remove(store, asked))
    assert "meant" not in fails("remove", store, "Y1234")
    (tmp_path / "ids").write_text("NA0001\tx\n")
    assert "perhaps NA00001 is meant" in fails("rename-samples", store, tmp_path / "ids")
    cohort.write_vcz(tmp_path / "batch.vcz", cohort.make_arrays(4, ["NA0001"], fields=()))
    assert "perhaps NA00001 is meant" in fails("update", store, tmp_path / "batch.vcz")
    (tmp_path / "job.yaml").write_text(f"store: {store}\nsteps:\n  - remove: na00001\n")
    message = complain(SampleError, ("has no sample na00001;",), lambda: run_job(tmp_path / "job.yaml"))
    assert "NA00001" not in message + caplog.text
    assert cohort.digest(store) == before
