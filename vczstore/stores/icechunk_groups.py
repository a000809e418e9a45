"""A group of an Icechunk repository, as a Zarr store of its own: ``cohort.icechunk#chr1``."""

from collections.abc import AsyncIterator, Iterable
from typing import Any, Self

import icechunk
from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest, Store
from zarr.storage import WrapperStore


class GroupStore(WrapperStore[Store]):
    """
    What is in a group of a session.

    Parameters
    ----------
    store
        That of the session.
    group
        The name of the group.
    """

    def __init__(self, store: Store, group: str) -> None:
        super().__init__(store)
        self.group = group

    @property
    def inner(self) -> Store:
        """The store of the session."""
        return self._store

    def _with_store(self, store: Store) -> Self:
        return type(self)(store, self.group)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._store, self.group)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GroupStore) and (self._store, self.group) == (other._store, other.group)

    def __hash__(self) -> int:
        return hash((type(self), self.group))

    def _key(self, key: str) -> str:
        return f"{self.group}/{key}"

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object."""
        return await self._store.get(self._key(key), prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of objects."""
        return await self._store.get_partial_values(prototype, [(self._key(key), part) for key, part in key_ranges])

    async def exists(self, key: str) -> bool:
        """Whether there is an object."""
        return await self._store.exists(self._key(key))

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object."""
        await self._store.set(self._key(key), value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object, unless there is one."""
        await self._store.set_if_not_exists(self._key(key), value)

    async def delete(self, key: str) -> None:
        """Delete an object."""
        await self._store.delete(self._key(key))

    async def delete_dir(self, prefix: str) -> None:
        """Delete all below a prefix."""
        await self._store.delete_dir(self._key(prefix))

    async def clear(self) -> None:
        """Delete all in the group."""
        await self._store.delete_dir(self.group)

    async def getsize(self, key: str) -> int:
        """The size of an object."""
        return await self._store.getsize(self._key(key))

    async def is_empty(self, prefix: str) -> bool:
        """Whether there is nothing below a prefix."""
        return await self._store.is_empty(self._key(prefix).rstrip("/"))

    async def list(self) -> AsyncIterator[str]:
        """All keys."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """The keys that begin with a prefix."""
        async for key in self._store.list_prefix(self._key(prefix)):
            yield key.removeprefix(f"{self.group}/")

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """What is directly below a prefix."""
        async for key in self._store.list_dir(self._key(prefix).rstrip("/")):
            yield key


def within(store: Store, group: str) -> Store:
    """What is in a group of a session; all of it if `group` is empty."""
    return GroupStore(store, group) if group else store


def around(store: Store) -> tuple[icechunk.IcechunkStore, str]:
    """The store of a session, and what the paths of arrays have before them there."""
    path, inner = (f"{store.group}/", store.inner) if isinstance(store, GroupStore) else ("", store)
    assert isinstance(inner, icechunk.IcechunkStore)
    return inner, path
