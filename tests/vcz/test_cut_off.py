"""Chunks truncated by a few bytes: Blosc decodes them to wrong values, so every operation must refuse them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numcodecs
import pytest
import zarr.codecs.numcodecs

import vczstore
from tests.support import cohort
from tests.support.refusals import complain
from tests.support.small_stores import read
from vczstore.errors import VczstoreError

N = 400
COLUMN = 7
OPERATIONS: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "append": ("batch", vczstore.append),
    "append with zarr": ("batch", lambda store, batch: vczstore.append(store, batch, impl="zarr")),
    "append with xarray": ("batch", lambda store, batch: vczstore.append(store, batch, impl="xarray")),
    "append in processes": ("batch", lambda store, batch: vczstore.append(store, batch, executor="processes")),
    "append harmonised": ("batch", lambda store, batch: vczstore.append(store, batch, harmonise=True)),
    "append to it": ("store", vczstore.append),
    "remove": ("store", lambda store, _: vczstore.remove(store, "S0008")),
    "regrid": ("store", lambda store, _: vczstore.regrid(store, samples_chunk=5, variants_chunk=100)),
    "compact": ("store", lambda store, _: vczstore.compact(store, store.with_name("compact.vcz"))),
    "export of some": ("store", lambda store, _: vczstore.export(store, store.with_name("o.vcz"), samples=["S0008"])),
    "export to VCF": ("store", lambda store, _: vczstore.export(store, store.with_name("o.vcf"))),
    "diff": ("store", lambda store, _: vczstore.diff(store, store.with_name("same.vcz"))),
}
"""Operations that decode the truncated chunk, and whether it is in the store or the batch."""


def write(path: Path, kind: str, first: int, n: int) -> None:
    options: dict[str, Any] = {"samples_chunk": COLUMN, "variants_chunk": N}
    if kind == "format2":
        options |= {"zarr_format": 2, "compressors": numcodecs.Blosc("zstd", 7, numcodecs.Blosc.BITSHUFFLE)}
    elif kind == "numcodecs":
        options |= {"compressors": zarr.codecs.numcodecs.Blosc(cname="zstd", clevel=7, shuffle=2)}
    else:
        options |= {"compressors": zarr.codecs.BloscCodec(cname="zstd", clevel=7, shuffle="bitshuffle")}
    cohort.write_vcz(path, cohort.make_arrays(N, cohort.ids(first, n), seed=first, fields=["call_DP"]), **options)


@pytest.mark.parametrize(
    ("kind", "what"),
    [*product(("format2", "format3"), OPERATIONS), *product(("numcodecs",), ("append", "remove", "export to VCF"))],
)
@pytest.mark.slow
def test_truncated_chunks_are_refused(kind: str, what: str, tmp_path: Path) -> None:
    side, operation = OPERATIONS[what]
    store, batch = tmp_path / "store.vcz", tmp_path / "batch.vcz"
    write(store, kind, 0, COLUMN + 3)
    write(batch, kind, 20, COLUMN)
    write(tmp_path / "same.vcz", kind, 0, COLUMN + 3)
    if what == "compact":
        vczstore.remove(store, "S0001")
    folder = (store if side == "store" else batch) / "call_DP"
    chunk = folder / ("0.{}" if kind == "format2" else "c/0/{}").format(int(side == "store"))
    content = chunk.read_bytes()
    before = {name: values for name, values in read(store).items() if name in ("sample_id", "call_DP")}
    chunk.write_bytes(content[:-3])
    words = [f"cut off: it has {len(content) - 3:,} bytes of {len(content):,}", "" if "VCF" in what else "call_DP"]
    complain(VczstoreError, words, lambda: operation(store, batch))
    chunk.write_bytes(content)
    cohort.assert_same({name: values for name, values in read(store).items() if name in before}, before)
