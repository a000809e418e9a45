"""Exit status: 2 for what the command line alone tells is wrong, 1 for what depends on what is in a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import vczstore
from plans.append import Append
from tests.support import cohort
from vczstore.cli.main import main
from vczstore.errors import OptionError, UnsuitableError

USAGE = {
    "a Number that there is not": "append STORE BATCH --harmonise --number AD=X",
    "a Number without a field": "append STORE BATCH --harmonise --number R",
    "the same of normalise": "normalise STORE BATCH OUT --number AD=X",
    "--number without --harmonise": "append STORE BATCH --number AD=R",
    "--absent without --harmonise": "append STORE BATCH --absent reference",
    "--new-variants without --harmonise": "append STORE BATCH --new-variants drop",
    "--allow-new-alleles without --harmonise": "append STORE BATCH --allow-new-alleles",
    "--haploid-contigs without --harmonise": "append STORE BATCH --haploid-contigs Y",
    "--harmonise with xarray": "append STORE BATCH --harmonise --impl xarray",
    "normalise with xarray": "normalise STORE BATCH OUT --impl xarray",
    "an INFO field that there is not": "recompute STORE --fields FOO",
    "no INFO field": "recompute STORE --fields ,",
    "an INFO field after an append": "append STORE BATCH --recompute FOO",
    "an INFO field after an update": "update STORE BATCH --recompute FOO",
    "an INFO field after a removal": "remove STORE S0001 --recompute FOO",
    "a size that is none": "append STORE BATCH --allowed-mem much",
    "a size below Python's own": "append STORE BATCH --allowed-mem 1kB",
    "no workers": "append STORE BATCH --max-workers 0",
    "an executor that there is not": "append STORE BATCH --executor fast",
    "an executor file that there is not": "append STORE BATCH --executor nowhere.yaml",
    "an executor file with an unknown option": "append STORE BATCH --executor unknown.yaml",
    "an executor file with an option of a wrong kind": "append STORE BATCH --executor wrong.yaml",
    "an executor check of such a file": "executor check unknown.yaml",
    "a storage option without a value": "append STORE BATCH --storage-option region",
    "a storage option of a folder": "append STORE BATCH --storage-option region=eu",
    "a storage option of a source that is a folder": "append STORE BATCH --source-storage-option region=eu",
    "a storage option that there is not": "info s3://bucket/store --storage-option colour=red",
    "a storage option of a wrong kind": "info s3://bucket/store --storage-option allow_http=2",
    "a credential": "info s3://bucket/store --storage-option secret_access_key=x",
    "a URL that is none": "info s3:/bucket/store",
    "a URL without a bucket": "info s3://",
    "a backend that a URL does not have": "info s3://bucket/store --backend-storage zarr",
    "a backend that there is not": "info STORE --backend-storage hdf5",
    "a copy to another backend": "copy-store-to-icechunk STORE OUT --backend-storage zarr",
    "a web address that is written to": "remove https://localhost/store S0001",
    "a chunk of nothing": "create OUT BATCH --samples-chunk 0",
    "no sample": "remove STORE",
    "no source": "append STORE",
    "no tag to delete": "tag STORE -d",
    "an option that there is not": "append STORE BATCH --fast",
}
"""What is wrong, and the command: it is wrong for every store."""
DATA = {
    "a field to drop that nothing has": "append STORE BATCH --drop-field FOO",
    "a field to add that nothing has": "append STORE BATCH --add-field FOO",
    "the same of normalise": "normalise STORE BATCH OUT --drop-field FOO",
    "a place that is taken": "create STORE BATCH",
    "a place of normalise that is taken": "normalise STORE BATCH STORE",
    "a place of a copy that is taken": "copy-store-to-icechunk BATCH STORE",
    "a place of compact that is taken": "compact STORE --output BATCH",
    "a past that plain Zarr does not have": "info STORE --at v1",
    "a sample that there is not": "remove STORE absent-id",
    "samples that are there": "append STORE STORE",
    "a store that there is not": "append OUT BATCH",
}
"""The same where another store, or another moment, would make it right."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: no command changes it."""
    folder = tmp_path_factory.mktemp("stores")
    cohort.write_vcz(folder / "store.vcz", cohort.some_arrays(10, cohort.ids(0, 7)))
    cohort.write_vcz(folder / "batch.vcz", cohort.some_arrays(10, cohort.ids(7, 4), seed=1))
    (folder / "unknown.yaml").write_text("threads: {speed: 3}\n")
    (folder / "wrong.yaml").write_text("threads: {max-workers: many}\n")
    return folder


@pytest.fixture
def stores(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A store and a batch, which stay as they are."""
    before = cohort.digest(folder)
    yield folder / "store.vcz", folder / "batch.vcz"
    assert cohort.digest(folder) == before


def run(stores: tuple[Path, Path], command: str) -> tuple[int, str]:
    """Run a command; its status, and what it says in one line."""
    store, batch = stores
    folder = store.parent
    places = {"STORE": str(store), "BATCH": str(batch), "OUT": str(folder / "out")}
    words = [places.get(w, str(folder / w) if w.endswith(".yaml") else w) for w in command.split()]
    done = CliRunner().invoke(main, words)
    assert "Traceback" not in done.output
    return done.exit_code, done.output


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_has_status_2(stores: tuple[Path, Path], case: str) -> None:
    status, output = run(stores, USAGE[case])
    assert status == 2, output
    assert len([line for line in output.splitlines() if line.startswith("Error: ")]) == 1


@pytest.mark.parametrize("case", DATA)
def test_what_depends_on_data_has_status_1(stores: tuple[Path, Path], case: str) -> None:
    status, output = run(stores, DATA[case])
    assert status == 1, output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize("text", ["append: {source: BATCH, harmonise: true, numbers: [AD=X]}", "recompute: [FOO]"])
def test_a_job_file_keeps_status_2(stores: tuple[Path, Path], tmp_path: Path, text: str) -> None:
    store, batch = stores
    (tmp_path / "plan.yaml").write_text(f"store: {store}\nsteps:\n  - {text.replace('BATCH', str(batch))}\n")
    for command in ("plan", "run"):
        done = CliRunner().invoke(main, [command, str(tmp_path / "plan.yaml")])
        assert done.exit_code == 2, done.output
        assert len(done.output.splitlines()) == 1


def test_python_tells_them_apart(stores: tuple[Path, Path]) -> None:
    store, batch = stores
    with pytest.raises(UnsuitableError):
        vczstore.append(store, batch, drop_fields=["FOO"])
    with pytest.raises(OptionError) as caught:
        vczstore.append(store, batch, numbers=["AD=R"])
    assert not isinstance(caught.value, UnsuitableError)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, b: vczstore.append(s, b, nonsense=1), "append() got an unexpected keyword argument 'nonsense'"),
        (lambda s, b: vczstore.append(s, b, drop_field="DP"), "append() .* 'drop_field'; did you mean 'drop_fields'?"),
        (lambda s, b: vczstore.plan("append", s, b, max_worker=2), "plan() .*; did you mean 'max_workers'?"),
        (lambda s, b: vczstore.info(s, backend="zarr"), "info() .*'backend'; did you mean 'backend_storage'?"),
        (lambda s, b: vczstore.tags(s, nonsense=1), "tags() got an unexpected keyword argument 'nonsense'"),
        (lambda s, b: vczstore.remove(s, ["S0001"], recomputed="AC"), "remove() .*; did you mean 'recompute'?"),
    ],
)
def test_a_keyword_that_there_is_not(
    stores: tuple[Path, Path], call: Callable[[Path, Path], object], message: str
) -> None:
    pattern = "^" + message.replace("(", r"\(").replace(")", r"\)").replace("?", r"\?") + "$"
    with pytest.raises(TypeError, match=pattern):
        call(*stores)


def test_one_name_may_stand_alone(stores: tuple[Path, Path]) -> None:
    """A string is no list of letters."""
    store, batch = stores
    rules = Append(store=store, sources=batch, harmonise=True, haploid_contigs="chrX", numbers="AD=R").rules
    assert (rules.haploid_contigs, rules.numbers) == (("chrX",), ("AD=R",))
    with pytest.raises(UnsuitableError, match="neither the store nor a source has call_FOO"):
        vczstore.append(store, batch, drop_fields="FOO")
    assert vczstore.append(store, batch, recompute="AC", dry_run=True).plan.operation
