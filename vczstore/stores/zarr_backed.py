"""Base class of stores accessed through one Zarr store: plain Zarr, and Icechunk sessions."""

from dataclasses import dataclass, field
from pathlib import Path

from zarr.abc.store import Store as ZarrStore
from zarr.storage import MemoryStore

from vczstore.errors import UnsuitableError
from vczstore.stores.base import Check, Keep, Store
from vczstore.stores.folders import folder_behind
from vczstore.stores.leftovers import delete_half_written
from vczstore.vcz.encoded_chunks import clear_outside
from vczstore.vcz.model import Vcz
from vczstore.vcz.zarr_objects import reading, stored_bytes


@dataclass(frozen=True)
class ZarrBacked(Store):
    """A VCZ accessed through one Zarr store."""

    zarr_store: ZarrStore = field(kw_only=False)

    @property
    def folder(self) -> Path | None:
        return folder_behind(self.zarr_store)

    @property
    def pickles(self) -> bool:
        return not isinstance(self.zarr_store, MemoryStore)

    def open(self, at: str | None = None) -> Vcz:
        """Read the metadata; raise an `UnsuitableError` for `at`, since plain Zarr has one state."""
        if at is not None:
            raise UnsuitableError(
                f"info: {self.label} is plain Zarr, which has no tag or snapshot {at!r}; "
                f"vczstore copy-store-to-icechunk {self.label} NEW_STORE makes a store that keeps them"
            )
        return Vcz.read(reading(self.zarr_store), self.label)

    def stored_bytes(self) -> int | None:
        return stored_bytes(self.zarr_store)

    def collect_garbage(
        self, *, before: Check, dry_run: bool, keep: Keep | None = None
    ) -> tuple[str | None, dict[str, int]]:
        """Delete, or count, the chunks outside the arrays' shapes, left by interrupted appends."""
        vcz, store = self.open(), self.zarr_store.with_read_only(False)
        vcz.require_whole("gc", edited=False)
        freed = [clear_outside(array, store, dry_run=dry_run) for array in (*vcz.arrays.values(), *vcz.inner.values())]
        counts = {"chunks deleted": sum(n for n, _ in freed), "bytes": sum(size for _, size in freed)}
        return None, counts | delete_half_written(self.folder, dry_run=dry_run)
