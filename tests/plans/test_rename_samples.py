"""Samples get other IDs, at once, and nothing else of a store changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vczstore
from tests.support import cohort
from tests.support.refusals import complain
from tests.support.ways import WRITTEN, Way
from vczstore.errors import OptionError, SampleError, VczstoreError
from vczstore.jobs.run import run_job

OLD = cohort.make_arrays(6, cohort.ids(0, 7))


def write_pairs(path: Path, pairs: Mapping[str, str]) -> Path:
    path.write_text("".join(f"{old}\t{new}\n" for old, new in pairs.items()))
    return path


def renamed(arrays: dict[str, np.ndarray], pairs: Mapping[str, str]) -> dict[str, np.ndarray]:
    names = [pairs.get(name, name) for name in arrays["sample_id"].tolist()]
    return {**arrays, "sample_id": np.array(names, dtype=arrays["sample_id"].dtype)}


@pytest.mark.parametrize("kind", WRITTEN)
def test_ids_change_and_nothing_else(kind: str, tmp_path: Path) -> None:
    way = Way(kind, "cubed")
    store = way.make(tmp_path, OLD)
    pairs = {"S0001": "NA1", "S0006": "NA 6"}
    result = vczstore.rename_samples(store, write_pairs(tmp_path / "ids", pairs))
    assert result.counts == {"samples renamed": 2}
    cohort.assert_same(way.read(store), renamed(OLD, pairs))
    if kind == "icechunk":
        (entry, *_) = vczstore.log(store)
        assert entry["message"] == "rename-samples: 2 samples renamed"
    before = cohort.digest(store)
    again = vczstore.rename_samples(store, tmp_path / "ids")
    assert again.counts == {"samples renamed": 0, "samples renamed before": 2}
    assert cohort.digest(store) == before


@pytest.mark.parametrize("kind", WRITTEN)
def test_in_a_job(kind: str, tmp_path: Path) -> None:
    way = Way(kind, "cubed")
    store = way.make(tmp_path, OLD)
    write_pairs(tmp_path / "ids.tsv", {"S0002": "B"})
    job = tmp_path / "job.yaml"
    job.write_text(f"store: {store}\nsteps:\n  - rename-samples: ids.tsv\n  - remove: B\n")
    assert [run_job(job).status for _ in range(2)] == ["done", "nothing to do"]
    cohort.assert_same(way.read(store), cohort.expected_remove(renamed(OLD, {"S0002": "B"}), ["B"]))


def test_columns_may_be_separated_by_spaces(tmp_path: Path) -> None:
    store = Way("format3", "cubed").make(tmp_path, OLD)
    (tmp_path / "ids").write_text("\ufeff S0001  a \n\nS0002\tb c\n", encoding="utf-8")
    vczstore.rename_samples(store, tmp_path / "ids")
    assert cohort.read_vcz(store)["sample_id"].tolist()[1:3] == ["a", "b c"]


@pytest.mark.parametrize("kind", WRITTEN)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
@pytest.mark.slow
def test_as_a_dictionary_does(kind: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any one-to-one renaming to IDs that are not there."""
    way, folder = Way(kind, "cubed"), tmp_path_factory.mktemp("store")
    store = way.make(folder, OLD)
    old = data.draw(st.lists(st.sampled_from(OLD["sample_id"].tolist()), min_size=1, unique=True))
    new = data.draw(st.permutations([f"new {name}" for name in old]))
    pairs = dict(zip(old, new, strict=True))
    vczstore.rename_samples(store, write_pairs(folder / "ids", pairs))
    cohort.assert_same(way.read(store), renamed(OLD, pairs))


REFUSED: dict[str, tuple[str | bytes, type[VczstoreError], tuple[str, ...]]] = {
    "an ID that is taken": ("S0001\tS0002\n", SampleError, ("would have S0002 twice",)),
    "one ID for two": ("S0001\tx\nS0002\tx\n", SampleError, ("would have x", "twice")),
    "two IDs for one": ("S0001\tx\nS0001\ty\n", SampleError, (":2:", "another new ID above")),
    "unknown": ("S0001\tx\nS9999\ty\n", SampleError, ("no sample S9999", "nothing was renamed")),
    "one column": ("S0001\n", OptionError, (":1:", "found 1;")),
    "columns by other characters": ("S0001\x1cnew\nS0001\x85new\n", OptionError, (":1:", "found 1;")),
    "three columns": ("S0001 a b\n", OptionError, (":1:", "found 3;", "separate them by a tab")),
    "an empty ID": ("S0001\t\n", OptionError, (":1:",)),
    "an invisible character": ("S0001\ta\x07\n", OptionError, (":1:", "cannot be seen")),
    "nothing": ("\n\n", OptionError, ("names no sample",)),
    "no text": (b"\xff\xfe", OptionError, ("no UTF-8 text",)),
    "a look-alike": ("S0001\te\u0301\nS0002\t\u00e9\n", SampleError, ("looks like", "Unicode form")),
}


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize(("text", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(
    kind: str, tmp_path: Path, text: str | bytes, error: type[VczstoreError], words: tuple[str, ...]
) -> None:
    store = Way(kind, "cubed").make(tmp_path, OLD)
    (tmp_path / "ids").write_bytes(text if isinstance(text, bytes) else text.encode())
    before = cohort.digest(store)
    complain(error, ("^rename-samples: ", *words), lambda: vczstore.rename_samples(store, tmp_path / "ids"))
    assert cohort.digest(store) == before


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    store = Way("format3", "cubed").make(tmp_path, OLD)
    complain(OptionError, ("gone: cannot be read",), lambda: vczstore.rename_samples(store, tmp_path / "gone"))


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("pairs", [{"S0000": "S0004", "S0004": "S0000"}, {"S0000": "S0001", "S0001": "x"}])
def test_ids_that_pass_from_one_sample_to_another(kind: str, tmp_path: Path, pairs: dict[str, str]) -> None:
    """Run again, they would pass on once more: calls would be those of another person."""
    store = Way(kind, "cubed").make(tmp_path, OLD)
    write_pairs(tmp_path / "ids", pairs)
    (tmp_path / "job.yaml").write_text(f"store: {store}\nsteps:\n  - rename-samples: ids\n")
    before = cohort.digest(store)
    for call in (lambda: vczstore.rename_samples(store, tmp_path / "ids"), lambda: run_job(tmp_path / "job.yaml")):
        complain(SampleError, ("would pass from one sample", "by two files"), call)
    assert cohort.digest(store) == before


def test_a_file_without_an_end(tmp_path: Path) -> None:
    store = Way("format3", "cubed").make(tmp_path, OLD)
    complain(OptionError, ("/dev/zero: is larger than",), lambda: vczstore.rename_samples(store, "/dev/zero"))


def test_no_file(tmp_path: Path) -> None:
    store = Way("format3", "cubed").make(tmp_path, OLD)
    complain(OptionError, ("expected, not a dict",), lambda: vczstore.run("rename_samples", store, {"S0001": "x"}))


@pytest.mark.slow
def test_a_job_that_was_stopped_takes_a_corrected_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had kept is of the file as it was."""
    way = Way("icechunk", "cubed")
    store, batch = way.make(tmp_path, OLD), cohort.make_arrays(6, cohort.ids(7, 3), seed=1)
    cohort.write_vcz(tmp_path / "batch.vcz", batch)
    write_pairs(tmp_path / "ids", {"S0001": "wrong"})
    job = tmp_path / "job.yaml"
    steps = "  - rename-samples: ids\n  - append: batch.vcz\n"
    job.write_text(f"store: {store}\nwork-dir: work\nsteps:\n{steps}")
    from vczstore.execution.checkpoint import Journal

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", lambda self, save=Journal.save: (save(self), 1 / 0))
        with pytest.raises(VczstoreError):
            run_job(job)
    write_pairs(tmp_path / "ids", {"S0001": "right"})
    assert run_job(job).status == "done"
    cohort.assert_same(way.read(store), cohort.expected_append(renamed(OLD, {"S0001": "right"}), batch))


def test_a_fixed_width(tmp_path: Path) -> None:
    arrays = {**OLD, "sample_id": OLD["sample_id"].astype("U5")}
    store = Way("format3", "cubed").make(tmp_path, arrays)
    write_pairs(tmp_path / "ids", {"S0001": "S00001"})
    words = ("sample_id", "length 6 does not fit", "shorter")
    complain(SampleError, words, lambda: vczstore.rename_samples(store, tmp_path / "ids"))
