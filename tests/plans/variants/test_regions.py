"""Regions as they are written on the command line and in files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from plans.variants import regions
from plans.variants.regions import Overlap, Region, parse_region, read_regions_file
from tests.support.refusals import complain
from vczstore.errors import OptionError

FAR = "9" * 5000


def read(path: Path, content: bytes) -> list[Region]:
    path.write_bytes(content)
    return read_regions_file("export", path)


def test_positions_beyond_any_genome(tmp_path: Path) -> None:
    """They are capped at the largest position: the region includes everything from its start on."""
    parsed = [parse_region("export", f"1:5-{FAR}", ["1"]), parse_region("export", f"1:{'0' * 30}5-", ["1"])]
    parsed += read(tmp_path / "x.bed", f"1\t4\t{FAR}\n".encode())
    assert parsed == [Region("1", 5)] * 3
    parsed = [parse_region("export", f"1:{FAR}", ["1"]), *read(tmp_path / "x.tsv", f"1\t{FAR}\n".encode())]
    overlap = Overlap.of([*parsed, Region("2", 5)], ["1", "2"])
    assert overlap.has(np.array([0, 1]), np.array([9, 9]), np.ones(2)).tolist() == [False, True]
    complain(
        OptionError,
        ("line 1 of .* ends before it begins",),
        lambda: read(tmp_path / "y.bed", b"1\t%b\t%b\n" % (FAR.encode(), FAR.encode())),
    )


def test_damaged_files(tmp_path: Path) -> None:
    whole = gzip.compress(b"1\t5\t9\n" * 1000)
    path = tmp_path / "x.bed.gz"
    assert read(path, whole) == [Region("1", 6, 9)] * 1000
    for content in (whole[:20], whole[:12] + b"\xff" * 20, b"1\t5\t9\n", whole[:-8] + bytes(8)):
        complain(OptionError, ("x.bed.gz cannot be read",), lambda content=content: read(path, content))
    complain(OptionError, ("is no UTF-8 text",), lambda: read(tmp_path / "x.bed", b"1\t5\t9\n\xff\t5\t9\n"))


def test_contigs_that_are_named_like_header_lines(tmp_path: Path) -> None:
    named = b"track7\t1\t9\nbrowser\t1\t9\ntrack\t1\t9\n"
    assert [region.contig for region in read(tmp_path / "x.tsv", named)] == ["track7", "browser", "track"]
    header = b"#comment\nbrowser position chr1:1-9\ntrack name=x\ntrack\n\n"
    assert [region.contig for region in read(tmp_path / "x.bed", header + named)] == ["track7", "browser", "track"]
    complain(OptionError, ("line 1 of .*x.tsv is no region",), lambda: read(tmp_path / "x.tsv", b"track name=x\n"))


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    content = "\ufeffa\x0cb\t1\t9\r\nc\x85\u2028d\t2\n".encode()
    assert read(tmp_path / "x.tsv", content) == [Region("a\x0cb", 1, 9), Region("c\x85\u2028d", 2, 2)]
    for text in ("a\t\u0663\t\u0669\n", "a\t1_0\n", "a\t+1\n", "a\t1\x0c2\n"):
        complain(OptionError, ("is no region",), lambda text=text: read(tmp_path / "x.tsv", text.encode()))
    assert parse_region("export", "a:\u0663-\u0669", ["a"]) == Region("a:\u0663-\u0669")  # read as a contig's name


@pytest.mark.parametrize("name", ["x.tsv", "x.tsv.gz"])
def test_large_files(tmp_path: Path, name: str) -> None:
    content = b"1\t5\t9\n" * (regions.MAX_BYTES // 6 + 1)
    assert regions.MAX_BYTES == 2**24
    content = gzip.compress(content, 1) if name.endswith(".gz") else content
    complain(OptionError, ("is larger than 16,777,216 bytes; ",), lambda: read(tmp_path / name, content))
