"""`rename-samples`: IDs change in one commit, and nothing else."""

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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITTEN)
def test_in_a_job(kind: str, tmp_path: Path) -> None:
    way = Way(kind, "cubed")
    store = way.make(tmp_path, OLD)
    write_pairs(tmp_path / "ids.tsv", {"S0002": "B"})
    job = tmp_path / "job.yaml"
    job.write_text(f"store: {store}\nsteps:\n  - rename-samples: ids.tsv\n  - remove: B\n")
    assert [run_job(job).status for _ in range(2)] == ["done", "nothing to do"]
    cohort.assert_same(way.read(store), cohort.expected_remove(renamed(OLD, {"S0002": "B"}), ["B"]))


def write_job(folder: Path, store: Path, *steps: str) -> Path:
    (folder / "job.yaml").write_text("".join([f"store: {store}\nsteps:\n", *(f"  - {step}\n" for step in steps)]))
    return folder / "job.yaml"


@pytest.mark.slow
def test_a_sample_that_is_appended_again_under_its_old_id(tmp_path: Path) -> None:
    """The sample is renamed or the job refused; otherwise the step would count as done with both IDs in the store."""
    store = Way("icechunk", "cubed").make(tmp_path, OLD)
    write_pairs(tmp_path / "ids", {"S0007": "T7", "S0001": "T1"})
    (tmp_path / "inbox").mkdir()
    cohort.write_vcz(tmp_path / "inbox" / "a.vcz", cohort.make_arrays(6, ["S0007"], seed=1))
    job = write_job(tmp_path, store, "append: inbox/*.vcz", "rename-samples: ids")
    assert [run_job(job).status for _ in range(2)] == ["done", "nothing to do"]
    cohort.write_vcz(tmp_path / "inbox" / "b.vcz", cohort.make_arrays(6, ["S0007", "S0008"], seed=2))
    before = cohort.digest(store)
    complain(SampleError, ("^rename-samples: ", "would have T7 twice"), lambda: run_job(job))
    assert cohort.digest(store) == before
    vczstore.remove(store, ["T7", "T1"])
    before = cohort.digest(store)
    complain(SampleError, ("1 of the incoming samples was removed",), lambda: run_job(job))
    assert cohort.digest(store) == before
    job = write_job(
        tmp_path, store, "append: inbox/*.vcz", "rename-samples: {file: ids, missing-ok: true, allow-returning: true}"
    )
    assert [run_job(job).status for _ in range(2)] == ["done", "nothing to do"]
    assert cohort.read_vcz(cohort.icechunk_store(store))["sample_id"].tolist()[-2:] == ["T7", "S0008"]


@pytest.mark.slow
def test_a_sample_that_was_renamed_back(tmp_path: Path) -> None:
    """A finished step renames the sample again, although another of its samples was removed."""
    store = Way("format3", "cubed").make(tmp_path, OLD)
    write_pairs(tmp_path / "ids", {"S0001": "T1", "S0002": "T2"})
    assert run_job(write_job(tmp_path, store, "rename-samples: ids")).status == "done"
    vczstore.remove(store, ["T1"])
    write_pairs(tmp_path / "back", {"T2": "S0002"})
    vczstore.rename_samples(store, tmp_path / "back")
    assert [run_job(tmp_path / "job.yaml").status for _ in range(2)] == ["done", "nothing to do"]
    assert cohort.read_vcz(store)["sample_id"].tolist()[:4] == ["S0000", "", "T2", "S0003"]


@pytest.mark.slow
def test_ids_that_are_swapped_by_two_steps(tmp_path: Path) -> None:
    """A second run changes nothing; if it would also have to rename a sample, it is refused."""
    store = Way("format3", "cubed").make(tmp_path, OLD)
    write_pairs(tmp_path / "a", {"S0001": "x", "S0002": "y", "S0003": "z"})
    write_pairs(tmp_path / "b", {"x": "S0002", "y": "S0001"})
    job = write_job(tmp_path, store, "rename-samples: a", "rename-samples: b")
    assert [run_job(job).status for _ in range(2)] == ["done", "nothing to do"]
    ids = ["S0000", "S0002", "S0001", "z", "S0004"]
    assert cohort.read_vcz(store)["sample_id"].tolist()[:5] == ids
    write_pairs(tmp_path / "back", {"z": "S0003"})
    vczstore.rename_samples(store, tmp_path / "back")
    before = cohort.digest(store)
    complain(SampleError, ("^rename-samples: 1 sample came into", "a file of their own"), lambda: run_job(job))
    assert cohort.digest(store) == before


@pytest.mark.parametrize("text", ["", "S0001\tT1\nS9999\tT9\n"], ids=["empty", "unknown"])
def test_a_file_with_unknown_ids(tmp_path: Path, text: str) -> None:
    """Unknown IDs are counted; without missing-ok they are an error, but not a usage error."""
    store = Way("format3", "cubed").make(tmp_path, OLD)
    (tmp_path / "ids").write_text(text)
    before = cohort.digest(store)
    with pytest.raises(VczstoreError) as caught:
        run_job(write_job(tmp_path, store, "rename-samples: ids"))
    assert caught.value.exit_status == 1
    assert cohort.digest(store) == before
    job = write_job(tmp_path, store, "rename-samples: {file: ids, missing-ok: true}")
    result = run_job(job)
    assert result.status == ("done" if text else "nothing to do")
    note = "1 of 2 sample IDs is not in the store"
    assert (note in "\n".join(result.lines())) == bool(text)
    assert "S9999" not in "\n".join(result.lines())
    again = vczstore.rename_samples(store, tmp_path / "ids", missing_ok=True)
    assert again.counts["samples renamed"] == 0
    assert (note in "\n".join(again.lines())) == bool(text)
    if text:
        (tmp_path / "ids").write_text('"S0002"\tT2\n')
        complain(SampleError, ("another spelling",), lambda: run_job(job))


def test_columns_may_be_separated_by_spaces(tmp_path: Path) -> None:
    store = Way("format3", "cubed").make(tmp_path, OLD)
    (tmp_path / "ids").write_text("\ufeff S0001  a \n\nS0002\tb c\n", encoding="utf-8")
    vczstore.rename_samples(store, tmp_path / "ids")
    assert cohort.read_vcz(store)["sample_id"].tolist()[1:3] == ["a", "b c"]


@pytest.mark.parametrize("kind", WRITTEN)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
@pytest.mark.slow
def test_any_one_to_one_renaming(kind: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Random renamings to unused IDs, compared with a dictionary."""
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


def test_a_missing_file(tmp_path: Path) -> None:
    store = Way("format3", "cubed").make(tmp_path, OLD)
    complain(OptionError, ("gone: cannot be read",), lambda: vczstore.rename_samples(store, tmp_path / "gone"))


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("pairs", [{"S0000": "S0004", "S0004": "S0000"}, {"S0000": "S0001", "S0001": "x"}])
def test_ids_that_pass_from_one_sample_to_another(kind: str, tmp_path: Path, pairs: dict[str, str]) -> None:
    """Repeated, such a renaming would move the IDs once more, and calls would belong to another person."""
    store = Way(kind, "cubed").make(tmp_path, OLD)
    write_pairs(tmp_path / "ids", pairs)
    (tmp_path / "job.yaml").write_text(f"store: {store}\nsteps:\n  - rename-samples: ids\n")
    before = cohort.digest(store)
    for call in (lambda: vczstore.rename_samples(store, tmp_path / "ids"), lambda: run_job(tmp_path / "job.yaml")):
        complain(SampleError, ("would pass from one sample", "by two files"), call)
    assert cohort.digest(store) == before


@pytest.mark.slow
def test_a_file_without_an_end(tmp_path: Path) -> None:
    store = Way("format3", "cubed").make(tmp_path, OLD)
    complain(OptionError, ("/dev/zero: is larger than",), lambda: vczstore.rename_samples(store, "/dev/zero"))


def test_a_dict_instead_of_a_file(tmp_path: Path) -> None:
    store = Way("format3", "cubed").make(tmp_path, OLD)
    complain(OptionError, ("expected, not a dict",), lambda: vczstore.run("rename_samples", store, {"S0001": "x"}))


@pytest.mark.slow
def test_an_interrupted_job_accepts_a_corrected_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal of the interrupted job refers to the old file."""
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


@pytest.mark.slow
def test_a_fixed_width_of_ids(tmp_path: Path) -> None:
    arrays = {**OLD, "sample_id": OLD["sample_id"].astype("U5")}
    store = Way("format3", "cubed").make(tmp_path, arrays)
    write_pairs(tmp_path / "ids", {"S0001": "S00001"})
    words = ("sample_id", "length 6 does not fit", "shorter")
    complain(SampleError, words, lambda: vczstore.rename_samples(store, tmp_path / "ids"))
