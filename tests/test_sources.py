"""Where sources may lie, and how they are reached."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import vczstore
from tests import azure, cohort, s3
from tests.test_objects import BATCH, OLD, Cloud, azure_cloud, make_arrays, s3_cloud
from vczstore.cli import main
from vczstore.errors import OptionError
from vczstore.job import run_job

__all__ = ["azure_cloud", "s3_cloud"]  # fixtures


# ---- two servers ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_server() -> Iterator[s3.S3Server]:
    with s3.serve() as server:
        yield server


@pytest.fixture
def elsewhere(other_server: s3.S3Server, s3_cloud: Cloud) -> Cloud:
    """A bucket of the same name at another server."""
    from obstore.store import S3Store

    bucket = s3_cloud.url.removeprefix("s3://")
    other_server.url(bucket)

    def objects(prefix: str) -> S3Store:
        options = {"endpoint": other_server.endpoint, "region": "us-east-1"}
        return S3Store(bucket, prefix=prefix, client_options={"allow_http": True}, **options)

    return Cloud(s3_cloud.url, other_server.options, objects, s3_cloud.storage, (), s3_cloud.tmp)


def test_store_and_source_on_two_servers(s3_cloud: Cloud, elsewhere: Cloud) -> None:
    """What lies at the store's server under the source's name is another VCZ, and is not taken for it."""
    store, source = s3_cloud.make("format3", "store"), elsewhere.put("batch", BATCH)
    s3_cloud.put("batch", make_arrays(50, 3))
    options = {"storage_options": s3_cloud.options, "source_storage_options": elsewhere.options}
    vczstore.append(store, source, **options)
    expected = cohort.expected_append(OLD, BATCH)
    cohort.assert_same(s3_cloud.read("store", "format3"), expected)
    again = elsewhere.put("again", {**BATCH, "sample_sex": BATCH["sample_sex"] * 0})
    vczstore.update(store, again, **options)
    expected["sample_sex"][-5:] = 0
    cohort.assert_same(s3_cloud.read("store", "format3"), expected)
    vczstore.copy_store_to_icechunk(elsewhere.put("old", OLD), f"{s3_cloud.url}/copy", **options)
    cohort.assert_same(s3_cloud.read("copy", "icechunk"), OLD)
    vczstore.create(f"{s3_cloud.url}/new", source, **options)
    found = s3_cloud.read("new", "format3")
    assert found["variant_position"].tolist() == OLD["variant_position"].tolist()
    vczstore.normalise(store, source, f"{s3_cloud.url}/normalised", **options)
    assert s3_cloud.read("normalised", "format3")["sample_id"].tolist() == BATCH["sample_id"].tolist()


def test_options_of_sources_in_commands_and_jobs(s3_cloud: Cloud, elsewhere: Cloud) -> None:
    local = s3_cloud.tmp / "local.vcz"
    cohort.write_vcz(local, OLD)
    source = elsewhere.put("inbox/batch.vcz", BATCH)
    said = [f"--source-storage-option={name}={value}" for name, value in elsewhere.options.items()]
    done = CliRunner().invoke(main, ["append", str(local), source, "--dry-run", *said])
    assert done.exit_code == 0, done.output
    store, file = s3_cloud.make("format3", "store"), s3_cloud.tmp / "job.yaml"
    file.write_text(
        f"store: {{url: '{store}', storage-options: {json.dumps(s3_cloud.options)}}}\n"
        f"source-storage-options: {json.dumps(elsewhere.options)}\n"
        f"steps: [{{append: '{s3_cloud.url}/inbox/*.vcz'}}]\n"
    )
    assert run_job(file).status == "done"
    cohort.assert_same(s3_cloud.read("store", "format3"), cohort.expected_append(OLD, BATCH))


def test_options_of_sources_that_need_none(tmp_path: Path) -> None:
    cohort.write_vcz(tmp_path / "a.vcz", OLD)
    cohort.write_vcz(tmp_path / "b.vcz", BATCH)
    before = cohort.digest(tmp_path / "a.vcz")
    with pytest.raises(OptionError, match=r"b\.vcz: a local source takes no storage options"):
        vczstore.append(tmp_path / "a.vcz", tmp_path / "b.vcz", source_storage_options={"region": "eu"})
    with pytest.raises(OptionError, match="environment variables or by the instance's role") as caught:
        vczstore.append(tmp_path / "a.vcz", "s3://bucket/b", source_storage_options={"secret_access_key": "hunter2"})
    assert "hunter2" not in str(caught.value)
    assert cohort.digest(tmp_path / "a.vcz") == before


# ---- Azure ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["format3", "icechunk"])
def test_all_spellings_of_azure(azure_cloud: Cloud, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    azure_cloud.make(kind, "a b/store")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    container, account = azure_cloud.url.removeprefix("az://"), azure.ACCOUNT
    bare = [f"{scheme}://{container}/a b/store" for scheme in ("az", "azure", "abfs", "abfss")]
    full = [f"abfs{s}://{container}@{account}.dfs.core.windows.net/a b/store" for s in ("", "s")]
    full += [f"https://{account}.{of}.core.windows.net/{container}/a%20b/store" for of in ("blob", "dfs")]
    endpoint = {"endpoint": azure_cloud.options["endpoint"]}
    for url in bare + full:
        assert vczstore.info(url, storage_options={**endpoint, "account": account}).samples == 7, url
    for url in full:
        assert vczstore.info(url, storage_options=endpoint).samples == 7, url
        with pytest.raises(OptionError, match="is of the account devstoreaccount1, not other"):
            vczstore.info(url, storage_options={**endpoint, "account": "other"})
    vczstore.remove(full[0], "S0001", storage_options=endpoint)
    cohort.assert_same(azure_cloud.read("a b/store", kind), cohort.expected_remove(OLD, ["S0001"]))
