"""Jobs with VCF sources: matched by globs, and appended once, under any name."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

import vczstore
from tests.support import cohort, vcf
from tests.support.clouds import Cloud
from tests.support.command_line import run
from tests.support.refusals import complain
from tests.support.small_vcf import NEW, OLD, RECORDS, text, write
from vczstore.errors import IncompatibleError, NotAStoreError, SampleError
from vczstore.execution import conversions
from vczstore.jobs.run import JobResult, plan_job, run_job

THIRD = ("C1", "C2")


@pytest.fixture(params=["format3", "icechunk"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A store without samples, with the variants of the VCFs."""
    (tmp_path / "inbox").mkdir()
    first = write(tmp_path / "first.vcf", text(OLD))
    backend = "icechunk" if request.param == "icechunk" else None
    vczstore.create(tmp_path / "store", first, variants_chunk=2, samples_chunk=2, backend_storage=backend)
    return tmp_path / "store"


def job(folder: Path, step: str = "append: inbox/*.{vcz,vcf.gz,bcf}") -> Path:
    path = folder / "job.yaml"
    path.write_text(f"store: store\nsteps:\n- {step}\n")
    return path


def done(result: JobResult) -> list[str]:
    return [", ".join(f"{n} {what}" for what, n in step.counts.items()) for step in result.results]


def _ids(store: Path) -> list[str]:
    place = cohort.icechunk_store(store) if (store / "snapshots").is_dir() else store
    ids: np.ndarray = zarr.open_group(place, mode="r")["sample_id"][:]  # type: ignore[index, assignment]
    return [str(sample) for sample in ids]


@pytest.mark.slow
def test_an_inbox_of_all_kinds(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is appended once, and is not converted again after that."""
    inbox = tmp_path / "inbox"
    write(inbox / "a.vcf.gz", text(OLD))
    write(inbox / "b.bcf", text(NEW))
    vcf.to_vcz(vcf.write_vcf(tmp_path / "c.vcf.gz", text(THIRD)), inbox / "c.vcz", 3, 2, 2)
    write(inbox / "d.vcf", text(("D1",)))  # does not match the glob
    file = job(tmp_path)
    assert re.search("^estimate: [0-9.]+ s, without the conversion of VCF files$", run("plan", file).stdout, re.M)
    steps = set[str]()
    assert done(run_job(file, progress=lambda what, *_: steps.add(what))) == ["3 sources, 6 samples added"]
    assert steps >= {"converting", "writing"}
    assert _ids(store) == [*OLD, *NEW, *THIRD]
    (inbox / "a.vcf.gz").rename(inbox / "renamed.vcf.gz")
    os.utime(inbox / "b.bcf")
    monkeypatch.setattr(conversions, "do", None)
    assert run_job(file).status == "nothing to do"
    assert [(len(source.found), source.new) for source in plan_job(file).found] == [(3, 0)]
    assert _ids(store) == [*OLD, *NEW, *THIRD]


@pytest.mark.slow
def test_a_general_glob_skips_the_vcf_next_to_its_vcz(tmp_path: Path, store: Path) -> None:
    source = vcf.write_vcf(tmp_path / "inbox" / "a.vcf.gz", text(OLD))
    vcf.to_vcz(source, tmp_path / "inbox" / "a.vcz", 3, 2, 2)
    assert done(run_job(job(tmp_path, "append: inbox/*"))) == ["1 sources, 2 samples added"]


@pytest.mark.slow
def test_a_changed_vcf(tmp_path: Path, store: Path) -> None:
    """A changed VCF is refused before it is converted."""
    batch = write(tmp_path / "inbox" / "a.vcf.gz", text(OLD))
    file = job(tmp_path)
    run_job(file)
    write(batch, text(OLD, RECORDS.replace(":300", ":200")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversions, "do", None)
        complain(IncompatibleError, [rf"append: {batch}: its samples were appended"], lambda: run_job(file))
    update = job(tmp_path, "update: inbox/a.vcf.gz")
    assert done(run_job(update)) == ["1 sources, 2 samples updated"]
    assert run_job(update).status == "nothing to do"


@pytest.mark.slow
def test_a_copy_of_an_appended_vcf(tmp_path: Path, store: Path) -> None:
    """Another file with the same samples is refused as such, in the words of a file that may not have changed."""
    write(tmp_path / "inbox" / "a.vcf.gz", text(OLD))
    run_job(job(tmp_path))
    copy = write(tmp_path / "copy.bcf", text(OLD))
    words = [rf"append: {copy}: its samples were appended before, from another source or an earlier state of this one"]
    complain(IncompatibleError, words, lambda: run_job(job(tmp_path, "append: copy.bcf")))


@pytest.mark.slow
def test_another_vcf_of_removed_samples(tmp_path: Path, store: Path) -> None:
    """It is as any source of removed samples: refused, left out or admitted, since there are no samples to replace."""
    write(tmp_path / "inbox" / "a.vcf.gz", text(OLD))
    run_job(job(tmp_path))
    other = write(tmp_path / "other.bcf", text(OLD, RECORDS.replace(":300", ":200")))
    vczstore.remove(store, OLD[0])
    dropping = job(tmp_path, "append: {source: other.bcf, drop-returning: true}")
    complain(IncompatibleError, [rf"{other}: its samples were appended before"], lambda: run_job(dropping))
    vczstore.remove(store, OLD[1])
    complain(SampleError, ["removed from .* before"], lambda: run_job(job(tmp_path, "append: other.bcf")))
    assert run_job(job(tmp_path, "append: {source: other.bcf, drop-returning: true}")).status == "done"
    assert not any(_ids(store))
    assert run_job(dropping).status == "nothing to do"
    write(tmp_path / "other.bcf", text(OLD, RECORDS.replace(":300", ":100")))
    assert done(run_job(job(tmp_path, "append: {source: other.bcf, allow-returning: true}"))) == [
        "1 sources, 2 samples added, 2 samples returning"
    ]
    assert [sample for sample in _ids(store) if sample] == [*OLD]


@pytest.mark.slow
def test_a_folder_with_braces_in_its_name(tmp_path: Path, store: Path) -> None:
    folder = tmp_path / "{x,y}"
    (folder / "inbox").mkdir(parents=True)
    shutil.move(store, folder / "store")
    write(folder / "inbox" / "a.bcf", text(OLD))
    assert done(run_job(job(folder))) == ["1 sources, 2 samples added"]


@pytest.mark.slow
def test_plan_converts_and_deletes(tmp_path: Path, store: Path) -> None:
    write(tmp_path / "inbox" / "a.vcf.gz", text(OLD))
    before = cohort.digest(store)
    shown = run("plan", job(tmp_path)).stdout
    assert "append: 1 source, 2 samples added" in shown
    assert cohort.digest(store) == before


@pytest.mark.slow
def test_vcfs_in_an_object_store(s3_cloud: Cloud, tmp_path: Path) -> None:
    """VCFs are matched by a glob, and downloaded to the temporary folder."""
    import obstore

    inbox = s3_cloud.objects("inbox")
    for name, samples in (("a.vcf.gz", OLD), ("b.vcf.gz", NEW)):
        obstore.put(inbox, name, write(tmp_path / name, text(samples)).read_bytes())
    url, options = s3_cloud.url, {"storage_options": s3_cloud.options}
    vczstore.create(f"{url}/store", f"{url}/inbox/a.vcf.gz", **options)
    file = tmp_path / "job.yaml"
    keys = "".join(f"    {key}: {value}\n" for key, value in s3_cloud.options.items())
    file.write_text(
        f"store:\n  url: {url}/store\n  storage-options:\n{keys}steps:\n- append: {url}/inbox/*.{{vcz,vcf.gz}}\n"
    )
    assert done(run_job(file)) == ["2 sources, 4 samples added"]
    assert run_job(file).status == "nothing to do"
    gone = f"{url}/inbox/gone.vcf.gz"
    complain(
        NotAStoreError, [f"append: {gone}: no such object"], lambda: vczstore.append(f"{url}/store", gone, **options)
    )
