"""Exit status: 2 for errors in the command line itself, 1 for errors that depend on the content of a store."""

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
    "an unknown Number": "append STORE BATCH --harmonise --number AD=X",
    "a Number without a field": "append STORE BATCH --harmonise --number R",
    "an unknown Number of normalise": "normalise STORE BATCH OUT --number AD=X",
    "--number without --harmonise": "append STORE BATCH --number AD=R",
    "--absent without --harmonise": "append STORE BATCH --absent reference",
    "--new-variants without --harmonise": "append STORE BATCH --new-variants drop",
    "--allow-new-alleles without --harmonise": "append STORE BATCH --allow-new-alleles",
    "--haploid-contigs without --harmonise": "append STORE BATCH --haploid-contigs Y",
    "--harmonise with xarray": "append STORE BATCH --harmonise --impl xarray",
    "normalise with xarray": "normalise STORE BATCH OUT --impl xarray",
    "an unknown INFO field": "recompute STORE --fields FOO",
    "no INFO field": "recompute STORE --fields ,",
    "an INFO field after an append": "append STORE BATCH --recompute FOO",
    "an INFO field after an update": "update STORE BATCH --recompute FOO",
    "an INFO field after a removal": "remove STORE S0001 --recompute FOO",
    "an invalid size": "append STORE BATCH --allowed-mem much",
    "a size below Python's own": "append STORE BATCH --allowed-mem 1kB",
    "no workers": "append STORE BATCH --max-workers 0",
    "an unknown executor": "append STORE BATCH --executor fast",
    "a missing executor file": "append STORE BATCH --executor nowhere.yaml",
    "an executor file with an unknown option": "append STORE BATCH --executor unknown.yaml",
    "an executor file with an option of a wrong kind": "append STORE BATCH --executor wrong.yaml",
    "an executor check of such a file": "executor check unknown.yaml",
    "a storage option without a value": "append STORE BATCH --storage-option region",
    "a storage option of a folder": "append STORE BATCH --storage-option region=eu",
    "a storage option of a source that is a folder": "append STORE BATCH --source-storage-option region=eu",
    "an unknown storage option": "info s3://bucket/store --storage-option colour=red",
    "a storage option of a wrong kind": "info s3://bucket/store --storage-option allow_http=2",
    "a credential": "info s3://bucket/store --storage-option secret_access_key=x",
    "an invalid URL": "info s3:/bucket/store",
    "a URL without a bucket": "info s3://",
    "a backend that does not support URLs": "info s3://bucket/store --backend-storage zarr",
    "an unknown backend": "info STORE --backend-storage hdf5",
    "a copy to another backend": "copy-store-to-icechunk STORE OUT --backend-storage zarr",
    "an edit of a read-only web address": "remove https://localhost/store S0001",
    "an empty chunk": "create OUT BATCH --samples-chunk 0",
    "no sample": "remove STORE",
    "no source": "append STORE",
    "no tag to delete": "tag STORE -d",
    "an unknown option": "append STORE BATCH --fast",
}
"""Commands that are wrong for every store."""
DATA = {
    "an unknown field to drop": "append STORE BATCH --drop-field FOO",
    "an unknown field to add": "append STORE BATCH --add-field FOO",
    "an unknown field of normalise": "normalise STORE BATCH OUT --drop-field FOO",
    "an existing output": "create STORE BATCH",
    "an existing output of normalise": "normalise STORE BATCH STORE",
    "an existing output of a copy": "copy-store-to-icechunk BATCH STORE",
    "an existing output of compact": "compact STORE --output BATCH",
    "history of plain Zarr": "info STORE --at v1",
    "an unknown sample": "remove STORE absent-id",
    "samples that are in the store already": "append STORE STORE",
    "a missing store": "append OUT BATCH",
}
"""Commands that would be right for other stores."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a batch and executor files, shared by all tests because no command changes it."""
    folder = tmp_path_factory.mktemp("stores")
    cohort.write_vcz(folder / "store.vcz", cohort.some_arrays(10, cohort.ids(0, 7)))
    cohort.write_vcz(folder / "batch.vcz", cohort.some_arrays(10, cohort.ids(7, 4), seed=1))
    (folder / "unknown.yaml").write_text("threads: {speed: 3}\n")
    (folder / "wrong.yaml").write_text("threads: {max-workers: many}\n")
    return folder


@pytest.fixture
def stores(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A store and a batch, which must not change."""
    before = cohort.digest(folder)
    yield folder / "store.vcz", folder / "batch.vcz"
    assert cohort.digest(folder) == before


def run(stores: tuple[Path, Path], command: str) -> tuple[int, str]:
    """Invoke a command; return its exit status and output."""
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
def test_errors_that_depend_on_data_have_status_1(stores: tuple[Path, Path], case: str) -> None:
    status, output = run(stores, DATA[case])
    assert status == 1, output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize("text", ["append: {source: BATCH, harmonise: true, numbers: [AD=X]}", "recompute: [FOO]"])
def test_errors_in_a_job_file_have_status_2(stores: tuple[Path, Path], tmp_path: Path, text: str) -> None:
    store, batch = stores
    (tmp_path / "plan.yaml").write_text(f"store: {store}\nsteps:\n  - {text.replace('BATCH', str(batch))}\n")
    for command in ("plan", "run"):
        done = CliRunner().invoke(main, [command, str(tmp_path / "plan.yaml")])
        assert done.exit_code == 2, done.output
        assert len(done.output.splitlines()) == 1


def test_error_classes_in_python(stores: tuple[Path, Path]) -> None:
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
def test_an_unknown_keyword(stores: tuple[Path, Path], call: Callable[[Path, Path], object], message: str) -> None:
    pattern = "^" + message.replace("(", r"\(").replace(")", r"\)").replace("?", r"\?") + "$"
    with pytest.raises(TypeError, match=pattern):
        call(*stores)


def test_a_string_is_accepted_for_a_list_of_names(stores: tuple[Path, Path]) -> None:
    """It is one name, not a list of letters."""
    store, batch = stores
    rules = Append(store=store, sources=batch, harmonise=True, haploid_contigs="chrX", numbers="AD=R").rules
    assert (rules.haploid_contigs, rules.numbers) == (("chrX",), ("AD=R",))
    with pytest.raises(UnsuitableError, match="neither the store nor a source has call_FOO"):
        vczstore.append(store, batch, drop_fields="FOO")
    assert vczstore.append(store, batch, recompute="AC", dry_run=True).plan.operation
