"""Sets of stores in object storage: the record is in the bucket, and interrupted operations can be completed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import obstore
import pytest

import vczstore
from tests.support import cohort
from tests.support.clouds import Cloud
from tests.support.refusals import complain, mentions
from tests.support.stopped_sets import stop_between_parts
from tests.system.survival.sets import PARTS, arrays_of, before
from vczstore.errors import StaleError, StorageError

APPENDED = {part: cohort.expected_append(before(part), arrays_of(part, cohort.ids(4, 3))) for part in PARTS}
REMOVED = {part: cohort.expected_remove(APPENDED[part], ["S0001"]) for part in PARTS}


def make(cloud: Cloud, kind: str) -> str:
    """Write a set and batches for it; return the template of the set."""
    for part in PARTS:
        cloud.put(f"plain/{part}", before(part))
        cloud.put(f"in/{part}.vcz", arrays_of(part, cohort.ids(4, 3)))
    if kind == "format3":
        return f"{cloud.url}/plain/{{part}}"
    store = f"{cloud.url}/cohort/{{part}}.icechunk"
    vczstore.copy_store_to_icechunk(f"{cloud.url}/plain/{{part}}", store, storage_options=cloud.options)
    return store


def records(cloud: Cloud) -> list[dict[str, Any]]:
    """The records in the bucket, read without vczstore."""
    top = cloud.objects("")
    paths = [path for path, _ in cloud.listing() if path.endswith(".vczstore-set.json")]
    return [json.loads(bytes(obstore.get(top, path).bytes())) for path in paths]


def assert_holds(cloud: Cloud, store: str, kind: str, expected: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    for part, arrays in expected.items():
        actual = cloud.read(store.removeprefix(f"{cloud.url}/").replace("{part}", part), kind)
        assert {name: actual[name].tolist() for name in arrays} == {name: a.tolist() for name, a in arrays.items()}


def stop_at_a_corrupted_chunk(cloud: Cloud, call: partial[Any]) -> None:
    """Corrupt a chunk of the second source while a call runs, which must fail after the first part."""
    top = cloud.objects("in/chr2.vcz/call_DP/c")
    (name,) = (entry["path"] for page in obstore.list(top) for entry in page)
    content = bytes(obstore.get(top, name).bytes())
    obstore.put(top, name, b"none")
    complain(StorageError, ["is done in chr1, and not in chr2"], call)
    obstore.put(top, name, content)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["icechunk", "format3"])
def test_a_set_in_a_bucket(s3_cloud: Cloud, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud, store = s3_cloud, make(s3_cloud, kind)
    options: dict[str, Any] = {"storage_options": cloud.options}
    append = partial(vczstore.append, store, f"{cloud.url}/in/{{part}}.vcz", impl="zarr", **options)
    if kind == "icechunk":
        stop_between_parts(monkeypatch, append)
    else:
        stop_at_a_corrupted_chunk(cloud, append)
    (record,) = records(cloud)
    assert (record["operation"], list(record["parts"])) == ("append", [*PARTS])
    assert not [sample for sample in cohort.ids(0, 7) if sample in json.dumps(record)]
    words = ["is done in chr1, and not in chr2"]
    mentions("; ".join(vczstore.info(store.replace("s3:", "s3a:"), **options).errors), words)
    complain(StaleError, words, partial(vczstore.remove, store, "S0002", **options))
    if kind == "icechunk":
        assert vczstore.repair(store, quick=True, **options).ok
    else:
        assert list(append().parts) == ["chr2"]
    assert records(cloud) == []
    assert_holds(cloud, store, kind, APPENDED)

    if kind == "icechunk":
        heads = {part: vczstore.info(store.replace("{part}", part), **options).snapshot for part in PARTS}
        assert vczstore.tag(store, "release-1", **options) == heads
    assert list(vczstore.remove(store, "S0001", impl="zarr", **options).parts) == [*PARTS]
    assert_holds(cloud, store, kind, REMOVED)
    assert vczstore.info(store, **options).errors == []
    assert records(cloud) == []
