"""Metadata that zarr cannot read are reported with the name of the array, in whole sentences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zarr

from tests.support import cohort
from vczstore.errors import DamagedStoreError, first_line
from vczstore.vcz.model import Vcz
from vczstore.vcz.zarr_objects import Document


def _unknown_codec(document: Document) -> None:
    document["codecs"].append({"name": "my.codec", "configuration": {}})


def _objects(document: Document) -> None:
    document |= {"dtype": "|O", "filters": [{"id": "json2"}]}


def _no_chunks(document: Document) -> None:
    del document["chunks" if document["zarr_format"] == 2 else "chunk_grid"]


CASES: dict[str, tuple[int, Callable[[Document], None], str]] = {
    "unknown codec": (3, _unknown_codec, r"\(An implementation for codec 'my.codec' is not available\)"),
    "object codec": (2, _objects, r"\(No Zarr data type found that matches .*json2.*\)"),
    "no chunks in format 2": (2, _no_chunks, "chunks"),
    "no chunks in format 3": (3, _no_chunks, "chunk_grid"),
}
"""The format, the change of a document, and what the message says of it."""


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("path", ["call_DP", "qc/deep/call_DP"])
@pytest.mark.parametrize("case", CASES)
def test_the_array_is_named(case: str, path: str, in_memory: bool, tmp_path: Path) -> None:
    zarr_format, change, words = CASES[case]
    folder = tmp_path / "store.vcz"
    cohort.write_vcz(folder, cohort.some_arrays(10, cohort.ids(0, 3)), zarr_format=zarr_format)
    if "/" in path:
        zarr.open_group(folder, mode="a").create_group("qc/deep")
        (folder / "call_DP").rename(folder / path)
    file = folder / path / ("zarr.json" if zarr_format == 3 else ".zarray")
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    store = cohort.in_memory(folder) if in_memory else zarr.storage.LocalStore(folder)
    message = rf"^here: the metadata of {path} cannot be read .*{words}.*; restore them from a copy, or rewrite the "
    with pytest.raises(DamagedStoreError, match=message):
        Vcz.read(store, "here")


def test_long_messages_end_with_a_sentence() -> None:
    first = "The first sentence. The second, see https://example.org/a.b, "
    assert first_line(ValueError(first + "x" * 200)) == "The first sentence"
    assert first_line(ValueError("x" * 300)) == "x" * 197 + "..."
    assert first_line(ValueError("x" * 200 + "\nmore")) == "x" * 200
    assert first_line(ValueError()) == "ValueError"
