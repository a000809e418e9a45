"""Stores and sources in object storage: every operation, against servers that the tests start."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import obstore
import pytest
from click.testing import CliRunner

import vczstore
from tests.support import azure, cohort
from tests.support.clouds import BATCH, OLD, Cloud, make_arrays
from vczstore.cli.main import main
from vczstore.errors import (
    JobFileError,
    MissingDependencyError,
    NotAStoreError,
    OptionError,
    StorageError,
    VczstoreError,
)
from vczstore.jobs.run import plan_job, run_job
from vczstore.stores import object_store as objects
from vczstore.stores.locations import parse
from vczstore.stores.object_store import Remote
from vczstore.stores.resolve import open_store

CLOUDS = ("s3", "azure")


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> Cloud:
    return request.getfixturevalue(f"{request.param}_cloud")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cloud", "kind", "impl"),
    [
        ("s3", "format2", "zarr"),
        ("azure", "format3", "cubed"),
        ("azure", "icechunk", "cubed"),  # for Icechunk in S3, see tests/system/test_faults.py
    ],
    indirect=["cloud"],
)
def test_every_operation(cloud: Cloud, kind: str, impl: str) -> None:
    store, batch = cloud.make(kind), cloud.put("batch.vcz", BATCH)
    options: dict[str, Any] = {"storage_options": cloud.options, "impl": impl}
    assert vczstore.append(store, batch, **options).counts == {"sources": 1, "samples added": 5}
    expected = cohort.expected_append(OLD, BATCH)
    cohort.assert_same(cloud.read("cohort/store.vcz", kind), expected)
    changed = make_arrays(5, 4, seed=2)
    vczstore.update(store, cloud.put("changed.vcz", changed), **options)
    expected = cohort.expected_update(expected, changed)
    cohort.assert_same(cloud.read("cohort/store.vcz", kind), expected)
    vczstore.remove(store, "S0008", **options)
    expected = cohort.expected_remove(expected, ["S0008"])
    cohort.assert_same(cloud.read("cohort/store.vcz", kind), expected)
    info = vczstore.info(store, storage_options=cloud.options)
    assert (info.samples, info.removed_samples) == (11, 1)
    assert info.backend == ("icechunk" if kind == "icechunk" else "obstore")
    output = None if kind == "icechunk" else f"{cloud.url}/output.vcz"
    if output is not None:
        objects = cloud.listing()
        with pytest.raises(OptionError, match=r"^compact: .* no folder on this machine.*--output"):
            vczstore.compact(store, **options)
        assert cloud.listing() == objects
    vczstore.compact(store, output, **options)
    expected = cohort.select(expected, [sample for sample in expected["sample_id"] if sample])
    cohort.assert_same(cloud.read("cohort/store.vcz" if output is None else "output.vcz", kind), expected)
    assert vczstore.verify(output or store, storage_options=cloud.options).ok


def run_cli(*args: str, cloud: Cloud) -> str:
    options = [f"--storage-option={key}={value}" for key, value in cloud.options.items()]
    done = CliRunner().invoke(main, [*args, *options])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("cloud", ["s3"], indirect=True)
def test_the_command_line(cloud: Cloud) -> None:
    store, batch = cloud.make("icechunk"), cloud.put("batch.vcz", BATCH)
    run_cli("append", store, batch, cloud=cloud)
    run_cli("tag", store, "release-1", cloud=cloud)
    run_cli("remove", store, "S0001", cloud=cloud)
    assert json.loads(run_cli("info", store, "--at", "release-1", "--json", cloud=cloud))["samples"] == 12
    assert json.loads(run_cli("tag", store, "--json", cloud=cloud)).keys() == {"release-1"}
    operations = [entry["operation"] for entry in json.loads(run_cli("log", store, "--json", cloud=cloud))]
    assert operations == ["remove", "append", "copy-store-to-icechunk", None]
    run_cli("tag", store, "release-1", "--delete", cloud=cloud)
    assert run_cli("tag", store, cloud=cloud) == ""


@pytest.mark.parametrize(("cloud", "kind"), [("azure", "format3"), ("s3", "icechunk")], indirect=["cloud"])
@pytest.mark.slow
def test_a_job(cloud: Cloud, kind: str) -> None:
    store, batch = cloud.make(kind), cloud.put("batch.vcz", BATCH)
    tag = ", {tag: release-1}" if kind == "icechunk" else ""
    file = cloud.tmp / "job.yaml"
    file.write_text(
        f"store: {{url: '{store}', storage-options: {json.dumps(cloud.options)}}}\n"
        f"steps: [{{append: '{batch}'}}, {{remove: S0001}}{tag}]\n"
    )
    assert run_job(file).status == "done"
    expected = cohort.expected_remove(cohort.expected_append(OLD, BATCH), ["S0001"])
    cohort.assert_same(cloud.read("cohort/store.vcz", kind), expected)
    assert run_job(file).status == "nothing to do"
    siblings = obstore.list_with_delimiter(cloud.objects("cohort"))["objects"]
    assert [entry["path"] for entry in siblings] == ["store.vcz.withdrawal-key"]
    locks = [e["path"] for e in obstore.list(cloud.objects("cohort/store.vcz")).collect() if "lock" in e["path"]]
    assert locks == [".vczstore-job.lock" if kind == "icechunk" else "sample_id/.vczstore-job.lock"]


@pytest.mark.slow
@pytest.mark.parametrize("cloud", ["azure"], indirect=True)
def test_a_job_with_an_inbox(cloud: Cloud) -> None:
    """Matches of a glob are appended in sorted order; on the next run, only new ones."""
    store, url = cloud.make("icechunk"), cloud.url
    batches = [make_arrays(7 + 2 * i, 2, seed=i) for i in range(3)]
    for i in (1, 0):
        cloud.put(f"inbox/b{i}.vcz", batches[i])
    cloud.put("inbox/.hidden.vcz", batches[2])
    cloud.put("inbox/deeper/b2.vcz", batches[2])
    obstore.put(cloud.objects("inbox"), "notes.vcz", b"a file")
    file = cloud.tmp / "job.yaml"
    file.write_text(
        f"store: {{url: '{store}', storage-options: {json.dumps(cloud.options)}}}\n"
        f"steps: [{{append: ['{url}/inbox/b0.vcz', '{url}/inbox/*.vcz', '{url}/inbox/none?.vcz']}}]\n"
    )
    with pytest.raises(JobFileError, match=r"inbx/\*.vcz: nothing at all lies under .*/inbx/; correct the URL"):
        plan_job(file, [f"steps.0.append={url}/inbx/*.vcz"])
    misspelt = {"source": f"{url}/inbx/*.vcz", "if-none": "ok"}
    assert plan_job(file, [f"steps.0.append={json.dumps(misspelt)}"]).found[0].found == ()
    assert plan_job(file).steps[0].sources == (f"{url}/inbox/b0.vcz", f"{url}/inbox/b1.vcz")
    run_job(file)
    cohort.assert_same(cloud.read("cohort/store.vcz", "icechunk"), cohort.expected_append(OLD, *batches[:2]))
    cloud.put("inbox/b2.vcz", batches[2])
    (step,) = plan_job(file).steps
    assert (len(step.sources), step.already_applied) == (3, 2)
    run_job(file)
    cohort.assert_same(cloud.read("cohort/store.vcz", "icechunk"), cohort.expected_append(OLD, *batches))


@pytest.mark.parametrize("kind", ["format3", "icechunk"])
@pytest.mark.slow
def test_tasks_carry_no_credentials(cloud: Cloud, kind: str) -> None:
    """Neither pickled tasks and stores, nor the repr of plans and stores, contain secrets."""
    store, batch = cloud.make(kind), cloud.put("batch.vcz", BATCH)
    plan = vczstore.plan("append", store, batch, storage_options=cloud.options)
    transaction = plan.store.transaction(plan.base)
    with transaction.step(plan.preparations, plan.edits) as written:
        compiled = plan.cubed_writes(written)
        assert compiled is not None
        sent = cloudpickle.dumps([node["pipeline"] for _, node in compiled.dag.nodes(data=True) if "pipeline" in node])
        sent += cloudpickle.dumps(written) + cloudpickle.dumps(plan.after.store)
    shown = repr(plan) + repr(plan.store) + repr(Remote.of(parse(store), cloud.options))
    assert cloud.url.rpartition("/")[2].encode() in sent  # it does name the bucket
    for secret in cloud.secrets:
        assert secret.encode() not in sent
        assert secret not in shown


@pytest.mark.slow
@pytest.mark.parametrize("cloud", ["azure"], indirect=True)
def test_worker_processes_find_credentials_themselves(cloud: Cloud) -> None:
    store, batch = cloud.make("icechunk"), cloud.put("batch.vcz", BATCH)
    vczstore.append(store, batch, storage_options=cloud.options, executor="processes", max_workers=2)
    cohort.assert_same(cloud.read("cohort/store.vcz", "icechunk"), cohort.expected_append(OLD, BATCH))


# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [None, "obstore", "icechunk", "fsspec"])
@pytest.mark.parametrize("name", ["access_key_id", "secret_access_key", "session_token", "account_key", "sas_token"])
def test_credentials_are_no_options(name: str, backend: str | None) -> None:
    with pytest.raises(OptionError, match="environment variables or by the instance's role") as caught:
        open_store("s3://bucket/a", backend_storage=backend, storage_options={name: "hunter2"})
    assert "hunter2" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:hunter2@bucket/a",
        "https://me.blob.core.windows.net/c/a?sv=1&sig=hunter2",
        "s3://bucket/AKIAIOSFODNN7EXAMPLE/hunter2",
    ],
)
def test_credentials_are_no_part_of_urls(url: str) -> None:
    with pytest.raises(OptionError, match="environment variables or by the instance's role") as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("kind", ["format3", "icechunk"])
@pytest.mark.slow
def test_requests_without_a_signature(s3_cloud: Cloud, kind: str) -> None:
    """Refused, since the bucket is private, and credentials in the environment are not used."""
    store = s3_cloud.make(kind)
    assert vczstore.info(store, storage_options={**s3_cloud.options, "anonymous": False}).samples == 7
    for spelling in ("anonymous", "skip_signature", "skip-signature"):
        with pytest.raises(StorageError):
            vczstore.info(store, storage_options={**s3_cloud.options, spelling: True})


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("s3://b/a", {"regoin": "x"}, ["'regoin'", "region, endpoint, anonymous, allow_http, requester_pays"]),
        ("gs://b/a", {"region": "x"}, ["'region'", "endpoint, anonymous, allow_http"]),
        ("az://c/a", {"region": "x"}, ["'region'", "account, endpoint, anonymous, allow_http"]),
        ("s3://b/a", {"anonymous": "yes"}, ["anonymous", "'yes'", "true or false"]),
        ("s3:///a", {}, ["names no bucket"]),
        ("az:///a", {}, ["names no container"]),
    ],
)
@pytest.mark.parametrize("backend", ["obstore", "icechunk"])
def test_options_that_do_not_exist(url: str, options: dict[str, Any], words: list[str], backend: str) -> None:
    with pytest.raises(OptionError) as caught:
        open_store(url, backend_storage=backend, storage_options=options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_an_account_is_needed_on_azure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    for backend in ("obstore", "icechunk"):
        with pytest.raises(OptionError, match=r"(?i)account"):
            open_store("az://container/a", backend_storage=backend)


@pytest.mark.parametrize("backend", [None, "obstore", "icechunk"])
@pytest.mark.parametrize("where", ["nothing.vcz", "../no-such-bucket/a.vcz"])
def test_nothing_is_there(s3_cloud: Cloud, backend: str | None, where: str) -> None:
    url = f"s3://{where.removeprefix('../')}" if where.startswith("..") else f"{s3_cloud.url}/{where}"
    with pytest.raises(VczstoreError) as caught:
        vczstore.info(url, backend_storage=backend, storage_options=s3_cloud.options)
    assert isinstance(caught.value, NotAStoreError) or "no-such-bucket" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_without_an_object_store(tmp_path: Path) -> None:
    cohort.write_vcz(tmp_path / "a.vcz", OLD)
    cohort.write_vcz(tmp_path / "b.vcz", BATCH)
    with pytest.raises(OptionError, match="a local store takes no storage options"):
        vczstore.append(tmp_path / "a.vcz", tmp_path / "b.vcz", storage_options={"region": "eu"})


# ---- between locations ----------------------------------------------------------------------


@pytest.mark.slow
def test_sources_elsewhere(s3_cloud: Cloud) -> None:
    """A local store with a source in a bucket, in another Zarr format, and vice versa."""
    local = s3_cloud.tmp / "local.vcz"
    cohort.write_vcz(local, OLD)
    batch = s3_cloud.put("batch.vcz", BATCH, zarr_format=2)
    vczstore.append(str(local), batch, storage_options=s3_cloud.options)
    cohort.assert_same(cohort.read_vcz(local), cohort.expected_append(OLD, BATCH))
    remote = f"{s3_cloud.url}/copy"
    vczstore.copy_store_to_icechunk(str(local), remote, storage_options=s3_cloud.options)
    cohort.assert_same(s3_cloud.read("copy", "icechunk"), cohort.expected_append(OLD, BATCH))
    more = make_arrays(12, 3, seed=3)
    cohort.write_vcz(s3_cloud.tmp / "more.vcz", more)
    vczstore.append(remote, s3_cloud.tmp / "more.vcz", storage_options=s3_cloud.options)
    cohort.assert_same(s3_cloud.read("copy", "icechunk"), cohort.expected_append(OLD, BATCH, more))


@pytest.mark.parametrize("backend", [None, "icechunk"])
@pytest.mark.slow
def test_create(s3_cloud: Cloud, backend: str | None) -> None:
    """A new store in a bucket from a source in the same bucket; an existing store is not overwritten."""
    source, options = s3_cloud.put("old.vcz", OLD, zarr_format=2), {"storage_options": s3_cloud.options}
    out = f"{s3_cloud.url}/new"
    vczstore.create(out, source, backend_storage=backend, **options)
    vczstore.append(out, source, **options)
    actual = s3_cloud.read("new", "icechunk" if backend else "format3")
    assert {name: actual[name].tolist() for name in ("sample_id", "variant_position", "call_genotype")} == {
        name: OLD[name].tolist() for name in ("sample_id", "variant_position", "call_genotype")
    }
    with pytest.raises(OptionError, match=r"create: .*choose another path"):
        vczstore.create(out, source, backend_storage=backend, **options)


@pytest.mark.slow
def test_format_2_in_a_bucket_becomes_a_local_repository(s3_cloud: Cloud) -> None:
    source = s3_cloud.put("format2.vcz", OLD, zarr_format=2)
    target = s3_cloud.tmp / "repository"
    result = vczstore.copy_store_to_icechunk(source, target, storage_options=s3_cloud.options)
    assert result.plan.decoded_chunks == 0
    cohort.assert_same(cohort.read_vcz(cohort.icechunk_store(target)), OLD)


@pytest.mark.slow
def test_from_s3_to_azure(s3_cloud: Cloud, azure_cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage options apply to the store's cloud; a source in another cloud is configured by the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_cloud.options["endpoint"])
    source, batch = s3_cloud.put("format2.vcz", OLD, zarr_format=2), s3_cloud.put("batch.vcz", BATCH)
    store = f"{azure_cloud.url}/store"
    vczstore.copy_store_to_icechunk(source, store, storage_options=azure_cloud.options)
    vczstore.append(store, batch, storage_options=azure_cloud.options)
    cohort.assert_same(azure_cloud.read("store", "icechunk"), cohort.expected_append(OLD, BATCH))


@pytest.mark.parametrize("kind", ["format3", "icechunk"])
@pytest.mark.slow
def test_an_https_url_of_azure(azure_cloud: Cloud, kind: str) -> None:
    azure_cloud.make(kind, "store")
    url = f"https://{azure.ACCOUNT}.blob.core.windows.net/{azure_cloud.url.removeprefix('az://')}/store"
    options = {"endpoint": azure_cloud.options["endpoint"]}
    assert vczstore.info(url, storage_options=options).samples == 7


def test_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    for url, extra in {"s3://b/a": "s3", "gs://b/a": "gcs", "az://c/a": "azure", "https://host/a": "obstore"}.items():
        with pytest.raises(MissingDependencyError, match=rf"pip install '.\[{extra}\]'"):
            open_store(url)


def test_missing_credentials_are_distinguished_from_missing_rights() -> None:
    """obstore requests those of the instance's role last, and reports no more than that this request failed."""
    error = "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 2.4s: HTTP 403 Forbidden"
    reason = objects.reason(OSError(error))
    assert reason.startswith("no credentials were found in the environment")
    assert "PutObject" not in reason
    assert "s3:PutObject" in objects.reason(OSError("Error performing PUT http://host/b/k in 1s: 403 Forbidden"))
