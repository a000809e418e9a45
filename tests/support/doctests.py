"""A pytest plugin that runs docstring examples of operations in a folder with the stores that they refer to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import vczstore
from tests.support import cohort

IDS = [f"NA0000{i}" for i in range(1, 9)]


@pytest.fixture(scope="session")
def _stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of four samples on plain Zarr and on Icechunk, two batches, and other files used in examples."""
    folder = tmp_path_factory.mktemp("examples")
    cohort.write_vcz(folder / "cohort.vcz", cohort.some_arrays(4, IDS[:4]))
    for name, samples in (("batch-7", IDS[4:6]), ("batch-8", IDS[6:]), ("recalled", IDS[1:3])):
        cohort.write_vcz(folder / f"{name}.vcz", cohort.some_arrays(4, samples, seed=len(name)))
    vczstore.copy_store_to_icechunk(folder / "cohort.vcz", folder / "cohort.icechunk", impl="zarr")
    vczstore.tag(folder / "cohort.icechunk", "release-1")
    (folder / "new-ids.tsv").write_text("NA00001\tS1\n")
    (folder / "nightly.yaml").write_text("store: cohort.icechunk\nsteps: [{append: batch-7.vcz}, {tag: release-2}]\n")
    return folder


@pytest.fixture(autouse=True)
def _examples(request: pytest.FixtureRequest) -> Iterator[None]:
    if not isinstance(request.node, pytest.DoctestItem) or not request.node.name.startswith(
        ("vczstore.api", "vczstore.jobs.run", "plans.")
    ):
        yield
        return
    namespace = request.getfixturevalue("doctest_namespace")
    namespace |= {name: getattr(vczstore, name) for name in vczstore.__all__}
    folder = request.getfixturevalue("tmp_path") / "examples"
    shutil.copytree(request.getfixturevalue("_stores"), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield
