"""Templates of sets of stores: the parts that they find, and where the record of a set lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.refusals import complain
from vczstore.errors import OptionError
from vczstore.stores.sets import Template


@pytest.mark.parametrize(
    ("spelling", "place"),
    [
        ("s3a://bucket/cohort/{part}.icechunk/", "s3://bucket/cohort/.PART.icechunk.vczstore-set.json"),
        ("s3://bucket/{part}/v1/{part}", "s3://bucket/.PART_v1_PART.vczstore-set.json"),
        ("gcs://bucket/a/b-{part}", "gs://bucket/a/.b-PART.vczstore-set.json"),
        (
            "abfss://box@me.dfs.core.windows.net/a b/{part}",
            "https://me.blob.core.windows.net/box/a%20b/.PART.vczstore-set.json",
        ),
        (
            "https://me.blob.core.windows.net/box/a%20b/{part}",
            "https://me.blob.core.windows.net/box/a%20b/.PART.vczstore-set.json",
        ),
        ("/no such/../no such/./{part}//x", "/no such/.PART_x.vczstore-set.json"),
        ("file:///no%20such/{part}/x/", "/no such/.PART_x.vczstore-set.json"),
        ("/{part}", "/.PART.vczstore-set.json"),
    ],
)
def test_a_record_lies_in_one_place(spelling: str, place: str) -> None:
    assert Template(spelling).record.place == place


def test_names_that_cannot_be(tmp_path: Path) -> None:
    complain(OptionError, ["one bucket"], lambda: Template("s3://cohort-{part}/store").record)
    complain(OptionError, [r"\.\. behind"], lambda: Template(f"{tmp_path}/{{part}}/../store").record)
    complain(OptionError, ["--parts"], Template("https://host/cohort/{part}").find)
    complain(OptionError, ["--parts"], Template("s3://bucket/{part}/store").find)
