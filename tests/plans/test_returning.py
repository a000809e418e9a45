"""Removed samples are not added again by mistake: the store keeps keyed hashes of their IDs, but not the key."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

import vczstore
from plans.core.withdrawn import ATTRIBUTE, Withdrawn
from tests.support import cohort, s3
from tests.support.refusals import complain
from tests.support.small_stores import unchanged
from tests.support.ways import WRITTEN, Way
from vczstore.errors import ConflictError, IncompatibleError, OptionError, SampleError, StorageError, UnsuitableError
from vczstore.jobs.run import run_job
from vczstore.stores.resolve import open_store
from vczstore.stores.withdrawal_key import SUFFIX, VARIABLE, KeyPlace

FIELDS = ("sample_id", "contig_id", "variant_contig", "variant_position", "variant_allele", "call_genotype", "call_DP")


def some(samples: list[str], seed: int = 0) -> dict[str, np.ndarray]:
    arrays = cohort.make_arrays(4, samples, seed=seed)
    return {name: arrays[name] for name in FIELDS}


OLD = some(cohort.ids(0, 7))
BACK = some(["S0001", "N1"], seed=1)


def removed_from(kind: str, folder: Path, *samples: str) -> tuple[Way, Path]:
    way = Way(kind, "zarr")
    store = way.make(folder, OLD)
    vczstore.remove(store, samples or ("S0001", "S0004"), impl="zarr")
    return way, store


def batch(folder: Path, arrays: dict[str, np.ndarray] = BACK, name: str = "back.vcz") -> Path:
    cohort.write_vcz(folder / name, arrays)
    return folder / name


def attribute(store: Path, way: Way) -> dict[str, Any]:
    attrs = zarr.open_group(cohort.icechunk_store(store) if way.is_icechunk else store, mode="r").attrs
    return dict(attrs[ATTRIBUTE])  # type: ignore[call-overload]


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_removed_sample_that_returns(kind: str, tmp_path: Path) -> None:
    way, store = removed_from(kind, tmp_path)
    gone = cohort.expected_remove(OLD, ["S0001", "S0004"])
    source = batch(tmp_path)
    with unchanged(store):
        words = [
            r"append: 1 of the incoming samples was removed from .*\.vcz before; .*--allow-returning",
            "S0001",
        ]
        complain(SampleError, words, lambda: vczstore.append(store, source, impl="zarr"))
        (tmp_path / "ids").write_text("S0002 S0004\n")
        words = ["rename-samples: 1 of the incoming samples was removed", "S0004", "--allow-returning"]
        complain(SampleError, words, lambda: vczstore.rename_samples(store, tmp_path / "ids"))
        words = ["update: 1 of the incoming samples was removed", "append --allow-returning"]
        complain(SampleError, words, lambda: vczstore.update(store, source, impl="zarr"))
        words = ["no sample S0001", "1 of the samples was removed before"]
        error = complain(SampleError, words, lambda: vczstore.remove(store, ["S0001"], impl="zarr"))
        assert "perhaps" not in error  # the suggestions are S0000 and S0002

    dropping = vczstore.append(store, source, impl="zarr", drop_returning=True)
    assert dropping.summary == "1 source, 1 sample added, 1 sample left out as removed before"
    with unchanged(store):
        words = [r"append: the one sample of .*back\.vcz to be added is in .* already"]
        complain(SampleError, words, lambda: vczstore.append(store, source, impl="zarr", drop_returning=True))
    cohort.assert_same(way.read(store), cohort.expected_append(gone, cohort.select(BACK, ["N1"])))
    alone = batch(tmp_path, cohort.select(BACK, ["S0001"]), "alone.vcz")
    with unchanged(store):
        complain(
            SampleError, ["nothing is left"], lambda: vczstore.append(store, alone, impl="zarr", drop_returning=True)
        )
    allowed = vczstore.append(store, alone, impl="zarr", allow_returning=True)
    assert allowed.counts == {"sources": 1, "samples added": 1, "samples returning": 1}
    cohort.assert_same(way.read(store), expected(gone))
    assert len(attribute(store, way)["hashes"]) == 1  # S0004
    # samples removed before are no error if others are named, so that an interrupted run can be completed
    again = vczstore.remove(store, ["S0001", "S0004"], impl="zarr")
    assert again.counts == {"samples removed": 1, "samples removed before": 1}


def expected(gone: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return cohort.expected_append(gone, cohort.select(BACK, ["N1"]), cohort.select(BACK, ["S0001"]))


def test_another_unicode_form_is_the_same_sample(tmp_path: Path) -> None:
    store = Way("format3", "zarr").make(tmp_path, some(["Zo\u00eb", "B"]))
    vczstore.remove(store, ["Zo\u00eb"], impl="zarr")
    source = batch(tmp_path, some(["Zoe\u0308"]))
    complain(SampleError, ["was removed"], lambda: vczstore.append(store, source, impl="zarr"))


@pytest.mark.parametrize("kind", WRITTEN)
def test_operations_that_keep_the_hashes(kind: str, tmp_path: Path) -> None:
    """Compact (also to a copy), purge and the copy to Icechunk keep the hashes; the sample is refused afterwards."""
    way, store = removed_from(kind, tmp_path)
    source = batch(tmp_path)
    stores = [store, tmp_path / "compacted.vcz"]
    vczstore.compact(store, tmp_path / "compacted.vcz", impl="zarr")
    vczstore.compact(store, impl="zarr")
    if way.is_icechunk:
        vczstore.purge(store)
    else:
        vczstore.copy_store_to_icechunk(store, tmp_path / "copy.icechunk", impl="zarr")
        stores.append(tmp_path / "copy.icechunk")
    for place in stores:
        assert place.with_name(place.name + SUFFIX).exists()
        complain(SampleError, ["S0001"], lambda place=place: vczstore.append(place, source, impl="zarr"))


def test_an_overwritten_repository_keeps_the_hashes(tmp_path: Path) -> None:
    """In addition, lines of the VCF header that name a removed sample are not copied."""
    _, store = removed_from("icechunk", tmp_path)
    full = batch(tmp_path, OLD, "full.vcz")
    copy: dict[str, Any] = {"impl": "zarr", "overwrite": True}
    with unchanged(store):
        words = ["copy-store-to-icechunk: 2 of the incoming samples", "delete the repository"]
        complain(SampleError, words, lambda: vczstore.copy_store_to_icechunk(full, store, **copy))
    other = batch(tmp_path, some(["N2"]), "other.vcz")
    kept = "##fileformat=VCFv4.3\n##SAMPLE=<ID=N2>\n"
    zarr.open_group(other).attrs["vcf_header"] = f"{kept}##PEDIGREE=<ID=N2,Father=S0001>\n##pathOf=/in/S0001.bam\n"
    vczstore.copy_store_to_icechunk(other, store, **copy)
    assert open_store(store).open().attributes["vcf_header"] == kept
    complain(SampleError, ["S0001"], lambda: vczstore.append(store, batch(tmp_path), impl="zarr"))


def test_the_key_of_another_store_is_in_the_way(tmp_path: Path) -> None:
    _, store = removed_from("format3", tmp_path)
    stale = tmp_path / f"copy.icechunk{SUFFIX}"
    stale.write_text("x" * 64)
    with unchanged(store):
        words = ["^copy-store-to-icechunk: ", str(stale), "delete the file"]
        complain(UnsuitableError, words, lambda: vczstore.copy_store_to_icechunk(store, tmp_path / "copy.icechunk"))
    assert not (tmp_path / "copy.icechunk").exists()


@pytest.mark.parametrize("kind", WRITTEN)
def test_init_does_not_copy_hashes_without_their_key(kind: str, tmp_path: Path) -> None:
    _, store = removed_from(kind, tmp_path)
    vczstore.compact(store, impl="zarr")
    vczstore.init(tmp_path / "new.vcz", store)
    assert ATTRIBUTE not in zarr.open_group(tmp_path / "new.vcz", mode="r").attrs
    vczstore.append(tmp_path / "new.vcz", batch(tmp_path), impl="zarr")


def test_stores_in_memory_have_keys_of_their_own(tmp_path: Path) -> None:
    keys, place = set(), batch(tmp_path, OLD)
    for _ in range(2):
        store = cohort.in_memory(place)
        vczstore.remove(store, ["S0001"], impl="zarr")
        keys.add(zarr.open_group(store, mode="r").attrs[ATTRIBUTE]["key"])  # type: ignore[call-overload, index]
    assert len(keys) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITTEN)
def test_in_jobs(kind: str, tmp_path: Path) -> None:
    way = Way(kind, "zarr")
    store = way.make(tmp_path, OLD)
    (tmp_path / "inbox").mkdir()
    batch(tmp_path, name="inbox/a.vcz")
    job = tmp_path / "job.yaml"

    job_results: list[Any] = []

    def run(*steps: str) -> str:
        job.write_text("\n".join([f"store: {store}", "steps:", *(f"  - {step}" for step in steps)]) + "\n")
        job_results.append(run_job(job))
        return job_results[-1].status

    with unchanged(store):  # a step of a job sees the results of earlier ones
        error = complain(SampleError, ["was removed"], lambda: run("remove: S0001", "append: inbox/*.vcz"))
    assert "S0001" not in error  # jobs log no IDs
    assert run("remove: S0001", "append: {source: inbox/*.vcz, drop-returning: true}") == "done"
    assert [result.counts.get("samples left out as removed before") for result in job_results[-1].results] == [None, 1]
    remaining = cohort.expected_append(cohort.expected_remove(OLD, ["S0001"]), cohort.select(BACK, ["N1"]))
    cohort.assert_same(way.read(store), remaining)
    assert run("remove: S0001", "append: {source: inbox/*.vcz, drop-returning: true}") == "nothing to do"
    batch(tmp_path, some(["S0001"], seed=2), name="inbox/c.vcz")  # all of its samples are left out, recorded once
    assert run("append: {source: inbox/*.vcz, drop-returning: true}") == "done"
    assert run("append: {source: inbox/*.vcz, drop-returning: true}") == "nothing to do"
    assert run("append: inbox/*.vcz") == "nothing to do"
    cohort.assert_same(way.read(store), remaining)
    batch(tmp_path, some(["S0001"], seed=4), name="inbox/d.vcz")
    more = some(["N3"], seed=5)
    batch(tmp_path, more, name="inbox/e.vcz")
    assert run("append: {source: inbox/*.vcz, drop-returning: true}") == "done"
    assert run("append: inbox/*.vcz") == "nothing to do"
    remaining = cohort.expected_append(remaining, more)
    batch(tmp_path, some(["S0001", "N2"], seed=3), name="inbox/b.vcz")
    with unchanged(store):
        complain(SampleError, ["was removed"], lambda: run("update: {source: inbox/b.vcz, insert: true}"))
    assert run("update: {source: inbox/b.vcz, insert: true, allow-returning: true}") == "done"
    cohort.assert_same(way.read(store), cohort.expected_append(remaining, some(["S0001", "N2"], seed=3)))


@pytest.mark.slow
def test_a_job_with_another_state_of_a_removed_batch(tmp_path: Path) -> None:
    """A batch appended by a job, of which all samples were removed since, is a new one in another state."""
    way = Way("format3", "zarr")
    store, job, first = way.make(tmp_path, OLD), tmp_path / "job.yaml", some(["N1", "N2"], seed=1)
    batch(tmp_path, first, "batch.vcz")

    def run(options: str = "") -> str:
        job.write_text(f"store: {store}\nsteps:\n  - append: {{source: batch.vcz{options}}}\n")
        return run_job(job).status

    assert run() == "done"
    vczstore.remove(store, ["N1"], impl="zarr")
    second = some(["N1", "N2"], seed=2)
    shutil.rmtree(tmp_path / "batch.vcz")
    batch(tmp_path, second, "batch.vcz")
    with unchanged(store):
        for options in ("", ", drop-returning: true", ", allow-returning: true"):
            complain(IncompatibleError, ["its samples were appended before"], lambda options=options: run(options))
    vczstore.remove(store, ["N2"], impl="zarr")
    removed = cohort.expected_remove(cohort.expected_append(OLD, first), ["N1", "N2"])
    with unchanged(store):
        complain(SampleError, ["2 of the incoming samples were removed"], run)
    assert run(", allow-returning: true") == "done"
    cohort.assert_same(way.read(store), cohort.expected_append(removed, second))


def test_the_key_is_next_to_the_store_and_hidden_from_others(tmp_path: Path) -> None:
    way, store = removed_from("format3", tmp_path)
    key = tmp_path / f"store.vcz{SUFFIX}"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    text = json.dumps(attribute(store, way))
    assert key.read_text().strip() not in text
    plain = {hashlib.new(name, b"S0001").hexdigest()[:24] for name in ("sha256", "blake2b", "md5")}
    assert not plain & set(attribute(store, way)["hashes"])


@pytest.mark.parametrize("how", ["lost", "another"])
def test_without_the_key_nothing_is_appended(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, store = removed_from("format3", tmp_path)
    moved = shutil.move(store, tmp_path / "moved.vcz")
    source = batch(tmp_path)
    if how == "another":
        (tmp_path / f"moved.vcz{SUFFIX}").write_text("x" * 64)
    with unchanged(moved):
        words = ["2 removed samples", f"moved.vcz{SUFFIX}", VARIABLE, ATTRIBUTE]
        for call in (
            lambda: vczstore.append(moved, source, impl="zarr"),
            lambda: vczstore.remove(moved, ["S0002"], impl="zarr"),
        ):
            complain(StorageError, words, call)
    monkeypatch.setenv(VARIABLE, (tmp_path / f"store.vcz{SUFFIX}").read_text())
    complain(SampleError, ["S0001"], lambda: vczstore.append(moved, source, impl="zarr"))


def test_the_key_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "short")
    store = Way("format3", "zarr").make(tmp_path, OLD)
    with unchanged(store):
        complain(OptionError, [VARIABLE, "openssl"], lambda: vczstore.remove(store, ["S0001"], impl="zarr"))
    monkeypatch.setenv(VARIABLE, "0123456789abcdef" * 4)
    vczstore.remove(store, ["S0001"], impl="zarr")
    assert not (tmp_path / f"store.vcz{SUFFIX}").exists()
    source = batch(tmp_path)
    complain(SampleError, ["S0001"], lambda: vczstore.append(store, source, impl="zarr"))
    monkeypatch.delenv(VARIABLE)
    complain(StorageError, [VARIABLE], lambda: vczstore.append(store, source, impl="zarr"))


def test_where_no_key_can_be_written(tmp_path: Path) -> None:
    store = Way("format3", "zarr").make(tmp_path, OLD)
    (tmp_path / f"store.vcz{SUFFIX}").mkdir()
    with unchanged(store):
        complain(StorageError, [SUFFIX, VARIABLE], lambda: vczstore.remove(store, ["S0001"], impl="zarr"))


@pytest.mark.parametrize("links", [True, False])
def test_a_key_is_written_whole_or_not_at_all(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = KeyPlace(tmp_path / f"store.vcz{SUFFIX}")

    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, "not here")

    if not links:
        monkeypatch.setattr(os, "link", fail)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)  # as if the disk were full
        complain(StorageError, ["cannot be written", SUFFIX], lambda: place.create("k" * 64))
    assert list(tmp_path.iterdir()) == []
    place.create("k" * 64)
    place.create("k" * 64)
    complain(ConflictError, ["another writer"], lambda: place.create("j" * 64))
    assert [path.name for path in tmp_path.iterdir()] == [f"store.vcz{SUFFIX}"]
    assert place.path is not None
    assert (place.read(), stat.S_IMODE(place.path.stat().st_mode)) == ("k" * 64, 0o600)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["format3", "icechunk"])
def test_a_kill_while_the_key_is_written(kind: str, tmp_path: Path) -> None:
    """Leftovers are readable only by their owner, and deleted by an operation an hour later; other files are kept."""
    store = Way(kind, "zarr").make(tmp_path, OLD)
    other = tmp_path / f"store.vcz{SUFFIX}.backup"
    other.touch()
    code = (
        "import os, pathlib, sys\n"
        "from vczstore.stores.withdrawal_key import KeyPlace\n"
        "os.link = lambda *_: os.kill(os.getpid(), 9)\n"
        "KeyPlace(pathlib.Path(sys.argv[1])).create('k' * 64)"
    )
    assert subprocess.run([sys.executable, "-c", code, f"{store}{SUFFIX}"], check=False).returncode == -9
    (leftover,) = {*tmp_path.glob(f"store.vcz{SUFFIX}.*")} - {other}
    assert stat.S_IMODE(leftover.stat().st_mode) == 0o600
    stuck = tmp_path / f"store.vcz{SUFFIX}.{'0' * 16}"
    stuck.mkdir()  # cannot be unlinked, like files of other users in a folder with the sticky bit
    os.utime(stuck, (0, 0))
    vczstore.remove(store, ["S0001"], impl="zarr")
    assert leftover.exists()  # its writer may be active
    os.utime(leftover, (0, 0))
    vczstore.remove(store, ["S0002"], impl="zarr")
    assert {*tmp_path.glob("store.vcz*")} == {store, other, stuck, store.with_name(f"store.vcz{SUFFIX}")}


def test_the_temporary_file_of_a_key_is_deleted_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is written again; if it is deleted every time, no key is created."""
    path, link, left = tmp_path / f"store.vcz{SUFFIX}", os.link, 2

    def deleted(source: Path, target: Path) -> None:
        nonlocal left
        if left:
            left -= 1
            source.unlink()
        link(source, target)

    monkeypatch.setattr(os, "link", deleted)
    KeyPlace(path).create("k" * 64)
    assert (path.read_text(), left) == ("k" * 64 + "\n", 0)
    path.unlink()
    left = 100
    complain(StorageError, ["cannot be written", SUFFIX], lambda: KeyPlace(path).create("k" * 64))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_key_file_is_refused(tmp_path: Path) -> None:
    store = Way("format3", "zarr").make(tmp_path, OLD)
    (tmp_path / f"store.vcz{SUFFIX}").touch()
    with unchanged(store):
        words = [SUFFIX, "0 characters", "delete it", VARIABLE]
        complain(StorageError, words, lambda: vczstore.remove(store, ["S0001"], impl="zarr"))


def test_a_store_without_samples_has_none_to_remove(tmp_path: Path) -> None:
    store = tmp_path / "new.vcz"
    vczstore.create(store, batch(tmp_path))
    job = tmp_path / "job.yaml"
    job.write_text(f"store: {store}\nsteps:\n  - remove: {{samples: S0001, missing-ok: true}}\n")
    with unchanged(store):
        complain(SampleError, ["no sample S0001"], lambda: vczstore.remove(store, ["S0001"]))
        assert run_job(job).status == "nothing to do"


def test_the_key_of_a_store_in_memory_is_reported(tmp_path: Path) -> None:
    place = Way("format3", "zarr").make(tmp_path, OLD)
    store = cohort.in_memory(place)
    assert isinstance(store, MemoryStore)
    result = vczstore.remove(store, ["S0001"], impl="zarr")
    assert VARIABLE in result.notes["after"]
    source = batch(tmp_path)
    complain(SampleError, ["S0001"], lambda: vczstore.append(store, source, impl="zarr"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["obstore", "icechunk"])
def test_in_an_object_store(backend: str, s3_server: s3.S3Server, tmp_path: Path) -> None:
    import obstore
    from obstore.store import S3Store

    url = s3_server.url(f"returning-{uuid4().hex}")
    options: dict[str, Any] = {"impl": "zarr", "storage_options": s3_server.options}
    plain = Way("format3", "zarr").make(tmp_path, OLD)
    place = f"{url}/cohorts/store"
    if backend == "icechunk":
        vczstore.copy_store_to_icechunk(plain, place, **options)
    else:
        vczstore.compact(plain, place, **options)
    vczstore.remove(place, ["S0001"], **options)
    client = S3Store.from_url(url, **s3_server.options, client_options={"allow_http": True})
    assert len(bytes(obstore.get(client, f"cohorts/store{SUFFIX}").bytes())) == 65
    source = batch(tmp_path)
    complain(SampleError, ["S0001"], lambda: vczstore.append(place, source, **options))


@pytest.mark.slow
def test_a_removed_sample_is_detected_in_a_large_batch(tmp_path: Path) -> None:
    _, store = removed_from("format3", tmp_path)
    opened = open_store(store)
    withdrawn = Withdrawn.of(opened, opened.open())
    samples = [f"P{i:07}" for i in range(100_000)]
    assert withdrawn.among([*samples, "S0004"]) == ["S0004"]
