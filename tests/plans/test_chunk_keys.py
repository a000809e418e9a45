"""Sources of format 3 with any chunk key encoding go into Icechunk, which accepts only the default one."""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

import vczstore
from tests.support import cohort

ENCODINGS = (("default", "."), ("v2", "."), ("v2", "/"))
FIELDS = ("call_DP", "call_GL", "call_genotype")


def write(store: Path, start: int, *, fields: tuple[str, ...] = FIELDS) -> dict[str, np.ndarray]:
    """Write a batch of three samples whose arrays have the three encodings in turn; return its arrays."""
    arrays = cohort.make_arrays(10, cohort.ids(start, 3), seed=start, fields=fields)
    cohort.write_vcz(store, arrays)
    for (name, separator), path in zip(cycle(ENCODINGS), sorted(store.glob("*/zarr.json")), strict=False):
        document = json.loads(path.read_text())
        document["chunk_key_encoding"] = {"name": name, "configuration": {"separator": separator}}
        path.write_text(json.dumps(document))
        for chunk in [file for file in (path.parent / "c").rglob("*") if file.is_file()]:
            parts = chunk.relative_to(path.parent).parts
            key = path.parent / separator.join(parts if name == "default" else parts[1:])
            key.parent.mkdir(parents=True, exist_ok=True)
            chunk.rename(key)
    cohort.assert_same(cohort.read_vcz(store), arrays)
    return arrays


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["copy-store-to-icechunk", "init", "normalise", "append", "append --add-field"])
def test_such_batches_go_into_icechunk(operation: str, tmp_path: Path) -> None:
    batch, store = tmp_path / "batch.vcz", tmp_path / "store.icechunk"
    arrays = write(batch, 0)
    before = cohort.digest(batch)
    match operation:
        case "copy-store-to-icechunk":
            vczstore.copy_store_to_icechunk(batch, store)
        case "init":
            vczstore.init(store, batch)
        case "normalise":
            vczstore.normalise(batch, batch, store)
        case "append":
            vczstore.create(store, batch)
            vczstore.append(store, batch)
        case _:
            write(tmp_path / "first.vcz", 5, fields=("call_genotype",))
            vczstore.init(store, tmp_path / "first.vcz")
            vczstore.append(store, batch, add_fields=["call_DP", "call_GL"])
    written = cohort.read_vcz(cohort.icechunk_store(store))
    names = [*FIELDS, "variant_position", "variant_allele"]
    actual = {name: written[name][:, -3:] if name in FIELDS else written[name] for name in names}
    cohort.assert_same(actual, {name: arrays[name] for name in names})
    assert cohort.digest(batch) == before
