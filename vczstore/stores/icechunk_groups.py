"""A group of an Icechunk repository, as a Zarr store of its own: ``cohort.icechunk#chr1``."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import icechunk
from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest, Store


class GroupStore(Store):
    """
    What is in a group of a session.

    It derives from `Store`, not `zarr.storage.WrapperStore`, which passes on all methods that it knows with the keys as
    they are: the methods of `Store` that are not here go through those that are.

    Parameters
    ----------
    store
        That of the session.
    group
        The name of the group.
    """

    def __init__(self, store: Store, group: str) -> None:
        super().__init__(read_only=store.read_only)
        self.inner = store
        self.group = group

    def with_read_only(self, read_only: bool = False) -> "GroupStore":
        """Return the same group, to be read only or not."""
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
        """Whether the session does."""
        return self.inner.supports_writes

    @property
    def supports_deletes(self) -> bool:
        """Whether the session does."""
        return self.inner.supports_deletes

    @property
    def supports_listing(self) -> bool:
        """Whether the session does."""
        return self.inner.supports_listing

    @property
    def supports_consolidated_metadata(self) -> bool:
        """Whether the session does."""
        return self.inner.supports_consolidated_metadata

    def _key(self, key: str) -> str:
        return f"{self.group}/{key}"

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object."""
        return await self.inner.get(self._key(key), prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of objects."""
        return await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))

    async def exists(self, key: str) -> bool:
        """Whether there is an object."""
        return await self.inner.exists(self._key(key))

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object."""
        self._check_writable()
        await self.inner.set(self._key(key), value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object, unless there is one."""
        self._check_writable()
        await self.inner.set_if_not_exists(self._key(key), value)

    async def delete(self, key: str) -> None:
        """Delete an object."""
        self._check_writable()
        await self.inner.delete(self._key(key))

    async def delete_dir(self, prefix: str) -> None:
        """Delete all below a prefix."""
        self._check_writable()
        await self.inner.delete_dir(self._key(prefix).rstrip("/"))

    async def getsize(self, key: str) -> int:
        """The size of an object, which is not read."""
        return await self.inner.getsize(self._key(key))

    async def is_empty(self, prefix: str) -> bool:
        """Whether there is nothing below a prefix, which a session lists only if it is a group or an array."""
        return await self.inner.is_empty(self._key(prefix).rstrip("/"))

    async def list(self) -> AsyncIterator[str]:
        """All keys."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """The keys that begin with a prefix."""
        async for key in self.inner.list_prefix(self._key(prefix)):
            yield key.removeprefix(f"{self.group}/")

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """What is directly below a prefix."""
        async for key in self.inner.list_dir(self._key(prefix).rstrip("/")):
            yield key


def within(store: Store, group: str) -> Store:
    """What is in a group of a session; all of it if `group` is empty."""
    return GroupStore(store, group) if group else store


def around(store: Store) -> tuple[icechunk.IcechunkStore, str]:
    """The store of a session, and what the paths of arrays have before them there."""
    path, inner = (f"{store.group}/", store.inner) if isinstance(store, GroupStore) else ("", store)
    assert isinstance(inner, icechunk.IcechunkStore)
    return inner, path
