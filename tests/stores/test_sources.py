"""Sources on other servers, in sessions and zip files, at web addresses, on branches and in groups."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import icechunk
import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import vczstore
from tests.support import azure, cohort, faults, s3
from tests.support.clouds import BATCH, OLD, Cloud, make_arrays
from tests.support.small_stores import repository_of
from tests.system.survival import storage
from vczstore.cli.main import main
from vczstore.errors import NotAStoreError, OptionError, StorageError, VczstoreError
from vczstore.jobs.run import run_job

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


@pytest.mark.slow
def test_store_and_source_on_two_servers(s3_cloud: Cloud, elsewhere: Cloud) -> None:
    """The store's server has a different VCZ under the source's name, which is not used."""
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
    actual = s3_cloud.read("new", "format3")
    assert actual["variant_position"].tolist() == OLD["variant_position"].tolist()
    vczstore.normalise(store, source, f"{s3_cloud.url}/normalised", **options)
    assert s3_cloud.read("normalised", "format3")["sample_id"].tolist() == BATCH["sample_id"].tolist()


@pytest.mark.slow
def test_options_of_sources_in_commands_and_jobs(s3_cloud: Cloud, elsewhere: Cloud) -> None:
    local = s3_cloud.tmp / "local.vcz"
    cohort.write_vcz(local, OLD)
    source = elsewhere.put("inbox/batch.vcz", BATCH)
    flags = [f"--source-storage-option={name}={value}" for name, value in elsewhere.options.items()]
    done = CliRunner().invoke(main, ["append", str(local), source, "--dry-run", *flags])
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


# ---- sessions, zip files, web addresses -----------------------------------------------------


@pytest.mark.parametrize(
    ("which", "form", "executor"),
    [
        ("read-only", "session", "threads"),
        ("read-only", "store", "threads"),
        ("writable", "store", "threads"),
        ("changed", "session", "processes"),
        ("changed", "store", "threads"),
        ("fork", "session", "threads"),
    ],
)
@pytest.mark.slow
def test_a_session_is_a_source(tmp_path: Path, which: str, form: str, executor: str) -> None:
    """Uncommitted changes of the session are included."""
    cohort.write_vcz(tmp_path / "store.vcz", OLD)
    cohort.write_icechunk(tmp_path / "batch", BATCH)
    repo = repository_of(tmp_path / "batch")
    session = repo.readonly_session("main") if which == "read-only" else repo.writable_session("main")
    if which == "fork":
        session = session.fork()
    expected = {name: values.copy() for name, values in BATCH.items()}
    if which == "changed":
        zarr.open_array(session.store, path="sample_sex")[...] = 0
        expected["sample_sex"][:] = 0
    source = session if form == "session" else session.store
    vczstore.append(tmp_path / "store.vcz", source, executor=executor, max_workers=2)
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_append(OLD, expected))
    assert session.has_uncommitted_changes == (which == "changed")
    assert vczstore.info(source).samples == 5


def writes(store: Any, batch: Path) -> dict[str, Callable[[], object]]:
    """Every operation that writes to a store."""
    return {
        "append": lambda: vczstore.append(store, batch),
        "append harmonised": lambda: vczstore.append(store, batch, harmonise=True),
        "plan_append": lambda: vczstore.plan("append", store, batch),
        "update": lambda: vczstore.update(store, batch),
        "remove": lambda: vczstore.remove(store, "S0001"),
        "remove and purge": lambda: vczstore.remove(store, "S0001", purge=True),
        "recompute": lambda: vczstore.recompute(store),
        "compact": lambda: vczstore.compact(store),
        "purge": lambda: vczstore.purge(store),
        "gc": lambda: vczstore.gc(store),
        "repair": lambda: vczstore.repair(store),
        "tag": lambda: vczstore.tag(store, "v1"),
        "delete_tag": lambda: vczstore.delete_tag(store, "v1"),
    }


def test_a_session_is_not_written_to(tmp_path: Path) -> None:
    cohort.write_icechunk(tmp_path / "store", OLD)
    cohort.write_vcz(tmp_path / "batch.vcz", BATCH)
    before = cohort.digest(tmp_path / "store")
    for session in (
        repository_of(tmp_path / "store").writable_session("main"),
        cohort.icechunk_store(tmp_path / "store"),
    ):
        for name, write in writes(session, tmp_path / "batch.vcz").items():
            with pytest.raises(OptionError, match=r"hand in the session's repository, or its path"):
                print(name, write())
    assert cohort.digest(tmp_path / "store") == before


def zipped(folder: Path, arrays: dict[str, np.ndarray], **layout: Any) -> Path:
    file = folder.with_name(f"{folder.name}.zip")
    cohort.write_vcz(folder, arrays, **layout)
    shutil.make_archive(str(folder), "zip", folder)
    return file


@pytest.mark.parametrize(("zarr_format", "executor"), [(2, "threads"), (3, "processes")])
@pytest.mark.slow
def test_a_zip_file_is_a_source(tmp_path: Path, zarr_format: int, executor: str) -> None:
    cohort.write_vcz(tmp_path / "store.vcz", OLD)
    file = zipped(tmp_path / "batch.vcz", BATCH, zarr_format=zarr_format)
    assert file.name == "batch.vcz.zip"
    options = {"executor": executor, "max_workers": 2}
    vczstore.append(tmp_path / "store.vcz", file, **options)
    expected = cohort.expected_append(OLD, BATCH)
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), expected)
    del options["executor"]
    more = zipped(tmp_path / "more.vcz", make_arrays(12, 3))
    for source in (zarr.storage.ZipStore(more, mode="r"), more):  # the same file, as a store and by its path
        with (
            nullcontext() if source is not more else pytest.raises(VczstoreError, match=r"all 3 samples of .* already")
        ):
            vczstore.append(tmp_path / "store.vcz", source, **options)
    expected = cohort.expected_append(expected, make_arrays(12, 3))
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), expected)
    vczstore.copy_store_to_icechunk(file, tmp_path / "repository")
    cohort.assert_same(cohort.read_vcz(cohort.icechunk_store(tmp_path / "repository")), BATCH)


def test_a_group_and_a_store_of_obstore_are_stores_and_sources(tmp_path: Path) -> None:
    from obstore.store import LocalStore

    store, batch, more = tmp_path / "store", tmp_path / "batch", tmp_path / "more"
    for folder, arrays in ((store, OLD), (batch, BATCH), (more, make_arrays(12, 3))):
        cohort.write_vcz(folder, arrays)
    vczstore.append(zarr.open_group(store), zarr.open_group(batch, mode="r"))
    vczstore.append(LocalStore(store), LocalStore(more))
    whole = cohort.expected_append(OLD, BATCH, make_arrays(12, 3))
    cohort.assert_same(cohort.read_vcz(store), whole)
    before = cohort.digest(store)
    inner = zarr.open_group(zarr.open_group(tmp_path / "outer").create_group("inner").store, path="inner")
    for location, words in (
        (zarr.open_group(store, mode="r"), "read_only=True; open it without"),
        (inner, "a group at 'inner' of a Zarr store"),
        (zarr.open_group(store)["call_genotype"], "not Array"),
        (5, "not int"),
    ):
        with pytest.raises(OptionError, match=words):
            vczstore.remove(location, cohort.ids(0, 1))
    assert cohort.digest(store) == before


@pytest.mark.slow
def test_zip_files_in_an_inbox(tmp_path: Path) -> None:
    """Files that desktops leave are ignored; a batch is appended once, and refused if it has changed since."""
    cohort.write_vcz(tmp_path / "store.vcz", OLD)
    (tmp_path / "inbox").mkdir()
    file = zipped(tmp_path / "inbox" / "batch.vcz", BATCH)
    shutil.rmtree(tmp_path / "inbox" / "batch.vcz")
    for name in (".DS_Store", "Thumbs.db", "._batch.vcz.zip", "notes.txt"):
        (tmp_path / "inbox" / name).write_bytes(b"not a VCZ")
    job = tmp_path / "job.yaml"
    for pattern in ("inbox/*", "inbox/.*"):
        job.write_text(f"store: store.vcz\nsteps: [{{append: '{pattern}'}}]")
        assert run_job(job).status == ("done" if pattern == "inbox/*" else "nothing to do"), pattern
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_append(OLD, BATCH))
    file.unlink()
    shutil.rmtree(tmp_path / "inbox" / "batch.vcz", ignore_errors=True)
    zipped(tmp_path / "inbox" / "batch.vcz", {**BATCH, "sample_sex": BATCH["sample_sex"] * 0})
    shutil.rmtree(tmp_path / "inbox" / "batch.vcz")
    with pytest.raises(VczstoreError, match="from another source or an earlier state of this one"):
        run_job(job, ["steps.0.append=inbox/*"])


def test_a_ds_store_in_a_batch(tmp_path: Path) -> None:
    cohort.write_vcz(tmp_path / "store.vcz", OLD)
    cohort.write_vcz(tmp_path / "batch.vcz", BATCH)
    for folder in ("batch.vcz", "batch.vcz/call_GL", "batch.vcz/call_GL/c", "store.vcz"):
        (tmp_path / folder / ".DS_Store").write_bytes(b"x")
    vczstore.append(tmp_path / "store.vcz", tmp_path / "batch.vcz")
    (tmp_path / "store.vcz" / ".DS_Store").unlink()  # zarr-python warns about it
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_append(OLD, BATCH))


def test_files_that_are_no_stores(tmp_path: Path) -> None:
    cohort.write_vcz(tmp_path / "store.vcz", OLD)
    file = zipped(tmp_path / "batch.vcz", BATCH)
    before = file.read_bytes()
    for write in writes(file, tmp_path / "batch.vcz").values():
        with pytest.raises(OptionError, match="unpack it, and name the folder"):
            write()
    assert file.read_bytes() == before
    (tmp_path / "a.txt").write_text("##fileformat=VCFv4.3")
    with pytest.raises(NotAStoreError, match=r"a\.txt: there is no Zarr group here, but a file"):
        vczstore.append(tmp_path / "store.vcz", tmp_path / "a.txt")
    with pytest.raises(OptionError, match="read_only=True"):
        vczstore.append(zarr.storage.LocalStore(tmp_path / "store.vcz", read_only=True), tmp_path / "batch.vcz")
    with pytest.raises(NotAStoreError, match="download it"):
        vczstore.info("s3://bucket/batch.vcz.zip")


class Web:
    """A web server for a folder, with or without directory listings."""

    def __init__(self, folder: Path, *, listing: bool) -> None:
        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(folder))

            def list_directory(self, path: Any) -> Any:
                return super().list_directory(path) if listing else self.send_error(403)

            def do_GET(self) -> None:
                path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
                if wanted is None or not path.is_file():
                    return super().do_GET()
                data, (first, _, last) = path.read_bytes(), wanted.removeprefix("bytes=").partition("-")
                part = data[int(first) : int(last) + 1 if last else None]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                self.wfile.write(part)
                return None

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 128  # with the usual 5, clients retry further connections only after a second

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> str:
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self.url

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.mark.parametrize(
    ("kind", "listing", "consolidated"),
    [("format2", True, False), ("format2", False, True), ("format3", True, True), ("format3", False, True)],
)
@pytest.mark.slow
def test_a_web_address_is_a_source(tmp_path: Path, kind: str, listing: bool, consolidated: bool) -> None:
    web = tmp_path / "web" / "in box"
    web.mkdir(parents=True)
    layout = {"zarr_format": 2 if kind == "format2" else 3, "consolidated": consolidated, "skip_empty": True}
    cohort.write_vcz(web / "batch#1.vcz", BATCH, **layout)
    cohort.write_vcz(tmp_path / "store.vcz", OLD)
    with Web(web.parent, listing=listing) as url:
        job, source = tmp_path / "job.yaml", f"{url}/in%20box/batch%231.vcz/"
        job.write_text(f"store: store.vcz\nsteps: [{{append: '{source}'}}]")
        assert run_job(job).status == "done"
        assert run_job(job).status == "nothing to do"
        cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_append(OLD, BATCH))
        executor = "processes" if listing and consolidated else "threads"
        vczstore.copy_store_to_icechunk(source, tmp_path / "repository", executor=executor, max_workers=2)
        cohort.assert_same(cohort.read_vcz(cohort.icechunk_store(tmp_path / "repository")), BATCH)
        for write in writes(source, tmp_path / "store.vcz").values():
            with pytest.raises(OptionError, match="is a web address, which is only read"):
                write()
        os.utime(web / "batch#1.vcz" / "sample_sex" / ("0" if kind == "format2" else "c/0"), (1, 1))
        with pytest.raises(VczstoreError, match="from another source or an earlier state of this one"):
            run_job(job)


@pytest.mark.slow
def test_a_repository_at_a_web_address(tmp_path: Path) -> None:
    cohort.write_icechunk(tmp_path / "web" / "batch", BATCH)
    cohort.write_vcz(tmp_path / "store.vcz", OLD)
    with Web(tmp_path / "web", listing=False) as url:
        vczstore.append(tmp_path / "store.vcz", f"{url}/batch")
        with pytest.raises(NotAStoreError, match="/nothing: "):
            vczstore.info(f"{url}/nothing")
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_append(OLD, BATCH))


def test_a_server_that_lists_nothing(tmp_path: Path) -> None:
    cohort.write_vcz(tmp_path / "web" / "batch.vcz", BATCH)
    with Web(tmp_path / "web", listing=False) as url, pytest.raises(VczstoreError, match=r"zarr\.consolidate_metadata"):
        vczstore.info(f"{url}/batch.vcz")


# ---- branches and groups --------------------------------------------------------------------


def test_a_vcz_on_another_branch(tmp_path: Path) -> None:
    cohort.write_vcz(tmp_path / "store.vcz", OLD)
    repo = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "batch")))
    repo.create_branch("dev", repo.lookup_branch("main"))
    session = repo.writable_session("dev")
    cohort.write_vcz(session.store, BATCH)
    session.commit("made by the test")
    before = cohort.digest(tmp_path / "store.vcz")
    with pytest.raises(NotAStoreError, match=r"is the branch main, .* is dev: .*readonly_session\('dev'\)"):
        vczstore.append(tmp_path / "store.vcz", tmp_path / "batch")
    assert cohort.digest(tmp_path / "store.vcz") == before
    assert vczstore.info(tmp_path / "batch", at="dev").samples == 5
    vczstore.append(tmp_path / "store.vcz", repo.readonly_session("dev"))
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_append(OLD, BATCH))


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("is_group", [True, False])
def test_a_vcz_in_a_group(tmp_path: Path, zarr_format: int, is_group: bool) -> None:
    """The parent is a Zarr group, or a plain folder."""
    cohort.write_vcz(tmp_path / "store.vcz", OLD)
    cohort.write_vcz(tmp_path / "all" / "chr1", BATCH, zarr_format=zarr_format)
    if is_group:
        zarr.create_group(tmp_path / "all", zarr_format=zarr_format)
    with pytest.raises(NotAStoreError, match=r"a VCZ lies in its group chr1: name .*/all/chr1$") as caught:
        vczstore.append(tmp_path / "store.vcz", tmp_path / "all")
    vczstore.append(tmp_path / "store.vcz", str(caught.value).rpartition("name ")[2])
    cohort.assert_same(cohort.read_vcz(tmp_path / "store.vcz"), cohort.expected_append(OLD, BATCH))


def test_a_vcz_in_a_group_of_a_repository_or_zip_file(tmp_path: Path) -> None:
    cohort.write_vcz(tmp_path / "store.vcz", OLD)
    repo = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "repository")))
    session = repo.writable_session("main")
    root = zarr.create_group(session.store)
    root.create_group("chr1").create_array("sample_id", data=np.array(["a"]), dimension_names=("samples",))
    session.commit("made by the test")
    with pytest.raises(NotAStoreError, match=r"group chr1: name .*#chr1"):
        vczstore.append(tmp_path / "store.vcz", tmp_path / "repository")
    cohort.write_vcz(tmp_path / "packed" / "batch.vcz", BATCH)
    file = shutil.make_archive(str(tmp_path / "batch.vcz"), "zip", tmp_path / "packed")
    with pytest.raises(NotAStoreError, match=r"zip what is in batch\.vcz, without the folder itself"):
        vczstore.append(tmp_path / "store.vcz", file)


# ---- messages -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (["A" * 300 + "C", "A"], ["A" * 300 + "G", "A"], "variant_allele 0 of the source is 'G' after 300 of its 301"),
        (["A", "T"], ["A", "T "], "variant_allele 1 of the source is 'T ', of the store 'T'"),
        (["A", "C" * 70], ["A", "C" * 71], "is 'C' after 70 of its 71 characters, of the store '' after 70 of its 70"),
        (["A", "", "T"], ["A", "T", ""], "variant_allele 1 of the source is 'T', of the store ''"),
        (["A", "T"], ["a", "T"], "is chr1:10 a/T, in the store it is chr1:10 A/T; both"),
    ],
)
def test_a_message_shows_what_differs(tmp_path: Path, ours: list[str], theirs: list[str], words: str) -> None:
    for name, arrays, alleles in (("store.vcz", OLD, ours), ("batch.vcz", BATCH, theirs)):
        allele = np.array([alleles] * 10, dtype=object)
        cohort.write_vcz(tmp_path / name, {**arrays, "variant_allele": allele, "variant_contig": np.zeros(10, "i1")})
    before = cohort.digest(tmp_path / "store.vcz")
    with pytest.raises(VczstoreError) as caught:
        vczstore.append(tmp_path / "store.vcz", tmp_path / "batch.vcz")
    assert words in str(caught.value), str(caught.value)
    assert "batch.vcz is chr1:10 " in str(caught.value)
    assert cohort.digest(tmp_path / "store.vcz") == before


@pytest.mark.slow
def test_a_source_that_cannot_be_read_is_named(s3_cloud: Cloud) -> None:
    cohort.write_vcz(s3_cloud.tmp / "store.vcz", OLD)
    with storage.short_timeouts(), faults.before(s3_cloud.options["endpoint"]) as proxy:
        options = {"storage_options": {**s3_cloud.options, "endpoint": proxy.endpoint}}
        for kind in ("format3", "icechunk"):
            batch = s3_cloud.make(kind, f"batch-{kind}")
            refused = "/sample_id/c/" if kind == "format3" else "/manifests/"
            proxy.follow(lambda _n, _method, path, refused=refused: 403 if refused in path else None)
            with pytest.raises(StorageError, match=f"^(append: )?{batch}: .*"):
                vczstore.append(s3_cloud.tmp / "store.vcz", batch, **options)


@pytest.mark.parametrize("kind", ["format2", "format3", "icechunk"])
@pytest.mark.slow
def test_s3_without_the_right_to_list(s3_cloud: Cloud, kind: str) -> None:
    """S3 then answers 403 for objects that do not exist, and lists nothing."""
    store = s3_cloud.make(kind)
    existing = {entry[0] for entry in s3_cloud.listing()}
    bucket = s3_cloud.url.removeprefix("s3://")

    def forbid(_number: int, method: str, path: str) -> int | None:
        key = unquote(path.partition("?")[0]).removeprefix(f"/{bucket}").strip("/")
        return 403 if method in ("GET", "HEAD") and key not in existing else None

    with faults.before(s3_cloud.options["endpoint"]) as proxy:
        proxy.follow(forbid)
        options = {"storage_options": {**s3_cloud.options, "endpoint": proxy.endpoint}}
        before = s3_cloud.listing()
        for call in (
            lambda: vczstore.verify_removal(store, "S0001", **options),
            lambda: vczstore.info(f"{s3_cloud.url}/nothing", **options),
            lambda: vczstore.append(store, f"{s3_cloud.url}/nothing", **options),
        ):
            with pytest.raises(
                StorageError, match=r"access denied; on S3 this takes s3:GetObject, and s3:ListBucket"
            ) as e:
                call()
            assert "\n" not in str(e.value)
        assert s3_cloud.listing() == before


# ---- Azure ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["format3", "icechunk"])
@pytest.mark.slow
def test_all_spellings_of_azure(azure_cloud: Cloud, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    azure_cloud.make(kind, "a b/store")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    container, account = azure_cloud.url.removeprefix("az://"), azure.ACCOUNT
    bare = [f"{scheme}://{container}/a b/store" for scheme in ("az", "azure", "abfs", "abfss")]
    full = [f"abfs{s}://{container}@{account}.dfs.core.windows.net/a b/store" for s in ("", "s")]
    full += [f"https://{account}.{service}.core.windows.net/{container}/a%20b/store" for service in ("blob", "dfs")]
    endpoint = {"endpoint": azure_cloud.options["endpoint"]}
    for url in bare + full:
        assert vczstore.info(url, storage_options={**endpoint, "account": account}).samples == 7, url
    for url in full:
        assert vczstore.info(url, storage_options=endpoint).samples == 7, url
        with pytest.raises(OptionError, match="is of the account devstoreaccount1, not other"):
            vczstore.info(url, storage_options={**endpoint, "account": "other"})
    vczstore.remove(full[0], "S0001", storage_options=endpoint)
    cohort.assert_same(azure_cloud.read("a b/store", kind), cohort.expected_remove(OLD, ["S0001"]))
