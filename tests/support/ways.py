"""Combinations of storage format, implementation and executor, by which most tests are parametrized."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import vczstore
from tests.support import cohort

FLEXIBLE = ("format3_flexible", "icechunk_flexible")
"""Kinds with a flexible sample grid, in which chunk columns may have different widths."""

KINDS = ("format2_legacy", "format2", "format3", "icechunk")
"""Storage formats. The first is written by zarr-python 2.18, with consolidated metadata."""


@dataclass(frozen=True)
class Way:
    """The storage format of a store, and the implementation and executor of operations on it."""

    kind: str
    impl: str
    executor: str = "threads"

    @property
    def id(self) -> str:
        """Test ID; contains ``zarr``, ``cubed``, ``xarray``, ``icechunk`` or ``icechunk_cubed``, for ``-k``."""
        head = {"zarr": "icechunk_zarr"}.get(self.impl, f"icechunk_{self.impl}")
        name = head.replace("icechunk", self.kind) if self.is_icechunk else f"{self.kind}-{self.impl}"
        return name if self.impl == "zarr" else f"{name}-{self.executor}"

    @property
    def is_icechunk(self) -> bool:
        """Whether the store is an Icechunk repository."""
        return self.kind.startswith("icechunk")

    @property
    def options(self) -> dict[str, Any]:
        """Options for functions of the Python API."""
        return {"impl": self.impl, "executor": self.executor, "max_workers": 2}

    def make(self, folder: Path, arrays: dict[str, np.ndarray], **layout: Any) -> Path:
        """Write a store of this kind; return its path."""
        store = folder / "store.vcz"
        if self.is_icechunk:
            cohort.write_icechunk(store, arrays, **layout)
        elif self.kind == "format2_legacy":
            raise ValueError("made by zarr-python 2.18, in tests/system/test_matrix.py")
        else:
            cohort.write_vcz(store, arrays, zarr_format=2 if self.kind == "format2" else 3, **layout)
        if self.kind in FLEXIBLE:
            vczstore.regrid(store, sample_grid="flexible")
        return store

    def read(self, store: Path) -> dict[str, np.ndarray]:
        """All arrays of the store, read without vczstore."""
        return cohort.read_vcz(cohort.icechunk_store(store) if self.is_icechunk else store)


IMPLS = ("zarr", "cubed", "xarray")
WRITTEN = ("format2", "format3", "icechunk")
"""The storage formats that need no zarr-python 2.18."""
