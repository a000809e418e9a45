"""The parser of paths and URLs: the location each one names, and that similar ones are never confused."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import numpy as np
import obstore
import pytest
import zarr
from hypothesis import example, given
from hypothesis import strategies as st

import vczstore
from tests.support import cohort, s3
from tests.support.clouds import BATCH, OLD, Cloud
from vczstore.errors import BusyError, IncompatibleError, NotAStoreError, OptionError
from vczstore.jobs.run import run_job
from vczstore.stores.locations import Address, is_url, literal, local_path, parse
from vczstore.stores.resolve import open_store

PARTS = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/"), min_size=1, max_size=12).filter(
    lambda part: part not in (".", "..")
)
KEYS = st.lists(PARTS, max_size=4).map("/".join)
BUCKETS = st.from_regex(r"[a-z0-9][a-z0-9.-]{1,20}[a-z0-9]", fullmatch=True)
ACCOUNTS = st.none() | st.from_regex(r"[a-z0-9]{3,10}", fullmatch=True)


def is_safe(location: Address) -> bool:
    """Whether the URL contains nothing that looks like a credential, which is always refused."""
    try:
        parse(location.url)
    except OptionError as error:
        return "credentials" not in str(error)
    return True


@given(kind=st.sampled_from(["s3", "gs", "az"]), bucket=BUCKETS, key=KEYS, account=ACCOUNTS)
@example(kind="s3", bucket="bucket", key="cohort#2", account=None)
@example(kind="az", bucket="container", key="a%20b?c #d/é%2", account="me")
@pytest.mark.slow
def test_keys_round_trip(kind: str, bucket: str, key: str, account: str | None) -> None:
    location = Address(kind, bucket, key, account if kind == "az" else None)
    if not is_safe(location):
        return
    assert parse(location.url) == location
    assert is_url(location.url)
    assert location.path is None
    if location.account is None:  # nothing is percent-encoded
        assert location.url == f"{kind}://{bucket}" + f"/{key}" * bool(key)


@given(kind=st.sampled_from(["s3", "gs", "az"]), first=KEYS, second=KEYS, account=ACCOUNTS)
@pytest.mark.slow
def test_different_keys_are_different_places(kind: str, first: str, second: str, account: str | None) -> None:
    address, other = (Address(kind, "bucket", key, account if kind == "az" else None) for key in (first, second))
    assert (address.url == other.url) == (first == second)


@given(parts=st.lists(PARTS, min_size=1, max_size=4), absolute=st.booleans())
@example(parts=["a%20b", "c#d?e", "f::g"], absolute=True)
@example(parts=["s3:", "", "bucket"], absolute=False)
@pytest.mark.slow
def test_paths_round_trip(parts: list[str], absolute: bool) -> None:
    text = "/" * absolute + "/".join(parts)
    if not absolute and (is_url(text) or text.split("/")[0].endswith(":")):
        return
    assert local_path(text) == Path(text)
    assert parse(parse(text).url) == parse(text)
    if absolute and not text.startswith("//"):
        assert local_path(Path(text).as_uri()) == Path(text)


def test_file_urls_are_decoded() -> None:
    assert local_path("file:///data/a%20b%23c.vcz") == Path("/data/a b#c.vcz")
    assert local_path("FILE://localhost/data/a b#c?d") == Path("/data/a b#c?d")
    assert local_path("file:///100%/%zz") == Path("/100%/%zz")
    assert local_path("file:///%FF") == Path(os.fsdecode(b"/\xff"))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("azure://c/a", Address("az", "c", "a")),
        ("abfs://c/a#b", Address("az", "c", "a#b")),
        ("abfss://c@me.dfs.core.windows.net/a b", Address("az", "c", "a b", "me")),
        ("https://me.blob.core.windows.net/c/a%20b%2Fc", Address("az", "c", "a b/c", "me")),
        ("https://me.dfs.core.windows.net/c", Address("az", "c", "", "me")),
        ("s3a://b/a", Address("s3", "b", "a")),
        ("gcs://b/a/", Address("gs", "b", "a")),
        ("S3://Bucket/Key", Address("s3", "Bucket", "Key")),
        ("http://host:80/a%20b/", Address("http", "http://host:80", "a%20b")),
    ],
)
def test_spellings_of_one_place(url: str, expected: Address) -> None:
    assert parse(url) == expected
    assert parse(expected.url) == expected


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("s3://b/a//c", "keys with //"),
        ("s3://bucket//a", "keys with //"),
        ("s3://b/a/../c", "/../"),
        ("s3://b/./c", "/./"),
        ("s3://b/a\nb", "control characters"),
        ("s3://b/a\udcff", "UTF-8"),
        ("s3://bucket#2/a", "not a bucket name"),
        ("s3://localhost:9000/b/a", "endpoint=URL"),
        ("abfss://c@example.org/a", "ACCOUNT.dfs.core.windows.net"),
        ("file://host/a", "three slashes"),
        ("file://a.vcz", "three slashes"),
        ("s3:/b/a", "two slashes"),
        ("https://host/a?versionId=1", "'?'"),
        ("https://me.blob.core.windows.net/c/a#b", "%23"),
        ("", "not a path"),
        ("a\0b", "not a path"),
    ],
)
def test_invalid_locations_are_refused(place: str, words: str) -> None:
    with pytest.raises(OptionError) as caught:
        open_store(place)
    assert words in str(caught.value)


# ---- two stores with similar names ----------------------------------------------------------

TWINS = [
    ("cohort", "cohort#2?3"),
    ("cohort", "cohort?2#3"),
    ("a b", "a%20b"),
    ("a+b", "a b"),
    ("caf\u00e9", "cafe\u0301"),
    ("a*", "ab"),
    ("a", "a::b"),
    ("a&b;c", "a&amp;b;c"),
    ("~a", "a~"),
]


@pytest.mark.slow
@pytest.mark.parametrize("twins", TWINS, ids=str)
@pytest.mark.parametrize("backend", ["zarr", "obstore", "fsspec", "icechunk"])
def test_a_folder_with_a_similar_name_is_unchanged(tmp_path: Path, twins: tuple[str, str], backend: str) -> None:
    write = cohort.write_icechunk if backend == "icechunk" else cohort.write_vcz
    neighbour, target = (tmp_path / name for name in twins)
    write(neighbour, OLD)
    write(target, OLD)
    before = cohort.digest(neighbour)
    assert vczstore.info(str(target), backend_storage=backend).samples == 7
    vczstore.remove(target.as_uri(), "S0001", backend_storage=backend, impl="zarr")
    assert cohort.digest(neighbour) == before
    actual = cohort.read_vcz(cohort.icechunk_store(target) if backend == "icechunk" else target)
    cohort.assert_same(actual, cohort.expected_remove(OLD, ["S0001"]))


def keys(cloud: Cloud) -> dict[str, tuple[int, str]]:
    """Size and ETag of every object of the bucket, by its full key, as the server lists them."""
    return {e["path"]: (e["size"], e["e_tag"]) for page in obstore.list(cloud.objects("")) for e in page}


@pytest.mark.parametrize("twins", [TWINS[0], TWINS[2], TWINS[4]], ids=str)
@pytest.mark.slow
def test_a_store_with_a_similar_key_is_unchanged(s3_cloud: Cloud, twins: tuple[str, str]) -> None:
    """Append, lock, remove and verify-removal use only keys of their own store; the batches have similar names, too."""
    neighbour, target = twins
    first, store = (s3_cloud.put(name, OLD) for name in twins)
    batch = s3_cloud.put(f"{target}-batch", BATCH)
    s3_cloud.put(f"{neighbour}-batch", {**BATCH, "sample_id": np.array([f"T{i}" for i in range(5)], dtype=object)})
    options = {"storage_options": s3_cloud.options}
    before = keys(s3_cloud)
    vczstore.append(store, batch, **options)
    vczstore.remove(store, "S0001", **options)
    assert not vczstore.verify_removal(first, "S0001", **options).erased
    changed = {key for key, state in keys(s3_cloud).items() if before.get(key) != state}
    assert changed
    assert all(
        key.startswith((f"{target}/", f"{target}.vczstore-job.lock", f"{target}.withdrawal-key")) for key in changed
    )
    cohort.assert_same(s3_cloud.read(neighbour, "format3"), OLD)
    expected = cohort.expected_remove(cohort.expected_append(OLD, BATCH), ["S0001"])
    cohort.assert_same(s3_cloud.read(target, "format3"), expected)


@pytest.mark.parametrize("name", ["a b&c;*::d", "cohort#2", "cohort?2", "a%20b", "a+b", "caf\u00e9"])
@pytest.mark.slow
def test_keys_that_icechunk_cannot_write_are_refused(s3_cloud: Cloud, name: str) -> None:
    """Icechunk would copy from a different key, or fail after the tasks have run."""
    source, store = s3_cloud.put("source", OLD), f"{s3_cloud.url}/{name}"
    options, before = {"storage_options": s3_cloud.options}, keys(s3_cloud)
    if any(character in name for character in "#?%+\u00e9"):
        for copy in (vczstore.copy_store_to_icechunk, lambda a, b, **o: vczstore.create(b, a, **o)):
            with pytest.raises(OptionError, match="Icechunk cannot write where an S3 key has"):
                copy(source, store, backend_storage="icechunk", **options)
        assert keys(s3_cloud) == before
        return
    vczstore.copy_store_to_icechunk(source, store, **options)
    vczstore.remove(store, "S0001", **options)
    vczstore.tag(store, "v1", **options)
    cohort.assert_same(s3_cloud.read(name, "icechunk"), cohort.expected_remove(OLD, ["S0001"]))


@pytest.mark.parametrize("name", ["a#2 b%20c?d+caf\u00e9"])
@pytest.mark.parametrize("kind", ["format3", "icechunk"])
@pytest.mark.slow
def test_special_characters_on_azure(azure_cloud: Cloud, name: str, kind: str) -> None:
    store = azure_cloud.make(kind, name)
    vczstore.remove(store, "S0001", storage_options=azure_cloud.options)
    cohort.assert_same(azure_cloud.read(name, kind), cohort.expected_remove(OLD, ["S0001"]))


@pytest.mark.slow
def test_a_job_does_not_confuse_batches_with_similar_names(s3_cloud: Cloud) -> None:
    """Nor does it skip a batch because another with the same name up to ``#`` was appended before."""
    store, batches = s3_cloud.make("icechunk"), [{**BATCH}, {**BATCH}]
    for i, batch in enumerate(batches):
        batch["sample_id"] = np.array([f"T{i}{j}" for j in range(5)], dtype=object)
        s3_cloud.put(f"inbox/b{'#2' * i}", batch)
    file = s3_cloud.tmp / "job.yaml"
    for i, source in enumerate(["inbox/b", "inbox/b[?]2", "inbox/b#*"]):
        file.write_text(
            f"store: {{url: '{store}', storage-options: {{endpoint: '{s3_cloud.options['endpoint']}', "
            f"region: us-east-1}}}}\nsteps: [{{append: '{s3_cloud.url}/{source}'}}]\n"
        )
        if i == 1:  # ``[?]`` is a literal ``?``, and there is no such object
            with pytest.raises(NotAStoreError, match=r"inbox/b\?2: "):
                run_job(file)
        else:
            assert run_job(file).status == "done"
    cohort.assert_same(s3_cloud.read("cohort/store.vcz", "icechunk"), cohort.expected_append(OLD, *batches))


@pytest.mark.slow
def test_stores_with_similar_names_have_separate_locks(s3_server: s3.S3Server) -> None:
    from tests.support.locks import job_lock

    bucket = s3_server.url(f"locks-{uuid4().hex}")
    for name in ("a", "a#2", "a?2"):
        objects = s3_server.objects(f"{bucket}/{name}")
        cohort.write_vcz(zarr.storage.ObjectStore(objects), cohort.make_arrays(2, ["S1"]))
    with (
        job_lock(f"{bucket}/a", s3_server.options, wait=False),
        job_lock(f"{bucket}/a#2", s3_server.options, wait=False),
        job_lock(f"{bucket}/a?2", s3_server.options, wait=False),
        pytest.raises(BusyError),
        job_lock(f"{bucket}/a#2/", s3_server.options, wait=False),
    ):
        pass


@pytest.mark.slow
def test_a_store_is_not_its_own_source(s3_cloud: Cloud) -> None:
    store = s3_cloud.make("format3", "a")
    for spelling in (f"{s3_cloud.url}/a", f"{s3_cloud.url}/a/", store.replace("s3://", "s3a://")):
        with pytest.raises(IncompatibleError, match="is the store"):
            vczstore.update(store, spelling, storage_options=s3_cloud.options)


def test_literals_in_globs() -> None:
    assert literal("s3://b/[[]a][*][?]") == "s3://b/[a]*?"
