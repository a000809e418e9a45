"""Templates of sets of stores and the locations of their records; names of groups in repositories."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

import vczstore
from tests.support import cohort
from tests.support.refusals import complain
from vczstore.errors import NotAStoreError, OptionError, UnsuitableError
from vczstore.stores.sets import Template


@pytest.mark.parametrize(
    ("spelling", "place"),
    [
        ("s3a://bucket/cohort/{part}.icechunk/", "s3://bucket/cohort/.PART.icechunk.vczstore-set.json"),
        ("s3://bucket/{part}/v1/{part}", "s3://bucket/.PART_v1_PART-cd7bbfca.vczstore-set.json"),
        ("gcs://bucket/a/b-{part}", "gs://bucket/a/.b-PART.vczstore-set.json"),
        (
            "abfss://box@me.dfs.core.windows.net/a b/{part}",
            "https://me.blob.core.windows.net/box/a%20b/.PART.vczstore-set.json",
        ),
        (
            "https://me.blob.core.windows.net/box/a%20b/{part}",
            "https://me.blob.core.windows.net/box/a%20b/.PART.vczstore-set.json",
        ),
        ("/no such/../no such/./{part}//x", "/no such/.PART_x-20d2f8d9.vczstore-set.json"),
        ("file:///no%20such/{part}/x/", "/no such/.PART_x-20d2f8d9.vczstore-set.json"),
        ("/{part}", "/.PART.vczstore-set.json"),
    ],
)
def test_the_location_of_a_record(spelling: str, place: str) -> None:
    assert Template(spelling).record.place == place


def test_sets_in_one_folder_have_records_of_their_own(tmp_path: Path) -> None:
    """Names of records differ if the text around the part differs, and do not depend on the parent folder."""
    names = [
        "{part}_a.vcz",
        "{part}/a.vcz",
        "PART_{part}",
        "{part}_PART",
        "{part}_{part}",
        "{part}/{part}",
        "{part}/PART",
    ]
    places = [[Template(f"{folder}/{name}").record.name for name in names] for folder in (tmp_path, "s3://b/x")]
    assert len({*places[0]}) == len(names)
    assert places[0] == places[1]
    assert places[0][0] == ".PART_a.vcz.vczstore-set.json"


def test_templates_that_are_refused(tmp_path: Path) -> None:
    complain(OptionError, ["one bucket"], lambda: Template("s3://cohort-{part}/store").record)
    complain(OptionError, [r"\.\. behind"], lambda: Template(f"{tmp_path}/{{part}}/../store").record)
    complain(OptionError, ["--parts"], Template("https://host/cohort/{part}").find)
    complain(OptionError, ["--parts"], Template("s3://bucket/{part}/store").find)


@pytest.mark.slow
def test_names_of_groups(tmp_path: Path) -> None:
    """An existing path that contains ``#`` does not name a group; only repositories have groups."""
    vcz = cohort.make_arrays(3, cohort.ids(0, 2), fields=("call_DP",))
    cohort.write_icechunk(tmp_path / "cohort", vcz)
    cohort.write_vcz(tmp_path / "batch.vcz", vcz)
    copy = partial(vczstore.copy_store_to_icechunk, tmp_path / "batch.vcz")
    for name in ("cohort.icechunk#a/b", "cohort.icechunk#../b"):
        complain(OptionError, ["group in a group"], partial(vczstore.init, tmp_path / name, tmp_path / "batch.vcz"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batch.vcz", "cohort"]
    copy(f"{tmp_path}/cohort#chr1")
    copy(f"{tmp_path}/new.icechunk#chr1")
    assert [vczstore.info(f"{tmp_path}/{name}").samples for name in ("cohort#chr1", "new.icechunk#chr1")] == [2, 2]
    before = cohort.digest(tmp_path)
    complain(UnsuitableError, ["is there already"], partial(copy, f"{tmp_path}/cohort#chr1"))
    complain(UnsuitableError, ["is there already"], partial(copy, f"{tmp_path}/cohort#chr1", overwrite=True))
    complain(UnsuitableError, ["is there already"], partial(copy, f"{tmp_path}/cohort#call_DP"))
    complain(
        UnsuitableError, ["group"], partial(vczstore.run, "export", tmp_path / "batch.vcz", f"{tmp_path}/cohort#b")
    )
    complain(NotAStoreError, ["cohort#chr2: there is no Zarr group"], partial(vczstore.info, f"{tmp_path}/cohort#chr2"))
    complain(NotAStoreError, ["no such file"], partial(vczstore.info, f"{tmp_path}/other#chr1"))
    complain(NotAStoreError, ["name .*new.icechunk#chr1"], partial(vczstore.info, f"{tmp_path}/new.icechunk"))
    assert cohort.digest(tmp_path) == before
    (tmp_path / "batch.vcz").rename(tmp_path / "cohort#chr1")
    assert vczstore.info(tmp_path / "cohort#chr1").backend == "zarr"
