"""Buckets on the local S3 and Azure servers, with stores and batches in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import icechunk
import numpy as np
import obstore
import pytest
from obstore.store import AzureStore
from zarr.storage import ObjectStore

import vczstore
from tests.support import azure, cohort, s3

FIELDS = ("sample_sex", "call_genotype", "call_GL", "call_FT")


def make_arrays(first: int, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a cohort with few fields, because every array takes several requests."""
    arrays = cohort.make_arrays(10, cohort.ids(first, n), seed=seed)
    required = ("sample_id", "contig_id", "filter_id", "variant_contig", "variant_position", "variant_allele")
    return {name: arrays[name] for name in arrays if name in FIELDS + required}


OLD, BATCH = make_arrays(0, 7), make_arrays(7, 5, seed=1)


@dataclass
class Cloud:
    """A bucket, with access to its objects independent of vczstore."""

    url: str
    options: dict[str, Any]
    objects: Callable[[str], Any]
    """Return an obstore store for the objects under a prefix."""
    storage: Callable[[str], icechunk.Storage]
    secrets: tuple[str, ...]
    tmp: Path = field(default_factory=Path)

    def put(self, name: str, arrays: dict[str, np.ndarray], **layout: Any) -> str:
        """Write a VCZ on plain Zarr to the bucket; return its URL."""
        local = self.tmp / f"local-{uuid4().hex}"
        cohort.write_vcz(local, arrays, **layout)
        top = self.objects(name)
        for path in local.rglob("*"):
            if path.is_file():
                obstore.put(top, path.relative_to(local).as_posix(), path.read_bytes())
        return f"{self.url}/{name}"

    def read(self, name: str, kind: str) -> dict[str, np.ndarray]:
        """All arrays of a store, read without vczstore."""
        if kind != "icechunk":
            return cohort.read_vcz(ObjectStore(self.objects(name), read_only=True))
        repository = icechunk.Repository.open(self.storage(name))
        return cohort.read_vcz(repository.readonly_session("main").store)

    def listing(self) -> list[tuple[str, str]]:
        """Path and ETag of every object in the bucket."""
        return sorted((entry["path"], entry["e_tag"]) for page in obstore.list(self.objects("")) for entry in page)

    def make(self, kind: str, name: str = "cohort/store.vcz") -> str:
        """Create a store of `OLD`; return its URL."""
        zarr_format = 2 if kind == "format2" else 3
        plain = self.put(f"plain-{name}" if kind == "icechunk" else name, OLD, zarr_format=zarr_format)
        if kind != "icechunk":
            return plain
        vczstore.copy_store_to_icechunk(plain, f"{self.url}/{name}", storage_options=self.options)
        return f"{self.url}/{name}"


@pytest.fixture
def s3_cloud(s3_server: s3.S3Server, tmp_path: Path) -> Cloud:
    url = s3_server.url(f"objects-{uuid4().hex}")

    def objects(prefix: str) -> Any:
        return s3_server.objects(f"{url}/{prefix}")

    def storage(prefix: str) -> icechunk.Storage:
        return s3_server.storage(f"{url}/{prefix}")

    return Cloud(url, s3_server.options, objects, storage, tuple(s3.CREDENTIALS.values()), tmp_path)


@pytest.fixture
def azure_cloud(azure_server: azure.AzureServer, tmp_path: Path) -> Cloud:
    url = azure_server.url(f"objects-{uuid4().hex}")
    container = url.removeprefix("az://")

    def objects(prefix: str) -> Any:
        options = {"endpoint": azure_server.endpoint, "client_options": {"allow_http": True}}
        return AzureStore(container, prefix=prefix, account_name=azure.ACCOUNT, **options)

    def storage(prefix: str) -> icechunk.Storage:
        config = {"azure_storage_endpoint": azure_server.endpoint, "allow_http": "true"}
        return icechunk.azure_storage(
            account=azure.ACCOUNT, container=container, prefix=prefix, from_env=True, config=config
        )

    key = azure.CREDENTIALS["AZURE_STORAGE_ACCOUNT_KEY"]
    return Cloud(url, azure_server.options, objects, storage, (key,), tmp_path)
