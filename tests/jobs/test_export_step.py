"""Exports of jobs: written once, replaced when the store has changed, and never overwriting anything else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import zarr

import vczstore
from plans.maintenance import export_again
from tests.support import cohort, s3, vcf
from tests.support.command_line import fails, run
from tests.support.killed import killed
from tests.support.refusals import complain
from tests.support.ways import WRITTEN, Way
from vczstore.errors import JobFileError, OptionError, SampleError, UnsuitableError
from vczstore.execution.results import Found
from vczstore.jobs.run import run_job
from vczstore.vcz import zarr_objects

pytestmark = pytest.mark.slow

OLD = cohort.some_arrays(10, cohort.ids(0, 4))


def write(folder: Path, *steps: str, head: str = "store: store.vcz") -> Path:
    file = folder / "job.yaml"
    file.write_text(f"{head}\nsteps:\n" + "".join(f"- {step}\n" for step in steps))
    return file


def batch(folder: Path, name: str, first: int) -> dict[str, np.ndarray]:
    arrays = cohort.some_arrays(10, cohort.ids(first, 2), seed=first)
    cohort.write_vcz(folder / "inbox" / name, arrays)
    return arrays


@pytest.mark.parametrize("kind", WRITTEN)
def test_repeated_runs(kind: str, tmp_path: Path) -> None:
    """The state committed by the job is exported; a rerun keeps the export, a new state replaces it."""
    store, out = Way(kind, "cubed").make(tmp_path, OLD), tmp_path / "latest.vcz"
    first = batch(tmp_path, "a.vcz", 4)
    job = write(tmp_path, "append: inbox/*.vcz", "export: latest.vcz")
    assert "then: export" in run("plan", job).stdout
    assert not out.exists()
    assert f"export {out}: 6 samples, 10 variants" in run("run", job).stdout
    now = cohort.expected_append(OLD, first)
    cohort.assert_same(cohort.read_vcz(out), now)
    before = cohort.digest(out)
    assert f"export {out}: up to date with {store}" in run("run", job).stdout
    assert run_job(job).status == "nothing to do"
    assert cohort.digest(out) == before

    second = batch(tmp_path, "b.vcz", 6)
    run("run", job)
    cohort.assert_same(cohort.read_vcz(out), cohort.expected_append(now, second))
    assert sorted(path.name for path in tmp_path.iterdir() if "latest" in path.name) == [
        "latest.vcz",
        "latest.vcz.vczstore-export",
    ]
    # an export that was edited is not replaced
    vczstore.remove(out, "S0000")
    before, ids = cohort.digest(out), vczstore.samples(store)
    batch(tmp_path, "c.vcz", 8)
    assert "has been changed since a job exported to it; move it away" in fails("run", job)
    assert cohort.digest(out) == before
    assert vczstore.samples(store) == ids


def test_cleaning_up_does_not_change_the_exported_state(tmp_path: Path) -> None:
    """The snapshots made by gc and purge have the same content as the export, so the next run keeps it."""
    store, out = Way("icechunk", "zarr").make(tmp_path, OLD), tmp_path / "latest.vcz"
    batch(tmp_path, "a.vcz", 4)
    job = write(tmp_path, "append: inbox/*.vcz", "export: latest.vcz", head="store: store.vcz\nkeep: {days: 0}")

    def exports() -> bool:
        before = vczstore.info(store).snapshot
        (result,) = [action.found for action in run_job(job).done if action.operation.called == "export"]
        assert vczstore.info(store).snapshot != before
        return not isinstance(result, export_again.Unchanged)

    assert [exports() for _ in range(3)] == [True, False, False]
    vczstore.purge(store)
    vczstore.purge(store)
    assert not exports()
    batch(tmp_path, "b.vcz", 6)
    assert exports()
    assert len(cohort.read_vcz(out)["sample_id"]) == 8


def test_with_tags_regions_and_samples(tmp_path: Path) -> None:
    """Export a tag created by the job as VCF, before a purge; paths are relative to the job file."""
    original = vcf.write_vcf(tmp_path / "original.vcf.gz", vcf.CALLS.make())
    store = cohort.copy_to_icechunk(vcf.to_vcz(original, tmp_path / "plain", 3, 10, 5), tmp_path / "store.vcz")
    removed, left_out, *left = vcf.CALLS.samples
    (tmp_path / "not-these").write_text(f"{left_out}\n")
    job = write(
        tmp_path,
        f"remove: [{removed}]",
        "tag: r1",
        "export: {to: r1.vcf.gz, at: r1, samples-file: ^not-these, regions: ['chrX', 'chr1:1000-1100']}",
        "purge: true",
    )
    run("run", job)
    assert vczstore.samples(store).ids == [left_out, *left]
    lines = vcf.bcftools_records(tmp_path / "r1.vcf.gz")
    assert lines[0].split("\t")[9:] == left
    assert len(lines) == 1 + 15 + 3
    inode = os.stat(tmp_path / "r1.vcf.gz").st_ino
    run("run", job)
    (tmp_path / "not-these").write_text(f"{left[0]}\n")
    run("run", job)
    assert vcf.bcftools_records(tmp_path / "r1.vcf.gz")[0].split("\t")[9:] == [left_out, *left[1:]]
    assert os.stat(tmp_path / "r1.vcf.gz").st_ino != inode


def test_refused_exports(tmp_path: Path) -> None:
    """They are refused before anything is committed, so the batch is not appended."""
    Way("format3", "cubed").make(tmp_path, OLD)
    batch(tmp_path, "a.vcz", 4)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes").write_text("ours")
    vczstore.export(tmp_path / "store.vcz", tmp_path / "by-hand.vcz")
    (tmp_path / "file.vcf").write_text("##fileformat=VCFv4.3\n")
    for to, error, words in (
        ("theirs", UnsuitableError, "theirs exists, and no job has exported to it"),
        ("by-hand.vcz", UnsuitableError, "by-hand.vcz exists, and no job"),
        ("file.vcf", UnsuitableError, "file.vcf exists, and no job"),
        ("store.vcz/x", UnsuitableError, "would lie in"),
        (".", UnsuitableError, "which is read, lies in"),
        ("no-folder/x.vcf", UnsuitableError, "there is no folder"),
        ('"-"', OptionError, "- is standard output, to which no job exports"),
        ("http://host/x", UnsuitableError, "is no path or key"),
        ("{to: x, regions: [chr9]}", OptionError, "no contig chr9"),
        ("{to: x, samples-file: no-file}", OptionError, "no-file: cannot be read"),
        ("{to: x, samples: [a], samples-file: b}", JobFileError, "not by both"),
    ):
        job = write(tmp_path, "append: inbox/*.vcz", f"export: {to}")
        before = cohort.digest(tmp_path)
        complain(error, (words,), lambda job=job: run_job(job))
        assert cohort.digest(tmp_path) == before
    complain(JobFileError, ("hands out",), lambda: run_job(write(tmp_path, "export: x", "append: inbox/*.vcz")))
    # unknown samples are detected after the commit, and the message says so
    job = write(tmp_path, "append: inbox/*.vcz", "export: {to: x, samples: [S0004, S9999]}")
    complain(SampleError, ("what the steps of the job do is committed",), lambda: run_job(job))
    assert not (tmp_path / "x").exists()


def test_in_an_object_store(s3_server: s3.S3Server, tmp_path: Path) -> None:
    """An interrupted export is completed; a complete one is kept, and cannot be replaced."""
    url = s3_server.url("exports")
    Way("format3", "cubed").make(tmp_path, OLD)
    options = ", ".join(f"{name}: '{value}'" for name, value in s3_server.options.items())
    vczstore.init(f"{url}/store.vcz", tmp_path / "store.vcz", storage_options=s3_server.options)
    head = f"store: {{url: '{url}/store.vcz', storage-options: {{{options}}}}}"
    job = write(tmp_path, f"export: {url}/out.vcz", head=head)
    place = export_again.Place.of(f"{url}/out.vcz", s3_server.options)

    def stopped(_: str) -> Found:
        zarr_objects.write_json(place.objects, "call_DP/zarr.json", {})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_again.export_again(place, "x", export_again.Unchanged("", None, ""), stopped)
    run_job(job)
    opened = zarr.open_consolidated(place.objects)
    assert opened["sample_id"][:].tolist() == cohort.ids(0, 4)
    assert "out.vcz: up to date with" in run("run", job).stdout
    vczstore.remove(f"{url}/store.vcz", "S0001", storage_options=s3_server.options)
    complain(UnsuitableError, ("cannot be replaced at once", "release-"), lambda: run_job(job))
    assert opened["sample_id"][:].tolist() == cohort.ids(0, 4)


@pytest.mark.parametrize("suffix", [".vcz", ".vcf"])
def test_killed(suffix: str, tmp_path: Path) -> None:
    """After a kill, the export is either the old or the new one, and the next run completes it."""
    place = tmp_path / "place"
    place.mkdir()
    original = vcf.write_vcf(tmp_path / "original.vcf.gz", vcf.MIXED_PLOIDY.make())
    vcf.to_vcz(original, place / "store.vcz", 3, 10, 5)
    removed, *left = samples = [*vcf.MIXED_PLOIDY.samples]
    job = write(place, f"export: out{suffix}", head="store: store.vcz\nexecutor: single-threaded")
    run_job(job)
    vczstore.remove(place / "store.vcz", removed)
    code = "from vczstore.jobs.run import run_job; run_job(store / 'job.yaml')"
    *stopped, whole = killed(place, tmp_path / "killed", code, step=23 if suffix == ".vcz" else 2)
    assert len(stopped) > 3

    def ids(place: Path) -> list[str]:
        out = place / f"out{suffix}"
        if suffix == ".vcf":
            return vcf.bcftools_records(out)[0].split("\t")[9:]
        return [str(sample) for sample in zarr.open_consolidated(out)["sample_id"][:]]

    assert ids(whole) == left
    for copy in stopped:
        assert ids(copy) in (samples, left)
        run_job(copy / "job.yaml")
        assert ids(copy) == left
        assert len([path for path in copy.iterdir() if "out" in path.name]) == 2
