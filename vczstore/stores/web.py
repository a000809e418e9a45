"""Read-only access to a VCZ at an ``http://`` or ``https://`` address."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from html.parser import HTMLParser
from itertools import batched, chain
from typing import Any
from urllib.parse import unquote, urljoin

import numpy as np
import zarr
from zarr.storage import ObjectStore

from vczstore.errors import StorageError
from vczstore.vcz import arrays, encoded_chunks, zarr_objects


class WebStore(ObjectStore[Any]):
    """
    The objects below a web address.

    HTTP has no listing. The members of a folder are those named by consolidated metadata, and those linked by the index
    page that many servers show for a folder; array metadata are read from the arrays' own documents.
    """

    def __init__(self, store: Any, url: str) -> None:
        super().__init__(store, read_only=True)
        self.url = url

    def with_read_only(self, read_only: bool = False) -> "WebStore":
        """Return the store itself, which is always read-only."""
        return self

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """Yield the names in a folder; raise a `StorageError` if they cannot be determined."""
        prefix = prefix.strip("/")
        listed = [
            names for names in (await self._consolidated(prefix), await self._linked(prefix)) if names is not None
        ]
        if not listed:
            raise StorageError(
                f"{self.url}: the server lists no folders, and there are no consolidated metadata that name the "
                "arrays; write them with zarr.consolidate_metadata, or copy the store"
            )
        for name in sorted(set().union(*listed)):
            yield name

    async def _get(self, key: str) -> bytes | None:
        import obstore
        from obstore.exceptions import PermissionDeniedError

        try:
            return bytes(await (await obstore.get_async(self.store, key)).bytes_async())
        except (FileNotFoundError, PermissionDeniedError):  # many servers deny access to folders
            return None

    async def _consolidated(self, prefix: str) -> set[str] | None:
        for key in (".zmetadata", "zarr.json"):
            document = json.loads(await self._get(key) or "{}")
            nodes = (document.get("consolidated_metadata") or document).get("metadata")
            if nodes:
                begin = f"{prefix}/" if prefix else ""
                return {node.removeprefix(begin).partition("/")[0] for node in nodes if node.startswith(begin)}
        return None

    async def _linked(self, prefix: str) -> set[str] | None:
        page = await self._get(prefix)
        if page is None or page.lstrip()[:1] != b"<":
            return None
        folder = "/".join(part for part in (self.url, prefix) if part) + "/"
        links = _Links()
        links.feed(page.decode(errors="replace"))
        urls = (unquote(urljoin(folder, link)) for link in links.targets)
        names = {url.removeprefix(unquote(folder)).rstrip("/") for url in urls if url.startswith(unquote(folder))}
        return {name for name in names if name and "/" not in name and "?" not in name}

    def entries(self) -> Iterator[tuple[str, object, object]]:
        """The key, size and ETag (or modification time) of every metadata document and chunk that exists."""
        members = dict(zarr.open_group(self, mode="r", use_consolidated=False).arrays())
        documents = (key for path in ("", *members) for key in _documents(path))
        chunks = (
            encoded_chunks.chunk_key(array, c) for array in members.values() for c in np.ndindex(arrays.grid_of(array))
        )
        for keys in batched(chain(documents, chunks), zarr_objects.CONCURRENCY):
            yield from zarr_objects.wait_for(self._heads(keys))

    async def _heads(self, keys: tuple[str, ...]) -> list[tuple[str, object, object]]:
        entries = await asyncio.gather(*map(self._head, keys))
        return [entry for entry in entries if entry is not None]

    async def _head(self, key: str) -> tuple[str, object, object] | None:
        import obstore

        try:
            meta = await obstore.head_async(self.store, key)
        except FileNotFoundError:
            return None
        return key, meta["size"], meta["e_tag"] or str(meta["last_modified"])


class _Links(HTMLParser):
    """Collects the targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the target of an ``a`` tag."""
        self.targets += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _documents(path: str) -> list[str]:
    return [f"{path}/{name}".lstrip("/") for name in ("zarr.json", ".zgroup", ".zarray", ".zattrs")]
