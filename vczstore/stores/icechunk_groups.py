"""A group of an Icechunk repository, as a Zarr store of its own: ``cohort.icechunk#chr1``."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import icechunk
from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest, Store


class GroupStore(Store):
    """
    A group of a session's store.

    Derives from `Store` instead of `zarr.storage.WrapperStore`, which passes keys on unchanged in all methods that it
    knows: `Store` methods not overridden here go through those that are.

    Parameters
    ----------
    store
        Store of the session.
    group
        Name of the group.
    """

    def __init__(self, store: Store, group: str) -> None:
        super().__init__(read_only=store.read_only)
        self.inner = store
        self.group = group

    def with_read_only(self, read_only: bool = False) -> "GroupStore":
        return GroupStore(self.inner.with_read_only(read_only), self.group)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.inner, self.group)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GroupStore) and (self.inner, self.group) == (other.inner, other.group)

    def __hash__(self) -> int:
        return hash((type(self), self.group))

    def __repr__(self) -> str:
        return f"GroupStore({self.inner!r}, {self.group!r})"

    @property
    def supports_writes(self) -> bool:
        return self.inner.supports_writes

    @property
    def supports_deletes(self) -> bool:
        return self.inner.supports_deletes

    @property
    def supports_listing(self) -> bool:
        return self.inner.supports_listing

    @property
    def supports_consolidated_metadata(self) -> bool:
        return self.inner.supports_consolidated_metadata

    def _key(self, key: str) -> str:
        return f"{self.group}/{key}"

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        return await self.inner.get(self._key(key), prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))

    async def exists(self, key: str) -> bool:
        return await self.inner.exists(self._key(key))

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        await self.inner.set(self._key(key), value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        self._check_writable()
        await self.inner.set_if_not_exists(self._key(key), value)

    async def delete(self, key: str) -> None:
        self._check_writable()
        await self.inner.delete(self._key(key))

    async def delete_dir(self, prefix: str) -> None:
        self._check_writable()
        await self.inner.delete_dir(self._key(prefix).rstrip("/"))

    async def getsize(self, key: str) -> int:
        return await self.inner.getsize(self._key(key))

    async def is_empty(self, prefix: str) -> bool:
        """Whether there is nothing below a prefix. A session lists only groups and arrays."""
        return await self.inner.is_empty(self._key(prefix).rstrip("/"))

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        async for key in self.inner.list_prefix(self._key(prefix)):
            yield key.removeprefix(f"{self.group}/")

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        async for key in self.inner.list_dir(self._key(prefix).rstrip("/")):
            yield key


def within(store: Store, group: str) -> Store:
    """The store of a group in a session; the session's store itself if `group` is empty."""
    return GroupStore(store, group) if group else store


def unwrap_group(store: Store) -> tuple[icechunk.IcechunkStore, str]:
    """The session's store, and the prefix of paths in it: empty, or the group and a slash."""
    path, inner = (f"{store.group}/", store.inner) if isinstance(store, GroupStore) else ("", store)
    assert isinstance(inner, icechunk.IcechunkStore)
    return inner, path
