"""A group of an Icechunk session as a Zarr store: every method of zarr's stores stays within the group."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import Any

import icechunk
import numpy as np
import pytest
import zarr
from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype

from vczstore.stores.icechunk_groups import GroupStore, within

PROTOTYPE = default_buffer_prototype()
OF_STATE = {"__enter__", "__exit__", "open", "close", "with_read_only", "read_only", "_open", "_ensure_open"}
OF_STATE |= {"_check_writable", "__init__", "__eq__"}
"""Methods that take no key."""
SUPPORT = {f"supports_{what}" for what in ("writes", "deletes", "listing", "partial_writes", "consolidated_metadata")}


def buffer(content: bytes) -> Any:
    return PROTOTYPE.buffer.from_bytes(content)


async def collected(items: AsyncIterable[Any]) -> list[Any]:
    return [item async for item in items]


@pytest.fixture
def session() -> icechunk.Session:
    """Two groups, one's name a prefix of the other's, with a sharded array in each: 1 to 12, and 101 to 112."""
    session = icechunk.Repository.create(icechunk.in_memory_storage()).writable_session("main")
    for path, more in {"chr1": 0, "chr10": 100}.items():
        store = within(session.store, path)
        zarr.create_group(store)
        zarr.create_array(store, name="a", shape=12, chunks=2, shards=6, dtype="i4", compressors=None)
        zarr.open_array(session.store, path=f"{path}/a")[:] = np.arange(12) + 1 + more
    return session


def test_each_method_of_zarrs_stores(session: icechunk.Session) -> None:
    """Keys are relative to the group, and the other group stays unchanged."""
    store = within(session.store, "chr1")
    plain, other = zarr.open_array(session.store, path="chr1/a"), zarr.open_array(session.store, path="chr10/a")
    tested = OF_STATE | SUPPORT

    async def call(method: str, *arguments: Any, **options: Any) -> Any:
        tested.add(method)
        result = getattr(store, method)(*arguments, **options)
        return await (collected(result) if hasattr(result, "__aiter__") else result)

    async def call_all() -> None:
        ranges = [RangeByteRequest(0, 4), SuffixByteRequest(4), None]
        shard = await session.store.get("chr1/a/c/1", PROTOTYPE)
        assert shard is not None
        content = shard.to_bytes()
        parts = [content[:4], content[-4:], content]
        got = [await call("get", "a/c/1", PROTOTYPE, part) for part in ranges]
        assert [value.to_bytes() for value in got] == parts
        key_ranges = [("a/c/1", part) for part in ranges]
        *got, nothing = await call("get_partial_values", PROTOTYPE, [*key_ranges, ("a/c/9", None)])
        assert ([value.to_bytes() for value in got], nothing) == (parts, None)
        got = [value for group in await call("get_ranges", "a/c/1", ranges, prototype=PROTOTYPE) for value in group]
        assert {index: value.to_bytes() for index, value in got} == dict(enumerate(parts))
        got = await call("_get_many", [("a/c/1", PROTOTYPE, None), ("a/c/9", PROTOTYPE, None)])
        assert [(key, value and value.to_bytes()) for key, value in got] == [("a/c/1", content), ("a/c/9", None)]
        assert [await call("exists", key) for key in ("a/c/1", "a/c/9", "chr1/a/c/1")] == [True, False, False]
        assert await call("getsize", "a/c/1") == len(content)
        documents = [await call("getsize", key) for key in ("zarr.json", "a/zarr.json")]
        assert await call("getsize_prefix", "") == 2 * len(content) + sum(documents)
        assert sorted(await call("list")) == ["a/c/0", "a/c/1", "a/zarr.json", "zarr.json"]
        assert sorted(await call("list_prefix", "a")) == ["a/c/0", "a/c/1", "a/zarr.json"]
        assert [sorted(await call("list_dir", at)) for at in ("", "a")] == [["a", "zarr.json"], ["c", "zarr.json"]]
        assert [await call("is_empty", prefix) for prefix in ("", "a", "b")] == [False, False, True]
        await call("set", "a/c/0", buffer(content))
        await call("set_if_not_exists", "a/c/0", buffer(b"not this"))
        assert plain[:].tolist() == [*range(7, 13)] * 2
        await call("delete", "a/c/0")
        assert plain[:].tolist() == [0] * 6 + [*range(7, 13)]
        await call("_set_many", [("a/c/0", buffer(content))])
        assert plain[:6].tolist() == [*range(7, 13)]
        await call("delete_dir", "a")
        assert await call("list") == ["zarr.json"]
        await call("clear")
        assert await call("is_empty", "")

    asyncio.run(call_all())
    assert other[:].tolist() == [*range(101, 113)]
    tested.add("get_ranges_sync")  # goes through get_sync, which a session does not have
    assert not hasattr(store, "get_sync")
    assert not [name for name, member in vars(Store).items() if callable(member) and name not in tested]


def test_a_group_supports_what_its_session_supports(session: icechunk.Session) -> None:
    store = within(session.store, "chr1")
    assert {name: getattr(store, name) for name in SUPPORT} == {name: getattr(session.store, name) for name in SUPPORT}
    for closed in (store.with_read_only(True), within(session.store.with_read_only(True), "chr1")):
        assert closed.read_only
        assert zarr.open_array(closed, path="a", mode="r")[:].tolist() == [*range(1, 13)]
        with pytest.raises(ValueError, match="read-only"):
            asyncio.run(closed.set("a/c/0", buffer(b"")))
    assert store == GroupStore(session.store, "chr1") != within(session.store, "chr10")
